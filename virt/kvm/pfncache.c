// SPDX-License-Identifier: GPL-2.0-only
/*
 * Kernel-based Virtual Machine driver for Linux
 *
 * This module enables kernel and guest-mode vCPU access to guest physical
 * memory with suitable invalidation mechanisms.
 *
 * Copyright © 2021 Amazon.com, Inc. or its affiliates.
 *
 * Authors:
 *   David Woodhouse <dwmw2@infradead.org>
 */

#define KVM_GPC_INTERNAL

#include <kunit/static_stub.h>
#include <linux/kvm_host.h>
#include <linux/kvm.h>
#include <linux/interval_tree.h>
#include <linux/module.h>
#include <linux/errno.h>
#include <linux/lockdep.h>
#include <linux/percpu.h>
#include <linux/preempt.h>

#include "kvm_mm.h"
#include "pfncache_map.h"

/*
 * Readers
 * =======
 *
 * Each CPU has a stack of the caches that are in use on it.  No other CPU writes to
 * that, so that readers do not slow each other down; there is nothing to sleep on, so
 * that hard irqs can be readers on PREEMPT_RT, too.  A task does not migrate meanwhile,
 * as preemption is disabled.  What an interrupt uses is on top of what it interrupted,
 * wherever that was, and gone when it returns.
 *
 *	reader				invalidation
 *
 *	nr++, held[nr] = gpc
 *	smp_mb()	(A)		gpc->khva = NULL
 *	khva = gpc->khva		smp_mb()	(B)
 *	if (khva)			for (i = nr; i; i--)
 *		use khva			while (held[i] == gpc)
 *	held[nr] = NULL, nr--	(C)			cpu_relax()
 *							(D)
 *
 * A and B: at least one of the two sees what the other has written.  Either the
 * reader finds that there is nothing to use, or the invalidation waits.
 *
 * C matches D, release and acquire: what the reader did has come to its end when
 * the invalidation goes on.  What tells it that may be what the next readers store
 * rather than what the reader itself does, so each store to the stack is a release.
 *
 * A refresh sets gpc->khva after what goes with it (E), and a reader looks at that
 * after gpc->khva (F), release and acquire.
 */

/* Two for tasks, two for softirqs and two for hard irqs. */
#define GPC_HELD_MAX	6

struct gpc_readers {
	/* The caches in use are 1 to nr, the latest last; the others are NULL. */
	struct gfn_to_pfn_cache *held[GPC_HELD_MAX + 1];
	unsigned long nr;
};

static DEFINE_PER_CPU_ALIGNED(struct gpc_readers, gpc_readers);

#ifdef CONFIG_DEBUG_LOCK_ALLOC
static struct lock_class_key gpc_lockdep_key;

/*
 * Held by readers, who never wait for it, and taken by those who wait for readers.
 * Acquiring a lock that sleeps on PREEMPT_RT is wrong meanwhile.
 */
static struct lockdep_map gpc_lockdep_map = {
	.name = "kvm_gpc",
	.key = &gpc_lockdep_key,
	.wait_type_outer = LD_WAIT_FREE,
	.wait_type_inner = LD_WAIT_SPIN,
};
#endif

static __always_inline void gpc_push(struct gpc_readers *readers, struct gfn_to_pfn_cache *gpc)
{
	unsigned long nr = readers->nr + 1;

	/* In this order: an interrupt in between uses what is above. */
	smp_store_release(&readers->nr, nr);		/* C, matches D */
	smp_store_release(&readers->held[nr], gpc);	/* C, matches D */
}

static __always_inline void gpc_pop(struct gpc_readers *readers)
{
	unsigned long nr = readers->nr;

	smp_store_release(&readers->held[nr], NULL);	/* C, matches D */
	smp_store_release(&readers->nr, nr - 1);	/* C, matches D */
}

static __always_inline void *gpc_enter(struct gfn_to_pfn_cache *gpc)
{
	struct gpc_readers *readers;
	void *khva;

	preempt_disable();

	readers = this_cpu_ptr(&gpc_readers);
	if (WARN_ON_ONCE(readers->nr == GPC_HELD_MAX))
		goto none;

	gpc_push(readers, gpc);
	smp_mb();					/* A, matches B */
	khva = smp_load_acquire(&gpc->khva);		/* F, matches E */
	if (likely(khva)) {
		lock_acquire(&gpc_lockdep_map, 0, 1, 2, 1, NULL, _THIS_IP_);
		return khva;
	}

	gpc_pop(readers);
none:
	preempt_enable();
	return NULL;
}

static __always_inline void gpc_leave(struct gfn_to_pfn_cache *gpc)
{
	struct gpc_readers *readers = this_cpu_ptr(&gpc_readers);

	/* The latest first. */
	if (WARN_ON_ONCE(readers->held[readers->nr] != gpc))
		return;

	lock_release(&gpc_lockdep_map, _THIS_IP_);

	gpc_pop(readers);
	preempt_enable();
}

/* Whether @gpc is on the list of caches that were invalidated together. */
static bool gpc_was_invalidated(struct gfn_to_pfn_cache *gpc, struct gfn_to_pfn_cache *list)
{
	for (; list; list = list->next_invalid) {
		if (gpc == list)
			return true;
	}

	return false;
}

/*
 * Wait for those who use the caches on @list, whose khva has been cleared.  A CPU that
 * is not online any more can still have an interrupt.
 */
static void gpc_wait_for_readers(struct gfn_to_pfn_cache *list)
{
	unsigned int cpu;

	if (!list)
		return;

	lock_map_acquire(&gpc_lockdep_map);
	lock_map_release(&gpc_lockdep_map);

	smp_mb();					/* B, matches A */

	for_each_possible_cpu(cpu) {
		struct gpc_readers *readers = per_cpu_ptr(&gpc_readers, cpu);
		unsigned long i;

		/* Most CPUs use no cache at all. */
		for (i = smp_load_acquire(&readers->nr); i; i--) {	/* D, matches C */
			/* D, matches C */
			while (gpc_was_invalidated(smp_load_acquire(&readers->held[i]), list))
				cpu_relax();
		}
	}
}

/*
 * What a cache is bound to.  gpc->area points to the area that users get at, which
 * belongs to whoever holds gpc->refresh_lock.  An area that is being activated belongs
 * to whoever does that, and becomes gpc->area once it is mapped.  Those who invalidate
 * areas find their ranges in kvm->gpc_tree under kvm->gpc_lock.
 */

/* Pages of an area that follow one another for userspace, in one memslot. */
struct gpc_range {
	struct interval_tree_node node;
	struct gpc_area *area;
	/* NULL and nothing if the area is bound by HVA. */
	struct kvm_memory_slot *memslot;
	gfn_t gfn;
	unsigned int nr_pages;
};

struct gpc_area {
	struct gfn_to_pfn_cache *gpc;

	/* What kvm_gpc_activate() was called with; INVALID_GPA if by HVA. */
	gpa_t gpa;
	unsigned long uhva;
	unsigned int len;
	unsigned int nr_pages;
	/* How many there is room for. */
	unsigned int max_pages;

	/* All of the pages, in order; in the tree.  Written under kvm->gpc_lock. */
	unsigned int nr_ranges;

	/*
	 * The ranges are the right ones: cleared when a memslot of theirs changes,
	 * under kvm->gpc_lock.
	 */
	bool bound;

	/*
	 * Set by invalidations, under kvm->gpc_lock: what was looked up before
	 * must not be used.
	 */
	bool stale;

	/* The mapping of the pages. */
	struct gpc_map map;

	struct gpc_range range[] __counted_by(max_pages);
};

/* The VM keeps an area that was freed: to move one is to allocate one, first. */
static struct gpc_area *gpc_alloc_area(struct kvm *kvm, unsigned int nr_pages)
{
	struct gpc_area *area = xchg(&kvm->gpc_spare, NULL);

	if (area && area->max_pages >= nr_pages)
		return area;

	kfree(area);
	area = kmalloc_flex(*area, range, nr_pages, GFP_KERNEL_ACCOUNT);
	if (area)
		area->max_pages = nr_pages;

	return area;
}

static void gpc_free_area(struct gpc_area *area)
{
	struct kvm *kvm = area->gpc->kvm;

	gpc_unmap(&area->map);
	/* KASAN is to tell of those who use it still. */
	if (IS_ENABLED(CONFIG_KASAN) || cmpxchg(&kvm->gpc_spare, NULL, area))
		kfree(area);
}

static bool gpc_by_hva(const struct gpc_area *area)
{
	return kvm_is_error_gpa(area->gpa);
}

static unsigned long gpc_offset(const struct gpc_area *area)
{
	return gpc_by_hva(area) ? offset_in_page(area->uhva) : offset_in_page(area->gpa);
}

static struct gpc_range *gpc_node_to_range(struct interval_tree_node *node)
{
	return container_of(node, struct gpc_range, node);
}

/*
 * Let nobody begin to use @area.  If there may be somebody who does, put its cache
 * on @list, for gpc_wait_for_readers() to wait for.
 */
static void gpc_invalidate(struct gpc_area *area, struct gfn_to_pfn_cache **list)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;

	lockdep_assert_held(&gpc->kvm->gpc_lock);

	area->stale = true;

	/* Only the area that users get at can be valid. */
	if (gpc->area != area || !gpc->khva)
		return;

	WRITE_ONCE(gpc->khva, NULL);
	gpc->next_invalid = *list;
	*list = gpc;
}

static void gpc_invalidate_range(struct kvm *kvm, unsigned long start, unsigned long last)
{
	struct gfn_to_pfn_cache *list = NULL;
	struct interval_tree_node *node;

	for (node = interval_tree_iter_first(&kvm->gpc_tree, start, last); node;
	     node = interval_tree_iter_next(node, start, last))
		gpc_invalidate(gpc_node_to_range(node)->area, &list);

	gpc_wait_for_readers(list);
}

/* A notifier can neither fail nor sleep. */
static bool gpc_make_room(struct kvm_gpc_invalidations *inv)
{
	struct kvm_gpc_range *range;

	KUNIT_STATIC_STUB_REDIRECT(gpc_make_room, inv);

	range = kmalloc_array(2 * inv->max, sizeof(*range), GFP_NOWAIT);
	if (!range)
		return false;

	memcpy(range, inv->range, inv->nr * sizeof(*range));
	if (inv->range != inv->first)
		kfree(inv->range);

	inv->range = range;
	inv->max *= 2;
	return true;
}

/*
 * The pages from @start to @end are about to go away: MMU notifier
 * 'invalidate_range_start' hook.  No area gets to be mapped there until
 * kvm_gpc_invalidate_end() has been called with the same range.
 */
void kvm_gpc_invalidate_start(struct kvm *kvm, unsigned long start, unsigned long end)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;

	guard(spinlock)(&kvm->gpc_lock);

	if (likely(inv->nr < inv->max) || gpc_make_room(inv))
		inv->range[inv->nr++] = (struct kvm_gpc_range){ start, end - 1 };
	else
		inv->nr_anywhere++;

	gpc_invalidate_range(kvm, start, end - 1);
}

/* The area of a refresh that waits is in the tree. */
static bool gpc_is_any_area_in(struct kvm *kvm, unsigned long start, unsigned long last)
{
	guard(spinlock)(&kvm->gpc_lock);

	return interval_tree_iter_first(&kvm->gpc_tree, start, last);
}

/* MMU notifier 'invalidate_range_end' hook. */
void kvm_gpc_invalidate_end(struct kvm *kvm, unsigned long start, unsigned long end)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;
	bool anywhere = false;

	scoped_guard(spinlock, &kvm->gpc_lock) {
		unsigned int i;

		/* Invalidations of the same range are as good as each other. */
		for (i = 0; i < inv->nr; i++) {
			if (inv->range[i].start == start && inv->range[i].last == end - 1)
				break;
		}

		if (i < inv->nr) {
			inv->range[i] = inv->range[--inv->nr];
		} else if (!WARN_ON_ONCE(!inv->nr_anywhere)) {
			inv->nr_anywhere--;
			anywhere = true;
		}
	}

	if (wq_has_sleeper(&inv->wait) && (anywhere || gpc_is_any_area_in(kvm, start, end - 1)))
		wake_up_all(&inv->wait);
}

/* The mm goes away, all of its pages do, and none will come back. */
void kvm_gpc_invalidate_all(struct kvm *kvm)
{
	guard(spinlock)(&kvm->gpc_lock);

	gpc_invalidate_range(kvm, 0, ULONG_MAX);
}

static bool gpc_is_area_in(const struct gpc_area *area, const struct kvm_gpc_range *inv)
{
	const struct gpc_range *range = area->range, *end = range + area->nr_ranges;

	for (; range < end; range++) {
		if (inv->start <= range->node.last && inv->last >= range->node.start)
			return true;
	}

	return false;
}

/* Whether an invalidation is under way that has to do with the area. */
static bool gpc_is_being_invalidated(const struct gpc_area *area)
{
	struct kvm_gpc_invalidations *inv = &area->gpc->kvm->gpc_invalidations;
	unsigned int i;

	lockdep_assert_held(&area->gpc->kvm->gpc_lock);

	for (i = 0; i < inv->nr; i++) {
		if (gpc_is_area_in(area, &inv->range[i]))
			return true;
	}

	return inv->nr_anywhere;
}

/*
 * @slot, which is not among the active memslots any more, is about to go away.
 * Wait for those who use an area in it.
 *
 * A refresh that began with the old memslots has come to its end, as it holds
 * kvm->srcu.  One that began later, but found its area bound to @slot still, has
 * to begin anew.
 */
void kvm_gpc_invalidate_memslot(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	unsigned long start = slot->userspace_addr;
	unsigned long last = start + (slot->npages << PAGE_SHIFT) - 1;
	struct gfn_to_pfn_cache *list = NULL;
	struct interval_tree_node *node;

	lockdep_assert_held(&kvm->slots_lock);

	guard(spinlock)(&kvm->gpc_lock);

	for (node = interval_tree_iter_first(&kvm->gpc_tree, start, last); node;
	     node = interval_tree_iter_next(node, start, last)) {
		struct gpc_range *range = gpc_node_to_range(node);

		if (range->area->bound && range->memslot == slot) {
			gpc_invalidate(range->area, &list);
			range->area->bound = false;
		}
	}

	gpc_wait_for_readers(list);
}

static int gpc_pfn_to_errno(kvm_pfn_t pfn)
{
	switch (pfn) {
	case KVM_PFN_ERR_HWPOISON:
		return -EHWPOISON;
	case KVM_PFN_ERR_SIGPENDING:
		return -EINTR;
	default:
		return -EFAULT;
	}
}

static void gpc_add_range(struct gpc_area *area, unsigned long uhva, unsigned int nr_pages,
			  struct kvm_memory_slot *slot, gfn_t gfn)
{
	struct gpc_range *range = &area->range[area->nr_ranges++];

	range->area = area;
	range->memslot = slot;
	range->gfn = gfn;
	range->nr_pages = nr_pages;
	range->node.start = uhva;
	range->node.last = uhva + nr_pages * PAGE_SIZE - 1;
	interval_tree_insert(&range->node, &area->gpc->kvm->gpc_tree);
}

static void gpc_remove_ranges(struct gpc_area *area)
{
	struct kvm *kvm = area->gpc->kvm;

	lockdep_assert_held(&kvm->gpc_lock);

	while (area->nr_ranges)
		interval_tree_remove(&area->range[--area->nr_ranges].node, &kvm->gpc_tree);

	area->bound = false;
}

static int gpc_add_memslot_ranges(struct gpc_area *area)
{
	gfn_t gfn = gpa_to_gfn(area->gpa);
	gfn_t end = gfn + area->nr_pages;

	while (gfn < end) {
		struct kvm_memory_slot *slot = gfn_to_memslot(area->gpc->kvm, gfn);
		unsigned int nr;

		if (!slot || slot->flags & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY)) {
			gpc_remove_ranges(area);
			return -ENOENT;
		}

		nr = min(end, slot->base_gfn + slot->npages) - gfn;
		gpc_add_range(area, __gfn_to_hva_memslot(slot, gfn), nr, slot, gfn);
		gfn += nr;
	}

	return 0;
}

/* Let invalidations find the area, from before its pages are looked up. */
static int gpc_bind(struct gpc_area *area)
{
	int ret = 0;

	lockdep_assert_held(&area->gpc->kvm->gpc_lock);

	if (area->bound)
		return 0;

	gpc_remove_ranges(area);

	if (gpc_by_hva(area))
		gpc_add_range(area, PAGE_ALIGN_DOWN(area->uhva), area->nr_pages, NULL, 0);
	else
		ret = gpc_add_memslot_ranges(area);

	area->bound = !ret;
	return ret;
}

static bool gpc_may_begin_lookup(struct gpc_area *area)
{
	guard(spinlock)(&area->gpc->kvm->gpc_lock);

	return !gpc_is_being_invalidated(area);
}

/*
 * From here on, whatever invalidates the area says so by area->stale, as it is in
 * the tree, and what had begun before is over.
 *
 * kvm->srcu is held while that is waited for.  An invalidation that is under way
 * waits for no change of memslots, which waits for kvm->srcu.
 */
static int gpc_begin_lookup(struct gpc_area *area)
{
	struct kvm *kvm = area->gpc->kvm;
	int ret;

	do {
		scoped_guard(spinlock, &kvm->gpc_lock) {
			ret = gpc_bind(area);
			if (ret)
				return ret;

			if (likely(!gpc_is_being_invalidated(area))) {
				area->stale = false;
				return 0;
			}
		}
	} while (!wait_event_killable(kvm->gpc_invalidations.wait, gpc_may_begin_lookup(area)));

	return -EINTR;
}

static kvm_pfn_t gpc_lookup_page(struct kvm_follow_pfn *kfp)
{
	KUNIT_STATIC_STUB_REDIRECT(gpc_lookup_page, kfp);

	return hva_to_pfn(kfp);
}

/* Those pages, from the first on, that need not be faulted in. */
static unsigned int gpc_lookup_fast(const struct gpc_range *range, struct page **page)
{
	KUNIT_STATIC_STUB_REDIRECT(gpc_lookup_fast, range, page);

	return max(0, get_user_pages_fast_only(range->node.start, range->nr_pages, FOLL_WRITE,
					       page));
}

/* Those from @i on. */
static noinline int gpc_lookup_slow(const struct gpc_range *range, unsigned int i,
				    kvm_pfn_t *pfn, struct page **page)
{
	for (; i < range->nr_pages; i++) {
		struct kvm_follow_pfn kfp = {
			.hva = range->node.start + i * PAGE_SIZE,
			.flags = FOLL_WRITE,
			.refcounted_page = &page[i],
		};

		pfn[i] = gpc_lookup_page(&kfp);
		if (is_error_noslot_pfn(pfn[i]))
			return gpc_pfn_to_errno(pfn[i]);
	}

	return 0;
}

/* The pages at @page are NULL but for those that were looked up. */
static int gpc_lookup_range(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	unsigned int i, nr_fast;

	nr_fast = gpc_lookup_fast(range, page);
	for (i = 0; i < nr_fast; i++)
		pfn[i] = page_to_pfn(page[i]);

	return i == range->nr_pages ? 0 : gpc_lookup_slow(range, i, pfn, page);
}

static int gpc_lookup(const struct gpc_area *area, kvm_pfn_t *pfn, struct page **page)
{
	const struct gpc_range *range = area->range, *end = range + area->nr_ranges;
	int ret;

	for (; range < end; range++) {
		ret = gpc_lookup_range(range, pfn, page);
		if (ret)
			return ret;

		pfn += range->nr_pages;
		page += range->nr_pages;
	}

	return 0;
}

/*
 * Keep a mapping of the same pages: it is likely that what invalidated the area has
 * changed no more than how userspace may access it.  Nobody uses the one that goes:
 * the area is new, or its readers were waited for when it was invalidated, before
 * gpc_begin_lookup() got hold of kvm->gpc_lock.
 */
static int gpc_map_area(struct gpc_area *area, const kvm_pfn_t *pfn, struct page *const *page)
{
	if (area->map.addr) {
		if (gpc_is_map_of(&area->map, pfn, area->nr_pages))
			return 0;

		gpc_unmap(&area->map);
	}

	return gpc_map(&area->map, pfn, page, area->nr_pages);
}

/* When this returns, nobody uses @area or finds it any more. */
static void gpc_retire(struct gpc_area *area)
{
	struct gfn_to_pfn_cache *list = NULL;

	gpc_invalidate(area, &list);
	gpc_wait_for_readers(list);
	gpc_remove_ranges(area);
}

/*
 * Let users get at @area, which is mapped, unless it was invalidated since its
 * pages were looked up.  They do not get at any other area of the cache then.
 */
static int gpc_publish(struct gpc_area *area, struct page **page)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;
	unsigned int i;

	lockdep_assert_held(&gpc->refresh_lock);

	guard(spinlock)(&gpc->kvm->gpc_lock);

	if (area->stale)
		return -EAGAIN;

	/*
	 * KVM writes to the pages through the mapping, i.e. without the MMU setting
	 * any dirty bit, so mark them dirty.  What is not stale is userspace's still,
	 * and so are the pages.  Whoever cleans one write-protects or unmaps it first,
	 * for which it takes the lock, and finds it dirty then; marked any later, it
	 * would be dirty without its filesystem having been told.
	 */
	for (i = 0; i < area->nr_pages; i++) {
		if (page[i])
			kvm_set_page_dirty(page[i]);
	}

	if (gpc->area != area) {
		if (gpc->area)
			gpc_retire(gpc->area);

		WRITE_ONCE(gpc->area, area);
		WRITE_ONCE(gpc->gpa, area->gpa);
		WRITE_ONCE(gpc->uhva, area->uhva);
		WRITE_ONCE(gpc->len, area->len);
	}

	smp_store_release(&gpc->khva, area->map.addr + gpc_offset(area));	/* E, matches F */
	return 0;
}

/* The same for an area that users have not got at yet.  No refresh uses the old one. */
static int gpc_publish_new(struct gpc_area *area, struct page **page)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;
	struct gpc_area *old;
	int ret;

	if (mutex_lock_killable(&gpc->refresh_lock))
		return -EINTR;

	old = gpc->area;
	ret = gpc_publish(area, page);
	mutex_unlock(&gpc->refresh_lock);

	if (!ret && old)
		gpc_free_area(old);

	return ret;
}

/* Look the area up, map it and publish it.  Return -EAGAIN if that came too late. */
static int gpc_try_refresh(struct gpc_area *area)
{
	struct page *page[GPC_MAP_MAX] = {};
	kvm_pfn_t pfn[GPC_MAP_MAX];
	unsigned int i;
	int ret;

	ret = gpc_begin_lookup(area);
	if (ret)
		return ret;

	ret = gpc_lookup(area, pfn, page);
	if (!ret)
		ret = gpc_map_area(area, pfn, page);

	/*
	 * Put the references to the pages.  They are now tracked by the cache and
	 * can be safely migrated, swapped, etc... as the cache will invalidate any
	 * mappings in response to relevant mmu_notifier events, and what is invalid
	 * already is not published.  That may wait for another refresh.
	 */
	if (ret) {
		for (i = 0; i < area->nr_pages; i++)
			kvm_release_page_unused(page[i]);
		return ret;
	}

	for (i = 0; i < area->nr_pages; i++)
		kvm_release_page_clean(page[i]);

	/* A new area is nobody's but the cache's then: whoever replaces it frees it. */
	return area == READ_ONCE(area->gpc->area) ? gpc_publish(area, page) :
						    gpc_publish_new(area, page);
}

static int gpc_refresh_area(struct gpc_area *area)
{
	int ret;

	/* From when memslots are looked at until the area is mapped. */
	guard(srcu)(&area->gpc->kvm->srcu);

	/* Pages are faulted in with the address space of the task. */
	if (WARN_ON_ONCE(current->mm != area->gpc->kvm->mm))
		return -EIO;

	while ((ret = gpc_try_refresh(area)) == -EAGAIN) {
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}

		cond_resched();
	}

	/* Do not keep a mapping of what may not be userspace's any more. */
	if (ret)
		gpc_unmap(&area->map);

	return ret;
}

static int gpc_refresh(struct gfn_to_pfn_cache *gpc)
{
	/* Whoever holds the lock may wait for userspace, e.g. for userfaultfd. */
	ACQUIRE(mutex_kill, lock)(&gpc->refresh_lock);
	if (ACQUIRE_ERR(mutex_kill, &lock))
		return -EINTR;

	if (!gpc->area)
		return -ENXIO;

	/* Somebody else may have done it while the lock was waited for. */
	if (READ_ONCE(gpc->khva))
		return 0;

	return gpc_refresh_area(gpc->area);
}

static noinline void *gpc_refresh_and_enter(struct gfn_to_pfn_cache *gpc)
{
	void *khva;
	int ret;

	do {
		ret = gpc_refresh(gpc);
		if (ret)
			return ERR_PTR(ret);

		khva = gpc_enter(gpc);
		if (khva)
			return khva;
	} while (!fatal_signal_pending(current));

	return ERR_PTR(-EINTR);
}

void *kvm_gpc_lock(struct gfn_to_pfn_cache *gpc)
{
	void *khva;

	might_sleep();

	khva = gpc_enter(gpc);
	if (likely(khva))
		return khva;

	return gpc_refresh_and_enter(gpc);
}

void *kvm_gpc_trylock(struct gfn_to_pfn_cache *gpc)
{
	void *khva = gpc_enter(gpc);

	if (likely(khva))
		return khva;

	return ERR_PTR(kvm_gpc_is_active(gpc) ? -EWOULDBLOCK : -ENXIO);
}

void kvm_gpc_unlock(struct gfn_to_pfn_cache *gpc)
{
	gpc_leave(gpc);
}

static noinline void gpc_mark_range_dirty(struct kvm *kvm, const struct gpc_range *range)
{
	unsigned int i;

	for (i = 0; i < range->nr_pages; i++)
		mark_page_dirty_in_slot(kvm, range->memslot, range->gfn + i);
}

/*
 * By a reader.  The memslots and their dirty bitmaps are there still, though they may
 * not be active any more, as kvm_gpc_invalidate_memslot() waits for readers.
 */
static void gpc_mark_dirty(struct kvm *kvm, const struct gpc_area *area)
{
	const struct gpc_range *range = area->range, *end = range + area->nr_ranges;

	for (; range < end; range++) {
		if (range->memslot && unlikely(kvm_slot_dirty_track_enabled(range->memslot)))
			gpc_mark_range_dirty(kvm, range);
	}
}

void kvm_gpc_unlock_dirty(struct gfn_to_pfn_cache *gpc)
{
	lockdep_assert(lock_is_held(&gpc_lockdep_map));

	gpc_mark_dirty(gpc->kvm, gpc->area);
	gpc_leave(gpc);
}

void kvm_gpc_init_vm(struct kvm *kvm)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;

	spin_lock_init(&kvm->gpc_lock);
	kvm->gpc_tree = RB_ROOT_CACHED;
	inv->range = inv->first;
	inv->max = ARRAY_SIZE(inv->first);
	init_waitqueue_head(&inv->wait);
}

void kvm_gpc_destroy_vm(struct kvm *kvm)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;

	if (inv->range != inv->first)
		kfree(inv->range);
	kfree(kvm->gpc_spare);
}

void kvm_gpc_init(struct gfn_to_pfn_cache *gpc, struct kvm *kvm)
{
	mutex_init(&gpc->refresh_lock);

	gpc->kvm = kvm;
	gpc->gpa = INVALID_GPA;
}

static struct gpc_area *gpc_new_area(struct gfn_to_pfn_cache *gpc, gpa_t gpa,
				     unsigned long uhva, unsigned long len)
{
	unsigned long offset = offset_in_page(kvm_is_error_gpa(gpa) ? uhva : gpa);
	unsigned int nr_pages = PAGE_ALIGN(offset + len) >> PAGE_SHIFT;
	struct gpc_area *area;

	area = gpc_alloc_area(gpc->kvm, nr_pages);
	if (!area)
		return NULL;

	area->gpc = gpc;
	area->gpa = gpa;
	area->uhva = uhva;
	area->len = len;
	area->nr_pages = nr_pages;
	area->nr_ranges = 0;
	area->bound = false;
	area->stale = false;
	area->map.addr = NULL;
	return area;
}

static int gpc_activate(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long uhva,
			unsigned long len)
{
	struct gpc_area *area;
	int ret;

	if (!len || len > KVM_GPC_MAX_LEN)
		return -EINVAL;

	area = gpc_new_area(gpc, gpa, uhva, len);
	if (!area)
		return -ENOMEM;

	ret = gpc_refresh_area(area);
	if (ret) {
		scoped_guard(spinlock, &gpc->kvm->gpc_lock)
			gpc_retire(area);
		gpc_free_area(area);
	}

	return ret;
}

int kvm_gpc_activate(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len)
{
	/*
	 * Explicitly disallow INVALID_GPA so that the magic value can be used
	 * by KVM to differentiate between GPA-based and HVA-based caches.
	 */
	if (WARN_ON_ONCE(kvm_is_error_gpa(gpa)))
		return -EINVAL;

	return gpc_activate(gpc, gpa, 0, len);
}

int kvm_gpc_activate_hva(struct gfn_to_pfn_cache *gpc, unsigned long uhva, unsigned long len)
{
	unsigned long untagged = untagged_addr(uhva);

	/*
	 * MMU notifiers know of untagged addresses only, so a cache with a tagged
	 * one would never be invalidated.  The same goes for memslots.
	 */
	if (uhva != untagged || !access_ok((void __user *)uhva, len))
		return -EINVAL;

	return gpc_activate(gpc, INVALID_GPA, uhva, len);
}

void kvm_gpc_deactivate(struct gfn_to_pfn_cache *gpc)
{
	struct gpc_area *area;

	guard(mutex)(&gpc->refresh_lock);

	area = gpc->area;
	if (!area)
		return;

	spin_lock(&gpc->kvm->gpc_lock);
	gpc_retire(area);
	WRITE_ONCE(gpc->area, NULL);
	WRITE_ONCE(gpc->gpa, INVALID_GPA);
	WRITE_ONCE(gpc->uhva, 0);
	WRITE_ONCE(gpc->len, 0);
	spin_unlock(&gpc->kvm->gpc_lock);

	gpc_free_area(area);
}

#ifdef CONFIG_KVM_GPC_KUNIT_TEST
#include "pfncache_kunit.c"
#endif
