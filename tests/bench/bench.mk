# The benchmark: `make bench` (options in BENCH, e.g. make bench BENCH="--rounds 1 --cpus 2").

BENCH :=
BENCH_OUT := $(OUT)/tests/bench
# A guest program: the same bytes whatever the variant, without sanitizers.
$(BENCH_OUT)/guest_benchmark: tests/bench/guest_benchmark.c
	@mkdir -p $(@D)
	gcc -std=gnu17 -O2 -static -pthread -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-unused-parameter -o $@ $<

$(BENCH_OUT)/bench: tests/bench/bench.c
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -MF $@.d -o $@ $< -lm

bench: all $(BENCH_OUT)/guest_benchmark $(BENCH_OUT)/bench
	OUT=$(OUT) tests/bench/run $(BENCH)

.PHONY: bench
