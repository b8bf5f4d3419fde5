/*
 * doppel pause, resume, reset, stop: what running machines are told by their control sockets. Each
 * takes several names; one that fails does not keep the others from it.
 */
#include <errno.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/client.h"
#include "control/registry.h"
#include "machine/report.h"

enum {
    STOP_SECONDS = 90,
    STOP_SECONDS_MAX = 86400,
    END_SECONDS = 30,
    PRESS_SECONDS = 5,
    LOOK_NS = 50000000
};

CLEANUP_DEFINE(struct control_connection, control_disconnect)

/* The result is dropped: it says no more than that there was no error. */
static int tell(struct control_connection *connection, const char *command)
{
    json_t *result = NULL;
    int r = control_call(connection, json_pack("{s:s}", "command", command), &result);
    json_decref(result);
    return r;
}

void print_state(const struct arguments *arguments, const char *name, const char *state)
{
    if (arguments_has(arguments, "json")) {
        printf("{\"name\":\"%s\",\"state\":\"%s\"}\n", name, state); /* names need no escapes */
    }
}

int for_each(const struct arguments *arguments,
             int (*call)(const struct arguments *arguments, const char *name))
{
    int status = STATUS_OK;
    for (unsigned i = 0; i < arguments->count; i++) {
        trail_clear();
        if (call(arguments, arguments->operands[i])) {
            report("doppel %s: %s\n", arguments->command->name, trail_text());
            status = STATUS_FAILED;
        }
    }
    return status;
}

static int tell_one(const struct arguments *arguments, const char *name)
{
    CLEANUP(control_disconnect) struct control_connection *connection = NULL;
    int r = control_connect(name, &connection);
    if (!r) {
        r = tell(connection, arguments->command->name);
    }
    if (!r) {
        print_state(arguments, name,
                    !strcmp(arguments->command->name, "pause") ? "paused" : "running");
    }
    return r;
}

int command_tell(const struct arguments *arguments)
{
    return for_each(arguments, tell_one);
}

/* ---- stop ---- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

bool machine_wait_end(const char *name, unsigned seconds)
{
    const struct timespec moment = {.tv_nsec = LOOK_NS};
    uint64_t deadline = now_ns() + seconds * UINT64_C(1000000000);
    while (registry_is_running(name)) {
        if (now_ns() > deadline) {
            return false;
        }
        nanosleep(&moment, NULL);
    }
    return true;
}

/*
 * Press the power button when the guest begins to listen, and again after a while: a driver listens
 * before the programs are there that do something about it.
 */
struct press {
    bool listens;
    uint64_t again_ns; /* when to press next */
};

static int press(struct control_connection *connection, struct press *press)
{
    json_t *info = NULL;
    int r = control_call(connection, json_pack("{s:s}", "command", "info"), &info);
    if (r) {
        return r;
    }
    const char *state = json_string_value(json_object_get(info, "state"));
    bool is_paused = state && !strcmp(state, "paused");
    bool listened = press->listens;
    press->listens = json_is_true(json_object_get(info, "power_button"));
    json_decref(info);
    if (is_paused) { /* or it would never hear of it */
        r = tell(connection, "resume");
    }
    bool is_due = press->listens && (!listened || now_ns() >= press->again_ns);
    if (r || !is_due) {
        return r;
    }
    press->again_ns = now_ns() + PRESS_SECONDS * UINT64_C(1000000000);
    return tell(connection, "power_button");
}

/* 0: it has ended; -ETIMEDOUT: not within the time. */
static int ask_to_end(struct control_connection *connection, const char *name, unsigned seconds)
{
    const struct timespec moment = {.tv_nsec = LOOK_NS};
    uint64_t deadline = now_ns() + seconds * UINT64_C(1000000000);
    struct press button = {0};
    int r = 0;
    while (!r && now_ns() < deadline) {
        r = press(connection, &button);
        if (!r) {
            nanosleep(&moment, NULL);
        }
    }
    if (r == -EPIPE) {
        trail_clear();
        return machine_wait_end(name, END_SECONDS)
                   ? 0
                   : fail(-ETIMEDOUT, "machine '%s' does not go", name);
    }
    return r ? r
             : fail(-ETIMEDOUT,
                    "machine '%s' still runs after %u s%s; 'doppel stop --force %s' ends it", name,
                    seconds,
                    button.listens ? "" : ": its guest does not listen to the power button", name);
}

static int end_now(struct control_connection *connection, const char *name)
{
    int r = tell(connection, "quit");
    if (r == -EPIPE) {
        trail_clear();
        r = 0;
    }
    return r || machine_wait_end(name, END_SECONDS)
               ? r
               : fail(-ETIMEDOUT, "machine '%s' does not go", name);
}

int machine_stop(const char *name, bool force, unsigned seconds)
{
    CLEANUP(control_disconnect) struct control_connection *connection = NULL;
    int r = control_connect(name, &connection);
    if (r == -ECONNREFUSED && machine_wait_end(name, END_SECONDS)) { /* it is just ending */
        trail_clear();
        return 0;
    }
    if (r) {
        return r;
    }
    r = force && !seconds ? -ETIMEDOUT : ask_to_end(connection, name, seconds);
    if (r == -ETIMEDOUT && force) {
        trail_clear();
        r = end_now(connection, name);
    }
    return r;
}

int seconds_parse(const char *text, unsigned most, unsigned *ret_seconds)
{
    char *end;
    unsigned long seconds = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || seconds > most) {
        return fail(-EINVAL, "--timeout: '%s' is not a number of seconds up to %u", text, most);
    }
    *ret_seconds = (unsigned)seconds;
    return 0;
}

int stop_seconds(const struct arguments *arguments, unsigned *ret_seconds)
{
    const char *text = arguments_value(arguments, "timeout");
    *ret_seconds = arguments_has(arguments, "force") ? 0 : STOP_SECONDS;
    return text ? seconds_parse(text, STOP_SECONDS_MAX, ret_seconds) : 0;
}

static int stop_one(const struct arguments *arguments, const char *name)
{
    unsigned seconds;
    int r = stop_seconds(arguments, &seconds);
    if (!r) {
        r = machine_stop(name, arguments_has(arguments, "force"), seconds);
    }
    if (!r) {
        print_state(arguments, name, "stopped");
    }
    return r;
}

int command_stop(const struct arguments *arguments)
{
    unsigned seconds;
    if (stop_seconds(arguments, &seconds)) {
        report("doppel stop: %s\n", trail_text());
        return STATUS_USAGE;
    }
    return for_each(arguments, stop_one);
}
