# SPDX-License-Identifier: Apache-2.0
# A thin front over CMake. `make demo` and `make test` install what is missing, build, and run.
BUILD ?= build
JOBS ?= $(shell nproc)
CMAKE_FLAGS ?=
LAUNCHER := $(if $(shell command -v ccache),-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
MODEL := models/abacus
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)

.PHONY: all setup configure program build wheel demo test test-torch check bench eval format clean
all: build

setup:
	@tools/setup.sh build

configure: setup
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(LAUNCHER) $(CMAKE_FLAGS) >$(BUILD).log 2>&1 || \
	  { mkdir -p $(BUILD); cat $(BUILD).log; exit 1; }
	@mkdir -p $(BUILD) && mv -f $(BUILD).log $(BUILD)/configure.log

program: configure  # the program alone, without tests
	@cmake --build $(BUILD) --target quadrille

build: configure
	@cmake --build $(BUILD)

wheel: setup  # the Python package, compiled from scratch (minutes): BUILD/wheel
	@python3 -m venv $(BUILD)/wheel-maker && $(BUILD)/wheel-maker/bin/pip wheel -q --no-deps -w $(BUILD)/wheel .

demo: program
	@$(BUILD)/bin/quadrille run $(MODEL)/w4a8 --problems $(MODEL)/gsm8k.jsonl --count 5

test: build
	@tools/run_tests.py $(BUILD) -j $(JOBS)

test-torch: program  # the Python package beside PyTorch, transformers, JAX; downloads them (docs/python.md)
	@cmake --build $(BUILD) --target quadrille_shared
	@tools/test_torch.sh $(BUILD)

bench: program  # ratios to ceilings probed in the same process; a few minutes (docs/benchmarks_cpu.md)
	@cmake --build $(BUILD) --target quadrille_bench
	@tools/bench_cpu.sh $(BUILD) $(MODEL)/w4a8

eval: program  # the whole of both held-out sets, W4A8 and bf16, and W4A8 over ranks (most of an hour on two cores)
	@tools/eval_abacus.sh $(BUILD)
	@tools/eval_ranks.py $(BUILD)

check:
	@tools/setup.sh check
	@tools/check.sh

format:
	@tools/setup.sh check
	@git ls-files '*.h' '*.cpp' '*.c' '*.cu' '*.cuh' | xargs clang-format-16 -i

clean:
	@rm -rf $(BUILD) build-*
