/* The program: finds the command, and makes sure that descriptors 0 to 2 are open. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "cmd.h"
#include "control/jail.h"
#include "machine/report.h"

/*
 * A file that we open must not become standard input or output because somebody closed those: the
 * guest's bytes would end up in it.
 */
static int fill_standard_descriptors(void)
{
    int fd;
    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0) {
        return -1;
    }
    close(fd);
    return 0;
}

/* What was asked for and could not be written is a failure. */
static int with_output(int status)
{
    if (fflush(stdout) && status == STATUS_OK) {
        report("doppel: write to standard output: %s\n", strerror(errno));
        return STATUS_FAILED;
    }
    return status;
}

#ifdef __SANITIZE_ADDRESS__
/* The search for leaks at the end traces the process, and the jail kills it for that. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif

int main(int argc, char **argv)
{
    if (fill_standard_descriptors()) {
        return STATUS_FAILED;
    }
    if (jail_close_inherited()) {
        report("doppel: %s\n", trail_text());
        return STATUS_FAILED;
    }
    if (argc < 2) {
        help_first_steps();
        return STATUS_USAGE;
    }
    bool is_help = !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h");
    for (const struct command *command = commands; command->name; command++) {
        if (!strcmp(command->name, is_help ? "help" : argv[1])) {
            return with_output(command_call(command, argc - 1, argv + 1));
        }
    }
    report("doppel: there is no command '%s'; 'doppel help' lists them\n", argv[1]);
    return STATUS_USAGE;
}
