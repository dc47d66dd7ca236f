// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of KVM's gfn-to-pfn cache: the contract that
 * include/linux/kvm_gpc.h documents, including each error of each function.
 * Userspace can neither distinguish these errors nor cause all of them.  The
 * second suite tests pfncache_map.c, i.e. how page frames are mapped, with
 * pages of the kernel.
 *
 * Included by pfncache.c.  There is no VM, only a struct kvm with the members
 * that the cache reads.  It has two memslots of two pages each, which are
 * contiguous in guest memory, but are in reverse order and not contiguous in
 * userspace.
 */
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/hrtimer.h>
#include <linux/io.h>
#include <linux/irq_work.h>
#include <linux/kthread.h>
#include <linux/mman.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/unaligned.h>
#include <linux/unroll.h>
#include <linux/vmalloc.h>
#include <linux/workqueue.h>

#define GPC_GFN		0x100ul
#define GPC_GPA		gfn_to_gpa(GPC_GFN)
#define GPC_PAGES	2
#define GPC_LEN		64
/* The start of the second memslot, and an address without a memslot. */
#define GPC_GFN2	(GPC_GFN + GPC_PAGES)
#define GPC_GPA2	gfn_to_gpa(GPC_GFN2)
#define GPC_NO_GPA	gfn_to_gpa(GPC_GFN2 + GPC_PAGES)
/* Scattered frames are every other page. */
#define GPC_MAP_TEST_LEN	(2 * GPC_MAP_MAX * PAGE_SIZE)
/* A hundred times the instructions that locking and unlocking a cache takes. */
#define GPC_TEST_INTERRUPTS	5000
/* The most iterations by which one of both sides is delayed. */
#define GPC_TEST_MAX_DELAY	4096
#define GPC_TEST_LINES		8
#define GPC_TEST_COLD		SZ_1M
/* TLBs have these lines in different sets. */
#define GPC_TEST_STRIDE		(GPC_TEST_COLD + PAGE_SIZE)
/* Nothing handles this request. */
#define GPC_TEST_REQ		KVM_ARCH_REQ(0)
/* How long a kick takes to make the vCPU leave guest mode, in milliseconds. */
#define GPC_TEST_KICK_MS	50

struct gpc_test {
	struct kvm *kvm;
	struct kvm_memory_slot slot;
	struct kvm_memory_slot slot2;
	struct gfn_to_pfn_cache gpc;
	struct gfn_to_pfn_cache gpc2;
	unsigned long uaddr;
	unsigned long uaddr2;
	unsigned long dirty_bitmap;
	unsigned long dirty_bitmap2;
	int lookups;
	struct delayed_work invalidate_end;
	struct completion locker_done;
	int locker_error;
	struct irq_work irq_work;
	bool irq_context;
	void *irq_khva;
	void *irq_khva2;
	struct work_struct invalidate;
	int invalidations;
	unsigned int round;
	unsigned int round_done;
	int delay;
	u8 *cold;
	unsigned long cold_reader, cold_inv;
	unsigned int reads;
	bool gone;
	unsigned int reads_of_gone;
	gpa_t scattered;
	struct hrtimer timer;
	bool timer_fired;
	struct kvm_vcpu *vcpu;
	bool unused;
	hpa_t hpa;
	bool in_guest;
	bool kicked;
	bool timed_out;
	unsigned int uses_of_gone;
	struct completion vcpu_done;
	struct work_struct move_memslot;
	struct rcu_head rcu;
	struct completion memslots_locked;
	struct completion srcu_dropped;
	/* All pages of the mapping. */
	struct page *pinned[2 * GPC_PAGES + 1];
	int nr_pinned;
};

/* Stubs of functions that fail. */
static int gpc_lookup_poisoned(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	return gpc_pfn_to_errno(KVM_PFN_ERR_HWPOISON);
}

static struct gpc_map *gpc_map_fails(const kvm_pfn_t *pfn, struct page *const *page,
				     unsigned int nr)
{
	return ERR_PTR(-ENOMEM);
}

static void gpc_test_set_memslots(struct gpc_test *t, bool first, bool second)
{
	struct kvm_memslots *slots = &t->kvm->__memslots[0][0];
	struct rb_node **link = &slots->gfn_tree.rb_node, *parent = NULL;
	struct kvm_memory_slot *slot[] = { first ? &t->slot : NULL, second ? &t->slot2 : NULL };
	int i;

	slots->gfn_tree = RB_ROOT;
	for (i = 0; i < ARRAY_SIZE(slot); i++) {
		struct rb_node *node;

		if (!slot[i])
			continue;

		node = &slot[i]->gfn_node[slots->node_idx];
		rb_link_node(node, parent, link);
		rb_insert_color(node, &slots->gfn_tree);
		link = &node->rb_right;
		parent = node;
	}
	atomic_long_set(&slots->last_used_slot, 0);
}

static void gpc_test_invalidate_memslot(struct gpc_test *t, struct kvm_memory_slot *slot)
{
	mutex_lock(&t->kvm->slots_lock);
	kvm_gpc_invalidate_memslot(t->kvm, slot);
	mutex_unlock(&t->kvm->slots_lock);
}

static void gpc_test_set_memslot(struct gpc_test *t, bool present)
{
	gpc_test_set_memslots(t, present, true);
	gpc_test_invalidate_memslot(t, &t->slot);
}

static void gpc_test_invalidate_start(struct gpc_test *t, int page)
{
	unsigned long uaddr = t->uaddr + page * PAGE_SIZE;

	kvm_gpc_invalidate_start(t->kvm, uaddr, uaddr + PAGE_SIZE);
}

static void gpc_test_invalidate_end(struct gpc_test *t, int page)
{
	unsigned long uaddr = t->uaddr + page * PAGE_SIZE;

	kvm_gpc_invalidate_end(t->kvm, uaddr, uaddr + PAGE_SIZE);
}

static void gpc_test_invalidate_end_fn(struct work_struct *work)
{
	gpc_test_invalidate_end(container_of(work, struct gpc_test, invalidate_end.work), 0);
}

static void gpc_test_invalidate(struct gpc_test *t)
{
	unsigned long end = t->uaddr + GPC_PAGES * PAGE_SIZE;

	kvm_gpc_invalidate_start(t->kvm, t->uaddr, end);
	kvm_gpc_invalidate_end(t->kvm, t->uaddr, end);
}

static int gpc_test_lock_error(struct gfn_to_pfn_cache *gpc)
{
	void *p = kvm_gpc_lock(gpc);

	if (IS_ERR(p))
		return PTR_ERR(p);

	kvm_gpc_unlock(gpc);
	return 0;
}

static int gpc_test_trylock_error(struct gfn_to_pfn_cache *gpc)
{
	void *p = kvm_gpc_trylock(gpc);

	if (IS_ERR(p))
		return PTR_ERR(p);

	kvm_gpc_unlock(gpc);
	return 0;
}

/* Simulate a fatal signal for the current task. */
static void gpc_test_set_killed(bool killed)
{
	struct sighand_struct *sighand = unrcu_pointer(current->sighand);

	spin_lock_irq(&sighand->siglock);
	if (killed) {
		sigaddset(&current->pending.signal, SIGKILL);
		set_thread_flag(TIF_SIGPENDING);
	} else {
		sigdelset(&current->pending.signal, SIGKILL);
		recalc_sigpending();
	}
	spin_unlock_irq(&sighand->siglock);
}

/* Whether a refresh has to wait: with a fatal signal pending, it fails then. */
static bool gpc_test_has_to_wait(struct gfn_to_pfn_cache *gpc)
{
	int error;

	gpc_test_set_killed(true);
	error = gpc_test_lock_error(gpc);
	gpc_test_set_killed(false);

	return error == -EINTR;
}

/*
 * kvm->srcu isn't held: the VM has no other users, and a test ends in another
 * task than it began in.
 */
static int gpc_test_init(struct kunit *test)
{
	struct gpc_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	int i, page = 0;

	KUNIT_ASSERT_NOT_NULL(test, t);
	t->kvm = kunit_kzalloc(test, sizeof(*t->kvm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, t->kvm);
	KUNIT_ASSERT_EQ(test, kunit_attach_mm(), 0);

	t->uaddr2 = kunit_vm_mmap(test, NULL, 0, (2 * GPC_PAGES + 1) * PAGE_SIZE,
				  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_FALSE(test, !t->uaddr2 || IS_ERR_VALUE(t->uaddr2));
	t->uaddr = t->uaddr2 + (GPC_PAGES + 1) * PAGE_SIZE;

	t->kvm->mm = current->mm;
	mutex_init(&t->kvm->slots_lock);
	kvm_gpc_init_vm(t->kvm);
	INIT_DELAYED_WORK(&t->invalidate_end, gpc_test_invalidate_end_fn);
	KUNIT_ASSERT_EQ(test, init_srcu_struct(&t->kvm->srcu), 0);
	test->priv = t;

	t->slot.base_gfn = GPC_GFN;
	t->slot.npages = GPC_PAGES;
	t->slot.userspace_addr = t->uaddr;
	t->slot2.base_gfn = GPC_GFN2;
	t->slot2.npages = GPC_PAGES;
	t->slot2.userspace_addr = t->uaddr2;
	rcu_assign_pointer(t->kvm->memslots[0], &t->kvm->__memslots[0][0]);
	gpc_test_set_memslot(t, true);

	kvm_gpc_init(&t->gpc, t->kvm);
	kvm_gpc_init(&t->gpc2, t->kvm);

	/*
	 * Without an MMU notifier, the pages must not be migrated.  Neighbours
	 * that are faulted in one after the other may be contiguous.
	 */
	for (i = 0; i < ARRAY_SIZE(t->pinned); i++) {
		page = (page + 3) % ARRAY_SIZE(t->pinned);
		KUNIT_ASSERT_EQ(test, 1, pin_user_pages_fast(t->uaddr2 + page * PAGE_SIZE, 1,
							     FOLL_WRITE, &t->pinned[i]));
		t->nr_pinned++;
	}
	return 0;
}

static void gpc_test_exit(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	if (!t)
		return;

	kvm_gpc_unuse(&t->gpc);
	kvm_gpc_deactivate(&t->gpc);
	kvm_gpc_deactivate(&t->gpc2);
	vfree(t->cold);
	KUNIT_EXPECT_TRUE(test, RB_EMPTY_ROOT(&t->kvm->gpc_tree[KVM_GPC_BY_HVA].rb_root));
	KUNIT_EXPECT_TRUE(test, RB_EMPTY_ROOT(&t->kvm->gpc_tree[KVM_GPC_BY_GFN].rb_root));
	kvm_gpc_destroy_vm(t->kvm);
	cleanup_srcu_struct(&t->kvm->srcu);
	if (t->nr_pinned > 0)
		unpin_user_pages(t->pinned, t->nr_pinned);
}

static void gpc_test_activate(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), 0);
}

/*
 * The area at @gpa is mapped: the caller can write it and userspace read it,
 * and vice versa.
 */
static void gpc_test_expect_area(struct kunit *test, struct gfn_to_pfn_cache *gpc, gpa_t gpa)
{
	struct gpc_test *t = test->priv;
	u32 __user *uptr = (u32 __user *)(unsigned long)(t->uaddr + gpa - GPC_GPA);
	u32 val;
	u32 *p;

	p = kvm_gpc_lock(gpc);
	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	WRITE_ONCE(*p, 0x600dcafe);
	kvm_gpc_unlock_dirty(gpc);
	KUNIT_EXPECT_EQ(test, offset_in_page(p), offset_in_page(gpa));

	KUNIT_EXPECT_EQ(test, copy_from_user(&val, uptr, sizeof(val)), 0);
	KUNIT_EXPECT_EQ(test, val, 0x600dcafe);

	val = 0xf00d;
	KUNIT_EXPECT_EQ(test, copy_to_user(uptr, &val, sizeof(val)), 0);
	p = kvm_gpc_trylock(gpc);
	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	val = READ_ONCE(*p);
	kvm_gpc_unlock(gpc);
	KUNIT_EXPECT_EQ(test, val, 0xf00d);
}

static void gpc_test_shared_with_userspace(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	gpa_t last = GPC_GPA + GPC_PAGES * PAGE_SIZE - GPC_LEN;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	/* Another offset, another page, and an unaligned address. */
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + GPC_LEN, GPC_LEN), 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + GPC_LEN);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, last, GPC_LEN), 0);
	gpc_test_expect_area(test, &t->gpc, last);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + 1, GPC_LEN), 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + 1);
}

static void gpc_test_where_it_is(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), INVALID_GPA);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), 0);

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + 4, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), GPC_GPA + 4);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), 0);

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr + 8, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), INVALID_GPA);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), t->uaddr + 8);
	KUNIT_EXPECT_EQ(test, kvm_gpc_len(&t->gpc), GPC_LEN);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + 8);

	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_EQ(test, kvm_gpc_len(&t->gpc), 0);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), INVALID_GPA);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), 0);

	/* Deactivating an inactive cache does nothing. */
	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
}

static void gpc_test_not_active(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENXIO);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -ENXIO);

	gpc_test_activate(test);
	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENXIO);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -ENXIO);
}

static void gpc_test_length(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long end = t->uaddr + PAGE_SIZE;

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, KVM_GPC_MAX_LEN + 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, -1ul), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + 1, -1ul), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr, KVM_GPC_MAX_LEN + 1),
			-EINVAL);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, end - 1, 1), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, KVM_GPC_MAX_LEN), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + PAGE_SIZE - 1, KVM_GPC_MAX_LEN),
			0);
}

static void gpc_test_bad_hva(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, PAGE_OFFSET, GPC_LEN), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, (unsigned long)t, 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, -PAGE_SIZE, GPC_LEN), -EINVAL);
}

static void gpc_test_no_memslot(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);

	gpc_test_activate(test);
	gpc_test_set_memslot(t, false);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_active(&t->gpc));

	gpc_test_set_memslot(t, true);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

static void gpc_test_readonly_memslot(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	t->slot.flags = KVM_MEM_READONLY;
	gpc_test_set_memslot(t, true);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN), -ENOENT);
}

static void gpc_test_readonly_memory(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long uaddr;

	uaddr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(uaddr));
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, uaddr, GPC_LEN), -EFAULT);
}

/* Memory that has been unmapped, and an address that was never mapped. */
static void gpc_test_no_memory(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc2, t->uaddr, GPC_LEN), 0);

	KUNIT_ASSERT_EQ(test, vm_munmap(t->uaddr, GPC_PAGES * PAGE_SIZE), 0);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -EFAULT);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc2), -EFAULT);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc2, t->uaddr, GPC_LEN), -EFAULT);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_active(&t->gpc2));

}

static void gpc_test_poison(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	kunit_activate_static_stub(test, gpc_lookup_range, gpc_lookup_poisoned);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -EHWPOISON);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN), -EHWPOISON);
	kunit_deactivate_static_stub(test, gpc_lookup_range);

	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* An area across two pages whose frames aren't contiguous. */
static gpa_t gpc_test_scattered_area(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	gpa_t gpa;
	void *p;

	for (gpa = GPC_GPA + PAGE_SIZE - 10; gpa < GPC_NO_GPA - PAGE_SIZE; gpa += PAGE_SIZE) {
		KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, gpa, GPC_LEN), 0);
		p = kvm_gpc_lock(&t->gpc);
		KUNIT_ASSERT_FALSE(test, IS_ERR(p));
		kvm_gpc_unlock(&t->gpc);
		if (is_vmalloc_addr(p))
			return gpa;
	}

	KUNIT_FAIL_AND_ABORT(test, "All pages follow one another");
	return INVALID_GPA;
}

static void gpc_test_map_fails(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	gpa_t gpa = gpc_test_scattered_area(test);

	gpc_test_activate(test);
	kunit_activate_static_stub(test, gpc_map, gpc_map_fails);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, gpa, GPC_LEN), -ENOMEM);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc2));

	/* The cache stays bound to its area. */
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, gpa, GPC_LEN), -ENOMEM);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), 0);
	kunit_deactivate_static_stub(test, gpc_map);

	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* Untouched pages have to be faulted in, which a fatal signal prevents. */
static void gpc_test_fatal_signal(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int lock_error, activate_error;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, vm_munmap(t->uaddr, 2 * PAGE_SIZE), 0);
	KUNIT_ASSERT_EQ(test, vm_mmap(NULL, t->uaddr, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0), t->uaddr);
	gpc_test_invalidate(t);

	gpc_test_set_killed(true);
	lock_error = gpc_test_lock_error(&t->gpc);
	activate_error = kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN);
	gpc_test_set_killed(false);

	KUNIT_EXPECT_EQ(test, lock_error, -EINTR);
	KUNIT_EXPECT_EQ(test, activate_error, -EINTR);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* A fatal signal ends the wait for an invalidation as well. */
static void gpc_test_fatal_signal_wait(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int activate_error;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	/*
	 * End the invalidation after a while, so that the test fails instead of
	 * hanging.
	 */
	gpc_test_invalidate_start(t, 0);
	schedule_delayed_work(&t->invalidate_end, HZ);

	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	gpc_test_set_killed(true);
	activate_error = kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN);
	gpc_test_set_killed(false);
	KUNIT_EXPECT_EQ(test, activate_error, -EINTR);

	flush_delayed_work(&t->invalidate_end);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* A refresh waits for invalidations that overlap its own area only. */
static void gpc_test_wait_for_own(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	gpc_test_expect_area(test, &t->gpc2, GPC_GPA + PAGE_SIZE);

	gpc_test_invalidate_start(t, 0);
	gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_end(t, 0);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc2));

	/* Of two invalidations of the same range, one is left. */
	gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc2));
	gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc2));
}

/*
 * Invalidations that have only their first or only their last page in common
 * are told apart: the end of one isn't mistaken for the end of the other.
 */
static void gpc_test_expect_told_apart(struct kunit *test, bool long_first, int page)
{
	struct gpc_test *t = test->priv;
	unsigned long end = t->uaddr + GPC_PAGES * PAGE_SIZE;

	if (long_first)
		kvm_gpc_invalidate_start(t->kvm, t->uaddr, end);
	gpc_test_invalidate_start(t, page);
	if (!long_first)
		kvm_gpc_invalidate_start(t->kvm, t->uaddr, end);

	/* The short one ends first ... */
	gpc_test_invalidate_end(t, page);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc2));

	/* ... or the long one. */
	gpc_test_invalidate_start(t, page);
	kvm_gpc_invalidate_end(t->kvm, t->uaddr, end);
	KUNIT_EXPECT_EQ(test, gpc_test_has_to_wait(&t->gpc), page == 0);
	KUNIT_EXPECT_EQ(test, gpc_test_has_to_wait(&t->gpc2), page == 1);

	gpc_test_invalidate_end(t, page);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc2));
}

static void gpc_test_told_apart(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int page;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	/* A refresh that need not wait finds its page without a fault. */
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	gpc_test_expect_area(test, &t->gpc2, GPC_GPA + PAGE_SIZE);

	for (page = 0; page < GPC_PAGES; page++) {
		gpc_test_expect_told_apart(test, false, page);
		gpc_test_expect_told_apart(test, true, page);
	}
}

/* A waiting refresh is woken when the invalidation ends. */
static int gpc_test_locker(void *data)
{
	struct gpc_test *t = data;

	kthread_use_mm(t->kvm->mm);
	t->locker_error = gpc_test_lock_error(&t->gpc);
	kthread_unuse_mm(t->kvm->mm);
	complete(&t->locker_done);
	return 0;
}

/* The task has begun to wait for an invalidation when this returns. */
static void gpc_test_start_locker(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct task_struct *locker;

	init_completion(&t->locker_done);
	locker = kthread_run(gpc_test_locker, t, "gpc_test_locker");
	KUNIT_ASSERT_FALSE(test, IS_ERR(locker));
	while (!wq_has_sleeper(&t->kvm->gpc_invalidations.wait) &&
	       !completion_done(&t->locker_done))
		schedule_timeout_uninterruptible(1);
}

static void gpc_test_wakes_up(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	gpc_test_invalidate_start(t, 0);
	gpc_test_start_locker(test);

	/* Another invalidation doesn't wake it. */
	gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_FALSE(test, wait_for_completion_timeout(&t->locker_done, HZ / 20));

	gpc_test_invalidate_end(t, 0);
	wait_for_completion(&t->locker_done);
	KUNIT_EXPECT_EQ(test, t->locker_error, 0);
}

/* As many invalidations as there is room for: each delays its own area only. */
static void gpc_test_many_invalidations(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int room = ARRAY_SIZE(t->kvm->gpc_invalidations.range) - 1;
	int i;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	for (i = 0; i < room; i++)
		gpc_test_invalidate_start(t, 1);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));
	gpc_test_invalidate_start(t, 0);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	gpc_test_invalidate_end(t, 0);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));

	for (i = 0; i < room; i++)
		gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_EQ(test, t->kvm->gpc_invalidations.nr, 0);
	KUNIT_EXPECT_EQ(test, t->kvm->gpc_invalidations.nr_anywhere, 0);
}

/* More invalidations than there is room for: all are counted, and all end. */
static void gpc_test_no_room(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int room = ARRAY_SIZE(t->kvm->gpc_invalidations.range);
	int i;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	for (i = 0; i < room; i++)
		gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_start(t, 0);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));

	for (i = 0; i < room; i++)
		gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));

	gpc_test_invalidate_end(t, 0);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));
	KUNIT_EXPECT_EQ(test, t->kvm->gpc_invalidations.nr, 0);
	KUNIT_EXPECT_EQ(test, t->kvm->gpc_invalidations.nr_anywhere, 0);
}

/* Call the real gpc_lookup_range() while it is redirected to @stub. */
static int gpc_lookup_unstubbed(const struct gpc_range *range, kvm_pfn_t *pfn,
				struct page **page, typeof(gpc_lookup_range) *stub)
{
	struct kunit *test = kunit_get_current_test();
	int ret;

	kunit_deactivate_static_stub(test, gpc_lookup_range);
	ret = gpc_lookup_range(range, pfn, page);
	kunit_activate_static_stub(test, gpc_lookup_range, *stub);
	return ret;
}

/* Pages that are invalidated during the lookup are looked up again. */
static int gpc_lookup_too_late(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	struct gpc_test *t = kunit_get_current_test()->priv;
	int ret = gpc_lookup_unstubbed(range, pfn, page, gpc_lookup_too_late);

	if (!t->lookups++)
		gpc_test_invalidate(t);

	return ret;
}

static void gpc_test_retry(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	kunit_activate_static_stub(test, gpc_lookup_range, gpc_lookup_too_late);
	gpc_test_activate(test);
	KUNIT_EXPECT_EQ(test, t->lookups, 2);

	t->lookups = 0;
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), 0);
	KUNIT_EXPECT_EQ(test, t->lookups, 2);
	kunit_deactivate_static_stub(test, gpc_lookup_range);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
static void gpc_test_set_private(struct gpc_test *t, gfn_t gfn, bool private)
{
	void *entry = private ? xa_mk_value(KVM_MEMORY_ATTRIBUTE_PRIVATE) : NULL;

	kvm_gpc_invalidate_gfn_start(t->kvm, gfn, gfn + 1);
	xa_store(&t->kvm->mem_attr_array, gfn, entry, GFP_KERNEL);
	kvm_gpc_invalidate_gfn_end(t->kvm, gfn, gfn + 1);
}

static void gpc_test_use_private_mem(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	t->kvm->arch.has_private_mem = true;
	xa_init(&t->kvm->mem_attr_array);
}

/* Make the page private once the lookup has tested it. */
static int gpc_lookup_and_convert(const struct gpc_range *range, kvm_pfn_t *pfn,
				  struct page **page)
{
	struct gpc_test *t = kunit_get_current_test()->priv;
	int ret = gpc_lookup_unstubbed(range, pfn, page, gpc_lookup_and_convert);

	if (!t->lookups++)
		gpc_test_set_private(t, range->node.start, true);

	return ret;
}

static void gpc_test_becomes_private(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_use_private_mem(test);
	kunit_activate_static_stub(test, gpc_lookup_range, gpc_lookup_and_convert);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), -EACCES);
	/* By frame number, by address, and by frame number again. */
	KUNIT_EXPECT_EQ(test, t->lookups, 3);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_TRUE(test, t->kvm->gpc_activation_failed);

	/* And one that is mapped. */
	gpc_test_set_private(t, GPC_GFN, false);
	KUNIT_EXPECT_FALSE(test, t->kvm->gpc_activation_failed);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), 0);
	t->lookups = 0;
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -EACCES);
	KUNIT_EXPECT_EQ(test, t->lookups, 3);
	kunit_deactivate_static_stub(test, gpc_lookup_range);

	gpc_test_set_private(t, GPC_GFN, false);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	xa_destroy(&t->kvm->mem_attr_array);
}

/* The page becomes private while a refresh waits, before the lookup. */
static void gpc_test_private_before_lookup(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_use_private_mem(test);
	gpc_test_activate(test);

	gpc_test_invalidate_start(t, 0);
	gpc_test_start_locker(test);
	gpc_test_set_private(t, GPC_GFN, true);
	gpc_test_invalidate_end(t, 0);
	wait_for_completion(&t->locker_done);
	KUNIT_EXPECT_EQ(test, t->locker_error, -EACCES);

	gpc_test_set_private(t, GPC_GFN, false);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	xa_destroy(&t->kvm->mem_attr_array);
}

/* A refresh waits for changes of its own page, and for no other. */
static void gpc_test_wait_for_own_gfn(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_use_private_mem(test);
	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	kvm_gpc_invalidate_gfn_start(t->kvm, GPC_GFN + 1, GPC_GFN + GPC_PAGES);
	KUNIT_EXPECT_NOT_NULL(test, t->gpc.khva);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));

	kvm_gpc_invalidate_gfn_start(t->kvm, GPC_GFN, GPC_GFN + 1);
	KUNIT_EXPECT_NULL(test, t->gpc.khva);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	kvm_gpc_invalidate_gfn_end(t->kvm, GPC_GFN, GPC_GFN + 1);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));

	kvm_gpc_invalidate_gfn_end(t->kvm, GPC_GFN + 1, GPC_GFN + GPC_PAGES);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}
#endif

/* Addresses and frame numbers are told apart, also if they are the same. */
static void gpc_test_gfn_is_no_address(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	gfn_t gfn = t->uaddr, end = gfn + PAGE_SIZE;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	gpc_test_invalidate_start(t, 0);
	kvm_gpc_invalidate_gfn_start(t->kvm, gfn, end);
	kvm_gpc_invalidate_gfn_end(t->kvm, gfn, end);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	gpc_test_invalidate_end(t, 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	kvm_gpc_invalidate_gfn_start(t->kvm, gfn, end);
	KUNIT_EXPECT_NOT_NULL(test, t->gpc.khva);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_FALSE(test, gpc_test_has_to_wait(&t->gpc));
	kvm_gpc_invalidate_gfn_end(t->kvm, gfn, end);
}

/* While a new area is looked up, the old area is refreshed as usual. */
static int gpc_lookup_and_lock(const struct gpc_range *range, kvm_pfn_t *pfn, struct page **page)
{
	struct gpc_test *t = kunit_get_current_test()->priv;

	if (!t->lookups++) {
		gpc_test_invalidate_start(t, 0);
		gpc_test_invalidate_end(t, 0);
		t->locker_error = gpc_test_lock_error(&t->gpc);
	}

	return gpc_lookup_unstubbed(range, pfn, page, gpc_lookup_and_lock);
}

/*
 * Activate an area in the second page, with @lookup called for its page and for
 * the page of another area.
 */
static void gpc_test_during_activation(struct kunit *test,
				       typeof(gpc_lookup_range) *lookup)
{
	struct gpc_test *t = test->priv;

	kunit_activate_static_stub(test, gpc_lookup_range, *lookup);
	t->locker_error = -EINPROGRESS;
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	kunit_deactivate_static_stub(test, gpc_lookup_range);

	KUNIT_EXPECT_EQ(test, t->lookups, 2);
	KUNIT_EXPECT_EQ(test, t->locker_error, 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + PAGE_SIZE);
}

static void gpc_test_refresh_during_activation(struct kunit *test)
{
	gpc_test_activate(test);
	gpc_test_during_activation(test, gpc_lookup_and_lock);
}

/*
 * Concurrent activations don't wait for each other: the last one to map its
 * area determines the area.
 */
static int gpc_lookup_and_activate(const struct gpc_range *range, kvm_pfn_t *pfn,
				   struct page **page)
{
	struct gpc_test *t = kunit_get_current_test()->priv;

	if (!t->lookups++)
		t->locker_error = kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN);

	return gpc_lookup_unstubbed(range, pfn, page, gpc_lookup_and_activate);
}

static void gpc_test_activation_during_activation(struct kunit *test)
{
	gpc_test_during_activation(test, gpc_lookup_and_activate);
}

static void gpc_test_trylock_stale(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* An invalidation elsewhere leaves the cache mapped. */
static void gpc_test_invalidate_elsewhere(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_end(t, 1);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc2), -EWOULDBLOCK);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_trylock(&t->gpc)));
	kvm_gpc_unlock(&t->gpc);
}

/* A change of another memslot leaves the cache mapped. */
static void gpc_test_memslot_elsewhere(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct kvm_memory_slot alias = {
		.base_gfn = GPC_GFN2 + GPC_PAGES,
		.npages = GPC_PAGES,
		.userspace_addr = t->slot.userspace_addr,
	};
	int error;

	gpc_test_activate(test);
	gpc_test_invalidate_memslot(t, &alias);
	gpc_test_invalidate_memslot(t, &t->slot2);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), 0);

	/* An area by HVA has no memslot. */
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc2, t->uaddr, GPC_LEN), 0);
	gpc_test_set_memslot(t, true);
	error = gpc_test_trylock_error(&t->gpc2);
	KUNIT_EXPECT_EQ(test, error, 0);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
}

/*
 * On error, an active cache keeps its area, and an inactive cache stays
 * inactive.
 */
static void gpc_test_all_or_nothing(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENXIO);

	gpc_test_activate(test);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, PAGE_OFFSET, GPC_LEN), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), GPC_GPA);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), 0);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr + 8, GPC_LEN), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), t->uaddr + 8);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + 8);
}

/* Where userspace has the memory at @gpa. */
static char __user *gpc_test_uptr(struct gpc_test *t, gpa_t gpa)
{
	unsigned long uaddr = gpa < GPC_GPA2 ? t->uaddr + (gpa - GPC_GPA) :
					       t->uaddr2 + (gpa - GPC_GPA2);

	return (char __user *)uaddr;
}

/*
 * Each byte of the area is userspace's byte of the same guest physical address.
 */
static void gpc_test_expect_bytes(struct kunit *test, gpa_t gpa, unsigned long len)
{
	struct gpc_test *t = test->priv;
	unsigned long i;
	char byte;
	u8 *p;

	p = kvm_gpc_lock(&t->gpc);
	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	for (i = 0; i < len; i++)
		WRITE_ONCE(p[i], (gpa + i) * 31 >> 3);
	kvm_gpc_unlock(&t->gpc);

	for (i = 0; i < len; i++) {
		if (get_user(byte, gpc_test_uptr(t, gpa + i)) ||
		    (u8)byte != (u8)((gpa + i) * 31 >> 3))
			break;
	}
	KUNIT_EXPECT_EQ(test, i, len);
}

static void gpc_test_several_pages(struct kunit *test)
{
	static const unsigned long lens[] = {
		1, 2, 47, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE, KVM_GPC_MAX_LEN,
	};
	static const unsigned long offsets[] = {
		0, 1, PAGE_SIZE / 2, PAGE_SIZE - 2, PAGE_SIZE - 1, PAGE_SIZE, 2 * PAGE_SIZE - 1,
	};
	struct gpc_test *t = test->priv;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			if (offsets[j] + lens[i] > 2 * GPC_PAGES * PAGE_SIZE)
				continue;

			KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + offsets[j],
							       lens[i]), 0);
			gpc_test_expect_bytes(test, GPC_GPA + offsets[j], lens[i]);

			/* Again, without a fault. */
			gpc_test_invalidate(t);
			gpc_test_expect_bytes(test, GPC_GPA + offsets[j], lens[i]);
		}
	}

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr + PAGE_SIZE - 1, PAGE_SIZE),
			0);
	gpc_test_expect_bytes(test, GPC_GPA + PAGE_SIZE - 1, PAGE_SIZE);
}

/* An invalidation of any page or memslot of an area unmaps the whole area. */
static void gpc_test_several_pages_invalidated(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long end = t->uaddr2 + PAGE_SIZE;
	gpa_t gpa = GPC_GPA + PAGE_SIZE - 1;

	/*
	 * The second page of the first memslot, the first page of the second
	 * memslot.
	 */
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, gpa, PAGE_SIZE + 2), 0);

	gpc_test_invalidate_start(t, 1);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	gpc_test_invalidate_end(t, 1);
	gpc_test_expect_bytes(test, gpa, PAGE_SIZE + 2);

	kvm_gpc_invalidate_start(t->kvm, t->uaddr2, end);
	KUNIT_EXPECT_TRUE(test, gpc_test_has_to_wait(&t->gpc));
	kvm_gpc_invalidate_end(t->kvm, t->uaddr2, end);
	gpc_test_expect_bytes(test, gpa, PAGE_SIZE + 2);

	/* The pages between and behind the memslots aren't part of the area. */
	kvm_gpc_invalidate_start(t->kvm, end, t->uaddr);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), 0);
	kvm_gpc_invalidate_end(t->kvm, end, t->uaddr);

	/* Either memslot is deleted, or becomes read-only. */
	gpc_test_set_memslots(t, true, false);
	gpc_test_invalidate_memslot(t, &t->slot2);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	t->slot2.flags = KVM_MEM_READONLY;
	gpc_test_set_memslots(t, true, true);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	t->slot2.flags = 0;
	gpc_test_expect_bytes(test, gpa, PAGE_SIZE + 2);

	gpc_test_set_memslots(t, false, true);
	gpc_test_invalidate_memslot(t, &t->slot);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	gpc_test_set_memslots(t, true, true);
	gpc_test_expect_bytes(test, gpa, PAGE_SIZE + 2);
}

/* Read the cache on another CPU, if there is one. */
static int gpc_test_use(void *data)
{
	struct gpc_test *t = data;
	int i;

	while (!kthread_should_stop()) {
		u8 *p = kvm_gpc_trylock(&t->gpc);

		if (!IS_ERR(p)) {
			for (i = 0; i < GPC_LEN; i++)
				WRITE_ONCE(p[i], i);
			kvm_gpc_unlock(&t->gpc);
			WRITE_ONCE(t->reads, t->reads + 1);
		}
		cond_resched();
	}

	return 0;
}

/* Return soon after a read, i.e. while the reader is between two reads. */
static int gpc_test_wait_for_read(struct gpc_test *t)
{
	ktime_t end = ktime_add_ms(ktime_get(), 10000);
	unsigned int reads = READ_ONCE(t->reads);

	while (READ_ONCE(t->reads) == reads) {
		if (ktime_after(ktime_get(), end))
			return -ETIMEDOUT;
		cond_resched();
	}

	return 0;
}

/* Where t->gpc's area is mapped. */
static void *gpc_test_area_addr(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	void *p = kvm_gpc_lock(&t->gpc);

	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	kvm_gpc_unlock(&t->gpc);
	return p;
}

/* An invalidated area is unmapped even if no refresh follows. */
static void gpc_test_unmapped_without_refresh(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	void *khva;

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, gpc_test_scattered_area(test), GPC_LEN), 0);
	khva = t->gpc.khva;
	KUNIT_ASSERT_NOT_NULL(test, vmalloc_to_page(khva));

	kvm_gpc_invalidate_all(t->kvm);
	flush_work(&t->kvm->gpc_unmap_work);
	KUNIT_EXPECT_NULL(test, vmalloc_to_page(khva));
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_active(&t->gpc));
}

static int gpc_test_activator(void *data)
{
	struct gpc_test *t = data;

	kthread_use_mm(t->kvm->mm);
	t->locker_error = kvm_gpc_activate(&t->gpc, t->scattered, GPC_LEN);
	kthread_unuse_mm(t->kvm->mm);
	complete(&t->locker_done);
	return 0;
}

/* Where an area is mapped that is being activated for t->gpc. */
static void *gpc_test_new_area_addr(struct gpc_test *t)
{
	struct gpc_range *range;

	guard(spinlock)(&t->kvm->gpc_lock);

	gpc_for_each_range(range, t->kvm, KVM_GPC_BY_HVA, 0, ULONG_MAX) {
		if (range->area != t->gpc.area && range->area->map)
			return range->area->map->addr;
	}

	return NULL;
}

/* An activation has to wait, and its area is invalidated meanwhile. */
static void gpc_test_unmapped_before_published(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long end = jiffies + 10 * HZ;
	struct task_struct *activator;
	void *addr;

	t->scattered = gpc_test_scattered_area(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), 0);
	init_completion(&t->locker_done);

	mutex_lock(&t->gpc.refresh_lock);
	activator = kthread_run(gpc_test_activator, t, "gpc_test_activator");
	while (!IS_ERR(activator) && !(addr = gpc_test_new_area_addr(t)) &&
	       time_before(jiffies, end))
		schedule_timeout_uninterruptible(1);

	if (!IS_ERR(activator) && addr) {
		KUNIT_EXPECT_NOT_NULL(test, vmalloc_to_page(addr));
		kvm_gpc_invalidate_all(t->kvm);
		flush_work(&t->kvm->gpc_unmap_work);
		KUNIT_EXPECT_NULL(test, vmalloc_to_page(addr));
	}
	mutex_unlock(&t->gpc.refresh_lock);

	KUNIT_ASSERT_FALSE(test, IS_ERR(activator));
	wait_for_completion(&t->locker_done);
	KUNIT_EXPECT_NOT_NULL(test, addr);
	KUNIT_EXPECT_EQ(test, t->locker_error, 0);
	gpc_test_expect_bytes(test, t->scattered, GPC_LEN);
}

/*
 * Wait until @addr is unmapped.  Return false if it is still mapped after 10s.
 */
static bool gpc_test_is_unmapped(void *addr)
{
	unsigned long end = jiffies + 10 * HZ;

	while (vmalloc_to_page(addr)) {
		if (time_after(jiffies, end))
			return false;
		schedule_timeout_uninterruptible(1);
	}

	return true;
}

/* No mapping is left of an area that the cache isn't bound to any more. */
static void gpc_test_unmaps_old_area(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	gpa_t gpa = gpc_test_scattered_area(test);
	void *addr = gpc_test_area_addr(test);

	KUNIT_EXPECT_NOT_NULL(test, vmalloc_to_page(addr));
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, gpc_test_is_unmapped(addr));

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, gpa, GPC_LEN), 0);
	addr = gpc_test_area_addr(test);
	KUNIT_EXPECT_NOT_NULL(test, vmalloc_to_page(addr));
	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_TRUE(test, gpc_test_is_unmapped(addr));
}

static int gpc_test_move(struct gpc_test *t)
{
	bool away = kvm_gpc_gpa(&t->gpc) == t->scattered;

	return kvm_gpc_activate(&t->gpc, away ? GPC_GPA : t->scattered, GPC_LEN);
}

/* A mapping is removed only when it has no reader, which would oops. */
static void gpc_test_unmap_under_reader(struct kunit *test)
{
	unsigned int cpu = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());
	struct gpc_test *t = test->priv;
	struct task_struct *reader;
	int error, moves = 0;
	ktime_t end;

	t->scattered = gpc_test_scattered_area(test);
	reader = kthread_create(gpc_test_use, t, "gpc_test_reader");
	KUNIT_ASSERT_FALSE(test, IS_ERR(reader));
	if (cpu < nr_cpu_ids)
		kthread_bind(reader, cpu);
	wake_up_process(reader);

	end = ktime_add_ms(ktime_get(), 500);
	do {
		error = gpc_test_wait_for_read(t) ?: gpc_test_move(t);
		moves++;
	} while (!error && ktime_before(ktime_get(), end));

	kthread_stop(reader);
	kunit_info(test, "%u reads, %d moves\n", t->reads, moves);
	KUNIT_EXPECT_EQ(test, error, 0);
}

/*
 * A reader of two caches is interrupted by another reader of the same caches.
 */
static void gpc_test_nested_irq(struct irq_work *work)
{
	struct gpc_test *t = container_of(work, struct gpc_test, irq_work);
	void *p, *p2;

	/* In reverse order. */
	p2 = kvm_gpc_trylock(&t->gpc2);
	p = kvm_gpc_trylock(&t->gpc);
	if (!IS_ERR(p))
		kvm_gpc_unlock(&t->gpc);
	if (!IS_ERR(p2))
		kvm_gpc_unlock(&t->gpc2);

	t->irq_context = in_hardirq();
	t->irq_khva = p;
	/* The last store that gpc_test_nested() waits for. */
	smp_store_release(&t->irq_khva2, p2);
}

static void gpc_test_nested(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	void *p, *p2;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	p = kvm_gpc_lock(&t->gpc);
	p2 = kvm_gpc_trylock(&t->gpc2);
	if (!IS_ERR(p)) {
		t->irq_work = IRQ_WORK_INIT_HARD(gpc_test_nested_irq);
		irq_work_queue(&t->irq_work);
		/* Pairs with gpc_test_nested_irq(). */
		while (!smp_load_acquire(&t->irq_khva2))
			cpu_relax();
	}

	if (!IS_ERR(p2))
		kvm_gpc_unlock(&t->gpc2);
	if (!IS_ERR(p))
		kvm_gpc_unlock(&t->gpc);

	KUNIT_EXPECT_FALSE(test, IS_ERR(p));
	KUNIT_EXPECT_FALSE(test, IS_ERR(p2));
	KUNIT_EXPECT_PTR_NE(test, p2, p);
	KUNIT_EXPECT_TRUE(test, t->irq_context);
	KUNIT_EXPECT_PTR_EQ(test, t->irq_khva, p);
	KUNIT_EXPECT_PTR_EQ(test, t->irq_khva2, p2);
}

/* An interrupt that uses another cache, at any instruction. */
static enum hrtimer_restart gpc_test_timer_fn(struct hrtimer *timer)
{
	struct gpc_test *t = container_of(timer, struct gpc_test, timer);

	if (!IS_ERR(kvm_gpc_trylock(&t->gpc2)))
		kvm_gpc_unlock(&t->gpc2);

	WRITE_ONCE(t->timer_fired, true);
	return HRTIMER_NORESTART;
}

/*
 * With t->gpc locked: whether an invalidation finds the reader.  If not, repair
 * the stack, as unlocking would leave preemption disabled otherwise.
 */
static bool gpc_test_is_held(struct gpc_test *t)
{
	struct gpc_readers *readers = this_cpu_ptr(&gpc_readers);

	if (likely(readers->held[readers->nr] == &t->gpc))
		return true;

	readers->held[readers->nr] = &t->gpc;
	return false;
}

/* Each interrupt arrives at another instruction of locking or unlocking. */
static void gpc_test_interrupted(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned int lost = 0, failed = 0;
	int i, j;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	hrtimer_setup(&t->timer, gpc_test_timer_fn, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);

	migrate_disable();
	for (i = 0; i < GPC_TEST_INTERRUPTS; i++) {
		WRITE_ONCE(t->timer_fired, false);
		hrtimer_start(&t->timer, ns_to_ktime(10000 + i), HRTIMER_MODE_REL_PINNED_HARD);
		/*
		 * The timer's resolution is several instructions: begin
		 * anywhere.
		 */
		for (j = i % 7; j; j--)
			cpu_relax();
		while (!READ_ONCE(t->timer_fired)) {
			if (IS_ERR(kvm_gpc_trylock(&t->gpc))) {
				failed++;
				continue;
			}
			lost += !gpc_test_is_held(t);
			kvm_gpc_unlock(&t->gpc);
		}
	}
	migrate_enable();
	hrtimer_cancel(&t->timer);

	KUNIT_EXPECT_EQ(test, failed, 0);
	KUNIT_EXPECT_EQ(test, lost, 0);
}

static bool gpc_test_wait_for_invalidation(struct gpc_test *t)
{
	ktime_t end = ktime_add_ms(ktime_get(), 10000);

	while (READ_ONCE(t->gpc.khva)) {
		if (ktime_after(ktime_get(), end))
			return false;
		cpu_relax();
	}

	return true;
}

/*
 * An invalidation waits for the readers of its own caches, and for no others.
 */
static void gpc_test_invalidate_fn(struct work_struct *work)
{
	struct gpc_test *t = container_of(work, struct gpc_test, invalidate);

	gpc_test_invalidate_start(t, 1);
	gpc_test_invalidate_end(t, 1);
	WRITE_ONCE(t->invalidations, 1);
	gpc_test_invalidate_start(t, 0);
	gpc_test_invalidate_end(t, 0);
	WRITE_ONCE(t->invalidations, 2);
}

/*
 * With t->gpc locked: whether the invalidation of its page, on another CPU,
 * clears khva and then waits.
 */
static bool gpc_test_does_invalidation_wait(struct gpc_test *t)
{
	bool is_cleared;
	ktime_t end;

	queue_work_on(cpumask_any_but(cpu_online_mask, smp_processor_id()), system_percpu_wq,
		      &t->invalidate);

	is_cleared = gpc_test_wait_for_invalidation(t);
	end = ktime_add_ms(ktime_get(), 10);
	while (ktime_before(ktime_get(), end) && READ_ONCE(t->invalidations) == 1)
		cpu_relax();

	return is_cleared && READ_ONCE(t->invalidations) == 1;
}

static void gpc_test_expect_invalidated(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	flush_work(&t->invalidate);
	KUNIT_EXPECT_EQ(test, t->invalidations, 2);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
}

static void gpc_test_invalidation_waits(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	bool does_wait;
	void *p;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	INIT_WORK(&t->invalidate, gpc_test_invalidate_fn);

	p = kvm_gpc_lock(&t->gpc);
	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	does_wait = gpc_test_does_invalidation_wait(t);
	kvm_gpc_unlock(&t->gpc);

	KUNIT_EXPECT_TRUE(test, does_wait);
	gpc_test_expect_invalidated(test);
}

/* The reader has another cache locked as well, @before this one or after it. */
static void gpc_test_expect_nested_waits(struct kunit *test, bool before)
{
	struct gpc_test *t = test->priv;
	struct gfn_to_pfn_cache *first = before ? &t->gpc2 : &t->gpc;
	struct gfn_to_pfn_cache *second = before ? &t->gpc : &t->gpc2;
	bool does_wait = false;
	void *p, *p2;

	t->invalidations = 0;
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	p = kvm_gpc_lock(first);
	KUNIT_ASSERT_FALSE(test, IS_ERR(p));
	p2 = kvm_gpc_trylock(second);
	if (!IS_ERR(p2)) {
		does_wait = gpc_test_does_invalidation_wait(t);
		kvm_gpc_unlock(second);
	}
	kvm_gpc_unlock(first);

	KUNIT_EXPECT_FALSE(test, IS_ERR(p2));
	KUNIT_EXPECT_TRUE(test, does_wait);
	gpc_test_expect_invalidated(test);
}

static void gpc_test_invalidation_waits_nested(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA2, GPC_LEN), 0);
	INIT_WORK(&t->invalidate, gpc_test_invalidate_fn);

	gpc_test_expect_nested_waits(test, false);
	gpc_test_expect_nested_waits(test, true);
}

/*
 * Once it has locked the cache, the reader keeps it locked until the
 * invalidation has begun, and then for long enough that an invalidation that
 * doesn't wait is over.
 */
static bool gpc_test_read(struct gpc_test *t)
{
	int i;

	if (IS_ERR(kvm_gpc_trylock(&t->gpc)))
		return false;

	t->reads++;
	gpc_test_wait_for_invalidation(t);
	for (i = 0; i < 1000; i++)
		t->reads_of_gone += READ_ONCE(t->gone);
	kvm_gpc_unlock(&t->gpc);
	return true;
}

/*
 * Spin until @word is @val, or the thread is to stop.  Don't call cpu_relax()
 * at first, as a hypervisor may exit then, and @val would be seen late.
 */
static bool gpc_test_spin_until(unsigned int *word, unsigned int val)
{
	int i;

	while (!kthread_should_stop()) {
		for (i = 0; i < 5000; i++) {
			/* Pairs with gpc_test_announce(). */
			if (smp_load_acquire(word) == val)
				return true;
		}
		cpu_relax();
	}

	return false;
}

static void gpc_test_announce(unsigned int *word, unsigned int val)
{
	/* Pairs with gpc_test_spin_until(). */
	smp_store_release(word, val);
}

/*
 * Delay the visibility of the next store to the other CPU, by stores to memory
 * that isn't in its cache.
 */
static __always_inline void gpc_test_write_cold(struct gpc_test *t, unsigned long *where)
{
	u8 *p = t->cold + *where;
	int i;

	*where = (*where + 64) % GPC_TEST_COLD;
	unrolled_full
	for (i = 0; i < GPC_TEST_LINES; i++)
		WRITE_ONCE(p[i * GPC_TEST_STRIDE], 0);
}

/*
 * Delay the side that was early a little longer in the next round, so that both
 * sides keep meeting.
 */
static void gpc_test_read_early_or_late(struct gpc_test *t)
{
	int i;

	for (i = t->delay; i > 0; i--)
		kvm_gpc_is_active(&t->gpc);
	gpc_test_write_cold(t, &t->cold_reader);

	t->delay += gpc_test_read(t) ? 1 : -1;
	t->delay = clamp(t->delay, -GPC_TEST_MAX_DELAY, GPC_TEST_MAX_DELAY);
}

static int gpc_test_read_each_round(void *data)
{
	struct gpc_test *t = data;
	unsigned int round;

	for (round = 1; gpc_test_spin_until(&t->round, round); round++) {
		gpc_test_read_early_or_late(t);
		gpc_test_announce(&t->round_done, round);
	}

	return 0;
}

static int gpc_test_invalidate_round(struct gpc_test *t)
{
	int error = gpc_test_lock_error(&t->gpc);
	struct gpc_kick kick = {};
	int i = t->delay;

	if (error)
		return error;

	gpc_test_announce(&t->round, t->round + 1);
	for (; i < 0; i++)
		barrier();
	scoped_guard(spinlock, &t->kvm->gpc_lock) {
		gpc_test_write_cold(t, &t->cold_inv);
		gpc_invalidate_ranges(t->kvm, KVM_GPC_BY_HVA, t->uaddr, t->uaddr + PAGE_SIZE - 1,
				      &kick);
	}
	WRITE_ONCE(t->gone, true);
	gpc_test_spin_until(&t->round_done, t->round);
	WRITE_ONCE(t->gone, false);
	return 0;
}

/*
 * Both begin concurrently: either the reader finds the area unmapped, or the
 * invalidation waits.
 */
static void gpc_test_reader_meets_invalidation(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct task_struct *reader;
	unsigned int cpu;
	ktime_t end;
	int error;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	t->cold = vzalloc(GPC_TEST_LINES * GPC_TEST_STRIDE);
	t->cold_inv = GPC_TEST_COLD / 2;
	KUNIT_ASSERT_NOT_NULL(test, t->cold);
	gpc_test_activate(test);
	reader = kthread_create(gpc_test_read_each_round, t, "gpc_test_reader");
	KUNIT_ASSERT_FALSE(test, IS_ERR(reader));

	cpu = cpumask_first(cpu_online_mask);
	kthread_bind(reader, cpu);
	cpu = cpumask_next(cpu, cpu_online_mask);
	KUNIT_ASSERT_EQ(test, set_cpus_allowed_ptr(current, cpumask_of(cpu)), 0);
	wake_up_process(reader);
	end = ktime_add_ms(ktime_get(), 5000);
	do {
		error = gpc_test_invalidate_round(t);
	} while (!error && ktime_before(ktime_get(), end));

	kthread_stop(reader);
	kunit_info(test, "%u rounds, of which the reader was first in %u\n", t->round, t->reads);
	KUNIT_EXPECT_EQ(test, error, 0);
	KUNIT_EXPECT_EQ(test, t->reads_of_gone, 0);
}

/* Only kvm_gpc_unlock_dirty() marks an area dirty. */
static void gpc_test_dirty(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long *bitmap = &t->dirty_bitmap;

	t->slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	t->slot.dirty_bitmap = bitmap;
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_lock(&t->gpc)));
	kvm_gpc_unlock(&t->gpc);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);

	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_lock(&t->gpc)));
	kvm_gpc_unlock_dirty(&t->gpc);
	KUNIT_EXPECT_EQ(test, *bitmap, BIT(1));

	/*
	 * Of an area in several memslots, each page is marked in its own
	 * memslot.
	 */
	*bitmap = 0;
	t->slot2.flags = KVM_MEM_LOG_DIRTY_PAGES;
	t->slot2.dirty_bitmap = &t->dirty_bitmap2;
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA2 - 1, PAGE_SIZE + 2), 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_lock(&t->gpc)));
	kvm_gpc_unlock_dirty(&t->gpc);
	KUNIT_EXPECT_EQ(test, *bitmap, BIT(1));
	KUNIT_EXPECT_EQ(test, t->dirty_bitmap2, BIT(0) | BIT(1));

	/* There is no memslot to mark. */
	*bitmap = 0;
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr, GPC_LEN), 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_lock(&t->gpc)));
	kvm_gpc_unlock_dirty(&t->gpc);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
}

/*
 * Guest use: t->gpc is used by the hardware of a vCPU.
 */

static struct kvm_vcpu *gpc_test_add_vcpu(struct kunit *test, int idx)
{
	struct gpc_test *t = test->priv;
	struct kvm_vcpu *vcpu;

	vcpu = kunit_kzalloc(test, sizeof(*vcpu), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vcpu);
	vcpu->kvm = t->kvm;
	vcpu->vcpu_idx = idx;
	vcpu->cpu = -1;
	mutex_init(&vcpu->mutex);
	rcuwait_init(&vcpu->wait);

	KUNIT_ASSERT_FALSE(test, xa_err(xa_store(&t->kvm->vcpu_array, idx, vcpu, GFP_KERNEL)));
	atomic_set(&t->kvm->online_vcpus, idx + 1);
	return vcpu;
}

static void gpc_test_init_vcpu(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	/* The vendor's module sets up what KVM's IPIs need. */
	if (!kvm_x86_ops.enable_virtualization_cpu)
		kunit_skip(test, "needs virtualization");

	/* A single entry needs no memory. */
	xa_init(&t->kvm->vcpu_array);
	t->vcpu = gpc_test_add_vcpu(test, 0);

	kvm_gpc_init_vcpu(&t->gpc, t->vcpu, GPC_TEST_REQ);
}

/* As a vCPU does, outside guest mode. */
static void gpc_test_vcpu_begin(struct kvm_vcpu *vcpu)
{
	mutex_lock(&vcpu->mutex);
	kvm_vcpu_srcu_read_lock(vcpu);
}

static void gpc_test_vcpu_end(struct kvm_vcpu *vcpu)
{
	kvm_vcpu_srcu_read_unlock(vcpu);
	mutex_unlock(&vcpu->mutex);
}

static int gpc_test_use_at(struct gpc_test *t, gpa_t gpa, unsigned long len)
{
	int error;

	gpc_test_vcpu_begin(t->vcpu);
	error = kvm_gpc_use(&t->gpc, gpa, len, &t->hpa);
	gpc_test_vcpu_end(t->vcpu);
	return error;
}

/* As a vCPU does before it enters guest mode. */
static int gpc_test_use_again(struct gpc_test *t)
{
	return kvm_gpc_is_used(&t->gpc, GPC_GPA) ? 0 : gpc_test_use_at(t, GPC_GPA, GPC_LEN);
}

static void gpc_test_mark_used_dirty(struct gpc_test *t)
{
	gpc_test_vcpu_begin(t->vcpu);
	kvm_gpc_mark_used_dirty(&t->gpc);
	gpc_test_vcpu_end(t->vcpu);
}

static bool gpc_test_request(struct gpc_test *t)
{
	return kvm_test_request(GPC_TEST_REQ, t->vcpu);
}

static void gpc_test_init_used(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_vcpu(test);
	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA, GPC_LEN), 0);
}

/* The physical address of what userspace has mapped at @gpa. */
static hpa_t gpc_test_hpa(struct kunit *test, gpa_t gpa)
{
	struct gpc_test *t = test->priv;
	struct page *page;
	hpa_t hpa;

	KUNIT_ASSERT_EQ(test, get_user_pages_fast((unsigned long)gpc_test_uptr(t, gpa), 1,
						  FOLL_WRITE, &page), 1);
	hpa = page_to_phys(page) + offset_in_page(gpa);
	put_page(page);
	return hpa;
}

/* Map another page at the first page's address, without notice. */
static int gpc_test_replace_page(struct gpc_test *t)
{
	struct page *page;
	unsigned long uaddr;
	int error;

	/* The old page isn't freed until the new one is there. */
	if (get_user_pages_fast(t->uaddr, 1, FOLL_WRITE, &page) != 1)
		return -EFAULT;

	vm_munmap(t->uaddr, PAGE_SIZE);
	uaddr = vm_mmap(NULL, t->uaddr, PAGE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0);
	error = uaddr == t->uaddr ? put_user(0, (u8 __user *)uaddr) : -ENOMEM;
	put_page(page);
	return error;
}

/* The address is that of the area's first byte, in each page of the VM. */
static void gpc_test_guest_use_hpa_offset(struct kunit *test)
{
	static const unsigned long offsets[] = { 0, 8, PAGE_SIZE - GPC_LEN };
	struct gpc_test *t = test->priv;
	gpa_t gpa;
	int i, j;

	gpc_test_init_vcpu(test);

	for (i = 0; i < 2 * GPC_PAGES; i++) {
		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			gpa = GPC_GPA + i * PAGE_SIZE + offsets[j];
			KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, gpa, GPC_LEN), 0);
			KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, gpa));
			gpc_test_expect_bytes(test, gpa, GPC_LEN);
		}
	}

	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_GPA, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA));
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));
}

static void gpc_test_guest_use_errors(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	hpa_t hpa;

	gpc_test_init_used(test);
	hpa = t->hpa;
	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_GPA, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_GPA + 1, PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_GPA + 1, -1ul), -EINVAL);
	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_EQ(test, t->hpa, hpa);

	/* The area isn't in use any more, nor is the cache bound to it. */
	gpc_test_invalidate(t);
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_GPA, GPC_LEN), 0);
	KUNIT_EXPECT_EQ(test, t->hpa, hpa);
}

/* An invalidation makes the request, and the new page is used afterwards. */
static void gpc_test_guest_use_request(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	hpa_t old;

	gpc_test_init_used(test);
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));

	old = t->hpa;
	KUNIT_ASSERT_EQ(test, gpc_test_replace_page(t), 0);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_TRUE(test, kvm_check_request(GPC_TEST_REQ, t->vcpu));

	KUNIT_ASSERT_EQ(test, gpc_test_use_again(t), 0);
	KUNIT_EXPECT_NE(test, t->hpa, old);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA));
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));

	/* Each invalidation does. */
	gpc_test_invalidate(t);
	KUNIT_EXPECT_TRUE(test, gpc_test_request(t));
}

/* KVM itself maps the new page first. */
static void gpc_test_guest_use_after_lock(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_used(test);
	KUNIT_ASSERT_EQ(test, gpc_test_replace_page(t), 0);
	gpc_test_invalidate(t);
	gpc_test_vcpu_begin(t->vcpu);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	gpc_test_vcpu_end(t->vcpu);
	KUNIT_EXPECT_TRUE(test, gpc_test_request(t));

	KUNIT_ASSERT_EQ(test, gpc_test_use_again(t), 0);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA));
}

/* The vCPU, which replaces the area itself, needs no request. */
static void gpc_test_guest_use_own_activation_makes_no_request(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_used(test);
	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA2, GPC_LEN), 0);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA2));
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));

	/* The old area doesn't concern it any more. */
	gpc_test_invalidate(t);
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));

	kvm_gpc_unuse(&t->gpc);
	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));
}

/* Whether the address that the vCPU has kept may be used. */
static void gpc_test_guest_use_is_used(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_vcpu(test);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, 0));

	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA2));

	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA2, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA2));
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));

	KUNIT_EXPECT_EQ(test, gpc_test_use_at(t, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA2));

	/* Mapped, but not by kvm_gpc_use(). */
	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA, GPC_LEN), 0);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));
	gpc_test_vcpu_begin(t->vcpu);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	gpc_test_vcpu_end(t->vcpu);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));

	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA, GPC_LEN), 0);
	KUNIT_EXPECT_TRUE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));
	kvm_gpc_unuse(&t->gpc);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_used(&t->gpc, GPC_GPA));
}

static int gpc_lookup_and_replace(const struct gpc_range *range, kvm_pfn_t *pfn,
				  struct page **page)
{
	struct gpc_test *t = kunit_get_current_test()->priv;
	int ret = gpc_lookup_unstubbed(range, pfn, page, gpc_lookup_and_replace);

	if (!ret && !t->lookups++) {
		ret = gpc_test_replace_page(t);
		gpc_test_invalidate(t);
	}

	return ret;
}

/*
 * The page is replaced while the area is refreshed.  The vCPU doesn't have the
 * address yet, so it needs no request.
 */
static void gpc_test_guest_use_request_during_refresh(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int error;

	gpc_test_init_used(test);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_TRUE(test, kvm_check_request(GPC_TEST_REQ, t->vcpu));

	kunit_activate_static_stub(test, gpc_lookup_range, gpc_lookup_and_replace);
	error = gpc_test_use_again(t);
	kunit_deactivate_static_stub(test, gpc_lookup_range);

	KUNIT_ASSERT_EQ(test, error, 0);
	KUNIT_EXPECT_EQ(test, t->lookups, 2);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA));
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));

	/* After the refresh, it does. */
	gpc_test_invalidate(t);
	KUNIT_EXPECT_TRUE(test, gpc_test_request(t));
}

static void gpc_test_guest_use_no_action_warns(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_vcpu(test);

	kunit_warning_suppress(test) {
		kvm_gpc_init_vcpu(&t->gpc2, t->vcpu, KVM_REQ_OUTSIDE_GUEST_MODE);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
	}
}

/* A cache in use can neither be deactivated nor be bound to another area. */
static void gpc_test_guest_use_retired_warns(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_used(test);

	kunit_warning_suppress(test) {
		KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA2, GPC_LEN), 0);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 1);
		kvm_gpc_deactivate(&t->gpc);
		KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, 2);
	}
}

static void gpc_test_init_logged(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_init_vcpu(test);
	t->slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	t->slot.dirty_bitmap = &t->dirty_bitmap;
	atomic_set(&t->kvm->nr_memslots_dirty_logging, 1);
}

/* The page is marked dirty, be the area mapped or not. */
static void gpc_test_guest_use_dirty_after_invalidation(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long *bitmap = &t->dirty_bitmap;

	gpc_test_init_logged(test);
	gpc_test_mark_used_dirty(t);
	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);

	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, BIT(1));

	*bitmap = 0;
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, BIT(1));

	*bitmap = 0;
	kvm_gpc_unuse(&t->gpc);
	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
}

/* ... by the memslot that there is by then. */
static void gpc_test_guest_use_dirty_in_new_memslot(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long *bitmap = &t->dirty_bitmap;

	gpc_test_init_logged(test);
	KUNIT_ASSERT_EQ(test, gpc_test_use_at(t, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	/* Logging ends, and begins. */
	t->slot.flags = 0;
	gpc_test_set_memslot(t, true);
	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
	t->slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
	gpc_test_set_memslot(t, true);
	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, BIT(1));

	/* The memslot has been deleted. */
	*bitmap = 0;
	gpc_test_set_memslot(t, false);
	gpc_test_mark_used_dirty(t);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
}

static void gpc_test_srcu_dropped(struct rcu_head *rcu)
{
	complete_all(&container_of(rcu, struct gpc_test, rcu)->srcu_dropped);
}

/*
 * Like KVM_SET_USER_MEMORY_REGION: with slots_lock held, let a memslot be
 * invalid, wait for kvm->srcu, and let it be valid again.
 */
static void gpc_test_move_memslot_fn(struct work_struct *work)
{
	struct gpc_test *t = container_of(work, struct gpc_test, move_memslot);

	mutex_lock(&t->kvm->slots_lock);
	t->slot.flags |= KVM_MEMSLOT_INVALID;
	kvm_gpc_invalidate_memslot(t->kvm, &t->slot);
	complete(&t->memslots_locked);

	call_srcu(&t->kvm->srcu, &t->rcu, gpc_test_srcu_dropped);
	t->timed_out = !wait_for_completion_timeout(&t->srcu_dropped, 10 * HZ);

	/* Pairs with the end of the vCPU's wait for slots_lock. */
	t->slot.flags &= ~KVM_MEMSLOT_INVALID;
	mutex_unlock(&t->kvm->slots_lock);
	wait_for_completion(&t->srcu_dropped);
}

/* The vCPU waits until a memslot has been moved, without kvm->srcu. */
static void gpc_test_guest_use_memslot_is_moving(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int error;

	gpc_test_init_used(test);
	INIT_WORK(&t->move_memslot, gpc_test_move_memslot_fn);
	init_completion(&t->memslots_locked);
	init_completion(&t->srcu_dropped);

	gpc_test_vcpu_begin(t->vcpu);
	queue_work(system_dfl_wq, &t->move_memslot);
	wait_for_completion(&t->memslots_locked);
	error = kvm_gpc_use(&t->gpc, GPC_GPA, GPC_LEN, &t->hpa);
	gpc_test_vcpu_end(t->vcpu);
	flush_work(&t->move_memslot);

	KUNIT_EXPECT_EQ(test, error, 0);
	KUNIT_EXPECT_FALSE(test, t->timed_out);
	KUNIT_EXPECT_EQ(test, t->hpa, gpc_test_hpa(test, GPC_GPA));

	/* For kvm_gpc_lock(), the memslot is gone. */
	t->slot.flags |= KVM_MEMSLOT_INVALID;
	gpc_test_set_memslot(t, true);
	gpc_test_vcpu_begin(t->vcpu);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOENT);
	gpc_test_vcpu_end(t->vcpu);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN), -ENOENT);
}

/*
 * The hardware uses the page until it is kicked, and a while longer, but not
 * when the page is gone.
 */
static void gpc_test_guest(struct gpc_test *t)
{
	ktime_t end = ktime_add_ms(ktime_get(), 10000);
	u8 *p = phys_to_virt(t->hpa);

	WRITE_ONCE(t->in_guest, true);
	while (READ_ONCE(t->vcpu->mode) == IN_GUEST_MODE && !READ_ONCE(t->gone) &&
	       ktime_before(ktime_get(), end))
		cpu_relax();

	t->kicked = READ_ONCE(t->vcpu->mode) == EXITING_GUEST_MODE;

	end = ktime_add_ms(ktime_get(), GPC_TEST_KICK_MS);
	while (!READ_ONCE(t->gone) && ktime_before(ktime_get(), end)) {
		if (!t->unused)
			WRITE_ONCE(*p, *p + 1);
		cpu_relax();
	}

	t->uses_of_gone += READ_ONCE(t->gone);
}

/* Like vcpu_enter_guest(). */
static void gpc_test_enter_guest(struct gpc_test *t)
{
	struct kvm_vcpu *vcpu = t->vcpu;

	local_irq_disable();
	vcpu->cpu = smp_processor_id();
	WRITE_ONCE(vcpu->mode, IN_GUEST_MODE);
	kvm_vcpu_srcu_read_unlock(vcpu);
	smp_mb__after_srcu_read_unlock();		/* G, matches H */

	if (!gpc_test_request(t))
		gpc_test_guest(t);

	/* J, matches K */
	smp_store_release(&vcpu->mode, OUTSIDE_GUEST_MODE);
	local_irq_enable();
	kvm_vcpu_srcu_read_lock(vcpu);
}

static int gpc_test_vcpu(void *data)
{
	struct gpc_test *t = data;

	kthread_use_mm(t->kvm->mm);
	gpc_test_vcpu_begin(t->vcpu);

	if (t->unused)
		t->locker_error = kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN);
	else
		t->locker_error = kvm_gpc_use(&t->gpc, GPC_GPA, GPC_LEN, &t->hpa);
	if (!t->locker_error)
		gpc_test_enter_guest(t);

	gpc_test_vcpu_end(t->vcpu);
	kthread_unuse_mm(t->kvm->mm);
	complete(&t->vcpu_done);
	return 0;
}

/* Have the vCPU enter guest mode on another CPU. */
static void gpc_test_start_vcpu(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct task_struct *task;
	ktime_t end;

	if (num_online_cpus() < 2)
		kunit_skip(test, "needs two CPUs");

	gpc_test_init_vcpu(test);
	init_completion(&t->vcpu_done);
	task = kthread_create(gpc_test_vcpu, t, "gpc_test_vcpu");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));

	set_cpus_allowed_ptr(current, cpumask_of(0));
	kthread_bind(task, 1);
	wake_up_process(task);

	end = ktime_add_ms(ktime_get(), 10000);
	while (!READ_ONCE(t->in_guest) && !completion_done(&t->vcpu_done) &&
	       ktime_before(ktime_get(), end))
		cond_resched();
}

/*
 * The page is gone, and the vCPU leaves guest mode if it hasn't yet.  The kick
 * has ordered all that the vCPU did before.
 */
static void gpc_test_stop_vcpu(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	WRITE_ONCE(t->gone, true);
	wait_for_completion(&t->vcpu_done);
	KUNIT_EXPECT_EQ(test, t->locker_error, 0);
	KUNIT_EXPECT_TRUE(test, t->in_guest);
}

/* When @invalidate returns, the hardware has stopped using the page. */
static void gpc_test_expect_waits(struct kunit *test, void (*invalidate)(struct gpc_test *t))
{
	struct gpc_test *t = test->priv;

	gpc_test_start_vcpu(test);
	invalidate(t);
	gpc_test_stop_vcpu(test);

	KUNIT_EXPECT_EQ(test, t->uses_of_gone, 0);
	KUNIT_EXPECT_TRUE(test, gpc_test_request(t));
}

static void gpc_test_guest_use_kicks(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_start_vcpu(test);
	gpc_test_invalidate(t);
	gpc_test_stop_vcpu(test);
	KUNIT_EXPECT_TRUE(test, t->kicked);
}

static void gpc_test_guest_use_waits(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_invalidate);
}

/* Like the OOM killer and process_mrelease(). */
static void gpc_test_invalidate_nonblock(struct gpc_test *t)
{
	non_block_start();
	gpc_test_invalidate(t);
	non_block_end();
}

static void gpc_test_guest_use_waits_nonblock(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_invalidate_nonblock);
}

static void gpc_test_replace_memslot(struct gpc_test *t)
{
	gpc_test_set_memslot(t, true);
}

static void gpc_test_guest_use_memslot(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_replace_memslot);
}

static void gpc_test_release_mm(struct gpc_test *t)
{
	kvm_gpc_invalidate_all(t->kvm);
}

static void gpc_test_guest_use_mm_release(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_release_mm);
}

#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
static void gpc_test_convert(struct gpc_test *t)
{
	gpc_test_set_private(t, GPC_GFN, true);
}

static void gpc_test_guest_use_becomes_private(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_use_private_mem(test);
	gpc_test_expect_waits(test, gpc_test_convert);
	KUNIT_EXPECT_EQ(test, gpc_test_use_again(t), -EACCES);
	xa_destroy(&t->kvm->mem_attr_array);
}
#endif

/* The first invalidation has not begun to wait for the vCPU. */
static void gpc_test_invalidate_second(struct gpc_test *t)
{
	struct gpc_kick kick = {};

	scoped_guard(spinlock, &t->kvm->gpc_lock)
		gpc_invalidate_ranges(t->kvm, KVM_GPC_BY_HVA, t->uaddr, t->uaddr + PAGE_SIZE - 1,
				      &kick);

	gpc_test_invalidate(t);
}

static void gpc_test_guest_use_second_invalidation_waits(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_invalidate_second);
}

static void gpc_test_invalidate_second_nonblock(struct gpc_test *t)
{
	non_block_start();
	gpc_test_invalidate_second(t);
	non_block_end();
}

static void gpc_test_guest_use_second_invalidation_waits_nonblock(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_invalidate_second_nonblock);
}

/* Both vCPUs use the page, and one of them isn't in guest mode. */
static void gpc_test_guest_use_two_vcpus(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct kvm_vcpu *vcpu;
	hpa_t hpa;

	gpc_test_start_vcpu(test);

	vcpu = gpc_test_add_vcpu(test, 1);
	kvm_gpc_init_vcpu(&t->gpc2, vcpu, GPC_TEST_REQ);
	gpc_test_vcpu_begin(vcpu);
	KUNIT_EXPECT_EQ(test, kvm_gpc_use(&t->gpc2, GPC_GPA, GPC_LEN, &hpa), 0);
	gpc_test_vcpu_end(vcpu);

	gpc_test_invalidate(t);
	gpc_test_stop_vcpu(test);

	KUNIT_EXPECT_EQ(test, t->uses_of_gone, 0);
	KUNIT_EXPECT_TRUE(test, gpc_test_request(t));
	KUNIT_EXPECT_TRUE(test, kvm_test_request(GPC_TEST_REQ, vcpu));

	kvm_gpc_unuse(&t->gpc2);
	xa_destroy(&t->kvm->vcpu_array);
}

/* The vCPU has been kicked for another reason, without waiting for it. */
static void gpc_test_invalidate_exiting(struct gpc_test *t)
{
	kvm_vcpu_exiting_guest_mode(t->vcpu);
	gpc_test_invalidate(t);
}

static void gpc_test_guest_use_exiting_still_waits(struct kunit *test)
{
	gpc_test_expect_waits(test, gpc_test_invalidate_exiting);
}

/* The area is mapped, and the hardware doesn't use it. */
static void gpc_test_guest_use_not_used_no_kick(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	t->unused = true;
	gpc_test_start_vcpu(test);
	gpc_test_invalidate(t);
	gpc_test_stop_vcpu(test);

	KUNIT_EXPECT_FALSE(test, t->kicked);
	KUNIT_EXPECT_FALSE(test, gpc_test_request(t));
}

static int gpc_test_halted_vcpu(void *data)
{
	struct gpc_test *t = data;

	prepare_to_rcuwait(&t->vcpu->wait);
	do {
		set_current_state(TASK_UNINTERRUPTIBLE);
		if (gpc_test_request(t))
			break;
		t->timed_out = !schedule_timeout(10 * HZ);
	} while (!t->timed_out);
	finish_rcuwait(&t->vcpu->wait);

	complete(&t->vcpu_done);
	return 0;
}

/* A halted vCPU is woken. */
static void gpc_test_guest_use_wakes(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	struct task_struct *task;

	gpc_test_init_used(test);
	init_completion(&t->vcpu_done);
	task = kthread_run(gpc_test_halted_vcpu, t, "gpc_test_vcpu");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	while (!rcuwait_active(&t->vcpu->wait) || !READ_ONCE(task->__state))
		cond_resched();

	gpc_test_invalidate(t);
	wait_for_completion(&t->vcpu_done);
	KUNIT_EXPECT_FALSE(test, t->timed_out);
}

static struct kunit_case gpc_test_cases[] = {
	KUNIT_CASE(gpc_test_shared_with_userspace),
	KUNIT_CASE(gpc_test_where_it_is),
	KUNIT_CASE(gpc_test_not_active),
	KUNIT_CASE(gpc_test_length),
	KUNIT_CASE(gpc_test_bad_hva),
	KUNIT_CASE(gpc_test_no_memslot),
	KUNIT_CASE(gpc_test_readonly_memslot),
	KUNIT_CASE(gpc_test_readonly_memory),
	KUNIT_CASE(gpc_test_no_memory),
	KUNIT_CASE(gpc_test_poison),
	KUNIT_CASE(gpc_test_map_fails),
	KUNIT_CASE(gpc_test_fatal_signal),
	KUNIT_CASE(gpc_test_fatal_signal_wait),
	KUNIT_CASE(gpc_test_wait_for_own),
	KUNIT_CASE(gpc_test_told_apart),
	KUNIT_CASE(gpc_test_wakes_up),
	KUNIT_CASE(gpc_test_many_invalidations),
	KUNIT_CASE(gpc_test_no_room),
	KUNIT_CASE(gpc_test_retry),
#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
	KUNIT_CASE(gpc_test_becomes_private),
	KUNIT_CASE(gpc_test_private_before_lookup),
	KUNIT_CASE(gpc_test_wait_for_own_gfn),
#endif
	KUNIT_CASE(gpc_test_gfn_is_no_address),
	KUNIT_CASE(gpc_test_refresh_during_activation),
	KUNIT_CASE(gpc_test_activation_during_activation),
	KUNIT_CASE(gpc_test_trylock_stale),
	KUNIT_CASE(gpc_test_invalidate_elsewhere),
	KUNIT_CASE(gpc_test_memslot_elsewhere),
	KUNIT_CASE(gpc_test_all_or_nothing),
	KUNIT_CASE(gpc_test_several_pages),
	KUNIT_CASE(gpc_test_several_pages_invalidated),
	KUNIT_CASE(gpc_test_unmapped_without_refresh),
	KUNIT_CASE(gpc_test_unmapped_before_published),
	KUNIT_CASE(gpc_test_unmaps_old_area),
	KUNIT_CASE(gpc_test_unmap_under_reader),
	KUNIT_CASE(gpc_test_nested),
	KUNIT_CASE(gpc_test_interrupted),
	KUNIT_CASE(gpc_test_invalidation_waits),
	KUNIT_CASE(gpc_test_invalidation_waits_nested),
	KUNIT_CASE_SLOW(gpc_test_reader_meets_invalidation),
	KUNIT_CASE(gpc_test_dirty),
	KUNIT_CASE(gpc_test_guest_use_hpa_offset),
	KUNIT_CASE(gpc_test_guest_use_errors),
	KUNIT_CASE(gpc_test_guest_use_request),
	KUNIT_CASE(gpc_test_guest_use_after_lock),
	KUNIT_CASE(gpc_test_guest_use_own_activation_makes_no_request),
	KUNIT_CASE(gpc_test_guest_use_is_used),
	KUNIT_CASE(gpc_test_guest_use_request_during_refresh),
	KUNIT_CASE(gpc_test_guest_use_no_action_warns),
	KUNIT_CASE(gpc_test_guest_use_retired_warns),
	KUNIT_CASE(gpc_test_guest_use_dirty_after_invalidation),
	KUNIT_CASE(gpc_test_guest_use_dirty_in_new_memslot),
	KUNIT_CASE(gpc_test_guest_use_memslot_is_moving),
	KUNIT_CASE(gpc_test_guest_use_kicks),
	KUNIT_CASE(gpc_test_guest_use_waits),
	KUNIT_CASE(gpc_test_guest_use_waits_nonblock),
	KUNIT_CASE(gpc_test_guest_use_memslot),
	KUNIT_CASE(gpc_test_guest_use_mm_release),
#ifdef CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES
	KUNIT_CASE(gpc_test_guest_use_becomes_private),
#endif
	KUNIT_CASE(gpc_test_guest_use_second_invalidation_waits),
	KUNIT_CASE(gpc_test_guest_use_second_invalidation_waits_nonblock),
	KUNIT_CASE(gpc_test_guest_use_two_vcpus),
	KUNIT_CASE(gpc_test_guest_use_exiting_still_waits),
	KUNIT_CASE(gpc_test_guest_use_not_used_no_kick),
	KUNIT_CASE(gpc_test_guest_use_wakes),
	{}
};

static struct kunit_suite gpc_test_suite = {
	.name = "kvm_gpc",
	.init = gpc_test_init,
	.exit = gpc_test_exit,
	.test_cases = gpc_test_cases,
};

/*
 * The physical address of memory without a struct page that tests may
 * overwrite, e.g. 0x80000000 with mem=2G, if there is more memory.  With
 * mem=2047M, which isn't a multiple of the section size, there is memory below
 * it that has struct pages and isn't RAM.
 */
static unsigned long gpc_test_memory;
module_param(gpc_test_memory, ulong, 0444);

struct gpc_map_test {
	/*
	 * Contiguous frames, or every other frame if they are to be scattered.
	 */
	kvm_pfn_t pfn[GPC_MAP_MAX];
	/*
	 * Their struct pages, NULL if the test passes the frame's number only.
	 */
	struct page *page[GPC_MAP_MAX];
	/* Another address of each. */
	u8 *addr[GPC_MAP_MAX];
	struct page *pages;
	void *memory;
	/*
	 * Where the frames are mapped, and NULL if they are in the direct map.
	 */
	u8 *khva;
	struct gpc_map *map;
};

/* How the frames were mapped. */
enum {
	GPC_MAP_TEST_DIRECT,
	GPC_MAP_TEST_VMAP,
	GPC_MAP_TEST_MEMREMAP,
};

static void gpc_map_test_frames(struct gpc_map_test *m, kvm_pfn_t pfn, void *addr,
				bool scattered)
{
	unsigned int i, step = scattered ? 2 : 1;

	for (i = 0; i < GPC_MAP_MAX; i++) {
		m->pfn[i] = pfn + i * step;
		m->addr[i] = addr + i * step * PAGE_SIZE;
	}
}

static void gpc_map_test_use_pages(struct kunit *test, bool scattered)
{
	struct gpc_map_test *m = test->priv;
	unsigned int i;

	m->pages = alloc_pages(GFP_KERNEL, get_order(GPC_MAP_TEST_LEN));
	KUNIT_ASSERT_NOT_NULL(test, m->pages);
	gpc_map_test_frames(m, page_to_pfn(m->pages), page_address(m->pages), scattered);
	for (i = 0; i < GPC_MAP_MAX; i++)
		m->page[i] = pfn_to_page(m->pfn[i]);
}

/* Every other frame is RAM that userspace has mapped like a device's memory. */
static void gpc_map_test_use_numbers(struct kunit *test, bool scattered)
{
	struct gpc_map_test *m = test->priv;
	unsigned int i;

	gpc_map_test_use_pages(test, scattered);
	for (i = 1; i < GPC_MAP_MAX; i += 2)
		m->page[i] = NULL;
}

static void gpc_map_test_use_memory(struct kunit *test, unsigned long where, bool scattered)
{
	struct gpc_map_test *m = test->priv;

	m->memory = memremap(where, GPC_MAP_TEST_LEN, MEMREMAP_WB);
	KUNIT_ASSERT_NOT_NULL(test, m->memory);
	gpc_map_test_frames(m, PHYS_PFN(where), m->memory, scattered);
}

/* Memory without a struct page. */
static void gpc_map_test_use_bare(struct kunit *test, bool scattered)
{
	if (!gpc_test_memory)
		kunit_skip(test, "needs kvm.gpc_test_memory");

	KUNIT_ASSERT_FALSE(test, pfn_valid(PHYS_PFN(gpc_test_memory)));
	gpc_map_test_use_memory(test, gpc_test_memory, scattered);
}

/* Memory that has struct pages, but isn't in the direct map. */
static void gpc_map_test_use_hole(struct kunit *test, bool scattered)
{
	unsigned long pfn = PHYS_PFN(gpc_test_memory - GPC_MAP_TEST_LEN);
	int i;

	for (i = 0; i < 2 * GPC_MAP_MAX; i++) {
		if (!gpc_test_memory || !pfn_valid(pfn + i) || page_is_ram(pfn + i))
			kunit_skip(test, "needs kvm.gpc_test_memory, and a hole before it");
	}

	gpc_map_test_use_memory(test, PFN_PHYS(pfn), scattered);
}

/* A write to the mapping is visible in the frames, and vice versa. */
static void gpc_map_test_expect_alias(struct kunit *test, unsigned int nr)
{
	struct gpc_map_test *m = test->priv;
	u8 *addr = m->khva;
	unsigned int i;

	/* A write that begins in the last byte of one page ends in the next. */
	for (i = 0; i + sizeof(u64) <= nr * PAGE_SIZE; i++) {
		u64 val = i * 0x0101010101010101ull + 0x123456789abcdefull;
		u8 *bytes = (u8 *)&val;
		unsigned int j;

		put_unaligned(val, (u64 *)(addr + i));
		for (j = 0; j < sizeof(val); j++) {
			if (READ_ONCE(m->addr[(i + j) / PAGE_SIZE][(i + j) % PAGE_SIZE]) !=
			    bytes[j])
				break;
		}
		if (j < sizeof(val))
			break;
	}
	KUNIT_EXPECT_EQ(test, i, nr * PAGE_SIZE - sizeof(u64) + 1);

	for (i = 0; i < nr; i++)
		memset(m->addr[i], 0xa0 + i, PAGE_SIZE);
	for (i = 0; i < nr * PAGE_SIZE; i++) {
		if (READ_ONCE(addr[i]) != 0xa0 + i / PAGE_SIZE)
			break;
	}
	KUNIT_EXPECT_EQ(test, i, nr * PAGE_SIZE);
}

/* Map the first @nr frames like a refresh does.  Return how, or an error. */
static int gpc_map_test_map(struct gpc_map_test *m, unsigned int nr)
{
	struct gpc_map *map;

	m->khva = gpc_direct_address(m->pfn, m->page, nr);
	if (m->khva)
		return GPC_MAP_TEST_DIRECT;

	map = gpc_map(m->pfn, m->page, nr);
	if (IS_ERR(map))
		return PTR_ERR(map);

	m->map = map;
	m->khva = map->addr;
	return map->is_memremapped ? GPC_MAP_TEST_MEMREMAP : GPC_MAP_TEST_VMAP;
}

static void gpc_map_test_unmap(struct gpc_map_test *m)
{
	if (m->map)
		gpc_unmap(m->map);
	m->map = NULL;
}

/* A single frame is neither scattered nor contiguous. */
static void gpc_map_test_each_nr(struct kunit *test, int one, int several)
{
	struct gpc_map_test *m = test->priv;
	unsigned int nr;

	for (nr = 1; nr <= GPC_MAP_MAX; nr++) {
		KUNIT_ASSERT_EQ(test, gpc_map_test_map(m, nr), nr > 1 ? several : one);
		gpc_map_test_expect_alias(test, nr);
		gpc_map_test_unmap(m);
		if (several != GPC_MAP_TEST_DIRECT && nr > 1)
			KUNIT_EXPECT_NULL(test, vmalloc_to_page(m->khva));
	}
}

/* In the direct map, at no cost. */
static void gpc_map_test_contiguous(struct kunit *test)
{
	gpc_map_test_use_pages(test, false);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_DIRECT, GPC_MAP_TEST_DIRECT);
}

static void gpc_map_test_scattered(struct kunit *test)
{
	gpc_map_test_use_pages(test, true);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_DIRECT, GPC_MAP_TEST_VMAP);
}

static void gpc_map_test_number_only(struct kunit *test)
{
	gpc_map_test_use_numbers(test, false);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_DIRECT, GPC_MAP_TEST_DIRECT);
}

/* Scattered frames without pages aren't mapped if some memory is encrypted. */
static void gpc_map_test_need_plain_memory(struct kunit *test)
{
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		kunit_skip(test, "memory may be encrypted");
}

static void gpc_map_test_scattered_number_only(struct kunit *test)
{
	gpc_map_test_need_plain_memory(test);
	gpc_map_test_use_numbers(test, true);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_DIRECT, GPC_MAP_TEST_VMAP);
}

static void gpc_map_test_no_struct_page(struct kunit *test)
{
	gpc_map_test_use_bare(test, false);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_MEMREMAP, GPC_MAP_TEST_MEMREMAP);
}

static void gpc_map_test_scattered_no_struct_page(struct kunit *test)
{
	gpc_map_test_need_plain_memory(test);
	gpc_map_test_use_bare(test, true);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_MEMREMAP, GPC_MAP_TEST_VMAP);
}

static void gpc_map_test_hole(struct kunit *test)
{
	gpc_map_test_use_hole(test, false);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_MEMREMAP, GPC_MAP_TEST_MEMREMAP);
}

static void gpc_map_test_scattered_hole(struct kunit *test)
{
	gpc_map_test_need_plain_memory(test);
	gpc_map_test_use_hole(test, true);
	gpc_map_test_each_nr(test, GPC_MAP_TEST_MEMREMAP, GPC_MAP_TEST_VMAP);
}

/*
 * Contiguous pages in another order than their frames, and the same page twice.
 */
static void gpc_map_test_order(struct kunit *test)
{
	struct gpc_map_test *m = test->priv;

	gpc_map_test_use_pages(test, false);
	swap(m->pfn[0], m->pfn[1]);
	swap(m->page[0], m->page[1]);
	swap(m->addr[0], m->addr[1]);
	KUNIT_ASSERT_EQ(test, gpc_map_test_map(m, 2), GPC_MAP_TEST_VMAP);
	gpc_map_test_expect_alias(test, 2);
	gpc_map_test_unmap(m);

	m->pfn[1] = m->pfn[0];
	KUNIT_ASSERT_EQ(test, gpc_map_test_map(m, 2), GPC_MAP_TEST_VMAP);
	WRITE_ONCE(m->khva[0], 0x55);
	KUNIT_EXPECT_EQ(test, READ_ONCE(m->khva[PAGE_SIZE]), 0x55);
	gpc_map_test_unmap(m);
}

/*
 * The local APIC's page is memory without a struct page that exists on every
 * machine, and that may be mapped as long as the mapping isn't used.
 */
static kvm_pfn_t gpc_map_test_bare_pfn(struct kunit *test)
{
	kvm_pfn_t pfn = 0xfee00000ull >> PAGE_SHIFT;

	if (!IS_ENABLED(CONFIG_X86) || pfn_valid(pfn))
		kunit_skip(test, "knows of no memory without a struct page here");

	return pfn;
}

/* As for RAM outside the direct map, which isn't to be had here. */
static void gpc_map_test_not_direct(struct kunit *test)
{
	struct gpc_map_test *m = test->priv;
	struct gpc_map *map;
	unsigned int nr;

	gpc_map_test_use_pages(test, false);

	for (nr = 1; nr <= GPC_MAP_MAX; nr++) {
		map = gpc_map(m->pfn, m->page, nr);
		KUNIT_ASSERT_FALSE(test, IS_ERR(map));
		m->khva = map->addr;
		KUNIT_EXPECT_TRUE(test, is_vmalloc_addr(m->khva));
		gpc_map_test_expect_alias(test, nr);
		gpc_unmap(map);
		KUNIT_EXPECT_NULL(test, vmalloc_to_page(m->khva));
	}
}

static void gpc_map_test_mixed(struct kunit *test)
{
	kvm_pfn_t bare = gpc_map_test_bare_pfn(test);
	struct gpc_map_test *m = test->priv;

	gpc_map_test_use_pages(test, false);
	m->pfn[1] = bare;
	m->page[1] = NULL;
	KUNIT_EXPECT_EQ(test, gpc_map_test_map(m, 2), -EOPNOTSUPP);
	swap(m->pfn[0], m->pfn[1]);
	swap(m->page[0], m->page[1]);
	KUNIT_EXPECT_EQ(test, gpc_map_test_map(m, 2), -EOPNOTSUPP);
}

static int gpc_map_test_init(struct kunit *test)
{
	struct gpc_map_test *m = kunit_kzalloc(test, sizeof(*m), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, m);
	test->priv = m;
	return 0;
}

static void gpc_map_test_exit(struct kunit *test)
{
	struct gpc_map_test *m = test->priv;

	if (!m)
		return;

	gpc_map_test_unmap(m);
	if (m->pages)
		__free_pages(m->pages, get_order(GPC_MAP_TEST_LEN));
	if (m->memory)
		memunmap(m->memory);
}

static struct kunit_case gpc_map_test_cases[] = {
	KUNIT_CASE(gpc_map_test_contiguous),
	KUNIT_CASE(gpc_map_test_scattered),
	KUNIT_CASE(gpc_map_test_not_direct),
	KUNIT_CASE(gpc_map_test_number_only),
	KUNIT_CASE(gpc_map_test_scattered_number_only),
	KUNIT_CASE(gpc_map_test_no_struct_page),
	KUNIT_CASE(gpc_map_test_scattered_no_struct_page),
	KUNIT_CASE(gpc_map_test_hole),
	KUNIT_CASE(gpc_map_test_scattered_hole),
	KUNIT_CASE(gpc_map_test_order),
	KUNIT_CASE(gpc_map_test_mixed),
	{}
};

static struct kunit_suite gpc_map_test_suite = {
	.name = "kvm_gpc_map",
	.init = gpc_map_test_init,
	.exit = gpc_map_test_exit,
	.test_cases = gpc_map_test_cases,
};

kunit_test_suites(&gpc_test_suite, &gpc_map_test_suite);
