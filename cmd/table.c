/* The table of all commands: what the program knows, what help lists and the shells complete. */
#include "cmd.h"

#define JSON_OPTION                                                                                \
    {                                                                                              \
        "json", NULL, "for programs: JSON, under names that do not change"                         \
    }
#define OPTIONS_END                                                                                \
    {                                                                                              \
        NULL, NULL, NULL                                                                           \
    }
enum { MANY = 1000 };

static const struct command_option json_only[] = {JSON_OPTION, OPTIONS_END};
static const struct command_option stop_options[] = {
    {"force", NULL, "end it at once, or after --timeout: like pulling the plug"},
    {"timeout", "SECONDS", "how long the guest has to switch itself off (default 90)"},
    JSON_OPTION,
    OPTIONS_END,
};
static const struct command_option stats_options[] = {
    JSON_OPTION, {"watch", NULL, "again each second, with rates"}, OPTIONS_END};

const struct command commands[] = {
    {.name = "run",
     .operands = "--kernel FILE [options]",
     .help = "boot a kernel",
     .run_raw = command_run},
    {.name = "image",
     .operands = "build|add|list|inspect|rm|prune [options]",
     .help = "the disks that machines are made of",
     .run_raw = command_image},
    {.name = "list",
     .operands = "",
     .help = "the machines that run or are kept",
     .options = json_only,
     .run = command_list},
    {.name = "show",
     .operands = "NAME",
     .names = NAMES_ALL,
     .operands_min = 1,
     .operands_max = 1,
     .help = "all about one machine",
     .options = json_only,
     .run = command_show},
    {.name = "stop",
     .operands = "NAME...",
     .names = NAMES_RUNNING,
     .operands_min = 1,
     .operands_max = MANY,
     .help = "press the power button (ACPI), and wait until the guest is off",
     .options = stop_options,
     .run = command_stop},
    {.name = "pause",
     .operands = "NAME...",
     .names = NAMES_RUNNING,
     .operands_min = 1,
     .operands_max = MANY,
     .help = "let a machine stand still",
     .options = json_only,
     .run = command_tell},
    {.name = "resume",
     .operands = "NAME...",
     .names = NAMES_RUNNING,
     .operands_min = 1,
     .operands_max = MANY,
     .help = "let it go on",
     .options = json_only,
     .run = command_tell},
    {.name = "reset",
     .operands = "NAME...",
     .names = NAMES_RUNNING,
     .operands_min = 1,
     .operands_max = MANY,
     .help = "press the reset button",
     .options = json_only,
     .run = command_tell},
    {.name = "stats",
     .operands = "NAME",
     .names = NAMES_RUNNING,
     .help = "where the time of a running guest goes",
     .options = stats_options,
     .run_raw = command_stats},
    {.name = "doctor",
     .operands = "",
     .help = "what this host offers, and which engine is used",
     .options = json_only,
     .run_raw = command_doctor},
    {.name = "help",
     .operands = "[COMMAND|keys|status]",
     .help = "this text, or more about one thing",
     .run_raw = command_help},
    {.name = NULL},
};
