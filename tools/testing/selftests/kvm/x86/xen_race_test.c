// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two CPUs at Xen's areas, at every instruction of each other.
 *
 * What a guest sees of KVM's writes from another CPU: their order is part of
 * its ABI.  What KVM sees of an event that is raised while another CPU delivers
 * events, changes the guest's mode or begins to wait for it.
 *
 * One thread has KVM do something, again and again.  The other one, on another
 * CPU, sleeps for a moment, then looks, or has KVM do something else.  The
 * moment ends after any instruction of the first thread, also where the two
 * CPUs are emulated in turn, as by QEMU's -icount.
 */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include <asm/barrier.h>

#include "test_util.h"
#include "kvm_test_harness.h"
#include "xen.h"

#define REGION_GPA	0xc0000000ULL
#define REGION_SLOT	10
#define SHINFO_GPA	REGION_GPA
#define VCPU_INFO_GPA	(REGION_GPA + PAGE_SIZE)
#define RUNSTATE_GPA	(REGION_GPA + 2 * PAGE_SIZE)
#define REGION_PAGES	3

#define PORT		66
/* A port that only 64-bit mode has. */
#define HIGH_WORD	40
#define HIGH_PORT	(HIGH_WORD * 64)

/* About as long as an ioctl takes. */
#define MOMENT_NS	3000
/* Where the CPUs do run at the same time, more than one look is of use. */
#define LOOKS		64
/* With QEMU's -icount, so many end at each instruction about ten times. */
#define MOMENTS		20000
/* Of a test case; on a slow machine, a moment may last for milliseconds. */
#define TIMEOUT_SECONDS	120
#define MODE_CHANGES	300
#define DROPS		200
#define POLLS		2000

#define NR_WORDS	64

/*
 * Of CPUs that are emulated in turn, the first one is first when a timer has
 * expired.
 */
static int sleepy_cpu, busy_cpu;

/* A poll that takes that long does not end any more. */
#define LIMIT_NS	(20 * NSEC_PER_SEC)

struct race {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct xen_shared_info *shinfo;
	struct xen_vcpu_info *vi;
	struct xen_runstate *rs;
	pthread_t thread;

	bool stop;
	/* Whether the other thread does nothing. */
	bool hold;
	unsigned int moments;
	/*
	 * Odd while a thread of the test's itself writes to the guest's memory.
	 */
	unsigned long seq;
	/*
	 * How often an update was seen under way, and how often an inconsistent
	 * state was seen.
	 */
	unsigned long half_done;
	unsigned long bad;
};

FIXTURE(xen_race) {
	struct race r;
};

FIXTURE_SETUP(xen_race)
{
	struct race *r = &self->r;

	r->vm = vm_create_with_one_vcpu(&r->vcpu, xen_guest_idle);
	vm_userspace_mem_region_add(r->vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    REGION_PAGES, 0);
	r->shinfo = addr_gpa2hva(r->vm, SHINFO_GPA);
	r->vi = addr_gpa2hva(r->vm, VCPU_INFO_GPA);
	r->rs = addr_gpa2hva(r->vm, RUNSTATE_GPA);
	xen_enable(r->vm);
	xen_set_shared_info(r->vm, SHINFO_GPA);
	xen_set_vcpu_info(r->vcpu, VCPU_INFO_GPA);
}

FIXTURE_TEARDOWN(xen_race)
{
	kvm_vm_free(self->r.vm);
}

/*
 * The other thread runs @function.  It is the one that sleeps, unless the main
 * thread does.
 */
static void start(struct race *r, void *(*function)(void *), bool main_sleeps)
{
	kvm_pthread_create(&r->thread, NULL, function, r);
	pin_task_to_cpu(r->thread, main_sleeps ? busy_cpu : sleepy_cpu);
	pin_self_to_cpu(main_sleeps ? sleepy_cpu : busy_cpu);
}

static void stop(struct race *r)
{
	WRITE_ONCE(r->stop, true);
	kvm_pthread_join(r->thread, NULL);
}

static s64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return timespec_to_ns(ts);
}

/* Each of another length, by a few instructions. */
static void sleep_a_moment(unsigned int which)
{
	struct timespec ts = { .tv_nsec = MOMENT_NS + 13 * which % MOMENT_NS };

	nanosleep(&ts, NULL);
}

static bool another_moment(struct race *r)
{
	WRITE_ONCE(r->moments, r->moments + 1);
	sleep_a_moment(r->moments);
	return !READ_ONCE(r->stop);
}

/* If no update was seen under way, the test says nothing of their order. */
static void expect_seen(struct __test_metadata *_metadata, struct race *r)
{
	ASSERT_EQ(r->bad, 0);
	if (!r->half_done)
		SKIP(return, "No update was seen under way");
}

static void look_at_upcall(struct race *r)
{
	unsigned long seq = smp_load_acquire(&r->seq);
	u64 sel_before = smp_load_acquire(&r->vi->evtchn_pending_sel);
	u8 upcall = smp_load_acquire(&r->vi->evtchn_upcall_pending);
	u64 sel = smp_load_acquire(&r->vi->evtchn_pending_sel);

	if (seq % 2 || READ_ONCE(r->seq) != seq)
		return;

	r->half_done += sel_before && !upcall;
	r->bad += upcall && !sel;
}

static void *look_at_upcalls(void *arg)
{
	struct race *r = arg;
	int i;

	while (another_moment(r)) {
		for (i = 0; i < LOOKS; i++)
			look_at_upcall(r);
	}
	return NULL;
}

/*
 * The guest clears upcall_pending, then looks at the selectors: they are set by
 * then.
 */
TEST_F_TIMEOUT(xen_race, selector_before_upcall, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;

	start(r, look_at_upcalls, false);
	while (READ_ONCE(r->moments) < MOMENTS) {
		smp_store_release(&r->seq, r->seq + 1);
		WRITE_ONCE(r->vi->evtchn_upcall_pending, 0);
		WRITE_ONCE(r->vi->evtchn_pending_sel, 0);
		WRITE_ONCE(r->shinfo->evtchn_pending[PORT / 64], 0);
		smp_store_release(&r->seq, r->seq + 1);
		xen_evtchn_send(r->vcpu, PORT);
	}
	stop(r);

	TH_LOG("%lu events, %lu half done", r->seq / 2, r->half_done);
	expect_seen(_metadata, r);
}

struct wall_clock {
	u32 version;
	u32 sec;
	u32 nsec;
};

/*
 * At a place that the version gives: what was written, and what was seen first.
 */
#define WALL_CLOCKS	BIT(20)

static struct wall_clock *wall_clocks_written;
static struct wall_clock *wall_clocks_seen;

static struct wall_clock *wall_clock_of(struct race *r)
{
	return (void *)r->shinfo + 0xc00;
}

static bool same_wall_clock(const struct wall_clock *a, const struct wall_clock *b)
{
	return a->version == b->version && a->sec == b->sec && a->nsec == b->nsec;
}

static void look_at_wall_clock(struct race *r)
{
	struct wall_clock *wc = wall_clock_of(r), seen, *first;

	seen.version = smp_load_acquire(&wc->version);
	seen.sec = smp_load_acquire(&wc->sec);
	seen.nsec = smp_load_acquire(&wc->nsec);
	if (seen.version % 2) {
		r->half_done++;
		return;
	}
	if (READ_ONCE(wc->version) != seen.version)
		return;

	first = &wall_clocks_seen[seen.version / 2 % WALL_CLOCKS];
	if (!first->version)
		*first = seen;
	r->bad += !same_wall_clock(&seen, first);
}

static void *look_at_wall_clocks(void *arg)
{
	struct race *r = arg;
	int i;

	while (another_moment(r)) {
		for (i = 0; i < LOOKS; i++)
			look_at_wall_clock(r);
	}
	return NULL;
}

/* Of one of two KVM clocks, half a second apart. */
static void write_wall_clock(struct race *r, int which)
{
	struct kvm_clock_data clock = { .clock = now_ns() + which * (NSEC_PER_SEC / 2) };
	struct wall_clock *wc = wall_clock_of(r);

	vm_ioctl(r->vm, KVM_SET_CLOCK, &clock);
	xen_set_long_mode(r->vm, true);
	wall_clocks_written[wc->version / 2 % WALL_CLOCKS] = *wc;
}

TEST_F_TIMEOUT(xen_race, wall_clock, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	int times = 0, seen = 0, i;

	wall_clocks_written = calloc(WALL_CLOCKS, sizeof(*wall_clocks_written));
	wall_clocks_seen = calloc(WALL_CLOCKS, sizeof(*wall_clocks_seen));
	TEST_ASSERT(wall_clocks_written && wall_clocks_seen, "-ENOMEM when allocating wall clocks");

	write_wall_clock(r, 0);
	start(r, look_at_wall_clocks, false);
	while (READ_ONCE(r->moments) < MOMENTS && ++times < WALL_CLOCKS)
		write_wall_clock(r, times % 2);
	stop(r);

	for (i = 0; i < WALL_CLOCKS; i++) {
		if (!wall_clocks_seen[i].version)
			continue;
		seen++;
		r->bad += !same_wall_clock(&wall_clocks_seen[i], &wall_clocks_written[i]);
	}

	free(wall_clocks_written);
	free(wall_clocks_seen);

	TH_LOG("%d times, %d of them seen, %lu half done", times, seen, r->half_done);
	ASSERT_LT(0, seen);
	expect_seen(_metadata, r);
}

#define RUNSTATE_UPDATE	BIT_ULL(63)

static void look_at_runstate(struct race *r)
{
	u64 entry_time = smp_load_acquire(&r->rs->entry_time), sum = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(r->rs->time); i++)
		sum += smp_load_acquire(&r->rs->time[i]);
	if (entry_time & RUNSTATE_UPDATE)
		r->half_done++;
	else if (READ_ONCE(r->rs->entry_time) == entry_time)
		r->bad += entry_time != sum;
}

static void *look_at_runstates(void *arg)
{
	struct race *r = arg;
	int i;

	while (another_moment(r)) {
		for (i = 0; i < LOOKS; i++)
			look_at_runstate(r);
	}
	return NULL;
}

/* It adds up but while it is being written. */
TEST_F_TIMEOUT(xen_race, runstate, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	struct kvm_xen_hvm_attr flag = {
		.type = KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG,
		.u.runstate_update_flag = true,
	};
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT };
	int i;

	if (!(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG))
		SKIP(return, "The kernel has no sched_info");

	vm_ioctl(r->vm, KVM_XEN_HVM_SET_ATTR, &flag);
	xen_set_vcpu_area(r->vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA);
	vcpu_ioctl(r->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);

	start(r, look_at_runstates, false);
	for (i = 0; READ_ONCE(r->moments) < MOMENTS; i++) {
		attr.u.runstate.state = i % 4;
		vcpu_ioctl(r->vcpu, KVM_XEN_VCPU_SET_ATTR, &attr);
	}
	stop(r);

	TH_LOG("%d states, %lu half done", i, r->half_done);
	expect_seen(_metadata, r);
}

static unsigned long events, refused;

static void *send_high_port(void *arg)
{
	struct race *r = arg;
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(r->vcpu, HIGH_PORT);

	while (!READ_ONCE(r->stop)) {
		/* Unless the main thread wants to see what was set. */
		if (!(smp_load_acquire(&r->seq) % 2)) {
			WRITE_ONCE(r->vi->evtchn_pending_sel, 0);
			WRITE_ONCE(r->shinfo->evtchn_pending[HIGH_WORD], 0);
		}
		if (__vm_ioctl(r->vm, KVM_XEN_HVM_EVTCHN_SEND, &e)) {
			TEST_ASSERT_EQ(errno, EINVAL);
			refused++;
		}
		WRITE_ONCE(events, events + 1);
	}
	return NULL;
}

/* That was under way, and the next one. */
static void await_event(void)
{
	unsigned long end = READ_ONCE(events) + 2;

	while (READ_ONCE(events) < end)
		sched_yield();
}

/* When the mode has changed, no event is delivered by the old one any more. */
TEST_F_TIMEOUT(xen_race, mode_is_left, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	int i;

	start(r, send_high_port, true);
	await_event();
	for (i = 0; i < MODE_CHANGES; i++) {
		sleep_a_moment(i);
		xen_set_long_mode(r->vm, false);
		smp_store_release(&r->seq, r->seq + 1);
		WRITE_ONCE(r->shinfo->evtchn_pending[HIGH_WORD], 0);
		WRITE_ONCE(r->vi->evtchn_pending_sel, 0);

		await_event();
		r->bad += READ_ONCE(r->shinfo->evtchn_pending[HIGH_WORD]) ||
			  READ_ONCE(r->vi->evtchn_pending_sel);

		smp_store_release(&r->seq, r->seq + 1);
		xen_set_long_mode(r->vm, true);
		await_event();
	}
	stop(r);

	TH_LOG("%lu events, %lu of them refused", events, refused);
	EXPECT_EQ(r->bad, 0);
	EXPECT_LT(0, refused);
	EXPECT_LT(refused, events);
}

/* A GSI for each word of ports. */
static void route_words(struct race *r)
{
	struct kvm_irq_routing *routing;
	int i;

	routing = calloc(1, sizeof(*routing) + NR_WORDS * sizeof(routing->entries[0]));
	TEST_ASSERT(routing, "calloc()");
	routing->nr = NR_WORDS;
	for (i = 0; i < NR_WORDS; i++) {
		routing->entries[i].gsi = i;
		routing->entries[i].type = KVM_IRQ_ROUTING_XEN_EVTCHN;
		routing->entries[i].u.xen_evtchn = xen_evtchn(r->vcpu, i * 64 + 1);
	}
	vm_ioctl(r->vm, KVM_SET_GSI_ROUTING, routing);
	free(routing);
}

/*
 * To ask for vcpu_info is to have KVM deliver what it has deferred, if it can.
 */
static void deliver(struct race *r)
{
	struct kvm_xen_vcpu_attr attr = { .type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };

	vcpu_ioctl(r->vcpu, KVM_XEN_VCPU_GET_ATTR, &attr);
}

static void *deliver_all(void *arg)
{
	struct race *r = arg;

	while (another_moment(r))
		deliver(r);
	return NULL;
}

static void protect_shared_info(struct race *r, int prot)
{
	TEST_ASSERT_EQ(mprotect(r->shinfo, PAGE_SIZE, prot), 0);
}

/* Events that wait for shared_info, each in a word of its own, are not lost. */
TEST_F_TIMEOUT(xen_race, deferred, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	struct kvm_irq_level irq = { .level = 1 };
	int i;

	route_words(r);
	start(r, deliver_all, false);
	while (READ_ONCE(r->moments) < MOMENTS) {
		protect_shared_info(r, PROT_NONE);
		for (irq.irq = 0; irq.irq < NR_WORDS; irq.irq++)
			vm_ioctl(r->vm, KVM_IRQ_LINE, &irq);

		protect_shared_info(r, PROT_READ | PROT_WRITE);
		deliver(r);
		for (i = 0; i < NR_WORDS; i++) {
			r->bad += !xen_is_pending(r->shinfo, i * 64 + 1);
			WRITE_ONCE(r->shinfo->evtchn_pending[i], 0);
		}
		r->seq += 2;
	}
	stop(r);

	TH_LOG("%lu times", r->seq / 2);
	EXPECT_EQ(r->bad, 0);
}

static void *send_deferred(void *arg)
{
	struct race *r = arg;
	struct kvm_irq_level irq = { .irq = PORT / 64, .level = 1 };

	while (!READ_ONCE(r->stop)) {
		if (!smp_load_acquire(&r->hold))
			vm_ioctl(r->vm, KVM_IRQ_LINE, &irq);
		WRITE_ONCE(events, events + 1);
	}
	return NULL;
}

/*
 * An event for one shared_info, even if it is deferred, isn't raised in the
 * next.
 */
TEST_F_TIMEOUT(xen_race, dropped, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	struct kvm_xen_hvm_attr none = {
		.type = KVM_XEN_ATTR_TYPE_SHARED_INFO,
		.u.shared_info.gfn = KVM_XEN_INVALID_GFN,
	};
	int i;

	route_words(r);
	protect_shared_info(r, PROT_NONE);
	start(r, send_deferred, true);
	await_event();
	for (i = 0; i < DROPS; i++) {
		smp_store_release(&r->hold, false);
		sleep_a_moment(i);
		vm_ioctl(r->vm, KVM_XEN_HVM_SET_ATTR, &none);
		smp_store_release(&r->hold, true);
		await_event();

		protect_shared_info(r, PROT_READ | PROT_WRITE);
		WRITE_ONCE(r->shinfo->evtchn_pending[PORT / 64], 0);
		xen_set_shared_info(r->vm, SHINFO_GPA);
		deliver(r);
		r->bad += READ_ONCE(r->shinfo->evtchn_pending[PORT / 64]) != 0;
		protect_shared_info(r, PROT_NONE);
	}
	stop(r);

	TH_LOG("%lu events", events);
	EXPECT_EQ(r->bad, 0);
}

static struct guest_state {
	u64 round;
	bool stop;
} guest_state;

/* A poll may end early. */
static void guest_poll(void)
{
	struct xen_shared_info *shinfo = (void *)SHINFO_GPA;
	struct guest_state *gs = &guest_state;

	while (!READ_ONCE(gs->stop)) {
		WRITE_ONCE(gs->round, gs->round + 1);
		while (!xen_is_pending(shinfo, PORT))
			GUEST_ASSERT(!xen_guest_poll(PORT, 0));
		WRITE_ONCE(shinfo->evtchn_pending[PORT / 64], 0);
	}
	GUEST_DONE();
}

static void *run_guest(void *arg)
{
	struct race *r = arg;

	vcpu_run(r->vcpu);
	TEST_ASSERT_EQ(get_ucall(r->vcpu, NULL), UCALL_DONE);
	return NULL;
}

static bool has_begun(struct guest_state *gs, u64 round)
{
	s64 end = now_ns() + LIMIT_NS;

	while (READ_ONCE(gs->round) < round) {
		if (now_ns() > end)
			return false;
		sleep_a_moment(round);
	}
	return true;
}

/*
 * An event that comes when the guest begins to poll ends the poll, masked as it
 * is.
 */
TEST_F_TIMEOUT(xen_race, poll, TIMEOUT_SECONDS)
{
	struct race *r = &self->r;
	struct guest_state *gs = addr_gva2hva(r->vm, (gva_t)&guest_state);
	u64 round;

	virt_map(r->vm, SHINFO_GPA, SHINFO_GPA, 1);
	vcpu_arch_set_entry_point(r->vcpu, guest_poll);
	WRITE_ONCE(r->shinfo->evtchn_mask[PORT / 64], BIT_ULL(PORT % 64));

	start(r, run_guest, true);
	for (round = 1; round <= POLLS && has_begun(gs, round); round++)
		xen_evtchn_send(r->vcpu, PORT);
	EXPECT_EQ(round, POLLS + 1)
		TH_LOG("The guest sleeps on");

	/* The last poll, or the one that does not end. */
	WRITE_ONCE(gs->stop, true);
	WRITE_ONCE(r->shinfo->evtchn_pending[PORT / 64], 0);
	xen_evtchn_send(r->vcpu, PORT);
	stop(r);
}

static bool has_two_cpus(void)
{
	cpu_set_t cpus;

	TEST_ASSERT_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	while (sleepy_cpu < CPU_SETSIZE && !CPU_ISSET(sleepy_cpu, &cpus))
		sleepy_cpu++;
	for (busy_cpu = sleepy_cpu + 1; busy_cpu < CPU_SETSIZE; busy_cpu++)
		if (CPU_ISSET(busy_cpu, &cpus))
			return true;
	return false;
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(has_two_cpus());
	/* Threads inherit it; the default is longer than a moment. */
	TEST_ASSERT_EQ(prctl(PR_SET_TIMERSLACK, 1), 0);

	return test_harness_run(argc, argv);
}
