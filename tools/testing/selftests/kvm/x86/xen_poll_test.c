// SPDX-License-Identifier: GPL-2.0-only
/*
 * SCHEDOP_poll, with which a Xen guest waits for an event channel to become
 * pending, without interrupts.
 *
 * The vCPU runs in a thread of its own.  An event, or a change of the memslots,
 * comes once KVM's statistics say that the vCPU blocks.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "apic.h"
#include "test_task.h"
#include "uffd_page.h"
#include "vcpu_thread.h"
#include "xen.h"

#define XEN_REGION_GPA	0xc0000000ULL
#define XEN_REGION_SLOT	10
#define SHINFO_GPA	XEN_REGION_GPA
#define VCPU_INFO_GPA	(XEN_REGION_GPA + PAGE_SIZE)
#define OWNER_INFO_GPA	(VCPU_INFO_GPA + sizeof(struct xen_vcpu_info))
#define REGION_PAGES	2
#define NEW_REGION_GPA	0xd0000000ULL
#define NEW_REGION_SLOT	11

#define PORT		66
#define GSI		32
#define UPCALL_VECTOR	0x40

/* Of the local APIC's timer, which counts ns. */
#define TIMER_VECTOR	0x50
#define TIMER_COUNT	300000000
#define TIMER_DIV_1	0xb

static u64 timeout_ns;

static void guest_poll(void)
{
	GUEST_SYNC(xen_guest_poll(PORT, timeout_ns));
	GUEST_DONE();
}

/* A poll may end early. */
static void guest_poll_twice(void)
{
	xen_guest_poll(PORT, 0);
	guest_poll();
}

static void guest_apic_timer(struct ex_regs *regs)
{
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_poll_with_timer(void)
{
	x2apic_enable();
	x2apic_write_reg(APIC_TDCR, TIMER_DIV_1);
	x2apic_write_reg(APIC_LVTT, TIMER_VECTOR | APIC_LVT_TIMER_PERIODIC);
	x2apic_write_reg(APIC_TMICT, TIMER_COUNT);
	sti();
	guest_poll();
}

static void sig_handler(int sig)
{
}

static void *run_vcpu(void *arg)
{
	return (void *)(long)__vcpu_run(arg);
}

static void *add_memslot(void *arg)
{
	vm_userspace_mem_region_add(arg, VM_MEM_SRC_ANONYMOUS, NEW_REGION_GPA,
				    NEW_REGION_SLOT, 1, 0);
	return NULL;
}

FIXTURE(xen_poll) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
	struct xen_vcpu_info *vi;
	pthread_t thread;
};

FIXTURE_SETUP(xen_poll)
{
	struct sigaction sa = { .sa_handler = sig_handler };

	TEST_ASSERT_EQ(sigaction(SIGUSR1, &sa, NULL), 0);
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_poll);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA, XEN_REGION_SLOT, REGION_PAGES, 0);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	self->vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);
	xen_enable(self->vm);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
}

FIXTURE_TEARDOWN(xen_poll)
{
	kvm_vm_free(self->vm);
}

static void start(struct kvm_vcpu *vcpu, pthread_t *thread)
{
	TEST_ASSERT_EQ(pthread_create(thread, NULL, run_vcpu, vcpu), 0);
}

/* The case's time limit ends the wait for a vCPU that doesn't block. */
static void start_and_block(struct kvm_vcpu *vcpu, pthread_t *thread)
{
	start(vcpu, thread);
	while (!vcpu_get_stat(vcpu, blocking))
		sched_yield();
}

/* 0 if the poll ended by itself, the vCPU's error otherwise. */
static long finish(pthread_t thread)
{
	void *result;

	if (test_join_in_time(thread, &result))
		return (long)result;

	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, &result);
	return -1;
}

static void expect_poll_returned(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	EXPECT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], 0);
}

TEST_F(xen_poll, pending)
{
	self->shinfo->evtchn_pending[PORT / 64] |= BIT_ULL(PORT % 64);
	start(self->vcpu, &self->thread);
	ASSERT_EQ(finish(self->thread), 0);
	expect_poll_returned(_metadata, self->vcpu);
}

TEST_F(xen_poll, masked)
{
	self->shinfo->evtchn_mask[PORT / 64] |= BIT_ULL(PORT % 64);
	start_and_block(self->vcpu, &self->thread);
	xen_evtchn_send(self->vcpu, PORT);
	ASSERT_EQ(finish(self->thread), 0);
	expect_poll_returned(_metadata, self->vcpu);
}

/*
 * The guest takes no interrupts, so that an event which KVM delivers by
 * interrupt alone wakes no poller.  Here the guest's selector is set ...
 */
TEST_F(xen_poll, not_masked_selector_set)
{
	self->vi->evtchn_pending_sel = BIT_ULL(PORT / 64);
	start_and_block(self->vcpu, &self->thread);
	xen_evtchn_send(self->vcpu, PORT);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The event did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
}

/* ... and here the interrupt goes to a vector of the vCPU's own. */
TEST_F(xen_poll, not_masked_upcall_vector)
{
	xen_set_vcpu_upcall_vector(self->vcpu, UPCALL_VECTOR);
	start_and_block(self->vcpu, &self->thread);
	xen_evtchn_send(self->vcpu, PORT);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The event did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
}

/* The port is another vCPU's. */
TEST_F(xen_poll, not_its_own)
{
	struct kvm_vcpu *other = vm_vcpu_add(self->vm, 1, guest_poll);

	start_and_block(self->vcpu, &self->thread);
	xen_evtchn_send(other, PORT);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The event did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
}

/* ... which does not run, and so does not bring shared_info in for it. */
TEST_F(xen_poll, not_its_own_without_page)
{
	struct kvm_vcpu *other = vm_vcpu_add(self->vm, 1, guest_poll);
	int fd = xen_irqfd(other, GSI, PORT);

	vcpu_arch_set_entry_point(self->vcpu, guest_poll_twice);
	start_and_block(self->vcpu, &self->thread);
	TEST_ASSERT_EQ(madvise(self->shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The event did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	close(fd);
}

/* The event is another vCPU's timer's, which expires before the poll... */
TEST_F(xen_poll, timer_not_its_own_without_page)
{
	struct kvm_vcpu *other = vm_vcpu_add(self->vm, 1, guest_poll);

	TEST_ASSERT_EQ(madvise(self->shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	xen_set_timer(other, PORT, 1);
	start(self->vcpu, &self->thread);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The poller sleeps though the timer has expired");
	expect_poll_returned(_metadata, self->vcpu);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	EXPECT_EQ(xen_timer_expires(other), 0);
}

/* ... or during the poll. */
TEST_F(xen_poll, timer_not_its_own_expires_meanwhile)
{
	struct kvm_vcpu *other = vm_vcpu_add(self->vm, 1, guest_poll);

	vcpu_arch_set_entry_point(self->vcpu, guest_poll_twice);
	start_and_block(self->vcpu, &self->thread);
	TEST_ASSERT_EQ(madvise(self->shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	xen_set_timer(other, PORT, 1);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The timer did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	EXPECT_EQ(xen_timer_expires(other), 0);
}

static void set_region(struct kvm_vm *vm, bool present)
{
	struct userspace_mem_region *region = memslot2region(vm, XEN_REGION_SLOT);
	struct kvm_userspace_memory_region slot = {
		.slot = XEN_REGION_SLOT,
		.guest_phys_addr = XEN_REGION_GPA,
		.memory_size = present ? REGION_PAGES * PAGE_SIZE : 0,
		.userspace_addr = (unsigned long)region->host_mem,
	};

	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

/* KVM can't read what is pending, so the guest has to. */
TEST_F(xen_poll, without_memslot)
{
	set_region(self->vm, false);
	start(self->vcpu, &self->thread);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The poller sleeps though shared_info is unbacked");
	expect_poll_returned(_metadata, self->vcpu);
}

TEST_F(xen_poll, memslot_deleted_meanwhile)
{
	int fd = xen_irqfd(self->vcpu, GSI, PORT);

	start_and_block(self->vcpu, &self->thread);
	set_region(self->vm, false);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The event did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);

	/* The event is deferred until the memslot is back. */
	set_region(self->vm, true);
	vcpu_run(self->vcpu);
	EXPECT_EQ(get_ucall(self->vcpu, NULL), UCALL_DONE);
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	close(fd);
}

/* The guest takes interrupts, and only one of its own timer's comes. */
TEST_F(xen_poll, interrupt)
{
	vm_install_exception_handler(self->vm, TIMER_VECTOR, guest_apic_timer);
	vcpu_arch_set_entry_point(self->vcpu, guest_poll_with_timer);
	start_and_block(self->vcpu, &self->thread);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The interrupt did not end the poll");
	expect_poll_returned(_metadata, self->vcpu);
}

/*
 * The guest has been up for a million seconds, and does not wait for as long
 * again.
 */
TEST_F(xen_poll, timeout)
{
	struct kvm_clock_data clock = { .clock = 1000000 * 1000000000ULL };

	/* Further away than it takes the guest to get there. */
	timeout_ns = clock.clock + 200000000;
	sync_global_to_guest(self->vm, timeout_ns);
	vm_ioctl(self->vm, KVM_SET_CLOCK, &clock);
	start(self->vcpu, &self->thread);
	ASSERT_EQ(finish(self->thread), 0)
		TH_LOG("The poll did not time out");
	expect_poll_returned(_metadata, self->vcpu);

	/* The poll must not end before its timeout. */
	vm_ioctl(self->vm, KVM_GET_CLOCK, &clock);
	EXPECT_GE(clock.clock, timeout_ns);
}

TEST_F(xen_poll, memslots_change_meanwhile)
{
	pthread_t adder;
	bool in_time;

	self->shinfo->evtchn_mask[PORT / 64] |= BIT_ULL(PORT % 64);
	start_and_block(self->vcpu, &self->thread);
	TEST_ASSERT_EQ(pthread_create(&adder, NULL, add_memslot, self->vm), 0);
	in_time = test_join_in_time(adder, NULL);
	EXPECT_TRUE(in_time)
		TH_LOG("A guest that polls holds up the VM's memslots");

	/* End the poll, and the memslot update if it waits for the poll. */
	xen_evtchn_send(self->vcpu, PORT);
	if (!in_time)
		pthread_join(adder, NULL);
	ASSERT_EQ(finish(self->thread), 0);
	expect_poll_returned(_metadata, self->vcpu);
}

static bool owner_woken;

static void guest_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)OWNER_INFO_GPA;

	if (vi->evtchn_upcall_pending) {
		WRITE_ONCE(vi->evtchn_upcall_pending, 0);
		owner_woken = true;
	}
}

static void guest_apic_upcall(struct ex_regs *regs)
{
	guest_upcall(regs);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_owner(void)
{
	x2apic_enable();
	while (!owner_woken)
		asm volatile("sti; hlt; cli" ::: "memory");
	GUEST_DONE();
}

/*
 * An event is deferred for its vCPU, the owner, while shared_info's page is
 * missing.  Another vCPU polls for the event, and waits for the page to deliver
 * it.  The owner waits behind it.  If the poller does not get the page, the
 * event must wake the owner once the page is back.
 */
FIXTURE(xen_poll_owner) {
	struct kvm_vcpu *poller;
	struct kvm_vcpu *owner;
	struct kvm_vm *vm;
	void *shinfo;
};

FIXTURE_VARIANT(xen_poll_owner) {
	bool vcpu_vector;
	bool timer;
};

FIXTURE_VARIANT_ADD(xen_poll_owner, irqfd_vm_vector) { };
FIXTURE_VARIANT_ADD(xen_poll_owner, irqfd_vcpu_vector) { .vcpu_vector = true };
FIXTURE_VARIANT_ADD(xen_poll_owner, timer_vm_vector) { .timer = true };
FIXTURE_VARIANT_ADD(xen_poll_owner, timer_vcpu_vector) { .timer = true, .vcpu_vector = true };

FIXTURE_SETUP(xen_poll_owner)
{
	self->vm = vm_create_with_one_vcpu(&self->poller, guest_poll);
	self->owner = vm_vcpu_add(self->vm, 1, guest_owner);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA, XEN_REGION_SLOT, REGION_PAGES, 0);
	virt_map(self->vm, VCPU_INFO_GPA, VCPU_INFO_GPA, 1);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	xen_enable(self->vm);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(self->poller, VCPU_INFO_GPA);
	xen_set_vcpu_info(self->owner, OWNER_INFO_GPA);
	if (variant->vcpu_vector) {
		vm_install_exception_handler(self->vm, UPCALL_VECTOR, guest_apic_upcall);
		xen_set_vcpu_upcall_vector(self->owner, UPCALL_VECTOR);
	} else {
		vm_install_exception_handler(self->vm, UPCALL_VECTOR, guest_upcall);
		xen_set_upcall_vector(self->vm, UPCALL_VECTOR);
	}
}

FIXTURE_TEARDOWN(xen_poll_owner)
{
	kvm_vm_free(self->vm);
}

static void defer_event(struct kvm_vcpu *vcpu, bool timer)
{
	int fd;

	if (timer) {
		xen_set_timer(vcpu, PORT, 1);
		return;
	}

	fd = xen_irqfd(vcpu, GSI, PORT);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);

	/* The event goes to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(vcpu->vm, GSI, fd);
	close(fd);
}

TEST_F(xen_poll_owner, page_is_denied_to_poller)
{
	struct vcpu_thread poller, owner;
	int uffd;

	uffd = uffd_page_take(self->shinfo);
	defer_event(self->owner, variant->timer);
	vcpu_thread_start(&poller, self->poller);
	uffd_page_await(uffd, self->shinfo);
	vcpu_thread_start(&owner, self->owner);
	ASSERT_TRUE(vcpu_thread_rests(&owner));

	uffd_page_deny(uffd, self->shinfo);
	ASSERT_TRUE(vcpu_thread_finish(&poller))
		TH_LOG("The poller sleeps though shared_info can't be mapped");
	expect_poll_returned(_metadata, self->poller);

	uffd_page_allow(self->shinfo);
	uffd_page_bring(uffd, self->shinfo);
	EXPECT_TRUE(vcpu_thread_finish(&owner))
		TH_LOG("The owner sleeps though shared_info is back");
	EXPECT_TRUE(xen_is_pending(self->shinfo, PORT));
	close(uffd);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_BINARY_STATS_FD));

	return test_harness_run(argc, argv);
}
