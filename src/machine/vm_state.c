/*
 * Saving and loading a whole machine. The order is fixed: what the machine is, time, vCPUs, devices
 * in board order, memory. The same code serves all modes of the visitor.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/host_clock.h"
#include "base/test_clock.h"
#include "device/device.h"
#include "device/irqchip/irqchip.h"
#include "machine/vm_internal.h"
#include "persist/visitor.h"

/* A stream fits a machine of the same shape only. */
static void visit_shape(struct vm *vm, struct visitor *v)
{
    uint64_t memory = vm->config->memory_size;
    uint8_t cpus = (uint8_t)vm->config->cpus;
    uint8_t model = (uint8_t)vm->config->cpu_model;
    uint8_t disks = (uint8_t)vm->config->disk_count;
    visit_begin(v, "machine", 1);
    visit_u64(v, "memory_size", &memory);
    visit_u8(v, "cpus", &cpus);
    visit_u8(v, "cpu_model", &model);
    visit_u8(v, "disks", &disks);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ && !visitor_error(v) &&
        (memory != vm->config->memory_size || cpus != vm->config->cpus ||
         model != (uint8_t)vm->config->cpu_model || disks != vm->config->disk_count)) {
        visitor_fail(v, -EINVAL, "the saved machine has other memory, CPUs or disks than this one");
    }
}

static void visit_time(struct vm *vm, struct visitor *v)
{
    visit_begin(v, "time", 1);
    visit_u64(v, "stopped_tsc", &vm->stopped_tsc);
    visit_u64(v, "stopped_ns", &vm->stopped_ns);
    visit_u64(v, "tsc_hz", &vm->tsc_hz);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ && vm->host_clock) { /* what devices set, they set by it */
        host_clock_stop(vm->host_clock, vm->stopped_ns);
    }
    if (visitor_mode(v) == VISITOR_READ && vm->step_clock && !visitor_error(v)) {
        test_clock_advance_to(vm->step_clock, vm->stopped_ns);
    }
}

static void visit_vcpus(struct vm *vm, struct visitor *v)
{
    for (unsigned i = 0; i < vm->config->cpus; i++) {
        struct vm_vcpu *vcpu = &vm->vcpus[i];
        cpu_state_visit(&vcpu->state, v);
        if (visitor_mode(v) == VISITOR_READ) {
            vcpu->state_changed = true;
            vcpu->tsc_offset = vcpu->state.tsc_offset;
        }
    }
}

static bool is_zero(const uint8_t page[PAGE_SIZE])
{
    return page[0] == 0 && !memcmp(page, page + 1, PAGE_SIZE - 1);
}

/* The next page from `page` on that is not all zeros, with its contents; the limit if none. */
static uint64_t next_contents(struct memory *memory, uint64_t page, uint8_t contents[PAGE_SIZE])
{
    uint64_t limit = memory_page_limit(memory);
    for (; page < limit; page++) {
        enum page_state state = memory_page_state(memory, page);
        if (state != PAGE_NONE && state != PAGE_ZERO &&
            !memory_read(memory, page << PAGE_SHIFT, contents, PAGE_SIZE) && !is_zero(contents)) {
            return page;
        }
    }
    return limit;
}

/* Pairs of page number and contents in ascending order; the limit ends the list. */
static void visit_pages_out(struct vm *vm, struct visitor *v)
{
    uint8_t contents[PAGE_SIZE];
    uint64_t limit = memory_page_limit(vm->memory);
    uint64_t page = 0;
    do {
        page = next_contents(vm->memory, page, contents);
        visit_u64(v, "page", &page);
        if (page == limit) {
            break;
        }
        visit_bytes(v, "contents", contents, PAGE_SIZE);
        page++;
    } while (!visitor_error(v));
}

static void discard_all(struct vm *vm, struct visitor *v)
{
    struct board_map map;
    board_map_make(vm->config->memory_size, &map);
    for (size_t i = 0; i < map.ram_count; i++) {
        if (memory_discard(vm->memory, map.ram[i].base, map.ram[i].size)) {
            visitor_fail(v, -EIO, "cannot empty the memory before loading");
        }
    }
}

static void visit_pages_in(struct vm *vm, struct visitor *v)
{
    uint8_t contents[PAGE_SIZE];
    uint64_t limit = memory_page_limit(vm->memory);
    discard_all(vm, v);
    for (uint64_t next = 0; !visitor_error(v); next++) {
        uint64_t page = next;
        visit_u64_max(v, "page", &page, limit);
        if (visitor_error(v) || page == limit) {
            return;
        }
        if (page < next) {
            visitor_fail(v, -EINVAL, "the pages of the saved memory are out of order");
            return;
        }
        visit_bytes(v, "contents", contents, PAGE_SIZE);
        if (!visitor_error(v) &&
            memory_write(vm->memory, page << PAGE_SHIFT, contents, PAGE_SIZE)) {
            visitor_fail(v, -EINVAL, "the saved memory has a page where there is no RAM");
        }
        next = page;
    }
}

int vm_visit(struct vm *vm, struct visitor *v)
{
    visit_shape(vm, v);
    visit_time(vm, v);
    visit_vcpus(vm, v);
    for (size_t i = 0; i < vm->board.device_count && !visitor_error(v); i++) {
        struct device *device = vm->board.devices[i];
        device->ops->visit(device, v);
    }
    visit_begin(v, "memory", 1);
    if (visitor_mode(v) == VISITOR_READ) {
        visit_pages_in(vm, v);
    } else if (visitor_mode(v) != VISITOR_PRINT) {
        visit_pages_out(vm, v);
    }
    visit_end(v);
    return visitor_error(v);
}
