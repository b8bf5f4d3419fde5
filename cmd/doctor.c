/* doppel doctor [--json]: what this host offers, which engine is picked, and why. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "control/host.h"
#include "machine/report.h"

static void print_finding(const struct host_finding *finding)
{
    printf("  %-18s %-4s %s\n", finding->key, finding->ok ? "yes" : "no", finding->text);
}

static void print_text(const struct host *host)
{
    printf("CPU: %s, %u online\n", host->cpu, host->cpu_count);
    printf("Memory: %llu MiB, %llu MiB available\n", (unsigned long long)(host->memory_total >> 20),
           (unsigned long long)(host->memory_available >> 20));
    printf("CPU models (--cpu-model):\n");
    for (size_t i = 0; i < CPU_MODEL_COUNT; i++) {
        print_finding(&host->models[i]);
    }
    printf("Hardware virtualization:\n");
    printf("  %-18s %-4s %s\n", "/dev/kvm", host->kvm.usable ? "yes" : "no", host->kvm.text);
    printf("Host:\n");
    for (size_t i = 0; i < host->finding_count; i++) {
        print_finding(&host->findings[i]);
    }
    printf("Engines (--engine):\n");
    for (size_t i = 0; i < 2; i++) {
        print_finding(&host->engines[i]);
    }
    if (host->engine) {
        printf("Engine used: %s (%s)\n", host->engine, host->engine_reason);
    } else {
        printf("Engine used: none, so nothing can run here\n");
    }
}

static json_t *findings_json(const struct host_finding *findings, size_t count)
{
    json_t *object = json_object();
    for (size_t i = 0; i < count; i++) {
        json_object_set_new(object, findings[i].key,
                            json_pack("{s:b, s:s%}", "ok", findings[i].ok, "text", findings[i].text,
                                      strlen(findings[i].text)));
    }
    return object;
}

static int print_json(const struct host *host)
{
    json_t *root =
        json_pack("{s:{s:s, s:i}, s:{s:I, s:I}, s:o, s:{s:b, s:b, s:b, s:s}, s:o, s:o, s:s?, s:s}",
                  "cpu", "name", host->cpu, "online", (int)host->cpu_count, "memory", "total",
                  (json_int_t)host->memory_total, "available", (json_int_t)host->memory_available,
                  "cpu_models", findings_json(host->models, CPU_MODEL_COUNT), "kvm", "exists",
                  host->kvm.exists, "opens", host->kvm.opens, "usable", host->kvm.usable, "text",
                  host->kvm.text, "host", findings_json(host->findings, host->finding_count),
                  "engines", findings_json(host->engines, 2), "engine", host->engine,
                  "engine_reason", host->engine_reason);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    if (text) {
        puts(text);
    }
    free(text);
    json_decref(root);
    return text ? 0 : -1;
}

int command_doctor(int argc, char **argv)
{
    bool json = argc == 2 && !strcmp(argv[1], "--json");
    if (argc > 1 && !json) {
        report("doppel doctor: the only option is --json\n");
        return STATUS_USAGE;
    }
    struct host host;
    host_examine(&host);
    if (!json) {
        print_text(&host);
    } else if (print_json(&host)) {
        report("doppel doctor: the findings cannot be written as JSON\n");
        return STATUS_FAILED;
    }
    return host.engine ? STATUS_OK : STATUS_FAILED;
}
