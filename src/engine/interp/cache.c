/*
 * The cache of decoded instructions. See cache.h.
 */
#include "engine/interp/cache.h"

#include "base/bytes.h"
#include "engine/mmu.h"

enum { WINDOW = 16 };

static bool page_open(struct cache *cache, struct vcpu *vcpu, gva_t linear)
{
    bool user = cpu_state_cpl(&vcpu->state) == 3;
    gva_t page = align_down(linear, PAGE_SIZE);
    struct walk_result result;
    uint8_t *host;

    if (cache->valid && cache->page == page && cache->user == user) {
        return true;
    }
    cache->valid = false;
    if (mmu_translate_fetch(vcpu, page, &result) != STEP_NEXT ||
        memory_frame(vcpu->memory, result.gpa >> PAGE_SHIFT, false, &host) != FRAME_OK) {
        return false;
    }
    cache->gpa = result.gpa;
    cache->host = host;
    cache->page = page;
    cache->user = user;
    cache->valid = true;
    return true;
}

static bool entry_fill(struct cache_entry *entry, uint64_t key, const uint64_t bytes[2],
                       enum decode_mode mode)
{
    entry->key = 0;
    if (decode(mode, (const uint8_t *)bytes, INSN_MAX_LENGTH, &entry->insn) != DECODE_OK) {
        return false;
    }
    unsigned length = entry->insn.info.length;
    entry->mask[0] = length >= 8 ? ~0ull : (1ull << (length * 8)) - 1;
    entry->mask[1] = length > 8 ? (1ull << ((length - 8) * 8)) - 1 : 0;
    entry->bytes[0] = bytes[0] & entry->mask[0];
    entry->bytes[1] = bytes[1] & entry->mask[1];
    entry->key = key;
    return true;
}

const struct insn *cache_lookup(struct cache *cache, struct vcpu *vcpu, gva_t linear,
                                enum decode_mode mode)
{
    unsigned offset = linear & (PAGE_SIZE - 1);
    uint64_t bytes[2];

    if (offset > PAGE_SIZE - WINDOW || !page_open(cache, vcpu, linear)) {
        return NULL;
    }
    bytes[0] = load_le64(cache->host + offset);
    bytes[1] = load_le64(cache->host + offset + 8);
    uint64_t key = (cache->gpa + offset) << 2 | (mode + 1);
    struct cache_entry *entry = &cache->entries[(cache->gpa + offset) & (CACHE_ENTRIES - 1)];
    if (entry->key == key && (bytes[0] & entry->mask[0]) == entry->bytes[0] &&
        (bytes[1] & entry->mask[1]) == entry->bytes[1]) {
        return &entry->insn;
    }
    return entry_fill(entry, key, bytes, mode) ? &entry->insn : NULL;
}
