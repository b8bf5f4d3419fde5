/*
 * The compiler: from guest bytes to a unit. It reads as a list of steps:
 *
 *     read    copy the bytes of the page once; everything is decoded from the copy
 *     decode  up to an unconditional branch, the page's end, or the limit
 *     enter   decide where the flags are when the unit is entered, make both entries
 *     emit    each instruction by its kind: copied, rewritten, or left to interp
 *     outline the code for what is rare, behind the straight path
 */
#include "engine/translate/compiler.h"

#include "x86/cpuid.h"

/* ---- sites that leave ---- */

/* A site to leave at by a branch; no instruction faults there. */
static uint32_t site_tested(struct compiler *c, uint64_t pc)
{
    uint32_t site = site_new(c, SITE_POLL);
    c->vm->sites[site].target = pc;
    c->vm->sites[site].resume = 0;
    return site;
}

void compile_poll(struct compiler *c, uint64_t pc, size_t word)
{
    struct emitter *e = &c->e;
    emit_gs(e, false, 0x83, 7, word); /* cmp dword gs:[word], 0 */
    emit8(e, 0);
    uint8_t *branch = emit_branch_forward(e, CONDITION_NZ);
    outline(c, OUTLINE_POLL, branch, site_tested(c, pc), 0);
}

void compile_deadline_check(struct compiler *c, uint64_t pc)
{
    struct emitter *e = &c->e;
    if (!c->counts) {
        return;
    }
    c->uncounted = 0;
    emit_load(e, SCRATCH2, offsetof(struct block, vcpu.instructions));
    emit_gs(e, true, OP_CMP, SCRATCH2, offsetof(struct block, units_until));
    uint8_t *branch = emit_branch_forward(e, CONDITION_AE);
    outline(c, OUTLINE_TIME, branch, site_tested(c, pc), 0);
}

void count_instructions(struct compiler *c, int ahead)
{
    if (!c->counts) {
        return;
    }
    struct emitter *e = &c->e;
    if (c->uncounted + ahead) {
        emit_load(e, SCRATCH2, offsetof(struct block, vcpu.instructions));
        emit_lea(e, SCRATCH2, SCRATCH2, c->uncounted + ahead);
        emit_store(e, SCRATCH2, offsetof(struct block, vcpu.instructions));
    }
    c->uncounted = -ahead;
    c->counted = ahead > 0;
}

/* Run the current instruction in interp. Returns the site. */
static struct site *emit_execute(struct compiler *c)
{
    groups_forget(c);
    count_instructions(c, 0);
    c->counted = true; /* by interp */
    flags_to_block(c);
    registers_leave(c);
    uint32_t site = site_new(c, SITE_EXECUTE);
    emit_constant(&c->e, SCRATCH2, site);
    emit_jump(&c->e, c->vm->stubs.execute);
    return &c->vm->sites[site];
}

void compile_execute(struct compiler *c)
{
    struct site *site = emit_execute(c);
    site->resume = emit_offset(&c->e);
    registers_enter(c);
}

/* The same for an instruction behind which nothing is emitted. */
static void compile_execute_last(struct compiler *c)
{
    emit_execute(c)->resume = 0;
    c->ended = true;
}

void emit_code_address(struct compiler *c, unsigned reg, uint64_t address)
{
    if (!(c->mode & MODE_ANYWHERE)) {
        emit_constant(&c->e, reg, address);
        return;
    }
    /* An operand's distance from its instruction is 32 bits: from the page it may be more. */
    int64_t distance = (int64_t)address - 1; /* binding_of() is one more than the page */
    int32_t first = distance > INT32_MAX ? INT32_MAX : (int32_t)distance;
    emit_load(&c->e, reg, offsetof(struct block, code_page));
    emit_lea(&c->e, reg, reg, first);
    if (distance != first) {
        emit_lea(&c->e, reg, reg, (int32_t)(distance - first));
    }
}

/* ---- decode ---- */

/* A debugger's breakpoint: the run loop has to see it. */
static bool is_break(const struct compiler *c, unsigned offset)
{
    const struct debug *debug = c->block->vcpu.debug;
    return debug && debug_has_break(debug->points, c->virtual_page + offset);
}

static void decode_unit(struct compiler *c)
{
    unsigned offset = c->unit->offset;
    unsigned conditions = 0;
    c->end_result = DECODE_OK;
    while (c->count < UNIT_MAX_INSTRUCTIONS && offset < PAGE_SIZE) {
        struct insn *insn = &c->insns[c->count];
        c->offsets[c->count] = (uint16_t)offset;
        c->end_result = decode(DECODE_64, c->work->page + offset, PAGE_SIZE - offset, insn);
        if (c->end_result != DECODE_OK) {
            break;
        }
        offset += insn->info.length;
        c->count++;
        conditions += insn->info.meta.category == ZYDIS_CATEGORY_COND_BR;
        if (is_end(insn) || conditions == UNIT_MAX_CONDITIONS || is_break(c, offset) ||
            source_ends(c, insn, offset - c->unit->offset)) {
            break;
        }
    }
    c->offsets[c->count] = (uint16_t)offset;
}

/* An instruction that begins in one page and ends in the next makes a unit of its own. */
static void decode_across(struct compiler *c)
{
    unsigned offset = c->unit->offset;
    c->offsets[0] = (uint16_t)offset;
    c->end_result = decode(DECODE_64, c->work->page + offset, INSN_MAX_LENGTH, &c->insns[0]);
    if (c->end_result == DECODE_OK) {
        c->count = 1;
    }
    c->offsets[1] = (uint16_t)(offset + (c->count ? c->insns[0].info.length : 1));
}

bool crosses_page(const struct compiler *c, uint64_t pc)
{
    unsigned offset = pc & (PAGE_SIZE - 1);
    struct insn insn;
    return offset + INSN_MAX_LENGTH > PAGE_SIZE &&
           decode(DECODE_64, c->work->page + offset, PAGE_SIZE - offset, &insn) == DECODE_TRUNCATED;
}

/* ---- emit ---- */

static bool is_vector_allowed(const struct compiler *c, const struct insn *insn)
{
    switch (insn->info.encoding) {
    case ZYDIS_INSTRUCTION_ENCODING_EVEX:
        return c->mode & MODE_AVX512;
    case ZYDIS_INSTRUCTION_ENCODING_VEX:
        return c->mode & MODE_AVX;
    default:
        break;
    }
    switch (insn->info.meta.isa_ext) {
    case ZYDIS_ISA_EXT_X87:
    case ZYDIS_ISA_EXT_MMX:
        return c->mode & MODE_FPU;
    default:
        return c->mode & MODE_SSE;
    }
}

static bool compile_by_mnemonic(struct compiler *c)
{
    switch (compiler_insn(c)->info.mnemonic) {
    case ZYDIS_MNEMONIC_PUSH:
        return compile_push(c);
    case ZYDIS_MNEMONIC_POP:
        return compile_pop(c);
    case ZYDIS_MNEMONIC_LEAVE:
        return compile_leave(c);
    case ZYDIS_MNEMONIC_CALL:
        return compile_call(c);
    case ZYDIS_MNEMONIC_RET:
        return compile_return(c);
    case ZYDIS_MNEMONIC_JMP:
        return compile_jump(c);
    case ZYDIS_MNEMONIC_LEA:
        return compile_lea(c);
    case ZYDIS_MNEMONIC_PUSHFQ:
        return compile_pushf(c);
    case ZYDIS_MNEMONIC_POPFQ:
        return compile_popf(c);
    default:
        return compile_system(c);
    }
}

static bool is_offered(const struct compiler *c, const struct insn *insn)
{
    return insn->info.mnemonic == ZYDIS_MNEMONIC_TZCNT ||
           insn->info.mnemonic == ZYDIS_MNEMONIC_LZCNT || /* else they are BSF and BSR */
           cpuid_offers_isa(c->vm->config.cpuid, insn->info.meta.isa_set);
}

bool is_copied_here(const struct compiler *c, const struct insn *insn)
{
    return is_offered(c, insn) && is_copied(insn) && !is_by_mnemonic(insn) &&
           (is_general(insn) || is_vector_allowed(c, insn));
}

static void compile_instruction(struct compiler *c)
{
    const struct insn *insn = compiler_insn(c);
    if (is_nothing(insn) || compile_variable(c)) {
        return;
    }
    if (!is_offered(c, insn)) {
        compile_execute_last(c);
    } else if (is_direct_lea(c, insn)) {
        compile_direct_lea(c);
    } else if (is_by_mnemonic(insn)) {
        c->scratch_group = -1;
        if (compile_by_mnemonic(c)) {
            return;
        }
        if (is_end(insn) || insn->info.meta.category == ZYDIS_CATEGORY_CALL) {
            compile_execute_last(c);
        } else {
            compile_execute(c);
        }
    } else if (insn->info.meta.category == ZYDIS_CATEGORY_COND_BR) {
        if (!compile_condition(c)) {
            compile_execute(c);
        }
    } else if (is_repeated_move(insn) && !c->counts && compiler_optimizes(c, OPTIMIZE_STRINGS)) {
        compile_repeated_move(c);
    } else if (is_end(insn)) {
        compile_execute_last(c);
    } else if (!is_copied_here(c, insn) || !compile_copy(c)) {
        compile_execute(c);
    } else if ((c->mode & MODE_ANYWHERE) && moves_x87_pointer(insn)) {
        emit_load(&c->e, SCRATCH2, offsetof(struct block, code_page)); /* for x87.c */
        emit_store(&c->e, SCRATCH2, offsetof(struct block, x87_page));
    }
}

/* ---- the unit's entries ---- */

/* Is the flags' home needed before anything else overwrites them? */
static enum flags_home first_need(const struct compiler *c)
{
    for (unsigned i = 0; i < c->count; i++) {
        const struct insn *insn = &c->insns[i];
        struct flag_effects effects = flag_effects(insn);
        bool copied = !is_by_mnemonic(insn) && is_copied(insn) && !rewrite_memory_operand(insn) &&
                      insn->info.meta.category != ZYDIS_CATEGORY_COND_BR && !is_end(insn) &&
                      is_general(insn) && insn->info.mnemonic != ZYDIS_MNEMONIC_DIV &&
                      insn->info.mnemonic != ZYDIS_MNEMONIC_IDIV;
        if (insn->info.meta.category == ZYDIS_CATEGORY_COND_BR) {
            return FLAGS_HOST;
        }
        if (!copied && !is_nothing(insn) && insn->info.mnemonic != ZYDIS_MNEMONIC_LEA) {
            return FLAGS_SAVED;
        }
        if (effects.reads) {
            return FLAGS_HOST;
        }
        if (effects.writes) {
            return FLAGS_BOTH; /* dead: nobody looks at them before they are written */
        }
    }
    return FLAGS_SAVED;
}

static void emit_entries(struct compiler *c)
{
    struct unit *unit = c->unit;
    switch (c->counts || c->checks ? FLAGS_SAVED : first_need(c)) {
    case FLAGS_SAVED:
        unit->host_entry = emit_offset(&c->e);
        c->flags = FLAGS_HOST;
        flags_to_block(c);
        unit->saved_entry = emit_offset(&c->e);
        c->flags = FLAGS_SAVED;
        compile_deadline_check(c, c->virtual_page + unit->offset);
        if (c->checks) {
            source_emit_check(c);
        }
        break;
    case FLAGS_HOST:
        unit->saved_entry = emit_offset(&c->e);
        c->flags = FLAGS_SAVED;
        flags_to_host(c);
        unit->host_entry = emit_offset(&c->e);
        c->flags = FLAGS_HOST;
        break;
    default: /* nobody looks at them before they are written */
        unit->saved_entry = unit->host_entry = emit_offset(&c->e);
        c->flags = FLAGS_HOST;
        break;
    }
}

static void emit_unit(struct compiler *c)
{
    for (c->current = 0; c->current < c->count && !c->ended; c->current++) {
        /* May move c->current on, over a run of pushes or pops. */
        unsigned first = c->current;
        c->counted = false;
        if (c->marks) {
            trace_mark(c->marks, emit_offset(&c->e), c->offsets[first], false);
        }
        flags_before(c, &c->insns[first]);
        compile_instruction(c);
        for (unsigned i = first; i <= c->current; i++) {
            groups_after(c, &c->insns[i]);
            recipe_after(c, &c->insns[i]);
        }
        c->uncounted = !c->counts   ? 0
                       : c->counted ? 0
                                    : c->uncounted + (int)(c->current - first) + 1;
    }
    if (c->ended) {
        return;
    }
    if (c->count > 0 && (c->end_result == DECODE_OK || c->end_result == DECODE_TRUNCATED)) {
        /* The limit, the page's end, or a unit of its own for an instruction across the pages. */
        c->current = c->count - 1;
        count_instructions(c, 0);
        compile_direct(c, 0xe9, compiler_next_pc(c));
    } else {
        /* Not an instruction, or its second page is not there: interp meets the exception. */
        c->current = c->count;
        compile_execute_last(c);
    }
}

/* Copy the bytes to decode, once. False if they are not in RAM. */
static bool read_pages(struct compiler *c, gpa_t gpa, uint64_t second_page)
{
    struct memory *memory = c->vm->config.memory;
    uint8_t *page = c->work->page;
    unsigned first = gpa & (PAGE_SIZE - 1), end = first + UNIT_MAX_INSTRUCTIONS * INSN_MAX_LENGTH;
    const unsigned tail = PAGE_SIZE - INSN_MAX_LENGTH;
    bool reaches_tail = end >= tail;
    end = reaches_tail ? PAGE_SIZE : end;
    gpa -= first;
    return memory_read(memory, gpa + first, page + first, end - first) == 0 &&
           /* Exits look at their targets there: crosses_page(). */
           (reaches_tail || memory_read(memory, gpa + tail, page + tail, INSN_MAX_LENGTH) == 0) &&
           (second_page == NO_PAGE ||
            memory_read(memory, second_page << PAGE_SHIFT, page + PAGE_SIZE, INSN_MAX_LENGTH) == 0);
}

/* The exit back to the unit's own start with flags that can be made again, or NULL. */
static const struct site *find_loop(const struct compiler *c)
{
    for (uint32_t i = c->unit->first_site; i < c->vm->site_count; i++) {
        const struct site *site = &c->vm->sites[i];
        if (site->kind == SITE_CHAIN && site->target == c->virtual_page + c->unit->offset &&
            site->flags_home == FLAGS_HOST && site->recipe.kind != RECIPE_NONE) {
            return site;
        }
    }
    return NULL;
}

/* A body for the rounds after the first that need not save the flags: a recipe does instead. */
static void emit_loop_body(struct compiler *c, unsigned end)
{
    unsigned count = c->count;
    c->flags = FLAGS_RECIPE;
    c->recipe = c->unit->loop_recipe;
    c->ended = false;
    c->count = end;
    emit_unit(c);
    c->count = count;
}

/*
 * A loop: its rounds after the first begin with flags that the recipe of its last comparison makes.
 * In hot code they are rounds without checks, if they can be; where they end, and elsewhere, the
 * body follows once more, up to the branch back, unless the first one does as well.
 */
static void emit_loop(struct compiler *c)
{
    enum { LONGEST = UNIT_MAX_INSTRUCTIONS / 2 };
    const struct site *loop = find_loop(c);
    unsigned end = 0;
    if (!loop || c->counts || c->checks || !compiler_optimizes(c, OPTIMIZE_LOOPS)) {
        return;
    }
    enum flags_home need = first_need(c);
    while (c->offsets[end] <= loop->offset) {
        end++;
    }
    if (end > LONGEST || need == FLAGS_HOST) {
        return;
    }
    struct recipe recipe = loop->recipe;
    groups_forget(c);
    uint8_t *before = c->e.at;
    emit_alignment(&c->e, 32); /* nothing runs into it */
    uint32_t start = emit_offset(&c->e);
    bool strides = c->unit->has_slots && compiler_optimizes(c, OPTIMIZE_STRIDES) &&
                   compile_stride(c, end, &recipe);
    if (!strides && need != FLAGS_SAVED) {
        c->e.at = before;
        return;
    }
    c->unit->loop_entry = start;
    c->unit->loop_recipe = recipe;
    if (need == FLAGS_SAVED) {
        emit_loop_body(c, end);
    } else {
        emit_jump(&c->e, c->unit->host_entry);
    }
}

static uint32_t unit_host_bytes(const struct unit *unit)
{
    uint32_t size = 0;
    for (unsigned i = 0; i < PARTS; i++) {
        size += unit->parts[i].end - unit->parts[i].start;
    }
    return size;
}

/* Emit everything; the unit's extent is known afterwards. */
static void emit_all(struct compiler *c)
{
    struct unit *unit = c->unit;
    struct extent *straight = &unit->parts[PART_STRAIGHT], *outlines = &unit->parts[PART_OUTLINES];
    straight->start = emit_offset(&c->e);
    outlines->start = c->vm->cache.parts[PART_OUTLINES].start;
    if (c->checks) {
        source_emit_exit(c);
    }
    emit_entries(c);
    emit_unit(c);
    emit_loop(c);
    straight->end = emit_offset(&c->e);
    c->e.at = c->e.base + outlines->start;
    emit_outlines(c);
    if (c->checks) {
        source_emit_record(c);
    }
    outlines->end = emit_offset(&c->e);
    ASSERT(unit_host_bytes(unit) <= UNIT_MAX_HOST_BYTES);
    unit->site_count = c->vm->site_count - unit->first_site;
    unsigned last = c->offsets[c->count] + (c->end_result == DECODE_OK ? 0u : INSN_MAX_LENGTH);
    unit->length = (uint16_t)((last < PAGE_SIZE ? last : PAGE_SIZE) - unit->offset);
}

static bool is_hot(struct translate_vm *vm, const struct unit *unit)
{
    return vm->config.code.hot == HOT_ALL ||
           ((unit->mode & MODE_USER) && page_find(vm, unit->page)->is_hot);
}

static void count_unit(const struct compiler *c, uint64_t start)
{
    const struct unit *unit = c->unit;
    uint64_t *values = c->block->vcpu.counters->values;
    uint32_t size = c->offsets[c->count] - unit->offset;
    counter_add(&values[COUNT_UNITS_MADE], 1);
    counter_add(&values[COUNT_UNIT_INSTRUCTIONS], c->count);
    counter_add(&values[COUNT_UNIT_GUEST_BYTES], size);
    counter_add(&values[COUNT_UNIT_HOST_BYTES], unit_host_bytes(unit));
    counter_add(&values[COUNT_TRANSLATION_CYCLES], engine_host_tsc() - start);
    if (c->marks) {
        trace_unit_made(c->block, unit, c->marks, c->work->page, size, c->count);
    }
}

bool compile(struct block *block, gva_t gva, gpa_t gpa, uint64_t second_page, uint16_t mode,
             bool checks)
{
    static _Thread_local struct workspace work;
    struct translate_vm *vm = block->vm;
    uint64_t start = engine_host_tsc();
    struct unit *unit = &vm->units[vm->unit_count];
    *unit = (struct unit){
        .page = gpa >> PAGE_SHIFT,
        .second_page = NO_PAGE,
        .virtual_page = mode & MODE_ANYWHERE ? 0 : align_down(gva, PAGE_SIZE),
        .offset = gpa & (PAGE_SIZE - 1),
        .mode = mode,
        .first_site = vm->site_count,
    };
    unit->has_slots = is_hot(vm, unit);
    struct compiler c = {
        .e = {.at = vm->cache.write + align_up(vm->cache.parts[PART_STRAIGHT].start, 16),
              .base = vm->cache.write,
              .has_bmi2 = __builtin_cpu_supports("bmi2")},
        .vm = vm,
        .block = block,
        .unit = unit,
        .mode = mode,
        .virtual_page = unit->virtual_page,
        .work = &work,
        .insns = work.insns,
        .scratch_group = -1,
        .counts = vm->config.time_mode == TIME_DETERMINISTIC,
        .checks = checks,
        .marks = trace_marks_begin(vm),
    };
    if (!read_pages(&c, gpa, second_page)) {
        return false;
    }
    decode_unit(&c);
    if (c.count == 0 && c.end_result == DECODE_TRUNCATED && second_page != NO_PAGE) {
        unit->second_page = second_page;
        decode_across(&c);
    }
    registers_assign(&c);
    if (checks && !source_init(&c)) {
        return false;
    }
    emit_all(&c);
    for (unsigned i = 0; i < PARTS; i++) {
        cache_advance(&vm->cache, (enum part)i, unit->parts[i].end);
    }
    vm->unit_count++;
    if (checks) {
        unit_limit_versions(vm, unit);
        vm->had_checked_units = true;
        page_hold_checked(vm, unit->page);
        page_hold_checked(vm, unit->second_page);
    }
    unit_add(vm, unit);
    count_unit(&c, start);
    return true;
}
