/*
 * The C part of the guest runtime: reports, the end of the guest, pages and page tables, contexts.
 * Freestanding, for 64-bit and 32-bit guests; the latter make their page tables themselves.
 */
#include "runtime.h"

enum { SERIAL = 0x3f8, DEBUG_EXIT = 0xf4 };

static unsigned failures, checks;

static void put(char c)
{
    while (!(in8(SERIAL + 5) & 0x20)) {
    }
    out8(SERIAL, (uint8_t)c);
}

void print(const char *text)
{
    for (; *text; text++) {
        put(*text);
    }
}

void print_hex(uint64_t value)
{
    int shift = 60;
    while (shift && !(value >> shift)) {
        shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
        put("0123456789abcdef"[value >> shift & 15]);
    }
}

void check(const char *name, uint64_t got, uint64_t expected)
{
    checks++;
    if (got == expected) {
        print("ok ");
        print(name);
    } else {
        failures++;
        print("FAIL ");
        print(name);
        print(" got ");
        print_hex(got);
        print(" expected ");
        print_hex(expected);
    }
    print("\n");
}

bool expect(const char *name, uint64_t got, uint64_t expected)
{
    if (got != expected) {
        check(name, got, expected);
    }
    return got == expected;
}

void check_stop(const char *name, const struct context *context, uintptr_t vector, uintptr_t error,
                uintptr_t ip)
{
    checks++;
    if (context->vector == vector && context->error == error && context->ip == ip) {
        print("ok ");
        print(name);
        print("\n");
        return;
    }
    failures++;
    print("FAIL ");
    print(name);
    print(" got vector ");
    print_hex(context->vector);
    print(" error ");
    print_hex(context->error);
    print(" ip ");
    print_hex(context->ip);
    print(" expected vector ");
    print_hex(vector);
    print(" error ");
    print_hex(error);
    print(" ip ");
    print_hex(ip);
    print("\n");
}

void skip(const char *name, const char *why)
{
    print("skip ");
    print(name);
    print(": ");
    print(why);
    print("\n");
}

void finish(void)
{
    print(failures ? "failed\n" : "passed\n");
    out32(DEBUG_EXIT, failures || !checks ? 1 : 0x10);
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

void unexpected_exception(uintptr_t vector, uintptr_t error, uintptr_t ip, uintptr_t cr2);
void unexpected_exception(uintptr_t vector, uintptr_t error, uintptr_t ip, uintptr_t cr2)
{
    print("FAIL unexpected exception ");
    print_hex(vector);
    print(" error ");
    print_hex(error);
    print(" ip ");
    print_hex(ip);
    print(" cr2 ");
    print_hex(cr2);
    print("\n");
    failures++;
    finish();
}

/* The compiler may call these. */
void *memset(void *to, int value, size_t size);
void *memset(void *to, int value, size_t size)
{
    void *cursor = to;
    __asm__ volatile("rep stosb" : "+D"(cursor), "+c"(size) : "a"(value) : "memory");
    return to;
}
void *memcpy(void *to, const void *from, size_t size);
void *memcpy(void *to, const void *from, size_t size)
{
    void *cursor = to;
    __asm__ volatile("rep movsb" : "+D"(cursor), "+S"(from), "+c"(size)::"memory");
    return to;
}

void words_copy(volatile void *to, const volatile void *from, size_t count)
{
    count *= 2;
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

bool words_are_same(const volatile void *a, const volatile void *b, size_t count)
{
    bool same;
    count *= 2;
    __asm__ volatile("cmp %2, %2; repe cmpsl"
                     : "+D"(a), "+S"(b), "+c"(count), "=@cce"(same)
                     :
                     : "memory");
    return same;
}

static char *next_page = (char *)0x800000; /* 8 to 15 MiB: inside the user's window */

void *page_new(void)
{
    char *page = next_page;
    next_page += 4096;
    memset(page, 0, 4096);
    return page;
}

#ifdef __x86_64__
volatile pte_t *map(uintptr_t virtual_address, uint64_t physical, uint64_t bits)
{
    pte_t *table = (pte_t *)page_table;
    for (int shift = 39; shift > 12; shift -= 9) {
        pte_t *entry = &table[virtual_address >> shift & 511];
        if (!(*entry & PTE_P)) {
            *entry = (uintptr_t)page_new() | PTE_P | PTE_W | PTE_U;
        }
        table = (pte_t *)(*entry & 0xffffffffff000);
    }
    pte_t *entry = &table[virtual_address >> 12 & 511];
    *entry = physical | bits;
    invlpg(virtual_address);
    return entry;
}
#endif

static char kernel_stack[4096] __attribute__((aligned(16)));
static char user_stack[4096] __attribute__((aligned(16)));

void context_init(struct context *context, const void *code)
{
    memset(context, 0, sizeof *context);
    context->ip = (uintptr_t)code;
    context->flags = 2;
    context->cs = KERNEL_CODE;
    context->ss = context->ds = context->es = KERNEL_DATA;
    context->gpr[RSP] = (uintptr_t)(kernel_stack + sizeof kernel_stack);
}

void context_init_user(struct context *context, const void *code)
{
    memset(context, 0, sizeof *context);
    context->ip = USER(code);
    context->flags = 2;
    context->cs = USER_CODE;
    context->ss = context->ds = context->es = USER_DATA;
    context->gpr[RSP] = USER(user_stack + sizeof user_stack);
#ifndef __x86_64__
    if (!page_table) { /* no paging: no window either */
        context->ip -= USER_WINDOW;
        context->gpr[RSP] -= USER_WINDOW;
    }
#endif
}

void context_spread(struct context *context)
{
    for (unsigned i = 0; i < REGISTERS; i++) {
        context->gpr[i] = (uintptr_t)0x1111111111111111ull * (i + 1);
    }
}

void context_run_stepped(struct context *context)
{
    do {
        context->flags |= FLAG_TF;
        context_run(context);
    } while (context->vector == DB);
    context->flags &= ~(uintptr_t)FLAG_TF;
}

uint64_t descriptor(uint32_t base, uint32_t limit, uint8_t access, uint8_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)(flags & 15) << 52 |
           (uint64_t)(base >> 24) << 56;
}
