/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Allocations that fail, one after another: a test repeats what it tests, with
 * the first, the second, ... allocation of this thread failing, until there are
 * no more.  Documentation/fault-injection/fault-injection.rst
 */
#ifndef SELFTEST_KVM_FAIL_NTH_H
#define SELFTEST_KVM_FAIL_NTH_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "test_util.h"

static inline void fail_nth_write(int fd, const char *val)
{
	TEST_ASSERT(fd >= 0, "open(): errno %d", errno);
	TEST_ASSERT_EQ(write(fd, val, strlen(val)), (ssize_t)strlen(val));
}

static inline void fail_nth_set(const char *path, const char *val)
{
	int fd = open(path, O_WRONLY);

	fail_nth_write(fd, val);
	close(fd);
}

/* Let each allocation fail, also one for userspace.  False if none can. */
static inline bool fail_nth_enable(void)
{
	if (access("/sys/kernel/debug/failslab", F_OK) ||
	    access("/sys/kernel/debug/fail_page_alloc", F_OK) ||
	    access("/proc/self/fail-nth", W_OK))
		return false;

	fail_nth_set("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	fail_nth_set("/sys/kernel/debug/failslab/verbose", "0");
	fail_nth_set("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	fail_nth_set("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	fail_nth_set("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	fail_nth_set("/sys/kernel/debug/fail_page_alloc/verbose", "0");
	return true;
}

/* The @nth allocation of this thread from now on fails.  For fail_nth_end(). */
static inline int fail_nth_begin(int nth)
{
	int fd = open("/proc/thread-self/fail-nth", O_RDWR);
	char val[16];

	snprintf(val, sizeof(val), "%d", nth);
	fail_nth_write(fd, val);
	return fd;
}

/* Return whether there were as many allocations, i.e. one has failed. */
static inline bool fail_nth_end(int fd)
{
	char val[16] = {};

	TEST_ASSERT(pread(fd, val, sizeof(val) - 1, 0) > 0, "read(fail-nth): errno %d", errno);
	fail_nth_write(fd, "0");
	close(fd);
	return atoi(val) == 0;
}

#endif /* SELFTEST_KVM_FAIL_NTH_H */
