// SPDX-License-Identifier: GPL-2.0-only
/*
 * Delivery of Xen event channels when a place that an event goes to, i.e.
 * shared_info or the vCPU's vcpu_info, was never registered, before the vCPU has
 * an upcall vector, while an event channel is bound to another vCPU, and while an
 * event is taken back.
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
#include "xen.h"

#define XEN_REGION_GPA		0xc0000000ULL
#define XEN_REGION_SLOT		10
#define SHINFO_GPA		XEN_REGION_GPA
#define VCPU_INFO_GPA		(XEN_REGION_GPA + PAGE_SIZE)

#define EVTCHN_PORT		66
#define EVTCHN_GSI		32
#define OTHER_PORT		200
#define UPCALL_VECTOR		0x30

/* On a single CPU, a round takes some time slices, and hardly anything can race. */
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

/*
 * KVM's WARNs are once per boot.  Arm them again, so that a case sees its own
 * even if another case or test was first; that takes debugfs.
 */
static void rearm_warn_once(void)
{
	FILE *f = fopen("/sys/kernel/debug/clear_warn_once", "w");

	if (f) {
		fputs("1\n", f);
		fclose(f);
	}
}

static int read_warn_count(void)
{
	FILE *f = fopen("/sys/kernel/warn_count", "r");
	int count;

	TEST_ASSERT(f, "Failed to open /sys/kernel/warn_count");
	TEST_ASSERT_EQ(fscanf(f, "%d", &count), 1);
	fclose(f);
	return count;
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
 * The VMM keeps hypercalls to itself.  This comes first, as it says less while, or soon
 * after, any VM on the host has them intercepted.
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

/* What waits for nobody but the VMM's own thread may take its time. */
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

	/* This waits for whoever delivers the event, and so do other VMs that do it. */
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

static u64 guest_clock(struct kvm_vm *vm)
{
	struct kvm_clock_data data;

	vm_ioctl(vm, KVM_GET_CLOCK, &data);
	return data.clock;
}

static u64 timer_expires(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	return attr.u.timer.expires_ns;
}

/* Wait until a timer of another vCPU has expired that is due at WHEN. */
static void wait_for_clock(struct kvm_vm *vm, u64 when)
{
	struct kvm_vcpu *vcpu = vm_vcpu_add(vm, 1, xen_guest_idle);

	xen_set_timer(vcpu, OTHER_PORT, when);
	while (!xen_is_pending(addr_gpa2hva(vm, SHINFO_GPA), OTHER_PORT))
		sched_yield();
}

/* An event that waits is one event, also if the timer was set for later before. */
TEST_F(xen_evtchn, timer_read_while_pending)
{
	struct xen_shared_info *shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	u64 later = guest_clock(self->vm) + 300000000;

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_timer(self->vcpu, EVTCHN_PORT, later);
	set_reach(self->vm, SHINFO_GPA, false);
	xen_set_timer(self->vcpu, EVTCHN_PORT, 1);
	EXPECT_EQ(timer_expires(self->vcpu), 1);
	set_reach(self->vm, SHINFO_GPA, true);
	EXPECT_LT(guest_clock(self->vm), later);

	vcpu_run(self->vcpu);
	EXPECT_TRUE(event_is_pending(self->vm));
	EXPECT_EQ(timer_expires(self->vcpu), 0);

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

/* What was selected in 32-bit mode, a 64-bit guest finds, too: port 66 is in another word. */
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

static void set_vcpu_vector(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
		.u.vector = UPCALL_VECTOR,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
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
	set_vcpu_vector(self->vcpu);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 1);
}

/* The event waits for the local APIC, which nobody else knows until it is enabled. */
TEST_F(xen_evtchn, pending_without_apic)
{
	u64 *upcalls = addr_gva2hva(self->vm, (gva_t)&nr_upcalls);

	virt_pg_map(self->vm, APIC_DEFAULT_GPA, APIC_DEFAULT_GPA);
	set_guest(self->vcpu, guest_enable_xapic, guest_xapic_upcall);
	xen_set_shared_info(self->vm, SHINFO_GPA);
	set_vcpu_vector(self->vcpu);

	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(*upcalls, 1);
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
	set_vcpu_vector(vcpu);

	xen_evtchn_send(vcpu, EVTCHN_PORT);
	EXPECT_TRUE(vector_is_requested(vcpu));
	EXPECT_FALSE(vector_is_requested(self->vcpu));
}

/* What enabling the local APIC puts into its IRR is not what the VMM has saved. */
TEST_F(xen_evtchn, pending_before_lapic_is_set)
{
	struct kvm_lapic_state lapic;

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_set_vcpu_info(self->vcpu, VCPU_INFO_GPA);
	set_vcpu_vector(self->vcpu);
	xen_evtchn_send(self->vcpu, EVTCHN_PORT);
	EXPECT_FALSE(vector_is_requested(self->vcpu));

	vcpu_ioctl(self->vcpu, KVM_GET_LAPIC, &lapic);
	*(u32 *)(lapic.regs + APIC_SPIV) |= APIC_SPIV_APIC_ENABLED;
	vcpu_ioctl(self->vcpu, KVM_SET_LAPIC, &lapic);
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
