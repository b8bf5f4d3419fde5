/* Starting programs and waiting for them. */
#include "image/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"

static const char system_path[] = "/usr/sbin:/sbin:/usr/bin:/bin";

bool process_finds(const char *name)
{
    const char *own = getenv("PATH");
    char folders[8192], path[4096 + 64];
    snprintf(folders, sizeof folders, "%s:%s", own ? own : "", system_path);
    char *at = folders;
    for (const char *folder; (folder = strsep(&at, ":"));) {
        snprintf(path, sizeof path, "%.4000s/%.60s", folder, name);
        if (*folder && !access(path, X_OK)) {
            return true;
        }
    }
    return false;
}

/* Descriptors 0 to 3 are the plan's, the rest is closed. In the child: no return. */
static void become(const struct process_plan *plan)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    int wanted[4] = {plan->input, plan->output, plan->error, plan->third};
    char path[8192];
    const char *own = getenv("PATH");
    for (int i = 0; i < 4; i++) { /* out of the way first */
        int from = wanted[i] >= 0 ? wanted[i] : null;
        wanted[i] = fcntl(from, F_DUPFD, 10);
    }
    for (int i = 0; i < 4; i++) {
        dup2(wanted[i], i);
    }
    close_range(4, ~0u, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    snprintf(path, sizeof path, "%s%s%s", own ? own : "", own ? ":" : "", system_path);
    setenv("PATH", path, 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    execvp(plan->arguments[0], (char *const *)plan->arguments);
    dprintf(2, "%s: %s\n", plan->arguments[0], strerror(errno));
    _exit(127);
}

int process_start(const struct process_plan *plan, pid_t *ret_pid)
{
    pid_t pid = fork();
    if (pid < 0) {
        return fail(-errno, "start %s: %m", plan->arguments[0]);
    }
    if (pid == 0) {
        become(plan);
    }
    *ret_pid = pid;
    return 0;
}

int process_wait(pid_t pid, const char *name)
{
    int status;
    while (waitpid(pid, &status, 0) < 0) {
        if (errno != EINTR) {
            return fail(-errno, "wait for %s: %m", name);
        }
    }
    if (WIFSIGNALED(status)) {
        return fail(-ECHILD, "%s was ended by signal %d (%s)", name, WTERMSIG(status),
                    strsignal(WTERMSIG(status)));
    }
    if (WEXITSTATUS(status) == 127) {
        return fail(-ECHILD, "%s cannot be started: is it installed?", name);
    }
    return WEXITSTATUS(status) ? fail(-ECHILD, "%s ended with status %d", name, WEXITSTATUS(status))
                               : 0;
}
