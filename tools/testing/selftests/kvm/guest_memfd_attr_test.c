// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM_SET_MEMORY_ATTRIBUTES for far more memory than there is.
 *
 * The ioctl holds a lock that the end of any guest_memfd of the VM needs, so it
 * must end when the task is killed, and clearing attributes must cost what was
 * set, not what is named.
 */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "kvm_test_harness.h"
#include "test_util.h"

/* All gfns that the ioctl accepts. */
#define EVERYTHING		BIT_ULL(63)

/* Some page of it. */
#define PRIVATE_GPA		BIT_ULL(33)

/* What takes longer takes years. */
#define HANG_SECONDS		10

/* A task that has used so much CPU time is in the middle of the ioctl. */
#define UNDER_WAY_NS		(NSEC_PER_SEC / 4)

struct shared {
	bool in_ioctl;
	bool done;
	int ret;
};

static struct shared *shared;

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

	WRITE_ONCE(shared->in_ioctl, true);
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

static u64 cpu_time(pid_t pid)
{
	struct timespec ts;
	clockid_t clock;

	TEST_ASSERT(!clock_getcpuclockid(pid, &clock) && !clock_gettime(clock, &ts),
		    "The child is gone");
	return ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
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

	while (!READ_ONCE(shared->in_ioctl) || cpu_time(pid) < UNDER_WAY_NS)
		usleep(1000);

	kill(pid, SIGKILL);
	TEST_ASSERT(wait_for_end(pid, &status), "SIGKILL has no effect");
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	EXPECT_FALSE(shared->done);
}

TEST_HARNESS_MAIN
