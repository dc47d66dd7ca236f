// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: the vCPUs' single-shot timers
 *
 * A timer is set and stopped by the task that holds vcpu->mutex, and expires in
 * hard irq.  KVM_SET_CLOCK stops it and has the vCPU restart it.
 */
#include "x86.h"
#include "xen.h"
#include "xen_area.h"

#include <linux/kvm_host.h>

#include <asm/pvclock.h>

/*
 * The time of the KVM clock as the guest sees it, based on the scaled TSC and
 * the pvclock information provided by KVM, and CLOCK_MONOTONIC at the same
 * moment.
 */
u64 kvm_xen_guest_now(struct kvm_vcpu *vcpu, s64 *kernel_now)
{
	uint64_t guest_now;
	int r = -EOPNOTSUPP;

	do {
		struct pvclock_vcpu_time_info hv_clock;
		uint64_t host_tsc, guest_tsc;

		if (!cpu_feature_enabled(X86_FEATURE_CONSTANT_TSC) ||
		    !vcpu->kvm->arch.use_master_clock)
			break;

		r = kvm_xen_get_guest_pvclock(vcpu, &hv_clock);
		if (r)
			break;

		if (!IS_ENABLED(CONFIG_64BIT) ||
		    !kvm_get_monotonic_and_clockread(kernel_now, &host_tsc)) {
			/*
			 * Don't fall back to get_kvmclock_ns() because it's
			 * broken; it has a systemic error in its results
			 * because it scales directly from host TSC to
			 * nanoseconds, and doesn't scale first to guest TSC
			 * and *then* to nanoseconds as the guest does.
			 *
			 * There is a small error introduced here because time
			 * continues to elapse between the ktime_get() and the
			 * subsequent rdtsc(). But not the systemic drift due
			 * to get_kvmclock_ns().
			 */
			*kernel_now = ktime_get(); /* This is CLOCK_MONOTONIC */
			host_tsc = rdtsc();
		}

		/* Calculate the guest kvmclock as the guest would do it. */
		guest_tsc = kvm_read_l1_tsc(vcpu, host_tsc);
		guest_now = __pvclock_read_cycles(&hv_clock, guest_tsc);
	} while (0);

	if (r) {
		/*
		 * Without CONSTANT_TSC, get_kvmclock_ns() is the only option.
		 *
		 * Also if the guest PV clock hasn't been set up yet, as is
		 * likely to be the case during migration when the vCPU has
		 * not been run yet. It would be possible to calculate the
		 * scaling factors properly in that case but there's not much
		 * point in doing so. The get_kvmclock_ns() drift accumulates
		 * over time, so it's OK to use it at startup. Besides, on
		 * migration there's going to be a little bit of skew in the
		 * precise moment at which timers fire anyway. Often they'll
		 * be in the "past" by the time the VM is running again after
		 * migration.
		 */
		guest_now = get_kvmclock_ns(vcpu->kvm);
		*kernel_now = ktime_get();
	}

	return guest_now;
}

/* Return false if there is no shared_info. */
static bool kvm_xen_raise_timer(struct kvm_vcpu *vcpu)
{
	u32 port = vcpu->arch.xen.timer_virq;

	return kvm_xen_raise_port(vcpu, port) != -EWOULDBLOCK ||
	       kvm_xen_defer_event(vcpu, port);
}

static enum hrtimer_restart xen_timer_callback(struct hrtimer *timer)
{
	struct kvm_vcpu *vcpu = container_of(timer, struct kvm_vcpu,
					     arch.xen.timer);
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	/*
	 * Without a shared_info, there may be one by the time that the vCPU
	 * runs.  If it was registered since the attempt, the vCPU may have been
	 * woken before timer_restart was set, so wake it again.
	 */
	if (!kvm_xen_raise_timer(vcpu)) {
		smp_store_mb(vx->timer_restart, true);		/* matches B */
		if (kvm_gpc_is_active(&vcpu->kvm->arch.xen.shinfo_cache))
			kvm_xen_wake_vcpu(vcpu);
	}

	/* Last: a timer that isn't running has raised its event. */
	smp_store_release(&vx->timer_running, false);	/* J, matches K */

	return HRTIMER_NORESTART;
}

void kvm_xen_start_timer(struct kvm_vcpu *vcpu, u64 guest_abs, bool linux_wa)
{
	s64 kernel_now, delta;
	u64 guest_now;

	/* Avoid races with the old timer firing. */
	hrtimer_cancel(&vcpu->arch.xen.timer);

	/*
	 * Before the clock is read below.  KVM_SET_CLOCK looks for timers that
	 * run after it has set the clock, so if it doesn't find this one, the
	 * new clock is read.
	 */
	smp_store_mb(vcpu->arch.xen.timer_running, true);	/* C, matches D */

	/*
	 * The guest provides the requested timeout in absolute nanoseconds
	 * of the KVM clock — as *it* sees it, based on the scaled TSC and
	 * the pvclock information provided by KVM.
	 *
	 * The kernel doesn't support hrtimers based on CLOCK_MONOTONIC_RAW
	 * so use CLOCK_MONOTONIC. In the timescales covered by timers, the
	 * difference won't matter much as there is no cumulative effect.
	 *
	 * Calculate the time for some arbitrary point in time around "now"
	 * in terms of both kvmclock and CLOCK_MONOTONIC. Calculate the
	 * delta between the kvmclock "now" value and the guest's requested
	 * timeout, apply the "Linux workaround" described below, and add
	 * the resulting delta to the CLOCK_MONOTONIC "now" value, to get
	 * the absolute CLOCK_MONOTONIC time at which the timer should
	 * fire.
	 */
	guest_now = kvm_xen_guest_now(vcpu, &kernel_now);
	delta = guest_abs - guest_now;

	/*
	 * Xen has a 'Linux workaround' in do_set_timer_op() which checks for
	 * negative absolute timeout values (caused by integer overflow), and
	 * for values about 13 days in the future (2^50ns) which would be
	 * caused by jiffies overflow. For those cases, Xen sets the timeout
	 * 100ms in the future (not *too* soon, since if a guest really did
	 * set a long timeout on purpose we don't want to keep churning CPU
	 * time by waking it up).  Emulate Xen's workaround when starting the
	 * timer in response to __HYPERVISOR_set_timer_op.
	 */
	if (linux_wa &&
	    unlikely((int64_t)guest_abs < 0 ||
		     (delta > 0 && (uint32_t) (delta >> 50) != 0))) {
		delta = 100 * NSEC_PER_MSEC;
		guest_abs = guest_now + delta;
	}

	vcpu->arch.xen.timer_expires = guest_abs;

	if (delta <= 0)
		xen_timer_callback(&vcpu->arch.xen.timer);
	else
		hrtimer_start(&vcpu->arch.xen.timer,
			      ktime_add_safe(kernel_now, delta),
			      HRTIMER_MODE_ABS_HARD);
}

void kvm_xen_stop_timer(struct kvm_vcpu *vcpu)
{
	hrtimer_cancel(&vcpu->arch.xen.timer);
	WRITE_ONCE(vcpu->arch.xen.timer_running, false);
	vcpu->arch.xen.timer_expires = 0;
}

/*
 * Start a timer that KVM_SET_CLOCK has stopped, or raise the event of a timer
 * that has expired without a shared_info.  If there still is none, drop the
 * event.  Called by the task that holds vcpu->mutex.
 */
void kvm_xen_restart_timer(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	WRITE_ONCE(vx->timer_restart, false);

	if (READ_ONCE(vx->timer_running))
		kvm_xen_start_timer(vcpu, vx->timer_expires, false);
	else if (vx->timer_expires)
		kvm_xen_raise_timer(vcpu);
}

/*
 * Timers and polls expire at a time of the guest's clock.  Stop the timers and
 * have their vCPUs restart them by the new clock, at the latest in the next
 * KVM_RUN, and wake the pollers, for the guest to poll again.
 */
void kvm_xen_clock_was_set(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	/* The clock was set before this looks for timers and polls. */
	smp_mb();					/* D, matches C and H */

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (READ_ONCE(vcpu->arch.xen.timer_running)) {
			/*
			 * First: once timer_restart is set, the vCPU may start
			 * the timer by the new clock.
			 */
			hrtimer_cancel(&vcpu->arch.xen.timer);
			WRITE_ONCE(vcpu->arch.xen.timer_restart, true);
			kvm_make_request_and_kick(KVM_REQ_UNBLOCK, vcpu);
		} else if (test_bit(vcpu->vcpu_idx, kvm->arch.xen.poll_mask)) {
			kvm_make_request_and_kick(KVM_REQ_UNBLOCK, vcpu);
		}
	}
}

int kvm_xen_set_timer(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	if (data->u.timer.port &&
	    data->u.timer.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		return -EINVAL;

	/* Stop the timer (if it's running) before changing the vector */
	kvm_xen_stop_timer(vcpu);
	vcpu->arch.xen.timer_virq = data->u.timer.port;

	/* Start the timer if the new value has a valid vector+expiry. */
	if (data->u.timer.port && data->u.timer.expires_ns)
		kvm_xen_start_timer(vcpu, data->u.timer.expires_ns, false);

	return 0;
}

void kvm_xen_get_timer(struct kvm_vcpu *vcpu, struct kvm_xen_vcpu_attr *data)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;
	bool running = smp_load_acquire(&vx->timer_running);	/* K, matches J */

	/*
	 * Report a consistent state: either the timer as set, or its event in
	 * shared_info.  If the event can't be raised for now, report the timer
	 * as set, so that the destination raises it.
	 *
	 * A timer that is reported may expire at once, and the destination
	 * raises the event again.  That's fine, as the guest won't have had a
	 * chance to run and handle it.  Asserting an already pending event
	 * channel is idempotent.
	 *
	 * timer_running was read first: a timer that isn't running has raised
	 * its event or set timer_restart.
	 */
	if (READ_ONCE(vx->timer_restart))
		kvm_xen_restart_timer(vcpu);
	kvm_xen_inject_pending_events(vcpu);
	if (!running && !kvm_xen_is_deferred(vcpu, vx->timer_virq))
		vx->timer_expires = 0;

	data->u.timer.port = vx->timer_virq;
	data->u.timer.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL;
	data->u.timer.expires_ns = vx->timer_expires;
}

void kvm_xen_init_vcpu_timer(struct kvm_vcpu *vcpu)
{
	hrtimer_setup(&vcpu->arch.xen.timer, xen_timer_callback, CLOCK_MONOTONIC,
		      HRTIMER_MODE_ABS_HARD);
}
