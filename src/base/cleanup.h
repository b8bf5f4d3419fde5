/*
 * Ownership by scope: `CLEANUP(disk_free) struct disk *disk = NULL;` frees on every way out;
 * `*ret_disk = TAKE(disk)` hands the object on instead. The named function takes the pointer
 * itself (not its address) and accepts NULL.
 */
#pragma once

#define CLEANUP_DEFINE(type, function)                                                             \
    static inline void function##_cleanup(type **object)                                           \
    {                                                                                              \
        function(*object);                                                                         \
    }
#define CLEANUP(function) __attribute__((cleanup(function##_cleanup)))

#define TAKE(pointer)                                                                              \
    ({                                                                                             \
        __auto_type taken_ = (pointer);                                                            \
        (pointer) = NULL;                                                                          \
        taken_;                                                                                    \
    })

/* A descriptor that closes itself: `CLEANUP_FD int fd = -1;` */
void cleanup_close(int *fd);
#define CLEANUP_FD __attribute__((cleanup(cleanup_close)))
#define TAKE_FD(fd)                                                                                \
    ({                                                                                             \
        int taken_ = (fd);                                                                         \
        (fd) = -1;                                                                                 \
        taken_;                                                                                    \
    })
