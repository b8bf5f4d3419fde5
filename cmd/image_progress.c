/* What a build has done so far. */
#include "image_progress.h"

#include <stdio.h>
#include <unistd.h>

#include "machine/report.h"

/* One line that is written over on a terminal, a line for each step elsewhere. */
static void show_progress(void *owner, const struct image_progress *progress)
{
    unsigned *shown = owner;
    bool is_terminal = isatty(STDERR_FILENO);
    bool is_new = progress->step != *shown;
    *shown = progress->step;
    if (!is_terminal) {
        if (is_new) {
            report("doppel: step %u of %u: %s\n", progress->step, progress->steps, progress->text);
        }
        return;
    }
    char count[64] = "";
    if (progress->unit && progress->total) {
        snprintf(count, sizeof count, ": %llu of %llu %s", (unsigned long long)progress->done,
                 (unsigned long long)progress->total, progress->unit);
    } else if (progress->unit) {
        snprintf(count, sizeof count, ": %llu %s", (unsigned long long)progress->done,
                 progress->unit);
    }
    report("%s\r\033[Kdoppel: step %u of %u: %s%s", is_new && progress->step > 1 ? "\n" : "",
           progress->step, progress->steps, progress->text, count);
}

int image_build_shown(struct store *store, struct image_plan *plan, json_t **ret_record,
                      bool *ret_is_new)
{
    unsigned shown = 0;
    plan->report = show_progress;
    plan->owner = &shown;
    int r = image_build(store, plan, ret_record, ret_is_new);
    if (shown && isatty(STDERR_FILENO)) {
        report("\n");
    }
    return r;
}
