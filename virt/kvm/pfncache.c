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

/*
 * A cache (struct gfn_to_pfn_cache) is bound to an area of guest memory (struct
 * gpc_area).  The area is in one of three states:
 *
 *  - unbound: its memslots are unknown.  A new area is unbound, and an area by
 *    guest physical address is unbound again when one of its memslots changes.
 *  - bound: it has a range in kvm->gpc_tree for each memslot that it lies in,
 *    and one for all of its pages if they may become private, so that
 *    invalidations find it.
 *  - mapped: gpc->khva points to it.  Readers check gpc->khva only.
 *
 * A refresh binds and maps an area.  An invalidation clears gpc->khva and waits
 * for readers: an MMU notifier, a change of memslots or of memory attributes, a
 * guest_memfd that gives up pages, and the replacement of the area.
 * Documentation/virt/kvm/gpc.rst shows both side by side.
 *
 * The hardware that runs a vCPU can use an area by its physical address.  The
 * invalidation waits for that, too, see "Guest use".
 *
 * Locks, in this order:
 *
 *  - kvm->slots_lock: taken by kvm_vcpu_wait_for_memslot(), without kvm->srcu,
 *    to wait for a change of memslots.
 *  - gpc->refresh_lock: held by a refresh of gpc->area and by its replacement.
 *    May be held for as long as userspace takes to provide a page.
 *  - kvm->srcu: held by a refresh from the lookup of memslots until the area is
 *    mapped.  An activation takes refresh_lock inside of it, to publish its
 *    area, so a holder of refresh_lock must not wait for kvm->srcu.
 *  - kvm->gpc_lock: protects the trees, the ranges of all areas, their states
 *    and the invalidations under way.  Invalidations spin for readers under it.
 *
 * Readers take no lock.
 */

#define KVM_GPC_INTERNAL

#include <kunit/static_stub.h>
#include <linux/kvm_host.h>
#include <linux/interval_tree.h>
#include <linux/lockdep.h>
#include <linux/percpu.h>

#include "kvm_mm.h"
#include "pfncache_map.h"

/*
 * The pages of an area that one memslot has, to look them up, or all pages of
 * the area, to test whether one is private.
 */
struct gpc_range {
	/* In kvm->gpc_tree[by]. */
	struct interval_tree_node node;
	struct gpc_area *area;
	/* NULL and 0 if the area is bound by HVA, or if @nr_pages is 0. */
	struct kvm_memory_slot *memslot;
	gfn_t gfn;
	/* Pages to look up, 0 in the range that tests for private pages. */
	unsigned int nr_pages;
	enum kvm_gpc_by by;
};

/*
 * gpc->area belongs to the holder of gpc->refresh_lock.  An area that is being
 * activated belongs to the activating task until it is published as gpc->area.
 */
struct gpc_area {
	struct gfn_to_pfn_cache *gpc;

	/* The arguments of the activation.  @gpa is INVALID_GPA if by HVA. */
	gpa_t gpa;
	unsigned long uhva;
	unsigned int len;
	unsigned int nr_pages;

	/* The members from here on are written under kvm->gpc_lock. */

	/* The mapping, NULL if the pages are in the direct map or unmapped. */
	struct gpc_map *map;
	/* The ranges are up to date.  Cleared when a memslot changes. */
	bool bound;
	/* An invalidation has begun since the pages were looked up. */
	bool stale;
	/* A refresh has failed since the area was mapped the last time. */
	bool failed;
	/*
	 * The range that tests for private pages, if any, then one for each
	 * memslot, in the order of the pages.
	 */
	unsigned int nr_ranges;
	struct gpc_range range[1 + GPC_MAP_MAX];
};

/* An area of the maximum length, at any offset. */
static_assert(KVM_GPC_MAX_LEN <= (GPC_MAP_MAX - 1) * PAGE_SIZE);

#define gpc_for_each_range(range, kvm, by, first, last)					\
	for (struct interval_tree_node *__node =					\
		     interval_tree_iter_first(&(kvm)->gpc_tree[by], first, last);	\
	     __node && (range = container_of(__node, struct gpc_range, node), true);	\
	     __node = interval_tree_iter_next(__node, first, last))

static void gpc_add_range(struct gpc_area *area, enum kvm_gpc_by by, unsigned long first,
			  unsigned long last, struct kvm_memory_slot *slot, gfn_t gfn,
			  unsigned int nr_pages)
{
	struct gpc_range *range = &area->range[area->nr_ranges++];

	range->area = area;
	range->memslot = slot;
	range->gfn = gfn;
	range->nr_pages = nr_pages;
	range->by = by;
	range->node.start = first;
	range->node.last = last;
	interval_tree_insert(&range->node, &area->gpc->kvm->gpc_tree[by]);
}

static void gpc_add_hva_range(struct gpc_area *area, unsigned long uhva,
			      unsigned int nr_pages, struct kvm_memory_slot *slot, gfn_t gfn)
{
	gpc_add_range(area, KVM_GPC_BY_HVA, uhva, uhva + nr_pages * PAGE_SIZE - 1, slot, gfn,
		      nr_pages);
}

static void gpc_add_memslot_range(struct gpc_area *area, struct kvm_memory_slot *slot,
				  gfn_t gfn, unsigned int nr_pages)
{
	/* The guest's page faults use the file only, too. */
	if (kvm_memslot_is_gmem_only(slot))
		gpc_add_range(area, KVM_GPC_BY_GFN, gfn, gfn + nr_pages - 1, slot, gfn, nr_pages);
	else
		gpc_add_hva_range(area, __gfn_to_hva_memslot(slot, gfn), nr_pages, slot, gfn);
}

static void gpc_unbind(struct gpc_area *area)
{
	struct kvm *kvm = area->gpc->kvm;
	struct gpc_range *range;

	lockdep_assert_held(&kvm->gpc_lock);

	while (area->nr_ranges) {
		range = &area->range[--area->nr_ranges];
		interval_tree_remove(&range->node, &kvm->gpc_tree[range->by]);
	}

	area->bound = false;
}

/* Let invalidations find the area, from before its pages are looked up. */
static int gpc_bind(struct gpc_area *area)
{
	gfn_t gfn = gpa_to_gfn(area->gpa), end = gfn + area->nr_pages;
	struct kvm *kvm = area->gpc->kvm;

	lockdep_assert_held(&kvm->gpc_lock);

	if (area->bound)
		return 0;

	gpc_unbind(area);

	if (kvm_is_error_gpa(area->gpa)) {
		gpc_add_hva_range(area, PAGE_ALIGN_DOWN(area->uhva), area->nr_pages, NULL, 0);
		end = gfn;
	} else if (kvm_arch_has_private_mem(kvm)) {
		gpc_add_range(area, KVM_GPC_BY_GFN, gfn, end - 1, NULL, 0, 0);
	}

	while (gfn < end) {
		struct kvm_memory_slot *slot = gfn_to_memslot(kvm, gfn);
		unsigned int nr;

		if (!slot || slot->flags & (KVM_MEMSLOT_INVALID | KVM_MEM_READONLY)) {
			gpc_unbind(area);
			return -ENOENT;
		}

		nr = min(end, slot->base_gfn + slot->npages) - gfn;
		gpc_add_memslot_range(area, slot, gfn, nr);
		gfn += nr;
	}

	area->bound = true;
	return 0;
}

/*
 * Readers
 * =======
 *
 * Each CPU has a stack of the caches that are in use on it.  Only the CPU
 * itself writes to its stack, so that readers do not slow each other down.  A
 * reader never waits, so that hard irqs can be readers on PREEMPT_RT, too.
 * Preemption is disabled while a cache is in use, i.e. the reader stays on its
 * CPU.  An interrupt may push at any instruction of a reader.  It pops what it
 * has pushed before it returns, so the reader finds its stack unchanged.
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
 * A and B: if the reader doesn't find gpc->khva cleared, the invalidation finds
 * the push, and waits.
 *
 * C matches D, release and acquire: the accesses of the reader are complete
 * when the invalidation continues.  D may read the store of a later push or pop
 * instead, so each store to the stack is a release.
 *
 * E matches F, release and acquire: a refresh sets gpc->khva after the members
 * that go with it, and a reader reads these members after gpc->khva.
 */

/* A task, a softirq and a hard irq may use two caches each. */
#define GPC_HELD_MAX	6

struct gpc_readers {
	/* Entries 1 to nr are the caches in use, the others are NULL. */
	struct gfn_to_pfn_cache *held[GPC_HELD_MAX + 1];
	unsigned long nr;
};

static DEFINE_PER_CPU_ALIGNED(struct gpc_readers, gpc_readers);

#ifdef CONFIG_DEBUG_LOCK_ALLOC
static struct lock_class_key gpc_lockdep_key;

/*
 * Readers hold it for read, as if by a trylock.  Invalidations acquire it for
 * write before they wait for readers.  A reader must not acquire a lock that
 * sleeps on PREEMPT_RT.
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

	/* In this order: an interrupt in between must not push to held[nr]. */
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
	if (khva) {
		lock_map_acquire_tryread(&gpc_lockdep_map);
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

	/* Caches are unlocked in reverse order. */
	if (WARN_ON_ONCE(readers->held[readers->nr] != gpc))
		return;

	lock_map_release(&gpc_lockdep_map);

	gpc_pop(readers);
	preempt_enable();
}

/*
 * Wait for the readers of @gpc, whose khva has been cleared.  A CPU that is
 * going offline may still take an interrupt that uses a cache, so look at
 * possible CPUs.
 */
static void gpc_wait_for_readers(struct gfn_to_pfn_cache *gpc)
{
	unsigned int cpu;

	lock_map_acquire(&gpc_lockdep_map);
	lock_map_release(&gpc_lockdep_map);

	smp_mb();					/* B, matches A */

	for_each_possible_cpu(cpu) {
		struct gpc_readers *readers = per_cpu_ptr(&gpc_readers, cpu);
		unsigned long i;

		/* nr is zero on most CPUs. */
		for (i = smp_load_acquire(&readers->nr); i; i--) {	/* D, matches C */
			while (smp_load_acquire(&readers->held[i]) == gpc)	/* D, matches C */
				cpu_relax();
		}
	}
}

/*
 * Invalidation
 * ============
 */

/*
 * Remove the mappings of invalidated areas: in a work item, as an MMU notifier
 * may not be allowed to sleep, and before a refresh maps an area outside the
 * direct map, so that the list stays short.
 */
static void gpc_unmap_stale(struct kvm *kvm)
{
	struct gpc_map *map, *next;

	llist_for_each_entry_safe(map, next, llist_del_all(&kvm->gpc_stale_maps), node)
		gpc_unmap(map);
}

static void gpc_unmap_stale_fn(struct work_struct *work)
{
	gpc_unmap_stale(container_of(work, struct kvm, gpc_unmap_work));
}

/*
 * Keep new readers from using @area, wait for current readers, and have the
 * mapping removed.  The pages may soon be reused for another purpose, so don't
 * leave the mapping in place until the next refresh, which userspace may never
 * cause.
 */
static void gpc_invalidate(struct gpc_area *area)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;
	struct kvm *kvm = gpc->kvm;

	lockdep_assert_held(&kvm->gpc_lock);

	area->stale = true;

	/* Only the published area has readers. */
	if (gpc->area == area && gpc->khva) {
		WRITE_ONCE(gpc->khva, NULL);
		gpc_wait_for_readers(gpc);
	}

	if (area->map) {
		llist_add(&area->map->node, &kvm->gpc_stale_maps);
		area->map = NULL;
		queue_work(system_dfl_wq, &kvm->gpc_unmap_work);
	}
}

/* The vCPUs that an invalidation waits for: none, @vcpu, or all of the VM. */
struct gpc_kick {
	struct kvm_vcpu *vcpu;
	bool all;
};

static noinline void gpc_make_request(struct gfn_to_pfn_cache *gpc, struct gpc_kick *kick)
{
	WRITE_ONCE(gpc->hpa_valid, false);
	__kvm_make_request(gpc->req, gpc->vcpu);
	if (!(gpc->req & KVM_REQUEST_NO_WAKEUP))
		kvm_vcpu_wake_up(gpc->vcpu);

	kick->all |= kick->vcpu && kick->vcpu != gpc->vcpu;
	kick->vcpu = gpc->vcpu;
}

/*
 * Invalidate @area for its readers and for the hardware that uses it.  The
 * hardware may still use an area that is unmapped already, if an earlier
 * invalidation hasn't finished waiting for the vCPU.
 */
static void gpc_invalidate_used(struct gpc_area *area, struct gpc_kick *kick)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;

	gpc_invalidate(area);

	/* K, matches J */
	if (gpc->area == area && smp_load_acquire(&gpc->used))
		gpc_make_request(gpc, kick);
}

static noinline void gpc_kick_vcpu(struct kvm_vcpu *vcpu)
{
	DECLARE_BITMAP(vcpus, KVM_MAX_VCPUS) = {};

	__set_bit(vcpu->vcpu_idx, vcpus);
	kvm_make_vcpus_request_mask(vcpu->kvm, KVM_REQ_OUTSIDE_GUEST_MODE, vcpus);
}

/*
 * Wait until the vCPUs have left guest mode.  Don't hold kvm->gpc_lock, for
 * which other invalidations spin, as an interrupt may take long to arrive at a
 * CPU that is virtual itself.
 */
static void gpc_kick_vcpus(struct kvm *kvm, const struct gpc_kick *kick)
{
	/* H, matches G */
	if (kick->all)
		kvm_make_all_cpus_request(kvm, KVM_REQ_OUTSIDE_GUEST_MODE);
	else if (kick->vcpu)
		gpc_kick_vcpu(kick->vcpu);
}

/* Inlined, so that @by is a constant. */
static __always_inline void gpc_invalidate_ranges(struct kvm *kvm, enum kvm_gpc_by by,
						  unsigned long first, unsigned long last,
						  struct gpc_kick *kick)
{
	struct gpc_range *range;

	gpc_for_each_range(range, kvm, by, first, last)
		gpc_invalidate_used(range->area, kick);
}

static __always_inline void gpc_invalidate_start(struct kvm *kvm, enum kvm_gpc_by by,
						 unsigned long first, unsigned long last)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;
	struct gpc_kick kick = {};

	scoped_guard(spinlock, &kvm->gpc_lock) {
		/* A notifier can neither fail nor sleep. */
		if (inv->nr < ARRAY_SIZE(inv->range))
			inv->range[inv->nr++] = (struct kvm_gpc_range){ by, first, last };
		else
			inv->nr_anywhere++;

		gpc_invalidate_ranges(kvm, by, first, last, &kick);
	}

	gpc_kick_vcpus(kvm, &kick);
}

static __always_inline void gpc_forget_invalidation(struct kvm *kvm, enum kvm_gpc_by by,
						    unsigned long first, unsigned long last)
{
	struct kvm_gpc_invalidations *inv = &kvm->gpc_invalidations;
	unsigned int i;

	lockdep_assert_held(&kvm->gpc_lock);

	/* Invalidations of the same range are interchangeable. */
	for (i = 0; i < inv->nr; i++) {
		if (inv->range[i].by == by && inv->range[i].start == first &&
		    inv->range[i].last == last) {
			inv->range[i] = inv->range[--inv->nr];
			return;
		}
	}

	if (!WARN_ON_ONCE(!inv->nr_anywhere))
		inv->nr_anywhere--;
}

static __always_inline void gpc_invalidate_end(struct kvm *kvm, enum kvm_gpc_by by,
					       unsigned long first, unsigned long last)
{
	struct gpc_range *range;
	bool retry = false;

	scoped_guard(spinlock, &kvm->gpc_lock) {
		gpc_forget_invalidation(kvm, by, first, last);

		/* Memory may be shared that an activation has failed for. */
		if (by == KVM_GPC_BY_GFN) {
			retry = kvm->gpc_activation_failed;
			kvm->gpc_activation_failed = false;
		}

		gpc_for_each_range(range, kvm, by, first, last)
			retry |= range->area->failed;
	}

	/*
	 * A refresh that isn't asleep yet checks under gpc_lock before it
	 * sleeps.
	 */
	if (wq_has_sleeper(&kvm->gpc_invalidations.wait))
		wake_up_all(&kvm->gpc_invalidations.wait);

	/* The pages may be present now, and users of the area may need them. */
	if (retry)
		kvm_arch_gpc_retry(kvm);
}

/*
 * MMU notifier 'invalidate_range_start' hook: the pages from @start to @end are
 * about to be unmapped.  No area is mapped there until kvm_gpc_invalidate_end()
 * has been called with the same range.
 */
void kvm_gpc_invalidate_start(struct kvm *kvm, unsigned long start, unsigned long end)
{
	gpc_invalidate_start(kvm, KVM_GPC_BY_HVA, start, end - 1);
}

/* MMU notifier 'invalidate_range_end' hook. */
void kvm_gpc_invalidate_end(struct kvm *kvm, unsigned long start, unsigned long end)
{
	gpc_invalidate_end(kvm, KVM_GPC_BY_HVA, start, end - 1);
}

/*
 * The guest's pages from @start to @end are about to be taken from their
 * guest_memfd, or to become private or shared.  No area by guest physical
 * address is mapped there until kvm_gpc_invalidate_gfn_end() has been called
 * with the same range.  The caller must neither wait for kvm->srcu, which a
 * refresh holds while it waits for the end, nor acquire kvm->slots_lock in
 * between.
 */
void kvm_gpc_invalidate_gfn_start(struct kvm *kvm, gfn_t start, gfn_t end)
{
	gpc_invalidate_start(kvm, KVM_GPC_BY_GFN, start, end - 1);
}

void kvm_gpc_invalidate_gfn_end(struct kvm *kvm, gfn_t start, gfn_t end)
{
	gpc_invalidate_end(kvm, KVM_GPC_BY_GFN, start, end - 1);
}

/*
 * The mm is being destroyed, i.e. all of its pages are about to be freed, and
 * the VM can't run any more.
 */
void kvm_gpc_invalidate_all(struct kvm *kvm)
{
	struct gpc_kick kick = {};

	scoped_guard(spinlock, &kvm->gpc_lock) {
		gpc_invalidate_ranges(kvm, KVM_GPC_BY_HVA, 0, ULONG_MAX, &kick);
		gpc_invalidate_ranges(kvm, KVM_GPC_BY_GFN, 0, ULONG_MAX, &kick);
	}

	gpc_kick_vcpus(kvm, &kick);
}

/*
 * @slot, which isn't among the active memslots any more, is about to be freed.
 *
 * A refresh that began with the old memslots has finished, as it holds
 * kvm->srcu.  A refresh that began later, but found its area still bound to
 * @slot, starts over.  It may look up @slot's guest_memfd until then: a memslot
 * with a guest_memfd can only be deleted, and before it is freed, kvm->srcu is
 * waited for once more.
 */
void kvm_gpc_invalidate_memslot(struct kvm *kvm, struct kvm_memory_slot *slot)
{
	bool in_gmem = kvm_memslot_is_gmem_only(slot);
	enum kvm_gpc_by by = in_gmem ? KVM_GPC_BY_GFN : KVM_GPC_BY_HVA;
	unsigned long first = in_gmem ? slot->base_gfn : slot->userspace_addr;
	unsigned long len = in_gmem ? slot->npages : slot->npages << PAGE_SHIFT;
	struct gpc_kick kick = {};
	struct gpc_range *range;

	lockdep_assert_held(&kvm->slots_lock);

	scoped_guard(spinlock, &kvm->gpc_lock) {
		gpc_for_each_range(range, kvm, by, first, first + len - 1) {
			if (range->area->bound && range->memslot == slot) {
				gpc_invalidate_used(range->area, &kick);
				range->area->bound = false;
			}
		}
	}

	gpc_kick_vcpus(kvm, &kick);
}

/* Afterwards, @area has no readers, and invalidations do not find it. */
static void gpc_retire(struct gpc_area *area)
{
	/* Nothing would make the hardware leave the area. */
	WARN_ON_ONCE(area->gpc->used);

	gpc_invalidate(area);
	gpc_unbind(area);
}

/*
 * Refresh
 * =======
 */

/*
 * Userspace pauses a vCPU by a signal, so any signal ends the wait for a page
 * in KVM_RUN, as it does for a page fault of the guest.  In other ioctls, only
 * a fatal signal does, as userspace doesn't expect them to fail because of
 * other signals.  The same goes for a killable cache, the user of which can't
 * end KVM_RUN.
 */
static unsigned int gpc_wait_state(const struct gfn_to_pfn_cache *gpc)
{
	struct kvm_vcpu *vcpu = kvm_get_running_vcpu();

	if (gpc->killable)
		return TASK_KILLABLE;

	return vcpu && vcpu->wants_to_run ? TASK_INTERRUPTIBLE : TASK_KILLABLE;
}

static bool gpc_signal_pending(const struct gfn_to_pfn_cache *gpc)
{
	return signal_pending_state(gpc_wait_state(gpc), current);
}

/* The holder may be waiting for userspace, e.g. for userfaultfd. */
static int gpc_lock_refresh(struct gfn_to_pfn_cache *gpc)
{
	if (gpc_wait_state(gpc) == TASK_INTERRUPTIBLE)
		return mutex_lock_interruptible(&gpc->refresh_lock);

	return mutex_lock_killable(&gpc->refresh_lock);
}

/* Whether an invalidation that overlaps the area is under way. */
static bool gpc_is_being_invalidated(const struct gpc_area *area)
{
	struct kvm_gpc_invalidations *inv = &area->gpc->kvm->gpc_invalidations;
	unsigned int i, j;

	lockdep_assert_held(&area->gpc->kvm->gpc_lock);

	for (i = 0; i < inv->nr; i++) {
		for (j = 0; j < area->nr_ranges; j++) {
			if (inv->range[i].by == area->range[j].by &&
			    inv->range[i].start <= area->range[j].node.last &&
			    inv->range[i].last >= area->range[j].node.start)
				return true;
		}
	}

	return inv->nr_anywhere;
}

static int gpc_try_begin_lookup(struct gpc_area *area)
{
	int ret;

	guard(spinlock)(&area->gpc->kvm->gpc_lock);

	ret = gpc_bind(area);
	if (ret)
		return ret;

	if (gpc_is_being_invalidated(area))
		return -EBUSY;

	area->stale = false;
	return 0;
}

/*
 * Once this returns, each invalidation of the area sets area->stale, as the
 * area is in the tree, and invalidations that began earlier have ended.
 *
 * kvm->srcu is held during the wait.  This can't deadlock, as an invalidation
 * that is under way waits neither for kvm->srcu nor for a change of memslots,
 * which waits for kvm->srcu.
 */
static int gpc_begin_lookup(struct gpc_area *area)
{
	int ret, signal;

	signal = wait_event_state(area->gpc->kvm->gpc_invalidations.wait,
				  (ret = gpc_try_begin_lookup(area)) != -EBUSY,
				  gpc_wait_state(area->gpc));
	return signal ? -EINTR : ret;
}

static int gpc_pfn_to_errno(kvm_pfn_t pfn)
{
	if (pfn == KVM_PFN_ERR_HWPOISON)
		return -EHWPOISON;

	return pfn == KVM_PFN_ERR_SIGPENDING ? -EINTR : -EFAULT;
}

static int gpc_lookup_gmem(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	struct kvm *kvm = range->area->gpc->kvm;
	unsigned int i;
	int ret;

	for (i = 0; i < range->nr_pages; i++) {
		ret = kvm_gmem_get_shared_pfn(kvm, range->memslot, range->gfn + i,
					      &pfn[i], &page[i]);
		if (ret)
			return ret;
	}

	return 0;
}

static int gpc_lookup_hva(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	unsigned int i;

	for (i = 0; i < range->nr_pages; i++) {
		struct kvm_follow_pfn kfp = {
			.hva = range->node.start + i * PAGE_SIZE,
			.flags = FOLL_WRITE,
			.refcounted_page = &page[i],
		};

		if (gpc_wait_state(range->area->gpc) == TASK_INTERRUPTIBLE)
			kfp.flags |= FOLL_INTERRUPTIBLE;

		pfn[i] = hva_to_pfn(&kfp);
		if (is_error_noslot_pfn(pfn[i]))
			return gpc_pfn_to_errno(pfn[i]);
	}

	return 0;
}

/* A later change invalidates the area, see gpc_begin_lookup(). */
static bool gpc_is_private(const struct gpc_range *range)
{
	gfn_t gfn;

	for (gfn = range->node.start; gfn <= range->node.last; gfn++) {
		if (kvm_mem_is_private(range->area->gpc->kvm, gfn))
			return true;
	}

	return false;
}

static int gpc_lookup_range(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	KUNIT_STATIC_STUB_REDIRECT(gpc_lookup_range, range, pfn, page);

	if (range->by == KVM_GPC_BY_HVA)
		return gpc_lookup_hva(range, pfn, page);

	if (!range->nr_pages)
		return gpc_is_private(range) ? -EACCES : 0;

	return gpc_lookup_gmem(range, pfn, page);
}

/*
 * Have an invalidation remove @map, also before the area is published, which
 * may take long.
 */
static void *gpc_keep_map(struct gpc_area *area, struct gpc_map *map)
{
	scoped_guard(spinlock, &area->gpc->kvm->gpc_lock) {
		/* An area that is looked up has been invalidated, or is new. */
		WARN_ON_ONCE(area->map);
		if (!area->stale) {
			area->map = map;
			return map->addr;
		}
	}

	gpc_unmap(map);
	return ERR_PTR(-EAGAIN);
}

/*
 * Look up the area's pages.  Return the address of the first page.  References
 * to the pages are held, on error to some of them.
 */
static void *gpc_lookup_and_map(struct gpc_area *area, kvm_pfn_t *pfn, struct page **page)
{
	unsigned int i, nr = 0;
	struct gpc_map *map;
	void *addr;
	int ret;

	for (i = 0; i < area->nr_ranges; i++) {
		ret = gpc_lookup_range(&area->range[i], pfn + nr, page + nr);
		if (ret)
			return ERR_PTR(ret);

		nr += area->range[i].nr_pages;
	}

	addr = gpc_direct_address(pfn, page, nr);
	if (addr)
		return addr;

	gpc_unmap_stale(area->gpc->kvm);

	map = gpc_map(pfn, page, nr);
	return IS_ERR(map) ? ERR_CAST(map) : gpc_keep_map(area, map);
}

/*
 * Let readers use @area, unless it was invalidated since its pages were looked
 * up.  An area that it replaces has no readers any more.
 */
static int gpc_publish(struct gpc_area *area, struct page **page, void *addr)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;
	unsigned long offset = offset_in_page(kvm_is_error_gpa(area->gpa) ? area->uhva : area->gpa);
	unsigned int i;

	lockdep_assert_held(&gpc->refresh_lock);

	guard(spinlock)(&gpc->kvm->gpc_lock);

	if (area->stale)
		return -EAGAIN;

	/*
	 * KVM writes to the pages without the MMU setting any dirty bit, so
	 * mark them dirty.  The area isn't stale, i.e. the pages are still
	 * mapped by userspace.  Before a page becomes clean, it is
	 * write-protected or unmapped, for which the notifier takes gpc_lock,
	 * so the filesystem finds it dirty then.  If it were marked later, it
	 * could be dirty when the filesystem doesn't expect it.  A page of a
	 * guest_memfd need not be mapped, but isn't written back, either.
	 */
	for (i = 0; i < area->nr_pages; i++) {
		if (page[i])
			kvm_set_page_dirty(page[i]);
	}

	if (gpc->area != area) {
		if (gpc->area)
			gpc_retire(gpc->area);

		WRITE_ONCE(gpc->area, area);
		WRITE_ONCE(gpc->len, area->len);
	}

	smp_store_release(&gpc->khva, addr + offset);	/* E, matches F */

	/*
	 * Users that have failed to lock the cache find it mapped from now on.
	 */
	if (area->failed)
		kvm_arch_gpc_retry(gpc->kvm);
	area->failed = false;
	return 0;
}

/* Publish an area that is being activated, and free the old area. */
static int gpc_publish_new(struct gpc_area *area, struct page **page, void *addr)
{
	struct gfn_to_pfn_cache *gpc = area->gpc;
	struct gpc_area *old;
	int ret;

	if (gpc_lock_refresh(gpc))
		return -EINTR;

	old = gpc->area;
	ret = gpc_publish(area, page, addr);
	mutex_unlock(&gpc->refresh_lock);

	if (!ret)
		kfree(old);

	return ret;
}

/*
 * If an invalidation has begun since the lookup, userspace may have provided
 * the pages, so start over.  Otherwise, users try again when a later
 * invalidation ends, which finds area->failed set, and when another refresh
 * succeeds.
 */
static int gpc_refresh_failed(struct gpc_area *area, int error)
{
	guard(spinlock)(&area->gpc->kvm->gpc_lock);

	if (error == -EINTR)
		return error;

	if (area->stale)
		return -EAGAIN;

	area->failed = true;
	return error;
}

/* Look up, map and publish the area.  Return -EAGAIN if it was invalidated. */
static int gpc_try_refresh(struct gpc_area *area)
{
	bool is_new = area != READ_ONCE(area->gpc->area);
	struct page *page[GPC_MAP_MAX] = {};
	kvm_pfn_t pfn[GPC_MAP_MAX];
	unsigned int i;
	void *addr;
	int ret;

	ret = gpc_begin_lookup(area);
	if (ret)
		return ret;

	addr = gpc_lookup_and_map(area, pfn, page);

	/*
	 * Put the references to the pages, which can then be migrated, swapped
	 * out etc.  MMU notifiers invalidate the area, and an area that was
	 * invalidated isn't published.  Publishing a new area may have to wait
	 * for another refresh.
	 */
	for (i = 0; i < area->nr_pages; i++)
		kvm_release_page_clean(page[i]);

	if (IS_ERR(addr))
		return gpc_refresh_failed(area, PTR_ERR(addr));

	/* Once published, a new area may be freed by another activation. */
	return is_new ? gpc_publish_new(area, page, addr) : gpc_publish(area, page, addr);
}

static int gpc_refresh_area(struct gpc_area *area)
{
	int ret;

	/* Pages are faulted in with the address space of the task. */
	if (WARN_ON_ONCE(current->mm != area->gpc->kvm->mm))
		return -EIO;

	/* Until the area is mapped, memslots must not be freed. */
	guard(srcu)(&area->gpc->kvm->srcu);

	while ((ret = gpc_try_refresh(area)) == -EAGAIN) {
		if (gpc_signal_pending(area->gpc))
			return -EINTR;

		cond_resched();
	}

	return ret;
}

static int gpc_refresh(struct gfn_to_pfn_cache *gpc)
{
	int ret = 0;

	/* See kvm_gpc_init_vcpu(). */
	if (gpc->vcpu)
		lockdep_assert_held(&gpc->vcpu->mutex);

	if (gpc_lock_refresh(gpc))
		return -EINTR;

	if (!gpc->area)
		ret = -ENXIO;
	else if (!READ_ONCE(gpc->khva))
		ret = gpc_refresh_area(gpc->area);

	mutex_unlock(&gpc->refresh_lock);
	return ret;
}

static int gpc_activate(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long uhva,
			unsigned long len)
{
	unsigned long offset = offset_in_page(kvm_is_error_gpa(gpa) ? uhva : gpa);
	unsigned int nr_pages = PAGE_ALIGN(offset + len) >> PAGE_SHIFT;
	struct gpc_area *area;
	int ret;

	if (!len || len > KVM_GPC_MAX_LEN)
		return -EINVAL;

	area = kmalloc_obj(*area, GFP_KERNEL_ACCOUNT);
	if (!area)
		return -ENOMEM;

	area->gpc = gpc;
	area->gpa = gpa;
	area->uhva = uhva;
	area->len = len;
	area->nr_pages = nr_pages;
	area->map = NULL;
	area->bound = false;
	area->failed = false;
	area->nr_ranges = 0;

	ret = gpc_refresh_area(area);
	if (ret) {
		scoped_guard(spinlock, &gpc->kvm->gpc_lock) {
			gpc_retire(area);
			/* No area is left that says so. */
			gpc->kvm->gpc_activation_failed = true;
		}
		kfree(area);
	}

	return ret;
}

/*
 * Guest use
 * =========
 *
 * The hardware that runs gpc->vcpu has the physical address of the area, and
 * isn't on any stack of readers.  gpc->used says that it may have the address.
 * An invalidation waits until the vCPU has left guest mode, and leaves a
 * request, without which the vCPU would enter guest mode with the old address.
 *
 *	vCPU					invalidation
 *
 *	held[nr] = gpc				gpc->khva = NULL
 *	smp_mb()		(A)		smp_mb()		(B)
 *	if (gpc->khva)				wait for readers	(D)
 *		used = true			if (used)		(K)
 *		hpa = the address			set request
 *	held[nr] = NULL		(C)		smp_mb()		(H)
 *						if (mode != OUTSIDE)
 *	give hpa to the hardware			IPI, wait
 *	mode = IN_GUEST_MODE			the page may go
 *	smp_mb()		(G)
 *	if (!request)
 *		hardware uses hpa
 *	mode = OUTSIDE_GUEST_MODE
 *	...
 *	used = false		(J)
 *
 * A and B, C and D: the vCPU takes the address as a reader, so either it finds
 * gpc->khva cleared, or the invalidation finds gpc->used set.
 *
 * G and H: at least one side sees the store of the other.  Either the vCPU
 * finds the request, or the invalidation finds the vCPU in guest mode and waits
 * until it has handled an interrupt, i.e. until the hardware is done.  G is in
 * vcpu_enter_guest(), H in kvm_vcpu_exiting_guest_mode().
 *
 * J matches K, release and acquire: if the invalidation finds gpc->used
 * cleared, the hardware is done.
 *
 * The vCPU clears the request before it calls kvm_gpc_use() again, so that a
 * later invalidation sets it anew.
 *
 * gpc->hpa_valid is cleared before the request is set, so the vCPU doesn't take
 * the address for valid once it has seen the request.
 *
 * An invalidation that finds the area unmapped by another one makes the request
 * and waits nevertheless, as the other one may still be waiting.
 *
 * kvm_gpc_is_used() isn't a reader.  gpc->used is set whenever gpc->hpa_valid
 * is, so that any invalidation makes the request, and the vCPU finds it, even
 * if gpc->hpa_valid was tested before.  gpc->khva doesn't tell whether the
 * address is valid: kvm_gpc_lock() may have mapped another page meanwhile.
 */

/* The physical address of a mapped area. */
static hpa_t gpc_hpa(const struct gpc_area *area, void *khva)
{
	if (area->map)
		return pfn_to_hpa(area->map->pfn) + offset_in_page(khva);

	return virt_to_phys(khva);
}

static int gpc_try_use(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len, hpa_t *hpa)
{
	bool is_bound = kvm_gpc_gpa(gpc) == gpa && kvm_gpc_len(gpc) == len;
	void *khva;
	int ret;

	ret = is_bound ? gpc_refresh(gpc) : gpc_activate(gpc, gpa, 0, len);
	if (ret)
		return ret;

	/* The area may have been invalidated again. */
	khva = gpc_enter(gpc);
	if (!khva)
		return -EAGAIN;

	WRITE_ONCE(gpc->used, true);
	gpc->used_gpa = gpa;
	*hpa = gpc_hpa(gpc->area, khva);
	WRITE_ONCE(gpc->hpa_valid, true);

	gpc_leave(gpc);
	return 0;
}

static int gpc_use(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len, hpa_t *hpa)
{
	int ret;

	do {
		ret = gpc_try_use(gpc, gpa, len, hpa);

		/* The memslot may be about to be moved. */
		if (ret == -ENOENT)
			ret = kvm_vcpu_wait_for_memslot(gpc->vcpu, gpa_to_gfn(gpa)) ?: -EAGAIN;
	} while (ret == -EAGAIN && !gpc_signal_pending(gpc));

	return ret == -EAGAIN ? -EINTR : ret;
}

int kvm_gpc_use(struct gfn_to_pfn_cache *gpc, gpa_t gpa, unsigned long len, hpa_t *hpa)
{
	int ret;

	might_sleep();
	lockdep_assert_held(&gpc->vcpu->mutex);
	lockdep_assert(srcu_read_lock_held(&gpc->kvm->srcu));

	/*
	 * The vCPU isn't in guest mode, and doesn't enter it with the old
	 * address, so replacing the area makes no request.
	 */
	kvm_gpc_unuse(gpc);

	if (WARN_ON_ONCE(kvm_is_error_gpa(gpa)) || offset_in_page(gpa) + len > PAGE_SIZE)
		ret = -EINVAL;
	else
		ret = gpc_use(gpc, gpa, len, hpa);

	/* The cache may still be bound to the previous area. */
	if (ret)
		kvm_gpc_deactivate(gpc);

	return ret;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_use);

void kvm_gpc_unuse(struct gfn_to_pfn_cache *gpc)
{
	WRITE_ONCE(gpc->hpa_valid, false);
	smp_store_release(&gpc->used, false);		/* J, matches K */
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_unuse);

/*
 * Interface
 * =========
 */

static noinline void *__kvm_gpc_lock(struct gfn_to_pfn_cache *gpc)
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

		/* The area has been invalidated again. */
	} while (!gpc_signal_pending(gpc));

	return ERR_PTR(-EINTR);
}

void *kvm_gpc_lock(struct gfn_to_pfn_cache *gpc)
{
	void *khva;

	might_sleep();

	khva = gpc_enter(gpc);
	return khva ? khva : __kvm_gpc_lock(gpc);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_lock);

void *kvm_gpc_trylock(struct gfn_to_pfn_cache *gpc)
{
	void *khva = gpc_enter(gpc);

	if (khva)
		return khva;

	return ERR_PTR(kvm_gpc_is_active(gpc) ? -EWOULDBLOCK : -ENXIO);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_trylock);

void kvm_gpc_unlock(struct gfn_to_pfn_cache *gpc)
{
	gpc_leave(gpc);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_unlock);

static noinline void gpc_mark_range_dirty(struct kvm *kvm, const struct gpc_range *range)
{
	unsigned int i;

	for (i = 0; i < range->nr_pages; i++)
		mark_page_dirty_in_slot(kvm, range->memslot, range->gfn + i);
}

/*
 * The memslots and their dirty bitmaps still exist, though they may not be
 * active any more, as kvm_gpc_invalidate_memslot() waits for readers.  So does
 * the replacement of gpc->area, before the old area is freed.
 */
void kvm_gpc_unlock_dirty(struct gfn_to_pfn_cache *gpc)
{
	const struct gpc_range *range = gpc->area->range;
	const struct gpc_range *end = range + gpc->area->nr_ranges;

	lockdep_assert(lock_is_held(&gpc_lockdep_map));

	for (; range < end; range++) {
		if (range->memslot && kvm_slot_dirty_track_enabled(range->memslot))
			gpc_mark_range_dirty(gpc->kvm, range);
	}

	gpc_leave(gpc);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_unlock_dirty);

/*
 * A change of memslots that is under way holds slots_lock, and waits for
 * kvm->srcu.
 */
int kvm_vcpu_wait_for_memslot(struct kvm_vcpu *vcpu, gfn_t gfn)
{
	struct kvm_memory_slot *slot;
	int ret;

	might_sleep();
	lockdep_assert_held(&vcpu->mutex);
	lockdep_assert(srcu_read_lock_held(&vcpu->kvm->srcu));

	/* Caches by guest physical address are in address space 0. */
	slot = gfn_to_memslot(vcpu->kvm, gfn);
	if (!slot || slot->flags & KVM_MEM_READONLY)
		return -ENOENT;

	if (!(slot->flags & KVM_MEMSLOT_INVALID))
		return 0;

	kvm_vcpu_srcu_read_unlock(vcpu);

	/* See gpc_wait_state(). */
	if (vcpu->wants_to_run)
		ret = mutex_lock_interruptible(&vcpu->kvm->slots_lock);
	else
		ret = mutex_lock_killable(&vcpu->kvm->slots_lock);
	if (!ret)
		mutex_unlock(&vcpu->kvm->slots_lock);

	kvm_vcpu_srcu_read_lock(vcpu);
	return ret;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_vcpu_wait_for_memslot);

void kvm_gpc_assert_usable(struct gfn_to_pfn_cache *gpc)
{
	if (!IS_ENABLED(CONFIG_PROVE_LOCKING) || IS_ENABLED(CONFIG_PREEMPT_RT))
		return;

	lockdep_assert_irqs_disabled();

	if (READ_ONCE(gpc->hpa_valid))
		return;

	/* An invalidation makes the request before it drops the lock. */
	guard(spinlock)(&gpc->kvm->gpc_lock);
	WARN_ON_ONCE(!kvm_test_request(gpc->req, gpc->vcpu));
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_assert_usable);

/*
 * An invalidation doesn't wait until the vCPU has called this, and can't mark
 * the page itself, as the dirty ring is the vCPU's.
 */
void kvm_gpc_mark_used_dirty(struct gfn_to_pfn_cache *gpc)
{
	lockdep_assert_held(&gpc->vcpu->mutex);
	lockdep_assert(srcu_read_lock_held(&gpc->kvm->srcu));

	/*
	 * The number is set before the ioctl that enables logging returns.  So
	 * a write that isn't marked here precedes the copy of the page that
	 * userspace makes after that.
	 */
	if (!gpc->used || !atomic_read(&gpc->kvm->nr_memslots_dirty_logging))
		return;

	/* Look up the memslot only if the area doesn't have it any more. */
	if (gpc_enter(gpc))
		kvm_gpc_unlock_dirty(gpc);
	else
		mark_page_dirty(gpc->kvm, gpa_to_gfn(gpc->used_gpa));
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_mark_used_dirty);

void kvm_gpc_init(struct gfn_to_pfn_cache *gpc, struct kvm *kvm)
{
	mutex_init(&gpc->refresh_lock);
	gpc->kvm = kvm;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_init);

void kvm_gpc_init_killable(struct gfn_to_pfn_cache *gpc, struct kvm *kvm)
{
	kvm_gpc_init(gpc, kvm);
	gpc->killable = true;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_init_killable);

void kvm_gpc_init_vcpu(struct gfn_to_pfn_cache *gpc, struct kvm_vcpu *vcpu, unsigned int req)
{
	/* A request that isn't recorded doesn't keep the vCPU from entering. */
	WARN_ON_ONCE(req & KVM_REQUEST_NO_ACTION);

	kvm_gpc_init(gpc, vcpu->kvm);
	gpc->vcpu = vcpu;
	gpc->req = req;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_init_vcpu);

gpa_t kvm_gpc_gpa(const struct gfn_to_pfn_cache *gpc)
{
	struct gpc_area *area = READ_ONCE(gpc->area);

	return area ? area->gpa : INVALID_GPA;
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_gpa);

unsigned long kvm_gpc_hva(const struct gfn_to_pfn_cache *gpc)
{
	struct gpc_area *area = READ_ONCE(gpc->area);

	return area ? area->uhva : 0;
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
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_activate);

int kvm_gpc_activate_hva(struct gfn_to_pfn_cache *gpc, unsigned long uhva, unsigned long len)
{
	if (!access_ok((void __user *)uhva, len))
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

	scoped_guard(spinlock, &gpc->kvm->gpc_lock) {
		gpc_retire(area);
		WRITE_ONCE(gpc->area, NULL);
		WRITE_ONCE(gpc->len, 0);
	}

	kfree(area);
	gpc_unmap_stale(gpc->kvm);
}
EXPORT_SYMBOL_FOR_KVM_INTERNAL(kvm_gpc_deactivate);

void kvm_gpc_init_vm(struct kvm *kvm)
{
	spin_lock_init(&kvm->gpc_lock);
	kvm->gpc_tree[KVM_GPC_BY_HVA] = RB_ROOT_CACHED;
	kvm->gpc_tree[KVM_GPC_BY_GFN] = RB_ROOT_CACHED;
	init_waitqueue_head(&kvm->gpc_invalidations.wait);
	init_llist_head(&kvm->gpc_stale_maps);
	INIT_WORK(&kvm->gpc_unmap_work, gpc_unmap_stale_fn);
}

/* All caches are inactive. */
void kvm_gpc_destroy_vm(struct kvm *kvm)
{
	flush_work(&kvm->gpc_unmap_work);
	WARN_ON_ONCE(!llist_empty(&kvm->gpc_stale_maps));
}

#ifdef CONFIG_KVM_GPC_KUNIT_TEST
#include "pfncache_kunit.c"
#endif
