/*
 * Changing what the guest sees: in place where a cluster belongs to the image alone, otherwise in
 * new clusters. Data goes to its cluster before the L2 entry leads there, without `meta`, so that
 * several writes go on at once; a claim keeps others from the same guest clusters meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/disk/qcow2_internal.h"
#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"

enum {
    ENTRIES_MAX = 512,
    FREES_MAX = 1 << 14, /* noted before a commit carries them out */
};

/* A piece of a request that is handled in one way. */
struct piece {
    uint64_t offset, length; /* of the disk, in bytes */
    unsigned clusters;
    uint64_t host;
    bool fresh;
    uint64_t before[ENTRIES_MAX]; /* the entries of its clusters */
};

static const struct qcow2_claim *find_claim(const struct qcow2 *q, uint64_t first, uint64_t last)
{
    for (const struct qcow2_claim *claim = q->claims; claim; claim = claim->next) {
        if (claim->first <= last && first <= claim->last) {
            return claim;
        }
    }
    return NULL;
}

static void end_claim(struct qcow2 *q, struct qcow2_claim *claim)
{
    struct qcow2_claim **link = &q->claims;
    while (*link != claim) {
        link = &(*link)->next;
    }
    *link = claim->next;
    pthread_cond_broadcast(&q->changed);
}

/* Room for the changes that are to come, and no broken metadata. */
static int prepare(struct qcow2 *q)
{
    if (q->free_count > FREES_MAX || q->l2.dirty > q->l2.limit / 4 * 3) {
        int error = qcow2_commit(q);
        if (error) {
            return error;
        }
    }
    return qcow2_start_changes(q);
}

/*
 * The entries from `offset` on, for at most `length` bytes, once nobody has a claim on the first.
 * The piece ends before the next cluster that somebody has a claim on.
 */
static int take_piece(struct qcow2 *q, uint64_t offset, uint64_t length, struct piece *ret_piece)
{
    struct piece *piece = ret_piece;
    uint64_t first = offset >> q->cluster_bits, last = (offset + length - 1) >> q->cluster_bits;
    while (find_claim(q, first, first)) {
        pthread_cond_wait(&q->changed, &q->meta);
    }
    int error = prepare(q);
    uint64_t want = last - first + 1;
    if (!error) {
        error = qcow2_entries_get(q, offset, want < ENTRIES_MAX ? (unsigned)want : ENTRIES_MAX,
                                  piece->before, &piece->clusters);
    }
    if (error) {
        return error;
    }
    const struct qcow2_claim *claim;
    while ((claim = find_claim(q, first, first + piece->clusters - 1))) {
        piece->clusters = (unsigned)(claim->first - first);
    }
    return 0;
}

/* The piece has `clusters` clusters now: so much of the request is in them. */
static void set_length(const struct qcow2 *q, struct piece *piece, uint64_t offset, uint64_t length)
{
    uint64_t within = offset & (q->cluster_size - 1);
    uint64_t there = ((uint64_t)piece->clusters << q->cluster_bits) - within;
    piece->offset = offset;
    piece->length = there < length ? there : length;
}

static bool is_in_place(const struct qcow2_entry *entry)
{
    return entry->kind == QCOW2_IS_DATA && entry->copied;
}

/* How many clusters can be written in place together with the first; none if that cannot. */
static int find_in_place(struct qcow2 *q, const struct piece *piece, unsigned *ret_count)
{
    struct qcow2_entry first = qcow2_entry_decode(q, piece->before[0]);
    unsigned count = 0;
    for (; count < piece->clusters; count++) {
        struct qcow2_entry entry = qcow2_entry_decode(q, piece->before[count]);
        if (!is_in_place(&entry) || entry.host != first.host + count * q->cluster_size) {
            break;
        }
        if (qcow2_set_has(&q->tables, entry.host >> q->cluster_bits)) {
            return qcow2_corrupt(q, "guest data lies in a table", entry.host);
        }
    }
    *ret_count = count;
    if (count) { /* where the file was cut off it grows again */
        qcow2_note_used(q, (first.host >> q->cluster_bits) + count);
    }
    return 0;
}

/* How many clusters need a new place, from the first on. */
static int find_to_allocate(struct qcow2 *q, const struct piece *piece, unsigned *ret_count)
{
    unsigned count = 0;
    for (; count < piece->clusters; count++) {
        struct qcow2_entry entry = qcow2_entry_decode(q, piece->before[count]);
        if (entry.kind == QCOW2_IS_BAD) {
            return qcow2_corrupt(q, "an L2 entry that cannot be", entry.raw);
        }
        if (is_in_place(&entry)) {
            break;
        }
    }
    *ret_count = count;
    return 0;
}

static bool reads_as_zeros(const struct qcow2 *q, const struct qcow2_entry *entry, uint64_t offset)
{
    return entry->kind == QCOW2_IS_ZERO ||
           (entry->kind == QCOW2_IS_UNALLOCATED && (!q->backing || offset >= q->backing->size));
}

/* The part of a new cluster that the request does not write: as it was. */
static int fill(struct qcow2 *q, uint64_t raw, uint64_t offset, uint64_t length, uint64_t host,
                bool fresh)
{
    struct qcow2_entry entry = qcow2_entry_decode(q, raw);
    if (length == 0) {
        return 0;
    }
    if (reads_as_zeros(q, &entry, offset)) {
        const struct disk_request zeroes = {
            .operation = DISK_WRITE_ZEROES, .offset = host, .length = length};
        return fresh ? 0 : disk_perform(q->file, &zeroes);
    }
    CLEANUP_BUFFER uint8_t *bytes = qcow2_buffer(length);
    int error = qcow2_read_entry(q, &entry, offset, bytes, length);
    return error ? error : disk_write(q->file, host, bytes, length);
}

static int write_data(struct qcow2 *q, const struct disk_request *request,
                      const struct piece *piece)
{
    CLEANUP_BUFFER void *vectors = calloc(request->vector_count + 1, sizeof(struct iovec));
    ASSERT(vectors);
    uint64_t within = piece->offset & (q->cluster_size - 1);
    const struct disk_request write = {
        .operation = DISK_WRITE,
        .offset = piece->host + within,
        .length = piece->length,
        .vectors = vectors,
        .vector_count =
            qcow2_cut_vectors(request, piece->offset - request->offset, piece->length, vectors),
    };
    return disk_perform(q->file, &write);
}

static int write_new(struct qcow2 *q, const struct disk_request *request, const struct piece *piece)
{
    uint64_t within = piece->offset & (q->cluster_size - 1);
    uint64_t end = within + piece->length;
    uint64_t tail = ((uint64_t)piece->clusters << q->cluster_bits) - end;
    int error =
        fill(q, piece->before[0], piece->offset - within, within, piece->host, piece->fresh);
    if (!error) {
        error = fill(q, piece->before[piece->clusters - 1], piece->offset + piece->length, tail,
                     piece->host + end, piece->fresh);
    }
    return error ? error : write_data(q, request, piece);
}

/* What entries led to has one reference less, at the next commit. */
static void free_entries(struct qcow2 *q, const uint64_t *entries, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct qcow2_entry entry = qcow2_entry_decode(q, entries[i]);
        if (entry.kind == QCOW2_IS_COMPRESSED) {
            qcow2_free_later(q, entry.host, entry.length, false);
        } else if (entry.host && entry.kind != QCOW2_IS_BAD) {
            qcow2_free_later(q, entry.host, q->cluster_size, false);
        }
    }
}

/* `meta` is held, and given up while data is written. */
static int allocate_and_write(struct qcow2 *q, const struct disk_request *request,
                              struct piece *piece, uint64_t left)
{
    uint64_t got, entries[ENTRIES_MAX];
    int error = qcow2_allocate(q, piece->clusters, false, &piece->host, &got, &piece->fresh);
    if (error) {
        return error;
    }
    piece->clusters = (unsigned)got;
    set_length(q, piece, piece->offset, left);
    struct qcow2_claim claim = {.first = piece->offset >> q->cluster_bits, .next = q->claims};
    claim.last = claim.first + got - 1;
    q->claims = &claim;
    unsigned epoch = qcow2_enter(q);
    pthread_mutex_unlock(&q->meta);
    error = write_new(q, request, piece);
    qcow2_leave(q, epoch);
    pthread_mutex_lock(&q->meta);
    for (unsigned i = 0; i < got; i++) {
        entries[i] = (piece->host + i * q->cluster_size) | QCOW2_COPIED;
    }
    if (!error) {
        error = q->broken ? -EIO : qcow2_entries_set(q, piece->offset, piece->clusters, entries);
    }
    if (!error) {
        free_entries(q, piece->before, piece->clusters);
    } else {
        const struct qcow2_free taken = {.offset = piece->host, .length = got << q->cluster_bits};
        if (qcow2_free_now(q, &taken)) {
            trail_clear(); /* a leak; `error` says what happened */
        }
    }
    end_claim(q, &claim);
    return error;
}

/* As much of the request from byte `done` on as is handled in one way. */
static int write_piece(struct qcow2 *q, const struct disk_request *request, uint64_t done,
                       uint64_t *ret_length)
{
    struct piece piece = {0};
    uint64_t offset = request->offset + done, left = request->length - done;
    unsigned in_place = 0;
    pthread_mutex_lock(&q->meta);
    int error = take_piece(q, offset, left, &piece);
    if (!error) {
        error = find_in_place(q, &piece, &in_place);
    }
    if (!error && in_place) {
        piece.clusters = in_place;
        piece.host = qcow2_entry_decode(q, piece.before[0]).host;
        set_length(q, &piece, offset, left);
        unsigned epoch = qcow2_enter(q);
        pthread_mutex_unlock(&q->meta);
        error = write_data(q, request, &piece);
        qcow2_leave(q, epoch);
        *ret_length = piece.length;
        return error;
    }
    if (!error) {
        error = find_to_allocate(q, &piece, &piece.clusters);
    }
    if (!error) {
        set_length(q, &piece, offset, left);
        error = allocate_and_write(q, request, &piece, left);
    }
    pthread_mutex_unlock(&q->meta);
    *ret_length = piece.length;
    return error;
}

int qcow2_write(struct qcow2 *q, const struct disk_request *request)
{
    for (uint64_t done = 0; done < request->length;) {
        uint64_t now = 0;
        int error = write_piece(q, request, done, &now);
        if (error) {
            return error;
        }
        done += now;
    }
    return 0;
}

/* Write zeros as data. */
static int write_zero_bytes(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    enum { SIZE = 1 << 16, COUNT = 32 };
    CLEANUP_BUFFER uint8_t *zeros = qcow2_buffer(SIZE);
    memset(zeros, 0, SIZE);
    while (length) {
        struct iovec vectors[COUNT];
        struct disk_request request = {
            .operation = DISK_WRITE, .offset = offset, .vectors = vectors};
        while (length && request.vector_count < COUNT) {
            uint64_t now = length < SIZE ? length : SIZE;
            vectors[request.vector_count++] = (struct iovec){.iov_base = zeros, .iov_len = now};
            request.length += now;
            length -= now;
        }
        int error = qcow2_write(q, &request);
        if (error) {
            return error;
        }
        offset += request.length;
    }
    return 0;
}

/* What an entry becomes by a change of whole clusters; itself: nothing to do. */
typedef uint64_t new_entry(const struct qcow2 *q, uint64_t raw, uint64_t offset);

/* Without a zero flag (version 2) clusters over a backing file cannot be made zeros by an entry. */
static bool can_say_zero(const struct qcow2 *q)
{
    return q->header.version >= 3 || !q->backing;
}

static uint64_t zeroed_entry(const struct qcow2 *q, uint64_t raw, uint64_t offset)
{
    struct qcow2_entry entry = qcow2_entry_decode(q, raw);
    if (reads_as_zeros(q, &entry, offset) && !entry.host) {
        return raw;
    }
    return q->header.version >= 3 ? QCOW2_ZERO : 0;
}

static uint64_t discarded_entry(const struct qcow2 *q, uint64_t raw, uint64_t offset)
{
    struct qcow2_entry entry = qcow2_entry_decode(q, raw);
    if (!entry.host) {
        return raw;
    }
    return q->backing || entry.kind == QCOW2_IS_ZERO ? QCOW2_ZERO : 0;
}

/* Whole clusters: `first` and `end` are numbers of guest clusters. */
static int change_entries(struct qcow2 *q, uint64_t first, uint64_t end, new_entry *become)
{
    int error = 0;
    while (first < end && !error) {
        struct piece piece = {0};
        uint64_t offset = first << q->cluster_bits, entries[ENTRIES_MAX];
        bool is_change = false;
        pthread_mutex_lock(&q->meta);
        error = take_piece(q, offset, (end - first) << q->cluster_bits, &piece);
        for (unsigned i = 0; i < piece.clusters && !error; i++) {
            if (qcow2_entry_decode(q, piece.before[i]).kind == QCOW2_IS_BAD) {
                error = qcow2_corrupt(q, "an L2 entry that cannot be", piece.before[i]);
                break;
            }
            entries[i] = become(q, piece.before[i], offset + i * q->cluster_size);
            is_change |= entries[i] != piece.before[i];
        }
        if (!error && is_change) {
            error = qcow2_entries_set(q, offset, piece.clusters, entries);
        }
        for (unsigned i = 0; i < piece.clusters && !error && is_change; i++) {
            if (entries[i] != piece.before[i]) {
                free_entries(q, &piece.before[i], 1);
            }
        }
        first += piece.clusters;
        pthread_mutex_unlock(&q->meta);
    }
    return error;
}

/* Zeros in a part of a cluster: nothing to do if that is what is there. */
static int zero_part(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t raw = 0;
    unsigned count;
    if (length == 0) {
        return 0;
    }
    pthread_mutex_lock(&q->meta);
    while (find_claim(q, offset >> q->cluster_bits, offset >> q->cluster_bits)) {
        pthread_cond_wait(&q->changed, &q->meta);
    }
    int error = qcow2_entries_get(q, offset, 1, &raw, &count);
    pthread_mutex_unlock(&q->meta);
    struct qcow2_entry entry = qcow2_entry_decode(q, raw);
    if (error || reads_as_zeros(q, &entry, offset)) {
        return error;
    }
    return write_zero_bytes(q, offset, length);
}

/* The whole clusters of a range; the disk's last one counts as whole though it may be cut off. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t length,
                           uint64_t *ret_first, uint64_t *ret_end)
{
    uint64_t end = offset + length;
    *ret_first = (offset + q->cluster_size - 1) >> q->cluster_bits;
    *ret_end = (end == q->disk.size ? end + q->cluster_size - 1 : end) >> q->cluster_bits;
}

int qcow2_write_zeroes(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t first, end_cluster, end = offset + length;
    whole_clusters(q, offset, length, &first, &end_cluster);
    if (!can_say_zero(q)) {
        return write_zero_bytes(q, offset, length);
    }
    if (first >= end_cluster) { /* in one cluster, or in two without a whole one */
        uint64_t middle = align_down(end, q->cluster_size);
        middle = middle > offset ? middle : end;
        int error = zero_part(q, offset, middle - offset);
        return error ? error : zero_part(q, middle, end - middle);
    }
    uint64_t start = first << q->cluster_bits, stop = end_cluster << q->cluster_bits;
    int error = zero_part(q, offset, start - offset);
    if (!error) {
        error = change_entries(q, first, end_cluster, zeroed_entry);
    }
    return error || stop >= end ? error : zero_part(q, stop, end - stop);
}

int qcow2_discard(struct qcow2 *q, uint64_t offset, uint64_t length)
{
    uint64_t first, end;
    whole_clusters(q, offset, length, &first, &end);
    /* a hint: what cannot be followed stays */
    return can_say_zero(q) && first < end ? change_entries(q, first, end, discarded_entry) : 0;
}
