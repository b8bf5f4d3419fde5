/* ELF kernels: PVH and vmlinux that start, and many files that must not. */
#include "boot/test_board.h"

#include <elf.h>

#include "boot/elf.h"
#include "boot/entry.h"
#include "boot/linux.h"
#include "x86/cpu_state.h"

enum {
    NOTE_OFFSET = sizeof(Elf64_Ehdr) + 3 * sizeof(Elf64_Phdr),
    NOTE_SIZE = 20, /* header, "Xen\0", 4 bytes */
    TEXT_OFFSET = NOTE_OFFSET + NOTE_SIZE,
    TEXT_SIZE = 64,
    DATA_OFFSET = TEXT_OFFSET + TEXT_SIZE,
    DATA_SIZE = 32,
    FILE_SIZE = DATA_OFFSET + DATA_SIZE,
    DATA_MEMORY_SIZE = 5000,
    TEXT = 0x1000000,
    DATA = 0x1200000,
    PVH_ENTRY = TEXT + 16,
};
#define VIRTUAL_OFFSET 0xffffffff80000000ull

/* Where the fields of segment i's program header are in the file. */
#define PHDR(i, field) (sizeof(Elf64_Ehdr) + (i) * sizeof(Elf64_Phdr) + offsetof(Elf64_Phdr, field))
#define EHDR(field)    offsetof(Elf64_Ehdr, field)

/* Two loadable segments and a PVH note, as in a vmlinux of Linux. */
static void make_kernel(uint8_t *file)
{
    Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_version = EV_CURRENT,
        .e_entry = TEXT,
        .e_phoff = sizeof header,
        .e_ehsize = sizeof header,
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 3,
    };
    Elf64_Phdr segments[3] = {
        {PT_LOAD, 5, TEXT_OFFSET, VIRTUAL_OFFSET + TEXT, TEXT, TEXT_SIZE, TEXT_SIZE, 4096},
        {PT_LOAD, 6, DATA_OFFSET, VIRTUAL_OFFSET + DATA, DATA, DATA_SIZE, DATA_MEMORY_SIZE, 4096},
        {PT_NOTE, 4, NOTE_OFFSET, 0, 0, NOTE_SIZE, NOTE_SIZE, 4},
    };
    memset(file, 0, FILE_SIZE);
    memcpy(file, &header, sizeof header);
    memcpy(file + sizeof header, segments, sizeof segments);
    uint8_t *note = file + NOTE_OFFSET;
    store_le32(note, 4);
    store_le32(note + 4, 4);
    store_le32(note + 8, 18);
    memcpy(note + 12, "Xen", 4);
    store_le32(note + 16, PVH_ENTRY);
    memset(file + TEXT_OFFSET, 0x90, TEXT_SIZE);
    memset(file + DATA_OFFSET, 0xda, DATA_SIZE);
}

static struct boot_request make_request(const uint8_t *file)
{
    return (struct boot_request){
        .kernel = {.name = "vmlinux", .data = file, .size = FILE_SIZE},
        .command_line = "console=ttyS0",
    };
}

static void check_segments(struct test_board *test, const uint8_t *file)
{
    static const uint8_t zeros[DATA_MEMORY_SIZE - DATA_SIZE];
    test_assert_bytes(test, TEXT, file + TEXT_OFFSET, TEXT_SIZE);
    test_assert_bytes(test, DATA, file + DATA_OFFSET, DATA_SIZE);
    test_assert_bytes(test, DATA + DATA_SIZE, zeros, sizeof zeros);
    assert_int_equal(test_number(test, DATA + DATA_MEMORY_SIZE, 4), 0xeeeeeeee);
}

/* Memory that was used before, as after a reset of the machine. */
static void dirty_memory(struct test_board *test)
{
    uint8_t dirt[8192];
    memset(dirt, 0xee, sizeof dirt);
    assert_int_equal(memory_write(test->memory, DATA, dirt, sizeof dirt), 0);
}

static void starts_pvh_kernels(void **unused)
{
    struct test_board test;
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    struct boot_request request = make_request(file);
    request.initrd = (struct boot_file){.name = "initrd", .data = file, .size = 100};
    test_board_init(&test);
    dirty_memory(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    check_segments(&test, file);

    const struct cpu_state *state = &test.state;
    assert_int_equal(state->rip, PVH_ENTRY);
    assert_int_equal(state->cr0, CR0_PE | CR0_ET);
    assert_int_equal(state->cr4, 0);
    assert_int_equal(state->efer, 0);
    assert_int_equal(state->rflags, FLAG_FIXED);
    assert_int_equal(state->segment[CS].attributes, 0xc09b);
    assert_int_equal(state->segment[DS].attributes, 0xc093);
    assert_int_equal(state->segment[ES].limit, UINT32_MAX);
    assert_int_equal(state->tr.base, 0);
    assert_int_equal(state->tr.limit, 0x67);
    assert_int_equal(state->tr.attributes, 0x8b);

    gpa_t info = state->gpr[RBX];
    assert_int_equal(test_number(&test, info, 4), 0x336ec578);
    assert_int_equal(test_number(&test, info + 4, 4), 1);
    assert_int_equal(test_number(&test, info + 12, 4), 1);
    gpa_t modules = test_number(&test, info + 16, 8);
    test_assert_bytes(&test, test_number(&test, modules, 8), file, 100);
    assert_int_equal(test_number(&test, modules + 8, 8), 100);
    test_assert_bytes(&test, test_number(&test, info + 24, 8), "console=ttyS0", 14);
    assert_int_equal(test_number(&test, info + 32, 8), TEST_RSDP);
    gpa_t map = test_number(&test, info + 40, 8);
    assert_int_equal(test_number(&test, info + 48, 4), ARRAY_SIZE(test_e820));
    assert_int_equal(test_number(&test, map + 48, 8), TEST_RAM_BASE);
    assert_int_equal(test_number(&test, map + 40, 4), E820_RESERVED);
    test_board_fini(&test);
}

/* A kernel may be linked to where our tables would go: they give way. */
static void shares_low_memory_with_the_kernel(void **unused)
{
    struct test_board test;
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    store_le64(file + PHDR(1, p_paddr), TEST_SCRATCH + 64);
    struct boot_request request = make_request(file);
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    test_assert_bytes(&test, TEST_SCRATCH + 64, file + DATA_OFFSET, DATA_SIZE);
    assert_in_range(test.state.gpr[RBX], TEST_SCRATCH + 64 + DATA_MEMORY_SIZE,
                    TEST_SCRATCH + TEST_SCRATCH_SIZE);
    test_assert_bytes(&test, test_number(&test, test.state.gpr[RBX] + 24, 8), "console=ttyS0", 14);
    test_board_fini(&test);
}

static void starts_vmlinux_without_note(void **unused)
{
    static const uint64_t entries[] = {TEXT + 4, VIRTUAL_OFFSET + TEXT + 4};
    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct test_board test;
        uint8_t file[FILE_SIZE];
        make_kernel(file);
        store_le32(file + NOTE_OFFSET + 8, 17); /* another note */
        store_le64(file + EHDR(e_entry), entries[i]);
        struct boot_request request = make_request(file);
        test_board_init(&test);
        dirty_memory(&test);
        assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
        check_segments(&test, file);
        assert_int_equal(test.state.rip, TEXT + 4);
        assert_true(cpu_state_is_64bit(&test.state));
        gpa_t params = test.state.gpr[RSI];
        assert_int_equal(test_number(&test, params + LINUX_MAGIC, 4), LINUX_MAGIC_VALUE);
        assert_int_equal(test_number(&test, params + LINUX_E820_ENTRIES, 1), 3);
        test_board_fini(&test);
    }
}

/* Put a note of another owner, with an odd name, before the one that counts. */
static void finds_notes_behind_others(void **unused)
{
    static const struct {
        uint64_t alignment;
        size_t second; /* offset of the second note */
    } cases[] = {{4, 12 + 8 + 4}, {0, 12 + 8 + 4}, {8, 24 + 8}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint8_t notes[64] = {0};
        store_le32(notes, 6);
        store_le32(notes + 4, 3);
        store_le32(notes + 8, 18);
        memcpy(notes + 12, "Other", 6);
        uint8_t *second = notes + cases[i].second;
        store_le32(second, 4);
        store_le32(second + 4, 8);
        store_le32(second + 8, 18);
        memcpy(second + 12, "Xen", 4);
        store_le64(second + 16, 0x123456789);
        struct boot_file file = {.name = "notes", .data = notes, .size = sizeof notes};
        struct elf_image image = {
            .segment_count = 1,
            .segments = {{.type = PT_NOTE,
                          .file_size = cases[i].second + 24,
                          .alignment = cases[i].alignment}},
        };
        uint64_t value = 0;
        assert_int_equal(elf_find_note(&file, &image, "Xen", 18, &value), 1);
        assert_int_equal(value, 0x123456789);
        assert_int_equal(elf_find_note(&file, &image, "Xen", 1, &value), 0);
    }
}

static void refuses_broken_files(void **unused)
{
    static const struct test_mutation mutations[] = {
        {EI_CLASS, 1, 3, "not for x86"},
        {EI_DATA, 1, ELFDATA2MSB, "not for x86"},
        {EHDR(e_machine), 2, EM_AARCH64, "another machine (number 183)"},
        {EHDR(e_type), 2, ET_REL, "not an executable"},
        {EHDR(e_phnum), 2, 0, "no program headers"},
        {EHDR(e_phnum), 2, 0xffff, "outside of the file"},
        {EHDR(e_phoff), 8, UINT64_MAX - 10, "outside of the file"},
        {EHDR(e_phentsize), 2, 8, "outside of the file"},
        {PHDR(0, p_offset), 8, UINT64_MAX, "segment 0 lies outside"},
        {PHDR(0, p_filesz), 8, UINT64_MAX, "segment 0 lies outside"},
        {PHDR(1, p_memsz), 8, 1, "segment 1 is larger in the file"},
        {PHDR(1, p_memsz), 8, UINT64_MAX, "no memory"},
        {PHDR(1, p_memsz), 8, TEST_RAM_END, "no memory"},
        {PHDR(1, p_paddr), 8, UINT64_MAX - 10, "no memory"},
        {PHDR(1, p_paddr), 8, TEST_RAM_LOW_END - 10, "no memory"},
        {PHDR(1, p_paddr), 8, TEXT + TEXT_SIZE - 1, "overlaps"},
        {PHDR(2, p_offset), 8, FILE_SIZE - 1, "segment 2 lies outside"},
        {NOTE_OFFSET, 4, UINT32_MAX, "longer than its segment"},
        {NOTE_OFFSET + 4, 4, UINT32_MAX, "longer than its segment"},
        {NOTE_OFFSET + 16, 4, 0x500, "its PVH entry 0x500"},
    };
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    test_mutations(file, sizeof file, mutations, ARRAY_SIZE(mutations));
}

static void refuses_what_it_cannot_start(void **unused)
{
    static const struct test_mutation mutations[] = {
        {EHDR(e_entry), 8, 0x42, "its entry 0x42"},
        {EHDR(e_type), 2, ET_DYN, "neither a PVH note"},
        {EHDR(e_machine), 2, EM_386, "neither a PVH note"},
        {PHDR(0, p_type), 4, PT_NULL, "its entry"},
    };
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    memset(file + NOTE_OFFSET, 0, NOTE_SIZE);
    test_mutations(file, sizeof file, mutations, ARRAY_SIZE(mutations));
}

static void refuses_every_truncation(void **unused)
{
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    test_truncations(file, FILE_SIZE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(starts_pvh_kernels),
        cmocka_unit_test(shares_low_memory_with_the_kernel),
        cmocka_unit_test(starts_vmlinux_without_note),
        cmocka_unit_test(finds_notes_behind_others),
        cmocka_unit_test(refuses_broken_files),
        cmocka_unit_test(refuses_what_it_cannot_start),
        cmocka_unit_test(refuses_every_truncation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
