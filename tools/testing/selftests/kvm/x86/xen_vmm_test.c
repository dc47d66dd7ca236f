// SPDX-License-Identifier: GPL-2.0-only
/*
 * Xen's areas and events as VMMs use them.
 *
 * QEMU registers shared_info by HVA and each vCPU's default vcpu_info, which is
 * in the same page, by GPA.  If the guest asks for a GSI rather than for a
 * vector, QEMU sets no vector: KVM sets evtchn_upcall_pending, and QEMU reads
 * it after each exit to assert the GSI.
 */
#include <linux/mempolicy.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "apic.h"
#include "vcpu_thread.h"
#include "xen.h"

#define SHINFO_GPA	0xc0000000ULL
#define SHINFO_SLOT	10
#define VCPU_INFO_GPA(v)	(SHINFO_GPA + (v) * sizeof(struct xen_vcpu_info))
#define NR_VCPUS	3

#define UPCALL_VECTOR	0x30
#define CALLBACK_GSI	10
#define FIRST_XEN_GSI	32

/* How an event is raised.  Each vCPU has a port for each of them. */
enum way {
	BY_IOCTL,
	BY_IRQFD,
	BY_HCALL,
	BY_TIMER,
	NR_WAYS,
};

#define ALL_WAYS	(BIT(NR_WAYS) - 1)

static const char * const way_names[NR_WAYS] = { "ioctl", "irqfd", "hypercall", "timer" };

static u32 port_of(int v, enum way way)
{
	return (1 + v * NR_WAYS + way) * 64 + 5;
}

/* The guest */

enum {
	GUEST_IDLE,
	GUEST_IN_UPCALL,
};

static struct {
	u32 nr_upcalls;
	/* The ways of the events that the guest has seen. */
	u32 seen;
	/* The vCPU sends to this port, if any, and idles. */
	u32 send_port;
} guest[NR_VCPUS];

static bool exit_in_upcall;

static int guest_id(void)
{
	return rdmsr(MSR_KERNEL_GS_BASE);
}

static bool guest_take_port(u32 port)
{
	struct xen_shared_info *shinfo = (void *)SHINFO_GPA;

	return __atomic_exchange_n(&shinfo->evtchn_pending[port / 64], 0, __ATOMIC_SEQ_CST);
}

static void guest_upcall(struct ex_regs *regs)
{
	int v = guest_id();
	struct xen_vcpu_info *vi = (void *)VCPU_INFO_GPA(v);
	enum way way;
	u64 sels;

	guest[v].nr_upcalls++;
	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	sels = __atomic_exchange_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
	for (way = 0; way < NR_WAYS; way++) {
		if (sels & BIT_ULL(port_of(v, way) / 64) && guest_take_port(port_of(v, way)))
			guest[v].seen |= BIT(way);
	}
}

static void guest_gsi(struct ex_regs *regs)
{
	guest_upcall(regs);
	/* Have the VMM deassert the GSI before the EOI. */
	if (exit_in_upcall)
		GUEST_SYNC(GUEST_IN_UPCALL);
	x2apic_write_reg(APIC_EOI, 0);
}

static void guest_code(u64 v)
{
	wrmsr(MSR_KERNEL_GS_BASE, v);
	x2apic_enable();
	for (;;) {
		sti_nop();
		if (guest[v].send_port)
			GUEST_ASSERT_EQ(xen_guest_send(guest[v].send_port), 0);
		guest[v].send_port = 0;
		xen_guest_exit();
		cli();
		GUEST_SYNC(GUEST_IDLE);
	}
}

static void guest_halt(u64 v)
{
	wrmsr(MSR_KERNEL_GS_BASE, v);
	while (!guest[v].seen)
		asm volatile("sti; hlt; cli" ::: "memory");
	GUEST_SYNC(GUEST_IDLE);
}

/* The host */

struct vmm {
	struct kvm_vcpu *vcpus[NR_VCPUS];
	struct kvm_vm *vm;
	void *shinfo;
	int irqfds[NR_VCPUS];
};

FIXTURE(xen_vmm) {
	struct vmm vmm;
};

static void set_routes(struct kvm_vcpu **vcpus)
{
	struct kvm_irq_routing *routing = kvm_gsi_routing_create();
	int v;

	kvm_gsi_routing_irqchip_add(routing, CALLBACK_GSI, CALLBACK_GSI);
	routing->entries[0].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	for (v = 0; v < NR_VCPUS; v++) {
		routing->entries[routing->nr++] = (struct kvm_irq_routing_entry) {
			.gsi = FIRST_XEN_GSI + v,
			.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
			.u.xen_evtchn = xen_evtchn(vcpus[v], port_of(v, BY_IRQFD)),
		};
	}
	kvm_gsi_routing_write(vcpus[0]->vm, routing);
}

static void set_up_vcpu(struct vmm *vmm, int v)
{
	struct kvm_vcpu *vcpu = vmm->vcpus[v];

	vcpu_args_set(vcpu, 1, v);
	xen_set_vcpu_id(vcpu, v);
	xen_set_vcpu_info(vcpu, VCPU_INFO_GPA(v));
	xen_set_timer(vcpu, port_of(v, BY_TIMER), 0);
	xen_bind_evtchn(vcpu, port_of(v, BY_HCALL), 0);
	vmm->irqfds[v] = kvm_new_eventfd();
	kvm_assign_irqfd(vmm->vm, FIRST_XEN_GSI + v, vmm->irqfds[v]);
}

/* Shared memory keeps its contents when the page is dropped. */
FIXTURE_SETUP(xen_vmm)
{
	struct kvm_xen_hvm_attr attr = { .type = KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA };
	int v;

	self->vmm.vm = vm_create_with_vcpus(NR_VCPUS, guest_code, self->vmm.vcpus);
	vm_userspace_mem_region_add(self->vmm.vm, VM_MEM_SRC_SHMEM, SHINFO_GPA, SHINFO_SLOT, 1, 0);
	virt_map(self->vmm.vm, SHINFO_GPA, SHINFO_GPA, 1);
	self->vmm.shinfo = addr_gpa2hva(self->vmm.vm, SHINFO_GPA);
	xen_enable(self->vmm.vm);
	attr.u.shared_info.hva = (unsigned long)self->vmm.shinfo;
	vm_ioctl(self->vmm.vm, KVM_XEN_HVM_SET_ATTR, &attr);
	set_routes(self->vmm.vcpus);
	for (v = 0; v < NR_VCPUS; v++)
		set_up_vcpu(&self->vmm, v);
}

FIXTURE_TEARDOWN(xen_vmm)
{
	int v;

	for (v = 0; v < NR_VCPUS; v++)
		close(self->vmm.irqfds[v]);
	kvm_vm_free(self->vmm.vm);
}

static void run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
}

static u64 exit_stage(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	return uc.args[1];
}

static void *guest_var(struct kvm_vm *vm, void *var)
{
	return addr_gva2hva(vm, (gva_t)var);
}

static struct xen_vcpu_info *vcpu_info(struct vmm *vmm, int v)
{
	return vmm->shinfo + v * sizeof(struct xen_vcpu_info);
}

static void set_memslot(struct kvm_vm *vm, bool present)
{
	struct userspace_mem_region *region = memslot2region(vm, SHINFO_SLOT);
	struct kvm_userspace_memory_region slot = {
		.slot = SHINFO_SLOT,
		.guest_phys_addr = SHINFO_GPA,
		.memory_size = present ? PAGE_SIZE : 0,
		.userspace_addr = (unsigned long)region->host_mem,
	};

	vm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

static void set_access(void *page, bool access)
{
	TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, access ? PROT_READ | PROT_WRITE : PROT_NONE), 0);
}

/* Another vCPU than the port's sends. */
static void send_from_guest(struct vmm *vmm, int v)
{
	int sender = (v + 1) % NR_VCPUS;
	u32 *port = guest_var(vmm->vm, &guest[sender].send_port);

	WRITE_ONCE(*port, port_of(v, BY_HCALL));
	run(vmm->vcpus[sender]);
}

static void raise_event(struct vmm *vmm, int v, enum way way)
{
	switch (way) {
	case BY_IOCTL:
		xen_evtchn_send(vmm->vcpus[v], port_of(v, way));
		break;
	case BY_IRQFD:
		TEST_ASSERT_EQ(eventfd_write(vmm->irqfds[v], 1), 0);
		/* A worker may deliver the event; deassigning waits for it. */
		kvm_deassign_irqfd(vmm->vm, FIRST_XEN_GSI + v, vmm->irqfds[v]);
		kvm_assign_irqfd(vmm->vm, FIRST_XEN_GSI + v, vmm->irqfds[v]);
		break;
	case BY_HCALL:
		send_from_guest(vmm, v);
		break;
	default:
		/* In the past. */
		xen_set_timer(vmm->vcpus[v], port_of(v, way), 1);
	}
}

static void expect_seen(struct __test_metadata *_metadata, struct vmm *vmm,
			int v, u32 ways)
{
	u32 *seen = guest_var(vmm->vm, &guest[v].seen);
	enum way way;

	run(vmm->vcpus[v]);
	EXPECT_EQ(*seen, ways) {
		for (way = 0; way < NR_WAYS; way++) {
			if (ways & ~*seen & BIT(way))
				TH_LOG("vCPU %d misses an event by %s", v, way_names[way]);
		}
	}
	*seen = 0;
}

static void raise_and_expect(struct __test_metadata *_metadata, struct vmm *vmm,
			     u32 ways)
{
	enum way way;
	int v;

	for (v = 0; v < NR_VCPUS; v++) {
		for (way = 0; way < NR_WAYS; way++) {
			if (ways & BIT(way))
				raise_event(vmm, v, way);
		}
	}
	for (v = 0; v < NR_VCPUS; v++)
		expect_seen(_metadata, vmm, v, ways);
}

/* The vCPUs get each event alone, all events at once, and the time. */
static void expect_all_is_well(struct __test_metadata *_metadata, struct vmm *vmm)
{
	u32 version[NR_VCPUS];
	enum way way;
	int v;

	for (v = 0; v < NR_VCPUS; v++)
		version[v] = vcpu_info(vmm, v)->time.version;
	xen_set_clock(vmm->vm, xen_get_clock(vmm->vm));

	for (way = 0; way < NR_WAYS; way++)
		raise_and_expect(_metadata, vmm, BIT(way));
	raise_and_expect(_metadata, vmm, ALL_WAYS);

	for (v = 0; v < NR_VCPUS; v++) {
		EXPECT_NE(vcpu_info(vmm, v)->time.version, version[v])
			TH_LOG("vCPU %d does not get the time", v);
		EXPECT_EQ(vcpu_info(vmm, v)->time.version % 2, 0);
	}
}

static void start(struct __test_metadata *_metadata, struct vmm *vmm)
{
	int v;

	vm_install_exception_handler(vmm->vm, UPCALL_VECTOR, guest_upcall);
	xen_set_upcall_vector(vmm->vm, UPCALL_VECTOR);
	for (v = 0; v < NR_VCPUS; v++)
		run(vmm->vcpus[v]);
	expect_all_is_well(_metadata, vmm);
}

TEST_F(xen_vmm, page_is_dropped)
{
	start(_metadata, &self->vmm);
	TEST_ASSERT_EQ(madvise(self->vmm.shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	expect_all_is_well(_metadata, &self->vmm);
}

TEST_F(xen_vmm, access_is_denied_for_a_while)
{
	start(_metadata, &self->vmm);
	set_access(self->vmm.shinfo, false);
	set_access(self->vmm.shinfo, true);
	expect_all_is_well(_metadata, &self->vmm);
}

/* The page moves from one node to another at least once. */
TEST_F(xen_vmm, page_is_moved)
{
	int node, status = -1, moved = 0;

	start(_metadata, &self->vmm);
	for (node = 0; node < 2; node++) {
		if (syscall(__NR_move_pages, 0, 1, &self->vmm.shinfo, &node, &status,
			    MPOL_MF_MOVE) < 0)
			SKIP(return, "move_pages(): %s", strerror(errno));
		moved += status == node;
		expect_all_is_well(_metadata, &self->vmm);
	}
	EXPECT_EQ(moved, 2);
}

TEST_F(xen_vmm, memslot_is_created_anew)
{
	start(_metadata, &self->vmm);
	set_memslot(self->vmm.vm, false);
	set_memslot(self->vmm.vm, true);
	expect_all_is_well(_metadata, &self->vmm);
}

/* shared_info is there by HVA.  A vCPU that sends needs the memslot. */
TEST_F(xen_vmm, events_without_memslot)
{
	const u32 ways = ALL_WAYS & ~BIT(BY_HCALL);
	enum way way;
	int v;

	start(_metadata, &self->vmm);
	set_memslot(self->vmm.vm, false);
	for (v = 0; v < NR_VCPUS; v++) {
		for (way = 0; way < NR_WAYS; way++) {
			if (!(ways & BIT(way)))
				continue;
			raise_event(&self->vmm, v, way);
			EXPECT_TRUE(xen_is_pending(self->vmm.shinfo, port_of(v, way)))
				TH_LOG("vCPU %d, by %s", v, way_names[way]);
		}
		EXPECT_EQ(vcpu_info(&self->vmm, v)->evtchn_pending_sel, 0);
	}

	set_memslot(self->vmm.vm, true);
	for (v = 0; v < NR_VCPUS; v++)
		expect_seen(_metadata, &self->vmm, v, ways);
	expect_all_is_well(_metadata, &self->vmm);
}

/* Neither area can be mapped. */
TEST_F(xen_vmm, events_without_access)
{
	const u32 ways = BIT(BY_IRQFD) | BIT(BY_TIMER);
	enum way way;
	int v;

	start(_metadata, &self->vmm);
	set_access(self->vmm.shinfo, false);
	for (v = 0; v < NR_VCPUS; v++) {
		for (way = 0; way < NR_WAYS; way++) {
			if (ways & BIT(way))
				raise_event(&self->vmm, v, way);
		}
	}
	set_access(self->vmm.shinfo, true);
	for (v = 0; v < NR_VCPUS; v++)
		expect_seen(_metadata, &self->vmm, v, ways);
	expect_all_is_well(_metadata, &self->vmm);
}

/* Events wake a halted vCPU after changes of the page. */
static void halt(struct __test_metadata *_metadata, struct vmm *vmm,
		 struct vcpu_thread *thread)
{
	start(_metadata, vmm);
	vcpu_arch_set_entry_point(vmm->vcpus[1], guest_halt);
	vcpu_args_set(vmm->vcpus[1], 1, 1);
	vcpu_thread_start(thread, vmm->vcpus[1]);
	ASSERT_TRUE(vcpu_thread_rests(thread));
}

static void expect_woken(struct __test_metadata *_metadata, struct vmm *vmm,
			 struct vcpu_thread *thread, enum way way)
{
	u32 *seen = guest_var(vmm->vm, &guest[1].seen);

	ASSERT_TRUE(vcpu_thread_finish(thread))
		TH_LOG("The event does not wake the vCPU");
	EXPECT_EQ(*seen, BIT(way));
}

TEST_F(xen_vmm, halted_page_is_dropped)
{
	struct vcpu_thread thread;

	halt(_metadata, &self->vmm, &thread);
	TEST_ASSERT_EQ(madvise(self->vmm.shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	raise_event(&self->vmm, 1, BY_IRQFD);
	expect_woken(_metadata, &self->vmm, &thread, BY_IRQFD);
}

TEST_F(xen_vmm, halted_access_is_denied_for_a_while)
{
	struct vcpu_thread thread;

	halt(_metadata, &self->vmm, &thread);
	set_access(self->vmm.shinfo, false);
	raise_event(&self->vmm, 1, BY_IRQFD);
	set_access(self->vmm.shinfo, true);
	expect_woken(_metadata, &self->vmm, &thread, BY_IRQFD);
}

TEST_F(xen_vmm, halted_memslot_is_created_anew)
{
	struct vcpu_thread thread;

	halt(_metadata, &self->vmm, &thread);
	set_memslot(self->vmm.vm, false);
	raise_event(&self->vmm, 1, BY_IOCTL);
	set_memslot(self->vmm.vm, true);
	expect_woken(_metadata, &self->vmm, &thread, BY_IOCTL);
}

/* The guest has asked for a GSI, so KVM has no vector. */

enum gsi_kind {
	GSI_IS_LINE,
	GSI_IS_MSI,
};

/* Updated by the VMM after each exit. */
struct gsi {
	enum gsi_kind kind;
	bool asserted;
};

static void set_gsi(struct kvm_vm *vm, enum gsi_kind kind, bool level)
{
	struct kvm_msi msi = {
		.address_lo = APIC_DEFAULT_GPA,
		.data = UPCALL_VECTOR,
	};

	if (kind == GSI_IS_LINE)
		kvm_irq_line(vm, CALLBACK_GSI, level);
	else if (level)
		TEST_ASSERT_EQ(__vm_ioctl(vm, KVM_SIGNAL_MSI, &msi), 1);
}

static void update_gsi(struct vmm *vmm, struct gsi *gsi)
{
	bool pending = READ_ONCE(vcpu_info(vmm, 0)->evtchn_upcall_pending);

	if (pending != gsi->asserted)
		set_gsi(vmm->vm, gsi->kind, pending);
	gsi->asserted = pending;
}

static bool set_up_ioapic(struct kvm_vm *vm)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_IOAPIC };

	if (__vm_ioctl(vm, KVM_GET_IRQCHIP, &chip))
		return false;

	memset(&chip.chip.ioapic.redirtbl[CALLBACK_GSI], 0,
	       sizeof(chip.chip.ioapic.redirtbl[CALLBACK_GSI]));
	chip.chip.ioapic.redirtbl[CALLBACK_GSI].fields.vector = UPCALL_VECTOR;
	chip.chip.ioapic.redirtbl[CALLBACK_GSI].fields.trig_mode = 1;
	vm_ioctl(vm, KVM_SET_IRQCHIP, &chip);
	return true;
}

static void start_without_vector(struct vmm *vmm)
{
	bool *exits = guest_var(vmm->vm, &exit_in_upcall);
	int v;

	*exits = true;
	vm_install_exception_handler(vmm->vm, UPCALL_VECTOR, guest_gsi);
	for (v = 0; v < NR_VCPUS; v++)
		run(vmm->vcpus[v]);
}

/* The guest gets its interrupt from the VMM alone. */
static void expect_seen_by_gsi(struct __test_metadata *_metadata, struct vmm *vmm,
			       struct gsi *gsi, u32 ways)
{
	u32 *upcalls = guest_var(vmm->vm, &guest[0].nr_upcalls);
	u32 *seen = guest_var(vmm->vm, &guest[0].seen);
	u32 before = *upcalls;

	run(vmm->vcpus[0]);
	EXPECT_EQ(exit_stage(vmm->vcpus[0]), GUEST_IDLE);
	EXPECT_EQ(*upcalls, before);
	update_gsi(vmm, gsi);
	EXPECT_TRUE(gsi->asserted);

	run(vmm->vcpus[0]);
	EXPECT_EQ(exit_stage(vmm->vcpus[0]), GUEST_IN_UPCALL);
	EXPECT_EQ(*upcalls, before + 1);
	EXPECT_EQ(*seen, ways);
	*seen = 0;
	update_gsi(vmm, gsi);
	EXPECT_FALSE(gsi->asserted);

	/* There is no other interrupt. */
	run(vmm->vcpus[0]);
	EXPECT_EQ(exit_stage(vmm->vcpus[0]), GUEST_IDLE);
	update_gsi(vmm, gsi);
	EXPECT_FALSE(gsi->asserted);
	EXPECT_EQ(*upcalls, before + 1);
}

static void expect_events_by_gsi(struct __test_metadata *_metadata, struct vmm *vmm,
				 enum gsi_kind kind)
{
	struct gsi gsi = { .kind = kind };
	enum way way;

	start_without_vector(vmm);
	for (way = 0; way < NR_WAYS; way++) {
		raise_event(vmm, 0, way);
		expect_seen_by_gsi(_metadata, vmm, &gsi, BIT(way));
	}

	for (way = 0; way < NR_WAYS; way++)
		raise_event(vmm, 0, way);
	expect_seen_by_gsi(_metadata, vmm, &gsi, ALL_WAYS);

	/* The same with the page dropped, and with the memslot deleted. */
	TEST_ASSERT_EQ(madvise(vmm->shinfo, PAGE_SIZE, MADV_DONTNEED), 0);
	raise_event(vmm, 0, BY_IRQFD);
	expect_seen_by_gsi(_metadata, vmm, &gsi, BIT(BY_IRQFD));
	set_memslot(vmm->vm, false);
	raise_event(vmm, 0, BY_IOCTL);
	set_memslot(vmm->vm, true);
	expect_seen_by_gsi(_metadata, vmm, &gsi, BIT(BY_IOCTL));
}

TEST_F(xen_vmm, gsi_is_line)
{
	if (!set_up_ioapic(self->vmm.vm))
		SKIP(return, "KVM has no I/O APIC");
	expect_events_by_gsi(_metadata, &self->vmm, GSI_IS_LINE);
}

TEST_F(xen_vmm, gsi_is_msi)
{
	expect_events_by_gsi(_metadata, &self->vmm, GSI_IS_MSI);
}

/* Another event is raised before the VMM deasserts the GSI. */
TEST_F(xen_vmm, gsi_stays_asserted)
{
	u32 *upcalls = guest_var(self->vmm.vm, &guest[0].nr_upcalls);
	u32 *seen = guest_var(self->vmm.vm, &guest[0].seen);
	struct gsi gsi = { .kind = GSI_IS_LINE };

	if (!set_up_ioapic(self->vmm.vm))
		SKIP(return, "KVM has no I/O APIC");

	start_without_vector(&self->vmm);
	raise_event(&self->vmm, 0, BY_IOCTL);
	update_gsi(&self->vmm, &gsi);
	run(self->vmm.vcpus[0]);
	EXPECT_EQ(exit_stage(self->vmm.vcpus[0]), GUEST_IN_UPCALL);
	raise_event(&self->vmm, 0, BY_IRQFD);
	update_gsi(&self->vmm, &gsi);
	EXPECT_TRUE(gsi.asserted);
	EXPECT_EQ(*seen, BIT(BY_IOCTL));

	run(self->vmm.vcpus[0]);
	EXPECT_EQ(exit_stage(self->vmm.vcpus[0]), GUEST_IN_UPCALL);
	update_gsi(&self->vmm, &gsi);
	EXPECT_FALSE(gsi.asserted);
	EXPECT_EQ(*seen, BIT(BY_IOCTL) | BIT(BY_IRQFD));
	EXPECT_EQ(*upcalls, 2);

	run(self->vmm.vcpus[0]);
	EXPECT_EQ(exit_stage(self->vmm.vcpus[0]), GUEST_IDLE);
	EXPECT_EQ(*upcalls, 2);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA);

	return test_harness_run(argc, argv);
}
