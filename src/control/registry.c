/* The folders of registry.h. */
#include "control/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"

static const char lock_name[] = "lock", socket_name[] = "control";
/* Somebody who looks holds a lock for a moment, too; and folders vanish while they are opened. */
enum { TRIES = 20, TRY_NS = 5000000 };

static void pause_a_moment(void)
{
    const struct timespec moment = {.tv_nsec = TRY_NS};
    nanosleep(&moment, NULL);
}

/* ---- the folder of all machines ---- */

static bool is_own_folder(const char *path)
{
    struct stat facts;
    return !stat(path, &facts) && S_ISDIR(facts.st_mode) && facts.st_uid == geteuid();
}

static void base_path(char path[REGISTRY_PATH])
{
    const char *given = getenv("XDG_RUNTIME_DIR");
    char usual[64];
    snprintf(usual, sizeof usual, "/run/user/%u", (unsigned)geteuid());
    if (given && given[0] == '/' && strlen(given) < REGISTRY_PATH - 8 && is_own_folder(given)) {
        snprintf(path, REGISTRY_PATH, "%s/doppel", given);
    } else if (is_own_folder(usual)) {
        snprintf(path, REGISTRY_PATH, "%s/doppel", usual);
    } else {
        snprintf(path, REGISTRY_PATH, "/tmp/doppel-%u", (unsigned)geteuid());
    }
}

/* Opened; others could plant a folder of theirs at a name in /tmp. */
static int base_open(char path[REGISTRY_PATH], int *ret_fd)
{
    struct stat facts;
    base_path(path);
    if (mkdir(path, 0700) && errno != EEXIST) {
        return fail(-errno, "make the folder of machines, %s: %m", path);
    }
    CLEANUP_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &facts)) {
        return fail(-errno, "open the folder of machines, %s: %m", path);
    }
    if (facts.st_uid != geteuid() || facts.st_mode & 077) {
        return fail(-EPERM, "the folder of machines, %s, is open to other users", path);
    }
    *ret_fd = TAKE_FD(fd);
    return 0;
}

/* ---- the folder of one machine ---- */

/* Locked by nobody else, and still the file of that name? -EWOULDBLOCK: held; -ENOENT: gone. */
static int lock_take(int lock)
{
    struct stat facts;
    if (flock(lock, LOCK_EX | LOCK_NB)) {
        return -errno;
    }
    return fstat(lock, &facts) ? -errno : facts.st_nlink ? 0 : -ENOENT;
}

/* Remove the folder of a machine that is gone, unless somebody holds it. True: it is held. */
static bool is_held(int base, const char *name)
{
    CLEANUP_FD int folder = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        return false;
    }
    /* Made, if it is not there: the machine may be about to make it, and one of the two has it. */
    CLEANUP_FD int lock =
        openat(folder, lock_name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    int r = lock >= 0 ? lock_take(lock) : -errno;
    if (r == -EWOULDBLOCK) {
        return true;
    }
    if (r == 0) {
        unlinkat(folder, socket_name, 0);
        unlinkat(folder, lock_name, 0);
        unlinkat(base, name, AT_REMOVEDIR);
    }
    return false;
}

/* One attempt: 0, -EAGAIN (somebody is just removing or looking), or a failure. */
static int try_claim(int base, const char *name, int *ret_lock)
{
    if (mkdirat(base, name, 0700) && errno != EEXIST) {
        return fail(-errno, "make a folder for machine '%s': %m", name);
    }
    CLEANUP_FD int folder = openat(base, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0) {
        return errno == ENOENT ? -EAGAIN
                               : fail(-errno, "open the folder of machine '%s': %m", name);
    }
    CLEANUP_FD int lock =
        openat(folder, lock_name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0) {
        return errno == ENOENT ? -EAGAIN : fail(-errno, "make the lock of machine '%s': %m", name);
    }
    int r = lock_take(lock);
    if (r) {
        return r == -ENOENT || r == -EWOULDBLOCK ? -EAGAIN
                                                 : fail(r, "lock the name of machine '%s'", name);
    }
    *ret_lock = TAKE_FD(lock);
    return 0;
}

int registry_claim(const char *name, struct registry_claim *ret_claim)
{
    char path[REGISTRY_PATH];
    CLEANUP_FD int base = -1;
    ret_claim->lock = -1;
    int r = base_open(path, &base);
    if (r) {
        return r;
    }
    for (unsigned i = 0; i < TRIES; i++) {
        r = try_claim(base, name, &ret_claim->lock);
        if (r != -EAGAIN) {
            break;
        }
        pause_a_moment();
    }
    if (r == -EAGAIN) {
        return fail(-EEXIST, "a machine with the name '%s' runs already", name);
    }
    if (!r) {
        snprintf(ret_claim->name, sizeof ret_claim->name, "%s", name);
        snprintf(ret_claim->socket, sizeof ret_claim->socket, "%s/%s/%s", path, name, socket_name);
    }
    return r;
}

void registry_invent(unsigned attempt, char ret_name[REGISTRY_NAME])
{
    static const char *const names[] = {"adder",  "badger", "crane",  "dormouse", "egret", "finch",
                                        "gecko",  "heron",  "ibis",   "jackdaw",  "kite",  "lynx",
                                        "marten", "newt",   "otter",  "plover",   "quail", "raven",
                                        "shrew",  "tern",   "urchin", "vole",     "wren",  "yak"};
    unsigned round = attempt / (unsigned)ARRAY_SIZE(names);
    const char *word = names[((unsigned)getpid() + attempt) % ARRAY_SIZE(names)];
    snprintf(ret_name, REGISTRY_NAME, round ? "%s-%u" : "%s", word, round + 1);
}

int registry_claim_any(bool (*is_taken)(const char *name), struct registry_claim *ret_claim)
{
    char path[REGISTRY_PATH], name[REGISTRY_NAME];
    CLEANUP_FD int base = -1;
    ret_claim->lock = -1;
    int r = base_open(path, &base);
    for (unsigned i = 0; !r && i < 1000; i++) {
        registry_invent(i, name);
        if (!is_held(base, name) && !(is_taken && is_taken(name))) {
            r = registry_claim(name, ret_claim);
            if (r != -EEXIST) {
                return r;
            }
            trail_clear();
            r = 0;
        }
    }
    return r ? r : fail(-EEXIST, "no name is free for the machine: use --name");
}

/* What users write may be a path, which leads out of the folder of all machines. */
static bool is_a_name(const char *text)
{
    return *text && *text != '.' && !strchr(text, '/') && strlen(text) < REGISTRY_NAME;
}

bool registry_is_running(const char *name)
{
    char path[REGISTRY_PATH];
    CLEANUP_FD int base = -1;
    if (!is_a_name(name)) {
        return false;
    }
    if (base_open(path, &base)) {
        trail_clear();
        return false;
    }
    return is_held(base, name);
}

int registry_find(const char *name, char ret_socket[REGISTRY_SOCKET])
{
    char path[REGISTRY_PATH], running[1024];
    CLEANUP_FD int base = -1;
    int r = base_open(path, &base);
    if (r) {
        return r;
    }
    if (is_a_name(name) && is_held(base, name)) {
        snprintf(ret_socket, REGISTRY_SOCKET, "%s/%s/%s", path, name, socket_name);
        return 0;
    }
    r = registry_list(running, sizeof running);
    return r ? r
             : fail(-ENOENT, "no machine '%s' runs (running: %s)", name,
                    *running ? running : "none");
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

int registry_names(struct registry_names *ret_names)
{
    char path[REGISTRY_PATH];
    struct dirent **entries;
    CLEANUP_FD int base = -1;
    *ret_names = (struct registry_names){0};
    int r = base_open(path, &base);
    if (r) {
        return r;
    }
    int count = scandirat(base, ".", &entries, is_visible, alphasort);
    if (count < 0) {
        return fail(-errno, "look into the folder of machines, %s: %m", path);
    }
    ret_names->names = calloc((size_t)count + 1, sizeof *ret_names->names);
    ASSERT(ret_names->names);
    for (int i = 0; i < count; i++) {
        const char *name = entries[i]->d_name;
        if (strlen(name) < REGISTRY_NAME && is_held(base, name)) {
            strcpy(ret_names->names[ret_names->count++], name);
        }
        free(entries[i]);
    }
    free(entries);
    return 0;
}

void registry_names_fini(struct registry_names *names)
{
    free(names->names);
    *names = (struct registry_names){0};
}

int registry_list(char *ret_names, size_t size)
{
    struct registry_names names;
    *ret_names = '\0';
    int r = registry_names(&names);
    for (size_t i = 0; i < names.count; i++) {
        size_t used = strlen(ret_names);
        snprintf(ret_names + used, size - used, "%s%s", i ? ", " : "", names.names[i]);
    }
    registry_names_fini(&names);
    return r;
}
