"""A tenant whose broker has resources and no register, on real dm-crypt: format, write, reopen, refusals."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.driver import MIB, Driver
from lab.node import Node
from lab.sealed import Broker
from tests.lab.tenant import POLICY_FILE, Tenant

pytestmark = pytest.mark.lab

_PORT = 8458
_FILE = "/data/volume/file"
_TAMPERED, _BLANKED, _FOREIGN, _NO_ROOT, _REFUSED = 3, 4, 7, 8, 10
_GUEST = """
version = 1
[broker]
kind = "trustee"
root = "kbs:///default/sealed-local/{root}"
url = "https://127.0.0.1:{port}"
ca = '''{ca}'''
allow_sample = true
[[volume]]
name = "data"
id_pattern = "pvc-[a-z]+"
mount = "/data/volume"
format = "{format}"
without_leases = true
"""
_BROKER = """
version = 1
[tee.sample]
allow = true
[[workload]]
name = "lab"
tee = ["sample"]
launch_digests = ["abcde"]
init_data = ["none"]
volumes = []
resources = ["default/sealed-local/*"]
"""


@dataclass(frozen=True)
class Without:
    """A tenant that uses a broker's resources alone. Its policy lets the guest have no volume of the register."""

    tenant: Tenant

    def says(self, root: str = "root", *, rule: str = "once") -> None:
        """The guest's policy from now on."""
        broker = self.tenant.broker
        text = _GUEST.format(port=broker.port, ca=broker.ca, root=root, format=rule)
        self.tenant.node.write(POLICY_FILE, text.encode())


@pytest.fixture(scope="module")
def without(node: Node, driver: Driver) -> Iterator[Without]:
    broker = Broker(node, _PORT)
    node.write(f"{broker.folder}/policy.toml", _BROKER.encode())
    broker.start()
    for name, content in {"root": bytes(range(32)), "rotated": b"r" * 32, "short": b"s" * 31}.items():
        node.write(f"/run/{name}", content)
        broker.operate("resource", "put", f"default/sealed-local/{name}", f"/run/{name}")
    node.run(["mkdir", "-p", "/run/tenant"])
    yield Without(Tenant(node, driver, broker, measured=""))
    broker.stop()


def test_a_volume_lives_without_a_register_and_opens_under_no_other_root(without: Without) -> None:
    tenant = without.tenant
    device, blank = tenant.volume("pvc-mine"), tenant.volume("pvc-blank")
    without.says()
    first = tenant.opened("pvc-mine", device)
    assert (first["formatted_now"], first["freshness"]) == (True, "unverified")
    tenant.node.write(_FILE, b"mine")
    status = json.loads(tenant.node.run([sys.executable, "-m", "csi", "guest", "status", "--json"]).stdout)
    assert [(volume["freshness"], volume["lease"]) for volume in status] == [("unverified", "")]
    tenant.close("pvc-mine")

    without.says("rotated")
    assert "the root was replaced or is another one" in tenant.refused("pvc-mine", device, _TAMPERED)
    without.says(rule="never")
    assert tenant.opened("pvc-mine", device)["generation"] == 3
    assert tenant.node.read(_FILE) == b"mine"
    tenant.close("pvc-mine")

    without.says("short")
    assert "31 bytes" in tenant.refused("pvc-mine", device, _REFUSED)
    without.says("absent")
    assert "broker.root is kbs:///default/sealed-local/absent" in tenant.refused("pvc-mine", device, _NO_ROOT)

    without.says(rule="never")
    assert "shows nothing" in tenant.refused("pvc-blank", blank, _BLANKED)
    without.says()
    tenant.node.run(["mkfs.ext4", "-q", blank])
    assert "not blank" in tenant.refused("pvc-blank", blank, _FOREIGN)

    _change(tenant, device, 4096)
    said = tenant.node.run([*tenant.argv("inspect", "pvc-mine"), "--device", device]).text
    assert "header copy A is NOT the one" in said
    _change(tenant, device, 16 * MIB + 4096)
    assert "neither header copy" in tenant.refused("pvc-mine", device, _TAMPERED)
    tenant.drop("pvc-mine", "pvc-blank")


def _change(tenant: Tenant, device: str, offset: int) -> None:
    """One byte of a device."""
    tenant.node.run(["sh", "-c", f"printf X | dd of={device} bs=1 seek={offset} conv=notrunc,fsync status=none"])
