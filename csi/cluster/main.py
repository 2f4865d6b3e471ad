"""`sealed-local cluster`: waits for the lease, then helps until it is told to stop or has lost the lease."""

import contextlib
import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

from csi.cluster import pages
from csi.cluster import settings as cluster_settings
from csi.cluster.api.client import Api
from csi.cluster.api.lease import RETRY_SECONDS, LeaseKeeper
from csi.cluster.helper import Helper
from csi.cluster.settings import Settings
from csi.core import log
from csi.core.errors import InvalidInput

_log = logging.getLogger(__name__)

_TURN_SECONDS: Final = 1.0
"""How late a change may be noticed; changes that come together are one round."""


def main(arguments: Sequence[str]) -> int:
    """Run the helper; returns the exit status."""
    try:
        settings = cluster_settings.load(arguments)
        api = Api(settings.server)
    except InvalidInput as error:
        print(f"sealed-local cluster: {error}", file=sys.stderr)
        return 2
    log.set_up(settings.log_level)
    # A handler may put into this queue; an Event it could not set without a deadlock, were its lock just held.
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: asked.put(got))
    return run(settings, api, asked)


def run(settings: Settings, api: Api, asked: "queue.SimpleQueue[int]") -> int:
    """Wait for the lease and help. A helper that has lost it ends: nothing that it knew is of use to it later."""
    keeper = LeaseKeeper(api, settings.namespace, settings.name, settings.identity, time.monotonic)
    _log.info("waiting for the lease", extra={"lease": settings.name, "identity": settings.identity})
    while not keeper.attempt():
        if _asked(asked, RETRY_SECONDS):
            return 0
    _log.info("has the lease", extra={"identity": settings.identity})
    ends = threading.Event()
    threading.Thread(target=_renew, args=(keeper, ends), name="lease", daemon=True).start()
    helper = Helper(api, settings, lambda: keeper.held, pages.by_http(settings.pages_port))
    helper.follow(ends.wait)
    try:
        while keeper.held:
            helper.turn()
            if _asked(asked, _TURN_SECONDS):
                ends.set()
                keeper.give_up()
                return 0
    finally:
        ends.set()
    _log.error("the lease is lost", extra={"identity": settings.identity})
    return 1


def _renew(keeper: LeaseKeeper, ends: threading.Event) -> None:
    while not ends.wait(RETRY_SECONDS):
        keeper.attempt()


def _asked(asked: "queue.SimpleQueue[int]", seconds: float) -> bool:
    """Whether a stop signal comes within that time."""
    with contextlib.suppress(queue.Empty):
        asked.get(timeout=seconds)
        return True
    return False
