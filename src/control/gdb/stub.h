/*
 * The server's side of GDB's remote serial protocol, for one peer: bytes in, bytes out, and a
 * machine (target.h) between. GDB manual, appendix E. All-stop; vCPU n is thread n + 1.
 *
 * Promises: whatever the peer sends, replies are packets of bounded size, and nothing but the
 *           target is touched. What is not supported is answered as the protocol wants it: with an
 *           empty packet.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "control/gdb/target.h"

struct gdb_stub;

struct gdb_stub_config {
    struct gdb_target target; /* it stands still */
    /* Bytes for the peer. */
    void (*send)(void *owner, const void *bytes, size_t count);
    void *owner;
};

/* For a peer that has just come. */
struct gdb_stub *gdb_stub_new(const struct gdb_stub_config *config);
/* The machine stays as it is; its points are the target's business. NULL is fine. */
void gdb_stub_free(struct gdb_stub *stub);
CLEANUP_DEFINE(struct gdb_stub, gdb_stub_free)

/* A byte from the peer. */
void gdb_stub_take(struct gdb_stub *stub, uint8_t byte);
/* A vCPU may have stopped by itself. */
void gdb_stub_stopped(struct gdb_stub *stub);
/* The machine has ended, with this exit status. */
void gdb_stub_ended(struct gdb_stub *stub, uint8_t status);
/* Has the peer let the machine go? */
bool gdb_stub_is_detached(const struct gdb_stub *stub);
