// SPDX-License-Identifier: GPL-2.0-only
/*
 * When guest_memfd calls the hooks of the architecture: a page is made private
 * when it is about to be mapped as such, and reclaimed when it leaves the file.
 * Neither is done for a change of attributes, nor for shared memory that KVM
 * itself accesses, nor with mmu_lock held.  And how often it unmaps a memslot
 * from which pages go.
 *
 * Kprobes count the calls, so this works without a confidential guest, but
 * needs a kernel with KVM_AMD_SEV and KPROBE_EVENTS, and an AMD processor.
 * kvm_arch_gmem_*() begin with a static call, where a kprobe cannot be; the
 * kprobes are in what they call.
 */
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "test_util.h"
#include "xen.h"

#define TRACEFS		"/sys/kernel/tracing"
#define GROUP		"kvm_gmem_hooks"

#define GPA		0xc0000000ULL
#define SLOT		10
#define NR_PAGES	16
#define SIZE		(NR_PAGES * PAGE_SIZE)

enum {
	MAKE_PRIVATE,
	RECLAIM,
	INVALIDATE,
	/* With mmu_lock held. */
	UNMAP,
	/* KVM finds pages in the direct map, or maps them, to access them. */
	DIRECT,
	MAP,
	NR_HOOKS,
};

static const char *const hooks[NR_HOOKS] = {
	[MAKE_PRIVATE] = "sev_gmem_make_private",
	[RECLAIM] = "sev_gmem_make_shared",
	[INVALIDATE] = "sev_gmem_invalidate_range",
	[UNMAP] = "kvm_mmu_unmap_gfn_range",
	[DIRECT] = "gpc_direct_address",
	[MAP] = "gpc_map",
};

static int write_file(const char *path, int flags, const char *text)
{
	int fd = open(path, O_WRONLY | flags), r;

	if (fd < 0)
		return -1;
	r = write(fd, text, strlen(text)) < 0 ? -1 : 0;
	close(fd);
	return r;
}

static void remove_probes(void)
{
	char text[128];
	int i;

	write_file(TRACEFS "/events/" GROUP "/enable", 0, "0");
	for (i = 0; i < NR_HOOKS; i++) {
		snprintf(text, sizeof(text), "-:" GROUP "/%s", hooks[i]);
		write_file(TRACEFS "/kprobe_events", O_APPEND, text);
	}
}

/* Return false if the kernel has no kprobes, or not all of the hooks. */
static bool add_probes(void)
{
	char text[128];
	int i;

	if (access(TRACEFS "/kprobe_events", F_OK) &&
	    mount("tracefs", TRACEFS, "tracefs", 0, NULL))
		return false;
	if (access(TRACEFS "/kprobe_events", F_OK))
		return false;

	/* An optimized kprobe disables preemption itself. */
	write_file("/proc/sys/debug/kprobes-optimization", 0, "0");
	remove_probes();
	for (i = 0; i < NR_HOOKS; i++) {
		snprintf(text, sizeof(text), "p:" GROUP "/%s %s", hooks[i], hooks[i]);
		if (write_file(TRACEFS "/kprobe_events", O_APPEND, text)) {
			TEST_ASSERT(errno == ENOENT, "A probe of %s: errno %d", hooks[i], errno);
			return false;
		}
	}

	TEST_ASSERT(!write_file(TRACEFS "/events/" GROUP "/enable", 0, "1"),
		    "Enabling the probes: errno %d", errno);
	return true;
}

static unsigned long nr_calls(int hook)
{
	unsigned long hits, missed, ret = ~0ul;
	char name[64];
	FILE *f;

	f = fopen(TRACEFS "/kprobe_profile", "r");
	TEST_ASSERT(f, "fopen(kprobe_profile): errno %d", errno);
	while (fscanf(f, "%63s %lu %lu", name, &hits, &missed) == 3) {
		if (!strcmp(name, hooks[hook])) {
			TEST_ASSERT_EQ(missed, 0);
			ret = hits;
		}
	}
	fclose(f);
	TEST_ASSERT(ret != ~0ul, "There is no probe of %s", hooks[hook]);
	return ret;
}

/*
 * How deep preemption was disabled in a hook's calls, the least and the most,
 * since the trace was emptied.  Each lock that spins counts.  The trace takes
 * one off, which a kprobe hasn't added.
 */
struct depth {
	long min;
	long max;
};

static void empty_trace(void)
{
	TEST_ASSERT(!write_file(TRACEFS "/trace", O_TRUNC, " "), "write(trace): errno %d", errno);
}

static struct depth preempt_depth(int hook)
{
	struct depth d = { .min = LONG_MAX, .max = -1 };
	char line[512], name[64];
	FILE *f;

	snprintf(name, sizeof(name), ": %s: ", hooks[hook]);
	f = fopen(TRACEFS "/trace", "r");
	TEST_ASSERT(f, "fopen(trace): errno %d", errno);
	while (fgets(line, sizeof(line), f)) {
		/* TASK [CPU] FLAGS TIME: NAME: ... */
		char *flags = strstr(line, "] ");

		if (flags && strstr(line, name)) {
			/* The fourth flag, a digit or a dot. */
			char digit[] = { flags[2 + 3], 0 };
			long depth = (strtol(digit, NULL, 16) + 1) % 16;

			d.min = min(d.min, depth);
			d.max = max(d.max, depth);
		}
	}
	fclose(f);
	TEST_ASSERT(d.max >= 0, "%s was not called", hooks[hook]);
	return d;
}

FIXTURE(gmem_hooks) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	/* The counts of calls at the last check. */
	unsigned long seen[NR_HOOKS];
	int fd;
};

FIXTURE_SETUP(gmem_hooks)
{
	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	void *mem;
	int i;

	TEST_REQUIRE(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_PRE_FAULT_MEMORY));
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(add_probes());

	self->vm = vm_create_shape_with_one_vcpu(shape, &self->vcpu, xen_guest_idle);
	xen_enable(self->vm);
	self->fd = vm_create_guest_memfd(self->vm, SIZE, 0);
	mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region2(self->vm, SLOT, KVM_MEM_GUEST_MEMFD, GPA, SIZE, mem,
				   self->fd, 0);
	for (i = 0; i < NR_HOOKS; i++)
		self->seen[i] = nr_calls(i);
}

FIXTURE_TEARDOWN(gmem_hooks)
{
	close(self->fd);
	kvm_vm_free(self->vm);
	remove_probes();
}

/* How often a hook was called since the last time. */
static unsigned long calls(unsigned long *seen, int hook)
{
	unsigned long nr = nr_calls(hook) - seen[hook];

	seen[hook] += nr;
	return nr;
}

static void prefault(struct kvm_vcpu *vcpu)
{
	struct kvm_pre_fault_memory range = { .gpa = GPA, .size = SIZE };

	while (range.size)
		vcpu_ioctl(vcpu, KVM_PRE_FAULT_MEMORY, &range);
}

static void punch(int fd, size_t size)
{
	kvm_fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, size);
}

TEST_F(gmem_hooks, private_memory)
{
	vm_mem_set_private(self->vm, GPA, SIZE);
	EXPECT_EQ(calls(self->seen, MAKE_PRIVATE), 0);

	prefault(self->vcpu);
	EXPECT_EQ(calls(self->seen, MAKE_PRIVATE), NR_PAGES);

	/* The page in the file stays private meanwhile. */
	vm_mem_set_shared(self->vm, GPA, SIZE);
	vm_mem_set_private(self->vm, GPA, SIZE);
	EXPECT_EQ(calls(self->seen, MAKE_PRIVATE), 0);
	EXPECT_EQ(calls(self->seen, RECLAIM), 0);
	EXPECT_EQ(calls(self->seen, INVALIDATE), 0);

	punch(self->fd, SIZE);
	EXPECT_EQ(calls(self->seen, RECLAIM), NR_PAGES);
	EXPECT_EQ(calls(self->seen, INVALIDATE), 1);

	/* There is nothing in it any more. */
	punch(self->fd, SIZE);
	EXPECT_EQ(calls(self->seen, RECLAIM), 0);
	EXPECT_EQ(calls(self->seen, MAKE_PRIVATE), 0);
}

/* These hooks may sleep.  UNMAP and INVALIDATE have mmu_lock held. */
TEST_F(gmem_hooks, not_under_mmu_lock)
{
	vm_mem_set_private(self->vm, GPA, SIZE);
	empty_trace();
	prefault(self->vcpu);
	punch(self->fd, SIZE);

	EXPECT_LT(preempt_depth(MAKE_PRIVATE).max, preempt_depth(UNMAP).min);
	EXPECT_LT(preempt_depth(RECLAIM).max, preempt_depth(UNMAP).min);
	EXPECT_EQ(preempt_depth(INVALIDATE).min, preempt_depth(UNMAP).min);
}

/* The file has three entries for the memslot, by nodes of the xarray. */
TEST_F(gmem_hooks, memslot_is_unmapped_once)
{
	const size_t size = 192 * PAGE_SIZE;
	int fd = vm_create_guest_memfd(self->vm, size + PAGE_SIZE, 0);

	vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA + SIZE, size,
				   NULL, fd, PAGE_SIZE);
	calls(self->seen, UNMAP);

	punch(fd, size + PAGE_SIZE);
	EXPECT_EQ(calls(self->seen, UNMAP), 1);
	close(fd);
}

/* KVM's own accesses neither make a page private nor map a private one. */
TEST_F(gmem_hooks, areas)
{
	struct kvm_xen_hvm_attr attr = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = GPA / PAGE_SIZE,
	};
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(self->vcpu, 5);
	int fd;

	xen_set_shared_info(self->vm, GPA);
	xen_set_vcpu_info(self->vcpu, GPA + PAGE_SIZE);
	xen_evtchn_send(self->vcpu, 4);
	EXPECT_EQ(calls(self->seen, DIRECT), 2);

	vm_mem_set_private(self->vm, GPA, SIZE);
	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e), -1);
	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &attr), -1);
	EXPECT_EQ(errno, EFAULT);

	/* KVM looks in this file, all of which is private. */
	fd = vm_create_guest_memfd(self->vm, SIZE, GUEST_MEMFD_FLAG_MMAP);
	vm_set_user_memory_region2(self->vm, SLOT + 1, KVM_MEM_GUEST_MEMFD, GPA + SIZE, SIZE,
				   NULL, fd, 0);
	attr.u.shared_info.gfn = (GPA + SIZE) / PAGE_SIZE;
	EXPECT_EQ(__vm_ioctl(self->vm, KVM_XEN_HVM_SET_ATTR, &attr), -1);
	EXPECT_EQ(errno, EFAULT);
	close(fd);

	EXPECT_EQ(calls(self->seen, MAKE_PRIVATE), 0);
	EXPECT_EQ(calls(self->seen, RECLAIM), 0);
	EXPECT_EQ(calls(self->seen, DIRECT), 0);
	EXPECT_EQ(calls(self->seen, MAP), 0);
}

TEST_HARNESS_MAIN
