/*
 * The 9P server under messages made of bytes, in a folder of its own. Some are bytes as they come,
 * most have fields that are mostly possible, so that short inputs reach deep. What lies beside the
 * folder must be as it was in the end.
 * Guards: src/backend/share/server.c src/backend/share/server_fid.c
 * src/backend/share/server_file.c src/backend/share/server_tree.c
 */
#include <signal.h>

#include "backend/share/test_client.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *bytes;
    size_t left;
};

static uint64_t take(struct input *input, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size && input->left; i++, input->left--) {
        value |= (uint64_t)*input->bytes++ << (8 * i);
    }
    return value;
}

/* Names that are likely to be there, that lead out, or that are none. */
static void put_name(struct p9_writer *out, struct input *input)
{
    static const char *const names[] = {"a",  "b", "c",         "d",     "link", "..",
                                        "up", ".", "../secret", "/",     "a/b",  "",
                                        "e",  "f", "/etc",      "secret"};
    uint8_t what = (uint8_t)take(input, 1);
    if (what < 0xf0) {
        p9_put_text(out, names[what & 15]);
        return;
    }
    uint16_t size = (uint16_t)take(input, what & 1 ? 2 : 1);
    p9_put16(out, size);
    for (unsigned i = 0; i < size && i < 512; i++) {
        p9_put8(out, (uint8_t)take(input, 1));
    }
}

static void put_fid(struct p9_writer *out, struct input *input)
{
    uint8_t what = (uint8_t)take(input, 1);
    p9_put32(out, what == 0xff ? (uint32_t)take(input, 4) : what & 7);
}

static void put_number(struct p9_writer *out, struct input *input, unsigned size)
{
    uint8_t what = (uint8_t)take(input, 1);
    uint64_t value = what < 0xf0 ? what : take(input, size);
    p9_put_bytes(out, &value, size);
}

/* Open flags and modes: those that do something. */
static void put_flags(struct p9_writer *out, struct input *input)
{
    uint16_t what = (uint16_t)take(input, 2);
    p9_put32(out, (what & 3u) | (what & 4 ? O_TRUNC : 0) | (what & 8 ? O_APPEND : 0) |
                      (what & 16 ? O_EXCL : 0) | (what & 32 ? O_DIRECTORY : 0) |
                      (what & 0x8000 ? (uint32_t)take(input, 4) : 0));
}

static void put_mode(struct p9_writer *out, struct input *input)
{
    static const uint32_t kinds[8] = {0,       S_IFREG,  S_IFIFO, S_IFDIR,
                                      S_IFCHR, S_IFSOCK, S_IFLNK, S_IFBLK};
    uint8_t what = (uint8_t)take(input, 1);
    p9_put32(out, kinds[what & 7] | (what & 8 ? 07777 : 0700));
}

/*
 * What messages consist of: f fid, n name, l flags, m mode, 1 2 4 8 numbers, w names with their
 * count, d bytes with their count.
 */
static const struct {
    uint8_t type;
    const char *fields;
} kinds[] = {
    {8, "f"},       {12, "fl"},   {14, "fnlm4"},      {16, "fnn4"}, {18, "fnm444"}, {20, "ffn"},
    {22, "f"},      {24, "f8"},   {26, "f4m4488888"}, {40, "f84"},  {50, "f4"},     {52, "f14884n"},
    {54, "f1884n"}, {70, "ffn"},  {72, "fnm4"},       {74, "fnfn"}, {76, "fn4"},    {100, "4n"},
    {104, "f4nn4"}, {108, "2"},   {110, "ffw"},       {116, "f84"}, {118, "f8d"},   {120, "f"},
    {122, "f"},     {110, "ffw"}, {110, "ffw"},       {30, "ffn"},  {32, "fn84"},   {12, "fl"},
    {14, "fnlm4"},  {72, "fnm4"},
};

static void put_field(struct p9_writer *out, struct input *input, char field)
{
    unsigned count = (unsigned)take(input, field == 'w' || field == 'd' ? 1 : 0);
    switch (field) {
    case 'f':
        put_fid(out, input);
        break;
    case 'n':
        put_name(out, input);
        break;
    case 'l':
        put_flags(out, input);
        break;
    case 'm':
        put_mode(out, input);
        break;
    case 'w':
        count %= 18;
        p9_put16(out, (uint16_t)count);
        for (unsigned i = 0; i < count; i++) {
            put_name(out, input);
        }
        break;
    case 'd':
        p9_put32(out, count);
        for (unsigned i = 0; i < count; i++) {
            p9_put8(out, (uint8_t)i);
        }
        break;
    default:
        put_number(out, input, (unsigned)(field - '0'));
    }
}

/* Writes far into a file, and sizes, would make large files: short ones will do. */
static bool is_large(const struct client *client)
{
    const uint8_t *body = client->message + P9_HEADER;
    uint8_t type = client->message[4];
    return (type == 118 && load_le64(body + 4) > 1 << 20) ||
           (type == 26 && load_le64(body + 20) > 1 << 20);
}

static void message(struct client *client, struct input *input)
{
    uint8_t what = (uint8_t)take(input, 1);
    struct p9_writer *out = client_begin(client, kinds[what & 31].type);
    for (const char *field = kinds[what & 31].fields; *field; field++) {
        put_field(out, input, *field);
    }
    if (what & 0x80) { /* too short */
        out->used -= take(input, 1) % (out->used - P9_HEADER + 1);
    }
    client->room = what & 0x40 ? 11 + take(input, 1) : sizeof client->reply;
    if (!is_large(client)) {
        client_call(client);
    }
}

static void raw_message(struct client *client, struct input *input)
{
    struct p9_writer *out = client_begin(client, (uint8_t)take(input, 1));
    for (unsigned count = (unsigned)take(input, 1); count; count--) {
        p9_put8(out, (uint8_t)take(input, 1));
    }
    client->room = sizeof client->reply;
    memset(client->message + out->used, 0, 32); /* for is_large() */
    if (!is_large(client)) {
        client_call(client);
    }
}

static void check_secret(const struct client *client)
{
    char path[128], text[16] = "";
    struct stat status;
    client_path(client, "secret", path);
    int fd = open(path, O_RDONLY | O_NOFOLLOW);
    ASSERT(fd >= 0 && read(fd, text, sizeof text) == 6 && !memcmp(text, "secret", 6));
    ASSERT(!fstat(fd, &status) && status.st_mode == (S_IFREG | 0600) && status.st_nlink == 1);
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct client client;
    struct input input = {data, size};
    char path[128];
    signal(SIGXFSZ, SIG_IGN);
    umask(0);
    client_init(&client, size && (data[0] & 0x80));
    client_path(&client, "secret", path);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    ASSERT(fd >= 0 && write(fd, "secret", 6) == 6);
    close(fd);
    client_path(&client, "root/up", path);
    ASSERT(!symlink("..", path));
    client_path(&client, "root/a", path);
    ASSERT(!mkdir(path, 0700));
    ASSERT(!client_version(&client, 65536, "9P2000.L") && !client_attach(&client, 0));
    while (input.left) {
        if (take(&input, 1) % 16) {
            message(&client, &input);
        } else {
            raw_message(&client, &input);
        }
        ASSERT(p9_server_fids(client.server) <= P9_FIDS_MAX);
    }
    check_secret(&client);
    client_fini(&client);
    return 0;
}
