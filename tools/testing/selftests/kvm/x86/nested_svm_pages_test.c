// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages of an L1 hypervisor that KVM reads and writes for nested SVM, i.e.
 * VMCBs and the host save area: in memory of different kinds.  KVM must write
 * to nothing but what an instruction owns, and only if the instruction writes.
 * If the processor virtualizes VMLOAD and VMSAVE, kvm_amd.vls=0 has KVM emulate
 * them.
 */
#include <fcntl.h>
#include <linux/sizes.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "nested_memory.h"
#include "processor.h"
#include "smm.h"
#include "svm_util.h"
#include "test_task.h"
#include "test_util.h"
#include "uffd_page.h"

/* A page for the VMCB under test, one for the host save area, and another. */
#define SLOT		10
#define VMCB_GPA	0xc0000000ULL
#define HSAVE_GPA	(VMCB_GPA + PAGE_SIZE)
#define NR_PAGES	3
#define SIZE		(NR_PAGES * PAGE_SIZE)

#define SMRAM_GPA	0x1000000
#define SMI_PORT	0xe
/* Of the address of vmcb12, in SMRAM. */
#define SMRAM_VMCB_OFFSET	0xfee0
#define UNTOUCHED	0xa5

/* What the guest and the VMM give the other to load. */
#define SAVED		0x1111000ULL
#define LOADED		0x2222000ULL
#define OTHER		0x3333000ULL

enum { SAVE, LOAD };

/* What L1 does next.  The guest's copy. */
static u64 op;

static void l1_code(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SVME);

	for (;;) {
		if (READ_ONCE(op) == SAVE) {
			wrmsr(MSR_KERNEL_GS_BASE, SAVED);
			asm volatile("vmsave %0" : : "a"(VMCB_GPA) : "memory");
		} else {
			asm volatile("vmload %0" : : "a"(VMCB_GPA) : "memory");
		}
		GUEST_SYNC(rdmsr(MSR_KERNEL_GS_BASE));
	}
}

FIXTURE(nested_svm_pages) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct vmcb *vmcb;
	u8 *mem;
};

FIXTURE_SETUP(nested_svm_pages)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, l1_code);
	self->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	self->vmcb = (void *)self->mem;
	memset(self->mem, UNTOUCHED, SIZE);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	virt_map(self->vm, VMCB_GPA, VMCB_GPA, NR_PAGES);
}

/* Whether KVM emulates VMLOAD and VMSAVE. */
static bool emulates_vmload(void)
{
	return !get_kvm_amd_param_integer("vls");
}

FIXTURE_TEARDOWN(nested_svm_pages)
{
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, SIZE);
}

static u64 run(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		return uc.args[1];
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
	default:
		TEST_FAIL("Unexpected ucall %lu", uc.cmd);
	}
}

static u64 run_op(struct kvm_vcpu *vcpu, u64 what)
{
	op = what;
	sync_global_to_guest(vcpu->vm, op);
	return run(vcpu);
}

/* With memory of the slot that VMSAVE has filled. */
static void save_and_change(struct kvm_vcpu *vcpu, struct vmcb *vmcb)
{
	TEST_ASSERT_EQ(run_op(vcpu, SAVE), SAVED);
	TEST_ASSERT_EQ(vmcb->save.kernel_gs_base, SAVED);
	vmcb->save.kernel_gs_base = LOADED;
}

static void set_slot(struct kvm_vm *vm, u32 flags, u8 *mem)
{
	vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA, 0, mem);
	vm_set_user_memory_region(vm, SLOT, flags, VMCB_GPA, SIZE, mem);
}

static bool is_dirty(struct kvm_vm *vm, int page)
{
	unsigned long bitmap = 0;

	kvm_vm_get_dirty_log(vm, SLOT, &bitmap);
	return bitmap & BIT(page);
}

/* Fill what VMLOAD and VMSAVE own with the pattern of what they don't. */
static void forget_vmloadsave(struct vmcb_save_area *save)
{
	memset(&save->fs, UNTOUCHED, sizeof(save->fs));
	memset(&save->gs, UNTOUCHED, sizeof(save->gs));
	memset(&save->ldtr, UNTOUCHED, sizeof(save->ldtr));
	memset(&save->tr, UNTOUCHED, sizeof(save->tr));
	/* To sysenter_eip. */
	memset(&save->star, UNTOUCHED, offsetof(struct vmcb_save_area, cr2) -
				       offsetof(struct vmcb_save_area, star));
}

static int nr_touched(const u8 *mem, size_t size)
{
	int i, nr = 0;

	for (i = 0; i < size; i++)
		nr += mem[i] != UNTOUCHED;
	return nr;
}

TEST_F(nested_svm_pages, vmsave_fields)
{
	struct vmcb_save_area *save = &self->vmcb->save;

	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	EXPECT_EQ(run_op(self->vcpu, SAVE), SAVED);
	EXPECT_EQ(save->kernel_gs_base, SAVED);
	EXPECT_LT(0, nr_touched((u8 *)&save->fs, sizeof(save->fs)));
	EXPECT_LT(0, nr_touched((u8 *)&save->gs, sizeof(save->gs)));
	EXPECT_LT(0, nr_touched((u8 *)&save->ldtr, sizeof(save->ldtr)));
	EXPECT_LT(0, nr_touched((u8 *)&save->tr, sizeof(save->tr)));
	EXPECT_LT(0, nr_touched((u8 *)&save->sysenter_eip, sizeof(save->sysenter_eip)));

	forget_vmloadsave(save);
	EXPECT_EQ(nr_touched(self->mem, SIZE), 0);
}

TEST_F(nested_svm_pages, vmload_read_only_memslot)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	save_and_change(self->vcpu, self->vmcb);
	set_slot(self->vm, KVM_MEM_READONLY, self->mem);
	EXPECT_EQ(run_op(self->vcpu, LOAD), LOADED);
}

TEST_F(nested_svm_pages, vmload_is_not_logged)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	save_and_change(self->vcpu, self->vmcb);
	set_slot(self->vm, KVM_MEM_LOG_DIRTY_PAGES, self->mem);

	EXPECT_EQ(run_op(self->vcpu, LOAD), LOADED);
	EXPECT_FALSE(is_dirty(self->vm, 0));
	EXPECT_EQ(run_op(self->vcpu, SAVE), SAVED);
	EXPECT_TRUE(is_dirty(self->vm, 0));
}

/* Bit 56 of an entry of pagemap. */
static bool is_exclusively_mapped(const void *page)
{
	u64 entry;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	TEST_ASSERT(fd >= 0, "open(pagemap): errno %d", errno);
	TEST_ASSERT_EQ(pread(fd, &entry, sizeof(entry), (uintptr_t)page / PAGE_SIZE *
							sizeof(entry)), sizeof(entry));
	close(fd);
	return entry & BIT_ULL(56);
}

TEST_F(nested_svm_pages, vmload_keeps_copy_on_write)
{
	pid_t pid;

	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	save_and_change(self->vcpu, self->vmcb);

	pid = fork();
	TEST_ASSERT(pid >= 0, "fork(): errno %d", errno);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}

	EXPECT_EQ(run_op(self->vcpu, LOAD), LOADED);
	EXPECT_FALSE(is_exclusively_mapped(self->vmcb));
	EXPECT_EQ(run_op(self->vcpu, SAVE), SAVED);
	EXPECT_TRUE(is_exclusively_mapped(self->vmcb));

	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

TEST_F(nested_svm_pages, vmload_no_memslot)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	save_and_change(self->vcpu, self->vmcb);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, 0, self->mem);

	op = LOAD;
	sync_global_to_guest(self->vm, op);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_INTERNAL_ERROR);

	/* The instruction is still to be executed. */
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	EXPECT_EQ(run(self->vcpu), LOADED);
}

TEST_F(nested_svm_pages, vmload_bare)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	save_and_change(self->vcpu, self->vmcb);
	EXPECT_EQ(run_op(self->vcpu, LOAD), LOADED);
}

TEST_F(nested_svm_pages, vmload_hole)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	if (!map_physical(self->mem, SIZE, bare_memory() - SIZE))
		SKIP(return, NEEDS_BARE_MEMORY);

	save_and_change(self->vcpu, self->vmcb);
	EXPECT_EQ(run_op(self->vcpu, LOAD), LOADED);
}

/* L2, with its vmcb12 and L1's host save area in the memory under test */

/* Exits to userspace, in SMM. */
static u8 smi_handler[] = {
	0xe4, SMI_PORT,	/* in $SMI_PORT, %al */
	0x0f, 0xaa,	/* rsm */
};

static void l2_code(void)
{
	GUEST_SYNC(SAVED);
	GUEST_SYNC(LOADED);
	vmmcall();
}

static void l1_code_with_l2(struct svm_test_data *svm)
{
	struct vmcb *vmcb = (void *)VMCB_GPA;
	u64 rsp;
	int i;

	svm->vmcb = vmcb;
	svm->vmcb_gpa = VMCB_GPA;
	svm->save_area_gpa = HSAVE_GPA;
	generic_svm_setup(svm, l2_code);
	rsp = vmcb->save.rsp;

	for (i = 0; i < 2; i++) {
		vmcb->save.rip = (u64)l2_code;
		vmcb->save.rsp = rsp;
		run_guest(vmcb, VMCB_GPA);
		GUEST_ASSERT_EQ(vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	}
	GUEST_SYNC(0);
}

static void start_l1_with_l2(struct kvm_vcpu *vcpu)
{
	gva_t svm_gva;

	vcpu_alloc_svm(vcpu->vm, &svm_gva);
	vcpu_arch_set_entry_point(vcpu, l1_code_with_l2);
	vcpu_args_set(vcpu, 1, svm_gva);
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));
	setup_smram(vcpu->vm, vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	TEST_ASSERT_EQ(run(vcpu), SAVED);
}

/* The next run begins with RSM. */
static void run_to_smm(struct kvm_vcpu *vcpu)
{
	inject_smi(vcpu);
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(vcpu->run->io.port, SMI_PORT);
}

static void run_l2_with_smi(struct kvm_vcpu *vcpu)
{
	run_to_smm(vcpu);
	TEST_ASSERT_EQ(run(vcpu), LOADED);
	TEST_ASSERT_EQ(run(vcpu), SAVED);
	run_to_smm(vcpu);
	TEST_ASSERT_EQ(run(vcpu), LOADED);
	TEST_ASSERT_EQ(run(vcpu), 0);
}

/* SMM keeps L1's state in the host save area, and L1 may have its own there. */
TEST_F(nested_svm_pages, smm_host_save_area)
{
	struct vmcb *hsave = (void *)self->mem + PAGE_SIZE;
	struct vmcb_save_area save;

	start_l1_with_l2(self->vcpu);
	EXPECT_EQ(nr_touched((u8 *)hsave, PAGE_SIZE), 0);

	run_l2_with_smi(self->vcpu);
	EXPECT_LT(0, nr_touched((u8 *)&hsave->save.rip, sizeof(hsave->save.rip)));
	EXPECT_EQ(nr_touched((u8 *)&hsave->control, sizeof(hsave->control)), 0);
	save = hsave->save;
	forget_vmloadsave(&save);
	EXPECT_EQ(memcmp(&save, &hsave->save, sizeof(save)), 0);
	EXPECT_EQ(nr_touched((u8 *)(hsave + 1), PAGE_SIZE - sizeof(*hsave)), 0);
}

TEST_F(nested_svm_pages, smm_host_save_area_is_logged)
{
	start_l1_with_l2(self->vcpu);
	vm_set_user_memory_region(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, VMCB_GPA, SIZE,
				  self->mem);
	EXPECT_FALSE(is_dirty(self->vm, 1));
	run_to_smm(self->vcpu);
	EXPECT_TRUE(is_dirty(self->vm, 1));
	EXPECT_EQ(run(self->vcpu), LOADED);
}

/*
 * VMLOAD and VMSAVE in SMM, which has an address space of its own.  They need
 * paging, by a page directory of 4 MiB pages here.
 */
#define SMM_PAGE_DIRECTORY	(SMRAM_GPA + 0xa000)
/* Present, writable, large. */
#define PDE_4M			0x83

/* Exits to userspace after each instruction under test. */
static void get_vmload_handler(const void **start, const void **end)
{
	asm(".pushsection .rodata\n\t"
	    ".code16\n"
	    "1:\n\t"
	    "mov %[efer], %%ecx\n\t"
	    "rdmsr\n\t"
	    "or %[svme], %%eax\n\t"
	    "wrmsr\n\t"
	    "mov %[cr4], %%eax\n\t"
	    "mov %%eax, %%cr4\n\t"
	    "mov %[cr3], %%eax\n\t"
	    "mov %%eax, %%cr3\n\t"
	    "mov %%cr0, %%eax\n\t"
	    "or %[cr0], %%eax\n\t"
	    "mov %%eax, %%cr0\n\t"
	    "mov %[vmcb], %%eax\n\t"
	    "vmload %%eax\n\t"
	    "mov %[gs_base], %%ecx\n\t"
	    "rdmsr\n\t"
	    "out %%eax, %[port]\n\t"
	    "mov %[saved], %%eax\n\t"
	    "wrmsr\n\t"
	    "mov %[vmcb], %%eax\n\t"
	    "vmsave %%eax\n\t"
	    "out %%eax, %[port]\n\t"
	    "rsm\n"
	    "2:\n\t"
	    ".code64\n\t"
	    ".popsection\n\t"
	    "lea 1b(%%rip), %[start]\n\t"
	    "lea 2b(%%rip), %[end]"
	    : [start]"=r"(*start), [end]"=r"(*end)
	    : [efer]"i"(MSR_EFER), [svme]"i"(EFER_SVME), [cr4]"i"(X86_CR4_PSE),
	      [cr3]"i"(SMM_PAGE_DIRECTORY), [cr0]"i"(X86_CR0_PG | X86_CR0_PE),
	      [vmcb]"i"(VMCB_GPA), [gs_base]"i"(MSR_KERNEL_GS_BASE),
	      [port]"i"(SMI_PORT), [saved]"i"(SAVED));
}

TEST_F(nested_svm_pages, vmload_and_vmsave_in_smm)
{
	struct vmcb *in_smm = (void *)self->mem + PAGE_SIZE;
	const void *start, *end;
	u32 *page_directory;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));
	TEST_REQUIRE(kvm_check_cap(KVM_CAP_MULTI_ADDRESS_SPACE) > 1);

	save_and_change(self->vcpu, self->vmcb);
	*in_smm = *self->vmcb;
	in_smm->save.kernel_gs_base = OTHER;
	vm_set_user_memory_region(self->vm, 1 << 16 | SLOT, 0, VMCB_GPA, PAGE_SIZE, in_smm);

	get_vmload_handler(&start, &end);
	setup_smram(self->vm, self->vcpu, SMRAM_GPA, start, end - start);
	page_directory = addr_gpa2hva(self->vm, SMM_PAGE_DIRECTORY);
	page_directory[SMRAM_GPA / SZ_4M] = SMRAM_GPA | PDE_4M;

	run_to_smm(self->vcpu);
	EXPECT_EQ(*(u32 *)((void *)self->vcpu->run + self->vcpu->run->io.data_offset), OTHER);

	vcpu_run(self->vcpu);
	EXPECT_EQ(in_smm->save.kernel_gs_base, SAVED);
	EXPECT_EQ(self->vmcb->save.kernel_gs_base, LOADED);
}

/* VMRUN and #VMEXIT */

static void l1_code_with_vmrun(struct svm_test_data *svm)
{
	struct vmcb *vmcb = (void *)VMCB_GPA;

	svm->vmcb = vmcb;
	svm->vmcb_gpa = VMCB_GPA;
	generic_svm_setup(svm, l2_code);
	GUEST_SYNC(0);

	/* Unlike run_guest(), this doesn't write to vmcb12. */
	asm volatile("push %%rbp\n\t"
		     "vmrun %0\n\t"
		     "pop %%rbp"
		     : : "a"(VMCB_GPA)
		     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
		       "r14", "r15", "memory");
	GUEST_SYNC(vmcb->control.exit_code);
}

/* L1 is about to execute VMRUN. */
static void start_l1_with_vmrun(struct kvm_vcpu *vcpu)
{
	gva_t svm_gva;

	vcpu_alloc_svm(vcpu->vm, &svm_gva);
	vcpu_arch_set_entry_point(vcpu, l1_code_with_vmrun);
	vcpu_args_set(vcpu, 1, svm_gva);
	TEST_ASSERT_EQ(run(vcpu), 0);
}

/* L2 is about to be left. */
static void start_l2(struct kvm_vcpu *vcpu)
{
	start_l1_with_vmrun(vcpu);
	TEST_ASSERT_EQ(run(vcpu), SAVED);
	TEST_ASSERT_EQ(run(vcpu), LOADED);
}

TEST_F(nested_svm_pages, vmrun_is_not_logged)
{
	start_l1_with_vmrun(self->vcpu);
	vm_set_user_memory_region(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, VMCB_GPA, SIZE,
				  self->mem);
	EXPECT_EQ(run(self->vcpu), SAVED);
	EXPECT_EQ(run(self->vcpu), LOADED);
	EXPECT_FALSE(is_dirty(self->vm, 0));
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_TRUE(is_dirty(self->vm, 0));
}

TEST_F(nested_svm_pages, vmcb12_dropped)
{
	start_l2(self->vcpu);
	kvm_madvise(self->vmcb, PAGE_SIZE, MADV_DONTNEED);

	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_NE(self->vmcb->save.rip, 0);
	EXPECT_EQ(self->vmcb->control.intercept, 0);
}

TEST_F(nested_svm_pages, vmcb12_in_other_memory)
{
	u8 *other = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	u8 copy[PAGE_SIZE];

	start_l2(self->vcpu);
	memcpy(copy, self->mem, PAGE_SIZE);
	memcpy(other, self->mem, SIZE);
	set_slot(self->vm, 0, other);

	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(((struct vmcb *)other)->control.exit_code, SVM_EXIT_VMMCALL);
	EXPECT_EQ(memcmp(copy, self->mem, PAGE_SIZE), 0);
	kvm_munmap(other, SIZE);
}

TEST_F(nested_svm_pages, vmcb12_moves)
{
	int node;

	if (!has_two_nodes())
		SKIP(return, "needs two nodes");

	start_l2(self->vcpu);
	for (node = 0; node < 2; node++)
		EXPECT_EQ(move_to_node(self->mem, node), node);

	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

/* State that is saved in L2, and restored in a VM whose vmcb12 is elsewhere. */
TEST_F(nested_svm_pages, vmcb12_saved_in_l2)
{
	struct kvm_x86_state *state;

	start_l2(self->vcpu);
	state = vcpu_save_state(self->vcpu);
	kvm_vm_release(self->vm);

	renew_page(self->mem);
	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	vcpu_load_state(self->vcpu, state);
	kvm_x86_state_cleanup(state);

	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

TEST_F(nested_svm_pages, vmcb12_no_memslot)
{
	start_l2(self->vcpu);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, 0, self->mem);

	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_SHUTDOWN);
}

TEST_F(nested_svm_pages, vmcb12_bare)
{
	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
}

TEST_F(nested_svm_pages, vmcb12_hole)
{
	if (!map_physical(self->mem, SIZE, bare_memory() - SIZE))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
}

/* The mapping must not outlive the pages. */
TEST_F(nested_svm_pages, vmcb12_bare_unmapped)
{
	u8 copy[PAGE_SIZE];

	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu);
	memcpy(copy, self->mem, PAGE_SIZE);
	map_anonymous(self->mem, SIZE);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);

	TEST_ASSERT(map_physical(self->mem, SIZE, bare_memory()), "errno %d", errno);
	EXPECT_EQ(memcmp(copy, self->mem, PAGE_SIZE), 0);
}

/* vmcb12 in each page of the memory, in turn */

static void l2_code_in_turn(void)
{
	GUEST_SYNC(SAVED);
	vmmcall();
}

static void l1_code_in_turn(struct svm_test_data *svm)
{
	struct vmcb *vmcb;
	u64 rsp = 0, i;

	for (i = 0; ; i++) {
		vmcb = (void *)(VMCB_GPA + i % NR_PAGES * PAGE_SIZE);
		svm->vmcb = vmcb;
		svm->vmcb_gpa = (u64)vmcb;
		if (i < NR_PAGES)
			generic_svm_setup(svm, l2_code_in_turn);
		if (!i)
			rsp = vmcb->save.rsp;
		vmcb->save.rip = (u64)l2_code_in_turn;
		vmcb->save.rsp = rsp;
		vmcb->control.exit_code = 0;
		run_guest(vmcb, (u64)vmcb);
		GUEST_SYNC(vmcb->control.exit_code);
	}
}

TEST_F(nested_svm_pages, vmcb12_in_turn)
{
	gva_t svm_gva;
	int i, page;
	u8 *old;

	vcpu_alloc_svm(self->vm, &svm_gva);
	vcpu_arch_set_entry_point(self->vcpu, l1_code_in_turn);
	vcpu_args_set(self->vcpu, 1, svm_gva);

	for (i = 0; i < 4 * NR_PAGES; i++) {
		page = i % NR_PAGES;
		EXPECT_EQ(run(self->vcpu), SAVED);

		/* The page is another one, with the same content. */
		old = self->mem + page * PAGE_SIZE;
		if (i / NR_PAGES % 2)
			renew_page(old);
		EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
		EXPECT_EQ(((struct vmcb *)old)->control.exit_code, SVM_EXIT_VMMCALL);
	}
}

/* An ASID of 0 is invalid. */
static void l1_code_with_invalid_vmcb12(struct svm_test_data *svm)
{
	struct vmcb *vmcb = (void *)VMCB_GPA;

	svm->vmcb = vmcb;
	svm->vmcb_gpa = VMCB_GPA;
	generic_svm_setup(svm, l2_code);
	vmcb->control.asid = 0;
	run_guest(vmcb, VMCB_GPA);
	GUEST_SYNC(vmcb->control.exit_code);
}

TEST_F(nested_svm_pages, invalid_vmcb12)
{
	gva_t svm_gva;

	vcpu_alloc_svm(self->vm, &svm_gva);
	vcpu_arch_set_entry_point(self->vcpu, l1_code_with_invalid_vmcb12);
	vcpu_args_set(self->vcpu, 1, svm_gva);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_ERR);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_ERR);
}

/* RSM and a later #VMEXIT ignore the offset of the address in SMRAM. */
TEST_F(nested_svm_pages, rsm_unaligned_vmcb12)
{
	u64 *gpa;

	start_l1_with_l2(self->vcpu);
	run_to_smm(self->vcpu);

	gpa = addr_gpa2hva(self->vm, SMRAM_GPA + SMRAM_VMCB_OFFSET);
	ASSERT_EQ(*gpa, VMCB_GPA);
	*gpa |= PAGE_SIZE / 2;

	EXPECT_EQ(run(self->vcpu), LOADED);
	EXPECT_EQ(run(self->vcpu), SAVED);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

/* vmcb12 and the host save area have no struct page. */
TEST_F(nested_svm_pages, smm_bare)
{
	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l1_with_l2(self->vcpu);
	run_l2_with_smi(self->vcpu);
}

/* #VMEXIT can't be interrupted, so it waits for the page. */
TEST_F(nested_svm_pages, signal_at_vmexit)
{
	struct test_task task;
	int uffd;

	start_l2(self->vcpu);
	uffd = uffd_page_take(self->vmcb);

	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	uffd_page_await(uffd, self->vmcb);
	test_task_interrupt(&task);
	uffd_page_bring(uffd, self->vmcb);
	test_task_join(&task);
	close(uffd);

	EXPECT_TRUE(task.ret ? task.err == EINTR :
			       self->vcpu->run->exit_reason == KVM_EXIT_IO);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM));

	return test_harness_run(argc, argv);
}
