/* The descriptor half of ownership by scope. */
#include "base/cleanup.h"

#include <unistd.h>

void cleanup_close(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
}
