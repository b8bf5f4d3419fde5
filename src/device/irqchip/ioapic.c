/* The I/O APIC's redirection table and pins. */
#include "device/irqchip/ioapic.h"

#include "device/irqchip/lapic.h"
#include "persist/visitor.h"

enum { OFFSET_SELECT = 0x00, OFFSET_WINDOW = 0x10, OFFSET_EOI = 0x40 };
enum { REGISTER_ID = 0, REGISTER_VERSION = 1, REGISTER_ARBITRATION = 2, REGISTER_ENTRY = 0x10 };
enum { VERSION = 0x20 | (IO_APIC_PINS - 1) << 16 };

/* A redirection entry. */
#define ENTRY_LOGICAL    (1ull << 11)
#define ENTRY_REMOTE_IRR (1ull << 14)
#define ENTRY_LEVEL      (1ull << 15)
#define ENTRY_MASKED     (1ull << 16)
#define ENTRY_WRITABLE   0xff0000000001afffull /* not: delivery status, remote IRR, reserved */

void ioapic_reset(struct ioapic *ioapic)
{
    for (unsigned pin = 0; pin < IO_APIC_PINS; pin++) {
        ioapic->entries[pin] = ENTRY_MASKED;
    }
    ioapic->lines = 0;
    ioapic->select = ioapic->id = 0;
}

static void pin_send(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->entries[pin];
    struct apic_message message = {
        .destination = (uint32_t)(entry >> 56),
        .is_logical = entry & ENTRY_LOGICAL,
        .is_level = entry & ENTRY_LEVEL,
        .mode = entry >> 8 & 7,
        .vector = (uint8_t)entry,
    };
    ioapic->send(ioapic->owner, &message);
}

/* Level-triggered: send while the pin is up, once until the EOI. */
static void pin_look(struct ioapic *ioapic, unsigned pin)
{
    uint64_t entry = ioapic->entries[pin];
    bool is_up = ioapic->lines >> pin & 1;
    if (is_up && (entry & ENTRY_LEVEL) && !(entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR))) {
        unsigned mode = entry >> 8 & 7;
        if (mode == DELIVERY_FIXED || mode == DELIVERY_LOWEST) {
            ioapic->entries[pin] |= ENTRY_REMOTE_IRR; /* only these are ever completed */
        }
        pin_send(ioapic, pin);
    }
}

void ioapic_set(struct ioapic *ioapic, unsigned pin, bool level)
{
    uint32_t bit = 1u << pin;
    bool rises = level && !(ioapic->lines & bit);
    ioapic->lines = level ? ioapic->lines | bit : ioapic->lines & ~bit;
    if (!rises) {
        return;
    }
    if (ioapic->entries[pin] & ENTRY_LEVEL) {
        pin_look(ioapic, pin);
    } else if (!(ioapic->entries[pin] & ENTRY_MASKED)) { /* edges on masked pins are lost */
        pin_send(ioapic, pin);
    }
}

void ioapic_eoi(struct ioapic *ioapic, uint8_t vector)
{
    for (unsigned pin = 0; pin < IO_APIC_PINS; pin++) {
        uint64_t entry = ioapic->entries[pin];
        if ((uint8_t)entry == vector && (entry & ENTRY_REMOTE_IRR)) {
            ioapic->entries[pin] &= ~ENTRY_REMOTE_IRR;
            pin_look(ioapic, pin);
        }
    }
}

static uint32_t register_read(const struct ioapic *ioapic)
{
    unsigned index = ioapic->select;
    if (index >= REGISTER_ENTRY && index < REGISTER_ENTRY + 2 * IO_APIC_PINS) {
        uint64_t entry = ioapic->entries[(index - REGISTER_ENTRY) / 2];
        return (uint32_t)(index % 2 ? entry >> 32 : entry);
    }
    switch (index) {
    case REGISTER_ID:
    case REGISTER_ARBITRATION:
        return (uint32_t)ioapic->id << 24;
    case REGISTER_VERSION:
        return VERSION;
    default:
        return 0;
    }
}

static void entry_write(struct ioapic *ioapic, unsigned index, uint32_t value)
{
    unsigned pin = index / 2, shift = index % 2 ? 32 : 0;
    uint64_t mask = ENTRY_WRITABLE & (0xffffffffull << shift);
    uint64_t entry = (ioapic->entries[pin] & ~mask) | ((uint64_t)value << shift & mask);
    if (!(entry & ENTRY_LEVEL)) {
        entry &= ~ENTRY_REMOTE_IRR; /* undefined for edges; guests clear it this way */
    }
    ioapic->entries[pin] = entry;
    pin_look(ioapic, pin);
}

static void register_write(struct ioapic *ioapic, uint32_t value)
{
    unsigned index = ioapic->select;
    if (index >= REGISTER_ENTRY && index < REGISTER_ENTRY + 2 * IO_APIC_PINS) {
        entry_write(ioapic, index - REGISTER_ENTRY, value);
    } else if (index == REGISTER_ID) {
        ioapic->id = value >> 24 & 0xf;
    }
}

uint32_t ioapic_read(struct ioapic *ioapic, uint64_t offset)
{
    switch (offset) {
    case OFFSET_SELECT:
        return ioapic->select;
    case OFFSET_WINDOW:
        return register_read(ioapic);
    default:
        return 0;
    }
}

void ioapic_write(struct ioapic *ioapic, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case OFFSET_SELECT:
        ioapic->select = (uint8_t)value;
        break;
    case OFFSET_WINDOW:
        register_write(ioapic, value);
        break;
    case OFFSET_EOI:
        ioapic_eoi(ioapic, (uint8_t)value);
        break;
    }
}

void ioapic_visit(struct ioapic *ioapic, struct visitor *v)
{
    visit_begin(v, "ioapic", 1);
    for (unsigned pin = 0; pin < IO_APIC_PINS; pin++) {
        visit_u64(v, "entry", &ioapic->entries[pin]);
        ioapic->entries[pin] &= ENTRY_WRITABLE | ENTRY_REMOTE_IRR;
    }
    visit_u32_max(v, "lines", &ioapic->lines, (1u << IO_APIC_PINS) - 1);
    visit_u8(v, "select", &ioapic->select);
    visit_u8_max(v, "id", &ioapic->id, 0xf);
    visit_end(v);
}
