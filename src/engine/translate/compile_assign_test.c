/* Which guest registers live in the block: the choice alone. That it works is for hot=all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/translate/internal.h"

enum { AX = 1u << RAX, CX = 1u << RCX, SP = 1u << RSP };

/* All registers are used alike; R9 to R11 more. */
static struct register_use busy(void)
{
    struct register_use use = {0};
    for (unsigned gpr = 0; gpr < GPR_COUNT; gpr++) {
        use.count[gpr] = DISPLACED & 1u << gpr ? 80 : 20;
    }
    return use;
}

static void what_is_used_least_is_displaced(void **state)
{
    struct register_use use = busy();
    use.count[RBX] = use.count[R8] = use.count[R14] = 3;
    assert_int_equal(registers_choose(&use), 1u << RBX | 1u << R8 | 1u << R14);
    use.count[R10] = 2; /* stays where it is */
    use.count[R8] = 4;
    assert_int_equal(registers_choose(&use), 1u << RBX | 1u << R10 | 1u << R14);
}

static void what_opcodes_use_is_not(void **state)
{
    struct register_use use = busy();
    use.count[RAX] = use.count[RSP] = use.count[RCX] = 0;
    use.fixed = CX;
    assert_false(registers_choose(&use) & (AX | CX | SP));
    use.fixed = 0xffff;
    assert_int_equal(registers_choose(&use), DISPLACED);
}

static void the_exchange_has_its_price(void **state)
{
    struct register_use use = busy();
    use.crossings = 6;
    assert_int_not_equal(registers_choose(&use), DISPLACED);
    use.crossings = 7;
    assert_int_equal(registers_choose(&use), DISPLACED);
    use = (struct register_use){0}; /* nothing is known */
    assert_int_equal(registers_choose(&use), DISPLACED);
}

/* By numbers, every register but those two is displaced now and then, and never one that is fixed.
 */
static void tests_meet_all(void **state)
{
    struct register_use use = {.fixed = CX};
    uint16_t seen = 0, home = 0;
    for (uint32_t number = 0; number < 100; number++) {
        uint16_t displaced = registers_choose_any(&use, number);
        assert_int_equal(__builtin_popcount(displaced), 3);
        seen |= displaced;
        home |= DISPLACED & ~displaced;
    }
    assert_int_equal(seen, 0xffff & ~(AX | CX | SP | DISPLACED));
    assert_int_equal(home, DISPLACED);
    use.fixed = 0xffff;
    assert_int_equal(registers_choose_any(&use, 7), DISPLACED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_used_least_is_displaced),
        cmocka_unit_test(what_opcodes_use_is_not),
        cmocka_unit_test(the_exchange_has_its_price),
        cmocka_unit_test(tests_meet_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
