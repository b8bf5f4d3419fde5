/*
 * What `openssl speed` measures, as fixed work: crypto sha256 | aes-128-cbc | rsa2048 KEY-FILE.
 * The digest of all results goes to standard output.
 */
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The block sizes of `openssl speed`, and so many of each that all take about as long. */
static const struct {
    int size, sha256, aes;
} blocks[] = {
    {16, 600000, 2000000}, {64, 480000, 800000}, {256, 225000, 250000},
    {1024, 75000, 64000},  {8192, 10000, 8000},  {16384, 5000, 4000},
};
enum { SIGNATURES = 1000 };
static unsigned char buffer[16384 + 64];

static void need(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "crypto: %s failed\n", what);
        exit(1);
    }
}

static void tell(const unsigned char *bytes, size_t size)
{
    unsigned char digest[32];
    need(EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL), "EVP_Digest");
    for (unsigned i = 0; i < sizeof digest; i++) {
        printf("%02x", digest[i]);
    }
    printf("\n");
}

static void run_sha256(void)
{
    EVP_MD *sha256 = EVP_MD_fetch(NULL, "sha256", NULL);
    need(!!sha256, "EVP_MD_fetch");
    for (unsigned b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
        for (int i = 0; i < blocks[b].sha256; i++) { /* each round eats the digest before it */
            need(EVP_Digest(buffer, (size_t)blocks[b].size, buffer, NULL, sha256, NULL),
                 "EVP_Digest");
        }
        tell(buffer, sizeof buffer);
    }
    EVP_MD_free(sha256);
}

static void run_aes(void)
{
    static const unsigned char key[16] = "sixteen bytes !", iv[16];
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    need(context && EVP_EncryptInit_ex(context, EVP_aes_128_cbc(), NULL, key, iv),
         "EVP_EncryptInit");
    EVP_CIPHER_CTX_set_padding(context, 0);
    for (unsigned b = 0; b < sizeof blocks / sizeof blocks[0]; b++) {
        for (int i = 0; i < blocks[b].aes; i++) {
            need(EVP_Cipher(context, buffer, buffer, (unsigned)blocks[b].size) > 0, "EVP_Cipher");
        }
        tell(buffer, sizeof buffer);
    }
    EVP_CIPHER_CTX_free(context);
}

static void run_rsa(const char *path)
{
    unsigned char signature[256];
    FILE *file = fopen(path, "r");
    EVP_PKEY *key = file ? PEM_read_PrivateKey(file, NULL, NULL, NULL) : NULL;
    EVP_PKEY_CTX *context = key ? EVP_PKEY_CTX_new(key, NULL) : NULL;
    need(context && EVP_PKEY_sign_init(context) > 0, "EVP_PKEY_sign_init");
    for (int i = 0; i < SIGNATURES; i++) {
        size_t size = sizeof signature;
        need(EVP_PKEY_sign(context, signature, &size, buffer, 36) > 0, "EVP_PKEY_sign");
        memcpy(buffer, signature, 36);
    }
    tell(signature, sizeof signature);
    EVP_PKEY_CTX_free(context);
    EVP_PKEY_free(key);
    fclose(file);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "sha256")) {
        run_sha256();
    } else if (!strcmp(what, "aes-128-cbc")) {
        run_aes();
    } else if (!strcmp(what, "rsa2048") && argc == 3) {
        run_rsa(argv[2]);
    } else {
        fprintf(stderr, "usage: crypto sha256 | aes-128-cbc | rsa2048 KEY-FILE\n");
        return 2;
    }
    return 0;
}
