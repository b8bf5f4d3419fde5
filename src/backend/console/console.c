/* What all console backends share: a missing console is a silent one, a missing call does nothing.
 */
#include "backend/console/console.h"

void console_write(struct console *console, const uint8_t *bytes, size_t count)
{
    if (console) {
        console->ops->write(console, bytes, count);
    }
}

int console_start(struct console *console)
{
    return console && console->ops->start ? console->ops->start(console) : 0;
}

void console_flush(struct console *console)
{
    if (console && console->ops->flush) {
        console->ops->flush(console);
    }
}

size_t console_room(struct console *console)
{
    return console && console->ops->room ? console->ops->room(console) : SIZE_MAX;
}

void console_ready(struct console *console)
{
    if (console && console->ops->ready) {
        console->ops->ready(console);
    }
}

void console_connect(struct console *console, const struct console_receiver *receiver)
{
    if (console) {
        console->receiver = *receiver;
        if (console->ops->connected) {
            console->ops->connected(console);
        }
    }
}

void console_free(struct console *console)
{
    if (console) {
        console->ops->free(console);
    }
}
