/* What happens when an ASSERT fails: one line that survives, then abort() for the core dump. */
#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

_Noreturn void assert_failed(const char *condition, const char *file, int line)
{
    char text[512];
    int length =
        snprintf(text, sizeof text, "doppel: internal error at %s:%d: %s\n", file, line, condition);
    if (length > 0) {
        ssize_t ignored = write(STDERR_FILENO, text, (size_t)length);
        (void)ignored;
    }
    abort();
}
