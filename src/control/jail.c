/*
 * The walls of jail.h: capset(2), prctl(2), Landlock and a seccomp filter. Each wall is refused
 * loudly if the host does not let us build it; only Landlock may be missing (old kernels).
 */
#include "control/jail.h"

#include <asm/prctl.h>
#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/landlock.h>
#include <malloc.h>
#include <seccomp.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"

/* System calls that are harmless, whatever their arguments, on descriptors that we hold. */
static const int allowed[] = {
    /* bytes in and out */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwritev2),
    SCMP_SYS(lseek),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate), /* the log of a console begins anew */
    SCMP_SYS(fstat),
    SCMP_SYS(close),
    SCMP_SYS(shutdown),
    SCMP_SYS(io_uring_enter),
    /* waiting */
    SCMP_SYS(futex),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(nanosleep),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(sched_yield),
    SCMP_SYS(membarrier),
    /* time */
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(timerfd_gettime),
    SCMP_SYS(timer_settime),
    SCMP_SYS(timer_delete),
    /* memory, never executable (see protections below) */
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    /* signals to ourselves, ends, ourselves */
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(getpid),
    SCMP_SYS(getpgrp),
    SCMP_SYS(gettid),
    SCMP_SYS(getrandom),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

/* Calls that the C library makes as a courtesy and that may fail without harm. */
static const int refused[] = {SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(prlimit64),
                              SCMP_SYS(sysinfo)};

int jail_close_inherited(void)
{
    if (close_range(3, ~0u, 0)) {
        return fail(-errno, "jail: close inherited descriptors: %m");
    }
    return 0;
}

static int drop_capabilities(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
        /* -EPERM without CAP_SETPCAP: an ordinary user, whose bounding set grants nothing */
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EPERM) {
            return fail(-errno, "jail: drop capability %d from the bounding set: %m", capability);
        }
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) && errno != EINVAL) {
        return fail(-errno, "jail: clear ambient capabilities: %m");
    }
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capset, &header, none)) {
        return fail(-errno, "jail: drop capabilities: %m");
    }
    return 0;
}

/* A Landlock domain without a single rule: no path can be opened, made, removed or executed. */
static int deny_paths(bool *ret_landlock)
{
    *ret_landlock = false;
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1) {
        return 0;
    }
    /* 13 rights in the first version, one more in the second (refer) and the third (truncate) */
    unsigned rights = version >= 3 ? 15 : version == 2 ? 14 : 13;
    struct landlock_ruleset_attr attributes = {.handled_access_fs = (1ull << rights) - 1};
    long ruleset =
        syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes.handled_access_fs, 0);
    if (ruleset < 0) {
        return fail(-errno, "jail: create a Landlock rule set: %m");
    }
    long r = syscall(SYS_landlock_restrict_self, ruleset, 0);
    int error = errno;
    close((int)ruleset);
    if (r) {
        return fail(-error, "jail: enter the Landlock domain: %s", strerror(error));
    }
    *ret_landlock = true;
    return 0;
}

int jail_drop_rights(bool *ret_landlock)
{
    /* gmtime() and its kind read the host's time zone file at their first use: let that be now */
    tzset();
    /*
     * One heap for all threads. Of several, the C library reads the number of processors from /sys
     * before it makes more, and /proc/sys/vm/overcommit_memory before it shrinks one. Another
     * allocator in its place (a sanitizer's) knows no such option, and opens nothing.
     */
    mallopt(M_ARENA_MAX, 1);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) {
        return fail(-errno, "jail: set no_new_privs: %m");
    }
    int r = drop_capabilities();
    return r ? r : deny_paths(ret_landlock);
}

static struct scmp_arg_cmp argument_is(unsigned index, scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = index, .op = SCMP_CMP_EQ, .datum_a = value};
}

/* Memory may be mapped and protected in every way but executable. */
static int allow_protections(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp not_executable = {
        .arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0};
    int r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, not_executable);
    return r ? r : seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, not_executable);
}

/* Signals go to our own threads only; descriptors keep their rights but may change blocking mode.
 */
static int allow_with_arguments(scmp_filter_ctx filter)
{
    const struct {
        int call;
        unsigned index;
        scmp_datum_t value;
    } rules[] = {
        {SCMP_SYS(tgkill), 0, (scmp_datum_t)getpid()},
        {SCMP_SYS(arch_prctl), 0, ARCH_SET_GS}, /* translate, where WRGSBASE is not enabled */
        {SCMP_SYS(fcntl), 1, F_GETFL},
        {SCMP_SYS(fcntl), 1, F_SETFL},
        {SCMP_SYS(fcntl), 1, F_OFD_SETLK}, /* a disk gives its lock back, of either kind */
        {SCMP_SYS(flock), 1, LOCK_UN | LOCK_NB},
        {SCMP_SYS(ioctl), 1, TCGETS},
        {SCMP_SYS(ioctl), 1, TCSETS},
        {SCMP_SYS(ioctl), 1, TCSETSW},
        {SCMP_SYS(ioctl), 1, TCSETSF},
        {SCMP_SYS(ioctl), 1, TIOCGWINSZ},
        {SCMP_SYS(ioctl), 1, TIOCGPGRP}, /* are we in the terminal's foreground? */
        {SCMP_SYS(ioctl), 1, FIONREAD},
        {SCMP_SYS(ioctl), 1, BLKDISCARD},
        {SCMP_SYS(ioctl), 1, BLKZEROOUT},
        {SCMP_SYS(ioctl), 1, TUNSETOFFLOAD}, /* as the guest's driver wants it */
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules); i++) {
        int r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, rules[i].call, 1,
                                 argument_is(rules[i].index, rules[i].value));
        if (r) {
            return r;
        }
    }
    /* whose a client of the control socket is */
    int r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(getsockopt), 2,
                             argument_is(1, SOL_SOCKET), argument_is(2, SO_PEERCRED));
    return r ? r : allow_protections(filter);
}

/* Clients come in by these doors only, and are read and written like any descriptor. */
static int allow_listeners(scmp_filter_ctx filter, const int *listeners, size_t count)
{
    int r = 0;
    for (size_t i = 0; i < count && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(accept4), 2,
                             argument_is(0, (scmp_datum_t)listeners[i]),
                             argument_is(3, SOCK_CLOEXEC | SOCK_NONBLOCK));
    }
    return r;
}

/* Helper processes, started before, pass us sockets that we could not make. */
static int allow_channels(scmp_filter_ctx filter, const int *channels, size_t count)
{
    int r = 0;
    for (size_t i = 0; i < count && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(recvmsg), 1,
                             argument_is(0, (scmp_datum_t)channels[i]));
    }
    return r;
}

static int fill_filter(scmp_filter_ctx filter)
{
    /* one load for all threads, and kill for what is not named even in a foreign architecture */
    int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (!r) {
        r = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
    }
    /* a binary tree: each call costs a few comparisons, however long the list */
    if (!r) {
        r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    }
    for (size_t i = 0; i < ARRAY_SIZE(allowed) && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(refused) && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), refused[i], 0);
    }
    return r ? r : allow_with_arguments(filter);
}

int jail_enter(const int *listeners, size_t listener_count, const int *channels,
               size_t channel_count)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) {
        return fail(-ENOSYS,
                    "jail: this host has no system call filters (--jail off runs without)");
    }
    int r = fill_filter(filter);
    r = r ? r : allow_listeners(filter, listeners, listener_count);
    r = r ? r : allow_channels(filter, channels, channel_count);
    if (!r) {
        r = seccomp_load(filter);
    }
    seccomp_release(filter);
    return r ? fail(r, "jail: install the seccomp filter: %s (--jail off runs without)",
                    strerror(-r))
             : 0;
}
