/* Options: what is understood, what is refused, and that refusals say what would be right. */
#include "machine/config.h"

#include <errno.h>
#include <string.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "machine/vm_internal.h"

static void test_sizes(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes; /* 0: refused */
    } cases[] = {
        {"512M", MIB(512)},
        {"2G", GIB(2)},
        {"1.5G", MIB(1536)},
        {"64k", KIB(64)},
        {"0.25g", MIB(256)},
        {"1T", GIB(1024)},
        {".5G", MIB(512)},
        {"", 0},
        {"M", 0},
        {"512", 0},
        {"1.5.5G", 0},
        {"-1M", 0},
        {"5 M", 0},
        {"5MB", 0},
        {"0x10M", 0},
        {"99999999999999T", 0},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t bytes = 0;
        int r = size_parse(cases[i].text, &bytes);
        assert_int_equal(bytes, cases[i].bytes);
        assert_int_equal(r, cases[i].bytes ? 0 : -EINVAL);
    }
}

static const struct {
    const char *name, *value, *part_of_sentence;
} refused[] = {
    {"memory", "4M", "16M to 512G"},
    {"memory", "512", "512M or 1.5G"},
    {"cpus", "0", "1 to 8"},
    {"cpus", "9", "1 to 8"},
    {"cpus", "two", "1 to 8"},
    {"cpus", "", "1 to 8"},
    {"cpu-model", "v4", "v2"},
    {"engine", "kvm", "auto, translate, interp"},
    {"disk", "a.img,cash=none", "known: format, readonly, device, cache, serial, errors, backing)"},
    {"disk", "a.img,cache=never", "none, writethrough"},
    {"disk", "a.img,cache", "none, writethrough"},
    {"disk", "a.img,serial=a b", "no spaces"},
    {"disk", "a.img,serial=123456789012345678901", "1 to 20"},
    {"disk", "a.img,backing=b.img", "format=qcow2"},
    {"disk", "a.img,format=qcow2,backing", "no file"},
    {"disk",
     "a.img,format=qcow2,backing=1,backing=2,backing=3,backing=4,backing=5,backing=6"
     ",backing=7,backing=8,backing=9",
     "at most 8"},
    {"disk", "a.img,errors=ignore", "not one of report, stop"},
    {"disk", "a.img,device=ide", "known: virtio, nvme"},
    {"disk", "a.img,device", "known: virtio, nvme"},
    {"disk", "a.img,format=vmdk", "known: raw, qcow2"},
    {"disk", "a.img,format", "known: raw, qcow2"},
    {"disk", "a.img,readonly=yes", "no value"},
    {"disk", "a.img,readonly,readonly", "twice"},
    {"disk", "a.img,", "empty key"},
    {"disk", "", "no file"},
    {"share", "", "no folder"},
    {"share", "/srv", "needs tag=NAME"},
    {"share", "/srv,tag=", "needs tag=NAME"},
    {"share", "/srv,tag=a-tag-of-more-than-thirty-two-bytes", "up to 32 bytes"},
    {"share", "/srv,tag=x,readonly=yes", "no value"},
    {"share", "/srv,tag=x,cache=loose", "known: tag, readonly"},
    {"console", "pty", "stdio, virtio, file=PATH"},
    {"console", "file=", "stdio, virtio, file=PATH"},
    {"console", "stdio,mux", "unknown key"},
    {"net", "bridge", "none, user, tap"},
    {"net", "tap", "needs ifname"},
    {"net", "tap,ifname=", "needs ifname"},
    {"net", "tap,ifname=t,mtu=1500", "does not go"},
    {"net", "user,path=x", "does not go"},
    {"net", "user,speed=1", "known: ifname"},
    {"net", "socket", "needs path"},
    {"net", "user,mtu=1279", "1280 to 65520"},
    {"net", "user,mtu=65521", "1280 to 65520"},
    {"net", "user,mtu", "1280 to 65520"},
    {"net", "user,mac=53:54:00:12:34:56", "no address of one"},
    {"net", "user,mac=00:00:00:00:00:00", "no address of one"},
    {"net", "user,mac=52:54:00:12:34:5", "no address of one"},
    {"net", "user,mac=52-54-00-12-34-56", "no address of one"},
    {"vsock", "cid=5", "needs path"},
    {"vsock", "path=", "needs path"},
    {"vsock", "path=x,cid=2", "3 to"},
    {"vsock", "path=x,cid=4294967295", "3 to"},
    {"vsock", "path=x,port=1", "known: path, cid"},
    {"publish", "80", "8080:80"},
    {"publish", "0:80", "8080:80"},
    {"publish", "80:65536", "8080:80"},
    {"publish", "8080:80/sctp", "8080:80"},
    {"publish", "localhost:8080:80", "IPv4"},
    {"publish", "::1:8080:80", "IPv4"},
    {"publish", ":8080:80", "IPv4"},
    {"publish", "", "8080:80"},
    {"debug-exit", "65536", "1 to 65535"},
    {"debug-exit", "0xfg", "not a number"},
    {"name", "a b", "no spaces"},
    {"name", "", "1 to 64"},
    {"no-reboot", "yes", "takes no value"},
    {"kernel", NULL, "needs a value"},
};

static void test_refusals(void **state)
{
    struct vm_config config;
    vm_config_init(&config);
    for (size_t i = 0; i < ARRAY_SIZE(refused); i++) {
        trail_clear();
        assert_int_equal(vm_config_set(&config, refused[i].name, refused[i].value), -EINVAL);
        assert_non_null(strstr(trail_text(), refused[i].part_of_sentence));
    }
    assert_int_equal(vm_config_set(&config, "kernal", "x"), -ENOENT);
    /* nothing of it was taken */
    assert_int_equal(config.disk_count, 0);
    assert_int_equal(config.cpus, 1);
    assert_int_equal(config.memory_size, MIB(512));
    vm_config_fini(&config);
}

static void test_accepted(void **state)
{
    struct vm_config config;
    vm_config_init(&config);
    assert_int_equal(vm_config_check(&config), -EINVAL); /* no kernel */
    assert_int_equal(vm_config_set(&config, "kernel", "a"), 0);
    assert_int_equal(vm_config_set(&config, "kernel", "b"), 0);
    assert_string_equal(config.kernel, "b");
    assert_int_equal(vm_config_set(&config, "disk", "with,,comma.img,format=raw,readonly"), 0);
    assert_string_equal(config.disks[0].path, "with,comma.img");
    assert_true(config.disks[0].readonly && config.disks[0].format == DISK_FORMAT_RAW);
    assert_false(config.disks[0].is_nvme);
    assert_int_equal(vm_config_set(&config, "disk", "other.img,device=nvme"), 0);
    assert_true(config.disks[1].is_nvme);
    assert_int_equal(vm_config_set(&config, "share", "a,,b,tag=work,readonly"), 0);
    assert_string_equal(config.shares[0].path, "a,b");
    assert_string_equal(config.shares[0].tag, "work");
    assert_true(config.shares[0].readonly);
    assert_int_equal(vm_config_set(&config, "share", "c,tag=work"), -EINVAL); /* twice */
    assert_int_equal(config.share_count, 1);
    assert_int_equal(vm_config_set(&config, "module", "m,command=m a=1,,2"), 0);
    assert_string_equal(config.modules[0].command, "m a=1,2");
    assert_int_equal(vm_config_set(&config, "debug-exit", "0xf4"), 0);
    assert_int_equal(config.debug_exit_port, 0xf4);
    assert_int_equal(vm_config_set(&config, "console", "file=out.txt"), 0);
    assert_string_equal(config.console_path, "out.txt");
    assert_int_equal(vm_config_set(&config, "no-reboot", NULL), 0);
    assert_int_equal(vm_config_check(&config), 0);
    assert_int_equal(vm_config_set(&config, "initrd", "i"), 0);
    assert_int_equal(vm_config_check(&config), -EINVAL); /* initrd and modules */
    vm_config_fini(&config);
}

static void test_network(void **state)
{
    struct vm_config config;
    vm_config_init(&config);
    struct net_config *net = &config.net;
    assert_int_equal(vm_config_set(&config, "kernel", "k"), 0);
    assert_int_equal(net_config_kind(net), NET_NONE);
    assert_int_equal(vm_config_set(&config, "publish", "8080:80"), 0);
    assert_int_equal(vm_config_set(&config, "publish", "0.0.0.0:53:5353/udp"), 0);
    assert_int_equal(net_config_kind(net), NET_USER);
    assert_string_equal(net->forwards[0].address, "127.0.0.1");
    assert_int_equal(net->forwards[0].host_port, 8080);
    assert_int_equal(net->forwards[0].guest_port, 80);
    assert_false(net->forwards[0].is_udp);
    assert_string_equal(net->forwards[1].address, "0.0.0.0");
    assert_true(net->forwards[1].is_udp);
    assert_int_equal(vm_config_set(&config, "net", "user,mtu=1500,mac=52:54:00:Ab:cd:ef"), 0);
    assert_int_equal(net->mtu, 1500);
    assert_int_equal(net->address[3], 0xab);
    assert_int_equal(vm_config_check(&config), 0);
    assert_int_equal(vm_config_set(&config, "net", "socket,path=a,,b"), 0);
    assert_string_equal(net->target, "a,b");
    assert_false(net->has_address);
    assert_int_equal(vm_config_check(&config), -EINVAL); /* ports are the user-mode network's */
    for (unsigned i = 2; i < NET_FORWARDS_MAX; i++) {
        assert_int_equal(vm_config_set(&config, "publish", "1:1"), 0);
    }
    assert_int_equal(vm_config_set(&config, "publish", "1:1"), -EINVAL);
    assert_int_equal(vm_config_set(&config, "vsock", "cid=4294967294,path=a,,b"), 0);
    assert_string_equal(config.vsock.path, "a,b");
    assert_int_equal(config.vsock.cid, 4294967294u);
    assert_int_equal(vm_config_set(&config, "vsock", "path=v"), 0);
    assert_int_equal(config.vsock.cid, 3);
    vm_config_anchor(&config, "/here");
    unsigned found = 0;
    for (size_t i = 0; i < config.setting_count; i++) {
        const char *value = config.settings[i].value;
        found += value && (!strcmp(value, "socket,path=/here/a,,b") ||
                           !strcmp(value, "cid=4294967294,path=/here/a,,b") ||
                           !strcmp(value, "path=/here/v"));
    }
    assert_int_equal(found, 3);
    vm_config_fini(&config);
}

/* Each of these alone would let two runs differ. */
static void test_deterministic(void **state)
{
    static const char *const options[][2] = {{"cpus", "2"},         {"disk", "d"},
                                             {"cpu-model", "host"}, {"net", "user"},
                                             {"vsock", "path=v"},   {NULL, NULL}};
    for (unsigned i = 0; i < ARRAY_SIZE(options); i++) {
        struct vm_config config;
        vm_config_init(&config);
        assert_int_equal(vm_config_set(&config, "kernel", "k"), 0);
        assert_int_equal(vm_config_set(&config, "time", "instructions"), 0);
        if (options[i][0]) {
            assert_int_equal(vm_config_set(&config, options[i][0], options[i][1]), 0);
        }
        assert_int_equal(vm_config_check(&config), options[i][0] ? -EINVAL : 0);
        vm_config_fini(&config);
    }
}

static void test_bounds(void **state)
{
    struct vm_config config;
    vm_config_init(&config);
    for (int i = 0; i < VM_DISKS_MAX; i++) {
        assert_int_equal(vm_config_set(&config, "disk", "d"), 0);
    }
    assert_int_equal(vm_config_set(&config, "disk", "d"), -EINVAL);
    for (int i = 0; i < VM_MODULES_MAX; i++) {
        assert_int_equal(vm_config_set(&config, "module", "m"), 0);
    }
    assert_int_equal(vm_config_set(&config, "module", "m"), -EINVAL);
    vm_config_fini(&config);
}

/* What was set makes the same again; relative paths count from the folder that is given. */
static void test_settings(void **state)
{
    static const char *const options[][3] = {
        {"kernel", "boot/k", "/a,b/boot/k"},
        {"initrd", "/i", "/i"},
        {"append", "quiet", "quiet"},
        {"disk", "d.img,format=raw", "/a,,b/d.img,format=raw"},
        {"disk", "/e,,f,readonly", "/e,,f,readonly"},
        {"disk", "/d,format=qcow2,backing=b,,backing=c,backing=qcow2:d,backing=/e,backing=raw:/f",
         "/d,format=qcow2,backing=/a,,b/b,,backing=c,backing=qcow2:/a,,b/d,backing=/e,"
         "backing=raw:/f"},
        {"console", "file=log", "file=/a,,b/log"},
        {"console", "stdio", "stdio"},
        {"no-reboot", NULL, NULL},
    };
    struct vm_config config, again;
    vm_config_init(&config);
    vm_config_init(&again);
    assert_int_equal(vm_config_set(&config, "name", "web"), 0); /* is no setting */
    assert_int_equal(vm_config_set(&config, "cpus", "99"), -EINVAL);
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        assert_int_equal(vm_config_set(&config, options[i][0], options[i][1]), 0);
    }
    vm_config_anchor(&config, "/a,b");
    assert_int_equal(config.setting_count, ARRAY_SIZE(options));
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
        const struct vm_setting *setting = &config.settings[i];
        assert_string_equal(setting->name, options[i][0]);
        assert_string_equal(setting->value ? setting->value : "",
                            options[i][2] ? options[i][2] : "");
        assert_int_equal(vm_config_set(&again, setting->name, setting->value), 0);
    }
    assert_string_equal(again.kernel, "/a,b/boot/k");
    assert_string_equal(again.disks[0].path, "/a,b/d.img");
    assert_int_equal(again.disks[2].backing_count, 4);
    assert_string_equal(again.disks[2].backing[0], "/a,b/b,backing=c");
    assert_string_equal(again.disks[2].backing[3], "raw:/f");
    assert_string_equal(again.console_path, "/a,b/log");
    assert_true(again.no_reboot);
    while (config.setting_count < VM_SETTINGS_MAX) {
        assert_int_equal(vm_config_set(&config, "cpus", "2"), 0);
    }
    assert_int_equal(vm_config_set(&config, "cpus", "3"), -E2BIG);
    assert_int_equal(config.cpus, 2);
    vm_config_fini(&again);
    vm_config_fini(&config);
}

static void test_names(void **state)
{
    static const char *const good[] = {"a", "Web-2", "debian12.1_x", "0+0"};
    static const char *const bad[] = {"",   "a b", "a/b", ".a",       "-a",
                                      "_a", "a\n", "a\"", "\xc3\xa4", "a$"};
    char longest[66];
    memset(longest, 'n', 65);
    longest[65] = 0;
    assert_int_equal(vm_name_check(longest), -EINVAL);
    assert_int_equal(vm_name_check(longest + 1), 0);
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        assert_int_equal(vm_name_check(good[i]), 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(vm_name_check(bad[i]), -EINVAL);
    }
}

/* For every memory size: RAM adds up, nothing overlaps, the map given to the guest is sorted. */
static void test_address_map(void **state)
{
    static const uint64_t sizes[] = {MIB(16), MIB(512), GIB(3), GIB(3) + MIB(1), GIB(512)};
    for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
        struct board_map map;
        board_map_make(sizes[i], &map);
        assert_int_equal(map.ram_below_4g + map.ram_above_4g, sizes[i]);
        uint64_t end = 0;
        for (size_t j = 0; j < map.e820_count; j++) {
            assert_true(map.e820[j].base >= end);
            end = map.e820[j].base + map.e820[j].size;
        }
        end = 0;
        for (size_t j = 0; j < map.ram_count; j++) {
            assert_true(map.ram[j].base >= end);
            assert_int_equal(map.ram[j].base % PAGE_SIZE, 0);
            end = map.ram[j].base + map.ram[j].size;
        }
        assert_true(map.window64_base >= end);
        assert_true(map.window64_base + map.window64_size <= UINT64_C(1) << 40);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_accepted),    cmocka_unit_test(test_deterministic),
        cmocka_unit_test(test_network),     cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_address_map), cmocka_unit_test(test_settings),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
