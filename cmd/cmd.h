/* What the files of the program share: one function for each command. */
#pragma once

#include <stdbool.h>

/* Exit statuses. Odd numbers above 2 come from the guest's debug-exit port only. */
enum {
    STATUS_OK = 0,
    STATUS_FAILED = 1, /* our error before the guest started */
    STATUS_USAGE = 2,
    STATUS_DIED = 4,         /* our error while the guest ran */
    STATUS_TRIPLE_FAULT = 6, /* with --no-reboot */
};

/* `argv[0]` is the command's own name. Each returns the exit status. */
int command_run(int argc, char **argv);
int command_stats(int argc, char **argv);
int command_doctor(int argc, char **argv);
int command_help(int argc, char **argv);

/* Two lines for somebody who typed a command that needs more. */
void help_first_steps(void);
