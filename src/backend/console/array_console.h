/*
 * A console for tests: output lands in an array, input is what the test says, room is set by hand.
 */
#pragma once

#include "backend/console/console.h"

struct array_console {
    struct console console;
    uint8_t output[65536];
    size_t output_count; /* bytes beyond the array are dropped */
    size_t room;         /* taken down by writes; SIZE_MAX: no limit */
    unsigned ready_calls;
};

struct array_console *array_console_new(void);
/* Offer input to the device; returns how many bytes it took. */
size_t array_console_type(struct array_console *array, const char *text);
