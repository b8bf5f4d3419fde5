/*
 * Cases on an engine: a guest in 64-bit mode at CPL 3 with the code and the data page mapped for
 * the user where the native side has them. Every vector leads to a HLT of its own, so that a case
 * ends with EXIT_HALT and its frame on a stack that is known.
 */
#include "tests/differential/differential.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/test_engine.h"
#include "x86/walk.h"

struct engine_side {
    struct test_engine engine;
    struct cpu_state initial;
    uint8_t code[4096]; /* what the guest's code page holds now */
    unsigned codes;     /* how often that was something new */
};

/* Guest-physical places. The kernel's pages are mapped at KERNEL, for the supervisor only. */
enum {
    ROOT = 0x1000,
    TABLES = 0x2000,
    IDT = 0x10000,
    STUBS = 0x11000, /* 16 bytes each */
    TASK = 0x13000,
    STACK_TOP = 0x16000,
    GDT = 0x17000,
    DATA = 0x100000,
    CODE = 0x200000, /* the first of */
    CODE_FRAMES = 64,
    RAM_SIZE = 4 << 20,
};
#define KERNEL 0xffff800000000000ull

static int put(struct engine_side *side, gpa_t gpa, const void *data, size_t size)
{
    return memory_write(side->engine.memory, gpa, data, size);
}

static int put_u64(struct engine_side *side, gpa_t gpa, uint64_t value)
{
    return put(side, gpa, &value, 8);
}

/* Map one page; tables are taken from `next` on. */
static int map(struct engine_side *side, gpa_t *next, uint64_t address, gpa_t page, uint64_t bits)
{
    gpa_t table = ROOT;
    int r = 0;
    for (unsigned shift = 39; shift > 12; shift -= 9) {
        gpa_t entry = table + 8 * (address >> shift & 511);
        uint64_t value = 0;
        r = r ? r : memory_load(side->engine.memory, entry, 8, &value);
        if (!value) {
            value = *next | PTE_P | PTE_W | PTE_U | PTE_A;
            *next += 4096;
            r = r ? r : put_u64(side, entry, value);
        }
        table = value & ~0xfffull;
    }
    return r ? r : put_u64(side, table + 8 * (address >> 12 & 511), page | bits);
}

static int build_kernel(struct engine_side *side)
{
    gpa_t next = TABLES;
    int r = map(side, &next, CODE_PAGE, CODE, PTE_P | PTE_U | PTE_A);
    r = r ? r : map(side, &next, DATA_PAGE, DATA, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D | PTE_NX);
    for (gpa_t page = IDT; page <= GDT; page += 4096) {
        r = r ? r : map(side, &next, KERNEL + page, page, PTE_P | PTE_W | PTE_A | PTE_D);
    }
    for (unsigned v = 0; v < 256; v++) {
        uint64_t stub = KERNEL + STUBS + 16 * v;
        uint64_t low = (stub & 0xffff) | 8ull << 16 | 1ull << 32 | /* IST 1 */
                       (v == 3 || v == 4 ? 0xeeull : 0x8eull) << 40 | (stub >> 16 & 0xffff) << 48;
        r = r ? r : put_u64(side, IDT + 16 * v, low);
        r = r ? r : put_u64(side, IDT + 16 * v + 8, stub >> 32);
        uint8_t hlt = 0xf4;
        r = r ? r : put(side, STUBS + 16 * v, &hlt, 1);
    }
    uint64_t stack = KERNEL + STACK_TOP;
    r = r ? r : put_u64(side, TASK + 36, stack);
    r = r ? r : put_u64(side, TASK + 4, stack);
    uint16_t no_map = 104; /* no I/O permission map: behind the limit */
    r = r ? r : put(side, TASK + 102, &no_map, 2);
    static const uint64_t gdt[] = {
        0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0, 0x00cff3000000ffff, 0x00affb000000ffff,
    };
    return r ? r : put(side, GDT, gdt, sizeof gdt);
}

static void build_state(struct engine_side *side, uint64_t components)
{
    struct cpu_state *s = &side->initial;
    enum { BUSY_TASK = 0x8b, USER_DATA = 0xc0f3, USER_CODE = 0xa0fb };
    cpu_state_reset(s, true);
    s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
    s->cr3 = ROOT;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | (components ? CR4_OSXSAVE : 0);
    s->xcr0 = components ? components : 1;
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    s->gdtr = (struct descriptor_table){KERNEL + GDT, 55};
    s->idtr = (struct descriptor_table){KERNEL + IDT, 4095};
    s->tr = (struct segment){KERNEL + TASK, 103, 0x40, BUSY_TASK};
    s->ldtr = (struct segment){.attributes = SEGMENT_UNUSABLE};
    s->segment[CS] = (struct segment){0, UINT32_MAX, 0x33, USER_CODE};
    s->segment[SS] = (struct segment){0, UINT32_MAX, 0x2b, USER_DATA};
    static const uint8_t null[] = {DS, ES, FS, GS};
    for (unsigned i = 0; i < 4; i++) {
        s->segment[null[i]] = (struct segment){.attributes = SEGMENT_UNUSABLE};
    }
    s->activity = ACTIVITY_RUNNING;
}

int engine_side_open(const struct engine_ops *ops, const struct cpuid_table *cpuid,
                     uint64_t components, const struct code_policy *code,
                     struct engine_side **ret_side)
{
    static const struct memory_range range = {0, RAM_SIZE};
    struct engine_side *side = calloc(1, sizeof *side);
    *ret_side = side;
    const struct engine_config config = {
        .cpuid = cpuid,
        .host = test_host(side),
        .cpus = 1,
        .time_mode = TIME_HOST,
        .code = *code,
    };
    int r = test_engine_open(&side->engine, ops, &range, 1, config, 0);
    r = r ? r : build_kernel(side);
    build_state(side, components);
    return r;
}

void engine_side_close(struct engine_side *side)
{
    test_engine_close(&side->engine);
    free(side);
}

static bool has_error_code(uint64_t vector)
{
    return vector == 8 || vector == 17 || (vector >= 10 && vector <= 14);
}

/*
 * Every fourth code comes to the first frame, whose units check themselves before long, for it
 * changes so often; the others go around, and theirs are made as usual.
 */
static gpa_t next_frame(struct engine_side *side)
{
    unsigned n = side->codes++;
    return CODE + (n & 3 ? 4096 * (n % CODE_FRAMES) : 0);
}

static int place_code(struct engine_side *side, const struct test_case *test)
{
    uint8_t code[4096];
    memset(code, 0xcc, sizeof code);
    unsigned room = 4096u - test->offset;
    memcpy(code + test->offset, test->bytes, test->length < room ? test->length : room);
    if (!memcmp(code, side->code, sizeof code)) {
        return 0;
    }
    memcpy(side->code, code, sizeof code);
    gpa_t frame = next_frame(side), no_tables = 0;
    int r = put(side, frame, code, sizeof code);
    return r ? r : map(side, &no_tables, CODE_PAGE, frame, PTE_P | PTE_U | PTE_A);
}

static int take_outcome(struct engine_side *side, const struct cpu_state *state,
                        struct outcome *outcome)
{
    outcome->vector = (state->rip - 1 - (KERNEL + STUBS)) / 16;
    if (state->rip < KERNEL || outcome->vector > 255) {
        return fail(-EPROTO, "the guest halted at %llx", (unsigned long long)state->rip);
    }
    uint64_t frame[6] = {0};
    bool error = has_error_code(outcome->vector);
    int r = memory_read(side->engine.memory, STACK_TOP - (error ? 48 : 40), frame + !error,
                        error ? 48 : 40);
    outcome->error = frame[0];
    outcome->after.rip = frame[1];
    outcome->after.rflags = frame[3];
    memcpy(outcome->after.gpr, state->gpr, sizeof state->gpr);
    outcome->after.gpr[RSP] = frame[4];
    outcome->cr2 = state->cr2;
    memcpy(outcome->after.xsave, state->xsave, XSAVE_AREA_SIZE);
    return r ? r : memory_read(side->engine.memory, DATA, outcome->after.data, 4096);
}

int engine_side_run(struct engine_side *side, const struct test_case *test, struct outcome *outcome)
{
    struct cpu_state state = side->initial;
    int r = place_code(side, test);
    r = r ? r : put(side, DATA, test->before.data, 4096);
    if (r) {
        return r;
    }
    memcpy(state.gpr, test->before.gpr, sizeof state.gpr);
    state.rip = test->before.rip;
    state.rflags = test->before.rflags;
    memcpy(state.xsave, test->before.xsave, XSAVE_AREA_SIZE);
    side->engine.ops->set_state(side->engine.vcpu, &state);
    enum exit_kind kind = side->engine.ops->run(side->engine.vcpu);
    if (kind != EXIT_HALT) {
        return kind == EXIT_TRIPLE_FAULT ? fail(-EPROTO, "triple fault")
                                         : fail(-EPROTO, "exit %d: %s", kind, trail_text());
    }
    side->engine.ops->get_state(side->engine.vcpu, &state);
    return take_outcome(side, &state, outcome);
}
