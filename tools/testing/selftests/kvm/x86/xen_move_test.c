// SPDX-License-Identifier: GPL-2.0-only
/*
 * Xen's vcpu_info moves while events are delivered.
 *
 * Each vCPU's vcpu_info goes from its default place in shared_info to another
 * one and back again, over and over, while events of all kinds are raised from
 * threads of their own: by ioctl, by irqfd, by the guest of one vCPU for
 * another and for itself, and by timers.  The memory is taken away all the
 * while, and the table is replaced that has the irqfds' routes.  Each event is
 * raised when the guest has seen the one before of its port, and no sooner, so
 * one that is lost ends the test, and so does one that was not raised.  And
 * what was delivered before a vCPU runs, it sees in that run, so a move cannot
 * make up for what another one has lost.  The guest's word size changes from
 * round to round.
 *
 * In the middle of each round, the VM is saved and restored, as for a live
 * update: each attribute that can be read is set to what was read.  vCPUs and
 * ioctls pause for that, but eventfds are written to all the while, and hold
 * what is not taken, and the memory is taken away.
 */
#include <linux/mempolicy.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include "apic.h"
#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "xen.h"

#define MAX_VCPUS		4
#define UPCALL_VECTOR		0x30
#define VCPU_UPCALL_VECTOR	0x31
#define XEN_VERSION		0x40011
#define FIRST_GSI		32
#define NR_PORTS		16
#define TIMER_DELAY_NS		20000
/* Long enough for the VM to be saved before. */
#define SAVED_TIMER_DELAY_NS	20000000

#define AREA_SLOT		10
#define AREA_GPA		0xc0000000ULL
#define AREA_GVA		AREA_GPA
#define AREA_PAGES		3

/* The pages of the area. */
#define SHARED_INFO		0
#define DEFAULT_INFO(v)		((v) * 64)
#define GPA_INFO(v)		(PAGE_SIZE + 64 + (v) * 64)
#define HVA_INFO(v)		(2 * PAGE_SIZE + 128 + (v) * 64)
#define TIME_INFO(v)		(PAGE_SIZE + 1024 + (v) * 64)
#define RUNSTATE(v)		(2 * PAGE_SIZE + 1024 + (v) * 64)

/* The last one is for when the others have stopped, once a round. */
enum { BY_IOCTL, BY_IRQFD, BY_HCALL, BY_IPI, BY_TIMER, BY_VMM, NR_SOURCES };

/* There is one timer. */
static int nr_ports(int source)
{
	return source == BY_TIMER || source == BY_VMM ? 1 : NR_PORTS;
}

/* A source has every other port of a word, of 32 bits, that is its own. */
static u32 port_of(int v, int source, int i)
{
	return (1 + v * NR_SOURCES + source) * 32 + 2 * i + 1;
}

/* Of a port. */
struct events {
	u32 sent;
	/* As far as one knows: of irqfds and timers one does not. */
	u32 delivered;
	u32 seen;
	/* How many more times the last one may be seen. */
	u32 repeats;
};

/* Between host and guest, in memory that is left alone. */
struct shared {
	u32 nr_vcpus;
	/* Of each port. */
	u32 nr_events;
	bool long_mode;
	u64 vcpu_info[MAX_VCPUS];
	u32 nothing_seen[MAX_VCPUS];
	/* By the local APIC, since the VM was saved. */
	u32 apic_upcalls[MAX_VCPUS];
	struct events events[MAX_VCPUS][NR_SOURCES][NR_PORTS];
};

static u32 get(u32 *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void add(u32 *p)
{
	__atomic_add_fetch(p, 1, __ATOMIC_SEQ_CST);
}

/* Whether the event before was seen, and there is one more to send. */
static bool has_to_send(struct shared *sh, int v, int source, int i)
{
	struct events *e = &sh->events[v][source][i];
	u32 sent = get(&e->sent);

	return get(&e->seen) == sent && sent != get(&sh->nr_events);
}

/* The sender's. */
static bool may_send(struct shared *sh, int v, int source, int i)
{
	if (!has_to_send(sh, v, source, i))
		return false;

	add(&sh->events[v][source][i].sent);
	return true;
}

static void has_sent(struct shared *sh, int v, int source, int i)
{
	add(&sh->events[v][source][i].delivered);
}

static bool all_seen_of(struct shared *sh, int v, int source)
{
	int i;

	for (i = 0; i < nr_ports(source); i++) {
		if (get(&sh->events[v][source][i].seen) != get(&sh->nr_events))
			return false;
	}

	return true;
}

static bool all_seen(struct shared *sh, int v)
{
	struct events *e = &sh->events[v][BY_VMM][0];
	int source;

	for (source = 0; source < BY_VMM; source++) {
		if (!all_seen_of(sh, v, source))
			return false;
	}

	return get(&e->seen) == get(&e->sent);
}

/* The others go without, so that they are woken up. */
static bool has_apic_upcalls(int v)
{
	return v % 2;
}

/* The guest */

static struct shared *guest_sh;

static u64 guest_take_sels(void *vcpu_info)
{
	struct xen_vcpu_info32 *vi32 = vcpu_info;
	struct xen_vcpu_info *vi = vcpu_info;

	if (guest_sh->long_mode)
		return __atomic_exchange_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);

	return __atomic_exchange_n(&vi32->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
}

/* The next event is sent as soon as this one was seen. */
static void guest_see_event(struct events *e)
{
	if (e->repeats && e->seen == get(&e->sent)) {
		e->repeats--;
		return;
	}

	GUEST_ASSERT_EQ(e->seen + 1, get(&e->sent));
	add(&e->seen);
}

static bool guest_see(u32 v, int source)
{
	struct xen_shared_info *shinfo = (void *)AREA_GVA + SHARED_INFO;
	/* The bits are where they are in either word size. */
	u32 *pending = (u32 *)shinfo->evtchn_pending + port_of(v, source, 0) / 32;
	u32 ports = __atomic_exchange_n(pending, 0, __ATOMIC_SEQ_CST);
	int i;

	for (i = 0; i < nr_ports(source); i++) {
		if (ports & BIT(port_of(v, source, i) % 32))
			guest_see_event(&guest_sh->events[v][source][i]);
	}

	return ports;
}

static void guest_upcall(struct ex_regs *regs)
{
	u32 v = rdmsr(MSR_KERNEL_GS_BASE), word_bits = guest_sh->long_mode ? 64 : 32;
	struct xen_vcpu_info *vi = (void *)guest_sh->vcpu_info[v];
	bool any = false;
	int source;
	u64 sels;

	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
	sels = guest_take_sels(vi);

	for (source = 0; source < NR_SOURCES; source++) {
		if (sels & BIT_ULL(port_of(v, source, 0) / word_bits))
			any |= guest_see(v, source);
	}

	if (!any)
		guest_sh->nothing_seen[v]++;
}

/* There is the other vector for the events: it has to be enough. */
static void guest_apic_upcall(struct ex_regs *regs)
{
	guest_sh->apic_upcalls[rdmsr(MSR_KERNEL_GS_BASE)]++;
	x2apic_write_reg(APIC_EOI, 0);
}

/*
 * The timer was started before the vCPU ran, so there is something to wait for.
 */
static void guest_await_timer(struct shared *sh, u32 v)
{
	struct events *e = &sh->events[v][BY_TIMER][0];

	if (get(&e->seen) != get(&e->sent))
		asm volatile("sti; hlt; cli");
}

static void guest_send(struct shared *sh, int v, int source, int i)
{
	if (may_send(sh, v, source, i)) {
		GUEST_ASSERT_EQ(xen_guest_send(port_of(v, source, i)), 0);
		has_sent(sh, v, source, i);
	}
}

static void guest_code(struct shared *sh, u32 v)
{
	u32 other = (v + 1) % sh->nr_vcpus;
	int i;

	guest_sh = sh;
	wrmsr(MSR_KERNEL_GS_BASE, v);
	if (has_apic_upcalls(v))
		x2apic_enable();

	for (;;) {
		sti_nop();
		for (i = 0; i < NR_PORTS; i++) {
			guest_send(sh, other, BY_HCALL, i);
			guest_send(sh, v, BY_IPI, i);
		}
		cli();
		guest_await_timer(sh, v);
		GUEST_SYNC(0);
	}
}

/* The host */

static u32 nr_vcpus = 2, nr_rounds = 4, nr_events = 50;
static struct kvm_vcpu *vcpus[MAX_VCPUS];
static u32 moves[MAX_VCPUS], times_taken_away, times_routed, times_saved, nr_held;
static int irqfds[MAX_VCPUS][NR_PORTS];
/* Of each vCPU's irqfds, the first so many are written to. */
static int nr_due = NR_PORTS;
static struct shared *sh;
static struct kvm_vm *vm;
/* Stop vCPUs, senders by ioctl, and the threads that go on during the save. */
static bool stop_vcpus, stop_ioctls, stop;
static bool in_the_middle;

static const char * const source_names[NR_SOURCES] = {
	"ioctl", "irqfd", "hypercall", "IPI", "timer", "VMM",
};

/* Default, by GPA, default, by HVA.  Clear the old place. */
static void move_vcpu_info(int v)
{
	u64 old = sh->vcpu_info[v] - AREA_GVA, offset = DEFAULT_INFO(v);
	void *area = addr_gpa2hva(vm, AREA_GPA);

	switch (moves[v]++ % 4) {
	case 0:
		offset = GPA_INFO(v);
		xen_set_vcpu_info(vcpus[v], AREA_GPA + offset);
		break;
	case 2:
		offset = HVA_INFO(v);
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA,
				  (unsigned long)area + offset);
		break;
	case 1:
		xen_set_vcpu_info(vcpus[v], KVM_XEN_INVALID_GPA);
		break;
	default:
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, 0);
	}

	memset(area + old, 0, offsetof(struct xen_vcpu_info, time));
	sh->vcpu_info[v] = AREA_GVA + offset;
}

static void start_timer(int v, u64 delay_ns)
{
	struct kvm_clock_data clock;

	vm_ioctl(vm, KVM_GET_CLOCK, &clock);
	xen_set_timer(vcpus[v], port_of(v, BY_TIMER, 0), clock.clock + delay_ns);
}

/* Make sure that events are pending when vcpu_info moves. */
static void let_others_send(int v)
{
	int i;

	for (i = 0; i < 20 && !all_seen_of(sh, v, BY_IOCTL); i++)
		sched_yield();
}

/* What was delivered before the vCPU runs, it sees in that run. */
static void run_and_check(int v)
{
	u32 delivered[NR_SOURCES][NR_PORTS];
	int source, i;
	struct ucall uc;

	for (source = 0; source < NR_SOURCES; source++) {
		for (i = 0; i < nr_ports(source); i++)
			delivered[source][i] = get(&sh->events[v][source][i].delivered);
	}

	vcpu_run(vcpus[v]);
	if (get_ucall(vcpus[v], &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);

	/*
	 * That of the event that was sent when the VM was saved, if no other.
	 */
	TEST_ASSERT(!has_apic_upcalls(v) || sh->apic_upcalls[v] || !times_saved,
		    "vCPU %d: an upcall by the local APIC was lost", v);

	for (source = 0; source < NR_SOURCES; source++) {
		for (i = 0; i < nr_ports(source); i++) {
			u32 seen = get(&sh->events[v][source][i].seen);

			TEST_ASSERT(seen >= delivered[source][i],
				    "vCPU %d, %s %d: %u delivered, %u seen, after %u moves",
				    v, source_names[source], i, delivered[source][i], seen,
				    moves[v]);
		}
	}
}

/*
 * There is an event to come of each irqfd, and vcpu_info is where it was not
 * before.
 */
static bool may_be_saved(int v)
{
	int i;

	for (i = 0; i < NR_PORTS; i++) {
		struct events *e = &sh->events[v][BY_IRQFD][i];

		if (get(&e->seen) != get(&e->sent))
			return false;
	}

	return moves[v] % 4 == (times_saved + v) % 4;
}

static void *run_vcpu(void *arg)
{
	int v = (long)arg;

	while (in_the_middle || !READ_ONCE(stop_vcpus) || !all_seen(sh, v)) {
		if (may_send(sh, v, BY_TIMER, 0))
			start_timer(v, TIMER_DELAY_NS);

		run_and_check(v);

		/* Do not have all selectors set when it is saved. */
		if (in_the_middle && READ_ONCE(stop_vcpus) && may_be_saved(v))
			break;

		let_others_send(v);
		move_vcpu_info(v);
	}

	return NULL;
}

static void send_by_ioctl(int v, int i)
{
	if (may_send(sh, v, BY_IOCTL, i)) {
		xen_evtchn_send(vcpus[v], port_of(v, BY_IOCTL, i));
		has_sent(sh, v, BY_IOCTL, i);
	}
}

static void send_by_irqfd(int v, int i)
{
	if (may_send(sh, v, BY_IRQFD, i))
		TEST_ASSERT_EQ(eventfd_write(irqfds[v][i], 1), 0);
}

static void *send_ioctls(void *arg)
{
	int i;

	while (!READ_ONCE(stop_ioctls)) {
		for (i = 0; i < NR_PORTS; i++)
			send_by_ioctl((long)arg, i);
		sched_yield();
	}

	return NULL;
}

static void *send_irqfds(void *arg)
{
	int i;

	while (!READ_ONCE(stop)) {
		for (i = 0; i < READ_ONCE(nr_due); i++)
			send_by_irqfd((long)arg, i);
		sched_yield();
	}

	return NULL;
}

/* The pages stay in the memfd; each user has to look for them anew. */
static void *take_memory_away(void *unused)
{
	char *area = addr_gpa2hva(vm, AREA_GPA);
	void *pages[AREA_PAGES];
	int status[AREA_PAGES], nodes[AREA_PAGES], i, n;

	for (i = 0; i < AREA_PAGES; i++)
		pages[i] = area + i * PAGE_SIZE;

	for (n = 0; !READ_ONCE(stop); n++) {
		for (i = 0; i < AREA_PAGES; i++)
			nodes[i] = n % 2;
		/* Without a second node, there is nowhere to move them. */
		syscall(__NR_move_pages, 0, AREA_PAGES, pages, nodes, status, MPOL_MF_MOVE);
		TEST_ASSERT_EQ(madvise(area, AREA_PAGES * PAGE_SIZE, MADV_DONTNEED), 0);
		times_taken_away++;
		sched_yield();
	}

	return NULL;
}

static u32 gsi_of(int v, int i)
{
	return FIRST_GSI + v * NR_PORTS + i;
}

static void create_eventfds(void)
{
	int v, i;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_PORTS; i++)
			irqfds[v][i] = kvm_new_eventfd();
	}
}

static void route_irqfds(void)
{
	struct {
		struct kvm_irq_routing info;
		struct kvm_irq_routing_entry entry[MAX_VCPUS * NR_PORTS];
	} routing = { .info.nr = nr_vcpus * NR_PORTS };
	struct kvm_irq_routing_entry *e = routing.entry;
	int v, i;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_PORTS; i++) {
			e->gsi = gsi_of(v, i);
			e->type = KVM_IRQ_ROUTING_XEN_EVTCHN;
			e->u.xen_evtchn = xen_evtchn(vcpus[v], port_of(v, BY_IRQFD, i));
			e++;
		}
	}
	vm_ioctl(vm, KVM_SET_GSI_ROUTING, &routing.info);
}

/* To where they are: a delivery by the old table must not lose its event. */
static void *set_routes(void *unused)
{
	while (!READ_ONCE(stop_ioctls)) {
		route_irqfds();
		times_routed++;
		sched_yield();
	}

	return NULL;
}

/*
 * While the vCPUs do not run, an irqfd has one event to send.  Have them sent
 * one after the other: the next one when the ones before are on their way.
 */
static void let_irqfds_send(int nr)
{
	int v, i;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < nr_due; i++) {
			while (has_to_send(sh, v, BY_IRQFD, i))
				sched_yield();
		}
	}
	WRITE_ONCE(nr_due, max(nr, nr_due));
}

/*
 * The last irqfds go, and come back, first, so that events are sent before and
 * after.
 */
static void deassign_irqfds(void)
{
	int v, i;

	for (i = NR_PORTS - 1; i >= 0; i--) {
		let_irqfds_send((NR_PORTS - i + 1) / 2);
		for (v = 0; v < nr_vcpus; v++)
			kvm_deassign_irqfd(vm, gsi_of(v, i), irqfds[v][i]);
	}
}

static bool holds_event(int eventfd)
{
	struct pollfd pfd = { .fd = eventfd, .events = POLLIN };

	return poll(&pfd, 1, 0) == 1;
}

static void assign_irqfds(void)
{
	int v, i;

	for (i = NR_PORTS - 1; i >= 0; i--) {
		let_irqfds_send(NR_PORTS / 2 + (NR_PORTS - i + 1) / 2);
		for (v = 0; v < nr_vcpus; v++) {
			nr_held += holds_event(irqfds[v][i]);
			/*
			 * KVM looks at it, and is told: both may raise an event
			 * of just now.
			 */
			sh->events[v][BY_IRQFD][i].repeats = times_saved ? 1 : 0;
			kvm_assign_irqfd(vm, gsi_of(v, i), irqfds[v][i]);
		}
	}
}

/* What a VMM sets up anew. */
static void set_up_events(void)
{
	int v, i;

	route_irqfds();
	assign_irqfds();
	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_PORTS; i++) {
			xen_bind_evtchn(vcpus[v], port_of(v, BY_HCALL, i), 0);
			xen_bind_ipi(vcpus[v], port_of(v, BY_IPI, i));
		}
	}
}

union attr {
	struct kvm_xen_hvm_attr hvm;
	struct kvm_xen_vcpu_attr vcpu;
};

#define HVM_ATTR(name)	{ #name, false, KVM_XEN_ATTR_TYPE_##name }
#define VCPU_ATTR(name)	{ #name, true, KVM_XEN_VCPU_ATTR_TYPE_##name }

/*
 * All that can be read, in the order to set them: first the word size;
 * vcpu_info before the ID and shared_info, or it would move from there; the
 * runstate before its area, which it is written to; the timer when there is a
 * place for its event.
 */
static const struct {
	const char *name;
	bool of_vcpu;
	u16 type;
} attrs[] = {
	HVM_ATTR(LONG_MODE),
	HVM_ATTR(UPCALL_VECTOR),
	HVM_ATTR(XEN_VERSION),
	HVM_ATTR(RUNSTATE_UPDATE_FLAG),
	VCPU_ATTR(UPCALL_VECTOR),
	VCPU_ATTR(VCPU_INFO),
	VCPU_ATTR(VCPU_INFO_HVA),
	VCPU_ATTR(VCPU_TIME_INFO),
	VCPU_ATTR(RUNSTATE_CURRENT),
	VCPU_ATTR(RUNSTATE_DATA),
	VCPU_ATTR(RUNSTATE_ADDR),
	VCPU_ATTR(VCPU_ID),
	HVM_ATTR(SHARED_INFO),
	HVM_ATTR(SHARED_INFO_HVA),
	VCPU_ATTR(TIMER),
};

#define NR_ATTRS	((int)ARRAY_SIZE(attrs))

/* The VM, but for its memory, which stays. */
struct saved {
	struct kvm_x86_state *state[MAX_VCPUS];
	struct kvm_lapic_state lapic[MAX_VCPUS];
	union attr attrs[NR_ATTRS][MAX_VCPUS];
	struct kvm_clock_data clock;
};

/* Of the VM, there is one each. */
static int nr_of(int n)
{
	return attrs[n].of_vcpu ? nr_vcpus : 1;
}

static bool is_timer(int n)
{
	return attrs[n].of_vcpu && attrs[n].type == KVM_XEN_VCPU_ATTR_TYPE_TIMER;
}

static union attr get_attr(int n, int v)
{
	union attr attr = {};

	if (attrs[n].of_vcpu) {
		attr.vcpu.type = attrs[n].type;
		vcpu_ioctl(vcpus[v], KVM_XEN_VCPU_GET_ATTR, &attr.vcpu);
	} else {
		attr.hvm.type = attrs[n].type;
		vm_ioctl(vm, KVM_XEN_HVM_GET_ATTR, &attr.hvm);
	}

	return attr;
}

static void set_attr(int n, int v, union attr *attr)
{
	if (attrs[n].of_vcpu)
		vcpu_ioctl(vcpus[v], KVM_XEN_VCPU_SET_ATTR, &attr->vcpu);
	else
		vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr->hvm);
}

/*
 * Setting "no area" for the type of address that isn't in use would disable the
 * area.
 */
static bool is_no_area(int n, union attr *attr)
{
	if (!attrs[n].of_vcpu)
		return (attrs[n].type == KVM_XEN_ATTR_TYPE_SHARED_INFO &&
			attr->hvm.u.shared_info.gfn == KVM_XEN_INVALID_GFN) ||
		       (attrs[n].type == KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA &&
			!attr->hvm.u.shared_info.hva);

	return (attrs[n].type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO &&
		attr->vcpu.u.gpa == KVM_XEN_INVALID_GPA) ||
	       (attrs[n].type == KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA && !attr->vcpu.u.hva);
}

/*
 * A timer that has expired has raised its event, which is as good as another
 * one.
 */
static void timer_is_read(int v, union attr *attr)
{
	struct events *e = &sh->events[v][BY_TIMER][0];

	if (!attr->vcpu.u.timer.expires_ns)
		e->delivered = e->sent;
}

/*
 * The last first: reading the timer and vcpu_info brings there what waits in
 * the kernel.  The timer must not expire after that; should it before, it will
 * do so again.
 */
static void save_attrs(struct saved *saved)
{
	int n, v;

	for (n = NR_ATTRS - 1; n >= 0; n--) {
		for (v = 0; v < nr_of(n); v++) {
			saved->attrs[n][v] = get_attr(n, v);
			if (is_timer(n)) {
				timer_is_read(v, &saved->attrs[n][v]);
				xen_set_timer(vcpus[v], port_of(v, BY_TIMER, 0), 0);
				sh->events[v][BY_TIMER][0].repeats = 1;
			}
		}
	}
}

static void restore_attrs(struct saved *saved)
{
	int n, v;

	for (n = 0; n < NR_ATTRS; n++) {
		for (v = 0; v < nr_of(n); v++) {
			if (!is_no_area(n, &saved->attrs[n][v]))
				set_attr(n, v, &saved->attrs[n][v]);
		}
	}
}

/* While no vCPU runs, not even the runstate changes, but a timer may expire. */
static void check_attrs(struct saved *saved)
{
	int n, v;

	for (n = 0; n < NR_ATTRS; n++) {
		for (v = 0; v < nr_of(n); v++) {
			union attr *old = &saved->attrs[n][v], new = get_attr(n, v);

			if (is_timer(n)) {
				timer_is_read(v, &new);
				if (!new.vcpu.u.timer.expires_ns)
					old->vcpu.u.timer.expires_ns = 0;
			}
			TEST_ASSERT(!memcmp(old, &new, sizeof(new)),
				    "%s of %s %d is not what it was", attrs[n].name,
				    attrs[n].of_vcpu ? "vCPU" : "VM", v);
		}
	}
}

/* So that there is something to be saved. */
static void prepare_to_save(void)
{
	char *area = addr_gpa2hva(vm, AREA_GPA);
	int v;

	for (v = 0; v < nr_vcpus; v++) {
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
				  RUNSTATE_blocked);
		if (may_send(sh, v, BY_TIMER, 0))
			start_timer(v, v % 2 ? TIMER_DELAY_NS : SAVED_TIMER_DELAY_NS);

		/*
		 * Where vcpu_info is in a page of its own, the selector waits
		 * in the kernel.
		 */
		TEST_ASSERT_EQ(madvise(area, AREA_PAGES * PAGE_SIZE, MADV_DONTNEED), 0);
		TEST_ASSERT(may_send(sh, v, BY_VMM, 0), "An event was lost over the last time");
		sh->apic_upcalls[v] = 0;
		xen_evtchn_send(vcpus[v], port_of(v, BY_VMM, 0));
		has_sent(sh, v, BY_VMM, 0);
	}
}

static bool is_requested(struct kvm_lapic_state *lapic, int vector)
{
	u32 *irr = (void *)&lapic->regs[APIC_IRR + vector / 32 * 16];

	return *irr & BIT(vector % 32);
}

static void save(struct saved *saved)
{
	int v;

	prepare_to_save();
	save_attrs(saved);
	for (v = 0; v < nr_vcpus; v++) {
		saved->state[v] = vcpu_save_state(vcpus[v]);
		vcpu_ioctl(vcpus[v], KVM_GET_LAPIC, &saved->lapic[v]);
		/* Of an event that does not wait any longer. */
		TEST_ASSERT(!has_apic_upcalls(v) ||
			    is_requested(&saved->lapic[v], VCPU_UPCALL_VECTOR),
			    "vCPU %d: an upcall by the local APIC was not saved", v);
	}
	vm_ioctl(vm, KVM_GET_CLOCK, &saved->clock);
}

/* Runstates and timers are times of the clock. */
static void restore(struct saved *saved)
{
	struct kvm_clock_data now = { .clock = saved->clock.clock };
	int v;

	for (v = 0; v < nr_vcpus; v++) {
		vcpus[v] = vm_vcpu_recreate(vm, v);
		vcpu_load_state(vcpus[v], saved->state[v]);
		vcpu_ioctl(vcpus[v], KVM_SET_LAPIC, &saved->lapic[v]);
		kvm_x86_state_cleanup(saved->state[v]);
	}
	vm_ioctl(vm, KVM_SET_CLOCK, &now);
	xen_enable_default_vcpu_info(vm);
	restore_attrs(saved);
	check_attrs(saved);
}

/*
 * Save the VM and restore it, with whatever is pending: in shared_info, in a
 * vcpu_info, in the kernel for want of these, in a timer, in an eventfd.
 */
static void save_and_restore(void)
{
	static struct saved saved;

	sh->nr_events++;
	deassign_irqfds();
	save(&saved);
	let_irqfds_send(nr_due + 1);
	kvm_vm_release(vm);

	times_saved++;
	kvm_vm_restart(vm);
	restore(&saved);
	set_up_events();
}

/* Less than 64 bits are at the same place. */
static void set_hvm_attr(u16 type, u64 value)
{
	struct kvm_xen_hvm_attr attr = { .type = type, .u.pad[0] = value };

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

static void register_shared_info(bool by_hva)
{
	u64 hva = (unsigned long)addr_gpa2hva(vm, AREA_GPA) + SHARED_INFO;

	if (by_hva)
		set_hvm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, hva);
	else
		xen_set_shared_info(vm, AREA_GPA + SHARED_INFO);
}

/* What there is of a vCPU besides its vcpu_info. */
static void set_up_areas(int v)
{
	xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
			  AREA_GPA + TIME_INFO(v));
	xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, AREA_GPA + RUNSTATE(v));
	if (has_apic_upcalls(v))
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
				  VCPU_UPCALL_VECTOR);
}

static void create_vm(void)
{
	int v, nr_pages = DIV_ROUND_UP(sizeof(*sh), PAGE_SIZE);
	gva_t shared;

	vm = vm_create_with_vcpus(nr_vcpus, guest_code, vcpus);
	shared = vm_alloc_pages(vm, nr_pages);
	sh = addr_gva2hva(vm, shared);
	sh->nr_vcpus = nr_vcpus;
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_SHMEM, AREA_GPA, AREA_SLOT, AREA_PAGES, 0);
	virt_map(vm, AREA_GVA, AREA_GPA, AREA_PAGES);
	vm_install_exception_handler(vm, UPCALL_VECTOR, guest_upcall);
	vm_install_exception_handler(vm, VCPU_UPCALL_VECTOR, guest_apic_upcall);

	xen_enable_default_vcpu_info(vm);
	xen_set_upcall_vector(vm, UPCALL_VECTOR);
	set_hvm_attr(KVM_XEN_ATTR_TYPE_XEN_VERSION, XEN_VERSION);
	set_hvm_attr(KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, true);
	create_eventfds();
	set_up_events();

	for (v = 0; v < nr_vcpus; v++) {
		vcpu_args_set(vcpus[v], 2, shared, v);
		xen_set_vcpu_id(vcpus[v], v);
		sh->vcpu_info[v] = AREA_GVA + DEFAULT_INFO(v);
		set_up_areas(v);
	}
}

static void start(pthread_t *thread, void *(*fn)(void *), long arg)
{
	TEST_ASSERT_EQ(pthread_create(thread, NULL, fn, (void *)arg), 0);
}

static bool half_seen(int v)
{
	return sh->nr_events - get(&sh->events[v][BY_IOCTL][0].seen) <= nr_events / 2;
}

static void run_vm(void)
{
	pthread_t vcpu_threads[MAX_VCPUS], senders[MAX_VCPUS], router;
	int v;

	stop_vcpus = false;
	stop_ioctls = false;
	start(&router, set_routes, 0);
	for (v = 0; v < nr_vcpus; v++) {
		start(&vcpu_threads[v], run_vcpu, v);
		start(&senders[v], send_ioctls, v);
	}

	/* A thread that is done goes on to move, until all are. */
	for (v = 0; v < nr_vcpus; v++) {
		while (in_the_middle ? !half_seen(v) : !all_seen(sh, v))
			usleep(1000);
	}

	if (in_the_middle)
		WRITE_ONCE(nr_due, 0);
	WRITE_ONCE(stop_vcpus, true);
	for (v = 0; v < nr_vcpus; v++)
		pthread_join(vcpu_threads[v], NULL);

	WRITE_ONCE(stop_ioctls, true);
	for (v = 0; v < nr_vcpus; v++)
		pthread_join(senders[v], NULL);
	pthread_join(router, NULL);
}

static void run_round(int round)
{
	pthread_t senders[MAX_VCPUS], disturber;
	int v;

	alarm(120);
	sh->long_mode = round % 2;
	xen_set_long_mode(vm, sh->long_mode);
	register_shared_info(round / 2 % 2);
	/* One more is for when the VM is saved. */
	sh->nr_events += nr_events - 1;

	stop = false;
	start(&disturber, take_memory_away, 0);
	for (v = 0; v < nr_vcpus; v++)
		start(&senders[v], send_irqfds, v);

	in_the_middle = true;
	run_vm();
	save_and_restore();
	in_the_middle = false;
	run_vm();

	WRITE_ONCE(stop, true);
	pthread_join(disturber, NULL);
	for (v = 0; v < nr_vcpus; v++)
		pthread_join(senders[v], NULL);
}

static void time_is_up(int sig)
{
	int v, source, i;

	for (v = 0; v < nr_vcpus; v++) {
		for (source = 0; source < NR_SOURCES; source++) {
			for (i = 0; i < nr_ports(source); i++) {
				struct events *e = &sh->events[v][source][i];

				if (e->seen != sh->nr_events)
					fprintf(stderr, "vCPU %d, %s %d: %u sent, %u seen\n", v,
						source_names[source], i, e->sent, e->seen);
			}
		}
	}
	fprintf(stderr, "An event was lost, or takes more than 120 s\n");
	_exit(KSFT_FAIL);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n vcpus] [-r rounds] [-e events of each port and round]\n",
	       name);
}

int main(int argc, char *argv[])
{
	u32 total = 0, nothing = 0, ports = 0;
	int i, opt, caps = kvm_check_cap(KVM_CAP_XEN_HVM);

	TEST_REQUIRE(xen_has_evtchn_send());
	TEST_REQUIRE(caps & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO);
	TEST_REQUIRE(caps & KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG);

	while ((opt = getopt(argc, argv, "hn:r:e:")) != -1) {
		switch (opt) {
		case 'n':
			nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= MAX_VCPUS, "At most %d vCPUs", MAX_VCPUS);
			break;
		case 'r':
			nr_rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 'e':
			nr_events = atoi_positive("Number of events", optarg);
			break;
		default:
			help(argv[0]);
			exit(opt == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}

	signal(SIGALRM, time_is_up);
	create_vm();
	for (i = 0; i < nr_rounds; i++)
		run_round(i);

	for (i = 0; i < BY_VMM; i++)
		ports += nr_ports(i);
	for (i = 0; i < nr_vcpus; i++) {
		total += moves[i];
		nothing += sh->nothing_seen[i];
	}
	pr_info("%u events, %u held by eventfds, %u moves, %u upcalls for nothing\n",
		nr_vcpus * nr_rounds * (ports * nr_events + 1), nr_held, total, nothing);
	pr_info("Memory taken away %u times, routes set %u times\n", times_taken_away,
		times_routed);
	TEST_ASSERT(total > nr_rounds * nr_vcpus, "Hardly anything was moved");
	TEST_ASSERT(nr_held >= nr_rounds * nr_vcpus, "Hardly any eventfd held an event");
	kvm_vm_free(vm);
	return 0;
}
