/*
 * CPU models: a table is built once from the model and the host. Which features a model has is
 * written in cpuid_features.c, the answers to CPUID are in cpuid_leaves.c.
 */
#include "x86/cpuid.h"

#include <cpuid.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "x86/cpu_state.h"
#include "x86/cpuid_internal.h"

enum {
    /* Family 6, model 36H, stepping 1: see identity_fill(). */
    SIGNATURE_MODEL = 0x00030661,
    PHYSICAL_BITS = 40,
    CRYSTAL_HZ = 25000000,
    CPUS_MAX = 128, /* APIC ids have 8 bits, and so has the count of them in leaf 1 */
};

CLEANUP_DEFINE(struct cpuid_table, cpuid_table_free)

static const char *const model_names[CPU_MODEL_COUNT] = {
    [CPU_MODEL_V2] = "v2",
    [CPU_MODEL_V3] = "v3",
    [CPU_MODEL_HOST] = "host",
};

int cpu_model_parse(const char *name, enum cpu_model *ret_model)
{
    for (int i = 0; i < CPU_MODEL_COUNT; i++) {
        if (strcmp(name, model_names[i]) == 0) {
            *ret_model = i;
            return 0;
        }
    }
    return fail(-EINVAL, "there is no CPU model '%s': choose v2, v3 or host", name);
}

/* The host. */

static void query_native(void *owner, uint32_t leaf, uint32_t subleaf,
                         struct cpuid_result *ret_result)
{
    __cpuid_count(leaf, subleaf, ret_result->eax, ret_result->ebx, ret_result->ecx,
                  ret_result->edx);
}

/* Zero for leaves that the host does not have. */
static struct cpuid_result host_leaf(const struct cpuid_host *host, uint32_t leaf, uint32_t subleaf)
{
    struct cpuid_result result, range;
    host->query(host->owner, leaf & 0x80000000, 0, &range);
    if (leaf > range.eax) {
        return (struct cpuid_result){0};
    }
    host->query(host->owner, leaf, subleaf, &result);
    return result;
}

static uint32_t host_word(const struct cpuid_host *host, enum cpuid_word word)
{
    const struct word_place *place = &cpuid_word_places[word];
    if (place->subleaf > host_leaf(host, place->leaf, 0).eax && place->leaf == 7) {
        return 0;
    }
    struct cpuid_result result = host_leaf(host, place->leaf, place->subleaf);
    const uint32_t registers[] = {result.eax, result.ebx, result.ecx, result.edx};
    return registers[place->reg];
}

static uint64_t native_xcr0(void)
{
    struct cpuid_result result;
    query_native(NULL, 1, 0, &result);
    if (!(result.ecx & 1u << 27)) {
        return XCR0_X87 | XCR0_SSE;
    }
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool host_is_amd(const struct cpuid_host *host)
{
    struct cpuid_result result = host_leaf(host, 0, 0);
    char name[12];
    store_le32(name, result.ebx);
    store_le32(name + 4, result.edx);
    store_le32(name + 8, result.ecx);
    return memcmp(name, "AuthenticAMD", 12) == 0 || memcmp(name, "HygonGenuine", 12) == 0;
}

/* Building a table. */

static bool has_bit(const struct cpuid_table *table, enum cpuid_word word, unsigned bit)
{
    return table->words[word] >> bit & 1;
}

enum decision { OFFER_NOT, OFFER, OFFER_MISSING };

static enum decision feature_decide(const struct feature *feature, const struct cpuid_table *table,
                                    bool host_has)
{
    enum cpu_model model = table->config.model;
    switch ((enum feature_policy)feature->policy) {
    case POLICY_OWN:
        return OFFER;
    case POLICY_FACT:
        return host_has ? OFFER : OFFER_NOT;
    case POLICY_V2:
        return host_has ? OFFER : OFFER_MISSING;
    case POLICY_V3:
        if (model == CPU_MODEL_V3) {
            return host_has ? OFFER : OFFER_MISSING;
        }
        return model == CPU_MODEL_HOST && host_has ? OFFER : OFFER_NOT;
    case POLICY_HOST:
        return model == CPU_MODEL_HOST && host_has ? OFFER : OFFER_NOT;
    case POLICY_INTEL:
        return table->vendor == CPU_VENDOR_INTEL ? OFFER : OFFER_NOT;
    case POLICY_INTEL_HOST:
        return table->vendor == CPU_VENDOR_INTEL && model == CPU_MODEL_HOST ? OFFER : OFFER_NOT;
    case POLICY_AMD:
        return table->vendor == CPU_VENDOR_AMD ? OFFER : OFFER_NOT;
    case POLICY_LEFT_OUT:
        return OFFER_NOT;
    }
    return OFFER_NOT;
}

static int fail_missing(const struct cpuid_table *table, const char *missing)
{
    return fail(-ENOTSUP, "CPU model '%s' needs features that this host does not have:%s",
                model_names[table->config.model], missing);
}

static int words_fill(struct cpuid_table *table, const struct cpuid_host *host, uint64_t xcr0)
{
    char missing[256] = "";
    for (unsigned i = 0; i < cpuid_feature_count; i++) {
        const struct feature *feature = &cpuid_features[i];
        bool host_has = host_word(host, feature->word) >> feature->bit & 1;
        switch (feature_decide(feature, table, host_has && !(feature->xcr0 & ~xcr0))) {
        case OFFER:
            table->words[feature->word] |= 1u << feature->bit;
            break;
        case OFFER_MISSING:
            strncat(missing, " ", sizeof missing - strlen(missing) - 1);
            strncat(missing, feature->name, sizeof missing - strlen(missing) - 1);
            break;
        case OFFER_NOT:
            break;
        }
    }
    return missing[0] ? fail_missing(table, missing) : 0;
}

/*
 * The state components that the host can keep for a guest. AVX-512 counts only as a whole, with
 * the four features that everybody who has it has (not the first Xeon Phi), and where its
 * registers lie in the area that cpu_state has; AMX never fits.
 */
static uint64_t host_usable_xcr0(const struct cpuid_host *host)
{
    uint64_t usable = host->xcr0 & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
    uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    if (!xcr0_is_valid(host->xcr0 & XCR0_KNOWN, XCR0_KNOWN) ||
        (host_word(host, WORD_7_EBX) & avx512) != avx512) {
        return usable;
    }
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        struct cpuid_result area = host_leaf(host, 0xd, i);
        if (XCR0_AVX512 >> i & 1 && !range_fits(area.ebx, area.eax, XSAVE_AREA_SIZE)) {
            return usable;
        }
    }
    return host->xcr0 & XCR0_KNOWN;
}

/* Leaf 0DH: components lie where the host puts them, since the host's XSAVE stores them. */
static void xsave_fill(struct cpuid_table *table, const struct cpuid_host *host)
{
    table->xcr0_allowed = 0;
    if (!cpuid_has(table, FEATURE_XSAVE)) {
        return;
    }
    table->xcr0_allowed = XCR0_X87 | XCR0_SSE;
    table->xcr0_allowed |= cpuid_has(table, FEATURE_AVX) ? XCR0_AVX : 0;
    table->xcr0_allowed |= cpuid_has(table, FEATURE_AVX512F) ? XCR0_AVX512 : 0;
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        if (table->xcr0_allowed >> i & 1) {
            struct cpuid_result area = host_leaf(host, 0xd, i);
            table->xsave_size[i] = area.eax;
            table->xsave_offset[i] = area.ebx;
        }
    }
}

/* Leaf 4: caches that are sensible; `host` shows the sizes of an Intel host. */
static void caches_fill(struct cpuid_table *table, const struct cpuid_host *host)
{
    static const struct cpuid_result model_caches[CACHES] = {
        {0x121, 0x01c0003f, 63, 0},    /* L1 data: 32 KiB, 8 ways, lines of 64 */
        {0x122, 0x01c0003f, 63, 0},    /* L1 instruction: 32 KiB, 8 ways */
        {0x143, 0x03c0003f, 1023, 0},  /* L2: 1 MiB, 16 ways */
        {0x163, 0x03c0003f, 16383, 4}, /* L3: 16 MiB, 16 ways, shared, complex indexing */
    };
    memcpy(table->caches, model_caches, sizeof model_caches);
    if (table->config.model != CPU_MODEL_HOST || table->vendor != CPU_VENDOR_INTEL) {
        return;
    }
    for (unsigned i = 0; i < CACHES; i++) {
        struct cpuid_result cache = host_leaf(host, 4, i);
        if (!(cache.eax & 0x1f)) {
            return;
        }
        cache.eax &= 0x3fff; /* type, level, flags */
        table->caches[i] = cache;
    }
}

/*
 * Who the CPU says it is. v2 and v3 are an Intel CPU of family 6, model 36H (an in-order Atom):
 * operating systems know that model to be free of speculation faults altogether, so they neither
 * isolate page tables nor replace indirect branches nor refill return predictors at each switch,
 * which would cost a translator much and protect nothing (see cpuid_arch_capabilities). What it
 * can do is said by the feature bits, as always. `host` is the host's CPU by vendor and number.
 */
static void identity_fill(struct cpuid_table *table, const struct cpuid_host *host)
{
    if (table->config.model == CPU_MODEL_HOST) {
        table->vendor = host_is_amd(host) ? CPU_VENDOR_AMD : CPU_VENDOR_INTEL;
        table->signature = host_leaf(host, 1, 0).eax & 0x0fff3fff;
    } else {
        table->vendor = CPU_VENDOR_INTEL;
        table->signature = SIGNATURE_MODEL;
    }
    static const char brand[] = "Doppel Virtual CPU (";
    memcpy(table->brand, brand, sizeof brand);
    strcat(table->brand, model_names[table->config.model]);
    strcat(table->brand, ")");

    unsigned host_bits = host_leaf(host, 0x80000008, 0).eax & 0xff;
    table->physical_bits = PHYSICAL_BITS;
    if (host_bits >= 36 && host_bits < PHYSICAL_BITS) {
        table->physical_bits = host_bits;
    }
    while (1u << table->core_bits < table->config.cpus) {
        table->core_bits++;
    }
}

/*
 * The best approximation of TSC rate / crystal. Guests compute crystal kHz * numerator /
 * denominator in 32 bits, which bounds the numerator; what is lost is below 3 kHz for each GHz.
 */
static void crystal_fill(struct cpuid_table *table)
{
    uint64_t crystal = table->config.apic_hz, tsc = table->config.tsc_hz;
    uint64_t numerator_max = UINT32_MAX / (crystal / 1000), best_error = UINT64_MAX;
    for (uint64_t denominator = 1; denominator <= numerator_max; denominator++) {
        uint64_t numerator = (tsc * denominator + crystal / 2) / crystal;
        if (numerator > numerator_max) {
            break;
        }
        uint64_t is = numerator * crystal, wanted = tsc * denominator;
        uint64_t error = is > wanted ? is - wanted : wanted - is; /* at most half the crystal */
        if (numerator && (best_error == UINT64_MAX ||
                          error * table->crystal_denominator < best_error * denominator)) {
            best_error = error;
            table->crystal_numerator = (uint32_t)numerator;
            table->crystal_denominator = (uint32_t)denominator;
        }
    }
}

int cpuid_table_new_for_host(const struct cpuid_config *config, const struct cpuid_host *host,
                             struct cpuid_table **ret_table)
{
    if (config->cpus < 1 || config->cpus > CPUS_MAX) {
        return fail(-EINVAL, "a machine has 1 to %d CPUs, not %u", CPUS_MAX, config->cpus);
    }
    CLEANUP(cpuid_table_free) struct cpuid_table *table = calloc(1, sizeof *table);
    ASSERT(table);
    table->config = *config;
    table->config.apic_hz = config->apic_hz ? config->apic_hz : CRYSTAL_HZ;
    ASSERT(table->config.apic_hz >= 1000 && table->config.apic_hz <= UINT32_MAX);
    crystal_fill(table);
    identity_fill(table, host);
    int error = words_fill(table, host, host_usable_xcr0(host));
    if (error) {
        return error;
    }
    if (!config->x2apic) {
        table->words[WORD_1_ECX] &= ~(1u << 21);
    }
    if (config->cpus > 1) {
        table->words[WORD_1_EDX] |= 1u << 28; /* HTT: EBX has a count of APIC ids */
    }
    xsave_fill(table, host);
    caches_fill(table, host);
    *ret_table = TAKE(table);
    return 0;
}

int cpuid_table_new(const struct cpuid_config *config, struct cpuid_table **ret_table)
{
    struct cpuid_host host = {.query = query_native, .xcr0 = native_xcr0()};
    return cpuid_table_new_for_host(config, &host, ret_table);
}

void cpuid_table_free(struct cpuid_table *table)
{
    free(table);
}

/* Questions of engines. */

bool cpuid_has(const struct cpuid_table *table, enum cpu_feature feature)
{
    static const struct {
        uint8_t word, bit;
    } bits[FEATURE_COUNT] = {
        [FEATURE_XSAVE] = {WORD_1_ECX, 26},        [FEATURE_AVX] = {WORD_1_ECX, 28},
        [FEATURE_AVX2] = {WORD_7_EBX, 5},          [FEATURE_AVX512F] = {WORD_7_EBX, 16},
        [FEATURE_FSGSBASE] = {WORD_7_EBX, 0},      [FEATURE_PCID] = {WORD_1_ECX, 17},
        [FEATURE_INVPCID] = {WORD_7_EBX, 10},      [FEATURE_SMEP] = {WORD_7_EBX, 7},
        [FEATURE_SMAP] = {WORD_7_EBX, 20},         [FEATURE_UMIP] = {WORD_7_ECX, 2},
        [FEATURE_RDTSCP] = {WORD_EXT1_EDX, 27},    [FEATURE_RDPID] = {WORD_7_ECX, 22},
        [FEATURE_GIB_PAGES] = {WORD_EXT1_EDX, 26}, [FEATURE_NX] = {WORD_EXT1_EDX, 20},
        [FEATURE_X2APIC] = {WORD_1_ECX, 21},       [FEATURE_BMI1] = {WORD_7_EBX, 3},
        [FEATURE_BMI2] = {WORD_7_EBX, 8},          [FEATURE_LZCNT] = {WORD_EXT1_ECX, 5},
        [FEATURE_MOVBE] = {WORD_1_ECX, 22},        [FEATURE_RDRAND] = {WORD_1_ECX, 30},
        [FEATURE_RDSEED] = {WORD_7_EBX, 18},       [FEATURE_TSC_DEADLINE] = {WORD_1_ECX, 24},
        [FEATURE_SPEC_CTRL] = {WORD_7_EDX, 26},    [FEATURE_AUTOMATIC_IBRS] = {WORD_EXT21_EAX, 8},
    };
    return has_bit(table, bits[feature].word, bits[feature].bit);
}

enum cpu_vendor cpuid_vendor(const struct cpuid_table *table)
{
    return table->vendor;
}

uint32_t cpuid_signature(const struct cpuid_table *table)
{
    return table->signature;
}

uint64_t cpuid_tsc_hz(const struct cpuid_table *table)
{
    return table->config.tsc_hz;
}

unsigned cpuid_physical_bits(const struct cpuid_table *table)
{
    return table->physical_bits;
}

uint64_t cpuid_xcr0_allowed(const struct cpuid_table *table)
{
    return table->xcr0_allowed;
}

uint64_t cpuid_cr4_allowed(const struct cpuid_table *table)
{
    static const struct {
        uint32_t bit;
        enum cpu_feature feature;
    } optional[] = {
        {CR4_UMIP, FEATURE_UMIP},     {CR4_FSGSBASE, FEATURE_FSGSBASE}, {CR4_PCIDE, FEATURE_PCID},
        {CR4_OSXSAVE, FEATURE_XSAVE}, {CR4_SMEP, FEATURE_SMEP},         {CR4_SMAP, FEATURE_SMAP},
    };
    uint64_t allowed = CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE |
                       CR4_OSFXSR | CR4_OSXMMEXCPT;
    for (unsigned i = 0; i < ARRAY_SIZE(optional); i++) {
        allowed |= cpuid_has(table, optional[i].feature) ? optional[i].bit : 0;
    }
    return allowed;
}

uint64_t cpuid_efer_allowed(const struct cpuid_table *table)
{
    uint64_t allowed = EFER_SCE | EFER_LME | EFER_LMA;
    allowed |= cpuid_has(table, FEATURE_NX) ? EFER_NXE : 0;
    allowed |= cpuid_has(table, FEATURE_AUTOMATIC_IBRS) ? EFER_AIBRSE : 0;
    return allowed;
}

uint64_t cpuid_arch_capabilities(const struct cpuid_table *table)
{
    /* SDM volume 4, table 2-2, register 10AH. */
    enum {
        RDCL_NO = 1u << 0,
        IBRS_ALL = 1u << 1,
        SKIP_L1DFL_VMENTRY = 1u << 3,
        SSB_NO = 1u << 4,
        MDS_NO = 1u << 5,
        IF_PSCHANGE_MC_NO = 1u << 6,
        TAA_NO = 1u << 8,
        SBDR_SSDP_NO = 1u << 13,
        FBSDP_NO = 1u << 14,
        PSDP_NO = 1u << 15,
        BHI_NO = 1u << 20,
        PBRSB_NO = 1u << 24,
        GDS_NO = 1u << 26,
        RFDS_NO = 1u << 27,
    };
    static const uint64_t its_no = 1ull << 62;
    if (table->vendor != CPU_VENDOR_INTEL) {
        return 0;
    }
    uint64_t ibrs_all = cpuid_has(table, FEATURE_SPEC_CTRL) ? IBRS_ALL : 0;
    return ibrs_all | RDCL_NO | SKIP_L1DFL_VMENTRY | SSB_NO | MDS_NO | IF_PSCHANGE_MC_NO | TAA_NO |
           SBDR_SSDP_NO | FBSDP_NO | PSDP_NO | BHI_NO | PBRSB_NO | GDS_NO | RFDS_NO | its_no;
}

bool cpuid_offers_isa(const struct cpuid_table *table, int zydis_isa_set)
{
    if (zydis_isa_set < 0 || (unsigned)zydis_isa_set >= cpuid_isa_count) {
        return false;
    }
    const struct isa_need *need = &cpuid_isa_needs[zydis_isa_set];
    switch ((enum need_kind)need->kind) {
    case NEED_NONE:
        return true;
    case NEED_BIT:
        return has_bit(table, need->word, need->bit);
    case NEED_AMD:
        return table->vendor == CPU_VENDOR_AMD;
    case NEED_NEVER:
        return false;
    }
    return false;
}
