/*
 * The filter of terminal_filter.h: the parser of ECMA-48's control functions, as far as it is
 * needed to know where one ends (ECMA-48, 5.2 to 5.4 and 8.2.7), and a list of what may pass
 * (xterm's "Control Sequences").
 */
#include "control/terminal_filter.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum {
    TEXT,
    ESCAPE,      /* ESC was read, and maybe intermediates */
    SEQUENCE,    /* CSI */
    TITLE,       /* OSC: it may be a title */
    STRING,      /* what is left out until its end */
    STRING_ESC,  /* ... and ESC was read */
    TITLE_ESC,   /* the same in a title */
    C1_LEAD,     /* C2H was read: a C1 control in UTF-8 may follow */
    STRING_LEAD, /* the same in a string that is left out */
};
enum { ENQ = 5, BEL = 7, CAN = 24, SUB = 26, ESC = 27, DEL = 127 };

void terminal_filter_init(struct terminal_filter *filter, enum filter_mode mode)
{
    *filter = (struct terminal_filter){.mode = mode, .state = TEXT};
}

/* The held sequence goes out, or vanishes. */
static size_t release(struct terminal_filter *filter, uint8_t *out, bool passes)
{
    size_t count = passes ? filter->held_count : 0;
    memcpy(out, filter->held, count);
    filter->held_count = 0;
    filter->state = TEXT;
    return count;
}

/* More than is ever sensible: the rest of it vanishes with it. */
static bool hold(struct terminal_filter *filter, uint8_t byte)
{
    if (filter->held_count == sizeof filter->held) {
        return false;
    }
    filter->held[filter->held_count++] = byte;
    return true;
}

/* ---- what may pass ---- */

/* CSI: `text` is parameters and intermediates, with a NUL behind them. */
static bool sequence_passes(const struct terminal_filter *filter, const char *text, char final)
{
    static const char plain[] = "@ABCDEFGHIJKLMPSTXZ`abdefghlmrsu";
    bool is_live = filter->mode == FILTER_LIVE;
    char private = *text >= '<' && *text <= '?' ? *text : 0;
    bool has_intermediate = strpbrk(text, " !\"#$%&'()*+,-./");
    if (has_intermediate) { /* shape of the cursor; soft reset */
        return (final == 'q' && strchr(text, ' ')) || (final == 'p' && !strcmp(text, "!"));
    }
    switch (final) {
    case 'n': /* device status, where the cursor is */
        return is_live && (!strcmp(text, "5") || !strcmp(text, "6"));
    case 'c': /* which kind of terminal */
        return is_live && (!*text || !strcmp(text, "0"));
    case 'h': /* private modes: also the mouse's, focus events... */
    case 'l':
        return is_live || !private || final == 'l' || !strcmp(text, "?25") || !strcmp(text, "?7") ||
               !strcmp(text, "?1");
    case 'm': /* with '?' it asks, with '>' it sets the keyboard's modes */
        return !private;
    case 'u': /* with '?' it asks; others are a keyboard protocol */
    case 'S': /* with '?' it asks about graphics */
    case 'T':
    case 's':
        return !private;
    case 'q':
        return !private; /* lamps; with '>' it asks for the version */
    }
    return strchr(plain, final) && (!private || private == '?');
}

/* OSC 0, 1 and 2: the title of the window. */
static bool title_passes(const struct terminal_filter *filter)
{
    size_t at = 2; /* behind ESC ] */
    return filter->mode == FILTER_LIVE && filter->held_count > at + 1 && filter->held[at] >= '0' &&
           filter->held[at] <= '2' && filter->held[at + 1] == ';';
}

/* ESC and one more, with intermediates between. */
static bool escape_passes(const struct terminal_filter *filter, uint8_t final)
{
    static const char plain[] = "78=>cDEHMN"
                                "O";
    /*
     * Character sets, lines of double height. Not ESC %, which leaves UTF-8: then bytes 80H to 9FH
     * within characters are controls, of which we know nothing; nor ESC SP, of answers' form.
     */
    if (filter->held_count > 2) {
        return strchr("()*+-./#", filter->held[1]);
    }
    return strchr(plain, (char) final);
}

/* ---- the parser ---- */

static size_t end_sequence(struct terminal_filter *filter, uint8_t final, uint8_t *out)
{
    char text[FILTER_HELD];
    size_t length = filter->held_count - 3; /* less ESC [ and the last */
    memcpy(text, filter->held + 2, length);
    text[length] = '\0';
    return release(filter, out, sequence_passes(filter, text, (char) final));
}

/* A control character in the middle of something: it is obeyed at once, or ends it. */
static size_t interrupt(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    if (byte == ESC) {
        filter->held_count = 0;
        hold(filter, ESC);
        filter->state = ESCAPE;
    } else if (byte == CAN || byte == SUB) {
        release(filter, out, false);
    }
    return 0;
}

static size_t after_escape(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    if (byte < ' ' || byte >= DEL) {
        return byte < ' ' ? interrupt(filter, byte, out) : release(filter, out, false);
    }
    if (!hold(filter, byte)) {
        return release(filter, out, false);
    }
    if (byte < '0') {
        return 0; /* an intermediate */
    }
    bool is_second = filter->held_count == 2;
    if (is_second && byte == '[') {
        filter->state = SEQUENCE;
    } else if (is_second && byte == ']') {
        filter->state = TITLE;
    } else if (is_second && strchr("PX^_", byte)) {
        filter->state = STRING;
    } else {
        return release(filter, out, escape_passes(filter, byte));
    }
    return 0;
}

static size_t in_sequence(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    if (byte < ' ') {
        return interrupt(filter, byte, out);
    }
    if (byte >= DEL || !hold(filter, byte)) {
        return release(filter, out, false);
    }
    return byte >= '@' ? end_sequence(filter, byte, out) : 0;
}

static size_t in_title(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    bool is_end = byte == BEL || (filter->state == TITLE_ESC && byte == '\\');
    if (filter->state == TITLE_ESC && !is_end) {
        filter->held_count = 0; /* another escape sequence, which ends this one */
        hold(filter, ESC);
        filter->state = ESCAPE;
        return after_escape(filter, byte, out);
    }
    if (byte == CAN || byte == SUB) {
        return release(filter, out, false);
    }
    if (!is_end && byte != ESC && (byte < ' ' || byte >= DEL)) {
        filter->state = STRING; /* a title has printable characters only */
        return 0;
    }
    if (!hold(filter, byte)) {
        filter->state = STRING;
        return 0;
    }
    if (is_end) {
        return release(filter, out, title_passes(filter));
    }
    filter->state = byte == ESC ? TITLE_ESC : TITLE;
    return 0;
}

/* Left out up to its end; 9CH ends it in its UTF-8 form as well. */
static size_t in_string(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    int before = filter->state;
    filter->held_count = 0;
    filter->state = STRING;
    if (byte == BEL || byte == CAN || byte == SUB || (before == STRING_LEAD && byte == 0x9c) ||
        (before == STRING_ESC && byte == '\\')) {
        filter->state = TEXT;
    } else if (before == STRING_ESC) {
        hold(filter, ESC);
        filter->state = ESCAPE;
        return after_escape(filter, byte, out);
    } else if (byte == ESC) {
        filter->state = STRING_ESC;
    } else if (byte == 0xc2) {
        filter->state = STRING_LEAD;
    }
    return 0;
}

/* How many bytes follow the first one of a character in UTF-8; -1: it is none. */
static int followers(uint8_t byte)
{
    return byte < 0xc2 || byte > 0xf4 ? -1 : byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
}

static size_t in_text(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    bool was_first = filter->continuations == 0;
    if (byte >= 0x80 && byte < 0xc0 && !was_first) {
        filter->continuations--;
        *out = byte;
        return 1;
    }
    filter->continuations = 0;
    if (byte == ESC) {
        hold(filter, ESC);
        filter->state = ESCAPE;
        return 0;
    }
    if (byte == 0xc2) {
        filter->state = C1_LEAD;
        return 0;
    }
    int more = byte >= 0x80 ? followers(byte) : 0;
    if (byte == ENQ || more < 0) {
        return 0; /* also an 8-bit control character, or none that UTF-8 has */
    }
    filter->continuations = (unsigned)more;
    *out = byte;
    return 1;
}

/* C2H 80H to 9FH are control characters: CSI, OSC and others with one character. */
static size_t after_lead(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    filter->state = TEXT;
    if (byte >= 0xa0 && byte < 0xc0) {
        out[0] = 0xc2;
        out[1] = byte;
        return 2;
    }
    if (byte >= 0x80 && byte < 0xa0) { /* as ESC and 40H to 5FH: passed in that form, or not */
        hold(filter, ESC);
        filter->state = ESCAPE;
        return after_escape(filter, (uint8_t)(byte - 0x40), out);
    }
    return in_text(filter, byte, out);
}

static size_t take(struct terminal_filter *filter, uint8_t byte, uint8_t *out)
{
    switch (filter->state) {
    case ESCAPE:
        return after_escape(filter, byte, out);
    case SEQUENCE:
        return in_sequence(filter, byte, out);
    case TITLE:
    case TITLE_ESC:
        return in_title(filter, byte, out);
    case STRING:
    case STRING_ESC:
    case STRING_LEAD:
        return in_string(filter, byte, out);
    case C1_LEAD:
        return after_lead(filter, byte, out);
    }
    return in_text(filter, byte, out);
}

size_t terminal_filter(struct terminal_filter *filter, const uint8_t *bytes, size_t size,
                       uint8_t *out)
{
    size_t count = 0;
    for (size_t i = 0; i < size; i++) {
        count += take(filter, bytes[i], out + count);
    }
    return count;
}

void terminal_make_printable(char *text)
{
    for (uint8_t *at = (uint8_t *)text; *at; at++) {
        if (at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0) {
            at[0] = at[1] = '?';
        } else if (*at < ' ' || *at == DEL) {
            *at = '?';
        }
    }
}
