// SPDX-License-Identifier: GPL-2.0-only
/*
 * Areas that KVM itself writes in guest memory, when the memslot below them is
 * deleted and created anew.
 *
 * VMMs do that to change a slot's size or flags.  What KVM has to write
 * meanwhile, an event or the time, must be there afterwards.
 */
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define SHINFO_GPA	REGION_GPA
#define VCPU_INFO_GPA	(REGION_GPA + PAGE_SIZE)
#define TIME_GPA	(REGION_GPA + 2 * PAGE_SIZE)
#define REGION_PAGES	3
#define OTHER_GPA	0xd0000000ULL

#define PORT		66
#define HIGH_PORT	2600
#define GSI		32
#define UPCALL_VECTOR	0x30
#define MANY_HALTS	100

static void guest_kvmclock(void)
{
	wrmsr(MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1);
	xen_guest_idle();
}

static void guest_hypercall_page(void)
{
	GUEST_SYNC(wrmsr_safe(XEN_HYPERCALL_MSR, TIME_GPA));
}

static bool upcall;

static void guest_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)VCPU_INFO_GPA;

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	upcall = true;
}

static void guest_halt(void)
{
	while (!upcall)
		asm volatile("sti; hlt; cli");
	GUEST_DONE();
}

static void run(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
}

static void set_region(struct kvm_vm *vm, bool present)
{
	struct userspace_mem_region *region = memslot2region(vm, REGION_SLOT);
	struct kvm_userspace_memory_region slot = {
		.slot = REGION_SLOT,
		.guest_phys_addr = REGION_GPA,
		.memory_size = present ? REGION_PAGES * PAGE_SIZE : 0,
		.userspace_addr = (unsigned long)region->host_mem,
	};

	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

static void move_shared_info(struct kvm_vm *vm)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA,
				    REGION_SLOT + 1, 1, 0);
	xen_set_shared_info(vm, OTHER_GPA);
}

FIXTURE(gpc_memslot) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
	struct xen_vcpu_info *vi;
};

FIXTURE_SETUP(gpc_memslot)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA,
				    REGION_SLOT, REGION_PAGES, 0);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	self->vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);
	xen_enable(self->vm);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	run(self->vcpu);
}

FIXTURE_TEARDOWN(gpc_memslot)
{
	kvm_vm_free(self->vm);
}

static void expect_delivered(struct __test_metadata *_metadata,
			     struct xen_shared_info *shinfo, struct xen_vcpu_info *vi)
{
	EXPECT_TRUE(xen_is_pending(shinfo, PORT));
	EXPECT_EQ(vi->evtchn_pending_sel, BIT_ULL(PORT / 64));
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
}

TEST_F(gpc_memslot, irqfd)
{
	int fd = xen_irqfd(self->vcpu, GSI, PORT);

	set_region(self->vm, false);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);

	/* The event goes to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(self->vm, GSI, fd);
	run(self->vcpu);
	EXPECT_FALSE(xen_is_pending(self->shinfo, PORT));

	set_region(self->vm, true);
	run(self->vcpu);
	expect_delivered(_metadata, self->shinfo, self->vi);
	close(fd);
}

TEST_F(gpc_memslot, timer)
{
	set_region(self->vm, false);

	/* In the past: pending at once, for the vCPU to deliver. */
	xen_set_timer(self->vcpu, PORT, 1);
	run(self->vcpu);
	EXPECT_FALSE(xen_is_pending(self->shinfo, PORT));

	set_region(self->vm, true);
	run(self->vcpu);
	expect_delivered(_metadata, self->shinfo, self->vi);
}

TEST_F(gpc_memslot, migrated_timer)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER };

	set_region(self->vm, false);
	xen_set_timer(self->vcpu, PORT, 1);
	run(self->vcpu);

	/* Either the timer is armed, or its event is in shared_info. */
	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_EQ(attr.u.timer.expires_ns, 1);

	set_region(self->vm, true);
	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_EQ(attr.u.timer.expires_ns, 0);
	expect_delivered(_metadata, self->shinfo, self->vi);
}

/* Userspace saves what it reads; the vCPU does not run any more. */
TEST_F(gpc_memslot, migrated_vcpu_info)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };

	/* A vcpu_info that is out of reach while shared_info is not. */
	move_shared_info(self->vm);
	self->shinfo = addr_gpa2hva(self->vm, OTHER_GPA);
	set_region(self->vm, false);
	xen_evtchn_send(self->vcpu, PORT);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	EXPECT_EQ(self->vi->evtchn_pending_sel, 0);

	set_region(self->vm, true);
	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_EQ(attr.u.gpa, VCPU_INFO_GPA);
	expect_delivered(_metadata, self->shinfo, self->vi);
}

/*
 * An event ends the wait of a vCPU that waits for its INIT, so it must get to
 * vcpu_info from there, too.
 */
static void reset_vcpu(struct kvm_vcpu *vcpu)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_UNINITIALIZED };

	vcpu_mp_state_set(vcpu, &state);
}

TEST_F(gpc_memslot, vcpu_not_started)
{
	reset_vcpu(self->vcpu);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_INVALID_GPA);
	xen_evtchn_send(self->vcpu, PORT);
	EXPECT_EQ(_vcpu_run(self->vcpu), -1);
	EXPECT_EQ(errno, EAGAIN);
	EXPECT_EQ(self->vi->evtchn_pending_sel, 0);

	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	EXPECT_EQ(_vcpu_run(self->vcpu), -1);
	EXPECT_EQ(errno, EAGAIN);
	expect_delivered(_metadata, self->shinfo, self->vi);
}

TEST_F(gpc_memslot, vcpu_not_started_timer)
{
	reset_vcpu(self->vcpu);
	set_region(self->vm, false);
	xen_set_timer(self->vcpu, PORT, 1);
	set_region(self->vm, true);
	EXPECT_EQ(_vcpu_run(self->vcpu), -1);
	EXPECT_EQ(errno, EAGAIN);
	expect_delivered(_metadata, self->shinfo, self->vi);
}

struct halted {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
};

static void *run_to_done(void *arg)
{
	struct halted *h = arg;

	vcpu_run(h->vcpu);
	TEST_ASSERT_EQ(get_ucall(h->vcpu, NULL), UCALL_DONE);
	return NULL;
}

/* A vCPU that does not sleep comes back to HLT again and again. */
static void halt(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, struct halted *h)
{
	h->vcpu = vcpu;
	virt_map(vcpu->vm, VCPU_INFO_GPA, VCPU_INFO_GPA, 1);
	vm_install_exception_handler(vcpu->vm, UPCALL_VECTOR, guest_upcall);
	vcpu_arch_set_entry_point(vcpu, guest_halt);
	xen_set_upcall_vector(vcpu->vm, UPCALL_VECTOR);
	TEST_ASSERT_EQ(pthread_create(&h->thread, NULL, run_to_done, h), 0);
	while (!vcpu_get_stat(vcpu, blocking) &&
	       vcpu_get_stat(vcpu, halt_exits) < MANY_HALTS)
		sched_yield();
	EXPECT_LT(vcpu_get_stat(vcpu, halt_exits), MANY_HALTS)
		TH_LOG("An event that has nowhere to go keeps the vCPU from sleeping");
}

TEST_F(gpc_memslot, halted_irqfd)
{
	int fd = xen_irqfd(self->vcpu, GSI, PORT);
	struct halted h;

	set_region(self->vm, false);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);
	kvm_deassign_irqfd(self->vm, GSI, fd);
	halt(_metadata, self->vcpu, &h);
	set_region(self->vm, true);
	pthread_join(h.thread, NULL);
	close(fd);
}

TEST_F(gpc_memslot, halted_timer)
{
	struct halted h;

	set_region(self->vm, false);
	xen_set_timer(self->vcpu, PORT, 1);
	halt(_metadata, self->vcpu, &h);
	set_region(self->vm, true);
	pthread_join(h.thread, NULL);
}

TEST_F(gpc_memslot, halted_pending)
{
	struct halted h;

	/* A vcpu_info that is out of reach while shared_info is not. */
	move_shared_info(self->vm);
	set_region(self->vm, false);
	xen_evtchn_send(self->vcpu, PORT);
	halt(_metadata, self->vcpu, &h);
	set_region(self->vm, true);
	pthread_join(h.thread, NULL);
}

/* It is the guest's own memory that says there is something. */
TEST_F(gpc_memslot, halted_upcall_pending)
{
	struct halted h;

	WRITE_ONCE(self->vi->evtchn_upcall_pending, 1);
	set_region(self->vm, false);
	halt(_metadata, self->vcpu, &h);
	set_region(self->vm, true);
	pthread_join(h.thread, NULL);
}

TEST_F(gpc_memslot, halted_shared_info_set)
{
	struct halted h;

	move_shared_info(self->vm);
	vm_mem_region_delete(self->vm, REGION_SLOT + 1);
	xen_set_timer(self->vcpu, PORT, 1);
	halt(_metadata, self->vcpu, &h);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	pthread_join(h.thread, NULL);
}

/*
 * The guest's mode is what shared_info is laid out for: both change, or
 * neither.
 */
TEST_F(gpc_memslot, mode_by_hypercall_page)
{
	struct kvm_xen_hvm_attr mode = { .type = KVM_XEN_ATTR_TYPE_LONG_MODE };
	struct ucall uc;

	xen_set_long_mode(self->vm, false);
	vcpu_arch_set_entry_point(self->vcpu, guest_hypercall_page);
	set_region(self->vm, false);
	run(self->vcpu);
	TEST_ASSERT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], GP_VECTOR);

	vm_ioctl(self->vm, KVM_XEN_HVM_GET_ATTR, &mode);
	EXPECT_EQ(mode.u.long_mode, 0);
}

/* What is pending of 64-bit mode's selectors does not outlast that mode. */
TEST_F(gpc_memslot, selector_of_other_mode)
{
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_INVALID_GPA);
	xen_evtchn_send(self->vcpu, HIGH_PORT);
	xen_set_long_mode(self->vm, false);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	run(self->vcpu);
	EXPECT_EQ(self->vi->evtchn_upcall_pending, 1);

	self->vi->evtchn_upcall_pending = 0;
	run(self->vcpu);
	EXPECT_EQ(self->vi->evtchn_upcall_pending, 0);
}

/* A new time for the guest while its clock is out of reach. */
static void change_time(struct kvm_vcpu *vcpu)
{
	struct kvm_clock_data clock = { .clock = 1000000000000ULL };

	vm_ioctl(vcpu->vm, KVM_SET_CLOCK, &clock);
}

static void expect_time_arrives(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				struct pvclock_vcpu_time_info *time)
{
	struct pvclock_vcpu_time_info before = *time;

	set_region(vcpu->vm, false);
	change_time(vcpu);
	run(vcpu);
	EXPECT_EQ(memcmp(&before, time, sizeof(before)), 0);

	set_region(vcpu->vm, true);
	run(vcpu);
	EXPECT_NE(time->version, before.version);
	EXPECT_EQ(time->version % 2, 0);
	EXPECT_NE(time->system_time, before.system_time);
}

TEST_F(gpc_memslot, kvmclock)
{
	vcpu_arch_set_entry_point(self->vcpu, guest_kvmclock);
	run(self->vcpu);
	expect_time_arrives(_metadata, self->vcpu, addr_gpa2hva(self->vm, TIME_GPA));
}

/* A VMM that restores a VM may set the MSR before the memslots. */
TEST_F(gpc_memslot, kvmclock_before_memslot)
{
	struct pvclock_vcpu_time_info *time = addr_gpa2hva(self->vm, TIME_GPA);

	set_region(self->vm, false);
	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1);
	run(self->vcpu);
	EXPECT_EQ(time->version, 0);

	set_region(self->vm, true);
	run(self->vcpu);
	EXPECT_NE(time->version, 0);
	EXPECT_EQ(time->version % 2, 0);
}

/*
 * The guest moves its clock to where there is no memory: KVM writes to neither
 * place, and to the new one as soon as there is memory.
 */
TEST_F(gpc_memslot, kvmclock_moved_to_nowhere)
{
	struct pvclock_vcpu_time_info *time = addr_gpa2hva(self->vm, TIME_GPA), before;

	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1);
	run(self->vcpu);
	EXPECT_NE(time->version, 0);

	before = *time;
	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, OTHER_GPA | 1);
	change_time(self->vcpu);
	run(self->vcpu);
	EXPECT_EQ(memcmp(&before, time, sizeof(before)), 0);

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA,
				    REGION_SLOT + 1, 1, 0);
	run(self->vcpu);
	EXPECT_EQ(memcmp(&before, time, sizeof(before)), 0);
	time = addr_gpa2hva(self->vm, OTHER_GPA);
	EXPECT_NE(time->version, 0);
	EXPECT_EQ(time->version % 2, 0);
	EXPECT_NE(time->tsc_to_system_mul, 0);
}

/*
 * The page is accessible again, which no change of memslots announces: KVM
 * tries again when the vCPU is loaded the next time.
 */
TEST_F(gpc_memslot, kvmclock_page_not_accessible)
{
	struct pvclock_vcpu_time_info *time = addr_gpa2hva(self->vm, TIME_GPA), before;

	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1);
	run(self->vcpu);
	before = *time;

	TEST_ASSERT_EQ(mprotect(time, PAGE_SIZE, PROT_NONE), 0);
	change_time(self->vcpu);
	run(self->vcpu);
	TEST_ASSERT_EQ(mprotect(time, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	EXPECT_EQ(memcmp(&before, time, sizeof(before)), 0);

	run(self->vcpu);
	EXPECT_NE(time->version, before.version);
	EXPECT_EQ(time->version % 2, 0);
	EXPECT_NE(time->system_time, before.system_time);
}

TEST_F(gpc_memslot, vcpu_info_time)
{
	expect_time_arrives(_metadata, self->vcpu, &self->vi->time);
}

TEST_F(gpc_memslot, vcpu_time_info)
{
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
	run(self->vcpu);
	expect_time_arrives(_metadata, self->vcpu, addr_gpa2hva(self->vm, TIME_GPA));
}

TEST_F(gpc_memslot, runstate)
{
	struct xen_runstate *rs = addr_gpa2hva(self->vm, TIME_GPA);
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = RUNSTATE_runnable,
	};

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, TIME_GPA);
	run(self->vcpu);
	EXPECT_EQ(rs->state, RUNSTATE_running);

	set_region(self->vm, false);
	set_region(self->vm, true);
	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
	EXPECT_EQ(rs->state, RUNSTATE_runnable);
}

TEST_F(gpc_memslot, guest_stopped)
{
	struct pvclock_vcpu_time_info *time = addr_gpa2hva(self->vm, TIME_GPA);

	vcpu_arch_set_entry_point(self->vcpu, guest_kvmclock);
	run(self->vcpu);
	EXPECT_EQ(time->flags & PVCLOCK_GUEST_STOPPED, 0);

	set_region(self->vm, false);
	vcpu_ioctl(self->vcpu, KVM_KVMCLOCK_CTRL, NULL);
	run(self->vcpu);

	set_region(self->vm, true);
	run(self->vcpu);
	EXPECT_EQ(time->flags & PVCLOCK_GUEST_STOPPED, PVCLOCK_GUEST_STOPPED);
}

/* Not with Xen, where runstate tells. */
TEST(steal_time)
{
	struct kvm_steal_time *st;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u32 version;

	vm = vm_create_with_one_vcpu(&vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    REGION_PAGES, 0);
	st = addr_gpa2hva(vm, TIME_GPA);
	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(goto out, "The kernel has no sched_info");

	/* The vCPU is loaded once to set the MSR, once to run. */
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, TIME_GPA | KVM_MSR_ENABLED);
	run(vcpu);
	EXPECT_NE(st->version, 0);

	set_region(vm, false);
	version = st->version;
	run(vcpu);
	EXPECT_EQ(st->version, version);

	set_region(vm, true);
	run(vcpu);
	EXPECT_LT(version, st->version);
	EXPECT_EQ(st->version % 2, 0);

	/* Where the guest has it now. */
	version = st->version;
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, (TIME_GPA + 64) | KVM_MSR_ENABLED);
	run(vcpu);
	EXPECT_EQ(st->version, version);
	EXPECT_NE(((struct kvm_steal_time *)((char *)st + 64))->version, 0);

	/* And nowhere. */
	version = ((struct kvm_steal_time *)((char *)st + 64))->version;
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, 0);
	run(vcpu);
	EXPECT_EQ(((struct kvm_steal_time *)((char *)st + 64))->version, version);
out:
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
