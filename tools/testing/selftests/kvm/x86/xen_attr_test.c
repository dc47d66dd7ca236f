// SPDX-License-Identifier: GPL-2.0-only
/*
 * Bad input to KVM's Xen ioctls: KVM_XEN_HVM_SET_ATTR and its GET, the same of
 * the vCPU, KVM_XEN_HVM_EVTCHN_SEND, KVM_XEN_HVM_CONFIG, and
 * KVM_SET_GSI_ROUTING with routes to event channels.
 *
 * Values that are out of range, unaligned, across the end of a page or a
 * memslot, that overflow, or for which there is no memory, are given to each
 * attribute, with the 32-bit and the 64-bit ABI, before and after the guest's
 * areas have been registered.  All or nothing: an ioctl that fails does so with
 * the errno in the table, changes no attribute and no byte of the areas, keeps
 * what is pending, and the areas that were registered before go on working.
 * The good values next to the bad ones succeed and read back as set.
 */
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "test_util.h"
#include "kvm_util.h"
#include "processor.h"
#include "kvm_test_harness.h"
#include "warn_count.h"
#include "xen.h"

#define REGION_GPA		0xc0000000ULL
#define REGION_PAGES		7
#define REGION_PAGE(n)		(REGION_GPA + (n) * PAGE_SIZE)

/* The areas.  The guest's runstate is across two pages when set by GPA. */
#define SHINFO_GPA		REGION_PAGE(0)
#define VCPU_INFO_GPA		(REGION_PAGE(1) + 0x40)
#define TIME_INFO_GPA		(REGION_PAGE(2) + 0x80)
#define RUNSTATE_GPA		(REGION_PAGE(4) - 15)
#define RUNSTATE_1PAGE_GPA	(REGION_PAGE(3) + 0x100)

/* Where else an area can go... */
#define SPARE_GPA		REGION_PAGE(5)
#define LAST_GPA		REGION_PAGE(REGION_PAGES - 1)

/*
 * ... and where not: a read-only memslot behind the region, a page that no
 * memslot has on either side of a writable one, and one that is mapped into
 * the guest but not into the VMM, behind another writable one.
 */
#define RO_GPA			(LAST_GPA + PAGE_SIZE)
#define HOLE_GPA		(RO_GPA + PAGE_SIZE)
#define LONE_GPA		(HOLE_GPA + PAGE_SIZE)
#define EDGE_GPA		(LONE_GPA + 2 * PAGE_SIZE)
#define GONE_GPA		(EDGE_GPA + PAGE_SIZE)

#define KERNEL_HVA		0xffff800000000000ULL
#define NONCANONICAL_HVA	0x4000000000000000ULL
/* No VMA can be below vm.mmap_min_addr. */
#define UNMAPPED_HVA		PAGE_SIZE

#define XEN_VERSION		0x40011

/* PENDING_PORT is raised before a call that fails, PROBE_PORT after. */
#define PENDING_PORT		70
#define PROBE_PORT		300
#define TIMER_PORT		80
#define TIMER_FAR		BIT_ULL(60)
#define ROUTE_PORT		500
#define ROUTE_GSI		32

/* What the guest may send to, and where it goes. */
#define SEND_PORT		10
#define SEND_EVENTFD		11
#define SEND_IPI		12
#define SEND_NOWHERE		13
#define DELIVER_PORT		100

#define ABSENT_VCPU		7
#define PRIO_2LEVEL		KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL

#define __HYPERVISOR_xen_version	17
#define XENVER_version			0

/* Add up, and are long past by the time that a VM runs. */
#define TIME_RUNNING		100
#define TIME_RUNNABLE		200
#define TIME_BLOCKED		210
#define TIME_OFFLINE		90
#define TIME_ENTRY		600
#define TIME_FUTURE		(~0ULL >> 1)

/* How the areas are registered at the time of a call. */
enum areas {
	AREAS_UNSET,
	AREAS_BY_GPA,
	AREAS_BY_HVA,
	NR_AREAS,
};

#define UNSET			BIT(AREAS_UNSET)
#define SET			(BIT(AREAS_BY_GPA) | BIT(AREAS_BY_HVA))
#define ANY			(UNSET | SET)

static const char * const areas_names[NR_AREAS] = {
	[AREAS_UNSET]	= "no areas",
	[AREAS_BY_GPA]	= "areas by GPA",
	[AREAS_BY_HVA]	= "areas by HVA",
};

static const char * const hvm_names[] = {
	[KVM_XEN_ATTR_TYPE_LONG_MODE]			= "LONG_MODE",
	[KVM_XEN_ATTR_TYPE_SHARED_INFO]			= "SHARED_INFO",
	[KVM_XEN_ATTR_TYPE_UPCALL_VECTOR]		= "UPCALL_VECTOR",
	[KVM_XEN_ATTR_TYPE_EVTCHN]			= "EVTCHN",
	[KVM_XEN_ATTR_TYPE_XEN_VERSION]			= "XEN_VERSION",
	[KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG]	= "RUNSTATE_UPDATE_FLAG",
	[KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA]		= "SHARED_INFO_HVA",
};

static const char * const vcpu_names[] = {
	[KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO]		= "VCPU_INFO",
	[KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO]		= "VCPU_TIME_INFO",
	[KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR]		= "RUNSTATE_ADDR",
	[KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT]	= "RUNSTATE_CURRENT",
	[KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA]		= "RUNSTATE_DATA",
	[KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST]	= "RUNSTATE_ADJUST",
	[KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID]		= "VCPU_ID",
	[KVM_XEN_VCPU_ATTR_TYPE_TIMER]			= "TIMER",
	[KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR]		= "UPCALL_VECTOR",
	[KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA]		= "VCPU_INFO_HVA",
};

#define NR_HVM_ATTRS		ARRAY_SIZE(hvm_names)
#define NR_ATTRS		(NR_HVM_ATTRS + ARRAY_SIZE(vcpu_names))

/* An attribute of the VM or of the vCPU. */
struct attr {
	bool of_vcpu;
	union {
		struct kvm_xen_hvm_attr hvm;
		struct kvm_xen_vcpu_attr vcpu;
	};
};

/* They are compared with each other's size. */
kvm_static_assert(sizeof(struct kvm_xen_hvm_attr) == sizeof(struct kvm_xen_vcpu_attr));

/* A row of a table.  Without an error, the value reads back as it was set. */
struct value {
	const char *name;
	struct attr attr;
	int err;
};

/* All that an ioctl could change; an attribute's errno is part of it. */
struct snapshot {
	struct attr attrs[NR_ATTRS];
	int errs[NR_ATTRS];
	u8 mem[REGION_PAGES * PAGE_SIZE];
};

/* What is tried at the moment, and how much of it went wrong. */
static struct {
	const char *value;
	enum areas areas;
	int long_mode;
	int complaints;
} now;

/* Where the VMM has the region, NULL if the VM has none. */
static void *region;

/* Three pages in a row that are not the guest's. */
static void *rw_page, *none_page, *ro_page;

#define for_each_mode() \
	for (now.long_mode = 0; now.long_mode < 2; now.long_mode++)

static __printf(1, 2) void complain(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "# %d-bit, %s, %s: ", now.long_mode ? 64 : 32,
		areas_names[now.areas], now.value);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	now.complaints++;
}

/* The guest sends to this one, if any. */
static u32 guest_port;

static void guest_code(void)
{
	for (;;) {
		xen_guest_exit();
		if (guest_port)
			xen_guest_send(guest_port);
		GUEST_SYNC(0);
	}
}

/* What KVM_XEN_HVM_CONFIG has configured: the hypercalls and their page. */
static void guest_config(void)
{
	u64 version;
	u8 vector;

	for (;;) {
		version = __xen_hypercall(__HYPERVISOR_xen_version, XENVER_version, NULL);
		vector = wrmsr_safe(XEN_HYPERCALL_MSR, SPARE_GPA);
		GUEST_SYNC_ARGS(0, version, vector, 0, 0);
	}
}

static int nr_ports(void)
{
	return now.long_mode ? 4096 : 1024;
}

/* What is less than 64 bits wide is at the same place. */
static struct attr hvm_attr(u16 type, u64 value)
{
	return (struct attr) { .hvm = { .type = type, .u.pad[0] = value } };
}

static struct attr vcpu_attr(u16 type, u64 value)
{
	return (struct attr) { .of_vcpu = true, .vcpu = { .type = type, .u.pad[0] = value } };
}

#define long_mode(on)		hvm_attr(KVM_XEN_ATTR_TYPE_LONG_MODE, on)
#define shinfo_gfn(gfn)		hvm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn)
#define shinfo_gpa(gpa)		shinfo_gfn((gpa) / PAGE_SIZE)
#define shinfo_hva(hva)		hvm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, (u64)(hva))
#define hvm_vector(vector)	hvm_attr(KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector)
#define xen_version(version)	hvm_attr(KVM_XEN_ATTR_TYPE_XEN_VERSION, (u32)(version))
#define update_flag(on)		hvm_attr(KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, on)

#define vcpu_info(gpa)		vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa)
#define vcpu_info_hva(hva)	vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA, (u64)(hva))
#define time_info(gpa)		vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa)
#define runstate_addr(gpa)	vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa)
#define runstate_current(state)	vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, state)
#define vcpu_id(id)		vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, (u32)(id))
#define vcpu_vector(vector)	vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector)

/* vCPU 0 and two levels unless the caller changes it. */
static struct attr evtchn(u32 flags, u32 send_port, u32 type, u32 port)
{
	struct attr attr = hvm_attr(KVM_XEN_ATTR_TYPE_EVTCHN, 0);

	attr.hvm.u.evtchn.send_port = send_port;
	attr.hvm.u.evtchn.type = type;
	attr.hvm.u.evtchn.flags = flags;
	attr.hvm.u.evtchn.deliver.port.port = port;
	attr.hvm.u.evtchn.deliver.port.priority = PRIO_2LEVEL;
	return attr;
}

static struct attr evtchn_prio(u32 flags, u32 send_port, u32 type, u32 port, u32 priority)
{
	struct attr attr = evtchn(flags, send_port, type, port);

	attr.hvm.u.evtchn.deliver.port.priority = priority;
	return attr;
}

static struct attr evtchn_vcpu(u32 flags, u32 send_port, u32 type, u32 port, u32 vcpu)
{
	struct attr attr = evtchn(flags, send_port, type, port);

	attr.hvm.u.evtchn.deliver.port.vcpu = vcpu;
	return attr;
}

static struct attr evtchn_fd(u32 send_port, int fd)
{
	struct attr attr = evtchn(0, send_port, EVTCHNSTAT_interdomain, 0);

	attr.hvm.u.evtchn.deliver.eventfd.fd = fd;
	return attr;
}

/* Entered at that time, and running for so long. */
static struct attr runstate(u16 type, u64 state, u64 entry, u64 running)
{
	struct attr attr = vcpu_attr(type, 0);

	attr.vcpu.u.runstate.state = state;
	attr.vcpu.u.runstate.state_entry_time = entry;
	attr.vcpu.u.runstate.time_running = running;
	return attr;
}

static struct attr runstate_data(u64 state, u64 entry, u64 running)
{
	return runstate(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, state, entry, running);
}

static struct attr runstate_adjust(u64 state, u64 entry, u64 running)
{
	return runstate(KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST, state, entry, running);
}

static struct attr timer(u32 port, u32 priority, u64 expires)
{
	struct attr attr = vcpu_attr(KVM_XEN_VCPU_ATTR_TYPE_TIMER, 0);

	attr.vcpu.u.timer.port = port;
	attr.vcpu.u.timer.priority = priority;
	attr.vcpu.u.timer.expires_ns = expires;
	return attr;
}

static int try_set(struct kvm_vcpu *vcpu, const struct attr *attr)
{
	int ret;

	if (attr->of_vcpu)
		ret = __vcpu_ioctl(vcpu, KVM_XEN_VCPU_SET_ATTR, &attr->vcpu);
	else
		ret = __vm_ioctl(vcpu->vm, KVM_XEN_HVM_SET_ATTR, &attr->hvm);
	return ret ? errno : 0;
}

static void set(struct kvm_vcpu *vcpu, struct attr attr)
{
	TEST_ASSERT_EQ(try_set(vcpu, &attr), 0);
}

/* The attribute of the type that @attr has. */
static int get(struct kvm_vcpu *vcpu, struct attr *attr)
{
	int ret;

	if (attr->of_vcpu) {
		*attr = vcpu_attr(attr->vcpu.type, 0);
		ret = __vcpu_ioctl(vcpu, KVM_XEN_VCPU_GET_ATTR, &attr->vcpu);
	} else {
		*attr = hvm_attr(attr->hvm.type, 0);
		ret = __vm_ioctl(vcpu->vm, KVM_XEN_HVM_GET_ATTR, &attr->hvm);
	}
	return ret ? errno : 0;
}

static bool reads_back(struct kvm_vcpu *vcpu, const struct attr *attr)
{
	struct attr new = *attr;

	return !get(vcpu, &new) && !memcmp(&new.hvm, &attr->hvm, sizeof(new.hvm));
}

static void *area(u64 gpa)
{
	return region + (gpa - REGION_GPA);
}

/* The bitmaps of either ABI begin at the same place. */
static bool is_pending(int port)
{
	return xen_is_pending(area(SHINFO_GPA), port);
}

static void clear_pending(int port)
{
	struct xen_shared_info *shinfo = area(SHINFO_GPA);

	shinfo->evtchn_pending[port / 64] &= ~BIT_ULL(port % 64);
}

static bool is_selected(int port)
{
	struct xen_vcpu_info32 *vi32 = area(VCPU_INFO_GPA);
	struct xen_vcpu_info *vi = area(VCPU_INFO_GPA);

	if (now.long_mode)
		return READ_ONCE(vi->evtchn_pending_sel) & BIT_ULL(port / 64);

	return READ_ONCE(vi32->evtchn_pending_sel) & BIT(port / 32);
}

static void run_guest(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
}

static int raise_event(struct kvm_vcpu *vcpu, u32 port)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpu, port);

	return __vm_ioctl(vcpu->vm, KVM_XEN_HVM_EVTCHN_SEND, &e) ? errno : 0;
}

/* Can be for the vCPU to do, e.g. if vcpu_info's page has just been moved. */
static bool gets_selected(struct kvm_vcpu *vcpu, int port)
{
	if (!is_selected(port))
		run_guest(vcpu);

	return is_selected(port);
}

static void set_areas_by_gpa(struct kvm_vcpu *vcpu)
{
	set(vcpu, shinfo_gpa(SHINFO_GPA));
	set(vcpu, vcpu_info(VCPU_INFO_GPA));
	set(vcpu, runstate_addr(RUNSTATE_GPA));
}

static void set_areas_by_hva(struct kvm_vcpu *vcpu)
{
	set(vcpu, shinfo_hva(area(SHINFO_GPA)));
	set(vcpu, vcpu_info_hva(area(VCPU_INFO_GPA)));
	set(vcpu, runstate_addr(RUNSTATE_1PAGE_GPA));
}

static void unset_areas(struct kvm_vcpu *vcpu)
{
	set(vcpu, shinfo_gfn(KVM_XEN_INVALID_GFN));
	set(vcpu, vcpu_info(KVM_XEN_INVALID_GPA));
	set(vcpu, time_info(KVM_XEN_INVALID_GPA));
	set(vcpu, runstate_addr(KVM_XEN_INVALID_GPA));
	memset(region, 0, REGION_PAGES * PAGE_SIZE);
}

static void set_areas(struct kvm_vcpu *vcpu)
{
	if (now.areas == AREAS_BY_GPA)
		set_areas_by_gpa(vcpu);
	else
		set_areas_by_hva(vcpu);
	set(vcpu, time_info(TIME_INFO_GPA));

	TEST_ASSERT_EQ(raise_event(vcpu, PENDING_PORT), 0);
	TEST_ASSERT_EQ(is_pending(PENDING_PORT), true);
	TEST_ASSERT_EQ(gets_selected(vcpu, PENDING_PORT), true);
}

static struct attr all_runstates(void)
{
	struct attr data = runstate_data(RUNSTATE_running, TIME_ENTRY, TIME_RUNNING);

	data.vcpu.u.runstate.time_runnable = TIME_RUNNABLE;
	data.vcpu.u.runstate.time_blocked = TIME_BLOCKED;
	data.vcpu.u.runstate.time_offline = TIME_OFFLINE;
	return data;
}

/* Everything has a value that is good, differs from 0, and is known. */
static void reset(struct kvm_vcpu *vcpu, enum areas areas)
{
	now.areas = areas;
	now.value = "reset";
	unset_areas(vcpu);
	set(vcpu, long_mode(now.long_mode));
	set(vcpu, hvm_vector(0x20));
	set(vcpu, xen_version(XEN_VERSION));
	set(vcpu, update_flag(1));
	set(vcpu, vcpu_vector(0x30));
	set(vcpu, vcpu_id(3));
	set(vcpu, timer(TIMER_PORT, PRIO_2LEVEL, TIMER_FAR));
	set(vcpu, all_runstates());
	if (areas != AREAS_UNSET)
		set_areas(vcpu);
}

static void take_snapshot(struct kvm_vcpu *vcpu, struct snapshot *s)
{
	int i;

	for (i = 0; i < NR_ATTRS; i++) {
		if (i < NR_HVM_ATTRS)
			s->attrs[i] = hvm_attr(i, 0);
		else
			s->attrs[i] = vcpu_attr(i - NR_HVM_ATTRS, 0);
		s->errs[i] = get(vcpu, &s->attrs[i]);
	}
	if (region)
		memcpy(s->mem, region, sizeof(s->mem));
}

static const char *attr_name(int i)
{
	return i < NR_HVM_ATTRS ? hvm_names[i] : vcpu_names[i - NR_HVM_ATTRS];
}

static void compare_attrs(const char *name, const struct attr *old, const struct attr *new)
{
	const __u64 *a = old->hvm.u.pad, *b = new->hvm.u.pad;
	int i;

	for (i = 0; i < ARRAY_SIZE(old->hvm.u.pad); i++) {
		if (a[i] != b[i])
			complain("%s has changed from 0x%llx to 0x%llx", name, a[i], b[i]);
	}
}

static void compare_snapshots(const struct snapshot *old, const struct snapshot *new)
{
	int i;

	for (i = 0; i < NR_ATTRS; i++) {
		if (old->errs[i] != new->errs[i])
			complain("getting %s, errno is %d, was %d", attr_name(i),
				 new->errs[i], old->errs[i]);
		else
			compare_attrs(attr_name(i), &old->attrs[i], &new->attrs[i]);
	}
	for (i = 0; i < sizeof(new->mem); i++) {
		if (old->mem[i] != new->mem[i]) {
			complain("the guest's memory has changed, 0x%llx first",
				 REGION_GPA + i);
			break;
		}
	}
}

/* An ioctl that fails in the way wanted, and changes nothing. */
static void reject(struct kvm_vcpu *vcpu, const char *value, int fd,
		   unsigned long cmd, const void *arg, int err)
{
	static struct snapshot before, after;
	int ret, new_err;

	now.value = value;
	take_snapshot(vcpu, &before);
	ret = ioctl(fd, cmd, arg);
	new_err = errno;
	take_snapshot(vcpu, &after);

	if (ret != -1)
		complain("%d, should have failed with errno %d", ret, err);
	else if (new_err != err)
		complain("errno %d, should be %d", new_err, err);
	compare_snapshots(&before, &after);
}

static void check_events(struct kvm_vcpu *vcpu)
{
	int err = raise_event(vcpu, PROBE_PORT);

	if (now.areas == AREAS_UNSET) {
		if (err != EINVAL)
			complain("errno %d of an event that has no shared_info", err);
		return;
	}

	if (err)
		complain("errno %d of an event afterwards", err);
	if (!is_pending(PENDING_PORT))
		complain("the event before is no longer pending");
	if (!is_pending(PROBE_PORT))
		complain("an event afterwards is not in shared_info");
	if (!gets_selected(vcpu, PROBE_PORT))
		complain("an event afterwards is not in vcpu_info");
}

/* One of the fields is in the second page if there are two. */
static void check_runstate(struct kvm_vcpu *vcpu)
{
	u64 gpa = now.areas == AREAS_BY_GPA ? RUNSTATE_GPA : RUNSTATE_1PAGE_GPA;
	void *rs = area(gpa), *rs_offline = rs + (now.long_mode ? 40 : 36);
	u64 offline = 0;
	u32 state = 0;

	if (now.areas == AREAS_UNSET)
		return;

	memcpy(rs, &state, sizeof(state));
	memcpy(rs_offline, &offline, sizeof(offline));
	set(vcpu, runstate_current(RUNSTATE_blocked));
	memcpy(&state, rs, sizeof(state));
	memcpy(&offline, rs_offline, sizeof(offline));
	if (state != RUNSTATE_blocked || offline != TIME_OFFLINE)
		complain("the runstate is no longer updated");
}

/* KVM writes the time when the vCPU runs next. */
static void check_time(struct kvm_vcpu *vcpu)
{
	u32 *version = area(TIME_INFO_GPA);
	struct kvm_clock_data clock;

	if (now.areas == AREAS_UNSET)
		return;

	*version = 0;
	vm_ioctl(vcpu->vm, KVM_GET_CLOCK, &clock);
	clock.flags = 0;
	vm_ioctl(vcpu->vm, KVM_SET_CLOCK, &clock);
	run_guest(vcpu);
	if (!*version)
		complain("the time is no longer updated");
}

static void check_areas(struct kvm_vcpu *vcpu)
{
	check_runstate(vcpu);
	check_events(vcpu);
	check_time(vcpu);
}

static void reject_attr(struct kvm_vcpu *vcpu, const struct value *v)
{
	if (v->attr.of_vcpu)
		reject(vcpu, v->name, vcpu->fd, KVM_XEN_VCPU_SET_ATTR,
		       &v->attr.vcpu, v->err);
	else
		reject(vcpu, v->name, vcpu->vm->fd, KVM_XEN_HVM_SET_ATTR,
		       &v->attr.hvm, v->err);
}

static void accept_attr(struct kvm_vcpu *vcpu, const struct value *v)
{
	int err = try_set(vcpu, &v->attr);

	now.value = v->name;
	if (err)
		complain("errno %d, should have succeeded", err);
	else if (!reads_back(vcpu, &v->attr))
		complain("does not read back as set");
}

static void try_value(struct kvm_vcpu *vcpu, enum areas areas, const struct value *v)
{
	reset(vcpu, areas);
	if (v->err) {
		reject_attr(vcpu, v);
		check_areas(vcpu);
	} else {
		accept_attr(vcpu, v);
	}
}

/* The values of a table, each in each state of the areas that @mask has. */
static void __try_values(struct kvm_vcpu *vcpu, unsigned int mask,
			 const struct value *values, int nr)
{
	enum areas areas;
	int i;

	for (areas = 0; areas < NR_AREAS; areas++) {
		for (i = 0; i < nr && mask & BIT(areas); i++)
			try_value(vcpu, areas, &values[i]);
	}
}

/* With either ABI. */
static void try_values(struct kvm_vcpu *vcpu, unsigned int mask,
		       const struct value *values, int nr)
{
	for_each_mode()
		__try_values(vcpu, mask, values, nr);
}

static void add_slot(struct kvm_vm *vm, u32 slot, u64 gpa, u64 npages, u32 flags)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, gpa, slot, npages, flags);
}

static void set_gone(struct kvm_vm *vm, bool gone)
{
	int prot = gone ? PROT_NONE : PROT_READ | PROT_WRITE;

	TEST_ASSERT_EQ(mprotect(addr_gpa2hva(vm, GONE_GPA), PAGE_SIZE, prot), 0);
}

static void map_hvas(void)
{
	rw_page = kvm_mmap(3 * PAGE_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);
	none_page = rw_page + PAGE_SIZE;
	ro_page = none_page + PAGE_SIZE;
	TEST_ASSERT_EQ(mprotect(none_page, PAGE_SIZE, PROT_NONE), 0);
	TEST_ASSERT_EQ(mprotect(ro_page, PAGE_SIZE, PROT_READ), 0);
}

static struct kvm_xen_hvm_config good_config(void)
{
	return (struct kvm_xen_hvm_config) {
		.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL |
			 KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
		.msr = XEN_HYPERCALL_MSR,
	};
}

FIXTURE(xen_attr) {
	struct kvm_vcpu *vcpu;
	int warnings;
};

FIXTURE_SETUP(xen_attr)
{
	struct kvm_xen_hvm_config config = good_config();
	struct kvm_vm *vm;

	self->warnings = read_warn_count();
	vm = vm_create_with_one_vcpu(&self->vcpu, guest_code);
	add_slot(vm, 10, REGION_GPA, REGION_PAGES, 0);
	add_slot(vm, 11, RO_GPA, 1, KVM_MEM_READONLY);
	add_slot(vm, 12, LONE_GPA, 1, 0);
	add_slot(vm, 13, EDGE_GPA, 2, 0);
	region = addr_gpa2hva(vm, REGION_GPA);
	set_gone(vm, true);
	map_hvas();
	vm_ioctl(vm, KVM_XEN_HVM_CONFIG, &config);
}

FIXTURE_TEARDOWN(xen_attr)
{
	EXPECT_EQ(now.complaints, 0);
	EXPECT_EQ(read_warn_count(), self->warnings)
		TH_LOG("KVM has WARNed, see the kernel's log");
	kvm_vm_free(self->vcpu->vm);
}

KVM_ONE_VCPU_TEST(xen_attr, pointer, guest_code)
{
	const struct {
		const char *name;
		int fd;
		unsigned long cmd;
	} calls[] = {
		{ "HVM_SET_ATTR", vcpu->vm->fd, KVM_XEN_HVM_SET_ATTR },
		{ "HVM_GET_ATTR", vcpu->vm->fd, KVM_XEN_HVM_GET_ATTR },
		{ "HVM_EVTCHN_SEND", vcpu->vm->fd, KVM_XEN_HVM_EVTCHN_SEND },
		{ "HVM_CONFIG", vcpu->vm->fd, KVM_XEN_HVM_CONFIG },
		{ "SET_GSI_ROUTING", vcpu->vm->fd, KVM_SET_GSI_ROUTING },
		{ "VCPU_SET_ATTR", vcpu->fd, KVM_XEN_VCPU_SET_ATTR },
		{ "VCPU_GET_ATTR", vcpu->fd, KVM_XEN_VCPU_GET_ATTR },
	};
	struct kvm_irq_routing *routing = none_page - sizeof(*routing);
	void *args[] = { NULL, none_page, none_page - 4, (void *)KERNEL_HVA };
	int i, j;

	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		for (i = 0; i < ARRAY_SIZE(calls); i++) {
			for (j = 0; j < ARRAY_SIZE(args); j++)
				reject(vcpu, calls[i].name, calls[i].fd,
				       calls[i].cmd, args[j], EFAULT);
		}

		/* Can be read, but not written. */
		reject(vcpu, "HVM_GET_ATTR into a read-only page", vcpu->vm->fd,
		       KVM_XEN_HVM_GET_ATTR, ro_page, EFAULT);
		reject(vcpu, "VCPU_GET_ATTR into a read-only page", vcpu->fd,
		       KVM_XEN_VCPU_GET_ATTR, ro_page, EFAULT);

		/* The head can be read, but not the entries. */
		routing->nr = 1;
		reject(vcpu, "SET_GSI_ROUTING without entries", vcpu->vm->fd,
		       KVM_SET_GSI_ROUTING, routing, EFAULT);
		check_areas(vcpu);
	}
}

KVM_ONE_VCPU_TEST(xen_attr, type, guest_code)
{
	const struct value values[] = {
		{ "HVM, first unknown", hvm_attr(NR_HVM_ATTRS, 0), ENOENT },
		{ "HVM, 0x8000", hvm_attr(0x8000, 0), ENOENT },
		{ "HVM, 0xffff", hvm_attr(0xffff, 0), ENOENT },
		{ "vCPU, first unknown", vcpu_attr(NR_ATTRS - NR_HVM_ATTRS, 0), ENOENT },
		{ "vCPU, 0x8000", vcpu_attr(0x8000, 0), ENOENT },
		{ "vCPU, 0xffff", vcpu_attr(0xffff, 0), ENOENT },
	};
	const struct value get_values[] = {
		{ "EVTCHN", hvm_attr(KVM_XEN_ATTR_TYPE_EVTCHN, 0), ENOENT },
		{ "RUNSTATE_ADJUST", runstate_adjust(0, 0, 0), EINVAL },
	};
	struct attr attr;
	int i;

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
	for (i = 0; i < ARRAY_SIZE(values); i++) {
		attr = values[i].attr;
		TEST_ASSERT_EQ(get(vcpu, &attr), values[i].err);
	}

	/* These can be set, but not got. */
	for (i = 0; i < ARRAY_SIZE(get_values); i++) {
		attr = get_values[i].attr;
		TEST_ASSERT_EQ(get(vcpu, &attr), get_values[i].err);
	}
}

static void reject_on(struct kvm_vcpu *vcpu, int fd, unsigned long cmd, const struct attr *attr,
		      int err)
{
	struct attr arg = *attr;

	if (arg.of_vcpu)
		reject(vcpu, vcpu_names[arg.vcpu.type], fd, cmd, &arg.vcpu, err);
	else
		reject(vcpu, hvm_names[arg.hvm.type], fd, cmd, &arg.hvm, err);
}

/* Attributes of the VM on a vCPU's file descriptor, and vice versa. */
KVM_ONE_VCPU_TEST(xen_attr, wrong_fd, guest_code)
{
	const struct attr attrs[] = {
		long_mode(!now.long_mode),
		shinfo_gpa(SPARE_GPA),
		shinfo_hva(area(SPARE_GPA)),
		hvm_vector(0x21),
		evtchn(0, SEND_PORT, EVTCHNSTAT_interdomain, DELIVER_PORT),
		xen_version(XEN_VERSION + 1),
		update_flag(0),
		vcpu_info(SPARE_GPA),
		vcpu_info_hva(area(SPARE_GPA)),
		time_info(SPARE_GPA),
		runstate_addr(SPARE_GPA),
		runstate_current(RUNSTATE_blocked),
		runstate_data(RUNSTATE_running, TIME_RUNNING, TIME_RUNNING),
		runstate_adjust(-1, 1, 1),
		vcpu_id(4),
		timer(TIMER_PORT + 1, PRIO_2LEVEL, TIMER_FAR),
		vcpu_vector(0x31),
	};
	enum areas areas;
	int i;

	for_each_mode() {
		for (areas = 0; areas < NR_AREAS; areas++) {
			reset(vcpu, areas);
			for (i = 0; i < ARRAY_SIZE(attrs); i++) {
				if (attrs[i].of_vcpu) {
					reject_on(vcpu, vcpu->vm->fd, KVM_XEN_VCPU_SET_ATTR,
						  &attrs[i], ENOTTY);
					reject_on(vcpu, vcpu->vm->fd, KVM_XEN_VCPU_GET_ATTR,
						  &attrs[i], ENOTTY);
				} else {
					reject_on(vcpu, vcpu->fd, KVM_XEN_HVM_SET_ATTR,
						  &attrs[i], EINVAL);
					reject_on(vcpu, vcpu->fd, KVM_XEN_HVM_GET_ATTR,
						  &attrs[i], EINVAL);
				}
			}
			check_areas(vcpu);
		}
	}
}

static void check_uninitialised(struct kvm_vcpu *vcpu)
{
	const struct value values[] = {
		{ "LONG_MODE", long_mode(0) },
		{ "SHARED_INFO", shinfo_gfn(KVM_XEN_INVALID_GFN) },
		{ "SHARED_INFO_HVA", shinfo_hva(0) },
		{ "UPCALL_VECTOR", hvm_vector(0) },
		{ "XEN_VERSION", xen_version(0) },
		{ "RUNSTATE_UPDATE_FLAG", update_flag(0) },
		{ "VCPU_INFO", vcpu_info(KVM_XEN_INVALID_GPA) },
		{ "VCPU_INFO_HVA", vcpu_info_hva(0) },
		{ "VCPU_TIME_INFO", time_info(KVM_XEN_INVALID_GPA) },
		{ "RUNSTATE_CURRENT", runstate_current(RUNSTATE_running) },
		{ "RUNSTATE_DATA", runstate_data(RUNSTATE_running, 0, 0) },
		{ "VCPU_ID", vcpu_id(~0) },
		{ "TIMER", timer(0, PRIO_2LEVEL, 0) },
		{ "vCPU's UPCALL_VECTOR", vcpu_vector(0) },
	};
	struct attr addr = runstate_addr(0);
	int i;

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		now.value = values[i].name;
		if (!reads_back(vcpu, &values[i].attr))
			complain("is initialised");
	}
	TEST_ASSERT_EQ(get(vcpu, &addr), ENOENT);
}

/* A VM that has neither memory nor interrupt controllers, nor a Xen config. */
KVM_ONE_VCPU_TEST(xen_attr, uninitialised, guest_code)
{
	const struct kvm_irq_routing routing = { };
	struct kvm_irq_routing_xen_evtchn e = {
		.port = PROBE_PORT, .priority = PRIO_2LEVEL,
	};
	const struct value values[] = {
		{ "deassign", evtchn(KVM_XEN_EVTCHN_DEASSIGN, SEND_PORT, 0, 0), ENOENT },
		{ "update", evtchn(KVM_XEN_EVTCHN_UPDATE, SEND_PORT, EVTCHNSTAT_ipi,
				   SEND_PORT), ENOENT },
		{ "assign a 64-bit port", evtchn(0, 1024, EVTCHNSTAT_ipi, 1024), EINVAL },
	};
	struct kvm_vm *vm = vm_create_barebones();
	int i;

	region = NULL;
	vcpu = __vm_vcpu_add(vm, 0);
	check_uninitialised(vcpu);

	for (i = 0; i < ARRAY_SIZE(values); i++)
		reject_attr(vcpu, &values[i]);
	reject(vcpu, "send without shared_info", vm->fd, KVM_XEN_HVM_EVTCHN_SEND,
	       &e, EINVAL);
	reject(vcpu, "routing without interrupt controllers", vm->fd,
	       KVM_SET_GSI_ROUTING, &routing, EINVAL);

	/* Nothing there to be removed is fine. */
	set(vcpu, evtchn(KVM_XEN_EVTCHN_RESET, 0, 0, 0));
	set(vcpu, shinfo_gfn(KVM_XEN_INVALID_GFN));
	set(vcpu, shinfo_hva(0));
	set(vcpu, vcpu_info(KVM_XEN_INVALID_GPA));
	set(vcpu, vcpu_info_hva(0));
	set(vcpu, time_info(KVM_XEN_INVALID_GPA));
	set(vcpu, runstate_addr(KVM_XEN_INVALID_GPA));
	set(vcpu, timer(0, 0, 0));
	check_uninitialised(vcpu);
	kvm_vm_free(vm);
}

KVM_ONE_VCPU_TEST(xen_attr, long_mode, guest_code)
{
	const struct value values[] = {
		{ "32-bit", long_mode(0), 0 },
		{ "64-bit", long_mode(1), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
	set(vcpu, long_mode(0xfe));
	TEST_ASSERT_EQ(reads_back(vcpu, &values[1].attr), true);
}

/* The other ABI wants the wall clock elsewhere in shared_info. */
KVM_ONE_VCPU_TEST(xen_attr, long_mode_without_page, guest_code)
{
	struct value other = { "page gone", .err = EFAULT };

	for_each_mode() {
		reset(vcpu, AREAS_UNSET);
		set_gone(vcpu->vm, false);
		set(vcpu, shinfo_gpa(GONE_GPA));
		set_gone(vcpu->vm, true);

		other.attr = long_mode(!now.long_mode);
		reject_attr(vcpu, &other);
		set_gone(vcpu->vm, false);
		accept_attr(vcpu, &other);
	}
}

static void try_shinfo_gfn_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const struct value values[] = {
		{ "no memslot", shinfo_gpa(HOLE_GPA), EFAULT },
		{ "read-only memslot", shinfo_gpa(RO_GPA), EFAULT },
		{ "page gone", shinfo_gpa(GONE_GPA), EFAULT },
		{ "GFN 1 << 40", shinfo_gfn(BIT_ULL(40)), EFAULT },
		{ "highest GFN", shinfo_gfn(BIT_ULL(52) - 1), EFAULT },
		{ "none", shinfo_gfn(KVM_XEN_INVALID_GFN), 0 },
		{ "spare page", shinfo_gpa(SPARE_GPA), 0 },
		{ "last page", shinfo_gpa(LAST_GPA), 0 },
		{ "lone page", shinfo_gpa(LONE_GPA), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, shinfo_gfn_absent_unset, guest_code)
{
	try_shinfo_gfn_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, shinfo_gfn_absent_set, guest_code)
{
	try_shinfo_gfn_absent(vcpu, SET);
}

/* These are no GFNs; what is left of them as a GPA would be. */
KVM_ONE_VCPU_TEST(xen_attr, shinfo_gfn_overflow, guest_code)
{
	const struct value values[] = {
		{ "GFN 1 << 52", shinfo_gfn(BIT_ULL(52)), EINVAL },
		{ "GFN 1 << 63", shinfo_gfn(BIT_ULL(63)), EINVAL },
		{ "spare page + 1 << 52",
		  shinfo_gfn(BIT_ULL(52) + SPARE_GPA / PAGE_SIZE), EINVAL },
		{ "KVM_XEN_INVALID_GFN - 1", shinfo_gfn(KVM_XEN_INVALID_GFN - 1), EINVAL },
		{ "spare page", shinfo_gpa(SPARE_GPA), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, shinfo_hva_malformed, guest_code)
{
	const struct value values[] = {
		{ "1", shinfo_hva(1), EINVAL },
		{ "unaligned", shinfo_hva(rw_page + 8), EINVAL },
		{ "across two pages", shinfo_hva(none_page - 4), EINVAL },
		{ "~0", shinfo_hva(~0ULL), EINVAL },
		{ "wraps", shinfo_hva(-PAGE_SIZE), EINVAL },
		{ "kernel", shinfo_hva(KERNEL_HVA), EINVAL },
		{ "noncanonical", shinfo_hva(NONCANONICAL_HVA), EINVAL },
		{ "read-write page", shinfo_hva(rw_page), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

static void try_shinfo_hva_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const struct value values[] = {
		{ "unmapped", shinfo_hva(UNMAPPED_HVA), EFAULT },
		{ "PROT_NONE", shinfo_hva(none_page), EFAULT },
		{ "PROT_READ", shinfo_hva(ro_page), EFAULT },
		{ "none", shinfo_hva(0), 0 },
		{ "read-write page", shinfo_hva(rw_page), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, shinfo_hva_absent_unset, guest_code)
{
	try_shinfo_hva_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, shinfo_hva_absent_set, guest_code)
{
	try_shinfo_hva_absent(vcpu, SET);
}

KVM_ONE_VCPU_TEST(xen_attr, hvm_vector, guest_code)
{
	const struct value values[] = {
		{ "1", hvm_vector(1), EINVAL },
		{ "0x0f", hvm_vector(0x0f), EINVAL },
		{ "0", hvm_vector(0), 0 },
		{ "0x10", hvm_vector(0x10), 0 },
		{ "0xff", hvm_vector(0xff), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

/* Any value is good. */
KVM_ONE_VCPU_TEST(xen_attr, xen_version, guest_code)
{
	const struct value values[] = {
		{ "version 0", xen_version(0), 0 },
		{ "version ~0", xen_version(~0), 0 },
		{ "flag 0", update_flag(0), 0 },
		{ "flag 1", update_flag(1), 0 },
	};
	const struct attr flag = update_flag(1);

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
	set(vcpu, update_flag(0xfe));
	TEST_ASSERT_EQ(reads_back(vcpu, &flag), true);
}

/* False if KVM leaves the event to the VMM. */
static bool guest_sends(struct kvm_vcpu *vcpu, u32 port)
{
	bool handled;

	guest_port = port;
	sync_global_to_guest(vcpu->vm, guest_port);
	vcpu_run(vcpu);
	handled = vcpu->run->exit_reason != KVM_EXIT_XEN;
	if (!handled) {
		vcpu->run->xen.u.hcall.result = -1;
		vcpu_run(vcpu);
	}
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);

	guest_port = 0;
	sync_global_to_guest(vcpu->vm, guest_port);
	return handled;
}

static void check_send(struct kvm_vcpu *vcpu, u32 send_port, int port)
{
	clear_pending(port);
	if (!guest_sends(vcpu, send_port) || !is_pending(port))
		complain("the guest's event of port %d no longer gets to %d", send_port, port);
}

/* GET_ATTR does not show what is assigned; what the guest sends does. */
static void check_sends(struct kvm_vcpu *vcpu, int fd)
{
	eventfd_t count;

	check_send(vcpu, SEND_PORT, DELIVER_PORT);
	check_send(vcpu, SEND_IPI, SEND_IPI);
	if (!guest_sends(vcpu, SEND_EVENTFD) || eventfd_read(fd, &count) || count != 1)
		complain("the guest's event no longer gets to the eventfd");
	if (guest_sends(vcpu, SEND_NOWHERE))
		complain("the guest's event goes somewhere");
}

static void assign_ports(struct kvm_vcpu *vcpu, int fd)
{
	set(vcpu, evtchn(KVM_XEN_EVTCHN_RESET, 0, 0, 0));
	set(vcpu, evtchn(0, SEND_PORT, EVTCHNSTAT_interdomain, DELIVER_PORT));
	set(vcpu, evtchn(0, SEND_IPI, EVTCHNSTAT_ipi, SEND_IPI));
	set(vcpu, evtchn_fd(SEND_EVENTFD, fd));
	now.value = "assigned";
	check_sends(vcpu, fd);
}

static void try_evtchn(struct kvm_vcpu *vcpu, int fd, const struct value *values, int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		reject_attr(vcpu, &values[i]);
		check_sends(vcpu, fd);
	}
	check_areas(vcpu);
}

/* Flags that go with any port, ports that go with any flags. */
static void try_evtchn_flags(struct kvm_vcpu *vcpu, int fd, u32 flags, u32 more_flags)
{
	const struct value values[] = {
		{ "port 0", evtchn(flags, 0, EVTCHNSTAT_ipi, 0), EINVAL },
		{ "port behind the last", evtchn(flags, nr_ports(), EVTCHNSTAT_ipi,
						 nr_ports()), EINVAL },
		{ "port ~0", evtchn(flags, ~0, EVTCHNSTAT_ipi, ~0), EINVAL },
		{ "unknown flag", evtchn(flags | 8, SEND_PORT, EVTCHNSTAT_interdomain,
					 DELIVER_PORT), EINVAL },
		{ "top flag", evtchn(flags | BIT(31), SEND_PORT, EVTCHNSTAT_interdomain,
				     DELIVER_PORT), EINVAL },
		{ "two flags", evtchn(more_flags, SEND_PORT, EVTCHNSTAT_interdomain,
				      DELIVER_PORT), EINVAL },
	};

	try_evtchn(vcpu, fd, values, ARRAY_SIZE(values));
}

static void try_evtchn_assign(struct kvm_vcpu *vcpu, int fd)
{
	const u32 port = SEND_NOWHERE, any = EVTCHNSTAT_interdomain;
	const struct value values[] = {
		{ "type closed", evtchn(0, port, EVTCHNSTAT_closed, port), EINVAL },
		{ "type unbound", evtchn(0, port, EVTCHNSTAT_unbound, port), EINVAL },
		{ "type pirq", evtchn(0, port, EVTCHNSTAT_pirq, port), EINVAL },
		{ "type virq", evtchn(0, port, EVTCHNSTAT_virq, port), EINVAL },
		{ "first unknown type", evtchn(0, port, EVTCHNSTAT_ipi + 1, port), EINVAL },
		{ "type ~0", evtchn(0, port, ~0, port), EINVAL },
		{ "IPI to another port", evtchn(0, port, EVTCHNSTAT_ipi, port + 1), EINVAL },
		{ "IPI to port 0", evtchn(0, port, EVTCHNSTAT_ipi, 0), EINVAL },
		{ "IPI of priority 0", evtchn_prio(0, port, EVTCHNSTAT_ipi, port, 0), EINVAL },
		{ "priority 0", evtchn_prio(0, port, any, port, 0), EINVAL },
		{ "priority ~1", evtchn_prio(0, port, any, port, ~1), EINVAL },
		{ "to the port behind the last", evtchn(0, port, any, nr_ports()), EINVAL },
		{ "to port ~0", evtchn(0, port, any, ~0), EINVAL },
		{ "file -1", evtchn_fd(port, -1), EBADF },
		{ "file of the VM", evtchn_fd(port, vcpu->vm->fd), EINVAL },
		{ "port in use", evtchn(0, SEND_PORT, any, port), EEXIST },
		{ "IPI port in use", evtchn(0, SEND_IPI, EVTCHNSTAT_ipi, SEND_IPI), EEXIST },
		{ "eventfd's port in use", evtchn_fd(SEND_EVENTFD, fd), EEXIST },
	};
	const u32 last = nr_ports() - 1;

	reset(vcpu, AREAS_BY_GPA);
	assign_ports(vcpu, fd);
	try_evtchn_flags(vcpu, fd, 0, KVM_XEN_EVTCHN_UPDATE | KVM_XEN_EVTCHN_DEASSIGN);
	try_evtchn(vcpu, fd, values, ARRAY_SIZE(values));

	now.value = "good assignment";
	set(vcpu, evtchn(0, last, any, last));
	check_send(vcpu, last, last);
	set(vcpu, evtchn(0, port, any, 1));
	check_send(vcpu, port, 1);
}

KVM_ONE_VCPU_TEST(xen_attr, evtchn_assign, guest_code)
{
	int fd = eventfd(0, EFD_NONBLOCK);

	for_each_mode()
		try_evtchn_assign(vcpu, fd);
}

static void try_evtchn_update(struct kvm_vcpu *vcpu, int fd)
{
	const u32 flags = KVM_XEN_EVTCHN_UPDATE, any = EVTCHNSTAT_interdomain;
	const struct value values[] = {
		{ "not assigned", evtchn(flags, SEND_NOWHERE, any, DELIVER_PORT), ENOENT },
		{ "another type", evtchn(flags, SEND_PORT, EVTCHNSTAT_ipi, DELIVER_PORT),
		  EINVAL },
		{ "another port", evtchn(flags, SEND_PORT, any, DELIVER_PORT + 1), EINVAL },
		{ "port 0", evtchn(flags, SEND_PORT, any, 0), EINVAL },
		{ "another port of an IPI", evtchn(flags, SEND_IPI, EVTCHNSTAT_ipi,
						   SEND_PORT), EINVAL },
		{ "priority 0", evtchn_prio(flags, SEND_PORT, any, DELIVER_PORT, 0), EINVAL },
		{ "eventfd", evtchn(flags, SEND_EVENTFD, any, 0), EINVAL },
		{ "eventfd to a port", evtchn(flags, SEND_EVENTFD, any, DELIVER_PORT), EINVAL },
	};

	reset(vcpu, AREAS_BY_GPA);
	assign_ports(vcpu, fd);
	try_evtchn_flags(vcpu, fd, flags, flags | KVM_XEN_EVTCHN_RESET);
	try_evtchn(vcpu, fd, values, ARRAY_SIZE(values));

	now.value = "good update";
	set(vcpu, evtchn_vcpu(flags, SEND_PORT, any, DELIVER_PORT, ABSENT_VCPU));
	if (guest_sends(vcpu, SEND_PORT))
		complain("an event for a vCPU that is not there goes somewhere");
	set(vcpu, evtchn(flags, SEND_PORT, any, DELIVER_PORT));
	check_sends(vcpu, fd);
}

KVM_ONE_VCPU_TEST(xen_attr, evtchn_update, guest_code)
{
	int fd = eventfd(0, EFD_NONBLOCK);

	for_each_mode()
		try_evtchn_update(vcpu, fd);
}

static void try_evtchn_deassign(struct kvm_vcpu *vcpu, int fd)
{
	const u32 flags = KVM_XEN_EVTCHN_DEASSIGN;
	const struct value values[] = {
		{ "not assigned", evtchn(flags, SEND_NOWHERE, 0, 0), ENOENT },
		{ "last port", evtchn(flags, nr_ports() - 1, 0, 0), ENOENT },
	};
	const struct value again = {
		"again", evtchn(flags, SEND_PORT, 0, 0), ENOENT
	};

	reset(vcpu, AREAS_BY_GPA);
	assign_ports(vcpu, fd);
	try_evtchn_flags(vcpu, fd, flags, flags | KVM_XEN_EVTCHN_RESET);
	try_evtchn(vcpu, fd, values, ARRAY_SIZE(values));

	now.value = "good deassignment";
	set(vcpu, again.attr);
	if (guest_sends(vcpu, SEND_PORT))
		complain("the guest's event still goes somewhere");
	reject_attr(vcpu, &again);

	now.value = "good reset";
	set(vcpu, evtchn(KVM_XEN_EVTCHN_RESET, ~0, ~0, ~0));
	if (guest_sends(vcpu, SEND_IPI) || guest_sends(vcpu, SEND_EVENTFD))
		complain("the guest's event still goes somewhere");
}

KVM_ONE_VCPU_TEST(xen_attr, evtchn_deassign, guest_code)
{
	int fd = eventfd(0, EFD_NONBLOCK);

	for_each_mode()
		try_evtchn_deassign(vcpu, fd);
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_malformed, guest_code)
{
	const struct value values[] = {
		{ "unaligned by 1", vcpu_info(SPARE_GPA + 1), ENXIO },
		{ "unaligned by 2", vcpu_info(SPARE_GPA + 2), ENXIO },
		{ "~0 - 1", vcpu_info(~0ULL - 1), ENXIO },
		{ "wraps", vcpu_info(~0ULL - 3), EINVAL },
		{ "across two pages", vcpu_info(LAST_GPA - 60), EINVAL },
		{ "across the end of a memslot", vcpu_info(HOLE_GPA - 4), EINVAL },
		{ "spare page", vcpu_info(SPARE_GPA), 0 },
		{ "end of a page", vcpu_info(LAST_GPA - 64), 0 },
		{ "end of a memslot", vcpu_info(LONE_GPA + PAGE_SIZE - 64), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

static void try_vcpu_info_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const struct value values[] = {
		{ "no memslot", vcpu_info(HOLE_GPA), EFAULT },
		{ "behind a memslot", vcpu_info(LONE_GPA + PAGE_SIZE), EFAULT },
		{ "read-only memslot", vcpu_info(RO_GPA), EFAULT },
		{ "page gone", vcpu_info(GONE_GPA), EFAULT },
		{ "GPA 1 << 52", vcpu_info(BIT_ULL(52)), EFAULT },
		{ "GPA 1 << 63", vcpu_info(BIT_ULL(63)), EFAULT },
		{ "none", vcpu_info(KVM_XEN_INVALID_GPA), 0 },
		{ "last page", vcpu_info(LAST_GPA), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_absent_unset, guest_code)
{
	try_vcpu_info_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_absent_set, guest_code)
{
	try_vcpu_info_absent(vcpu, SET);
}

/* What waits in KVM for a vcpu_info goes on waiting for one. */
KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_absent_event, guest_code)
{
	const struct attr bad = vcpu_info(HOLE_GPA);

	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		set(vcpu, vcpu_info(KVM_XEN_INVALID_GPA));
		TEST_ASSERT_EQ(raise_event(vcpu, PROBE_PORT), 0);
		TEST_ASSERT_EQ(try_set(vcpu, &bad), EFAULT);
		run_guest(vcpu);
		TEST_ASSERT_EQ(is_pending(PROBE_PORT), true);
		TEST_ASSERT_EQ(is_selected(PROBE_PORT), false);

		set(vcpu, vcpu_info(VCPU_INFO_GPA));
		TEST_ASSERT_EQ(gets_selected(vcpu, PROBE_PORT), true);
	}
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_hva_malformed, guest_code)
{
	const struct value values[] = {
		{ "1", vcpu_info_hva(1), ENXIO },
		{ "unaligned by 2", vcpu_info_hva(rw_page + 2), ENXIO },
		{ "~0", vcpu_info_hva(~0ULL), ENXIO },
		{ "wraps", vcpu_info_hva(-4ULL), EINVAL },
		{ "kernel", vcpu_info_hva(KERNEL_HVA), EINVAL },
		{ "noncanonical", vcpu_info_hva(NONCANONICAL_HVA), EINVAL },
		{ "across two pages", vcpu_info_hva(none_page - 60), EINVAL },
		{ "read-write page", vcpu_info_hva(rw_page), 0 },
		{ "end of a page", vcpu_info_hva(none_page - 64), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

static void try_vcpu_info_hva_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const struct value values[] = {
		{ "unmapped", vcpu_info_hva(UNMAPPED_HVA), EFAULT },
		{ "PROT_NONE", vcpu_info_hva(none_page), EFAULT },
		{ "PROT_READ", vcpu_info_hva(ro_page), EFAULT },
		{ "none", vcpu_info_hva(0), 0 },
		{ "read-write page", vcpu_info_hva(rw_page), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_hva_absent_unset, guest_code)
{
	try_vcpu_info_hva_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_info_hva_absent_set, guest_code)
{
	try_vcpu_info_hva_absent(vcpu, SET);
}

KVM_ONE_VCPU_TEST(xen_attr, time_info_malformed, guest_code)
{
	const struct value values[] = {
		{ "wraps", time_info(~0ULL - 1), EFAULT },
		{ "across two pages", time_info(LAST_GPA - 28), 0 },
		{ "across the end of a memslot", time_info(HOLE_GPA - 4), EFAULT },
		{ "spare page", time_info(SPARE_GPA), 0 },
		{ "end of a page", time_info(LAST_GPA - 32), 0 },
		{ "end of a memslot", time_info(LONE_GPA + PAGE_SIZE - 32), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

static void try_time_info_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const struct value values[] = {
		{ "no memslot", time_info(HOLE_GPA), EFAULT },
		{ "behind a memslot", time_info(LONE_GPA + PAGE_SIZE), EFAULT },
		{ "read-only memslot", time_info(RO_GPA), EFAULT },
		{ "page gone", time_info(GONE_GPA), EFAULT },
		{ "GPA 1 << 52", time_info(BIT_ULL(52)), EFAULT },
		{ "GPA 1 << 63", time_info(BIT_ULL(63)), EFAULT },
		{ "none", time_info(KVM_XEN_INVALID_GPA), 0 },
		{ "last page", time_info(LAST_GPA), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, time_info_absent_unset, guest_code)
{
	try_time_info_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, time_info_absent_set, guest_code)
{
	try_time_info_absent(vcpu, SET);
}

static void try_runstate_addr_absent(struct kvm_vcpu *vcpu, unsigned int mask)
{
	struct attr none = runstate_addr(KVM_XEN_INVALID_GPA);
	const struct value values[] = {
		{ "no memslot", runstate_addr(HOLE_GPA), EFAULT },
		{ "read-only memslot", runstate_addr(RO_GPA), EFAULT },
		{ "page gone", runstate_addr(GONE_GPA), EFAULT },
		{ "GPA 1 << 52", runstate_addr(BIT_ULL(52)), EFAULT },
		{ "GPA 1 << 63", runstate_addr(BIT_ULL(63)), EFAULT },
		{ "wraps", runstate_addr(~0ULL - 1), EFAULT },
		{ "across the start of a memslot", runstate_addr(LONE_GPA - 15), EFAULT },
		{ "spare page", runstate_addr(SPARE_GPA), 0 },
		{ "unaligned", runstate_addr(SPARE_GPA + 1), 0 },
		{ "across two pages", runstate_addr(LAST_GPA - 1), 0 },
	};

	try_values(vcpu, mask, values, ARRAY_SIZE(values));
	set(vcpu, none);
	TEST_ASSERT_EQ(get(vcpu, &none), ENOENT);
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_addr_absent_unset, guest_code)
{
	try_runstate_addr_absent(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_addr_absent_set, guest_code)
{
	try_runstate_addr_absent(vcpu, SET);
}

/* The second page is the one to fail.  64-bit runstates are longer. */
static void try_runstate_addr_second(struct kvm_vcpu *vcpu, unsigned int mask)
{
	const u64 end = LONE_GPA + PAGE_SIZE, size = now.long_mode ? 0x30 : 0x2c;
	const struct value values[] = {
		{ "no memslot by 15 bytes", runstate_addr(end - 15), EFAULT },
		{ "no memslot by 1 byte", runstate_addr(end - size + 1), EFAULT },
		{ "read-only memslot", runstate_addr(RO_GPA - 15), EFAULT },
		{ "page gone", runstate_addr(GONE_GPA - 15), EFAULT },
		{ "end of a memslot", runstate_addr(end - size), 0 },
		{ "across two pages", runstate_addr(LAST_GPA - 15), 0 },
	};

	__try_values(vcpu, mask, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_addr_second_unset, guest_code)
{
	for_each_mode()
		try_runstate_addr_second(vcpu, UNSET);
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_addr_second_set, guest_code)
{
	for_each_mode()
		try_runstate_addr_second(vcpu, SET);
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_current, guest_code)
{
	const struct value values[] = {
		{ "first unknown state", runstate_current(RUNSTATE_offline + 1), EINVAL },
		{ "1 << 32", runstate_current(BIT_ULL(32)), EINVAL },
		{ "~0", runstate_current(~0ULL), EINVAL },
		{ "running", runstate_current(RUNSTATE_running), 0 },
		{ "runnable", runstate_current(RUNSTATE_runnable), 0 },
		{ "blocked", runstate_current(RUNSTATE_blocked), 0 },
		{ "offline", runstate_current(RUNSTATE_offline), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_data, guest_code)
{
	const u64 offline = RUNSTATE_offline;
	const struct value values[] = {
		{ "first unknown state", runstate_data(offline + 1, 5, 5), EINVAL },
		{ "state 1 << 32", runstate_data(BIT_ULL(32), 5, 5), EINVAL },
		{ "state ~0", runstate_data(~0ULL, 5, 5), EINVAL },
		{ "entry before the sum", runstate_data(0, 4, 5), EINVAL },
		{ "entry after the sum", runstate_data(0, 6, 5), EINVAL },
		{ "future", runstate_data(0, TIME_FUTURE, TIME_FUTURE), EINVAL },
		{ "far future", runstate_data(0, ~0ULL, ~0ULL), EINVAL },
		{ "running", runstate_data(RUNSTATE_running, 5, 5), 0 },
		{ "offline", runstate_data(RUNSTATE_offline, 5, 5), 0 },
		{ "zeros", runstate_data(RUNSTATE_running, 0, 0), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

/* The adjustment cannot be got; RUNSTATE_DATA shows what it has added. */
static void check_adjusted(struct kvm_vcpu *vcpu, u64 state, s64 delta)
{
	struct attr data = runstate_data(0, 0, 0);

	reset(vcpu, AREAS_BY_GPA);
	set(vcpu, runstate_adjust(state, delta, delta));
	TEST_ASSERT_EQ(get(vcpu, &data), 0);
	if (state == ~0ULL) {
		TEST_ASSERT_EQ(data.vcpu.u.runstate.state, RUNSTATE_running);
		TEST_ASSERT_EQ(data.vcpu.u.runstate.state_entry_time, TIME_ENTRY + delta);
		TEST_ASSERT_EQ(data.vcpu.u.runstate.time_running, TIME_RUNNING + delta);
	} else {
		TEST_ASSERT_EQ(data.vcpu.u.runstate.state, state);
	}
}

KVM_ONE_VCPU_TEST(xen_attr, runstate_adjust, guest_code)
{
	const struct value values[] = {
		{ "first unknown state", runstate_adjust(RUNSTATE_offline + 1, 5, 5), EINVAL },
		{ "state 1 << 32", runstate_adjust(BIT_ULL(32), 5, 5), EINVAL },
		{ "state -2", runstate_adjust(-2, 5, 5), EINVAL },
		{ "entry less than the sum", runstate_adjust(-1, 4, 5), EINVAL },
		{ "entry more than the sum", runstate_adjust(-1, 6, 5), EINVAL },
		{ "future", runstate_adjust(-1, TIME_FUTURE, TIME_FUTURE), EINVAL },
		{ "before the start", runstate_adjust(-1, -TIME_ENTRY - 1, -TIME_ENTRY - 1),
		  EINVAL },
	};

	for_each_mode() {
		__try_values(vcpu, ANY, values, ARRAY_SIZE(values));
		check_adjusted(vcpu, -1, 5);
		check_adjusted(vcpu, -1, -5);
		check_adjusted(vcpu, RUNSTATE_offline, 5);
	}
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_id, guest_code)
{
	const u32 nr_vcpus = kvm_check_cap(KVM_CAP_MAX_VCPUS);
	const struct value values[] = {
		{ "behind the last", vcpu_id(nr_vcpus), EINVAL },
		{ "~0", vcpu_id(~0), EINVAL },
		{ "0", vcpu_id(0), 0 },
		{ "last", vcpu_id(nr_vcpus - 1), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, timer, guest_code)
{
	const struct value values[] = {
		{ "priority 0", timer(TIMER_PORT + 1, 0, 0), EINVAL },
		{ "priority ~1", timer(TIMER_PORT + 1, ~1, 1), EINVAL },
		{ "not started", timer(TIMER_PORT + 1, PRIO_2LEVEL, 0), 0 },
		{ "started", timer(TIMER_PORT + 1, PRIO_2LEVEL, TIMER_FAR + 1), 0 },
		{ "last 32-bit port", timer(1023, PRIO_2LEVEL, TIMER_FAR), 0 },
		{ "disabled", timer(0, PRIO_2LEVEL, 0), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

KVM_ONE_VCPU_TEST(xen_attr, vcpu_vector, guest_code)
{
	const struct value values[] = {
		{ "1", vcpu_vector(1), EINVAL },
		{ "0x0f", vcpu_vector(0x0f), EINVAL },
		{ "0", vcpu_vector(0), 0 },
		{ "0x10", vcpu_vector(0x10), 0 },
		{ "0xff", vcpu_vector(0xff), 0 },
	};

	try_values(vcpu, ANY, values, ARRAY_SIZE(values));
}

static void try_evtchn_send(struct kvm_vcpu *vcpu)
{
	const struct {
		const char *name;
		struct kvm_irq_routing_xen_evtchn e;
	} values[] = {
		{ "port 0", { 0, 0, PRIO_2LEVEL } },
		{ "port behind the last", { nr_ports(), 0, PRIO_2LEVEL } },
		{ "port ~0", { ~0, 0, PRIO_2LEVEL } },
		{ "priority 0", { PROBE_PORT, 0, 0 } },
		{ "priority ~1", { PROBE_PORT, 0, ~1 } },
		{ "vCPU not there", { PROBE_PORT, ABSENT_VCPU, PRIO_2LEVEL } },
		{ "vCPU ~0", { PROBE_PORT, ~0, PRIO_2LEVEL } },
	};
	int i;

	reset(vcpu, AREAS_BY_GPA);
	for (i = 0; i < ARRAY_SIZE(values); i++)
		reject(vcpu, values[i].name, vcpu->vm->fd, KVM_XEN_HVM_EVTCHN_SEND,
		       &values[i].e, EINVAL);
	check_areas(vcpu);

	TEST_ASSERT_EQ(raise_event(vcpu, 1), 0);
	TEST_ASSERT_EQ(is_pending(1), true);
	TEST_ASSERT_EQ(raise_event(vcpu, nr_ports() - 1), 0);
	TEST_ASSERT_EQ(is_pending(nr_ports() - 1), true);
}

KVM_ONE_VCPU_TEST(xen_attr, evtchn_send, guest_code)
{
	for_each_mode()
		try_evtchn_send(vcpu);
}

KVM_ONE_VCPU_TEST(xen_attr, evtchn_send_without_page, guest_code)
{
	struct kvm_irq_routing_xen_evtchn e = {
		.port = PROBE_PORT,
		.priority = PRIO_2LEVEL,
	};
	u64 *pending = addr_gpa2hva(vcpu->vm, GONE_GPA) + 0x800;

	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		set_gone(vcpu->vm, false);
		memset(pending, 0, 0x800);
		set(vcpu, shinfo_gpa(GONE_GPA));
		TEST_ASSERT_EQ(raise_event(vcpu, PENDING_PORT), 0);

		set_gone(vcpu->vm, true);
		reject(vcpu, "page gone", vcpu->vm->fd, KVM_XEN_HVM_EVTCHN_SEND, &e, EFAULT);

		/* It comes back as it has gone, and works again. */
		set_gone(vcpu->vm, false);
		TEST_ASSERT_EQ(pending[PENDING_PORT / 64], BIT_ULL(PENDING_PORT % 64));
		TEST_ASSERT_EQ(pending[PROBE_PORT / 64], 0);
		TEST_ASSERT_EQ(raise_event(vcpu, PROBE_PORT), 0);
		TEST_ASSERT_EQ(pending[PROBE_PORT / 64], BIT_ULL(PROBE_PORT % 64));
	}
}

/* The version's hypercall is KVM's only with _INTERCEPT_HCALL. */
static void check_config(struct kvm_vcpu *vcpu)
{
	struct ucall uc;
	u8 *page = area(SPARE_GPA);

	memset(page, 0, PAGE_SIZE);
	run_guest(vcpu);
	TEST_ASSERT_EQ(get_ucall(vcpu, &uc), UCALL_SYNC);
	if (uc.args[2] != XEN_VERSION)
		complain("the guest no longer gets Xen's version");
	if (uc.args[3] || page[0] != 0xb8)
		complain("the guest no longer gets its hypercall page");
}

static void reject_config(struct kvm_vcpu *vcpu, const char *name,
			  struct kvm_xen_hvm_config config)
{
	reject(vcpu, name, vcpu->vm->fd, KVM_XEN_HVM_CONFIG, &config, EINVAL);
	check_config(vcpu);
}

static void accept_config(struct kvm_vcpu *vcpu, u32 flags, u32 msr, u64 blob)
{
	struct kvm_xen_hvm_config config = {
		.flags = flags,
		.msr = msr,
		.blob_addr_32 = blob,
		.blob_addr_64 = blob,
		.blob_size_32 = !!blob,
		.blob_size_64 = !!blob,
	};

	vm_ioctl(vcpu->vm, KVM_XEN_HVM_CONFIG, &config);
}

KVM_ONE_VCPU_TEST(xen_attr, hvm_config, guest_config)
{
	const u32 intercept = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL;
	const u32 msr = XEN_HYPERCALL_MSR, good = good_config().flags;
	const struct {
		const char *name;
		struct kvm_xen_hvm_config config;
	} values[] = {
		{ "_HYPERCALL_MSR", { KVM_XEN_HVM_CONFIG_HYPERCALL_MSR, msr } },
		{ "_SHARED_INFO", { KVM_XEN_HVM_CONFIG_SHARED_INFO, msr } },
		{ "_RUNSTATE", { KVM_XEN_HVM_CONFIG_RUNSTATE, msr } },
		{ "_EVTCHN_2LEVEL", { KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, msr } },
		{ "_RUNSTATE_UPDATE_FLAG", { KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG, msr } },
		{ "_SHARED_INFO_HVA", { KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA, msr } },
		{ "unknown flag", { good | KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO << 1, msr } },
		{ "top flag", { good | BIT(31), msr } },
		{ "intercept, 32-bit blob", { intercept, msr, .blob_addr_32 = PAGE_SIZE } },
		{ "intercept, 64-bit blob", { intercept, msr, .blob_addr_64 = PAGE_SIZE } },
		{ "intercept, 32-bit size", { intercept, msr, .blob_size_32 = 1 } },
		{ "intercept, 64-bit size", { intercept, msr, .blob_size_64 = 1 } },
		{ "MSR 1", { 0, 1 } },
		{ "MSR before the first", { 0, KVM_XEN_MSR_MIN_INDEX - 1 } },
		{ "MSR behind the last", { good, KVM_XEN_MSR_MAX_INDEX + 1 } },
		{ "MSR ~0", { good, ~0 } },
	};
	int i;

	/* The guest's mode is KVM's once it has asked for the page. */
	now.long_mode = 1;
	reset(vcpu, AREAS_BY_GPA);
	now.value = "good configuration";
	check_config(vcpu);

	for (i = 0; i < ARRAY_SIZE(values); i++)
		reject_config(vcpu, values[i].name, values[i].config);
	check_areas(vcpu);

	accept_config(vcpu, good | KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE, msr, 0);
	accept_config(vcpu, good, KVM_XEN_MSR_MAX_INDEX, 0);
	accept_config(vcpu, 0, msr, PAGE_SIZE);
	accept_config(vcpu, 0, 0, 0);
	accept_config(vcpu, good, KVM_XEN_MSR_MIN_INDEX, 0);
	now.value = "good configuration again";
	check_config(vcpu);
}

struct routing {
	struct kvm_irq_routing info;
	struct kvm_irq_routing_entry entries[2];
};

static struct kvm_irq_routing_entry route(u32 gsi, u32 port, u32 vcpu, u32 priority)
{
	return (struct kvm_irq_routing_entry) {
		.gsi = gsi,
		.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
		.u.xen_evtchn = { port, vcpu, priority },
	};
}

static void set_route(struct kvm_vcpu *vcpu, u32 port, u32 vcpu_id)
{
	struct routing r = {
		.info.nr = 1,
		.entries = { route(ROUTE_GSI, port, vcpu_id, PRIO_2LEVEL) },
	};

	vm_ioctl(vcpu->vm, KVM_SET_GSI_ROUTING, &r.info);
}

static void check_route(struct kvm_vcpu *vcpu)
{
	clear_pending(ROUTE_PORT);
	kvm_irq_line(vcpu->vm, ROUTE_GSI, 1);
	if (!is_pending(ROUTE_PORT))
		complain("the interrupt no longer gets to the event channel");
}

KVM_ONE_VCPU_TEST(xen_attr, gsi_routing, guest_code)
{
	const struct kvm_irq_routing_entry entry = route(ROUTE_GSI, 1, 0, PRIO_2LEVEL);
	const struct kvm_irq_routing_entry unknown = { .gsi = ROUTE_GSI + 1,
						       .type = entry.type + 1 };
	const struct kvm_irq_routing_entry flags = { .type = entry.type, .flags = 1,
						     .u.xen_evtchn = entry.u.xen_evtchn };
	const u32 nr_gsis = KVM_MAX_IRQ_ROUTES;
	const struct {
		const char *name;
		struct routing r;
	} values[] = {
		{ "priority 0", { { 1 }, { route(ROUTE_GSI, 1, 0, 0) } } },
		{ "priority ~1", { { 1 }, { route(ROUTE_GSI, 1, 0, ~1) } } },
		{ "second of priority 0", { { 2 }, { entry, route(1, 1, 0, 0) } } },
		{ "same GSI twice", { { 2 }, { entry, entry } } },
		{ "unknown type", { { 2 }, { entry, unknown } } },
		{ "flags of an entry", { { 1 }, { flags } } },
		{ "flags", { { 1, 1 }, { entry } } },
		{ "GSI behind the last", { { 1 }, { route(nr_gsis, 1, 0, PRIO_2LEVEL) } } },
		{ "GSI ~0", { { 1 }, { route(~0, 1, 0, PRIO_2LEVEL) } } },
		{ "too many", { { nr_gsis + 1 }, { entry } } },
	};
	int i;

	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		now.value = "good route";
		set_route(vcpu, ROUTE_PORT, 0);
		check_route(vcpu);
		for (i = 0; i < ARRAY_SIZE(values); i++) {
			reject(vcpu, values[i].name, vcpu->vm->fd,
			       KVM_SET_GSI_ROUTING, &values[i].r, EINVAL);
			check_route(vcpu);
		}
		check_areas(vcpu);
	}
}

/* Changes nothing that can be seen, and does not fail either. */
static void check_dead_route(struct kvm_vcpu *vcpu, const char *name, u32 port, u32 vcpu_id)
{
	static struct snapshot before, after;

	now.value = name;
	set_route(vcpu, port, vcpu_id);
	take_snapshot(vcpu, &before);
	kvm_irq_line(vcpu->vm, ROUTE_GSI, 1);
	kvm_irq_line(vcpu->vm, ROUTE_GSI, 0);
	take_snapshot(vcpu, &after);
	compare_snapshots(&before, &after);
}

/* A route can be there before its port or vCPU is, e.g. after a migration. */
KVM_ONE_VCPU_TEST(xen_attr, gsi_routing_dead, guest_code)
{
	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		check_dead_route(vcpu, "port behind the last", nr_ports(), 0);
		check_dead_route(vcpu, "port ~0", ~0, 0);
		check_dead_route(vcpu, "vCPU not there", ROUTE_PORT, ABSENT_VCPU);
		check_dead_route(vcpu, "vCPU ~0", ROUTE_PORT, ~0);

		now.value = "good route";
		set_route(vcpu, ROUTE_PORT, 0);
		check_route(vcpu);
		check_areas(vcpu);
	}
}

/* Xen has no port 0, nor can any other ioctl raise it. */
KVM_ONE_VCPU_TEST(xen_attr, gsi_routing_port_0, guest_code)
{
	for_each_mode() {
		reset(vcpu, AREAS_BY_GPA);
		check_dead_route(vcpu, "port 0", 0, 0);
	}
}

int main(int argc, char *argv[])
{
	int flags = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA |
		    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND |
		    KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG;

	TEST_REQUIRE((kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags);

	return test_harness_run(argc, argv);
}
