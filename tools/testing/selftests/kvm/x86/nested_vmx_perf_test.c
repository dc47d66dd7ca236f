// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a VM entry and a VM exit of an L2 cost, by what its L1 hypervisor lets
 * hardware use.
 *
 * A figure is the cycles of the TSC for one entry of an L2 that only executes
 * VMCALL, and its exit: the fewest of some rounds, less the cycles of a round
 * without an entry.  In Bochs, a cycle is an instruction.
 *
 *  vmresume		the rest, with EPT
 *  vmresume_bitmap	with an MSR bitmap
 *  vmresume_apic	with a virtual-APIC page and an APIC-access page
 *  vmresume_evmcs	by an enlightened VMCS, which L1 doesn't change
 *  vmresume_evmcs_bitmap	by one, with an MSR bitmap
 */
#include "apic.h"
#include "hyperv.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "vmx.h"

/* A round is shorter than a tick, so that some round is free of interrupts. */
#define NR_ITERATIONS	8
#define NR_ROUNDS	100

enum {
	WITH_BITMAP	= BIT(0),
	WITH_APIC	= BIT(1),
	WITH_EVMCS	= BIT(2),
};

/* The guest's copies. */
static u64 guest_with, guest_nr;
static u64 vapic_gpa, access_gpa;

/* L2 changes no register, so none is saved.  It stays at this instruction. */
static void __attribute__((naked)) l2_code(void)
{
	asm volatile("vmcall");
}

static void enter_l2(u64 nr)
{
	asm volatile("vmwrite %%rsp, %[host_rsp]\n\t"
		     "lea 2f(%%rip), %%rax\n\t"
		     "vmwrite %%rax, %[host_rip]\n\t"
		     "1: vmresume\n\t"
		     "ud2\n\t"
		     "2: dec %[nr]\n\t"
		     "jnz 1b"
		     : [nr] "+r"(nr)
		     : [host_rsp] "r"((u64)HOST_RSP), [host_rip] "r"((u64)HOST_RIP)
		     : "rax", "memory", "cc");
}

static void enter_l2_by_evmcs(u64 nr)
{
	current_evmcs->hv_clean_fields &= ~(HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_GRP1 |
					    HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_POINTER);
	asm volatile("mov %%rsp, (%[host_rsp])\n\t"
		     "lea 2f(%%rip), %%rax\n\t"
		     "mov %%rax, (%[host_rip])\n\t"
		     "1: vmresume\n\t"
		     "ud2\n\t"
		     "2: dec %[nr]\n\t"
		     "jnz 1b"
		     : [nr] "+r"(nr)
		     : [host_rsp] "r"(&current_evmcs->host_rsp),
		       [host_rip] "r"(&current_evmcs->host_rip)
		     : "rax", "memory", "cc");
}

static void add_controls(u32 cpu_based, u32 secondary)
{
	cpu_based |= CPU_BASED_ACTIVATE_SECONDARY_CONTROLS;
	GUEST_ASSERT(!vmwrite(CPU_BASED_VM_EXEC_CONTROL,
			      vmreadz(CPU_BASED_VM_EXEC_CONTROL) | cpu_based));
	GUEST_ASSERT(!vmwrite(SECONDARY_VM_EXEC_CONTROL,
			      vmreadz(SECONDARY_VM_EXEC_CONTROL) | secondary));
}

static void l1_code(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	bool with_evmcs = guest_with & WITH_EVMCS;

	if (with_evmcs)
		evmcs_prepare_l1(hv, hcall_gpa);
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
	GUEST_ASSERT(with_evmcs ? load_evmcs(hv) : load_vmcs(vmx));
	prepare_vmcs(vmx, l2_code);
	if (guest_with & WITH_BITMAP)
		add_controls(CPU_BASED_USE_MSR_BITMAPS, 0);
	if (guest_with & WITH_APIC) {
		vmwrite(VIRTUAL_APIC_PAGE_ADDR, vapic_gpa);
		vmwrite(APIC_ACCESS_ADDR, access_gpa);
		add_controls(CPU_BASED_TPR_SHADOW, SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES);
	}

	GUEST_ASSERT(!vmlaunch());
	for (;;) {
		GUEST_ASSERT_EQ(vmreadz(VM_EXIT_REASON), EXIT_REASON_VMCALL);
		GUEST_SYNC(0);

		if (!READ_ONCE(guest_nr))
			continue;
		if (with_evmcs)
			enter_l2_by_evmcs(guest_nr);
		else
			enter_l2(guest_nr);
	}
}

static void run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	if (get_ucall(vcpu, &uc) == UCALL_ABORT)
		REPORT_GUEST_ASSERT(uc);
	TEST_ASSERT_EQ(uc.cmd, UCALL_SYNC);
}

/* The first round warms up. */
static u64 count_cycles(struct kvm_vcpu *vcpu, u64 nr)
{
	u64 start, fewest = ~0ULL;
	int i;

	guest_nr = nr;
	sync_global_to_guest(vcpu->vm, guest_nr);
	run(vcpu);
	for (i = 0; i < NR_ROUNDS; i++) {
		start = rdtsc();
		run(vcpu);
		fewest = min(fewest, rdtsc() - start);
	}

	return fewest;
}

static void measure(const char *name, u64 with)
{
	gva_t vmx_gva, hv_gva, hcall_gva;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u64 cycles, floor;

	vm = vm_create_with_one_vcpu(&vcpu, l1_code);
	if (kvm_cpu_has_ept())
		vm_enable_ept(vm);
	if (with & WITH_EVMCS) {
		vcpu_set_hv_cpuid(vcpu);
		vcpu_enable_evmcs(vcpu);
	}
	vcpu_alloc_vmx(vm, &vmx_gva);
	vcpu_alloc_hyperv_test_pages(vm, &hv_gva);
	hcall_gva = vm_alloc_page(vm);
	vcpu_args_set(vcpu, 3, vmx_gva, hv_gva, addr_gva2gpa(vm, hcall_gva));
	guest_with = with;
	vapic_gpa = addr_gva2gpa(vm, vm_alloc_page(vm));
	access_gpa = addr_gva2gpa(vm, vm_alloc_page(vm));
	sync_global_to_guest(vm, guest_with);
	sync_global_to_guest(vm, vapic_gpa);
	sync_global_to_guest(vm, access_gpa);
	if (kvm_cpu_has_ept())
		tdp_identity_map_default_memslots(vm);

	run(vcpu);
	cycles = count_cycles(vcpu, NR_ITERATIONS);
	floor = count_cycles(vcpu, 0);
	cycles = cycles > floor ? cycles - floor : 0;
	printf("%s: %lu cycles (%lu in %u)\n", name, cycles / NR_ITERATIONS, cycles,
	       NR_ITERATIONS);
	kvm_vm_free(vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX));

	measure("vmresume", 0);
	measure("vmresume_bitmap", WITH_BITMAP);
	measure("vmresume_apic", WITH_APIC);
	if (kvm_has_cap(KVM_CAP_HYPERV_ENLIGHTENED_VMCS)) {
		measure("vmresume_evmcs", WITH_EVMCS);
		measure("vmresume_evmcs_bitmap", WITH_EVMCS | WITH_BITMAP);
	}
	return 0;
}
