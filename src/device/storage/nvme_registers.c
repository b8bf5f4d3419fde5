/* The controller's registers (3.1) and what writing them starts: enabling, reset, shutdown. */
#include <string.h>

#include "device/storage/nvme_internal.h"

enum {
    REGISTER_CAP = 0x00,
    REGISTER_INTMS = 0x0c,
    REGISTER_INTMC = 0x10,
    REGISTER_CC = 0x14,
    REGISTER_AQA = 0x24,
    REGISTER_ASQ = 0x28,
    REGISTER_ACQ = 0x30,
    DOORBELLS = 0x1000,
    DOORBELL_SIZE = 4, /* CAP.DSTRD is 0 */
    VERSION = 0x00010400,
    CC_WRITABLE = 0x00fffff1,
    /* Command set, page size and arbitration, of which 0 is all that we have. */
    CC_CHOICES = 0x3ff0,
    AQA_WRITABLE = 0x0fff0fff,
    TIMEOUT = 20, /* half seconds */
};
/* Capabilities (3.1.1): contiguous queues only, the NVM command set, pages of 4 KiB. */
#define CAP_VALUE                                                                                  \
    ((uint64_t)(NVME_ENTRIES_MAX - 1) | UINT64_C(1) << 16 | (uint64_t)TIMEOUT << 24 |              \
     UINT64_C(1) << 37)

/* As the driver sees them. */
struct registers {
    uint64_t cap;
    uint32_t vs, intms, intmc, cc, reserved, csts, nssr, aqa;
    uint64_t asq, acq;
    uint32_t cmbloc, cmbsz;
};
_Static_assert(sizeof(struct registers) == 0x40, "3.1");

static uint64_t registers_read(void *owner, uint64_t offset, unsigned size)
{
    struct nvme *nvme = owner;
    uint64_t value = 0;
    pthread_mutex_lock(&nvme->device.lock);
    const struct registers registers = {
        .cap = CAP_VALUE,
        .vs = VERSION,
        .intms = nvme->interrupt_mask,
        .intmc = nvme->interrupt_mask,
        .cc = nvme->cc,
        .csts = nvme->csts,
        .aqa = nvme->aqa,
        .asq = nvme->asq,
        .acq = nvme->acq,
    };
    pthread_mutex_unlock(&nvme->device.lock);
    if (range_fits(offset, size, sizeof registers)) {
        memcpy(&value, (const uint8_t *)&registers + offset, size);
    }
    return value;
}

static bool admin_queues_fit(struct nvme *nvme, uint32_t sq_entries, uint32_t cq_entries)
{
    return sq_entries >= 2 && cq_entries >= 2 &&
           nvme_queue_fits(nvme, nvme->asq, sq_entries, sizeof(struct nvme_command)) &&
           nvme_queue_fits(nvme, nvme->acq, cq_entries, 16);
}

/* CC.EN was set (7.6.1): ready at once, or never. */
static void start(struct nvme *nvme)
{
    uint32_t sq_entries = (nvme->aqa & 0xfff) + 1, cq_entries = (nvme->aqa >> 16 & 0xfff) + 1;
    if ((nvme->cc & CC_CHOICES) || !admin_queues_fit(nvme, sq_entries, cq_entries)) {
        nvme_fatal(nvme);
        return;
    }
    nvme->sqs[0] = (struct nvme_sq){.live = true, .size = (uint16_t)sq_entries, .base = nvme->asq};
    nvme->cqs[0] = (struct nvme_cq){.live = true,
                                    .interrupts = true,
                                    .phase = true,
                                    .size = (uint16_t)cq_entries,
                                    .base = nvme->acq};
    nvme->csts |= NVME_CSTS_READY;
    nvme->starts++;
}

void nvme_stop(struct nvme *nvme)
{
    if (nvme->resetting) {
        return;
    }
    nvme->resetting = true;
    pthread_mutex_unlock(&nvme->device.lock);
    disk_cancel(nvme->disk);
    disk_drain(nvme->disk);
    pthread_mutex_lock(&nvme->device.lock);
    memset(nvme->sqs, 0, sizeof nvme->sqs);
    memset(nvme->cqs, 0, sizeof nvme->cqs);
    nvme->csts = nvme->interrupt_mask = 0;
    nvme->answered = 0;
    nvme->has_shadow = false;
    nvme->shadow = nvme->event_index = 0;
    nvme->event_count = nvme->events_masked = 0;
    memset(nvme->event_ids, 0, sizeof nvme->event_ids);
    memset(nvme->events, 0, sizeof nvme->events);
    nvme_features_reset(nvme);
    nvme_update_pin(nvme);
    nvme->resetting = false;
}

static void write_cc(struct nvme *nvme, uint32_t value)
{
    uint32_t before = nvme->cc;
    nvme->cc = value & CC_WRITABLE;
    if (before & ~nvme->cc & NVME_CC_ENABLE) {
        nvme_stop(nvme);
    } else if (nvme->cc & ~before & NVME_CC_ENABLE) {
        start(nvme);
    }
    if ((nvme->cc & NVME_CC_SHUTDOWN) && !(before & NVME_CC_SHUTDOWN) &&
        !(nvme->csts & NVME_CSTS_SHUTDOWN)) {
        nvme->csts |= NVME_CSTS_SHUTTING_DOWN;
        nvme_shut_down(nvme);
    }
}

/* A whole register, or a half of one that has 8 bytes; `value` has the new half in place. */
static void register_write(struct nvme *nvme, uint64_t offset, uint32_t value)
{
    bool is_enabled = nvme->cc & NVME_CC_ENABLE;
    switch (offset) {
    case REGISTER_INTMS:
        nvme->interrupt_mask |= value;
        nvme_update_pin(nvme);
        break;
    case REGISTER_INTMC:
        nvme->interrupt_mask &= ~value;
        nvme_update_pin(nvme);
        break;
    case REGISTER_CC:
        write_cc(nvme, value);
        break;
    case REGISTER_AQA:
        nvme->aqa = is_enabled ? nvme->aqa : value & AQA_WRITABLE;
        break;
    case REGISTER_ASQ:
    case REGISTER_ASQ + 4:
    case REGISTER_ACQ:
    case REGISTER_ACQ + 4: {
        uint64_t *base = offset < REGISTER_ACQ ? &nvme->asq : &nvme->acq;
        unsigned shift = offset & 4 ? 32 : 0;
        if (!is_enabled) {
            *base = (*base & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift;
            *base &= ~(uint64_t)(NVME_PAGE - 1);
        }
        break;
    }
    }
}

static void registers_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct nvme *nvme = owner;
    if (size < 4 || offset % 4) {
        return; /* registers are accessed whole (3.1) */
    }
    pthread_mutex_lock(&nvme->device.lock);
    if (nvme->resetting) {
        /* another CPU resets: what comes now comes too early */
    } else if (offset >= DOORBELLS) {
        nvme_doorbell(nvme, (unsigned)((offset - DOORBELLS) / DOORBELL_SIZE), (uint32_t)value);
    } else {
        register_write(nvme, offset, (uint32_t)value);
        if (size == 8) {
            register_write(nvme, offset + 4, (uint32_t)(value >> 32));
        }
    }
    pthread_mutex_unlock(&nvme->device.lock);
}

const struct region_ops nvme_register_ops = {registers_read, registers_write};
