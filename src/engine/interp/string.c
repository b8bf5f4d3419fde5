/*
 * String instructions. With a REP prefix one call does a batch of iterations and then, if count
 * is left, stands at the same instruction again, so that interrupts are taken between batches as
 * the CPU takes them between iterations. MOVS and STOS on plain RAM go in one piece per page.
 */
#include "engine/interp/flags.h"
#include "engine/interp/interp_internal.h"

enum { BATCH = 64 };

struct string {
    unsigned size;                /* of an element */
    uint64_t mask;                /* of addresses and count */
    unsigned width;               /* address bytes */
    int64_t step;                 /* +size or -size */
    enum segment_register source; /* of RSI; overrides apply */
};

/* One iteration; nothing but an exception may keep it from being complete. */
typedef enum step iterate_fn(struct vcpu *vcpu, const struct string *string);

static struct string string_of(const struct vcpu *vcpu, const struct insn *insn)
{
    struct string string = {
        .width = address_width(insn),
        .mask = size_mask(address_width(insn)),
        .source = DS,
    };

    /* Operand sizes: the first memory operand is an element; RSI's names its segment. */
    for (unsigned n = 0; n < insn->info.operand_count; n++) {
        const struct insn_operand *operand = &insn->operands[n];
        if (operand->type != ZYDIS_OPERAND_TYPE_MEMORY) {
            continue;
        }
        string.size = operand->size / 8;
        if (operand->mem.base == ZYDIS_REGISTER_RSI || operand->mem.base == ZYDIS_REGISTER_ESI ||
            operand->mem.base == ZYDIS_REGISTER_SI) {
            string.source = segment_of(operand->mem.segment);
        }
    }
    string.step = vcpu->state.rflags & FLAG_DF ? -(int64_t)string.size : (int64_t)string.size;
    return string;
}

static enum step string_address(struct vcpu *vcpu, const struct string *string, enum gpr pointer,
                                unsigned size, bool write, gva_t *ret_gva)
{
    return linear_address(vcpu, pointer == RDI ? ES : string->source,
                          vcpu->state.gpr[pointer] & string->mask, size, write, ret_gva);
}

static void advance(struct vcpu *vcpu, const struct string *string, enum gpr pointer,
                    int64_t distance)
{
    gpr_store(vcpu, pointer, string->width, vcpu->state.gpr[pointer] + (uint64_t)distance);
}

static enum step iterate_movs(struct vcpu *vcpu, const struct string *string)
{
    gva_t from, to;
    uint64_t value;

    TRY(string_address(vcpu, string, RSI, string->size, false, &from));
    TRY(string_address(vcpu, string, RDI, string->size, true, &to));
    TRY(linear_read(vcpu, from, &value, string->size));
    TRY(linear_write(vcpu, to, value, string->size));
    advance(vcpu, string, RSI, string->step);
    advance(vcpu, string, RDI, string->step);
    return STEP_NEXT;
}

static enum step iterate_stos(struct vcpu *vcpu, const struct string *string)
{
    gva_t to;

    TRY(string_address(vcpu, string, RDI, string->size, true, &to));
    TRY(linear_write(vcpu, to, vcpu->state.gpr[RAX], string->size));
    advance(vcpu, string, RDI, string->step);
    return STEP_NEXT;
}

static enum step iterate_lods(struct vcpu *vcpu, const struct string *string)
{
    gva_t from;
    uint64_t value;

    TRY(string_address(vcpu, string, RSI, string->size, false, &from));
    TRY(linear_read(vcpu, from, &value, string->size));
    gpr_store(vcpu, RAX, string->size, value);
    advance(vcpu, string, RSI, string->step);
    return STEP_NEXT;
}

static void compare_flags(struct vcpu *vcpu, uint64_t a, uint64_t b, unsigned size)
{
    uint64_t packed = 0;

    switch (size) {
        FLAGS_CASES(packed, "cmp", FLAGS_ON_A_B, [b] "q"(b))
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, packed);
}

static enum step iterate_cmps(struct vcpu *vcpu, const struct string *string)
{
    gva_t first, second;
    uint64_t a, b;

    TRY(string_address(vcpu, string, RSI, string->size, false, &first));
    TRY(string_address(vcpu, string, RDI, string->size, false, &second));
    TRY(linear_read(vcpu, second, &b, string->size)); /* CPUs look there first */
    TRY(linear_read(vcpu, first, &a, string->size));
    compare_flags(vcpu, a, b, string->size);
    advance(vcpu, string, RSI, string->step);
    advance(vcpu, string, RDI, string->step);
    return STEP_NEXT;
}

static enum step iterate_scas(struct vcpu *vcpu, const struct string *string)
{
    gva_t gva;
    uint64_t b;

    TRY(string_address(vcpu, string, RDI, string->size, false, &gva));
    TRY(linear_read(vcpu, gva, &b, string->size));
    compare_flags(vcpu, vcpu->state.gpr[RAX], b, string->size);
    advance(vcpu, string, RDI, string->step);
    return STEP_NEXT;
}

/* The port is read only when the store cannot fail any more. */
static enum step iterate_ins(struct vcpu *vcpu, const struct string *string)
{
    uint16_t port = (uint16_t)vcpu->state.gpr[RDX];
    gva_t to;

    TRY(port_check(vcpu, port, string->size));
    TRY(string_address(vcpu, string, RDI, string->size, true, &to));
    TRY(check_alignment(vcpu, to, string->size));
    TRY(mmu_check_write(vcpu, to, string->size, user_access(vcpu)));
    TRY(linear_write(vcpu, to, port_in(vcpu, port, string->size), string->size));
    advance(vcpu, string, RDI, string->step);
    return STEP_NEXT;
}

static enum step iterate_outs(struct vcpu *vcpu, const struct string *string)
{
    uint16_t port = (uint16_t)vcpu->state.gpr[RDX];
    gva_t from;
    uint64_t value;

    TRY(port_check(vcpu, port, string->size));
    TRY(string_address(vcpu, string, RSI, string->size, false, &from));
    TRY(linear_read(vcpu, from, &value, string->size));
    port_out(vcpu, port, string->size, (uint32_t)value);
    advance(vcpu, string, RSI, string->step);
    return STEP_NEXT;
}

static uint64_t count_of(const struct vcpu *vcpu, const struct string *string)
{
    return vcpu->state.gpr[RCX] & string->mask;
}

static void count_down(struct vcpu *vcpu, const struct string *string, uint64_t by)
{
    gpr_store(vcpu, RCX, string->width, vcpu->state.gpr[RCX] - by);
}

/* Traps can come after each iteration: then only one is done at a time. */
static bool steps_singly(const struct vcpu *vcpu)
{
    return (vcpu->state.rflags & FLAG_TF) || (vcpu->state.dr7 & 0xff) ||
           (vcpu->debug && debug_divides(vcpu->debug));
}

/*
 * Stand at the same instruction again. It counts when it ends: the count must not depend on where
 * an engine's soft TLB and watched pages divide it. RF until the last iteration: it is past its
 * breakpoint (SDM volume 3, 17.3.1.1).
 */
static enum step again(struct vcpu *vcpu, const struct insn *insn)
{
    vcpu->instructions--; /* interp_execute() adds one */
    vcpu->state.rip -= insn->info.length;
    if (!is_64bit(vcpu)) {
        vcpu->state.rip = (uint32_t)vcpu->state.rip;
    }
    vcpu->state.rflags |= FLAG_RF;
    return STEP_NEXT;
}

enum repeat { REPEAT_ALWAYS, REPEAT_WHILE_ZF, REPEAT_WHILE_NOT_ZF };

/*
 * A batch of iterations; an exception in a later one leaves the earlier ones done, but the flags
 * are those from before the instruction until it ends. SDM volume 2, REP.
 */
static enum step repeat(struct vcpu *vcpu, const struct insn *insn, const struct string *string,
                        iterate_fn *iterate, enum repeat condition)
{
    unsigned batch = steps_singly(vcpu) ? 1 : BATCH;
    uint64_t rflags = vcpu->state.rflags;

    while (count_of(vcpu, string) > 0) {
        if (batch-- == 0) {
            vcpu->state.rflags = rflags;
            return again(vcpu, insn);
        }
        enum step step = iterate(vcpu, string);
        if (step != STEP_NEXT) {
            vcpu->state.rflags = rflags;
            return step;
        }
        count_down(vcpu, string, 1);
        bool zero = vcpu->state.rflags & FLAG_ZF;
        if ((condition == REPEAT_WHILE_ZF && !zero) || (condition == REPEAT_WHILE_NOT_ZF && zero)) {
            return STEP_NEXT;
        }
    }
    return STEP_NEXT;
}

static enum step execute_string(struct vcpu *vcpu, const struct insn *insn, iterate_fn *iterate)
{
    struct string string = string_of(vcpu, insn);
    ZydisInstructionAttributes attributes = insn->info.attributes;

    if (attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) {
        bool compares = iterate == iterate_cmps || iterate == iterate_scas;
        return repeat(vcpu, insn, &string, iterate, compares ? REPEAT_WHILE_ZF : REPEAT_ALWAYS);
    }
    if (attributes & ZYDIS_ATTRIB_HAS_REPNE) {
        bool compares = iterate == iterate_cmps || iterate == iterate_scas;
        return repeat(vcpu, insn, &string, iterate, compares ? REPEAT_WHILE_NOT_ZF : REPEAT_ALWAYS);
    }
    return iterate(vcpu, &string);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Bytes from a pointer on in its page and its address space, at most `bytes`. */
static uint64_t piece_at(const struct vcpu *vcpu, const struct string *string, enum gpr pointer,
                         uint64_t segment_base, uint64_t bytes)
{
    uint64_t offset = vcpu->state.gpr[pointer] & string->mask;
    uint64_t in_page = (offset + segment_base) & (PAGE_SIZE - 1);
    uint64_t page = PAGE_SIZE - in_page;
    uint64_t wrap = string->mask - offset; /* 64-bit: canonical checks follow */

    if (string->step > 0) {
        return smaller(bytes, smaller(page, wrap));
    }
    /* Down from the element itself. */
    bool is_whole = page >= string->size && wrap >= string->size;
    return is_whole ? smaller(bytes, smaller(in_page, offset) + string->size) : 0;
}

/* The linear address of the lowest of `size` bytes, which begin or end with the pointer's element.
 */
static enum step piece_address(struct vcpu *vcpu, const struct string *string, enum gpr pointer,
                               unsigned size, bool write, gva_t *ret_gva)
{
    uint64_t offset = vcpu->state.gpr[pointer] & string->mask;

    return linear_address(vcpu, pointer == RDI ? ES : string->source,
                          string->step > 0 ? offset : offset - (size - string->size), size, write,
                          ret_gva);
}

static uint64_t base_of(const struct vcpu *vcpu, enum segment_register segment)
{
    return is_64bit(vcpu) && segment != FS && segment != GS ? 0 : vcpu->state.segment[segment].base;
}

static void fill(void *to, uint64_t value, unsigned size, uint64_t count)
{
    switch (size) {
    case 1:
        __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    case 2:
        __asm__ volatile("rep stosw" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    case 4:
        __asm__ volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(value) : "memory");
        break;
    default:
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
    }
}

/* REP MOVS downwards, by the CPU itself: each element as the guest would, whatever overlaps. */
#define MOVE_DOWN(instruction)                                                                     \
    __asm__ volatile("std\n\trep " instruction "\n\tcld"                                           \
                     : "+D"(to), "+S"(from), "+c"(count)                                           \
                     :                                                                             \
                     : "cc", "memory")

static void move_down(uint8_t *to, const uint8_t *from, unsigned size, uint64_t count)
{
    to += (count - 1) * size;
    from += (count - 1) * size;
    switch (size) {
    case 1:
        MOVE_DOWN("movsb");
        break;
    case 2:
        MOVE_DOWN("movsw");
        break;
    case 4:
        MOVE_DOWN("movsl");
        break;
    default:
        MOVE_DOWN("movsq");
        break;
    }
}

/* A REP MOVS or STOS as one copy or fill; `ret_done` counts its iterations, maybe 0. */
static void run_of(struct vcpu *vcpu, const struct string *string, bool is_move, uint64_t *ret_done)
{
    uint64_t count = count_of(vcpu, string);
    uint64_t bytes = (count < PAGE_SIZE ? count : PAGE_SIZE) * string->size;
    uint8_t *from = NULL, *to;
    gva_t source, target;

    *ret_done = 0;
    bytes = piece_at(vcpu, string, RDI, base_of(vcpu, ES), bytes);
    if (is_move) {
        bytes = piece_at(vcpu, string, RSI, base_of(vcpu, string->source), bytes);
    }
    unsigned size = (unsigned)(bytes - bytes % string->size);
    if (size < 2 * string->size ||
        piece_address(vcpu, string, RDI, size, true, &target) != STEP_NEXT) {
        return;
    }
    /* The source comes first: if it faults, the target's D bit stays as it is. */
    if (is_move && (piece_address(vcpu, string, RSI, size, false, &source) != STEP_NEXT ||
                    tlb_span(vcpu, source, size, user_access(vcpu), &from) != size)) {
        return;
    }
    if (tlb_span(vcpu, target, size, user_access(vcpu) | PF_WRITE, &to) != size) {
        return;
    }
    if (is_move) {
        /* An overlap where the copy feeds itself must go element by element. */
        if (string->step > 0 &&
            (target - source < size || (uintptr_t)to - (uintptr_t)from < size)) {
            return;
        }
        /* Looking up the target may have been a safe point. */
        uint8_t *again_from;
        if (tlb_span(vcpu, source, size, user_access(vcpu), &again_from) != size ||
            again_from != from) {
            return;
        }
        if (string->step > 0) {
            bytes_copy(to, from, size);
        } else {
            move_down(to, from, string->size, size / string->size);
        }
    } else {
        fill(to, vcpu->state.gpr[RAX], string->size, size / string->size);
    }
    *ret_done = size / string->size;
}

static enum step execute_run(struct vcpu *vcpu, const struct insn *insn, iterate_fn *iterate,
                             bool is_move)
{
    struct string string = string_of(vcpu, insn);
    uint64_t done;

    if (!(insn->info.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE)) ||
        steps_singly(vcpu) || ((vcpu->state.rflags & FLAG_AC) && (vcpu->state.cr0 & CR0_AM))) {
        return execute_string(vcpu, insn, iterate);
    }
    if (count_of(vcpu, &string) == 0) {
        return STEP_NEXT;
    }
    run_of(vcpu, &string, is_move, &done);
    if (done == 0) {
        return repeat(vcpu, insn, &string, iterate, REPEAT_ALWAYS);
    }
    advance(vcpu, &string, RDI, (int64_t)done * string.step);
    if (is_move) {
        advance(vcpu, &string, RSI, (int64_t)done * string.step);
    }
    count_down(vcpu, &string, done);
    return count_of(vcpu, &string) > 0 ? again(vcpu, insn) : STEP_NEXT;
}

enum step execute_movs(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_run(vcpu, insn, iterate_movs, true);
}

enum step execute_stos(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_run(vcpu, insn, iterate_stos, false);
}

enum step execute_lods(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_string(vcpu, insn, iterate_lods);
}

enum step execute_cmps(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_string(vcpu, insn, iterate_cmps);
}

enum step execute_scas(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_string(vcpu, insn, iterate_scas);
}

/* The permission counts even if the count is zero. */
static enum step execute_port_string(struct vcpu *vcpu, const struct insn *insn,
                                     iterate_fn *iterate)
{
    struct string string = string_of(vcpu, insn);

    TRY(port_check(vcpu, (uint16_t)vcpu->state.gpr[RDX], string.size));
    return execute_string(vcpu, insn, iterate);
}

enum step execute_ins(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_port_string(vcpu, insn, iterate_ins);
}

enum step execute_outs(struct vcpu *vcpu, const struct insn *insn)
{
    return execute_port_string(vcpu, insn, iterate_outs);
}
