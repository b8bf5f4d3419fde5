/*
 * For tests: are two decoded instructions the same in everything that a consumer may read?
 */
#pragma once

#include <string.h>

#include "x86/decode.h"

#define DECODE_COMPARE(field)                                                                      \
    if (a->field != b->field) {                                                                    \
        return #field;                                                                             \
    }

static inline const char *operand_difference(const struct insn_operand *a,
                                             const struct insn_operand *b)
{
    DECODE_COMPARE(type)
    DECODE_COMPARE(visibility)
    DECODE_COMPARE(actions)
    DECODE_COMPARE(encoding)
    DECODE_COMPARE(size)
    DECODE_COMPARE(element_size)
    switch (a->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        DECODE_COMPARE(reg.value)
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        DECODE_COMPARE(mem.base)
        DECODE_COMPARE(mem.index)
        DECODE_COMPARE(mem.segment)
        DECODE_COMPARE(mem.type)
        DECODE_COMPARE(mem.scale)
        DECODE_COMPARE(mem.displacement)
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        DECODE_COMPARE(ptr.segment)
        DECODE_COMPARE(ptr.offset)
        break;
    default:
        DECODE_COMPARE(imm.value.u)
        break;
    }
    return NULL;
}

static inline const char *flags_difference(const ZydisAccessedFlags *a, const ZydisAccessedFlags *b)
{
    DECODE_COMPARE(tested)
    DECODE_COMPARE(modified)
    DECODE_COMPARE(set_0)
    DECODE_COMPARE(set_1)
    DECODE_COMPARE(undefined)
    return NULL;
}

static inline const char *raw_difference(const struct insn_raw *a, const struct insn_raw *b)
{
    DECODE_COMPARE(prefix_count)
    DECODE_COMPARE(mandatory)
    DECODE_COMPARE(rex)
    DECODE_COMPARE(vex_offset)
    DECODE_COMPARE(modrm.mod)
    DECODE_COMPARE(modrm.reg)
    DECODE_COMPARE(modrm.rm)
    DECODE_COMPARE(modrm.offset)
    DECODE_COMPARE(disp.size)
    DECODE_COMPARE(disp.offset)
    for (unsigned i = 0; i < 2; i++) {
        DECODE_COMPARE(imm[i].size)
        DECODE_COMPARE(imm[i].offset)
        DECODE_COMPARE(imm[i].is_relative)
    }
    return NULL;
}

static inline const char *avx_difference(const struct insn_avx *a, const struct insn_avx *b)
{
    DECODE_COMPARE(vector_length)
    DECODE_COMPARE(mask.reg)
    DECODE_COMPARE(mask.mode)
    DECODE_COMPARE(broadcast.mode)
    DECODE_COMPARE(broadcast.is_static)
    DECODE_COMPARE(rounding.mode)
    DECODE_COMPARE(has_sae)
    return NULL;
}

static inline const char *info_difference(const struct insn_info *a, const struct insn_info *b)
{
    DECODE_COMPARE(mnemonic)
    DECODE_COMPARE(length)
    DECODE_COMPARE(operand_count)
    DECODE_COMPARE(operand_count_visible)
    DECODE_COMPARE(encoding)
    DECODE_COMPARE(opcode_map)
    DECODE_COMPARE(opcode)
    DECODE_COMPARE(operand_width)
    DECODE_COMPARE(address_width)
    DECODE_COMPARE(machine_mode)
    DECODE_COMPARE(meta.category)
    DECODE_COMPARE(meta.isa_set)
    DECODE_COMPARE(meta.isa_ext)
    DECODE_COMPARE(meta.branch_type)
    DECODE_COMPARE(meta.exception_class)
    DECODE_COMPARE(attributes)
    return NULL;
}

/* The name of a field in which they differ, or NULL. */
static inline const char *insn_difference(const struct insn *a, const struct insn *b)
{
    const char *difference = info_difference(&a->info, &b->info);
    if (!difference) {
        difference = flags_difference(a->info.cpu_flags, b->info.cpu_flags);
    }
    if (!difference) {
        difference = raw_difference(&a->info.raw, &b->info.raw);
    }
    if (!difference) {
        difference = avx_difference(&a->info.avx, &b->info.avx);
    }
    if (!difference && memcmp(a->bytes, b->bytes, sizeof a->bytes) != 0) {
        difference = "bytes";
    }
    for (unsigned i = 0; i < a->info.operand_count && !difference; i++) {
        difference = operand_difference(&a->operands[i], &b->operands[i]);
    }
    return difference;
}
