/*
 * REP MOVS and REP STOS. What stays inside one page of the source and one of the destination runs
 * inline, with the host's own string instruction; everything else (page borders, long counts, the
 * direction flag, misses) goes to helper_string(), which works page by page.
 */
#include "engine/translate/compiler.h"

bool is_repeated_move(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        if (operand->type == ZYDIS_OPERAND_TYPE_MEMORY &&
            (operand->mem.segment == ZYDIS_REGISTER_FS ||
             operand->mem.segment == ZYDIS_REGISTER_GS)) {
            return false;
        }
    }
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_MOVSB:
    case ZYDIS_MNEMONIC_MOVSW:
    case ZYDIS_MNEMONIC_MOVSD:
    case ZYDIS_MNEMONIC_MOVSQ:
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        return (insn->info.attributes & ZYDIS_ATTRIB_HAS_REP) && insn->info.address_width == 64 &&
               insn->info.meta.category == ZYDIS_CATEGORY_STRINGOP;
    default:
        return false;
    }
}

static bool is_store(const struct insn *insn)
{
    switch (insn->info.mnemonic) {
    case ZYDIS_MNEMONIC_STOSB:
    case ZYDIS_MNEMONIC_STOSW:
    case ZYDIS_MNEMONIC_STOSD:
    case ZYDIS_MNEMONIC_STOSQ:
        return true;
    default:
        return false;
    }
}

/* The way out of the inline code, taken before anything has changed. */
static void branch_to_helper(struct compiler *c, uint8_t condition, uint32_t site)
{
    outline(c, OUTLINE_STRING, emit_branch_forward(&c->e, condition), site, 0);
}

/*
 * SCRATCH2 = host address of the operand at `pointer`; leaves if the whole run is not inside its
 * page. RCX is at most a page's worth of elements, so nothing overflows.
 */
static void compile_run_check(struct compiler *c, unsigned pointer, bool write, unsigned size,
                              uint32_t site)
{
    struct emitter *e = &c->e;
    size_t entry = tlb_entry_offset(mode_privilege(c->mode), write ? TLB_WRITE : TLB_READ);
    emit_move(e, SCRATCH, pointer);
    emit_check_index(e);
    emit_gs_scratch2(e, true, OP_SUB, SCRATCH, entry + offsetof(struct tlb_entry, tag));
    emit_gs_scratch2(e, true, OP_LOAD, SCRATCH2, entry + offsetof(struct tlb_entry, host));
    emit_lea_full(e, true, SCRATCH2, SCRATCH2, SCRATCH, 1, 0);
    emit_lea_full(e, true, SCRATCH, SCRATCH, RCX, size, 0);
    emit_registers(e, true, 0x81, 7, SCRATCH); /* cmp with the distance of the run's end */
    emit32(e, PAGE_SIZE);
    branch_to_helper(c, CONDITION_A, site);
}

static void emit_string_instruction(struct compiler *c, const struct insn *insn)
{
    emit8(&c->e, 0xf3);
    if (insn->info.operand_width == 64) {
        emit8(&c->e, 0x48);
    } else if (insn->info.operand_width == 16) {
        emit8(&c->e, 0x66);
    }
    emit8(&c->e, insn->info.opcode);
}

void compile_repeated_move(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    struct emitter *e = &c->e;
    unsigned size = insn->info.operand_width / 8;
    bool store = is_store(insn);

    groups_forget(c);
    flags_to_block(c);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].size = (uint8_t)size;
    c->vm->sites[site].is_store = store;
    emit8(e, 0x48); /* cmp rcx, PAGE_SIZE / size */
    emit8(e, 0x81);
    emit8(e, 0xf9);
    emit32(e, PAGE_SIZE / size);
    branch_to_helper(c, CONDITION_A, site);
    emit_gs(e, false, 0xf6, 0, offsetof(struct block, vcpu.state.rflags) + 1); /* test DF */
    emit8(e, FLAG_DF >> 8);
    branch_to_helper(c, CONDITION_NZ, site);
    if (!store) {
        compile_run_check(c, RSI, false, size, site);
        emit_store(e, SCRATCH2, offsetof(struct block, spill[0])); /* host source */
    }
    compile_run_check(c, RDI, true, size, site);
    emit_lea_full(e, true, SCRATCH, RDI, RCX, size, 0); /* the guest's pointers afterwards */
    emit_move(e, RDI, SCRATCH2);
    if (!store) {
        emit_store(e, SCRATCH, offsetof(struct block, spill[1]));
        emit_lea_full(e, true, SCRATCH, RSI, RCX, size, 0);
        emit_load(e, RSI, offsetof(struct block, spill[0]));
    }
    emit_string_instruction(c, insn);
    if (store) {
        emit_move(e, RDI, SCRATCH);
    } else {
        emit_move(e, RSI, SCRATCH);
        emit_load(e, RDI, offsetof(struct block, spill[1]));
    }
    c->vm->sites[site].resume = emit_offset(e);
}
