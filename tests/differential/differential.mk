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
	$(DIFFERENTIAL) --unsurveyed 4 --engine translate --hot --cpu-model v3 --cases 20 --sample 50
	$(DIFFERENTIAL) --unsurveyed 4 --engine translate --hot --cpu-model v3 --sequences 100000

differential-soak: $(DIFFERENTIAL)
	for model in v2 v3 host; do \
	    for engine in interp translate; do \
	        $(DIFFERENTIAL) --engine $$engine --cpu-model $$model --cases 200 && \
	        $(DIFFERENTIAL) --engine $$engine --cpu-model $$model --sequences 500000 || exit 1; \
	    done; \
	done

.PHONY: differential-test differential-soak
