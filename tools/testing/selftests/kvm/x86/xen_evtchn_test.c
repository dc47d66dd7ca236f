// SPDX-License-Identifier: GPL-2.0-only
/*
 * Delivery of Xen event channels when a place that an event goes to, i.e.
 * shared_info or the vCPU's vcpu_info, was never registered, before the vCPU
 * has an upcall vector, while an event channel is bound to another vCPU, and
 * while an event is taken back.
 *
 * Each way of raising an event fails or defers the event as documented, KVM
 * does not WARN, and an event that is deferred is there once the vCPU gets its
 * vcpu_info.
 */
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "apic.h"
#include "uffd_page.h"
#include "vcpu_thread.h"
#include "warn_count.h"
#include "xen.h"

#define XEN_REGION_GPA		0xc0000000ULL
#define XEN_REGION_SLOT		10
#define SHINFO_GPA		XEN_REGION_GPA
#define VCPU_INFO_GPA		(XEN_REGION_GPA + PAGE_SIZE)

#define EVTCHN_PORT		66
#define EVTCHN_GSI		32
#define OTHER_PORT		200
#define UPCALL_VECTOR		0x30

/*
 * On a single CPU, a round takes some time slices, and hardly anything can
 * race.
 */
#define UPDATE_ROUNDS		2000
#define UPDATE_ROUNDS_1CPU	20
#define UPDATES_PER_ROUND	9
#define UPCALLS			100
#define UPCALLS_1CPU		20

static void guest_send(void)
{
	xen_guest_send(EVTCHN_PORT);
	GUEST_DONE();
}

static u64 nr_upcalls;
static bool stop_waiting;

static void guest_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)VCPU_INFO_GPA;

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	nr_upcalls++;
}

static void guest_take_upcalls(void)
{
	sti_nop();
	while (!READ_ONCE(stop_waiting))
		xen_guest_exit();
	GUEST_DONE();
}

static void guest_apic_upcall(struct ex_regs *regs)
{
	guest_upcall(regs);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_enable_apic(void)
{
	x2apic_enable();
	sti_nop();
	xen_guest_idle();
}

static void guest_xapic_upcall(struct ex_regs *regs)
{
	guest_upcall(regs);
	xapic_write_reg(APIC_EOI, 0);
}

static void guest_enable_xapic(void)
{
	xapic_enable();
	sti_nop();
	xen_guest_idle();
}

static void guest_halt(void)
{
	asm volatile("sti; hlt; cli");
	GUEST_DONE();
}

static u64 nr_sent;
static bool stop_sending;

static void guest_send_on(void)
{
	while (!READ_ONCE(stop_sending)) {
		xen_guest_send(EVTCHN_PORT);
		WRITE_ONCE(nr_sent, nr_sent + 1);
	}
	GUEST_DONE();
}

/* Disable and enable the local APIC without a change of its registers... */
static void guest_reenable_xapic(void)
{
	xapic_enable();
	apic_disable();
	GUEST_SYNC(0);
	wrmsr(MSR_IA32_APICBASE, rdmsr(MSR_IA32_APICBASE) | MSR_IA32_APICBASE_ENABLE);
	sti_nop();
	xen_guest_idle();
}

/* ... and with its registers set up again. */
static void guest_set_up_xapic_again(void)
{
	xapic_enable();
	apic_disable();
	GUEST_SYNC(0);
	guest_enable_xapic();
}

static bool event_is_pending(struct kvm_vm *vm)
{
	return xen_is_pending(addr_gpa2hva(vm, SHINFO_GPA), EVTCHN_PORT);
}

static void set_reach(struct kvm_vm *vm, u64 gpa, bool in_reach)
{
	TEST_ASSERT_EQ(mprotect(addr_gpa2hva(vm, gpa), PAGE_SIZE,
				in_reach ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
}

/*
 * The VMM keeps hypercalls to itself.  This comes first, as it says less while,
 * or soon after, any VM on the host has them intercepted.
 */
TEST(events_without_hypercalls)
{
	struct xen_vcpu_info *vi;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;

	vm = vm_create_with_one_vcpu(&vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, XEN_REGION_GPA, XEN_REGION_SLOT,
				    2, 0);
	vi = addr_gpa2hva(vm, VCPU_INFO_GPA);
	xen_set_long_mode(vm, true);
	xen_set_shared_info(vm, SHINFO_GPA);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);

	set_reach(vm, VCPU_INFO_GPA, false);
	xen_evtchn_send(vcpu, EVTCHN_PORT);
	set_reach(vm, VCPU_INFO_GPA, true);
	vcpu_run(vcpu);
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
	EXPECT_EQ(vi->evtchn_pending_sel, BIT_ULL(EVTCHN_PORT / 64));

	set_reach(vm, SHINFO_GPA, false);
	xen_set_timer(vcpu, OTHER_PORT, 1);
	set_reach(vm, SHINFO_GPA, true);
	vcpu_run(vcpu);
	EXPECT_TRUE(xen_is_pending(addr_gpa2hva(vm, SHINFO_GPA), OTHER_PORT));
	kvm_vm_free(vm);
}

FIXTURE(xen_evtchn) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int warn_count;
};

FIXTURE_SETUP(xen_evtchn)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA, XEN_REGION_SLOT, 2, 0);
	xen_enable(self->vm);

	rearm_warn_once();
	self->warn_count = read_warn_count();
}

FIXTURE_TEARDOWN(xen_evtchn)
{
	EXPECT_EQ(read_warn_count(), self->warn_count)
		TH_LOG("KVM has WARNed, see the kernel's log");
	kvm_vm_free(self->vm);
}

TEST_F(xen_evtchn, ioctl_without_shared_info)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(self->vcpu, EVTCHN_PORT);

	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e), -1);
	EXPECT_EQ(errno, EINVAL);

	/* The failure leaves nothing behind that is in the way of success. */
	xen_set_shared_info(self->vm, SHINFO_GPA);
	EXPECT_FALSE(event_is_pending(self->vm));
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	EXPECT_TRUE(event_is_pending(self->vm));
}

TEST_F(xen_evtchn, irqfd_without_shared_info)
{
	int fd = xen_irqfd(self->vcpu, EVTCHN_GSI, EVTCHN_PORT);

	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);

	/* The event goes to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(self->vm, EVTCHN_GSI, fd);
	close(fd);
}

TEST_F(xen_evtchn, line_without_shared_info)
{
	struct kvm_irq_level line = { .irq = EVTCHN_GSI, .level = 1 };
	int fd = xen_irqfd(self->vcpu, EVTCHN_GSI, EVTCHN_PORT);

	vm_ioctl(self->vm, KVM_IRQ_LINE_STATUS, &line);
	EXPECT_EQ(line.status, -1);

	/* Nothing waits for a shared_info that may come. */
	xen_set_shared_info(self->vm, SHINFO_GPA);
	vcpu_run(self->vcpu);
	EXPECT_FALSE(event_is_pending(self->vm));
	close(fd);
}

/* What only the VMM's own thread waits for may take its time. */
TEST_F(xen_evtchn, line_without_page)
{
	struct kvm_irq_level line = { .irq = EVTCHN_GSI, .level = 1 };
	int fd = xen_irqfd(self->vcpu, EVTCHN_GSI, EVTCHN_PORT);

	xen_set_shared_info(self->vm, SHINFO_GPA);
	TEST_ASSERT_EQ(madvise(addr_gpa2hva(self->vm, SHINFO_GPA), PAGE_SIZE, MADV_DONTNEED), 0);
	vm_ioctl(self->vm, KVM_IRQ_LINE_STATUS, &line);
	EXPECT_EQ(line.status, 1);
	EXPECT_TRUE(event_is_pending(self->vm));
	close(fd);
}

/* What one kernel was to be told of, the next one is not. */
TEST_F(xen_evtchn, line_before_reset)
{
	struct kvm_xen_hvm_attr none = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = KVM_XEN_INVALID_GFN,
	};
	struct kvm_irq_level line = { .irq = EVTCHN_GSI, .level = 1 };
	int fd = xen_irqfd(self->vcpu, EVTCHN_GSI, EVTCHN_PORT);

	xen_set_shared_info(self->vm, SHINFO_GPA);
	set_reach(self->vm, SHINFO_GPA, false);
	vm_ioctl(self->vm, KVM_IRQ_LINE, &line);

	vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &none);
	set_reach(self->vm, SHINFO_GPA, true);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	vcpu_run(self->vcpu);
	EXPECT_FALSE(event_is_pending(self->vm));
	close(fd);
}

/* Userspace reads what it saves of a vCPU, a timer that runs among it. */
static void read_deferred(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u16 type)
{
	struct kvm_xen_vcpu_attr attr = { .type = type };
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_clock_data clock;
	int fd = xen_irqfd(vcpu, EVTCHN_GSI, EVTCHN_PORT);

	xen_set_shared_info(vm, SHINFO_GPA);
	vm_ioctl(vm, KVM_GET_CLOCK, &clock);
	xen_set_timer(vcpu, OTHER_PORT, clock.clock + 3600 * NSEC_PER_SEC);
	set_reach(vm, SHINFO_GPA, false);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);
	/* The event goes to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(vm, EVTCHN_GSI, fd);
	close(fd);
	set_reach(vm, SHINFO_GPA, true);
	EXPECT_FALSE(event_is_pending(vm));

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	EXPECT_TRUE(event_is_pending(vm))
		TH_LOG("The event isn't saved");
	EXPECT_NE(xen_timer_expires(vcpu), 0);
}

TEST_F(xen_evtchn, irqfd_then_timer_read)
{
	read_deferred(_metadata, self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_TIMER);
}

TEST_F(xen_evtchn, irqfd_then_vcpu_info_read)
{
	read_deferred(_metadata, self->vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO);
}

struct irqfd {
	struct kvm_vm *vm;
	int fd;
};

static void *deassign(void *arg)
{
	struct irqfd *irqfd = arg;

	kvm_deassign_irqfd(irqfd->vm, EVTCHN_GSI, irqfd->fd);
	return NULL;
}

static void *run_to_exit(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON((struct kvm_vcpu *)vcpu, KVM_EXIT_IO);
	return NULL;
}

/* Only the vCPU waits for its VMM to bring shared_info in. */
TEST_F(xen_evtchn, irqfd_without_page)
{
	struct irqfd irqfd = { self->vm, xen_irqfd(self->vcpu, EVTCHN_GSI, EVTCHN_PORT) };
	void *shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	struct timespec limit;
	pthread_t thread;
	bool in_time;
	int uffd;

	xen_set_shared_info(self->vm, SHINFO_GPA);
	uffd = uffd_page_take(shinfo);
	TEST_ASSERT_EQ(eventfd_write(irqfd.fd, 1), 0);

	/*
	 * This waits for the delivery of the event, and so do other VMs that do
	 * it.
	 */
	TEST_ASSERT_EQ(pthread_create(&thread, NULL, deassign, &irqfd), 0);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 10;
	in_time = !pthread_timedjoin_np(thread, NULL, &limit);
	EXPECT_TRUE(in_time)
		TH_LOG("The irqfd waits for shared_info");
	if (!in_time) {
		uffd_page_await(uffd, shinfo);
		uffd_page_bring(uffd, shinfo);
		pthread_join(thread, NULL);
		EXPECT_TRUE(event_is_pending(self->vm));
		close(uffd);
		return;
	}

	TEST_ASSERT_EQ(pthread_create(&thread, NULL, run_to_exit, self->vcpu), 0);
	uffd_page_await(uffd, shinfo);
	uffd_page_bring(uffd, shinfo);
	pthread_join(thread, NULL);
	EXPECT_TRUE(event_is_pending(self->vm));
	close(uffd);
	close(irqfd.fd);
}

TEST_F(xen_evtchn, timer_without_shared_info)
{
	/* In the past: pending at once, for the vCPU to deliver. */
	xen_set_timer(self->vcpu, EVTCHN_PORT, 1);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
}

/* Wait until a timer of another vCPU has expired that is due at WHEN. */
static void wait_for_clock(struct kvm_vm *vm, u64 when)
{
	struct kvm_vcpu *vcpu = vm_vcpu_add(vm, 1, xen_guest_idle);

	xen_set_timer(vcpu, OTHER_PORT, when);
	while (!xen_is_pending(addr_gpa2hva(vm, SHINFO_GPA), OTHER_PORT))
		sched_yield();
}

/*
 * An event that waits is one event, also if the timer was set for later before.
 */
TEST_F(xen_evtchn, timer_read_while_pending)
{
	struct xen_shared_info *shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	u64 later, delay = 100000000;

	xen_set_shared_info(self->vm, SHINFO_GPA);
	/* The timer must not expire before it is set anew. */
	do {
		delay *= 2;
		later = xen_get_clock(self->vm) + delay;
		xen_set_timer(self->vcpu, EVTCHN_PORT, later);
		set_reach(self->vm, SHINFO_GPA, false);
		xen_set_timer(self->vcpu, EVTCHN_PORT, 1);
		EXPECT_EQ(xen_timer_expires(self->vcpu), 1);
		set_reach(self->vm, SHINFO_GPA, true);
	} while (xen_get_clock(self->vm) >= later);

	vcpu_run(self->vcpu);
	EXPECT_TRUE(event_is_pending(self->vm));
	EXPECT_EQ(xen_timer_expires(self->vcpu), 0);

	shinfo->evtchn_pending[EVTCHN_PORT / 64] = 0;
	wait_for_clock(self->vm, later + 10000000);
	EXPECT_FALSE(event_is_pending(self->vm));
}

TEST_F(xen_evtchn, hypercall_without_shared_info)
{
	xen_bind_evtchn(self->vcpu, EVTCHN_PORT, 0);
	vcpu_arch_set_entry_point(self->vcpu, guest_send);
	vcpu_run(self->vcpu);

	/* What KVM cannot deliver is the VMM's. */
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_XEN);
	EXPECT_EQ(self->vcpu->run->xen.u.hcall.input, __HYPERVISOR_event_channel_op);
	EXPECT_EQ(self->vcpu->run->xen.u.hcall.params[0], EVTCHNOP_send);
}

TEST_F(xen_evtchn, pending_without_vcpu_info)
{
	struct xen_vcpu_info *vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	EXPECT_TRUE(event_is_pending(self->vm));

	/* The vCPU finds the event pending and has nowhere to put it... */
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(vi->evtchn_upcall_pending, 0);
	EXPECT_EQ(vi->evtchn_pending_sel, 0);

	/* ... and delivers it as soon as it has. */
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
	EXPECT_EQ(vi->evtchn_pending_sel, BIT_ULL(EVTCHN_PORT / 64));
}

/*
 * What was selected in 32-bit mode, a 64-bit guest finds, too: port 66 is in
 * another word.
 */
TEST_F(xen_evtchn, pending_in_other_mode)
{
	struct xen_vcpu_info *vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_long_mode(self->vm, false);
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	xen_set_long_mode(self->vm, true);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
	EXPECT_NE(vi->evtchn_pending_sel & BIT_ULL(EVTCHN_PORT / 64), 0);
}

static void *run_vcpu(void *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
	return NULL;
}

static void set_guest(struct kvm_vcpu *vcpu, void *code, void (*upcall)(struct ex_regs *))
{
	virt_map(vcpu->vm, VCPU_INFO_GPA, VCPU_INFO_GPA, 1);
	vm_install_exception_handler(vcpu->vm, UPCALL_VECTOR, upcall);
	vcpu_arch_set_entry_point(vcpu, code);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
}

/*
 * An event can be gone by the time that the vCPU takes it.  The PIC has nothing
 * to say then, and if KVM asks it all the same, the guest gets a spurious
 * interrupt: vector 7, as the PIC was never set up.
 */
TEST_F(xen_evtchn, taken_back)
{
	struct xen_vcpu_info *vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);
	bool *stop = addr_gva2hva(self->vm, (gva_t)&stop_waiting);
	u64 *upcalls = addr_gva2hva(self->vm, (gva_t)&nr_upcalls);
	u64 enough = UPCALLS;
	pthread_t thread;

	if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
		enough = UPCALLS_1CPU;

	set_guest(self->vcpu, guest_take_upcalls, guest_upcall);
	xen_set_upcall_vector(self->vm, UPCALL_VECTOR);

	TEST_ASSERT_EQ(pthread_create(&thread, NULL, run_vcpu, self->vcpu), 0);
	while (READ_ONCE(*upcalls) < enough) {
		WRITE_ONCE(vi->evtchn_upcall_pending, 0);
		WRITE_ONCE(vi->evtchn_upcall_pending, 1);
	}
	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	WRITE_ONCE(*stop, true);
	pthread_join(thread, NULL);
}

TEST_F(xen_evtchn, pending_without_vector)
{
	u64 *upcalls = addr_gva2hva(self->vm, (gva_t)&nr_upcalls);

	set_guest(self->vcpu, guest_enable_apic, guest_apic_upcall);
	xen_set_shared_info(self->vm, SHINFO_GPA);

	/* The event finds no vector to tell of it... */
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 0);

	/* ... and the vector tells as soon as it is set. */
	xen_set_vcpu_upcall_vector(self->vcpu, UPCALL_VECTOR);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 1);
}

/*
 * The event waits for the local APIC, which has no other record until it is
 * enabled.
 */
TEST_F(xen_evtchn, pending_without_apic)
{
	u64 *upcalls = addr_gva2hva(self->vm, (gva_t)&nr_upcalls);

	virt_pg_map(self->vm, APIC_DEFAULT_GPA, APIC_DEFAULT_GPA);
	set_guest(self->vcpu, guest_enable_xapic, guest_xapic_upcall);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_upcall_vector(self->vcpu, UPCALL_VECTOR);

	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 1);
}

static void expect_upcall_after_apic_disabled(struct __test_metadata *_metadata,
					      struct kvm_vcpu *vcpu, void *code)
{
	u64 *upcalls = addr_gva2hva(vcpu->vm, (gva_t)&nr_upcalls);

	virt_pg_map(vcpu->vm, APIC_DEFAULT_GPA, APIC_DEFAULT_GPA);
	set_guest(vcpu, code, guest_xapic_upcall);
	xen_set_shared_info(vcpu->vm, SHINFO_GPA);
	xen_set_vcpu_upcall_vector(vcpu, UPCALL_VECTOR);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	*upcalls = 0;

	xen_evtchn_send(vcpu, EVTCHN_PORT);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 1);
}

/* The event is raised while MSR_IA32_APICBASE disables the local APIC. */
TEST_F(xen_evtchn, apic_reenabled)
{
	expect_upcall_after_apic_disabled(_metadata, self->vcpu, guest_reenable_xapic);
}

TEST_F(xen_evtchn, apic_set_up_again)
{
	expect_upcall_after_apic_disabled(_metadata, self->vcpu, guest_set_up_xapic_again);
}

static bool vector_is_requested(struct kvm_vcpu *vcpu)
{
	struct kvm_lapic_state lapic;

	vcpu_ioctl(vcpu, KVM_GET_LAPIC, &lapic);
	return *(u32 *)(lapic.regs + APIC_IRR + UPCALL_VECTOR / 32 * 0x10) &
	       BIT(UPCALL_VECTOR % 32);
}

/* As a local APIC's ID, that of this vCPU means all of them. */
TEST_F(xen_evtchn, vector_of_vcpu_255)
{
	struct kvm_vcpu *vcpu = vm_vcpu_add(self->vm, 255, guest_enable_xapic);

	virt_pg_map(self->vm, APIC_DEFAULT_GPA, APIC_DEFAULT_GPA);
	vcpu_arch_set_entry_point(self->vcpu, guest_enable_xapic);
	vcpu_run(self->vcpu);
	vcpu_run(vcpu);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
	xen_set_vcpu_upcall_vector(vcpu, UPCALL_VECTOR);

	xen_evtchn_send(vcpu, EVTCHN_PORT);
	EXPECT_TRUE(vector_is_requested(vcpu));
	EXPECT_FALSE(vector_is_requested(self->vcpu));
}

/*
 * What enabling the local APIC puts into its IRR is not what the VMM has saved.
 */
TEST_F(xen_evtchn, pending_before_lapic_is_set)
{
	struct kvm_lapic_state lapic;

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	xen_set_vcpu_upcall_vector(self->vcpu, UPCALL_VECTOR);
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	EXPECT_FALSE(vector_is_requested(self->vcpu));

	vcpu_ioctl(self->vcpu, KVM_GET_LAPIC, &lapic);
	*(u32 *)(lapic.regs + APIC_SPIV) |= APIC_SPIV_APIC_ENABLED;
	vcpu_ioctl(self->vcpu, KVM_SET_LAPIC, &lapic);
	EXPECT_TRUE(vector_is_requested(self->vcpu));
}

/*
 * A VMM restores the local APIC's registers, SPIV among them, before it
 * restores MSR_IA32_APICBASE.  The local APIC is enabled by both.
 */
static void restore_lapic_before_apicbase(struct kvm_vcpu *vcpu)
{
	struct kvm_lapic_state lapic;
	u64 base = vcpu_get_msr(vcpu, MSR_IA32_APICBASE);

	vcpu_set_msr(vcpu, MSR_IA32_APICBASE, base & ~MSR_IA32_APICBASE_ENABLE);
	xen_set_shared_info(vcpu->vm, SHINFO_GPA);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
	xen_set_vcpu_upcall_vector(vcpu, UPCALL_VECTOR);
	xen_evtchn_send(vcpu, EVTCHN_PORT);

	vcpu_ioctl(vcpu, KVM_GET_LAPIC, &lapic);
	*(u32 *)(lapic.regs + APIC_SPIV) |= APIC_SPIV_APIC_ENABLED;
	vcpu_ioctl(vcpu, KVM_SET_LAPIC, &lapic);
}

TEST_F(xen_evtchn, pending_before_apicbase_is_set_by_msr)
{
	restore_lapic_before_apicbase(self->vcpu);
	EXPECT_FALSE(vector_is_requested(self->vcpu));
	vcpu_set_msr(self->vcpu, MSR_IA32_APICBASE,
		     vcpu_get_msr(self->vcpu, MSR_IA32_APICBASE) | MSR_IA32_APICBASE_ENABLE);
	EXPECT_TRUE(vector_is_requested(self->vcpu));
}

TEST_F(xen_evtchn, pending_before_apicbase_is_set_by_sregs)
{
	struct kvm_sregs sregs;

	restore_lapic_before_apicbase(self->vcpu);
	EXPECT_FALSE(vector_is_requested(self->vcpu));
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.apic_base |= MSR_IA32_APICBASE_ENABLE;
	vcpu_sregs_set(self->vcpu, &sregs);
	EXPECT_TRUE(vector_is_requested(self->vcpu));
}

/* From disabled to x2APIC mode in one step, as only the VMM can. */
TEST_F(xen_evtchn, pending_before_x2apic_is_enabled)
{
	struct kvm_sregs sregs;

	restore_lapic_before_apicbase(self->vcpu);
	EXPECT_FALSE(vector_is_requested(self->vcpu));
	vcpu_sregs_get(self->vcpu, &sregs);
	sregs.apic_base |= MSR_IA32_APICBASE_ENABLE | MSR_IA32_APICBASE_EXTD;
	vcpu_sregs_set(self->vcpu, &sregs);
	EXPECT_TRUE(vector_is_requested(self->vcpu));
}

TEST_F(xen_evtchn, pending_without_vm_vector)
{
	u64 *upcalls = addr_gva2hva(self->vm, (gva_t)&nr_upcalls);
	pthread_t thread;

	set_guest(self->vcpu, guest_halt, guest_upcall);
	xen_set_shared_info(self->vm, SHINFO_GPA);

	/* The vCPU sleeps, as there is no vector to tell it of the event... */
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	TEST_ASSERT_EQ(pthread_create(&thread, NULL, run_vcpu, self->vcpu), 0);
	while (!vcpu_get_stat(self->vcpu, blocking))
		sched_yield();

	/* ... until it is set.  If it sleeps on, the case does not end. */
	xen_set_upcall_vector(self->vm, UPCALL_VECTOR);
	pthread_join(thread, NULL);
	EXPECT_EQ(*upcalls, 1);
}

static void guest_take_upcall(struct ex_regs *regs)
{
	struct xen_vcpu_info *vi = (void *)VCPU_INFO_GPA;

	if (vi->evtchn_upcall_pending)
		guest_upcall(regs);
}

static void guest_take_apic_upcall(struct ex_regs *regs)
{
	guest_take_upcall(regs);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_halt_until_upcall(void)
{
	x2apic_enable();
	while (!READ_ONCE(nr_upcalls))
		asm volatile("sti; hlt; cli" ::: "memory");
	GUEST_DONE();
}

/*
 * The page of shared_info or vcpu_info has a memslot, but KVM can't map the
 * page, as userspace has unmapped or protected it, or as it has a memory error.
 * An event for the vCPU must not keep it from sleeping in HLT, and must wake it
 * once the page is back.
 */
struct unmapped {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct vcpu_thread thread;
	void *page;
	int irqfd;
};

FIXTURE(xen_evtchn_unmapped) {
	struct unmapped u;
};

FIXTURE_VARIANT(xen_evtchn_unmapped) {
	/* The area that can't be mapped: the other one can. */
	u64 gpa;
	bool by_hva;
	/* The event is a timer's, and is raised before the vCPU runs. */
	bool timer;
	/* The upcall vector is the vCPU's, not the VM's. */
	bool vcpu_vector;
};

FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, shinfo_gpa) { .gpa = SHINFO_GPA };
FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, shinfo_hva) { .gpa = SHINFO_GPA, .by_hva = true };
FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, shinfo_timer) { .gpa = SHINFO_GPA, .timer = true };
FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, shinfo_vcpu_vector) {
	.gpa = SHINFO_GPA, .vcpu_vector = true,
};

FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, vcpu_info_gpa) { .gpa = VCPU_INFO_GPA };
FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, vcpu_info_hva) { .gpa = VCPU_INFO_GPA, .by_hva = true };
FIXTURE_VARIANT_ADD(xen_evtchn_unmapped, vcpu_info_vcpu_vector) {
	.gpa = VCPU_INFO_GPA, .vcpu_vector = true,
};

static void set_areas(struct kvm_vcpu *vcpu, bool by_hva)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA,
		.u.shared_info.hva = (unsigned long)addr_gpa2hva(vcpu->vm, SHINFO_GPA),
	};

	if (!by_hva) {
		xen_set_shared_info(vcpu->vm, SHINFO_GPA);
		xen_set_vcpu_info(vcpu, VCPU_INFO_GPA);
		return;
	}

	vm_ioctl(vcpu->vm, KVM_XEN_HVM_SET_ATTR, &attr);
	xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA,
			  (unsigned long)addr_gpa2hva(vcpu->vm, VCPU_INFO_GPA));
}

FIXTURE_SETUP(xen_evtchn_unmapped)
{
	self->u.vm = vm_create_with_one_vcpu(&self->u.vcpu, guest_halt_until_upcall);
	/* Pages before and after the areas keep holes from growing. */
	vm_userspace_mem_region_add(self->u.vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA - PAGE_SIZE, XEN_REGION_SLOT, 4, 0);
	self->u.page = addr_gpa2hva(self->u.vm, variant->gpa);
	xen_enable(self->u.vm);
	set_guest(self->u.vcpu, guest_halt_until_upcall,
		  variant->vcpu_vector ? guest_take_apic_upcall : guest_take_upcall);
	set_areas(self->u.vcpu, variant->by_hva);
	if (variant->vcpu_vector)
		xen_set_vcpu_upcall_vector(self->u.vcpu, UPCALL_VECTOR);
	else
		xen_set_upcall_vector(self->u.vm, UPCALL_VECTOR);
	self->u.irqfd = xen_irqfd(self->u.vcpu, EVTCHN_GSI, EVTCHN_PORT);
}

FIXTURE_TEARDOWN(xen_evtchn_unmapped)
{
	close(self->u.irqfd);
	kvm_vm_free(self->u.vm);
}

static void map_page(void *page, int fixed)
{
	void *new = mmap(page, PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0);

	TEST_ASSERT(new == page, "mmap(): %s", strerror(errno));
}

/* Call this with the page missing... */
static void raise_event_and_rest(struct __test_metadata *_metadata, struct unmapped *u,
				 bool timer)
{
	if (timer)
		xen_set_timer(u->vcpu, EVTCHN_PORT, 1);

	vcpu_thread_start(&u->thread, u->vcpu);
	EXPECT_TRUE(vcpu_thread_rests(&u->thread))
		TH_LOG("The vCPU does not sleep in HLT, %s",
		       timer ? "its timer has expired" : "there is no event");
	if (timer)
		return;

	TEST_ASSERT_EQ(eventfd_write(u->irqfd, 1), 0);
	/* The event may go to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(u->vm, EVTCHN_GSI, u->irqfd);
	EXPECT_TRUE(vcpu_thread_rests(&u->thread))
		TH_LOG("The event keeps the vCPU from sleeping in HLT");
}

/* ... and this once the page is back. */
static void expect_event_arrives(struct __test_metadata *_metadata, struct unmapped *u)
{
	EXPECT_TRUE(vcpu_thread_finish(&u->thread))
		TH_LOG("The event does not arrive, the vCPU sleeps on");
	EXPECT_EQ(get_ucall(u->vcpu, NULL), UCALL_DONE);
	EXPECT_TRUE(event_is_pending(u->vm));
}

/* Mapping a page into a hole runs no MMU notifier: KVM_RUN has to try again. */
TEST_F(xen_evtchn_unmapped, hole)
{
	TEST_ASSERT_EQ(munmap(self->u.page, PAGE_SIZE), 0);
	raise_event_and_rest(_metadata, &self->u, variant->timer);
	map_page(self->u.page, MAP_FIXED_NOREPLACE);
	vcpu_thread_kick(&self->u.thread);
	expect_event_arrives(_metadata, &self->u);
}

TEST_F(xen_evtchn_unmapped, no_access)
{
	TEST_ASSERT_EQ(mprotect(self->u.page, PAGE_SIZE, PROT_NONE), 0);
	raise_event_and_rest(_metadata, &self->u, variant->timer);
	TEST_ASSERT_EQ(mprotect(self->u.page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	expect_event_arrives(_metadata, &self->u);
}

/* KVM needs to write to the areas. */
TEST_F(xen_evtchn_unmapped, read_only)
{
	TEST_ASSERT_EQ(mprotect(self->u.page, PAGE_SIZE, PROT_READ), 0);
	raise_event_and_rest(_metadata, &self->u, variant->timer);
	TEST_ASSERT_EQ(mprotect(self->u.page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	expect_event_arrives(_metadata, &self->u);
}

TEST_F(xen_evtchn_unmapped, no_access_then_replaced)
{
	TEST_ASSERT_EQ(mprotect(self->u.page, PAGE_SIZE, PROT_NONE), 0);
	raise_event_and_rest(_metadata, &self->u, variant->timer);
	map_page(self->u.page, MAP_FIXED);
	expect_event_arrives(_metadata, &self->u);
}

/* The test gets a SIGBUS for the page that it has mapped. */
static void ignore_signal(int sig)
{
}

TEST_F(xen_evtchn_unmapped, memory_error)
{
	struct sigaction sa = { .sa_handler = ignore_signal };

	TEST_ASSERT_EQ(sigaction(SIGBUS, &sa, NULL), 0);
	WRITE_ONCE(*(char *)self->u.page, 0);
	if (madvise(self->u.page, PAGE_SIZE, MADV_HWPOISON))
		SKIP(return, "madvise(MADV_HWPOISON): %s", strerror(errno));

	raise_event_and_rest(_metadata, &self->u, variant->timer);
	map_page(self->u.page, MAP_FIXED);
	expect_event_arrives(_metadata, &self->u);
}

/* An upcall is pending in the guest's own memory, which KVM can't read. */
static void halt_with_pending_upcall(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				     bool by_hva)
{
	struct xen_vcpu_info *vi = addr_gpa2hva(vcpu->vm, VCPU_INFO_GPA);
	struct vcpu_thread thread;

	set_guest(vcpu, guest_halt_until_upcall, guest_take_upcall);
	set_areas(vcpu, by_hva);
	xen_set_upcall_vector(vcpu->vm, UPCALL_VECTOR);
	WRITE_ONCE(vi->evtchn_upcall_pending, 1);
	set_reach(vcpu->vm, VCPU_INFO_GPA, false);
	vcpu_thread_start(&thread, vcpu);
	EXPECT_TRUE(vcpu_thread_rests(&thread))
		TH_LOG("The vCPU does not sleep in HLT");

	set_reach(vcpu->vm, VCPU_INFO_GPA, true);
	EXPECT_TRUE(vcpu_thread_finish(&thread))
		TH_LOG("The upcall does not arrive, the vCPU sleeps on");
	EXPECT_EQ(get_ucall(vcpu, NULL), UCALL_DONE);
}

TEST_F(xen_evtchn, upcall_pending_without_access)
{
	halt_with_pending_upcall(_metadata, self->vcpu, false);
}

TEST_F(xen_evtchn, upcall_pending_without_access_by_hva)
{
	halt_with_pending_upcall(_metadata, self->vcpu, true);
}

FIXTURE(xen_evtchn_update) {
	struct kvm_vcpu *vcpus[2];
	struct xen_vcpu_info *vi[2];
	struct xen_shared_info *shinfo;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(xen_evtchn_update)
{
	int i;

	self->vm = vm_create_with_vcpus(2, guest_send_on, self->vcpus);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA, XEN_REGION_SLOT, 3, 0);
	xen_enable(self->vm);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	for (i = 0; i < 2; i++) {
		xen_set_vcpu_info(self->vcpus[i], VCPU_INFO_GPA + i * PAGE_SIZE);
		self->vi[i] = addr_gpa2hva(self->vm, VCPU_INFO_GPA + i * PAGE_SIZE);
	}
}

FIXTURE_TEARDOWN(xen_evtchn_update)
{
	kvm_vm_free(self->vm);
}

/* Once two more are sent, one was sent from beginning to end after the call. */
static void await_event(struct kvm_vm *vm)
{
	u64 *sent = addr_gva2hva(vm, (gva_t)&nr_sent);
	u64 start = READ_ONCE(*sent);

	while (READ_ONCE(*sent) < start + 2)
		sched_yield();
}

TEST_F(xen_evtchn_update, while_sending)
{
	bool *stop = addr_gva2hva(self->vm, (gva_t)&stop_sending);
	int i, k, rounds = UPDATE_ROUNDS;
	pthread_t thread;

	if (sysconf(_SC_NPROCESSORS_ONLN) == 1)
		rounds = UPDATE_ROUNDS_1CPU;

	xen_bind_evtchn(self->vcpus[0], EVTCHN_PORT, 0);
	TEST_ASSERT_EQ(pthread_create(&thread, NULL, run_vcpu, self->vcpus[0]), 0);

	for (i = 0; i < rounds; i++) {
		for (k = 1; k <= UPDATES_PER_ROUND; k++)
			xen_bind_evtchn(self->vcpus[k % 2], EVTCHN_PORT, KVM_XEN_EVTCHN_UPDATE);

		/* The last one says the second vCPU. */
		await_event(self->vm);
		WRITE_ONCE(self->vi[0]->evtchn_pending_sel, 0);
		WRITE_ONCE(self->vi[1]->evtchn_pending_sel, 0);
		WRITE_ONCE(self->shinfo->evtchn_pending[EVTCHN_PORT / 64], 0);
		await_event(self->vm);
		ASSERT_EQ(READ_ONCE(self->vi[0]->evtchn_pending_sel), 0)
			TH_LOG("After %d rounds the channel is the wrong vCPU's", i + 1);
		ASSERT_EQ(READ_ONCE(self->vi[1]->evtchn_pending_sel),
			  BIT_ULL(EVTCHN_PORT / 64));
	}

	WRITE_ONCE(*stop, true);
	pthread_join(thread, NULL);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
