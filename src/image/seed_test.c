/* What machines are told by their seed, and the key of the user. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/process.h"
#include "image/seed.h"
#include "image/user_key.h"

/* Is the text somewhere in the volume? */
static bool has(const uint8_t *volume, size_t size, const char *text)
{
    return memmem(volume, size, text, strlen(text)) != NULL;
}

static void a_seed_says_what_it_was_given(void **state)
{
    struct seed seed = {.instance = "i-1",
                        .hostname = "otter",
                        .user = "debian",
                        .has_autologin = true,
                        .keys = {"ssh-ed25519 AAAA me"},
                        .key_count = 1};
    size_t size;
    uint8_t *volume = seed_write(&seed, &size);
    assert_true(has(volume, size, "instance-id: i-1\nlocal-hostname: otter\n"));
    assert_true(has(volume, size, "#cloud-config\nusers:\n  - name: debian\n"));
    assert_true(has(volume, size, "ssh_authorized_keys:\n      - \"ssh-ed25519 AAAA me\"\n"));
    assert_true(has(volume, size,
                    "doppel 1\ninstance i-1\nhostname otter\nuser debian\nautologin debian\n"
                    "key ssh-ed25519 AAAA me\nend\n"));
    assert_memory_equal(volume, "doppel 1\n", 9);
    assert_true(has(volume, size, "--autologin debian"));
    free(volume);
    seed.has_autologin = false;
    seed.user_data = "#!/bin/sh\necho mine\n";
    seed.user_data_size = strlen(seed.user_data);
    volume = seed_write(&seed, &size);
    assert_true(has(volume, size, "echo mine"));
    assert_true(has(volume, size, "#cloud-config\nusers:"));
    assert_false(has(volume, size, "autologin"));
    free(volume);
    seed.is_ours = true; /* reads the lines: nothing of it twice */
    volume = seed_write(&seed, &size);
    assert_true(has(volume, size, "echo mine"));
    assert_false(has(volume, size, "#cloud-config\nusers:"));
    assert_true(has(volume, size, "ssh_deletekeys: false"));
    free(volume);
}

static void what_could_be_misread_is_refused(void **state)
{
    static const char *const users[] = {"", "root", "Debian", "a b", "1a", "a\nb", "-a", "a:b"};
    static const char *const hosts[] = {"", "-a", "a-", "a_b", "a b", "a\nuser root", "."};
    static const char *const keys[] = {"",
                                       "ssh-ed25519",
                                       "hello you",
                                       "ssh-rsa A\nuser root",
                                       "ssh-rsa \"A me",
                                       "ssh-rsa A\\n me"};
    for (size_t i = 0; i < ARRAY_SIZE(users); i++) {
        assert_int_equal(seed_check_user(users[i]), -EINVAL);
    }
    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++) {
        assert_int_equal(seed_check_hostname(hosts[i]), -EINVAL);
    }
    for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
        assert_int_equal(seed_check_key(keys[i]), -EINVAL);
    }
    trail_clear();
    assert_int_equal(seed_check_user("debian") | seed_check_user("_x-1"), 0);
    assert_int_equal(seed_check_hostname("otter") | seed_check_hostname("a.b-c.example"), 0);
    assert_int_equal(seed_check_key("ecdsa-sha2-nistp256 AAAA= me@there"), 0);
}

static void the_users_key_is_made_once(void **state)
{
    char home[] = "/tmp/seed_test.XXXXXX", command[128];
    char path[USER_KEY_PATH], first[USER_KEY_PUBLIC], second[USER_KEY_PUBLIC];
    struct stat facts;
    if (!process_finds("ssh-keygen")) {
        skip();
    }
    assert_non_null(mkdtemp(home));
    setenv("XDG_DATA_HOME", home, 1);
    assert_int_equal(user_key(path, first), 0);
    assert_int_equal(stat(path, &facts), 0);
    assert_int_equal(facts.st_mode & 0777, 0600);
    assert_int_equal(user_key(path, second), 0);
    assert_string_equal(first, second);
    assert_memory_equal(first, "ssh-ed25519 ", 12);
    snprintf(command, sizeof command, "rm -rf %s", home);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_says_what_it_was_given),
        cmocka_unit_test(what_could_be_misread_is_refused),
        cmocka_unit_test(the_users_key_is_made_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
