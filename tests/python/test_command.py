# SPDX-License-Identifier: Apache-2.0
"""`python -m quadrille` is the program: its output, its exit codes, its signals."""
import signal
import subprocess
import sys

import quadrille


def test_version(command):
    assert quadrille.__version__ in command("version")


def test_exit_codes_and_streams():
    wrong = subprocess.run([sys.executable, "-m", "quadrille", "run"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr
    missing = subprocess.run([sys.executable, "-m", "quadrille", "inspect", "/nothing"], capture_output=True, text=True)
    assert missing.returncode == 1 and "/nothing" in missing.stderr


def test_a_signal_reaches_it(abacus):
    running = subprocess.Popen([sys.executable, "-m", "quadrille", "tokenize", abacus / "w4a8"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdin.write(b'"hi"\n')
    running.stdin.flush()
    assert running.stdout.readline()  # it runs
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    running.communicate()
