/*
 * boot: put a guest into memory. Kernel, initrd and command line reach the guest byte for byte as
 * given; nothing depends on a program's name, hash or version.
 *
 * Knows: file formats and the boot protocols of Linux, PVH and Multiboot 1. Reads hostile files:
 *        every field is checked before use, and a bad file is -EINVAL with a sentence that names
 *        what is wrong with it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "memory/memory.h"
#include "x86/cpu_state.h"

/* A file that the user named, whole in memory. */
struct boot_file {
    const char *name; /* as the user wrote it, for messages */
    const uint8_t *data;
    size_t size;
};

/*
 * Read a whole regular file or pipe (at most `limit` bytes). The file keeps pointing to `path`.
 * boot_file_free() gives the memory back; NULL is fine.
 */
int boot_file_read(const char *path, uint64_t limit, struct boot_file *ret_file)
    __attribute__((warn_unused_result));
void boot_file_free(struct boot_file *file);

/* The kinds of address ranges that a guest is told about (E820, PVH and Multiboot agree). */
enum e820_type { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3, E820_NVS = 4 };
struct e820_entry {
    uint64_t base, size;
    enum e820_type type;
};
enum { E820_MAX = 16 };

/* Facts about the board that the guest is told, given by the machine. */
struct boot_board {
    const struct e820_entry *e820; /* sorted, does not overlap */
    size_t e820_count;
    gpa_t rsdp; /* the ACPI root pointer, already in memory */
    /*
     * RAM below 4 GiB that the loader may use for tables, GDT, command line: a page-aligned range.
     * 64 KiB suffice for usual command lines. A kernel that loads there itself goes first.
     */
    gpa_t scratch_base;
    uint64_t scratch_size;
};

struct boot_request {
    struct boot_file kernel;
    struct boot_file initrd; /* size 0: none. Multiboot: the first module, its name is its string */
    const struct boot_file *modules;    /* Multiboot only, refused by others */
    const char *const *module_commands; /* one string for each module */
    size_t module_count;
    const char *command_line;
};

/*
 * Recognize the kernel's format (bzImage, ELF with a PVH note, ELF vmlinux, Multiboot 1 as ELF or
 * by the a.out kludge), load it with its initrd or modules, and set `state` (after reset) to
 * its entry. -ENOEXEC with the known formats on the trail if nothing fits. On failure memory may
 * hold parts of the kernel, and the VM must not be started.
 */
int boot_load(struct memory *memory, const struct boot_board *board,
              const struct boot_request *request, struct cpu_state *state)
    __attribute__((warn_unused_result));
