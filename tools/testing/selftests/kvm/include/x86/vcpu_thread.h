/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A vCPU that runs in a thread of its own until it exits to userspace.  The
 * test can wait for the vCPU to sleep, kick it, and give it up if it sleeps for
 * good.
 */
#ifndef SELFTEST_KVM_VCPU_THREAD_H
#define SELFTEST_KVM_VCPU_THREAD_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "kvm_util.h"
#include "test_util.h"

/* A vCPU that has not exited by then sleeps for good. */
#define VCPU_THREAD_LIMIT_SECONDS	10

/* How long, in CPU time, to watch a thread, and how many times. */
#define VCPU_THREAD_WATCH_NS		10000000
#define VCPU_THREAD_MAX_WATCHES		100

struct vcpu_thread {
	struct kvm_vcpu *vcpu;
	pthread_t thread;
	pid_t tid;
	bool stop;
};

static inline void vcpu_thread_signal(int sig)
{
}

/* After a kick, the vCPU goes on in another KVM_RUN. */
static inline void *vcpu_thread_run(void *arg)
{
	struct vcpu_thread *t = arg;

	WRITE_ONCE(t->tid, gettid());
	while (__vcpu_run(t->vcpu)) {
		TEST_ASSERT(errno == EINTR, "KVM_RUN: %s", strerror(errno));
		/* vcpu_thread_stop() sets both, in the other order. */
		WRITE_ONCE(t->vcpu->run->immediate_exit, 0);
		__sync_synchronize();
		if (READ_ONCE(t->stop))
			break;
	}
	return NULL;
}

static inline void vcpu_thread_start(struct vcpu_thread *t, struct kvm_vcpu *vcpu)
{
	struct sigaction sa = { .sa_handler = vcpu_thread_signal };

	TEST_ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
	*t = (struct vcpu_thread) { .vcpu = vcpu };
	TEST_ASSERT_EQ(pthread_create(&t->thread, NULL, vcpu_thread_run, t), 0);
}

static inline void vcpu_thread_kick(struct vcpu_thread *t)
{
	/* The signal may be delivered before KVM_RUN begins. */
	WRITE_ONCE(t->vcpu->run->immediate_exit, 1);
	pthread_kill(t->thread, SIGUSR1);
}

/* When this returns, the vCPU no longer runs. */
static inline void vcpu_thread_stop(struct vcpu_thread *t)
{
	WRITE_ONCE(t->stop, true);
	vcpu_thread_kick(t);
	pthread_join(t->thread, NULL);
	t->vcpu->run->immediate_exit = 0;
}

/* Return whether the vCPU exits.  In either case, it no longer runs. */
static inline bool vcpu_thread_finish(struct vcpu_thread *t)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += VCPU_THREAD_LIMIT_SECONDS;
	if (!pthread_timedjoin_np(t->thread, NULL, &limit))
		return true;

	vcpu_thread_stop(t);
	return false;
}

static inline s64 vcpu_thread_cpu_ns(pthread_t thread)
{
	struct timespec used;
	clockid_t clock;

	/* Fails once the thread has ended. */
	if (pthread_getcpuclockid(thread, &clock) || clock_gettime(clock, &used))
		return -1;

	return timespec_to_ns(used);
}

static inline bool vcpu_thread_is_asleep(struct vcpu_thread *t)
{
	pid_t tid = READ_ONCE(t->tid);
	char path[64], state = 'R';
	FILE *f;

	sprintf(path, "/proc/self/task/%d/stat", tid);
	f = tid ? fopen(path, "r") : NULL;
	if (!f)
		return false;
	TEST_ASSERT_EQ(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
	fclose(f);
	return state == 'S' || state == 'D';
}

/*
 * Wait until the vCPU sleeps, i.e. until its thread uses no CPU time while this
 * thread, which yields, does.  Return false if the vCPU does not come to rest.
 */
static inline bool vcpu_thread_rests(struct vcpu_thread *t)
{
	s64 used, now;
	int i;

	for (i = 0; i < VCPU_THREAD_MAX_WATCHES; i++) {
		used = vcpu_thread_cpu_ns(t->thread);
		now = vcpu_thread_cpu_ns(pthread_self());
		while (vcpu_thread_cpu_ns(pthread_self()) < now + VCPU_THREAD_WATCH_NS)
			sched_yield();
		if (vcpu_thread_is_asleep(t) && vcpu_thread_cpu_ns(t->thread) == used)
			return true;
	}
	return false;
}

#endif /* SELFTEST_KVM_VCPU_THREAD_H */
