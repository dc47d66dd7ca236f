// SPDX-License-Identifier: GPL-2.0-only
/*
 * The enlightened VMCS, eVMCS, of an L1 hypervisor in memory that changes, and
 * in memory of different kinds.  L1, L2 and the VMM must see the same memory,
 * whatever the VMM does to it while L2 runs.
 *
 * For KVM_BARE_MEMORY, see nested_memory.h.
 */

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "nested_memory.h"
#include "apic.h"
#include "processor.h"
#include "test_task.h"
#include "test_util.h"
#include "uffd_page.h"

#include "hyperv.h"
#include "vmx.h"

#define SLOT		10
#define EVMCS_GPA	0xc0000000ULL
/* Two eVMCSs. */
#define NR_PAGES	2
#define SIZE		(NR_PAGES * PAGE_SIZE)

/* The VMM is called before L1 enters L2. */
#define ENTRY_PORT	0xe

/* What the VMM is told. */
enum { L1_READY, IN_L2, IN_L2_ELSEWHERE, FLUSHED, L1_EXIT, L1_READ };

/* No exit reason. */
#define UNTOUCHED	0xa5a5

/* Entries of L2 with a thread that changes the clean fields. */
#define NR_RACES	300

static void vmcall_from_l2(void)
{
	/* L1 does not preserve registers. */
	asm volatile("push %%rbp\n\t"
		     "vmcall\n\t"
		     "pop %%rbp"
		     : : "a"(0xdeadbeef), "c"(0xbeefdead)
		     : "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
		       "r15", "memory");
}

static void l2_code(void)
{
	for (;;) {
		GUEST_SYNC(IN_L2);
		vmcall_from_l2();
	}
}

static void l2_code_elsewhere(void)
{
	for (;;) {
		GUEST_SYNC(IN_L2_ELSEWHERE);
		vmcall_from_l2();
	}
}

static void l2_code_with_cr0(void)
{
	for (;;) {
		GUEST_SYNC_ARGS(IN_L2, get_cr0(), 0, 0, 0);
		vmcall_from_l2();
	}
}

static void l2_code_with_flush(void)
{
	u64 status;

	GUEST_SYNC(IN_L2);
	__hyperv_hypercall(HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE | HV_HYPERCALL_FAST_BIT, 0,
			   HV_FLUSH_ALL_VIRTUAL_ADDRESS_SPACES | HV_FLUSH_ALL_PROCESSORS, &status);
	GUEST_SYNC(FLUSHED);
}

/* Enter L2 without access to the eVMCS after the VMM was called. */
#define enter_after_call(insn)								\
({											\
	asm volatile("push %%rbp\n\t"							\
		     "mov %%rsp, (%0)\n\t"						\
		     "lea 1f(%%rip), %%rax\n\t"						\
		     "mov %%rax, (%1)\n\t"						\
		     "out %%al, $" __stringify(ENTRY_PORT) "\n\t"			\
		     insn "\n\t"							\
		     "ud2\n\t"								\
		     "1: pop %%rbp"							\
		     : : "b"(&current_evmcs->host_rsp), "c"(&current_evmcs->host_rip)	\
		     : "rax", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",	\
		       "r13", "r14", "r15", "memory", "cc");				\
})

static void resume_after_call(void)
{
	current_evmcs->hv_clean_fields &= ~(HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_GRP1 |
					    HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_POINTER);
	enter_after_call("vmresume");
}

static void l1_begin(struct vmx_pages *vmx, struct hyperv_test_pages *hv, void *l2)
{
	GUEST_ASSERT(load_evmcs(hv));
	prepare_vmcs(vmx, l2);
}

static void l1_setup(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	evmcs_prepare_l1(hv, hcall_gpa);
	GUEST_ASSERT(prepare_for_vmx_operation(vmx));
}

static void l1_code(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	l1_setup(vmx, hv, hcall_gpa);
	l1_begin(vmx, hv, l2_code);
	GUEST_SYNC(L1_READY);

	GUEST_ASSERT(!vmlaunch());
	for (;;) {
		/* Before L1 writes to the eVMCS. */
		GUEST_SYNC_ARGS(L1_EXIT, current_evmcs->vm_exit_reason, 0, 0, 0);
		GUEST_ASSERT_EQ(current_evmcs->vm_exit_reason, EXIT_REASON_VMCALL);
		current_evmcs->guest_rip += 3;
		current_evmcs->vm_exit_reason = UNTOUCHED;
		resume_after_call();
	}
}

static void l1_code_called_before_launch(struct vmx_pages *vmx, struct hyperv_test_pages *hv,
					 u64 hcall_gpa)
{
	l1_setup(vmx, hv, hcall_gpa);
	l1_begin(vmx, hv, l2_code);
	current_evmcs->hv_clean_fields = 0;
	enter_after_call("vmlaunch");
}

FIXTURE(nested_evmcs_pages) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct hv_enlightened_vmcs *evmcs;
	struct hyperv_test_pages *hv;
	u8 *mem;
};

FIXTURE_SETUP(nested_evmcs_pages)
{
	gva_t vmx_gva, hv_gva, hcall_gva;

	self->vm = vm_create_with_one_vcpu(&self->vcpu, l1_code);
	vcpu_set_hv_cpuid(self->vcpu);
	vcpu_enable_evmcs(self->vcpu);

	vcpu_alloc_vmx(self->vm, &vmx_gva);
	self->hv = vcpu_alloc_hyperv_test_pages(self->vm, &hv_gva);
	hcall_gva = vm_alloc_page(self->vm);
	vcpu_args_set(self->vcpu, 3, vmx_gva, hv_gva, addr_gva2gpa(self->vm, hcall_gva));
	vcpu_set_msr(self->vcpu, HV_X64_MSR_VP_INDEX, self->vcpu->id);

	self->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	self->evmcs = (void *)self->mem;
	vm_set_user_memory_region(self->vm, SLOT, 0, EVMCS_GPA, SIZE, self->mem);
	virt_map(self->vm, EVMCS_GPA, EVMCS_GPA, NR_PAGES);
	self->hv->enlightened_vmcs_gpa = EVMCS_GPA;
	self->hv->enlightened_vmcs = (void *)EVMCS_GPA;
}

FIXTURE_TEARDOWN(nested_evmcs_pages)
{
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, SIZE);
}

static u64 sync_of(struct kvm_vcpu *vcpu, struct ucall *uc)
{
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	switch (get_ucall(vcpu, uc)) {
	case UCALL_SYNC:
		return uc->args[1];
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(*uc);
	default:
		TEST_FAIL("Unexpected ucall %lu", uc->cmd);
	}
}

static u64 run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	return sync_of(vcpu, &uc);
}

/* Return what L1 sees as the exit reason. */
static u64 run_to_l1(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(sync_of(vcpu, &uc), L1_EXIT);
	return uc.args[2];
}

/* Return what L2 sees as CR0. */
static u64 run_to_l2(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_EQ(sync_of(vcpu, &uc), IN_L2);
	return uc.args[2];
}

/* What the vCPU executes next is VMRESUME or VMLAUNCH. */
static void run_to_entry(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, ENTRY_PORT);
}

static void start_l2(struct kvm_vcpu *vcpu)
{
	TEST_ASSERT_EQ(run(vcpu), L1_READY);
	TEST_ASSERT_EQ(run(vcpu), IN_L2);
	TEST_ASSERT_EQ(run_to_l1(vcpu), EXIT_REASON_VMCALL);
	run_to_entry(vcpu);
	TEST_ASSERT_EQ(run(vcpu), IN_L2);
}

static void remove_slot(struct kvm_vm *vm, u8 *mem)
{
	vm_set_user_memory_region(vm, SLOT, 0, EVMCS_GPA, 0, mem);
}

static void set_slot(struct kvm_vm *vm, u32 flags, u8 *mem)
{
	vm_set_user_memory_region(vm, SLOT, flags, EVMCS_GPA, SIZE, mem);
}

/* L2 exits to L1 with another page than before at the eVMCS's address. */
static void expect_exit(struct kvm_vcpu *vcpu, struct hv_enlightened_vmcs *evmcs)
{
	TEST_ASSERT_EQ(run_to_l1(vcpu), EXIT_REASON_VMCALL);
	TEST_ASSERT_EQ(evmcs->vm_exit_reason, EXIT_REASON_VMCALL);

	/* VMRESUME reads the same page. */
	run_to_entry(vcpu);
	evmcs->guest_rip = (u64)l2_code_elsewhere;
	TEST_ASSERT_EQ(run(vcpu), IN_L2_ELSEWHERE);
	TEST_ASSERT_EQ(run_to_l1(vcpu), EXIT_REASON_VMCALL);
}

TEST_F(nested_evmcs_pages, in_other_memory)
{
	u8 *other = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u8 copy[PAGE_SIZE];

	start_l2(self->vcpu);
	memcpy(copy, self->mem, PAGE_SIZE);
	memcpy(other, self->mem, SIZE);
	remove_slot(self->vm, self->mem);
	set_slot(self->vm, 0, other);

	expect_exit(self->vcpu, (void *)other);
	EXPECT_EQ(memcmp(copy, self->mem, PAGE_SIZE), 0);
	kvm_munmap(other, SIZE);
}

TEST_F(nested_evmcs_pages, mapped_over)
{
	u8 copy[PAGE_SIZE];

	start_l2(self->vcpu);
	memcpy(copy, self->mem, PAGE_SIZE);
	map_anonymous(self->mem, SIZE);
	memcpy(self->mem, copy, PAGE_SIZE);

	expect_exit(self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, dropped)
{
	start_l2(self->vcpu);
	renew_page(self->mem);

	expect_exit(self->vcpu, self->evmcs);
}

/* While L1 runs, KVM must not keep what was in the eVMCS. */
TEST_F(nested_evmcs_pages, dropped_in_l1)
{
	start_l2(self->vcpu);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	run_to_entry(self->vcpu);
	renew_page(self->mem);
	self->evmcs->guest_rip = (u64)l2_code_elsewhere;

	EXPECT_EQ(run(self->vcpu), IN_L2_ELSEWHERE);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
}

TEST_F(nested_evmcs_pages, moves)
{
	int node;

	if (!has_two_nodes())
		SKIP(return, "needs two nodes");

	start_l2(self->vcpu);
	for (node = 0; node < 2; node++)
		EXPECT_EQ(move_to_node(self->mem, node), node);

	expect_exit(self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, is_logged)
{
	unsigned long bitmap = 0;

	start_l2(self->vcpu);
	set_slot(self->vm, KVM_MEM_LOG_DIRTY_PAGES, self->mem);

	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	EXPECT_EQ(self->evmcs->hv_clean_fields, HV_VMX_ENLIGHTENED_CLEAN_FIELD_ALL);
	kvm_vm_get_dirty_log(self->vm, SLOT, &bitmap);
	EXPECT_EQ(bitmap, BIT(0));

	/* VMRESUME marks the fields clean. */
	run_to_entry(self->vcpu);
	kvm_vm_get_dirty_log(self->vm, SLOT, &bitmap);
	EXPECT_EQ(bitmap, BIT(0));
	EXPECT_NE(self->evmcs->hv_clean_fields, HV_VMX_ENLIGHTENED_CLEAN_FIELD_ALL);
	EXPECT_EQ(run(self->vcpu), IN_L2);
	EXPECT_EQ(self->evmcs->hv_clean_fields, HV_VMX_ENLIGHTENED_CLEAN_FIELD_ALL);
	kvm_vm_get_dirty_log(self->vm, SLOT, &bitmap);
	EXPECT_EQ(bitmap, BIT(0));
}

TEST_F(nested_evmcs_pages, bare)
{
	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	memset(self->mem, 0, SIZE);
	start_l2(self->vcpu);
	expect_exit(self->vcpu, self->evmcs);
}

/* The mapping must not outlive the pages. */
TEST_F(nested_evmcs_pages, bare_unmapped)
{
	u8 copy[PAGE_SIZE];

	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	memset(self->mem, 0, SIZE);
	start_l2(self->vcpu);
	memcpy(copy, self->mem, PAGE_SIZE);
	map_anonymous(self->mem, SIZE);
	memcpy(self->mem, copy, PAGE_SIZE);
	expect_exit(self->vcpu, self->evmcs);

	TEST_ASSERT(map_physical(self->mem, SIZE, bare_memory()), "errno %d", errno);
	EXPECT_EQ(memcmp(copy, self->mem, PAGE_SIZE), 0);
}

static void expect_no_memory(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_INTERNAL_ERROR);
	TEST_ASSERT_EQ(vcpu->run->internal.suberror, KVM_INTERNAL_ERROR_EMULATION);
}

/* Nothing is lost while there is no memslot. */
TEST_F(nested_evmcs_pages, no_memslot_at_exit)
{
	start_l2(self->vcpu);
	remove_slot(self->vm, self->mem);
	expect_no_memory(self->vcpu);
	expect_no_memory(self->vcpu);

	set_slot(self->vm, 0, self->mem);
	EXPECT_EQ(self->evmcs->vm_exit_reason, UNTOUCHED);
	expect_exit(self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, no_memslot_at_entry)
{
	start_l2(self->vcpu);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	run_to_entry(self->vcpu);

	remove_slot(self->vm, self->mem);
	expect_no_memory(self->vcpu);
	expect_no_memory(self->vcpu);

	set_slot(self->vm, 0, self->mem);
	self->evmcs->guest_rip = (u64)l2_code_elsewhere;
	EXPECT_EQ(run(self->vcpu), IN_L2_ELSEWHERE);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
}

static void l1_code_with_flush(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	l1_setup(vmx, hv, hcall_gpa);
	l1_begin(vmx, hv, l2_code_with_flush);
	current_evmcs->partition_assist_page = hv->partition_assist_gpa;
	current_evmcs->hv_vm_id = 1;
	current_evmcs->hv_vp_id = 1;
	current_vp_assist->nested_control.features.directhypercall = 1;
	*(u32 *)hv->partition_assist = 0;
	GUEST_SYNC(L1_READY);

	GUEST_ASSERT(!vmlaunch());
	GUEST_SYNC_ARGS(L1_EXIT, current_evmcs->vm_exit_reason, 0, 0, 0);
}

/* What L1 changes in the eVMCS while L2 runs is for the next entry. */
TEST_F(nested_evmcs_pages, is_read_at_entry)
{
	TEST_REQUIRE(kvm_hv_cpu_has(HV_X64_NESTED_DIRECT_FLUSH));

	vcpu_arch_set_entry_point(self->vcpu, l1_code_with_flush);
	EXPECT_EQ(run(self->vcpu), L1_READY);
	EXPECT_EQ(run(self->vcpu), IN_L2);

	self->evmcs->hv_enlightenments_control.nested_flush_hypercall = 1;
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
}

static void l1_code_in_turn(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	u64 i;

	l1_setup(vmx, hv, hcall_gpa);
	for (i = 0; ; i++) {
		hv->enlightened_vmcs_gpa = EVMCS_GPA + i % NR_PAGES * PAGE_SIZE;
		hv->enlightened_vmcs = (void *)hv->enlightened_vmcs_gpa;
		l1_begin(vmx, hv, i % NR_PAGES ? l2_code_elsewhere : l2_code);
		current_evmcs->vm_exit_reason = UNTOUCHED;
		GUEST_ASSERT(!vmlaunch());
		GUEST_SYNC_ARGS(L1_EXIT, current_evmcs->vm_exit_reason, 0, 0, 0);
	}
}

TEST_F(nested_evmcs_pages, in_turn)
{
	struct hv_enlightened_vmcs *evmcs;
	int i;

	vcpu_arch_set_entry_point(self->vcpu, l1_code_in_turn);
	for (i = 0; i < 4 * NR_PAGES; i++) {
		evmcs = (void *)self->mem + i % NR_PAGES * PAGE_SIZE;
		EXPECT_EQ(run(self->vcpu), i % NR_PAGES ? IN_L2_ELSEWHERE : IN_L2);
		if (i / NR_PAGES % 2)
			renew_page(evmcs);
		EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
		EXPECT_EQ(evmcs->vm_exit_reason, EXIT_REASON_VMCALL);
	}
}

static void l1_code_with_vmread(struct vmx_pages *vmx, struct hyperv_test_pages *hv, u64 hcall_gpa)
{
	u64 value;

	l1_setup(vmx, hv, hcall_gpa);
	l1_begin(vmx, hv, l2_code);
	GUEST_ASSERT(!vmlaunch());

	for (;;) {
		asm volatile("vmread %1, %0" : "=r"(value) : "r"((u64)GUEST_RIP) : "cc");
		GUEST_SYNC_ARGS(L1_READ, value, 0, 0, 0);
	}
}

/* VMREAD is of the eVMCS as it is. */
TEST_F(nested_evmcs_pages, vmread)
{
	struct ucall uc;
	u64 rip;

	vcpu_arch_set_entry_point(self->vcpu, l1_code_with_vmread);
	EXPECT_EQ(run(self->vcpu), IN_L2);
	for (rip = 0x1000; rip <= 0x3000; rip += 0x1000) {
		vcpu_run(self->vcpu);
		EXPECT_EQ(sync_of(self->vcpu, &uc), L1_READ);
		EXPECT_EQ(uc.args[2], self->evmcs->guest_rip);

		kvm_madvise(self->mem, PAGE_SIZE, MADV_DONTNEED);
		self->evmcs->guest_rip = rip;
	}
}

/* L2 sees CR0's read shadow, a field of the group CRDR, as CR0. */
static void start_l2_with_cr0(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			      struct hv_enlightened_vmcs *evmcs)
{
	EXPECT_EQ(run(vcpu), L1_READY);
	evmcs->guest_rip = (u64)l2_code_with_cr0;
	evmcs->cr0_guest_host_mask = -1ull;
	evmcs->cr0_read_shadow = 0x1000;
	EXPECT_EQ(run_to_l2(vcpu), 0x1000);
}

/* What another vCPU of L1 marks dirty while L2 runs is for the next entry. */
static void expect_change_in_l2(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				struct hv_enlightened_vmcs *evmcs)
{
	u32 clean_fields = evmcs->hv_clean_fields & ~HV_VMX_ENLIGHTENED_CLEAN_FIELD_CRDR;

	evmcs->cr0_read_shadow = 0x2000;
	evmcs->hv_clean_fields = clean_fields;
	EXPECT_EQ(run_to_l1(vcpu), EXIT_REASON_VMCALL);
	EXPECT_EQ(evmcs->hv_clean_fields, clean_fields);

	run_to_entry(vcpu);
	EXPECT_EQ(run_to_l2(vcpu), 0x2000);
}

/* VMLAUNCH reads all groups, so this one was dirty for the entry. */
TEST_F(nested_evmcs_pages, clean_fields_changed_after_launch)
{
	start_l2_with_cr0(_metadata, self->vcpu, self->evmcs);
	expect_change_in_l2(_metadata, self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, clean_fields_changed_in_l2)
{
	start_l2_with_cr0(_metadata, self->vcpu, self->evmcs);

	/* An entry for which the group is clean. */
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	run_to_entry(self->vcpu);
	EXPECT_EQ(run_to_l2(self->vcpu), 0x1000);

	expect_change_in_l2(_metadata, self->vcpu, self->evmcs);
}

/* A field of GUEST_GRP1 and one of GUEST_GRP2. */
static void set_guest_fields(struct hv_enlightened_vmcs *evmcs, u64 value)
{
	evmcs->guest_sysenter_esp = value;
	evmcs->guest_fs_base = value;
}

/* As they are in vmcs02, and one of them as it is in vmcs12. */
struct guest_fields {
	u64 sysenter_esp;
	u64 fs_base;
	u64 vmcs12_sysenter_esp;
};

/*
 * An exit does not save IA32_SYSENTER_ESP, as KVM updates vmcs12 when L2 writes
 * to the MSR: L1 gets back what was copied to vmcs12 at the entry.
 */
static struct guest_fields run_to_l1_with_fields(struct kvm_vcpu *vcpu,
						 struct hv_enlightened_vmcs *evmcs)
{
	struct guest_fields fields = {
		.sysenter_esp = vcpu_get_msr(vcpu, MSR_IA32_SYSENTER_ESP),
		.fs_base = vcpu_get_msr(vcpu, MSR_FS_BASE),
	};

	TEST_ASSERT_EQ(run_to_l1(vcpu), EXIT_REASON_VMCALL);
	fields.vmcs12_sysenter_esp = evmcs->guest_sysenter_esp;
	return fields;
}

/* KVM reads the MSR bitmap between copying to vmcs12 and writing vmcs02. */
TEST_F(nested_evmcs_pages, clean_fields_changed_at_entry)
{
	u8 *bitmap = self->mem + PAGE_SIZE;
	struct guest_fields fields;
	struct test_task task;
	struct ucall uc;
	int uffd;

	start_l2(self->vcpu);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	run_to_entry(self->vcpu);
	self->evmcs->msr_bitmap = EVMCS_GPA + PAGE_SIZE;
	self->evmcs->cpu_based_vm_exec_control |= CPU_BASED_USE_MSR_BITMAPS;
	set_guest_fields(self->evmcs, 0x1000);
	self->evmcs->hv_clean_fields = 0;

	uffd = uffd_page_take(bitmap);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	uffd_page_await(uffd, bitmap);
	self->evmcs->hv_clean_fields = HV_VMX_ENLIGHTENED_CLEAN_FIELD_ALL;
	uffd_page_bring(uffd, bitmap);
	close(uffd);
	test_task_join(&task);
	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(sync_of(self->vcpu, &uc), IN_L2);

	fields = run_to_l1_with_fields(self->vcpu, self->evmcs);
	EXPECT_EQ(fields.sysenter_esp, fields.vmcs12_sysenter_esp);
	EXPECT_EQ(fields.fs_base, fields.vmcs12_sysenter_esp);
}

struct flipper {
	struct hv_enlightened_vmcs *evmcs;
	bool stop;
};

/*
 * All groups at once, as fields of different groups are compared.  The host's
 * are left to L1, which changes their fields before each entry.
 */
static long flip_clean_fields(void *arg)
{
	const u32 guest_groups = HV_VMX_ENLIGHTENED_CLEAN_FIELD_ALL &
				 ~(HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_GRP1 |
				   HV_VMX_ENLIGHTENED_CLEAN_FIELD_HOST_POINTER);
	struct flipper *flipper = arg;

	/* At random: CPUs that are emulated in turn could be in step. */
	while (!READ_ONCE(flipper->stop))
		WRITE_ONCE(flipper->evmcs->hv_clean_fields,
			   kvm_random_bool(&kvm_rng) ? guest_groups : 0);

	return 0;
}

static bool fields_agree(struct guest_fields *fields)
{
	return fields->sysenter_esp == fields->vmcs12_sysenter_esp &&
	       fields->fs_base == fields->vmcs12_sysenter_esp;
}

/* Clean or dirty, a group must be the same for vmcs12 and for vmcs02. */
TEST_F(nested_evmcs_pages, clean_fields_race)
{
	struct flipper flipper = { .evmcs = self->evmcs };
	struct guest_fields fields;
	struct test_task task;
	int i;

	start_l2(self->vcpu);
	vcpu_set_msr(self->vcpu, MSR_IA32_SYSENTER_ESP, 0);
	vcpu_set_msr(self->vcpu, MSR_FS_BASE, 0);
	fields = run_to_l1_with_fields(self->vcpu, self->evmcs);

	test_task_start(&task, flip_clean_fields, &flipper);
	for (i = 1; i <= NR_RACES && fields_agree(&fields); i++) {
		run_to_entry(self->vcpu);
		set_guest_fields(self->evmcs, i);
		TEST_ASSERT_EQ(run(self->vcpu), IN_L2);
		fields = run_to_l1_with_fields(self->vcpu, self->evmcs);
	}
	WRITE_ONCE(flipper.stop, true);
	test_task_join(&task);

	EXPECT_EQ(fields.sysenter_esp, fields.vmcs12_sysenter_esp);
	EXPECT_EQ(fields.fs_base, fields.vmcs12_sysenter_esp);
}

/* Until a signal ends KVM_RUN, it waits for the page. */
static void run_until_signal(struct kvm_vcpu *vcpu, void *page)
{
	struct test_task task;
	u8 copy[PAGE_SIZE];
	int uffd;

	memcpy(copy, page, PAGE_SIZE);
	uffd = uffd_page_take(page);
	test_task_start(&task, test_task_vcpu_run, vcpu);
	uffd_page_await(uffd, page);
	test_task_interrupt(&task);
	test_task_join(&task);
	TEST_ASSERT_EQ(task.ret, -1);
	TEST_ASSERT_EQ(task.err, EINTR);

	uffd_page_bring(uffd, page);
	close(uffd);
	memcpy(page, copy, PAGE_SIZE);
}

TEST_F(nested_evmcs_pages, signal_at_exit)
{
	start_l2(self->vcpu);
	run_until_signal(self->vcpu, self->mem);
	expect_exit(self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, signal_at_entry)
{
	start_l2(self->vcpu);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	run_to_entry(self->vcpu);
	run_until_signal(self->vcpu, self->mem);
	EXPECT_EQ(run(self->vcpu), IN_L2);
}

/*
 * VMLAUNCH is the first entry: L1 has accessed the eVMCS before it exits to the
 * VMM.
 */
TEST_F(nested_evmcs_pages, signal_at_first_entry)
{
	vcpu_arch_set_entry_point(self->vcpu, l1_code_called_before_launch);
	run_to_entry(self->vcpu);
	run_until_signal(self->vcpu, self->mem);
	EXPECT_EQ(run(self->vcpu), IN_L2);
}

/* Save the state, and restore it in a VM without that memslot. */
static struct kvm_vcpu *restore(struct kvm_vcpu *vcpu)
{
	struct kvm_vm *vm = vcpu->vm;
	struct kvm_x86_state *state;

	state = vcpu_save_state(vcpu);
	kvm_vm_release(vm);

	vcpu = vm_recreate_with_one_vcpu(vm);
	vcpu_set_hv_cpuid(vcpu);
	vcpu_enable_evmcs(vcpu);
	vcpu_load_state(vcpu, state);
	kvm_x86_state_cleanup(state);
	return vcpu;
}

static struct kvm_vcpu *restore_in_l2(struct kvm_vcpu *vcpu)
{
	start_l2(vcpu);
	return restore(vcpu);
}

/* Restored state can be saved again while the eVMCS has no memory. */
TEST_F(nested_evmcs_pages, saved_again_in_l1)
{
	start_l2(self->vcpu);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
	self->vcpu = restore(self->vcpu);
	self->vcpu = restore(self->vcpu);
	expect_no_memory(self->vcpu);
	self->vcpu = restore(self->vcpu);
	set_slot(self->vm, 0, self->mem);

	run_to_entry(self->vcpu);
	EXPECT_EQ(self->evmcs->guest_cr4, self->evmcs->host_cr4);
	EXPECT_EQ(run(self->vcpu), IN_L2);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_VMCALL);
}

TEST_F(nested_evmcs_pages, saved_in_l2)
{
	self->vcpu = restore_in_l2(self->vcpu);
	renew_page(self->mem);
	set_slot(self->vm, 0, self->mem);

	expect_exit(self->vcpu, self->evmcs);
}

TEST_F(nested_evmcs_pages, saved_in_l2_without_memory)
{
	self->vcpu = restore_in_l2(self->vcpu);

	expect_no_memory(self->vcpu);
	expect_no_memory(self->vcpu);
	set_slot(self->vm, 0, self->mem);

	expect_exit(self->vcpu, self->evmcs);
}

static void send_init(struct kvm_vm *vm)
{
	struct kvm_msi msi = {
		.address_lo = APIC_DEFAULT_GPA,
		.data = APIC_DM_INIT,
	};

	TEST_ASSERT_EQ(__vm_ioctl(vm, KVM_SIGNAL_MSI, &msi), 1);
}

/* L2 exits to L1 before it has run, and before the eVMCS has memory. */
TEST_F(nested_evmcs_pages, exit_before_memory)
{
	struct kvm_mp_state state;

	self->vcpu = restore_in_l2(self->vcpu);
	send_init(self->vm);
	vcpu_mp_state_get(self->vcpu, &state);
	expect_no_memory(self->vcpu);

	set_slot(self->vm, 0, self->mem);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_INIT_SIGNAL);
	EXPECT_EQ(self->evmcs->vm_exit_reason, EXIT_REASON_INIT_SIGNAL);
}

/* L2 is halted, so that KVM looks for its events first. */
TEST_F(nested_evmcs_pages, signal_at_exit_from_halt)
{
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_HALTED };

	self->vcpu = restore_in_l2(self->vcpu);
	set_slot(self->vm, 0, self->mem);
	vcpu_mp_state_set(self->vcpu, &state);
	send_init(self->vm);

	run_until_signal(self->vcpu, self->mem);
	EXPECT_EQ(run_to_l1(self->vcpu), EXIT_REASON_INIT_SIGNAL);
	EXPECT_EQ(self->evmcs->vm_exit_reason, EXIT_REASON_INIT_SIGNAL);
}

static long release_vm(void *vm)
{
	kvm_vm_release(vm);
	return 0;
}

/* There is no L1 any more that could see the eVMCS. */
TEST_F(nested_evmcs_pages, destroyed_in_l2_without_page)
{
	struct test_task task;
	bool ended;
	int uffd;

	self->vcpu = restore_in_l2(self->vcpu);
	set_slot(self->vm, 0, self->mem);
	uffd = uffd_page_take(self->mem);

	test_task_start(&task, release_vm, self->vm);
	ended = test_task_join_in_time(&task);
	EXPECT_TRUE(ended);

	uffd_page_bring(uffd, self->mem);
	if (!ended)
		test_task_join(&task);
	close(uffd);
	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_NESTED_STATE));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_HYPERV_ENLIGHTENED_VMCS));

	return test_harness_run(argc, argv);
}
