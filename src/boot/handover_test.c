/*
 * What a guest finds in its memory, byte for byte as it was given: the kernel, an initrd of any
 * length wherever it goes, and the command line, by each protocol.
 */
#include "boot/test_board.h"

#include <elf.h>

#include "boot/linux.h"

enum {
    KERNEL_SIZE = (2 << 20) + 77, /* of the part that is loaded */
    KERNEL = 0x1000000,
    KERNEL_OFFSET = 4096, /* in the file, so that there is room for every header */
    COMMAND_LINE_MAX = 2047,
    INITRD_MAX = (12 << 20) + 333,
    ODD_END = TEST_RAM_END - 0x123, /* RAM that ends inside a page */
};

struct found {
    gpa_t initrd;
    uint64_t initrd_size;
    gpa_t command_line;
};

/* One protocol: how its file begins, and where the guest is told to look. */
struct protocol {
    const char *prefix; /* of the command line: a Multiboot kernel's own name */
    void (*make)(uint8_t *file);
    void (*look)(struct test_board *test, struct found *ret_found);
};

static uint8_t file[KERNEL_OFFSET + KERNEL_SIZE];
static uint8_t initrd[INITRD_MAX];

static void fill(uint8_t *bytes, size_t size, uint64_t seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        bytes[i] = (uint8_t)(seed >> 56);
    }
}

static void make_bzimage(uint8_t *bytes)
{
    bytes[LINUX_SETUP_SECTS] = KERNEL_OFFSET / 512 - 1;
    store_le32(bytes + LINUX_SYSSIZE, (KERNEL_SIZE + 15) / 16);
    store_le16(bytes + LINUX_BOOT_FLAG, LINUX_BOOT_FLAG_VALUE);
    bytes[LINUX_HEADER_END] = 0x6a;
    store_le32(bytes + LINUX_MAGIC, LINUX_MAGIC_VALUE);
    store_le16(bytes + LINUX_VERSION, 0x20f);
    bytes[LINUX_LOADFLAGS] = LINUX_LOADED_HIGH;
    store_le32(bytes + LINUX_INITRD_ADDR_MAX, 0x7fffffff);
    store_le32(bytes + LINUX_KERNEL_ALIGNMENT, 0x200000);
    bytes[LINUX_RELOCATABLE] = 1;
    store_le16(bytes + LINUX_XLOADFLAGS, LINUX_XLF_KERNEL_64 | LINUX_XLF_ABOVE_4G);
    store_le32(bytes + LINUX_CMDLINE_SIZE, COMMAND_LINE_MAX);
    store_le64(bytes + LINUX_PREF_ADDRESS, KERNEL);
    store_le32(bytes + LINUX_INIT_SIZE, KERNEL_SIZE);
}

static void look_linux(struct test_board *test, struct found *ret_found)
{
    gpa_t params = test->state.gpr[RSI];
    *ret_found = (struct found){
        .initrd = test_number(test, params + LINUX_RAMDISK_IMAGE, 4) |
                  test_number(test, params + LINUX_EXT_RAMDISK_IMAGE, 4) << 32,
        .initrd_size = test_number(test, params + LINUX_RAMDISK_SIZE, 4) |
                       test_number(test, params + LINUX_EXT_RAMDISK_SIZE, 4) << 32,
        .command_line = test_number(test, params + LINUX_CMD_LINE_PTR, 4),
    };
}

static void make_vmlinux(uint8_t *bytes)
{
    const Elf64_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_X86_64,
        .e_entry = KERNEL,
        .e_phoff = sizeof header,
        .e_phentsize = sizeof(Elf64_Phdr),
        .e_phnum = 1,
    };
    const Elf64_Phdr segment = {PT_LOAD, 5,           KERNEL_OFFSET, KERNEL,
                                KERNEL,  KERNEL_SIZE, KERNEL_SIZE,   4096};
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, &segment, sizeof segment);
}

static void make_pvh(uint8_t *bytes)
{
    enum { NOTE = 512, NOTE_SIZE = 20 };
    const Elf64_Phdr note = {PT_NOTE, 4, NOTE, 0, 0, NOTE_SIZE, NOTE_SIZE, 4};
    make_vmlinux(bytes);
    store_le16(bytes + offsetof(Elf64_Ehdr, e_phnum), 2);
    memcpy(bytes + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr), &note, sizeof note);
    store_le32(bytes + NOTE, 4);
    store_le32(bytes + NOTE + 4, 4);
    store_le32(bytes + NOTE + 8, 18); /* XEN_ELFNOTE_PHYS32_ENTRY */
    memcpy(bytes + NOTE + 12, "Xen", 4);
    store_le32(bytes + NOTE + 16, KERNEL);
}

static void look_pvh(struct test_board *test, struct found *ret_found)
{
    gpa_t info = test->state.gpr[RBX];
    *ret_found = (struct found){.command_line = test_number(test, info + 24, 8)};
    if (test_number(test, info + 12, 4)) {
        gpa_t module = test_number(test, info + 16, 8);
        ret_found->initrd = test_number(test, module, 8);
        ret_found->initrd_size = test_number(test, module + 8, 8);
    }
    assert_int_equal(test_number(test, info + 8, 4), 0); /* flags */
    assert_int_equal(test_number(test, info + 48, 4), test->board.e820_count);
    gpa_t map = test_number(test, info + 40, 8);
    for (size_t i = 0; i < test->board.e820_count; i++) {
        const struct e820_entry *entry = &test->board.e820[i];
        assert_int_equal(test_number(test, map + 24 * i, 8), entry->base);
        assert_int_equal(test_number(test, map + 24 * i + 8, 8), entry->size);
        assert_int_equal(test_number(test, map + 24 * i + 16, 8), entry->type);
    }
}

static void make_multiboot(uint8_t *bytes)
{
    enum { MAGIC = 0x1badb002, HEADER = 1024 };
    const Elf32_Ehdr header = {
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB, EV_CURRENT},
        .e_type = ET_EXEC,
        .e_machine = EM_386,
        .e_entry = KERNEL,
        .e_phoff = sizeof header,
        .e_phentsize = sizeof(Elf32_Phdr),
        .e_phnum = 1,
    };
    const Elf32_Phdr segment = {PT_LOAD,     KERNEL_OFFSET, KERNEL, KERNEL,
                                KERNEL_SIZE, KERNEL_SIZE,   5,      4096};
    memcpy(bytes, &header, sizeof header);
    memcpy(bytes + sizeof header, &segment, sizeof segment);
    store_le32(bytes + HEADER, MAGIC);
    store_le32(bytes + HEADER + 8, 0u - MAGIC);
}

static void look_multiboot(struct test_board *test, struct found *ret_found)
{
    gpa_t info = test->state.gpr[RBX];
    *ret_found = (struct found){.command_line = test_number(test, info + 16, 4)};
    if (test_number(test, info + 20, 4)) {
        gpa_t module = test_number(test, info + 24, 4);
        ret_found->initrd = test_number(test, module, 4);
        ret_found->initrd_size = test_number(test, module + 4, 4) - ret_found->initrd;
    }
    gpa_t map = test_number(test, info + 48, 4);
    uint64_t length = test_number(test, info + 44, 4), at = 0;
    for (size_t i = 0; i < test->board.e820_count; i++) {
        const struct e820_entry *entry = &test->board.e820[i];
        assert_int_equal(test_number(test, map + at + 4, 8), entry->base);
        assert_int_equal(test_number(test, map + at + 12, 8), entry->size);
        assert_int_equal(test_number(test, map + at + 20, 4), entry->type);
        at += test_number(test, map + at, 4) + 4;
    }
    assert_int_equal(at, length);
}

static const struct protocol protocols[] = {
    {"", make_bzimage, look_linux},
    {"", make_vmlinux, look_linux},
    {"", make_pvh, look_pvh},
    {"dir/the kernel ", make_multiboot, look_multiboot},
};

static void hand_over(const struct protocol *protocol, size_t initrd_size, const char *command_line)
{
    static const struct e820_entry e820[] = {
        {0, TEST_RAM_LOW_END, E820_RAM},
        {TEST_RSDP, TEST_RAM_BASE - TEST_RSDP, E820_RESERVED},
        {TEST_RAM_BASE, ODD_END - TEST_RAM_BASE, E820_RAM},
    };
    struct test_board test;
    struct found found;
    struct boot_request request = {
        .kernel = {.name = "dir/the kernel", .data = file, .size = sizeof file},
        .initrd = {.name = "initrd", .data = initrd, .size = initrd_size},
        .command_line = command_line,
    };
    test_board_init(&test);
    test.board.e820 = e820;
    assert_int_equal(boot_load(test.memory, &test.board, &request, &test.state), 0);
    test_assert_bytes(&test, KERNEL, file + KERNEL_OFFSET, KERNEL_SIZE);
    protocol->look(&test, &found);
    assert_int_equal(found.initrd_size, initrd_size);
    if (initrd_size) {
        assert_int_equal(found.initrd % PAGE_SIZE, 0);
        assert_in_range(found.initrd, TEST_RAM_BASE, ODD_END - initrd_size);
        test_assert_bytes(&test, found.initrd, initrd, initrd_size);
    }
    size_t prefix = strlen(protocol->prefix);
    test_assert_bytes(&test, found.command_line, protocol->prefix, prefix);
    test_assert_bytes(&test, found.command_line + prefix, command_line, strlen(command_line) + 1);
    test_board_fini(&test);
}

static void make_kernel(const struct protocol *protocol)
{
    memset(file, 0, KERNEL_OFFSET);
    fill(file + KERNEL_OFFSET, KERNEL_SIZE, 1);
    protocol->make(file);
}

static void initrds_of_every_length(void **unused)
{
    static const size_t sizes[] = {0,    1,    511,     4095,          4096,
                                   4097, 8191, 1000003, 3 * (1 << 20), INITRD_MAX};
    fill(initrd, sizeof initrd, 2);
    for (size_t i = 0; i < ARRAY_SIZE(protocols); i++) {
        make_kernel(&protocols[i]);
        for (size_t n = 0; n < ARRAY_SIZE(sizes); n++) {
            hand_over(&protocols[i], sizes[n], "console=ttyS0");
        }
    }
}

static void command_lines_of_every_length(void **unused)
{
    static const size_t lengths[] = {0, 1, 255, 256, COMMAND_LINE_MAX - 1, COMMAND_LINE_MAX};
    char line[COMMAND_LINE_MAX + 2];
    for (size_t i = 0; i < ARRAY_SIZE(protocols); i++) {
        make_kernel(&protocols[i]);
        for (size_t n = 0; n < ARRAY_SIZE(lengths); n++) {
            for (size_t k = 0; k < lengths[n]; k++) {
                line[k] = (char)(1 + (k + n) % 255); /* any byte but the last one */
            }
            line[lengths[n]] = 0;
            hand_over(&protocols[i], 100, line);
        }
    }
}

/* Linux cuts its command line off without a word: who loads it must not let that happen. */
static void a_line_that_is_too_long_is_refused(void **unused)
{
    char line[COMMAND_LINE_MAX + 2];
    memset(line, 'a', sizeof line - 1);
    line[COMMAND_LINE_MAX + 1] = 0;
    for (size_t i = 0; i < 2; i++) {
        struct boot_request request = {
            .kernel = {.name = "kernel", .data = file, .size = sizeof file}, .command_line = line};
        make_kernel(&protocols[i]);
        assert_int_equal(test_load(&request), -E2BIG);
        assert_non_null(strstr(trail_text(), "takes at most 2047"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(initrds_of_every_length),
        cmocka_unit_test(command_lines_of_every_length),
        cmocka_unit_test(a_line_that_is_too_long_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
