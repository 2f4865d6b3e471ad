"""What a hostile host tries with a sealed volume, on real LVM and real dm-crypt: refused with the right status, unchanged.

The guest's program runs in the node itself here, which shows the same kernel and the same tools without booting a virtual
machine for every attack; `test_story` proves the way through a real guest.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.lab.driver import MIB, Driver, mount_capability
from tests.lab.node import Node, Result
from tests.lab.sealed import Broker, init_data

pytestmark = pytest.mark.lab

_CAPABILITY = mount_capability()
_POLICY = "/run/tenant/initdata.toml"
_FILE = "/data/volume/file"
_TAMPERED, _BLANKED, _ROLLED_BACK, _FOREIGN = 3, 4, 5, 7


@dataclass(frozen=True)
class Tenant:
    """A broker, and the guest's program with a policy that the broker accepts."""

    node: Node
    driver: Driver
    broker: Broker

    def volume(self, name: str, size: int = 16 * MIB) -> str:
        """A staged sealed volume; answers its device."""
        volume = self.driver.create(name, size, _CAPABILITY, sealed="xts").ok()["volume"]
        self.driver.stage(volume, _CAPABILITY).ok()
        return f"/dev/vg0/{name}"

    def drop(self, *names: str) -> None:
        """Unstage and delete volumes."""
        for name in names:
            self.driver.unstage(name).ok()
            self.driver.delete(name).ok()

    def argv(self, verb: str, volume: str, *more: str) -> list[str]:
        """A command line of `sealed-local guest`."""
        return [sys.executable, "-m", "csi", "guest", verb, "--policy", _POLICY, "--volume", volume, *more]

    def open(self, volume: str, device: str) -> Result:
        """Try to unlock."""
        return self.node.run(self.argv("open", volume, "--device", device, "--json"), check=False)

    def opened(self, volume: str, device: str) -> dict[str, object]:
        """Unlock, which must succeed."""
        done = self.open(volume, device)
        assert done.rc == 0, done.stderr.decode()
        return dict(json.loads(done.stdout))

    def close(self, volume: str) -> None:
        """Close."""
        self.node.run([sys.executable, "-m", "csi", "guest", "close", "--volume", volume])

    def refused(self, volume: str, device: str, status: int) -> str:
        """Try to unlock, which must fail with this status and change no byte; answers what was said."""
        before = self.digest(device)
        done = self.open(volume, device)
        said = done.stderr.decode()
        assert done.rc == status, f"status {done.rc}: {said}"
        assert self.digest(device) == before, "a refused volume was written to"
        assert "sealed-" not in self.node.run(["dmsetup", "ls"]).text
        return said

    def digest(self, device: str) -> str:
        """Of all that lies on a device."""
        return self.node.run(["sh", "-c", f"dd if={device} bs=1M iflag=direct status=none | sha256sum"]).text

    def copy(self, source: str, target: str) -> None:
        """What a host does for a snapshot or its replay."""
        # Past the page cache of the device, as a disk that is changed behind the node's back.
        flag = "iflag" if source.startswith("/dev/") else "oflag"
        self.node.run(["dd", f"if={source}", f"of={target}", "bs=1M", f"{flag}=direct", "conv=notrunc", "status=none"])


@pytest.fixture(scope="module")
def tenant(node: Node, driver: Driver) -> Iterator[Tenant]:
    broker = Broker(node, port=8450)
    measured = init_data(broker, host="127.0.0.1")
    broker.allow(measured)
    broker.start()
    node.run(["mkdir", "-p", "/run/tenant"])
    node.write(_POLICY, measured.encode())
    yield Tenant(node, driver, broker)
    broker.stop()


def test_an_older_image_of_the_volume_is_refused_and_the_newest_still_opens(tenant: Tenant) -> None:
    device, old, new = tenant.volume("pvc-replay"), "/tmp/old.img", "/tmp/new.img"
    assert tenant.opened("pvc-replay", device)["formatted_now"] is True
    tenant.node.write(_FILE, b"first")
    assert tenant.opened("pvc-replay", device)["formatted_now"] is False, "an open volume can be opened again"
    tenant.close("pvc-replay")
    tenant.copy(device, old)
    assert tenant.opened("pvc-replay", device)["generation"] == 2
    tenant.node.write(_FILE, b"second")
    tenant.close("pvc-replay")
    tenant.copy(device, new)
    tenant.copy(old, device)
    assert "generation 1" in tenant.refused("pvc-replay", device, _ROLLED_BACK)
    tenant.copy(new, device)
    assert tenant.opened("pvc-replay", device)["freshness"] == "verified"
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
    give_up = time.monotonic() + 30
    while (done := tenant.open(name, device)).rc != 0 and time.monotonic() < give_up:
        time.sleep(0.5)
    assert done.rc == 0, done.stderr.decode()
    tenant.node.write(_FILE, b"written")
    tenant.close(name)
    assert tenant.opened(name, device)["formatted_now"] is False
    assert tenant.node.read(_FILE) == b"written"
    tenant.close(name)
    tenant.drop(name)
