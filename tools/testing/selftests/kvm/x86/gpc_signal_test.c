// SPDX-License-Identifier: GPL-2.0-only
/*
 * Signals for a vCPU whose KVM_RUN waits for a page that KVM itself needs.
 *
 * A page can be missing for long while userspace brings guest memory, e.g. in
 * post-copy migration.  To pause its vCPUs, a VMM sends their threads a signal,
 * which ends KVM_RUN if the guest waits for the page.  It must end KVM_RUN if
 * KVM itself waits, too, and KVM must write what it has not written as soon as
 * the vCPU runs with the page there.
 *
 * An ioctl other than KVM_RUN goes on to wait for the page, as the VMM does not
 * expect it to do half of its work.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "test_task.h"
#include "uffd_page.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define REGION_PAGES	8

#define SHINFO_GPA	REGION_GPA
#define VCPU_INFO_GPA	(REGION_GPA + PAGE_SIZE)
#define TIME_GPA	(REGION_GPA + 2 * PAGE_SIZE)
#define RUNSTATE_GPA	(REGION_GPA + 3 * PAGE_SIZE)
#define HCALL_PAGE_GPA	(REGION_GPA + 4 * PAGE_SIZE)
#define OTHER_GPA	(REGION_GPA + 5 * PAGE_SIZE)

#define PORT		66
#define GSI		32
#define UPCALL_VECTOR	0x30

/* Later than any guest's clock is by itself. */
#define CLOCK_NS	1000000000000ULL
#define ROUNDS		2

static void sig_handler(int sig)
{
}

static void catch_signal(void)
{
	struct sigaction sa = { .sa_handler = sig_handler };

	TEST_ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
}

static void *page_at(struct kvm_vm *vm, u64 gpa)
{
	return addr_gpa2hva(vm, gpa);
}

static void add_region(struct kvm_vm *vm)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    REGION_PAGES, 0);
}

static void set_clock(struct kvm_vcpu *vcpu)
{
	struct kvm_clock_data clock = { .clock = CLOCK_NS };

	vm_ioctl(vcpu->vm, KVM_SET_CLOCK, &clock);
}

static void send_event(struct kvm_vcpu *vcpu)
{
	xen_evtchn_send(vcpu, PORT);
}

/* In the past: the event is pending at once. */
static void set_timer(struct kvm_vcpu *vcpu)
{
	xen_set_timer(vcpu, PORT, 1);
}

/*
 * The worker leaves the event to the vCPU; deassigning the irqfd waits for
 * that.
 */
static void signal_irqfd(struct kvm_vcpu *vcpu)
{
	int fd = xen_irqfd(vcpu, GSI, PORT);

	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);
	kvm_deassign_irqfd(vcpu->vm, GSI, fd);
	close(fd);
}

static void nothing(struct kvm_vcpu *vcpu)
{
}

/* What KVM has to write to the page, which is all zeroes when it is back. */

static bool is_new_time(struct pvclock_vcpu_time_info *time)
{
	return time->version && time->version % 2 == 0 && time->system_time >= CLOCK_NS;
}

static bool has_time(struct kvm_vm *vm)
{
	return is_new_time(page_at(vm, TIME_GPA));
}

static bool has_vcpu_info_time(struct kvm_vm *vm)
{
	struct xen_vcpu_info *vi = page_at(vm, VCPU_INFO_GPA);

	return is_new_time(&vi->time);
}

static bool has_default_vcpu_info_time(struct kvm_vm *vm)
{
	struct xen_vcpu_info *vi = page_at(vm, SHINFO_GPA);

	return is_new_time(&vi->time);
}

static bool has_steal_time(struct kvm_vm *vm)
{
	struct kvm_steal_time *st = page_at(vm, TIME_GPA);

	return st->version && st->version % 2 == 0;
}

static bool has_selector(struct kvm_vm *vm)
{
	struct xen_vcpu_info *vi = page_at(vm, VCPU_INFO_GPA);

	return vi->evtchn_upcall_pending == 1 &&
	       vi->evtchn_pending_sel == BIT_ULL(PORT / 64);
}

static bool has_runstate(struct kvm_vm *vm)
{
	struct xen_runstate *rs = page_at(vm, RUNSTATE_GPA);

	return rs->state == RUNSTATE_running && rs->entry_time;
}

static bool has_event(struct kvm_vm *vm)
{
	return xen_is_pending(page_at(vm, SHINFO_GPA), PORT) && has_selector(vm);
}

/* What KVM is told to use the page for. */

static void use_kvmclock(struct kvm_vcpu *vcpu)
{
	vcpu_set_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1);
}

static void use_steal_time(struct kvm_vcpu *vcpu)
{
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, TIME_GPA | KVM_MSR_ENABLED);
}

static void set_region(struct kvm_vm *vm, bool present)
{
	struct userspace_mem_region *region = memslot2region(vm, REGION_SLOT);

	vm_set_user_memory_region(vm, REGION_SLOT, 0, REGION_GPA,
				  present ? REGION_PAGES * PAGE_SIZE : 0, region->host_mem);
}

/* The ioctl finds the area unbacked, so that KVM_RUN activates it. */
static void set_kvmclock_and_clock(struct kvm_vcpu *vcpu)
{
	set_region(vcpu->vm, false);
	use_kvmclock(vcpu);
	set_region(vcpu->vm, true);
	set_clock(vcpu);
}

static void use_xen(struct kvm_vcpu *vcpu)
{
	xen_enable(vcpu->vm);
	xen_set_shared_info(vcpu->vm, SHINFO_GPA);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
}

static void use_xen_with_vector(struct kvm_vcpu *vcpu)
{
	use_xen(vcpu);
	/* The guest has interrupts off. */
	xen_set_upcall_vector(vcpu->vm, UPCALL_VECTOR);
}

static void use_default_vcpu_info(struct kvm_vcpu *vcpu)
{
	xen_enable_default_vcpu_info(vcpu->vm);
	xen_set_vcpu_id(vcpu, 0);
	xen_set_shared_info(vcpu->vm, SHINFO_GPA);
}

static void use_time_info(struct kvm_vcpu *vcpu)
{
	use_xen(vcpu);
	xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
}

static void use_runstate(struct kvm_vcpu *vcpu)
{
	use_xen(vcpu);
	xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
}

static void use_timer(struct kvm_vcpu *vcpu)
{
	use_xen(vcpu);
	xen_set_timer(vcpu, PORT, 0);
}

/* The signals that are blocked in KVM_RUN, and there only. */
static void set_signal_mask(struct kvm_vcpu *vcpu, u64 blocked)
{
	u8 buf[sizeof(struct kvm_signal_mask) + sizeof(blocked)];
	struct kvm_signal_mask *mask = (void *)buf;

	mask->len = sizeof(blocked);
	memcpy(mask->sigset, &blocked, sizeof(blocked));
	vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, mask);
}

static void expect_interrupted(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			       struct test_task *task)
{
	EXPECT_EQ(task->ret, -1);
	EXPECT_EQ(task->err, EINTR);
	EXPECT_EQ(vcpu->run->exit_reason, KVM_EXIT_INTR);
}

/*
 * Whether the task ends by itself.  If not, bring the page that it waits for.
 */
static bool ends(struct test_task *task, int uffd, void *page)
{
	if (test_task_join_in_time(task))
		return true;

	uffd_page_bring(uffd, page);
	test_task_join(task);
	return false;
}

/* Return false if the signal did not end KVM_RUN; the page is there then. */
static bool interrupt(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, int uffd,
		      void *page)
{
	struct test_task task;

	test_task_start(&task, test_task_vcpu_run, vcpu);
	uffd_page_await(uffd, page);
	test_task_kill(&task, SIGUSR1);
	if (!ends(&task, uffd, page)) {
		EXPECT_TRUE(false)
			TH_LOG("The signal did not end KVM_RUN");
		return false;
	}

	expect_interrupted(_metadata, vcpu, &task);
	return true;
}

/* To the guest's next exit to userspace. */
static void run_to_sync(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	ASSERT_EQ(__vcpu_run(vcpu), 0);
	ASSERT_EQ(vcpu->run->exit_reason, KVM_EXIT_IO);
}

/*
 * The same, twice: KVM delivers events between two entries to the guest, and a
 * single entry may have been left before the first exit to userspace.
 */
static void run_to_write(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	run_to_sync(_metadata, vcpu);
	run_to_sync(_metadata, vcpu);
}

FIXTURE(gpc_signal) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *page;
	int uffd;
};

/* A page that KVM_RUN waits for. */
FIXTURE_VARIANT(gpc_signal) {
	u64 gpa;
	/* Before the page is taken away: what KVM is to use it for. */
	void (*use)(struct kvm_vcpu *vcpu);
	/* Afterwards: have KVM write to it when the vCPU runs next. */
	void (*request)(struct kvm_vcpu *vcpu);
	/* Whether that is done. */
	bool (*is_done)(struct kvm_vm *vm);
};

FIXTURE_VARIANT_ADD(gpc_signal, kvmclock) {
	.gpa = TIME_GPA,
	.use = use_kvmclock,
	.request = set_clock,
	.is_done = has_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, new_kvmclock) {
	.gpa = TIME_GPA,
	.use = nothing,
	.request = set_kvmclock_and_clock,
	.is_done = has_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, steal_time) {
	.gpa = TIME_GPA,
	.use = use_steal_time,
	.request = nothing,
	.is_done = has_steal_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, new_steal_time) {
	.gpa = TIME_GPA,
	.use = nothing,
	.request = use_steal_time,
	.is_done = has_steal_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, vcpu_info_time) {
	.gpa = VCPU_INFO_GPA,
	.use = use_xen,
	.request = set_clock,
	.is_done = has_vcpu_info_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, vcpu_info_event) {
	.gpa = VCPU_INFO_GPA,
	.use = use_xen,
	.request = send_event,
	.is_done = has_selector,
};

FIXTURE_VARIANT_ADD(gpc_signal, vcpu_info_upcall) {
	.gpa = VCPU_INFO_GPA,
	.use = use_xen_with_vector,
	.request = send_event,
	.is_done = has_selector,
};

FIXTURE_VARIANT_ADD(gpc_signal, default_vcpu_info_time) {
	.gpa = SHINFO_GPA,
	.use = use_default_vcpu_info,
	.request = set_clock,
	.is_done = has_default_vcpu_info_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, time_info) {
	.gpa = TIME_GPA,
	.use = use_time_info,
	.request = set_clock,
	.is_done = has_time,
};

FIXTURE_VARIANT_ADD(gpc_signal, runstate) {
	.gpa = RUNSTATE_GPA,
	.use = use_runstate,
	.request = nothing,
	.is_done = has_runstate,
};

FIXTURE_VARIANT_ADD(gpc_signal, shared_info_timer) {
	.gpa = SHINFO_GPA,
	.use = use_timer,
	.request = set_timer,
	.is_done = has_event,
};

FIXTURE_VARIANT_ADD(gpc_signal, shared_info_irqfd) {
	.gpa = SHINFO_GPA,
	.use = use_xen,
	.request = signal_irqfd,
	.is_done = has_event,
};

FIXTURE_SETUP(gpc_signal)
{
	catch_signal();
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	add_region(self->vm);
	self->page = page_at(self->vm, variant->gpa);

	variant->use(self->vcpu);
	vcpu_run(self->vcpu);
	self->uffd = uffd_page_take(self->page);
	variant->request(self->vcpu);
}

FIXTURE_TEARDOWN(gpc_signal)
{
	close(self->uffd);
	kvm_vm_free(self->vm);
}

TEST_F(gpc_signal, ends_run)
{
	int i;

	/* Each run waits anew, as the write is still requested. */
	for (i = 0; i < ROUNDS; i++) {
		if (!interrupt(_metadata, self->vcpu, self->uffd, self->page))
			return;
	}

	uffd_page_bring(self->uffd, self->page);
	run_to_write(_metadata, self->vcpu);
	EXPECT_TRUE(variant->is_done(self->vm));
}

TEST_F(gpc_signal, blocked_in_run)
{
	struct test_task task;

	set_signal_mask(self->vcpu, BIT_ULL(SIGUSR1 - 1));
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	uffd_page_await(self->uffd, self->page);

	/* The task has not been woken, nor does it wait for the second time. */
	test_task_kill(&task, SIGUSR1);
	EXPECT_TRUE(test_task_has_pending(&task, SIGUSR1));
	EXPECT_TRUE(test_task_is_asleep(&task));
	EXPECT_FALSE(uffd_page_is_wanted(self->uffd));

	uffd_page_bring(self->uffd, self->page);
	test_task_join(&task);
	EXPECT_EQ(task.ret, 0);
	EXPECT_EQ(self->vcpu->run->exit_reason, KVM_EXIT_IO);
	run_to_write(_metadata, self->vcpu);
	EXPECT_TRUE(variant->is_done(self->vm));
}

/* With a signal pending that the thread blocks and KVM_RUN unblocks. */
static long run_with_pending_signal(void *vcpu)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	TEST_ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &set, NULL), 0);
	TEST_ASSERT_EQ(pthread_kill(pthread_self(), SIGUSR1), 0);
	return __vcpu_run(vcpu);
}

TEST_F(gpc_signal, pending_before_run)
{
	struct test_task task;

	set_signal_mask(self->vcpu, 0);
	test_task_start(&task, run_with_pending_signal, self->vcpu);
	ASSERT_TRUE(ends(&task, self->uffd, self->page))
		TH_LOG("The signal did not end KVM_RUN");
	expect_interrupted(_metadata, self->vcpu, &task);

	uffd_page_bring(self->uffd, self->page);
	run_to_write(_metadata, self->vcpu);
	EXPECT_TRUE(variant->is_done(self->vm));
}

TEST_F(gpc_signal, immediate_exit)
{
	struct test_task task;

	self->vcpu->run->immediate_exit = 1;
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	ASSERT_TRUE(ends(&task, self->uffd, self->page));
	EXPECT_EQ(task.ret, -1);
	EXPECT_EQ(task.err, EINTR);
	EXPECT_FALSE(uffd_page_is_wanted(self->uffd));

	self->vcpu->run->immediate_exit = 0;
	uffd_page_bring(self->uffd, self->page);
	run_to_write(_metadata, self->vcpu);
	EXPECT_TRUE(variant->is_done(self->vm));
}

/* Instructions of the guest for which KVM needs a missing page. */

static void guest_send(void)
{
	u64 ret = xen_guest_send(PORT);

	xen_guest_exit();
	GUEST_SYNC(ret);
}

/* As seen by the guest when the hypercall returns. */
static void guest_send_and_look(void)
{
	u64 ret = xen_guest_send(PORT);

	GUEST_SYNC(ret || !xen_is_pending((void *)SHINFO_GPA, PORT));
}

static void guest_poll(void)
{
	GUEST_SYNC(xen_guest_poll(PORT, 0));
}

static void guest_kvmclock(void)
{
	GUEST_SYNC(wrmsr_safe(MSR_KVM_SYSTEM_TIME_NEW, TIME_GPA | 1));
	xen_guest_idle();
}

static bool guest_writes_msr;

static void guest_hypercall_page(void)
{
	WRITE_ONCE(guest_writes_msr, true);
	GUEST_SYNC(wrmsr_safe(XEN_HYPERCALL_MSR, HCALL_PAGE_GPA));
}

FIXTURE(gpc_signal_guest) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
	int uffd;
};

FIXTURE_SETUP(gpc_signal_guest)
{
	catch_signal();
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	add_region(self->vm);
	self->shinfo = page_at(self->vm, SHINFO_GPA);
	use_xen(self->vcpu);
	vcpu_run(self->vcpu);
	self->uffd = uffd_page_take(self->shinfo);
}

FIXTURE_TEARDOWN(gpc_signal_guest)
{
	close(self->uffd);
	kvm_vm_free(self->vm);
}

/* The guest goes on, and its instruction has succeeded. */
static void expect_success(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	run_to_sync(_metadata, vcpu);
	ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], 0);
}

TEST_F(gpc_signal_guest, send)
{
	xen_bind_evtchn(self->vcpu, PORT, 0);
	vcpu_arch_set_entry_point(self->vcpu, guest_send);
	if (!interrupt(_metadata, self->vcpu, self->uffd, self->shinfo))
		return;

	uffd_page_bring(self->uffd, self->shinfo);
	expect_success(_metadata, self->vcpu);
	EXPECT_TRUE(has_event(self->vm));
}

/* A hypercall that has succeeded has set the bit. */
TEST_F(gpc_signal_guest, send_and_look)
{
	virt_map(self->vm, SHINFO_GPA, SHINFO_GPA, 1);
	xen_bind_evtchn(self->vcpu, PORT, 0);
	vcpu_arch_set_entry_point(self->vcpu, guest_send_and_look);
	if (!interrupt(_metadata, self->vcpu, self->uffd, self->shinfo))
		return;

	uffd_page_bring(self->uffd, self->shinfo);
	expect_success(_metadata, self->vcpu);
}

/* The event is for another vCPU, which does not run. */
TEST_F(gpc_signal_guest, send_to_other)
{
	struct kvm_vcpu *other = vm_vcpu_add(self->vm, 1, xen_guest_idle);

	xen_bind_evtchn(other, PORT, 0);
	vcpu_arch_set_entry_point(self->vcpu, guest_send);
	if (!interrupt(_metadata, self->vcpu, self->uffd, self->shinfo))
		return;

	uffd_page_bring(self->uffd, self->shinfo);
	expect_success(_metadata, self->vcpu);
	vcpu_run(other);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
}

/* A poll may end early, with the port not pending. */
TEST_F(gpc_signal_guest, poll)
{
	vcpu_arch_set_entry_point(self->vcpu, guest_poll);
	if (!interrupt(_metadata, self->vcpu, self->uffd, self->shinfo))
		return;

	uffd_page_bring(self->uffd, self->shinfo);
	/* A guest that polls anew waits for this event. */
	xen_evtchn_send(self->vcpu, PORT);
	expect_success(_metadata, self->vcpu);
}

/* KVM also delivers events to a vCPU that waits for its INIT. */
TEST_F(gpc_signal_guest, not_started)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_UNINITIALIZED };

	vcpu_mp_state_set(self->vcpu, &state);
	set_timer(self->vcpu);
	if (!interrupt(_metadata, self->vcpu, self->uffd, self->shinfo))
		return;

	uffd_page_bring(self->uffd, self->shinfo);
	EXPECT_EQ(__vcpu_run(self->vcpu), -1);
	EXPECT_EQ(errno, EAGAIN);
	EXPECT_TRUE(has_event(self->vm));
}

/* The guest registers its clock in a missing page. */
TEST_F(gpc_signal_guest, kvmclock)
{
	void *page = page_at(self->vm, TIME_GPA);
	int uffd = uffd_page_take(page);

	vcpu_arch_set_entry_point(self->vcpu, guest_kvmclock);
	if (interrupt(_metadata, self->vcpu, uffd, page)) {
		set_clock(self->vcpu);
		uffd_page_bring(uffd, page);
		expect_success(_metadata, self->vcpu);
		EXPECT_TRUE(has_time(self->vm));
		EXPECT_EQ(vcpu_get_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW), TIME_GPA | 1);
	}
	close(uffd);
}

static long set_shared_info_elsewhere(void *arg)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = OTHER_GPA / PAGE_SIZE,
	};

	return __vm_ioctl((struct kvm_vm *)arg, KVM_XEN_HVM_SET_ATTR, &attr);
}

/*
 * The guest's write of the MSR changes the mode, which takes xen_lock.  An
 * ioctl of the VMM holds that lock while it waits for a missing page.
 */
TEST_F(gpc_signal_guest, hypercall_page)
{
	u8 *hcall_page = page_at(self->vm, HCALL_PAGE_GPA);
	void *other = page_at(self->vm, OTHER_GPA);
	bool *writes = addr_gva2hva(self->vm, (gva_t)&guest_writes_msr);
	struct test_task setter, runner;
	int uffd = uffd_page_take(other);
	bool in_time;

	uffd_page_bring(self->uffd, self->shinfo);
	xen_set_long_mode(self->vm, false);
	vcpu_arch_set_entry_point(self->vcpu, guest_hypercall_page);

	test_task_start(&setter, set_shared_info_elsewhere, self->vm);
	uffd_page_await(uffd, other);
	test_task_start(&runner, test_task_vcpu_run, self->vcpu);
	while (!READ_ONCE(*writes))
		sched_yield();
	test_task_await_sleep(&runner);

	test_task_kill(&runner, SIGUSR1);
	in_time = ends(&runner, uffd, other);
	EXPECT_TRUE(in_time)
		TH_LOG("The signal did not end KVM_RUN");
	if (in_time) {
		expect_interrupted(_metadata, self->vcpu, &runner);
		EXPECT_EQ(hcall_page[0], 0);
		uffd_page_bring(uffd, other);
	}
	test_task_join(&setter);
	EXPECT_EQ(setter.ret, 0);
	close(uffd);
	if (!in_time)
		return;

	expect_success(_metadata, self->vcpu);
	EXPECT_EQ(hcall_page[0], 0xb8);
	EXPECT_TRUE(xen_get_long_mode(self->vm));
}

/* Ioctls other than KVM_RUN. */

static long set_vcpu_attr(struct kvm_vcpu *vcpu, u16 type, u64 val)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.gpa = val };

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static long get_vcpu_attr(struct kvm_vcpu *vcpu, u16 type)
{
	struct kvm_xen_vcpu_attr attr = { .type = type };

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
}

static long ioctl_runstate_current(void *vcpu)
{
	return set_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, RUNSTATE_blocked);
}

static long ioctl_runstate_adjust(void *vcpu)
{
	return set_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, RUNSTATE_blocked);
}

static long ioctl_runstate_addr(void *vcpu)
{
	return set_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
}

static long ioctl_time_info(void *vcpu)
{
	return set_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
}

static long ioctl_vcpu_info(void *vcpu)
{
	return set_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, OTHER_GPA);
}

static long ioctl_get_vcpu_info(void *vcpu)
{
	return get_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO);
}

static long ioctl_get_timer(void *vcpu)
{
	return get_vcpu_attr(vcpu, KVM_XEN_VCPU_ATTR_TYPE_TIMER);
}

static long ioctl_long_mode(void *vcpu)
{
	return __xen_set_long_mode(((struct kvm_vcpu *)vcpu)->vm, false);
}

static long ioctl_shared_info(void *vcpu)
{
	return set_shared_info_elsewhere(((struct kvm_vcpu *)vcpu)->vm);
}

static long ioctl_evtchn_send(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpu, PORT);

	return __vm_ioctl(vcpu->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);
}

static long ioctl_irq_line(void *arg)
{
	struct kvm_vcpu *vcpu = arg;
	struct kvm_irq_level line = { .irq = GSI, .level = 1 };

	return __vm_ioctl(vcpu->vm, KVM_IRQ_LINE, &line);
}

static void block(struct kvm_vcpu *vcpu)
{
	TEST_ASSERT_EQ(ioctl_runstate_current(vcpu), 0);
}

/* Routes the GSI to the port. */
static void use_route(struct kvm_vcpu *vcpu)
{
	use_xen(vcpu);
	close(xen_irqfd(vcpu, GSI, PORT));
}

static bool is_blocked(struct kvm_vm *vm)
{
	struct xen_runstate *rs = page_at(vm, RUNSTATE_GPA);

	return rs->state == RUNSTATE_blocked;
}

static bool is_port_pending(struct kvm_vm *vm)
{
	return xen_is_pending(page_at(vm, SHINFO_GPA), PORT);
}

static bool has_wall_clock_32(struct kvm_vm *vm)
{
	u32 *version = page_at(vm, SHINFO_GPA) + 0x900;

	return !xen_get_long_mode(vm) && *version && *version % 2 == 0;
}

static bool has_wall_clock_64(struct kvm_vm *vm)
{
	u32 *version = page_at(vm, OTHER_GPA) + 0xc00;

	return *version && *version % 2 == 0;
}

/* KVM writes to the area only when the vCPU runs. */
static bool has_address(struct kvm_vm *vm, u16 type, u64 gpa)
{
	struct kvm_vcpu *vcpu = list_first_entry(&vm->vcpus, struct kvm_vcpu, list);
	struct kvm_xen_vcpu_attr attr = { .type = type };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	return attr.u.gpa == gpa;
}

static bool has_time_info_address(struct kvm_vm *vm)
{
	return has_address(vm, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_GPA);
}

static bool has_vcpu_info_address(struct kvm_vm *vm)
{
	return has_address(vm, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, OTHER_GPA);
}

FIXTURE(gpc_signal_ioctl) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	void *page;
	int uffd;
};

FIXTURE_VARIANT(gpc_signal_ioctl) {
	u64 gpa;
	void (*use)(struct kvm_vcpu *vcpu);
	void (*request)(struct kvm_vcpu *vcpu);
	/* An ioctl that waits for the page. */
	long (*fn)(void *vcpu);
	bool (*is_done)(struct kvm_vm *vm);
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, runstate_current) {
	.gpa = RUNSTATE_GPA,
	.use = use_runstate,
	.request = nothing,
	.fn = ioctl_runstate_current,
	.is_done = is_blocked,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, runstate_adjust) {
	.gpa = RUNSTATE_GPA,
	.use = use_runstate,
	.request = nothing,
	.fn = ioctl_runstate_adjust,
	.is_done = is_blocked,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, runstate_addr) {
	.gpa = RUNSTATE_GPA,
	.use = use_xen,
	.request = block,
	.fn = ioctl_runstate_addr,
	.is_done = is_blocked,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, time_info) {
	.gpa = TIME_GPA,
	.use = use_xen,
	.request = nothing,
	.fn = ioctl_time_info,
	.is_done = has_time_info_address,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, vcpu_info) {
	.gpa = OTHER_GPA,
	.use = use_xen,
	.request = nothing,
	.fn = ioctl_vcpu_info,
	.is_done = has_vcpu_info_address,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, get_vcpu_info) {
	.gpa = VCPU_INFO_GPA,
	.use = use_xen,
	.request = send_event,
	.fn = ioctl_get_vcpu_info,
	.is_done = has_selector,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, get_timer) {
	.gpa = SHINFO_GPA,
	.use = use_timer,
	.request = set_timer,
	.fn = ioctl_get_timer,
	.is_done = has_event,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, long_mode) {
	.gpa = SHINFO_GPA,
	.use = use_xen,
	.request = nothing,
	.fn = ioctl_long_mode,
	.is_done = has_wall_clock_32,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, shared_info) {
	.gpa = OTHER_GPA,
	.use = use_xen,
	.request = nothing,
	.fn = ioctl_shared_info,
	.is_done = has_wall_clock_64,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, evtchn_send) {
	.gpa = SHINFO_GPA,
	.use = use_xen,
	.request = nothing,
	.fn = ioctl_evtchn_send,
	.is_done = is_port_pending,
};

FIXTURE_VARIANT_ADD(gpc_signal_ioctl, irq_line) {
	.gpa = SHINFO_GPA,
	.use = use_route,
	.request = nothing,
	.fn = ioctl_irq_line,
	.is_done = is_port_pending,
};

FIXTURE_SETUP(gpc_signal_ioctl)
{
	catch_signal();
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	add_region(self->vm);
	self->page = page_at(self->vm, variant->gpa);

	variant->use(self->vcpu);
	vcpu_run(self->vcpu);
	self->uffd = uffd_page_take(self->page);
	variant->request(self->vcpu);
}

FIXTURE_TEARDOWN(gpc_signal_ioctl)
{
	close(self->uffd);
	kvm_vm_free(self->vm);
}

TEST_F(gpc_signal_ioctl, goes_on)
{
	struct test_task task;

	test_task_start(&task, variant->fn, self->vcpu);
	uffd_page_await(self->uffd, self->page);
	test_task_kill(&task, SIGUSR1);

	/*
	 * The signal is delivered when the system call ends, which it has not.
	 */
	EXPECT_TRUE(test_task_has_pending(&task, SIGUSR1));
	EXPECT_TRUE(test_task_is_asleep(&task));
	EXPECT_FALSE(uffd_page_is_wanted(self->uffd));

	uffd_page_bring(self->uffd, self->page);
	test_task_join(&task);
	EXPECT_EQ(task.ret, 0);
	EXPECT_TRUE(variant->is_done(self->vm));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME));

	return test_harness_run(argc, argv);
}
