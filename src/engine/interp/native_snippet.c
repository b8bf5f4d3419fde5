/*
 * Snippets: an instruction of the guest as host code, rewritten for registers that are free, made
 * once and kept; and running one on the guest's vector state, flags and registers. A fault of the
 * host inside a snippet arrives as a signal and ends it.
 *
 * Promises: a snippet reaches no memory but its operand in the bounce buffer; the host's own
 *           vector settings are back after it.
 */
#include "engine/interp/native.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/interp/flags.h"
#include "engine/interp/vector_state.h"
#include "engine/signal.h"

enum {
    SLOT_SIZE = 32,
    SLOTS = 512,
    CODE_SIZE = SLOTS * SLOT_SIZE,
    MAP_SIZE = CODE_SIZE + PAGE_SIZE, /* behind the slots: a RET alone */
    BOUNCE_ALIGNMENT = 64,
    BOUNCE_SIZE = SNIPPET_OPERAND_MAX + BOUNCE_ALIGNMENT,
    OPCODE_RET = 0xc3,
};

/* Shared with native_call.S. */
struct native_frame {
    uint64_t host[16]; /* by host register */
    uint64_t flags;    /* as in flags.h */
    const uint8_t *body;
    uint8_t *xsave;
    uint64_t mask;  /* components to load and save */
    uint64_t fault; /* 0, or the vector of the fault plus 1 */
    uint32_t mxcsr; /* the host's own */
    uint16_t fcw;
};
_Static_assert(offsetof(struct native_frame, fcw) == 172, "native_call.S knows the layout");

void native_call(struct native_frame *frame);
void native_fault(void);

struct native {
    struct native_frame frame;
    alignas(BOUNCE_ALIGNMENT) uint8_t bounce[BOUNCE_SIZE];
    struct snippet snippets[SLOTS];
    uint8_t *write;      /* the code page, twice: */
    const uint8_t *code; /* where it may be written, and where it may run */
};

/* A fault inside a snippet: go on behind it, with the vector noted. */
static bool on_fault(siginfo_t *info, ucontext_t *context, void *owner)
{
    struct native *native = owner;
    greg_t *registers = context->uc_mcontext.gregs;

    if ((uint64_t)registers[REG_RIP] - (uintptr_t)native->code >= CODE_SIZE) {
        return false;
    }
    native->frame.fault = (uint64_t)registers[REG_TRAPNO] + 1;
    registers[REG_RIP] = (greg_t)(uintptr_t)native_fault;
    return true;
}

static int code_open(struct native *native)
{
    int fd = memfd_create("doppel-interp", MFD_CLOEXEC);
    int error = 0;

    if (fd < 0) {
        return fail(-errno, "make a memory file for code of engine interp: %m");
    }
    if (ftruncate(fd, MAP_SIZE) != 0) {
        error = -errno;
    } else {
        native->write = mmap(NULL, MAP_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        native->code = mmap(NULL, MAP_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
        if (native->write == MAP_FAILED || native->code == MAP_FAILED) {
            error = -errno;
        }
    }
    close(fd);
    if (!error) {
        native->write[CODE_SIZE] = OPCODE_RET;
    }
    return error ? fail(error, "map code of engine interp to be executed: %m") : 0;
}

int interp_attach(struct vcpu *vcpu)
{
    struct native *native =
        mmap(NULL, sizeof *native, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (native == MAP_FAILED) {
        return fail(-errno, "memory for code of engine interp: %m");
    }
    native->write = MAP_FAILED;
    native->code = MAP_FAILED;
    vcpu->native = native;
    int error = code_open(native);
    if (!error) {
        error = fault_handler_add(on_fault, native);
    }
    if (error) {
        interp_detach(vcpu);
    }
    return error;
}

void interp_detach(struct vcpu *vcpu)
{
    struct native *native = vcpu->native;

    if (!native) {
        return;
    }
    fault_handler_remove(on_fault, native);
    if (native->write != MAP_FAILED) {
        munmap(native->write, MAP_SIZE);
    }
    if (native->code != MAP_FAILED) {
        munmap((void *)native->code, MAP_SIZE);
    }
    munmap(native, sizeof *native);
    vcpu->native = NULL;
}

static struct snippet_key key_of(const struct insn *insn)
{
    struct snippet_key key = {{load_le64(insn->bytes), load_le64(insn->bytes + 8)}};

    /* The 16th byte is never part of an instruction: it tells the modes apart, and from empty. */
    key.bytes[1] |= (0x80ull | insn->info.machine_mode) << 56;
    return key;
}

static unsigned slot_of(struct snippet_key key)
{
    uint64_t hash = (key.bytes[0] ^ key.bytes[1] * 31) * 0x9e3779b97f4a7c15;

    return (unsigned)(hash >> 32) % SLOTS;
}

static uint8_t take_register(uint16_t *free)
{
    uint8_t reg = (uint8_t)__builtin_ctz(*free);

    *free &= (uint16_t) ~(1u << reg);
    return reg;
}

/* Registers stay where they are, but RSP and R15 (the frame) move, and memory needs a base. */
static void choose_registers(const struct insn *insn, struct snippet *snippet)
{
    const uint16_t reserved = 1u << RSP | 1u << R15;
    const struct insn_registers *registers = &insn->registers;

    snippet->loads = registers->read | registers->implicit_read;
    snippet->stores = registers->written | registers->implicit_written;
    snippet->loads |= snippet->stores; /* partial writes keep the rest */
    uint16_t free = (uint16_t) ~(snippet->loads | reserved);
    for (uint8_t n = 0; n < GPR_COUNT; n++) {
        bool moves = (reserved & snippet->loads) >> n & 1;
        snippet->map.host[n] = moves ? take_register(&free) : n;
    }
    snippet->map.memory_base = take_register(&free);
    snippet->map.memory_offset = 0;
}

/*
 * The opcode of MASKMOVQ and MASKMOVDQU alone, without the prefixes that chose the guest's address:
 * their memory operand has no place in ModRM.
 */
static size_t copy_without_address(const struct insn *insn, uint8_t *out)
{
    size_t length = 0;

    for (unsigned n = 0; n < insn->info.raw.prefix_count; n++) {
        uint8_t prefix = insn->bytes[n];
        if (prefix == 0x66 && insn->info.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU) {
            out[length++] = prefix;
            break;
        }
    }
    if (insn->info.raw.rex) {
        out[length++] = insn->info.raw.rex;
    }
    unsigned start = insn->info.raw.modrm.offset - 2; /* 0FH and the opcode */
    if (insn->info.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
        start = insn->info.raw.vex_offset;
    }
    size_t rest = insn->info.length - start;
    bytes_copy(out + length, insn->bytes + start, rest);
    return length + rest;
}

static bool stores_at_rdi(ZydisMnemonic mnemonic)
{
    return mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU ||
           mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU;
}

/* Code that was written through the other mapping is seen after a serializing instruction. */
static void serialize(void)
{
    uint32_t eax = 0, ebx, ecx = 0, edx;

    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx) : : "memory");
}

const struct snippet *snippet_for(struct native *native, const struct insn *insn)
{
    struct snippet_key key = key_of(insn);
    unsigned slot = slot_of(key);
    struct snippet *snippet = &native->snippets[slot];

    if (snippet->key.bytes[0] == key.bytes[0] && snippet->key.bytes[1] == key.bytes[1]) {
        return snippet;
    }
    uint8_t *out = native->write + (size_t)slot * SLOT_SIZE;
    snippet->key = (struct snippet_key){{0, 0}};
    snippet->body = native->code + (size_t)slot * SLOT_SIZE;
    snippet->at_rdi = stores_at_rdi(insn->info.mnemonic);
    choose_registers(insn, snippet);
    size_t length =
        snippet->at_rdi ? copy_without_address(insn, out) : rewrite(insn, &snippet->map, out);
    if (length == 0) {
        return NULL;
    }
    out[length] = OPCODE_RET;
    serialize();
    snippet->key = key;
    return snippet;
}

uint8_t *snippet_operand(struct native *native, uint64_t address)
{
    return native->bounce + (address & (BOUNCE_ALIGNMENT - 1));
}

static void load_registers(struct vcpu *vcpu, const struct snippet *snippet, uint8_t *operand)
{
    struct native_frame *frame = &vcpu->native->frame;

    for (unsigned n = 0; n < GPR_COUNT; n++) {
        if (snippet->loads >> n & 1) {
            frame->host[snippet->map.host[n]] = vcpu->state.gpr[n];
        }
    }
    frame->host[snippet->map.memory_base] = (uintptr_t)operand;
    if (snippet->at_rdi) {
        frame->host[RDI] = (uintptr_t)operand;
    }
    frame->flags = flags_pack(vcpu->state.rflags);
    frame->xsave = vcpu->state.xsave;
    frame->mask = XCR0_X87 | XCR0_SSE;
    if (vcpu->state.cr4 & CR4_OSXSAVE) {
        frame->mask |= vcpu->state.xcr0;
    }
}

uint64_t snippet_run(struct vcpu *vcpu, const struct snippet *snippet, uint8_t *operand)
{
    struct native_frame *frame = &vcpu->native->frame;

    load_registers(vcpu, snippet, operand);
    frame->body = snippet->body;
    native_call(frame);
    return frame->fault;
}

void snippet_commit(struct vcpu *vcpu, const struct snippet *snippet)
{
    const struct native_frame *frame = &vcpu->native->frame;

    for (unsigned n = 0; n < GPR_COUNT; n++) {
        if (snippet->stores >> n & 1) {
            vcpu->state.gpr[n] = frame->host[snippet->map.host[n]];
        }
    }
    vcpu->state.rflags = flags_unpack(vcpu->state.rflags, frame->flags);
}

/* Load and save the vector state without an instruction: the CPU settles what is derived. */
void native_settle(struct vcpu *vcpu)
{
    const struct snippet none = {
        .body = vcpu->native->code + CODE_SIZE,
        .map = {.memory_base = RAX},
    };

    snippet_run(vcpu, &none, NULL);
}
