"""`sealed-local guest open`, whole, on a machine in memory and against a real broker: how often it asks for the secret."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.core import process
from csi.guest import main
from csi.guest.status import Notes
from csi.guest.verbs import Guest
from csi.kbs import init_data
from tests.fakes.broker import INIT_DATA, POLICY, RunningBroker, running_broker
from tests.fakes.sealed_guest import DEVICE, VOLUME, Machine, small_format

GUEST_POLICY = """
version = 1
[broker]
url = "{url}"
allow_sample = true
ca = '''{ca}'''
[[volume]]
name = "data"
id = "{volume}"
mount = "{mount}"
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    policy = POLICY.replace(init_data.parse(INIT_DATA).digest, "any")
    with running_broker(tmp_path / "broker", policy) as running:
        yield running


def test_an_open_without_a_device_releases_the_secret_once(
    broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "harden", lambda: None)
    mount, policy = tmp_path / "data", tmp_path / "policy.toml"
    mount.mkdir()
    settings = broker.settings()
    policy.write_text(GUEST_POLICY.format(url=settings.url, ca=settings.ca_pem, volume=VOLUME, mount=mount))
    guest = Guest(machine=Machine(str(mount)), notes=Notes(folder=tmp_path / "run"))
    with small_format():

        def run(*arguments: str) -> int:
            return main.main([*arguments, "--volume", VOLUME], guest=guest)

        assert run("open", "--policy", str(policy), "--device", DEVICE) == 0
        assert run("close") == 0
        before = len(broker.broker.store.audit_entries())
        assert run("open", "--policy", str(policy)) == 0
    told = [entry.event.action for entry in broker.broker.store.audit_entries()[before:]]
    assert told == ["attested", "secret-released", "open-begun", "opened"]
