// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: ioctls, configuration and hypercalls
 *
 * Inbound events are in xen_evtchn.c, timers in xen_timer.c, the areas that are
 * shared with the guest in xen_area.c, xen_runstate.c and xen_layout.h.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "x86.h"
#include "xen.h"
#include "xen_area.h"
#include "hyperv.h"
#include "irq.h"

#include <linux/eventfd.h>
#include <linux/kvm_host.h>
#include <linux/sched/stat.h>

#include <trace/events/kvm.h>
#include <xen/interface/xen.h>
#include <xen/interface/vcpu.h>
#include <xen/interface/version.h>
#include <xen/interface/event_channel.h>
#include <xen/interface/sched.h>
#include <xen/xen-ops.h>

#include <asm/xen/cpuid.h>
#include <asm/pvclock.h>

#include "cpuid.h"
#include "trace.h"

static int kvm_xen_setattr_evtchn(struct kvm *kvm, struct kvm_xen_hvm_attr *data);
static bool kvm_xen_hcall_evtchn_send(struct kvm_vcpu *vcpu, u64 param, u64 *r);

DEFINE_STATIC_KEY_DEFERRED_FALSE(kvm_xen_enabled, HZ);

/* vCPUs check for events from now on, until the VM is destroyed. */
void kvm_xen_look_for_events(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->arch.xen.xen_lock);

	if (!kvm->arch.xen.looks_for_events) {
		kvm->arch.xen.looks_for_events = true;
		static_branch_inc(&kvm_xen_enabled.key);
	}
}

int kvm_xen_hvm_set_attr(struct kvm *kvm, struct kvm_xen_hvm_attr *data)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	int r = -ENOENT;

	switch (data->type) {
	case KVM_XEN_ATTR_TYPE_LONG_MODE:
		if (!IS_ENABLED(CONFIG_64BIT) && data->u.long_mode) {
			r = -EINVAL;
		} else {
			mutex_lock(&kvm->arch.xen.xen_lock);
			r = kvm_xen_set_long_mode(kvm, !!data->u.long_mode);
			mutex_unlock(&kvm->arch.xen.xen_lock);
		}
		break;

	case KVM_XEN_ATTR_TYPE_SHARED_INFO:
	case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
		r = kvm_xen_set_shared_info(kvm, data);
		break;

	case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
		if (data->u.vector && data->u.vector < 0x10)
			r = -EINVAL;
		else {
			mutex_lock(&kvm->arch.xen.xen_lock);
			WRITE_ONCE(kvm->arch.xen.upcall_vector, data->u.vector);
			mutex_unlock(&kvm->arch.xen.xen_lock);

			/* vCPUs ignored events while there was no vector. */
			kvm_for_each_vcpu(i, vcpu, kvm)
				kvm_make_request_and_kick(KVM_REQ_UNBLOCK, vcpu);
			r = 0;
		}
		break;

	case KVM_XEN_ATTR_TYPE_EVTCHN:
		r = kvm_xen_setattr_evtchn(kvm, data);
		break;

	case KVM_XEN_ATTR_TYPE_XEN_VERSION:
		mutex_lock(&kvm->arch.xen.xen_lock);
		kvm->arch.xen.xen_version = data->u.xen_version;
		mutex_unlock(&kvm->arch.xen.xen_lock);
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
		if (!sched_info_on()) {
			r = -EOPNOTSUPP;
			break;
		}
		mutex_lock(&kvm->arch.xen.xen_lock);
		kvm->arch.xen.runstate_update_flag = !!data->u.runstate_update_flag;
		mutex_unlock(&kvm->arch.xen.xen_lock);
		r = 0;
		break;

	default:
		break;
	}

	return r;
}

int kvm_xen_hvm_get_attr(struct kvm *kvm, struct kvm_xen_hvm_attr *data)
{
	int r = -ENOENT;
	gpa_t gpa;

	mutex_lock(&kvm->arch.xen.xen_lock);

	switch (data->type) {
	case KVM_XEN_ATTR_TYPE_LONG_MODE:
		data->u.long_mode = kvm->arch.xen.long_mode;
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_SHARED_INFO:
		gpa = kvm_gpc_gpa(&kvm->arch.xen.shinfo_cache);
		data->u.shared_info.gfn = kvm_is_error_gpa(gpa) ? KVM_XEN_INVALID_GFN :
								  gpa_to_gfn(gpa);
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA:
		data->u.shared_info.hva = kvm_gpc_hva(&kvm->arch.xen.shinfo_cache);
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_UPCALL_VECTOR:
		data->u.vector = kvm->arch.xen.upcall_vector;
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_XEN_VERSION:
		data->u.xen_version = kvm->arch.xen.xen_version;
		r = 0;
		break;

	case KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG:
		if (!sched_info_on()) {
			r = -EOPNOTSUPP;
			break;
		}
		data->u.runstate_update_flag = kvm->arch.xen.runstate_update_flag;
		r = 0;
		break;

	default:
		break;
	}

	mutex_unlock(&kvm->arch.xen.xen_lock);
	return r;
}

int kvm_xen_vcpu_set_attr(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	int r = -ENOENT;

	mutex_lock(&vcpu->kvm->arch.xen.xen_lock);

	switch (data->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
		r = -EBUSY;
		if (kvm_vcpu_dirty_ring_nearly_full(vcpu))
			break;
		r = kvm_xen_set_vcpu_info(vcpu, data);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
		r = kvm_xen_set_vcpu_time_info(vcpu, data->u.gpa);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
		r = -EBUSY;
		if (kvm_vcpu_dirty_ring_nearly_full(vcpu))
			break;
		r = kvm_xen_set_runstate(vcpu, data);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
		BUILD_BUG_ON(XEN_VCPU_ID_INVALID < KVM_MAX_VCPUS);

		if (data->u.vcpu_id >= KVM_MAX_VCPUS)
			r = -EINVAL;
		else
			r = kvm_xen_set_vcpu_id(vcpu, data->u.vcpu_id);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
		r = kvm_xen_set_timer(vcpu, data);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
		if (data->u.vector && data->u.vector < 0x10)
			r = -EINVAL;
		else {
			WRITE_ONCE(vcpu->arch.xen.upcall_vector, data->u.vector);
			/*
			 * As Xen does: the vCPU was not notified of events that
			 * are pending already.  Inject the vector even if none
			 * is, as an event that is being raised may have missed
			 * the vector and not be pending yet.
			 */
			kvm_xen_inject_vcpu_vector(vcpu);
			r = 0;
		}
		break;

	default:
		break;
	}

	mutex_unlock(&vcpu->kvm->arch.xen.xen_lock);
	return r;
}

/*
 * Userspace that asks for vcpu_info's address is about to read vcpu_info, e.g.
 * to migrate the guest; let no event wait in the kernel for the vCPU to run.
 */
int kvm_xen_vcpu_get_attr(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	int r = -ENOENT;

	mutex_lock(&vcpu->kvm->arch.xen.xen_lock);

	switch (data->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
		r = -EBUSY;
		if (kvm_vcpu_dirty_ring_nearly_full(vcpu))
			break;
		kvm_xen_inject_pending_events(vcpu);

		BUILD_BUG_ON(INVALID_GPA != KVM_XEN_INVALID_GPA);
		data->u.gpa = kvm_gpc_gpa(&vcpu->arch.xen.vcpu_info_cache);
		r = 0;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA:
		r = -EBUSY;
		if (kvm_vcpu_dirty_ring_nearly_full(vcpu))
			break;
		kvm_xen_inject_pending_events(vcpu);

		data->u.hva = kvm_gpc_hva(&vcpu->arch.xen.vcpu_info_cache);
		r = 0;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
		data->u.gpa = kvm_gpc_gpa(&vcpu->arch.xen.vcpu_time_info_cache);
		r = 0;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
		r = kvm_xen_get_runstate(vcpu, data);
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
		r = -EINVAL;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
		data->u.vcpu_id = vcpu->arch.xen.vcpu_id;
		r = 0;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_TIMER:
		r = -EBUSY;
		if (kvm_vcpu_dirty_ring_nearly_full(vcpu))
			break;
		kvm_xen_get_timer(vcpu, data);
		r = 0;
		break;

	case KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
		data->u.vector = vcpu->arch.xen.upcall_vector;
		r = 0;
		break;

	default:
		break;
	}

	mutex_unlock(&vcpu->kvm->arch.xen.xen_lock);
	return r;
}

/*
 * In KVM_RUN, any signal ends the wait, and the guest executes the instruction
 * again.
 */
static int kvm_xen_follow_mode(struct kvm_vcpu *vcpu, bool long_mode)
{
	struct kvm *kvm = vcpu->kvm;
	int r;

	/*
	 * Other vCPUs may change the mode over and over, a grace period each
	 * time.
	 */
	if (vcpu->wants_to_run)
		r = mutex_lock_interruptible(&kvm->arch.xen.xen_lock);
	else
		r = mutex_lock_killable(&kvm->arch.xen.xen_lock);

	if (!r) {
		if (kvm->arch.xen.long_mode != long_mode)
			r = kvm_xen_set_long_mode(kvm, long_mode);
		mutex_unlock(&kvm->arch.xen.xen_lock);
	}

	if (r == -EINTR && vcpu->wants_to_run)
		kvm_handle_signal_exit(vcpu);

	return r;
}

/*
 * If Xen hypercall intercept is enabled, fill the hypercall page with
 * VMCALL/VMMCALL instructions since that's what we catch.
 */
static u8 *kvm_xen_make_hypercall_page(struct kvm_vcpu *vcpu)
{
	u8 instructions[32];
	u8 *page;
	int i;

	page = kmalloc(PAGE_SIZE, GFP_KERNEL);
	if (!page)
		return ERR_PTR(-ENOMEM);

	/* mov imm32, %eax */
	instructions[0] = 0xb8;

	/* vmcall / vmmcall */
	kvm_x86_call(patch_hypercall)(vcpu, instructions + 5);

	/* ret */
	instructions[8] = 0xc3;

	/* int3 to pad */
	memset(instructions + 9, 0xcc, sizeof(instructions) - 9);

	for (i = 0; i < PAGE_SIZE / sizeof(instructions); i++) {
		*(u32 *)&instructions[1] = i;
		memcpy(page + i * sizeof(instructions), instructions, sizeof(instructions));
	}

	return page;
}

/*
 * Without hypercall intercept, the VMM provides the hypercall pages, with
 * instructions of its own choosing.
 */
static u8 *kvm_xen_read_hypercall_page(struct kvm *kvm, u32 page_num, bool lm)
{
	/*
	 * Note, truncation is a non-issue as 'lm' is guaranteed to be
	 * false for a 32-bit kernel, i.e. when hva_t is only 4 bytes.
	 */
	hva_t blob_addr = lm ? kvm->arch.xen.hvm_config.blob_addr_64
			     : kvm->arch.xen.hvm_config.blob_addr_32;

	return memdup_user((u8 __user *)blob_addr + page_num * PAGE_SIZE, PAGE_SIZE);
}

int kvm_xen_write_hypercall_page(struct kvm_vcpu *vcpu, u64 data)
{
	struct kvm *kvm = vcpu->kvm;
	u32 page_num = data & ~PAGE_MASK;
	u64 page_addr = data & PAGE_MASK;
	bool intercepted = kvm_xen_hypercall_enabled(kvm);
	bool lm = is_long_mode(vcpu);
	u8 nr_pages = 1;
	u8 *page;
	int r;

	r = kvm_xen_follow_mode(vcpu, lm);
	if (r)
		return r == -EINTR ? r : 1;

	if (!intercepted)
		nr_pages = lm ? kvm->arch.xen.hvm_config.blob_size_64
			      : kvm->arch.xen.hvm_config.blob_size_32;
	if (page_num >= nr_pages)
		return 1;

	page = intercepted ? kvm_xen_make_hypercall_page(vcpu) :
			     kvm_xen_read_hypercall_page(kvm, page_num, lm);
	if (IS_ERR(page))
		return PTR_ERR(page);

	/* All at once, as each write is an entry in the dirty ring. */
	r = kvm_vcpu_write_guest(vcpu, page_addr, page, PAGE_SIZE);
	kfree(page);
	return r ? 1 : 0;
}

int kvm_xen_hvm_config(struct kvm *kvm, struct kvm_xen_hvm_config *xhc)
{
	/* Only some feature flags need to be *enabled* by userspace */
	u32 permitted_flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
		KVM_XEN_HVM_CONFIG_EVTCHN_SEND |
		KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE |
		KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO;
	u32 old_flags;
	int r;

	if (xhc->flags & ~permitted_flags)
		return -EINVAL;

	/*
	 * With hypercall interception the kernel generates its own
	 * hypercall page so it must not be provided.
	 */
	if ((xhc->flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL) &&
	    (xhc->blob_addr_32 || xhc->blob_addr_64 ||
	     xhc->blob_size_32 || xhc->blob_size_64))
		return -EINVAL;

	/*
	 * Restrict the MSR to the range that is unofficially reserved for
	 * synthetic, virtualization-defined MSRs, e.g. to prevent confusing
	 * KVM by colliding with a real MSR that requires special handling.
	 */
	if (xhc->msr &&
	    (xhc->msr < KVM_XEN_MSR_MIN_INDEX || xhc->msr > KVM_XEN_MSR_MAX_INDEX))
		return -EINVAL;

	mutex_lock(&kvm->arch.xen.xen_lock);

	r = kvm_xen_use_default_vcpu_info(kvm,
					  xhc->flags & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);
	if (r) {
		mutex_unlock(&kvm->arch.xen.xen_lock);
		return r;
	}

	if (xhc->msr)
		kvm_xen_look_for_events(kvm);

	old_flags = kvm->arch.xen.hvm_config.flags;
	memcpy(&kvm->arch.xen.hvm_config, xhc, sizeof(*xhc));

	mutex_unlock(&kvm->arch.xen.xen_lock);

	if ((old_flags ^ xhc->flags) & KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE)
		kvm_make_all_cpus_request(kvm, KVM_REQ_CLOCK_UPDATE);

	return 0;
}

static int kvm_xen_hypercall_set_result(struct kvm_vcpu *vcpu, u64 result)
{
	kvm_rax_write_raw(vcpu, result);
	return kvm_skip_emulated_instruction(vcpu);
}

static int kvm_xen_hypercall_complete_userspace(struct kvm_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	if (unlikely(!kvm_is_linear_rip(vcpu, vcpu->arch.xen.hypercall_rip)))
		return 1;

	return kvm_xen_hypercall_set_result(vcpu, run->xen.u.hcall.result);
}

static bool kvm_xen_hcall_sched_op(struct kvm_vcpu *vcpu, bool longmode,
				   int cmd, u64 param, u64 *r)
{
	switch (cmd) {
	case SCHEDOP_poll:
		if (kvm_xen_schedop_poll(vcpu, longmode, param, r))
			return true;
		fallthrough;
	case SCHEDOP_yield:
		kvm_vcpu_on_spin(vcpu, true);
		*r = 0;
		return true;
	default:
		break;
	}

	return false;
}

struct compat_vcpu_set_singleshot_timer {
    uint64_t timeout_abs_ns;
    uint32_t flags;
} __attribute__((packed));

static bool kvm_xen_hcall_vcpu_op(struct kvm_vcpu *vcpu, bool longmode, int cmd,
				  int vcpu_id, u64 param, u64 *r)
{
	struct vcpu_set_singleshot_timer oneshot;
	struct x86_exception e;

	if (cmd != VCPUOP_set_singleshot_timer &&
	    cmd != VCPUOP_stop_singleshot_timer)
		return false;

	if (!kvm_xen_timer_enabled(vcpu))
		return false;

	if (vcpu->arch.xen.vcpu_id == XEN_VCPU_ID_INVALID)
		return false;

	/*
	 * Reject the hypercall if the guest is trying to start/stop the timer
	 * for a different vCPU.  Xen per-vCPU hypercalls take a target vCPU as
	 * a common parameter, as all per-vCPU hypercalls *except* single-shot
	 * timer updates can be cross-vCPU.
	 */
	if (vcpu->arch.xen.vcpu_id != vcpu_id) {
		*r = -EINVAL;
		return true;
	}

	if (cmd == VCPUOP_set_singleshot_timer) {
		/*
		 * The only difference for 32-bit compat is the 4 bytes of
		 * padding after the interesting part of the structure. So
		 * for a faithful emulation of Xen we have to *try* to copy
		 * the padding and return -EFAULT if we can't. Otherwise we
		 * might as well just have copied the 12-byte 32-bit struct.
		 */
		BUILD_BUG_ON(offsetof(struct compat_vcpu_set_singleshot_timer, timeout_abs_ns) !=
			     offsetof(struct vcpu_set_singleshot_timer, timeout_abs_ns));
		BUILD_BUG_ON(sizeof_field(struct compat_vcpu_set_singleshot_timer, timeout_abs_ns) !=
			     sizeof_field(struct vcpu_set_singleshot_timer, timeout_abs_ns));
		BUILD_BUG_ON(offsetof(struct compat_vcpu_set_singleshot_timer, flags) !=
			     offsetof(struct vcpu_set_singleshot_timer, flags));
		BUILD_BUG_ON(sizeof_field(struct compat_vcpu_set_singleshot_timer, flags) !=
			     sizeof_field(struct vcpu_set_singleshot_timer, flags));

		if (kvm_read_guest_virt(vcpu, param, &oneshot, longmode ? sizeof(oneshot) :
					sizeof(struct compat_vcpu_set_singleshot_timer), &e)) {
			*r = -EFAULT;
			return true;
		}

		kvm_xen_start_timer(vcpu, oneshot.timeout_abs_ns, false);
	} else {
		kvm_xen_stop_timer(vcpu);
	}

	*r = 0;
	return true;
}

static bool kvm_xen_hcall_set_timer_op(struct kvm_vcpu *vcpu, uint64_t timeout,
				       u64 *r)
{
	if (!kvm_xen_timer_enabled(vcpu))
		return false;

	if (timeout)
		kvm_xen_start_timer(vcpu, timeout, true);
	else
		kvm_xen_stop_timer(vcpu);

	*r = 0;
	return true;
}

/* Return false for a 64-bit hypercall on a 32-bit host. */
static bool kvm_xen_read_hypercall(struct kvm_vcpu *vcpu, bool longmode, u64 *input,
				   u64 *params)
{
	if (!longmode) {
		*input = kvm_eax_read(vcpu);
		params[0] = kvm_ebx_read(vcpu);
		params[1] = kvm_ecx_read(vcpu);
		params[2] = kvm_edx_read(vcpu);
		params[3] = kvm_esi_read(vcpu);
		params[4] = kvm_edi_read(vcpu);
		params[5] = kvm_ebp_read(vcpu);
		return true;
	}

#ifdef CONFIG_X86_64
	*input = (u64)kvm_rax_read_raw(vcpu);
	params[0] = (u64)kvm_rdi_read_raw(vcpu);
	params[1] = (u64)kvm_rsi_read_raw(vcpu);
	params[2] = (u64)kvm_rdx_read_raw(vcpu);
	params[3] = (u64)kvm_r10_read_raw(vcpu);
	params[4] = (u64)kvm_r8_read_raw(vcpu);
	params[5] = (u64)kvm_r9_read_raw(vcpu);
	return true;
#else
	return false;
#endif
}

/* Return false if userspace has to handle the hypercall. */
static bool kvm_xen_handle_hypercall(struct kvm_vcpu *vcpu, bool longmode, u64 input,
				     u64 *params, u64 *r)
{
	u64 timeout = params[0];

	switch (input) {
	case __HYPERVISOR_xen_version:
		if (params[0] != XENVER_version || !vcpu->kvm->arch.xen.xen_version)
			return false;
		*r = vcpu->kvm->arch.xen.xen_version;
		return true;
	case __HYPERVISOR_event_channel_op:
		return params[0] == EVTCHNOP_send &&
		       kvm_xen_hcall_evtchn_send(vcpu, params[1], r);
	case __HYPERVISOR_sched_op:
		return kvm_xen_hcall_sched_op(vcpu, longmode, params[0], params[1], r);
	case __HYPERVISOR_vcpu_op:
		return kvm_xen_hcall_vcpu_op(vcpu, longmode, params[0], params[1],
					     params[2], r);
	case __HYPERVISOR_set_timer_op:
		/* In 32-bit mode, the 64-bit timeout is in two 32-bit params. */
		if (!longmode)
			timeout |= params[1] << 32;
		return kvm_xen_hcall_set_timer_op(vcpu, timeout, r);
	default:
		return false;
	}
}

int kvm_xen_hypercall(struct kvm_vcpu *vcpu)
{
	u64 input, params[6], r = -ENOSYS;
	bool longmode;
	u8 cpl;

	/* Hyper-V hypercalls get bit 31 set in EAX */
	if ((kvm_rax_read_raw(vcpu) & 0x80000000) &&
	    kvm_hv_hypercall_enabled(vcpu))
		return kvm_hv_hypercall(vcpu);

	longmode = is_64_bit_hypercall(vcpu);
	if (KVM_BUG_ON(!kvm_xen_read_hypercall(vcpu, longmode, &input, params), vcpu->kvm))
		return -EIO;

	cpl = kvm_x86_call(get_cpl)(vcpu);
	trace_kvm_xen_hypercall(cpl, input, params[0], params[1], params[2],
				params[3], params[4], params[5]);

	/*
	 * Only allow hypercall acceleration for CPL0. The rare hypercalls that
	 * are permitted in guest userspace can be handled by the VMM.
	 */
	if (likely(!cpl) && kvm_xen_handle_hypercall(vcpu, longmode, input, params, &r))
		return kvm_xen_hypercall_set_result(vcpu, r);

	vcpu->run->exit_reason = KVM_EXIT_XEN;
	vcpu->run->xen.type = KVM_EXIT_XEN_HCALL;
	vcpu->run->xen.u.hcall.longmode = longmode;
	vcpu->run->xen.u.hcall.cpl = cpl;
	vcpu->run->xen.u.hcall.input = input;
	memcpy(vcpu->run->xen.u.hcall.params, params, sizeof(params));
	vcpu->arch.xen.hypercall_rip = kvm_get_linear_rip(vcpu);
	vcpu->arch.complete_userspace_io =
		kvm_xen_hypercall_complete_userspace;

	return 0;
}

/*
 * Support for *outbound* event channel events via the EVTCHNOP_send hypercall.
 */
struct evtchnfd {
	u32 send_port;
	u32 type;
	union {
		struct kvm_xen_evtchn port;
		struct {
			u32 port; /* zero */
			struct eventfd_ctx *ctx;
		} eventfd;
	} deliver;
};

/*
 * Update target vCPU or priority for a registered sending channel.
 */
static int kvm_xen_eventfd_update(struct kvm *kvm,
				  struct kvm_xen_hvm_attr *data)
{
	u32 port = data->u.evtchn.send_port;
	struct evtchnfd *evtchnfd;
	int ret;

	/* Protect writes to evtchnfd as well as the idr lookup.  */
	mutex_lock(&kvm->arch.xen.xen_lock);
	evtchnfd = idr_find(&kvm->arch.xen.evtchn_ports, port);

	ret = -ENOENT;
	if (!evtchnfd)
		goto out_unlock;

	/* For an UPDATE, nothing may change except the priority/vcpu */
	ret = -EINVAL;
	if (evtchnfd->type != data->u.evtchn.type)
		goto out_unlock;

	/*
	 * Port cannot change, and if it's zero that was an eventfd
	 * which can't be changed either.
	 */
	if (!evtchnfd->deliver.port.port ||
	    evtchnfd->deliver.port.port != data->u.evtchn.deliver.port.port)
		goto out_unlock;

	/* We only support 2 level event channels for now */
	if (data->u.evtchn.deliver.port.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		goto out_unlock;

	evtchnfd->deliver.port.priority = data->u.evtchn.deliver.port.priority;
	WRITE_ONCE(evtchnfd->deliver.port.vcpu_id, data->u.evtchn.deliver.port.vcpu);
	ret = 0;
out_unlock:
	mutex_unlock(&kvm->arch.xen.xen_lock);
	return ret;
}

/*
 * Configure the target (eventfd or local port delivery) for sending on
 * a given event channel.
 */
static int kvm_xen_eventfd_assign(struct kvm *kvm,
				  struct kvm_xen_hvm_attr *data)
{
	u32 port = data->u.evtchn.send_port;
	struct eventfd_ctx *eventfd = NULL;
	struct evtchnfd *evtchnfd;
	int ret = -EINVAL;

	evtchnfd = kzalloc_obj(struct evtchnfd);
	if (!evtchnfd)
		return -ENOMEM;

	switch(data->u.evtchn.type) {
	case EVTCHNSTAT_ipi:
		/* IPI  must map back to the same port# */
		if (data->u.evtchn.deliver.port.port != data->u.evtchn.send_port)
			goto out_noeventfd; /* -EINVAL */
		break;

	case EVTCHNSTAT_interdomain:
		if (data->u.evtchn.deliver.port.port) {
			if (data->u.evtchn.deliver.port.port >= kvm_xen_nr_ports(kvm))
				goto out_noeventfd; /* -EINVAL */
		} else {
			eventfd = eventfd_ctx_fdget(data->u.evtchn.deliver.eventfd.fd);
			if (IS_ERR(eventfd)) {
				ret = PTR_ERR(eventfd);
				goto out_noeventfd;
			}
		}
		break;

	case EVTCHNSTAT_virq:
	case EVTCHNSTAT_closed:
	case EVTCHNSTAT_unbound:
	case EVTCHNSTAT_pirq:
	default: /* Unknown event channel type */
		goto out; /* -EINVAL */
	}

	evtchnfd->send_port = data->u.evtchn.send_port;
	evtchnfd->type = data->u.evtchn.type;
	if (eventfd) {
		evtchnfd->deliver.eventfd.ctx = eventfd;
	} else {
		/* We only support 2 level event channels for now */
		if (data->u.evtchn.deliver.port.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
			goto out; /* -EINVAL; */

		evtchnfd->deliver.port.port = data->u.evtchn.deliver.port.port;
		evtchnfd->deliver.port.vcpu_id = data->u.evtchn.deliver.port.vcpu;
		evtchnfd->deliver.port.vcpu = NULL;
		evtchnfd->deliver.port.priority = data->u.evtchn.deliver.port.priority;
	}

	mutex_lock(&kvm->arch.xen.xen_lock);
	ret = idr_alloc(&kvm->arch.xen.evtchn_ports, evtchnfd, port, port + 1,
			GFP_KERNEL);
	mutex_unlock(&kvm->arch.xen.xen_lock);
	if (ret >= 0)
		return 0;

	if (ret == -ENOSPC)
		ret = -EEXIST;
out:
	if (eventfd)
		eventfd_ctx_put(eventfd);
out_noeventfd:
	kfree(evtchnfd);
	return ret;
}

static int kvm_xen_eventfd_deassign(struct kvm *kvm, u32 port)
{
	struct evtchnfd *evtchnfd;

	mutex_lock(&kvm->arch.xen.xen_lock);
	evtchnfd = idr_remove(&kvm->arch.xen.evtchn_ports, port);
	mutex_unlock(&kvm->arch.xen.xen_lock);

	if (!evtchnfd)
		return -ENOENT;

	synchronize_srcu(&kvm->srcu);
	if (!evtchnfd->deliver.port.port)
		eventfd_ctx_put(evtchnfd->deliver.eventfd.ctx);
	kfree(evtchnfd);
	return 0;
}

static int kvm_xen_eventfd_reset(struct kvm *kvm)
{
	struct evtchnfd *evtchnfd, **all_evtchnfds;
	int i;
	int n = 0;

	mutex_lock(&kvm->arch.xen.xen_lock);

	/*
	 * Because synchronize_srcu() cannot be called inside the
	 * critical section, first collect all the evtchnfd objects
	 * in an array as they are removed from evtchn_ports.
	 */
	idr_for_each_entry(&kvm->arch.xen.evtchn_ports, evtchnfd, i)
		n++;

	all_evtchnfds = kmalloc_objs(struct evtchnfd *, n);
	if (!all_evtchnfds) {
		mutex_unlock(&kvm->arch.xen.xen_lock);
		return -ENOMEM;
	}

	n = 0;
	idr_for_each_entry(&kvm->arch.xen.evtchn_ports, evtchnfd, i) {
		all_evtchnfds[n++] = evtchnfd;
		idr_remove(&kvm->arch.xen.evtchn_ports, evtchnfd->send_port);
	}
	mutex_unlock(&kvm->arch.xen.xen_lock);

	synchronize_srcu(&kvm->srcu);

	while (n--) {
		evtchnfd = all_evtchnfds[n];
		if (!evtchnfd->deliver.port.port)
			eventfd_ctx_put(evtchnfd->deliver.eventfd.ctx);
		kfree(evtchnfd);
	}
	kfree(all_evtchnfds);

	return 0;
}

static int kvm_xen_setattr_evtchn(struct kvm *kvm, struct kvm_xen_hvm_attr *data)
{
	u32 port = data->u.evtchn.send_port;

	if (data->u.evtchn.flags == KVM_XEN_EVTCHN_RESET)
		return kvm_xen_eventfd_reset(kvm);

	if (!port || port >= kvm_xen_nr_ports(kvm))
		return -EINVAL;

	if (data->u.evtchn.flags == KVM_XEN_EVTCHN_DEASSIGN)
		return kvm_xen_eventfd_deassign(kvm, port);
	if (data->u.evtchn.flags == KVM_XEN_EVTCHN_UPDATE)
		return kvm_xen_eventfd_update(kvm, data);
	if (data->u.evtchn.flags)
		return -EINVAL;

	return kvm_xen_eventfd_assign(kvm, data);
}

static bool kvm_xen_hcall_evtchn_send(struct kvm_vcpu *vcpu, u64 param, u64 *r)
{
	struct evtchnfd *evtchnfd;
	struct evtchn_send send;
	struct x86_exception e;

	/* Sanity check: this structure is the same for 32-bit and 64-bit */
	BUILD_BUG_ON(sizeof(send) != 4);
	if (kvm_read_guest_virt(vcpu, param, &send, sizeof(send), &e)) {
		*r = -EFAULT;
		return true;
	}

	/*
	 * evtchnfd is protected by kvm->srcu; the idr lookup instead
	 * is protected by RCU.
	 */
	rcu_read_lock();
	evtchnfd = idr_find(&vcpu->kvm->arch.xen.evtchn_ports, send.port);
	rcu_read_unlock();
	if (!evtchnfd)
		return false;

	if (evtchnfd->deliver.port.port) {
		struct kvm_vcpu *to = kvm_xen_save_evtchn_vcpu(&evtchnfd->deliver.port, vcpu->kvm);
		u32 port = evtchnfd->deliver.port.port;
		int ret = to ? kvm_xen_set_evtchn(to, port) : -EINVAL;

		/*
		 * A signal has ended the wait for shared_info.  Have the target
		 * vCPU raise the event.
		 */
		if (ret == -EINTR && kvm_xen_defer_event(to, port))
			ret = 0;
		if (ret < 0 && ret != -ENOTCONN)
			return false;
	} else {
		eventfd_signal(evtchnfd->deliver.eventfd.ctx);
	}

	*r = 0;
	return true;
}

void kvm_xen_init_vcpu(struct kvm_vcpu *vcpu)
{
	vcpu->arch.xen.vcpu_id = XEN_VCPU_ID_INVALID;
	kvm_xen_init_vcpu_events(vcpu);
	kvm_xen_init_vcpu_timer(vcpu);

	kvm_gpc_init(&vcpu->arch.xen.runstate_cache, vcpu->kvm);
	kvm_gpc_init(&vcpu->arch.xen.vcpu_info_cache, vcpu->kvm);
	kvm_gpc_init(&vcpu->arch.xen.vcpu_time_info_cache, vcpu->kvm);
}

void kvm_xen_destroy_vcpu(struct kvm_vcpu *vcpu)
{
	if (kvm_xen_timer_enabled(vcpu))
		kvm_xen_stop_timer(vcpu);

	kvm_gpc_deactivate(&vcpu->arch.xen.runstate_cache);
	kvm_gpc_deactivate(&vcpu->arch.xen.vcpu_info_cache);
	kvm_gpc_deactivate(&vcpu->arch.xen.vcpu_time_info_cache);

	hrtimer_cancel(&vcpu->arch.xen.poll_timer);
}

void kvm_xen_init_vm(struct kvm *kvm)
{
	mutex_init(&kvm->arch.xen.xen_lock);
	idr_init(&kvm->arch.xen.evtchn_ports);
	kvm_gpc_init(&kvm->arch.xen.shinfo_cache, kvm);
}

void kvm_xen_destroy_vm(struct kvm *kvm)
{
	struct evtchnfd *evtchnfd;
	int i;

	kvm_gpc_deactivate(&kvm->arch.xen.shinfo_cache);

	idr_for_each_entry(&kvm->arch.xen.evtchn_ports, evtchnfd, i) {
		if (!evtchnfd->deliver.port.port)
			eventfd_ctx_put(evtchnfd->deliver.eventfd.ctx);
		kfree(evtchnfd);
	}
	idr_destroy(&kvm->arch.xen.evtchn_ports);

	if (kvm->arch.xen.looks_for_events)
		static_branch_slow_dec_deferred(&kvm_xen_enabled);
}
