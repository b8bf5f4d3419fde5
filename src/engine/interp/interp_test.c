/* Single instructions in 64-bit mode without paging tables of note: results, flags, exceptions. */
#include "engine/interp/interp.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "engine/mmu.h"
#include "x86/cpuid.h"
#include "x86/descriptor.h"

enum {
    RAM_SIZE = 1 << 20,
    ROOT = 0x1000, /* page tables: everything in the first 2 MiB mapped to itself */
    CODE = 0x8000,
    DATA = 0x9000,
    STACK = 0xb000,
    UNMAPPED = 0x200000,
};

struct fixture {
    struct memory *memory;
    struct cpuid_table *cpuid;
    struct vcpu *vcpu;
    struct sigaction on_sigfpe; /* the engine's; the test framework puts its own in its place */
};

static uint64_t no_cr8(void *owner, unsigned vcpu)
{
    return 0;
}

static uint32_t echo_port(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    return 0x12340000u | port;
}

static uint64_t device_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    return gpa * 0x100 + size;
}

static const struct engine_host host = {
    .port_read = echo_port, .mmio_read = device_read, .cr8_read = no_cr8};

static void map(struct fixture *fixture, gpa_t at, uint64_t entry)
{
    assert_int_equal(memory_write(fixture->memory, at, &entry, 8), 0);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof *fixture);
    const struct memory_range ram = {0, RAM_SIZE};
    const struct cpuid_config config = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    *state = fixture;
    if (memory_new(&ram, 1, "interp_test", &fixture->memory) ||
        cpuid_table_new(&config, &fixture->cpuid)) {
        return -1;
    }
    map(fixture, ROOT, (ROOT + 0x1000) | PTE_P | PTE_W | PTE_U);
    map(fixture, ROOT + 0x1000, (ROOT + 0x2000) | PTE_P | PTE_W | PTE_U);
    map(fixture, ROOT + 0x2000, PTE_P | PTE_W | PTE_U | PTE_PS);
    fixture->vcpu = aligned_alloc(64, align_up(sizeof *fixture->vcpu, 64));
    memset(fixture->vcpu, 0, sizeof *fixture->vcpu);
    fixture->vcpu->tlb = calloc(1, sizeof *fixture->vcpu->tlb);
    fixture->vcpu->memory = fixture->memory;
    fixture->vcpu->cpuid = fixture->cpuid;
    fixture->vcpu->host = &host;
    int r = interp_attach(fixture->vcpu);
    sigaction(SIGFPE, NULL, &fixture->on_sigfpe);
    return r;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    interp_detach(fixture->vcpu);
    free(fixture->vcpu->tlb);
    free(fixture->vcpu);
    cpuid_table_free(fixture->cpuid);
    memory_free(fixture->memory);
    free(fixture);
    return 0;
}

/* 64-bit mode at CPL 0 or 3, RSI at DATA, code in place. */
static struct vcpu *prepare(struct fixture *fixture, const char *code, size_t length, unsigned cpl)
{
    struct vcpu *vcpu = fixture->vcpu;
    struct cpu_state *s = &vcpu->state;
    cpu_state_reset(s, true);
    s->cr0 = CR0_PE | CR0_PG | CR0_NE | CR0_WP | CR0_ET;
    s->cr3 = ROOT;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    s->efer = EFER_LME | EFER_LMA | EFER_SCE;
    s->segment[CS] = segment_flat((uint16_t)(8 | cpl), true, true, cpl);
    s->segment[SS] = segment_flat((uint16_t)(16 | cpl), false, true, cpl);
    s->tr = segment_null(0, 0);
    s->rip = CODE;
    s->gpr[RSP] = STACK;
    s->gpr[RSI] = DATA;
    vcpu_mode_changed(vcpu);
    tlb_flush_all(vcpu->tlb);
    assert_int_equal(memory_write(fixture->memory, CODE, code, length), 0);
    return vcpu;
}

/* Run the instruction at RIP; exceptions stay undelivered in vcpu->exception. */
static enum step step_raw(struct vcpu *vcpu)
{
    struct insn insn;
    uint8_t bytes[INSN_MAX_LENGTH];
    unsigned count;
    assert_int_equal(mmu_fetch(vcpu, vcpu->state.rip, bytes, &count), STEP_NEXT);
    assert_int_equal(decode(DECODE_64, bytes, count, &insn), DECODE_OK);
    return interp_execute(vcpu, &insn);
}

struct value_case {
    const char *name, *code;
    size_t length;
    uint64_t rax, rcx, flags; /* before */
    uint64_t memory;          /* at DATA */
    uint64_t ret_rax, ret_flags, ret_memory;
    uint64_t undefined; /* flags that the manual leaves open, and vendors fill differently */
};

#define BYTES(string) string, sizeof string - 1
#define CF            FLAG_CF
#define PF            FLAG_PF
#define AF            FLAG_AF
#define ZF            FLAG_ZF
#define SF            FLAG_SF
#define OF            FLAG_OF

static const struct value_case values[] = {
    {"add al, cl", BYTES("\x00\xc8"), 0x1ff, 1, 0, 0, 0x100, CF | PF | AF | ZF, 0, 0},
    {"add eax, ecx", BYTES("\x01\xc8"), ~0ull, 2, 0, 0, 1, CF | AF, 0, 0},
    {"adc rax, rcx", BYTES("\x48\x11\xc8"), 1, 2, CF, 0, 4, 0, 0, 0},
    {"sub ah, cl", BYTES("\x28\xcc"), 0x1234, 0x12, 0, 0, 0x34, PF | ZF, 0, 0},
    {"neg [rsi]", BYTES("\x48\xf7\x1e"), 0, 0, 0, 1, 0, CF | PF | AF | SF, ~0ull, 0},
    {"lock inc [rsi]", BYTES("\xf0\xff\x06"), 0, 0, CF, 0x7fffffff, 0, CF | PF | AF | SF | OF,
     0x80000000, 0},
    {"lock xadd [rsi], rax", BYTES("\xf0\x48\x0f\xc1\x06"), 5, 0, 0, 7, 7, PF, 12, 0},
    {"xchg [rsi], rax", BYTES("\x48\x87\x06"), 5, 0, ZF, 7, 7, ZF, 5, 0},
    {"lock cmpxchg [rsi], ecx, equal", BYTES("\xf0\x0f\xb1\x0e"), 7, 9, 0, 7, 7, PF | ZF, 9, 0},
    {"lock cmpxchg [rsi], ecx, not", BYTES("\xf0\x0f\xb1\x0e"), 8, 9, 0, 7, 7, 0, 7, 0},
    {"lock bts [rsi], rcx", BYTES("\xf0\x48\x0f\xab\x0e"), 0, 63, 0, 0, 0, 0, 1ull << 63,
     OF | SF | AF | PF},
    {"shl eax, cl", BYTES("\xd3\xe0"), 0x80000001, 1, 0, 0, 2, CF | OF, 0, AF},
    {"shl eax, 0 keeps flags", BYTES("\xd3\xe0"), 3, 32, CF | OF, 0, 3, CF | OF, 0, 0},
    {"bswap rax", BYTES("\x48\x0f\xc8"), 0x0102030405060708, 0, 0, 0, 0x0807060504030201, 0, 0, 0},
    {"cmove eax, ecx, not taken", BYTES("\x0f\x44\xc1"), ~0ull, 2, 0, 0, 0xffffffff, 0, 0, 0},
    {"setb al", BYTES("\x0f\x92\xc0"), 0xff00, 0, CF, 0, 0xff01, CF, 0, 0},
    {"movsx rax, byte [rsi]", BYTES("\x48\x0f\xbe\x06"), 0, 0, 0, 0x80, -0x80ull, 0, 0x80, 0},
    {"imul eax, ecx, -1", BYTES("\x6b\xc1\xff"), 0, 3, 0, 0, 0xfffffffd, 0, 0, SF | ZF | AF | PF},
    {"crc32 eax, cl", BYTES("\xf2\x0f\x38\xf0\xc1"), 0, 1, 0, 0, 0xf26b8303, 0, 0, 0},
    {"popcnt eax, ecx", BYTES("\xf3\x0f\xb8\xc1"), 0, 0xff, CF, 0, 8, 0, 0, 0},
    {"in eax, dx at CPL 0", BYTES("\xe5\x60"), 0, 0, 0, 0, 0x12340060, 0, 0, 0},
    {"movd xmm0, [rsi]", BYTES("\x66\x0f\x6e\x06"), 0, 0, 0, 5, 0, 0, 5, 0},
    {"cvtsi2sd, cvttsd2si", BYTES("\xf2\x48\x0f\x2d\x06"), 0, 0, 0, 0x4045000000000000, 42, 0,
     0x4045000000000000, 0},
};

static void test_values(void **state)
{
    struct fixture *fixture = *state;
    for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
        const struct value_case *c = &values[i];
        struct vcpu *vcpu = prepare(fixture, c->code, c->length, 0);
        uint64_t memory = 0;
        vcpu->state.gpr[RAX] = c->rax;
        vcpu->state.gpr[RCX] = c->rcx;
        vcpu->state.rflags |= c->flags;
        assert_int_equal(memory_write(fixture->memory, DATA, &c->memory, 8), 0);
        print_message("%s\n", c->name);
        assert_int_equal(step_raw(vcpu), STEP_NEXT);
        assert_int_equal(memory_read(fixture->memory, DATA, &memory, 8), 0);
        assert_int_equal(vcpu->state.rip, CODE + c->length);
        assert_int_equal(vcpu->state.gpr[RAX], c->ret_rax);
        assert_int_equal(vcpu->state.rflags & FLAGS_ARITHMETIC & ~c->undefined, c->ret_flags);
        assert_int_equal(memory, c->ret_memory);
    }
}

struct fault_case {
    const char *name, *code;
    size_t length;
    unsigned cpl;
    uint64_t rsi, rax;
    unsigned vector, error_code;
};

static const struct fault_case faults[] = {
    {"read of nothing", BYTES("\x8b\x06"), 0, UNMAPPED, 0, EXCEPTION_PF, 0},
    {"write of nothing, user", BYTES("\x89\x06"), 3, UNMAPPED, 0, EXCEPTION_PF, PF_WRITE | PF_USER},
    {"read-modify-write is a write", BYTES("\xff\x06"), 0, UNMAPPED, 0, EXCEPTION_PF, PF_WRITE},
    {"second page", BYTES("\x8b\x06"), 0, UNMAPPED - 1, 0, EXCEPTION_PF, 0},
    {"not canonical", BYTES("\x8b\x06"), 0, 1ull << 47, 0, EXCEPTION_GP, 0},
    {"hlt, user", BYTES("\xf4"), 3, 0, 0, EXCEPTION_GP, 0},
    {"in, user", BYTES("\xe4\x60"), 3, 0, 0, EXCEPTION_GP, 0},
    {"cli, user", BYTES("\xfa"), 3, 0, 0, EXCEPTION_GP, 0},
    {"mov cr3, user", BYTES("\x0f\x22\xd8"), 3, 0, 0, EXCEPTION_GP, 0},
    {"sysexit, user, on CPUs that have none in long mode too", BYTES("\x0f\x35"), 3, 0, 0,
     EXCEPTION_GP, 0},
    {"divide by zero", BYTES("\xf7\xf6"), 0, 0, 0, EXCEPTION_DE, 0},
    {"movaps, misaligned", BYTES("\x0f\x28\x06"), 0, DATA + 8, 0, EXCEPTION_GP, 0},
    {"movaps, misaligned across to nothing", BYTES("\x0f\x28\x06"), 0, UNMAPPED - 8, 0,
     EXCEPTION_GP, 0},
    {"cmpxchg16b, misaligned", BYTES("\x48\x0f\xc7\x0e"), 0, DATA + 8, 0, EXCEPTION_GP, 0},
    {"vaddps without AVX in the model", BYTES("\xc5\xf8\x58\xc0"), 0, 0, 0, EXCEPTION_UD, 0},
};

static void test_faults(void **state)
{
    struct fixture *fixture = *state;
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++) {
        const struct fault_case *c = &faults[i];
        struct vcpu *vcpu = prepare(fixture, c->code, c->length, c->cpl);
        vcpu->state.gpr[RSI] = c->rsi;
        vcpu->state.gpr[RAX] = c->rax;
        print_message("%s\n", c->name);
        assert_int_equal(step_raw(vcpu), STEP_EXCEPTION);
        assert_int_equal(vcpu->exception.vector, c->vector);
        assert_int_equal(vcpu->exception.error_code, c->error_code);
        assert_int_equal(vcpu->state.rip, CODE);
        assert_int_equal(vcpu->state.gpr[RSP], STACK);
    }
}

/* Floating-point exceptions of the host become the guest's. */
static void test_numeric_exceptions(void **state)
{
    struct fixture *fixture = *state;
    sigaction(SIGFPE, &fixture->on_sigfpe, NULL);
    struct vcpu *vcpu = prepare(fixture, BYTES("\xf3\x0f\x5e\xc1"), 0); /* divss: 0 / 0 */
    store_le32(vcpu->state.xsave + 24, 0x1f00);                         /* invalid is unmasked */
    assert_int_equal(step_raw(vcpu), STEP_EXCEPTION);
    assert_int_equal(vcpu->exception.vector, EXCEPTION_XM);
    assert_int_equal(load_le32(vcpu->state.xsave + 24), 0x1f01);

    /* fldz; fldz; fdivp sets the exception pending, fwait reports it. */
    vcpu = prepare(fixture, BYTES("\xd9\xee\xd9\xee\xde\xf9\x9b"), 0);
    store_le16(vcpu->state.xsave, 0x37e);
    store_le64(vcpu->state.xsave + 512, XCR0_X87);
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(step_raw(vcpu), STEP_NEXT);
    }
    assert_int_equal(step_raw(vcpu), STEP_EXCEPTION);
    assert_int_equal(vcpu->exception.vector, EXCEPTION_MF);
    assert_int_equal(load_le64(vcpu->state.xsave + 8), CODE + 4); /* the guest's own pointer */
}

static void test_string_runs(void **state)
{
    struct fixture *fixture = *state;
    struct vcpu *vcpu = prepare(fixture, BYTES("\xf3\xa4"), 0);
    uint8_t from[300], to[300];
    for (unsigned i = 0; i < sizeof from; i++) {
        from[i] = (uint8_t)(i * 7);
    }
    assert_int_equal(memory_write(fixture->memory, DATA + 0xf80, from, sizeof from), 0);
    vcpu->state.gpr[RSI] = DATA + 0xf80;
    vcpu->state.gpr[RDI] = 0x20f10;
    vcpu->state.gpr[RCX] = sizeof from;
    unsigned steps = 0;
    while (vcpu->state.rip == CODE) {
        assert_int_equal(step_raw(vcpu), STEP_NEXT);
        steps++;
    }
    assert_int_equal(vcpu->state.gpr[RCX], 0);
    assert_int_equal(vcpu->state.gpr[RDI], 0x20f10 + sizeof from);
    assert_int_equal(memory_read(fixture->memory, 0x20f10, to, sizeof to), 0);
    assert_memory_equal(from, to, sizeof to);
    assert_true(steps <= 6);

    /* An overlapping copy repeats its pattern. */
    vcpu = prepare(fixture, BYTES("\xf3\xa4"), 0);
    vcpu->state.gpr[RSI] = DATA;
    vcpu->state.gpr[RDI] = DATA + 1;
    vcpu->state.gpr[RCX] = 200;
    assert_int_equal(memory_write(fixture->memory, DATA, "\x5a", 1), 0);
    while (vcpu->state.rip == CODE) {
        assert_int_equal(step_raw(vcpu), STEP_NEXT);
    }
    assert_int_equal(memory_read(fixture->memory, DATA + 200, to, 1), 0);
    assert_int_equal(to[0], 0x5a);
}

/* Interrupts wait for one instruction after STI, and IF comes from SYSRET's R11. */
static void test_shadow_and_syscall(void **state)
{
    struct fixture *fixture = *state;
    struct vcpu *vcpu = prepare(fixture, BYTES("\xfb\x90\x0f\x05"), 0);
    assert_int_equal(step_raw(vcpu), STEP_NEXT);
    assert_true(vcpu->state.interrupt_shadow);
    assert_int_equal(step_raw(vcpu), STEP_NEXT);
    assert_false(vcpu->state.interrupt_shadow);
    vcpu->state.star = 0x0013000800000000;
    vcpu->state.lstar = CODE + 0x100;
    vcpu->state.sfmask = FLAG_IF;
    assert_int_equal(step_raw(vcpu), STEP_NEXT);
    assert_int_equal(vcpu->state.rip, CODE + 0x100);
    assert_int_equal(vcpu->state.gpr[RCX], CODE + 4);
    assert_true(vcpu->state.gpr[R11] & FLAG_IF);
    assert_false(vcpu->state.rflags & FLAG_IF);
    assert_int_equal(vcpu->state.segment[CS].selector, 8);
}

/* A fault that cannot be delivered: double fault, then shutdown. */
static void test_triple_fault(void **state)
{
    struct fixture *fixture = *state;
    struct vcpu *vcpu = prepare(fixture, BYTES("\x0f\x0b"), 0);
    vcpu->state.idtr.limit = 0;
    assert_int_equal(interp_step(vcpu), STEP_SHUTDOWN);
    assert_int_equal(vcpu->state.activity, ACTIVITY_SHUTDOWN);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),       cmocka_unit_test(test_faults),
        cmocka_unit_test(test_string_runs),  cmocka_unit_test(test_numeric_exceptions),
        cmocka_unit_test(test_triple_fault), cmocka_unit_test(test_shadow_and_syscall),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
