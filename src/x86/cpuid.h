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

/* Engines follow the vendor where the two differ (SYSCALL and SYSENTER outside 64-bit mode). */
enum cpu_vendor { CPU_VENDOR_INTEL, CPU_VENDOR_AMD };

enum cpu_model { CPU_MODEL_V2, CPU_MODEL_V3, CPU_MODEL_HOST, CPU_MODEL_COUNT };

/* Facts that shape the leaves beside the model. */
struct cpuid_config {
    enum cpu_model model;
    unsigned cpus;
    uint64_t tsc_hz;
    uint64_t apic_hz;      /* the crystal: input clock of the local APIC timer; 0: 25 MHz */
    uint32_t kvm_features; /* leaf 40000001H EAX: the paravirtual interfaces that the machine has */
    uint32_t kvm_hints;    /* leaf 40000001H EDX */
    bool x2apic;
};

/* Where the host's CPUID is asked; tests describe other hosts with it. */
struct cpuid_host {
    void (*query)(void *owner, uint32_t leaf, uint32_t subleaf, struct cpuid_result *ret_result);
    void *owner;
    uint64_t xcr0; /* what the host's kernel has enabled */
};

/* A finished table for one VM; immutable, shared by its vCPUs. */
struct cpuid_table;

/* "v2", "v3", "host"; -EINVAL with the known names on the trail. */
int cpu_model_parse(const char *name, enum cpu_model *ret_model)
    __attribute__((warn_unused_result));

/* -ENOTSUP with the missing features by name on the trail if this host lacks what the model has. */
int cpuid_table_new(const struct cpuid_config *config, struct cpuid_table **ret_table)
    __attribute__((warn_unused_result));
/* The same for a described host. */
int cpuid_table_new_for_host(const struct cpuid_config *config, const struct cpuid_host *host,
                             struct cpuid_table **ret_table) __attribute__((warn_unused_result));
/* NULL is fine. */
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
    FEATURE_XSAVE,
    FEATURE_AVX,
    FEATURE_AVX2,
    FEATURE_AVX512F,
    FEATURE_FSGSBASE,
    FEATURE_PCID,
    FEATURE_INVPCID,
    FEATURE_SMEP,
    FEATURE_SMAP,
    FEATURE_UMIP,
    FEATURE_RDTSCP,
    FEATURE_RDPID,
    FEATURE_GIB_PAGES,
    FEATURE_NX,
    FEATURE_X2APIC,
    FEATURE_BMI1,
    FEATURE_BMI2,
    FEATURE_LZCNT,
    FEATURE_MOVBE,
    FEATURE_RDRAND,
    FEATURE_RDSEED,
    FEATURE_TSC_DEADLINE,
    FEATURE_SPEC_CTRL,
    FEATURE_AUTOMATIC_IBRS,
    FEATURE_COUNT,
};
bool cpuid_has(const struct cpuid_table *table, enum cpu_feature feature);
enum cpu_vendor cpuid_vendor(const struct cpuid_table *table);
/* CPUID.1:EAX, which RDX holds after RESET and INIT. */
uint32_t cpuid_signature(const struct cpuid_table *table);
uint64_t cpuid_tsc_hz(const struct cpuid_table *table);
/* The bits that may be set in CR4, and in IA32_EFER (LMA included). */
uint64_t cpuid_cr4_allowed(const struct cpuid_table *table);
uint64_t cpuid_efer_allowed(const struct cpuid_table *table);
/*
 * IA32_ARCH_CAPABILITIES (Intel vendors; else 0): says that the CPU suffers from none of the known
 * speculation faults, so that the guest takes no cure that would slow a translator down and
 * protect nothing: what the host suffers from, the host and the monitor have to cure.
 */
uint64_t cpuid_arch_capabilities(const struct cpuid_table *table);
/* MAXPHYADDR of the guest. */
unsigned cpuid_physical_bits(const struct cpuid_table *table);
/* The XCR0 bits that the guest may set. */
uint64_t cpuid_xcr0_allowed(const struct cpuid_table *table);
/*
 * Does this model offer the instruction set (a ZydisISASet)? An instruction of a set that is not
 * offered is #UD, though the host could run it. Two instructions are not undefined without their
 * feature but older ones under another name, and must be told apart before this question:
 * LZCNT (FEATURE_LZCNT, else BSR) and TZCNT (FEATURE_BMI1, else BSF). VMCALL and VMMCALL are
 * hypercalls of the KVM leaves, although their sets are not offered.
 */
bool cpuid_offers_isa(const struct cpuid_table *table, int zydis_isa_set);
