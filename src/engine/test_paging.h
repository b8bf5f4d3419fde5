/*
 * Tests only: a vCPU in 64-bit mode with page tables that a test fills, and a machine that notes
 * what is read and written where no RAM is.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "engine/mmu.h"
#include "engine/test_engine.h"
#include "x86/cpuid.h"

enum {
    PAGING_RAM = 8 << 20,
    PAGING_ROOT = 0x1000,
    PAGING_DEVICE = 0xe0000000,
    PAGING_CALLS = 16,
    PAGING_KERNEL = PTE_P | PTE_W,
    PAGING_USER = PTE_P | PTE_W | PTE_U,
};

struct paging_call {
    bool is_write;
    gpa_t gpa;
    unsigned size;
    uint64_t value;
};

struct paging {
    struct vcpu vcpu;
    struct tlb tlb;
    struct memory *memory;
    struct cpuid_table *cpuid;
    struct engine_host host;
    gpa_t next_table;
    struct paging_call calls[PAGING_CALLS]; /* of the machine */
    unsigned call_count;
    unsigned code_writes;
};

static inline void paging_note(struct paging *p, bool is_write, gpa_t gpa, unsigned size,
                               uint64_t value)
{
    if (p->call_count < PAGING_CALLS) {
        p->calls[p->call_count++] = (struct paging_call){is_write, gpa, size, value};
    }
}

/* A device whose byte at an address is the address's low byte. */
static inline uint64_t paging_mmio_read(void *owner, unsigned vcpu, gpa_t gpa, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)(uint8_t)(gpa + i) << 8 * i;
    }
    paging_note(owner, false, gpa, size, value);
    return value;
}

static inline void paging_mmio_write(void *owner, unsigned vcpu, gpa_t gpa, unsigned size,
                                     uint64_t value)
{
    paging_note(owner, true, gpa, size, value);
}

static inline void paging_drop(void *owner, uint64_t first, uint64_t count, bool write_only)
{
    struct paging *p = owner;
    tlb_drop_physical(&p->tlb, first, count, write_only);
}

static inline void paging_quiesce(void *owner)
{
}

static inline void paging_code_written(void *owner, gpa_t gpa, uint64_t length)
{
    struct paging *p = owner;
    p->code_writes++;
}

static inline int paging_setup(void **state)
{
    const struct memory_range ram = {0, PAGING_RAM};
    const struct cpuid_config model = {.model = CPU_MODEL_V2, .cpus = 1, .tsc_hz = 1000000000};
    struct paging *p = calloc(1, sizeof *p);
    *state = p;
    if (!p || memory_new(&ram, 1, "paging", &p->memory) || cpuid_table_new(&model, &p->cpuid)) {
        return -1;
    }
    const struct memory_listener listener = {.drop = paging_drop,
                                             .quiesce = paging_quiesce,
                                             .code_written = paging_code_written,
                                             .owner = p};
    memory_listen(p->memory, &listener);
    p->host = test_host(p);
    p->host.mmio_read = paging_mmio_read;
    p->host.mmio_write = paging_mmio_write;
    p->next_table = PAGING_ROOT + PAGE_SIZE;
    p->vcpu.tlb = &p->tlb;
    p->vcpu.memory = p->memory;
    p->vcpu.cpuid = p->cpuid;
    p->vcpu.host = &p->host;
    struct cpu_state *s = &p->vcpu.state;
    cpu_state_reset(s, true);
    s->cr0 = CR0_PE | CR0_PG | CR0_WP;
    s->cr3 = PAGING_ROOT;
    s->cr4 = CR4_PAE | CR4_PGE;
    s->efer = EFER_LME | EFER_LMA | EFER_NXE;
    s->segment[CS].attributes = SEGMENT_P | SEGMENT_L;
    vcpu_mode_changed(&p->vcpu);
    tlb_init(&p->tlb);
    return 0;
}

static inline int paging_teardown(void **state)
{
    struct paging *p = *state;
    memory_free(p->memory);
    cpuid_table_free(p->cpuid);
    free(p);
    return 0;
}

static inline uint64_t paging_load(struct paging *p, gpa_t at)
{
    uint64_t entry;
    assert_int_equal(memory_load(p->memory, at, 8, &entry), 0);
    return entry;
}

static inline void paging_store(struct paging *p, gpa_t at, uint64_t entry)
{
    assert_int_equal(memory_write(p->memory, at, &entry, 8), 0);
}

/* Where the entry of an address is, in the table of a level (12: last, 21: above it...). */
static inline gpa_t paging_entry(struct paging *p, gva_t gva, unsigned level)
{
    gpa_t table = PAGING_ROOT;
    for (unsigned shift = 39;; shift -= 9) {
        gpa_t at = table + (gva >> shift & 511) * 8;
        if (shift == level) {
            return at;
        }
        uint64_t entry = paging_load(p, at);
        if (!(entry & PTE_P)) {
            entry = p->next_table | PAGING_USER;
            paging_store(p, at, entry);
            p->next_table += PAGE_SIZE;
        }
        table = entry & 0xffffffffff000;
    }
}

/* The tables change; nothing is flushed. */
static inline void paging_map(struct paging *p, gva_t gva, gpa_t gpa, uint64_t bits)
{
    paging_store(p, paging_entry(p, gva, 12), gpa | bits);
}

/* Bytes that tell their frame, so that the frame is of its own and not the page of zeros. */
static inline void paging_fill(struct paging *p, gpa_t gpa, uint64_t size)
{
    for (uint64_t at = gpa; at < gpa + size; at += 8) {
        uint64_t value = at * 0x9e3779b97f4a7c15ull;
        assert_int_equal(memory_write(p->memory, at, &value, 8), 0);
    }
}
