// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of guest_memfd, included by guest_memfd.c.
 *
 * Only a VM with mirrored page tables, i.e. TDX, makes a difference between the
 * filters of an invalidation, so test the function that selects them.
 */

#include <kunit/test.h>

struct gmem_filter_case {
	const char *name;
	u64 flags;
	enum kvm_gfn_range_filter filter;
};

static const struct gmem_filter_case gmem_filter_cases[] = {
	{ "no flags", 0, KVM_FILTER_PRIVATE },
	{ "init shared", GUEST_MEMFD_FLAG_INIT_SHARED, KVM_FILTER_SHARED },
	{ "mmap, init shared", GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
	  KVM_FILTER_SHARED },
	/* A guest's shared accesses find private memory: both are mapped. */
	{ "mmap", GUEST_MEMFD_FLAG_MMAP, KVM_FILTER_SHARED | KVM_FILTER_PRIVATE },
};

KUNIT_ARRAY_PARAM_DESC(gmem_filter, gmem_filter_cases, name);

static void gmem_test_filter(struct kunit *test)
{
	const struct gmem_filter_case *c = test->param_value;
	struct gmem_inode *gi = kunit_kzalloc(test, sizeof(*gi), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, gi);
	gi->flags = c->flags;
	KUNIT_EXPECT_EQ(test, kvm_gmem_get_invalidate_filter(&gi->vfs_inode), c->filter);
}

static struct kunit_case gmem_test_cases[] = {
	KUNIT_CASE_PARAM(gmem_test_filter, gmem_filter_gen_params),
	{}
};

static struct kunit_suite gmem_test_suite = {
	.name = "kvm_gmem",
	.test_cases = gmem_test_cases,
};

kunit_test_suite(gmem_test_suite);
