/* The jail from inside: each child enters it, tries one thing, and must die or live as stated. */
#include "control/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* last: cmocka wants the standard headers before it */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void *page;

static void try_exec(void)
{
    execl("/bin/true", "true", NULL);
}

static void try_open(void)
{
    open("/etc/passwd", O_RDONLY);
}

static void try_create(void)
{
    creat("/tmp/doppel-jail-test", 0600);
}

static void try_socket(void)
{
    socket(AF_UNIX, SOCK_STREAM, 0);
}

static void try_ptrace(void)
{
    ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}

static void try_fork(void)
{
    syscall(SYS_fork);
}

static void try_signal_parent(void)
{
    syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static void try_map_executable(void)
{
    mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void try_make_executable(void)
{
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
}

static void try_io_uring_setup(void)
{
    syscall(SYS_io_uring_setup, 1, NULL);
}

static void try_process_memory(void)
{
    syscall(SYS_process_vm_readv, getppid(), NULL, 0, NULL, 0, 0);
}

static void try_terminal_injection(void)
{
    syscall(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, "x");
}

/* 32-bit system calls have other numbers: 11 is execve there, munmap here. */
static void try_foreign_architecture(void)
{
    long result = 20; /* getpid */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory");
}

static void *in_thread(void *argument)
{
    pthread_barrier_t *barrier = argument;
    pthread_barrier_wait(barrier);
    pthread_barrier_wait(barrier);
    open("/etc/passwd", O_RDONLY);
    return NULL;
}

static const struct {
    const char *name;
    void (*try)(void);
} deadly[] = {
    {"exec", try_exec},
    {"open", try_open},
    {"create", try_create},
    {"socket", try_socket},
    {"ptrace", try_ptrace},
    {"fork", try_fork},
    {"signal to the parent", try_signal_parent},
    {"mmap executable", try_map_executable},
    {"mprotect executable", try_make_executable},
    {"io_uring_setup", try_io_uring_setup},
    {"process_vm_readv", try_process_memory},
    {"TIOCSTI", try_terminal_injection},
    {"int 80h", try_foreign_architecture},
};

static void enter(void)
{
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    bool landlock;
    if (jail_close_inherited() || jail_drop_rights(&landlock) || jail_enter(NULL, 0, NULL, 0)) {
        _exit(100);
    }
}

/* Run `child` in a process of its own; returns its wait status. */
static int status_of(void (*child)(void))
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        child();
        _exit(101);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void (*current)(void);

static void enter_and_try(void)
{
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    enter();
    current();
}

static void test_deadly_calls(void **state)
{
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++) {
        current = deadly[i].try;
        int status = status_of(enter_and_try);
        /* a host kernel without 32-bit support has no such gate at all */
        bool no_gate = current == try_foreign_architecture && WTERMSIG(status) == SIGSEGV;
        if (!WIFSIGNALED(status) || (WTERMSIG(status) != SIGSYS && !no_gate)) {
            fail_msg("%s: wait status %#x instead of SIGSYS", deadly[i].name, status);
        }
    }
}

static void threaded_child(void)
{
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, NULL, 2);
    pthread_t thread;
    if (pthread_create(&thread, NULL, in_thread, &barrier)) {
        _exit(102);
    }
    pthread_barrier_wait(&barrier);
    enter();
    pthread_barrier_wait(&barrier);
    pthread_join(thread, NULL);
}

static void test_covers_older_threads(void **state)
{
    int status = status_of(threaded_child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

/* What the machine itself does while a guest runs. */
static void honest_child(void)
{
    enter();
    char *block = malloc(1 << 20);
    block = realloc(block, 1 << 22);
    free(block);
    struct timespec now, moment = {0, 1000};
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct tm calendar;
    gmtime_r(&now.tv_sec, &calendar); /* would read /etc/localtime, but that was done before */
    nanosleep(&moment, NULL);
    _exit(now.tv_sec < 0);
}

static void test_honest_work_goes_on(void **state)
{
    int status = status_of(honest_child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

enum { ALLOCATORS = 12, PIECES = 64, PIECE_SIZE = 30000 };

static struct allocator {
    pthread_t thread;
    void *pieces[PIECES];
} allocators[ALLOCATORS];
static pthread_barrier_t jail_door;

static void *allocate_in_jail(void *argument)
{
    struct allocator *allocator = argument;
    pthread_barrier_wait(&jail_door); /* all threads run ... */
    pthread_barrier_wait(&jail_door); /* ... and are in the jail */
    for (size_t i = 0; i < PIECES; i++) {
        allocator->pieces[i] = malloc(PIECE_SIZE);
    }
    return NULL;
}

/*
 * More threads than the C library has an easy time with make memory, and another one gives all of
 * it back: with heaps of their own that would open files below /sys and /proc.
 */
static void allocating_child(void)
{
    bool landlock;
    pthread_barrier_init(&jail_door, NULL, ALLOCATORS + 1);
    if (jail_close_inherited() || jail_drop_rights(&landlock)) {
        _exit(100);
    }
    for (size_t i = 0; i < ALLOCATORS; i++) {
        if (pthread_create(&allocators[i].thread, NULL, allocate_in_jail, &allocators[i])) {
            _exit(102);
        }
    }
    pthread_barrier_wait(&jail_door);
    if (jail_enter(NULL, 0, NULL, 0)) {
        _exit(100);
    }
    pthread_barrier_wait(&jail_door);
    for (size_t i = 0; i < ALLOCATORS; i++) {
        pthread_join(allocators[i].thread, NULL);
        for (size_t k = 0; k < PIECES; k++) {
            free(allocators[i].pieces[k]);
        }
    }
    _exit(0);
}

static void test_all_threads_may_allocate(void **state)
{
    int status = status_of(allocating_child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* Inherited descriptors and capabilities are gone, and no_new_privs is on. */
static void inspecting_child(void)
{
    int inherited = dup2(0, 77);
    bool landlock;
    if (inherited != 77 || jail_close_inherited() || fcntl(77, F_GETFD) != -1) {
        _exit(1);
    }
    if (jail_drop_rights(&landlock) || prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) {
        _exit(2);
    }
    if (landlock && open("/etc/passwd", O_RDONLY) >= 0) {
        _exit(3);
    }
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    uint32_t sets[6] = {1, 1, 1, 1, 1, 1};
    if (syscall(SYS_capget, &header, sets)) {
        _exit(4);
    }
    for (size_t i = 0; i < 6; i++) {
        if (sets[i]) {
            _exit(5);
        }
    }
    _exit(0);
}

static void test_rights_are_dropped(void **state)
{
    int status = status_of(inspecting_child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* A ring from before is no way around the filter: what it opens is opened in the Landlock domain.
 */
enum { NO_RING = 76, NO_LANDLOCK = 77 };

static void opening_by_ring_child(void)
{
    struct io_uring ring;
    struct io_uring_cqe *completion;
    bool landlock;
    if (jail_close_inherited() || io_uring_queue_init(1, &ring, 0)) {
        _exit(NO_RING);
    }
    if (jail_drop_rights(&landlock) || jail_enter(NULL, 0, NULL, 0)) {
        _exit(100);
    }
    io_uring_prep_openat(io_uring_get_sqe(&ring), AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    if (io_uring_submit(&ring) != 1 || io_uring_wait_cqe(&ring, &completion)) {
        _exit(1);
    }
    if (!landlock) {
        _exit(NO_LANDLOCK);
    }
    _exit(completion->res == -EACCES ? 0 : 2);
}

static void test_ring_opens_nothing(void **state)
{
    int status = status_of(opening_by_ring_child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == NO_RING || WEXITSTATUS(status) == NO_LANDLOCK) {
        print_message("SKIPPED: this host has no io_uring, or no Landlock\n");
        skip();
    }
    assert_int_equal(WEXITSTATUS(status), 0);
}

/*
 * Clients come in by the doors that the jail was told of, with these flags, and by no other. There
 * are up to two: of the control socket and of the debugger.
 */
enum { DOORS = 2, OTHER_DOOR = DOORS };
static const struct visit {
    unsigned count, door; /* how many are told of, and which one is tried */
    bool has_flags, is_good;
} visits[] = {
    {1, 0, true, true},   {1, 0, false, false},         {1, 1, true, false},
    {2, 0, true, true},   {2, 1, true, true},           {2, 0, false, false},
    {2, 1, false, false}, {2, OTHER_DOOR, true, false}, {0, 0, true, false},
};
static const struct visit *visit;

static int listen_anywhere(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); /* at 0.0.0.0, a port of the host's */
    return fd < 0 || listen(fd, 1) ? -1 : fd;
}

static void accepting_child(void)
{
    struct rlimit no_core = {0, 0};
    bool landlock;
    if (setrlimit(RLIMIT_CORE, &no_core) || jail_close_inherited()) {
        _exit(100);
    }
    int doors[DOORS + 1];
    for (unsigned i = 0; i <= DOORS; i++) {
        doors[i] = listen_anywhere();
        if (doors[i] < 0) {
            _exit(100);
        }
    }
    if (jail_drop_rights(&landlock) || jail_enter(doors, visit->count, NULL, 0)) {
        _exit(100);
    }
    accept4(doors[visit->door], NULL, NULL, visit->has_flags ? SOCK_CLOEXEC | SOCK_NONBLOCK : 0);
    _exit(errno == EAGAIN ? 0 : 1);
}

static void test_doors(void **state)
{
    for (visit = visits; visit < visits + sizeof visits / sizeof visits[0]; visit++) {
        int status = status_of(accepting_child);
        if (visit->is_good) {
            assert_true(WIFEXITED(status));
            assert_int_equal(WEXITSTATUS(status), 0);
        } else {
            assert_true(WIFSIGNALED(status));
            assert_int_equal(WTERMSIG(status), SIGSYS);
        }
    }
}

/* Descriptors are received at the channels that the jail was told of, and nowhere else. */
static bool is_channel;

static void receiving_child(void)
{
    struct rlimit no_core = {0, 0};
    bool landlock;
    int pair[2];
    char byte;
    struct iovec piece = {&byte, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    if (setrlimit(RLIMIT_CORE, &no_core) || jail_close_inherited() ||
        socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || write(pair[1], "x", 1) != 1) {
        _exit(100);
    }
    const int channels[] = {pair[1], pair[0]};
    if (jail_drop_rights(&landlock) || jail_enter(NULL, 0, channels, is_channel ? 2 : 1)) {
        _exit(100);
    }
    _exit(recvmsg(pair[0], &message, 0) == 1 ? 0 : 1);
}

static void test_channels(void **state)
{
    is_channel = true;
    int status = status_of(receiving_child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    is_channel = false;
    status = status_of(receiving_child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGSYS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deadly_calls),        cmocka_unit_test(test_covers_older_threads),
        cmocka_unit_test(test_honest_work_goes_on), cmocka_unit_test(test_all_threads_may_allocate),
        cmocka_unit_test(test_rights_are_dropped),  cmocka_unit_test(test_doors),
        cmocka_unit_test(test_ring_opens_nothing),  cmocka_unit_test(test_channels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
