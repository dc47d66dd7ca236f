// SPDX-License-Identifier: GPL-2.0-only
/*
 * Xen's timers, and timeouts of SCHEDOP_poll, when userspace sets the guest's
 * clock.
 *
 * Both are times of the guest's clock.  A timer expires by the new clock,
 * whether the timer is set before KVM_SET_CLOCK or after it, and by the guest
 * or by userspace.
 *
 * The clock is moved by an hour, so that a timer that expires by the old clock
 * is either early by the guest's clock, or leaves its vCPU asleep for good.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "processor.h"
#include "vcpu_thread.h"
#include "xen.h"

#include <asm/pvclock.h>

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define REGION_PAGES	4
#define SHINFO_GPA	REGION_GPA
#define VCPU_INFO_GPA	(REGION_GPA + PAGE_SIZE)
#define TIME_INFO_GPA	(REGION_GPA + 2 * PAGE_SIZE)
#define KVMCLOCK_GPA	(REGION_GPA + 3 * PAGE_SIZE)
#define XEN_TIME_GPA(info_gpa)	((info_gpa) + offsetof(struct xen_vcpu_info, time))

/* Each port is in a word of its own. */
#define PORT		66
#define WITNESS_PORT	130
#define PORT_OF(i)	(194 + 64 * (i))
#define NR_OTHERS	3
#define UPCALL_VECTOR	0x30

#define HOUR_NS		(3600 * NSEC_PER_SEC)
/* What the guest's clock shows at first. */
#define START_NS	(10 * HOUR_NS)
/* Longer than it takes to set a timer once the clock was set... */
#define SOON_NS		200000000
/* ... or to set the clock once the vCPU sleeps with its timer set. */
#define LATER_NS	(2 * NSEC_PER_SEC)
/* Timers run by the host's clock, which may differ by that much. */
#define EARLY_NS	1000000

/* The time that is left of a timer in a race. */
#define RACE_NS		200000
#define RACES		400
#define RACES_1CPU	40
/* By how many rounds of an empty loop each race starts later. */
#define RACE_STEP	50

/* The guest */

enum arm_by {
	BY_ATTR,
	BY_SET_TIMER_OP,
	BY_SINGLESHOT_TIMER,
};

static enum arm_by arm_by;
static u64 expires;
static u64 time_gpa;
static u64 woken_at;
/* Rather than halt, the guest exits over and over. */
static bool busy;

static u64 guest_now(void)
{
	struct pvclock_vcpu_time_info *time = (void *)time_gpa;
	u32 version;
	u64 now;

	do {
		version = READ_ONCE(time->version);
		/* The version before the time... */
		rmb();
		now = __pvclock_read_cycles(time, rdtsc());
		/* ... and after it. */
		rmb();
	} while (version % 2 || version != READ_ONCE(time->version));

	return now;
}

static void guest_upcall(struct ex_regs *regs)
{
	struct xen_shared_info *shinfo = (void *)SHINFO_GPA;
	struct xen_vcpu_info *vi = (void *)VCPU_INFO_GPA;

	if (!vi->evtchn_upcall_pending)
		return;

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	WRITE_ONCE(vi->evtchn_pending_sel, 0);
	WRITE_ONCE(shinfo->evtchn_pending[PORT / 64], 0);
	woken_at = guest_now();
}

static void guest_wait(void)
{
	if (!busy) {
		asm volatile("sti; hlt; cli" ::: "memory");
		return;
	}

	sti_nop();
	xen_guest_exit();
	cli();
}

static void guest_halt(void)
{
	/* The vCPU has the guest's clock from now on. */
	GUEST_SYNC(0);
	for (;;) {
		woken_at = 0;
		if (arm_by == BY_SET_TIMER_OP)
			GUEST_ASSERT_EQ(xen_guest_set_timer(expires), 0);
		else if (arm_by == BY_SINGLESHOT_TIMER)
			GUEST_ASSERT_EQ(xen_guest_set_singleshot_timer(0, expires), 0);

		while (!READ_ONCE(woken_at))
			guest_wait();
		GUEST_SYNC(woken_at);
	}
}

static void guest_await(u32 port)
{
	while (!xen_is_pending((void *)SHINFO_GPA, port))
		xen_guest_poll(port, 0);
}

static void guest_poll(void)
{
	guest_await(PORT);
	GUEST_SYNC(guest_now());
}

static void guest_run_and_poll(void)
{
	GUEST_SYNC(0);
	guest_poll();
}

static void guest_witness(void)
{
	for (;;) {
		guest_await(WITNESS_PORT);
		GUEST_SYNC(0);
	}
}

static void guest_await_others(void)
{
	int i;

	for (i = 0; i < NR_OTHERS; i++) {
		guest_await(PORT_OF(i));
		GUEST_SYNC(guest_now());
	}
}

/* A poll may end early. */
static void guest_time_out(void)
{
	while (guest_now() < expires)
		xen_guest_poll(PORT, expires);
	GUEST_SYNC(guest_now());
}

/* The host */

static void set_arm_by(struct kvm_vm *vm, enum arm_by by)
{
	arm_by = by;
	sync_global_to_guest(vm, arm_by);
}

static void set_expires(struct kvm_vm *vm, u64 when)
{
	expires = when;
	sync_global_to_guest(vm, expires);
}

static void set_time_gpa(struct kvm_vm *vm, u64 gpa)
{
	time_gpa = gpa;
	sync_global_to_guest(vm, time_gpa);
}

static void run(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_SYNC);
}

/* The vCPU's areas are not registered yet. */
static struct kvm_vm *create_vm(struct kvm_vcpu **vcpu, void *code)
{
	struct kvm_vm *vm = vm_create_with_one_vcpu(vcpu, code);

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    REGION_PAGES, 0);
	virt_map(vm, REGION_GPA, REGION_GPA, REGION_PAGES);
	vm_install_exception_handler(vm, UPCALL_VECTOR, guest_upcall);
	xen_set_clock(vm, START_NS);
	return vm;
}

static void set_up_xen(struct kvm_vm *vm)
{
	xen_enable(vm);
	xen_set_shared_info(vm, SHINFO_GPA);
	xen_set_upcall_vector(vm, UPCALL_VECTOR);
}

/* The timer has its port, and is not set. */
static void set_up_vcpu(struct kvm_vcpu *vcpu)
{
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
	xen_set_vcpu_id(vcpu, 0);
	xen_set_timer(vcpu, PORT, 0);
	set_time_gpa(vcpu->vm, XEN_TIME_GPA(VCPU_INFO_GPA));
}

static struct kvm_vcpu *add_vcpu(struct kvm_vm *vm, u32 id, void *code)
{
	struct kvm_vcpu *vcpu = vm_vcpu_add(vm, id, code);

	xen_set_vcpu_id(vcpu, id);
	return vcpu;
}

/* Wait for a time of the clock by the timer of yet another vCPU. */
static void await_clock(struct kvm_vcpu *witness, u64 when)
{
	struct xen_shared_info *shinfo = addr_gpa2hva(witness->vm, SHINFO_GPA);

	WRITE_ONCE(shinfo->evtchn_pending[WITNESS_PORT / 64], 0);
	xen_set_timer(witness, WITNESS_PORT, when);
	run(witness);
}

static void expect_not_early(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u64 when)
{
	struct ucall uc;

	EXPECT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	EXPECT_GE(uc.args[1] + EARLY_NS, when)
		TH_LOG("The timer was early by %lld ms", (long long)(when - uc.args[1]) / 1000000);
}

/* By the clock, the timer expires before long, or has expired. */
static void expect_wakeup(struct __test_metadata *_metadata, struct vcpu_thread *thread,
			  u64 when)
{
	ASSERT_TRUE(vcpu_thread_finish(thread))
		TH_LOG("The timer does not expire, the vCPU sleeps on");
	expect_not_early(_metadata, thread->vcpu, when);
}

/* Timers set after the clock, with the guest's clock in different areas. */
FIXTURE(xen_timer_after_clock) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
};

FIXTURE_VARIANT(xen_timer_after_clock) {
	bool default_vcpu_info;
	bool vcpu_info;
	bool time_info;
};

FIXTURE_VARIANT_ADD(xen_timer_after_clock, no_area) { };
FIXTURE_VARIANT_ADD(xen_timer_after_clock, default_vcpu_info) { .default_vcpu_info = true };
FIXTURE_VARIANT_ADD(xen_timer_after_clock, vcpu_info) { .vcpu_info = true };
FIXTURE_VARIANT_ADD(xen_timer_after_clock, time_info) { .time_info = true };
FIXTURE_VARIANT_ADD(xen_timer_after_clock, both) { .vcpu_info = true, .time_info = true };

FIXTURE_SETUP(xen_timer_after_clock)
{
	self->vm = create_vm(&self->vcpu, guest_run_and_poll);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	set_up_xen(self->vm);
	if (variant->default_vcpu_info)
		xen_enable_default_vcpu_info(self->vm);
	xen_set_vcpu_id(self->vcpu, 0);

	vcpu_set_msr(self->vcpu, MSR_KVM_SYSTEM_TIME_NEW, KVMCLOCK_GPA | KVM_MSR_ENABLED);
	set_time_gpa(self->vm, KVMCLOCK_GPA);
	if (variant->default_vcpu_info)
		set_time_gpa(self->vm, XEN_TIME_GPA(SHINFO_GPA));
	if (variant->time_info) {
		xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
				  TIME_INFO_GPA);
		set_time_gpa(self->vm, TIME_INFO_GPA);
	}
	if (variant->vcpu_info) {
		xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
		set_time_gpa(self->vm, XEN_TIME_GPA(VCPU_INFO_GPA));
	}
}

FIXTURE_TEARDOWN(xen_timer_after_clock)
{
	kvm_vm_free(self->vm);
}

/* The areas have the old clock until the vCPU runs. */
static void expect_timer_by_new_clock(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	struct vcpu_thread thread;
	u64 when;

	xen_set_clock(vcpu->vm, xen_get_clock(vcpu->vm) + HOUR_NS);
	when = xen_get_clock(vcpu->vm) + SOON_NS;
	xen_set_timer(vcpu, PORT, when);
	vcpu_thread_start(&thread, vcpu);
	expect_wakeup(_metadata, &thread, when);
}

TEST_F(xen_timer_after_clock, forward)
{
	run(self->vcpu);
	expect_timer_by_new_clock(_metadata, self->vcpu);
}

TEST_F(xen_timer_after_clock, forward_twice)
{
	run(self->vcpu);
	xen_set_clock(self->vm, xen_get_clock(self->vm) + HOUR_NS);
	expect_timer_by_new_clock(_metadata, self->vcpu);
}

TEST_F(xen_timer_after_clock, forward_never_run)
{
	vcpu_arch_set_entry_point(self->vcpu, guest_poll);
	expect_timer_by_new_clock(_metadata, self->vcpu);
}

static void expect_timer_is_set(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u64 when)
{
	xen_set_timer(vcpu, PORT, when);
	EXPECT_FALSE(xen_is_pending(addr_gpa2hva(vcpu->vm, SHINFO_GPA), PORT))
		TH_LOG("The timer expires by the old clock");
	EXPECT_EQ(xen_timer_expires(vcpu), when);
}

/* By the old clock, the timer has expired. */
TEST_F(xen_timer_after_clock, backward)
{
	run(self->vcpu);
	xen_set_clock(self->vm, xen_get_clock(self->vm) - HOUR_NS);
	expect_timer_is_set(_metadata, self->vcpu, xen_get_clock(self->vm) + HOUR_NS / 2);
}

TEST_F(xen_timer_after_clock, backward_never_run)
{
	xen_set_clock(self->vm, xen_get_clock(self->vm) - HOUR_NS);
	expect_timer_is_set(_metadata, self->vcpu, xen_get_clock(self->vm) + HOUR_NS / 2);
}

/* Timers set before the clock.  Nothing else wakes the vCPU. */
struct halted {
	struct kvm_vcpu *vcpu;
	struct kvm_vcpu *witness;
	struct kvm_vm *vm;
	struct vcpu_thread thread;
};

FIXTURE(xen_timer_before_clock) {
	struct halted halted;
};

FIXTURE_VARIANT(xen_timer_before_clock) {
	enum arm_by arm_by;
};

FIXTURE_VARIANT_ADD(xen_timer_before_clock, attr) { BY_ATTR };
FIXTURE_VARIANT_ADD(xen_timer_before_clock, set_timer_op) { BY_SET_TIMER_OP };
FIXTURE_VARIANT_ADD(xen_timer_before_clock, singleshot_timer) { BY_SINGLESHOT_TIMER };

FIXTURE_SETUP(xen_timer_before_clock)
{
	self->halted.vm = create_vm(&self->halted.vcpu, guest_halt);
	set_up_xen(self->halted.vm);
	set_up_vcpu(self->halted.vcpu);
	set_arm_by(self->halted.vm, variant->arm_by);
	self->halted.witness = add_vcpu(self->halted.vm, 1, guest_witness);
	run(self->halted.vcpu);
}

FIXTURE_TEARDOWN(xen_timer_before_clock)
{
	kvm_vm_free(self->halted.vm);
}

static void halt_until(struct __test_metadata *_metadata, struct halted *halted, u64 when)
{
	set_expires(halted->vm, when);
	if (arm_by == BY_ATTR)
		xen_set_timer(halted->vcpu, PORT, when);
	vcpu_thread_start(&halted->thread, halted->vcpu);
	ASSERT_TRUE(vcpu_thread_rests(&halted->thread));
}

TEST_F(xen_timer_before_clock, forward)
{
	u64 when = START_NS + HOUR_NS;

	halt_until(_metadata, &self->halted, when);
	xen_set_clock(self->halted.vm, when - SOON_NS);
	expect_wakeup(_metadata, &self->halted.thread, when);
	EXPECT_EQ(xen_timer_expires(self->halted.vcpu), 0);
}

/* By the new clock, the timer has expired. */
TEST_F(xen_timer_before_clock, beyond)
{
	u64 when = START_NS + HOUR_NS;

	halt_until(_metadata, &self->halted, when);
	xen_set_clock(self->halted.vm, when + HOUR_NS);
	expect_wakeup(_metadata, &self->halted.thread, when);
	EXPECT_EQ(xen_timer_expires(self->halted.vcpu), 0);
}

/* Wait until the timer would have expired by the old clock. */
TEST_F(xen_timer_before_clock, backward)
{
	u64 when = xen_get_clock(self->halted.vm) + LATER_NS;

	halt_until(_metadata, &self->halted, when);
	xen_set_clock(self->halted.vm, when - HOUR_NS);
	await_clock(self->halted.witness, when - HOUR_NS + LATER_NS + SOON_NS);
	xen_set_clock(self->halted.vm, when - SOON_NS);
	expect_wakeup(_metadata, &self->halted.thread, when);
}

static void *set_timer(void *vcpu)
{
	xen_set_timer(vcpu, PORT, expires);
	return NULL;
}

static void start_to_set_timer(struct halted *halted, pthread_t *setter)
{
	if (arm_by == BY_ATTR)
		TEST_ASSERT_EQ(pthread_create(setter, NULL, set_timer, halted->vcpu), 0);
	else
		vcpu_thread_start(&halted->thread, halted->vcpu);
}

static bool finish_with_timer(struct halted *halted, pthread_t setter)
{
	if (arm_by == BY_ATTR) {
		pthread_join(setter, NULL);
		vcpu_thread_start(&halted->thread, halted->vcpu);
	}
	return vcpu_thread_finish(&halted->thread);
}

static int nr_races(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN) == 1 ? RACES_1CPU : RACES;
}

static void delay(int rounds)
{
	while (rounds--)
		barrier();
}

/*
 * The timer and the clock are set at the same time.  In either order, the timer
 * has expired by the new clock.
 */
TEST_F(xen_timer_before_clock, race)
{
	u64 start = START_NS;
	pthread_t setter;
	int i;

	for (i = 0; i < nr_races(); i++, start += HOUR_NS) {
		set_expires(self->halted.vm, start + HOUR_NS / 2);
		start_to_set_timer(&self->halted, &setter);
		delay(i * RACE_STEP);
		xen_set_clock(self->halted.vm, start + HOUR_NS);
		ASSERT_TRUE(finish_with_timer(&self->halted, setter))
			TH_LOG("The timer does not expire in race %d", i);
		expect_not_early(_metadata, self->halted.vcpu, expires);
	}
}

/*
 * The vCPU exits over and over, i.e.  can start its timer by the new clock at
 * any moment.  The timer has yet to expire by then.
 */
TEST_F(xen_timer_before_clock, race_with_exits)
{
	struct kvm_vcpu *vcpu = self->halted.vcpu;
	u64 start = START_NS;
	int i;

	busy = true;
	sync_global_to_guest(self->halted.vm, busy);
	for (i = 0; i < nr_races(); i++, start += HOUR_NS) {
		set_expires(self->halted.vm, start + HOUR_NS);
		if (arm_by == BY_ATTR)
			xen_set_timer(vcpu, PORT, expires);
		vcpu_thread_start(&self->halted.thread, vcpu);
		delay(i * RACE_STEP);
		xen_set_clock(self->halted.vm, expires - RACE_NS);
		ASSERT_TRUE(vcpu_thread_finish(&self->halted.thread))
			TH_LOG("The timer does not expire in race %d", i);
		expect_not_early(_metadata, vcpu, expires);
	}
}

/*
 * Timers of vCPUs that do not run.  Once the clock was set, each vCPU enters
 * KVM_RUN for a moment, and that starts its timer by the new clock.
 */
struct idle {
	struct kvm_vcpu *poller;
	struct kvm_vcpu *witness;
	struct kvm_vcpu *others[NR_OTHERS];
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
};

FIXTURE(xen_timer_not_run) {
	struct idle idle;
};

FIXTURE_SETUP(xen_timer_not_run)
{
	int i;

	self->idle.vm = create_vm(&self->idle.poller, guest_await_others);
	self->idle.shinfo = addr_gpa2hva(self->idle.vm, SHINFO_GPA);
	set_up_xen(self->idle.vm);
	set_up_vcpu(self->idle.poller);
	self->idle.witness = add_vcpu(self->idle.vm, 1, guest_witness);
	for (i = 0; i < NR_OTHERS; i++)
		self->idle.others[i] = add_vcpu(self->idle.vm, 2 + i, xen_guest_idle);
}

FIXTURE_TEARDOWN(xen_timer_not_run)
{
	kvm_vm_free(self->idle.vm);
}

static void set_others(struct idle *idle, u64 when)
{
	int i;

	for (i = 0; i < NR_OTHERS; i++)
		xen_set_timer(idle->others[i], PORT_OF(i), when + i * SOON_NS);
}

static void enter_others(struct idle *idle)
{
	int i;

	for (i = 0; i < NR_OTHERS; i++)
		run(idle->others[i]);
}

/* One after the other. */
static void expect_others(struct __test_metadata *_metadata, struct idle *idle, u64 when)
{
	struct vcpu_thread thread;
	int i;

	for (i = 0; i < NR_OTHERS; i++) {
		vcpu_thread_start(&thread, idle->poller);
		expect_wakeup(_metadata, &thread, when + i * SOON_NS);
		EXPECT_EQ(xen_timer_expires(idle->others[i]), 0);
	}
}

TEST_F(xen_timer_not_run, forward)
{
	u64 when = START_NS + HOUR_NS;

	set_others(&self->idle, when);
	xen_set_clock(self->idle.vm, when - SOON_NS);
	enter_others(&self->idle);
	expect_others(_metadata, &self->idle, when);
}

TEST_F(xen_timer_not_run, backward)
{
	u64 when = xen_get_clock(self->idle.vm) + LATER_NS;
	int i;

	set_others(&self->idle, when);
	xen_set_clock(self->idle.vm, when - HOUR_NS);
	enter_others(&self->idle);
	await_clock(self->idle.witness, when - HOUR_NS + LATER_NS + NR_OTHERS * SOON_NS);
	for (i = 0; i < NR_OTHERS; i++) {
		EXPECT_FALSE(xen_is_pending(self->idle.shinfo, PORT_OF(i)))
			TH_LOG("Timer %d expires by the old clock", i);
		EXPECT_EQ(xen_timer_expires(self->idle.others[i]), when + i * SOON_NS);
	}
	xen_set_clock(self->idle.vm, when - SOON_NS);
	enter_others(&self->idle);
	expect_others(_metadata, &self->idle, when);
}

TEST_F(xen_timer_not_run, backward_and_forward)
{
	u64 when = START_NS + HOUR_NS;
	int i;

	set_others(&self->idle, when);
	xen_set_clock(self->idle.vm, START_NS - HOUR_NS);
	for (i = 0; i < NR_OTHERS; i++)
		EXPECT_EQ(xen_timer_expires(self->idle.others[i]), when + i * SOON_NS);
	xen_set_clock(self->idle.vm, when - SOON_NS);
	enter_others(&self->idle);
	expect_others(_metadata, &self->idle, when);
}

/* Reading the attribute starts the timer, too. */
TEST_F(xen_timer_not_run, read)
{
	u64 when = START_NS + HOUR_NS;
	int i;

	set_others(&self->idle, when);
	xen_set_clock(self->idle.vm, when - SOON_NS);
	for (i = 0; i < NR_OTHERS; i++)
		xen_timer_expires(self->idle.others[i]);
	expect_others(_metadata, &self->idle, when);
}

/* KVM_SET_CLOCK does not start timers that have expired or were stopped. */
TEST_F(xen_timer_not_run, expired_and_stopped)
{
	struct kvm_vcpu *expired = self->idle.others[0], *stopped = self->idle.others[1];
	struct kvm_vcpu *disabled = self->idle.others[2];
	int i;

	xen_set_timer(expired, PORT_OF(0), START_NS);
	EXPECT_TRUE(xen_is_pending(self->idle.shinfo, PORT_OF(0)));
	self->idle.shinfo->evtchn_pending[PORT_OF(0) / 64] = 0;
	xen_set_timer(stopped, PORT_OF(1), START_NS + HOUR_NS);
	xen_set_timer(stopped, PORT_OF(1), 0);
	xen_set_timer(disabled, PORT_OF(2), START_NS + HOUR_NS);
	xen_set_timer(disabled, 0, 0);

	xen_set_clock(self->idle.vm, START_NS - HOUR_NS);
	xen_set_clock(self->idle.vm, START_NS + 2 * HOUR_NS);
	enter_others(&self->idle);
	await_clock(self->idle.witness, START_NS + 2 * HOUR_NS + SOON_NS);
	for (i = 0; i < NR_OTHERS; i++) {
		EXPECT_FALSE(xen_is_pending(self->idle.shinfo, PORT_OF(i)));
		EXPECT_EQ(xen_timer_expires(self->idle.others[i]), 0);
	}
}

/* A timer has expired, and its event is deferred. */
TEST_F(xen_timer_not_run, deferred)
{
	struct kvm_vcpu *vcpu = self->idle.others[0];

	TEST_ASSERT_EQ(mprotect(self->idle.shinfo, PAGE_SIZE, PROT_NONE), 0);
	xen_set_timer(vcpu, PORT_OF(0), START_NS);
	xen_set_clock(self->idle.vm, START_NS + HOUR_NS);
	TEST_ASSERT_EQ(mprotect(self->idle.shinfo, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);

	/* Reading the attribute delivers the event. */
	EXPECT_EQ(xen_timer_expires(vcpu), 0);
	EXPECT_TRUE(xen_is_pending(self->idle.shinfo, PORT_OF(0)));
}

/* A guest that sleeps until its timer expires moves to another VM. */
FIXTURE(xen_timer_migrated) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_VARIANT(xen_timer_migrated) {
	/* As QEMU does, which sets the clock when the VM is started. */
	bool clock_last;
	bool time_info;
};

FIXTURE_VARIANT_ADD(xen_timer_migrated, clock_first) { };
FIXTURE_VARIANT_ADD(xen_timer_migrated, clock_first_time_info) { .time_info = true };
FIXTURE_VARIANT_ADD(xen_timer_migrated, clock_last) { .clock_last = true };
FIXTURE_VARIANT_ADD(xen_timer_migrated, clock_last_time_info) {
	.clock_last = true, .time_info = true,
};

static void set_up_migrated(struct kvm_vcpu *vcpu, bool time_info)
{
	set_up_xen(vcpu->vm);
	set_up_vcpu(vcpu);
	if (time_info)
		xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, TIME_INFO_GPA);
}

FIXTURE_SETUP(xen_timer_migrated)
{
	self->vm = create_vm(&self->vcpu, guest_halt);
	set_up_migrated(self->vcpu, variant->time_info);
	set_arm_by(self->vm, BY_SET_TIMER_OP);
}

FIXTURE_TEARDOWN(xen_timer_migrated)
{
	kvm_vm_free(self->vm);
}

TEST_F(xen_timer_migrated, halted)
{
	u64 when = START_NS + HOUR_NS;
	struct kvm_x86_state *state;
	struct vcpu_thread thread;

	set_expires(self->vm, when);
	run(self->vcpu);
	vcpu_thread_start(&thread, self->vcpu);
	ASSERT_TRUE(vcpu_thread_rests(&thread));
	vcpu_thread_stop(&thread);
	state = vcpu_save_state(self->vcpu);
	EXPECT_EQ(state->mp_state.mp_state, KVM_MP_STATE_HALTED);
	EXPECT_EQ(xen_timer_expires(self->vcpu), when);
	kvm_vm_release(self->vm);

	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
	if (!variant->clock_last)
		xen_set_clock(self->vm, when - SOON_NS);
	vcpu_load_state(self->vcpu, state);
	set_up_migrated(self->vcpu, variant->time_info);
	xen_set_timer(self->vcpu, PORT, when);
	if (variant->clock_last)
		xen_set_clock(self->vm, when - SOON_NS);
	kvm_x86_state_cleanup(state);

	vcpu_thread_start(&thread, self->vcpu);
	expect_wakeup(_metadata, &thread, when);
}

/* SCHEDOP_poll's timeout is a time of the guest's clock, too. */
FIXTURE(xen_timer_poll) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct vcpu_thread thread;
};

FIXTURE_SETUP(xen_timer_poll)
{
	self->vm = create_vm(&self->vcpu, guest_time_out);
	set_up_xen(self->vm);
	set_up_vcpu(self->vcpu);
	set_expires(self->vm, START_NS + HOUR_NS);
	/* The guest reads its clock first. */
	vcpu_thread_start(&self->thread, self->vcpu);
	ASSERT_TRUE(vcpu_thread_rests(&self->thread));
}

FIXTURE_TEARDOWN(xen_timer_poll)
{
	kvm_vm_free(self->vm);
}

TEST_F(xen_timer_poll, forward)
{
	xen_set_clock(self->vm, START_NS + HOUR_NS - SOON_NS);
	expect_wakeup(_metadata, &self->thread, START_NS + HOUR_NS);
}

TEST_F(xen_timer_poll, beyond)
{
	xen_set_clock(self->vm, START_NS + 2 * HOUR_NS);
	expect_wakeup(_metadata, &self->thread, START_NS + HOUR_NS);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
