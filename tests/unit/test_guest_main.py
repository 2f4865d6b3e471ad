"""`sealed-local guest`: one exit status a kind of error, one line of text, a note for `status` that is never in the way."""

import argparse
import inspect
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csi.core import errors, files, process
from csi.core.device_number import DeviceNumber
from csi.core.mount import Mount
from csi.core.sealed import Freshness, Profile
from csi.core.secret import Secret
from csi.guest import close, command_line, find, main, run, unlock, verbs
from csi.guest.attest import kbs_client, lease_client
from csi.guest.derived.work import DerivedWork
from csi.guest.lease_note import LeaseNote
from csi.guest.opened import Opened
from csi.guest.seal.mapping import mapping_name
from csi.guest.session import DeviceSession, Session
from csi.guest.status import Notes
from csi.guest.verbs import Guest, Wanted
from csi.kbs import volumes_api
from csi.kbs.register import Lease, VolumeRecord, VolumeState

ROOT = Path(__file__).resolve().parents[2]
STATUSES = {
    errors.SealedLocalError: 1,
    errors.ToolFailed: 1,
    errors.CommandError: 1,
    errors.CommandEnded: 1,
    errors.CommandTimeout: 1,
    errors.CommandKilled: 1,
    errors.InvalidInput: 2,
    errors.Untrusted: 3,
    errors.Tampered: 3,
    errors.LiveMismatch: 3,
    errors.Blanked: 4,
    errors.RolledBack: 5,
    errors.NotReleased: 6,
    errors.ForeignContent: 7,
    errors.NotFound: 8,
    errors.Unavailable: 9,
    errors.DiskFailed: 1,
    errors.Refused: 10,
    errors.InUse: 10,
    errors.Busy: 11,
    errors.LeaseLost: 13,
    # Never raised in a guest; were they, it would be a tool's failure.
    errors.AlreadyExists: 1,
    errors.NoSpace: 1,
    errors.OutOfRange: 1,
    errors.Unsupported: 12,
}
MAKE = {
    errors.InvalidInput: lambda: errors.InvalidInput("--volume", "is wrong"),
    errors.CommandError: lambda: errors.CommandError(["mount"], 32, "", "wrong fs type"),
    errors.CommandTimeout: lambda: errors.CommandTimeout(["mkfs.ext4"], 5),
    errors.DiskFailed: lambda: errors.DiskFailed(
        "/dev/sdb", "takes no write at byte 0", OSError(5, "Input/output error")
    ),
    errors.CommandKilled: lambda: errors.CommandKilled(["mkfs.ext4"], 9),
}
OPENED = Opened(
    volume_id="pvc-1",
    device="/dev/sdb",
    mapping="/dev/mapper/x",
    mount="/data",
    profile=Profile.XTS,
    freshness=Freshness.HEAD,
    generation=4,
    formatted_now=False,
    read_only=False,
    mounted_now=True,
)
POLICY = """
version = 1
[broker]
url = "https://broker"
ca = "pem"
allow_sample = true
[[volume]]
name = "data"
id = "pvc-1"
mount = "/data"
[[volume]]
name = "any"
id_pattern = "tmp-.*"
mount = "/tmp/any"
"""


class World:
    """A guest in which everything below the command line succeeds, unless a test says otherwise."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch, self.folder = patch, folder / "run" / "volumes"
        self.policy = folder / "policy.toml"
        self.policy.write_text(POLICY)
        self.opened: Opened | Exception = OPENED
        self.asked: list[Session] = []
        self.mounted: tuple[Mount, ...] = ()
        self.closed: list[str] = []
        patch.setattr(process, "harden", lambda: None)
        patch.setattr(kbs_client, "BrokerRegister", self._register)
        patch.setattr(unlock, "unlock", self._unlock)
        patch.setattr(close, "close", self._close)
        patch.setattr(lease_client, "LeaseClient", self._client)
        self.leases: list[str] = []
        machine: Any = SimpleNamespace(
            wait_for=lambda device, _: device, mounts=lambda: self.mounted, is_mapped=lambda _: self.is_open
        )
        self.is_open = False
        self.guest = Guest(machine=machine, notes=Notes(folder=self.folder), start_keeper=self._start)

    def _start(self, note: LeaseNote) -> None:
        self.leases.append(f"{note.volume_id} is kept")

    def _client(self, note: LeaseNote) -> Any:
        return SimpleNamespace(
            release=lambda: self.leases.append(f"{note.volume_id} is given back"), close=lambda: None
        )

    def _lease(self, record: VolumeRecord, secret: str, *, instead: str | None) -> VolumeRecord:
        return replace(record, lease=Lease(digest=volumes_api.lease_digest(secret), holder="me", seconds=60))

    def _register(self, _: object, *, attester: object) -> Any:
        assert attester is not None
        return SimpleNamespace(
            close=lambda: None,
            open=self._release,
            take_lease=self._lease,
            hold_lease=lambda *_: None,
            signer_pem=lambda: "PEM",
        )

    def _unlock(self, session: Session, _: VolumeRecord) -> Opened:
        self.asked.append(session)
        if isinstance(self.opened, Exception):
            raise self.opened
        self.is_open = True
        return replace(self.opened, volume_id=session.volume_id)

    def _close(self, _: object, volume_id: str) -> bool:
        self.closed.append(volume_id)
        self.is_open = False
        return len(self.closed) == 1

    def _release(self, volume_id: str, profile: Profile, _: object) -> tuple[VolumeRecord, Secret]:
        record = VolumeRecord(volume_id=volume_id, key_version=1, profile=profile, state=VolumeState.ACTIVE, revision=1)
        return record, Secret(bytes(32))

    def run(self, verb: str, *more: str, volume: str = "pvc-1") -> int:
        policy = ["--policy", str(self.policy)] if verb in ("open", "run") else []
        given = [] if verb == "status" else [*policy, "--volume", volume]
        return main.main([verb, *given, *more], guest=self.guest)

    @property
    def note(self) -> Path:
        return self.folder / f"{mapping_name('pvc-1')}.json"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    return World(monkeypatch, tmp_path)


# Exit statuses


def test_every_error_of_the_project_has_its_status_here() -> None:
    known = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__}
    assert known == STATUSES.keys()


@pytest.mark.parametrize("kind", STATUSES, ids=lambda kind: kind.__name__)
def test_an_error_ends_with_the_status_of_its_kind_and_one_line_of_text(
    world: World, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    world.opened = MAKE.get(kind, lambda: kind("what happened"))()
    assert world.run("open", "--device", "/dev/sdb") == STATUSES[kind]
    said = capsys.readouterr()
    progress, error = said.err.splitlines()
    assert (said.out, error) == ("", f"sealed-local guest: {world.opened}")
    assert progress.endswith("the broker released the key of pvc-1 (register: active)")
    assert not world.note.exists()


def test_what_the_system_refuses_is_status_1(world: World) -> None:
    world.opened = PermissionError(1, "Operation not permitted")
    assert world.run("open", "--device", "/dev/sdb") == 1


def test_the_documented_statuses_are_those_of_the_program() -> None:
    table = (ROOT / "docs/guest.md").read_text().partition("## Exit statuses")[2].partition("\n## ")[0]
    documented = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert documented == [0, 1, *sorted(code for _, code, _ in command_line.EXIT_CODES)]


def test_the_help_tells_every_status() -> None:
    shown = command_line.parser().format_help()
    assert not [code for _, code, text in command_line.EXIT_CODES if f"{code} {text}" not in shown]


# open


def test_open_prints_one_object_and_only_if_asked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("open", "--device", "/dev/sdb") == 0
    assert capsys.readouterr().out == ""
    assert world.run("open", "--device", "/dev/sdb", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "volume_id": "pvc-1", "device": "/dev/sdb", "mapping": "/dev/mapper/x", "mount": "/data", "profile": "xts",
        "freshness": "head", "generation": 4, "formatted_now": False, "mounted_now": True, "read_only": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("volume", "more", "rule", "volume_id"),
    [
        ("pvc-1", [], "data", "pvc-1"),
        ("data", [], "data", "pvc-1"),
        ("tmp-3", [], "any", "tmp-3"),
        ("any", ["--id", "tmp-3"], "any", "tmp-3"),
    ],
)
def test_open_unlocks_the_volume_that_the_policy_makes_of_what_was_given(
    world: World, volume: str, more: list[str], rule: str, volume_id: str
) -> None:
    assert world.run("open", "--device", "/dev/sdb", *more, volume=volume) == 0
    (asked,) = world.asked
    assert (asked.rule.name, asked.volume_id) == (rule, volume_id)


@pytest.mark.parametrize(
    ("volume", "more"), [("pvc-2", []), ("any", []), ("any", ["--id", "pvc-1"]), ("nobody", ["--id", "pvc-1"])]
)
def test_what_the_policy_does_not_allow_is_status_2_before_the_broker_is_asked(
    world: World, volume: str, more: list[str]
) -> None:
    world.patch.setattr(kbs_client, "BrokerRegister", None)
    assert world.run("open", "--device", "/dev/sdb", *more, volume=volume) == 2


@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8 text"), (b"version =", "not valid TOML")]
)
def test_a_policy_that_can_not_be_read_is_status_2(
    world: World, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    world.policy.unlink()
    if content is not None:
        world.policy.write_bytes(content)
    assert world.run("open", "--device", "/dev/sdb") == 2
    assert said in capsys.readouterr().err


def test_without_a_device_the_one_below_a_live_mapping_is_taken_else_it_is_searched(world: World) -> None:
    world.patch.setattr(find, "mapped_device", lambda _, __: "/dev/mapped")
    world.patch.setattr(find, "volume_device", lambda _, got, seconds: f"/dev/found-{got.volume_id}-{seconds}")
    assert world.run("open") == 0
    assert world.asked[-1].device == "/dev/mapped"
    world.patch.setattr(find, "mapped_device", lambda _, __: None)
    assert world.run("open", "--wait", "7") == 0
    assert world.asked[-1].device == "/dev/found-pvc-1-7.0"


def test_two_calls_for_one_volume_do_not_meet_and_for_two_volumes_do(world: World) -> None:
    world.folder.mkdir(parents=True)
    held = files.take_named_lock(world.folder / "lock", "pvc-1")
    assert held is not None
    assert (world.run("open", "--device", "/dev/sdb"), world.run("close")) == (11, 11)
    assert world.run("open", "--device", "/dev/sdc", volume="tmp-1") == 0
    os.close(held)
    assert world.run("open", "--device", "/dev/sdb") == 0


# What `status` remembers


def test_the_note_is_replaced_as_a_whole(world: World) -> None:
    assert world.run("open", "--device", "/dev/sdb") == 0
    seen, replaced = [], Path.replace

    def watch(self: Path, target: Path) -> Path:
        seen.append((json.loads(world.note.read_text())["generation"], json.loads(self.read_text())["generation"]))
        assert self.suffix != ".json", "an unfinished note would be shown"
        return replaced(self, target)

    world.patch.setattr(Path, "replace", watch)
    world.opened = replace(OPENED, generation=5)
    assert world.run("open", "--device", "/dev/sdb") == 0
    assert seen == [(4, 5)]
    assert json.loads(world.note.read_text())["generation"] == 5
    assert [path.name for path in world.folder.glob("*.new")] == []


def test_a_note_that_can_not_be_written_does_not_take_the_volume_away(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    write = files.write_atomic

    def full(path: Path, *given: Any, **more: Any) -> None:
        if path.parent.name != "leases":
            raise OSError(28, "No space left on device")
        write(path, *given, **more)

    world.patch.setattr(files, "write_atomic", full)
    assert world.run("open", "--device", "/dev/sdb", "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["mount"] == "/data"
    assert "can't be written (No space left on device); `status` won't show it" in said.err


def test_a_lease_that_can_not_be_noted_is_given_back_and_nothing_is_opened(world: World) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    world.patch.setattr(files, "write_atomic", full)
    assert world.run("open", "--device", "/dev/sdb") == 1
    assert (world.asked, world.leases) == ([], ["pvc-1 is given back"])


def test_status_compares_the_notes_with_the_mounts_of_now(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.run("status") == 0
    assert capsys.readouterr().out == "no volume is open\n"
    world.run("open", "--device", "/dev/sdb")
    assert world.run("status") == 0
    assert "pvc-1: NOT MOUNTED at /data" in capsys.readouterr().out
    mount = Mount(
        target="/data",
        root="/",
        device=DeviceNumber(253, 0),
        fstype="ext4",
        source="/dev/mapper/x",
        options=frozenset(),
        super_options=frozenset(),
    )
    world.mounted = (mount,)
    assert world.run("status") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("pvc-1: mounted at /data, profile xts, generation 4, freshness head, lease renewed ")
    assert world.run("status", "--json") == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["mounted"], shown["volume_id"]) == (True, "pvc-1")


# close


def test_close_is_fine_twice_and_says_what_it_did(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.run("open", "--device", "/dev/sdb")
    capsys.readouterr()
    assert world.run("close") == 0
    assert capsys.readouterr() == ("", "pvc-1: closed\n")
    assert not world.note.exists()
    assert world.run("close") == 0
    assert capsys.readouterr() == ("", "pvc-1: was not open\n")


def test_a_volume_that_can_not_be_closed_stays_noted(world: World) -> None:
    def busy(_: object, volume_id: str) -> bool:
        raise errors.InUse(f"{volume_id} is busy")

    world.run("open", "--device", "/dev/sdb")
    world.patch.setattr(close, "close", busy)
    assert world.run("close") == 10
    assert world.note.exists()


# run


@pytest.mark.parametrize("separator", [["--"], []])
def test_run_returns_the_commands_status_and_closes_the_volume(world: World, separator: list[str]) -> None:
    ran: list[list[str]] = []
    world.patch.setattr(run, "supervise", lambda command, *_: ran.append(list(command)) or 7)
    assert world.run("run", "--device", "/dev/sdb", *separator, "worker", "--fast", volume="data") == 7
    assert (ran, world.closed) == ([["worker", "--fast"]], ["pvc-1"])
    assert world.leases == ["pvc-1 is kept", "pvc-1 is given back"]
    assert not world.note.exists()


@pytest.mark.parametrize("verb", ["open", "run"])
def test_how_long_another_guest_is_waited_for_is_the_callers_word(world: World, verb: str) -> None:
    def opened(_: object, wanted: Wanted, *__: object, **___: object) -> Opened:
        waits.append(wanted.patience.seconds)
        raise errors.Busy("another guest has it")

    waits: list[float] = []
    world.patch.setattr(verbs, "open_volume", opened)
    for more in ([], ["--wait-for-lease", "90"]):
        assert world.run(verb, "--device", "/dev/sdb", *more, *(["--", "worker"] if verb == "run" else [])) == 11
    assert waits == [0, 90]


def test_a_signal_to_end_ends_the_waiting_of_run(world: World) -> None:
    def opened(_: object, wanted: Wanted, *__: object, **___: object) -> Opened:
        assert not wanted.patience.called_off()
        os.kill(os.getpid(), signal.SIGTERM)
        assert wanted.patience.called_off()
        raise errors.Busy("another guest has it")

    world.patch.setattr(verbs, "open_volume", opened)
    assert world.run("run", "--device", "/dev/sdb", "--wait-for-lease", "90", "--", "worker") == 11


@pytest.mark.parametrize("more", [[], ["--"]])
def test_run_without_a_command_is_status_2_and_opens_nothing(
    world: World, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert world.run("run", *more) == 2
    assert "command: is missing; write: run --policy FILE --volume ID -- COMMAND" in capsys.readouterr().err
    assert world.asked == []


def test_run_closes_the_volume_when_the_command_can_not_be_started(world: World) -> None:
    assert world.run("run", "--device", "/dev/sdb", "--", "/no/such/program") == 1
    assert world.closed == ["pvc-1"]


def test_run_leaves_a_volume_alone_that_somebody_else_has_opened(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.opened = replace(OPENED, mounted_now=False)
    world.patch.setattr(run, "supervise", lambda *_: pytest.fail("the command must not run"))
    assert world.run("run", "--device", "/dev/sdb", "--", "worker") == 10
    assert "is open already" in capsys.readouterr().err
    assert world.closed == []


def test_a_volume_that_can_not_be_closed_after_the_command_gives_that_status(world: World) -> None:
    def busy(_: object, volume_id: str) -> bool:
        raise errors.InUse(f"{volume_id} is busy")

    world.patch.setattr(run, "supervise", lambda *_: 0)
    world.patch.setattr(close, "close", busy)
    assert world.run("run", "--device", "/dev/sdb", "--", "worker") == 10


# The command line


@pytest.mark.parametrize(
    "arguments",
    [[], ["open"], ["open", "--policy", "p"], ["open", "--volume", "v"], ["close"], ["grow"], ["open", "--nope"]],
)
def test_a_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    assert "usage: sealed-local guest" in capsys.readouterr().err


def parsers() -> dict[str, argparse.ArgumentParser]:
    (found,) = (one for one in command_line.parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_option_of_every_verb_is_in_the_table_that_the_page_has_for_the_verb() -> None:
    page = (ROOT / "docs/guest.md").read_text()
    for name, verb in parsers().items():
        table = page.partition(f"<!-- options: guest {name} -->")[2].partition("<!-- end of options -->")[0]
        options = [option for action in verb._actions for option in action.option_strings if option.startswith("--")]
        assert [option for option in options if f"| `{option}" not in table] == ["--help"], name


def test_the_help_of_a_verb_says_what_is_declared_beside_each_meaning() -> None:
    told = " ".join(parsers()["open"].format_help().split())
    assert "how long to wait for the device, in seconds (default: 30)" in told
    assert "part of what is measured (required)" in told


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "soon", "86401"])
def test_a_wait_that_is_no_bounded_number_is_refused_with_the_bounds(
    capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["open", "--policy", "p", "--volume", "v", f"--wait={text}"])
    assert ended.value.code == 2
    assert "not a number of seconds from 0 to 86400" in capsys.readouterr().err


# A broker that keeps no register


def test_without_a_register_no_verb_asks_for_one_or_for_a_lease(world: World) -> None:
    """`recover-key` derives; an open goes to the disk with the same keys, and takes no lease."""
    trustee = 'kind = "trustee"\nroot = "kbs:///a/b/c"\nallow_sample = true'
    world.policy.write_text(
        POLICY.replace("allow_sample = true", trustee).replace("mount =", "without_leases = true\nmount =")
    )
    asked: list[str] = []

    def give(uri: str) -> Secret:
        asked.append(uri)
        return Secret(b"r" * 32)

    broker: Any = SimpleNamespace(get_resource=give, close=lambda: None)
    world.patch.setattr(kbs_client, "BrokerRegister", lambda *_, **__: broker)
    sessions: list[DeviceSession] = []

    def unlocked(work: DerivedWork) -> Opened:
        sessions.append(work.session)
        return replace(OPENED, freshness=work.session.freshness)

    world.patch.setattr(DerivedWork, "unlock", unlocked)
    assert world.run("open", "--device", "/dev/sdb") == 0
    target = world.folder.parent / "key"
    assert world.run("recover-key", "--policy", str(world.policy), "--to", str(target)) == 0
    assert target.read_bytes() == sessions[0].keys.passphrase.reveal()
    assert asked == ["kbs:///a/b/c"] * 2
    assert world.leases == []
    assert json.loads(world.note.read_text())["freshness"] == "unverified"
