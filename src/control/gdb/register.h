/*
 * The registers as GDB sees them: their order, names and types (the target description), and their
 * places in cpu_state. GDB manual, G.5.15: the features org.gnu.gdb.i386.*; the feature
 * org.doppel.gdb.i386.system has what is not named there.
 */
#pragma once

#include <stddef.h>

#include "control/gdb/target.h"

enum { GDB_REGISTER_MAX = 32 }; /* bytes of the largest */

/* How many registers a target has; they are numbered from 0. */
unsigned gdb_register_count(const struct gdb_target *target);
/* The bytes of a register; 0 if there is no such register. */
size_t gdb_register_size(const struct gdb_target *target, unsigned number);
/* Its bytes, lowest first, as many as gdb_register_size() says. */
void gdb_register_get(const struct gdb_target *target, const struct cpu_state *state,
                      unsigned number, uint8_t ret_value[GDB_REGISTER_MAX]);
/*
 * -EINVAL if it cannot be set so. Whether the state as a whole makes sense is for the target.
 * A segment register is loaded with its descriptor, from the tables of `cpu`.
 */
int gdb_register_set(const struct gdb_target *target, unsigned cpu, struct cpu_state *state,
                     unsigned number, const uint8_t value[GDB_REGISTER_MAX])
    __attribute__((warn_unused_result));

/* The target description, an XML document, to be freed. */
char *gdb_register_description(const struct gdb_target *target);
