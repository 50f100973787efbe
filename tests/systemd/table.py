"""The forty points of a good systemd citizen, as docs/systemd.md has them in a table.

Owns reading that table and holding it against the tests: a point names the tests that show it, by a part of their names, and claims for each
version of systemd whether it holds. Never writes it.
"""

import re
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/systemd.md"
ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.*?) \| (yes|no|in part) \| (yes|no|in part) \|$", re.M)
NAME = re.compile(r"`([\w./-]+)`")


def rows():
    """Number, text, names of tests, claims in the order of the suites."""
    for number, text, shown_by, *claims in ROW.findall(DOCUMENT.read_text()):
        yield int(number), text, NAME.findall(shown_by), claims


def report(outcomes, suites, whole):
    """Prints what holds, and returns what the document says that is not so. Not all tests are there unless `whole`."""
    problems = []
    found = {suite: 0 for suite in suites}
    numbers = []
    for number, text, names, claims in rows():
        numbers.append(number)
        for (suite, version), claim in zip(suites.items(), claims):
            found[suite] += claim == "yes"
            for name in names if suite in outcomes else []:
                # The others are tests of cargo, which `make test` runs.
                if not name.startswith("test_"):
                    continue
                results = [result for test, result in outcomes[suite].items() if test.endswith(f".{name}")]
                if not results and whole:
                    problems.append(f"docs/systemd.md: point {number}: there is no test {name}")
                if claim == "yes" and any(result != "ok" for result in results):
                    problems.append(f"docs/systemd.md: point {number} is said to hold on {version}, and {name}: {results[0]}")
        if not names and any(claim == "yes" for claim in claims):
            problems.append(f"docs/systemd.md: point {number} is said to hold, and no test shows it")
    if numbers != list(range(1, 41)):
        problems.append(f"docs/systemd.md: its points are not 1 to 40, but {numbers}")
    if whole:
        named = {name for _, _, names, _ in rows() for name in names}
        for test in sorted({test for results in outcomes.values() for test in results}):
            if test.rsplit(".", 1)[1] not in named:
                problems.append(f"docs/systemd.md: no point names {test.rsplit('.', 1)[1]}")
        counts = ", ".join(f"{count} of {len(numbers)} on {suites[suite]}" for suite, count in found.items())
        print(f"points that hold: {counts}")
    return problems
