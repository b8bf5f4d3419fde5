/* Admin commands (5): queues, abort, and the way to identify, features, logs and events. */
#include "device/storage/nvme_internal.h"

enum {
    DELETE_SQ = 0x00,
    CREATE_SQ = 0x01,
    GET_LOG_PAGE = 0x02,
    DELETE_CQ = 0x04,
    CREATE_CQ = 0x05,
    IDENTIFY = 0x06,
    ABORT = 0x08,
    SET_FEATURES = 0x09,
    GET_FEATURES = 0x0a,
    ASYNC_EVENT_REQUEST = 0x0c,
    DOORBELL_BUFFER_CONFIG = 0x7c,
    FUSED_MASK = 3,
    QUEUE_CONTIGUOUS = 1,
    QUEUE_INTERRUPTS = 2,
    ENTRY_SIZES = 0x46, /* CC.IOCQES and CC.IOSQES: 2^4 and 2^6 bytes */
    ABORT_FAILED = 1,
    SHADOW_ENTRY = 4,
};

/* What creating either kind of queue asks for (5.3, 5.4). */
static uint16_t check_new_queue(struct nvme *nvme, const struct nvme_command *command,
                                bool is_taken, unsigned entry_size)
{
    unsigned queue = command->dw10 & 0xffff;
    uint32_t entries = (command->dw10 >> 16) + 1;
    if (queue == 0 || queue > nvme->io_queues || is_taken) {
        return NVME_INVALID_QUEUE;
    }
    if (entries < 2 || entries > NVME_ENTRIES_MAX) {
        return NVME_INVALID_QUEUE_SIZE;
    }
    if (!(command->dw11 & QUEUE_CONTIGUOUS) || (nvme->cc >> 16 & 0xff) != ENTRY_SIZES) {
        return NVME_INVALID_FIELD;
    }
    if (command->prp1 % NVME_PAGE) {
        return NVME_PRP_OFFSET;
    }
    return nvme_queue_fits(nvme, command->prp1, entries, entry_size) ? NVME_OK : NVME_INVALID_FIELD;
}

/* Both sides of a queue's shadow doorbells, with what we know: `index` as for doorbells. */
static void write_shadow(struct nvme *nvme, unsigned index, uint32_t value)
{
    uint64_t at = SHADOW_ENTRY * (uint64_t)index;
    if (nvme->has_shadow &&
        (memory_write(nvme->memory, nvme->shadow + at, &value, sizeof value) ||
         memory_write(nvme->memory, nvme->event_index + at, &value, sizeof value))) {
        nvme_fatal(nvme);
    }
}

static uint16_t create_cq(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned queue = command->dw10 & 0xffff, vector = command->dw11 >> 16;
    bool is_taken = queue < NVME_QUEUES_MAX && nvme->cqs[queue].live;
    uint16_t status = check_new_queue(nvme, command, is_taken, 16);
    if (!status && vector > nvme->io_queues) {
        status = NVME_INVALID_VECTOR;
    }
    if (!status) {
        nvme->cqs[queue] = (struct nvme_cq){
            .live = true,
            .interrupts = command->dw11 & QUEUE_INTERRUPTS,
            .phase = true,
            .vector = (uint16_t)vector,
            .size = (uint16_t)((command->dw10 >> 16) + 1),
            .base = command->prp1,
        };
        write_shadow(nvme, 2 * queue + 1, 0);
    }
    return status;
}

static uint16_t create_sq(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned queue = command->dw10 & 0xffff, cq = command->dw11 >> 16;
    bool is_taken = queue < NVME_QUEUES_MAX && nvme->sqs[queue].live;
    uint16_t status =
        check_new_queue(nvme, command, is_taken, (unsigned)sizeof(struct nvme_command));
    if (!status && (cq == 0 || cq > nvme->io_queues || !nvme->cqs[cq].live)) {
        status = NVME_INVALID_CQ;
    }
    if (!status) {
        nvme->sqs[queue] = (struct nvme_sq){
            .live = true,
            .cq = (uint16_t)cq,
            .size = (uint16_t)((command->dw10 >> 16) + 1),
            .base = command->prp1,
        };
        write_shadow(nvme, 2 * queue, 0);
    }
    return status;
}

static uint16_t delete_cq(struct nvme *nvme, const struct nvme_command *command)
{
    unsigned queue = command->dw10 & 0xffff;
    if (queue == 0 || queue > nvme->io_queues || !nvme->cqs[queue].live) {
        return NVME_INVALID_QUEUE;
    }
    for (unsigned i = 1; i < NVME_QUEUES_MAX; i++) {
        if (nvme->sqs[i].live && nvme->sqs[i].cq == queue) {
            return NVME_INVALID_DELETION;
        }
    }
    nvme->cqs[queue] = (struct nvme_cq){0};
    return NVME_OK;
}

/* True: answered later, after the commands that were taken from the queue (5.6). */
static bool delete_sq(struct nvme *nvme, const struct nvme_command *command, uint16_t *ret_status)
{
    unsigned queue = command->dw10 & 0xffff;
    *ret_status = NVME_OK;
    if (queue == 0 || queue > nvme->io_queues || !nvme->sqs[queue].live ||
        nvme->sqs[queue].deleting) {
        *ret_status = NVME_INVALID_QUEUE;
    } else if (nvme->sqs[queue].in_flight) {
        nvme->sqs[queue].deleting = true;
        nvme->sqs[queue].delete_id = command->id;
        return true;
    } else {
        nvme->sqs[queue] = (struct nvme_sq){0};
    }
    return false;
}

static uint16_t configure_doorbell_buffer(struct nvme *nvme, const struct nvme_command *command)
{
    if (command->prp1 % NVME_PAGE || command->prp2 % NVME_PAGE) {
        return NVME_PRP_OFFSET;
    }
    if (command->prp1 == command->prp2 || !memory_is_ram(nvme->memory, command->prp1, NVME_PAGE) ||
        !memory_is_ram(nvme->memory, command->prp2, NVME_PAGE)) {
        return NVME_INVALID_FIELD;
    }
    nvme->has_shadow = true;
    nvme->shadow = command->prp1;
    nvme->event_index = command->prp2;
    for (unsigned i = 1; i < NVME_QUEUES_MAX; i++) {
        if (nvme->sqs[i].live) {
            write_shadow(nvme, 2 * i, nvme->sqs[i].tail);
        }
        if (nvme->cqs[i].live) {
            write_shadow(nvme, 2 * i + 1, nvme->cqs[i].head);
        }
    }
    return NVME_OK;
}

/* The request waits for an event: its room in the queue is free meanwhile. */
static bool wait_for_event(struct nvme *nvme, const struct nvme_command *command,
                           uint16_t *ret_status)
{
    if (nvme->event_count == NVME_EVENTS_MAX) {
        *ret_status = NVME_TOO_MANY_EVENTS;
        return false;
    }
    nvme->event_ids[nvme->event_count++] = command->id;
    nvme_give_room_back(nvme);
    nvme_deliver_events(nvme);
    return true;
}

/* A status, or true if there is no answer yet. */
static bool perform(struct nvme *nvme, const struct nvme_command *command, uint16_t *ret_status,
                    uint32_t *ret_result)
{
    switch (command->opcode) {
    case DELETE_SQ:
        return delete_sq(nvme, command, ret_status);
    case CREATE_SQ:
        *ret_status = create_sq(nvme, command);
        break;
    case GET_LOG_PAGE:
        *ret_status = nvme_get_log(nvme, command);
        break;
    case DELETE_CQ:
        *ret_status = delete_cq(nvme, command);
        break;
    case CREATE_CQ:
        *ret_status = create_cq(nvme, command);
        break;
    case IDENTIFY:
        *ret_status = nvme_identify(nvme, command);
        break;
    case ABORT: /* as much effort as the specification asks for (5.1): it was too late */
        *ret_result = ABORT_FAILED;
        break;
    case SET_FEATURES:
        *ret_status = nvme_set_feature(nvme, command, ret_result);
        break;
    case GET_FEATURES:
        *ret_status = nvme_get_feature(nvme, command, ret_result);
        break;
    case ASYNC_EVENT_REQUEST:
        return wait_for_event(nvme, command, ret_status);
    case DOORBELL_BUFFER_CONFIG:
        *ret_status = configure_doorbell_buffer(nvme, command);
        break;
    default: /* also those that identify does not offer: format, firmware, security... */
        *ret_status = NVME_INVALID_OPCODE;
        break;
    }
    return false;
}

void nvme_admin(struct nvme *nvme, const struct nvme_command *command)
{
    uint16_t status = NVME_OK;
    uint32_t result = 0;
    if (command->flags & FUSED_MASK) {
        status = NVME_INVALID_FIELD;
    } else if (perform(nvme, command, &status, &result)) {
        return;
    }
    nvme_answer(nvme, 0, command->id, status ? status | NVME_DO_NOT_RETRY : NVME_OK, result);
}
