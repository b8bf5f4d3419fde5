/*
 * Where packages come from: the host's own sources of the suite, so that a build works wherever
 * apt does (behind a mirror of the house, say), otherwise Debian's. The new system gets Debian's:
 * it will live elsewhere.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "image/build_internal.h"
#include "image/process.h"

enum { SOURCES_MAX = 16384 };
static const char keyring[] = "/usr/share/keyrings/debian-archive-keyring.gpg";

static void add(char *text, size_t size, bool for_image, const char *uri, const char *suite,
                const char *components)
{
    bool is_signed = !for_image && !access(keyring, R_OK);
    size_t length = strlen(text);
    snprintf(text + length, size - length, "%sdeb %s%s%s%s %s %s", length ? "\n" : "",
             is_signed ? "[signed-by=" : "", is_signed ? keyring : "", is_signed ? "] " : "", uri,
             suite, components);
}

static void add_debian(const struct suite *suite, bool for_image, char *text, size_t size)
{
    char part[SUITE_TEXT + 16];
    add(text, size, for_image, "http://deb.debian.org/debian", suite->codename, "main");
    if (*suite->release) { /* sid has no updates: it is them */
        snprintf(part, sizeof part, "%s-updates", suite->codename);
        add(text, size, for_image, "http://deb.debian.org/debian", part, "main");
        snprintf(part, sizeof part, "%s-security", suite->codename);
        add(text, size, for_image, "http://deb.debian.org/debian-security", part, "main");
    }
}

/* What apt of this host knows, lines of "URI|suite|component"; "" if there is no apt. */
static void ask_apt(char text[SOURCES_MAX])
{
    static const char *const arguments[] = {"apt-get",
                                            "indextargets",
                                            "--format",
                                            "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
                                            "Created-By: Packages",
                                            NULL};
    int ends[2];
    pid_t pid;
    size_t length = 0;
    text[0] = '\0';
    if (pipe2(ends, O_CLOEXEC)) {
        return;
    }
    CLEANUP_FD int ours = ends[0];
    CLEANUP_FD int theirs = ends[1];
    const struct process_plan plan = {
        .arguments = arguments, .input = -1, .output = theirs, .error = -1, .third = -1};
    if (process_start(&plan, &pid)) {
        trail_clear();
        return;
    }
    close(TAKE_FD(theirs));
    ssize_t count;
    while ((count = read(ours, text + length, SOURCES_MAX - 1 - length)) > 0) {
        length += (size_t)count;
    }
    close(TAKE_FD(ours));
    text[process_wait(pid, "apt-get") ? 0 : length] = '\0';
    trail_clear(); /* no apt, no sources of the host */
}

/* Those of this suite, its updates and its security updates. False: not even the suite is there. */
static bool add_host(const struct suite *suite, char *text, size_t size)
{
    char answer[SOURCES_MAX];
    bool has_suite = false;
    size_t length = strlen(suite->codename);
    ask_apt(answer);
    char *at = answer;
    for (char *line; (line = strsep(&at, "\n"));) {
        const char *uri = strsep(&line, "|"), *release = strsep(&line, "|"), *component = line;
        if (!release || !component || strcmp(component, "main") ||
            strncmp(release, suite->codename, length) ||
            (release[length] && strcmp(release + length, "-updates") &&
             strcmp(release + length, "-security"))) {
            continue;
        }
        has_suite |= !release[length];
        add(text, size, false, uri, release, component);
    }
    return has_suite;
}

int build_sources(const struct image_plan *plan, bool for_image, char *ret_text, size_t size)
{
    *ret_text = '\0';
    if (plan->mirror) {
        add(ret_text, size, for_image, plan->mirror, plan->suite.codename, "main");
    } else if (for_image) {
        add_debian(&plan->suite, true, ret_text, size);
    } else if (!add_host(&plan->suite, ret_text, size)) {
        *ret_text = '\0';
        add_debian(&plan->suite, false, ret_text, size);
    }
    return strlen(ret_text) < size - 1
               ? 0
               : fail(-E2BIG, "apt has more sources of %s than can be used", plan->suite.codename);
}
