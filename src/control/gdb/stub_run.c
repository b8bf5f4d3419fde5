/* Going on and stopping for GDB: vCont, c, s, C, S, D, Z, z, stop replies. */
#include <string.h>

#include "control/gdb/stub_internal.h"

enum { SIGNAL_INT = 2, SIGNAL_TRAP = 5 }; /* GDB's own numbers */

/* ---- stopping ---- */

/* Why, as the peer understands it; GDB manual, E.3. */
static void put_reason(struct gdb_stub *stub)
{
    static const char *const watches[] = {
        [WATCH_WRITE] = "watch:", [WATCH_READ] = "rwatch:", [WATCH_ACCESS] = "awatch:"};
    const struct debug_points *points = &stub->points;
    uint8_t kinds = 0;
    if (!stub->has_stop) {
        return;
    }
    switch (stub->stop.kind) {
    case DEBUG_STOP_BREAK:
        for (unsigned i = 0; i < points->break_count; i++) {
            kinds |= points->breaks[i] == stub->stop.address ? stub->break_kinds[i] : 0;
        }
        if (kinds & BREAK_SOFTWARE && stub->knows_swbreak) {
            gdb_output_text(&stub->out, "swbreak:;");
        } else if (kinds & BREAK_HARDWARE && stub->knows_hwbreak) {
            gdb_output_text(&stub->out, "hwbreak:;");
        }
        break;
    case DEBUG_STOP_WATCH:
        gdb_output_text(&stub->out, watches[stub->stop.watch]);
        gdb_output_number(&stub->out, stub->stop.address);
        gdb_output_text(&stub->out, ";");
        break;
    case DEBUG_STOP_STEP:
        break;
    }
}

enum answer gdb_reply_stop(struct gdb_stub *stub)
{
    gdb_output_begin(&stub->out);
    gdb_output_text(&stub->out, stub->signal == SIGNAL_INT ? "T02" : "T05");
    put_reason(stub);
    gdb_output_text(&stub->out, "thread:");
    gdb_output_number(&stub->out, stub->stopped_cpu + 1);
    gdb_output_text(&stub->out, ";");
    return ANSWER_DONE;
}

/* A vCPU that has stopped by itself at the same moment is the better news. */
void gdb_interrupt(struct gdb_stub *stub)
{
    unsigned cpu = stub->stopped_cpu;
    stub->has_stop = stub->target->stop(stub->target->owner, &cpu, &stub->stop);
    stub->signal = stub->has_stop ? SIGNAL_TRAP : SIGNAL_INT;
    stub->is_running = false;
    stub->cpu = stub->step_cpu = stub->stopped_cpu = cpu;
}

/* ---- going on ---- */

static enum answer go(struct gdb_stub *stub, const enum vm_debug_action *actions)
{
    stub->is_running = true;
    stub->has_stop = false;
    stub->signal = SIGNAL_TRAP;
    stub->target->resume(stub->target->owner, &stub->points, actions);
    return ANSWER_NONE;
}

/* c, s, or C and S with a signal, which a machine has no use for. */
static bool take_action(struct gdb_text *text, enum vm_debug_action *ret_action)
{
    uint64_t signal;
    if (gdb_text_word(text, "c")) {
        *ret_action = VM_DEBUG_CONTINUE;
    } else if (gdb_text_word(text, "s")) {
        *ret_action = VM_DEBUG_STEP;
    } else if (gdb_text_word(text, "C")) {
        *ret_action = VM_DEBUG_CONTINUE;
        return gdb_text_number(text, &signal);
    } else if (gdb_text_word(text, "S")) {
        *ret_action = VM_DEBUG_STEP;
        return gdb_text_number(text, &signal);
    } else {
        return false;
    }
    return true;
}

/* vCont;action[:thread]...: for each thread the first action that names it, or all. */
enum answer gdb_command_vcont(struct gdb_stub *stub, struct gdb_text *text)
{
    enum vm_debug_action actions[GDB_CPUS_MAX] = {VM_DEBUG_HOLD};
    unsigned decided = 0, all = (1u << stub->target->cpus) - 1;
    while (gdb_text_word(text, ";")) {
        enum vm_debug_action action;
        int thread = -1;
        if (!take_action(text, &action) ||
            (gdb_text_word(text, ":") && !gdb_text_thread(stub, text, &thread))) {
            return ANSWER_BAD;
        }
        unsigned wanted = thread < 0    ? all
                          : thread == 0 ? 1u << stub->stopped_cpu
                                        : 1u << (thread - 1);
        for (unsigned cpu = 0; cpu < stub->target->cpus; cpu++) {
            if (wanted & ~decided & 1u << cpu) {
                actions[cpu] = action;
            }
        }
        decided |= wanted;
    }
    return decided && !gdb_text_left(text) ? go(stub, actions) : ANSWER_BAD;
}

static void continue_all(const struct gdb_stub *stub, enum vm_debug_action actions[GDB_CPUS_MAX])
{
    for (unsigned cpu = 0; cpu < GDB_CPUS_MAX; cpu++) {
        actions[cpu] = cpu < stub->target->cpus ? VM_DEBUG_CONTINUE : VM_DEBUG_HOLD;
    }
}

enum answer gdb_command_resume(struct gdb_stub *stub, struct gdb_text *text, char command)
{
    enum vm_debug_action actions[GDB_CPUS_MAX];
    struct cpu_state state;
    uint64_t signal, rip;
    bool has_signal = command == 'C' || command == 'S';
    bool is_step = command == 's' || command == 'S';
    if (has_signal && !gdb_text_number(text, &signal)) {
        return ANSWER_BAD;
    }
    if (has_signal ? gdb_text_word(text, ";") : gdb_text_left(text) > 0) {
        if (!gdb_text_number(text, &rip)) {
            return ANSWER_BAD;
        }
        stub->target->get_state(stub->target->owner, stub->step_cpu, &state);
        state.rip = rip;
        if (stub->target->set_state(stub->target->owner, stub->step_cpu, &state)) {
            return ANSWER_BAD;
        }
    }
    continue_all(stub, actions);
    if (is_step) {
        actions[stub->step_cpu] = VM_DEBUG_STEP;
    }
    return go(stub, actions);
}

enum answer gdb_command_detach(struct gdb_stub *stub)
{
    enum vm_debug_action actions[GDB_CPUS_MAX];
    continue_all(stub, actions);
    memset(&stub->points, 0, sizeof stub->points);
    go(stub, actions);
    stub->is_detached = true;
    return ANSWER_OK;
}

/* ---- points ---- */

static enum answer break_insert(struct gdb_stub *stub, gva_t address, uint8_t kind)
{
    struct debug_points *points = &stub->points;
    unsigned at = 0;
    while (at < points->break_count && points->breaks[at] < address) {
        at++;
    }
    if (at < points->break_count && points->breaks[at] == address) {
        stub->break_kinds[at] |= kind;
        return ANSWER_OK;
    }
    if (points->break_count == DEBUG_BREAKS_MAX) {
        return ANSWER_FULL;
    }
    unsigned behind = points->break_count++ - at;
    memmove(&points->breaks[at + 1], &points->breaks[at], behind * sizeof points->breaks[0]);
    memmove(&stub->break_kinds[at + 1], &stub->break_kinds[at], behind);
    points->breaks[at] = address;
    stub->break_kinds[at] = kind;
    return ANSWER_OK;
}

static enum answer break_remove(struct gdb_stub *stub, gva_t address, uint8_t kind)
{
    struct debug_points *points = &stub->points;
    for (unsigned i = 0; i < points->break_count; i++) {
        if (points->breaks[i] != address || !(stub->break_kinds[i] & kind)) {
            continue;
        }
        stub->break_kinds[i] &= (uint8_t)~kind;
        if (!stub->break_kinds[i]) {
            unsigned behind = --points->break_count - i;
            memmove(&points->breaks[i], &points->breaks[i + 1], behind * sizeof points->breaks[0]);
            memmove(&stub->break_kinds[i], &stub->break_kinds[i + 1], behind);
        }
        return ANSWER_OK;
    }
    return ANSWER_BAD;
}

static bool is_same(const struct debug_watch *a, const struct debug_watch *b)
{
    return a->first == b->first && a->last == b->last && a->kind == b->kind;
}

static enum answer watch_change(struct gdb_stub *stub, const struct debug_watch *watch, bool insert)
{
    struct debug_points *points = &stub->points;
    unsigned at = 0;
    while (at < points->watch_count && !is_same(&points->watches[at], watch)) {
        at++;
    }
    bool is_there = at < points->watch_count;
    if (insert && !is_there) {
        if (points->watch_count == DEBUG_WATCHES_MAX) {
            return ANSWER_FULL;
        }
        points->watches[points->watch_count++] = *watch;
    } else if (!insert && is_there) {
        points->watches[at] = points->watches[--points->watch_count];
    }
    return insert || is_there ? ANSWER_OK : ANSWER_BAD;
}

/* type,address,kind: breakpoints 0 and 1, watchpoints 2 (write), 3 (read), 4 (both). */
enum answer gdb_command_point(struct gdb_stub *stub, struct gdb_text *text, bool insert)
{
    static const enum watch_kind watches[] = {
        [2] = WATCH_WRITE, [3] = WATCH_READ, [4] = WATCH_ACCESS};
    uint64_t type, address, length;
    if (!gdb_text_number(text, &type) || !gdb_text_word(text, ",") ||
        !gdb_text_number(text, &address) || !gdb_text_word(text, ",") ||
        !gdb_text_number(text, &length) || gdb_text_left(text)) {
        return ANSWER_BAD;
    }
    if (type > 4) {
        return ANSWER_EMPTY;
    }
    if (type < 2) {
        uint8_t kind = type ? BREAK_HARDWARE : BREAK_SOFTWARE;
        return insert ? break_insert(stub, address, kind) : break_remove(stub, address, kind);
    }
    if (!length || address + (length - 1) < address) {
        return ANSWER_BAD;
    }
    const struct debug_watch watch = {address, address + (length - 1), watches[type]};
    return watch_change(stub, &watch, insert);
}
