/* The 9P server in a folder of its own: what each message does, and that none leads out. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "backend/share/test_client.h"

enum {
    OPEN = 12,
    CREATE = 14,
    SYMLINK = 16,
    MKNOD = 18,
    RENAME = 20,
    READLINK = 22,
    GETATTR = 24,
    SETATTR = 26,
    XATTRWALK = 30,
    READDIR = 40,
    FSYNC = 50,
    LOCK = 52,
    GETLOCK = 54,
    LINK = 70,
    MKDIR = 72,
    RENAMEAT = 74,
    UNLINKAT = 76,
    AUTH = 102,
    FLUSH = 108,
    READ = 116,
    WRITE = 118,
    CLUNK = 120,
    REMOVE = 122,
    ROOT = 1, /* the fid of the root */
};

static struct client client;

static int begin(void **state, bool readonly)
{
    client_init(&client, readonly);
    assert_int_equal(client_version(&client, 65536, "9P2000.L"), 0);
    assert_int_equal(client_attach(&client, ROOT), 0);
    *state = &client;
    return 0;
}

static int set_up(void **state)
{
    return begin(state, false);
}

static int set_up_readonly(void **state)
{
    return begin(state, true);
}

static int tear_down(void **state)
{
    client_fini(&client);
    return 0;
}

static int call32(uint8_t type, unsigned count, ...)
{
    va_list values;
    struct p9_writer *out = client_begin(&client, type);
    va_start(values, count);
    for (unsigned i = 0; i < count; i++) {
        p9_put32(out, va_arg(values, uint32_t));
    }
    va_end(values);
    return client_call(&client);
}

static int create(uint32_t fid, const char *name, uint32_t flags, uint32_t mode)
{
    struct p9_writer *out = client_begin(&client, CREATE);
    p9_put32(out, fid);
    p9_put_text(out, name);
    p9_put32(out, flags);
    p9_put32(out, mode);
    p9_put32(out, 0);
    return client_call(&client);
}

static int make_folder(uint32_t fid, const char *name)
{
    struct p9_writer *out = client_begin(&client, MKDIR);
    p9_put32(out, fid);
    p9_put_text(out, name);
    p9_put32(out, 0755);
    p9_put32(out, 0);
    return client_call(&client);
}

static int make_link(uint32_t fid, const char *name, const char *target)
{
    struct p9_writer *out = client_begin(&client, SYMLINK);
    p9_put32(out, fid);
    p9_put_text(out, name);
    p9_put_text(out, target);
    p9_put32(out, 0);
    return client_call(&client);
}

static int make_node(uint32_t fid, const char *name, uint32_t mode)
{
    struct p9_writer *out = client_begin(&client, MKNOD);
    p9_put32(out, fid);
    p9_put_text(out, name);
    p9_put32(out, mode);
    p9_put64(out, 1 | UINT64_C(3) << 32);
    p9_put32(out, 0);
    return client_call(&client);
}

static int write_at(uint32_t fid, uint64_t offset, const char *text)
{
    struct p9_writer *out = client_begin(&client, WRITE);
    p9_put32(out, fid);
    p9_put64(out, offset);
    p9_put32(out, (uint32_t)strlen(text));
    p9_put_bytes(out, text, strlen(text));
    return client_call(&client);
}

/* What can be read, as a text. */
static int read_at(uint32_t fid, uint64_t offset, char text[256])
{
    struct p9_writer *out = client_begin(&client, READ);
    p9_put32(out, fid);
    p9_put64(out, offset);
    p9_put32(out, 255);
    int r = client_call(&client);
    if (!r) {
        uint32_t size = p9_take32(&client.in);
        assert_int_equal(size, client.in.left);
        memcpy(text, client.in.at, size);
        text[size] = 0;
    }
    return r;
}

static int rename_in(uint32_t from, const char *name, uint32_t to, const char *new_name)
{
    struct p9_writer *out = client_begin(&client, RENAMEAT);
    p9_put32(out, from);
    p9_put_text(out, name);
    p9_put32(out, to);
    p9_put_text(out, new_name);
    return client_call(&client);
}

static int rename_fid(uint32_t fid, uint32_t to, const char *new_name)
{
    struct p9_writer *out = client_begin(&client, RENAME);
    p9_put32(out, fid);
    p9_put32(out, to);
    p9_put_text(out, new_name);
    return client_call(&client);
}

static int link_to(uint32_t folder, uint32_t fid, const char *name)
{
    struct p9_writer *out = client_begin(&client, LINK);
    p9_put32(out, folder);
    p9_put32(out, fid);
    p9_put_text(out, name);
    return client_call(&client);
}

static int unlink_in(uint32_t fid, const char *name, uint32_t flags)
{
    struct p9_writer *out = client_begin(&client, UNLINKAT);
    p9_put32(out, fid);
    p9_put_text(out, name);
    p9_put32(out, flags);
    return client_call(&client);
}

struct attributes {
    uint32_t mode, uid, gid;
    uint64_t links, size, mtime;
};

static int get_attributes(uint32_t fid, struct attributes *ret_attributes)
{
    struct p9_writer *out = client_begin(&client, GETATTR);
    p9_put32(out, fid);
    p9_put64(out, 0x7ff);
    int r = client_call(&client);
    if (r) {
        return r;
    }
    assert_int_equal(p9_take64(&client.in), 0x7ff);
    p9_take(&client.in, 13);
    ret_attributes->mode = p9_take32(&client.in);
    ret_attributes->uid = p9_take32(&client.in);
    ret_attributes->gid = p9_take32(&client.in);
    ret_attributes->links = p9_take64(&client.in);
    p9_take64(&client.in);
    ret_attributes->size = p9_take64(&client.in);
    p9_take(&client.in, 8 + 8 + 16);
    ret_attributes->mtime = p9_take64(&client.in);
    p9_take(&client.in, 8 + 16 + 16 + 16);
    assert_true(!client.in.bad && client.in.left == 0);
    return 0;
}

static int set_attributes(uint32_t fid, uint32_t valid, uint32_t mode, uint64_t size,
                          uint64_t mtime)
{
    struct p9_writer *out = client_begin(&client, SETATTR);
    p9_put32(out, fid);
    p9_put32(out, valid);
    p9_put32(out, mode);
    p9_put32(out, 12345);
    p9_put32(out, 12345);
    p9_put64(out, size);
    p9_put64(out, 0);
    p9_put64(out, 0);
    p9_put64(out, mtime);
    p9_put64(out, 0);
    return client_call(&client);
}

/* The host's side. */
static struct stat look(const char *name)
{
    char path[128];
    struct stat status = {0};
    client_path(&client, name, path);
    lstat(path, &status);
    return status;
}

static void put_file(const char *name, const char *text)
{
    char path[128];
    client_path(&client, name, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void sessions(void **state)
{
    assert_int_equal(client_version(&client, 4095, "9P2000.L"), -EPROTO);
    assert_int_equal(client_version(&client, 1 << 30, "9P2000.L"), 0);
    assert_int_equal(p9_take32(&client.in), P9_MESSAGE_MAX);
    assert_int_equal(p9_server_fids(client.server), 0); /* a new session knows none */
    assert_int_equal(client_walk(&client, ROOT, 2, NULL), -EBADF);
    assert_int_equal(client_version(&client, 65536, "9P2000.u"), 0);
    p9_take32(&client.in);
    assert_memory_equal(client.in.at, "\7\0unknown", 9);
    assert_int_equal(client_attach(&client, ROOT), -EPROTO); /* there is no session */
    assert_int_equal(client_version(&client, 8192, "9P2000.L"), 0);
    assert_int_equal(client_attach(&client, ROOT), 0);
    assert_int_equal(client_attach(&client, ROOT), -EBADF);
    assert_int_equal(client_attach(&client, UINT32_MAX), -EBADF);
    struct p9_writer *out = client_begin(&client, FLUSH);
    p9_put16(out, 5);
    assert_int_equal(client_call(&client), 0);
    assert_int_equal(call32(AUTH, 1, 5), -EOPNOTSUPP);
    assert_int_equal(call32(XATTRWALK, 2, ROOT, 9), -EOPNOTSUPP);
    assert_int_equal(call32(CLUNK, 1, ROOT), 0);
    assert_int_equal(call32(CLUNK, 1, ROOT), -EBADF);
}

static void walking(void **state)
{
    assert_int_equal(make_folder(ROOT, "a"), 0);
    assert_int_equal(client_walk(&client, ROOT, 2, "a"), 0);
    assert_int_equal(make_folder(2, "b"), 0);
    assert_int_equal(client_walk(&client, ROOT, 3, "a/b"), 0);
    assert_int_equal(p9_take16(&client.in), 2);
    assert_int_equal(*p9_take(&client.in, 1), 0x80);
    /* Some of the way: told, and the fid is not made. */
    assert_int_equal(client_walk(&client, ROOT, 4, "a/none/b"), 0);
    assert_int_equal(p9_take16(&client.in), 1);
    assert_int_equal(call32(CLUNK, 1, 4), -EBADF);
    assert_int_equal(client_walk(&client, ROOT, 4, "none"), -ENOENT);
    assert_int_equal(client_walk(&client, 9, 4, "a"), -EBADF);
    assert_int_equal(client_walk(&client, ROOT, 3, "a"), -EBADF);
    assert_int_equal(client_walk(&client, ROOT, 4, NULL), 0);
    assert_int_equal(client_walk(&client, 4, 4, "a/b"), 0); /* in place */
    assert_int_equal(client_walk(&client, 4, 5, ".."), 0);
    assert_int_equal(client_walk(&client, 5, 6, "b"), 0);
    static char many[] = "a/../a/../a/../a/../a/../a/../a/../a/../a";
    assert_int_equal(client_walk(&client, ROOT, 7, many), -EPROTO); /* 17 steps */
    many[sizeof many - 3] = 0;
    assert_int_equal(client_walk(&client, ROOT, 7, many), 0);
}

/* No name, link or move leads out of the folder. */
static void nothing_leads_out(void **state)
{
    char path[128], text[256];
    put_file("secret", "secret");
    client_path(&client, "secret", path);
    assert_int_equal(make_link(ROOT, "absolute", path), 0);
    assert_int_equal(make_link(ROOT, "relative", "../secret"), 0);
    assert_int_equal(make_link(ROOT, "up", ".."), 0);
    assert_int_equal(make_link(ROOT, "all", "/"), 0);
    static const char *const links[] = {"absolute", "relative", "up", "all"};
    for (uint32_t i = 0; i < 4; i++) { /* a link is a link, and neither opened nor followed */
        assert_int_equal(client_walk(&client, ROOT, 10 + i, links[i]), 0);
        assert_int_equal(client.in.at[2], 0x02);
        assert_int_equal(call32(OPEN, 2, 10 + i, O_RDONLY), -ELOOP);
        assert_int_equal(create(10 + i, "x", O_RDWR, 0644), -ENOTDIR);
        assert_int_equal(make_folder(10 + i, "x"), -ENOTDIR);
        assert_int_not_equal(client_walk(&client, 10 + i, 20, "secret"), 0);
        assert_int_equal(rename_in(10 + i, "secret", ROOT, "mine"), -ENOTDIR);
        assert_int_equal(unlink_in(10 + i, "secret", 0), -ENOTDIR);
        assert_int_equal(set_attributes(10 + i, 1, 0777, 0, 0), -EOPNOTSUPP);
        assert_int_not_equal(set_attributes(10 + i, 8, 0, 0, 0), 0);
    }
    /* Up at the root is the root. */
    struct stat root = look("root");
    assert_int_equal(client_walk(&client, ROOT, 20, "../../.."), 0);
    assert_int_equal(p9_take16(&client.in), 3);
    assert_int_equal(load_le64(client.in.at + 5), root.st_ino);
    assert_int_equal(client_walk(&client, 20, 21, "secret"), -ENOENT);
    static const char *const names[] = {"..", ".", "", "../secret", "a/b", "/"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_int_equal(create(ROOT, names[i], O_RDWR, 0644), -EINVAL);
        assert_int_equal(make_folder(ROOT, names[i]), -EINVAL);
        assert_int_equal(make_link(ROOT, names[i], "x"), -EINVAL);
        assert_int_equal(make_node(ROOT, names[i], S_IFIFO | 0600), -EINVAL);
        assert_int_equal(rename_in(ROOT, "absolute", ROOT, names[i]), -EINVAL);
        assert_int_equal(rename_in(ROOT, names[i], ROOT, "x"), -EINVAL);
        assert_int_equal(unlink_in(ROOT, names[i], 0), -EINVAL);
        assert_int_equal(link_to(ROOT, 10, names[i]), -EINVAL);
    }
    /* A folder that becomes a link while a fid goes through it. */
    assert_int_equal(make_folder(ROOT, "door"), 0);
    assert_int_equal(client_walk(&client, ROOT, 30, "door"), 0);
    assert_int_equal(unlink_in(ROOT, "door", 0x200), 0);
    assert_int_equal(make_link(ROOT, "door", ".."), 0);
    assert_int_equal(create(30, "secret", O_RDWR | O_TRUNC, 0644), -ENOTDIR);
    assert_int_not_equal(client_walk(&client, 30, 31, "secret"), 0);
    /* A hard link to a link is a link. */
    assert_int_equal(link_to(ROOT, 10, "again"), 0);
    assert_true(S_ISLNK(look("root/again").st_mode));
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, text, sizeof text), 6);
    close(fd);
}

static void contents(void **state)
{
    char text[256];
    struct attributes a;
    assert_int_equal(client_walk(&client, ROOT, 2, NULL), 0);
    assert_int_equal(create(2, "file", O_RDWR | O_CREAT | O_EXCL, 0640), 0);
    assert_int_equal(write_at(2, 0, "hello, world"), 0);
    assert_int_equal(p9_take32(&client.in), 12);
    assert_int_equal(read_at(2, 7, text), 0);
    assert_string_equal(text, "world");
    assert_int_equal(read_at(2, 100, text), 0);
    assert_string_equal(text, "");
    assert_int_equal(read_at(2, INT64_MAX, text), -EINVAL);
    assert_int_equal(write_at(2, INT64_MAX, "x"), -EFBIG);
    assert_int_equal(get_attributes(2, &a), 0);
    assert_int_equal(a.mode, S_IFREG | 0640);
    assert_int_equal(a.size, 12);
    assert_int_equal(a.uid, geteuid());
    assert_int_equal(call32(FSYNC, 1, 2), 0);
    assert_int_equal(call32(FSYNC, 2, 2, 1), 0);
    assert_int_equal(call32(OPEN, 2, 2, O_RDONLY), -EINVAL); /* it is open */
    /* There already: opened, unless that is forbidden. */
    assert_int_equal(client_walk(&client, ROOT, 3, NULL), 0);
    assert_int_equal(create(3, "file", O_RDWR | O_CREAT | O_EXCL, 0640), -EEXIST);
    assert_int_equal(create(3, "file", O_RDWR | O_CREAT | O_TRUNC, 0640), 0);
    assert_int_equal(get_attributes(2, &a), 0);
    assert_int_equal(a.size, 0);
    assert_int_equal(client_walk(&client, ROOT, 4, "file"), 0);
    assert_int_equal(write_at(4, 0, "x"), -EBADF); /* not open */
    assert_int_equal(call32(OPEN, 2, 4, O_WRONLY | O_APPEND), 0);
    assert_int_equal(write_at(4, 0, "one"), 0);
    assert_int_equal(write_at(4, 0, "two"), 0);
    assert_int_equal(read_at(4, 0, text), -EBADF);
    assert_int_equal(read_at(2, 0, text), 0);
    assert_string_equal(text, "onetwo");
    /* A write whose count is not what follows. */
    struct p9_writer *out = client_begin(&client, WRITE);
    p9_put32(out, 2);
    p9_put64(out, 0);
    p9_put32(out, UINT32_MAX);
    p9_put_text(out, "x");
    assert_int_equal(client_call(&client), -EPROTO);
    /* Without its name a file is still there for who has it open. */
    assert_int_equal(unlink_in(ROOT, "file", 0), 0);
    assert_int_equal(get_attributes(2, &a), 0);
    assert_int_equal(a.links, 0);
    assert_int_equal(set_attributes(2, 8, 0, 3, 0), 0);
    assert_int_equal(read_at(2, 0, text), 0);
    assert_string_equal(text, "one");
}

static void attributes(void **state)
{
    struct attributes a;
    put_file("root/file", "12345678");
    assert_int_equal(client_walk(&client, ROOT, 2, "file"), 0);
    assert_int_equal(set_attributes(2, 1, 07755, 0, 0), 0);
    assert_int_equal(look("root/file").st_mode, S_IFREG | 01755); /* no set-user-id */
    assert_int_equal(set_attributes(2, 8, 0, 4, 0), 0);
    assert_int_equal(set_attributes(2, 8, 0, UINT64_MAX, 0), -EINVAL);
    assert_int_equal(set_attributes(2, 0x120, 0, 0, 1000000000), 0);
    assert_int_equal(get_attributes(2, &a), 0);
    assert_int_equal(a.size, 4);
    assert_int_equal(a.mtime, 1000000000);
    assert_int_equal(set_attributes(2, 0x20, 0, 0, 0), 0); /* now */
    assert_int_equal(get_attributes(2, &a), 0);
    assert_true(a.mtime > 1000000000);
    if (geteuid()) { /* another owner is reported as done, and is not */
        assert_int_equal(set_attributes(2, 2 | 4, 0, 0, 0), 0);
        assert_int_equal(look("root/file").st_uid, geteuid());
    }
    assert_int_equal(call32(8, 1, ROOT), 0); /* statfs */
    assert_int_equal(client.in.left, 4 + 4 + 6 * 8 + 4);
}

static void links_and_nodes(void **state)
{
    char long_target[P9_TEXT_MAX + 1];
    memset(long_target, 'x', sizeof long_target - 1);
    long_target[sizeof long_target - 1] = 0;
    assert_int_equal(make_link(ROOT, "link", long_target), 0);
    assert_int_equal(client_walk(&client, ROOT, 2, "link"), 0);
    assert_int_equal(call32(READLINK, 1, 2), 0);
    assert_int_equal(p9_take16(&client.in), P9_TEXT_MAX);
    assert_memory_equal(client.in.at, long_target, P9_TEXT_MAX);
    assert_int_equal(call32(READLINK, 1, ROOT), -EINVAL);
    put_file("root/file", "text");
    assert_int_equal(client_walk(&client, ROOT, 3, "file"), 0);
    assert_int_equal(link_to(ROOT, 3, "hard"), 0);
    assert_int_equal(look("root/hard").st_nlink, 2);
    assert_int_equal(link_to(ROOT, ROOT, "folder"), -EPERM);
    assert_int_equal(make_node(ROOT, "device", S_IFCHR | 0666), -EPERM);
    assert_int_equal(make_node(ROOT, "block", S_IFBLK | 0666), -EPERM);
    assert_int_equal(make_node(ROOT, "plain", S_IFREG | 06755), 0);
    assert_int_equal(look("root/plain").st_mode, S_IFREG | 0755);
    assert_int_equal(make_node(ROOT, "pipe", S_IFIFO | 0600), 0);
    assert_int_equal(make_node(ROOT, "socket", S_IFSOCK | 0600), 0);
    /* A pipe is not opened, which might take for ever. */
    assert_int_equal(client_walk(&client, ROOT, 4, "pipe"), 0);
    assert_int_equal(call32(OPEN, 2, 4, O_RDONLY), -ENXIO);
    assert_int_equal(call32(OPEN, 2, 4, O_WRONLY), -ENXIO);
    assert_int_equal(client_walk(&client, ROOT, 5, NULL), 0);
    assert_int_equal(create(5, "pipe", O_WRONLY, 0600), -ENXIO);
    assert_int_equal(create(5, "socket", O_RDWR, 0600), -ENXIO);
    assert_int_equal(create(5, "link", O_RDWR, 0600), -ELOOP);
}

/* Fids go with what is moved, open or not. */
static void moving(void **state)
{
    char text[256];
    assert_int_equal(make_folder(ROOT, "a"), 0);
    assert_int_equal(make_folder(ROOT, "ab"), 0);
    assert_int_equal(client_walk(&client, ROOT, 2, "a"), 0);
    assert_int_equal(client_walk(&client, ROOT, 3, "ab"), 0);
    assert_int_equal(client_walk(&client, ROOT, 4, "a"), 0);
    assert_int_equal(create(4, "file", O_RDWR, 0644), 0);
    assert_int_equal(write_at(4, 0, "text"), 0);
    assert_int_equal(client_walk(&client, 2, 5, "file"), 0);
    assert_int_equal(rename_in(ROOT, "a", 3, "moved"), 0); /* a to ab/moved */
    assert_int_equal(call32(OPEN, 2, 5, O_RDONLY), 0);
    assert_int_equal(read_at(5, 0, text), 0);
    assert_string_equal(text, "text");
    assert_int_equal(make_folder(2, "deep"), 0);
    assert_true(S_ISDIR(look("root/ab/moved/deep").st_mode));
    assert_int_equal(make_folder(3, "other"), 0); /* ab itself is where it was */
    assert_int_equal(client_walk(&client, ROOT, 6, "ab/moved/file"), 0);
    assert_int_equal(rename_fid(6, ROOT, "top"), 0);
    assert_true(S_ISREG(look("root/top").st_mode));
    assert_int_equal(rename_fid(ROOT, ROOT, "x"), -EBUSY);
    assert_int_equal(rename_in(3, "moved", 2, "inside"), -EINVAL);
    assert_int_equal(rename_in(ROOT, "none", ROOT, "x"), -ENOENT);
    assert_int_equal(unlink_in(ROOT, "ab", 0x200), -ENOTEMPTY);
    assert_int_equal(unlink_in(ROOT, "ab", 0), -EISDIR);
    assert_int_equal(call32(REMOVE, 1, 6), 0);
    assert_int_equal(call32(CLUNK, 1, 6), -EBADF); /* gone with its file */
    assert_int_equal(call32(REMOVE, 1, ROOT), -EBUSY);
    assert_int_equal(p9_server_fids(client.server), 4);
}

/* A long list in small pieces: each name once. */
static void listing(void **state)
{
    enum { COUNT = 3000 };
    static uint8_t seen[COUNT];
    unsigned names = 0;
    char name[32];
    memset(seen, 0, sizeof seen);
    for (unsigned i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "root/%u", i);
        put_file(name, "");
    }
    assert_int_equal(client_walk(&client, ROOT, 2, NULL), 0);
    struct p9_writer *out = client_begin(&client, READDIR);
    p9_put32(out, 2);
    p9_put64(out, 0);
    p9_put32(out, 100);
    assert_int_equal(client_call(&client), -EBADF); /* not open */
    assert_int_equal(call32(OPEN, 2, 2, O_RDONLY | O_DIRECTORY), 0);
    uint64_t offset = 0;
    for (bool more = true; more;) {
        out = client_begin(&client, READDIR);
        p9_put32(out, 2);
        p9_put64(out, offset);
        p9_put32(out, 200);
        assert_int_equal(client_call(&client), 0);
        uint32_t size = p9_take32(&client.in);
        assert_int_equal(size, client.in.left);
        assert_true(size <= 200);
        more = size;
        while (client.in.left) {
            uint64_t inode = load_le64(p9_take(&client.in, 13) + 5);
            offset = p9_take64(&client.in);
            p9_take8(&client.in);
            p9_take_text(&client.in, name, sizeof name - 1);
            assert_false(client.in.bad);
            if (!strcmp(name, "..")) { /* what is above is not told */
                assert_int_equal(inode, look("root").st_ino);
            }
            names++;
            if (*name != '.') {
                assert_int_equal(seen[atoi(name)]++, 0);
            }
        }
    }
    assert_int_equal(names, COUNT + 2);
    out = client_begin(&client, READDIR);
    p9_put32(out, 2);
    p9_put64(out, 0);
    p9_put32(out, 10); /* not even one */
    assert_int_equal(client_call(&client), -EINVAL);
    put_file("root/0", "x");
    assert_int_equal(client_walk(&client, ROOT, 3, "0"), 0);
    assert_int_equal(call32(OPEN, 2, 3, O_RDONLY), 0);
    out = client_begin(&client, READDIR);
    p9_put32(out, 3);
    p9_put64(out, 0);
    p9_put32(out, 100);
    assert_int_equal(client_call(&client), -ENOTDIR);
}

static void locks(void **state)
{
    put_file("root/file", "");
    assert_int_equal(client_walk(&client, ROOT, 2, "file"), 0);
    for (unsigned open = 0; open < 2; open++) {
        struct p9_writer *out = client_begin(&client, LOCK);
        p9_put32(out, 2);
        p9_put8(out, 1);
        p9_put32(out, 0);
        p9_put64(out, 0);
        p9_put64(out, 0);
        p9_put32(out, 99);
        p9_put_text(out, "guest");
        assert_int_equal(client_call(&client), open ? 0 : -EBADF);
        out = client_begin(&client, GETLOCK);
        p9_put32(out, 2);
        p9_put8(out, 1);
        p9_put64(out, 10);
        p9_put64(out, 20);
        p9_put32(out, 99);
        p9_put_text(out, "guest");
        assert_int_equal(client_call(&client), open ? 0 : -EBADF);
        assert_true(!open || *client.in.at == 2);
        assert_int_equal(call32(OPEN, 2, 2, O_RDWR), open ? -EINVAL : 0);
    }
}

static void readonly_share(void **state)
{
    char text[256];
    put_file("root/file", "text");
    assert_int_equal(client_walk(&client, ROOT, 2, "file"), 0);
    assert_int_equal(call32(OPEN, 2, 2, O_WRONLY), -EROFS);
    assert_int_equal(call32(OPEN, 2, 2, O_RDONLY | O_TRUNC), -EROFS);
    assert_int_equal(set_attributes(2, 1, 0777, 0, 0), -EROFS);
    assert_int_equal(set_attributes(2, 8, 0, 0, 0), -EROFS);
    assert_int_equal(link_to(ROOT, 2, "x"), -EROFS);
    assert_int_equal(rename_fid(2, ROOT, "x"), -EROFS);
    assert_int_equal(rename_in(ROOT, "file", ROOT, "x"), -EROFS);
    assert_int_equal(unlink_in(ROOT, "file", 0), -EROFS);
    assert_int_equal(make_folder(ROOT, "x"), -EROFS);
    assert_int_equal(make_link(ROOT, "x", "y"), -EROFS);
    assert_int_equal(make_node(ROOT, "x", S_IFIFO | 0600), -EROFS);
    assert_int_equal(client_walk(&client, ROOT, 3, NULL), 0);
    assert_int_equal(create(3, "x", O_RDONLY, 0600), -EROFS);
    assert_int_equal(create(3, "file", O_RDONLY, 0600), -EROFS);
    assert_int_equal(call32(OPEN, 2, 2, O_RDONLY), 0);
    assert_int_equal(write_at(2, 0, "x"), -EBADF);
    assert_int_equal(read_at(2, 0, text), 0);
    assert_string_equal(text, "text");
    assert_int_equal(call32(REMOVE, 1, 2), -EROFS);
    assert_int_equal(look("root/file").st_size, 4);
}

/* As many names as may be held, and not one more; the same for open files. */
static void limits(void **state)
{
    uint32_t i = 2;
    while (client_walk(&client, ROOT, i, NULL) == 0) {
        i++;
    }
    assert_int_equal(client_walk(&client, ROOT, i, NULL), -ENFILE);
    assert_int_equal(p9_server_fids(client.server), P9_FIDS_MAX);
    assert_int_equal(call32(CLUNK, 1, 1000), 0);
    assert_int_equal(client_walk(&client, ROOT, 1000, NULL), 0);
    struct rlimit before, small;
    getrlimit(RLIMIT_NOFILE, &before);
    small = before;
    small.rlim_cur = 64;
    setrlimit(RLIMIT_NOFILE, &small);
    int r = 0;
    for (i = 2; i < 100 && !r; i++) {
        r = call32(OPEN, 2, i, O_RDONLY);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    assert_int_equal(r, -EMFILE);
    assert_int_equal(client_version(&client, 8192, "9P2000.L"), 0);
    assert_int_equal(p9_server_fids(client.server), 0);
    assert_int_equal(client_attach(&client, ROOT), 0);
    /* Paths that are too long, in names or in all. */
    char name[P9_NAME_MAX + 1];
    memset(name, 'n', P9_NAME_MAX);
    name[P9_NAME_MAX] = 0;
    for (i = 1; (r = make_folder(i, name)) == 0; i++) {
        assert_int_equal(client_walk(&client, i, i + 1, name), 0);
    }
    assert_int_equal(r, -ENAMETOOLONG);
    assert_int_equal(i, 17); /* the last one's path has 4,095 bytes */
    uint32_t deep = i;
    for (i = 100; (r = client_walk(&client, deep, i, NULL)) == 0; i++) {
    }
    assert_int_equal(r, -ENOMEM);
    assert_in_range(i - 100, P9_PATH_BYTES_MAX / 4096 - 20, P9_PATH_BYTES_MAX / 4096);
    while (deep > 1) { /* take it down, as the test's own removal knows no such paths */
        assert_int_equal(unlink_in(deep - 1, name, 0x200), 0);
        deep--;
    }
}

/* A message of each type, cut at each length, and with more than belongs to it. */
static void broken_messages(void **state)
{
    static uint8_t whole[64];
    for (unsigned type = 0; type < 256; type++) {
        memset(whole, 0, sizeof whole);
        whole[4] = (uint8_t)type;
        whole[P9_HEADER] = ROOT;
        for (uint32_t size = P9_HEADER; size <= sizeof whole; size++) {
            memcpy(client.message, whole, sizeof whole);
            client.out.used = size;
            client_call(&client);
            if (p9_server_fids(client.server) == 0) { /* some give the root back */
                assert_int_equal(client_attach(&client, ROOT), 0);
                memcpy(client.message, whole, sizeof whole);
                client.out.used = size;
            }
            store_le32(client.message, size + 1); /* a size that is not so */
            assert_int_not_equal(client_send(&client), 0);
        }
    }
    assert_int_equal(
        p9_server_answer(client.server, client.message, P9_HEADER - 1, client.reply, client.room),
        0);
    /* No room for the answer. */
    assert_int_equal(client_version(&client, 65536, "9P2000.L"), 0);
    assert_int_equal(client_attach(&client, ROOT), 0);
    client.room = 11;
    assert_int_equal(client_walk(&client, ROOT, 50, "x"), -ENOENT);
    assert_int_equal(call32(8, 1, ROOT), -EMSGSIZE);
    assert_int_equal(p9_server_answer(client.server, client.message, 20, client.reply, 10), 0);
}

int main(void)
{
#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(sessions),
        TEST(walking),
        TEST(nothing_leads_out),
        TEST(contents),
        TEST(attributes),
        TEST(links_and_nodes),
        TEST(moving),
        TEST(listing),
        TEST(locks),
        cmocka_unit_test_setup_teardown(readonly_share, set_up_readonly, tear_down),
        TEST(limits),
        TEST(broken_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
