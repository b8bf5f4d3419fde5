/*
 * Fuzzer of a console's client. The input: pairs of a byte and what it says: the guest writes, the
 * client sends (what follows), the client takes, the device takes what is typed. The frames to the
 * client are whole and known, and the bytes in them those that the guest wrote, or as many were
 * lost as it is told. Seeds: tests/corpus/console_stream.
 *
 * Guards: src/control/console_stream.c
 */
#include "control/console_stream.h"

#include <stdlib.h>
#include <string.h>

#include "backend/console/hub.h"
#include "base/bytes.h"
#include "base/loop.h"

struct fuzz {
    struct loop *loop;
    struct console *console;
    struct session_stream stream;
    size_t device_room;
    uint64_t written, seen; /* by the guest; by the client, lost ones with them */
    uint8_t frame[CONSOLE_FRAME_HEAD + CONSOLE_FRAME_MAX];
    size_t frame_size;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t on_receive(void *owner, const uint8_t *bytes, size_t count)
{
    struct fuzz *fuzz = owner;
    count = count < fuzz->device_room ? count : fuzz->device_room;
    fuzz->device_room -= count;
    return count;
}

static void on_resized(void *owner, uint16_t columns, uint16_t rows)
{
    if (!columns || !rows) {
        abort();
    }
}

static void nothing(void *owner)
{
}

/* The guest writes the number of each byte. */
static void guest_writes(struct fuzz *fuzz, size_t count)
{
    uint8_t bytes[255 * 64];
    for (size_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)((fuzz->written + i) % 251);
    }
    console_write(fuzz->console, bytes, count);
    fuzz->written += count;
}

static void look_at_bytes(struct fuzz *fuzz, const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] != (fuzz->seen + i) % 251) {
            abort();
        }
    }
    fuzz->seen += count;
    if (fuzz->seen > fuzz->written) {
        abort();
    }
}

static void look_at_frame(struct fuzz *fuzz, size_t size)
{
    const uint8_t *text = fuzz->frame + CONSOLE_FRAME_HEAD;
    switch (fuzz->frame[0]) {
    case 'o':
    case 'h':
        look_at_bytes(fuzz, text, size);
        break;
    case 'l':
        for (uint64_t lost = 0, i = 0; i < size; i++) {
            lost = lost * 10 + text[i] - '0';
            fuzz->seen += i + 1 == size ? lost : 0;
        }
        break;
    case 'w':
        if (size != 1) {
            abort();
        }
        break;
    default:
        abort();
    }
}

static void client_takes(struct fuzz *fuzz, size_t count)
{
    size_t waiting;
    const char *bytes = fuzz->stream.output(fuzz->stream.object, &waiting);
    count = count < waiting ? count : waiting;
    for (size_t i = 0; i < count; i++) {
        fuzz->frame[fuzz->frame_size++] = (uint8_t)bytes[i];
        size_t whole = fuzz->frame_size < CONSOLE_FRAME_HEAD
                           ? SIZE_MAX
                           : CONSOLE_FRAME_HEAD + (size_t)load_le16(fuzz->frame + 1);
        if (fuzz->frame_size == whole) {
            look_at_frame(fuzz, whole - CONSOLE_FRAME_HEAD);
            fuzz->frame_size = 0;
        } else if (whole != SIZE_MAX && whole > sizeof fuzz->frame) {
            abort();
        }
    }
    fuzz->stream.sent(fuzz->stream.object, count);
}

/* Returns how many bytes of the input it used. */
static size_t client_sends(struct fuzz *fuzz, const uint8_t *data, size_t size)
{
    size_t room = fuzz->stream.room(fuzz->stream.object);
    size = size < room ? size : room;
    fuzz->stream.receive(fuzz->stream.object, (const char *)data, size);
    return size;
}

static void open_console(struct fuzz *fuzz)
{
    const struct console_receiver receiver = {.receive = on_receive,
                                              .send_break = nothing,
                                              .resized = on_resized,
                                              .drained = nothing,
                                              .owner = fuzz};
    if (loop_new(&fuzz->loop)) {
        abort();
    }
    fuzz->console =
        console_hub_new(&(struct console_hub_config){.loop = fuzz->loop, .log = {-1, -1}});
    console_connect(fuzz->console, &receiver);
    guest_writes(fuzz, 10);
    const struct console_stream_config config = {
        .hub = console_hub_of(fuzz->console), .waker = {nothing, NULL}, .quit = nothing};
    console_stream_open(&config, &fuzz->stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz fuzz = {0};
    open_console(&fuzz);
    for (size_t at = 0; at + 1 < size && !fuzz.stream.is_over(fuzz.stream.object);) {
        uint8_t what = data[at], count = data[at + 1];
        at += 2;
        switch (what % 4) {
        case 0:
            guest_writes(&fuzz, (size_t)count * (what & 64 ? 64 : 1));
            break;
        case 1:
            at += client_sends(&fuzz, data + at, count < size - at ? count : size - at);
            break;
        case 2:
            client_takes(&fuzz, (size_t)count * (what & 64 ? 64 : 1));
            break;
        case 3:
            fuzz.device_room = count;
            console_ready(fuzz.console);
            break;
        }
        console_room(fuzz.console);
    }
    if (size & 1) { /* who goes first */
        console_free(TAKE(fuzz.console));
    }
    fuzz.stream.free(fuzz.stream.object);
    console_free(fuzz.console);
    loop_free(fuzz.loop);
    return 0;
}
