// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM's areas in guest memory, with and without guest_memfd: KVM writes them
 * where the guest has them, whatever is mapped at the memslot's userspace
 * address, and never in private memory.
 *
 * Each area is registered once.  KVM must follow later changes of its memory.
 */
#include <asm/kvm_para.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/mman.h>

#include "apic.h"
#include "hwpoison.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "test_util.h"
#include "vcpu_thread.h"
#include "xen.h"

#define GPA		0xc0000000ULL
#define SLOT		10
#define NR_PAGES	4
#define SIZE		(NR_PAGES * PAGE_SIZE)

#define OTHER_SLOT	(SLOT + 1)
#define OTHER_GPA	(GPA + SIZE)

#define MMAP		GUEST_MEMFD_FLAG_MMAP
#define SHARED		GUEST_MEMFD_FLAG_INIT_SHARED

#define PORT		5
#define GSI		10
#define VECTOR		0xf3

/* The areas.  The last one is across the last two pages of the memslot. */
enum {
	SHARED_INFO,
	VCPU_INFO,
	KVMCLOCK,
	STEAL_TIME,
	RUNSTATE,
	NR_AREAS,
};

static const struct {
	u64 offset;
	size_t len;
} areas[NR_AREAS] = {
	[SHARED_INFO] = { 0, PAGE_SIZE },
	[VCPU_INFO] = { PAGE_SIZE, 64 },
	[KVMCLOCK] = { PAGE_SIZE + 256, 32 },
	[STEAL_TIME] = { PAGE_SIZE + 512, 64 },
	[RUNSTATE] = { 3 * PAGE_SIZE - 20, 48 },
};

/* KVM has no steal time for a Xen guest, which finds it in the runstate. */
#define XEN_AREAS	(BIT(SHARED_INFO) | BIT(VCPU_INFO) | BIT(KVMCLOCK) | BIT(RUNSTATE))
#define KVM_AREAS	(BIT(KVMCLOCK) | BIT(STEAL_TIME))

struct gmem_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	/* -1 if the memslot has no guest_memfd. */
	int fd;
	/* What is at the memslot's userspace address, or NULL. */
	u8 *hva;
	/* The guest is Xen's. */
	bool xen;
	/* The areas that it has. */
	unsigned int areas;
};

static void create_vm(struct gmem_vm *gv, unsigned long type, bool xen)
{
	struct vm_shape shape = { .mode = VM_MODE_DEFAULT, .type = type };

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(type));
	TEST_REQUIRE(xen_has_evtchn_send());

	gv->vm = vm_create_shape_with_one_vcpu(shape, &gv->vcpu, xen_guest_idle);
	gv->fd = -1;
	gv->xen = xen;
	gv->areas = xen ? XEN_AREAS : KVM_AREAS;
	if (xen)
		xen_enable(gv->vm);
}

static u8 *anonymous_memory(void)
{
	return kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static u8 *file_memory(int fd, size_t offset)
{
	return __kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
}

static void set_memslot(struct gmem_vm *gv, size_t size, size_t offset)
{
	vm_set_user_memory_region2(gv->vm, SLOT, gv->fd < 0 ? 0 : KVM_MEM_GUEST_MEMFD,
				   GPA, size, gv->hva, gv->fd, offset);
}

/* A memslot without a guest_memfd. */
static void add_memory(struct gmem_vm *gv)
{
	gv->hva = anonymous_memory();
	set_memslot(gv, SIZE, 0);
}

/* A memslot with a guest_memfd, of twice its size, and @hva besides. */
static void add_gmem(struct gmem_vm *gv, u64 flags, u8 *hva)
{
	gv->fd = vm_create_guest_memfd(gv->vm, 2 * SIZE, flags);
	gv->hva = hva;
	set_memslot(gv, SIZE, 0);
}

/* The file is mapped, from @offset on, at the memslot's userspace address. */
static void add_mapped_gmem(struct gmem_vm *gv, size_t offset)
{
	gv->fd = vm_create_guest_memfd(gv->vm, 2 * SIZE, MMAP | SHARED);
	gv->hva = file_memory(gv->fd, offset);
	set_memslot(gv, SIZE, 0);
}

static void destroy_vm(struct gmem_vm *gv)
{
	if (gv->fd >= 0)
		kvm_close(gv->fd);
	kvm_vm_free(gv->vm);
}

static int set_vm_area(struct gmem_vm *gv)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = GPA / PAGE_SIZE,
	};

	return __vm_ioctl(gv->vm, KVM_XEN_HVM_SET_ATTR, &attr) ? errno : 0;
}

static int set_vcpu_area(struct gmem_vm *gv, u16 type, int area)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.gpa = GPA + areas[area].offset };

	return __vcpu_ioctl(gv->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr) ? errno : 0;
}

/* Register all areas.  Xen's ioctls fail with @err, the guest's MSRs never. */
static void __set_areas(struct gmem_vm *gv, int err)
{
	vcpu_set_msr(gv->vcpu, MSR_KVM_SYSTEM_TIME_NEW,
		     (GPA + areas[KVMCLOCK].offset) | KVM_MSR_ENABLED);

	if (!gv->xen) {
		vcpu_set_msr(gv->vcpu, MSR_KVM_STEAL_TIME,
			     (GPA + areas[STEAL_TIME].offset) | KVM_MSR_ENABLED);
		return;
	}

	TEST_ASSERT_EQ(set_vm_area(gv), err);
	TEST_ASSERT_EQ(set_vcpu_area(gv, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, VCPU_INFO), err);
	TEST_ASSERT_EQ(set_vcpu_area(gv, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE), err);
}

static void set_areas(struct gmem_vm *gv)
{
	__set_areas(gv, 0);
}

static int send_event(struct gmem_vm *gv)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(gv->vcpu, PORT);

	return __vm_ioctl(gv->vm, KVM_XEN_HVM_EVTCHN_SEND, &e) ? errno : 0;
}

/* Make KVM write each area.  The event fails with @err. */
static void write_areas(struct gmem_vm *gv, int err)
{
	xen_set_clock(gv->vm, xen_get_clock(gv->vm) + NSEC_PER_SEC);
	if (gv->xen)
		TEST_ASSERT_EQ(send_event(gv), err);
	vcpu_run(gv->vcpu);
}

static bool has_data(const u8 *mem, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++) {
		if (READ_ONCE(mem[i]))
			return true;
	}

	return false;
}

/* The areas that are in @mem: in each of its pages, or else in none. */
static unsigned int areas_in(const u8 *mem)
{
	unsigned int i, mask = 0;

	for (i = 0; i < NR_AREAS; i++) {
		size_t len = min_t(size_t, areas[i].len,
				   PAGE_SIZE - areas[i].offset % PAGE_SIZE);
		const u8 *area = mem + areas[i].offset;
		bool found = has_data(area, len);

		TEST_ASSERT(len == areas[i].len ||
			    has_data(area + len, areas[i].len - len) == found,
			    "Area %u is in one of its two pages", i);
		if (found)
			mask |= BIT(i);
	}

	return mask;
}

static void clear_areas(u8 *mem)
{
	memset(mem, 0, SIZE);
}

/* Everything that KVM writes must be in @mem. */
static void expect_areas_in(struct gmem_vm *gv, u8 *mem)
{
	clear_areas(mem);
	write_areas(gv, 0);
	TEST_ASSERT_EQ(areas_in(mem), gv->areas);
}

/* KVM must not write anywhere in @mem. */
static void expect_no_access(struct gmem_vm *gv, u8 *mem)
{
	clear_areas(mem);
	write_areas(gv, EFAULT);
	TEST_ASSERT_EQ(areas_in(mem), 0);
}

static void punch(struct gmem_vm *gv, size_t offset, size_t size)
{
	kvm_fallocate(gv->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size);
}

FIXTURE(gpc_gmem) {
	struct gmem_vm gv;
};

FIXTURE_VARIANT(gpc_gmem) {
	bool xen;
};

FIXTURE_VARIANT_ADD(gpc_gmem, xen) { .xen = true };
FIXTURE_VARIANT_ADD(gpc_gmem, kvm) { .xen = false };

FIXTURE_SETUP(gpc_gmem)
{
	create_vm(&self->gv, KVM_X86_DEFAULT_VM, variant->xen);
}

FIXTURE_TEARDOWN(gpc_gmem)
{
	destroy_vm(&self->gv);
}

/* A memslot without a guest_memfd. */
TEST_F(gpc_gmem, a_no_gmem)
{
	struct gmem_vm *gv = &self->gv;

	add_memory(gv);
	set_areas(gv);
	expect_areas_in(gv, gv->hva);
}

/* The guest's memory is mapped at the userspace address. */
TEST_F(gpc_gmem, e_mapped)
{
	struct gmem_vm *gv = &self->gv;

	add_mapped_gmem(gv, 0);
	set_areas(gv);
	expect_areas_in(gv, gv->hva);
}

/* The same, and the mapping is removed after the registration. */
TEST_F(gpc_gmem, unmapped)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;

	add_mapped_gmem(gv, 0);
	set_areas(gv);
	mem = file_memory(gv->fd, 0);
	expect_areas_in(gv, mem);

	kvm_munmap(gv->hva, SIZE);
	expect_areas_in(gv, mem);
}

/* Nothing is mapped at the userspace address. */
TEST_F(gpc_gmem, f_not_mapped)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;

	add_gmem(gv, MMAP | SHARED, NULL);
	set_areas(gv);
	write_areas(gv, 0);

	mem = file_memory(gv->fd, 0);
	EXPECT_EQ(areas_in(mem), gv->areas);
}

/* Other memory is mapped at the userspace address. */
TEST_F(gpc_gmem, g_decoy)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;

	add_gmem(gv, MMAP | SHARED, anonymous_memory());
	mem = file_memory(gv->fd, 0);
	set_areas(gv);
	expect_areas_in(gv, mem);
	EXPECT_EQ(areas_in(gv->hva), 0);
}

/* Another part of the same file is mapped at the userspace address. */
TEST_F(gpc_gmem, g_other_offset)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;

	add_mapped_gmem(gv, SIZE);
	mem = file_memory(gv->fd, 0);
	set_areas(gv);
	expect_areas_in(gv, mem);
	EXPECT_EQ(areas_in(gv->hva), 0);
}

/* Without mmap(), shared memory is at the userspace address. */
TEST_F(gpc_gmem, j_no_mmap)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, SHARED, anonymous_memory());
	set_areas(gv);
	expect_areas_in(gv, gv->hva);
}

/* Once the file is closed, the memslot has no memory. */
TEST_F(gpc_gmem, k_closed)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, MMAP | SHARED, anonymous_memory());
	set_areas(gv);
	write_areas(gv, 0);

	kvm_close(gv->fd);
	gv->fd = -1;
	expect_no_access(gv, gv->hva);
}

/* An area by userspace address, which only Xen has, is what is mapped there. */
TEST_F(gpc_gmem, l_by_hva)
{
	struct kvm_xen_vcpu_attr vcpu_attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA };
	struct kvm_xen_hvm_attr attr = { .type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA };
	struct gmem_vm *gv = &self->gv;
	u8 *mem;

	if (!gv->xen)
		SKIP(return, "needs Xen's areas");

	add_gmem(gv, MMAP | SHARED, NULL);
	mem = file_memory(gv->fd, 0);
	attr.u.shared_info.hva = (unsigned long)mem;
	vm_ioctl(gv->vm, KVM_XEN_HVM_SET_ATTR, &attr);
	vcpu_attr.u.hva = (unsigned long)mem + areas[VCPU_INFO].offset;
	vcpu_ioctl(gv->vcpu, KVM_XEN_VCPU_SET_ATTR, &vcpu_attr);

	EXPECT_EQ(send_event(gv), 0);
	EXPECT_TRUE(xen_is_pending((void *)mem, PORT));

	punch(gv, 0, SIZE);
	EXPECT_FALSE(xen_is_pending((void *)mem, PORT));
	EXPECT_EQ(send_event(gv), 0);
	EXPECT_TRUE(xen_is_pending((void *)mem, PORT));
}

/* A hole is filled by new pages, which KVM has to find. */
TEST_F(gpc_gmem, punch)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;
	int i;

	add_gmem(gv, MMAP | SHARED, anonymous_memory());
	mem = file_memory(gv->fd, 0);
	set_areas(gv);
	expect_areas_in(gv, mem);

	for (i = 0; i < NR_PAGES; i++) {
		punch(gv, i * PAGE_SIZE, PAGE_SIZE);
		expect_areas_in(gv, mem);
	}

	punch(gv, 0, 2 * SIZE);
	write_areas(gv, 0);
	EXPECT_EQ(areas_in(mem), gv->areas);
	EXPECT_EQ(areas_in(gv->hva), 0);
}

/* So many pages that the first is gone long before the last. */
#define LONG_PUNCH	(BIT(13) * PAGE_SIZE)

static void *punch_much(void *arg)
{
	punch(arg, 0, LONG_PUNCH);
	return NULL;
}

/*
 * While a hole is punched, an event waits.  It goes to the page that the file
 * has then.
 */
TEST_F(gpc_gmem, punch_takes_long)
{
	struct gmem_vm *gv = &self->gv;
	pthread_t thread;
	u8 *mem;

	if (!gv->xen)
		SKIP(return, "needs Xen's areas");

	gv->fd = vm_create_guest_memfd(gv->vm, LONG_PUNCH, MMAP | SHARED);
	set_memslot(gv, SIZE, 0);
	kvm_fallocate(gv->fd, FALLOC_FL_KEEP_SIZE, 0, LONG_PUNCH);
	mem = file_memory(gv->fd, 0);
	TEST_ASSERT_EQ(set_vm_area(gv), 0);
	TEST_ASSERT_EQ(send_event(gv), 0);
	TEST_ASSERT(xen_is_pending((void *)mem, PORT), "The event isn't pending");

	/* Reading makes another first page, which goes last. */
	pthread_create(&thread, NULL, punch_much, gv);
	while (xen_is_pending((void *)mem, PORT))
		sched_yield();
	EXPECT_EQ(send_event(gv), 0);
	pthread_join(thread, NULL);
	EXPECT_TRUE(xen_is_pending((void *)mem, PORT));
}

/*
 * The pages of the system that can't be evicted: a page of a guest_memfd is one
 * as long as it exists.  Return -1 if they can't be counted exactly.
 */
static long count_unevictable(void)
{
	char line[128];
	long nr = -1;
	FILE *f;
	int fd;

	/* Compaction also takes pages out of the batches of CPUs. */
	fd = open("/proc/sys/vm/compact_memory", O_WRONLY);
	if (fd < 0 || write(fd, "1", 1) != 1)
		return -1;
	close(fd);
	fd = open("/proc/sys/vm/stat_refresh", O_WRONLY);
	if (fd < 0 || write(fd, "1", 1) != 1)
		return -1;
	close(fd);

	f = fopen("/proc/vmstat", "r");
	TEST_ASSERT(f, "/proc/vmstat: %s", strerror(errno));
	while (fgets(line, sizeof(line), f) && sscanf(line, "nr_unevictable %ld", &nr) != 1)
		;
	fclose(f);
	return nr;
}

/* KVM keeps no reference to a page that is mapped. */
TEST_F(gpc_gmem, freed)
{
	struct gmem_vm *gv = &self->gv;
	long before;

	add_gmem(gv, MMAP | SHARED, NULL);
	before = count_unevictable();
	if (before < 0)
		SKIP(return, "needs root, and compaction");

	set_areas(gv);
	memset(file_memory(gv->fd, 0), 0, SIZE);
	write_areas(gv, 0);
	EXPECT_EQ(count_unevictable(), before + NR_PAGES);

	punch(gv, 0, SIZE);
	EXPECT_EQ(count_unevictable(), before);
}

/* The memslot is deleted, and created at another offset of the file. */
TEST_F(gpc_gmem, memslot_at_other_offset)
{
	struct gmem_vm *gv = &self->gv;
	u8 *old, *mem;

	add_gmem(gv, MMAP | SHARED, NULL);
	old = file_memory(gv->fd, 0);
	mem = file_memory(gv->fd, SIZE);
	set_areas(gv);
	expect_areas_in(gv, old);

	set_memslot(gv, 0, 0);
	expect_no_access(gv, old);

	set_memslot(gv, SIZE, SIZE);
	expect_areas_in(gv, mem);
	EXPECT_EQ(areas_in(old), 0);
}

/* A hole removes the page that has an error. */
TEST_F(gpc_gmem, memory_error)
{
	struct gmem_vm *gv = &self->gv;
	u8 *mem;
	int i;

	add_gmem(gv, MMAP | SHARED, NULL);
	mem = file_memory(gv->fd, 0);
	set_areas(gv);
	expect_areas_in(gv, mem);

	for (i = 0; i < 2; i++)
		hwpoison(mem + i * PAGE_SIZE);
	write_areas(gv, EFAULT);

	/* The old mapping goes on raising SIGBUS. */
	punch(gv, 0, 2 * PAGE_SIZE);
	expect_areas_in(gv, file_memory(gv->fd, 0));
}

FIXTURE(gpc_gmem_private) {
	struct gmem_vm gv;
};

FIXTURE_VARIANT(gpc_gmem_private) {
	bool xen;
};

FIXTURE_VARIANT_ADD(gpc_gmem_private, xen) { .xen = true };
FIXTURE_VARIANT_ADD(gpc_gmem_private, kvm) { .xen = false };

FIXTURE_SETUP(gpc_gmem_private)
{
	create_vm(&self->gv, KVM_X86_SW_PROTECTED_VM, variant->xen);
}

FIXTURE_TEARDOWN(gpc_gmem_private)
{
	destroy_vm(&self->gv);
}

/* Shared memory of a memslot whose guest_memfd is for private memory. */
TEST_F(gpc_gmem_private, b_shared)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, 0, anonymous_memory());
	set_areas(gv);
	expect_areas_in(gv, gv->hva);
}

/* MSRs that are set while the memory is private take effect later. */
TEST_F(gpc_gmem_private, c_private)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, 0, anonymous_memory());
	vm_mem_set_private(gv->vm, GPA, SIZE);
	__set_areas(gv, EFAULT);
	vcpu_run(gv->vcpu);
	EXPECT_EQ(areas_in(gv->hva), 0);

	vm_mem_set_shared(gv->vm, GPA, SIZE);
	vcpu_run(gv->vcpu);
	EXPECT_EQ(areas_in(gv->hva), KVM_AREAS & gv->areas);
}

/* Less than a time slice: the vCPU isn't loaded again meanwhile. */
#define SPINS	100000

static u64 nr_spins;
static bool stop_spinning;

static void guest_spin(void)
{
	while (!READ_ONCE(stop_spinning))
		WRITE_ONCE(nr_spins, nr_spins + 1);
	GUEST_DONE();
}

static void await_spins(struct kvm_vm *vm)
{
	u64 *spins = addr_gva2hva(vm, (gva_t)&nr_spins);
	u64 start = READ_ONCE(*spins);

	while (READ_ONCE(*spins) < start + SPINS)
		sched_yield();
}

/* A vCPU that stays in guest mode gets its clock. */
TEST_F(gpc_gmem_private, c_private_while_running)
{
	struct gmem_vm *gv = &self->gv;
	struct vcpu_thread thread;

	if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
		SKIP(return, "The vCPU doesn't stay in guest mode, as there is one CPU");

	add_gmem(gv, 0, anonymous_memory());
	vcpu_arch_set_entry_point(gv->vcpu, guest_spin);
	vm_mem_set_private(gv->vm, GPA, SIZE);
	__set_areas(gv, EFAULT);
	vcpu_thread_start(&thread, gv->vcpu);
	await_spins(gv->vm);
	EXPECT_EQ(areas_in(gv->hva), 0);

	vm_mem_set_shared(gv->vm, GPA, SIZE);
	await_spins(gv->vm);
	EXPECT_EQ(areas_in(gv->hva) & BIT(KVMCLOCK), BIT(KVMCLOCK));

	WRITE_ONCE(*(bool *)addr_gva2hva(gv->vm, (gva_t)&stop_spinning), true);
	EXPECT_TRUE(vcpu_thread_finish(&thread));
}

static unsigned int areas_of_page(int page)
{
	unsigned int i, mask = 0;

	for (i = 0; i < NR_AREAS; i++) {
		if (areas[i].offset < (page + 1) * PAGE_SIZE &&
		    areas[i].offset + areas[i].len > page * PAGE_SIZE)
			mask |= BIT(i);
	}

	return mask;
}

static void test_conversion(struct gmem_vm *gv)
{
	int i;

	set_areas(gv);
	expect_areas_in(gv, gv->hva);

	vm_mem_set_private(gv->vm, GPA, SIZE);
	expect_no_access(gv, gv->hva);
	vm_mem_set_shared(gv->vm, GPA, SIZE);
	expect_areas_in(gv, gv->hva);

	for (i = 0; i < NR_PAGES; i++) {
		vm_mem_set_private(gv->vm, GPA + i * PAGE_SIZE, PAGE_SIZE);
		clear_areas(gv->hva);
		write_areas(gv, i ? 0 : EFAULT);
		TEST_ASSERT_EQ(areas_in(gv->hva), gv->areas & ~areas_of_page(i));

		vm_mem_set_shared(gv->vm, GPA + i * PAGE_SIZE, PAGE_SIZE);
		expect_areas_in(gv, gv->hva);
	}
}

/* Memory becomes private, and shared again, after it was registered. */
TEST_F(gpc_gmem_private, d_converted)
{
	add_gmem(&self->gv, 0, anonymous_memory());
	test_conversion(&self->gv);
}

/* Without a guest_memfd, a private frame has no memory. */
TEST_F(gpc_gmem_private, i_no_gmem)
{
	add_memory(&self->gv);
	test_conversion(&self->gv);
}

/* All of the file is private memory, whatever the attributes are. */
TEST_F(gpc_gmem_private, h_mmap)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, MMAP, anonymous_memory());
	__set_areas(gv, EFAULT);
	vcpu_run(gv->vcpu);
	EXPECT_EQ(areas_in(gv->hva), 0);
}

/* Conversions of other frames don't affect the areas. */
TEST_F(gpc_gmem_private, converted_elsewhere)
{
	struct gmem_vm *gv = &self->gv;

	add_gmem(gv, 0, anonymous_memory());
	set_areas(gv);
	vm_mem_set_private(gv->vm, GPA + SIZE, SIZE);
	vm_mem_set_private(gv->vm, GPA - SIZE, SIZE);
	expect_areas_in(gv, gv->hva);
}

/*
 * A vCPU sleeps in HLT, and an event arrives for it that KVM can't deliver, for
 * want of the memory of an area.  When the memory is back, the event must wake
 * the vCPU.
 */
static u32 nr_upcalls;

static void guest_take_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)(GPA + PAGE_SIZE);

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	WRITE_ONCE(nr_upcalls, nr_upcalls + 1);
}

static void guest_halt_until_upcall(void)
{
	x2apic_enable();
	while (!READ_ONCE(nr_upcalls))
		asm volatile("sti; hlt; cli" ::: "memory");
	GUEST_DONE();
}

FIXTURE(gpc_gmem_event) {
	struct gmem_vm gv;
	struct vcpu_thread thread;
	int irqfd;
};

FIXTURE_VARIANT(gpc_gmem_event) {
	/* The area whose memory is missing. */
	int area;
	/* The memory has an error, else it is private. */
	bool poisoned;
};

FIXTURE_VARIANT_ADD(gpc_gmem_event, shared_info) { .area = SHARED_INFO };
FIXTURE_VARIANT_ADD(gpc_gmem_event, vcpu_info) { .area = VCPU_INFO };
FIXTURE_VARIANT_ADD(gpc_gmem_event, poisoned_shared_info) {
	.area = SHARED_INFO, .poisoned = true,
};

FIXTURE_VARIANT_ADD(gpc_gmem_event, poisoned_vcpu_info) {
	.area = VCPU_INFO, .poisoned = true,
};

FIXTURE_SETUP(gpc_gmem_event)
{
	struct gmem_vm *gv = &self->gv;

	create_vm(gv, variant->poisoned ? KVM_X86_DEFAULT_VM : KVM_X86_SW_PROTECTED_VM, true);
	vcpu_arch_set_entry_point(gv->vcpu, guest_halt_until_upcall);
	vm_install_exception_handler(gv->vm, VECTOR, guest_take_upcall);
	virt_map(gv->vm, GPA, GPA, NR_PAGES);

	if (variant->poisoned)
		add_gmem(gv, MMAP | SHARED, NULL);
	else
		add_gmem(gv, 0, anonymous_memory());

	set_areas(gv);
	xen_set_upcall_vector(gv->vm, VECTOR);
	self->irqfd = xen_irqfd(gv->vcpu, GSI, PORT);
}

FIXTURE_TEARDOWN(gpc_gmem_event)
{
	close(self->irqfd);
	destroy_vm(&self->gv);
}

TEST_F(gpc_gmem_event, delivered)
{
	u64 offset = areas[variant->area].offset;
	struct gmem_vm *gv = &self->gv;

	if (variant->poisoned)
		hwpoison(file_memory(gv->fd, 0) + offset);
	else
		vm_mem_set_private(gv->vm, GPA + offset, PAGE_SIZE);

	vcpu_thread_start(&self->thread, gv->vcpu);
	EXPECT_TRUE(vcpu_thread_rests(&self->thread));
	TEST_ASSERT_EQ(eventfd_write(self->irqfd, 1), 0);
	/* The event may go to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(gv->vm, GSI, self->irqfd);
	EXPECT_TRUE(vcpu_thread_rests(&self->thread));

	if (variant->poisoned)
		punch(gv, offset, PAGE_SIZE);
	else
		vm_mem_set_shared(gv->vm, GPA + offset, PAGE_SIZE);
	EXPECT_TRUE(vcpu_thread_finish(&self->thread));
	EXPECT_EQ(get_ucall(gv->vcpu, NULL), UCALL_DONE);
}

/*
 * Convert, punch and move memory while KVM writes to all areas, and memslots
 * and files come and go: memory that was taken away isn't written to any more.
 */
#define RACE_ROUNDS	50

/* How often to look at memory that isn't the guest's any more. */
#define RACE_LOOKS	20

struct race {
	struct gmem_vm *gv;
	bool private;
	/* Where the memslot is in the file. */
	size_t offset;
	bool stop;
};

static void *race_run_vcpu(void *arg)
{
	struct race *r = arg;

	while (!READ_ONCE(r->stop))
		vcpu_run(r->gv->vcpu);

	return NULL;
}

static void *race_send_events(void *arg)
{
	struct race *r = arg;
	int err;

	while (!READ_ONCE(r->stop)) {
		err = send_event(r->gv);
		TEST_ASSERT(!err || err == EFAULT, "errno %d", err);
	}

	return NULL;
}

static void *race_set_clock(void *arg)
{
	struct race *r = arg;

	while (!READ_ONCE(r->stop))
		xen_set_clock(r->gv->vm, xen_get_clock(r->gv->vm) + NSEC_PER_SEC);

	return NULL;
}

/* The file of another memslot comes and goes. */
static void *race_other_file(void *arg)
{
	struct race *r = arg;
	u64 flags = r->private ? 0 : MMAP | SHARED;
	u8 *mem = r->private ? anonymous_memory() : NULL;
	struct kvm_vm *vm = r->gv->vm;
	int fd;

	while (!READ_ONCE(r->stop)) {
		fd = vm_create_guest_memfd(vm, SIZE, flags);
		vm_set_user_memory_region2(vm, OTHER_SLOT, KVM_MEM_GUEST_MEMFD, OTHER_GPA, SIZE,
					   mem, fd, 0);
		kvm_fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE);
		kvm_fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, PAGE_SIZE);
		kvm_close(fd);
		vm_set_user_memory_region2(vm, OTHER_SLOT, 0, OTHER_GPA, 0, mem, -1, 0);
	}

	return NULL;
}

static void expect_unchanged(const u8 *mem, size_t size)
{
	u8 before[SIZE];
	int i;

	memcpy(before, mem, size);
	for (i = 0; i < RACE_LOOKS; i++) {
		sched_yield();
		TEST_ASSERT(!memcmp(before, mem, size), "KVM writes to memory that was taken");
	}
}

static void race_convert(struct race *r, int page)
{
	gpa_t gpa = GPA + page * PAGE_SIZE;

	vm_mem_set_private(r->gv->vm, gpa, PAGE_SIZE);
	expect_unchanged(r->gv->hva + page * PAGE_SIZE, PAGE_SIZE);
	vm_mem_set_shared(r->gv->vm, gpa, PAGE_SIZE);
}

static void race_move(struct race *r, u8 *file)
{
	size_t old = r->offset;

	set_memslot(r->gv, 0, 0);
	expect_unchanged(file + old, SIZE);
	r->offset = SIZE - old;
	set_memslot(r->gv, SIZE, r->offset);
	expect_unchanged(file + old, SIZE);
}

FIXTURE(gpc_gmem_race) {
	struct gmem_vm gv;
};

FIXTURE_VARIANT(gpc_gmem_race) {
	unsigned long type;
	bool xen;
};

FIXTURE_VARIANT_ADD(gpc_gmem_race, private_xen) {
	.type = KVM_X86_SW_PROTECTED_VM, .xen = true,
};

FIXTURE_VARIANT_ADD(gpc_gmem_race, private_kvm) {
	.type = KVM_X86_SW_PROTECTED_VM,
};

FIXTURE_VARIANT_ADD(gpc_gmem_race, file_xen) {
	.type = KVM_X86_DEFAULT_VM, .xen = true,
};

FIXTURE_VARIANT_ADD(gpc_gmem_race, file_kvm) {
	.type = KVM_X86_DEFAULT_VM,
};

FIXTURE_SETUP(gpc_gmem_race)
{
	create_vm(&self->gv, variant->type, variant->xen);
}

FIXTURE_TEARDOWN(gpc_gmem_race)
{
	destroy_vm(&self->gv);
}

TEST_F_TIMEOUT(gpc_gmem_race, taken, 300)
{
	bool private = variant->type == KVM_X86_SW_PROTECTED_VM;
	struct gmem_vm *gv = &self->gv;
	struct race race = { .gv = gv, .private = private };
	pthread_t threads[4];
	u8 *mem;
	int i;

	if (private)
		add_gmem(gv, 0, anonymous_memory());
	else
		add_gmem(gv, MMAP | SHARED, NULL);
	mem = private ? gv->hva :
	      __kvm_mmap(2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, gv->fd, 0);
	set_areas(gv);

	pthread_create(&threads[0], NULL, race_run_vcpu, &race);
	pthread_create(&threads[1], NULL, race_set_clock, &race);
	pthread_create(&threads[2], NULL, race_other_file, &race);
	if (gv->xen)
		pthread_create(&threads[3], NULL, race_send_events, &race);

	for (i = 0; i < RACE_ROUNDS; i++) {
		if (private) {
			race_convert(&race, i % NR_PAGES);
		} else if (i % 4) {
			punch(gv, race.offset + i % 4 * PAGE_SIZE, PAGE_SIZE);
			sched_yield();
		} else {
			race_move(&race, mem);
		}
	}

	WRITE_ONCE(race.stop, true);
	for (i = 0; i < 3 + gv->xen; i++)
		pthread_join(threads[i], NULL);

	if (!private) {
		write_areas(gv, 0);
		punch(gv, race.offset, SIZE);
	}
	expect_areas_in(gv, mem + race.offset);
}

/*
 * An event waits, asleep, for a change of attributes that takes long.  Most of
 * the memory that it names doesn't exist.
 */
#define LONG_CHANGE	(BIT_ULL(19) * PAGE_SIZE)

static bool change_is_over;

static void *make_much_private(void *arg)
{
	vm_mem_set_private(arg, GPA, LONG_CHANGE);
	WRITE_ONCE(change_is_over, true);
	return NULL;
}

static u64 time_ns(clockid_t clock)
{
	struct timespec ts;

	TEST_ASSERT_EQ(clock_gettime(clock, &ts), 0);
	return timespec_to_ns(ts);
}

TEST_F_TIMEOUT(gpc_gmem_private, long_change, 300)
{
	struct gmem_vm *gv = &self->gv;
	u64 waited, used;
	pthread_t thread;
	int err;

	if (!gv->xen)
		SKIP(return, "needs Xen's areas");

	add_gmem(gv, 0, anonymous_memory());
	set_areas(gv);
	TEST_ASSERT_EQ(send_event(gv), 0);

	/* The event that is sent during the change waits, and fails then. */
	pthread_create(&thread, NULL, make_much_private, gv->vm);
	do {
		waited = time_ns(CLOCK_MONOTONIC);
		used = time_ns(CLOCK_THREAD_CPUTIME_ID);
		err = send_event(gv);
		waited = time_ns(CLOCK_MONOTONIC) - waited;
		used = time_ns(CLOCK_THREAD_CPUTIME_ID) - used;
	} while (!err && !READ_ONCE(change_is_over));
	pthread_join(thread, NULL);

	EXPECT_EQ(err, EFAULT);
	EXPECT_LT(used, waited / 10)
		TH_LOG("The event waited for %lu ms and used %lu ms", waited / 1000000,
		       used / 1000000);
}

TEST_HARNESS_MAIN
