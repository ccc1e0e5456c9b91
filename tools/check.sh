#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The slower gate: format, layers, tidy, ASan+UBSan, TSan, fuzz smoke. Called by `make check`; clang 16.
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=$(nproc)
launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)

step() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }
configure() {  # configure FOLDER FLAGS...
  local folder=$1
  shift
  cmake -S . -B "$folder" -G Ninja -DCMAKE_C_COMPILER=clang-16 -DCMAKE_CXX_COMPILER=clang++-16 "${launcher[@]}" \
    -DQD_BUILD_BENCH=OFF "$@" >"$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
  rm -f "$folder.log"
}

step format
git ls-files '*.h' '*.cpp' '*.c' '*.cu' '*.cuh' | xargs clang-format-16 --dry-run -Werror
step layers
python3 tools/check_layers.py
step streams
python3 tools/check_streams.py --self-test
python3 tools/check_streams.py

step units  # of clang; `make test` looks at those of g++
configure build-units -DCMAKE_BUILD_TYPE=Release -DQD_BUILD_TESTS=OFF
cmake --build build-units -j "$jobs" --target quadrille_kernels_cpu
python3 tools/check_isa.py build-units --self-test

step 'address and undefined behaviour'  # one build serves these tests, tidy and the fuzz targets
configure build-asan -DCMAKE_BUILD_TYPE=Release -DQD_SANITIZE=address,undefined -DQD_BUILD_FUZZ=ON
cmake --build build-asan -j "$jobs"
ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  tools/run_tests.py build-asan -j "$jobs" --exclude-label slow,fuzz

step fuzz
tools/fuzz_smoke.sh build-asan 30

step threads
configure build-tsan -DCMAKE_BUILD_TYPE=Release -DQD_SANITIZE=thread
cmake --build build-tsan -j "$jobs" --target thread_pool_test parallel_test engine_test engine_threads_test engine_soak_test session_test
tools/run_tests.py build-tsan -j "$jobs" -R '^(thread_pool|parallel|engine|engine_threads|engine_soak|session)_test$'

step tidy
# Units with CUDA or MPI headers are not in this build: their own builds check them.
git ls-files 'src/*.cpp' 'cli/*.cpp' | grep -vE '^src/(device/cuda_|kernels/cuda/|parallel/mpi_module)' | xargs -P "$jobs" -n 4 clang-tidy-16 -p build-asan --quiet >build-asan/tidy.log 2>&1 || {
  grep -E 'error:|warning:' build-asan/tidy.log | sort -u | head -n 60
  exit 1
}
step done
