/*
 * Displaced guest registers live in the block; instructions that name them get a scratch register
 * in their place, loaded before and stored behind. What is in the scratch registers is
 * remembered as long as nothing else is emitted: a value that is used again at once is not loaded
 * again, so chains of computation do not go through memory.
 */
#include "engine/translate/compiler.h"

static const uint8_t scratch[2] = {SCRATCH, SCRATCH2};

static bool is_held_valid(const struct compiler *c)
{
    return c->held.at == emit_offset(&c->e);
}

int displaced_held(const struct compiler *c, unsigned gpr)
{
    for (unsigned i = 0; i < 2; i++) {
        if (is_held_valid(c) && c->held.gpr[i] == (int)gpr) {
            return scratch[i];
        }
    }
    return -1;
}

void displaced_hold(struct compiler *c, int in_scratch, int in_scratch2)
{
    c->held.gpr[0] = (int8_t)in_scratch;
    c->held.gpr[1] = (int8_t)in_scratch2;
    c->held.at = emit_offset(&c->e);
}

bool displaced_assign(struct compiler *c, uint16_t displaced, bool has_memory,
                      struct rewrite_map *map)
{
    uint16_t taken = has_memory ? 1u << SCRATCH : 0; /* the operand's host address */
    unsigned not_held = 0;
    for (unsigned left = displaced & c->unit->displaced; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        int held = displaced_held(c, gpr);
        if (held >= 0 && !(taken & 1u << held)) {
            map->host[gpr] = (uint8_t)held;
            taken |= 1u << held;
        } else {
            not_held |= 1u << gpr;
        }
    }
    for (; not_held; not_held &= not_held - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(not_held);
        unsigned host = taken & 1u << SCRATCH2 ? SCRATCH : SCRATCH2;
        if (taken & 1u << host) {
            return false;
        }
        map->host[gpr] = (uint8_t)host;
        taken |= 1u << host;
    }
    return true;
}

void displaced_load(struct compiler *c, uint16_t registers, const struct rewrite_map *map)
{
    int8_t held[2] = {-1, -1};
    for (unsigned i = 0; i < 2 && is_held_valid(c); i++) {
        held[i] = c->held.gpr[i];
    }
    for (unsigned left = registers & c->unit->displaced; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left), place = map->host[gpr] == SCRATCH2;
        if (held[place] != (int)gpr) {
            emit_load(&c->e, map->host[gpr], gpr_slot(gpr));
            held[place] = (int8_t)gpr;
        }
    }
    displaced_hold(c, held[0], held[1]);
}

void displaced_store(struct compiler *c, uint16_t written, bool has_memory,
                     const struct rewrite_map *map)
{
    if (has_memory) { /* SCRATCH is the operand's address */
        c->held.gpr[0] = -1;
    }
    for (unsigned left = written & c->unit->displaced; left; left &= left - 1) {
        unsigned gpr = (unsigned)__builtin_ctz(left);
        emit_store(&c->e, map->host[gpr], gpr_slot(gpr));
        c->held.gpr[map->host[gpr] == SCRATCH2] = (int8_t)gpr;
    }
    c->held.at = emit_offset(&c->e);
}
