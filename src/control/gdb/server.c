/* One GDB at a time on a socket, and the machine behind it. See server.h. */
#include "control/gdb/server.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/error.h"
#include "base/loop.h"
#include "control/gdb/listen.h"
#include "control/gdb/packet.h"
#include "control/gdb/stub.h"
#include "machine/vm.h"

/* Answers wait here while the peer is slow; it is not heard meanwhile, so there are never many. */
enum { OUT_MAX = 4 * GDB_PACKET_MAX, IN_MAX = 4096 };

struct gdb_server {
    struct gdb_address address;
    char name[160];
    struct vm *vm;
    int listener;
    struct watch *listener_watch;
    int peer; /* -1: none */
    struct watch *peer_watch;
    struct gdb_stub *stub;
    bool is_heard; /* the first byte was GDB's */
    bool is_lost;  /* close when that is safe */
    size_t in_at, in_count, out_at, out_count;
    uint8_t in[IN_MAX];
    uint8_t out[OUT_MAX];
};

/* ---- the machine as a target ---- */

static struct vm *vm_of(void *owner)
{
    return ((struct gdb_server *)owner)->vm;
}

static void target_get_state(void *owner, unsigned cpu, struct cpu_state *ret_state)
{
    vm_debug_get_state(vm_of(owner), cpu, ret_state);
}

static int target_set_state(void *owner, unsigned cpu, const struct cpu_state *state)
{
    int r = vm_debug_set_state(vm_of(owner), cpu, state);
    trail_clear(); /* the peer gets a number */
    return r;
}

static size_t target_read(void *owner, unsigned cpu, gva_t gva, void *buffer, size_t size)
{
    return vm_debug_read(vm_of(owner), cpu, gva, buffer, size);
}

static size_t target_write(void *owner, unsigned cpu, gva_t gva, const void *buffer, size_t size)
{
    return vm_debug_write(vm_of(owner), cpu, gva, buffer, size);
}

static void target_resume(void *owner, const struct debug_points *points,
                          const enum vm_debug_action *actions)
{
    vm_debug_resume(vm_of(owner), points, actions);
}

static bool target_stop(void *owner, unsigned *ret_cpu, struct debug_stop *ret_stop)
{
    vm_pause(vm_of(owner));
    return vm_debug_stopped(vm_of(owner), ret_cpu, ret_stop);
}

static int target_reset(void *owner)
{
    int r = vm_reset(vm_of(owner));
    trail_clear();
    return r;
}

static void target_quit(void *owner)
{
    vm_request_end(vm_of(owner), VM_END_QUIT, 0);
}

static void on_stopped(void *owner)
{
    struct gdb_server *server = owner;
    if (server->stub) {
        gdb_stub_stopped(server->stub);
    }
}

/* ---- the peer ---- */

static void peer_close(struct gdb_server *server)
{
    watch_free(server->peer_watch);
    server->peer_watch = NULL;
    gdb_stub_free(server->stub);
    server->stub = NULL;
    close(server->peer);
    server->peer = -1;
}

/* Gone without a word: its points go, too, and the machine stays as it is. */
static void peer_lost(struct gdb_server *server)
{
    enum vm_debug_action actions[GDB_CPUS_MAX];
    static const struct debug_points none;
    bool was_running = vm_life(server->vm) == VM_RUNNING;
    bool is_detached = gdb_stub_is_detached(server->stub);
    peer_close(server);
    if (watch_set(server->listener_watch, LOOP_READABLE)) {
        trail_clear(); /* nobody can come any more; the machine goes on */
    }
    if (was_running && !is_detached) {
        for (unsigned i = 0; i < GDB_CPUS_MAX; i++) {
            actions[i] = VM_DEBUG_CONTINUE;
        }
        vm_pause(server->vm);
        vm_debug_resume(server->vm, &none, actions);
    }
}

static void flush(struct gdb_server *server)
{
    while (server->out_count && !server->is_lost) {
        ssize_t written = write(server->peer, server->out + server->out_at, server->out_count);
        if (written < 0) {
            server->is_lost = errno != EAGAIN && errno != EINTR;
            break;
        }
        server->out_at += (size_t)written;
        server->out_count -= (size_t)written;
    }
    if (!server->out_count) {
        server->out_at = 0;
    }
}

static void send_bytes(void *owner, const void *bytes, size_t count)
{
    struct gdb_server *server = owner;
    if (server->out_at + server->out_count + count > OUT_MAX) {
        server->is_lost = true;
        return;
    }
    memcpy(server->out + server->out_at + server->out_count, bytes, count);
    server->out_count += count;
    flush(server);
}

/* Hear the peer, as long as it takes the answers. */
static void hear(struct gdb_server *server)
{
    while (server->in_at < server->in_count && !server->out_count && !server->is_lost) {
        uint8_t byte = server->in[server->in_at++];
        if (!server->is_heard && !memchr("+-$\3", byte, 4)) {
            server->is_lost = true;
            return;
        }
        server->is_heard = true;
        gdb_stub_take(server->stub, byte);
    }
}

static void receive(struct gdb_server *server)
{
    ssize_t count = read(server->peer, server->in, sizeof server->in);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    server->is_lost |= count <= 0;
    server->in_at = 0;
    server->in_count = count > 0 ? (size_t)count : 0;
}

static void on_peer(void *owner, unsigned events)
{
    struct gdb_server *server = owner;
    flush(server);
    if (server->in_at == server->in_count && !server->out_count && !server->is_lost &&
        events & (LOOP_READABLE | LOOP_HANGUP)) {
        receive(server);
    }
    hear(server);
    bool is_done = gdb_stub_is_detached(server->stub) && !server->out_count;
    if (server->is_lost || is_done || (server->out_count && events & LOOP_HANGUP)) {
        peer_lost(server);
    } else if (watch_set(server->peer_watch, server->out_count ? LOOP_WRITABLE : LOOP_READABLE)) {
        peer_lost(server);
        trail_clear();
    }
}

static void stub_make(struct gdb_server *server)
{
    const struct gdb_stub_config config = {
        .target =
            {
                .cpus = vm_debug_cpus(server->vm),
                .xcr0 = vm_debug_xcr0(server->vm),
                .get_state = target_get_state,
                .set_state = target_set_state,
                .read = target_read,
                .write = target_write,
                .resume = target_resume,
                .stop = target_stop,
                .reset = target_reset,
                .quit = target_quit,
                .owner = server,
            },
        .send = send_bytes,
        .owner = server,
    };
    server->stub = gdb_stub_new(&config);
}

static void on_listener(void *owner, unsigned events)
{
    struct gdb_server *server = owner;
    int peer = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0) {
        return;
    }
    server->is_heard = server->is_lost = false;
    server->in_at = server->in_count = server->out_at = server->out_count = 0;
    server->peer = peer;
    if (watch_new(vm_loop(server->vm), peer, LOOP_READABLE, on_peer, server, &server->peer_watch) ||
        watch_set(server->listener_watch, 0)) { /* others wait */
        trail_clear();
        watch_free(server->peer_watch);
        server->peer_watch = NULL;
        close(peer);
        server->peer = -1;
        return;
    }
    vm_pause(server->vm);
    stub_make(server);
}

/* ---- the server ---- */

int gdb_server_check(const char *text)
{
    struct gdb_address address;
    int r = gdb_address_parse(text, &address);
    gdb_address_fini(&address);
    return r;
}

int gdb_server_open(const char *text, struct gdb_server **ret_server)
{
    CLEANUP(gdb_server_free) struct gdb_server *server = calloc(1, sizeof *server);
    ASSERT(server);
    server->listener = server->peer = -1;
    int r = gdb_address_parse(text, &server->address);
    if (r) {
        return r;
    }
    server->listener = gdb_listen(&server->address);
    if (server->listener < 0) {
        return server->listener;
    }
    if (server->address.path) {
        snprintf(server->name, sizeof server->name, "%s", server->address.path);
    } else {
        snprintf(server->name, sizeof server->name, "%s:%u", server->address.address,
                 server->address.port);
    }
    *ret_server = TAKE(server);
    return 0;
}

void gdb_server_free(struct gdb_server *server)
{
    if (!server) {
        return;
    }
    if (server->peer >= 0) {
        peer_close(server);
    }
    watch_free(server->listener_watch);
    if (server->listener >= 0) {
        close(server->listener);
    }
    gdb_address_fini(&server->address);
    free(server);
}

int gdb_server_attach(struct gdb_server *server, struct vm *vm)
{
    const struct vm_debugger debugger = {.stopped = on_stopped, .owner = server};
    server->vm = vm;
    vm_debug_attach(vm, &debugger);
    if (server->address.wait) {
        vm_start_paused(vm);
    }
    return watch_new(vm_loop(vm), server->listener, LOOP_READABLE, on_listener, server,
                     &server->listener_watch);
}

int gdb_server_descriptor(const struct gdb_server *server)
{
    return server->listener;
}

const char *gdb_server_name(const struct gdb_server *server)
{
    return server->name;
}

bool gdb_server_waits(const struct gdb_server *server)
{
    return server->address.wait;
}

void gdb_server_end(struct gdb_server *server, uint8_t status)
{
    if (server->stub) {
        gdb_stub_ended(server->stub, status);
        peer_close(server);
    }
    watch_free(server->listener_watch);
    server->listener_watch = NULL;
}
