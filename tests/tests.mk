# The test tiers: test (minutes, after each edit), check (what CI runs), soak (full numbers).

test: all $(TEST_PROGRAMS)
	@tools/run-tests $(TEST_PROGRAMS)

.PHONY: test
