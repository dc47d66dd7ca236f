// SPDX-License-Identifier: GPL-2.0-only
/*
 * Areas of KVM's that are in several pages: wherever the pages are, each byte
 * of the area is where the guest has it, no other byte changes, and what fails
 * on the way to a new area leaves the old one alone.
 *
 * Pages that do not follow one another, and memory that is no RAM to the
 * kernel, have a mapping of their own.  It must not outlive userspace's, even
 * if the vCPU never runs again, as the pages may be used for anything then.
 */
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "test_util.h"
#include "fail_nth.h"
#include "kvm_test_harness.h"
#include "uffd_page.h"
#include "xen.h"

/* Two memslots that follow one another for the guest, but not for the VMM. */
#define GPA		0xc0000000ULL
#define SLOT		10
#define NR_PAGES	16
#define GPA2		(GPA + NR_PAGES * PAGE_SIZE)
#define SLOT2		11
#define END_GPA		(GPA2 + NR_PAGES * PAGE_SIZE)
/*
 * Memory without a struct page, if there is any: two pages in a row, two in
 * none.
 */
#define BARE_GPA	(END_GPA + 4 * SZ_2M)
#define BARE_SLOT	12
#define NR_BARE		4
/* A huge page. */
#define HUGE_GPA	align_up(END_GPA, SZ_2M)
#define HUGE_SLOT	13

/* A page of a file, and one that is missing. */
#define FILE_GPA	(BARE_GPA + SZ_2M)
#define FILE_SLOT	14

#define LEN_32		44
#define LEN_64		48
/* What is looked at before and after an area. */
#define MARGIN		16
#define UNTOUCHED	0xaa

/* What takes longer is taken for what never happens. */
#define LIMIT_S		5
#define STORM_ROUNDS	50

#define PM_PRESENT	BIT_ULL(63)
#define PM_PFN		GENMASK_ULL(54, 0)

static const struct kvm_xen_vcpu_attr runstate_data = {
	.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA,
	.u.runstate = {
		.state = RUNSTATE_blocked,
		.state_entry_time = 0x11 + 0x2200 + 0x3300 + 0x4400,
		.time_running = 0x11,
		.time_runnable = 0x2200,
		.time_blocked = 0x3300,
		.time_offline = 0x4400,
	},
};

/* If a test has them. */
static u8 *bare, *huge;

FIXTURE(gpc_pages) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

/* Every other page first, so that neighbours are not neighbours in memory. */
static void touch_scattered(char *mem)
{
	int i;

	/* Fails without huge pages. */
	madvise(mem, NR_PAGES * PAGE_SIZE, MADV_NOHUGEPAGE);
	TEST_ASSERT_EQ(madvise(mem, NR_PAGES * PAGE_SIZE, MADV_DONTNEED), 0);
	for (i = 0; i < NR_PAGES; i += 2)
		WRITE_ONCE(mem[i * PAGE_SIZE], 0);
	for (i = 1; i < NR_PAGES; i += 2)
		WRITE_ONCE(mem[i * PAGE_SIZE], 0);
}

static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu)
{
	struct kvm_vm *vm = vm_create_with_one_vcpu(vcpu, xen_guest_idle);

	xen_enable(vm);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, GPA, SLOT, NR_PAGES, 0);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, GPA2, SLOT2, NR_PAGES, 0);
	touch_scattered(addr_gpa2hva(vm, GPA));
	touch_scattered(addr_gpa2hva(vm, GPA2));
	vcpu_ioctl(*vcpu, KVM_XEN_VCPU_SET_ATTR, &runstate_data);
	return vm;
}

FIXTURE_SETUP(gpc_pages)
{
	self->vm = create_vm(&self->vcpu);
}

FIXTURE_TEARDOWN(gpc_pages)
{
	kvm_vm_free(self->vm);
}

static u64 pfn_of(void *addr)
{
	u64 entry;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	TEST_ASSERT(fd >= 0, "open(/proc/self/pagemap): errno %d", errno);
	TEST_ASSERT_EQ(pread(fd, &entry, sizeof(entry),
			     (unsigned long)addr / PAGE_SIZE * sizeof(entry)), sizeof(entry));
	close(fd);
	TEST_ASSERT(entry & PM_PRESENT, "The page is not there");
	return entry & PM_PFN;
}

/* The second page of an area that crosses GPA does not follow the first one. */
static bool is_scattered(struct kvm_vm *vm, u64 gpa)
{
	return pfn_of(addr_gpa2hva(vm, gpa - 1)) + 1 != pfn_of(addr_gpa2hva(vm, gpa));
}

static u8 *byte_at(struct kvm_vm *vm, u64 gpa)
{
	if (bare && gpa >= BARE_GPA && gpa < BARE_GPA + NR_BARE * PAGE_SIZE)
		return bare + (gpa - BARE_GPA);
	if (huge && gpa >= HUGE_GPA && gpa < HUGE_GPA + SZ_2M)
		return huge + (gpa - HUGE_GPA);

	return gpa < END_GPA ? addr_gpa2hva(vm, gpa) : NULL;
}

static void fill(struct kvm_vm *vm, u64 gpa, int len)
{
	u8 *byte;
	int i;

	for (i = -MARGIN; i < len + MARGIN; i++) {
		byte = byte_at(vm, gpa + i);
		if (byte)
			WRITE_ONCE(*byte, UNTOUCHED);
	}
}

static void put_le(u8 *where, u64 val, int size)
{
	while (size--) {
		*where++ = val;
		val >>= 8;
	}
}

/* The guest's ABI, in bytes. */
static void model_runstate(u8 *model, bool long_mode)
{
	const struct kvm_xen_vcpu_attr *d = &runstate_data;
	u8 *times = model + (long_mode ? 8 : 4);

	put_le(model, d->u.runstate.state, 4);
	put_le(times, d->u.runstate.state_entry_time, 8);
	put_le(times + 8, d->u.runstate.time_running, 8);
	put_le(times + 16, d->u.runstate.time_runnable, 8);
	put_le(times + 24, d->u.runstate.time_blocked, 8);
	put_le(times + 32, d->u.runstate.time_offline, 8);
}

static bool is_padding(int i, bool long_mode)
{
	return long_mode && i >= 4 && i < 8;
}

/* Bytes of the area at GPA, or around it, that are not what they should be. */
static int bad_bytes(struct kvm_vm *vm, u64 gpa, int len, const u8 *model, bool long_mode)
{
	int i, bad = 0;
	u8 *byte;

	for (i = -MARGIN; i < len + MARGIN; i++) {
		bool inside = i >= 0 && i < len;

		byte = byte_at(vm, gpa + i);
		if (!byte || (inside && is_padding(i, long_mode)))
			continue;
		if (READ_ONCE(*byte) != (inside ? model[i] : UNTOUCHED))
			bad++;
	}

	return bad;
}

static int set_runstate_addr(struct kvm_vcpu *vcpu, u64 gpa)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
		.u.gpa = gpa,
	};

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr) ? -errno : 0;
}

/*
 * The area at each offset before and after a boundary that it can cross, and
 * beyond.
 */
static int try_runstate_across(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u64 boundary,
			       bool long_mode)
{
	int len = long_mode ? LEN_64 : LEN_32;
	u8 model[LEN_64] = {};
	int before, bad = 0;

	xen_set_long_mode(vm, long_mode);
	model_runstate(model, long_mode);

	for (before = 0; before <= len + 1; before++) {
		u64 gpa = boundary - before;

		fill(vm, gpa, len);
		TEST_ASSERT_EQ(set_runstate_addr(vcpu, gpa), 0);
		bad += bad_bytes(vm, gpa, len, model, long_mode);
	}

	return bad;
}

TEST_F(gpc_pages, runstate_across_pages)
{
	int i, nr_scattered = 0;

	for (i = 1; i < NR_PAGES; i++) {
		u64 gpa = GPA + i * PAGE_SIZE;

		nr_scattered += is_scattered(self->vm, gpa);
		EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, gpa, true), 0);
		EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, gpa, false), 0);
	}
	EXPECT_LT(0, nr_scattered);
	TH_LOG("%d of %d areas were scattered", nr_scattered, NR_PAGES - 1);
}

TEST_F(gpc_pages, runstate_across_memslots)
{
	EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, GPA2, true), 0);
	EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, GPA2, false), 0);
}

/* What the file says, or 0 if there is none. */
static unsigned long read_number(const char *path, int base)
{
	char val[32] = {};
	int fd = open(path, O_RDONLY);

	if (fd < 0)
		return 0;

	TEST_ASSERT(read(fd, val, sizeof(val) - 1) > 0, "read(%s): errno %d", path, errno);
	close(fd);
	return strtoul(val, NULL, base);
}

/* Where only KUnit may write, too. */
static off_t bare_memory(void)
{
	return read_number("/sys/module/kvm/parameters/gpc_test_memory", 10);
}

static bool is_ram(off_t where)
{
	unsigned long start, end;
	char line[128];
	bool is = false;
	FILE *f;

	f = fopen("/proc/iomem", "r");
	TEST_ASSERT(f, "open(/proc/iomem): errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && strstr(line, "System RAM"))
			is |= where >= start && where <= end;
	}
	fclose(f);
	return is;
}

/*
 * The memory before that, if mem= ends within a section of memory: the kernel
 * has struct pages for all of the section, but has not mapped what is no RAM to
 * it.
 */
static off_t hole_memory(void)
{
	off_t where = bare_memory() - NR_BARE * PAGE_SIZE;

	return where < 0 || is_ram(where) ? 0 : where;
}

static void map_bare_page(int i, off_t where)
{
	static const int page[NR_BARE] = { 0, 1, 3, 2 };
	int fd;

	fd = open("/dev/mem", O_RDWR);
	TEST_ASSERT(fd >= 0, "open(/dev/mem): errno %d", errno);
	TEST_ASSERT(mmap(bare + i * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, where + page[i] * PAGE_SIZE) !=
		    MAP_FAILED, "mmap(/dev/mem): errno %d", errno);
	close(fd);
}

static bool add_bare_memory(struct kvm_vm *vm, off_t where)
{
	int i;

	if (!where)
		return false;

	bare = kvm_mmap(NR_BARE * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; i < NR_BARE; i++)
		map_bare_page(i, where);
	vm_set_user_memory_region(vm, BARE_SLOT, 0, BARE_GPA, NR_BARE * PAGE_SIZE, bare);
	return true;
}

/* Returns the number of errors. */
static int try_bare_memory(struct kvm_vm *vm, struct kvm_vcpu *vcpu)
{
	int i, errors = 0;

	for (i = 1; i < NR_BARE; i++) {
		u64 gpa = BARE_GPA + i * PAGE_SIZE;

		errors += try_runstate_across(vm, vcpu, gpa, true);
		errors += try_runstate_across(vm, vcpu, gpa, false);
	}

	return errors;
}

TEST_F(gpc_pages, runstate_in_hole)
{
	if (!add_bare_memory(self->vm, hole_memory()))
		SKIP(return, "The kernel was not told of any such memory");

	EXPECT_EQ(try_bare_memory(self->vm, self->vcpu), 0);
}

TEST_F(gpc_pages, runstate_without_struct_page)
{
	if (!add_bare_memory(self->vm, bare_memory()))
		SKIP(return, "The kernel was not told of any such memory");

	EXPECT_EQ(try_bare_memory(self->vm, self->vcpu), 0);

	/*
	 * Of an area that has struct pages for one half only, nothing is
	 * written.
	 */
	vm_set_user_memory_region(self->vm, BARE_SLOT, 0, BARE_GPA, 0, bare);
	vm_set_user_memory_region(self->vm, BARE_SLOT, 0, END_GPA, PAGE_SIZE, bare);
	*byte_at(self->vm, END_GPA - 1) = UNTOUCHED;
	*bare = UNTOUCHED;
	EXPECT_EQ(set_runstate_addr(self->vcpu, END_GPA - 1), -EFAULT);
	EXPECT_EQ(*byte_at(self->vm, END_GPA - 1), UNTOUCHED);
	EXPECT_EQ(*bare, UNTOUCHED);
}

/* Pages that follow one another in memory. */
TEST_F(gpc_pages, runstate_in_huge_page)
{
	u64 gpa = HUGE_GPA + PAGE_SIZE;

	if (!thp_configured())
		SKIP(return, "There are no huge pages");

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS_THP, HUGE_GPA, HUGE_SLOT,
				    SZ_2M / PAGE_SIZE, 0);
	huge = addr_gpa2hva(self->vm, HUGE_GPA);
	memset(huge, 0, SZ_2M);
	EXPECT_FALSE(is_scattered(self->vm, gpa));
	EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, gpa, true), 0);
	EXPECT_EQ(try_runstate_across(self->vm, self->vcpu, gpa, false), 0);
}

static void set_current(struct kvm_vcpu *vcpu, u64 state)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = state,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static u32 state_at(struct kvm_vm *vm, u64 gpa)
{
	u32 state = 0;
	int i;

	for (i = 0; i < 4; i++)
		state |= READ_ONCE(*byte_at(vm, gpa + i)) << (8 * i);
	return state;
}

static u64 u64_at(struct kvm_vm *vm, u64 gpa)
{
	u64 val = 0;
	int i;

	for (i = 0; i < 8; i++)
		val |= (u64)READ_ONCE(*byte_at(vm, gpa + i)) << (8 * i);
	return val;
}

/*
 * Of a 64-bit guest: the times add up to when the last state was entered.  They
 * do in runstate_data, and an update adds as much to one of them as to that.
 */
static bool times_add_up(struct kvm_vm *vm, u64 gpa)
{
	u64 sum = 0;
	int i;

	for (i = 16; i < LEN_64; i += 8)
		sum += u64_at(vm, gpa + i);
	return sum && sum == u64_at(vm, gpa + 8);
}

/* Where the area of a 32-bit guest fits, but that of a 64-bit one does not. */
TEST_F(gpc_pages, runstate_at_end_of_memslot)
{
	u64 gpa = END_GPA - LEN_32;
	u8 model[LEN_64] = {};

	EXPECT_EQ(set_runstate_addr(self->vcpu, gpa), -EFAULT);
	EXPECT_EQ(set_runstate_addr(self->vcpu, END_GPA - LEN_64), 0);

	xen_set_long_mode(self->vm, false);
	fill(self->vm, gpa, LEN_32);
	ASSERT_EQ(set_runstate_addr(self->vcpu, gpa), 0);
	model_runstate(model, false);
	EXPECT_EQ(bad_bytes(self->vm, gpa, LEN_32, model, false), 0);

	/* In 64-bit mode it does not fit, and KVM does not write it. */
	EXPECT_EQ(__xen_set_long_mode(self->vm, true), 0);
	EXPECT_EQ(xen_get_long_mode(self->vm), true);
	set_current(self->vcpu, RUNSTATE_running);
	EXPECT_EQ(bad_bytes(self->vm, gpa, LEN_32, model, false), 0);

	/* At another address it does. */
	EXPECT_EQ(set_runstate_addr(self->vcpu, END_GPA - LEN_64), 0);
	set_current(self->vcpu, RUNSTATE_blocked);
	EXPECT_EQ(state_at(self->vm, END_GPA - LEN_64), RUNSTATE_blocked);
}

/*
 * The guest changes to 64-bit mode, and only then does the area cross a
 * boundary.
 */
TEST_F(gpc_pages, runstate_grows)
{
	u64 gpa = GPA2 - LEN_32;

	xen_set_long_mode(self->vm, false);
	ASSERT_EQ(set_runstate_addr(self->vcpu, gpa), 0);
	xen_set_long_mode(self->vm, true);
	fill(self->vm, gpa, LEN_64);
	set_current(self->vcpu, RUNSTATE_running);
	EXPECT_EQ(state_at(self->vm, gpa), RUNSTATE_running);
	/*
	 * The top byte of the last time is 0: no vCPU spends 2^56 ns in a
	 * state.
	 */
	EXPECT_EQ(READ_ONCE(*byte_at(self->vm, gpa + LEN_64 - 1)), 0);
	EXPECT_EQ(READ_ONCE(*byte_at(self->vm, gpa + LEN_64)), UNTOUCHED);
}

/*
 * Either page of an area takes it away, and either one can be faulted in again.
 */
TEST_F(gpc_pages, pages_dropped)
{
	u64 gpa = GPA2 - 10;
	u32 state = RUNSTATE_running;
	int i;

	ASSERT_EQ(set_runstate_addr(self->vcpu, gpa), 0);
	for (i = 0; i < 4; i++) {
		u8 *page = byte_at(self->vm, i % 2 ? GPA2 : GPA2 - PAGE_SIZE);

		ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
		state = state == RUNSTATE_running ? RUNSTATE_blocked : RUNSTATE_running;
		set_current(self->vcpu, state);
		EXPECT_EQ(state_at(self->vm, gpa), state);
		EXPECT_TRUE(times_add_up(self->vm, gpa));
	}
}

static int set_block_state(int block, const char *state)
{
	char path[64];
	int fd, r;

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/state", block);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;

	r = write(fd, state, strlen(state)) < 0 ? -errno : 0;
	close(fd);
	return r;
}

static int block_node(int block)
{
	char path[64];
	int node;

	for (node = 0; node < 8; node++) {
		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%d/node%d", block,
			 node);
		if (!access(path, F_OK))
			return node;
	}

	return -1;
}

/*
 * The last block of memory that is unused, or only used for movable pages.
 * User's pages come from it first from now on.
 */
static int find_movable_block(unsigned long block_size)
{
	int block = sysconf(_SC_PHYS_PAGES) / (block_size / PAGE_SIZE) * 2;

	for (; block > 0; block--) {
		if (set_block_state(block, "offline"))
			continue;

		TEST_ASSERT_EQ(set_block_state(block, "online_movable"), 0);
		return block;
	}

	return 0;
}

/*
 * The memory that an area is in is taken away from the kernel, as if to be
 * unplugged.
 */
TEST_F(gpc_pages, memory_offline)
{
	unsigned long size = read_number("/sys/devices/system/memory/block_size_bytes", 16);
	u8 *page = byte_at(self->vm, GPA2);
	unsigned long nodes;
	int block, node;

	/* Users of the machine would not like it. */
	if (!bare_memory())
		SKIP(return, "The kernel was not booted for tests like this");

	block = size ? find_movable_block(size) : 0;
	if (!block)
		SKIP(return, "No memory can be taken offline");

	node = block_node(block);
	ASSERT_LE(0, node);
	nodes = BIT(node);
	ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
	ASSERT_EQ(syscall(__NR_mbind, page, PAGE_SIZE, MPOL_BIND, &nodes, 8 * sizeof(nodes), 0),
		  0);
	WRITE_ONCE(*page, UNTOUCHED);
	ASSERT_EQ(pfn_of(page) / (size / PAGE_SIZE), block);

	ASSERT_EQ(set_runstate_addr(self->vcpu, GPA2), 0);
	ASSERT_EQ(set_block_state(block, "offline"), 0);
	EXPECT_NE(pfn_of(page) / (size / PAGE_SIZE), block);

	set_current(self->vcpu, RUNSTATE_running);
	EXPECT_EQ(state_at(self->vm, GPA2), RUNSTATE_running);
	EXPECT_EQ(set_block_state(block, "online"), 0);
	set_current(self->vcpu, RUNSTATE_blocked);
	EXPECT_EQ(state_at(self->vm, GPA2), RUNSTATE_blocked);
}

/*
 * A block device, of which what is written back is seen in a file.  -1 if there
 * is none.
 */
static int open_loop(int file)
{
	struct loop_config config = { .fd = file, .info.lo_flags = LO_FLAGS_AUTOCLEAR };
	int control, nr, dev;
	char path[32];

	control = open("/dev/loop-control", O_RDWR);
	if (control < 0)
		return -1;

	nr = ioctl(control, LOOP_CTL_GET_FREE);
	TEST_ASSERT(nr >= 0, "LOOP_CTL_GET_FREE: %s", strerror(errno));
	close(control);
	snprintf(path, sizeof(path), "/dev/loop%d", nr);
	dev = open(path, O_RDWR);
	TEST_ASSERT(dev >= 0, "open(%s): %s", path, strerror(errno));
	TEST_ASSERT_EQ(ioctl(dev, LOOP_CONFIGURE, &config), 0);
	return dev;
}

static void *set_runstate_at_file(void *vcpu)
{
	return (void *)(long)set_runstate_addr(vcpu, FILE_GPA + PAGE_SIZE - MARGIN);
}

/*
 * While KVM waits for the second page of an area, the first one, which it has
 * found already, is written back.  What is written to that page later, is, too.
 */
TEST_F(gpc_pages, written_back_meanwhile)
{
	int file, dev, uffd;
	pthread_t thread;
	void *result;
	u8 *mem, byte;

	file = kvm_memfd_alloc(SZ_1M, false);
	dev = open_loop(file);
	if (dev < 0)
		SKIP(return, "There are no loop devices");

	mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	TEST_ASSERT(mmap(mem, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, dev, 0) !=
		    MAP_FAILED, "mmap(): %s", strerror(errno));
	vm_set_user_memory_region(self->vm, FILE_SLOT, 0, FILE_GPA, 2 * PAGE_SIZE, mem);
	uffd = uffd_page_take(mem + PAGE_SIZE);
	WRITE_ONCE(mem[0], 1);

	TEST_ASSERT_EQ(pthread_create(&thread, NULL, set_runstate_at_file, self->vcpu), 0);
	uffd_page_await(uffd, mem + PAGE_SIZE);
	TEST_ASSERT_EQ(fsync(dev), 0);
	TEST_ASSERT_EQ(pread(file, &byte, 1, 0), 1);
	EXPECT_EQ(byte, 1);

	uffd_page_bring(uffd, mem + PAGE_SIZE);
	pthread_join(thread, &result);
	EXPECT_EQ((long)result, 0);

	WRITE_ONCE(mem[0], 2);
	TEST_ASSERT_EQ(fsync(dev), 0);
	TEST_ASSERT_EQ(pread(file, &byte, 1, 0), 1);
	EXPECT_EQ(byte, 2)
		TH_LOG("The page is dirty, and its block device was not told");

	close(uffd);
	close(dev);
	close(file);
}

/*
 * The mappings of areas of all VMs, found by the function that has made them.
 * For memory that is no RAM, that function is not the cache's, but the physical
 * address is known.
 */
static int nr_mappings(void)
{
	unsigned long phys, middle = bare_memory(), span = NR_BARE * PAGE_SIZE;
	char line[256], *found;
	int nr = 0;
	FILE *f;

	f = fopen("/proc/vmallocinfo", "r");
	TEST_ASSERT(f, "open(/proc/vmallocinfo): errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		found = strstr(line, " phys=");
		phys = found ? strtoul(found + strlen(" phys="), NULL, 16) : 0;
		nr += strstr(line, " gpc_") ||
		      (middle && phys >= middle - span && phys < middle + span);
	}
	fclose(f);
	return nr;
}

/* A mapping may be left to a worker. */
static bool await_mappings(int nr)
{
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		if (nr_mappings() == nr)
			return true;
		sched_yield();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - begin.tv_sec < LIMIT_S);

	return false;
}

/* The first boundary from @start on between pages that are not in a row. */
static u64 find_scattered(struct kvm_vm *vm, u64 start)
{
	u64 gpa = start;

	while (!is_scattered(vm, gpa))
		gpa += PAGE_SIZE;
	return gpa;
}

static void unmap_page(struct kvm_vm *vm, u64 gpa)
{
	kvm_munmap(addr_gpa2hva(vm, gpa), PAGE_SIZE);
}

static void map_page(struct kvm_vm *vm, u64 gpa)
{
	u8 *page = addr_gpa2hva(vm, gpa);

	TEST_ASSERT(mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page,
		    "mmap(): errno %d", errno);
}

static void drop_page(struct kvm_vm *vm, u64 gpa)
{
	TEST_ASSERT_EQ(madvise(addr_gpa2hva(vm, gpa), PAGE_SIZE, MADV_DONTNEED), 0);
}

static void set_slot(struct kvm_vm *vm, bool present)
{
	vm_set_user_memory_region(vm, SLOT, 0, GPA, present ? NR_PAGES * PAGE_SIZE : 0,
				  addr_gpa2hva(vm, GPA));
}

static void delete_slot(struct kvm_vm *vm, u64 gpa)
{
	set_slot(vm, false);
}

static void create_slot(struct kvm_vm *vm, u64 gpa)
{
	set_slot(vm, true);
}

static void nothing(struct kvm_vm *vm, u64 gpa)
{
}

/* Either page takes the mapping along; the area works again when it is back. */
static void try_to_take(struct __test_metadata *_metadata, struct kvm_vm *vm,
			struct kvm_vcpu *vcpu, void (*take)(struct kvm_vm *vm, u64 gpa),
			void (*give)(struct kvm_vm *vm, u64 gpa))
{
	u64 gpa = find_scattered(vm, GPA + PAGE_SIZE);
	int before = nr_mappings(), i;

	for (i = 0; i < 2; i++) {
		touch_scattered(addr_gpa2hva(vm, GPA));
		gpa = find_scattered(vm, GPA + PAGE_SIZE);
		ASSERT_EQ(set_runstate_addr(vcpu, gpa - 10), 0);
		ASSERT_EQ(nr_mappings(), before + 1);

		take(vm, i ? gpa : gpa - PAGE_SIZE);
		ASSERT_TRUE(await_mappings(before))
			TH_LOG("Page %d is gone, and KVM has it mapped", i);

		give(vm, i ? gpa : gpa - PAGE_SIZE);
		set_current(vcpu, i ? RUNSTATE_running : RUNSTATE_blocked);
		EXPECT_EQ(state_at(vm, gpa - 10), i ? RUNSTATE_running : RUNSTATE_blocked);
		EXPECT_TRUE(await_mappings(before + is_scattered(vm, gpa)));
		ASSERT_EQ(set_runstate_addr(vcpu, KVM_XEN_INVALID_GPA), 0);
		EXPECT_TRUE(await_mappings(before));
	}
}

TEST_F(gpc_pages, not_mapped_after_munmap)
{
	try_to_take(_metadata, self->vm, self->vcpu, unmap_page, map_page);
}

TEST_F(gpc_pages, not_mapped_after_drop)
{
	try_to_take(_metadata, self->vm, self->vcpu, drop_page, nothing);
}

TEST_F(gpc_pages, not_mapped_without_memslot)
{
	try_to_take(_metadata, self->vm, self->vcpu, delete_slot, create_slot);
}

/* Pages in a row, and pages that are not. */
static void try_to_take_bare(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			     off_t where)
{
	int before = nr_mappings(), i;

	for (i = 1; i < NR_BARE; i++) {
		u64 gpa = BARE_GPA + i * PAGE_SIZE - 10;

		ASSERT_EQ(set_runstate_addr(vcpu, gpa), 0);
		ASSERT_EQ(nr_mappings(), before + 1);
		kvm_munmap(bare + i * PAGE_SIZE, PAGE_SIZE);
		ASSERT_TRUE(await_mappings(before))
			TH_LOG("Page %d is gone, and KVM has it mapped", i);

		map_bare_page(i, where);
		set_current(vcpu, RUNSTATE_running);
		EXPECT_EQ(state_at(vcpu->vm, gpa), RUNSTATE_running);
		EXPECT_EQ(nr_mappings(), before + 1);

		vm_set_user_memory_region(vcpu->vm, BARE_SLOT, 0, BARE_GPA, 0, bare);
		EXPECT_TRUE(await_mappings(before))
			TH_LOG("The memslot is gone, and KVM has it mapped");
		vm_set_user_memory_region(vcpu->vm, BARE_SLOT, 0, BARE_GPA, NR_BARE * PAGE_SIZE,
					  bare);
		ASSERT_EQ(set_runstate_addr(vcpu, KVM_XEN_INVALID_GPA), 0);
	}
}

TEST_F(gpc_pages, not_mapped_after_munmap_of_hole)
{
	if (!add_bare_memory(self->vm, hole_memory()))
		SKIP(return, "The kernel was not told of any such memory");

	try_to_take_bare(_metadata, self->vcpu, hole_memory());
}

TEST_F(gpc_pages, not_mapped_after_munmap_without_struct_page)
{
	if (!add_bare_memory(self->vm, bare_memory()))
		SKIP(return, "The kernel was not told of any such memory");

	try_to_take_bare(_metadata, self->vcpu, bare_memory());
}

struct storm {
	struct kvm_vm *vm;
	u64 gpa[2];
	/* Counts up to STORM_ROUNDS, while KVM refreshes the areas. */
	int round;
};

/* Once a round only, as KVM has to begin anew each time. */
static void *storm(void *arg)
{
	struct storm *s = arg;
	int round = 0;

	while (round < STORM_ROUNDS) {
		if (READ_ONCE(s->round) == round) {
			sched_yield();
			continue;
		}
		round = READ_ONCE(s->round);
		drop_page(s->vm, s->gpa[0]);
		drop_page(s->vm, s->gpa[1]);
	}
	return NULL;
}

static void set_clock(struct kvm_vm *vm, u64 ns)
{
	struct kvm_clock_data clock = { .clock = ns };

	vm_ioctl(vm, KVM_SET_CLOCK, &clock);
}

/* Two areas of which a page is dropped over and over. */
TEST_F_TIMEOUT(gpc_pages, mapped_in_storm, 300)
{
	int before = nr_mappings(), most = 0, in_use, i;
	struct storm s = { .vm = self->vm };
	pthread_t thread;

	s.gpa[0] = find_scattered(self->vm, GPA + PAGE_SIZE);
	s.gpa[1] = find_scattered(self->vm, GPA2 + PAGE_SIZE);
	ASSERT_EQ(set_runstate_addr(self->vcpu, s.gpa[0] - 10), 0);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, s.gpa[1] - 10);
	vcpu_run(self->vcpu);
	ASSERT_EQ(nr_mappings(), before + 2);

	TEST_ASSERT_EQ(pthread_create(&thread, NULL, storm, &s), 0);
	for (i = 1; i <= STORM_ROUNDS; i++) {
		WRITE_ONCE(s.round, i);
		set_current(self->vcpu, i % 2 ? RUNSTATE_blocked : RUNSTATE_running);
		set_clock(self->vm, i * 1000000000ULL);
		vcpu_run(self->vcpu);
		most = max(most, nr_mappings() - before);
	}
	pthread_join(thread, NULL);
	TH_LOG("%d at most, in %d rounds", most, STORM_ROUNDS);
	EXPECT_LE(most, 4);

	set_current(self->vcpu, RUNSTATE_runnable);
	set_clock(self->vm, i * 1000000000ULL);
	vcpu_run(self->vcpu);
	EXPECT_EQ(state_at(self->vm, s.gpa[0] - 10), RUNSTATE_running);
	in_use = is_scattered(self->vm, s.gpa[0]) + is_scattered(self->vm, s.gpa[1]);
	EXPECT_TRUE(await_mappings(before + in_use))
		TH_LOG("%d, of which %d are in use", nr_mappings() - before, in_use);
}

/* A VMM that exits while another process has the VM's file open. */
static void vmm_with_holder(int ready, int go)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu);
	pid_t holder;
	char byte;

	holder = fork();
	if (!holder) {
		/* Should the test be killed. */
		alarm(60);
		for (;;)
			pause();
	}
	/* fork() unmaps all areas, and the next write goes to other pages. */
	touch_scattered(addr_gpa2hva(vm, GPA));
	TEST_ASSERT_EQ(set_runstate_addr(vcpu, find_scattered(vm, GPA + PAGE_SIZE) - 10), 0);
	TEST_ASSERT_EQ(write(ready, &holder, sizeof(holder)), sizeof(holder));
	TEST_ASSERT_EQ(read(go, &byte, 1), 1);
	_exit(0);
}

TEST(not_mapped_after_exit)
{
	int before = nr_mappings(), ready[2], go[2];
	pid_t vmm, holder;

	TEST_ASSERT_EQ(pipe(ready), 0);
	TEST_ASSERT_EQ(pipe(go), 0);
	vmm = fork();
	if (!vmm)
		vmm_with_holder(ready[1], go[0]);
	close(ready[1]);
	ASSERT_EQ(read(ready[0], &holder, sizeof(holder)), (ssize_t)sizeof(holder));
	EXPECT_EQ(nr_mappings(), before + 1);

	TEST_ASSERT_EQ(write(go[1], "x", 1), 1);
	TEST_ASSERT_EQ(waitpid(vmm, NULL, 0), vmm);
	EXPECT_TRUE(await_mappings(before))
		TH_LOG("The memory is gone, and KVM has it mapped");
	EXPECT_EQ(kill(holder, SIGKILL), 0);
}

TEST(not_mapped_after_destruction)
{
	int before = nr_mappings();
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm = create_vm(&vcpu);

	ASSERT_EQ(set_runstate_addr(vcpu, find_scattered(vm, GPA + PAGE_SIZE) - 10), 0);
	EXPECT_EQ(nr_mappings(), before + 1);
	kvm_vm_free(vm);
	EXPECT_TRUE(await_mappings(before));
}

TEST_F(gpc_pages, dirty_log)
{
	u64 gpa = GPA2 - 10;
	u64 bitmap[2];

	ASSERT_EQ(set_runstate_addr(self->vcpu, gpa), 0);
	vm_mem_region_set_flags(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	vm_mem_region_set_flags(self->vm, SLOT2, KVM_MEM_LOG_DIRTY_PAGES);
	set_current(self->vcpu, RUNSTATE_running);
	kvm_vm_get_dirty_log(self->vm, SLOT, &bitmap[0]);
	kvm_vm_get_dirty_log(self->vm, SLOT2, &bitmap[1]);
	EXPECT_EQ(bitmap[0], BIT_ULL(NR_PAGES - 1));
	EXPECT_EQ(bitmap[1], BIT_ULL(0));
}

TEST_F(gpc_pages, time_info_across_pages)
{
	struct pvclock_vcpu_time_info time;
	u8 *bytes = (u8 *)&time;
	int before, i;

	for (before = 0; before <= (int)sizeof(time); before++) {
		u64 gpa = GPA2 - before;

		fill(self->vm, gpa, sizeof(time));
		xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa);
		vcpu_run(self->vcpu);
		for (i = 0; i < (int)sizeof(time); i++)
			bytes[i] = READ_ONCE(*byte_at(self->vm, gpa + i));

		ASSERT_EQ(time.version % 2, 0);
		ASSERT_NE(time.tsc_to_system_mul, 0);
		ASSERT_LT(time.system_time, NSEC_PER_SEC * 3600);
		ASSERT_EQ(READ_ONCE(*byte_at(self->vm, gpa - 1)), UNTOUCHED);
		ASSERT_EQ(READ_ONCE(*byte_at(self->vm, gpa + sizeof(time))), UNTOUCHED);
	}
}

/* Each allocation fails in turn. */

/*
 * Another page, and not the one that follows the one before: what is mapped
 * already, and what is in the direct map, takes no allocation.
 */
static void replace_page(struct kvm_vm *vm, u64 gpa)
{
	void *page;

	do {
		page = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		WRITE_ONCE(*(char *)page, 0);
		TEST_ASSERT_EQ(mremap(page, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
				      addr_gpa2hva(vm, gpa)), addr_gpa2hva(vm, gpa));
	} while (!is_scattered(vm, gpa));
}

/*
 * The old area has to be usable after each failure.  Return how many
 * allocations the new area needs.
 */
static int fail_activation(struct __test_metadata *_metadata, struct kvm_vm *vm,
			   struct kvm_vcpu *vcpu, u64 new, bool fault_in)
{
	u64 old = GPA + 2 * PAGE_SIZE - 10;
	u32 state = RUNSTATE_running;
	int fd, nth, ret, errors = 0;
	bool failed = true;

	for (nth = 1; failed; nth++) {
		ASSERT_EQ(set_runstate_addr(vcpu, old), 0);
		touch_scattered(addr_gpa2hva(vm, GPA));
		if (fault_in)
			ASSERT_EQ(madvise(byte_at(vm, new + 10), PAGE_SIZE, MADV_DONTNEED), 0);
		set_current(vcpu, state);

		fd = fail_nth_begin(nth);
		ret = set_runstate_addr(vcpu, new);
		failed = fail_nth_end(fd);
		ASSERT_LT(nth, 1000);
		if (!ret)
			continue;

		ASSERT_TRUE(failed);
		ASSERT_EQ(ret, -EFAULT);
		errors++;
		state = state == RUNSTATE_running ? RUNSTATE_blocked : RUNSTATE_running;
		set_current(vcpu, state);
		ASSERT_EQ(state_at(vm, old), state);
	}
	TH_LOG("%d of %d allocations are needed by activation", errors, nth - 2);

	return errors;
}

/* The area, and what maps pages that follow one another, and others. */
TEST_F(gpc_pages, allocations_without_struct_page_fail)
{
	int i;

	if (!fail_nth_enable())
		SKIP(return, "The kernel has no fault injection");
	if (!add_bare_memory(self->vm, bare_memory()))
		SKIP(return, "The kernel was not told of any such memory");

	for (i = 1; i < NR_BARE; i++)
		EXPECT_LE(2, fail_activation(_metadata, self->vm, self->vcpu,
					     BARE_GPA + i * PAGE_SIZE - 10, false));
}

TEST_F(gpc_pages, allocations_fail)
{
	u64 new = GPA + 5 * PAGE_SIZE - 10;
	u32 state = RUNSTATE_running;
	int fd, nth, errors;
	bool failed;

	if (!fail_nth_enable())
		SKIP(return, "The kernel has no fault injection");

	/* The area, what maps it, and a page that has to be faulted in. */
	EXPECT_LE(3, fail_activation(_metadata, self->vm, self->vcpu, new, true));

	/* A refresh that fails is made up for by the next one. */
	errors = 0;
	failed = true;
	for (nth = 1; failed; nth++) {
		set_current(self->vcpu, state);
		replace_page(self->vm, new + 10);
		state = state == RUNSTATE_running ? RUNSTATE_blocked : RUNSTATE_running;

		fd = fail_nth_begin(nth);
		set_current(self->vcpu, state);
		failed = fail_nth_end(fd);
		ASSERT_LT(nth, 1000);
		errors += state_at(self->vm, new) != state;

		set_current(self->vcpu, state);
		ASSERT_EQ(state_at(self->vm, new), state);
	}
	TH_LOG("%d of %d allocations are needed by a refresh", errors, nth - 2);
	EXPECT_LT(0, errors);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);

	return test_harness_run(argc, argv);
}
