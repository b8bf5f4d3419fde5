/*
 * Runs a guest in the whole machine and moves it: every so many milliseconds the machine is, in
 * turns, paused for a moment, or saved and loaded into a fresh one that goes on. After each load
 * the machine is compared with the stream. The guest must end as if nothing had happened: with a
 * pass at the debug-exit port, or switched off. Options are those of `doppel run`, as NAME=VALUE.
 *
 *     move_machine MILLISECONDS kernel=FILE [engine=...] [cpus=...] ...
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/loop.h"
#include "machine/vm.h"
#include "persist/visitor.h"

enum { PASS = 0x10, MOVES_MAX = 50, PAUSE_MS = 3 };

struct move {
    struct vm *vm;
    struct timer *timer;
    unsigned milliseconds, turn;
    struct visitor *saved; /* NULL: the machine ended before it was to move */
    int error;
};

static void arm(struct move *move, unsigned milliseconds)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    timer_arm(move->timer, (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec +
                               milliseconds * 1000000ull);
}

/* Pause, go on, move. */
static void turn(void *owner)
{
    struct move *move = owner;
    switch (move->turn++) {
    case 0:
        vm_pause(move->vm);
        arm(move, PAUSE_MS);
        break;
    case 1:
        vm_resume(move->vm);
        arm(move, move->milliseconds);
        break;
    default:
        vm_pause(move->vm);
        move->saved = visitor_new_write();
        move->error = vm_visit(move->vm, move->saved);
        vm_request_end(move->vm, VM_END_QUIT, 0);
        break;
    }
}

static void report_difference(void *owner, const char *section, const char *field)
{
    fprintf(stderr, "move_machine: %s.%s differs after loading\n", section, field);
}

static int load(struct vm *vm, struct visitor *saved)
{
    size_t size;
    const void *stream = visitor_buffer(saved, &size);
    struct visitor *in = visitor_new_read(stream, size);
    int r = vm_visit(vm, in);
    if (!r && !visitor_at_end(in)) {
        r = fail(-EPROTO, "bytes are left in the stream");
    }
    visitor_free(in);
    struct visitor *again = visitor_new_compare(stream, size, report_difference, NULL);
    r = r ? r : vm_visit(vm, again);
    if (!r && visitor_differences(again)) {
        r = fail(-EPROTO, "the loaded machine differs from the stream");
    }
    visitor_free(again);
    return r;
}

/* One stretch of the guest's life. `saved` is consumed and replaced. */
static int run_stretch(const struct vm_config *config, unsigned milliseconds,
                       struct visitor **saved, struct vm_end *ret_end)
{
    struct move move = {.milliseconds = milliseconds};
    int r = vm_new(config, &move.vm);
    if (!r && *saved) {
        r = load(move.vm, *saved);
        visitor_free(*saved);
        *saved = NULL;
    }
    r = r ? r : vm_start(move.vm);
    if (r) {
        vm_free(move.vm);
        return r;
    }
    move.timer = timer_new(vm_loop(move.vm), turn, &move);
    if (milliseconds) {
        arm(&move, milliseconds);
    }
    vm_run(move.vm, ret_end);
    timer_free(move.timer);
    vm_free(move.vm);
    *saved = move.saved;
    return move.error;
}

static int run(const struct vm_config *config, unsigned milliseconds)
{
    struct visitor *saved = NULL;
    for (unsigned moves = 0;; moves++) {
        struct vm_end end;
        int r = run_stretch(config, moves < MOVES_MAX ? milliseconds : 0, &saved, &end);
        if (r) {
            fprintf(stderr, "move_machine: after %u moves: %s\n", moves, trail_text());
            return 1;
        }
        if (end.kind != VM_END_QUIT) { /* it may have ended while it was saved */
            visitor_free(saved);
            bool passed = end.kind == VM_END_POWER_OFF ||
                          (end.kind == VM_END_DEBUG_EXIT && end.value == PASS);
            fprintf(stderr, "%s after %u moves (end %d, value %x) %s\n",
                    passed ? "passed" : "failed", moves, end.kind, end.value, end.message);
            return passed ? 0 : 1;
        }
    }
}

int main(int argc, char **argv)
{
    struct vm_config config;
    vm_config_init(&config);
    int r = vm_config_set(&config, "debug-exit", "0xf4");
    r = r ? r : vm_config_set(&config, "no-reboot", NULL);
    for (int i = 2; i < argc && !r; i++) {
        char *value = strchr(argv[i], '=');
        if (value) {
            *value++ = 0;
        }
        r = vm_config_set(&config, argv[i], value);
    }
    r = r ? r : vm_config_check(&config);
    if (r || argc < 3) {
        fprintf(stderr, "move_machine: %s\n", trail_text());
        return 2;
    }
    r = run(&config, (unsigned)atoi(argv[1]));
    vm_config_fini(&config);
    return r;
}
