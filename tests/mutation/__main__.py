"""Runs each mutant's guarding tests and tells what lived: `python -m tests.mutation SUITE_PYTHON [WORD]`.

SUITE_PYTHON is the interpreter that has what the tests import. With WORD only promises that hold it are looked at.
The exit status is 0 when every mutant was killed or is accepted in the list with its reason.
"""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.promises import ROOT, Accepted, Promise, load

WORKERS = 2
LONGEST_SECONDS = 300.0
LEFT_BEHIND = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    killed: bool


class Copies:
    """Copies of the checkout, one a worker: the checkout itself is never changed."""

    def __init__(self, folder: Path, python: str) -> None:
        self._python = python
        self._free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(WORKERS):
            copy = folder / str(number)
            shutil.copytree(ROOT, copy, ignore=LEFT_BEHIND)
            # Bytecode that is known by its source's digest: a mutant may have its original's size and time.
            compiling = [python, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "csi"]
            subprocess.run(compiling, cwd=copy, check=True)
            self._free.put(copy)

    def passes(self, tests: tuple[str, ...], mutant: Mutant | None, limit_seconds: float = LONGEST_SECONDS) -> bool:
        """Whether the tests pass in time, with a mutant in place if there is one."""
        copy = self._free.get()
        try:
            if mutant is not None:
                (copy / mutant.file).write_text(mutant.source)
            return self._run(copy, tests, limit_seconds)
        finally:
            if mutant is not None:
                (copy / mutant.file).write_text(mutant.original)
            self._free.put(copy)

    def _run(self, copy: Path, tests: tuple[str, ...], limit_seconds: float) -> bool:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        child = subprocess.Popen(
            [self._python, *PYTEST, *tests],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return child.wait(limit_seconds) == 0
        except subprocess.TimeoutExpired:
            return False  # A suite that hangs is noticed, too.
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _try(copies: Copies, pool: ThreadPoolExecutor, promise: Promise, mutants: list[Mutant]) -> list[Verdict]:
    began = time.monotonic()
    if not copies.passes(promise.tests, None):
        sys.exit(f"the guarding tests fail without any mutant: {' '.join(promise.tests)}")
    # Some mutants wait for ever; a busy machine may still take a few times as long as just now.
    limit = 20 + 4 * (time.monotonic() - began)
    survived = pool.map(lambda mutant: copies.passes(promise.tests, mutant, limit), mutants)
    return [Verdict(mutant, not lived) for mutant, lived in zip(mutants, survived, strict=True)]


def _reason(mutant: Mutant, accepted: tuple[Accepted, ...]) -> str | None:
    """Why this mutant may live, if it may."""
    key = (mutant.file, mutant.line, mutant.becomes)
    return next((entry.reason for entry in accepted if (entry.file, entry.line, entry.becomes) == key), None)


def _tell(promise: Promise, verdicts: list[Verdict], accepted: tuple[Accepted, ...]) -> int:
    """Print one promise's result; the number of survivors that nobody accepted."""
    survivors = [verdict.mutant for verdict in verdicts if not verdict.killed]
    print(f"{len(verdicts) - len(survivors):3} killed {len(survivors):3} survived  {promise.says}", flush=True)
    reasons = [(mutant, _reason(mutant, accepted)) for mutant in survivors]
    for mutant, reason in reasons:
        print(f"      {'accepted' if reason else 'SURVIVED'}: {mutant}" + (f"\n        {reason}" if reason else ""))
    return sum(reason is None for _, reason in reasons)


def main(python: str, word: str = "") -> int:
    """Look at all promises, or those with `word`."""
    began = time.monotonic()
    known = load()
    chosen = [promise for promise in known.promises if word in f"{promise.says} {promise.file}"]
    every = [(promise, mutants_of(promise, known.operators)) for promise in chosen]
    unguarded = [promise.says for promise, mutants in every if not mutants]
    if unguarded or not chosen:
        print("these promises have no mutant:", unguarded)
        return 2
    left = killed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        copies = Copies(Path(folder), python)
        for promise, mutants in every:
            verdicts = _try(copies, pool, promise, mutants)
            killed += sum(verdict.killed for verdict in verdicts)
            left += _tell(promise, verdicts, known.accepted)
    total = sum(len(mutants) for _, mutants in every)
    seconds = time.monotonic() - began
    print(f"{total} mutants, {killed} killed, {total - killed} survived, {left} of them not accepted; {seconds:.0f} s")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
