/*
 * ELF executables of both classes, read into one checked form. Every segment that elf_parse()
 * returns lies inside the file; whether it lies inside RAM is checked when it is loaded.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "boot/layout.h"

enum { ELF_SEGMENTS_MAX = 64 };

struct elf_segment {
    uint32_t type; /* PT_LOAD or PT_NOTE, the others are left out */
    uint64_t file_offset, file_size;
    uint64_t virtual_address, physical_address;
    uint64_t memory_size;
    uint64_t alignment;
};

struct elf_image {
    bool is_64bit;
    uint16_t type, machine; /* ET_*, EM_* */
    uint64_t entry;
    size_t segment_count;
    struct elf_segment segments[ELF_SEGMENTS_MAX];
};

int elf_parse(const struct boot_file *file, struct elf_image *ret_image)
    __attribute__((warn_unused_result));

/* Load every PT_LOAD segment at its physical address. The end of the highest one is returned. */
int elf_load_segments(struct layout *layout, const struct boot_file *file,
                      const struct elf_image *image, gpa_t *ret_end)
    __attribute__((warn_unused_result));

/* Is the physical address inside a PT_LOAD segment? */
bool elf_contains(const struct elf_image *image, gpa_t gpa);

/*
 * The physical address of the entry. Kernels for the higher half name a virtual one, which is
 * translated by the segment that holds it, as other loaders do.
 */
int elf_entry(const struct boot_file *file, const struct elf_image *image, gpa_t *ret_entry)
    __attribute__((warn_unused_result));

/*
 * The number (4 or 8 bytes) in the first note with this owner and type: 1 if found, 0 if not,
 * -EINVAL if the notes are broken.
 */
int elf_find_note(const struct boot_file *file, const struct elf_image *image, const char *owner,
                  uint32_t type, uint64_t *ret_value) __attribute__((warn_unused_result));
