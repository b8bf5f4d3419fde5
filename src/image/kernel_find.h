/*
 * The kernel that a disk boots: the newest in /boot of the first file system that has one, with
 * its initial RAM disk, and the command line of its entry in the boot loader's configuration.
 *
 * The disk is hostile: this runs in a process that has nothing to lose (kernel_read.h).
 */
#pragma once

#include <stdint.h>

#include "image/blocks.h"

enum {
    KERNEL_VERSION = 128,
    KERNEL_COMMAND = 2048,
    KERNEL_SIZE_MAX = 256 << 20,
    INITRD_SIZE_MAX = 512 << 20,
};

struct kernel_files {
    char version[KERNEL_VERSION];
    char command_line[KERNEL_COMMAND];
    uint64_t kernel_size, initrd_size; /* initrd_size 0: there is none */
    ext2_ino_t kernel, initrd;
    ext2_filsys file_system;
    struct blocks blocks;
};

/*
 * `read` and `owner` as in struct blocks, of all of a disk of `size` bytes. -ENOENT: no kernel;
 * -EINVAL: what is there cannot be read.
 */
int kernel_find(int (*read)(void *owner, uint64_t offset, void *to, size_t size), void *owner,
                uint64_t size, struct kernel_files *ret_files) __attribute__((warn_unused_result));
void kernel_files_close(struct kernel_files *files);

/* The bytes of one of its files, in pieces; `sink` returns 0 or what ends it. */
int kernel_file_read(struct kernel_files *files, ext2_ino_t inode, uint64_t size,
                     int (*sink)(void *owner, const void *bytes, size_t size), void *owner)
    __attribute__((warn_unused_result));

/*
 * The words behind the kernel's path in the first entry of a GRUB configuration that boots
 * /.../vmlinuz-VERSION; "" if there is none. Words with variables are left out.
 */
void kernel_command_from_grub(const char *text, const char *version,
                              char ret_command[KERNEL_COMMAND]);
