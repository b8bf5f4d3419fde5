/*
 * Giving frames back to the host. Pages are marked as closing, their mappings are outwaited, and
 * what nobody has asked for meanwhile is punched out of the memory file.
 */
#include "memory/memory_internal.h"

#include <errno.h>
#include <fcntl.h>

#include "base/bytes.h"
#include "base/error.h"

enum { BATCH = 512 };

struct batch {
    uint64_t first;
    unsigned count;
    bool is_mapped; /* some page may be mapped somewhere */
    bool is_marked[BATCH];
    uint64_t seen[BATCH]; /* the entries as marked; their generation matters */
};

static void batch_mark(struct memory *memory, struct batch *batch)
{
    const uint64_t in_use = ENTRY_BUSY | ENTRY_CLOSING | ENTRY_PINS;
    for (unsigned i = 0; i < batch->count; i++) {
        _Atomic uint64_t *entry = &memory->entries[batch->first + i];
        uint64_t value = atomic_load(entry);
        batch->is_marked[i] = false;
        while ((value & (ENTRY_STATE | in_use)) == ENTRY_PRIVATE && !batch->is_marked[i]) {
            batch->is_marked[i] = entry_exchange(entry, &value, value | ENTRY_CLOSING);
        }
        batch->seen[i] = value;
        if (batch->is_marked[i] && value & (ENTRY_MAPPED_READ | ENTRY_MAPPED_WRITE | ENTRY_STALE)) {
            batch->is_mapped = true;
        }
    }
}

/* Seize a marked page if it is still ours and unused; otherwise it stays what it is. */
static bool seize(_Atomic uint64_t *entry, uint64_t seen)
{
    uint64_t value = atomic_load(entry);
    while (value & ENTRY_CLOSING && !((value ^ seen) & ENTRY_GENERATION)) {
        uint64_t desired = value & ~ENTRY_CLOSING;
        bool is_free = !(value & ENTRY_PINS);
        if (entry_exchange(entry, &value, is_free ? desired | ENTRY_BUSY : desired)) {
            return is_free;
        }
    }
    return false;
}

/* Punch a run of seized pages and let go of them: as ZERO, or as they were if the host refuses. */
static int punch(struct memory *memory, uint64_t first, uint64_t count)
{
    int r = fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                      (off_t)(first << PAGE_SHIFT), (off_t)(count << PAGE_SHIFT));
    int error = r < 0 ? -errno : 0;
    const uint64_t gone = ENTRY_STATE | ENTRY_STALE | ENTRY_MAPPED_READ | ENTRY_MAPPED_WRITE;
    for (uint64_t page = first; page < first + count; page++) {
        uint64_t value = atomic_load(&memory->entries[page]);
        uint64_t desired;
        do {
            desired = value & ~ENTRY_BUSY;
            if (error == 0) {
                desired =
                    ((desired & ~gone) | ENTRY_ZERO | ENTRY_DIRTY_ALL) + ENTRY_NEXT_GENERATION;
            }
        } while (!entry_exchange(&memory->entries[page], &value, desired));
        if (error == 0) {
            event_count(&memory->discarded);
        }
    }
    return error;
}

static int batch_punch(struct memory *memory, struct batch *batch)
{
    int error = 0;
    unsigned run = 0;
    pthread_mutex_lock(&memory->busy_lock);
    for (unsigned i = 0; i <= batch->count; i++) {
        if (i < batch->count && batch->is_marked[i]) {
            batch->is_marked[i] = seize(&memory->entries[batch->first + i], batch->seen[i]);
        }
        if (i < batch->count && batch->is_marked[i]) {
            run++;
        } else if (run > 0) {
            int r = punch(memory, batch->first + i - run, run);
            error = r < 0 ? r : error;
            run = 0;
        }
    }
    pthread_mutex_unlock(&memory->busy_lock);
    return error;
}

static int batch_discard(struct memory *memory, struct batch *batch)
{
    batch->is_mapped = false;
    batch_mark(memory, batch);
    if (batch->is_mapped) {
        listeners_drop(memory, batch->first, batch->count, false);
        listeners_quiesce(memory);
    }
    int r = batch_punch(memory, batch);
    for (unsigned i = 0; i < batch->count; i++) {
        gpa_t gpa = (batch->first + i) << PAGE_SHIFT;
        if (batch->is_marked[i] && atomic_load(&memory->entries[batch->first + i]) & ENTRY_CODE) {
            listeners_code_written(memory, gpa, PAGE_SIZE);
        }
    }
    return r;
}

int memory_discard(struct memory *memory, gpa_t gpa, uint64_t length)
{
    if ((gpa | length) & (PAGE_SIZE - 1)) {
        return -EINVAL;
    }
    if (!memory_is_ram(memory, gpa, length)) {
        return -EFAULT;
    }
    struct batch batch;
    uint64_t end = (gpa + length) >> PAGE_SHIFT;
    for (uint64_t page = gpa >> PAGE_SHIFT; page < end; page += batch.count) {
        batch.first = page;
        batch.count = end - page < BATCH ? (unsigned)(end - page) : BATCH;
        int r = batch_discard(memory, &batch);
        if (r < 0) {
            errno = -r;
            return fail(r, "give guest memory back to the host: %m");
        }
    }
    return 0;
}
