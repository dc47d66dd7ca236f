// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stress of KVM's gfn_to_pfn_cache by way of its users: Xen's shared_info,
 * vcpu_info, vCPU time info and runstate (of which some cross a page),
 * kvmclock, and vmcb12 or the virtual-APIC page of an L1 hypervisor.
 *
 * vCPUs use all areas, a thread raises events, another one changes the runstate
 * of vCPUs that do not run (idle ones, up to 1000), and three threads disturb
 * the memory under the areas: one takes pages away and brings others, one has
 * the kernel move pages, one modifies the memslot.  A round ends with the
 * disturbers at rest, when all must work; every other round is gentle, i.e. has
 * no time in which an area has no memory.  The memory is a memfd, anonymous
 * memory, a guest_memfd, and anonymous memory that can be made private, each
 * for its share of the rounds.  In half of the gentle rounds, each vCPU has an
 * L2, which is active while its page is disturbed.  What is checked:
 *
 *  - a page that is no longer an area's is filled with a pattern and must not
 *    change any more, and pages that the kernel freed are got back for that;
 *  - memory that may not be written, or is mapped elsewhere, does not change;
 *  - versions and times never go back, runstate's times add up, and at rest each
 *    run of the vCPU shows in each of its areas;
 *  - what KVM or the processor writes for L2 is in L1's page afterwards;
 *  - each event that KVM said it raised is seen once, and none that was not
 *    raised.  An irqfd cannot say that it failed, so it must not fail.
 *
 * Timing decides what is hit, never what the verdict is.  The thread that takes
 * pages away has real-time priority and strikes at random times, so as to
 * preempt KVM between the lookup of a page and the use of what it found.
 *
 * Of bugs planted in pfncache.c, these were found in the first seconds, by
 * memory that was written to when it was the cache's no more: gpc_publish()
 * that does not look at area->stale, and gpc_is_being_invalidated() that always
 * returns false.
 */
#include <linux/falloc.h>
#include <linux/mempolicy.h>
#include <linux/sizes.h>
#include <linux/sysinfo.h>
#include <sys/eventfd.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "test_util.h"
#include "apic.h"
#include "hwpoison.h"
#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "vmx.h"
#include "xen.h"

#define MAX_VCPUS		4
#define MAX_IDLE		1000
#define UPCALL_VECTOR		0x30
#define FIRST_GSI		32

#define AREA_SLOT		10
#define SHARED_INFO_SLOT	11
#define OTHER_SLOT		12
#define AREA_GPA		0xc0000000ULL
#define AREA_GPA_MOVED		0xd0000000ULL
#define OTHER_GPA		0xe0000000ULL
#define AREA_GVA		AREA_GPA
#define AREA_SIZE		SZ_2M

/*
 * The pages of the area.  The runstates of vCPUs 1 and 2 cross the end of a
 * page.
 */
#define SHARED_INFO		0
#define VCPU_INFO(v)		(PAGE_SIZE + (v) * 64)
#define TIME_INFO(v)		(2 * PAGE_SIZE + (v) * 32)
#define KVMCLOCK(v)		(3 * PAGE_SIZE + (v) * 32)
#define RUNSTATE(v)		(5 * PAGE_SIZE - 60 + (v) * (2 * PAGE_SIZE + 20))
#define NESTED(v)		((4 + 2 * MAX_VCPUS + (v)) * PAGE_SIZE)
#define IDLE_RUNSTATE(i)	((4 + 3 * MAX_VCPUS) * PAGE_SIZE + (i) * 60)
#define NR_PAGES(idle)		DIV_ROUND_UP(IDLE_RUNSTATE(idle), PAGE_SIZE)
#define MAX_HOT			NR_PAGES(MAX_IDLE)

#define NR_FRAMES		64
#define NR_RECYCLED		64
#define POISON			0xa5

/*
 * A word of evtchn_pending has one port, so that no event covers up for
 * another.
 */
enum { BY_IOCTL, BY_IRQFD, BY_HCALL, NR_SOURCES };
#define NR_PORTS		5
#define WORD(v, source, i)	(1 + ((v) * NR_SOURCES + (source)) * NR_PORTS + (i))
#define PORT(word)		((word) * 65)
#define NR_WORDS		64

/* What a vCPU saw when it looked last. */
struct guest_seen {
	struct pvclock_vcpu_time_info clocks[3];
	struct xen_runstate runstate;
	u64 torn;
};

/* Between host and guest, in memory that is left alone. */
static struct shared {
	u32 epoch;
	u32 nr_vcpus;
	u32 strict[MAX_VCPUS];
	u32 nested[MAX_VCPUS];
	u32 upcalls[MAX_VCPUS];
	bool upcalled[MAX_VCPUS];
	u32 sent[NR_WORDS];
	u32 seen[NR_WORDS];
} *sh;

static u32 get(u32 *p)
{
	return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

static void add(u32 *p, int n)
{
	__atomic_add_fetch(p, n, __ATOMIC_SEQ_CST);
}

/* The guest */

static struct shared *guest_sh;

static void *guest_area(u64 offset)
{
	return (void *)(AREA_GVA + offset);
}

static void guest_upcall(struct ex_regs *regs)
{
	u32 id = rdmsr(MSR_KERNEL_GS_BASE);
	struct xen_vcpu_info *vi = guest_area(VCPU_INFO(id));

	/* There are no more events than ports until some are consumed. */
	GUEST_ASSERT(guest_sh->upcalls[id]++ < NR_WORDS);
	WRITE_ONCE(guest_sh->upcalled[id], true);
	WRITE_ONCE(vi->evtchn_upcall_pending, 0);
}

static void guest_check_clock(u64 offset, struct pvclock_vcpu_time_info *last, bool resync,
			      bool strict)
{
	struct pvclock_vcpu_time_info now, *pv = guest_area(offset);

	do {
		now.version = READ_ONCE(pv->version);
		now.tsc_timestamp = READ_ONCE(pv->tsc_timestamp);
		now.system_time = READ_ONCE(pv->system_time);
	} while (now.version != READ_ONCE(pv->version));

	__GUEST_ASSERT(!(now.version & 1) &&
		       (resync || ((s32)(now.version - last->version) >= strict &&
				   now.tsc_timestamp >= last->tsc_timestamp &&
				   now.system_time >= last->system_time)),
		       "Clock at %lx: version %u, time %lu after %u, %lu", offset, now.version,
		       (u64)now.system_time, last->version, (u64)last->system_time);
	*last = now;
}

static void guest_check_runstate(u64 offset, struct guest_seen *last, bool resync, bool strict)
{
	struct xen_runstate now, *rs = guest_area(offset);
	u64 excess = 0;
	int i;

	do {
		now.entry_time = READ_ONCE(rs->entry_time);
		now.state = READ_ONCE(rs->state);
		for (i = 0; i < 4; i++)
			now.time[i] = READ_ONCE(rs->time[i]);
	} while (now.entry_time != READ_ONCE(rs->entry_time));

	/*
	 * If one page of two was thrown away, it is not whole until KVM writes
	 * it.
	 */
	if (resync)
		*last = (struct guest_seen) { .torn = strict ? 0 : now.entry_time };
	GUEST_ASSERT(!strict || (now.entry_time > last->runstate.entry_time && !now.state));
	if (now.entry_time == last->torn)
		return;

	for (i = 0; i < 4; i++) {
		GUEST_ASSERT(now.time[i] >= last->runstate.time[i]);
		excess += now.time[i];
	}
	excess -= now.entry_time;
	__GUEST_ASSERT(!excess, "Runstate at %lx: entry time %lu, times add up to %ld more",
		       offset, (u64)now.entry_time, excess);
	GUEST_ASSERT(now.entry_time >= last->runstate.entry_time);
	last->runstate = now;
	last->torn = 0;
}

/* With resync, what was selected is not known any more: look at all. */
static void guest_consume(u32 id, bool resync)
{
	struct xen_shared_info *si = guest_area(SHARED_INFO);
	struct xen_vcpu_info *vi = guest_area(VCPU_INFO(id));
	u64 sel = __atomic_exchange_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST), pending;
	int w;

	for (w = WORD(id, 0, 0); w < WORD(id + 1, 0, 0); w++) {
		if (!resync && !(sel & BIT_ULL(w)))
			continue;
		sel &= ~BIT_ULL(w);
		pending = __atomic_exchange_n(&si->evtchn_pending[w], 0, __ATOMIC_SEQ_CST);
		if (!pending)
			continue;
		GUEST_ASSERT_EQ(pending, BIT_ULL(w));
		GUEST_ASSERT_EQ(guest_sh->seen[w] + 1, get(&guest_sh->sent[w]));
		add(&guest_sh->seen[w], 1);
	}
	GUEST_ASSERT(!sel || resync);
}

static void guest_send(u32 id)
{
	u32 target = (id + 1) % guest_sh->nr_vcpus;
	int i, w;

	for (i = 0; i < NR_PORTS; i++) {
		w = WORD(target, BY_HCALL, i);
		if (get(&guest_sh->seen[w]) != guest_sh->sent[w])
			continue;
		add(&guest_sh->sent[w], 1);
		if (xen_guest_send(PORT(w)))
			add(&guest_sh->sent[w], -1);
	}
}

/*
 * L2
 *
 * It begins anew each time that it is entered, as the content of vmcb12, i.e.
 * where it was, can be lost.  Before that, L1 leaves a mark in its page where
 * KVM or the processor is going to write.
 */

#define L2_MARK		0x50
#define L2_TPR		0x90

#define L2_CLOBBERS	"rbx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",	\
			"r15", "memory", "cc"

struct l1 {
	struct svm_test_data *svm;
	struct vmx_pages *vmx;
	bool is_launched;
	/* L2 was active when this pass began. */
	bool has_run;
};

static void l2_code_svm(void)
{
	/* From here on, the area may be out of reach. */
	GUEST_SYNC(1);
	vmmcall();
	GUEST_FAIL("L2 goes on");
}

static void l2_code_vmx(void)
{
	u64 tpr;

	GUEST_SYNC(1);
	asm volatile("mov %%cr8, %0" : "=r"(tpr));
	/* 0 if the content is lost. */
	GUEST_ASSERT(!tpr || tpr == L2_MARK >> 4);
	asm volatile("mov %0, %%cr8" : : "r"((u64)L2_TPR >> 4));
	vmcall();
	GUEST_FAIL("L2 goes on");
}

static void guest_enter_l2_by_svm(struct l1 *l1, u32 id)
{
	struct vmcb *vmcb12 = guest_area(NESTED(id));
	u64 vmcb12_gpa = AREA_GPA + NESTED(id);

	*vmcb12 = *l1->svm->vmcb;
	vmcb12->control.exit_code = L2_MARK;
	asm volatile("clgi\n\t"
		     "push %%rbp\n\t"
		     "vmrun %%rax\n\t"
		     "pop %%rbp\n\t"
		     "stgi"
		     : "+a"(vmcb12_gpa) : : "rcx", "rdx", L2_CLOBBERS);
}

static u32 *guest_l2_tpr(u32 id)
{
	return guest_area(NESTED(id) + APIC_TASKPRI);
}

#define vmx_enter(insn)								\
({										\
	u64 host_rsp = HOST_RSP, host_rip = HOST_RIP;				\
										\
	asm volatile("push %%rbp\n\t"						\
		     "vmwrite %%rsp, %0\n\t"					\
		     "lea 1f(%%rip), %%rax\n\t"					\
		     "vmwrite %%rax, %1\n\t"					\
		     insn "\n\t"						\
		     "ud2\n\t"							\
		     "1: pop %%rbp"						\
		     : "+c"(host_rsp), "+d"(host_rip)				\
		     : : "rax", L2_CLOBBERS);					\
})

static void guest_enter_l2_by_vmx(struct l1 *l1, u32 id)
{
	*guest_l2_tpr(id) = L2_MARK;
	vmwrite(GUEST_RIP, (u64)l2_code_vmx);
	vmwrite(GUEST_RSP, (u64)l1->vmx->stack);

	if (l1->is_launched)
		vmx_enter("vmresume");
	else
		vmx_enter("vmlaunch");
	l1->is_launched = true;

	GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
}

static void guest_init_l1(struct l1 *l1, void *pages, u32 id)
{
	if (!pages)
		return;

	if (this_cpu_has(X86_FEATURE_SVM)) {
		l1->svm = pages;
		generic_svm_setup(l1->svm, l2_code_svm);
		return;
	}

	l1->vmx = pages;
	GUEST_ASSERT(prepare_for_vmx_operation(l1->vmx));
	GUEST_ASSERT(load_vmcs(l1->vmx));
	prepare_vmcs(l1->vmx, l2_code_vmx);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL,
		vmreadz(CPU_BASED_VM_EXEC_CONTROL) | CPU_BASED_TPR_SHADOW);
	vmwrite(VIRTUAL_APIC_PAGE_ADDR, AREA_GPA + NESTED(id));
	vmwrite(TPR_THRESHOLD, 0);
}

/* The pass ends in L2, and L1 goes on in the next one. */
static void guest_enter_l2(struct l1 *l1, u32 id)
{
	if (l1->svm)
		guest_enter_l2_by_svm(l1, id);
	else
		guest_enter_l2_by_vmx(l1, id);
	l1->has_run = true;
}

/* If the page's content isn't lost, it is what KVM or the processor wrote. */
static void guest_check_l2(struct l1 *l1, u32 id, bool resync)
{
	struct vmcb *vmcb12 = guest_area(NESTED(id));
	u64 seen, wanted;

	if (!l1->has_run)
		return;

	seen = l1->svm ? vmcb12->control.exit_code : *guest_l2_tpr(id);
	wanted = l1->svm ? SVM_EXIT_VMMCALL : L2_TPR;
	__GUEST_ASSERT(seen == wanted || (!seen && resync), "L1 finds 0x%lx", seen);
	l1->has_run = false;
}

static void guest_code(struct shared *shared, u32 id, void *nested_pages)
{
	struct guest_seen seen = {};
	struct l1 l1 = {};
	bool resync, strict;
	u32 epoch = 0;

	guest_sh = shared;
	wrmsr(MSR_KERNEL_GS_BASE, id);
	guest_init_l1(&l1, nested_pages, id);

	for (;;) {
		/*
		 * Here the area may be out of reach; KVM uses it, the guest
		 * does not.
		 */
		strict = shared->strict[id];
		if (!strict)
			guest_send(id);
		xen_guest_exit();
		GUEST_SYNC(0);

		/*
		 * Here the VMM keeps the memslot as it is, and retries what
		 * faults.
		 */
		resync = epoch != shared->epoch;
		epoch = shared->epoch;
		guest_check_runstate(RUNSTATE(id), &seen, resync, strict);
		guest_check_clock(KVMCLOCK(id), &seen.clocks[0], resync, strict);
		guest_check_clock(TIME_INFO(id), &seen.clocks[1], resync, strict);
		guest_check_clock(VCPU_INFO(id) + offsetof(struct xen_vcpu_info, time),
				  &seen.clocks[2], resync, strict);
		guest_check_l2(&l1, id, resync);
		WRITE_ONCE(shared->upcalls[id], 0);
		sti_nop_cli();
		guest_consume(id, resync);
		if (shared->nested[id])
			guest_enter_l2(&l1, id);
		else
			GUEST_SYNC(1);
	}
}

/* The host: what all threads use */

static u32 nr_vcpus = 2, nr_idle = 64, nr_hot, nr_rounds = 30, nr_actions = 48, seed;
static bool gentle, nested, quiet, round_over, stop;
static struct kvm_vm *vm;
/* The ones that run, and then the ones that do not. */
static struct kvm_vcpu *vcpus[MAX_VCPUS + MAX_IDLE];
static u32 strict_passes[MAX_VCPUS], passes, retries, failed_sends, events[NR_SOURCES];
static u32 idle_changes, l2_entries;
static int irqfds[NR_WORDS];
static pthread_barrier_t barrier;

/* What the area's memory is. */
enum {
	ON_MEMFD = BIT(0),
	ON_ANON = BIT(1),
	/* A guest_memfd, but for shared_info, whose content must stay. */
	ON_GMEM = BIT(2),
	/* Anonymous memory, and a guest_memfd for pages that are private. */
	ON_CONVERTIBLE = BIT(3),

	ON_USER = ON_MEMFD | ON_ANON | ON_CONVERTIBLE,
	ON_ANY = ON_USER | ON_GMEM,
};

static int memory;
static int gmem_fd = -1;

/*
 * The memory.  No thread may map anything elsewhere while the others run, as
 * that could come to lie where pages were taken away.
 */
static char *area, *pool, *away, *decoys, *recycled, *not_recycled, *twin;
static int memfd, frames[NR_FRAMES];
static char poison[PAGE_SIZE], snapshot[MAX_HOT * PAGE_SIZE], twin_copy[PAGE_SIZE];
static bool twin_merged;

/* Held while pages are away.  Taken before slot_lock. */
static pthread_mutex_t area_lock = PTHREAD_MUTEX_INITIALIZER;
/*
 * Held for reading while a guest uses the area, for writing to drop its memslot
 * or content.
 */
static pthread_rwlock_t slot_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
/* Held to raise events. */
static pthread_mutex_t send_lock = PTHREAD_MUTEX_INITIALIZER;

/* Held to change the runstate of vCPUs that do not run. */
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;

/* A step is an exit of a vCPU. */
static pthread_mutex_t step_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t step_cond = PTHREAD_COND_INITIALIZER;
static u64 steps;

static void make_step(void)
{
	pthread_mutex_lock(&step_lock);
	steps++;
	pthread_cond_broadcast(&step_cond);
	pthread_mutex_unlock(&step_lock);
}

static void await_steps(u32 nr)
{
	u64 end;

	pthread_mutex_lock(&step_lock);
	for (end = steps + nr; steps < end && !stop;)
		pthread_cond_wait(&step_cond, &step_lock);
	pthread_mutex_unlock(&step_lock);
}

static void check_poison(char *page, const char *what)
{
	TEST_ASSERT(!memcmp(page, poison, PAGE_SIZE), "A %s was written to", what);
}

static bool write_file(const char *path, const char *s)
{
	int fd = open(path, O_WRONLY);
	bool done = fd >= 0 && write(fd, s, strlen(s)) == strlen(s);

	if (fd >= 0)
		close(fd);
	return done;
}

static long read_file(const char *path)
{
	char s[32] = "";
	int fd = open(path, O_RDONLY);

	TEST_ASSERT(fd >= 0 && read(fd, s, sizeof(s) - 1) > 0, "%s: %s", path, strerror(errno));
	close(fd);
	return atol(s);
}

/* vCPUs and events */

static void run_to_sync(int id)
{
	struct kvm_run *run = vcpus[id]->run;
	int r, err;

	for (;;) {
		/* Reports what the guest asserts. */
		r = _vcpu_run(vcpus[id]);
		err = errno;
		make_step();
		if (r) {
			TEST_ASSERT(err == EFAULT && !gentle && !sh->strict[id],
				    "KVM_RUN: %s", strerror(err));
			add(&retries, 1);
			sched_yield();
			continue;
		}
		if (run->exit_reason != KVM_EXIT_XEN)
			break;
		TEST_ASSERT(!gentle && !sh->strict[id], "EVTCHNOP_send failed");
		add(&failed_sends, 1);
		run->xen.u.hcall.result = -EFAULT;
	}
	TEST_ASSERT_KVM_EXIT_REASON(vcpus[id], KVM_EXIT_IO);
}

static void *vcpu_thread(void *arg)
{
	int id = (long)arg;

	while (!READ_ONCE(stop)) {
		sh->strict[id] = READ_ONCE(quiet);
		sh->nested[id] = READ_ONCE(nested);
		/*
		 * For the clocks to be written anew; runstate is with each
		 * KVM_RUN.
		 */
		vcpu_ioctl(vcpus[id], KVM_KVMCLOCK_CTRL, NULL);
		run_to_sync(id);
		pthread_rwlock_rdlock(&slot_lock);
		run_to_sync(id);
		pthread_rwlock_unlock(&slot_lock);
		add(&passes, 1);
		add(&l2_entries, sh->nested[id]);
		WRITE_ONCE(strict_passes[id], sh->strict[id] ? strict_passes[id] + 1 : 0);
	}
	return NULL;
}

static void raise_event(int v, int source, int i)
{
	int w = WORD(v, source, i);
	struct kvm_irq_routing_xen_evtchn e = xen_evtchn(vcpus[v], PORT(w));

	if (get(&sh->seen[w]) != sh->sent[w])
		return;

	add(&sh->sent[w], 1);
	if (source == BY_IRQFD) {
		TEST_ASSERT_EQ(eventfd_write(irqfds[w], 1), 0);
	} else if (__vm_ioctl(vm, KVM_XEN_HVM_EVTCHN_SEND, &e)) {
		TEST_ASSERT(errno == EFAULT && !gentle, "KVM_XEN_HVM_EVTCHN_SEND: %s",
			    strerror(errno));
		add(&failed_sends, 1);
		add(&sh->sent[w], -1);
	}
}

static void *sender_thread(void *arg)
{
	int v, i;

	while (!READ_ONCE(stop)) {
		pthread_mutex_lock(&send_lock);
		for (v = 0; v < nr_vcpus && !quiet; v++) {
			for (i = 0; i < NR_PORTS; i++) {
				raise_event(v, BY_IOCTL, i);
				raise_event(v, BY_IRQFD, i);
			}
		}
		pthread_mutex_unlock(&send_lock);
		await_steps(1);
	}
	return NULL;
}

static void set_irqfds(bool assign)
{
	int v, i, w;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_PORTS; i++) {
			w = WORD(v, BY_IRQFD, i);
			if (assign)
				kvm_assign_irqfd(vm, FIRST_GSI + w, irqfds[w]);
			else
				kvm_deassign_irqfd(vm, FIRST_GSI + w, irqfds[w]);
		}
	}
}

static void set_idle_runstates(u32 state)
{
	struct kvm_xen_vcpu_attr attr = {
		.type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT,
		.u.runstate.state = state,
	};
	int i;

	for (i = 0; i < nr_idle; i++)
		vcpu_ioctl(vcpus[nr_vcpus + i], KVM_XEN_VCPU_SET_ATTR, &attr);
	idle_changes += nr_idle;
}

static void *idle_thread(void *arg)
{
	u32 state = 0;

	while (!READ_ONCE(stop)) {
		state = state == RUNSTATE_blocked ? RUNSTATE_runnable : RUNSTATE_blocked;
		pthread_mutex_lock(&idle_lock);
		set_idle_runstates(state);
		pthread_mutex_unlock(&idle_lock);
		await_steps(1);
	}
	return NULL;
}

/* What more than one kind of disturber does */

static void set_slot(u32 flags, u64 gpa, u64 size)
{
	switch (memory) {
	case ON_GMEM:
		/* KVM has no use for what is at the userspace address. */
		vm_set_user_memory_region2(vm, AREA_SLOT, flags | KVM_MEM_GUEST_MEMFD,
					   gpa + PAGE_SIZE, size ? size - PAGE_SIZE : 0,
					   decoys + PAGE_SIZE, gmem_fd, PAGE_SIZE);
		break;
	case ON_CONVERTIBLE:
		vm_set_user_memory_region2(vm, AREA_SLOT, flags | KVM_MEM_GUEST_MEMFD, gpa, size,
					   area, gmem_fd, 0);
		break;
	default:
		vm_set_user_memory_region(vm, AREA_SLOT, flags, gpa, size, area);
	}
}

/* Raise an event of each vCPU, which may fail. */
static void try_events(void)
{
	int v;

	pthread_mutex_lock(&send_lock);
	for (v = 0; v < nr_vcpus; v++)
		raise_event(v, BY_IOCTL, 0);
	pthread_mutex_unlock(&send_lock);
}

/* Disturbers that take pages away and bring others */

static void random_pages(struct kvm_random_state *rng, int *first, int *nr)
{
	*first = kvm_random_u32_in_range(rng, 0, nr_hot - 1);
	*nr = kvm_random_u32_in_range(rng, 1, nr_hot - *first);
	if (kvm_random_bool(rng)) {
		*first = 0;
		*nr = nr_hot;
	}
}

/* What lies at @view is not KVM's to write to. */
static void check_still(char *view, int nr)
{
	memcpy(snapshot, view, nr * PAGE_SIZE);
	await_steps(2 * nr_vcpus);
	TEST_ASSERT(!memcmp(snapshot, view, nr * PAGE_SIZE), "Memory out of reach was written to");
}

static void map(char *to, size_t size, int flags, int fd, off_t offset)
{
	TEST_ASSERT(mmap(to, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, offset) == to,
		    "mmap: %s", strerror(errno));
}

static void move(char *from, char *to, size_t size)
{
	TEST_ASSERT(mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to,
		    "mremap: %s", strerror(errno));
}

static void renew_page(char *old, char *new)
{
	check_poison(new, "page that was the area's");
	memcpy(new, old, PAGE_SIZE);
	memset(old, POISON, PAGE_SIZE);
}

static bool do_munmap(struct kvm_random_state *rng)
{
	int first, nr, p, other, old;

	random_pages(rng, &first, &nr);
	kvm_munmap(area + first * PAGE_SIZE, nr * PAGE_SIZE);
	for (p = first; p < first + nr; p++) {
		other = kvm_random_u32_in_range(rng, nr_hot, NR_FRAMES - 1);
		old = frames[p];
		frames[p] = frames[other];
		frames[other] = old;
		renew_page(pool + old * PAGE_SIZE, pool + frames[p] * PAGE_SIZE);
	}
	for (p = first; p < first + nr; p++)
		map(area + p * PAGE_SIZE, PAGE_SIZE, MAP_SHARED, memfd, frames[p] * PAGE_SIZE);
	return true;
}

static bool do_mremap(struct kvm_random_state *rng)
{
	char *hole = decoys;
	int p;

	move(area, away, AREA_SIZE);
	for (p = 0; p < nr_hot; p++)
		renew_page(away + p * PAGE_SIZE, decoys + p * PAGE_SIZE);
	move(decoys, area, AREA_SIZE);
	decoys = away;
	away = hole;
	return true;
}

static bool do_mremap_back(struct kvm_random_state *rng)
{
	bool one = memory == ON_MEMFD;
	char *from = area + (one ? kvm_random_u32(rng) % nr_hot * PAGE_SIZE : 0);
	size_t size = one ? PAGE_SIZE : AREA_SIZE;

	move(from, away, size);
	check_still(away, one ? 1 : nr_hot);
	move(away, from, size);
	return true;
}

static void protect(int first, int nr, int prot)
{
	TEST_ASSERT(!mprotect(area + first * PAGE_SIZE, nr * PAGE_SIZE, prot),
		    "mprotect: %s", strerror(errno));
}

static bool do_mprotect(struct kvm_random_state *rng)
{
	bool readable = kvm_random_bool(rng);
	int first, nr;

	random_pages(rng, &first, &nr);
	protect(first, nr, readable ? PROT_READ : PROT_NONE);
	if (readable)
		check_still(area + first * PAGE_SIZE, nr);
	protect(first, nr, PROT_READ | PROT_WRITE);
	return true;
}

/* All but shared_info can cope with the loss of what is in it. */
static void random_pages_to_lose(struct kvm_random_state *rng, int *first, int *nr)
{
	random_pages(rng, first, nr);
	*first = max(*first, 1);
	*nr = min(*nr, nr_hot - *first);
}

/* Throws away what is in anonymous memory. */
static bool do_dontneed(struct kvm_random_state *rng)
{
	int first, nr, r;

	if (memory == ON_MEMFD) {
		random_pages(rng, &first, &nr);
		return !madvise(area + first * PAGE_SIZE, nr * PAGE_SIZE, MADV_DONTNEED);
	}

	random_pages_to_lose(rng, &first, &nr);
	pthread_rwlock_wrlock(&slot_lock);
	r = madvise(area + first * PAGE_SIZE, nr * PAGE_SIZE, MADV_DONTNEED);
	sh->epoch++;
	pthread_rwlock_unlock(&slot_lock);
	return !r;
}

/* Disturbers of a guest_memfd */

static void create_gmem(void)
{
	gmem_fd = vm_create_guest_memfd(vm, AREA_SIZE, GUEST_MEMFD_FLAG_MMAP |
						       GUEST_MEMFD_FLAG_INIT_SHARED);
	map(area + PAGE_SIZE, AREA_SIZE - PAGE_SIZE, MAP_SHARED, gmem_fd, PAGE_SIZE);
}

static void punch(int first, int nr)
{
	kvm_fallocate(gmem_fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, first * PAGE_SIZE,
		      nr * PAGE_SIZE);
}

static bool do_punch(struct kvm_random_state *rng)
{
	int first, nr;

	random_pages_to_lose(rng, &first, &nr);
	pthread_rwlock_wrlock(&slot_lock);
	punch(first, nr);
	sh->epoch++;
	pthread_rwlock_unlock(&slot_lock);
	return true;
}

static bool do_memory_error(struct kvm_random_state *rng)
{
	int page = kvm_random_u32_in_range(rng, 1, nr_hot - 1);
	bool done;

	pthread_rwlock_wrlock(&slot_lock);
	done = try_hwpoison((u8 *)area + page * PAGE_SIZE);
	try_events();
	punch(page, 1);
	/* The old mapping goes on raising SIGBUS. */
	map(area + page * PAGE_SIZE, PAGE_SIZE, MAP_SHARED, gmem_fd, page * PAGE_SIZE);
	sh->epoch++;
	pthread_rwlock_unlock(&slot_lock);
	return done;
}

static bool do_close(struct kvm_random_state *rng)
{
	pthread_rwlock_wrlock(&slot_lock);
	TEST_ASSERT(mmap(area + PAGE_SIZE, AREA_SIZE - PAGE_SIZE, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		    "mmap: %s", strerror(errno));
	kvm_close(gmem_fd);
	try_events();
	set_slot(0, AREA_GPA, 0);
	create_gmem();
	set_slot(0, AREA_GPA, AREA_SIZE);
	sh->epoch++;
	pthread_rwlock_unlock(&slot_lock);
	return true;
}

/* What was shared must not change while the page is private. */
static bool do_convert(struct kvm_random_state *rng)
{
	int first, nr;
	char *page;

	random_pages(rng, &first, &nr);
	page = area + first * PAGE_SIZE;
	pthread_rwlock_wrlock(&slot_lock);
	vm_mem_set_private(vm, AREA_GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
	memcpy(snapshot, page, nr * PAGE_SIZE);
	try_events();
	TEST_ASSERT(!memcmp(snapshot, page, nr * PAGE_SIZE),
		    "Memory was written to while it was private");
	vm_mem_set_shared(vm, AREA_GPA + first * PAGE_SIZE, nr * PAGE_SIZE);
	pthread_rwlock_unlock(&slot_lock);
	return true;
}

/* Disturbers that have the kernel move or share pages */

static bool do_pageout(struct kvm_random_state *rng)
{
	return !madvise(area, nr_hot * PAGE_SIZE, MADV_PAGEOUT);
}

static bool do_move_pages(struct kvm_random_state *rng)
{
	int nodes[MAX_HOT], status[MAX_HOT] = {}, p, nr = 0;
	void *pages[MAX_HOT];

	for (p = 0; p < nr_hot; p++) {
		pages[p] = area + p * PAGE_SIZE;
		nodes[p] = kvm_random_bool(rng);
	}
	if (syscall(__NR_move_pages, 0, nr_hot, pages, nodes, status, MPOL_MF_MOVE) < 0)
		return false;
	for (p = 0; p < nr_hot; p++)
		nr += status[p] == nodes[p];
	return nr;
}

static bool do_compact(struct kvm_random_state *rng)
{
	return write_file("/proc/sys/vm/compact_memory", "1");
}

static bool do_collapse(struct kvm_random_state *rng)
{
	char *mem = memory == ON_MEMFD ? pool : area;
	bool done = !madvise(mem, AREA_SIZE, MADV_COLLAPSE);

	await_steps(nr_vcpus);
	/*
	 * The last page has no use but to be dropped, which splits the huge
	 * page.
	 */
	madvise(mem + AREA_SIZE - PAGE_SIZE, PAGE_SIZE,
		memory == ON_MEMFD ? MADV_REMOVE : MADV_DONTNEED);
	return done;
}

static bool do_fork(struct kvm_random_state *rng)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	return pid > 0 && waitpid(pid, &status, 0) == pid;
}

/*
 * With the guests kept from consuming events, shared_info comes to rest and can
 * be shared.
 */
static bool do_ksm(struct kvm_random_state *rng)
{
	bool was_on = read_file("/sys/kernel/mm/ksm/run") == 1;
	long end;
	int i;

	if (!write_file("/sys/kernel/mm/ksm/run", "1"))
		return false;

	pthread_mutex_lock(&area_lock);
	pthread_rwlock_wrlock(&slot_lock);
	madvise(area, PAGE_SIZE, MADV_MERGEABLE);
	end = read_file("/sys/kernel/mm/ksm/full_scans") + 16;
	twin_merged = false;
	for (i = 0; i < 1000 && !twin_merged; i++) {
		if (memcmp(twin, area, PAGE_SIZE)) {
			memcpy(twin, area, PAGE_SIZE);
			memcpy(twin_copy, twin, PAGE_SIZE);
		}
		/* ksmd does not tell when it has done something. */
		usleep(1000);
		if (read_file("/sys/kernel/mm/ksm/full_scans") > end)
			break;
		twin_merged = read_file("/proc/self/ksm_merging_pages") > 0;
	}
	if (!was_on)
		write_file("/sys/kernel/mm/ksm/run", "0");
	pthread_rwlock_unlock(&slot_lock);
	pthread_mutex_unlock(&area_lock);
	return twin_merged;
}

/* Disturbers of the memslot */

static bool do_delete_slot(struct kvm_random_state *rng)
{
	pthread_rwlock_wrlock(&slot_lock);
	set_slot(0, AREA_GPA, 0);
	try_events();
	set_slot(0, AREA_GPA, AREA_SIZE);
	pthread_rwlock_unlock(&slot_lock);
	return true;
}

static bool do_move_slot(struct kvm_random_state *rng)
{
	pthread_rwlock_wrlock(&slot_lock);
	set_slot(0, AREA_GPA_MOVED, AREA_SIZE);
	set_slot(0, AREA_GPA, AREA_SIZE);
	pthread_rwlock_unlock(&slot_lock);
	return true;
}

static bool do_dirty_log(struct kvm_random_state *rng)
{
	set_slot(KVM_MEM_LOG_DIRTY_PAGES, AREA_GPA, AREA_SIZE);
	await_steps(1);
	set_slot(0, AREA_GPA, AREA_SIZE);
	return true;
}

static bool do_other_slot(struct kvm_random_state *rng)
{
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, OTHER_GPA, PAGE_SIZE, pool);
	await_steps(1);
	vm_set_user_memory_region(vm, OTHER_SLOT, 0, OTHER_GPA, 0, pool);
	return true;
}

/* The threads that disturb */

enum { TAKE_AWAY, MOVE_PAGES, SLOTS, NR_DISTURBERS };

static struct disturbance {
	const char *name;
	int on;
	int by;
	bool (*act)(struct kvm_random_state *rng);
	bool gentle;
	const char *needs;
	bool missing;
	u32 tried;
	u32 done;
} disturbances[] = {
	{ "munmap, mmap of another", ON_MEMFD, TAKE_AWAY, do_munmap },
	{ "mremap of another", ON_ANON | ON_CONVERTIBLE, TAKE_AWAY, do_mremap },
	{ "mremap away and back", ON_USER, TAKE_AWAY, do_mremap_back },
	{ "mprotect", ON_USER, TAKE_AWAY, do_mprotect },
	{ "MADV_DONTNEED", ON_USER, TAKE_AWAY, do_dontneed, true },
	{ "hole punched", ON_GMEM, TAKE_AWAY, do_punch, true },
	{ "memory error", ON_GMEM, TAKE_AWAY, do_memory_error,
	  .needs = "/proc/sys/vm/memory_failure_recovery" },
	{ "guest_memfd closed", ON_GMEM, TAKE_AWAY, do_close },
	{ "made private and shared", ON_CONVERTIBLE, TAKE_AWAY, do_convert },
	{ "MADV_PAGEOUT", ON_USER, MOVE_PAGES, do_pageout, true, .needs = "swap" },
	{ "move_pages", ON_USER, MOVE_PAGES, do_move_pages, true,
	  .needs = "/sys/devices/system/node/node1" },
	{ "compaction", ON_ANY, MOVE_PAGES, do_compact, true,
	  .needs = "/proc/sys/vm/compact_memory" },
	{ "collapse, split", ON_USER, MOVE_PAGES, do_collapse, true,
	  .needs = "/sys/kernel/mm/transparent_hugepage" },
	{ "fork", ON_ANY, MOVE_PAGES, do_fork, true },
	{ "KSM", ON_ANON, MOVE_PAGES, do_ksm, true, .needs = "/sys/kernel/mm/ksm/run" },
	{ "memslot deleted", ON_ANY, SLOTS, do_delete_slot },
	{ "memslot moved", ON_MEMFD | ON_ANON, SLOTS, do_move_slot },
	{ "dirty logging", ON_MEMFD | ON_ANON, SLOTS, do_dirty_log, true },
	{ "other memslot", ON_ANY, SLOTS, do_other_slot, true },
};

static void look_for_what_is_missing(void)
{
	struct sysinfo info = {};
	struct disturbance *d;

	sysinfo(&info);
	for (d = disturbances; d < disturbances + ARRAY_SIZE(disturbances); d++) {
		d->missing = d->needs && (d->act == do_pageout ? !info.totalswap :
							       access(d->needs, F_OK));
		if (d->missing)
			pr_info("not available: %s, for want of %s\n", d->name, d->needs);
	}
}

/* The kinds of memory that there are. */
static int get_kinds(int *kinds)
{
	int nr = 0;

	kinds[nr++] = ON_MEMFD;
	kinds[nr++] = ON_ANON;
	if (kvm_check_cap(KVM_CAP_GUEST_MEMFD_FLAGS) & GUEST_MEMFD_FLAG_INIT_SHARED)
		kinds[nr++] = ON_GMEM;
	else
		pr_info("not available: memory in a guest_memfd\n");
	if (kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_SW_PROTECTED_VM))
		kinds[nr++] = ON_CONVERTIBLE;
	else
		pr_info("not available: private memory\n");
	return nr;
}

static void disturb(int by, struct kvm_random_state *rng)
{
	struct disturbance *d;

	do {
		d = &disturbances[kvm_random_u32(rng) % ARRAY_SIZE(disturbances)];
	} while (d->by != by || d->missing || (gentle && !d->gentle) || !(d->on & memory));

	if (by == TAKE_AWAY)
		pthread_mutex_lock(&area_lock);
	d->done += d->act(rng);
	d->tried++;
	if (by == TAKE_AWAY)
		pthread_mutex_unlock(&area_lock);
}

/* Get back what was freed, and see that it is not written to. */
static void recycle(void)
{
	char *old = recycled;
	int p;

	for (p = 0; p < NR_RECYCLED; p++)
		check_poison(old + p * PAGE_SIZE, "page that was free");

	/* Free the old pages last, or they would be the new ones. */
	recycled = not_recycled;
	not_recycled = old;
	memset(recycled, POISON, NR_RECYCLED * PAGE_SIZE);
	kvm_madvise(old, NR_RECYCLED * PAGE_SIZE, MADV_DONTNEED);
}

/*
 * Of real-time priority, see above: a random nap ends anywhere in what others
 * do.
 */
static void take_away(struct kvm_random_state *rng)
{
	struct timespec nap = {};
	int i;

	for (i = 0; i < nr_actions; i++) {
		disturb(TAKE_AWAY, rng);
		nap.tv_nsec = kvm_random_u32_in_range(rng, 0, 1000 << kvm_random_u32(rng) % 9);
		nanosleep(&nap, NULL);
	}
	WRITE_ONCE(round_over, true);
}

static void *disturber_thread(void *arg)
{
	int by = (long)arg;
	struct sched_param param = { .sched_priority = 1 };
	struct kvm_random_state rng = new_kvm_random_state(seed + by + memory * NR_DISTURBERS);

	if (by == TAKE_AWAY && pthread_setschedparam(pthread_self(), SCHED_FIFO, &param))
		pr_info("not available: real-time priority\n");

	for (;;) {
		pthread_barrier_wait(&barrier);
		if (stop)
			return NULL;
		if (by == TAKE_AWAY)
			take_away(&rng);
		while (by != TAKE_AWAY && !READ_ONCE(round_over)) {
			disturb(by, &rng);
			if (by == MOVE_PAGES)
				recycle();
			await_steps(1 + kvm_random_u32(&rng) % 4);
		}
		pthread_barrier_wait(&barrier);
	}
}

/* Setup, rounds, report */

static void create_memory(void)
{
	const int anon = MAP_PRIVATE | MAP_ANONYMOUS;
	int p;

	/*
	 * The holes between keep what is mapped apart; all is left to the end
	 * of the process.
	 */
	area = kvm_mmap(8 * AREA_SIZE, PROT_NONE, anon, -1);
	area = (char *)round_up((unsigned long)area, AREA_SIZE);
	away = area + 2 * AREA_SIZE;
	decoys = area + 4 * AREA_SIZE;
	pool = area + 6 * AREA_SIZE;
	memfd = kvm_memfd_alloc(AREA_SIZE, false);
	if (memory == ON_MEMFD)
		map(area, AREA_SIZE, MAP_SHARED, memfd, 0);
	else
		map(area, AREA_SIZE, anon, -1, 0);
	map(decoys, AREA_SIZE, anon, -1, 0);
	map(pool, AREA_SIZE, MAP_SHARED, memfd, 0);
	recycled = kvm_mmap(2 * NR_RECYCLED * PAGE_SIZE, PROT_READ | PROT_WRITE, anon, -1);
	not_recycled = recycled + NR_RECYCLED * PAGE_SIZE;
	twin = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, anon, -1);
	madvise(twin, PAGE_SIZE, MADV_MERGEABLE);
	twin_merged = false;

	for (p = 0; p < NR_FRAMES; p++)
		frames[p] = p;
	memset(poison, POISON, PAGE_SIZE);
	memset(pool + nr_hot * PAGE_SIZE, POISON, (NR_FRAMES - nr_hot) * PAGE_SIZE);
	memset(decoys, POISON, nr_hot * PAGE_SIZE);
	memset(recycled, POISON, NR_RECYCLED * PAGE_SIZE);
}

static void set_vm_attr(u16 type, u64 value)
{
	struct kvm_xen_hvm_attr attr = { .type = type, .u.pad[0] = value };

	vm_ioctl(vm, KVM_XEN_HVM_SET_ATTR, &attr);
}

/* shared_info and vcpu_info can be given by HVA, too. */
static void set_infos(bool by_hva)
{
	u64 hva = (unsigned long)area;
	int v;

	if (by_hva)
		set_vm_attr(KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA, hva + SHARED_INFO);
	else
		xen_set_shared_info(vm, AREA_GPA + SHARED_INFO);
	for (v = 0; v < nr_vcpus; v++)
		xen_set_vcpu_area(vcpus[v], by_hva ? KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA :
						     KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
				  (by_hva ? hva : AREA_GPA) + VCPU_INFO(v));
}

static void create_ports(void)
{
	struct {
		struct kvm_irq_routing info;
		struct kvm_irq_routing_entry entries[NR_WORDS];
	} routing = {};
	int v, i, w;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_PORTS; i++) {
			xen_bind_evtchn(vcpus[v], PORT(WORD(v, BY_HCALL, i)), 0);
			w = WORD(v, BY_IRQFD, i);
			irqfds[w] = kvm_new_eventfd();
			routing.entries[routing.info.nr++] = (struct kvm_irq_routing_entry) {
				.gsi = FIRST_GSI + w,
				.type = KVM_IRQ_ROUTING_XEN_EVTCHN,
				.u.xen_evtchn = xen_evtchn(vcpus[v], PORT(w)),
			};
		}
	}
	vm_ioctl(vm, KVM_SET_GSI_ROUTING, &routing.info);
	set_irqfds(true);
}

static bool has_tpr_shadow(void)
{
	return kvm_cpu_has(X86_FEATURE_VMX) &&
	       kvm_get_feature_msr(MSR_IA32_VMX_TRUE_PROCBASED_CTLS) >> 32 & CPU_BASED_TPR_SHADOW;
}

static bool has_nested(void)
{
	return kvm_cpu_has(X86_FEATURE_SVM) || has_tpr_shadow();
}

/* What L1 needs besides its page of the area. */
static gva_t create_nested(void)
{
	gva_t gva = 0;

	if (kvm_cpu_has(X86_FEATURE_SVM))
		vcpu_alloc_svm(vm, &gva);
	else if (has_tpr_shadow())
		vcpu_alloc_vmx(vm, &gva);

	return gva;
}

static void create_vm(void)
{
	struct kvm_vcpu *vcpu;
	u64 kvmclock;
	gva_t gva;
	int v;

	struct vm_shape shape = {
		.mode = VM_MODE_DEFAULT,
		.type = memory == ON_CONVERTIBLE ? KVM_X86_SW_PROTECTED_VM : KVM_X86_DEFAULT_VM,
	};

	vm = __vm_create_with_vcpus(shape, nr_vcpus + nr_idle, 0, guest_code, vcpus);
	if (memory == ON_GMEM) {
		create_gmem();
		vm_set_user_memory_region(vm, SHARED_INFO_SLOT, 0, AREA_GPA, PAGE_SIZE, area);
	} else if (memory == ON_CONVERTIBLE) {
		gmem_fd = vm_create_guest_memfd(vm, AREA_SIZE, 0);
	}
	set_slot(0, AREA_GPA, AREA_SIZE);
	virt_map(vm, AREA_GVA, AREA_GPA, nr_hot);
	vm_install_exception_handler(vm, UPCALL_VECTOR, guest_upcall);
	gva = vm_alloc_page(vm);
	sh = addr_gva2hva(vm, gva);
	sh->nr_vcpus = nr_vcpus;
	sh->epoch = 1;

	xen_enable(vm);
	set_vm_attr(KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, 1);
	xen_set_upcall_vector(vm, UPCALL_VECTOR);
	for (v = 0; v < nr_vcpus; v++) {
		vcpu_args_set(vcpus[v], 3, gva, v, create_nested());
		kvmclock = AREA_GPA + KVMCLOCK(v);
		vcpu = vcpus[v];
		vcpu_set_msr(vcpu, MSR_KVM_SYSTEM_TIME_NEW, kvmclock | 1);
		xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO,
				  AREA_GPA + TIME_INFO(v));
		xen_set_vcpu_area(vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
				  AREA_GPA + RUNSTATE(v));
	}
	for (v = 0; v < nr_idle; v++)
		xen_set_vcpu_area(vcpus[nr_vcpus + v], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
				  AREA_GPA + IDLE_RUNSTATE(v));
	set_infos(false);
	create_ports();
}

static void check_memory(void)
{
	int p;

	for (p = nr_hot; p < NR_FRAMES && memory == ON_MEMFD; p++)
		check_poison(pool + frames[p] * PAGE_SIZE, "page that was the area's");
	for (p = 0; p < nr_hot; p++)
		check_poison(decoys + p * PAGE_SIZE, "page that was the area's");
	TEST_ASSERT(!twin_merged || !memcmp(twin, twin_copy, PAGE_SIZE),
		    "A page shared by KSM was written to");
	recycle();
}

static void check_events(void)
{
	struct xen_shared_info *si = (void *)(area + SHARED_INFO);
	struct xen_vcpu_info *vi;
	int v, i, source, w;

	for (v = 0; v < nr_vcpus; v++) {
		for (i = 0; i < NR_SOURCES * NR_PORTS; i++) {
			source = i / NR_PORTS;
			w = WORD(v, 0, i);
			vi = (void *)(area + VCPU_INFO(v));
			TEST_ASSERT(sh->sent[w] == sh->seen[w],
				    "vCPU %d lost an event by %s: %s, %s", v,
				    source == BY_IRQFD ? "irqfd" :
				    source == BY_HCALL ? "hypercall" : "ioctl",
				    xen_is_pending(si, PORT(w)) ? "pending" : "not pending",
				    vi->evtchn_pending_sel & BIT_ULL(w) ? "selected" :
									  "not selected");
		}
	}
}

static void check_idle_runstates(void)
{
	struct xen_runstate *rs;
	int i;

	pthread_mutex_lock(&idle_lock);
	set_idle_runstates(RUNSTATE_offline);
	for (i = 0; i < nr_idle; i++) {
		rs = (void *)(area + IDLE_RUNSTATE(i));
		TEST_ASSERT(rs->state == RUNSTATE_offline && rs->entry_time &&
			    rs->entry_time == rs->time[0] + rs->time[1] + rs->time[2] + rs->time[3],
			    "Runstate of idle vCPU %d: state %u, entry time %lu", i, rs->state,
			    (u64)rs->entry_time);
	}
	pthread_mutex_unlock(&idle_lock);
}

static void await_strict_passes(u32 nr)
{
	u32 end;
	int v;

	for (v = 0; v < nr_vcpus; v++) {
		end = READ_ONCE(strict_passes[v]) + nr;
		while (READ_ONCE(strict_passes[v]) < end)
			await_steps(1);
	}
}

/*
 * Stop to send, and wait for each vCPU to do what is left to do.  The other
 * vCPUs send to it until each of them has noticed.
 */
static void rest(void)
{
	pthread_mutex_lock(&send_lock);
	WRITE_ONCE(quiet, true);
	pthread_mutex_unlock(&send_lock);

	/*
	 * Events by irqfd go to a worker; deassigning the irqfd waits for it.
	 */
	set_irqfds(false);
	set_irqfds(true);
	await_strict_passes(1);
	await_strict_passes(4);

	/* An L2 that is entered in one pass is active until the next one. */
	WRITE_ONCE(nested, false);
	await_strict_passes(2);
}

static void resume(void)
{
	int v;

	WRITE_ONCE(quiet, false);
	for (v = 0; v < nr_vcpus; v++)
		while (READ_ONCE(sh->strict[v]))
			await_steps(1);
}

static void run_round(int round)
{
	alarm(max(60u, nr_actions));
	gentle = round % 2;
	nested = round % 4 == 1 && has_nested();
	round_over = false;
	/* Areas by userspace address ignore whether a frame is private. */
	set_infos(round & 2 && memory != ON_CONVERTIBLE);
	resume();
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	rest();
	check_memory();
	check_events();
	check_idle_runstates();
}

static void run_vm(int nr)
{
	pthread_t threads[MAX_VCPUS + 2 + NR_DISTURBERS];
	int i, w, nr_threads = 0;

	create_memory();
	create_vm();
	stop = false;
	quiet = true;
	memset(strict_passes, 0, sizeof(strict_passes));
	pthread_barrier_init(&barrier, NULL, NR_DISTURBERS + 1);
	for (i = 0; i < nr_vcpus; i++)
		kvm_pthread_create(&threads[nr_threads++], NULL, vcpu_thread, (void *)(long)i);
	kvm_pthread_create(&threads[nr_threads++], NULL, sender_thread, NULL);
	kvm_pthread_create(&threads[nr_threads++], NULL, idle_thread, NULL);
	for (i = 0; i < NR_DISTURBERS; i++)
		kvm_pthread_create(&threads[nr_threads++], NULL, disturber_thread, (void *)(long)i);

	for (i = 0; i < nr; i++)
		run_round(i);

	WRITE_ONCE(stop, true);
	make_step();
	pthread_barrier_wait(&barrier);
	while (nr_threads)
		pthread_join(threads[--nr_threads], NULL);
	for (i = 0; i < nr_vcpus; i++)
		TEST_ASSERT(sh->upcalled[i], "vCPU %d got no upcall", i);
	for (w = 1; w < WORD(nr_vcpus, 0, 0); w++)
		events[(w - 1) / NR_PORTS % NR_SOURCES] += sh->seen[w];
	kvm_vm_free(vm);
	if (gmem_fd >= 0)
		kvm_close(gmem_fd);
	gmem_fd = -1;
}

static void report(void)
{
	struct disturbance *d;
	u32 total = 0;

	pr_info("%u rounds, %u passes of vCPUs with %u retries for want of memory\n", nr_rounds,
		passes, retries);
	pr_info("events: %u by ioctl, %u by irqfd, %u by hypercall; %u failed\n",
		events[BY_IOCTL], events[BY_IRQFD], events[BY_HCALL], failed_sends);
	pr_info("%u changes of the runstate of %u idle vCPUs\n", idle_changes, nr_idle);
	pr_info("L2 was entered %u times\n", l2_entries);
	for (d = disturbances; d < disturbances + ARRAY_SIZE(disturbances); d++)
		if (!d->missing)
			pr_info("%s: %u, %u in vain\n", d->name, d->done, d->tried - d->done);
	for (d = disturbances; d < disturbances + ARRAY_SIZE(disturbances); d++)
		total += d->done;
	pr_info("%u disturbances\n", total);
}

static void hang(int sig)
{
	static const char message[] = "The round does not end\n";

	write(STDERR_FILENO, message, sizeof(message) - 1);
	_exit(KSFT_FAIL);
}

static void help(const char *name)
{
	printf("usage: %s [-a actions] [-h] [-i idle vcpus] [-n vcpus] [-r rounds] [-s seed]\n",
	       name);
}

int main(int argc, char *argv[])
{
	u32 flags = KVM_XEN_HVM_CONFIG_SHARED_INFO | KVM_XEN_HVM_CONFIG_EVTCHN_SEND |
		    KVM_XEN_HVM_CONFIG_RUNSTATE | KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG |
		    KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA;
	int kinds[4], nr_kinds, i, opt;

	TEST_REQUIRE((kvm_check_cap(KVM_CAP_XEN_HVM) & flags) == flags);

	seed = time(NULL);
	while ((opt = getopt(argc, argv, "a:hi:n:r:s:")) != -1) {
		switch (opt) {
		case 'a':
			nr_actions = atoi_positive("Number of actions", optarg);
			break;
		case 'i':
			nr_idle = atoi_non_negative("Number of idle vCPUs", optarg);
			TEST_ASSERT(nr_idle <= MAX_IDLE, "At most %d idle vCPUs", MAX_IDLE);
			break;
		case 'n':
			nr_vcpus = atoi_positive("Number of vCPUs", optarg);
			TEST_ASSERT(nr_vcpus <= MAX_VCPUS, "At most %d vCPUs", MAX_VCPUS);
			break;
		case 'r':
			nr_rounds = atoi_positive("Number of rounds", optarg);
			break;
		case 's':
			seed = atoi_non_negative("Seed", optarg);
			break;
		default:
			help(argv[0]);
			exit(opt == 'h' ? KSFT_PASS : KSFT_FAIL);
		}
	}
	pr_info("-a %u -i %u -n %u -r %u -s %u\n", nr_actions, nr_idle, nr_vcpus, nr_rounds, seed);
	nr_hot = NR_PAGES(nr_idle);
	look_for_what_is_missing();
	if (!has_nested())
		pr_info("not available: nested guests\n");
	nr_kinds = get_kinds(kinds);

	signal(SIGALRM, hang);
	for (i = 0; i < nr_kinds; i++) {
		memory = kinds[i];
		run_vm(nr_rounds / nr_kinds + (i < nr_rounds % nr_kinds));
	}
	report();
	return 0;
}
