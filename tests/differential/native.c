/*
 * Cases on the real CPU. A child process owns the two pages and a signal handler: each signal
 * hands over the registers of the case that just ended (by INT3 behind the instruction, or by
 * whatever it raised) and returns into the next case, with all registers, flags and vector state
 * loaded by the kernel from the signal frame. So a case costs one signal.
 */
#include "tests/differential/differential.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/error.h"

struct batch {
    _Atomic unsigned count; /* cases to do; 0: idle */
    _Atomic unsigned at;    /* the case in progress */
    struct test_case cases[BATCH_MAX];
    struct outcome outcomes[BATCH_MAX];
};
struct native {
    struct batch *batch;
    pid_t child;
};

/* The child's: one process, one thread. */
static struct batch *batch;
static uint8_t *code_writable;
static bool in_case;
static mcontext_t idle_registers;

enum { XSTATE_BV = 512 };

static void take_outcome(const ucontext_t *frame, struct outcome *outcome)
{
    static const uint8_t order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};
    const greg_t *registers = frame->uc_mcontext.gregs;
    for (unsigned i = 0; i < 16; i++) {
        outcome->after.gpr[i] = (uint64_t)registers[order[i]];
    }
    outcome->after.rip = (uint64_t)registers[REG_RIP];
    outcome->after.rflags = (uint64_t)registers[REG_EFL];
    outcome->vector = (uint64_t)registers[REG_TRAPNO];
    outcome->error = (uint64_t)registers[REG_ERR];
    outcome->cr2 = (uint64_t)registers[REG_CR2];
    memcpy(outcome->after.xsave, frame->uc_mcontext.fpregs, XSAVE_AREA_SIZE);
    memcpy(outcome->after.data, (void *)DATA_PAGE, 4096);
}

static void load_case(const struct test_case *test, ucontext_t *frame)
{
    static const uint8_t order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                    REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                    REG_R12, REG_R13, REG_R14, REG_R15};
    greg_t *registers = frame->uc_mcontext.gregs;
    memset(code_writable, 0xcc, 4096);
    unsigned room = 4096u - test->offset;
    memcpy(code_writable + test->offset, test->bytes, test->length < room ? test->length : room);
    memcpy((void *)DATA_PAGE, test->before.data, 4096);
    for (unsigned i = 0; i < 16; i++) {
        registers[order[i]] = (greg_t)test->before.gpr[i];
    }
    registers[REG_RIP] = (greg_t)test->before.rip;
    registers[REG_EFL] = (greg_t)test->before.rflags;
    uint8_t *vectors = (uint8_t *)frame->uc_mcontext.fpregs;
    memcpy(vectors, test->before.xsave, 416); /* behind are the kernel's own bytes */
    uint64_t components;
    memcpy(&components, test->before.xsave + XSTATE_BV, 8);
    memcpy(vectors + XSTATE_BV, &components, 8);
    for (unsigned n = COMPONENT_YMM; n <= COMPONENT_ZMM16; n++) {
        struct xsave_component part = xsave_component(n);
        if (components >> n & 1) { /* the kernel's frame has no room for others */
            memcpy(vectors + part.offset, test->before.xsave + part.offset, part.size);
        }
    }
}

static void on_signal(int signal, siginfo_t *information, void *context)
{
    ucontext_t *frame = context;
    if (in_case) {
        unsigned at = atomic_load(&batch->at);
        take_outcome(frame, &batch->outcomes[at]);
        atomic_store(&batch->at, at + 1);
    }
    unsigned at = atomic_load(&batch->at);
    if (at < atomic_load(&batch->count)) {
        in_case = true;
        load_case(&batch->cases[at], frame);
        return;
    }
    in_case = false;
    /* back to the loop below, as the first signal of this batch found it */
    for (unsigned i = 0; i < NGREG; i++) {
        frame->uc_mcontext.gregs[i] = idle_registers.gregs[i];
    }
}

/*
 * The case may have set AC, and the compiler's code may be misaligned: clear it first. NT and ID
 * are not restored by sigreturn and would stay for all later cases: clear them too.
 */
void native_signal_entry(int signal, siginfo_t *information, void *context);
__asm__(".globl native_signal_entry\n"
        "native_signal_entry: pushfq; btrq $18, (%rsp); btrq $14, (%rsp); btrq $21, (%rsp)\n"
        "popfq; jmp on_signal_entry\n");
void on_signal_entry(int signal, siginfo_t *information, void *context);
void on_signal_entry(int signal, siginfo_t *information, void *context)
{
    if (!in_case && atomic_load(&batch->at) == 0) {
        idle_registers = ((ucontext_t *)context)->uc_mcontext;
    }
    on_signal(signal, information, context);
}

static void sleep_briefly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

static void child_main(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    stack_t stack = {.ss_size = 1 << 16};
    /* room behind: a frame may be shorter than what take_outcome() copies */
    stack.ss_sp = mmap(NULL, stack.ss_size + 8192, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = native_signal_entry;
    sigfillset(&action.sa_mask);
    static const int signals[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGUSR1};
    for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        sigaction(signals[i], &action, NULL);
    }
    for (;;) {
        unsigned count = atomic_load(&batch->count);
        if (count && atomic_load(&batch->at) < count) {
            raise(SIGUSR1);
        } else {
            sleep_briefly();
        }
    }
}

static int map_pages(void)
{
    int fd = memfd_create("code", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 4096)) {
        return fail(-errno, "memfd for the code page");
    }
    code_writable = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    enum { FIXED = MAP_FIXED_NOREPLACE };
    void *around = mmap((void *)(CODE_PAGE - 65536), 3 * 65536, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | FIXED, -1, 0);
    void *data = mmap((void *)(DATA_PAGE - 65536), 3 * 65536, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | FIXED, -1, 0);
    if (around == MAP_FAILED || data == MAP_FAILED || code_writable == MAP_FAILED) {
        return fail(-errno, "map the pages of the native side");
    }
    mmap((void *)CODE_PAGE, 4096, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0);
    mprotect((void *)DATA_PAGE, 4096, PROT_READ | PROT_WRITE);
    close(fd);
    return 0;
}

static void start_child(struct native *native)
{
    native->child = fork();
    if (native->child == 0) {
        batch = native->batch;
        if (map_pages()) {
            _exit(1);
        }
        child_main();
    }
}

int native_open(struct native **ret_native)
{
    struct native *native = calloc(1, sizeof *native);
    native->batch = mmap(NULL, sizeof *native->batch, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (native->batch == MAP_FAILED) {
        free(native);
        return fail(-errno, "memory for the cases");
    }
    start_child(native);
    *ret_native = native;
    return 0;
}

void native_close(struct native *native)
{
    kill(native->child, SIGKILL);
    waitpid(native->child, NULL, 0);
    munmap(native->batch, sizeof *native->batch);
    free(native);
}

struct test_case *native_cases(struct native *native)
{
    return native->batch->cases;
}

const struct outcome *native_outcomes(const struct native *native)
{
    return native->batch->outcomes;
}

int native_run(struct native *native, unsigned count, unsigned *ret_at)
{
    struct batch *b = native->batch;
    atomic_store(&b->at, 0);
    atomic_store(&b->count, count);
    unsigned last = 0, quiet = 0;
    while (atomic_load(&b->at) < count) {
        sleep_briefly();
        unsigned at = atomic_load(&b->at);
        quiet = at == last ? quiet + 1 : 0;
        last = at;
        if (quiet > 20000 || waitpid(native->child, NULL, WNOHANG) == native->child) {
            kill(native->child, SIGKILL);
            waitpid(native->child, NULL, 0);
            atomic_store(&b->count, 0);
            start_child(native);
            *ret_at = at;
            return fail(-EIO, "the native child died or hung");
        }
    }
    atomic_store(&b->count, 0);
    return 0;
}
