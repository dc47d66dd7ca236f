/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef __LINUX_KVM_GPC_H
#define __LINUX_KVM_GPC_H

/*
 * KVM's gfn-to-pfn cache, or GPC: an area of guest memory that KVM itself reads
 * and writes, e.g. Xen's shared_info or kvmclock, kept mapped in the kernel.
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
 * The mapping follows what userspace does to its memory and to memslots: it is
 * taken away when it becomes stale, which waits for those who hold the cache
 * locked, and established anew by the next kvm_gpc_lock().
 *
 * This is all there is for users.  What is behind it is in virt/kvm/pfncache.c and
 * Documentation/virt/kvm/gpc.rst.
 */

#include <asm/page.h>
#include <linux/compiler.h>
#include <linux/kvm_types.h>
#include <linux/mutex.h>

/* The members are pfncache.c's own.  sparse tells on everybody else. */
#ifdef KVM_GPC_INTERNAL
#define __gpc_private
#else
#define __gpc_private	__private
#endif

/* The longest area, in bytes: three pages, at any offset. */
#define KVM_GPC_MAX_LEN	(3 * PAGE_SIZE)

/**
 * struct gfn_to_pfn_cache - a cache, to be embedded where its area is used
 */
struct gfn_to_pfn_cache {
	/* private: */
	/* Where the area is mapped, NULL if the mapping must not be used. */
	void *__gpc_private khva;
	/* What the cache is bound to, NULL if it is not active. */
	struct gpc_area *__gpc_private area;
	/* The area's length in bytes, 0 if the cache is not active. */
	unsigned int __gpc_private len;
	struct kvm *__gpc_private kvm;
	/* Serializes refreshes of the area, and its replacement. */
	struct mutex __gpc_private refresh_lock;
};

/**
 * kvm_gpc_init() - make a cache usable
 * @gpc: the cache, all zeroes
 * @kvm: the VM whose memory it is for
 *
 * @gpc is not active then.
 *
 * Context: Any, but nobody else may use @gpc yet.
 */
void kvm_gpc_init(struct gfn_to_pfn_cache *gpc, struct kvm *kvm);

/**
 * kvm_gpc_activate() - bind a cache to an area by guest physical address
 * @gpc: the cache, active or not
 * @gpa: guest physical address of the area, of any alignment, not INVALID_GPA
 * @len: length of the area in bytes, from 1 to KVM_GPC_MAX_LEN; it may be in several
 *	 pages, and in several memslots
 *
 * Map the area, too, to have an error now rather than later.  A cache that was
 * bound to another area is bound to that, and it can be used, until the new one is
 * mapped; on error, it stays so.  Of several tasks that activate @gpc at a time, the last
 * one to have its area mapped wins.
 *
 * Context: May sleep, must be called by a task that uses the VM's mm, not with @gpc
 *	    locked.
 * Return: 0, or else
 *	   -EINVAL: @len is 0 or too long,
 *	   or an error of kvm_gpc_lock(), but for -ENXIO.
 */
int kvm_gpc_activate(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len);

/**
 * kvm_gpc_activate_hva() - bind a cache to an area by userspace address
 * @gpc: the cache, active or not
 * @uhva: userspace address of the area, of any alignment
 * @len: length of the area in bytes, from 1 to KVM_GPC_MAX_LEN
 *
 * For areas that the guest need not have in its address space, and that stay
 * where they are when memslots change.  Dirty logging does not see them.
 * Otherwise like kvm_gpc_activate().
 *
 * Context: As for kvm_gpc_activate().
 * Return: 0, or else
 *	   -EINVAL: @len is 0 or too long, or @uhva is tagged or not an address of
 *	   userspace's,
 *	   or an error of kvm_gpc_lock(), but for -ENXIO and -ENOENT.
 */
int kvm_gpc_activate_hva(struct gfn_to_pfn_cache *gpc, unsigned long uhva, unsigned long len);

/**
 * kvm_gpc_deactivate() - let a cache's area go
 * @gpc: the cache, active or not
 *
 * Unmap the area, wait for those who have @gpc locked, but not for those who are about
 * to activate it: they are the caller's to keep away.  There is no need to do so before
 * kvm_gpc_activate(), but before @gpc is freed.
 *
 * Context: May sleep, not with @gpc locked.  Does not need the VM's mm.
 */
void kvm_gpc_deactivate(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_is_active() - tell whether a cache is bound to an area
 * @gpc: the cache
 *
 * Context: Any.  The answer lasts for as long as the caller keeps others from
 *	    activating and deactivating @gpc.
 * Return: Whether @gpc is active, be its area in reach or not.
 */
static inline bool kvm_gpc_is_active(struct gfn_to_pfn_cache *gpc)
{
	return READ_ONCE(ACCESS_PRIVATE(gpc, area));
}

/**
 * kvm_gpc_gpa() - tell where an area is
 * @gpc: the cache of the area
 *
 * Context: As for kvm_gpc_is_active().
 * Return: The guest physical address that @gpc was activated with, INVALID_GPA if
 *	   it was activated with another kind of address or is not active.
 */
gpa_t kvm_gpc_gpa(const struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_hva() - tell where an area without a guest physical address is
 * @gpc: the cache of the area
 *
 * Context: As for kvm_gpc_is_active().
 * Return: The userspace address that @gpc was activated with, 0 if it was activated
 *	   with another kind of address or is not active.
 */
unsigned long kvm_gpc_hva(const struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_len() - tell how long an area is
 * @gpc: the cache of the area
 *
 * Context: As for kvm_gpc_is_active(), or with @gpc locked.
 * Return: The length in bytes that @gpc was activated with, 0 if it is not active.
 */
static inline unsigned long kvm_gpc_len(struct gfn_to_pfn_cache *gpc)
{
	return READ_ONCE(ACCESS_PRIVATE(gpc, len));
}

/**
 * kvm_gpc_lock() - get at an area, wait for it if need be
 * @gpc: the cache of the area
 *
 * Keep the area mapped where it is until kvm_gpc_unlock(), for the caller to
 * read and write.  The area is shared with the guest, with userspace and with
 * other tasks that hold @gpc at the same time, which all may write to it.
 *
 * Invalidations of the area, e.g. by MMU notifiers, spin until the caller is done,
 * so hold @gpc for a short time.  It is fine to kvm_gpc_trylock() another cache
 * meanwhile, which is to be unlocked first, but not more than one.  Interrupts do
 * not count.
 *
 * Context: May sleep, must be called by a task that uses the VM's mm.  Returns with
 *	    preemption disabled if successful, on PREEMPT_RT, too.
 * Return: The kernel address of the area's first byte, or else an ERR_PTR() of:
 *	   -ENXIO: @gpc is not active,
 *	   -ENOENT: a page of the area has no memslot, or a read-only one,
 *	   -EFAULT: a page of the area cannot be faulted in for writing,
 *	   -EHWPOISON: a page of the area has a hardware error,
 *	   -EINTR: a signal is pending, in KVM_RUN any, else a fatal one,
 *	   -ENOMEM: the area's pages cannot be mapped,
 *	   -EOPNOTSUPP: the area's pages cannot be mapped together, as only some
 *	   have a struct page, or as they are scattered and their memory types
 *	   differ,
 *	   -EIO: the caller has a bug, it does not use the VM's mm.
 */
void *kvm_gpc_lock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_trylock() - get at an area if that is possible at once
 * @gpc: the cache of the area
 *
 * Like kvm_gpc_lock(), for those who cannot sleep.
 *
 * Context: Any, hard irq on PREEMPT_RT included.  Returns with preemption disabled
 *	    if successful.
 * Return: The kernel address of the area's first byte, or else an ERR_PTR() of:
 *	   -ENXIO: @gpc is not active,
 *	   -EWOULDBLOCK: kvm_gpc_lock() might succeed, from where it can sleep.
 */
void *kvm_gpc_trylock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_unlock() - end the use of an area
 * @gpc: the cache of the area, the latest to be locked if there are two
 *
 * For those who did not write to the area, and for areas whose changes dirty
 * logging leaves out.
 *
 * Context: The context of kvm_gpc_lock() or kvm_gpc_trylock().
 */
void kvm_gpc_unlock(struct gfn_to_pfn_cache *gpc);

/**
 * kvm_gpc_unlock_dirty() - end the use of an area that was written to
 * @gpc: the cache of the area, the latest to be locked if there are two
 *
 * Mark the area dirty in its memslot, for dirty logging, then unlock @gpc.
 *
 * Context: The context of kvm_gpc_lock() or kvm_gpc_trylock().
 */
void kvm_gpc_unlock_dirty(struct gfn_to_pfn_cache *gpc);

#endif
