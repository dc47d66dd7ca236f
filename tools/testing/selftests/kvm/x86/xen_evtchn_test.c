// SPDX-License-Identifier: GPL-2.0-only
/*
 * Delivery of Xen event channels when a place that an event goes to, i.e.
 * shared_info or the vCPU's vcpu_info, was never registered.
 *
 * Each way of raising an event fails or defers the event as documented, KVM
 * does not WARN, and an event that is deferred is there once the vCPU gets its
 * vcpu_info.
 */
#include <sys/eventfd.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "kvm_test_harness.h"

#define XEN_REGION_GPA		0xc0000000ULL
#define XEN_REGION_SLOT		10
#define SHINFO_GPA		XEN_REGION_GPA
#define VCPU_INFO_GPA		(XEN_REGION_GPA + PAGE_SIZE)

#define XEN_HYPERCALL_MSR	0x40000000
#define EVTCHN_PORT		66
#define EVTCHN_GSI		32

#define __HYPERVISOR_event_channel_op	32
#define EVTCHNOP_send			4
#define EVTCHNSTAT_interdomain		2

/* The 64-bit layouts; only what the test looks at. */
struct xen_vcpu_info {
	u8 evtchn_upcall_pending;
	u8 evtchn_upcall_mask;
	u64 evtchn_pending_sel;
};

struct xen_shared_info {
	u8 vcpu_info[32][64];
	u64 evtchn_pending[64];
	u64 evtchn_mask[64];
};

/*
 * KVM puts what is pending for a vCPU into its vcpu_info between two entries,
 * i.e. after an exit that does not go to userspace.
 */
static void guest_idle(void)
{
	u32 eax, ebx, ecx, edx;

	for (;;) {
		cpuid(0, &eax, &ebx, &ecx, &edx);
		GUEST_SYNC(0);
	}
}

static void guest_send(void)
{
	u32 port = EVTCHN_PORT;

	__xen_hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, &port);
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

static struct kvm_irq_routing_xen_evtchn xen_evtchn(struct kvm_vcpu *vcpu)
{
	return (struct kvm_irq_routing_xen_evtchn) {
		.port = EVTCHN_PORT,
		.vcpu = vcpu->id,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};
}

static void set_shared_info(struct kvm_vm *vm)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = SHINFO_GPA / PAGE_SIZE,
	};

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void set_vcpu_info(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
		.u.gpa = VCPU_INFO_GPA,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static bool event_is_pending(struct kvm_vm *vm)
{
	struct xen_shared_info *shinfo = addr_gpa2hva(vm, SHINFO_GPA);

	return shinfo->evtchn_pending[EVTCHN_PORT / 64] & BIT_ULL(EVTCHN_PORT % 64);
}

FIXTURE(xen_evtchn) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	int warn_count;
};

FIXTURE_SETUP(xen_evtchn)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
			 KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = XEN_HYPERCALL_MSR,
	};
	struct kvm_xen_hvm_attr long_mode = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE,
		.u.long_mode = 1,
	};

	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS,
				    XEN_REGION_GPA, XEN_REGION_SLOT, 2, 0);

	vm_ioctl(self->vm, KVM_XEN_HVM_CONFIG, &config);
	vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &long_mode);

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
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(self->vcpu);

	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e), -1);
	EXPECT_EQ(errno, EINVAL);

	/* The failure leaves nothing behind that is in the way of success. */
	set_shared_info(self->vm);
	EXPECT_FALSE(event_is_pending(self->vm));
	vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);
	EXPECT_TRUE(event_is_pending(self->vm));
}

TEST_F(xen_evtchn, irqfd_without_shared_info)
{
	struct {
		struct kvm_irq_routing info;
		struct kvm_irq_routing_entry entry;
	} routing = {
		.info.nr = 1,
		.entry = {
			.gsi = EVTCHN_GSI,
			.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
			.u.xen_evtchn = xen_evtchn(self->vcpu),
		},
	};
	int fd = kvm_new_eventfd();

	vm_ioctl(self->vm, KVM_SET_GSI_ROUTING, &routing.info);
	kvm_assign_irqfd(self->vm, EVTCHN_GSI, fd);
	TEST_ASSERT_EQ(eventfd_write(fd, 1), 0);

	/* The event goes to a worker; deassigning the irqfd waits for it. */
	kvm_deassign_irqfd(self->vm, EVTCHN_GSI, fd);
	close(fd);
}

TEST_F(xen_evtchn, timer_without_shared_info)
{
	struct kvm_xen_vcpu_attr timer = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_TIMER,
		.u.timer = {
			.port = EVTCHN_PORT,
			.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			.expires_ns = 1,
		},
	};

	/* In the past: pending at once, for the vCPU to deliver. */
	vcpu_ioctl(self->vcpu, KVM_XEN_VCPU_SET_ATTR, &timer);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
}

TEST_F(xen_evtchn, hypercall_without_shared_info)
{
	struct kvm_xen_hvm_attr send = {
		.type = KVM_XEN_ATTR_TYPE_EVTCHN,
		.u.evtchn = {
			.send_port = EVTCHN_PORT,
			.type = EVTCHNSTAT_interdomain,
			.deliver.port = {
				.port = EVTCHN_PORT,
				.vcpu = self->vcpu->id,
				.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			},
		},
	};

	vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &send);
	vcpu_arch_set_entry_point(self->vcpu, guest_send);
	vcpu_run(self->vcpu);

	/* What KVM cannot deliver is the VMM's. */
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_XEN);
	EXPECT_EQ(self->vcpu->run->xen.u.hcall.input, __HYPERVISOR_event_channel_op);
	EXPECT_EQ(self->vcpu->run->xen.u.hcall.params[0], EVTCHNOP_send);
}

TEST_F(xen_evtchn, pending_without_vcpu_info)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(self->vcpu);
	struct xen_vcpu_info *vi = addr_gpa2hva(self->vm, VCPU_INFO_GPA);

	set_shared_info(self->vm);
	vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);
	EXPECT_TRUE(event_is_pending(self->vm));

	/* The vCPU finds the event pending and has nowhere to put it... */
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(vi->evtchn_upcall_pending, 0);
	EXPECT_EQ(vi->evtchn_pending_sel, 0);

	/* ... and delivers it as soon as it has. */
	set_vcpu_info(self->vcpu);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(vi->evtchn_upcall_pending, 1);
	EXPECT_EQ(vi->evtchn_pending_sel, BIT_ULL(EVTCHN_PORT / 64));
}

int main(int argc, char *argv[])
{
	int flags = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

	TEST_REQUIRE((kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags);

	return test_harness_run(argc, argv);
}
