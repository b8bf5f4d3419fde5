/*
 * Inside the NVMe controller: its state, and what its files do for each other. Section numbers are
 * those of the NVM Express base specification 1.4.
 *
 *     nvme.c           life, PCI, saved state          nvme_registers.c  registers and doorbells
 *     nvme_queue.c     the rings, interrupts           nvme_map.c        PRP lists and SGLs
 *     nvme_admin.c     admin commands                  nvme_identify.c   identify
 *     nvme_feature.c   features                        nvme_log.c        log pages and events
 *     nvme_io.c        I/O commands
 */
#pragma once

#include "backend/disk/disk.h"
#include "base/bytes.h"
#include "bus/pci.h"
#include "device/storage/nvme.h"
#include "memory/memory.h"

enum {
    NVME_BLOCK = 512,
    NVME_PAGE = 4096,
    NVME_QUEUES_MAX = 17,      /* pairs, with the admin queues */
    NVME_ENTRIES_MAX = 1024,   /* in an I/O queue */
    NVME_TRANSFER_PAGES = 128, /* of one command: 2 ^ MDTS */
    NVME_TRANSFER_MAX = NVME_TRANSFER_PAGES * NVME_PAGE,
    NVME_SEGMENTS_MAX = NVME_TRANSFER_PAGES + 1,
    NVME_REQUESTS_MAX = 64, /* in flight at once; the rest waits in the rings */
    NVME_EVENTS_MAX = 4,    /* asynchronous event requests that may wait */
    NVME_ERRORS_MAX = 4,    /* entries of the error log */
    NVME_SERIAL_SIZE = 20,
    NVME_NAMESPACE = 1,
    NVME_ALL_NAMESPACES = -1,
    NVME_TEMPERATURE = 313, /* kelvins */
    NVME_TEMPERATURE_LIMIT = 343,
};

/* Controller configuration and status (3.1.5, 3.1.6). */
enum {
    NVME_CC_ENABLE = 1,
    NVME_CC_SHUTDOWN = 3 << 14,
    NVME_CSTS_READY = 1,
    NVME_CSTS_FATAL = 2,
    NVME_CSTS_SHUTTING_DOWN = 1 << 2,
    NVME_CSTS_SHUT_DOWN = 2 << 2,
    NVME_CSTS_SHUTDOWN = 3 << 2,
};

/* Status: type << 8 | code (4.6.1), and the bit that forbids to try again. */
enum {
    NVME_OK = 0,
    NVME_INVALID_OPCODE = 0x01,
    NVME_INVALID_FIELD = 0x02,
    NVME_TRANSFER_ERROR = 0x04,
    NVME_INTERNAL_ERROR = 0x06,
    NVME_INVALID_NAMESPACE = 0x0b,
    NVME_SEQUENCE_ERROR = 0x0c,
    NVME_SGL_SEGMENT = 0x0d,
    NVME_SGL_COUNT = 0x0e,
    NVME_SGL_LENGTH = 0x0f,
    NVME_SGL_TYPE = 0x11,
    NVME_PRP_OFFSET = 0x13,
    NVME_WRITE_PROTECTED = 0x20,
    NVME_OUT_OF_RANGE = 0x80,
    NVME_CAPACITY = 0x81,
    NVME_INVALID_CQ = 0x100,
    NVME_INVALID_QUEUE = 0x101,
    NVME_INVALID_QUEUE_SIZE = 0x102,
    NVME_TOO_MANY_EVENTS = 0x105,
    NVME_INVALID_VECTOR = 0x108,
    NVME_INVALID_LOG = 0x109,
    NVME_INVALID_DELETION = 0x10c,
    NVME_NOT_SAVEABLE = 0x10d,
    NVME_WRITE_FAULT = 0x280,
    NVME_READ_ERROR = 0x281,
    NVME_COMPARE_FAILED = 0x285,
    NVME_DO_NOT_RETRY = 0x4000,
};

/* A submission queue entry (4.2). */
struct nvme_command {
    uint8_t opcode, flags;
    uint16_t id;
    uint32_t namespace_id;
    uint64_t reserved, metadata;
    uint64_t prp1, prp2; /* or the first SGL descriptor */
    uint32_t dw10, dw11, dw12, dw13, dw14, dw15;
};
_Static_assert(sizeof(struct nvme_command) == 64, "as the driver lays it out");

struct nvme_sq {
    bool live;
    bool deleting;      /* the answer to its deletion waits for its commands */
    uint16_t delete_id; /* of the deleting command */
    uint16_t cq;
    uint16_t size, head, tail;
    uint16_t in_flight; /* commands taken and not answered */
    gpa_t base;
};

struct nvme_cq {
    bool live;
    bool interrupts;
    bool phase; /* of the entries put in now */
    uint16_t vector;
    uint16_t size, head, tail;
    uint16_t reserved; /* room for commands in flight */
    gpa_t base;
};

/* Data of a command in guest memory. */
struct nvme_data {
    unsigned count;
    struct nvme_segment {
        gpa_t gpa;
        uint64_t length;
    } segments[NVME_SEGMENTS_MAX];
};

/* An entry of the error log (5.14.1.1). */
struct nvme_error {
    uint64_t count;
    uint16_t queue, command, status, location;
    uint64_t block;
    uint32_t namespace_id;
    uint8_t reserved[36];
};
_Static_assert(sizeof(struct nvme_error) == 64, "as the driver sees it");

struct nvme_request;

struct nvme {
    struct device device;
    struct memory *memory;
    struct disk *disk;
    struct clock clock;
    void (*report)(void *owner, int error, const char *text);
    void *report_owner;
    uint64_t next_report_ns;
    unsigned io_queues; /* pairs */
    char serial[NVME_SERIAL_SIZE + 1];
    bool paused, resetting;
    struct nvme_request *free_requests;
    unsigned in_flight; /* requests */
    uint32_t answered;  /* completion queues, by bit, whose interrupt is still to come */
    uint32_t budget;    /* commands that may still be taken in this call */

    /* Registers. */
    uint32_t cc, csts, aqa, interrupt_mask;
    uint64_t asq, acq;
    /* Shadow doorbells (5.7): page addresses. */
    bool has_shadow;
    gpa_t shadow, event_index;
    /* Features (5.21). */
    bool write_cache;
    uint32_t arbitration, error_recovery, coalescing, atomicity, event_mask;
    uint32_t uncoalesced;          /* vectors, by bit */
    uint16_t temperature_limit[2]; /* over, under */
    /* Asynchronous events (5.2): requests that wait, and news that wait, by type. */
    uint16_t event_ids[NVME_EVENTS_MAX];
    uint8_t event_count, events_masked;
    uint32_t events[2];
    /* Logs. */
    uint64_t error_count;
    uint64_t blocks_read, blocks_written, reads, writes, media_errors, starts;
    /* Last, as the test of saved state wants arrays of structs. */
    struct pci_function function;
    struct nvme_error errors[NVME_ERRORS_MAX];
    struct nvme_sq sqs[NVME_QUEUES_MAX];
    struct nvme_cq cqs[NVME_QUEUES_MAX];
};

/* All of these are called with the lock held. */

/* nvme_queue.c */

bool nvme_is_ready(const struct nvme *nvme);
/* A place where a queue may be: 4-KiB aligned, all RAM. */
bool nvme_queue_fits(struct nvme *nvme, gpa_t base, uint32_t entries, unsigned entry_size);
/*
 * Take commands from one queue, or from all, as long as there is room for their answers. `last`:
 * the queue that comes last, so that one which is always full does not keep the others waiting.
 */
void nvme_serve(struct nvme *nvme, unsigned queue);
void nvme_serve_all(struct nvme *nvme, unsigned last);
/* Answer a command of a submission queue. nvme_signal() tells the driver. */
void nvme_answer(struct nvme *nvme, unsigned queue, uint16_t id, uint16_t status, uint32_t result);
/* The same for a command that gave its room in the queue back; false if there is none now. */
bool nvme_answer_late(struct nvme *nvme, uint16_t id, uint32_t result);
void nvme_give_room_back(struct nvme *nvme);
/* Interrupts for all that was answered since the last time. */
void nvme_signal(struct nvme *nvme);
/* The driver's pin, from the queues and the mask. */
void nvme_update_pin(struct nvme *nvme);
void nvme_doorbell(struct nvme *nvme, unsigned index, uint32_t value);
/* Broken beyond repair: until the driver resets the controller. */
void nvme_fatal(struct nvme *nvme);

/* nvme_registers.c */

/* What a reset by the driver forgets; waits for the host, without the lock meanwhile. */
void nvme_stop(struct nvme *nvme);
extern const struct region_ops nvme_register_ops;

/* nvme_map.c: `length` bytes of a command's data; a status. */
uint16_t nvme_map(struct nvme *nvme, const struct nvme_command *command, uint64_t length,
                  struct nvme_data *ret_data);
uint16_t nvme_copy_out(struct nvme *nvme, const struct nvme_command *command, const void *bytes,
                       uint64_t length);

/* nvme_admin.c, nvme_identify.c, nvme_feature.c, nvme_log.c */

void nvme_admin(struct nvme *nvme, const struct nvme_command *command);
uint16_t nvme_identify(struct nvme *nvme, const struct nvme_command *command);
void nvme_features_reset(struct nvme *nvme);
uint16_t nvme_set_feature(struct nvme *nvme, const struct nvme_command *command,
                          uint32_t *ret_result);
uint16_t nvme_get_feature(struct nvme *nvme, const struct nvme_command *command,
                          uint32_t *ret_result);
uint16_t nvme_get_log(struct nvme *nvme, const struct nvme_command *command);
void nvme_log_error(struct nvme *nvme, unsigned queue, uint16_t id, uint16_t status);
/* Event types and what happened (5.2.1). */
enum { NVME_EVENT_ERROR = 0, NVME_EVENT_HEALTH = 1 };
enum { NVME_WRONG_DOORBELL = 0, NVME_WRONG_DOORBELL_VALUE = 1, NVME_HEALTH_TEMPERATURE = 1 };
void nvme_event(struct nvme *nvme, unsigned type, unsigned information);
/* Give news to requests that wait. */
void nvme_deliver_events(struct nvme *nvme);
void nvme_check_temperature(struct nvme *nvme);

/* nvme_io.c */

void nvme_io(struct nvme *nvme, unsigned queue, const struct nvme_command *command);
/* Make what was written durable, then say that the controller is shut down. */
void nvme_shut_down(struct nvme *nvme);
/* When nothing is in flight. */
void nvme_free_requests(struct nvme *nvme);
