/*
 * The tables against Zydis, field by field: for opcode, ModRM and prefixes (a sample by seed; all
 * of them with the argument --all), for the code that is mapped into this program, and for code in
 * files that are named as arguments.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "x86/decode_compare.h"
#include "x86/decode_internal.h"

struct counts {
    uint64_t known, declined, differences;
};

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 24;
}

static void show(const uint8_t *bytes, const char *difference)
{
    printf("%s differs:", difference);
    for (unsigned i = 0; i < INSN_MAX_LENGTH; i++) {
        printf(" %02x", bytes[i]);
    }
    printf("\n");
}

/* Compare; the number of bytes that were an instruction, at least 1. */
static unsigned check(const uint8_t *bytes, size_t available, struct counts *counts)
{
    struct insn ours, theirs;
    enum decode_result result = decode_by_zydis(DECODE_64, bytes, available, &theirs);
    if (!decode_by_table(bytes, available, &ours)) {
        counts->declined += result == DECODE_OK;
    } else {
        const char *difference = result != DECODE_OK ? "validity" : insn_difference(&ours, &theirs);
        counts->known++;
        if (difference && counts->differences++ < 20) {
            show(bytes, difference);
        }
    }
    return result == DECODE_OK ? theirs.info.length : 1;
}

static const char *const opcode_starts[] = {"", "\x0f", "\x0f\x38", "\x0f\x3a"};
static const uint8_t legacy_prefixes[] = {0x66, 0xf2, 0xf3, 0xf0, 0x2e, 0x36,
                                          0x3e, 0x26, 0x64, 0x65, 0x67};

/* `first` and `second` are legacy prefixes, `rex` a REX prefix; 0: none. */
static void check_form(uint8_t first, uint8_t second, uint8_t rex, unsigned map, uint8_t opcode,
                       uint8_t modrm, uint64_t *random, struct counts *counts)
{
    uint8_t bytes[32];
    unsigned n = 0;
    if (first) {
        bytes[n++] = first;
    }
    if (second) {
        bytes[n++] = second;
    }
    if (rex) {
        bytes[n++] = rex;
    }
    for (const char *start = opcode_starts[map]; *start; start++) {
        bytes[n++] = (uint8_t)*start;
    }
    bytes[n++] = opcode;
    bytes[n++] = modrm;
    while (n < sizeof bytes) {
        store_le32(bytes + n, (uint32_t)next_random(random));
        n += 4 - n % 4;
        n = n > sizeof bytes - 4 ? sizeof bytes : n;
    }
    unsigned length = check(bytes, sizeof bytes, counts);
    if (next_random(random) % 8 == 0) { /* the end of what there is to read */
        check(bytes, length, counts);
        check(bytes, length - 1, counts);
    }
}

static uint8_t some_prefix(uint64_t *random)
{
    uint64_t n = next_random(random) % (2 * sizeof legacy_prefixes);
    return n < sizeof legacy_prefixes ? legacy_prefixes[n] : 0;
}

static void test_forms(void **state)
{
    enum { ROUNDS = 6 };
    const char *seed = getenv("SEED");
    uint64_t random = seed ? strtoull(seed, NULL, 0) : (uint64_t)(uintptr_t)&random;
    struct counts counts = {0};
    printf("seed %#llx\n", (unsigned long long)random);
    for (unsigned form = 0; form < 4 * 65536; form++) {
        for (unsigned i = 0; i < ROUNDS; i++) {
            uint8_t rex = next_random(&random) & 1 ? 0x40 | (next_random(&random) & 15) : 0;
            check_form(i ? some_prefix(&random) : 0, i > 2 ? some_prefix(&random) : 0, rex,
                       form >> 16, form >> 8 & 255, form & 255, &random, &counts);
        }
    }
    printf("%llu by the tables, %llu by Zydis alone\n", (unsigned long long)counts.known,
           (unsigned long long)counts.declined);
    assert_true(counts.known > 100000);
    assert_int_equal(counts.differences, 0);
}

/* All combinations of two legacy prefixes, REX, opcode and ModRM. */
static void test_all_forms(void **state)
{
    uint64_t random = 1;
    struct counts counts = {0};
    for (unsigned pair = 0; pair < 12 * 12; pair++) {
        uint8_t first = pair / 12 ? legacy_prefixes[pair / 12 - 1] : 0;
        uint8_t second = pair % 12 ? legacy_prefixes[pair % 12 - 1] : 0;
        for (unsigned rex = 0; rex <= 16; rex++) {
            for (unsigned form = 0; form < 4 * 65536; form++) {
                check_form(first, second, rex ? 0x3f + rex : 0, form >> 16, form >> 8 & 255,
                           form & 255, &random, &counts);
            }
        }
    }
    printf("%llu by the tables, %llu by Zydis alone\n", (unsigned long long)counts.known,
           (unsigned long long)counts.declined);
    assert_int_equal(counts.differences, 0);
}

/* Code as compilers make it: most of it must be known, too. */
static void check_code(const char *name, const uint8_t *code, size_t size)
{
    struct counts counts = {0};
    for (size_t at = 0; at < size;) {
        at += check(code + at, size - at, &counts);
    }
    printf("%s: %llu by the tables, %llu by Zydis alone\n", name, (unsigned long long)counts.known,
           (unsigned long long)counts.declined);
    assert_int_equal(counts.differences, 0);
}

static void test_mapped_code(void **state)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    char line[512];
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        char access[8], name[256] = "";
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %255s", &start, &end, access, name) >= 3 &&
            access[0] == 'r' && access[2] == 'x' && name[0] == '/') {
            check_code(name, (const uint8_t *)start, end - start);
        }
    }
    fclose(maps);
}

static const char *const *files;

static void test_files(void **state)
{
    for (const char *const *name = files; *name; name++) {
        FILE *file = fopen(*name, "rb");
        assert_non_null(file);
        assert_int_equal(fseek(file, 0, SEEK_END), 0);
        size_t size = (size_t)ftell(file);
        rewind(file);
        uint8_t *code = malloc(size ? size : 1);
        assert_int_equal(fread(code, 1, size, file), size);
        check_code(*name, code, size);
        free(code);
        fclose(file);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),
        cmocka_unit_test(test_mapped_code),
    };
    const struct CMUnitTest all[] = {cmocka_unit_test(test_all_forms)};
    const struct CMUnitTest named[] = {cmocka_unit_test(test_files)};
    if (argc > 1 && strcmp(argv[1], "--all") == 0) {
        return cmocka_run_group_tests(all, NULL, NULL);
    }
    if (argc > 1) {
        files = (const char *const *)argv + 1;
        return cmocka_run_group_tests(named, NULL, NULL);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
