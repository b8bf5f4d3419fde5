/*
 * What units call: misses of the soft TLB, instructions that interp executes, exits that are not
 * linked yet. Each helper returns the host address at which to go on.
 *
 * Built for general registers only: guest vector state is in the CPU meanwhile. Where that does
 * not do (Zydis, device models) it is saved first: vectors_save().
 */
#include <immintrin.h>

#include "engine/mmu.h"
#include "engine/translate/internal.h"
#include "x86/cpuid.h"

/* ---- state together and apart ---- */

void block_gather(struct block *block)
{
    struct cpu_state *state = &block->vcpu.state;
    uint64_t flags = block->saved_flags >> 8 & (FLAGS_ARITHMETIC & 0xff);
    flags |= block->saved_flags & 1 ? FLAG_OF : 0;
    flags |= block->interrupt_flag ? FLAG_IF : 0;
    state->rflags = (state->rflags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_IF)) | flags | FLAG_FIXED;
}

void block_scatter(struct block *block)
{
    /* RF matters to instruction breakpoints only, and with those in force interp runs. */
    if (!(block->mode & MODE_INTERPRET)) {
        block->vcpu.state.rflags &= ~(uint64_t)FLAG_RF;
    }
    uint64_t flags = block->vcpu.state.rflags;
    block->saved_flags = (uint16_t)((flags & 0xff) << 8 | (flags & FLAG_OF ? 1 : 0));
    block->interrupt_flag = flags & FLAG_IF ? 1 : 0;
}

/*
 * The x87 unit remembers where its last instruction and operand were, in host addresses: give the
 * guest its own instruction's address. The operand's is not known any more and reads as zero, as
 * on CPUs that keep it only for unmasked exceptions (CPUID.7.EBX[6]). SDM volume 1, 8.1.8.
 */
static void hide_x87_pointers(struct block *block, uint8_t *xsave)
{
    enum { XSAVE_FOP = 6, XSAVE_FIP = 8, XSAVE_FDP = 16 };
    struct translate_vm *vm = block->vm;
    uint64_t host = load_le64(xsave + XSAVE_FIP) - (uint64_t)vm->cache.run;
    if (host >= vm->cache.size) {
        return;
    }
    uint64_t pc = 0;
    const struct unit *unit = unit_at(vm, host + (uint64_t)vm->cache.run);
    for (uint32_t i = 0; unit && i < unit->site_count; i++) {
        const struct site *site = &vm->sites[unit->first_site + i];
        if (site->kind == SITE_FAULT && site->resume == host) {
            pc = unit->virtual_page + site->offset;
        }
    }
    store_le64(xsave + XSAVE_FIP, pc);
    store_le64(xsave + XSAVE_FDP, 0);
    store_le16(xsave + XSAVE_FOP, 0);
}

void vectors_save(struct block *block)
{
    if (!block->vectors_live) {
        return;
    }
    uint32_t low = (uint32_t)block->xcr0_host, high = (uint32_t)(block->xcr0_host >> 32);
    __asm__ volatile("xsave64 %0" : "+m"(block->vcpu.state.xsave) : "a"(low), "d"(high) : "memory");
    /* C code must not meet the guest's rounding or unmasked exceptions. */
    static const uint32_t default_mxcsr = 0x1f80;
    __asm__ volatile("ldmxcsr %0" : : "m"(default_mxcsr));
    block->vectors_live = false;
    hide_x87_pointers(block, block->vcpu.state.xsave);
}

void vectors_restore(struct block *block)
{
    if (block->vectors_live) {
        return;
    }
    uint32_t low = (uint32_t)block->xcr0_host, high = (uint32_t)(block->xcr0_host >> 32);
    if (!(block->xcr0_host & XCR0_AVX) && __builtin_cpu_supports("avx")) {
        /* What C code left in the upper halves would slow the guest's SSE down. */
        __asm__ volatile("vzeroupper");
    }
    __asm__ volatile("xrstor64 %0"
                     :
                     : "m"(block->vcpu.state.xsave), "a"(low), "d"(high)
                     : "memory");
    block->vectors_live = true;
}

/* ---- modes ---- */

static bool is_flat64(const struct cpu_state *state)
{
    return cpu_state_is_64bit(state) && (state->cr0 & CR0_PG);
}

static uint16_t mode_of(const struct cpu_state *state)
{
    unsigned cpl = cpu_state_cpl(state);
    uint16_t mode = MODE_CODE64;
    bool has_breakpoints = state->dr7 & 0xff;
    bool checks_alignment = cpl == 3 && (state->cr0 & CR0_AM) && (state->rflags & FLAG_AC);
    if (!is_flat64(state) || cpl == 1 || cpl == 2 || (state->rflags & FLAG_TF) || has_breakpoints ||
        checks_alignment) {
        return MODE_INTERPRET;
    }
    mode |= cpl == 3 ? MODE_USER : 0;
    mode |= cpl == 3 && (state->cr4 & CR4_TSD) ? MODE_TSD : 0;
    mode |= state->cr4 & CR4_FSGSBASE ? MODE_FSGSBASE : 0;
    if (!(state->cr0 & (CR0_EM | CR0_TS))) {
        mode |= MODE_FPU;
        mode |= state->cr4 & CR4_OSFXSR ? MODE_SSE : 0;
        if ((state->cr4 & CR4_OSXSAVE) && (state->xcr0 & XCR0_AVX)) {
            mode |= MODE_AVX;
            mode |= (state->xcr0 & XCR0_AVX512) == XCR0_AVX512 ? MODE_AVX512 : 0;
        }
    }
    return mode;
}

void block_renew_mode(struct block *block)
{
    uint16_t mode = mode_of(&block->vcpu.state);
    if (mode == block->mode) {
        return;
    }
    enum privilege from = mode_privilege(block->mode), to = mode_privilege(mode);
    block->mode = mode;
    if (mode & MODE_INTERPRET) {
        stack_reset(block, PRIVILEGE_KERNEL);
        stack_reset(block, PRIVILEGE_USER);
        return;
    }
    if (from != to) {
        block->stacks[from] = block->stack;
        block->stack = block->stacks[to];
    }
    if (block->stack_mode[to] != mode) {
        /* Landing pads and look-ups of another mode must not be met. */
        block->stack_mode[to] = mode;
        space_forget_lookups(block, to);
    }
}

/* ---- finding units ---- */

static void note_exec_page(struct block *block, gva_t gva)
{
    unsigned bit = exec_page_bit(gva);
    block->exec_pages[mode_privilege(block->mode)][bit >> 6] |= 1ull << (bit & 63);
}

enum step block_translate_fetch(struct block *block, gva_t rip, gpa_t *ret_gpa)
{
    struct exec_entry *entry =
        &block->exec_tlb[mode_privilege(block->mode)][rip >> PAGE_SHIFT & (EXEC_ENTRIES - 1)];
    gva_t page = align_down(rip, PAGE_SIZE);
    if (entry->gva_page != page) {
        bool global;
        gpa_t gpa;
        enum step step = mmu_translate_fetch(&block->vcpu, rip, &gpa, &global);
        if (step != STEP_NEXT) {
            return step;
        }
        entry->gva_page = page;
        entry->gpa_page = align_down(gpa, PAGE_SIZE);
        block->kernel_is_local |= !global && !(block->mode & MODE_USER);
        note_exec_page(block, rip);
    }
    *ret_gpa = entry->gpa_page | (rip & (PAGE_SIZE - 1));
    return STEP_NEXT;
}

uint64_t block_second_page(struct block *block, gva_t rip)
{
    gpa_t gpa;
    if ((rip & (PAGE_SIZE - 1)) + INSN_MAX_LENGTH <= PAGE_SIZE ||
        block_translate_fetch(block, align_down(rip, PAGE_SIZE) + PAGE_SIZE, &gpa) != STEP_NEXT) {
        return NO_PAGE;
    }
    return gpa >> PAGE_SHIFT;
}

static uint64_t leave(struct block *block, enum leave_reason reason)
{
    block->reason = reason;
    return cache_address(block->vm, block->vm->stubs.leave);
}

static uint64_t leave_step(struct block *block, enum step step)
{
    block->step = step;
    return leave(block, LEAVE_STEP);
}

static struct jump_entry *jump_entry(struct block *block, uint64_t rip, uint16_t mode)
{
    if (mode & MODE_PLAIN) {
        return &block->plain_jumps[rip & (PLAIN_ENTRIES - 1)];
    }
    return &block_jumps(block, mode_privilege(mode))[rip & (JUMP_ENTRIES - 1)];
}

/* The unit at rip in this mode, or 0 if there is none yet (or its page is not there). */
static uint64_t find(struct block *block, uint64_t rip, uint16_t mode)
{
    struct translate_vm *vm = block->vm;
    struct jump_entry *jump = jump_entry(block, rip, mode);
    gpa_t gpa;
    if (jump->gva == rip) {
        return jump->host;
    }
    if (block_translate_fetch(block, rip, &gpa) != STEP_NEXT) {
        return 0;
    }
    uint64_t second = block_second_page(block, rip);
    pthread_mutex_lock(&vm->lock);
    struct unit *unit = unit_find(vm, gpa >> PAGE_SHIFT, second, gpa & (PAGE_SIZE - 1),
                                  align_down(rip, PAGE_SIZE), mode);
    uint64_t host = unit ? cache_address(vm, unit->saved_entry) : 0;
    pthread_mutex_unlock(&vm->lock);
    if (host) {
        jump->gva = rip;
        jump->host = host;
        block->space->jumps_filled = true;
    }
    return host;
}

/* Go on at state.rip in a mode; the run loop translates, or meets a fetch fault again. */
static uint64_t continue_in(struct block *block, uint16_t mode)
{
    uint64_t host = find(block, block->vcpu.state.rip, mode);
    block->wanted_mode = mode;
    return host ? host : leave(block, LEAVE_TRANSLATE);
}

uint64_t block_continue(struct block *block)
{
    if (block->mode & MODE_INTERPRET) {
        return leave(block, LEAVE_AGAIN);
    }
    return continue_in(block, block->mode);
}

uint64_t block_continue_plain(struct block *block)
{
    return continue_in(block, block->mode | MODE_PLAIN);
}

/* ---- kicks ---- */

/* Look at what others want of this vCPU. Gathered state. False: leave for the run loop. */
static bool poll_kicks(struct block *block)
{
    block->poll_now = 0;
    uint32_t kicks = atomic_load(&block->vcpu.kicks);
    if (kicks & KICK_CODE) {
        atomic_fetch_and(&block->vcpu.kicks, ~(uint32_t)KICK_CODE);
        spaces_forget_code(block);
        block->decoded_valid = false;
    }
    if (kicks & KICK_INTERRUPT && !(block->vcpu.state.rflags & FLAG_IF)) {
        kicks &= ~(uint32_t)KICK_INTERRUPT; /* STI and POPF look again */
    }
    return !(kicks & ~(uint32_t)KICK_CODE);
}

/* After C code has changed the state: go on in units, or leave. */
static uint64_t resume(struct block *block, uint64_t inline_address)
{
    uint16_t mode = block->mode;
    block_renew_mode(block);
    bool quiet = atomic_load(&block->vcpu.kicks) == 0 || poll_kicks(block);
    block_scatter(block);
    if (!quiet) {
        return leave(block, LEAVE_AGAIN);
    }
    vectors_restore(block);
    if (inline_address && mode == block->mode) {
        return inline_address;
    }
    return block_continue(block);
}

/* ---- instructions in interp ---- */

/*
 * Where a helper was called from, taken before anything that may wait: while a vCPU waits, another
 * may forget all units, and then site numbers mean something else.
 */
struct place {
    uint64_t rip;
    gpa_t gpa;
    const struct unit *unit;
    uint64_t inline_address; /* behind the instruction, or 0 */
    uint64_t retry_address;  /* of the soft TLB check */
    uint32_t generation, drops;
    int uncounted;
    unsigned length; /* of the instruction, where its site says so (site.size) */
};

/* Run an instruction on two values and keep its flags as LAHF and SETO leave them. */
#define MAKE_FLAGS(instruction, x, y, result)                                                      \
    __asm__(instruction " %2, %1; lahf; seto %%al" : "=a"(result), "+r"(x) : "r"(y) : "cc")

/* The flags of a place where they were neither saved nor in the CPU. */
static uint16_t recipe_flags(const uint64_t *gpr, const struct recipe *recipe)
{
    uint64_t x = gpr[recipe->first], result;
    uint64_t y = recipe->second >= 0 ? gpr[recipe->second] : (uint64_t)(int64_t)recipe->immediate;
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

static struct place place_of(struct block *block, uint32_t number)
{
    const struct translate_vm *vm = block->vm;
    const struct site *site = &vm->sites[number];
    if (site->flags_home == FLAGS_RECIPE) {
        block->saved_flags = recipe_flags(block->vcpu.state.gpr, &site->recipe);
    }
    const struct unit *unit = &vm->units[site->unit];
    bool is_inline = site->kind == SITE_EXECUTE && site->resume;
    return (struct place){
        .rip = unit->virtual_page + site->offset,
        .gpa = unit->page << PAGE_SHIFT | site->offset,
        .unit = unit,
        .inline_address = is_inline ? cache_address(vm, site->resume) : 0,
        .retry_address = cache_address(vm, site->resume),
        .generation = vm->generation,
        .drops = block->drops,
        .uncounted = site->uncounted,
        .length = site->size,
    };
}

/*
 * May the unit of a place be entered again in the middle? It must be the same, and the host
 * addresses that it may hold (compile_group.c) must still be good.
 */
static bool is_current(const struct block *block, const struct place *place)
{
    return block->vm->generation == place->generation && block->drops == place->drops &&
           !place->unit->is_retired;
}

/* The decoded instruction at a place, or NULL if its bytes cross the page or are invalid. */
static const struct insn *decoded_find(struct block *block, gpa_t gpa)
{
    if (!block->decoded_valid) {
        for (unsigned i = 0; i < DECODED_ENTRIES; i++) {
            block->decoded[i].key = UINT64_MAX;
        }
        block->decoded_valid = true;
    }
    struct decoded *entry = &block->decoded[(gpa ^ gpa >> 8) & (DECODED_ENTRIES - 1)];
    if (entry->key != gpa) {
        uint8_t bytes[INSN_MAX_LENGTH];
        unsigned room = PAGE_SIZE - (gpa & (PAGE_SIZE - 1));
        unsigned count = room < sizeof bytes ? room : sizeof bytes;
        if (memory_read(block->vm->config.memory, gpa, bytes, count) < 0) {
            return NULL;
        }
        vectors_save(block);
        entry->key = UINT64_MAX;
        if (decode(DECODE_64, bytes, count, &entry->insn) != DECODE_OK) {
            return NULL;
        }
        entry->key = gpa;
    }
    return &entry->insn;
}

static enum step deliver(struct block *block, enum step step)
{
    return step == STEP_EXCEPTION ? interp_deliver_exception(&block->vcpu) : step;
}

static uint64_t execute(struct block *block, const struct place *place)
{
    struct vcpu *vcpu = &block->vcpu;
    enum step step;

    block_gather(block);
    vcpu->state.rip = place->rip;
    vcpu->instructions += (uint64_t)place->uncounted;
    const struct insn *insn = decoded_find(block, place->gpa);
    if (insn) {
        if (interp_uses_vector_state(insn)) {
            vectors_save(block);
        }
        step = deliver(block, interp_execute(vcpu, insn));
    } else {
        vectors_save(block);
        step = interp_step(vcpu);
    }
    if (step == STEP_NEXT && vcpu->state.interrupt_shadow) {
        vectors_save(block);
        step = interp_step(vcpu); /* no interrupt may come between: SDM volume 3, 6.8.3 */
    }
    if (step != STEP_NEXT) {
        block_renew_mode(block);
        block_scatter(block);
        return leave_step(block, step);
    }
    bool goes_on =
        insn && is_current(block, place) && vcpu->state.rip == place->rip + insn->info.length;
    return resume(block, goes_on ? place->inline_address : 0);
}

uint64_t helper_execute(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    return execute(block, &place);
}

uint64_t helper_fault(struct block *block, uint32_t number)
{
    if (block->vm->sites[number].kind == SITE_POLL) {
        return helper_poll(block, number);
    }
    return helper_execute(block, number);
}

/* ---- misses ---- */

static uint64_t deliver_fault(struct block *block, const struct place *place)
{
    block_gather(block);
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    enum step step = interp_deliver_exception(&block->vcpu);
    if (step != STEP_NEXT) {
        block_renew_mode(block);
        block_scatter(block);
        return leave_step(block, step);
    }
    return resume(block, 0);
}

/* At this place again, but by its address: the unit is not the same any more. */
static uint64_t start_over(struct block *block, const struct place *place)
{
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    return block_continue(block);
}

/* The same, without the group of operands that does not fit here. */
static uint64_t start_over_plain(struct block *block, const struct place *place)
{
    block->vcpu.state.rip = place->rip;
    block->vcpu.instructions += (uint64_t)place->uncounted;
    return continue_in(block, block->mode | MODE_PLAIN);
}

uint64_t helper_memory(struct block *block, uint32_t number)
{
    const struct site *site = &block->vm->sites[number];
    struct place place = place_of(block, number);
    bool is_group = site->is_group;
    gva_t gva = block->address;
    bool crosses = (gva & (PAGE_SIZE - 1)) + site->size > PAGE_SIZE || site->size == 255;
    if (crosses && is_group) {
        return start_over_plain(block, &place);
    }
    if (crosses || !is_canonical(gva) || site->is_masked) {
        return execute(block, &place);
    }
    uint32_t access =
        (site->kind == SITE_WRITE ? PF_WRITE : 0) | (block->mode & MODE_USER ? PF_USER : 0);
    switch (tlb_fill(&block->vcpu, gva, access)) {
    case TLB_FILLED:
        return is_current(block, &place) ? place.retry_address : start_over(block, &place);
    case TLB_FAULT:
        return is_group ? start_over_plain(block, &place) : deliver_fault(block, &place);
    case TLB_SLOW:
        if (is_group) {
            return start_over_plain(block, &place);
        }
        break;
    }
    return execute(block, &place);
}

/* ---- exits ---- */

uint64_t helper_poll(struct block *block, uint32_t number)
{
    place_of(block, number); /* for the flags */
    block_gather(block);
    block->vcpu.state.rip = block->vm->sites[number].target;
    block->vcpu.instructions += block->vm->sites[number].uncounted;
    return resume(block, 0);
}

static void fill_link(struct block *block, uint32_t link, uint64_t host)
{
    bool is_user = block->mode & MODE_USER;
    uint32_t *filled = is_user ? &block->space->links_filled : &block->kernel_links_filled;
    if (link >= *filled) {
        *filled = link + 1;
    }
    *(is_user ? &block->space->data->links[link] : &block->kernel_links[link]) = host;
}

uint64_t helper_link(struct block *block, uint32_t number)
{
    struct translate_vm *vm = block->vm;
    struct site *site = &vm->sites[number];
    uint64_t rip = site->target;
    block->vcpu.state.rip = rip;
    if (site->kind == SITE_LINK) {
        uint64_t host = find(block, rip, block->mode);
        if (!host) {
            block->wanted_mode = block->mode;
            return leave(block, LEAVE_TRANSLATE);
        }
        fill_link(block, site->link, host);
        return host;
    }
    pthread_mutex_lock(&vm->lock);
    struct unit *from = &vm->units[site->unit];
    /* Exits to an instruction across pages are links, never chains. */
    struct unit *target =
        unit_find(vm, from->page, NO_PAGE, rip & (PAGE_SIZE - 1), from->virtual_page, block->mode);
    if (target && !from->is_retired) {
        site_link(vm, number, target);
    }
    pthread_mutex_unlock(&vm->lock);
    block->wanted_mode = block->mode;
    return target ? cache_address(vm, target->saved_entry) : leave(block, LEAVE_TRANSLATE);
}

uint64_t helper_indirect(struct block *block, uint32_t unused)
{
    (void)unused;
    if (!is_canonical(block->address)) {
        block->vcpu.state.gpr[RSP] -= block->vm->sites[block->indirect_site].undo;
        return helper_execute(block, block->indirect_site);
    }
    block->vcpu.state.rip = block->address;
    if (block->poll_now) {
        block_gather(block);
        return resume(block, 0);
    }
    return block_continue(block);
}

/* ---- FXSAVE64 and FXRSTOR64 on the live registers ---- */

enum { FX_IMAGE_WRITTEN = 416, FX_MXCSR = 24, FX_MXCSR_RESERVED = ~0xffff };

/* What is odd about the operand is for interp. */
static bool is_plain_fx_image(const struct block *block, gva_t gva)
{
    return !(gva & 15) && is_canonical(gva) && is_canonical(gva + sizeof block->fx_image - 1);
}

uint64_t helper_fxsave(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    gva_t gva = block->address;
    if (!is_plain_fx_image(block, gva) ||
        mmu_check_write(&block->vcpu, gva, sizeof block->fx_image, user) != STEP_NEXT) {
        return execute(block, &place);
    }
    __asm__ volatile("fxsave64 %0" : "=m"(block->fx_image));
    hide_x87_pointers(block, block->fx_image);
    if (mmu_write(&block->vcpu, gva, block->fx_image, FX_IMAGE_WRITTEN, user) != STEP_NEXT) {
        return execute(block, &place);
    }
    block->vcpu.state.rip = place.rip + place.length;
    return is_current(block, &place) ? place.inline_address : block_continue(block);
}

uint64_t helper_fxrstor(struct block *block, uint32_t number)
{
    struct place place = place_of(block, number);
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    gva_t gva = block->address;
    if (!is_plain_fx_image(block, gva) ||
        mmu_read(&block->vcpu, gva, block->fx_image, sizeof block->fx_image, user) != STEP_NEXT ||
        (load_le32(block->fx_image + FX_MXCSR) & (uint32_t)FX_MXCSR_RESERVED)) {
        return execute(block, &place);
    }
    __asm__ volatile("fxrstor64 %0" : : "m"(block->fx_image));
    block->vcpu.state.rip = place.rip + place.length;
    return is_current(block, &place) ? place.inline_address : block_continue(block);
}

/* ---- REP MOVS and REP STOS, a page piece at a time ---- */

/* clang-format off */
#define REPEAT(instruction, to, from, value, count)                                                \
    __asm__ volatile("rep " instruction                                                            \
                     : "+D"(to), "+S"(from), "+c"(count) : "a"(value) : "memory")
/* clang-format on */

static void repeat_move(uint64_t to, uint64_t from, uint64_t count, unsigned size)
{
    switch (size) {
    case 1:
        REPEAT("movsb", to, from, 0, count);
        break;
    case 2:
        REPEAT("movsw", to, from, 0, count);
        break;
    case 4:
        REPEAT("movsl", to, from, 0, count);
        break;
    default:
        REPEAT("movsq", to, from, 0, count);
        break;
    }
}

static void repeat_store(uint64_t to, uint64_t value, uint64_t count, unsigned size)
{
    uint64_t from = 0;
    switch (size) {
    case 1:
        REPEAT("stosb", to, from, value, count);
        break;
    case 2:
        REPEAT("stosw", to, from, value, count);
        break;
    case 4:
        REPEAT("stosl", to, from, value, count);
        break;
    default:
        REPEAT("stosq", to, from, value, count);
        break;
    }
}

/* Host address of a guest-virtual one if the soft TLB has it, else 0. */
static uint64_t tlb_host(const struct block *block, gva_t gva, bool write)
{
    enum tlb_privilege privilege = block->mode & MODE_USER ? TLB_USER : TLB_KERNEL;
    enum tlb_access access = write ? TLB_WRITE : TLB_READ;
    const struct tlb_entry *entry = &block->vcpu.tlb->entries[privilege][access][tlb_index(gva)];
    uint64_t distance = gva - entry->tag;
    return distance < PAGE_SIZE ? entry->host + distance : 0;
}

static uint64_t minimum(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/*
 * Do one piece, as far as both pages reach. True: go on with the next piece. False: what is left
 * at state's registers is for interp (a fault, a device, an element across pages).
 */
static bool string_piece(struct block *block, unsigned size, bool is_store)
{
    uint64_t *gpr = block->vcpu.state.gpr;
    gva_t to = gpr[RDI], from = gpr[RSI];
    uint32_t user = block->mode & MODE_USER ? PF_USER : 0;
    uint64_t count = minimum(gpr[RCX], (PAGE_SIZE - (to & (PAGE_SIZE - 1))) / size);
    if (!is_store) {
        count = minimum(count, (PAGE_SIZE - (from & (PAGE_SIZE - 1))) / size);
    }
    if (count == 0 || !is_canonical(to) || (!is_store && !is_canonical(from))) {
        return false;
    }
    /* A fill may drop the other entry again, so ask until both are there. */
    uint64_t to_host = 0, from_host = 0;
    for (unsigned attempt = 0; attempt < 4 && !(to_host && (from_host || is_store)); attempt++) {
        if (!is_store && !tlb_host(block, from, false) &&
            tlb_fill(&block->vcpu, from, user) != TLB_FILLED) {
            return false;
        }
        if (!tlb_host(block, to, true) &&
            tlb_fill(&block->vcpu, to, user | PF_WRITE) != TLB_FILLED) {
            return false;
        }
        to_host = tlb_host(block, to, true);
        from_host = is_store ? 0 : tlb_host(block, from, false);
    }
    if (!to_host || (!is_store && !from_host)) {
        return false;
    }
    if (is_store) {
        repeat_store(to_host, gpr[RAX], count, size);
    } else {
        repeat_move(to_host, from_host, count, size);
        gpr[RSI] += count * size;
    }
    gpr[RDI] += count * size;
    gpr[RCX] -= count;
    return true;
}

uint64_t helper_string(struct block *block, uint32_t number)
{
    const struct site *site = &block->vm->sites[number];
    struct place place = place_of(block, number);
    uint64_t *gpr = block->vcpu.state.gpr;
    unsigned size = site->size;
    bool is_store = site->is_store;
    if (block->vcpu.state.rflags & FLAG_DF) {
        return execute(block, &place);
    }
    while (gpr[RCX]) {
        if (block->poll_now) {
            block_gather(block);
            block->vcpu.state.rip = place.rip;
            return resume(block, 0);
        }
        if (!string_piece(block, size, is_store)) {
            return execute(block, &place);
        }
    }
    if (is_current(block, &place)) {
        return place.inline_address;
    }
    return start_over(block, &place); /* with a count of zero */
}
