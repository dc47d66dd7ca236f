// SPDX-License-Identifier: GPL-2.0-only
/*
 * The steal time of a vCPU that is preempted.
 *
 * KVM writes it in two places: when the vCPU is scheduled out, where it must not wait
 * for anything ("preempted"), and before it enters the guest again, where it waits for
 * the page if that is missing, e.g. as post-copy migration has not brought it yet.
 *
 * The main thread and the vCPU's are pinned to one CPU.  So whenever the main thread
 * runs, the vCPU does not, and what KVM wrote when that was scheduled out is there.
 * preemption_reported counts how often that hit the vCPU in guest mode.
 */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"

#define ST_GPA		0xc0000000ULL
#define ST_SLOT		10
#define ROUNDS		10
/* "preempted" is a hint, and other tasks than the main thread may preempt the vCPU. */
#define MANY		100
#define TIMEOUT_MS	10000

struct guest_state {
	u64 beat;
	bool look;
	bool stop;
};

static struct guest_state guest_state;

static void guest_code(void)
{
	struct kvm_steal_time *st = (void *)ST_GPA;
	struct guest_state *gs = &guest_state;

	while (!READ_ONCE(gs->stop)) {
		if (READ_ONCE(gs->look))
			GUEST_ASSERT_EQ(READ_ONCE(st->preempted), 0);
		WRITE_ONCE(gs->beat, gs->beat + 1);
	}
	GUEST_DONE();
}

FIXTURE(gpc_steal_time) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct kvm_steal_time *st;
	struct guest_state *gs;
	pthread_t thread;
	pid_t tid;
	u64 run_delay;
	int cpu, uffd;
};

static void *run_vcpu(void *arg)
{
	FIXTURE_DATA(gpc_steal_time) *self = arg;
	struct ucall uc;

	self->tid = kvm_gettid();
	vcpu_run(self->vcpu);
	if (get_ucall(self->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	self->run_delay = get_run_delay();
	return NULL;
}

FIXTURE_SETUP(gpc_steal_time)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, ST_GPA, ST_SLOT, 1, 0);
	virt_map(self->vm, ST_GPA, ST_GPA, 1);
	self->st = addr_gpa2hva(self->vm, ST_GPA);
	memset(self->st, 0, sizeof(*self->st));
	self->gs = addr_gva2hva(self->vm, (gva_t)&guest_state);
	vcpu_set_msr(self->vcpu, MSR_KVM_STEAL_TIME, ST_GPA | KVM_MSR_ENABLED);

	self->uffd = -1;
	self->cpu = pin_self_to_any_cpu();
	kvm_pthread_create(&self->thread, NULL, run_vcpu, self);
}

FIXTURE_TEARDOWN(gpc_steal_time)
{
	/* Nobody waits for a page then. */
	if (self->uffd >= 0)
		close(self->uffd);

	WRITE_ONCE(self->gs->stop, true);
	kvm_pthread_join(self->thread, NULL);

	/* To return to userspace is not to be preempted. */
	EXPECT_EQ(self->st->preempted, 0);
	if (self->uffd < 0)
		EXPECT_LE(self->st->steal, self->run_delay);
	kvm_vm_free(self->vm);
}

static u64 nr_preempted(FIXTURE_DATA(gpc_steal_time) *self)
{
	return vcpu_get_stat(self->vcpu, preemption_reported);
}

/* Whether it gets to be, in what the guest has.  If so, the vCPU does not run now. */
static bool is_preempted(FIXTURE_DATA(gpc_steal_time) *self)
{
	u64 end = nr_preempted(self) + MANY;

	while (!(READ_ONCE(self->st->preempted) & KVM_VCPU_PREEMPTED)) {
		if (nr_preempted(self) >= end)
			return false;
		sched_yield();
	}

	return true;
}

/* Somewhere in its loop, the guest has to begin twice to go through all of it. */
static void let_guest_run(FIXTURE_DATA(gpc_steal_time) *self)
{
	u64 end = READ_ONCE(self->gs->beat) + 2;

	while (READ_ONCE(self->gs->beat) < end)
		sched_yield();
}

static void let_guest_look(FIXTURE_DATA(gpc_steal_time) *self)
{
	WRITE_ONCE(self->gs->look, true);
	let_guest_run(self);
	WRITE_ONCE(self->gs->look, false);
	let_guest_run(self);
}

TEST_F(gpc_steal_time, preempted)
{
	struct kvm_steal_time before;
	int i;

	WRITE_ONCE(self->gs->look, true);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_TRUE(is_preempted(self))
			TH_LOG("%d times in guest mode, the guest's memory never said so", MANY);
		before = *self->st;
		let_guest_run(self);
		EXPECT_LT(before.version, self->st->version);
		EXPECT_EQ(self->st->version % 2, 0);
		EXPECT_LT(before.steal, self->st->steal);
	}
}

static bool open_uffd(FIXTURE_DATA(gpc_steal_time) *self)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID };
	struct uffdio_register reg = {
		.range = { .start = (unsigned long)self->st, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	self->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0)
		return false;

	TEST_ASSERT_EQ(ioctl(self->uffd, UFFDIO_API, &api), 0);
	TEST_ASSERT_EQ(ioctl(self->uffd, UFFDIO_REGISTER, &reg), 0);
	return true;
}

static bool has_fault(FIXTURE_DATA(gpc_steal_time) *self, int timeout_ms)
{
	struct pollfd pfd = { .fd = self->uffd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

static void drop_page(FIXTURE_DATA(gpc_steal_time) *self)
{
	TEST_ASSERT_EQ(madvise(self->st, PAGE_SIZE, MADV_DONTNEED), 0);
}

/* The page was dropped, and the vCPU does not run. */
static void expect_fault(struct __test_metadata *_metadata, FIXTURE_DATA(gpc_steal_time) *self)
{
	static union {
		struct kvm_steal_time st;
		char page[PAGE_SIZE];
	} saved = {
		.st = { .steal = BIT_ULL(40), .version = 100, .preempted = KVM_VCPU_PREEMPTED },
	};
	struct uffdio_copy copy = {
		.dst = (unsigned long)self->st,
		.src = (unsigned long)&saved,
		.len = PAGE_SIZE,
	};
	u64 beat = READ_ONCE(self->gs->beat);
	struct uffd_msg msg;

	ASSERT_TRUE(has_fault(self, TIMEOUT_MS));
	ASSERT_EQ(read(self->uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
	EXPECT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	EXPECT_EQ(msg.arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE);
	EXPECT_EQ(msg.arg.pagefault.address, (unsigned long)self->st);
	EXPECT_EQ(msg.arg.pagefault.feat.ptid, self->tid);

	/* The vCPU waits before it enters the guest, and for this only. */
	EXPECT_EQ(READ_ONCE(self->gs->beat), beat);
	EXPECT_FALSE(has_fault(self, 0));
	ASSERT_EQ(ioctl(self->uffd, UFFDIO_COPY, &copy), 0);

	let_guest_look(self);
	EXPECT_FALSE(has_fault(self, 0));
	EXPECT_LT(saved.st.version, self->st->version);
	EXPECT_EQ(self->st->version % 2, 0);
	EXPECT_LT(saved.st.steal, self->st->steal);
	EXPECT_TRUE(is_preempted(self));
}

TEST_F(gpc_steal_time, dropped_while_preempted)
{
	int i;

	if (!open_uffd(self))
		SKIP(return, "No userfaultfd: %s", strerror(errno));

	ASSERT_TRUE(is_preempted(self));
	for (i = 0; i < ROUNDS; i++) {
		drop_page(self);
		expect_fault(_metadata, self);
	}
}

/* If that is not allowed, other tasks come in between more often. */
static void set_policy(int policy)
{
	struct sched_param param = { .sched_priority = sched_get_priority_min(policy) };

	sched_setscheduler(0, policy, &param);
}

/*
 * Drop the page from another CPU, then preempt the vCPU by coming here.  Return whether
 * that was in guest mode, where it did without the page, and has raised no fault.
 */
static bool preempt_without_page(FIXTURE_DATA(gpc_steal_time) *self)
{
	bool ret;
	u64 nr;

	pin_self_to_cpu(!self->cpu);
	set_policy(SCHED_FIFO);
	let_guest_run(self);
	drop_page(self);
	nr = nr_preempted(self);
	pin_self_to_cpu(self->cpu);
	ret = nr_preempted(self) > nr && !has_fault(self, 0);
	set_policy(SCHED_OTHER);
	return ret;
}

/* On one CPU, the vCPU would look for the page before it enters the guest. */
TEST_F(gpc_steal_time, dropped_while_running)
{
	int i, nr = 0;

	if (__pin_task_to_cpu(pthread_self(), !self->cpu))
		SKIP(return, "There is no CPU %d", !self->cpu);
	if (!open_uffd(self))
		SKIP(return, "No userfaultfd: %s", strerror(errno));

	/* Another task may have come in between, but hardly each time. */
	for (i = 0; i < ROUNDS || (i < MANY && !nr); i++) {
		nr += preempt_without_page(self);
		expect_fault(_metadata, self);
	}
	EXPECT_LT(0, nr);
	TH_LOG("Preempted without the page in %d of %d rounds", nr, i);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME));

	return test_harness_run(argc, argv);
}
