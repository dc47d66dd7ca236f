/* SPDX-License-Identifier: GPL-2.0 */
/*
 * KVM Xen emulation: what xen*.c share with each other, and with x86.c, which
 * writes the clocks in the areas.
 */
#ifndef __ARCH_X86_KVM_XEN_AREA_H__
#define __ARCH_X86_KVM_XEN_AREA_H__

#include <linux/kvm_host.h>

#include "xen_layout.h"

/*
 * xen_area.c; setters and kvm_xen_use_default_vcpu_info() under xen_lock, but
 * for kvm_xen_set_shared_info(), which takes it.
 */
int kvm_xen_area_error(int r);
int kvm_xen_set_long_mode(struct kvm *kvm, bool long_mode);
int kvm_xen_set_shared_info(struct kvm *kvm, struct kvm_xen_hvm_attr *data);
int kvm_xen_use_default_vcpu_info(struct kvm *kvm, bool use);
int kvm_xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 vcpu_id);
int kvm_xen_set_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);
int kvm_xen_set_vcpu_time_info(struct kvm_vcpu *vcpu, gpa_t gpa);
int kvm_xen_wait_shared_info(struct kvm *kvm);
int kvm_xen_get_guest_pvclock(struct kvm_vcpu *vcpu,
			      struct pvclock_vcpu_time_info *hv_clock);

/*
 * Find the vCPU's vcpu_info: where it was registered or else, if userspace has
 * enabled that, in shared_info, which has 32 of them.  The cache need not be
 * active.
 *
 * A sender sets the port's bit and then calls this, with a full barrier in
 * between (D).  When vcpu_info has moved, KVM has the guest scan all of its
 * ports (E).  So the result may be out of date: the guest finds the port even
 * if its selector is set in the old place.
 */
static inline struct gfn_to_pfn_cache *kvm_xen_vcpu_info(struct kvm_vcpu *vcpu,
							 unsigned int *offset)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.vcpu_info_cache;
	struct kvm_xen *xen = &vcpu->kvm->arch.xen;
	u32 id = READ_ONCE(vcpu->arch.xen.vcpu_id);

	*offset = 0;
	if (kvm_gpc_is_active(gpc) || !READ_ONCE(xen->default_vcpu_info) || id >= MAX_VIRT_CPUS)
		return gpc;

	*offset = id * sizeof(struct vcpu_info);
	return &xen->shinfo_cache;
}

/* xen_evtchn.c */
u32 kvm_xen_nr_ports(struct kvm *kvm);
int kvm_xen_raise_port(struct kvm_vcpu *vcpu, u32 port);
bool kvm_xen_defer_event(struct kvm_vcpu *vcpu, u32 port);
bool kvm_xen_is_deferred(struct kvm_vcpu *vcpu, u32 port);
void kvm_xen_drop_deferred_events(struct kvm_vcpu *vcpu);
int kvm_xen_set_evtchn(struct kvm_vcpu *vcpu, u32 port);
struct kvm_vcpu *kvm_xen_save_evtchn_vcpu(struct kvm_xen_evtchn *xe, struct kvm *kvm);
bool kvm_xen_schedop_poll(struct kvm_vcpu *vcpu, bool longmode, u64 param, u64 *r);
void kvm_xen_init_vcpu_events(struct kvm_vcpu *vcpu);

/* xen_timer.c */
u64 kvm_xen_guest_now(struct kvm_vcpu *vcpu, s64 *kernel_now);
void kvm_xen_start_timer(struct kvm_vcpu *vcpu, u64 guest_abs, bool linux_wa);
void kvm_xen_stop_timer(struct kvm_vcpu *vcpu);
int kvm_xen_set_timer(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);
void kvm_xen_get_timer(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);
void kvm_xen_init_vcpu_timer(struct kvm_vcpu *vcpu);

/* xen_runstate.c */
int kvm_xen_set_runstate(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);
int kvm_xen_get_runstate(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);

#endif
