/*
 * The options of a virtual machine: the table that help prints and every parser uses, and one
 * small setter for each. A failing setter leaves the configuration as it was.
 */
#include "machine/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "machine/code_policy.h"
#include "machine/resource.h"
#include "machine/trace.h"
#include "memory/memory.h"

/* Less than this holds no 64-bit kernel; more is beyond the smallest guest-physical address size.
 */
#define MEMORY_MIN MIB(16)
#define MEMORY_MAX GIB(512)

static char *copy_text(const char *text)
{
    char *copy = strdup(text);
    ASSERT(copy);
    return copy;
}

static void replace(char **field, const char *value)
{
    free(*field);
    *field = copy_text(value);
}

static int unit_shift(char unit)
{
    switch (unit) {
    case 'K':
    case 'k':
        return 10;
    case 'M':
    case 'm':
        return 20;
    case 'G':
    case 'g':
        return 30;
    case 'T':
    case 't':
        return 40;
    }
    return -1;
}

int size_parse(const char *text, uint64_t *ret_bytes)
{
    /* value = digits / scale: "1.5" is 15 / 10 */
    uint64_t digits = 0, scale = 1;
    bool in_fraction = false, has_digit = false;
    const char *at = text;
    for (; (*at >= '0' && *at <= '9') || (*at == '.' && !in_fraction); at++) {
        if (*at == '.') {
            in_fraction = true;
            continue;
        }
        has_digit = true;
        digits = digits * 10 + (uint64_t)(*at - '0');
        scale *= in_fraction ? 10 : 1;
        if (digits > 99999999 || scale > 10000) {
            return fail(-EINVAL, "'%s' is too long for a size", text);
        }
    }
    int shift = unit_shift(*at);
    if (!has_digit || shift < 0 || at[1]) {
        return fail(-EINVAL, "'%s' is no size: write a number and K, M, G or T, like 512M or 1.5G",
                    text);
    }
    unsigned __int128 bytes = ((unsigned __int128)digits << shift) / scale;
    if (bytes > UINT64_MAX) {
        return fail(-EINVAL, "'%s' is too large for a size", text);
    }
    *ret_bytes = (uint64_t)bytes;
    return 0;
}

/* A whole number in [minimum, maximum]; 0x... is hexadecimal. */
static int number_parse(const char *text, unsigned long minimum, unsigned long maximum,
                        unsigned long *ret_number)
{
    char *end = NULL;
    errno = 0;
    unsigned long number = strtoul(text, &end, strncmp(text, "0x", 2) ? 10 : 16);
    if (*text < '0' || *text > '9' || *end || errno || number < minimum || number > maximum) {
        return fail(-EINVAL, "'%s' is not a number from %lu to %lu", text, minimum, maximum);
    }
    *ret_number = number;
    return 0;
}

int vm_name_check(const char *name)
{
    static const char others[] = "0123456789-_.+";
    size_t length = strlen(name);
    if (length == 0 || length > 64) {
        return fail(-EINVAL, "a name has 1 to 64 characters");
    }
    for (const char *at = name; *at; at++) {
        bool is_letter = (*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z');
        if (!is_letter && (!strchr(others, *at) || (at == name && strchr("-_.+", *at)))) {
            return fail(-EINVAL, "a name has letters, digits and -_.+ only, no spaces, and begins "
                                 "with a letter or digit");
        }
    }
    return 0;
}

static int set_name(struct vm_config *config, const char *value)
{
    int r = vm_name_check(value);
    if (r) {
        return fail(r, "--name");
    }
    replace(&config->name, value);
    return 0;
}

static int set_file(const char *option, char **field, const char *value)
{
    if (!*value) {
        return fail(-EINVAL, "--%s: no file given", option);
    }
    replace(field, value);
    return 0;
}

static int set_kernel(struct vm_config *config, const char *value)
{
    return set_file("kernel", &config->kernel, value);
}

static int set_initrd(struct vm_config *config, const char *value)
{
    return set_file("initrd", &config->initrd, value);
}

static int set_append(struct vm_config *config, const char *value)
{
    replace(&config->command_line, value);
    return 0;
}

static int set_module(struct vm_config *config, const char *value)
{
    static const char *const known[] = {"command", NULL};
    struct resource resource;
    int r = resource_parse("module", value, known, &resource);
    if (r) {
        return r;
    }
    if (config->module_count == VM_MODULES_MAX || !*resource.value) {
        resource_fini(&resource);
        return config->module_count == VM_MODULES_MAX
                   ? fail(-EINVAL, "--module: at most %d modules", VM_MODULES_MAX)
                   : fail(-EINVAL, "--module: no file given");
    }
    const char *command = resource.key_count ? resource.keys[0].value : NULL;
    config->modules[config->module_count++] = (struct module_config){
        .path = copy_text(resource.value),
        .command = command ? copy_text(command) : NULL,
    };
    resource_fini(&resource);
    return 0;
}

static int set_memory(struct vm_config *config, const char *value)
{
    uint64_t bytes;
    int r = size_parse(value, &bytes);
    if (r) {
        return fail(r, "--memory");
    }
    if (bytes < MEMORY_MIN || bytes > MEMORY_MAX) {
        return fail(-EINVAL, "--memory: %s is out of range; from 16M to 512G", value);
    }
    config->memory_size = align_down(bytes, PAGE_SIZE);
    return 0;
}

static int set_cpus(struct vm_config *config, const char *value)
{
    unsigned long cpus;
    int r = number_parse(value, 1, VM_CPUS_MAX, &cpus);
    if (r) {
        return fail(r, "--cpus");
    }
    config->cpus = (unsigned)cpus;
    return 0;
}

static int set_cpu_model(struct vm_config *config, const char *value)
{
    int r = cpu_model_parse(value, &config->cpu_model);
    return r ? fail(r, "--cpu-model") : 0;
}

/* The number of a name in a list, or -1. */
static int name_find(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (name && !strcmp(names[i], name)) {
            return (int)i;
        }
    }
    return -1;
}

static int engine_apply(struct vm_config *config, const struct resource *resource)
{
    static const char *const engines[] = {
        [ENGINE_AUTO] = "auto", [ENGINE_TRANSLATE] = "translate", [ENGINE_INTERP] = "interp"};
    int engine = name_find(engines, ARRAY_SIZE(engines), resource->value);
    if (engine < 0) {
        return fail(-EINVAL, "--engine: '%s' is not one of auto, translate, interp",
                    resource->value);
    }
    config->engine = (enum engine_choice)engine;
    for (size_t i = 0; i < resource->key_count; i++) {
        int r = code_policy_set(&config->code, resource->keys[i].name, resource->keys[i].value);
        if (r) {
            return fail(r, "--engine");
        }
    }
    return 0;
}

static int set_engine(struct vm_config *config, const char *value)
{
    static const char *const known[] = {"hot", "without", "random", NULL};
    struct resource resource;
    int r = resource_parse("engine", value, known, &resource);
    if (r == 0) {
        r = engine_apply(config, &resource);
        resource_fini(&resource);
    }
    return r;
}

static int set_disk(struct vm_config *config, const char *value)
{
    if (config->disk_count == VM_DISKS_MAX) {
        return fail(-EINVAL, "--disk: at most %d disks", VM_DISKS_MAX);
    }
    int r = disk_config_parse(value, &config->disks[config->disk_count]);
    config->disk_count += r == 0;
    return r;
}

static int set_net(struct vm_config *config, const char *value)
{
    return net_config_set(&config->net, value);
}

static int set_publish(struct vm_config *config, const char *value)
{
    return net_config_forward(&config->net, value);
}

static int share_keys(const struct vm_config *config, const struct resource *resource,
                      struct share_config *share)
{
    const char *tag = NULL;
    for (size_t i = 0; i < resource->key_count; i++) {
        const struct resource_key *key = &resource->keys[i];
        if (!strcmp(key->name, "tag")) {
            tag = key->value;
        } else if (key->value) {
            return fail(-EINVAL, "--share: readonly takes no value");
        } else {
            share->readonly = true;
        }
    }
    if (!tag || !*tag || strlen(tag) > VM_SHARE_TAG_MAX) {
        return fail(-EINVAL,
                    "--share: needs tag=NAME, up to %d bytes, by which the guest mounts it",
                    VM_SHARE_TAG_MAX);
    }
    for (size_t i = 0; i < config->share_count; i++) {
        if (!strcmp(config->shares[i].tag, tag)) {
            return fail(-EINVAL, "--share: the tag '%s' is given twice", tag);
        }
    }
    share->tag = copy_text(tag);
    return 0;
}

static int set_share(struct vm_config *config, const char *value)
{
    static const char *const known[] = {"tag", "readonly", NULL};
    struct resource resource;
    int r = resource_parse("share", value, known, &resource);
    if (r) {
        return r;
    }
    struct share_config share = {0};
    if (!*resource.value) {
        r = fail(-EINVAL, "--share: no folder given");
    } else if (config->share_count == VM_SHARES_MAX) {
        r = fail(-EINVAL, "--share: at most %d folders", VM_SHARES_MAX);
    } else {
        r = share_keys(config, &resource, &share);
    }
    if (!r) {
        share.path = copy_text(resource.value);
        config->shares[config->share_count++] = share;
    }
    resource_fini(&resource);
    return r;
}

static int set_vsock(struct vm_config *config, const char *value)
{
    return vsock_config_set(&config->vsock, value);
}

static int set_console(struct vm_config *config, const char *value)
{
    static const char *const known[] = {NULL};
    struct resource resource;
    int r = resource_parse("console", value, known, &resource);
    if (r) {
        return r;
    }
    if (!strcmp(resource.value, "stdio")) {
        config->console = CONSOLE_STDIO;
    } else if (!strcmp(resource.value, "virtio")) {
        config->console = CONSOLE_VIRTIO;
    } else if (!strncmp(resource.value, "file=", 5) && resource.value[5]) {
        config->console = CONSOLE_FILE;
        replace(&config->console_path, resource.value + 5);
    } else {
        r = fail(-EINVAL, "--console: '%s' is not one of stdio, virtio, file=PATH", value);
    }
    resource_fini(&resource);
    return r;
}

static int set_debug_exit(struct vm_config *config, const char *value)
{
    unsigned long port;
    int r = number_parse(value, 1, 0xffff, &port);
    if (r) {
        return fail(r, "--debug-exit");
    }
    config->debug_exit_port = (int)port;
    return 0;
}

static int set_no_reboot(struct vm_config *config, const char *value)
{
    config->no_reboot = true;
    return 0;
}

static int set_time(struct vm_config *config, const char *value)
{
    if (!strcmp(value, "host")) {
        config->time_mode = TIME_HOST;
    } else if (!strcmp(value, "instructions")) {
        config->time_mode = TIME_DETERMINISTIC;
    } else {
        return fail(-EINVAL, "--time: '%s' is not one of host, instructions", value);
    }
    return 0;
}

static int set_trace(struct vm_config *config, const char *value)
{
    return trace_list_parse(value, &config->trace);
}

static int set_trace_file(struct vm_config *config, const char *value)
{
    return set_file("trace-file", &config->trace_file, value);
}

static int set_symbols(struct vm_config *config, const char *value)
{
    return set_file("symbols", &config->symbols, value);
}

static int set_perf_map(struct vm_config *config, const char *value)
{
    config->perf_map = true;
    return 0;
}

static const struct vm_option options[] = {
    {"kernel", "FILE", "kernel: bzImage, ELF (PVH or vmlinux) or Multiboot 1", set_kernel},
    {"initrd", "FILE", "initial RAM disk", set_initrd},
    {"append", "[+]TEXT", "kernel command line; + adds to that of a disk's own kernel", set_append},
    {"module", "FILE[,command=TEXT]", "Multiboot module; may be repeated", set_module},
    {"memory", "SIZE", "guest memory, like 512M or 1.5G (default 512M)", set_memory},
    {"cpus", "N", "virtual CPUs, 1 to 8 (default 1)", set_cpus},
    {"cpu-model", "v2|v3|host", "what CPUID offers (default v2)", set_cpu_model},
    {"engine", "auto|translate|interp[,hot=sampled|all|none][,...]",
     "how guest code runs (default auto)", set_engine},
    {"disk", "FILE[,format=raw|qcow2][,...]", "a disk; may be repeated ('doppel help disk')",
     set_disk},
    {"net", "none|user|tap,ifname=NAME|socket,path=PATH[,mac=MAC]",
     "the network (default none, with -p user)", set_net},
    {"publish", "[ADDRESS:]HOST:GUEST[/udp]", "-p: forward a port of the host; may be repeated",
     set_publish},
    {"share", "DIR,tag=NAME[,readonly]", "a folder for the guest to mount (9p); may be repeated",
     set_share},
    {"vsock", "path=PATH[,cid=N]", "connections with programs of the host, on a Unix socket",
     set_vsock},
    {"console", "stdio|virtio|file=PATH", "where the console goes (default stdio)", set_console},
    {"debug-exit", "PORT", "writing V to this port ends with status V*2+1", set_debug_exit},
    {"no-reboot", NULL, "end instead of resetting", set_no_reboot},
    {"name", "NAME", "its name, for 'doppel stats' and messages (default: invented)", set_name},
    {"time", "host|instructions", "what guest clocks follow (default host)", set_time},
    {"trace", "LIST", "units, code, chains, retire, flush, exits, world, stats", set_trace},
    {"trace-file", "FILE", "where --trace writes (default standard error)", set_trace_file},
    {"perf-map", NULL, "write /tmp/perf-PID.map, so that perf names units", set_perf_map},
    {"symbols", "FILE", "System.map, kallsyms or ELF: names for traces", set_symbols},
    {NULL, NULL, NULL, NULL},
};

const struct vm_option *vm_options(void)
{
    return options;
}

static void add_setting(struct vm_config *config, const char *name, const char *value)
{
    size_t count = config->setting_count + 1;
    config->settings = reallocarray(config->settings, count, sizeof *config->settings);
    ASSERT(config->settings);
    config->settings[config->setting_count++] =
        (struct vm_setting){.name = copy_text(name), .value = value ? copy_text(value) : NULL};
}

static const struct vm_option *option_find(const char *name)
{
    for (const struct vm_option *option = options; option->name; option++) {
        if (!strcmp(option->name, name)) {
            return option;
        }
    }
    return NULL;
}

/* Where in the value of an option a path begins; NULL: it has none. */
static const char *path_in(const char *argument, const char *value)
{
    if (!strncmp(argument, "FILE", 4) || !strncmp(argument, "DIR", 3)) {
        return value;
    }
    if (strstr(argument, "path=PATH")) { /* a key: the first, or behind a comma */
        const char *path = strstr(value, ",path=");
        return !strncmp(value, "path=", 5) ? value + 5 : path ? path + 6 : NULL;
    }
    return strstr(argument, "file=PATH") && !strncmp(value, "file=", 5) ? value + 5 : NULL;
}

/* `value` with `directory` before its path, which begins at `path`. */
static char *anchored(const char *argument, const char *value, const char *path,
                      const char *directory)
{
    bool is_plain = !strcmp(argument, "FILE") || !strcmp(argument, "DIR");
    size_t prefix = (size_t)(path - value);
    char *text = malloc(prefix + 2 * strlen(directory) + strlen(path) + 2), *to = text;
    ASSERT(text);
    memcpy(to, value, prefix);
    to += prefix;
    for (const char *from = directory; *from; from++) {
        *to++ = *from;
        if (*from == ',' && !is_plain) {
            *to++ = ','; /* resource.h */
        }
    }
    *to++ = '/';
    strcpy(to, path);
    return text;
}

void vm_config_anchor(struct vm_config *config, const char *directory)
{
    for (size_t i = 0; i < config->setting_count; i++) {
        struct vm_setting *setting = &config->settings[i];
        const char *argument = option_find(setting->name)->argument;
        const char *path = argument ? path_in(argument, setting->value) : NULL;
        if (path && *path != '/') {
            char *text = anchored(argument, setting->value, path, directory);
            free(setting->value);
            setting->value = text;
        }
        if (!strcmp(setting->name, "disk")) {
            char *text = disk_config_anchor(setting->value, directory);
            free(setting->value);
            setting->value = text;
        }
    }
}

int vm_config_set(struct vm_config *config, const char *name, const char *value)
{
    const struct vm_option *option = option_find(name);
    if (!option) {
        return fail(-ENOENT, "there is no option --%s", name);
    }
    if (option->argument && !value) {
        return fail(-EINVAL, "--%s needs a value: %s", name, option->argument);
    }
    if (!option->argument && value) {
        return fail(-EINVAL, "--%s takes no value", name);
    }
    if (config->setting_count == VM_SETTINGS_MAX) {
        return fail(-E2BIG, "--%s: there are %d options already", name, VM_SETTINGS_MAX);
    }
    int r = option->set(config, value);
    if (!r && strcmp(name, "name")) {
        add_setting(config, name, value);
    }
    return r;
}

/* What would bring in the host's timing, or chance. */
static int check_deterministic(const struct vm_config *config)
{
    if (config->cpus != 1) {
        return fail(-EINVAL, "--time instructions works with one CPU only");
    }
    if (config->disk_count || config->share_count) {
        return fail(-EINVAL, "--time instructions works without disks and shared folders only: "
                             "when their requests are done depends on the host");
    }
    if (net_config_kind(&config->net) != NET_NONE || config->vsock.path) {
        return fail(-EINVAL, "--time instructions works without a network only: when frames come "
                             "depends on the host");
    }
    if (config->cpu_model == CPU_MODEL_HOST) {
        return fail(-EINVAL, "--time instructions needs --cpu-model v2 or v3: what RDRAND gives "
                             "depends on the host");
    }
    return 0;
}

int vm_config_check(const struct vm_config *config)
{
    if (!config->kernel && !config->disk_count) {
        return fail(-EINVAL, "no kernel given: use --kernel FILE, or --disk FILE with a system");
    }
    if (config->kernel && *config->command_line == '+') {
        return fail(-EINVAL, "--append: +TEXT adds to the command line of a disk's own kernel, and "
                             "--kernel is given");
    }
    if (config->module_count && config->initrd) {
        return fail(-EINVAL, "--initrd and --module exclude each other: a Multiboot kernel takes "
                             "modules, other kernels take an initrd");
    }
    int r = net_config_check(&config->net);
    if (r) {
        return r;
    }
    return config->time_mode == TIME_DETERMINISTIC ? check_deterministic(config) : 0;
}

void vm_config_init(struct vm_config *config)
{
    *config = (struct vm_config){
        .name = copy_text("doppel"),
        .command_line = copy_text(""),
        .memory_size = MIB(512),
        .cpus = 1,
        .cpu_model = CPU_MODEL_V2,
        .debug_exit_port = -1,
        .time_mode = TIME_HOST,
        .console_log = {-1, -1},
    };
}

void vm_config_fini(struct vm_config *config)
{
    for (size_t i = 0; i < config->disk_count; i++) {
        disk_config_fini(&config->disks[i]);
    }
    for (size_t i = 0; i < config->share_count; i++) {
        free(config->shares[i].path);
        free(config->shares[i].tag);
    }
    for (size_t i = 0; i < config->module_count; i++) {
        free(config->modules[i].path);
        free(config->modules[i].command);
    }
    for (size_t i = 0; i < config->setting_count; i++) {
        free(config->settings[i].name);
        free(config->settings[i].value);
    }
    free(config->settings);
    free(config->name);
    free(config->kernel);
    free(config->initrd);
    free(config->command_line);
    free(config->console_path);
    net_config_fini(&config->net);
    vsock_config_fini(&config->vsock);
    free(config->trace_file);
    free(config->symbols);
    *config = (struct vm_config){0};
}
