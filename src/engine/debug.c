/* Breakpoints, watchpoints and steps of a debugger; see debug.h. */
#include "engine/debug.h"

#include "base/bytes.h"
#include "engine/vcpu.h"

bool debug_has_break_within(const struct debug_points *points, gva_t first, gva_t last)
{
    unsigned low = 0, high = points->break_count;

    while (low < high) { /* the first one that is not below */
        unsigned middle = low + (high - low) / 2;
        if (points->breaks[middle] < first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < points->break_count && points->breaks[low] <= last;
}

bool debug_has_break(const struct debug_points *points, gva_t gva)
{
    return debug_has_break_within(points, gva, gva);
}

bool debug_is_watched(const struct debug *debug, gva_t gva)
{
    gva_t first = align_down(gva, PAGE_SIZE), last = first + PAGE_SIZE - 1;

    for (unsigned i = 0; i < debug->points->watch_count; i++) {
        const struct debug_watch *watch = &debug->points->watches[i];
        if (watch->first <= last && watch->last >= first) {
            return true;
        }
    }
    return false;
}

void debug_note_access(struct vcpu *vcpu, gva_t gva, unsigned size, bool write)
{
    struct debug *debug = vcpu->debug;
    gva_t last = gva + size - 1;

    for (unsigned i = 0; i < debug->points->watch_count && !debug->is_hit; i++) {
        const struct debug_watch *watch = &debug->points->watches[i];
        if (!(watch->kind & (write ? WATCH_WRITE : WATCH_READ)) || watch->first > last ||
            watch->last < gva) {
            continue;
        }
        debug->stop.kind = DEBUG_STOP_WATCH;
        debug->stop.watch = watch->kind;
        debug->stop.address = gva > watch->first ? gva : watch->first;
        debug->is_hit = true;
        /* units are left at the end of the instruction */
        __atomic_fetch_or((uint32_t *)&vcpu->kicks, KICK_DEBUG, __ATOMIC_RELEASE);
    }
}

void debug_note_event(struct vcpu *vcpu)
{
    vcpu->debug->is_woken = vcpu->debug->is_step;
}

bool debug_divides(const struct debug *debug)
{
    return debug->is_step || debug->points->watch_count > 0;
}

bool debug_holds_events(const struct vcpu *vcpu)
{
    const struct debug *debug = vcpu->debug;

    return (debug->is_step || debug->is_past) && vcpu->state.activity == ACTIVITY_RUNNING;
}

static bool is_stepped(struct debug *debug)
{
    if (!debug->is_step) {
        return false;
    }
    debug->is_step = false;
    debug->stop.kind = DEBUG_STOP_STEP;
    return true;
}

bool debug_is_over(struct vcpu *vcpu)
{
    struct debug *debug = vcpu->debug;
    bool was_armed = debug->is_armed, was_hit = debug->is_hit;

    debug->is_armed = debug->is_hit = false;
    if (was_armed) {
        debug->is_past = false;
    }
    return was_hit || (was_armed && is_stepped(debug));
}

/* The linear address of RIP. */
static gva_t linear_rip(const struct vcpu *vcpu)
{
    const struct cpu_state *state = &vcpu->state;

    return cpu_state_is_64bit(state) ? state->rip
                                     : (uint32_t)(state->rip + state->segment[CS].base);
}

enum debug_verdict debug_before(struct vcpu *vcpu)
{
    struct debug *debug = vcpu->debug;
    gva_t rip = linear_rip(vcpu);

    if (debug->is_woken) {
        debug->is_woken = false;
        is_stepped(debug);
        return DEBUG_STOP;
    }
    debug->is_past = debug->is_past && debug->past == rip;
    if (!debug->is_past && debug_has_break(debug->points, rip)) {
        debug->stop.kind = DEBUG_STOP_BREAK;
        debug->stop.address = rip;
        return DEBUG_STOP;
    }
    debug->is_armed = debug->is_step || debug->is_past;
    return debug->is_armed ? DEBUG_STEP : DEBUG_RUN;
}
