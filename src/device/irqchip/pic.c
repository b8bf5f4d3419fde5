/*
 * 8259A (Intel 231468-003). One deviation: an edge stays latched if the input falls before it is
 * acknowledged, so that a device may pulse its line.
 */
#include "device/irqchip/pic.h"

#include "persist/visitor.h"

enum { CASCADE = 2, SPURIOUS = 7 };
enum { ICW1 = 1u << 4, ICW1_ICW4 = 1u << 0, ICW1_SINGLE = 1u << 1 };
enum { ICW4_AUTO_EOI = 1u << 1, ICW4_FULLY_NESTED = 1u << 4 };
enum { OCW3 = 1u << 3 };
/* Inputs of the timer, keyboard, cascade; and RTC, coprocessor: always edge-triggered. */
static const uint8_t elcr_writable[2] = {0xf8, 0xde};

static void chip_reset(struct pic_chip *chip)
{
    uint8_t lines = chip->lines, level_inputs = chip->level_inputs;
    *chip = (struct pic_chip){.lines = lines, .level_inputs = level_inputs, .lowest = 7};
}

void pic_reset(struct pic *pic)
{
    for (unsigned i = 0; i < 2; i++) {
        pic->chips[i].lines = pic->chips[i].level_inputs = 0;
        chip_reset(&pic->chips[i]);
        pic->chips[i].imr = 0xff; /* as a firmware leaves it; ICW1 unmasks */
    }
}

/* The input of highest priority among `inputs`, as a distance from the top; 8 if there is none. */
static unsigned priority_of(const struct pic_chip *chip, uint8_t inputs)
{
    unsigned priority = 0;
    while (priority < 8 && !(inputs >> ((chip->lowest + 1u + priority) & 7) & 1)) {
        priority++;
    }
    return priority;
}

static unsigned input_of(const struct pic_chip *chip, unsigned priority)
{
    return (chip->lowest + 1u + priority) & 7;
}

/* The input that the chip asks to serve, or -1. */
static int chip_request(const struct pic_chip *chip, bool is_master)
{
    if (chip->next_icw) {
        return -1;
    }
    unsigned wanted = priority_of(chip, chip->irr & (uint8_t)~chip->imr);
    uint8_t holding = chip->isr;
    if (chip->special_mask) {
        holding &= (uint8_t)~chip->imr; /* masked levels no longer hold others back */
    }
    if (is_master && chip->fully_nested) {
        holding &= (uint8_t) ~(1u << CASCADE); /* the slave may nest within itself */
    }
    return wanted < priority_of(chip, holding) ? (int)input_of(chip, wanted) : -1;
}

/* The slave's output is an input of the master: level while it asks. */
static void cascade(struct pic *pic)
{
    struct pic_chip *master = &pic->chips[0];
    uint8_t bit = 1u << CASCADE;
    if (chip_request(&pic->chips[1], false) >= 0) {
        master->irr |= bit;
    } else {
        master->irr &= (uint8_t)~bit;
    }
}

static void chip_set(struct pic_chip *chip, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);
    bool rises = level && !(chip->lines & bit);
    chip->lines = level ? chip->lines | bit : chip->lines & (uint8_t)~bit;
    if (chip->level_inputs & bit) {
        chip->irr = level ? chip->irr | bit : chip->irr & (uint8_t)~bit;
    } else if (rises) {
        chip->irr |= bit;
    }
}

void pic_set(struct pic *pic, unsigned input, bool level)
{
    if (input != CASCADE && input < 16) {
        chip_set(&pic->chips[input / 8], input % 8, level);
        cascade(pic);
    }
}

bool pic_output(const struct pic *pic)
{
    return chip_request(&pic->chips[0], true) >= 0;
}

static uint8_t chip_acknowledge(struct pic_chip *chip, int input)
{
    uint8_t bit = (uint8_t)(1u << input);
    if (chip->auto_eoi) {
        chip->lowest = chip->rotates_on_auto_eoi ? (uint8_t)input : chip->lowest;
    } else {
        chip->isr |= bit;
    }
    if (!(chip->level_inputs & bit)) {
        chip->irr &= (uint8_t)~bit;
    }
    return (uint8_t)(chip->vector_base + input);
}

uint8_t pic_acknowledge(struct pic *pic)
{
    struct pic_chip *master = &pic->chips[0], *slave = &pic->chips[1];
    int input = chip_request(master, true);
    if (input < 0) {
        return master->vector_base + SPURIOUS;
    }
    uint8_t vector = chip_acknowledge(master, input);
    if (input == CASCADE) {
        input = chip_request(slave, false);
        vector = input < 0 ? slave->vector_base + SPURIOUS : chip_acknowledge(slave, input);
    }
    cascade(pic);
    return vector;
}

/* OCW2: end of interrupt and rotation. */
static void chip_ocw2(struct pic_chip *chip, uint8_t value)
{
    bool rotates = value & 0x80, is_specific = value & 0x40, is_eoi = value & 0x20;
    unsigned input = value & 7;
    if (!is_eoi) {
        if (is_specific) {
            chip->lowest = rotates ? (uint8_t)input : chip->lowest; /* set priority, or no-op */
        } else {
            chip->rotates_on_auto_eoi = rotates;
        }
        return;
    }
    if (!is_specific) {
        uint8_t ending = chip->isr;
        if (chip->special_mask) {
            ending &= (uint8_t)~chip->imr; /* a masked level is not cleared by it */
        }
        unsigned priority = priority_of(chip, ending);
        if (priority == 8) {
            return;
        }
        input = input_of(chip, priority);
    }
    chip->isr &= (uint8_t) ~(1u << input);
    if (rotates) {
        chip->lowest = (uint8_t)input;
    }
}

static void chip_ocw3(struct pic_chip *chip, uint8_t value)
{
    if (value & 0x40) {
        chip->special_mask = value & 0x20;
    }
    chip->poll = value & 0x04;
    if (value & 0x02) {
        chip->reads_isr = value & 0x01;
    }
}

static void chip_icw1(struct pic_chip *chip, uint8_t value)
{
    chip_reset(chip);
    chip->needs_icw4 = value & ICW1_ICW4;
    chip->is_single = value & ICW1_SINGLE;
    chip->next_icw = 2;
    /* edges have to come again; levels that stand ask again */
    chip->irr = chip->lines & chip->level_inputs;
}

static void chip_icw(struct pic_chip *chip, uint8_t value)
{
    switch (chip->next_icw) {
    case 2:
        chip->vector_base = value & 0xf8;
        chip->next_icw = chip->is_single ? (chip->needs_icw4 ? 4 : 0) : 3;
        break;
    case 3: /* how the cascade is wired: fixed on this board */
        chip->next_icw = chip->needs_icw4 ? 4 : 0;
        break;
    default:
        chip->auto_eoi = value & ICW4_AUTO_EOI;
        chip->fully_nested = value & ICW4_FULLY_NESTED;
        chip->next_icw = 0;
        break;
    }
}

void pic_write(struct pic *pic, unsigned number, bool odd, uint8_t value)
{
    struct pic_chip *chip = &pic->chips[number & 1];
    if (odd && chip->next_icw) {
        chip_icw(chip, value);
    } else if (odd) {
        chip->imr = value;
    } else if (value & ICW1) {
        chip_icw1(chip, value);
    } else if (value & OCW3) {
        chip_ocw3(chip, value);
    } else {
        chip_ocw2(chip, value);
    }
    cascade(pic);
}

/* A poll command makes the next read an acknowledge. */
static uint8_t chip_poll(struct pic *pic, unsigned number)
{
    struct pic_chip *chip = &pic->chips[number];
    int input = chip_request(chip, number == 0);
    chip->poll = false;
    if (input < 0) {
        return 0;
    }
    chip_acknowledge(chip, input);
    cascade(pic);
    return (uint8_t)(0x80 | input);
}

uint8_t pic_read(struct pic *pic, unsigned number, bool odd)
{
    const struct pic_chip *chip = &pic->chips[number & 1];
    if (chip->poll) {
        return chip_poll(pic, number & 1);
    }
    if (odd) {
        return chip->imr;
    }
    return chip->reads_isr ? chip->isr : chip->irr;
}

uint8_t pic_elcr_read(const struct pic *pic, unsigned number)
{
    return pic->chips[number & 1].level_inputs;
}

void pic_elcr_write(struct pic *pic, unsigned number, uint8_t value)
{
    struct pic_chip *chip = &pic->chips[number & 1];
    uint8_t was = chip->level_inputs;
    chip->level_inputs = value & elcr_writable[number & 1];
    /* an input that became level-triggered asks as long as its line is up */
    uint8_t changed = chip->level_inputs & (uint8_t)~was;
    chip->irr = (uint8_t)((chip->irr & ~changed) | (chip->lines & changed));
    cascade(pic);
}

static void chip_visit(struct pic_chip *chip, struct visitor *v)
{
    visit_u8(v, "irr", &chip->irr);
    visit_u8(v, "imr", &chip->imr);
    visit_u8(v, "isr", &chip->isr);
    visit_u8(v, "lines", &chip->lines);
    visit_u8(v, "level_inputs", &chip->level_inputs);
    visit_u8(v, "vector_base", &chip->vector_base);
    visit_u8_max(v, "lowest", &chip->lowest, 7);
    visit_u8_max(v, "next_icw", &chip->next_icw, 4);
    visit_bool(v, "needs_icw4", &chip->needs_icw4);
    visit_bool(v, "is_single", &chip->is_single);
    visit_bool(v, "auto_eoi", &chip->auto_eoi);
    visit_bool(v, "rotates_on_auto_eoi", &chip->rotates_on_auto_eoi);
    visit_bool(v, "special_mask", &chip->special_mask);
    visit_bool(v, "fully_nested", &chip->fully_nested);
    visit_bool(v, "reads_isr", &chip->reads_isr);
    visit_bool(v, "poll", &chip->poll);
}

void pic_visit(struct pic *pic, struct visitor *v)
{
    for (unsigned i = 0; i < 2; i++) {
        visit_begin(v, i == 0 ? "pic-master" : "pic-slave", 1);
        chip_visit(&pic->chips[i], v);
        visit_end(v);
    }
}
