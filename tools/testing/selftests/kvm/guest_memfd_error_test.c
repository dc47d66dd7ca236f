// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors in guest_memfd, injected by madvise(MADV_HWPOISON).
 *
 * An access by the guest to a poisoned page has KVM_RUN fail with EHWPOISON,
 * and one by the host raises SIGBUS, until userspace punches a hole to get rid
 * of the page.  The handling of an error gets along with whatever else is done
 * to the file at that time.
 *
 * The poisoned pages, less than a hundred, are lost to the system until it is
 * rebooted.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "kvm_test_harness.h"
#include "test_util.h"
#include "ucall_common.h"

/*
 * Skip the first 4gb, which contain the memory of slot 0, and the PCI hole and
 * other MMIO regions that need to be avoided.
 */
#define GMEM_GPA		SZ_4G
#define GMEM_SLOT		10
#define GMEM_FLAGS		(GUEST_MEMFD_FLAG_MMAP |	\
				 GUEST_MEMFD_FLAG_INIT_SHARED)

#define NR_PAGES		4

/*
 * To punch a hole of this size takes longer than to get from madvise() to the
 * point at which the error is handled, i.e. the two meet in each round.
 */
#define HOLE_SIZE		SZ_64M
#define HOLE_ROUNDS		5

#define RELEASE_ROUNDS		20
#define RELEASE_STEP_NS		50000

/* No side of a race takes more than a second, unless it hangs. */
#define HANG_SECONDS		30
#define RACE_TIMEOUT		(HANG_SECONDS + 90)

struct gmem {
	size_t size;
	char *mem;
	int fd;
};

/* What the test and its child processes tell each other. */
struct shared {
	/* To the child: wait for @go, and let @delay_ns pass. */
	bool go;
	s64 delay_ns;

	/* From the child: what madvise() said, and what signals came. */
	bool injecting;
	int ret;
	int err;
	int nr_sigbus;
	int sigbus_code;
	void *sigbus_addr;
};

static struct shared *shared;
static size_t page_size;

/* Set by the host before it runs the vCPU. */
static u64 *guest_ptr;

static void guest_code(void)
{
	u64 val;

	for (;;) {
		val = READ_ONCE(*READ_ONCE(guest_ptr));
		WRITE_ONCE(*READ_ONCE(guest_ptr), val + 1);
		GUEST_SYNC(val);
	}
}

static void gmem_create(struct kvm_vm *vm, struct gmem *gmem, size_t size)
{
	gmem->size = size;
	gmem->fd = vm_create_guest_memfd(vm, size, GMEM_FLAGS);
	gmem->mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem->fd);
}

static void gmem_close(struct gmem *gmem)
{
	kvm_munmap(gmem->mem, gmem->size);
	kvm_close(gmem->fd);
}

/* Bind the first @size bytes of the file to the memslot, 0 deletes it. */
static void gmem_bind(struct kvm_vm *vm, struct gmem *gmem, size_t size)
{
	vm_set_user_memory_region2(vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD, GMEM_GPA,
				   size, NULL, gmem->fd, 0);
}

static void gmem_allocate(struct gmem *gmem)
{
	kvm_fallocate(gmem->fd, FALLOC_FL_KEEP_SIZE, 0, gmem->size);
}

static void gmem_punch_hole(struct gmem *gmem, size_t offset, size_t size)
{
	kvm_fallocate(gmem->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      offset, size);
}

static int guest_run(struct kvm_vcpu *vcpu, size_t offset)
{
	guest_ptr = (u64 *)(GMEM_GPA + offset);
	sync_global_to_guest(vcpu->vm, guest_ptr);

	return _vcpu_run(vcpu);
}

/* Expect that the guest finds @val, which it increments. */
static void guest_access(struct kvm_vcpu *vcpu, size_t offset, u64 val)
{
	struct ucall uc;

	TEST_ASSERT(!guest_run(vcpu, offset), "KVM_RUN failed, errno: %d (%s)",
		    errno, strerror(errno));
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	TEST_ASSERT_EQ(uc.args[1], val);
}

/*
 * Expect that the guest's access fails.  It is still under way then, i.e. the
 * guest is not to access anything else until it has succeeded.
 */
static void guest_access_fails(struct kvm_vcpu *vcpu, size_t offset, int err)
{
	int r = guest_run(vcpu, offset);

	TEST_ASSERT(r == -1 && errno == err,
		    "Wanted KVM_RUN to fail with %d (%s), got: %d, errno: %d (%s)",
		    err, strerror(err), r, errno, strerror(errno));
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_MEMORY_FAULT);
	TEST_ASSERT_EQ(vcpu->run->memory_fault.gpa, GMEM_GPA + offset);
}

static void sigbus_handler(int sig, siginfo_t *info, void *uc)
{
	shared->nr_sigbus++;
	shared->sigbus_code = info->si_code;
	shared->sigbus_addr = info->si_addr;
}

/*
 * Run @fn in a child process, which may hang for good, even when it is killed.
 * Keep nothing but the file open in it, as the runner of the test likely waits
 * for the end of its output.
 */
static pid_t run_child(void (*fn)(struct gmem *gmem), struct gmem *gmem)
{
	struct sigaction sa = {
		.sa_sigaction = sigbus_handler,
		.sa_flags = SA_SIGINFO,
	};
	pid_t pid = fork();

	TEST_ASSERT(pid >= 0, "fork() failed, errno: %d (%s)", errno,
		    strerror(errno));
	if (pid)
		return pid;

	syscall(__NR_close_range, 0, gmem->fd - 1, 0);
	syscall(__NR_close_range, gmem->fd + 1, ~0U, 0);
	sigaction(SIGBUS, &sa, NULL);

	fn(gmem);
	_exit(0);
}

static bool child_is_done(pid_t pid)
{
	int status;
	pid_t r;

	r = waitpid(pid, &status, WNOHANG);
	TEST_ASSERT(r >= 0, "waitpid() failed, errno: %d (%s)", errno,
		    strerror(errno));
	if (!r)
		return false;

	TEST_ASSERT(WIFEXITED(status) && !WEXITSTATUS(status),
		    "The child failed, status: 0x%x", status);
	return true;
}

static void wait_for_child(pid_t pid, const char *what)
{
	struct timespec start, elapsed;

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (!child_is_done(pid)) {
		elapsed = timespec_elapsed(start);
		if (elapsed.tv_sec >= HANG_SECONDS) {
			kill(pid, SIGKILL);
			TEST_FAIL("%s hangs", what);
		}
		usleep(1000);
	}
}

static void inject_error(char *addr)
{
	shared->ret = madvise(addr, getpagesize(), MADV_HWPOISON);
	shared->err = errno;
}

/*
 * guest_memfd leaves the page in the file, which the kernel takes for a failure
 * to handle the error.
 */
static bool error_was_injected(void)
{
	return !shared->ret || shared->err == EBUSY;
}

static void inject_first(struct gmem *gmem)
{
	inject_error(gmem->mem);
}

/* Poison the page in a child process, which maps it for that. */
static void poison_page(struct gmem *gmem, size_t offset)
{
	struct gmem page = {
		.mem = gmem->mem + offset,
		.fd = gmem->fd,
	};

	memset(shared, 0, sizeof(*shared));
	wait_for_child(run_child(inject_first, &page), "madvise(MADV_HWPOISON)");

	TEST_ASSERT(error_was_injected(), "madvise() failed, errno: %d (%s)",
		    shared->err, strerror(shared->err));
}

FIXTURE(guest_memfd_error) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct gmem gmem;
};

FIXTURE_SETUP(guest_memfd_error)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	page_size = max_t(size_t, self->vm->page_size, getpagesize());
	shared = kvm_mmap(sizeof(*shared), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1);

	gmem_create(self->vm, &self->gmem, NR_PAGES * page_size);
	virt_map(self->vm, GMEM_GPA, GMEM_GPA,
		 NR_PAGES * page_size / self->vm->page_size);
}

FIXTURE_TEARDOWN(guest_memfd_error)
{
	gmem_close(&self->gmem);
	kvm_vm_free(self->vm);
}

/* KVM_RUN fails with EHWPOISON until userspace punches a hole. */
TEST_F(guest_memfd_error, guest_access)
{
	struct gmem *gmem = &self->gmem;

	gmem_bind(self->vm, gmem, gmem->size);
	guest_access(self->vcpu, 0, 0);
	guest_access(self->vcpu, page_size, 0);

	poison_page(gmem, page_size);
	guest_access(self->vcpu, 0, 1);
	guest_access_fails(self->vcpu, page_size, EHWPOISON);
	guest_access_fails(self->vcpu, page_size, EHWPOISON);

	gmem_punch_hole(gmem, 0, page_size);
	gmem_allocate(gmem);
	guest_access_fails(self->vcpu, page_size, EHWPOISON);

	gmem_punch_hole(gmem, page_size, page_size);
	gmem_allocate(gmem);
	guest_access(self->vcpu, page_size, 0);
	guest_access(self->vcpu, page_size, 1);
	guest_access(self->vcpu, 0, 0);
}

/* The host is told of the error when it happens, and at each access. */
TEST_F(guest_memfd_error, host_access)
{
	struct gmem *gmem = &self->gmem;
	char *mem;

	memset(gmem->mem, 0xaa, gmem->size);
	poison_page(gmem, page_size);
	TEST_ASSERT_EQ(shared->nr_sigbus, 1);
	TEST_ASSERT_EQ(shared->sigbus_code, BUS_MCEERR_AR);
	TEST_ASSERT_EQ(shared->sigbus_addr, gmem->mem + page_size);

	mem = kvm_mmap(gmem->size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem->fd);
	TEST_EXPECT_SIGBUS(READ_ONCE(gmem->mem[page_size]));
	TEST_EXPECT_SIGBUS(WRITE_ONCE(mem[page_size], 1));
	TEST_EXPECT_SIGBUS(WRITE_ONCE(mem[page_size], 1));
	TEST_ASSERT_EQ(READ_ONCE(mem[0]), (char)0xaa);
	TEST_ASSERT_EQ(READ_ONCE(mem[page_size * 2]), (char)0xaa);

	gmem_punch_hole(gmem, page_size, page_size);
	TEST_ASSERT_EQ(READ_ONCE(mem[page_size]), 0);
	WRITE_ONCE(mem[page_size], 1);
	TEST_ASSERT_EQ(READ_ONCE(mem[page_size]), 1);
	kvm_munmap(mem, gmem->size);
}

/* An error outside of what is bound to a memslot is none of the guest's. */
TEST_F(guest_memfd_error, unbound_page)
{
	struct gmem *gmem = &self->gmem;

	gmem_bind(self->vm, gmem, 2 * page_size);
	guest_access(self->vcpu, page_size, 0);

	poison_page(gmem, 2 * page_size);
	guest_access(self->vcpu, page_size, 1);
	guest_access(self->vcpu, 0, 0);
	TEST_EXPECT_SIGBUS(READ_ONCE(gmem->mem[2 * page_size]));
}

/* An error is found when the page is bound to a memslot afterwards. */
TEST_F(guest_memfd_error, bound_later)
{
	struct gmem *gmem = &self->gmem;

	poison_page(gmem, 0);
	gmem_bind(self->vm, gmem, gmem->size);
	guest_access_fails(self->vcpu, 0, EHWPOISON);

	gmem_bind(self->vm, gmem, 0);
	gmem_bind(self->vm, gmem, gmem->size);
	guest_access_fails(self->vcpu, 0, EHWPOISON);

	gmem_punch_hole(gmem, 0, page_size);
	guest_access(self->vcpu, 0, 0);
	guest_access(self->vcpu, 0, 1);
}

static void *inject_thread(void *mem)
{
	WRITE_ONCE(shared->injecting, true);
	inject_error(mem);

	return NULL;
}

/*
 * Drop the last reference to the file, which is the mapping's, while another
 * thread has an error handled.
 */
static void inject_and_release(struct gmem *gmem)
{
	struct timespec start;
	pthread_t thread;

	close(gmem->fd);
	while (!READ_ONCE(shared->go))
		sched_yield();

	if (pthread_create(&thread, NULL, inject_thread, gmem->mem))
		_exit(1);

	while (!READ_ONCE(shared->injecting))
		sched_yield();

	clock_gettime(CLOCK_MONOTONIC, &start);
	while (timespec_to_ns(timespec_elapsed(start)) < shared->delay_ns)
		sched_yield();

	if (munmap(gmem->mem, gmem->size) || pthread_join(thread, NULL))
		_exit(1);
}

TEST_F_TIMEOUT(guest_memfd_error, release, RACE_TIMEOUT)
{
	int i, nr_errors = 0;
	struct gmem gmem;
	pid_t pid;

	for (i = 0; i < RELEASE_ROUNDS; i++) {
		gmem_create(self->vm, &gmem, NR_PAGES * page_size);
		gmem_bind(self->vm, &gmem, gmem.size);
		guest_access(self->vcpu, 0, 0);

		memset(shared, 0, sizeof(*shared));
		shared->delay_ns = i * RELEASE_STEP_NS;
		pid = run_child(inject_and_release, &gmem);
		gmem_close(&gmem);
		WRITE_ONCE(shared->go, true);
		wait_for_child(pid, "An error while the file is released");
		nr_errors += error_was_injected();

		guest_access_fails(self->vcpu, 0, EFAULT);
		vm_set_user_memory_region2(self->vm, GMEM_SLOT, KVM_MEM_GUEST_MEMFD,
					   GMEM_GPA, 0, NULL, -1, 0);
	}
	TH_LOG("%d errors in %d rounds", nr_errors, i);
	EXPECT_NE(nr_errors, 0);
}

static void punch_whole_file(struct gmem *gmem)
{
	WRITE_ONCE(shared->go, true);
	if (fallocate(gmem->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0,
		      gmem->size))
		_exit(1);
}

static void inject_last(struct gmem *gmem)
{
	while (!READ_ONCE(shared->go))
		sched_yield();

	inject_error(gmem->mem + gmem->size - page_size);
}

/*
 * Have an error handled at the end of a large file in which a hole is being
 * punched from its start.  This is the last test, as it leaves the kernel
 * unable to handle any other error if it fails.
 */
TEST_F_TIMEOUT(guest_memfd_error, punch_hole, RACE_TIMEOUT)
{
	const size_t last = HOLE_SIZE - page_size;
	pid_t puncher, injector;
	int i, nr_errors = 0;
	struct gmem gmem;

	gmem_create(self->vm, &gmem, HOLE_SIZE);
	gmem_bind(self->vm, &gmem, gmem.size);
	virt_map(self->vm, GMEM_GPA + last, GMEM_GPA + last,
		 page_size / self->vm->page_size);

	for (i = 0; i < HOLE_ROUNDS; i++) {
		gmem_allocate(&gmem);
		guest_access(self->vcpu, last, 0);

		memset(shared, 0, sizeof(*shared));
		injector = run_child(inject_last, &gmem);
		puncher = run_child(punch_whole_file, &gmem);
		wait_for_child(injector, "An error while a hole is punched");
		wait_for_child(puncher, "Punching a hole while there is an error");
		nr_errors += error_was_injected();

		/*
		 * The error may have hit a page that took the place of the
		 * first.
		 */
		gmem_punch_hole(&gmem, last, page_size);
	}

	guest_access(self->vcpu, last, 0);
	gmem_close(&gmem);
	TH_LOG("%d errors in %d rounds", nr_errors, i);
	EXPECT_NE(nr_errors, 0);
}

/*
 * Ask with an address that has no page.  The error is another one if the kernel
 * doesn't support this, or only for privileged users.
 */
static bool can_inject_errors(void)
{
	void *mem = kvm_mmap(getpagesize(), PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);
	bool r = madvise(mem, getpagesize(), MADV_HWPOISON) && errno == EFAULT;

	kvm_munmap(mem, getpagesize());
	return r;
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE((kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GMEM_FLAGS) ==
		     GMEM_FLAGS);
	TEST_REQUIRE(can_inject_errors());

	return test_harness_run(argc, argv);
}
