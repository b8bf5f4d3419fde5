/*
 * Decoding of 64-bit code by tables: prefixes, the row, ModRM and SIB, then the operands that the
 * row names. SDM volume 2, chapter 2. What is odd (67H, prefixes that contradict each other, VEX,
 * EVEX, far transfers...) is left to Zydis, and so is all that is not an instruction, or not whole.
 */
#include "base/bytes.h"
#include "x86/decode_internal.h"

enum {
    PREFIXES_MAX = 5,
    READ_MAX = 24, /* bytes that may be looked at: prefixes, opcode, ModRM, SIB, and two numbers */
};

/* ---- prefixes ---- */

enum prefix_kind {
    PREFIX_NONE,
    PREFIX_REX,
    PREFIX_66,
    PREFIX_REPEAT,
    PREFIX_LOCK,
    PREFIX_SEGMENT,
    PREFIX_67,
};

static const uint8_t prefix_kinds[256] = {
    [0x26] = PREFIX_SEGMENT,         [0x2e] = PREFIX_SEGMENT, [0x36] = PREFIX_SEGMENT,
    [0x3e] = PREFIX_SEGMENT,         [0x64] = PREFIX_SEGMENT, [0x65] = PREFIX_SEGMENT,
    [0x40 ... 0x4f] = PREFIX_REX,    [0x66] = PREFIX_66,      [0x67] = PREFIX_67,
    [0xf2 ... 0xf3] = PREFIX_REPEAT, [0xf0] = PREFIX_LOCK,
};

enum { REX_W = 8, REX_R = 4, REX_X = 2, REX_B = 1 };

struct prefixes {
    uint8_t count;
    uint8_t rex, repeat, segment; /* the byte, or 0 */
    bool operand_size, lock;
};

static inline bool read_prefixes(const uint8_t *bytes, struct prefixes *p)
{
    for (; p->count <= PREFIXES_MAX; p->count++) {
        uint8_t byte = bytes[p->count];
        switch (prefix_kinds[byte]) {
        case PREFIX_NONE:
            return true;
        case PREFIX_REX: /* counts only right before the opcode */
            p->rex = byte;
            p->count++;
            return prefix_kinds[bytes[p->count]] == PREFIX_NONE;
        case PREFIX_66:
            p->operand_size = true;
            break;
        case PREFIX_REPEAT:
            if (p->repeat) {
                return false;
            }
            p->repeat = byte;
            break;
        case PREFIX_LOCK:
            p->lock = true;
            break;
        case PREFIX_SEGMENT:
            if (p->segment) {
                return false;
            }
            p->segment = byte;
            break;
        default:
            return false;
        }
    }
    return false;
}

/* ---- the row ---- */

struct decoding {
    const uint8_t *bytes;
    const struct row *row;
    struct prefixes prefixes;
    uint8_t at; /* of the next byte to read */
    uint8_t map, opcode;
    uint8_t mandatory; /* the prefix that is a part of the opcode */
    uint8_t size;      /* index of the operand size: 16, 32, 64 */
    uint8_t mod, reg, rm, modrm_offset;
};

static const struct opcode_map *const maps[] = {
    [ZYDIS_OPCODE_MAP_DEFAULT] = &opcodes_one_byte,
    [ZYDIS_OPCODE_MAP_0F] = &opcodes_0f,
    [ZYDIS_OPCODE_MAP_0F38] = &opcodes_0f38,
    [ZYDIS_OPCODE_MAP_0F3A] = &opcodes_0f3a,
};

static inline void read_opcode(struct decoding *d)
{
    d->at = d->prefixes.count;
    d->map = ZYDIS_OPCODE_MAP_DEFAULT;
    if (d->bytes[d->at] == 0x0f) {
        uint8_t second = d->bytes[++d->at];
        d->map = second == 0x38   ? ZYDIS_OPCODE_MAP_0F38
                 : second == 0x3a ? ZYDIS_OPCODE_MAP_0F3A
                                  : ZYDIS_OPCODE_MAP_0F;
        d->at += d->map != ZYDIS_OPCODE_MAP_0F;
    }
    d->opcode = d->bytes[d->at++];
}

static inline const struct row *row_of(const struct decoding *d, enum column column)
{
    static const struct row absent;
    const struct row *rows = maps[d->map]->columns[column];
    return rows ? &rows[d->opcode] : &absent;
}

/* 66H, F2H or F3H is a part of the opcode or not: 66H is the operand size then. */
static inline void choose_column(struct decoding *d)
{
    const struct prefixes *p = &d->prefixes;
    d->size = p->rex & REX_W ? 2 : 1;
    if (p->repeat) {
        d->row = row_of(d, p->repeat == 0xf3 ? COLUMN_F3 : COLUMN_F2);
        d->mandatory = p->repeat;
        return;
    }
    if (p->operand_size) {
        d->row = row_of(d, COLUMN_66);
        d->mandatory = 0x66;
        if (d->row->mnemonic) {
            return;
        }
        d->size = p->rex & REX_W ? 2 : 0;
    }
    d->row = row_of(d, COLUMN_NONE);
    d->mandatory = 0;
}

static inline bool choose_row(struct decoding *d)
{
    const struct row *splits = maps[d->map]->splits;
    uint8_t modrm = d->bytes[d->at];
    choose_column(d);
    while (d->row->mnemonic >= SPLIT_REG) {
        const struct row *first = &splits[d->row->operands[0]];
        d->row = d->row->mnemonic == SPLIT_REG   ? &first[modrm >> 3 & 7]
                 : d->row->mnemonic == SPLIT_MOD ? &first[modrm >> 6 == 3]
                                                 : &first[d->size];
    }
    return d->row->mnemonic;
}

/* Does the row hold with these prefixes and this ModRM? */
static inline bool row_fits(const struct decoding *d)
{
    const struct prefixes *p = &d->prefixes;
    unsigned bits = d->row->bits;
    bool is_register = d->mod == 3;
    if (__builtin_expect(bits & (REGISTER | MEMORY), 0) && is_register != !!(bits & REGISTER)) {
        return false;
    }
    if (__builtin_expect(p->operand_size | p->repeat | p->lock, 0)) {
        bool is_locked = (bits & LOCK) && !is_register && !p->repeat;
        bool is_size = p->operand_size && d->mandatory != 0x66;
        if ((p->lock && !is_locked) || (p->repeat && p->operand_size) ||
            (is_size && (bits & NO_66))) {
            return false;
        }
    }
    return !(__builtin_expect(bits & (NO_REX_B | NO_SIZE), 0) &&
             (((bits & NO_REX_B) && (p->rex & REX_B)) || ((bits & NO_SIZE) && d->size != 1)));
}

/* ---- operands ---- */

static const uint8_t type_sizes[][3] = {
    /* in bytes, by operand size */
    [TYPE_b] = {1, 1, 1},    [TYPE_w] = {2, 2, 2}, [TYPE_d] = {4, 4, 4}, [TYPE_q] = {8, 8, 8},
    [TYPE_x] = {16, 16, 16}, [TYPE_v] = {2, 4, 8}, [TYPE_z] = {2, 4, 4}, [TYPE_k] = {2, 8, 8},
};

/* Zydis lists AL..BL, AH..BH, SPL, BPL, SIL, DIL, R8B..R15B; AH..BH are 4 to 7 without REX. */
static inline uint16_t gpr_name(unsigned number, unsigned size, bool has_rex)
{
    static const uint16_t first[] = {
        [2] = ZYDIS_REGISTER_AX, [4] = ZYDIS_REGISTER_EAX, [8] = ZYDIS_REGISTER_RAX};
    if (size == 1) {
        return (uint16_t)(ZYDIS_REGISTER_AL + number + (number >= 4 && has_rex ? 4 : 0));
    }
    return (uint16_t)(first[size] + number);
}

static inline void set_register(struct insn_operand *operand, unsigned encoding, unsigned name)
{
    operand->type = ZYDIS_OPERAND_TYPE_REGISTER;
    operand->encoding = (uint8_t)encoding;
    operand->reg.value = (uint16_t)name;
}

static inline void set_memory(struct insn_operand *operand, unsigned segment, unsigned base)
{
    operand->type = ZYDIS_OPERAND_TYPE_MEMORY;
    operand->encoding = ZYDIS_OPERAND_ENCODING_NONE;
    operand->mem.base = (uint16_t)base;
    operand->mem.index = ZYDIS_REGISTER_NONE;
    operand->mem.segment = (uint16_t)segment;
    operand->mem.type = ZYDIS_MEMOP_TYPE_MEM;
    operand->mem.scale = 0;
    operand->mem.displacement = 0;
}

/* DS, or what a prefix says instead: in 64-bit mode only FS and GS count. */
static inline unsigned data_segment(const struct decoding *d)
{
    return d->prefixes.segment == 0x64   ? ZYDIS_REGISTER_FS
           : d->prefixes.segment == 0x65 ? ZYDIS_REGISTER_GS
                                         : ZYDIS_REGISTER_DS;
}

static inline int64_t load_signed(const uint8_t *bytes, unsigned size)
{
    return size == 1   ? (int8_t)bytes[0]
           : size == 2 ? (int16_t)load_le16(bytes)
           : size == 4 ? (int32_t)load_le32(bytes)
                       : (int64_t)load_le64(bytes);
}

/* The memory operand of ModRM. SDM volume 2, tables 2-2 and 2-3. */
static inline void read_address(struct decoding *d, struct insn *insn, struct insn_operand *operand,
                                unsigned segment)
{
    unsigned rex = d->prefixes.rex, base = d->rm, displacement = d->mod == 1 ? 1 : d->mod * 2u;
    set_memory(operand, segment, ZYDIS_REGISTER_NONE);
    operand->encoding = ZYDIS_OPERAND_ENCODING_MODRM_RM;
    bool is_relative = d->mod == 0 && base == 5;
    if (base == 4) {
        uint8_t sib = d->bytes[d->at++];
        unsigned index = (sib >> 3 & 7) | (rex & REX_X) << 2;
        base = sib & 7;
        if (index != 4) {
            operand->mem.index = (uint16_t)(ZYDIS_REGISTER_RAX + index);
            operand->mem.scale = (uint8_t)(1 << (sib >> 6));
        }
    }
    if (is_relative) {
        operand->mem.base = ZYDIS_REGISTER_RIP;
        displacement = 4;
    } else if (d->mod == 0 && base == 5) { /* a SIB byte without base */
        displacement = 4;
    } else {
        base |= (rex & REX_B) << 3;
        operand->mem.base = (uint16_t)(ZYDIS_REGISTER_RAX + base);
        if ((base == 4 || base == 5) && operand->mem.segment == ZYDIS_REGISTER_DS) {
            operand->mem.segment = ZYDIS_REGISTER_SS;
        }
    }
    if (displacement) {
        operand->mem.displacement = load_signed(d->bytes + d->at, displacement);
        insn->info.raw.disp.size = (uint8_t)(displacement * 8);
        insn->info.raw.disp.offset = d->at;
        d->at += (uint8_t)displacement;
    }
}

static inline void read_offset(struct decoding *d, struct insn *insn, struct insn_operand *operand)
{
    set_memory(operand, data_segment(d), ZYDIS_REGISTER_NONE);
    operand->mem.displacement = load_signed(d->bytes + d->at, 8);
    insn->info.raw.disp.size = 64;
    insn->info.raw.disp.offset = d->at;
    d->at += 8;
}

static inline void read_immediate(struct decoding *d, struct insn *insn,
                                  struct insn_operand *operand, unsigned method, unsigned size)
{
    int64_t value = load_signed(d->bytes + d->at, size);
    operand->imm.value.s = value;
    if (method == METHOD_IU && size < 8) {
        operand->imm.value.u &= (1ull << size * 8) - 1;
    }
    operand->type = ZYDIS_OPERAND_TYPE_IMMEDIATE;
    operand->encoding = ZYDIS_OPERAND_ENCODING_NONE;
    insn->info.raw.imm[0].size = (uint8_t)(size * 8);
    insn->info.raw.imm[0].offset = d->at;
    insn->info.raw.imm[0].is_relative = method == METHOD_J;
    d->at += (uint8_t)size;
}

static inline void read_operand(struct decoding *d, struct insn *insn, struct insn_operand *operand,
                                unsigned code)
{
    unsigned method = OPERAND_METHOD(code), rex = d->prefixes.rex;
    unsigned size = type_sizes[OPERAND_TYPE(code)][d->size];
    operand->actions = (uint8_t)OPERAND_ACCESS(code);
    operand->visibility = (uint8_t)OPERAND_VISIBILITY(code);
    operand->size = (uint16_t)(size * 8);
    operand->element_size = 0;
    if (method >= METHOD_E && d->mod != 3) {
        bool is_access = method != METHOD_ADDRESS; /* else segments do not matter */
        read_address(d, insn, operand, is_access ? data_segment(d) : ZYDIS_REGISTER_DS);
        operand->mem.type = is_access ? ZYDIS_MEMOP_TYPE_MEM : ZYDIS_MEMOP_TYPE_AGEN;
        return;
    }
    unsigned reg = d->reg | (rex & REX_R) << 1, rm = d->rm | (rex & REX_B) << 3;
    switch (method) {
    case METHOD_G:
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_REG, gpr_name(reg, size, rex));
        break;
    case METHOD_E:
    case METHOD_R:
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_RM, gpr_name(rm, size, rex));
        break;
    case METHOD_Z:
        rm = (d->opcode & 7u) | (rex & REX_B) << 3;
        set_register(operand, ZYDIS_OPERAND_ENCODING_OPCODE, gpr_name(rm, size, rex));
        break;
    case METHOD_V:
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_REG, ZYDIS_REGISTER_XMM0 + reg);
        break;
    case METHOD_W:
    case METHOD_U:
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_RM, ZYDIS_REGISTER_XMM0 + rm);
        break;
    case METHOD_P: /* there are eight of them, REX does not matter */
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_REG, ZYDIS_REGISTER_MM0 + d->reg);
        break;
    case METHOD_Q:
    case METHOD_N:
        set_register(operand, ZYDIS_OPERAND_ENCODING_MODRM_RM, ZYDIS_REGISTER_MM0 + d->rm);
        break;
    case METHOD_I:
    case METHOD_IU:
    case METHOD_J:
        read_immediate(d, insn, operand, method, size);
        break;
    case METHOD_ONE:
        operand->type = ZYDIS_OPERAND_TYPE_IMMEDIATE;
        operand->encoding = ZYDIS_OPERAND_ENCODING_NONE;
        operand->imm.value.u = 1;
        break;
    case METHOD_O:
        read_offset(d, insn, operand);
        break;
    case METHOD_STACK:
        set_memory(operand, ZYDIS_REGISTER_SS, ZYDIS_REGISTER_RSP);
        break;
    case METHOD_FRAME:
        set_memory(operand, ZYDIS_REGISTER_SS, ZYDIS_REGISTER_RBP);
        break;
    case METHOD_SOURCE:
        set_memory(operand, data_segment(d), ZYDIS_REGISTER_RSI);
        break;
    case METHOD_DESTINATION:
        set_memory(operand, ZYDIS_REGISTER_ES, ZYDIS_REGISTER_RDI);
        break;
    default: /* a certain general register; never AH to BH */
        set_register(operand, ZYDIS_OPERAND_ENCODING_NONE,
                     gpr_name(method - METHOD_AX, size, true));
        break;
    }
}

/* ---- the whole ---- */

static inline void fill_info(const struct decoding *d, struct insn_info *info)
{
    const struct row *row = d->row;
    const struct prefixes *p = &d->prefixes;
    unsigned bits = row->bits;
    info->mnemonic = row->mnemonic;
    info->encoding = ZYDIS_INSTRUCTION_ENCODING_LEGACY;
    info->opcode_map = d->map;
    info->opcode = d->opcode;
    info->operand_width = (uint8_t)(type_sizes[bits >> WIDTH_SHIFT][d->size] * 8);
    info->address_width = 64;
    info->machine_mode = ZYDIS_MACHINE_MODE_LONG_64;
    info->meta.category = row->category;
    info->meta.isa_set = isa_names[row->isa].isa_set;
    info->meta.isa_ext = isa_names[row->isa].isa_ext;
    info->meta.branch_type = bits & SHORT  ? ZYDIS_BRANCH_TYPE_SHORT
                             : bits & NEAR ? ZYDIS_BRANCH_TYPE_NEAR
                                           : ZYDIS_BRANCH_TYPE_NONE;
    info->meta.exception_class = 0;
    info->attributes =
        (uint32_t)((bits & MODRM ? ZYDIS_ATTRIB_HAS_MODRM : 0) |
                   (p->rex ? ZYDIS_ATTRIB_HAS_REX : 0) |
                   ((bits & LOCK) && d->mod != 3 ? ZYDIS_ATTRIB_ACCEPTS_LOCK : 0) |
                   (p->lock ? ZYDIS_ATTRIB_HAS_LOCK : 0) | (bits & REP ? ZYDIS_ATTRIB_HAS_REP : 0) |
                   (bits & REPE ? ZYDIS_ATTRIB_HAS_REPE : 0) |
                   (bits & REPNE ? ZYDIS_ATTRIB_HAS_REPNE : 0));
    info->cpu_flags = &flags_sets[row->flags];
    info->raw = (struct insn_raw){
        .prefix_count = p->count,
        .mandatory = d->mandatory,
        .rex = p->rex,
        .modrm = {d->mod, d->reg, d->rm, d->modrm_offset},
    };
    info->avx = (struct insn_avx){0};
}

static inline bool decode_padded(const uint8_t *bytes, struct insn *insn)
{
    struct decoding d = {.bytes = bytes};
    if (!read_prefixes(bytes, &d.prefixes)) {
        return false;
    }
    read_opcode(&d);
    if (!choose_row(&d)) {
        return false;
    }
    if (d.row->bits & MODRM) {
        uint8_t modrm = bytes[d.at];
        d.modrm_offset = d.at++;
        d.mod = modrm >> 6;
        d.reg = modrm >> 3 & 7;
        d.rm = modrm & 7;
    }
    if (!row_fits(&d)) {
        return false;
    }
    fill_info(&d, &insn->info);
    unsigned count = 0, visible = 0;
    for (; count < ROW_OPERANDS && d.row->operands[count]; count++) {
        unsigned code = d.row->operands[count];
        visible += OPERAND_VISIBILITY(code) != ZYDIS_OPERAND_VISIBILITY_HIDDEN;
        read_operand(&d, insn, &insn->operands[count], code);
    }
    insn->info.operand_count = (uint8_t)count;
    insn->info.operand_count_visible = (uint8_t)visible;
    insn->info.length = d.at;
    return true;
}

static inline void keep_bytes(struct insn *insn, const uint8_t *bytes)
{
    unsigned length = insn->info.length;
    uint64_t low = load_le64(bytes), high = load_le64(bytes + 8);
    if (length < 8) {
        low &= (1ull << length * 8) - 1;
        high = 0;
    } else {
        high &= (1ull << (length - 8) * 8) - 1;
    }
    store_le64(insn->bytes, low);
    store_le64(insn->bytes + 8, high);
}

bool decode_by_table(const uint8_t *bytes, size_t available, struct insn *ret_insn)
{
    uint8_t padded[READ_MAX];
    if (available < READ_MAX) {
        for (size_t i = 0; i < READ_MAX; i++) {
            padded[i] = i < available ? bytes[i] : 0;
        }
        bytes = padded;
    }
    if (!decode_padded(bytes, ret_insn) || ret_insn->info.length > available ||
        ret_insn->info.length > INSN_MAX_LENGTH) {
        return false;
    }
    keep_bytes(ret_insn, bytes);
    return true;
}
