/*
 * Flags that were neither saved nor left in the CPU, made again from their recipe: the same
 * operation on the same values, on the host's CPU.
 */
#include "engine/translate/helper.h"

/* Run an instruction on two values and keep its flags as LAHF and SETO leave them. */
#define MAKE_FLAGS(instruction, modifier, x, y, result)                                            \
    __asm__(instruction " %" modifier "2, %" modifier "1; lahf; seto %%al"                         \
            : "=a"(result), "+r"(x)                                                                \
            : "r"(y)                                                                               \
            : "cc")
#define MAKE_FLAGS_OF(name, width, x, y, result)                                                   \
    do {                                                                                           \
        if ((width) == 64) {                                                                       \
            MAKE_FLAGS(name "q", "q", x, y, result);                                               \
        } else if ((width) == 32) {                                                                \
            MAKE_FLAGS(name "l", "k", x, y, result);                                               \
        } else if ((width) == 16) {                                                                \
            MAKE_FLAGS(name "w", "w", x, y, result);                                               \
        } else {                                                                                   \
            MAKE_FLAGS(name "b", "b", x, y, result);                                               \
        }                                                                                          \
    } while (0)

/* A register and itself: XOR, SUB and AND leave the same, but for AF, which XOR leaves undefined.
 */
static uint16_t zero_flags(void)
{
    uint64_t zero = 0, result;
    MAKE_FLAGS("xor", "k", zero, zero, result);
    return (uint16_t)result;
}

static uint64_t value_of(const uint64_t *gpr, const uint64_t *kept, int8_t name)
{
    return name >= RECIPE_KEPT ? kept[name - RECIPE_KEPT] : gpr[name];
}

uint16_t recipe_flags(const uint64_t *gpr, const uint64_t *kept, const struct recipe *recipe)
{
    if (recipe->kind == RECIPE_ZERO) {
        return zero_flags();
    }
    uint64_t x = value_of(gpr, kept, recipe->first), result;
    uint64_t y = recipe->second >= 0 ? value_of(gpr, kept, recipe->second)
                                     : (uint64_t)(int64_t)recipe->immediate;
    if (recipe->kind == RECIPE_ADD) {
        x -= y;
    } else if (recipe->kind == RECIPE_SUBTRACT) {
        x += y;
    }
    switch (recipe->kind) {
    case RECIPE_TEST:
        MAKE_FLAGS_OF("and", recipe->width, x, y, result);
        break;
    case RECIPE_ADD:
        MAKE_FLAGS_OF("add", recipe->width, x, y, result);
        break;
    default:
        MAKE_FLAGS_OF("sub", recipe->width, x, y, result);
        break;
    }
    return (uint16_t)result;
}
