#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the library into a scratch folder, builds the examples against it with find_package, and runs them. Without
# a Hopper GPU they must say the reason and exit with 77. usage: install_test.sh CMAKE SOURCE BUILD GENERATOR CXX CC
set -euo pipefail
cmake=$1 source=$2 build=$3 generator=$4 cxx=$5 cc=$6
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$cmake" --install "$build" --component library --prefix "$scratch/prefix" >"$scratch/install.log"
"$cmake" -S "$source/examples" -B "$scratch/build" -G "$generator" -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_C_COMPILER="$cc" \
  -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_CXX_FLAGS='-Wall -Wextra -Werror' \
  -DCMAKE_C_FLAGS='-std=c11 -pedantic -Wall -Wextra -Werror' >"$scratch/configure.log" || { cat "$scratch/configure.log"; exit 1; }
"$cmake" --build "$scratch/build" >"$scratch/build.log" || { cat "$scratch/build.log"; exit 1; }

library=$(find "$scratch/prefix" -name 'libquadrille.so' | head -n 1)
foreign=$(nm -D --defined-only "$library" | awk '$2 ~ /[A-Z]/ {print $3}' | grep -v '^qd_' || true)
[ -z "$foreign" ] || { echo "libquadrille.so shows more than its C functions: $foreign"; exit 1; }
! ldd "$library" | grep -Ei 'libcuda|cudart|nccl|mpi' || { echo "libquadrille.so needs a GPU library to load"; exit 1; }

for example in moe_layer linear; do
  status=0
  "$scratch/build/$example" >"$scratch/out" 2>&1 || status=$?
  cat "$scratch/out"
  case $status in
    0) grep -q 'bf16' "$scratch/out" ;;
    77) grep -qE '^skipped: .+(expected|configure)' "$scratch/out" ;;
    *) echo "$example: exit code $status"; exit 1 ;;
  esac
done
