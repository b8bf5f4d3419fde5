/*
 * The runtime of the guest tests: what a test program sees. One header for 64-bit guests
 * (start_64.S) and 32-bit guests (start_32.S); each test is a freestanding Multiboot kernel that
 * calls check() for what the manual promises and ends through the debug-exit port.
 *
 * The central tool is context_run(): it enters any privilege level and any code segment by IRET
 * with all registers given, and comes back with all registers at the first exception or
 * interrupt. A snippet of assembly between two labels is thus one experiment.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __x86_64__
enum { REGISTERS = 16 };
#else
enum { REGISTERS = 8 };
#endif
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

/* The registers of an experiment: what it starts with, and what it stopped with. */
struct context {
    uintptr_t gpr[REGISTERS];
    uintptr_t ip, flags;
    uintptr_t cs, ss, ds, es, fs, gs;
    /* what stopped it */
    uintptr_t vector, error; /* error: NO_ERROR if the vector has none */
    uintptr_t cr2;
};
#define NO_ERROR ((uintptr_t)-1)

/* Selectors of the runtime's GDT. */
enum {
    KERNEL_CODE = 0x08, /* of the runtime's own mode */
    KERNEL_DATA = 0x10,
    KERNEL_CODE32 = 0x18,
    USER_CODE32 = 0x20 | 3, /* SYSRET's order: 32-bit code, data, 64-bit code */
    USER_DATA = 0x28 | 3,
    USER_CODE = 0x30 | 3,
    KERNEL_CODE16 = 0x38,
    KERNEL_DATA16 = 0x40, /* 64 KiB from 0 */
    TASK = 0x48,
    SPARE = 0x60, /* first of SPARE_COUNT descriptors for the test */
    SPARE_COUNT = 32,
};
enum {
    FLAG_CF = 1,
    FLAG_PF = 4,
    FLAG_AF = 0x10,
    FLAG_ZF = 0x40,
    FLAG_SF = 0x80,
    FLAG_TF = 0x100,
    FLAG_IF = 0x200,
    FLAG_DF = 0x400,
    FLAG_OF = 0x800,
    FLAG_IOPL3 = 0x3000,
    FLAG_NT = 0x4000,
    FLAG_RF = 0x10000,
    FLAG_VM = 0x20000,
    FLAG_AC = 0x40000,
    FLAG_ID = 0x200000,
    FLAGS_ARITHMETIC = 0x8d5,
};
enum {
    DE = 0,
    DB = 1,
    NMI = 2,
    BP = 3,
    OF = 4,
    BR = 5,
    UD = 6,
    NM = 7,
    DF = 8,
    TS = 10,
    NP = 11,
    SS = 12,
    GP = 13,
    PF = 14,
    MF = 16,
    AC = 17,
    XM = 19,
};
/* Page-table entry bits, and those of a #PF error code. */
enum {
    PTE_P = 1,
    PTE_W = 2,
    PTE_U = 4,
    PTE_PCD = 0x10,
    PTE_A = 0x20,
    PTE_D = 0x40,
    PTE_PS = 0x80,
    PTE_G = 0x100,
    PF_P = 1,
    PF_W = 2,
    PF_U = 4,
    PF_RSVD = 8,
    PF_I = 16,
};
#define PTE_NX (1ull << 63)

/* The user's window on the first 16 MiB of memory: the same bytes with U/S set. */
#define USER_WINDOW   0x40000000ul
#define USER(address) ((uintptr_t)(address) + USER_WINDOW)

/* Fill with the runtime's defaults: kernel mode (or CPL 3), own stack, no flags. */
void context_init(struct context *context, const void *code);
void context_init_user(struct context *context, const void *code);
/* A value of its own for each general register. */
void context_spread(struct context *context);
/* Run until an exception or interrupt. */
void context_run(struct context *context);
/* The same one instruction at a time, which interp does. RF may differ. */
void context_run_stepped(struct context *context);
/* How many bytes behind the start of the code it stopped. */
#define CONTEXT_STOP(context, code) ((context).ip - (uintptr_t)(code))

/* Say "ok NAME" or "FAIL NAME got X expected Y". */
void check(const char *name, uint64_t got, uint64_t expected);
/* Says nothing if all is well, for what is asked thousands of times; was it? */
bool expect(const char *name, uint64_t got, uint64_t expected);
/* The usual questions in one: vector, error code, instruction pointer. */
void check_stop(const char *name, const struct context *context, uintptr_t vector, uintptr_t error,
                uintptr_t ip);
void skip(const char *name, const char *why);
void print(const char *text);
void print_hex(uint64_t value);
/* End the guest: status 33 if every check passed. */
void finish(void) __attribute__((noreturn));
void test_main(void); /* what each test provides; the runtime calls finish() behind it */

/* Words of eight bytes. */
void words_copy(volatile void *to, const volatile void *from, size_t count);
bool words_are_same(const volatile void *a, const volatile void *b, size_t count);

/* Page tables of the runtime's mode. map() makes a 4 KiB entry and answers where it is. */
typedef uint64_t pte_t;
volatile pte_t *map(uintptr_t virtual_address, uint64_t physical, uint64_t bits);
void *page_new(void);        /* a zeroed page, identity-mapped; for 32-bit guests too */
extern uintptr_t page_table; /* the root */

extern uint64_t gdt[];
extern uint8_t idt[];
#ifdef __x86_64__
extern uint8_t task_segment[];
#endif
/* A code or data or system descriptor; `access` is bits 40..47, `flags` bits 52..55. */
uint64_t descriptor(uint32_t base, uint32_t limit, uint8_t access, uint8_t flags);

/* What follows is the instruction set in C. */
static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
#define DEFINE_REGISTER(name)                                                                      \
    static inline uintptr_t read_##name(void)                                                      \
    {                                                                                              \
        uintptr_t value;                                                                           \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(value)::"memory");                           \
        return value;                                                                              \
    }                                                                                              \
    static inline void write_##name(uintptr_t value)                                               \
    {                                                                                              \
        __asm__ volatile("mov %0, %%" #name ::"r"(value) : "memory");                              \
    }
DEFINE_REGISTER(cr0)
DEFINE_REGISTER(cr2)
DEFINE_REGISTER(cr3)
DEFINE_REGISTER(cr4)
DEFINE_REGISTER(dr0)
DEFINE_REGISTER(dr1)
DEFINE_REGISTER(dr2)
DEFINE_REGISTER(dr3)
DEFINE_REGISTER(dr6)
DEFINE_REGISTER(dr7)
static inline uint64_t read_msr(uint32_t index)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}
static inline void write_msr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"a"((uint32_t)value), "d"((uint32_t)(value >> 32)), "c"(index)
                     : "memory");
}
static inline void invlpg(uintptr_t address)
{
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}
struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;
    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}

/*
 * A snippet: assembly (AT&T) with global labels NAME and NAME_end, and a local label `1` and so
 * on as the test likes. The trap behind ends the experiment with #UD when nothing else has.
 */
#define SNIPPET(name, code)                                                                        \
    extern const char name[], name##_end[];                                                        \
    __asm__(".pushsection .text.snippet, \"ax\"; .balign 16; .globl " #name ", " #name             \
            "_end\n" #name ":\n" code "\n" #name "_end: ud2\n.popsection")
#define SNIPPET_AT(name) extern const char name[]
