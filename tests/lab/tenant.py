"""A tenant in the lab's node: a broker, sealed volumes, and the guest's program.

The guest's program runs in the node itself here, which shows the same kernel and the same tools without booting a virtual
machine for every case; `test_story` proves the way through a real guest.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.driver import MIB, Driver, mount_capability
from lab.node import Node, Result
from lab.sealed import Broker, init_data

POLICY_FILE = "/run/tenant/initdata.toml"
_CAPABILITY = mount_capability()


@dataclass(frozen=True)
class Tenant:
    """A broker, and the guest's program with a policy that the broker accepts."""

    node: Node
    driver: Driver
    broker: Broker
    measured: str
    """The init-data of a guest VM of this tenant; the program in the node has its own, with another address."""

    def volume(self, name: str, size: int = 16 * MIB) -> str:
        """A staged sealed volume; answers its device."""
        volume = self.driver.create(name, size, _CAPABILITY, sealed="xts").ok()["volume"]
        self.driver.stage(volume, _CAPABILITY).ok()
        return f"/dev/vg0/{name}"

    def drop(self, *names: str) -> None:
        """Unstage and delete volumes."""
        for name in names:
            self.driver.unstage(name).ok()
            self.driver.deleted(name)

    def argv(self, verb: str, volume: str, *more: str) -> list[str]:
        """A command line of `sealed-local guest`."""
        return [sys.executable, "-m", "csi", "guest", verb, "--policy", POLICY_FILE, "--volume", volume, *more]

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


@contextmanager
def running_tenant(node: Node, driver: Driver, port: int) -> Iterator[Tenant]:
    """With a broker of its own at this port."""
    broker = Broker(node, port=port)
    measured = init_data(broker, host="127.0.0.1")
    in_a_vm = init_data(broker)
    broker.allow(measured, in_a_vm)
    broker.start()
    node.run(["mkdir", "-p", "/run/tenant"])
    node.write(POLICY_FILE, measured.encode())
    yield Tenant(node, driver, broker, in_a_vm)
    broker.stop()
