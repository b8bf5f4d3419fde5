/*
 * The kernel of a disk: which one is found, with what command line, by a process that cannot be
 * fooled into taking long or much.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/gpt.h"
#include "image/kernel_find.h"
#include "image/kernel_read.h"

static char folder[64];

static int set_up(void **state)
{
    snprintf(folder, sizeof folder, "/tmp/kernel_read_test.XXXXXX");
    return !mkdtemp(folder);
}

static void shell(const char *format, const char *rest)
{
    char command[2048];
    snprintf(command, sizeof command, "cd %s && PATH=$PATH:/sbin:/usr/sbin && %s%s", folder, format,
             rest);
    assert_int_equal(system(command), 0);
}

static int tear_down(void **state)
{
    shell("rm -rf ", folder);
    return 0;
}

/* A disk of what is in root/. */
static void make_disk(void)
{
    shell("rm -f disk && mke2fs -q -t ext4 -O ^has_journal -d root disk 8M", "");
}

static int open_disk(void *owner, struct disk **ret_disk)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, (const char *)owner);
    const struct disk_options options = {
        .format = DISK_FORMAT_RAW, .readonly = true, .synchronous = true};
    return disk_open(path, &options, ret_disk);
}

static void the_newest_kernel_is_found(void **state)
{
    struct kernel kernel;
    shell("mkdir -p root/boot/grub && cd root/boot && for v in 6.1.0-9-amd64 6.1.0-10-amd64 "
          "6.1.0-2-amd64; do echo kernel $v >vmlinuz-$v; echo initrd $v >initrd.img-$v; done; ",
          "echo x >vmlinuz-6.1.0-99-amd64.dpkg-new; echo x >vmlinuz-6.1.0-11-amd64; "
          "printf 'menuentry \"a\" {\\n  linux /boot/vmlinuz-6.1.0-9-amd64 root=/dev/old\\n}\\n"
          "menuentry \"b\" {\\n\\tlinux   /boot/vmlinuz-6.1.0-10-amd64 root=UUID=1 ro $extra "
          "\"quoted\" console=tty0\\n}\\n' >grub/grub.cfg");
    make_disk();
    assert_int_equal(kernel_read(open_disk, "disk", &kernel), 0);
    /* 6.1.0-11 has no initrd yet: it is about to be installed */
    assert_string_equal(kernel.version, "6.1.0-10-amd64");
    assert_string_equal(kernel.command_line, "root=UUID=1 ro quoted console=tty0 console=ttyS0");
    assert_int_equal(kernel.kernel_size, strlen("kernel 6.1.0-10-amd64\n"));
    assert_memory_equal(kernel.kernel, "kernel 6.1.0-10-amd64\n", kernel.kernel_size);
    assert_memory_equal(kernel.initrd, "initrd 6.1.0-10-amd64\n", kernel.initrd_size);
    kernel_fini(&kernel);
}

static void without_configuration_there_is_a_command_line(void **state)
{
    struct kernel kernel;
    shell("rm -rf root && mkdir -p root/boot && cd root/boot && echo k >vmlinuz-6.1", "");
    make_disk();
    assert_int_equal(kernel_read(open_disk, "disk", &kernel), 0);
    assert_string_equal(kernel.command_line, "root=/dev/vda ro console=ttyS0");
    assert_null(kernel.initrd);
    kernel_fini(&kernel);
    /* behind a partition table */
    static struct gpt gpt = {.count = 1};
    uint8_t head[GPT_HEAD], tail[GPT_TAIL];
    gpt.partitions[0] = (struct gpt_partition){
        .type = gpt_type_root, .offset = MIB(1), .size = MIB(8), .number = 1};
    gpt_write(&gpt, MIB(10), head, tail);
    shell("truncate -s 10M gpt && dd if=disk of=gpt bs=1M seek=1 conv=notrunc status=none", "");
    char path[128];
    snprintf(path, sizeof path, "%s/gpt", folder);
    FILE *file = fopen(path, "r+");
    assert_int_equal(fwrite(head, 1, sizeof head, file), sizeof head);
    fclose(file);
    assert_int_equal(kernel_read(open_disk, "gpt", &kernel), 0);
    assert_string_equal(kernel.command_line,
                        "root=PARTUUID=00000000-0000-0000-0000-000000000000 ro console=ttyS0");
    kernel_fini(&kernel);
}

static void expect_refusal(const char *disk, int error, const char *words)
{
    struct kernel kernel;
    char name[32];
    snprintf(name, sizeof name, "%s", disk);
    assert_int_equal(kernel_read(open_disk, name, &kernel), error);
    assert_non_null(strstr(trail_text(), words));
    assert_null(kernel.kernel);
    trail_clear();
}

static void what_has_no_kernel_is_refused(void **state)
{
    shell("rm -rf root && mkdir -p root/boot && echo x >root/boot/other", "");
    make_disk();
    expect_refusal("disk", -ENOENT, "no file system with a Linux kernel in /boot");
    shell("truncate -s 1M empty && truncate -s 4K small", "");
    expect_refusal("empty", -EINVAL, "neither partitions nor an ext4 file system");
    expect_refusal("small", -EINVAL, "too small");
    expect_refusal("missing", -ENOENT, "missing");
    /* a kernel that is a folder, and one that is a link to itself */
    shell("rm -rf root && mkdir -p root/boot/vmlinuz-1 && ln -s vmlinuz-2 root/boot/vmlinuz-2", "");
    make_disk();
    expect_refusal("disk", -ENOENT, "no file system");
    /* more than any kernel has */
    shell("rm -rf root && mkdir -p root/boot && echo k >root/boot/vmlinuz-1", "");
    make_disk();
    shell("debugfs -w -R 'set_inode_field /boot/vmlinuz-1 size 100000000000' disk 2>/dev/null", "");
    expect_refusal("disk", -ENOENT, "no file system");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_newest_kernel_is_found),
        cmocka_unit_test(without_configuration_there_is_a_command_line),
        cmocka_unit_test(what_has_no_kernel_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
