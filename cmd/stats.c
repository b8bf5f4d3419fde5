/* doppel stats NAME [--json] [--watch]: where the time of a running machine's guest goes. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "cmd.h"
#include "control/client.h"
#include "control/registry.h"
#include "machine/report.h"
#include "stats_table.h"

struct stats_options {
    const char *name;
    bool json, watch;
};

CLEANUP_DEFINE(struct control_connection, control_disconnect)

static int parse(struct stats_options *options, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) {
            options->json = true;
        } else if (!strcmp(argv[i], "--watch")) {
            options->watch = true;
        } else if (argv[i][0] == '-') {
            return fail(-EINVAL, "there is no option %s (known: --json, --watch)", argv[i]);
        } else if (options->name) {
            return fail(-EINVAL, "one machine at a time");
        } else {
            options->name = argv[i];
        }
    }
    if (!options->name) {
        char running[1024] = "";
        if (registry_list(running, sizeof running)) {
            trail_clear();
        }
        return fail(-EINVAL, "whose? doppel stats NAME (running: %s)", *running ? running : "none");
    }
    return 0;
}

static void print_json(const json_t *stats, bool is_one_line)
{
    char *text = json_dumps(stats, is_one_line ? JSON_COMPACT : JSON_INDENT(2));
    if (text) {
        puts(text);
    }
    free(text);
}

static void show(const struct stats_options *options, const json_t *stats, const json_t *before)
{
    if (options->json) {
        print_json(stats, options->watch);
        return;
    }
    if (options->watch && isatty(STDOUT_FILENO)) {
        fputs("\033[H\033[J", stdout); /* the screen begins anew */
    }
    stats_table_print(stdout, stats, before);
}

/* Once, or each second until the machine ends or somebody ends us. */
static int ask(const struct stats_options *options, struct control_connection *connection)
{
    const struct timespec second = {.tv_sec = 1};
    json_t *before = NULL, *stats = NULL;
    int r;
    while (!(r = control_call(connection, json_pack("{s:s}", "command", "stats"), &stats))) {
        show(options, stats, before);
        json_decref(before);
        before = stats;
        if (!options->watch || fflush(stdout)) {
            break;
        }
        nanosleep(&second, NULL);
    }
    if (r == -EPIPE && before) {
        trail_clear();
        r = 0; /* it ended while we watched */
    }
    json_decref(before);
    return r;
}

int command_stats(int argc, char **argv)
{
    struct stats_options options = {0};
    if (parse(&options, argc, argv)) {
        report("doppel stats: %s\n", trail_text());
        return STATUS_USAGE;
    }
    CLEANUP(control_disconnect) struct control_connection *connection = NULL;
    int r = control_connect(options.name, &connection);
    if (!r) {
        r = ask(&options, connection);
    }
    if (r) {
        report("doppel stats: %s\n", trail_text());
        return STATUS_FAILED;
    }
    return STATUS_OK;
}
