/*
 * CPU models: what CPUID tells the guest, leaf by leaf, and what the host must have for it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cpuid_result {
    uint32_t eax, ebx, ecx, edx;
};

enum cpu_model { CPU_MODEL_V2, CPU_MODEL_V3, CPU_MODEL_HOST, CPU_MODEL_COUNT };

/* Facts that shape the leaves beside the model. */
struct cpuid_config {
    enum cpu_model model;
    unsigned cpus;
    uint64_t tsc_hz;
    bool x2apic;
};

/* A finished table for one VM; immutable, shared by its vCPUs. */
struct cpuid_table;

/* "v2", "v3", "host"; -EINVAL with the known names on the trail. */
int cpu_model_parse(const char *name, enum cpu_model *ret_model) __attribute__((warn_unused_result));

/* -ENOTSUP with the missing features by name on the trail if this host lacks what the model has. */
int cpuid_table_new(const struct cpuid_config *config, struct cpuid_table **ret_table)
    __attribute__((warn_unused_result));
void cpuid_table_free(struct cpuid_table *table);

/*
 * The answer for one vCPU. CR4.OSXSAVE, CR4.PKE and XCR0 shine through (leaves 1, 7 and 0DH), so
 * they are passed. Unknown leaves answer as an Intel CPU does (the highest basic leaf). General
 * registers only.
 */
void cpuid_query(const struct cpuid_table *table, unsigned vcpu, uint32_t leaf, uint32_t subleaf,
                 uint64_t cr4, uint64_t xcr0, struct cpuid_result *ret_result);

/* Features that engines and MSR checks ask for; named after the CPUID bits. */
enum cpu_feature {
    FEATURE_XSAVE, FEATURE_AVX, FEATURE_AVX2, FEATURE_AVX512F, FEATURE_FSGSBASE, FEATURE_PCID,
    FEATURE_INVPCID, FEATURE_SMEP, FEATURE_SMAP, FEATURE_UMIP, FEATURE_RDTSCP, FEATURE_RDPID,
    FEATURE_GIB_PAGES, FEATURE_NX, FEATURE_X2APIC, FEATURE_BMI1, FEATURE_BMI2, FEATURE_LZCNT,
    FEATURE_MOVBE, FEATURE_RDRAND, FEATURE_RDSEED, FEATURE_TSC_DEADLINE,
    FEATURE_COUNT,
};
bool cpuid_has(const struct cpuid_table *table, enum cpu_feature feature);
/* MAXPHYADDR of the guest. */
unsigned cpuid_physical_bits(const struct cpuid_table *table);
/* The XCR0 bits that the guest may set. */
uint64_t cpuid_xcr0_allowed(const struct cpuid_table *table);
/*
 * Does this model offer the instruction set extension (a Zydis ISA extension number)? An
 * instruction of an extension that is not offered is #UD, though the host could run it.
 */
bool cpuid_offers_isa(const struct cpuid_table *table, int zydis_isa_set);
