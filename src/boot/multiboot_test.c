/* Multiboot 1: both ways to load, the information structure, modules, and broken headers. */
#include "boot/test_board.h"

#include <elf.h>

#include "x86/cpu_state.h"

enum {
    MAGIC = 0x1badb002,
    WITH_ADDRESSES = 1 << 16,
    HEADER = 64,
    KLUDGE_SIZE = 512,
    LOAD = 0x100000,
    BSS_END = LOAD + 0x5000,
    ENTRY = LOAD + 0x40,
    ELF_TEXT = 128,
    ELF_FILE_SIZE = 256,
};

static void put_header(uint8_t *header, uint32_t flags)
{
    store_le32(header, MAGIC);
    store_le32(header + 4, flags);
    store_le32(header + 8, 0 - (MAGIC + flags));
}

/* A flat file whose byte 32 is loaded at LOAD. */
static void make_kludge(uint8_t *file)
{
    for (size_t i = 0; i < KLUDGE_SIZE; i++) {
        file[i] = (uint8_t)(i * 3);
    }
    put_header(file + HEADER, WITH_ADDRESSES | 3);
    store_le32(file + HEADER + 12, LOAD + HEADER - 32);
    store_le32(file + HEADER + 16, LOAD);
    store_le32(file + HEADER + 20, LOAD + KLUDGE_SIZE - 32);
    store_le32(file + HEADER + 24, BSS_END);
    store_le32(file + HEADER + 28, ENTRY);
}

/* An ELF32 file with one segment: all of the file. */
static void make_elf(uint8_t *file)
{
    Elf32_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_386,
        .e_entry = LOAD + ELF_TEXT,
        .e_phoff = sizeof header,
        .e_phentsize = sizeof(Elf32_Phdr),
        .e_phnum = 1,
    };
    Elf32_Phdr segment = {
        .p_type = PT_LOAD,
        .p_vaddr = 0xc0000000 + LOAD,
        .p_paddr = LOAD,
        .p_filesz = ELF_FILE_SIZE,
        .p_memsz = BSS_END - LOAD,
    };
    memset(file, 0x90, ELF_FILE_SIZE);
    memcpy(file, &header, sizeof header);
    memcpy(file + sizeof header, &segment, sizeof segment);
    put_header(file + ELF_TEXT, 3);
}

static struct boot_request make_request(const uint8_t *file, size_t size)
{
    return (struct boot_request){
        .kernel = {.name = "dir/kernel", .data = file, .size = size},
        .command_line = "-v one",
    };
}

static void check_state(const struct test_board *test, uint64_t entry)
{
    assert_int_equal(test->state.rip, entry);
    assert_int_equal(test->state.gpr[RAX], 0x2badb002);
    assert_int_equal(test->state.cr0, CR0_PE | CR0_ET);
    assert_int_equal(test->state.efer, 0);
    assert_int_equal(test->state.segment[CS].attributes, 0xc09b);
    assert_int_equal(test->state.segment[SS].attributes, 0xc093);
    assert_int_equal(test->state.rflags & (FLAG_IF | FLAG_VM), 0);
}

static void check_info(struct test_board *test, gpa_t info)
{
    assert_int_equal(test_number(test, info, 4), 1 | 2 | 4 | 8 | 64 | 512);
    assert_int_equal(test_number(test, info + 4, 4), 640);
    assert_int_equal(test_number(test, info + 8, 4), (TEST_RAM_END - TEST_RAM_BASE) / 1024);
    assert_int_equal(test_number(test, info + 12, 4), 0x8000ffff);
    test_assert_bytes(test, test_number(test, info + 16, 4), "dir/kernel -v one", 18);
    assert_int_equal(test_number(test, info + 44, 4), 3 * 24);
    gpa_t map = test_number(test, info + 48, 4);
    assert_int_equal(test_number(test, map + 48, 4), 20);
    assert_int_equal(test_number(test, map + 52, 8), TEST_RAM_BASE);
    assert_int_equal(test_number(test, map + 60, 8), TEST_RAM_END - TEST_RAM_BASE);
    assert_int_equal(test_number(test, map + 68, 4), E820_RAM);
    test_assert_bytes(test, test_number(test, info + 64, 4), "doppel", 7);
}

static void loads_by_addresses(void **unused)
{
    static const uint8_t zeros[BSS_END - LOAD - (KLUDGE_SIZE - 32)];
    struct test_board test;
    uint8_t file[KLUDGE_SIZE];
    make_kludge(file);
    struct boot_request request = make_request(file, sizeof file);
    test_board_init(&test);
    uint8_t dirt[0x6000];
    memset(dirt, 0xee, sizeof dirt);
    assert_int_equal(memory_write(test.memory, LOAD, dirt, sizeof dirt), 0);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    check_state(&test, ENTRY);
    check_info(&test, test.state.gpr[RBX]);
    assert_int_equal(test_number(&test, test.state.gpr[RBX] + 20, 4), 0);
    test_assert_bytes(&test, LOAD, file + 32, KLUDGE_SIZE - 32);
    test_assert_bytes(&test, LOAD + KLUDGE_SIZE - 32, zeros, sizeof zeros);
    assert_int_equal(test_number(&test, BSS_END, 4), 0xeeeeeeee);
    test_board_fini(&test);
}

static void loads_the_whole_file_without_ends(void **unused)
{
    struct test_board test;
    uint8_t file[KLUDGE_SIZE];
    make_kludge(file);
    store_le32(file + HEADER + 20, 0);
    store_le32(file + HEADER + 24, 0);
    struct boot_request request = make_request(file, sizeof file);
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    test_assert_bytes(&test, LOAD, file + 32, KLUDGE_SIZE - 32);
    test_board_fini(&test);
}

static void loads_elf_with_modules(void **unused)
{
    struct test_board test;
    uint8_t file[ELF_FILE_SIZE];
    uint8_t first[5000];
    uint8_t second[10];
    memset(first, 0x11, sizeof first);
    memset(second, 0x22, sizeof second);
    make_elf(file);
    const struct boot_file modules[] = {{"second", second, sizeof second}, {"empty", NULL, 0}};
    const char *commands[] = {"second with arguments", "empty"};
    struct boot_request request = make_request(file, sizeof file);
    request.initrd = (struct boot_file){"first", first, sizeof first};
    request.modules = modules;
    request.module_commands = commands;
    request.module_count = 2;
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    check_state(&test, LOAD + ELF_TEXT);
    gpa_t info = test.state.gpr[RBX];
    check_info(&test, info);
    test_assert_bytes(&test, LOAD, file, sizeof file);
    assert_int_equal(test_number(&test, info + 20, 4), 3);
    gpa_t list = test_number(&test, info + 24, 4);
    assert_int_equal(test_number(&test, list, 4), BSS_END);
    assert_int_equal(test_number(&test, list + 4, 4), BSS_END + sizeof first);
    test_assert_bytes(&test, BSS_END, first, sizeof first);
    test_assert_bytes(&test, test_number(&test, list + 8, 4), "first", 6);
    assert_int_equal(test_number(&test, list + 16, 4), BSS_END + 0x2000);
    test_assert_bytes(&test, BSS_END + 0x2000, second, sizeof second);
    test_assert_bytes(&test, test_number(&test, list + 24, 4), "second with arguments", 22);
    assert_int_equal(test_number(&test, list + 32, 4), test_number(&test, list + 36, 4));
    test_board_fini(&test);
}

/* The entry as the kernel's linker knows it, in the higher half, or as the loader does. */
static void translates_a_virtual_entry(void **unused)
{
    static const uint32_t entries[] = {LOAD + ELF_TEXT, 0xc0000000 + LOAD + ELF_TEXT};
    for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
        struct test_board test;
        uint8_t file[ELF_FILE_SIZE];
        make_elf(file);
        store_le32(file + offsetof(Elf32_Ehdr, e_entry), entries[i]);
        struct boot_request request = make_request(file, sizeof file);
        test_board_init(&test);
        assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
        check_state(&test, LOAD + ELF_TEXT);
        test_board_fini(&test);
    }
    uint8_t file[ELF_FILE_SIZE];
    make_elf(file);
    store_le32(file + offsetof(Elf32_Ehdr, e_entry), 0xc0000000 + BSS_END);
    assert_int_equal(test_load_bytes(file, sizeof file), -EINVAL);
    assert_non_null(strstr(trail_text(), "lies in none of its segments"));
}

static void refuses_broken_addresses(void **unused)
{
    static const struct test_mutation mutations[] = {
        {HEADER + 8, 4, 0, "no kernel that can be loaded"},
        {HEADER + 12, 4, LOAD - 1, "do not fit the file"},
        {HEADER + 12, 4, LOAD + HEADER + 1, "do not fit the file"},
        {HEADER + 20, 4, LOAD - 1, "outside of the file"},
        {HEADER + 20, 4, LOAD + KLUDGE_SIZE, "outside of the file"},
        {HEADER + 24, 4, LOAD + 1, "bss_end_addr"},
        {HEADER + 24, 4, UINT32_MAX, "no memory"},
        {HEADER + 28, 4, LOAD - 1, "is not in the kernel"},
        {HEADER + 28, 4, BSS_END, "is not in the kernel"},
    };
    uint8_t file[KLUDGE_SIZE];
    make_kludge(file);
    test_mutations(file, sizeof file, mutations, ARRAY_SIZE(mutations));

    put_header(file + HEADER, WITH_ADDRESSES | 0x10);
    assert_true(test_load_bytes(file, sizeof file) < 0);
    assert_non_null(strstr(trail_text(), "features that are unknown here (flags 0x10)"));
    put_header(file + HEADER, 3);
    assert_true(test_load_bytes(file, sizeof file) < 0);
    assert_non_null(strstr(trail_text(), "without load addresses, and is not ELF"));
    put_header(file + HEADER, WITH_ADDRESSES | 4);
    assert_int_equal(test_load_bytes(file, sizeof file), 0); /* a video mode is a wish */
}

static void refuses_64_bit_elf(void **unused)
{
    uint8_t file[ELF_FILE_SIZE] = {0};
    Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_phoff = sizeof header,
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 1,
    };
    memcpy(file, &header, sizeof header);
    put_header(file + ELF_TEXT, 3);
    assert_int_equal(test_load_bytes(file, sizeof file), -EINVAL);
    assert_non_null(strstr(trail_text(), "64-bit ELF"));
}

static void refuses_every_truncation(void **unused)
{
    uint8_t file[KLUDGE_SIZE];
    make_kludge(file);
    test_truncations(file, KLUDGE_SIZE);
    uint8_t elf[ELF_FILE_SIZE];
    make_elf(elf);
    test_truncations(elf, ELF_FILE_SIZE);
}

static void refuses_modules_without_room(void **unused)
{
    uint8_t file[KLUDGE_SIZE];
    make_kludge(file);
    struct boot_request request = make_request(file, sizeof file);
    request.initrd = (struct boot_file){"big", file, 0xc0000000};
    assert_int_equal(test_load(&request), -ENOMEM);
    request.initrd.size = SIZE_MAX / 2;
    assert_int_equal(test_load(&request), -EFBIG);
    request.initrd.size = 0;
    request.module_count = 65;
    assert_int_equal(test_load(&request), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_by_addresses),
        cmocka_unit_test(loads_the_whole_file_without_ends),
        cmocka_unit_test(loads_elf_with_modules),
        cmocka_unit_test(translates_a_virtual_entry),
        cmocka_unit_test(refuses_broken_addresses),
        cmocka_unit_test(refuses_64_bit_elf),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(refuses_modules_without_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
