/*
 * Random sequences of door calls against a model: an array of bytes, the mappings that a vCPU
 * would hold, and what has to be told about code and dirty pages.
 * Guards: src/memory/memory.c src/memory/pmap.c src/memory/dma.c src/memory/discard.c
 */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "memory/memory.h"

enum { PAGES = 12, HOLE = 5, BORROWS = 3 }; /* page HOLE is not RAM */

struct model {
    struct memory *memory;
    uint8_t bytes[PAGES * PAGE_SIZE];
    uint8_t *read_frame[PAGES], *write_frame[PAGES];
    bool is_code[PAGES], was_told[PAGES], is_dirty[DIRTY_CONSUMERS][PAGES];
    struct memory_span borrows[BORROWS];
    uint8_t fill; /* changes with each store */
};

static void drop(void *owner, uint64_t first_page, uint64_t count, bool write_only)
{
    struct model *model = owner;
    for (uint64_t page = first_page; page < first_page + count && page < PAGES; page++) {
        model->write_frame[page] = NULL;
        if (!write_only) {
            model->read_frame[page] = NULL;
        }
    }
}

static void quiesce(void *owner)
{
}

static void code_written(void *owner, gpa_t gpa, uint64_t length)
{
    struct model *model = owner;
    for (uint64_t page = gpa >> PAGE_SHIFT; page <= (gpa + length - 1) >> PAGE_SHIFT; page++) {
        model->was_told[page] = true;
    }
}

static bool is_ram(gpa_t gpa, uint64_t length)
{
    const gpa_t hole = HOLE << PAGE_SHIFT;
    return range_fits(gpa, length, hole) ||
           (gpa >= hole + PAGE_SIZE && range_fits(gpa, length, PAGES << PAGE_SHIFT));
}

/* What a store by way of memory must have led to. */
static void note_store(struct model *model, gpa_t gpa, uint64_t length)
{
    for (uint64_t page = gpa >> PAGE_SHIFT; length && page <= (gpa + length - 1) >> PAGE_SHIFT;
         page++) {
        ASSERT(!model->is_code[page] || model->was_told[page]);
        model->was_told[page] = false;
        for (unsigned i = 0; i < DIRTY_CONSUMERS; i++) {
            model->is_dirty[i][page] = true;
        }
    }
}

static void do_write(struct model *model, gpa_t gpa, uint64_t length)
{
    static uint8_t buffer[PAGES * PAGE_SIZE];
    memset(buffer, ++model->fill, sizeof buffer);
    int r = memory_write(model->memory, gpa, buffer, length);
    ASSERT(r == (is_ram(gpa, length) || length == 0 ? 0 : -EFAULT));
    if (r == 0 && length > 0) {
        memset(model->bytes + gpa, model->fill, length);
        note_store(model, gpa, length);
    }
}

static void do_exchange(struct model *model, gpa_t gpa, uint8_t what)
{
    uint64_t found, now, expected = what & 1 ? 0 : 1;
    int r = memory_load(model->memory, gpa, 8, &now);
    ASSERT(r == (gpa & 7 ? -EINVAL : is_ram(gpa, 8) ? 0 : -EFAULT));
    if (what & 2 && r == 0) {
        expected = now;
    }
    ASSERT(memory_compare_exchange(model->memory, gpa, 8, expected, what, &found) == r);
    if (r == 0) {
        ASSERT(now == load_le64(model->bytes + gpa) && found == now);
        if (found == expected) {
            store_le64(model->bytes + gpa, what);
            note_store(model, gpa, 8);
        }
    }
}

/* As translated code would: fill the mapping if there is none, and use it. */
static void do_frame(struct model *model, uint64_t page, unsigned offset, bool write)
{
    uint8_t **frame = write ? &model->write_frame[page] : &model->read_frame[page];
    if (!*frame) {
        enum frame_result result = memory_frame(model->memory, page, write, frame);
        ASSERT((result == FRAME_NONE) == (page == HOLE));
        ASSERT(page == HOLE || (result == FRAME_CODE) == (write && model->is_code[page]));
        if (result != FRAME_OK) {
            *frame = NULL;
            return;
        }
    }
    ASSERT(!write || !model->is_code[page]);
    ASSERT((*frame)[offset] == model->bytes[page * PAGE_SIZE + offset]);
    if (write) {
        (*frame)[offset] = model->bytes[page * PAGE_SIZE + offset] = ++model->fill;
        note_store(model, page * PAGE_SIZE + offset, 1);
    }
}

static bool is_borrowed(const struct model *model, uint64_t page, bool write_only)
{
    for (unsigned i = 0; i < BORROWS; i++) {
        const struct memory_span *span = &model->borrows[i];
        if (span->host && page >= span->gpa >> PAGE_SHIFT &&
            page <= (span->gpa + span->length - 1) >> PAGE_SHIFT &&
            (span->is_write || !write_only)) {
            return true;
        }
    }
    return false;
}

static void do_code(struct model *model, uint64_t page, bool set)
{
    if (!set) {
        memory_clear_code(model->memory, page);
        model->is_code[page] = false;
        return;
    }
    int expected = page == HOLE ? -EFAULT : is_borrowed(model, page, true) ? -EBUSY : 0;
    ASSERT(memory_set_code(model->memory, page) == expected);
    model->is_code[page] |= expected == 0;
    ASSERT(expected || !model->write_frame[page]);
}

static void do_borrow(struct model *model, unsigned index, gpa_t gpa, uint64_t length, bool write)
{
    struct memory_span *span = &model->borrows[index % BORROWS];
    if (!span->host) {
        int r = memory_borrow(model->memory, gpa, length, write, span, 1);
        ASSERT(r == (length == 0 && is_ram(gpa, 0) ? 0 : is_ram(gpa, length) ? 1 : -EFAULT));
        if (r != 1) {
            span->host = NULL;
        }
        return;
    }
    ASSERT(memcmp(span->host, model->bytes + span->gpa, span->length) == 0);
    if (span->is_write && write) {
        memset(span->host, ++model->fill, span->length);
        memset(model->bytes + span->gpa, model->fill, span->length);
    }
    struct memory_span returned = *span;
    span->host = NULL;
    memory_return(model->memory, &returned, 1, write);
    if (returned.is_write && write) {
        note_store(model, returned.gpa, returned.length);
    }
}

static void do_discard(struct model *model, uint64_t page, uint64_t count)
{
    gpa_t gpa = page << PAGE_SHIFT;
    enum page_state before[PAGES];
    for (uint64_t i = 0; i < PAGES; i++) {
        before[i] = memory_page_state(model->memory, i);
    }
    int r = memory_discard(model->memory, gpa, count << PAGE_SHIFT);
    ASSERT(r == (is_ram(gpa, count << PAGE_SHIFT) ? 0 : -EFAULT));
    for (uint64_t i = page; r == 0 && i < page + count; i++) {
        if (!is_borrowed(model, i, false)) {
            ASSERT(memory_page_state(model->memory, i) == PAGE_ZERO);
            memset(model->bytes + i * PAGE_SIZE, 0, PAGE_SIZE);
            if (before[i] == PAGE_PRIVATE) {
                note_store(model, i << PAGE_SHIFT, PAGE_SIZE);
            }
        }
    }
}

static void do_take_dirty(struct model *model, unsigned consumer)
{
    uint64_t bitmap;
    memory_take_dirty(model->memory, consumer, 0, 64, &bitmap);
    for (unsigned page = 0; page < PAGES; page++) {
        ASSERT(!model->is_dirty[consumer][page] || bitmap >> page & 1);
        ASSERT(!(bitmap >> page & 1) || !model->write_frame[page]);
        model->is_dirty[consumer][page] = false;
    }
}

static void step(struct model *model, const uint8_t *data)
{
    gpa_t gpa = load_le16(data + 1) % ((PAGES + 1) * PAGE_SIZE);
    uint64_t page = data[1] % PAGES;
    uint64_t length = data[3] & 0x80 ? (data[3] & 0x7f) * 200u : data[3] & 15u;
    switch (data[0] % 8) {
    case 0:
        do_write(model, gpa, length);
        break;
    case 1:
        do_exchange(model, data[3] & 0x80 ? gpa : align_down(gpa, 8), data[3] & 0x7f);
        break;
    case 2:
    case 3:
        do_frame(model, page, load_le16(data + 2) % PAGE_SIZE, data[0] % 8 == 2);
        break;
    case 4:
        do_code(model, page, data[3] & 1);
        break;
    case 5:
        do_borrow(model, data[0] / 8, gpa, length, data[3] & 1);
        break;
    case 6:
        do_discard(model, page, data[3] % 4);
        break;
    default:
        do_take_dirty(model, data[3] % DIRTY_CONSUMERS);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct memory_range ranges[] = {
        {0, HOLE * PAGE_SIZE}, {(HOLE + 1) * PAGE_SIZE, (PAGES - HOLE - 1) * PAGE_SIZE}};
    static struct model model;
    static uint8_t back[PAGES * PAGE_SIZE];
    memset(&model, 0, sizeof model);
    ASSERT(memory_new(ranges, 2, "memory-fuzz", &model.memory) == 0);
    struct memory_listener listener = {drop, quiesce, code_written, &model};
    memory_listen(model.memory, &listener);
    for (size_t i = 0; i + 4 <= size; i += 4) {
        step(&model, data + i);
    }
    for (uint64_t page = 0; page < PAGES; page++) {
        int r = memory_read(model.memory, page << PAGE_SHIFT, back, PAGE_SIZE);
        ASSERT(r == (page == HOLE ? -EFAULT : 0));
        ASSERT(r < 0 || memcmp(back, model.bytes + (page << PAGE_SHIFT), PAGE_SIZE) == 0);
    }
    memory_free(model.memory);
    return 0;
}
