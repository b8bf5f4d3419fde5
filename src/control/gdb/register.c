/* GDB's registers and cpu_state; see register.h. */
#include "control/gdb/register.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "engine/interp/vector_state.h"
#include "x86/descriptor.h"

enum kind {
    KIND_GENERAL,
    KIND_RIP,
    KIND_FLAGS,
    KIND_SEGMENT,
    KIND_ST,
    KIND_X87,
    KIND_VECTOR, /* 16 bytes or 32 of a vector register, from `offset` on */
    KIND_MXCSR,
    KIND_BASE,
    KIND_SYSTEM,
    KIND_MASK,
};

/* Registers of one kind, in a row. */
struct group {
    const char *feature; /* "" continues the one before */
    const char *names;   /* separated by blanks; or one with %u */
    const char *type;
    enum kind kind;
    uint8_t count, bytes;
    uint8_t first;  /* KIND_VECTOR: the number of the first */
    uint8_t offset; /* KIND_VECTOR */
    uint32_t xcr0;  /* which components must be offered */
};

/* GDB's order of general registers, and that of segment registers. */
static const uint8_t general[] = {RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP,
                                  R8,  R9,  R10, R11, R12, R13, R14, R15};
static const uint8_t segments[] = {CS, SS, DS, ES, FS, GS};

/* clang-format off */
static const struct group groups[] = {
    {"org.gnu.gdb.i386.core", "rax rbx rcx rdx rsi rdi", "int64", KIND_GENERAL, 6, 8, 0, 0, 0},
    {"", "rbp rsp", "data_ptr", KIND_GENERAL, 2, 8, 6, 0, 0},
    {"", "r8 r9 r10 r11 r12 r13 r14 r15", "int64", KIND_GENERAL, 8, 8, 8, 0, 0},
    {"", "rip", "code_ptr", KIND_RIP, 1, 8, 0, 0, 0},
    {"", "eflags", "i386_eflags", KIND_FLAGS, 1, 4, 0, 0, 0},
    {"", "cs ss ds es fs gs", "int32", KIND_SEGMENT, 6, 4, 0, 0, 0},
    {"", "st%u", "i387_ext", KIND_ST, 8, 10, 0, 0, 0},
    {"", "fctrl fstat ftag fiseg fioff foseg fooff fop", "int", KIND_X87, 8, 4, 0, 0, 0},
    {"org.gnu.gdb.i386.sse", "xmm%u", "vec128", KIND_VECTOR, 16, 16, 0, 0, 0},
    {"", "mxcsr", "i386_mxcsr", KIND_MXCSR, 1, 4, 0, 0, 0},
    {"org.gnu.gdb.i386.segments", "fs_base gs_base", "int64", KIND_BASE, 2, 8, 0, 0, 0},
    {"org.doppel.gdb.i386.system", "k_gs_base", "int64", KIND_SYSTEM, 1, 8, 0, 0, 0},
    {"", "cr0", "i386_cr0", KIND_SYSTEM, 1, 8, 1, 0, 0},
    {"", "cr2 cr3", "int64", KIND_SYSTEM, 2, 8, 2, 0, 0},
    {"", "cr4", "i386_cr4", KIND_SYSTEM, 1, 8, 4, 0, 0},
    {"", "cr8", "int64", KIND_SYSTEM, 1, 8, 5, 0, 0},
    {"", "efer", "i386_efer", KIND_SYSTEM, 1, 8, 6, 0, 0},
    {"org.gnu.gdb.i386.avx", "ymm%uh", "uint128", KIND_VECTOR, 16, 16, 0, 16, XCR0_AVX},
    {"org.gnu.gdb.i386.avx512", "xmm%u", "vec128", KIND_VECTOR, 16, 16, 16, 0, XCR0_AVX512},
    {"", "ymm%uh", "uint128", KIND_VECTOR, 16, 16, 16, 16, XCR0_AVX512},
    {"", "k%u", "uint64", KIND_MASK, 8, 8, 0, 0, XCR0_AVX512},
    {"", "zmm%uh", "v2ui128", KIND_VECTOR, 32, 32, 0, 32, XCR0_AVX512},
};

/* Each feature that names them has to say what they are. */
#define VEC128 \
    "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>" \
    "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>" \
    "<vector id=\"v16i8\" type=\"int8\" count=\"16\"/>" \
    "<vector id=\"v8i16\" type=\"int16\" count=\"8\"/>" \
    "<vector id=\"v4i32\" type=\"int32\" count=\"4\"/>" \
    "<vector id=\"v2i64\" type=\"int64\" count=\"2\"/>" \
    "<union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/>" \
    "<field name=\"v2_double\" type=\"v2d\"/><field name=\"v16_int8\" type=\"v16i8\"/>" \
    "<field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>" \
    "<field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>\n"

/* Types that GDB does not have by itself, as in GDB's own descriptions of these features. */
static const struct {
    const char *feature, *text;
} types[] = {
    {"org.gnu.gdb.i386.core",
     "<flags id=\"i386_eflags\" size=\"4\">"
     "<field name=\"\" start=\"22\" end=\"31\"/>"
     "<field name=\"CF\" start=\"0\" end=\"0\"/><field name=\"\" start=\"1\" end=\"1\"/>"
     "<field name=\"PF\" start=\"2\" end=\"2\"/><field name=\"AF\" start=\"4\" end=\"4\"/>"
     "<field name=\"ZF\" start=\"6\" end=\"6\"/><field name=\"SF\" start=\"7\" end=\"7\"/>"
     "<field name=\"TF\" start=\"8\" end=\"8\"/><field name=\"IF\" start=\"9\" end=\"9\"/>"
     "<field name=\"DF\" start=\"10\" end=\"10\"/><field name=\"OF\" start=\"11\" end=\"11\"/>"
     "<field name=\"NT\" start=\"14\" end=\"14\"/><field name=\"RF\" start=\"16\" end=\"16\"/>"
     "<field name=\"VM\" start=\"17\" end=\"17\"/><field name=\"AC\" start=\"18\" end=\"18\"/>"
     "<field name=\"VIF\" start=\"19\" end=\"19\"/><field name=\"VIP\" start=\"20\" end=\"20\"/>"
     "<field name=\"ID\" start=\"21\" end=\"21\"/></flags>\n"},
    {"org.gnu.gdb.i386.sse",
     VEC128
     "<flags id=\"i386_mxcsr\" size=\"4\">"
     "<field name=\"IE\" start=\"0\" end=\"0\"/><field name=\"DE\" start=\"1\" end=\"1\"/>"
     "<field name=\"ZE\" start=\"2\" end=\"2\"/><field name=\"OE\" start=\"3\" end=\"3\"/>"
     "<field name=\"UE\" start=\"4\" end=\"4\"/><field name=\"PE\" start=\"5\" end=\"5\"/>"
     "<field name=\"DAZ\" start=\"6\" end=\"6\"/><field name=\"IM\" start=\"7\" end=\"7\"/>"
     "<field name=\"DM\" start=\"8\" end=\"8\"/><field name=\"ZM\" start=\"9\" end=\"9\"/>"
     "<field name=\"OM\" start=\"10\" end=\"10\"/><field name=\"UM\" start=\"11\" end=\"11\"/>"
     "<field name=\"PM\" start=\"12\" end=\"12\"/><field name=\"FZ\" start=\"15\" end=\"15\"/>"
     "</flags>\n"},
    {"org.doppel.gdb.i386.system",
     "<flags id=\"i386_cr0\" size=\"8\">"
     "<field name=\"PE\" start=\"0\" end=\"0\"/><field name=\"MP\" start=\"1\" end=\"1\"/>"
     "<field name=\"EM\" start=\"2\" end=\"2\"/><field name=\"TS\" start=\"3\" end=\"3\"/>"
     "<field name=\"ET\" start=\"4\" end=\"4\"/><field name=\"NE\" start=\"5\" end=\"5\"/>"
     "<field name=\"WP\" start=\"16\" end=\"16\"/><field name=\"AM\" start=\"18\" end=\"18\"/>"
     "<field name=\"NW\" start=\"29\" end=\"29\"/><field name=\"CD\" start=\"30\" end=\"30\"/>"
     "<field name=\"PG\" start=\"31\" end=\"31\"/></flags>\n"
     "<flags id=\"i386_cr4\" size=\"8\">"
     "<field name=\"VME\" start=\"0\" end=\"0\"/><field name=\"PVI\" start=\"1\" end=\"1\"/>"
     "<field name=\"TSD\" start=\"2\" end=\"2\"/><field name=\"DE\" start=\"3\" end=\"3\"/>"
     "<field name=\"PSE\" start=\"4\" end=\"4\"/><field name=\"PAE\" start=\"5\" end=\"5\"/>"
     "<field name=\"MCE\" start=\"6\" end=\"6\"/><field name=\"PGE\" start=\"7\" end=\"7\"/>"
     "<field name=\"PCE\" start=\"8\" end=\"8\"/><field name=\"OSFXSR\" start=\"9\" end=\"9\"/>"
     "<field name=\"OSXMMEXCPT\" start=\"10\" end=\"10\"/>"
     "<field name=\"UMIP\" start=\"11\" end=\"11\"/><field name=\"FSGSBASE\" start=\"16\" end=\"16\"/>"
     "<field name=\"PCIDE\" start=\"17\" end=\"17\"/><field name=\"OSXSAVE\" start=\"18\" end=\"18\"/>"
     "<field name=\"SMEP\" start=\"20\" end=\"20\"/><field name=\"SMAP\" start=\"21\" end=\"21\"/>"
     "</flags>\n"
     "<flags id=\"i386_efer\" size=\"8\">"
     "<field name=\"SCE\" start=\"0\" end=\"0\"/><field name=\"LME\" start=\"8\" end=\"8\"/>"
     "<field name=\"LMA\" start=\"10\" end=\"10\"/><field name=\"NXE\" start=\"11\" end=\"11\"/>"
     "</flags>\n"},
    {"org.gnu.gdb.i386.avx512",
     VEC128
     "<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>\n"},
};
/* clang-format on */

static bool is_offered(const struct gdb_target *target, const struct group *group)
{
    return (target->xcr0 & group->xcr0) == group->xcr0;
}

/* The group of a register and its index in it; NULL if there is no such register. */
static const struct group *find(const struct gdb_target *target, unsigned number,
                                unsigned *ret_index)
{
    for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
        const struct group *group = &groups[i];
        if (!is_offered(target, group)) {
            continue;
        }
        if (number < group->count) {
            *ret_index = number;
            return group;
        }
        number -= group->count;
    }
    return NULL;
}

unsigned gdb_register_count(const struct gdb_target *target)
{
    unsigned count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
        count += is_offered(target, &groups[i]) ? groups[i].count : 0u;
    }
    return count;
}

size_t gdb_register_size(const struct gdb_target *target, unsigned number)
{
    unsigned index;
    const struct group *group = find(target, number, &index);
    return group ? group->bytes : 0;
}

/* ---- x87 ---- */

/* In the order of GDB's names. Selectors are those of 32-bit code, in the upper halves. */
enum { X87_FCTRL, X87_FSTAT, X87_FTAG, X87_FISEG, X87_FIOFF, X87_FOSEG, X87_FOOFF, X87_FOP };
enum { XSAVE_FTW = 4 };

enum { TAG_VALID, TAG_ZERO, TAG_SPECIAL, TAG_EMPTY };

static unsigned tag_of(const uint8_t value[10])
{
    uint64_t mantissa = load_le64(value);
    unsigned exponent = load_le16(value + 8) & 0x7fff;
    if (exponent == 0 && mantissa == 0) {
        return TAG_ZERO;
    }
    return exponent == 0 || exponent == 0x7fff || !(mantissa >> 63) ? TAG_SPECIAL : TAG_VALID;
}

/* The tag word that FXSAVE abridges. SDM volume 1, 10.5.1.1. */
static uint32_t full_tags(const uint8_t *xsave)
{
    unsigned top = load_le16(xsave + XSAVE_FSW) >> 11 & 7;
    uint32_t tags = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned place = (top + i) & 7; /* of ST(i) in the stack */
        bool is_used = xsave[XSAVE_FTW] >> place & 1;
        tags |= (is_used ? tag_of(xsave + XSAVE_ST + i * 16) : TAG_EMPTY) << place * 2;
    }
    return tags;
}

static uint8_t abridged_tags(uint32_t tags)
{
    unsigned abridged = 0;
    for (unsigned i = 0; i < 8; i++) {
        abridged |= (tags >> i * 2 & 3) != TAG_EMPTY ? 1u << i : 0;
    }
    return (uint8_t)abridged;
}

static uint32_t x87_get(const uint8_t *xsave, unsigned index)
{
    switch (index) {
    case X87_FCTRL:
        return load_le16(xsave + XSAVE_FCW);
    case X87_FSTAT:
        return load_le16(xsave + XSAVE_FSW);
    case X87_FTAG:
        return full_tags(xsave);
    case X87_FISEG:
        return load_le16(xsave + XSAVE_FIP + 4);
    case X87_FIOFF:
        return load_le32(xsave + XSAVE_FIP);
    case X87_FOSEG:
        return load_le16(xsave + XSAVE_FDP + 4);
    case X87_FOOFF:
        return load_le32(xsave + XSAVE_FDP);
    default:
        return load_le16(xsave + XSAVE_FOP) & 0x7ff;
    }
}

static void x87_set(uint8_t *xsave, unsigned index, uint32_t value)
{
    switch (index) {
    case X87_FCTRL:
        store_le16(xsave + XSAVE_FCW, (uint16_t)value);
        break;
    case X87_FSTAT:
        store_le16(xsave + XSAVE_FSW, (uint16_t)value);
        break;
    case X87_FTAG:
        xsave[XSAVE_FTW] = abridged_tags(value);
        break;
    case X87_FISEG:
        store_le16(xsave + XSAVE_FIP + 4, (uint16_t)value);
        break;
    case X87_FIOFF:
        store_le32(xsave + XSAVE_FIP, value);
        break;
    case X87_FOSEG:
        store_le16(xsave + XSAVE_FDP + 4, (uint16_t)value);
        break;
    case X87_FOOFF:
        store_le32(xsave + XSAVE_FDP, value);
        break;
    default:
        store_le16(xsave + XSAVE_FOP, value & 0x7ff);
        break;
    }
}

/* A state component is about to be written: it is in use from now on. */
static void use(struct cpu_state *state, uint64_t component)
{
    xsave_materialize(state, component);
    store_le64(state->xsave + XSAVE_XSTATE_BV, xsave_in_use(state) | component);
}

/* ---- vectors ---- */

/* Bytes of a vector register that this CPU model has. */
static unsigned vector_size(const struct gdb_target *target)
{
    bool has_avx512 = (target->xcr0 & XCR0_AVX512) == XCR0_AVX512;
    return has_avx512 ? 64 : target->xcr0 & XCR0_AVX ? 32 : 16;
}

static void vector_part_set(const struct gdb_target *target, struct cpu_state *state,
                            unsigned number, const struct group *group, const uint8_t *value)
{
    uint8_t whole[64];
    unsigned size = vector_size(target);
    vector_load(state, number, size, whole);
    memcpy(whole + group->offset, value, group->bytes);
    vector_store(state, number, size, whole);
}

/* ---- system registers ---- */

static uint64_t *system_field(struct cpu_state *state, unsigned index)
{
    uint64_t *const fields[] = {&state->kernel_gs_base,
                                &state->cr0,
                                &state->cr2,
                                &state->cr3,
                                &state->cr4,
                                &state->cr8,
                                &state->efer};
    return fields[index];
}

/* What loading the selector would make of a segment register, without the checks of rights. */
static int segment_load(const struct gdb_target *target, unsigned cpu, struct cpu_state *state,
                        unsigned number, uint16_t selector)
{
    struct segment *segment = &state->segment[number];
    bool is_v86 = state->rflags & FLAG_VM;
    uint64_t base = selector & SELECTOR_TI ? state->ldtr.base : state->gdtr.base;
    uint64_t limit = selector & SELECTOR_TI ? state->ldtr.limit : state->gdtr.limit;
    uint8_t descriptor[8];
    if (selector == segment->selector) {
        return 0;
    }
    if (!(state->cr0 & CR0_PE) || is_v86) {
        *segment = segment_real(selector, is_v86);
        return 0;
    }
    if (selector_is_null(selector) && number != CS) {
        *segment = segment_null(selector, cpu_state_cpl(state));
        return 0;
    }
    uint64_t offset = selector & SELECTOR_INDEX;
    if (offset + 7 > limit ||
        target->read(target->owner, cpu, base + offset, descriptor, 8) != sizeof descriptor) {
        return -EINVAL;
    }
    struct segment loaded = descriptor_unpack(load_le64(descriptor), selector);
    bool is_code = loaded.attributes & SEGMENT_CODE;
    if (!(loaded.attributes & SEGMENT_S) || !(loaded.attributes & SEGMENT_P) ||
        (number == CS && !is_code) || (number == SS && is_code)) {
        return -EINVAL;
    }
    *segment = loaded;
    return 0;
}

/* ---- any register ---- */

void gdb_register_get(const struct gdb_target *target, const struct cpu_state *state,
                      unsigned number, uint8_t ret_value[GDB_REGISTER_MAX])
{
    unsigned index;
    uint8_t whole[64];
    struct cpu_state copy;
    const struct group *group = find(target, number, &index);
    memset(ret_value, 0, GDB_REGISTER_MAX);
    ASSERT(group);
    index += group->first;
    switch (group->kind) {
    case KIND_GENERAL:
        store_le64(ret_value, state->gpr[general[index]]);
        break;
    case KIND_RIP:
        store_le64(ret_value, state->rip);
        break;
    case KIND_FLAGS:
        store_le32(ret_value, (uint32_t)state->rflags);
        break;
    case KIND_SEGMENT:
        store_le16(ret_value, state->segment[segments[index]].selector);
        break;
    case KIND_ST:
    case KIND_X87:
        memcpy(&copy, state, sizeof copy);
        xsave_materialize(&copy, XCR0_X87);
        if (group->kind == KIND_ST) {
            memcpy(ret_value, copy.xsave + XSAVE_ST + index * 16, group->bytes);
        } else {
            store_le32(ret_value, x87_get(copy.xsave, index));
        }
        break;
    case KIND_VECTOR:
        vector_load(state, index, sizeof whole, whole);
        memcpy(ret_value, whole + group->offset, group->bytes);
        break;
    case KIND_MXCSR:
        store_le32(ret_value, load_le32(state->xsave + XSAVE_MXCSR));
        break;
    case KIND_BASE:
        store_le64(ret_value, state->segment[index ? GS : FS].base);
        break;
    case KIND_SYSTEM:
        store_le64(ret_value, *system_field((struct cpu_state *)state, index));
        break;
    case KIND_MASK:
        store_le64(ret_value, mask_load(state, index));
        break;
    }
}

int gdb_register_set(const struct gdb_target *target, unsigned cpu, struct cpu_state *state,
                     unsigned number, const uint8_t value[GDB_REGISTER_MAX])
{
    unsigned index;
    const struct group *group = find(target, number, &index);
    ASSERT(group);
    index += group->first;
    switch (group->kind) {
    case KIND_GENERAL:
        state->gpr[general[index]] = load_le64(value);
        break;
    case KIND_RIP:
        state->rip = load_le64(value);
        break;
    case KIND_FLAGS:
        state->rflags = load_le32(value) | FLAG_FIXED;
        break;
    case KIND_SEGMENT:
        return load_le32(value) > UINT16_MAX
                   ? -EINVAL
                   : segment_load(target, cpu, state, segments[index], load_le16(value));
    case KIND_ST:
        use(state, XCR0_X87);
        memcpy(state->xsave + XSAVE_ST + index * 16, value, group->bytes);
        break;
    case KIND_X87:
        use(state, XCR0_X87);
        x87_set(state->xsave, index, load_le32(value));
        break;
    case KIND_VECTOR:
        vector_part_set(target, state, index, group, value);
        break;
    case KIND_MXCSR:
        use(state, XCR0_SSE);
        store_le32(state->xsave + XSAVE_MXCSR, load_le32(value));
        break;
    case KIND_BASE:
        state->segment[index ? GS : FS].base = load_le64(value);
        break;
    case KIND_SYSTEM:
        *system_field(state, index) = load_le64(value);
        break;
    case KIND_MASK:
        mask_store(state, index, load_le64(value));
        break;
    }
    return 0;
}

/* ---- the description ---- */

static void print_registers(FILE *out, const struct group *group)
{
    const char *name = group->names;
    for (unsigned i = 0; i < group->count; i++) {
        int length = (int)strcspn(name, " ");
        fprintf(out, "<reg name=\"");
        if (strchr(name, '%')) {
            const char *number = strchr(name, '%');
            fprintf(out, "%.*s%u%s", (int)(number - name), name, i + group->first, number + 2);
        } else {
            fprintf(out, "%.*s", length, name);
            name += length + (name[length] == ' ');
        }
        fprintf(out, "\" bitsize=\"%u\" type=\"%s\"/>\n", group->bytes * 8u, group->type);
    }
}

static void print_types(FILE *out, const char *feature)
{
    for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
        if (!strcmp(types[i].feature, feature)) {
            fputs(types[i].text, out);
        }
    }
}

char *gdb_register_description(const struct gdb_target *target)
{
    char *text = NULL;
    size_t size = 0;
    bool is_open = false;
    FILE *out = open_memstream(&text, &size);
    ASSERT(out);
    fputs("<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target>\n"
          "<architecture>i386:x86-64</architecture>\n",
          out);
    for (size_t i = 0; i < ARRAY_SIZE(groups); i++) {
        if (!is_offered(target, &groups[i])) {
            continue;
        }
        if (*groups[i].feature) {
            fprintf(out, "%s<feature name=\"%s\">\n", is_open ? "</feature>\n" : "",
                    groups[i].feature);
            print_types(out, groups[i].feature);
            is_open = true;
        }
        print_registers(out, &groups[i]);
    }
    fputs("</feature>\n</target>\n", out);
    fclose(out);
    ASSERT(text);
    return text;
}
