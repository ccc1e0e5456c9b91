# SPDX-License-Identifier: Apache-2.0
"""examples/python run as their heads say, on the CPU."""
import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"


def run(name, *arguments):
    done = subprocess.run([sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True,
                          timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_generate(abacus):
    problems = [json.loads(line) for line in (abacus / "gsm8k.jsonl").read_text().splitlines()[:2]]
    output = run("generate.py", abacus / "w4a8", *(problem["question"] for problem in problems))
    first, second = (problem["answer"].splitlines()[-1] for problem in problems)
    assert output.count(first) == 2 and output.count(second) == 1
    assert output.count("mean probability 0.9") + output.count("mean probability 1.0") == 2


def test_quantize_folder(abacus, tmp_path):
    output = run("quantize_folder.py", abacus / "bf16", tmp_path / "w4a8", "--group-size", 64)
    assert "expert" in output and "relative rms error" in output and "loads:" in output
    assert (tmp_path / "w4a8" / "config.json").is_file()


def test_layer_numpy():
    output = run("layer_numpy.py")
    assert "within" in output
