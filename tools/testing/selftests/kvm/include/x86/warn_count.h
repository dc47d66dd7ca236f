/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether the kernel has WARNed in the course of a test.
 */
#ifndef SELFTEST_KVM_WARN_COUNT_H
#define SELFTEST_KVM_WARN_COUNT_H

#include <stdio.h>

#include "test_util.h"

/*
 * Most of KVM's WARNs are once per boot.  Arm them again, so that a case sees
 * its own even if another case or test was first; that takes debugfs.
 */
static inline void rearm_warn_once(void)
{
	FILE *f = fopen("/sys/kernel/debug/clear_warn_once", "w");

	if (f) {
		fputs("1\n", f);
		fclose(f);
	}
}

/* The WARNs since the machine was booted. */
static inline int read_warn_count(void)
{
	FILE *f = fopen("/sys/kernel/warn_count", "r");
	int count;

	TEST_ASSERT(f, "Failed to open /sys/kernel/warn_count");
	TEST_ASSERT_EQ(fscanf(f, "%d", &count), 1);
	fclose(f);
	return count;
}

#endif /* SELFTEST_KVM_WARN_COUNT_H */
