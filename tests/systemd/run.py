#!/usr/bin/env python3
"""Runs the tests on booted nodes of each distribution, and says which points of docs/systemd.md hold.

    run.py                           everything, on every suite
    run.py --suite trixie reload     the tests whose names have "reload" in them, on one suite
    run.py --list
    run.py --prepare                 makes the base trees alone

Owns what happens around the tests: the base trees, one node per suite in which Receptor is installed and which the nodes of all
tests start from, the order, the result. Each suite is tested by a process of its own, at the same time. Needs root.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import points
import rig
import table

HERE = Path(__file__).resolve().parent
# Distribution and the version of systemd that it has.
SUITES = {"bookworm": 252, "trixie": 257}


def chosen_tests(words):
    """All tests, or those that have one of these words in their names."""
    found = []

    def collect(suite):
        for test in suite:
            if isinstance(test, unittest.TestSuite):
                collect(test)
            elif not words or any(word in test.id() for word in words):
                found.append(test)

    collect(unittest.defaultTestLoader.discover(str(HERE / "points"), "test_*.py", str(HERE)))
    return found


# Of a journal, after a failure.
JOURNAL_CHARACTERS = 8000


class Result(unittest.TextTestResult):
    """Notes what became of each test and how long it took, and tells what the nodes of one that fails had to say."""

    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        self.outcomes = {}

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def addFailure(self, test, error):
        super().addFailure(test, error)
        for name, journal in test.journals():
            self.stream.writeln(f"--- journal of {name}\n{journal[-JOURNAL_CHARACTERS:]}")

    def addError(self, test, error):
        # Of a class that could not be set up there is no test.
        if isinstance(test, unittest.TestCase):
            self.addFailure(test, error)
        else:
            super().addError(test, error)

    def stopTest(self, test):
        super().stopTest(test)
        failed = any(test.id() == of.id() for of, _ in [*self.failures, *self.errors])
        skipped = next((why for of, why in self.skipped if of.id() == test.id()), None)
        self.outcomes[test.id()] = "failed" if failed else f"skipped: {skipped}" if skipped else "ok"
        self.stream.writeln(f"    {time.monotonic() - self.began:.1f} s")


def run_suite(suite, words, results):
    """Tests one distribution in this process; the outcome of each test is written to the file `results`."""
    began = time.monotonic()
    with rig.Session(f"{os.getpid()}") as home:
        points.prepare(home, suite, SUITES[suite])
        print(f"== {suite}: Receptor installed after {time.monotonic() - began:.1f} s", flush=True)
        tests = unittest.TestSuite(chosen_tests(words))
        runner = unittest.TextTestRunner(sys.stdout, verbosity=2, resultclass=Result)
        outcome = runner.run(tests)
    # A class that could not be set up has no test that says so.
    whole = outcome.wasSuccessful() and outcome.testsRun > 0
    results.write_text(json.dumps({"outcomes": outcome.outcomes, "whole": whole}))
    return 0 if whole else 1


def make_base_trees(suites):
    with ThreadPoolExecutor() as both:
        list(both.map(rig.base_tree, suites))


def run_suites(suites, words):
    """Tests several distributions at once and prints what each said; then the table."""
    rig.collect_garbage()
    make_base_trees(suites)
    outcomes, failed = {}, []
    with tempfile.TemporaryDirectory() as directory:
        runs = []
        for suite in suites:
            # One alone is followed as it goes.
            log = open(Path(directory, f"{suite}.log"), "w+") if len(suites) > 1 else None
            command = [sys.executable, "-u", __file__, "--suite", suite, "--results", f"{directory}/{suite}.json", *words]
            runs.append((suite, log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)))
        for suite, log, run in runs:
            try:
                status = run.wait()
            except BaseException:
                # Whoever interrupts one interrupts all; their nodes die with them.
                for _, _, other in runs:
                    other.kill()
                    other.wait()
                raise
            if log is not None:
                log.seek(0)
                print(f"=== {suite}, systemd {SUITES[suite]}", log.read(), sep="\n", flush=True)
            results = Path(directory, f"{suite}.json")
            outcomes[suite] = json.loads(results.read_text())["outcomes"] if results.exists() else {}
            if status != 0:
                failed.append(suite)
    problems = table.report(outcomes, SUITES, whole=not words and set(suites) == set(SUITES))
    for problem in problems:
        print(problem)
    if failed:
        print(f"failed: {' '.join(failed)}")
    return 1 if failed or problems else 0


def end(number, _):
    """As an interrupt: what was begun is cleaned up, and nothing interrupts that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", action="append", choices=SUITES)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, end)
    if options.list:
        print(*(test.id() for test in chosen_tests(options.words)), sep="\n")
        return 0
    if options.prepare:
        make_base_trees(options.suite or list(SUITES))
        return 0
    if options.results:
        return run_suite(options.suite[0], options.words, options.results)
    try:
        return run_suites(options.suite or list(SUITES), options.words)
    finally:
        rig.collect_garbage()


if __name__ == "__main__":
    sys.exit(main())
