"""What a hostile host tries with a sealed volume, on real LVM and real dm-crypt: refused with the right status, unchanged.

The guest's program runs in the node itself here, which shows the same kernel and the same tools without booting a virtual
machine for every attack; `test_story` proves the way through a real guest.
"""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from csi.guest.seal.mapping import mapping_name
from lab.driver import MIB, Driver, mount_capability
from lab.node import Node
from lab.sealed import Guest
from tests.lab.tenant import Tenant, running_tenant

pytestmark = pytest.mark.lab

_CAPABILITY = mount_capability()
_POLICY = "/run/tenant/initdata.toml"
_FILE = "/data/volume/file"
_TAMPERED, _BLANKED, _ROLLED_BACK, _FOREIGN, _REFUSED = 3, 4, 5, 7, 10
_NO_UDEV = {"DM_DISABLE_UDEV": "1"}
_LVM = ("-q", "-y", "--config", "activation{udev_sync=0 udev_rules=0}")


@pytest.fixture(scope="module")
def tenant(node: Node, driver: Driver) -> Iterator[Tenant]:
    with running_tenant(node, driver, port=8450) as made:
        yield made


def test_an_older_image_of_the_volume_is_refused_and_the_newest_still_opens(tenant: Tenant) -> None:
    device, old, new = tenant.volume("pvc-replay"), "/tmp/old.img", "/tmp/new.img"
    assert tenant.opened("pvc-replay", device)["formatted_now"] is True
    tenant.node.write(_FILE, b"first")
    assert tenant.opened("pvc-replay", device)["formatted_now"] is False, "an open volume can be opened again"
    tenant.close("pvc-replay")
    tenant.copy(device, old)
    assert tenant.opened("pvc-replay", device)["generation"] == 3
    tenant.node.write(_FILE, b"second")
    tenant.close("pvc-replay")
    tenant.copy(device, new)
    tenant.copy(old, device)
    assert "generation 2" in tenant.refused("pvc-replay", device, _ROLLED_BACK)
    tenant.copy(new, device)
    assert tenant.opened("pvc-replay", device)["freshness"] == "head"
    assert tenant.node.read(_FILE) == b"second"
    tenant.close("pvc-replay")
    tenant.node.run(["rm", old, new])
    tenant.drop("pvc-replay")


def test_another_volumes_device_and_foreign_content_are_refused(tenant: Tenant) -> None:
    mine, other = tenant.volume("pvc-mine"), tenant.volume("pvc-other")
    for name, device in (("pvc-mine", mine), ("pvc-other", other)):
        tenant.opened(name, device)
        tenant.node.write(_FILE, name.encode())
        tenant.close(name)
    tenant.refused("pvc-mine", other, _TAMPERED)
    tenant.opened("pvc-mine", mine)
    assert tenant.node.read(_FILE) == b"pvc-mine"
    tenant.close("pvc-mine")
    third = tenant.volume("pvc-third")
    tenant.node.run(["mkfs.ext4", "-q", third])
    assert "not blank" in tenant.refused("pvc-third", third, _FOREIGN)
    tenant.drop("pvc-mine", "pvc-other", "pvc-third")


def test_each_part_of_the_head_is_protected(tenant: Tenant) -> None:
    """One header copy may be lost, to a power cut; what is left must be authentic. Both state records gone: refused."""
    device = tenant.volume("pvc-head")
    tenant.opened("pvc-head", device)
    tenant.close("pvc-head")
    good = "/tmp/good.img"
    tenant.copy(device, good)
    flipped = bytes([tenant.node.read(good, 4096 + 100, 1)[0] ^ 1])
    for offset in (0, 16 * MIB):
        tenant.node.write(device, flipped, offset=offset + 4096 + 100)
    tenant.refused("pvc-head", device, _TAMPERED)
    tenant.copy(good, device)
    for offset in (32 * MIB, 33 * MIB):
        tenant.node.write(device, bytes(4096), offset=offset)
    tenant.refused("pvc-head", device, _TAMPERED)
    tenant.copy(good, device)
    tenant.node.write(device, flipped, offset=4096 + 100)
    assert tenant.opened("pvc-head", device)["formatted_now"] is False
    tenant.close("pvc-head")
    assert tenant.node.read(device, 4096 + 100, 1) != flipped, "copy B mends copy A"
    tenant.node.run(["rm", good])
    tenant.drop("pvc-head")


def test_run_opens_for_a_command_and_closes_after_it(tenant: Tenant) -> None:
    device = tenant.volume("pvc-run")
    for number in range(2):
        script = f"echo line{number} >>{_FILE}; cat {_FILE}; exit {number}"
        done = tenant.node.run(tenant.argv("run", "pvc-run", "--device", device, "--", "sh", "-c", script), check=False)
        assert done.rc == number, done.stderr.decode()
    assert done.text == "line0\nline1\n"
    assert not tenant.node.exists(_FILE)
    tenant.drop("pvc-run")


def test_a_header_copy_b_that_was_damaged_is_mended(tenant: Tenant) -> None:
    device = tenant.volume("pvc-mend")
    tenant.opened("pvc-mend", device)
    tenant.node.write(_FILE, b"kept")
    tenant.close("pvc-mend")
    place = 16 * MIB + 4096 + 100
    right = tenant.node.read(device, place, 1)
    tenant.node.write(device, bytes([right[0] ^ 1]), offset=place)
    tenant.opened("pvc-mend", device)
    assert tenant.node.read(_FILE) == b"kept"
    tenant.close("pvc-mend")
    assert tenant.node.read(device, place, 1) == right
    tenant.drop("pvc-mend")


def test_a_device_of_another_size_is_refused(tenant: Tenant) -> None:
    device, short = tenant.volume("pvc-size"), "/dev/vg0/short"
    tenant.opened("pvc-size", device)
    tenant.close("pvc-size")
    for size, said in ((40, "the device is too small"), (32, "a sealed volume always has more")):
        tenant.node.run(["lvcreate", *_LVM, "-n", "short", "-L", f"{size}m", "vg0"])
        argv = ["dd", f"if={device}", f"of={short}", "bs=1M", f"count={size}", "iflag=direct", "oflag=direct"]
        tenant.node.run([*argv, "conv=notrunc", "status=none"])
        assert said in tenant.refused("pvc-size", short, _TAMPERED)
        tenant.node.run(["lvremove", *_LVM, "vg0/short"])
    tenant.node.run(["lvextend", *_LVM, "-L", "+4m", "vg0/pvc-size"])
    assert "the device has grown" in tenant.refused("pvc-size", device, _REFUSED)
    tenant.drop("pvc-size")


def test_an_occupied_mount_point_is_refused_before_anything_is_formatted(tenant: Tenant) -> None:
    device, folder = tenant.volume("pvc-occupied"), _FILE.rpartition("/")[0]
    tenant.node.run(["mkdir", "-p", folder])
    tenant.node.run(["mount", "-t", "tmpfs", "occupier", folder])
    assert "is a mount of occupier already" in tenant.refused("pvc-occupied", device, _REFUSED)
    assert tenant.broker.record("pvc-occupied")["state"] == "allocated"
    tenant.node.run(["umount", folder])
    assert tenant.opened("pvc-occupied", device)["formatted_now"] is True
    tenant.close("pvc-occupied")
    tenant.drop("pvc-occupied")


def test_a_live_mapping_of_something_else_under_the_volumes_name_is_not_used(tenant: Tenant) -> None:
    device, other = tenant.volume("pvc-live"), tenant.volume("pvc-below")
    tenant.opened("pvc-live", device)
    tenant.close("pvc-live")
    name, elsewhere = mapping_name("pvc-live"), "/run/elsewhere"
    tenant.node.run(["dmsetup", "create", name, "--table", f"0 65536 linear {other} 0"], env=_NO_UDEV)
    tenant.node.run(["mkfs.ext4", "-q", f"/dev/mapper/{name}"])
    tenant.node.run(["mkdir", "-p", elsewhere])
    tenant.node.run(["mount", "-t", "ext4", f"/dev/mapper/{name}", elsewhere])
    before = tenant.digest(device)
    done = tenant.open("pvc-live", device)
    assert done.rc == _TAMPERED, done.stderr.decode()
    assert "it is not used" in done.stderr.decode()
    assert tenant.digest(device) == before
    assert tenant.node.exists(f"{elsewhere}/lost+found"), "what somebody else has mounted stays mounted"
    tenant.node.run(["umount", elsewhere])
    tenant.node.run(["dmsetup", "remove", name], env=_NO_UDEV)
    assert tenant.opened("pvc-live", device)["formatted_now"] is False
    tenant.close("pvc-live")
    tenant.drop("pvc-live", "pvc-below")


@pytest.mark.timeout(1200)
def test_a_guest_finds_a_formatted_volume_by_itself_and_never_guesses_a_blank_disk(tenant: Tenant) -> None:
    """In a guest VM, because only whole disks are looked at, and the node's volumes are none."""
    blank, device = tenant.volume("pvc-blank"), tenant.volume("pvc-find")
    before = tenant.digest(device)
    guest = Guest(tenant.node, tenant.measured).boot()
    try:
        guest.plug(blank)
        inside = guest.plug(device)
        done = guest.open("pvc-find", check=False)
        assert done.rc == _REFUSED, done.stderr.decode()
        assert "say which is its disk by --device" in done.stderr.decode()
        assert tenant.digest(device) == before
        assert json.loads(guest.open("pvc-find", inside).stdout)["formatted_now"] is True
        guest.write(_FILE, b"found again")
        again = json.loads(guest.open("pvc-find").stdout)
        assert (again["mounted_now"], again["device"]) == (False, inside)
        guest.sealed_local("close", "--volume", "pvc-find")
        found = json.loads(guest.open("pvc-find").stdout)
        assert (found["mounted_now"], found["formatted_now"], found["device"]) == (True, False, inside)
        assert guest.read(_FILE) == b"found again"
        guest.sealed_local("close", "--volume", "pvc-find")
    finally:
        guest.kill()
    tenant.drop("pvc-find", "pvc-blank")


def test_a_guest_killed_while_it_raises_the_generation_is_followed_by_one_that_has_the_data(tenant: Tenant) -> None:
    device, log = tenant.volume("pvc-raise"), f"{tenant.node.shared}/pvc-raise.log"
    tenant.opened("pvc-raise", device)
    tenant.node.write(_FILE, b"written before")
    tenant.close("pvc-raise")
    pid = tenant.node.spawn(tenant.argv("open", "pvc-raise", "--device", device), log)
    give_up = time.monotonic() + 60
    while b"the header is authentic" not in tenant.node.read(log):
        assert time.monotonic() < give_up, tenant.node.read(log).decode()
        time.sleep(0.02)
    tenant.node.kill(pid, signal.SIGKILL)
    tenant.node.wait(pid)
    give_up = time.monotonic() + 30
    while (done := tenant.open("pvc-raise", device)).rc != 0 and time.monotonic() < give_up:
        time.sleep(0.5)
    assert done.rc == 0, done.stderr.decode()
    opened = json.loads(done.stdout)
    assert opened["formatted_now"] is False
    assert opened["generation"] == tenant.broker.record("pvc-raise")["generation"] > 2
    assert tenant.node.read(_FILE) == b"written before"
    tenant.close("pvc-raise")
    tenant.drop("pvc-raise")


@pytest.mark.parametrize("when", ["the broker released", "formatting, once", "formatting, once+1"])
def test_a_guest_killed_while_it_formats_is_followed_by_one_that_gets_through(tenant: Tenant, when: str) -> None:
    name = f"pvc-dies-{len(when)}"
    device, log = tenant.volume(name), f"{tenant.node.shared}/{name}.log"
    pid = tenant.node.spawn(tenant.argv("open", name, "--device", device), log)
    line, _, later = when.partition("+")
    while line not in tenant.node.read(log).decode():
        time.sleep(0.02)
    time.sleep(float(later or 0))
    tenant.node.kill(pid, signal.SIGKILL)
    tenant.node.wait(pid)
    # Killed between the broker's grant and its own note of it, it leaves a lease that nobody can give back: 60 s.
    give_up = time.monotonic() + 90
    while (done := tenant.open(name, device)).rc != 0 and time.monotonic() < give_up:
        time.sleep(0.5)
    assert done.rc == 0, done.stderr.decode()
    tenant.node.write(_FILE, b"written")
    tenant.close(name)
    assert tenant.opened(name, device)["formatted_now"] is False
    assert tenant.node.read(_FILE) == b"written"
    tenant.close(name)
    tenant.drop(name)
