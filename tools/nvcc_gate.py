#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs nvcc and fails where ptxas reports what costs speed silently: wgmma serialised (C75xx), spills, local memory.

usage: nvcc_gate.py NVCC ARGUMENTS...   (a compiler launcher; ccache may stand in front of nvcc)
tools/ptxas_allow.txt lists the kernels that may: a part of the mangled name, and the reason.
"""
import re
import subprocess
import sys
from pathlib import Path

NOISE = re.compile(r"^ptxas info\s+: (Compiling entry|Function properties|Used \d+ registers|\d+ bytes gmem|Overriding|"
                   r"Compile time)|^\s+\d+ bytes stack frame|^\s*$")


def allowed():
    path = Path(__file__).with_name("ptxas_allow.txt")
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def findings(text):
    names = allowed()
    kernel = "?"
    for line in text.splitlines():
        start = re.search(r"(?:Compiling entry function|Function properties for) '?([\w$.]+)'?", line)
        kernel = start.group(1) if start else kernel
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        bad = "(C75" in line or (frame and any(int(n) for n in frame.groups()))
        if bad and not any(name in kernel or name in line for name in names):
            yield f"{kernel}: {line.strip()}"


def main():
    done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    shown = [line for line in done.stdout.splitlines() if not NOISE.match(line)]
    if shown:
        print("\n".join(shown), flush=True)
    bad = list(dict.fromkeys(findings(done.stdout)))
    if done.returncode == 0 and bad:
        print("ptxas: refused (serialised wgmma, spills or local memory; tools/ptxas_allow.txt lists exceptions):")
        print("\n".join("  " + line for line in bad))
        if "-o" in sys.argv:
            Path(sys.argv[sys.argv.index("-o") + 1]).unlink(missing_ok=True)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
