"""The Makefile does what README says of it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def dry(target: str, *arguments: str, **environment: str) -> str:
    """What make would run. Nothing of a make that runs this test reaches it."""
    inherited = {name: value for name, value in os.environ.items() if not re.match(r"MAKE|MFLAGS|SEALED_LOCAL", name)}
    done = subprocess.run(
        ["make", "--dry-run", target, *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "fast", "fuzz", "bench", "tables"])
def test_the_cache_lies_where_the_variable_says(target: str) -> None:
    assert f"{ROOT}/.cache/venv/bin/python " in dry(target)
    moved = dry(target, SEALED_LOCAL_CACHE="/elsewhere")
    assert "/elsewhere/venv/bin/python " in moved
    assert ".cache" not in moved
    assert "/elsewhere/venv/bin/python " in dry(target, "SEALED_LOCAL_CACHE=/elsewhere")


def test_programs_that_make_starts_are_told_where_the_cache_lies() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval", "shown:\n\t@echo $$SEALED_LOCAL_CACHE", "shown"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SEALED_LOCAL_CACHE": "/elsewhere"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout == "/elsewhere\n"


@pytest.mark.parametrize(
    "script", ["setup", "generate-protos", "go-tools.sh", "render-manifests", "validate-manifests"]
)
def test_no_script_looks_for_the_cache_elsewhere(script: str) -> None:
    code = re.sub(r"^\s*#.*$", "", (ROOT / "scripts" / script).read_text(), flags=re.MULTILINE)
    uses = [line for line in code.splitlines() if ".cache" in line]
    assert [line for line in uses if "SEALED_LOCAL_CACHE:-" not in line] == []


def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):", text, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z0-9]+):.*##", text, re.MULTILINE))


def test_readme_and_help_name_the_same_time_for_make_fast() -> None:
    told = re.search(r"^fast:.*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert told is not None
    assert f"$ make fast     # {told[1]}\n" in (ROOT / "README.md").read_text()
