/*
 * The keyboard controller (IBM PC AT and PS/2 technical references). Commands take no time, so the
 * input buffer is always empty. Bytes sent to a keyboard or mouse come back as a transmit
 * time-out: FEh with the status bit set.
 */
#include "device/legacy/i8042.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum { PORT_DATA = 0x60, PORT_COMMAND = 0x64, PORT_SYSTEM = 0x92 };
enum {
    STATUS_FULL = 0x01,
    STATUS_SYSTEM = 0x04,
    STATUS_COMMAND = 0x08, /* the last byte written was a command */
    STATUS_UNLOCKED = 0x10,
    STATUS_MOUSE = 0x20, /* the byte in the output buffer is the mouse's */
    STATUS_TIMEOUT = 0x40,
};
enum {
    MODE_KEYBOARD_IRQ = 0x01,
    MODE_MOUSE_IRQ = 0x02,
    MODE_SYSTEM = 0x04,
    MODE_KEYBOARD_OFF = 0x10,
    MODE_MOUSE_OFF = 0x20,
    MODE_TRANSLATE = 0x40,
};
enum {
    COMMAND_READ_RAM = 0x20, /* ..3Fh; 20h is the mode byte */
    COMMAND_WRITE_RAM = 0x60,
    COMMAND_MOUSE_OFF = 0xa7,
    COMMAND_MOUSE_ON = 0xa8,
    COMMAND_TEST_MOUSE = 0xa9,
    COMMAND_SELF_TEST = 0xaa,
    COMMAND_TEST_KEYBOARD = 0xab,
    COMMAND_KEYBOARD_OFF = 0xad,
    COMMAND_KEYBOARD_ON = 0xae,
    COMMAND_READ_INPUT_PORT = 0xc0,
    COMMAND_READ_OUTPUT_PORT = 0xd0,
    COMMAND_WRITE_OUTPUT_PORT = 0xd1,
    COMMAND_ECHO_KEYBOARD = 0xd2,
    COMMAND_ECHO_MOUSE = 0xd3,
    COMMAND_TO_MOUSE = 0xd4,
    COMMAND_PULSE = 0xf0, /* ..FFh: lines whose bit is zero */
};
enum {
    OUTPUT_RESET = 0x01,
    OUTPUT_A20 = 0x02,
    OUTPUT_KEYBOARD_FULL = 0x10,
    OUTPUT_MOUSE_FULL = 0x20
};
enum { SYSTEM_RESET = 0x01, SYSTEM_A20 = 0x02 };
enum { TRANSMIT_TIMEOUT = 0xfe, SELF_TEST_OK = 0x55, RAM_SIZE = 32 };

struct i8042 {
    struct device device;
    struct bus *bus;
    struct region data, command, system;
    struct irq_line keyboard_irq, mouse_irq;
    void (*request_reset)(void *owner);
    void *owner;
    /* state */
    uint8_t ram[RAM_SIZE];   /* ram[0] is the mode byte */
    uint8_t status, output;  /* output buffer */
    uint8_t pending_command; /* waits for its data byte; 0: none */
    bool a20;                /* recorded only */
    uint8_t system_port;     /* 92h */
};

static struct i8042 *i8042_of(struct device *device)
{
    return CONTAINER_OF(device, struct i8042, device);
}

static void update_irqs(struct i8042 *kbc)
{
    bool is_full = kbc->status & STATUS_FULL, is_mouse = kbc->status & STATUS_MOUSE;
    irq_line_set(&kbc->keyboard_irq, is_full && !is_mouse && (kbc->ram[0] & MODE_KEYBOARD_IRQ));
    irq_line_set(&kbc->mouse_irq, is_full && is_mouse && (kbc->ram[0] & MODE_MOUSE_IRQ));
}

/* Fill the output buffer; `flags` are STATUS_MOUSE and STATUS_TIMEOUT. */
static void answer(struct i8042 *kbc, uint8_t byte, uint8_t flags)
{
    kbc->output = byte;
    kbc->status = (uint8_t)((kbc->status & ~(STATUS_MOUSE | STATUS_TIMEOUT)) | STATUS_FULL | flags);
}

static uint8_t output_port(const struct i8042 *kbc)
{
    uint8_t value = OUTPUT_RESET | (kbc->a20 ? OUTPUT_A20 : 0);
    if (kbc->status & STATUS_FULL) {
        value |= kbc->status & STATUS_MOUSE ? OUTPUT_MOUSE_FULL : OUTPUT_KEYBOARD_FULL;
    }
    return value;
}

static void mode_set(struct i8042 *kbc, uint8_t mode)
{
    kbc->ram[0] = mode;
    kbc->status =
        (uint8_t)((kbc->status & ~STATUS_SYSTEM) | (mode & MODE_SYSTEM ? STATUS_SYSTEM : 0));
}

/* Commands that are complete with their byte. Returns true if the machine is to be reset. */
static bool command_run(struct i8042 *kbc, uint8_t command)
{
    kbc->pending_command = 0;
    switch (command) {
    case COMMAND_READ_RAM ... COMMAND_READ_RAM + RAM_SIZE - 1:
        answer(kbc, kbc->ram[command - COMMAND_READ_RAM], 0);
        break;
    case COMMAND_MOUSE_OFF:
        kbc->ram[0] |= MODE_MOUSE_OFF;
        break;
    case COMMAND_MOUSE_ON:
        kbc->ram[0] &= (uint8_t)~MODE_MOUSE_OFF;
        break;
    case COMMAND_KEYBOARD_OFF:
        kbc->ram[0] |= MODE_KEYBOARD_OFF;
        break;
    case COMMAND_KEYBOARD_ON:
        kbc->ram[0] &= (uint8_t)~MODE_KEYBOARD_OFF;
        break;
    case COMMAND_SELF_TEST:
        mode_set(kbc, kbc->ram[0] | MODE_SYSTEM);
        answer(kbc, SELF_TEST_OK, 0);
        break;
    case COMMAND_TEST_KEYBOARD:
    case COMMAND_TEST_MOUSE:
        answer(kbc, 0, 0); /* nothing is wrong with the lines */
        break;
    case COMMAND_READ_INPUT_PORT:
        answer(kbc, 0x80, 0); /* keyboard not locked */
        break;
    case COMMAND_READ_OUTPUT_PORT:
        answer(kbc, output_port(kbc), 0);
        break;
    case COMMAND_WRITE_RAM ... COMMAND_WRITE_RAM + RAM_SIZE - 1:
    case COMMAND_WRITE_OUTPUT_PORT ... COMMAND_TO_MOUSE:
        kbc->pending_command = command;
        break;
    case COMMAND_PULSE ... 0xff:
        return !(command & OUTPUT_RESET);
    default: /* unknown commands are ignored */
        break;
    }
    return false;
}

/* A data byte: of a command, or for the keyboard. Returns true if the machine is to be reset. */
static bool data_take(struct i8042 *kbc, uint8_t value)
{
    uint8_t command = kbc->pending_command;
    kbc->pending_command = 0;
    switch (command) {
    case 0: /* there is no keyboard */
        kbc->ram[0] &= (uint8_t)~MODE_KEYBOARD_OFF;
        answer(kbc, TRANSMIT_TIMEOUT, STATUS_TIMEOUT);
        break;
    case COMMAND_WRITE_RAM:
        mode_set(kbc, value);
        break;
    case COMMAND_WRITE_OUTPUT_PORT:
        kbc->a20 = value & OUTPUT_A20;
        return !(value & OUTPUT_RESET);
    case COMMAND_ECHO_KEYBOARD:
        answer(kbc, value, 0);
        break;
    case COMMAND_ECHO_MOUSE:
        answer(kbc, value, STATUS_MOUSE);
        break;
    case COMMAND_TO_MOUSE: /* there is no mouse */
        answer(kbc, TRANSMIT_TIMEOUT, STATUS_MOUSE | STATUS_TIMEOUT);
        break;
    default:
        kbc->ram[command - COMMAND_WRITE_RAM] = value;
        break;
    }
    return false;
}

static uint64_t data_read(void *owner, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = owner;
    pthread_mutex_lock(&kbc->device.lock);
    uint8_t value = kbc->output;
    kbc->status &= (uint8_t) ~(STATUS_FULL | STATUS_MOUSE | STATUS_TIMEOUT);
    update_irqs(kbc);
    pthread_mutex_unlock(&kbc->device.lock);
    return value;
}

static uint64_t status_read(void *owner, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = owner;
    pthread_mutex_lock(&kbc->device.lock);
    uint8_t value = kbc->status;
    pthread_mutex_unlock(&kbc->device.lock);
    return value;
}

static void byte_write(struct i8042 *kbc, bool is_command, uint8_t value)
{
    pthread_mutex_lock(&kbc->device.lock);
    kbc->status = (uint8_t)((kbc->status & ~STATUS_COMMAND) | (is_command ? STATUS_COMMAND : 0));
    /* an answer replaces one that nobody fetched, with an edge of its own */
    uint8_t before = kbc->status & STATUS_FULL;
    bool resets = is_command ? command_run(kbc, value) : data_take(kbc, value);
    if (before) {
        irq_line_set(&kbc->keyboard_irq, false);
        irq_line_set(&kbc->mouse_irq, false);
    }
    update_irqs(kbc);
    pthread_mutex_unlock(&kbc->device.lock);
    if (resets) {
        kbc->request_reset(kbc->owner);
    }
}

static void data_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    byte_write(owner, false, (uint8_t)value);
}

static void command_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    byte_write(owner, true, (uint8_t)value);
}

static uint64_t system_read(void *owner, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = owner;
    pthread_mutex_lock(&kbc->device.lock);
    uint8_t value = (uint8_t)(kbc->system_port | (kbc->a20 ? SYSTEM_A20 : 0));
    pthread_mutex_unlock(&kbc->device.lock);
    return value;
}

static void system_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *kbc = owner;
    pthread_mutex_lock(&kbc->device.lock);
    bool resets = value & ~kbc->system_port & SYSTEM_RESET;
    kbc->system_port = value & SYSTEM_RESET;
    kbc->a20 = value & SYSTEM_A20;
    pthread_mutex_unlock(&kbc->device.lock);
    if (resets) {
        kbc->request_reset(kbc->owner);
    }
}

static const struct region_ops data_ops = {.read = data_read, .write = data_write};
static const struct region_ops command_ops = {.read = status_read, .write = command_write};
static const struct region_ops system_ops = {.read = system_read, .write = system_write};

/* As a firmware leaves it: tested, keyboard interrupt on, mouse off. */
static void i8042_reset(struct device *device)
{
    struct i8042 *kbc = i8042_of(device);
    pthread_mutex_lock(&device->lock);
    bytes_fill(kbc->ram, 0, sizeof kbc->ram);
    kbc->status = STATUS_UNLOCKED;
    mode_set(kbc, MODE_KEYBOARD_IRQ | MODE_SYSTEM | MODE_MOUSE_OFF | MODE_TRANSLATE);
    kbc->output = kbc->pending_command = kbc->system_port = 0;
    kbc->a20 = true;
    update_irqs(kbc);
    pthread_mutex_unlock(&device->lock);
}

static bool pending_is_legal(uint8_t command)
{
    return command == 0 ||
           (command >= COMMAND_WRITE_RAM && command < COMMAND_WRITE_RAM + RAM_SIZE) ||
           (command >= COMMAND_WRITE_OUTPUT_PORT && command <= COMMAND_TO_MOUSE);
}

static void i8042_visit(struct device *device, struct visitor *v)
{
    struct i8042 *kbc = i8042_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "i8042", 1);
    visit_bytes(v, "ram", kbc->ram, sizeof kbc->ram);
    visit_u8(v, "status", &kbc->status);
    visit_u8(v, "output", &kbc->output);
    visit_u8(v, "pending_command", &kbc->pending_command);
    visit_bool(v, "a20", &kbc->a20);
    visit_u8_max(v, "system_port", &kbc->system_port, SYSTEM_RESET);
    visit_bool(v, "keyboard_irq_level", &kbc->keyboard_irq.level);
    visit_bool(v, "mouse_irq_level", &kbc->mouse_irq.level);
    visit_end(v);
    if (!pending_is_legal(kbc->pending_command)) {
        visitor_fail(v, -EINVAL, "the keyboard controller waits for an impossible byte");
        kbc->pending_command = 0;
    }
    pthread_mutex_unlock(&device->lock);
}

static void i8042_free(struct device *device)
{
    struct i8042 *kbc = i8042_of(device);
    bus_remove(kbc->bus, &kbc->data);
    bus_remove(kbc->bus, &kbc->command);
    bus_remove(kbc->bus, &kbc->system);
    device_fini(device);
    free(kbc);
}

static const struct device_ops i8042_ops = {
    .name = "i8042",
    .reset = i8042_reset,
    .visit = i8042_visit,
    .free = i8042_free,
};
CLEANUP_DEFINE(struct device, device_free)

static int port_add(struct i8042 *kbc, struct region *region, const char *name, uint16_t port,
                    const struct region_ops *ops)
{
    *region = (struct region){.name = name, .base = port, .size = 1, .ops = ops, .owner = kbc};
    return bus_add_port(kbc->bus, region);
}

int i8042_new(const struct i8042_config *config, struct device **ret_device)
{
    struct i8042 *kbc = calloc(1, sizeof *kbc);
    ASSERT(kbc);
    CLEANUP(device_free) struct device *device = &kbc->device;
    device_init(device, &i8042_ops, "i8042");
    kbc->bus = config->bus;
    kbc->keyboard_irq = config->keyboard_irq;
    kbc->mouse_irq = config->mouse_irq;
    kbc->request_reset = config->reset;
    kbc->owner = config->owner;
    i8042_reset(device);
    int result = port_add(kbc, &kbc->data, "keyboard data", PORT_DATA, &data_ops);
    if (result == 0) {
        result = port_add(kbc, &kbc->command, "keyboard command", PORT_COMMAND, &command_ops);
    }
    if (result == 0) {
        result = port_add(kbc, &kbc->system, "system control", PORT_SYSTEM, &system_ops);
    }
    if (result == 0) {
        *ret_device = TAKE(device);
    }
    return result;
}
