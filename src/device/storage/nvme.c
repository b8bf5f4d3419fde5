/* The NVMe controller as a device: life, its PCI function, pause and saved state. */
#include "device/storage/nvme.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "device/storage/nvme_internal.h"
#include "persist/visitor.h"

enum {
    REGISTER_BAR = 0, /* as drivers expect (2.1.10) */
    MSIX_BAR = 4,
    BAR_SIZE = 0x2000,
    VENDOR = 0x1234, /* nobody's */
    DEVICE = 0x4e56,
    CLASS = 0x010802, /* mass storage, non-volatile memory, NVM Express */
};

static struct nvme *nvme_of(struct device *device)
{
    return CONTAINER_OF(device, struct nvme, device);
}

static void nvme_pause(struct device *device)
{
    struct nvme *nvme = nvme_of(device);
    pthread_mutex_lock(&device->lock);
    nvme->paused = true;
    pthread_mutex_unlock(&device->lock);
    disk_drain(nvme->disk);
}

static void nvme_resume(struct device *device)
{
    struct nvme *nvme = nvme_of(device);
    disk_retry(nvme->disk);
    pthread_mutex_lock(&device->lock);
    nvme->paused = false;
    nvme_serve_all(nvme, NVME_QUEUES_MAX - 1);
    nvme_signal(nvme);
    pthread_mutex_unlock(&device->lock);
}

static void nvme_reset(struct device *device)
{
    struct nvme *nvme = nvme_of(device);
    pthread_mutex_lock(&device->lock);
    nvme_stop(nvme);
    nvme->cc = nvme->aqa = 0;
    nvme->asq = nvme->acq = 0;
    pthread_mutex_unlock(&device->lock);
    pci_function_reset(&nvme->function);
}

static void visit_sq(struct nvme *nvme, struct nvme_sq *sq, struct visitor *v)
{
    visit_begin(v, "sq", 1);
    visit_bool(v, "live", &sq->live);
    visit_u16_max(v, "cq", &sq->cq, NVME_QUEUES_MAX - 1);
    visit_u16(v, "size", &sq->size);
    visit_u16(v, "head", &sq->head);
    visit_u16(v, "tail", &sq->tail);
    visit_u64(v, "base", &sq->base);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && sq->live &&
        (sq->size < 2 || sq->head >= sq->size || sq->tail >= sq->size ||
         !nvme_queue_fits(nvme, sq->base, sq->size, sizeof(struct nvme_command)))) {
        visitor_fail(v, -EINVAL, "a submission queue of NVMe is at an impossible place");
    }
}

static void visit_cq(struct nvme *nvme, struct nvme_cq *cq, struct visitor *v)
{
    visit_begin(v, "cq", 1);
    visit_bool(v, "live", &cq->live);
    visit_bool(v, "interrupts", &cq->interrupts);
    visit_bool(v, "phase", &cq->phase);
    visit_u16_max(v, "vector", &cq->vector, (uint16_t)nvme->io_queues);
    visit_u16(v, "size", &cq->size);
    visit_u16(v, "head", &cq->head);
    visit_u16(v, "tail", &cq->tail);
    visit_u64(v, "base", &cq->base);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && cq->live &&
        (cq->size < 2 || cq->head >= cq->size || cq->tail >= cq->size ||
         !nvme_queue_fits(nvme, cq->base, cq->size, 16))) {
        visitor_fail(v, -EINVAL, "a completion queue of NVMe is at an impossible place");
    }
}

/* Nothing is in flight, so no room is reserved and no deletion waits. */
static void visit_queues(struct nvme *nvme, struct visitor *v)
{
    for (unsigned i = 0; i < NVME_QUEUES_MAX; i++) {
        visit_sq(nvme, &nvme->sqs[i], v);
        visit_cq(nvme, &nvme->cqs[i], v);
    }
    bool is_reading = visitor_mode(v) == VISITOR_READ && !visitor_error(v);
    for (unsigned i = 0; is_reading && i < NVME_QUEUES_MAX; i++) {
        nvme->sqs[i].in_flight = nvme->cqs[i].reserved = 0;
        nvme->sqs[i].deleting = false;
        const struct nvme_sq *sq = &nvme->sqs[i];
        if (sq->live &&
            (i > nvme->io_queues || (sq->cq == 0) != (i == 0) || !nvme->cqs[sq->cq].live)) {
            visitor_fail(v, -EINVAL, "a submission queue of NVMe has no completion queue");
            return;
        }
    }
    if (is_reading && (nvme->csts & NVME_CSTS_READY) &&
        (!nvme->sqs[0].live || !nvme->cqs[0].live)) {
        visitor_fail(v, -EINVAL, "NVMe is ready but has no admin queues");
    }
}

static void visit_shadow(struct nvme *nvme, struct visitor *v)
{
    visit_bool(v, "has_shadow", &nvme->has_shadow);
    visit_u64(v, "shadow", &nvme->shadow);
    visit_u64(v, "event_index", &nvme->event_index);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) && nvme->has_shadow &&
        (!nvme_queue_fits(nvme, nvme->shadow, NVME_PAGE, 1) ||
         !nvme_queue_fits(nvme, nvme->event_index, NVME_PAGE, 1))) {
        visitor_fail(v, -EINVAL, "the shadow doorbells of NVMe are at an impossible place");
    }
}

static void visit_registers(struct nvme *nvme, struct visitor *v)
{
    visit_u32(v, "cc", &nvme->cc);
    visit_u32(v, "csts", &nvme->csts);
    visit_u32(v, "aqa", &nvme->aqa);
    visit_u32(v, "interrupt_mask", &nvme->interrupt_mask);
    visit_u64(v, "asq", &nvme->asq);
    visit_u64(v, "acq", &nvme->acq);
    visit_shadow(nvme, v);
    visit_bool(v, "write_cache", &nvme->write_cache);
    visit_u32(v, "arbitration", &nvme->arbitration);
    visit_u32(v, "error_recovery", &nvme->error_recovery);
    visit_u32(v, "coalescing", &nvme->coalescing);
    visit_u32(v, "atomicity", &nvme->atomicity);
    visit_u32(v, "event_mask", &nvme->event_mask);
    visit_u32(v, "uncoalesced", &nvme->uncoalesced);
    visit_u16(v, "temperature_over", &nvme->temperature_limit[0]);
    visit_u16(v, "temperature_under", &nvme->temperature_limit[1]);
}

static void visit_logs(struct nvme *nvme, struct visitor *v)
{
    visit_u8_max(v, "event_count", &nvme->event_count, NVME_EVENTS_MAX);
    visit_u8(v, "events_masked", &nvme->events_masked);
    for (unsigned i = 0; i < NVME_EVENTS_MAX; i++) {
        visit_u16(v, "event_id", &nvme->event_ids[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(nvme->events); i++) {
        visit_u32(v, "event", &nvme->events[i]);
    }
    visit_u64(v, "error_count", &nvme->error_count);
    visit_u64(v, "blocks_read", &nvme->blocks_read);
    visit_u64(v, "blocks_written", &nvme->blocks_written);
    visit_u64(v, "reads", &nvme->reads);
    visit_u64(v, "writes", &nvme->writes);
    visit_u64(v, "media_errors", &nvme->media_errors);
    visit_u64(v, "starts", &nvme->starts);
    visit_bytes(v, "errors", nvme->errors, sizeof nvme->errors);
}

/* What a save needs to know of the disk is that it fits. */
static void visit_disk(struct nvme *nvme, struct visitor *v)
{
    uint64_t size = nvme->disk->size;
    uint8_t queues = (uint8_t)nvme->io_queues;
    visit_u64(v, "size", &size);
    visit_u8(v, "queues", &queues);
    visit_bytes(v, "serial", nvme->serial, NVME_SERIAL_SIZE);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) &&
        (size != nvme->disk->size || queues != nvme->io_queues)) {
        visitor_fail(v, -EINVAL,
                     "the NVMe disk has not the size and number of queues it had when saved");
    }
}

/* The machine stands still. Moving BARs waits for the lock's other holders: not with it held. */
static void nvme_visit(struct device *device, struct visitor *v)
{
    struct nvme *nvme = nvme_of(device);
    visit_begin(v, device->ops->name, 1);
    pthread_mutex_lock(&device->lock);
    if (nvme->in_flight && visitor_mode(v) != VISITOR_PRINT) {
        visitor_fail(v, -EBUSY,
                     "a disk keeps commands that the host has failed: resume the machine, or reset "
                     "it, before it is saved or loaded");
    }
    visit_disk(nvme, v);
    visit_registers(nvme, v);
    visit_logs(nvme, v);
    visit_queues(nvme, v);
    pthread_mutex_unlock(&device->lock);
    pci_function_visit(&nvme->function, v);
    visit_end(v);
}

static void nvme_free(struct device *device)
{
    struct nvme *nvme = nvme_of(device);
    /* What the disk kept comes back now: nobody waits for it, but its end looks at the function. */
    pthread_mutex_lock(&device->lock);
    nvme->resetting = true;
    pthread_mutex_unlock(&device->lock);
    disk_cancel(nvme->disk);
    disk_drain(nvme->disk);
    pci_function_fini(&nvme->function);
    disk_free(nvme->disk);
    nvme_free_requests(nvme);
    device_fini(device);
    free(nvme);
}

static const struct device_ops device_ops = {
    .name = "nvme",
    .reset = nvme_reset,
    .pause = nvme_pause,
    .resume = nvme_resume,
    .visit = nvme_visit,
    .free = nvme_free,
};

static void init_function(struct nvme *nvme)
{
    static const struct pci_identity identity = {
        .vendor = VENDOR,
        .device = DEVICE,
        .subsystem_vendor = VENDOR,
        .subsystem = DEVICE,
        .class_code = CLASS,
        .revision = 1,
    };
    pci_function_init(&nvme->function, &identity, NULL, nvme);
    pci_add_memory_bar(&nvme->function, REGISTER_BAR, BAR_SIZE, true, &nvme_register_ops, nvme);
    pci_add_msix(&nvme->function, MSIX_BAR, nvme->io_queues + 1);
    pci_add_intx(&nvme->function);
}

int nvme_new(const struct nvme_config *config, const char *id, struct device **ret_device)
{
    if (config->disk->size < NVME_BLOCK) {
        return fail(-EINVAL, "%s: the disk is smaller than one block of %d bytes", id, NVME_BLOCK);
    }
    struct nvme *nvme = calloc(1, sizeof *nvme);
    ASSERT(nvme);
    device_init(&nvme->device, &device_ops, id);
    nvme->memory = config->memory;
    nvme->clock = config->clock;
    nvme->report = config->report;
    nvme->report_owner = config->owner;
    nvme->io_queues = config->queues < NVME_QUEUES_MAX ? config->queues : NVME_QUEUES_MAX - 1;
    nvme->io_queues = nvme->io_queues ? nvme->io_queues : 1;
    if (config->serial) {
        memcpy(nvme->serial, config->serial, strnlen(config->serial, NVME_SERIAL_SIZE));
    }
    nvme_features_reset(nvme);
    init_function(nvme);
    int error = pci_bus_add(config->pci, &nvme->function, config->slot);
    if (error) {
        pci_function_fini(&nvme->function);
        device_fini(&nvme->device);
        free(nvme);
        return error;
    }
    nvme->disk = config->disk;
    *ret_device = &nvme->device;
    return 0;
}
