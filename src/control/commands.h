/* The commands that a machine's control socket knows. */
#pragma once

#include "control/session.h"

/* For control_server_open() with the struct vm as owner; ends with a NULL name. */
extern const struct session_command control_commands[];
