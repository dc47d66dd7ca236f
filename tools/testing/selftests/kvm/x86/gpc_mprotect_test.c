// SPDX-License-Identifier: GPL-2.0-only
/*
 * mprotect() of memory at address 0, which a process may have with
 * CAP_SYS_RAWIO.
 *
 * MMU notifiers tell KVM that an invalidation begins, and that it ends.
 * Meanwhile, a change of memslots waits uninterruptibly, and a refresh of an
 * area there waits until a signal.  If the invalidation never ends, neither
 * wait does.  A child process runs each case, and is left behind if it does not
 * exit.
 */
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA		0xc0000000ULL
#define REGION_SLOT		10
#define LIMIT_MS		10000
/* The child's exit status if it can't map memory there. */
#define NOT_AT_ZERO		77

static bool map_zero_page(void)
{
	return mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

/* Hide from the compiler that this is a null pointer. */
static void *zero_page(void)
{
	void *page = NULL;

	asm volatile("" : "+r" (page));
	return page;
}

static void protect_zero_page(void)
{
	u32 *page = zero_page();

	WRITE_ONCE(*page, 1);
	TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_READ), 0);
	TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	TEST_ASSERT_EQ(READ_ONCE(*page), 1);
}

static void add_memslot(struct kvm_vcpu *vcpu)
{
	vm_userspace_mem_region_add(vcpu->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT, 1, 0);
}

/* The page at address 0 is guest memory, with runstate in it. */
static void refresh_area(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = RUNSTATE_blocked,
	};

	u32 *state = zero_page();

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
	TEST_ASSERT_EQ(READ_ONCE(*state), RUNSTATE_blocked);
}

static void child(bool with_area, void (*fn)(struct kvm_vcpu *vcpu))
{
	int null = open("/dev/null", O_RDWR);
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	/* The runner waits until each writer has closed the test's output. */
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	setpgid(0, 0);

	vm = vm_create_with_one_vcpu(&vcpu, xen_guest_idle);
	if (!map_zero_page())
		_exit(NOT_AT_ZERO);

	if (with_area) {
		xen_enable(vm);
		vm_set_user_memory_region(vm, REGION_SLOT + 1, 0, REGION_GPA + PAGE_SIZE,
					  PAGE_SIZE, NULL);
		xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
				  REGION_GPA + PAGE_SIZE);
	}
	protect_zero_page();
	fn(vcpu);
	_exit(KSFT_PASS);
}

/* Return the child's exit status, or -1 if it does not exit. */
static int run_child(bool with_area, void (*fn)(struct kvm_vcpu *vcpu))
{
	struct pollfd pfd = { .events = POLLIN };
	int status = -1;
	pid_t pid;

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork(): %s", strerror(errno));
	if (!pid)
		child(with_area, fn);

	pfd.fd = syscall(__NR_pidfd_open, pid, 0);
	TEST_ASSERT(pfd.fd >= 0, "pidfd_open(): %s", strerror(errno));
	if (poll(&pfd, 1, LIMIT_MS) == 1) {
		TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
		status = WIFEXITED(status) ? WEXITSTATUS(status) : KSFT_FAIL;
	} else {
		kill(pid, SIGKILL);
	}
	close(pfd.fd);
	return status;
}

static void try(struct __test_metadata *_metadata, bool with_area,
		void (*fn)(struct kvm_vcpu *vcpu))
{
	int status = run_child(with_area, fn);

	if (status == NOT_AT_ZERO)
		SKIP(return, "Nothing can be mapped at address 0");
	EXPECT_NE(status, -1)
		TH_LOG("The MMU notifier's invalidation of address 0 has not ended");
	EXPECT_EQ(status, KSFT_PASS);
}

TEST(area_at_zero)
{
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE);
	try(_metadata, true, refresh_area);
}

/* Last, as a child that fails cannot be killed. */
TEST(memslot)
{
	try(_metadata, false, add_memslot);
}

TEST_HARNESS_MAIN
