/*
 * Our own lines, on standard error; standard output belongs to the guest. A terminal may be in raw
 * mode, so line ends are written as it needs them.
 */
#pragma once

/* Always shown: errors, and what the user has to know. `format` ends with a newline. */
void report(const char *format, ...) __attribute__((format(printf, 1, 2)));
