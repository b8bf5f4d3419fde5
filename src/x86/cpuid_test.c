/* CPU models: consistency of all leaves, hosts that lack something, and what is not offered. */
#include "x86/cpuid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <Zydis/Zydis.h>
#include <cmocka.h>

#include "base/bytes.h"
#include "base/error.h"
#include "x86/cpu_state.h"
#include "x86/cpuid_internal.h"

/* A host described by the words of cpuid_internal.h. */
struct fake_host {
    bool is_amd;
    uint32_t words[WORD_COUNT];
    unsigned physical_bits;
    uint32_t opmask_offset;
};

static void fake_query(void *owner, uint32_t leaf, uint32_t subleaf, struct cpuid_result *ret)
{
    const struct fake_host *fake = owner;
    *ret = (struct cpuid_result){0};
    uint32_t *registers[] = {&ret->eax, &ret->ebx, &ret->ecx, &ret->edx};
    for (int word = 0; word < WORD_COUNT; word++) {
        const struct word_place *place = &cpuid_word_places[word];
        if (place->leaf == leaf && place->subleaf == subleaf) {
            *registers[place->reg] = fake->words[word];
        }
    }
    const char *vendor = fake->is_amd ? "AuthenticAMD" : "GenuineIntel";
    switch (leaf) {
    case 0:
        *ret = (struct cpuid_result){0x20, load_le32(vendor), load_le32(vendor + 8),
                                     load_le32(vendor + 4)};
        break;
    case 1:
        ret->eax = 0x000a0678;
        break;
    case 7:
        ret->eax = subleaf == 0 ? 1 : ret->eax;
        break;
    case 0xd: {
        static const uint32_t sizes[8] = {0, 0, 256, 0, 0, 64, 512, 1024};
        uint32_t offsets[8] = {0,
                               0,
                               576,
                               0,
                               0,
                               fake->opmask_offset,
                               fake->opmask_offset + 64,
                               fake->opmask_offset + 576};
        if (subleaf < 8) {
            *ret = (struct cpuid_result){sizes[subleaf], offsets[subleaf], 0, 0};
        }
        break;
    }
    case 0x80000000:
        ret->eax = 0x80000021;
        break;
    case 0x80000008:
        ret->eax = 0x3000 | fake->physical_bits;
        break;
    default:
        break;
    }
}

static const struct fake_host everything = {
    .words = {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, ~0u},
    .physical_bits = 46,
    .opmask_offset = 1088,
};
static const uint64_t xcr0_everything = 0x602e7; /* with AMX and PKRU */

static struct cpuid_config config_of(enum cpu_model model, unsigned cpus)
{
    return (struct cpuid_config){.model = model,
                                 .cpus = cpus,
                                 .tsc_hz = 2999998000,
                                 .x2apic = true,
                                 .kvm_features = 0x01000009,
                                 .kvm_hints = 1};
}

static int table_on(const struct fake_host *fake, uint64_t xcr0, enum cpu_model model,
                    unsigned cpus, struct cpuid_table **ret_table)
{
    struct cpuid_host host = {fake_query, (void *)fake, xcr0};
    struct cpuid_config config = config_of(model, cpus);
    return cpuid_table_new_for_host(&config, &host, ret_table);
}

static struct cpuid_result ask(const struct cpuid_table *table, uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_result result;
    cpuid_query(table, 0, leaf, subleaf, 0, XCR0_X87, &result);
    return result;
}

static void test_names(void **state)
{
    enum cpu_model model;
    assert_int_equal(cpu_model_parse("v2", &model), 0);
    assert_int_equal(model, CPU_MODEL_V2);
    assert_int_equal(cpu_model_parse("host", &model), 0);
    assert_int_equal(model, CPU_MODEL_HOST);
    assert_int_equal(cpu_model_parse("v4", &model), -EINVAL);
    assert_non_null(strstr(trail_text(), "v2, v3 or host"));
}

/* Each row of the list is there once, and a reason stands exactly with what is left out. */
static void test_list(void **state)
{
    for (unsigned i = 0; i < cpuid_feature_count; i++) {
        const struct feature *feature = &cpuid_features[i];
        assert_true((feature->policy == POLICY_LEFT_OUT) == (feature->reason != NULL));
        for (unsigned k = i + 1; k < cpuid_feature_count; k++) {
            assert_false(feature->word == cpuid_features[k].word &&
                         feature->bit == cpuid_features[k].bit);
        }
    }
    assert_int_equal(cpuid_isa_count, ZYDIS_ISA_SET_MAX_VALUE + 1);
}

/* The models on a host that has everything: nothing unlisted shines through. */
static void test_left_out(void **state)
{
    for (int model = 0; model < CPU_MODEL_COUNT; model++) {
        struct cpuid_table *table;
        assert_int_equal(table_on(&everything, xcr0_everything, model, 2, &table), 0);
        uint32_t listed[WORD_COUNT] = {[WORD_1_EDX] = 1u << 28};
        for (unsigned i = 0; i < cpuid_feature_count; i++) {
            const struct feature *feature = &cpuid_features[i];
            if (feature->policy != POLICY_LEFT_OUT) {
                listed[feature->word] |= 1u << feature->bit;
            }
        }
        for (int word = 0; word < WORD_COUNT; word++) {
            const struct word_place *place = &cpuid_word_places[word];
            struct cpuid_result result = ask(table, place->leaf, place->subleaf);
            const uint32_t registers[] = {result.eax, result.ebx, result.ecx, result.edx};
            assert_int_equal(registers[place->reg] & ~listed[word], 0);
        }
        assert_false(cpuid_has(table, FEATURE_SMAP) || cpuid_has(table, FEATURE_SMEP));
        cpuid_table_free(table);
    }
}

/* v2 and v3 are what the System V ABI calls x86-64-v2 and -v3, whatever else the host has. */
static void test_levels(void **state)
{
    struct cpuid_table *v2, *v3;
    assert_int_equal(table_on(&everything, xcr0_everything, CPU_MODEL_V2, 1, &v2), 0);
    assert_int_equal(table_on(&everything, xcr0_everything, CPU_MODEL_V3, 1, &v3), 0);
    uint32_t ecx_v2 = 1u << 0 | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23;
    uint32_t ecx_v3 = 1u << 12 | 1u << 22 | 1u << 26 | 1u << 28 | 1u << 29;
    assert_int_equal(ask(v2, 1, 0).ecx & (ecx_v2 | ecx_v3), ecx_v2);
    assert_int_equal(ask(v3, 1, 0).ecx & (ecx_v2 | ecx_v3), ecx_v2 | ecx_v3);
    uint32_t ebx_v3 = 1u << 3 | 1u << 5 | 1u << 8;
    assert_int_equal(ask(v2, 7, 0).ebx & ebx_v3, 0);
    assert_int_equal(ask(v3, 7, 0).ebx & ebx_v3, ebx_v3);
    assert_int_equal(ask(v3, 7, 0).ebx & 1u << 16, 0);
    assert_int_equal(ask(v3, 0x80000001, 0).ecx & 0x21, 0x21);
    assert_int_equal(cpuid_xcr0_allowed(v2), 0);
    assert_int_equal(cpuid_xcr0_allowed(v3), XCR0_X87 | XCR0_SSE | XCR0_AVX);
    assert_int_equal(cpuid_physical_bits(v2), 40);
    assert_int_equal(cpuid_signature(v2), 0x30661);
    assert_false(cpuid_has(v2, FEATURE_SPEC_CTRL));
    assert_int_equal(cpuid_arch_capabilities(v2) & 3, 1); /* RDCL_NO, not IBRS_ALL */
    assert_true(cpuid_cr4_allowed(v3) & CR4_OSXSAVE);
    assert_false(cpuid_cr4_allowed(v2) & (CR4_OSXSAVE | CR4_SMAP | CR4_VME));
    cpuid_table_free(v2);
    cpuid_table_free(v3);
}

static void test_missing(void **state)
{
    struct fake_host fake = everything;
    struct cpuid_table *table;
    fake.words[WORD_7_EBX] &= ~(1u << 8);
    fake.words[WORD_1_ECX] &= ~(1u << 22);
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_V3, 1, &table), -ENOTSUP);
    assert_non_null(strstr(trail_text(), "movbe bmi2"));
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_V2, 1, &table), 0);
    cpuid_table_free(table);
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_HOST, 1, &table), 0);
    assert_false(cpuid_has(table, FEATURE_BMI2));
    cpuid_table_free(table);
    /* A host whose kernel has AVX off has no AVX, whatever its CPUID says. */
    assert_int_equal(table_on(&everything, 3, CPU_MODEL_V3, 1, &table), -ENOTSUP);
    assert_non_null(strstr(trail_text(), "avx"));
    assert_int_equal(table_on(&everything, 3, CPU_MODEL_HOST, 1, &table), 0);
    assert_false(cpuid_has(table, FEATURE_AVX) || cpuid_has(table, FEATURE_AVX512F));
    assert_int_equal(cpuid_xcr0_allowed(table), 3);
    assert_int_equal(ask(table, 7, 0).ecx & (1u << 9 | 1u << 11), 0); /* VAES, AVX512_VNNI */
    cpuid_table_free(table);
}

/* AVX-512: only as a whole, and only if its registers fit in the area of cpu_state. */
static void test_avx512(void **state)
{
    struct cpuid_table *table;
    assert_int_equal(table_on(&everything, xcr0_everything, CPU_MODEL_HOST, 1, &table), 0);
    assert_true(cpuid_has(table, FEATURE_AVX512F));
    assert_int_equal(cpuid_arch_capabilities(table) & 3, 3);
    assert_int_equal(cpuid_xcr0_allowed(table), XCR0_KNOWN);
    assert_int_equal(ask(table, 0xd, 0).ecx, 1088 + 64 + 512 + 1024);
    assert_int_equal(ask(table, 0xd, 6).ebx, 1152);
    assert_true(cpuid_offers_isa(table, ZYDIS_ISA_SET_AVX512F_512));
    cpuid_table_free(table);

    struct fake_host fake = everything;
    fake.opmask_offset = 2000;
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_HOST, 1, &table), 0);
    assert_false(cpuid_has(table, FEATURE_AVX512F));
    assert_true(cpuid_has(table, FEATURE_AVX2));
    assert_false(cpuid_offers_isa(table, ZYDIS_ISA_SET_AVX512_VNNI_512));
    cpuid_table_free(table);

    fake = everything;
    fake.words[WORD_7_EBX] &= ~(1u << 31); /* no AVX512VL */
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_HOST, 1, &table), 0);
    assert_false(cpuid_has(table, FEATURE_AVX512F));
    cpuid_table_free(table);
}

static void test_topology(void **state)
{
    static const struct {
        unsigned cpus, bits;
    } cases[] = {{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {64, 6}, {128, 7}};
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct cpuid_table *table;
        unsigned cpus = cases[i].cpus;
        assert_int_equal(table_on(&everything, 0x7, CPU_MODEL_V3, cpus, &table), 0);
        struct cpuid_result result;
        cpuid_query(table, cpus - 1, 1, 0, 0, 0, &result);
        assert_int_equal(result.ebx >> 24, cpus - 1);
        assert_int_equal(result.ebx >> 16 & 0xff, 1u << cases[i].bits);
        assert_int_equal(result.edx >> 28 & 1, cpus > 1);
        for (uint32_t leaf = 0xb; leaf <= 0x1f; leaf += 0x14) {
            cpuid_query(table, cpus - 1, leaf, 0, 0, 0, &result);
            assert_int_equal(result.eax, 0);
            assert_int_equal(result.ebx, 1);
            assert_int_equal(result.ecx, 1 << 8);
            assert_int_equal(result.edx, cpus - 1);
            cpuid_query(table, cpus - 1, leaf, 1, 0, 0, &result);
            assert_int_equal(result.eax, cases[i].bits);
            assert_int_equal(result.ebx, cpus);
            assert_int_equal(result.ecx, 2 << 8 | 1);
            cpuid_query(table, cpus - 1, leaf, 2, 0, 0, &result);
            assert_int_equal(result.eax | result.ebx, 0);
            assert_int_equal(result.ecx, 2);
        }
        /* Caches: private up to the second level, the third shared by all. */
        for (uint32_t n = 0; n < 4; n++) {
            struct cpuid_result cache = ask(table, 4, n);
            assert_int_equal((cache.eax >> 14 & 0xfff) + 1, n < 3 ? 1 : 1 << cases[i].bits);
            assert_int_equal((cache.eax >> 26) + 1, cases[i].bits > 6 ? 64 : 1 << cases[i].bits);
        }
        assert_int_equal(ask(table, 4, 4).eax & 0x1f, 0);
        cpuid_table_free(table);
    }
    struct cpuid_table *table;
    assert_int_equal(table_on(&everything, 0x7, CPU_MODEL_V3, 0, &table), -EINVAL);
    assert_int_equal(table_on(&everything, 0x7, CPU_MODEL_V3, 129, &table), -EINVAL);
}

static void test_frequencies(void **state)
{
    static const uint64_t rates[] = {
        1000000000, 1996253000, 2000008000, 2099998741, 2999998000, 4500001000, 5999999000,
    };
    for (size_t i = 0; i < ARRAY_SIZE(rates); i++) {
        struct cpuid_host host = {fake_query, (void *)&everything, 7};
        struct cpuid_config config = config_of(CPU_MODEL_V2, 1);
        config.tsc_hz = rates[i];
        struct cpuid_table *table;
        assert_int_equal(cpuid_table_new_for_host(&config, &host, &table), 0);
        struct cpuid_result crystal = ask(table, 0x15, 0);
        /* As Linux computes it, in 32 bits. */
        assert_in_range((uint64_t)(crystal.ecx / 1000) * crystal.ebx, 0, UINT32_MAX);
        uint32_t khz = crystal.ecx / 1000 * crystal.ebx / crystal.eax;
        assert_in_range(khz, rates[i] / 1000 - 10, rates[i] / 1000 + 10);
        assert_int_equal(crystal.ecx, 25000000);
        struct cpuid_result timing = ask(table, 0x40000010, 0);
        assert_int_equal(timing.eax, rates[i] / 1000);
        assert_int_equal(timing.ebx, 25000);
        assert_int_equal(ask(table, 0x16, 0).eax, (rates[i] + 500000) / 1000000);
        cpuid_table_free(table);
    }
}

static void test_monitor_leaves(void **state)
{
    struct cpuid_table *table;
    assert_int_equal(table_on(&everything, 7, CPU_MODEL_V2, 1, &table), 0);
    struct cpuid_result result = ask(table, 0x40000000, 0);
    char signature[13] = "";
    store_le32(signature, result.ebx);
    store_le32(signature + 4, result.ecx);
    store_le32(signature + 8, result.edx);
    assert_string_equal(signature, "KVMKVMKVM");
    assert_int_equal(result.eax, 0x40000010);
    assert_int_equal(ask(table, 0x40000001, 0).eax, 0x01000009);
    assert_int_equal(ask(table, 0x40000001, 0).edx, 1);
    assert_int_equal(ask(table, 0x40000002, 0).eax, 0);
    char brand[49] = "";
    for (int i = 0; i < 3; i++) {
        result = ask(table, 0x80000002 + i, 0);
        memcpy(brand + 16 * i, &result, 16);
    }
    assert_string_equal(brand, "Doppel Virtual CPU (v2)");
    cpuid_table_free(table);
}

/* CR4.OSXSAVE and XCR0 shine through. */
static void test_state_dependent(void **state)
{
    struct cpuid_table *table;
    struct cpuid_result result;
    assert_int_equal(table_on(&everything, 7, CPU_MODEL_V3, 1, &table), 0);
    assert_int_equal(ask(table, 1, 0).ecx >> 27 & 1, 0);
    cpuid_query(table, 0, 1, 0, CR4_OSXSAVE, 7, &result);
    assert_int_equal(result.ecx >> 27 & 1, 1);
    assert_int_equal(ask(table, 0xd, 0).ebx, 576);
    cpuid_query(table, 0, 0xd, 0, CR4_OSXSAVE, 7, &result);
    assert_int_equal(result.eax, 7);
    assert_int_equal(result.ebx, 832);
    assert_int_equal(result.ecx, 832);
    assert_int_equal(ask(table, 0xd, 1).eax, 0);
    assert_int_equal(ask(table, 0xd, 2).eax, 256);
    /* Beyond the last leaf: the last basic one. */
    result = ask(table, 0x7fffffff, 0);
    assert_int_equal(result.ebx, ask(table, 0x1f, 0).ebx);
    assert_int_equal(ask(table, 0x80000009, 1).ebx, ask(table, 0x1f, 1).ebx);
    cpuid_table_free(table);
}

static void test_amd_host(void **state)
{
    struct fake_host fake = everything;
    fake.is_amd = true;
    fake.opmask_offset = 832;
    struct cpuid_table *table;
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_V3, 1, &table), 0);
    assert_int_equal(cpuid_vendor(table), CPU_VENDOR_INTEL);
    assert_false(cpuid_offers_isa(table, ZYDIS_ISA_SET_AMD));
    cpuid_table_free(table);
    assert_int_equal(table_on(&fake, xcr0_everything, CPU_MODEL_HOST, 4, &table), 0);
    assert_int_equal(cpuid_vendor(table), CPU_VENDOR_AMD);
    assert_true(cpuid_offers_isa(table, ZYDIS_ISA_SET_AMD));
    assert_int_equal(cpuid_arch_capabilities(table), 0);
    assert_int_equal(ask(table, 7, 0).edx >> 29 & 1, 0);
    assert_int_equal(ask(table, 7, 0).ebx & 0x2040, 0x2040); /* x87 pointers, on any host */
    assert_int_equal(ask(table, 0x80000000, 0).eax, 0x80000021);
    assert_int_equal(ask(table, 0x80000021, 0).eax >> 8 & 1, 1);
    assert_true(cpuid_efer_allowed(table) & EFER_AIBRSE);
    assert_int_equal(ask(table, 0x80000001, 0).edx & 0x0183f3ff, ask(table, 1, 0).edx & 0x0183f3ff);
    assert_int_equal(ask(table, 0x80000008, 0).ecx, 2 << 12 | 3);
    assert_int_equal(ask(table, 0xd, 5).ebx, 832);
    assert_int_equal(ask(table, 0x7fffffff, 0).ebx, 0);
    cpuid_table_free(table);
}

/* Instructions that are offered with no feature, with a feature, and never. */
static void test_isa(void **state)
{
    static const struct {
        int isa;
        bool v2, v3;
    } cases[] = {
        {ZYDIS_ISA_SET_I86, true, true},
        {ZYDIS_ISA_SET_LONGMODE, true, true},
        {ZYDIS_ISA_SET_SSE2, true, true},
        {ZYDIS_ISA_SET_FAT_NOP, true, true},
        {ZYDIS_ISA_SET_SSE42, true, true},
        {ZYDIS_ISA_SET_POPCNT, true, true},
        {ZYDIS_ISA_SET_CMPXCHG16B, true, true},
        {ZYDIS_ISA_SET_RDTSCP, true, true},
        {ZYDIS_ISA_SET_AVX, false, true},
        {ZYDIS_ISA_SET_AVX2GATHER, false, true},
        {ZYDIS_ISA_SET_BMI1, false, true},
        {ZYDIS_ISA_SET_XSAVE, false, true},
        {ZYDIS_ISA_SET_MOVBE, false, true},
        {ZYDIS_ISA_SET_AVX512F_512, false, false},
        {ZYDIS_ISA_SET_AES, false, false},
        {ZYDIS_ISA_SET_RDRAND, false, false},
        {ZYDIS_ISA_SET_XSAVEOPT, false, false},
        {ZYDIS_ISA_SET_XSAVES, false, false},
        {ZYDIS_ISA_SET_MONITOR, false, false},
        {ZYDIS_ISA_SET_SMAP, false, false},
        {ZYDIS_ISA_SET_CET, false, false},
        {ZYDIS_ISA_SET_VTX, false, false},
        {ZYDIS_ISA_SET_AMD3DNOW, false, false},
        {ZYDIS_ISA_SET_XOP, false, false},
        {ZYDIS_ISA_SET_INVALID, false, false},
        {-1, false, false},
        {ZYDIS_ISA_SET_MAX_VALUE + 1, false, false},
    };
    struct cpuid_table *v2, *v3;
    assert_int_equal(table_on(&everything, xcr0_everything, CPU_MODEL_V2, 1, &v2), 0);
    assert_int_equal(table_on(&everything, xcr0_everything, CPU_MODEL_V3, 1, &v3), 0);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(cpuid_offers_isa(v2, cases[i].isa), cases[i].v2);
        assert_int_equal(cpuid_offers_isa(v3, cases[i].isa), cases[i].v3);
    }
    cpuid_table_free(v2);
    cpuid_table_free(v3);
}

/* The real host: what it has, the `host` model can be made of. */
static void test_this_host(void **state)
{
    struct cpuid_config config = config_of(CPU_MODEL_HOST, 2);
    struct cpuid_table *table;
    assert_int_equal(cpuid_table_new(&config, &table), 0);
    assert_true(cpuid_has(table, FEATURE_NX));
    assert_in_range(ask(table, 0xd, 0).ecx, 0, XSAVE_AREA_SIZE);
    config.x2apic = false;
    cpuid_table_free(table);
    assert_int_equal(cpuid_table_new(&config, &table), 0);
    assert_false(cpuid_has(table, FEATURE_X2APIC));
    cpuid_table_free(table);
    cpuid_table_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_list),
        cmocka_unit_test(test_left_out),       cmocka_unit_test(test_levels),
        cmocka_unit_test(test_missing),        cmocka_unit_test(test_avx512),
        cmocka_unit_test(test_topology),       cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_monitor_leaves), cmocka_unit_test(test_state_dependent),
        cmocka_unit_test(test_amd_host),       cmocka_unit_test(test_isa),
        cmocka_unit_test(test_this_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
