"""After a rotation every secret is as it was, under another master key; killed at any line, a repeat ends it."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

import pytest

from csi.broker import rotation, rules
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.store import Store
from csi.broker.vault import MASTER_KEY_VARIABLE, encode_master_key
from csi.broker.volumes import header_purpose, secret_purpose
from csi.core.errors import Busy, Refused, Tampered, Unavailable
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.kbs.register import VolumeRecord
from tests.fakes.broker import make_directory
from tests.fakes.softhsm import PIN, SoftHsm
from tests.unit.test_broker_backup import formatted

EVENT = Event(actor="test", action="tested", subject="x")
HEADER = "ab" * 32


@pytest.fixture(params=["sqlite", "postgresql"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> BrokerDirectory:
    """A broker with volumes (one shredded, one with a header) and a resource, in each database."""
    conninfo = None if request.param == "sqlite" else request.getfixturevalue("postgres").register()
    made = make_directory(tmp_path / "broker", conninfo=conninfo)
    with closing(made.open_store({})) as store:
        box = made.open_vault(store)
        for name in ("pvc-1", "pvc-2", "pvc-3"):
            record = rules.allocate(name, Profile.XTS)
            store.allocate(record, box.wrap(Secret(name.encode()), *secret_purpose(record)), EVENT)
        header = box.wrap(Secret(b"header"), *header_purpose("pvc-2", HEADER))
        store.change("pvc-2", formatted, EVENT, wrapped_header=header)
        store.change("pvc-3", lambda record: rules.shred(rules.retire(record)), EVENT, destroy_secret=True)
        store.put_resource("default/a/b", box.wrap(Secret(b"resource"), "resource", "default/a/b"), EVENT)
    return made


def everything_is_there(directory: BrokerDirectory) -> None:
    with closing(directory.open_store({})) as store:
        box = directory.open_vault(store)
        stored = {each.record.volume_id: each for each in store.all_stored()}
        for name in ("pvc-1", "pvc-2"):
            wrapped = stored[name].wrapped_secret
            assert wrapped is not None
            assert box.unwrap(wrapped, *secret_purpose(stored[name].record)) == Secret(name.encode())
        assert stored["pvc-3"].wrapped_secret is None
        header = store.header("pvc-2")
        assert header is not None
        assert box.unwrap(header, *header_purpose("pvc-2", HEADER)) == Secret(b"header")
        assert box.unwrap(store.resource("default/a/b"), "resource", "default/a/b") == Secret(b"resource")
        store.verify_audit()


def test_everything_is_under_another_key(directory: BrokerDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    before = directory.load_master_key({})
    assert main(["rotate", str(directory.root)]) == 0
    said = capsys.readouterr().out
    assert "4 secrets were wrapped anew" in said
    assert directory.load_master_key({}) != before
    everything_is_there(directory)
    with closing(directory.open_store({})) as store:
        assert [entry.event.action for entry in store.audit_entries()][-1] == "master-key-rotated"
    (kept,) = directory.root.glob("master.key.replaced-*")
    assert str(kept) in said
    assert kept.stat().st_mode & 0o777 == 0o600


def test_the_old_key_opens_nothing_any_more(directory: BrokerDirectory) -> None:
    old = directory.master_key.read_text()
    rotation.rotate(directory, {})
    with pytest.raises(Refused, match="not the master key it was written with"):
        directory.open_store({MASTER_KEY_VARIABLE: old})


def test_killed_at_any_line_a_repeat_ends_it(directory: BrokerDirectory) -> None:
    for line in range(1, 2000):
        if not killed_at(line, lambda: patiently(lambda: rotation.rotate(directory, {}))):
            break
        if directory.next_master_key.exists():
            with pytest.raises(Refused, match="rotation of the master key has not ended"):
                patiently(lambda: everything_is_there(directory))
            patiently(lambda: rotation.rotate(directory, {}))
        patiently(lambda: everything_is_there(directory))
        # The next round goes as many lines as this one.
        for kept in directory.root.glob("master.key.replaced-*"):
            kept.unlink()
    assert 50 < line < 1999
    assert not directory.next_master_key.exists()
    everything_is_there(directory)


def patiently(work: Callable[[], object]) -> None:
    """Once the server has seen that the client before is dead."""
    while True:
        try:
            work()
        except Busy:
            time.sleep(0.01)
        else:
            return


def killed_at(count: int, work: Callable[[], object]) -> bool:
    """Do it in a process that is killed before the line of this number of the module; False where there are fewer."""
    child = os.fork()
    if child == 0:
        left = count

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal left
            if frame.f_code.co_filename != rotation.__file__:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def test_a_running_broker_is_in_the_way_by_name(directory: BrokerDirectory) -> None:
    before = directory.load_master_key({})
    with closing(directory.open_store({})), pytest.raises(Busy):
        rotation.rotate(directory, {})
    assert directory.load_master_key({}) == before
    everything_is_there(directory)


def rotate_behind(directory: BrokerDirectory) -> None:
    """What a broker finds that had no connection in the meantime."""
    old, new = directory.seals({}), directory.seals_of(Secret(os.urandom(32)))
    with closing(directory.open_database()) as database, database.changing("key") as rows:
        rotation._rewrap(rows, old, new)


CHANGES: dict[str, Callable[[Store], object]] = {
    "allocate": lambda store: store.allocate(rules.allocate("pvc-4", Profile.XTS), b"under the old key", EVENT),
    "change": lambda store: store.change("pvc-1", rules.retire, EVENT),
    "release": lambda store: store.release("pvc-1", lambda _: EVENT),
    "put_resource": lambda store: store.put_resource("default/a/c", b"under the old key", EVENT),
    "note": lambda store: store.note(EVENT),
}
READS: dict[str, Callable[[Store], object]] = {
    "volume": lambda store: store.volume("pvc-1"),
    "a volume that is not there": lambda store: store.volume("pvc-9"),
    "volumes": Store.volumes,
    "header": lambda store: store.header("pvc-2"),
    "resource": lambda store: store.resource("default/a/b"),
    "epoch": Store.epoch,
    "audit_entries": Store.audit_entries,
    "verify_audit": Store.verify_audit,
    "probe": Store.probe,
}


def test_a_broker_that_was_passed_over_says_so_whatever_it_is_asked(directory: BrokerDirectory) -> None:
    """It wraps nothing by the old key, and calls nothing tampered with that the new one sealed."""
    with closing(directory.open_store({})) as store:
        for read in READS.values():
            if read is not READS["a volume that is not there"]:
                read(store)
        rotate_behind(directory)
        for name, asked in (CHANGES | READS).items():
            with pytest.raises(Unavailable) as caught:
                asked(store)
            assert "master key was rotated" in str(caught.value), name
            assert "start it anew" in str(caught.value), name


def test_a_tampered_row_ends_it_and_the_broker_goes_on_with_the_old_key(directory: BrokerDirectory) -> None:
    with closing(directory.open_database()) as database, database.changing("pvc-1") as rows:
        rows.execute("UPDATE volumes SET revision = 7 WHERE volume_id = 'pvc-1'")
    with pytest.raises(Tampered):
        rotation.rotate(directory, {})
    assert not directory.next_master_key.exists()
    with closing(directory.open_store({})) as store:
        assert isinstance(store.volume("pvc-2"), VolumeRecord)


def test_a_register_of_another_master_key_is_left_as_it_is(directory: BrokerDirectory) -> None:
    right = directory.master_key.read_bytes()
    directory.master_key.write_bytes(encode_master_key(Secret(bytes(32))))
    with pytest.raises(Refused, match="written with another master key"):
        rotation.rotate(directory, {})
    directory.master_key.write_bytes(right)
    everything_is_there(directory)


def test_a_header_of_no_volume_ends_it(directory: BrokerDirectory) -> None:
    with closing(directory.open_database()) as database, database.changing("pvc-9") as rows:
        rows.execute("INSERT INTO headers VALUES (?, ?)", ("pvc-9", b"header"))
    with pytest.raises(Refused, match="a header of pvc-9, and no such volume"):
        rotation.rotate(directory, {})
    everything_is_there(directory)


def test_the_old_keys_second_name_is_on_the_disk_before_its_first_is_given_away(
    directory: BrokerDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a power failure leaves, both keys have a name as long as the register may be under either."""
    seen: list[tuple[int, bool]] = []

    def flushed(folder: Path) -> None:
        assert folder == directory.root
        seen.append((directory.master_key.stat().st_nlink, directory.next_master_key.exists()))

    monkeypatch.setattr(rotation, "flush_directory", flushed)
    rotation.rotate(directory, {})
    assert seen == [(2, True), (1, False)]


def test_a_key_of_the_environment_is_not_rotated(directory: BrokerDirectory) -> None:
    with pytest.raises(Refused, match=MASTER_KEY_VARIABLE):
        rotation.rotate(directory, {MASTER_KEY_VARIABLE: directory.master_key.read_text()})


def test_a_backup_of_before_is_restored_with_the_old_key(
    directory: BrokerDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = str(tmp_path / "backup")
    assert main(["backup", backup, "--dir", str(directory.root)]) == 0
    kept = rotation.rotate(directory, {}).kept
    assert main(["restore", backup, "--dir", str(directory.root)]) == 1
    assert "not the master key it was written with" in capsys.readouterr().err
    directory.master_key.rename(directory.root / "master.key.new")
    shutil.copy2(kept, directory.master_key)
    assert main(["restore", backup, "--dir", str(directory.root)]) == 0
    everything_is_there(directory)


def test_a_rotation_brings_the_key_into_a_kms(
    directory: BrokerDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hsm = SoftHsm.below(tmp_path / "hsm", monkeypatch)
    hsm.token()
    hsm.key("kek")
    hsm.configure(directory.root, "kek")
    rotation.rotate(directory, {})
    assert directory.master_key.read_text().startswith("wrapped:")
    everything_is_there(directory)
    assert PIN not in directory.kms.read_text()
