// SPDX-License-Identifier: GPL-2.0-only
/*
 * The stolen time of a vCPU that another thread runs from now on, in steal time
 * and in Xen's runstate.
 *
 * Stolen is the time for which the thread of a vCPU waited for a CPU.  The
 * scheduler counts it from the start of each thread.  A VMM may have another
 * thread run a vCPU, e.g. after the vCPU was unplugged and plugged in again.
 * Stolen time must not go back then, nor grow by what the new thread has waited
 * before.  The same is true for ioctls that are called by a thread that never
 * runs the vCPU.
 */
#include <pthread.h>
#include <sched.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_task.h"
#include "xen.h"

#define AREA_GPA	0xc0000000ULL
#define AREA_SLOT	10
#define CLOCK_NS	1000000000000ULL
/*
 * For how long a thread waits for a CPU before it runs the vCPU, or in between.
 */
#define WAITED_NS	20000000ULL
/* From when the vCPU is preempted until it is entered, it is runnable, too. */
#define SLACK_NS	(WAITED_NS / 2)
#define ROUNDS		3

struct spinner {
	int cpu;
	bool stop;
};

static void *spin(void *arg)
{
	struct spinner *spinner = arg;

	pin_self_to_cpu(spinner->cpu);
	while (!READ_ONCE(spinner->stop))
		;
	return NULL;
}

/* Compete with another thread for this CPU. */
static void wait_for_cpu(u64 ns)
{
	struct spinner spinner = { .cpu = pin_self_to_any_cpu() };
	u64 end = get_run_delay() + ns;
	pthread_t thread;

	TEST_ASSERT_EQ(pthread_create(&thread, NULL, spin, &spinner), 0);
	while ((u64)get_run_delay() < end)
		;
	WRITE_ONCE(spinner.stop, true);
	pthread_join(thread, NULL);
}

/*
 * The time that a thread has waited, before and after an ioctl, and how long
 * the ioctl took.
 */
struct waited {
	u64 before;
	u64 after;
	u64 elapsed;
};

struct job {
	struct kvm_vcpu *vcpu;
	int (*fn)(struct kvm_vcpu *vcpu);
	u64 wait_ns;
	struct waited waited;
};

static struct waited call(struct kvm_vcpu *vcpu, int (*fn)(struct kvm_vcpu *vcpu))
{
	struct timespec start, elapsed;
	struct waited waited;

	waited.before = get_run_delay();
	clock_gettime(CLOCK_MONOTONIC, &start);
	TEST_ASSERT_EQ(fn(vcpu), 0);
	elapsed = timespec_elapsed(start);
	waited.after = get_run_delay();
	waited.elapsed = timespec_to_ns(elapsed);
	return waited;
}

static long do_job(void *arg)
{
	struct job *job = arg;

	if (job->wait_ns)
		wait_for_cpu(job->wait_ns);
	job->waited = call(job->vcpu, job->fn);
	return 0;
}

/* In a new thread that has waited for at least @wait_ns. */
static struct waited call_in_thread(struct kvm_vcpu *vcpu, int (*fn)(struct kvm_vcpu *vcpu),
				    u64 wait_ns)
{
	struct job job = { .vcpu = vcpu, .fn = fn, .wait_ns = wait_ns };
	struct test_task task;

	test_task_start(&task, do_job, &job);
	test_task_join(&task);
	TEST_ASSERT(job.waited.before >= wait_ns, "The thread has not waited");
	return job.waited;
}

static int run(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	return 0;
}

FIXTURE(steal_time) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct kvm_steal_time *st;
};

static int enable_steal_time(struct kvm_vcpu *vcpu)
{
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, AREA_GPA | KVM_MSR_ENABLED);
	return 0;
}

static int disable_steal_time(struct kvm_vcpu *vcpu)
{
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, 0);
	return 0;
}

FIXTURE_SETUP(steal_time)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, AREA_GPA, AREA_SLOT, 1, 0);
	self->st = addr_gpa2hva(self->vm, AREA_GPA);
	enable_steal_time(self->vcpu);
}

FIXTURE_TEARDOWN(steal_time)
{
	kvm_vm_free(self->vm);
}

/* Stolen time has grown by no less than @least and no more than @most. */
static void expect_growth(struct __test_metadata *_metadata, u64 before, u64 after, u64 least,
			  u64 most)
{
	EXPECT_LE(before, after)
		TH_LOG("Stolen time has gone back by %llu ns",
		       (unsigned long long)(before - after));
	EXPECT_LE(least, after - before)
		TH_LOG("Stolen time has grown by %llu of %llu ns",
		       (unsigned long long)(after - before), (unsigned long long)least);
	EXPECT_LE(after - before, most)
		TH_LOG("Stolen time has grown by %llu ns, in %llu ns",
		       (unsigned long long)(after - before), (unsigned long long)most);
}

/* One thread runs the vCPU all the time. */
TEST_F(steal_time, same_thread)
{
	struct waited last, now;
	u64 steal;
	int i;

	last = call(self->vcpu, run);
	for (i = 0; i < ROUNDS; i++) {
		steal = self->st->steal;
		wait_for_cpu(WAITED_NS);
		now = call(self->vcpu, run);
		expect_growth(_metadata, steal, self->st->steal, now.before - last.after,
			      now.after - last.before);
		last = now;
	}
}

/* From a thread that has waited for long, to one that has not, and back. */
TEST_F(steal_time, thread_that_waited_less)
{
	struct waited now;
	u64 steal;
	int i;

	call(self->vcpu, run);
	for (i = 0; i < ROUNDS; i++) {
		wait_for_cpu(WAITED_NS);
		call(self->vcpu, run);
		steal = self->st->steal;
		now = call_in_thread(self->vcpu, run, 0);
		expect_growth(_metadata, steal, self->st->steal, 0, now.after - now.before);

		steal = self->st->steal;
		now = call(self->vcpu, run);
		expect_growth(_metadata, steal, self->st->steal, 0, now.after - now.before);
	}
}

TEST_F(steal_time, thread_that_waited_more)
{
	struct waited now;
	u64 steal;
	int i;

	for (i = 1; i <= ROUNDS; i++) {
		steal = self->st->steal;
		now = call_in_thread(self->vcpu, run, i * WAITED_NS);
		expect_growth(_metadata, steal, self->st->steal, 0, now.after - now.before);
	}
}

/* The guest takes its CPU offline and online. */
TEST_F(steal_time, disabled_meanwhile)
{
	struct waited now;
	u64 steal;

	call(self->vcpu, run);
	wait_for_cpu(WAITED_NS);
	call(self->vcpu, run);
	disable_steal_time(self->vcpu);
	steal = self->st->steal;
	call(self->vcpu, run);

	call_in_thread(self->vcpu, enable_steal_time, 0);
	EXPECT_EQ(self->st->steal, steal);
	now = call_in_thread(self->vcpu, run, 0);
	expect_growth(_metadata, steal, self->st->steal, 0, now.after - now.before);
}

/* The MSR is set by a thread that does not run the vCPU. */
TEST_F(steal_time, set_by_other_thread)
{
	struct waited last, now;
	u64 steal;

	last = call(self->vcpu, run);
	steal = self->st->steal;
	call_in_thread(self->vcpu, enable_steal_time, WAITED_NS);
	now = call(self->vcpu, run);
	expect_growth(_metadata, steal, self->st->steal, 0, now.after - last.before);
}

FIXTURE(xen_runstate) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_runstate *rs;
};

static int set_runstate(struct kvm_vcpu *vcpu, u16 type, u64 state)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.runstate.state = state };

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static int set_running(struct kvm_vcpu *vcpu)
{
	return set_runstate(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, RUNSTATE_running);
}

static int adjust_to_running(struct kvm_vcpu *vcpu)
{
	return set_runstate(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, RUNSTATE_running);
}

/*
 * The vCPU entered its state long ago: any of that time may have been stolen.
 */
static int set_data(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA,
		.u.runstate = {
			.state = RUNSTATE_running,
			.state_entry_time = 5,
			.time_running = 5,
		},
	};

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static struct kvm_xen_vcpu_attr get_data(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	return attr;
}

static u64 runnable(struct kvm_vcpu *vcpu)
{
	return get_data(vcpu).u.runstate.time_runnable;
}

/*
 * A vCPU may be runnable in KVM_RUN for longer than its thread waits for a CPU.
 */
static u64 most_runnable(u64 waited, u64 elapsed)
{
	return max(waited, elapsed) + SLACK_NS;
}

/*
 * A vCPU that is preempted on its way out of KVM_RUN stays runnable, although
 * its thread doesn't wait for a CPU any more.
 */
static u64 runnable_so_far(struct kvm_vcpu *vcpu)
{
	if (get_data(vcpu).u.runstate.state == RUNSTATE_runnable)
		TEST_ASSERT_EQ(set_running(vcpu), 0);

	return runnable(vcpu);
}

FIXTURE_SETUP(xen_runstate)
{
	struct kvm_clock_data clock = { .clock = CLOCK_NS };

	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, AREA_GPA, AREA_SLOT, 1, 0);
	self->rs = addr_gpa2hva(self->vm, AREA_GPA);
	xen_enable(self->vm);
	xen_set_vcpu_area(self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA);
	vm_ioctl(self->vm, KVM_SET_CLOCK, &clock);
	TEST_ASSERT_EQ(set_data(self->vcpu), 0);
}

FIXTURE_TEARDOWN(xen_runstate)
{
	EXPECT_EQ(self->rs->time[RUNSTATE_runnable], runnable(self->vcpu));
	kvm_vm_free(self->vm);
}

TEST_F(xen_runstate, same_thread)
{
	struct waited last, now;
	u64 stolen;
	int i;

	last = call(self->vcpu, run);
	for (i = 0; i < ROUNDS; i++) {
		stolen = runnable_so_far(self->vcpu);
		wait_for_cpu(WAITED_NS);
		now = call(self->vcpu, run);
		expect_growth(_metadata, stolen, runnable(self->vcpu), now.before - last.after,
			      most_runnable(now.after - last.before, now.elapsed));
		last = now;
	}
}

TEST_F(xen_runstate, thread_that_waited_less)
{
	struct waited now;
	u64 stolen;
	int i;

	call(self->vcpu, run);
	for (i = 0; i < ROUNDS; i++) {
		wait_for_cpu(WAITED_NS);
		call(self->vcpu, run);
		stolen = runnable_so_far(self->vcpu);
		now = call_in_thread(self->vcpu, run, 0);
		expect_growth(_metadata, stolen, runnable(self->vcpu), 0,
			      most_runnable(now.after - now.before, now.elapsed));

		stolen = runnable_so_far(self->vcpu);
		now = call(self->vcpu, run);
		expect_growth(_metadata, stolen, runnable(self->vcpu), 0,
			      most_runnable(now.after - now.before, now.elapsed));
	}
}

TEST_F(xen_runstate, thread_that_waited_more)
{
	struct waited now;
	u64 stolen;
	int i;

	for (i = 1; i <= ROUNDS; i++) {
		stolen = runnable_so_far(self->vcpu);
		now = call_in_thread(self->vcpu, run, i * WAITED_NS);
		expect_growth(_metadata, stolen, runnable(self->vcpu), 0,
			      most_runnable(now.after - now.before, now.elapsed));
	}
}

/* Call an ioctl in a thread that never runs the vCPU. */
static void try_ioctl(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
		      int (*fn)(struct kvm_vcpu *vcpu), u64 wait_ns)
{
	struct waited last, now;
	u64 stolen;

	/* The thread of the vCPU has waited before. */
	wait_for_cpu(WAITED_NS);
	last = call(vcpu, run);
	stolen = fn == set_data ? 0 : runnable_so_far(vcpu);
	now = call_in_thread(vcpu, fn, wait_ns);
	expect_growth(_metadata, stolen, runnable(vcpu), 0,
		      most_runnable(now.after - now.before, now.elapsed));

	/* That is no time that it waits after the ioctl. */
	stolen = runnable_so_far(vcpu);
	now = call(vcpu, run);
	expect_growth(_metadata, stolen, runnable(vcpu), 0,
		      most_runnable(now.after - last.before, now.elapsed));
}

TEST_F(xen_runstate, set_by_other_thread)
{
	try_ioctl(_metadata, self->vcpu, set_running, 0);
	try_ioctl(_metadata, self->vcpu, set_running, 3 * WAITED_NS);
}

TEST_F(xen_runstate, adjusted_by_other_thread)
{
	try_ioctl(_metadata, self->vcpu, adjust_to_running, 0);
	try_ioctl(_metadata, self->vcpu, adjust_to_running, 3 * WAITED_NS);
}

TEST_F(xen_runstate, restored_by_other_thread)
{
	try_ioctl(_metadata, self->vcpu, set_data, 0);
	try_ioctl(_metadata, self->vcpu, set_data, 3 * WAITED_NS);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);

	return test_harness_run(argc, argv);
}
