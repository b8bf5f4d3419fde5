/* Inside qcow2_check(): counting (qcow2_check.c) and writing counts anew (qcow2_repair.c). */
#pragma once

#include "backend/disk/qcow2_internal.h"

/* Counts of this many clusters are in memory at once: 64 MiB. More are counted in several passes.
 */
enum { QCOW2_WINDOW = 32 << 20, QCOW2_WINDOWS_MAX = 64, QCOW2_COUNT_MAX = UINT16_MAX };

struct qcow2_check {
    struct qcow2 *q;
    struct qcow2_report *report;
    struct qcow2_snapshot *snapshots;
    uint64_t snapshot_table_size;
    uint64_t clusters; /* of the file */
    uint16_t *counts;  /* of [first, first + window), saturated */
    uint64_t first, window;
    struct qcow2_set fixed; /* clusters of all tables but L2 tables and those of refcounts */
    uint8_t *table;         /* one cluster */
    bool has_refcounts;     /* count the refcount table and its blocks, too */
    void (*progress)(void *owner, uint64_t done, uint64_t total);
    void *owner;
};

/* What a walk does with what it finds; each may be NULL. */
struct qcow2_visitor {
    /* References to [offset, offset + length). */
    void (*use)(struct qcow2_check *check, uint64_t offset, uint64_t length);
    /*
     * An entry of the active L1 table or of an L2 table that it leads to, `is_bad`: that cannot be.
     * Returns what it is to be from now on.
     */
    uint64_t (*entry)(struct qcow2_check *check, uint64_t raw, bool is_table, bool is_bad);
    /* The same of tables that only snapshots have: nothing is changed there. */
    void (*bad)(struct qcow2_check *check);
    bool is_first; /* tell progress */
};
int qcow2_walk(struct qcow2_check *check, const struct qcow2_visitor *visitor)
    __attribute__((warn_unused_result));
/* Count what the window covers. */
int qcow2_count(struct qcow2_check *check, uint64_t first, bool has_refcounts)
    __attribute__((warn_unused_result));
uint16_t qcow2_counted(const struct qcow2_check *check, uint64_t cluster);

/* Drop what cannot be, set the flags right, and write all counts anew. */
int qcow2_repair(struct qcow2_check *check) __attribute__((warn_unused_result));
