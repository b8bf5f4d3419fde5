/* The 8259 pair against its data sheet. */
#include "device/irqchip/pic.h"

#include "device/test_board.h"

/* Vectors 20h..27h and 28h..2Fh, nothing masked; `icw4` for the master. */
static void start(struct pic *pic, uint8_t icw4)
{
    *pic = (struct pic){0};
    pic_reset(pic);
    for (unsigned chip = 0; chip < 2; chip++) {
        pic_write(pic, chip, false, 0x11);
        pic_write(pic, chip, true, (uint8_t)(0x20 + 8 * chip));
        pic_write(pic, chip, true, chip == 0 ? 4 : 2);
        assert_false(pic_output(pic));
        pic_write(pic, chip, true, chip == 0 ? icw4 : 1);
        pic_write(pic, chip, true, 0);
    }
}

static void pulse(struct pic *pic, unsigned input)
{
    pic_set(pic, input, true);
    pic_set(pic, input, false);
}

static void test_priorities(void **state)
{
    struct pic pic;
    start(&pic, 1);
    pulse(&pic, 4);
    pulse(&pic, 1);
    pulse(&pic, 10);
    assert_int_equal(pic_acknowledge(&pic), 0x21);
    assert_false(pic_output(&pic)); /* 10 (by input 2) and 4 are below 1 */
    pic_write(&pic, 0, false, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x2a);
    assert_false(pic_output(&pic));
    pulse(&pic, 8); /* higher within the slave, but the master's input 2 is in service */
    assert_false(pic_output(&pic));
    pic_write(&pic, 1, false, 0x20);
    pic_write(&pic, 0, false, 0x62); /* specific EOI of input 2 */
    assert_int_equal(pic_acknowledge(&pic), 0x28);
    pic_write(&pic, 1, false, 0x20);
    pic_write(&pic, 0, false, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x24);
    pic_write(&pic, 0, false, 0x20);
    assert_false(pic_output(&pic));
}

static void test_fully_nested_slave(void **state)
{
    struct pic pic;
    start(&pic, 0x11);
    pulse(&pic, 12);
    assert_int_equal(pic_acknowledge(&pic), 0x2c);
    pulse(&pic, 9);
    assert_int_equal(pic_acknowledge(&pic), 0x29);
    pulse(&pic, 14);
    assert_false(pic_output(&pic));
}

static void test_spurious(void **state)
{
    struct pic pic;
    start(&pic, 1);
    assert_int_equal(pic_acknowledge(&pic), 0x27);
    assert_int_equal(pic_read(&pic, 0, false), 0);
    pic_write(&pic, 0, false, 0x0b);
    assert_int_equal(pic_read(&pic, 0, false), 0); /* nothing is in service */
    pic_elcr_write(&pic, 1, 0x04);
    pic_set(&pic, 10, true);
    assert_true(pic_output(&pic));
    pic_set(&pic, 10, false); /* a level that went away */
    assert_false(pic_output(&pic));
}

static void test_masks(void **state)
{
    struct pic pic;
    start(&pic, 1);
    pic_write(&pic, 0, true, 0x08);
    pulse(&pic, 3);
    assert_false(pic_output(&pic));
    assert_int_equal(pic_read(&pic, 0, false), 0x08);
    pic_write(&pic, 0, true, 0x00);
    assert_int_equal(pic_acknowledge(&pic), 0x23);
    pulse(&pic, 5);
    assert_false(pic_output(&pic));
    /* special mask mode: masking what is in service lets lower ones through */
    pic_write(&pic, 0, false, 0x68);
    pic_write(&pic, 0, true, 0x08);
    assert_int_equal(pic_acknowledge(&pic), 0x25);
    pic_write(&pic, 0, false, 0x20); /* ends 5; the masked 3 stays in service */
    pic_write(&pic, 0, false, 0x0b);
    assert_int_equal(pic_read(&pic, 0, false), 0x08);
    pic_write(&pic, 0, false, 0x48);
    pulse(&pic, 5);
    assert_false(pic_output(&pic));
    pic_write(&pic, 0, false, 0x63);
    assert_int_equal(pic_acknowledge(&pic), 0x25);
}

static void test_rotation(void **state)
{
    struct pic pic;
    start(&pic, 1);
    pulse(&pic, 1);
    assert_int_equal(pic_acknowledge(&pic), 0x21);
    pic_write(&pic, 0, false, 0xa0); /* rotate on non-specific EOI: 1 is now lowest */
    pulse(&pic, 1);
    pulse(&pic, 6);
    assert_int_equal(pic_acknowledge(&pic), 0x26);
    pic_write(&pic, 0, false, 0xe6); /* rotate on specific EOI: 7 is highest */
    pulse(&pic, 7);
    assert_int_equal(pic_acknowledge(&pic), 0x27);
    pic_write(&pic, 0, false, 0x20);
    pic_write(&pic, 0, false, 0xc0); /* set priority: 0 lowest, 1 highest */
    pulse(&pic, 0);
    pulse(&pic, 7);
    assert_int_equal(pic_acknowledge(&pic), 0x21);
    pic_write(&pic, 0, false, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x27);
    pic_write(&pic, 0, false, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x20);
}

static void test_automatic_eoi(void **state)
{
    struct pic pic;
    start(&pic, 3);
    pic_write(&pic, 0, false, 0x80); /* rotate in automatic EOI mode */
    pulse(&pic, 0);
    pulse(&pic, 1);
    assert_int_equal(pic_acknowledge(&pic), 0x20);
    pulse(&pic, 0);
    assert_int_equal(pic_acknowledge(&pic), 0x21);
    assert_int_equal(pic_acknowledge(&pic), 0x20);
    assert_false(pic_output(&pic));
}

static void test_levels(void **state)
{
    struct pic pic;
    start(&pic, 1);
    pic_elcr_write(&pic, 0, 0xff);
    assert_int_equal(pic_elcr_read(&pic, 0), 0xf8); /* timer, keyboard, cascade stay edges */
    pic_elcr_write(&pic, 1, 0xff);
    assert_int_equal(pic_elcr_read(&pic, 1), 0xde);
    pic_set(&pic, 11, true);
    assert_int_equal(pic_acknowledge(&pic), 0x2b);
    pic_write(&pic, 1, false, 0x20);
    pic_write(&pic, 0, false, 0x20);
    assert_int_equal(pic_acknowledge(&pic), 0x2b); /* still up */
    pic_set(&pic, 11, false);
    pic_write(&pic, 1, false, 0x20);
    pic_write(&pic, 0, false, 0x20);
    assert_false(pic_output(&pic));
}

static void test_poll(void **state)
{
    struct pic pic;
    start(&pic, 1);
    pic_write(&pic, 0, false, 0x0c);
    assert_int_equal(pic_read(&pic, 0, false), 0x00);
    pulse(&pic, 6);
    pic_write(&pic, 0, false, 0x0c);
    assert_int_equal(pic_read(&pic, 0, false), 0x86);
    assert_false(pic_output(&pic));
    pic_write(&pic, 0, false, 0x0b);
    assert_int_equal(pic_read(&pic, 0, false), 0x40);
}

static void visit(void *owner, struct visitor *v)
{
    pic_visit(owner, v);
}

static void test_visit(void **state)
{
    struct pic pic;
    start(&pic, 0x13);
    pulse(&pic, 3);
    pic_set(&pic, 12, true);
    pic_write(&pic, 0, false, 0x68);
    assert_int_equal(VISIT_CHECK(struct pic, &pic, visit, &pic, {0, 0}), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priorities), cmocka_unit_test(test_fully_nested_slave),
        cmocka_unit_test(test_spurious),   cmocka_unit_test(test_masks),
        cmocka_unit_test(test_rotation),   cmocka_unit_test(test_automatic_eoi),
        cmocka_unit_test(test_levels),     cmocka_unit_test(test_poll),
        cmocka_unit_test(test_visit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
