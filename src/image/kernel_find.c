/* Partitions, then /boot, then the boot loader's configuration: see kernel_find.h. */
#include "image/kernel_find.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "image/gpt.h"
#include "image/version.h"

enum {
    PARTITIONS_MAX = GPT_ENTRIES,
    NAMES_MAX = 65536, /* entries of /boot that are looked at */
    GRUB_MAX = 1 << 20,
    PIECE = 65536,
    COMMAND_FOUND = KERNEL_COMMAND - 32, /* the console is added */
    SUPERBLOCK_MAGIC_AT = 1024 + 56,
    SUPERBLOCK_MAGIC = 0xef53,
};

struct candidate {
    uint64_t offset, size;
    char root[64]; /* what the kernel calls it, for root= */
};

struct search {
    int (*read)(void *owner, uint64_t offset, void *to, size_t size);
    void *owner;
    uint64_t size;
    struct candidate candidates[PARTITIONS_MAX];
    size_t count;
};

/* ---- partitions ---- */

static void add_candidate(struct search *search, uint64_t offset, uint64_t size, const char *root)
{
    if (search->count < PARTITIONS_MAX && size && range_fits(offset, size, search->size)) {
        struct candidate *candidate = &search->candidates[search->count++];
        *candidate = (struct candidate){.offset = offset, .size = size};
        snprintf(candidate->root, sizeof candidate->root, "%s", root);
    }
}

static int add_gpt(struct search *search, const uint8_t *head)
{
    struct gpt gpt;
    int r = gpt_read(head, search->size, &gpt);
    for (size_t i = 0; !r && i < gpt.count; i++) {
        char id[GPT_GUID_TEXT], root[64];
        gpt_guid_print(&gpt.partitions[i].id, id);
        snprintf(root, sizeof root, "PARTUUID=%s", id);
        add_candidate(search, gpt.partitions[i].offset, gpt.partitions[i].size, root);
    }
    return r;
}

/* The four primary partitions of an MBR, which Linux calls SERIAL-NN. */
static void add_mbr(struct search *search, const uint8_t *head)
{
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t *entry = head + 446 + 16 * i;
        char root[64];
        snprintf(root, sizeof root, "PARTUUID=%08x-%02x", load_le32(head + 440), i + 1);
        add_candidate(search, (uint64_t)load_le32(entry + 8) * 512,
                      (uint64_t)load_le32(entry + 12) * 512, root);
    }
}

static int find_candidates(struct search *search)
{
    uint8_t head[GPT_HEAD];
    if (search->size < sizeof head) {
        return fail(-EINVAL, "the disk is too small for a system");
    }
    int r = search->read(search->owner, 0, head, sizeof head);
    if (r) {
        return fail(r, "the disk cannot be read");
    }
    if (gpt_recognize(head, sizeof head)) {
        return add_gpt(search, head);
    }
    if (load_le16(head + SUPERBLOCK_MAGIC_AT) == SUPERBLOCK_MAGIC) {
        add_candidate(search, 0, search->size, "/dev/vda");
    } else if (load_le16(head + 510) == 0xaa55) {
        add_mbr(search, head);
    } else {
        return fail(-EINVAL, "the disk has neither partitions nor an ext4 file system");
    }
    return 0;
}

/* ---- /boot ---- */

struct names {
    char newest[KERNEL_VERSION], newest_bare[KERNEL_VERSION]; /* with an initrd, and without */
    ext2_filsys file_system;
    ext2_ino_t folder;
    unsigned seen;
};

static ext2_ino_t look_up(ext2_filsys file_system, ext2_ino_t folder, const char *name)
{
    ext2_ino_t inode = 0;
    return ext2fs_namei_follow(file_system, EXT2_ROOT_INO, folder, name, &inode) ? 0 : inode;
}

static ext2_ino_t find_initrd(ext2_filsys file_system, ext2_ino_t folder, const char *version)
{
    static const char *const forms[] = {"initrd.img-%s", "initrd-%s", "initramfs-%s.img"};
    ext2_ino_t inode = 0;
    for (size_t i = 0; i < ARRAY_SIZE(forms) && !inode; i++) {
        char name[KERNEL_VERSION + 32];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof name, forms[i], version);
#pragma GCC diagnostic pop
        inode = look_up(file_system, folder, name);
    }
    return inode;
}

/* What dpkg puts there for a moment, and what no command line can name, is no kernel. */
static bool is_version(const char *text)
{
    for (const char *at = text; *at; at++) {
        if (*at <= ' ' || *at > '~' || *at == '/') {
            return false;
        }
    }
    return *text && !strstr(text, ".dpkg-");
}

static int on_entry(ext2_ino_t folder, int entry, struct ext2_dir_entry *item, int offset,
                    int block_size, char *buffer, void *owner)
{
    static const char prefix[] = "vmlinuz-";
    struct names *names = owner;
    char name[EXT2_NAME_LEN + 1];
    size_t length = (size_t)ext2fs_dirent_name_len(item);
    if (++names->seen > NAMES_MAX) {
        return DIRENT_ABORT;
    }
    memcpy(name, item->name, length);
    name[length] = '\0';
    const char *version = name + strlen(prefix);
    if (strncmp(name, prefix, strlen(prefix)) || !is_version(version) ||
        strlen(version) >= KERNEL_VERSION) {
        return 0;
    }
    bool has_initrd = find_initrd(names->file_system, names->folder, version) != 0;
    char *newest = has_initrd ? names->newest : names->newest_bare;
    if (!*newest || version_compare(newest, version) < 0) {
        strcpy(newest, version);
    }
    return 0;
}

static bool file_size(ext2_filsys file_system, ext2_ino_t number, uint64_t limit,
                      uint64_t *ret_size)
{
    struct ext2_inode inode;
    if (ext2fs_read_inode(file_system, number, &inode) || !LINUX_S_ISREG(inode.i_mode)) {
        return false;
    }
    *ret_size = EXT2_I_SIZE(&inode);
    return *ret_size > 0 && *ret_size <= limit;
}

/* A kernel with an initrd goes before a newer one without: that is about to be installed. */
static bool find_in(struct kernel_files *files, ext2_ino_t folder)
{
    struct names names = {.file_system = files->file_system, .folder = folder};
    char name[KERNEL_VERSION + 32];
    if (!folder || ext2fs_dir_iterate2(files->file_system, folder, 0, NULL, on_entry, &names)) {
        return false;
    }
    strcpy(files->version, *names.newest ? names.newest : names.newest_bare);
    if (!*files->version) {
        return false;
    }
    snprintf(name, sizeof name, "vmlinuz-%s", files->version);
    files->kernel = look_up(files->file_system, folder, name);
    files->initrd = find_initrd(files->file_system, folder, files->version);
    if (files->initrd &&
        !file_size(files->file_system, files->initrd, INITRD_SIZE_MAX, &files->initrd_size)) {
        return false;
    }
    return files->kernel &&
           file_size(files->file_system, files->kernel, KERNEL_SIZE_MAX, &files->kernel_size);
}

/* ---- files ---- */

int kernel_file_read(struct kernel_files *files, ext2_ino_t inode, uint64_t size,
                     int (*sink)(void *owner, const void *bytes, size_t size), void *owner)
{
    ext2_file_t file;
    static char piece[PIECE];
    if (ext2fs_file_open(files->file_system, inode, 0, &file)) {
        return fail(-EINVAL, "a file in /boot cannot be opened");
    }
    int r = 0;
    while (size && !r) {
        unsigned got = 0;
        unsigned wanted = size < PIECE ? (unsigned)size : PIECE;
        errcode_t error = ext2fs_file_read(file, piece, wanted, &got);
        if (error || !got || got > wanted) {
            r = fail(-EINVAL, "a file in /boot cannot be read: %s",
                     error ? error_message(error) : "it is too short");
        } else {
            r = sink(owner, piece, got);
            size -= got;
        }
    }
    ext2fs_file_close(file);
    return r;
}

struct text {
    char *bytes;
    size_t size;
};

static int to_text(void *owner, const void *bytes, size_t size)
{
    struct text *text = owner;
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    return 0;
}

/* ---- the command line ---- */

/* The next word of a line, or NULL; quotes are taken off where they surround it. */
static char *next_word(char **line)
{
    char *word;
    do {
        word = strsep(line, " \t");
    } while (word && !*word);
    size_t length = word ? strlen(word) : 0;
    if (length >= 2 && (*word == '"' || *word == '\'') && word[length - 1] == *word) {
        word[length - 1] = '\0';
        word++;
    }
    return word;
}

static bool boots(const char *path, const char *version)
{
    const char *slash = strrchr(path, '/');
    return slash && !strncmp(slash + 1, "vmlinuz-", 8) && !strcmp(slash + 9, version);
}

static void take_words(char *line, char ret_command[KERNEL_COMMAND])
{
    size_t length = 0;
    ret_command[0] = '\0';
    for (const char *word; (word = next_word(&line));) {
        size_t more = strlen(word);
        bool is_plain = !strchr(word, '$');
        for (const char *at = word; *at; at++) {
            is_plain &= *at > ' ' && *at <= '~';
        }
        if (is_plain && more && length + more + 2 < COMMAND_FOUND) {
            length += (size_t)sprintf(ret_command + length, "%s%s", length ? " " : "", word);
        }
    }
}

void kernel_command_from_grub(const char *text, const char *version,
                              char ret_command[KERNEL_COMMAND])
{
    char *copy = strdup(text), *at = copy;
    ASSERT(copy);
    ret_command[0] = '\0';
    for (char *line; (line = strsep(&at, "\n"));) {
        const char *word = next_word(&line);
        if (!word || (strcmp(word, "linux") && strcmp(word, "linuxefi"))) {
            continue;
        }
        word = next_word(&line);
        if (word && boots(word, version)) {
            take_words(line, ret_command);
            break;
        }
    }
    free(copy);
}

static void find_command(struct kernel_files *files, const char *root)
{
    static const char *const places[] = {"/boot/grub/grub.cfg", "/grub/grub.cfg",
                                         "/boot/grub2/grub.cfg", "/grub2/grub.cfg"};
    files->command_line[0] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(places) && !*files->command_line; i++) {
        uint64_t size;
        ext2_ino_t inode = look_up(files->file_system, EXT2_ROOT_INO, places[i]);
        if (!inode || !file_size(files->file_system, inode, GRUB_MAX, &size)) {
            continue;
        }
        struct text text = {.bytes = calloc(1, size + 1)};
        ASSERT(text.bytes);
        if (!kernel_file_read(files, inode, size, to_text, &text)) {
            kernel_command_from_grub(text.bytes, files->version, files->command_line);
        }
        free(text.bytes);
    }
    trail_clear(); /* of files that cannot be read */
    if (!*files->command_line) {
        snprintf(files->command_line, KERNEL_COMMAND, "root=%s ro", root);
    }
    size_t length = strlen(files->command_line);
    if (!strstr(files->command_line, "console=ttyS0")) {
        snprintf(files->command_line + length, KERNEL_COMMAND - length, " console=ttyS0");
    }
}

/* ---- all of it ---- */

static int look_at(const struct search *search, const struct candidate *candidate,
                   struct kernel_files *files)
{
    uint8_t magic[2];
    *files = (struct kernel_files){.blocks = {.read = search->read,
                                              .owner = search->owner,
                                              .offset = candidate->offset,
                                              .size = candidate->size}};
    if (blocks_read(&files->blocks, SUPERBLOCK_MAGIC_AT, magic, sizeof magic) ||
        load_le16(magic) != SUPERBLOCK_MAGIC) {
        return -ENOENT;
    }
    int r = blocks_open(&files->blocks, &files->file_system);
    if (r) {
        return r;
    }
    if (!find_in(files, look_up(files->file_system, EXT2_ROOT_INO, "/boot")) &&
        !find_in(files, EXT2_ROOT_INO)) { /* a partition of its own for /boot */
        kernel_files_close(files);
        return -ENOENT;
    }
    find_command(files, candidate->root);
    return 0;
}

int kernel_find(int (*read)(void *owner, uint64_t offset, void *to, size_t size), void *owner,
                uint64_t size, struct kernel_files *ret_files)
{
    struct search *search = calloc(1, sizeof *search);
    ASSERT(search);
    *search = (struct search){.read = read, .owner = owner, .size = size};
    int r = find_candidates(search), found = -ENOENT;
    for (size_t i = 0; !r && found && i < search->count; i++) {
        int one = look_at(search, &search->candidates[i], ret_files);
        found = one == -ENOENT && found != 0 ? found : one;
    }
    free(search);
    if (r) {
        return r;
    }
    return found == -ENOENT ? fail(-ENOENT, "the disk has no file system with a Linux kernel in "
                                            "/boot (looked at: ext2, ext3 and ext4)")
                            : found;
}

void kernel_files_close(struct kernel_files *files)
{
    if (files->file_system) {
        ext2fs_close(files->file_system);
        files->file_system = NULL;
    }
}
