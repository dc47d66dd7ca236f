/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A page that is missing until a test brings it, and who wants it meanwhile waits.
 */
#ifndef SELFTEST_KVM_UFFD_PAGE_H
#define SELFTEST_KVM_UFFD_PAGE_H

#include <linux/userfaultfd.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "processor.h"
#include "test_util.h"

/* Take the page away, if it is there. */
static inline int uffd_page_take(void *page)
{
	struct uffdio_register reg = {
		.range = { .start = (unsigned long)page, .len = PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	TEST_ASSERT(uffd >= 0, "userfaultfd(): %s", strerror(errno));
	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	TEST_ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
	return uffd;
}

/* Wait until somebody wants the page. */
static inline void uffd_page_await(int uffd, void *page)
{
	struct uffd_msg msg;

	TEST_ASSERT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	TEST_ASSERT_EQ(msg.arg.pagefault.address & ~(PAGE_SIZE - 1ull), (unsigned long)page);
}

/* Bring the page, with zeroes. */
static inline void uffd_page_bring(int uffd, void *page)
{
	struct uffdio_zeropage zero = {
		.range = { .start = (unsigned long)page, .len = PAGE_SIZE },
	};

	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
}

#endif /* SELFTEST_KVM_UFFD_PAGE_H */
