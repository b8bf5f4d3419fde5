/* The facts of host.h. Nothing here changes the host or needs rights. */
#include "control/host.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <liburing.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "engine/engine.h"

static void find_cpu(struct host *host)
{
    uint32_t name[12] = {0};
    for (unsigned i = 0; i < 3; i++) {
        uint32_t *at = name + 4 * i;
        __get_cpuid(0x80000002 + i, &at[0], &at[1], &at[2], &at[3]);
    }
    char text[sizeof name + 1] = "";
    memcpy(text, name, sizeof name);
    const char *start = text + strspn(text, " ");
    snprintf(host->cpu, sizeof host->cpu, "%s", *start ? start : "unknown");
    host->cpu_count = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
}

static void find_models(struct host *host)
{
    static const char *const names[CPU_MODEL_COUNT] = {
        [CPU_MODEL_V2] = "v2", [CPU_MODEL_V3] = "v3", [CPU_MODEL_HOST] = "host"};
    for (unsigned i = 0; i < CPU_MODEL_COUNT; i++) {
        const struct cpuid_config config = {
            .model = (enum cpu_model)i, .cpus = 1, .tsc_hz = 1000000000, .x2apic = true};
        struct cpuid_table *table = NULL;
        struct host_finding *model = &host->models[i];
        model->key = names[i];
        trail_clear();
        model->ok = cpuid_table_new(&config, &table) == 0;
        snprintf(model->text, sizeof model->text, "%s",
                 model->ok ? "can be offered" : trail_text());
        cpuid_table_free(table);
    }
}

/* A "MemTotal:   123 kB" line of /proc/meminfo, in bytes. */
static uint64_t meminfo(const char *text, const char *key)
{
    const char *line = strstr(text, key);
    unsigned long long kib = 0;
    if (line) {
        sscanf(line + strlen(key), ": %llu", &kib);
    }
    return (uint64_t)kib << 10;
}

static void find_memory(struct host *host)
{
    char text[4096] = "";
    FILE *file = fopen("/proc/meminfo", "r");
    if (file) {
        text[fread(text, 1, sizeof text - 1, file)] = '\0';
        fclose(file);
    }
    host->memory_total = meminfo(text, "MemTotal");
    host->memory_available = meminfo(text, "MemAvailable");
}

static void add(struct host *host, const char *key, bool ok, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
static void add(struct host *host, const char *key, bool ok, const char *format, ...)
{
    ASSERT(host->finding_count < HOST_FINDINGS);
    struct host_finding *finding = &host->findings[host->finding_count++];
    finding->key = key;
    finding->ok = ok;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(finding->text, sizeof finding->text, format, arguments);
    va_end(arguments);
}

/* The code cache is a memory file that is mapped executable: try it and run what is in it. */
static void find_executable_memory(struct host *host)
{
    static const uint8_t code[] = {0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3}; /* mov eax, 42; ret */
    CLEANUP_FD int fd = memfd_create("doppel-doctor", MFD_CLOEXEC);
    if (fd < 0 || write(fd, code, sizeof code) != (ssize_t)sizeof code) {
        add(host, "executable_memory", false, "cannot make a memory file: %s", strerror(errno));
        return;
    }
    void *map = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        add(host, "executable_memory", false,
            "a memory file cannot be mapped executable (%s): engine interp only", strerror(errno));
        return;
    }
    int (*function)(void);
    memcpy(&function, &map, sizeof function);
    add(host, "executable_memory", function() == 42, "memory files can be executed");
    munmap(map, 4096);
}

static void find_io_uring(struct host *host)
{
    struct io_uring ring;
    int r = io_uring_queue_init(4, &ring, 0);
    if (r) {
        add(host, "io_uring", false, "%s: disks use threads instead", strerror(-r));
        return;
    }
    io_uring_queue_exit(&ring);
    add(host, "io_uring", true, "disks use it");
}

/* What the kernel has; a file system may still lack it, and then `doppel run` says so. */
static void find_locks(struct host *host)
{
    CLEANUP_FD int fd = memfd_create("doppel-doctor", MFD_CLOEXEC);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fd >= 0 && !fcntl(fd, F_OFD_SETLK, &lock)) {
        add(host, "disk_locks", true, "a disk is locked against a second writer");
    } else if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB)) {
        add(host, "disk_locks", true,
            "by flock() only: a disk on a network file system is not "
            "locked against other hosts");
    } else {
        add(host, "disk_locks", false, "%s: nothing keeps a second writer from a disk",
            strerror(errno));
    }
}

static void find_seccomp(struct host *host)
{
    uint32_t action = SECCOMP_RET_KILL_PROCESS;
    bool ok = syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
    add(host, "seccomp", ok, "%s",
        ok ? "the jail's system call filter can be installed"
           : "no system call filter: only --jail off runs here");
}

static void find_landlock(struct host *host)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version > 0) {
        add(host, "landlock", true, "version %ld: a second wall around the file system", version);
    } else {
        add(host, "landlock", false, "%s: the jail has one wall less", strerror(errno));
    }
}

static void find_user_namespaces(struct host *host)
{
    pid_t child = fork();
    if (child == 0) {
        _exit(unshare(CLONE_NEWUSER) ? errno : 0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        add(host, "user_namespaces", false, "could not be tried");
    } else if (WEXITSTATUS(status)) {
        add(host, "user_namespaces", false, "%s (nothing needs them yet)",
            strerror(WEXITSTATUS(status)));
    } else {
        add(host, "user_namespaces", true, "can be made (nothing needs them yet)");
    }
}

/* Guest memory is a memory file, whatever the engine. */
static int try_guest_memory(void)
{
    CLEANUP_FD int fd = memfd_create("doppel-doctor", MFD_CLOEXEC);
    return fd < 0 ? fail(-errno, "guest memory needs a memory file: %s", strerror(errno)) : 0;
}

static void find_engines(struct host *host)
{
    static const struct engine_ops *const engines[] = {&translate_engine, &interp_engine};
    for (unsigned i = 0; i < 2; i++) {
        struct host_finding *engine = &host->engines[i];
        trail_clear();
        engine->key = engines[i]->name;
        engine->ok = try_guest_memory() == 0 && engines[i]->probe() == 0;
        snprintf(engine->text, sizeof engine->text, "%s", engine->ok ? "works here" : trail_text());
    }
    trail_clear();
    if (host->engines[0].ok) {
        host->engine = host->engines[0].key;
        snprintf(host->engine_reason, sizeof host->engine_reason,
                 "the fastest engine that is built and works here");
    } else if (host->engines[1].ok) {
        host->engine = host->engines[1].key;
        snprintf(host->engine_reason, sizeof host->engine_reason,
                 "translate does not work here: "
                 "%.150s",
                 host->engines[0].text);
    }
}

void host_examine(struct host *ret_host)
{
    *ret_host = (struct host){0};
    find_cpu(ret_host);
    find_models(ret_host);
    find_memory(ret_host);
    kvm_probe(&ret_host->kvm);
    find_executable_memory(ret_host);
    find_io_uring(ret_host);
    find_locks(ret_host);
    find_seccomp(ret_host);
    find_landlock(ret_host);
    find_user_namespaces(ret_host);
    find_engines(ret_host);
}
