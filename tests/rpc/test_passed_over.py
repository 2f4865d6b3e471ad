"""A running broker whose register was brought under another master key meanwhile tells guests and supervisors so."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from csi.core.errors import Unavailable
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.kbs.messages import ResourcePath
from tests.fakes.broker import INIT_DATA, RunningBroker, running_broker
from tests.fakes.rust_shaped_client import KbsError, RustShapedClient
from tests.unit.test_broker_rotation import rotate_behind

PATH = "default/test/secret"


@pytest.fixture(params=["sqlite", "postgresql"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningBroker]:
    conninfo = None if request.param == "sqlite" else request.getfixturevalue("postgres").register()
    with running_broker(tmp_path / "broker", conninfo=conninfo) as running:
        running.broker.put_resource("operator", ResourcePath.parse(PATH), Secret(b"value"))
        yield running


def status_of(broker: RunningBroker, page: str) -> int:
    context = ssl.create_default_context(cadata=broker.directory.certificate("ca").read_text())
    try:
        with urllib.request.urlopen(f"{broker.url}{page}", context=context, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_is_taken_out_of_service_and_not_killed(broker: RunningBroker, caplog: pytest.LogCaptureFixture) -> None:
    assert status_of(broker, "/readyz") == 200
    rotate_behind(broker.directory)
    assert status_of(broker, "/readyz") == 503
    assert any("master key was rotated" in str(getattr(record, "why", "")) for record in caplog.records)
    assert status_of(broker, "/healthz") == 200


def test_a_guest_is_told_to_try_again(broker: RunningBroker) -> None:
    """Not that its volume is tampered with, and not that it is refused: another broker, or this one anew, has it."""
    guest, new = broker.guest(), broker.guest()
    guest.open("pvc-1", Profile.XTS)
    rotate_behind(broker.directory)
    for asking in (guest, new):
        with pytest.raises(Unavailable, match="HTTP status 503"):
            asking.open("pvc-1", Profile.XTS)


def test_a_stock_guest_that_reads_a_resource_hears_it(broker: RunningBroker) -> None:
    authority = broker.directory.certificate("ca").read_text()
    with closing(RustShapedClient(broker.url, authority, init_data=INIT_DATA)) as client:
        assert client.get(PATH) == b"value"
        rotate_behind(broker.directory)
        with pytest.raises(KbsError, match="master key was rotated"):
            client.get(PATH)
