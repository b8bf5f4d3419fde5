/* The life of a virtual machine; see vm.h. Everything is made, run and taken apart here. */
#include "machine/vm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/console/console.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/host_clock.h"
#include "base/loop.h"
#include "base/test_clock.h"
#include "device/device.h"
#include "device/irqchip/irqchip.h"
#include "device/legacy/pm.h"
#include "device/paravirt/kvmclock.h"
#include "machine/trace.h"
#include "machine/vm_internal.h"

/* More than any kernel or initrd needs; keeps a mistaken path from eating the host's memory. */
#define BOOT_FILE_MAX GIB(4)

/* Instructions for each virtual second in the deterministic mode: one for each nanosecond. */
enum { DETERMINISTIC_HZ = 1000000000 };

/*
 * The paravirtual interfaces of this machine, in CPUID leaf 40000001H (Linux,
 * Documentation/virt/kvm/x86/cpuid.rst).
 */
enum {
    KVM_CLOCK_OLD_MSRS = 1u << 0,
    KVM_NO_IO_DELAY = 1u << 1,
    KVM_CLOCK = 1u << 3,
    KVM_UNHALT = 1u << 7,
    KVM_CLOCK_STABLE = 1u << 24, /* readings of different vCPUs never go backwards */
};

/* The kernel of a disk, with its initrd unless there is another. */
static void take_found(struct vm *vm, struct found_kernel *found)
{
    vm->kernel = found->kernel;
    found->kernel = (struct boot_file){0};
    if (!vm->config->initrd) {
        vm->initrd = found->initrd;
        found->initrd = (struct boot_file){0};
    }
}

static int read_boot_files(struct vm *vm)
{
    const struct vm_config *config = vm->config;
    int r = 0;
    if (config->kernel) {
        r = boot_file_read(config->kernel, BOOT_FILE_MAX, &vm->kernel);
    } else {
        take_found(vm, config->found);
    }
    if (!r && config->initrd) {
        r = boot_file_read(config->initrd, BOOT_FILE_MAX, &vm->initrd);
    }
    for (size_t i = 0; i < config->module_count && !r; i++) {
        r = boot_file_read(config->modules[i].path, BOOT_FILE_MAX, &vm->modules[i]);
    }
    return r;
}

static int make_clock(struct vm *vm)
{
    int r = loop_new(&vm->loop);
    if (r) {
        return r;
    }
    if (vm->config->time_mode == TIME_DETERMINISTIC) {
        vm->tsc_hz = DETERMINISTIC_HZ;
        vm->step_clock = test_clock_new();
        vm->clock = test_clock_clock(vm->step_clock);
        return 0;
    }
    vm->tsc_hz = tsc_measure_hz();
    r = host_clock_new(vm->loop, &vm->host_clock);
    if (!r) {
        vm->clock = host_clock_clock(vm->host_clock);
    }
    return r;
}

static int pick_engine(struct vm *vm)
{
    const struct engine_ops *wanted =
        vm->config->engine == ENGINE_INTERP ? &interp_engine : &translate_engine;
    int r = wanted->probe();
    if (r && vm->config->engine == ENGINE_AUTO) {
        trail_clear();
        wanted = &interp_engine;
        r = wanted->probe();
    }
    vm->engine_ops = wanted;
    return r ? fail(r, "engine %s cannot run here", wanted->name) : 0;
}

static int make_engine(struct vm *vm)
{
    int r = pick_engine(vm);
    if (r) {
        return r;
    }
    const struct cpuid_config cpuid = {
        .model = vm->config->cpu_model,
        .cpus = vm->config->cpus,
        .tsc_hz = vm->tsc_hz,
        .apic_hz = IRQCHIP_TIMER_HZ,
        .kvm_features =
            KVM_CLOCK_OLD_MSRS | KVM_NO_IO_DELAY | KVM_CLOCK | KVM_CLOCK_STABLE | KVM_UNHALT,
        .x2apic = true,
    };
    r = cpuid_table_new(&cpuid, &vm->cpuid);
    if (r) {
        return r;
    }
    const struct engine_config config = {
        .memory = vm->memory,
        .cpuid = vm->cpuid,
        .host = engine_host_for(vm),
        .cpus = vm->config->cpus,
        .time_mode = vm->config->time_mode,
        .code = vm->config->code,
        .trace = vm_trace_engine(vm->trace),
    };
    return vm->engine_ops->vm_new(&config, &vm->engine);
}

static int make_memory(struct vm *vm)
{
    struct board_map map;
    board_map_make(vm->config->memory_size, &map);
    return memory_new(map.ram, map.ram_count, vm->config->name, &vm->memory);
}

/* Power-on state of all vCPUs, with TSCs that start at zero together, and the kernel in place. */
static int load_guest(struct vm *vm)
{
    uint64_t tsc_offset = 0;
    if (vm->config->time_mode == TIME_HOST) {
        tsc_offset = -engine_host_tsc();
    }
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        cpu_state_reset(&vcpu->state, i == 0);
        vcpu->state.gpr[RDX] = cpuid_signature(vm->cpuid);
        vcpu->state.tsc_offset = tsc_offset;
        vcpu->tsc_offset = tsc_offset;
        vcpu->state_changed = true;
    }
    int result = board_boot(vm, &vm->vcpus[0].state);
    for (unsigned i = 1; i < vm->config->cpus; i++) { /* a firmware sets them alike on all CPUs */
        vm->vcpus[i].state.mtrr_def_type = vm->vcpus[0].state.mtrr_def_type;
    }
    return result;
}

static void make_vcpus(struct vm *vm)
{
    unsigned cpus = vm->config->cpus;
    vm->vcpus = aligned_alloc(_Alignof(struct vm_vcpu), cpus * sizeof *vm->vcpus);
    ASSERT(vm->vcpus);
    memset(vm->vcpus, 0, cpus * sizeof *vm->vcpus);
    for (unsigned i = 0; i < cpus; i++) {
        vm->vcpus[i].vm = vm;
        vm->vcpus[i].index = i;
    }
}

/* Time stands still for a machine that is stopped: note where. */
static void note_time(struct vm *vm)
{
    vm->stopped_ns = clock_now(vm->clock);
    if (vm->host_clock) {
        vm->stopped_tsc = engine_host_tsc();
        host_clock_stop(vm->host_clock, vm->stopped_ns);
    }
}

static int build(struct vm *vm)
{
    int r = read_boot_files(vm);
    if (!r) {
        r = vm_trace_new(vm->config, &vm->trace);
    }
    if (!r) {
        r = make_clock(vm);
    }
    if (!r) {
        r = make_memory(vm);
    }
    if (!r) {
        r = board_new(vm);
    }
    if (!r) {
        r = make_engine(vm);
    }
    if (!r) {
        r = load_guest(vm);
    }
    if (!r) {
        note_time(vm); /* it stands still until the machine runs, or is loaded */
    }
    return r;
}

int vm_new(const struct vm_config *config, struct vm **ret_vm)
{
    struct vm *vm = calloc(1, sizeof *vm);
    ASSERT(vm);
    vm->config = config;
    pthread_mutex_init(&vm->lock, NULL);
    pthread_cond_init(&vm->changed, NULL);
    make_vcpus(vm);
    stats_begin(vm);
    int r = build(vm);
    if (r) {
        vm_free(vm);
        return r;
    }
    *ret_vm = vm;
    return 0;
}

size_t vm_channels(const struct vm *vm, int *fds)
{
    size_t count = 0;
    if (vm->board.net_channel >= 0) {
        fds[count++] = vm->board.net_channel;
    }
    if (vm->board.vsock_channel >= 0) {
        fds[count++] = vm->board.vsock_channel;
    }
    return count;
}

int vm_listener(const struct vm *vm)
{
    return vm->board.vsock_listener;
}

static void free_boot_files(struct vm *vm)
{
    boot_file_free(&vm->kernel);
    boot_file_free(&vm->initrd);
    for (size_t i = 0; i < ARRAY_SIZE(vm->modules); i++) {
        boot_file_free(&vm->modules[i]);
    }
}

void vm_never_resets(struct vm *vm)
{
    free_boot_files(vm);
    vm->never_resets = true;
}

void vm_free(struct vm *vm)
{
    if (!vm) {
        return;
    }
    vcpu_threads_join(vm);
    if (vm->engine) {
        vm->engine_ops->vm_free(vm->engine);
    }
    board_free(&vm->board);
    vm_trace_free(vm->trace);
    cpuid_table_free(vm->cpuid);
    memory_free(vm->memory);
    host_clock_free(vm->host_clock);
    test_clock_free(vm->step_clock);
    loop_free(vm->loop);
    free_boot_files(vm);
    pthread_cond_destroy(&vm->changed);
    pthread_mutex_destroy(&vm->lock);
    free(vm->vcpus);
    free(vm);
}

int vm_start(struct vm *vm)
{
    int r = vcpu_threads_start(vm);
    return r ? r : console_start(vm->board.serial_console);
}

/* Let time go on from where it stood when the machine was stopped. */
static void continue_time(struct vm *vm)
{
    if (vm->step_clock) {
        step_time_restart(vm);
    }
    if (vm->host_clock) {
        host_clock_set(vm->host_clock, vm->stopped_ns); /* first: deadlines are computed by it */
        uint64_t lost = engine_host_tsc() - vm->stopped_tsc;
        for (unsigned i = 0; i < vm->config->cpus; i++) {
            struct vm_vcpu *vcpu = &vm->vcpus[i];
            vcpu->state.tsc_offset -= lost;
            vcpu->tsc_offset = vcpu->state.tsc_offset;
            vcpu->state_changed = true;
            irqchip_tsc_changed(vm->board.irqchip, i);
        }
    }
    kvmclock_refresh(vm->board.kvmclock, vm->life == VM_PAUSED);
}

static void stop(struct vm *vm)
{
    vcpu_threads_stop(vm);
    step_time_advance(vm);
    board_pause(&vm->board);
    vcpu_states_complete(vm);
    note_time(vm);
}

static void go(struct vm *vm)
{
    continue_time(vm);
    atomic_store(&vm->pause_wanted, false);
    board_resume(&vm->board);
    vm->life = VM_RUNNING;
    vcpu_threads_go(vm);
}

int vm_reset(struct vm *vm)
{
    ASSERT(!vm->never_resets);
    bool was_running = vm->life == VM_RUNNING;
    if (was_running) {
        stop(vm);
    }
    vm->reset_wanted = false; /* whoever has asked meanwhile means this one too */
    for (size_t i = 0; i < vm->board.device_count; i++) {
        struct device *device = vm->board.devices[i];
        device->ops->reset(device);
    }
    int r = load_guest(vm);
    if (r) {
        return fail(r, "load the kernel again after a reset");
    }
    note_time(vm); /* the TSCs have just been started anew */
    if (was_running) {
        go(vm);
    }
    return 0;
}

/* Do the reset that the guest has asked for, if that has not happened yet. Loop thread. */
static void answer_reset(void *owner)
{
    struct vm *vm = owner;
    if (atomic_exchange(&vm->reset_wanted, false) && vm_reset(vm)) {
        vm_request_error(vm, trail_text());
    }
}

void vm_pause(struct vm *vm)
{
    if (vm->life == VM_RUNNING) {
        stop(vm);
        vm->life = VM_PAUSED;
        answer_reset(vm); /* what is paused may be saved, and this is in no saved state */
    }
}

void vm_resume(struct vm *vm)
{
    if (vm->life == VM_PAUSED) {
        go(vm);
    }
}

static void answer_pause(void *owner)
{
    vm_pause(owner);
}

bool vm_request_pause(struct vm *vm)
{
    if (atomic_exchange(&vm->pause_wanted, true)) {
        return false;
    }
    loop_post(vm->loop, answer_pause, vm);
    return true;
}

void vm_request_reset(struct vm *vm)
{
    if (vm->config->no_reboot) {
        vm_request_end(vm, VM_END_RESET, 0);
        return;
    }
    if (!atomic_exchange(&vm->reset_wanted, true)) {
        vcpu_threads_ask_stop(vm);
        loop_post(vm->loop, answer_reset, vm);
    }
}

bool vm_press_power_button(struct vm *vm)
{
    pm_press_power_button(vm->board.pm);
    return pm_power_button_enabled(vm->board.pm);
}

bool vm_power_button_enabled(struct vm *vm)
{
    return pm_power_button_enabled(vm->board.pm);
}

static void end(struct vm *vm, enum vm_end_kind kind, uint32_t value, const char *message)
{
    pthread_mutex_lock(&vm->lock);
    if (vm->end.kind == VM_END_NONE) {
        vm->end.kind = kind;
        vm->end.value = value;
        snprintf(vm->end.message, sizeof vm->end.message, "%s", message);
    }
    pthread_mutex_unlock(&vm->lock);
    vcpu_threads_ask_stop(vm);
    loop_stop(vm->loop);
}

void vm_request_end(struct vm *vm, enum vm_end_kind kind, uint32_t value)
{
    end(vm, kind, value, "");
}

void vm_request_error(struct vm *vm, const char *message)
{
    end(vm, VM_END_ERROR, 0, message);
}

void vm_triple_fault(struct vm *vm, unsigned vcpu, const struct cpu_state *state)
{
    triple_fault_report(vm, vcpu, state);
    if (vm->config->no_reboot) {
        vm_request_end(vm, VM_END_TRIPLE_FAULT, 0);
    } else {
        vm_request_reset(vm);
    }
}

void vm_on_stuck(struct vm *vm, void (*stuck)(void *owner, const char *message), void *owner)
{
    vm->stuck = stuck;
    vm->stuck_owner = owner;
}

void vm_start_paused(struct vm *vm)
{
    vm->starts_paused = true;
}

void vm_run(struct vm *vm, struct vm_end *ret_end)
{
    if (vm->starts_paused) {
        vm->life = VM_PAUSED;
    } else {
        go(vm);
    }
    int r = loop_run(vm->loop);
    if (r) {
        vm_request_error(vm, trail_text());
    }
    if (vm->life == VM_RUNNING) {
        stop(vm);
    }
    vm->life = VM_DEAD;
    *ret_end = vm->end;
}

enum vm_life vm_life(const struct vm *vm)
{
    return vm->life;
}

struct loop *vm_loop(struct vm *vm)
{
    return vm->loop;
}

struct console_hub *vm_console(struct vm *vm)
{
    return vm->board.hub;
}

const char *vm_engine_name(const struct vm *vm)
{
    return vm->engine_ops->name;
}

const char *vm_name(const struct vm *vm)
{
    return vm->config->name;
}

void vm_write_trace(struct vm *vm, const char *text)
{
    vm_trace_write(vm->trace, text);
}
