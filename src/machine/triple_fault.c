/*
 * The report of a triple fault on standard error: the registers and the bytes at the instruction,
 * on one screen. Some guests reset themselves by a triple fault, over and over: one report in ten
 * seconds is enough.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "backend/console/console.h"
#include "base/bytes.h"
#include "machine/report.h"
#include "machine/vm_internal.h"
#include "x86/walk.h"

enum { CODE_BYTES = 16 };
#define REPORT_INTERVAL_NS UINT64_C(10000000000)

static const char *mode_name(const struct cpu_state *state)
{
    if (!(state->cr0 & CR0_PE)) {
        return "real mode";
    }
    if (cpu_state_is_64bit(state)) {
        return "64-bit mode";
    }
    if (cpu_state_is_long(state)) {
        return "compatibility mode";
    }
    if (state->rflags & FLAG_VM) {
        return "virtual-8086 mode";
    }
    return state->segment[CS].attributes & SEGMENT_DB ? "32-bit protected mode"
                                                      : "16-bit protected mode";
}

static void print_registers(FILE *out, const struct cpu_state *state)
{
    static const char *const names[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
                                                 "rsi", "rdi", "r8 ", "r9 ", "r10", "r11",
                                                 "r12", "r13", "r14", "r15"};
    for (unsigned i = 0; i < GPR_COUNT; i++) {
        fprintf(out, "  %s %016" PRIx64 "%s", names[i], state->gpr[i], i % 4 == 3 ? "\n" : "");
    }
    fprintf(out, "  rip %016" PRIx64 "  rflags %08" PRIx64 "\n", state->rip, state->rflags);
    fprintf(out,
            "  cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64
            "  efer %04" PRIx64 "\n",
            state->cr0, state->cr2, state->cr3, state->cr4, state->efer);
}

static void print_segment(FILE *out, const char *name, const struct segment *segment)
{
    fprintf(out, "  %-4s %04x  base %016" PRIx64 "  limit %08x  attributes %04x\n", name,
            segment->selector, segment->base, segment->limit, segment->attributes);
}

static void print_segments(FILE *out, const struct cpu_state *state)
{
    static const char *const names[SEGMENT_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};
    for (unsigned i = 0; i < SEGMENT_COUNT; i++) {
        print_segment(out, names[i], &state->segment[i]);
    }
    print_segment(out, "ldtr", &state->ldtr);
    print_segment(out, "tr", &state->tr);
    fprintf(out, "  gdtr %016" PRIx64 ":%04x  idtr %016" PRIx64 ":%04x\n", state->gdtr.base,
            state->gdtr.limit, state->idtr.base, state->idtr.limit);
}

/* The bytes at CS:RIP, as far as they can be read without leaving the page. */
static void print_code(FILE *out, struct vm *vm, const struct cpu_state *state)
{
    gva_t gva = cpu_state_is_64bit(state) ? state->rip : state->segment[CS].base + state->rip;
    struct walk_mode mode = {
        .cr3 = state->cr3,
        .cr4 = state->cr4,
        .rflags = state->rflags,
        .cr0 = (uint32_t)state->cr0,
        .efer = (uint32_t)state->efer,
        .physical_bits = (uint8_t)cpuid_physical_bits(vm->cpuid),
        .gib_pages = cpuid_has(vm->cpuid, FEATURE_GIB_PAGES),
    };
    memcpy(mode.pdpte, state->pdpte, sizeof mode.pdpte);
    struct walk_result found;
    uint8_t code[CODE_BYTES];
    uint64_t count = PAGE_SIZE - gva % PAGE_SIZE;
    count = count < CODE_BYTES ? count : CODE_BYTES;
    fprintf(out, "  code");
    if (!walk(vm->memory, &mode, NULL, gva, PF_FETCH, &found) ||
        memory_read(vm->memory, found.gpa, code, count)) {
        fprintf(out, " (not mapped)\n");
        return;
    }
    for (uint64_t i = 0; i < count; i++) {
        fprintf(out, " %02x", code[i]);
    }
    fprintf(out, "\n");
}

void triple_fault_report(struct vm *vm, unsigned vcpu, const struct cpu_state *state)
{
    uint64_t now = clock_now(vm->clock);
    pthread_mutex_lock(&vm->lock);
    bool due = vm->last_report_ns == 0 || now - vm->last_report_ns >= REPORT_INTERVAL_NS;
    if (due) {
        vm->last_report_ns = now ? now : 1;
    }
    pthread_mutex_unlock(&vm->lock);
    if (!due) {
        return;
    }
    char text[4096];
    FILE *out = fmemopen(text, sizeof text, "w");
    if (!out) {
        return;
    }
    fprintf(out,
            "\ndoppel: triple fault on vCPU %u in %s: an exception could not be delivered, and "
            "neither\ncould the faults that this caused. %s\n",
            vcpu, mode_name(state),
            vm->config->no_reboot ? "The machine ends." : "The machine resets.");
    print_registers(out, state);
    print_segments(out, state);
    print_code(out, vm, state);
    fclose(out);
    console_flush(vm->board.serial_console); /* the guest's last words come first */
    report("%s", text);
}
