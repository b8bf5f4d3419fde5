/*
 * Rewriting is the identity but for the registers that the map names and the memory operand: what
 * comes out, decoded again, is the same instruction. Over the code of this program and of its
 * libraries (whose string functions are in SSE2, AVX2 and AVX-512), and over generated forms.
 */
#include "engine/rewrite.h"

#include <link.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"

enum { OUT_SIZE = 16 };

static const struct rewrite_map maps[] = {
    /* the guest's registers, as translate maps them */
    {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, R13, 0, false, 0, 0, 0, 0},
    {{0, 1, 2, 3, 15, 5, 6, 7, 8, 9, 10, 11, 12, 14, 14, 14}, R13, 8, false, 0, 0, 0, 0},
    {{0, 1, 2, 3, 15, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, R14, 0, true, R13, 1, 0, 0},
    {{0, 1, 2, 3, 15, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, R13, 8, false, 0, 0, R14, 0},
    {{0, 1, 2, 3, 9, 5, 6, 7, 8, 11, 11, 11, 12, 13, 14, 15}, R10, 0, false, 0, 0, 0, R11},
    /* low ones high and high ones low, with each base that has an encoding of its own */
    {{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}, RSP, 0, false, 0, 0, 0, 0},
    {{0, 2, 1, 3, 6, 7, 4, 5, 15, 14, 13, 12, 11, 10, 9, 8}, RBP, 0, false, 0, 0, 0, 0},
    {{3, 0, 1, 2, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7}, R12, 0x7f, false, 0, 0, 0, 0},
    {{3, 0, 1, 2, 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7}, RBP, 0x100, true, RSI, 8, 0, 0},
    {{0, 1, 2, 3, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12}, RDI, -0x1000, false, 0, 0, 0, 0},
};

/* What came out, by encoding, so that no kind of code goes without a test. */
struct counts {
    unsigned rewritten[ZYDIS_INSTRUCTION_ENCODING_MAX_VALUE + 1], impossible;
};

static bool is_moffs(const struct insn *insn)
{
    return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
           insn->info.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && insn->info.opcode >= 0xa0 &&
           insn->info.opcode <= 0xa3;
}

/* Is a register operand of a kind that the map replaces? */
static bool is_replaced(const struct insn *insn, const struct insn_operand *operand)
{
    switch (operand->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
    case ZYDIS_OPERAND_ENCODING_OPCODE:
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return rewrite_gpr(operand->reg.value) >= 0;
    default:
        return is_moffs(insn) && rewrite_gpr(operand->reg.value) == RAX;
    }
}

static bool same_register(const struct insn *insn, const struct insn_operand *before,
                          const struct insn_operand *after, const struct rewrite_map *map)
{
    ZydisRegister a = before->reg.value, b = after->reg.value;
    if (!is_replaced(insn, before)) {
        return a == b;
    }
    if (is_high_byte(a) && map->high_byte) {
        return rewrite_gpr(b) == map->high_byte && !is_high_byte(b);
    }
    return rewrite_gpr(b) == map->host[rewrite_gpr(a)] && is_high_byte(a) == is_high_byte(b);
}

static bool same_memory(const struct insn_operand *after, const struct rewrite_map *map)
{
    int index = map->has_index ? map->memory_index : -1;
    return after->mem.base == (ZydisRegister)(ZYDIS_REGISTER_RAX + map->memory_base) &&
           rewrite_gpr(after->mem.index) == index &&
           after->mem.scale == (index >= 0 ? map->memory_scale : 0) &&
           after->mem.displacement == map->memory_offset;
}

static bool same_operand(const struct insn *insn, const struct insn_operand *before,
                         const struct insn_operand *after, const struct rewrite_map *map)
{
    if (before->type == ZYDIS_OPERAND_TYPE_MEMORY && map->memory_register) {
        return after->type == ZYDIS_OPERAND_TYPE_REGISTER && after->size == before->size &&
               after->actions == before->actions && !is_high_byte(after->reg.value) &&
               rewrite_gpr(after->reg.value) == map->memory_register;
    }
    bool is_lea = before->type == ZYDIS_OPERAND_TYPE_MEMORY &&
                  before->mem.type == ZYDIS_MEMOP_TYPE_AGEN; /* as wide as an address */
    if (before->type != after->type || (before->size != after->size && !is_lea) ||
        before->actions != after->actions || before->element_size != after->element_size) {
        return false;
    }
    switch (before->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        return same_register(insn, before, after, map);
    case ZYDIS_OPERAND_TYPE_MEMORY:
        return same_memory(after, map);
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
        return before->imm.value.u == after->imm.value.u;
    default:
        return true;
    }
}

static bool same_instruction(const struct insn *before, const struct insn *after,
                             const struct rewrite_map *map)
{
    const struct insn_info *a = &before->info, *b = &after->info;
    const ZydisInstructionAttributes kept = ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP |
                                            ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE;
    if (a->mnemonic != b->mnemonic || a->operand_count != b->operand_count ||
        a->operand_width != b->operand_width || (a->attributes & kept) != (b->attributes & kept) ||
        a->avx.vector_length != b->avx.vector_length || a->avx.mask.mode != b->avx.mask.mode ||
        a->avx.mask.reg != b->avx.mask.reg || a->avx.broadcast.mode != b->avx.broadcast.mode ||
        a->avx.rounding.mode != b->avx.rounding.mode || a->avx.has_sae != b->avx.has_sae) {
        return false;
    }
    for (unsigned i = 0; i < a->operand_count; i++) {
        if (!same_operand(before, &before->operands[i], &after->operands[i], map)) {
            return false;
        }
    }
    return true;
}

/* Can there be a copy with this map at all? */
static bool may_be_impossible(const struct insn *insn, const struct rewrite_map *map)
{
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_XCHG && (insn->info.opcode & 0xf8) == 0x90) {
        return map->host[rewrite_gpr(insn->operands[0].reg.value)] == RAX; /* that is NOP */
    }
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && is_high_byte(operand->reg.value)) {
            return !map->high_byte;
        }
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB ||
             (operand->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && !is_moffs(insn)))) {
            return true; /* of strings, of the stack */
        }
    }
    return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_XOP ||
           insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_3DNOW;
}

static void show(const char *what, const uint8_t *bytes, size_t length)
{
    print_message("%s", what);
    for (size_t i = 0; i < length; i++) {
        print_message(" %02x", bytes[i]);
    }
    print_message("\n");
}

static bool has_prefix(const struct insn *insn, uint8_t value)
{
    bool has = false;
    for (unsigned i = 0; i < insn->info.raw.prefix_count; i++) {
        has |= insn->bytes[i] == value;
    }
    return has;
}

/* Has it a form with a register in the memory operand's place, and both on general registers? */
static bool has_register_form(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
        return !(insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK);
    default:
        return false;
    }
}

static void check(const struct insn *insn, struct counts *counts)
{
    if (insn->info.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
        return; /* nobody copies these: they mean another place elsewhere */
    }
    if (insn->info.mnemonic == ZYDIS_MNEMONIC_XCHG && insn->info.opcode > 0x90 &&
        has_prefix(insn, 0xf3)) {
        return; /* F3H means nothing here, but of R8 it makes PAUSE */
    }
    for (size_t m = 0; m < ARRAY_SIZE(maps); m++) {
        uint8_t out[OUT_SIZE + 1];
        struct insn after;
        if (maps[m].memory_register && !has_register_form(insn)) {
            continue;
        }
        out[OUT_SIZE] = 0xa5;
        size_t length = rewrite(insn, &maps[m], out);
        bool good = out[OUT_SIZE] == 0xa5 && length <= OUT_SIZE;
        if (length == 0) {
            counts->impossible++;
            good = may_be_impossible(insn, &maps[m]);
        } else {
            counts->rewritten[insn->info.encoding]++;
            good = good && decode(DECODE_64, out, length, &after) == DECODE_OK &&
                   after.info.length == length && same_instruction(insn, &after, &maps[m]);
        }
        if (!good) {
            show("rewritten:", insn->bytes, insn->info.length);
            show("with map", (const uint8_t[]){(uint8_t)m}, 1);
            show("became:", out, length);
            fail();
        }
    }
}

/* ---- real code ---- */

static int sweep(struct dl_phdr_info *object, size_t size, void *argument)
{
    for (unsigned i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X)) {
            continue;
        }
        const uint8_t *at = (const uint8_t *)(object->dlpi_addr + segment->p_vaddr);
        const uint8_t *end = at + segment->p_filesz;
        while (at < end) {
            struct insn insn;
            size_t room = (size_t)(end - at);
            if (decode(DECODE_64, at, room < INSN_MAX_LENGTH ? room : INSN_MAX_LENGTH, &insn) !=
                DECODE_OK) {
                at++;
                continue;
            }
            check(&insn, argument);
            at += insn.info.length;
        }
    }
    return 0;
}

static void real_code_stays_what_it_is(void **state)
{
    struct counts counts = {0};
    dl_iterate_phdr(sweep, &counts);
    print_message("legacy %u, VEX %u, EVEX %u, not expressible %u\n",
                  counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_LEGACY],
                  counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_VEX],
                  counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_EVEX], counts.impossible);
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_LEGACY] > 100000);
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_VEX] > 1000);
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_EVEX] > 1000);
}

/* ---- generated forms ---- */

static uint64_t random_next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* Random bytes behind a beginning that says the encoding and, half the time, a prefix. */
static void generate(uint64_t *seed, uint8_t *bytes)
{
    static const uint8_t prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x64, 0x67};
    uint64_t choice = random_next(seed);
    unsigned at = 0;
    for (unsigned i = 0; i < INSN_MAX_LENGTH; i++) {
        bytes[i] = (uint8_t)(random_next(seed) >> 24);
    }
    if (choice & 1) {
        bytes[at++] = prefixes[(choice >> 8) % ARRAY_SIZE(prefixes)];
    }
    switch (choice >> 16 & 7) {
    case 0:
        bytes[at] = 0xc4;
        bytes[at + 1] = (uint8_t)((bytes[at + 1] & 0xe0) | (1 + (choice >> 24) % 3)); /* the map */
        break;
    case 1:
        bytes[at] = 0xc5;
        break;
    case 2:
    case 3:
        bytes[at] = 0x62;
        bytes[at + 1] = (uint8_t)((bytes[at + 1] & 0xf0) | (1 + (choice >> 24) % 3));
        bytes[at + 2] |= 4;
        break;
    case 4:
        bytes[at++] = (uint8_t)(0x40 | (choice >> 24 & 15));
        bytes[at] = 0x0f;
        break;
    case 5:
        bytes[at] = (uint8_t)(0x40 | (choice >> 24 & 15));
        break;
    case 6:
        bytes[at++] = 0x0f;
        bytes[at] = choice >> 24 & 1 ? 0x38 : 0x3a;
        break;
    default:
        break;
    }
}

static void generated_forms_stay_what_they_are(void **state)
{
    struct counts counts = {0};
    uint64_t seed = 0x9e3779b97f4a7c15;
    for (unsigned i = 0; i < 400000; i++) {
        uint8_t bytes[INSN_MAX_LENGTH];
        struct insn insn;
        generate(&seed, bytes);
        if (decode(DECODE_64, bytes, sizeof bytes, &insn) == DECODE_OK) {
            check(&insn, &counts);
        }
    }
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_LEGACY] > 100000);
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_VEX] > 10000);
    assert_true(counts.rewritten[ZYDIS_INSTRUCTION_ENCODING_EVEX] > 10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_code_stays_what_it_is),
        cmocka_unit_test(generated_forms_stay_what_they_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
