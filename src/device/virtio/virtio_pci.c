/*
 * The PCI transport: capabilities that say where the register blocks are (virtio 1.2, 4.1.4), the
 * common configuration block, notifications, and interrupts as MSI-X messages or INTx.
 */
#include "device/virtio/virtio_pci.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "bus/pci.h"
#include "persist/visitor.h"

/* Where things are in BAR 0. Each block has a page, so that a guest may map it on its own. */
enum {
    REGISTER_BAR = 0,
    MSIX_BAR = 4,
    COMMON_OFFSET = 0x0000,
    COMMON_SIZE = 0x38,
    ISR_OFFSET = 0x1000,
    ISR_SIZE = 1,
    CONFIG_OFFSET = 0x2000,
    CONFIG_SIZE = 0x1000,
    NOTIFY_OFFSET = 0x3000,
    NOTIFY_SPACING = 4,
    BLOCK_SIZE = 0x1000,
    BAR_SIZE = 0x4000,
};

/* Types of the vendor capability (4.1.4). */
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI_ACCESS = 5 };
/* Layout of the vendor capability. */
enum { CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_EXTRA = 16, CAP_SIZE = 20 };

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };
enum { NO_VECTOR = 0xffff };

/* The common configuration (4.1.4.3), as the driver sees it. */
struct common_registers {
    uint32_t device_feature_select, device_feature;
    uint32_t driver_feature_select, driver_feature;
    uint16_t config_msix_vector, num_queues;
    uint8_t device_status, config_generation;
    uint16_t queue_select;
    uint16_t queue_size, queue_msix_vector, queue_enable, queue_notify_off;
    uint64_t queue_desc, queue_driver, queue_device;
};
_Static_assert(sizeof(struct common_registers) == COMMON_SIZE, "as the driver sees it");

struct virtio_pci {
    struct pci_function function;
    struct virtio_device *virtio; /* its owner */
    uint32_t device_feature_select, driver_feature_select;
    uint16_t queue_select;
    uint16_t config_vector, queue_vectors[VIRTIO_QUEUES_MAX];
    uint8_t isr;
    unsigned access_capability; /* offset of CAP_PCI_ACCESS */
};

static uint16_t vector_count(const struct virtio_pci *pci)
{
    return (uint16_t)(pci->virtio->queue_count + 1);
}

static void raise_interrupt(struct virtio_pci *pci, uint16_t vector, uint8_t isr)
{
    if (pci_msix_enabled(&pci->function)) {
        pci_msix_notify(&pci->function, vector); /* NO_VECTOR is out of range: ignored */
    } else {
        pci->isr |= isr;
        pci_intx_set(&pci->function, true);
    }
}

static void pci_queue_interrupt(void *transport, unsigned queue)
{
    struct virtio_pci *pci = transport;
    raise_interrupt(pci, pci->queue_vectors[queue], ISR_QUEUE);
}

static void pci_config_interrupt(void *transport)
{
    struct virtio_pci *pci = transport;
    raise_interrupt(pci, pci->config_vector, ISR_CONFIG);
}

static uint32_t features_word(const struct virtio_pci *pci, uint64_t features, uint32_t word)
{
    return word < 2 ? (uint32_t)(features >> (32 * word)) : 0;
}

static void common_fill(const struct virtio_pci *pci, struct common_registers *ret_registers)
{
    const struct virtio_device *virtio = pci->virtio;
    *ret_registers = (struct common_registers){
        .device_feature_select = pci->device_feature_select,
        .device_feature = features_word(pci, virtio->features_offered, pci->device_feature_select),
        .driver_feature_select = pci->driver_feature_select,
        .driver_feature = features_word(pci, virtio->features_accepted, pci->driver_feature_select),
        .config_msix_vector = pci->config_vector,
        .num_queues = virtio->queue_count,
        .device_status = virtio->status,
        .config_generation = virtio->config_generation,
        .queue_select = pci->queue_select,
    };
    if (pci->queue_select < virtio->queue_count) {
        /* A queue that is not there has size 0 (4.1.4.3.1). */
        const struct virtqueue *queue = &virtio->queues[pci->queue_select];
        ret_registers->queue_size = queue->size;
        ret_registers->queue_msix_vector = pci->queue_vectors[pci->queue_select];
        ret_registers->queue_enable = queue->enabled;
        ret_registers->queue_notify_off = pci->queue_select;
        ret_registers->queue_desc = queue->descriptor_area;
        ret_registers->queue_driver = queue->driver_area;
        ret_registers->queue_device = queue->device_area;
    }
}

static uint64_t common_read(const struct virtio_pci *pci, uint64_t offset, unsigned size)
{
    struct common_registers registers;
    uint64_t value = 0;
    common_fill(pci, &registers);
    if (range_fits(offset, size, sizeof registers)) {
        memcpy(&value, (uint8_t *)&registers + offset, size);
    }
    return value;
}

/* A vector we do not have is refused by reading back as none (4.1.5.1.2.1). */
static uint16_t accepted_vector(const struct virtio_pci *pci, uint64_t vector)
{
    return vector < vector_count(pci) ? (uint16_t)vector : NO_VECTOR;
}

/*
 * Is [offset, offset + size) the field, or a half of it if it has 8 bytes (4.1.3.1)? Before the
 * field the difference wraps to something that never fits.
 */
#define IS_FIELD(field)                                                                            \
    ((size == sizeof registers.field || (sizeof registers.field == 8 && size == 4)) &&             \
     range_fits(offset - offsetof(struct common_registers, field), size, sizeof registers.field))

/* Registers of the selected queue, from `registers` with the new bytes in place. */
static void queue_write(struct virtio_pci *pci, uint64_t offset, unsigned size,
                        struct common_registers registers)
{
    if (pci->queue_select >= pci->virtio->queue_count) {
        return;
    }
    struct virtqueue *queue = &pci->virtio->queues[pci->queue_select];
    if (IS_FIELD(queue_msix_vector)) {
        pci->queue_vectors[pci->queue_select] = accepted_vector(pci, registers.queue_msix_vector);
    } else if (queue->enabled || pci->virtio->resetting) {
        return; /* a running queue does not move */
    } else if (IS_FIELD(queue_size)) {
        /* What is no power of two is found when the queue is enabled. */
        queue->size = registers.queue_size <= queue->size_max ? registers.queue_size : queue->size;
    } else if (IS_FIELD(queue_enable) && registers.queue_enable == 1) {
        virtio_enable_queue(pci->virtio, pci->queue_select);
    } else if (IS_FIELD(queue_desc)) {
        queue->descriptor_area = registers.queue_desc;
    } else if (IS_FIELD(queue_driver)) {
        queue->driver_area = registers.queue_driver;
    } else if (IS_FIELD(queue_device)) {
        queue->device_area = registers.queue_device;
    }
}

static void common_write(struct virtio_pci *pci, uint64_t offset, unsigned size, uint64_t value)
{
    struct common_registers registers;
    if (!range_fits(offset, size, sizeof registers)) {
        return;
    }
    common_fill(pci, &registers);
    memcpy((uint8_t *)&registers + offset, &value, size);
    if (IS_FIELD(device_feature_select)) {
        pci->device_feature_select = registers.device_feature_select;
    } else if (IS_FIELD(driver_feature_select)) {
        pci->driver_feature_select = registers.driver_feature_select;
    } else if (IS_FIELD(driver_feature)) {
        virtio_set_features(pci->virtio, pci->driver_feature_select, registers.driver_feature);
    } else if (IS_FIELD(config_msix_vector)) {
        pci->config_vector = accepted_vector(pci, registers.config_msix_vector);
    } else if (IS_FIELD(device_status)) {
        virtio_set_status(pci->virtio, registers.device_status);
    } else if (IS_FIELD(queue_select)) {
        pci->queue_select = registers.queue_select;
    } else {
        queue_write(pci, offset, size, registers);
    }
}

/* Reading the interrupt status takes the interrupt back (4.1.4.5). */
static uint64_t isr_read(struct virtio_pci *pci)
{
    uint8_t isr = pci->isr;
    pci->isr = 0;
    pci_intx_set(&pci->function, false);
    return isr;
}

static uint64_t registers_read(void *owner, uint64_t offset, unsigned size)
{
    struct virtio_pci *pci = owner;
    uint64_t value = 0, within = offset % BLOCK_SIZE;
    pthread_mutex_lock(&pci->virtio->device.lock);
    switch (offset - within) {
    case COMMON_OFFSET:
        value = common_read(pci, within, size);
        break;
    case ISR_OFFSET:
        value = within == 0 ? isr_read(pci) : 0;
        break;
    case CONFIG_OFFSET:
        value = virtio_config_read(pci->virtio, within, size);
        break;
    }
    pthread_mutex_unlock(&pci->virtio->device.lock);
    return value;
}

static void registers_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *pci = owner;
    uint64_t within = offset % BLOCK_SIZE;
    pthread_mutex_lock(&pci->virtio->device.lock);
    switch (offset - within) {
    case COMMON_OFFSET:
        common_write(pci, within, size, value);
        break;
    case CONFIG_OFFSET:
        virtio_config_write(pci->virtio, within, size, value);
        break;
    case NOTIFY_OFFSET:
        if (within % NOTIFY_SPACING == 0) {
            virtio_serve(pci->virtio, (unsigned)(within / NOTIFY_SPACING));
        }
        break;
    }
    pthread_mutex_unlock(&pci->virtio->device.lock);
}

/*
 * The window through configuration space (4.1.4.9), for firmware that cannot reach the BAR. The
 * driver sets where and how much; touching the data then accesses the registers.
 */
static bool access_window(const struct virtio_pci *pci, unsigned offset, unsigned size,
                          uint64_t *ret_offset, unsigned *ret_size)
{
    const uint8_t *cap = &pci->function.config[pci->access_capability];
    unsigned data = pci->access_capability + CAP_EXTRA;
    *ret_offset = load_le32(cap + CAP_OFFSET);
    *ret_size = load_le32(cap + CAP_LENGTH);
    return pci->access_capability && offset < data + 4 && data < offset + size &&
           cap[CAP_BAR] == REGISTER_BAR && (*ret_size == 1 || *ret_size == 2 || *ret_size == 4) &&
           *ret_offset % *ret_size == 0 && range_fits(*ret_offset, *ret_size, BAR_SIZE);
}

static void access_read(void *owner, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = owner;
    uint64_t at;
    unsigned length;
    if (access_window(pci, offset, size, &at, &length)) {
        store_le32(&pci->function.config[pci->access_capability + CAP_EXTRA],
                   (uint32_t)registers_read(pci, at, length));
    }
}

static void access_written(void *owner, unsigned offset, unsigned size)
{
    struct virtio_pci *pci = owner;
    uint64_t at;
    unsigned length;
    if (access_window(pci, offset, size, &at, &length)) {
        uint32_t value = load_le32(&pci->function.config[pci->access_capability + CAP_EXTRA]);
        uint32_t mask = length == 4 ? UINT32_MAX : (UINT32_C(1) << (8 * length)) - 1;
        registers_write(pci, at, length, value & mask);
    }
}

static const struct region_ops registers_ops = {registers_read, registers_write};
static const struct pci_function_ops function_ops = {access_read, access_written};

static unsigned add_capability(struct virtio_pci *pci, uint8_t type, uint32_t offset,
                               uint32_t length, uint32_t extra)
{
    bool has_extra = type == CAP_NOTIFY || type == CAP_PCI_ACCESS;
    uint8_t cap[CAP_SIZE] = {[3] = type, [CAP_BAR] = REGISTER_BAR}, writable[CAP_SIZE] = {0};
    uint8_t size = has_extra ? CAP_SIZE : CAP_EXTRA;
    cap[2] = size;
    store_le32(cap + CAP_OFFSET, offset);
    store_le32(cap + CAP_LENGTH, length);
    store_le32(cap + CAP_EXTRA, extra);
    if (type == CAP_PCI_ACCESS) {
        writable[CAP_BAR] = 0xff;
        memset(writable + CAP_OFFSET, 0xff, CAP_SIZE - CAP_OFFSET);
    }
    return pci_add_capability(&pci->function, PCI_CAPABILITY_VENDOR, cap + 2, size - 2u,
                              writable + 2);
}

static uint32_t class_of(uint16_t type)
{
    switch (type) {
    case VIRTIO_TYPE_NET:
        return 0x020000; /* network, Ethernet */
    case VIRTIO_TYPE_BLOCK:
        return 0x018000; /* mass storage, other */
    case VIRTIO_TYPE_CONSOLE:
        return 0x078000; /* communication, other */
    default:
        return 0xff0000; /* fits no class */
    }
}

static void pci_reset(void *transport)
{
    struct virtio_pci *pci = transport;
    pci->device_feature_select = pci->driver_feature_select = 0;
    pci->queue_select = 0;
    pci->config_vector = NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
        pci->queue_vectors[i] = NO_VECTOR;
    }
    pci->isr = 0;
    pci_intx_set(&pci->function, false);
}

static void pci_power_on(void *transport)
{
    struct virtio_pci *pci = transport;
    pci_function_reset(&pci->function);
}

static void visit_vector(struct virtio_pci *pci, struct visitor *v, uint16_t *vector)
{
    visit_u16(v, "vector", vector);
    *vector = accepted_vector(pci, *vector);
}

static void pci_visit(void *transport, struct visitor *v)
{
    struct virtio_pci *pci = transport;
    visit_begin(v, "virtio-pci", 1);
    visit_u32(v, "device_feature_select", &pci->device_feature_select);
    visit_u32(v, "driver_feature_select", &pci->driver_feature_select);
    visit_u16(v, "queue_select", &pci->queue_select);
    visit_vector(pci, v, &pci->config_vector);
    for (unsigned i = 0; i < pci->virtio->queue_count; i++) {
        visit_vector(pci, v, &pci->queue_vectors[i]);
    }
    visit_u8(v, "isr", &pci->isr);
    pci_function_visit(&pci->function, v);
    visit_end(v);
}

static void pci_free(void *transport)
{
    struct virtio_pci *pci = transport;
    if (pci) {
        pci_function_fini(&pci->function);
        free(pci);
    }
}

static const struct virtio_transport_ops transport_ops = {
    .queue_interrupt = pci_queue_interrupt,
    .config_interrupt = pci_config_interrupt,
    .reset = pci_reset,
    .power_on = pci_power_on,
    .visit = pci_visit,
    .free = pci_free,
};

static struct virtio_pci *virtio_pci_new(struct virtio_device *virtio)
{
    struct virtio_pci *pci = calloc(1, sizeof *pci);
    ASSERT(pci);
    pci->virtio = virtio;
    struct pci_identity identity = {
        .vendor = VIRTIO_PCI_VENDOR,
        .device = (uint16_t)(VIRTIO_PCI_DEVICE + virtio->ops->type),
        .subsystem_vendor = VIRTIO_PCI_VENDOR,
        .subsystem = (uint16_t)(0x40 + virtio->ops->type), /* not a transitional one (4.1.2.1) */
        .class_code = class_of(virtio->ops->type),
        .revision = 1,
    };
    pci_function_init(&pci->function, &identity, &function_ops, pci);
    pci_add_memory_bar(&pci->function, REGISTER_BAR, BAR_SIZE, true, &registers_ops, pci);
    pci_add_msix(&pci->function, MSIX_BAR, vector_count(pci));
    pci_add_intx(&pci->function);
    add_capability(pci, CAP_COMMON, COMMON_OFFSET, COMMON_SIZE, 0);
    add_capability(pci, CAP_NOTIFY, NOTIFY_OFFSET, virtio->queue_count * NOTIFY_SPACING,
                   NOTIFY_SPACING);
    add_capability(pci, CAP_ISR, ISR_OFFSET, ISR_SIZE, 0);
    if (virtio->ops->config_size) {
        add_capability(pci, CAP_DEVICE, CONFIG_OFFSET, CONFIG_SIZE, 0);
    }
    pci->access_capability = add_capability(pci, CAP_PCI_ACCESS, 0, 0, 0);
    pci_reset(pci);
    return pci;
}

int virtio_pci_attach(struct virtio_device *virtio, struct pci_bus *pci_bus, unsigned slot)
{
    ASSERT(!virtio->transport);
    struct virtio_pci *pci = virtio_pci_new(virtio);
    int error = pci_bus_add(pci_bus, &pci->function, slot);
    if (error) {
        pci_free(pci);
        return error;
    }
    virtio->transport_ops = &transport_ops;
    virtio->transport = pci;
    return 0;
}
