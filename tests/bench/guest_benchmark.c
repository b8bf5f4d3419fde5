/*
 * The guest benchmark: one static program that measures the same things natively and in a guest.
 * Each row runs a loop long enough for a stable time and prints the time of one operation:
 *
 *     row GROUP NAME NANOSECONDS
 *
 * "check NAME HEX" lines are results that must be the same everywhere; "clock NANOSECONDS" lines
 * give this machine's own CLOCK_MONOTONIC, so that a reader with a clock can judge it.
 * Baseline x86-64 only; where libc picks its own code by CPUID, the row's name says libc.
 *
 *     guest_benchmark [--seconds S] [--groups a,b] [--list]
 */
#include <emmintrin.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "rows.h"

static double target_seconds = 0.3;
static char folder[64] = "/tmp";
static uint64_t check_value;
static volatile uint64_t sink;

#define OPAQUE __attribute__((noipa))

static void need(bool good, const char *what)
{
    if (!good) {
        printf("error %s: %s\n", what, strerror(errno));
        exit(1);
    }
}

static uint64_t xorshift(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static uint8_t *noise(size_t size)
{
    uint8_t *bytes = malloc(size);
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word = xorshift(&state);
        memcpy(bytes + i, &word, 8);
    }
    return bytes;
}

/* ---- integer ---- */

static OPAQUE unsigned sieve(uint8_t *composite, unsigned limit)
{
    unsigned primes = 0;
    memset(composite, 0, limit);
    for (unsigned i = 2; i < limit; i++) {
        if (!composite[i]) {
            primes++;
            for (unsigned j = 2 * i; j < limit; j += i) {
                composite[j] = 1;
            }
        }
    }
    return primes;
}

static void row_sieve(uint64_t n)
{
    static uint8_t composite[200000];
    while (n--) {
        check_value = sieve(composite, sizeof composite);
    }
}

static OPAQUE uint64_t crc64(const uint64_t *table, const uint8_t *bytes, size_t size)
{
    uint64_t crc = ~0ull;
    for (size_t i = 0; i < size; i++) {
        crc = table[(crc ^ bytes[i]) & 255] ^ crc >> 8;
    }
    return ~crc;
}

static const uint64_t *crc_table(void)
{
    static uint64_t table[256];
    for (unsigned i = 0; i < 256; i++) {
        uint64_t value = i;
        for (unsigned bit = 0; bit < 8; bit++) {
            value = value >> 1 ^ (value & 1 ? 0xc96c5795d7870f42u : 0);
        }
        table[i] = value;
    }
    return table;
}

static void row_crc(uint64_t n) /* one operation: 64 KiB */
{
    static uint8_t *bytes;
    bytes = bytes ? bytes : noise(65536);
    const uint64_t *table = crc_table();
    while (n--) {
        check_value = crc64(table, bytes, 65536);
    }
}

/* ChaCha20's quarter rounds: additions, rotations, exclusive ors. */
static OPAQUE void chacha_block(uint32_t *out, const uint32_t *in)
{
    uint32_t x[16];
    memcpy(x, in, sizeof x);
#define ROTATE(v, c) ((v) << (c) | (v) >> (32 - (c)))
#define QUARTER(a, b, c, d)                                                                        \
    x[a] += x[b], x[d] = ROTATE(x[d] ^ x[a], 16), x[c] += x[d], x[b] = ROTATE(x[b] ^ x[c], 12),    \
                  x[a] += x[b], x[d] = ROTATE(x[d] ^ x[a], 8), x[c] += x[d],                       \
                  x[b] = ROTATE(x[b] ^ x[c], 7)
    for (unsigned i = 0; i < 10; i++) {
        QUARTER(0, 4, 8, 12);
        QUARTER(1, 5, 9, 13);
        QUARTER(2, 6, 10, 14);
        QUARTER(3, 7, 11, 15);
        QUARTER(0, 5, 10, 15);
        QUARTER(1, 6, 11, 12);
        QUARTER(2, 7, 8, 13);
        QUARTER(3, 4, 9, 14);
    }
    for (unsigned i = 0; i < 16; i++) {
        out[i] = x[i] + in[i];
    }
}

static void row_cipher(uint64_t n)
{
    uint32_t in[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574}, out[16], sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        in[12] = (uint32_t)i & 1023;
        chacha_block(out, in);
        sum = out[0];
    }
    sink = sum;
}

static OPAQUE void heap_sort(uint32_t *a, size_t size)
{
    for (size_t start = size / 2, end = size; end > 1;) {
        uint32_t value;
        if (start) {
            value = a[--start];
        } else {
            value = a[--end];
            a[end] = a[0];
        }
        size_t root = start;
        for (size_t child; (child = 2 * root + 1) < end; root = child) {
            child += child + 1 < end && a[child + 1] > a[child];
            if (a[child] <= value) {
                break;
            }
            a[root] = a[child];
        }
        a[root] = value;
    }
}

static void row_sort(uint64_t n) /* one operation: 32768 numbers */
{
    static uint32_t *source, work[32768];
    source = source ? source : (uint32_t *)noise(sizeof work);
    while (n--) {
        memcpy(work, source, sizeof work);
        heap_sort(work, 32768);
    }
    check_value = work[1] ^ (uint64_t)work[16384] << 32;
}

/* A little stack machine with a switch: indirect jumps. */
static OPAQUE uint64_t stack_machine(const uint8_t *code, uint64_t loops)
{
    uint64_t stack[16] = {0}, accumulator = 1;
    unsigned sp = 0;
    for (const uint8_t *ip = code;;) {
        switch (*ip++) {
        case 0:
            stack[sp++] = accumulator;
            break;
        case 1:
            accumulator += stack[--sp];
            break;
        case 2:
            accumulator ^= accumulator << 7;
            break;
        case 3:
            accumulator = accumulator * 5 + 3;
            break;
        case 4:
            accumulator ^= accumulator >> 9;
            break;
        case 5:
            stack[sp++] = *ip++;
            break;
        case 6:
            if (--loops) {
                ip = code;
            }
            break;
        default:
            return accumulator;
        }
    }
}

static void row_bytecode(uint64_t n) /* one operation: a pass of 16 byte codes */
{
    static const uint8_t code[] = {0, 2, 3, 1, 5, 77, 4, 1, 0, 3, 2, 4, 1, 5, 9, 1, 3, 6, 7};
    sink = stack_machine(code, n);
}

static OPAQUE uint64_t hanoi(unsigned disks, unsigned from, unsigned to)
{
    return disks ? hanoi(disks - 1, from, 6 - from - to) + 1 + hanoi(disks - 1, 6 - from - to, to)
                 : 0;
}

static void row_calls(uint64_t n) /* one operation: 8191 calls */
{
    while (n--) {
        check_value = hanoi(12, 1, 3);
    }
}

/* ---- floating point ---- */

static OPAQUE void multiply(double (*c)[96], double (*a)[96], double (*b)[96])
{
    for (unsigned i = 0; i < 96; i++) {
        for (unsigned j = 0; j < 96; j++) {
            double sum = 0;
            for (unsigned k = 0; k < 96; k++) {
                sum += a[i][k] * b[k][j];
            }
            c[i][j] = sum;
        }
    }
}

static void row_matrix(uint64_t n)
{
    static double a[96][96], b[96][96], c[96][96];
    for (unsigned i = 0; i < 96 * 96; i++) {
        a[i / 96][i % 96] = (i % 13) * 0.5 - 3;
        b[i / 96][i % 96] = (i % 7) * 0.25 - 1;
    }
    while (n--) {
        multiply(c, a, b);
    }
    memcpy(&check_value, &c[40][50], 8);
}

/* A chain of springs, by Euler's method: adds, multiplies, square roots and divisions. */
static OPAQUE void springs(double (*position)[2], double (*speed)[2], unsigned count)
{
    for (unsigned i = 1; i < count; i++) {
        double dx = position[i][0] - position[i - 1][0], dy = position[i][1] - position[i - 1][1];
        double square = dx * dx + dy * dy + 1e-9, length;
        __asm__("sqrtsd %1, %0" : "=x"(length) : "x"(square));
        double force = (length - 1) * 0.01 / length;
        speed[i][0] -= dx * force;
        speed[i][1] -= dy * force;
        speed[i - 1][0] += dx * force;
        speed[i - 1][1] += dy * force;
    }
    for (unsigned i = 0; i < count; i++) {
        position[i][0] += speed[i][0] * 0.01;
        position[i][1] += speed[i][1] * 0.01;
    }
}

static void row_springs(uint64_t n) /* one operation: a step of 32 */
{
    double position[32][2], speed[32][2] = {{0}};
    for (unsigned i = 0; i < 32; i++) {
        position[i][0] = i * 1.1;
        position[i][1] = (i & 3) * 0.1;
    }
    while (n--) {
        springs(position, speed, 32);
    }
    sink = (uint64_t)position[9][1];
}

static OPAQUE unsigned julia(unsigned size)
{
    unsigned total = 0;
    for (unsigned py = 0; py < size; py++) {
        for (unsigned px = 0; px < size; px++) {
            double x = 3.0 * px / size - 1.5, y = 3.0 * py / size - 1.5;
            unsigned i = 0;
            for (; i < 100 && x * x + y * y < 4; i++) {
                double t = x * x - y * y - 0.4;
                y = 2 * x * y + 0.6;
                x = t;
            }
            total += i;
        }
    }
    return total;
}

static void row_julia(uint64_t n)
{
    while (n--) {
        check_value = julia(48);
    }
}

static OPAQUE long double long_series(unsigned terms)
{
    long double sum = 0, sign = 1;
    for (unsigned i = 0; i < terms; i++) {
        sum += sign / (2 * i + 1);
        sign = -sign;
    }
    return sum;
}

static void row_x87(uint64_t n) /* one operation: 1000 terms */
{
    while (n--) {
        check_value = (uint64_t)(long_series(1000) * 1e15L);
    }
}

/* ---- SIMD ---- */

static OPAQUE __m128i blend_pixels(const __m128i *a, const __m128i *b, unsigned count)
{
    __m128i sum = _mm_setzero_si128();
    const __m128i weight = _mm_set1_epi16(77);
    for (unsigned i = 0; i < count; i++) {
        __m128i low = _mm_mulhi_epu16(_mm_adds_epu16(a[i], b[i]), weight);
        __m128i mixed = _mm_sub_epi8(_mm_avg_epu8(a[i], b[i]), _mm_min_epu8(a[i], b[i]));
        sum = _mm_add_epi32(
            sum, _mm_xor_si128(_mm_shuffle_epi32(low, 0x1b), _mm_unpacklo_epi8(mixed, low)));
        sum = _mm_add_epi64(sum, _mm_sad_epu8(a[i], mixed));
    }
    return sum;
}

static void row_sse2(uint64_t n) /* one operation: 16 KiB */
{
    static __m128i *a, *b;
    a = a ? a : (__m128i *)noise(8192);
    b = b ? b : (__m128i *)noise(8192 + 16) + 1;
    while (n--) {
        __m128i sum = blend_pixels(a, b, 511);
        check_value = (uint64_t)_mm_cvtsi128_si64(sum);
    }
}

/* ---- memory ---- */

static OPAQUE void *chase(void *p, uint64_t n)
{
    while (n--) {
        p = *(void **)p;
    }
    return p;
}

static void *ring(size_t size)
{
    enum { LINE = 64 };
    size_t count = size / LINE;
    uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(base != MAP_FAILED, "mmap");
    uint32_t *order = malloc(count * sizeof *order);
    uint64_t state = 12345;
    for (size_t i = 0; i < count; i++) {
        order[i] = (uint32_t)i;
    }
    for (size_t i = count - 1; i > 0; i--) {
        size_t j = xorshift(&state) % (i + 1);
        uint32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < count; i++) {
        *(void **)(base + (size_t)order[i] * LINE) = base + (size_t)order[(i + 1) % count] * LINE;
    }
    free(order);
    return base;
}

static void row_chase_small(uint64_t n)
{
    static void *p;
    p = p ? p : ring(16384);
    sink = (uintptr_t)chase(p, n);
}

enum { LARGE = 64 << 20, COPY = 8 << 20 };
static void *large_ring;
static uint8_t *copy_from, *copy_to;

static void row_chase_large(uint64_t n)
{
    large_ring = large_ring ? large_ring : ring(LARGE);
    sink = (uintptr_t)chase(large_ring, n);
}

/* Between groups: a fork would copy the page tables of all this. */
static void drop_buffers(void)
{
    if (large_ring) {
        munmap(large_ring, LARGE);
        large_ring = NULL;
    }
    free(copy_from);
    free(copy_to);
    copy_from = copy_to = NULL;
}

static void copy_buffers(void)
{
    if (!copy_from) {
        copy_from = noise(COPY);
        copy_to = noise(COPY);
    }
}

static void row_memcpy(uint64_t n)
{
    copy_buffers();
    while (n--) {
        memcpy(copy_to, copy_from, COPY);
        __asm__ volatile("" ::"r"(copy_to) : "memory");
    }
}

static void row_copy_sse2(uint64_t n)
{
    copy_buffers();
    while (n--) {
        for (size_t i = 0; i < COPY; i += 64) {
            for (unsigned j = 0; j < 64; j += 16) {
                _mm_storeu_si128((__m128i *)(copy_to + i + j),
                                 _mm_loadu_si128((__m128i *)(copy_from + i + j)));
            }
        }
        __asm__ volatile("" ::"r"(copy_to) : "memory");
    }
}

static void row_rep_movsb(uint64_t n)
{
    copy_buffers();
    while (n--) {
        void *to = copy_to, *from = copy_from;
        size_t count = COPY;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count)::"memory");
    }
}

static void row_rep_stosq(uint64_t n)
{
    copy_buffers();
    while (n--) {
        void *to = copy_to;
        size_t count = COPY / 8;
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(n) : "memory");
    }
}

/* ---- system calls ---- */

static void row_getppid(uint64_t n)
{
    while (n--) {
        syscall(SYS_getppid);
    }
}

static void row_clock_call(uint64_t n)
{
    struct timespec t;
    while (n--) {
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t);
    }
}

static void row_clock_vdso(uint64_t n)
{
    while (n--) {
        sink = now_ns();
    }
}

static void row_read_byte(uint64_t n)
{
    int fd = open("/dev/zero", O_RDONLY);
    char byte;
    need(fd >= 0, "/dev/zero");
    while (n--) {
        need(read(fd, &byte, 1) == 1, "read");
    }
    close(fd);
}

/* ---- processes and threads ---- */

static void wait_for(pid_t child)
{
    int status;
    need(child > 0 && waitpid(child, &status, 0) == child, "child");
}

static void row_fork(uint64_t n)
{
    while (n--) {
        pid_t child = fork();
        if (child == 0) {
            _exit(0);
        }
        wait_for(child);
    }
}

static char *const child_arguments[] = {"guest_benchmark", "--nothing", NULL};

static void row_fork_exec(uint64_t n)
{
    while (n--) {
        pid_t child = fork();
        if (child == 0) {
            execv("/proc/self/exe", child_arguments);
            _exit(1);
        }
        wait_for(child);
    }
}

static void row_vfork_exec(uint64_t n)
{
    while (n--) {
        pid_t child = vfork();
        if (child == 0) {
            execv("/proc/self/exe", child_arguments);
            _exit(1);
        }
        wait_for(child);
    }
}

static void *nothing(void *argument)
{
    return argument;
}

static void row_thread(uint64_t n)
{
    while (n--) {
        pthread_t thread;
        need(!pthread_create(&thread, NULL, nothing, NULL), "thread");
        pthread_join(thread, NULL);
    }
}

/* ---- paging ---- */

enum { PAGE = 4096, MANY_PAGES = 16384 };

static uint8_t *map_pages(size_t pages)
{
    uint8_t *p =
        mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(p != MAP_FAILED, "mmap");
    madvise(p, pages * PAGE, MADV_NOHUGEPAGE);
    return p;
}

static uint64_t excluded_ns; /* time inside a row that is not the row's */

static void row_touch(uint64_t n)
{
    while (n) {
        size_t pages = n < MANY_PAGES ? n : MANY_PAGES;
        uint8_t *p = map_pages(pages);
        for (size_t i = 0; i < pages; i++) {
            p[i * PAGE] = 1;
        }
        uint64_t start = now_ns();
        munmap(p, pages * PAGE);
        excluded_ns += now_ns() - start;
        n -= pages;
    }
}

static void row_unmap(uint64_t n)
{
    while (n) {
        size_t pages = n < MANY_PAGES ? n : MANY_PAGES;
        uint64_t start = now_ns();
        uint8_t *p = map_pages(pages);
        for (size_t i = 0; i < pages; i++) {
            p[i * PAGE] = 1;
        }
        excluded_ns += now_ns() - start;
        munmap(p, pages * PAGE);
        n -= pages;
    }
}

static void row_map_one(uint64_t n)
{
    while (n--) {
        uint8_t *p = map_pages(1);
        *p = 1;
        munmap(p, PAGE);
    }
}

static void row_protect(uint64_t n)
{
    uint8_t *p = map_pages(1);
    while (n--) {
        mprotect(p, PAGE, PROT_READ);
        mprotect(p, PAGE, PROT_READ | PROT_WRITE);
        *p = 1;
    }
    munmap(p, PAGE);
}

static void row_copy_on_write(uint64_t n)
{
    while (n) {
        size_t pages = n < 4096 ? n : 4096;
        uint64_t start = now_ns();
        uint8_t *p = map_pages(pages);
        memset(p, 1, pages * PAGE);
        int ends[2];
        need(!pipe(ends), "pipe");
        pid_t child = fork();
        if (child == 0) { /* holds its share until told */
            char byte;
            close(ends[1]);
            _exit(read(ends[0], &byte, 1) != 0);
        }
        close(ends[0]);
        excluded_ns += now_ns() - start;
        for (size_t i = 0; i < pages; i++) {
            p[i * PAGE] = 2;
        }
        start = now_ns();
        close(ends[1]);
        wait_for(child);
        munmap(p, pages * PAGE);
        excluded_ns += now_ns() - start;
        n -= pages;
    }
}

/* ---- switches and signals ---- */

static void pin(unsigned cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static cpu_set_t all_cpus;

static void unpin(void)
{
    sched_setaffinity(0, sizeof all_cpus, &all_cpus);
}

static void pipe_ping_pong(uint64_t n, unsigned other_cpu)
{
    int there[2], back[2];
    char byte = 0;
    need(!pipe(there) && !pipe(back), "pipe");
    pin(0);
    pid_t child = fork();
    if (child == 0) {
        pin(other_cpu);
        close(there[1]);
        while (read(there[0], &byte, 1) == 1) {
            need(write(back[1], &byte, 1) == 1, "write");
        }
        _exit(0);
    }
    while (n--) {
        need(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "ping");
    }
    close(there[1]);
    wait_for(child);
    close(there[0]), close(back[0]), close(back[1]);
    unpin();
}

static void row_pipe(uint64_t n)
{
    pipe_ping_pong(n, 0);
}

static void row_yield(uint64_t n)
{
    pin(0);
    uint32_t *stop = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (child == 0) {
        while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
            sched_yield();
        }
        _exit(0);
    }
    while (n--) {
        sched_yield();
    }
    __atomic_store_n(stop, 1, __ATOMIC_RELAXED);
    wait_for(child);
    munmap(stop, PAGE);
    unpin();
}

struct turns {
    uint32_t turn;
    uint64_t count;
    unsigned cpu;
};

static void take_turns(struct turns *turns, uint32_t mine)
{
    for (uint64_t i = 0; i < turns->count; i++) {
        uint32_t seen;
        while ((seen = __atomic_load_n(&turns->turn, __ATOMIC_ACQUIRE)) != mine) {
            syscall(SYS_futex, &turns->turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
        }
        __atomic_store_n(&turns->turn, !mine, __ATOMIC_RELEASE);
        syscall(SYS_futex, &turns->turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}

static void *other_side(void *argument)
{
    struct turns *turns = argument;
    pin(turns->cpu);
    take_turns(turns, 1);
    return NULL;
}

static void futex_ping_pong(uint64_t n, unsigned other_cpu)
{
    struct turns turns = {.count = n, .cpu = other_cpu};
    pthread_t thread;
    pin(0);
    need(!pthread_create(&thread, NULL, other_side, &turns), "thread");
    take_turns(&turns, 0);
    pthread_join(thread, NULL);
    unpin();
}

static void row_futex(uint64_t n)
{
    futex_ping_pong(n, 0);
}

static volatile uint64_t signals_seen;

static void on_signal(int signal)
{
    signals_seen++;
}

static void row_signal(uint64_t n)
{
    signal(SIGUSR1, on_signal);
    while (n--) {
        raise(SIGUSR1);
    }
}

static uint8_t *fault_page;

static void on_fault(int signal, siginfo_t *information, void *context)
{
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 3; /* MOVB $imm8, (%rax) */
}

static void row_fault(uint64_t n)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO}, before;
    action.sa_sigaction = on_fault;
    sigaction(SIGSEGV, &action, &before);
    fault_page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    while (n--) {
        __asm__ volatile("movb $1, (%0)" ::"a"(fault_page) : "memory");
    }
    munmap(fault_page, PAGE);
    sigaction(SIGSEGV, &before, NULL);
}

/* ---- files ---- */

static void file_path(char *path, size_t size)
{
    snprintf(path, size, "%s/benchmark.%d", folder, (int)getpid());
}

static void row_small_file(uint64_t n)
{
    char path[128], bytes[PAGE] = {1};
    file_path(path, sizeof path);
    while (n--) {
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        need(fd >= 0 && write(fd, bytes, PAGE) == PAGE && pread(fd, bytes, PAGE, 0) == PAGE, path);
        close(fd);
        unlink(path);
    }
}

static void row_large_file(uint64_t n) /* one operation: 1 MiB written and read */
{
    char path[128];
    copy_buffers();
    file_path(path, sizeof path);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    need(fd >= 0, path);
    while (n--) {
        need(pwrite(fd, copy_from, 1 << 20, 0) == 1 << 20, path);
        need(pread(fd, copy_to, 1 << 20, 0) == 1 << 20, path);
    }
    close(fd);
    unlink(path);
}

static void row_stat(uint64_t n)
{
    struct stat st;
    while (n--) {
        need(!stat(folder, &st), folder);
    }
}

static void row_open(uint64_t n)
{
    while (n--) {
        int fd = open(folder, O_RDONLY | O_DIRECTORY);
        need(fd >= 0, folder);
        close(fd);
    }
}

/* ---- code that changes or runs once ---- */

static uint8_t *code_pages(size_t size)
{
    uint8_t *p =
        mmap(NULL, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    need(p != MAP_FAILED, "executable memory");
    return p;
}

static void row_patch(uint64_t n) /* change an immediate, call it */
{
    static uint8_t *code;
    code = code ? code : code_pages(PAGE);
    static const uint8_t function[] = {0xb8, 0, 0, 0, 0, 0xc3};
    memcpy(code, function, sizeof function);
    for (uint64_t i = 0; i < n; i++) {
        memcpy(code + 1, &(uint32_t){(uint32_t)i}, 4);
        __asm__ volatile("" ::: "memory");
        uint32_t result = ((uint32_t(*)(void))(uintptr_t)code)();
        need(result == (uint32_t)i, "patched code");
    }
}

/* 16 KiB of fresh instructions, written, run once, written again. */
static void row_run_once(uint64_t n)
{
    enum { SIZE = 16384 };
    static uint8_t *code;
    code = code ? code : code_pages(SIZE + 16);
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *p = code;
        for (unsigned k = 0; k < SIZE / 8; k++) { /* add $x, %eax; imul $k, %eax, %eax */
            *p++ = 0x05;
            memcpy(p, &(uint32_t){k + (uint32_t)i}, 4);
            p += 4;
            *p++ = 0x6b, *p++ = 0xc0, *p++ = 3;
        }
        *p = 0xc3;
        uint32_t result;
        __asm__ volatile("xor %%eax, %%eax; call *%1" : "=a"(result) : "r"(code) : "memory", "cc");
        sink = result;
    }
}

/* ---- two CPUs ---- */

static uint64_t shared_counter __attribute__((aligned(64)));

static void row_atomic(uint64_t n)
{
    while (n--) {
        __atomic_fetch_add(&shared_counter, 1, __ATOMIC_SEQ_CST);
    }
}

static void *atomic_thread(void *count)
{
    pin(1);
    row_atomic(*(uint64_t *)count);
    return NULL;
}

static void row_two_atomics(uint64_t n)
{
    pthread_t thread;
    pin(0);
    need(!pthread_create(&thread, NULL, atomic_thread, &n), "thread");
    row_atomic(n);
    pthread_join(thread, NULL);
    unpin();
}

static void *crc_thread(void *count)
{
    pin(1);
    static uint8_t bytes[65536];
    const uint64_t *table = crc_table();
    for (uint64_t i = *(uint64_t *)count; i--;) {
        sink = crc64(table, bytes, sizeof bytes);
    }
    return NULL;
}

static void row_two_crcs(uint64_t n)
{
    pthread_t thread;
    pin(0);
    need(!pthread_create(&thread, NULL, crc_thread, &n), "thread");
    row_crc(n);
    pthread_join(thread, NULL);
    unpin();
    check_value = 0;
}

static void row_two_pipe(uint64_t n)
{
    pipe_ping_pong(n, 1);
}

static void row_two_futex(uint64_t n)
{
    futex_ping_pong(n, 1);
}

static volatile bool spin_stop;

static void *spin(void *page)
{
    pin(1);
    while (!spin_stop) {
        sink = *(volatile uint8_t *)page;
    }
    return NULL;
}

static void row_shootdown(uint64_t n)
{
    uint8_t *p = map_pages(1);
    pthread_t thread;
    pin(0);
    spin_stop = false;
    *p = 1;
    need(!pthread_create(&thread, NULL, spin, p), "thread");
    while (n--) {
        mprotect(p, PAGE, PROT_READ);
        mprotect(p, PAGE, PROT_READ | PROT_WRITE);
        *p = 1;
    }
    spin_stop = true;
    pthread_join(thread, NULL);
    munmap(p, PAGE);
    unpin();
}

/* ---- rows that only report ---- */

static void row_sleep(uint64_t n)
{
    while (n--) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

static void row_cpuid(uint64_t n)
{
    while (n--) {
        uint32_t a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    }
}

static void row_rdtsc(uint64_t n)
{
    while (n--) {
        sink = __builtin_ia32_rdtsc();
    }
}

static const struct row {
    const char *group, *name;
    void (*run)(uint64_t n);
    unsigned cpus;
} rows[] = {
    {"integer", "sieve", row_sieve, 1},
    {"integer", "crc", row_crc, 1},
    {"integer", "cipher", row_cipher, 1},
    {"integer", "sort", row_sort, 1},
    {"integer", "bytecode", row_bytecode, 1},
    {"integer", "calls", row_calls, 1},
    {"float", "matrix", row_matrix, 1},
    {"float", "springs", row_springs, 1},
    {"float", "julia", row_julia, 1},
    {"float", "x87", row_x87, 1},
    {"simd", "sse2", row_sse2, 1},
    {"memory", "chase_16k", row_chase_small, 1},
    {"memory", "chase_64m", row_chase_large, 1},
    {"memory", "memcpy_libc", row_memcpy, 1},
    {"memory", "copy_sse2", row_copy_sse2, 1},
    {"memory", "rep_movsb", row_rep_movsb, 1},
    {"memory", "rep_stosq", row_rep_stosq, 1},
    {"syscall", "getppid", row_getppid, 1},
    {"syscall", "clock_call", row_clock_call, 1},
    {"syscall", "clock_vdso", row_clock_vdso, 1},
    {"syscall", "read_byte", row_read_byte, 1},
    {"process", "fork", row_fork, 1},
    {"process", "fork_exec", row_fork_exec, 1},
    {"process", "vfork_exec", row_vfork_exec, 1},
    {"process", "thread", row_thread, 1},
    {"paging", "touch", row_touch, 1},
    {"paging", "unmap", row_unmap, 1},
    {"paging", "map_one", row_map_one, 1},
    {"paging", "protect", row_protect, 1},
    {"paging", "copy_on_write", row_copy_on_write, 1},
    {"switch", "pipe", row_pipe, 1},
    {"switch", "futex", row_futex, 1},
    {"switch", "signal", row_signal, 1},
    {"switch", "fault", row_fault, 1},
    {"file", "small_file", row_small_file, 1},
    {"file", "large_file", row_large_file, 1},
    {"file", "stat", row_stat, 1},
    {"file", "open", row_open, 1},
    {"code", "patch", row_patch, 1},
    {"code", "run_once", row_run_once, 1},
    {"smp", "two_crcs", row_two_crcs, 2},
    {"smp", "two_atomics", row_two_atomics, 2},
    {"smp", "two_pipe", row_two_pipe, 2},
    {"smp", "two_futex", row_two_futex, 2},
    {"smp", "shootdown", row_shootdown, 2},
    {"report", "atomic", row_atomic, 1},
    {"report", "yield", row_yield, 1},
    {"report", "sleep_1ms", row_sleep, 1},
    {"report", "cpuid", row_cpuid, 1},
    {"report", "rdtsc", row_rdtsc, 1},
};

/* Grow the count until the loop takes long enough; the last, longest loop counts. */
static void measure(const struct row *row)
{
    check_value = 0;
    row->run(1); /* what is set up once is not measured */
    for (uint64_t n = 1;;) {
        excluded_ns = 0;
        uint64_t start = now_ns();
        row->run(n);
        uint64_t whole = now_ns() - start;
        uint64_t spent = whole > excluded_ns ? whole - excluded_ns : 1;
        double wanted = target_seconds * 1e9;
        if ((double)whole >= wanted * 0.7 || n > 1ull << 40) {
            printf("row %s %s %.2f\n", row->group, row->name, (double)spent / (double)n);
            break;
        }
        double factor = wanted / ((double)whole + 1);
        n = (uint64_t)((double)n * (factor > 20 ? 20 : factor * 1.1)) + 1;
    }
    if (check_value) {
        printf("check %s %llx\n", row->name, (unsigned long long)check_value);
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"seconds", required_argument, NULL, 's'}, {"groups", required_argument, NULL, 'g'},
        {"list", no_argument, NULL, 'l'},          {"nothing", no_argument, NULL, 'n'},
        {"folder", required_argument, NULL, 'f'},  {NULL, 0, NULL, 0},
    };
    const char *groups = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 's':
            target_seconds = atof(optarg);
            break;
        case 'g':
            groups = optarg;
            break;
        case 'f':
            snprintf(folder, sizeof folder, "%s", optarg);
            break;
        case 'l':
            for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
                printf("%s %s\n", rows[i].group, rows[i].name);
            }
            return 0;
        case 'n':
            return 0; /* what the exec rows start */
        default:
            return 2;
        }
    }
    sched_getaffinity(0, sizeof all_cpus, &all_cpus);
    unsigned cpus = (unsigned)CPU_COUNT(&all_cpus);
    tell_clock();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (cpus >= rows[i].cpus && (!groups || in_list(groups, rows[i].group))) {
            measure(&rows[i]);
        }
        if (i + 1 < sizeof rows / sizeof rows[0] && strcmp(rows[i].group, rows[i + 1].group)) {
            drop_buffers();
        }
    }
    tell_clock();
    return 0;
}
