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

#include "hwpoison.h"
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

#define forget(field)	memset(&(field), UNTOUCHED, sizeof(field))

/* Fill what a #VMEXIT owns with the pattern of what it doesn't. */
static void forget_vmexit(struct vmcb *vmcb)
{
	forget(vmcb->save.es);
	forget(vmcb->save.cs);
	forget(vmcb->save.ss);
	forget(vmcb->save.ds);
	forget(vmcb->save.gdtr);
	forget(vmcb->save.idtr);
	forget(vmcb->save.cpl);
	forget(vmcb->save.efer);
	forget(vmcb->save.cr4);
	forget(vmcb->save.cr3);
	forget(vmcb->save.cr0);
	forget(vmcb->save.dr7);
	forget(vmcb->save.dr6);
	forget(vmcb->save.rflags);
	forget(vmcb->save.rip);
	forget(vmcb->save.rsp);
	/* S_CET, SSP and ISST_ADDR */
	if (kvm_cpu_has(X86_FEATURE_SHSTK))
		forget(vmcb->save.reserved_5);
	forget(vmcb->save.rax);
	forget(vmcb->save.cr2);
	forget(vmcb->control.int_ctl);
	forget(vmcb->control.int_state);
	forget(vmcb->control.exit_code);
	forget(vmcb->control.exit_info_1);
	forget(vmcb->control.exit_info_2);
	forget(vmcb->control.exit_int_info);
	forget(vmcb->control.event_inj);
	forget(vmcb->control.event_inj_err);
	forget(vmcb->control.next_rip);
}

/* What VMRUN reads, and all else, stays as it was changed in the meantime. */
TEST_F(nested_svm_pages, vmexit_fields)
{
	start_l2(self->vcpu);
	memset(self->vmcb, UNTOUCHED, PAGE_SIZE);

	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->save.cpl, 0);
	forget_vmexit(self->vmcb);
	EXPECT_EQ(nr_touched(self->mem, SIZE), 0);
}

/* Logging begins while L2 runs, and vmcb12 is mapped. */
TEST_F(nested_svm_pages, vmexit_is_logged)
{
	start_l2(self->vcpu);
	vm_set_user_memory_region(self->vm, SLOT, KVM_MEM_LOG_DIRTY_PAGES, VMCB_GPA, SIZE,
				  self->mem);
	EXPECT_FALSE(is_dirty(self->vm, 0));
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_TRUE(is_dirty(self->vm, 0));
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

/* To another VM with the same memory. */
static struct kvm_vcpu *save_and_restore(struct kvm_vm *vm, struct kvm_vcpu *vcpu, u8 *mem)
{
	struct kvm_x86_state *state = vcpu_save_state(vcpu);

	kvm_vm_release(vm);
	vcpu = vm_recreate_with_one_vcpu(vm);
	vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA, SIZE, mem);
	vcpu_load_state(vcpu, state);
	kvm_x86_state_cleanup(state);
	return vcpu;
}

TEST_F(nested_svm_pages, vmcb12_saved_in_l2)
{
	start_l2(self->vcpu);
	renew_page(self->mem);
	self->vcpu = save_and_restore(self->vm, self->vcpu, self->mem);

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

TEST_F(nested_svm_pages, vmcb12_bare_saved_in_l2)
{
	if (!map_physical(self->mem, SIZE, bare_memory()))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu);
	self->vcpu = save_and_restore(self->vm, self->vcpu, self->mem);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
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

/* vmcb12 in some pages of the memory, in turn */

/* The guest's copy. */
static u64 nr_in_turn;

static void l2_code_in_turn(void)
{
	GUEST_SYNC(get_cr2());
	vmmcall();
}

static void l1_code_in_turn(struct svm_test_data *svm)
{
	struct vmcb *vmcb;
	u64 rsp = 0, i;

	for (i = 0; ; i++) {
		vmcb = (void *)(VMCB_GPA + i % nr_in_turn * PAGE_SIZE);
		svm->vmcb = vmcb;
		svm->vmcb_gpa = (u64)vmcb;
		if (i < nr_in_turn)
			generic_svm_setup(svm, l2_code_in_turn);
		if (!i)
			rsp = vmcb->save.rsp;
		vmcb->save.rip = (u64)l2_code_in_turn;
		vmcb->save.rsp = rsp;
		vmcb->save.cr2 = SAVED + i;
		vmcb->control.exit_code = 0;
		run_guest(vmcb, (u64)vmcb);
		GUEST_SYNC(vmcb->control.exit_code);
	}
}

static void run_in_turn(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u8 *mem, u64 nr)
{
	struct vmcb *vmcb;
	gva_t svm_gva;
	u64 i, page;

	vcpu_alloc_svm(vcpu->vm, &svm_gva);
	vcpu_arch_set_entry_point(vcpu, l1_code_in_turn);
	vcpu_args_set(vcpu, 1, svm_gva);
	nr_in_turn = nr;
	sync_global_to_guest(vcpu->vm, nr_in_turn);

	for (i = 0; i < 4 * nr; i++) {
		EXPECT_EQ(run(vcpu), SAVED + i);

		/* Other pages, with the same content, of all VMCBs. */
		for (page = 0; page < nr && i / nr % 2; page++)
			renew_page(mem + page * PAGE_SIZE);
		EXPECT_EQ(run(vcpu), SVM_EXIT_VMMCALL);
		vmcb = (void *)mem + i % nr * PAGE_SIZE;
		EXPECT_EQ(vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	}
}

TEST_F(nested_svm_pages, vmcb12_two_in_turn)
{
	run_in_turn(_metadata, self->vcpu, self->mem, 2);
}

TEST_F(nested_svm_pages, vmcb12_in_turn)
{
	run_in_turn(_metadata, self->vcpu, self->mem, NR_PAGES);
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

/* Of which KVM_SET_NESTED_STATE wouldn't accept the address otherwise. */
TEST_F(nested_svm_pages, rsm_unaligned_vmcb12_saved)
{
	u64 *gpa;

	start_l1_with_l2(self->vcpu);
	run_to_smm(self->vcpu);
	gpa = addr_gpa2hva(self->vm, SMRAM_GPA + SMRAM_VMCB_OFFSET);
	*gpa |= PAGE_SIZE / 2;
	EXPECT_EQ(run(self->vcpu), LOADED);

	self->vcpu = save_and_restore(self->vm, self->vcpu, self->mem);
	EXPECT_EQ(run(self->vcpu), SAVED);
	EXPECT_EQ(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
}

/* State that is saved in SMM, which was entered from L2. */
TEST_F(nested_svm_pages, smm_saved)
{
	start_l1_with_l2(self->vcpu);
	run_to_smm(self->vcpu);
	renew_page(self->mem);
	renew_page(self->mem + PAGE_SIZE);
	self->vcpu = save_and_restore(self->vm, self->vcpu, self->mem);

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

/* A memslot that is being moved */

#define HELD_SLOT	(SLOT + 1)
#define HELD_GPA	(VMCB_GPA + 2 * SIZE)

static void guest_code_that_reads(void)
{
	READ_ONCE(*(u64 *)HELD_GPA);
	GUEST_SYNC(0);
}

/* Each address has the next page of the memslot then. */
static long move_memslot_by_a_page(void *arg)
{
	FIXTURE_DATA(nested_svm_pages) *self = arg;

	return __vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA - PAGE_SIZE, SIZE,
					   self->mem);
}

static bool is_waiting(struct test_task *task)
{
	while (!test_task_has_ended(task)) {
		if (test_task_is_asleep(task))
			return true;

		sched_yield();
	}

	return false;
}

/*
 * While the memslot is being moved, it is found nowhere.  The change takes as
 * long as another vCPU waits for a page.
 */
TEST_F(nested_svm_pages, vmcb12_memslot_is_moving)
{
	struct test_task holder, move, l1;
	struct kvm_vcpu *vcpu;
	struct ucall uc;
	u8 *held;
	int uffd;

	start_l1_with_vmrun(self->vcpu);
	memcpy(self->mem + PAGE_SIZE, self->mem, PAGE_SIZE);

	held = kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(self->vm, HELD_SLOT, 0, HELD_GPA, PAGE_SIZE, held);
	virt_map(self->vm, HELD_GPA, HELD_GPA, 1);
	vcpu = vm_vcpu_add(self->vm, 1, guest_code_that_reads);

	uffd = uffd_page_take(held);
	test_task_start(&holder, test_task_vcpu_run, vcpu);
	uffd_page_await(uffd, held);
	test_task_start(&move, move_memslot_by_a_page, self);
	EXPECT_TRUE(is_waiting(&move));

	/* A signal ends the wait. */
	test_task_start(&l1, test_task_vcpu_run, self->vcpu);
	EXPECT_TRUE(is_waiting(&l1));
	/* It may have slept before KVM_RUN. */
	while (!test_task_has_ended(&l1))
		test_task_interrupt(&l1);
	test_task_join(&l1);
	EXPECT_TRUE(l1.ret < 0 && l1.err == EINTR);

	test_task_start(&l1, test_task_vcpu_run, self->vcpu);
	EXPECT_TRUE(is_waiting(&l1));
	uffd_page_bring(uffd, held);
	test_task_join(&holder);
	test_task_join(&move);
	test_task_join(&l1);
	close(uffd);

	EXPECT_EQ(move.ret, 0);
	ASSERT_EQ(l1.ret, 0);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	EXPECT_EQ(get_ucall(self->vcpu, &uc), UCALL_SYNC);
	EXPECT_EQ(uc.args[1], SAVED);
	EXPECT_EQ(run(self->vcpu), LOADED);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	EXPECT_NE(self->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	kvm_munmap(held, PAGE_SIZE);
}

/* vmcb12 in memory that changes, wherever the vCPU is then */

/* The guest's copies. */
static bool l2_waits, l2_is_waiting;

static void l2_code_in_loop(void)
{
	GUEST_SYNC(get_cr2());
	WRITE_ONCE(l2_is_waiting, true);
	while (READ_ONCE(l2_waits))
		cpu_relax();
	WRITE_ONCE(l2_is_waiting, false);
	vmmcall();
}

static void l1_code_in_loop(struct svm_test_data *svm)
{
	struct vmcb *vmcb = (void *)VMCB_GPA;
	u64 rsp;

	svm->vmcb = vmcb;
	svm->vmcb_gpa = VMCB_GPA;
	generic_svm_setup(svm, l2_code_in_loop);
	rsp = vmcb->save.rsp;

	for (;;) {
		vmcb->save.rip = (u64)l2_code_in_loop;
		vmcb->save.rsp = rsp;
		vmcb->control.exit_code = 0;
		GUEST_SYNC(0);
		run_guest(vmcb, VMCB_GPA);
		GUEST_SYNC(vmcb->control.exit_code);
	}
}

FIXTURE(vmcb12_change) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *mem;
	/* Has a copy of the memory, if there is such a process. */
	pid_t child;
};

FIXTURE_VARIANT(vmcb12_change) {
	/* Keeps the content.  Returns false if it isn't possible here. */
	bool (*change)(FIXTURE_DATA(vmcb12_change) *self);
};

static bool drop_vmcb12(FIXTURE_DATA(vmcb12_change) *self)
{
	renew_page(self->mem);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, dropped) {
	.change = drop_vmcb12,
};

static bool map_over_vmcb12(FIXTURE_DATA(vmcb12_change) *self)
{
	u8 copy[PAGE_SIZE];

	memcpy(copy, self->mem, PAGE_SIZE);
	map_anonymous(self->mem, PAGE_SIZE);
	memcpy(self->mem, copy, PAGE_SIZE);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, mapped_over) {
	.change = map_over_vmcb12,
};

static bool replace_memslot(FIXTURE_DATA(vmcb12_change) *self)
{
	u8 *old = self->mem;

	self->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	memcpy(self->mem, old, SIZE);
	set_slot(self->vm, 0, self->mem);
	kvm_munmap(old, SIZE);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, replaced) {
	.change = replace_memslot,
};

static bool move_memslot_and_back(FIXTURE_DATA(vmcb12_change) *self)
{
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA + SIZE, SIZE, self->mem);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, moved_and_back) {
	.change = move_memslot_and_back,
};

static bool migrate_vmcb12(FIXTURE_DATA(vmcb12_change) *self)
{
	int node;

	if (!has_two_nodes())
		return false;

	for (node = 0; node < 2; node++)
		TEST_ASSERT_EQ(move_to_node(self->mem, node), node);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, migrated) {
	.change = migrate_vmcb12,
};

static bool page_out_vmcb12(FIXTURE_DATA(vmcb12_change) *self)
{
	cpu_set_t allowed;

	if (!has_swap())
		return false;

	/* A new page can be in a batch of the CPU that allocated it. */
	kvm_sched_getaffinity(0, sizeof(allowed), &allowed);
	pin_self_to_any_cpu();
	renew_page(self->mem);
	TEST_ASSERT(page_out(self->mem), "The page can't be paged out");
	kvm_sched_setaffinity(0, sizeof(allowed), &allowed);
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, paged_out) {
	.change = page_out_vmcb12,
};

static bool fork_vmm(FIXTURE_DATA(vmcb12_change) *self)
{
	self->child = fork();
	TEST_ASSERT(self->child >= 0, "fork(): errno %d", errno);
	if (!self->child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pause();
		_exit(0);
	}
	return true;
}

FIXTURE_VARIANT_ADD(vmcb12_change, forked) {
	.change = fork_vmm,
};

FIXTURE_SETUP(vmcb12_change)
{
	gva_t svm_gva;

	self->vm = vm_create_with_one_vcpu(&self->vcpu, l1_code_in_loop);
	self->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	virt_map(self->vm, VMCB_GPA, VMCB_GPA, NR_PAGES);
	vcpu_alloc_svm(self->vm, &svm_gva);
	vcpu_args_set(self->vcpu, 1, svm_gva);
	TEST_ASSERT_EQ(run(self->vcpu), 0);
}

FIXTURE_TEARDOWN(vmcb12_change)
{
	if (self->child) {
		kill(self->child, SIGKILL);
		waitpid(self->child, NULL, 0);
	}
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, SIZE);
}

/* VMRUN reads what is in the memory. */
static void expect_vmrun(struct __test_metadata *_metadata, FIXTURE_DATA(vmcb12_change) *self,
			 u64 cr2)
{
	((struct vmcb *)self->mem)->save.cr2 = cr2;
	EXPECT_EQ(run(self->vcpu), cr2);
}

static u64 read_memory_of(pid_t pid, const void *where)
{
	char path[64];
	u64 val;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	TEST_ASSERT(fd >= 0, "%s: errno %d", path, errno);
	TEST_ASSERT_EQ(pread(fd, &val, sizeof(val), (uintptr_t)where), sizeof(val));
	close(fd);
	return val;
}

/* What the #VMEXIT has written is in the memory, and only there. */
static void expect_exit_code(struct __test_metadata *_metadata, FIXTURE_DATA(vmcb12_change) *self)
{
	struct vmcb *vmcb = (void *)self->mem;
	void *exit_code = self->mem + offsetof(struct vmcb, control.exit_code);

	EXPECT_EQ(vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	if (self->child)
		EXPECT_EQ(read_memory_of(self->child, exit_code), 0);
}

static void expect_vmexit(struct __test_metadata *_metadata, FIXTURE_DATA(vmcb12_change) *self)
{
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
	expect_exit_code(_metadata, self);
	EXPECT_EQ(run(self->vcpu), 0);
}

TEST_F(vmcb12_change, in_l1)
{
	expect_vmrun(_metadata, self, SAVED);
	expect_vmexit(_metadata, self);
	if (!variant->change(self))
		SKIP(return, "not possible here");

	expect_vmrun(_metadata, self, LOADED);
	expect_vmexit(_metadata, self);
}

TEST_F(vmcb12_change, in_l2)
{
	expect_vmrun(_metadata, self, SAVED);
	if (!variant->change(self))
		SKIP(return, "not possible here");

	expect_vmexit(_metadata, self);
	expect_vmrun(_metadata, self, LOADED);
}

TEST_F(vmcb12_change, l2_runs)
{
	bool *waits = addr_gva2hva(self->vm, (gva_t)&l2_waits);
	bool *is_waiting = addr_gva2hva(self->vm, (gva_t)&l2_is_waiting);
	struct test_task task;
	bool changed;

	expect_vmrun(_metadata, self, SAVED);
	WRITE_ONCE(*waits, true);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	while (!READ_ONCE(*is_waiting))
		sched_yield();
	changed = variant->change(self);
	WRITE_ONCE(*waits, false);
	test_task_join(&task);
	if (!changed)
		SKIP(return, "not possible here");

	EXPECT_EQ(task.ret, 0);
	expect_exit_code(_metadata, self);
	EXPECT_EQ(run(self->vcpu), 0);
	expect_vmrun(_metadata, self, LOADED);
}

/* Memory that KVM can't read or write */

FIXTURE(bad_memory) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	struct vmcb *vmcb;
	u8 *mem;
};

FIXTURE_VARIANT(bad_memory) {
	void (*spoil)(struct kvm_vm *vm, u8 *mem, int page);
	void (*mend)(struct kvm_vm *vm, u8 *mem, int page);
	bool readable;
};

static void delete_memslot(struct kvm_vm *vm, u8 *mem, int page)
{
	vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA, 0, mem);
}

static void create_memslot(struct kvm_vm *vm, u8 *mem, int page)
{
	vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA, SIZE, mem);
}

FIXTURE_VARIANT_ADD(bad_memory, no_memslot) {
	.spoil = delete_memslot,
	.mend = create_memslot,
};

static void restore_memslot(struct kvm_vm *vm, u8 *mem, int page)
{
	set_slot(vm, 0, mem);
}

/* The memslot ends before the page. */
static void shorten_memslot(struct kvm_vm *vm, u8 *mem, int page)
{
	delete_memslot(vm, mem, page);
	if (page)
		vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA, page * PAGE_SIZE, mem);
	else
		vm_set_user_memory_region(vm, SLOT, 0, VMCB_GPA - SIZE, SIZE, mem);
}

FIXTURE_VARIANT_ADD(bad_memory, behind_memslot) {
	.spoil = shorten_memslot,
	.mend = restore_memslot,
};

static void make_memslot_read_only(struct kvm_vm *vm, u8 *mem, int page)
{
	set_slot(vm, KVM_MEM_READONLY, mem);
}

FIXTURE_VARIANT_ADD(bad_memory, read_only_memslot) {
	.spoil = make_memslot_read_only,
	.mend = restore_memslot,
	.readable = true,
};

static void make_inaccessible(struct kvm_vm *vm, u8 *mem, int page)
{
	TEST_ASSERT_EQ(mprotect(mem + page * PAGE_SIZE, PAGE_SIZE, PROT_NONE), 0);
}

static void make_accessible(struct kvm_vm *vm, u8 *mem, int page)
{
	TEST_ASSERT_EQ(mprotect(mem + page * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
}

FIXTURE_VARIANT_ADD(bad_memory, inaccessible) {
	.spoil = make_inaccessible,
	.mend = make_accessible,
};

static void make_read_only(struct kvm_vm *vm, u8 *mem, int page)
{
	TEST_ASSERT_EQ(mprotect(mem + page * PAGE_SIZE, PAGE_SIZE, PROT_READ), 0);
}

FIXTURE_VARIANT_ADD(bad_memory, read_only) {
	.spoil = make_read_only,
	.mend = make_accessible,
	.readable = true,
};

static u8 lost[PAGE_SIZE];

static void lose(struct kvm_vm *vm, u8 *mem, int page)
{
	memcpy(lost, mem + page * PAGE_SIZE, PAGE_SIZE);
	hwpoison(mem + page * PAGE_SIZE);
}

static void replace_lost(struct kvm_vm *vm, u8 *mem, int page)
{
	map_anonymous(mem + page * PAGE_SIZE, PAGE_SIZE);
	memcpy(mem + page * PAGE_SIZE, lost, PAGE_SIZE);
}

FIXTURE_VARIANT_ADD(bad_memory, poisoned) {
	.spoil = lose,
	.mend = replace_lost,
};

FIXTURE_SETUP(bad_memory)
{
	self->vm = vm_create_with_one_vcpu(&self->vcpu, l1_code);
	self->mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	self->vmcb = (void *)self->mem;
	memset(self->mem, UNTOUCHED, SIZE);
	vm_set_user_memory_region(self->vm, SLOT, 0, VMCB_GPA, SIZE, self->mem);
	virt_map(self->vm, VMCB_GPA, VMCB_GPA, NR_PAGES);
}

FIXTURE_TEARDOWN(bad_memory)
{
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, SIZE);
}

static void run_into(struct kvm_vcpu *vcpu, u32 exit_reason)
{
	vcpu_run(vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(vcpu, exit_reason);
}

/* The instruction can be executed once the memory is there. */
TEST_F(bad_memory, vmrun)
{
	start_l1_with_vmrun(self->vcpu);
	variant->spoil(self->vm, self->mem, 0);
	run_into(self->vcpu, KVM_EXIT_INTERNAL_ERROR);

	variant->mend(self->vm, self->mem, 0);
	EXPECT_EQ(run(self->vcpu), SAVED);
	EXPECT_EQ(run(self->vcpu), LOADED);
	EXPECT_EQ(run(self->vcpu), SVM_EXIT_VMMCALL);
}

TEST_F(bad_memory, vmexit)
{
	start_l2(self->vcpu);
	variant->spoil(self->vm, self->mem, 0);
	run_into(self->vcpu, KVM_EXIT_SHUTDOWN);
}

TEST_F(bad_memory, vmload)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	save_and_change(self->vcpu, self->vmcb);
	variant->spoil(self->vm, self->mem, 0);
	op = LOAD;
	sync_global_to_guest(self->vm, op);
	if (!variant->readable) {
		run_into(self->vcpu, KVM_EXIT_INTERNAL_ERROR);
		variant->mend(self->vm, self->mem, 0);
	}
	EXPECT_EQ(run(self->vcpu), LOADED);
}

TEST_F(bad_memory, vmsave)
{
	if (!emulates_vmload())
		SKIP(return, "needs kvm_amd.vls=0");

	save_and_change(self->vcpu, self->vmcb);
	variant->spoil(self->vm, self->mem, 0);
	op = SAVE;
	sync_global_to_guest(self->vm, op);
	run_into(self->vcpu, KVM_EXIT_INTERNAL_ERROR);

	variant->mend(self->vm, self->mem, 0);
	EXPECT_EQ(self->vmcb->save.kernel_gs_base, LOADED);
	EXPECT_EQ(run(self->vcpu), SAVED);
	EXPECT_EQ(self->vmcb->save.kernel_gs_base, SAVED);
}

/* L1's state can't be saved, so the VM is lost. */
TEST_F(bad_memory, smi)
{
	start_l1_with_l2(self->vcpu);
	variant->spoil(self->vm, self->mem, 1);
	inject_smi(self->vcpu);
	EXPECT_EQ(__vcpu_run(self->vcpu), -1);
	EXPECT_EQ(errno, EIO);
}

TEST_F(bad_memory, rsm)
{
	start_l1_with_l2(self->vcpu);
	run_to_smm(self->vcpu);
	variant->spoil(self->vm, self->mem, 0);
	run_into(self->vcpu, KVM_EXIT_SHUTDOWN);
}

TEST_F(bad_memory, rsm_without_host_save_area)
{
	start_l1_with_l2(self->vcpu);
	run_to_smm(self->vcpu);
	variant->spoil(self->vm, self->mem, 1);
	if (!variant->readable) {
		run_into(self->vcpu, KVM_EXIT_SHUTDOWN);
		return;
	}
	EXPECT_EQ(run(self->vcpu), LOADED);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_SVM));

	return test_harness_run(argc, argv);
}
