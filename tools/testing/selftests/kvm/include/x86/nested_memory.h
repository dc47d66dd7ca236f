/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory of an L1 hypervisor whose pages a test chooses and changes.
 *
 * Memory that the kernel doesn't manage is tested if its physical address is
 * given, as environment variable KVM_BARE_MEMORY: a page of it, which may be
 * written to, follows a page that is no RAM but has a struct page, e.g. if
 * mem= ends a MiB before a section of memory (128 MiB) does, and
 * KVM_BARE_MEMORY is where the section ends.
 */
#ifndef SELFTEST_KVM_NESTED_MEMORY_H
#define SELFTEST_KVM_NESTED_MEMORY_H

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "processor.h"
#include "test_util.h"

#define NEEDS_BARE_MEMORY	"needs KVM_BARE_MEMORY and /dev/mem"

/* A page that takes longer is taken for one that can't be paged out. */
#define PAGE_OUT_LIMIT_S	5

static inline off_t bare_memory(void)
{
	const char *s = getenv("KVM_BARE_MEMORY");

	return s ? strtoull(s, NULL, 0) : 0;
}

static inline void map_over(void *mem, size_t size, int flags, int fd, off_t offset)
{
	TEST_ASSERT(mmap(mem, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset) == mem,
		    "mmap(): errno %d", errno);
}

/* Map physical memory from @where on.  Return false if that isn't possible. */
static inline bool map_physical(void *mem, size_t size, off_t where)
{
	int fd;

	if (!bare_memory())
		return false;

	fd = open("/dev/mem", O_RDWR);
	if (fd < 0)
		return false;

	map_over(mem, size, MAP_SHARED, fd, where);
	close(fd);
	return true;
}

static inline void map_anonymous(void *mem, size_t size)
{
	map_over(mem, size, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* In a pipe, so that what takes its place is another page. */
static inline void keep_page(void *page)
{
	struct iovec iov = { .iov_base = page, .iov_len = PAGE_SIZE };
	int fds[2];

	TEST_ASSERT_EQ(pipe(fds), 0);
	TEST_ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), PAGE_SIZE);
}

static inline void drop_page(void *page)
{
	keep_page(page);
	TEST_ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
}

static inline void remap_page(void *page)
{
	keep_page(page);
	map_anonymous(page, PAGE_SIZE);
}

/* Another page, with the same content. */
static inline void renew_page(void *page)
{
	u8 copy[PAGE_SIZE];

	memcpy(copy, page, PAGE_SIZE);
	TEST_ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
	memcpy(page, copy, PAGE_SIZE);
}

static inline bool has_two_nodes(void)
{
	return !access("/sys/devices/system/node/node1", F_OK);
}

/* Return the node that the page is on, or -errno. */
static inline int move_to_node(void *page, int node)
{
	int status = -1;

	syscall(__NR_move_pages, 0, 1, &page, &node, &status, MPOL_MF_MOVE);
	return status;
}

static inline bool has_swap(void)
{
	char line[256];
	int nr = 0;
	FILE *f;

	f = fopen("/proc/swaps", "r");
	if (!f)
		return false;

	while (fgets(line, sizeof(line), f))
		nr++;
	fclose(f);
	return nr > 1;
}

static inline bool is_resident(void *page)
{
	unsigned char vec;

	TEST_ASSERT_EQ(mincore(page, PAGE_SIZE, &vec), 0);
	return vec & 1;
}

/* Return whether the page is paged out, which the swap device may delay. */
static inline bool page_out(void *page)
{
	struct timespec start, elapsed;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		TEST_ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_PAGEOUT), 0);
		if (!is_resident(page))
			return true;

		sched_yield();
		elapsed = timespec_elapsed(start);
	} while (elapsed.tv_sec < PAGE_OUT_LIMIT_S);

	return false;
}

#endif /* SELFTEST_KVM_NESTED_MEMORY_H */
