/* Decoding: meaning of bytes by code size, lengths, and the four results. */
#include "x86/decode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"

struct example {
    enum decode_mode mode;
    const char *bytes; /* hexadecimal */
    enum decode_result result;
    unsigned length;
    ZydisMnemonic mnemonic;
};

static size_t bytes_parse(const char *text, uint8_t *bytes)
{
    size_t count = 0;
    for (; *text; text += text[2] ? 3 : 2) {
        char pair[] = {text[0], text[1], 0};
        bytes[count++] = strtoul(pair, NULL, 16);
    }
    return count;
}

static const struct example examples[] = {
    /* one encoding, three code sizes */
    {DECODE_16, "b8 34 12", DECODE_OK, 3, ZYDIS_MNEMONIC_MOV},
    {DECODE_32, "b8 78 56 34 12", DECODE_OK, 5, ZYDIS_MNEMONIC_MOV},
    {DECODE_64, "48 b8 01 02 03 04 05 06 07 08", DECODE_OK, 10, ZYDIS_MNEMONIC_MOV},
    {DECODE_32, "48", DECODE_OK, 1, ZYDIS_MNEMONIC_DEC},
    {DECODE_16, "8b 46 02", DECODE_OK, 3, ZYDIS_MNEMONIC_MOV},
    {DECODE_32, "06", DECODE_OK, 1, ZYDIS_MNEMONIC_PUSH},
    {DECODE_64, "06", DECODE_INVALID, 0, 0},
    {DECODE_32, "62 00", DECODE_OK, 2, ZYDIS_MNEMONIC_BOUND},
    {DECODE_32, "c4 00", DECODE_OK, 2, ZYDIS_MNEMONIC_LES},
    {DECODE_64, "c5 f8 77", DECODE_OK, 3, ZYDIS_MNEMONIC_VZEROUPPER},
    {DECODE_32, "63 c0", DECODE_OK, 2, ZYDIS_MNEMONIC_ARPL},
    {DECODE_64, "48 63 c0", DECODE_OK, 3, ZYDIS_MNEMONIC_MOVSXD},

    /* instructions of features that no model offers are the NOPs that they were made of */
    {DECODE_64, "f3 0f 1e fa", DECODE_OK, 4, ZYDIS_MNEMONIC_NOP},       /* ENDBR64 */
    {DECODE_64, "f3 48 0f 1e c8", DECODE_OK, 5, ZYDIS_MNEMONIC_NOP},    /* RDSSPQ */
    {DECODE_64, "66 0f 1a 00", DECODE_OK, 4, ZYDIS_MNEMONIC_NOP},       /* BNDMOV */
    {DECODE_64, "0f 1c 00", DECODE_OK, 3, ZYDIS_MNEMONIC_NOP},          /* CLDEMOTE */
    {DECODE_64, "f3 0f 09", DECODE_OK, 3, ZYDIS_MNEMONIC_WBINVD},       /* WBNOINVD */
    {DECODE_64, "f2 e9 01 02 03 04", DECODE_OK, 6, ZYDIS_MNEMONIC_JMP}, /* BND JMP */
    {DECODE_64, "f3 0f bc c0", DECODE_OK, 4, ZYDIS_MNEMONIC_TZCNT},
    {DECODE_64, "f3 0f bd c0", DECODE_OK, 4, ZYDIS_MNEMONIC_LZCNT},
    {DECODE_64, "f3 90", DECODE_OK, 2, ZYDIS_MNEMONIC_PAUSE},

    /* 66H on a near branch: ignored in 64-bit mode only */
    {DECODE_64, "66 e8 01 02 03 04", DECODE_OK, 6, ZYDIS_MNEMONIC_CALL},
    {DECODE_32, "66 e8 01 02", DECODE_OK, 4, ZYDIS_MNEMONIC_CALL},

    /* undefined */
    {DECODE_64, "0f 0b", DECODE_INVALID, 0, 0},                /* UD2 */
    {DECODE_64, "0f b9 c0", DECODE_INVALID, 0, 0},             /* UD1 */
    {DECODE_64, "0f ff c0", DECODE_INVALID, 0, 0},             /* UD0 */
    {DECODE_64, "f0 01 c0", DECODE_INVALID, 0, 0},             /* LOCK without memory */
    {DECODE_64, "f0 8b 00", DECODE_INVALID, 0, 0},             /* LOCK with a load */
    {DECODE_64, "f0 90", DECODE_INVALID, 0, 0},                /* LOCK NOP */
    {DECODE_64, "0f 20 c8", DECODE_INVALID, 0, 0},             /* CR1 */
    {DECODE_64, "8e c8", DECODE_INVALID, 0, 0},                /* MOV to CS */
    {DECODE_64, "8e f8", DECODE_INVALID, 0, 0},                /* segment register 7 */
    {DECODE_64, "66 c5 f8 77", DECODE_INVALID, 0, 0},          /* VEX after 66H */
    {DECODE_64, "62 02 69 de 40 76 7b", DECODE_INVALID, 0, 0}, /* EVEX with P1[2] = 0 */
    {DECODE_64, "0f c7 c8", DECODE_INVALID, 0, 0},             /* CMPXCHG8B without memory */

    /* truncated: every true prefix of an instruction */
    {DECODE_64, "", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "66 66", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "f0 01", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "c5", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "62 f1 7c 48", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "48 b8 01 02 03 04 05 06 07", DECODE_TRUNCATED, 0, 0},

    /* the limit of 15 bytes */
    {DECODE_64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", DECODE_OK, 15, ZYDIS_MNEMONIC_NOP},
    {DECODE_64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90", DECODE_TOO_LONG, 0, 0},
    {DECODE_64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66 66", DECODE_TOO_LONG, 0, 0},
    {DECODE_64, "66 66 66 66 66 66 66 66 66 66 66 66 66 66", DECODE_TRUNCATED, 0, 0},
    {DECODE_32, "67 67 67 67 67 67 67 67 67 67 67 67 20 2e", DECODE_TRUNCATED, 0, 0},
    {DECODE_64, "2e 2e 2e 2e 2e 2e 2e 2e 2e 2e 2e b8 01 02 03 04", DECODE_TOO_LONG, 0, 0},
    {DECODE_64, "2e 2e 2e 2e 2e 2e 2e 2e 2e 2e b8 01 02 03 04 05", DECODE_OK, 15,
     ZYDIS_MNEMONIC_MOV},
};

static void test_examples(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(examples); i++) {
        const struct example *example = &examples[i];
        uint8_t bytes[24] = {0};
        size_t available = bytes_parse(example->bytes, bytes);
        struct insn insn;
        enum decode_result result = decode(example->mode, bytes, available, &insn);
        if (result != example->result) {
            print_error("%s: result %d, expected %d\n", example->bytes, result, example->result);
        }
        assert_int_equal(result, example->result);
        if (result == DECODE_OK) {
            assert_int_equal(insn.info.length, example->length);
            assert_int_equal(insn.info.mnemonic, example->mnemonic);
            assert_memory_equal(insn.bytes, bytes, insn.info.length);
            assert_int_equal(insn.bytes[insn.info.length], 0);
        }
    }
}

/* Every true prefix of a valid instruction is truncated, and no byte behind it is looked at. */
static void test_prefixes(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(examples); i++) {
        const struct example *example = &examples[i];
        for (unsigned available = 0; available < example->length; available++) {
            uint8_t bytes[24];
            memset(bytes, 0xcc, sizeof bytes);
            bytes_parse(example->bytes, bytes);
            struct insn insn;
            assert_int_equal(decode(example->mode, bytes, available, &insn), DECODE_TRUNCATED);
        }
    }
}

/* The operands carry what an executor needs: implicit ones, sizes, addresses. */
static void test_operands(void **state)
{
    static const uint8_t load[] = {0x64, 0x48, 0x8b,
                                   0x4c, 0xd8, 0xf8}; /* mov rcx, fs:[rax+rbx*8-8] */
    struct insn insn;
    assert_int_equal(decode(DECODE_64, load, sizeof load, &insn), DECODE_OK);
    assert_int_equal(insn.operands[0].reg.value, ZYDIS_REGISTER_RCX);
    const struct insn_memory *memory = &insn.operands[1].mem;
    assert_int_equal(memory->segment, ZYDIS_REGISTER_FS);
    assert_int_equal(memory->base, ZYDIS_REGISTER_RAX);
    assert_int_equal(memory->index, ZYDIS_REGISTER_RBX);
    assert_int_equal(memory->scale, 8);
    assert_int_equal(memory->displacement, -8);
    assert_int_equal(insn.operands[1].size, 64);
}

/* SIB with base 5 and mod 0 is an address without base, whatever REX.B and the address size. */
static void test_sib_without_base(void **state)
{
    static const uint8_t loads[][9] = {
        {0x67, 0x43, 0x8b, 0x04, 0x65, 1, 2, 3, 0x84}, /* mov eax, [r12d*2-0x7bfcfdff] */
        {0x43, 0x8b, 0x04, 0x65, 1, 2, 3, 0x84, 0xcc}, /* the same with 64-bit addresses */
    };
    for (size_t i = 0; i < ARRAY_SIZE(loads); i++) {
        struct insn insn;
        assert_int_equal(decode(DECODE_64, loads[i], sizeof loads[i], &insn), DECODE_OK);
        const struct insn_memory *memory = &insn.operands[1].mem;
        assert_int_equal(memory->base, ZYDIS_REGISTER_NONE);
        assert_int_equal(memory->index, i == 0 ? ZYDIS_REGISTER_R12D : ZYDIS_REGISTER_R12);
        assert_int_equal(memory->displacement, (int32_t)0x84030201);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_operands),
        cmocka_unit_test(test_sib_without_base),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
