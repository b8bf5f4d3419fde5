/* What the programs of a build say: to the log, and to somebody who waits. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "image/build_internal.h"

static const char *const step_texts[STEPS] = {
    [STEP_LOOK] = "looking which packages there are", [STEP_DOWNLOAD] = "downloading packages",
    [STEP_INSTALL] = "installing packages",           [STEP_DISK] = "making the disk",
    [STEP_DIGEST] = "computing its digest",
};

int build_log_open(struct build_log *log, const struct store *store, const struct image_plan *plan)
{
    *log = (struct build_log){.plan = plan, .packages = json_object()};
    snprintf(log->path, sizeof log->path, "%s/build-%s.log", store->path, plan->suite.codename);
    log->file = fopen(log->path, "we");
    return log->file ? 0 : fail(-errno, "make the log %s: %m", log->path);
}

void build_log_close(struct build_log *log)
{
    if (log->file) {
        fclose(log->file);
    }
    json_decref(log->packages);
    *log = (struct build_log){0};
}

static void report(struct build_log *log, uint64_t done, uint64_t total, const char *unit)
{
    log->progress.done = done;
    log->progress.total = total;
    log->progress.unit = unit;
    if (log->plan->report) {
        log->plan->report(log->plan->owner, &log->progress);
    }
}

void build_log_step(struct build_log *log, enum build_step step)
{
    log->progress =
        (struct image_progress){.step = step + 1, .steps = STEPS, .text = step_texts[step]};
    log->length = 0;
    fprintf(log->file, "---- step %u of %u: %s\n", log->progress.step, STEPS, step_texts[step]);
    report(log, 0, 0, NULL);
}

/* "8790 kB" or "1,234 B" as apt writes it, in bytes. */
static uint64_t apt_size(const char *text)
{
    uint64_t number = 0, scale = 1;
    bool in_fraction = false;
    for (; (*text >= '0' && *text <= '9') || *text == ',' || *text == '.'; text++) {
        in_fraction |= *text == '.';
        if (*text >= '0' && *text <= '9' && number < UINT32_MAX) {
            number = number * 10 + (uint64_t)(*text - '0');
            scale *= in_fraction ? 10 : 1;
        }
    }
    uint64_t unit = strncmp(text, " kB", 3) == 0   ? 1000
                    : strncmp(text, " MB", 3) == 0 ? 1000000
                    : strncmp(text, " GB", 3) == 0 ? 1000000000
                                                   : 1;
    return number * unit / scale;
}

/* "Inst NAME [OLD] (VERSION ...": apt-get --simulate would install it. */
static void take_package(struct build_log *log, const char *line)
{
    char name[128], version[128];
    const char *bracket = strchr(line, '(');
    if (sscanf(line, "Inst %127[^ ]", name) == 1 && bracket &&
        sscanf(bracket, "(%127[^ )]", version) == 1) {
        json_object_set_new(log->packages, name, json_string(version));
    }
}

static void take_line(struct build_log *log, const char *line)
{
    enum build_step step = (enum build_step)(log->progress.step - 1);
    fprintf(log->file, "%s\n", line);
    bool is_error = !strncmp(line, "E: ", 3) || strstr(line, "rror: ") != NULL;
    if (is_error || (!log->has_error && strncmp(line, "I: ", 3) && *line)) {
        snprintf(log->last, sizeof log->last, "%.255s", line);
        for (char *at = log->last; *at; at++) { /* servers' words, for the user's terminal */
            *at = *at < ' ' || *at > '~' ? '?' : *at;
        }
        log->has_error |= is_error;
    }
    if (step == STEP_LOOK) {
        take_package(log, line);
        return;
    }
    const char *size = strrchr(line, '[');
    if (!strncmp(line, "I: extracting archives", 22)) {
        build_log_step(log, STEP_INSTALL);
    } else if (!strncmp(line, "I: filling the disk", 19)) {
        build_log_step(log, STEP_DISK);
    } else if (!strncmp(line, "Get:", 4) && size) {
        log->bytes += apt_size(size + 1);
        report(log, log->bytes / 1000000, 0, "MB");
    } else if (!strncmp(line, "Setting up ", 11) && step == STEP_INSTALL) {
        log->set_up++;
        report(log, log->set_up, json_object_size(log->packages), "packages");
    }
}

bool build_log_read(struct build_log *log, int fd)
{
    char bytes[4096];
    ssize_t count = read(fd, bytes, sizeof bytes);
    if (count <= 0) {
        return count < 0 && (errno == EINTR || errno == EAGAIN);
    }
    for (ssize_t i = 0; i < count; i++) {
        bool is_end = bytes[i] == '\n' || bytes[i] == '\r';
        if (!is_end && log->length < sizeof log->line - 1) {
            log->line[log->length++] = bytes[i];
        }
        if (is_end && log->length) {
            log->line[log->length] = '\0';
            log->length = 0;
            take_line(log, log->line);
        }
    }
    return true;
}

int build_log_fail(const struct build_log *log, int error)
{
    char reason[1024];
    snprintf(reason, sizeof reason, "%s", trail_text());
    fprintf(log->file, "---- failed: %s\n", reason);
    trail_clear();
    return fail(error, "step %u of %u, %s: %s%s%s; all that was said is in %s", log->progress.step,
                STEPS, log->progress.text, reason, *log->last ? ": " : "", log->last, log->path);
}
