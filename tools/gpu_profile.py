#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a step goes on a GPU: the kernels of one layer, timed by Nsight Compute at the true clocks.

usage: gpu_profile.py QUADRILLE --shape NAME [--batch N] [--prefill N] [--layers N] [--context N]
Runs `QUADRILLE bench` with few layers under ncu and prints two tables in Markdown: a decode step of the batch and a
prefill, each kernel's mean over the layers. ncu runs kernels one at a time, so launch gaps are not in it and what
overlaps in a graph does not overlap here; caches stay as the kernel before left them.
"""
import argparse
import csv
import re
import subprocess
import sys
import tempfile


def measure(args):
    with tempfile.NamedTemporaryFile("r", suffix=".csv") as log:
        command = ["ncu", "--clock-control", "none", "--cache-control", "none", "--metrics", "gpu__time_duration.sum",
                   "--csv", "--log-file", log.name, args.program, "bench", "--shape", args.shape, "--layers",
                   str(args.layers), "--device", "cuda", "--batch", str(args.batch), "--context", str(args.context),
                   "--prefill", str(args.prefill), "--rounds", "1", "--decode", "2"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"gpu_profile.py: {' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        rows = list(csv.reader(line for line in log if line.startswith('"')))
    head = rows[0]
    name, value, grid = (head.index(column) for column in ("Kernel Name", "Metric Value", "Grid Size"))
    # A name without its arguments and anonymous namespaces.
    short = lambda text: re.sub(r"\(anonymous namespace\)::|<unnamed>::|unnamed>::|^void |\(.*$", "", text)
    return [(short(r[name]), float(r[value].replace(",", "")) / 1e3, r[grid].replace(" ", "")) for r in rows[1:]]


def steps_of(kernels):
    """A step begins with the embedding."""
    steps = []
    for kernel in kernels:
        if kernel[0].startswith("embed"):
            steps.append([])
        if steps:
            steps[-1].append(kernel)
    return steps


def print_step(title, step, layers):
    tail = 3  # last norm, head, greedy choice
    body = step[1:-tail]
    if not body or len(body) % layers:
        sys.exit(f"gpu_profile.py: {title}: {len(step)} kernels are no {layers} equal layers between embedding and head")
    size = len(body) // layers
    print(f"\n{title}\n\n| kernel | grid | us |\n|---|---|---|")
    total = 0.0
    for i in range(size):
        layer = body[i::size]
        mean = sum(k[1] for k in layer) / len(layer)
        total += mean
        print(f"| {layer[-1][0]} | {layer[-1][2]} | {mean:.1f} |")
    print(f"| a layer, {size} kernels | | {total:.1f} |")
    for kernel in [step[0], *step[-tail:]]:
        print(f"| {kernel[0]} | {kernel[2]} | {kernel[1]:.1f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prefill", type=int, default=4096)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    steps = steps_of(measure(args))
    tokens = lambda step: int(re.match(r"\((\d+)", step[0][2]).group(1))
    # The last step of each is watched and has the observers' kernels: the shortest is taken.
    whole = [s for s in steps if any("greedy" in k[0] for k in s)]
    for title, count in ((f"decode, batch {args.batch}, context {args.context}", args.batch),
                         (f"prefill of {args.prefill} tokens", args.prefill)):
        found = [s for s in whole if tokens(s) == count]
        if not found:
            sys.exit(f"gpu_profile.py: no step of {count} tokens among {len(steps)}")
        print_step(title, min(found, key=len), args.layers)


if __name__ == "__main__":
    main()
