"""A report is what LVM would say now: by the driver's own reading where that understood LVM before, else by LVM."""

import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from csi.core.device_number import DeviceNumber
from csi.core.errors import CommandTimeout, Refused, Unavailable
from csi.node.lvm import metadata_area, metadata_model, metadata_text, proved
from csi.node.lvm.block_devices import BlockDevice
from csi.node.lvm.disk_reader import Place, Trouble
from csi.node.lvm.disk_view import DiskViews
from csi.node.lvm.metadata_area import Area
from csi.node.lvm.model import PhysicalVolume, Report, VolumeGroup
from csi.node.lvm.proved import ProvedReport

HEAD = (Path(__file__).parents[1] / "data/lvm-2.03.16-disk-head.bin").read_bytes()
AREA = Area(offset=4096, size=1044480)
_PLACE = metadata_area.text_place(AREA, HEAD[4096:4608])
assert _PLACE is not None
TEXT = HEAD[_PLACE.parts[0].offset :][: _PLACE.size - 1]
LABEL = metadata_area.label(HEAD)
assert LABEL is not None
VG_UUID = TEXT.split(b'"')[1].decode()


def another(uuid: str) -> str:
    """A UUID that differs in its first sign."""
    return ("A" if uuid[0] != "A" else "B") + uuid[1:]


@dataclass
class Disk:
    """A disk's bytes, and how it answers."""

    number: int
    content: bytearray = field(default_factory=lambda: bytearray(HEAD.ljust(1 << 20, b"\0")))
    trouble: Trouble | None = None
    reads: int = 0
    _at: int = 4096

    @property
    def device(self) -> BlockDevice:
        return BlockDevice(
            name=f"sd{self.number}",
            path=f"/dev/sd{self.number}",
            number=DeviceNumber(8, self.number),
            sectors=1 << 17,
            sequence=str(self.number),
        )

    def commit(self, text: bytes) -> None:
        """As LVM commits: the text to another place, then the header that names it."""
        written = text + b"\0"
        self._at += 16384
        self.content[AREA.offset + self._at : AREA.offset + self._at + len(written)] = written
        location = struct.pack("<QQII", self._at, len(written), metadata_area.crc(written), 0)
        header = bytes(self.content[4100:4136]) + location + bytes(4096 + 512 - 4136 - len(location))
        self.content[4096:4608] = struct.pack("<I", metadata_area.crc(header)) + header

    def label_as(self, uuid: str) -> None:
        """Make it another disk of the group."""
        self.content[512 + 32 : 512 + 64] = uuid.replace("-", "").encode()
        self.reseal_label()

    def reseal_label(self) -> None:
        """Make the label's checksum right again."""
        struct.pack_into("<I", self.content, 512 + 16, metadata_area.crc(bytes(self.content[512 + 20 : 1024])))

    def reseal_header(self) -> None:
        """Make the checksum of the area's header right again."""
        struct.pack_into("<I", self.content, 4096, metadata_area.crc(bytes(self.content[4100:4608])))


class Reader:
    """In the place of `DiskReader`."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self.disks = {disk.device.number: disk for disk in disks}

    def read(self, places: Sequence[Place]) -> list[bytes | Trouble]:
        return [self._one(place) for place in places]

    def _one(self, place: Place) -> bytes | Trouble:
        disk = self.disks[place.number]
        disk.reads += 1
        return disk.trouble or bytes(disk.content[place.offset : place.offset + place.length])


class ByLvm:
    """LVM's own word: it reads the first disk that answers, and remembers how often it was asked."""

    def __init__(self, disks: Sequence[Disk]) -> None:
        self.disks = disks
        self.asked = 0
        self.fails: Exception | None = None
        self.differs = False
        self.hold: threading.Event | None = None
        self.changes: Callable[[], None] = lambda: None

    def __call__(self, name: str, groups: int) -> tuple[VolumeGroup, ...]:
        assert (name, groups) == ("vg0", 1)
        self.asked += 1
        self.changes()
        if self.hold is not None:
            assert self.hold.wait(20)
        if self.fails is not None:
            raise self.fails
        disk = next(disk for disk in self.disks if disk.trouble is None)
        place = metadata_area.text_place(AREA, bytes(disk.content[4096:4608]))
        assert place is not None
        (part,) = place.parts
        text = bytes(disk.content[part.offset : part.offset + part.size - 1])
        group = metadata_text.parse(text.decode())["vg0"]
        assert isinstance(group, dict)
        found, _ = metadata_model.volume_group(text, known(*(self._pv(uuid) for uuid in uuids(group))))
        pvs = tuple(replace(pv, missing=pv.device is None) for pv in found.pvs)
        return (replace(found, pvs=pvs, extents=found.extents + self.differs),)

    def _pv(self, uuid: str) -> PhysicalVolume:
        here = [disk for disk in self.disks if _uuid(disk) == uuid and disk.trouble is None]
        return PhysicalVolume(
            name=here[0].device.path if here else "[unknown]",
            uuid=uuid,
            extents=0,
            free_extents=0,
            allocatable=True,
            missing=False,
            device=here[0].device.number if here else None,
        )


def _uuid(disk: Disk) -> str:
    label = metadata_area.label(bytes(disk.content[:2048]))
    assert label is not None
    return label.pv_uuid


def uuids(group: dict[str, Any]) -> list[str]:
    return [pv["id"] for pv in group["physical_volumes"].values()]


def known(*pvs: PhysicalVolume) -> VolumeGroup:
    return VolumeGroup(
        name="vg0", uuid=VG_UUID, extent_bytes=0, extents=0, free_extents=0, writable=True, exported=False, partial=False,
        pvs=pvs, lvs=(), metadata_free_bytes=0,
    )  # fmt: skip


@dataclass
class Machine:
    """Disks, LVM, and the report over them."""

    disks: list[Disk]
    lvm: ByLvm
    proved: ProvedReport

    def report(self) -> Report:
        return self.proved.report()

    def names(self) -> list[str]:
        return [lv.name for lv in self.report().lvs]

    def commit(self, text: bytes) -> None:
        for disk in self.disks:
            if disk.trouble is None:
                disk.commit(text)


def machine(count: int = 1, allows: Callable[[str], bool] = lambda name: name == "vg0") -> Machine:
    disks = [Disk(number) for number in range(count)]
    lvm = ByLvm(disks)
    views = DiskViews(Reader(disks))  # type: ignore[arg-type]
    return Machine(disks, lvm, ProvedReport(lambda: [disk.device for disk in disks], views, allows, lvm))


def with_lv(name: str, extents: int = 2, extra: bytes = b"") -> bytes:
    """The group's text with a further volume."""
    lv = (
        b'%b {\nid = "%b"\nstatus = ["READ", "WRITE", "VISIBLE"]\nflags = []\n%btags = ["sl:v1"]\nsegment_count = 1\n'
        b'segment1 {\nstart_extent = 0\nextent_count = %d\ntype = "striped"\nstripe_count = 1\n'
        b'stripes = [\n"pv0", 5\n]\n}\n}\n'
    ) % (name.encode(), b"uuid-" + name.encode(), extra, extents)
    return TEXT.replace(b"logical_volumes {\n", b"logical_volumes {\n" + lv)


TWO_DISKS_UUID = another(LABEL.pv_uuid)
TWO_DISKS = TEXT.replace(
    b"physical_volumes {\n",
    b'physical_volumes {\npv1 {\nid = "%b"\ndevice = "/dev/x"\nstatus = ["ALLOCATABLE"]\nflags = []\ndev_size = 131072\n'
    b"pe_start = 2048\npe_count = 15\n}\n" % TWO_DISKS_UUID.encode(),
)


def two_disks() -> Machine:
    here = machine(2)
    here.disks[1].label_as(TWO_DISKS_UUID)
    here.commit(TWO_DISKS)
    return here


def test_lvm_is_asked_once_and_every_later_look_is_one_read_a_disk() -> None:
    here = machine()
    assert here.names() == ["a"]
    reads = here.disks[0].reads
    for _ in range(10):
        assert here.names() == ["a"]
    assert here.lvm.asked == 1
    assert here.disks[0].reads == reads + 10


def test_a_change_by_anybody_is_seen_at_the_next_look_without_lvm() -> None:
    here = machine()
    here.report()
    for name in ("b", "c", "d"):
        here.commit(with_lv(name))
        (made,) = (lv for lv in here.report().lvs if lv.name == name)
        assert (made.size_bytes, made.tags, made.vg_uuid) == (2 * 4 << 20, frozenset({"sl:v1"}), VG_UUID)
    here.commit(TEXT)
    assert here.names() == ["a"]
    assert here.lvm.asked == 1


def test_room_follows_what_volumes_take_and_what_the_text_takes() -> None:
    here = machine()
    (before,) = here.report().vgs
    here.commit(with_lv("b", extents=3))
    (after,) = here.report().vgs
    assert after.free_extents == before.free_extents - 3
    assert after.metadata_free_bytes == (AREA.size - 512) // 2 - len(with_lv("b", extents=3)) - 1


@pytest.mark.parametrize(
    "odd",
    [
        with_lv("b", extra=b"flags = [\"NEW\"]\n").replace(b"flags = []\nflags", b"flags"),
        with_lv("b", extra=b"from_the_future = 1\n"),
        with_lv("b").replace(b'type = "striped"', b'type = "snapshot"', 1),
        with_lv("b").replace(b', "VISIBLE"]', b"]", 1),
        with_lv("b").replace(b"start_extent = 0", b"start_extent = 1", 1),
        with_lv("b").replace(b'"pv0", 5', b'"pv9", 5', 1),
        with_lv("b", extents=1000),
        with_lv("b").replace(b"flags = []", b'flags = ["MISSING"]', 2),
        with_lv("b").replace(b'"RESIZEABLE", ', b'"RESIZEABLE", "EXPORTED", '),
        with_lv("b").replace(b"version = 1", b"version = 2"),
        with_lv("b").replace(b"seqno = 2", b"seqno = x"),
        with_lv("b").replace(b"segment_count = 1", b"segment_count = 0", 1),
        with_lv("b").replace(b"segment_count = 1", b"segment_count = 4000000000", 1),
        with_lv("b").replace(b"stripe_count = 1", b"stripe_count = 4000000000", 1),
        with_lv("b").replace(b"stripe_count = 1", b"stripe_count = 0", 1),
        with_lv("b", extents=9_999_999_999_999_999_999),
        with_lv("b").replace(b'"pv0", 5', b'"pv0", -5', 1),
        with_lv("b").replace(b'"pv0", 5', b'"pv0", 9999999999999999999', 1),
        with_lv("b").replace(b"extent_size = 8192", b"extent_size = 0"),
        with_lv("b").replace(b"pe_count = 15", b"pe_count = 9999999999999999999999"),
        with_lv("b")[:-700],
    ],
)  # fmt: skip
def test_what_is_not_plain_is_for_lvm_to_explain(odd: bytes) -> None:
    here = machine()
    here.report()
    here.lvm.fails = Refused("LVM's own words")
    assert odd != with_lv("b")
    here.commit(odd)
    (found,) = here.report().unreadable
    assert (found.name, found.why, here.lvm.asked) == ("vg0", "LVM's own words", 2)


def test_where_lvm_said_something_else_it_is_asked_after_every_change() -> None:
    here = machine()
    here.lvm.differs = True
    here.report()
    here.report()
    assert here.lvm.asked == 1
    here.commit(with_lv("b"))
    assert here.names() == ["a", "b"]
    assert here.lvm.asked == 2


def test_a_change_during_lvms_look_is_not_missed() -> None:
    here = machine()
    here.lvm.changes = lambda: here.commit(with_lv(f"b{here.lvm.asked}"))
    assert here.names() == ["a", "b1"]
    here.lvm.changes = lambda: None
    here.commit(with_lv("c"))
    assert here.names() == ["a", "c"]


def test_disks_with_different_texts_are_for_lvm_to_explain() -> None:
    here = two_disks()
    here.report()
    here.disks[0].commit(TWO_DISKS.replace(b"seqno = 2", b"seqno = 3"))
    here.report()
    assert here.lvm.asked == 2
    here.commit(TWO_DISKS.replace(b"seqno = 2", b"seqno = 4"))
    here.report()
    assert here.lvm.asked == 3, "LVM did not see both texts as they are now"


def test_disks_that_differ_for_a_moment_are_looked_at_again_and_those_that_differ_for_good_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = two_disks()
    here.report()
    third = TWO_DISKS.replace(b"seqno = 2", b"seqno = 3")
    here.disks[0].commit(third)
    slept: list[float] = []

    def go_on(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            here.disks[1].commit(third)

    monkeypatch.setattr("csi.node.lvm.disk_view.time.sleep", go_on)
    here.report()
    assert (len(slept), here.lvm.asked) == (2, 1)
    here.disks[0].commit(TWO_DISKS.replace(b"seqno = 2", b"seqno = 4"))
    here.report()
    waited = len(slept)
    here.report()
    assert len(slept) == waited > 2


def test_a_disk_that_joins_or_leaves_is_for_lvm_to_explain() -> None:
    here = two_disks()
    assert len(here.report().vgs[0].pvs) == 2
    gone = here.disks.pop()
    here.report()
    assert here.lvm.asked == 2
    here.disks.append(gone)
    here.report()
    assert here.lvm.asked == 3


def test_a_copied_disk_is_for_lvm_to_explain_after_every_change() -> None:
    here = machine(2)
    here.commit(TEXT)
    here.report()
    here.commit(with_lv("b"))
    here.report()
    assert here.lvm.asked == 2


# Groups that can't be looked into


def test_a_frozen_disk_makes_its_group_unreadable_without_lvm_and_hides_nothing_that_was_known() -> None:
    here = machine()
    here.report()
    here.disks[0].trouble = Trouble("/dev/sd0 does not answer", frozen=True)
    report = here.report()
    assert (report.vgs, [group.name for group in report.unreadable]) == ((), ["vg0"])
    assert here.lvm.asked == 1
    assert here.proved.frozen == (here.disks[0].device,)
    with pytest.raises(Unavailable, match="vg0 can't be looked into: /dev/sd0 does not answer"):
        report.vg("vg0")
    with pytest.raises(Unavailable, match="may be in a group that nobody can read now"):
        report.require_readable("volume a", lambda lv: lv.name == "a")
    report.require_readable("volume elsewhere", lambda lv: lv.name == "elsewhere")
    here.disks[0].trouble = None
    assert here.names() == ["a"]
    assert here.proved.frozen == ()


def test_a_disk_that_has_never_answered_may_be_anybodys() -> None:
    here = machine(2, allows=lambda name: True)
    here.disks[1].trouble = Trouble("/dev/sd1 does not answer", frozen=True)
    here.report()
    assert here.proved.silent == (here.disks[1].device,)
    here.disks[1].trouble = None
    here.report()
    here.disks[1].trouble = Trouble("/dev/sd1 does not answer", frozen=True)
    here.report()
    assert here.proved.frozen == (here.disks[1].device,)
    assert here.proved.silent == (), "now it is known whose it is"


def test_after_a_change_of_ours_began_nothing_is_sure_in_a_group_that_froze_then() -> None:
    here = machine()
    here.report()
    here.proved.changes("vg0")
    here.disks[0].trouble = Trouble("/dev/sd0 does not answer", frozen=True)
    with pytest.raises(Unavailable):
        here.report().require_readable("volume elsewhere", lambda lv: lv.name == "elsewhere")


def test_a_group_whose_only_disk_fails_is_there_and_unreadable() -> None:
    here = machine()
    here.report()
    here.disks[0].trouble = Trouble("/dev/sd0 can't be read: Input/output error")
    (found,) = here.report().unreadable
    assert (found.name, found.why) == ("vg0", "/dev/sd0 can't be read: Input/output error")


def test_a_damaged_label_of_a_known_disk_makes_its_group_unreadable() -> None:
    here = machine()
    here.report()
    here.disks[0].content[600] ^= 1
    (found,) = here.report().unreadable
    assert "label is damaged" in found.why


def test_a_blank_disk_is_no_group_any_more() -> None:
    here = machine()
    here.report()
    here.disks[0].content[:] = bytes(1 << 20)
    assert here.report() == Report(vgs=())


def test_a_missing_disk_that_may_be_one_that_does_not_answer_is_no_missing_disk() -> None:
    """LVM would record it as gone with the next change of the group."""
    here = two_disks()
    here.disks[1].trouble = Trouble("/dev/sd1 does not answer", frozen=True)
    (found,) = here.report().unreadable
    assert "/dev/sd1 does not answer" in found.why


def test_lvm_that_does_not_answer_about_a_group_is_waited_for_once_and_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 0.1)
    here = machine()
    here.lvm.hold = threading.Event()
    for _ in range(3):
        (found,) = here.report().unreadable
        assert "LVM did not answer within 0.1 s" in found.why
    assert here.lvm.asked == 1
    here.lvm.hold.set()
    give_up = time.monotonic() + 20
    while here.names() != ["a"]:
        assert time.monotonic() < give_up
    assert here.lvm.asked <= 2


class Clock:
    """Time that goes on by itself only where somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waits = time.monotonic(), list[float]()
        monkeypatch.setattr("csi.node.lvm.proved.time.monotonic", lambda: self.now)
        real = proved.Future.result

        def result(future: Any, timeout: float) -> Any:
            if not future.done():
                self.waits.append(timeout)
                self.now += timeout
                raise TimeoutError
            return real(future, 0)

        monkeypatch.setattr(proved.Future, "result", result)


def several_that_hang(count: int) -> tuple[Machine, threading.Event]:
    """A healthy group that LVM has told of, and others about which it says nothing."""
    disks = [Disk(number) for number in range(count + 1)]
    for disk in disks[1:]:
        disk.label_as(f"{disk.number}{LABEL.pv_uuid[1:]}")
        text = TEXT.replace(b"vg0 {", b"vg%d {" % disk.number, 1)
        disk.commit(text.replace(VG_UUID.encode(), f"{disk.number}{VG_UUID[1:]}".encode()))
    own, over = ByLvm(disks[:1]), threading.Event()

    def ask(name: str, groups: int) -> tuple[VolumeGroup, ...]:
        if name == "vg0":
            return own(name, groups)
        assert over.wait(20)
        return ()

    views, shown = DiskViews(Reader(disks)), [disks[0].device]  # type: ignore[arg-type]
    here = Machine(disks, own, ProvedReport(lambda: shown, views, lambda _: True, ask))
    here.report()
    shown += [disk.device for disk in disks[1:]]
    return here, over


def test_groups_that_do_not_answer_cost_the_others_one_wait_and_that_once(monkeypatch: pytest.MonkeyPatch) -> None:
    here, over = several_that_hang(3)
    clock = Clock(monkeypatch)
    for _ in range(5):
        report = here.report()
        assert [vg.name for vg in report.vgs] == ["vg0"]
        assert [group.name for group in report.unreadable] == ["vg1", "vg2", "vg3"]
    assert sum(clock.waits) == proved._PATIENCE_SECONDS
    over.set()


def test_a_group_that_is_late_is_not_waited_for_at_its_next_question_either(monkeypatch: pytest.MonkeyPatch) -> None:
    here, over = several_that_hang(1)
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 0.01)
    here.report()
    (late,) = (group for group in here.proved._groups.values() if group.name == "vg1")
    over.set()
    assert late.asking is not None
    assert late.asking.answer.result(20), "LVM says that it doesn't know the group"
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 20.0)
    over.clear()
    clock = Clock(monkeypatch)
    assert [vg.name for vg in here.report().vgs] == ["vg0"]
    assert sum(clock.waits) == 0
    over.set()


def test_a_group_that_was_late_and_was_told_since_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine()
    here.lvm.differs, here.lvm.hold = True, threading.Event()
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 0.01)
    assert here.report().unreadable
    here.lvm.hold.set()
    give_up = time.monotonic() + 20
    while here.names() != ["a"]:
        assert time.monotonic() < give_up
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 20.0)
    here.lvm.changes = lambda: time.sleep(0.05)
    here.commit(with_lv("b"))
    assert here.names() == ["a", "b"]


def test_a_group_that_was_late_and_fails_at_once_since_is_told_with_lvms_own_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine()
    here.lvm.hold, here.lvm.fails = threading.Event(), Refused("LVM's own words")
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 0.01)
    assert "did not answer" in here.report().unreadable[0].why
    here.lvm.hold.set()
    monkeypatch.setattr(proved, "_PATIENCE_SECONDS", 20.0)
    (group,) = here.proved._groups.values()
    give_up = time.monotonic() + 20
    while group.late:
        here.report()
        assert time.monotonic() < give_up
    here.lvm.changes = lambda: time.sleep(0.05)
    assert here.report().unreadable[0].why == "LVM's own words"


@pytest.mark.parametrize(
    "fault",
    [OSError(24, "Too many open files"), OSError(28, "No space left"), ValueError("odd"), MemoryError("no room")],
)
def test_whatever_goes_wrong_with_one_group_the_others_are_told(fault: Exception) -> None:
    here, over = several_that_hang(1)
    asked = here.proved._ask

    def ask(name: str, groups: int) -> tuple[VolumeGroup, ...]:
        if name != "vg0":
            raise fault
        return asked(name, groups)

    here.proved._ask = ask
    report = here.report()
    assert [vg.name for vg in report.vgs] == ["vg0"]
    assert [(group.name, group.why) for group in report.unreadable] == [("vg1", str(fault))]
    over.set()


def test_a_group_that_no_thread_can_ask_about_is_asked_about_when_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", no_thread)
        assert here.report().unreadable[0].why == "can't start new thread"
    assert here.names() == ["a"]


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_what_lvm_failed_at_is_asked_again_at_the_next_look() -> None:
    here = machine()
    here.lvm.fails = CommandTimeout(("lvm", "fullreport"), 60)
    assert "no end after 60 s" in here.report().unreadable[0].why
    here.lvm.fails = None
    assert here.names() == ["a"]


def test_many_looks_at_once_ask_lvm_once() -> None:
    here = machine()
    here.lvm.hold = threading.Event()
    threads = [threading.Thread(target=here.report) for _ in range(20)]
    for thread in threads:
        thread.start()
    while here.lvm.asked == 0:
        time.sleep(0.01)
    here.lvm.hold.set()
    for thread in threads:
        thread.join()
    assert here.lvm.asked <= 2, "one for all that came before it began, one for those that came later"


def test_what_was_asked_before_a_change_does_not_answer_who_came_after_it() -> None:
    here = machine()
    asked, go_on = threading.Event(), threading.Event()
    answered = here.lvm.__call__

    def slow(name: str, groups: int) -> tuple[VolumeGroup, ...]:
        answer = answered(name, groups)
        asked.set()
        assert go_on.wait(20)
        return answer

    here.proved._ask = slow
    names: dict[str, list[str]] = {}
    before = threading.Thread(target=lambda: names.update(before=here.names()))
    before.start()
    assert asked.wait(20)
    here.commit(with_lv("b"))
    after = threading.Thread(target=lambda: names.update(after=here.names()))
    after.start()
    time.sleep(0.05)
    go_on.set()
    for thread in (before, after):
        thread.join()
    assert names == {"before": ["a"], "after": ["a", "b"]}


# Groups that the configuration can't mean


def of_no_group(disk: Disk) -> None:
    """Let the label say that no group has the disk."""
    at = disk.content.index(struct.pack("<II", 2, 1), 512 + 72)
    disk.content[at + 4 : at + 8] = bytes(4)
    disk.reseal_label()


def areas(disk: Disk, second: Area) -> None:
    """Let the label name a second metadata area."""
    found = struct.pack("<QQQQQQII", 4096, 1044480, second.offset, second.size, 0, 0, 2, 0)
    at = disk.content.index(struct.pack("<QQ", 4096, 1044480), 512 + 72)
    disk.content[at : at + len(found)] = found
    disk.reseal_label()


def beside_a_foreign_disk() -> tuple[Machine, Disk]:
    """A group of ours, and a disk that has a label and that no group of ours knows."""
    here = machine()
    disk = Disk(1)
    disk.label_as(TWO_DISKS_UUID)
    reader = Reader([*here.disks, disk])
    views = DiskViews(reader)  # type: ignore[arg-type]
    here.proved = ProvedReport(lambda: [here.disks[0].device, disk.device], views, lambda name: name == "vg0", here.lvm)
    return here, disk


@pytest.mark.parametrize("header", [bytes(512), b"\xff" * 512])
def test_a_foreign_disk_whose_header_is_damaged_is_not_unused_and_stops_no_other(header: bytes) -> None:
    here, disk = beside_a_foreign_disk()
    of_no_group(disk)
    disk.content[4096:4608] = header
    assert (here.names(), here.report().unused) == (["a"], ()), "nobody knows whose text lies there"


@pytest.mark.parametrize("offset", [1 << 26, 10 << 30, (1 << 63) + 4096, (1 << 64) - 4096])
def test_a_foreign_disk_whose_area_lies_behind_its_end_is_not_unused_and_stops_no_other(offset: int) -> None:
    here, disk = beside_a_foreign_disk()
    disk.content[4136:4608] = bytes(4608 - 4136)
    disk.reseal_header()
    areas(disk, Area(offset=offset, size=1044480))
    assert (here.names(), here.report().unused) == (["a"], ())


def test_a_group_all_of_whose_headers_are_damaged_is_unreadable_and_the_disk_is_named() -> None:
    here = machine()
    here.report()
    here.disks[0].content[4096:4608] = bytes(512)
    (found,) = here.report().unreadable
    assert (found.name, found.why) == (
        "vg0", "/dev/sd0: the header of a metadata area is damaged or of another version"
    )  # fmt: skip


def test_a_foreign_group_is_named_and_lvm_is_never_asked_about_it() -> None:
    here = machine(allows=lambda _: False)
    report = here.report()
    assert report.vgs == report.unreadable == ()
    assert [(group.name, group.uuid, group.disks) for group in report.foreign] == [
        ("vg0", VG_UUID, (DeviceNumber(8, 0),))
    ]
    assert here.lvm.asked == 0


def test_a_disk_with_a_label_and_no_group_is_unused() -> None:
    here = machine()
    disk = here.disks[0]
    of_no_group(disk)
    assert here.report().unused == (), "its text names a group"
    disk.content[4136:4608] = bytes(4608 - 4136)
    disk.reseal_header()
    assert [pv.name for pv in here.report().unused] == ["/dev/sd0"]
    disk.content[512:1024] = HEAD[512:1024]
    assert here.report().unused == (), "it says of itself that a group has it"
