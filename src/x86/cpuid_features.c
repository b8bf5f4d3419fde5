/*
 * The features of CPUID by name: which CPU models offer them, what they ask of the host, and
 * which are left out on purpose. A bit without a line here is never offered.
 */
#include "x86/cpuid_internal.h"

#include <Zydis/Zydis.h>

#include "base/bytes.h"
#include "x86/cpu_state.h"

const struct word_place cpuid_word_places[WORD_COUNT] = {
    [WORD_1_ECX] = {1, 0, 2},
    [WORD_1_EDX] = {1, 0, 3},
    [WORD_6_EAX] = {6, 0, 0},
    [WORD_7_EBX] = {7, 0, 1},
    [WORD_7_ECX] = {7, 0, 2},
    [WORD_7_EDX] = {7, 0, 3},
    [WORD_7_1_EAX] = {7, 1, 0},
    [WORD_EXT1_ECX] = {0x80000001, 0, 2},
    [WORD_EXT1_EDX] = {0x80000001, 0, 3},
    [WORD_EXT7_EDX] = {0x80000007, 0, 3},
    [WORD_EXT8_EBX] = {0x80000008, 0, 1},
    [WORD_EXT21_EAX] = {0x80000021, 0, 0},
};

#define OFFER(word_, bit_, policy_, name_)                                                         \
    {                                                                                              \
        .word = (word_), .bit = (bit_), .policy = POLICY_##policy_, .name = (name_)                \
    }
#define STATE(word_, bit_, policy_, name_, xcr0_)                                                  \
    {                                                                                              \
        .word = (word_), .bit = (bit_), .policy = POLICY_##policy_, .name = (name_),               \
        .xcr0 = (xcr0_)                                                                            \
    }
#define LEFT_OUT(word_, bit_, name_, reason_)                                                      \
    {                                                                                              \
        .word = (word_), .bit = (bit_), .policy = POLICY_LEFT_OUT, .name = (name_),                \
        .reason = (reason_)                                                                        \
    }

enum { XCR0_ALL_AVX512 = XCR0_AVX | XCR0_AVX512 };

/*
 * SDM volume 2, CPUID; AMD APM volume 3, appendix E. The order is that of the words and bits.
 * OSXSAVE, HTT, and the copies of leaf 1 in 80000001H of AMD CPUs are made in cpuid.c.
 */
const struct feature cpuid_features[] = {
    OFFER(WORD_1_ECX, 0, V2, "sse3"),
    OFFER(WORD_1_ECX, 1, HOST, "pclmulqdq"),
    LEFT_OUT(WORD_1_ECX, 2, "dtes64", "no debug store"),
    LEFT_OUT(WORD_1_ECX, 3, "monitor", "a waiting guest must use HLT to free the host CPU"),
    LEFT_OUT(WORD_1_ECX, 5, "vmx", "no nested virtualization"),
    LEFT_OUT(WORD_1_ECX, 6, "smx", "no measured launch"),
    OFFER(WORD_1_ECX, 9, V2, "ssse3"),
    STATE(WORD_1_ECX, 12, V3, "fma", XCR0_AVX),
    OFFER(WORD_1_ECX, 13, V2, "cx16"),
    LEFT_OUT(WORD_1_ECX, 15, "pdcm", "no performance monitoring"),
    OFFER(WORD_1_ECX, 17, OWN, "pcid"),
    OFFER(WORD_1_ECX, 19, V2, "sse4.1"),
    OFFER(WORD_1_ECX, 20, V2, "sse4.2"),
    OFFER(WORD_1_ECX, 21, OWN, "x2apic"),
    OFFER(WORD_1_ECX, 22, V3, "movbe"),
    OFFER(WORD_1_ECX, 23, V2, "popcnt"),
    OFFER(WORD_1_ECX, 24, OWN, "tsc_deadline"),
    OFFER(WORD_1_ECX, 25, HOST, "aes"),
    STATE(WORD_1_ECX, 26, V3, "xsave", XCR0_X87),
    STATE(WORD_1_ECX, 28, V3, "avx", XCR0_AVX),
    STATE(WORD_1_ECX, 29, V3, "f16c", XCR0_AVX),
    OFFER(WORD_1_ECX, 30, HOST, "rdrand"),
    OFFER(WORD_1_ECX, 31, OWN, "hypervisor"),

    OFFER(WORD_1_EDX, 0, OWN, "fpu"),
    LEFT_OUT(WORD_1_EDX, 1, "vme", "64-bit systems have no virtual-8086 mode"),
    OFFER(WORD_1_EDX, 2, OWN, "de"),
    OFFER(WORD_1_EDX, 3, OWN, "pse"),
    OFFER(WORD_1_EDX, 4, OWN, "tsc"),
    OFFER(WORD_1_EDX, 5, OWN, "msr"),
    OFFER(WORD_1_EDX, 6, OWN, "pae"),
    OFFER(WORD_1_EDX, 7, OWN, "mce"),
    OFFER(WORD_1_EDX, 8, OWN, "cx8"),
    OFFER(WORD_1_EDX, 9, OWN, "apic"),
    OFFER(WORD_1_EDX, 11, OWN, "sep"),
    OFFER(WORD_1_EDX, 12, OWN, "mtrr"),
    OFFER(WORD_1_EDX, 13, OWN, "pge"),
    OFFER(WORD_1_EDX, 14, OWN, "mca"),
    OFFER(WORD_1_EDX, 15, OWN, "cmov"),
    OFFER(WORD_1_EDX, 16, OWN, "pat"),
    OFFER(WORD_1_EDX, 17, OWN, "pse36"),
    OFFER(WORD_1_EDX, 19, OWN, "clflush"),
    LEFT_OUT(WORD_1_EDX, 21, "ds", "no debug store"),
    LEFT_OUT(WORD_1_EDX, 22, "acpi", "no thermal sensor"),
    OFFER(WORD_1_EDX, 23, OWN, "mmx"),
    OFFER(WORD_1_EDX, 24, OWN, "fxsr"),
    OFFER(WORD_1_EDX, 25, OWN, "sse"),
    OFFER(WORD_1_EDX, 26, OWN, "sse2"),
    OFFER(WORD_1_EDX, 27, OWN, "ss"),

    OFFER(WORD_6_EAX, 2, OWN, "arat"),

    OFFER(WORD_7_EBX, 0, OWN, "fsgsbase"),
    OFFER(WORD_7_EBX, 1, OWN, "tsc_adjust"),
    LEFT_OUT(WORD_7_EBX, 2, "sgx", "no enclaves"),
    OFFER(WORD_7_EBX, 3, V3, "bmi1"),
    LEFT_OUT(WORD_7_EBX, 4, "hle", "a translated transaction would abort"),
    STATE(WORD_7_EBX, 5, V3, "avx2", XCR0_AVX),
    /* The engines show x87 opcode and operand for exceptions only, and no selectors (bit 13). */
    OFFER(WORD_7_EBX, 6, OWN, "fdp_excptn_only"),
    LEFT_OUT(WORD_7_EBX, 7, "smep", "costs a translator flushes, guests work without"),
    OFFER(WORD_7_EBX, 8, V3, "bmi2"),
    /* A string instruction is checked once per page, a copy loop at each step: always prefer it. */
    OFFER(WORD_7_EBX, 9, OWN, "erms"),
    OFFER(WORD_7_EBX, 10, OWN, "invpcid"),
    LEFT_OUT(WORD_7_EBX, 11, "rtm", "a translated transaction would abort"),
    LEFT_OUT(WORD_7_EBX, 12, "rdt_m", "no resource monitoring"),
    OFFER(WORD_7_EBX, 13, OWN, "zero_fcs_fds"),
    LEFT_OUT(WORD_7_EBX, 14, "mpx", "withdrawn by its maker"),
    LEFT_OUT(WORD_7_EBX, 15, "rdt_a", "no resource allocation"),
    STATE(WORD_7_EBX, 16, HOST, "avx512f", XCR0_ALL_AVX512),
    STATE(WORD_7_EBX, 17, HOST, "avx512dq", XCR0_ALL_AVX512),
    OFFER(WORD_7_EBX, 18, HOST, "rdseed"),
    OFFER(WORD_7_EBX, 19, HOST, "adx"),
    LEFT_OUT(WORD_7_EBX, 20, "smap", "costs a translator two address spaces per AC value"),
    STATE(WORD_7_EBX, 21, HOST, "avx512ifma", XCR0_ALL_AVX512),
    OFFER(WORD_7_EBX, 23, HOST, "clflushopt"),
    OFFER(WORD_7_EBX, 24, HOST, "clwb"),
    LEFT_OUT(WORD_7_EBX, 25, "intel_pt", "no processor trace"),
    STATE(WORD_7_EBX, 28, HOST, "avx512cd", XCR0_ALL_AVX512),
    OFFER(WORD_7_EBX, 29, HOST, "sha"),
    STATE(WORD_7_EBX, 30, HOST, "avx512bw", XCR0_ALL_AVX512),
    STATE(WORD_7_EBX, 31, HOST, "avx512vl", XCR0_ALL_AVX512),

    STATE(WORD_7_ECX, 1, HOST, "avx512vbmi", XCR0_ALL_AVX512),
    OFFER(WORD_7_ECX, 2, OWN, "umip"),
    LEFT_OUT(WORD_7_ECX, 3, "pku", "a key check at every access costs a translator much"),
    LEFT_OUT(WORD_7_ECX, 5, "waitpkg", "a waiting guest must use HLT to free the host CPU"),
    STATE(WORD_7_ECX, 6, HOST, "avx512_vbmi2", XCR0_ALL_AVX512),
    LEFT_OUT(WORD_7_ECX, 7, "cet_ss", "translated returns have their own shadow"),
    OFFER(WORD_7_ECX, 8, HOST, "gfni"),
    STATE(WORD_7_ECX, 9, HOST, "vaes", XCR0_AVX),
    STATE(WORD_7_ECX, 10, HOST, "vpclmulqdq", XCR0_AVX),
    STATE(WORD_7_ECX, 11, HOST, "avx512_vnni", XCR0_ALL_AVX512),
    STATE(WORD_7_ECX, 12, HOST, "avx512_bitalg", XCR0_ALL_AVX512),
    LEFT_OUT(WORD_7_ECX, 13, "tme", "no memory encryption"),
    STATE(WORD_7_ECX, 14, HOST, "avx512_vpopcntdq", XCR0_ALL_AVX512),
    LEFT_OUT(WORD_7_ECX, 16, "la57", "a fifth level makes walks longer for nothing"),
    OFFER(WORD_7_ECX, 22, OWN, "rdpid"),
    LEFT_OUT(WORD_7_ECX, 23, "key_locker", "the host's wrapping key is not the guest's"),
    LEFT_OUT(WORD_7_ECX, 24, "bus_lock_detect", "split locks are the monitor's to handle"),
    LEFT_OUT(WORD_7_ECX, 25, "cldemote", "a hint without effect"),
    LEFT_OUT(WORD_7_ECX, 27, "movdiri", "device registers are emulated"),
    LEFT_OUT(WORD_7_ECX, 28, "movdir64b", "device registers are emulated"),
    LEFT_OUT(WORD_7_ECX, 29, "enqcmd", "device registers are emulated"),
    LEFT_OUT(WORD_7_ECX, 31, "pks", "as pku"),

    /* As ERMS, for short strings. */
    OFFER(WORD_7_EDX, 4, OWN, "fsrm"),
    LEFT_OUT(WORD_7_EDX, 5, "uintr", "no user interrupts"),
    STATE(WORD_7_EDX, 8, HOST, "avx512_vp2intersect", XCR0_ALL_AVX512),
    LEFT_OUT(WORD_7_EDX, 10, "md_clear", "the guest is told that it need not clear"),
    LEFT_OUT(WORD_7_EDX, 14, "serialize", "CPUID and IRET serialize"),
    LEFT_OUT(WORD_7_EDX, 16, "tsxldtrk", "as rtm"),
    LEFT_OUT(WORD_7_EDX, 18, "pconfig", "no memory encryption"),
    LEFT_OUT(WORD_7_EDX, 19, "arch_lbr", "no performance monitoring"),
    LEFT_OUT(WORD_7_EDX, 20, "cet_ibt", "checks at each indirect branch cost too much"),
    LEFT_OUT(WORD_7_EDX, 22, "amx_bf16", "the state of a CPU has no room for tiles"),
    STATE(WORD_7_EDX, 23, HOST, "avx512_fp16", XCR0_ALL_AVX512),
    LEFT_OUT(WORD_7_EDX, 24, "amx_tile", "the state of a CPU has no room for tiles"),
    LEFT_OUT(WORD_7_EDX, 25, "amx_int8", "the state of a CPU has no room for tiles"),
    /*
     * Registers that can be written and do nothing. An Intel CPU of the host's model number needs
     * them to say that indirect branches are safe (IBRS_ALL); v2 and v3 are known to be safe, and
     * without IBPB guests do not even think of it at a switch of address spaces.
     */
    OFFER(WORD_7_EDX, 26, INTEL_HOST, "spec_ctrl"),
    LEFT_OUT(WORD_7_EDX, 27, "stibp", "the guest has one thread per core"),
    LEFT_OUT(WORD_7_EDX, 28, "flush_l1d", "the guest is told that it need not flush"),
    OFFER(WORD_7_EDX, 29, INTEL, "arch_capabilities"),
    LEFT_OUT(WORD_7_EDX, 30, "core_capabilities", "split locks are the monitor's to handle"),
    LEFT_OUT(WORD_7_EDX, 31, "ssbd", "the guest is told that it need not"),

    STATE(WORD_7_1_EAX, 4, HOST, "avx_vnni", XCR0_AVX),
    STATE(WORD_7_1_EAX, 5, HOST, "avx512_bf16", XCR0_ALL_AVX512),

    OFFER(WORD_EXT1_ECX, 0, V2, "lahf_lm"),
    LEFT_OUT(WORD_EXT1_ECX, 2, "svm", "no nested virtualization"),
    OFFER(WORD_EXT1_ECX, 5, V3, "lzcnt"),
    LEFT_OUT(WORD_EXT1_ECX, 6, "sse4a", "gone from compilers' baselines"),
    OFFER(WORD_EXT1_ECX, 8, OWN, "prefetchw"),
    LEFT_OUT(WORD_EXT1_ECX, 10, "ibs", "no performance monitoring"),
    LEFT_OUT(WORD_EXT1_ECX, 11, "xop", "gone from current CPUs"),
    LEFT_OUT(WORD_EXT1_ECX, 15, "lwp", "gone from current CPUs"),
    LEFT_OUT(WORD_EXT1_ECX, 16, "fma4", "gone from current CPUs"),
    LEFT_OUT(WORD_EXT1_ECX, 21, "tbm", "gone from current CPUs"),
    LEFT_OUT(WORD_EXT1_ECX, 22, "topology_extensions", "leaf 0BH says it"),
    LEFT_OUT(WORD_EXT1_ECX, 29, "monitorx", "as monitor"),

    OFFER(WORD_EXT1_EDX, 11, OWN, "syscall"),
    OFFER(WORD_EXT1_EDX, 20, OWN, "nx"),
    LEFT_OUT(WORD_EXT1_EDX, 25, "fxsr_opt", "what FXSAVE stores must not depend on EFER"),
    OFFER(WORD_EXT1_EDX, 26, OWN, "pdpe1gb"),
    OFFER(WORD_EXT1_EDX, 27, OWN, "rdtscp"),
    OFFER(WORD_EXT1_EDX, 29, OWN, "lm"),

    OFFER(WORD_EXT7_EDX, 8, OWN, "invariant_tsc"),

    LEFT_OUT(WORD_EXT8_EBX, 0, "clzero", "an implicit memory operand"),
    OFFER(WORD_EXT8_EBX, 26, AMD, "ssb_no"),
    OFFER(WORD_EXT8_EBX, 29, AMD, "btc_no"),

    OFFER(WORD_EXT21_EAX, 2, FACT, "lfence_serializing"),
    OFFER(WORD_EXT21_EAX, 8, AMD, "automatic_ibrs"),
    OFFER(WORD_EXT21_EAX, 29, AMD, "srso_no"),
};
const unsigned cpuid_feature_count = ARRAY_SIZE(cpuid_features);

#define BASE                                                                                       \
    {                                                                                              \
        .kind = NEED_NONE                                                                          \
    }
#define NEEDS(word_, bit_)                                                                         \
    {                                                                                              \
        .kind = NEED_BIT, .word = (word_), .bit = (bit_)                                           \
    }

/* The widths of AVX-512: 512 bits by the feature itself, 128 and 256 bits by AVX512VL as well. */
#define AVX512_WIDTHS(set, word_, bit_)                                                            \
    [ZYDIS_ISA_SET_AVX512_##set##_128] = NEEDS(word_, bit_),                                       \
    [ZYDIS_ISA_SET_AVX512_##set##_256] = NEEDS(word_, bit_),                                       \
    [ZYDIS_ISA_SET_AVX512_##set##_512] = NEEDS(word_, bit_)

const struct isa_need cpuid_isa_needs[] = {
    [ZYDIS_ISA_SET_I86] = BASE,
    [ZYDIS_ISA_SET_I186] = BASE,
    [ZYDIS_ISA_SET_I286REAL] = BASE,
    [ZYDIS_ISA_SET_I286PROTECTED] = BASE,
    [ZYDIS_ISA_SET_I386] = BASE,
    [ZYDIS_ISA_SET_I486] = BASE,
    [ZYDIS_ISA_SET_I486REAL] = BASE,
    [ZYDIS_ISA_SET_PENTIUMREAL] = BASE,
    [ZYDIS_ISA_SET_PENTIUMMMX] = BASE,
    [ZYDIS_ISA_SET_PPRO] = BASE,
    [ZYDIS_ISA_SET_X87] = BASE,
    [ZYDIS_ISA_SET_CMOV] = BASE,
    [ZYDIS_ISA_SET_FCMOV] = BASE,
    [ZYDIS_ISA_SET_FAT_NOP] = BASE,
    [ZYDIS_ISA_SET_PAUSE] = BASE,
    [ZYDIS_ISA_SET_PREFETCH_NOP] = BASE,
    [ZYDIS_ISA_SET_SSE_PREFETCH] = BASE,
    [ZYDIS_ISA_SET_LONGMODE] = BASE,
    [ZYDIS_ISA_SET_FXSAVE] = BASE,
    [ZYDIS_ISA_SET_FXSAVE64] = BASE,
    [ZYDIS_ISA_SET_SSE] = BASE,
    [ZYDIS_ISA_SET_SSE2] = BASE,
    [ZYDIS_ISA_SET_SSE2MMX] = BASE,
    [ZYDIS_ISA_SET_SSEMXCSR] = BASE,
    [ZYDIS_ISA_SET_CLFSH] = BASE,
    [ZYDIS_ISA_SET_PREFETCHWT1] = BASE,       /* a NOP at least, like its neighbours */
    [ZYDIS_ISA_SET_AMD] = {.kind = NEED_AMD}, /* SYSCALL and SYSRET outside 64-bit mode */
    /* RDPMC exists without performance monitoring: every counter number is #GP(0). */
    [ZYDIS_ISA_SET_RDPMC] = BASE,

    [ZYDIS_ISA_SET_SSE3] = NEEDS(WORD_1_ECX, 0),
    [ZYDIS_ISA_SET_SSE3X87] = NEEDS(WORD_1_ECX, 0),
    [ZYDIS_ISA_SET_PCLMULQDQ] = NEEDS(WORD_1_ECX, 1),
    [ZYDIS_ISA_SET_SSSE3] = NEEDS(WORD_1_ECX, 9),
    [ZYDIS_ISA_SET_SSSE3MMX] = NEEDS(WORD_1_ECX, 9),
    [ZYDIS_ISA_SET_FMA] = NEEDS(WORD_1_ECX, 12),
    [ZYDIS_ISA_SET_CMPXCHG16B] = NEEDS(WORD_1_ECX, 13),
    [ZYDIS_ISA_SET_SSE4] = NEEDS(WORD_1_ECX, 19),
    [ZYDIS_ISA_SET_SSE42] = NEEDS(WORD_1_ECX, 20),
    [ZYDIS_ISA_SET_MOVBE] = NEEDS(WORD_1_ECX, 22),
    [ZYDIS_ISA_SET_POPCNT] = NEEDS(WORD_1_ECX, 23),
    [ZYDIS_ISA_SET_AES] = NEEDS(WORD_1_ECX, 25),
    [ZYDIS_ISA_SET_XSAVE] = NEEDS(WORD_1_ECX, 26),
    [ZYDIS_ISA_SET_AVX] = NEEDS(WORD_1_ECX, 28),
    [ZYDIS_ISA_SET_AVXAES] = NEEDS(WORD_1_ECX, 25),
    [ZYDIS_ISA_SET_F16C] = NEEDS(WORD_1_ECX, 29),
    [ZYDIS_ISA_SET_RDRAND] = NEEDS(WORD_1_ECX, 30),
    [ZYDIS_ISA_SET_RDWRFSGS] = NEEDS(WORD_7_EBX, 0),
    [ZYDIS_ISA_SET_BMI1] = NEEDS(WORD_7_EBX, 3),
    [ZYDIS_ISA_SET_AVX2] = NEEDS(WORD_7_EBX, 5),
    [ZYDIS_ISA_SET_AVX2GATHER] = NEEDS(WORD_7_EBX, 5),
    [ZYDIS_ISA_SET_BMI2] = NEEDS(WORD_7_EBX, 8),
    [ZYDIS_ISA_SET_INVPCID] = NEEDS(WORD_7_EBX, 10),
    [ZYDIS_ISA_SET_RDSEED] = NEEDS(WORD_7_EBX, 18),
    [ZYDIS_ISA_SET_ADOX_ADCX] = NEEDS(WORD_7_EBX, 19),
    [ZYDIS_ISA_SET_SMAP] = NEEDS(WORD_7_EBX, 20),
    [ZYDIS_ISA_SET_CLFLUSHOPT] = NEEDS(WORD_7_EBX, 23),
    [ZYDIS_ISA_SET_CLWB] = NEEDS(WORD_7_EBX, 24),
    [ZYDIS_ISA_SET_SHA] = NEEDS(WORD_7_EBX, 29),
    [ZYDIS_ISA_SET_GFNI] = NEEDS(WORD_7_ECX, 8),
    [ZYDIS_ISA_SET_AVX_GFNI] = NEEDS(WORD_7_ECX, 8),
    [ZYDIS_ISA_SET_VAES] = NEEDS(WORD_7_ECX, 9),
    [ZYDIS_ISA_SET_VPCLMULQDQ] = NEEDS(WORD_7_ECX, 10),
    [ZYDIS_ISA_SET_RDPID] = NEEDS(WORD_7_ECX, 22),
    [ZYDIS_ISA_SET_AVX_VNNI] = NEEDS(WORD_7_1_EAX, 4),
    [ZYDIS_ISA_SET_LAHF] = NEEDS(WORD_EXT1_ECX, 0),
    [ZYDIS_ISA_SET_LZCNT] = NEEDS(WORD_EXT1_ECX, 5),
    [ZYDIS_ISA_SET_RDTSCP] = NEEDS(WORD_EXT1_EDX, 27),

    [ZYDIS_ISA_SET_AVX512F_128] = NEEDS(WORD_7_EBX, 31),
    [ZYDIS_ISA_SET_AVX512F_128N] = NEEDS(WORD_7_EBX, 16),
    [ZYDIS_ISA_SET_AVX512F_256] = NEEDS(WORD_7_EBX, 31),
    [ZYDIS_ISA_SET_AVX512F_512] = NEEDS(WORD_7_EBX, 16),
    [ZYDIS_ISA_SET_AVX512F_KOP] = NEEDS(WORD_7_EBX, 16),
    [ZYDIS_ISA_SET_AVX512F_SCALAR] = NEEDS(WORD_7_EBX, 16),
    [ZYDIS_ISA_SET_AVX512BW_128] = NEEDS(WORD_7_EBX, 30),
    [ZYDIS_ISA_SET_AVX512BW_128N] = NEEDS(WORD_7_EBX, 30),
    [ZYDIS_ISA_SET_AVX512BW_256] = NEEDS(WORD_7_EBX, 30),
    [ZYDIS_ISA_SET_AVX512BW_512] = NEEDS(WORD_7_EBX, 30),
    [ZYDIS_ISA_SET_AVX512BW_KOP] = NEEDS(WORD_7_EBX, 30),
    [ZYDIS_ISA_SET_AVX512CD_128] = NEEDS(WORD_7_EBX, 28),
    [ZYDIS_ISA_SET_AVX512CD_256] = NEEDS(WORD_7_EBX, 28),
    [ZYDIS_ISA_SET_AVX512CD_512] = NEEDS(WORD_7_EBX, 28),
    [ZYDIS_ISA_SET_AVX512DQ_128] = NEEDS(WORD_7_EBX, 17),
    [ZYDIS_ISA_SET_AVX512DQ_128N] = NEEDS(WORD_7_EBX, 17),
    [ZYDIS_ISA_SET_AVX512DQ_256] = NEEDS(WORD_7_EBX, 17),
    [ZYDIS_ISA_SET_AVX512DQ_512] = NEEDS(WORD_7_EBX, 17),
    [ZYDIS_ISA_SET_AVX512DQ_KOP] = NEEDS(WORD_7_EBX, 17),
    [ZYDIS_ISA_SET_AVX512DQ_SCALAR] = NEEDS(WORD_7_EBX, 17),
    AVX512_WIDTHS(IFMA, WORD_7_EBX, 21),
    AVX512_WIDTHS(VBMI, WORD_7_ECX, 1),
    AVX512_WIDTHS(VBMI2, WORD_7_ECX, 6),
    AVX512_WIDTHS(GFNI, WORD_7_ECX, 8),
    AVX512_WIDTHS(VAES, WORD_7_ECX, 9),
    AVX512_WIDTHS(VPCLMULQDQ, WORD_7_ECX, 10),
    AVX512_WIDTHS(VNNI, WORD_7_ECX, 11),
    AVX512_WIDTHS(BITALG, WORD_7_ECX, 12),
    AVX512_WIDTHS(VPOPCNTDQ, WORD_7_ECX, 14),
    AVX512_WIDTHS(VP2INTERSECT, WORD_7_EDX, 8),
    AVX512_WIDTHS(FP16, WORD_7_EDX, 23),
    [ZYDIS_ISA_SET_AVX512_FP16_128N] = NEEDS(WORD_7_EDX, 23),
    [ZYDIS_ISA_SET_AVX512_FP16_SCALAR] = NEEDS(WORD_7_EDX, 23),
    AVX512_WIDTHS(BF16, WORD_7_1_EAX, 5),

    /* The highest number, so that the table covers all; XSAVES itself is not offered. */
    [ZYDIS_ISA_SET_MAX_VALUE] = {.kind = NEED_NEVER},
};
const unsigned cpuid_isa_count = ARRAY_SIZE(cpuid_isa_needs);
