/* The commands that a machine's control socket knows. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "control/session.h"

struct vm;
struct vm_config;

/* Whom the commands are about: owner of each session. */
struct control_target {
    struct vm *vm;
    const struct vm_config *config;
    int64_t started;  /* seconds since 1970 */
    bool is_kept;     /* it has a folder (machine.h) */
    bool is_debugged; /* a debugger stops it and lets it go, and nobody else */
};

/* For control_server_open() with a struct control_target as owner; ends with a NULL name. */
extern const struct session_command control_commands[];

/* What a machine is made of, for "info" and for whoever tells of one that does not run. */
void control_add_config(json_t *object, const struct vm_config *config);
