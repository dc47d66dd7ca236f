// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM's gfn-to-pfn cache costs its users, i.e. Xen's shared_info,
 * vcpu_info, vCPU time info and runstate, and tasks that only share an address
 * space with it and unmap memory of their own.
 *
 * A figure is the time of one operation in ns of CLOCK_MONOTONIC: the fastest
 * of some rounds of many operations each, after a round that warms up, less the
 * time that the same loop takes with what the test itself has to do for each
 * operation (the floor).  The totals behind it, of a whole round, are printed,
 * too.  Compare figures of two kernels on the same machine, while it is idle.
 *
 * In QEMU with "-accel tcg,thread=single -icount shift=0,sleep=off -smp 1", a
 * ns is an instruction, of the kernel and of the test together, and figures of
 * the same kernel are the same to the digit if nothing in it is random
 * (nokaslr, norandmaps, QEMU's -seed).  Instructions are not time: cache
 * misses, atomics and exits cost no more there than others.
 *
 *  loop		an empty operation, the floor if nothing else is said
 *  evtchn_ioctl	KVM_XEN_HVM_EVTCHN_SEND that fails at once, with a port
 *			that is out of range: what the system call costs
 *  evtchn_pending	... of a port that is pending: looks at shared_info only
 *  evtchn_clear	to take an event back, by the test: floor of the next
 *			one
 *  evtchn_send		KVM_XEN_HVM_EVTCHN_SEND, delivered to shared_info and
 *			vcpu_info of a vCPU that does not run at the time
 *  eventfd_write	write to an eventfd without a waiter
 *  irqfd		... to one that raises an event, delivered; floor:
 *			evtchn_clear
 *  evtchn_send_default	KVM_XEN_HVM_EVTCHN_SEND that is delivered to the
 *			vcpu_info which is in shared_info, and evtchn_clear
 *  vcpu_info_move	KVM_XEN_VCPU_SET_ATTR of VCPU_INFO, which moves it from
 *			there, and another one, which resets it
 *  vcpu_attr_ioctl	KVM_XEN_VCPU_SET_ATTR of a type that does not exist
 *  runstate_current*	... of RUNSTATE_CURRENT, with the area in 1 page or
 *			across 2
 *  runstate_addr	... of RUNSTATE_ADDR, to another page each time
 *  runstate_move_*	the same in a huge page, to an area in 1 page or across
 *			2, which follow one another in memory then
 *  runstate_drop	MADV_DONTNEED of the page that runstate is in, and
 *			RUNSTATE_CURRENT, which has to fault it in and map it
 *			again
 *  vcpu_run		KVM_RUN to the guest and back
 *  clock_ctrl		KVM_KVMCLOCK_CTRL, which asks for an update of all
 *			clocks: floor of the next one
 *  vcpu_run_clock	KVM_RUN that updates kvmclock and Xen's two clocks
 *  vcpu_run_steal	KVM_RUN that updates the steal time of a guest that is
 *			not Xen's, in a VM of its own, as is:
 *  vcpu_run_no_steal	the same without
 *  dontneed_no_vm	MADV_DONTNEED of a page that has been touched before the
 *			round (the touch is no part of the figure), without a VM
 *  dontneed_N		... while the process has a VM with N vCPUs, each of
 *			which has 3 areas that are elsewhere
 *  punch_N		punch a hole of a page into a guest_memfd that is all
 *			memory of a VM with N vCPUs, whose areas are elsewhere
 *			in the file
 *  convert_N		make a page private and shared again, of a VM with
 *			private memory and N vCPUs, whose areas are elsewhere
 *  senders_1		KVM_XEN_HVM_EVTCHN_SEND and evtchn_clear by one thread
 *  senders_2		... by two threads on two CPUs, each to a vCPU of its
 *			own: the time until both are done, per event of one
 *			thread.  It means something only on CPUs that run at the
 *			same time, so not with thread=single.  All senders have
 *			tables of files of their own, as threads that share one
 *			count references to the VM's file with each system call.
 *  senders_floor_*	the same to a port that is out of range: what two CPUs
 *			that have nothing to do with each other make of it
 *  refresh_*		RUNSTATE_CURRENT after the area's page was dropped, i.e.
 *			with a refresh: median, 99th percentile, and CPU time of
 *			the thread
 *  storm_*		... while a thread on another CPU does MADV_FREE of
 *			other memory over and over, i.e. with an invalidation
 *			under way almost always
 *  invalidate_*	MADV_DONTNEED of shared_info, after an event: median,
 *			99th percentile and maximum
 *  invalidate_used_*	... while a thread on another CPU, which a timer
 *			interrupts often, raises events over and over, i.e.
 *			reads shared_info most of the time
 */
#include <linux/falloc.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>

#include "test_util.h"
#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "xen.h"

#define REGION_GPA		0xc0000000ULL
#define REGION_SLOT		10
#define HUGE_GPA		0xd0000000ULL
#define HUGE_SLOT		11
#define HUGE_SIZE		SZ_2M

/* shared_info, two spare pages, the areas of the vCPUs. */
#define SHINFO_GPA		REGION_GPA
#define SPARE_GPA		(REGION_GPA + PAGE_SIZE)
#define AREAS_GPA		(REGION_GPA + 3 * PAGE_SIZE)
#define AREAS_SIZE		256
#define VCPU_INFO_GPA(v)	(AREAS_GPA + (v) * AREAS_SIZE)
#define TIME_INFO_GPA(v)	(VCPU_INFO_GPA(v) + 64)
#define RUNSTATE_GPA(v)		(VCPU_INFO_GPA(v) + 128)
#define KVMCLOCK_GPA(v)		(VCPU_INFO_GPA(v) + 192)
#define RUNSTATE_2PAGES_GPA	(SPARE_GPA + PAGE_SIZE - sizeof(struct xen_runstate) / 2)

/* In a cache line of its own for each sender. */
#define PORT(v)			(66 + (v) * 512)
#define BAD_PORT		4096
#define BAD_ATTR_TYPE		0xffff
#define GSI			32

#define NR_SENDERS		2
/* Threads do not start at the same moment: give them more to do. */
#define SENDER_ITERATIONS	(20 * nr_iterations)

/* Of the storm. */
#define STORM_SIZE		SZ_128M
#define NR_REFRESHES		(10 * nr_iterations)

/* Of shared_info, and the interval of the timer on the reader's CPU. */
#define NR_INVALIDATIONS	(20 * nr_iterations)
#define TIMER_NS		20000

#define DEFAULT_ITERATIONS	100
#define DEFAULT_ROUNDS		20
#define DEFAULT_VCPUS		"1,8,64,1000"

static u32 nr_iterations = DEFAULT_ITERATIONS;
static u32 nr_rounds = DEFAULT_ROUNDS;

static struct kvm_vm *vm;
static struct kvm_vcpu **vcpus;
static struct xen_shared_info *shinfo;
static struct xen_vcpu_info *vcpu_infos[NR_SENDERS];
static int unused_eventfd, irqfd;
/* One for each iteration. */
static char *pages;
/* ... and from gmem_offset on, in the guest's memory. */
static int gmem_fd;
static u64 gmem_offset;

static void guest_code(void)
{
	for (;;)
		GUEST_SYNC(0);
}

static void *gpa2hva(u64 gpa)
{
	return addr_gpa2hva(vm, gpa);
}

static u64 nr_region_pages(u32 nr_vcpus)
{
	return 3 + DIV_ROUND_UP(nr_vcpus * AREAS_SIZE, PAGE_SIZE);
}

static void set_areas(u32 nr_vcpus)
{
	u32 v;

	xen_enable(vm);
	xen_set_shared_info(vm, SHINFO_GPA);
	for (v = 0; v < nr_vcpus; v++) {
		xen_set_vcpu_info(vcpus[v], VCPU_INFO_GPA(v));
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
				  TIME_INFO_GPA(v));
		xen_set_vcpu_area(vcpus[v], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, RUNSTATE_GPA(v));
	}
}

static void create_vm(u32 nr_vcpus)
{
	u32 v;

	vcpus = calloc(nr_vcpus, sizeof(*vcpus));
	TEST_ASSERT(vcpus, "Failed to allocate %u pointers", nr_vcpus);
	vm = vm_create_with_vcpus(nr_vcpus, guest_code, vcpus);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    nr_region_pages(nr_vcpus), 0);
	shinfo = gpa2hva(SHINFO_GPA);
	for (v = 0; v < NR_SENDERS && v < nr_vcpus; v++)
		vcpu_infos[v] = gpa2hva(VCPU_INFO_GPA(v));

	set_areas(nr_vcpus);
}

static void free_vm(void)
{
	kvm_vm_free(vm);
	free(vcpus);
}

static s64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return timespec_to_ns(now);
}

static u64 time_round(void (*prepare)(void), void (*op)(u32 i))
{
	s64 start;
	u32 i;

	if (prepare)
		prepare();
	start = now_ns();
	/*
	 * Do not let the compiler inline an operation: all have the same floor.
	 */
	for (i = 0; i < nr_iterations; i++)
		READ_ONCE(op)(i);
	return now_ns() - start;
}

static u64 time_fastest_round(void (*prepare)(void), void (*op)(u32 i))
{
	u64 fastest = ~0ULL;
	u32 r;

	time_round(prepare, op);
	for (r = 0; r < nr_rounds; r++)
		fastest = min(fastest, time_round(prepare, op));
	return fastest;
}

static void print_figure(const char *name, u64 total, u64 floor, u32 iterations)
{
	s64 ns = (s64)(total - floor) / (s64)iterations;

	printf("%s: %lld ns (total %llu, floor %llu, iterations %u)\n", name, (long long)ns,
	       (unsigned long long)total, (unsigned long long)floor, iterations);
}

static void nothing(u32 i)
{
}

static void measure(const char *name, void (*op)(u32 i), void (*floor)(u32 i))
{
	print_figure(name, time_fastest_round(NULL, op),
		     floor ? time_fastest_round(NULL, floor) : 0, nr_iterations);
}

/* Events */

static void clear_event_of(u32 v)
{
	struct xen_vcpu_info *vi = vcpu_infos[v];

	WRITE_ONCE(shinfo->evtchn_pending[PORT(v) / 64], 0);
	WRITE_ONCE(vi->evtchn_pending_sel, 0);
	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
}

static bool is_delivered(u32 v)
{
	struct xen_vcpu_info *vi = vcpu_infos[v];

	return xen_is_pending(shinfo, PORT(v)) &&
	       READ_ONCE(vi->evtchn_pending_sel) & BIT_ULL(PORT(v) / 64) &&
	       READ_ONCE(vi->evtchn_upcall_pending);
}

static void send_to_bad_port(u32 i)
{
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpus[0], BAD_PORT);

	TEST_ASSERT_EQ(__vm_ioctl(vm, KVM_XEN_HVM_EVTCHN_SEND, &e), -1);
}

static void send_again(u32 i)
{
	xen_evtchn_send(vcpus[0], PORT(0));
}

static void clear_event(u32 i)
{
	clear_event_of(0);
}

static void send_event(u32 i)
{
	clear_event_of(0);
	xen_evtchn_send(vcpus[0], PORT(0));
}

static void write_unused_eventfd(u32 i)
{
	TEST_ASSERT_EQ(eventfd_write(unused_eventfd, 1), 0);
}

static void write_irqfd(u32 i)
{
	clear_event_of(0);
	TEST_ASSERT_EQ(eventfd_write(irqfd, 1), 0);
}

static void measure_events(void)
{
	measure("evtchn_ioctl", send_to_bad_port, nothing);
	xen_evtchn_send(vcpus[0], PORT(0));
	TEST_ASSERT(is_delivered(0), "No event by ioctl");
	measure("evtchn_pending", send_again, nothing);
	measure("evtchn_clear", clear_event, nothing);
	measure("evtchn_send", send_event, clear_event);

	unused_eventfd = kvm_new_eventfd();
	irqfd = xen_irqfd(vcpus[0], GSI, PORT(0));
	measure("eventfd_write", write_unused_eventfd, nothing);
	/* At once: none has been left to a worker. */
	write_irqfd(0);
	TEST_ASSERT(is_delivered(0), "No event by irqfd");
	measure("irqfd", write_irqfd, clear_event);
	kvm_deassign_irqfd(vm, GSI, irqfd);
	close(irqfd);
	close(unused_eventfd);
}

/*
 * Where vcpu_info is until it is registered; not on kernels that leave that to
 * the VMM.
 */

static void move_and_reset(u32 i)
{
	xen_set_vcpu_info(vcpus[0], VCPU_INFO_GPA(0));
	xen_set_vcpu_info(vcpus[0], KVM_XEN_INVALID_GPA);
}

static void measure_default_vcpu_info(void)
{
	if (!(kvm_check_cap(KVM_CAP_XEN_HVM) & KVM_XEN_HVM_CONFIG_DEFAULT_VCPU_INFO))
		return;

	xen_set_vcpu_id(vcpus[0], 0);
	xen_enable_default_vcpu_info(vm);
	move_and_reset(0);
	vcpu_infos[0] = (void *)shinfo;
	send_event(0);
	TEST_ASSERT(is_delivered(0), "No event in the default vcpu_info");
	measure("evtchn_send_default", send_event, clear_event);
	measure("vcpu_info_move", move_and_reset, nothing);

	xen_set_vcpu_info(vcpus[0], VCPU_INFO_GPA(0));
	vcpu_infos[0] = gpa2hva(VCPU_INFO_GPA(0));
}

/* Runstate */

static void set_bad_attr(u32 i)
{
	struct kvm_xen_vcpu_attr attr = { .type = BAD_ATTR_TYPE };

	TEST_ASSERT_EQ(__vcpu_ioctl(vcpus[0], KVM_XEN_VCPU_SET_ATTR, &attr), -1);
}

static void set_runstate(u32 i)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = i % 2 ? RUNSTATE_running : RUNSTATE_blocked,
	};

	vcpu_ioctl(vcpus[0], KVM_XEN_VCPU_SET_ATTR, &attr);
}

static void move_runstate(u32 i)
{
	static u64 gpa;

	gpa = gpa == SPARE_GPA ? RUNSTATE_GPA(0) : SPARE_GPA;
	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa);
}

static void measure_runstate_at(const char *name, u64 gpa)
{
	struct xen_runstate *rs = gpa2hva(gpa);

	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa);
	set_runstate(0);
	TEST_ASSERT_EQ(READ_ONCE(rs->state), RUNSTATE_blocked);
	measure(name, set_runstate, nothing);
}

static void move_runstate_1page(u32 i)
{
	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
			  HUGE_GPA + (1 + i % 2 * 4) * PAGE_SIZE);
}

static void move_runstate_2pages(u32 i)
{
	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
			  HUGE_GPA + (1 + i % 2 * 4) * PAGE_SIZE - sizeof(struct xen_runstate) / 2);
}

static void drop_runstate(u32 i)
{
	kvm_madvise(gpa2hva(SPARE_GPA), PAGE_SIZE, MADV_DONTNEED);
	set_runstate(i);
}

static void measure_moves_in_huge_page(void)
{
	if (!thp_configured()) {
		printf("runstate_move: skipped, there are no huge pages\n");
		return;
	}

	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS_THP, HUGE_GPA, HUGE_SLOT,
				    HUGE_SIZE / PAGE_SIZE, 0);
	memset(gpa2hva(HUGE_GPA), 0, HUGE_SIZE);
	measure("runstate_move_1page", move_runstate_1page, nothing);
	measure("runstate_move_2pages", move_runstate_2pages, nothing);
}

static void measure_runstate(void)
{
	measure("vcpu_attr_ioctl", set_bad_attr, nothing);
	measure_runstate_at("runstate_current_1page", RUNSTATE_GPA(0));
	measure_runstate_at("runstate_current_2pages", RUNSTATE_2PAGES_GPA);
	measure("runstate_addr", move_runstate, nothing);
	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, SPARE_GPA);
	measure("runstate_drop", drop_runstate, nothing);
	measure_moves_in_huge_page();
}

/* Clocks */

static void run(u32 i)
{
	vcpu_run(vcpus[0]);
}

static void ask_for_clock(u32 i)
{
	vcpu_ioctl(vcpus[0], KVM_KVMCLOCK_CTRL, NULL);
}

static void run_with_clock(u32 i)
{
	ask_for_clock(i);
	run(i);
}

static void measure_clocks(void)
{
	struct pvclock_vcpu_time_info *clock = gpa2hva(TIME_INFO_GPA(0));
	u32 version;

	vcpu_set_msr(vcpus[0], MSR_KVM_SYSTEM_TIME_NEW, KVMCLOCK_GPA(0) | KVM_MSR_ENABLED);
	run(0);
	measure("vcpu_run", run, nothing);
	measure("clock_ctrl", ask_for_clock, nothing);
	run(0);
	version = READ_ONCE(clock->version);
	run_with_clock(0);
	TEST_ASSERT(READ_ONCE(clock->version) != version, "The clocks have not been updated");
	measure("vcpu_run_clock", run_with_clock, ask_for_clock);
}

static void measure_steal_time(void)
{
	struct kvm_steal_time *st;
	struct kvm_vcpu *vcpu;
	gva_t gva;
	u32 version;

	vm = vm_create_with_one_vcpu(&vcpu, guest_code);
	vcpus = &vcpu;
	run(0);
	measure("vcpu_run_no_steal", run, nothing);

	gva = vm_alloc_page(vm);
	st = addr_gva2hva(vm, gva);
	vcpu_set_msr(vcpu, MSR_KVM_STEAL_TIME, addr_gva2gpa(vm, gva) | KVM_MSR_ENABLED);
	run(0);
	version = READ_ONCE(st->version);
	run(0);
	TEST_ASSERT(READ_ONCE(st->version) != version, "Steal time has not been updated");
	measure("vcpu_run_steal", run, nothing);
	kvm_vm_free(vm);
}

/* Memory that is not the guest's */

static void touch_pages(void)
{
	u32 i;

	for (i = 0; i < nr_iterations; i++)
		WRITE_ONCE(pages[i * PAGE_SIZE], 1);
}

static void drop_page(u32 i)
{
	kvm_madvise(pages + i * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED);
}

static void measure_dontneed(const char *name)
{
	print_figure(name, time_fastest_round(touch_pages, drop_page),
		     time_fastest_round(touch_pages, nothing), nr_iterations);
}

static void measure_dontneed_with_vcpus(u32 nr_vcpus)
{
	char name[32];

	create_vm(nr_vcpus);
	snprintf(name, sizeof(name), "dontneed_%u", nr_vcpus);
	measure_dontneed(name);
	free_vm();
}

static void populate_file(void)
{
	kvm_fallocate(gmem_fd, FALLOC_FL_KEEP_SIZE, gmem_offset, nr_iterations * PAGE_SIZE);
}

static void punch_page(u32 i)
{
	kvm_fallocate(gmem_fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
		      gmem_offset + i * PAGE_SIZE, PAGE_SIZE);
}

static void measure_punch_with_vcpus(u32 nr_vcpus)
{
	u64 nr_pages = nr_region_pages(nr_vcpus);
	size_t size = (nr_pages + nr_iterations) * PAGE_SIZE;
	char name[32];
	void *mem;

	vcpus = calloc(nr_vcpus, sizeof(*vcpus));
	TEST_ASSERT(vcpus, "Failed to allocate %u pointers", nr_vcpus);
	vm = vm_create_with_vcpus(nr_vcpus, guest_code, vcpus);
	gmem_fd = vm_create_guest_memfd(vm, size, GUEST_MEMFD_FLAG_MMAP |
					GUEST_MEMFD_FLAG_INIT_SHARED);
	gmem_offset = nr_pages * PAGE_SIZE;
	mem = kvm_mmap(size, PROT_READ | PROT_WRITE, MAP_SHARED, gmem_fd);
	vm_set_user_memory_region2(vm, REGION_SLOT, KVM_MEM_GUEST_MEMFD, REGION_GPA, size,
				   mem, gmem_fd, 0);
	set_areas(nr_vcpus);

	snprintf(name, sizeof(name), "punch_%u", nr_vcpus);
	print_figure(name, time_fastest_round(populate_file, punch_page),
		     time_fastest_round(populate_file, nothing), nr_iterations);

	kvm_munmap(mem, size);
	kvm_close(gmem_fd);
	free_vm();
}

static void convert_page(u32 i)
{
	vm_mem_set_private(vm, HUGE_GPA + 2 * i * PAGE_SIZE, PAGE_SIZE);
	vm_mem_set_shared(vm, HUGE_GPA + 2 * i * PAGE_SIZE, PAGE_SIZE);
}

/* Every other page stays private, so that the attributes need no memory. */
static void set_odd_pages_private(void)
{
	u32 i;

	for (i = 0; i < nr_iterations; i++)
		vm_mem_set_private(vm, HUGE_GPA + (2 * i + 1) * PAGE_SIZE, PAGE_SIZE);
}

static void measure_convert_with_vcpus(u32 nr_vcpus)
{
	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = KVM_X86_SW_PROTECTED_VM,
	};
	char name[32];

	if (!(kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM)))
		return;

	vcpus = calloc(nr_vcpus, sizeof(*vcpus));
	TEST_ASSERT(vcpus, "Failed to allocate %u pointers", nr_vcpus);
	vm = __vm_create_with_vcpus(shape, nr_vcpus, 0, guest_code, vcpus);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, REGION_GPA, REGION_SLOT,
				    nr_region_pages(nr_vcpus), 0);
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, HUGE_GPA, HUGE_SLOT,
				    2 * nr_iterations, 0);
	set_odd_pages_private();
	set_areas(nr_vcpus);

	snprintf(name, sizeof(name), "convert_%u", nr_vcpus);
	measure(name, convert_page, nothing);
	free_vm();
}

/* Senders on two CPUs */

static struct sender {
	u32 vcpu;
	u32 port;
	int cpu;
	pthread_t thread;
	s64 start;
	s64 end;
} senders[NR_SENDERS];

static pthread_barrier_t barrier;

static void *sender_thread(void *arg)
{
	struct sender *s = arg;
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpus[s->vcpu], s->port);
	int want = s->port == BAD_PORT ? -1 : 0;
	u32 i;

	pin_self_to_cpu(s->cpu);
	TEST_ASSERT_EQ(unshare(CLONE_FILES), 0);
	pthread_barrier_wait(&barrier);
	s->start = now_ns();
	for (i = 0; i < SENDER_ITERATIONS; i++) {
		clear_event_of(s->vcpu);
		TEST_ASSERT_EQ(__vm_ioctl(vm, KVM_XEN_HVM_EVTCHN_SEND, &e), want);
	}
	s->end = now_ns();
	return NULL;
}

/* From the first thread's start to the last one's end. */
static u64 time_senders(u32 nr, bool deliver)
{
	s64 start, end;
	u32 s;

	for (s = 0; s < nr; s++)
		senders[s].port = deliver ? PORT(s) : BAD_PORT;

	pthread_barrier_init(&barrier, NULL, nr);
	for (s = 0; s < nr; s++)
		TEST_ASSERT_EQ(pthread_create(&senders[s].thread, NULL, sender_thread,
					      &senders[s]), 0);
	for (s = 0; s < nr; s++)
		pthread_join(senders[s].thread, NULL);
	pthread_barrier_destroy(&barrier);

	start = senders[0].start;
	end = senders[0].end;
	for (s = 1; s < nr; s++) {
		start = min(start, senders[s].start);
		end = max(end, senders[s].end);
	}
	return end - start;
}

static void measure_senders(void)
{
	u64 ns[2][NR_SENDERS] = { { ~0ULL, ~0ULL }, { ~0ULL, ~0ULL } };
	int cpu, deliver, nr = 0;
	cpu_set_t possible;
	u32 r;

	TEST_ASSERT_EQ(sched_getaffinity(0, sizeof(possible), &possible), 0);
	for (cpu = 0; cpu < CPU_SETSIZE && nr < NR_SENDERS; cpu++) {
		if (!CPU_ISSET(cpu, &possible))
			continue;
		senders[nr] = (struct sender) { .vcpu = nr, .cpu = cpu };
		nr++;
	}
	if (nr < NR_SENDERS) {
		printf("senders: skipped, there is only one CPU\n");
		return;
	}

	/*
	 * In turn, so that all have the same share of what else the machine
	 * does.
	 */
	for (r = 0; r < nr_rounds; r++) {
		for (deliver = 0; deliver < 2; deliver++) {
			for (nr = 1; nr <= NR_SENDERS; nr++)
				ns[deliver][nr - 1] = min(ns[deliver][nr - 1],
							  time_senders(nr, deliver));
		}
	}

	print_figure("senders_1", ns[1][0], 0, SENDER_ITERATIONS);
	print_figure("senders_2", ns[1][1], 0, SENDER_ITERATIONS);
	print_figure("senders_floor_1", ns[0][0], 0, SENDER_ITERATIONS);
	print_figure("senders_floor_2", ns[0][1], 0, SENDER_ITERATIONS);
}

/* A refresh while other memory is unmapped */

/* The other thread has to end. */
static bool other_is_over;

static void *storm_thread(void *cpu)
{
	char *mem = kvm_mmap(STORM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	pin_self_to_cpu((long)cpu);
	madvise(mem, STORM_SIZE, MADV_NOHUGEPAGE);
	memset(mem, 1, STORM_SIZE);
	pthread_barrier_wait(&barrier);
	while (!READ_ONCE(other_is_over))
		kvm_madvise(mem, STORM_SIZE, MADV_FREE);
	kvm_munmap(mem, STORM_SIZE);
	return NULL;
}

static u64 cpu_time_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

static int compare_u64(const void *a, const void *b)
{
	u64 l = *(const u64 *)a, r = *(const u64 *)b;

	return l < r ? -1 : l > r;
}

static void print_times(const char *name, u64 *times, u32 nr)
{
	qsort(times, nr, sizeof(*times), compare_u64);
	printf("%s_p50: %lu ns (of %u)\n", name, times[nr / 2], nr);
	printf("%s_p99: %lu ns (of %u)\n", name, times[nr * 99 / 100], nr);
	printf("%s_max: %lu ns (of %u)\n", name, times[nr - 1], nr);
}

static void print_refreshes(const char *name)
{
	u64 *times = calloc(NR_REFRESHES, sizeof(*times));
	void *page = gpa2hva(SPARE_GPA);
	u64 cpu_time = 0;
	s64 start;
	u32 i;

	TEST_ASSERT(times, "Failed to allocate %u times", NR_REFRESHES);
	xen_set_vcpu_area(vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, SPARE_GPA);
	for (i = 0; i < NR_REFRESHES; i++) {
		kvm_madvise(page, PAGE_SIZE, MADV_DONTNEED);
		cpu_time -= cpu_time_ns();
		start = now_ns();
		set_runstate(i);
		times[i] = now_ns() - start;
		cpu_time += cpu_time_ns();
	}
	print_times(name, times, NR_REFRESHES);
	printf("%s_cpu: %lu ns (of %u)\n", name, cpu_time / NR_REFRESHES, NR_REFRESHES);
	free(times);
}

/* An invalidation of areas that another CPU uses */

static void *reader_thread(void *cpu)
{
	const struct itimerspec often = {
		.it_interval.tv_nsec = TIMER_NS,
		.it_value.tv_nsec = TIMER_NS,
	};
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	u64 nr;

	/*
	 * The timer's interrupts come in the middle of read sections, too.  It
	 * goes on when it is read.
	 */
	pin_self_to_cpu((long)cpu);
	TEST_ASSERT(timer >= 0, "timerfd_create(): errno %d", errno);
	TEST_ASSERT_EQ(timerfd_settime(timer, 0, &often, NULL), 0);
	pthread_barrier_wait(&barrier);
	while (!READ_ONCE(other_is_over)) {
		send_event(0);
		TEST_ASSERT(read(timer, &nr, sizeof(nr)) == sizeof(nr) || errno == EAGAIN,
			    "read(timerfd): errno %d", errno);
	}
	close(timer);
	return NULL;
}

static void print_invalidations(const char *name)
{
	u64 *times = calloc(NR_INVALIDATIONS, sizeof(*times));
	s64 start;
	u32 i;

	TEST_ASSERT(times, "Failed to allocate %u times", NR_INVALIDATIONS);
	for (i = 0; i < NR_INVALIDATIONS; i++) {
		send_event(i);
		start = now_ns();
		kvm_madvise(shinfo, PAGE_SIZE, MADV_DONTNEED);
		times[i] = now_ns() - start;
	}
	print_times(name, times, NR_INVALIDATIONS);
	free(times);
}

/* Print figures of this thread alone, and beside a thread on another CPU. */
static void measure_beside(const char *alone, const char *beside, void (*print)(const char *name),
			   void *(*other)(void *cpu))
{
	cpu_set_t possible, first;
	pthread_t thread;
	long cpu;

	TEST_ASSERT_EQ(sched_getaffinity(0, sizeof(possible), &possible), 0);
	if (CPU_COUNT(&possible) < 2) {
		printf("%s, %s: skipped, there is only one CPU\n", alone, beside);
		return;
	}

	for (cpu = 0; !CPU_ISSET(cpu, &possible); cpu++)
		;
	CPU_ZERO(&first);
	CPU_SET(cpu, &first);
	TEST_ASSERT_EQ(sched_setaffinity(0, sizeof(first), &first), 0);
	for (cpu++; !CPU_ISSET(cpu, &possible); cpu++)
		;

	print(alone);
	other_is_over = false;
	pthread_barrier_init(&barrier, NULL, 2);
	TEST_ASSERT_EQ(pthread_create(&thread, NULL, other, (void *)cpu), 0);
	pthread_barrier_wait(&barrier);
	print(beside);
	WRITE_ONCE(other_is_over, true);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&barrier);
	TEST_ASSERT_EQ(sched_setaffinity(0, sizeof(possible), &possible), 0);
}

static void help(const char *name)
{
	printf("usage: %s [-h] [-n iterations] [-r rounds] [-v vcpus]\n", name);
	printf(" -n: operations per round, for senders 20 times as many, default %d\n",
	       DEFAULT_ITERATIONS);
	printf(" -r: rounds, of which the fastest counts, default %d\n", DEFAULT_ROUNDS);
	printf(" -v: numbers of vCPUs for changes elsewhere, default " DEFAULT_VCPUS "\n");
}

int main(int argc, char *argv[])
{
	u32 flags = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_EVTCHN_SEND |
		    KVM_XEN_HVM_CONFIG_RUNSTATE;
	char default_vcpus[] = DEFAULT_VCPUS;
	char *list = default_vcpus, *nr;
	u32 nr_vcpus;
	int opt;

	TEST_REQUIRE((kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags);

	while ((opt = getopt(argc, argv, "hn:r:v:")) != -1) {
		switch (opt) {
		case 'n':
			nr_iterations = atoi_positive("Number of iterations", optarg);
			break;
		case 'r':
			nr_rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 'v':
			list = optarg;
			break;
		default:
			help(argv[0]);
			exit(opt == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}

	/* Without huge pages, each page is one that is to be unmapped. */
	pages = kvm_mmap(nr_iterations * PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(pages, nr_iterations * PAGE_SIZE, MADV_NOHUGEPAGE);

	measure("loop", nothing, NULL);
	measure_dontneed("dontneed_no_vm");

	create_vm(NR_SENDERS);
	measure_clocks();
	measure_events();
	measure_default_vcpu_info();
	measure_runstate();
	measure_senders();
	measure_beside("refresh", "storm", print_refreshes, storm_thread);
	measure_beside("invalidate", "invalidate_used", print_invalidations, reader_thread);
	free_vm();
	measure_steal_time();

	for (nr = strtok(list, ","); nr; nr = strtok(NULL, ",")) {
		nr_vcpus = atoi_positive("Number of vCPUs", nr);
		measure_dontneed_with_vcpus(nr_vcpus);
		measure_punch_with_vcpus(nr_vcpus);
		measure_convert_with_vcpus(nr_vcpus);
	}

	kvm_munmap(pages, nr_iterations * PAGE_SIZE);
	return 0;
}
