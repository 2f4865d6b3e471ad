"""The front against a played agent and a played confidential-data-hub: what passes, who answers, and who may die of it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi.guest.serve import front
from csi.guest.serve.frames import DATA, MOST_BYTES, REQUEST, RESPONSE
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest
from csi.guest.serve.proto.ttrpc_pb2 import Response
from lab.kata_agent import REMOTE_CLOSED, Caller, launch, mount_request

ROOT = Path(__file__).resolve().parents[2]
SECRETS = "api.SealedSecretService"
UNAVAILABLE, UNIMPLEMENTED, TOO_MUCH, INVALID, DENIED = 14, 12, 8, 3, 7


class Fronts:
    """Starts fronts, and ends what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "cdh.sock"
        self.hub = folder / "hub"
        self.hub.write_text(f'#!/bin/sh\necho $$ >> {folder}/hubs\nexec {sys.executable} -m lab.hub "$@"\n')
        self.hub.chmod(0o755)
        self.callers: list[Caller] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *, hub: bool = True) -> Caller:
        command = [sys.executable, "-m", "tests.fakes.front", str(self.path), *([str(self.hub)] if hub else [])]
        with (self.folder / "log").open("ab") as log:
            self.started.append(launch(command, self.path, cwd=ROOT, stderr=log))
        return self.caller()

    def start_program(self, *more: str) -> Caller:
        """The real program, workers and all."""
        command = [
            sys.executable,
            "-m",
            "csi",
            "guest",
            "serve",
            "--socket",
            str(self.path),
            "--cdh",
            str(self.hub),
            *more,
        ]
        with (self.folder / "log").open("ab") as log:
            self.started.append(launch(command, self.path, cwd=ROOT, stderr=log))
        return self.caller()

    def caller(self) -> Caller:
        self.callers.append(Caller(self.path))
        return self.callers[-1]

    def end(self) -> None:
        for caller in self.callers:
            caller.socket.close()
        for process in self.started:
            process.terminate()
            process.wait(30)

    def hubs(self) -> list[int]:
        return [int(line) for line in (self.folder / "hubs").read_text().split()]


@pytest.fixture
def fronts(tmp_path: Path) -> Iterator[Fronts]:
    made = Fronts(tmp_path)
    try:
        yield made
    finally:
        made.end()


def _is_at_work(hub: int) -> bool:
    """One that ended and nobody has asked for has an empty command line, and its number may be another's by now."""
    try:
        return b"hub" in Path(f"/proc/{hub}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def asked_again(caller: Caller) -> Response:
    """An answer of the confidential-data-hub that was killed a moment ago; the first may still be for the old one."""
    give_up = time.monotonic() + 60
    while (answer := caller.call(SECRETS, "Unseal", b"again")).status.code == UNAVAILABLE:
        assert time.monotonic() < give_up
    return answer


# What passes


def test_the_first_request_waits_for_the_hub_and_gets_its_answer(fronts: Fronts) -> None:
    caller = fronts.start()
    assert caller.call(SECRETS, "UnsealSecret", b"sealed.x").payload == b"sealed.x"
    refused = caller.call("api.GetResourceService", "Refuse", b"no such resource")
    assert (refused.status.code, refused.status.message) == (5, "no such resource")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_payload_of_any_size_passes(fronts: Fronts, size: int) -> None:
    payload = os.urandom(size)
    assert fronts.start().call("api.GetResourceService", "GetResource", payload).payload == payload


def test_streams_pass_in_both_directions(fronts: Fronts) -> None:
    caller = fronts.start()
    down = caller.ask("api.ImagePullService", "Stream", b"abc")
    parts = [caller.next() for _ in range(4)]
    assert [(part.stream, part.kind) for part in parts] == [(down, DATA)] * 3 + [(down, RESPONSE)]
    assert [part.payload for part in parts[:3]] == [b"a", b"b", b"c"]
    up = caller.ask("api.ImagePullService", "Upload", b"", more=True)
    caller.send(up, DATA, b"one ")
    caller.send(up, DATA, b"two", REMOTE_CLOSED)
    assert Response.FromString(caller.next().payload).payload == b"one two"


def test_a_slow_pull_delays_neither_secrets_nor_mounts_nor_other_callers(fronts: Fronts) -> None:
    caller, release = fronts.start(), fronts.folder / "release"
    pull = caller.ask("api.ImagePullService", "Slowly", str(release).encode())
    assert caller.call(SECRETS, "Unseal", b"meanwhile").payload == b"meanwhile"
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    assert fronts.caller().call(SECRETS, "Unseal", b"another").payload == b"another"
    release.touch()
    assert caller.next().stream == pull


def test_a_slow_unlock_delays_nobody(fronts: Fronts) -> None:
    caller, release = fronts.start(), fronts.folder / "release"
    slow = caller.ask("api.SecureMountService", "SecureMount", mount_request("8:16", f"/waits{release}"))
    assert caller.secure_mount("8:32", "/ours").status.code == 0
    assert caller.call(SECRETS, "Unseal", b"meanwhile").payload == b"meanwhile"
    release.touch()
    assert caller.next().stream == slow


# Who answers a SecureMount


def test_a_mount_of_ours_never_reaches_the_hub_and_another_one_does(fronts: Fronts) -> None:
    caller, noted = fronts.start(), fronts.folder / "cdh-behind.mounts"
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    failed = caller.secure_mount("8:16", "/fails")
    assert (failed.status.code, failed.status.message) == (DENIED, "sealed-local: the broker's own words")
    assert caller.call(SECRETS, "Unseal", b"").status.code == 0
    assert not noted.exists()
    assert caller.secure_mount("8:16", "/not-ours").status.code == 0
    assert noted.read_bytes() == mount_request("8:16", "/not-ours")


def test_without_a_hub_the_agent_is_told_and_mounts_of_ours_work(fronts: Fronts) -> None:
    caller = fronts.start(hub=False)
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    for answer in (caller.call(SECRETS, "Unseal", b""), caller.secure_mount("8:16", "/not-ours")):
        assert answer.status.code == UNIMPLEMENTED
        assert "no confidential-data-hub" in answer.status.message


# Who may die


def test_a_killed_worker_costs_its_request_and_nothing_else(fronts: Fronts) -> None:
    caller = fronts.start()
    died = caller.secure_mount("8:16", "/dies")
    assert died.status.code == UNAVAILABLE
    assert "ended before it answered" in died.status.message
    assert caller.secure_mount("8:16", "/ours").status.code == 0


def test_a_killed_hub_fails_what_it_was_asked_and_comes_again_on_the_same_connection(fronts: Fronts) -> None:
    caller = fronts.start()
    assert caller.call(SECRETS, "Unseal", b"").status.code == 0
    caller.ask("api.ImagePullService", "Never", b"")
    os.kill(fronts.hubs()[-1], signal.SIGKILL)
    lost = Response.FromString(caller.next().payload)
    assert lost.status.code == UNAVAILABLE
    assert "started again" in lost.status.message
    assert asked_again(caller).payload == b"again"
    assert len(fronts.hubs()) == 2


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def nursery_of(fronts: Fronts) -> int:
    keeper = int(Path(f"/proc/{fronts.hubs()[-1]}/stat").read_text().split()[3])
    (nursery,) = (child for child in children_of(fronts.started[0].pid) if child != keeper)
    return nursery


def test_a_worker_waits_for_the_next_request_and_one_that_was_killed_meanwhile_costs_nothing(fronts: Fronts) -> None:
    caller = fronts.start()
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    nursery = nursery_of(fronts)
    for _ in range(3):
        until(lambda: children_of(nursery))
        os.kill(children_of(nursery)[-1], signal.SIGKILL)
    until(lambda: children_of(nursery))
    assert caller.secure_mount("8:16", "/ours").status.code == 0


def test_a_killed_nursery_is_replaced_at_the_next_request(fronts: Fronts) -> None:
    caller = fronts.start()
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    os.kill(nursery_of(fronts), signal.SIGKILL)
    until(lambda: "workers come from ended" in (fronts.folder / "log").read_text())
    assert caller.secure_mount("8:16", "/ours").status.code == 0


def test_a_killed_watcher_of_a_volume_has_an_heir(fronts: Fronts) -> None:
    caller, volume = fronts.start(), fronts.folder / "volume"
    volume.mkdir()
    assert caller.secure_mount("8:16", f"/volume{volume}").status.code == 0
    until(lambda: any(volume.iterdir()))
    (first,) = volume.iterdir()
    os.kill(int(first.name), signal.SIGKILL)
    until(lambda: len(list(volume.iterdir())) == 2)
    (volume / "end").touch()
    until((volume / "closed").exists)
    assert caller.secure_mount("8:16", "/ours").status.code == 0
    assert len([path for path in volume.iterdir() if path.name.isdigit()]) == 2


def test_a_killed_front_ends_the_hub_and_leaves_who_looks_after_a_volume(fronts: Fronts) -> None:
    caller, volume = fronts.start(), fronts.folder / "volume"
    volume.mkdir()
    assert caller.secure_mount("8:16", f"/volume{volume}").status.code == 0
    assert caller.call(SECRETS, "Unseal", b"").status.code == 0
    fronts.started[0].kill()
    fronts.started[0].wait()
    with pytest.raises((EOFError, ConnectionError)):
        caller.call(SECRETS, "Unseal", b"")
    again = fronts.start()
    assert again.call(SECRETS, "Unseal", b"again").payload == b"again"
    until(lambda: not _is_at_work(fronts.hubs()[0]))
    (volume / "end").touch()
    until((volume / "closed").exists)


# What no caller may do to another one's connection


def test_what_can_not_be_read_is_told_on_its_stream_and_the_connection_stays(fronts: Fronts) -> None:
    caller = fronts.start()
    caller.send(11, REQUEST, b"\xff\xff\xff")
    assert Response.FromString(caller.next().payload).status.code == INVALID
    caller.send(13, REQUEST, bytes(MOST_BYTES + 1))
    frame = caller.next()
    assert (frame.stream, Response.FromString(frame.payload).status.code) == (13, TOO_MUCH)
    caller.send(15, DATA, b"of a stream that never was")
    caller.send(15, 77, b"of a kind that never was")
    assert caller.call(SECRETS, "Unseal", b"still here").payload == b"still here"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fronts, Caller]]:
    made = Fronts(tmp_path_factory.mktemp("front"))
    yield made, made.start(hub=False)
    made.end()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(garbage=st.lists(st.binary(min_size=1, max_size=80), min_size=1, max_size=8))
def test_no_bytes_of_one_caller_end_the_front_or_another_connection(
    shared: tuple[Fronts, Caller], garbage: list[bytes]
) -> None:
    made, agent = shared
    rude = made.caller()
    for piece in garbage:
        rude.socket.sendall(piece)
    rude.socket.close()
    assert agent.secure_mount("8:16", "/ours").status.code == 0


# The socket


def test_the_socket_has_its_name_only_when_it_listens_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "cdh.sock"
    path.write_text("an earlier one")
    seen: list[str] = []
    ready = threading.Event()

    def look() -> None:
        ready.set()
        while not seen:
            if path.is_socket():
                Caller(path).socket.close()
                seen.append("connected")

    looker = threading.Thread(target=look)
    looker.start()
    ready.wait()
    with front.listen(path):
        looker.join(60)
    assert seen == ["connected"]
    assert path.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in tmp_path.iterdir()] == ["cdh.sock"]


# The program

OF_A_BUCKET = SecureMountRequest(volume_type="alibaba-cloud-oss", mount_point="/bucket").SerializeToString()
"""A request for the hub alone: it needs no device of this machine."""


def test_the_program_passes_on_what_no_policy_names_and_leaves_nothing_at_its_end(fronts: Fronts) -> None:
    config = fronts.folder / "cdh.toml"
    config.write_text('socket = "unix:///run/confidential-containers/cdh.sock"\n')
    caller = fronts.start_program("--policy", str(fronts.folder / "none"), "-c", str(config))
    assert caller.call("api.SecureMountService", "SecureMount", OF_A_BUCKET).status.code == 0
    assert (fronts.folder / "cdh-behind.mounts").exists()
    assert caller.call(SECRETS, "Unseal", b"x").payload == b"x"
    fronts.started[0].terminate()
    assert fronts.started[0].wait(30) == 0
    assert not fronts.path.exists()
    until(lambda: not Path(f"/proc/{fronts.hubs()[0]}").exists())


def test_the_process_that_stays_has_nothing_of_an_unlock_in_it(fronts: Fronts) -> None:
    caller = fronts.start_program("--policy", str(fronts.folder / "none"))
    assert caller.call("api.SecureMountService", "SecureMount", OF_A_BUCKET).status.code == 0
    maps = Path(f"/proc/{fronts.started[0].pid}/maps").read_text()
    assert "/google/" in maps
    for part in ("cryptography", "_ssl", "msgspec", "_ctypes"):
        assert part not in maps


def test_a_configuration_that_can_not_be_used_ends_the_program_before_it_has_a_socket(fronts: Fronts) -> None:
    config = fronts.folder / "cdh.toml"
    config.write_text("socket = ")
    with pytest.raises(TimeoutError, match="status 2"):
        fronts.start_program("--policy", "none", "-c", str(config))
    assert "not valid TOML" in (fronts.folder / "log").read_text()
    assert not fronts.path.exists()
