/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A system call in a thread of its own, for a test to observe whether it
 * sleeps, whether a signal ends it, and whether it ends at all.
 */
#ifndef SELFTEST_KVM_TEST_TASK_H
#define SELFTEST_KVM_TEST_TASK_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "kvm_util.h"
#include "test_util.h"

/* A system call that takes longer is taken for one that never ends. */
#define TEST_TASK_LIMIT_S	10

struct test_task {
	/* Returns like a system call, with errno. */
	long (*fn)(void *arg);
	void *arg;

	pthread_t thread;
	pid_t tid;
	long ret;
	int err;
	bool has_ended;
};

static void *test_task_run(void *arg)
{
	struct test_task *task = arg;

	WRITE_ONCE(task->tid, kvm_gettid());
	errno = 0;
	task->ret = task->fn(task->arg);
	task->err = task->ret < 0 ? errno : 0;
	WRITE_ONCE(task->has_ended, true);
	return NULL;
}

/* When this returns, the thread's tid is known. */
static inline void test_task_start(struct test_task *task, long (*fn)(void *arg), void *arg)
{
	*task = (struct test_task){ .fn = fn, .arg = arg };
	TEST_ASSERT_EQ(pthread_create(&task->thread, NULL, test_task_run, task), 0);
	while (!READ_ONCE(task->tid))
		sched_yield();
}

/* A vCPU, until it exits to userspace or KVM_RUN fails. */
static inline long test_task_vcpu_run(void *vcpu)
{
	return __vcpu_run(vcpu);
}

/* The caller must join the task nevertheless. */
static inline bool test_task_has_ended(struct test_task *task)
{
	return READ_ONCE(task->has_ended);
}

static inline void test_task_join(struct test_task *task)
{
	TEST_ASSERT_EQ(pthread_join(task->thread, NULL), 0);
}

static inline bool test_join_in_time(pthread_t thread, void **result)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += TEST_TASK_LIMIT_S;
	return !pthread_timedjoin_np(thread, result, &limit);
}

/* Return false if the task has not ended; the caller must join it later. */
static inline bool test_task_join_in_time(struct test_task *task)
{
	return test_join_in_time(task->thread, NULL);
}

static inline void test_task_kill(struct test_task *task, int sig)
{
	TEST_ASSERT_EQ(pthread_kill(task->thread, sig), 0);
}

static inline void test_task_signal(int sig)
{
}

/* Have a signal that does nothing else end the system call. */
static inline void test_task_interrupt(struct test_task *task)
{
	struct sigaction action = { .sa_handler = test_task_signal };

	TEST_ASSERT_EQ(sigaction(SIGUSR1, &action, NULL), 0);
	test_task_kill(task, SIGUSR1);
}

/* A field of the task's status in /proc. */
static inline void test_task_status(pid_t tid, const char *field, char *val, int size)
{
	int len = strlen(field);
	char line[256];
	FILE *f;

	sprintf(line, "/proc/self/task/%d/status", tid);
	f = fopen(line, "r");
	TEST_ASSERT(f, "%s: %s", line, strerror(errno));

	do {
		TEST_ASSERT(fgets(line, sizeof(line), f), "There is no %s", field);
	} while (strncmp(line, field, len) || line[len] != ':');

	fclose(f);
	len += 1 + strspn(line + len + 1, " \t");
	snprintf(val, size, "%s", line + len);
}

/* Neither running nor woken up. */
static inline bool test_task_is_asleep(struct test_task *task)
{
	char state[64];

	test_task_status(task->tid, "State", state, sizeof(state));
	return state[0] == 'S' || state[0] == 'D';
}

static inline void test_task_await_sleep(struct test_task *task)
{
	while (!test_task_is_asleep(task))
		sched_yield();
}

static inline bool test_task_has_pending(struct test_task *task, int sig)
{
	char mask[64];

	test_task_status(task->tid, "SigPnd", mask, sizeof(mask));
	return strtoull(mask, NULL, 16) & BIT_ULL(sig - 1);
}

#endif /* SELFTEST_KVM_TEST_TASK_H */
