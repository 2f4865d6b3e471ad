"""The import contracts of pyproject.toml hold, and each of them notices a module that breaks it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

NO_KEYS = "the node holds no keys"
INDEPENDENT = "programs never import one another"
LAYERS = "layers point down"
PURE = "model, wire and plan do no I/O"
SYSTEM_ONLY = "only csi.system runs processes and makes system calls"

# Module, line added to it, contract that this breaks, and what the report names.
VIOLATIONS = [
    ("csi/host/locks.py", "import cryptography", NO_KEYS, "csi.host.locks -> cryptography"),
    (
        "csi/host/locks.py",
        "from cryptography.hazmat.primitives import hashes",
        NO_KEYS,
        "csi.host.locks -> cryptography",
    ),
    ("csi/host/node.py", "def later():\n    import cryptography", NO_KEYS, "csi.host.node -> cryptography"),
    ("csi/host/effects.py", "from csi.system import cryptsetup", NO_KEYS, "csi.host.effects -> csi.system.cryptsetup"),
    ("csi/host/world.py", "from csi.system import kbs_client", NO_KEYS, "csi.host.world -> csi.system.kbs_client"),
    ("csi/system/apply.py", "from csi.system import cryptsetup", NO_KEYS, "csi.system.apply -> csi.system.cryptsetup"),
    ("csi/system/files.py", "from csi.wire import jwe", NO_KEYS, "csi.system.files -> csi.wire.jwe"),
    ("csi/system/lvm.py", "import cryptography", NO_KEYS, "csi.system.lvm -> cryptography"),
    ("csi/plan/provision.py", "from csi.wire import kbs", NO_KEYS, "csi.plan.provision -> csi.wire.kbs"),
    ("csi/host/locks.py", "from csi.guest import find", INDEPENDENT, "csi.host.locks -> csi.guest.find"),
    ("csi/guest/find.py", "from csi.broker import vault", INDEPENDENT, "csi.guest.find -> csi.broker.vault"),
    ("csi/broker/vault.py", "from csi.host import locks", INDEPENDENT, "csi.broker.vault -> csi.host.locks"),
    ("csi/model/size.py", "from csi.wire import quantity", LAYERS, "csi.model.size -> csi.wire.quantity"),
    ("csi/wire/quantity.py", "from csi.plan import pools", LAYERS, "csi.wire.quantity -> csi.plan.pools"),
    ("csi/plan/pools.py", "from csi.system import files", LAYERS, "csi.plan.pools -> csi.system.files"),
    ("csi/system/files.py", "from csi.host import locks", LAYERS, "csi.system.files -> csi.host.locks"),
    ("csi/model/size.py", "import subprocess", PURE, "csi.model.size -> subprocess"),
    ("csi/wire/quantity.py", "import socket", PURE, "csi.wire.quantity -> socket"),
    ("csi/plan/pools.py", "import logging", PURE, "csi.plan.pools -> logging"),
    ("csi/host/locks.py", "import subprocess", SYSTEM_ONLY, "csi.host.locks -> subprocess"),
    ("csi/guest/find.py", "import ctypes", SYSTEM_ONLY, "csi.guest.find -> ctypes"),
    ("csi/broker/vault.py", "from subprocess import run", SYSTEM_ONLY, "csi.broker.vault -> subprocess"),
]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package alone, as the contracts see it."""
    shutil.copytree(ROOT / "csi", tmp_path / "csi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str, dict[str, str]]:
    """Exit status, whole report, and each contract's verdict."""
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    report = re.sub(r"\s*\n\s+", " ", done.stdout)
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.MULTILINE))
    return done.returncode, report + done.stderr, verdicts


def contracts() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}


def test_every_contract_is_kept(copied: Path) -> None:
    status, report, verdicts = lint(copied)
    assert status == 0, report
    assert verdicts == dict.fromkeys(contracts(), "KEPT")


@pytest.mark.parametrize(("module", "line", "contract", "chain"), VIOLATIONS)
def test_a_module_that_breaks_a_contract_is_noticed(
    copied: Path, module: str, line: str, contract: str, chain: str
) -> None:
    with (copied / module).open("a") as file:
        file.write(f"\n{line}\n")
    status, report, verdicts = lint(copied)
    assert status == 1, report
    assert verdicts[contract] == "BROKEN"
    assert chain in report


def test_every_contract_has_a_violation_that_it_notices() -> None:
    assert contracts() == {contract for _, _, contract, _ in VIOLATIONS}


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        (
            "host",
            {"cryptography", "rfc8785", "csi.system.cryptsetup", "csi.system.kbs_client", "csi.guest", "csi.broker"},
        ),
        ("guest", {"grpc", "google.protobuf", "prometheus_client", "yaml", "starlette", "csi.host", "csi.broker"}),
        ("broker", {"grpc", "google.protobuf", "prometheus_client", "pyudev", "csi.host", "csi.guest"}),
    ],
)
def test_a_running_program_has_not_loaded_what_it_must_not_have(program: str, absent: set[str]) -> None:
    """All modules of the program imported, in a process of their own: what counts in the end is what is in memory."""
    code = (
        "import importlib, json, pkgutil, sys\n"
        f"import csi.{program}.main\n"
        f"for found in pkgutil.iter_modules(csi.{program}.__path__):\n"
        f"    importlib.import_module('csi.{program}.' + found.name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert f"csi.{program}.main" in loaded
    assert not loaded & absent
