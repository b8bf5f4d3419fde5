/*
 * The interrupt controllers as one device: routing of lines and messages, and the address decoding
 * of the parts. Order of locks: the device's (8259s and I/O APIC), then a local APIC's.
 */
#include "device/irqchip/irqchip.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "device/irqchip/ioapic.h"
#include "device/irqchip/lapic.h"
#include "device/irqchip/pic.h"
#include "persist/visitor.h"

enum { PORT_MASTER, PORT_SLAVE, PORT_ELCR, PORT_REGIONS };
enum { ISA_LINES = 16, ISA_TIMER = 0, TIMER_PIN = 2 };
enum { MSR_APIC_BASE = 0x1b, MSR_TSC_DEADLINE = 0x6e0 };

struct irqchip {
    struct device device; /* its lock guards pic, pic_output and ioapic */
    struct bus *bus;
    struct irqchip_wire wire;
    struct lapic_board board;
    struct region ioapic_region;
    struct pic pic;
    bool pic_output; /* what LINT0 of the local APICs sees */
    struct ioapic ioapic;
    uint32_t rotation; /* where arbitration of lowest-priority messages starts */
    unsigned cpus;
    struct lapic *lapics; /* one for each CPU */
    struct region ports[PORT_REGIONS];
};

static struct irqchip *irqchip_of(struct device *device)
{
    return CONTAINER_OF(device, struct irqchip, device);
}

/* Among those the message names, the one with the least to do; NULL if none takes it. */
static struct lapic *arbitrate(struct irqchip *chip, const struct apic_message *message)
{
    struct lapic *winner = NULL;
    int best = INT32_MAX;
    unsigned start = __atomic_fetch_add(&chip->rotation, 1, __ATOMIC_RELAXED) % chip->cpus;
    for (unsigned i = 0; i < chip->cpus; i++) {
        struct lapic *lapic = &chip->lapics[(start + i) % chip->cpus];
        int priority = lapic_matches(lapic, message) ? lapic_priority(lapic) : -1;
        if (priority >= 0 && priority < best) {
            best = priority;
            winner = lapic;
        }
    }
    return winner;
}

static void deliver(struct irqchip *chip, const struct apic_message *message)
{
    if (message->mode == DELIVERY_LOWEST) {
        struct lapic *winner = arbitrate(chip, message);
        if (winner) {
            lapic_accept(winner, message);
        }
        return;
    }
    if (!message->is_logical && message->destination < chip->cpus) {
        lapic_accept(&chip->lapics[message->destination], message);
        return;
    }
    for (unsigned i = 0; i < chip->cpus; i++) {
        if (lapic_matches(&chip->lapics[i], message)) {
            lapic_accept(&chip->lapics[i], message);
        }
    }
}

/* An interprocessor interrupt. */
static void ipi_send(void *owner, unsigned from, enum apic_shorthand shorthand,
                     const struct apic_message *message)
{
    struct irqchip *chip = owner;
    switch (shorthand) {
    case SHORTHAND_NONE:
        deliver(chip, message);
        break;
    case SHORTHAND_SELF:
        lapic_accept(&chip->lapics[from], message);
        break;
    case SHORTHAND_ALL:
    case SHORTHAND_OTHERS:
        for (unsigned i = 0; i < chip->cpus; i++) {
            if (i != from || shorthand == SHORTHAND_ALL) {
                lapic_accept(&chip->lapics[i], message);
            }
        }
        break;
    }
}

static void eoi_broadcast(void *owner, uint8_t vector)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    ioapic_eoi(&chip->ioapic, vector);
    pthread_mutex_unlock(&chip->device.lock);
}

static void ioapic_send(void *owner, const struct apic_message *message)
{
    deliver(owner, message);
}

/* SDM volume 3, 10.11. */
static void msi_send(void *owner, uint64_t address, uint32_t data)
{
    if (address >> 20 != IRQCHIP_LOCAL_APIC_BASE >> 20) {
        return; /* not the local APICs' window */
    }
    bool is_logical = address >> 2 & 1, is_hinted = address >> 3 & 1;
    struct apic_message message = {
        .destination = address >> 12 & 0xff,
        .is_logical = is_logical,
        .is_level = data >> 15 & 1,
        .mode = data >> 8 & 7,
        .vector = (uint8_t)data,
    };
    if (is_logical && is_hinted && message.mode == DELIVERY_FIXED) {
        message.mode = DELIVERY_LOWEST;
    }
    deliver(owner, &message);
}

/* Carry the 8259s' output to the local APICs. With the device's lock held. */
static void pic_propagate(struct irqchip *chip)
{
    bool output = pic_output(&chip->pic);
    if (output != chip->pic_output) {
        chip->pic_output = output;
        for (unsigned i = 0; i < chip->cpus; i++) {
            lapic_set_lint0(&chip->lapics[i], output);
        }
    }
}

static void line_set(void *owner, unsigned number, bool level)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    if (number < ISA_LINES) {
        pic_set(&chip->pic, number, level);
        pic_propagate(chip);
    }
    if (number != TIMER_PIN) {
        ioapic_set(&chip->ioapic, number == ISA_TIMER ? TIMER_PIN : number, level);
    }
    pthread_mutex_unlock(&chip->device.lock);
}

struct irq_line irqchip_line(struct irqchip *chip, unsigned number)
{
    ASSERT(number < IRQCHIP_LINES);
    return (struct irq_line){.set = line_set, .owner = chip, .number = number};
}

struct msi_target irqchip_msi(struct irqchip *chip)
{
    return (struct msi_target){.send = msi_send, .owner = chip};
}

/* INTA to the 8259s; -1 if somebody else was faster. */
static int pic_take(struct irqchip *chip)
{
    int vector = -1;
    pthread_mutex_lock(&chip->device.lock);
    if (pic_output(&chip->pic)) {
        vector = pic_acknowledge(&chip->pic);
        pic_propagate(chip);
    }
    pthread_mutex_unlock(&chip->device.lock);
    return vector;
}

int irqchip_acknowledge(struct irqchip *chip, unsigned vcpu)
{
    struct lapic *lapic = &chip->lapics[vcpu];
    int vector = lapic_passes_extint(lapic) ? pic_take(chip) : -1;
    return vector >= 0 ? vector : lapic_acknowledge(lapic);
}

bool irqchip_has_interrupt(struct irqchip *chip, unsigned vcpu)
{
    return lapic_has_interrupt(&chip->lapics[vcpu]);
}

bool irqchip_claims(struct irqchip *chip, unsigned vcpu, uint64_t address)
{
    return lapic_claims(&chip->lapics[vcpu], address);
}

/* Registers are the first four bytes of each sixteen; what lies between reads as zero. */
uint64_t irqchip_mmio_read(struct irqchip *chip, unsigned vcpu, uint64_t offset, unsigned size)
{
    unsigned within = offset & 0xf;
    if (within >= 4 || offset >= 0x1000) {
        return 0;
    }
    uint64_t value = lapic_mmio_read(&chip->lapics[vcpu], offset & 0xff0);
    return value >> (8 * within);
}

/* Only aligned writes of 32 bits have a defined effect (SDM volume 3, 10.4.1). */
void irqchip_mmio_write(struct irqchip *chip, unsigned vcpu, uint64_t offset, unsigned size,
                        uint64_t value)
{
    if (size >= 4 && (offset & 0xf) == 0 && offset < 0x1000) {
        lapic_mmio_write(&chip->lapics[vcpu], (unsigned)offset, (uint32_t)value);
    }
}

bool irqchip_owns_msr(uint32_t index)
{
    return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE ||
           (index >= 0x800 && index <= 0x8ff);
}

bool irqchip_msr_read(struct irqchip *chip, unsigned vcpu, uint32_t index, uint64_t *ret_value)
{
    return lapic_msr_read(&chip->lapics[vcpu], index, ret_value);
}

bool irqchip_msr_write(struct irqchip *chip, unsigned vcpu, uint32_t index, uint64_t value)
{
    return lapic_msr_write(&chip->lapics[vcpu], index, value);
}

/* CR8 is TPR bits 7:4 (SDM volume 3, 10.8.6). */
uint64_t irqchip_cr8_read(struct irqchip *chip, unsigned vcpu)
{
    return lapic_tpr(&chip->lapics[vcpu]) >> 4;
}

void irqchip_cr8_write(struct irqchip *chip, unsigned vcpu, uint64_t value)
{
    lapic_set_tpr(&chip->lapics[vcpu], (uint32_t)(value & 0xf) << 4);
}

void irqchip_vcpu_init(struct irqchip *chip, unsigned vcpu)
{
    lapic_init_ipi(&chip->lapics[vcpu]);
}

void irqchip_tsc_changed(struct irqchip *chip, unsigned vcpu)
{
    lapic_tsc_changed(&chip->lapics[vcpu]);
}

static uint64_t chip_port_read(struct irqchip *chip, unsigned number, uint64_t offset)
{
    pthread_mutex_lock(&chip->device.lock);
    uint8_t value = pic_read(&chip->pic, number, offset & 1);
    pic_propagate(chip); /* a poll acknowledges */
    pthread_mutex_unlock(&chip->device.lock);
    return value;
}

static void chip_port_write(struct irqchip *chip, unsigned number, uint64_t offset, uint64_t value)
{
    pthread_mutex_lock(&chip->device.lock);
    pic_write(&chip->pic, number, offset & 1, (uint8_t)value);
    pic_propagate(chip);
    pthread_mutex_unlock(&chip->device.lock);
}

static uint64_t master_read(void *owner, uint64_t offset, unsigned size)
{
    return chip_port_read(owner, 0, offset);
}

static void master_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    chip_port_write(owner, 0, offset, value);
}

static uint64_t slave_read(void *owner, uint64_t offset, unsigned size)
{
    return chip_port_read(owner, 1, offset);
}

static void slave_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    chip_port_write(owner, 1, offset, value);
}

static uint64_t elcr_read(void *owner, uint64_t offset, unsigned size)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    uint8_t value = pic_elcr_read(&chip->pic, (unsigned)offset);
    pthread_mutex_unlock(&chip->device.lock);
    return value;
}

static void elcr_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    pic_elcr_write(&chip->pic, (unsigned)offset, (uint8_t)value);
    pic_propagate(chip);
    pthread_mutex_unlock(&chip->device.lock);
}

static uint64_t ioapic_page_read(void *owner, uint64_t offset, unsigned size)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    uint32_t value = ioapic_read(&chip->ioapic, offset);
    pthread_mutex_unlock(&chip->device.lock);
    return value;
}

static void ioapic_page_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct irqchip *chip = owner;
    pthread_mutex_lock(&chip->device.lock);
    ioapic_write(&chip->ioapic, offset, (uint32_t)value);
    pthread_mutex_unlock(&chip->device.lock);
}

static const struct region_ops port_ops[PORT_REGIONS] = {
    [PORT_MASTER] = {.read = master_read, .write = master_write},
    [PORT_SLAVE] = {.read = slave_read, .write = slave_write},
    [PORT_ELCR] = {.read = elcr_read, .write = elcr_write},
};
static const struct region_ops ioapic_ops = {.read = ioapic_page_read, .write = ioapic_page_write};
static const char *const port_names[PORT_REGIONS] = {"8259 master", "8259 slave", "8259 elcr"};
static const uint16_t port_bases[PORT_REGIONS] = {0x20, 0xa0, 0x4d0};

static void irqchip_reset(struct device *device)
{
    struct irqchip *chip = irqchip_of(device);
    pthread_mutex_lock(&device->lock);
    pic_reset(&chip->pic);
    ioapic_reset(&chip->ioapic);
    chip->pic_output = false;
    chip->rotation = 0;
    for (unsigned i = 0; i < chip->cpus; i++) {
        lapic_reset(&chip->lapics[i]);
    }
    pthread_mutex_unlock(&device->lock);
}

static void irqchip_visit(struct device *device, struct visitor *v)
{
    struct irqchip *chip = irqchip_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "irqchip", 1);
    uint32_t cpus = chip->cpus;
    visit_u32(v, "cpus", &cpus);
    if (cpus != chip->cpus) {
        visitor_fail(v, -EINVAL, "the saved machine has another number of CPUs");
    }
    visit_bool(v, "pic_output", &chip->pic_output);
    visit_u32(v, "rotation", &chip->rotation);
    pic_visit(&chip->pic, v);
    ioapic_visit(&chip->ioapic, v);
    for (unsigned i = 0; i < chip->cpus; i++) {
        lapic_visit(&chip->lapics[i], v);
    }
    visit_end(v);
    pthread_mutex_unlock(&device->lock);
}

static void irqchip_free(struct device *device)
{
    struct irqchip *chip = irqchip_of(device);
    for (unsigned i = 0; i < PORT_REGIONS; i++) {
        bus_remove(chip->bus, &chip->ports[i]);
    }
    bus_remove(chip->bus, &chip->ioapic_region);
    for (unsigned i = 0; i < chip->cpus; i++) {
        lapic_fini(&chip->lapics[i]);
    }
    device_fini(device);
    free(chip->lapics);
    free(chip);
}

static const struct device_ops irqchip_ops = {
    .name = "irqchip",
    .reset = irqchip_reset,
    .visit = irqchip_visit,
    .free = irqchip_free,
};
CLEANUP_DEFINE(struct device, device_free)

struct device *irqchip_device(struct irqchip *chip)
{
    return &chip->device;
}

static int regions_add(struct irqchip *chip)
{
    chip->ioapic_region = (struct region){.name = "io apic",
                                          .base = IRQCHIP_IO_APIC_BASE,
                                          .size = 0x1000,
                                          .ops = &ioapic_ops,
                                          .owner = chip};
    int result = bus_add_mmio(chip->bus, &chip->ioapic_region);
    for (unsigned i = 0; i < PORT_REGIONS && result == 0; i++) {
        chip->ports[i] = (struct region){.name = port_names[i],
                                         .base = port_bases[i],
                                         .size = 2,
                                         .ops = &port_ops[i],
                                         .owner = chip,
                                         .is_byte_wide = true};
        result = bus_add_port(chip->bus, &chip->ports[i]);
    }
    return result;
}

int irqchip_new(const struct irqchip_config *config, struct irqchip **ret_chip)
{
    if (config->cpus < 1 || config->cpus > IRQCHIP_CPUS_MAX) {
        return fail(-EINVAL, "%u CPUs: 1 to %d are possible", config->cpus, IRQCHIP_CPUS_MAX);
    }
    struct irqchip *chip = calloc(1, sizeof *chip);
    ASSERT(chip);
    CLEANUP(device_free) struct device *device = &chip->device;
    device_init(device, &irqchip_ops, "irqchip");
    chip->bus = config->bus;
    chip->wire = config->wire;
    chip->board = (struct lapic_board){.send = ipi_send, .eoi = eoi_broadcast, .owner = chip};
    chip->ioapic.send = ioapic_send;
    chip->ioapic.owner = chip;
    chip->cpus = config->cpus;
    chip->lapics = calloc(chip->cpus, sizeof chip->lapics[0]);
    ASSERT(chip->lapics);
    for (unsigned i = 0; i < chip->cpus; i++) {
        lapic_init(&chip->lapics[i], i, &chip->wire, &chip->board, config->clock);
    }
    irqchip_reset(device);
    int result = regions_add(chip);
    if (result == 0) {
        device = NULL;
        *ret_chip = chip;
    }
    return result;
}
