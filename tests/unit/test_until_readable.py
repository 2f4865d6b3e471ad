"""While the memory of this node's groups can't be read, none is trusted; when it can, the driver goes on by itself."""

from pathlib import Path

import pytest

from csi.core.errors import Refused
from csi.node import own_groups, until_readable
from csi.node.config import NodeConfig, Pool
from csi.node.lvm.trust import Trust
from tests.unit.test_own_groups import OTHER, OURS, OWN, THEIRS, group, seen


def trust(on: NodeConfig, path: Path) -> Trust:
    return until_readable.trust(lambda: own_groups.trust(on, path))


def test_while_the_file_is_damaged_every_group_is_a_stranger_and_no_volume_is_known_to_be_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "groups.json"
    path.write_text('{"vg0": ')
    by_disk = NodeConfig(pools=(Pool(name="a", vgs=("vg0",), devices=("/dev/a",)),))
    for on in (NodeConfig(), by_disk, NodeConfig(vg_uuids={"vg0": OWN})):
        damaged = trust(on, path)
        caplog.clear()
        for _ in range(2):
            assert seen(damaged, group(OWN, OURS)) == ([], [OWN])
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1, "told once"
        with pytest.raises(Refused, match=r"groups\.json can't be read .* it is read again by itself"):
            _ = damaged.known
    assert path.read_text() == '{"vg0": ', "it is left as it is"


def test_when_the_file_is_mended_groups_are_used_again_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text("[]")
    damaged = trust(NodeConfig(), path)
    assert seen(damaged, group(OWN, OURS), group(OTHER, THEIRS)) == ([], [OWN, OTHER])
    own_groups.write(path, {"vg0": OWN})
    assert seen(damaged, group(OWN, OURS), group(OTHER, THEIRS)) == ([OWN], [OTHER])
    assert set(damaged.known) == {"vg0"}
    path.write_text("{")
    assert seen(damaged, group(OWN, OURS)) == ([OWN], []), "what was read is not read again"


def test_a_file_that_can_be_read_changes_nothing(tmp_path: Path) -> None:
    own_groups.write(tmp_path / "groups.json", {"vg0": OWN})
    assert seen(trust(NodeConfig(), tmp_path / "groups.json"), group(OTHER, THEIRS)) == ([], [OTHER])
