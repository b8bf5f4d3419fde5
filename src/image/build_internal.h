/* What the files of a build share. */
#pragma once

#include <stdio.h>

#include "image/build.h"
#include "image/digest.h"

enum build_step { STEP_LOOK, STEP_DOWNLOAD, STEP_INSTALL, STEP_DISK, STEP_DIGEST, STEPS };

/* What mmdebstrap and its neighbours say: written to the log, and understood as progress. */
struct build_log {
    FILE *file;
    char path[STORE_PATH];
    char line[4096]; /* what has come of the line that is not complete yet */
    size_t length;
    char last[256]; /* the last error that was said, or else the last line */
    bool has_error;
    struct image_progress progress;
    const struct image_plan *plan;
    json_t *packages; /* versions by names, of lines of a simulation */
    uint64_t bytes;   /* downloaded */
    uint64_t set_up;  /* packages */
};

int build_log_open(struct build_log *log, const struct store *store, const struct image_plan *plan)
    __attribute__((warn_unused_result));
void build_log_close(struct build_log *log);
void build_log_step(struct build_log *log, enum build_step step);
/* Bytes from the pipe of a program's standard error. False: it has ended. */
bool build_log_read(struct build_log *log, int fd);
/* `error` with the step and the log on the trail. */
int build_log_fail(const struct build_log *log, int error);

/* apt's sources of a suite, one a line; `for_image`: those that the new system will use. */
int build_sources(const struct image_plan *plan, bool for_image, char *ret_text, size_t size)
    __attribute__((warn_unused_result));
