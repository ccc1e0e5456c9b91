#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Measures everything that docs/benchmarks_cpu.md reports: products, the MoE layer and whole models, for every CPU table
# that runs here. Called by `make bench`. Usage: tools/bench_cpu.sh BUILD MODEL
set -eu
build=$1
model=$2
bench="$build/bin/quadrille_bench"

say() { printf '\n== %s\n' "$1"; }
# A table that does not run here is skipped, with its reason.
runs() { "$bench" --kernels "$1" --only nothing --rounds 1; }

say "The grouped product"
for table in amx avx512 vdpbf16 avx2; do
  reason=$(runs "$table" 2>&1 >/dev/null) || { printf '%s: skipped: %s\n' "$table" "$reason"; continue; }
  case "$table" in
    avx2) "$bench" --kernels "$table" --only w4a8 --rows 1 ;;
    *) "$bench" --kernels "$table" --only w4a8 --rounds 5 ;;
  esac
done

say "The MoE layer"
"$bench" layer

say "Whole models"
"$build/bin/quadrille" bench "$model"
"$build/bin/quadrille" bench --shape qwen3-30b-a3b --layers 4 --rounds 5
"$build/bin/quadrille" bench --shape qwen3-30b-a3b --layers 4 --rounds 5 --numerics vllm
"$build/bin/quadrille" bench --shape mixtral-8x7b --layers 2 --rounds 3
