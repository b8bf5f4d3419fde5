/*
 * The pair of 8259A interrupt controllers of a PC with its edge/level control registers. The
 * slave's output is the master's input 2.
 *
 * Threads: none of its own; the irqchip's lock guards it.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct visitor;

struct pic_chip {
    uint8_t irr, imr, isr;
    uint8_t lines;        /* levels of the inputs */
    uint8_t level_inputs; /* ELCR: 1 is level-triggered */
    uint8_t vector_base;  /* ICW2 */
    uint8_t lowest;       /* the input of lowest priority */
    uint8_t next_icw;     /* 2..4 while being initialized; 0: ready */
    bool needs_icw4, is_single, auto_eoi, rotates_on_auto_eoi;
    bool special_mask, fully_nested; /* special mask mode, special fully nested mode */
    bool reads_isr, poll;            /* OCW3 */
};

struct pic {
    struct pic_chip chips[2]; /* master, slave */
};

void pic_reset(struct pic *pic);
void pic_visit(struct pic *pic, struct visitor *v);

/* Input 0..15 (2 is the cascade and ignored). */
void pic_set(struct pic *pic, unsigned input, bool level);
/* Is INT asserted? */
bool pic_output(const struct pic *pic);
/* INTA: the vector. Without a request it is the spurious one, input 7. */
uint8_t pic_acknowledge(struct pic *pic);

/* Ports 20h/21h (chip 0) and A0h/A1h (chip 1); `odd` is the address line. */
uint8_t pic_read(struct pic *pic, unsigned chip, bool odd);
void pic_write(struct pic *pic, unsigned chip, bool odd, uint8_t value);
/* Ports 4D0h and 4D1h. */
uint8_t pic_elcr_read(const struct pic *pic, unsigned chip);
void pic_elcr_write(struct pic *pic, unsigned chip, uint8_t value);
