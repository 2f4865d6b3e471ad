"""While nobody can look into one group, the volumes of the others are made, found and deleted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from csi.node.lvm.model import Report, UnreadableGroup
from tests.fakes.csi_server import CsiServer, serving
from tests.rpc.test_csi_server import LIFE, Requests

POOLS = "pools: [{name: main, vgs: [vg0]}, {name: bulk, vgs: [bulk-0]}]\n"
HIDDEN = UnreadableGroup(name="bulk-0", disks=("/dev/b",), why="/dev/b does not answer")


@pytest.fixture
def csi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CsiServer]:
    with serving(tmp_path, monkeypatch, POOLS) as made:
        report = made.lvm.report

        def beside() -> Report:
            return replace(report(), unreadable=(HIDDEN,))

        monkeypatch.setattr(made.lvm, "report", beside)
        yield made


def test_a_volume_lives_its_whole_life_beside_a_group_that_nobody_can_read(csi: CsiServer) -> None:
    asked = Requests(csi)
    for call in LIFE:
        csi.call(call, asked.of(call, parameters={"pool": "main"}) if call == "CreateVolume" else asked.of(call))


def test_a_volume_that_may_be_in_that_group_is_neither_made_nor_called_deleted(csi: CsiServer) -> None:
    asked = Requests(csi)
    code, message = csi.refused("CreateVolume", asked.of("CreateVolume", parameters={"pool": "bulk"}))
    assert (code, "volume group bulk-0 can't be looked into" in message) == (grpc.StatusCode.UNAVAILABLE, True)
    code, message = csi.refused("DeleteVolume", asked.of("DeleteVolume"))
    assert (code, "volume group bulk-0 can't be looked into" in message) == (grpc.StatusCode.UNAVAILABLE, True)
