/*
 * In the guest: uses the network against tests/net/session.py, one thing for each call, and says
 * "ok" or what was wrong by its exit status and a line.
 *
 *   exercise get|put ADDRESS PORT BYTES     bulk transfer, with a checksum
 *   exercise short ADDRESS PORT COUNT       so many connections, one after another, 16 at a time
 *   exercise half ADDRESS PORT              each side ends its half first, once
 *   exercise reset ADDRESS PORT reset|end   a connection that the other side resets; and one of
 *                                           ours, which it should see like that
 *   exercise refused ADDRESS PORT           nobody listens there
 *   exercise udp ADDRESS PORT COUNT         datagrams that come back, up to 1,400 bytes
 *   exercise dns SERVER NAME A|AAAA|none ANSWER
 *   exercise serve [vsock] PORT             echo, for one connection from outside
 *
 * The address "vsock" is the host without a network.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <zlib.h>

enum { PIECE = 256 << 10, PARALLEL = 16 };

static uint8_t buffer[PIECE];

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf(" (%s)\n", strerror(errno));
    exit(1);
}

static int make_socket(const char *address, const char *port, int type, struct sockaddr_storage *to,
                       socklen_t *size)
{
    memset(to, 0, sizeof *to);
    struct sockaddr_in *v4 = (void *)to;
    struct sockaddr_in6 *v6 = (void *)to;
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)atoi(port));
        *size = sizeof *v4;
    } else if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)atoi(port));
        *size = sizeof *v6;
    } else if (!strcmp(address, "vsock")) {
        const struct sockaddr_vm host = {
            .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = (unsigned)atoi(port)};
        memcpy(to, &host, sizeof host);
        *size = sizeof host;
    } else {
        die("no address: %s", address);
    }
    int fd = socket(to->ss_family, type, 0);
    const struct timeval limit = {.tv_sec = 30};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit)) {
        die("make a socket");
    }
    return fd;
}

static int connect_to(const char *address, const char *port)
{
    struct sockaddr_storage to;
    socklen_t size;
    int fd = make_socket(address, port, SOCK_STREAM, &to, &size);
    if (connect(fd, (struct sockaddr *)&to, size)) {
        die("connect to %s port %s", address, port);
    }
    return fd;
}

static void send_all(int fd, const void *bytes, size_t count)
{
    const uint8_t *at = bytes;
    while (count > 0) {
        ssize_t sent = send(fd, at, count, MSG_NOSIGNAL);
        if (sent <= 0) {
            die("send");
        }
        at += sent;
        count -= (size_t)sent;
    }
}

/* Up to `count` bytes, or to the end of the stream. */
static size_t receive_all(int fd, void *bytes, size_t count)
{
    size_t got = 0;
    while (got < count) {
        ssize_t n = recv(fd, (uint8_t *)bytes + got, count - got, 0);
        if (n < 0) {
            die("receive after %zu bytes", got);
        }
        if (n == 0) {
            break;
        }
        got += (size_t)n;
    }
    return got;
}

/* Answers to a request: one line. */
static void expect_line(int fd, const char *wanted)
{
    char line[128] = "";
    size_t got = receive_all(fd, line, strlen(wanted));
    if (got != strlen(wanted) || memcmp(line, wanted, got)) {
        die("the answer is '%.*s', not '%s'", (int)got, line, wanted);
    }
}

static double seconds(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (double)now.tv_sec + (double)now.tv_usec / 1e6;
}

/* The server sends the bytes, then their checksum as 8 digits. */
static void get(const char *address, const char *port, const char *bytes)
{
    int fd = connect_to(address, port);
    unsigned long long left = strtoull(bytes, NULL, 10);
    uint32_t sum = 0;
    double start = seconds();
    char text[64];
    snprintf(text, sizeof text, "get %s\n", bytes);
    send_all(fd, text, strlen(text));
    while (left > 0) {
        ssize_t n = recv(fd, buffer, left < PIECE ? left : PIECE, 0);
        if (n <= 0) {
            die("receive, %llu bytes left", left);
        }
        sum = (uint32_t)crc32(sum, buffer, (unsigned)n);
        left -= (unsigned long long)n;
    }
    snprintf(text, sizeof text, "%08x\n", sum);
    expect_line(fd, text);
    double took = seconds() - start;
    printf("got %s bytes, %.0f Mbit/s\n", bytes, strtod(bytes, NULL) * 8e-6 / took);
}

static void put(const char *address, const char *port, const char *bytes)
{
    int fd = connect_to(address, port);
    unsigned long long left = strtoull(bytes, NULL, 10);
    uint32_t sum = 0, state = 12345;
    double start = seconds();
    char text[64];
    snprintf(text, sizeof text, "put %s\n", bytes);
    send_all(fd, text, strlen(text));
    for (size_t i = 0; i < PIECE; i++) {
        state = state * 1664525 + 1013904223;
        buffer[i] = (uint8_t)(state >> 24);
    }
    for (uint64_t piece = 0; left > 0; piece++) {
        unsigned count = left < PIECE ? (unsigned)left : PIECE;
        memcpy(buffer, &piece, sizeof piece);
        sum = (uint32_t)crc32(sum, buffer, count);
        send_all(fd, buffer, count);
        left -= count;
    }
    snprintf(text, sizeof text, "%08x\n", sum);
    expect_line(fd, text);
    double took = seconds() - start;
    printf("put %s bytes, %.0f Mbit/s\n", bytes, strtod(bytes, NULL) * 8e-6 / took);
}

static void short_connections(const char *address, const char *port, int count)
{
    int open[PARALLEL];
    for (int done = 0; done < count; done += PARALLEL) {
        int now = count - done < PARALLEL ? count - done : PARALLEL;
        for (int i = 0; i < now; i++) {
            char text[32];
            open[i] = connect_to(address, port);
            snprintf(text, sizeof text, "say %d\n", done + i);
            send_all(open[i], text, strlen(text));
        }
        for (int i = 0; i < now; i++) {
            char text[32];
            snprintf(text, sizeof text, "%d\n", done + i);
            expect_line(open[i], text);
            if (receive_all(open[i], text, 1) != 0) {
                die("there is more after the answer");
            }
            close(open[i]);
        }
    }
}

static void half_closed(const char *address, const char *port)
{
    /* ours first: the server counts to the end of our half, then answers */
    int fd = connect_to(address, port);
    send_all(fd, "count\n", 6);
    memset(buffer, 'x', sizeof buffer);
    send_all(fd, buffer, 100000);
    shutdown(fd, SHUT_WR);
    expect_line(fd, "100000\n");
    if (receive_all(fd, buffer, 1) != 0) {
        die("no end after the answer");
    }
    close(fd);
    /* theirs first: the other half stays open */
    fd = connect_to(address, port);
    send_all(fd, "finish\n", 7);
    if (receive_all(fd, buffer, PIECE) != 0) {
        die("no end of their half");
    }
    memset(buffer, 'y', sizeof buffer);
    send_all(fd, buffer, 70000);
    shutdown(fd, SHUT_WR);
    close(fd);
    usleep(500000);
    fd = connect_to(address, port);
    send_all(fd, "finished\n", 9);
    expect_line(fd, "70000\n");
    close(fd);
}

static void reset(const char *address, const char *port, const char *seen_as)
{
    int fd = connect_to(address, port);
    send_all(fd, "reset\n", 6);
    char byte;
    ssize_t n = recv(fd, &byte, 1, 0);
    if (n >= 0 || errno != ECONNRESET) {
        die("no reset: %zd", n);
    }
    close(fd);
    fd = connect_to(address, port);
    send_all(fd, "watch\n", 6);
    expect_line(fd, "watching\n");
    const struct linger linger = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(fd);
    for (int i = 0; i < 50; i++) {
        usleep(100000);
        fd = connect_to(address, port);
        send_all(fd, "watched\n", 8);
        char answer[8] = "";
        receive_all(fd, answer, sizeof answer);
        close(fd);
        if (!strncmp(answer, seen_as, strlen(seen_as))) {
            return;
        }
    }
    die("our reset did not arrive");
}

static void refused(const char *address, const char *port)
{
    struct sockaddr_storage to;
    socklen_t size;
    int fd = make_socket(address, port, SOCK_STREAM, &to, &size);
    int wanted = to.ss_family == AF_VSOCK ? ECONNRESET : ECONNREFUSED;
    if (connect(fd, (struct sockaddr *)&to, size) == 0 || errno != wanted) {
        die("not refused");
    }
}

static void udp(const char *address, const char *port, int count)
{
    struct sockaddr_storage to;
    socklen_t size;
    int fd = make_socket(address, port, SOCK_DGRAM, &to, &size), lost = 0;
    const struct timeval limit = {.tv_sec = 2};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&to, size)) {
        die("connect");
    }
    for (int i = 0; i < count; i++) {
        uint8_t back[2048];
        size_t length = 4 + (size_t)(i * 37 % 1396);
        memset(buffer, i, length);
        memcpy(buffer, &i, 4);
        if (send(fd, buffer, length, 0) != (ssize_t)length) {
            die("send");
        }
        ssize_t n = recv(fd, back, sizeof back, 0);
        if (n < 0) {
            lost++;
        } else if (n != (ssize_t)length || memcmp(back, buffer, length)) {
            die("another datagram came back, of %zd bytes", n);
        }
    }
    if (lost > count / 100) {
        die("%d of %d datagrams were lost", lost, count);
    }
}

/* A question as RFC 1035 has it; the answers follow it with compressed names. */
static size_t make_query(uint8_t *query, const char *name, unsigned type)
{
    const uint8_t header[12] = {0x12, 0x34, 1, 0, 0, 1};
    memcpy(query, header, sizeof header);
    size_t at = sizeof header;
    for (const char *label = name; *label;) {
        size_t length = strcspn(label, ".");
        query[at++] = (uint8_t)length;
        memcpy(query + at, label, length);
        at += length;
        label += length + (label[length] == '.');
    }
    const uint8_t end[5] = {0, 0, (uint8_t)type, 0, 1};
    memcpy(query + at, end, sizeof end);
    return at + sizeof end;
}

static void dns(const char *server, const char *name, const char *type, const char *wanted)
{
    struct sockaddr_storage to;
    socklen_t size;
    uint8_t query[300], answer[600];
    bool is_ipv6 = !strcmp(type, "AAAA"), is_none = !strcmp(type, "none");
    size_t length = make_query(query, name, is_ipv6 ? 28 : 1);
    int fd = make_socket(server, "53", SOCK_DGRAM, &to, &size);
    const struct timeval limit = {.tv_sec = 3};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ssize_t got = -1;
    for (int tries = 0; tries < 3 && got < 0; tries++) {
        if (connect(fd, (struct sockaddr *)&to, size) || send(fd, query, length, 0) < 0) {
            die("ask %s", server);
        }
        got = recv(fd, answer, sizeof answer, 0);
    }
    if (got < (ssize_t)length || memcmp(answer, query, 2) ||
        memcmp(answer + 12, query + 12, length - 12)) {
        die("no answer from %s: %zd", server, got);
    }
    unsigned code = answer[3] & 15, answers = (unsigned)answer[6] << 8 | answer[7];
    if (is_none) {
        if (code != 3 || answers) {
            die("code %u and %u answers for a name that is not there", code, answers);
        }
        return;
    }
    uint8_t address[16];
    size_t bytes = is_ipv6 ? 16 : 4;
    if (code || answers != 1 || got != (ssize_t)(length + 12 + bytes) ||
        inet_pton(is_ipv6 ? AF_INET6 : AF_INET, wanted, address) != 1 ||
        memcmp(answer + length + 12, address, bytes)) {
        die("code %u, %u answers, %zd bytes", code, answers, got);
    }
}

/* One connection from outside: everything comes back until it ends. */
static void serve(const char *port, bool is_vsock)
{
    const struct sockaddr_in here = {.sin_family = AF_INET,
                                     .sin_port = htons((uint16_t)atoi(port))};
    const struct sockaddr_vm here_vsock = {
        .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = (unsigned)atoi(port)};
    int fd = socket(is_vsock ? AF_VSOCK : AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if ((is_vsock ? bind(fd, (const struct sockaddr *)&here_vsock, sizeof here_vsock)
                  : bind(fd, (const struct sockaddr *)&here, sizeof here)) ||
        listen(fd, 5)) {
        die("listen at %s", port);
    }
    printf("listening%s\n", is_vsock ? " by vsock" : "");
    fflush(stdout);
    alarm(60);
    int peer = accept(fd, NULL, NULL);
    for (ssize_t n; (n = recv(peer, buffer, PIECE, 0)) > 0;) {
        send_all(peer, buffer, (size_t)n);
    }
    close(peer);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    if (!strcmp(what, "get") && argc == 5) {
        get(argv[2], argv[3], argv[4]);
    } else if (!strcmp(what, "put") && argc == 5) {
        put(argv[2], argv[3], argv[4]);
    } else if (!strcmp(what, "short") && argc == 5) {
        short_connections(argv[2], argv[3], atoi(argv[4]));
    } else if (!strcmp(what, "half") && argc == 4) {
        half_closed(argv[2], argv[3]);
    } else if (!strcmp(what, "reset") && argc == 5) {
        reset(argv[2], argv[3], argv[4]);
    } else if (!strcmp(what, "refused") && argc == 4) {
        refused(argv[2], argv[3]);
    } else if (!strcmp(what, "udp") && argc == 5) {
        udp(argv[2], argv[3], atoi(argv[4]));
    } else if (!strcmp(what, "dns") && argc == 6) {
        dns(argv[2], argv[3], argv[4], argv[5]);
    } else if (!strcmp(what, "serve") && argc == 3) {
        serve(argv[2], false);
    } else if (!strcmp(what, "serve") && argc == 4) {
        serve(argv[3], true);
    } else {
        die("exercise: wrong arguments");
    }
    return 0;
}
