/*
 * The engine `interp`: vCPUs that run by interp_execute(), with safe points for memory's
 * transitions.
 *
 * A vCPU is quiet while it is outside run() or inside a call to the machine: then it holds no
 * host address of a frame. Who changes mappings asks for a flush (KICK_FLUSH) and waits until
 * each other vCPU is quiet or has passed a safe point, which is between two instructions.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/interp/cache.h"
#include "engine/interp/interp.h"
#include "engine/interp/interp_internal.h"
#include "x86/cpuid.h"

enum {
    KICK_FLUSH = 1u << 8,
    VCPUS_MAX = 255,
    PAUSES_UNTIL_YIELD = 32, /* loops of them take some 10 us, longer than most locks are held */
};

struct engine_vcpu {
    struct vcpu vcpu;
    struct engine_vm *vm;
    struct tlb tlb;
    struct cache cache;
    struct engine_counters counters;
    _Atomic uint32_t quiet;
    _Atomic uint32_t waiting;
    _Atomic uint64_t epoch; /* the last request whose flush was done */
    uint64_t deadline;      /* of the count of instructions: then run() is left */
};

struct engine_vm {
    struct engine_config config;
    struct engine_host machine; /* what the machine gave; vCPUs get the wrapped one */
    struct engine_host wrapped;
    pthread_mutex_t lock; /* the list of vCPUs */
    pthread_mutex_t exclusive;
    _Atomic uint64_t epoch;
    _Atomic uint32_t stop; /* 1 + the index of the vCPU that runs alone */
    unsigned count;
    struct engine_vcpu *vcpus[VCPUS_MAX];
    struct engine_counters counters;
};

/* The vCPU that runs on this thread, for callbacks that come back to the engine. */
static _Thread_local struct engine_vcpu *current;

static void flush_own(struct engine_vcpu *v)
{
    tlb_flush_all(&v->tlb);
    cache_drop(&v->cache);
}

/* Do what others asked for. Only where no host address of a frame is held. */
static void safe_point(struct engine_vcpu *v)
{
    uint64_t epoch = v->vm->epoch;

    v->vcpu.kicks &= ~(uint32_t)KICK_FLUSH;
    flush_own(v);
    if (v->epoch < epoch) {
        v->epoch = epoch;
    }
}

static void become_quiet(struct engine_vcpu *v)
{
    v->quiet = 1;
}

/* Back to work: not while another vCPU runs alone, and not with mappings that were dropped. */
static void become_busy(struct engine_vcpu *v)
{
    for (;;) {
        v->quiet = 0;
        /* Before the look at `stop`: who stops us kicks after setting it, and waits for quiet. */
        if (v->vcpu.kicks & KICK_FLUSH) {
            safe_point(v);
        }
        uint32_t stop = v->vm->stop;
        if (!stop || stop == v->vcpu.index + 1) {
            break;
        }
        v->quiet = 1;
        pthread_mutex_lock(&v->vm->exclusive);
        pthread_mutex_unlock(&v->vm->exclusive);
    }
}

/* memory's listener */

static void listen_drop(void *owner, uint64_t first_page, uint64_t count, bool write_only)
{
    struct engine_vm *vm = owner;

    pthread_mutex_lock(&vm->lock);
    for (unsigned n = 0; n < vm->count; n++) {
        struct engine_vcpu *v = vm->vcpus[n];
        if (v == current) {
            tlb_drop_physical(&v->tlb, first_page, count, write_only);
            cache_drop(&v->cache);
        } else {
            v->vcpu.kicks |= KICK_FLUSH;
        }
    }
    pthread_mutex_unlock(&vm->lock);
}

static void listen_quiesce(void *owner)
{
    struct engine_vm *vm = owner;
    struct engine_vcpu *self = current && current->vm == vm ? current : NULL;
    uint64_t epoch = ++vm->epoch;
    bool was_busy = self && !self->quiet;

    if (was_busy) {
        become_quiet(self);
    }
    for (unsigned n = 0; n < VCPUS_MAX; n++) {
        pthread_mutex_lock(&vm->lock);
        struct engine_vcpu *v = n < vm->count ? vm->vcpus[n] : NULL;
        if (v && v != self) {
            v->vcpu.kicks |= KICK_FLUSH;
        }
        pthread_mutex_unlock(&vm->lock);
        while (v && v != self && !v->quiet && v->epoch < epoch) {
            sched_yield();
        }
    }
    if (was_busy) {
        become_busy(self);
    }
}

/* Bytes are compared at every use: nothing to forget. Pages are never marked as code here. */
static void listen_code_written(void *owner, gpa_t gpa, uint64_t length)
{
}

/* calls to the machine: the vCPU is quiet meanwhile */

#define CALL_QUIETLY(call)                                                                         \
    ({                                                                                             \
        become_quiet(current);                                                                     \
        __auto_type result_ = (call);                                                              \
        become_busy(current);                                                                      \
        result_;                                                                                   \
    })

static uint32_t quiet_port_read(void *owner, unsigned vcpu, uint16_t port, unsigned size)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->port_read(machine->owner, vcpu, port, size));
}

static void quiet_port_write(void *owner, unsigned vcpu, uint16_t port, unsigned size,
                             uint32_t value)
{
    const struct engine_host *machine = owner;
    become_quiet(current);
    machine->port_write(machine->owner, vcpu, port, size, value);
    become_busy(current);
}

static uint64_t quiet_mmio_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->mmio_read(machine->owner, vcpu, gpa, size));
}

static void quiet_mmio_write(void *owner, unsigned vcpu, gpa_t gpa, unsigned size, uint64_t value)
{
    const struct engine_host *machine = owner;
    become_quiet(current);
    machine->mmio_write(machine->owner, vcpu, gpa, size, value);
    become_busy(current);
}

static bool quiet_msr_read(void *owner, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->msr_read(machine->owner, vcpu, index, ret_value));
}

static bool quiet_msr_write(void *owner, unsigned vcpu, uint32_t index, uint64_t value)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->msr_write(machine->owner, vcpu, index, value));
}

static uint64_t quiet_hypercall(void *owner, unsigned vcpu, uint64_t number,
                                const uint64_t argument[4])
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->hypercall(machine->owner, vcpu, number, argument));
}

static int quiet_interrupt_acknowledge(void *owner, unsigned vcpu)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->interrupt_acknowledge(machine->owner, vcpu));
}

static uint64_t quiet_cr8_read(void *owner, unsigned vcpu)
{
    const struct engine_host *machine = owner;
    return CALL_QUIETLY(machine->cr8_read(machine->owner, vcpu));
}

static void quiet_cr8_write(void *owner, unsigned vcpu, uint64_t value)
{
    const struct engine_host *machine = owner;
    become_quiet(current);
    machine->cr8_write(machine->owner, vcpu, value);
    become_busy(current);
}

static void quiet_tsc_changed(void *owner, unsigned vcpu, uint64_t tsc_offset)
{
    const struct engine_host *machine = owner;
    become_quiet(current);
    machine->tsc_changed(machine->owner, vcpu, tsc_offset);
    become_busy(current);
}

/* hooks */

static void hook_flush(struct vcpu *vcpu, enum flush_kind kind, gva_t gva, uint16_t pcid)
{
    struct engine_vcpu *v = vcpu->engine;

    cache_drop(&v->cache);
    switch (kind) {
    case FLUSH_PAGE:
        tlb_flush_page(&v->tlb, gva);
        break;
    case FLUSH_NON_GLOBAL:
    case FLUSH_SWITCH: /* one address space is cached: leaving it loses it */
        tlb_flush_non_global(&v->tlb);
        break;
    case FLUSH_ALL:
        tlb_flush_all(&v->tlb);
        break;
    }
}

static void hook_exclusive(struct vcpu *vcpu, void (*function)(void *argument), void *argument)
{
    struct engine_vcpu *self = vcpu->engine;
    struct engine_vm *vm = self->vm;

    become_quiet(self);
    pthread_mutex_lock(&vm->exclusive);
    vm->stop = vcpu->index + 1;
    become_busy(self);
    for (unsigned n = 0; n < vm->count; n++) {
        struct engine_vcpu *v = vm->vcpus[n];
        if (v == self) {
            continue;
        }
        v->vcpu.kicks |= KICK_FLUSH;
        while (!v->quiet) {
            sched_yield();
        }
    }
    function(argument);
    vm->stop = 0;
    pthread_mutex_unlock(&vm->exclusive);
}

static void hook_yield(struct vcpu *vcpu)
{
    vcpu_count(vcpu, COUNT_EXIT_PAUSE);
    vcpu->pauses = PAUSES_UNTIL_YIELD;
    become_quiet(vcpu->engine);
    sched_yield();
    become_busy(vcpu->engine);
}

static const struct vcpu_hooks hooks = {
    .flush = hook_flush, .exclusive = hook_exclusive, .yield = hook_yield};

/* the operations */

static int probe(void)
{
    uint32_t eax = 1, ebx, ecx = 0, edx;

    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    if (!(ecx & 1u << 27)) {
        return fail(-ENOTSUP, "the host CPU or kernel has no XSAVE");
    }
    return 0;
}

static int vm_new(const struct engine_config *config, struct engine_vm **ret_vm)
{
    struct engine_vm *vm =
        mmap(NULL, sizeof *vm, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (vm == MAP_FAILED) {
        return fail(-errno, "memory for engine interp: %m");
    }
    vm->config = *config;
    vm->machine = config->host;
    vm->wrapped = (struct engine_host){
        .port_read = quiet_port_read,
        .port_write = quiet_port_write,
        .mmio_read = quiet_mmio_read,
        .mmio_write = quiet_mmio_write,
        .msr_read = quiet_msr_read,
        .msr_write = quiet_msr_write,
        .hypercall = quiet_hypercall,
        .interrupt_acknowledge = quiet_interrupt_acknowledge,
        .cr8_read = quiet_cr8_read,
        .cr8_write = quiet_cr8_write,
        .tsc_changed = quiet_tsc_changed,
        .owner = &vm->machine,
    };
    pthread_mutex_init(&vm->lock, NULL);
    pthread_mutex_init(&vm->exclusive, NULL);
    const struct memory_listener listener = {
        .drop = listen_drop,
        .quiesce = listen_quiesce,
        .code_written = listen_code_written,
        .owner = vm,
    };
    memory_listen(config->memory, &listener);
    *ret_vm = vm;
    return 0;
}

static void vm_free(struct engine_vm *vm)
{
    if (!vm) {
        return;
    }
    pthread_mutex_destroy(&vm->lock);
    pthread_mutex_destroy(&vm->exclusive);
    munmap(vm, sizeof *vm);
}

static void vcpu_free(struct engine_vcpu *v)
{
    if (!v) {
        return;
    }
    pthread_mutex_lock(&v->vm->lock);
    for (unsigned n = 0; n < v->vm->count; n++) {
        if (v->vm->vcpus[n] == v) {
            v->vm->vcpus[n] = v->vm->vcpus[--v->vm->count];
            break;
        }
    }
    pthread_mutex_unlock(&v->vm->lock);
    if (current == v) {
        current = NULL;
    }
    interp_detach(&v->vcpu);
    munmap(v, sizeof *v);
}

static int vcpu_new(struct engine_vm *vm, unsigned index, struct engine_vcpu **ret_vcpu)
{
    if (index >= VCPUS_MAX) {
        return fail(-EINVAL, "vCPU %u: interp runs at most %d", index, VCPUS_MAX);
    }
    struct engine_vcpu *v =
        mmap(NULL, sizeof *v, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (v == MAP_FAILED) {
        return fail(-errno, "memory for vCPU %u: %m", index);
    }
    v->vm = vm;
    v->quiet = 1;
    v->deadline = UINT64_MAX;
    v->vcpu.tlb = &v->tlb;
    tlb_init(&v->tlb);
    v->vcpu.memory = vm->config.memory;
    v->vcpu.cpuid = vm->config.cpuid;
    v->vcpu.host = &vm->wrapped;
    v->vcpu.index = index;
    v->vcpu.time_mode = vm->config.time_mode;
    v->vcpu.hooks = &hooks;
    v->vcpu.engine = v;
    v->vcpu.counters = &v->counters;
    v->vcpu.pauses = PAUSES_UNTIL_YIELD;
    cpu_state_reset(&v->vcpu.state, index == 0);
    v->vcpu.state.gpr[RDX] = cpuid_signature(vm->config.cpuid);
    vcpu_mode_changed(&v->vcpu);
    flush_own(v);
    int error = interp_attach(&v->vcpu);
    if (error) {
        munmap(v, sizeof *v);
        return error;
    }
    pthread_mutex_lock(&vm->lock);
    vm->vcpus[vm->count++] = v;
    pthread_mutex_unlock(&vm->lock);
    *ret_vcpu = v;
    return 0;
}

/* An instruction from the cache where nothing special is on; else the long way. */
static enum step step_once(struct engine_vcpu *v)
{
    struct vcpu *vcpu = &v->vcpu;
    struct cpu_state *state = &vcpu->state;
    const struct segment *cs = &state->segment[CS];
    bool is_64 = is_64bit(vcpu);

    if ((state->rflags & FLAG_TF) || (state->dr7 & 0xff) ||
        (!is_64 && state->rip + INSN_MAX_LENGTH > cs->limit)) {
        return interp_step(vcpu);
    }
    enum decode_mode mode = is_64 ? DECODE_64 : cs->attributes & SEGMENT_DB ? DECODE_32 : DECODE_16;
    gva_t linear = is_64 ? state->rip : (uint32_t)(state->rip + cs->base);
    const struct insn *insn = cache_lookup(&v->cache, vcpu, linear, mode);
    if (!insn) {
        return interp_step(vcpu);
    }
    return interp_conclude(vcpu, interp_execute(vcpu, insn));
}

/* What waits between two instructions. True: leave run() with `ret_exit`. */
static bool attend(struct engine_vcpu *v, enum step *ret_step, enum exit_kind *ret_exit)
{
    *ret_exit = EXIT_INTERRUPTED;
    if (v->vcpu.kicks & KICK_FLUSH) {
        become_busy(v);
    }
    if (v->vcpu.debug && debug_is_over(&v->vcpu)) {
        *ret_exit = EXIT_DEBUG;
        return true;
    }
    if (v->vcpu.instructions >= v->deadline) {
        v->deadline = UINT64_MAX;
        return true;
    }
    if (v->vcpu.kicks & KICK_STOP) {
        v->vcpu.kicks &= ~(uint32_t)KICK_STOP;
        return true;
    }
    *ret_step = interp_poll(&v->vcpu);
    if (v->vcpu.debug && *ret_step == STEP_NEXT && debug_before(&v->vcpu) == DEBUG_STOP) {
        *ret_exit = EXIT_DEBUG;
        return true;
    }
    return false;
}

static bool needs_attention(const struct engine_vcpu *v)
{
    return __atomic_load_n((const uint32_t *)&v->vcpu.kicks, __ATOMIC_RELAXED) ||
           v->vcpu.state.activity != ACTIVITY_RUNNING || v->vcpu.state.nmi_pending ||
           v->vcpu.instructions >= v->deadline;
}

/* Can the state as it is answer one of these kicks? */
static bool has_work(const struct engine_vcpu *v, uint32_t kicks)
{
    const struct cpu_state *state = &v->vcpu.state;

    if (kicks & (KICK_STOP | KICK_INIT)) {
        return true;
    }
    if (state->activity == ACTIVITY_WAIT_SIPI) {
        return kicks & KICK_SIPI;
    }
    return state->activity == ACTIVITY_RUNNING || (kicks & KICK_UNHALT) ||
           ((kicks & KICK_NMI || state->nmi_pending) && !state->nmi_blocked) ||
           ((kicks & KICK_INTERRUPT) && (state->rflags & FLAG_IF));
}

static enum exit_kind run_until_exit(struct engine_vcpu *v)
{
    for (;;) {
        enum step step = STEP_NEXT;
        enum exit_kind exit;

        if (needs_attention(v) && attend(v, &step, &exit)) {
            return exit;
        }
        if (step == STEP_NEXT) {
            vcpu_count(&v->vcpu, COUNT_SINGLE_STEPS);
            step = step_once(v);
        }
        switch (step) {
        case STEP_NEXT:
        case STEP_EXCEPTION:
            break;
        case STEP_HALT:
            if (!has_work(v, v->vcpu.kicks) && !(v->vcpu.debug && v->vcpu.debug->is_armed)) {
                vcpu_count(&v->vcpu, COUNT_HALTS);
                return EXIT_HALT;
            }
            break;
        case STEP_SHUTDOWN:
            return EXIT_TRIPLE_FAULT;
        case STEP_ERROR:
            return EXIT_ERROR;
        }
    }
}

static enum exit_kind run(struct engine_vcpu *v)
{
    current = v;
    become_busy(v);
    enum exit_kind kind = run_until_exit(v);
    become_quiet(v);
    return kind;
}

static void kick(struct engine_vcpu *v, unsigned kicks, uint8_t sipi_vector)
{
    if (kicks & KICK_SIPI) {
        v->vcpu.sipi_vector = sipi_vector;
    }
    v->vcpu.kicks |= kicks;
    if (v->waiting) {
        syscall(SYS_futex, &v->vcpu.kicks, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}

static void wait_for_work(struct engine_vcpu *v, uint64_t deadline_ns)
{
    const struct timespec deadline = {
        .tv_sec = (time_t)(deadline_ns / 1000000000),
        .tv_nsec = (long)(deadline_ns % 1000000000),
    };

    for (;;) {
        v->waiting = 1;
        uint32_t kicks = v->vcpu.kicks;
        if (has_work(v, kicks)) {
            break;
        }
        vcpu_wait_begins(&v->vcpu);
        long result =
            syscall(SYS_futex, &v->vcpu.kicks, FUTEX_WAIT_BITSET_PRIVATE, kicks,
                    deadline_ns == UINT64_MAX ? NULL : &deadline, NULL, FUTEX_BITSET_MATCH_ANY);
        int error = errno;
        vcpu_wait_ends(&v->vcpu);
        if (result != 0 && error == ETIMEDOUT) {
            break;
        }
    }
    v->waiting = 0;
}

/*
 * In deterministic time the saved offset counts from the state's own moment, so that the guest's
 * TSC goes on where it was on an engine that has counted other instructions.
 */
static uint64_t counted(const struct engine_vcpu *v)
{
    return v->vcpu.time_mode == TIME_DETERMINISTIC ? v->vcpu.instructions : 0;
}

static void get_state(struct engine_vcpu *v, struct cpu_state *ret_state)
{
    bytes_copy(ret_state, &v->vcpu.state, sizeof *ret_state);
    ret_state->tsc_offset += counted(v);
}

static void set_state(struct engine_vcpu *v, const struct cpu_state *state)
{
    bytes_copy(&v->vcpu.state, state, sizeof *state);
    v->vcpu.state.tsc_offset -= counted(v);
    vcpu_mode_changed(&v->vcpu);
    flush_own(v);
    vcpu_raise_pending(&v->vcpu);
}

static void take_pending(struct engine_vcpu *v, struct cpu_state *state)
{
    vcpu_take_pending(&v->vcpu, state);
}

static uint64_t instructions(const struct engine_vcpu *v)
{
    return __atomic_load_n(&v->vcpu.instructions, __ATOMIC_RELAXED);
}

static void set_deadline(struct engine_vcpu *v, uint64_t count)
{
    v->deadline = count;
}

/* The kick stays: each instruction is asked about. */
static void set_debug(struct engine_vcpu *v, struct debug *debug)
{
    v->vcpu.debug = debug;
    if (debug) {
        v->vcpu.kicks |= KICK_DEBUG;
    } else {
        v->vcpu.kicks &= ~(uint32_t)KICK_DEBUG;
    }
}

static enum engine_counter where(const struct engine_vcpu *v, uint64_t *ret_rip)
{
    *ret_rip = __atomic_load_n(&v->vcpu.state.rip, __ATOMIC_RELAXED);
    return v->quiet ? COUNT_SAMPLE_MACHINE : COUNT_SAMPLE_INTERP;
}

static const struct engine_counters *counters(const struct engine_vcpu *v)
{
    return &v->counters;
}

static const struct engine_counters *vm_counters(const struct engine_vm *vm)
{
    return &vm->counters;
}

const struct engine_ops interp_engine = {
    .name = "interp",
    .probe = probe,
    .vm_new = vm_new,
    .vm_free = vm_free,
    .vcpu_new = vcpu_new,
    .vcpu_free = vcpu_free,
    .run = run,
    .kick = kick,
    .wait = wait_for_work,
    .get_state = get_state,
    .set_state = set_state,
    .take_pending = take_pending,
    .instructions = instructions,
    .set_deadline = set_deadline,
    .set_debug = set_debug,
    .counters = counters,
    .vm_counters = vm_counters,
    .where = where,
};
