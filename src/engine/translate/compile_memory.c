/*
 * Memory operands: the address, the soft TLB check, and the copy of the instruction that then
 * works on the host address. docs/translate.md shows the sequence and what it costs.
 */
#include "engine/translate/compiler.h"
#include "x86/cpuid.h"

/* The host register that holds a guest register of an address; displaced ones are loaded. */
static int address_register(struct compiler *c, ZydisRegister name, unsigned scratch)
{
    int gpr = rewrite_gpr(name);
    if (gpr < 0) {
        return -1;
    }
    if (!is_displaced(c, gpr)) {
        return (int)home_of(c, gpr);
    }
    int held = displaced_held(c, (unsigned)gpr);
    if (held >= 0) {
        return held;
    }
    emit_load(&c->e, scratch, gpr_slot((unsigned)gpr));
    return (int)scratch;
}

bool compile_address(struct compiler *c, const struct insn_operand *operand, uint64_t *ret_constant)
{
    const struct insn_memory *memory = &operand->mem;
    struct emitter *e = &c->e;
    bool is_wide = compiler_insn(c)->info.address_width == 64;
    bool has_base = memory->segment == ZYDIS_REGISTER_FS || memory->segment == ZYDIS_REGISTER_GS;
    bool is_relative = memory->base == ZYDIS_REGISTER_RIP || memory->base == ZYDIS_REGISTER_EIP;
    uint64_t displacement = (uint64_t)memory->displacement;
    if (is_relative) {
        displacement += compiler_next_pc(c);
    }
    if (is_relative && (c->mode & MODE_ANYWHERE)) {
        emit_code_address(c, SCRATCH, displacement);
        if (!is_wide) {
            emit_registers(e, false, OP_STORE, SCRATCH, SCRATCH); /* its lower half */
        }
    } else if (is_relative ||
               (memory->base == ZYDIS_REGISTER_NONE && memory->index == ZYDIS_REGISTER_NONE)) {
        if (!is_wide) {
            displacement = (uint32_t)displacement;
        }
        if (!has_base) {
            *ret_constant = displacement;
            return true;
        }
        emit_constant(e, SCRATCH, displacement);
    } else {
        int base = address_register(c, memory->base, SCRATCH);
        int index = address_register(c, memory->index, base == SCRATCH2 ? SCRATCH : SCRATCH2);
        unsigned scale = memory->scale ? memory->scale : 1;
        emit_lea_full(e, is_wide, SCRATCH, base, index, scale, (int32_t)displacement);
    }
    if (has_base) {
        unsigned segment = memory->segment == ZYDIS_REGISTER_FS ? FS : GS;
        emit_gs(e, true, OP_ADD, SCRATCH,
                offsetof(struct block, vcpu.state.segment) + segment * sizeof(struct segment) +
                    offsetof(struct segment, base));
    }
    return false;
}

void emit_check_index(struct emitter *e)
{
    emit_rotated(e, true, PAGE_SHIFT - 4);       /* less log2(sizeof(struct tlb_entry)) */
    emit_registers(e, false, 0x81, 4, SCRATCH2); /* and scratch2, index mask */
    emit32(e, (TLB_ENTRIES - 1) * sizeof(struct tlb_entry));
}
_Static_assert(sizeof(struct tlb_entry) == 1 << 4, "the check scales by this");

uint32_t check_site(struct compiler *c, unsigned size, bool write)
{
    uint32_t site = site_new(c, write ? SITE_WRITE : SITE_READ);
    c->vm->sites[site].size = size < 255 ? (uint8_t)size : 255;
    return site;
}

uint8_t *emit_distance_check(struct emitter *e, unsigned size)
{
    emit_registers(e, true, 0x81, 7, SCRATCH); /* cmp scratch, PAGE_SIZE - size */
    emit32(e, PAGE_SIZE - size);
    return emit_branch_forward(e, CONDITION_A);
}

/* The host address (or its page, for a pair) comes with `opcode` from where it is found. */
static void emit_table_check(struct compiler *c, unsigned size, bool write, uint8_t opcode,
                             unsigned reg)
{
    struct emitter *e = &c->e;
    size_t entry = tlb_entry_offset(mode_privilege(c->mode), write ? TLB_WRITE : TLB_READ);
    size_t tag = entry + offsetof(struct tlb_entry, tag);
    uint32_t site = check_site(c, size, write);
    emit_check_index(e);
    emit_gs_scratch2(e, true, OP_SUB, SCRATCH, tag);
    outline(c, OUTLINE_MEMORY, emit_distance_check(e, size), site, tag);
    emit_gs_scratch2(e, true, opcode, reg, entry + offsetof(struct tlb_entry, host));
}

static void emit_check(struct compiler *c, unsigned size, bool write, uint8_t opcode, unsigned reg)
{
    gpa_t gpa = c->unit->page << PAGE_SHIFT | c->offsets[c->current];
    if (c->unit->has_slots && !slot_is_shunned(c->vm, gpa)) {
        compile_slot_check(c, size, write, opcode, reg);
    } else {
        emit_table_check(c, size, write, opcode, reg);
    }
}

void compile_check(struct compiler *c, unsigned size, bool write)
{
    emit_check(c, size, write, OP_ADD, SCRATCH);
}

void compile_check_pair(struct compiler *c, unsigned size, bool write)
{
    emit_check(c, size, write, OP_LOAD, SCRATCH2);
}

/* SCRATCH = host address of the page of a constant address: its entry is known. */
static struct host_place compile_constant_check(struct compiler *c, unsigned size, bool write,
                                                uint64_t address)
{
    struct emitter *e = &c->e;
    size_t entry = tlb_entry_offset(mode_privilege(c->mode), write ? TLB_WRITE : TLB_READ) +
                   tlb_index(address) * sizeof(struct tlb_entry);
    size_t tag = entry + offsetof(struct tlb_entry, tag);
    uint32_t offset = address & (PAGE_SIZE - 1);
    uint64_t page = address - offset;
    uint32_t site = check_site(c, size, write);
    if (offset + size > PAGE_SIZE) {
        outline(c, OUTLINE_ADDRESS, emit_jump_forward(e), site, address);
        return (struct host_place){0};
    }
    if ((uint64_t)(int64_t)(int32_t)page == page) {
        emit_gs(e, true, 0x81, 7, tag); /* cmp qword gs:[tag], page */
        emit32(e, (uint32_t)page);
    } else {
        emit_constant(e, SCRATCH, page);
        emit_gs(e, true, OP_CMP, SCRATCH, tag);
    }
    outline(c, OUTLINE_ADDRESS, emit_branch_forward(e, CONDITION_NZ), site, address);
    emit_load(e, SCRATCH, entry + offsetof(struct tlb_entry, host));
    return (struct host_place){.offset = (int32_t)offset};
}

/* Does the instruction look at pending x87 exceptions, or raise one by storing? */
static bool has_early_faults(const struct insn *insn)
{
    for (unsigned i = 0; i < insn->info.operand_count; i++) {
        const struct insn_operand *operand = &insn->operands[i];
        ZydisRegisterClass class = operand->type == ZYDIS_OPERAND_TYPE_REGISTER
                                       ? ZydisRegisterGetClass(operand->reg.value)
                                       : ZYDIS_REGCLASS_INVALID;
        if (class == ZYDIS_REGCLASS_X87 || class == ZYDIS_REGCLASS_MMX) {
            return true;
        }
    }
    return insn->info.meta.isa_ext == ZYDIS_ISA_EXT_X87 ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH;
}

/*
 * What comes before the #PF of an operand: a pending #MF, the #XM of a store that converts, the
 * #GP of a vector (or CMPXCHG16B's operand) that must be aligned. SDM volume 3, table 6-2.
 */
static void note_early_faults(struct site *site, const struct insn *insn, unsigned size)
{
    bool is_vector = size == 16 || size == 32 || size == 64;
    site->is_ordered = has_early_faults(insn);
    site->alignment = is_vector ? (uint8_t)(size - 1) : 0;
}

struct host_place compile_operand_check(struct compiler *c, const struct insn_operand *operand,
                                        bool write, bool may_pair)
{
    struct host_place place = {.is_pair = may_pair};
    unsigned size = operand->size / 8;
    uint64_t constant;
    flags_for_check(c);
    bool is_constant = compile_address(c, operand, &constant);
    uint32_t site = c->vm->site_count;
    if (is_constant) {
        place = compile_constant_check(c, size, write, constant);
    } else if (may_pair) {
        compile_check_pair(c, size, write);
    } else {
        compile_check(c, size, write);
    }
    note_early_faults(&c->vm->sites[site], compiler_insn(c), size);
    return place;
}

/* ---- copies ---- */

/* Can the host CPU itself raise an exception here, with valid memory? */
static bool may_fault(const struct insn *insn)
{
    return interp_uses_vector_state(insn) || insn->info.mnemonic == ZYDIS_MNEMONIC_DIV ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_IDIV ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B;
}

static bool has_mask(const struct insn *insn)
{
    return insn->info.avx.mask.reg != ZYDIS_REGISTER_NONE ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPS ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVD ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ;
}

static bool is_locked(const struct insn *insn)
{
    return (insn->info.attributes & ZYDIS_ATTRIB_HAS_LOCK) ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_XCHG;
}

/* A locked access across a cache line is left to interp, which stops the other vCPUs. */
static void compile_line_check(struct compiler *c, unsigned size)
{
    struct emitter *e = &c->e;
    if (size <= 1) {
        return;
    }
    emit_lea(e, SCRATCH2, SCRATCH, (int32_t)size - 1);
    emit_registers(e, true, 0x31, SCRATCH, SCRATCH2); /* xor scratch2, scratch */
    /* test scratch2, 64: the sum differs in bit 6 exactly if a line is crossed */
    emit_registers(e, false, 0xf7, 0, SCRATCH2);
    emit32(e, 64);
    uint8_t *branch = emit_branch_forward(e, CONDITION_NZ);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0; /* the flags are elsewhere behind the instruction */
    outline(c, OUTLINE_EXECUTE, branch, site, 0);
}

static bool loads_mxcsr(const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_LDMXCSR ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_VLDMXCSR;
}

/* The host may know MXCSR bits that the guest's CPU does not have (AMD's MM): those are for interp.
 */
static void compile_mxcsr_check(struct compiler *c)
{
    struct emitter *e = &c->e;
    emit_memory(e, false, 0xf7, 0, SCRATCH, 0); /* test dword [scratch], reserved bits */
    emit32(e, ~(uint32_t)MXCSR_WRITABLE);
    uint8_t *branch = emit_branch_forward(e, CONDITION_NZ);
    uint32_t site = site_new(c, SITE_EXECUTE);
    c->vm->sites[site].resume = 0;
    outline(c, OUTLINE_EXECUTE, branch, site, 0);
}

/*
 * TZCNT and LZCNT are BSF and BSR with a prefix that CPUs without them ignore. Where the model
 * lacks them (Linux uses `rep bsf` everywhere) the prefix goes.
 */
static bool is_plain_bit_scan(const struct compiler *c, const struct insn *insn)
{
    return (insn->info.mnemonic == ZYDIS_MNEMONIC_TZCNT ||
            insn->info.mnemonic == ZYDIS_MNEMONIC_LZCNT) &&
           !cpuid_offers_isa(c->vm->config.cpuid, insn->info.meta.isa_set);
}

static size_t drop_repeat_prefix(uint8_t *copy, size_t length)
{
    size_t at = copy[0] == 0x66 ? 1 : 0;
    ASSERT(copy[at] == 0xf3);
    for (size_t i = at; i + 1 < length; i++) {
        copy[i] = copy[i + 1];
    }
    return length - 1;
}

/* BT, BTS, BTR, BTC of memory with the bit number in a register: it reaches beyond the operand. */
static bool is_bit_string(const struct insn *insn)
{
    return insn->info.meta.category == ZYDIS_CATEGORY_BITBYTE &&
           insn->operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
           insn->operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           insn->info.mnemonic != ZYDIS_MNEMONIC_BSF && insn->info.mnemonic != ZYDIS_MNEMONIC_BSR;
}

/* Load the bit number of a bit string instruction into SCRATCH2. */
static void load_bit_number(struct compiler *c)
{
    const struct insn_operand *operand = &compiler_insn(c)->operands[1];
    int gpr = rewrite_gpr(operand->reg.value);
    if (is_displaced(c, gpr)) {
        emit_load(&c->e, SCRATCH2, gpr_slot((unsigned)gpr));
    } else {
        emit_move(&c->e, SCRATCH2, home_of(c, gpr));
    }
}

/*
 * The address of the word that holds the bit goes through the check, and the bit number inside it
 * stands for the register. SDM volume 2, 3.1.1.9 (bit strings).
 */
static bool compile_bit_string(struct compiler *c)
{
    c->scratch_group = -1;
    const struct insn *insn = compiler_insn(c);
    struct emitter *e = &c->e;
    bool is_wide = insn->info.operand_width == 64;
    int gpr = rewrite_gpr(insn->operands[1].reg.value);
    struct rewrite_map map = {.memory_base = SCRATCH};
    uint8_t copy[32];
    uint64_t constant;
    if (insn->info.operand_width == 16 || insn->info.address_width != 64) {
        return false;
    }
    for (unsigned i = 0; i < GPR_COUNT; i++) {
        map.host[i] = (uint8_t)i;
    }
    map.host[gpr] = SCRATCH2;
    size_t length = rewrite(insn, &map, copy);
    if (length == 0) {
        return false;
    }
    flags_to_block(c);
    if (compile_address(c, &insn->operands[0], &constant)) {
        emit_constant(e, SCRATCH, constant);
    }
    load_bit_number(c);
    if (!is_wide) {
        emit_registers(e, true, OP_MOVSXD, SCRATCH2, SCRATCH2);
    }
    emit_registers(e, true, 0xc1, 7, SCRATCH2); /* sar scratch2, 6 or 5 */
    emit8(e, is_wide ? 6 : 5);
    emit_lea_full(e, true, SCRATCH, SCRATCH, SCRATCH2, is_wide ? 8 : 4, 0);
    compile_check(c, is_wide ? 8 : 4, insn->info.mnemonic != ZYDIS_MNEMONIC_BT);
    if (is_locked(insn)) {
        compile_line_check(c, is_wide ? 8 : 4);
    }
    load_bit_number(c);
    emit_registers(e, false, 0x83, 4, SCRATCH2); /* and scratch2, 63 or 31 */
    emit8(e, is_wide ? 63 : 31);
    emit_store(e, SCRATCH2, offsetof(struct block, spill[1]));
    flags_to_host(c);
    emit_load(e, SCRATCH2, offsetof(struct block, spill[1]));
    for (size_t i = 0; i < length; i++) {
        emit8(e, copy[i]);
    }
    flags_after(c, insn, false);
    return true;
}

static size_t copy_instruction(struct compiler *c, const struct insn *insn,
                               const struct rewrite_map *map, uint8_t *copy)
{
    size_t length = rewrite(insn, map, copy);
    return length && is_plain_bit_scan(c, insn) ? drop_repeat_prefix(copy, length) : length;
}

bool is_plain_copy(const struct insn *insn)
{
    return !is_locked(insn) && !has_mask(insn) && !loads_mxcsr(insn) && !is_bit_string(insn);
}

bool compile_plain_copy(struct compiler *c, const struct rewrite_map *map)
{
    const struct insn *insn = compiler_insn(c);
    uint8_t copy[32];
    size_t length = copy_instruction(c, insn, map, copy);
    if (length && may_fault(insn)) {
        site_new(c, SITE_FAULT);
    }
    for (size_t i = 0; i < length; i++) {
        emit8(&c->e, copy[i]);
    }
    flags_after(c, insn, false);
    return length;
}

/* Does this scratch register stand for a displaced one? */
static bool map_uses(const struct rewrite_map *map, uint16_t named, unsigned scratch)
{
    for (unsigned left = named; left; left &= left - 1) {
        if (map->host[__builtin_ctz(left)] == scratch) {
            return true;
        }
    }
    return false;
}

/* The check of an instruction that looks at its operand before it is executed. */
static void compile_checked_operand(struct compiler *c, const struct insn *insn,
                                    const struct insn_operand *memory, bool writes)
{
    uint32_t site = c->vm->site_count;
    struct host_place place = compile_operand_check(c, memory, writes, false);
    c->scratch_group = -1;
    c->vm->sites[site].is_masked = has_mask(insn);
    if (place.offset) {
        emit_lea(&c->e, SCRATCH, SCRATCH, place.offset);
    }
    if (is_locked(insn)) {
        compile_line_check(c, memory->size / 8);
    } else if (loads_mxcsr(insn)) {
        compile_mxcsr_check(c);
    }
}

bool compile_copy(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    const struct insn_operand *memory = rewrite_memory_operand(insn);
    struct flag_effects effects = flag_effects(insn);
    const struct insn_operand *high = memory ? find_high_byte(insn) : NULL;
    struct rewrite_map map = {.memory_base = SCRATCH, .high_byte = high ? SCRATCH2 : 0};
    uint8_t copy[32];

    if (is_bit_string(insn)) {
        return compile_bit_string(c);
    }
    struct insn_registers registers = insn->registers;
    for (unsigned i = 0; i < GPR_COUNT; i++) {
        map.host[i] = c->home[i];
    }
    uint16_t named = registers.read | registers.written;
    if ((registers.implicit_read | registers.implicit_written) & 1u << RSP) {
        return false;
    }
    if (memory && (memory->size == 0 || memory->size > 8 * 512)) {
        return false;
    }
    if (!displaced_assign(c, named, memory, &map)) {
        return false;
    }
    size_t length = copy_instruction(c, insn, &map, copy);
    if (length == 0) {
        return false;
    }
    if (is_plain_bit_scan(c, insn)) {
        registers.read |= registers.written; /* BSF of zero leaves the destination */
    }
    bool keeps = memory && !high && !map_uses(&map, named, SCRATCH2) && flags_want_operand(c, insn);
    if (memory) {
        bool writes = memory->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
        if (is_locked(insn) || has_mask(insn) || loads_mxcsr(insn)) {
            compile_checked_operand(c, insn, memory, writes);
        } else {
            bool may_pair = !effects.reads && !high && !keeps && !map_uses(&map, named, SCRATCH2);
            struct host_place place = compile_group_access(c, memory, writes, may_pair);
            map.memory_offset = place.offset;
            if (place.is_pair) {
                map.memory_base = SCRATCH2;
                map.has_index = true;
                map.memory_index = SCRATCH;
            }
        }
        map.memory_register = keeps ? SCRATCH2 : 0;
        if (map.memory_offset || map.has_index || keeps) {
            length = copy_instruction(c, insn, &map, copy);
            ASSERT(length > 0); /* the check is compiled: there is no way back */
        }
    } else if (map_uses(&map, named, SCRATCH)) {
        c->scratch_group = -1;
    }
    if (effects.reads) {
        flags_to_host(c);
    }
    displaced_load(c, registers.read & named, &map);
    if (high) {
        load_high_byte(c, high);
    } else if (keeps) {
        load_operand(c, memory, map.memory_offset);
    }
    if (may_fault(insn)) {
        site_new(c, SITE_FAULT);
    }
    for (size_t i = 0; i < length; i++) {
        emit8(&c->e, copy[i]);
    }
    if (high) {
        store_high_byte(c, high);
    } else if (keeps) {
        store_operand(c, memory, map.memory_offset);
    }
    displaced_store(c, registers.written, memory, &map);
    flags_after(c, insn, keeps);
    return true;
}

bool is_direct_lea(const struct compiler *c, const struct insn *insn)
{
    const struct insn_memory *memory = &insn->operands[1].mem; /* of LEA */
    return insn->info.mnemonic == ZYDIS_MNEMONIC_LEA && insn->info.operand_width != 16 &&
           !is_displaced(c, rewrite_gpr(insn->operands[0].reg.value)) &&
           !is_displaced(c, rewrite_gpr(memory->base)) &&
           !is_displaced(c, rewrite_gpr(memory->index));
}

/* The host register of a guest register that is not displaced, or -1 for none. */
static int direct_register(const struct compiler *c, ZydisRegister name)
{
    int gpr = rewrite_gpr(name);
    return gpr < 0 ? -1 : (int)home_of(c, gpr);
}

void compile_direct_lea(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    const struct insn_memory *memory = &insn->operands[1].mem;
    bool is_relative = memory->base == ZYDIS_REGISTER_RIP || memory->base == ZYDIS_REGISTER_EIP;
    bool is_wide = insn->info.operand_width == 64 && insn->info.address_width == 64;
    unsigned target = (unsigned)direct_register(c, insn->operands[0].reg.value);
    int base = direct_register(c, memory->base), index = direct_register(c, memory->index);
    uint64_t displacement = (uint64_t)memory->displacement;
    if (is_relative) {
        emit_code_address(c, target, displacement + compiler_next_pc(c));
        if (!is_wide) {
            emit_registers(&c->e, false, OP_STORE, target, target); /* its lower half */
        }
    } else if (base < 0 && index < 0) {
        emit_constant(&c->e, target, is_wide ? displacement : (uint32_t)displacement);
    } else {
        emit_lea_full(&c->e, is_wide, target, base, index, memory->scale ? memory->scale : 1,
                      (int32_t)displacement);
    }
}

bool compile_lea(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    struct emitter *e = &c->e;
    int destination = rewrite_gpr(insn->operands[0].reg.value);
    struct insn_operand source = insn->operands[1];
    uint64_t constant;
    if (insn->info.operand_width == 16) {
        return false;
    }
    source.mem.segment = ZYDIS_REGISTER_DS; /* an address is all that is asked for */
    unsigned target = is_displaced(c, destination) ? SCRATCH : home_of(c, destination);
    if (compile_address(c, &source, &constant)) {
        emit_constant(e, target, insn->info.operand_width == 32 ? (uint32_t)constant : constant);
    } else if (insn->info.operand_width == 32) {
        emit_registers(e, false, OP_STORE, SCRATCH, target); /* its lower half */
    } else if (target != SCRATCH) {
        emit_move(e, target, SCRATCH);
    }
    if (is_displaced(c, destination)) {
        emit_store(e, SCRATCH, gpr_slot((unsigned)destination));
        displaced_hold(c, destination, -1);
    }
    return true;
}
