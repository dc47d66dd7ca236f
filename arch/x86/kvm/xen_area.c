// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: the areas of guest memory that are shared with the guest
 *
 * shared_info, and each vCPU's vcpu_info, time info and runstate: where they are,
 * what is where in them, and everything that reads or writes them.  What differs
 * between a 32- and a 64-bit guest is in this file and in no other, but for
 * hypercalls' arguments and their page.
 *
 * Areas are registered and the word size is changed under kvm->arch.xen.xen_lock.
 * Whoever needs the word size looks at it with an area locked that depends on it,
 * or with that lock held.
 */
#include "x86.h"
#include "xen.h"
#include "xen_area.h"

#include <linux/kvm_host.h>

#include <xen/interface/xen.h>
#include <xen/interface/vcpu.h>
#include <xen/interface/event_channel.h>

/* The mode may change at any time: who needs it twice, looks once. */
static bool kvm_xen_long_mode(struct kvm *kvm)
{
	return IS_ENABLED(CONFIG_64BIT) && READ_ONCE(kvm->arch.xen.long_mode);
}

/*
 * Userspace gets to see two errors of an area: it cannot be where it is meant to
 * be, or is nowhere, and it cannot be reached.
 */
static int kvm_xen_area_error(int r)
{
	switch (r) {
	case -ENXIO:
		return -EINVAL;
	case -ENOENT:
	case -EHWPOISON:
	case -EINTR:
	case -ENOMEM:
	case -EOPNOTSUPP:
		return -EFAULT;
	default:
		return r;
	}
}

static u32 kvm_xen_nr_ports_in(bool long_mode)
{
	return long_mode ? EVTCHN_2L_NR_CHANNELS : COMPAT_EVTCHN_2L_NR_CHANNELS;
}

/* May be out of date: kvm_xen_raise_port() looks again, with shared_info locked. */
u32 kvm_xen_nr_ports(struct kvm *kvm)
{
	return kvm_xen_nr_ports_in(kvm_xen_long_mode(kvm));
}

/* Wait for the area to be in reach.  That may not last, so try again then. */
static int kvm_xen_wait_area(struct gfn_to_pfn_cache *gpc)
{
	void *khva = kvm_gpc_lock(gpc);

	if (IS_ERR(khva))
		return kvm_xen_area_error(PTR_ERR(khva));

	kvm_gpc_unlock(gpc);
	return 0;
}

int kvm_xen_wait_shared_info(struct kvm *kvm)
{
	return kvm_xen_wait_area(&kvm->arch.xen.shinfo_cache);
}

/*
 * Nothing but userspace or a change of memslots can bring the area back.  Either
 * is followed by another look or another try, so this may be out of date, and
 * needs no lock.
 */
bool kvm_xen_area_is_gone(struct kvm *kvm, struct gfn_to_pfn_cache *gpc)
{
	gpa_t gpa = kvm_gpc_gpa(gpc);

	guard(srcu)(&kvm->srcu);

	if (kvm_is_error_gpa(gpa))
		return !kvm_gpc_is_active(gpc);

	return !kvm_is_gpa_in_memslot(kvm, gpa);
}

/*
 * Find the vCPU's vcpu_info: where it was registered or else, if userspace has asked
 * for that, in shared_info, which has 32 of them.  The cache need not be active.
 *
 * Who raises an event looks here after it has set the port's bit, with a full barrier
 * in between (D).  Who registers vcpu_info has the guest look at all of its ports after
 * that (E), so it does not matter that the answer may be out of date: either the event
 * goes to the new place, or the guest finds the port.
 */
struct gfn_to_pfn_cache *kvm_xen_vcpu_info(struct kvm_vcpu *vcpu, unsigned int *offset)
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

static bool kvm_xen_uses_default_vcpu_info(struct kvm_vcpu *vcpu)
{
	struct gfn_to_pfn_cache *shinfo = &vcpu->kvm->arch.xen.shinfo_cache;
	unsigned int offset;

	return kvm_xen_vcpu_info(vcpu, &offset) == shinfo && kvm_gpc_is_active(shinfo);
}

/* Have the guest look at all of its ports. */
static void kvm_xen_select_all(struct kvm_vcpu *vcpu)
{
	unsigned long *sels = vcpu->arch.xen.evtchn_pending_sel;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	xchg(&sels[kvm_xen_long_mode(vcpu->kvm)], ~0ul);	/* E, matches D */
	kvm_xen_wake_vcpu(vcpu);
}

/* The vCPU has another vcpu_info, or may have. */
static void kvm_xen_vcpu_info_changed(struct kvm_vcpu *vcpu)
{
	kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
	kvm_xen_wake_vcpu(vcpu);
}

/* There is no going back while a vCPU has nothing but the default. */
int kvm_xen_use_default_vcpu_info(struct kvm *kvm, bool use)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	lockdep_assert_held(&kvm->arch.xen.xen_lock);

	if (kvm->arch.xen.default_vcpu_info == use)
		return 0;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (!use && kvm_xen_uses_default_vcpu_info(vcpu))
			return -EBUSY;
	}

	WRITE_ONCE(kvm->arch.xen.default_vcpu_info, use);
	kvm_for_each_vcpu(i, vcpu, kvm)
		kvm_xen_vcpu_info_changed(vcpu);

	return 0;
}

/* The default vcpu_info goes with the id: it does not change while it is in use. */
int kvm_xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 vcpu_id)
{
	unsigned int offset;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	if (vcpu->arch.xen.vcpu_id == vcpu_id)
		return 0;

	if (kvm_xen_uses_default_vcpu_info(vcpu))
		return -EBUSY;

	/* Selectors that are set in another default, the guest does not find. */
	if (kvm_xen_vcpu_info(vcpu, &offset) != &vcpu->arch.xen.vcpu_info_cache)
		kvm_xen_select_all(vcpu);

	WRITE_ONCE(vcpu->arch.xen.vcpu_id, vcpu_id);
	if (kvm_xen_uses_default_vcpu_info(vcpu))
		kvm_xen_vcpu_info_changed(vcpu);

	return 0;
}

/* Paranoia checks on the layouts */
static_assert(offsetof(struct compat_shared_info, wc) == 0x900);
static_assert(offsetof(struct compat_shared_info, arch.wc_sec_hi) == 0x924);
static_assert(offsetof(struct pvclock_vcpu_time_info, version) == 0);
#ifdef CONFIG_X86_64
static_assert(offsetof(struct shared_info, wc) == 0xc00);
static_assert(offsetof(struct shared_info, wc_sec_hi) == 0xc0c);
#endif

static struct pvclock_wall_clock *kvm_xen_wall_clock(void *khva, bool long_mode, u32 **sec_hi)
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

/* Where it is in the given word size; with shared_info locked. */
static void kvm_xen_put_wall_clock(void *khva, bool long_mode, u64 wall_nsec)
{
	struct pvclock_wall_clock *wc;
	u32 *wc_sec_hi;
	u32 wc_version;

	/*
	 * This code mirrors kvm_write_wall_clock() except that it writes
	 * directly through the pfn cache and doesn't mark the page dirty.
	 */
	wc = kvm_xen_wall_clock(khva, long_mode, &wc_sec_hi);

	/* The guest reads again if the version is odd, or another one than before. */
	wc_version = (wc->version + 1) | 1;
	wc->version = wc_version;
	/* The version before the time. */
	smp_wmb();

	wc->nsec = do_div(wall_nsec, NSEC_PER_SEC);
	wc->sec = (u32)wall_nsec;
	*wc_sec_hi = wall_nsec >> 32;

	/* The time before the version. */
	smp_wmb();
	wc->version = wc_version + 1;
}

/* If there is no shared_info, or userspace has just taken it away, leave it at that. */
static void kvm_xen_write_wall_clock(struct kvm *kvm)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	u64 wall_nsec = kvm_get_wall_clock_epoch(kvm);
	void *khva;

	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return;

	kvm_xen_put_wall_clock(khva, kvm_xen_long_mode(kvm), wall_nsec);
	kvm_gpc_unlock(gpc);
}

static int kvm_xen_activate_shared_info(struct kvm *kvm, struct kvm_xen_hvm_attr *data)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	gfn_t gfn = data->u.shared_info.gfn;
	u64 hva = data->u.shared_info.hva;

	if (data->type == KVM_XEN_ATTR_TYPE_SHARED_INFO) {
		if (gfn == KVM_XEN_INVALID_GFN) {
			kvm_gpc_deactivate(gpc);
			return 0;
		}

		if (gpa_to_gfn(gfn_to_gpa(gfn)) != gfn)
			return -EINVAL;

		return kvm_gpc_activate(gpc, gfn_to_gpa(gfn), PAGE_SIZE);
	}

	if (!PAGE_ALIGNED(hva))
		return -EINVAL;

	if (!hva) {
		kvm_gpc_deactivate(gpc);
		return 0;
	}

	return kvm_gpc_activate_hva(gpc, hva, PAGE_SIZE);
}

int kvm_xen_set_shared_info(struct kvm *kvm, struct kvm_xen_hvm_attr *data)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r;

	scoped_guard(mutex, &kvm->arch.xen.xen_lock) {
		/* Before events have a place, so that none waits unseen. */
		kvm_xen_look_for_events(kvm);
		r = kvm_xen_area_error(kvm_xen_activate_shared_info(kvm, data));
		if (!r)
			kvm_xen_write_wall_clock(kvm);
	}

	/* Even if a vCPU does not sleep: it may have tried just before. */
	kvm_for_each_vcpu(i, vcpu, kvm) {
		/* No event of one kernel is for the next one's shared_info. */
		if (!kvm_gpc_is_active(&kvm->arch.xen.shinfo_cache))
			kvm_xen_inject_deferred_events(vcpu);
		if (kvm_xen_uses_default_vcpu_info(vcpu))
			kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
		kvm_xen_wake_vcpu(vcpu);
	}

	return r;
}

/* Xen does not let vcpu_info cross a page boundary. */
static int kvm_xen_check_vcpu_info(u64 addr)
{
	if (!IS_ALIGNED(addr, sizeof(u32)))
		return -ENXIO;

	if (offset_in_page(addr) > PAGE_SIZE - sizeof(struct vcpu_info))
		return -EINVAL;

	return 0;
}

static int kvm_xen_activate_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.vcpu_info_cache;
	bool by_gpa = data->type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO;
	size_t len = sizeof(struct vcpu_info);
	int r;

	r = by_gpa ? kvm_gpc_activate(gpc, data->u.gpa, len) :
		     kvm_gpc_activate_hva(gpc, data->u.hva, len);
	return kvm_xen_area_error(r);
}

/* All but what is pending, which is others' to write: the vCPU does not run. */
static void kvm_xen_copy_vcpu_info(struct compat_vcpu_info *to,
				   const struct compat_vcpu_info *from, bool long_mode)
{
	size_t arch = long_mode ? offsetof(struct vcpu_info, arch) :
				  offsetof(struct compat_vcpu_info, arch);

	WRITE_ONCE(to->evtchn_upcall_mask, READ_ONCE(from->evtchn_upcall_mask));
	memcpy((void *)to + arch, (const void *)from + arch, sizeof(*to) - arch);
}

static int kvm_xen_read_default_vcpu_info(struct kvm_vcpu *vcpu, struct compat_vcpu_info *vi)
{
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	void *khva;

	gpc = kvm_xen_vcpu_info(vcpu, &offset);
	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return kvm_xen_area_error(PTR_ERR(khva));

	kvm_xen_copy_vcpu_info(vi, khva + offset, kvm_xen_long_mode(vcpu->kvm));
	kvm_gpc_unlock(gpc);
	return 0;
}

static int kvm_xen_write_vcpu_info(struct kvm_vcpu *vcpu, const struct compat_vcpu_info *from)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.vcpu_info_cache;
	struct compat_vcpu_info *vi = kvm_gpc_lock(gpc);

	if (IS_ERR(vi))
		return kvm_xen_area_error(PTR_ERR(vi));

	kvm_xen_copy_vcpu_info(vi, from, kvm_xen_long_mode(vcpu->kvm));
	kvm_gpc_unlock_dirty(gpc);
	return 0;
}

/*
 * From its default place, the vCPU's vcpu_info moves to where it is registered.
 *
 * Events go on to be delivered meanwhile, to one of the two places, and some of them
 * may be left in the old one.  But all of them have their bit in shared_info by then,
 * so the guest finds each if it looks at all ports, which is what Xen, too, makes it
 * do after a move.
 */
static int kvm_xen_move_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct compat_vcpu_info vi;
	int r;

	r = kvm_xen_read_default_vcpu_info(vcpu, &vi);
	if (r)
		return r;

	r = kvm_xen_activate_vcpu_info(vcpu, data);
	if (r)
		return r;

	r = kvm_xen_write_vcpu_info(vcpu, &vi);
	if (r)
		kvm_gpc_deactivate(&vcpu->arch.xen.vcpu_info_cache);

	kvm_xen_select_all(vcpu);
	kvm_xen_inject_pending_events(vcpu);
	return r;
}

static void kvm_xen_reset_vcpu_info(struct kvm_vcpu *vcpu)
{
	unsigned int offset;

	if (!kvm_gpc_is_active(&vcpu->arch.xen.vcpu_info_cache))
		return;

	kvm_gpc_deactivate(&vcpu->arch.xen.vcpu_info_cache);
	if (kvm_xen_vcpu_info(vcpu, &offset) == &vcpu->arch.xen.vcpu_info_cache)
		return;

	/* The guest may not have seen what was selected where its vcpu_info was. */
	kvm_xen_select_all(vcpu);
	kvm_xen_inject_pending_events(vcpu);
	kvm_xen_vcpu_info_changed(vcpu);
}

int kvm_xen_set_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	bool by_gpa = data->type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO;
	int r;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	/* No compat necessary here. */
	BUILD_BUG_ON(sizeof(struct vcpu_info) !=
		     sizeof(struct compat_vcpu_info));
	BUILD_BUG_ON(offsetof(struct vcpu_info, time) !=
		     offsetof(struct compat_vcpu_info, time));

	if (by_gpa ? data->u.gpa == KVM_XEN_INVALID_GPA : !data->u.hva) {
		kvm_xen_reset_vcpu_info(vcpu);
		return 0;
	}

	r = kvm_xen_check_vcpu_info(by_gpa ? data->u.gpa : data->u.hva);
	if (r)
		return r;

	if (kvm_xen_uses_default_vcpu_info(vcpu))
		r = kvm_xen_move_vcpu_info(vcpu, data);
	else
		r = kvm_xen_activate_vcpu_info(vcpu, data);
	if (!r)
		kvm_xen_vcpu_info_changed(vcpu);

	return r;
}

int kvm_xen_set_vcpu_time_info(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.vcpu_time_info_cache;
	int r;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	if (gpa == KVM_XEN_INVALID_GPA) {
		kvm_gpc_deactivate(gpc);
		return 0;
	}

	r = kvm_gpc_activate(gpc, gpa, sizeof(struct pvclock_vcpu_time_info));
	if (!r)
		kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);

	return kvm_xen_area_error(r);
}

static int kvm_xen_read_pvclock(struct kvm_vcpu *vcpu,
				struct pvclock_vcpu_time_info *hv_clock,
				struct gfn_to_pfn_cache *gpc,
				unsigned int offset)
{
	void *khva = kvm_gpc_lock(gpc);

	if (IS_ERR(khva))
		return PTR_ERR(khva);

	memcpy(hv_clock, khva + offset, sizeof(*hv_clock));
	kvm_gpc_unlock(gpc);

	/*
	 * Sanity check TSC shift+multiplier to verify the guest's view of time
	 * is more or less consistent.
	 */
	if (hv_clock->tsc_shift != vcpu->arch.pvclock_tsc_shift ||
	    hv_clock->tsc_to_system_mul != vcpu->arch.pvclock_tsc_mul)
		return -EINVAL;

	return 0;
}

/*
 * If both Xen PV clocks are active, arbitrarily try to use the compat clock first,
 * but also try to use the non-compat clock if the compat clock is unusable.  The
 * two PV clocks hold the same information, but it's possible one (or both) is stale
 * and/or currently unreachable.
 */
int kvm_xen_get_guest_pvclock(struct kvm_vcpu *vcpu,
			      struct pvclock_vcpu_time_info *hv_clock)
{
	struct gfn_to_pfn_cache *time_info = &vcpu->arch.xen.vcpu_time_info_cache;
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	int r = -EOPNOTSUPP;

	gpc = kvm_xen_vcpu_info(vcpu, &offset);
	/* A default that is in use again has the time of when it was left. */
	if (kvm_gpc_is_active(gpc) &&
	    (gpc == &vcpu->arch.xen.vcpu_info_cache ||
	     !kvm_test_request(KVM_REQ_CLOCK_UPDATE, vcpu)))
		r = kvm_xen_read_pvclock(vcpu, hv_clock, gpc,
					 offset + offsetof(struct compat_vcpu_info, time));
	if (r && kvm_gpc_is_active(time_info))
		r = kvm_xen_read_pvclock(vcpu, hv_clock, time_info, 0);

	return r;
}

/*
 * The only difference between 32-bit and 64-bit versions of the runstate struct is
 * the alignment of uint64_t in 32-bit, which means that the 64-bit version has an
 * additional 4 bytes of padding after the first field 'state', so each subsequent
 * field is shifted by 4.
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

static size_t kvm_xen_runstate_len(bool long_mode)
{
	return long_mode ? sizeof(struct vcpu_runstate_info) :
			   sizeof(struct compat_vcpu_runstate_info);
}

/*
 * There are basically no alignment constraints. The guest can set it
 * up so it crosses from one page to the next, and at arbitrary byte
 * alignment (and the 32-bit ABI doesn't align the 64-bit integers
 * anyway, even if the overall struct had been 64-bit aligned).
 */
static void kvm_xen_write_runstate(struct kvm_vcpu *v, void *khva)
{
	struct kvm_vcpu_xen *vx = &v->arch.xen;
	u8 *update_bit = NULL;
	u64 entry_time;
	u64 *rs_times;
	size_t times_ofs;
	int *rs_state;

	if (kvm_xen_long_mode(v->kvm))
		times_ofs = offsetof(struct vcpu_runstate_info, state_entry_time);
	else
		times_ofs = offsetof(struct compat_vcpu_runstate_info, state_entry_time);

	/*
	 * Set up three pointers directly to the runstate_info
	 * struct in the guest (via the GPC).
	 *
	 *  • @rs_state   → state field
	 *  • @rs_times   → state_entry_time field.
	 *  • @update_bit → last byte of state_entry_time, which
	 *                  contains the XEN_RUNSTATE_UPDATE bit.
	 */
	rs_state = khva;
	rs_times = khva + times_ofs;
	if (v->kvm->arch.xen.runstate_update_flag)
		update_bit = ((void *)(&rs_times[1])) - 1;

	/*
	 * First, set the XEN_RUNSTATE_UPDATE bit in the top bit of the
	 * state_entry_time field, directly in the guest. We need to set
	 * that (and write-barrier) before writing to the rest of the
	 * structure, and clear it last. Just as Xen does, we address the
	 * single *byte* in which it resides because it might be in a
	 * different cache line to the rest of the 64-bit word, due to
	 * the (lack of) alignment constraints.
	 */
	entry_time = vx->runstate_entry_time;
	if (update_bit) {
		entry_time |= XEN_RUNSTATE_UPDATE;
		*update_bit = (vx->runstate_entry_time | XEN_RUNSTATE_UPDATE) >> 56;
		/* The flag before the rest. */
		smp_wmb();
	}

	/* Now write the rest of the structure. */
	*rs_state = vx->current_runstate;
	rs_times[0] = entry_time;
	memcpy(rs_times + 1, vx->runstate_times, sizeof(vx->runstate_times));
	/* The rest before the flag. */
	smp_wmb();

	/* Finally, clear the XEN_RUNSTATE_UPDATE bit. */
	if (update_bit) {
		entry_time &= ~XEN_RUNSTATE_UPDATE;
		*update_bit = entry_time >> 56;
		/* The end of an update before the begin of the next. */
		smp_wmb();
	}
}

void kvm_xen_update_runstate_guest(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc = &v->arch.xen.runstate_cache;
	void *khva;

	if (!kvm_gpc_is_active(gpc))
		return;

	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return;

	kvm_xen_write_runstate(v, khva);
	kvm_gpc_unlock_dirty(gpc);
}

/* The same where one cannot sleep. */
void kvm_xen_try_update_runstate_guest(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc = &v->arch.xen.runstate_cache;
	void *khva = kvm_gpc_trylock(gpc);

	if (IS_ERR(khva))
		return;

	kvm_xen_write_runstate(v, khva);
	kvm_gpc_unlock_dirty(gpc);
}

int kvm_xen_set_runstate_addr(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.runstate_cache;
	int r;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	if (gpa == KVM_XEN_INVALID_GPA) {
		kvm_gpc_deactivate(gpc);
		return 0;
	}

	r = kvm_gpc_activate(gpc, gpa, kvm_xen_runstate_len(kvm_xen_long_mode(vcpu->kvm)));
	if (!r)
		kvm_xen_update_runstate_guest(vcpu);

	return kvm_xen_area_error(r);
}

/*
 * vcpu_info, and with it evtchn_pending_sel, is aligned to 4 bytes, so an 8-byte
 * access may cross a cache line: a split lock if the access is atomic.
 */
static bool kvm_xen_test_and_set_sel(u32 *sel, int bit)
{
	return GEN_BINARY_RMWcc(LOCK_PREFIX "btsl", *sel, c, "r", bit);
}

static void kvm_xen_or_sel(u32 *sel, u32 bits)
{
	asm volatile(LOCK_PREFIX "orl %1, %0"
		     : "+m" (*sel) : "r" (bits) : "memory");
}

static void kvm_xen_or_sels(void *khva, unsigned long sels, bool long_mode)
{
	if (long_mode) {
		struct vcpu_info *vi = khva;
		u32 *sel = (u32 *)&vi->evtchn_pending_sel;

		kvm_xen_or_sel(&sel[0], lower_32_bits(sels));
		kvm_xen_or_sel(&sel[1], upper_32_bits(sels));
		WRITE_ONCE(vi->evtchn_upcall_pending, 1);
	} else {
		struct compat_vcpu_info *vi = khva;

		kvm_xen_or_sel(&vi->evtchn_pending_sel, sels);
		WRITE_ONCE(vi->evtchn_upcall_pending, 1);
	}
}

/*
 * Selectors that wait for vcpu_info, as many as the guest has.  There are different
 * ones in either word size; of those of the other one, it has to look at all.
 */
static unsigned long kvm_xen_take_pending_sels(struct kvm_vcpu *v, bool long_mode)
{
	unsigned long *sels = v->arch.xen.evtchn_pending_sel;
	unsigned long taken = xchg(&sels[long_mode], 0);

	if (unlikely(READ_ONCE(sels[!long_mode])) && xchg(&sels[!long_mode], 0))
		taken = ~0ul;

	return taken;
}

/*
 * On event channel delivery, the vcpu_info may not have been accessible.
 * In that case, there are bits in vcpu->arch.xen.evtchn_pending_sel which
 * need to be marked into the vcpu_info (and evtchn_upcall_pending set).
 * Do so now that we can sleep in the context of the vCPU to bring the
 * page in, and refresh the pfn cache for it.
 *
 * Return whether there were any, for the guest to be told.
 */
bool kvm_xen_set_pending_sels(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	bool long_mode;
	void *khva;

	if (!kvm_xen_has_pending_sels(v))
		return false;

	gpc = kvm_xen_vcpu_info(v, &offset);
	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return false;

	long_mode = kvm_xen_long_mode(v->kvm);
	kvm_xen_or_sels(khva + offset, kvm_xen_take_pending_sels(v, long_mode), long_mode);
	kvm_gpc_unlock_dirty(gpc);
	return true;
}

int __kvm_xen_has_interrupt(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc;
	struct vcpu_info *vi;
	unsigned int offset;
	void *khva;
	u8 rc;

	/*
	 * If the global upcall vector (HVMIRQ_callback_vector) is set and
	 * the vCPU's evtchn_upcall_pending flag is set, the IRQ is pending.
	 */

	/* No need for compat handling here */
	BUILD_BUG_ON(offsetof(struct vcpu_info, evtchn_upcall_pending) !=
		     offsetof(struct compat_vcpu_info, evtchn_upcall_pending));
	BUILD_BUG_ON(sizeof(rc) !=
		     sizeof_field(struct vcpu_info, evtchn_upcall_pending));
	BUILD_BUG_ON(sizeof(rc) !=
		     sizeof_field(struct compat_vcpu_info, evtchn_upcall_pending));

	gpc = kvm_xen_vcpu_info(v, &offset);
	if (!kvm_gpc_is_active(gpc))
		return 0;

	khva = kvm_gpc_trylock(gpc);
	if (IS_ERR(khva)) {
		/*
		 * This function gets called from kvm_vcpu_block() after setting the
		 * task to TASK_INTERRUPTIBLE, to see if it needs to wake immediately
		 * from a HLT. So we really mustn't sleep. If the page ended up absent
		 * at that point, just return 1 in order to trigger an immediate wake,
		 * and we'll end up getting called again from a context where we *can*
		 * fault in the page and wait for it.  If the area is gone, there is no
		 * page to wait for, and a change of memslots wakes the vCPU.
		 */
		if (in_atomic() || !task_is_running(current))
			return !kvm_xen_area_is_gone(v->kvm, gpc);

		/*
		 * If this fails, userspace has screwed up the vcpu_info mapping.
		 * No interrupts for you.
		 */
		khva = kvm_gpc_lock(gpc);
		if (IS_ERR(khva))
			return 0;
	}

	vi = khva + offset;
	rc = READ_ONCE(vi->evtchn_upcall_pending);
	kvm_gpc_unlock(gpc);
	return rc;
}

/*
 * Set the port's bit in shared_info.  It does not matter that the guest may have
 * masked the port: the bit is still there when it unmasks it, and who polls for
 * the port does not look at the mask.
 */
static int kvm_xen_set_port(void *khva, u32 port, bool long_mode)
{
	unsigned long *pending_bits, *mask_bits;

	if (long_mode) {
		struct shared_info *shinfo = khva;

		pending_bits = (unsigned long *)&shinfo->evtchn_pending;
		mask_bits = (unsigned long *)&shinfo->evtchn_mask;
	} else {
		struct compat_shared_info *shinfo = khva;

		pending_bits = (unsigned long *)&shinfo->evtchn_pending;
		mask_bits = (unsigned long *)&shinfo->evtchn_mask;
	}

	if (test_and_set_bit(port, pending_bits))	/* D and I, match E and H */
		return 0; /* It was already raised */

	return test_bit(port, mask_bits) ? -ENOTCONN : 1;
}

/* Set the port's selector in vcpu_info, return whether that was set already. */
static bool kvm_xen_set_sel(void *khva, u32 port, bool long_mode)
{
	bool was_set;

	if (long_mode) {
		struct vcpu_info *vi = khva;

		was_set = kvm_xen_test_and_set_sel((u32 *)&vi->evtchn_pending_sel, port / 64);
		if (!was_set)
			smp_store_mb(vi->evtchn_upcall_pending, 1);	/* F, matches G */
	} else {
		struct compat_vcpu_info *vi = khva;

		was_set = kvm_xen_test_and_set_sel(&vi->evtchn_pending_sel, port / 32);
		if (!was_set)
			smp_store_mb(vi->evtchn_upcall_pending, 1);	/* F, matches G */
	}

	return was_set;
}

/* What became of an event, and whom to tell of it. */
enum kvm_xen_raised {
	/* The port was pending already. */
	KVM_XEN_PENDING,
	/* So was its selector: who has set that has told, or will. */
	KVM_XEN_SELECTED,
	/* The vCPU has to set the selector: kvm_xen_set_pending_sels(). */
	KVM_XEN_TELL_VCPU,
	KVM_XEN_TELL_GUEST,
};

/* With shared_info locked, which the vCPU's vcpu_info may be in. */
static enum kvm_xen_raised kvm_xen_select_port(struct kvm_vcpu *vcpu, void *shinfo, u32 port,
					       bool long_mode)
{
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	bool was_set;
	void *khva;

	gpc = kvm_xen_vcpu_info(vcpu, &offset);
	if (gpc == &vcpu->kvm->arch.xen.shinfo_cache) {
		was_set = kvm_xen_set_sel(shinfo + offset, port, long_mode);
		return was_set ? KVM_XEN_SELECTED : KVM_XEN_TELL_GUEST;
	}

	khva = kvm_gpc_trylock(gpc);
	if (IS_ERR(khva)) {
		was_set = test_and_set_bit(port / (long_mode ? 64 : 32),
					   &vcpu->arch.xen.evtchn_pending_sel[long_mode]);
		return was_set ? KVM_XEN_SELECTED : KVM_XEN_TELL_VCPU;
	}

	was_set = kvm_xen_set_sel(khva, port, long_mode);
	kvm_gpc_unlock(gpc);
	return was_set ? KVM_XEN_SELECTED : KVM_XEN_TELL_GUEST;
}

/* The guest's word size is looked at with shared_info locked, see kvm_xen_set_long_mode(). */
static int kvm_xen_set_port_and_sel(struct kvm_vcpu *vcpu, u32 port)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->kvm->arch.xen.shinfo_cache;
	void *khva = kvm_gpc_trylock(gpc);
	int rc = -EINVAL;
	bool long_mode;

	if (IS_ERR(khva))
		return port && port < kvm_xen_nr_ports(vcpu->kvm) ? -EWOULDBLOCK : -EINVAL;

	long_mode = kvm_xen_long_mode(vcpu->kvm);
	if (likely(port && port < kvm_xen_nr_ports_in(long_mode)))
		rc = kvm_xen_set_port(khva, port, long_mode);
	if (rc > 0)
		rc = kvm_xen_select_port(vcpu, khva, port, long_mode);

	kvm_gpc_unlock(gpc);
	return rc;
}

/* Rarely, so not in line. */
static noinline void __kvm_xen_wake_pollers(struct kvm *kvm, u32 port)
{
	struct kvm_vcpu *vcpu;
	unsigned int i;
	int polled;

	for_each_set_bit(i, kvm->arch.xen.poll_mask, atomic_read(&kvm->online_vcpus)) {
		vcpu = kvm_get_vcpu(kvm, i);
		polled = READ_ONCE(vcpu->arch.xen.poll_evtchn);
		if ((polled == port || polled == -1) &&
		    test_and_clear_bit(i, kvm->arch.xen.poll_mask))
			kvm_make_request_and_kick(KVM_REQ_UNBLOCK, vcpu);
	}
}

/* Whoever polls for the port, be it the port's vCPU or another one. */
void kvm_xen_wake_pollers(struct kvm *kvm, u32 port)
{
	if (unlikely(atomic_read(&kvm->arch.xen.nr_pollers)))
		__kvm_xen_wake_pollers(kvm, port);
}

static void kvm_xen_tell(struct kvm_vcpu *vcpu, int raised)
{
	/* The per-vCPU vector goes to the local APIC. */
	if (raised == KVM_XEN_TELL_GUEST && vcpu->arch.xen.upcall_vector)
		kvm_xen_inject_vcpu_vector(vcpu);
	else if (raised >= KVM_XEN_TELL_VCPU)
		kvm_xen_wake_vcpu(vcpu);
}

/*
 * Set the port's bit and its selector, and tell whoever waits for that.  Does not
 * sleep.
 *
 * Return -EWOULDBLOCK if shared_info is out of reach, -EINVAL if there is no such
 * port, -ENOTCONN if it is masked, 0 if it was pending already, or else 1.
 */
int kvm_xen_raise_port(struct kvm_vcpu *vcpu, u32 port)
{
	int rc = kvm_xen_set_port_and_sel(vcpu, port);

	if (rc == -ENOTCONN || rc > KVM_XEN_PENDING) {
		kvm_xen_wake_pollers(vcpu->kvm, port);
		kvm_xen_tell(vcpu, rc);
	}

	return min(rc, 1);
}

/* Whether one of the ports is pending, as far as KVM can tell. */
bool kvm_xen_any_pending(struct kvm *kvm, const evtchn_port_t *ports, int nr_ports)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	unsigned long *pending_bits;
	bool ret = false;
	void *khva;
	int i;

	/* The guest has to look for itself. */
	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return true;

	if (kvm_xen_long_mode(kvm)) {
		struct shared_info *shinfo = khva;

		pending_bits = (unsigned long *)&shinfo->evtchn_pending;
	} else {
		struct compat_shared_info *shinfo = khva;

		pending_bits = (unsigned long *)&shinfo->evtchn_pending;
	}

	/* A port of the word size of before may be beyond these, but is in the page. */
	for (i = 0; i < nr_ports; i++) {
		if (test_bit(ports[i], pending_bits)) {
			ret = true;
			break;
		}
	}

	kvm_gpc_unlock(gpc);
	return ret;
}

static int kvm_xen_map_area(struct gfn_to_pfn_cache *gpc, size_t len)
{
	if (!kvm_gpc_is_active(gpc))
		return 0;

	if (kvm_gpc_len(gpc) < len)
		return kvm_xen_area_error(kvm_gpc_activate(gpc, kvm_gpc_gpa(gpc), len));

	return kvm_xen_wait_area(gpc);
}

/*
 * Those whose layout depends on the word size, but for shared_info, at the length that
 * they will have.  Runstate is longer in 64-bit mode.
 */
static int kvm_xen_map_areas(struct kvm *kvm, bool long_mode)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		r = kvm_xen_map_area(&vcpu->arch.xen.runstate_cache,
				     kvm_xen_runstate_len(long_mode));
		if (!r)
			r = kvm_xen_map_area(&vcpu->arch.xen.vcpu_info_cache,
					     sizeof(struct vcpu_info));
		if (r)
			return r;
	}

	return 0;
}

/* An area that cannot be mapped anew stays longer than it need be. */
static void kvm_xen_shrink_runstates(struct kvm *kvm, size_t len)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.runstate_cache;

		if (kvm_gpc_is_active(gpc) && kvm_gpc_len(gpc) > len)
			kvm_gpc_activate(gpc, kvm_gpc_gpa(gpc), len);
	}
}

/*
 * The mode is looked at with an area locked that depends on it, i.e. with preemption
 * disabled, which RCU waits for: when this returns, nobody uses the old mode.  Until
 * then, events are delivered by either, and one by the old mode may hit the wall clock,
 * which in 32-bit mode is where a 64-bit guest has ports.
 */
static int kvm_xen_switch_mode(struct kvm *kvm, bool long_mode)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	u64 wall_nsec = kvm_get_wall_clock_epoch(kvm);
	bool old_mode = kvm->arch.xen.long_mode;
	void *khva;

	if (kvm_gpc_is_active(gpc)) {
		khva = kvm_gpc_lock(gpc);
		if (IS_ERR(khva))
			return kvm_xen_area_error(PTR_ERR(khva));

		WRITE_ONCE(kvm->arch.xen.long_mode, long_mode);
		kvm_xen_put_wall_clock(khva, long_mode, wall_nsec);
		kvm_gpc_unlock(gpc);
	} else {
		WRITE_ONCE(kvm->arch.xen.long_mode, long_mode);
	}

	if (long_mode != old_mode) {
		synchronize_rcu();
		kvm_xen_write_wall_clock(kvm);
	}

	return 0;
}

/*
 * The guest changes its word size, as a whole or not at all: first see that each
 * area can be reached and is long enough, then change it.  Nothing that is in the
 * areas is converted, as in Xen, but the wall clock is written to where it is now.
 */
int kvm_xen_set_long_mode(struct kvm *kvm, bool long_mode)
{
	int r = 0;

	lockdep_assert_held(&kvm->arch.xen.xen_lock);

	if (long_mode != kvm->arch.xen.long_mode)
		r = kvm_xen_map_areas(kvm, long_mode);
	if (!r)
		r = kvm_xen_switch_mode(kvm, long_mode);

	kvm_xen_shrink_runstates(kvm, kvm_xen_runstate_len(kvm->arch.xen.long_mode));
	return r;
}
