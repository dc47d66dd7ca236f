// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events in a vcpu_info at any address that KVM takes, i.e. any multiple of 4
 * that leaves it within one page, in 64-bit and in 32-bit mode, and while the
 * mode changes.
 */
#include <pthread.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define SHINFO_GPA	REGION_GPA
#define INFO_PAGE_GPA	(REGION_GPA + PAGE_SIZE)
#define REGION_PAGES	3

/* The highest port of either mode, whose selector is the top bit. */
#define PORT64		4095
#define PORT32		1023

#define POISON		0x5a
#define MODE_ROUNDS	20000
#define MODE_CHANGES	50

FIXTURE(xen_vcpu_info) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *shinfo;
	u8 *page;
};

FIXTURE_SETUP(xen_vcpu_info)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(self->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA,
				    REGION_SLOT, REGION_PAGES, 0);
	self->shinfo = addr_gpa2hva(self->vm, SHINFO_GPA);
	self->page = addr_gpa2hva(self->vm, INFO_PAGE_GPA);
	xen_enable(self->vm);
	xen_set_shared_info(self->vm, SHINFO_GPA);
}

FIXTURE_TEARDOWN(xen_vcpu_info)
{
	kvm_vm_free(self->vm);
}

/* All of the page but the bytes from FIRST to LAST is as it was. */
static bool only_changed(u8 *page, unsigned int first, unsigned int last)
{
	unsigned int i;

	for (i = 0; i < PAGE_SIZE; i++) {
		if ((i < first || i > last) && page[i] != POISON)
			return false;
	}
	return true;
}

/*
 * Raise PORT with a vcpu_info at OFFSET, either before or after KVM is told of
 * it: the one is the vCPU's to deliver, the other is delivered at once.
 */
static bool event_arrives(struct kvm_vcpu *vcpu, u8 *shinfo, u8 *page, unsigned int offset,
			  bool long_mode, bool wait)
{
	struct xen_vcpu_info32 *vi32 = (void *)(page + offset);
	struct xen_vcpu_info *vi = (void *)(page + offset);
	u64 sel;

	memset(shinfo, 0, PAGE_SIZE);
	memset(page, POISON, PAGE_SIZE);
	memset(vi, 0, sizeof(*vi));

	xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
			  wait ? KVM_XEN_INVALID_GPA : INFO_PAGE_GPA + offset);
	xen_evtchn_send(vcpu, long_mode ? PORT64 : PORT32);
	if (wait) {
		xen_set_vcpu_info(vcpu, INFO_PAGE_GPA + offset);
		vcpu_run(vcpu);
	}

	sel = long_mode ? vi->evtchn_pending_sel : (u64)vi32->evtchn_pending_sel << 32;
	return sel == BIT_ULL(63) && vi->evtchn_upcall_pending == 1 &&
	       only_changed(page, offset, offset + sizeof(*vi) - 1);
}

static void sweep(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u8 *shinfo,
		  u8 *page, bool long_mode)
{
	unsigned int offset;

	xen_set_long_mode(vcpu->vm, long_mode);
	for (offset = 0; offset <= PAGE_SIZE - sizeof(struct xen_vcpu_info); offset += 4) {
		ASSERT_TRUE(event_arrives(vcpu, shinfo, page, offset, long_mode, false))
			TH_LOG("At offset %u", offset);
		ASSERT_TRUE(event_arrives(vcpu, shinfo, page, offset, long_mode, true))
			TH_LOG("At offset %u, after a wait", offset);
	}
}

TEST_F(xen_vcpu_info, every_offset_64)
{
	sweep(_metadata, self->vcpu, self->shinfo, self->page, true);
}

TEST_F(xen_vcpu_info, every_offset_32)
{
	sweep(_metadata, self->vcpu, self->shinfo, self->page, false);
}

static unsigned int mode_changes;

static void *flip_mode(void *arg)
{
	struct kvm_vm *vm = arg;
	bool long_mode = false;

	for (;;) {
		xen_set_long_mode(vm, long_mode);
		WRITE_ONCE(mode_changes, mode_changes + 1);
		long_mode = !long_mode;
		pthread_testcancel();
	}
	return NULL;
}

/*
 * All of the page is zero but the given bytes, and the wall clock of either
 * mode.
 */
static bool only_changed_shinfo(u8 *shinfo, unsigned int first, unsigned int last)
{
	unsigned int i;

	for (i = 0; i < PAGE_SIZE; i++) {
		if (shinfo[i] && (i < first || i > last) && (i < 0x900 || i >= 0x928) &&
		    (i < 0xc00 || i >= 0xc10))
			return false;
	}
	return true;
}

/*
 * A port that only 64-bit mode has: its selector is bit 40, and
 * no mix of the two modes may set a bit elsewhere.
 */
TEST_F(xen_vcpu_info, mode_changes)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(self->vcpu, 40 * 64);
	struct xen_shared_info *shinfo = (void *)self->shinfo;
	struct xen_vcpu_info *vi = (void *)self->page;
	const unsigned int word = (u8 *)&shinfo->evtchn_pending[40] - self->shinfo;
	unsigned int i, delivered = 0;
	pthread_t thread;

	memset(self->shinfo, 0, PAGE_SIZE);
	memset(self->page, POISON, PAGE_SIZE);
	memset(vi, 0, sizeof(*vi));
	xen_set_vcpu_info(self->vcpu, INFO_PAGE_GPA);
	TEST_ASSERT_EQ(pthread_create(&thread, NULL, flip_mode, self->vm), 0);
	/* Until events were both sent and refused. */
	for (i = 0; i < MODE_ROUNDS || READ_ONCE(mode_changes) < MODE_CHANGES ||
	     !delivered || delivered == i; i++) {
		bool sent = !__vm_ioctl(self->vm, KVM_XEN_HVM_EVTCHN_SEND, &e);

		ASSERT_TRUE(sent || errno == EINVAL);
		delivered += sent;
		ASSERT_EQ(shinfo->evtchn_pending[40], sent);
		ASSERT_EQ(vi->evtchn_pending_sel, sent ? BIT_ULL(40) : 0)
			TH_LOG("After %u of %u events", delivered, i + 1);
		ASSERT_EQ(vi->evtchn_upcall_pending, sent);
		shinfo->evtchn_pending[40] = 0;
		vi->evtchn_pending_sel = 0;
		vi->evtchn_upcall_pending = 0;
		/* Seldom, as it takes longer than to send. */
		if (i % 64 == 0) {
			ASSERT_TRUE(only_changed(self->page, 0, sizeof(*vi) - 1));
			ASSERT_TRUE(only_changed_shinfo(self->shinfo, word, word + 7));
		}
	}
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	TH_LOG("%u of %u events were sent in 64-bit mode, which changed %u times", delivered, i,
	       mode_changes);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());

	return test_harness_run(argc, argv);
}
