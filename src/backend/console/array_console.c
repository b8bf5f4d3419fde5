/* A console for tests. */
#include "backend/console/array_console.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"

static struct array_console *array_of(struct console *console)
{
    return CONTAINER_OF(console, struct array_console, console);
}

static void array_write(struct console *console, const uint8_t *bytes, size_t count)
{
    struct array_console *array = array_of(console);
    size_t left = sizeof array->output - array->output_count;
    size_t kept = count < left ? count : left;
    memcpy(array->output + array->output_count, bytes, kept);
    array->output_count += kept;
    if (array->room != SIZE_MAX) {
        array->room -= count < array->room ? count : array->room;
    }
}

static size_t array_room(struct console *console)
{
    return array_of(console)->room;
}

static void array_ready(struct console *console)
{
    array_of(console)->ready_calls++;
}

static void array_free(struct console *console)
{
    free(array_of(console));
}

static const struct console_ops array_ops = {
    .write = array_write,
    .ready = array_ready,
    .room = array_room,
    .free = array_free,
};

struct array_console *array_console_new(void)
{
    struct array_console *array = calloc(1, sizeof *array);
    ASSERT(array);
    array->console.ops = &array_ops;
    array->room = SIZE_MAX;
    return array;
}

size_t array_console_type(struct array_console *array, const char *text)
{
    const struct console_receiver *receiver = &array->console.receiver;
    return receiver->receive(receiver->owner, (const uint8_t *)text, strlen(text));
}
