"""Whatever lies where LVM's label, area header and text are on a disk that anybody may have written, the report comes.

Numbers and bytes are changed, and the checksums made right again: what a program made, not what a bad sector left.
"""

import re
import struct
from unittest import mock

from hypothesis import example, given
from hypothesis import strategies as st

from csi.core.errors import Refused
from csi.node.config import NodeConfig, Pool
from csi.node.lvm.disk_view import DiskViews
from csi.node.lvm.model import VolumeGroup
from csi.node.lvm.proved import ProvedReport
from csi.node.plan import placement
from csi.node.volume import Parameters
from tests.unit.test_lvm_proved import LABEL, TEXT, VG_UUID, ByLvm, Disk, Reader, another, machine, of_no_group, with_lv

EDGES = (
    0, 1, 2, 511, 512, 4095, 4096, 1 << 20, (1 << 26) - 512, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Where lengths, disks and the kernel's own numbers end."""

POOLS = NodeConfig(pools=(Pool(name="main", vgs=("vg0",)),), default_pool="main")
LABEL_AT, HEADER_AT = 512, 4096
PLACES = st.one_of(
    st.integers(LABEL_AT + 40, LABEL_AT + 144), st.sampled_from([HEADER_AT + at for at in (20, 24, 32, 40, 48, 56)])
)
NUMBERS = st.lists(st.tuples(PLACES, st.sampled_from(EDGES)), max_size=3)
BYTES = st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), max_size=3)


@st.composite
def disks(draw: st.DrawFn, *, name: st.SearchStrategy[bytes]) -> Disk:
    """A disk of another group, of none, or of one that is damaged."""
    disk = Disk(1)
    disk.label_as(another(LABEL.pv_uuid))
    text = TEXT.replace(b"vg0 {", draw(name) + b" {", 1)
    disk.commit(text.replace(VG_UUID.encode(), another(VG_UUID).encode()))
    if draw(st.booleans()):
        of_no_group(disk)
    for at, number in draw(NUMBERS):
        struct.pack_into("<Q", disk.content, at, number)
    for at, byte in draw(BYTES):
        disk.content[at] = byte
    if draw(st.booleans()):
        disk.reseal_label()
        disk.reseal_header()
    return disk


def report(disk: Disk) -> list[str]:
    """The groups that are told while such a disk lies beside the one of ours, at the second look too."""
    own = Disk(0)
    by_lvm = ByLvm([own])

    def ask(name: str, _: int) -> tuple[VolumeGroup, ...]:
        return by_lvm(name, 1) if name == "vg0" else ()

    made = ProvedReport(
        lambda: [own.device, disk.device],
        DiskViews(Reader([own, disk])),  # type: ignore[arg-type]
        lambda name: name in ("vg0", "data"),
        ask,
    )
    with mock.patch("csi.node.lvm.disk_view._COMMIT_SECONDS", 0):
        made.report()
        return [vg.name for vg in made.report().vgs]


@given(disks(name=st.sampled_from([b"data", b"other"])))
def test_no_other_disk_hides_a_group_or_stops_the_report(disk: Disk) -> None:
    assert report(disk) == ["vg0"]


@given(disks(name=st.just(b"vg0")))
def test_a_disk_that_takes_the_groups_name_does_not_stop_the_report(disk: Disk) -> None:
    report(disk)


NUMBER = re.compile(rb"(?<== )\d+|(?<=\", )\d+")
WORDS = st.one_of(
    st.sampled_from([*EDGES, -1, 10**30, 4_000_000_000]).map(lambda number: str(number).encode()),
    st.sampled_from([b'"x"', b"[]", b"[[]]", b"{}", b"", b'"', b"\xff"]),
)


@given(st.lists(st.tuples(st.integers(0, 40), WORDS), min_size=1, max_size=3))
@example([(1, b"0")])  # extent_size
def test_whatever_a_groups_text_says_it_is_told_or_unreadable_and_can_be_planned_with(
    changes: list[tuple[int, bytes]],
) -> None:
    here = machine()
    here.report()
    text = with_lv("b")
    for which, word in changes:
        found = list(NUMBER.finditer(text))
        at = found[which % len(found)]
        text = text[: at.start()] + word + text[at.end() :]
    here.lvm.fails = Refused("LVM's own words")
    here.commit(text)
    report = here.report()
    assert [vg.name for vg in report.vgs] + [group.name for group in report.unreadable] == ["vg0"]
    for target in placement.all_targets(POOLS, report):
        assert target.largest(Parameters()) <= target.vg.size_bytes
        assert target.fit(Parameters(), 1 << 80) is None
