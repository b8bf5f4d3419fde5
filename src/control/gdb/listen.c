/* The debugger's socket; see listen.h. */
#include "control/gdb/listen.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "machine/resource.h"

static const char *const known[] = {"address", "wait", NULL};

static char *duplicate(const char *text)
{
    char *copy = strdup(text);
    ASSERT(copy);
    return copy;
}

static bool is_port(const char *text, unsigned *ret_port)
{
    size_t length = strlen(text);
    if (length == 0 || length > 5 || strspn(text, "0123456789") != length) {
        return false;
    }
    *ret_port = (unsigned)strtoul(text, NULL, 10);
    return *ret_port >= 1 && *ret_port <= UINT16_MAX;
}

static int take_key(const struct resource_key *key, struct gdb_address *address)
{
    struct in_addr ignored;
    if (!strcmp(key->name, "wait")) {
        bool is_on = key->value && !strcmp(key->value, "on");
        address->wait = is_on;
        return is_on || (key->value && !strcmp(key->value, "off"))
                   ? 0
                   : fail(-EINVAL, "--gdb: wait is on or off");
    }
    if (address->path || !key->value || inet_pton(AF_INET, key->value, &ignored) != 1) {
        return fail(-EINVAL, "--gdb: address is an IPv4 address, for a port");
    }
    free(address->address);
    address->address = duplicate(key->value);
    return 0;
}

static int take_value(const char *value, struct gdb_address *address)
{
    const struct sockaddr_un *un = NULL;
    if (is_port(value, &address->port)) {
        address->address = duplicate("127.0.0.1");
        return 0;
    }
    if (!strchr(value, '/')) {
        return fail(-EINVAL,
                    "--gdb: '%s' is no port (1 to 65535) and no path of a socket, which has a /",
                    value);
    }
    if (strlen(value) >= sizeof un->sun_path) {
        return fail(-EINVAL, "--gdb: the path of a socket has at most %zu bytes",
                    sizeof un->sun_path - 1);
    }
    address->path = duplicate(value);
    return 0;
}

int gdb_address_parse(const char *text, struct gdb_address *ret_address)
{
    struct resource resource;
    *ret_address = (struct gdb_address){0};
    if (!text) {
        return fail(-EINVAL, "--gdb needs a value: a port or the path of a socket");
    }
    int r = resource_parse("gdb", text, known, &resource);
    if (r) {
        return r;
    }
    r = take_value(resource.value, ret_address);
    for (size_t i = 0; i < resource.key_count && !r; i++) {
        r = take_key(&resource.keys[i], ret_address);
    }
    resource_fini(&resource);
    if (r) {
        gdb_address_fini(ret_address);
    }
    return r;
}

void gdb_address_fini(struct gdb_address *address)
{
    free(address->path);
    free(address->address);
    *address = (struct gdb_address){0};
}

/* A socket without anybody behind it may go. */
static void remove_left_over(const struct sockaddr_un *un)
{
    struct stat status;
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && !lstat(un->sun_path, &status) && S_ISSOCK(status.st_mode) &&
        connect(fd, (const struct sockaddr *)un, sizeof *un) && errno == ECONNREFUSED) {
        unlink(un->sun_path);
    }
}

static int listen_path(const char *path)
{
    struct sockaddr_un un = {.sun_family = AF_UNIX};
    strncpy(un.sun_path, path, sizeof un.sun_path - 1);
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    remove_left_over(&un);
    /* bind() takes the mode of the socket for that of the path: unix(7) is silent, Linux does */
    if (fd < 0 || fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&un, sizeof un) ||
        listen(fd, 1)) {
        return fail(-errno, "--gdb: listen at '%s': %m", path);
    }
    return TAKE_FD(fd);
}

static int listen_port(const char *address, unsigned port)
{
    const int one = 1;
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    CLEANUP_FD int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    inet_pton(AF_INET, address, &in.sin_addr);
    /* connections inherit TCP_NODELAY: answers are small, and GDB waits for each */
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) ||
        bind(fd, (const struct sockaddr *)&in, sizeof in) || listen(fd, 1)) {
        return fail(-errno, "--gdb: listen at %s, port %u: %m", address, port);
    }
    return TAKE_FD(fd);
}

int gdb_listen(const struct gdb_address *address)
{
    return address->path ? listen_path(address->path)
                         : listen_port(address->address, address->port);
}
