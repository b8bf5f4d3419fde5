/*
 * Decoded instructions, so that a loop is decoded once: direct-mapped by guest-physical address,
 * code size and validated against the bytes that memory holds now.
 */
#pragma once

#include "engine/vcpu.h"
#include "x86/decode.h"

enum { CACHE_BITS = 11, CACHE_ENTRIES = 1 << CACHE_BITS };

struct cache_entry {
    uint64_t key; /* address and mode; 0 is empty */
    uint64_t bytes[2], mask[2];
    struct insn insn;
};

struct cache {
    /* The page that code was fetched from last; dropped with every change of mappings. */
    bool valid;
    bool user;
    gva_t page;
    gpa_t gpa;
    const uint8_t *host;
    struct cache_entry entries[CACHE_ENTRIES];
};

/* Forget the page: its mapping or its frame may have changed. */
static inline void cache_drop(struct cache *cache)
{
    cache->valid = false;
}

/*
 * The instruction at the linear address, if its 16 bytes lie in one page of RAM and it decodes
 * without a fault; else NULL, and interp_step() does it the long way.
 */
const struct insn *cache_lookup(struct cache *cache, struct vcpu *vcpu, gva_t linear,
                                enum decode_mode mode);
