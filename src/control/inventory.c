/* Asking machines and looking into their folders: see inventory.h. */
#include "control/inventory.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "control/client.h"
#include "control/commands.h"
#include "control/machine.h"
#include "control/registry.h"

enum { PATIENCE_SECONDS = 3 };

CLEANUP_DEFINE(struct control_connection, control_disconnect)
CLEANUP_DEFINE(struct machine, machine_close)

/* What a running machine says of itself; NULL: it has just ended. */
static json_t *ask(const char *name)
{
    CLEANUP(control_disconnect) struct control_connection *connection = NULL;
    json_t *info = NULL;
    int r = control_connect(name, &connection);
    if (!r) {
        control_be_patient(connection, PATIENCE_SECONDS);
        r = control_call(connection, json_pack("{s:s}", "command", "info"), &info);
    }
    trail_clear();
    if (!r) {
        return info;
    }
    if (!registry_is_running(name)) {
        return NULL;
    }
    /* its name is taken before its socket is there */
    const char *state = r == -ENOENT || r == -ECONNREFUSED ? "starting" : "unresponsive";
    return json_pack("{s:s, s:s, s:b}", "name", name, "state", state, "kept", machine_exists(name));
}

/*
 * What is saved of a kept machine, put into `object`; what runs knows better what it is made of.
 * False: it has just been removed.
 */
static bool add_saved(const struct machine *machine, json_t *object, bool runs)
{
    struct vm_config config;
    struct machine_facts facts;
    bool is_there = true;
    vm_config_init(&config);
    json_object_set_new(object, "folder", json_string(machine->path));
    if (machine_load(machine, &config, &facts)) {
        is_there = machine_is_current(machine);
        if (is_there) {
            json_object_set_new(object, "error", json_string(trail_text()));
        }
        if (is_there && !runs) {
            json_object_set_new(object, "state", json_string("broken"));
        }
        trail_clear();
    } else {
        if (!runs) {
            control_add_config(object, &config);
        }
        json_object_set_new(object, "image", *facts.image ? json_string(facts.image) : json_null());
        json_object_set_new(object, "created", json_integer(facts.created));
        json_object_set_new(object, "remove", json_boolean(facts.removes));
    }
    vm_config_fini(&config);
    return is_there;
}

static int fail_unknown(const char *name)
{
    json_t *all = NULL;
    char known[1024] = "";
    if (inventory_all(&all)) {
        trail_clear();
    }
    for (size_t i = 0; i < json_array_size(all); i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "",
                 json_string_value(json_object_get(json_array_get(all, i), "name")));
    }
    json_decref(all);
    return fail(-ENOENT, "there is no machine '%.100s' (there are: %s)", name,
                *known ? known : "none");
}

/* Whoever else looks holds the lock for a moment, too. */
static bool is_held(const struct machine *machine)
{
    const struct timespec moment = {.tv_nsec = 10000000};
    for (unsigned i = 0; i < 3; i++) {
        if (!machine_is_busy(machine)) {
            return false;
        }
        nanosleep(&moment, NULL);
    }
    return true;
}

/* NULL: there is none. */
static json_t *find(const char *name)
{
    CLEANUP(machine_close) struct machine *machine = NULL;
    json_t *object = vm_name_check(name) ? NULL : ask(name);
    bool runs = object;
    if (machine_exists(name) && !machine_look(name, &machine)) {
        /* held, and not known by name: a start or another command is under way */
        const char *state = is_held(machine) ? "starting" : "stopped";
        object =
            object ? object : json_pack("{s:s, s:s, s:b}", "name", name, "state", state, "kept", 1);
        if (!add_saved(machine, object, runs) && !runs) {
            json_decref(object);
            object = NULL;
        }
    }
    trail_clear();
    return object;
}

int inventory_one(const char *name, json_t **ret_machine)
{
    *ret_machine = find(name);
    return *ret_machine ? 0 : fail_unknown(name);
}

static void add(json_t *machines, const char *name)
{
    json_t *object = find(name);
    if (object) { /* it may be gone since it was listed */
        json_array_append_new(machines, object);
    }
}

int inventory_all(json_t **ret_machines)
{
    struct machine_names kept = {0};
    struct registry_names running = {0};
    int r = machine_list(&kept);
    if (!r) {
        r = registry_names(&running);
    }
    json_t *machines = json_array();
    for (size_t i = 0, j = 0; !r && (i < kept.count || j < running.count);) {
        int order = i == kept.count      ? 1
                    : j == running.count ? -1
                                         : strcmp(kept.names[i], running.names[j]);
        add(machines, order <= 0 ? kept.names[i] : running.names[j]);
        i += order <= 0;
        j += order >= 0;
    }
    registry_names_fini(&running);
    machine_names_fini(&kept);
    if (r) {
        json_decref(machines);
        return r;
    }
    *ret_machines = machines;
    return 0;
}
