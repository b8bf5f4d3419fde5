/*
 * The room that a unit needs, at most: units of as many instructions as there may be, each with the
 * operand that takes most, of every form of instructions that can be made of opcode, prefixes and
 * ModRM, in every mode of compilation. compile() asserts that its tables are not too small, and
 * this test drives it there. `--all` takes all forms, otherwise a sample is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "engine/test_engine.h"
#include "engine/translate/internal.h"
#include "engine/translate/test_guest.h"
#include "x86/cpuid.h"

enum {
    CODE = 0xa000,
    FORM_SIZE = INSN_MAX_LENGTH,
    WORST = 12, /* forms that are combined with each other */
    LOOP = UNIT_MAX_INSTRUCTIONS / 2 - 1,
    SAMPLE = 16, /* of so many forms one is taken */
};

struct form {
    uint8_t bytes[FORM_SIZE];
    unsigned length;
    ZydisMnemonic mnemonic;
    uint32_t extent;
};

/* Ways to compile. */
static const struct way {
    enum hot_code hot_code;
    enum time_mode time_mode;
    uint16_t mode;
    bool checks;
} ways[] = {
    {HOT_ALL, TIME_HOST, MODE_USER, false},
    {HOT_ALL, TIME_HOST, 0, false},
    {HOT_ALL, TIME_HOST, MODE_PLAIN | MODE_USER, false},
    {HOT_NONE, TIME_HOST, 0, false},
    {HOT_ALL, TIME_DETERMINISTIC, 0, false},
    {HOT_NONE, TIME_DETERMINISTIC, MODE_USER, false},
    {HOT_ALL, TIME_HOST, MODE_USER, true},
};

static struct {
    struct cpuid_table *cpuid;
    struct test_engine engine;
    struct translate_vm *vm;
    uint32_t most, most_sites, most_links;
    unsigned forms;
} fixture;

static bool is_sampled = true;

static void use(const struct way *way)
{
    const struct memory_range ram = {0, TEST_GUEST_RAM};
    const struct engine_config config = {.cpuid = fixture.cpuid,
                                         .host = test_host(NULL),
                                         .cpus = way->time_mode == TIME_HOST ? 2 : 1,
                                         .cache_size = MIB(4),
                                         .time_mode = way->time_mode,
                                         .code.hot = way->hot_code};
    struct cpu_state state;
    assert_int_equal(test_engine_open(&fixture.engine, &translate_engine, &ram, 1, config, 0), 0);
    assert_int_equal(test_guest_map(fixture.engine.memory), 0);
    test_guest_state(&state, CODE);
    state.cr4 |= CR4_OSXSAVE | CR4_FSGSBASE;
    state.xcr0 = cpuid_xcr0_allowed(fixture.cpuid);
    translate_engine.set_state(fixture.engine.vcpu, &state);
    fixture.vm = (struct translate_vm *)fixture.engine.vm;
}

static uint32_t used(const struct cache *cache)
{
    return cache->parts[PART_STRAIGHT].start + cache->parts[PART_OUTLINES].start;
}

/* The extent of the unit that the bytes at CODE make, or 0 if it cannot be made this way. */
static uint32_t extent(const struct way *way, const uint8_t *code, size_t size)
{
    struct translate_vm *vm = fixture.vm;
    struct block *block = vm->blocks[0];
    const uint64_t page = CODE >> PAGE_SHIFT;
    assert_int_equal(memory_write(fixture.engine.memory, CODE, code, size), 0);
    block_renew_mode(block);
    uint16_t mode = block->mode | way->mode;
    pthread_mutex_lock(&vm->lock);
    pages_begin_compile(vm, page, NO_PAGE);
    links_prepare(vm);
    uint32_t before = used(&vm->cache), sites = vm->site_count;
    uint32_t links = vm->link_count[PRIVILEGE_KERNEL] + vm->link_count[PRIVILEGE_USER];
    bool is_made = compile(block, CODE, CODE, NO_PAGE, mode, way->checks);
    uint32_t extent = is_made ? used(&vm->cache) - before : 0;
    sites = vm->site_count - sites;
    links = vm->link_count[PRIVILEGE_KERNEL] + vm->link_count[PRIVILEGE_USER] - links;
    pages_end_compile(vm, page, NO_PAGE);
    if (units_are_full(vm)) {
        units_forget(vm);
    }
    pthread_mutex_unlock(&vm->lock);
    fixture.most = extent > fixture.most ? extent : fixture.most;
    fixture.most_sites = sites > fixture.most_sites ? sites : fixture.most_sites;
    fixture.most_links = links > fixture.most_links ? links : fixture.most_links;
    return extent;
}

/* ---- code ---- */

/* Neighbours far from each other, so that no check serves two. */
static size_t put(uint8_t *code, size_t at, const struct form *form, unsigned number)
{
    struct insn insn;
    memcpy(code + at, form->bytes, form->length);
    if (decode(DECODE_64, form->bytes, form->length, &insn) == DECODE_OK &&
        insn.info.raw.disp.size == 32) {
        code[at + insn.info.raw.disp.offset + 1] = (uint8_t)(number << 4);
    }
    return at + form->length;
}

/* Forms in turn, as many as a unit takes. */
static size_t straight(uint8_t *code, const struct form *const forms[2])
{
    size_t size = 0;
    for (unsigned i = 0; i < UNIT_MAX_INSTRUCTIONS; i++) {
        size = put(code, size, forms[i % 2], i);
    }
    return size;
}

/* A loop, and what follows it: its body is made twice. */
static size_t looping(uint8_t *code, const struct form *const forms[2])
{
    size_t size = 0;
    for (unsigned i = 0; i < UNIT_MAX_INSTRUCTIONS; i++) {
        if (i == LOOP - 1) {
            memcpy(code + size, "\x48\x39\xd8\x0f\x85", 5); /* cmp rax, rbx; jnz start */
            int32_t back = -(int32_t)(size + 9);
            memcpy(code + size + 5, &back, 4);
            size += 9;
            i++;
        } else {
            size = put(code, size, forms[i % 2], i);
        }
    }
    return size;
}

/* ---- every form ---- */

/* Operands: [scratch + 8 * scratch + disp32], a constant address, a register. */
static const uint8_t operands[][2] = {
    {0x84, 0xc0 | (R10 & 7) << 3 | (R11 & 7)}, {0x05, 0x11}, {0xc0 | (R9 & 7), 0x11}};

/* Are these bytes an instruction, with an operand and an immediate of any size? Its length. */
static bool complete(struct form *form, unsigned at, unsigned group, unsigned operand)
{
    struct insn insn;
    form->bytes[at++] = (uint8_t)(operands[operand][0] | group << 3);
    form->bytes[at++] = operands[operand][1];
    memset(form->bytes + at, 0x11, FORM_SIZE - at);
    if (decode(DECODE_64, form->bytes, FORM_SIZE, &insn) != DECODE_OK) {
        return false;
    }
    form->length = insn.info.length;
    form->mnemonic = insn.info.mnemonic;
    return true;
}

/* The worst form of each operation, of those that are worst. */
static void keep(struct form *worst, const struct form *form)
{
    unsigned least = 0;
    for (unsigned i = 0; i < WORST; i++) {
        if (worst[i].mnemonic == form->mnemonic) {
            least = i;
            break;
        }
        least = worst[i].extent < worst[least].extent ? i : least;
    }
    if (form->extent > worst[least].extent) {
        worst[least] = *form;
    }
}

static void try_form(const struct way *way, struct form *worst, struct form *form)
{
    uint8_t code[UNIT_MAX_INSTRUCTIONS * FORM_SIZE];
    const struct form *const both[2] = {form, form};
    form->extent = extent(way, code, straight(code, both));
    extent(way, code, looping(code, both));
    fixture.forms++;
    keep(worst, form);
}

static uint64_t next_random(uint64_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

static bool is_left_out(uint64_t *random)
{
    return is_sampled && next_random(random) % SAMPLE;
}

/* Legacy encodings: [FS] [66, F2, F3, F0] [REX] map opcode ModRM. */
static void try_legacy(const struct way *way, struct form *worst, uint64_t *random)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3, 0xf0};
    static const uint8_t maps[][2] = {{0, 0}, {0x0f, 0}, {0x0f, 0x38}, {0x0f, 0x3a}};
    for (unsigned n = 0; n < 4 * 256 * 8 * 5 * 4 * 3; n++) {
        unsigned opcode = n & 255, group = n >> 8 & 7, map = n >> 11 & 3, rest = n >> 13;
        unsigned prefix = prefixes[rest / 4 % 5], at = 0;
        struct form form = {.length = 0};
        if (is_left_out(random)) {
            continue;
        }
        if (rest & 1) {
            form.bytes[at++] = 0x64;
        }
        if (prefix) {
            form.bytes[at++] = (uint8_t)prefix;
        }
        form.bytes[at++] = rest & 2 ? 0x4f : 0x43;
        for (unsigned i = 0; i < 2 && maps[map][i]; i++) {
            form.bytes[at++] = maps[map][i];
        }
        form.bytes[at++] = (uint8_t)opcode;
        if (complete(&form, at, group, rest / 20)) {
            try_form(way, worst, &form);
        }
    }
}

/* VEX: C4, map, W, L and pp; EVEX: 62, the same, with a mask. All registers high. */
static void try_vectors(const struct way *way, struct form *worst, uint64_t *random)
{
    for (unsigned n = 0; n < 3 * 256 * 16 * 2 * 2; n++) {
        unsigned opcode = n & 255, bits = n >> 8 & 15, map = (n >> 14) % 3 + 1,
                 operand = n >> 12 & 1;
        uint8_t last = (uint8_t)(bits >> 3 << 7 | (bits & 3)), longer = bits >> 2 & 1;
        struct form vex = {
            .bytes = {0xc4, (uint8_t)map, (uint8_t)(last | longer << 2), (uint8_t)opcode}};
        struct form evex = {.bytes = {0x62, (uint8_t)(map | 0x10), (uint8_t)(last | 0x7c),
                                      (uint8_t)(longer << 6 | 9), (uint8_t)opcode}};
        struct form *form = n >> 13 & 1 ? &evex : &vex;
        if (!is_left_out(random) && complete(form, form == &evex ? 5 : 4, 1, operand)) {
            try_form(way, worst, form);
        }
    }
}

static void combine(const struct way *way, const struct form *worst)
{
    uint8_t code[UNIT_MAX_INSTRUCTIONS * FORM_SIZE];
    for (unsigned i = 0; i < WORST * WORST; i++) {
        const struct form *const both[2] = {&worst[i / WORST], &worst[i % WORST]};
        extent(way, code, straight(code, both));
        extent(way, code, looping(code, both));
    }
}

static void units_have_room(void **state)
{
    const struct cpuid_config model = {
        .model = CPU_MODEL_HOST, .cpus = 1, .tsc_hz = 1000000000, .x2apic = true};
    uint64_t random = (uint64_t)time(NULL) * 2 + 1;
    printf("seed %llu\n", (unsigned long long)random);
    assert_int_equal(cpuid_table_new(&model, &fixture.cpuid), 0);
    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        struct form worst[WORST] = {{.length = 0}};
        fixture.most = fixture.most_sites = fixture.most_links = fixture.forms = 0;
        use(&ways[i]);
        try_legacy(&ways[i], worst, &random);
        try_vectors(&ways[i], worst, &random);
        combine(&ways[i], worst);
        printf("way %u: %u forms, at most %u bytes, %u sites, %u links; worst alone:", i,
               fixture.forms, fixture.most, fixture.most_sites, fixture.most_links);
        for (unsigned k = 0; k < 3; k++) {
            printf(" %u", worst[k].extent);
            for (unsigned b = 0; b < worst[k].length; b++) {
                printf("%c%02x", b ? ' ' : '(', worst[k].bytes[b]);
            }
            printf(")");
        }
        printf("\n");
        assert_in_range(fixture.most_sites, 1, UNIT_MAX_SITES);
        assert_in_range(fixture.most_links, 1, UNIT_MAX_LINKS);
        assert_in_range(fixture.most, ways[i].checks ? 1 : UNIT_MAX_HOST_BYTES / 8,
                        UNIT_MAX_HOST_BYTES);
        test_engine_close(&fixture.engine);
    }
    cpuid_table_free(fixture.cpuid);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(units_have_room)};
    is_sampled = argc < 2 || strcmp(argv[1], "--all");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
