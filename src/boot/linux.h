/*
 * What bzImage and vmlinux share of the Linux x86 boot protocol (Documentation/arch/x86/boot.rst
 * and zero-page.rst): the zero page, the command line, the initrd, the entry.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "boot/layout.h"

enum { LINUX_PARAMS_SIZE = 4096 };

/* Offsets in the zero page; from 1F1H on they are the same in the file's setup header. */
enum linux_params_offset {
    LINUX_ACPI_RSDP = 0x070,         /* 8 bytes */
    LINUX_EXT_RAMDISK_IMAGE = 0x0c0, /* upper halves, 4 bytes each */
    LINUX_EXT_RAMDISK_SIZE = 0x0c4,
    LINUX_E820_ENTRIES = 0x1e8, /* 1 byte */
    LINUX_SETUP_SECTS = 0x1f1,  /* 1 byte; the setup header begins here */
    LINUX_SYSSIZE = 0x1f4,      /* in units of 16 bytes */
    LINUX_BOOT_FLAG = 0x1fe,
    LINUX_HEADER_END = 0x201, /* 1 byte: the header ends at 202H plus this */
    LINUX_MAGIC = 0x202,
    LINUX_VERSION = 0x206,
    LINUX_TYPE_OF_LOADER = 0x210,
    LINUX_LOADFLAGS = 0x211,
    LINUX_CODE32_START = 0x214,
    LINUX_RAMDISK_IMAGE = 0x218,
    LINUX_RAMDISK_SIZE = 0x21c,
    LINUX_CMD_LINE_PTR = 0x228,
    LINUX_INITRD_ADDR_MAX = 0x22c,
    LINUX_KERNEL_ALIGNMENT = 0x230,
    LINUX_RELOCATABLE = 0x234,
    LINUX_XLOADFLAGS = 0x236,
    LINUX_CMDLINE_SIZE = 0x238,
    LINUX_SETUP_DATA = 0x250,
    LINUX_PREF_ADDRESS = 0x258,
    LINUX_INIT_SIZE = 0x260,
    LINUX_HEADER_MINIMUM = 0x264, /* the end of the fields above */
    LINUX_HEADER_LIMIT = 0x290,   /* the zero page has room for the header up to here */
    LINUX_E820_TABLE = 0x2d0,     /* 20 bytes for each entry */
};

enum {
    LINUX_BOOT_FLAG_VALUE = 0xaa55,
    LINUX_MAGIC_VALUE = 0x53726448, /* "HdrS" */
    LINUX_VERSION_MINIMUM = 0x20c,  /* 2.12: xloadflags */
    LINUX_LOADER_UNDEFINED = 0xff,
    LINUX_LOADED_HIGH = 1u << 0,
    LINUX_KEEP_SEGMENTS = 1u << 6,
    LINUX_CAN_USE_HEAP = 1u << 7,
    LINUX_XLF_KERNEL_64 = 1u << 0,
    LINUX_XLF_ABOVE_4G = 1u << 1,
};

/* A Linux kernel that is in memory already. */
struct linux_boot {
    uint8_t params[LINUX_PARAMS_SIZE]; /* setup header filled in, the rest zero */
    uint64_t entry;
    bool is_64bit;
    uint64_t command_line_max; /* without the zero at the end */
    uint64_t initrd_limit;     /* the initrd ends at or below it */
    bool initrd_above_4g;      /* ... but may go above 4 GiB if it fits nowhere else */
};

/* Place initrd and command line, finish and write the zero page, set the CPU to the entry. */
int linux_finish(struct layout *layout, const struct boot_request *request, struct linux_boot *boot,
                 struct cpu_state *state) __attribute__((warn_unused_result));
