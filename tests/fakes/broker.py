"""A real broker on loopback over real TLS, in a thread of the test, and guests for it."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from csi.broker import leases, server
from csi.broker.app import Admin, BrokerApp
from csi.broker.audit import Event
from csi.broker.directory import BrokerDirectory, initialise
from csi.broker.service import Broker
from csi.core.secret import Secret
from csi.guest.attest.kbs_client import BrokerRegister
from csi.guest.broker_settings import BrokerSettings
from csi.kbs import init_data
from csi.kbs.register import VolumeRecord

INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n\n[data]\n"guest.toml" = "volumes allowed"\n'
OTHER_INIT_DATA = INIT_DATA.replace("volumes allowed", "something else")

POLICY = f"""
version = 1

[tee.sample]
allow = true

[[workload]]
name = "spark"
tee = ["sample"]
launch_digests = ["abcde"]
init_data = ["{init_data.parse(INIT_DATA).digest}"]
volumes = ["pvc-*"]
resources = ["default/test/*"]
"""


@dataclass(slots=True, kw_only=True)
class RunningBroker:
    """A broker that answers at `url`."""

    directory: BrokerDirectory
    broker: Broker
    url: str
    guests: list[BrokerRegister] = field(default_factory=list)

    def settings(
        self, *, init_data: str = INIT_DATA, allow_sample: bool = True, url: str | None = None
    ) -> BrokerSettings:
        """What a guest of this broker is configured with."""
        return BrokerSettings(
            url=url or self.url,
            ca_pem=self.directory.certificate("ca").read_text(),
            init_data=init_data,
            allow_sample=allow_sample,
            timeout_seconds=5.0,
        )

    def guest(
        self, settings: BrokerSettings | None = None, *, init_data: str = INIT_DATA, **more: Any
    ) -> BrokerRegister:
        """A guest with its own session; its connection is closed with the broker."""
        guest = BrokerRegister(settings or self.settings(init_data=init_data), **({"sleep": _no_sleep} | more))
        self.guests.append(guest)
        return guest


def leased(guest: BrokerRegister, record: VolumeRecord, *, instead: str | None = None) -> VolumeRecord:
    """The record with its lease in the guest's hands, as every change needs it."""
    return guest.take_lease(record, os.urandom(32).hex(), instead=instead)


def without_lease(running: RunningBroker, volume_id: str) -> VolumeRecord:
    """The record after its guest has died and an operator has ended its lease."""
    event = Event(actor="operator", action="lease-ended", subject=volume_id)
    return running.broker.store.change(volume_id, leases.end, event)


def make_directory(root: Path, policy: str = POLICY, conninfo: Secret | None = None) -> BrokerDirectory:
    """What `broker init` makes, with a policy."""
    directory = BrokerDirectory(root)
    initialise(directory, ["localhost", "127.0.0.1"], {}, conninfo)
    directory.policy.write_text(policy)
    return directory


@contextmanager
def running_broker(root: Path, policy: str = POLICY, conninfo: Secret | None = None) -> Iterator[RunningBroker]:
    """Make and run a broker; stop it at the end of the block."""
    directory = make_directory(root, policy, conninfo)
    broker = directory.load_broker({})
    application = BrokerApp(broker, Admin(directory.load_admin_token()))
    listener = server.listen(("127.0.0.1", 0))
    http = uvicorn.Server(server.configure(directory, application.asgi))
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not http.started:
        time.sleep(0.005)
    url = f"https://127.0.0.1:{listener.getsockname()[1]}"
    running = RunningBroker(directory=directory, broker=broker, url=url)
    try:
        yield running
    finally:
        for guest in running.guests:
            guest.close()
        http.should_exit = True
        thread.join()
        listener.close()
        broker.store.close()


def _no_sleep(_: float) -> None:
    """A test does not wait."""
