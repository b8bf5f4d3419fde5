# Doppel's build: one page. File names are the build description:
#   src/**/x.c        code              src/**/x_test.c   a unit test (a program, cmocka)
#   cmd/*.c           the program       src/**/x_fuzz.c   a fuzzer (clang, libFuzzer)
#   cmd/net/*.c       its network helper
# Variants: CC=clang, SAN=address,undefined or SAN=thread; each has its own folder below build/.
# (SAN=fuzz and SAN=coverage, with clang, are those of tests/fuzz.mk.)

CC      := gcc
SAN     :=
comma   := ,
VARIANT := $(notdir $(CC))$(if $(SAN),-$(subst $(comma),-,$(SAN)))
OUT     := build/$(VARIANT)

# Debian's libzydis-dev has no pkg-config file; its headers are on the default path.
LIBRARIES := liburing libseccomp jansson zlib libzstd nettle ext2fs com_err
FLAGS := -std=gnu17 -O2 -g -pthread -Isrc -MMD -MP -D_GNU_SOURCE -fno-strict-aliasing \
         -fno-omit-frame-pointer -Wall -Wextra -Werror -Wshadow -Wvla -Wundef -Wformat=2 \
         -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith \
         -Wimplicit-fallthrough -Wno-unused-parameter $(shell pkg-config --cflags $(LIBRARIES))
ifeq ($(SAN),)
FLAGS += -fPIE -fstack-protector-strong -fstack-clash-protection -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
LINK  := -pie -Wl,-z,relro,-z,now,-z,noexecstack
else ifeq ($(SAN),fuzz)
FLAGS += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
LINK  := -fsanitize=fuzzer-no-link,address,undefined
else ifeq ($(SAN),coverage)
FLAGS += -fprofile-instr-generate -fcoverage-mapping
LINK  := -fprofile-instr-generate
else
FLAGS += -fsanitize=$(SAN) -fno-sanitize-recover=all
LINK  := -fsanitize=$(SAN)
endif
LINK += -Wl,--as-needed $(shell pkg-config --libs $(LIBRARIES)) -lZydis -pthread

# Rooms that run while guest vector state is in the CPU: no vector registers, no calls to
# functions that might use them behind our back (docs/translate.md; tools/check-general checks it).
# Compilers turn loops into memset and memcpy, whose code is the C library's, unless told not to.
# The last ones are what a guest's write to its local APIC reaches.
GENERAL_ROOMS := src/memory/ src/x86/ src/engine/ src/device/irqchip/ src/base/host_clock.c \
                 src/base/loop.c src/machine/engine_host.c src/machine/irqchip_wire.c \
                 src/machine/hypercall.c
GENERAL_FLAGS := -mgeneral-regs-only $(if $(findstring clang,$(CC)),\
                 -fno-builtin-memset -fno-builtin-memcpy -fno-builtin-memmove,\
                 -fno-tree-loop-distribute-patterns)
# Rooms that eat hostile bytes count with care.
CAREFUL_ROOMS := src/device/ src/backend/ src/boot/ src/persist/ src/control/ src/image/
CAREFUL_FLAGS := -Wconversion -Wno-sign-conversion

SOURCES := $(shell find src -name '*.c' ! -name '*_test.c' ! -name '*_fuzz.c')
ASM     := $(shell find src -name '*.S')
TESTS   := $(shell find src -name '*_test.c')
FUZZERS := $(shell find src -name '*_fuzz.c')
COMMAND := $(wildcard cmd/*.c)
HELPER  := $(wildcard cmd/net/*.c)

OBJECTS         := $(SOURCES:%.c=$(OUT)/%.o) $(ASM:%.S=$(OUT)/%.o)
COMMAND_OBJECTS := $(COMMAND:%.c=$(OUT)/%.o)
HELPER_OBJECTS  := $(HELPER:%.c=$(OUT)/%.o)
TEST_PROGRAMS   := $(TESTS:%.c=$(OUT)/%)
ARCHIVE         := $(OUT)/libdoppel.a

programs: $(OUT)/doppel $(OUT)/doppel-net $(TEST_PROGRAMS)

all: $(OUT)/doppel $(OUT)/doppel-net
	@mkdir -p build && ln -sf $(VARIANT)/doppel $(VARIANT)/doppel-net build

$(OUT)/doppel: $(COMMAND_OBJECTS) $(ARCHIVE)
	$(CC) -o $@ $(COMMAND_OBJECTS) $(ARCHIVE) $(LINK)

# The network helper: libslirp is in its process only. (slirp.pc asks for GLib's, which no header of
# libslirp includes and Debian's libslirp-dev does not bring.)
$(OUT)/doppel-net: $(HELPER_OBJECTS) $(ARCHIVE)
	$(CC) -o $@ $(HELPER_OBJECTS) $(ARCHIVE) $(LINK) -lslirp

$(ARCHIVE): $(OBJECTS) $(OUT)/objects
	@rm -f $@
	ar rcs $@ $(OBJECTS)

# The rooms' rules are for the code, not for the tests beside it.
room-flags = $(if $(filter-out %_test.c %_fuzz.c,$(filter $(addsuffix %,$(GENERAL_ROOMS)),$(1))),$(GENERAL_FLAGS)) \
             $(if $(filter-out %_test.c %_fuzz.c,$(filter $(addsuffix %,$(CAREFUL_ROOMS)),$(1))),$(CAREFUL_FLAGS))

$(OUT)/%.o: %.c $(OUT)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(call room-flags,$<) -c -o $@ $<

$(OUT)/%.o: %.S $(OUT)/flags
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -c -o $@ $<

$(OUT)/src/image/recipe.o: $(wildcard src/image/recipe/*.sh)

$(OUT)/%_test: $(OUT)/%_test.o $(ARCHIVE)
	$(CC) -o $@ $< $(ARCHIVE) $(LINK) -lcmocka

# Files that change when a list does: other flags rebuild all, a source that went leaves the archive.
$(OUT)/flags: list := $(CC) $(FLAGS) $(GENERAL_ROOMS) $(GENERAL_FLAGS) $(CAREFUL_ROOMS) $(CAREFUL_FLAGS)
$(OUT)/objects: list := $(OBJECTS)
$(OUT)/flags $(OUT)/objects: always
	@mkdir -p $(@D)
	@echo '$(list)' | cmp -s - $@ || echo '$(list)' >$@

include tests/tests.mk

compile_commands.json:
	bear -- $(MAKE) -B

# The shells' completion, of the table of commands; tests/cmd/completion-tests compares.
completions: all
	build/doppel completion bash >completions/doppel.bash
	build/doppel completion zsh >completions/_doppel
	build/doppel completion fish >completions/doppel.fish

# A stock Linux to its shell, as the README shows it.
run:
	@./dev run

fmt:
	clang-format -i $(shell git ls-files '*.c' '*.h')

clean:
	rm -rf build

.PHONY: all always programs completions run fmt clean
.SECONDARY: # objects of tests and fuzzers are kept
.DEFAULT_GOAL := all
-include $(shell find build/$(VARIANT) -name '*.d' 2>/dev/null)
