# The instruction differential test (tests/differential): a sample in check, everything in soak.
# Of translate the sample tolerates the few forms that are known to differ; the full run none.

DIFFERENTIAL := $(OUT)/tests/differential/differential

$(DIFFERENTIAL): $(wildcard tests/differential/*.c) tests/differential/differential.h $(ARCHIVE)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) -I. -MF $@.d -o $@ $(filter %.c,$^) $(ARCHIVE) $(LINK)

differential-test: $(DIFFERENTIAL)
	$(DIFFERENTIAL) --engine interp --cpu-model v2 --cases 20 --sample 30
	$(DIFFERENTIAL) --engine interp --cpu-model v3 --cases 20
	$(DIFFERENTIAL) --engine interp --cpu-model host --cases 20 --sample 30
	$(DIFFERENTIAL) --engine translate --cpu-model v3 --cases 40 --sample 10 --tolerate 4

differential-soak: $(DIFFERENTIAL)
	for model in v2 v3 host; do \
	    for engine in interp translate; do \
	        $(DIFFERENTIAL) --engine $$engine --cpu-model $$model --cases 200 || exit 1; \
	    done; \
	done

.PHONY: differential-test differential-soak
