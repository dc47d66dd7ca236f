// SPDX-License-Identifier: GPL-2.0-only
/*
 * The steal time of a vCPU that is preempted and, of a Xen guest's, its
 * runstate.
 *
 * KVM writes it in two places: when the vCPU is scheduled out, where it must
 * not wait for anything ("preempted"), and before it enters the guest again,
 * where it waits for the page if that is missing, e.g. as post-copy migration
 * has not brought it yet.
 *
 * The main thread and the vCPU's are pinned to one CPU.  So whenever the main
 * thread runs, the vCPU does not, and what KVM wrote when that was scheduled
 * out is there.  preemption_reported counts how often that hit the vCPU in
 * guest mode.
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
#include "xen.h"

#define ST_GPA		0xc0000000ULL
#define ST_SLOT		10
#define ROUNDS		10
/*
 * "preempted" is a hint, and other tasks than the main thread may preempt the
 * vCPU.
 */
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

	/*
	 * No interrupt is meant for the guest, but Bochs interrupts none that
	 * has them off.
	 */
	sti_nop();
	while (!READ_ONCE(gs->stop)) {
		if (READ_ONCE(gs->look))
			GUEST_ASSERT_EQ(READ_ONCE(st->preempted), 0);
		WRITE_ONCE(gs->beat, gs->beat + 1);
	}
	GUEST_DONE();
}

struct st_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct kvm_steal_time *st;
	struct guest_state *gs;
	pthread_t thread;
	pid_t tid;
	u64 run_delay;
	int cpu, uffd;
};

FIXTURE(gpc_steal_time) {
	struct st_vm sv;
};

static void *run_vcpu(void *arg)
{
	struct st_vm *sv = arg;
	struct ucall uc;

	sv->tid = kvm_gettid();
	vcpu_run(sv->vcpu);
	if (get_ucall(sv->vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_DONE);
	sv->run_delay = get_run_delay();
	return NULL;
}

static void create(struct st_vm *sv)
{
	sv->vm = vm_create_with_one_vcpu(&sv->vcpu, guest_code);
	vm_userspace_mem_region_add(sv->vm, VM_MEM_SRC_ANONYMOUS, ST_GPA, ST_SLOT, 1, 0);
	virt_map(sv->vm, ST_GPA, ST_GPA, 1);
	sv->st = addr_gpa2hva(sv->vm, ST_GPA);
	memset(sv->st, 0, sizeof(*sv->st));
	sv->gs = addr_gva2hva(sv->vm, (gva_t)&guest_state);
	sv->uffd = -1;
}

static void start(struct st_vm *sv)
{
	sv->cpu = pin_self_to_any_cpu();
	kvm_pthread_create(&sv->thread, NULL, run_vcpu, sv);
}

static void stop(struct st_vm *sv)
{
	WRITE_ONCE(sv->gs->stop, true);
	kvm_pthread_join(sv->thread, NULL);
}

FIXTURE_SETUP(gpc_steal_time)
{
	struct st_vm *sv = &self->sv;

	create(sv);
	vcpu_set_msr(sv->vcpu, MSR_KVM_STEAL_TIME, ST_GPA | KVM_MSR_ENABLED);
	start(sv);
}

FIXTURE_TEARDOWN(gpc_steal_time)
{
	struct st_vm *sv = &self->sv;

	/* This ends all waits for a page. */
	if (sv->uffd >= 0)
		close(sv->uffd);

	stop(sv);

	/* To return to userspace is not to be preempted. */
	EXPECT_EQ(sv->st->preempted, 0);
	if (sv->uffd < 0)
		EXPECT_LE(sv->st->steal, sv->run_delay);
	kvm_vm_free(sv->vm);
}

static u64 nr_preempted(struct st_vm *sv)
{
	return vcpu_get_stat(sv->vcpu, preemption_reported);
}

/*
 * Whether it gets to be, in what the guest has.  If so, the vCPU does not run
 * now.
 */
static bool is_preempted(struct st_vm *sv)
{
	u64 end = nr_preempted(sv) + MANY;

	while (!(READ_ONCE(sv->st->preempted) & KVM_VCPU_PREEMPTED)) {
		if (nr_preempted(sv) >= end)
			return false;
		sched_yield();
	}

	return true;
}

/*
 * Somewhere in its loop, the guest has to begin twice to go through all of it.
 */
static void let_guest_run(struct st_vm *sv)
{
	u64 end = READ_ONCE(sv->gs->beat) + 2;

	while (READ_ONCE(sv->gs->beat) < end)
		sched_yield();
}

static void let_guest_look(struct st_vm *sv)
{
	WRITE_ONCE(sv->gs->look, true);
	let_guest_run(sv);
	WRITE_ONCE(sv->gs->look, false);
	let_guest_run(sv);
}

TEST_F(gpc_steal_time, preempted)
{
	struct st_vm *sv = &self->sv;
	struct kvm_steal_time before;
	int i;

	WRITE_ONCE(sv->gs->look, true);
	for (i = 0; i < ROUNDS; i++) {
		ASSERT_TRUE(is_preempted(sv))
			TH_LOG("%d times in guest mode, the guest's memory never said so", MANY);
		before = *sv->st;
		let_guest_run(sv);
		EXPECT_LT(before.version, sv->st->version);
		EXPECT_EQ(sv->st->version % 2, 0);
		EXPECT_LT(before.steal, sv->st->steal);
	}
}

static bool open_uffd(struct st_vm *sv)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID };
	struct uffdio_register reg = {
		.range = { .start = (unsigned long)sv->st, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	sv->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (sv->uffd < 0)
		return false;

	TEST_ASSERT_EQ(ioctl(sv->uffd, UFFDIO_API, &api), 0);
	TEST_ASSERT_EQ(ioctl(sv->uffd, UFFDIO_REGISTER, &reg), 0);
	return true;
}

static bool has_fault(struct st_vm *sv, int timeout_ms)
{
	struct pollfd pfd = { .fd = sv->uffd, .events = POLLIN };

	return poll(&pfd, 1, timeout_ms) == 1;
}

static void drop_page(struct st_vm *sv)
{
	TEST_ASSERT_EQ(madvise(sv->st, PAGE_SIZE, MADV_DONTNEED), 0);
}

/* The page was dropped, and the vCPU does not run. */
static void expect_fault(struct __test_metadata *_metadata, struct st_vm *sv)
{
	static union {
		struct kvm_steal_time st;
		char page[PAGE_SIZE];
	} saved = {
		.st = { .steal = BIT_ULL(40), .version = 100, .preempted = KVM_VCPU_PREEMPTED },
	};
	struct uffdio_copy copy = {
		.dst = (unsigned long)sv->st,
		.src = (unsigned long)&saved,
		.len = PAGE_SIZE,
	};
	u64 beat = READ_ONCE(sv->gs->beat);
	struct uffd_msg msg;

	ASSERT_TRUE(has_fault(sv, TIMEOUT_MS));
	ASSERT_EQ(read(sv->uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
	EXPECT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	EXPECT_EQ(msg.arg.pagefault.flags, UFFD_PAGEFAULT_FLAG_WRITE);
	EXPECT_EQ(msg.arg.pagefault.address, (unsigned long)sv->st);
	EXPECT_EQ(msg.arg.pagefault.feat.ptid, sv->tid);

	/* The vCPU waits before it enters the guest, and for this only. */
	EXPECT_EQ(READ_ONCE(sv->gs->beat), beat);
	EXPECT_FALSE(has_fault(sv, 0));
	ASSERT_EQ(ioctl(sv->uffd, UFFDIO_COPY, &copy), 0);

	let_guest_look(sv);
	EXPECT_FALSE(has_fault(sv, 0));
	EXPECT_LT(saved.st.version, sv->st->version);
	EXPECT_EQ(sv->st->version % 2, 0);
	EXPECT_LT(saved.st.steal, sv->st->steal);
	EXPECT_TRUE(is_preempted(sv));
}

TEST_F(gpc_steal_time, dropped_while_preempted)
{
	struct st_vm *sv = &self->sv;
	int i;

	if (!open_uffd(sv))
		SKIP(return, "No userfaultfd: %s", strerror(errno));

	ASSERT_TRUE(is_preempted(sv));
	for (i = 0; i < ROUNDS; i++) {
		drop_page(sv);
		expect_fault(_metadata, sv);
	}
}

/*
 * Real-time, if not 0.  If that is not allowed, other tasks come in between
 * more often.
 */
static void set_priority(pid_t tid, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	sched_setscheduler(tid, priority ? SCHED_FIFO : SCHED_OTHER, &param);
}

/* Have the vCPU in guest mode while this thread runs, on another CPU. */
static void let_guest_run_beside(struct st_vm *sv)
{
	pin_self_to_cpu(!sv->cpu);
	set_priority(0, 2);
	set_priority(sv->tid, 1);
	let_guest_run(sv);
}

/* Preempt the vCPU by coming to its CPU. */
static void preempt(struct st_vm *sv)
{
	pin_self_to_cpu(sv->cpu);
	set_priority(sv->tid, 0);
	set_priority(0, 0);
}

/*
 * Drop the page from another CPU, then preempt the vCPU.  Return whether that
 * was in guest mode, where it did without the page, and has raised no fault.
 */
static bool preempt_without_page(struct st_vm *sv)
{
	u64 nr;

	let_guest_run_beside(sv);
	drop_page(sv);
	nr = nr_preempted(sv);
	preempt(sv);
	return nr_preempted(sv) > nr && !has_fault(sv, 0);
}

/* On one CPU, the vCPU would look for the page before it enters the guest. */
TEST_F(gpc_steal_time, dropped_while_running)
{
	struct st_vm *sv = &self->sv;
	int i, nr = 0;

	if (__pin_task_to_cpu(pthread_self(), !sv->cpu))
		SKIP(return, "There is no CPU %d", !sv->cpu);
	if (!open_uffd(sv))
		SKIP(return, "No userfaultfd: %s", strerror(errno));

	/* The thread has its tid then. */
	let_guest_run(sv);
	/* Another task may have come in between, but hardly each time. */
	for (i = 0; i < ROUNDS || (i < MANY && !nr); i++) {
		nr += preempt_without_page(sv);
		expect_fault(_metadata, sv);
	}
	EXPECT_LT(0, nr);
	TH_LOG("Preempted without the page in %d of %d rounds", nr, i);
}

static u64 read_dirty_log(struct st_vm *sv)
{
	u64 log;

	kvm_vm_get_dirty_log(sv->vm, ST_SLOT, &log);
	return log;
}

/*
 * What is written when the vCPU is scheduled out is logged then.  Rounds in
 * which nothing is written do not count: the vCPU was preempted before, or its
 * page was migrated.
 */
TEST_F(gpc_steal_time, dirty_log)
{
	struct st_vm *sv = &self->sv;
	int i, nr_rounds = 0;
	bool was_running;

	if (__pin_task_to_cpu(pthread_self(), !sv->cpu))
		SKIP(return, "There is no CPU %d", !sv->cpu);

	let_guest_run(sv);
	vm_mem_region_set_flags(sv->vm, ST_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	for (i = 0; i < ROUNDS || (i < MANY && !nr_rounds); i++) {
		let_guest_run_beside(sv);
		read_dirty_log(sv);
		was_running = !READ_ONCE(sv->st->preempted);
		preempt(sv);
		if (!was_running || READ_ONCE(sv->st->preempted) != KVM_VCPU_PREEMPTED)
			continue;

		nr_rounds++;
		EXPECT_EQ(read_dirty_log(sv), 1);
	}
	EXPECT_LT(0, nr_rounds);
	TH_LOG("Preempted in guest mode in %d of %d rounds", nr_rounds, i);
}

FIXTURE(gpc_runstate) {
	struct st_vm sv;
};

FIXTURE_SETUP(gpc_runstate)
{
	struct st_vm *sv = &self->sv;

	if (!(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE))
		SKIP(return, "No runstate");

	create(sv);
	xen_enable(sv->vm);
	xen_set_vcpu_area(sv->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, ST_GPA);
	start(sv);
}

FIXTURE_TEARDOWN(gpc_runstate)
{
	stop(&self->sv);
	kvm_vm_free(self->sv.vm);
}

TEST_F(gpc_runstate, dirty_log)
{
	struct st_vm *sv = &self->sv;
	struct xen_runstate *rs = (void *)sv->st;
	int i, nr_rounds = 0;
	bool was_running;

	if (__pin_task_to_cpu(pthread_self(), !sv->cpu))
		SKIP(return, "There is no CPU %d", !sv->cpu);

	let_guest_run(sv);
	vm_mem_region_set_flags(sv->vm, ST_SLOT, KVM_MEM_LOG_DIRTY_PAGES);
	for (i = 0; i < ROUNDS || (i < MANY && !nr_rounds); i++) {
		let_guest_run_beside(sv);
		read_dirty_log(sv);
		was_running = READ_ONCE(rs->state) == RUNSTATE_running;
		preempt(sv);
		if (!was_running || READ_ONCE(rs->state) != RUNSTATE_runnable)
			continue;

		nr_rounds++;
		EXPECT_EQ(read_dirty_log(sv), 1);
	}
	EXPECT_LT(0, nr_rounds);
	TH_LOG("Runnable in %d of %d rounds", nr_rounds, i);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME));

	return test_harness_run(argc, argv);
}
