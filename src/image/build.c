/* The steps of a build: see build.h. */
#include "image/build.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "image/build_internal.h"
#include "image/fat.h"
#include "image/gpt.h"
#include "image/process.h"
#include "image/recipe.h"

/* Of what an image understands: 1 is the file `doppel` in the volume `cidata`. */
enum { RECIPE_VERSION = 1 };

/* Where things are on the disk; the root file system takes the rest. */
enum { EFI_NUMBER = 15, ROOT_NUMBER = 1 };
#define EFI_OFFSET  MIB(1)
#define ROOT_OFFSET MIB(64)
_Static_assert(MIB(1) + FAT_SIZE == MIB(64), "the EFI system partition ends where the root begins");

/*
 * A Debian that somebody can log in to and work with, of about the packages of Debian's own cloud
 * images. mmdebstrap adds those of priority `required`, and apt.
 */
static const char packages[] =
    "systemd-sysv,systemd-resolved,systemd-timesyncd,udev,dbus,libpam-systemd,initramfs-tools,"
    "grub-efi-amd64,openssh-server,openssh-client,cloud-init,iproute2,iputils-ping,netbase,"
    "ca-certificates,sudo,bash-completion,less,nano,vim-tiny,procps,kmod,wget,apt-utils,zstd,"
    "e2fsprogs,fdisk,locales,tzdata,man-db,psmisc,file,bind9-host,curl,rsync,dosfstools";

/* Identities of the disk, of what it is made of: the same packages give the same disk. */
struct identity {
    struct gpt_guid disk, efi, root, file_system;
    char file_system_text[GPT_GUID_TEXT], efi_text[GPT_GUID_TEXT];
};

struct build {
    const struct image_plan *plan;
    struct store *store;
    struct build_log log;
    char *include; /* all packages, with commas */
    char *sources; /* for mmdebstrap */
    bool as_root;  /* no user namespace is needed */
    char key[DIGEST_TEXT];
    struct identity identity;
    char work[512]; /* where the system is put together */
    struct store_file file;
    uint8_t *loader; /* the boot loader for EFI */
    size_t loader_size;
};

enum { SOURCES_MAX = 8192, ARGUMENTS_MAX = 48 };

int image_plan_check(const struct image_plan *plan)
{
    if (plan->size < IMAGE_SIZE_MIN || plan->size > IMAGE_SIZE_MAX) {
        return fail(-EINVAL, "--size: from 1G to 4T");
    }
    for (const char *at = plan->include; at && *at; at++) {
        bool is_word =
            (*at >= 'a' && *at <= 'z') || (*at >= '0' && *at <= '9') || strchr(",+-.:", *at);
        if (!is_word || (at == plan->include && *at == '-')) {
            return fail(-EINVAL, "--include: names of packages, with commas between them");
        }
    }
    if (plan->mirror &&
        (strncmp(plan->mirror, "http://", 7) && strncmp(plan->mirror, "https://", 8))) {
        return fail(-EINVAL, "the mirror '%s' is no http:// or https:// address", plan->mirror);
    }
    for (const char *at = plan->mirror; at && *at; at++) {
        if (*at <= ' ' || *at > '~') {
            return fail(-EINVAL, "the mirror's address has spaces or control characters");
        }
    }
    return 0;
}

/* ---- what it takes ---- */

/* Does the kernel let this process make a user namespace? */
static bool has_namespaces(void)
{
    int status = 1;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(unshare(CLONE_NEWUSER | CLONE_NEWNS) ? 1 : 0);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return pid > 0 && status == 0;
}

static int check_tools(bool as_root)
{
    static const struct {
        const char *name, *package;
    } tools[] = {{"mmdebstrap", "mmdebstrap"},
                 {"apt-get", "apt"},
                 {"mke2fs", "e2fsprogs"},
                 {"tar", "tar"},
                 {"newuidmap", "uidmap"}};
    char missing[256] = "";
    for (size_t i = 0; i < ARRAY_SIZE(tools); i++) {
        bool is_needed = !as_root || strcmp(tools[i].name, "newuidmap");
        if (is_needed && !process_finds(tools[i].name)) {
            size_t length = strlen(missing);
            snprintf(missing + length, sizeof missing - length, " %s", tools[i].package);
        }
    }
    if (*missing) {
        return fail(-ENOENT, "building images needs programs that are not here: apt-get install%s",
                    missing);
    }
    if (!as_root && !has_namespaces()) {
        return fail(-EPERM, "this host refuses user namespaces to this user, in which packages "
                            "are installed without being root; build as root, or add an image "
                            "that was built elsewhere ('doppel image add FILE')");
    }
    return 0;
}

/* ---- running programs ---- */

static void say_which(const struct build *build, const char *const *arguments)
{
    fprintf(build->log.file, "$");
    for (; *arguments; arguments++) {
        bool is_script = strchr(*arguments, '\n') != NULL;
        fprintf(build->log.file, " %.*s%s", is_script ? 24 : 4096, *arguments,
                is_script ? "..." : "");
    }
    fprintf(build->log.file, "\n");
    fflush(build->log.file);
}

/* mmdebstrap's arguments, up to the suite; -1 for what ends them. */
static size_t add_common(const struct build *build, const char **arguments, const char *include)
{
    size_t count = 0;
    arguments[count++] = "mmdebstrap";
    arguments[count++] = build->as_root ? "--mode=root" : "--mode=unshare";
    arguments[count++] = "--variant=minbase";
    arguments[count++] = "--architectures=amd64";
    arguments[count++] = "--verbose";
    arguments[count++] = "--aptopt=Acquire::Languages \"none\"";
    arguments[count++] = "--dpkgopt=force-unsafe-io"; /* who loses power starts again */
    arguments[count++] = "--aptopt=Acquire::Retries \"3\"";
    arguments[count++] = include;
    return count;
}

static void add_sources(char *sources, const char **arguments, size_t count)
{
    for (char *line; (line = strsep(&sources, "\n")) && count < ARGUMENTS_MAX - 1;) {
        arguments[count++] = line;
    }
    arguments[count] = NULL;
}

/* A pipe whose ends no other program gets. */
static int make_pipe(int *ret_reader, int *ret_writer)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) {
        return fail(-errno, "make a pipe: %m");
    }
    *ret_reader = ends[0];
    *ret_writer = ends[1];
    return 0;
}

/* Which packages in which versions it will have: the key of the image. */
static int look(struct build *build)
{
    const char *arguments[ARGUMENTS_MAX];
    char include[4096], sources[SOURCES_MAX];
    CLEANUP_FD int reader = -1;
    CLEANUP_FD int writer = -1;
    pid_t pid;
    build_log_step(&build->log, STEP_LOOK);
    snprintf(include, sizeof include, "--include=%s", build->include);
    strcpy(sources, build->sources);
    size_t count = add_common(build, arguments, include);
    arguments[count++] = "--simulate";
    arguments[count++] = build->plan->suite.codename;
    arguments[count++] = "/dev/null";
    add_sources(sources, arguments, count);
    say_which(build, arguments);
    int r = make_pipe(&reader, &writer);
    const struct process_plan plan = {
        .arguments = arguments, .input = -1, .output = writer, .error = writer, .third = -1};
    r = r ? r : process_start(&plan, &pid);
    if (r) {
        return r;
    }
    close(TAKE_FD(writer));
    while (build_log_read(&build->log, reader)) {
    }
    r = process_wait(pid, "mmdebstrap");
    if (!r && !json_object_size(build->log.packages)) {
        r = fail(-EPROTO, "mmdebstrap --simulate named no package");
    }
    return r;
}

static void derive(const struct build *build, const char *what, struct gpt_guid *ret_guid)
{
    char text[DIGEST_TEXT + 32];
    struct digest digest;
    snprintf(text, sizeof text, "%s %s", build->key, what);
    digest_bytes(text, strlen(text), &digest);
    memcpy(ret_guid->bytes, digest.bytes, GPT_GUID);
    ret_guid->bytes[6] = (uint8_t)((ret_guid->bytes[6] & 0x0f) | 0x80); /* RFC 9562, version 8 */
    ret_guid->bytes[8] = (uint8_t)((ret_guid->bytes[8] & 0x3f) | 0x80);
}

/* The scripts are part of what makes an image. */
static void digest_recipe(char ret_text[DIGEST_TEXT])
{
    char *text = NULL;
    struct digest digest;
    int length = asprintf(&text, "%s%s%s", recipe_prepare, recipe_customize, recipe_fill);
    ASSERT(length > 0);
    digest_bytes(text, (size_t)length, &digest);
    digest_print(&digest, ret_text);
    free(text);
}

static void make_key(struct build *build)
{
    struct digest digest;
    char recipe[DIGEST_TEXT];
    digest_recipe(recipe);
    json_t *facts =
        json_pack("{s:s, s:I, s:s, s:s, s:O}", "recipe", recipe, "size",
                  (json_int_t)build->plan->size, "suite", build->plan->suite.codename, "mirror",
                  build->plan->mirror ? build->plan->mirror : "", "packages", build->log.packages);
    char *text = json_dumps(facts, JSON_SORT_KEYS | JSON_COMPACT);
    ASSERT(text);
    digest_bytes(text, strlen(text), &digest);
    digest_print(&digest, build->key);
    free(text);
    json_decref(facts);
    derive(build, "disk", &build->identity.disk);
    derive(build, "efi", &build->identity.efi);
    derive(build, "root", &build->identity.root);
    derive(build, "file system", &build->identity.file_system);
    gpt_guid_print(&build->identity.file_system, build->identity.file_system_text);
    gpt_guid_print(&build->identity.efi, build->identity.efi_text);
}

/* ---- the file system ---- */

static uint64_t root_size(const struct build *build)
{
    return align_down(build->plan->size - ROOT_OFFSET - GPT_TAIL, MIB(1));
}

static int tell_scripts(const struct build *build)
{
    char sources[SOURCES_MAX], text[32];
    int r = build_sources(build->plan, true, sources, sizeof sources);
    if (r) {
        return r;
    }
    setenv("DOPPEL_SOURCES", sources, 1);
    setenv("DOPPEL_ROOT_UUID", build->identity.file_system_text, 1);
    setenv("DOPPEL_EFI_PARTUUID", build->identity.efi_text, 1);
    snprintf(text, sizeof text, "%llu", (unsigned long long)ROOT_OFFSET);
    setenv("DOPPEL_ROOT_OFFSET", text, 1);
    snprintf(text, sizeof text, "%llu", (unsigned long long)root_size(build) / 1024);
    setenv("DOPPEL_ROOT_KIB", text, 1);
    setenv("DOPPEL_WORK", build->work, 1);
    setenv("DOPPEL_FILL", recipe_fill, 1);
    setenv("DOPPEL_AS_ROOT", build->as_root ? "yes" : "no", 1);
    return 0;
}

/* The boot loader comes in pieces from the script's standard output. */
static bool loader_read(struct build *build, int fd)
{
    ssize_t count = read(fd, build->loader + build->loader_size, FAT_FILE_MAX - build->loader_size);
    if (count > 0) {
        build->loader_size += (size_t)count;
    }
    return count > 0 || (count < 0 && (errno == EINTR || errno == EAGAIN));
}

/* Until nobody is left who writes to them. */
static int listen_to(struct build *build, int log, int loader)
{
    struct pollfd ends[] = {{.fd = log, .events = POLLIN}, {.fd = loader, .events = POLLIN}};
    while (ends[0].fd >= 0 || ends[1].fd >= 0) {
        if (poll(ends, 2, -1) < 0 && errno != EINTR) {
            return fail(-errno, "wait for mmdebstrap: %m");
        }
        if (ends[0].fd >= 0 && ends[0].revents && !build_log_read(&build->log, log)) {
            ends[0].fd = -1;
        }
        if (ends[1].fd >= 0 && ends[1].revents && !loader_read(build, loader)) {
            ends[1].fd = -1;
        }
    }
    return 0;
}

struct pipes {
    int log_reader, log_writer, loader_reader, loader_writer;
};

static void pipes_close(struct pipes *pipes)
{
    cleanup_close(&pipes->log_reader);
    cleanup_close(&pipes->log_writer);
    cleanup_close(&pipes->loader_reader);
    cleanup_close(&pipes->loader_writer);
}
CLEANUP_DEFINE(struct pipes, pipes_close)

static int start_installing(struct build *build, const struct pipes *pipes, pid_t *ret_pid)
{
    static char prepare[32768], customize[65536];
    const char *arguments[ARGUMENTS_MAX] = {"sh", "-c", recipe_install, "install"};
    char include[4096], sources[SOURCES_MAX], target[sizeof build->work + 8];
    snprintf(include, sizeof include, "--include=%s", build->include);
    snprintf(prepare, sizeof prepare, "--essential-hook=%s", recipe_prepare);
    snprintf(customize, sizeof customize, "--customize-hook=%s", recipe_customize);
    snprintf(target, sizeof target, "%s/root", build->work);
    strcpy(sources, build->sources);
    size_t count = 4 + add_common(build, arguments + 4, include);
    arguments[count++] = "--format=directory";
    arguments[count++] = prepare;
    arguments[count++] = customize;
    arguments[count++] = build->plan->suite.codename;
    arguments[count++] = target;
    add_sources(sources, arguments, count);
    say_which(build, arguments);
    const struct process_plan plan = {.arguments = arguments,
                                      .input = -1,
                                      .output = pipes->loader_writer,
                                      .error = pipes->log_writer,
                                      .third = build->file.fd};
    return process_start(&plan, ret_pid);
}

/* A gigabyte: not in /tmp, which may be in memory. The namespace's root has to pass through. */
static int make_work(struct build *build)
{
    const char *given = getenv("TMPDIR");
    snprintf(build->work, sizeof build->work, "%.400s/doppel-image.XXXXXX",
             given && given[0] == '/' ? given : "/var/tmp");
    if (!mkdtemp(build->work) || chmod(build->work, 0711)) {
        return fail(-errno, "make the folder %s: %m", build->work);
    }
    return 0;
}

static int install(struct build *build)
{
    struct pipes pipes_ = {-1, -1, -1, -1};
    CLEANUP(pipes_close) struct pipes *pipes = &pipes_;
    pid_t pid;
    build_log_step(&build->log, STEP_DOWNLOAD);
    int r = make_pipe(&pipes->log_reader, &pipes->log_writer);
    r = r ? r : make_pipe(&pipes->loader_reader, &pipes->loader_writer);
    r = r ? r : make_work(build);
    r = r ? r : tell_scripts(build);
    r = r ? r : start_installing(build, pipes, &pid);
    if (r) {
        return r;
    }
    close(TAKE_FD(pipes->log_writer));
    close(TAKE_FD(pipes->loader_writer));
    r = listen_to(build, pipes->log_reader, pipes->loader_reader);
    int ended = process_wait(pid, "the installation");
    return r ? r : ended;
}

/* ---- the disk ---- */

static int write_at(int fd, const void *bytes, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t count = pwrite(fd, (const char *)bytes + done, size - done, (off_t)(offset + done));
        if (count < 0 && errno != EINTR) {
            return fail(-errno, "write the disk image: %m");
        }
        done += count > 0 ? (size_t)count : 0;
    }
    return 0;
}

static int write_disk(struct build *build)
{
    struct gpt gpt = {.disk = build->identity.disk, .count = 2};
    uint8_t head[GPT_HEAD], tail[GPT_TAIL];
    gpt.partitions[0] = (struct gpt_partition){.type = gpt_type_root,
                                               .id = build->identity.root,
                                               .offset = ROOT_OFFSET,
                                               .size = root_size(build),
                                               .number = ROOT_NUMBER};
    gpt.partitions[1] = (struct gpt_partition){.type = gpt_type_efi,
                                               .id = build->identity.efi,
                                               .offset = EFI_OFFSET,
                                               .size = FAT_SIZE,
                                               .number = EFI_NUMBER};
    if (build->loader_size < 4096 || build->loader_size >= FAT_FILE_MAX ||
        memcmp(build->loader, "MZ", 2)) {
        return fail(-EPROTO, "there came no boot loader");
    }
    gpt_write(&gpt, build->plan->size, head, tail);
    size_t volume_size;
    uint8_t *volume = fat_write(build->loader, build->loader_size,
                                load_le32(build->identity.efi.bytes), &volume_size);
    int r = write_at(build->file.fd, volume, volume_size, EFI_OFFSET);
    free(volume);
    r = r ? r : write_at(build->file.fd, head, sizeof head, 0);
    return r ? r : write_at(build->file.fd, tail, sizeof tail, build->plan->size - GPT_TAIL);
}

static json_t *describe(const struct build *build)
{
    return json_pack(
        "{s:s, s:s, s:I, s:I, s:i, s:s, s:s, s:s, s:O}", "name", build->plan->suite.name, "format",
        "raw", "size", (json_int_t)build->plan->size, "created", (json_int_t)time(NULL), "recipe",
        RECIPE_VERSION, "key", build->key, "suite", build->plan->suite.codename, "kernel_flavour",
        build->plan->has_cloud_kernel ? "cloud" : "generic", "packages", build->log.packages);
}

static int make_image(struct build *build, json_t **ret_record)
{
    int r = store_begin(build->store, &build->file);
    if (r) {
        return r;
    }
    /* The root of a user namespace is nobody here. The folder is open to this user alone. */
    if (fchmod(build->file.fd, build->as_root ? 0600 : 0666) ||
        ftruncate(build->file.fd, (off_t)build->plan->size)) {
        return fail(-errno, "make the disk image: %m");
    }
    r = install(build);
    r = r ? r : write_disk(build);
    if (r) {
        return r;
    }
    build_log_step(&build->log, STEP_DIGEST);
    json_t *record = describe(build);
    ASSERT(record);
    r = store_add(build->store, &build->file, record);
    if (r) {
        json_decref(record);
        return r;
    }
    *ret_record = record;
    return 0;
}

/* ---- all of it ---- */

static int prepare(struct build *build)
{
    const struct image_plan *plan = build->plan;
    build->as_root = geteuid() == 0;
    build->sources = calloc(1, SOURCES_MAX);
    build->loader = malloc(FAT_FILE_MAX);
    ASSERT(build->sources && build->loader);
    int length = asprintf(&build->include, "%s,%s%s%s", packages,
                          plan->has_cloud_kernel ? "linux-image-cloud-amd64" : "linux-image-amd64",
                          plan->include ? "," : "", plan->include ? plan->include : "");
    ASSERT(length > 0);
    if (length > 4000) {
        return fail(-E2BIG, "--include: too many packages");
    }
    int r = check_tools(build->as_root);
    return r ? r : build_sources(plan, false, build->sources, SOURCES_MAX);
}

int image_build(struct store *store, const struct image_plan *plan, json_t **ret_record,
                bool *ret_is_new)
{
    struct build build = {.plan = plan, .store = store, .file = {.fd = -1}};
    *ret_is_new = false;
    int r = prepare(&build);
    r = r ? r : build_log_open(&build.log, store, plan);
    if (!r) {
        r = look(&build);
        if (!r) {
            make_key(&build);
            *ret_record = store_find_key(store, build.key);
            if (!*ret_record) {
                r = make_image(&build, ret_record);
                *ret_is_new = r == 0;
            }
        }
        r = r ? build_log_fail(&build.log, r) : 0;
        build_log_close(&build.log);
    }
    store_drop(store, &build.file);
    free(build.include);
    free(build.sources);
    free(build.loader);
    return r;
}
