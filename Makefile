# make demo    build, fetch a small text, train it in bf16 and in two 4-bit recipes, compare them
# make test    build and run all ordinary tests
# make check   everything else: sanitizers, clang, formatting, installation, CUDA compilation where nvcc is
# make bench   the benchmarks behind docs/performance.md
# make conformance   measures every published invariant and writes docs/conformance.md
# Each target does its own set-up. JOBS=N limits the parallelism.

JOBS  ?= $(shell nproc)
BUILD := build/cpu

.PHONY: demo test check bench conformance build packages format clean
.DEFAULT_GOAL := build

demo: build
	@scripts/demo.sh $(BUILD)/nibble

test: build-tests
	@ctest --preset cpu -j $(JOBS)

check: $(BUILD)/build.ninja
	@scripts/check.sh $(JOBS)

bench: build-bench
	@scripts/bench.sh $(BUILD)

conformance: build-tests
	@scripts/conformance.py $(BUILD)

build: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target nibble_program

build-tests: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS)

build-bench: $(BUILD)/build.ninja
	@cmake --build $(BUILD) -j $(JOBS) --target benchmarks

$(BUILD)/build.ninja: | packages
	@cmake --preset cpu

packages:
	@scripts/install_packages.sh

format:
	@git ls-files '*.h' '*.cpp' | xargs clang-format -i

clean:
	@rm -rf build
