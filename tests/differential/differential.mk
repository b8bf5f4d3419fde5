# The instruction differential test (tests/differential): a sample in check, everything in soak.

DIFFERENTIAL := $(OUT)/tests/differential/differential

$(DIFFERENTIAL): $(wildcard tests/differential/*.c) tests/differential/differential.h $(ARCHIVE)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -I. -MF $@.d -o $@ $(filter %.c,$^) $(ARCHIVE) $(LINK)

differential-test: $(DIFFERENTIAL)
	for engine in interp translate; do \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine $$engine --cpu-model v2 --cases 20 --sample 30 && \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine $$engine --cpu-model v3 --cases 20 && \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine $$engine --cpu-model host --cases 20 --sample 30 && \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine $$engine --cpu-model v3 --sequences 20000 || exit 1; \
	done
	$(DIFFERENTIAL) --unsurveyed 4 --engine translate --code hot=all --cpu-model v3 --cases 20 --sample 50
	$(DIFFERENTIAL) --unsurveyed 4 --engine translate --code hot=all --cpu-model v3 --sequences 100000
	random=hot=all,random=$$(date +%s) && echo "$$random" && \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine translate --code $$random --cpu-model v3 --cases 20 --sample 30 && \
	    $(DIFFERENTIAL) --unsurveyed 4 --engine translate --code $$random --cpu-model v3 --sequences 50000

# Each optimization of translate off, and at random.
optimizations-soak: $(DIFFERENTIAL)
	for name in addresses chains groups links loops recipes registers returns strides strings versions; do \
	    $(DIFFERENTIAL) --engine translate --code hot=all,without=$$name --cpu-model v3 --sequences 100000 || exit 1; \
	done
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
	    $(DIFFERENTIAL) --engine translate --code hot=all,random=$$seed --cpu-model v3 --sequences 100000 || exit 1; \
	done

differential-soak: $(DIFFERENTIAL)
	for model in v2 v3 host; do \
	    for engine in interp translate; do \
	        $(DIFFERENTIAL) --engine $$engine --cpu-model $$model --cases 200 && \
	        $(DIFFERENTIAL) --engine $$engine --cpu-model $$model --sequences 500000 || exit 1; \
	    done; \
	done

.PHONY: differential-test differential-soak optimizations-soak
