/*
 * From a form to cases. Registers of an address are solved so that the operand lies in the data
 * page, or hangs over one of its ends by any number of bytes; everything else is random with
 * weight on the boundaries.
 */
#include "tests/differential/differential.h"

#include <string.h>

uint64_t random_next(struct random *random)
{
    random->state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    uint64_t z = random->state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static uint64_t below(struct random *random, uint64_t limit)
{
    return random_next(random) % limit;
}

uint64_t random_value(struct random *random)
{
    uint64_t r = random_next(random);
    switch (r & 15) {
    case 0:
        return 0;
    case 1:
        return ~0ull;
    case 2:
        return 1ull << (r >> 8 & 63);
    case 3:
        return (1ull << (r >> 8 & 63)) - 1;
    case 4:
        return ~0ull << (r >> 8 & 63);
    case 5:
        return r >> 8 & 0xff;
    case 6:
        return 0x7fffffffffffffffull >> (r >> 8 & 56);
    case 7:
        return (uint64_t)(int64_t)(int8_t)(r >> 8);
    default:
        return random_next(random);
    }
}

/* A double or two floats with a taste for zeros, infinities, NaNs and denormals. */
static uint64_t random_float(struct random *random)
{
    static const uint64_t doubles[] = {
        0,
        0x8000000000000000,
        0x3ff0000000000000,
        0xbff0000000000000,
        0x7ff0000000000000,
        0xfff0000000000000,
        0x7ff8000000000000,
        0x7ff0000000000001,
        0x0000000000000001,
        0x000fffffffffffff,
        0x0010000000000000,
        0x7fefffffffffffff,
        0x41dfffffffc00000,
        0xc1e0000000000000,
        0x43e0000000000000,
        0xc3e0000000000000,
    };
    static const uint32_t floats[] = {
        0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
        0x7fc00000, 0x7f800001, 0x00000001, 0x007fffff, 0x00800000, 0x7f7fffff,
        0x4f000000, 0xcf000000, 0x4effffff, 0x3f000000,
    };
    uint64_t r = random_next(random);
    switch (r & 7) {
    case 0:
    case 1:
        return doubles[r >> 8 & 15];
    case 2:
    case 3:
        return floats[r >> 8 & 15] | (uint64_t)floats[r >> 16 & 15] << 32;
    case 4: /* ordinary size */
        return 0x3fe0000000000000 + (random_next(random) & 0x803fffffffffffff);
    case 5:
        return 0x3f0000003f000000 + (random_next(random) & 0x80ffffff80ffffff);
    default:
        return random_value(random);
    }
}

/* ---- bytes ---- */

struct writer {
    uint8_t *bytes;
    unsigned n;
};

static void put(struct writer *w, uint64_t byte)
{
    w->bytes[w->n++] = (uint8_t)byte;
}

/* Prefixes and opcode, with random register extension bits. */
static void put_start(const struct form *form, struct random *random, struct writer *w)
{
    uint64_t r = random_next(random);
    unsigned extend = (unsigned)r & 7, vvvv = (unsigned)(r >> 8) & 15, high = r >> 16 & 1;
    static const uint8_t pp[] = {[0] = 0, [0x66] = 1, [0xf3] = 2, [0xf2] = 3};
    if (form->memory && !(r >> 20 & 15)) {
        put(w, 0x67);
    }
    if (form->encoding == ENCODE_VEX) {
        put(w, 0xc4);
        put(w, (extend ^ 7) << 5 | form->map);
        put(w, form->rex_w << 7 | vvvv << 3 | form->vector_length << 2 | pp[form->prefix]);
    } else if (form->encoding == ENCODE_EVEX) {
        put(w, 0x62);
        put(w, (extend ^ 7) << 5 | (uint64_t)(r >> 24 & 1) << 4 | form->map);
        put(w, form->rex_w << 7 | vvvv << 3 | 4 | pp[form->prefix]);
        put(w, form->zeroing << 7 | form->vector_length << 5 | form->broadcast << 4 | high << 3 |
                   (form->masked ? 1 + (r >> 28) % 7 : 0));
    } else {
        if (form->lock) {
            put(w, 0xf0);
        }
        if (form->prefix) {
            put(w, form->prefix);
        }
        if (form->rex_w || (r >> 32 & 3)) {
            put(w, 0x40 | form->rex_w << 3 | ((r >> 34 & 1) ? extend : 0));
        }
        if (form->map) {
            put(w, 0x0f);
        }
        if (form->map >= 2) {
            put(w, form->map == 2 ? 0x38 : 0x3a);
        }
    }
    put(w, form->opcode);
}

static void put_modrm(const struct form *form, struct random *random, struct writer *w)
{
    uint64_t r = random_next(random);
    unsigned reg = form->fixed_reg ? form->reg : r & 7;
    unsigned rm = form->fixed_rm ? form->rm : r >> 3 & 7;
    unsigned mod = form->memory ? (r >> 6 & 3) % 3 : 3;
    put(w, mod << 6 | reg << 3 | rm);
}

/* The instruction ends in the page, and its branch target is a place full of INT3. */
static void tame(struct insn *insn, struct random *random, struct test_case *test)
{
    const struct insn_info *info = &insn->info;
    for (unsigned i = 0; i < 2; i++) {
        if (!info->raw.imm[i].is_relative) {
            continue;
        }
        int64_t distance = (int64_t)below(random, 0x60) + 0x10;
        distance = random_next(random) & 1 ? distance : -distance - 0x20;
        if (info->raw.imm[i].size == 8) {
            distance = (int8_t)distance;
        }
        memcpy(test->bytes + info->raw.imm[i].offset, &distance, info->raw.imm[i].size / 8);
    }
    if (info->mnemonic == ZYDIS_MNEMONIC_ENTER) {
        test->bytes[info->raw.imm[0].offset + 1] &= 1; /* a frame that fits the page */
        test->bytes[info->raw.imm[1].offset] &= 35;
    }
}

bool generate_bytes(const struct form *form, struct random *random, struct test_case *test,
                    struct insn *insn)
{
    for (unsigned attempt = 0; attempt < 20000; attempt++) {
        struct writer w = {.bytes = test->bytes};
        uint8_t room[40];
        w.bytes = room;
        put_start(form, random, &w);
        if (form->has_modrm) {
            put_modrm(form, random, &w);
        }
        while (w.n < 16) { /* SIB, displacement, immediates */
            put(&w, random_next(random) & 1 ? random_next(random) : random_value(random));
        }
        memcpy(test->bytes, room, 15);
        if (decode(DECODE_64, test->bytes, 15, insn) != DECODE_OK || form_key(insn) != form->key) {
            continue;
        }
        tame(insn, random, test);
        if (decode(DECODE_64, test->bytes, 15, insn) != DECODE_OK || form_key(insn) != form->key) {
            continue;
        }
        test->length = insn->info.length;
        return true;
    }
    return false;
}

/* ---- state ---- */

static void fill_vector_state(uint64_t components, struct random *random, uint8_t *xsave)
{
    memset(xsave, 0, XSAVE_AREA_SIZE);
    for (unsigned i = 160; i < 416; i += 8) { /* XMM */
        uint64_t value = random_float(random);
        memcpy(xsave + i, &value, 8);
    }
    for (unsigned n = COMPONENT_YMM; n <= COMPONENT_ZMM16; n++) {
        struct xsave_component part = xsave_component(n);
        for (unsigned i = 0; components >> n & 1 && i < part.size; i += 8) {
            uint64_t value = n == COMPONENT_OPMASK ? random_value(random) : random_float(random);
            memcpy(xsave + part.offset + i, &value, 8);
        }
    }
    uint64_t r = random_next(random);
    uint16_t control = r & 3 ? 0x037f : (uint16_t)((r >> 8 & 0x0f3f) | 0x40);
    uint16_t status = r & 12 ? 0 : (uint16_t)(r >> 24 & 0x477f);
    status |= (uint16_t)((r >> 40 & 7) << 11);
    status &= (uint16_t)~0x8080; /* ES and B follow from the rest */
    if (status & ~control & 0x3f) {
        status |= 0x8080;
    }
    uint32_t mxcsr = r & 0x30 ? 0x1f80 : (uint32_t)(random_next(random) & 0xffff);
    if (!(r & 0xc0)) {
        mxcsr |= 0x1f80; /* all masked, but odd rounding, DAZ, FTZ, flags */
        mxcsr ^= (uint32_t)(r >> 43 & 0xe07f);
    }
    memcpy(xsave, &control, 2);
    memcpy(xsave + 2, &status, 2);
    xsave[4] = (uint8_t)random_value(random); /* tags */
    memcpy(xsave + 24, &mxcsr, 4);
    uint32_t mask = 0xffff;
    memcpy(xsave + 28, &mask, 4);
    for (unsigned i = 0; i < 8; i++) {
        static const uint16_t exponents[] = {0, 0x3fff, 0x7fff, 0xffff, 1, 0x8000, 0x4000, 0x7ffe};
        uint64_t mantissa = random_value(random);
        uint64_t s = random_next(random);
        uint16_t exponent = s & 1 ? exponents[s >> 1 & 7] : (uint16_t)(s >> 8);
        if (s >> 32 & 3) {
            exponent = (uint16_t)(0x3ff0 + (s >> 8 & 31));
        }
        mantissa |= s >> 40 & 7 ? 1ull << 63 : 0; /* mostly normal numbers */
        memcpy(xsave + 32 + 16 * i, &mantissa, 8);
        memcpy(xsave + 40 + 16 * i, &exponent, 2);
    }
    uint64_t present = components | XCR0_X87 | XCR0_SSE; /* these two without XSAVE as well */
    memcpy(xsave + 512, &present, 8);
}

static void fill_data(struct random *random, uint8_t *data)
{
    for (unsigned i = 0; i < 4096; i += 8) {
        uint64_t value = random_next(random) & 1 ? random_float(random) : random_value(random);
        memcpy(data + i, &value, 8);
    }
}

/* Where an operand of this size lies: inside, or over one end by some bytes. */
static uint64_t place_operand(struct random *random, unsigned size, bool careful)
{
    uint64_t r = random_next(random);
    size = size ? size : 1;
    if (careful || (r & 7) > 2) { /* inside */
        uint64_t room = 4096 - size;
        uint64_t offset = (r >> 8) % (room + 1);
        if (r >> 40 & 1) {
            offset &= ~63ull;
        }
        return DATA_PAGE + (careful ? offset & ~15ull : offset);
    }
    uint64_t over = (r >> 8) % (size + 1); /* bytes outside */
    return (r & 7) == 2 ? DATA_PAGE - over : DATA_PAGE + 4096 - size + over;
}

static int gpr_number(ZydisRegister reg)
{
    ZydisRegister large = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
    return large >= ZYDIS_REGISTER_RAX && large <= ZYDIS_REGISTER_R15
               ? (int)(large - ZYDIS_REGISTER_RAX)
               : -1;
}

unsigned vector_byte_place(unsigned number, unsigned byte)
{
    if (number >= 16) {
        return xsave_component(COMPONENT_ZMM16).offset + 64 * (number - 16) + byte;
    }
    if (byte < 16) {
        return 160 + 16 * number + byte;
    }
    return byte < 32 ? xsave_component(COMPONENT_YMM).offset + 16 * number + byte - 16
                     : xsave_component(COMPONENT_ZMM).offset + 32 * number + byte - 32;
}

/* VSIB: every element lands near the base. */
static int64_t tame_indices(ZydisRegister reg, struct random *random, uint8_t *xsave)
{
    unsigned n = (unsigned)ZydisRegisterGetId(reg);
    static const int offsets[] = {0, 1, 2, -1, 4, 8, -4, 16};
    bool wide = random_next(random) & 1;
    unsigned parts = ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, reg) / 64;
    for (unsigned part = 0; part < parts; part++) { /* 8 bytes at a time */
        uint64_t value = (uint64_t)(int64_t)offsets[below(random, 8)];
        if (!wide) {
            value = (uint32_t)value | (uint64_t)(uint32_t)offsets[below(random, 8)] << 32;
        }
        memcpy(xsave + vector_byte_place(n, 8 * part), &value, 8);
    }
    return 0;
}

static void solve_address(const struct insn *insn, const struct insn_operand *operand,
                          struct random *random, struct test_case *test)
{
    struct machine_state *state = &test->before;
    unsigned size = operand->size / 8;
    bool careful = insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK && below(random, 64);
    uint64_t target = place_operand(random, size, careful);
    int base = gpr_number(operand->mem.base), index = gpr_number(operand->mem.index);
    const struct insn_info *info = &insn->info;

    if (ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_XMM ||
        ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_YMM ||
        ZydisRegisterGetClass(operand->mem.index) == ZYDIS_REGCLASS_ZMM) {
        tame_indices(operand->mem.index, random, state->xsave);
    }
    if (operand->mem.base == ZYDIS_REGISTER_RIP || operand->mem.base == ZYDIS_REGISTER_EIP) {
        int32_t displacement = (int32_t)(target - (state->rip + info->length));
        memcpy(test->bytes + info->raw.disp.offset, &displacement, 4);
        return;
    }
    if (base < 0 && index < 0) { /* an absolute address */
        if (info->raw.disp.size) {
            memcpy(test->bytes + info->raw.disp.offset, &target, info->raw.disp.size / 8);
        }
        return;
    }
    uint64_t sum = (uint64_t)operand->mem.displacement;
    if (base < 0 || base == index) { /* only an index: as near as the scale allows */
        unsigned scale = operand->mem.scale + (base == index);
        state->gpr[index] = (target - sum) / (scale ? scale : 1);
        return;
    }
    if (index >= 0) {
        if (info->mnemonic == ZYDIS_MNEMONIC_XLAT) {
            sum += state->gpr[index] & 0xff;
        } else {
            sum += state->gpr[index] * operand->mem.scale;
        }
    }
    state->gpr[base] = target - sum;
    if (info->address_width == 32) {
        state->gpr[base] = (uint32_t)state->gpr[base] | random_next(random) << 32;
    }
}

void generate_state(const struct insn *insn, uint64_t components, struct random *random,
                    struct test_case *test)
{
    struct machine_state *state = &test->before;
    const struct insn_info *info = &insn->info;
    for (unsigned i = 0; i < 16; i++) {
        state->gpr[i] = random_value(random);
    }
    test->offset =
        below(random, 50) ? CODE_OFFSET : (uint16_t)(4096 - below(random, test->length) - 1);
    state->rip = CODE_PAGE + test->offset;
    state->rflags = 0x202 | (random_next(random) & (FLAGS_ARITHMETIC | FLAG_DF));
    if (!below(random, 40)) {
        state->rflags |= FLAG_AC;
    }
    fill_vector_state(components, random, state->xsave);
    fill_data(random, state->data);
    if (info->attributes &
        (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
        state->gpr[RCX] = below(random, 40);
    }
    if (info->mnemonic == ZYDIS_MNEMONIC_BT || info->mnemonic == ZYDIS_MNEMONIC_BTS ||
        info->mnemonic == ZYDIS_MNEMONIC_BTR || info->mnemonic == ZYDIS_MNEMONIC_BTC) {
        int n = insn->operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER
                    ? gpr_number(insn->operands[1].reg.value)
                    : -1;
        if (n >= 0) {
            state->gpr[n] = (uint64_t)((int64_t)below(random, 4096) - 2048);
        }
    }
    for (unsigned i = 0; i < info->operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            operand->mem.type != ZYDIS_MEMOP_TYPE_AGEN) {
            solve_address(insn, operand, random, test);
        }
    }
    if (info->mnemonic == ZYDIS_MNEMONIC_ENTER) {
        state->gpr[RSP] = DATA_PAGE + 512 + below(random, 3584);
        state->gpr[RBP] = place_operand(random, 8, false);
    }
}
