/*
 * Submission and completion queues (4.1): taking commands, answering them, doorbells and their
 * shadows, interrupts. The driver may change the rings at any time and lie in every field.
 */
#include "device/storage/nvme_internal.h"

enum {
    COMMAND_SIZE = sizeof(struct nvme_command),
    COMPLETION_SIZE = 16,
    SHADOW_ENTRY = 4,
    /* Commands taken within one call. No honest driver fills a ring so fast for so long. */
    BUDGET = 65536,
};

/* A store of ours and a later load must not change places (SDM volume 3, 9.2.3.4). */
static inline void order_store_before_load(void)
{
    __asm__ volatile("mfence" : : : "memory");
}

bool nvme_is_ready(const struct nvme *nvme)
{
    return (nvme->csts & (NVME_CSTS_READY | NVME_CSTS_FATAL)) == NVME_CSTS_READY &&
           !nvme->resetting;
}

void nvme_fatal(struct nvme *nvme)
{
    nvme->csts |= NVME_CSTS_FATAL;
}

bool nvme_queue_fits(struct nvme *nvme, gpa_t base, uint32_t entries, unsigned entry_size)
{
    return base % NVME_PAGE == 0 &&
           memory_is_ram(nvme->memory, base, (uint64_t)entries * entry_size);
}

/* Doorbell 2n is the tail of submission queue n, 2n + 1 the head of completion queue n. */
static unsigned tail_index(unsigned queue)
{
    return 2 * queue;
}

static unsigned head_index(unsigned queue)
{
    return 2 * queue + 1;
}

static bool is_shadowed(const struct nvme *nvme, unsigned queue)
{
    return nvme->has_shadow && queue > 0; /* drivers ring the admin queues' bells themselves */
}

/* What the driver last wrote to a shadow doorbell; false if that is no index of the queue. */
static bool read_shadow(struct nvme *nvme, unsigned index, uint16_t size, uint16_t *ret_value)
{
    uint32_t value;
    if (memory_read(nvme->memory, nvme->shadow + SHADOW_ENTRY * index, &value, sizeof value) ||
        value >= size) {
        return false;
    }
    *ret_value = (uint16_t)value;
    return true;
}

/* Ask the driver to ring the bell when it goes on from `value` (5.7). */
static void arm_bell(struct nvme *nvme, unsigned index, uint32_t value)
{
    if (memory_write(nvme->memory, nvme->event_index + SHADOW_ENTRY * index, &value,
                     sizeof value)) {
        nvme_fatal(nvme);
    }
    order_store_before_load();
}

static bool has_command(struct nvme *nvme, unsigned queue)
{
    struct nvme_sq *sq = &nvme->sqs[queue];
    if (sq->head == sq->tail && is_shadowed(nvme, queue)) {
        read_shadow(nvme, tail_index(queue), sq->size, &sq->tail);
        if (sq->head == sq->tail) {
            /* Look again after asking: what came in between comes without a ring. */
            arm_bell(nvme, tail_index(queue), sq->tail);
            read_shadow(nvme, tail_index(queue), sq->size, &sq->tail);
        }
    }
    return sq->head != sq->tail;
}

static unsigned unseen(const struct nvme_cq *cq)
{
    return (unsigned)(cq->tail + cq->size - cq->head) % cq->size;
}

static bool is_full(const struct nvme_cq *cq)
{
    return unseen(cq) + cq->reserved + 1 >= cq->size;
}

static void refresh_head(struct nvme *nvme, unsigned queue)
{
    struct nvme_cq *cq = &nvme->cqs[queue];
    uint16_t head = cq->head;
    if (read_shadow(nvme, head_index(queue), cq->size, &head) &&
        (unsigned)(head + cq->size - cq->head) % cq->size <= unseen(cq)) {
        cq->head = head;
    }
}

/* Is there room for one more answer, besides those for commands in flight? */
static bool has_room(struct nvme *nvme, unsigned queue)
{
    struct nvme_cq *cq = &nvme->cqs[queue];
    if (is_full(cq) && is_shadowed(nvme, queue)) {
        refresh_head(nvme, queue);
        if (is_full(cq)) {
            arm_bell(nvme, head_index(queue), cq->head);
            refresh_head(nvme, queue);
        }
    }
    return !is_full(cq);
}

static void take_command(struct nvme *nvme, unsigned queue)
{
    struct nvme_sq *sq = &nvme->sqs[queue];
    struct nvme_command command;
    if (memory_read(nvme->memory, sq->base + (uint64_t)sq->head * COMMAND_SIZE, &command,
                    sizeof command)) {
        nvme_fatal(nvme);
        return;
    }
    sq->head = (uint16_t)((sq->head + 1) % sq->size);
    sq->in_flight++;
    nvme->cqs[sq->cq].reserved++;
    if (queue == 0) {
        nvme_admin(nvme, &command);
    } else {
        nvme_io(nvme, queue, &command);
    }
}

static void serve(struct nvme *nvme, unsigned queue)
{
    struct nvme_sq *sq = &nvme->sqs[queue];
    while (nvme_is_ready(nvme) && !nvme->paused && sq->live && !sq->deleting &&
           nvme->in_flight < NVME_REQUESTS_MAX && has_room(nvme, sq->cq) &&
           has_command(nvme, queue)) {
        if (nvme->budget-- == 0) {
            nvme_fatal(nvme);
            return;
        }
        take_command(nvme, queue);
    }
}

void nvme_serve(struct nvme *nvme, unsigned queue)
{
    nvme->budget = BUDGET;
    disk_hold(nvme->disk);
    serve(nvme, queue);
    disk_release(nvme->disk);
}

void nvme_serve_all(struct nvme *nvme, unsigned last)
{
    nvme->budget = BUDGET;
    disk_hold(nvme->disk);
    for (unsigned i = 1; i <= NVME_QUEUES_MAX; i++) {
        serve(nvme, (last + i) % NVME_QUEUES_MAX);
    }
    disk_release(nvme->disk);
}

/* Put an entry into a completion queue that has room (4.6). */
static void complete(struct nvme *nvme, unsigned queue, uint16_t id, uint16_t status,
                     uint32_t result)
{
    const struct nvme_sq *sq = &nvme->sqs[queue];
    struct nvme_cq *cq = &nvme->cqs[sq->cq];
    uint8_t entry[COMPLETION_SIZE] = {0};
    store_le32(entry, result);
    store_le16(entry + 8, sq->head);
    store_le16(entry + 10, (uint16_t)queue);
    store_le16(entry + 12, id);
    store_le16(entry + 14, (uint16_t)(status << 1 | cq->phase));
    gpa_t at = cq->base + (uint64_t)cq->tail * COMPLETION_SIZE;
    /* The half with the phase last, and at once: the driver reads the rest when it has changed. */
    if (memory_write(nvme->memory, at, entry, 8) ||
        memory_write(nvme->memory, at + 8, entry + 8, 8)) {
        nvme_fatal(nvme);
        return;
    }
    cq->tail++;
    if (cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase = !cq->phase;
    }
    nvme->answered |= UINT32_C(1) << sq->cq;
}

/* The last command of a queue that is being deleted was answered: so is the deletion. */
static void finish_deletion(struct nvme *nvme, unsigned queue)
{
    uint16_t id = nvme->sqs[queue].delete_id;
    nvme->sqs[queue] = (struct nvme_sq){0};
    nvme_answer(nvme, 0, id, NVME_OK, 0);
}

void nvme_answer(struct nvme *nvme, unsigned queue, uint16_t id, uint16_t status, uint32_t result)
{
    struct nvme_sq *sq = &nvme->sqs[queue];
    if (nvme->resetting) {
        return;
    }
    if (status) {
        nvme_log_error(nvme, queue, id, status);
    }
    nvme->cqs[sq->cq].reserved--;
    sq->in_flight--;
    complete(nvme, queue, id, status, result);
    if (sq->deleting && sq->in_flight == 0) {
        finish_deletion(nvme, queue);
    }
}

void nvme_give_room_back(struct nvme *nvme)
{
    nvme->cqs[0].reserved--;
    nvme->sqs[0].in_flight--;
}

bool nvme_answer_late(struct nvme *nvme, uint16_t id, uint32_t result)
{
    if (!nvme->cqs[0].live || !has_room(nvme, 0)) {
        return false;
    }
    complete(nvme, 0, id, NVME_OK, result);
    return true;
}

void nvme_update_pin(struct nvme *nvme)
{
    bool level = false;
    for (unsigned i = 0; i < NVME_QUEUES_MAX; i++) {
        const struct nvme_cq *cq = &nvme->cqs[i];
        if (cq->live && is_shadowed(nvme, i) && cq->head != cq->tail) {
            /* Only rings take the level back, so all of them are wanted. */
            arm_bell(nvme, head_index(i), cq->head);
            refresh_head(nvme, i);
        }
        level |= cq->live && cq->interrupts && cq->head != cq->tail &&
                 !(nvme->interrupt_mask >> cq->vector & 1);
    }
    pci_intx_set(&nvme->function, level);
}

void nvme_signal(struct nvme *nvme)
{
    uint32_t answered = nvme->answered;
    nvme->answered = 0;
    if (!pci_msix_enabled(&nvme->function)) {
        nvme_update_pin(nvme);
        return;
    }
    for (; answered; answered &= answered - 1) {
        const struct nvme_cq *cq = &nvme->cqs[__builtin_ctz(answered)];
        if (cq->live && cq->interrupts) {
            pci_msix_notify(&nvme->function, cq->vector);
        }
    }
}

static void tail_written(struct nvme *nvme, unsigned queue, uint32_t value)
{
    struct nvme_sq *sq = &nvme->sqs[queue];
    if (!sq->live) {
        nvme_event(nvme, NVME_EVENT_ERROR, NVME_WRONG_DOORBELL);
    } else if (value >= sq->size) {
        nvme_event(nvme, NVME_EVENT_ERROR, NVME_WRONG_DOORBELL_VALUE);
    } else {
        sq->tail = (uint16_t)value;
        nvme_serve(nvme, queue);
    }
}

static void head_written(struct nvme *nvme, unsigned queue, uint32_t value)
{
    struct nvme_cq *cq = &nvme->cqs[queue];
    if (!cq->live) {
        nvme_event(nvme, NVME_EVENT_ERROR, NVME_WRONG_DOORBELL);
    } else if (value >= cq->size || (value + cq->size - cq->head) % cq->size > unseen(cq)) {
        nvme_event(nvme, NVME_EVENT_ERROR, NVME_WRONG_DOORBELL_VALUE);
    } else {
        bool was_full = is_full(cq);
        cq->head = (uint16_t)value;
        if (queue == 0) {
            nvme_deliver_events(nvme);
        }
        if (was_full) { /* commands may have waited for this */
            nvme_serve_all(nvme, NVME_QUEUES_MAX - 1);
        }
    }
}

void nvme_doorbell(struct nvme *nvme, unsigned index, uint32_t value)
{
    if (!nvme_is_ready(nvme)) {
        return;
    }
    unsigned queue = index / 2;
    if (queue >= NVME_QUEUES_MAX) {
        nvme_event(nvme, NVME_EVENT_ERROR, NVME_WRONG_DOORBELL);
    } else if (index == tail_index(queue)) {
        tail_written(nvme, queue, value);
    } else {
        head_written(nvme, queue, value);
    }
    nvme_signal(nvme);
}
