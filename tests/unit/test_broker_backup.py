"""A backup is whole or not there; a restore puts exactly it in the register's place, and holds what changed since."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from csi.broker import backup as copies
from csi.broker import rules, turns
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.owner import Owner
from csi.broker.postgres import Link
from csi.core.sealed import Profile
from csi.kbs.disk_state import DiskState
from csi.kbs.register import Lease, VolumeRecord, VolumeState
from tests.fakes.broker import make_directory
from tests.fakes.postgres import Server

Capture = pytest.CaptureFixture[str]
EVENT = Event(actor="test", action="tested", subject="x")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEALED_LOCAL_BROKER_DIR", "SEALED_LOCAL_BROKER_MASTER_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A broker's directory, with the register in each database."""
    conninfo = None if request.param == "sqlite" else request.getfixturevalue("postgres").register()
    make_directory(tmp_path / "broker", conninfo=conninfo)
    return tmp_path / "broker"


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: object, status: int = 0) -> str:
        capsys.readouterr()
        found = main([str(word) for word in (*arguments, "--dir", root)])
        said = capsys.readouterr()
        assert found == status, said.err
        return said.out + said.err

    return run


def make(root: Path, *volumes: str) -> None:
    with closing(BrokerDirectory(root).open_store()) as store:
        for volume in volumes:
            record = rules.allocate(volume, Profile.XTS)
            store.allocate(record, b"wrapped-" + volume.encode(), Event(actor="t", action="allocated", subject=volume))


def formatted(record: VolumeRecord) -> VolumeRecord:
    begun = rules.begin_format(
        record,
        revision=record.revision,
        nonce="f0" * 32,
        payload_bytes=4096,
        measurement="m",
        epoch="0e" * 16,
        now_unix=0,
        lifetime_seconds=10,
    )
    return rules.commit_format(
        begun,
        revision=begun.revision,
        nonce="f0" * 32,
        measurement="m",
        header_sha256="ab" * 32,
        payload_bytes=4096,
    )


def opened(record: VolumeRecord) -> VolumeRecord:
    begun, generation = begun_open(record), record.announced + 1
    return rules.commit_open(begun, revision=begun.revision, nonce=f"{generation:064x}", generation=generation)


def begun_open(record: VolumeRecord) -> VolumeRecord:
    generation = record.announced + 1
    nonce = f"{generation:064x}"
    return rules.begin_open(record, revision=record.revision, nonce=nonce, generation=generation, epoch="0e" * 16)


def change(root: Path, volume: str, action: str, *steps: Callable[[VolumeRecord], VolumeRecord], **more: bool) -> None:
    with closing(BrokerDirectory(root).open_store()) as store:
        for step in steps:
            store.change(volume, step, Event(actor="t", action=action, subject=volume), **more)


def records(root: Path) -> dict[str, VolumeRecord]:
    with closing(BrokerDirectory(root).open_store()) as store:
        return {record.volume_id: record for record in store.volumes()}


def epoch(root: Path) -> str:
    with closing(BrokerDirectory(root).open_store()) as store:
        return store.epoch()


def test_a_backup_is_one_whole_private_file(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    make(root, "pvc-1")
    assert "checked" in run("backup", tmp_path / "kept")
    assert [path.name for path in tmp_path.iterdir() if "kept" in path.name] == ["kept"]
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0
    before = (tmp_path / "kept").read_bytes()
    assert "never replaces" in run("backup", tmp_path / "kept", status=1)
    assert (tmp_path / "kept").read_bytes() == before


@pytest.mark.parametrize("root", ["sqlite"], indirect=True)
def test_a_backup_that_does_not_verify_is_not_written(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    make(root, "pvc-1")
    with closing(BrokerDirectory(root).open_store()) as store:
        store._database._db.execute("DROP TRIGGER audit_is_not_changed")
        store._database._db.execute("UPDATE audit SET actor = 'x'")
        store._database._db.execute(
            "CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    assert "altered" in run("backup", tmp_path / "kept", status=1)
    assert [path.name for path in tmp_path.iterdir() if "kept" in path.name] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from csi.broker import rules
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.core.sealed import Profile

store = BrokerDirectory(Path(sys.argv[1])).open_store()
for number in range(200):
    store.allocate(rules.allocate(f"pvc-late-{number}", Profile.XTS), b"w" * 500, Event(actor="a", action="b", subject="c"))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("root", ["sqlite"], indirect=True)
@pytest.mark.parametrize("main_file", ["whole", "noise", "gone"])
def test_after_kill_9_the_old_write_ahead_log_is_not_replayed_into_the_restored_register(
    root: Path, tmp_path: Path, run: Callable[..., str], main_file: str
) -> None:
    make(root, "pvc-1")
    run("backup", tmp_path / "kept")
    first = epoch(root)
    done = subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (root / "broker.sqlite-wal").stat().st_size > 0
    if main_file == "noise":
        (root / "broker.sqlite").write_bytes(os.urandom(4096))
    if main_file == "gone":
        (root / "broker.sqlite").unlink()
    said = run("restore", tmp_path / "kept")
    assert ("NOT known" in said) == (main_file != "whole")
    assert not (root / "broker.sqlite-wal").exists()
    left = set(records(root)) - {"pvc-1"}
    assert len(left) == (200 if main_file == "whole" else 0), "what a whole register still tells is held, not lost"
    assert "the chain is whole" in run("audit", "--verify")
    assert epoch(root) != first
    kept = sorted(path.name.partition("-wal")[1] for path in root.glob("broker.sqlite.replaced-*"))
    assert kept == {"whole": [""], "noise": ["", "-wal"], "gone": ["-wal"]}[main_file], "what was replaced is kept"


def hand_over(root: Path, volume: str, workload: str) -> None:
    event = Event(actor="operator", action="handed-over", subject=volume)
    with closing(BrokerDirectory(root).open_store()) as store:
        store.hand_over(volume, Owner(workload=workload), rules.hand_over, event)


def statements(root: Path, *words: str) -> None:
    """By whoever can write the server's database."""
    conninfo = BrokerDirectory(root).load_conninfo()
    assert conninfo is not None
    with closing(psycopg.connect(conninfo.reveal().decode(), autocommit=True)) as link:
        for statement in words:
            link.execute(statement.encode())


def lose(root: Path) -> None:
    """The register is gone, wherever it was."""
    if (root / "database.conninfo").exists():
        statements(root, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    for path in root.glob("broker.sqlite*"):
        path.unlink()


def give_headers(root: Path, *volumes: str) -> None:
    with closing(BrokerDirectory(root).open_store()) as store, store._changing("test") as now:
        for volume in volumes:
            store._put_header(now, volume, f"header of {volume}".encode())


def apart_from_the_lease(record: VolumeRecord) -> VolumeRecord:
    return replace(record, lease=None, revision=1, last_nonce=None)


def test_everything_that_changed_since_is_listed_and_held(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    make(root, "pvc-same", "pvc-format", "pvc-open", "pvc-shred", "pvc-retire")
    for volume in ("pvc-same", "pvc-open", "pvc-shred", "pvc-retire"):
        change(root, volume, "formatted", formatted)
    give_headers(root, "pvc-same", "pvc-open", "pvc-shred")
    run("backup", tmp_path / "kept")
    before = records(root)
    make(root, "pvc-made")
    change(root, "pvc-format", "formatted", formatted)
    change(root, "pvc-open", "opened", opened, opened)
    change(root, "pvc-retire", "retired", rules.retire)
    change(root, "pvc-shred", "retired", rules.retire)
    change(root, "pvc-shred", "shredded", rules.shred, destroy_secret=True)
    give_headers(root, "pvc-format", "pvc-shred")
    said = run("restore", tmp_path / "kept")
    lines = {line.partition(":")[0]: line for line in said.splitlines() if line.startswith("pvc-")}
    assert set(lines) == {"pvc-made", "pvc-format", "pvc-open", "pvc-shred", "pvc-retire"}
    assert "back at generation 1, its disk may show up to 3" in lines["pvc-open"]
    assert "volume reinstate pvc-made" in lines["pvc-made"]
    after = records(root)
    assert apart_from_the_lease(after["pvc-same"]) == apart_from_the_lease(before["pvc-same"])
    assert after["pvc-same"].lease == Lease(digest="00" * 32, holder="unknown", seconds=60, revoked=True)
    assert {after[volume].state for volume in lines if volume != "pvc-shred"} == {VolumeState.RETIRED}
    assert after["pvc-shred"].state is VolumeState.SHREDDED
    with closing(BrokerDirectory(root).open_store()) as store:
        assert store.stored("pvc-made").wrapped_secret == b"wrapped-pvc-made"
        assert store.stored("pvc-shred").wrapped_secret is None
        headers = {volume: store.header(volume) for volume in ("pvc-same", "pvc-format", "pvc-open", "pvc-shred")}
    assert headers == {
        "pvc-same": b"header of pvc-same",
        "pvc-format": b"header of pvc-format",
        "pvc-open": b"header of pvc-open",
        "pvc-shred": None,
    }, "each has the header that its record is of"
    run("volume", "reinstate", "pvc-format")
    assert records(root)["pvc-format"].state is VolumeState.ACTIVE, "and not formatted once more"
    assert "the chain is whole" in run("audit", "--verify")


def test_what_was_begun_at_the_backup_is_void_in_the_restored_register(
    root: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    make(root, "pvc-1")
    change(root, "pvc-1", "formatted", formatted)
    change(root, "pvc-1", "open-begun", begun_open)
    run("backup", tmp_path / "kept")
    run("restore", tmp_path / "kept")
    record = records(root)["pvc-1"]
    assert (record.candidates, record.announced, record.generation) == ((), 2, 1)
    assert "begun-anew" in run("audit")


def test_a_disk_of_after_the_backup_is_accepted_by_a_person_who_saw_both_states(
    root: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    make(root, "pvc-1")
    change(root, "pvc-1", "formatted", formatted)
    run("backup", tmp_path / "kept")
    change(root, "pvc-1", "opened", opened)
    lost = records(root)["pvc-1"]
    assert lost.head is not None
    found = str(DiskState(announcement=lost.head, header_sha256="ab" * 32, payload_bytes=4096))
    assert f"volume accept pvc-1 --found {found}" in run("restore", tmp_path / "kept")
    words = ("volume", "accept", "pvc-1", "--found", found, "--reason", "the backup was of yesterday")
    asked = run(*words, status=1)
    assert f"the disk:      {found}" in asked
    assert "the register:  generation=1," in asked
    assert records(root)["pvc-1"].generation == 1, "nothing was accepted yet"
    assert "at generation 2, by that state alone" in run(*words, "--yes")
    run("volume", "reinstate", "pvc-1")
    record = records(root)["pvc-1"]
    assert (record.state, record.head, record.announced) == (VolumeState.ACTIVE, lost.head, 2)
    events = [json.loads(line)["event"] for line in run("audit").splitlines()]
    (accepted,) = [event for event in events if event["action"] == "accepted"]
    assert found in accepted["detail"]
    assert "generation=1," in accepted["detail"]
    assert accepted["detail"].endswith("reason=the backup was of yesterday")


@pytest.mark.parametrize("text", ["", "generation=2", "4", "generation=0,nonce=,epoch=,header=,payload=4096"])
def test_a_state_that_no_guest_printed_is_refused(root: Path, run: Callable[..., str], text: str) -> None:
    make(root, "pvc-1")
    assert "--found: " in run("volume", "accept", "pvc-1", "--found", text, "--reason", "r", "--yes", status=1)


def test_a_saved_audit_log_tells_what_a_lost_register_can_not(
    root: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    make(root, "pvc-1", "pvc-2", "pvc-3")
    for volume in ("pvc-1", "pvc-2"):
        change(root, volume, "formatted", formatted)
    run("backup", tmp_path / "kept")
    make(root, "pvc-made")
    change(root, "pvc-1", "opened", opened)
    hand_over(root, "pvc-3", "web")
    (tmp_path / "log").write_text(run("audit"))
    lose(root)
    said = run("restore", tmp_path / "kept", "--audit-log", tmp_path / "log")
    assert [line.partition(":")[0] for line in said.splitlines() if line.startswith("pvc-")] == [
        "pvc-1",
        "pvc-3",
        "pvc-made",
    ]
    assert "last seen since the backup: opened" in said
    assert "last seen since the backup: handed-over" in said
    states = {volume: record.state for volume, record in records(root).items()}
    assert states == {"pvc-1": VolumeState.RETIRED, "pvc-2": VolumeState.ACTIVE, "pvc-3": VolumeState.RETIRED}


def test_a_restore_gives_no_volume_back_to_whoever_had_it_before_a_hand_over(
    root: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    make(root, "pvc-1")
    hand_over(root, "pvc-1", "spark")
    run("backup", tmp_path / "kept")
    hand_over(root, "pvc-1", "web")
    run("restore", tmp_path / "kept")
    with closing(BrokerDirectory(root).open_store()) as store:
        stored = store.stored("pvc-1")
    assert (stored.owner, stored.record.state) == (Owner(workload="web"), VolumeState.RETIRED)


def test_where_nothing_can_tell_nothing_may_be_formatted(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    make(root, "pvc-1", "pvc-2")
    change(root, "pvc-2", "formatted", formatted)
    run("backup", tmp_path / "kept")
    lose(root)
    assert "NOT known" in run("restore", tmp_path / "kept")
    states = {volume: record.state for volume, record in records(root).items()}
    assert states == {"pvc-1": VolumeState.RETIRED, "pvc-2": VolumeState.ACTIVE}


def test_what_is_not_a_backup_of_this_broker_changes_nothing(
    root: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    make(root, "pvc-1")
    with closing(BrokerDirectory(root).load_broker({}).store):
        pass
    run("backup", tmp_path / "kept")
    whole = (tmp_path / "kept").read_bytes()
    other = make_directory(tmp_path / "other")
    with closing(other.load_broker({}).store) as store:
        copies.back_up(store, tmp_path / "others", other.seals({}), EVENT)
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise").write_bytes(os.urandom(8192))
    (tmp_path / "empty").write_bytes(b"")
    shutil.copy(tmp_path / "kept", tmp_path / "in-use")
    (tmp_path / "in-use-wal").write_bytes(b"log")
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    for name in ("others", "cut", "noise", "empty", "in-use", "missing"):
        assert "Traceback" not in run("restore", tmp_path / name, status=1)
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before


def test_nothing_is_restored_under_a_broker_that_runs(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    run("backup", tmp_path / "kept")
    with closing(BrokerDirectory(root).load_broker({}).store):
        assert "stop that first" in run("restore", tmp_path / "kept", status=1)
    place = turns.alone(root)
    assert "a restore is at work" in run("volume", "list", status=1)
    os.close(place)
    run("restore", tmp_path / "kept")


@pytest.mark.parametrize("root", ["sqlite"], indirect=True)
@pytest.mark.parametrize("at", range(1, 5))
def test_a_restore_that_died_is_repeated(
    root: Path, tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Died at any change of names: no register serves until a restore came to its end, and then it is the backup."""
    make(root, "pvc-1")
    run("backup", tmp_path / "kept")
    subprocess.run([sys.executable, "-c", KILLED, str(root)], check=False)
    (root / "broker.sqlite-shm").touch()
    calls = 0
    original = Path.rename

    def dying(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying)
        try:
            main(["restore", str(tmp_path / "kept"), "--dir", str(root)])
        except KeyboardInterrupt:
            if (root / "broker.sqlite").exists():
                assert "pvc-late-199" in records(root), "still the whole register of before"
            else:
                assert "does not exist" in run("volume", "list", status=1)
    run("restore", tmp_path / "kept")
    assert "pvc-1" in records(root)
    assert "the chain is whole" in run("audit", "--verify")


def test_the_log_says_what_was_restored(root: Path, tmp_path: Path, run: Callable[..., str]) -> None:
    first = epoch(root)
    run("backup", tmp_path / "kept")
    run("restore", tmp_path / "kept")
    events = [json.loads(line)["event"] for line in run("audit").splitlines()]
    assert [event["action"] for event in events] == ["backed-up", "restored"]
    assert first in events[1]["detail"]
    assert epoch(root) in run("volume", "list")


def test_a_broken_log_on_the_server_is_not_backed_up(tmp_path: Path, postgres: Server, capsys: Capture) -> None:
    root = make_directory(tmp_path / "broker", conninfo=postgres.register()).root
    make(root, "pvc-1")
    statements(root, "DROP TRIGGER audit_is_not_changed ON audit", "UPDATE audit SET actor = 'x'")
    assert main(["backup", str(tmp_path / "kept"), "--dir", str(root)]) == 1
    assert "altered" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("died", ["DROP TABLE volumes", "INSERT INTO volumes", "COMMIT"])
def test_a_restore_into_the_server_that_died_is_repeated(
    tmp_path: Path, postgres: Server, monkeypatch: pytest.MonkeyPatch, died: str
) -> None:
    """Died at any statement that changes the tables: the register of before is whole, or the restored one is."""
    root = make_directory(tmp_path / "broker", conninfo=postgres.register()).root
    make(root, "pvc-1")
    assert main(["backup", str(tmp_path / "kept"), "--dir", str(root)]) == 0
    make(root, "pvc-late")
    first = epoch(root)
    original = Link.execute

    def dying(link: Link, statement: bytes, *rest: object) -> object:
        if statement.startswith(died.encode()):
            raise KeyboardInterrupt
        return original(link, statement, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Link, "execute", dying)
        with pytest.raises(KeyboardInterrupt):
            main(["restore", str(tmp_path / "kept"), "--dir", str(root)])
    assert (epoch(root), sorted(records(root))) == (first, ["pvc-1", "pvc-late"])
    assert main(["restore", str(tmp_path / "kept"), "--dir", str(root)]) == 0
    assert epoch(root) != first
    assert records(root)["pvc-late"].state is VolumeState.RETIRED
    kept = list(root.glob("broker.sqlite.replaced-*"))
    assert kept
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_what_is_left_of_a_broken_register_is_not_thrown_away(
    tmp_path: Path, postgres: Server, capsys: Capture
) -> None:
    root = make_directory(tmp_path / "broker", conninfo=postgres.register()).root
    make(root, "pvc-1")
    assert main(["backup", str(tmp_path / "kept"), "--dir", str(root)]) == 0
    statements(root, "DROP TABLE headers")
    for words in (["restore", str(tmp_path / "kept")], ["volume", "list"]):
        assert main([*words, "--dir", str(root)]) == 1
        assert "headers" in capsys.readouterr().err


def test_a_register_moves_to_a_server_by_a_backup_and_a_restore(
    tmp_path: Path, postgres: Server, capsys: Capture
) -> None:
    """What changed between the two is held, and `init` does not leave a register behind."""
    directory = make_directory(tmp_path / "broker")
    words, conninfo = ["--dir", str(directory.root)], postgres.register()
    make(directory.root, "pvc-1", "pvc-2")
    assert main(["backup", str(tmp_path / "kept"), *words]) == 0
    assert main(["init", "--database", conninfo.reveal().decode(), *words]) == 1
    assert "To move it" in capsys.readouterr().err
    make(directory.root, "pvc-late")
    directory.conninfo.write_bytes(conninfo.reveal())
    directory.conninfo.chmod(0o600)
    assert main(["restore", str(tmp_path / "kept"), *words]) == 0
    assert not directory.database.exists()
    states = {volume: record.state for volume, record in records(directory.root).items()}
    assert states.pop("pvc-late") is VolumeState.RETIRED
    assert states == {"pvc-1": VolumeState.ALLOCATED, "pvc-2": VolumeState.ALLOCATED}
    assert main(["audit", "--verify", *words]) == 0
