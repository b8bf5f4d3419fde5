/* Reading and loading of ELF files. System V ABI, chapters 4 and 5 (object files, loading). */
#include "boot/elf.h"

#include <elf.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* Copy a header of either class into the 64-bit form. */
static int read_header(const struct boot_file *file, Elf64_Ehdr *ret_header)
{
    const uint8_t *ident = file->data;
    size_t size = sizeof(Elf32_Ehdr);
    if (file->size > EI_CLASS && ident[EI_CLASS] == ELFCLASS64) {
        size = sizeof(Elf64_Ehdr);
    }
    if (file->size < size) {
        return fail(-EINVAL, "ELF file '%s' is truncated within its header", file->name);
    }
    if (ident[EI_DATA] != ELFDATA2LSB ||
        (ident[EI_CLASS] != ELFCLASS32 && ident[EI_CLASS] != ELFCLASS64)) {
        return fail(-EINVAL, "ELF file '%s' is not for x86 (byte order or class)", file->name);
    }
    if (ident[EI_CLASS] == ELFCLASS64) {
        memcpy(ret_header, file->data, sizeof *ret_header);
        return 0;
    }
    Elf32_Ehdr header;
    memcpy(&header, file->data, sizeof header);
    *ret_header = (Elf64_Ehdr){
        .e_type = header.e_type,
        .e_machine = header.e_machine,
        .e_entry = header.e_entry,
        .e_phoff = header.e_phoff,
        .e_phentsize = header.e_phentsize,
        .e_phnum = header.e_phnum,
    };
    return 0;
}

static int check_header(const struct boot_file *file, const Elf64_Ehdr *header, bool is_64bit)
{
    if (header->e_machine != EM_X86_64 && header->e_machine != EM_386) {
        return fail(-EINVAL, "ELF file '%s' is for another machine (number %u), not for x86",
                    file->name, header->e_machine);
    }
    if (header->e_type != ET_EXEC && header->e_type != ET_DYN) {
        return fail(-EINVAL, "ELF file '%s' is not an executable (type %u)", file->name,
                    header->e_type);
    }
    size_t entry_size = is_64bit ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
    if (header->e_phnum == 0) {
        return fail(-EINVAL, "ELF file '%s' has no program headers", file->name);
    }
    if (header->e_phentsize < entry_size ||
        !range_fits(header->e_phoff, (uint64_t)header->e_phnum * header->e_phentsize, file->size)) {
        return fail(-EINVAL, "ELF file '%s': its program headers lie outside of the file",
                    file->name);
    }
    return 0;
}

static struct elf_segment read_segment(const uint8_t *from, bool is_64bit)
{
    if (is_64bit) {
        Elf64_Phdr header;
        memcpy(&header, from, sizeof header);
        return (struct elf_segment){
            .type = header.p_type,
            .file_offset = header.p_offset,
            .file_size = header.p_filesz,
            .virtual_address = header.p_vaddr,
            .physical_address = header.p_paddr,
            .memory_size = header.p_memsz,
            .alignment = header.p_align,
        };
    }
    Elf32_Phdr header;
    memcpy(&header, from, sizeof header);
    return (struct elf_segment){
        .type = header.p_type,
        .file_offset = header.p_offset,
        .file_size = header.p_filesz,
        .virtual_address = header.p_vaddr,
        .physical_address = header.p_paddr,
        .memory_size = header.p_memsz,
        .alignment = header.p_align,
    };
}

static int check_segment(const struct boot_file *file, unsigned number,
                         const struct elf_segment *segment)
{
    if (!range_fits(segment->file_offset, segment->file_size, file->size)) {
        return fail(-EINVAL, "ELF file '%s': segment %u lies outside of the file (truncated?)",
                    file->name, number);
    }
    if (segment->type == PT_LOAD && segment->memory_size < segment->file_size) {
        return fail(-EINVAL, "ELF file '%s': segment %u is larger in the file than in memory",
                    file->name, number);
    }
    return 0;
}

int elf_parse(const struct boot_file *file, struct elf_image *ret_image)
{
    Elf64_Ehdr header = {0};
    int error = read_header(file, &header);
    if (error < 0) {
        return error;
    }
    bool is_64bit = file->data[EI_CLASS] == ELFCLASS64;
    error = check_header(file, &header, is_64bit);
    if (error < 0) {
        return error;
    }
    *ret_image = (struct elf_image){
        .is_64bit = is_64bit,
        .type = header.e_type,
        .machine = header.e_machine,
        .entry = header.e_entry,
    };
    for (unsigned i = 0; i < header.e_phnum; i++) {
        struct elf_segment segment =
            read_segment(file->data + header.e_phoff + (size_t)i * header.e_phentsize, is_64bit);
        if (segment.type != PT_LOAD && segment.type != PT_NOTE) {
            continue;
        }
        error = check_segment(file, i, &segment);
        if (error < 0) {
            return error;
        }
        if (ret_image->segment_count == ELF_SEGMENTS_MAX) {
            return fail(-EINVAL, "ELF file '%s' has more than %d segments", file->name,
                        ELF_SEGMENTS_MAX);
        }
        ret_image->segments[ret_image->segment_count++] = segment;
    }
    return 0;
}

int elf_load_segments(struct layout *layout, const struct boot_file *file,
                      const struct elf_image *image, gpa_t *ret_end)
{
    gpa_t end = 0;
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        if (segment->type != PT_LOAD || segment->memory_size == 0) {
            continue;
        }
        char what[64];
        snprintf(what, sizeof what, "loadable segment %zu of the kernel", i);
        gpa_t base = segment->physical_address;
        int error = layout_take(layout, base, segment->memory_size, what);
        if (error < 0) {
            return error;
        }
        error = layout_write(layout, base, file->data + segment->file_offset, segment->file_size);
        if (error < 0) {
            return error;
        }
        error = layout_zero(layout, base + segment->file_size,
                            segment->memory_size - segment->file_size);
        if (error < 0) {
            return error;
        }
        end = base + segment->memory_size > end ? base + segment->memory_size : end;
    }
    if (end == 0) {
        return fail(-EINVAL, "ELF file '%s' has nothing to load", file->name);
    }
    *ret_end = end;
    return 0;
}

bool elf_contains(const struct elf_image *image, gpa_t gpa)
{
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        if (segment->type == PT_LOAD && gpa >= segment->physical_address &&
            gpa - segment->physical_address < segment->memory_size) {
            return true;
        }
    }
    return false;
}

int elf_entry(const struct boot_file *file, const struct elf_image *image, gpa_t *ret_entry)
{
    if (elf_contains(image, image->entry)) {
        *ret_entry = image->entry;
        return 0;
    }
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        if (segment->type == PT_LOAD && image->entry >= segment->virtual_address &&
            image->entry - segment->virtual_address < segment->memory_size) {
            *ret_entry = image->entry - segment->virtual_address + segment->physical_address;
            return 0;
        }
    }
    return fail(-EINVAL, "ELF file '%s': its entry 0x%" PRIx64 " lies in none of its segments",
                file->name, image->entry);
}

/* Search the notes of one PT_NOTE segment, which lies inside the file. Results as above. */
static int search_notes(const uint8_t *notes, const struct elf_segment *segment, const char *owner,
                        uint32_t type, uint64_t *ret_value)
{
    uint64_t alignment = segment->alignment == 8 ? 8 : 4;
    uint64_t size = segment->file_size;
    uint64_t position = 0;
    Elf64_Nhdr note; /* the same in both classes */
    while (range_fits(position, sizeof note, size)) {
        memcpy(&note, notes + position, sizeof note);
        uint64_t name = position + sizeof note;
        uint64_t value = align_up(name + note.n_namesz, alignment);
        if (!range_fits(name, note.n_namesz, size) || !range_fits(value, note.n_descsz, size)) {
            return fail(-EINVAL, "an ELF note of the kernel is longer than its segment");
        }
        if (note.n_type == type && note.n_namesz == strlen(owner) + 1 &&
            memcmp(notes + name, owner, note.n_namesz) == 0) {
            if (note.n_descsz != 4 && note.n_descsz != 8) {
                return fail(-EINVAL, "the %s note %u of the kernel has %u bytes, not 4 or 8", owner,
                            type, note.n_descsz);
            }
            *ret_value = note.n_descsz == 8 ? load_le64(notes + value) : load_le32(notes + value);
            return 1;
        }
        position = align_up(value + note.n_descsz, alignment);
    }
    return 0;
}

int elf_find_note(const struct boot_file *file, const struct elf_image *image, const char *owner,
                  uint32_t type, uint64_t *ret_value)
{
    for (size_t i = 0; i < image->segment_count; i++) {
        const struct elf_segment *segment = &image->segments[i];
        if (segment->type == PT_NOTE) {
            int result =
                search_notes(file->data + segment->file_offset, segment, owner, type, ret_value);
            if (result != 0) {
                return result;
            }
        }
    }
    return 0;
}
