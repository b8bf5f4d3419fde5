/*
 * What cpuid.c (leaves and queries) and cpuid_features.c (the lists of features) share.
 */
#pragma once

#include "x86/cpuid.h"

/* The registers of CPUID that hold one feature per bit. */
enum cpuid_word {
    WORD_1_ECX,
    WORD_1_EDX,
    WORD_6_EAX,
    WORD_7_EBX,
    WORD_7_ECX,
    WORD_7_EDX,
    WORD_7_1_EAX,
    WORD_EXT1_ECX, /* 80000001H */
    WORD_EXT1_EDX,
    WORD_EXT7_EDX,  /* 80000007H */
    WORD_EXT8_EBX,  /* 80000008H */
    WORD_EXT21_EAX, /* 80000021H */
    WORD_COUNT,
};

/* Who gets a feature, and what it asks of the host. */
enum feature_policy {
    POLICY_OWN,   /* done by the monitor itself: every model, any host */
    POLICY_FACT,  /* a fact about the host's execution units: every model, as the host has it */
    POLICY_V2,    /* run by the host: every model, and the host must have it */
    POLICY_V3,    /* likewise from v3 on; `host` has it if the host does */
    POLICY_HOST,  /* `host` only, if the host has it */
    POLICY_INTEL, /* the monitor's own, on models with an Intel vendor only */
    POLICY_INTEL_HOST, /* likewise, `host` only */
    POLICY_AMD,        /* the monitor's own, on models with an AMD vendor only */
    POLICY_LEFT_OUT,   /* no model, whatever the host has */
};

struct feature {
    uint8_t word; /* enum cpuid_word */
    uint8_t bit;
    uint8_t policy; /* enum feature_policy */
    const char *name;
    const char *reason; /* why it is left out */
    uint8_t xcr0;       /* state components that the host's kernel must have enabled for it */
};

extern const struct feature cpuid_features[];
extern const unsigned cpuid_feature_count;

/* Which leaf and subleaf a word lives in, and in which of its registers (0 = EAX). */
struct word_place {
    uint32_t leaf, subleaf;
    unsigned reg;
};
extern const struct word_place cpuid_word_places[WORD_COUNT];

/* What a model must have for a Zydis ISA set. */
enum need_kind {
    NEED_NEVER, /* no model offers it */
    NEED_NONE,  /* every model does */
    NEED_BIT,   /* those with the feature do */
    NEED_AMD,   /* those with an AMD vendor do */
};
struct isa_need {
    uint8_t kind; /* enum need_kind */
    uint8_t word;
    uint8_t bit;
};
extern const struct isa_need cpuid_isa_needs[];
extern const unsigned cpuid_isa_count;

enum { XSAVE_COMPONENTS = 8, CACHES = 4 };

struct cpuid_table {
    struct cpuid_config config;
    enum cpu_vendor vendor;
    uint32_t words[WORD_COUNT];
    uint32_t signature; /* leaf 1 EAX */
    unsigned physical_bits;
    unsigned core_bits; /* of an APIC id */
    uint64_t xcr0_allowed;
    uint32_t xsave_size[XSAVE_COMPONENTS]; /* leaf 0DH: from component 2 on */
    uint32_t xsave_offset[XSAVE_COMPONENTS];
    struct cpuid_result caches[CACHES]; /* leaf 4, without the topology */
    uint32_t crystal_numerator;         /* leaf 15H: TSC rate / crystal, 0 if it cannot be said */
    uint32_t crystal_denominator;
    char brand[48];
};
