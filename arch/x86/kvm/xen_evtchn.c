// SPDX-License-Identifier: GPL-2.0
/*
 * Copyright © 2019 Oracle and/or its affiliates. All rights reserved.
 * Copyright © 2020 Amazon.com, Inc. or its affiliates. All Rights Reserved.
 *
 * KVM Xen emulation: inbound events
 *
 * An event is raised by an irqfd, ioctl, hypercall or timer, which sets its
 * port in shared_info and its selector in vcpu_info, and notifies the vCPU.  If
 * an area isn't mapped, the event is deferred to its vCPU, which delivers it in
 * KVM_RUN or when userspace reads its state; pollers (SCHEDOP_poll) deliver the
 * deferred events of all vCPUs.
 *
 * kvm_xen_raise_port() and kvm_xen_defer_event() may be called in any context
 * but NMI, and take no lock of KVM's but deferred_lock.
 *
 * Barriers: A and B, attempts to deliver, see kvm_xen_wake_vcpu(); D and E, the
 * move of vcpu_info, see kvm_xen_vcpu_info(); F and G, an upcall and the local
 * APIC, see kvm_xen_sw_enable_lapic(); H and I, polling.
 */
#include "x86.h"
#include "lapic.h"
#include "xen.h"
#include "xen_area.h"
#include "irq.h"

#include <linux/kvm_host.h>

#include <asm/rmwcc.h>
#include <xen/interface/sched.h>

/*
 * Deferred selectors wait for vcpu_info, deferred events for shared_info.
 * Delivery may fail for as long as userspace keeps the area unmapped, so the
 * vCPU tries once and then sleeps, until there is another event or the area may
 * have been mapped:
 *
 *	vCPU					other tasks and irqs
 *
 *	evtchn_retry = false			defer an event, or bring memory back
 *	smp_mb()			(A)	smp_mb()	(B)
 *	try to deliver				evtchn_retry = true
 *						wake the vCPU
 *
 * Either the attempt sees the event and the memory, or evtchn_retry is true
 * after it.  The same goes for upcall_retry and the vCPU's reading of
 * vcpu_info.
 */
void kvm_xen_wake_vcpu(struct kvm_vcpu *vcpu)
{
	smp_mb();				/* B, matches A */
	WRITE_ONCE(vcpu->arch.xen.evtchn_retry, true);
	WRITE_ONCE(vcpu->arch.xen.upcall_retry, true);

	kvm_make_request(KVM_REQ_UNBLOCK, vcpu);
	kvm_vcpu_kick(vcpu);
}

/* Memory of an area may have changed: wake the vCPU if it has given up. */
void kvm_xen_retry_events(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	smp_mb();				/* B, matches A */

	if ((!READ_ONCE(vx->evtchn_retry) && kvm_xen_has_undelivered_events(vcpu)) ||
	    (!READ_ONCE(vx->upcall_retry) && READ_ONCE(vcpu->kvm->arch.xen.upcall_vector)))
		kvm_xen_wake_vcpu(vcpu);
}

/*
 * An upcall may be pending in a vcpu_info whose memslot is back, also if no
 * attempt to read it has failed.
 */
void kvm_xen_memslots_updated(struct kvm_vcpu *vcpu)
{
	if (READ_ONCE(vcpu->kvm->arch.xen.upcall_vector))
		kvm_xen_wake_vcpu(vcpu);
}

/* Only a hint: kvm_xen_raise_port() checks inside a read section. */
u32 kvm_xen_nr_ports(struct kvm *kvm)
{
	return kvm_xen_nr_ports_in(kvm_xen_long_mode(kvm));
}

static void kvm_xen_inject_vector(struct kvm_vcpu *v, u8 vector)
{
	struct kvm_lapic_irq irq = {
		.vector = vector,
		.delivery_mode = APIC_DM_FIXED,
		.level = 1,
	};

	/* Directly to the vCPU's local APIC, whose ID may not be in the map. */
	if (lapic_in_kernel(v))
		kvm_apic_set_irq(v, &irq, NULL);
}

/* Read the vector once, as userspace can change it at any time. */
void kvm_xen_inject_vcpu_vector(struct kvm_vcpu *v)
{
	u8 vector = READ_ONCE(v->arch.xen.upcall_vector);

	if (vector)
		kvm_xen_inject_vector(v, vector);
}

static void __kvm_xen_wake_pollers(struct kvm *kvm, u32 port)
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

/* The pollers of the port may be vCPUs other than the port's. */
static void kvm_xen_wake_pollers(struct kvm *kvm, u32 port)
{
	if (atomic_read(&kvm->arch.xen.nr_pollers))
		__kvm_xen_wake_pollers(kvm, port);
}

/*
 * vcpu_info, and with it evtchn_pending_sel, is aligned to 4 bytes, so an
 * 8-byte access may cross a cache line: a split lock if the access is atomic.
 */
static bool kvm_xen_test_and_set_sel(u32 *sel, int bit)
{
	return GEN_BINARY_RMWcc(LOCK_PREFIX "btsl", *sel, c, "r", bit);
}

/* What became of an event.  From KVM_XEN_MASKED on, its port was raised. */
enum kvm_xen_raised {
	KVM_XEN_BAD_PORT,	/* the guest has no such port in its mode */
	KVM_XEN_ALREADY_PENDING,
	KVM_XEN_MASKED,
	KVM_XEN_ALREADY_SELECTED,	/* its first setter notifies the vCPU */
	KVM_XEN_SEL_DEFERRED,	/* the vCPU has to run kvm_xen_set_pending_sels() */
	KVM_XEN_SELECTED,
};

/* Set the port's selector in vcpu_info. */
static enum kvm_xen_raised kvm_xen_set_sel(struct vcpu_info *vi, u32 port, bool long_mode)
{
	if (kvm_xen_test_and_set_sel(kvm_xen_pending_sels(vi, long_mode),
				     kvm_xen_sel(port, long_mode)))
		return KVM_XEN_ALREADY_SELECTED;

	smp_store_mb(vi->evtchn_upcall_pending, 1);		/* F, matches G */
	return KVM_XEN_SELECTED;
}

/* Inside a read section of shared_info, which may contain vcpu_info. */
static enum kvm_xen_raised kvm_xen_select_port(struct kvm_vcpu *vcpu, void *shinfo, u32 port,
					       bool long_mode)
{
	enum kvm_xen_raised raised;
	struct gfn_to_pfn_cache *gpc;
	unsigned int offset;
	void *khva;

	gpc = kvm_xen_vcpu_info(vcpu, &offset);
	if (gpc == &vcpu->kvm->arch.xen.shinfo_cache)
		return kvm_xen_set_sel(shinfo + offset, port, long_mode);

	khva = kvm_gpc_trylock(gpc);
	if (IS_ERR(khva)) {
		set_bit(kvm_xen_sel(port, long_mode),
			&vcpu->arch.xen.evtchn_pending_sel[long_mode]);
		return KVM_XEN_SEL_DEFERRED;
	}

	raised = kvm_xen_set_sel(khva, port, long_mode);
	kvm_gpc_unlock(gpc);
	return raised;
}

/*
 * Set the port's bit in shared_info, and its selector.  A masked port is
 * pending, too, for when the guest unmasks it, and pollers ignore the mask.
 */
static enum kvm_xen_raised kvm_xen_set_port(struct kvm_vcpu *vcpu, void *shinfo, u32 port)
{
	bool long_mode = kvm_xen_area_mode(vcpu->kvm);

	if (!port || port >= kvm_xen_nr_ports_in(long_mode))
		return KVM_XEN_BAD_PORT;

	/* D and I, match E and H */
	if (test_and_set_bit(port, kvm_xen_pending_ports(shinfo, long_mode)))
		return KVM_XEN_ALREADY_PENDING;

	if (test_bit(port, kvm_xen_masked_ports(shinfo, long_mode)))
		return KVM_XEN_MASKED;

	return kvm_xen_select_port(vcpu, shinfo, port, long_mode);
}

/*
 * Raise an event: set the port's bit and its selector, and notify pollers and
 * the vCPU.  Does not sleep.
 *
 * Return -EWOULDBLOCK if shared_info isn't mapped, or if there is none, -EINVAL
 * if there is no such port, -ENOTCONN if it is masked, 0 if it was pending
 * already, or else 1.
 */
int kvm_xen_raise_port(struct kvm_vcpu *vcpu, u32 port)
{
	struct gfn_to_pfn_cache *gpc = &vcpu->kvm->arch.xen.shinfo_cache;
	enum kvm_xen_raised raised;
	void *shinfo;
	u8 vector;

	shinfo = kvm_gpc_trylock(gpc);
	if (IS_ERR(shinfo))
		return port && port < kvm_xen_nr_ports(vcpu->kvm) ? -EWOULDBLOCK : -EINVAL;

	raised = kvm_xen_set_port(vcpu, shinfo, port);
	kvm_gpc_unlock(gpc);

	switch (raised) {
	case KVM_XEN_BAD_PORT:
		return -EINVAL;
	case KVM_XEN_ALREADY_PENDING:
		return 0;
	default:
		break;
	}

	kvm_xen_wake_pollers(vcpu->kvm, port);

	if (raised == KVM_XEN_MASKED)
		return -ENOTCONN;

	/* The per-vCPU vector goes to the local APIC, which wakes the vCPU. */
	vector = READ_ONCE(vcpu->arch.xen.upcall_vector);
	if (raised == KVM_XEN_SELECTED && vector)
		kvm_xen_inject_vector(vcpu, vector);
	else if (raised >= KVM_XEN_SEL_DEFERRED)
		kvm_xen_wake_vcpu(vcpu);

	return 1;
}

/*
 * Keep an event until the vCPU can raise it.  Does not sleep.  Return false if
 * there is no shared_info: a new kernel must not get the old kernel's events,
 * so kvm_xen_drop_deferred_events() follows the deactivation.
 */
bool kvm_xen_defer_event(struct kvm_vcpu *vcpu, u32 port)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	scoped_guard(raw_spinlock_irqsave, &vx->deferred_lock) {
		if (!kvm_gpc_is_active(&vcpu->kvm->arch.xen.shinfo_cache))
			return false;

		if (!__test_and_set_bit(port, vx->evtchn_deferred)) {
			WRITE_ONCE(vx->nr_deferred, vx->nr_deferred + 1);
			atomic_inc(&vcpu->kvm->arch.xen.nr_deferred);
		}
	}

	/* The barrier in kvm_xen_wake_vcpu() is I, too: matches H. */
	kvm_xen_wake_vcpu(vcpu);
	kvm_xen_wake_pollers(vcpu->kvm, port);
	return true;
}

/*
 * Raise a deferred event, inside the lock, so that other tasks find it either
 * deferred or raised, and none is raised once deferred events were dropped.
 *
 * Return -ENOENT if there is none, or what kvm_xen_raise_port() does.
 */
static int kvm_xen_raise_deferred_event(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;
	u32 port;
	int rc;

	guard(raw_spinlock_irqsave)(&vx->deferred_lock);

	if (!vx->nr_deferred)
		return -ENOENT;

	port = find_first_bit(vx->evtchn_deferred, EVTCHN_2L_NR_CHANNELS);
	rc = kvm_xen_raise_port(vcpu, port);
	if (rc == -EWOULDBLOCK)
		return rc;

	__clear_bit(port, vx->evtchn_deferred);
	WRITE_ONCE(vx->nr_deferred, vx->nr_deferred - 1);
	atomic_dec(&vcpu->kvm->arch.xen.nr_deferred);
	return rc;
}

bool kvm_xen_is_deferred(struct kvm_vcpu *vcpu, u32 port)
{
	guard(raw_spinlock_irqsave)(&vcpu->arch.xen.deferred_lock);

	return port < EVTCHN_2L_NR_CHANNELS && test_bit(port, vcpu->arch.xen.evtchn_deferred);
}

void kvm_xen_drop_deferred_events(struct kvm_vcpu *vcpu)
{
	struct kvm_vcpu_xen *vx = &vcpu->arch.xen;

	BUILD_BUG_ON(sizeof(vx->evtchn_deferred) * BITS_PER_BYTE != EVTCHN_2L_NR_CHANNELS);

	guard(raw_spinlock_irqsave)(&vx->deferred_lock);

	bitmap_zero(vx->evtchn_deferred, EVTCHN_2L_NR_CHANNELS);
	atomic_sub(vx->nr_deferred, &vcpu->kvm->arch.xen.nr_deferred);
	WRITE_ONCE(vx->nr_deferred, 0);
}

static void kvm_xen_raise_deferred_events(struct kvm_vcpu *vcpu)
{
	while (READ_ONCE(vcpu->arch.xen.nr_deferred)) {
		if (kvm_xen_raise_deferred_event(vcpu) != -EWOULDBLOCK)
			continue;

		if (kvm_xen_wait_shared_info(vcpu->kvm) || fatal_signal_pending(current))
			return;
	}
}

static void kvm_xen_or_sel(u32 *sel, u32 bits)
{
	asm volatile(LOCK_PREFIX "orl %1, %0"
		     : "+m" (*sel) : "r" (bits) : "memory");
}

static void kvm_xen_or_sels(struct vcpu_info *vi, unsigned long sels, bool long_mode)
{
	u32 *words = kvm_xen_pending_sels(vi, long_mode);

	kvm_xen_or_sel(&words[0], lower_32_bits(sels));
	if (long_mode)
		kvm_xen_or_sel(&words[1], upper_32_bits(sels));
	WRITE_ONCE(vi->evtchn_upcall_pending, 1);
}

/*
 * Take the deferred selectors.  A selector that was deferred in the other mode
 * is of other ports in this one, so have the guest scan all of them.
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
 * Return whether there were any, i.e. whether to notify the guest.
 */
static bool kvm_xen_set_pending_sels(struct kvm_vcpu *v)
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

	long_mode = kvm_xen_area_mode(v->kvm);
	kvm_xen_or_sels(khva + offset, kvm_xen_take_pending_sels(v, long_mode), long_mode);
	kvm_gpc_unlock_dirty(gpc);
	return true;
}

void kvm_xen_inject_pending_events(struct kvm_vcpu *v)
{
	smp_store_mb(v->arch.xen.evtchn_retry, false);	/* A, matches B */

	kvm_xen_raise_deferred_events(v);

	if (kvm_xen_set_pending_sels(v))
		kvm_xen_inject_vcpu_vector(v);
}

/* Return > 0 if an upcall is pending, < 0 if vcpu_info can't be read. */
int kvm_xen_upcall_pending(struct kvm_vcpu *v)
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

	gpc = kvm_xen_vcpu_info(v, &offset);
	if (!kvm_gpc_is_active(gpc))
		return 0;

	khva = kvm_gpc_trylock(gpc);
	if (IS_ERR(khva)) {
		/*
		 * This function gets called from kvm_vcpu_block() after setting
		 * the task to TASK_INTERRUPTIBLE, to see if it needs to wake
		 * immediately from a HLT. So we really mustn't sleep. If the
		 * page ended up absent at that point, just return 1 in order to
		 * trigger an immediate wake, and we'll end up getting called
		 * again from a context where we *can* fault in the page and
		 * wait for it.  If that has failed already, the vCPU sleeps
		 * until kvm_xen_wake_vcpu().
		 */
		if (in_atomic() || !task_is_running(current))
			return READ_ONCE(v->arch.xen.upcall_retry);

		smp_store_mb(v->arch.xen.upcall_retry, false);	/* A, matches B */
		khva = kvm_gpc_lock(gpc);
		if (IS_ERR(khva))
			return PTR_ERR(khva);

		WRITE_ONCE(v->arch.xen.upcall_retry, true);
	}

	vi = khva + offset;
	rc = READ_ONCE(vi->evtchn_upcall_pending);
	kvm_gpc_unlock(gpc);
	return rc;
}

/* No interrupts for you if userspace has screwed up vcpu_info. */
int __kvm_xen_has_interrupt(struct kvm_vcpu *v)
{
	return kvm_xen_upcall_pending(v) > 0;
}

/* Wait for shared_info and deliver an event.  Rarely called, so not inlined. */
static noinline int kvm_xen_wait_set_evtchn(struct kvm_vcpu *vcpu, u32 port)
{
	int rc;

	/*
	 * The loop goes on if userspace unmaps shared_info each time.  So would
	 * the fault handler if this wrote by userspace's address.
	 */
	do {
		rc = kvm_xen_wait_shared_info(vcpu->kvm);
		if (!rc)
			rc = kvm_xen_raise_port(vcpu, port);
	} while (rc == -EWOULDBLOCK && !fatal_signal_pending(current));

	return rc;
}

/*
 * Deliver an event on a thread of the VMM.  Fails with -EFAULT if shared_info
 * can't be mapped; the caller may defer the event then.
 */
int kvm_xen_set_evtchn(struct kvm_vcpu *vcpu, u32 port)
{
	int rc;

	might_sleep();

	rc = kvm_xen_raise_port(vcpu, port);
	return rc == -EWOULDBLOCK ? kvm_xen_wait_set_evtchn(vcpu, port) : rc;
}

static noinline struct kvm_vcpu *kvm_xen_find_evtchn_vcpu(const struct kvm_xen_evtchn *xe,
							  struct kvm *kvm)
{
	return kvm_get_vcpu_by_id(kvm, READ_ONCE(xe->vcpu_id));
}

/*
 * xe->vcpu saves the search.  The pointer stays valid, as vCPUs live as long as
 * the VM, but userspace may change xe->vcpu_id.
 */
static struct kvm_vcpu *kvm_xen_evtchn_vcpu(const struct kvm_xen_evtchn *xe, struct kvm *kvm)
{
	struct kvm_vcpu *vcpu = READ_ONCE(xe->vcpu);

	if (likely(vcpu && vcpu->vcpu_id == READ_ONCE(xe->vcpu_id)))
		return vcpu;

	return kvm_xen_find_evtchn_vcpu(xe, kvm);
}

/* Save the vCPU, too.  Not for routing entries, which may be copied. */
struct kvm_vcpu *kvm_xen_save_evtchn_vcpu(struct kvm_xen_evtchn *xe, struct kvm *kvm)
{
	struct kvm_vcpu *vcpu = kvm_xen_evtchn_vcpu(xe, kvm);

	if (vcpu && vcpu != READ_ONCE(xe->vcpu))
		WRITE_ONCE(xe->vcpu, vcpu);

	return vcpu;
}

/*
 * Deliver an event in any context.  If shared_info isn't mapped, change nothing
 * and return -EWOULDBLOCK, upon which the irqfd has its worker call
 * evtchn_set_fn().
 *
 * The return value from this function is propagated to kvm_set_irq() API,
 * so it returns:
 *  < 0   Interrupt was ignored (masked or not delivered for other reasons)
 *  = 0   Interrupt was coalesced (previous irq is still pending)
 *  > 0   Number of CPUs interrupt was delivered to
 *
 * It is also called directly from kvm_arch_set_irq_inatomic(), where the
 * only check on its return value is a comparison with -EWOULDBLOCK'.
 */
int kvm_xen_set_evtchn_fast(struct kvm_xen_evtchn *xe, struct kvm *kvm)
{
	struct kvm_vcpu *vcpu = kvm_xen_evtchn_vcpu(xe, kvm);

	return vcpu ? kvm_xen_raise_port(vcpu, xe->port) : -EINVAL;
}

/* This is the version called from kvm_set_irq() as the .set function */
static int evtchn_set_fn(struct kvm_kernel_irq_routing_entry *e, struct kvm *kvm,
			 int irq_source_id, int level, bool line_status)
{
	struct kvm_vcpu *vcpu = kvm_xen_evtchn_vcpu(&e->xen_evtchn, kvm);
	u32 port = e->xen_evtchn.port;
	int rc;

	if (!level || !vcpu)
		return -EINVAL;

	/* KVM_IRQ_LINE is called on a thread of the VMM. */
	if (current->mm == kvm->mm)
		rc = kvm_xen_set_evtchn(vcpu, port);
	else
		rc = kvm_xen_raise_port(vcpu, port);
	if (rc != -EWOULDBLOCK && rc != -EFAULT)
		return rc;

	/*
	 * An irqfd has no way to report an error, and its worker must not wait
	 * for shared_info, as deassigning an irqfd of any VM waits for the
	 * worker.
	 */
	return kvm_xen_defer_event(vcpu, port) ? 0 : -EINVAL;
}

/*
 * Set up an event channel interrupt from the KVM IRQ routing table.
 * Used for e.g. PIRQ from passed through physical devices.
 */
int kvm_xen_setup_evtchn(struct kvm *kvm,
			 struct kvm_kernel_irq_routing_entry *e,
			 const struct kvm_irq_routing_entry *ue)

{
	/*
	 * Don't check for the port being within range of kvm_xen_nr_ports().
	 * Userspace can configure what ever targets it likes; events just won't
	 * be delivered if/while the target is invalid, just like userspace can
	 * configure MSIs which target non-existent APICs.
	 *
	 * This allow on Live Migration and Live Update, the IRQ routing table
	 * can be restored *independently* of other things like creating vCPUs,
	 * without imposing an ordering dependency on userspace.  In this
	 * particular case, the problematic ordering would be with setting the
	 * Xen 'long mode' flag, which changes kvm_xen_nr_ports() to allow 4096
	 * instead of 1024 event channels.
	 */

	/* We only support 2 level event channels for now */
	if (ue->u.xen_evtchn.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		return -EINVAL;

	/*
	 * Xen gives us interesting mappings from vCPU index to APIC ID,
	 * which means kvm_get_vcpu_by_id() has to iterate over all vCPUs
	 * to find it. Do that once at setup time, instead of every time.
	 * But beware that on live update / live migration, the routing
	 * table might be reinstated before the vCPU threads have finished
	 * recreating their vCPUs.
	 */
	e->xen_evtchn.vcpu = kvm_get_vcpu_by_id(kvm, ue->u.xen_evtchn.vcpu);
	e->xen_evtchn.port = ue->u.xen_evtchn.port;
	e->xen_evtchn.vcpu_id = ue->u.xen_evtchn.vcpu;
	e->xen_evtchn.priority = ue->u.xen_evtchn.priority;
	e->set = evtchn_set_fn;

	return 0;
}

/*
 * Explicit event sending from userspace with KVM_XEN_HVM_EVTCHN_SEND ioctl.
 */
int kvm_xen_hvm_evtchn_send(struct kvm *kvm, struct kvm_irq_routing_xen_evtchn *uxe)
{
	struct kvm_vcpu *vcpu;
	int ret;

	/* Reject what is no port in either mode, even without shared_info. */
	if (!uxe->port || uxe->port >= EVTCHN_2L_NR_CHANNELS)
		return -EINVAL;

	/* We only support 2 level event channels for now */
	if (uxe->priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
		return -EINVAL;

	vcpu = kvm_get_vcpu_by_id(kvm, uxe->vcpu);
	if (!vcpu)
		return -EINVAL;

	ret = kvm_xen_set_evtchn(vcpu, uxe->port);

	/*
	 * None of that 'return 1 if it actually got delivered' nonsense.
	 * We don't care if it was masked (-ENOTCONN) either.
	 */
	if (ret > 0 || ret == -ENOTCONN)
		ret = 0;

	return ret;
}

/* Return true if a port is pending, or if shared_info can't be read. */
static bool kvm_xen_any_pending(struct kvm *kvm, const evtchn_port_t *ports, int nr_ports)
{
	struct gfn_to_pfn_cache *gpc = &kvm->arch.xen.shinfo_cache;
	unsigned long *pending_bits;
	bool ret = false;
	void *khva;
	int i;

	/* Return to the guest, which can read its memory by itself. */
	khva = kvm_gpc_lock(gpc);
	if (IS_ERR(khva))
		return true;

	pending_bits = kvm_xen_pending_ports(khva, kvm_xen_area_mode(kvm));

	/* A port that was checked in another mode still is in the page. */
	for (i = 0; i < nr_ports; i++) {
		if (test_bit(ports[i], pending_bits)) {
			ret = true;
			break;
		}
	}

	kvm_gpc_unlock(gpc);
	return ret;
}

/* @timeout is absolute, in ns of the guest's clock. */
static void kvm_xen_start_poll_timer(struct kvm_vcpu *vcpu, u64 timeout)
{
	s64 kernel_now;
	u64 now = kvm_xen_guest_now(vcpu, &kernel_now);
	u64 delta = timeout > now ? timeout - now : 0;

	hrtimer_start(&vcpu->arch.xen.poll_timer,
		      ktime_add_safe(kernel_now, min_t(u64, delta, KTIME_MAX)),
		      HRTIMER_MODE_ABS_HARD);
}

static int kvm_xen_read_sched_poll(struct kvm_vcpu *vcpu, bool longmode, u64 param,
				   struct sched_poll *poll)
{
	struct compat_sched_poll sp32;
	struct x86_exception e;

	/* Sanity check that the compat struct definition is correct */
	BUILD_BUG_ON(sizeof(sp32) != 16);

	if (!IS_ENABLED(CONFIG_64BIT) || longmode)
		return kvm_read_guest_virt(vcpu, param, poll, sizeof(*poll), &e);

	if (kvm_read_guest_virt(vcpu, param, &sp32, sizeof(sp32), &e))
		return -EFAULT;

	/*
	 * This is a 32-bit pointer to an array of evtchn_port_t which
	 * are uint32_t, so once it's converted no further compat
	 * handling is needed.
	 */
	poll->ports = (void *)(unsigned long)(sp32.ports);
	poll->nr_ports = sp32.nr_ports;
	poll->timeout = sp32.timeout;
	return 0;
}

static void kvm_xen_halt(struct kvm_vcpu *vcpu)
{
	/* The hypervisor timer runs only while the CPU is in guest mode. */
	bool hv_timer = kvm_lapic_hv_timer_in_use(vcpu);

	if (hv_timer)
		kvm_lapic_switch_to_sw_timer(vcpu);

	kvm_vcpu_srcu_read_unlock(vcpu);
	kvm_vcpu_halt(vcpu);
	kvm_vcpu_srcu_read_lock(vcpu);

	if (hv_timer)
		kvm_lapic_switch_to_hv_timer(vcpu);
}

/* Deferred events of all vCPUs, as the others may not run for long. */
static void kvm_xen_raise_all_deferred_events(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	if (!atomic_read(&kvm->arch.xen.nr_deferred))
		return;

	kvm_for_each_vcpu(i, vcpu, kvm)
		kvm_xen_raise_deferred_events(vcpu);
}

/*
 * Sleep until one of the ports may be pending.  Set the poll before reading the
 * ports; an event is raised the other way round.
 */
static void kvm_xen_poll(struct kvm_vcpu *vcpu, const evtchn_port_t *ports, int nr_ports,
			 u64 timeout)
{
	struct kvm_xen *xen = &vcpu->kvm->arch.xen;

	WRITE_ONCE(vcpu->arch.xen.poll_evtchn, nr_ports == 1 ? ports[0] : -1);
	set_bit(vcpu->vcpu_idx, xen->poll_mask);

	atomic_inc(&xen->nr_pollers);
	smp_mb__after_atomic();				/* H, matches I and D */

	kvm_xen_raise_all_deferred_events(vcpu->kvm);
	if (!kvm_xen_any_pending(vcpu->kvm, ports, nr_ports)) {
		kvm_set_mp_state(vcpu, KVM_MP_STATE_HALTED);

		if (timeout)
			kvm_xen_start_poll_timer(vcpu, timeout);

		kvm_xen_halt(vcpu);

		if (timeout)
			hrtimer_cancel(&vcpu->arch.xen.poll_timer);

		kvm_set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE);
	}

	atomic_dec(&xen->nr_pollers);
	WRITE_ONCE(vcpu->arch.xen.poll_evtchn, 0);

	/* Really, this is only needed in case of timeout */
	clear_bit(vcpu->vcpu_idx, xen->poll_mask);
}

/* Read and check the ports that the guest polls. */
static int kvm_xen_read_poll_ports(struct kvm_vcpu *vcpu, const struct sched_poll *poll,
				   evtchn_port_t *ports)
{
	struct x86_exception e;
	unsigned int i;

	if (kvm_read_guest_virt(vcpu, (gva_t)poll->ports, ports,
				poll->nr_ports * sizeof(*ports), &e))
		return -EFAULT;

	for (i = 0; i < poll->nr_ports; i++) {
		if (ports[i] >= kvm_xen_nr_ports(vcpu->kvm))
			return -EINVAL;
	}

	return 0;
}

bool kvm_xen_schedop_poll(struct kvm_vcpu *vcpu, bool longmode, u64 param, u64 *r)
{
	struct sched_poll sched_poll;
	evtchn_port_t port, *ports = &port;

	if (!lapic_in_kernel(vcpu) ||
	    !(vcpu->kvm->arch.xen.hvm_config.flags & KVM_XEN_HVM_CONFIG_EVTCHN_SEND))
		return false;

	if (kvm_xen_read_sched_poll(vcpu, longmode, param, &sched_poll)) {
		*r = -EFAULT;
		return true;
	}

	/* Xen (unofficially) limits number of pollers to 128 */
	if (unlikely(sched_poll.nr_ports > 128)) {
		*r = -EINVAL;
		return true;
	}

	if (unlikely(sched_poll.nr_ports > 1)) {
		ports = kmalloc_objs(*ports, sched_poll.nr_ports);
		if (!ports) {
			*r = -ENOMEM;
			return true;
		}
	}

	*r = kvm_xen_read_poll_ports(vcpu, &sched_poll, ports);
	if (!*r)
		kvm_xen_poll(vcpu, ports, sched_poll.nr_ports, sched_poll.timeout);

	if (ports != &port)
		kfree(ports);
	return true;
}

static enum hrtimer_restart cancel_evtchn_poll(struct hrtimer *timer)
{
	struct kvm_vcpu *vcpu = container_of(timer, struct kvm_vcpu,
					     arch.xen.poll_timer);

	kvm_make_request(KVM_REQ_UNBLOCK, vcpu);
	kvm_vcpu_kick(vcpu);

	return HRTIMER_NORESTART;
}

void kvm_xen_init_vcpu_events(struct kvm_vcpu *vcpu)
{
	vcpu->arch.xen.poll_evtchn = 0;
	raw_spin_lock_init(&vcpu->arch.xen.deferred_lock);
	hrtimer_setup(&vcpu->arch.xen.poll_timer, cancel_evtchn_poll, CLOCK_MONOTONIC,
		      HRTIMER_MODE_ABS_HARD);
}
