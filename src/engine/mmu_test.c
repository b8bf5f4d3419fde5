/*
 * Guest-virtual accesses from C: across pages, to watched pages and devices, with faults that leave
 * nothing behind, and after changes of permission.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "engine/test_paging.h"

#define PAGE 0x400000ull
enum {
    FRAME = 0x200000,
    SECOND = 0x300000, /* not beside the first */
    LARGEST = 64,
};

static void map_two(struct paging *p, uint64_t first, uint64_t second)
{
    paging_fill(p, FRAME, PAGE_SIZE);
    paging_fill(p, SECOND, PAGE_SIZE);
    paging_map(p, PAGE, FRAME, first);
    paging_map(p, PAGE + PAGE_SIZE, SECOND, second);
    tlb_flush_all(&p->tlb);
}

/* The two pages as the guest sees them, by their frames. */
static void look(struct paging *p, uint8_t ret_bytes[2 * PAGE_SIZE])
{
    assert_int_equal(memory_read(p->memory, FRAME, ret_bytes, PAGE_SIZE), 0);
    assert_int_equal(memory_read(p->memory, SECOND, ret_bytes + PAGE_SIZE, PAGE_SIZE), 0);
}

static void expect_fault(struct paging *p, enum step step, gva_t cr2, uint32_t error_code)
{
    assert_int_equal(step, STEP_EXCEPTION);
    assert_int_equal(p->vcpu.exception.vector, EXCEPTION_PF);
    assert_int_equal(p->vcpu.exception.cr2, cr2);
    assert_int_equal(p->vcpu.exception.error_code, error_code);
}

static void every_size_at_every_place(void **state)
{
    struct paging *p = *state;
    static uint8_t model[2 * PAGE_SIZE], found[2 * PAGE_SIZE];
    uint8_t bytes[LARGEST];
    uint8_t next = 1;
    map_two(p, PAGING_USER, PAGING_USER);
    look(p, model);
    for (unsigned size = 1; size <= LARGEST; size++) {
        for (unsigned at = PAGE_SIZE - size - 1; at <= PAGE_SIZE + 1; at++) {
            uint32_t access = at & 1 ? PF_USER : 0;
            if (at % 7 == 0) {
                tlb_flush_all(&p->tlb); /* both ways: found, and to be looked for */
            }
            assert_int_equal(mmu_read(&p->vcpu, PAGE + at, bytes, size, access), STEP_NEXT);
            assert_memory_equal(bytes, model + at, size);
            for (unsigned i = 0; i < size; i++) {
                bytes[i] = model[at + i] = next++;
            }
            assert_int_equal(mmu_check_write(&p->vcpu, PAGE + at, size, access), STEP_NEXT);
            assert_int_equal(mmu_write(&p->vcpu, PAGE + at, bytes, size, access), STEP_NEXT);
            look(p, found);
            assert_memory_equal(found, model, sizeof model);
        }
    }
}

/* Whatever half faults: CR2 is the first byte that does, and nothing is changed. */
static void faults_leave_nothing_behind(void **state)
{
    struct paging *p = *state;
    static uint8_t before[2 * PAGE_SIZE], after[2 * PAGE_SIZE];
    const gva_t gva = PAGE + PAGE_SIZE - 3, second = PAGE + PAGE_SIZE;
    const struct {
        uint64_t first, second;
        uint32_t access;
        gva_t cr2;
        uint32_t error_code; /* of a write */
        bool reads;          /* a read succeeds */
    } table[] = {
        {PAGING_USER, 0, 0, second, 0, false},
        {0, PAGING_USER, 0, gva, 0, false},
        {0, 0, PF_USER, gva, PF_USER, false},
        {PAGING_USER, PTE_P | PTE_U, PF_USER, second, PF_PRESENT | PF_USER, true},
        {PTE_P | PTE_U, PAGING_USER, 0, gva, PF_PRESENT, true},
        {PAGING_USER, PAGING_KERNEL, PF_USER, second, PF_PRESENT | PF_USER, false},
    };
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        uint8_t bytes[8] = "12345678";
        map_two(p, table[i].first, table[i].second);
        look(p, before);
        expect_fault(p, mmu_write(&p->vcpu, gva, bytes, 8, table[i].access), table[i].cr2,
                     table[i].error_code | PF_WRITE);
        expect_fault(p, mmu_check_write(&p->vcpu, gva, 8, table[i].access), table[i].cr2,
                     table[i].error_code | PF_WRITE);
        enum step step = mmu_read(&p->vcpu, gva, bytes, 8, table[i].access);
        if (table[i].reads) {
            assert_int_equal(step, STEP_NEXT);
            assert_memory_equal(bytes, before + PAGE_SIZE - 3, 8);
        } else {
            expect_fault(p, step, table[i].cr2, table[i].error_code);
            assert_memory_equal(bytes, "12345678", 8);
        }
        look(p, after);
        assert_memory_equal(before, after, sizeof before);
    }
}

/* A right that the guest takes away is gone with the flush; one that it gives needs none. */
static void changes_of_permission(void **state)
{
    struct paging *p = *state;
    map_two(p, PAGING_USER, PAGING_USER);
    assert_int_equal(mmu_write(&p->vcpu, PAGE, "x", 1, PF_USER), STEP_NEXT);
    paging_map(p, PAGE, FRAME, PTE_P | PTE_U);
    tlb_flush_page(&p->tlb, PAGE);
    expect_fault(p, mmu_write(&p->vcpu, PAGE + 9, "x", 1, PF_USER), PAGE + 9,
                 PF_PRESENT | PF_WRITE | PF_USER);
    uint8_t byte;
    assert_int_equal(mmu_read(&p->vcpu, PAGE, &byte, 1, PF_USER), STEP_NEXT);
    assert_int_equal(byte, 'x');
    paging_map(p, PAGE, FRAME, PAGING_USER);
    assert_int_equal(mmu_write(&p->vcpu, PAGE + 9, "y", 1, PF_USER), STEP_NEXT);
    paging_map(p, PAGE, FRAME, PAGING_KERNEL);
    tlb_flush_non_global(&p->tlb);
    expect_fault(p, mmu_read(&p->vcpu, PAGE, &byte, 1, PF_USER), PAGE, PF_PRESENT | PF_USER);
    assert_int_equal(mmu_write(&p->vcpu, PAGE, "z", 1, 0), STEP_NEXT);
    /* CR0.WP off: the kernel writes where nobody may; on again: not any more */
    paging_map(p, PAGE, FRAME, PTE_P);
    p->vcpu.state.cr0 &= ~(uint64_t)CR0_WP;
    vcpu_mode_changed(&p->vcpu);
    tlb_flush_all(&p->tlb);
    assert_int_equal(mmu_write(&p->vcpu, PAGE, "0", 1, 0), STEP_NEXT);
    p->vcpu.state.cr0 |= CR0_WP;
    vcpu_mode_changed(&p->vcpu);
    tlb_flush_all(&p->tlb);
    expect_fault(p, mmu_write(&p->vcpu, PAGE, "1", 1, 0), PAGE, PF_PRESENT | PF_WRITE);
    assert_int_equal(mmu_read(&p->vcpu, PAGE, &byte, 1, 0), STEP_NEXT);
    assert_int_equal(byte, '0');
}

/* The user's half serves the kernel as long as AC is set, and not a moment longer. */
static void smap(void **state)
{
    struct paging *p = *state;
    uint8_t byte, *host;
    map_two(p, PAGING_USER, PAGING_USER);
    p->vcpu.state.cr4 |= CR4_SMAP;
    for (unsigned i = 0; i < 2; i++) {
        p->vcpu.state.rflags |= FLAG_AC;
        vcpu_mode_changed(&p->vcpu);
        assert_int_equal(mmu_write(&p->vcpu, PAGE, "x", 1, 0), STEP_NEXT);
        assert_int_equal(mmu_read(&p->vcpu, PAGE, &byte, 1, 0), STEP_NEXT);
        assert_int_equal(mmu_host(&p->vcpu, PAGE, 1, PF_WRITE, &host), STEP_NEXT);
        assert_non_null(host);
        p->vcpu.state.rflags &= ~(uint64_t)FLAG_AC;
        vcpu_mode_changed(&p->vcpu);
        expect_fault(p, mmu_read(&p->vcpu, PAGE, &byte, 1, 0), PAGE, PF_PRESENT);
        expect_fault(p, mmu_write(&p->vcpu, PAGE, "x", 1, 0), PAGE, PF_PRESENT | PF_WRITE);
        assert_int_equal(mmu_read(&p->vcpu, PAGE, &byte, 1, PF_USER), STEP_NEXT);
    }
}

static void expect_call(struct paging *p, unsigned index, bool is_write, gpa_t gpa, unsigned size)
{
    assert_true(index < p->call_count);
    assert_int_equal(p->calls[index].is_write, is_write);
    assert_int_equal(p->calls[index].gpa, gpa);
    assert_int_equal(p->calls[index].size, size);
}

/* A device gets an access of 1, 2, 4 or 8 bytes as it is, others in parts that it can take. */
static void devices(void **state)
{
    struct paging *p = *state;
    uint8_t bytes[32], *host;
    paging_map(p, PAGE, PAGING_DEVICE, PAGING_KERNEL);
    for (unsigned size = 1; size <= sizeof bytes; size++) {
        for (unsigned at = 0; at < 8; at++) {
            unsigned covered = 0;
            p->call_count = 0;
            assert_int_equal(mmu_read(&p->vcpu, PAGE + at, bytes, size, 0), STEP_NEXT);
            for (unsigned i = 0; i < p->call_count; i++) {
                unsigned part = p->calls[i].size;
                assert_int_equal(p->calls[i].gpa, PAGING_DEVICE + at + covered);
                assert_true(part == 1 || part == 2 || part == 4 || part == 8);
                covered += part;
            }
            assert_int_equal(covered, size);
            assert_true(p->call_count == 1 || (size & (size - 1)) || size > 8);
            for (unsigned i = 0; i < size; i++) {
                assert_int_equal(bytes[i], at + i);
            }
        }
    }
    p->call_count = 0;
    assert_int_equal(mmu_write(&p->vcpu, PAGE + 4, "\x11\x22\x33\x44", 4, 0), STEP_NEXT);
    expect_call(p, 0, true, PAGING_DEVICE + 4, 4);
    assert_int_equal(p->calls[0].value, 0x44332211);
    assert_int_equal(mmu_host(&p->vcpu, PAGE, 4, 0, &host), STEP_NEXT);
    assert_null(host);
    assert_int_equal(mmu_check_write(&p->vcpu, PAGE, 4, 0), STEP_NEXT);
    assert_int_equal(p->call_count, 1); /* looking for the place does nothing to the device */
}

/* Half RAM, half device, either way round. */
static void across_ram_and_device(void **state)
{
    struct paging *p = *state;
    uint8_t bytes[4], found[2];
    paging_fill(p, FRAME, PAGE_SIZE);
    paging_map(p, PAGE, FRAME, PAGING_KERNEL);
    paging_map(p, PAGE + PAGE_SIZE, PAGING_DEVICE, PAGING_KERNEL);
    paging_map(p, PAGE + 2 * PAGE_SIZE, FRAME, PAGING_KERNEL);
    assert_int_equal(mmu_write(&p->vcpu, PAGE + PAGE_SIZE - 2, "abcd", 4, 0), STEP_NEXT);
    assert_int_equal(memory_read(p->memory, FRAME + PAGE_SIZE - 2, found, 2), 0);
    assert_memory_equal(found, "ab", 2);
    expect_call(p, 0, true, PAGING_DEVICE, 2);
    assert_int_equal(p->calls[0].value, 'c' | 'd' << 8);
    assert_int_equal(mmu_write(&p->vcpu, PAGE + 2 * PAGE_SIZE - 1, "efgh", 4, 0), STEP_NEXT);
    expect_call(p, 1, true, PAGING_DEVICE + PAGE_SIZE - 1, 1);
    assert_int_equal(mmu_read(&p->vcpu, PAGE + 2 * PAGE_SIZE - 2, bytes, 4, 0), STEP_NEXT);
    expect_call(p, 2, false, PAGING_DEVICE + PAGE_SIZE - 2, 2);
    assert_memory_equal(bytes,
                        "\xfe\xff"
                        "fg",
                        4);
}

static void watched_pages(void **state)
{
    struct paging *p = *state;
    uint8_t *host;
    uint64_t value = 0;
    map_two(p, PAGING_USER, PAGING_USER);
    assert_int_equal(mmu_write(&p->vcpu, PAGE, "x", 1, 0), STEP_NEXT);
    assert_int_equal(memory_set_code(p->memory, FRAME >> PAGE_SHIFT), 0);
    assert_int_equal(mmu_write(&p->vcpu, PAGE + 8, "12345678", 8, 0), STEP_NEXT);
    assert_int_equal(p->code_writes, 1);
    assert_int_equal(mmu_write(&p->vcpu, PAGE + PAGE_SIZE - 4, "12345678", 8, 0), STEP_NEXT);
    assert_int_equal(p->code_writes, 2);
    assert_int_equal(mmu_read(&p->vcpu, PAGE + 8, &value, 8, 0), STEP_NEXT);
    assert_memory_equal(&value, "12345678", 8);
    assert_int_equal(mmu_read(&p->vcpu, PAGE + PAGE_SIZE - 4, &value, 8, 0), STEP_NEXT);
    assert_memory_equal(&value, "12345678", 8);
    assert_int_equal(mmu_host(&p->vcpu, PAGE, 8, PF_WRITE, &host), STEP_NEXT);
    assert_null(host);
    assert_int_equal(mmu_host(&p->vcpu, PAGE, 8, 0, &host), STEP_NEXT);
    assert_non_null(host);
    assert_int_equal(mmu_host(&p->vcpu, PAGE + PAGE_SIZE - 4, 8, 0, &host), STEP_NEXT);
    assert_null(host);
    assert_int_equal(p->code_writes, 2);
}

/* Outside IA-32e mode linear addresses are 32 bits wide: behind the last byte comes the first. */
static void linear_addresses_wrap(void **state)
{
    struct paging *p = *state;
    uint8_t bytes[4];
    p->vcpu.state.cr0 &= ~(uint64_t)CR0_PG;
    p->vcpu.state.efer = 0;
    vcpu_mode_changed(&p->vcpu);
    paging_fill(p, 0, 8);
    assert_int_equal(memory_write(p->memory, 0, "ab", 2), 0);
    assert_int_equal(mmu_read(&p->vcpu, 0xfffffffe, bytes, 4, 0), STEP_NEXT);
    expect_call(p, 0, false, 0xfffffffe, 2);
    assert_memory_equal(bytes,
                        "\xfe\xff"
                        "ab",
                        4);
}

static void fetches(void **state)
{
    enum { LONGEST = 15 };
    struct paging *p = *state;
    static uint8_t model[2 * PAGE_SIZE];
    uint8_t bytes[LONGEST];
    unsigned count;
    map_two(p, PAGING_KERNEL, PAGING_KERNEL);
    look(p, model);
    for (unsigned at = PAGE_SIZE - 17; at <= PAGE_SIZE; at++) {
        assert_int_equal(mmu_fetch(&p->vcpu, PAGE + at, bytes, &count), STEP_NEXT);
        assert_int_equal(count, LONGEST);
        assert_memory_equal(bytes, model + at, LONGEST);
    }
    paging_map(p, PAGE + PAGE_SIZE, SECOND, PAGING_KERNEL | PTE_NX);
    tlb_flush_page(&p->tlb, PAGE + PAGE_SIZE);
    for (unsigned at = PAGE_SIZE - 14; at < PAGE_SIZE; at++) {
        p->vcpu.exception = (struct exception){0};
        assert_int_equal(mmu_fetch(&p->vcpu, PAGE + at, bytes, &count), STEP_NEXT);
        assert_int_equal(count, PAGE_SIZE - at);
        assert_memory_equal(bytes, model + at, count);
        expect_fault(p, STEP_EXCEPTION, PAGE + PAGE_SIZE, PF_PRESENT | PF_FETCH);
    }
    expect_fault(p, mmu_fetch(&p->vcpu, PAGE + PAGE_SIZE, bytes, &count), PAGE + PAGE_SIZE,
                 PF_PRESENT | PF_FETCH);
    assert_int_equal(count, 0);
    paging_map(p, PAGE, FRAME, PAGING_USER);
    p->vcpu.state.cr4 |= CR4_SMEP;
    vcpu_mode_changed(&p->vcpu);
    tlb_flush_all(&p->tlb);
    expect_fault(p, mmu_fetch(&p->vcpu, PAGE, bytes, &count), PAGE, PF_PRESENT | PF_FETCH);
    p->vcpu.state.segment[SS].attributes |= SEGMENT_DPL;
    assert_int_equal(mmu_fetch(&p->vcpu, PAGE, bytes, &count), STEP_NEXT);
    assert_int_equal(mmu_fetch(&p->vcpu, 1ull << 47, bytes, &count), STEP_EXCEPTION);
    assert_int_equal(p->vcpu.exception.vector, EXCEPTION_GP);
    /* the bytes before the end of canonical addresses can be fetched */
    gva_t last = (1ull << 47) - PAGE_SIZE;
    paging_map(p, last, SECOND, PAGING_USER);
    assert_int_equal(mmu_fetch(&p->vcpu, last + PAGE_SIZE - 5, bytes, &count), STEP_NEXT);
    assert_int_equal(count, 5);
    assert_int_equal(p->vcpu.exception.vector, EXCEPTION_GP);
    /* of a device, too */
    paging_map(p, PAGE, PAGING_DEVICE, PAGING_USER);
    tlb_flush_all(&p->tlb);
    assert_int_equal(mmu_fetch(&p->vcpu, PAGE + 3, bytes, &count), STEP_NEXT);
    assert_int_equal(count, LONGEST);
    assert_int_equal(bytes[LONGEST - 1], 3 + LONGEST - 1);
}

static void fetches_name_their_place(void **state)
{
    struct paging *p = *state;
    struct walk_result result;
    paging_map(p, PAGE, FRAME, PAGING_KERNEL | PTE_G);
    paging_map(p, PAGE + PAGE_SIZE, SECOND, PAGING_KERNEL);
    assert_int_equal(mmu_translate_fetch(&p->vcpu, PAGE + 5, &result), STEP_NEXT);
    assert_int_equal(result.gpa, FRAME + 5);
    assert_true(result.global);
    assert_int_equal(mmu_translate_fetch(&p->vcpu, PAGE + PAGE_SIZE, &result), STEP_NEXT);
    assert_int_equal(result.gpa, SECOND);
    assert_false(result.global);
    p->vcpu.state.segment[SS].attributes |= SEGMENT_DPL;
    expect_fault(p, mmu_translate_fetch(&p->vcpu, PAGE, &result), PAGE,
                 PF_PRESENT | PF_FETCH | PF_USER);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, paging_setup, paging_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_size_at_every_place),
        TEST(faults_leave_nothing_behind),
        TEST(changes_of_permission),
        TEST(smap),
        TEST(devices),
        TEST(across_ram_and_device),
        TEST(watched_pages),
        TEST(linear_addresses_wrap),
        TEST(fetches),
        TEST(fetches_name_their_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
