/* The thread-local trail behind fail(): a bounded text to which newer sentences are prepended. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TRAIL_SIZE = 1024, SENTENCE_SIZE = 512 };

static _Thread_local char trail[TRAIL_SIZE];

int fail_at(int error, const char *file, int line, const char *format, ...)
{
    (void)file; /* kept in the call so that a debugger shows where the sentence was made */
    (void)line;
    char sentence[SENTENCE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);

    char older[TRAIL_SIZE];
    memcpy(older, trail, sizeof older);
    int used = snprintf(trail, sizeof trail, "%s", sentence);
    if (older[0] && used >= 0 && (size_t)used < sizeof trail) {
        snprintf(trail + used, sizeof trail - (size_t)used, ": %s", older);
    }
    return error;
}

const char *trail_text(void)
{
    return trail;
}

void trail_clear(void)
{
    trail[0] = '\0';
}
