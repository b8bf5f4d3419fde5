/* doppel list [--json], doppel show NAME [--json]: which machines there are, and what they are. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "cmd.h"
#include "control/inventory.h"
#include "machine/report.h"

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static json_int_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* How long ago, as people say it. */
static void age_write(json_int_t since, char *text, size_t size)
{
    json_int_t seconds = (json_int_t)time(NULL) - since;
    seconds = seconds < 0 ? 0 : seconds;
    if (seconds < 120) {
        snprintf(text, size, "%" PRIdMAX " s", (intmax_t)seconds);
    } else if (seconds < 7200) {
        snprintf(text, size, "%" PRIdMAX " min", (intmax_t)seconds / 60);
    } else if (seconds < 172800) {
        snprintf(text, size, "%" PRIdMAX " h", (intmax_t)seconds / 3600);
    } else {
        snprintf(text, size, "%" PRIdMAX " days", (intmax_t)seconds / 86400);
    }
}

static void print_row(const json_t *machine)
{
    char memory[32] = "", age[32] = "";
    if (json_object_get(machine, "memory")) {
        snprintf(memory, sizeof memory, "%" PRIdMAX "M",
                 (intmax_t)number_of(machine, "memory") >> 20);
    }
    if (json_object_get(machine, "started")) {
        age_write(number_of(machine, "started"), age, sizeof age);
    }
    char cpus[16] = "";
    if (json_object_get(machine, "cpus")) {
        snprintf(cpus, sizeof cpus, "%d", (int)number_of(machine, "cpus"));
    }
    printf("%-20s %-12s %4s %8s %8s  %-4s %s\n", text_of(machine, "name"),
           text_of(machine, "state"), cpus, memory, age,
           json_is_true(json_object_get(machine, "kept")) ? "yes" : "no",
           text_of(machine, "image"));
}

int json_print(json_t *value)
{
    char *text = json_dumps(value, JSON_INDENT(2));
    if (text) {
        puts(text);
    }
    free(text);
    json_decref(value);
    return text ? STATUS_OK : STATUS_FAILED;
}

int command_list(const struct arguments *arguments)
{
    json_t *machines;
    if (inventory_all(&machines)) {
        report("doppel list: %s\n", trail_text());
        return STATUS_FAILED;
    }
    if (arguments_has(arguments, "json")) {
        return json_print(machines);
    }
    if (json_array_size(machines)) {
        printf("%-20s %-12s %4s %8s %8s  %-4s %s\n", "NAME", "STATE", "CPUS", "MEMORY", "UP",
               "KEPT", "IMAGE");
    } else {
        report("doppel list: there are no machines; 'doppel help' shows how to make one\n");
    }
    for (size_t i = 0; i < json_array_size(machines); i++) {
        print_row(json_array_get(machines, i));
    }
    json_decref(machines);
    return STATUS_OK;
}

/* One fact; what is null is left out. */
static void print_fact(const char *key, const json_t *value)
{
    if (json_is_string(value)) {
        printf("%-13s %s\n", key, json_string_value(value));
    } else if (json_is_boolean(value)) {
        printf("%-13s %s\n", key, json_is_true(value) ? "yes" : "no");
    } else if (!strcmp(key, "memory")) {
        printf("%-13s %" PRIdMAX " MiB\n", key, (intmax_t)json_integer_value(value) >> 20);
    } else if (!strcmp(key, "started") || !strcmp(key, "created")) {
        char when[32];
        time_t seconds = (time_t)json_integer_value(value);
        struct tm local;
        if (localtime_r(&seconds, &local)) {
            strftime(when, sizeof when, "%F %T", &local);
            printf("%-13s %s\n", key, when);
        }
    } else if (json_is_integer(value)) {
        printf("%-13s %" PRIdMAX "\n", key, (intmax_t)json_integer_value(value));
    }
}

static void print_disk(const json_t *disk)
{
    printf("%-13s %s%s\n", "disk", text_of(disk, "path"),
           json_is_true(json_object_get(disk, "readonly")) ? " (read-only)" : "");
}

static void print_forward(const json_t *forward)
{
    printf("%-13s %s:%d to port %d (%s)\n", "forward", text_of(forward, "address"),
           (int)number_of(forward, "host_port"), (int)number_of(forward, "guest_port"),
           text_of(forward, "protocol"));
}

static void print_machine(const json_t *machine)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)machine, key, value)
    {
        for (size_t i = 0; i < json_array_size(value); i++) {
            (!strcmp(key, "disks") ? print_disk : print_forward)(json_array_get(value, i));
        }
        print_fact(key, value);
    }
}

int command_show(const struct arguments *arguments)
{
    json_t *machine;
    if (inventory_one(arguments->operands[0], &machine)) {
        report("doppel show: %s\n", trail_text());
        return STATUS_FAILED;
    }
    if (arguments_has(arguments, "json")) {
        return json_print(machine);
    }
    print_machine(machine);
    json_decref(machine);
    return STATUS_OK;
}
