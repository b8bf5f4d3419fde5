/* Log pages (5.14): errors, health, firmware; and asynchronous events (5.2), which point to them.
 */
#include <string.h>

#include "device/storage/nvme_internal.h"

enum {
    LOG_ERRORS = 1,
    LOG_HEALTH = 2,
    LOG_FIRMWARE = 3,
    LOG_SIZE = 512,   /* of the latter two */
    DATA_UNIT = 1000, /* blocks */
    EVENT_TYPES = 2,
    RETAIN_EVENT = 1 << 15, /* in dw10 */
    WARNING_TEMPERATURE = 1 << 1,
};

void nvme_log_error(struct nvme *nvme, unsigned queue, uint16_t id, uint16_t status)
{
    memmove(nvme->errors + 1, nvme->errors, sizeof nvme->errors - sizeof nvme->errors[0]);
    nvme->errors[0] = (struct nvme_error){
        .count = ++nvme->error_count,
        .queue = (uint16_t)queue,
        .command = id,
        .status = (uint16_t)(status << 1),
        .location = 0xffff, /* no field in particular */
        .namespace_id = queue ? NVME_NAMESPACE : 0,
    };
}

static bool is_too_warm(const struct nvme *nvme)
{
    return NVME_TEMPERATURE >= nvme->temperature_limit[0] ||
           NVME_TEMPERATURE <= nvme->temperature_limit[1];
}

/* In thousands of blocks, rounded up (5.14.1.2). */
static uint64_t data_units(uint64_t blocks)
{
    return blocks / DATA_UNIT + (blocks % DATA_UNIT != 0);
}

static void fill_health(const struct nvme *nvme, uint8_t *page)
{
    page[0] = is_too_warm(nvme) ? WARNING_TEMPERATURE : 0;
    store_le16(page + 1, NVME_TEMPERATURE);
    page[3] = 100; /* per cent of the spare blocks are there, */
    page[4] = 10;  /* and these would be too few */
    store_le64(page + 32, data_units(nvme->blocks_read));
    store_le64(page + 48, data_units(nvme->blocks_written));
    store_le64(page + 64, nvme->reads);
    store_le64(page + 80, nvme->writes);
    store_le64(page + 112, nvme->starts);
    store_le64(page + 160, nvme->media_errors);
    store_le64(page + 176, nvme->error_count);
}

static void fill_firmware(uint8_t *page)
{
    page[0] = 1; /* slot 1 is active */
    memcpy(page + 8, "1.0     ", 8);
}

uint16_t nvme_get_log(struct nvme *nvme, const struct nvme_command *command)
{
    uint8_t page[LOG_SIZE] = {0};
    const void *log = page;
    uint64_t size = sizeof page, offset = command->dw12 | (uint64_t)command->dw13 << 32;
    uint64_t length = ((command->dw10 >> 16 | (uint64_t)(command->dw11 & 0xffff) << 16) + 1) * 4;
    unsigned type = EVENT_TYPES;
    switch (command->dw10 & 0xff) {
    case LOG_ERRORS:
        type = NVME_EVENT_ERROR;
        log = nvme->errors;
        size = sizeof nvme->errors;
        break;
    case LOG_HEALTH:
        if (command->namespace_id && command->namespace_id != (uint32_t)NVME_ALL_NAMESPACES) {
            return NVME_INVALID_NAMESPACE; /* that of the controller only */
        }
        type = NVME_EVENT_HEALTH;
        fill_health(nvme, page);
        break;
    case LOG_FIRMWARE:
        fill_firmware(page);
        break;
    default:
        return NVME_INVALID_LOG;
    }
    if (offset % 4 || offset >= size) {
        return NVME_INVALID_FIELD;
    }
    /* Beyond the log's end there is nothing defined to be seen (5.14). */
    length = length < size - offset ? length : size - offset;
    uint16_t status = nvme_copy_out(nvme, command, (const uint8_t *)log + offset, length);
    if (!status && type < EVENT_TYPES && !(command->dw10 & RETAIN_EVENT)) {
        nvme->events_masked &= (uint8_t) ~(1u << type);
        nvme_deliver_events(nvme);
    }
    return status;
}

void nvme_deliver_events(struct nvme *nvme)
{
    for (unsigned type = 0; type < EVENT_TYPES; type++) {
        if (!nvme->events[type] || !nvme->event_count || (nvme->events_masked >> type & 1)) {
            continue;
        }
        if (!nvme_answer_late(nvme, nvme->event_ids[0], nvme->events[type])) {
            return; /* again when the driver has made room */
        }
        nvme->events_masked |= (uint8_t)(1u << type);
        nvme->events[type] = 0;
        nvme->event_count--;
        memmove(nvme->event_ids, nvme->event_ids + 1,
                sizeof nvme->event_ids - sizeof nvme->event_ids[0]);
    }
}

void nvme_event(struct nvme *nvme, unsigned type, unsigned information)
{
    /* Told once; then the driver reads the log before it is told again (5.2). */
    if (nvme->events_masked >> type & 1) {
        return;
    }
    unsigned log = type == NVME_EVENT_ERROR ? LOG_ERRORS : LOG_HEALTH;
    nvme->events[type] = type | information << 8 | log << 16;
    nvme_deliver_events(nvme);
}

void nvme_check_temperature(struct nvme *nvme)
{
    if (is_too_warm(nvme) && (nvme->event_mask & WARNING_TEMPERATURE)) {
        nvme_event(nvme, NVME_EVENT_HEALTH, NVME_HEALTH_TEMPERATURE);
    }
}
