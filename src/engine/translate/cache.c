/*
 * The code cache: one memory file mapped twice, writable and executable, never both at one
 * address. Allocation is a bump in each of its two parts; when one is full everything is
 * forgotten at once.
 */
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/translate/internal.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

int cache_init(struct cache *cache, uint32_t size)
{
    *cache = (struct cache){.fd = -1, .size = size, .write = MAP_FAILED, .run = MAP_FAILED};
    /* Kernels before 6.3 do not know MFD_EXEC, and their memory files are always executable. */
    cache->fd = memfd_create("doppel-code", MFD_CLOEXEC | MFD_EXEC);
    if (cache->fd < 0) {
        cache->fd = memfd_create("doppel-code", MFD_CLOEXEC);
    }
    if (cache->fd < 0 || ftruncate(cache->fd, size) < 0) {
        return fail(-errno, "make a memory file of %u MiB for translated code: %m", size >> 20);
    }
    cache->write =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, cache->fd, 0);
    cache->run = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, cache->fd, 0);
    if (cache->write == MAP_FAILED || cache->run == MAP_FAILED) {
        return fail(-errno,
                    "map %u MiB of translated code (is executable memory forbidden here?): %m",
                    size >> 20);
    }
    return 0;
}

void cache_divide(struct cache *cache, uint32_t stubs)
{
    cache->first[PART_STRAIGHT] = (uint32_t)align_up(stubs, 64);
    cache->first[PART_OUTLINES] = cache->parts[PART_STRAIGHT].end = cache->size / 8 * 5;
    cache->parts[PART_OUTLINES].end = cache->size;
    cache_clear(cache);
}

void cache_clear(struct cache *cache)
{
    for (unsigned i = 0; i < PARTS; i++) {
        cache->parts[i].start = cache->first[i];
    }
}

void cache_advance(struct cache *cache, enum part part, uint32_t end)
{
    enum { PIECE = 1 << 20 };
    uint32_t first = cache->parts[part].start & ~(PIECE - 1u), last = end & ~(PIECE - 1u);
    cache->parts[part].start = end;
    if (last > first) {
        madvise(cache->write + first, last - first, MADV_DONTNEED);
    }
}

bool cache_has_room(const struct cache *cache, uint32_t size)
{
    for (unsigned i = 0; i < PARTS; i++) {
        if (cache->parts[i].start + size > cache->parts[i].end) {
            return false;
        }
    }
    return true;
}

void cache_fini(struct cache *cache)
{
    if (cache->write != MAP_FAILED && cache->write) {
        munmap(cache->write, cache->size);
    }
    if (cache->run != MAP_FAILED && cache->run) {
        munmap(cache->run, cache->size);
    }
    if (cache->fd > 0) {
        close(cache->fd);
    }
}
