/* Identify (5.15): what the controller and its one namespace are. */
#include <stdio.h>
#include <string.h>

#include "device/storage/nvme_internal.h"

enum {
    CNS_NAMESPACE = 0,
    CNS_CONTROLLER = 1,
    CNS_ACTIVE_NAMESPACES = 2,
    CNS_DESCRIPTORS = 3,
    IDENTIFY_SIZE = 4096,
    MDTS = 7, /* 2 ^ 7 pages */
    VERSION = 0x00010400,
};
_Static_assert(1 << MDTS == NVME_TRANSFER_PAGES, "what identify says is what is taken");

static void put_text(uint8_t *at, size_t size, const char *text)
{
    memset(at, ' ', size);
    memcpy(at, text, strnlen(text, size));
}

/* Who makes the numbers of the guest's /dev/disk/by-id: the serial number and the slot's name. */
static uint64_t unique_number(const struct nvme *nvme)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (const char *at = nvme->serial; *at; at++) {
        hash = (hash ^ (uint8_t)*at) * UINT64_C(0x100000001b3);
    }
    for (const char *at = nvme->device.id; *at; at++) {
        hash = (hash ^ (uint8_t)*at) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* Locally administered, as nobody has given us a number. Big-endian (5.15.2.2). */
static void put_eui64(const struct nvme *nvme, uint8_t at[8])
{
    uint64_t number = unique_number(nvme);
    static const uint8_t prefix[3] = {0x52, 0x54, 0x00};
    memcpy(at, prefix, sizeof prefix);
    for (unsigned i = 0; i < 5; i++) {
        at[3 + i] = (uint8_t)(number >> (8 * i));
    }
}

static void fill_controller(const struct nvme *nvme, uint8_t *page)
{
    char name[128];
    store_le16(page, load_le16(&nvme->function.config[PCI_VENDOR]));
    store_le16(page + 2, load_le16(&nvme->function.config[PCI_SUBSYSTEM_VENDOR]));
    put_text(page + 4, NVME_SERIAL_SIZE, nvme->serial);
    put_text(page + 24, 40, "Doppel NVMe disk");
    put_text(page + 64, 8, "1.0");
    page[72] = 3;    /* arbitration burst: 2^3 commands */
    page[73] = 0x00; /* OUI 52-54-00 */
    page[74] = 0x54;
    page[75] = 0x52;
    page[77] = MDTS;
    store_le32(page + 80, VERSION);
    page[111] = 1;                   /* an I/O controller */
    store_le16(page + 256, 1 << 8);  /* optional admin: doorbell buffer config */
    page[258] = 3;                   /* aborts at once, less one */
    page[259] = NVME_EVENTS_MAX - 1; /* event requests at once, less one */
    page[260] = 0x03;                /* one firmware slot, read-only */
    page[261] = 1 << 2;              /* log pages: 32-bit lengths, offsets */
    page[262] = NVME_ERRORS_MAX - 1; /* entries of the error log, less one */
    store_le16(page + 266, NVME_TEMPERATURE_LIMIT);
    store_le16(page + 268, NVME_TEMPERATURE_LIMIT + 10);
    page[512] = 0x66;                                 /* queue entries: 2^6 and */
    page[513] = 0x44;                                 /* 2^4 bytes */
    store_le32(page + 516, 1);                        /* namespaces */
    store_le16(page + 520, 1 << 0 | 1 << 2 | 1 << 3); /* compare, deallocate, write zeroes */
    page[525] = 7;                                    /* write cache; flush takes all namespaces */
    store_le32(page + 536, 1);                        /* SGLs of any alignment */
    snprintf(name, sizeof name, "nqn.2014-08.org.nvmexpress:doppel:%s:%016llx", nvme->device.id,
             (unsigned long long)unique_number(nvme));
    memcpy(page + 768, name, strlen(name));
    store_le16(page + 2048, 2500); /* power state 0: 25 W */
}

static void fill_namespace(const struct nvme *nvme, uint8_t *page)
{
    uint64_t blocks = nvme->disk->size / NVME_BLOCK;
    store_le64(page, blocks);
    store_le64(page + 8, blocks);
    store_le64(page + 16, blocks);
    page[24] = 1 << 4; /* the preferred sizes below are given */
    page[33] = 1 << 3; /* write zeroes may deallocate */
    store_le64(page + 48, nvme->disk->size);
    store_le16(page + 64, NVME_PAGE / NVME_BLOCK - 1); /* writes, */
    store_le16(page + 66, NVME_PAGE / NVME_BLOCK - 1); /* their alignment, */
    store_le16(page + 68, NVME_PAGE / NVME_BLOCK - 1); /* deallocation and */
    store_le16(page + 70, NVME_PAGE / NVME_BLOCK - 1); /* its alignment, and */
    store_le16(page + 72, KIB(128) / NVME_BLOCK - 1);  /* writes that go fast: less one */
    page[99] = nvme->disk->readonly;                   /* write protected */
    put_eui64(nvme, page + 120);
    page[130] = 9; /* the one format: 2^9 bytes, no metadata */
}

static void fill_descriptors(const struct nvme *nvme, uint8_t *page)
{
    page[0] = 1; /* an EUI-64 */
    page[1] = 8;
    put_eui64(nvme, page + 4);
}

uint16_t nvme_identify(struct nvme *nvme, const struct nvme_command *command)
{
    uint8_t page[IDENTIFY_SIZE] = {0};
    bool is_namespace = command->namespace_id == NVME_NAMESPACE;
    switch (command->dw10 & 0xff) {
    case CNS_NAMESPACE:
        if (!is_namespace && command->namespace_id != (uint32_t)NVME_ALL_NAMESPACES) {
            return NVME_INVALID_NAMESPACE;
        }
        fill_namespace(nvme, page); /* all: what is common to them, which is all (5.15.2.1) */
        break;
    case CNS_CONTROLLER:
        fill_controller(nvme, page);
        break;
    case CNS_ACTIVE_NAMESPACES: /* those above the one that is given */
        if (command->namespace_id >= (uint32_t)NVME_ALL_NAMESPACES - 1) {
            return NVME_INVALID_NAMESPACE;
        }
        store_le32(page, command->namespace_id < NVME_NAMESPACE ? NVME_NAMESPACE : 0);
        break;
    case CNS_DESCRIPTORS:
        if (!is_namespace) {
            return NVME_INVALID_NAMESPACE;
        }
        fill_descriptors(nvme, page);
        break;
    default:
        return NVME_INVALID_FIELD;
    }
    return nvme_copy_out(nvme, command, page, sizeof page);
}
