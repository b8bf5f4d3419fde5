/* Set and get features (5.21, 5.9). None can be saved across a reset of the controller. */
#include "device/storage/nvme_internal.h"

enum {
    ARBITRATION = 0x01,
    POWER_MANAGEMENT = 0x02,
    TEMPERATURE_THRESHOLD = 0x04,
    ERROR_RECOVERY = 0x05,
    WRITE_CACHE = 0x06,
    NUMBER_OF_QUEUES = 0x07,
    INTERRUPT_COALESCING = 0x08,
    INTERRUPT_VECTOR = 0x09,
    WRITE_ATOMICITY = 0x0a,
    ASYNC_EVENTS = 0x0b,
    ARBITRATION_ANY = 7, /* no limit of a burst */
};
#define SAVE (UINT32_C(1) << 31)

void nvme_features_reset(struct nvme *nvme)
{
    nvme->write_cache = true;
    nvme->arbitration = ARBITRATION_ANY;
    nvme->error_recovery = nvme->coalescing = nvme->atomicity = nvme->event_mask = 0;
    nvme->uncoalesced = 0;
    nvme->temperature_limit[0] = NVME_TEMPERATURE_LIMIT;
    nvme->temperature_limit[1] = 0;
}

static bool has_io_queues(const struct nvme *nvme)
{
    for (unsigned i = 1; i < NVME_QUEUES_MAX; i++) {
        if (nvme->sqs[i].live || nvme->cqs[i].live) {
            return true;
        }
    }
    return false;
}

/* As many as we have, whatever is asked for (5.21.1.7). */
static uint32_t queue_numbers(const struct nvme *nvme)
{
    return (nvme->io_queues - 1) | (nvme->io_queues - 1) << 16;
}

static uint16_t set_queue_numbers(struct nvme *nvme, uint32_t value, uint32_t *ret_result)
{
    if ((value & 0xffff) == 0xffff || value >> 16 == 0xffff) {
        return NVME_INVALID_FIELD;
    }
    if (has_io_queues(nvme)) {
        return NVME_SEQUENCE_ERROR;
    }
    *ret_result = queue_numbers(nvme);
    return NVME_OK;
}

/* Limits of the one sensor, which is number 0; 15 stands for all of them. */
static uint16_t *temperature_limit(struct nvme *nvme, uint32_t value, bool is_set)
{
    unsigned sensor = value >> 16 & 15, kind = value >> 20 & 3;
    return (sensor == 0 || (sensor == 15 && is_set)) && kind < 2 ? &nvme->temperature_limit[kind]
                                                                 : NULL;
}

static uint16_t set_temperature_limit(struct nvme *nvme, uint32_t value)
{
    uint16_t *limit = temperature_limit(nvme, value, true);
    if (!limit) {
        return NVME_INVALID_FIELD;
    }
    *limit = (uint16_t)value;
    nvme_check_temperature(nvme);
    return NVME_OK;
}

static uint16_t set_vector(struct nvme *nvme, uint32_t value)
{
    unsigned vector = value & 0xffff;
    if (vector > nvme->io_queues) {
        return NVME_INVALID_FIELD;
    }
    nvme->uncoalesced &= ~(UINT32_C(1) << vector);
    nvme->uncoalesced |= (value >> 16 & 1) << vector;
    return NVME_OK;
}

uint16_t nvme_set_feature(struct nvme *nvme, const struct nvme_command *command,
                          uint32_t *ret_result)
{
    uint32_t value = command->dw11;
    if (command->dw10 & SAVE) {
        return NVME_NOT_SAVEABLE;
    }
    switch (command->dw10 & 0xff) {
    case ARBITRATION:
        nvme->arbitration = value;
        return NVME_OK;
    case POWER_MANAGEMENT: /* there is one state */
        return value & 31 ? NVME_INVALID_FIELD : NVME_OK;
    case TEMPERATURE_THRESHOLD:
        return set_temperature_limit(nvme, value);
    case ERROR_RECOVERY: /* errors of deallocated blocks are not offered */
        nvme->error_recovery = value & 0xffff;
        return value >> 16 & 1 ? NVME_INVALID_FIELD : NVME_OK;
    case WRITE_CACHE:
        nvme->write_cache = value & 1;
        return NVME_OK;
    case NUMBER_OF_QUEUES:
        return set_queue_numbers(nvme, value, ret_result);
    case INTERRUPT_COALESCING:
        nvme->coalescing = value & 0xffff;
        return NVME_OK;
    case INTERRUPT_VECTOR:
        return set_vector(nvme, value);
    case WRITE_ATOMICITY:
        nvme->atomicity = value & 1;
        return NVME_OK;
    case ASYNC_EVENTS:
        nvme->event_mask = value;
        nvme_check_temperature(nvme);
        return NVME_OK;
    default:
        return NVME_INVALID_FIELD;
    }
}

uint16_t nvme_get_feature(struct nvme *nvme, const struct nvme_command *command,
                          uint32_t *ret_result)
{
    unsigned vector = command->dw11 & 0xffff;
    const uint16_t *limit = temperature_limit(nvme, command->dw11, false);
    switch (command->dw10 & 0xff) {
    case ARBITRATION:
        *ret_result = nvme->arbitration;
        return NVME_OK;
    case POWER_MANAGEMENT:
        *ret_result = 0;
        return NVME_OK;
    case TEMPERATURE_THRESHOLD:
        *ret_result = limit ? *limit : 0;
        return limit ? NVME_OK : NVME_INVALID_FIELD;
    case ERROR_RECOVERY:
        *ret_result = nvme->error_recovery;
        return NVME_OK;
    case WRITE_CACHE:
        *ret_result = nvme->write_cache;
        return NVME_OK;
    case NUMBER_OF_QUEUES:
        *ret_result = queue_numbers(nvme);
        return NVME_OK;
    case INTERRUPT_COALESCING:
        *ret_result = nvme->coalescing;
        return NVME_OK;
    case INTERRUPT_VECTOR:
        if (vector > nvme->io_queues) {
            return NVME_INVALID_FIELD;
        }
        *ret_result = vector | (nvme->uncoalesced >> vector & 1) << 16;
        return NVME_OK;
    case WRITE_ATOMICITY:
        *ret_result = nvme->atomicity;
        return NVME_OK;
    case ASYNC_EVENTS:
        *ret_result = nvme->event_mask;
        return NVME_OK;
    default:
        return NVME_INVALID_FIELD;
    }
}
