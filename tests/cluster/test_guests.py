"""Direct and sealed claims in a real cluster: the kubelet drives the driver, and a real guest VM gets the volume.

A part of the lab plays Kata: it reads the record below the pod's own target path and plugs the device into the guest.
"""

import json
from collections.abc import Iterator

import pytest

from lab import guest_image
from lab.cluster import parts
from lab.cluster.cluster import GROUP, Cluster
from lab.sealed import Broker, Guest, init_data

from . import objects
from .objects import CLAIMS, PODS, of_claim, pod

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

MARKER = "what only the tenant may read"
MOUNT = "/data/volume"
NOT_RELEASED = 6
"""Status of a guest whose broker keeps the key."""


@pytest.fixture
def broker(cluster: Cluster) -> Iterator[Broker]:
    """The tenant's broker, which allows one measurement."""
    guest_image.build()
    made = Broker(cluster.node)
    made.allow(init_data(made))
    made.start()
    yield made
    made.stop()


def _start(cluster: Cluster, name: str) -> str:
    """Start a pod with the claim of its name; returns the path at which its runtime finds the volume."""
    cluster.create(PODS, pod(name, "sleep 100000", of_claim(name)))
    running = cluster.wait(f"{PODS}/{name}", ["status", "phase"], "Running", seconds=600)
    volume = objects.volume_of(cluster, f"{CLAIMS}/{name}")
    return f"{parts.KUBELET_ROOT}/pods/{running['metadata']['uid']}/volumes/kubernetes.io~csi/{volume}/mount"


def _end(cluster: Cluster, name: str, volume: str) -> None:
    cluster.delete(f"{PODS}/{name}")
    cluster.delete(f"{CLAIMS}/{name}")
    cluster.gone(f"{objects.VOLUMES}/{volume}", seconds=600)
    assert volume not in objects.volumes(cluster)


def test_a_sealed_claim_is_opened_by_attested_guests_alone_and_outlives_its_pod(
    cluster: Cluster, broker: Broker
) -> None:
    wanted = objects.claim("sealed", storage_class="local-sealed", modes=["ReadWriteOncePod"])
    objects.create_claim(cluster, wanted)
    target = _start(cluster, "sealed")
    volume = objects.volume_of(cluster, f"{CLAIMS}/sealed")
    other = Guest(cluster.node, init_data(broker, note="not what was allowed")).boot()
    assert other.open(volume, other.hand_over(target)["device"], check=False).rc == NOT_RELEASED
    other.kill()
    guest = Guest(cluster.node, init_data(broker)).boot()
    opened = guest.open(volume, guest.hand_over(target)["device"])
    assert json.loads(opened.stdout)["formatted_now"] is True
    guest.write(f"{MOUNT}/file", MARKER.encode())
    raw = cluster.node.call("lab.story:look_at_raw", device=f"/dev/{GROUP}/{volume}", marker=MARKER)
    assert (raw["marker"], raw["written_blocks"] > 100, raw["least_bits"] > 7.99) == (False, True, True)
    guest.sealed_local("close", "--volume", volume)
    guest.kill()
    cluster.delete(f"{PODS}/sealed")

    target = _start(cluster, "sealed")
    guest = Guest(cluster.node, init_data(broker)).boot()
    opened = guest.open(volume, guest.hand_over(target)["device"])
    assert json.loads(opened.stdout)["formatted_now"] is False
    assert guest.read(f"{MOUNT}/file") == MARKER.encode()
    guest.kill()
    _end(cluster, "sealed", volume)


def test_a_direct_claim_is_mounted_in_its_guest_and_outlives_its_pod(cluster: Cluster) -> None:
    guest_image.build()
    objects.create_claim(cluster, objects.claim("handed", storage_class="local-direct", modes=["ReadWriteOncePod"]))
    mount = ["/usr/bin/mount", "--mkdir", "-t", "ext4"]
    for life in range(2):
        target = _start(cluster, "handed")
        guest = Guest(cluster.node, "").boot()
        handed = guest.hand_over(target)
        assert handed["storage"]["fstype"] == "ext4"
        guest.run([*mount, handed["device"], MOUNT])
        if life == 0:
            guest.write(f"{MOUNT}/file", MARKER.encode())
        assert guest.read(f"{MOUNT}/file") == MARKER.encode()
        guest.run(["/usr/bin/umount", MOUNT])
        guest.kill()
        volume = objects.volume_of(cluster, f"{CLAIMS}/handed")
        if life == 0:
            cluster.delete(f"{PODS}/handed")
    _end(cluster, "handed", volume)
