/* SPDX-License-Identifier: GPL-2.0 */
/*
 * KVM Xen emulation: the areas of guest memory that are shared with the guest.  Only
 * for xen.c, and for x86.c, which writes the clocks in them.
 */
#ifndef __ARCH_X86_KVM_XEN_AREA_H__
#define __ARCH_X86_KVM_XEN_AREA_H__

#include <linux/kvm_host.h>

#include <asm/pvclock-abi.h>
#include <asm/xen/interface.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/vcpu.h>

int kvm_xen_set_long_mode(struct kvm *kvm, bool long_mode);
int kvm_xen_set_shared_info(struct kvm *kvm, struct kvm_xen_hvm_attr *data);
int kvm_xen_use_default_vcpu_info(struct kvm *kvm, bool use);
int kvm_xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 vcpu_id);
struct gfn_to_pfn_cache *kvm_xen_vcpu_info(struct kvm_vcpu *vcpu, unsigned int *offset);
int kvm_xen_set_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data);
int kvm_xen_set_vcpu_time_info(struct kvm_vcpu *vcpu, gpa_t gpa);
int kvm_xen_set_runstate_addr(struct kvm_vcpu *vcpu, gpa_t gpa);

u32 kvm_xen_nr_ports(struct kvm *kvm);
int kvm_xen_wait_shared_info(struct kvm *kvm);
bool kvm_xen_area_is_gone(struct kvm *kvm, struct gfn_to_pfn_cache *gpc);
bool kvm_xen_any_pending(struct kvm *kvm, const evtchn_port_t *ports, int nr_ports);
void kvm_xen_wake_pollers(struct kvm *kvm, u32 port);
int kvm_xen_raise_port(struct kvm_vcpu *vcpu, u32 port);
bool kvm_xen_set_pending_sels(struct kvm_vcpu *v);
int kvm_xen_get_guest_pvclock(struct kvm_vcpu *vcpu,
			      struct pvclock_vcpu_time_info *hv_clock);
void kvm_xen_update_runstate_guest(struct kvm_vcpu *v);
void kvm_xen_try_update_runstate_guest(struct kvm_vcpu *v);

/* 32-bit compatibility definitions, also used natively in 32-bit build */
struct compat_arch_vcpu_info {
	unsigned int cr2;
	unsigned int pad[5];
};

struct compat_vcpu_info {
	u8 evtchn_upcall_pending;
	u8 evtchn_upcall_mask;
	u16 pad;
	u32 evtchn_pending_sel;
	struct compat_arch_vcpu_info arch;
	struct pvclock_vcpu_time_info time;
}; /* 64 bytes (x86) */

struct compat_arch_shared_info {
	unsigned int max_pfn;
	unsigned int pfn_to_mfn_frame_list_list;
	unsigned int nmi_reason;
	unsigned int p2m_cr3;
	unsigned int p2m_vaddr;
	unsigned int p2m_generation;
	u32 wc_sec_hi;
};

struct compat_shared_info {
	struct compat_vcpu_info vcpu_info[MAX_VIRT_CPUS];
	u32 evtchn_pending[32];
	u32 evtchn_mask[32];
	struct pvclock_wall_clock wc;
	struct compat_arch_shared_info arch;
};

#define COMPAT_EVTCHN_2L_NR_CHANNELS (8 *				\
				      sizeof_field(struct compat_shared_info, \
						   evtchn_pending))

struct compat_vcpu_runstate_info {
	int state;
	u64 state_entry_time;
	u64 time[4];
} __packed;

#endif
