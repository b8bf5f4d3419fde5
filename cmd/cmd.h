/* What the files of the program share: one function for each command. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "arguments.h"

/* Exit statuses. Odd numbers above 2 come from the guest's debug-exit port only. */
enum {
    STATUS_OK = 0,
    STATUS_FAILED = 1, /* our error before the guest started */
    STATUS_USAGE = 2,
    STATUS_DIED = 4,         /* our error while the guest ran */
    STATUS_TRIPLE_FAULT = 6, /* with --no-reboot */
    STATUS_SSH_FAILED = 255, /* as ssh has it: others are the remote command's */
};

/* `argv[0]` is the command's own name. Each returns the exit status. */
int command_run(int argc, char **argv);
int command_image(int argc, char **argv);
int command_launch(int argc, char **argv);
int command_stats(int argc, char **argv);
int command_disk(int argc, char **argv);
int command_doctor(int argc, char **argv);
int command_help(int argc, char **argv);

int command_list(const struct arguments *arguments);
int command_show(const struct arguments *arguments);
int command_stop(const struct arguments *arguments);
int command_start(const struct arguments *arguments);
int command_restart(const struct arguments *arguments);
int command_rename(const struct arguments *arguments);
int command_rm(const struct arguments *arguments);
int command_console(const struct arguments *arguments);
int command_logs(const struct arguments *arguments);
int command_completion(const struct arguments *arguments);
int command_ssh(const struct arguments *arguments);
int command_cp(const struct arguments *arguments);
/* pause, resume, reset */
int command_tell(const struct arguments *arguments);

/* Two lines for somebody who typed a command that needs more. */
void help_first_steps(void);
/* The help of a command of the table. */
void help_command(const struct command *command);

/* Options of run and launch beside the machine's; ends with a NULL name. */
const struct command_option *run_own_options(void);
/* What --jail off means. */
void jail_warn(void);

/* Call for each machine that is named; errors are told, and the first one is the status. */
int for_each(const struct arguments *arguments,
             int (*call)(const struct arguments *arguments, const char *name));
/* With --json: one line about a machine. */
void print_state(const struct arguments *arguments, const char *name, const char *state);

/* Print, and drop the reference; the exit status. */
int json_print(json_t *value);

/*
 * Let a guest switch itself off within `seconds`; with `force` the machine ends after that in any
 * case. Returns when its name is free. -ETIMEDOUT: it still runs.
 */
int machine_stop(const char *name, bool force, unsigned seconds)
    __attribute__((warn_unused_result));
/* Wait until its name is free: everything of its process is gone then. False: it is not. */
bool machine_wait_end(const char *name, unsigned seconds);
/* The value of --timeout. */
int seconds_parse(const char *text, unsigned most, unsigned *ret_seconds)
    __attribute__((warn_unused_result));
/* What --timeout and --force say. */
int stop_seconds(const struct arguments *arguments, unsigned *ret_seconds)
    __attribute__((warn_unused_result));
