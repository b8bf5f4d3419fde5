/*
 * The board: THE list of devices, the address map, and which interrupt line goes where.
 *
 *     00000000  RAM up to 640 KiB; 000E0000 ACPI tables; 00100000 RAM up to 3 GiB
 *     C0000000  PCI memory window            E0000000  PCI configuration space (MMCONFIG)
 *     FEC00000  I/O APIC      FED00000  HPET      FEE00000  local APICs
 *     1 0000 0000  RAM beyond 3 GiB, then the 64-bit PCI window
 *     ports: 20 A0 8259s, 40 8254, 60 64 92 i8042, 70 RTC, 80 POST code, 3F8 serial, 600 ACPI,
 *            CF8 CFC PCI configuration, CF9 reset
 *     lines: 0 timer, 1 12 i8042, 4 serial, 8 RTC, 9 ACPI, 16..19 PCI, 20..23 HPET
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "backend/console/console.h"
#include "backend/console/hub.h"
#include "backend/disk/stop_disk.h"
#include "backend/share/share.h"
#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "bus/pci.h"
#include "device/irqchip/irqchip.h"
#include "device/legacy/debug_exit.h"
#include "device/legacy/hpet.h"
#include "device/legacy/i8042.h"
#include "device/legacy/pit.h"
#include "device/legacy/pm.h"
#include "device/legacy/rtc.h"
#include "device/legacy/serial.h"
#include "device/paravirt/kvmclock.h"
#include "device/pci/host.h"
#include "device/storage/nvme.h"
#include "device/virtio/blk.h"
#include "device/virtio/console.h"
#include "device/virtio/p9.h"
#include "device/virtio/rng.h"
#include "device/virtio/virtio_pci.h"
#include "machine/board_net.h"
#include "machine/report.h"
#include "machine/vm_internal.h"

enum {
    LOW_RAM_END = 0xa0000,
    LOADER_BASE = 0x1000, /* page 0 stays free: old interrupt vectors, BIOS data */
    LOADER_END = 0x9f000,
    ACPI_BASE = 0xe0000,
    ACPI_END = 0x100000,
    PM_PORT = 0x600,
    RESET_PORT = 0xcf9,
    RESET_VALUE = 6,
    SERIAL_PORT = 0x3f8,
    HPET_BASE = 0xfed00000,
    PCI_PORT_BASE = 0x1000,
    PCI_PORT_SIZE = 0x1000,
    IRQ_PIT = 0,
    IRQ_KEYBOARD = 1,
    IRQ_SERIAL = 4,
    IRQ_RTC = 8,
    IRQ_ACPI = 9,
    IRQ_MOUSE = 12,
    IRQ_PCI = 16,
    SLOT_RNG = 1,
    SLOT_CONSOLE = 2,
    SLOT_DISKS = 3,
    SLOT_NET = 16,
    SLOT_VSOCK = 17,
    SLOT_SHARES = 24,
};
#define RAM_HOLE_BASE     GIB(3)
#define RAM_HIGH_BASE     GIB(4)
#define MMCONFIG_BASE     UINT64_C(0xe0000000)
#define PCI_WINDOW_BASE   RAM_HOLE_BASE
#define PCI_WINDOW_SIZE   (MMCONFIG_BASE - PCI_WINDOW_BASE)
#define PCI_WINDOW64_SIZE GIB(32)

static void add_ram(struct board_map *map, uint64_t base, uint64_t end)
{
    if (end > base) {
        map->ram[map->ram_count++] = (struct memory_range){base, end - base};
        map->e820[map->e820_count++] = (struct e820_entry){base, end - base, E820_RAM};
    }
}

void board_map_make(uint64_t memory_size, struct board_map *ret_map)
{
    *ret_map = (struct board_map){0};
    uint64_t low = memory_size < RAM_HOLE_BASE ? memory_size : RAM_HOLE_BASE;
    uint64_t high = memory_size - low;
    add_ram(ret_map, 0, LOW_RAM_END);
    ret_map->ram[ret_map->ram_count++] = (struct memory_range){ACPI_BASE, ACPI_END - ACPI_BASE};
    ret_map->e820[ret_map->e820_count++] =
        (struct e820_entry){ACPI_BASE, ACPI_END - ACPI_BASE, E820_RESERVED};
    add_ram(ret_map, ACPI_END, low);
    ret_map->e820[ret_map->e820_count++] =
        (struct e820_entry){MMCONFIG_BASE, PCI_MMCONFIG_SIZE, E820_RESERVED};
    add_ram(ret_map, RAM_HIGH_BASE, RAM_HIGH_BASE + high);
    ret_map->ram_below_4g = low;
    ret_map->ram_above_4g = high;
    ret_map->window64_base = align_up(RAM_HIGH_BASE + high, PCI_WINDOW64_SIZE);
    ret_map->window64_size = PCI_WINDOW64_SIZE;
}

static void add_device(struct board *board, struct device *device)
{
    ASSERT(board->device_count < BOARD_DEVICES_MAX);
    board->devices[board->device_count++] = device;
}

/* What devices ask of the machine. */

static void on_reset(void *owner)
{
    vm_request_reset(owner);
}

static void on_power_off(void *owner)
{
    vm_request_end(owner, VM_END_POWER_OFF, 0);
}

static void on_debug_exit(void *owner, uint32_t value)
{
    vm_request_end(owner, VM_END_DEBUG_EXIT, value);
}

static void on_console_command(void *owner, enum console_command command)
{
    switch (command) {
    case CONSOLE_QUIT:
        vm_request_end(owner, VM_END_QUIT, 0);
        break;
    case CONSOLE_DETACH: /* there is nothing to leave: the console is this process's own */
        break;
    }
}

static void on_disk_error(void *owner, int error, const char *text)
{
    report("doppel: %s\n", text);
}

static void on_share_end(void *owner, const char *text)
{
    report("doppel: %s\n", text);
}

static uint64_t wall_now(void *owner)
{
    struct vm *vm = owner;
    if (vm->config->time_mode == TIME_DETERMINISTIC) {
        return UINT64_C(1700000000000000000) + clock_now(vm->clock); /* 2023-11-14 */
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t clock_tsc_now(void *owner)
{
    return vm_tsc_now(owner, 0);
}

/* The parts of the board, in the order in which their state is saved. */

static int add_interrupts(struct vm *vm)
{
    const struct irqchip_config config = {
        .cpus = vm->config->cpus,
        .bus = vm->board.bus,
        .clock = vm->clock,
        .wire = irqchip_wire_for(vm),
    };
    int r = irqchip_new(&config, &vm->board.irqchip);
    if (!r) {
        add_device(&vm->board, irqchip_device(vm->board.irqchip));
    }
    return r;
}

static int add_hpet(struct vm *vm, struct device **ret_hpet)
{
    struct board *board = &vm->board;
    struct hpet_config config = {
        .bus = board->bus,
        .base = HPET_BASE,
        .clock = vm->clock,
        .legacy = {[HPET_PIT] = irqchip_line(board->irqchip, IRQ_PIT),
                   [HPET_RTC] = irqchip_line(board->irqchip, IRQ_RTC)},
    };
    for (unsigned i = 0; i < HPET_PINS; i++) {
        config.pins[i] = irqchip_line(board->irqchip, HPET_FIRST_PIN + i);
    }
    int r = hpet_new(&config, ret_hpet);
    if (!r) {
        add_device(board, *ret_hpet);
    }
    return r;
}

static int add_clocks(struct vm *vm, const struct board_map *map)
{
    struct board *board = &vm->board;
    const struct kvmclock_config kvmclock = {
        .cpus = vm->config->cpus,
        .memory = vm->memory,
        .tsc_hz = vm->tsc_hz,
        .clock = vm->clock,
        .tsc_now = clock_tsc_now,
        .wall_now = wall_now,
        .owner = vm,
    };
    int r = kvmclock_new(&kvmclock, &board->kvmclock);
    if (r) {
        return r;
    }
    add_device(board, board->kvmclock);
    struct device *device, *hpet;
    r = add_hpet(vm, &hpet);
    if (r) {
        return r;
    }
    const struct pit_config pit = {
        .bus = board->bus, .irq = hpet_legacy_line(hpet, HPET_PIT), .clock = vm->clock};
    r = pit_new(&pit, &device);
    if (r) {
        return r;
    }
    add_device(board, device);
    const struct rtc_config rtc = {
        .bus = board->bus,
        .irq = hpet_legacy_line(hpet, HPET_RTC),
        .clock = vm->clock,
        .wall_now = wall_now,
        .owner = vm,
        .memory_below_4g = map->ram_below_4g,
        .memory_above_4g = map->ram_above_4g,
    };
    r = rtc_new(&rtc, &device);
    if (!r) {
        add_device(board, device);
    }
    return r;
}

static int add_power(struct vm *vm)
{
    struct board *board = &vm->board;
    struct device *device;
    const struct i8042_config i8042 = {
        .bus = board->bus,
        .keyboard_irq = irqchip_line(board->irqchip, IRQ_KEYBOARD),
        .mouse_irq = irqchip_line(board->irqchip, IRQ_MOUSE),
        .reset = on_reset,
        .owner = vm,
    };
    int r = i8042_new(&i8042, &device);
    if (r) {
        return r;
    }
    add_device(board, device);
    const struct pm_config pm = {
        .bus = board->bus,
        .port = PM_PORT,
        .sci = irqchip_line(board->irqchip, IRQ_ACPI),
        .clock = vm->clock,
        .power_off = on_power_off,
        .owner = vm,
    };
    r = pm_new(&pm, &board->pm);
    if (!r) {
        add_device(board, board->pm);
    }
    return r;
}

static int add_post_code(struct vm *vm)
{
    struct device *device;
    int r = post_code_new(vm->board.bus, &device);
    if (r) {
        return r;
    }
    add_device(&vm->board, device);
    return 0;
}

/* Last, so that whatever is at its port already is found here, where the option can be named. */
static int add_debug_exit(struct vm *vm)
{
    if (vm->config->debug_exit_port < 0) {
        return 0;
    }
    const struct debug_exit_config config = {
        .bus = vm->board.bus,
        .port = (uint16_t)vm->config->debug_exit_port,
        .exit = on_debug_exit,
        .owner = vm,
    };
    struct device *device;
    int r = debug_exit_new(&config, &device);
    if (r) {
        return fail(r, "--debug-exit %#x", vm->config->debug_exit_port);
    }
    add_device(&vm->board, device);
    return 0;
}

static int open_stdio(struct vm *vm, struct console **ret_console)
{
    const struct console_stdio_config config = {
        .loop = vm->loop, .command = on_console_command, .owner = vm};
    return console_stdio_open(&config, ret_console);
}

/* The console that the configuration names, behind a hub for viewers. */
static int open_console(struct vm *vm, struct console **ret_console)
{
    struct console *inner = NULL;
    int r = 0;
    if (vm->config->console == CONSOLE_FILE) {
        r = console_file_open(vm->config->console_path, vm->loop, &inner);
    } else if (vm->config->console_log[0] < 0) {
        r = open_stdio(vm, &inner);
    }
    if (r) {
        return r;
    }
    const struct console_hub_config config = {
        .loop = vm->loop,
        .inner = inner,
        .inner_types = vm->config->console != CONSOLE_FILE && inner && console_stdio_is_terminal(),
        .log = {vm->config->console_log[0], vm->config->console_log[1]},
    };
    *ret_console = console_hub_new(&config);
    vm->board.hub = console_hub_of(*ret_console);
    return 0;
}

static int add_serial(struct vm *vm)
{
    struct board *board = &vm->board;
    int r = vm->config->console == CONSOLE_VIRTIO ? 0 : open_console(vm, &board->serial_console);
    if (r) {
        return r;
    }
    const struct serial_config config = {
        .id = "serial0",
        .port = SERIAL_PORT,
        .bus = board->bus,
        .irq = irqchip_line(board->irqchip, IRQ_SERIAL),
        .clock = vm->clock,
        .console = board->serial_console,
    };
    struct device *device;
    r = serial_new(&config, &device);
    if (!r) {
        add_device(board, device);
    }
    return r;
}

static int add_pci_host(struct vm *vm)
{
    struct board *board = &vm->board;
    struct irq_line lines[4];
    for (unsigned i = 0; i < 4; i++) {
        lines[i] = irqchip_line(board->irqchip, IRQ_PCI + i);
    }
    board->pci = pci_bus_new(board->bus, irqchip_msi(board->irqchip), lines);
    const struct pci_host_config config = {
        .bus = board->bus,
        .pci = board->pci,
        .mmconfig_base = MMCONFIG_BASE,
        .reset = on_reset,
        .owner = vm,
    };
    struct device *device;
    int r = pci_host_new(&config, &device);
    if (!r) {
        add_device(board, device);
    }
    return r;
}

/* The device belongs to the board from here on, also on failure. */
static int plug(struct board *board, struct virtio_device *virtio, unsigned slot)
{
    add_device(board, &virtio->device);
    return virtio_pci_attach(virtio, board->pci, slot);
}

static int add_virtio_console(struct vm *vm)
{
    if (vm->config->console != CONSOLE_VIRTIO) {
        return 0;
    }
    struct virtio_console_config config = {.memory = vm->memory};
    int r = open_console(vm, &config.console);
    if (r) {
        return r;
    }
    struct virtio_device *virtio;
    r = virtio_console_new(&config, "virtio-console0", &virtio);
    if (r) {
        console_free(config.console);
        return r;
    }
    return plug(&vm->board, virtio, SLOT_CONSOLE);
}

/* The machine stands still until somebody has made room, say, and resumes it. */
static void on_disk_stopped(void *owner, const char *text)
{
    struct vm *vm = owner;
    if (vm_request_pause(vm)) {
        report("doppel: %s: %s: the machine is paused; 'doppel resume %s' tries again\n",
               vm_name(vm), text, vm_name(vm));
    }
}

static int add_virtio_disk(struct vm *vm, unsigned index, struct disk *disk, const char *serial)
{
    char id[24];
    snprintf(id, sizeof id, "virtio-blk%u", index);
    const struct virtio_blk_config config = {
        .memory = vm->memory,
        .disk = disk,
        .queues = vm->config->cpus,
        .serial = serial,
        .clock = vm->clock,
        .report = on_disk_error,
        .owner = vm,
    };
    struct virtio_device *virtio;
    int r = virtio_blk_new(&config, id, &virtio);
    if (r) {
        disk_free(disk);
        return r;
    }
    return plug(&vm->board, virtio, SLOT_DISKS + index);
}

static int add_nvme_disk(struct vm *vm, unsigned index, struct disk *disk, const char *serial)
{
    char id[24];
    snprintf(id, sizeof id, "nvme%u", index);
    const struct nvme_config config = {
        .memory = vm->memory,
        .disk = disk,
        .pci = vm->board.pci,
        .slot = SLOT_DISKS + index,
        .queues = vm->config->cpus,
        .serial = serial,
        .clock = vm->clock,
        .report = on_disk_error,
        .owner = vm,
    };
    struct device *device;
    int r = nvme_new(&config, id, &device);
    if (r) {
        disk_free(disk);
        return r;
    }
    add_device(&vm->board, device);
    return 0;
}

static int add_disk(struct vm *vm, unsigned index)
{
    const struct disk_config *config = &vm->config->disks[index];
    struct disk *disk;
    int r = disk_config_open(config, false, &disk);
    if (r) {
        return r;
    }
    if (disk->unlocked) {
        report("doppel: WARNING: disk '%s' is used without a lock, which its file system does not "
               "have: a second machine or program that uses it will destroy its contents\n",
               config->path);
    }
    if (config->stops) {
        const struct stop_disk_config stop = {
            .lower = disk, .stopped = on_disk_stopped, .owner = vm, .name = config->path};
        disk = stop_disk_new(&stop);
    }
    char invented[20];
    snprintf(invented, sizeof invented, "doppel%u", index);
    const char *serial = config->serial ? config->serial : invented;
    return config->is_nvme ? add_nvme_disk(vm, index, disk, serial)
                           : add_virtio_disk(vm, index, disk, serial);
}

/* Before the disks: its helper process, which is a fork of ours, shall hold nothing of them. */
static int add_share(struct vm *vm, unsigned index)
{
    const struct share_config *config = &vm->config->shares[index];
    struct share *share;
    int r = share_open(config->path, config->readonly, &share);
    if (r) {
        return r;
    }
    const struct virtio_9p_config p9 = {
        .memory = vm->memory,
        .share = share,
        .tag = config->tag,
        .report = on_share_end,
        .owner = vm,
    };
    char id[24];
    snprintf(id, sizeof id, "virtio-9p%u", index);
    struct virtio_device *virtio;
    r = virtio_9p_new(&p9, id, &virtio);
    if (r) {
        share_free(share);
        return r;
    }
    return plug(&vm->board, virtio, SLOT_SHARES + index);
}

/* Its bytes are chance: none in the deterministic mode. */
static int add_virtio_rng(struct vm *vm)
{
    struct virtio_device *virtio;
    if (vm->config->time_mode == TIME_DETERMINISTIC) {
        return 0;
    }
    int r = virtio_rng_new(vm->memory, "virtio-rng0", &virtio);
    return r ? r : plug(&vm->board, virtio, SLOT_RNG);
}

static int add_network(struct vm *vm)
{
    struct virtio_device *virtio;
    int r = board_net_new(vm, &virtio);
    if (!r && virtio) {
        r = plug(&vm->board, virtio, SLOT_NET);
    }
    if (!r) {
        r = board_vsock_new(vm, &virtio);
        r = r || !virtio ? r : plug(&vm->board, virtio, SLOT_VSOCK);
    }
    return r;
}

static int add_virtio(struct vm *vm)
{
    int r = add_virtio_rng(vm);
    if (!r) {
        r = add_virtio_console(vm);
    }
    for (unsigned i = 0; i < vm->config->share_count && !r; i++) {
        r = add_share(vm, i);
    }
    for (unsigned i = 0; i < vm->config->disk_count && !r; i++) {
        r = add_disk(vm, i);
    }
    return r ? r : add_network(vm);
}

int board_new(struct vm *vm)
{
    struct board_map map;
    board_map_make(vm->config->memory_size, &map);
    vm->board.net_channel = vm->board.vsock_channel = vm->board.vsock_listener = -1;
    vm->board.bus = bus_new();
    int r = add_interrupts(vm);
    if (!r) {
        r = add_clocks(vm, &map);
    }
    if (!r) {
        r = add_power(vm);
    }
    if (!r) {
        r = add_serial(vm);
    }
    if (!r) {
        r = add_post_code(vm);
    }
    if (!r) {
        r = add_pci_host(vm);
    }
    if (!r) {
        r = add_virtio(vm);
    }
    return r ? r : add_debug_exit(vm);
}

void board_free(struct board *board)
{
    while (board->device_count) {
        device_free(board->devices[--board->device_count]);
        if (board->device_count == 1 && board->pci) {
            /* all functions are gone; its lines lead to device 0, the interrupt controllers */
            pci_bus_free(board->pci);
            board->pci = NULL;
        }
    }
    console_free(board->serial_console);
    board->serial_console = NULL;
    if (board->bus) {
        bus_free(board->bus);
    }
}

void board_pause(struct board *board)
{
    for (size_t i = 0; i < board->device_count; i++) {
        struct device *device = board->devices[i];
        if (device->ops->pause) {
            device->ops->pause(device);
        }
    }
}

void board_resume(struct board *board)
{
    for (size_t i = 0; i < board->device_count; i++) {
        struct device *device = board->devices[i];
        if (device->ops->resume) {
            device->ops->resume(device);
        }
    }
}

static int write_acpi(struct vm *vm, const struct board_map *map, gpa_t *ret_rsdp)
{
    const struct acpi_facts facts = {
        .cpus = vm->config->cpus,
        .io_apic_address = IRQCHIP_IO_APIC_BASE,
        .local_apic_address = IRQCHIP_LOCAL_APIC_BASE,
        .pm_event_port = PM_PORT + PM_PORT_EVENT,
        .pm_control_port = PM_PORT + PM_PORT_CONTROL,
        .pm_timer_port = PM_PORT + PM_PORT_TIMER,
        .reset_port = RESET_PORT,
        .reset_value = RESET_VALUE,
        .sci_irq = IRQ_ACPI,
        .sleep_type_s5 = PM_SLEEP_TYPE_S5,
        .mmconfig_base = MMCONFIG_BASE,
        .mmconfig_buses = 1,
        .pci_window_base = PCI_WINDOW_BASE,
        .pci_window_size = PCI_WINDOW_SIZE,
        .pci_window64_base = map->window64_base,
        .pci_window64_size = map->window64_size,
        .pci_gsi_base = IRQ_PCI,
        .has_i8042 = true,
        .serial_port = SERIAL_PORT,
        .hpet_base = HPET_BASE,
        .hpet_size = HPET_SIZE,
        .hpet_block_id = HPET_BLOCK_ID,
    };
    return acpi_write(vm->memory, &facts, ACPI_BASE, ACPI_END - ACPI_BASE, ret_rsdp);
}

int board_boot(struct vm *vm, struct cpu_state *state)
{
    struct board_map map;
    board_map_make(vm->config->memory_size, &map);
    const struct pci_windows windows = {
        .memory_base = PCI_WINDOW_BASE,
        .memory_size = PCI_WINDOW_SIZE,
        .memory64_base = map.window64_base,
        .memory64_size = map.window64_size,
        .port_base = PCI_PORT_BASE,
        .port_size = PCI_PORT_SIZE,
        .gsi_base = IRQ_PCI,
    };
    int r = pci_assign(vm->board.pci, &windows);
    gpa_t rsdp;
    if (!r) {
        r = write_acpi(vm, &map, &rsdp);
    }
    if (r) {
        return r;
    }
    const char *commands[VM_MODULES_MAX];
    for (size_t i = 0; i < vm->config->module_count; i++) {
        const struct module_config *module = &vm->config->modules[i];
        commands[i] = module->command ? module->command : module->path;
    }
    const struct boot_board board = {
        .e820 = map.e820,
        .e820_count = map.e820_count,
        .rsdp = rsdp,
        .scratch_base = LOADER_BASE,
        .scratch_size = LOADER_END - LOADER_BASE,
    };
    const struct boot_request request = {
        .kernel = vm->kernel,
        .initrd = vm->initrd,
        .modules = vm->modules,
        .module_commands = commands,
        .module_count = vm->config->module_count,
        .command_line = vm->config->command_line,
    };
    return boot_load(vm->memory, &board, &request, state);
}
