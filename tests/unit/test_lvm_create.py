"""A failed `lvcreate` is looked after: a volume that is there counts as made, and no final answer leaves one behind."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from csi.core.command import Result
from csi.core.errors import (
    CommandEnded,
    CommandError,
    CommandKilled,
    CommandTimeout,
    InUse,
    NoSpace,
    SealedLocalError,
    ToolFailed,
    Unavailable,
)
from csi.node import own_groups, until_readable
from csi.node.config import NodeConfig
from csi.node.lvm import failures
from csi.node.lvm import report as lvm_report
from csi.node.lvm.command import Lvm
from csi.node.lvm.model import Report
from tests.fakes import lvm_is_there

GOLDEN = (Path(__file__).parents[1] / "data/lvm-2.03.16-fullreport.json").read_bytes()
ARGV = ("lvm", "lvcreate")
FULL = "  VG vg0 metadata on /dev/sda (522240 bytes) too large for circular buffer (1044480 bytes with 521728 used)\n"


def failed(said: str) -> CommandError:
    return CommandError(ARGV, 5, "", said)


@dataclass
class Failing:
    """A runner whose `lvcreate` fails; what it made all the same is for the report to say."""

    error: Exception
    ran: list[str] = field(default_factory=list)

    def run(self, argv: Any, **_: Any) -> Result:
        if lvm_is_there.is_first_look(argv):
            return lvm_is_there.answer(argv)
        self.ran.append(argv[1])
        raise self.error


def made(lvm: Lvm, monkeypatch: pytest.MonkeyPatch, report: Callable[[], Report]) -> None:
    monkeypatch.setattr(lvm, "report", report)
    lvm.create("vg0", "pvc-1", extents=1, tags=("sl:v1", "sl:name=abc"))


def there(*tags: str) -> Report:
    """What LVM shows afterwards: `vg0/pvc-1` with these tags, or no such volume."""
    if not tags:
        return Report(vgs=())
    whole = next(one for one in json.loads(GOLDEN)["report"] if one.get("vg") and one["vg"][0]["vg_name"] == "whole")
    whole["vg"][0]["vg_name"] = "vg0"
    whole["lv"][0] |= {"lv_name": "pvc-1", "lv_tags": ",".join(tags)}
    return lvm_report.parse(json.dumps({"report": [whole]}).encode())


def test_the_group_is_remembered_as_used_before_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, str]] = []

    class Looking(Failing):
        def run(self, argv: Any, **more: Any) -> Result:
            if not lvm_is_there.is_first_look(argv):
                seen.append(lvm.known_groups)
            return super().run(argv, **more)

    lvm = Lvm(Looking(failed("  odd\n")), udev=False, lock_file=tmp_path / "l")
    report = there("sl:v1")
    made(lvm, monkeypatch, lambda: there("sl:v1", "sl:name=abc"))
    assert seen == [{"vg0": report.vgs[0].uuid}]


@pytest.mark.parametrize("error", [CommandKilled(ARGV, 9), CommandTimeout(ARGV, 600.0), failed("  odd\n")])
def test_a_volume_that_is_there_after_all_counts_as_made(
    error: ToolFailed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(Lvm(Failing(error), udev=False, lock_file=tmp_path / "l"), monkeypatch, lambda: there("sl:v1", "sl:name=abc"))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (CommandKilled(ARGV, 9), CommandKilled),
        (CommandTimeout(ARGV, 600.0), CommandTimeout),
        (failed("  odd\n"), CommandError),
        (failed('  Volume group "vg0" has insufficient free space (1 extents): 2 required.\n'), NoSpace),
    ],
)
@pytest.mark.parametrize("around", [(), ("sl:v1", "sl:name=another")])
def test_where_it_is_not_there_the_failure_is_told(
    error: ToolFailed,
    raised: type[Exception],
    around: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(raised):
        made(Lvm(Failing(error), udev=False, lock_file=tmp_path / "l"), monkeypatch, lambda: there(*around))


def test_when_nobody_can_tell_the_answer_is_one_that_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind() -> Report:
        raise CommandTimeout(("lvm", "fullreport"), 60.0)

    with pytest.raises(Unavailable, match="whether vg0/pvc-1 was made is not known"):
        made(Lvm(Failing(failed("  odd\n")), udev=False, lock_file=tmp_path / "l"), monkeypatch, blind)


class Fine:
    """A runner whose commands all end well, whatever they did."""

    def run(self, argv: Any, **_: Any) -> Result:
        return Result(argv=tuple(argv), returncode=0, stdout=b"", stderr=b"")


ACTS: dict[str, tuple[Callable[[Lvm], None], tuple[str, ...]]] = {
    "made": (lambda lvm: lvm.create("vg0", "pvc-1", extents=1, tags=("sl:v1", "a")), ("sl:v1", "a")),
    "removed": (lambda lvm: lvm.remove("vg0", "pvc-1"), ()),
    "changed": (lambda lvm: lvm.change_tags("vg0", "pvc-1", remove=("a",), add=("b",)), ("b", "c")),
}
"""What is done, and the tags that are there when it was; none when the volume must be gone."""


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("tags", [("sl:v1", "a"), (), ("b", "c"), ("a", "b")])
def test_an_exit_status_is_no_proof_of_the_effect(
    act: str, tags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvm = Lvm(Fine(), udev=False, lock_file=tmp_path / "l")
    monkeypatch.setattr(lvm, "report", lambda: there(*tags))
    do, right = ACTS[act]
    if tags == right:
        do(lvm)
        return
    with pytest.raises(
        ToolFailed, match=f"says that vg0/pvc-1 was {act}, and the group's metadata shows that it was not"
    ):
        do(lvm)


# LVM's words, as lvm2 2.03.16 printed them


@pytest.mark.parametrize(
    "said",
    [
        '  Volume group "vg0" has insufficient free space (14 extents): 15 required.\n',
        "  Insufficient suitable allocatable extents for logical volume a: 15 more required\n",
        "  Insufficient suitable contiguous allocatable extents for logical volume a: 15 more required\n",
        "  Insufficient free space: 30 extents needed, but only 14 available\n",
        "  Number of stripes (3) must not exceed number of physical volumes (2)\n",
        "  Maximum number of logical volumes (1) reached in volume group vg0.\n",
        "  WARNING: VG vg0 has duplicate PVs\n  Cannot update volume group vg0 with duplicate PV devices.\n",
        "  WARNING: Couldn't find device with uuid x.\n  Cannot change VG vg0 while PVs are missing.\n",
        "  Error writing device /dev/sdb at 4096 length 512.\n  Failed to write metadata to /dev/sdb.\n",
        FULL + "  Failed to write VG vg0.\n",
        "  VG vg0 91 metadata on /dev/sda (526422 bytes) exceeds maximum metadata size (522240 bytes)\n",
    ],
)
def test_what_lvm_will_not_allocate_is_no_room_in_that_group(said: str) -> None:
    found = failures.of_allocation("vg0", failed(said))
    assert isinstance(found, NoSpace)
    assert "vg0" in str(found)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("  Logical volume vg0/a in use.\n", InUse),
        ("  Logical volume vg0/a contains a filesystem in use.\n", InUse),
        ("  Logical volume vg0/a is used by another device.\n", InUse),
        ("  Can't get lock for vg0.\n  Cannot process volume group vg0\n", Unavailable),
        (FULL, Unavailable),
        ('  Volume group "vg0" not found\n  Cannot process volume group vg0\n', Unavailable),
        ("  Error writing device /dev/sdb at 4096 length 512.\n  Failed to write metadata to /dev/sdb.\n", Unavailable),
        ("  Error reading device /dev/sdb at 4096 length 512.\n", Unavailable),
        ("  something that this version does not know\n", CommandError),
    ],
)
def test_what_stops_another_change_is_told_by_its_kind(said: str, kind: type[SealedLocalError]) -> None:
    assert type(failures.of_change(failed(said))) is kind


def test_a_command_that_was_ended_is_no_command_that_failed() -> None:
    assert not issubclass(CommandEnded, CommandError)


def seen_with_a_silent_disk(folder: Path, trust: object) -> Report:
    """What a start-up sees that finds one disk frozen: no group, and a group of somebody else."""
    lvm = Lvm(
        Failing(ToolFailed("no tool is run")),
        udev=False,
        lock_file=folder / "lock",
        allows=lambda name: name != "dropped",
        trust=trust,  # type: ignore[arg-type]
    )
    silent = (SimpleNamespace(path="/dev/silent", names=("/dev/silent",)),)
    here = dataclasses.replace(there("sl:v1").vgs[0], name="here")
    lvm._proved = SimpleNamespace(report=lambda: Report(vgs=(here,)), silent=silent, frozen=silent)  # type: ignore[assignment]
    return lvm.report()


def test_a_group_that_was_used_is_unreadable_and_not_absent_while_a_disk_has_never_answered(tmp_path: Path) -> None:
    used = {"vg0": "uuid-0", "here": "uuid-1", "dropped": "uuid-2"}
    report = seen_with_a_silent_disk(tmp_path, SimpleNamespace(separate=lambda report: report, known=used))
    assert [group.name for group in report.unreadable] == ["vg0"]
    assert report.vg("here") is not None
    with pytest.raises(
        Unavailable, match="vg0 can't be looked into: it is not here, and /dev/silent, which may be a disk"
    ):
        report.vg("vg0")


def test_where_nobody_knows_which_groups_were_used_a_silent_disk_stops_no_report(tmp_path: Path) -> None:
    (tmp_path / "groups.json").write_text("{")
    report = seen_with_a_silent_disk(
        tmp_path, until_readable.trust(lambda: own_groups.trust(NodeConfig(), tmp_path / "groups.json"))
    )
    assert (len(report.strangers), report.unreadable) == (1, ())
