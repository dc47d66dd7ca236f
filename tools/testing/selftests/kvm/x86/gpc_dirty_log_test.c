// SPDX-License-Identifier: GPL-2.0-only
/*
 * The dirty log of areas that KVM itself writes in guest memory: each page of
 * theirs that has changed is logged.
 *
 * Each area has a page of its own.  Events in shared_info and vcpu_info are
 * left out, as KVM does not log them; gpc_steal_time_test has what KVM writes
 * when a vCPU is preempted.
 */
#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define SHINFO_GPA	0xd0000000ULL
#define SHINFO_SLOT	11

#define PORT		66

enum {
	KVMCLOCK_PAGE,
	VCPU_INFO_PAGE,
	TIME_INFO_PAGE,
	RUNSTATE_PAGE,
	STEAL_TIME_PAGE,
	NR_PAGES,
};

static u64 page_gpa(int page)
{
	return REGION_GPA + page * PAGE_SIZE;
}

FIXTURE(gpc_dirty_log) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *mem;
	/* What was there when the log was read last. */
	u8 *copy;
};

FIXTURE_SETUP(gpc_dirty_log)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    NR_PAGES, KVM_MEM_LOG_DIRTY_PAGES);
	self->mem = addr_gpa2hva(self->vm, REGION_GPA);
	self->copy = calloc(NR_PAGES, PAGE_SIZE);
	TEST_ASSERT(self->copy, "calloc()");
}

FIXTURE_TEARDOWN(gpc_dirty_log)
{
	free(self->copy);
	kvm_vm_free(self->vm);
}

/*
 * The pages that have changed since the last call, each of which has to be
 * logged.
 */
static u64 changed_pages(struct __test_metadata *_metadata, FIXTURE_DATA(gpc_dirty_log) *self)
{
	u64 changed = 0, logged;
	int i;

	kvm_vm_get_dirty_log(self->vm, REGION_SLOT, &logged);
	for (i = 0; i < NR_PAGES; i++) {
		if (memcmp(self->copy + i * PAGE_SIZE, self->mem + i * PAGE_SIZE, PAGE_SIZE))
			changed |= BIT_ULL(i);
	}
	memcpy(self->copy, self->mem, NR_PAGES * PAGE_SIZE);

	EXPECT_EQ(changed & ~logged, 0);
	return changed;
}

static void set_up_xen(struct kvm_vm *vm)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, SHINFO_GPA, SHINFO_SLOT, 1, 0);
	xen_enable(vm);
	xen_set_shared_info(vm, SHINFO_GPA);
}

TEST_F(gpc_dirty_log, clocks)
{
	const u64 all = BIT_ULL(KVMCLOCK_PAGE) | BIT_ULL(VCPU_INFO_PAGE) | BIT_ULL(TIME_INFO_PAGE);
	struct kvm_clock_data clock = { .clock = 1000 * NSEC_PER_SEC };

	set_up_xen(self->vm);
	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, page_gpa(KVMCLOCK_PAGE) | 1);
	xen_set_vcpu_info(self->vcpu, page_gpa(VCPU_INFO_PAGE));
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
			  page_gpa(TIME_INFO_PAGE));
	vcpu_run(self->vcpu);
	EXPECT_EQ(changed_pages(_metadata, self), all);

	vm_ioctl(self->vm, KVM_SET_CLOCK, &clock);
	vcpu_run(self->vcpu);
	EXPECT_EQ(changed_pages(_metadata, self), all);
}

static void set_runstate(struct kvm_vcpu *vcpu, u64 state)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = state,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

TEST_F(gpc_dirty_log, runstate)
{
	if (!(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE))
		SKIP(return, "The kernel has no sched_info");

	set_up_xen(self->vm);
	set_runstate(self->vcpu, RUNSTATE_blocked);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
			  page_gpa(RUNSTATE_PAGE));
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(RUNSTATE_PAGE));

	set_runstate(self->vcpu, RUNSTATE_offline);
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(RUNSTATE_PAGE));

	vcpu_run(self->vcpu);
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(RUNSTATE_PAGE));
}

/*
 * They wait until there is a vcpu_info, for the vCPU or, here, for the VMM to
 * ask.
 */
TEST_F(gpc_dirty_log, selectors)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };

	set_up_xen(self->vm);
	xen_evtchn_send(self->vcpu, PORT);
	xen_set_vcpu_info(self->vcpu, page_gpa(VCPU_INFO_PAGE));
	EXPECT_EQ(changed_pages(_metadata, self), 0);

	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(VCPU_INFO_PAGE));
}

TEST_F(gpc_dirty_log, steal_time)
{
	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(return, "The kernel has no sched_info");

	/* The vCPU is loaded once to set the MSR, once to run. */
	vcpu_set_msr(self->vcpu, MSR_KVM_STEAL_TIME,
		     page_gpa(STEAL_TIME_PAGE) | KVM_MSR_ENABLED);
	vcpu_run(self->vcpu);
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(STEAL_TIME_PAGE));

	vcpu_run(self->vcpu);
	EXPECT_EQ(changed_pages(_metadata, self), BIT_ULL(STEAL_TIME_PAGE));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
