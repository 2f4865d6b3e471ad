"""A played kata-agent in a real guest gets a sealed volume by SecureMount, from the class's parameter to the last unmount.

The agent does what a stock one does: it starts `guest serve` at the hub's place, connects once, asks for all on that
connection, and unmounts without a word. The hub behind is played. Volume, dm-crypt, guest and its kernel are real.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import recipe_image
from lab.driver import MIB, Driver, mount_capability
from lab.kata import Rules
from lab.node import Node
from lab.sealed import POLICY_PATH, Broker, Guest, init_data

pytestmark = pytest.mark.lab

_PORT = 8454
_VOLUME = "pvc-serve"
_DESTROYS = "a-guest-without-serve-destroys-the-volume"
_SOCKET = "/run/confidential-containers/cdh.sock"
_STORAGE = "/run/kata-containers/sandbox/storage"
_CODE = "/run/sealed-local/python"
_SERVE = (
    "launch", _SOCKET, "/usr/bin/python3", "-m", "csi", "guest", "serve", "--policy", POLICY_PATH, "--cdh", "/run/hub",
)  # fmt: skip
_UNSEAL = ("call", "api.SealedSecretService", "UnsealSecret")
_UNAVAILABLE, _FAILED_PRECONDITION = 14, 9


@dataclass(frozen=True)
class World:
    """A sealed volume whose class asks for a secure mount, staged and published, and a guest that may open it."""

    node: Node
    broker: Broker
    measured: str
    target: str

    def recipe_guest(self) -> Guest:
        """Boot the image of deploy/guest-image."""
        return Guest(self.node, self.measured, memory_mib=1024).boot_recipe()

    def guest(self) -> Guest:
        """Boot a guest with a hub at hand."""
        guest = Guest(self.node, self.measured).boot()
        guest.write("/run/hub", f'#!/bin/sh\nexec /usr/bin/python3 {_CODE}/hub.pyc "$@"\n'.encode())
        guest.run(["/usr/bin/python3", "-c", "import os; os.chmod('/run/hub', 0o755)"])
        return guest


_IN_THE_LABS_IMAGE = ("/usr/bin/python3", f"{_CODE}/kata_agent.pyc")
_IN_THE_RECIPES = (recipe_image.PYTHON, f"{recipe_image.PLAYED}/kata_agent.py")


def agent(guest: Guest, *steps: tuple[Any, ...], program: tuple[str, ...] = _IN_THE_LABS_IMAGE) -> list[Any]:
    """One agent, with one connection, does these steps; answers what came of each."""
    done = guest.run([*program, json.dumps(steps)], timeout=600, check=False)
    assert done.rc == 0, done.stderr.decode() + guest.run(["/usr/bin/cat", "/run/serve.log"]).text
    return list(json.loads(done.stdout))


@pytest.fixture(scope="module")
def world(node: Node, driver: Driver) -> Iterator[World]:
    broker = Broker(node, _PORT)
    measured = init_data(broker).replace('id_pattern = "pvc-[a-z0-9-]+"', f'id = "{_VOLUME}"')
    measured = measured.replace('mount = "/data/volume"', f'mount = "{_STORAGE}/*"')
    broker.allow(measured)
    broker.start()
    made = driver.create(_VOLUME, 16 * MIB, mount_capability(), sealed="xts", secureMount=_DESTROYS).ok()["volume"]
    driver.stage(made, mount_capability()).ok()
    driver.publish(made, mount_capability()).ok()
    yield World(node, broker, measured, driver.target_path(_VOLUME, "pod-1"))
    driver.unpublish(_VOLUME).ok()
    driver.unstage(_VOLUME).ok()
    driver.deleted(_VOLUME)
    broker.stop()


@pytest.mark.timeout(1400)
def test_an_agent_gets_a_sealed_volume_and_the_hub_its_own_requests(world: World) -> None:
    guest = world.guest()
    given = guest.hand_over(world.target, Rules.GO)
    assert given["storage"]["driver_options"] == ["encryption_key=ephemeral", "create_filesystem"]
    device, place = given["device"], given["storage"]["mount_point"]
    came = agent(
        guest,
        _SERVE,
        ("begin", "api.ImagePullService", "Slowly", "/run/pulled"),
        (*_UNSEAL, "sealed.x"),
        ("mount", device, place),
        ("write", f"{place}/file", "by the first container"),
        ("call", "api.GetResourceService", "GetResource", "kbs:///default/a/b"),
        ("mount", device, "/run/kata-containers/image"),
        ("write", "/run/pulled", ""),
        ("finish",),
        ("unmount", place),
        ("closed",),
        # A second container, and the last parts that may die.
        ("mount", device, place),
        ("read", f"{place}/file"),
        ("kill", "hub.pyc"),
        (*_UNSEAL, "for a hub that was killed"),
        ("kill", "guest serve"),
        ("lost",),
        ("read", f"{place}/file"),
        _SERVE,
        (*_UNSEAL, "again"),
        ("mount", device, place),
        ("unmount", place),
        ("closed",),
    )
    done = [0, "", ""]
    assert came[0] == "connected"
    assert came[2] == [0, "", "sealed.x"]
    assert came[3] == done
    assert came[5] == [0, "", "kbs:///default/a/b"]
    refused = came[6]
    assert refused[0] == _FAILED_PRECONDITION
    assert "would format it" in refused[1]
    assert came[8] == [0, "", "/run/pulled"]
    assert came[9:11] == [0, True]
    assert came[11:13] == [done, "by the first container"]
    assert came[14][0] in (0, _UNAVAILABLE)  # it was asked before or after the front saw the end
    assert came[16] != "still connected"
    assert came[17:] == ["by the first container", "connected", [0, "", "again"], done, 0, True]
    formats = [line for line in world.broker.audit() if line.get("action") == "begin-format"]
    assert len(formats) <= 1
    guest.kill()


@pytest.mark.timeout(1400)
def test_the_guest_image_of_the_recipe_opens_a_sealed_volume_and_finds_the_data_again(world: World) -> None:
    guest = world.recipe_guest()
    given = guest.hand_over(world.target, Rules.GO)
    device, place = given["device"], given["storage"]["mount_point"]
    came = agent(
        guest,
        ("launch", _SOCKET, recipe_image.HUB),
        (*_UNSEAL, "by the stock program behind"),
        ("mount", device, place),
        ("write", f"{place}/of-the-recipe", "kept"),
        ("unmount", place),
        ("closed",),
        ("mount", device, place),
        ("read", f"{place}/of-the-recipe"),
        program=_IN_THE_RECIPES,
    )
    done = [0, "", ""]
    assert came == ["connected", [0, "", "by the stock program behind"], done, len("kept"), 0, True, done, "kept"]
    guest.kill()
