// SPDX-License-Identifier: GPL-2.0-only
/*
 * vcpu_info, which is in shared_info until the guest has it somewhere else:
 * events get to the right one, in either word size, a vCPU has none where Xen
 * has none, and moving it takes along what belongs to it.
 */
#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define XEN_GPA			0xc0000000ULL
#define XEN_SLOT		10
#define SHINFO_GPA		XEN_GPA
#define VCPU_INFO_GPA		(XEN_GPA + PAGE_SIZE + 128)
#define NO_GPA			(XEN_GPA + 2 * PAGE_SIZE)

#define PORT			66
#define UPCALL_VECTOR		0x30
#define MAX_VIRT_CPUS		32
#define VCPU_INFO_LEN		64
#define SEL_LEN(long_mode)	((long_mode) ? 8 : 4)

static u64 nr_upcalls;

static void guest_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)SHINFO_GPA;

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	nr_upcalls++;
}

static void guest_take_upcall(void)
{
	sti_nop();
	xen_guest_exit();
	cli();
	GUEST_SYNC(nr_upcalls);
}

FIXTURE(xen_area) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *shinfo;
	u8 *registered;
};

FIXTURE_VARIANT(xen_area) {
	bool long_mode;
	bool by_hva;
};

FIXTURE_VARIANT_ADD(xen_area, gpa_64) { .long_mode = true };
FIXTURE_VARIANT_ADD(xen_area, gpa_32) { .long_mode = false };
FIXTURE_VARIANT_ADD(xen_area, hva_64) { .long_mode = true, .by_hva = true };
FIXTURE_VARIANT_ADD(xen_area, hva_32) { .long_mode = false, .by_hva = true };

static void set_shared_info(struct kvm_vm *vm, bool by_hva)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA,
		.u.shared_info.hva = (unsigned long)addr_gpa2hva(vm, SHINFO_GPA),
	};

	if (by_hva)
		vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
	else
		xen_set_shared_info(vm, SHINFO_GPA);
}

static void drop_shared_info(struct kvm_vm *vm)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = KVM_XEN_INVALID_GFN,
	};

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static int set_vcpu_info(struct kvm_vcpu *vcpu, u64 gpa, bool by_hva)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, .u.gpa = gpa };

	if (by_hva) {
		attr.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA;
		attr.u.hva = 0;
		if (gpa != KVM_XEN_INVALID_GPA)
			attr.u.hva = (unsigned long)addr_gpa2hva(vcpu->vm, XEN_GPA) + gpa - XEN_GPA;
	}

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr) ? -errno : 0;
}

static int set_vcpu_id(struct kvm_vcpu *vcpu, u32 id)
{
	return __xen_set_vcpu_id(vcpu, id) ? -errno : 0;
}

static u64 get_attr(struct kvm_vcpu *vcpu, u16 type)
{
	struct kvm_xen_vcpu_attr attr = { .type = type };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	return attr.u.gpa;
}

FIXTURE_SETUP(xen_area)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, XEN_GPA, XEN_SLOT, 3, 0);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	self->registered = addr_gpa2hva(self->vm, VCPU_INFO_GPA);
	xen_enable_default_vcpu_info(self->vm);
	xen_set_long_mode(self->vm, variant->long_mode);
	set_shared_info(self->vm, variant->by_hva);
}

FIXTURE_TEARDOWN(xen_area)
{
	kvm_vm_free(self->vm);
}

static u8 *default_vcpu_info(u8 *shinfo, u32 id)
{
	return shinfo + id * VCPU_INFO_LEN;
}

static struct pvclock_vcpu_time_info *time_of(u8 *vi)
{
	return &((struct xen_vcpu_info *)vi)->time;
}

static u64 sel_at(u8 *vi, bool long_mode)
{
	return long_mode ? ((struct xen_vcpu_info *)vi)->evtchn_pending_sel :
			   ((struct xen_vcpu_info32 *)vi)->evtchn_pending_sel;
}

/* The guest's ABI: an event for PORT, and nothing but the time besides. */
static void expect_event(struct __test_metadata *_metadata, u8 *vi, bool long_mode)
{
	u8 model[VCPU_INFO_LEN] = {};
	unsigned int word = PORT / (long_mode ? 64 : 32);
	unsigned int sel = long_mode ? 8 : 4;
	int i;

	model[0] = 1;
	model[sel + word / 8] = 1 << (word % 8);
	for (i = 0; i < 32; i++)
		EXPECT_EQ(vi[i], model[i]) TH_LOG("byte %d", i);
}

static void expect_nothing(struct __test_metadata *_metadata, u8 *vi)
{
	int i;

	for (i = 0; i < 32; i++)
		EXPECT_EQ(vi[i], 0) TH_LOG("byte %d", i);
}

TEST_F(xen_area, event_in_default)
{
	static const u32 ids[] = { 0, 1, 17, 31 };
	int i, k;

	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		drop_shared_info(self->vm);
		ASSERT_EQ(set_vcpu_id(self->vcpu, ids[i]), 0);
		set_shared_info(self->vm, variant->by_hva);
		/*
		 * It may have been told to look at all ports, as its ID has
		 * changed.
		 */
		vcpu_run(self->vcpu);
		memset(self->shinfo, 0, PAGE_SIZE);

		xen_evtchn_send(self->vcpu, PORT);
		for (k = 0; k < MAX_VIRT_CPUS; k++) {
			if (k == ids[i])
				expect_event(_metadata, default_vcpu_info(self->shinfo, k),
					     variant->long_mode);
			else
				expect_nothing(_metadata, default_vcpu_info(self->shinfo, k));
		}
	}
}

TEST_F(xen_area, time_in_default)
{
	struct pvclock_vcpu_time_info *time = time_of(default_vcpu_info(self->shinfo, 3));
	u32 version;

	ASSERT_EQ(set_vcpu_id(self->vcpu, 3), 0);
	vcpu_run(self->vcpu);
	EXPECT_NE(time->version, 0);
	EXPECT_EQ(time->version % 2, 0);
	EXPECT_NE(time->tsc_to_system_mul, 0);

	/* shared_info comes anew, and the time with it. */
	version = time->version;
	drop_shared_info(self->vm);
	set_shared_info(self->vm, variant->by_hva);
	vcpu_run(self->vcpu);
	EXPECT_NE(time->version, version);
}

TEST_F(xen_area, upcall_from_default)
{
	struct ucall uc;

	ASSERT_EQ(set_vcpu_id(self->vcpu, 0), 0);
	virt_map(self->vm, SHINFO_GPA, SHINFO_GPA, 1);
	vm_install_exception_handler(self->vm, UPCALL_VECTOR, guest_upcall);
	vcpu_arch_set_entry_point(self->vcpu, guest_take_upcall);
	xen_set_upcall_vector(self->vm, UPCALL_VECTOR);

	xen_evtchn_send(self->vcpu, PORT);
	vcpu_run(self->vcpu);
	ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], 1);
}

/* There are 32 of them.  Any other vCPU has to register one. */
TEST_F(xen_area, none_above_31)
{
	ASSERT_EQ(set_vcpu_id(self->vcpu, MAX_VIRT_CPUS), 0);
	xen_evtchn_send(self->vcpu, PORT);
	vcpu_run(self->vcpu);
	EXPECT_EQ(self->shinfo[VCPU_INFO_LEN * MAX_VIRT_CPUS - VCPU_INFO_LEN], 0);
	expect_nothing(_metadata, self->registered);

	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	vcpu_run(self->vcpu);
	expect_event(_metadata, self->registered, variant->long_mode);
}

/* Its ID is not known. */
TEST_F(xen_area, none_without_id)
{
	int i;

	xen_evtchn_send(self->vcpu, PORT);
	vcpu_run(self->vcpu);
	for (i = 0; i < MAX_VIRT_CPUS; i++)
		expect_nothing(_metadata, default_vcpu_info(self->shinfo, i));

	/* The event has waited for that. */
	ASSERT_EQ(set_vcpu_id(self->vcpu, 7), 0);
	vcpu_run(self->vcpu);
	expect_event(_metadata, default_vcpu_info(self->shinfo, 7), variant->long_mode);
}

/* Without the flag, there is no default. */
TEST_F(xen_area, none_unless_enabled)
{
	int i;

	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = XEN_HYPERCALL_MSR,
	};

	/* There is no going back while a vCPU has no other one. */
	ASSERT_EQ(set_vcpu_id(self->vcpu, 0), 0);
	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config), -1);
	EXPECT_EQ(errno, EBUSY);
	drop_shared_info(self->vm);
	xen_enable(self->vm);
	set_shared_info(self->vm, variant->by_hva);
	xen_set_long_mode(self->vm, variant->long_mode);
	ASSERT_EQ(set_vcpu_id(self->vcpu, 1), 0);
	xen_evtchn_send(self->vcpu, PORT);
	vcpu_run(self->vcpu);
	for (i = 0; i < MAX_VIRT_CPUS; i++)
		expect_nothing(_metadata, default_vcpu_info(self->shinfo, i));

	/* Registered, it is what was there, and what is pending. */
	self->registered[1] = 1;
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	vcpu_run(self->vcpu);
	EXPECT_EQ(self->registered[1], 1);
	self->registered[1] = 0;
	expect_event(_metadata, self->registered, variant->long_mode);
	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);

	/* And it can be enabled at any time. */
	xen_evtchn_send(self->vcpu, PORT + 64);
	xen_enable_default_vcpu_info(self->vm);
	xen_set_long_mode(self->vm, variant->long_mode);
	vcpu_run(self->vcpu);
	EXPECT_EQ(default_vcpu_info(self->shinfo, 1)[0], 1);
}

TEST_F(xen_area, id_in_use)
{
	ASSERT_EQ(set_vcpu_id(self->vcpu, 2), 0);
	EXPECT_EQ(set_vcpu_id(self->vcpu, 3), -EBUSY);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID) & 0xffffffff, 2);
	EXPECT_EQ(set_vcpu_id(self->vcpu, 2), 0);
	EXPECT_EQ(set_vcpu_id(self->vcpu, -1), -EINVAL);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, default_vcpu_info(self->shinfo, 2), variant->long_mode);

	/* Not when vcpu_info is elsewhere, or shared_info nowhere. */
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	EXPECT_EQ(set_vcpu_id(self->vcpu, 3), 0);
	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);
	EXPECT_EQ(set_vcpu_id(self->vcpu, 4), -EBUSY);
	drop_shared_info(self->vm);
	EXPECT_EQ(set_vcpu_id(self->vcpu, 4), 0);
}

/*
 * What is pending in the default of the old ID, the guest finds by that of the
 * new one.
 */
TEST_F(xen_area, id_changes_with_event_pending)
{
	u64 all = variant->long_mode ? ~0ull : ~0u;
	u8 *from = default_vcpu_info(self->shinfo, 0);
	u8 *to = default_vcpu_info(self->shinfo, 1);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 0), 0);
	/* The change of the ID has set all selectors. */
	vcpu_run(self->vcpu);
	memset(self->shinfo, 0, PAGE_SIZE);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, from, variant->long_mode);

	drop_shared_info(self->vm);
	ASSERT_EQ(set_vcpu_id(self->vcpu, 1), 0);
	set_shared_info(self->vm, variant->by_hva);
	vcpu_run(self->vcpu);
	EXPECT_EQ(to[0], 1);
	EXPECT_EQ(sel_at(to, variant->long_mode), all);
	expect_event(_metadata, from, variant->long_mode);
}

/* KVM_XEN_VCPU_GET_ATTR reports no address for a default. */
TEST_F(xen_area, default_or_registered)
{
	u64 hva = (unsigned long)self->registered;

	ASSERT_EQ(set_vcpu_id(self->vcpu, 2), 0);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO), KVM_XEN_INVALID_GPA);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA), 0);

	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO),
		  variant->by_hva ? KVM_XEN_INVALID_GPA : VCPU_INFO_GPA);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA),
		  variant->by_hva ? hva : 0);

	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO), KVM_XEN_INVALID_GPA);
	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA), 0);
}

/*
 * To where there may be anything: what moves is all there is, and all is looked
 * at.
 */
TEST_F(xen_area, move)
{
	u64 all = variant->long_mode ? ~0ull : ~0u;
	int sel = variant->long_mode ? 8 : 4, i;
	u8 *from = default_vcpu_info(self->shinfo, 5);
	u8 before[VCPU_INFO_LEN];
	u32 version;

	ASSERT_EQ(set_vcpu_id(self->vcpu, 5), 0);
	vcpu_run(self->vcpu);
	from[1] = 1;
	for (i = sel + SEL_LEN(variant->long_mode); i < 32; i++)
		from[i] = i;
	memcpy(before, from, sizeof(before));
	version = time_of(from)->version;

	memset(self->registered - VCPU_INFO_LEN, 0xa5, 3 * VCPU_INFO_LEN);
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	EXPECT_EQ(self->registered[0], 1);
	EXPECT_EQ(self->registered[1], 1);
	EXPECT_EQ(sel_at(self->registered, variant->long_mode), all);
	for (i = sel + SEL_LEN(variant->long_mode); i < 32; i++)
		EXPECT_EQ(self->registered[i], i) TH_LOG("byte %d", i);
	EXPECT_EQ(memcmp(from, before, sizeof(before)), 0);

	/* From then on, the time is there, and no longer here. */
	vcpu_run(self->vcpu);
	EXPECT_LT(version, time_of(self->registered)->version);
	EXPECT_EQ(time_of(self->registered)->version % 2, 0);
	EXPECT_EQ(time_of(from)->version, version);
	for (i = 0; i < VCPU_INFO_LEN; i++) {
		EXPECT_EQ(self->registered[i - VCPU_INFO_LEN], 0xa5);
		EXPECT_EQ(self->registered[i + VCPU_INFO_LEN], 0xa5);
	}

	/* Events, too. */
	memset(self->registered, 0, 32);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, self->registered, variant->long_mode);
	EXPECT_EQ(memcmp(from, before, sizeof(before)), 0);
}

TEST_F(xen_area, reset)
{
	u64 all = variant->long_mode ? ~0ull : ~0u;
	u8 *from = default_vcpu_info(self->shinfo, 5);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 5), 0);
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	memset(self->registered, 0xa5, 32);
	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);

	/* Nothing is copied, and all is looked at. */
	EXPECT_EQ(from[0], 1);
	EXPECT_EQ(from[1], 0);
	EXPECT_EQ(sel_at(from, variant->long_mode), all);

	/* What is reset already has nothing to look at. */
	memset(from, 0, 32);
	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);
	vcpu_run(self->vcpu);
	expect_nothing(_metadata, from);
}

/*
 * What is pending is found, even if shared_info was away when vcpu_info was
 * reset.
 */
TEST_F(xen_area, reset_without_shared_info)
{
	u8 *from = default_vcpu_info(self->shinfo, 5);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 5), 0);
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	vcpu_run(self->vcpu);
	xen_evtchn_send(self->vcpu, PORT);
	drop_shared_info(self->vm);
	ASSERT_EQ(set_vcpu_info(self->vcpu, KVM_XEN_INVALID_GPA, variant->by_hva), 0);
	set_shared_info(self->vm, variant->by_hva);
	vcpu_run(self->vcpu);
	EXPECT_EQ(from[0], 1);
	EXPECT_NE(sel_at(from, variant->long_mode), 0);
}

struct wall_clock {
	u32 version;
	u32 sec;
	u32 nsec;
};

static struct wall_clock *wall_clock(u8 *shinfo, bool long_mode)
{
	return (void *)(shinfo + (long_mode ? 0xc00 : 0x900));
}

/* Written where the new mode has it; the old place is left alone. */
TEST_F(xen_area, mode_changes_wall_clock)
{
	struct wall_clock *to = wall_clock(self->shinfo, !variant->long_mode);
	struct wall_clock *from = wall_clock(self->shinfo, variant->long_mode);
	struct timespec before, after;

	memset(self->shinfo, 0, PAGE_SIZE);
	clock_gettime(CLOCK_REALTIME, &before);
	xen_set_long_mode(self->vm, !variant->long_mode);
	clock_gettime(CLOCK_REALTIME, &after);

	/* The time at which the VM was made. */
	EXPECT_NE(to->version, 0);
	EXPECT_EQ(to->version % 2, 0);
	EXPECT_LE(to->sec, (u32)after.tv_sec);
	EXPECT_LT((u32)before.tv_sec - 3600, to->sec);
	EXPECT_LT(to->nsec, NSEC_PER_SEC);

	EXPECT_EQ(from->version, 0);
	EXPECT_EQ(from->sec, 0);
	EXPECT_EQ(from->nsec, 0);
}

/* A vcpu_info that cannot be reached has its new layout once it is back. */
TEST_F(xen_area, mode_without_vcpu_info)
{
	u8 *page = addr_gpa2hva(self->vm, NO_GPA);

	ASSERT_EQ(set_vcpu_info(self->vcpu, NO_GPA, variant->by_hva), 0);
	vcpu_run(self->vcpu);

	ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_NONE), 0);
	EXPECT_EQ(__xen_set_long_mode(self->vm, !variant->long_mode), 0);
	EXPECT_EQ(xen_get_long_mode(self->vm), !variant->long_mode);

	ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	memset(page, 0, 32);
	xen_evtchn_send(self->vcpu, PORT);
	vcpu_run(self->vcpu);
	expect_event(_metadata, page, !variant->long_mode);
}

/* Registering the default place works. */
TEST_F(xen_area, move_to_default)
{
	u64 all = variant->long_mode ? ~0ull : ~0u;
	u8 *vi = default_vcpu_info(self->shinfo, 5);
	u32 version;

	ASSERT_EQ(set_vcpu_id(self->vcpu, 5), 0);
	vcpu_run(self->vcpu);
	vi[1] = 1;
	version = time_of(vi)->version;
	ASSERT_EQ(set_vcpu_info(self->vcpu, SHINFO_GPA + 5 * VCPU_INFO_LEN, variant->by_hva), 0);
	EXPECT_EQ(vi[0], 1);
	EXPECT_EQ(vi[1], 1);
	EXPECT_EQ(sel_at(vi, variant->long_mode), all);
	vcpu_run(self->vcpu);
	EXPECT_LT(version, time_of(vi)->version);

	memset(vi, 0, 32);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, vi, variant->long_mode);
}

static u32 runstate_at(u8 *where)
{
	struct xen_runstate *rs = (void *)where;

	return READ_ONCE(rs->state);
}

static void set_current(struct kvm_vcpu *vcpu, u64 state)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = state,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static bool is_pending(u8 *shinfo, bool long_mode)
{
	struct xen_shared_info32 *shinfo32 = (void *)shinfo;

	return long_mode ? xen_is_pending((void *)shinfo, PORT) :
			   READ_ONCE(shinfo32->evtchn_pending[PORT / 32]) & BIT(PORT % 32);
}

/*
 * It is the guest's to make sense of that: each area is written as if it were
 * alone.
 */
TEST_F(xen_area, overlap)
{
	/* Over vcpu_info's own time. */
	u64 gpa = VCPU_INFO_GPA + 32;
	struct pvclock_vcpu_time_info *time = time_of(self->registered + 4);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 1), 0);
	ASSERT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA, variant->by_hva), 0);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa + 4);

	memset(self->registered, 0, 2 * VCPU_INFO_LEN);
	set_current(self->vcpu, RUNSTATE_blocked);
	EXPECT_EQ(runstate_at(self->registered + 32), RUNSTATE_blocked);
	vcpu_run(self->vcpu);
	EXPECT_NE(time->version, 0);

	memset(self->registered, 0, 32);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, self->registered, variant->long_mode);

	/* In shared_info, where the events of other vCPUs are. */
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
			  SHINFO_GPA + 8 * VCPU_INFO_LEN);
	memset(self->shinfo, 0, PAGE_SIZE);
	set_current(self->vcpu, RUNSTATE_blocked);
	xen_evtchn_send(self->vcpu, PORT);
	EXPECT_EQ(runstate_at(self->shinfo + 8 * VCPU_INFO_LEN), RUNSTATE_blocked);
	EXPECT_TRUE(is_pending(self->shinfo, variant->long_mode));
}

/* The highest page that a guest can have, and what is beyond. */
TEST_F(xen_area, top_of_memory)
{
	u64 gpa = self->vm->max_gfn * PAGE_SIZE, end = gpa + PAGE_SIZE;
	int len = variant->long_mode ? sizeof(struct xen_runstate) :
				       sizeof(struct xen_runstate) - 4;
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR };
	u8 *page;

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, gpa, XEN_SLOT + 1, 1, 0);
	page = addr_gpa2hva(self->vm, gpa);

	attr.u.gpa = end - len;
	ASSERT_EQ(__vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr), 0);
	set_current(self->vcpu, RUNSTATE_blocked);
	EXPECT_EQ(runstate_at(page + PAGE_SIZE - len), RUNSTATE_blocked);

	attr.u.gpa++;
	EXPECT_EQ(__vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr), -1);
	EXPECT_EQ(errno, EFAULT);
	set_current(self->vcpu, RUNSTATE_runnable);
	EXPECT_EQ(runstate_at(page + PAGE_SIZE - len), RUNSTATE_runnable);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 1), 0);
	attr.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO;
	attr.u.gpa = end - 2 * VCPU_INFO_LEN;
	ASSERT_EQ(__vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr), 0);
	memset(page + PAGE_SIZE - 2 * VCPU_INFO_LEN, 0, 32);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, page + PAGE_SIZE - 2 * VCPU_INFO_LEN, variant->long_mode);
}

TEST_F(xen_area, move_fails)
{
	u8 *from = default_vcpu_info(self->shinfo, 5);

	ASSERT_EQ(set_vcpu_id(self->vcpu, 5), 0);
	munmap(addr_gpa2hva(self->vm, XEN_GPA) + 2 * PAGE_SIZE, PAGE_SIZE);
	EXPECT_EQ(set_vcpu_info(self->vcpu, NO_GPA, variant->by_hva), -EFAULT);
	EXPECT_EQ(set_vcpu_info(self->vcpu, VCPU_INFO_GPA + 1, variant->by_hva), -ENXIO);
	EXPECT_EQ(set_vcpu_info(self->vcpu, NO_GPA - 4, variant->by_hva), -EINVAL);
	expect_nothing(_metadata, from);

	EXPECT_EQ(get_attr(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO), KVM_XEN_INVALID_GPA);
	xen_evtchn_send(self->vcpu, PORT);
	expect_event(_metadata, from, variant->long_mode);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);

	return test_harness_run(argc, argv);
}
