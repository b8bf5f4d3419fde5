/*
 * The jail of the process that speaks with the guest and with the Internet: the walls of
 * control/jail.h, and a list of system calls of its own, whose default is to kill.
 *
 * libslirp reads /etc/resolv.conf again when the host's DNS servers change. Files cannot be opened
 * here: each attempt is trapped, and the handler answers it with a descriptor of that one file,
 * which the keeper opened; whatever name was asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <ucontext.h>
#include <unistd.h>

#include "backend/net/pass.h"
#include "base/bytes.h"
#include "control/jail.h"
#include "net.h"

static int keeper = -1; /* one process, one keeper; the handler has no argument */

static const int allowed[] = {
    /* bytes, on sockets that it has */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(recvfrom),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendto),
    SCMP_SYS(sendmsg),
    SCMP_SYS(connect),
    SCMP_SYS(bind),
    SCMP_SYS(listen),
    SCMP_SYS(accept),
    SCMP_SYS(accept4),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockname),
    SCMP_SYS(getpeername),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(close),
    /* of a file, only that it is there and has not changed */
    SCMP_SYS(fstat),
    SCMP_SYS(newfstatat),
    SCMP_SYS(lseek),
    /* waiting, time, memory, its own end */
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(futex),
    SCMP_SYS(brk),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(getrandom),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
};

/* Ask the keeper for the file; its descriptor, or a negative errno. */
static int ask_for_file(void)
{
    struct passed passed;
    if (pass_send(keeper, PASS_FILE, "", -1) || pass_receive(keeper, &passed) <= 0) {
        return -EIO;
    }
    return passed.fd >= 0 ? passed.fd : -ENOENT;
}

static void on_open(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    int saved = errno;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    registers[REG_RAX] = ask_for_file();
    errno = saved;
}

static struct scmp_arg_cmp argument_is(unsigned index, scmp_datum_t value)
{
    return (struct scmp_arg_cmp){.arg = index, .op = SCMP_CMP_EQ, .datum_a = value};
}

static int fill_filter(scmp_filter_ctx filter)
{
    const struct scmp_arg_cmp not_executable = {
        .arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0};
    int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
    for (size_t i = 0; i < ARRAY_SIZE(allowed) && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
    }
    const struct {
        int call;
        struct scmp_arg_cmp argument;
    } rules[] = {
        {SCMP_SYS(socket), argument_is(0, AF_INET)},
        {SCMP_SYS(socket), argument_is(0, AF_INET6)},
        /* no others: F_SETOWN and F_SETSIG send signals to processes of this user */
        {SCMP_SYS(fcntl), argument_is(1, F_GETFD)},
        {SCMP_SYS(fcntl), argument_is(1, F_SETFD)},
        {SCMP_SYS(fcntl), argument_is(1, F_GETFL)},
        {SCMP_SYS(fcntl), argument_is(1, F_SETFL)},
        {SCMP_SYS(ioctl), argument_is(1, FIONBIO)},
        {SCMP_SYS(ioctl), argument_is(1, FIONREAD)},
        {SCMP_SYS(tgkill), argument_is(0, (scmp_datum_t)getpid())}, /* abort() */
        {SCMP_SYS(mmap), not_executable},
        {SCMP_SYS(mprotect), not_executable},
    };
    for (size_t i = 0; i < ARRAY_SIZE(rules) && !r; i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, rules[i].call, 1, rules[i].argument);
    }
    r = r ? r : seccomp_rule_add(filter, SCMP_ACT_TRAP, SCMP_SYS(openat), 0);
    return r ? r : seccomp_rule_add(filter, SCMP_ACT_TRAP, SCMP_SYS(open), 0);
}

int net_jail_enter(int control)
{
    bool landlock; /* its absence leaves the filter, which opens nothing */
    keeper = control;
    struct sigaction action = {.sa_sigaction = on_open, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGSYS, &action, NULL)) {
        return -errno;
    }
    int r = jail_drop_rights(&landlock);
    scmp_filter_ctx filter = r ? NULL : seccomp_init(SCMP_ACT_KILL_PROCESS);
    if (!filter) {
        return r ? r : -ENOSYS;
    }
    r = fill_filter(filter);
    r = r ? r : seccomp_load(filter);
    seccomp_release(filter);
    return r;
}
