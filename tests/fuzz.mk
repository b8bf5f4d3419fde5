# Fuzzers: src/**/NAME_fuzz.c is the fuzzer NAME, its inputs are in tests/corpus/NAME. Its opening
# comment has a line "Guards: src/x/y.c ..." with the files that it is to cover.
#
#   make fuzz T=NAME [TIME=60]   look for TIME seconds; new inputs stay below build/corpus
#   make fuzz-all [TIME=60]      each fuzzer, one after another
#   make corpus [T=NAME]         what build/corpus adds in coverage goes to tests/corpus, minimized
#   make fuzz-soak [SECONDS=2600] [T=NAME]  each until it used SECONDS of CPU time; goes on where it
#                                was interrupted (make fuzz-report says how far it is)
#   make fuzz-replay             run the committed inputs: part of make check
#   make fuzz-coverage           lines covered by the committed inputs; at least 85% is wanted

TIME ?= 60
SECONDS ?= 2600
FUZZ_NAMES := $(sort $(patsubst %_fuzz.c,%,$(notdir $(FUZZERS))))
FUZZ_CHOSEN := $(if $(T),$(T),$(FUZZ_NAMES))
FUZZ_PROGRAMS := $(foreach name,$(FUZZ_CHOSEN),$(patsubst %.c,$(OUT)/%,$(filter %/$(name)_fuzz.c,$(FUZZERS))))
FUZZ_MAKE := +@$(MAKE) --no-print-directory CC=clang

$(OUT)/%_fuzz: $(OUT)/%_fuzz.o $(ARCHIVE)
	$(CC) -fsanitize=fuzzer -o $@ $< $(ARCHIVE) $(LINK) -lcapstone

fuzz-programs: $(FUZZ_PROGRAMS)
	@$(if $(filter-out $(FUZZ_NAMES),$(FUZZ_CHOSEN)),echo "no fuzzer is named $(T); there are: $(FUZZ_NAMES)" >&2; exit 1)

fuzz:
	@$(if $(T),,echo "make fuzz T=NAME [TIME=60]; there are: $(FUZZ_NAMES)" >&2; exit 1)
	$(FUZZ_MAKE) SAN=fuzz fuzz-programs
	@tools/fuzz run $(TIME) $(T)

fuzz-all:
	$(FUZZ_MAKE) SAN=fuzz fuzz-programs
	@tools/fuzz run $(TIME) $(FUZZ_CHOSEN)

fuzz-soak fuzz-report:
	$(FUZZ_MAKE) SAN=fuzz fuzz-programs
	$(FUZZ_MAKE) SAN=coverage fuzz-programs
	@tools/fuzz $(@:fuzz-%=%) $(SECONDS) $(FUZZ_CHOSEN)

corpus:
	$(FUZZ_MAKE) SAN=fuzz fuzz-programs
	@tools/fuzz minimize $(FUZZ_CHOSEN)

fuzz-replay:
	$(FUZZ_MAKE) SAN=fuzz fuzz-programs
	@tools/fuzz replay $(FUZZ_CHOSEN)

fuzz-coverage:
	$(FUZZ_MAKE) SAN=coverage fuzz-programs
	@tools/fuzz coverage $(FUZZ_CHOSEN)

.PHONY: fuzz fuzz-all fuzz-soak fuzz-report fuzz-programs corpus fuzz-replay fuzz-coverage
