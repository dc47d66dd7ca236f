// SPDX-License-Identifier: GPL-2.0-only
/*
 * What KVM's accesses to an L1 hypervisor's VMCBs cost, by the kind of memory
 * that the VMCBs are in: anonymous, in a huge page, a memfd, and memory that
 * the kernel doesn't manage, if the environment variable KVM_BARE_MEMORY is the
 * physical address of some, which may be written to.
 *
 * A figure is the time of one operation in ns: the fastest of some rounds of
 * many operations each, after a round that warms up, less the time of a round
 * with none.  In QEMU with "-accel tcg,thread=single -icount
 * shift=0,sleep=off -smp 1", a ns is an instruction (see gpc_perf_test).
 *
 *  vmload_*		VMLOAD, by hardware unless kvm_amd.vls is 0
 *  vmrun_*		VMRUN of an L2 that only executes VMMCALL
 *  vmrun_kvm_*		the same between CLGI and STGI, with a VMLOAD before and
 *			a VMSAVE and a VMLOAD after it, as KVM in L1 has it
 *  vmrun_two_*		VMRUN of two VMCBs in turn
 *  vmrun_three_*	VMRUN of three VMCBs in turn
 *  vmrun_unmapped_memfd	VMRUN after MADV_DONTNEED of the VMCB, with both
 */
#include <linux/sizes.h>
#include <sys/mman.h>

#include "kvm_syscalls.h"
#include "kvm_util.h"
#include "nested_memory.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"

#define SLOT			10
#define VMCB_GPA(i)		(0xc0000000ULL + (i) * PAGE_SIZE)
#define NR_VMCBS		3
/* For L1's own state, behind the VMCBs. */
#define STATE_GPA		VMCB_GPA(NR_VMCBS)
#define NR_PAGES		(NR_VMCBS + 1)

#define NR_ITERATIONS		100
#define NR_ROUNDS		3

enum { VMLOAD, VMRUN, VMRUN_KVM, VMRUN_TWO, VMRUN_THREE, NR_OPS };

static const char *const op_names[NR_OPS] = {
	[VMLOAD] = "vmload",
	[VMRUN] = "vmrun",
	[VMRUN_KVM] = "vmrun_kvm",
	[VMRUN_TWO] = "vmrun_two",
	[VMRUN_THREE] = "vmrun_three",
};

/* The guest's copies. */
static u64 guest_op, guest_nr;

/* L2 changes no register, so none is saved. */
static void __attribute__((naked)) l2_code(void)
{
	asm volatile("vmmcall");
}

static void run_l2(u64 gpa)
{
	struct vmcb *vmcb = (void *)gpa;

	vmcb->save.rip = (u64)l2_code;
	asm volatile("vmrun %0" : : "a"(gpa) : "memory");
	GUEST_ASSERT_EQ(vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

static void load_state(u64 gpa)
{
	asm volatile("vmload %0" : : "a"(gpa) : "memory");
}

static void save_state(u64 gpa)
{
	asm volatile("vmsave %0" : : "a"(gpa) : "memory");
}

static void do_op(u64 op, u64 i)
{
	switch (op) {
	case VMLOAD:
		load_state(VMCB_GPA(0));
		break;
	case VMRUN:
		run_l2(VMCB_GPA(0));
		break;
	case VMRUN_KVM:
		asm volatile("clgi");
		load_state(VMCB_GPA(0));
		run_l2(VMCB_GPA(0));
		save_state(VMCB_GPA(0));
		load_state(STATE_GPA);
		asm volatile("stgi");
		break;
	case VMRUN_TWO:
		run_l2(VMCB_GPA(i % 2));
		break;
	case VMRUN_THREE:
		run_l2(VMCB_GPA(i % 3));
		break;
	}
}

static void l1_code(struct svm_test_data *svm)
{
	u64 i;

	for (i = 0; i < NR_VMCBS; i++) {
		svm->vmcb = (void *)VMCB_GPA(i);
		svm->vmcb_gpa = VMCB_GPA(i);
		generic_svm_setup(svm, l2_code);
	}
	save_state(STATE_GPA);
	GUEST_SYNC(0);

	for (;;) {
		for (i = 0; i < READ_ONCE(guest_nr); i++)
			do_op(READ_ONCE(guest_op), i);
		GUEST_SYNC(0);
	}
}

/* Return false if KVM refuses the memory. */
static bool run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	if (vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		return false;

	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
	return true;
}

static void set_op(struct kvm_vm *vm, u64 op, u64 nr)
{
	guest_op = op;
	guest_nr = nr;
	sync_global_to_guest(vm, guest_op);
	sync_global_to_guest(vm, guest_nr);
}

static u64 time_run(struct kvm_vcpu *vcpu, u64 op, u64 nr)
{
	struct timespec start, elapsed;

	set_op(vcpu->vm, op, nr);
	clock_gettime(CLOCK_MONOTONIC, &start);
	TEST_ASSERT(run(vcpu), "KVM refuses the memory");
	elapsed = timespec_elapsed(start);
	return timespec_to_ns(elapsed);
}

static u64 time_fastest_run(struct kvm_vcpu *vcpu, u64 op, u64 nr)
{
	u64 ns = ~0ULL;
	u32 r;

	time_run(vcpu, op, nr);
	for (r = 0; r < NR_ROUNDS; r++)
		ns = min(ns, time_run(vcpu, op, nr));
	return ns;
}

/* The memory must keep what it has. */
static u64 time_fastest_unmapped_run(struct kvm_vcpu *vcpu, void *mem, u64 nr)
{
	struct timespec start, elapsed;
	u64 ns = ~0ULL;
	u32 r, i;

	for (r = 0; r <= NR_ROUNDS; r++) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		for (i = 0; i < NR_ITERATIONS; i++) {
			if (nr)
				kvm_madvise(mem, PAGE_SIZE, MADV_DONTNEED);
			time_run(vcpu, VMRUN, nr);
		}
		elapsed = timespec_elapsed(start);
		if (r)
			ns = min(ns, (u64)timespec_to_ns(elapsed));
	}
	return ns;
}

static void measure_unmapped(struct kvm_vcpu *vcpu, void *mem)
{
	u64 ns = time_fastest_unmapped_run(vcpu, mem, 1) - time_fastest_unmapped_run(vcpu, mem, 0);

	printf("vmrun_unmapped_memfd: %lu ns (%lu in %u)\n", ns / NR_ITERATIONS, ns,
	       NR_ITERATIONS);
}

static void measure(const char *kind, void *mem)
{
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	gva_t svm_gva;
	u64 op, ns, floor;

	vm = vm_create_with_one_vcpu(&vcpu, l1_code);
	vm_enable_npt(vm);
	vcpu_alloc_svm(vm, &svm_gva);
	vcpu_args_set(vcpu, 1, svm_gva);
	tdp_identity_map_default_memslots(vm);
	vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA(0), NR_PAGES * PAGE_SIZE, mem);
	virt_map(vm, VMCB_GPA(0), VMCB_GPA(0), NR_PAGES);

	for (op = 0; op < NR_OPS; op++) {
		/* Also prepares the VMCBs. */
		set_op(vm, op, 1);
		if (!run(vcpu) || !run(vcpu)) {
			printf("%s_%s: skipped, KVM refuses the memory\n", op_names[op], kind);
			break;
		}

		ns = time_fastest_run(vcpu, op, NR_ITERATIONS);
		floor = time_fastest_run(vcpu, op, 0);
		ns = ns > floor ? ns - floor : 0;
		printf("%s_%s: %lu ns (%lu in %u)\n", op_names[op], kind, ns / NR_ITERATIONS, ns,
		       NR_ITERATIONS);
	}
	if (!strcmp(kind, "memfd"))
		measure_unmapped(vcpu, mem);
	kvm_vm_free(vm);
}

static void measure_huge_page(void)
{
	void *mem = kvm_mmap(2 * SZ_2M, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	void *huge = (void *)round_up((unsigned long)mem, SZ_2M);

	madvise(huge, SZ_2M, MADV_HUGEPAGE);
	measure("huge", huge);
	kvm_munmap(mem, 2 * SZ_2M);
}

static void measure_bare_memory(void)
{
	void *mem = kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (map_physical(mem, NR_PAGES * PAGE_SIZE, bare_memory()))
		measure("bare", mem);
	else
		printf("bare: skipped, " NEEDS_BARE_MEMORY "\n");
	kvm_munmap(mem, NR_PAGES * PAGE_SIZE);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM));
	TEST_REQUIRE(kvm_cpu_has_npt());

	measure("anon", kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1));
	measure_huge_page();
	measure("memfd", kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
				  kvm_memfd_alloc(NR_PAGES * PAGE_SIZE, false)));
	measure_bare_memory();
	return 0;
}
