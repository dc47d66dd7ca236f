/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GPC_H
#define __LINUX_KVM_GPC_H

/*
 * KVM's gfn-to-pfn cache, or GPC: an area of guest memory that KVM itself reads
 * and writes, e.g. Xen's shared_info or kvmclock, kept mapped in the kernel, or
 * that the hardware which runs a vCPU uses by its physical address.
 *
 *	kvm_gpc_init(&foo->gpc, kvm);
 *	r = kvm_gpc_activate(&foo->gpc, gpa, sizeof(*area));
 *	...
 *	area = kvm_gpc_lock(&foo->gpc);
 *	if (IS_ERR(area))
 *		return PTR_ERR(area);
 *	WRITE_ONCE(area->seen, true);
 *	kvm_gpc_unlock_dirty(&foo->gpc);
 *	...
 *	kvm_gpc_deactivate(&foo->gpc);
 *
 * The mapping follows the changes that userspace makes to its memory and to
 * memslots.  A mapping that becomes stale is invalidated, which waits until no
 * caller has the cache locked any more.  The next kvm_gpc_lock() maps the area
 * again.
 *
 * Users need no more than this header.  The implementation is described in
 * virt/kvm/pfncache.c and Documentation/virt/kvm/gpc.rst.
 */

#include <asm/page.h>
#include <linux/compiler.h>
#include <linux/kvm_types.h>
#include <linux/mutex.h>

/* Private to pfncache.c; sparse warns about any other access. */
#ifdef KVM_GPC_INTERNAL
#define __gpc_private
#else
#define __gpc_private	__private
#endif

/* The maximum length of an area, in bytes: three pages, at any offset. */
#define KVM_GPC_MAX_LEN	(3 * PAGE_SIZE)

/**
 * struct gfn_to_pfn_cache - a cache, to be embedded where its area is used
 */
struct gfn_to_pfn_cache {
	/* private: */
	/* The address of the mapped area, NULL if readers must not use it. */
	void *__gpc_private khva;
	/* The area that the cache is bound to, NULL if it is not active. */
	struct gpc_area *__gpc_private area;
	/* The area's length in bytes, 0 if the cache is not active. */
	unsigned int __gpc_private len;
	/* No signal but a fatal one ends the wait for a page. */
	bool __gpc_private killable;
	/* The hardware of @vcpu may use the area.  Written by the vCPU only. */
	bool __gpc_private used;
	/* The address that the last kvm_gpc_use() gave is still valid. */
	bool __gpc_private hpa_valid;
	/* The request that invalidations make, with its flags. */
	unsigned int __gpc_private req;
	/* NULL unless the cache is for guest use. */
	struct kvm_vcpu *__gpc_private vcpu;
	/* The area's address, as of the last kvm_gpc_use(). */
	gpa_t __gpc_private used_gpa;
	struct kvm *__gpc_private kvm;
	/* Serializes refreshes of the area, and its replacement. */
	struct mutex __gpc_private refresh_lock;
};

/**
 * kvm_gpc_init() - initialize a cache
 * @gpc: the cache, all zeroes
 * @kvm: the VM that the cache's area belongs to
 *
 * The cache is not active afterwards.
 *
 * Context: Any.  The caller must prevent concurrent use of @gpc.
 */
void kvm_gpc_init(struct gfn_to_pfn_cache *gpc, struct kvm *kvm);

/**
 * kvm_gpc_init_killable() - initialize a cache that is used where KVM_RUN can't
 *			     end
 * @gpc: the cache, all zeroes
 * @kvm: the VM that the cache's area belongs to
 *
 * Like kvm_gpc_init(), but in KVM_RUN, too, only a fatal signal makes
 * kvm_gpc_lock() and kvm_gpc_activate() return -EINTR.
 *
 * Context: Same as kvm_gpc_init().
 */
void kvm_gpc_init_killable(struct gfn_to_pfn_cache *gpc, struct kvm *kvm);

/**
 * kvm_gpc_init_vcpu() - initialize a cache whose area is used by the hardware
 *			 that runs a vCPU
 * @gpc: the cache, all zeroes
 * @vcpu: the vCPU, which belongs to the VM of the cache's area
 * @req: a request of the user's choice, e.g. KVM_ARCH_REQ(), without
 *	 KVM_REQUEST_NO_ACTION; of its flags, KVM_REQUEST_NO_WAKEUP matters
 *
 * Like kvm_gpc_init(), and kvm_gpc_use() gets the physical address of the area.
 * An invalidation of an area that is in use makes @req, wakes @vcpu if it is
 * halted and @req is without KVM_REQUEST_NO_WAKEUP, and waits until @vcpu has
 * left guest mode.  The handler of @req calls kvm_gpc_use() again.
 *
 * Only the vCPU's task may call kvm_gpc_lock(), with vcpu->mutex held: mapping
 * the area again replaces the ranges by which an invalidation finds what the
 * hardware still uses.
 *
 * Context: Same as kvm_gpc_init().
 */
void kvm_gpc_init_vcpu(struct gfn_to_pfn_cache *gpc, struct kvm_vcpu *vcpu, unsigned int req);

/**
 * kvm_gpc_activate() - bind a cache to an area by guest physical address
 * @gpc: the cache, active or not
 * @gpa: guest physical address of the area, of any alignment, not INVALID_GPA
 * @len: length of the area in bytes, from 1 to KVM_GPC_MAX_LEN; the area may
 *	 lie in several pages, and in several memslots
 *
 * Bind the cache to the area, and map the area.  A cache that is already bound
 * to another area stays bound to that area, and can be used, until the new area
 * is mapped.  On error, the cache stays bound to the old area.  If several
 * tasks activate @gpc concurrently, the cache ends up bound to the area that
 * was mapped last.
 *
 * If hardware uses the area, only kvm_gpc_use() may bind the cache to another
 * one.
 *
 * Context: May sleep.  Must be called by a task that uses the VM's mm, and not
 *	    with @gpc locked.
 * Return: 0, or else
 *	   -EINVAL: @len is 0 or too long,
 *	   or an error of kvm_gpc_lock(), except -ENXIO.
 */
int kvm_gpc_activate(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len);

/**
 * kvm_gpc_activate_hva() - bind a cache to an area by userspace address
 * @gpc: the cache, active or not
 * @uhva: userspace address of the area, of any alignment
 * @len: length of the area in bytes, from 1 to KVM_GPC_MAX_LEN
 *
 * Like kvm_gpc_activate(), for an area that need not be part of the guest's
 * address space, and that does not move when memslots change.  Writes to the
 * area are not recorded in any dirty log.  The area is the memory that is
 * mapped at @uhva, even if a memslot there has its memory in a guest_memfd.
 *
 * Context: Same as kvm_gpc_activate().
 * Return: 0, or else
 *	   -EINVAL: @len is 0 or too long, or @uhva is tagged or not an address
 *	   in userspace,
 *	   or an error of kvm_gpc_lock(), except -ENXIO, -ENOENT and -EACCES.
 */
int kvm_gpc_activate_hva(struct gfn_to_pfn_cache *gpc, unsigned long uhva, unsigned long len);

/**
 * kvm_gpc_deactivate() - unbind a cache from its area
 * @gpc: the cache, active or not
 *
 * Unmap the area once all current readers have finished.  The caller must
 * prevent concurrent activation.  Must be called before @gpc is freed, but need
 * not be called before kvm_gpc_activate().  Call kvm_gpc_unuse() first if
 * kvm_gpc_use() was called.
 *
 * Context: May sleep.  Must not be called with @gpc locked.  Does not need the
 *	    VM's mm.
 */
void kvm_gpc_deactivate(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_is_active() - test whether a cache is bound to an area
 * @gpc: the cache
 *
 * Context: Any.  The result is stable for as long as the caller prevents
 *	    concurrent activation and deactivation of @gpc.
 * Return: Whether @gpc is active.  The area may be unmapped nevertheless.
 */
static inline bool kvm_gpc_is_active(struct gfn_to_pfn_cache *gpc)
{
	return READ_ONCE(ACCESS_PRIVATE(gpc, area));
}

/**
 * kvm_gpc_gpa() - get the guest physical address of an area
 * @gpc: the cache of the area
 *
 * Context: Any.  The caller must prevent concurrent activation and deactivation
 *	    of @gpc, which free what is read here.
 * Return: The guest physical address that @gpc was activated with, INVALID_GPA
 *	   if @gpc was activated by userspace address or is not active.
 */
gpa_t kvm_gpc_gpa(const struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_hva() - get the userspace address of an area
 * @gpc: the cache of the area
 *
 * Context: Any.  The caller must prevent concurrent activation and deactivation
 *	    of @gpc, which free what is read here.
 * Return: The userspace address that @gpc was activated with, 0 if @gpc was
 *	   activated by guest physical address or is not active.
 */
unsigned long kvm_gpc_hva(const struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_len() - get the length of an area
 * @gpc: the cache of the area
 *
 * Context: Same as kvm_gpc_is_active().  With @gpc locked, the result is
 *	    stable.
 * Return: The length in bytes that @gpc was activated with, 0 if @gpc is not
 *	   active.
 */
static inline unsigned long kvm_gpc_len(struct gfn_to_pfn_cache *gpc)
{
	return READ_ONCE(ACCESS_PRIVATE(gpc, len));
}

/**
 * kvm_gpc_lock() - begin to use an area, map it if necessary
 * @gpc: the cache of the area
 *
 * Keep the area mapped at the returned address until kvm_gpc_unlock().  The
 * caller may read and write the area.  The lock excludes invalidations only:
 * the guest, userspace and other callers that have @gpc locked may write to the
 * area concurrently.
 *
 * Invalidations of the area, e.g. by MMU notifiers, spin until the caller
 * unlocks @gpc, so keep it locked for a short time only.  The caller may
 * kvm_gpc_trylock() one more cache meanwhile, which must be unlocked first.
 * Each level of interrupts may use two caches as well.
 *
 * Context: May sleep.  Must be called by a task that uses the VM's mm.
 *	    Disables preemption if successful, on PREEMPT_RT as well.
 * Return: The kernel address of the area's first byte, or else an ERR_PTR() of:
 *	   -ENXIO: @gpc is not active,
 *	   -ENOENT: a page of the area has no memslot, or a read-only one,
 *	   -EACCES: a page of the area is private memory of the guest,
 *	   -EFAULT: a page of the area cannot be faulted in for writing, or its
 *	   guest_memfd has been closed,
 *	   -EHWPOISON: a page of the area has a hardware error,
 *	   -EINTR: a signal is pending, in KVM_RUN any signal unless @gpc was
 *	   initialized by kvm_gpc_init_killable(), else a fatal one,
 *	   -ENOMEM: the area's pages cannot be mapped,
 *	   -EOPNOTSUPP: the area's pages cannot be mapped together, because only
 *	   some of them have a struct page, or because they are scattered and
 *	   their memory types differ,
 *	   -EIO: the caller has a bug, it does not use the VM's mm.
 */
void *kvm_gpc_lock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_trylock() - begin to use an area if it is mapped
 * @gpc: the cache of the area
 *
 * Like kvm_gpc_lock(), for callers that cannot sleep.
 *
 * Context: Any but NMI, including hard irq on PREEMPT_RT.  Disables preemption
 *	    if successful.
 * Return: The kernel address of the area's first byte, or else an ERR_PTR() of:
 *	   -ENXIO: @gpc is not active,
 *	   -EWOULDBLOCK: the area is unmapped, kvm_gpc_lock() may be able to map
 *	   it.
 */
void *kvm_gpc_trylock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_unlock() - end the use of an area
 * @gpc: the cache of the area, of two locked caches the one that was locked
 *	 last
 *
 * For callers that did not write to the area, and for areas whose changes need
 * not be recorded by dirty logging.
 *
 * Context: Same as the preceding kvm_gpc_lock() or kvm_gpc_trylock().
 */
void kvm_gpc_unlock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_unlock_dirty() - end the use of an area that was written to
 * @gpc: the cache of the area, of two locked caches the one that was locked
 *	 last
 *
 * Mark the area's pages dirty in their memslots, for dirty logging, then unlock
 * @gpc.
 *
 * Context: Same as the preceding kvm_gpc_lock() or kvm_gpc_trylock().
 */
void kvm_gpc_unlock_dirty(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_vcpu_wait_for_memslot() - wait while a memslot is being moved or deleted
 * @vcpu: the vCPU whose task calls this
 * @gfn: the guest frame of an area in one page
 *
 * For users of caches that get -ENOENT: a memslot isn't found from the
 * beginning of its move or deletion, though userspace sees that only when the
 * ioctl returns.  kvm->srcu is dropped meanwhile.
 *
 * Context: May sleep.  Must be called by the vCPU's task with kvm->srcu held by
 *	    kvm_vcpu_srcu_read_lock() only, and without kvm->slots_lock.
 * Return: 0 if a cache may find the memslot now, or else
 *	   -ENOENT: there is no memslot, or a read-only one,
 *	   -EINTR: a signal is pending, in KVM_RUN any signal, else a fatal one.
 */
int kvm_vcpu_wait_for_memslot(struct kvm_vcpu *vcpu, gfn_t gfn);

/**
 * kvm_gpc_use() - get the physical address of an area for the vCPU's hardware
 * @gpc: the cache, initialized by kvm_gpc_init_vcpu()
 * @gpa: guest physical address of the area, of any alignment, not INVALID_GPA
 * @len: length of the area in bytes, from 1 to PAGE_SIZE; the area must lie in
 *	 one page
 * @hpa: the physical address of the area's first byte is stored here, but not
 *	 on error
 *
 * Bind the cache to the area if it isn't bound to it yet, and map the area if
 * necessary.  Before each entry, the vCPU sets vcpu->mode and then tests the
 * request of kvm_gpc_init_vcpu(); if it isn't pending, hardware may use the
 * address.  Clear the request before this is called, not afterwards.  The area
 * stays in use while the vCPU is outside guest mode, see kvm_gpc_is_used(),
 * until kvm_gpc_use() or kvm_gpc_unuse() is called for @gpc.
 *
 * While a memslot of the area is being moved or deleted, wait until that is
 * done.  kvm->srcu is dropped meanwhile.
 *
 * On error, the cache is unbound, and no area is in use any more, so that no
 * invalidation makes the request.  If the vCPU may go on later, make the
 * request again: the vCPU must not enter guest mode with an address that an
 * earlier call gave for @gpc.
 *
 * KVM can also access the area itself, by kvm_gpc_lock() and kvm_gpc_trylock().
 *
 * Context: May sleep.  Must be called by the vCPU's task, outside guest mode,
 *	    with the vCPU's mutex held, with kvm->srcu held by
 *	    kvm_vcpu_srcu_read_lock() only, and not with @gpc locked.  Other
 *	    tasks may trylock @gpc, but must neither lock nor activate it.
 * Return: 0, or else
 *	   -EINVAL: @len is 0, or the area doesn't lie in one page,
 *	   or an error of kvm_gpc_lock(), except -ENXIO.
 */
int kvm_gpc_use(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len, hpa_t *hpa);

/**
 * kvm_gpc_is_used() - whether the vCPU's hardware can use an area as it is
 * @gpc: the cache, initialized by kvm_gpc_init_vcpu()
 * @gpa: guest physical address of the area
 *
 * A user that binds @gpc to areas of one length only, and has kept the address
 * that kvm_gpc_use() gave, needn't call that again if this is true.
 *
 * Context: Any, in the vCPU's task, outside guest mode.
 * Return: Whether the last kvm_gpc_use() was for an area at @gpa and succeeded,
 *	   and there was neither a kvm_gpc_unuse() nor an invalidation since.
 *	   If an invalidation has just begun, the vCPU finds its request before
 *	   hardware uses the address, provided that it doesn't clear the request
 *	   after this.
 */
static __always_inline bool kvm_gpc_is_used(const struct gfn_to_pfn_cache *gpc, gpa_t gpa)
{
	return READ_ONCE(ACCESS_PRIVATE(gpc, hpa_valid)) &&
	       ACCESS_PRIVATE(gpc, used_gpa) == gpa;
}

/**
 * kvm_gpc_unuse() - end the use of an area by the vCPU's hardware
 * @gpc: the cache of the area, initialized by kvm_gpc_init_vcpu()
 *
 * Later invalidations of the area skip the vCPU.  One that is under way may
 * still make the request.  The cache stays bound to the area.  Does nothing if
 * the area isn't in use.
 *
 * Context: Any.  Must be called by the vCPU's task, outside guest mode, or when
 *	    the vCPU is destroyed.
 */
void kvm_gpc_unuse(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_assert_usable() - warn if hardware would use an area that it must not
 *			     use
 * @gpc: the cache of the area, initialized by kvm_gpc_init_vcpu()
 *
 * To be called if hardware has the address of the area.  Warn if the area isn't
 * in use, or has been invalidated, unless the request of kvm_gpc_init_vcpu() is
 * pending.  Does nothing without CONFIG_PROVE_LOCKING or on PREEMPT_RT.
 *
 * Context: Must be called by the vCPU's task, before it enters guest mode, with
 *	    interrupts disabled.
 */
void kvm_gpc_assert_usable(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_mark_used_dirty() - mark an area dirty that the vCPU's hardware may
 *			       have written to
 * @gpc: the cache of the area, initialized by kvm_gpc_init_vcpu()
 *
 * Call this whenever the vCPU has left guest mode, before kvm_gpc_use() and
 * kvm_gpc_unuse().  The area's page is marked dirty in its memslot, for dirty
 * logging, also if the area has been invalidated meanwhile.  Does nothing if
 * the area isn't in use.
 *
 * Context: Must be called by the vCPU's task, with the vCPU loaded and outside
 *	    guest mode, and with the vCPU's mutex and kvm->srcu held.
 */
void kvm_gpc_mark_used_dirty(struct gfn_to_pfn_cache *gpc);

#endif
