// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's mode, 32-bit or 64-bit, changes while areas of another vCPU
 * cannot be mapped.
 *
 * A guest's write of the hypercall page's MSR sets the mode of the whole VM.  A
 * kernel does that when it takes over from firmware or from another kernel,
 * whose areas may be left behind in memory that was unplugged, or in pages that
 * are missing.  The write must succeed whatever state the areas of other vCPUs
 * are in, and not wait for them.  KVM must write an area in its new layout once
 * its memory is back.
 *
 * The same is true for KVM_XEN_ATTR_TYPE_LONG_MODE.
 *
 * Both fail if shared_info cannot be mapped, where the wall clock has another
 * place.
 */
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "test_task.h"
#include "uffd_page.h"
#include "xen.h"

/* Memory that is always there... */
#define HCALL_PAGE_GPA	0xc0001000ULL
#define CODE_GPA	(HCALL_PAGE_GPA + PAGE_SIZE)
#define CODE_SLOT	10

/* ... and a page for each area, in a memslot of its own. */
#define SHINFO_GPA	0xc1000000ULL
#define SHINFO_SLOT	11
#define AREA_GPA	0xc2000000ULL
#define AREA_SLOT	12

#define PORT		66
#define LEN_32		44
#define LEN_64		48
#define UNTOUCHED	0xaa
#define CLOCK_NS	1000000000000ULL

/* The state of an area when the mode changes. */
enum state {
	MAPPED,
	UNMAPPED,
	NO_ACCESS,
	MISSING,
	UNBACKED,
	READ_ONLY,
	NR_STATES,
};

static const char * const state_names[NR_STATES] = {
	[MAPPED]	= "mapped",
	[UNMAPPED]	= "munmap()ed",
	[NO_ACCESS]	= "PROT_NONE",
	[MISSING]	= "missing, by userfaultfd",
	[UNBACKED]	= "without a memslot",
	[READ_ONLY]	= "in a read-only memslot",
};

static void guest_hypercall_page(void)
{
	for (;;)
		GUEST_SYNC(wrmsr_safe(XEN_HYPERCALL_MSR, HCALL_PAGE_GPA));
}

/*
 * The same in protected mode without paging.  The vCPU exits to userspace with
 * the vector of the exception, or 0.
 */
static const u8 code32[] = {
	0xb9, 0x00, 0x00, 0x00, 0x40,	/* mov $XEN_HYPERCALL_MSR, %ecx */
	0xb8, 0x00, 0x10, 0x00, 0xc0,	/* mov $HCALL_PAGE_GPA, %eax */
	0x31, 0xd2,			/* xor %edx, %edx */
	0x0f, 0x30,			/* wrmsr */
	0xb0, 0x00,			/* mov $0, %al */
	0xe6, 0xe9,			/* out %al, $0xe9 */
};

static const u8 gp_handler32[] = {
	0xb0, GP_VECTOR,		/* mov $GP_VECTOR, %al */
	0xe6, 0xe9,			/* out %al, $0xe9 */
};

static const u64 gdt32[] = {
	0,
	0x00cf9b000000ffff,		/* code */
	0x00cf93000000ffff,		/* data */
};

/* The rest of the page of code32, with the stack at its end. */
#define HANDLER_GPA	(CODE_GPA + 0x100)
#define GDT_GPA		(CODE_GPA + 0x200)
#define IDT_GPA		(CODE_GPA + 0x300)

struct mode_vm {
	struct kvm_vm *vm;
	/* One writes the MSR... */
	struct kvm_vcpu *vcpu64, *vcpu32;
	/* ... and this one has the areas. */
	struct kvm_vcpu *other;
	/* Each is followed by a page that the guest does not have. */
	u8 *shinfo, *area;
	u8 *hcall_page;
	int uffd;
	/* The new mode, and how it is set. */
	bool to_long_mode;
	bool by_ioctl;
};

FIXTURE(xen_mode) {
	struct mode_vm mv;
};

FIXTURE_VARIANT(xen_mode) {
	bool to_long_mode;
	bool by_ioctl;
};

FIXTURE_VARIANT_ADD(xen_mode, msr_to_64) { .to_long_mode = true };
FIXTURE_VARIANT_ADD(xen_mode, msr_to_32) { .to_long_mode = false };
FIXTURE_VARIANT_ADD(xen_mode, ioctl_to_64) { .to_long_mode = true, .by_ioctl = true };
FIXTURE_VARIANT_ADD(xen_mode, ioctl_to_32) { .to_long_mode = false, .by_ioctl = true };

static struct kvm_segment segment32(int index)
{
	return (struct kvm_segment) {
		.limit = 0xffffffff,
		.selector = index * 8,
		.type = gdt32[index] >> 40 & 0xf,
		.present = 1,
		.db = 1,
		.s = 1,
		.g = 1,
	};
}

/* Start over. */
static void start_vcpu32(struct kvm_vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = CODE_GPA, .rsp = CODE_GPA + PAGE_SIZE, .rflags = 2 };

	vcpu_regs_set(vcpu, &regs);
}

static struct kvm_vcpu *add_vcpu32(struct kvm_vm *vm)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_vcpu *vcpu = __vm_vcpu_add(vm, 2);
	u64 *idt = addr_gpa2hva(vm, IDT_GPA);
	struct kvm_sregs sregs;

	memcpy(addr_gpa2hva(vm, CODE_GPA), code32, sizeof(code32));
	memcpy(addr_gpa2hva(vm, HANDLER_GPA), gp_handler32, sizeof(gp_handler32));
	memcpy(addr_gpa2hva(vm, GDT_GPA), gdt32, sizeof(gdt32));
	/* An interrupt gate. */
	idt[GP_VECTOR] = (HANDLER_GPA & 0xffff) | 8 << 16 | 0x8eULL << 40 |
			 (HANDLER_GPA >> 16) << 48;

	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());
	vcpu_sregs_get(vcpu, &sregs);
	sregs.cs = segment32(1);
	sregs.ds = segment32(2);
	sregs.es = sregs.ds;
	sregs.ss = sregs.ds;
	sregs.gdt.base = GDT_GPA;
	sregs.gdt.limit = sizeof(gdt32) - 1;
	sregs.idt.base = IDT_GPA;
	sregs.idt.limit = (GP_VECTOR + 1) * 8 - 1;
	sregs.cr0 = X86_CR0_PE | X86_CR0_ET | X86_CR0_NE;
	vcpu_sregs_set(vcpu, &sregs);
	vcpu_mp_state_set(vcpu, &state);
	return vcpu;
}

static void set_slot(struct kvm_vm *vm, u32 slot, void *page, bool present, u32 flags)
{
	vm_set_user_memory_region(vm, slot, flags, slot == AREA_SLOT ? AREA_GPA : SHINFO_GPA,
				  present ? PAGE_SIZE : 0, page);
}

FIXTURE_SETUP(xen_mode)
{
	struct mode_vm *mv = &self->mv;

	mv->to_long_mode = variant->to_long_mode;
	mv->by_ioctl = variant->by_ioctl;
	mv->vm = vm_create_with_one_vcpu(&mv->vcpu64, guest_hypercall_page);
	mv->other = vm_vcpu_add(mv->vm, 1, xen_guest_idle);
	vm_userspace_mem_region_add(mv->vm, VM_MEM_SRC_ANONYMOUS, HCALL_PAGE_GPA, CODE_SLOT,
				    2, 0);
	mv->hcall_page = addr_gpa2hva(mv->vm, HCALL_PAGE_GPA);
	mv->vcpu32 = add_vcpu32(mv->vm);

	mv->shinfo = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1);
	mv->area = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1);
	set_slot(mv->vm, SHINFO_SLOT, mv->shinfo, true, 0);
	set_slot(mv->vm, AREA_SLOT, mv->area, true, 0);
	mv->uffd = -1;

	xen_enable(mv->vm);
	xen_set_long_mode(mv->vm, !mv->to_long_mode);
	xen_set_shared_info(mv->vm, SHINFO_GPA);
}

FIXTURE_TEARDOWN(xen_mode)
{
	struct mode_vm *mv = &self->mv;

	kvm_vm_free(mv->vm);
	kvm_munmap(mv->area, 2 * PAGE_SIZE);
	kvm_munmap(mv->shinfo, 2 * PAGE_SIZE);
}

/* Return the userfaultfd, if the state takes one. */
static int take_away(struct kvm_vm *vm, u32 slot, void *page, enum state state)
{
	switch (state) {
	case UNMAPPED:
		kvm_munmap(page, PAGE_SIZE);
		break;
	case NO_ACCESS:
		TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_NONE), 0);
		break;
	case MISSING:
		return uffd_page_take(page);
	case UNBACKED:
		set_slot(vm, slot, page, false, 0);
		break;
	case READ_ONLY:
		set_slot(vm, slot, page, false, 0);
		set_slot(vm, slot, page, true, KVM_MEM_READONLY);
		break;
	default:
		break;
	}

	return -1;
}

static void give_back(struct kvm_vm *vm, u32 slot, void *page, enum state state, int uffd)
{
	switch (state) {
	case UNMAPPED:
		TEST_ASSERT(mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page,
			    "mmap(): %s", strerror(errno));
		break;
	case NO_ACCESS:
		TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
		break;
	case MISSING:
		uffd_page_bring(uffd, page);
		close(uffd);
		break;
	case READ_ONLY:
		set_slot(vm, slot, page, false, 0);
		fallthrough;
	case UNBACKED:
		set_slot(vm, slot, page, true, 0);
		break;
	default:
		break;
	}
}

/* EFAULT also stands for a #GP in the guest. */

static long change_by_ioctl(void *arg)
{
	struct mode_vm *mv = arg;

	return __xen_set_long_mode(mv->vm, !xen_get_long_mode(mv->vm));
}

static long vector_to_error(u64 vector)
{
	if (!vector)
		return 0;

	TEST_ASSERT_EQ(vector, GP_VECTOR);
	errno = EFAULT;
	return -1;
}

static long change_by_vcpu64(void *arg)
{
	struct mode_vm *mv = arg;
	struct ucall uc;

	vcpu_run(mv->vcpu64);
	TEST_ASSERT_EQ(get_ucall(mv->vcpu64, &uc), UCALL_SYNC);
	return vector_to_error(uc.args[1]);
}

static long change_by_vcpu32(void *arg)
{
	struct mode_vm *mv = arg;
	struct kvm_run *run = mv->vcpu32->run;

	start_vcpu32(mv->vcpu32);
	vcpu_run(mv->vcpu32);
	TEST_ASSERT_KVM_EXIT_REASON(mv->vcpu32, KVM_EXIT_IO);
	return vector_to_error(*((u8 *)run + run->io.data_offset));
}

static void start_change(struct mode_vm *mv, struct test_task *task)
{
	if (mv->by_ioctl)
		test_task_start(task, change_by_ioctl, mv);
	else if (mv->to_long_mode)
		test_task_start(task, change_by_vcpu64, mv);
	else
		test_task_start(task, change_by_vcpu32, mv);
}

/* Return whether the mode has changed. */
static bool change_mode(struct __test_metadata *_metadata, struct mode_vm *mv,
			enum state state)
{
	struct test_task task;
	bool in_time;

	memset(mv->hcall_page, 0, PAGE_SIZE);
	start_change(mv, &task);
	in_time = test_task_join_in_time(&task);
	EXPECT_TRUE(in_time)
		TH_LOG("Waits for an area of another vCPU: %s", state_names[state]);
	give_back(mv->vm, AREA_SLOT, mv->area, state, mv->uffd);
	if (!in_time)
		test_task_join(&task);

	EXPECT_EQ(task.ret, 0)
		TH_LOG("Fails for an area of another vCPU: %s", state_names[state]);
	if (!mv->by_ioctl)
		EXPECT_EQ(mv->hcall_page[0], task.ret ? 0 : 0xb8);
	EXPECT_EQ(xen_get_long_mode(mv->vm), !task.ret == mv->to_long_mode);
	return !task.ret;
}

static void set_area(struct kvm_vcpu *vcpu, u16 type, u64 gpa)
{
	xen_set_vcpu_area(vcpu, type, gpa);
	/* Have it mapped. */
	vcpu_run(vcpu);
}

static void put_le(u8 *where, u64 val, int size)
{
	while (size--) {
		*where++ = val;
		val >>= 8;
	}
}

/* Have KVM write known times, without what has passed since. */
static void write_runstate(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr data = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA,
		.u.runstate = {
			.state = RUNSTATE_blocked,
			.state_entry_time = 0x11 + 0x2200 + 0x330000 + 0x44,
			.time_running = 0x11,
			.time_runnable = 0x2200,
			.time_blocked = 0x330000,
			.time_offline = 0x44,
		},
	}, adjust = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST,
		.u.runstate.state = -1,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &data);
	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &adjust);
}

/* The number of bytes that are wrong, or behind the area and not untouched. */
static int bad_bytes_of_runstate(const u8 *area, bool long_mode)
{
	u8 model[LEN_64], *times = model + (long_mode ? 8 : 4);
	int i, bad = 0;

	memset(model, UNTOUCHED, sizeof(model));
	put_le(model, RUNSTATE_blocked, 4);
	put_le(times, 0x11 + 0x2200 + 0x330000 + 0x44, 8);
	put_le(times + 8, 0x11, 8);
	put_le(times + 16, 0x2200, 8);
	put_le(times + 24, 0x330000, 8);
	put_le(times + 32, 0x44, 8);

	/* The longer one has padding. */
	for (i = 0; i < LEN_64; i++)
		bad += area[i] != model[i] && (!long_mode || i < 4 || i >= 8);
	return bad;
}

static int bytes_touched(const u8 *where, int len)
{
	int i, nr = 0;

	for (i = 0; i < len; i++)
		nr += where[i] != UNTOUCHED;
	return nr;
}

static void set_clock(struct kvm_vm *vm)
{
	struct kvm_clock_data clock = { .clock = CLOCK_NS };

	vm_ioctl(vm, KVM_SET_CLOCK, &clock);
}

static void expect_time(struct __test_metadata *_metadata,
			const struct pvclock_vcpu_time_info *time)
{
	EXPECT_NE(time->version, 0);
	EXPECT_EQ(time->version % 2, 0);
	EXPECT_GE(time->system_time, CLOCK_NS);
}

static void expect_event(struct __test_metadata *_metadata, u8 *shinfo, u8 *area,
			 bool long_mode)
{
	struct xen_vcpu_info32 *vi32 = (void *)area;
	struct xen_vcpu_info *vi = (void *)area;

	EXPECT_TRUE(xen_is_pending((void *)shinfo, PORT));
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
	EXPECT_EQ(long_mode ? vi->evtchn_pending_sel : vi32->evtchn_pending_sel,
		  BIT_ULL(PORT / (long_mode ? 64 : 32)));
}

/* The next state is tried from the same mode. */
static void change_back(struct mode_vm *mv)
{
	xen_set_long_mode(mv->vm, !mv->to_long_mode);
}

TEST_F(xen_mode, runstate)
{
	struct mode_vm *mv = &self->mv;
	enum state state;

	for (state = 0; state < NR_STATES; state++, change_back(mv)) {
		set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA);
		mv->uffd = take_away(mv->vm, AREA_SLOT, mv->area, state);
		if (!change_mode(_metadata, mv, state))
			continue;

		memset(mv->area, UNTOUCHED, LEN_64);
		write_runstate(mv->other);
		EXPECT_EQ(bad_bytes_of_runstate(mv->area, mv->to_long_mode), 0);
		xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
				  KVM_XEN_INVALID_GPA);
	}
}

TEST_F(xen_mode, vcpu_info)
{
	struct mode_vm *mv = &self->mv;
	struct xen_vcpu_info *vi = (void *)mv->area;
	enum state state;

	for (state = 0; state < NR_STATES; state++, change_back(mv)) {
		set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, AREA_GPA);
		mv->uffd = take_away(mv->vm, AREA_SLOT, mv->area, state);
		if (!change_mode(_metadata, mv, state))
			continue;

		memset(mv->shinfo, 0, PAGE_SIZE);
		memset(mv->area, 0, sizeof(*vi));
		xen_evtchn_send(mv->other, PORT);
		set_clock(mv->vm);
		vcpu_run(mv->other);
		vcpu_run(mv->other);
		expect_event(_metadata, mv->shinfo, mv->area, mv->to_long_mode);
		expect_time(_metadata, &vi->time);
		xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
				  KVM_XEN_INVALID_GPA);
	}
}

TEST_F(xen_mode, vcpu_info_by_hva)
{
	struct mode_vm *mv = &self->mv;
	struct xen_vcpu_info *vi = (void *)mv->area;
	enum state state;

	/* Such an area does not depend on memslots. */
	for (state = 0; state < UNBACKED; state++, change_back(mv)) {
		set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA,
			 (unsigned long)mv->area);
		mv->uffd = take_away(mv->vm, AREA_SLOT, mv->area, state);
		if (!change_mode(_metadata, mv, state))
			continue;

		memset(mv->shinfo, 0, PAGE_SIZE);
		memset(mv->area, 0, sizeof(*vi));
		xen_evtchn_send(mv->other, PORT);
		vcpu_run(mv->other);
		vcpu_run(mv->other);
		expect_event(_metadata, mv->shinfo, mv->area, mv->to_long_mode);
		xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, 0);
	}
}

TEST_F(xen_mode, time_info)
{
	struct mode_vm *mv = &self->mv;
	struct pvclock_vcpu_time_info *time = (void *)mv->area;
	enum state state;

	for (state = 0; state < NR_STATES; state++, change_back(mv)) {
		set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, AREA_GPA);
		mv->uffd = take_away(mv->vm, AREA_SLOT, mv->area, state);
		if (!change_mode(_metadata, mv, state))
			continue;

		memset(time, 0, sizeof(*time));
		set_clock(mv->vm);
		vcpu_run(mv->other);
		expect_time(_metadata, time);
		xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
				  KVM_XEN_INVALID_GPA);
	}
}

/* A runstate that just fits before the end of the last memslot. */
TEST_F(xen_mode, runstate_at_end_of_memslot)
{
	struct mode_vm *mv = &self->mv;
	int len = mv->to_long_mode ? LEN_32 : LEN_64;
	struct kvm_xen_vcpu_attr data = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA };
	u8 *area = mv->area + PAGE_SIZE - len, *beyond = mv->area + PAGE_SIZE;

	set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA + PAGE_SIZE - len);
	if (!change_mode(_metadata, mv, MAPPED))
		return;

	memset(area, UNTOUCHED, len);
	memset(beyond, UNTOUCHED, PAGE_SIZE);
	write_runstate(mv->other);

	/* In 64-bit mode it does not fit, and KVM does not write it. */
	EXPECT_EQ(mv->to_long_mode ? bytes_touched(area, len) :
					  bad_bytes_of_runstate(area, false), 0);
	vcpu_run(mv->other);
	EXPECT_EQ(bytes_touched(beyond, PAGE_SIZE), 0);
	vcpu_ioctl(mv->other, KVM_XEN_VCPU_GET_ATTR, &data);
	EXPECT_EQ(data.u.runstate.time_offline, 0x44);

	/* KVM writes it again at another address, and in the old mode. */
	memset(mv->area, UNTOUCHED, LEN_64);
	xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA);
	write_runstate(mv->other);
	EXPECT_EQ(bad_bytes_of_runstate(mv->area, mv->to_long_mode), 0);
	xen_set_long_mode(mv->vm, !mv->to_long_mode);
	memset(mv->area, UNTOUCHED, LEN_64);
	write_runstate(mv->other);
	EXPECT_EQ(bad_bytes_of_runstate(mv->area, !mv->to_long_mode), 0);
}

/* The mode does not change, and areas are still written in it. */
TEST_F(xen_mode, shared_info)
{
	struct mode_vm *mv = &self->mv;
	static const enum state states[] = { UNMAPPED, NO_ACCESS, UNBACKED, READ_ONLY };
	struct test_task task;
	int i;

	set_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, AREA_GPA);
	xen_set_vcpu_area(mv->other, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA + 64);
	for (i = 0; i < ARRAY_SIZE(states); i++) {
		take_away(mv->vm, SHINFO_SLOT, mv->shinfo, states[i]);
		start_change(mv, &task);
		ASSERT_TRUE(test_task_join_in_time(&task));
		EXPECT_EQ(task.ret, -1)
			TH_LOG("The mode has changed with a shared_info that is %s",
			       state_names[states[i]]);
		EXPECT_EQ(task.err, EFAULT);
		EXPECT_EQ(xen_get_long_mode(mv->vm), !mv->to_long_mode);

		give_back(mv->vm, SHINFO_SLOT, mv->shinfo, states[i], -1);
		memset(mv->shinfo, 0, PAGE_SIZE);
		memset(mv->area, 0, 64);
		memset(mv->area + 64, UNTOUCHED, LEN_64);
		xen_evtchn_send(mv->other, PORT);
		expect_event(_metadata, mv->shinfo, mv->area, !mv->to_long_mode);
		write_runstate(mv->other);
		EXPECT_EQ(bad_bytes_of_runstate(mv->area + 64, !mv->to_long_mode), 0);
	}
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	return test_harness_run(argc, argv);
}
