/*
 * PC16550D. Transmission takes no time: a byte written leaves at once, so the transmitter is
 * always empty; the interrupt for that is raised as the data sheet says (section 8.6.3). The baud
 * rate matters only for the receive timeout.
 */
#include "device/legacy/serial.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "persist/visitor.h"

enum serial_register { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, REGISTERS };
enum { FIFO_SIZE = 16 };
enum { IER_RECEIVED = 1, IER_EMPTY = 2, IER_LINE = 4, IER_MODEM = 8, IER_WRITABLE = 0xf };
enum {
    IIR_NONE = 1,
    IIR_MODEM = 0,
    IIR_EMPTY = 2,
    IIR_RECEIVED = 4,
    IIR_LINE = 6,
    IIR_TIMEOUT = 0xc,
    IIR_FIFO = 0xc0
};
enum { FCR_ENABLE = 1, FCR_CLEAR_RECEIVER = 2, FCR_TRIGGER_SHIFT = 6, FCR_WRITABLE = 0xc1 };
enum { LCR_DLAB = 0x80, LCR_BREAK = 0x40 };
enum { MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 0x10, MCR_WRITABLE = 0x1f };
enum {
    LSR_READY = 1,
    LSR_OVERRUN = 2,
    LSR_BREAK = 0x10,
    LSR_EMPTY = 0x20,
    LSR_IDLE = 0x40,
    LSR_ERRORS = 0x1e,
    LSR_FIFO_ERROR = 0x80
};
enum { MSR_CTS = 0x10, MSR_DSR = 0x20, MSR_RI = 0x40, MSR_DCD = 0x80, MSR_DELTA_RI = 0x04 };
enum { CONNECTED = MSR_CTS | MSR_DSR | MSR_DCD }; /* the other end is always there */

struct serial {
    struct device device;
    struct bus *bus;
    struct region region;
    struct irq_line irq;
    struct clock clock;
    void *timeout_alarm;
    struct console *console;
    /* state */
    uint8_t ier, fcr, lcr, mcr, msr, scr;
    uint16_t divisor;
    uint8_t line_errors;  /* LSR bits 1..4 and 7 until read */
    bool empty_pending;   /* "transmitter holding register empty" not yet acknowledged */
    bool timeout_pending; /* bytes below the trigger level waited too long */
    uint8_t fifo[FIFO_SIZE];
    uint8_t fifo_count;   /* oldest first */
    uint16_t fifo_breaks; /* bit n: fifo[n] is a break */
    uint64_t timeout_due; /* UINT64_MAX: not running */
};

static struct serial *serial_of(struct device *device)
{
    return CONTAINER_OF(device, struct serial, device);
}

static unsigned fifo_limit(const struct serial *s)
{
    return s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned fifo_trigger(const struct serial *s)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return s->fcr & FCR_ENABLE ? levels[s->fcr >> FCR_TRIGGER_SHIFT] : 1;
}

/* The interrupt of highest priority that is enabled and pending. Table 8-4 of the data sheet. */
static uint8_t interrupt_cause(const struct serial *s)
{
    if ((s->ier & IER_LINE) && (s->line_errors & LSR_ERRORS)) {
        return IIR_LINE;
    }
    if ((s->ier & IER_RECEIVED) && s->fifo_count >= fifo_trigger(s)) {
        return IIR_RECEIVED;
    }
    if ((s->ier & IER_RECEIVED) && s->timeout_pending) {
        return IIR_TIMEOUT;
    }
    if ((s->ier & IER_EMPTY) && s->empty_pending) {
        return IIR_EMPTY;
    }
    if ((s->ier & IER_MODEM) && (s->msr & 0xf)) {
        return IIR_MODEM;
    }
    return IIR_NONE;
}

/* On a PC, OUT2 connects the interrupt to the bus; in loopback mode it does not reach the pin. */
static void update_irq(struct serial *s)
{
    bool is_connected = (s->mcr & MCR_OUT2) && !(s->mcr & MCR_LOOP);
    irq_line_set(&s->irq, is_connected && interrupt_cause(s) != IIR_NONE);
}

/* The receive timeout is four characters of 10 bits (data sheet, 8.11). */
static uint64_t timeout_ns(const struct serial *s)
{
    uint64_t divisor = s->divisor ? s->divisor : 1;
    return 40 * divisor * 1000000000 / 115200;
}

static void timeout_start(struct serial *s)
{
    bool runs = (s->fcr & FCR_ENABLE) && s->fifo_count > 0 && s->fifo_count < fifo_trigger(s) &&
                (s->ier & IER_RECEIVED);
    uint64_t due = runs ? clock_now(s->clock) + timeout_ns(s) : UINT64_MAX;
    s->timeout_pending = false;
    if (due != s->timeout_due) {
        s->timeout_due = due;
        clock_alarm_set(s->clock, s->timeout_alarm, due);
    }
}

static void timeout_expired(void *argument)
{
    struct serial *s = argument;
    pthread_mutex_lock(&s->device.lock);
    if (s->timeout_due <= clock_now(s->clock)) {
        s->timeout_due = UINT64_MAX;
        s->timeout_pending = s->fifo_count > 0;
        update_irq(s);
    }
    pthread_mutex_unlock(&s->device.lock);
}

/* Would a byte from the console be taken now? A guest in loopback mode hears nothing. */
static bool can_receive(const struct serial *s)
{
    return s->fifo_count < fifo_limit(s) && !(s->mcr & MCR_LOOP);
}

static void fifo_clear(struct serial *s)
{
    s->fifo_count = 0;
    s->fifo_breaks = 0;
    timeout_start(s);
}

/* The error of a character shows when it comes to the top of the FIFO. */
static void fifo_top_changed(struct serial *s)
{
    if (s->fifo_count > 0 && (s->fifo_breaks & 1)) {
        s->line_errors |= LSR_BREAK;
    }
}

static void fifo_push(struct serial *s, uint8_t byte, bool is_break)
{
    if (s->fifo_count >= fifo_limit(s)) {
        s->line_errors |= LSR_OVERRUN;
        return;
    }
    s->fifo[s->fifo_count] = byte;
    s->fifo_breaks |= (uint16_t)(is_break << s->fifo_count);
    s->fifo_count++;
    if (s->fifo_count == 1) {
        fifo_top_changed(s);
    }
    timeout_start(s);
}

static uint8_t fifo_pop(struct serial *s)
{
    if (s->fifo_count == 0) {
        return 0;
    }
    uint8_t byte = s->fifo[0];
    s->fifo_count--;
    memmove(&s->fifo[0], &s->fifo[1], s->fifo_count);
    s->fifo_breaks >>= 1;
    fifo_top_changed(s);
    timeout_start(s);
    return byte;
}

static uint8_t lsr_read(struct serial *s)
{
    uint8_t lsr = LSR_EMPTY | LSR_IDLE | s->line_errors;
    lsr |= s->fifo_count ? LSR_READY : 0;
    lsr |= (s->fcr & FCR_ENABLE) && s->fifo_breaks ? LSR_FIFO_ERROR : 0;
    s->line_errors = 0;
    return lsr;
}

static uint8_t msr_read(struct serial *s)
{
    uint8_t msr = s->msr;
    s->msr &= 0xf0;
    return msr;
}

static uint8_t iir_read(struct serial *s)
{
    uint8_t cause = interrupt_cause(s);
    if (cause == IIR_EMPTY) {
        s->empty_pending = false;
    }
    return cause | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t register_read(struct serial *s, enum serial_register which)
{
    bool is_divisor = s->lcr & LCR_DLAB;
    switch (which) {
    case DATA:
        return is_divisor ? (uint8_t)s->divisor : fifo_pop(s);
    case IER:
        return is_divisor ? (uint8_t)(s->divisor >> 8) : s->ier;
    case IIR:
        return iir_read(s);
    case LCR:
        return s->lcr;
    case MCR:
        return s->mcr;
    case LSR:
        return lsr_read(s);
    case MSR:
        return msr_read(s);
    default:
        return s->scr;
    }
}

/* New levels of the modem inputs: note what changed, RI by its falling edge only. */
static void modem_inputs_set(struct serial *s, uint8_t inputs)
{
    uint8_t changed = (uint8_t)((s->msr ^ inputs) >> 4);
    if (inputs & MSR_RI) {
        changed &= (uint8_t)~MSR_DELTA_RI;
    }
    s->msr = inputs | (s->msr & 0xf) | changed;
}

/* In loopback the outputs are the inputs: DTR is DSR, RTS is CTS, OUT1 is RI, OUT2 is DCD. */
static void mcr_write(struct serial *s, uint8_t value)
{
    s->mcr = value & MCR_WRITABLE;
    uint8_t inputs = CONNECTED;
    if (s->mcr & MCR_LOOP) {
        inputs = (s->mcr & MCR_DTR ? MSR_DSR : 0) | (s->mcr & MCR_RTS ? MSR_CTS : 0) |
                 (s->mcr & MCR_OUT1 ? MSR_RI : 0) | (s->mcr & MCR_OUT2 ? MSR_DCD : 0);
    }
    modem_inputs_set(s, inputs);
}

static void fcr_write(struct serial *s, uint8_t value)
{
    bool toggles = (s->fcr ^ value) & FCR_ENABLE;
    if (!(value & FCR_ENABLE)) {
        value = 0; /* "must be a 1 when other bits are written or they are not programmed" */
    }
    s->fcr = value & FCR_WRITABLE;
    if (toggles || (value & FCR_CLEAR_RECEIVER)) {
        fifo_clear(s);
    } else {
        timeout_start(s);
    }
}

/* Returns true if `value` has to go to the console. */
static bool register_write(struct serial *s, enum serial_register which, uint8_t value)
{
    bool is_divisor = s->lcr & LCR_DLAB;
    switch (which) {
    case DATA:
        if (is_divisor) {
            s->divisor = (uint16_t)((s->divisor & 0xff00) | value);
            return false;
        }
        /* full for no time at all: the line falls and rises, which edge-triggered inputs need */
        s->empty_pending = false;
        update_irq(s);
        s->empty_pending = true;
        if (s->mcr & MCR_LOOP) {
            fifo_push(s, value, false);
            return false;
        }
        return true;
    case IER:
        if (is_divisor) {
            s->divisor = (uint16_t)((s->divisor & 0xff) | value << 8);
            return false;
        }
        /* enabling the interrupt of an empty transmitter raises it */
        s->empty_pending |= (value & ~s->ier & IER_EMPTY) != 0;
        s->ier = value & IER_WRITABLE;
        timeout_start(s);
        return false;
    case IIR:
        fcr_write(s, value);
        return false;
    case LCR:
        if ((s->mcr & MCR_LOOP) && (value & ~s->lcr & LCR_BREAK)) {
            fifo_push(s, 0, true); /* our own break comes back */
        }
        s->lcr = value;
        return false;
    case MCR:
        mcr_write(s, value);
        return false;
    case SCR:
        s->scr = value;
        return false;
    default: /* LSR and MSR are read-only */
        return false;
    }
}

static uint64_t serial_read(void *owner, uint64_t offset, unsigned size)
{
    struct serial *s = owner;
    pthread_mutex_lock(&s->device.lock);
    bool could_receive = can_receive(s);
    uint8_t value = register_read(s, (enum serial_register)offset);
    bool is_ready = !could_receive && can_receive(s);
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
    if (is_ready) {
        console_ready(s->console);
    }
    return value;
}

static void serial_write(void *owner, uint64_t offset, unsigned size, uint64_t value)
{
    struct serial *s = owner;
    uint8_t byte = (uint8_t)value;
    pthread_mutex_lock(&s->device.lock);
    bool could_receive = can_receive(s);
    bool goes_out = register_write(s, (enum serial_register)offset, byte);
    bool is_ready = !could_receive && can_receive(s);
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
    if (goes_out) {
        console_write(s->console, &byte, 1);
    }
    if (is_ready) {
        console_ready(s->console);
    }
}

static const struct region_ops serial_region_ops = {.read = serial_read, .write = serial_write};

/* From the console: as many as fit. */
static size_t serial_receive(void *owner, const uint8_t *bytes, size_t count)
{
    struct serial *s = owner;
    size_t taken = 0;
    pthread_mutex_lock(&s->device.lock);
    while (taken < count && can_receive(s)) {
        fifo_push(s, bytes[taken++], false);
    }
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
    return taken;
}

static void serial_receive_break(void *owner)
{
    struct serial *s = owner;
    pthread_mutex_lock(&s->device.lock);
    fifo_push(s, 0, true);
    update_irq(s);
    pthread_mutex_unlock(&s->device.lock);
}

static void serial_reset(struct device *device)
{
    struct serial *s = serial_of(device);
    pthread_mutex_lock(&device->lock);
    s->ier = s->fcr = s->lcr = s->mcr = s->scr = 0;
    s->msr = CONNECTED;
    s->divisor = 12; /* 9600 baud */
    s->line_errors = 0;
    s->empty_pending = false;
    fifo_clear(s);
    update_irq(s);
    pthread_mutex_unlock(&device->lock);
}

static void serial_visit(struct device *device, struct visitor *v)
{
    struct serial *s = serial_of(device);
    pthread_mutex_lock(&device->lock);
    visit_begin(v, "serial", 1);
    visit_u8_max(v, "ier", &s->ier, IER_WRITABLE);
    visit_u8(v, "fcr", &s->fcr);
    visit_u8(v, "lcr", &s->lcr);
    visit_u8_max(v, "mcr", &s->mcr, MCR_WRITABLE);
    visit_u8(v, "msr", &s->msr);
    visit_u8(v, "scr", &s->scr);
    visit_u16(v, "divisor", &s->divisor);
    visit_u8(v, "line_errors", &s->line_errors);
    visit_bool(v, "empty_pending", &s->empty_pending);
    visit_bool(v, "timeout_pending", &s->timeout_pending);
    visit_bytes(v, "fifo", s->fifo, sizeof s->fifo);
    visit_u8_max(v, "fifo_count", &s->fifo_count, FIFO_SIZE);
    visit_u16(v, "fifo_breaks", &s->fifo_breaks);
    visit_u64(v, "timeout_due", &s->timeout_due);
    visit_bool(v, "irq_level", &s->irq.level);
    visit_end(v);
    if (visitor_mode(v) == VISITOR_READ) {
        s->fcr &= FCR_WRITABLE;
        s->line_errors &= LSR_ERRORS;
        s->fifo_breaks &= (uint16_t)((1u << s->fifo_count) - 1);
        clock_alarm_set(s->clock, s->timeout_alarm, s->timeout_due);
    }
    pthread_mutex_unlock(&device->lock);
}

static void serial_free(struct device *device)
{
    struct serial *s = serial_of(device);
    bus_remove(s->bus, &s->region);
    console_connect(s->console, &(struct console_receiver){0});
    clock_alarm_free(s->clock, s->timeout_alarm);
    device_fini(device);
    free(s);
}

static const struct device_ops serial_ops = {
    .name = "serial",
    .reset = serial_reset,
    .visit = serial_visit,
    .free = serial_free,
};
CLEANUP_DEFINE(struct device, device_free)

int serial_new(const struct serial_config *config, struct device **ret_device)
{
    struct serial *s = calloc(1, sizeof *s);
    ASSERT(s);
    CLEANUP(device_free) struct device *device = &s->device;
    device_init(device, &serial_ops, config->id);
    s->bus = config->bus;
    s->irq = config->irq;
    s->clock = config->clock;
    s->console = config->console;
    s->timeout_alarm = clock_alarm_new(s->clock, timeout_expired, s);
    serial_reset(device);
    s->region = (struct region){.name = "serial port",
                                .base = config->port,
                                .size = REGISTERS,
                                .ops = &serial_region_ops,
                                .owner = s,
                                .is_byte_wide = true};
    int result = bus_add_port(s->bus, &s->region);
    if (result == 0) {
        const struct console_receiver receiver = {
            .receive = serial_receive, .send_break = serial_receive_break, .owner = s};
        console_connect(s->console, &receiver);
        *ret_device = TAKE(device);
    }
    return result;
}
