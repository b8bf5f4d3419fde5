/*
 * Re-encoding of one guest instruction for the host: the opcode and immediates are copied, the
 * prefixes, ModRM and SIB are made anew. SDM volume 2, chapter 2 (instruction format).
 */
#include "engine/rewrite.h"

#include "base/assert.h"
#include "base/bytes.h"

enum { REX = 0x40, REX_W = 8, REX_R = 4, REX_X = 2, REX_B = 1 };

/* The operand fields of the encoding after substitution. */
struct fields {
    uint8_t reg;  /* ModRM.reg with its extension bits (5 bits for EVEX) */
    uint8_t rm;   /* register form only */
    uint8_t vvvv; /* not inverted, 4 bits */
    bool vvvv_replaced;
    bool has_memory;
    bool rm_in_opcode;  /* the register stands in the low bits of the opcode */
    bool needs_rex;     /* SPL, BPL, SIL, DIL, or their substitutes */
    bool has_high_byte; /* AH, CH, DH, BH: cannot stand beside REX */
    bool impossible;
};

struct output {
    uint8_t *bytes;
    size_t length;
};

static void put(struct output *out, uint8_t byte)
{
    out->bytes[out->length++] = byte;
}

static bool is_byte(ZydisRegister name)
{
    return name >= ZYDIS_REGISTER_AL && name <= ZYDIS_REGISTER_R15B;
}

static bool in_modrm(const struct insn_operand *operand)
{
    return operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
}

static bool is_moffs(const struct insn *insn)
{
    return insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY &&
           insn->info.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && insn->info.opcode >= 0xa0 &&
           insn->info.opcode <= 0xa3;
}

/* The number to encode for a register operand, after substitution. */
static uint8_t substitute(ZydisRegister name, uint8_t raw, const struct rewrite_map *map,
                          struct fields *fields)
{
    int gpr = rewrite_gpr(name);
    if (gpr < 0) {
        return raw;
    }
    uint8_t host = map->host[gpr];
    if (is_high_byte(name) && map->high_byte) {
        host = map->high_byte;
    } else if (is_high_byte(name)) {
        fields->has_high_byte = true;
        fields->impossible |= host != gpr;
        return raw;
    }
    if (is_byte(name) && host >= 4) {
        fields->needs_rex = true;
    }
    return host;
}

static struct fields read_fields(const struct insn *insn, const struct rewrite_map *map)
{
    const struct insn_info *info = &insn->info;
    struct fields fields = {.reg = info->raw.modrm.reg, .rm = info->raw.modrm.rm};
    if (info->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
        fields.reg |= info->raw.rex & REX_R ? 8 : 0;
        fields.rm |= info->raw.rex & REX_B ? 8 : 0;
    }
    for (unsigned i = 0; i < info->operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY) {
            if (in_modrm(operand) && map->memory_register) {
                fields.rm = map->memory_register;
                fields.needs_rex |= operand->size == 8 && map->memory_register >= 4;
            } else if (in_modrm(operand) || is_moffs(insn)) {
                fields.has_memory = true;
                /* VSIB: the addresses are in a vector register, one base cannot stand for them. */
                fields.impossible |= operand->mem.type == ZYDIS_MEMOP_TYPE_VSIB;
            } else {
                fields.impossible = true; /* string and stack operands are not rewritten */
            }
        } else if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegister name = operand->reg.value;
            switch (operand->encoding) {
            case ZYDIS_OPERAND_ENCODING_MODRM_REG:
                fields.reg = substitute(name, fields.reg, map, &fields);
                break;
            case ZYDIS_OPERAND_ENCODING_MODRM_RM:
                fields.rm = substitute(name, fields.rm, map, &fields);
                break;
            case ZYDIS_OPERAND_ENCODING_OPCODE:
                fields.rm_in_opcode = true;
                fields.rm = substitute(name, info->opcode & 7, map, &fields);
                break;
            case ZYDIS_OPERAND_ENCODING_NDSNDD:
                if (rewrite_gpr(name) >= 0) {
                    fields.vvvv = substitute(name, 0, map, &fields);
                    fields.vvvv_replaced = true;
                }
                break;
            default:
                break;
            }
        }
    }
    return fields;
}

/* ModRM (and SIB, displacement) for the memory operand of the map. */
static void put_memory(struct output *out, uint8_t reg, const struct rewrite_map *map, bool is_evex)
{
    uint8_t base = map->memory_base & 7;
    int32_t offset = map->memory_offset;
    /* EVEX scales an 8-bit displacement (SDM volume 2, 2.7.5): only zero is safe there. */
    bool fits_byte = offset >= -128 && offset <= 127 && !(is_evex && offset != 0);
    uint8_t mod = offset == 0 && base != 5 ? 0 : fits_byte ? 1 : 2;
    bool has_sib = map->has_index || base == 4;
    put(out, (uint8_t)(mod << 6 | (reg & 7) << 3 | (has_sib ? 4 : base)));
    if (has_sib) {
        unsigned scale = map->memory_scale ? (unsigned)__builtin_ctz(map->memory_scale) : 0;
        put(out, (uint8_t)(scale << 6 | (map->has_index ? map->memory_index & 7 : 4) << 3 | base));
    }
    if (mod == 1) {
        put(out, (uint8_t)offset);
    } else if (mod == 2) {
        store_le32(out->bytes + out->length, (uint32_t)offset);
        out->length += 4;
    }
}

/* Does the index need X of REX, VEX or EVEX? */
static bool is_extended_index(const struct rewrite_map *map)
{
    return map->has_index && map->memory_index >= R8;
}

static void put_modrm(struct output *out, const struct insn *insn, const struct fields *fields,
                      const struct rewrite_map *map)
{
    if (fields->has_memory) {
        put_memory(out, fields->reg, map, insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX);
    } else {
        put(out, (uint8_t)(0xc0 | (fields->reg & 7) << 3 | (fields->rm & 7)));
    }
}

static void put_immediates(struct output *out, const struct insn *insn)
{
    for (unsigned i = 0; i < 2; i++) {
        unsigned size = insn->info.raw.imm[i].size / 8;
        for (unsigned k = 0; k < size; k++) {
            put(out, insn->bytes[insn->info.raw.imm[i].offset + k]);
        }
    }
}

/* Does 66H choose the operand size of this instruction (and is not a part of its opcode)? */
static bool has_operand_size(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && rewrite_gpr(operand->reg.value) < 0 &&
            operand->visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT) {
            return false;
        }
    }
    return true;
}

/*
 * The legacy prefixes that still matter, each once: repeated ones mean nothing, but the copy may
 * have bytes that they left no room for. Of F2H and F3H the last one counts. The operand size is
 * made for 64-bit code.
 */
static void put_prefixes(struct output *out, const struct insn *insn)
{
    const struct insn_info *info = &insn->info;
    bool is_16bit_code = info->machine_mode == ZYDIS_MACHINE_MODE_LEGACY_16 ||
                         info->machine_mode == ZYDIS_MACHINE_MODE_LONG_COMPAT_16 ||
                         info->machine_mode == ZYDIS_MACHINE_MODE_REAL_16;
    bool has_66 = false, has_lock = false;
    uint8_t repeat = 0;
    for (unsigned i = 0; i < info->raw.prefix_count; i++) {
        uint8_t value = insn->bytes[i];
        if (value == 0x66) {
            bool chooses_size =
                info->raw.mandatory != value && is_16bit_code && has_operand_size(insn);
            if (!has_66 && !chooses_size) {
                put(out, value);
            }
            has_66 = true;
        } else if (value == 0xf0) {
            has_lock = true;
        } else if (value == 0xf2 || value == 0xf3) {
            repeat = value;
        }
    }
    if (has_lock) {
        put(out, 0xf0);
    }
    if (repeat) {
        put(out, repeat);
    }
    if (is_16bit_code && !has_66 && info->operand_width == 16 && has_operand_size(insn)) {
        put(out, 0x66);
    }
}

static size_t rewrite_legacy(const struct insn *insn, const struct fields *fields,
                             const struct rewrite_map *map, uint8_t *bytes)
{
    const struct insn_info *info = &insn->info;
    struct output out = {.bytes = bytes};
    uint8_t opcode = info->opcode, reg = fields->reg;
    /* 40H..4FH are INC and DEC only outside 64-bit mode: use the ModRM forms. */
    bool is_short_inc = info->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && (opcode & 0xf0) == 0x40;
    bool has_modrm = (info->attributes & ZYDIS_ATTRIB_HAS_MODRM) || is_short_inc || is_moffs(insn);
    if (is_short_inc) {
        reg = opcode >> 3 & 1;
        opcode = 0xff;
    } else if (is_moffs(insn)) {
        static const uint8_t with_modrm[] = {0x8a, 0x8b, 0x88, 0x89};
        reg = map->host[RAX];
        opcode = with_modrm[opcode - 0xa0];
    } else if (fields->rm_in_opcode) {
        opcode = (uint8_t)((opcode & ~7) | (fields->rm & 7));
        if (opcode == 0x90 && info->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && !(fields->rm & 8)) {
            return 0; /* XCHG of RAX with itself: that is NOP, which leaves the upper half alone */
        }
    }

    uint8_t rex = info->raw.rex & REX_W;
    rex |= reg & 8 ? REX_R : 0;
    rex |= (fields->has_memory ? map->memory_base : fields->rm) & 8 ? REX_B : 0;
    rex |= fields->has_memory && is_extended_index(map) ? REX_X : 0;
    if (rex || fields->needs_rex) {
        if (fields->has_high_byte) {
            return 0;
        }
        rex |= REX;
    }
    put_prefixes(&out, insn);
    if (rex) {
        put(&out, rex);
    }
    switch (info->opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT:
        break;
    case ZYDIS_OPCODE_MAP_0F:
        put(&out, 0x0f);
        break;
    case ZYDIS_OPCODE_MAP_0F38:
        put(&out, 0x0f);
        put(&out, 0x38);
        break;
    case ZYDIS_OPCODE_MAP_0F3A:
        put(&out, 0x0f);
        put(&out, 0x3a);
        break;
    default:
        return 0;
    }
    put(&out, opcode);
    if (has_modrm) {
        struct fields final = *fields;
        final.reg = reg;
        put_modrm(&out, insn, &final, map);
    }
    put_immediates(&out, insn);
    return out.length;
}

static size_t rewrite_vex(const struct insn *insn, const struct fields *fields,
                          const struct rewrite_map *map, uint8_t *bytes)
{
    const uint8_t *vex = insn->bytes + insn->info.raw.vex_offset;
    struct output out = {.bytes = bytes};
    /* Always the three-byte form; from the two-byte form X, B, W and the map are implied. */
    uint8_t first = vex[0] == 0xc4 ? vex[1] : (uint8_t)((vex[1] & 0x80) | 0x61);
    uint8_t second = vex[0] == 0xc4 ? vex[2] : vex[1] & 0x7f;
    bool reg_is_gpr = false, rm_is_gpr = false;
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        bool is_gpr =
            operand->type == ZYDIS_OPERAND_TYPE_REGISTER && rewrite_gpr(operand->reg.value) >= 0;
        reg_is_gpr |= is_gpr && operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG;
        rm_is_gpr |= is_gpr && operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
    }
    if (reg_is_gpr) {
        first = (uint8_t)((first & 0x7f) | (fields->reg & 8 ? 0 : 0x80));
    }
    if (fields->has_memory || rm_is_gpr) {
        uint8_t number = fields->has_memory ? map->memory_base : fields->rm;
        bool extends_index = fields->has_memory && is_extended_index(map);
        first = (uint8_t)((first & 0x9f) | (extends_index ? 0 : 0x40) | (number & 8 ? 0 : 0x20));
    }
    if (fields->vvvv_replaced) {
        second = (uint8_t)((second & 0x87) | (~fields->vvvv & 15) << 3);
    }
    put(&out, 0xc4);
    put(&out, first);
    put(&out, second);
    put(&out, insn->info.opcode);
    if (insn->info.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
        put_modrm(&out, insn, fields, map);
    }
    put_immediates(&out, insn);
    return out.length;
}

static size_t rewrite_evex(const struct insn *insn, const struct fields *fields,
                           const struct rewrite_map *map, uint8_t *bytes)
{
    const uint8_t *evex = insn->bytes + insn->info.raw.vex_offset;
    struct output out = {.bytes = bytes};
    uint8_t first = evex[1], second = evex[2];
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type != ZYDIS_OPERAND_TYPE_REGISTER || rewrite_gpr(operand->reg.value) < 0) {
            continue;
        }
        if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_REG) {
            first = (uint8_t)((first & 0x6f) | 0x10 | (fields->reg & 8 ? 0 : 0x80));
        } else if (operand->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
            first = (uint8_t)((first & 0x9f) | 0x40 | (fields->rm & 8 ? 0 : 0x20));
        }
    }
    if (fields->has_memory) {
        first = (uint8_t)((first & 0x9f) | (is_extended_index(map) ? 0 : 0x40) |
                          (map->memory_base & 8 ? 0 : 0x20));
    }
    if (fields->vvvv_replaced) {
        second = (uint8_t)((second & 0x87) | (~fields->vvvv & 15) << 3);
    }
    put(&out, 0x62);
    put(&out, first);
    put(&out, second);
    put(&out, evex[3]);
    put(&out, insn->info.opcode);
    put_modrm(&out, insn, fields, map);
    put_immediates(&out, insn);
    return out.length;
}

size_t rewrite(const struct insn *insn, const struct rewrite_map *map, uint8_t *out)
{
    struct fields fields = read_fields(insn, map);
    if (fields.impossible) {
        return 0;
    }
    size_t length = 0; /* XOP, 3DNow!: no CPU model offers them */
    switch (insn->info.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_LEGACY:
        length = rewrite_legacy(insn, &fields, map, out);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        length = rewrite_vex(insn, &fields, map, out);
        break;
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        length = rewrite_evex(insn, &fields, map, out);
        break;
    default:
        break;
    }
    ASSERT(length <= INSN_MAX_LENGTH);
    return length;
}
