/* bzImage: a synthetic kernel that loads, and many that must not. */
#include "boot/test_board.h"

#include "boot/entry.h"
#include "boot/linux.h"
#include "x86/walk.h"

enum {
    CODE_OFFSET = 1024, /* boot sector and one setup sector */
    CODE_SIZE = 1040,
    FILE_SIZE = CODE_OFFSET + CODE_SIZE,
    PREFERRED = 0x1000000,
    ALIGNMENT = 0x200000,
    INIT_SIZE = 0x300000,
    COMMAND_LINE_MAX = 64,
};

static void make_kernel(uint8_t *file)
{
    memset(file, 0, FILE_SIZE);
    for (size_t i = CODE_OFFSET; i < FILE_SIZE; i++) {
        file[i] = (uint8_t)(i * 7);
    }
    file[LINUX_SETUP_SECTS] = 1;
    store_le32(file + LINUX_SYSSIZE, CODE_SIZE / 16);
    store_le16(file + LINUX_BOOT_FLAG, LINUX_BOOT_FLAG_VALUE);
    file[LINUX_HEADER_END] = 0x6a;
    store_le32(file + LINUX_MAGIC, LINUX_MAGIC_VALUE);
    store_le16(file + LINUX_VERSION, 0x20f);
    file[LINUX_LOADFLAGS] = LINUX_LOADED_HIGH | LINUX_CAN_USE_HEAP;
    store_le32(file + LINUX_INITRD_ADDR_MAX, 0x7fffffff);
    store_le32(file + LINUX_KERNEL_ALIGNMENT, ALIGNMENT);
    file[LINUX_RELOCATABLE] = 1;
    store_le16(file + LINUX_XLOADFLAGS, LINUX_XLF_KERNEL_64 | LINUX_XLF_ABOVE_4G);
    store_le32(file + LINUX_CMDLINE_SIZE, COMMAND_LINE_MAX);
    store_le64(file + LINUX_PREF_ADDRESS, PREFERRED);
    store_le32(file + LINUX_INIT_SIZE, INIT_SIZE);
}

static struct boot_request make_request(const uint8_t *file)
{
    return (struct boot_request){
        .kernel = {.name = "kernel", .data = file, .size = FILE_SIZE},
        .command_line = "console=ttyS0 quiet",
    };
}

static void check_entry_64(struct test_board *test, uint64_t entry)
{
    const struct cpu_state *state = &test->state;
    assert_int_equal(state->rip, entry);
    assert_int_equal(state->rflags, FLAG_FIXED);
    assert_true(cpu_state_is_64bit(state));
    assert_int_equal(state->cr0, CR0_PE | CR0_ET | CR0_PG);
    assert_int_equal(state->cr4, CR4_PAE);
    assert_int_equal(state->segment[CS].selector, ENTRY_CODE);
    assert_int_equal(state->segment[DS].selector, ENTRY_DATA);
    assert_int_equal(test_number(test, state->gdtr.base + ENTRY_CODE, 8), 0x00af9b000000ffff);
    assert_int_equal(test_number(test, state->gdtr.base + ENTRY_DATA, 8), 0x00cf93000000ffff);
    struct walk_mode mode = {
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .cr0 = (uint32_t)state->cr0,
        .efer = (uint32_t)state->efer,
        .physical_bits = 40,
    };
    static const uint64_t addresses[] = {0, 0x12345, 0x1000200, 0x3fffffff, 0xffffffff};
    for (size_t i = 0; i < ARRAY_SIZE(addresses); i++) {
        struct walk_result result;
        assert_true(walk(test->memory, &mode, NULL, addresses[i], PF_WRITE, &result));
        assert_int_equal(result.gpa, addresses[i]);
    }
}

static void loads_by_the_64_bit_protocol(void **unused)
{
    struct test_board test;
    uint8_t file[FILE_SIZE];
    uint8_t initrd[5000];
    memset(initrd, 0xcd, sizeof initrd);
    make_kernel(file);
    struct boot_request request = make_request(file);
    request.initrd = (struct boot_file){.name = "initrd", .data = initrd, .size = sizeof initrd};
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    check_entry_64(&test, PREFERRED + 0x200);
    test_assert_bytes(&test, PREFERRED, file + CODE_OFFSET, CODE_SIZE);

    gpa_t params = test.state.gpr[RSI];
    assert_int_equal(test_number(&test, params + LINUX_MAGIC, 4), LINUX_MAGIC_VALUE);
    assert_int_equal(test_number(&test, params + LINUX_TYPE_OF_LOADER, 1), 0xff);
    assert_int_equal(test_number(&test, params + LINUX_LOADFLAGS, 1), LINUX_LOADED_HIGH);
    assert_int_equal(test_number(&test, params + LINUX_CODE32_START, 4), PREFERRED);
    assert_int_equal(test_number(&test, params + LINUX_ACPI_RSDP, 8), TEST_RSDP);
    gpa_t command_line = test_number(&test, params + LINUX_CMD_LINE_PTR, 4);
    test_assert_bytes(&test, command_line, "console=ttyS0 quiet", 20);
    gpa_t initrd_base = test_number(&test, params + LINUX_RAMDISK_IMAGE, 4);
    assert_int_equal(initrd_base, TEST_RAM_END - 8192);
    assert_int_equal(test_number(&test, params + LINUX_RAMDISK_SIZE, 4), sizeof initrd);
    test_assert_bytes(&test, initrd_base, initrd, sizeof initrd);
    assert_int_equal(test_number(&test, params + LINUX_E820_ENTRIES, 1), ARRAY_SIZE(test_e820));
    assert_int_equal(test_number(&test, params + LINUX_E820_TABLE + 40, 8), TEST_RAM_BASE);
    assert_int_equal(test_number(&test, params + LINUX_E820_TABLE + 36, 4), E820_RESERVED);
    test_board_fini(&test);
}

static void loads_32_bit_kernels(void **unused)
{
    struct test_board test;
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    store_le16(file + LINUX_XLOADFLAGS, 0);
    struct boot_request request = make_request(file);
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    assert_int_equal(test.state.rip, PREFERRED);
    assert_int_equal(test.state.cr0, CR0_PE | CR0_ET);
    assert_int_equal(test.state.efer, 0);
    assert_int_equal(test.state.segment[CS].attributes, 0xc09b);
    assert_int_equal(test.state.gpr[RSI] % PAGE_SIZE, 0);
    test_board_fini(&test);
}

static void moves_when_the_preferred_place_is_taken(void **unused)
{
    static const struct e820_entry e820[] = {
        {0, TEST_RAM_LOW_END, E820_RAM},
        {TEST_RAM_BASE, PREFERRED - TEST_RAM_BASE, E820_RAM},
        {PREFERRED, 0x1000, E820_ACPI},
        {PREFERRED + 0x1000, TEST_RAM_END - PREFERRED - 0x1000, E820_RAM},
    };
    struct test_board test;
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    struct boot_request request = make_request(file);
    test_board_init(&test);
    test.board.e820 = e820;
    test.board.e820_count = ARRAY_SIZE(e820);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    assert_int_equal(test.state.rip, PREFERRED + ALIGNMENT + 0x200);

    file[LINUX_RELOCATABLE] = 0;
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), -EINVAL);
    test_board_fini(&test);
}

static void keeps_the_initrd_within_its_limits(void **unused)
{
    struct test_board test;
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    store_le16(file + LINUX_XLOADFLAGS, LINUX_XLF_KERNEL_64);
    store_le32(file + LINUX_INITRD_ADDR_MAX, PREFERRED + INIT_SIZE + 0x10ff);
    static const uint8_t initrd[0x2000];
    struct boot_request request = make_request(file);
    request.initrd = (struct boot_file){.name = "initrd", .data = initrd, .size = 0x1000};
    test_board_init(&test);
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    assert_int_equal(test_number(&test, test.state.gpr[RSI] + LINUX_RAMDISK_IMAGE, 4),
                     PREFERRED + INIT_SIZE);
    request.initrd.size = 0x2000; /* does not fit above the kernel: goes below it */
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    assert_int_equal(test_number(&test, test.state.gpr[RSI] + LINUX_RAMDISK_IMAGE, 4),
                     PREFERRED - 0x2000);
    test_board_fini(&test);
}

static void refuses_broken_headers(void **unused)
{
    static const struct test_mutation mutations[] = {
        {LINUX_VERSION, 2, 0x20b, "2.11"},
        {LINUX_HEADER_END, 1, 0, "0.00"},
        {LINUX_HEADER_END, 1, 0x40, "before init_size"},
        {LINUX_LOADFLAGS, 1, 0, "zImage"},
        {LINUX_SETUP_SECTS, 1, 255, "ends before its 32-bit code"},
        {LINUX_SYSSIZE, 4, UINT32_MAX, "truncated"},
        {LINUX_SYSSIZE, 4, 0, "too few for its entry"},
        {LINUX_PREF_ADDRESS, 8, UINT64_MAX - 4095, "prefers load address"},
        {LINUX_PREF_ADDRESS, 8, 0x1000, "prefers load address"},
        {LINUX_PREF_ADDRESS, 8, 0xfffff000, "more memory"},
        {LINUX_KERNEL_ALIGNMENT, 4, 0, "not a power of two"},
        {LINUX_KERNEL_ALIGNMENT, 4, 3, "not a power of two"},
        {LINUX_INIT_SIZE, 4, UINT32_MAX, "more memory"},
        {LINUX_CMDLINE_SIZE, 4, 5, "takes at most 5"},
        {LINUX_MAGIC, 4, 0, "boot sector"},
    };
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    test_mutations(file, sizeof file, mutations, ARRAY_SIZE(mutations));
}

static void refuses_every_truncation(void **unused)
{
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    /* The last paragraph of 16 bytes may be incomplete. */
    test_truncations(file, FILE_SIZE - 15);
}

static void refuses_what_does_not_fit(void **unused)
{
    uint8_t file[FILE_SIZE];
    make_kernel(file);
    struct boot_request request = make_request(file);
    request.initrd = (struct boot_file){.name = "big", .data = file, .size = SIZE_MAX / 2};
    assert_int_equal(test_load(&request), -ENOMEM);
    assert_non_null(strstr(trail_text(), "no room for initrd 'big'"));

    request = make_request(file);
    char line[COMMAND_LINE_MAX + 2];
    memset(line, 'a', sizeof line - 1);
    line[COMMAND_LINE_MAX + 1] = 0;
    request.command_line = line;
    assert_int_equal(test_load(&request), -E2BIG);
    line[COMMAND_LINE_MAX] = 0;
    assert_int_equal(test_load(&request), 0);

    request = make_request(file);
    request.modules = &request.kernel;
    request.module_count = 1;
    assert_int_equal(test_load(&request), -EINVAL);
    assert_non_null(strstr(trail_text(), "Multiboot"));

    struct test_board test;
    request = make_request(file);
    test_board_init(&test);
    test.board.scratch_size = 2 * PAGE_SIZE;
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), -ENOSPC);
    test_board_fini(&test);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loads_by_the_64_bit_protocol),
        cmocka_unit_test(loads_32_bit_kernels),
        cmocka_unit_test(moves_when_the_preferred_place_is_taken),
        cmocka_unit_test(keeps_the_initrd_within_its_limits),
        cmocka_unit_test(refuses_broken_headers),
        cmocka_unit_test(refuses_every_truncation),
        cmocka_unit_test(refuses_what_does_not_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
