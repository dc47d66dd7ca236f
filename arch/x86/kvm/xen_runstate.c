// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: runstates
 *
 * How long a vCPU was running, runnable, blocked and offline, and the area in
 * which the guest reads that.  Accounted by the task that holds vcpu->mutex,
 * with preemption disabled, and when that task is scheduled out.
 */
#include "x86.h"
#include "xen.h"
#include "xen_area.h"

#include <linux/kvm_host.h>
#include <linux/sched/stat.h>

/*
 * There are basically no alignment constraints. The guest can set it
 * up so it crosses from one page to the next, and at arbitrary byte
 * alignment (and the 32-bit ABI doesn't align the 64-bit integers
 * anyway, even if the overall struct had been 64-bit aligned).
 *
 * Return false if the area is too short: it was registered in 32-bit mode, and
 * the mode has changed since.
 */
static bool kvm_xen_write_runstate(struct kvm_vcpu *v, void *khva)
{
	bool long_mode = kvm_xen_area_mode(v->kvm);
	struct kvm_vcpu_xen *vx = &v->arch.xen;
	u8 *update_bit = NULL;
	u64 entry_time;
	u64 *rs_times;
	int *rs_state;

	if (unlikely(kvm_gpc_len(&vx->runstate_cache) < kvm_xen_runstate_len(long_mode)))
		return false;

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
	rs_times = khva + kvm_xen_runstate_times(long_mode);
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

	return true;
}

/* Doesn't sleep, and leaves an area that isn't mapped or is too short alone. */
static void kvm_xen_try_update_runstate_guest(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc = &v->arch.xen.runstate_cache;
	void *khva = kvm_gpc_trylock(gpc);

	if (IS_ERR(khva))
		return;

	if (kvm_xen_write_runstate(v, khva))
		kvm_gpc_unlock_dirty(gpc);
	else
		kvm_gpc_unlock(gpc);
}

static void kvm_xen_update_runstate_guest(struct kvm_vcpu *v)
{
	struct gfn_to_pfn_cache *gpc = &v->arch.xen.runstate_cache;
	void *khva;

	if (!kvm_gpc_is_active(gpc))
		return;

	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return;

	if (kvm_xen_write_runstate(v, khva)) {
		kvm_gpc_unlock_dirty(gpc);
		return;
	}

	kvm_gpc_unlock(gpc);

	/* vcpu->mutex keeps another task from replacing the area meanwhile. */
	lockdep_assert_held(&v->mutex);

	/* If there is no memory for the longer area, it isn't written. */
	if (!kvm_gpc_activate(gpc, kvm_gpc_gpa(gpc), kvm_xen_runstate_len(true)))
		kvm_xen_try_update_runstate_guest(v);
}

static int kvm_xen_set_runstate_addr(struct kvm_vcpu *vcpu, gpa_t gpa)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->arch.xen.runstate_cache;
	int r;

	lockdep_assert_held(&vcpu->kvm->arch.xen.xen_lock);

	if (gpa == KVM_XEN_INVALID_GPA) {
		kvm_gpc_deactivate(gpc);
		return 0;
	}

	r = kvm_gpc_activate(gpc, gpa, kvm_xen_runstate_len(kvm_xen_long_mode(vcpu->kvm)));
	if (r)
		return kvm_xen_area_error(r);

	kvm_xen_update_runstate_guest(vcpu);
	return 0;
}

/*
 * How long the vCPU's task has waited for a CPU.  Another task may set
 * runstates by ioctl.
 */
static u64 kvm_xen_run_delay(struct kvm_vcpu *v)
{
	if (likely(v->pid == task_pid(current)))
		return current->sched_info.run_delay;

	return v->arch.xen.last_steal;
}

static void kvm_xen_account_runstate(struct kvm_vcpu *v, int state)
{
	struct kvm_vcpu_xen *vx = &v->arch.xen;
	u64 now = get_kvmclock_ns(v->kvm);
	u64 run_delay = kvm_xen_run_delay(v);
	s64 delta_ns = now - vx->runstate_entry_time;
	s64 steal_ns = run_delay - vx->last_steal;

	/*
	 * If the vCPU was never run before, its prior state should
	 * be considered RUNSTATE_offline.
	 */
	if (unlikely(!vx->runstate_entry_time))
		vx->current_runstate = RUNSTATE_offline;

	/*
	 * If KVM clock went backwards, just update the current runstate
	 * but don't account any time. Leave entry_time unchanged so the
	 * next positive delta covers the full period once the clock
	 * catches up. Update last_steal every time so stolen time only
	 * reflects the interval since the most recent call.
	 */
	if (delta_ns < 0)
		goto out;

	/*
	 * Time waiting for the scheduler isn't "stolen" if the
	 * vCPU wasn't running anyway.
	 */
	if (vx->current_runstate == RUNSTATE_running && steal_ns > 0) {
		if (steal_ns > delta_ns)
			steal_ns = delta_ns;

		delta_ns -= steal_ns;
		vx->runstate_times[RUNSTATE_runnable] += steal_ns;
	}

	vx->runstate_times[vx->current_runstate] += delta_ns;
	vx->runstate_entry_time = now;

 out:
	vx->current_runstate = state;
	vx->last_steal = run_delay;
}

void kvm_xen_update_runstate(struct kvm_vcpu *v, int state)
{
	/* Scheduling out accounts, too, so must not interrupt this. */
	scoped_guard(preempt)
		kvm_xen_account_runstate(v, state);

	kvm_xen_update_runstate_guest(v);
}

void kvm_xen_update_runstate_preempted(struct kvm_vcpu *v)
{
	bool runnable = v->arch.xen.current_runstate == RUNSTATE_runnable;

	kvm_xen_account_runstate(v, RUNSTATE_runnable);

	/* Once per guest entry, which checks for room in the dirty ring. */
	if (!runnable)
		kvm_xen_try_update_runstate_guest(v);
}

static bool kvm_xen_runstate_adds_up(const struct kvm_xen_vcpu_attr *data)
{
	return data->u.runstate.state_entry_time ==
	       (data->u.runstate.time_running + data->u.runstate.time_runnable +
		data->u.runstate.time_blocked + data->u.runstate.time_offline);
}

static int kvm_xen_set_runstate_data(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	if (data->u.runstate.state > RUNSTATE_offline || !kvm_xen_runstate_adds_up(data))
		return -EINVAL;

	if (get_kvmclock_ns(vcpu->kvm) < data->u.runstate.state_entry_time)
		return -EINVAL;

	vx->current_runstate = data->u.runstate.state;
	vx->runstate_entry_time = data->u.runstate.state_entry_time;
	vx->runstate_times[RUNSTATE_running] = data->u.runstate.time_running;
	vx->runstate_times[RUNSTATE_runnable] = data->u.runstate.time_runnable;
	vx->runstate_times[RUNSTATE_blocked] = data->u.runstate.time_blocked;
	vx->runstate_times[RUNSTATE_offline] = data->u.runstate.time_offline;
	vx->last_steal = kvm_xen_run_delay(vcpu);
	return 0;
}

static int kvm_xen_adjust_runstate(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	if (data->u.runstate.state > RUNSTATE_offline && data->u.runstate.state != (u64)-1)
		return -EINVAL;

	if (!kvm_xen_runstate_adds_up(data))
		return -EINVAL;

	if (get_kvmclock_ns(vcpu->kvm) <
	    (vx->runstate_entry_time + data->u.runstate.state_entry_time))
		return -EINVAL;

	vx->runstate_entry_time += data->u.runstate.state_entry_time;
	vx->runstate_times[RUNSTATE_running] += data->u.runstate.time_running;
	vx->runstate_times[RUNSTATE_runnable] += data->u.runstate.time_runnable;
	vx->runstate_times[RUNSTATE_blocked] += data->u.runstate.time_blocked;
	vx->runstate_times[RUNSTATE_offline] += data->u.runstate.time_offline;

	if (data->u.runstate.state <= RUNSTATE_offline)
		kvm_xen_update_runstate(vcpu, data->u.runstate.state);
	else
		kvm_xen_update_runstate_guest(vcpu);

	return 0;
}

int kvm_xen_set_runstate(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	if (!sched_info_on())
		return -EOPNOTSUPP;

	switch (data->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
		return kvm_xen_set_runstate_addr(vcpu, data->u.gpa);
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
		return kvm_xen_set_runstate_data(vcpu, data);
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
		return kvm_xen_adjust_runstate(vcpu, data);
	default:
		if (data->u.runstate.state > RUNSTATE_offline)
			return -EINVAL;

		kvm_xen_update_runstate(vcpu, data->u.runstate.state);
		return 0;
	}
}

int kvm_xen_get_runstate(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	if (!sched_info_on())
		return -EOPNOTSUPP;

	switch (data->type) {
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
		if (!kvm_gpc_is_active(&vx->runstate_cache))
			return -ENOENT;

		data->u.gpa = kvm_gpc_gpa(&vx->runstate_cache);
		return 0;
	case KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
		data->u.runstate.state_entry_time = vx->runstate_entry_time;
		data->u.runstate.time_running = vx->runstate_times[RUNSTATE_running];
		data->u.runstate.time_runnable = vx->runstate_times[RUNSTATE_runnable];
		data->u.runstate.time_blocked = vx->runstate_times[RUNSTATE_blocked];
		data->u.runstate.time_offline = vx->runstate_times[RUNSTATE_offline];
		fallthrough;
	default:
		data->u.runstate.state = vx->current_runstate;
		return 0;
	}
}
