"""The page for the cluster helper, from the real driver with real LVM."""

import sys

import pytest

from csi.core import local_storage
from lab.driver import MIB, Driver, create_request, mount_capability

pytestmark = pytest.mark.lab

_ADDRESS = "127.0.0.1:9899"
_READ = (
    f"import urllib.request as u; print(u.urlopen('http://{_ADDRESS}{local_storage.PATH}', timeout=20).read().decode())"
)


def test_the_page_shows_the_groups_disks_and_volumes_that_are_there(driver: Driver) -> None:
    volume = driver.call("CreateVolume", **create_request("pvc-shown", 8 * MIB, mount_capability())).ok()["volume"]
    other = Driver(driver.node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
    driver.node.run(["ip", "link", "set", "lo", "up"])
    pid = driver.node.spawn([*other.argv(), "--metrics-address", _ADDRESS], other.log)
    driver.node.call("lab.csi_calls:ready", socket=other.socket)
    try:
        page = local_storage.decode(driver.node.run([sys.executable, "-c", _READ]).text.encode(), "the driver")
    finally:
        other.adopt(pid)
        assert other.stop() == 0
    (group,) = page.groups
    words = driver.node.run(["vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_size,vg_free", "vg0"]).text
    assert (page.node, page.complete, group.name) == ("lab-node", True, "vg0")
    assert [str(group.total), str(group.available)] == words.split()
    assert set(group.physical_volumes) <= {device.name for device in page.devices}
    assert volume["volume_id"] in {one.id for one in page.volumes}
    driver.call("DeleteVolume", volume_id=volume["volume_id"]).ok()
