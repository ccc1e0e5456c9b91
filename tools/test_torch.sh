#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The Python package beside PyTorch, transformers and JAX: `make test-torch`. For each line of QD_TORCH_CASES ("PYTHON
# PACKAGES") a temporary environment is made, filled without a package cache, tested and removed again before the next.
# Environments lie in TMPDIR, about 8 GB at a time. Takes the build folder whose library and program are tested. Golden
# models: those of QUADRILLE_GOLDEN, else the two in tests/data.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${1:-build}")
cases=${QD_TORCH_CASES:-"python3.11 torch==2.4.1 transformers==4.57.* numpy<2.3
python3.13 torch transformers>=5 numpy jax"}
need_gb=12 # wheels and what they unpack to, measured 8 with torch 2.15

free_gb=$(df --output=avail -BG "${TMPDIR:-/tmp}" | tail -n 1 | tr -dc 0-9)
if [ "$free_gb" -lt "$need_gb" ]; then
  echo "test_torch: expected ${need_gb} GB free in ${TMPDIR:-/tmp}, found ${free_gb}: set TMPDIR to a larger disk" >&2
  exit 1
fi

find_python() { # python3.11 -> its path: on PATH, or of pyenv
  local path
  for path in "$(command -v "$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"${1#python}".*/bin/"$1"; do
    if [ -x "$path" ] && "$path" -c 'import venv, ensurepip' 2>/dev/null; then
      echo "$path"
      return
    fi
  done
  echo "test_torch: expected $1 on PATH or in pyenv, found none: install it, or name another in QD_TORCH_CASES" >&2
  return 1
}

room=
trap 'rm -rf "$room"' EXIT
passed=0 failed=0 skipped=0
while read -r python packages; do
  [ -n "$python" ] || continue
  interpreter=$(find_python "$python")
  room=$(mktemp -d)
  "$interpreter" -m venv "$room/venv"
  read -ra names <<<"$packages"
  # TMPDIR: wheels are unpacked in the room too, and go with it.
  TMPDIR=$room "$room/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check "${names[@]}" pytest
  TMPDIR=$room "$room/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    --config-settings=build-dir="$room/build" --config-settings=cmake.define.QD_LIBRARY_DIR="$build" .
  echo "== $python: $("$room/venv/bin/pip" freeze | grep -Ei '^(torch|transformers|jax|numpy)==' | tr '\n' ' ')" \
    "$(du -sh "$room" | cut -f1)"
  status=0
  TORCHINDUCTOR_CACHE_DIR=$room/inductor "$room/venv/bin/python" -m pytest -p no:cacheprovider \
    --junitxml "$room/report.xml" tests/python_torch || status=$?
  read -r all bad not < <("$room/venv/bin/python" -c '
import sys, xml.etree.ElementTree as tree
suites = tree.parse(sys.argv[1]).getroot().iter("testsuite")
print(*[sum(column) for column in zip(*[
    (int(s.get("tests")), int(s.get("failures")) + int(s.get("errors")), int(s.get("skipped"))) for s in suites])])
' "$room/report.xml")
  [ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1 # pytest itself failed
  passed=$((passed + all - bad - not)) failed=$((failed + bad)) skipped=$((skipped + not))
  rm -rf "$room"
done <<<"$cases"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
