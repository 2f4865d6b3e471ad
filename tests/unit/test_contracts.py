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
BELOW = "core and kbs import no program"
PURE = "pure modules do no I/O"
ONE_PLACE = "processes and system calls have one place each"

# Module, line added to it, contract that this breaks, and what the report names.
VIOLATIONS = [
    ("csi/node/locks.py", "import cryptography", NO_KEYS, "csi.node.locks -> cryptography"),
    (
        "csi/node/locks.py",
        "from cryptography.hazmat.primitives import hashes",
        NO_KEYS,
        "csi.node.locks -> cryptography",
    ),
    ("csi/node/rpc/node.py", "def later():\n    import cryptography", NO_KEYS, "csi.node.rpc.node -> cryptography"),
    ("csi/node/desk.py", "from csi.kbs import jwe", NO_KEYS, "csi.node.desk -> csi.kbs.jwe"),
    (
        "csi/node/plan/provision.py",
        "from csi.kbs import messages",
        NO_KEYS,
        "csi.node.plan.provision -> csi.kbs.messages",
    ),
    ("csi/node/lvm/command.py", "import cryptography", NO_KEYS, "csi.node.lvm.command -> cryptography"),
    ("csi/core/files.py", "import cryptography", NO_KEYS, "csi.core.files -> cryptography"),
    (
        "csi/node/effects.py",
        "from csi.guest.seal import cryptsetup",
        NO_KEYS,
        "csi.node.effects -> csi.guest.seal.cryptsetup",
    ),
    ("csi/node/locks.py", "from csi.guest import find", INDEPENDENT, "csi.node.locks -> csi.guest.find"),
    ("csi/guest/find.py", "from csi.broker import vault", INDEPENDENT, "csi.guest.find -> csi.broker.vault"),
    ("csi/broker/vault.py", "from csi.node import locks", INDEPENDENT, "csi.broker.vault -> csi.node.locks"),
    ("csi/cluster/effects.py", "from csi.node import locks", INDEPENDENT, "csi.cluster.effects -> csi.node.locks"),
    ("csi/cluster/effects.py", "from csi.kbs import jwe", NO_KEYS, "csi.cluster.effects -> csi.kbs.jwe"),
    ("csi/cluster/plan/ledger.py", "import http", PURE, "csi.cluster.plan.ledger -> http"),
    (
        "csi/cluster/plan/decide.py",
        "from csi.cluster import effects",
        PURE,
        "csi.cluster.plan.decide -> csi.cluster.effects",
    ),
    ("csi/core/size.py", "from csi.node import quantity", BELOW, "csi.core.size -> csi.node.quantity"),
    ("csi/core/files.py", "from csi.kbs import jwe", BELOW, "csi.core.files -> csi.kbs.jwe"),
    ("csi/kbs/jwk.py", "from csi.broker import vault", BELOW, "csi.kbs.jwk -> csi.broker.vault"),
    ("csi/core/size.py", "import subprocess", PURE, "csi.core.size -> subprocess"),
    ("csi/node/quantity.py", "import socket", PURE, "csi.node.quantity -> socket"),
    ("csi/node/plan/pools.py", "import logging", PURE, "csi.node.plan.pools -> logging"),
    ("csi/node/plan/pools.py", "from csi.core import files", PURE, "csi.node.plan.pools -> csi.core.files"),
    ("csi/node/lvm/report.py", "from csi.node.lvm import command", PURE, "csi.node.lvm.report -> csi.node.lvm.command"),
    ("csi/guest/decide.py", "import fcntl", PURE, "csi.guest.decide -> fcntl"),
    ("csi/guest/unlock.py", "import logging", PURE, "csi.guest.unlock -> logging"),
    (
        "csi/guest/session.py",
        "from csi.guest.seal import cryptsetup",
        PURE,
        "csi.guest.session -> csi.guest.seal.cryptsetup",
    ),
    (
        "csi/guest/seal/luks_header.py",
        "from csi.core import disks",
        PURE,
        "csi.guest.seal.luks_header -> csi.core.disks",
    ),
    ("csi/broker/rules.py", "import sqlite3", PURE, "csi.broker.rules -> sqlite3"),
    ("csi/kbs/messages.py", "import http", PURE, "csi.kbs.messages -> http"),
    ("csi/node/locks.py", "import subprocess", ONE_PLACE, "csi.node.locks -> subprocess"),
    ("csi/guest/find.py", "import ctypes", ONE_PLACE, "csi.guest.find -> ctypes"),
    ("csi/broker/vault.py", "from subprocess import run", ONE_PLACE, "csi.broker.vault -> subprocess"),
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
    verdicts = dict(re.findall(r"^(.+?) (KEPT|BROKEN)(?: \(\d+ ignored imports\))?$", done.stdout, re.MULTILINE))
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
        ("node", {"cryptography", "rfc8785", "csi.kbs", "csi.guest", "csi.broker"}),
        ("guest", {"grpc", "prometheus_client", "yaml", "starlette", "csi.node", "csi.broker"}),
        ("broker", {"grpc", "google.protobuf", "pyudev", "csi.node", "csi.guest"}),
        (
            "cluster",
            {"cryptography", "grpc", "yaml", "prometheus_client", "csi.kbs", "csi.node", "csi.guest", "csi.broker"},
        ),
    ],
)
def test_a_running_program_has_not_loaded_what_it_must_not_have(program: str, absent: set[str]) -> None:
    """All modules of the program imported, in a process of their own: what counts in the end is what is in memory."""
    code = (
        "import importlib, json, pkgutil, sys\n"
        f"import csi.{program}\n"
        f"for found in pkgutil.walk_packages(csi.{program}.__path__, 'csi.{program}.'):\n"
        "    importlib.import_module(found.name)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert f"csi.{program}.main" in loaded
    assert not loaded & absent
