"""Run the tests: those that bear company side by side, then those marked `serial` one by one.

Side by side are two for each core, because tests wait for most of their time. Arguments go to both
pytest runs. The last line counts both in pytest's own form. Exit code 0 if every test that ran
passed, and at least one ran.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

OK, NO_TESTS = 0, 5


def run_pytest(arguments: list[str], report: Path) -> int:
    """One pytest run; its exit code."""
    command = [sys.executable, "-m", "pytest", f"--junit-xml={report}", *arguments]
    return subprocess.run(command, check=False).returncode


def counts(report: Path) -> Counter[str]:
    """Outcomes in a report, by pytest's words for them."""
    total: Counter[str] = Counter()
    for suite in ET.parse(report).iter("testsuite"):
        bad = {"failed": "failures", "errors": "errors", "skipped": "skipped"}
        found = {word: int(suite.get(name, "0")) for word, name in bad.items()}
        total.update(found)
        total["passed"] += int(suite.get("tests", "0")) - sum(found.values())
    return total


def main(arguments: list[str]) -> int:
    """Run both passes; the exit code."""
    # A shell starts what it puts into the background with SIGINT ignored, and so would be all that
    # the tests start, and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where this is set, as in many containers, each of the many servers, commands and runners that
    # the tests start would compile this package again: a quarter of what such tests compute.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    started = time.monotonic()
    workers = 2 * len(os.sched_getaffinity(0))
    total: Counter[str] = Counter()
    codes = []
    passes = (
        ["-n", str(workers), "--dist", "loadgroup", "-m", "not serial"],
        ["-n", "0", "-m", "serial"],
    )
    for number, options in enumerate(passes):
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory) / f"{number}.xml"
            codes.append(run_pytest([*options, *arguments], report))
            if report.exists():
                total.update(counts(report))
    bad = [code for code in codes if code not in {OK, NO_TESTS}]
    words = [f"{total[word]} {word}" for word in ("failed", "errors", "passed", "skipped")]
    summary = ", ".join(word for word in words if not word.startswith("0 ")) or "no tests ran"
    print(f" {summary} in {time.monotonic() - started:.2f}s ".center(80, "="))
    if bad:
        return bad[0]
    return OK if OK in codes else NO_TESTS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
