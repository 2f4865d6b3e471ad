"""Kubernetes' own tests of storage drivers: how they are started, and what their report says.

Pure but for `build` and `image_names`, which run programs.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.cluster import programs
from lab.node import REPOSITORY

PASSED, FAILED, SKIPPED, LEFT_OUT = "passed", "failed", "skipped", "left out"
_GINKGO_SKIPPED = ("skipped", "pending")
_AT_ONCE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The tests, what runs several of them at a time, and the program that the suite's image `agnhost` starts."""

    tests: Path
    ginkgo: Path
    agnhost: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One test of the suite, and how it ended."""

    name: str
    state: str
    """`PASSED`, `FAILED`, `SKIPPED` by the suite itself, or `LEFT_OUT`: not chosen."""
    seconds: float
    why: str
    """The suite's words; empty when it passed or was left out."""


def build() -> Suite:
    """Build what is missing. Raises `CalledProcessError`; the build says why."""
    done = subprocess.run([REPOSITORY / "scripts/build-suite"], check=True, stdout=subprocess.PIPE, text=True)
    paths = programs.parse(done.stdout)
    # ginkgo takes a program for tests by its name.
    tests = paths["storage-suite"].with_name(paths["storage-suite"].name + ".test")
    if not tests.exists():
        tests.symlink_to(paths["storage-suite"].name)
    return Suite(tests=tests, ginkgo=paths["ginkgo"], agnhost=paths["agnhost"])


def image_names(suite: Suite) -> tuple[str, ...]:
    """Every image that the suite's tests name, with their tags."""
    done = subprocess.run([suite.tests, "-list-images"], check=True, capture_output=True, text=True)
    return tuple(sorted(set(done.stdout.split())))


def command(
    suite: Suite,
    *,
    driver: Path,
    focus: str,
    left_out: Iterable[str],
    report: Path,
    kubeconfig: str,
    seconds: int,
) -> list[str]:
    """Words that run the specs whose names match `focus` and none of `left_out`, several at a time: most of a spec's time
    is waiting for kubelet's and the controllers' next look. Those that the suite calls serial run alone.

    `driver`: a file that says what a driver offers; the suite takes one of a name.
    What is not done after `seconds` is interrupted, and the report is written all the same.
    """
    return [
        str(suite.ginkgo),
        f"--procs={_AT_ONCE}",
        f"--focus=External.Storage.*{focus}",
        *(f"--skip={pattern}" for pattern in left_out),
        f"--timeout={seconds}s",
        f"--output-dir={report.parent}",
        f"--json-report={report.name}",
        "--no-color",
        str(suite.tests),
        "--",
        f"-storage.testdriver={driver}",
        "-provider=skeleton",
        f"-kubeconfig={kubeconfig}",
        # Each failure would be followed by minutes of lists that the events in its own text make needless.
        "-dump-logs-on-failure=false",
    ]


def parse(report: str) -> tuple[Spec, ...]:
    """The external driver's specs of a report of Ginkgo's, and whatever else failed: a set-up that did, above all."""
    found = (_spec(entry) for suite in json.loads(report) for entry in suite["SpecReports"] or ())
    return tuple(spec for spec in found if "External Storage" in spec.name or spec.state == FAILED)


def _spec(entry: Mapping[str, Any]) -> Spec:
    why = entry.get("Failure", {}).get("Message", "")
    state = entry["State"]
    if state in _GINKGO_SKIPPED:
        state = SKIPPED if why else LEFT_OUT
    elif state != PASSED:
        state = FAILED
    return Spec(
        name=" ".join([*(entry["ContainerHierarchyTexts"] or ()), entry["LeafNodeText"] or entry["LeafNodeType"]]),
        state=state,
        seconds=entry["RunTime"] / 1e9,
        why=why,
    )


def summary(specs: Sequence[Spec], left_out: Mapping[str, str]) -> str:
    """What ran and how it ended, what the suite itself skipped and why, and what was left out and why."""
    count = Counter(spec.state for spec in specs)
    chosen = len(specs) - count[LEFT_OUT]
    lines = [
        f"{chosen} specs chosen: {count[PASSED]} passed, {count[FAILED]} failed, {count[SKIPPED]} skipped by the suite",
        *(f"  passed   {spec.seconds:4.0f} s  {spec.name}" for spec in specs if spec.state == PASSED),
        *(f"  failed   {spec.seconds:4.0f} s  {spec.name}\n{spec.why}" for spec in specs if spec.state == FAILED),
    ]
    skipped = Counter(spec.why for spec in specs if spec.state == SKIPPED)
    lines += [f"  skipped  {number:4d} specs: {why}" for why, number in skipped.most_common()]
    lines += [f"  left out: {pattern}: {why}" for pattern, why in left_out.items()]
    return "\n".join(lines)
