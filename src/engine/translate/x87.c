/*
 * The x87 unit remembers where its last instruction and its operand were, and in units those are
 * host addresses: the guest is shown its own.
 *
 * Opcode and operand are shown as long as an unmasked exception is pending, when handlers look at
 * them. Otherwise they read as zero, as on CPUs that keep them for exceptions only
 * (CPUID.7.EBX[6], which every model has). SDM volume 1, 8.1.8 and 8.1.9.
 */
#include "engine/translate/helper.h"

enum { XSAVE_FSW = 2, XSAVE_FOP = 6, XSAVE_FIP = 8, XSAVE_FDP = 16, FSW_ES = 0x80 };

/* The opcode as FOP holds it: 3 bits of its first byte and all of its second. 0: not found. */
static uint16_t opcode_at(const uint8_t *bytes, unsigned count)
{
    for (unsigned i = 0; i + 1 < count; i++) {
        if ((bytes[i] & 0xf8) == 0xd8) {
            return (uint16_t)((bytes[i] & 7) << 8 | bytes[i + 1]);
        }
    }
    return 0; /* behind the page's end */
}

/* The guest's address of a byte in host memory, by a table of the soft TLB. False: not there. */
static bool find_in_table(const struct tlb_entry entries[TLB_ENTRIES], uint64_t host,
                          gva_t *ret_gva)
{
    for (unsigned i = 0; i < TLB_ENTRIES; i++) {
        uint64_t distance = host - entries[i].host;
        if (entries[i].host && distance < PAGE_SIZE) {
            *ret_gva = entries[i].tag + distance;
            return true;
        }
    }
    return false;
}

/* The operand was reached by the soft TLB, not long ago. */
static gva_t find_operand(const struct block *block, uint64_t host)
{
    gva_t gva = 0;
    bool is_found = false;
    for (unsigned s = 0; s < SPACES_MAX && !is_found; s++) {
        if (!block->spaces[s].in_use) {
            continue;
        }
        const struct tlb *tlb = &block->spaces[s].data->tlb;
        for (unsigned i = 0; i < TLB_PRIVILEGES * TLB_ACCESSES && !is_found; i++) {
            is_found = find_in_table(tlb->entries[i / TLB_ACCESSES][i % TLB_ACCESSES], host, &gva);
        }
    }
    return gva;
}

void x87_pointers_hide(struct block *block, uint8_t *xsave)
{
    enum { LONGEST = 15 };
    struct translate_vm *vm = block->vm;
    uint64_t host = load_le64(xsave + XSAVE_FIP) - (uint64_t)vm->cache.run;
    if (host >= vm->cache.size) {
        return;
    }
    bool is_pending = load_le16(xsave + XSAVE_FSW) & FSW_ES;
    uint64_t pc = 0;
    uint16_t opcode = 0;
    const struct unit *unit = unit_at(vm, host + (uint64_t)vm->cache.run);
    for (uint32_t i = 0; unit && i < unit->site_count; i++) {
        const struct site *site = &vm->sites[unit->first_site + i];
        if (site->kind != SITE_FAULT || site->resume != host) {
            continue;
        }
        pc = (is_anywhere(unit) ? block->x87_page - 1 : unit->virtual_page) + site->offset;
        uint8_t bytes[LONGEST];
        unsigned left = PAGE_SIZE - site->offset;
        unsigned count = left < LONGEST ? left : LONGEST;
        gpa_t gpa = unit->page << PAGE_SHIFT | site->offset;
        if (is_pending && memory_read(vm->config.memory, gpa, bytes, count) == 0) {
            opcode = opcode_at(bytes, count);
        }
    }
    store_le64(xsave + XSAVE_FIP, pc);
    store_le64(xsave + XSAVE_FDP,
               is_pending ? find_operand(block, load_le64(xsave + XSAVE_FDP)) : 0);
    store_le16(xsave + XSAVE_FOP, opcode);
}
