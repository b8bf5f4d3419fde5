/* The folders of machine.h. */
#include "control/machine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

static const char part[] = "machines", lock_name[] = "lock", config_name[] = "machine.json";
/* An empty file in the folder of a machine that nobody keeps: it goes when nobody holds its lock.
 */
static const char drop_name[] = "drop";
/* Commands hold the lock for a moment; a machine that runs, for as long as it does. */
enum { TRIES = 100, TRY_NS = 20000000, INVENTIONS = 1000 };

CLEANUP_DEFINE(struct machine, machine_close)

static struct machine *machine_new(void)
{
    struct machine *machine = calloc(1, sizeof *machine);
    ASSERT(machine);
    machine->base = machine->folder = machine->lock = -1;
    return machine;
}

void machine_close(struct machine *machine)
{
    if (machine) {
        cleanup_close(&machine->lock);
        cleanup_close(&machine->folder);
        cleanup_close(&machine->base);
        free(machine);
    }
}

/* ---- names ---- */

static int is_machine(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static bool is_left_over(const struct dirent *entry)
{
    return !strncmp(entry->d_name, ".new-", 5) || !strncmp(entry->d_name, ".old-", 5);
}

/* Whoever makes or removes a folder holds its lock. */
static void remove_left_over(int base, const char *name)
{
    CLEANUP_FD int folder = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        return;
    }
    CLEANUP_FD int lock = openat(folder, lock_name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    bool is_held = lock >= 0 && flock(lock, LOCK_EX | LOCK_NB);
    if (!is_held && folder_remove(base, name, lock_name)) {
        trail_clear(); /* the next one tries again */
    }
}

/* A machine that has ended and is not kept: out of sight first, under its lock. */
static void drop_ended(int base, const char *name)
{
    char path[REGISTRY_NAME + sizeof drop_name + 1], aside[REGISTRY_NAME + 8];
    struct stat facts, named;
    snprintf(path, sizeof path, "%.64s/%s", name, drop_name);
    if (fstatat(base, path, &facts, AT_SYMLINK_NOFOLLOW)) {
        return;
    }
    CLEANUP_FD int folder = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    CLEANUP_FD int lock =
        folder >= 0 ? openat(folder, lock_name, O_RDWR | O_NOFOLLOW | O_CLOEXEC) : -1;
    snprintf(aside, sizeof aside, ".old-%.64s", name);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB)) {
        return;
    }
    /* Somebody else may have dropped it before we had the lock, and made another of that name. */
    bool is_same = !fstat(folder, &facts) && !fstatat(base, name, &named, AT_SYMLINK_NOFOLLOW) &&
                   facts.st_ino == named.st_ino && facts.st_dev == named.st_dev;
    if (is_same && !renameat(base, name, base, aside) && folder_remove(base, aside, lock_name)) {
        trail_clear();
    }
}

/*
 * Nobody sweeps between the making of a folder and the locking of its lock: the folder of all has a
 * lock, too. Where it cannot be had, -1 stays, and a command may fail at that moment.
 */
static void sweep_lock(int base, int *ret_lock)
{
    CLEANUP_FD int lock = openat(base, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock >= 0 && !flock(lock, LOCK_EX)) {
        *ret_lock = TAKE_FD(lock);
    }
}

static void sweep(int base)
{
    CLEANUP_FD int lock = -1;
    sweep_lock(base, &lock);
    struct dirent **entries;
    int count = scandirat(base, ".", &entries, NULL, NULL);
    for (int i = 0; i < count; i++) {
        if (is_left_over(entries[i])) {
            remove_left_over(base, entries[i]->d_name);
        } else if (is_machine(entries[i])) {
            drop_ended(base, entries[i]->d_name);
        }
        free(entries[i]);
    }
    if (count >= 0) {
        free(entries);
    }
}

int machine_list(struct machine_names *ret_names)
{
    char path[FOLDER_PATH];
    struct dirent **entries;
    CLEANUP_FD int base = -1;
    *ret_names = (struct machine_names){0};
    int r = folder_open(FOLDER_DATA, part, path, &base);
    if (r) {
        return r;
    }
    sweep(base);
    int count = scandirat(base, ".", &entries, is_machine, alphasort);
    if (count < 0) {
        return fail(-errno, "look into the folder of machines, %s: %m", path);
    }
    ret_names->names = calloc((size_t)count + 1, sizeof *ret_names->names);
    ASSERT(ret_names->names);
    for (int i = 0; i < count; i++) {
        if (!vm_name_check(entries[i]->d_name)) {
            strcpy(ret_names->names[ret_names->count++], entries[i]->d_name);
        }
        free(entries[i]);
    }
    trail_clear(); /* of folders that are none of ours */
    free(entries);
    return 0;
}

void machine_names_fini(struct machine_names *names)
{
    free(names->names);
    *names = (struct machine_names){0};
}

static int fail_unknown(const char *name)
{
    char known[1024] = "";
    struct machine_names names;
    if (machine_list(&names)) {
        trail_clear();
    }
    for (size_t i = 0; i < names.count; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names.names[i]);
    }
    machine_names_fini(&names);
    return fail(-ENOENT, "no machine '%.100s' is kept (kept: %s)", name, *known ? known : "none");
}

/* ---- opening ---- */

int machine_look(const char *name, struct machine **ret_machine)
{
    char path[FOLDER_PATH];
    CLEANUP(machine_close) struct machine *machine = machine_new();
    int r = folder_open(FOLDER_DATA, part, path, &machine->base);
    if (r) {
        return r;
    }
    if (vm_name_check(name)) {
        return fail(-EINVAL, "'%.100s' is no name of a machine", name);
    }
    machine->folder = openat(machine->base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (machine->folder < 0) {
        return errno == ENOENT ? fail_unknown(name)
                               : fail(-errno, "open the folder of machine '%s': %m", name);
    }
    strcpy(machine->name, name);
    snprintf(machine->path, sizeof machine->path, "%s/%s", path, name);
    *ret_machine = TAKE(machine);
    return 0;
}

bool machine_exists(const char *name)
{
    char path[FOLDER_PATH];
    struct stat facts;
    CLEANUP_FD int base = -1;
    if (vm_name_check(name) || folder_open(FOLDER_DATA, part, path, &base)) {
        trail_clear();
        return false;
    }
    return !fstatat(base, name, &facts, AT_SYMLINK_NOFOLLOW);
}

static int lock_open(const struct machine *machine)
{
    int lock = openat(machine->folder, lock_name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    return lock >= 0 ? lock : fail(-errno, "open the lock of machine '%s': %m", machine->name);
}

bool machine_is_busy(const struct machine *machine)
{
    CLEANUP_FD int lock = openat(machine->folder, lock_name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    return lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
}

/* Wait a moment for another command; a machine that runs is told at once. */
static int lock_take(struct machine *machine)
{
    const struct timespec moment = {.tv_nsec = TRY_NS};
    machine->lock = lock_open(machine);
    if (machine->lock < 0) {
        return machine->lock;
    }
    for (unsigned i = 0; i < TRIES; i++) {
        if (!flock(machine->lock, LOCK_EX | LOCK_NB)) {
            return 0;
        }
        if (errno != EWOULDBLOCK) {
            return fail(-errno, "lock machine '%s': %m", machine->name);
        }
        if (registry_is_running(machine->name)) {
            return fail(-EBUSY, "machine '%s' runs: 'doppel stop %s' stops it", machine->name,
                        machine->name);
        }
        nanosleep(&moment, NULL);
    }
    return fail(-EBUSY, "another command is at work on machine '%s'", machine->name);
}

/* Is the folder that was opened still the one of that name? */
bool machine_is_current(const struct machine *machine)
{
    struct stat ours, named;
    return !fstat(machine->folder, &ours) &&
           !fstatat(machine->base, machine->name, &named, AT_SYMLINK_NOFOLLOW) &&
           ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

int machine_open(const char *name, struct machine **ret_machine)
{
    CLEANUP(machine_close) struct machine *machine = NULL;
    int r = machine_look(name, &machine);
    if (!r) {
        r = lock_take(machine);
    }
    if (r) {
        return r;
    }
    if (!machine_is_current(machine)) { /* renamed or removed while we waited */
        return fail_unknown(name);
    }
    *ret_machine = TAKE(machine);
    return 0;
}

/* ---- what it is made of ---- */

int machine_load(const struct machine *machine, struct vm_config *config,
                 struct machine_facts *ret_facts)
{
    char *text = NULL;
    size_t size;
    int r = file_load(machine->folder, config_name, MACHINE_FILE_MAX, &text, &size);
    if (!r) {
        r = machine_file_read(text, size, config, ret_facts);
    }
    free(text);
    if (!r) {
        r = vm_config_set(config, "name", machine->name);
    }
    return r ? fail(r, "machine '%s' (%s/%s)", machine->name, machine->path, config_name) : 0;
}

int machine_save(const struct machine *machine, const struct vm_config *config,
                 const struct machine_facts *facts)
{
    char *text = NULL;
    int r = machine_file_write(config, facts, &text);
    if (!r) {
        r = file_replace(machine->folder, config_name, text, strlen(text));
    }
    free(text);
    return r ? fail(r, "save machine '%s'", machine->name) : 0;
}

void machine_ssh_user(const struct machine *machine, char ret_user[MACHINE_USER])
{
    char *text = NULL;
    size_t size = 0;
    if (file_load(machine->folder, "ssh-user", MACHINE_USER - 1, &text, &size)) {
        trail_clear();
    }
    snprintf(ret_user, MACHINE_USER, "%s", size ? text : "debian");
    ret_user[strcspn(ret_user, "\n")] = '\0';
    free(text);
}

/* ---- making ---- */

/* The folder under a name that nobody looks at, locked. */
static int begin(struct machine *machine, char aside[REGISTRY_NAME])
{
    CLEANUP_FD int lock = -1;
    sweep_lock(machine->base, &lock);
    for (unsigned i = 0; i < TRIES; i++) {
        snprintf(aside, REGISTRY_NAME, ".new-%ld-%u", (long)getpid(), i);
        if (!mkdirat(machine->base, aside, 0700)) {
            machine->folder =
                openat(machine->base, aside, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            machine->lock = machine->folder < 0 ? -errno : lock_open(machine);
            if (machine->lock >= 0 && !flock(machine->lock, LOCK_EX | LOCK_NB)) {
                return 0;
            }
            return fail(-EIO, "open a new folder for a machine");
        }
        if (errno != EEXIST) {
            break;
        }
    }
    return fail(-errno, "make a folder for a machine: %m");
}

static int put_in(const struct machine *machine, const struct machine_plan *plan)
{
    char here[FOLDER_PATH * 2];
    struct machine_facts facts = {.created = time(NULL), .removes = plan->removes};
    if (!getcwd(here, sizeof here)) {
        return fail(-errno, "find the current folder: %m");
    }
    snprintf(facts.image, sizeof facts.image, "%s", plan->image ? plan->image : "");
    vm_config_anchor(plan->config, here);
    int r = plan->fill ? plan->fill(plan->owner, machine->folder, plan->config) : 0;
    if (!r && plan->removes) {
        r = file_replace(machine->folder, drop_name, "", 0);
    }
    return r ? r : machine_save(machine, plan->config, &facts);
}

/* Give the folder its name: no machine that is there is ever replaced, as its folder is not empty.
 */
static int appear(struct machine *machine, const char *aside, const char *name)
{
    if (registry_is_running(name)) {
        return -EEXIST;
    }
    if (renameat(machine->base, aside, machine->base, name)) {
        return errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR ? -EEXIST : -errno;
    }
    snprintf(machine->name, sizeof machine->name, "%s", name);
    return fsync(machine->base) ? -errno : 0;
}

static int appear_somehow(struct machine *machine, const char *aside)
{
    int r = -EEXIST;
    for (unsigned i = 0; i < INVENTIONS && r == -EEXIST; i++) {
        char name[REGISTRY_NAME];
        registry_invent(i, name);
        r = appear(machine, aside, name);
    }
    return r;
}

int machine_create(const struct machine_plan *plan, struct machine **ret_machine)
{
    char path[FOLDER_PATH], aside[REGISTRY_NAME];
    CLEANUP(machine_close) struct machine *machine = machine_new();
    int r = plan->name ? vm_name_check(plan->name) : 0;
    if (!r) {
        r = folder_open(FOLDER_DATA, part, path, &machine->base);
    }
    if (r) {
        return r;
    }
    if (plan->name && machine_exists(plan->name)) { /* before anything long is done */
        return fail(-EEXIST, "there is a machine '%s' already", plan->name);
    }
    sweep(machine->base);
    r = begin(machine, aside);
    if (r) {
        return r;
    }
    snprintf(machine->name, sizeof machine->name, "%s", plan->name ? plan->name : "");
    r = put_in(machine, plan);
    if (!r) {
        r = plan->name ? appear(machine, aside, plan->name) : appear_somehow(machine, aside);
        if (r) {
            fail(r, "make machine '%s': %s", plan->name ? plan->name : "",
                 r == -EEXIST ? "there is one of that name already" : strerror(-r));
        }
    }
    if (r) {
        close(TAKE_FD(machine->lock));
        remove_left_over(machine->base, aside);
        return r;
    }
    snprintf(machine->path, sizeof machine->path, "%s/%s", path, machine->name);
    *ret_machine = TAKE(machine);
    return 0;
}

/* ---- changing ---- */

int machine_rename(struct machine *machine, const char *name)
{
    char old[REGISTRY_NAME];
    int r = vm_name_check(name);
    if (r) {
        return r;
    }
    snprintf(old, sizeof old, "%s", machine->name);
    r = appear(machine, old, name);
    return r ? fail(r, "rename machine '%s' to '%s': %s", old, name,
                    r == -EEXIST ? "there is one of that name already" : strerror(-r))
             : 0;
}

int machine_remove(struct machine *machine)
{
    char aside[REGISTRY_NAME];
    for (unsigned i = 0; i < TRIES; i++) {
        snprintf(aside, sizeof aside, ".old-%ld-%u", (long)getpid(), i);
        if (!renameat(machine->base, machine->name, machine->base, aside)) {
            return folder_remove(machine->base, aside, lock_name);
        }
        if (errno != ENOTEMPTY && errno != EEXIST) {
            break;
        }
    }
    return fail(-errno, "remove machine '%s': %m", machine->name);
}
