/* Debian's order of versions (Debian Policy 5.6.12), as of kernels in /boot. */
#pragma once

/* Below 0: a is older than b. */
int version_compare(const char *a, const char *b);
