/* What the files of the stub share. */
#pragma once

#include "control/gdb/packet.h"
#include "control/gdb/stub.h"

/* A breakpoint may be there as both kinds; the engines make no difference. */
enum { BREAK_SOFTWARE = 1, BREAK_HARDWARE = 2 };

struct gdb_stub {
    struct gdb_stub_config config;
    const struct gdb_target *target;
    struct gdb_input in;
    struct gdb_output out; /* the last packet, for who missed it */
    bool no_ack;
    bool no_ack_next; /* behind the acknowledgement of the packet that asks for it */
    bool knows_swbreak, knows_hwbreak;
    bool is_running;
    bool is_detached;
    unsigned cpu;      /* that registers and memory belong to (Hg) */
    unsigned step_cpu; /* of the packets s and S (Hc) */
    /* why it stands */
    unsigned stopped_cpu;
    bool has_stop; /* `stop` says; else by us, with the signal */
    uint8_t signal;
    struct debug_stop stop;
    struct debug_points points;
    uint8_t break_kinds[DEBUG_BREAKS_MAX]; /* of points.breaks */
    char *description;
};

/* What a command answers with, beside what it puts into stub->out itself. */
enum answer {
    ANSWER_DONE, /* the packet is in stub->out */
    ANSWER_OK,
    ANSWER_EMPTY, /* not supported */
    ANSWER_NONE,  /* nothing now: the machine runs, or ends */
    ANSWER_BAD,   /* E16: EINVAL in hexadecimal, the packet makes no sense */
    ANSWER_FAULT, /* E0e: EFAULT, no such memory */
    ANSWER_FULL,  /* E1c: ENOSPC, too many points */
};

/* ---- stub_run.c: going on, stopping, points ---- */
/* Stopped; stub->out gets the stop reply. */
enum answer gdb_reply_stop(struct gdb_stub *stub);
enum answer gdb_command_vcont(struct gdb_stub *stub, struct gdb_text *text);
/* c, s, C, S */
enum answer gdb_command_resume(struct gdb_stub *stub, struct gdb_text *text, char command);
enum answer gdb_command_detach(struct gdb_stub *stub);
/* Z and z */
enum answer gdb_command_point(struct gdb_stub *stub, struct gdb_text *text, bool insert);
void gdb_interrupt(struct gdb_stub *stub);

/* ---- stub_data.c: registers and memory ---- */
enum answer gdb_command_registers_read(struct gdb_stub *stub);
enum answer gdb_command_registers_write(struct gdb_stub *stub, struct gdb_text *text);
enum answer gdb_command_register_read(struct gdb_stub *stub, struct gdb_text *text);
enum answer gdb_command_register_write(struct gdb_stub *stub, struct gdb_text *text);
enum answer gdb_command_memory_read(struct gdb_stub *stub, struct gdb_text *text);
enum answer gdb_command_memory_write(struct gdb_stub *stub, struct gdb_text *text, bool binary);

/* ---- stub_query.c ---- */
enum answer gdb_command_query(struct gdb_stub *stub, struct gdb_text *text);
enum answer gdb_command_set(struct gdb_stub *stub, struct gdb_text *text);
/* A thread's number: of a vCPU, or -1 (all) or 0 (any). False: there is no such thread. */
bool gdb_text_thread(const struct gdb_stub *stub, struct gdb_text *text, int *ret_thread);
