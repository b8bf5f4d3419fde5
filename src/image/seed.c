/* The files of a seed: see seed.h. Nothing in them needs quotes, as all of it was checked. */
#include "image/seed.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/error.h"
#include "image/iso.h"

int seed_check_user(const char *user)
{
    bool is_good = islower((unsigned char)*user) || *user == '_';
    for (const char *at = user; *at; at++) {
        is_good &=
            islower((unsigned char)*at) || isdigit((unsigned char)*at) || strchr("_-", *at) != NULL;
    }
    if (!is_good || strlen(user) > SEED_NAME_MAX) {
        return fail(-EINVAL, "'%.64s' is no user's name: small letters, digits, - and _", user);
    }
    return strcmp(user, "root") ? 0 : fail(-EINVAL, "the user may not be root, who has no login");
}

int seed_check_hostname(const char *hostname)
{
    size_t length = strlen(hostname);
    bool is_good = length && length <= SEED_HOST_MAX && isalnum((unsigned char)hostname[0]) &&
                   isalnum((unsigned char)hostname[length - 1]);
    for (const char *at = hostname; *at; at++) {
        is_good &= isalnum((unsigned char)*at) || *at == '-' || *at == '.';
    }
    return is_good
               ? 0
               : fail(-EINVAL, "'%.64s' is no host's name: letters, digits, - and dots", hostname);
}

int seed_check_key(const char *key)
{
    static const char *const kinds[] = {"ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"};
    bool is_good = false;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        is_good |= !strncmp(key, kinds[i], strlen(kinds[i]));
    }
    for (const char *at = key; *at; at++) {
        is_good &= *at >= ' ' && *at != '"' && *at != '\\' && *at != 0x7f;
    }
    return is_good && strchr(key, ' ') && strlen(key) < SEED_KEY_MAX
               ? 0
               : fail(-EINVAL, "this is no public key of ssh: '%.40s'", key);
}

struct text {
    FILE *file;
    char *bytes;
    size_t size;
};

static void text_begin(struct text *text)
{
    *text = (struct text){0};
    text->file = open_memstream(&text->bytes, &text->size);
    ASSERT(text->file);
}

static void text_end(struct text *text)
{
    ASSERT(!fclose(text->file));
}

static void write_meta_data(const struct seed *seed, struct text *text)
{
    text_begin(text);
    fprintf(text->file, "instance-id: %s\nlocal-hostname: %s\n", seed->instance, seed->hostname);
    text_end(text);
}

/* For images of others: what `doppel` says, in cloud-init's words. */
static void write_user_data(const struct seed *seed, struct text *text)
{
    text_begin(text);
    fprintf(text->file,
            "#cloud-config\n"
            "users:\n"
            "  - name: %s\n"
            "    groups: [adm, sudo]\n"
            "    shell: /bin/bash\n"
            "    lock_passwd: true\n"
            "    sudo: \"ALL=(ALL) NOPASSWD:ALL\"\n",
            seed->user);
    fputs(seed->key_count ? "    ssh_authorized_keys:\n" : "", text->file);
    for (size_t i = 0; i < seed->key_count; i++) {
        fprintf(text->file, "      - \"%s\"\n", seed->keys[i]);
    }
    if (seed->has_autologin) {
        fprintf(text->file,
                "write_files:\n"
                "  - path: /etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf\n"
                "    content: |\n"
                "      [Service]\n"
                "      ExecStart=\n"
                "      ExecStart=-/sbin/agetty --autologin %s --noclear --keep-baud "
                "115200,57600,38400,9600 %%I $TERM\n"
                "runcmd:\n"
                "  - [systemctl, daemon-reload]\n"
                "  - [systemctl, restart, serial-getty@ttyS0.service]\n",
                seed->user);
    }
    text_end(text);
}

/* For ours, where a file of the user's own starts cloud-init: the keys are made already. */
static void write_vendor_data(const struct seed *seed, struct text *text)
{
    if (!seed->is_ours) {
        write_user_data(seed, text);
        return;
    }
    text_begin(text);
    fputs("#cloud-config\nssh_deletekeys: false\nssh_genkeytypes: [ed25519]\n", text->file);
    text_end(text);
}

static void write_doppel(const struct seed *seed, struct text *text)
{
    text_begin(text);
    fprintf(text->file, "doppel 1\ninstance %s\nhostname %s\nuser %s\n", seed->instance,
            seed->hostname, seed->user);
    if (seed->has_autologin) {
        fprintf(text->file, "autologin %s\n", seed->user);
    }
    for (size_t i = 0; i < seed->key_count; i++) {
        fprintf(text->file, "key %s\n", seed->keys[i]);
    }
    fputs("end\n", text->file);
    text_end(text);
}

uint8_t *seed_write(const struct seed *seed, size_t *ret_size)
{
    struct text meta_data, user_data, vendor_data, doppel;
    write_meta_data(seed, &meta_data);
    write_user_data(seed, &user_data);
    write_vendor_data(seed, &vendor_data);
    write_doppel(seed, &doppel);
    /* A file of the user's own is for cloud-init; what is ours comes below it. */
    const struct iso_file files[] = {
        {"meta-data", meta_data.bytes, meta_data.size},
        {"user-data", seed->user_data ? seed->user_data : user_data.bytes,
         seed->user_data ? seed->user_data_size : user_data.size},
        {"vendor-data", vendor_data.bytes, seed->user_data ? vendor_data.size : 0},
    };
    uint8_t *volume = iso_write("cidata", files, sizeof files / sizeof files[0], ret_size);
    ASSERT(doppel.size <= ISO_SYSTEM_AREA);
    memcpy(volume, doppel.bytes, doppel.size);
    free(meta_data.bytes);
    free(user_data.bytes);
    free(vendor_data.bytes);
    free(doppel.bytes);
    return volume;
}
