/*
 * Decoding with Zydis: the modes in which bytes mean what they mean on the CPU that the guest is
 * shown, the telling apart of truncated, too long and undefined, and our form of the result.
 */
#include "base/bytes.h"
#include "x86/decode.h"

/*
 * The optional decodings, the same for all code sizes; the others keep the older meaning.
 * - MPX, CET, CLDEMOTE off: no CPU model offers them, so ENDBR64, RDSSP, BNDMOV... are the NOPs
 *   that they were made of.
 * - WBNOINVD off: it is WBINVD, which may do more than asked.
 * - KNC off: the opcodes of a coprocessor. (Its MVEX prefix has no mode: see is_undefined().)
 * - LZCNT and TZCNT on: see decode.h.
 * - AMD_BRANCHES off: in 64-bit mode a near branch ignores the prefix 66H, as on Intel CPUs.
 */
#define DECODER_MODES                                                                              \
    {                                                                                              \
        [ZYDIS_DECODER_MODE_LZCNT] = ZYAN_TRUE, [ZYDIS_DECODER_MODE_TZCNT] = ZYAN_TRUE,            \
    }

static const ZydisDecoder decoders[] = {
    [DECODE_16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16, DECODER_MODES},
    [DECODE_32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32, DECODER_MODES},
    [DECODE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64, DECODER_MODES},
};

/*
 * For an executor the instructions that are defined to be undefined are just that, and so is a
 * prefix 62H that would be EVEX but for a bit that must be one (SDM volume 2, 2.7.1).
 */
static bool is_undefined(const ZydisDecodedInstruction *info)
{
    return info->mnemonic == ZYDIS_MNEMONIC_UD0 || info->mnemonic == ZYDIS_MNEMONIC_UD1 ||
           info->mnemonic == ZYDIS_MNEMONIC_UD2 ||
           info->encoding == ZYDIS_INSTRUCTION_ENCODING_MVEX;
}

/*
 * Zydis takes R13D for the base of a SIB operand that has none (mod 0, base 5, with REX.B) where
 * 67H makes addresses 32 bits wide, and forgets its displacement. SDM volume 2, table 2-3.
 */
static void correct_sib_without_base(const ZydisDecodedInstruction *info,
                                     ZydisDecodedOperand *operands)
{
    if (info->machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || info->address_width != 32 ||
        !(info->attributes & ZYDIS_ATTRIB_HAS_SIB) || info->raw.modrm.mod != 0 ||
        (info->raw.sib.base & 7) != 5) {
        return;
    }
    for (unsigned i = 0; i < info->operand_count; i++) {
        ZydisDecodedOperand *operand = &operands[i];
        if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM &&
            operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            operand->mem.base == ZYDIS_REGISTER_R13D) {
            operand->mem.base = ZYDIS_REGISTER_NONE;
            operand->mem.disp.has_displacement = ZYAN_TRUE;
            operand->mem.disp.value = info->raw.disp.value;
        }
    }
}

/* ---- our form ---- */

/* Nobody asks for these as operands: cpu_flags and the branches' own operands say it. */
static bool is_left_out(const ZydisDecodedOperand *operand)
{
    return operand->type == ZYDIS_OPERAND_TYPE_REGISTER &&
           operand->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN &&
           operand->reg.value >= ZYDIS_REGISTER_FLAGS && operand->reg.value <= ZYDIS_REGISTER_RIP;
}

static uint8_t encoding_of(const ZydisDecodedOperand *operand)
{
    switch (operand->encoding) {
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
    case ZYDIS_OPERAND_ENCODING_OPCODE:
    case ZYDIS_OPERAND_ENCODING_NDSNDD:
        return (uint8_t)operand->encoding;
    default:
        return ZYDIS_OPERAND_ENCODING_NONE;
    }
}

static struct insn_memory memory_of(const ZydisDecodedOperandMem *memory)
{
    return (struct insn_memory){
        .base = (uint16_t)memory->base,
        .index = (uint16_t)memory->index,
        .segment = (uint16_t)memory->segment,
        .type = (uint8_t)memory->type,
        .scale = memory->index == ZYDIS_REGISTER_NONE ? 0 : memory->scale,
        .displacement = memory->disp.has_displacement ? memory->disp.value : 0,
    };
}

static struct insn_operand operand_of(const ZydisDecodedOperand *from, bool is_evex)
{
    struct insn_operand operand = {
        .type = (uint8_t)from->type,
        .visibility = (uint8_t)from->visibility,
        .actions = from->actions,
        .encoding = encoding_of(from),
        .size = from->size,
        .element_size = is_evex ? from->element_size : 0,
    };
    switch (from->type) {
    case ZYDIS_OPERAND_TYPE_REGISTER:
        operand.reg.value = (uint16_t)from->reg.value;
        break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
        operand.mem = memory_of(&from->mem);
        break;
    case ZYDIS_OPERAND_TYPE_POINTER:
        operand.ptr.segment = from->ptr.segment;
        operand.ptr.offset = from->ptr.offset;
        break;
    default:
        operand.imm.value.u = from->imm.value.u;
        break;
    }
    return operand;
}

static struct insn_raw raw_of(const ZydisDecodedInstruction *info, const uint8_t *bytes)
{
    struct insn_raw raw = {
        .prefix_count = info->raw.prefix_count,
        .modrm = {info->raw.modrm.mod, info->raw.modrm.reg, info->raw.modrm.rm,
                  info->raw.modrm.offset},
        .disp = {info->raw.disp.size, info->raw.disp.offset},
    };
    for (unsigned i = 0; i < info->raw.prefix_count; i++) {
        if (info->raw.prefixes[i].type == ZYDIS_PREFIX_TYPE_MANDATORY) {
            raw.mandatory = info->raw.prefixes[i].value;
        }
    }
    for (unsigned i = 0; i < 2; i++) {
        raw.imm[i].size = info->raw.imm[i].size;
        raw.imm[i].offset = info->raw.imm[i].offset;
        raw.imm[i].is_relative = info->raw.imm[i].is_relative;
    }
    if (info->attributes & ZYDIS_ATTRIB_HAS_REX) {
        raw.rex = bytes[info->raw.rex.offset];
    } else if (info->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        raw.vex_offset = info->raw.vex.offset;
    } else if (info->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX) {
        raw.vex_offset = info->raw.evex.offset;
    }
    return raw;
}

static struct insn_avx avx_of(const ZydisDecodedInstructionAvx *avx)
{
    return (struct insn_avx){
        .vector_length = avx->vector_length,
        .mask = {(uint16_t)avx->mask.reg, (uint8_t)avx->mask.mode},
        .broadcast = {(uint8_t)avx->broadcast.mode, avx->broadcast.is_static},
        .rounding = {(uint8_t)avx->rounding.mode},
        .has_sae = avx->has_sae,
    };
}

static void convert(const ZydisDecodedInstruction *from, const ZydisDecodedOperand *operands,
                    const uint8_t *bytes, struct insn *insn)
{
    bool is_evex = from->encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX;
    bool is_vex = from->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX;
    insn->info = (struct insn_info){
        .mnemonic = (uint16_t)from->mnemonic,
        .length = from->length,
        .operand_count_visible = from->operand_count_visible,
        .encoding = (uint8_t)from->encoding,
        .opcode_map = (uint8_t)from->opcode_map,
        .opcode = from->opcode,
        .operand_width = from->operand_width,
        .address_width = from->address_width,
        .machine_mode = (uint8_t)from->machine_mode,
        .meta = {(uint8_t)from->meta.category, (uint8_t)from->meta.isa_set,
                 (uint8_t)from->meta.isa_ext, (uint8_t)from->meta.branch_type,
                 is_evex ? (uint8_t)from->meta.exception_class : 0},
        .attributes = (uint32_t)(from->attributes & INSN_ATTRIBUTES),
        .cpu_flags = from->cpu_flags,
        .raw = raw_of(from, bytes),
    };
    if (is_vex || is_evex) {
        insn->info.avx = avx_of(&from->avx);
    }
    unsigned count = 0;
    for (unsigned i = 0; i < from->operand_count; i++) {
        if (!is_left_out(&operands[i])) {
            insn->operands[count++] = operand_of(&operands[i], is_evex);
        }
    }
    insn->info.operand_count = (uint8_t)count;
    bytes_fill(insn->bytes, 0, sizeof insn->bytes);
    bytes_copy(insn->bytes, bytes, from->length);
}

enum decode_result decode_by_zydis(enum decode_mode mode, const uint8_t *bytes, size_t available,
                                   struct insn *ret_insn)
{
    ZydisDecodedInstruction info;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    size_t length = available < INSN_MAX_LENGTH ? available : INSN_MAX_LENGTH;
    if (length == 0) {
        return DECODE_TRUNCATED;
    }
    ZyanStatus status = ZydisDecoderDecodeFull(&decoders[mode], bytes, length, &info, operands);
    if (ZYAN_SUCCESS(status)) {
        if (is_undefined(&info)) {
            return DECODE_INVALID;
        }
        correct_sib_without_base(&info, operands);
        convert(&info, operands, bytes, ret_insn);
        return DECODE_OK;
    }
    /*
     * Zydis may know that it will be too long before the 15 bytes are there; the CPU fetches them
     * first, and a fault on the way counts.
     */
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG || status == ZYDIS_STATUS_NO_MORE_DATA) {
        return length == INSN_MAX_LENGTH ? DECODE_TOO_LONG : DECODE_TRUNCATED;
    }
    return DECODE_INVALID;
}
