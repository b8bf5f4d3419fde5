/* Model-specific registers: what exists on which model, what may be written, what reads back. */
#include "x86/msr.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"

struct fixture {
    struct cpuid_table *intel, *amd;
    struct cpu_state state;
};

/* A host with every feature; leaf 0DH is not needed. */
static void query(void *owner, uint32_t leaf, uint32_t subleaf, struct cpuid_result *ret)
{
    const char *vendor = owner;
    memset(ret, 0xff, sizeof *ret);
    if (leaf == 0) {
        *ret = (struct cpuid_result){0x20, load_le32(vendor), load_le32(vendor + 8),
                                     load_le32(vendor + 4)};
    } else if (leaf == 0x80000008) {
        ret->eax = 40;
    }
}

static int setup(void **state)
{
    static struct fixture fixture;
    const struct cpuid_config config = {.model = CPU_MODEL_HOST, .cpus = 1, .tsc_hz = 2500000000};
    struct cpuid_host intel = {query, "GenuineIntel", 7};
    struct cpuid_host amd = {query, "AuthenticAMD", 7};
    *state = &fixture;
    return cpuid_table_new_for_host(&config, &intel, &fixture.intel) ||
           cpuid_table_new_for_host(&config, &amd, &fixture.amd);
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    cpuid_table_free(fixture->intel);
    cpuid_table_free(fixture->amd);
    return 0;
}

struct example {
    uint32_t index;
    uint64_t value;
    enum msr_result intel, amd; /* of the write */
    uint64_t reads;             /* afterwards, where the write was fine */
};

#define BOTH(result) (result), (result)
static const uint64_t canonical = 0xffff800000000000, not_canonical = 0x0000800000000000;

static void test_writes(void **state)
{
    const struct example examples[] = {
        {MSR_EFER, EFER_SCE | EFER_LME | EFER_NXE, BOTH(MSR_OK), EFER_SCE | EFER_LME | EFER_NXE},
        {MSR_EFER, EFER_LMA, BOTH(MSR_OK), 0},
        {MSR_EFER, 1 << 1, BOTH(MSR_FAULT), 0},
        {MSR_EFER, EFER_FFXSR, BOTH(MSR_FAULT), 0},
        {MSR_EFER, EFER_AIBRSE, MSR_FAULT, MSR_OK, EFER_AIBRSE},
        {MSR_STAR, UINT64_MAX, BOTH(MSR_OK), UINT64_MAX},
        {MSR_LSTAR, canonical, BOTH(MSR_OK), canonical},
        {MSR_LSTAR, not_canonical, BOTH(MSR_FAULT), 0},
        {MSR_CSTAR, not_canonical, BOTH(MSR_FAULT), 0},
        {MSR_SFMASK, 0x47700, BOTH(MSR_OK), 0x47700},
        {MSR_SFMASK, 1ull << 32, BOTH(MSR_FAULT), 0},
        {MSR_FS_BASE, canonical, BOTH(MSR_OK), canonical},
        {MSR_GS_BASE, not_canonical, BOTH(MSR_FAULT), 0},
        {MSR_KERNEL_GS_BASE, canonical, BOTH(MSR_OK), canonical},
        {MSR_KERNEL_GS_BASE, not_canonical, BOTH(MSR_FAULT), 0},
        {MSR_SYSENTER_CS, 0x1234567800000010, BOTH(MSR_OK), 0x10},
        {MSR_SYSENTER_EIP, canonical, BOTH(MSR_OK), canonical},
        {MSR_SYSENTER_ESP, not_canonical, BOTH(MSR_FAULT), 0},
        {MSR_TSC_AUX, 0x12345678, BOTH(MSR_OK), 0x12345678},
        {MSR_TSC_AUX, 1ull << 32, BOTH(MSR_FAULT), 0},
        {MSR_PAT, 0x0407050600070106, BOTH(MSR_OK), 0x0407050600070106},
        {MSR_PAT, 0x0007040600070402, BOTH(MSR_FAULT), 0},
        {MSR_PAT, 0x0807040600070406, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_DEF_TYPE, 0xc06, BOTH(MSR_OK), 0xc06},
        {MSR_MTRR_DEF_TYPE, 0xc07, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_DEF_TYPE, 0x1c06, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_BASE_0, 0xff80000000 | 6, BOTH(MSR_OK), 0xff80000000 | 6},
        {MSR_MTRR_BASE_0, 1ull << 40, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_BASE_0, 0x106, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_BASE_0 + 15, 0xff80000800, BOTH(MSR_OK), 0xff80000800},
        {MSR_MTRR_BASE_0 + 15, 0xff80000801, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_BASE_0 + 16, 0, BOTH(MSR_OTHER), 0},
        {MSR_MTRR_FIXED_64K, 0x0606060606060606, BOTH(MSR_OK), 0x0606060606060606},
        {MSR_MTRR_FIXED_4K + 7, 0x0606060606060602, BOTH(MSR_FAULT), 0},
        {MSR_MTRR_FIXED_16K + 1, 1, BOTH(MSR_OK), 1},
        {MSR_MTRR_CAP, 0, BOTH(MSR_FAULT), 0},
        {MSR_MISC_ENABLE, 0, MSR_OK, MSR_FAULT, 0x1800},
        {MSR_MISC_ENABLE, 1ull << 34, BOTH(MSR_FAULT), 0},
        {MSR_SPEC_CTRL, 1, MSR_OK, MSR_FAULT, 1},
        {MSR_SPEC_CTRL, 4, BOTH(MSR_FAULT), 0},
        {MSR_PRED_CMD, 2, BOTH(MSR_FAULT), 0},
        {MSR_ARCH_CAPABILITIES, 0, BOTH(MSR_FAULT), 0},
        {MSR_FEATURE_CONTROL, 1, BOTH(MSR_FAULT), 0},
        {MSR_UPDATE_SIGNATURE, 0, BOTH(MSR_OK), 1ull << 32},
        {MSR_MCG_STATUS, 5, BOTH(MSR_OK), 5},
        {MSR_MCG_STATUS, 8, BOTH(MSR_FAULT), 0},
        {MSR_DEBUG_CONTROL, 0, BOTH(MSR_OK), 0},
        {MSR_DEBUG_CONTROL, 1, BOTH(MSR_FAULT), 0},
        {MSR_AMD_HARDWARE_CONFIG, 0, MSR_FAULT, MSR_OK, 1 << 24},
        {MSR_TSC, 0, BOTH(MSR_OTHER), 0},
        {MSR_APIC_BASE, 0, BOTH(MSR_OTHER), 0},
        {MSR_TSC_DEADLINE, 0, BOTH(MSR_OTHER), 0},
        {0x12, 0, BOTH(MSR_OTHER), 0},
        {0x4b564d00, 0, BOTH(MSR_OTHER), 0},
        {0xffffffff, 0, BOTH(MSR_OTHER), 0},
    };
    struct fixture *fixture = *state;
    for (size_t i = 0; i < 2 * ARRAY_SIZE(examples); i++) {
        const struct example *example = &examples[i / 2];
        const struct cpuid_table *table = i & 1 ? fixture->amd : fixture->intel;
        enum msr_result expected = i & 1 ? example->amd : example->intel;
        cpu_state_reset(&fixture->state, true);
        struct cpu_state before = fixture->state;
        enum msr_result result = msr_write(&fixture->state, table, example->index, example->value);
        if (result != expected) {
            print_error("%#x = %#lx: %d\n", example->index, example->value, result);
        }
        assert_int_equal(result, expected);
        if (result == MSR_OK) {
            uint64_t value;
            assert_int_equal(msr_read(&fixture->state, table, example->index, &value), MSR_OK);
            assert_int_equal(value, example->reads);
        } else {
            assert_memory_equal(&fixture->state, &before, sizeof before);
        }
    }
}

static void test_reads(void **state)
{
    static const struct example examples[] = {
        {MSR_MTRR_CAP, 0, BOTH(MSR_OK), 0x508},
        {MSR_PAT, 0, BOTH(MSR_OK), 0x0007040600070406},
        {MSR_MCG_CAP, 0, BOTH(MSR_OK), 0},
        {MSR_PLATFORM_INFO, 0, MSR_OK, MSR_FAULT, 25 << 8},
        {MSR_PLATFORM_ID, 0, MSR_OK, MSR_FAULT, 0},
        {MSR_MISC_ENABLE, 0, MSR_OK, MSR_FAULT, 0x1801},
        {MSR_FEATURE_CONTROL, 0, MSR_OK, MSR_FAULT, 1},
        {MSR_PRED_CMD, 0, BOTH(MSR_FAULT), 0},
        {MSR_UPDATE_TRIGGER, 0, BOTH(MSR_FAULT), 0},
        {MSR_AMD_SYSTEM_CONFIG, 0, MSR_FAULT, MSR_OK, 0},
        {MSR_AMD_DECODE_CONFIG, 0, MSR_FAULT, MSR_OK, 2},
        {MSR_TSC, 0, BOTH(MSR_OTHER), 0},
        {0x400, 0, BOTH(MSR_OTHER), 0},
        {0x186, 0, BOTH(MSR_OTHER), 0},
    };
    struct fixture *fixture = *state;
    cpu_state_reset(&fixture->state, true);
    for (size_t i = 0; i < 2 * ARRAY_SIZE(examples); i++) {
        const struct example *example = &examples[i / 2];
        uint64_t value = 0;
        enum msr_result result = msr_read(&fixture->state, i & 1 ? fixture->amd : fixture->intel,
                                          example->index, &value);
        assert_int_equal(result, i & 1 ? example->amd : example->intel);
        if (result == MSR_OK) {
            assert_int_equal(value, example->reads);
        }
    }
    uint64_t value;
    assert_int_equal(msr_read(&fixture->state, fixture->intel, MSR_ARCH_CAPABILITIES, &value),
                     MSR_OK);
    assert_int_equal(value, cpuid_arch_capabilities(fixture->intel));
    assert_true(value & 1);
}

/* While paging, LME cannot change, and LMA stays. */
static void test_efer_while_paging(void **state)
{
    struct fixture *fixture = *state;
    struct cpu_state *s = &fixture->state;
    cpu_state_reset(s, true);
    s->cr0 |= CR0_PE | CR0_PG;
    s->efer = EFER_LME | EFER_LMA;
    assert_int_equal(msr_write(s, fixture->intel, MSR_EFER, 0), MSR_FAULT);
    assert_int_equal(msr_write(s, fixture->intel, MSR_EFER, EFER_LME | EFER_NXE), MSR_OK);
    assert_int_equal(s->efer, EFER_LME | EFER_LMA | EFER_NXE);
}

/* TSC and TSC_ADJUST move together. SDM volume 3, 17.17.3. */
static void test_tsc(void **state)
{
    struct fixture *fixture = *state;
    struct cpu_state *s = &fixture->state;
    cpu_state_reset(s, true);
    s->tsc_offset = 1000;
    msr_write_tsc(s, 5000, 5100);
    assert_int_equal(s->tsc_offset, 1100);
    assert_int_equal(s->tsc_adjust, 100);
    assert_int_equal(msr_write(s, fixture->intel, MSR_TSC_ADJUST, 40), MSR_OK);
    assert_int_equal(s->tsc_offset, 1040);
    assert_int_equal(s->tsc_adjust, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes),
        cmocka_unit_test(test_reads),
        cmocka_unit_test(test_efer_while_paging),
        cmocka_unit_test(test_tsc),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
