/*
 * Signals on vCPU threads. A host fault inside a unit becomes an exit at that guest instruction;
 * a kick makes the poll page inaccessible. Handlers edit the saved context and return, they never
 * jump away: the vector state in the frame is the guest's.
 */
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/translate/internal.h"

enum { GUARD_SIZE = PAGE_SIZE };

static _Thread_local struct block *current;
static struct sigaction previous[NSIG];

struct block *signals_current(void)
{
    return current;
}

/* Make loops of this vCPU fault at their next poll. Async-signal-safe, on the vCPU's thread. */
static void poll_page_set(struct block *block, int protection)
{
    if (block->space) {
        mprotect((uint8_t *)block->space->alias + POLL_OFFSET, PAGE_SIZE, protection);
    }
}

static bool in_range(uint64_t address, const void *base, size_t size)
{
    return address - (uint64_t)base < size;
}

/* The sample timer has expired: what was this thread doing? */
static void count_sample(struct block *block, uint64_t pc)
{
    enum engine_counter where = block->activity;
    if (in_range(pc, block->vm->cache.run, block->vm->cache.size)) {
        const struct unit *unit = unit_at(block->vm, pc);
        where = !unit                    ? COUNT_SAMPLE_STUBS
                : unit->mode & MODE_USER ? COUNT_SAMPLE_USER
                                         : COUNT_SAMPLE_KERNEL;
    }
    if (block->in_run) {
        vcpu_count(&block->vcpu, where);
    }
}

/* A kick, or the sampler's timer. */
static void on_kick(int number, siginfo_t *info, void *context)
{
    (void)number;
    struct block *block = current;
    bool is_sample = info->si_code == SI_TIMER;
    uint64_t pc = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (!block) {
        return;
    }
    block->seen_at = pc;
    if (is_sample) {
        count_sample(block, pc);
    }
    if (!block->in_units) {
        return;
    }
    if (is_sample) {
        if (heat_sample(block, pc)) {
            atomic_fetch_or(&block->vcpu.kicks, KICK_HOT);
            block->poll_now = 1;
        }
    } else {
        vcpu_count(&block->vcpu, COUNT_KICK_SIGNALS);
    }
    /* Signals that wait are one: behind the timer's there may be a kick. */
    if (block->poll_now) {
        poll_page_set(block, PROT_NONE);
    }
}

/*
 * The site of a host instruction that faults: its own, or the check before it, whose slot was
 * empty and which an address that is not canonical has passed.
 */
static struct site *site_at(struct translate_vm *vm, const struct unit *unit, uint32_t host,
                            bool has_address)
{
    struct site *check = NULL;
    for (uint32_t i = 0; i < unit->site_count; i++) {
        struct site *site = &vm->sites[unit->first_site + i];
        if ((site->kind == SITE_POLL || site->kind == SITE_FAULT) && site->resume == host) {
            return site;
        }
        bool is_check =
            !has_address && site->has_slot && (site->kind == SITE_READ || site->kind == SITE_WRITE);
        if (is_check && site->resume < host && (!check || site->resume > check->resume)) {
            check = site;
        }
    }
    return check;
}

/* The private stack is full: begin it anew. Return addresses of before go by the look-up. */
static bool handle_stack_overflow(struct block *block, uint64_t address, greg_t *registers)
{
    for (unsigned p = 0; p < PRIVILEGES; p++) {
        if (in_range(address, block->stack_base[p] - GUARD_SIZE, 2 * GUARD_SIZE)) {
            uint64_t *top = (uint64_t *)(block->stack_base[p] + PRIVATE_STACK_SIZE) - 4;
            registers[REG_RSP] = (greg_t)top;
            counter_add(&block->vcpu.counters->values[COUNT_STACK_OVERFLOWS], 1);
            return true;
        }
    }
    return false;
}

/* True if the fault was inside a unit and is taken care of. */
static bool handle_fault(struct block *block, const siginfo_t *info, ucontext_t *context)
{
    struct translate_vm *vm = block->vm;
    greg_t *registers = context->uc_mcontext.gregs;
    uint64_t pc = (uint64_t)registers[REG_RIP], address = (uint64_t)info->si_addr;
    struct unit *unit = unit_at(vm, pc);
    if (info->si_signo == SIGSEGV && info->si_code != SI_KERNEL &&
        in_range(pc, vm->cache.run, vm->cache.size) &&
        handle_stack_overflow(block, address, registers)) {
        return true;
    }
    if (!unit) {
        return false;
    }
    struct site *site =
        site_at(vm, unit, (uint32_t)(pc - (uint64_t)vm->cache.run), info->si_code != SI_KERNEL);
    if (!site) {
        return false;
    }
    if (site->kind == SITE_POLL) {
        poll_page_set(block, PROT_READ | PROT_WRITE);
    }
    block->fault_site = (uint32_t)(site - vm->sites);
    registers[REG_R8 + SCRATCH2 - R8] = block->fault_site;
    registers[REG_RIP] =
        (greg_t)cache_address(vm, unit->fault_exit[site->flags_home == FLAGS_HOST]);
    return true;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    if (current && current->in_units && handle_fault(current, info, context)) {
        return;
    }
    struct sigaction *old = &previous[number];
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(number, info, context);
    } else {
        /* Not ours: the default action, at the same instruction. */
        signal(number, SIG_DFL);
    }
}

int signals_init(void)
{
    static const int faults[] = {SIGSEGV, SIGFPE, SIGBUS};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction probe;
    for (unsigned i = 0; i < ARRAY_SIZE(faults); i++) {
        if (sigaction(faults[i], NULL, &probe) == 0 && probe.sa_sigaction == on_fault) {
            continue; /* another VM of this process installed it */
        }
        if (sigaction(faults[i], &action, &previous[faults[i]]) < 0) {
            return fail(-errno, "handle faults of translated code: %m");
        }
    }
    action.sa_sigaction = on_kick;
    action.sa_flags |= SA_RESTART;
    if (sigaction(KICK_SIGNAL, &action, NULL) < 0) {
        return fail(-errno, "handle the signal that stops translated code: %m");
    }
    return 0;
}

void signals_attach(struct block *block)
{
    current = block;
}

void signals_kick(struct block *block)
{
    if (!block->in_units) {
        return; /* C code looks at kicks before it enters units */
    }
    if (block == current) {
        poll_page_set(block, PROT_NONE); /* from a signal handler of this thread */
    } else {
        pthread_kill(block->thread, KICK_SIGNAL);
    }
}
