#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Ranks against one rank over every problem of models/abacus: eval_ranks.py BUILD [--count N] [--reports FOLDER].

Tensor-parallel ranks may change a text where the best two tokens are closer than the bound of `quadrille verify`, and
nothing else; expert-parallel ranks change no text, and processes under mpirun answer as threads do. Prints a table;
exit code 1 when a limit is broken. Called by `make eval`. Reports that lie in FOLDER already are not made again."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

MODEL = "models/abacus/w4a8"
SETS = {"gsm8k": "gsm8k", "mmlu_pro": "mmlu-pro"}  # file: task
TENSOR_PARALLEL = [("exact", 2), ("exact", 3), ("exact", 4), ("vllm", 2)]
MAX_TOKENS = "320"
MOST_POINTS = 0.5  # of accuracy
LEAST_EQUAL = 99.0  # per cent of the texts


def report(options, name, command, to_file=None):
    """The JSON of a command, which it prints, or writes where `to_file` adds the path to the command."""
    path = os.path.join(options.reports, name + ".json")
    if not os.path.exists(path):
        print(f"  {name}", file=sys.stderr, flush=True)
        with open(path + ".part", "w", encoding="utf-8") as out:
            done = subprocess.run(command + ([to_file, path] if to_file else []), stdout=out, check=False)
        if to_file is None and os.path.getsize(path + ".part") > 0:
            os.rename(path + ".part", path)  # verify exits with 1 for what differs, and its report says where
        elif done.returncode != 0:
            sys.exit(f"eval_ranks.py: {' '.join(command)} ended with {done.returncode}")
        else:
            os.remove(path + ".part")
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def verify(options, data, numerics, ranks):
    command = [options.program, "verify", MODEL, "--problems", f"models/abacus/{data}.jsonl", "--max-tokens",
               MAX_TOKENS, "--tp", str(ranks), "--numerics", numerics, "--count", str(options.count), "-q", "--json"]
    return report(options, f"{data}-tp{ranks}-{numerics}", command)


def evaluate(options, data, name, more, launcher=()):
    command = [*launcher, options.program, "eval", SETS[data], MODEL, "--data", f"models/abacus/{data}.jsonl",
               "--max-tokens", MAX_TOKENS, "--limit", str(options.count), "-q", *more]
    return report(options, f"{data}-{name}", command, "--json")


def row_of_verify(found):
    texts = found["texts"]
    shares = [d["margin"] / d["bound"] if d["bound"] > 0 else float("inf") for d in texts["different"]]
    return {"problems": texts["count"], "one": texts["right_one_rank"], "ranks": texts["right_ranks"],
            "equal": texts["equal"], "beyond": texts["beyond_bound"], "share": max(shares, default=0.0),
            "bits": found["repeats"] and found["ranks_agree"] and found["layers"]["differing_tensors"] == 0}


def row_of_eval(one, found):
    pairs = list(zip(one["records"], found["records"]))
    return {"problems": one["count"], "one": one["correct"], "ranks": found["correct"],
            "equal": sum(a["text"] == b["text"] for a, b in pairs), "beyond": 0, "share": 0.0,
            "bits": one["records"] == found["records"]}


def add(rows):
    total = {key: sum(row[key] for row in rows) for key in ("problems", "one", "ranks", "equal", "beyond")}
    total["share"] = max(row["share"] for row in rows)
    total["bits"] = all(row["bits"] for row in rows)
    return total


def broken_limits(row, must_be_equal):
    n = row["problems"]
    broken = []
    if abs(row["ranks"] - row["one"]) * 100 > MOST_POINTS * n:
        broken.append(f"accuracy differs by more than {MOST_POINTS} points")
    if row["equal"] * 100 < LEAST_EQUAL * n:
        broken.append(f"fewer than {LEAST_EQUAL:.0f} % of the texts are equal")
    if row["beyond"] > 0:
        broken.append(f"{row['beyond']} texts differ beyond their bound")
    if not row["bits"]:
        broken.append("other bits")
    if must_be_equal and row["equal"] != n:
        broken.append("texts differ")
    return broken


def compared(options):
    """(name, rows of the sets, whether all texts must be equal)."""
    for numerics, ranks in TENSOR_PARALLEL:
        rows = [row_of_verify(verify(options, data, numerics, ranks)) for data in SETS]
        yield f"TP {ranks}, {numerics}", rows, False
    one = [evaluate(options, data, "one", []) for data in SETS]
    expert = [evaluate(options, data, "ep2", ["--ep", "2"]) for data in SETS]
    yield "EP 2, exact", [row_of_eval(a, b) for a, b in zip(one, expert)], True
    module = os.path.join(os.path.dirname(options.program), "libquadrille_mpi.so")
    if shutil.which("mpirun") is None or not os.path.exists(module):
        print("eval_ranks.py: no mpirun or no MPI module: processes are not compared with threads", file=sys.stderr)
        return
    threads = [evaluate(options, data, "threads2", ["--tp", "2"]) for data in SETS]
    launcher = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "2"]
    processes = [evaluate(options, data, "mpi2", ["--tp", "2"], launcher) for data in SETS]
    yield "TP 2 under mpirun (to TP 2 in threads)", [row_of_eval(a, b) for a, b in zip(threads, processes)], True


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build")
    parser.add_argument("--count", type=int, default=0, help="problems of each set; 0: all")
    parser.add_argument("--reports", help="keep the reports in this folder")
    options = parser.parse_args()
    options.program = os.path.join(os.path.abspath(options.build), "bin", "quadrille")
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    with tempfile.TemporaryDirectory() as folder:
        options.reports = os.path.abspath(options.reports) if options.reports else folder
        os.makedirs(options.reports, exist_ok=True)
        print("| ranks | problems | right on one rank | right | texts equal | beyond their bound | "
              "largest margin of its bound | within the limits |")
        print("|---|---:|---:|---:|---:|---:|---:|---|")
        failed = False
        for name, rows, must_be_equal in compared(options):
            row = add(rows)
            broken = broken_limits(row, must_be_equal)
            failed = failed or bool(broken)
            print(f"| {name} | {row['problems']} | {row['one']} | {row['ranks']} | {row['equal']} | {row['beyond']} | "
                  f"{100 * row['share']:.1f} % | {'; '.join(broken) or 'yes'} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
