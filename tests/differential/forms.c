/*
 * Every instruction form of 64-bit mode, found by walking the whole opcode space (legacy, VEX,
 * EVEX) through the decoder and keeping one template for each distinct key. Branch hints, segment
 * overrides and the like change nothing at CPL 3 and are left out; REP and LOCK count.
 */
#include "tests/differential/differential.h"

#include <stdlib.h>
#include <string.h>

struct collection {
    struct form *forms;
    size_t count, capacity;
    uint64_t *seen; /* open addressing */
    size_t seen_size;
};

static uint64_t mix(uint64_t hash, uint64_t value)
{
    return (hash ^ value) * 0x9e3779b97f4a7c15ull ^ (hash >> 29);
}

uint64_t form_key(const struct insn *insn)
{
    const struct insn_info *info = &insn->info;
    uint64_t key = mix(info->mnemonic, info->encoding);
    key = mix(key, info->attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP |
                                       ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE));
    key = mix(key, info->opcode_map << 8 | info->opcode);
    key = mix(key, info->operand_width);
    if (info->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) {
        key = mix(key, info->avx.vector_length);
        key = mix(key, info->avx.mask.mode << 8 | info->avx.broadcast.mode);
        key = mix(key, info->avx.has_sae || info->avx.rounding.mode);
    }
    for (unsigned i = 0; i < info->operand_count_visible; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        key = mix(key, (uint64_t)operand->type << 32 | operand->size);
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER) {
            key = mix(key, ZydisRegisterGetClass(operand->reg.value));
        }
    }
    return key | 1;
}

static bool first_time(struct collection *c, uint64_t key)
{
    size_t at = key % c->seen_size;
    while (c->seen[at]) {
        if (c->seen[at] == key) {
            return false;
        }
        at = (at + 1) % c->seen_size;
    }
    c->seen[at] = key;
    return true;
}

static unsigned put_opcode(const struct form *form, uint8_t *bytes)
{
    unsigned n = 0;
    if (form->encoding == ENCODE_VEX) {
        static const uint8_t pp[] = {[0] = 0, [0x66] = 1, [0xf3] = 2, [0xf2] = 3};
        bytes[n++] = 0xc4;
        bytes[n++] = (uint8_t)(0xe0 | form->map);
        bytes[n++] =
            (uint8_t)(form->rex_w << 7 | 0x78 | form->vector_length << 2 | pp[form->prefix]);
    } else if (form->encoding == ENCODE_EVEX) {
        static const uint8_t pp[] = {[0] = 0, [0x66] = 1, [0xf3] = 2, [0xf2] = 3};
        bytes[n++] = 0x62;
        bytes[n++] = (uint8_t)(0xf0 | form->map);
        bytes[n++] = (uint8_t)(form->rex_w << 7 | 0x7c | pp[form->prefix]);
        bytes[n++] = (uint8_t)(form->zeroing << 7 | form->vector_length << 5 |
                               form->broadcast << 4 | 0x08 | (form->masked ? 1 : 0));
    } else {
        if (form->lock) {
            bytes[n++] = 0xf0;
        }
        if (form->prefix) {
            bytes[n++] = form->prefix;
        }
        if (form->rex_w) {
            bytes[n++] = 0x48;
        }
        if (form->map) {
            bytes[n++] = 0x0f;
        }
        if (form->map >= 2) {
            bytes[n++] = form->map == 2 ? 0x38 : 0x3a;
        }
    }
    bytes[n++] = form->opcode;
    return n;
}

/* Try one ModRM for a template; keep it if it is a new form. */
static void consider(struct collection *c, struct form form, uint8_t modrm)
{
    struct insn insn;
    uint8_t bytes[32] = {0};
    unsigned n = put_opcode(&form, bytes);
    bytes[n] = modrm;
    if (decode(DECODE_64, bytes, 15, &insn) != DECODE_OK) {
        return;
    }
    bool has_modrm = insn.info.attributes & ZYDIS_ATTRIB_HAS_MODRM;
    if (insn.info.raw.prefix_count && form.encoding == ENCODE_LEGACY && !form.prefix &&
        !form.lock && !form.rex_w) {
        return; /* the opcode byte is a prefix */
    }
    if (insn.info.opcode != form.opcode || !first_time(c, form_key(&insn))) {
        return;
    }
    form.has_modrm = has_modrm;
    form.memory = has_modrm && modrm >> 6 != 3;
    form.reg = modrm >> 3 & 7;
    form.rm = modrm & 7;
    form.mnemonic = insn.info.mnemonic;
    form.isa = insn.info.meta.isa_set;
    form.key = form_key(&insn);
    form.is_far = insn.info.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR;
    form.loads_segment =
        insn.operands[0].type == ZYDIS_OPERAND_TYPE_REGISTER &&
        ZydisRegisterGetClass(insn.operands[0].reg.value) == ZYDIS_REGCLASS_SEGMENT &&
        insn.operands[0].actions & ZYDIS_OPERAND_ACTION_WRITE;
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 4096;
        c->forms = realloc(c->forms, c->capacity * sizeof *c->forms);
    }
    c->forms[c->count++] = form;
}

/* Do other values of the field still mean the same form? Then it is free. */
static void find_free_fields(struct form *form)
{
    struct insn insn;
    form->fixed_reg = form->fixed_rm = false;
    for (unsigned value = 0; value < 8; value++) {
        uint8_t bytes[32] = {0};
        unsigned n = put_opcode(form, bytes);
        bytes[n] = (uint8_t)((form->memory ? 0 : 0xc0) | value << 3 | form->rm);
        if (decode(DECODE_64, bytes, 15, &insn) != DECODE_OK || form_key(&insn) != form->key) {
            form->fixed_reg = true;
        }
        bytes[n] = (uint8_t)((form->memory ? 0 : 0xc0) | form->reg << 3 | value);
        if (!form->memory &&
            (decode(DECODE_64, bytes, 15, &insn) != DECODE_OK || form_key(&insn) != form->key)) {
            form->fixed_rm = true;
        }
    }
}

static void all_modrm(struct collection *c, const struct form *form)
{
    for (unsigned modrm = 0; modrm < 256; modrm++) {
        unsigned rm = modrm & 7;
        if (modrm >> 6 == 3 || (modrm < 64 && (rm == 0 || (rm == 4 && form->opcode >= 0x80)))) {
            consider(c, *form, (uint8_t)modrm);
        }
    }
}

static void walk_legacy(struct collection *c)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};
    for (unsigned map = 0; map < 4; map++) {
        for (unsigned opcode = 0; opcode < 256; opcode++) {
            for (unsigned variant = 0; variant < 16; variant++) {
                struct form form = {
                    .encoding = ENCODE_LEGACY,
                    .map = (uint8_t)map,
                    .opcode = (uint8_t)opcode,
                    .prefix = prefixes[variant & 3],
                    .rex_w = variant >> 2 & 1,
                    .lock = variant >> 3 & 1,
                };
                all_modrm(c, &form);
            }
        }
    }
}

static void walk_vector(struct collection *c, enum encoding encoding)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};
    bool evex = encoding == ENCODE_EVEX;
    for (unsigned map = 1; map < (evex ? 7 : 4); map++) {
        for (unsigned opcode = 0; opcode < 256; opcode++) {
            for (unsigned variant = 0; variant < (evex ? 256 : 16); variant++) {
                struct form form = {
                    .encoding = encoding,
                    .map = (uint8_t)map,
                    .opcode = (uint8_t)opcode,
                    .prefix = prefixes[variant & 3],
                    .rex_w = variant >> 2 & 1,
                    .vector_length = evex ? variant >> 3 & 3 : variant >> 3 & 1,
                    .broadcast = variant >> 5 & 1,
                    .masked = variant >> 6 & 1,
                    .zeroing = variant >> 7 & 1,
                };
                if (map != 4) {
                    all_modrm(c, &form);
                }
            }
        }
    }
}

static int by_mnemonic(const void *a, const void *b)
{
    const struct form *x = a, *y = b;
    return x->mnemonic != y->mnemonic ? (int)x->mnemonic - (int)y->mnemonic
                                      : (x->key > y->key) - (x->key < y->key);
}

size_t forms_enumerate(struct form **ret_forms)
{
    struct collection c = {.seen_size = 1 << 18};
    c.seen = calloc(c.seen_size, sizeof *c.seen);
    walk_legacy(&c);
    walk_vector(&c, ENCODE_VEX);
    walk_vector(&c, ENCODE_EVEX);
    for (size_t i = 0; i < c.count; i++) {
        find_free_fields(&c.forms[i]);
    }
    qsort(c.forms, c.count, sizeof *c.forms, by_mnemonic);
    free(c.seen);
    *ret_forms = c.forms;
    return c.count;
}
