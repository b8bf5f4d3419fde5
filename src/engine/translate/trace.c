/*
 * Telling what happens (engine/trace.h). The receiver is ordinary code, so the guest's vector state
 * is put aside around each call. Nothing here runs unless somebody asked for it.
 */
#include "engine/translate/internal.h"

enum { MARKS_MAX = 8 * UNIT_MAX_INSTRUCTIONS };

struct trace_marks {
    uint32_t count;
    struct trace_mark marks[MARKS_MAX];
};

/* Vector state may be in the CPU only on the vCPU's own thread. */
static bool put_vectors_aside(struct block *block)
{
    bool live = block && block == signals_current() && block->vectors_live;
    if (live) {
        vectors_save(block);
    }
    return live;
}

void trace_event(struct translate_vm *vm, struct block *block, enum engine_trace_kind kind,
                 const char *what, const char *detail, uint64_t value)
{
    const struct trace_event event = {
        .kind = kind,
        .vcpu = block ? (int)block->vcpu.index : -1,
        .what = what,
        .detail = detail,
        .rip = block ? block->vcpu.state.rip : 0,
        .value = value,
    };
    bool live = put_vectors_aside(block);
    vm->config.trace.event(vm->config.trace.owner, &event);
    if (live) {
        vectors_restore(block);
    }
}

static bool wants_units(const struct engine_trace *trace)
{
    return trace->wants_unit || engine_traces(trace, TRACE_UNITS) ||
           engine_traces(trace, TRACE_CODE);
}

struct trace_marks *trace_marks_begin(struct translate_vm *vm)
{
    static _Thread_local struct trace_marks marks;
    if (!wants_units(&vm->config.trace)) {
        return NULL;
    }
    marks.count = 0;
    return &marks;
}

void trace_mark(struct trace_marks *marks, uint32_t host, uint16_t guest, bool is_outline)
{
    if (marks->count < MARKS_MAX) {
        struct trace_mark *mark = &marks->marks[marks->count++];
        mark->host = host;
        mark->guest = guest;
        mark->is_outline = is_outline;
    }
}

static struct trace_host trace_host(const struct translate_vm *vm, const struct extent *part)
{
    return (struct trace_host){.bytes = vm->cache.write + part->start,
                               .address = cache_address(vm, part->start),
                               .size = part->end - part->start};
}

void trace_unit_made(struct block *block, const struct unit *unit, const struct trace_marks *marks,
                     const uint8_t *page, uint32_t guest_size, uint32_t instructions)
{
    struct translate_vm *vm = block->vm;
    struct trace_mark relative[MARKS_MAX];
    for (uint32_t i = 0; i < marks->count; i++) {
        bool is_outline = marks->marks[i].is_outline;
        relative[i].host = marks->marks[i].host - unit->parts[is_outline].start;
        relative[i].guest = (uint16_t)(marks->marks[i].guest - unit->offset);
        relative[i].is_outline = is_outline;
    }
    const struct trace_unit told = {
        .vcpu = block->vcpu.index,
        .is_user = unit->mode & MODE_USER,
        .rip = block->vcpu.state.rip,
        .gpa = unit->page << PAGE_SHIFT | unit->offset,
        .guest = page + unit->offset,
        .guest_size = guest_size,
        .instructions = instructions,
        .host[TRACE_STRAIGHT] = trace_host(vm, &unit->parts[PART_STRAIGHT]),
        .host[TRACE_OUTLINES] = trace_host(vm, &unit->parts[PART_OUTLINES]),
        .marks = relative,
        .mark_count = marks->count,
        .system_call = block->vcpu.state.lstar,
    };
    vm->config.trace.unit(vm->config.trace.owner, &told);
}
