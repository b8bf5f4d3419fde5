/* What translate may do, as text: keys one by one, and mistakes that change nothing. */
#include "machine/code_policy.h"

#include <errno.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/error.h"

static void keys_are_taken_one_by_one(void **state)
{
    struct code_policy policy = {0};
    assert_int_equal(code_policy_parse(&policy, "hot=all,without=groups+versions,random=7"), 0);
    assert_int_equal(policy.hot, HOT_ALL);
    assert_int_equal(policy.without, 1u << OPTIMIZE_GROUPS | 1u << OPTIMIZE_VERSIONS);
    assert_int_equal(policy.random, 7);
    assert_int_equal(code_policy_set(&policy, "without", "links"), 0);
    assert_int_equal(policy.without, 1u << OPTIMIZE_LINKS);
}

static void mistakes_change_nothing(void **state)
{
    static const char *const wrong[] = {
        "hot=warm",  "hot",     "without=",          "without=groups+", "without=all",
        "random=-1", "random=", "random=4294967296", "random=7x",       "without=LINKS"};
    for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct code_policy policy = {HOT_NONE, 5, 9};
        assert_int_equal(code_policy_parse(&policy, wrong[i]), -EINVAL);
        assert_non_null(trail_text());
        trail_clear();
        assert_int_equal(policy.hot, HOT_NONE);
        assert_int_equal(policy.without, 5);
        assert_int_equal(policy.random, 9);
    }
    struct code_policy policy = {0};
    assert_int_equal(code_policy_parse(&policy, "cold=all"), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(keys_are_taken_one_by_one),
                                       cmocka_unit_test(mistakes_change_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
