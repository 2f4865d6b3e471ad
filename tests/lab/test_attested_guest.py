"""A confidential guest VM that attests by the kernel's files: TDX and SEV-SNP from the first format to the last refusal.

The chips are made up, and the broker is told to trust their makers; everything from the guest's command on is what runs
on a real machine. The node's volume, dm-crypt, the VM and its kernel are real.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.driver import MIB, Driver, mount_capability
from lab.node import Node
from lab.sealed import POLICY_PATH, Broker, Guest, init_data
from tests.fakes import amd, intel
from tests.fakes.tee import digest

pytestmark = pytest.mark.lab

_PORT = 8453
_FILE = "/data/volume/file"
_REFUSED, _NOT_RELEASED = 10, 6
_CHIP = amd.Platform()
_OLD = amd.Platform(certified_tcb=dataclasses.replace(amd.TCB, snp=amd.TCB.snp - 1))
_REGISTERS = {"mrtd": 136, "rtmr0": 328, "rtmr1": 376, "rtmr2": 424}
_BROKER_POLICY = """
version = 1
allocate = "first-use"
[tee.sample]
allow = true
[tee.snp.minimum_tcb.genoa]
bootloader = {tcb.bootloader}
tee = {tcb.tee}
snp = {tcb.snp}
microcode = {tcb.microcode}
[[image]]
name = "snp"
tee = "snp"
measurement = ["{measurement}"]
[[image]]
name = "tdx"
tee = "tdx"
mrtd = ["{mrtd}"]
rtmr0 = ["{rtmr0}"]
rtmr1 = ["{rtmr1}"]
rtmr2 = ["{rtmr2}"]
[[workload]]
name = "lab"
tee = ["tdx", "snp"]
images = ["snp", "tdx"]
init_data = ["{digest}"]
volumes = ["pvc-*"]
"""


@dataclasses.dataclass(frozen=True)
class World:
    """A node with the driver, and a broker that trusts the makers of these chips."""

    node: Node
    driver: Driver
    broker: Broker
    options: tuple[str, ...]
    measured: str

    def guest(self, kind: str) -> Guest:
        """Boot a guest that was started as it should be."""
        return Guest(self.node, self.measured, chip=_chip(kind, self.measured)).boot()

    def tcb(self, status: str) -> None:
        """Import collateral that says this of the TDX platform."""
        collateral = intel.collateral_json(now=dt.datetime.now(dt.UTC), status=status)
        self.broker.collateral(collateral, self.options[-1])

    def refused(self, guest: Guest, device: str, inside: str, status: int, policy: str = POLICY_PATH) -> str:
        """Try to open the volume; answers what the guest says."""
        arguments = ["open", "--policy", policy, "--volume", device.rpartition("/")[2], "--device", inside]
        done = guest.sealed_local(*arguments, check=False)
        said = done.stderr.decode()
        assert done.rc == status, f"status {done.rc}: {said}"
        assert "sealed-" not in guest.run(["/usr/sbin/dmsetup", "ls"]).text
        return said


@pytest.fixture(scope="module")
def world(node: Node, driver: Driver) -> Iterator[World]:
    broker = Broker(node, _PORT)
    measured = init_data(broker)
    registers = {name: intel.td_report()[48 + at : 96 + at].hex() for name, at in _REGISTERS.items()}
    values = {"tcb": amd.TCB, "measurement": "56" * 48, "digest": broker.digest(measured), **registers}
    node.write(f"{broker.folder}/policy.toml", _BROKER_POLICY.format(**values).encode())
    snp, tdx = f"{broker.folder}/amd.pem", f"{broker.folder}/intel.pem"
    node.write(snp, _CHIP.authorities())
    node.write(tdx, intel.pem(intel.root()).encode())
    options = ("--snp-test-authority", snp, "--tdx-test-authority", tdx)
    made = World(node, driver, broker, options, measured)
    made.tcb("UpToDate")
    broker.start(*options)
    yield made
    broker.stop()


def _chip(kind: str, text: str, platform: amd.Platform = _CHIP, **changes: Any) -> dict[str, object]:
    """What a guest of this kind finds that was started with this init-data."""
    if kind == "snp":
        return platform.chip(**({"at_0xc0": digest(text, 32)} | changes))
    return intel.chip(**({"mrconfigid": digest(text, 48)} | changes))


@dataclasses.dataclass(frozen=True)
class Cheat:
    """What a host may start, and the text that its guest ends with."""

    text: str
    chip: dict[str, object]
    said: str


def _cheats(world: World, kind: str) -> dict[str, Cheat]:
    right, other = world.measured, init_data(world.broker, note="other")
    if kind == "tdx":
        return {
            "wrong RTMR": Cheat(right, _chip(kind, right, rtmr2=b"\x01" * 48), "image 'tdx': rtmr2 does not list 0101"),
            "debug bit": Cheat(right, _chip(kind, right, attributes=b"\x01"), "the TD is in debug mode"),
            "other MRCONFIGID": Cheat(other, _chip(kind, other), "init_data does not list sha384:"),
        }
    return {
        "wrong measurement": Cheat(right, _chip(kind, right, at_0x90=b"\x57" * 48), "measurement does not list 5757"),
        "debug bit": Cheat(right, _chip(kind, right, at_0x8=0x30000 | 1 << 19), "debug is not allowed"),
        "old TCB": Cheat(right, _chip(kind, right, _OLD), "has snp 21, not 22"),
        "wrong HOSTDATA": Cheat(other, _chip(kind, other), "init_data does not list sha384:"),
    }


@pytest.mark.timeout(1400)
@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_the_measured_guest_formats_writes_and_reopens_and_every_other_is_refused(world: World, kind: str) -> None:
    volume = f"pvc-{kind}"
    made = world.driver.create(volume, 16 * MIB, mount_capability(), sealed="xts").ok()["volume"]
    world.driver.stage(made, mount_capability()).ok()
    device = f"/dev/vg0/{volume}"
    first = world.guest(kind)
    assert "6.12" in first.run(["/usr/bin/cat", "/proc/version"]).text
    assert json.loads(first.open(volume, first.plug(device)).stdout)["formatted_now"] is True
    first.write(_FILE, b"by an attested guest")
    first.sealed_local("close", "--volume", volume)
    first.kill()
    second = world.guest(kind)
    inside = second.plug(device)
    for what, cheat in _cheats(world, kind).items():
        second.become(cheat.text, cheat.chip)
        assert cheat.said in world.refused(second, device, inside, _NOT_RELEASED), what
    second.become(world.measured, _chip(kind, world.measured))
    if kind == "tdx":
        world.tcb("OutOfDate")
        said = world.refused(second, device, inside, _NOT_RELEASED)
        assert "tcb_status does not list OutOfDate" in said
        world.tcb("UpToDate")
    second.write("/run/sealed-local/replaced.toml", init_data(world.broker, note="replaced").encode())
    register = {"tdx": "MRCONFIGID", "snp": "HOSTDATA"}[kind]
    said = world.refused(second, device, inside, _REFUSED, "/run/sealed-local/replaced.toml")
    assert f"not the one that this guest was started with: {register} holds" in said
    opened = json.loads(second.open(volume, inside).stdout)
    assert (opened["formatted_now"], second.read(_FILE)) == (False, b"by an attested guest")
    second.sealed_local("close", "--volume", volume)
    second.kill()
    world.driver.unstage(volume).ok()
    world.driver.deleted(volume)


@pytest.mark.timeout(600)
def test_without_the_development_options_the_broker_believes_none_of_it(world: World) -> None:
    world.broker.stop()
    world.broker.start()
    try:
        guest = world.guest("snp")
        done = guest.sealed_local(
            "recover-key", "--policy", POLICY_PATH, "--volume", "pvc-x", "--to", "/tmp/k", check=False
        )
        assert done.rc == _NOT_RELEASED
        assert "not signed by an authority of AMD's" in done.stderr.decode()
        guest.kill()
    finally:
        world.broker.stop()
        world.broker.start(*world.options)
