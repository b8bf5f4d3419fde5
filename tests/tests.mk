# The test tiers: test (minutes, after each edit), check (what CI runs), soak (full numbers).

test: programs
	@tools/run-tests $(TEST_PROGRAMS)

# What runs no translated code and starts no jail: the part that SAN=thread is for.
JAILED := src/engine/% src/control/% src/image/kernel_read_test
test-device: $(filter-out $(JAILED:%=$(OUT)/%),$(TEST_PROGRAMS))
	@tools/run-tests $^

# Everything, with both compilers and the sanitizers; ends with "N passed, N failed".
check:
	@tools/check

# The full numbers of one thing, noted in docs/soak.md; `make soak` lists the names.
soak:
	@tools/soak $(T)

# Code that runs while guest vector state is in the CPU leaves vector registers alone.
check-general: $(ARCHIVE)
	@tools/check-general $(OUT)

# Slow, and a matter of opinion in places, so nothing depends on it.
tidy:
	clang-tidy --quiet $(if $(T),$(T),$(SOURCES) $(COMMAND)) -- $(FLAGS)

include tests/fuzz.mk
-include $(sort $(wildcard tests/guest/guest.mk tests/differential/*.mk tests/bench/*.mk tests/disk/*.mk))

.PHONY: test test-device check soak check-general tidy
