/*
 * The key of this user for machines that Doppel makes: $XDG_DATA_HOME/doppel/keys/id_ed25519, made
 * once, without a passphrase, by ssh-keygen. Its public half is told to new machines.
 */
#pragma once

#include "control/folders.h"

enum { USER_KEY_PATH = FOLDER_PATH + 32, USER_KEY_PUBLIC = 1024 };

/*
 * The path of the private key, and the public one as a line of authorized_keys; makes both if they
 * are not there. -ENOENT: there is no ssh-keygen.
 */
int user_key(char ret_path[USER_KEY_PATH], char ret_public[USER_KEY_PUBLIC])
    __attribute__((warn_unused_result));
