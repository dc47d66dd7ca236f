// SPDX-License-Identifier: GPL-2.0-only
/*
 * KVM must not write to guest memory by itself once the VMM's address space is
 * gone, even if another process keeps the VM and its eventfds alive.
 *
 * A VMM whose guest memory is a memfd has Xen's shared_info mapped by KVM,
 * forks a child and exits.  The child waits for that, makes KVM raise an event,
 * and looks into the memfd.  If the page was punched out of the memfd before,
 * KVM would write to free memory, which KASAN reports.
 *
 * process_mrelease() takes a VMM's memory away before it has exited, as the OOM
 * reaper does.  The reaper doesn't allow MMU notifiers to block.
 */
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <linux/falloc.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define XEN_REGION_GPA	0xc0000000ULL
#define XEN_REGION_SLOT	10
#define SHINFO_GPA	XEN_REGION_GPA
#define VCPU_INFO_GPA	(XEN_REGION_GPA + PAGE_SIZE)

#define IRQFD_PORT	66
#define IRQFD_GSI	32
#define TIMER_PORT	67

/* Memory of the VMM's that takes a while to be taken away. */
#define BALLAST		(16 << 20)
#define NR_REAPED	4
#define MAX_TRIES	16

enum outcome {
	NOT_WRITTEN = 1,
	WRITTEN,
	TOO_LATE,
};

struct vmm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	/* The child reads its end of file when the parent is gone. */
	int alive[2];
	int result;
	int irqfd;
	/* When the timer fires, CLOCK_MONOTONIC. */
	u64 expires;
	bool punch_hole;
};

static void guest_code(void)
{
}

static u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static bool is_pending(struct vmm *v, u32 port)
{
	return xen_is_pending(addr_gpa2hva(v->vm, SHINFO_GPA), port);
}

static void vmm_create(struct vmm *v, enum vm_mem_backing_src_type src)
{
	v->vm = vm_create_with_one_vcpu(&v->vcpu, guest_code);
	vm_userspace_mem_region_add(v->vm, src, XEN_REGION_GPA, XEN_REGION_SLOT, 2, 0);
	xen_enable(v->vm);
	xen_set_shared_info(v->vm, SHINFO_GPA);
	xen_set_vcpu_info(v->vcpu, VCPU_INFO_GPA);
	v->irqfd = xen_irqfd(v->vcpu, IRQFD_GSI, IRQFD_PORT);

	/* The irqfd works as long as the VMM lives. */
	TEST_ASSERT_EQ(eventfd_write(v->irqfd, 1), 0);
	TEST_ASSERT(is_pending(v, IRQFD_PORT), "No event by irqfd");
}

static void clear_pending(struct vmm *v, u32 port)
{
	struct xen_shared_info *shinfo = addr_gpa2hva(v->vm, SHINFO_GPA);

	WRITE_ONCE(shinfo->evtchn_pending[port / 64], 0);
}

static enum outcome child_signal_irqfd(struct vmm *v)
{
	struct userspace_mem_region *region = memslot2region(v->vm, XEN_REGION_SLOT);

	/* Unmapped before, the page is free as soon as it is punched out. */
	if (v->punch_hole) {
		kvm_munmap(region->mmap_start, region->mmap_size);
		TEST_ASSERT(!fallocate(region->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       region->offset, PAGE_SIZE), "fallocate() failed");
	}

	TEST_ASSERT_EQ(eventfd_write(v->irqfd, 1), 0);
	/* Destroying the VM waits for the irqfd's worker. */
	kvm_vm_release(v->vm);
	return !v->punch_hole && is_pending(v, IRQFD_PORT) ? WRITTEN : NOT_WRITTEN;
}

static enum outcome child_await_timer(struct vmm *v)
{
	struct itimerspec when = {
		.it_value.tv_sec = v->expires / 1000000000,
		.it_value.tv_nsec = v->expires % 1000000000,
	};
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	u64 count;

	if (now_ns() >= v->expires)
		return TOO_LATE;

	/* Wait until one second after KVM's timer has expired. */
	when.it_value.tv_sec++;
	TEST_ASSERT_EQ(timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL), 0);
	TEST_ASSERT_EQ(read(fd, &count, sizeof(count)), sizeof(count));
	return is_pending(v, TIMER_PORT) ? WRITTEN : NOT_WRITTEN;
}

static void child(struct vmm *v)
{
	enum outcome outcome;
	char byte;

	close(v->alive[1]);
	TEST_ASSERT_EQ(read(v->alive[0], &byte, 1), 0);

	outcome = v->expires ? child_await_timer(v) : child_signal_irqfd(v);
	TEST_ASSERT_EQ(write(v->result, &outcome, sizeof(outcome)), sizeof(outcome));
}

/* A VMM that sets up and exits; the outcome is its child's. */
static enum outcome run_vmm(u64 timer_ns, bool punch_hole)
{
	struct vmm v = { .punch_hole = punch_hole };
	struct kvm_clock_data clock;
	enum outcome outcome = 0;
	int result[2];
	pid_t pid;

	TEST_ASSERT_EQ(pipe(result), 0);
	pid = fork();
	if (!pid) {
		close(result[0]);
		v.result = result[1];
		TEST_ASSERT_EQ(pipe(v.alive), 0);
		vmm_create(&v, VM_MEM_SRC_SHMEM);
		clear_pending(&v, IRQFD_PORT);
		if (timer_ns) {
			vm_ioctl(v.vm, KVM_GET_CLOCK, &clock);
			v.expires = now_ns() + timer_ns;
			xen_set_timer(v.vcpu, TIMER_PORT, clock.clock + timer_ns);
		}
		if (!fork())
			child(&v);
		_exit(0);
	}

	close(result[1]);
	TEST_ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	if (read(result[0], &outcome, sizeof(outcome)) != sizeof(outcome))
		outcome = 0;
	close(result[0]);
	return outcome;
}

TEST(irqfd_after_exit)
{
	EXPECT_EQ(run_vmm(0, false), NOT_WRITTEN);
}

/*
 * For KASAN, which doesn't report the write if the page has a new owner by
 * then.  So do it a few times.
 */
TEST(irqfd_after_exit_and_free)
{
	int i;

	for (i = 0; i < 8; i++)
		ASSERT_EQ(run_vmm(0, true), NOT_WRITTEN);
}

TEST(timer_after_exit)
{
	u64 timer_ns = 500 * 1000000ULL;
	enum outcome outcome;

	/* The VMM must be gone before the timer fires. */
	do {
		outcome = run_vmm(timer_ns, false);
		timer_ns *= 2;
	} while (outcome == TOO_LATE);

	EXPECT_EQ(outcome, NOT_WRITTEN);
}

/* Raise events in a VM whose VMM is another process, until killed. */
static void raise_on(struct vmm *v)
{
	/* Not for ever, whatever becomes of the test. */
	alarm(60);
	while (!eventfd_write(v->irqfd, 1))
		;
	_exit(KSFT_FAIL);
}

static void vmm_to_be_reaped(int ready)
{
	struct vmm v;
	char *ballast;
	pid_t pid;

	ballast = kvm_mmap(BALLAST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memset(ballast, 1, BALLAST);

	/* The reaper takes private memory away. */
	vmm_create(&v, VM_MEM_SRC_ANONYMOUS);

	pid = fork();
	if (!pid)
		raise_on(&v);
	TEST_ASSERT_EQ(write(ready, &pid, sizeof(pid)), sizeof(pid));
	for (;;)
		pause();
}

/* Have the process run on this CPU, and only if no other task wants to. */
static void slow_down(pid_t pid)
{
	struct sched_param param = {};
	cpu_set_t cpu;

	CPU_ZERO(&cpu);
	CPU_SET(pin_self_to_any_cpu(), &cpu);
	TEST_ASSERT_EQ(sched_setaffinity(pid, sizeof(cpu), &cpu), 0);
	TEST_ASSERT_EQ(sched_setscheduler(pid, SCHED_IDLE, &param), 0);
}

/*
 * Return whether there was something to reap: the VMM may still have been
 * faster.
 */
static bool reap_vmm(void)
{
	int ready[2], pidfd, ret;
	pid_t vmm, raiser;
	cpu_set_t cpus;

	TEST_ASSERT_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	TEST_ASSERT_EQ(pipe(ready), 0);
	vmm = fork();
	if (!vmm)
		vmm_to_be_reaped(ready[1]);
	close(ready[1]);
	TEST_ASSERT_EQ(read(ready[0], &raiser, sizeof(raiser)), sizeof(raiser));

	pidfd = syscall(__NR_pidfd_open, vmm, 0);
	TEST_ASSERT(pidfd >= 0, "pidfd_open: errno %d", errno);
	slow_down(vmm);
	kill(vmm, SIGKILL);
	/*
	 * EINVAL while an irqfd's worker uses the mm, ESRCH if the mm has been
	 * destroyed.
	 */
	do {
		ret = syscall(__NR_process_mrelease, pidfd, 0) ? errno : 0;
	} while (ret == EINVAL || ret == EAGAIN);
	kill(raiser, SIGKILL);

	TEST_ASSERT(!ret || ret == ESRCH, "process_mrelease: errno %d", ret);
	TEST_ASSERT_EQ(waitpid(vmm, NULL, 0), vmm);
	TEST_ASSERT_EQ(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
	close(pidfd);
	close(ready[0]);
	return !ret;
}

/*
 * KVM must neither access reaped pages, which KASAN reports, nor block the
 * reaper, which lockdep reports.
 */
TEST(irqfd_while_reaped)
{
	int i, reaped = 0;

	for (i = 0; i < NR_REAPED || (i < MAX_TRIES && !reaped); i++)
		reaped += reap_vmm();

	TH_LOG("%d of %d were reaped", reaped, i);
	EXPECT_LT(0, reaped);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
