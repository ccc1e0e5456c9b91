#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes a W4A8 folder of an unquantised one, shows what rounding did to each kind of matrix, and loads the result.

usage: quantize_folder.py BF16_FOLDER OUT [--group-size 32|64|128|0]
"""
import argparse
import sys

import quadrille


def show_progress(what: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{100 * done // max(total, 1):3} % {what[:60]:60}", end="\r", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--group-size", type=int, default=128, choices=(0, 32, 64, 128))
    arguments = parser.parse_args()

    report = quadrille.quantize_folder(arguments.folder, arguments.out, group_size=arguments.group_size,
                                       progress=show_progress)
    for kind, error in report["by_kind"].items():
        print(f"{kind:12} {error['weights']:12,} weights, relative rms error {100 * error['relative_rms_error']:.2f} %")
    print(f"{report['bytes_in'] / 1e6:.1f} MB -> {report['bytes_out'] / 1e6:.1f} MB")

    print("tensor-parallel sizes:", *quadrille.legal_tp(arguments.out))
    with quadrille.Model.load(arguments.out) as model:
        memory = model.describe()["memory"]
        print(f"loads: {memory['weight_bytes'] / 1e6:.1f} MB of weights in memory")


if __name__ == "__main__":
    main()
