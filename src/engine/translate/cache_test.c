/*
 * The code cache: what is written by one alias runs by the other.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/translate/internal.h"

static void the_cache_is_one_memory_with_two_rights(void **state)
{
    struct cache cache;
    assert_int_equal(cache_init(&cache, KIB(64)), 0);
    static const uint8_t code[] = {0x8d, 0x47, 0x01, 0xc3}; /* lea eax, [rdi + 1]; ret */
    bytes_copy(cache.write + 100, code, sizeof code);
    int (*function)(int) = (int (*)(int))(uintptr_t)(cache.run + 100);
    assert_int_equal(function(41), 42);
    assert_ptr_not_equal(cache.write, cache.run);
    cache_fini(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cache_is_one_memory_with_two_rights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
