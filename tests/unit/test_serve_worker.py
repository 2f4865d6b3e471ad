"""One SecureMount by the measured policy: what the request may choose, what it may not, and what is never passed on."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csi.core import errors
from csi.core.device_number import DeviceNumber
from csi.core.errors import Busy, InUse, InvalidInput, NotFound, Refused, ToolFailed
from csi.core.sealed import STATE_RECORD_BYTES, Freshness, Profile
from csi.guest import close, verbs
from csi.guest import policy as guest_policy
from csi.guest.opened import Opened
from csi.guest.seal import state_record
from csi.guest.seal.mapping import Mapping, mapping_name
from csi.guest.serve import watch, words
from csi.guest.serve.answers import Code
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest
from csi.guest.serve.proto.ttrpc_pb2 import Response
from csi.guest.serve.worker import Worker
from csi.guest.status import Notes
from csi.guest.verbs import Guest, Wanted
from lab.kata_agent import mount_request

STORAGE = "/run/kata-containers/sandbox/storage"
POLICY = f"""
version = 1
[broker]
url = "https://broker:8443"
ca = "x"
allow_sample = true
[[volume]]
name = "exact"
id = "pvc-1"
mount = "{STORAGE}/MDEvMDI="
[[volume]]
name = "pattern"
id_pattern = "tmp-.*"
mount = "/pattern/*"
[[volume]]
name = "data"
id = "pvc-2"
mount = "/named/*"
[[volume]]
name = "twin a"
id = "pvc-3"
mount = "/twins/*"
[[volume]]
name = "twin b"
id = "pvc-4"
mount = "/twins/*"
"""
OPENED = Opened(
    volume_id="pvc-1",
    device="/dev/sdb",
    mapping="/dev/mapper/x",
    mount="/x",
    profile=Profile.XTS,
    freshness=Freshness.HEAD,
    generation=2,
    formatted_now=False,
    mounted_now=True,
    read_only=False,
)
SEALED = state_record._MAGIC.ljust(STATE_RECORD_BYTES, b"x")
BLANK = bytes(STATE_RECORD_BYTES)
EMPTY_ANSWER = b""


class World:
    """A worker whose volumes open, unless a test says otherwise."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.slots: tuple[bytes, bytes] | Exception = (BLANK, BLANK)
        self.fails: Exception | None = None
        self.wanted: list[Wanted] = []
        self.looked_after: list[str] = []
        self.read: list[str] = []
        self.policy = folder / "policy.toml"
        self.policy.write_text(POLICY)
        machine: Any = SimpleNamespace(
            node_of=self._node_of, read_slots=self._read_slots, wait_for=self._wait_for, number_of=self._number_of
        )
        self.worker = Worker(
            guest=Guest(machine=machine, notes=Notes(folder=folder / "volumes"), root=folder),
            policy=str(self.policy),
            look_after=lambda _guest, volume_id, _progress: self.looked_after.append(volume_id),
        )
        patch.setattr(verbs, "open_volume", self._open)

    def _node_of(self, number: DeviceNumber) -> str | None:
        return "/dev/sdb" if number == DeviceNumber(8, 16) else None

    def _wait_for(self, path: str, seconds: float) -> str:
        assert seconds == 0
        found = {"/dev/sdb": "/dev/sdb", "/dev/disk/by-id/b": "/dev/sdb", "/dev/sda": "/dev/sda"}.get(path)
        if found is None:
            raise NotFound(f"no device {path}")
        return found

    def _number_of(self, device: str) -> DeviceNumber:
        return {"/dev/sda": DeviceNumber(8, 0), "/dev/sdb": DeviceNumber(8, 16)}[device]

    def _read_slots(self, device: str) -> tuple[bytes, bytes]:
        self.read.append(device)
        if isinstance(self.slots, Exception):
            raise self.slots
        return self.slots

    def _open(self, _: Guest, wanted: Wanted, progress: object) -> Opened:
        assert progress is not None
        self.wanted.append(wanted)
        if self.fails is not None:
            raise self.fails
        return replace(OPENED, volume_id=f"id of {wanted.volume}")

    def ask(self, mount_point: str, device: str = "8:16") -> list[bytes]:
        return self.give(words.MOUNT + mount_request(device, mount_point))

    def give(self, packet: bytes) -> list[bytes]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self.worker(packet, theirs)
            theirs.close()
            return list(iter(lambda: ours.recv(65536), b""))

    def refused(self, mount_point: str, device: str = "8:16") -> tuple[int, str]:
        return answered(self.ask(mount_point, device))

    def refused_for(self, mount_point: str, kind: str = "block-device", **options: str) -> tuple[int, str]:
        return answered(self.give(request(mount_point, kind, **options)))


def request(mount_point: str, kind: str = "block-device", **options: str) -> bytes:
    asked = SecureMountRequest(volume_type=kind, options={"sourceType": "empty", **options}, mount_point=mount_point)
    return words.MOUNT + asked.SerializeToString()


def answered(told: list[bytes]) -> tuple[int, str]:
    """The one answer of a request that came to nothing."""
    (packet,) = told
    assert packet.startswith(words.ANSWER)
    status = Response.FromString(packet[1:]).status
    return status.code, status.message


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


@pytest.mark.parametrize(
    ("asked", "rule", "mount_point"),
    [
        (f"{STORAGE}/MDEvMDI=", "exact", f"{STORAGE}/MDEvMDI="),
        (f"{STORAGE}/MDEvMDI=/", "exact", f"{STORAGE}/MDEvMDI="),
        ("/named/MDEvMDM=", "data", "/named/MDEvMDM="),
    ],
)
def test_the_mount_point_chooses_the_rule_and_the_rule_says_the_rest(
    world: World, asked: str, rule: str, mount_point: str
) -> None:
    told = world.ask(asked)
    assert [replace(wanted, measured=None) for wanted in world.wanted] == [
        Wanted(
            policy=str(world.policy), volume=rule, volume_id=None, device="/dev/sdb", wait_seconds=0.0,
            mount_point=mount_point,
        )
    ]  # fmt: skip
    watch_word, answer, done = told
    assert watch_word == words.WATCH + f"id of {rule}".encode()
    assert Response.FromString(answer[1:]).status.code == 0
    assert done == words.DONE
    assert world.looked_after == [f"id of {rule}"]


def test_the_policy_that_chose_the_volume_opens_it_whatever_the_file_says_by_then(world: World) -> None:
    world.ask(f"{STORAGE}/MDEvMDI=")
    (wanted,) = world.wanted
    assert wanted.measured == guest_policy.parse(POLICY, str(world.policy))


@pytest.mark.parametrize(
    "asked", ["/elsewhere/x", "/named/deeper/x", "/named/..", "/named", "/named/../named/x", f"{STORAGE}/other", ""]
)
def test_a_place_that_no_rule_names_is_passed_on_and_opens_nothing(world: World, asked: str) -> None:
    assert world.ask(asked) == [words.PASS_ON]
    assert world.wanted == []


@pytest.mark.parametrize("slots", [(SEALED, BLANK), (BLANK, SEALED)])
def test_a_device_that_shows_a_sealed_volume_is_never_passed_on(world: World, slots: tuple[bytes, bytes]) -> None:
    world.slots = slots
    code, text = world.refused("/elsewhere/x")
    assert code == Code.FAILED_PRECONDITION
    assert "would format it" in text


@pytest.mark.parametrize("mount_point", ["/elsewhere/x", f"{STORAGE}/other"])
@pytest.mark.parametrize("path", ["/dev/sdb", "/dev/disk/by-id/b"])
def test_a_sealed_volume_named_by_a_path_is_not_passed_on_either(world: World, mount_point: str, path: str) -> None:
    world.slots = (SEALED, SEALED)
    code, text = world.refused_for(mount_point, devicePath=path)
    assert (code, "would format it" in text) == (Code.FAILED_PRECONDITION, True)
    assert world.read == ["/dev/sdb"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({}, Code.INVALID_ARGUMENT, "names none"),
        ({"deviceId": "8:32"}, Code.NOT_FOUND, "no block device 8:32"),
        ({"devicePath": "/dev/sdc"}, Code.NOT_FOUND, "/dev/sdc"),
        ({"devicePath": ""}, Code.INVALID_ARGUMENT, "devicePath"),
        ({"devicePath": "dev/sdb"}, Code.INVALID_ARGUMENT, "devicePath"),
        ({"devicePath": "/dev/sdb\0x"}, Code.INVALID_ARGUMENT, "devicePath"),
        ({"deviceId": "8:16", "devicePath": "/dev/sda"}, Code.FAILED_PRECONDITION, "two devices"),
        ({"deviceId": "8:0", "devicePath": "/dev/sdb"}, Code.FAILED_PRECONDITION, "two devices"),
        ({"deviceId": "8:4294967295"}, Code.INVALID_ARGUMENT, "8:4294967295"),
        ({"deviceId": "4294967296:0", "devicePath": "/dev/sda"}, Code.INVALID_ARGUMENT, "4294967296:0"),
    ],
)
@pytest.mark.parametrize("mount_point", ["/elsewhere/x", "/named/x"])
def test_a_device_that_can_not_be_looked_at_is_neither_passed_on_nor_opened(
    world: World, mount_point: str, options: dict[str, str], code: Code, said: str
) -> None:
    found, text = world.refused_for(mount_point, **options)
    assert (found, said in text) == (code, True)
    assert world.wanted == []


@pytest.mark.parametrize(
    "options", [{"devicePath": "/dev/sda"}, {"deviceId": "8:16", "devicePath": "/dev/disk/by-id/b"}]
)
def test_a_device_named_by_a_path_is_looked_at_and_passed_on(world: World, options: dict[str, str]) -> None:
    assert world.give(request("/elsewhere/x", **options)) == [words.PASS_ON]
    assert world.read == ["/dev/sda" if len(options) == 1 else "/dev/sdb"]


def test_a_volume_of_the_policy_opens_by_a_path_too(world: World) -> None:
    world.give(request("/named/x", devicePath="/dev/disk/by-id/b"))
    assert [wanted.device for wanted in world.wanted] == ["/dev/sdb"]


def test_a_request_of_another_kind_that_names_no_device_is_passed_on(world: World) -> None:
    assert world.give(request("/elsewhere/x", "alibaba-cloud-oss")) == [words.PASS_ON]
    assert world.refused_for("/named/x", "alibaba-cloud-oss")[0] == Code.NOT_FOUND
    world.slots = (SEALED, SEALED)
    assert world.refused_for("/elsewhere/x", "BlockDevice", devicePath="/dev/sdb")[0] == Code.FAILED_PRECONDITION


@pytest.mark.parametrize("mount_point", ["/elsewhere/\0", "/named/x\0"])
def test_a_mount_point_that_is_no_path_is_told(world: World, mount_point: str) -> None:
    assert world.refused(mount_point)[0] == Code.INVALID_ARGUMENT
    assert world.wanted == []


def test_a_device_too_short_for_a_sealed_volume_is_passed_on(world: World) -> None:
    world.slots = Refused("the device ends before its size")
    assert world.ask("/elsewhere/x") == [words.PASS_ON]


def test_without_a_policy_every_request_is_passed_on_but_for_sealed_volumes(world: World) -> None:
    world.policy.unlink()
    assert world.ask(f"{STORAGE}/MDEvMDI=") == [words.PASS_ON]
    world.slots = (SEALED, SEALED)
    assert world.refused(f"{STORAGE}/MDEvMDI=")[0] == Code.FAILED_PRECONDITION


def test_a_policy_that_can_not_be_read_passes_nothing_on(world: World) -> None:
    world.policy.write_text("version = ")
    assert world.refused("/elsewhere/x")[0] == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("asked", "said"), [("/twins/x", "'twin a', 'twin b'"), ("/pattern/x", "id_pattern")])
def test_where_the_host_would_choose_the_volume_none_is_opened(world: World, asked: str, said: str) -> None:
    code, text = world.refused(asked)
    assert code == Code.FAILED_PRECONDITION
    assert said in text
    assert world.wanted == []


@pytest.mark.parametrize(("device", "code"), [("8:32", Code.NOT_FOUND), ("sdb", Code.INVALID_ARGUMENT)])
def test_a_device_that_is_not_here_is_told(world: World, device: str, code: Code) -> None:
    assert world.refused("/named/x", device)[0] == code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotReleased("not this guest"), Code.PERMISSION_DENIED),
        (errors.RolledBack("older"), Code.DATA_LOSS),
        (errors.Blanked("nothing"), Code.DATA_LOSS),
        (errors.ForeignContent("something"), Code.FAILED_PRECONDITION),
        (errors.Unavailable("no broker"), Code.UNAVAILABLE),
        (Busy("another"), Code.UNAVAILABLE),
        (ToolFailed("cryptsetup"), Code.INTERNAL),
        (OSError(5, "Input/output error"), Code.INTERNAL),
    ],
)
def test_an_error_reaches_the_agent_by_its_kind_and_words(world: World, error: Exception, code: Code) -> None:
    world.fails = error
    assert world.refused("/named/x") == (code, f"sealed-local: {error}")
    assert world.looked_after == []


def test_what_is_no_request_is_told(world: World) -> None:
    (packet,) = world.give(words.MOUNT + b"\xff\xff")
    assert Response.FromString(packet[1:]).status.code == Code.INVALID_ARGUMENT


def test_a_front_that_is_gone_leaves_no_volume_without_its_watcher(world: World) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with theirs:
        world.worker(words.MOUNT + mount_request("8:16", "/named/x"), theirs)
    assert world.looked_after == ["id of data"]


def test_the_heir_of_a_watcher_says_so_and_watches(world: World) -> None:
    assert world.give(words.WATCH + b"pvc-9") == [words.WATCH + b"pvc-9", words.DONE]
    assert world.looked_after == ["pvc-9"]


# The rules themselves


def test_a_rule_that_leaves_the_name_to_the_runtime_opens_nowhere_else() -> None:
    rule = guest_policy.parse(POLICY, "policy").named("data")
    assert rule.mounted_at("/named/x").mount == "/named/x"
    for place in ("/named", "/named/..", "/named/a/b", "/elsewhere/x", None):
        with pytest.raises(InvalidInput):
            rule.mounted_at(place)
    inner = replace(rule, mount="/named/*/x")
    assert inner.mounts_at("/named/*/x")
    assert not inner.mounts_at("/named/y")
    exact = guest_policy.parse(POLICY, "policy").named("exact")
    assert exact.mounted_at(None) is exact
    with pytest.raises(InvalidInput):
        exact.mounted_at("/elsewhere")


# Looking after a volume


class Volume:
    """An open volume whose mounts and closing a test decides."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        number = DeviceNumber(253, 0)
        self.mounts: list[bool] = []
        self.closing: list[Exception | bool] = []
        self.closed = 0
        self.told: list[str] = []
        mapping = Mapping(name=mapping_name("pvc-1"), table="", device=number)
        machine: Any = SimpleNamespace(
            mapping=lambda _: mapping,
            mounts=lambda: [SimpleNamespace(device=number)] if self.mounts.pop(0) else [],
        )
        self.guest = Guest(machine=machine, notes=Notes(folder=folder / "volumes"))
        patch.setattr(close, "close", self._close)

    def _close(self, *_: object) -> bool:
        outcome = self.closing.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        self.closed += 1
        return outcome

    def look_after(self, times: int) -> Iterator[None]:
        left = iter([None] * times)
        watch.look_after(self.guest, "pvc-1", self.told.append, left)
        return left


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Volume:
    return Volume(monkeypatch, tmp_path)


def test_a_volume_is_closed_at_the_first_look_that_finds_no_mount(volume: Volume) -> None:
    volume.mounts, volume.closing = [True, True, False], [True]
    left = volume.look_after(9)
    assert volume.closed == 1
    assert len(list(left)) == 6


def test_a_volume_that_is_still_used_or_worked_on_is_tried_again(volume: Volume) -> None:
    volume.mounts = [False] * 4
    volume.closing = [InUse("a container"), ToolFailed("once"), ToolFailed("once"), True]
    volume.look_after(9)
    assert volume.closed == 1
    assert len([text for text in volume.told if "once" in text]) == 1
