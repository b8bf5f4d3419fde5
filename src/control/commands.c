/* The table of commands; each is a call into the room that does the work. */
#include "control/commands.h"

#include "control/stats.h"

static json_t *run_stats(void *owner, const json_t *request)
{
    return stats_json(owner);
}

const struct session_command control_commands[] = {
    {"stats", run_stats, NULL},
    {NULL, NULL, NULL},
};
