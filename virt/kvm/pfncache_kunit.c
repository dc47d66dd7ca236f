// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of KVM's gfn-to-pfn cache: what include/linux/kvm_gpc.h promises,
 * case by case, each error of each function among them.  Userspace cannot tell
 * these errors apart, nor make all of them happen.
 *
 * Included by pfncache.c.  There is no VM, only as much of a struct kvm as the
 * cache looks at, with two pages of memory in a memslot.
 */
#include <kunit/test.h>
#include <linux/mman.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#define GPC_GFN		0x100ul
#define GPC_GPA		gfn_to_gpa(GPC_GFN)
#define GPC_PAGES	2
#define GPC_LEN		64
/* A place that has no memslot. */
#define GPC_NO_GPA	gfn_to_gpa(GPC_GFN + GPC_PAGES)

struct gpc_test {
	struct kvm *kvm;
	struct kvm_memory_slot slot;
	struct gfn_to_pfn_cache gpc;
	struct gfn_to_pfn_cache gpc2;
	unsigned long uaddr;
	unsigned long dirty_bitmap;
	int lookups;
};

/* Stubs of functions that fail. */
static kvm_pfn_t gpc_lookup_poisoned(struct kvm_follow_pfn *kfp)
{
	return KVM_PFN_ERR_HWPOISON;
}

/* The invalidation ends after a while, for the test to fail rather than hang. */
static kvm_pfn_t gpc_lookup_patient(struct kvm_follow_pfn *kfp)
{
	struct gpc_test *t = kunit_get_current_test()->priv;

	if (++t->lookups == 1000)
		WRITE_ONCE(t->kvm->mn_active_invalidate_count, 0);

	return hva_to_pfn(kfp);
}

static void *gpc_map_fails(kvm_pfn_t pfn)
{
	return NULL;
}

static void gpc_test_set_memslot(struct gpc_test *t, bool present)
{
	struct kvm_memslots *slots = &t->kvm->__memslots[0][0];

	slots->gfn_tree = RB_ROOT;
	if (present) {
		struct rb_node *node = &t->slot.gfn_node[slots->node_idx];

		rb_link_node(node, NULL, &slots->gfn_tree.rb_node);
		rb_insert_color(node, &slots->gfn_tree);
	}
	atomic_long_set(&slots->last_used_slot, 0);
	slots->generation += 2;
}

static void gpc_test_invalidate(struct gpc_test *t)
{
	gfn_to_pfn_cache_invalidate_start(t->kvm, t->uaddr, t->uaddr + GPC_PAGES * PAGE_SIZE);
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

/* As if the task was killed, for a moment. */
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

/*
 * kvm->srcu is not held: it does not matter for a VM without users, and a test
 * ends in another task than it began in.
 */
static int gpc_test_init(struct kunit *test)
{
	struct gpc_test *t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, t);
	t->kvm = kunit_kzalloc(test, sizeof(*t->kvm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, t->kvm);
	KUNIT_ASSERT_EQ(test, kunit_attach_mm(), 0);

	t->uaddr = kunit_vm_mmap(test, NULL, 0, GPC_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(t->uaddr));

	t->kvm->mm = current->mm;
	spin_lock_init(&t->kvm->gpc_lock);
	INIT_LIST_HEAD(&t->kvm->gpc_list);
	KUNIT_ASSERT_EQ(test, init_srcu_struct(&t->kvm->srcu), 0);
	test->priv = t;

	t->slot.base_gfn = GPC_GFN;
	t->slot.npages = GPC_PAGES;
	t->slot.userspace_addr = t->uaddr;
	rcu_assign_pointer(t->kvm->memslots[0], &t->kvm->__memslots[0][0]);
	gpc_test_set_memslot(t, true);

	kvm_gpc_init(&t->gpc, t->kvm);
	kvm_gpc_init(&t->gpc2, t->kvm);
	return 0;
}

static void gpc_test_exit(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	if (!t)
		return;

	kvm_gpc_deactivate(&t->gpc);
	kvm_gpc_deactivate(&t->gpc2);
	KUNIT_EXPECT_TRUE(test, list_empty(&t->kvm->gpc_list));
	cleanup_srcu_struct(&t->kvm->srcu);
}

static void gpc_test_activate(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, GPC_LEN), 0);
}

/* The cache has an area at @gpa, which the caller can write and userspace read. */
static void gpc_test_expect_area(struct kunit *test, struct gfn_to_pfn_cache *gpc, gpa_t gpa)
{
	struct gpc_test *t = test->priv;
	u32 __user *uptr = (u32 __user *)(t->uaddr + gpa - GPC_GPA);
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

	/* Elsewhere in the page, in the other page, and at no alignment at all. */
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
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + 8);

	kvm_gpc_deactivate(&t->gpc);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), INVALID_GPA);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), 0);

	/* Once more does no harm. */
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
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, PAGE_SIZE + 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, -1ul), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + 1, PAGE_SIZE), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + 1, -1ul), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, end - 1, 2), -EINVAL);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, end - 1, 1), 0);
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

/* Memory that is mapped no more, and an address where none ever was. */
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
	kunit_activate_static_stub(test, gpc_lookup, gpc_lookup_poisoned);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -EHWPOISON);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN), -EHWPOISON);
	kunit_deactivate_static_stub(test, gpc_lookup);

	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

static void gpc_test_map_fails(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	kunit_activate_static_stub(test, gpc_map, gpc_map_fails);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN), -ENOMEM);

	/* The page that is mapped already, it does not map again. */
	gpc_test_invalidate(t);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	/* Without it, it has to. */
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA + PAGE_SIZE, GPC_LEN), -ENOMEM);
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENOMEM);
	kunit_deactivate_static_stub(test, gpc_map);

	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* Pages that nobody has touched have to be faulted in, which a dying task does not. */
static void gpc_test_fatal_signal(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int lock_error, activate_error;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, vm_munmap(t->uaddr, PAGE_SIZE), 0);
	KUNIT_ASSERT_EQ(test, vm_mmap(NULL, t->uaddr, PAGE_SIZE, PROT_READ | PROT_WRITE,
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

/* Nor does it wait for an invalidation to end. */
static void gpc_test_fatal_signal_retry(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int lock_error, activate_error;

	gpc_test_activate(test);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
	gpc_test_invalidate(t);

	WRITE_ONCE(t->kvm->mn_active_invalidate_count, 1);
	kunit_activate_static_stub(test, gpc_lookup, gpc_lookup_patient);
	gpc_test_set_killed(true);
	lock_error = gpc_test_lock_error(&t->gpc);
	activate_error = kvm_gpc_activate(&t->gpc2, GPC_GPA, GPC_LEN);
	gpc_test_set_killed(false);
	kunit_deactivate_static_stub(test, gpc_lookup);
	WRITE_ONCE(t->kvm->mn_active_invalidate_count, 0);

	KUNIT_EXPECT_EQ(test, lock_error, -EINTR);
	KUNIT_EXPECT_EQ(test, activate_error, -EINTR);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

static void gpc_test_trylock_stale(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	gpc_test_activate(test);
	gpc_test_invalidate(t);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc), -EWOULDBLOCK);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);
}

/* While somebody changes the cache, or is about to, trylock does not wait. */
static void gpc_test_trylock_busy(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	int error;

	gpc_test_activate(test);
	write_lock(&t->gpc.lock);
	error = gpc_test_trylock_error(&t->gpc);
	write_unlock(&t->gpc.lock);
	KUNIT_EXPECT_EQ(test, error, -EWOULDBLOCK);
}

/* What a cache that is not touched by an invalidation has, it keeps. */
static void gpc_test_invalidate_elsewhere(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long uaddr = t->uaddr + PAGE_SIZE;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	gfn_to_pfn_cache_invalidate_start(t->kvm, uaddr, uaddr + PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, gpc_test_trylock_error(&t->gpc2), -EWOULDBLOCK);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_trylock(&t->gpc)));
	kvm_gpc_unlock(&t->gpc);
}

/* On error, an active cache has the area that it had, and an idle one none. */
static void gpc_test_all_or_nothing(struct kunit *test)
{
	struct gpc_test *t = test->priv;

	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_FALSE(test, kvm_gpc_is_active(&t->gpc));
	KUNIT_EXPECT_EQ(test, gpc_test_lock_error(&t->gpc), -ENXIO);

	gpc_test_activate(test);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_GPA, PAGE_SIZE + 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate_hva(&t->gpc, PAGE_OFFSET, GPC_LEN), -EINVAL);
	KUNIT_EXPECT_EQ(test, kvm_gpc_gpa(&t->gpc), GPC_GPA);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA);

	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr + 8, GPC_LEN), 0);
	KUNIT_EXPECT_EQ(test, kvm_gpc_activate(&t->gpc, GPC_NO_GPA, GPC_LEN), -ENOENT);
	KUNIT_EXPECT_EQ(test, kvm_gpc_hva(&t->gpc), t->uaddr + 8);
	gpc_test_expect_area(test, &t->gpc, GPC_GPA + 8);
}

/* Two caches at once, and one twice, as an interrupt of a reader might. */
static void gpc_test_nested(struct kunit *test)
{
	struct gpc_test *t = test->priv;
	unsigned long flags;
	void *p, *p2, *p3;

	gpc_test_activate(test);
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate(&t->gpc2, GPC_GPA + PAGE_SIZE, GPC_LEN), 0);

	p = kvm_gpc_lock(&t->gpc);
	local_irq_save(flags);
	p2 = kvm_gpc_trylock(&t->gpc2);
	p3 = kvm_gpc_trylock(&t->gpc);
	if (!IS_ERR(p3))
		kvm_gpc_unlock(&t->gpc);
	if (!IS_ERR(p2))
		kvm_gpc_unlock(&t->gpc2);
	local_irq_restore(flags);
	if (!IS_ERR(p))
		kvm_gpc_unlock(&t->gpc);

	KUNIT_EXPECT_FALSE(test, IS_ERR(p));
	KUNIT_EXPECT_FALSE(test, IS_ERR(p2));
	KUNIT_EXPECT_PTR_EQ(test, p3, p);
	KUNIT_EXPECT_PTR_NE(test, p2, p);
}

/* Only those who say that they wrote to an area make it dirty. */
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

	/* There is no memslot to be dirty. */
	*bitmap = 0;
	KUNIT_ASSERT_EQ(test, kvm_gpc_activate_hva(&t->gpc, t->uaddr, GPC_LEN), 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR(kvm_gpc_lock(&t->gpc)));
	kvm_gpc_unlock_dirty(&t->gpc);
	KUNIT_EXPECT_EQ(test, *bitmap, 0);
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
	KUNIT_CASE(gpc_test_fatal_signal_retry),
	KUNIT_CASE(gpc_test_trylock_stale),
	KUNIT_CASE(gpc_test_trylock_busy),
	KUNIT_CASE(gpc_test_invalidate_elsewhere),
	KUNIT_CASE(gpc_test_all_or_nothing),
	KUNIT_CASE(gpc_test_nested),
	KUNIT_CASE(gpc_test_dirty),
	{}
};

static struct kunit_suite gpc_test_suite = {
	.name = "kvm_gpc",
	.init = gpc_test_init,
	.exit = gpc_test_exit,
	.test_cases = gpc_test_cases,
};

kunit_test_suite(gpc_test_suite);
