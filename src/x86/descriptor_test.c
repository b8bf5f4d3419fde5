/* Descriptors and gates: known encodings, and back. */
#include "x86/descriptor.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bytes.h"

static const struct {
    uint64_t descriptor;
    uint64_t base;
    uint32_t limit;
    uint16_t attributes;
} examples[] = {
    /* 64-bit code, as Linux has it */
    {0x00af9b000000ffff, 0, 0xffffffff, 0xa09b},
    /* flat 32-bit data */
    {0x00cf93000000ffff, 0, 0xffffffff, 0xc093},
    /* byte granularity, every field different */
    {0x12459a3456789abc, 0x12345678, 0x59abc, 0x409a},
    /* one page, expand-down */
    {0x0080970000000000, 0, 0xfff, 0x8097},
    /* not present */
    {0, 0, 0, 0},
};

static void test_unpack_and_pack(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(examples); i++) {
        struct segment segment = descriptor_unpack(examples[i].descriptor, 0x1b);
        assert_int_equal(segment.base, examples[i].base);
        assert_int_equal(segment.limit, examples[i].limit);
        assert_int_equal(segment.attributes, examples[i].attributes);
        assert_int_equal(segment.selector, 0x1b);
        assert_int_equal(descriptor_pack(&segment), examples[i].descriptor);
    }
}

static void test_system64(void **state)
{
    struct segment segment;
    assert_true(descriptor_unpack_system64(0xfe008b0030004087, 0xfffffe00, 0x40, &segment));
    assert_int_equal(segment.base, 0xfffffe00fe003000);
    assert_int_equal(segment.limit, 0x4087);
    assert_int_equal(segment.attributes & SEGMENT_TYPE, SYSTEM_TSS_BUSY);
    assert_true(segment.attributes & SEGMENT_P);
    assert_false(descriptor_unpack_system64(0, 1ull << 40, 0x40, &segment));
}

static void test_gates(void **state)
{
    struct gate gate;
    /* interrupt gate of IA-32e mode, IST 2, DPL 3 */
    assert_true(gate_unpack64(0x81c0ee0200100ab0, 0xffffffff, &gate));
    assert_int_equal(gate.offset, 0xffffffff81c00ab0);
    assert_int_equal(gate.selector, 0x10);
    assert_int_equal(gate.type, SYSTEM_INTERRUPT_GATE);
    assert_int_equal(gate.dpl, 3);
    assert_int_equal(gate.ist, 2);
    assert_true(gate.present && gate.system);
    /* call gates: 32-bit with 5 parameters, 16-bit without an upper offset */
    gate = gate_unpack(0x12348c0500085678);
    assert_int_equal(gate.offset, 0x12345678);
    assert_int_equal(gate.type, SYSTEM_CALL_GATE);
    assert_int_equal(gate.parameters, 5);
    gate = gate_unpack(0x1234840500085678);
    assert_int_equal(gate.offset, 0x5678);
    /* a code segment is no gate */
    assert_false(gate_unpack(0x00af9b000000ffff).system);
}

static void test_made_segments(void **state)
{
    struct segment segment = segment_real(0xf000, false);
    assert_int_equal(segment.base, 0xf0000);
    assert_int_equal(segment.limit, 0xffff);
    assert_int_equal(segment.attributes, 0x93);
    assert_int_equal(segment_real(0, true).attributes, 0xf3);
    assert_int_equal(segment_flat(0x10, true, true, 0).attributes, 0xa09b);
    assert_int_equal(segment_flat(0x23, true, false, 3).attributes, 0xc0fb);
    assert_int_equal(segment_flat(0x2b, false, true, 3).attributes, 0xc0f3);
    assert_int_equal(segment_null(3, 3).attributes, SEGMENT_UNUSABLE | SEGMENT_DPL);
    assert_true(selector_is_null(3));
    assert_false(selector_is_null(4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unpack_and_pack),
        cmocka_unit_test(test_system64),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_made_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
