/* Making the user's key, by one process at a time. */
#include "image/user_key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "image/process.h"
#include "image/seed.h"

static const char private_name[] = "id_ed25519", public_name[] = "id_ed25519.pub";

/* Aside first: the public half goes to its place before the private one, which is looked for. */
static int make(int folder, const char *folder_path)
{
    char path[USER_KEY_PATH];
    pid_t pid;
    snprintf(path, sizeof path, "%s/.new", folder_path);
    unlinkat(folder, ".new", 0);
    unlinkat(folder, ".new.pub", 0);
    const char *arguments[] = {"ssh-keygen", "-q",     "-t", "ed25519", "-N", "",
                               "-C",         "doppel", "-f", path,      NULL};
    const struct process_plan plan = {
        .arguments = arguments, .input = -1, .output = -1, .error = -1, .third = -1};
    if (!process_finds("ssh-keygen")) {
        return fail(-ENOENT, "there is no ssh-keygen (Debian package openssh-client)");
    }
    int r = process_start(&plan, &pid);
    r = r ? r : process_wait(pid, "ssh-keygen");
    if (!r && (renameat(folder, ".new.pub", folder, public_name) ||
               renameat(folder, ".new", folder, private_name) || fsync(folder))) {
        r = fail(-errno, "put the key into %s: %m", folder_path);
    }
    return r;
}

int user_key(char ret_path[USER_KEY_PATH], char ret_public[USER_KEY_PUBLIC])
{
    char folder_path[FOLDER_PATH];
    char *text = NULL;
    size_t size;
    CLEANUP_FD int folder = -1;
    int r = folder_open(FOLDER_DATA, "keys", folder_path, &folder);
    if (r) {
        return r;
    }
    CLEANUP_FD int lock = openat(folder, "lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (lock < 0 || flock(lock, LOCK_EX)) {
        return fail(-errno, "lock the folder of keys, %s: %m", folder_path);
    }
    if (faccessat(folder, private_name, R_OK, 0)) {
        r = make(folder, folder_path);
    }
    r = r ? r : file_load(folder, public_name, USER_KEY_PUBLIC - 1, &text, &size);
    if (r) {
        return r;
    }
    text[strcspn(text, "\r\n")] = '\0';
    r = seed_check_key(text);
    if (r) {
        r = fail(r, "%s/%s", folder_path, public_name);
    } else {
        snprintf(ret_public, USER_KEY_PUBLIC, "%s", text);
        snprintf(ret_path, USER_KEY_PATH, "%s/%s", folder_path, private_name);
    }
    free(text);
    return r;
}
