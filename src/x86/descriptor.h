/*
 * Segment descriptors: from the 8 or 16 bytes in a descriptor table to the hidden part of a
 * segment register and back, and gates. SDM volume 3, 3.4.5 (segments), 5.8.3 (call gates), 6.11
 * and 6.14.1 (interrupt gates). Pure functions; the privilege checks are the interpreter's.
 */
#pragma once

#include "x86/cpu_state.h"

/* Types of system descriptors (S = 0). SDM volume 3, table 3-2. */
enum system_type {
    SYSTEM_TSS16_AVAILABLE = 1,
    SYSTEM_LDT = 2,
    SYSTEM_TSS16_BUSY = 3,
    SYSTEM_CALL_GATE16 = 4,
    SYSTEM_TASK_GATE = 5,
    SYSTEM_INTERRUPT_GATE16 = 6,
    SYSTEM_TRAP_GATE16 = 7,
    SYSTEM_TSS_AVAILABLE = 9, /* 32-bit; 64-bit in IA-32e mode */
    SYSTEM_TSS_BUSY = 11,
    SYSTEM_CALL_GATE = 12,
    SYSTEM_INTERRUPT_GATE = 14,
    SYSTEM_TRAP_GATE = 15,
};

/* A selector's parts. SDM volume 3, figure 3-6. */
enum {
    SELECTOR_RPL = 3,
    SELECTOR_TI = 4,
    SELECTOR_INDEX = 0xfff8, /* also the byte offset in the table */
};

/* Bit 40 of a code or data descriptor: set by the CPU at the first load. */
#define DESCRIPTOR_ACCESSED (1ull << 40)
/* Bit 41 of a TSS descriptor: set by LTR and task switches. */
#define DESCRIPTOR_BUSY (1ull << 41)

/* The null selectors: index 0 of the GDT, any RPL. */
static inline bool selector_is_null(uint16_t selector)
{
    return (selector & ~SELECTOR_RPL) == 0;
}

/* Bits 8..15 and 20..23 of the upper half in the layout of struct segment. */
static inline uint16_t descriptor_attributes(uint64_t descriptor)
{
    return (descriptor >> 40) & 0xf0ff;
}

/*
 * Unpack an 8-byte code, data or system descriptor. The limit gets its granularity applied;
 * an unused bit of the layout never becomes SEGMENT_UNUSABLE.
 */
struct segment descriptor_unpack(uint64_t descriptor, uint16_t selector);
/*
 * Unpack a 16-byte system descriptor of IA-32e mode (LDT, TSS). Returns false if the type field
 * of the upper half is not zero (then #GP(selector)). SDM volume 3, 7.2.3.
 */
bool descriptor_unpack_system64(uint64_t low, uint64_t high, uint16_t selector,
                                struct segment *ret_segment);
/*
 * The inverse of descriptor_unpack(). The limit must be expressible: with SEGMENT_G its low 12
 * bits are taken as ones, without it it is at most 0xfffff. Bits 32 and up of the base are lost.
 */
uint64_t descriptor_pack(const struct segment *segment);

/* The hidden part after loading `selector` in real-address or virtual-8086 mode (SDM 3, 20.1). */
struct segment segment_real(uint16_t selector, bool is_v86);
/* The hidden part after loading a null selector: unusable, DPL kept for SS of 64-bit mode. */
struct segment segment_null(uint16_t selector, unsigned dpl);
/* A flat code or data segment, as SYSCALL, SYSRET, SYSENTER and SYSEXIT load them. */
struct segment segment_flat(uint16_t selector, bool is_code, bool is_64bit, unsigned dpl);

/* An interrupt, trap, call or task gate. */
struct gate {
    uint64_t offset;
    uint16_t selector;
    uint8_t type; /* enum system_type, or a code/data type if S was set */
    uint8_t dpl;
    uint8_t ist;        /* IA-32e interrupt and trap gates */
    uint8_t parameters; /* call gates outside IA-32e mode */
    bool system;        /* S = 0, as every gate must be */
    bool present;
};

/* An 8-byte gate: 16-bit types have 16-bit offsets. */
struct gate gate_unpack(uint64_t descriptor);
/*
 * A 16-byte gate of IA-32e mode. Returns false if the type field of the upper half is not zero
 * (which matters for call gates only; interrupt gates have no such check).
 */
bool gate_unpack64(uint64_t low, uint64_t high, struct gate *ret_gate);
