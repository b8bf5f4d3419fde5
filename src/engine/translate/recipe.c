/*
 * Flags that were neither saved nor left in the CPU, made again from their recipe: the same
 * operation on the same values, on the host's CPU.
 */
#include "engine/translate/helper.h"

/* Run an instruction on two values and keep its flags as LAHF and SETO leave them. */
#define MAKE_FLAGS(instruction, x, y, result)                                                      \
    __asm__(instruction " %2, %1; lahf; seto %%al" : "=a"(result), "+r"(x) : "r"(y) : "cc")

static uint64_t value_of(const uint64_t *gpr, const uint64_t *kept, int8_t name)
{
    return name >= RECIPE_KEPT ? kept[name - RECIPE_KEPT] : gpr[name];
}

uint16_t recipe_flags(const uint64_t *gpr, const uint64_t *kept, const struct recipe *recipe)
{
    uint64_t x = value_of(gpr, kept, recipe->first), result;
    uint64_t y = recipe->second >= 0 ? value_of(gpr, kept, recipe->second)
                                     : (uint64_t)(int64_t)recipe->immediate;
    if (recipe->kind == RECIPE_ADD) {
        x -= y;
    } else if (recipe->kind == RECIPE_SUBTRACT) {
        x += y;
    }
    uint32_t narrow_x = (uint32_t)x, narrow_y = (uint32_t)y;
    if (recipe->kind == RECIPE_TEST && recipe->width == 64) {
        MAKE_FLAGS("andq", x, y, result);
    } else if (recipe->kind == RECIPE_TEST) {
        MAKE_FLAGS("andl", narrow_x, narrow_y, result);
    } else if (recipe->kind == RECIPE_ADD && recipe->width == 64) {
        MAKE_FLAGS("addq", x, y, result);
    } else if (recipe->kind == RECIPE_ADD) {
        MAKE_FLAGS("addl", narrow_x, narrow_y, result);
    } else if (recipe->width == 64) {
        MAKE_FLAGS("subq", x, y, result);
    } else {
        MAKE_FLAGS("subl", narrow_x, narrow_y, result);
    }
    return (uint16_t)result;
}
