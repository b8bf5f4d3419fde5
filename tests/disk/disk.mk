# The image tests: tests/disk/run-tests needs these.

DISK_TESTS := $(patsubst tests/disk/%.c,$(OUT)/tests/disk/%,$(wildcard tests/disk/*.c))

$(OUT)/tests/disk/%: $(OUT)/tests/disk/%.o $(ARCHIVE)
	$(CC) -o $@ $< $(ARCHIVE) $(LINK)

disk-tests: $(OUT)/doppel $(DISK_TESTS)

.PHONY: disk-tests
