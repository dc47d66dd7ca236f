// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: registration of the areas that are shared with the guest
 *
 * shared_info, and each vCPU's vcpu_info and time info: where they are, their
 * clocks, and the guest's mode, which decides on the layouts (xen_layout.h).
 * Areas are registered, and the mode is changed, under kvm->arch.xen.xen_lock.
 *
 * A new area wants: its layout in both modes in xen_layout.h; a cache in struct
 * kvm_vcpu_xen, which kvm_xen_init_vcpu() and kvm_xen_destroy_vcpu() set up and
 * deactivate; its registration here, under xen_lock; if it has a clock,
 * kvm_xen_setup_guest_pvclock() and kvm_xen_get_guest_pvclock(); if its length
 * depends on the mode, a check of kvm_gpc_len() inside the read section, as
 * runstate has it; attributes in xen.c; api.rst; and a selftest.
 */
#include "x86.h"
#include "xen.h"
#include "xen_area.h"

#include <linux/kvm_host.h>

/*
 * Errors of an area as userspace sees them: -EINVAL for a bad address, -EFAULT
 * for memory that can't be mapped.
 */
int kvm_xen_area_error(int r)
{
	switch (r) {
	case -ENXIO:
		return -EINVAL;
	case -ENOENT:
	case -EACCES:
	case -EHWPOISON:
	case -ENOMEM:
	case -EOPNOTSUPP:
		return -EFAULT;
	default:
		return r;
	}
}

/* Wait until the area is mapped.  It may be unmapped again by the return. */
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

static bool kvm_xen_uses_default_vcpu_info(struct kvm_vcpu *vcpu)
{
	struct gfn_to_pfn_cache *shinfo = &vcpu->kvm->arch.xen.shinfo_cache;
	unsigned int offset;

	return kvm_xen_vcpu_info(vcpu, &offset) == shinfo && kvm_gpc_is_active(shinfo);
}

/* Have the guest scan all of its ports. */
static void kvm_xen_select_all(struct kvm_vcpu *vcpu)
{
	unsigned long *sels = vcpu->arch.xen.evtchn_pending_sel;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	xchg(&sels[kvm_xen_long_mode(vcpu->kvm)], ~0ul);	/* E, matches D */
	kvm_xen_wake_vcpu(vcpu);
}

/* The vCPU may have another vcpu_info: update its clock and deliver to it. */
static void kvm_xen_vcpu_info_changed(struct kvm_vcpu *vcpu)
{
	kvm_make_request(KVM_REQ_CLOCK_UPDATE, vcpu);
	kvm_xen_wake_vcpu(vcpu);
}

/* Reject clearing the flag while any vCPU uses its default vcpu_info. */
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

/* The ID selects the default vcpu_info, so can't change while in use. */
int kvm_xen_set_vcpu_id(struct kvm_vcpu *vcpu, u32 vcpu_id)
{
	unsigned int offset;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	if (vcpu->arch.xen.vcpu_id == vcpu_id)
		return 0;

	if (kvm_xen_uses_default_vcpu_info(vcpu))
		return -EBUSY;

	/* The guest doesn't find selectors that are set in the old default. */
	if (kvm_xen_vcpu_info(vcpu, &offset) != &vcpu->arch.xen.vcpu_info_cache)
		kvm_xen_select_all(vcpu);

	WRITE_ONCE(vcpu->arch.xen.vcpu_id, vcpu_id);
	if (kvm_xen_uses_default_vcpu_info(vcpu))
		kvm_xen_vcpu_info_changed(vcpu);

	return 0;
}

/* Inside a read section of shared_info. */
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

	/* The guest retries if the version is odd or has changed. */
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

/*
 * Called when shared_info has been mapped.  If userspace has taken the memory
 * away by now, or a signal ends the wait for it, the wall clock isn't written.
 */
static void kvm_xen_write_wall_clock(struct kvm *kvm)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	u64 wall_nsec = kvm_get_wall_clock_epoch(kvm);
	void *khva;

	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return;

	kvm_xen_put_wall_clock(khva, kvm_xen_area_mode(kvm), wall_nsec);
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
		/* Before an event can be deferred to a vCPU. */
		kvm_xen_look_for_events(kvm);
		r = kvm_xen_area_error(kvm_xen_activate_shared_info(kvm, data));
		if (!r)
			kvm_xen_write_wall_clock(kvm);

		/* Deferred events were for the old shared_info. */
		if (!kvm_gpc_is_active(&kvm->arch.xen.shinfo_cache)) {
			kvm_for_each_vcpu(i, vcpu, kvm)
				kvm_xen_drop_deferred_events(vcpu);
		}
	}

	/* Also a running vCPU, whose attempt may just have failed. */
	kvm_for_each_vcpu(i, vcpu, kvm) {
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

/*
 * Copy the fields that event delivery doesn't write: mask, arch and time.  The
 * vCPU, which writes them, isn't running.
 */
static void kvm_xen_copy_vcpu_info(struct compat_vcpu_info *to,
				   const struct compat_vcpu_info *from, bool long_mode)
{
	size_t arch = kvm_xen_vcpu_info_arch(long_mode);

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

	kvm_xen_copy_vcpu_info(vi, khva + offset, kvm_xen_area_mode(vcpu->kvm));
	kvm_gpc_unlock(gpc);
	return 0;
}

static int kvm_xen_write_vcpu_info(struct kvm_vcpu *vcpu, const struct compat_vcpu_info *from)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.vcpu_info_cache;
	struct compat_vcpu_info *vi = kvm_gpc_lock(gpc);

	if (IS_ERR(vi))
		return kvm_xen_area_error(PTR_ERR(vi));

	kvm_xen_copy_vcpu_info(vi, from, kvm_xen_area_mode(vcpu->kvm));
	kvm_gpc_unlock_dirty(gpc);
	return 0;
}

/*
 * Move vcpu_info from its default place to where it is registered.
 *
 * Events are delivered meanwhile, to either place, and selectors may be left in
 * the old one.  But each event has its bit in shared_info by then, so the guest
 * finds it when it scans all ports, which Xen has it do after a move, too.
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

	/* The guest may not have read the selectors in the old vcpu_info. */
	kvm_xen_select_all(vcpu);
	kvm_xen_inject_pending_events(vcpu);
	kvm_xen_vcpu_info_changed(vcpu);
}

int kvm_xen_set_vcpu_info(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	bool by_gpa = data->type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO;
	int r;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

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
 * If both Xen PV clocks are active, arbitrarily try to use the compat clock
 * first, but also try to use the non-compat clock if the compat clock is
 * unusable.  The two PV clocks hold the same information, but it's possible one
 * (or both) is stale and/or currently unreachable.
 */
int kvm_xen_get_guest_pvclock(struct kvm_vcpu *vcpu,
			      struct pvclock_vcpu_time_info *hv_clock)
{
	struct gfn_to_pfn_cache *time_info = &vcpu->arch.xen.vcpu_time_info_cache;
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	int r = -EOPNOTSUPP;

	/* Until it is updated, the guest's clock may predate KVM_SET_CLOCK. */
	if (kvm_test_request(KVM_REQ_CLOCK_UPDATE, vcpu) ||
	    READ_ONCE(vcpu->arch.pvclock_update_missed))
		return -EAGAIN;

	gpc = kvm_xen_vcpu_info(vcpu, &offset);
	if (kvm_gpc_is_active(gpc))
		r = kvm_xen_read_pvclock(vcpu, hv_clock, gpc,
					 offset + offsetof(struct compat_vcpu_info, time));
	if (r && kvm_gpc_is_active(time_info))
		r = kvm_xen_read_pvclock(vcpu, hv_clock, time_info, 0);

	return r;
}

/*
 * The guest changes its mode.  Only shared_info has to be mapped, for the wall
 * clock, which is written to where it is in the new mode.  Nothing else in the
 * areas is converted, as in Xen.  A runstate area grows when it is written
 * next.
 *
 * The mode is read inside a read section of an area that depends on it, i.e.
 * with preemption disabled, which RCU waits for: when this returns, the old
 * mode isn't in use any more.  Until then, events are delivered by either mode,
 * and one by the old mode may hit the wall clock, which in 32-bit mode is where
 * a 64-bit guest has ports.
 */
int kvm_xen_set_long_mode(struct kvm *kvm, bool long_mode)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	u64 wall_nsec = kvm_get_wall_clock_epoch(kvm);
	bool old_mode = kvm->arch.xen.long_mode;
	void *khva;

	lockdep_assert_held(&kvm->arch.xen.xen_lock);

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
