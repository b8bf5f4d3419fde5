/*
 * What commands take: operands and options, from a table that also help and the shells' completion
 * are made of.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { ARGUMENTS_OPTIONS_MAX = 16 };

struct command_option {
    const char *name;     /* without the dashes; one letter: with one dash */
    const char *argument; /* NULL: a switch */
    const char *help;
};

/* Whose names the operands are; completion asks for those. */
enum command_names {
    NAMES_NONE,
    NAMES_RUNNING,
    NAMES_STOPPED, /* kept, and not running */
    NAMES_KEPT,
    NAMES_ALL,
    NAMES_IMAGES,
};

struct arguments;
struct command {
    const char *name;
    const char *operands; /* as help writes them; "": none */
    enum command_names names;
    unsigned operands_min, operands_max;
    bool options_first;                   /* what follows the first operand is none of ours */
    const char *help;                     /* one line */
    const struct command_option *options; /* ends with a NULL name; NULL: none */
    /* Returns the exit status. Of two ways to be called exactly one is there: */
    int (*run)(const struct arguments *arguments);
    int (*run_raw)(int argc, char **argv); /* that parses by itself */
};

struct arguments {
    const struct command *command;
    char **operands;
    unsigned count;
    bool given[ARGUMENTS_OPTIONS_MAX];
    const char *values[ARGUMENTS_OPTIONS_MAX];
};

/* Parse and run; wrong usage is told. `argv[0]` is the command's own name. */
int command_call(const struct command *command, int argc, char **argv);

/* Was the option given, and with what? */
bool arguments_has(const struct arguments *arguments, const char *option);
const char *arguments_value(const struct arguments *arguments, const char *option);

/* All commands; the table ends with a NULL name. */
extern const struct command commands[];
