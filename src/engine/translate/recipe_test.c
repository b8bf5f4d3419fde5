/* Recipes: the flags that arithmetic would have left, by the definitions of the manual. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/translate/helper.h"

static const uint64_t numbers[] = {
    0,
    1,
    2,
    0xf,
    0x10,
    0x7f,
    0x80,
    0xff,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    INT64_MAX,
    1ull << 63,
    (1ull << 63) + 1,
    -1ull,
    -0x10ull,
    -0x80ull,
    -0x7fffffffull,
    0x123456789abcdef0,
};

static uint64_t mask_of(unsigned width)
{
    return width == 64 ? UINT64_MAX : (1ull << width) - 1;
}

/* ZF, SF and PF (SDM volume 1, 3.4.3.1). */
static uint64_t of_result(uint64_t result, unsigned width)
{
    result &= mask_of(width);
    return (result == 0 ? FLAG_ZF : 0) | (result >> (width - 1) ? FLAG_SF : 0) |
           (__builtin_parity(result & 0xff) ? 0 : FLAG_PF);
}

/* x - y, or x + y; AF is the carry out of bit 3, OF a result on the wrong side of the signs. */
static uint64_t of_sum(uint64_t x, uint64_t y, bool subtract, unsigned width)
{
    x &= mask_of(width), y &= mask_of(width);
    uint64_t result = (subtract ? x - y : x + y) & mask_of(width);
    uint64_t overflow = subtract ? (x ^ y) & (x ^ result) : ~(x ^ y) & (x ^ result);
    return of_result(result, width) | ((subtract ? x < y : result < x) ? FLAG_CF : 0) |
           ((x ^ y ^ result) & 0x10 ? FLAG_AF : 0) | (overflow >> (width - 1) & 1 ? FLAG_OF : 0);
}

/* As block_gather() reads what LAHF and SETO leave. */
static uint64_t flags_of(uint16_t saved)
{
    return (saved >> 8 & (FLAGS_ARITHMETIC & 0xff)) | (saved & 1 ? FLAG_OF : 0);
}

static uint64_t made(enum recipe_kind kind, unsigned width, int64_t second, int32_t immediate,
                     const uint64_t *gpr)
{
    struct recipe recipe = {.kind = (uint8_t)kind,
                            .width = (uint8_t)width,
                            .first = RBX,
                            .second = (int8_t)second,
                            .immediate = immediate};
    uint64_t kept[2] = {gpr[RBX], second >= 0 ? gpr[second] : 0};
    uint16_t flags = recipe_flags(gpr, NULL, &recipe);
    /* The registers may have been overwritten, one or both. */
    struct recipe one_kept = recipe, both_kept = recipe;
    const uint64_t nothing[GPR_COUNT] = {0};
    one_kept.first = both_kept.first = RECIPE_KEPT;
    if (second >= 0) {
        both_kept.second = RECIPE_KEPT + 1;
    }
    assert_int_equal(recipe_flags(gpr, kept, &one_kept), flags);
    assert_int_equal(recipe_flags(nothing, kept, &both_kept), flags);
    return flags_of(flags);
}

static void check_registers(uint64_t x, uint64_t y, unsigned width)
{
    const uint64_t defined = FLAGS_ARITHMETIC & ~FLAG_AF; /* after logic AF is not */
    uint64_t gpr[GPR_COUNT] = {[RBX] = x, [RSI] = y};
    assert_int_equal(made(RECIPE_COMPARE, width, RSI, 0, gpr), of_sum(x, y, true, width));
    assert_int_equal(made(RECIPE_TEST, width, RSI, 0, gpr) & defined, of_result(x & y, width));
    assert_int_equal(made(RECIPE_TEST, width, RBX, 0, gpr) & defined, of_result(x, width));
    uint64_t sum[GPR_COUNT] = {[RBX] = (x + y) & mask_of(width), [RSI] = y};
    uint64_t difference[GPR_COUNT] = {[RBX] = (x - y) & mask_of(width), [RSI] = y};
    assert_int_equal(made(RECIPE_ADD, width, RSI, 0, sum), of_sum(x, y, false, width));
    assert_int_equal(made(RECIPE_SUBTRACT, width, RSI, 0, difference), of_sum(x, y, true, width));
}

static void check_immediate(uint64_t x, int32_t immediate, unsigned width)
{
    const uint64_t defined = FLAGS_ARITHMETIC & ~FLAG_AF;
    uint64_t y = (uint64_t)(int64_t)immediate;
    uint64_t before[GPR_COUNT] = {[RBX] = x}, sum[GPR_COUNT] = {[RBX] = (x + y) & mask_of(width)},
             difference[GPR_COUNT] = {[RBX] = (x - y) & mask_of(width)};
    assert_int_equal(made(RECIPE_COMPARE, width, -1, immediate, before), of_sum(x, y, true, width));
    assert_int_equal(made(RECIPE_TEST, width, -1, immediate, before) & defined,
                     of_result(x & y, width));
    /* ADD and SUB: only what they left is there. */
    assert_int_equal(made(RECIPE_ADD, width, -1, immediate, sum), of_sum(x, y, false, width));
    assert_int_equal(made(RECIPE_SUBTRACT, width, -1, immediate, difference),
                     of_sum(x, y, true, width));
}

static void flags_are_made_again(void **state)
{
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
        for (size_t k = 0; k < ARRAY_SIZE(numbers); k++) {
            for (unsigned width = 8; width <= 64; width *= 2) {
                check_registers(numbers[i], numbers[k], width);
                check_immediate(numbers[i], (int32_t)numbers[k], width);
            }
        }
    }
}

static void zero_is_known(void **state)
{
    const struct recipe recipe = {.kind = RECIPE_ZERO, .first = -1, .second = -1};
    uint64_t flags = flags_of(recipe_flags(NULL, NULL, &recipe));
    assert_int_equal(flags & ~FLAG_AF, FLAG_ZF | FLAG_PF);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(flags_are_made_again),
                                       cmocka_unit_test(zero_is_known)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
