/*
 * Runs a machine and, again and again, saves it in the middle, frees it, loads it into a freshly
 * built one and lets it go on: what the saved state lacks, the guest misses. Before each move the
 * stream is compared with the machine that was loaded from it.
 *
 *     move EVERY_MS MOVES OPTION [VALUE] ...     options as for `doppel run`
 *
 * Ends with the status that `doppel run` would have for power-off (0), else 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/loop.h"
#include "machine/config.h"
#include "machine/vm.h"
#include "persist/visitor.h"

struct move {
    struct vm_config config;
    struct vm *vm;
    struct timer *timer;
    struct visitor *saved; /* the stream of the last move */
    uint64_t every_ns;
    unsigned moves_left, moves_done;
};

static void die(const char *what)
{
    fprintf(stderr, "move: %s: %s\n", what, trail_text());
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void on_timer(void *owner)
{
    struct move *move = owner;
    vm_pause(move->vm);
    move->saved = visitor_new_write();
    if (vm_visit(move->vm, move->saved)) {
        die("save");
    }
    vm_request_end(move->vm, VM_END_QUIT, 0);
}

static void report_difference(void *owner, const char *section, const char *field)
{
    fprintf(stderr, "move: %s.%s differs after loading\n", section, field);
}

static void load(struct move *move)
{
    size_t size;
    const void *data = visitor_buffer(move->saved, &size);
    struct visitor *v = visitor_new_read(data, size);
    if (vm_visit(move->vm, v) || !visitor_at_end(v)) {
        die("load");
    }
    visitor_free(v);
    v = visitor_new_compare(data, size, report_difference, NULL);
    if (vm_visit(move->vm, v) || visitor_differences(v)) {
        die("compare");
    }
    visitor_free(v);
    visitor_free(move->saved);
    move->saved = NULL;
}

/* One machine, until it ends or is saved. True: it was saved. */
static bool run_once(struct move *move, struct vm_end *ret_end)
{
    if (vm_new(&move->config, &move->vm)) {
        die("build");
    }
    if (move->saved) {
        load(move);
        move->moves_done++;
    }
    if (vm_start(move->vm)) {
        die("start");
    }
    if (move->moves_left) {
        move->moves_left--;
        move->timer = timer_new(vm_loop(move->vm), on_timer, move);
        timer_arm(move->timer, now_ns() + move->every_ns);
    }
    vm_run(move->vm, ret_end);
    timer_free(move->timer);
    move->timer = NULL;
    vm_free(move->vm);
    return move->saved;
}

static bool is_switch(const char *name)
{
    for (const struct vm_option *option = vm_options(); option->name; option++) {
        if (!strcmp(option->name, name)) {
            return !option->argument;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: move EVERY_MS MOVES OPTION [VALUE]...\n");
        return 2;
    }
    struct move move = {.every_ns = strtoull(argv[1], NULL, 10) * 1000000,
                        .moves_left = (unsigned)strtoul(argv[2], NULL, 10)};
    vm_config_init(&move.config);
    for (int i = 3; i < argc; i++) {
        const char *name = argv[i] + 2;
        if (vm_config_set(&move.config, name, is_switch(name) ? NULL : argv[++i])) {
            die("options");
        }
    }
    struct vm_end end;
    while (run_once(&move, &end)) {
    }
    vm_config_fini(&move.config);
    fprintf(stderr, "move: moved %u times, end %d %s\n", move.moves_done, end.kind, end.message);
    return end.kind == VM_END_POWER_OFF ? 0 : 1;
}
