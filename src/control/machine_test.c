/*
 * Kept machines: made whole or not at all (a failure, a kill, a full disk), found again, locked
 * against a second command, renamed, removed; and their files as hostile as they come.
 */
#include "control/machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"

static char root[] = "/tmp/doppel-machine-XXXXXX";

static int group_setup(void **state)
{
    char path[64];
    assert_non_null(mkdtemp(root));
    setenv("XDG_DATA_HOME", root, 1);
    snprintf(path, sizeof path, "%s/run", root);
    assert_int_equal(mkdir(path, 0700), 0);
    setenv("XDG_RUNTIME_DIR", path, 1);
    return chdir("/tmp");
}

static int group_teardown(void **state)
{
    return folder_remove(AT_FDCWD, root, NULL);
}

static struct vm_config config_with(const char *name, const char *value)
{
    struct vm_config config;
    vm_config_init(&config);
    assert_int_equal(vm_config_set(&config, "kernel", "vmlinuz"), 0);
    if (name) {
        assert_int_equal(vm_config_set(&config, name, value), 0);
    }
    return config;
}

static int create(const char *name, int (*fill)(void *, int, struct vm_config *),
                  struct machine **ret_machine)
{
    struct vm_config config = config_with("memory", "1G");
    const struct machine_plan plan = {
        .name = name, .config = &config, .fill = fill, .image = "debian:12"};
    int r = machine_create(&plan, ret_machine);
    vm_config_fini(&config);
    return r;
}

/* How many entries the folder of machines has, hidden ones too. */
static unsigned entries(void)
{
    char path[FOLDER_PATH];
    struct dirent **found;
    int base;
    assert_int_equal(folder_open(FOLDER_DATA, "machines", path, &base), 0);
    int count = scandirat(base, ".", &found, NULL, NULL);
    assert_true(count >= 2);
    for (int i = 0; i < count; i++) {
        free(found[i]);
    }
    free(found);
    close(base);
    return (unsigned)count - 2;
}

static void expect_names(const char *expected)
{
    struct machine_names names;
    char found[256] = "";
    assert_int_equal(machine_list(&names), 0);
    for (size_t i = 0; i < names.count; i++) {
        strcat(strcat(found, names.names[i]), " ");
    }
    machine_names_fini(&names);
    assert_string_equal(found, expected);
    unsigned count = 0;
    for (const char *at = expected; *at; at++) {
        count += *at == ' ';
    }
    assert_int_equal(entries(), count);
}

static int make_disk(void *owner, int folder, struct vm_config *config)
{
    close(openat(folder, "disk.raw", O_WRONLY | O_CREAT, 0600));
    return vm_config_set(config, "disk", "disk.raw,format=raw");
}

static void remove_machine(const char *name)
{
    struct machine *machine;
    assert_int_equal(machine_open(name, &machine), 0);
    assert_int_equal(machine_remove(machine), 0);
    machine_close(machine);
}

static void test_create(void **state)
{
    struct machine *machine, *again;
    struct vm_config config;
    struct machine_facts facts;
    assert_int_equal(create("web", make_disk, &machine), 0);
    assert_string_equal(machine->name, "web");
    assert_true(machine_exists("web") && machine_is_busy(machine));
    assert_int_equal(create("web", make_disk, &again), -EEXIST);
    machine_close(machine);
    expect_names("web ");

    assert_int_equal(machine_look("web", &machine), 0);
    assert_false(machine_is_busy(machine));
    vm_config_init(&config);
    assert_int_equal(machine_load(machine, &config, &facts), 0);
    assert_string_equal(config.name, "web");
    assert_string_equal(config.kernel, "/tmp/vmlinuz");
    assert_string_equal(config.disks[0].path, "disk.raw");
    assert_int_equal(config.memory_size, GIB(1));
    assert_string_equal(facts.image, "debian:12");
    assert_false(facts.removes);
    vm_config_fini(&config);
    machine_close(machine);
    assert_int_equal(machine_look("wed", &machine), -ENOENT);
    assert_non_null(strstr(trail_text(), "kept: web"));
    remove_machine("web");
    expect_names("");
}

static int fail_to_make(void *owner, int folder, struct vm_config *config)
{
    mkdirat(folder, "keys", 0700);
    return fail(-ENOSPC, "no room for the disk");
}

static int be_killed(void *owner, int folder, struct vm_config *config)
{
    mkdirat(folder, "keys", 0700);
    raise(SIGKILL);
    return 0;
}

static void in_child(void (*function)(void))
{
    pid_t child = fork();
    if (child == 0) {
        function();
        _exit(1);
    }
    waitpid(child, NULL, 0);
}

static void create_killed(void)
{
    struct machine *machine;
    assert_int_equal(create("dead", be_killed, &machine), 0);
}

static void test_failures(void **state)
{
    struct machine *machine;
    assert_int_equal(create("web", fail_to_make, &machine), -ENOSPC);
    expect_names("");
    in_child(create_killed);
    assert_int_equal(entries(), 1); /* what is left of it */
    expect_names("");               /* whoever looks removes it */
    assert_int_equal(create("../x", NULL, &machine), -EINVAL);
    struct vm_config config = config_with("append", "\xff");
    const struct machine_plan plan = {.name = "web", .config = &config};
    assert_int_equal(machine_create(&plan, &machine), -EINVAL);
    vm_config_fini(&config);
    expect_names("");
}

/* A disk that is full, as far as one process can make it so. */
static void test_full_disk(void **state)
{
    struct machine *machine;
    struct rlimit before, none = {0, RLIM_INFINITY};
    struct machine_facts facts = {0};
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    none.rlim_max = before.rlim_max;
    assert_int_equal(create("old", NULL, &machine), 0);
    struct vm_config config = config_with("cpus", "2");
    setrlimit(RLIMIT_FSIZE, &none);
    assert_int_equal(machine_save(machine, &config, &facts), -EFBIG);
    struct machine *other;
    assert_int_equal(create("new", NULL, &other), -EFBIG);
    setrlimit(RLIMIT_FSIZE, &before);
    vm_config_fini(&config);
    machine_close(machine);
    expect_names("old ");
    assert_int_equal(machine_look("old", &machine), 0);
    vm_config_init(&config);
    assert_int_equal(machine_load(machine, &config, &facts), 0); /* as it was */
    assert_int_equal(config.cpus, 1);
    vm_config_fini(&config);
    machine_close(machine);
    remove_machine("old");
}

static void test_lock(void **state)
{
    struct machine *machine, *second, *third;
    assert_int_equal(create("a", NULL, &machine), 0);
    assert_int_equal(machine_open("a", &second), -EBUSY);
    assert_non_null(strstr(trail_text(), "another command"));
    struct registry_claim claim;
    assert_int_equal(registry_claim("a", &claim), 0);
    assert_int_equal(machine_open("a", &second), -EBUSY);
    assert_non_null(strstr(trail_text(), "doppel stop a"));
    close(claim.lock);
    machine_close(machine);
    assert_int_equal(machine_open("a", &machine), 0);
    assert_int_equal(create("b", NULL, &second), 0);
    assert_int_equal(machine_rename(machine, "b"), -EEXIST);
    assert_int_equal(machine_rename(machine, "-"), -EINVAL);
    assert_string_equal(machine->name, "a");
    assert_int_equal(registry_claim("c", &claim), 0); /* runs, and is not kept */
    assert_int_equal(machine_rename(machine, "c"), -EEXIST);
    assert_int_equal(create("c", NULL, &third), -EEXIST);
    close(claim.lock);
    assert_int_equal(machine_rename(machine, "c"), 0);
    expect_names("b c ");
    assert_int_equal(machine_open("a", &third), -ENOENT);
    machine_close(machine);
    machine_close(second);
    remove_machine("b");
    remove_machine("c");
}

static void test_invented(void **state)
{
    struct machine *machines[30];
    for (size_t i = 0; i < ARRAY_SIZE(machines); i++) { /* more than there are words */
        assert_int_equal(create(NULL, NULL, &machines[i]), 0);
        assert_true(machine_exists(machines[i]->name));
    }
    for (size_t i = 0; i < ARRAY_SIZE(machines); i++) {
        assert_int_equal(machine_remove(machines[i]), 0);
        machine_close(machines[i]);
    }
    expect_names("");
}

static void test_broken_files(void **state)
{
#define HEAD "{\"version\":1,\"created\":1,\"remove\":false,\"image\":\"\",\"options\":"
    static const struct {
        const char *text, *part_of_sentence;
    } rows[] = {
        {"", "no JSON"},
        {"{}", "version"},
        {"{\"version\":2}", "another release"},
        {"{\"version\":\"1\"}", "another release"},
        {"{\"version\":1,\"version\":1}", "duplicate"},
        {"{\"version\":1}", "nothing else"},
        {HEAD "[],\"more\":1}", "nothing else"},
        {HEAD "{}}", "list of at most"},
        {HEAD "[1]}", "a name and a value"},
        {HEAD "[[]]}", "a name and a value"},
        {HEAD "[[\"cpus\",2]]}", "a name and a value"},
        {HEAD "[[\"cpus\",\"2\",\"3\"]]}", "a name and a value"},
        {HEAD "[[\"cpus\",\"99\"]]}", "1 to 8"},
        {HEAD "[[\"cpus\"]]}", "needs a value"},
        {HEAD "[[\"cpus\",\"1\\u0000\"]]}", "no JSON"},
        {HEAD "[[\"teleport\",\"on\"]]}", "no option --teleport"},
        {HEAD "[[\"name\",\"x\"]]}", "its folder"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
        struct vm_config config;
        struct machine_facts facts;
        vm_config_init(&config);
        trail_clear();
        assert_true(machine_file_read(rows[i].text, strlen(rows[i].text), &config, &facts) < 0);
        assert_non_null(strstr(trail_text(), rows[i].part_of_sentence));
        vm_config_fini(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),    cmocka_unit_test(test_failures),
        cmocka_unit_test(test_full_disk), cmocka_unit_test(test_lock),
        cmocka_unit_test(test_invented),  cmocka_unit_test(test_broken_files),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
