# The guest tests: each x.c here is a 64-bit guest, each x_32.c a 32-bit one; they become Multiboot
# kernels in $(OUT)/tests/guest/. They are code of the guest, so no host flags and always gcc.

GUEST_CC    := gcc
GUEST_OUT   := $(OUT)/tests/guest
GUEST_FLAGS := -std=gnu17 -O2 -g0 -ffreestanding -fno-strict-aliasing -fno-pic -no-pie -fno-stack-protector \
               -fno-asynchronous-unwind-tables -fcf-protection=none -mgeneral-regs-only \
               -Wall -Wextra -Werror -Wno-array-bounds -Itests/guest/runtime -MMD -MP
GUEST_FLAGS_64 := $(GUEST_FLAGS) -m64 -mno-red-zone
GUEST_FLAGS_32 := $(GUEST_FLAGS) -m32

GUEST_PROGRAMS := run_guest move_machine compare_machine
GUEST_HOST  := $(patsubst %,tests/guest/%.c,$(GUEST_PROGRAMS))
GUEST_32    := $(wildcard tests/guest/*_32.c)
GUEST_64    := $(filter-out $(GUEST_32) $(GUEST_HOST),$(wildcard tests/guest/*.c))
GUEST_TESTS := $(patsubst tests/guest/%.c,$(GUEST_OUT)/%.elf,$(GUEST_64) $(GUEST_32)) \
               $(GUEST_OUT)/multiboot_kludge.bin

guest-tests: $(GUEST_TESTS) $(GUEST_PROGRAMS:%=$(GUEST_OUT)/%)

$(GUEST_PROGRAMS:%=$(GUEST_OUT)/%): $(GUEST_OUT)/%: tests/guest/%.c $(ARCHIVE)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MF $@.d -MT $@ -o $@ $< $(ARCHIVE) $(LINK)

define guest-rules
$(GUEST_OUT)/runtime/%_$(1).o: tests/guest/runtime/%_$(1).S
	@mkdir -p $$(@D)
	$(GUEST_CC) $(GUEST_FLAGS_$(1)) -c -o $$@ $$<
$(GUEST_OUT)/runtime/runtime_$(1).o: tests/guest/runtime/runtime.c
	@mkdir -p $$(@D)
	$(GUEST_CC) $(GUEST_FLAGS_$(1)) -c -o $$@ $$<
endef
$(eval $(call guest-rules,64))
$(eval $(call guest-rules,32))

GUEST_RUNTIME_64 := $(addprefix $(GUEST_OUT)/runtime/,start_64.o runtime_64.o)
GUEST_RUNTIME_32 := $(addprefix $(GUEST_OUT)/runtime/,start_32.o runtime_32.o)
GUEST_LINK := -nostdlib -static -no-pie -Wl,-T,tests/guest/runtime/guest.ld -Wl,--build-id=none \
              -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments

# Multiboot loaders take 32-bit ELF files only, so a 64-bit guest is rewrapped.
$(GUEST_OUT)/%_32.elf: tests/guest/%_32.c $(GUEST_RUNTIME_32)
	$(GUEST_CC) $(GUEST_FLAGS_32) $(GUEST_LINK) -MF $(@:.elf=.d) -MT $@ -o $@ $< $(GUEST_RUNTIME_32)

$(GUEST_OUT)/%.elf: tests/guest/%.c $(GUEST_RUNTIME_64)
	$(GUEST_CC) $(GUEST_FLAGS_64) $(GUEST_LINK) -MF $(@:.elf=.d) -MT $@ -o $@.64 $< $(GUEST_RUNTIME_64)
	objcopy -I elf64-x86-64 -O elf32-i386 $@.64 $@

# The same kernel once more, as a flat binary with the a.out kludge.
$(GUEST_OUT)/runtime/kludge.o: tests/guest/runtime/start_32.S
	@mkdir -p $(@D)
	$(GUEST_CC) $(GUEST_FLAGS_32) -DKLUDGE -c -o $@ $<

$(GUEST_OUT)/multiboot_kludge.bin: tests/guest/multiboot_32.c $(GUEST_OUT)/runtime/kludge.o \
                                   $(GUEST_OUT)/runtime/runtime_32.o
	$(GUEST_CC) $(GUEST_FLAGS_32) $(GUEST_LINK) -MF $(@:.bin=.d) -MT $@ -o $@.linked $< \
	    $(GUEST_OUT)/runtime/kludge.o $(GUEST_OUT)/runtime/runtime_32.o
	objcopy -O binary $@.linked $@

.PHONY: guest-tests
.SECONDARY: $(GUEST_RUNTIME_64) $(GUEST_RUNTIME_32)
