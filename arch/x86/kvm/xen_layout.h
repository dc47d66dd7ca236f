/* SPDX-License-Identifier: GPL-2.0 */
/*
 * KVM Xen emulation: the layouts of the areas that are shared with the guest,
 * in both of the guest's modes, and accessors for them.
 *
 * Userspace and the guest can change the mode at any time.  Read it once per
 * operation, inside a read section of the area that is accessed or with
 * xen_lock held, and pass the value down, see kvm_xen_set_long_mode().
 */
#ifndef __ARCH_X86_KVM_XEN_LAYOUT_H__
#define __ARCH_X86_KVM_XEN_LAYOUT_H__

#include <linux/kvm_host.h>
#include <linux/rcupdate.h>

#include <asm/pvclock-abi.h>
#include <asm/xen/interface.h>
#include <xen/interface/xen.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/vcpu.h>

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

/* Paranoia checks on the layouts */
static_assert(offsetof(struct compat_shared_info, wc) == 0x900);
static_assert(offsetof(struct compat_shared_info, arch.wc_sec_hi) == 0x924);
static_assert(offsetof(struct pvclock_vcpu_time_info, version) == 0);
#ifdef CONFIG_X86_64
static_assert(offsetof(struct shared_info, wc) == 0xc00);
static_assert(offsetof(struct shared_info, wc_sec_hi) == 0xc0c);
#endif

static_assert(offsetof(struct vcpu_info, evtchn_upcall_pending) ==
	      offsetof(struct compat_vcpu_info, evtchn_upcall_pending));
static_assert(sizeof_field(struct vcpu_info, evtchn_upcall_pending) == sizeof(u8));
static_assert(sizeof_field(struct compat_vcpu_info, evtchn_upcall_pending) == sizeof(u8));
static_assert(sizeof(struct vcpu_info) == sizeof(struct compat_vcpu_info));
static_assert(offsetof(struct vcpu_info, time) == offsetof(struct compat_vcpu_info, time));

static inline bool kvm_xen_long_mode(struct kvm *kvm)
{
	return IS_ENABLED(CONFIG_64BIT) && READ_ONCE(kvm->arch.xen.long_mode);
}

/*
 * The mode for an access to an area, inside a read section.  It is good until
 * the end of the section, as kvm_xen_set_long_mode() waits for an RCU grace
 * period, i.e. for sections in which preemption is disabled.
 */
static inline bool kvm_xen_area_mode(struct kvm *kvm)
{
	RCU_LOCKDEP_WARN(!rcu_read_lock_sched_held(), "Xen's mode may change");

	return kvm_xen_long_mode(kvm);
}

static inline u32 kvm_xen_nr_ports_in(bool long_mode)
{
	return long_mode ? EVTCHN_2L_NR_CHANNELS : COMPAT_EVTCHN_2L_NR_CHANNELS;
}

static inline unsigned long *kvm_xen_pending_ports(void *shinfo, bool long_mode)
{
	struct compat_shared_info *compat = shinfo;
	struct shared_info *native = shinfo;

	return long_mode ? (unsigned long *)native->evtchn_pending :
			   (unsigned long *)compat->evtchn_pending;
}

static inline unsigned long *kvm_xen_masked_ports(void *shinfo, bool long_mode)
{
	struct compat_shared_info *compat = shinfo;
	struct shared_info *native = shinfo;

	return long_mode ? (unsigned long *)native->evtchn_mask :
			   (unsigned long *)compat->evtchn_mask;
}

static inline struct pvclock_wall_clock *kvm_xen_wall_clock(void *khva, bool long_mode,
							    u32 **sec_hi)
{
	struct compat_shared_info *compat = khva;

#ifdef CONFIG_X86_64
	if (long_mode) {
		struct shared_info *shinfo = khva;

		*sec_hi = &shinfo->wc_sec_hi;
		return &shinfo->wc;
	}
#endif
	*sec_hi = &compat->arch.wc_sec_hi;
	return &compat->wc;
}

/* The selector of a port is a bit of vcpu_info's evtchn_pending_sel. */
static inline unsigned int kvm_xen_sel(u32 port, bool long_mode)
{
	return port / (long_mode ? 64 : 32);
}

/* vcpu_info is aligned to 4 bytes, so access one or two 32-bit words. */
static inline u32 *kvm_xen_pending_sels(void *vcpu_info, bool long_mode)
{
	struct compat_vcpu_info *compat = vcpu_info;
	struct vcpu_info *native = vcpu_info;

	return long_mode ? (u32 *)&native->evtchn_pending_sel : &compat->evtchn_pending_sel;
}

/* The offset of what follows the pending fields of vcpu_info. */
static inline size_t kvm_xen_vcpu_info_arch(bool long_mode)
{
	return long_mode ? offsetof(struct vcpu_info, arch) :
			   offsetof(struct compat_vcpu_info, arch);
}

/*
 * The only difference between 32-bit and 64-bit versions of the runstate struct
 * is the alignment of uint64_t in 32-bit, which means that the 64-bit version
 * has an additional 4 bytes of padding after the first field 'state', so each
 * subsequent field is shifted by 4.
 */
static_assert(offsetof(struct vcpu_runstate_info, state) == 0);
static_assert(offsetof(struct compat_vcpu_runstate_info, state) == 0);
static_assert(sizeof(struct compat_vcpu_runstate_info) == 0x2c);
#ifdef CONFIG_X86_64
static_assert(offsetof(struct vcpu_runstate_info, state_entry_time) ==
	      offsetof(struct compat_vcpu_runstate_info, state_entry_time) + 4);
static_assert(offsetof(struct vcpu_runstate_info, time) ==
	      offsetof(struct compat_vcpu_runstate_info, time) + 4);
static_assert(sizeof(struct vcpu_runstate_info) == 0x2c + 4);
#endif

/* The state is an int, as vx->current_runstate is. */
static_assert(sizeof_field(struct vcpu_runstate_info, state) ==
	      sizeof_field(struct kvm_vcpu_xen, current_runstate));
static_assert(sizeof_field(struct compat_vcpu_runstate_info, state) ==
	      sizeof_field(struct kvm_vcpu_xen, current_runstate));

/*
 * XEN_RUNSTATE_UPDATE is in the top bit of state_entry_time, i.e. x86 being
 * little-endian, in its last byte.
 */
static_assert(sizeof_field(struct vcpu_runstate_info, state_entry_time) == sizeof(u64));
static_assert(sizeof_field(struct compat_vcpu_runstate_info, state_entry_time) == sizeof(u64));
static_assert((XEN_RUNSTATE_UPDATE >> 56) == 0x80);

/* The times follow, as they are in vx->runstate_times. */
static_assert(offsetof(struct vcpu_runstate_info, state_entry_time) ==
	      offsetof(struct vcpu_runstate_info, time) - sizeof(u64));
static_assert(offsetof(struct compat_vcpu_runstate_info, state_entry_time) ==
	      offsetof(struct compat_vcpu_runstate_info, time) - sizeof(u64));
static_assert(sizeof_field(struct vcpu_runstate_info, time) ==
	      sizeof_field(struct kvm_vcpu_xen, runstate_times));
static_assert(sizeof_field(struct compat_vcpu_runstate_info, time) ==
	      sizeof_field(struct kvm_vcpu_xen, runstate_times));

static inline size_t kvm_xen_runstate_len(bool long_mode)
{
	return long_mode ? sizeof(struct vcpu_runstate_info) :
			   sizeof(struct compat_vcpu_runstate_info);
}

/* The offset of state_entry_time, which the times follow. */
static inline size_t kvm_xen_runstate_times(bool long_mode)
{
	return long_mode ? offsetof(struct vcpu_runstate_info, state_entry_time) :
			   offsetof(struct compat_vcpu_runstate_info, state_entry_time);
}

#endif
