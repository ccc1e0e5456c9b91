#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Installs the Python package against a build folder into an environment of its own and runs tests/python there.

usage: test_python.py BUILD [--python PYTHON] [--report JUNIT_XML] [PYTEST_ARGUMENT...]
The environment lives in BUILD/python-VERSION and is made once: nanobind, scikit-build-core, numpy and pytest come from
the package registry. Where that cannot be reached, the tests count as skipped, with that reason.
"""
import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDS = ["nanobind >= 2.4", "scikit-build-core >= 0.10", "numpy >= 1.23", "ml_dtypes", "pytest >= 7"]
UNREACHABLE = re.compile(r"Temporary failure in name resolution|Name or service not known|Network is unreachable|"
                         r"Connection (refused|timed out|reset)|Read timed out|ProxyError|ConnectTimeoutError|"
                         r"NewConnectionError|Max retries exceeded")


class Unavailable(Exception):
    """Why the tests cannot run here, which is no fault of the tree."""


def run(command, what, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          **options)
    if done.returncode != 0:
        sys.stdout.write(done.stdout)
        sys.exit(f"{what} failed with {done.returncode}")
    return done.stdout


def version_of(python):
    text = run([python, "-c", "import sys; print(*sys.version_info[:2])"], f"asking {python} for its version")
    version = tuple(int(number) for number in text.split())
    if version < (3, 10):
        raise Unavailable(f"the Python package needs Python 3.10 or newer, {python} is {version[0]}.{version[1]}")
    return version


def environment(build, python):
    """The interpreter of the environment, which has what NEEDS names."""
    major, minor = version_of(python)
    folder = build / f"python-{major}.{minor}"
    inside, stamp = folder / "bin" / "python", folder / "needs"
    if stamp.is_file() and stamp.read_text() == "\n".join(NEEDS) and inside.exists():
        return inside
    run([python, "-m", "venv", "--clear", folder], "making a virtual environment")
    pip = subprocess.run([inside, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--retries", "2", *NEEDS],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    if pip.returncode != 0:
        if UNREACHABLE.search(pip.stdout):
            raise Unavailable("the package registry cannot be reached for nanobind, scikit-build-core, numpy and pytest")
        sys.stdout.write(pip.stdout)
        sys.exit("installing what the tests need failed")
    stamp.write_text("\n".join(NEEDS))
    return inside


def install(build, inside):
    extension = build / "python-extension" / inside.parent.parent.name
    run([inside, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-build-isolation", "--no-deps",
         "--force-reinstall", f"--config-settings=build-dir={extension}",
         f"--config-settings=cmake.define.QD_LIBRARY_DIR={build}", ROOT], "pip install")


def write_skipped(report, reason):
    text = reason.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    Path(report).write_text(f'<testsuites><testsuite name="python"><testcase name="python_test">'
                            f'<skipped message="{text}"/></testcase></testsuite></testsuites>\n')


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", type=Path)
    parser.add_argument("--python", default="python3")
    parser.add_argument("--report", default=os.environ.get("QUADRILLE_TEST_REPORT"))
    options, rest = parser.parse_known_args()
    build = options.build.resolve()
    try:
        inside = environment(build, options.python)
    except Unavailable as reason:
        print(f"skipped: {reason}")
        if options.report:
            write_skipped(options.report, str(reason))
        return 0
    install(build, inside)
    command = [inside, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", ROOT, ROOT / "tests/python", *rest]
    if options.report:
        command.append(f"--junitxml={options.report}")
    return subprocess.run(command, cwd=build, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode


if __name__ == "__main__":
    sys.exit(main())
