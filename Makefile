# Doppel's build: one page. File names are the build description:
#   src/**/x.c        code              src/**/x_test.c   a unit test (a program, cmocka)
#   cmd/*.c           the program       src/**/x_fuzz.c   a fuzzer (clang, libFuzzer)
# Variants: CC=clang, SAN=address,undefined or SAN=thread; each has its own folder below build/.

CC      := gcc
SAN     :=
comma   := ,
VARIANT := $(notdir $(CC))$(if $(SAN),-$(subst $(comma),-,$(SAN)))
OUT     := build/$(VARIANT)

# Debian's libzydis-dev has no pkg-config file; its headers are on the default path.
LIBRARIES := liburing libseccomp jansson zlib
FLAGS := -std=gnu17 -O2 -g -pthread -Isrc -MMD -MP -D_GNU_SOURCE -fno-strict-aliasing \
         -fno-omit-frame-pointer -Wall -Wextra -Werror -Wshadow -Wvla -Wundef -Wformat=2 \
         -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith \
         -Wimplicit-fallthrough -Wno-unused-parameter $(shell pkg-config --cflags $(LIBRARIES))
ifeq ($(SAN),)
FLAGS += -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
else
FLAGS += -fsanitize=$(SAN) -fno-sanitize-recover=all
endif
LINK := $(shell pkg-config --libs $(LIBRARIES)) -lZydis -pthread

# Rooms that run while guest vector state is in the CPU: no vector registers, no calls to
# functions that might use them behind our back (docs/translate.md).
GENERAL_ROOMS := src/memory/ src/x86/ src/engine/
GENERAL_FLAGS := -mgeneral-regs-only
# Rooms that eat hostile bytes count with care.
CAREFUL_ROOMS := src/device/ src/backend/ src/boot/ src/persist/ src/control/
CAREFUL_FLAGS := -Wconversion -Wno-sign-conversion

SOURCES := $(shell find src -name '*.c' ! -name '*_test.c' ! -name '*_fuzz.c')
ASM     := $(shell find src -name '*.S')
TESTS   := $(shell find src -name '*_test.c')
FUZZERS := $(shell find src -name '*_fuzz.c')
COMMAND := $(wildcard cmd/*.c)

OBJECTS         := $(SOURCES:%.c=$(OUT)/%.o) $(ASM:%.S=$(OUT)/%.o)
COMMAND_OBJECTS := $(COMMAND:%.c=$(OUT)/%.o)
TEST_PROGRAMS   := $(TESTS:%.c=$(OUT)/%)
ARCHIVE         := $(OUT)/libdoppel.a

all: $(OUT)/doppel
	@mkdir -p build && ln -sf $(VARIANT)/doppel build/doppel

$(OUT)/doppel: $(COMMAND_OBJECTS) $(ARCHIVE)
	$(CC) $(FLAGS) -o $@ $(COMMAND_OBJECTS) $(ARCHIVE) $(LINK)

$(ARCHIVE): $(OBJECTS)
	@rm -f $@
	ar rcs $@ $^

room-flags = $(if $(filter $(addsuffix %,$(GENERAL_ROOMS)),$(1)),$(GENERAL_FLAGS)) \
             $(if $(filter $(addsuffix %,$(CAREFUL_ROOMS)),$(1)),$(CAREFUL_FLAGS))

$(OUT)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(call room-flags,$<) -c -o $@ $<

$(OUT)/%.o: %.S
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -c -o $@ $<

$(OUT)/%_test: %_test.c $(ARCHIVE)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MF $@.d -o $@ $< $(ARCHIVE) $(LINK) -lcmocka

include tests/tests.mk

compile_commands.json:
	bear -- $(MAKE) -B

fmt:
	clang-format -i $(shell git ls-files '*.c' '*.h')

clean:
	rm -rf build

.PHONY: all fmt clean
.DEFAULT_GOAL := all
-include $(shell find build/$(VARIANT) -name '*.d' 2>/dev/null)
