/*
 * The self-test of /dev/kvm; see kvm_probe.h. The child reports the failing step by its exit status
 * and is killed at the deadline. Linux, Documentation/virt/kvm/api.rst.
 */
#include "control/kvm_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"

/*
 * The loop takes a few milliseconds on a CPU; where something below us emulates guest code one
 * instruction at a time, it misses the deadline, as it should.
 */
enum { DEADLINE_MS = 1000, LOOP_STEPS = 10000000, MEMORY_SIZE = 0x10000 };

/* Guest-physical layout of the test. */
enum { PML4 = 0x1000, PDPT = 0x2000, DIRECTORY = 0x3000, CODE = 0x4000, RESULT = 0x5000 };

/* Steps of the child; its exit status names the one that failed. */
enum step {
    STEP_DONE,
    STEP_OPEN,
    STEP_VM,
    STEP_MEMORY,
    STEP_VCPU,
    STEP_STATE,
    STEP_RUN,
    STEP_RESULT,
};

static const char *const step_texts[] = {
    [STEP_OPEN] = "open it a second time",
    [STEP_VM] = "make a virtual machine",
    [STEP_MEMORY] = "give it memory",
    [STEP_VCPU] = "make a virtual CPU",
    [STEP_STATE] = "set its registers",
    [STEP_RUN] = "run a guest in long mode",
    [STEP_RESULT] = "run a guest in long mode: it ended in a wrong state",
};

/*
 *     xor eax, eax; mov ecx, 10000000; next: add eax, ecx; dec ecx; jnz next
 *     mov rbx, 123456789ABCDEF0h; add rax, rbx; mov [5000h], rax; hlt
 */
static const uint8_t program[] = {
    0x31, 0xc0, 0xb9, 0x80, 0x96, 0x98, 0x00, 0x01, 0xc8, 0xff, 0xc9, 0x75,
    0xfa, 0x48, 0xbb, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0x48,
    0x01, 0xd8, 0x48, 0x89, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00, 0xf4,
};
#define EXPECTED                                                                                   \
    (UINT64_C(0x123456789abcdef0) + (uint32_t)((uint64_t)LOOP_STEPS * (LOOP_STEPS + 1) / 2))

static void fill_memory(uint8_t *memory)
{
    store_le64(memory + PML4, PDPT | 3);
    store_le64(memory + PDPT, DIRECTORY | 3);
    store_le64(memory + DIRECTORY, 0x83); /* the first 2 MiB in one page */
    memcpy(memory + CODE, program, sizeof program);
}

static int set_state(int vcpu)
{
    struct kvm_sregs sregs;
    if (ioctl(vcpu, KVM_GET_SREGS, &sregs)) {
        return -1;
    }
    const struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    struct kvm_segment data = code;
    data.selector = 16;
    data.type = 3;
    data.l = 0;
    data.db = 1;
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.cr0 = 0x80050033;
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    const struct kvm_regs regs = {.rip = CODE, .rflags = 2};
    return ioctl(vcpu, KVM_SET_SREGS, &sregs) || ioctl(vcpu, KVM_SET_REGS, &regs) ? -1 : 0;
}

static enum step run_guest(int kvm, int vcpu, const uint8_t *memory)
{
    int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (size < (int)sizeof(struct kvm_run)) {
        return STEP_VCPU;
    }
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) {
        return STEP_VCPU;
    }
    if (set_state(vcpu)) {
        return STEP_STATE;
    }
    if (ioctl(vcpu, KVM_RUN, 0)) {
        return STEP_RUN;
    }
    bool right = run->exit_reason == KVM_EXIT_HLT && load_le64(memory + RESULT) == EXPECTED;
    return right ? STEP_DONE : STEP_RESULT;
}

/* The process ends after this: the kernel takes everything back. */
static enum step child_main(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) {
        return STEP_OPEN;
    }
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) {
        return STEP_VM;
    }
    uint8_t *memory =
        mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return STEP_MEMORY;
    }
    fill_memory(memory);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY_SIZE,
                                                 .userspace_addr = (uintptr_t)memory};
    if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) {
        return STEP_MEMORY;
    }
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    return vcpu < 0 ? STEP_VCPU : run_guest(kvm, vcpu, memory);
}

static bool ends_in_time(pid_t child, int *ret_status)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    for (int waited = 0; waited < DEADLINE_MS; waited += 2) {
        if (waitpid(child, ret_status, WNOHANG) == child) {
            return true;
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

/*
 * Wait for the child until the deadline. False: it had to be killed; and one that the kernel does
 * not let go even then is not waited for.
 */
static bool wait_for(pid_t child, int *ret_status)
{
    if (ends_in_time(child, ret_status)) {
        return true;
    }
    kill(child, SIGKILL);
    ends_in_time(child, ret_status);
    return false;
}

static void self_test(struct kvm_probe *probe)
{
    pid_t child = fork();
    if (child < 0) {
        snprintf(probe->text, sizeof probe->text, "not usable: no process for the self-test");
        return;
    }
    if (child == 0) {
        _exit((int)child_main());
    }
    int status;
    if (!wait_for(child, &status)) {
        snprintf(probe->text, sizeof probe->text,
                 "not usable: it opens, but a loop of %d million steps did not end in %d ms",
                 LOOP_STEPS / 1000000, DEADLINE_MS);
    } else if (!WIFEXITED(status)) {
        snprintf(probe->text, sizeof probe->text, "not usable: the self-test died of signal %d",
                 WTERMSIG(status));
    } else if (WEXITSTATUS(status) == STEP_DONE) {
        probe->usable = true;
        snprintf(probe->text, sizeof probe->text, "usable, not used yet");
    } else {
        snprintf(probe->text, sizeof probe->text, "not usable: it opens, but cannot %s",
                 step_texts[WEXITSTATUS(status) % ARRAY_SIZE(step_texts)]);
    }
}

void kvm_probe(struct kvm_probe *ret_probe)
{
    *ret_probe = (struct kvm_probe){0};
    ret_probe->exists = access("/dev/kvm", F_OK) == 0;
    CLEANUP_FD int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        snprintf(ret_probe->text, sizeof ret_probe->text, "not usable: %s",
                 ret_probe->exists ? strerror(errno) : "there is none");
        return;
    }
    ret_probe->opens = true;
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        snprintf(ret_probe->text, sizeof ret_probe->text,
                 "not usable: its interface version is %d, not %d", version, KVM_API_VERSION);
        return;
    }
    self_test(ret_probe);
}
