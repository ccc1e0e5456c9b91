#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""llama.cpp beside quadrille on one shape, in one run: builds llama.cpp natively from its published sources, writes a
Q4_0 model of the shape, measures both in turn, and prints one table with the ratios. Exit code 1: a target is missed.

llama.cpp is given its best switches: every combination of weight repacking and flash attention is tried, and
the fastest of each case is the peer. Needs pip, CMake, Ninja and a C++ compiler; nothing else in the repository needs it.
"""
import argparse
import hashlib
import json
import shlex
import statistics
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import gguf

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "llama-cpp-python"  # its source distribution carries the whole of llama.cpp
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CMAKE_FLAGS = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_OPENSSL=OFF",
               "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
               "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={PACKAGE}-{VERSION}"]
SWITCHES = [("repack", "--repack", ("1", "0")), ("flash attention", "-fa", ("1", "0"))]
SHAPES = {
    "qwen3-30b-a3b": gguf.Shape("qwen3-30b-a3b", "qwen3moe", hidden=2048, heads=32, kv_heads=4, head_dim=128,
                                experts=128, top_k=8, expert_width=768, layers=4, vocabulary=32768, rope_theta=1e6,
                                epsilon=1e-6, qk_norm=True),
    "mixtral-8x7b": gguf.Shape("mixtral-8x7b", "llama", hidden=4096, heads=32, kv_heads=8, head_dim=128, experts=8,
                               top_k=2, expert_width=14336, layers=2, vocabulary=32000, rope_theta=1e6, epsilon=1e-5,
                               qk_norm=False),
}


@dataclass
class Case:
    """One line of the table: decode behind `context` tokens, or a prefill of `tokens`."""
    kind: str
    tokens: int
    context: int
    target: float
    ours: list = field(default_factory=list)  # tokens/s of each round
    peer: list = field(default_factory=list)
    switches: list = field(default_factory=list)  # of the peer's fastest variant
    tried: dict = field(default_factory=dict)  # variant -> tokens/s
    our_bytes: list = field(default_factory=list)  # a token, of each round
    ceilings: list = field(default_factory=list)  # bytes/s or flop/s
    our_rates: list = field(default_factory=list)

    def name(self):
        return f"prefill, {self.tokens} tokens" if self.kind == "prefill" else f"decode at {self.context} tokens"

    def middle(self):
        """The context of the decode step in the middle of the measured ones."""
        return self.context + self.tokens // 2

    def ratio(self):
        return statistics.median(self.ours) / statistics.median(self.peer)


def cases_of(arguments):
    out = [Case("decode", arguments.decode, context, arguments.decode_target) for context in arguments.context]
    return out + [Case("prefill", arguments.prefill, 0, arguments.prefill_target)]


def run(command, **options):
    return subprocess.run([str(part) for part in command], check=True, text=True, **options)


def fetch(folder, archive):
    """The source archive, checked; pip fetches it unless the caller has it."""
    if archive is None:
        archive = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
        if not archive.exists():
            run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE,
                 f"{PACKAGE}=={VERSION}", "-d", folder])
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive}: expected SHA-256 {SHA256}, found {found}; delete it and run again")
    return archive


def build(arguments):
    """The path of llama-bench; compiles what is missing at the lowest priority."""
    folder = arguments.cache.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sources = folder / f"{PACKAGE.replace('-', '_')}-{VERSION}"
    if not (sources / "vendor").exists():
        with tarfile.open(fetch(folder, arguments.archive)) as archive:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(folder, **safe)
    out = folder / "llama.cpp"
    program = out / "bin" / "llama-bench"
    if not program.exists():
        nice = ["nice", "-n", "19"]
        run(nice + ["cmake", "-S", sources / "vendor" / "llama.cpp", "-B", out, "-G", "Ninja"] + CMAKE_FLAGS +
            arguments.cmake_flag, stdout=subprocess.DEVNULL)
        run(nice + ["cmake", "--build", out, "--target", "llama-bench", "-j", arguments.jobs])
    return program


def model_file(arguments, shape):
    path = arguments.cache.resolve() / f"{shape.name}-{shape.layers}-{shape.vocabulary}.gguf"
    if not path.exists():
        partial = path.with_suffix(".partial")
        gguf.write(partial, shape)
        partial.rename(path)
    return path


def variants():
    out = [[]]
    for _, option, values in SWITCHES:
        out = [known + [option, value] for known in out for value in values]
    return out


def peer_command(program, model, threads, case, switches, repetitions):
    work = ["-p", case.tokens, "-n", 0] if case.kind == "prefill" else ["-p", 0, "-n", case.tokens, "-d", case.context]
    return [program, "-m", model, "-t", threads, "-r", repetitions, "-o", "json"] + work + switches


def our_command(program, shape, arguments):
    """One process measures every case: its contexts and its prefill."""
    contexts = ",".join(str(max(context, 1)) for context in arguments.context)
    return [program, "bench", "--shape", shape.name, "--layers", shape.layers, "--vocabulary", shape.vocabulary,
            "--threads", arguments.threads, "--prefill", arguments.prefill, "--decode", arguments.decode, "--context",
            contexts, "--rounds", arguments.repetitions, "--json", "--quiet"]


def measured(arguments, command):
    result = run(shlex.split(arguments.wrap) + command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(result.stdout)


def peer_rate(answer):
    """Tokens/s of llama-bench's answer, which must be one test."""
    if len(answer) != 1:
        raise SystemExit(f"llama-bench: expected one test, found {len(answer)}")
    return statistics.median(answer[0]["samples_ts"])


def take_ours(case, answer):
    series = answer["prefill"]
    if case.kind == "decode":
        series = next(at for at in answer["decode_by_context"] if at["context"] == max(case.context, 1))
    case.ours.append(series["tokens_per_second"])
    case.our_rates.append(series["reached_per_second"])
    case.ceilings.append(series["ceiling_per_second"])
    case.our_bytes.append(series["work"])


def choose_variant(arguments, program, model, case):
    for switches in variants():
        peer = peer_command(program, model, arguments.threads, case, switches, arguments.repetitions)
        # The best of the repetitions: one that was held up must not decide.
        case.tried[" ".join(switches)] = max(measured(arguments, peer)[0]["samples_ts"])
    case.switches = max(case.tried, key=case.tried.get).split()


def measure(arguments, program, model, shape, cases):
    for case in cases:
        choose_variant(arguments, program, model, case)
    for at in range(arguments.rounds):
        print(f"round {at + 1} of {arguments.rounds}", file=sys.stderr)
        answer = measured(arguments, our_command(arguments.program, shape, arguments))
        for case in cases:
            take_ours(case, answer)
            peer = peer_command(program, model, arguments.threads, case, case.switches, arguments.repetitions)
            case.peer.append(peer_rate(measured(arguments, peer)))


def share_text(case, shape):
    """What both reach of the read ceiling (decode) or of our dot peak (prefill: ours alone, the units differ)."""
    ours = statistics.median(rate / ceiling for rate, ceiling in zip(case.our_rates, case.ceilings))
    if case.kind == "prefill":
        return f"{100 * ours:.0f} %", "-"
    work = shape.bytes_a_token(case.middle())
    peer = statistics.median(rate * work / ceiling for rate, ceiling in zip(case.peer, case.ceilings))
    return f"{100 * ours:.0f} %", f"{100 * peer:.0f} %"


def bytes_text(case, shape):
    if case.kind == "prefill":
        return "-", "-"
    return f"{statistics.median(case.our_bytes) / 1e6:.0f} MB", f"{shape.bytes_a_token(case.middle()) / 1e6:.0f} MB"


HEAD = ["", "quadrille tokens/s", "llama.cpp tokens/s", "ratio", "target", "", "bytes a token", "its", "of the ceiling",
        "its", "its switches"]


def rows_of(shape, cases):
    for case in cases:
        ratio = case.ratio()
        yield [case.name(), f"{statistics.median(case.ours):.1f}", f"{statistics.median(case.peer):.1f}",
               f"{ratio:.2f}", f"{case.target:g}", "pass" if ratio >= case.target else "FAIL",
               *bytes_text(case, shape), *share_text(case, shape), " ".join(case.switches)]


def table_text(shape, cases):
    rows = [HEAD] + list(rows_of(shape, cases))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def report(arguments, shape, cases):
    compiler = run(["c++", "--version"], stdout=subprocess.PIPE).stdout.splitlines()[0]
    print(f"{shape.name}, {shape.layers} layers, vocabulary {shape.vocabulary}, {arguments.threads} threads, random "
          f"weights; llama.cpp of {PACKAGE} {VERSION}, Q4_0, {compiler}\n")
    print(table_text(shape, cases))
    print(f"\nMedians of {arguments.rounds} rounds in turn. Spread (lowest to highest tokens/s, ours; its):")
    for case in cases:
        print(f"  {case.name()}: {min(case.ours):.1f} to {max(case.ours):.1f}; {min(case.peer):.1f} to "
              f"{max(case.peer):.1f}. Its variants: " +
              ", ".join(f"{name} {rate:.1f}" for name, rate in case.tried.items()))


def parse(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", type=Path, default=ROOT / "build" / "bin" / "quadrille", help="our program")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "peers", help="sources, build and models")
    parser.add_argument("--archive", type=Path, help="the source archive, where pip cannot fetch it")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-30b-a3b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="ours and theirs in turn")
    parser.add_argument("--repetitions", type=int, default=3, help="of one measurement in a round")
    parser.add_argument("--decode", type=int, default=32, help="decode steps")
    parser.add_argument("--context", type=int, nargs="+", default=[0, 2048], help="tokens in front of the decode steps")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode-target", type=float, default=1.5)
    parser.add_argument("--prefill-target", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--cmake-flag", action="append", default=[],
                        help="one more for the build of llama.cpp (with gcc 12 on a CPU with AMX choose clang: "
                        "--cmake-flag=-DCMAKE_C_COMPILER=clang --cmake-flag=-DCMAKE_CXX_COMPILER=clang++)")
    parser.add_argument("--wrap", default="", help="words put before each measured command, such as taskset -c 0,1")
    parser.add_argument("--build-only", action="store_true")
    arguments = parser.parse_args(words)
    if min(arguments.threads, arguments.rounds, arguments.repetitions, arguments.decode, arguments.prefill) < 1:
        parser.error("--threads, --rounds, --repetitions, --decode and --prefill must be at least 1")
    if min(arguments.context) < 0:
        parser.error("--context must be at least 0")
    return arguments


def main(words):
    arguments = parse(words)
    shape = SHAPES[arguments.shape]
    program = build(arguments)
    model = model_file(arguments, shape)
    if arguments.build_only:
        return 0
    cases = cases_of(arguments)
    measure(arguments, program, model, shape, cases)
    report(arguments, shape, cases)
    return 0 if all(case.ratio() >= case.target for case in cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
