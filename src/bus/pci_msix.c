/* MSI-X: the table and the pending bits in a BAR of their own. PCI 3.0, 6.8.2. */
#include "bus/pci_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "persist/visitor.h"

enum { TABLE_SIZE = PCI_MSIX_MAX * sizeof(struct pci_msix_entry), PENDING_OFFSET = TABLE_SIZE };
enum { ENTRY_MASKED = 1u << 0 };

/* Copy out of `bytes`, where [offset, offset + size) may lie beyond its end. */
static uint64_t read_within(const void *bytes, uint64_t limit, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (range_fits(offset, size, limit)) {
        memcpy(&value, (const uint8_t *)bytes + offset, size);
    }
    return value;
}

static uint64_t msix_read(void *owner, uint64_t offset, unsigned size)
{
    struct pci_function *function = owner;
    const struct pci_msix *msix = &function->msix;
    pthread_mutex_lock(&function->lock);
    uint64_t value;
    if (offset < PENDING_OFFSET) {
        uint64_t limit = msix->vectors * sizeof msix->entries[0];
        value = read_within(msix->entries, limit, offset, size);
    } else {
        value = read_within(msix->pending, sizeof msix->pending, offset - PENDING_OFFSET, size);
    }
    pthread_mutex_unlock(&function->lock);
    return value;
}

/* Aligned accesses of 4 or 8 bytes are all that is allowed; others are lost. The PBA is read-only.
 */
static void msix_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_function *function = owner;
    struct pci_msix *msix = &function->msix;
    uint64_t limit = msix->vectors * sizeof msix->entries[0];
    if ((size != 4 && size != 8) || offset % size != 0 || !range_fits(offset, size, limit)) {
        return;
    }
    pthread_mutex_lock(&function->lock);
    struct pci_msix_entry *entry = &msix->entries[offset / sizeof *entry];
    memcpy((uint8_t *)msix->entries + offset, &value, size);
    entry->address_low &= ~3u;
    entry->control &= ENTRY_MASKED;
    pci_msix_flush(function);
    pthread_mutex_unlock(&function->lock);
}

static const struct region_ops msix_ops = {.read = msix_read, .write = msix_write};

void pci_add_msix(struct pci_function *function, unsigned bar, unsigned vectors)
{
    struct pci_msix *msix = &function->msix;
    ASSERT(vectors >= 1 && vectors <= PCI_MSIX_MAX && !msix->entries);
    pci_add_memory_bar(function, bar, 2 * PENDING_OFFSET, false, &msix_ops, function);
    uint8_t body[10];
    static const uint8_t writable[10] = {[1] = 0xc0}; /* enable, function mask */
    store_le16(&body[0], (uint16_t)(vectors - 1));
    store_le32(&body[2], bar);
    store_le32(&body[6], PENDING_OFFSET | bar);
    msix->capability =
        (uint8_t)pci_add_capability(function, PCI_CAPABILITY_MSIX, body, sizeof body, writable);
    msix->vectors = (uint16_t)vectors;
    msix->entries = calloc(vectors, sizeof msix->entries[0]);
    ASSERT(msix->entries);
    pci_msix_reset(function);
}

void pci_msix_reset(struct pci_function *function)
{
    struct pci_msix *msix = &function->msix;
    for (unsigned i = 0; i < msix->vectors; i++) {
        msix->entries[i] = (struct pci_msix_entry){.control = ENTRY_MASKED};
    }
    memset(msix->pending, 0, sizeof msix->pending);
}

/* May this vector's message go out now? */
static bool vector_open(const struct pci_function *function, unsigned vector)
{
    return function->bus && function->master && !function->msix.masked &&
           !(function->msix.entries[vector].control & ENTRY_MASKED);
}

static void vector_send(const struct pci_function *function, unsigned vector)
{
    const struct pci_msix_entry *entry = &function->msix.entries[vector];
    const struct msi_target *msi = &function->bus->msi;
    if (msi->send) {
        msi->send(msi->owner, (uint64_t)entry->address_high << 32 | entry->address_low,
                  entry->data);
    }
}

void pci_msix_flush(struct pci_function *function)
{
    struct pci_msix *msix = &function->msix;
    for (unsigned word = 0; msix->enabled && word < ARRAY_SIZE(msix->pending); word++) {
        for (uint64_t left = msix->pending[word]; left; left &= left - 1) {
            unsigned vector = word * 64 + (unsigned)__builtin_ctzll(left);
            if (vector_open(function, vector)) {
                msix->pending[word] &= ~(1ull << (vector % 64));
                vector_send(function, vector);
            }
        }
    }
}

void pci_msix_notify(struct pci_function *function, unsigned vector)
{
    struct pci_msix *msix = &function->msix;
    if (vector >= msix->vectors) {
        return;
    }
    pthread_mutex_lock(&function->lock);
    if (msix->enabled && vector_open(function, vector)) {
        vector_send(function, vector);
    } else if (msix->enabled) {
        msix->pending[vector / 64] |= 1ull << (vector % 64);
    }
    pthread_mutex_unlock(&function->lock);
}

bool pci_msix_enabled(struct pci_function *function)
{
    pthread_mutex_lock(&function->lock);
    bool enabled = function->msix.enabled;
    pthread_mutex_unlock(&function->lock);
    return enabled;
}

void pci_msix_visit(struct pci_function *function, struct visitor *v)
{
    struct pci_msix *msix = &function->msix;
    for (unsigned i = 0; i < msix->vectors; i++) {
        struct pci_msix_entry *entry = &msix->entries[i];
        visit_u32(v, "address_low", &entry->address_low);
        visit_u32(v, "address_high", &entry->address_high);
        visit_u32(v, "data", &entry->data);
        visit_u32_max(v, "control", &entry->control, ENTRY_MASKED);
    }
    if (msix->vectors) {
        visit_bytes(v, "pending", msix->pending, sizeof msix->pending);
    }
    for (unsigned i = msix->vectors; i < PCI_MSIX_MAX; i++) {
        if (msix->pending[i / 64] >> (i % 64) & 1) {
            visitor_fail(v, -EINVAL, "an MSI-X vector that does not exist is pending");
            msix->pending[i / 64] &= ~(1ull << (i % 64));
        }
    }
}
