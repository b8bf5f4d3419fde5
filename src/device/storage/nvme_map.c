/*
 * Where a command's data is: PRP lists (4.3) and SGLs (4.4). Lists are read once; what comes out
 * has exactly the wanted length, in a bounded number of pieces. Whether a piece is RAM is found by
 * whoever touches it.
 */
#include "device/storage/nvme_internal.h"

enum {
    PRP_ENTRIES = NVME_PAGE / 8,
    SGL_DESCRIPTORS_MAX = 2 * NVME_SEGMENTS_MAX, /* of one command, those of length 0 included */
    SGL_BATCH = 32,
    SGL_DATA = 0,
    SGL_SEGMENT = 2,
    SGL_LAST_SEGMENT = 3,
    USES_SGL = 1 << 6, /* in the flags of a command (4.2); bit 7: also for metadata */
    USES_SGL_MASK = 3 << 6,
};

struct sgl_descriptor {
    uint64_t address;
    uint32_t length;
    uint8_t reserved[3], type; /* type << 4 | subtype */
};
_Static_assert(sizeof(struct sgl_descriptor) == 16, "as the driver lays it out");

/* False: there are too many pieces. */
static bool append(struct nvme_data *data, gpa_t gpa, uint64_t length)
{
    struct nvme_segment *last = data->count ? &data->segments[data->count - 1] : NULL;
    if (last && last->gpa + last->length == gpa) {
        last->length += length;
        return true;
    }
    if (data->count == NVME_SEGMENTS_MAX) {
        return false;
    }
    data->segments[data->count++] = (struct nvme_segment){gpa, length};
    return true;
}

/* A list of page addresses; its last place leads to the next list if that is still needed. */
static uint16_t map_prp_list(struct nvme *nvme, gpa_t list, uint64_t left, struct nvme_data *data)
{
    uint64_t entries[PRP_ENTRIES];
    while (left) {
        uint64_t pages = (left + NVME_PAGE - 1) / NVME_PAGE;
        uint64_t places = (NVME_PAGE - list % NVME_PAGE) / 8;
        uint64_t count = pages <= places ? pages : places;
        if (list % 8) {
            return NVME_PRP_OFFSET;
        }
        if (memory_read(nvme->memory, list, entries, count * 8)) {
            return NVME_TRANSFER_ERROR;
        }
        bool goes_on = pages > places;
        for (uint64_t i = 0; i < count - goes_on; i++) {
            uint64_t length = left < NVME_PAGE ? left : NVME_PAGE;
            if (entries[i] % NVME_PAGE || !append(data, entries[i], length)) {
                return NVME_PRP_OFFSET;
            }
            left -= length;
        }
        if (goes_on) {
            /* With one place in it a list would only lead on, perhaps to itself, without end. */
            if (places < 2) {
                return NVME_PRP_OFFSET;
            }
            list = entries[count - 1];
        }
    }
    return NVME_OK;
}

static uint16_t map_prp(struct nvme *nvme, const struct nvme_command *command, uint64_t length,
                        struct nvme_data *data)
{
    uint64_t in_first = NVME_PAGE - command->prp1 % NVME_PAGE;
    if (command->prp1 % 4) {
        return NVME_PRP_OFFSET;
    }
    append(data, command->prp1, length < in_first ? length : in_first);
    if (length <= in_first) {
        return NVME_OK;
    }
    if (length - in_first > NVME_PAGE) {
        return map_prp_list(nvme, command->prp2, length - in_first, data);
    }
    if (command->prp2 % NVME_PAGE || !append(data, command->prp2, length - in_first)) {
        return NVME_PRP_OFFSET;
    }
    return NVME_OK;
}

struct sgl_walk {
    struct nvme_data *data;
    uint64_t left;
    unsigned descriptors; /* that may still come */
};

static uint16_t take_block(struct sgl_walk *walk, const struct sgl_descriptor *block)
{
    if (block->length > walk->left) {
        return NVME_SGL_LENGTH;
    }
    if (block->length && !append(walk->data, block->address, block->length)) {
        return NVME_SGL_COUNT;
    }
    walk->left -= block->length;
    return NVME_OK;
}

static bool is_segment(const struct sgl_descriptor *descriptor)
{
    return descriptor->type == SGL_SEGMENT << 4 || descriptor->type == SGL_LAST_SEGMENT << 4;
}

/*
 * The descriptors that `segment` names. The last of them may name a further segment, which it is
 * then set to; otherwise its length becomes 0.
 */
static uint16_t walk_segment(struct nvme *nvme, struct sgl_walk *walk,
                             struct sgl_descriptor *segment)
{
    struct sgl_descriptor batch[SGL_BATCH];
    uint32_t count = segment->length / sizeof batch[0];
    bool is_last = segment->type == SGL_LAST_SEGMENT << 4;
    if (count == 0 || segment->length % sizeof batch[0]) {
        return NVME_SGL_SEGMENT;
    }
    if (count > walk->descriptors) {
        return NVME_SGL_COUNT;
    }
    walk->descriptors -= count;
    gpa_t at = segment->address;
    segment->length = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct sgl_descriptor *descriptor = &batch[i % SGL_BATCH];
        uint32_t size = count - i < SGL_BATCH ? count - i : SGL_BATCH;
        if (i % SGL_BATCH == 0 &&
            memory_read(nvme->memory, at + i * sizeof batch[0], batch, size * sizeof batch[0])) {
            return NVME_TRANSFER_ERROR;
        }
        if (is_segment(descriptor)) {
            if (is_last || i + 1 < count) {
                return NVME_SGL_SEGMENT;
            }
            *segment = *descriptor;
            return descriptor->length ? NVME_OK : NVME_SGL_SEGMENT;
        }
        uint16_t status =
            descriptor->type == SGL_DATA << 4 ? take_block(walk, descriptor) : NVME_SGL_TYPE;
        if (status) {
            return status;
        }
    }
    return is_last ? NVME_OK : NVME_SGL_SEGMENT;
}

static uint16_t map_sgl(struct nvme *nvme, const struct nvme_command *command, uint64_t length,
                        struct nvme_data *data)
{
    struct sgl_walk walk = {.data = data, .left = length, .descriptors = SGL_DESCRIPTORS_MAX};
    struct sgl_descriptor first = {.address = command->prp1,
                                   .length = (uint32_t)command->prp2,
                                   .type = (uint8_t)(command->prp2 >> 56)};
    uint16_t status = NVME_OK;
    if (first.type == SGL_DATA << 4) {
        status = take_block(&walk, &first);
    } else if (!is_segment(&first)) {
        return NVME_SGL_TYPE;
    } else {
        /* Ends: each round uses up descriptors. */
        do {
            status = walk_segment(nvme, &walk, &first);
        } while (!status && first.length);
    }
    return status ? status : walk.left ? NVME_SGL_LENGTH : NVME_OK;
}

uint16_t nvme_map(struct nvme *nvme, const struct nvme_command *command, uint64_t length,
                  struct nvme_data *ret_data)
{
    ret_data->count = 0;
    switch (command->flags & USES_SGL_MASK) {
    case 0:
        return map_prp(nvme, command, length, ret_data);
    case USES_SGL:
        return map_sgl(nvme, command, length, ret_data);
    default:
        return NVME_INVALID_FIELD;
    }
}

uint16_t nvme_copy_out(struct nvme *nvme, const struct nvme_command *command, const void *bytes,
                       uint64_t length)
{
    struct nvme_data data;
    uint64_t done = 0;
    /* Admin commands use no SGLs on PCI Express (4.2). */
    uint16_t status = command->flags & USES_SGL_MASK ? NVME_INVALID_FIELD
                                                     : nvme_map(nvme, command, length, &data);
    for (unsigned i = 0; !status && i < data.count; i++) {
        if (memory_write(nvme->memory, data.segments[i].gpa, (const uint8_t *)bytes + done,
                         data.segments[i].length)) {
            status = NVME_TRANSFER_ERROR;
        }
        done += data.segments[i].length;
    }
    return status;
}
