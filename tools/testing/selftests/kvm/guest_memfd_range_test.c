// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest_memfd with many memslots: each range of it is punched, and exactly
 * the pages of that range are taken from the guest.
 *
 * The memslots are in the file in another order than in the guest's memory, and
 * have one to three pages each, with gaps in both.  The guest's data shows if a
 * page isn't unmapped though it was punched: the guest goes on reading the old
 * one.  The number of pages that KVM maps shows if a page is unmapped though it
 * wasn't punched.
 */
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "kvm_test_harness.h"
#include "test_util.h"
#include "ucall_common.h"

/*
 * Skip the first 4gb, which contain the memory of slot 0, and the PCI hole and
 * other MMIO regions that need to be avoided.
 */
#define GMEM_GPA		SZ_4G
#define GMEM_SLOT		10
#define GMEM_FLAGS		(GUEST_MEMFD_FLAG_MMAP |	\
				 GUEST_MEMFD_FLAG_INIT_SHARED)

#define NR_SLOTS		64

/* Of the guest's memory, for each memslot. */
#define GPA_STRIDE		5

/* Pages of a memslot, and how many follow it that are in no memslot. */
static const struct {
	int bound;
	int gap;
} layout[] = {
	{ 3, 0 }, { 1, 0 }, { 1, 1 }, { 1, 0 }, { 2, 0 }, { 1, 0 }, { 1, 1 }, { 1, 0 },
};

#define NR_FILE_PAGES		(NR_SLOTS / 8 * 13)

/* Page of the guest's memory of each page of the file; 0 if not bound. */
static u64 gva_of[NR_FILE_PAGES];

/* What the guest finds in each. */
static u64 seen[NR_FILE_PAGES];

static void guest_code(void)
{
	int i;

	for (;;) {
		for (i = 0; i < NR_FILE_PAGES; i++) {
			if (gva_of[i])
				seen[i] = READ_ONCE(*(u64 *)gva_of[i]);
		}
		GUEST_SYNC(0);
	}
}

struct range_vm {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	size_t page_size;
	char *mem;
	int fd;
	int nr_bound;
};

FIXTURE(guest_memfd_range) {
	struct range_vm rv;
};

static u64 *file_page(struct range_vm *rv, int page)
{
	return (u64 *)(rv->mem + page * rv->page_size);
}

static u64 pattern(int page)
{
	return 0xc0ffee0000ULL + page;
}

static void fill(struct range_vm *rv, int start, int end)
{
	int i;

	for (i = start; i < end; i++)
		WRITE_ONCE(*file_page(rv, i), pattern(i));
}

static void bind(struct range_vm *rv, int slot, int page, int nr)
{
	/* 37 is coprime to the number of memslots: their order is shuffled. */
	int place = (NR_SLOTS - slot) * 37 % NR_SLOTS;
	gpa_t gpa = GMEM_GPA + place * GPA_STRIDE * rv->page_size;
	int i;

	vm_set_user_memory_region2(rv->vm, GMEM_SLOT + slot, KVM_MEM_GUEST_MEMFD,
				   gpa, nr * rv->page_size, NULL, rv->fd,
				   page * rv->page_size);
	virt_map(rv->vm, gpa, gpa, nr);

	for (i = 0; i < nr; i++)
		gva_of[page + i] = gpa + i * rv->page_size;
	rv->nr_bound += nr;
}

FIXTURE_SETUP(guest_memfd_range)
{
	struct range_vm *rv = &self->rv;
	int slot, page = 0;

	rv->vm = vm_create_with_one_vcpu(&rv->vcpu, guest_code);
	rv->page_size = getpagesize();
	TEST_REQUIRE(rv->vm->page_size == rv->page_size);

	rv->fd = vm_create_guest_memfd(rv->vm, NR_FILE_PAGES * rv->page_size,
				       GMEM_FLAGS);
	rv->mem = kvm_mmap(NR_FILE_PAGES * rv->page_size, PROT_READ | PROT_WRITE,
			   MAP_SHARED, rv->fd);

	for (slot = 0; slot < NR_SLOTS; slot++) {
		bind(rv, slot, page, layout[slot % 8].bound);
		page += layout[slot % 8].bound + layout[slot % 8].gap;
	}
	TEST_ASSERT_EQ(page, NR_FILE_PAGES);
	sync_global_to_guest(rv->vm, gva_of);
}

static void close_file(struct range_vm *rv)
{
	kvm_munmap(rv->mem, NR_FILE_PAGES * rv->page_size);
	kvm_close(rv->fd);
	rv->fd = -1;
}

FIXTURE_TEARDOWN(guest_memfd_range)
{
	struct range_vm *rv = &self->rv;

	if (rv->fd >= 0)
		close_file(rv);
	kvm_vm_free(rv->vm);
}

static void guest_reads_all(struct range_vm *rv)
{
	struct ucall uc;

	vcpu_run(rv->vcpu);
	TEST_ASSERT_EQ(get_ucall(rv->vcpu, &uc), UCALL_SYNC);
	sync_global_from_guest(rv->vm, seen);
}

static void punch(struct range_vm *rv, int start, int end)
{
	kvm_fallocate(rv->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      start * rv->page_size, (end - start) * rv->page_size);
}

static void expect_mapped(struct range_vm *rv, u64 want, int start, int end)
{
	u64 mapped = vm_get_stat(rv->vm, pages_4k);

	TEST_ASSERT(mapped == want, "%lu pages are mapped, not %lu, after [%d, %d)",
		    mapped, want, start, end);
}

/* The guest has mapped new pages from @start to @end, which are empty. */
static void expect_data(int start, int end)
{
	int i;

	for (i = 0; i < NR_FILE_PAGES; i++) {
		u64 want = i >= start && i < end ? 0 : pattern(i);

		TEST_ASSERT(!gva_of[i] || seen[i] == want, "Page %d has 0x%lx after [%d, %d)",
			    i, seen[i], start, end);
	}
}

static int nr_bound(int start, int end)
{
	int nr = 0;

	while (start < end)
		nr += !!gva_of[start++];

	return nr;
}

TEST_F_TIMEOUT(guest_memfd_range, punch_every_range, 600)
{
	struct range_vm *rv = &self->rv;
	int start, end;
	u64 mapped;

	fill(rv, 0, NR_FILE_PAGES);
	guest_reads_all(rv);
	mapped = vm_get_stat(rv->vm, pages_4k);
	TEST_ASSERT(mapped >= rv->nr_bound, "Only %lu pages are mapped", mapped);

	for (start = 0; start < NR_FILE_PAGES; start++) {
		for (end = start + 1; end <= NR_FILE_PAGES; end++) {
			punch(rv, start, end);
			expect_mapped(rv, mapped - nr_bound(start, end), start, end);

			guest_reads_all(rv);
			expect_data(start, end);
			expect_mapped(rv, mapped, start, end);

			fill(rv, start, end);
		}
	}
}

/* Closing the file unmaps all of it: the memory is there, but not the file. */
TEST_F(guest_memfd_range, close)
{
	struct range_vm *rv = &self->rv;
	u64 mapped;

	fill(rv, 0, NR_FILE_PAGES);
	guest_reads_all(rv);
	mapped = vm_get_stat(rv->vm, pages_4k);

	close_file(rv);
	EXPECT_EQ(vm_get_stat(rv->vm, pages_4k), mapped - rv->nr_bound);
	EXPECT_EQ(_vcpu_run(rv->vcpu), -1);
	EXPECT_EQ(errno, EFAULT);
}

TEST_HARNESS_MAIN
