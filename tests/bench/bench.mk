# The benchmarks: `make bench`, and `make bench-programs` with programs of a Debian root (options in
# BENCH, e.g. make bench BENCH="--rounds 1 --cpus 2").

BENCH :=
BENCH_OUT := $(OUT)/tests/bench
# A guest program: the same bytes whatever the variant, without sanitizers.
$(BENCH_OUT)/guest_benchmark: tests/bench/guest_benchmark.c tests/bench/rows.h
	@mkdir -p $(@D)
	gcc -std=gnu17 -O2 -static -pthread -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-parameter -o $@ $<

$(BENCH_OUT)/bench: tests/bench/bench.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MF $@.d -o $@ $< -lm

$(BENCH_OUT)/programs: tests/bench/programs/programs.c tests/bench/rows.h
	@mkdir -p $(@D)
	gcc -std=gnu17 -O2 -static -D_GNU_SOURCE -Wall -Wextra -Werror -o $@ $<

# The inputs of the programs, with what measures them.
$(BENCH_OUT)/inputs/made: $(BENCH_OUT)/programs $(addprefix tests/bench/programs/,generate.py compute.py crypto.c)
	rm -rf $(@D)
	tests/bench/programs/generate.py $(@D)
	cp $< $(filter-out %/generate.py,$(wordlist 2,9,$^)) $(@D)
	touch $@

bench: all $(BENCH_OUT)/guest_benchmark $(BENCH_OUT)/bench
	OUT=$(OUT) tests/bench/run $(BENCH)

bench-programs: all $(BENCH_OUT)/inputs/made $(BENCH_OUT)/bench
	OUT=$(OUT) tests/bench/programs/run $(BENCH)

.PHONY: bench bench-programs
