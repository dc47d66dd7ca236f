/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests of KVM's Xen emulation share: the guest's ABI, as far as tests
 * look at it, and the ioctls that set a VM up for it.
 */
#ifndef SELFTEST_KVM_XEN_H
#define SELFTEST_KVM_XEN_H

#include <asm/pvclock-abi.h>

#include "kvm_util.h"
#include "processor.h"

#define XEN_HYPERCALL_MSR		0x40000000

#define __HYPERVISOR_set_timer_op	15
#define __HYPERVISOR_vcpu_op		24
#define VCPUOP_set_singleshot_timer	8
#define __HYPERVISOR_sched_op		29
#define SCHEDOP_poll			3
#define __HYPERVISOR_event_channel_op	32
#define EVTCHNOP_send			4

enum {
	EVTCHNSTAT_closed,
	EVTCHNSTAT_unbound,
	EVTCHNSTAT_interdomain,
	EVTCHNSTAT_pirq,
	EVTCHNSTAT_virq,
	EVTCHNSTAT_ipi,
};

struct xen_vcpu_info {
	u8 evtchn_upcall_pending;
	u8 evtchn_upcall_mask;
	u64 evtchn_pending_sel;
	u64 arch[2];
	struct pvclock_vcpu_time_info time;
};

struct xen_vcpu_info32 {
	u8 evtchn_upcall_pending;
	u8 evtchn_upcall_mask;
	u32 evtchn_pending_sel;
	u32 arch[6];
	struct pvclock_vcpu_time_info time;
};

struct xen_shared_info {
	u8 vcpu_info[32][64];
	u64 evtchn_pending[64];
	u64 evtchn_mask[64];
};

struct xen_shared_info32 {
	u8 vcpu_info[32][64];
	u32 evtchn_pending[32];
	u32 evtchn_mask[32];
};

enum {
	RUNSTATE_running,
	RUNSTATE_runnable,
	RUNSTATE_blocked,
	RUNSTATE_offline,
};

/* The guest may place it at any address. */
struct xen_runstate {
	u32 state;
	u32 pad;
	u64 entry_time;
	u64 time[4];
} __packed;

static_assert(sizeof(struct xen_vcpu_info) == 64);
static_assert(sizeof(struct xen_vcpu_info32) == 64);

static inline bool xen_is_pending(struct xen_shared_info *shinfo, u32 port)
{
	return READ_ONCE(shinfo->evtchn_pending[port / 64]) & BIT_ULL(port % 64);
}

struct xen_sched_poll {
	u32 *ports;
	u32 nr_ports;
	u64 timeout;
};

struct xen_singleshot_timer {
	u64 timeout_abs_ns;
	u32 flags;
};

/*
 * KVM handles this VM exit itself, and processes what is pending for the vCPU
 * before it enters the guest again.
 */
static inline void xen_guest_exit(void)
{
	u32 eax, ebx, ecx, edx;

	cpuid(0, &eax, &ebx, &ecx, &edx);
}

static inline void xen_guest_idle(void)
{
	for (;;) {
		xen_guest_exit();
		GUEST_SYNC(0);
	}
}

static inline u64 xen_guest_send(u32 port)
{
	return __xen_hypercall(__HYPERVISOR_event_channel_op, EVTCHNOP_send, &port);
}

/* Block until PORT is pending or until the time TIMEOUT, if that isn't 0. */
static inline u64 xen_guest_poll(u32 port, u64 timeout)
{
	struct xen_sched_poll poll = {
		.ports = &port,
		.nr_ports = 1,
		.timeout = timeout,
	};

	return __xen_hypercall(__HYPERVISOR_sched_op, SCHEDOP_poll, &poll);
}

/* Have the vCPU's timer expire at WHEN, in ns of the guest's clock... */
static inline u64 xen_guest_set_timer(u64 when)
{
	return __xen_hypercall(__HYPERVISOR_set_timer_op, when, NULL);
}

/* ... and by the newer hypercall. */
static inline u64 xen_guest_set_singleshot_timer(u32 vcpu_id, u64 when)
{
	struct xen_singleshot_timer timer = { .timeout_abs_ns = when };

	return __xen_hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, vcpu_id,
				&timer);
}

static inline int __xen_set_long_mode(struct kvm_vm *vm, bool long_mode)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_LONG_MODE,
		.u.long_mode = long_mode,
	};

	return __vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static inline void xen_set_long_mode(struct kvm_vm *vm, bool long_mode)
{
	TEST_ASSERT_EQ(__xen_set_long_mode(vm, long_mode), 0);
}

static inline bool xen_get_long_mode(struct kvm_vm *vm)
{
	struct kvm_xen_hvm_attr attr = { .type = KVM_XEN_ATTR_TYPE_LONG_MODE };

	vm_ioctl(vm, KVM_XEN_HVM_GET_ATTR, &attr);
	return attr.u.long_mode;
}

static inline void xen_enable_with(struct kvm_vm *vm, u32 flags)
{
	struct kvm_xen_hvm_config config = {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
			 KVM_XEN_HVM_CONFIG_EVTCHN_SEND | flags,
		.msr = XEN_HYPERCALL_MSR,
	};

	vm_ioctl(vm, KVM_XEN_HVM_CONFIG, &config);
	xen_set_long_mode(vm, true);
}

/* The guest's hypercalls and event channels go to KVM; the guest is 64-bit. */
static inline void xen_enable(struct kvm_vm *vm)
{
	xen_enable_with(vm, 0);
}

/*
 * The same, and vcpu_info is in shared_info until it is registered elsewhere.
 */
static inline void xen_enable_default_vcpu_info(struct kvm_vm *vm)
{
	xen_enable_with(vm, KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);
}

/* Events of any vCPU raise VECTOR as an external interrupt, like the PIC's. */
static inline void xen_set_upcall_vector(struct kvm_vm *vm, u8 vector)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR,
		.u.vector = vector,
	};

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static inline void xen_set_shared_info(struct kvm_vm *vm, u64 gpa)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = gpa / PAGE_SIZE,
	};

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static inline void xen_set_vcpu_area(struct kvm_vcpu *vcpu, u16 type, u64 gpa)
{
	struct kvm_xen_vcpu_attr attr = { .type = type, .u.gpa = gpa };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static inline void xen_set_vcpu_info(struct kvm_vcpu *vcpu, u64 gpa)
{
	xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa);
}

/* Events of this vCPU raise VECTOR in its local APIC. */
static inline void xen_set_vcpu_upcall_vector(struct kvm_vcpu *vcpu, u8 vector)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
		.u.vector = vector,
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static inline int __xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 id)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID,
		.u.vcpu_id = id,
	};

	return __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

static inline void xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 id)
{
	TEST_ASSERT_EQ(__xen_set_vcpu_id(vcpu, id), 0);
}

/* A timer of KVM's that raises PORT at EXPIRES_NS of the guest's clock. */
static inline void xen_set_timer(struct kvm_vcpu *vcpu, u32 port, u64 expires_ns)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_TIMER,
		.u.timer = {
			.port = port,
			.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			.expires_ns = expires_ns,
		},
	};

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
}

/* 0 if the timer is not set, i.e. also once its event was delivered. */
static inline u64 xen_timer_expires(struct kvm_vcpu *vcpu)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_TIMER };

	vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
	return attr.u.timer.expires_ns;
}

static inline u64 xen_get_clock(struct kvm_vm *vm)
{
	struct kvm_clock_data clock;

	vm_ioctl(vm, KVM_GET_CLOCK, &clock);
	return clock.clock;
}

static inline void xen_set_clock(struct kvm_vm *vm, u64 ns)
{
	struct kvm_clock_data clock = { .clock = ns };

	vm_ioctl(vm, KVM_SET_CLOCK, &clock);
}

static inline struct kvm_irq_routing_xen_evtchn xen_evtchn(struct kvm_vcpu *vcpu, u32 port)
{
	return (struct kvm_irq_routing_xen_evtchn) {
		.port = port,
		.vcpu = vcpu->id,
		.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
	};
}

static inline void xen_evtchn_send(struct kvm_vcpu *vcpu, u32 port)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpu, port);

	vm_ioctl(vcpu->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);
}

static inline void __xen_bind_evtchn(struct kvm_vcpu *vcpu, u32 port, u32 type, u32 flags)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_EVTCHN,
		.u.evtchn = {
			.send_port = port,
			.type = type,
			.flags = flags,
			.deliver.port = {
				.port = port,
				.vcpu = vcpu->id,
				.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
			},
		},
	};

	vm_ioctl(vcpu->vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

/* What the guest sends to PORT, KVM delivers to the same port of VCPU. */
static inline void xen_bind_evtchn(struct kvm_vcpu *vcpu, u32 port, u32 flags)
{
	__xen_bind_evtchn(vcpu, port, EVTCHNSTAT_interdomain, flags);
}

/* The same for what VCPU sends to itself. */
static inline void xen_bind_ipi(struct kvm_vcpu *vcpu, u32 port)
{
	__xen_bind_evtchn(vcpu, port, EVTCHNSTAT_ipi, 0);
}

/* An eventfd that raises PORT, by way of GSI, the only one that is routed. */
static inline int xen_irqfd(struct kvm_vcpu *vcpu, u32 gsi, u32 port)
{
	struct {
		struct kvm_irq_routing info;
		struct kvm_irq_routing_entry entry;
	} routing = {
		.info.nr = 1,
		.entry = {
			.gsi = gsi,
			.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
			.u.xen_evtchn = xen_evtchn(vcpu, port),
		},
	};
	int fd = kvm_new_eventfd();

	vm_ioctl(vcpu->vm, KVM_SET_GSI_ROUTING, &routing.info);
	kvm_assign_irqfd(vcpu->vm, gsi, fd);
	return fd;
}

static inline bool xen_has_evtchn_send(void)
{
	int flags = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

	return (kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags;
}

#endif /* SELFTEST_KVM_XEN_H */
