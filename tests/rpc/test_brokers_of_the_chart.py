"""Brokers side by side as the chart makes them: directories filled by its own commands from one Secret, on PostgreSQL."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.vault import read_private
from csi.core.errors import Busy
from csi.core.sealed import HEADER_BYTES, Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs.register import VolumeRecord, VolumeState
from tests.fakes.broker import INIT_DATA, make_directory
from tests.fakes.broker_process import BrokerProcess
from tests.fakes.chart import BROKERS, Object, container, pod_of, render, the
from tests.fakes.postgres import Server
from tests.fakes.rust_shaped_client import RustShapedClient

NONCE, OTHER, LEASE = "1e" * 32, "0f" * 32, "3d" * 32
HEADER = b"header".ljust(HEADER_BYTES, b"\0")
RESOURCE = "default/test/secret"
DATA, KEYS, BACKUPS = "/var/lib/sealed-local", "/etc/sealed-local/keys", "/backup"


def secrets_of(operator: BrokerDirectory) -> dict[str, dict[str, bytes]]:
    """`kubectl create secret generic broker-keys --from-file=DIR`, and the one with the connection."""
    files = {path.name: path.read_bytes() for path in operator.root.iterdir() if path.is_file()}
    return {"broker-keys": files, "register": {"uri": files.pop("database.conninfo")}}


def project(pod: Object, secrets: Mapping[str, Mapping[str, bytes]], folder: Path) -> None:
    """The volume `keys` as the kubelet lays it out: links, and readable by the group, because the pod has an fsGroup."""
    real = folder / "..2026_11_27"
    real.mkdir(parents=True)
    (folder / "..data").symlink_to(real.name)
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    for secret in (source["secret"] for source in volume["projected"]["sources"]):
        for item in secret["items"]:
            if secret.get("optional") and item["key"] not in secrets[secret["name"]]:
                continue
            (real / item["path"]).write_bytes(secrets[secret["name"]][item["key"]])
            (real / item["path"]).chmod(0o440)
            (folder / item["path"]).symlink_to(Path("..data") / item["path"])


class Pod:
    """What one of the chart's pods has, in a folder."""

    def __init__(self, workload: Object, operator: BrokerDirectory, root: Path) -> None:
        self.spec, self._root = pod_of(workload), root
        (root / "data").mkdir(parents=True)
        (root / "backup").mkdir()
        project(self.spec, secrets_of(operator), root / "keys")
        for entry in self.spec["initContainers"]:
            self.run(entry["name"])
        self.directory = BrokerDirectory(root / "data" / "broker")

    def run(self, name: str) -> None:
        """A container's own command, at the places that its mounts are here."""
        programs = self._root / "programs"
        programs.mkdir(exist_ok=True)
        (programs / "sealed-local").write_text(f'#!/bin/sh\nexec {sys.executable} -m csi "$@"\n')
        (programs / "sealed-local").chmod(0o755)
        command = list(container(self.spec, name)["command"])
        for there, here in ((DATA, "data"), (KEYS, "keys"), (BACKUPS, "backup")):
            command = [word.replace(there, str(self._root / here)) for word in command]
        environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"}
        subprocess.run(command, check=True, env=environment, timeout=60)


@pytest.fixture
def operator(tmp_path: Path, postgres: Server) -> BrokerDirectory:
    """What `broker init` made on the operator's machine."""
    return make_directory(tmp_path / "operator", conninfo=postgres.register())


@pytest.fixture
def brokers(tmp_path: Path, operator: BrokerDirectory) -> Iterator[list[BrokerProcess]]:
    deployment = the(render(BROKERS), "Deployment")
    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(BrokerProcess(Pod(deployment, operator, tmp_path / name).directory)))
            for name in ("a", "b")
        ]


def guest_of(broker: BrokerProcess) -> BrokerRegister:
    return BrokerRegister(broker.settings())


def formatted(guest: BrokerRegister) -> VolumeRecord:
    record = guest.take_lease(guest.open("pvc-1", Profile.XTS)[0], LEASE)
    record, _ = guest.begin_format(record, nonce=NONCE, payload_bytes=4096)
    return guest.commit_format(record, nonce=NONCE, header=HEADER, payload_bytes=4096)


def test_a_replicas_directory_is_the_operators_without_the_key_of_its_authority(
    tmp_path: Path, operator: BrokerDirectory
) -> None:
    made = Pod(the(render(BROKERS), "Deployment"), operator, tmp_path / "a").directory
    files = {path.name: path for path in made.root.iterdir() if path.is_file()}
    kept = {path.name for path in operator.root.iterdir()} - {"ca.key", "audit.pem", "in-use.lock"}
    assert files.keys() == kept
    for name, path in files.items():
        assert path.read_bytes() == (operator.root / name).read_bytes()
        assert read_private(path)
    assert made.root.stat().st_mode & 0o777 == 0o700


def test_a_volume_that_is_opened_at_one_broker_is_committed_at_another(
    operator: BrokerDirectory, brokers: list[BrokerProcess]
) -> None:
    first, second = brokers
    with closing(guest_of(first)) as guest:
        _, secret = guest.open("pvc-1", Profile.XTS)
        announced = guest.begin_open(formatted(guest), nonce=OTHER, generation=2)
    first.kill()
    with closing(guest_of(second)) as moved:
        seen, same = moved.open("pvc-1", Profile.XTS)
        assert (seen, same) == (announced, secret)
        assert moved.header(seen) == HEADER
        committed = moved.commit_open(moved.take_lease(seen, LEASE), nonce=OTHER, generation=2)
    assert (committed.state, committed.generation) == (VolumeState.ACTIVE, 2)
    with closing(operator.open_store({})) as store:
        assert store.volume("pvc-1") == committed
        store.verify_audit()


def test_a_lease_of_one_broker_keeps_the_guests_of_another_out(brokers: list[BrokerProcess]) -> None:
    first, second = brokers
    with closing(guest_of(first)) as guest, closing(guest_of(second)) as other:
        active = formatted(guest)
        other.open("pvc-1", Profile.XTS)
        with pytest.raises(Busy):
            other.take_lease(active, "ab" * 32)


def test_a_token_of_one_broker_counts_at_another(operator: BrokerDirectory, brokers: list[BrokerProcess]) -> None:
    (operator.root / "secret").write_bytes(b"value")
    assert main(["resource", "put", RESOURCE, str(operator.root / "secret"), "--dir", str(operator.root)]) == 0
    authority = operator.certificate("ca").read_text()
    clients = [
        RustShapedClient(f"https://127.0.0.1:{broker.port}", authority, init_data=INIT_DATA) for broker in brokers
    ]
    with closing(clients[0]) as first, closing(clients[1]) as second:
        token = first.handshake()
        second.key = first.key
        assert second.get_with_token(RESOURCE, token) == b"value"
        assert second.handshakes == 0


def test_a_replica_that_was_made_anew_is_the_same_broker(
    tmp_path: Path, operator: BrokerDirectory, brokers: list[BrokerProcess]
) -> None:
    with closing(guest_of(brokers[0])) as guest:
        _, secret = guest.open("pvc-1", Profile.XTS)
    brokers[0].kill()
    shutil.rmtree(tmp_path / "a")
    directory = Pod(the(render(BROKERS), "Deployment"), operator, tmp_path / "a").directory
    with closing(BrokerProcess(directory)) as again, closing(guest_of(again)) as guest:
        assert guest.open("pvc-1", Profile.XTS)[1] == secret


def test_a_backup_job_writes_one_that_can_be_restored_and_keeps_the_newest(
    tmp_path: Path, operator: BrokerDirectory, brokers: list[BrokerProcess]
) -> None:
    with closing(guest_of(brokers[0])) as guest:
        formatted(guest)
    job = Pod(the(render(BROKERS), "CronJob"), operator, tmp_path / "job")
    backups = tmp_path / "job" / "backup"
    for name in ("register-20250101T000000Z", "register-20250103T000000Z", "register-20250102T000000Z", "notes"):
        (backups / name).touch()
    job.run("backup")
    *older, newest = sorted(path.name for path in backups.glob("register-*"))
    assert older == ["register-20250102T000000Z", "register-20250103T000000Z"]
    assert (backups / "notes").exists()
    for broker in brokers:
        broker.kill()
    assert main(["restore", str(backups / newest), "--dir", str(operator.root)]) == 0
    with closing(operator.open_store({})) as store:
        assert store.volume("pvc-1").state is VolumeState.ACTIVE
