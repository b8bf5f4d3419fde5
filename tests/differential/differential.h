/*
 * The instruction differential test: one instruction with random state, run natively in a
 * sandboxed child and on an engine, must leave the same registers, defined flags, memory, vector
 * state and exception.
 *
 * forms.c      every instruction form that the decoder knows in 64-bit mode
 * sequence.c   some instructions in a row
 * stride.c     loops over arrays
 * generate.c   from a form to a case: bytes and state, with values weighted to the boundaries
 * native.c     cases on the real CPU, one signal each
 * on_engine.c  the same cases in a guest at CPL 3 with the same two pages mapped
 * compare.c    what must agree
 * model_specific.c  where CPUs differ, and the manual lets them
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "engine/interp/vector_state.h"
#include "x86/cpu_state.h"
#include "x86/cpuid.h"
#include "x86/decode.h"

/* The only two pages that exist for the instruction; their neighbours always fault. */
#define CODE_PAGE 0x10000000ull
#define DATA_PAGE 0x20000000ull
enum { CODE_OFFSET = 0x800 }; /* where the instruction stands, unless at the page end */

enum encoding { ENCODE_LEGACY, ENCODE_VEX, ENCODE_EVEX };

/* An instruction form: an encoding without its free registers, address and immediate. */
struct form {
    uint8_t encoding; /* enum encoding */
    uint8_t prefix;   /* 0, 66H, F2H, F3H: mandatory or operand size or repeat */
    bool lock, rex_w;
    uint8_t map; /* 0: one byte, 1: 0FH, 2: 0F38H, 3: 0F3AH, 5, 6 */
    uint8_t opcode;
    uint8_t vector_length;           /* 0: 128 bits, 1: 256, 2: 512 */
    bool broadcast, zeroing, masked; /* EVEX */
    bool has_modrm, fixed_reg, fixed_rm, memory;
    uint8_t reg, rm; /* where fixed */
    bool loads_segment, is_far;
    ZydisMnemonic mnemonic;
    ZydisISASet isa;
    uint64_t key;
};

/* All forms, sorted by mnemonic. The caller frees. */
size_t forms_enumerate(struct form **ret_forms);
/* What makes two encodings the same form: mnemonic, operand kinds and sizes, prefixes. */
uint64_t form_key(const struct insn *insn);

/*
 * The parts of an XSAVE area behind the header (SDM volume 1, 13.5). Hosts differ in where these
 * are: xsave_component() knows. 3, 4 and 8 on are never in `components`.
 */
enum { COMPONENT_YMM = 2, COMPONENT_OPMASK = 5, COMPONENT_ZMM = 6, COMPONENT_ZMM16 = 7 };

enum { CODE_MAX = 192 }; /* bytes of one instruction, or of a sequence */

/* What an instruction starts with, and ends with. */
struct machine_state {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint8_t data[4096];
    alignas(64) uint8_t xsave[XSAVE_AREA_SIZE];
};
struct test_case {
    uint8_t bytes[CODE_MAX];
    uint8_t length;
    uint16_t offset; /* of the first instruction in the code page */
    struct machine_state before;
};
struct outcome {
    struct machine_state after;
    uint64_t vector, error, cr2;
};

struct random {
    uint64_t state;
};
uint64_t random_next(struct random *random);
/* A value that is often at a boundary. */
uint64_t random_value(struct random *random);

/* Bytes of one instance of the form; false if none was found. */
bool generate_bytes(const struct form *form, struct random *random, struct test_case *ret_case,
                    struct insn *ret_insn);
/* Where a byte of a vector register is in an XSAVE area. */
unsigned vector_byte_place(unsigned number, unsigned byte);
/* A state for these bytes. */
void generate_state(const struct insn *insn, uint64_t components, struct random *random,
                    struct test_case *test);

/* The forms of which sequences are made; the general ones come first. */
struct sequence_pool {
    struct form *forms;
    size_t count, general;
    bool has_vex;
};
/* `forms`: those that the CPU model offers and that may run here. */
void sequence_pool_init(const struct form *forms, size_t count, struct sequence_pool *pool);
void sequence_pool_fini(struct sequence_pool *pool);
void sequence_generate(const struct sequence_pool *pool, struct random *random,
                       struct test_case *ret_case);
/* Are all flags defined behind it, or what no CPU looks at? */
bool has_defined_flags(const struct insn *insn);
/* A loop over the data page; with instructions that have VEX or without. */
void stride_generate(bool has_vex, struct random *random, struct test_case *ret_case);
void sequence_state(uint64_t components, struct random *random, struct test_case *test);

enum { BATCH_MAX = 128 };
struct native;
int native_open(struct native **ret_native);
void native_close(struct native *native);
/* Where the caller puts cases, and finds outcomes. */
struct test_case *native_cases(struct native *native);
const struct outcome *native_outcomes(const struct native *native);
/* -EIO if the child died or hung: `ret_at` is the case. */
int native_run(struct native *native, unsigned count, unsigned *ret_at);

struct engine_side;
int engine_side_open(const struct engine_ops *ops, const struct cpuid_table *cpuid,
                     uint64_t components, const struct code_policy *code,
                     struct engine_side **ret_side);
void engine_side_close(struct engine_side *side);
int engine_side_run(struct engine_side *side, const struct test_case *test,
                    struct outcome *ret_outcome);

/* May the outcomes differ altogether, because CPUs do? Then they are not compared. */
bool is_model_specific(const struct insn *insn, const struct test_case *test,
                       const struct outcome *native, const struct outcome *engine);
/* What the manual leaves open in this outcome becomes the same as in native's. */
void take_over_model_specific(const struct insn *insn, const struct test_case *test,
                              const struct outcome *native, struct outcome *engine);

/* Prints what differs and returns true, or returns false. */
bool compare(const struct insn *insn, const struct test_case *test, const struct outcome *native,
             const struct outcome *engine, uint64_t components, bool print);
