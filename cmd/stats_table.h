/* The facts of control/stats.h as a table for people. */
#pragma once

#include <jansson.h>
#include <stdio.h>

/*
 * Print the sum of all vCPUs by topic, the largest first; what is zero is left out. `before` (NULL:
 * none) is an older answer, whose difference to this one is shown as rates for each second.
 */
void stats_table_print(FILE *file, const json_t *stats, const json_t *before);
