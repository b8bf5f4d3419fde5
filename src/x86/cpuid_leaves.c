/*
 * The answers of CPUID, leaf by leaf, from a finished table. SDM volume 2, CPUID; AMD APM volume 3,
 * appendix E. General registers only: guests run CPUID with their vector state in the CPU.
 */
#include "base/bytes.h"
#include "x86/cpu_state.h"
#include "x86/cpuid_internal.h"

enum {
    LINEAR_BITS = 48,
    LEAF_LAST_INTEL = 0x1f,
    LEAF_LAST_AMD = 0x10,
    LEAF_KVM = 0x40000000,
    LEAF_KVM_LAST = 0x40000010,
    LEAF_EXTENDED = 0x80000000,
    LEAF_EXTENDED_LAST_INTEL = 0x80000008,
    LEAF_EXTENDED_LAST_AMD = 0x80000021,
};

static struct cpuid_result leaf_vendor(const struct cpuid_table *table, uint32_t last)
{
    const char *name = table->vendor == CPU_VENDOR_AMD ? "AuthenticAMD" : "GenuineIntel";
    return (struct cpuid_result){last, load_le32(name), load_le32(name + 8), load_le32(name + 4)};
}

static struct cpuid_result leaf_features(const struct cpuid_table *table, unsigned vcpu,
                                         uint64_t cr4)
{
    struct cpuid_result result = {
        .eax = table->signature,
        .ebx = vcpu << 24 | 1u << table->core_bits << 16 | 8 << 8, /* CLFLUSH: 8 quadwords */
        .ecx = table->words[WORD_1_ECX],
        .edx = table->words[WORD_1_EDX],
    };
    if (cr4 & CR4_OSXSAVE) {
        result.ecx |= 1u << 27;
    }
    return result;
}

static struct cpuid_result leaf_caches(const struct cpuid_table *table, uint32_t subleaf)
{
    if (table->vendor != CPU_VENDOR_INTEL || subleaf >= CACHES) {
        return (struct cpuid_result){0};
    }
    struct cpuid_result result = table->caches[subleaf];
    unsigned level = result.eax >> 5 & 7;
    unsigned ids = 1u << table->core_bits;
    /* One thread per core; the last level is shared by the package. Six bits hold cores - 1. */
    result.eax |= (level >= 3 ? ids - 1 : 0) << 14;
    result.eax |= (ids > 64 ? 63 : ids - 1) << 26;
    return result;
}

static struct cpuid_result leaf_extended_features(const struct cpuid_table *table, uint32_t subleaf)
{
    switch (subleaf) {
    case 0:
        return (struct cpuid_result){1, table->words[WORD_7_EBX], table->words[WORD_7_ECX],
                                     table->words[WORD_7_EDX]};
    case 1:
        return (struct cpuid_result){.eax = table->words[WORD_7_1_EAX]};
    default:
        return (struct cpuid_result){0};
    }
}

/* Leaves 0BH and 1FH: one package, a core per CPU, a thread per core. */
static struct cpuid_result leaf_topology(const struct cpuid_table *table, unsigned vcpu,
                                         uint32_t subleaf)
{
    enum { LEVEL_THREAD = 1, LEVEL_CORE = 2 };
    struct cpuid_result result = {.ecx = subleaf & 0xff, .edx = vcpu};
    if (subleaf == 0) {
        result.ebx = 1;
        result.ecx |= LEVEL_THREAD << 8;
    } else if (subleaf == 1) {
        result.eax = table->core_bits;
        result.ebx = table->config.cpus;
        result.ecx |= LEVEL_CORE << 8;
    }
    return result;
}

/* Size of the area in standard format for these components. SDM volume 1, 13.2. */
static uint32_t xsave_area_size(const struct cpuid_table *table, uint64_t components)
{
    uint32_t size = 576;
    for (unsigned i = 2; i < XSAVE_COMPONENTS; i++) {
        uint32_t end = table->xsave_offset[i] + table->xsave_size[i];
        if (components >> i & 1 && end > size) {
            size = end;
        }
    }
    return size;
}

static struct cpuid_result leaf_xsave(const struct cpuid_table *table, uint32_t subleaf,
                                      uint64_t xcr0)
{
    if (subleaf == 0 && table->xcr0_allowed) {
        return (struct cpuid_result){
            .eax = (uint32_t)table->xcr0_allowed,
            .ebx = xsave_area_size(table, xcr0),
            .ecx = xsave_area_size(table, table->xcr0_allowed),
        };
    }
    if (subleaf >= 2 && subleaf < XSAVE_COMPONENTS) {
        return (struct cpuid_result){.eax = table->xsave_size[subleaf],
                                     .ebx = table->xsave_offset[subleaf]};
    }
    return (struct cpuid_result){0};
}

/* The APIC timer counts the crystal, too (SDM volume 3, 10.5.4): guests take its rate from here. */
static struct cpuid_result leaf_crystal(const struct cpuid_table *table)
{
    return (struct cpuid_result){
        table->crystal_denominator,
        table->crystal_numerator,
        (uint32_t)table->config.apic_hz,
        0,
    };
}

static struct cpuid_result leaf_frequency(const struct cpuid_table *table)
{
    uint32_t mhz = (table->config.tsc_hz + 500000) / 1000000;
    return (struct cpuid_result){mhz, mhz, 100, 0};
}

static struct cpuid_result query_basic(const struct cpuid_table *table, unsigned vcpu,
                                       uint32_t leaf, uint32_t subleaf, uint64_t cr4, uint64_t xcr0)
{
    bool is_intel = table->vendor == CPU_VENDOR_INTEL;
    switch (leaf) {
    case 0:
        return leaf_vendor(table, is_intel ? LEAF_LAST_INTEL : LEAF_LAST_AMD);
    case 1:
        return leaf_features(table, vcpu, cr4);
    case 2:
        /* One descriptor that says: ask leaf 4. */
        return (struct cpuid_result){.eax = is_intel ? 0x00feff01 : 0};
    case 4:
        return leaf_caches(table, subleaf);
    case 6:
        return (struct cpuid_result){.eax = table->words[WORD_6_EAX]};
    case 7:
        return leaf_extended_features(table, subleaf);
    case 0xd:
        return leaf_xsave(table, subleaf, xcr0);
    case 0x15:
        return leaf_crystal(table);
    case 0x16:
        return leaf_frequency(table);
    case 0xb:
    case 0x1f:
        return leaf_topology(table, vcpu, subleaf);
    default:
        return (struct cpuid_result){0};
    }
}

/* The leaves by which guests know a KVM-compatible monitor, and VMware's one with frequencies. */
static struct cpuid_result query_monitor(const struct cpuid_table *table, uint32_t leaf)
{
    static const char signature[12] = "KVMKVMKVM";
    switch (leaf) {
    case LEAF_KVM:
        return (struct cpuid_result){LEAF_KVM_LAST, load_le32(signature), load_le32(signature + 4),
                                     load_le32(signature + 8)};
    case LEAF_KVM + 1:
        return (struct cpuid_result){.eax = table->config.kvm_features,
                                     .edx = table->config.kvm_hints};
    case LEAF_KVM_LAST:
        return (struct cpuid_result){table->config.tsc_hz / 1000, table->config.apic_hz / 1000, 0,
                                     0};
    default:
        return (struct cpuid_result){0};
    }
}

static struct cpuid_result leaf_brand(const struct cpuid_table *table, unsigned part)
{
    const char *text = table->brand + part * 16;
    return (struct cpuid_result){load_le32(text), load_le32(text + 4), load_le32(text + 8),
                                 load_le32(text + 12)};
}

/* 80000001H of AMD CPUs repeats leaf 1 EDX in these bits. AMD APM volume 3, E.4.1. */
static const uint32_t amd_repeated = 0x0183f3ff;

static struct cpuid_result query_extended(const struct cpuid_table *table, uint32_t leaf)
{
    bool is_amd = table->vendor == CPU_VENDOR_AMD;
    switch (leaf) {
    case 0x80000000: {
        struct cpuid_result result = leaf_vendor(table, LEAF_EXTENDED_LAST_AMD);
        return is_amd ? result : (struct cpuid_result){.eax = LEAF_EXTENDED_LAST_INTEL};
    }
    case 0x80000001: {
        struct cpuid_result result = {0, 0, table->words[WORD_EXT1_ECX],
                                      table->words[WORD_EXT1_EDX]};
        if (is_amd) {
            result.eax = table->signature;
            result.ecx |= table->config.cpus > 1 ? 1u << 1 : 0; /* CmpLegacy: cores, no threads */
            result.edx |= table->words[WORD_1_EDX] & amd_repeated;
        }
        return result;
    }
    case 0x80000002:
    case 0x80000003:
    case 0x80000004:
        return leaf_brand(table, leaf - 0x80000002);
    case 0x80000005: /* L1: 32 KiB data, 32 KiB instruction, 8 ways, lines of 64 */
        return (struct cpuid_result){0, 0, is_amd ? 0x20080140 : 0, is_amd ? 0x20080140 : 0};
    case 0x80000006: /* L2: 1 MiB, 16 ways; L3 (AMD): 16 MiB, 16 ways */
        return (struct cpuid_result){0, 0, is_amd ? 0x04008140 : 0x04008040,
                                     is_amd ? 0x00808140 : 0};
    case 0x80000007:
        return (struct cpuid_result){.edx = table->words[WORD_EXT7_EDX]};
    case 0x80000008:
        return (struct cpuid_result){
            .eax = LINEAR_BITS << 8 | table->physical_bits,
            .ebx = table->words[WORD_EXT8_EBX],
            .ecx = is_amd ? table->core_bits << 12 | (table->config.cpus - 1) : 0,
        };
    case 0x80000021:
        return (struct cpuid_result){.eax = is_amd ? table->words[WORD_EXT21_EAX] : 0};
    default:
        return (struct cpuid_result){0};
    }
}

void cpuid_query(const struct cpuid_table *table, unsigned vcpu, uint32_t leaf, uint32_t subleaf,
                 uint64_t cr4, uint64_t xcr0, struct cpuid_result *ret_result)
{
    bool is_intel = table->vendor == CPU_VENDOR_INTEL;
    if (leaf >> 8 == LEAF_KVM >> 8) {
        *ret_result = query_monitor(table, leaf);
        return;
    }
    if (leaf >= LEAF_EXTENDED) {
        uint32_t last = is_intel ? LEAF_EXTENDED_LAST_INTEL : LEAF_EXTENDED_LAST_AMD;
        if (leaf <= last) {
            *ret_result = query_extended(table, leaf);
            return;
        }
    } else if (leaf <= (uint32_t)(is_intel ? LEAF_LAST_INTEL : LEAF_LAST_AMD)) {
        *ret_result = query_basic(table, vcpu, leaf, subleaf, cr4, xcr0);
        return;
    }
    /* Intel answers leaves beyond the last with the last basic one, AMD with zeros. */
    *ret_result = is_intel ? query_basic(table, vcpu, LEAF_LAST_INTEL, subleaf, cr4, xcr0)
                           : (struct cpuid_result){0};
}
