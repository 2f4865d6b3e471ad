"""Two guests on one device: the second is kept out while the first may write, and a first one that was frozen hears of it.

Two real guest VMs with the same LV, as a hostile or confused host plugs it.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.driver import MIB, Driver, mount_capability
from lab.node import Node
from lab.sealed import POLICY_PATH, Broker, Guest, init_data

pytestmark = pytest.mark.lab

_VOLUME, _OWN, _FILE = "pvc-two", "pvc-own", "/data/volume/file"
_BUSY, _LOST = 11, 13
_LEASE_SECONDS = 20
_TOLD_WITHIN_SECONDS = 120
"""A third of the lease after it was woken, and what an emulated processor takes for an exchange and for Python."""
# It writes, waits until it is told to end, and tries to write once more.
_WORKLOAD = f"""
import os, signal, time

def write(text):
    with open({_FILE!r}, "a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())

told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
write("first ")
while not told:
    time.sleep(0.1)
try:
    write("late")
    how = "written"
except OSError as error:
    how = error.strerror
open("/run/late", "w").write(how)
"""


@dataclass
class World:
    """A staged sealed volume, a broker, and two guests to which the volume is plugged."""

    node: Node
    driver: Driver
    broker: Broker
    guests: tuple[Guest, Guest]
    devices: tuple[str, str]


@pytest.fixture(scope="module")
def world(node: Node, driver: Driver) -> Iterator[World]:
    broker = Broker(node, port=8455)
    measured = init_data(broker)
    broker.allow(measured, lease_seconds=_LEASE_SECONDS)
    broker.start()
    for name in (_VOLUME, _OWN):
        volume = driver.create(name, 16 * MIB, mount_capability(), sealed="xts").ok()["volume"]
        driver.stage(volume, mount_capability()).ok()
    guests = Guest(node, measured).boot(), Guest(node, measured).boot()
    devices = guests[0].plug(f"/dev/vg0/{_VOLUME}"), guests[1].plug(f"/dev/vg0/{_VOLUME}")
    try:
        yield World(node, driver, broker, guests, devices)
    finally:
        for guest in guests:
            guest.kill()
        broker.stop()
    for name in (_VOLUME, _OWN):
        driver.unstage(name).ok()
        driver.deleted(name)


def started(guest: Guest, device: str) -> None:
    """`run` with the workload, in the background; returns when the workload is at work."""
    guest.write("/run/workload.py", _WORKLOAD.encode())
    words = (
        f"guest run --policy {POLICY_PATH} --volume {_VOLUME} --device {device} -- /usr/bin/python3 /run/workload.py"
    )
    script = f"/usr/bin/python3 -m csi {words} > /run/said 2>&1; echo $? > /run/status"
    guest.run(["/bin/sh", "-c", f"rm -f /run/status /run/late; ({script}) > /dev/null 2>&1 &"])
    waited_for(guest, f"grep -q first {_FILE}", 120)


def waited_for(guest: Guest, what: str, seconds: float) -> float:
    began = time.monotonic()
    while guest.run(["/bin/sh", "-c", what], check=False).rc != 0:
        assert time.monotonic() < began + seconds, guest.run(["/bin/sh", "-c", "cat /run/said; dmesg | tail"]).text
        time.sleep(0.5)
    return time.monotonic() - began


@pytest.mark.timeout(900)
def test_the_second_guest_is_kept_out_until_the_first_has_closed(world: World) -> None:
    (first, second), (device, other) = world.guests, world.devices
    assert json.loads(first.open(_VOLUME, device).stdout)["formatted_now"] is True
    first.write(_FILE, b"by the first")
    # Longer than a lease: it is renewed.
    ends = time.monotonic() + 1.2 * _LEASE_SECONDS
    while time.monotonic() < ends:
        done = second.open(_VOLUME, other, check=False)
        assert done.rc == _BUSY, done.stderr.decode()
        assert "is open in another guest" in done.stderr.decode()
    assert "lease renewed" in first.sealed_local("status").text
    first.sealed_local("close", "--volume", _VOLUME)
    assert json.loads(second.open(_VOLUME, other).stdout)["formatted_now"] is False
    assert second.read(_FILE) == b"by the first"
    second.sealed_local("close", "--volume", _VOLUME)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("clock_stops", [True, False], ids=["its clock stood", "its clock went on"])
def test_a_guest_that_was_frozen_past_its_lease_writes_nothing_more_and_says_so(
    world: World, clock_stops: bool
) -> None:
    (first, second), (device, other) = world.guests, world.devices
    started(first, device)
    first.freeze(clock_stops=clock_stops)
    # As soon as the broker allows it.
    said = second.open(_VOLUME, other, "--wait-for-lease", str(6 * _LEASE_SECONDS)).stderr.decode()
    assert "is open in another guest" in said
    second.write(_FILE, b"by the second")
    first.thaw()
    took = waited_for(first, "test -s /run/status", _TOLD_WITHIN_SECONDS)
    said = first.read("/run/said").decode()
    print(f"told {took:.1f} s after it was woken: {said.splitlines()[-1]}")
    assert int(first.read("/run/status")) == _LOST, said
    assert "Nothing more is written to the disk" in said
    assert first.read("/run/late") in (b"Input/output error", b"Read-only file system"), "and the workload was told"
    assert first.run(["/usr/sbin/dmsetup", "ls"]).text.strip() == "No devices found"
    assert second.read(_FILE) == b"by the second"
    second.sealed_local("close", "--volume", _VOLUME)
    second.open(_VOLUME, other)
    assert second.read(_FILE) == b"by the second"
    second.sealed_local("close", "--volume", _VOLUME)


@pytest.mark.timeout(900)
def test_a_silent_broker_ends_all_writing_in_order_and_loses_nothing(world: World) -> None:
    """A command under `run` is told while there is time; what was opened without one becomes read-only."""
    (first, second), (device, _) = world.guests, world.devices
    own = second.plug(f"/dev/vg0/{_OWN}")
    second.open(_OWN, own)
    second.write(_FILE, b"written before")
    started(first, device)
    world.broker.stop()
    waited_for(first, "test -s /run/status", 2 * _TOLD_WITHIN_SECONDS)
    said = first.read("/run/said").decode()
    assert int(first.read("/run/status")) == _LOST, said
    assert "the broker can't be reached, and the lease ends soon" in said
    assert first.read("/run/late") == b"written", "it was told while there was time to write"
    waited_for(second, "grep -q ' /data/volume ext4 ro,' /proc/mounts", 2 * _TOLD_WITHIN_SECONDS)
    told = second.sealed_local("status").text
    assert "LEASE LOST: the broker could not be reached, so the volume is read-only" in told
    assert second.read(_FILE) == b"written before", "it can be read"
    assert second.run(["/bin/sh", "-c", f"echo late >> {_FILE}"], check=False).rc != 0
    world.broker.start()
    again = second.open(_OWN, own, check=False)
    assert (again.rc, "lost its lease" in again.stderr.decode()) == (_LOST, True)
    second.sealed_local("close", "--volume", _OWN)
    world.broker.end_lease(_VOLUME)
    first.open(_VOLUME, device)
    assert first.read(_FILE).endswith(b"first late")
    first.sealed_local("close", "--volume", _VOLUME)
