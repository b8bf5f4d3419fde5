/*
 * The local APIC in x2APIC mode, its TSC deadline, and the hypercalls of the KVM interface. SDM
 * volume 3, 11.5.4.1 and 11.12; Linux, Documentation/virt/kvm/x86/hypercalls.rst.
 */
#include "runtime.h"

enum {
    MSR_APIC_BASE = 0x1b,
    MSR_TSC = 0x10,
    MSR_TSC_ADJUST = 0x3b,
    MSR_TSC_DEADLINE = 0x6e0,
    BASE_X2APIC = 0x400,
    BASE_ENABLE = 0x800,
    X2APIC_ID = 0x802,
    X2APIC_TPR = 0x808,
    X2APIC_EOI = 0x80b,
    X2APIC_LDR = 0x80d,
    X2APIC_DFR = 0x80e,
    X2APIC_SVR = 0x80f,
    X2APIC_ISR = 0x810,
    X2APIC_ICR = 0x830,
    X2APIC_TIMER = 0x832,
    X2APIC_INITIAL = 0x838,
    X2APIC_CURRENT = 0x839,
    X2APIC_DIVIDE = 0x83e,
    X2APIC_SELF = 0x83f,
    TIMER_DEADLINE = 0x40000,
    VECTOR = 0x61,
    TIMER_VECTOR = 0x62,
    NO_SUCH_CALL = 1000,
};
#define APIC(offset) (*(volatile uint32_t *)(0xfee00000ul + (offset)))

SNIPPET(do_wrmsr, "wrmsr");
SNIPPET(do_rdmsr, "rdmsr");
SNIPPET(nops, "nop; nop; nop; nop");
SNIPPET(wait_loop, "sti; 1: jmp 1b");
SNIPPET(sti_hlt, "sti; hlt; nop; cli");
SNIPPET(kick_hlt, "vmcall; hlt; nop");
SNIPPET(user_vmcall, "vmcall");
SNIPPET(user_vmmcall, "vmmcall");

static struct context run_msr(const char *code, uint32_t index, uint64_t value)
{
    struct context c;
    context_init(&c, code);
    c.gpr[RCX] = index;
    c.gpr[RAX] = (uint32_t)value;
    c.gpr[RDX] = value >> 32;
    context_run(&c);
    return c;
}

static void refused(const char *name, uint32_t index, uint64_t value)
{
    struct context c = run_msr(do_wrmsr, index, value);
    check_stop(name, &c, GP, 0, (uintptr_t)do_wrmsr);
}

static void unreadable(const char *name, uint32_t index)
{
    struct context c = run_msr(do_rdmsr, index, 0);
    check_stop(name, &c, GP, 0, (uintptr_t)do_rdmsr);
}

static struct context run(const char *code, uintptr_t flags)
{
    struct context c;
    context_init(&c, code);
    c.flags |= flags;
    context_run(&c);
    return c;
}

/* Figure 11-9: what may follow what. */
static void test_transitions(void)
{
    uint64_t base = read_msr(MSR_APIC_BASE) & ~(uint64_t)(BASE_X2APIC | BASE_ENABLE);
    check("begins in xAPIC mode", read_msr(MSR_APIC_BASE) & 0xd00, 0x900);
    check("CPUID: x2APIC, TSC deadline", cpuid(1, 0).ecx >> 21 & 9, 9);
    unreadable("xAPIC: no MSRs", X2APIC_ID);
    refused("xAPIC: no EOI by MSR", X2APIC_EOI, 0);
    refused("xAPIC to invalid", MSR_APIC_BASE, base | BASE_X2APIC);
    refused("reserved bits", MSR_APIC_BASE, base | BASE_ENABLE | 1);
    write_msr(MSR_APIC_BASE, base);
    check("disabled", read_msr(MSR_APIC_BASE), base);
    refused("disabled to x2APIC", MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC);
    refused("disabled to invalid", MSR_APIC_BASE, base | BASE_X2APIC);
    write_msr(MSR_APIC_BASE, base | BASE_ENABLE);
    APIC(0xf0) = 0x1ff;
    APIC(0x80) = 0x20;
    write_msr(MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC);
    check("xAPIC to x2APIC", read_msr(MSR_APIC_BASE) & 0xc00, 0xc00);
    check("  keeps SVR", read_msr(X2APIC_SVR), 0x1ff);
    check("  keeps TPR", read_msr(X2APIC_TPR), 0x20);
    check("  makes LDR of the ID", read_msr(X2APIC_LDR), 1);
    check("  no page any more", APIC(0xf0), 0xffffffff);
    refused("x2APIC to xAPIC", MSR_APIC_BASE, base | BASE_ENABLE);
    refused("x2APIC to invalid", MSR_APIC_BASE, base | BASE_X2APIC);
    write_msr(MSR_APIC_BASE, base);
    check("x2APIC to disabled", read_msr(MSR_APIC_BASE), base);
    write_msr(MSR_APIC_BASE, base | BASE_ENABLE);
    check("  forgets", APIC(0xf0) << 16 | APIC(0x80), 0xff0000);
    write_msr(MSR_APIC_BASE, base | BASE_ENABLE | BASE_X2APIC);
    write_msr(X2APIC_SVR, 0x1ff);
    write_msr(X2APIC_TPR, 0);
}

static void test_registers(void)
{
    unreadable("DFR is gone", X2APIC_DFR);
    unreadable("EOI is write-only", X2APIC_EOI);
    unreadable("self IPI is write-only", X2APIC_SELF);
    unreadable("ICR has one half", X2APIC_ICR + 1);
    refused("ID is read-only", X2APIC_ID, 0);
    refused("LDR is read-only", X2APIC_LDR, 1);
    refused("EOI: only 0", X2APIC_EOI, 1);
    refused("TPR: 8 bits", X2APIC_TPR, 0x100);
    refused("SVR: reserved bits", X2APIC_SVR, 0x100000000ull);
    refused("self IPI: a vector", X2APIC_SELF, 0x100);
    refused("ICR: reserved bits", X2APIC_ICR, 0x100000);
    write_msr(X2APIC_ICR, 0x500040000ull | VECTOR);
    check("ICR has 64 bits", read_msr(X2APIC_ICR), 0x500040000ull | VECTOR);
    struct context c = run(nops, FLAG_IF);
    check("  shorthand: self", c.vector, VECTOR);
    write_msr(X2APIC_EOI, 0);
}

/* What sends an interrupt to this CPU; vector state must survive the way there. */
static void arrives(const char *name, uint32_t index, uint64_t value)
{
    uint64_t before = 0x0123456789abcdef, after = 0;
    __asm__ volatile("movq %0, %%xmm9" ::"r"(before));
    write_msr(index, value);
    struct context c = run(nops, FLAG_IF);
    check(name, c.vector, VECTOR);
    check("  in service", read_msr(X2APIC_ISR + 3), 1u << (VECTOR % 32));
    write_msr(X2APIC_EOI, 0);
    check("  completed", read_msr(X2APIC_ISR + 3), 0);
    __asm__ volatile("movq %%xmm9, %0" : "=r"(after));
    check("  vector state", after, before);
}

static void test_destinations(void)
{
    uint64_t self = read_msr(X2APIC_ID) << 32, logical = read_msr(X2APIC_LDR) << 32;
    for (int i = 0; i < 3; i++) { /* also where a translator has linked the code already */
        arrives("self IPI", X2APIC_SELF, VECTOR);
        arrives("physical", X2APIC_ICR, self | VECTOR);
        arrives("logical", X2APIC_ICR, logical | 0x800 | VECTOR);
        arrives("broadcast", X2APIC_ICR, 0xffffffff00000000 | VECTOR);
        arrives("shorthand: all", X2APIC_ICR, 0x80000 | VECTOR);
    }
    write_msr(X2APIC_ICR, 0x1000000000ull | VECTOR);    /* nobody */
    write_msr(X2APIC_ICR, 0x1000100000800ull | VECTOR); /* another cluster */
    write_msr(X2APIC_ICR, 0xc0000 | VECTOR);            /* all others */
    struct context c = run(nops, FLAG_IF);
    check("to others only", c.vector, UD);
}

static bool is_due(void)
{
    for (int i = 0; i < 100; i++) {
        struct context c = run(nops, FLAG_IF);
        if (c.vector == TIMER_VECTOR) {
            write_msr(X2APIC_EOI, 0);
            return true;
        }
    }
    return false;
}

static void test_deadline(void)
{
    const uint64_t far = 1ull << 50;
    write_msr(X2APIC_TIMER, TIMER_VECTOR);
    write_msr(MSR_TSC_DEADLINE, 1);
    check("no deadline in one-shot mode", read_msr(MSR_TSC_DEADLINE), 0);
    write_msr(X2APIC_TIMER, TIMER_DEADLINE | TIMER_VECTOR);
    write_msr(X2APIC_INITIAL, 1000);
    check("the initial count does nothing", read_msr(X2APIC_CURRENT), 0);
    write_msr(MSR_TSC_DEADLINE, rdtsc() + 100000);
    struct context c = run(wait_loop, 0);
    check("a deadline in a tight loop", c.vector, TIMER_VECTOR);
    check("  is over", read_msr(MSR_TSC_DEADLINE), 0);
    write_msr(X2APIC_EOI, 0);
    uint64_t deadline = rdtsc() + 100000;
    write_msr(MSR_TSC_DEADLINE, deadline);
    c = run(sti_hlt, 0);
    check_stop("a deadline wakes HLT", &c, TIMER_VECTOR, NO_ERROR, (uintptr_t)sti_hlt + 2);
    check("  not before it", rdtsc() >= deadline, 1);
    write_msr(X2APIC_EOI, 0);
    write_msr(MSR_TSC_DEADLINE, 1);
    check("a deadline in the past: at once", is_due(), 1);
    write_msr(MSR_TSC_DEADLINE, rdtsc() + far);
    check("a deadline far away", is_due(), 0);
    write_msr(MSR_TSC_DEADLINE, 0);
    check("0 disarms", read_msr(MSR_TSC_DEADLINE) == 0 && !is_due(), 1);
    write_msr(MSR_TSC_DEADLINE, rdtsc() + far);
    write_msr(X2APIC_TIMER, TIMER_VECTOR);
    check("another mode disarms", read_msr(MSR_TSC_DEADLINE), 0);
}

/*
 * A host that pauses this CPU may let the deadline pass before the TSC goes back: then it is due in
 * earnest, so some longer ones are tried. One that did not go back with the TSC is always due.
 */
static void test_deadline_moves_back(uint64_t far)
{
    bool was_due = true;
    for (uint64_t wait = 200000; was_due && wait < 1ull << 30; wait *= 4) {
        uint64_t deadline = rdtsc() + wait;
        write_msr(MSR_TSC_DEADLINE, deadline);
        write_msr(MSR_TSC, rdtsc() - far);
        while (rdtsc() + far < deadline + 100000) {
        }
        was_due = is_due();
    }
    check("the TSC goes back", was_due, 0);
}

/* An armed deadline is one of the TSC, wherever the guest moves it. */
static void test_deadline_moves(void)
{
    const uint64_t far = 1ull << 50;
    write_msr(X2APIC_TIMER, TIMER_DEADLINE | TIMER_VECTOR);
    uint64_t deadline = rdtsc() + far;
    write_msr(MSR_TSC_DEADLINE, deadline);
    write_msr(MSR_TSC, deadline - 1000000000000);
    check("the TSC goes forward, not far enough", is_due(), 0);
    check("  still armed", read_msr(MSR_TSC_DEADLINE), deadline);
    write_msr(MSR_TSC, deadline + 1);
    check("the TSC goes past the deadline", is_due(), 1);
    deadline = rdtsc() + 1000000000000;
    write_msr(MSR_TSC_DEADLINE, deadline);
    write_msr(MSR_TSC_ADJUST, read_msr(MSR_TSC_ADJUST) + 2000000000000);
    check("IA32_TSC_ADJUST moves it past", is_due(), 1);
    test_deadline_moves_back(far);
    write_msr(MSR_TSC_DEADLINE, 0);
    write_msr(X2APIC_TIMER, 0x10000);
}

static uint64_t hypercall(bool is_amd, uint64_t number, uint64_t first, uint64_t second)
{
    if (is_amd) {
        __asm__ volatile("vmmcall" : "+a"(number) : "b"(first), "c"(second), "d"(0), "S"(0));
    } else {
        __asm__ volatile("vmcall" : "+a"(number) : "b"(first), "c"(second), "d"(0), "S"(0));
    }
    return number;
}

static void test_hypercalls(void)
{
    static const char *const users[] = {user_vmcall, user_vmmcall};
    struct context c;
    for (int is_amd = 0; is_amd < 2; is_amd++) { /* both encodings on all makers */
        check("no such call", hypercall(is_amd, 0x12345, 0, 0), -(uint64_t)NO_SUCH_CALL);
        check("no such call: 64 bits", hypercall(is_amd, 0x100000005, 0, 0),
              -(uint64_t)NO_SUCH_CALL);
        check("a vCPU that is not there", hypercall(is_amd, 5, 0, 77), 0);
        context_init_user(&c, users[is_amd]);
        c.gpr[RAX] = 5;
        context_run(&c);
        check("from CPL 3", c.gpr[RAX], (uint64_t)-1);
        check("  goes on", c.vector, UD);
    }
    for (int i = 0; i < 3; i++) { /* HLT with IF clear would never end */
        context_init(&c, kick_hlt);
        c.gpr[RAX] = 5;
        c.gpr[RCX] = read_msr(X2APIC_ID);
        context_run(&c);
        check_stop("a kick before HLT is not lost", &c, UD, NO_ERROR, (uintptr_t)kick_hlt_end);
    }
}

void test_main(void)
{
    out8(0x21, 0xff), out8(0xa1, 0xff);
    test_transitions();
    test_registers();
    test_destinations();
    test_deadline();
    test_deadline_moves();
    test_hypercalls();
}
