// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES for far more memory than there is.
 *
 * The ioctl holds slots_lock, which releasing a guest_memfd of the VM takes.
 * So SIGKILL must end it, and the time to clear attributes must depend on what
 * is stored, not on the size of the range.
 */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include <asm/barrier.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "kvm_test_harness.h"
#include "test_util.h"

/* 2^51 gfns, more than any guest can have. */
#define EVERYTHING		BIT_ULL(63)

/* Some page of it. */
#define PRIVATE_GPA		BIT_ULL(33)

/* What takes longer takes years. */
#define HANG_SECONDS		10

/* Less CPU time than the ioctl takes before memory is exhausted. */
#define UNDER_WAY_NS		(NSEC_PER_SEC / 4)

struct shared {
	bool in_ioctl;
	/* The CPU time before it. */
	u64 cpu_time;
	bool done;
	int ret;
};

static struct shared *shared;

static u64 clock_ns(clockid_t clock)
{
	struct timespec ts;

	TEST_ASSERT(!clock_gettime(clock, &ts), "clock_gettime(): errno %d", errno);
	return timespec_to_ns(ts);
}

static void set_attributes(u64 attributes)
{
	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	struct kvm_memory_attributes attr = {
		.attributes = attributes,
		.size = EVERYTHING,
	};
	struct kvm_vm *vm = ____vm_create(shape);

	vm_mem_set_private(vm, PRIVATE_GPA, getpagesize());

	shared->cpu_time = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	/* Pairs with ioctl_time(). */
	smp_store_release(&shared->in_ioctl, true);
	shared->ret = __vm_ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &attr);
	WRITE_ONCE(shared->done, true);
}

/*
 * The child may hang for good, even when it is killed: keep no file open in it,
 * as the runner of the test likely waits for the end of its output.  If it goes
 * on allocating memory, no other task is to suffer.
 */
static pid_t start(u64 attributes)
{
	pid_t pid;
	FILE *f;

	memset(shared, 0, sizeof(*shared));

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork() failed, errno: %d (%s)", errno,
		    strerror(errno));
	if (pid)
		return pid;

	f = fopen("/proc/self/oom_score_adj", "w");
	if (f) {
		fputs("1000", f);
		fclose(f);
	}
	syscall(__NR_close_range, 0, ~0U, 0);

	set_attributes(attributes);
	_exit(0);
}

/* The CPU time that the child has spent in the ioctl. */
static u64 ioctl_time(pid_t pid)
{
	clockid_t clock;
	int status;

	TEST_ASSERT_EQ(waitpid(pid, &status, WNOHANG), 0);
	/* Pairs with set_attributes(). */
	if (!smp_load_acquire(&shared->in_ioctl))
		return 0;

	TEST_ASSERT(!clock_getcpuclockid(pid, &clock), "There is no clock of the child");
	return clock_ns(clock) - shared->cpu_time;
}

/* Return false if the child doesn't end. */
static bool wait_for_end(pid_t pid, int *status)
{
	struct timespec start;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!waitpid(pid, status, WNOHANG)) {
		if (timespec_elapsed(start).tv_sec >= HANG_SECONDS)
			return false;
		usleep(1000);
	}

	return true;
}

FIXTURE(guest_memfd_attr) {};

FIXTURE_SETUP(guest_memfd_attr)
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));

	shared = kvm_mmap(sizeof(*shared), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1);
}

FIXTURE_TEARDOWN(guest_memfd_attr)
{
	kvm_munmap(shared, sizeof(*shared));
}

/* A single page is private, and only that has to be cleared. */
TEST_F(guest_memfd_attr, clear_everything)
{
	pid_t pid = start(0);
	int status;

	if (!wait_for_end(pid, &status)) {
		kill(pid, SIGKILL);
		TEST_FAIL("Clearing all attributes hangs");
	}

	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "The child failed, status: 0x%x", status);
	EXPECT_TRUE(shared->done);
	EXPECT_EQ(shared->ret, 0);
}

/* There isn't enough memory for that, but a signal comes first. */
TEST_F(guest_memfd_attr, kill_while_setting)
{
	pid_t pid = start(KVM_MEMORY_ATTRIBUTE_PRIVATE);
	int status;

	while (ioctl_time(pid) < UNDER_WAY_NS)
		usleep(1000);

	kill(pid, SIGKILL);
	TEST_ASSERT(wait_for_end(pid, &status), "SIGKILL has no effect");
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	EXPECT_FALSE(shared->done);
}

TEST_HARNESS_MAIN
