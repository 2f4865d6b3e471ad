"""A hundred claims at once."""

import pytest

from lab.driver import MIB, Driver, create_request, lvs, mount_capability

pytestmark = pytest.mark.lab


def test_a_hundred_volumes_asked_for_at_once_are_made_once_each(driver: Driver) -> None:
    requests = [create_request(f"pvc-many-{number}", 4 * MIB, mount_capability()) for number in range(100)]
    first = [answer.ok()["volume"] for answer in driver.many("CreateVolume", requests)]
    again = [answer.ok()["volume"] for answer in driver.many("CreateVolume", requests)]
    ids = [volume["volume_id"] for volume in first]
    assert len(set(ids)) == 100
    assert [volume["volume_id"] for volume in again] == ids
    assert sorted(name for name in lvs(driver.node) if name.startswith("pvc-many-")) == sorted(ids)
    # By the tool, because nothing of these volumes was ever used and a hundred deletions prove nothing more.
    driver.node.run(
        ["lvremove", "-q", "--yes", "vg0", "--select", "lv_tags={sl:v1} && lv_name=~^pvc-many-"], timeout=300
    )
