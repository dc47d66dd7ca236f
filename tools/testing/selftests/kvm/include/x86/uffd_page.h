/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A page that is missing until a test brings it.  A fault on it waits
 * meanwhile.
 */
#ifndef SELFTEST_KVM_UFFD_PAGE_H
#define SELFTEST_KVM_UFFD_PAGE_H

#include <linux/userfaultfd.h>
#include <fcntl.h>
#include <poll.h>
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
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	TEST_ASSERT(uffd >= 0, "userfaultfd(): %s", strerror(errno));
	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_API, &api), 0);
	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_REGISTER, &reg), 0);
	TEST_ASSERT_EQ(madvise(page, PAGE_SIZE, MADV_DONTNEED), 0);
	return uffd;
}

static inline bool __uffd_page_is_wanted(int uffd, int timeout_ms)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };

	TEST_ASSERT(poll(&pfd, 1, timeout_ms) >= 0, "poll(): %s", strerror(errno));
	return pfd.revents & POLLIN;
}

/* Whether there is a fault that uffd_page_await() has not seen. */
static inline bool uffd_page_is_wanted(int uffd)
{
	return __uffd_page_is_wanted(uffd, 0);
}

/* Wait for a fault on the page. */
static inline void uffd_page_await(int uffd, void *page)
{
	struct uffd_msg msg;

	TEST_ASSERT_EQ(__uffd_page_is_wanted(uffd, -1), true);
	TEST_ASSERT_EQ(read(uffd, &msg, sizeof(msg)), sizeof(msg));
	TEST_ASSERT_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	TEST_ASSERT_EQ(msg.arg.pagefault.address & ~(PAGE_SIZE - 1ull), (unsigned long)page);
}

/* Have all attempts to get the page fail, including faults that wait for it. */
static inline void uffd_page_deny(int uffd, void *page)
{
	struct uffdio_range range = { .start = (unsigned long)page, .len = PAGE_SIZE };

	TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_NONE), 0);
	TEST_ASSERT_EQ(ioctl(uffd, UFFDIO_WAKE, &range), 0);
}

static inline void uffd_page_allow(void *page)
{
	TEST_ASSERT_EQ(mprotect(page, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
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
