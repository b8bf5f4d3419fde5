/*
 * The part of the boot tests that a shell cannot do: threads, floating point in all widths that the
 * CPU offers, faults that are handled, timers. Static, runs inside the guest.
 */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void expect(const char *name, int ok)
{
    printf("part %s: %s\n", name, ok ? "ok" : "FAILED");
    fflush(stdout);
}

enum { THREADS = 4, ROUNDS = 20000 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long under_mutex;
static atomic_long without;

static void *count(void *argument)
{
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        under_mutex++;
        pthread_mutex_unlock(&mutex);
        without++;
    }
    return NULL;
}

static int threads(void)
{
    pthread_t thread[THREADS];
    for (int i = 0; i < THREADS; i++) {
        if (pthread_create(&thread[i], NULL, count, NULL)) {
            return 0;
        }
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(thread[i], NULL);
    }
    return under_mutex == THREADS * ROUNDS && without == THREADS * ROUNDS;
}

/* Each process keeps its own registers: children compute at the same time as the parent. */
static double series(int terms)
{
    volatile double sum = 0;
    for (int i = 0; i < terms; i++) {
        sum += (i % 2 ? -1.0 : 1.0) / (2 * i + 1);
    }
    return 4 * sum;
}

static int floating_point(void)
{
    for (int i = 0; i < 3; i++) {
        if (fork() == 0) {
            _exit(fabs(series(200000) - M_PI) < 1e-4 ? 0 : 1);
        }
    }
    int ok = fabs(series(200000) - M_PI) < 1e-4;
    for (int i = 0; i < 3; i++) {
        int status;
        wait(&status);
        ok &= status == 0;
    }
    volatile long double third = 1.0L / 3;
    volatile float root = sqrtf(2.0f);
    return ok && third * 3 == 1.0L && root * root > 1.999f && root * root < 2.001f;
}

static sigjmp_buf back;
static volatile uintptr_t fault_address;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    fault_address = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

static int faults(void)
{
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    if (!sigsetjmp(back, 1)) {
        ((volatile char *)page)[5000] = 1;
        return 0;
    }
    int ok = fault_address == (uintptr_t)page + 5000;
    volatile int zero = 0;
    if (!sigsetjmp(back, 1)) {
        zero = 7 / zero; /* 1 / n needs no division */
        return 0;
    }
    /* copy on write between processes */
    mprotect(page, 8192, PROT_READ | PROT_WRITE);
    strcpy(page, "parent");
    if (fork() == 0) {
        strcpy(page, "child");
        _exit(strcmp(page, "child") ? 1 : 0);
    }
    int status;
    wait(&status);
    return ok && status == 0 && !strcmp(page, "parent");
}

static volatile sig_atomic_t ticks;

static void on_tick(int signal)
{
    (void)signal;
    ticks++;
}

static int timers(void)
{
    signal(SIGALRM, on_tick);
    const struct itimerval every = {{0, 20000}, {0, 20000}};
    setitimer(ITIMER_REAL, &every, NULL);
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (ticks < 5 && now.tv_sec - start.tv_sec < 10);
    const struct itimerval none = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &none, NULL);
    return ticks >= 5;
}

int main(void)
{
    expect("threads", threads());
    expect("floating-point", floating_point());
    expect("faults", faults());
    expect("timers", timers());
    return 0;
}
