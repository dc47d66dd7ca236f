// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM writes to guest memory by itself must survive all that the kernel
 * does to that memory behind the VMM's back.
 */
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define SHINFO_GPA	REGION_GPA
#define PORT		66

static void guest_code(void)
{
}

FIXTURE(gpc_memory) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
};

FIXTURE_SETUP(gpc_memory)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	xen_enable(self->vm);
}

FIXTURE_TEARDOWN(gpc_memory)
{
	kvm_vm_free(self->vm);
}

static bool is_resident(void *page)
{
	unsigned char vec;

	TEST_ASSERT_EQ(mincore(page, PAGE_SIZE, &vec), 0);
	return vec & 1;
}

/*
 * A page of a memfd that was only read is mapped writable, yet clean.  If
 * nothing marks it dirty, reclaim drops it, and the memfd has a hole again.
 */
TEST_F(gpc_memory, reclaim_of_clean_page)
{
	struct xen_shared_info *shinfo;
	u64 pending;

	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_SHMEM, REGION_GPA, REGION_SLOT, 1, 0);
	shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);

	/*
	 * Neither the new page nor its PTE, which is writable, is dirty.  The
	 * page is on this CPU's list of new pages, which reclaim drains.
	 */
	pin_self_to_any_cpu();
	TEST_ASSERT_EQ(madvise(shinfo, PAGE_SIZE, MADV_REMOVE), 0);
	TEST_ASSERT_EQ(READ_ONCE(shinfo->evtchn_pending[0]), 0);

	xen_set_shared_info(self->vm, SHINFO_GPA);
	xen_evtchn_send(self->vcpu, PORT);
	TEST_ASSERT_EQ(madvise(shinfo, PAGE_SIZE, MADV_PAGEOUT), 0);
	if (is_resident(shinfo))
		SKIP(return, "The page wasn't reclaimed");

	pending = READ_ONCE(shinfo->evtchn_pending[PORT / 64]);
	EXPECT_EQ(pending, BIT_ULL(PORT % 64));
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
