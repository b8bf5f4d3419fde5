# The test tiers: test (minutes, after each edit), check (what CI runs), soak (full numbers).

test: all $(TEST_PROGRAMS)
	@tools/run-tests $(TEST_PROGRAMS)

# Everything, with both compilers and the sanitizers; ends with "N passed, N failed".
check:
	@tools/check

.PHONY: test check
