/*
 * refuse CALL PROGRAM [ARGUMENT...]: runs the program on a host that refuses a system call with
 * EPERM, as hardened hosts and container engines refuse io_uring_setup.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int call = argc > 2 ? seccomp_syscall_resolve_name(argv[1]) : __NR_SCMP_ERROR;
    if (!filter || call == __NR_SCMP_ERROR ||
        seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), call, 0) || seccomp_load(filter)) {
        fprintf(stderr, "refuse CALL PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
