/*
 * refuse CALL[,INDEX,VALUE,ERROR] PROGRAM [ARGUMENT...]: runs the program on a host that refuses a
 * system call with EPERM, as hardened hosts and container engines refuse io_uring_setup; or, with
 * error number ERROR, only the calls whose argument number INDEX is VALUE.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char name[64] = "";
    unsigned index = 0, value = 0, error = EPERM;
    int parts = argc > 2 ? sscanf(argv[1], "%63[^,],%u,%u,%u", name, &index, &value, &error) : 0;
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
    int call = seccomp_syscall_resolve_name(name);
    const struct scmp_arg_cmp argument = {.arg = index, .op = SCMP_CMP_EQ, .datum_a = value};
    if (!filter || call == __NR_SCMP_ERROR || (parts != 1 && parts != 4) ||
        seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(error), call, parts == 4, &argument) ||
        seccomp_load(filter)) {
        fprintf(stderr, "refuse CALL[,INDEX,VALUE,ERROR] PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    execvp(argv[2], argv + 2);
    perror(argv[2]);
    return 127;
}
