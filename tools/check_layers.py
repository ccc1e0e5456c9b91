#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads every #include and fails when a folder reaches into one it may not see (the arrows of ARCHITECTURE.md).

Also fails where the library prints, exits or aborts, where a device or MPI header stands outside its room, where a
document names a path that does not exist, and where a file is over its size (tools/size_allow.txt lists exceptions).
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# folder -> what it may include besides itself. The longest matching folder name decides.
ARROWS = {
    "src/core": [],
    "src/numerics": ["src/core"],
    "src/layout": ["src/core", "src/numerics"],
    "src/formats": ["src/core"],
    "src/device": ["src/core"],
    "src/kernels/api": ["src/core", "src/layout", "src/numerics", "src/device"],
    "src/kernels/cuda": ["src/core", "src/layout", "src/numerics", "src/device", "src/kernels/api"],
    "src/kernels/ref": ["src/core", "src/layout", "src/numerics", "src/kernels/api"],
    "src/kernels/cpu": ["src/core", "src/layout", "src/numerics", "src/kernels/api"],
    "src/kernels": ["src/core", "src/kernels/api", "src/kernels/ref", "src/kernels/cpu"],
    "src/quantize": ["src/core", "src/numerics", "src/layout", "src/formats", "src/kernels/api"],
    "src/prepare": ["src/core", "src/numerics", "src/layout", "src/device", "src/kernels/api"],
    "src/parallel": ["src/core", "src/numerics", "src/device", "src/kernels/api"],
    "src/moe": ["src/core", "src/numerics", "src/layout", "src/device", "src/kernels/api", "src/prepare", "src/parallel"],
    "src/api": ["src/core", "src/numerics", "src/layout", "src/device", "src/kernels/api", "src/prepare", "src/moe",
                "src/formats", "src/quantize", "src/model", "src/model/tokenizer", "src/engine", "src/plan", "src/session",
                "include/quadrille"],
    "include/quadrille": [],
    "python/src": ["include/quadrille"],
    "src/model/tokenizer": ["src/core", "src/formats"],
    "src/model": ["src/core", "src/numerics", "src/layout", "src/device", "src/formats", "src/kernels/api", "src/prepare",
                  "src/quantize", "src/moe", "src/model/tokenizer", "src/parallel"],
    "src/engine": ["src/core", "src/numerics", "src/model", "src/parallel"],
    "src/session": ["src/core", "src/layout", "src/formats", "src/quantize", "src/kernels/api", "src/moe", "src/model", "src/model/tokenizer",
                    "src/engine", "src/device", "src/parallel"],
    "src/plan": ["src/core", "src/numerics", "src/layout", "src/formats", "src/kernels/api", "src/moe", "src/model"],
    "cli": ["src/core", "src/formats", "src/model/tokenizer", "src/numerics", "src/layout", "src/quantize", "src/prepare", "src/kernels/api",
            "src/moe", "src/model", "src/engine", "src/plan", "src/session", "src/device", "src/parallel", "bench"],
    "bench/device": ["src/core", "src/numerics", "src/layout", "src/device", "src/kernels/api", "src/prepare", "src/moe",
                     "src/parallel", "bench"],
    "bench": ["src/core", "src/numerics", "src/layout", "src/kernels/api", "src/kernels/cpu", "src/prepare", "src/moe"],
}
PRINTS = re.compile(r"\b(std::cout|std::cerr|std::abort|std::exit|std::terminate|_exit|abort|exit|printf|fprintf|puts|"
                    r"fmt::print)\s*(\(|<<)")
DEVICE_HEADERS = re.compile(r"<(cuda|nccl|mpi|cublas|cudnn)[\w./]*>")
DEVICE_ROOMS = ("src/device/cuda_", "src/kernels/cuda/", "src/parallel/nccl", "src/parallel/mpi_module", "tests/device/",
                "bench/device/")
MAX_LINES = 400


def tracked(*patterns):
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *patterns], cwd=ROOT,
                         capture_output=True, check=True)
    return [name for name in out.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def room_of(path):
    rooms = [room for room in ARROWS if path.startswith(room + "/")]
    return max(rooms, key=len) if rooms else None


def strip_comments(text):
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group(0).count("\n"), text, flags=re.S)
    text = re.sub(r'"(\\.|[^"\\\n])*"', '""', text)
    return re.sub(r"//[^\n]*", "", text)


def check_source(path, problems):
    text = (ROOT / path).read_text(encoding="utf-8")
    room = room_of(path)
    for number, line in enumerate(text.splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
        if DEVICE_HEADERS.search(line) and "#include" in line and not path.startswith(DEVICE_ROOMS):
            problems.append(f"{path}:{number}: device and MPI headers stay in their rooms: {line.strip()}")
        if not found or room is None:
            continue
        name = found.group(1)
        target = next((c for c in (f"src/{name}", f"include/{name}", name, str(Path(path).parent / name)) if (ROOT / c).is_file()), None)
        if target is None:
            problems.append(f"{path}:{number}: \"{name}\" is not in the tree")
            continue
        target_room = room_of(str(target))
        if target_room not in (room, None) and target_room not in ARROWS[room]:
            problems.append(f"{path}:{number}: {room} may not include {target_room} (\"{name}\")")
    if path.startswith("src/"):
        for number, line in enumerate(strip_comments(text).splitlines(), 1):
            if PRINTS.search(line):
                problems.append(f"{path}:{number}: the library never prints, exits or aborts: {line.strip()}")


def check_sizes(paths, problems):
    allow = {}
    allow_file = ROOT / "tools/size_allow.txt"
    if allow_file.is_file():
        for line in allow_file.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                name, limit, *_ = line.split(None, 2)
                allow[name] = int(limit)
    for path in paths:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if lines > allow.get(path, MAX_LINES):
            problems.append(f"{path}: {lines} lines, at most {allow.get(path, MAX_LINES)}")


def check_documents(problems):
    for path in tracked("*.md"):
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`((?:src|cli|tests|tools|docs|bench|cmake|models)/[\w./-]+)`", text):
            if not (ROOT / name.rstrip("/")).exists() and not any(ROOT.glob(name.rstrip("/") + ".*")):
                problems.append(f"{path}: names `{name}`, which does not exist")


def main():
    problems = []
    sources = tracked("*.h", "*.cpp", "*.cuh", "*.cu", "*.c")
    for path in sources:
        check_source(path, problems)
    check_sizes(sources + tracked("*.py"), problems)
    check_documents(problems)
    total = sum((ROOT / name).stat().st_size for name in tracked())
    if total > 35_600_000:
        problems.append(f"all files of the repository together take {total / 1e6:.1f} MB, at most 35.6")
    print("\n".join(problems) if problems else f"layers, sizes, documents: {len(sources)} sources in order, {total / 1e6:.1f} MB in all")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
