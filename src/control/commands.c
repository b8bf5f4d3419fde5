/* The table of commands; each is a call into the room that does the work. */
#include "control/commands.h"

#include <unistd.h>

#include "base/error.h"
#include "control/console_stream.h"
#include "control/stats.h"
#include "machine/vm.h"

static json_t *run_stats(void *owner, const json_t *request)
{
    const struct control_target *target = owner;
    return stats_json(target->vm);
}

static const char *state_of(const struct control_target *target)
{
    return vm_life(target->vm) == VM_PAUSED ? "paused" : "running";
}

/* A text of the user's, which may be anything, as JSON can have it. */
static json_t *text_json(const char *text)
{
    json_t *string = text ? json_string(text) : json_null();
    return string ? string : json_string("(not UTF-8)");
}

static json_t *disks_json(const struct vm_config *config)
{
    json_t *disks = json_array();
    for (size_t i = 0; i < config->disk_count; i++) {
        json_array_append_new(disks,
                              json_pack("{s:o, s:b}", "path", text_json(config->disks[i].path),
                                        "readonly", config->disks[i].readonly));
    }
    return disks;
}

static json_t *forwards_json(const struct net_config *net)
{
    json_t *forwards = json_array();
    for (size_t i = 0; i < net->forward_count; i++) {
        const struct forward_config *forward = &net->forwards[i];
        json_array_append_new(forwards, json_pack("{s:s, s:s, s:i, s:i}", "protocol",
                                                  forward->is_udp ? "udp" : "tcp", "address",
                                                  forward->address, "host_port", forward->host_port,
                                                  "guest_port", forward->guest_port));
    }
    return forwards;
}

static const char *network_name(const struct net_config *net)
{
    switch (net_config_kind(net)) {
    case NET_UNSAID:
    case NET_NONE:
        break;
    case NET_USER:
        return "user";
    case NET_TAP:
        return "tap";
    case NET_SOCKET:
        return "socket";
    }
    return "none";
}

void control_add_config(json_t *object, const struct vm_config *config)
{
    json_object_set_new(object, "network", json_string(network_name(&config->net)));
    json_object_set_new(object, "forwards", forwards_json(&config->net));
    json_object_set_new(object, "cpus", json_integer(config->cpus));
    json_object_set_new(object, "memory", json_integer((json_int_t)config->memory_size));
    json_object_set_new(object, "kernel", text_json(config->kernel));
    json_object_set_new(object, "initrd", text_json(config->initrd));
    json_object_set_new(object, "append", text_json(config->command_line));
    json_object_set_new(object, "disks", disks_json(config));
}

static json_t *run_info(void *owner, const json_t *request)
{
    const struct control_target *target = owner;
    json_t *info =
        json_pack("{s:s, s:s, s:i, s:s, s:I, s:b, s:b}", "name", vm_name(target->vm), "state",
                  state_of(target), "pid", (int)getpid(), "engine", vm_engine_name(target->vm),
                  "started", (json_int_t)target->started, "kept", target->is_kept, "power_button",
                  vm_power_button_enabled(target->vm));
    control_add_config(info, target->config);
    return info;
}

static json_t *state_json(const struct control_target *target)
{
    return json_pack("{s:s}", "state", state_of(target));
}

static bool is_free(const struct control_target *target)
{
    if (target->is_debugged) {
        fail(-EBUSY, "a debugger stops this machine and lets it go (--gdb), and nobody else");
    }
    return !target->is_debugged;
}

static json_t *run_pause(void *owner, const json_t *request)
{
    struct control_target *target = owner;
    if (!is_free(target)) {
        return NULL;
    }
    vm_pause(target->vm);
    return state_json(target);
}

static json_t *run_resume(void *owner, const json_t *request)
{
    struct control_target *target = owner;
    if (!is_free(target)) {
        return NULL;
    }
    vm_resume(target->vm);
    return state_json(target);
}

static json_t *run_reset(void *owner, const json_t *request)
{
    struct control_target *target = owner;
    if (!is_free(target)) {
        return NULL;
    }
    if (target->config->no_reboot) {
        fail(-EPERM, "this machine was started with --no-reboot");
        return NULL;
    }
    vm_request_reset(target->vm);
    return state_json(target);
}

static json_t *run_power_button(void *owner, const json_t *request)
{
    struct control_target *target = owner;
    return json_pack("{s:b}", "listens", vm_press_power_button(target->vm));
}

static json_t *run_quit(void *owner, const json_t *request)
{
    struct control_target *target = owner;
    vm_request_end(target->vm, VM_END_QUIT, 0);
    return state_json(target);
}

static void on_quit(void *owner)
{
    const struct control_target *target = owner;
    vm_request_end(target->vm, VM_END_QUIT, 0);
}

static json_t *turn_console(void *owner, const json_t *request, const struct session_waker *waker,
                            struct session_stream *ret_stream)
{
    struct control_target *target = owner;
    const struct console_stream_config config = {
        .hub = vm_console(target->vm), .waker = *waker, .quit = on_quit, .owner = target};
    console_stream_open(&config, ret_stream);
    return json_pack("{s:s, s:b}", "name", vm_name(target->vm), "kept", target->is_kept);
}

const struct session_command control_commands[] = {
    {"console", NULL, NULL, turn_console},
    {"info", run_info, NULL, NULL},
    {"pause", run_pause, NULL, NULL},
    {"power_button", run_power_button, NULL, NULL},
    {"quit", run_quit, NULL, NULL},
    {"reset", run_reset, NULL, NULL},
    {"resume", run_resume, NULL, NULL},
    {"stats", run_stats, NULL, NULL},
    {NULL, NULL, NULL, NULL},
};
