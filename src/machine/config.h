/*
 * What a virtual machine is made of, as the user said it: one plain struct, filled option by
 * option. Every way of giving a configuration (command line, later files and the API) goes through
 * vm_config_set(), so that all of them know the same options and refuse the same mistakes.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "boot/boot.h"
#include "engine/engine.h"
#include "machine/config_net.h"
#include "machine/disk_option.h"
#include "x86/cpuid.h"

enum {
    VM_CPUS_MAX = 8,
    VM_DISKS_MAX = 8,
    VM_SHARES_MAX = 4,
    VM_MODULES_MAX = 16,
    VM_SETTINGS_MAX = 256
};

enum { VM_SHARE_TAG_MAX = 32 };

enum engine_choice { ENGINE_AUTO, ENGINE_TRANSLATE, ENGINE_INTERP };

/* Where the guest's console is connected. */
enum console_kind {
    CONSOLE_STDIO,  /* the first serial port, on standard input and output */
    CONSOLE_VIRTIO, /* a virtio console, on standard input and output */
    CONSOLE_FILE,   /* the first serial port, into a file */
};

struct share_config {
    char *path;
    char *tag; /* what the guest mounts */
    bool readonly;
};

struct module_config {
    char *path;
    char *command; /* the string that the kernel gets with the module; NULL: the path */
};

/* One option as it was given. */
struct vm_setting {
    char *name;
    char *value; /* NULL: a switch */
};

/* A kernel that was found on a disk. vm_new() takes the files. */
struct found_kernel {
    struct boot_file kernel, initrd;
};

struct vm_config {
    char *name;
    char *kernel; /* NULL: `found` */
    char *initrd; /* NULL: none, or that of `found` */
    char *command_line;
    uint64_t memory_size;
    unsigned cpus;
    enum cpu_model cpu_model;
    enum engine_choice engine;
    struct code_policy code;
    enum console_kind console;
    char *console_path; /* CONSOLE_FILE */
    struct disk_config disks[VM_DISKS_MAX];
    size_t disk_count;
    struct share_config shares[VM_SHARES_MAX];
    size_t share_count;
    struct module_config modules[VM_MODULES_MAX];
    size_t module_count;
    struct net_config net;
    struct vsock_config vsock;
    int debug_exit_port; /* -1: no such device */
    bool no_reboot;
    enum time_mode time_mode;
    uint32_t trace;   /* bits of enum engine_trace_kind, and TRACE_STATS */
    char *trace_file; /* NULL: standard error */
    char *symbols;    /* a file with names of the guest's kernel, or NULL */
    bool perf_map;
    struct found_kernel *found; /* no option: whoever starts the machine sets it; not owned */
    /*
     * No option: whoever starts the machine in the background sets it. Descriptors of the log of
     * its console (backend/console/log.h), in the place of standard input and output; -1: none.
     */
    int console_log[2];
    /*
     * What made this configuration, in order, without --name: given to vm_config_set() once more it
     * makes the same again. Saved machines are that.
     */
    struct vm_setting *settings;
    size_t setting_count;
};

/* The defaults: 512 MiB, one vCPU, model v2, the console on standard input and output. */
void vm_config_init(struct vm_config *config);
void vm_config_fini(struct vm_config *config);

/* One line for each option, in the order in which help shows them. */
struct vm_option {
    const char *name; /* without the leading dashes */
    /*
     * How help writes the value; NULL: a switch that takes none. If it begins with FILE or DIR the
     * value begins with a path, and so does what follows "file=" if it says file=PATH.
     */
    const char *argument;
    const char *help;
    int (*set)(struct vm_config *config, const char *value);
};
/* All options; the table ends with a NULL name. */
const struct vm_option *vm_options(void);

/*
 * Apply one option. `value` is NULL for a switch. -EINVAL with a sentence that says what would be
 * right; -ENOENT if there is no such option.
 */
int vm_config_set(struct vm_config *config, const char *name, const char *value)
    __attribute__((warn_unused_result));
/*
 * Make the paths in `settings` absolute by `directory` (itself absolute), so that they mean the
 * same files wherever they are used again. The other fields are left alone.
 */
void vm_config_anchor(struct vm_config *config, const char *directory);
/* Does the whole make sense: is there a kernel, do the options agree? */
int vm_config_check(const struct vm_config *config) __attribute__((warn_unused_result));

/* May a machine be called so? Names stand in paths, in shells and on terminals. */
int vm_name_check(const char *name) __attribute__((warn_unused_result));

/* "512M", "2G", "1.5G" (K, M, G, T; powers of 1024) to bytes. */
int size_parse(const char *text, uint64_t *ret_bytes) __attribute__((warn_unused_result));
