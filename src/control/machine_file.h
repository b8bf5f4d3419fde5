/*
 * The file machine.json: what a kept machine is made of.
 *
 *     {"version": 1, "created": 1790000000, "remove": false, "image": "debian:12",
 *      "options": [["kernel", "/boot/vmlinuz"], ["memory", "1G"], ["no-reboot"]]}
 *
 * Options are those of `doppel run`, in order: whatever reads the file gives them to
 * vm_config_set(), which bounds and refuses them as it does those of the command line. A relative
 * path counts from the machine's folder.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "machine/config.h"

enum { MACHINE_FILE_MAX = 1 << 20, MACHINE_IMAGE = 256 };

struct machine_facts {
    int64_t created;           /* seconds since 1970 */
    bool removes;              /* nobody keeps it when it has ended */
    char image[MACHINE_IMAGE]; /* what its disk was cloned from; "": nothing */
};

/* The file's text; free() it. -EINVAL for options that are not UTF-8. */
int machine_file_write(const struct vm_config *config, const struct machine_facts *facts,
                       char **ret_text) __attribute__((warn_unused_result));
/* `config` is fresh from vm_config_init(); on failure it is worth vm_config_fini() only. */
int machine_file_read(const char *text, size_t size, struct vm_config *config,
                      struct machine_facts *ret_facts) __attribute__((warn_unused_result));
