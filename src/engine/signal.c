/*
 * The registry of fault handlers. See signal.h.
 */
#include "engine/signal.h"

#include <pthread.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/error.h"

enum { HANDLERS_MAX = 4, STACK_ROOM = 16 << 10, FALLBACK_FRAME = 16 << 10 };

struct registered {
    fault_handler_fn *handler;
    void *owner;
};

static _Thread_local struct registered registry[HANDLERS_MAX];
static _Thread_local void *alternate_stack;
static _Thread_local size_t alternate_size;

static const int signals[] = {SIGFPE, SIGSEGV, SIGBUS, SIGILL, SIGTRAP};
static struct sigaction previous[ARRAY_SIZE(signals)];

/* Not ours: what was there before gets it, at the same instruction if that was the default. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        if (signals[i] != number) {
            continue;
        }
        if (previous[i].sa_flags & SA_SIGINFO) {
            previous[i].sa_sigaction(number, info, context);
        } else if (previous[i].sa_handler != SIG_DFL && previous[i].sa_handler != SIG_IGN) {
            previous[i].sa_handler(number);
        } else {
            signal(number, SIG_DFL);
        }
        return;
    }
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    for (unsigned i = 0; i < HANDLERS_MAX; i++) {
        if (registry[i].handler && registry[i].handler(info, context, registry[i].owner)) {
            return;
        }
    }
    pass_on(number, info, context);
}

static void install(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
        sigaction(signals[i], &action, &previous[i]);
    }
}

static int stack_open(void)
{
    unsigned long frame = getauxval(AT_MINSIGSTKSZ);
    stack_t current, stack = {0};

    if (alternate_stack || (sigaltstack(NULL, &current) == 0 && !(current.ss_flags & SS_DISABLE))) {
        return 0;
    }
    stack.ss_size = align_up((frame ? frame : FALLBACK_FRAME) + STACK_ROOM, 4096);
    stack.ss_sp =
        mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack.ss_sp == MAP_FAILED) {
        return fail(-errno, "map a signal stack for a vCPU thread: %m");
    }
    if (sigaltstack(&stack, NULL) != 0) {
        int error = -errno;
        munmap(stack.ss_sp, stack.ss_size);
        return fail(error, "set the signal stack of a vCPU thread: %m");
    }
    alternate_stack = stack.ss_sp;
    alternate_size = stack.ss_size;
    return 0;
}

static void stack_close(void)
{
    const stack_t off = {.ss_flags = SS_DISABLE};

    if (alternate_stack && sigaltstack(&off, NULL) == 0) {
        munmap(alternate_stack, alternate_size);
        alternate_stack = NULL;
    }
}

int fault_handler_add(fault_handler_fn *handler, void *owner)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int error = stack_open();

    if (error) {
        return error;
    }
    pthread_once(&once, install);
    for (unsigned i = 0; i < HANDLERS_MAX; i++) {
        if (!registry[i].handler) {
            registry[i] = (struct registered){handler, owner};
            return 0;
        }
    }
    return fail(-ENOSPC, "a vCPU thread has more than %d fault handlers", HANDLERS_MAX);
}

void fault_handler_remove(fault_handler_fn *handler, void *owner)
{
    bool empty = true;

    for (unsigned i = 0; i < HANDLERS_MAX; i++) {
        if (registry[i].handler == handler && registry[i].owner == owner) {
            registry[i] = (struct registered){NULL, NULL};
        }
        empty = empty && !registry[i].handler;
    }
    if (empty) {
        stack_close();
    }
}
