#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of a build folder and counts single cases: passed, failed and skipped, with the reasons for skipping.

usage: run_tests.py BUILD [-j JOBS] [-R REGEX] [--exclude-label LABEL,LABEL]
ctest knows the programs; GoogleTest programs and pytest report each of their cases. Exit status 1 when one failed or
none ran.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path


def list_tests(build):
    text = subprocess.run(["ctest", "--show-only=json-v1"], cwd=build, capture_output=True, check=True).stdout
    for test in json.loads(text)["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        yield test["name"], test.get("command"), properties


def skip_reason(element):
    lines = (element.get("message") or element.text or "").splitlines()
    lines = [line for line in lines if line.strip() and not re.match(r".*\.(cpp|h):\d+$", line)]
    return lines[0].strip() if lines else "no reason given"


def run_one(name, command, properties):
    if not command or not os.path.exists(command[0]) and "/" in command[0]:
        return name, 0, 1, {}, f"{name}: was not built\n", 0.0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"  # GoogleTest 1.12 leaves the reason of a skip out of its JSON
        environment = dict(os.environ, GTEST_OUTPUT=f"xml:{report}", QUADRILLE_TEST_REPORT=str(report))
        timeout = float(properties.get("TIMEOUT", 600))
        try:
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, timeout=timeout, cwd=properties.get("WORKING_DIRECTORY"))
            output, status = done.stdout.decode(errors="replace"), done.returncode
        except subprocess.TimeoutExpired as late:
            output = (late.stdout or b"").decode(errors="replace") + f"\n{name}: over its time limit of {timeout} s\n"
            status = -1
        passed, failed, skipped = 0, 0, collections.Counter()
        if report.is_file():
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    failed += 1
                elif case.find("skipped") is not None:
                    skipped[skip_reason(case.find("skipped"))] += 1
                elif case.get("result", "completed") == "completed":  # pytest writes no result
                    passed += 1
        elif status == 0:
            passed = 1
        if status != 0 and failed == 0:
            failed = 1  # a crash, a time-out, or a program without cases
    return name, passed, failed, skipped, output if failed else "", time.monotonic() - start


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-R", default="")
    parser.add_argument("--exclude-label", default="")
    options = parser.parse_args()
    tests = [t for t in list_tests(options.build)
             if re.search(options.R, t[0]) and
             not set(options.exclude_label.split(",")) & set(t[2].get("LABELS", []))]
    tests.sort(key=lambda t: -float(t[2].get("COST", 0)))
    passed = failed = 0
    skipped = collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
        for future in concurrent.futures.as_completed([pool.submit(run_one, *t) for t in tests]):
            name, ok, bad, skips, output, seconds = future.result()
            passed, failed = passed + ok, failed + bad
            skipped.update(skips)
            print(f"{'FAILED' if bad else 'ok':6} {name:32} {ok:5} passed {bad:3} failed {sum(skips.values()):3} skipped "
                  f"{seconds:7.1f} s", flush=True)
            if bad:
                print(output[-20000:], flush=True)
    for reason, count in sorted(skipped.items()):
        print(f"skipped {count:4}: {reason}")
    print(f"{passed} passed, {failed} failed, {sum(skipped.values())} skipped")
    return 1 if failed or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
