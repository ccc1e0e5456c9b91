# SPDX-License-Identifier: Apache-2.0
"""What the tests of the package share: the bundled model, the program, child interpreters."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def abacus():
    """Folders of the bundled model: abacus / "w4a8", abacus / "bf16", abacus / "gsm8k.jsonl"."""
    return ROOT / "models" / "abacus"


@pytest.fixture(scope="session")
def model(abacus):
    """The bundled model in `exact`, loaded once."""
    import quadrille

    with quadrille.Model.load(abacus / "w4a8") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def command():
    """Runs `python -m quadrille` and returns its stdout."""

    def run(*arguments, **options):
        done = subprocess.run([sys.executable, "-m", "quadrille", *map(str, arguments)], capture_output=True, text=True,
                              timeout=120, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def child():
    """Starts a Python program in an interpreter of its own; `child(source, *arguments)` is a Popen with text pipes."""
    started = []
    # A shell's background jobs ignore Ctrl-C, and Python then leaves it so.
    begin = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"

    def start(source, *arguments):
        process = subprocess.Popen([sys.executable, "-c", begin + source, *map(str, arguments)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONUNBUFFERED="1"))
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
