#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Both held-out sets of models/abacus in W4A8 (both numerics) and bf16: eval_abacus.sh BUILD.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1/bin/quadrille
for model in w4a8 bf16; do
  for numerics in exact vllm; do
    [ "$model $numerics" = "bf16 vllm" ] && continue
    for task in gsm8k mmlu-pro; do
      file=models/abacus/${task/-/_}.jsonl
      echo "== $task $model $numerics"
      "$program" eval "$task" "models/abacus/$model" --data "$file" --numerics "$numerics"
    done
  done
done
