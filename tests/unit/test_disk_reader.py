"""Reads of disks are direct, of the very device that was meant, and none that hangs stops another one or the caller."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.core.device_number import DeviceNumber
from csi.node.lvm import disk_reader
from csi.node.lvm.block_devices import BlockDevices, suspended
from csi.node.lvm.disk_reader import DiskReader, Place, Trouble

PATIENCE = 20.0
ONE, OTHER = DeviceNumber(8, 0), DeviceNumber(8, 16)


def place(number: DeviceNumber = ONE, path: str = "/dev/a", offset: int = 0, length: int = 4096) -> Place:
    return Place(path=path, number=number, offset=offset, length=length)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The first disk answers only when this is set; every disk answers with its path."""
    answers = threading.Event()

    def read(where: Place, _: object) -> bytes:
        if where.number == ONE:
            assert answers.wait(PATIENCE)
        return where.path.encode()

    monkeypatch.setattr(disk_reader, "_read", read)
    return answers


def test_a_disk_that_does_not_answer_is_told_and_the_other_one_is_read(frozen: threading.Event) -> None:
    reader = DiskReader(patience_seconds=0.1)
    first, second = reader.read([place(), place(OTHER, "/dev/b")])
    assert first == Trouble("/dev/a does not answer", frozen=True)
    assert second == b"/dev/b"
    frozen.set()


def test_it_costs_one_wait_and_one_thread_however_often_it_is_asked(frozen: threading.Event) -> None:
    reader = DiskReader(patience_seconds=0.2)
    reader.read([place()])
    threads = threading.active_count()
    began = time.monotonic()
    for _ in range(100):
        (found,) = reader.read([place()])
        assert isinstance(found, Trouble)
    assert time.monotonic() - began < 100 * 0.2 / 2
    assert threading.active_count() <= threads
    frozen.set()


def test_many_who_ask_at_once_are_served_by_few_reads_and_none_is_told_that_a_slow_disk_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[Place] = []

    def slow(where: Place, _: object) -> bytes:
        reads.append(where)
        time.sleep(0.1)
        return where.path.encode()

    monkeypatch.setattr(disk_reader, "_read", slow)
    monkeypatch.setattr(disk_reader._Disk, "is_in_the_kernel", lambda _: True)
    reader, found = DiskReader(patience_seconds=1.0), list[bytes | Trouble]()
    askers = [threading.Thread(target=lambda: found.extend(reader.read([place()]))) for _ in range(60)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert found == [b"/dev/a"] * 60
    assert len(reads) < 10


def test_who_asks_gets_no_answer_that_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    content = [b"old"]

    def read(_: Place, __: object) -> bytes:
        found = content[0]
        begun.set()
        assert go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(disk_reader, "_read", read)
    reader, found = DiskReader(patience_seconds=PATIENCE), list[bytes | Trouble]()
    first = threading.Thread(target=lambda: reader.read([place()]))
    first.start()
    assert begun.wait(PATIENCE)
    content[0] = b"new"
    second = threading.Thread(target=lambda: found.extend(reader.read([place()])))
    second.start()
    until(lambda: bool(reader._disks[ONE].next))
    go_on.set()
    first.join()
    second.join()
    assert found == [b"new"]


def test_a_disk_whose_thread_waits_for_something_else_is_given_more_time(
    frozen: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reader._Disk, "is_in_the_kernel", lambda _: False)
    reader, found = DiskReader(patience_seconds=2.0), list[bytes | Trouble]()
    asker = threading.Thread(target=lambda: found.extend(reader.read([place()])))
    asker.start()
    time.sleep(2.5)
    frozen.set()
    asker.join()
    assert found == [b"/dev/a"]


@pytest.mark.parametrize(("state", "waits"), [("D", True), ("S", False), ("R", False)])
def test_the_state_of_a_thread_is_read_behind_its_name(
    state: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_reader.Path, "read_bytes", lambda _: f"7 (odd) D name) {state} 1 2".encode())
    assert disk_reader._Disk().is_in_the_kernel() is waits


def test_a_thread_that_can_not_be_had_is_told_and_the_disk_is_read_when_there_is_one(
    frozen: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen.set()
    reader = DiskReader(patience_seconds=5)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert reader.read([place()]) == [Trouble("/dev/a can't be read now: can't start new thread")]
    assert reader.read([place()]) == [b"/dev/a"]


def test_when_it_answers_again_it_is_read_again(frozen: threading.Event) -> None:
    reader = DiskReader(patience_seconds=0.1)
    reader.read([place()])
    frozen.set()
    until(lambda: reader.read([place()]) == [b"/dev/a"])


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_an_error_is_told_with_its_path_and_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Place, __: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk_reader, "_read", fail)
    assert DiskReader().read([place()]) == [Trouble("/dev/a can't be read: Input/output error")]


def test_a_place_that_no_disk_can_have_is_told_and_the_disk_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 4096)
    monkeypatch.setattr(disk_reader.DeviceNumber, "of_block_device", lambda _: ONE)
    opened = os.open
    monkeypatch.setattr(disk_reader.os, "open", lambda path, how: opened(path, how & ~os.O_DIRECT))
    reader, path = DiskReader(patience_seconds=1.0), str(tmp_path / "disk")
    (far,) = reader.read([place(path=path, offset=(1 << 63) + 4096, length=512)])
    assert isinstance(far, Trouble)
    assert not far.frozen
    assert reader.read([place(path=path)]) == [b"x" * 4096]


def test_any_fault_of_a_read_is_told_and_the_disk_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter((OverflowError("too far"), MemoryError("no room"), None))

    def read(where: Place, _: object) -> bytes:
        fault = next(faults)
        if fault is not None:
            raise fault
        return where.path.encode()

    monkeypatch.setattr(disk_reader, "_read", read)
    reader = DiskReader(patience_seconds=1.0)
    assert [reader.read([place()])[0] for _ in range(3)] == [
        Trouble("/dev/a can't be read at byte 0: too far"),
        Trouble("/dev/a can't be read at byte 0: no room"),
        b"/dev/a",
    ]


def test_a_disk_whose_thread_could_not_begin_is_read_when_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_reader, "_read", lambda where, _: where.path.encode())
    reader = DiskReader(patience_seconds=1.0)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_thread)
        assert reader.read([place()]) == [Trouble("/dev/a can't be read now: can't start new thread")]
    assert reader.read([place()]) == [b"/dev/a"]


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_path_that_is_no_device_or_another_one_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 8192)
    (found,) = DiskReader().read([place(path=str(tmp_path / "file"))])
    (absent,) = DiskReader().read([place(path=str(tmp_path / "none"))])
    assert isinstance(found, Trouble)
    assert isinstance(absent, Trouble)
    assert "No such file" in absent.why


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 8192), (4096, 512), (512, 512), (4000, 200), (100, 9000), (100, 90000)]
)
def test_what_is_not_aligned_is_read_all_the_same(
    offset: int, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 512
    (tmp_path / "disk").write_bytes(content)
    monkeypatch.setattr(disk_reader.DeviceNumber, "of_block_device", lambda _: ONE)
    flags: list[int] = []
    opened = os.open
    monkeypatch.setattr(disk_reader.os, "open", lambda path, how: flags.append(how) or opened(path, how & ~os.O_DIRECT))
    assert DiskReader().read([place(path=str(tmp_path / "disk"), offset=offset, length=length)]) == [
        content[offset : offset + length]
    ]
    assert flags[0] & os.O_DIRECT
    assert flags[0] & os.O_ACCMODE == os.O_RDONLY


def test_what_an_earlier_read_left_in_the_buffer_is_never_taken_for_the_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 8192)
    monkeypatch.setattr(disk_reader.DeviceNumber, "of_block_device", lambda _: ONE)
    opened = os.open
    monkeypatch.setattr(disk_reader.os, "open", lambda path, how: opened(path, how & ~os.O_DIRECT))
    reader, path = DiskReader(), str(tmp_path / "disk")
    assert reader.read([place(path=path, length=8192)]) == [b"x" * 8192]
    assert reader.read([place(path=path, offset=4096, length=8192)]) == [
        Trouble(f"{path} ends before its metadata does")
    ]


# The list of devices


class Machine:
    """Folders as sysfs and /dev have them."""

    def __init__(self, folder: Path) -> None:
        self.sysfs, self.dev = folder / "sys", folder / "dev"
        (self.sysfs / "kernel").mkdir(parents=True)
        self.dev.mkdir()
        self.announce(1)
        self.devices = BlockDevices(sysfs=str(self.sysfs), dev=str(self.dev))

    def announce(self, number: int) -> None:
        (self.sysfs / "kernel/uevent_seqnum").write_text(f"{number}\n")

    def add(self, name: str, minor: int, sectors: int = 1000, **more: str) -> None:
        entry = self.sysfs / "class/block" / name
        for file, text in ({"dev": f"7:{minor}", "size": str(sectors), "diskseq": str(minor + 100)} | more).items():
            (entry / file).parent.mkdir(parents=True, exist_ok=True)
            (entry / file).write_text(text + "\n")

    def names(self) -> list[str]:
        return [device.name for device in self.devices.now()]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    # Any file in this /dev is the node that is asked for, if it has the device's name.
    monkeypatch.setattr("csi.node.lvm.block_devices._is", lambda path, number: Path(path).exists())
    for name in ("sda", "sdb", "dm-0", "dm-1", "loop0", "ram0", "sr0", "md0"):
        (made.dev / name).touch()
    return made


def test_devices_are_listed_with_number_size_and_sequence(machine: Machine) -> None:
    machine.add("sda", 3, 77)
    (found,) = machine.devices.now()
    assert (found.name, found.path, found.number, found.sectors, found.sequence) == (
        "sda",
        str(machine.dev / "sda"),
        DeviceNumber(7, 3),
        77,
        "103",
    )


def test_lvms_own_volumes_and_what_is_no_disk_are_left_out(machine: Machine) -> None:
    machine.add("dm-0", 1, **{"dm/uuid": "LVM-abc"})
    machine.add("dm-1", 2, **{"dm/uuid": "CRYPT-abc"})
    machine.add("ram0", 3)
    machine.add("sr0", 4)
    machine.add("loop0", 5, sectors=0)
    assert machine.names() == ["dm-1"]


def test_a_device_whose_uuid_is_not_utf_8_stops_no_look(machine: Machine) -> None:
    machine.add("dm-0", 1, **{"dm/uuid": ""})
    (machine.sysfs / "class/block/dm-0/dm/uuid").write_bytes(b"odd-\xff\n")
    machine.add("sda", 2)
    assert machine.names() == ["dm-0", "sda"]


@pytest.mark.parametrize(("call", "what"), [("open", "size"), ("listdir", "holders")])
def test_a_process_that_can_open_nothing_sees_no_machine_without_disks(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, call: str, what: str
) -> None:
    machine.add("sda", 1)
    real = getattr(os, call)

    def full(path: str, *more: int) -> object:
        if path.endswith(what):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, *more)

    monkeypatch.setattr(f"csi.node.lvm.block_devices.os.{call}", full)
    with pytest.raises(OSError, match="Too many open files"):
        machine.names()


@pytest.mark.parametrize(("holder", "uuid"), [("md0", ""), ("dm-1", "mpath-abc")])
def test_a_part_of_a_raid_or_multipath_device_is_left_out(machine: Machine, holder: str, uuid: str) -> None:
    machine.add("sda", 1, **{f"holders/{holder}/dm/uuid": uuid})
    machine.add("sdb", 2, **{"holders/dm-0/dm/uuid": "LVM-abc"})
    assert machine.names() == ["sdb"]


def test_a_change_that_the_kernel_announced_is_seen(machine: Machine) -> None:
    machine.add("sda", 1)
    assert machine.names() == ["sda"]
    machine.add("sdb", 2)
    machine.announce(2)
    assert machine.names() == ["sda", "sdb"]
    machine.add("sdb", 2, sectors=2000)
    machine.announce(3)
    assert [device.sectors for device in machine.devices.now()] == [1000, 2000]


def test_where_the_kernel_counts_nothing_every_look_is_a_new_one(machine: Machine) -> None:
    (machine.sysfs / "kernel/uevent_seqnum").unlink()
    machine.add("sda", 1)
    assert machine.names() == ["sda"]
    machine.add("sdb", 2)
    assert machine.names() == ["sda", "sdb"]


class Names:
    """Further names of `sda`: files in folders of /dev, which tell the minor number that they lead to."""

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine, self.read, self._time = machine, list[str](), 1
        monkeypatch.setattr("csi.node.lvm.block_devices._leads_to", self._leads_to)
        for folder in ("mapper", "block", "disk/by-id", "disk/by-path"):
            (machine.dev / folder).mkdir(parents=True)
            self.changed(folder)
        self.changed(".")
        machine.add("sda", 1)

    def _leads_to(self, link: str) -> DeviceNumber:
        self.read.append(Path(link).name)
        return DeviceNumber(7, int(Path(link).read_text()))

    def put(self, link: str, minor: int) -> None:
        (self.machine.dev / link).write_text(str(minor))

    def changed(self, folder: str) -> None:
        """A name in the folder came or went, at a time of its own."""
        self._time += 1
        os.utime(self.machine.dev / folder, ns=(self._time, self._time))

    def now(self) -> list[str]:
        self.read.clear()
        (device,) = self.machine.devices.now()
        return sorted(Path(link).name for link in device.links)


@pytest.fixture
def names(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names(machine, monkeypatch)
    for link in ("disk/by-id/ata-1", "disk/by-path/pci-1"):
        made.put(link, 1)
    made.changed("disk/by-id")
    made.changed("disk/by-path")
    assert made.now() == ["ata-1", "pci-1"]
    return made


def test_a_name_that_came_later_is_seen_and_other_folders_are_not_read_again(names: Names) -> None:
    names.put("disk/by-id/wwn-1", 1)
    names.changed("disk/by-id")
    assert names.now() == ["ata-1", "pci-1", "wwn-1"]
    assert sorted(names.read) == ["ata-1", "wwn-1"]


@pytest.mark.parametrize("folder", [".", "mapper"])
def test_names_are_all_read_again_when_the_nodes_that_they_lead_to_may_be_others(names: Names, folder: str) -> None:
    names.put("disk/by-path/pci-1", 2)
    assert names.now() == ["ata-1", "pci-1"]
    names.changed(folder)
    assert names.now() == ["ata-1"]


def test_while_nothing_changed_no_name_is_read(names: Names) -> None:
    assert names.now() == ["ata-1", "pci-1"]
    assert names.read == []
    names.machine.announce(2)
    assert names.now() == ["ata-1", "pci-1"]
    assert names.read == []


def test_a_device_without_a_node_is_none_that_anybody_can_read(machine: Machine) -> None:
    machine.add("sdz", 1)
    for node in machine.dev.iterdir():
        node.unlink()
    assert machine.names() == []


@pytest.mark.parametrize(("text", "held"), [("1", True), ("0", False)])
def test_a_suspended_device_is_known_before_it_is_read(machine: Machine, text: str, held: bool) -> None:
    machine.add("dm-0", 1, **{"dm/suspended": text})
    assert suspended("dm-0", str(machine.sysfs)) is held
    assert not suspended("sda", str(machine.sysfs))
