/* SPDX-License-Identifier: GPL-2.0-only */
/* Memory errors that a test injects. */
#ifndef SELFTEST_KVM_HWPOISON_H
#define SELFTEST_KVM_HWPOISON_H

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"
#include "processor.h"
#include "test_util.h"

/* In a child, which has the same page.  The error may end it. */
static inline bool try_hwpoison(u8 *addr)
{
	pid_t pid = fork();
	int status;

	TEST_ASSERT(pid >= 0, "fork() failed, errno: %d (%s)", errno, strerror(errno));
	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		if (madvise(addr, PAGE_SIZE, MADV_HWPOISON))
			_exit(KSFT_FAIL);
		/* If the error didn't end the child. */
		_exit(0);
	}

	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return !WIFEXITED(status) || !WEXITSTATUS(status);
}

static inline void hwpoison(u8 *addr)
{
	__TEST_REQUIRE(try_hwpoison(addr), "MADV_HWPOISON");
}

#endif /* SELFTEST_KVM_HWPOISON_H */
