/* The helper process: the jail, and one message after the other. */
#include "backend/share/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/share/message.h"
#include "backend/share/server.h"
#include "base/assert.h"
#include "base/error.h"

enum { ROOT = 3, SOCKET = 4, FILES_WANTED = 65536 };

/* Descriptors: 0 and 1 lead nowhere, 2 is for what went wrong, then ours; the rest is closed. */
static int settle_descriptors(int root, int socket)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* Out of the way of each other first. */
    int away_root = fcntl(root, F_DUPFD_CLOEXEC, 10), away = fcntl(socket, F_DUPFD_CLOEXEC, 10);
    if (null < 0 || away_root < 0 || away < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 ||
        dup2(away_root, ROOT) < 0 || dup2(away, SOCKET) < 0 || close_range(SOCKET + 1, ~0u, 0)) {
        return -errno;
    }
    return 0;
}

/* The terminal's signals are for the machine; we end when it does. */
static void settle_process(void)
{
    static const int ignored[] = {SIGINT, SIGQUIT, SIGHUP, SIGTERM, SIGTSTP, SIGPIPE, SIGXFSZ};
    sigset_t none;
    for (size_t i = 0; i < ARRAY_SIZE(ignored); i++) {
        signal(ignored[i], SIG_IGN);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    prctl(PR_SET_NAME, "doppel-share");
    umask(0); /* the guest has its own */
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max < FILES_WANTED ? limit.rlim_max : FILES_WANTED;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int drop_rights(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_capset, &header, none)) {
        return fail(-errno, "drop capabilities: %m");
    }
    return 0;
}

/*
 * All of the folder and nothing else. The first version of Landlock forbids every move between
 * folders, and cannot be used.
 */
static int confine(bool readonly)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 2) {
        return 0;
    }
    uint64_t all = (UINT64_C(1) << (version >= 3 ? 15 : 14)) - 1;
    uint64_t reading = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
    struct landlock_ruleset_attr attributes = {.handled_access_fs = all};
    struct landlock_path_beneath_attr beneath = {
        .allowed_access = readonly ? reading : all & ~(uint64_t)LANDLOCK_ACCESS_FS_EXECUTE,
        .parent_fd = ROOT,
    };
    long rules = syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    if (rules < 0 ||
        syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) ||
        syscall(SYS_landlock_restrict_self, rules, 0)) {
        return fail(-errno, "enter a Landlock domain: %m");
    }
    close((int)rules);
    return 0;
}

/* What the server and the C library below it call. */
static const int allowed[] = {
    SCMP_SYS(read),       SCMP_SYS(write),      SCMP_SYS(openat),     SCMP_SYS(openat2),
    SCMP_SYS(close),      SCMP_SYS(fstat),      SCMP_SYS(newfstatat), SCMP_SYS(fstatfs),
    SCMP_SYS(getdents64), SCMP_SYS(lseek),      SCMP_SYS(pread64),    SCMP_SYS(pwrite64),
    SCMP_SYS(ftruncate),  SCMP_SYS(fsync),      SCMP_SYS(fdatasync),  SCMP_SYS(mkdirat),
    SCMP_SYS(mknodat),    SCMP_SYS(symlinkat),  SCMP_SYS(linkat),     SCMP_SYS(unlinkat),
    SCMP_SYS(renameat),   SCMP_SYS(readlinkat), SCMP_SYS(fchmodat),   SCMP_SYS(fchownat),
    SCMP_SYS(utimensat),  SCMP_SYS(brk),        SCMP_SYS(munmap),     SCMP_SYS(mremap),
    SCMP_SYS(madvise),    SCMP_SYS(futex),      SCMP_SYS(exit_group), SCMP_SYS(rt_sigreturn),
    SCMP_SYS(getrandom),
};

static int filter_calls(void)
{
    const struct scmp_arg_cmp not_executable = {
        .arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0};
    const struct scmp_arg_cmp of_flags = {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = F_GETFL};
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    int r =
        filter ? seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) : -ENOSYS;
    for (size_t i = 0; i < ARRAY_SIZE(allowed) && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    }
    if (!r) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, not_executable);
    }
    if (!r) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, of_flags);
    }
    r = r ? r : seccomp_load(filter);
    seccomp_release(filter);
    return r ? fail(r, "install a system call filter: %s", strerror(-r)) : 0;
}

static int prepare(bool readonly, struct p9_server **ret_server)
{
    int r = p9_server_new(ROOT, readonly, ret_server);
    r = r ? r : drop_rights();
    r = r ? r : confine(readonly);
    return r ? r : filter_calls();
}

/* False: the machine is gone. */
static bool transfer(bool is_write, void *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t moved = is_write ? write(SOCKET, (uint8_t *)bytes + done, size - done)
                                 : read(SOCKET, (uint8_t *)bytes + done, size - done);
        if (moved == 0 || (moved < 0 && errno != EINTR)) {
            return false;
        }
        done += moved > 0 ? (size_t)moved : 0;
    }
    return true;
}

static bool answer_one(struct p9_server *server, uint8_t *message, uint8_t *reply)
{
    struct share_frame frame;
    if (!transfer(false, &frame, sizeof frame) || frame.length > P9_MESSAGE_MAX ||
        !transfer(false, message, frame.length)) {
        return false;
    }
    size_t room = frame.room < P9_MESSAGE_MAX ? frame.room : P9_MESSAGE_MAX;
    frame.length = (uint32_t)p9_server_answer(server, message, frame.length, reply, room);
    frame.room = p9_server_fids(server);
    return transfer(true, &frame, sizeof frame) && transfer(true, reply, frame.length);
}

_Noreturn void share_helper_run(int root, int socket, bool readonly)
{
    struct p9_server *server = NULL;
    struct share_hello hello = {0};
    int r = settle_descriptors(root, socket);
    if (r) {
        _exit(1);
    }
    settle_process();
    uint8_t *message = malloc(P9_MESSAGE_MAX), *reply = malloc(P9_MESSAGE_MAX);
    ASSERT(message && reply);
    r = prepare(readonly, &server);
    if (r) {
        hello.error = r;
        snprintf(hello.text, sizeof hello.text, "%s", trail_text());
    }
    if (!transfer(true, &hello, sizeof hello) || r) {
        _exit(1);
    }
    while (answer_one(server, message, reply)) {
    }
    _exit(0);
}
