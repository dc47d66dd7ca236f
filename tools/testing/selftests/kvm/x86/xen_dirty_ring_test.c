// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty ring while KVM itself writes to guest memory.
 *
 * KVM_RUN does not enter the guest while the ring is soft-full.  An ioctl that
 * makes KVM write to guest memory pushes to the ring of its vCPU, too.  Any
 * number of such ioctls must not overrun the ring, i.e. overwrite an entry that
 * was not harvested.  They are refused instead, and change nothing, until the
 * ring is reset.
 *
 * Pages that KVM writes while the vCPU runs are in the ring like pages that the
 * guest writes, except for shared_info, see api.rst.
 */
#include <pthread.h>
#include <sys/mman.h>

#include <asm/barrier.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "hyperv.h"
#include "test_task.h"
#include "warn_count.h"
#include "xen.h"

/* The smallest that KVM takes with PML. */
#define RING_SIZE	1024

/* All logged pages: the areas, then the pages that the guest writes. */
#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
enum {
	SHINFO_PAGE,
	VCPU_INFO_PAGE,
	TIME_PAGE,
	RUNSTATE_PAGE,
	/* Where runstate ends. */
	RUNSTATE_PAGE2,
	RUNSTATE_SPARE_PAGE,
	MSR_PAGE,
	NR_AREA_PAGES,
};

#define NR_FILL_PAGES	RING_SIZE
#define REGION_PAGES	(NR_AREA_PAGES + NR_FILL_PAGES)
#define FILL_GPA	page_gpa(NR_AREA_PAGES)

#define RUNSTATE_GPA	(page_gpa(RUNSTATE_PAGE2) - 20)

#define PORT		66
/* Not the MSRs of Hyper-V. */
#define HCALL_MSR	0x40000200

/* More ioctls than the ring has entries. */
#define MANY		(3 * RING_SIZE)
/* Ioctls that a ring must take which has just become soft-full. */
#define HANDFUL		8
#define ROUNDS		10
#define CLOCK_NS	1000000000000ULL

static u64 page_gpa(int page)
{
	return REGION_GPA + page * PAGE_SIZE;
}

/* How many pages the guest writes before it exits to userspace. */
static u64 fill_end;
static u64 beat;

static void guest_fill(void)
{
	u64 i = 0;

	for (;;) {
		for (; i < READ_ONCE(fill_end); i++)
			WRITE_ONCE(*(u64 *)(FILL_GPA + i * PAGE_SIZE), i + 1);
		xen_guest_exit();
		GUEST_SYNC(0);
	}
}

static void guest_fill_and_write_msr(void)
{
	u64 i;

	for (i = 0; i < READ_ONCE(fill_end); i++)
		WRITE_ONCE(*(u64 *)(FILL_GPA + i * PAGE_SIZE), i + 1);
	GUEST_SYNC(0);
	GUEST_SYNC(wrmsr_safe(HCALL_MSR, page_gpa(MSR_PAGE)));
}

static void guest_spin(void)
{
	sti_nop();
	for (;;)
		WRITE_ONCE(beat, beat + 1);
}

struct ring_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct kvm_dirty_gfn *gfns;
	u32 fetch;
	/* Entries that were harvested last, by page. */
	u32 harvested[REGION_PAGES];
};

static void *page_at(struct ring_vm *rv, int page)
{
	return addr_gpa2hva(rv->vm, page_gpa(page));
}

static struct kvm_dirty_gfn *next_dirty(struct ring_vm *rv, u32 index)
{
	struct kvm_dirty_gfn *gfn = &rv->gfns[index % RING_SIZE];

	/* KVM sets the flag last. */
	return smp_load_acquire(&gfn->flags) == KVM_DIRTY_GFN_F_DIRTY ? gfn : NULL;
}

static u32 nr_dirty(struct ring_vm *rv)
{
	u32 nr = 0;

	while (nr < RING_SIZE && next_dirty(rv, rv->fetch + nr))
		nr++;
	return nr;
}

/* Take all entries of the ring.  Return their number. */
static u32 harvest(struct ring_vm *rv)
{
	struct kvm_dirty_gfn *gfn;
	u32 nr = 0;

	memset(rv->harvested, 0, sizeof(rv->harvested));
	while ((gfn = next_dirty(rv, rv->fetch))) {
		TEST_ASSERT_EQ(gfn->slot, REGION_SLOT);
		TEST_ASSERT(gfn->offset < REGION_PAGES, "There is no page %lld", gfn->offset);
		rv->harvested[gfn->offset]++;
		/* KVM may reuse the entry from now on. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
		rv->fetch++;
		nr++;
	}

	TEST_ASSERT_EQ(kvm_vm_reset_dirty_ring(rv->vm), nr);
	return nr;
}

static void ring_vm_create(struct ring_vm *rv, void *guest_code)
{
	memset(rv, 0, sizeof(*rv));
	rv->vm = vm_create(1);
	vm_enable_dirty_ring(rv->vm, RING_SIZE * sizeof(struct kvm_dirty_gfn));
	rv->vcpu = vm_vcpu_add(rv->vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(rv->vm);
	rv->gfns = vcpu_map_dirty_ring(rv->vcpu);

	vm_userspace_mem_region_add(rv->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    REGION_PAGES, 0);
	virt_map(rv->vm, FILL_GPA, FILL_GPA, NR_FILL_PAGES);
}

static void use_xen(struct ring_vm *rv, u32 flags)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
			 KVM_XEN_HVM_CONFIG_EVTCHN_SEND | flags,
		.msr = HCALL_MSR,
	};

	vm_ioctl(rv->vm, KVM_XEN_HVM_CONFIG, &config);
	xen_set_long_mode(rv->vm, true);
	xen_set_shared_info(rv->vm, page_gpa(SHINFO_PAGE));
	xen_set_vcpu_id(rv->vcpu, 0);
}

/* Begin to log, with an empty ring. */
static void log_pages(struct ring_vm *rv)
{
	vm_mem_region_set_flags(rv->vm, REGION_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	harvest(rv);
}

static void set_fill_end(struct ring_vm *rv, u64 end)
{
	write_guest_global(rv->vm, fill_end, end);
}

/*
 * Have the guest write until the ring is soft-full.  Return the number of
 * entries.
 */
static u32 fill(struct ring_vm *rv)
{
	set_fill_end(rv, NR_FILL_PAGES);
	vcpu_run(rv->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(rv->vcpu, KVM_EXIT_DIRTY_RING_FULL);
	return nr_dirty(rv);
}

static bool is_filled(struct ring_vm *rv, int page)
{
	return *(u64 *)page_at(rv, page);
}

static void set_clock(struct ring_vm *rv, u64 ns)
{
	struct kvm_clock_data clock = { .clock = ns };

	vm_ioctl(rv->vm, KVM_SET_CLOCK, &clock);
}

/* Ioctls that make KVM write to guest memory; 0 or an errno. */

static int set_attr(struct ring_vm *rv, struct kvm_xen_vcpu_attr *attr)
{
	return __vcpu_ioctl(rv->vcpu, KVM_XEN_VCPU_SET_ATTR, attr) ? errno : 0;
}

static int get_attr(struct ring_vm *rv, u16 type)
{
	struct kvm_xen_vcpu_attr attr = { .type = type };

	return __vcpu_ioctl(rv->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr) ? errno : 0;
}

/* The ioctl returns how many MSRs were set, and not why there are no more. */
static int set_msr(struct ring_vm *rv, u32 msr, u64 val)
{
	int ret = _vcpu_set_msr(rv->vcpu, msr, val);

	return ret < 0 ? errno : ret ? 0 : EBUSY;
}

static int set_runstate_current(struct ring_vm *rv, int i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = i % 2 ? RUNSTATE_blocked : RUNSTATE_runnable,
	};

	return set_attr(rv, &attr);
}

static int set_runstate_data(struct ring_vm *rv, int i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA,
		.u.runstate = {
			.state = RUNSTATE_blocked,
			.state_entry_time = 1 + i,
			.time_blocked = 1 + i,
		},
	};

	return set_attr(rv, &attr);
}

static int adjust_runstate(struct ring_vm *rv, int i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST,
		.u.runstate = {
			.state = -1,
			.state_entry_time = 1,
			.time_blocked = 1,
		},
	};

	return set_attr(rv, &attr);
}

static int set_runstate_addr(struct ring_vm *rv, int i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
		.u.gpa = i % 2 ? RUNSTATE_GPA : page_gpa(RUNSTATE_SPARE_PAGE),
	};

	return set_attr(rv, &attr);
}

/* From the default to another place, and back. */
static int move_vcpu_info(struct ring_vm *rv, int i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
		.u.gpa = i % 2 ? KVM_XEN_INVALID_GPA : page_gpa(VCPU_INFO_PAGE),
	};

	return set_attr(rv, &attr);
}

/* Raise an event whose selector stays in KVM, as vcpu_info is not mapped. */
static void leave_event(struct ring_vm *rv, int i)
{
	struct xen_shared_info *shinfo = page_at(rv, SHINFO_PAGE);

	shinfo->evtchn_pending[PORT / 64] = 0;
	TEST_ASSERT_EQ(madvise(page_at(rv, VCPU_INFO_PAGE), PAGE_SIZE, MADV_DONTNEED), 0);
	xen_evtchn_send(rv->vcpu, PORT);
}

static int get_vcpu_info(struct ring_vm *rv, int i)
{
	return get_attr(rv, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO);
}

static int get_vcpu_info_hva(struct ring_vm *rv, int i)
{
	return get_attr(rv, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA);
}

static int get_timer(struct ring_vm *rv, int i)
{
	return get_attr(rv, KVM_XEN_VCPU_ATTR_TYPE_TIMER);
}

static int set_wall_clock(struct ring_vm *rv, int i)
{
	return set_msr(rv, MSR_KVM_WALL_CLOCK_NEW, page_gpa(MSR_PAGE));
}

/* Bit 0 enables the page, bit 1 would lock it. */
static int set_hv_hypercall_page(struct ring_vm *rv, int i)
{
	return set_msr(rv, HV_X64_MSR_HYPERCALL, page_gpa(MSR_PAGE) | 1);
}

static int set_hv_assist_page(struct ring_vm *rv, int i)
{
	return set_msr(rv, HV_X64_MSR_VP_ASSIST_PAGE, page_gpa(MSR_PAGE) | 1);
}

FIXTURE(xen_dirty_ring) {
	struct ring_vm rv;
	int warn_count;
};

FIXTURE_VARIANT(xen_dirty_ring) {
	/* Before each ioctl, or NULL. */
	void (*prepare)(struct ring_vm *rv, int i);
	int (*fn)(struct ring_vm *rv, int i);
	/* The page that KVM writes, or 0 if it need not write any. */
	int page;
	u32 flags;
	bool hyperv;
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, runstate_current) {
	.fn = set_runstate_current,
	.page = RUNSTATE_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, runstate_data) {
	.fn = set_runstate_data,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, runstate_adjust) {
	.fn = adjust_runstate,
	.page = RUNSTATE_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, runstate_addr) {
	.fn = set_runstate_addr,
	.page = RUNSTATE_SPARE_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, move_vcpu_info) {
	.fn = move_vcpu_info,
	.page = VCPU_INFO_PAGE,
	.flags = KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, get_vcpu_info) {
	.prepare = leave_event,
	.fn = get_vcpu_info,
	.page = VCPU_INFO_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, get_vcpu_info_hva) {
	.prepare = leave_event,
	.fn = get_vcpu_info_hva,
	.page = VCPU_INFO_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, get_timer) {
	.prepare = leave_event,
	.fn = get_timer,
	.page = VCPU_INFO_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, wall_clock) {
	.fn = set_wall_clock,
	.page = MSR_PAGE,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, hv_hypercall_page) {
	.fn = set_hv_hypercall_page,
	.page = MSR_PAGE,
	.hyperv = true,
};

FIXTURE_VARIANT_ADD(xen_dirty_ring, hv_assist_page) {
	.fn = set_hv_assist_page,
	.page = MSR_PAGE,
	.hyperv = true,
};

FIXTURE_SETUP(xen_dirty_ring)
{
	struct ring_vm *rv = &self->rv;

	rearm_warn_once();
	self->warn_count = read_warn_count();
	ring_vm_create(rv, guest_fill);
	use_xen(rv, variant->flags);
	if (variant->hyperv) {
		vcpu_set_hv_cpuid(rv->vcpu);
		TEST_ASSERT_EQ(set_msr(rv, HV_X64_MSR_GUEST_OS_ID, HYPERV_LINUX_OS_ID), 0);
	}
	if (!(variant->flags & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO))
		xen_set_vcpu_info(rv->vcpu, page_gpa(VCPU_INFO_PAGE));
	TEST_ASSERT_EQ(set_runstate_addr(rv, 1), 0);
	/* Later than any time that set_runstate_data() sets. */
	set_clock(rv, CLOCK_NS);
	vcpu_run(rv->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(rv->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(set_runstate_data(rv, 0), 0);
	log_pages(rv);
}

FIXTURE_TEARDOWN(xen_dirty_ring)
{
	EXPECT_EQ(read_warn_count(), self->warn_count)
		TH_LOG("KVM has WARNed, see the kernel's log");
	kvm_vm_free(self->rv.vm);
}

/*
 * Each page that the guest has written was harvested.  Clear the pages for the
 * next harvest.
 */
static void expect_fill_pages(struct __test_metadata *_metadata, struct ring_vm *rv)
{
	int page, lost = 0;

	for (page = NR_AREA_PAGES; page < REGION_PAGES; page++)
		lost += is_filled(rv, page) && !rv->harvested[page];
	EXPECT_EQ(lost, 0)
		TH_LOG("The ring has overrun: entries of %d pages are lost", lost);
	memset(page_at(rv, NR_AREA_PAGES), 0, NR_FILL_PAGES * PAGE_SIZE);
}

/* The ioctl is refused, and neither writes nor pushes anything. */
static void expect_refused(struct __test_metadata *_metadata, struct ring_vm *rv,
			   int (*fn)(struct ring_vm *rv, int i), int i)
{
	u8 *areas = page_at(rv, 0), saved[NR_AREA_PAGES * PAGE_SIZE];
	u32 nr = nr_dirty(rv);

	memcpy(saved, areas, sizeof(saved));
	EXPECT_EQ(fn(rv, i), EBUSY);
	EXPECT_EQ(memcmp(saved, areas, sizeof(saved)), 0);
	EXPECT_EQ(nr_dirty(rv), nr);
}

/* Ioctls that don't write to guest memory work nevertheless. */
static void expect_others_work(struct __test_metadata *_metadata, struct ring_vm *rv)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR };
	struct kvm_mp_state state;

	EXPECT_EQ(set_msr(rv, MSR_IA32_SYSENTER_EIP, 0), 0);
	EXPECT_EQ(set_attr(rv, &attr), 0);
	EXPECT_EQ(get_attr(rv, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA), 0);
	EXPECT_EQ(__vcpu_ioctl(rv->vcpu, KVM_GET_MP_STATE, &state), 0);
}

/* The runstate that KVM has is the one that it has written last. */
static void expect_runstate_written(struct __test_metadata *_metadata, struct ring_vm *rv)
{
	struct xen_runstate *rs = page_at(rv, RUNSTATE_PAGE2) - 20;
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA };

	vcpu_ioctl(rv->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_EQ(attr.u.runstate.state, rs->state);
	EXPECT_EQ(attr.u.runstate.state_entry_time, rs->entry_time);
}

/* On a soft-full ring, all entries that ioctls push are reserved ones. */
TEST_F(xen_dirty_ring, flood)
{
	struct ring_vm *rv = &self->rv;
	int i, ret = 0;
	u32 nr;

	nr = fill(rv);
	ASSERT_LT(nr, RING_SIZE);

	for (i = 0; i < MANY; i++) {
		if (variant->prepare)
			variant->prepare(rv, i);
		ret = variant->fn(rv, i);
		if (ret)
			break;
	}
	EXPECT_GE(i, HANDFUL);
	/* An ioctl that does not write need not be refused. */
	if (variant->page || ret)
		EXPECT_EQ(ret, EBUSY);
	if (ret == EBUSY) {
		expect_refused(_metadata, rv, variant->fn, i);
		expect_others_work(_metadata, rv);
	}

	/* KVM_RUN leaves it to userspace to make room, and no entry is lost. */
	vcpu_run(rv->vcpu);
	EXPECT_EQ(rv->vcpu->run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
	nr = harvest(rv);
	TH_LOG("%d of %d ioctls, %d entries", i, MANY, nr);
	expect_fill_pages(_metadata, rv);
	if (variant->page)
		EXPECT_NE(rv->harvested[variant->page], 0);
	if (variant->page == RUNSTATE_PAGE)
		expect_runstate_written(_metadata, rv);

	/* Then there is room again.  Every other ioctl may write elsewhere. */
	EXPECT_EQ(variant->fn(rv, i), 0);
	EXPECT_EQ(variant->fn(rv, i + 1), 0);
	vcpu_run(rv->vcpu);
	EXPECT_EQ(rv->vcpu->run->exit_reason, KVM_EXIT_IO);
	harvest(rv);
	expect_fill_pages(_metadata, rv);
	if (variant->page)
		EXPECT_NE(rv->harvested[variant->page], 0);
}

FIXTURE(xen_dirty_ring_run) {
	struct ring_vm rv;
	int warn_count;
};

FIXTURE_SETUP(xen_dirty_ring_run)
{
	rearm_warn_once();
	self->warn_count = read_warn_count();
	ring_vm_create(&self->rv, guest_fill);
	use_xen(&self->rv, 0);
}

FIXTURE_TEARDOWN(xen_dirty_ring_run)
{
	EXPECT_EQ(read_warn_count(), self->warn_count)
		TH_LOG("KVM has WARNed, see the kernel's log");
	kvm_vm_free(self->rv.vm);
}

/* A single ioctl may have KVM write any number of times. */
TEST_F(xen_dirty_ring_run, many_msrs)
{
	struct {
		struct kvm_msrs msrs;
		struct kvm_msr_entry entries[255];
	} arg = { .msrs.nmsrs = ARRAY_SIZE(arg.entries) };
	struct ring_vm *rv = &self->rv;
	int i, ret;

	log_pages(rv);
	fill(rv);
	for (i = 0; i < ARRAY_SIZE(arg.entries); i++) {
		arg.entries[i].index = MSR_KVM_WALL_CLOCK_NEW;
		arg.entries[i].data = page_gpa(MSR_PAGE);
	}

	ret = __vcpu_ioctl(rv->vcpu, KVM_SET_MSRS, &arg.msrs);
	TH_LOG("%d of %d MSRs were set", ret, arg.msrs.nmsrs);
	EXPECT_GT(ret, 0);
	EXPECT_LT(ret, (int)arg.msrs.nmsrs);
	harvest(rv);
	expect_fill_pages(_metadata, rv);
}

/*
 * The guest's write of the hypercall page's MSR when the ring lacks one entry
 * to be soft-full.  KVM_RUN notices that only after the write.
 */
TEST_F(xen_dirty_ring_run, guest_hypercall_page)
{
	struct ring_vm *rv = &self->rv;
	u8 *page = page_at(rv, MSR_PAGE);
	struct ucall uc;
	u32 soft_limit;

	log_pages(rv);
	soft_limit = fill(rv);
	harvest(rv);
	vcpu_arch_set_entry_point(rv->vcpu, guest_fill_and_write_msr);
	set_fill_end(rv, soft_limit - 1);
	vcpu_run(rv->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(rv->vcpu, KVM_EXIT_IO);
	ASSERT_EQ(nr_dirty(rv), soft_limit - 1);

	vcpu_run(rv->vcpu);
	EXPECT_EQ(rv->vcpu->run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
	EXPECT_EQ(nr_dirty(rv), soft_limit);
	EXPECT_EQ(page[0], 0xb8);
	EXPECT_EQ(page[PAGE_SIZE - 32], 0xb8);
	harvest(rv);
	expect_fill_pages(_metadata, rv);
	EXPECT_EQ(rv->harvested[MSR_PAGE], 1);

	vcpu_run(rv->vcpu);
	ASSERT_EQ(get_ucall(rv->vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], 0);
}

static void sig_handler(int sig)
{
}

/* A vCPU that waits for INIT or SIPI doesn't enter the guest. */
TEST_F(xen_dirty_ring_run, not_running)
{
	struct sigaction sa = { .sa_handler = sig_handler };
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_INIT_RECEIVED };
	struct ring_vm *rv = &self->rv;
	u32 nr;
	int i;

	TEST_ASSERT_EQ(sigaction(SIGALRM, &sa, NULL), 0);
	xen_set_vcpu_info(rv->vcpu, page_gpa(VCPU_INFO_PAGE));
	log_pages(rv);
	nr = fill(rv);
	vcpu_mp_state_set(rv->vcpu, &state);

	for (i = 0; i < HANDFUL; i++) {
		leave_event(rv, i);
		/* Without an exit, KVM_RUN would wait for SIPI. */
		alarm(5);
		ASSERT_EQ(_vcpu_run(rv->vcpu), 0);
		alarm(0);
		EXPECT_EQ(rv->vcpu->run->exit_reason, KVM_EXIT_DIRTY_RING_FULL);
		EXPECT_EQ(nr_dirty(rv), nr);
	}

	harvest(rv);
	expect_fill_pages(_metadata, rv);
	state.mp_state = KVM_MP_STATE_RUNNABLE;
	vcpu_mp_state_set(rv->vcpu, &state);
	vcpu_run(rv->vcpu);
	harvest(rv);
	EXPECT_NE(rv->harvested[VCPU_INFO_PAGE], 0);
}

static void use_all_areas(struct ring_vm *rv)
{
	xen_set_vcpu_info(rv->vcpu, page_gpa(VCPU_INFO_PAGE));
	xen_set_vcpu_area(rv->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, page_gpa(TIME_PAGE));
	xen_set_vcpu_area(rv->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
}

/* All pages of areas that have changed were harvested, shared_info excepted. */
static void expect_changes_logged(struct __test_metadata *_metadata, struct ring_vm *rv,
				  const u8 *before, unsigned long must_change)
{
	u8 *areas = page_at(rv, 0);
	int page;

	for (page = SHINFO_PAGE + 1; page < NR_AREA_PAGES; page++) {
		bool changed = memcmp(before + page * PAGE_SIZE, areas + page * PAGE_SIZE,
				      PAGE_SIZE);

		if (must_change & BIT(page))
			EXPECT_TRUE(changed)
				TH_LOG("Page %d is as it was", page);
		if (changed)
			EXPECT_NE(rv->harvested[page], 0)
				TH_LOG("Page %d has changed, and is not in the ring", page);
	}
}

TEST_F(xen_dirty_ring_run, areas)
{
	struct ring_vm *rv = &self->rv;
	struct xen_shared_info *shinfo = page_at(rv, SHINFO_PAGE);
	u8 *areas = page_at(rv, 0), before[NR_AREA_PAGES * PAGE_SIZE];
	int i;

	use_all_areas(rv);
	vcpu_run(rv->vcpu);
	log_pages(rv);

	for (i = 1; i <= ROUNDS; i++) {
		/*
		 * The time, and runstate, which KVM writes at each vCPU load.
		 */
		memcpy(before, areas, sizeof(before));
		set_clock(rv, i * CLOCK_NS);
		set_fill_end(rv, i * 10);
		vcpu_run(rv->vcpu);
		harvest(rv);
		expect_changes_logged(_metadata, rv, before,
				      BIT(VCPU_INFO_PAGE) | BIT(TIME_PAGE) |
				      BIT(RUNSTATE_PAGE) | BIT(RUNSTATE_PAGE2));
		expect_fill_pages(_metadata, rv);

		/* A selector that KVM_RUN sets. */
		leave_event(rv, i);
		memcpy(before, areas, sizeof(before));
		vcpu_run(rv->vcpu);
		harvest(rv);
		expect_changes_logged(_metadata, rv, before, BIT(VCPU_INFO_PAGE));
		EXPECT_TRUE(xen_is_pending(shinfo, PORT));
	}
}

static void let_guest_run(struct ring_vm *rv)
{
	u64 *where = addr_gva2hva(rv->vm, (gva_t)&beat), end = READ_ONCE(*where) + 2;

	while (READ_ONCE(*where) < end)
		sched_yield();
}

static u32 runstate_at(struct ring_vm *rv)
{
	struct xen_runstate *rs = page_at(rv, RUNSTATE_PAGE2) - 20;

	return READ_ONCE(rs->state);
}

/*
 * KVM writes runstate at preemption, too.  Harvest while the guest runs on
 * another CPU, and have it preempted then.
 */
TEST_F(xen_dirty_ring_run, preempted)
{
	struct sigaction sa = { .sa_handler = sig_handler };
	struct ring_vm *rv = &self->rv;
	struct test_task task;
	bool running;
	int i, cpu;

	cpu = pin_self_to_any_cpu();
	if (__pin_task_to_cpu(pthread_self(), !cpu))
		SKIP(return, "There is no CPU %d", !cpu);
	TEST_ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);

	use_all_areas(rv);
	vcpu_arch_set_entry_point(rv->vcpu, guest_spin);
	log_pages(rv);
	test_task_start(&task, test_task_vcpu_run, rv->vcpu);
	pin_task_to_cpu(task.thread, cpu);
	let_guest_run(rv);

	for (i = 0; i < ROUNDS; i++) {
		do {
			pin_self_to_cpu(!cpu);
			let_guest_run(rv);
			harvest(rv);
			running = runstate_at(rv) == RUNSTATE_running;
			pin_self_to_cpu(cpu);
		} while (!running || runstate_at(rv) != RUNSTATE_runnable);

		/*
		 * The vCPU was preempted after the harvest, by this thread,
		 * which runs on its CPU.
		 */
		harvest(rv);
		EXPECT_NE(rv->harvested[RUNSTATE_PAGE], 0);
		EXPECT_NE(rv->harvested[RUNSTATE_PAGE2], 0);
	}

	test_task_kill(&task, SIGUSR1);
	test_task_join(&task);
	EXPECT_EQ(task.err, EINTR);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_DIRTY_LOG_RING) ||
		     kvm_has_cap(KVM_CAP_DIRTY_LOG_RING_ACQ_REL));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_HYPERV));

	return test_harness_run(argc, argv);
}
