/* See report.h. One write for each report, so that threads do not mix their lines. */
#include "machine/report.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

enum { REPORT_SIZE = 4096 };

void report(const char *format, ...)
{
    char text[REPORT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    char out[2 * REPORT_SIZE];
    size_t used = 0;
    int is_terminal = isatty(STDERR_FILENO);
    for (const char *at = text; *at; at++) {
        if (*at == '\n' && is_terminal) {
            out[used++] = '\r';
        }
        out[used++] = *at;
    }
    ssize_t written = write(STDERR_FILENO, out, used);
    (void)written; /* nobody is left who could be told */
}
