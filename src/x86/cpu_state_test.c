/* RESET and INIT; every byte of the state is saved; a state that no CPU could be in is refused. */
#include "x86/cpu_state.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "persist/visitor.h"
#include "x86/cpuid.h"

/* Save `from` and load it into `to`; returns the first error of either. */
static int transfer(const struct cpu_state *from, struct cpu_state *to)
{
    struct visitor *writer = visitor_new_write();
    cpu_state_visit((struct cpu_state *)from, writer);
    int error = visitor_error(writer);
    if (!error) {
        size_t size;
        const void *stream = visitor_buffer(writer, &size);
        struct visitor *reader = visitor_new_read(stream, size);
        cpu_state_visit(to, reader);
        error = visitor_error(reader);
        visitor_free(reader);
    }
    visitor_free(writer);
    return error;
}

static void test_reset(void **state)
{
    struct cpu_state s;
    memset(&s, 0x5a, sizeof s);
    cpu_state_reset(&s, true);
    assert_int_equal(s.rip, 0xfff0);
    assert_int_equal(s.segment[CS].selector, 0xf000);
    assert_int_equal(s.segment[CS].base, 0xffff0000);
    assert_int_equal(s.segment[CS].limit, 0xffff);
    assert_int_equal(s.segment[CS].attributes, 0x9b);
    assert_int_equal(s.segment[DS].attributes, 0x93);
    assert_int_equal(s.cr0, 0x60000010);
    assert_int_equal(s.rflags, 2);
    assert_int_equal(s.dr6, 0xffff0ff0);
    assert_int_equal(s.dr7, 0x400);
    assert_int_equal(s.gdtr.limit, 0xffff);
    assert_int_equal(s.tr.attributes, 0x8b);
    assert_int_equal(s.ldtr.attributes, 0x82);
    assert_int_equal(s.xcr0, 1);
    assert_int_equal(load_le16(s.xsave), 0x37f);
    assert_int_equal(load_le32(s.xsave + 24), 0x1f80);
    assert_int_equal(s.pat, 0x0007040600070406);
    assert_int_equal(s.activity, ACTIVITY_RUNNING);
    assert_int_equal(cpu_state_cpl(&s), 0);
    cpu_state_reset(&s, false);
    assert_int_equal(s.activity, ACTIVITY_WAIT_SIPI);
}

static void test_init(void **state)
{
    struct cpu_state s;
    cpu_state_reset(&s, false);
    s.cr0 = CR0_PE | CR0_PG | CR0_NW | CR0_ET;
    s.efer = EFER_LME | EFER_LMA;
    s.gpr[RSP] = 5;
    s.xcr0 = 7;
    s.lstar = 0x1234;
    s.tsc_offset = 99;
    s.nmi_blocked = true;
    s.activity = ACTIVITY_HALTED;
    memset(s.xsave, 0x11, 512);
    cpu_state_init_ipi(&s, false);
    assert_int_equal(s.cr0, CR0_NW | CR0_ET);
    assert_int_equal(s.efer, 0);
    assert_int_equal(s.gpr[RSP], 0);
    assert_int_equal(s.rip, 0xfff0);
    assert_int_equal(s.xcr0, 7);
    assert_int_equal(s.lstar, 0x1234);
    assert_int_equal(s.tsc_offset, 99);
    assert_false(s.nmi_blocked);
    assert_int_equal(s.xsave[100], 0x11);
    assert_int_equal(s.activity, ACTIVITY_WAIT_SIPI);
    cpu_state_init_ipi(&s, true);
    assert_int_equal(s.activity, ACTIVITY_RUNNING);
}

/* A state as a 64-bit system would have it, with as many different values as are allowed. */
static void fill(struct cpu_state *s)
{
    memset(s, 0, sizeof *s);
    for (unsigned i = 0; i < GPR_COUNT; i++) {
        s->gpr[i] = 0x0123456789abcdef * (uint64_t)(i + 1);
    }
    s->rip = 0x7fff12345678;
    s->rflags = FLAG_FIXED | FLAG_IF | FLAG_ZF | FLAG_AC;
    struct segment *segments[] = {&s->segment[0], &s->segment[1], &s->segment[2], &s->segment[3],
                                  &s->segment[4], &s->segment[5], &s->ldtr,       &s->tr};
    for (unsigned i = 0; i < ARRAY_SIZE(segments); i++) {
        *segments[i] = (struct segment){0xffff888000001000 + i, 0xfff0 + i, 8 * i, 0xa09b ^ i};
    }
    s->gdtr = (struct descriptor_table){0xfffffe0000001000, 0x7f};
    s->idtr = (struct descriptor_table){0xfffffe0000000000, 0xfff};
    s->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_NE | CR0_ET;
    s->cr2 = 0x7fffdeadbeef;
    s->cr3 = 0x123456000;
    s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXSAVE;
    s->cr8 = 15;
    s->xcr0 = 7;
    for (unsigned i = 0; i < 4; i++) {
        s->pdpte[i] = 0x1000 * i + 1;
        s->dr[i] = 0x4000 + i;
    }
    s->dr6 = 0xffff0ff1;
    s->dr7 = 0x401;
    s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
    uint64_t *registers = &s->star;
    for (unsigned i = 0; registers + i <= &s->spec_ctrl; i++) {
        registers[i] = 0x1000 + i;
    }
    s->activity = ACTIVITY_HALTED;
    s->interrupt_shadow = s->shadow_is_mov_ss = s->nmi_blocked = s->nmi_pending = true;
    s->init_pending = s->sipi_pending = s->unhalted = true;
    s->sipi_vector = 0x9a;
    memset(s->xsave, 0x3c, sizeof s->xsave);
    store_le32(s->xsave + 24, 0x1fa0);
    memset(s->xsave + 512, 0, 64);
    s->xsave[512] = 7;
}

/* Bytes of struct cpu_state that belong to no field. */
static bool is_padding(size_t offset)
{
    size_t gdtr_end = offsetof(struct cpu_state, gdtr.limit) + 2;
    size_t idtr_end = offsetof(struct cpu_state, idtr.limit) + 2;
    size_t fields_end = offsetof(struct cpu_state, unhalted) + 1;
    return (offset >= gdtr_end && offset < gdtr_end + 6) ||
           (offset >= idtr_end && offset < idtr_end + 6) ||
           (offset >= fields_end && offset < offsetof(struct cpu_state, xsave)) ||
           offset >= offsetof(struct cpu_state, xsave) + XSAVE_AREA_SIZE;
}

/* Whatever was in the object before, after loading every byte of every field is the saved one. */
static void test_every_byte(void **state)
{
    struct cpu_state saved, zeros, ones;
    fill(&saved);
    memset(&zeros, 0, sizeof zeros);
    memset(&ones, 0xff, sizeof ones);
    ones.init_pending = ones.sipi_pending = ones.unhalted = true;
    ones.interrupt_shadow = ones.shadow_is_mov_ss = ones.nmi_blocked = ones.nmi_pending = true;
    zeros.interrupt_shadow = false;
    assert_int_equal(transfer(&saved, &zeros), 0);
    assert_int_equal(transfer(&saved, &ones), 0);
    for (size_t i = 0; i < sizeof saved; i++) {
        uint8_t expected = ((uint8_t *)&saved)[i];
        if (is_padding(i)) {
            continue;
        }
        if (((uint8_t *)&zeros)[i] != expected || ((uint8_t *)&ones)[i] != expected) {
            print_error("byte %zu of the state was not restored\n", i);
        }
        assert_int_equal(((uint8_t *)&zeros)[i], expected);
        assert_int_equal(((uint8_t *)&ones)[i], expected);
    }
}

static void test_reset_state_loads(void **state)
{
    struct cpu_state s, t;
    cpu_state_reset(&s, true);
    memset(&t, 0, sizeof t);
    assert_int_equal(transfer(&s, &t), 0);
    assert_memory_equal(t.segment, s.segment, sizeof s.segment);
}

/* One thing wrong at a time. */
#define SPOIL(name, change)                                                                        \
    static void spoil_##name(struct cpu_state *s)                                                  \
    {                                                                                              \
        change;                                                                                    \
    }
SPOIL(rflags_fixed, s->rflags &= ~(uint64_t)FLAG_FIXED)
SPOIL(rflags_reserved, s->rflags |= 1 << 15)
SPOIL(rflags_high, s->rflags |= 1ull << 32)
SPOIL(rflags_vm, s->rflags |= FLAG_VM)
SPOIL(cr0_high, s->cr0 |= 1ull << 32)
SPOIL(cr0_reserved, s->cr0 |= 1 << 7)
SPOIL(cr0_pg, s->cr0 &= ~(uint64_t)CR0_PE)
SPOIL(cr4_reserved, s->cr4 |= CR4_LA57)
SPOIL(cr4_pae, s->cr4 &= ~(uint64_t)CR4_PAE)
SPOIL(cr3, s->cr3 |= 1ull << 63)
SPOIL(cr8, s->cr8 = 16)
SPOIL(efer_lma, s->efer &= ~(uint64_t)EFER_LMA)
SPOIL(efer_reserved, s->efer |= 1 << 12)
SPOIL(xcr0_empty, s->xcr0 = 0)
SPOIL(xcr0_avx, s->xcr0 = XCR0_X87 | XCR0_AVX)
SPOIL(xcr0_unknown, s->xcr0 |= 1 << 17)
SPOIL(base, s->segment[FS].base = 1ull << 47)
SPOIL(attributes, s->segment[ES].attributes |= 0x100)
SPOIL(table, s->idtr.base = 1ull << 63)
SPOIL(lstar, s->lstar = 1ull << 62)
SPOIL(gs_base, s->kernel_gs_base = 1ull << 62)
SPOIL(tsc_aux, s->tsc_aux = 1ull << 32)
SPOIL(activity, s->activity = ACTIVITY_SHUTDOWN + 1)
SPOIL(mxcsr, s->xsave[26] = 1)
SPOIL(xstate_bv, s->xsave[513] = 2)
SPOIL(xcomp_bv, s->xsave[527] = 0x80)
SPOIL(xsave_header, s->xsave[575] = 1)

static void test_hostile(void **state)
{
    static void (*const spoilers[])(struct cpu_state *) = {
        spoil_rflags_fixed, spoil_rflags_reserved,
        spoil_rflags_high,  spoil_rflags_vm,
        spoil_cr0_high,     spoil_cr0_reserved,
        spoil_cr0_pg,       spoil_cr4_reserved,
        spoil_cr4_pae,      spoil_cr3,
        spoil_cr8,          spoil_efer_lma,
        spoil_xcr0_empty,   spoil_efer_reserved,
        spoil_xcr0_avx,     spoil_xcr0_unknown,
        spoil_base,         spoil_attributes,
        spoil_table,        spoil_lstar,
        spoil_gs_base,      spoil_tsc_aux,
        spoil_activity,     spoil_mxcsr,
        spoil_xstate_bv,    spoil_xcomp_bv,
        spoil_xsave_header,
    };
    for (size_t i = 0; i < ARRAY_SIZE(spoilers); i++) {
        struct cpu_state s, t;
        fill(&s);
        cpu_state_reset(&t, true);
        spoilers[i](&s);
        int error = transfer(&s, &t);
        if (!error) {
            print_error("spoiler %zu was not noticed\n", i);
        }
        assert_true(error < 0);
    }
}

/* What another model could hold. */
static void query(void *owner, uint32_t leaf, uint32_t subleaf, struct cpuid_result *ret)
{
    memset(ret, 0xff, sizeof *ret);
    if (leaf == 0x80000008) {
        ret->eax = 40;
    }
}

SPOIL(cr3_wide, s->cr3 |= 1ull << 40)
SPOIL(xcr0_wide, s->xcr0 |= XCR0_AVX512)
SPOIL(components_wide, s->xsave[512] |= XCR0_OPMASK)
SPOIL(cr4_smap, s->cr4 |= CR4_SMAP)
SPOIL(efer_ibrs, s->efer |= EFER_AIBRSE)

static void test_model(void **state)
{
    static void (*const spoilers[])(struct cpu_state *) = {
        spoil_cr3_wide, spoil_xcr0_wide, spoil_components_wide, spoil_cr4_smap, spoil_efer_ibrs,
    };
    const struct cpuid_host host = {query, NULL, 7};
    struct cpuid_config config = {.model = CPU_MODEL_V3, .cpus = 1, .tsc_hz = 1000000000};
    struct cpuid_table *v3, *v2;
    assert_int_equal(cpuid_table_new_for_host(&config, &host, &v3), 0);
    config.model = CPU_MODEL_V2;
    assert_int_equal(cpuid_table_new_for_host(&config, &host, &v2), 0);
    struct cpu_state s;
    fill(&s);
    assert_int_equal(cpu_state_check(&s, v3), 0);
    assert_int_equal(cpu_state_check(&s, v2), -EINVAL);
    for (size_t i = 0; i < ARRAY_SIZE(spoilers); i++) {
        fill(&s);
        spoilers[i](&s);
        assert_int_equal(cpu_state_check(&s, v3), -EINVAL);
    }
    cpu_state_reset(&s, true);
    assert_int_equal(cpu_state_check(&s, v2), 0);
    cpuid_table_free(v3);
    cpuid_table_free(v2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reset),      cmocka_unit_test(test_init),
        cmocka_unit_test(test_every_byte), cmocka_unit_test(test_reset_state_loads),
        cmocka_unit_test(test_hostile),    cmocka_unit_test(test_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
