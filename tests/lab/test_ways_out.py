"""Each state in which data is intact and no `open` gets at it has a way out, followed here step by step as the pages tell.

On real LVM and dm-crypt, with the broker's and the guest's own commands; what a message says to do is what is done.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.driver import MIB, Driver
from lab.node import Node
from tests.lab.tenant import Tenant, running_tenant

pytestmark = pytest.mark.lab

_FILE = "/data/volume/file"
_FAILED, _TAMPERED, _ROLLED_BACK, _REFUSED, _BUSY = 1, 3, 5, 10, 11
_NO_UDEV = {"DM_DISABLE_UDEV": "1"}
_BLOCK = 4096
_RECORDS, _COPIES = (32 * MIB, 33 * MIB), (0, 16 * MIB)


@pytest.fixture(scope="module")
def tenant(node: Node, driver: Driver) -> Iterator[Tenant]:
    with running_tenant(node, driver, port=8451) as made:
        yield made


def session(tenant: Tenant, volume: str, device: str, content: bytes) -> None:
    """A workload that writes a file, from `open` to `close`."""
    tenant.opened(volume, device)
    tenant.node.write(_FILE, content)
    tenant.close(volume)


def assert_content(tenant: Tenant, volume: str, device: str, content: bytes) -> None:
    assert tenant.opened(volume, device)["formatted_now"] is False
    assert tenant.node.read(_FILE) == content
    tenant.close(volume)


def guest(tenant: Tenant, verb: str, volume: str, device: str, *more: str, status: int = 0) -> str:
    """A verb of the guest; answers what it said."""
    done = tenant.node.run(tenant.argv(verb, volume, "--device", device, *more), check=False)
    assert done.rc == status, f"status {done.rc}: {done.text}{done.stderr.decode()}"
    return done.text + done.stderr.decode()


def accept(tenant: Tenant, volume: str, said: str) -> None:
    """The operator looks at both states, then takes the disk's, as the message that was printed tells."""
    (found,) = set(re.findall(rf"broker volume accept {volume} --found (\S+)", said))
    words = ("volume", "accept", volume, "--found", found, "--reason", "the only disk that is left")
    shown = tenant.broker.operate(*words, check=False)
    assert shown.rc == 1
    assert found in shown.text
    tenant.broker.operate(*words, "--yes")


@contextmanager
def bad_sectors(node: Node, below: str, *offsets: int) -> Iterator[str]:
    """A disk over `below` that can't read these blocks, and replaces each of them when it is written, as disks do."""
    node.run(["modprobe", "dm-dust"])
    sectors = node.run(["blockdev", "--getsz", below]).text.strip()
    node.run(["dmsetup", "create", "ill", "--table", f"0 {sectors} dust {below} 0 {_BLOCK}"], env=_NO_UDEV)
    for offset in offsets:
        node.run(["dmsetup", "message", "ill", "0", "addbadblock", str(offset // _BLOCK)], env=_NO_UDEV)
    node.run(["dmsetup", "message", "ill", "0", "enable"], env=_NO_UDEV)
    try:
        yield "/dev/mapper/ill"
    finally:
        node.run(["dmsetup", "remove", "ill"], env=_NO_UDEV)


def test_a_disk_that_is_one_session_behind(tenant: Tenant) -> None:
    """The LV was restored from a backup, or its disk lost a flush that it had acknowledged."""
    device, kept = tenant.volume("pvc-behind"), "/tmp/behind.img"
    session(tenant, "pvc-behind", device, b"first")
    tenant.copy(device, kept)
    session(tenant, "pvc-behind", device, b"second")
    lost = "/tmp/lost.img"
    tenant.copy(device, lost)
    tenant.copy(kept, device)
    accept(tenant, "pvc-behind", tenant.refused("pvc-behind", device, _ROLLED_BACK))
    assert_content(tenant, "pvc-behind", device, b"first")
    tenant.copy(lost, device)
    tenant.refused("pvc-behind", device, _ROLLED_BACK)
    tenant.node.run(["rm", kept, lost])
    tenant.drop("pvc-behind")


def test_a_broker_that_was_restored_from_last_nights_backup(tenant: Tenant) -> None:
    device, backup = tenant.volume("pvc-night"), f"{tenant.broker.folder}/night"
    session(tenant, "pvc-night", device, b"first")
    tenant.broker.operate("backup", backup)
    session(tenant, "pvc-night", device, b"second")
    tenant.broker.stop()
    printed = tenant.broker.operate("restore", backup).text
    tenant.broker.start()
    assert "is retired in the register" in tenant.refused("pvc-night", device, _REFUSED)
    line = next(line for line in printed.splitlines() if line.startswith("pvc-night: opened since the backup"))
    accept(tenant, "pvc-night", line)
    tenant.broker.operate("volume", "reinstate", "pvc-night")
    # No guest of the lost time is left; without this word it opens a minute later.
    assert "the register was restored" in guest(tenant, "open", "pvc-night", device, status=_BUSY)
    tenant.broker.end_lease("pvc-night")
    assert_content(tenant, "pvc-night", device, b"second")
    tenant.drop("pvc-night")


def test_both_state_records_can_not_be_read(tenant: Tenant) -> None:
    below = tenant.volume("pvc-records")
    session(tenant, "pvc-records", below, b"kept")
    with bad_sectors(tenant.node, below, *_RECORDS) as device:
        said = guest(tenant, "open", "pvc-records", device, status=_TAMPERED)
        assert "broker volume accept pvc-records --unread --reason TEXT" in said
        assert guest(tenant, "repair", "pvc-records", device, status=_TAMPERED).count("--unread") == 1
        tenant.broker.operate("volume", "accept", "pvc-records", "--unread", "--reason", "two bad sectors", "--yes")
        assert "sealed-local guest repair" in guest(tenant, "open", "pvc-records", device, status=_TAMPERED)
        guest(tenant, "repair", "pvc-records", device)
        assert_content(tenant, "pvc-records", device, b"kept")
        assert_content(tenant, "pvc-records", device, b"kept")
    accepted = tenant.broker.record("pvc-records")["accepted"]
    assert [entry["reason"] for entry in accepted] == ["two bad sectors"]
    tenant.drop("pvc-records")


def test_one_bad_sector_in_both_header_copies(tenant: Tenant) -> None:
    below = tenant.volume("pvc-copies")
    session(tenant, "pvc-copies", below, b"kept")
    with bad_sectors(tenant.node, below, *(copy + 40960 for copy in _COPIES)) as device:
        said = guest(tenant, "open", "pvc-copies", device, status=_TAMPERED)
        assert "sealed-local guest repair --volume pvc-copies" in said
        assert guest(tenant, "repair", "pvc-copies", device).count("is the one that the register holds") == 2
        assert_content(tenant, "pvc-copies", device, b"kept")
    assert_content(tenant, "pvc-copies", below, b"kept")
    tenant.drop("pvc-copies")


def test_one_bad_sector_in_one_header_copy_needs_nobody(tenant: Tenant) -> None:
    below = tenant.volume("pvc-copy")
    session(tenant, "pvc-copy", below, b"kept")
    with bad_sectors(tenant.node, below, 40960) as device:
        assert_content(tenant, "pvc-copy", device, b"kept")
        assert "it is not" not in guest(tenant, "inspect", "pvc-copy", device)
    tenant.drop("pvc-copy")


def test_a_filesystem_that_needs_more_than_e2fsck_p(tenant: Tenant) -> None:
    device = tenant.volume("pvc-fsck")
    session(tenant, "pvc-fsck", device, b"kept")
    mapping = guest(tenant, "open", "pvc-fsck", device, "--no-mount").splitlines()[0]
    for request in ("clri <2>", "set_super_value state 2"):
        tenant.node.run(["debugfs", "-w", "-R", request, mapping])
    tenant.close("pvc-fsck")
    assert "e2fsck -p" in guest(tenant, "open", "pvc-fsck", device, status=_FAILED)
    mapping = guest(tenant, "open", "pvc-fsck", device, "--no-mount").splitlines()[0]
    assert tenant.node.run(["e2fsck", "-f", "-y", mapping], check=False).rc == 1, "errors were corrected"
    tenant.close("pvc-fsck")
    tenant.opened("pvc-fsck", device)
    folder = _FILE.rpartition("/")[0]
    assert tenant.node.run(["sh", "-c", f"cat {folder}/file {folder}/lost+found/* 2>/dev/null; true"]).stdout == b"kept"
    tenant.close("pvc-fsck")
    tenant.drop("pvc-fsck")


@pytest.mark.parametrize("fails", ["error_writes", "drop_writes"])
def test_a_disk_that_loses_what_was_written_last_is_told_at_the_close(tenant: Tenant, fails: str) -> None:
    """An I/O error of the last write-back is not an exit status of 0. A disk that drops writes silently tells nobody."""
    name, node = f"pvc-{fails.partition('_')[0]}", tenant.node
    below = tenant.volume(name)
    session(tenant, name, below, b"flushed")
    node.run(["modprobe", "dm-flakey"])
    sectors = node.run(["blockdev", "--getsz", below]).text.strip()
    node.run(["dmsetup", "create", "ill", "--table", f"0 {sectors} linear {below} 0"], env=_NO_UDEV)
    tenant.opened(name, "/dev/mapper/ill")
    node.run(["sh", "-c", f"dd if=/dev/zero of={_FILE} bs=1M count=4 status=none"])
    table = f"0 {sectors} flakey {below} 0 0 3600 1 {fails}"
    node.run(["dmsetup", "suspend", "--noflush", "--nolockfs", "ill"], env=_NO_UDEV)
    node.run(["dmsetup", "load", "ill", "--table", table], env=_NO_UDEV)
    node.run(["dmsetup", "resume", "ill"], env=_NO_UDEV)
    closed = node.run([*tenant.argv("close", name)[:5], "--volume", name], check=False)
    said = closed.stderr.decode()
    if fails == "error_writes":
        assert (closed.rc, "not all that was written is on the disk" in said) == (_FAILED, True), said
    else:
        assert closed.rc == 0, said
    assert "sealed-" not in node.run(["dmsetup", "ls"]).text, "it is closed in either case"
    node.run(["dmsetup", "remove", "ill"], env=_NO_UDEV)
    assert tenant.broker.record(name)["lease"] is None, "and the next guest gets in"
    tenant.opened(name, below)
    tenant.close(name)
    tenant.drop(name)
