/* Names of suites, versions in order, digests, and the store of images. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "image/digest.h"
#include "image/import.h"
#include "image/store.h"
#include "image/suite.h"
#include "image/version.h"

static char home[64];

static int set_up(void **state)
{
    snprintf(home, sizeof home, "/tmp/store_test.XXXXXX");
    return !mkdtemp(home) || setenv("XDG_DATA_HOME", home, 1);
}

static int tear_down(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", home);
    return system(command);
}

static void suites_have_names(void **state)
{
    struct suite suite;
    static const char *const names[] = {"debian:12", "debian:bookworm", "bookworm"};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        assert_int_equal(suite_find(names[i], &suite), 0);
        assert_string_equal(suite.codename, "bookworm");
        assert_string_equal(suite.name, "debian:12");
    }
    assert_int_equal(suite_find("sid", &suite), 0);
    assert_string_equal(suite.name, "debian:sid");
    static const char *const unknown[] = {"debian:9", "12", "debian:", "", "potato", "debian:1"};
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
        trail_clear();
        assert_int_equal(suite_find(unknown[i], &suite), -EINVAL);
        assert_non_null(strstr(trail_text(), "debian:13 (trixie)"));
    }
    trail_clear();
}

static void versions_have_an_order(void **state)
{
    /* each is older than the next; dpkg --compare-versions agrees */
    static const char *const versions[] = {"5.10.0-8-amd64",
                                           "5.10.0-28-amd64",
                                           "6.1~rc3",
                                           "6.1.0-9-amd64",
                                           "6.1.0-10-amd64",
                                           "6.1.0-10-cloud-amd64",
                                           "6.1.0-010-rt-amd64",
                                           "6.1.0-56-amd64",
                                           "6.12.12+bpo-amd64",
                                           "6.12.100",
                                           "100"};
    for (size_t i = 0; i + 1 < ARRAY_SIZE(versions); i++) {
        assert_true(version_compare(versions[i], versions[i + 1]) < 0);
        assert_true(version_compare(versions[i + 1], versions[i]) > 0);
    }
    assert_int_equal(version_compare("6.01", "6.1"), 0);
    assert_int_equal(version_compare("", ""), 0);
}

static void digests_are_sha256(void **state)
{
    struct digest digest;
    char text[DIGEST_TEXT];
    digest_bytes("abc", 3, &digest); /* FIPS 180-2, B.1 */
    digest_print(&digest, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    /* a hole is zeroes: 3 MiB of them, and a letter */
    FILE *file = tmpfile();
    assert_int_equal(ftruncate(fileno(file), 3 << 20), 0);
    assert_int_equal(pwrite(fileno(file), "x", 1, 3 << 20), 1);
    assert_int_equal(digest_file(fileno(file), (3 << 20) + 1, &digest), 0);
    digest_print(&digest, text);
    assert_string_equal(text, "857aeb2c84691ffad54581aef9ab0eec9ddd88b2a18d752c3815bddf0a9d61d0");
    fclose(file);
}

static json_t *add_image(struct store *store, const char *name, const char *content, int created)
{
    struct store_file file;
    json_t *record = json_pack("{s:s, s:s, s:i, s:i, s:s}", "name", name, "format", "raw", "size",
                               512, "created", created, "key", content);
    assert_int_equal(store_begin(store, &file), 0);
    assert_int_equal(write(file.fd, content, strlen(content)), strlen(content));
    assert_int_equal(store_add(store, &file, record), 0);
    store_drop(store, &file);
    return record;
}

static const char *text(const json_t *record, const char *key)
{
    return json_string_value(json_object_get(record, key));
}

static void images_are_found_by_name_and_id(void **state)
{
    struct store store;
    json_t *found = NULL, *list = NULL;
    assert_int_equal(store_open(&store), 0);
    json_t *old = add_image(&store, "debian:12", "old", 100);
    json_t *new = add_image(&store, "debian:12", "new", 200);
    json_t *other = add_image(&store, "mine", "other", 150);
    assert_int_equal(store_find(&store, "debian:12", &found), 0);
    assert_string_equal(text(found, "id"), text(new, "id"));
    json_decref(found);
    assert_int_equal(store_find(&store, text(old, "id"), &found), 0);
    assert_string_equal(text(found, "id"), text(old, "id"));
    json_decref(found);
    found = store_find_key(&store, "other");
    assert_string_equal(text(found, "name"), "mine");
    json_decref(found);
    assert_null(store_find_key(&store, "none"));
    assert_int_equal(store_find(&store, "nobody", &found), -ENOENT);
    assert_non_null(strstr(trail_text(), "debian:12, mine"));
    trail_clear();
    assert_int_equal(store_list(&store, &list), 0);
    assert_int_equal(json_array_size(list), 3);
    assert_string_equal(text(json_array_get(list, 0), "id"), text(new, "id"));
    json_decref(list);
    assert_int_equal(store_remove(&store, new), 0);
    assert_int_equal(store_find(&store, "debian:12", &found), 0);
    assert_string_equal(text(found, "id"), text(old, "id"));
    json_decref(found);
    assert_int_equal(store_remove(&store, old) | store_remove(&store, other), 0);
    json_decref(old);
    json_decref(new);
    json_decref(other);
    store_close(&store);
}

static void changed_content_is_noticed(void **state)
{
    struct store store;
    char path[STORE_PATH];
    json_t *found = NULL;
    assert_int_equal(store_open(&store), 0);
    json_t *record = add_image(&store, "mine", "content", 1);
    assert_int_equal(store_verify(&store, record), 0);
    store_content_path(&store, record, path);
    FILE *file = fopen(path, "r+");
    if (!file) { /* it may be read only, except for root */
        assert_int_equal(chmod(path, 0600), 0);
        file = fopen(path, "r+");
    }
    fputs("CONTENT", file);
    fclose(file);
    assert_int_equal(store_verify(&store, record), -EIO);
    trail_clear();
    assert_int_equal(truncate(path, 3), 0); /* of another size: no image any more */
    assert_int_equal(store_find(&store, "mine", &found), -ENOENT);
    trail_clear();
    assert_int_equal(store_remove(&store, record), 0);
    json_decref(record);
    store_close(&store);
}

static void what_was_not_finished_is_swept(void **state)
{
    struct store store;
    struct store_file gone, next;
    char path[STORE_PATH];
    assert_int_equal(store_open(&store), 0);
    assert_int_equal(store_begin(&store, &gone), 0);
    snprintf(path, sizeof path, "%s/%s", store.path, gone.name);
    assert_int_equal(store_begin(&store, &next), 0);
    assert_int_equal(access(path, F_OK), 0); /* somebody holds it */
    store_drop(&store, &next);
    close(gone.fd); /* as if its maker had been killed */
    assert_int_equal(store_begin(&store, &next), 0);
    assert_string_equal(next.name, gone.name);
    store_drop(&store, &next);
    assert_int_not_equal(access(path, F_OK), 0);
    store_close(&store);
}

static void files_are_imported_with_their_format(void **state)
{
    static uint8_t bytes[65536];
    struct store store;
    char path[128];
    json_t *record = NULL;
    assert_int_equal(store_open(&store), 0);
    snprintf(path, sizeof path, "%s/my disk.img", home);
    for (unsigned i = 0; i < 4; i++) { /* raw; qcow2 with a backing file; qcow2; vmdk */
        memset(bytes, 0, sizeof bytes);
        memcpy(bytes, i == 3 ? "KDMV" : i ? "QFI\xfb\0\0\0\3" : "", i == 3 ? 4 : i ? 8 : 0);
        bytes[15] = i == 1;
        bytes[29] = 2; /* of 128 KiB */
        FILE *file = fopen(path, "w");
        assert_int_equal(fwrite(bytes, 1, sizeof bytes, file), sizeof bytes);
        fclose(file);
        int r = image_import(&store, path, i == 2 ? "named" : NULL, &record);
        assert_int_equal(r, i % 2 ? -EINVAL : 0);
        trail_clear();
        if (!r) {
            assert_string_equal(text(record, "format"), i ? "qcow2" : "raw");
            assert_string_equal(text(record, "name"), i ? "named" : "my-disk");
            assert_int_equal(json_integer_value(json_object_get(record, "size")),
                             i ? 131072 : 65536);
            assert_int_equal(store_verify(&store, record), 0);
            assert_int_equal(store_remove(&store, record), 0);
            json_decref(record);
        }
    }
    store_close(&store);
}

static void names_are_checked(void **state)
{
    assert_int_equal(store_check_name("debian:12"), 0);
    static const char *const bad[] = {"", ".hidden", "a/b", "a b", "-x"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_int_equal(store_check_name(bad[i]), -EINVAL);
    }
    trail_clear();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(suites_have_names),
        cmocka_unit_test(versions_have_an_order),
        cmocka_unit_test(digests_are_sha256),
        cmocka_unit_test(images_are_found_by_name_and_id),
        cmocka_unit_test(changed_content_is_noticed),
        cmocka_unit_test(what_was_not_finished_is_swept),
        cmocka_unit_test(files_are_imported_with_their_format),
        cmocka_unit_test(names_are_checked),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
