# The benchmarks: `make bench`, and `make bench-programs` with programs of a Debian root (options in
# BENCH, e.g. make bench BENCH="--rounds 1 --cpus 2").

BENCH :=
BENCH_OUT := $(OUT)/tests/bench
# A guest program: the same bytes whatever the variant, without sanitizers.
$(BENCH_OUT)/guest_benchmark: tests/bench/guest_benchmark.c tests/bench/rows.h
	@mkdir -p $(@D)
	gcc -std=gnu17 -O2 -static -pthread -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-parameter -o $@ $<

$(BENCH_OUT)/bench $(BENCH_OUT)/picture: $(BENCH_OUT)/%: $(BENCH_OUT)/%.o $(BENCH_OUT)/results.o
	$(CC) -o $@ $^ $(LINK) -lm

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

# The table and the picture in docs/performance.md, from saved results. Those that are missing are
# measured first; remove the files to measure again.
BENCH_RESULTS := $(addprefix build/bench/,v2.json host.json)
$(BENCH_RESULTS): build/bench/%.json: | all $(BENCH_OUT)/guest_benchmark $(BENCH_OUT)/bench
	@mkdir -p $(@D)
	OUT=$(OUT) tests/bench/run --cpu-model $* --save $@ $(BENCH)

bench-picture: $(BENCH_RESULTS) $(BENCH_OUT)/picture
	$(BENCH_OUT)/picture --text docs/performance.md --svg docs/performance.svg $(BENCH_RESULTS)

bench-picture-test: $(BENCH_OUT)/picture
	tests/bench/picture-test $<

bench-programs: all $(BENCH_OUT)/inputs/made $(BENCH_OUT)/bench
	OUT=$(OUT) tests/bench/programs/run $(BENCH)

.PHONY: bench bench-picture bench-picture-test bench-programs
