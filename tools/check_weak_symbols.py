#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fails where an instruction-set unit leaves a weak symbol.

A weak symbol (an inline function of a standard header, a template outside an anonymous namespace) that was compiled
with -mavx512f may be the copy that the linker gives to everyone, and crash machines without AVX-512. Reads the objects
of an archive with nm and fails on every weak or unique-global symbol in the units that are named.
"""
import argparse
import subprocess
import sys

WEAK = set("vVwWu")


def weak_symbols(nm, archive, unit):
    """(object, symbol) of every defined weak symbol, and how many objects of that name were seen."""
    text = subprocess.run([nm, "-C", archive], check=True, capture_output=True, text=True).stdout
    found, seen, inside, current = [], 0, False, ""
    for line in text.splitlines():
        if line.endswith(":"):
            current = line[:-1]
            inside = current == unit
            seen += inside
            continue
        parts = line.split(maxsplit=2)
        # An undefined weak reference ("w name") has no address and is no definition.
        if inside and len(parts) == 3 and parts[1] in WEAK:
            found.append((current, parts[2]))
    return found, seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nm", default="nm")
    parser.add_argument("--archive", required=True)
    parser.add_argument("--units", nargs="+", required=True, help="object names inside the archive")
    parser.add_argument("--count", type=int, default=1, help="objects of each name that must be there")
    args = parser.parse_args()
    bad = 0
    for unit in args.units:
        found, seen = weak_symbols(args.nm, args.archive, unit)
        if seen != args.count:
            print(f"{args.archive}: expected {args.count} objects named {unit}, found {seen}")
            bad += 1
        for obj, symbol in found:
            print(f"{args.archive}({obj}): weak symbol {symbol}")
            bad += 1
    if bad == 0:
        print(f"no weak symbols in {', '.join(args.units)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
