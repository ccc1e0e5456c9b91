#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing on Debian 12 / Ubuntu 24.04: `setup.sh build`, and `setup.sh check` for the slower gate too.
# With everything present it needs no root and touches nothing.
set -euo pipefail

build=(g++ cmake ninja-build make git python3 python3-venv python3-dev pkg-config nlohmann-json3-dev libcli11-dev
  libfmt-dev libpcre2-dev libutf8proc-dev libgtest-dev libgmock-dev libopenmpi-dev openmpi-bin)
check=(clang-16 libclang-rt-16-dev clang-format-16 clang-tidy-16)

want=("${build[@]}")
[ "${1:-build}" = check ] && want+=("${check[@]}")

if ! command -v dpkg-query >/dev/null; then
  echo "setup: not a Debian system; needed: ${want[*]} (or what your system calls them)" >&2
  exit 0
fi
missing=()
for package in "${want[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "setup: installing ${missing[*]}"
run=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: these packages are missing and need root: ${missing[*]}" >&2
    echo "setup: run 'apt-get install ${missing[*]}' as root, then this command again" >&2
    exit 1
  fi
  run=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${run[@]}" apt-get update -qq &&
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
  >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup: apt-get failed" >&2
  exit 1
fi
