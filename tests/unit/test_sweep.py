"""What the start drops of Kata's registry: records that nobody needs any more, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from csi.core.errors import Refused
from csi.node import observe, stale_records, startup
from csi.node.desk import Desk
from csi.node.kata.record import VOLUME_ID_KEY, Record
from csi.node.kata.registry import KataRegistry
from csi.node.lvm import names
from csi.node.lvm.model import Report
from csi.node.plan import provision
from csi.node.plan.node_view import PathKind, PathView

EMPTY = Report(vgs=())


@pytest.fixture
def world(tmp_path: Path) -> Any:
    toy: Any = None
    registry = KataRegistry(tmp_path / "registry")
    return Desk(settings=toy, runner=toy, lvm=toy, registry=registry, handlers={}, locks=toy)


def put(world: Any, target: Path, volume_id: str | None) -> None:
    metadata = {} if volume_id is None else {VOLUME_ID_KEY: volume_id}
    world.registry.put(str(target), Record(device="/dev/vg0/x", fstype="ext4", metadata=metadata))


def left(world: Any) -> set[str]:
    return {entry.target for entry in world.registry.entries()}


def pod(folder: Path, name: str) -> Path:
    """The target path of a pod whose directory kubelet has made."""
    target = folder / f"pods/{name}/volumes/kubernetes.io~csi/pvc-1/mount"
    (folder / f"pods/{name}").mkdir(parents=True, exist_ok=True)
    return target


def test_a_record_of_a_pod_that_is_gone_is_dropped(world: Any, tmp_path: Path) -> None:
    put(world, tmp_path / "pods/gone/volumes/kubernetes.io~csi/pvc-1/mount", "pvc-1")
    startup.sweep(world, EMPTY)
    assert left(world) == set()


def test_records_of_live_pods_and_of_other_programs_stay(world: Any, tmp_path: Path) -> None:
    live, foreign = pod(tmp_path, "live"), tmp_path / "elsewhere/a/b/c/mount"
    put(world, live, "pvc-1")
    put(world, foreign, None)
    startup.sweep(world, EMPTY)
    assert left(world) == {str(live), str(foreign)}


@pytest.mark.parametrize("doubtful", ["volume", "path"])
def test_one_volume_in_doubt_keeps_its_record_and_stops_nothing(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubtful: str
) -> None:
    bad, stale = (tmp_path / f"pods/{name}/volumes/kubernetes.io~csi/pvc/mount" for name in ("bad", "stale"))
    put(world, bad, "pvc-bad")
    put(world, stale, "pvc-stale")

    def by_id(_: Report, volume_id: str) -> None:
        if doubtful == "volume" and volume_id == "pvc-bad":
            raise Refused("volume pvc-bad exists in several volume groups")

    def path(value: str, _: object) -> PathView:
        if doubtful == "path" and value == str(bad):
            raise Refused(f"{value} can't be looked at")
        return PathView(path=value, kind=PathKind.ABSENT)

    monkeypatch.setattr(provision, "by_id", by_id)
    monkeypatch.setattr(observe, "path", path)
    startup.sweep(world, EMPTY)
    assert left(world) == {str(bad)}


@pytest.mark.parametrize("held", [False, True])
def test_a_call_for_a_volume_drops_its_own_records_whose_pods_are_gone(world: Any, tmp_path: Path, held: bool) -> None:
    live = pod(tmp_path, "live")
    gone, other = (tmp_path / f"pods/{name}/volumes/kubernetes.io~csi/pvc/mount" for name in ("gone", "other"))
    put(world, live, "pvc-1")
    put(world, gone, "pvc-1")
    put(world, other, "pvc-2")
    entries = tuple(world.registry.entries())
    kept = stale_records.dropped(world.registry, entries, (), names.checked_id("pvc-1"), held=held)
    expected = {str(live), str(other)} | ({str(gone)} if held else set())
    assert {entry.target for entry in kept} == left(world) == expected
