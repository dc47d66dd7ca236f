// SPDX-License-Identifier: GPL-2.0-only
/*
 * The pages of an L1 hypervisor that hardware accesses while L2 runs: the
 * virtual-APIC page, the APIC-access page and that of the posted-interrupt
 * descriptor.  The VMM changes the memory behind them while L2 is active, i.e.
 * between exits of L2 that L1 doesn't intercept, so that there is no nested
 * VM-Exit at which KVM could look up the pages again.  What L2 writes must
 * reach the memory that is there after the change, and L2 must read what is
 * there.
 *
 * For KVM_BARE_MEMORY, see nested_memory.h.
 */
#include <asm/barrier.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "apic.h"
#include "fail_nth.h"
#include "hwpoison.h"
#include "kvm_syscalls.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "nested_memory.h"
#include "processor.h"
#include "smm.h"
#include "test_task.h"
#include "test_util.h"
#include "uffd_page.h"
#include "vmx.h"

/* Each page has a memslot of its own. */
enum { VAPIC, OTHER_VAPIC, ACCESS, BITMAP, DESC, NR_PAGES };

#define SIZE		(NR_PAGES * PAGE_SIZE)
#define SLOT(page)	(10 + (page))
#define GPA(page)	(0xc0000000ULL + (page) * PAGE_SIZE)
#define UNBACKED_GPA	(GPA(NR_PAGES) + 0x100000)

#define SMRAM_GPA	0x1000000
#define SMI_PORT	0xe
#define IRQ_VECTOR	0x51
/* L1's, for interrupts that are posted to L2. */
#define POSTED_VECTOR	0x61

/* The posted-interrupt descriptor is the last thing in its page. */
#define DESC_OFFSET	(PAGE_SIZE - 64)
/* A bit for each vector, and this one. */
#define DESC_ON		256

/* What L2 reads if L1 has emulated the access. */
#define EMULATED	0xcafe
/* Of the APIC-access page, whose content mustn't be accessed. */
#define UNTOUCHED	0x5a5a5a5a
/* Of memory that isn't the guest's any more. */
#define POISON		0xa5

/* Entries of the dirty ring. */
#define RING_SIZE	1024

/* Added to VM_INSTRUCTION_ERROR if L1 fails to enter L2. */
#define VMFAIL		0x1000
#define INVALID_CONTROL	7

enum { SET_TPR, GET_TPR, READ_APIC, WRITE_TPR_BY_APIC, HALT, EXIT_TO_L1, PLAY, READ_MSR };

/* What L2 does next.  The guest's copy. */
static struct {
	u64 op;
	u64 arg;
} todo;

/* What L1 puts into its VMCSs.  The guest's copy. */
static struct {
	u64 vapic[2];
	u64 access;
	u64 desc;
	u32 pin_based;
	u32 cpu_based;
	u32 secondary;
	u32 exit;
	u16 intr_status;
} l1 = {
	.vapic = { GPA(VAPIC), GPA(VAPIC) },
	.access = GPA(ACCESS),
	.desc = GPA(DESC) + DESC_OFFSET,
	.cpu_based = CPU_BASED_TPR_SHADOW | CPU_BASED_ACTIVATE_SECONDARY_CONTROLS,
};

static u64 nr_irqs;

/*
 * A game without exits.  In each round, L2 reads what the VMM has written to
 * TPR, and writes the complement.  It begins with round 1 and ends with 0.
 */
static struct {
	/* By the VMM. */
	u64 round;
	/* By L2: the last round, and the TPR that L2 read. */
	u64 played;
} game;

#define PLAYED(round, tpr)	((round) << 4 | (tpr))

static void irq_handler(struct ex_regs *regs)
{
	nr_irqs++;
}

static u64 read_cr8(void)
{
	u64 tpr;

	asm volatile("mov %%cr8, %0" : "=r"(tpr) : : "memory");
	return tpr;
}

static void write_cr8(u64 tpr)
{
	asm volatile("mov %0, %%cr8" : : "r"(tpr) : "memory");
}

static void play(void)
{
	u64 round, last = -1ULL, tpr;

	while ((round = READ_ONCE(game.round))) {
		if (round == last)
			continue;
		tpr = read_cr8();
		write_cr8(~tpr & 0xf);
		WRITE_ONCE(game.played, PLAYED(round, tpr));
		last = round;
	}
}

static u64 do_op(void)
{
	u64 val;

	switch (READ_ONCE(todo.op)) {
	case SET_TPR:
		write_cr8(READ_ONCE(todo.arg));
		return 0;
	case GET_TPR:
		return read_cr8();
	case READ_APIC:
		/* Two bytes, which L1 skips. */
		asm volatile("mov (%%rdx), %%eax"
			     : "=a"(val) : "d"(GPA(ACCESS) + READ_ONCE(todo.arg)) : "memory");
		return val;
	case WRITE_TPR_BY_APIC:
		asm volatile("mov %%eax, (%%rdx)"
			     : : "a"(READ_ONCE(todo.arg)), "d"(GPA(ACCESS) + APIC_TASKPRI)
			     : "memory");
		return 0;
	case HALT:
		asm volatile("sti; hlt; cli" : : : "memory");
		return READ_ONCE(nr_irqs);
	case EXIT_TO_L1:
		vmcall();
		return 0;
	case READ_MSR:
		asm volatile("rdmsr"
			     : "=a"(val) : "c"(MSR_FS_BASE) : "rdx", "memory");
		return val;
	case PLAY:
		/* Bochs 2.7 inhibits the interrupts of the host, too. */
		asm volatile("sti" : : : "memory");
		play();
		asm volatile("cli" : : : "memory");
		return 0;
	default:
		GUEST_FAIL("Unknown op %lu", todo.op);
		return 0;
	}
}

static void l2_code(void)
{
	u64 result = 0;

	for (;;) {
		GUEST_SYNC(result);
		result = do_op();
	}
}

static void set_controls(int i)
{
	vmwrite(PIN_BASED_VM_EXEC_CONTROL, vmreadz(PIN_BASED_VM_EXEC_CONTROL) | l1.pin_based);
	vmwrite(CPU_BASED_VM_EXEC_CONTROL, vmreadz(CPU_BASED_VM_EXEC_CONTROL) | l1.cpu_based);
	vmwrite(SECONDARY_VM_EXEC_CONTROL, vmreadz(SECONDARY_VM_EXEC_CONTROL) | l1.secondary);
	vmwrite(VM_EXIT_CONTROLS, vmreadz(VM_EXIT_CONTROLS) | l1.exit);
	vmwrite(GUEST_INTR_STATUS, l1.intr_status);
	vmwrite(POSTED_INTR_NV, POSTED_VECTOR);
	vmwrite(POSTED_INTR_DESC_ADDR, l1.desc);
	vmwrite(VIRTUAL_APIC_PAGE_ADDR, l1.vapic[i]);
	vmwrite(APIC_ACCESS_ADDR, l1.access);
	vmwrite(MSR_BITMAP, GPA(BITMAP));
}

static void skip_instruction(int len)
{
	vmwrite(GUEST_RIP, vmreadz(GUEST_RIP) + len);
}

static void l1_code(struct vmx_pages *vmx0, struct vmx_pages *vmx1)
{
	struct vmx_pages *vmx[] = { vmx0, vmx1 };
	bool launched[] = { false, false };
	int i;

	x2apic_enable();
	GUEST_ASSERT(prepare_for_vmx_operation(vmx0));
	for (i = 1; i >= 0; i--) {
		GUEST_ASSERT(load_vmcs(vmx[i]));
		prepare_vmcs(vmx[i], l2_code);
		set_controls(i);
	}

	for (i = 0;;) {
		if (launched[i] ? vmresume() : vmlaunch()) {
			GUEST_SYNC(VMFAIL + vmreadz(VM_INSTRUCTION_ERROR));
			set_controls(i);
			continue;
		}

		launched[i] = true;
		switch (vmreadz(VM_EXIT_REASON)) {
		case EXIT_REASON_APIC_ACCESS:
			guest_regs.rax = EMULATED;
			skip_instruction(2);
			break;
		case EXIT_REASON_MSR_READ:
			guest_regs.rax = EMULATED;
			skip_instruction(2);
			break;
		case EXIT_REASON_VMCALL:
			/* The L2s take turns. */
			skip_instruction(3);
			i = !i;
			GUEST_ASSERT(!vmptrld(vmx[i]->vmcs_gpa));
			break;
		default:
			GUEST_FAIL("Unexpected exit 0x%lx", vmreadz(VM_EXIT_REASON));
		}
	}
}

/* The VMM */

FIXTURE(nested_vmx_pages) {
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u8 *mem;
	/* The virtual-APIC page in it. */
	u8 *vapic;
	/* The APIC-access page. */
	u8 *access;
	/* That of the posted-interrupt descriptor. */
	u8 *desc_page;
};

static void set_slot(struct kvm_vm *vm, int page, u32 flags, u8 *mem)
{
	vm_set_user_memory_region(vm, SLOT(page), flags, GPA(page), PAGE_SIZE, mem);
}

static void delete_slot(struct kvm_vm *vm, int page)
{
	vm_set_user_memory_region(vm, SLOT(page), 0, GPA(page), 0, NULL);
}

static void set_slots(struct kvm_vm *vm, u8 *mem)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		set_slot(vm, i, 0, mem + i * PAGE_SIZE);
}

/* Delete the memslot, and create it anew with other memory. */
static void replace_slot(struct kvm_vm *vm, int page, u8 *mem)
{
	delete_slot(vm, page);
	set_slot(vm, page, 0, mem);
}

static void move_slot(struct kvm_vm *vm, int page, u64 gpa, u8 *mem)
{
	vm_set_user_memory_region(vm, SLOT(page), 0, gpa, PAGE_SIZE, mem);
}

static u8 *alloc_page(void)
{
	return kvm_mmap(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static void alloc_vmcs12(struct kvm_vcpu *vcpu)
{
	gva_t vmx_gva[2];

	vcpu_alloc_vmx(vcpu->vm, &vmx_gva[0]);
	vcpu_alloc_vmx(vcpu->vm, &vmx_gva[1]);
	vcpu_args_set(vcpu, 2, vmx_gva[0], vmx_gva[1]);
}

static void fill_access(u8 *access)
{
	memset(access, (u8)UNTOUCHED, PAGE_SIZE);
}

static u8 *alloc_memory(void)
{
	u8 *mem = kvm_mmap(SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	fill_access(mem + ACCESS * PAGE_SIZE);
	return mem;
}

static void set_up_l1(struct kvm_vcpu *vcpu, u8 *mem)
{
	set_slots(vcpu->vm, mem);
	virt_map(vcpu->vm, GPA(0), GPA(0), NR_PAGES);
	alloc_vmcs12(vcpu);
}

static struct kvm_vcpu *create_vm(u8 *mem)
{
	struct kvm_vcpu *vcpu;

	vm_create_with_one_vcpu(&vcpu, l1_code);
	set_up_l1(vcpu, mem);
	return vcpu;
}

FIXTURE_SETUP(nested_vmx_pages)
{
	self->mem = alloc_memory();
	self->vapic = self->mem + VAPIC * PAGE_SIZE;
	self->access = self->mem + ACCESS * PAGE_SIZE;
	self->desc_page = self->mem + DESC * PAGE_SIZE;
	self->vcpu = create_vm(self->mem);
	self->vm = self->vcpu->vm;
}

FIXTURE_TEARDOWN(nested_vmx_pages)
{
	kvm_vm_free(self->vm);
	kvm_munmap(self->mem, SIZE);
}

static u64 get_result(struct kvm_vcpu *vcpu)
{
	struct ucall uc;

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

static u64 run(struct kvm_vcpu *vcpu)
{
	vcpu_run(vcpu);
	return get_result(vcpu);
}

static void set_todo(struct kvm_vm *vm, u64 op, u64 arg)
{
	todo.op = op;
	todo.arg = arg;
	sync_global_to_guest(vm, todo);
}

static u64 run_op(struct kvm_vcpu *vcpu, u64 op, u64 arg)
{
	set_todo(vcpu->vm, op, arg);
	return run(vcpu);
}

static u32 *apic_reg(u8 *page, int reg)
{
	return (u32 *)(page + reg);
}

static u64 tpr(u8 *vapic)
{
	return READ_ONCE(*apic_reg(vapic, APIC_TASKPRI)) >> 4;
}

static void set_tpr(u8 *vapic, u32 tpr)
{
	WRITE_ONCE(*apic_reg(vapic, APIC_TASKPRI), tpr << 4);
}

static bool has_control(u32 msr, u32 control)
{
	return kvm_get_feature_msr(msr) >> 32 & control;
}

static bool has_secondary_control(u32 control)
{
	return has_control(MSR_IA32_VMX_PROCBASED_CTLS2, control);
}

/* L1 launches L2.  Return 0 if L2 runs. */
static u64 launch(struct kvm_vcpu *vcpu)
{
	sync_global_to_guest(vcpu->vm, l1);
	return run(vcpu);
}

/* L2 runs, and has written 5 to its TPR. */
static void start_l2(struct kvm_vcpu *vcpu, u8 *vapic)
{
	TEST_ASSERT_EQ(launch(vcpu), 0);
	TEST_ASSERT_EQ(run_op(vcpu, SET_TPR, 5), 0);
	TEST_ASSERT_EQ(tpr(vapic), 5);
	TEST_ASSERT_EQ(run_op(vcpu, GET_TPR, 0), 5);
}

/* L2's TPR is where the VMM expects it, without a nested VM-Exit meanwhile. */
static void expect_vapic(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u8 *vapic)
{
	EXPECT_EQ(run_op(vcpu, GET_TPR, 0), tpr(vapic));
	EXPECT_EQ(run_op(vcpu, SET_TPR, 9), 0);
	EXPECT_EQ(tpr(vapic), 9);
	set_tpr(vapic, 3);
	EXPECT_EQ(run_op(vcpu, GET_TPR, 0), 3);
}

/* As L2 enters L1 and returns. */
static void expect_vapic_after_exits(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				     u8 *vapic)
{
	/* The first time, the other L2 begins. */
	EXPECT_EQ(run_op(vcpu, EXIT_TO_L1, 0), 0);
	EXPECT_EQ(run_op(vcpu, EXIT_TO_L1, 0), 0);
	expect_vapic(_metadata, vcpu, vapic);
}

TEST_F(nested_vmx_pages, vapic_unchanged)
{
	start_l2(self->vcpu, self->vapic);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_dropped)
{
	start_l2(self->vcpu, self->vapic);
	drop_page(self->vapic);

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 0);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* L2 writes to the new page before anything else does. */
TEST_F(nested_vmx_pages, vapic_dropped_then_written)
{
	start_l2(self->vcpu, self->vapic);
	drop_page(self->vapic);

	EXPECT_EQ(run_op(self->vcpu, SET_TPR, 9), 0);
	EXPECT_EQ(tpr(self->vapic), 9);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_dropped_repeatedly)
{
	int i;

	start_l2(self->vcpu, self->vapic);
	for (i = 1; i < 4; i++) {
		drop_page(self->vapic);
		set_tpr(self->vapic, i);
		EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), i);
		expect_vapic(_metadata, self->vcpu, self->vapic);
	}
}

/* L2 doesn't exit to userspace meanwhile. */
TEST_F(nested_vmx_pages, vapic_dropped_while_running)
{
	typeof(game) *g = addr_gva2hva(self->vm, (gva_t)&game);
	int nr_stale = 0, nr_lost = 0;
	struct test_task task;
	u64 i;

	start_l2(self->vcpu, self->vapic);
	set_todo(self->vm, PLAY, 0);
	WRITE_ONCE(g->round, -1ULL);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);

	for (i = 1; i < 64; i++) {
		if (i % 2)
			drop_page(self->vapic);
		set_tpr(self->vapic, i % 16);
		WRITE_ONCE(g->round, i);
		while (READ_ONCE(g->played) >> 4 != i && !test_task_has_ended(&task))
			sched_yield();
		nr_stale += READ_ONCE(g->played) != PLAYED(i, i % 16);
		nr_lost += tpr(self->vapic) != (~i & 0xf);
	}
	EXPECT_EQ(nr_stale, 0);
	EXPECT_EQ(nr_lost, 0);

	WRITE_ONCE(g->round, 0);
	test_task_join(&task);
	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), 0);
}

TEST_F(nested_vmx_pages, vapic_remapped)
{
	start_l2(self->vcpu, self->vapic);
	remap_page(self->vapic);
	set_tpr(self->vapic, 7);

	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_hole_punched)
{
	int fd = kvm_memfd_alloc(PAGE_SIZE, false);

	map_over(self->vapic, PAGE_SIZE, MAP_SHARED, fd, 0);
	start_l2(self->vcpu, self->vapic);
	kvm_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE);
	close(fd);

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 0);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/* The memslot is at another address until L2 runs again. */
TEST_F(nested_vmx_pages, vapic_moved_and_back)
{
	start_l2(self->vcpu, self->vapic);
	move_slot(self->vm, VAPIC, UNBACKED_GPA, self->vapic);
	set_slot(self->vm, VAPIC, 0, self->vapic);

	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* The memslot moves away, and another memslot takes its place. */
TEST_F(nested_vmx_pages, vapic_moved)
{
	u8 *other = alloc_page();

	start_l2(self->vcpu, self->vapic);
	move_slot(self->vm, VAPIC, UNBACKED_GPA, self->vapic);
	vm_set_user_memory_region(self->vm, SLOT(NR_PAGES), 0, GPA(VAPIC), PAGE_SIZE, other);
	set_tpr(other, 7);

	expect_vapic(_metadata, self->vcpu, other);
	EXPECT_EQ(tpr(self->vapic), 5);
	kvm_munmap(other, PAGE_SIZE);
}

TEST_F(nested_vmx_pages, vapic_replaced)
{
	u8 *other = alloc_page();

	start_l2(self->vcpu, self->vapic);
	replace_slot(self->vm, VAPIC, other);
	set_tpr(other, 7);

	expect_vapic(_metadata, self->vcpu, other);
	expect_vapic_after_exits(_metadata, self->vcpu, other);
	EXPECT_EQ(tpr(self->vapic), 5);
	kvm_munmap(other, PAGE_SIZE);
}

static void migrate(struct __test_metadata *_metadata, void *page, int node)
{
	EXPECT_EQ(move_to_node(page, node), node) {
		TH_LOG("The page can't be migrated");
	}
}

TEST_F(nested_vmx_pages, vapic_migrated)
{
	int i;

	if (!has_two_nodes())
		SKIP(return, "needs two nodes");

	start_l2(self->vcpu, self->vapic);
	for (i = 0; i < 4; i++) {
		migrate(_metadata, self->vapic, i % 2);
		expect_vapic(_metadata, self->vcpu, self->vapic);
	}
}

TEST_F(nested_vmx_pages, vapic_offlined)
{
	int ret;

	start_l2(self->vcpu, self->vapic);
	EXPECT_EQ(run_op(self->vcpu, SET_TPR, 7), 0);
	ret = madvise(self->vapic, PAGE_SIZE, MADV_SOFT_OFFLINE);
	if (ret && (errno == EINVAL || errno == EPERM))
		SKIP(return, "needs CONFIG_MEMORY_FAILURE and CAP_SYS_ADMIN");
	EXPECT_EQ(ret, 0) {
		TH_LOG("The page can't be taken offline: errno %d", errno);
	}

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 7);
	EXPECT_EQ(tpr(self->vapic), 7);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_paged_out)
{
	if (!has_swap())
		SKIP(return, "needs swap");

	/* A new page can be in a batch of the CPU that allocated it. */
	pin_self_to_any_cpu();
	start_l2(self->vcpu, self->vapic);
	EXPECT_EQ(run_op(self->vcpu, SET_TPR, 7), 0);
	EXPECT_TRUE(page_out(self->vapic)) {
		TH_LOG("The page can't be paged out");
	}

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 7);
	EXPECT_EQ(tpr(self->vapic), 7);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/*
 * Userspace has only read the page, i.e. its PTE is clean.  Reclaim must not
 * drop what L2 has written.
 */
TEST_F(nested_vmx_pages, vapic_reclaimed)
{
	int fd = kvm_memfd_alloc(PAGE_SIZE, false);

	if (!has_swap())
		SKIP(return, "needs swap");

	map_over(self->vapic, PAGE_SIZE, MAP_SHARED, fd, 0);
	close(fd);
	start_l2(self->vcpu, self->vapic);
	kvm_madvise(self->vapic, PAGE_SIZE, MADV_PAGEOUT);

	EXPECT_EQ(tpr(self->vapic), 5);
	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 5);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/* Copy-on-write leaves the parent with what L2 writes. */
TEST_F(nested_vmx_pages, vapic_forked)
{
	int fds[2], status;
	pid_t pid;
	char c;

	start_l2(self->vcpu, self->vapic);
	TEST_ASSERT(!pipe(fds), "pipe(): errno %d", errno);
	pid = fork();
	TEST_ASSERT(pid >= 0, "fork(): errno %d", errno);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[1]);
		if (read(fds[0], &c, 1))
			_exit(-1);
		_exit(tpr(self->vapic));
	}
	close(fds[0]);

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 5);
	expect_vapic(_metadata, self->vcpu, self->vapic);

	close(fds[1]);
	TEST_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(WEXITSTATUS(status), 5);
}

static bool map_bare(u8 *page, u8 fill)
{
	if (!map_physical(page, PAGE_SIZE, bare_memory()))
		return false;

	memset(page, fill, PAGE_SIZE);
	return true;
}

TEST_F(nested_vmx_pages, vapic_bare)
{
	if (!map_bare(self->vapic, 0))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu, self->vapic);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* Memory without struct pages has another owner once it is unmapped. */
TEST_F(nested_vmx_pages, vapic_bare_unmapped)
{
	u8 *owner = alloc_page();
	int i, nr_written = 0;

	if (!map_bare(self->vapic, 0))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2(self->vcpu, self->vapic);
	map_anonymous(self->vapic, PAGE_SIZE);
	map_bare(owner, POISON);
	EXPECT_EQ(run_op(self->vcpu, SET_TPR, 9), 0);

	for (i = 0; i < PAGE_SIZE; i++)
		nr_written += owner[i] != POISON;
	EXPECT_EQ(nr_written, 0);
	EXPECT_EQ(tpr(self->vapic), 9);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	kvm_munmap(owner, PAGE_SIZE);
}

/* The APIC-access page */

static void start_l2_with_apic_access(struct kvm_vcpu *vcpu, u8 *vapic)
{
	l1.secondary |= SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
	start_l2(vcpu, vapic);
	TEST_ASSERT_EQ(run_op(vcpu, READ_APIC, APIC_TASKPRI), 0x50);
}

/*
 * Of the APIC-access page, L2 reads and writes nothing.  If the register is
 * TPR, hardware accesses the virtual-APIC page instead, else L1 emulates the
 * access.
 */
static void expect_apic_access(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			       u8 *vapic, u8 *access)
{
	EXPECT_EQ(run_op(vcpu, READ_APIC, APIC_TASKPRI), tpr(vapic) << 4);
	EXPECT_EQ(run_op(vcpu, WRITE_TPR_BY_APIC, 0x90), 0);
	EXPECT_EQ(tpr(vapic), 9);
	EXPECT_EQ(*apic_reg(access, APIC_TASKPRI), UNTOUCHED);
	/* This is a nested VM-Exit, so it is the last. */
	EXPECT_EQ(run_op(vcpu, READ_APIC, APIC_ID), EMULATED);
}

TEST_F(nested_vmx_pages, apic_access_unchanged)
{
	start_l2_with_apic_access(self->vcpu, self->vapic);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

TEST_F(nested_vmx_pages, apic_access_dropped)
{
	start_l2_with_apic_access(self->vcpu, self->vapic);
	drop_page(self->access);
	fill_access(self->access);

	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

/* L2 accesses the page before anything else does. */
TEST_F(nested_vmx_pages, apic_access_dropped_then_read)
{
	start_l2_with_apic_access(self->vcpu, self->vapic);
	drop_page(self->access);

	EXPECT_EQ(run_op(self->vcpu, READ_APIC, APIC_ID), EMULATED);
}

TEST_F(nested_vmx_pages, apic_access_moved)
{
	u8 *other = alloc_page();

	fill_access(other);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	move_slot(self->vm, ACCESS, UNBACKED_GPA, self->access);
	vm_set_user_memory_region(self->vm, SLOT(NR_PAGES), 0, GPA(ACCESS), PAGE_SIZE, other);

	expect_apic_access(_metadata, self->vcpu, self->vapic, other);
	expect_apic_access(_metadata, self->vcpu, self->vapic, other);
	kvm_munmap(other, PAGE_SIZE);
}

TEST_F(nested_vmx_pages, apic_access_replaced)
{
	u8 *other = alloc_page();

	fill_access(other);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	replace_slot(self->vm, ACCESS, other);

	expect_apic_access(_metadata, self->vcpu, self->vapic, other);
	kvm_munmap(other, PAGE_SIZE);
}

TEST_F(nested_vmx_pages, apic_access_migrated)
{
	int i;

	if (!has_two_nodes())
		SKIP(return, "needs two nodes");

	start_l2_with_apic_access(self->vcpu, self->vapic);
	for (i = 0; i < 4; i++) {
		migrate(_metadata, self->access, i % 2);
		expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
	}
}

/* L1 has an EPT, i.e. KVM shadows it. */
TEST_F(nested_vmx_pages, apic_access_with_ept)
{
	if (!kvm_cpu_has_ept())
		SKIP(return, "needs nested EPT");

	vm_enable_ept(self->vm);
	alloc_vmcs12(self->vcpu);
	tdp_identity_map_default_memslots(self->vm);
	tdp_map(self->vm, GPA(0), GPA(0), SIZE);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);

	kvm_madvise(self->mem, SIZE, MADV_DONTNEED);
	fill_access(self->access);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

TEST_F(nested_vmx_pages, apic_access_bare)
{
	if (!map_bare(self->access, (u8)UNTOUCHED))
		SKIP(return, NEEDS_BARE_MEMORY);

	start_l2_with_apic_access(self->vcpu, self->vapic);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

/* Dirty logging */

static bool is_dirty(struct kvm_vm *vm, int page)
{
	unsigned long bitmap = 0;

	kvm_vm_get_dirty_log(vm, SLOT(page), &bitmap);
	return bitmap & BIT(0);
}

static void start_dirty_log(struct kvm_vm *vm, u8 *mem)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		set_slot(vm, i, KVM_MEM_LOG_DIRTY_PAGES, mem + i * PAGE_SIZE);
}

TEST_F(nested_vmx_pages, dirty_logged)
{
	int i;

	start_l2(self->vcpu, self->vapic);
	start_dirty_log(self->vm, self->mem);
	is_dirty(self->vm, VAPIC);

	for (i = 0; i < 4; i++) {
		EXPECT_EQ(run_op(self->vcpu, SET_TPR, i), 0);
		EXPECT_EQ(tpr(self->vapic), i);
		EXPECT_TRUE(is_dirty(self->vm, VAPIC));
		EXPECT_FALSE(is_dirty(self->vm, OTHER_VAPIC));
	}
}

/* A copy is up to date if the pages are copied that the log names. */
TEST_F(nested_vmx_pages, dirty_after_invalidation)
{
	u8 copy[PAGE_SIZE] = {};
	int i;

	start_l2(self->vcpu, self->vapic);
	start_dirty_log(self->vm, self->mem);
	is_dirty(self->vm, VAPIC);

	for (i = 1; i < 4; i++) {
		drop_page(self->vapic);
		EXPECT_EQ(run_op(self->vcpu, SET_TPR, i), 0);
		EXPECT_TRUE(is_dirty(self->vm, VAPIC));
		memcpy(copy, self->vapic, PAGE_SIZE);
		EXPECT_EQ(tpr(copy), i);
	}
}

/* What L2 has written is logged though the page is gone by then. */
TEST_F(nested_vmx_pages, dirty_before_invalidation)
{
	start_l2(self->vcpu, self->vapic);
	start_dirty_log(self->vm, self->mem);
	is_dirty(self->vm, VAPIC);

	EXPECT_EQ(run_op(self->vcpu, SET_TPR, 7), 0);
	drop_page(self->vapic);
	EXPECT_TRUE(is_dirty(self->vm, VAPIC));
}

static u32 harvest(struct kvm_vm *vm, struct kvm_dirty_gfn *gfns, u32 *next, u32 slot)
{
	struct kvm_dirty_gfn *gfn;
	u32 nr = 0;

	for (;; ++*next) {
		gfn = &gfns[*next % RING_SIZE];
		/* KVM sets the flag last. */
		if (smp_load_acquire(&gfn->flags) != KVM_DIRTY_GFN_F_DIRTY)
			break;
		nr += gfn->slot == slot;
		/* KVM may reuse the entry from now on. */
		smp_store_release(&gfn->flags, KVM_DIRTY_GFN_F_RESET);
	}

	kvm_vm_reset_dirty_ring(vm);
	return nr;
}

/* The vCPU's dirty ring, in place of the log. */
TEST(dirty_ring)
{
	u8 *mem, *vapic, copy[PAGE_SIZE];
	struct kvm_dirty_gfn *gfns;
	struct kvm_vcpu *vcpu;
	struct kvm_vm *vm;
	u32 next = 0, i;

	mem = alloc_memory();
	vapic = mem + VAPIC * PAGE_SIZE;
	vm = vm_create(1);
	vm_enable_dirty_ring(vm, RING_SIZE * sizeof(*gfns));
	vcpu = vm_vcpu_add(vm, 0, l1_code);
	kvm_arch_vm_finalize_vcpus(vm);
	gfns = vcpu_map_dirty_ring(vcpu);
	set_up_l1(vcpu, mem);

	start_l2(vcpu, vapic);
	start_dirty_log(vm, mem);
	harvest(vm, gfns, &next, SLOT(VAPIC));

	for (i = 1; i < 8; i++) {
		if (i % 2)
			drop_page(vapic);
		EXPECT_EQ(run_op(vcpu, SET_TPR, i), 0);
		EXPECT_GE(harvest(vm, gfns, &next, SLOT(VAPIC)), 1);
		memcpy(copy, vapic, PAGE_SIZE);
		EXPECT_EQ(tpr(copy), i);
	}

	kvm_vm_free(vm);
	kvm_munmap(mem, SIZE);
}

/* Memory that goes and comes back */

/* Whether KVM_RUN fails, i.e. L2 doesn't execute what is to do. */
static bool run_fails(struct kvm_vcpu *vcpu)
{
	int ret = __vcpu_run(vcpu);

	if (ret < 0)
		return errno == EFAULT;

	return vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR;
}

/*
 * With a page unbacked, have L2 write to its TPR.  Return false if it did, in
 * which case it may have written to memory that isn't the guest's any more.
 */
static bool run_unbacked(struct kvm_vcpu *vcpu)
{
	set_todo(vcpu->vm, SET_TPR, 9);
	if (!run_fails(vcpu)) {
		TEST_ASSERT_EQ(get_result(vcpu), 0);
		return false;
	}

	TEST_ASSERT(run_fails(vcpu), "KVM_RUN goes on without the page");
	return true;
}

/* The page is back: L2 goes on where KVM_RUN failed, if it did. */
static void run_backed(struct kvm_vcpu *vcpu, bool failed)
{
	if (failed)
		TEST_ASSERT_EQ(run(vcpu), 0);
}

TEST_F(nested_vmx_pages, unbacked_then_back)
{
	u8 *other = alloc_page();
	bool failed;

	start_l2(self->vcpu, self->vapic);
	delete_slot(self->vm, VAPIC);
	failed = run_unbacked(self->vcpu);

	set_slot(self->vm, VAPIC, 0, other);
	run_backed(self->vcpu, failed);
	EXPECT_EQ(tpr(other), 9);
	EXPECT_EQ(tpr(self->vapic), 5);
	expect_vapic(_metadata, self->vcpu, other);
	kvm_munmap(other, PAGE_SIZE);
}

TEST_F(nested_vmx_pages, unmapped_then_back)
{
	bool failed;

	start_l2(self->vcpu, self->vapic);
	keep_page(self->vapic);
	kvm_munmap(self->vapic, PAGE_SIZE);
	failed = run_unbacked(self->vcpu);

	map_anonymous(self->vapic, PAGE_SIZE);
	run_backed(self->vcpu, failed);
	EXPECT_EQ(tpr(self->vapic), 9);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, apic_access_unbacked_then_back)
{
	u8 *other = alloc_page();
	bool failed;

	fill_access(other);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	delete_slot(self->vm, ACCESS);
	failed = run_unbacked(self->vcpu);

	set_slot(self->vm, ACCESS, 0, other);
	run_backed(self->vcpu, failed);
	EXPECT_EQ(tpr(self->vapic), 9);
	expect_apic_access(_metadata, self->vcpu, self->vapic, other);
	kvm_munmap(other, PAGE_SIZE);
}

/*
 * KVM has looked up the APIC-access page, and waits for the virtual-APIC page,
 * when the former goes again.
 */
TEST_F(nested_vmx_pages, apic_access_dropped_while_vapic_is_missing)
{
	struct test_task task;
	int uffd;

	start_l2_with_apic_access(self->vcpu, self->vapic);
	drop_page(self->access);
	uffd = uffd_page_take(self->vapic);

	set_todo(self->vm, READ_APIC, APIC_ID);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	/* v7.3.4 doesn't look it up. */
	while (!uffd_page_is_wanted(uffd) && !test_task_has_ended(&task))
		sched_yield();
	drop_page(self->access);
	uffd_page_bring(uffd, self->vapic);
	close(uffd);
	test_task_join(&task);

	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), EMULATED);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/* L2 goes on where an allocation of KVM_RUN's failed. */
TEST_F(nested_vmx_pages, allocations_fail)
{
	int fd, nth, ret, error, errors = 0;
	bool failed = true;

	if (!fail_nth_enable())
		SKIP(return, "The kernel has no fault injection");

	start_l2_with_apic_access(self->vcpu, self->vapic);
	for (nth = 1; failed; nth++) {
		kvm_madvise(self->vapic, PAGE_SIZE, MADV_DONTNEED);
		kvm_madvise(self->access, PAGE_SIZE, MADV_DONTNEED);
		set_todo(self->vm, SET_TPR, 9);

		fd = fail_nth_begin(nth);
		ret = __vcpu_run(self->vcpu);
		error = errno;
		failed = fail_nth_end(fd);
		ASSERT_LT(nth, 1000);
		if (ret || self->vcpu->run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
			ASSERT_TRUE(failed);
			ASSERT_TRUE(!ret || error == EFAULT || error == ENOMEM);
			errors++;
			TEST_ASSERT_EQ(run(self->vcpu), 0);
		} else {
			ASSERT_EQ(get_result(self->vcpu), 0);
		}
		EXPECT_EQ(tpr(self->vapic), 9);
	}
	TH_LOG("%d of %d allocations are needed", errors, nth - 2);
	EXPECT_LT(0, errors);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/* State of L2 that is saved and restored */

TEST_F(nested_vmx_pages, save_restore_in_l2)
{
	struct kvm_x86_state *state;

	start_l2(self->vcpu, self->vapic);
	state = vcpu_save_state(self->vcpu);
	kvm_vm_release(self->vm);
	drop_page(self->vapic);
	set_tpr(self->vapic, 7);

	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
	set_slots(self->vm, self->mem);
	vcpu_load_state(self->vcpu, state);
	kvm_x86_state_cleanup(state);
	expect_vapic(_metadata, self->vcpu, self->vapic);

	drop_page(self->vapic);
	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 0);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* The memslots come after the state. */
TEST_F(nested_vmx_pages, restore_before_memslots)
{
	struct kvm_x86_state *state;

	start_l2(self->vcpu, self->vapic);
	state = vcpu_save_state(self->vcpu);
	kvm_vm_release(self->vm);

	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
	vcpu_load_state(self->vcpu, state);
	kvm_x86_state_cleanup(state);
	set_slots(self->vm, self->mem);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* L2 is active already, and is replaced by itself. */
TEST_F(nested_vmx_pages, restore_in_l2)
{
	struct kvm_x86_state *state;

	start_l2(self->vcpu, self->vapic);
	state = vcpu_save_state(self->vcpu);
	drop_page(self->vapic);
	set_tpr(self->vapic, 7);

	vcpu_nested_state_set(self->vcpu, &state->nested);
	vcpu_sregs_set(self->vcpu, &state->sregs);
	vcpu_regs_set(self->vcpu, &state->regs);
	kvm_x86_state_cleanup(state);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	expect_vapic_after_exits(_metadata, self->vcpu, self->vapic);
}

/* Exits to userspace, in SMM. */
static u8 smi_handler[] = {
	0xe4, SMI_PORT,	/* in $SMI_PORT, %al */
	0x0f, 0xaa,	/* rsm */
};

TEST_F(nested_vmx_pages, rsm)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_X86_SMM));

	setup_smram(self->vm, self->vcpu, SMRAM_GPA, smi_handler, sizeof(smi_handler));
	start_l2(self->vcpu, self->vapic);
	inject_smi(self->vcpu);
	vcpu_run(self->vcpu);
	TEST_ASSERT_KVM_EXIT_REASON(self->vcpu, KVM_EXIT_IO);
	TEST_ASSERT_EQ(self->vcpu->run->io.port, SMI_PORT);

	drop_page(self->vapic);
	set_tpr(self->vapic, 7);
	expect_vapic(_metadata, self->vcpu, self->vapic);

	drop_page(self->vapic);
	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 0);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/* Two VMCSs, each with a virtual-APIC page of its own */

TEST_F(nested_vmx_pages, two_vmcs12_in_turn)
{
	u8 *vapic[] = { self->vapic, self->mem + OTHER_VAPIC * PAGE_SIZE };
	int i, l2;

	l1.vapic[1] = GPA(OTHER_VAPIC);
	TEST_ASSERT_EQ(launch(self->vcpu), 0);

	for (i = 0; i < 16; i++) {
		l2 = i % 2;
		EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), tpr(vapic[l2]));
		expect_vapic(_metadata, self->vcpu, vapic[l2]);
		set_tpr(vapic[l2], i % 16);
		EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), i % 16);

		/* The page of the VMCS that is current, or of the other one. */
		if (i & 2) {
			remap_page(vapic[i / 4 % 2]);
			set_tpr(vapic[i / 4 % 2], 12);
		}
		EXPECT_EQ(run_op(self->vcpu, EXIT_TO_L1, 0), 0);
	}
}

/* L2 in HLT */

static void send_msi(struct kvm_vm *vm, u32 data)
{
	struct kvm_msi msi = {
		.address_lo = APIC_DEFAULT_GPA,
		.data = data,
	};

	TEST_ASSERT_EQ(__vm_ioctl(vm, KVM_SIGNAL_MSI, &msi), 1);
}

TEST_F(nested_vmx_pages, halted)
{
	struct test_task task;

	vm_install_exception_handler(self->vm, IRQ_VECTOR, irq_handler);
	start_l2(self->vcpu, self->vapic);

	set_todo(self->vm, HALT, 0);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	test_task_await_sleep(&task);
	drop_page(self->vapic);
	send_msi(self->vm, IRQ_VECTOR);
	test_task_join(&task);
	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), 1);

	EXPECT_EQ(run_op(self->vcpu, GET_TPR, 0), 0);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

static void set_rflags_if(struct kvm_vcpu *vcpu, bool set)
{
	struct kvm_regs regs;

	vcpu_regs_get(vcpu, &regs);
	regs.rflags &= ~X86_EFLAGS_IF;
	if (set)
		regs.rflags |= X86_EFLAGS_IF;
	vcpu_regs_set(vcpu, &regs);
}

/*
 * Whether L2 would be woken from HLT.  A pending signal has KVM_RUN return if
 * there is no event for L2, and before L2 is entered if there is one.
 */
static bool wakes(struct kvm_vcpu *vcpu)
{
	u8 buf[sizeof(struct kvm_signal_mask) + sizeof(u64)] = {};
	struct kvm_mp_state state = { .mp_state = KVM_MP_STATE_HALTED };
	struct kvm_signal_mask *mask = (void *)buf;
	sigset_t blocked;
	bool halted;
	int sig;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	TEST_ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &blocked, NULL), 0);
	/* None is blocked in KVM_RUN. */
	mask->len = sizeof(u64);
	vcpu_ioctl(vcpu, KVM_SET_SIGNAL_MASK, mask);

	set_rflags_if(vcpu, true);
	vcpu_mp_state_set(vcpu, &state);
	raise(SIGUSR1);
	TEST_ASSERT(__vcpu_run(vcpu) < 0 && errno == EINTR, "KVM_RUN isn't interrupted");
	TEST_ASSERT_EQ(sigwait(&blocked, &sig), 0);
	vcpu_mp_state_get(vcpu, &state);
	halted = state.mp_state == KVM_MP_STATE_HALTED;

	state.mp_state = KVM_MP_STATE_RUNNABLE;
	vcpu_mp_state_set(vcpu, &state);
	set_rflags_if(vcpu, false);
	return !halted;
}

static void set_virr(u8 *vapic)
{
	*apic_reg(vapic, APIC_IRR + APIC_VECTOR_TO_REG_OFFSET(IRQ_VECTOR)) =
		BIT(APIC_VECTOR_TO_BIT_NUMBER(IRQ_VECTOR));
}

/* A virtual interrupt is pending, and inhibited by the page's PPR. */
static void start_l2_with_virtual_interrupt(struct kvm_vcpu *vcpu, u8 *vapic)
{
	l1.pin_based |= PIN_BASED_EXT_INTR_MASK;
	l1.secondary |= SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;
	l1.intr_status = IRQ_VECTOR;
	set_virr(vapic);
	start_l2(vcpu, vapic);
	TEST_ASSERT_EQ(*apic_reg(vapic, APIC_PROCPRI), IRQ_VECTOR & 0xf0);

	TEST_ASSERT(!wakes(vcpu), "The interrupt isn't inhibited");
}

/* TPR and PPR are 0 now. */
static void expect_virtual_interrupt(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	EXPECT_TRUE(wakes(vcpu));
	EXPECT_EQ(run_op(vcpu, GET_TPR, 0), 0);
}

TEST_F(nested_vmx_pages, virtual_interrupt)
{
	if (!has_secondary_control(SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY))
		SKIP(return, "needs virtual-interrupt delivery");

	start_l2_with_virtual_interrupt(self->vcpu, self->vapic);
	memset(self->vapic, 0, PAGE_SIZE);
	set_virr(self->vapic);
	expect_virtual_interrupt(_metadata, self->vcpu);
}

TEST_F(nested_vmx_pages, virtual_interrupt_vapic_remapped)
{
	if (!has_secondary_control(SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY))
		SKIP(return, "needs virtual-interrupt delivery");

	start_l2_with_virtual_interrupt(self->vcpu, self->vapic);
	remap_page(self->vapic);
	set_virr(self->vapic);
	expect_virtual_interrupt(_metadata, self->vcpu);
}

/* KVM finds the interrupt before L2 has run in the restored VM. */
TEST_F(nested_vmx_pages, virtual_interrupt_restored)
{
	struct kvm_x86_state *state;

	if (!has_secondary_control(SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY))
		SKIP(return, "needs virtual-interrupt delivery");

	start_l2_with_virtual_interrupt(self->vcpu, self->vapic);
	state = vcpu_save_state(self->vcpu);
	kvm_vm_release(self->vm);
	memset(self->vapic, 0, PAGE_SIZE);
	set_virr(self->vapic);

	self->vcpu = vm_recreate_with_one_vcpu(self->vm);
	set_slots(self->vm, self->mem);
	vcpu_load_state(self->vcpu, state);
	kvm_x86_state_cleanup(state);
	expect_virtual_interrupt(_metadata, self->vcpu);
}

/* L2 sleeps, and the interrupt isn't inhibited by the new page. */
TEST_F(nested_vmx_pages, virtual_interrupt_while_halted)
{
	u8 *other = alloc_page();
	struct test_task task;
	bool ended;

	if (!has_secondary_control(SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY))
		SKIP(return, "needs virtual-interrupt delivery");

	vm_install_exception_handler(self->vm, IRQ_VECTOR, irq_handler);
	start_l2_with_virtual_interrupt(self->vcpu, self->vapic);
	set_todo(self->vm, HALT, 0);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	test_task_await_sleep(&task);

	set_virr(other);
	TEST_ASSERT(mremap(other, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   self->vapic) == self->vapic, "mremap(): errno %d", errno);
	ended = test_task_join_in_time(&task);
	EXPECT_TRUE(ended);
	if (!ended) {
		test_task_interrupt(&task);
		test_task_join(&task);
		return;
	}

	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), 1);
}

/* Interrupts that are posted to L2 */

static bool has_posted_interrupts(void)
{
	return has_control(MSR_IA32_VMX_TRUE_PINBASED_CTLS, PIN_BASED_POSTED_INTR);
}

#define NEEDS_POSTED_INTERRUPTS	"needs posted interrupts for L2"

static unsigned long *pi_desc(u8 *page)
{
	return (void *)page + DESC_OFFSET;
}

static void fill_desc(u8 *page)
{
	__set_bit(IRQ_VECTOR, pi_desc(page));
	__set_bit(DESC_ON, pi_desc(page));
}

static void post_interrupt(struct kvm_vm *vm, u8 *page)
{
	fill_desc(page);
	send_msi(vm, POSTED_VECTOR);
}

static bool is_posted(u8 *page)
{
	return test_bit(IRQ_VECTOR, pi_desc(page)) && test_bit(DESC_ON, pi_desc(page));
}

static bool is_virr_set(u8 *vapic)
{
	return *apic_reg(vapic, APIC_IRR + APIC_VECTOR_TO_REG_OFFSET(IRQ_VECTOR)) &
	       BIT(APIC_VECTOR_TO_BIT_NUMBER(IRQ_VECTOR));
}

/* L2's TPR inhibits no interrupt. */
static void start_l2_with_posted_interrupts(struct kvm_vcpu *vcpu, u8 *vapic)
{
	vm_install_exception_handler(vcpu->vm, IRQ_VECTOR, irq_handler);
	l1.pin_based |= PIN_BASED_EXT_INTR_MASK | PIN_BASED_POSTED_INTR;
	l1.secondary |= SECONDARY_EXEC_VIRTUAL_INTR_DELIVERY;
	l1.exit |= VM_EXIT_ACK_INTR_ON_EXIT;
	start_l2(vcpu, vapic);
	TEST_ASSERT_EQ(run_op(vcpu, SET_TPR, 0), 0);
	TEST_ASSERT(!wakes(vcpu), "An interrupt is pending");
}

/* L2 gets the interrupt, by way of both pages. */
static void expect_posted_interrupt(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
				    u8 *vapic, u8 *page)
{
	bool woken = wakes(vcpu);

	EXPECT_TRUE(woken);
	EXPECT_TRUE(is_virr_set(vapic));
	EXPECT_FALSE(is_posted(page));
	if (!woken)
		return;

	EXPECT_EQ(run_op(vcpu, HALT, 0), 1);
	EXPECT_FALSE(is_virr_set(vapic));
}

TEST_F(nested_vmx_pages, posted_interrupt)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	post_interrupt(self->vm, self->desc_page);
	expect_posted_interrupt(_metadata, self->vcpu, self->vapic, self->desc_page);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

static void post_after_remap(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu,
			     u8 *vapic, u8 *desc_page, u8 *remapped)
{
	start_l2_with_posted_interrupts(vcpu, vapic);
	remap_page(remapped);
	post_interrupt(vcpu->vm, desc_page);
	expect_posted_interrupt(_metadata, vcpu, vapic, desc_page);
}

TEST_F(nested_vmx_pages, posted_interrupt_desc_remapped)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	post_after_remap(_metadata, self->vcpu, self->vapic, self->desc_page, self->desc_page);
}

TEST_F(nested_vmx_pages, posted_interrupt_desc_migrated)
{
	int i;

	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);
	if (!has_two_nodes())
		SKIP(return, "needs two nodes");

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	for (i = 0; i < 2; i++)
		migrate(_metadata, self->desc_page, i);
	post_interrupt(self->vm, self->desc_page);
	expect_posted_interrupt(_metadata, self->vcpu, self->vapic, self->desc_page);
}

TEST_F(nested_vmx_pages, posted_interrupt_vapic_remapped)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	post_after_remap(_metadata, self->vcpu, self->vapic, self->desc_page, self->vapic);
}

/* L2 ignores a SIPI, but KVM looks at L2's other events, too. */
static void deliver_events_without_run(struct kvm_vcpu *vcpu)
{
	struct kvm_mp_state state;

	send_msi(vcpu->vm, APIC_DM_STARTUP);
	vcpu_mp_state_get(vcpu, &state);
}

/*
 * KVM delivers events while the virtual-APIC page isn't mapped, and can't map
 * it there.  It must take nothing out of the descriptor.
 */
TEST_F(nested_vmx_pages, posted_interrupt_before_vapic)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	remap_page(self->vapic);
	post_interrupt(self->vm, self->desc_page);
	deliver_events_without_run(self->vcpu);
	EXPECT_TRUE(is_posted(self->desc_page));
	expect_posted_interrupt(_metadata, self->vcpu, self->vapic, self->desc_page);
}

TEST_F(nested_vmx_pages, posted_interrupt_while_halted)
{
	u8 *other = alloc_page();
	struct test_task task;
	bool ended;

	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	set_todo(self->vm, HALT, 0);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	test_task_await_sleep(&task);

	fill_desc(other);
	remap_page(self->vapic);
	TEST_ASSERT(mremap(other, PAGE_SIZE, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   self->desc_page) == self->desc_page, "mremap(): errno %d", errno);
	send_msi(self->vm, POSTED_VECTOR);
	ended = test_task_join_in_time(&task);
	EXPECT_TRUE(ended);
	EXPECT_FALSE(is_posted(self->desc_page));
	if (!ended) {
		test_task_interrupt(&task);
		test_task_join(&task);
		return;
	}

	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), 1);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, posted_interrupt_logged)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	start_dirty_log(self->vm, self->mem);
	is_dirty(self->vm, VAPIC);
	is_dirty(self->vm, DESC);

	/* KVM takes the interrupt, and KVM_RUN returns before L2 is entered. */
	post_interrupt(self->vm, self->desc_page);
	EXPECT_TRUE(wakes(self->vcpu));
	EXPECT_FALSE(is_posted(self->desc_page));
	EXPECT_TRUE(is_dirty(self->vm, VAPIC));
	EXPECT_TRUE(is_dirty(self->vm, DESC));
	EXPECT_EQ(run_op(self->vcpu, HALT, 0), 1);
}

TEST_F(nested_vmx_pages, posted_interrupt_desc_unbacked_then_back)
{
	u8 *other = alloc_page();
	bool failed;

	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	delete_slot(self->vm, DESC);
	failed = run_unbacked(self->vcpu);
	EXPECT_TRUE(failed);

	set_slot(self->vm, DESC, 0, other);
	run_backed(self->vcpu, failed);
	TEST_ASSERT_EQ(run_op(self->vcpu, SET_TPR, 0), 0);
	post_interrupt(self->vm, other);
	expect_posted_interrupt(_metadata, self->vcpu, self->vapic, other);
	kvm_munmap(other, PAGE_SIZE);
}

/* L2 runs nevertheless until an interrupt is posted. */
TEST_F(nested_vmx_pages, posted_interrupt_desc_no_memslot)
{
	if (!has_posted_interrupts())
		SKIP(return, NEEDS_POSTED_INTERRUPTS);

	l1.desc = UNBACKED_GPA;
	start_l2_with_posted_interrupts(self->vcpu, self->vapic);
	expect_vapic(_metadata, self->vcpu, self->vapic);
	send_msi(self->vm, POSTED_VECTOR);
	EXPECT_TRUE(run_fails(self->vcpu));
}

/* L1's MSR bitmap, which KVM reads at each entry */

/* Of MSRs from 0xc0000000 on, whether L1 intercepts reads of MSR_FS_BASE. */
static void set_intercept(u8 *bitmap, bool intercept)
{
	unsigned long *high = (void *)bitmap + 0x400;

	if (intercept)
		__set_bit(MSR_FS_BASE & 0x1fff, high);
	else
		__clear_bit(MSR_FS_BASE & 0x1fff, high);
}

static void expect_bitmap(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu, u8 *bitmap)
{
	int i;

	for (i = 0; i < 2; i++) {
		set_intercept(bitmap, i);
		/* Of both L2s, in turn. */
		EXPECT_EQ(run_op(vcpu, EXIT_TO_L1, 0), 0);
		EXPECT_EQ(run_op(vcpu, READ_MSR, 0), i ? EMULATED : 0);
	}
}

TEST_F(nested_vmx_pages, bitmap_dropped)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	expect_bitmap(_metadata, self->vcpu, bitmap);
	kvm_madvise(bitmap, PAGE_SIZE, MADV_DONTNEED);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

TEST_F(nested_vmx_pages, bitmap_read_only)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	delete_slot(self->vm, BITMAP);
	set_slot(self->vm, BITMAP, KVM_MEM_READONLY, bitmap);
	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

/* All accesses exit to L1 if the bitmap can't be read. */
static void expect_all_intercepted(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	EXPECT_EQ(run_op(vcpu, EXIT_TO_L1, 0), 0);
	EXPECT_EQ(run_op(vcpu, READ_MSR, 0), EMULATED);
}

TEST_F(nested_vmx_pages, bitmap_no_memslot)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	delete_slot(self->vm, BITMAP);
	expect_all_intercepted(_metadata, self->vcpu);
	set_slot(self->vm, BITMAP, 0, bitmap);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

TEST_F(nested_vmx_pages, bitmap_inaccessible)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	TEST_ASSERT_EQ(mprotect(bitmap, PAGE_SIZE, PROT_NONE), 0);
	expect_all_intercepted(_metadata, self->vcpu);
	TEST_ASSERT_EQ(mprotect(bitmap, PAGE_SIZE, PROT_READ | PROT_WRITE), 0);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

TEST_F(nested_vmx_pages, bitmap_poisoned)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	set_intercept(bitmap, false);
	hwpoison(bitmap);
	expect_all_intercepted(_metadata, self->vcpu);
	map_anonymous(bitmap, PAGE_SIZE);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

TEST_F(nested_vmx_pages, bitmap_bare)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;

	if (!map_bare(bitmap, 0))
		SKIP(return, NEEDS_BARE_MEMORY);

	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2(self->vcpu, self->vapic);
	expect_bitmap(_metadata, self->vcpu, bitmap);
}

/* The end of a VMM */

#define NR_REAPED	4
#define MAX_TRIES	16

/* Have L2 run until the process is killed. */
static void run_l2_forever(int ready)
{
	u8 *mem = alloc_memory();
	struct kvm_vcpu *vcpu = create_vm(mem);
	typeof(game) *g = addr_gva2hva(vcpu->vm, (gva_t)&game);
	struct test_task task;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	start_l2(vcpu, mem + VAPIC * PAGE_SIZE);
	set_todo(vcpu->vm, PLAY, 0);
	WRITE_ONCE(g->round, 1);
	test_task_start(&task, test_task_vcpu_run, vcpu);
	while (!READ_ONCE(g->played))
		sched_yield();

	TEST_ASSERT_EQ(write(ready, "", 1), 1);
	test_task_join(&task);
	TEST_FAIL("L2 has stopped");
}

/* Return false if the VMM had exited by then. */
static bool reap_vmm(void)
{
	int ready[2], pidfd, ret;
	pid_t vmm;
	char c;

	TEST_ASSERT_EQ(pipe(ready), 0);
	vmm = fork();
	TEST_ASSERT(vmm >= 0, "fork(): errno %d", errno);
	if (!vmm)
		run_l2_forever(ready[1]);

	close(ready[1]);
	TEST_ASSERT_EQ(read(ready[0], &c, 1), 1);
	pidfd = syscall(__NR_pidfd_open, vmm, 0);
	TEST_ASSERT(pidfd >= 0, "pidfd_open(): errno %d", errno);
	TEST_ASSERT_EQ(kill(vmm, SIGKILL), 0);
	do {
		ret = syscall(__NR_process_mrelease, pidfd, 0) ? errno : 0;
	} while (ret == EINVAL || ret == EAGAIN);

	TEST_ASSERT(!ret || ret == ESRCH, "process_mrelease(): errno %d", ret);
	TEST_ASSERT_EQ(waitpid(vmm, NULL, 0), vmm);
	close(pidfd);
	close(ready[0]);
	return !ret;
}

/*
 * The memory goes while L2 runs and may be using it: the notifier may not sleep
 * and must wait for the vCPU.  Only the kernel tells, by KASAN and lockdep.
 */
TEST(reaped_in_l2)
{
	int i, reaped = 0;

	for (i = 0; i < NR_REAPED || (i < MAX_TRIES && !reaped); i++)
		reaped += reap_vmm();

	TH_LOG("%d of %d were reaped", reaped, i);
	EXPECT_LT(0, reaped);
}

/* Addresses that KVM can't map */

TEST_F(nested_vmx_pages, vapic_no_memslot)
{
	l1.vapic[0] = UNBACKED_GPA;
	EXPECT_EQ(launch(self->vcpu), VMFAIL + INVALID_CONTROL);

	l1.vapic[0] = GPA(VAPIC);
	start_l2(self->vcpu, self->vapic);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

/*
 * The APIC-access page goes while KVM reads the MSR bitmap, the last thing that
 * it does before L2 is entered.
 */
TEST_F(nested_vmx_pages, vapic_no_memslot_and_access_dropped)
{
	u8 *bitmap = self->mem + BITMAP * PAGE_SIZE;
	struct test_task task;
	int uffd;

	l1.vapic[1] = UNBACKED_GPA;
	l1.cpu_based |= CPU_BASED_USE_MSR_BITMAPS;
	start_l2_with_apic_access(self->vcpu, self->vapic);

	uffd = uffd_page_take(bitmap);
	set_todo(self->vm, EXIT_TO_L1, 0);
	test_task_start(&task, test_task_vcpu_run, self->vcpu);
	uffd_page_await(uffd, bitmap);
	drop_page(self->access);
	uffd_page_bring(uffd, bitmap);
	close(uffd);
	test_task_join(&task);

	TEST_ASSERT_EQ(task.ret, 0);
	EXPECT_EQ(get_result(self->vcpu), VMFAIL + INVALID_CONTROL);
}

/* L2 can't access TPR, so that the page doesn't matter. */
TEST_F(nested_vmx_pages, vapic_no_memslot_and_unused)
{
	l1.vapic[0] = UNBACKED_GPA;
	l1.cpu_based |= CPU_BASED_CR8_LOAD_EXITING | CPU_BASED_CR8_STORE_EXITING;
	EXPECT_EQ(launch(self->vcpu), 0);
}

TEST_F(nested_vmx_pages, vapic_read_only)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	delete_slot(self->vm, VAPIC);
	set_slot(self->vm, VAPIC, KVM_MEM_READONLY, self->vapic);
	EXPECT_EQ(launch(self->vcpu), VMFAIL + INVALID_CONTROL);

	replace_slot(self->vm, VAPIC, self->vapic);
	start_l2(self->vcpu, self->vapic);
	expect_vapic(_metadata, self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_unaligned)
{
	l1.vapic[0] = GPA(VAPIC) + 16;
	EXPECT_EQ(launch(self->vcpu), VMFAIL + INVALID_CONTROL);

	l1.vapic[0] = GPA(VAPIC);
	start_l2(self->vcpu, self->vapic);
}

TEST_F(nested_vmx_pages, vapic_beyond_physical_width)
{
	l1.vapic[0] = 1ULL << 52;
	EXPECT_EQ(launch(self->vcpu), VMFAIL + INVALID_CONTROL);

	l1.vapic[0] = GPA(VAPIC);
	start_l2(self->vcpu, self->vapic);
}

/* The last page of a memslot, with nothing behind it. */
TEST_F(nested_vmx_pages, vapic_last_page)
{
	u8 *mem = kvm_mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	vm_set_user_memory_region(self->vm, SLOT(NR_PAGES), 0, UNBACKED_GPA, 2 * PAGE_SIZE, mem);
	l1.vapic[0] = UNBACKED_GPA + PAGE_SIZE;
	start_l2(self->vcpu, mem + PAGE_SIZE);
	expect_vapic(_metadata, self->vcpu, mem + PAGE_SIZE);
	kvm_munmap(mem, 2 * PAGE_SIZE);
}

/* L1 executes VMLAUNCH again, once KVM_RUN has failed. */
static void expect_launch_fails(struct __test_metadata *_metadata, struct kvm_vcpu *vcpu)
{
	sync_global_to_guest(vcpu->vm, l1);
	EXPECT_TRUE(run_fails(vcpu));
	EXPECT_TRUE(run_fails(vcpu));
}

TEST_F(nested_vmx_pages, apic_access_no_memslot)
{
	l1.secondary |= SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
	delete_slot(self->vm, ACCESS);
	expect_launch_fails(_metadata, self->vcpu);

	set_slot(self->vm, ACCESS, 0, self->access);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

TEST_F(nested_vmx_pages, apic_access_read_only)
{
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_READONLY_MEM));

	l1.secondary |= SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES;
	delete_slot(self->vm, ACCESS);
	set_slot(self->vm, ACCESS, KVM_MEM_READONLY, self->access);
	expect_launch_fails(_metadata, self->vcpu);

	replace_slot(self->vm, ACCESS, self->access);
	start_l2_with_apic_access(self->vcpu, self->vapic);
	expect_apic_access(_metadata, self->vcpu, self->vapic, self->access);
}

int main(int argc, char *argv[])
{
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_VMX));
	TEST_REQUIRE(has_control(MSR_IA32_VMX_TRUE_PROCBASED_CTLS, CPU_BASED_TPR_SHADOW));
	TEST_REQUIRE(has_secondary_control(SECONDARY_EXEC_VIRTUALIZE_APIC_ACCESSES));

	return test_harness_run(argc, argv);
}
