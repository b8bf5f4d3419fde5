/*
 * The protocol of transitions, with threads that behave as vCPUs do: each has a small soft TLB,
 * safe points and quiet times, and keeps account of what it stored. For the thread sanitizer too.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "memory/memory.h"

enum { CPUS = 3, STRESS_PAGES = 16, STRESS_ROUNDS = 60000 };

/* What a vCPU thread has mapped; it drops entries itself, at safe points. */
struct cpu {
    struct stress *stress;
    uint8_t *read_frame[STRESS_PAGES], *write_frame[STRESS_PAGES];
    atomic_uint requested; /* drops asked for: at every safe point everything goes */
    atomic_uint served;
    atomic_bool is_quiet;
    unsigned seed;
};

struct stress {
    struct memory *memory;
    struct cpu cpus[CPUS];
    pthread_barrier_t start;
    uint64_t deadline; /* however busy the host is, the test ends soon */
    atomic_uint running;
    /* One byte of each page per CPU, and what that CPU knows it holds. */
    uint64_t expected[CPUS][STRESS_PAGES];
    /* What a "translator" took from a page; code_written() empties it. */
    pthread_mutex_t units_lock;
    bool has_unit[STRESS_PAGES];
    uint64_t unit[STRESS_PAGES];
    unsigned interest[STRESS_PAGES];
    unsigned translating[STRESS_PAGES];
};

static _Thread_local struct cpu *this_cpu;

static int setup(void **state)
{
    static const struct memory_range range = {0, MIB(1)};
    struct memory *memory;
    if (memory_new(&range, 1, "transition-test", &memory) < 0) {
        return -1;
    }
    *state = memory;
    return 0;
}

static int teardown(void **state)
{
    memory_free(*state);
    return 0;
}

/* A safe point: forget everything if anything was asked to be dropped. */
static void safe_point(struct cpu *cpu)
{
    unsigned requested = atomic_load(&cpu->requested);
    if (requested != atomic_load(&cpu->served)) {
        memset(cpu->read_frame, 0, sizeof cpu->read_frame);
        memset(cpu->write_frame, 0, sizeof cpu->write_frame);
        atomic_store(&cpu->served, requested);
    }
}

static void cpu_drop(void *owner, uint64_t first_page, uint64_t count, bool write_only)
{
    struct stress *stress = owner;
    for (unsigned i = 0; i < CPUS; i++) {
        atomic_fetch_add(&stress->cpus[i].requested, 1);
    }
}

static void cpu_quiesce(void *owner)
{
    struct stress *stress = owner;
    if (this_cpu) {
        atomic_store(&this_cpu->is_quiet, true);
    }
    for (unsigned i = 0; i < CPUS; i++) {
        struct cpu *cpu = &stress->cpus[i];
        unsigned target = atomic_load(&cpu->requested);
        while (cpu != this_cpu && !atomic_load(&cpu->is_quiet) &&
               (int)(atomic_load(&cpu->served) - target) < 0) {
            sched_yield();
        }
    }
    if (this_cpu) {
        atomic_store(&this_cpu->is_quiet, false);
        safe_point(this_cpu);
    }
}

static void cpu_code_written(void *owner, gpa_t gpa, uint64_t length)
{
    struct stress *stress = owner;
    pthread_mutex_lock(&stress->units_lock);
    uint64_t last = (gpa + length - 1) >> PAGE_SHIFT;
    for (uint64_t page = gpa >> PAGE_SHIFT; page <= last; page++) {
        stress->has_unit[page] = false;
        stress->interest[page]++;
    }
    pthread_mutex_unlock(&stress->units_lock);
}

static uint64_t milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool is_over(const struct stress *stress)
{
    return milliseconds() >= stress->deadline;
}

static unsigned next_random(unsigned *seed)
{
    *seed = *seed * 1103515245 + 12345;
    return *seed >> 16;
}

static gpa_t cell(const struct cpu *cpu, unsigned page)
{
    return (gpa_t)page * PAGE_SIZE + (gpa_t)(cpu - cpu->stress->cpus) * 8;
}

/* Store as translated code would: through the mapping, or through the door if there is none. */
static void cpu_store(struct cpu *cpu, unsigned page, uint64_t value)
{
    struct memory *memory = cpu->stress->memory;
    gpa_t gpa = cell(cpu, page);
    if (!cpu->write_frame[page]) {
        uint8_t *frame;
        if (memory_frame(memory, page, true, &frame) == FRAME_CODE) {
            ASSERT(memory_write(memory, gpa, &value, 8) == 0);
            return;
        }
        cpu->write_frame[page] = frame;
    }
    uint8_t *at = cpu->write_frame[page] + (gpa & (PAGE_SIZE - 1));
    if (next_random(&cpu->seed) % 8 == 0) {
        sched_yield(); /* what can happen between a check and its store */
    }
    __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELAXED);
}

static uint64_t cpu_fetch(struct cpu *cpu, unsigned page)
{
    struct memory *memory = cpu->stress->memory;
    if (!cpu->read_frame[page]) {
        ASSERT(memory_frame(memory, page, false, &cpu->read_frame[page]) == FRAME_OK);
    }
    uint8_t *at = cpu->read_frame[page] + (cell(cpu, page) & (PAGE_SIZE - 1));
    return __atomic_load_n((uint64_t *)at, __ATOMIC_RELAXED);
}

/* Take note of interest, mark, read, keep: the order that struct memory_listener asks for. */
static void cpu_translate(struct cpu *cpu, unsigned page)
{
    struct stress *stress = cpu->stress;
    pthread_mutex_lock(&stress->units_lock);
    unsigned interest = stress->interest[page];
    stress->translating[page]++;
    pthread_mutex_unlock(&stress->units_lock);
    uint64_t bytes;
    bool is_code = memory_set_code(stress->memory, page) == 0;
    ASSERT(memory_read(stress->memory, (gpa_t)page * PAGE_SIZE, &bytes, 8) == 0);
    pthread_mutex_lock(&stress->units_lock);
    stress->translating[page]--;
    if (is_code && stress->interest[page] == interest) {
        stress->unit[page] = bytes;
        stress->has_unit[page] = true;
    }
    pthread_mutex_unlock(&stress->units_lock);
}

/* A page without units, and that nobody translates, is data again. */
static void cpu_forget(struct cpu *cpu, unsigned page)
{
    struct stress *stress = cpu->stress;
    pthread_mutex_lock(&stress->units_lock);
    if (!stress->has_unit[page] && stress->translating[page] == 0) {
        memory_clear_code(stress->memory, page);
    }
    pthread_mutex_unlock(&stress->units_lock);
}

/* The unit must hold what the first CPU, whose cell was translated, stored last. */
static void cpu_check_unit(struct cpu *cpu, unsigned page)
{
    struct stress *stress = cpu->stress;
    pthread_mutex_lock(&stress->units_lock);
    if (cpu == &stress->cpus[0] && stress->has_unit[page]) {
        ASSERT(stress->unit[page] == stress->expected[0][page]);
    }
    pthread_mutex_unlock(&stress->units_lock);
}

static void *cpu_main(void *argument)
{
    struct cpu *cpu = argument;
    struct stress *stress = cpu->stress;
    uint64_t *expected = stress->expected[cpu - stress->cpus];
    this_cpu = cpu;
    pthread_barrier_wait(&stress->start);
    for (unsigned i = 1; i <= STRESS_ROUNDS && !is_over(cpu->stress); i++) {
        unsigned page = next_random(&cpu->seed) % STRESS_PAGES;
        uint64_t found;
        switch (next_random(&cpu->seed) % 8) {
        case 0:
            ASSERT(memory_write(stress->memory, cell(cpu, page), &(uint64_t){i}, 8) == 0);
            expected[page] = i;
            break;
        case 1:
            ASSERT(memory_compare_exchange(stress->memory, cell(cpu, page), 8, expected[page], i,
                                           &found) == 0);
            ASSERT(found == expected[page]);
            expected[page] = i;
            break;
        case 2:
            if (page < STRESS_PAGES / 2) {
                cpu_translate(cpu, page);
                cpu_check_unit(cpu, page);
            }
            break;
        case 3:
            cpu_check_unit(cpu, page);
            cpu_forget(cpu, page);
            break;
        case 4:
            ASSERT(cpu_fetch(cpu, page) == expected[page]);
            break;
        default:
            cpu_store(cpu, page, i);
            expected[page] = i;
            break;
        }
        safe_point(cpu);
    }
    atomic_store(&cpu->is_quiet, true);
    atomic_fetch_sub(&stress->running, 1);
    return NULL;
}

/* A device: borrows, and gives back pages that only it uses. */
static void *device_main(void *argument)
{
    struct stress *stress = argument;
    struct memory *memory = stress->memory;
    uint64_t value = 0, found;
    unsigned seed = 99;
    pthread_barrier_wait(&stress->start);
    while (atomic_load(&stress->running) > 0) {
        gpa_t page = (gpa_t)(next_random(&seed) % STRESS_PAGES) << PAGE_SHIFT;
        gpa_t spare = (gpa_t)(STRESS_PAGES + next_random(&seed) % 4) << PAGE_SHIFT;
        struct memory_span span;
        ASSERT(memory_borrow(memory, page + 2048, 8, true, &span, 1) == 1);
        __atomic_store_n((uint64_t *)span.host, ++value, __ATOMIC_RELAXED);
        memory_return(memory, &span, 1, true);
        ASSERT(memory_read(memory, page + 2048, &found, 8) == 0);
        ASSERT(found == value);
        ASSERT(memory_write(memory, spare, &value, 8) == 0);
        ASSERT(memory_discard(memory, spare, PAGE_SIZE) == 0);
        ASSERT(memory_read(memory, spare, &found, 8) == 0);
        ASSERT(found == 0);
    }
    return NULL;
}

static void *dirty_main(void *argument)
{
    struct stress *stress = argument;
    uint64_t bitmap;
    pthread_barrier_wait(&stress->start);
    while (atomic_load(&stress->running) > 0) {
        memory_take_dirty(stress->memory, DIRTY_MIGRATION, 0, 64, &bitmap);
        sched_yield();
    }
    return NULL;
}

static void *discard_main(void *argument)
{
    struct stress *stress = argument;
    pthread_barrier_wait(&stress->start);
    while (atomic_load(&stress->running) > 0) {
        ASSERT(memory_discard(stress->memory, 0, STRESS_PAGES * PAGE_SIZE) == 0);
    }
    return NULL;
}

/* Store as a device does: what is borrowed is not given back meanwhile. */
static void cpu_borrow(struct cpu *cpu, unsigned page, uint64_t value)
{
    struct memory *memory = cpu->stress->memory;
    struct memory_span span;
    uint64_t found;
    ASSERT(memory_borrow(memory, cell(cpu, page), 8, true, &span, 1) == 1);
    __atomic_store_n((uint64_t *)span.host, value, __ATOMIC_RELAXED);
    sched_yield();
    ASSERT(memory_read(memory, cell(cpu, page), &found, 8) == 0 && found == value);
    memory_return(memory, &span, 1, true);
}

/* What this CPU stored is there or has become zero, and what became zero does not come back. */
static void *discarded_cpu_main(void *argument)
{
    struct cpu *cpu = argument;
    uint64_t last[STRESS_PAGES] = {0};
    this_cpu = cpu;
    pthread_barrier_wait(&cpu->stress->start);
    for (unsigned i = 1; i <= STRESS_ROUNDS && !is_over(cpu->stress); i++) {
        unsigned page = next_random(&cpu->seed) % STRESS_PAGES;
        uint64_t found = cpu_fetch(cpu, page);
        ASSERT(found == 0 || found == last[page]);
        last[page] = found;
        safe_point(cpu);
        switch (next_random(&cpu->seed) % 4) {
        case 0:
            cpu_store(cpu, page, i);
            last[page] = i;
            break;
        case 1:
            cpu_borrow(cpu, page, i);
            last[page] = i;
            break;
        default:
            break;
        }
        safe_point(cpu);
    }
    atomic_store(&cpu->is_quiet, true);
    atomic_fetch_sub(&cpu->stress->running, 1);
    return NULL;
}

/* Run CPUs, and beside them two other threads until the CPUs are done. */
static void run(struct stress *stress, struct memory *memory, void *(*cpu)(void *argument),
                void *(*first)(void *argument), void *(*second)(void *argument))
{
    memset(stress, 0, sizeof *stress);
    stress->memory = memory;
    stress->deadline = milliseconds() + 300;
    struct memory_listener listener = {cpu_drop, cpu_quiesce, cpu_code_written, stress};
    memory_listen(memory, &listener);
    pthread_mutex_init(&stress->units_lock, NULL);
    pthread_barrier_init(&stress->start, NULL, CPUS + 2);
    atomic_store(&stress->running, CPUS);
    for (unsigned i = 0; i < CPUS; i++) {
        stress->cpus[i].stress = stress;
        stress->cpus[i].seed = i + 1;
    }
    pthread_t threads[CPUS + 2];
    for (unsigned i = 0; i < CPUS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, cpu, &stress->cpus[i]), 0);
    }
    assert_int_equal(pthread_create(&threads[CPUS], NULL, first, stress), 0);
    assert_int_equal(pthread_create(&threads[CPUS + 1], NULL, second, stress), 0);
    for (unsigned i = 0; i < CPUS + 2; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_mutex_destroy(&stress->units_lock);
    pthread_barrier_destroy(&stress->start);
}

/* What each CPU stored stays stored, and a unit never outlives the bytes that it came from. */
static void transitions_lose_nothing(void **state)
{
    static struct stress stress;
    run(&stress, *state, cpu_main, device_main, dirty_main);
    for (unsigned page = 0; page < STRESS_PAGES; page++) {
        for (unsigned i = 0; i < CPUS; i++) {
            uint64_t value;
            assert_int_equal(memory_read(*state, cell(&stress.cpus[i], page), &value, 8), 0);
            assert_int_equal(value, stress.expected[i][page]);
        }
        if (stress.has_unit[page]) { /* its bytes were the cell of the first CPU */
            assert_int_equal(stress.unit[page], stress.expected[0][page]);
        }
    }
}

static void discards_never_resurrect(void **state)
{
    static struct stress stress;
    run(&stress, *state, discarded_cpu_main, discard_main, discard_main);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(transitions_lose_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(discards_never_resurrect, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
