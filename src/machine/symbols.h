/*
 * Names for addresses of the guest's kernel, from a file that the user gives: System.map, what the
 * guest's /proc/kallsyms says, or an ELF file with a symbol table (vmlinux). Only traces use them;
 * nothing in the guest depends on it. The file is hostile: all of it is checked.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct symbols;

int symbols_load(const char *path, struct symbols **ret_symbols)
    __attribute__((warn_unused_result));
void symbols_free(struct symbols *symbols);

/*
 * The symbol that an address belongs to, and how far behind its start the address is; NULL if there
 * is none. `system_call` is the guest's IA32_LSTAR: where Linux has put entry_SYSCALL_64, which
 * tells how far the kernel was moved (KASLR). 0: it was not.
 */
const char *symbols_find(const struct symbols *symbols, uint64_t address, uint64_t system_call,
                         uint64_t *ret_offset);
