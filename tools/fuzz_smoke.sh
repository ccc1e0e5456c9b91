#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of a build folder for some seconds on its corpus: fuzz_smoke.sh BUILD SECONDS.
set -euo pipefail
build=$1
seconds=$2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
run_one() {  # new inputs go to a scratch folder, so that a run does not change the tree
  local target=$1 name
  name=$(basename "$target")
  mkdir -p "$work/$name"
  if ! "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$work/$name-" "$work/$name" "tests/fuzz/corpus/${name#fuzz_}" >"$work/$name.log" 2>&1; then
    tail -n 60 "$work/$name.log"
    echo "fuzz: $name failed"
    return 1
  fi
  echo "fuzz: $name: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "$work/$name.log" | grep -o '[0-9]*$') runs in $seconds s"
}
export -f run_one
export work seconds
targets=$(find "$build" -type f -executable -name 'fuzz_*' | sort)
[ -n "$targets" ] || { echo "fuzz: no target was built in $build"; exit 1; }
echo "$targets" | xargs -P "$(nproc)" -I{} bash -c 'run_one {}'
