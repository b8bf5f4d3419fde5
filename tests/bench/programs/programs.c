/*
 * Runs the programs of the programs benchmark in the current folder, which holds their inputs
 * (generate.py), and measures them: natively in a chroot and in a guest it is the same program.
 *
 *     row programs NAME NANOSECONDS    the time by this machine's own CLOCK_MONOTONIC
 *     row first NAME.first NANOSECONDS its first run: nothing is in caches yet
 *     check NAME HEX                   a digest of what the program wrote, the same everywhere
 *     clock NANOSECONDS                this machine's own clock, for a reader with another
 *
 *     programs [--cpus N] [--repeats N] [--names a,b]    runs the programs made for N CPUs
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../rows.h"

/* Commands for sh -c, whose standard output is OUT; what `prepare` does is not measured. */
#define CRYPTO "[ -x crypto ] || gcc -O2 -o crypto crypto.c -lcrypto"
#define OUT    "standard-output"
static const struct program {
    const char *name;
    unsigned cpus;
    const char *prepare, *command;
    const char *result; /* the file that is compared */
} programs[] = {
    {"gcc", 1, "rm -f unit.o", "exec gcc -O2 -c unit.c -o unit.o", "unit.o"},
    {"python_compute", 1, "", "exec python3 compute.py", OUT},
    {"python_start", 1, "", "for i in $(seq 50); do python3 -c 'print(6 * 7)'; done", OUT},
    {"openssl_sha256", 1, CRYPTO, "exec ./crypto sha256", OUT},
    {"openssl_aes", 1, CRYPTO, "exec ./crypto aes-128-cbc", OUT},
    {"openssl_rsa", 1, CRYPTO, "exec ./crypto rsa2048 key.pem", OUT},
    {"xz", 1, "", "exec xz -3 -T1 -k -c text", OUT},
    {"sqlite_commit", 1, "rm -f test.db", "exec sqlite3 test.db <commit.sql", OUT},
    {"sqlite_query", 1, "rm -f test.db", "exec sqlite3 test.db <query.sql", OUT},
    {"make_j2", 2, "rm -f project/program project/*.o", "exec make -s -C project -j2",
     "project/program"},
};

static void need(bool good, const char *name, const char *what)
{
    if (!good) {
        printf("error %s: %s\n", name, what);
        exit(1);
    }
}

static bool run_shell(const char *command)
{
    pid_t child = fork();
    if (child == 0) {
        int out = open(OUT, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        dup2(out, 1);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    int status = 1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* FNV-1a of the file's bytes and their number. */
static uint64_t digest(const char *path, const char *name)
{
    static uint8_t buffer[65536];
    uint64_t hash = 0xcbf29ce484222325u, total = 0;
    int file = open(path, O_RDONLY);
    need(file >= 0, name, "has no result");
    ssize_t got;
    while ((got = read(file, buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < got; i++) {
            hash = (hash ^ buffer[i]) * 0x100000001b3u;
        }
        total += (uint64_t)got;
    }
    close(file);
    need(total, name, "wrote nothing");
    return (hash ^ total) * 0x100000001b3u;
}

static void measure(const struct program *program, unsigned repeats)
{
    for (unsigned i = 0; i < repeats; i++) {
        need(run_shell(program->prepare), program->name, "could not be prepared");
        uint64_t start = now_ns();
        bool good = run_shell(program->command);
        uint64_t spent = now_ns() - start;
        need(good, program->name, "failed");
        printf("row programs %s %llu\n", program->name, (unsigned long long)spent);
        if (i == 0) {
            printf("row first %s.first %llu\n", program->name, (unsigned long long)spent);
        }
        printf("check %s %llx\n", program->name,
               (unsigned long long)digest(program->result, program->name));
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    static const struct option known[] = {
        {"cpus", required_argument, NULL, 'c'},
        {"repeats", required_argument, NULL, 'r'},
        {"names", required_argument, NULL, 'n'},
        {NULL, 0, NULL, 0},
    };
    unsigned cpus = 1, repeats = 1;
    const char *names = NULL;
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (option) {
        case 'c':
            cpus = (unsigned)atoi(optarg);
            break;
        case 'r':
            repeats = (unsigned)atoi(optarg);
            break;
        case 'n':
            names = optarg;
            break;
        default:
            return 2;
        }
    }
    tell_clock();
    for (size_t i = 0; i < sizeof programs / sizeof programs[0]; i++) {
        const struct program *program = &programs[i];
        if (program->cpus == cpus && (!names || in_list(names, program->name))) {
            measure(program, repeats);
        }
    }
    tell_clock();
    return 0;
}
