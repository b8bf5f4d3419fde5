/* What the loaders of the boot room offer to boot.c: one pair of functions for each format. */
#pragma once

#include <stdbool.h>

#include "boot/layout.h"

/* Does the file carry the setup header of the Linux x86 boot protocol? */
bool bzimage_recognize(const struct boot_file *file);
int bzimage_load(struct layout *layout, const struct boot_request *request, struct cpu_state *state)
    __attribute__((warn_unused_result));

/* Any ELF file. The load function tells PVH, Multiboot and vmlinux apart. */
bool elf_recognize(const struct boot_file *file);
int elf_load(struct layout *layout, const struct boot_request *request, struct cpu_state *state)
    __attribute__((warn_unused_result));

/* Is there a Multiboot 1 header with a right checksum in the first 8192 bytes? */
bool multiboot_recognize(const struct boot_file *file);
int multiboot_load(struct layout *layout, const struct boot_request *request,
                   struct cpu_state *state) __attribute__((warn_unused_result));

/* -EINVAL if the request has Multiboot modules, for kernels that cannot take them. */
int boot_refuse_modules(const struct boot_request *request) __attribute__((warn_unused_result));
