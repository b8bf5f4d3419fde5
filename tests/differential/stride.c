/*
 * Loops over arrays: engines may have other code for the rounds in which operands that move in step
 * stay on their pages. Here are such loops, and others that only look like it: a pointer or an
 * index that moves by a constant, operands off it before and behind the step, operands that stay,
 * and an end that counts or compares. Many run into the end of the data page.
 */
#include "tests/differential/differential.h"

#include <string.h>

struct code {
    struct random *random;
    uint8_t *bytes;
    unsigned length;
};

/* Registers with a use of their own; the others take part in anything. */
struct walk {
    unsigned pointer, index, still, offset, counter, limit;
    unsigned scale_bits;
    int step, index_step; /* of the pointer, and of the index: mostly in step by its scale */
    bool has_vex;
    bool ends_by_pointer; /* nothing else may change it, or the loop has no end */
};

struct place {
    int base, index; /* -1: none */
    unsigned scale_bits;
    int32_t displacement;
    bool is_relative;
};

/* ---- encoding ---- */

static void put8(struct code *code, unsigned byte)
{
    code->bytes[code->length++] = (uint8_t)byte;
}

static void put32(struct code *code, uint32_t value)
{
    memcpy(code->bytes + code->length, &value, 4);
    code->length += 4;
}

static unsigned below(struct code *code, unsigned count)
{
    return (unsigned)(random_next(code->random) % count);
}

/* ModRM and what follows it; `behind`: bytes of an immediate. */
static void put_place(struct code *code, unsigned reg, const struct place *place, unsigned behind)
{
    unsigned middle = (reg & 7) << 3;
    if (place->is_relative) {
        put8(code, middle | 5);
        uint64_t next = CODE_PAGE + CODE_OFFSET + code->length + 4 + behind;
        put32(code, (uint32_t)(DATA_PAGE + (uint64_t)place->displacement - next));
        return;
    }
    int32_t displacement =
        place->displacement + (place->base < 0 && place->index < 0 ? (int32_t)DATA_PAGE : 0);
    bool is_byte = place->base >= 0 && displacement == (int8_t)displacement;
    put8(code, (place->base < 0 ? 0 : is_byte ? 0x40 : 0x80) | middle | 4);
    put8(code, place->scale_bits << 6 | (place->index < 0 ? 4 : (unsigned)place->index & 7) << 3 |
                   (place->base < 0 ? 5 : (unsigned)place->base & 7));
    if (is_byte) {
        put8(code, (unsigned)displacement & 0xff);
    } else {
        put32(code, (uint32_t)displacement);
    }
}

static unsigned extensions(const struct place *place)
{
    return (place->index >= 8) << 1 | (place->base >= 8);
}

/* An opcode with its prefixes: 66H, F2H or F3H or 0, and 0FH if `map` is 1. */
static void put_opcode(struct code *code, unsigned prefix, unsigned rex, unsigned map,
                       unsigned opcode)
{
    if (prefix) {
        put8(code, prefix);
    }
    if (rex) {
        put8(code, 0x40 | rex);
    }
    if (map) {
        put8(code, 0x0f);
    }
    put8(code, opcode);
}

/* op reg, r/m of 64 bits (or 32), both registers */
static void put_registers(struct code *code, bool w, unsigned opcode, unsigned reg, unsigned rm)
{
    put_opcode(code, 0, (unsigned)w << 3 | (reg >> 3) << 2 | rm >> 3, 0, opcode);
    put8(code, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* op r/m, imm32 */
static void put_immediate(struct code *code, unsigned extension, unsigned rm, int32_t value)
{
    put_registers(code, true, 0x81, extension, rm);
    put32(code, (uint32_t)value);
}

static void put_lea(struct code *code, unsigned reg, const struct place *place)
{
    put_opcode(code, 0, 8 | (reg >> 3) << 2 | extensions(place), 0, 0x8d);
    put_place(code, reg, place, 0);
}

/* ---- instructions with an operand in memory ---- */

/* ANY: of general registers; FIXED: ModRM.reg is a part of the opcode */
enum kind { ANY, FIXED, VECTOR };
static const struct template
{
    uint8_t prefix, map, opcode, kind, extension, immediate;
    bool sizes; /* it has 16-bit and 64-bit forms */
}
templates[] = {
    {0, 0, 0x8b, ANY, 0, 0, true},        {0, 0, 0x89, ANY, 0, 0, true},
    {0, 0, 0x8a, ANY, 0, 0, false},       {0, 0, 0x88, ANY, 0, 0, false},
    {0, 0, 0x03, ANY, 0, 0, true},        {0, 0, 0x01, ANY, 0, 0, true},
    {0, 0, 0x2b, ANY, 0, 0, true},        {0, 0, 0x29, ANY, 0, 0, true},
    {0, 0, 0x33, ANY, 0, 0, true},        {0, 0, 0x31, ANY, 0, 0, true},
    {0, 0, 0x3b, ANY, 0, 0, true},        {0, 0, 0x39, ANY, 0, 0, true},
    {0, 0, 0x13, ANY, 0, 0, true},        {0, 0, 0x19, ANY, 0, 0, true},
    {0, 0, 0x80, FIXED, 8, 1, false},     {0, 0, 0x83, FIXED, 8, 1, true},
    {0, 0, 0xc6, FIXED, 0, 1, false},     {0, 0, 0xf7, FIXED, 2, 0, true},
    {0, 0, 0xf7, FIXED, 3, 0, true},      {0, 0, 0xf7, FIXED, 4, 0, true},
    {0, 0, 0xf7, FIXED, 6, 0, true},      {0, 0, 0xfe, FIXED, 0, 0, false},
    {0, 0, 0xff, FIXED, 1, 0, true},      {0, 0, 0xd1, FIXED, 4, 0, true},
    {0, 0, 0xd3, FIXED, 5, 0, true},      {0, 0, 0xd3, FIXED, 2, 0, true},
    {0, 0, 0xc1, FIXED, 7, 1, true},      {0, 0, 0xdc, FIXED, 0, 0, false},
    {0, 1, 0xb6, ANY, 0, 0, true},        {0, 1, 0xbf, ANY, 0, 0, true},
    {0, 1, 0xaf, ANY, 0, 0, true},        {0, 1, 0x44, ANY, 0, 0, true},
    {0, 1, 0x92, FIXED, 0, 0, false},     {0, 1, 0xba, FIXED, 5, 1, true},
    {0, 1, 0xab, ANY, 0, 0, true},        {0, 1, 0xc1, ANY, 0, 0, true},
    {0, 1, 0xb1, ANY, 0, 0, true},        {0, 1, 0x18, FIXED, 1, 0, false},
    {0, 1, 0x28, VECTOR, 0, 0, false},    {0, 1, 0x29, VECTOR, 0, 0, false},
    {0, 1, 0x10, VECTOR, 0, 0, false},    {0, 1, 0x11, VECTOR, 0, 0, false},
    {0xf2, 1, 0x10, VECTOR, 0, 0, false}, {0xf2, 1, 0x11, VECTOR, 0, 0, false},
    {0xf2, 1, 0x58, VECTOR, 0, 0, false}, {0xf3, 1, 0x59, VECTOR, 0, 0, false},
    {0x66, 1, 0xfe, VECTOR, 0, 0, false}, {0xf3, 1, 0x6f, VECTOR, 0, 0, false},
    {0xf3, 1, 0x7f, VECTOR, 0, 0, false}, {0x66, 1, 0x2e, VECTOR, 0, 0, false},
    {0x66, 1, 0x7e, VECTOR, 0, 0, true},  {0xf2, 1, 0x2a, VECTOR, 0, 0, true},
};

/* VEX with three bytes: vaddpd, vmovdqu, vfmadd231pd, andn, shlx, mulx; of `length` 256 bits. */
static const struct vex_template {
    uint8_t map, prefix, opcode;
    bool w, is_wide, has_second;
} vex_templates[] = {
    {1, 1, 0x58, false, true, true},  {1, 2, 0x6f, false, true, false},
    {1, 2, 0x7f, false, true, false}, {2, 1, 0xb8, true, true, true},
    {2, 0, 0xf2, true, false, true},  {2, 1, 0xf7, true, false, true},
    {2, 3, 0xf6, true, false, true},
};

static unsigned other_register(struct code *code, const struct walk *walk)
{
    static const uint8_t others[] = {0, 2, 3, 12, 15};
    unsigned r = below(code, 64);
    return r == 0   ? walk->ends_by_pointer ? walk->index : walk->pointer
           : r == 1 ? walk->index
           : r == 2 ? 9 + below(code, 3)
                    : others[r % sizeof others];
}

static void put_access(struct code *code, const struct walk *walk, const struct place *place)
{
    const struct template *t = &templates[below(code, ARRAY_SIZE(templates))];
    unsigned reg = t->kind == FIXED    ? t->extension == 8 ? below(code, 8) : t->extension
                   : t->kind == VECTOR ? below(code, 16)
                                       : other_register(code, walk);
    unsigned size = t->sizes ? below(code, 4) : 1; /* 16, 32, or 64 bits */
    unsigned prefix = t->prefix ? t->prefix : size == 0 ? 0x66 : 0;
    unsigned rex = (unsigned)(size > 1) << 3 | (reg >> 3) << 2 | extensions(place);
    put_opcode(code, prefix, rex, t->map, t->opcode);
    put_place(code, reg, place, t->immediate);
    if (t->immediate) {
        put8(code, below(code, 256));
    }
}

static void put_vex(struct code *code, const struct walk *walk, const struct place *place)
{
    const struct vex_template *t = &vex_templates[below(code, ARRAY_SIZE(vex_templates))];
    bool is_general = !t->is_wide;
    unsigned reg = is_general ? other_register(code, walk) : below(code, 16);
    unsigned second = !t->has_second ? 0
                      : is_general   ? other_register(code, walk)
                                     : below(code, 16);
    put8(code, 0xc4);
    put8(code, (~((reg >> 3) << 2 | extensions(place)) & 7) << 5 | t->map);
    put8(code, (unsigned)t->w << 7 | (~second & 15) << 3 | (unsigned)t->is_wide << 2 | t->prefix);
    put8(code, t->opcode);
    put_place(code, reg, place, 0);
}

/* ---- the loop ---- */

/* Operands that go together are near each other, and now and then one is not. */
static struct place choose_place(struct code *code, const struct walk *walk)
{
    unsigned r = below(code, 32);
    int32_t near =
        (int32_t)below(code, 8) * 8 - 24 + (below(code, 4) ? 0 : (int32_t)below(code, 8));
    struct place place = {.base = (int)walk->pointer, .index = -1, .displacement = near};
    if (r >= 30) {
        place = (struct place){.base = -1, .index = -1, .displacement = 256 + near};
        place.is_relative = r & 1;
    } else if (r == 29) {
        place.displacement = (int32_t)below(code, 4096) - 2048;
    } else if (r == 28) {
        place.index = (int)(below(code, 4) ? walk->offset : walk->index);
        place.scale_bits = below(code, 4);
    } else if (r >= 24) {
        place.base = below(code, 8) ? (int)walk->still : 4;
    } else if (r >= 14) {
        place.base = (int)walk->still;
        place.index = (int)walk->index;
        place.scale_bits = walk->scale_bits;
    }
    return place;
}

static void put_step(struct code *code, const struct walk *walk, unsigned gpr, int step)
{
    struct place next = {.base = (int)gpr, .index = -1, .displacement = step};
    if (!walk->ends_by_pointer && !below(code, 8)) {
        next.index = (int)walk->offset; /* only LEA has it */
    }
    switch (below(code, 4)) {
    case 0:
        put_lea(code, gpr, &next);
        break;
    case 1:
        put_immediate(code, 5, gpr, -step);
        break;
    case 2:
        if (step == 1 || step == -1) {
            put_registers(code, true, 0xff, step < 0, gpr); /* inc, dec */
            break;
        } /* else as the others */
        __attribute__((fallthrough));
    default:
        put_immediate(code, 0, gpr, step);
        break;
    }
}

static void put_between(struct code *code, const struct walk *walk)
{
    static const uint8_t opcodes[] = {0x01, 0x29, 0x31, 0x39, 0x85, 0x89, 0x89, 0x11};
    struct place place = choose_place(code, walk);
    unsigned r = below(code, 8), reg = other_register(code, walk);
    if (r == 0 && !place.is_relative) {
        put_lea(code, reg, &place);
    } else if (r == 1) {
        put8(code, 0x90);
    } else {
        put_registers(code, below(code, 2), opcodes[below(code, sizeof opcodes)],
                      other_register(code, walk), reg);
    }
}

/* Undefined flags could be read by the next instruction. */
static void define_flags(struct code *code, unsigned start)
{
    struct insn insn;
    if (decode(DECODE_64, code->bytes + start, 15, &insn) == DECODE_OK &&
        !has_defined_flags(&insn)) {
        put_registers(code, false, 0x39, below(code, 8), below(code, 8)); /* cmp */
    }
}

static void put_body(struct code *code, const struct walk *walk)
{
    enum { MOST = 4 };
    unsigned count = 1 + below(code, MOST);
    unsigned pointer_at = below(code, count + 1), index_at = below(code, count + 1);
    for (unsigned i = 0; i <= count; i++) {
        if (i == pointer_at) {
            put_step(code, walk, walk->pointer, walk->step);
            if (!below(code, 32)) {
                put_step(code, walk, walk->pointer, walk->step);
            }
        }
        if (i == index_at) {
            put_step(code, walk, walk->index, walk->index_step);
        }
        unsigned start = code->length;
        struct place place = choose_place(code, walk);
        if (i == count) {
            break;
        }
        if (!below(code, 3)) {
            put_between(code, walk);
        } else if (walk->has_vex && !below(code, 6)) {
            put_vex(code, walk, &place);
        } else {
            put_access(code, walk, &place);
        }
        define_flags(code, start);
    }
}

/* What leaves the flags alone, between the end's comparison and its branch. */
static void put_quiet(struct code *code, const struct walk *walk)
{
    static const uint8_t opcodes[] = {0x8b, 0x89, 0x63};
    struct place place = choose_place(code, walk);
    for (unsigned left = below(code, 2) ? below(code, 3) : 0; left > 0; left--) {
        unsigned reg = other_register(code, walk);
        put_opcode(code, 0, 8 | (reg >> 3) << 2 | extensions(&place), 0,
                   opcodes[below(code, sizeof opcodes)]);
        put_place(code, reg, &place, 0);
    }
}

/*
 * The pointer and its limit; or what it points to, which ends by a fault at the latest: maybe in a
 * register that changes before the branch.
 */
static unsigned put_pointer_comparison(struct code *code, const struct walk *walk)
{
    enum { JB = 2, JA = 7, CONDITIONS = 16 };
    static const uint8_t opcodes[] = {0x3b, 0x39, 0x85, 0x03, 0x2b, 0x21};
    struct place place = {.base = (int)walk->pointer, .index = -1, .displacement = 8};
    unsigned reg = other_register(code, walk), w = below(code, 2) << 3;
    switch (below(code, 3)) {
    case 0:
        put_registers(code, true, 0x39, walk->limit, walk->pointer); /* cmp pointer, limit */
        return walk->step > 0 ? JB : JA;
    case 1:
        put_opcode(code, 0, w | (reg >> 3) << 2 | extensions(&place), 0,
                   opcodes[below(code, sizeof opcodes)]);
        put_place(code, reg, &place, 0);
        break;
    default:
        put_opcode(code, 0, 8 | (reg >> 3) << 2 | extensions(&place), 0, 0x8b);
        put_place(code, reg, &place, 0);
        put_registers(code, below(code, 2), opcodes[below(code, sizeof opcodes)], reg,
                      other_register(code, walk));
        break;
    }
    return below(code, CONDITIONS);
}

/* The last comparison, and the condition to go on. */
static unsigned put_comparison(struct code *code, const struct walk *walk)
{
    enum { JNZ = 5, JA = 7, JG = 15 };
    if (walk->ends_by_pointer) {
        return put_pointer_comparison(code, walk);
    }
    switch (below(code, 6)) {
    case 0:
        put_immediate(code, 0, walk->counter, -1);
        put_registers(code, true, 0x85, walk->counter, walk->counter); /* test */
        return JG;
    case 1:
        put_immediate(code, 5, walk->counter, 1);
        put_immediate(code, 7, walk->counter, 1); /* cmp */
        return JA;
    case 2:
        put_immediate(code, 0, walk->counter, -1);
        return JNZ;
    case 3:
        put_registers(code, true, 0xff, 1, walk->counter); /* dec */
        return JNZ;
    default:
        put_immediate(code, 5, walk->counter, 1);
        return JNZ;
    }
}

static struct walk choose_walk(struct code *code, bool has_vex)
{
    static const int8_t steps[] = {1, 2, 4, 8, 8, 16, 16, 24, 32, 64, -1, -4, -8, -16, -48, 127};
    static const uint8_t pointers[] = {1, 6, 7, 13}, indices[] = {5, 14, 2, 12};
    struct walk walk = {
        .pointer = pointers[below(code, 4)],
        .index = indices[below(code, 4)],
        .step = steps[below(code, sizeof steps)],
        .has_vex = has_vex,
        .ends_by_pointer = !below(code, 3),
    };
    walk.still = walk.pointer == 6 ? 7 : 6;
    walk.counter = walk.pointer == 13 ? 1 : 13;
    walk.limit = walk.index == 14 ? 5 : 14;
    walk.scale_bits = below(code, 4);
    while (walk.step % (1 << walk.scale_bits)) {
        walk.scale_bits--;
    }
    walk.offset = 8;
    walk.index_step = below(code, 16) ? walk.step / (1 << walk.scale_bits) : walk.step;
    return walk;
}

/* Somewhere in the data page, as its low bits say. */
static void put_in_page(struct code *code, unsigned gpr)
{
    struct place place = {.base = (int)gpr, .index = -1, .displacement = (int32_t)DATA_PAGE};
    put_immediate(code, 4, gpr, 4095); /* and */
    put_lea(code, gpr, &place);
}

void stride_generate(bool has_vex, struct random *random, struct test_case *test)
{
    struct code code = {.random = random, .bytes = test->bytes};
    struct walk walk = choose_walk(&code, has_vex);
    int rounds = 1 + (int)below(&code, below(&code, 2) ? 8 : 400);
    if (below(&code, 4)) {
        put_in_page(&code, walk.pointer);
        put_in_page(&code, walk.still);
    }
    struct place limit = {.base = (int)walk.pointer, .index = -1};
    limit.displacement = rounds * walk.step;
    put_lea(&code, walk.limit, &limit);
    put_registers(&code, true, 0xc7, 0, walk.counter); /* mov counter, rounds */
    put32(&code, (uint32_t)rounds);
    put_registers(&code, true, 0xc7, 0, walk.offset);
    put32(&code, below(&code, 32));
    put_registers(&code, true, 0xc7, 0, walk.index);
    put32(&code, below(&code, 64) - 16);
    unsigned start = code.length;
    put_body(&code, &walk);
    unsigned condition = put_comparison(&code, &walk);
    put_quiet(&code, &walk);
    put8(&code, 0x0f);
    put8(&code, 0x80 | condition);
    put32(&code, start - (code.length + 4));
    put_quiet(&code, &walk); /* what is not known of the flags' origin may count there */
    test->length = (uint8_t)code.length;
}
