/*
 * Operands that SCRATCH2 stands for in the copy of an instruction: a high byte, which cannot stand
 * beside a host address, and a memory operand whose value the flags' recipe needs.
 */
#include "engine/translate/compiler.h"

const struct insn_operand *find_high_byte(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count_visible; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_REGISTER && is_high_byte(operand->reg.value)) {
            return operand;
        }
    }
    return NULL;
}

void load_high_byte(struct compiler *c, const struct insn_operand *high)
{
    unsigned gpr = (unsigned)rewrite_gpr(high->reg.value);
    displaced_hold(c, -1, -1);
    if (!(high->actions & ZYDIS_OPERAND_ACTION_MASK_READ)) {
        return;
    }
    if (c->e.has_bmi2) {
        emit_rorx(&c->e, false, SCRATCH2, gpr, 8);
    } else {
        emit_exchange_bytes(&c->e, gpr);
        emit_move(&c->e, SCRATCH2, gpr);
        emit_exchange_bytes(&c->e, gpr);
    }
}

void store_high_byte(struct compiler *c, const struct insn_operand *high)
{
    unsigned gpr = (unsigned)rewrite_gpr(high->reg.value);
    if (high->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
        emit_exchange_bytes(&c->e, gpr);
        emit_registers(&c->e, false, 0x88, SCRATCH2, gpr); /* mov low byte, scratch2 */
        emit_exchange_bytes(&c->e, gpr);
    }
}

/* The first bytes of a move between SCRATCH2 and memory, for the size of the operand. */
static void emit_access(struct emitter *e, unsigned size, bool is_store, int32_t offset)
{
    if (size == 2 && is_store) {
        emit8(e, 0x66);
    }
    emit_rex(e, size == 8, SCRATCH2, 0, SCRATCH);
    if (is_store) {
        emit8(e, size == 1 ? 0x88 : OP_STORE);
    } else if (size < 4) { /* movzx */
        emit8(e, 0x0f);
        emit8(e, size == 1 ? 0xb6 : 0xb7);
    } else {
        emit8(e, OP_LOAD);
    }
    emit_modrm_base(e, SCRATCH2, SCRATCH, offset);
}

void load_operand(struct compiler *c, const struct insn_operand *memory, int32_t offset)
{
    displaced_hold(c, -1, -1);
    emit_access(&c->e, memory->size / 8, false, offset);
}

void store_operand(struct compiler *c, const struct insn_operand *memory, int32_t offset)
{
    if (memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
        emit_access(&c->e, memory->size / 8, true, offset);
    }
    emit_store(&c->e, SCRATCH2, flags_operand_slot(compiler_insn(c)));
}
