/* Traces as text: see trace.h. Each event is one write, so that threads do not mix their lines. */
#include "machine/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "machine/config.h"
#include "machine/report.h"
#include "machine/symbols.h"
#include "x86/decode.h"

enum { LINE = 256, NAME = 240, GUEST_COLUMN = 44 };

struct vm_trace {
    uint32_t kinds;
    int fd;       /* -1: standard error */
    int perf_map; /* -1: none */
    struct symbols *symbols;
    ZydisDecoder decoder;
    ZydisFormatter formatter;
};

CLEANUP_DEFINE(struct vm_trace, vm_trace_free)

static const struct {
    const char *name, *text;
} kinds[] = {
#define KIND(name, key, text) {key, text},
    ENGINE_TRACES(KIND)
#undef KIND
        {"stats", "a table of all counters, at the end"},
};

int trace_list_parse(const char *list, uint32_t *ret_kinds)
{
    uint32_t mask = 0;
    for (const char *at = list;; at++) {
        size_t length = strcspn(at, ","), i = 0;
        while (i < ARRAY_SIZE(kinds) &&
               (strlen(kinds[i].name) != length || memcmp(kinds[i].name, at, length))) {
            i++;
        }
        if (i == ARRAY_SIZE(kinds)) {
            char known[LINE] = "";
            for (i = 0; i < ARRAY_SIZE(kinds); i++) {
                strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
                strncat(known, kinds[i].name, sizeof known - strlen(known) - 1);
            }
            return fail(-EINVAL, "--trace: '%.*s' is not known (known: %s)", (int)length, at,
                        known);
        }
        mask |= 1u << i;
        at += length;
        if (!*at) {
            *ret_kinds = mask;
            return 0;
        }
    }
}

void vm_trace_write(struct vm_trace *trace, const char *text)
{
    size_t size = strlen(text);
    while (trace->fd < 0 && size) { /* line by line: a report has a largest length */
        size_t line = strcspn(text, "\n") + 1;
        line = line < size ? line : size;
        report("%.*s", (int)line, text);
        text += line;
        size -= line;
    }
    while (size) {
        ssize_t written = write(trace->fd, text, size);
        if (written <= 0) {
            return; /* a full disk costs the trace, not the machine */
        }
        text += written;
        size -= (size_t)written;
    }
}

/* ---- events ---- */

static void on_event(void *owner, const struct trace_event *event)
{
    char line[LINE], detail[64] = "", vcpu[16] = "-";
    if (event->vcpu >= 0) {
        snprintf(vcpu, sizeof vcpu, "%d", event->vcpu);
    }
    if (event->detail) {
        snprintf(detail, sizeof detail, " %s %#llx", event->detail,
                 (unsigned long long)event->value);
    }
    snprintf(line, sizeof line, "%s vcpu %s: %s%s\n", kinds[event->kind].name, vcpu, event->what,
             detail);
    vm_trace_write(owner, line);
}

/* ---- units ---- */

/* Privilege and symbol, or the address where there is none. */
static void unit_name(const struct vm_trace *trace, const struct trace_unit *unit, char name[NAME])
{
    uint64_t offset;
    char privilege = unit->is_user ? 'u' : 'k';
    const char *symbol =
        unit->is_user ? NULL : symbols_find(trace->symbols, unit->rip, unit->system_call, &offset);
    if (symbol) {
        snprintf(name, NAME, "%c:%s+%#llx", privilege, symbol, (unsigned long long)offset);
    } else {
        snprintf(name, NAME, "%c:%#llx", privilege, (unsigned long long)unit->rip);
    }
}

/* perf(1), tools/perf/Documentation/jit-interface.txt: start and size in hexadecimal, a name. */
static void map_unit(struct vm_trace *trace, const char *name, uint64_t start, uint32_t size)
{
    char line[NAME + 48];
    int length = snprintf(line, sizeof line, "%llx %x %s\n", (unsigned long long)start, size, name);
    ssize_t ignored = write(trace->perf_map, line, (size_t)length);
    (void)ignored;
}

/* One instruction as text; its length, or 1 for what is none (padding, constants). */
static unsigned format(const struct vm_trace *trace, const uint8_t *bytes, size_t size,
                       uint64_t address, char text[LINE])
{
    ZydisDecodedInstruction info;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&trace->decoder, bytes, size, &info, operands)) ||
        !ZYAN_SUCCESS(ZydisFormatterFormatInstruction(&trace->formatter, &info, operands,
                                                      info.operand_count_visible, text, LINE,
                                                      address, NULL))) {
        snprintf(text, LINE, "db 0x%02x", bytes[0]);
        return 1;
    }
    return info.length;
}

/* Guest instructions from one offset to another, one below the other, each for one host line. */
struct guest_column {
    const struct vm_trace *trace;
    const struct trace_unit *unit;
    uint32_t at, end;
    const char *note; /* instead, once */
};

static void guest_next(struct guest_column *column, char text[LINE])
{
    text[0] = '\0';
    if (column->note) {
        snprintf(text, LINE, "%s", column->note);
        column->note = NULL;
    } else if (column->at < column->end) {
        const struct trace_unit *unit = column->unit;
        char instruction[LINE];
        unsigned length =
            format(column->trace, unit->guest + column->at, unit->guest_size - column->at,
                   unit->rip + column->at, instruction);
        snprintf(text, LINE, "%03llx %.*s", (unsigned long long)((unit->rip + column->at) & 0xfff),
                 LINE - 8, instruction);
        column->at += length;
    }
}

/* The host code from one mark to the next beside the guest code that it is for. */
static void dump_piece(struct vm_trace *trace, const struct trace_unit *unit,
                       struct guest_column *guest, enum trace_part part, uint32_t from, uint32_t to)
{
    const struct trace_host *host = &unit->host[part];
    char left[LINE], right[LINE], line[2 * LINE + 32];
    while (from < to || guest->at < guest->end || guest->note) {
        right[0] = '\0';
        guest_next(guest, left);
        uint32_t at = from;
        if (from < to) {
            from += format(trace, host->bytes + from, to - from, host->address + from, right);
        }
        if (*right) {
            snprintf(line, sizeof line, "  %-*.*s | %4x %s\n", GUEST_COLUMN, GUEST_COLUMN, left, at,
                     right);
        } else {
            snprintf(line, sizeof line, "  %-*.*s |\n", GUEST_COLUMN, GUEST_COLUMN, left);
        }
        vm_trace_write(trace, line);
    }
}

/* The guest offset at which the piece of a mark ends: that of the next one on the straight path. */
static uint32_t guest_end(const struct trace_unit *unit, uint32_t mark)
{
    uint32_t next = mark + 1;
    bool goes_on = next < unit->mark_count && !unit->marks[next].is_outline &&
                   unit->marks[next].guest > unit->marks[mark].guest;
    return goes_on ? unit->marks[next].guest : unit->guest_size;
}

/* Where the piece of a mark ends in its part of the host code. */
static uint32_t host_end(const struct trace_unit *unit, uint32_t mark)
{
    bool goes_on = mark + 1 < unit->mark_count &&
                   unit->marks[mark + 1].is_outline == unit->marks[mark].is_outline;
    return goes_on ? unit->marks[mark + 1].host : unit->host[unit->marks[mark].is_outline].size;
}

static void dump_code(struct vm_trace *trace, const struct trace_unit *unit)
{
    char note[64];
    struct guest_column column = {.trace = trace, .unit = unit, .note = "(entries)"};
    bool is_marked = unit->mark_count && !unit->marks[0].is_outline;
    dump_piece(trace, unit, &column, TRACE_STRAIGHT, 0,
               is_marked ? unit->marks[0].host : unit->host[TRACE_STRAIGHT].size);
    for (uint32_t i = 0; i < unit->mark_count; i++) {
        const struct trace_mark *mark = &unit->marks[i];
        column.note = NULL;
        if (mark->is_outline) {
            snprintf(note, sizeof note, "(out of line of %03llx)",
                     (unsigned long long)((unit->rip + mark->guest) & 0xfff));
            column.note = note;
        } else {
            column.at = mark->guest;
            column.end = guest_end(unit, i);
        }
        dump_piece(trace, unit, &column, mark->is_outline ? TRACE_OUTLINES : TRACE_STRAIGHT,
                   mark->host, host_end(unit, i));
    }
}

static void on_unit(void *owner, const struct trace_unit *unit)
{
    struct vm_trace *trace = owner;
    char name[NAME], line[NAME + LINE];
    unit_name(trace, unit, name);
    if (trace->perf_map >= 0) {
        for (unsigned i = 0; i < TRACE_PARTS; i++) {
            map_unit(trace, name, unit->host[i].address, unit->host[i].size);
        }
    }
    uint32_t host_size = unit->host[TRACE_STRAIGHT].size + unit->host[TRACE_OUTLINES].size;
    if (!(trace->kinds & (1u << TRACE_UNITS | 1u << TRACE_CODE))) {
        return;
    }
    snprintf(line, sizeof line,
             "units vcpu %u: %s at %#llx, physical %#llx: %u instructions, %u bytes -> %u bytes "
             "(%u.%ux) at %#llx\n",
             unit->vcpu, name, (unsigned long long)unit->rip, (unsigned long long)unit->gpa,
             unit->instructions, unit->guest_size, host_size,
             unit->guest_size ? host_size / unit->guest_size : 0,
             unit->guest_size ? host_size * 10 / unit->guest_size % 10 : 0,
             (unsigned long long)unit->host[TRACE_STRAIGHT].address);
    vm_trace_write(trace, line);
    if (trace->kinds & 1u << TRACE_CODE) {
        dump_code(trace, unit);
    }
}

static void on_stubs(void *owner, uint64_t host_address, uint32_t host_size)
{
    struct vm_trace *trace = owner;
    if (trace->perf_map >= 0) {
        map_unit(trace, "doppel-stubs", host_address, host_size);
    }
}

/* ---- life ---- */

static int create(const char *path, int flags, const char *what, int *ret_fd)
{
    *ret_fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
    return *ret_fd < 0 ? fail(-errno, "%s '%s': %m", what, path) : 0;
}

int vm_trace_new(const struct vm_config *config, struct vm_trace **ret_trace)
{
    CLEANUP(vm_trace_free) struct vm_trace *trace = calloc(1, sizeof *trace);
    ASSERT(trace);
    trace->kinds = config->trace;
    trace->fd = trace->perf_map = -1;
    ZydisDecoderInit(&trace->decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisFormatterInit(&trace->formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    int r = 0;
    if (config->trace_file) {
        r = create(config->trace_file, O_TRUNC | O_APPEND, "trace file", &trace->fd);
    }
    if (!r && config->perf_map) {
        char path[64]; /* the name that perf looks for; others may write to /tmp, too */
        snprintf(path, sizeof path, "/tmp/perf-%d.map", (int)getpid());
        unlink(path); /* of an older process of ours; another user's is not removed, and refused */
        r = create(path, O_EXCL | O_NOFOLLOW, "map for perf", &trace->perf_map);
    }
    if (!r && config->symbols) {
        r = symbols_load(config->symbols, &trace->symbols);
    }
    if (r) {
        return r;
    }
    *ret_trace = TAKE(trace);
    return 0;
}

void vm_trace_free(struct vm_trace *trace)
{
    if (trace) {
        cleanup_close(&trace->fd);
        cleanup_close(&trace->perf_map);
        symbols_free(trace->symbols);
        free(trace);
    }
}

struct engine_trace vm_trace_engine(struct vm_trace *trace)
{
    return (struct engine_trace){
        .kinds = trace->kinds & ((1u << ENGINE_TRACE_COUNT) - 1),
        .wants_unit = trace->perf_map >= 0,
        .event = on_event,
        .unit = on_unit,
        .stubs = on_stubs,
        .owner = trace,
    };
}
