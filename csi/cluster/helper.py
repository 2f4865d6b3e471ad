"""The helper at work: watches, pages and rounds, as long as it has the lease."""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from csi.cluster import pages
from csi.cluster.api.client import Api
from csi.cluster.api.watched import Pause, Watched, follow_all
from csi.cluster.effects import Effects, Report
from csi.cluster.objects import InitConfig, Node, NodeStorage, RuntimeClass, Seen
from csi.cluster.plan import decide, ledger
from csi.cluster.plan.decide import Memory, Moment
from csi.cluster.settings import Settings
from csi.core.errors import SealedLocalError
from csi.core.kubernetes import Claim, Pod, StorageClass, Volume

_log = logging.getLogger(__name__)


class Watches:
    """Everything of the cluster that the helper follows."""

    def __init__(self, api: Api, wake: Callable[[], None]) -> None:
        self.pods = Watched(api, "/api/v1/pods", Pod, wake)
        self.claims = Watched(api, "/api/v1/persistentvolumeclaims", Claim, wake)
        self.volumes = Watched(api, "/api/v1/persistentvolumes", Volume, wake)
        self.nodes = Watched(api, "/api/v1/nodes", Node, wake)
        self.classes = Watched(api, "/apis/storage.k8s.io/v1/storageclasses", StorageClass, wake)
        self.runtimes = Watched(api, "/apis/node.k8s.io/v1/runtimeclasses", RuntimeClass, wake)
        # Written by the helper itself: what it writes need not wake it.
        own = "/apis/csi.aliyun.com/v1alpha1"
        self.storages = Watched(api, f"{own}/nodelocalstorages", NodeStorage, optional=True)
        self.configs = Watched(api, f"{own}/nodelocalstorageinitconfigs", InitConfig, wake, optional=True)

    @property
    def all(self) -> tuple[Watched[Any], ...]:
        """Each of them."""
        return (
            self.pods, self.claims, self.volumes, self.nodes, self.classes, self.runtimes, self.storages, self.configs,
        )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether every list was read. Before, whatever isn't there proves nothing."""
        return all(one.read.is_set() for one in self.all)

    def seen(self) -> Seen:
        """The cluster as of now, without the nodes' pages."""
        return Seen(
            pods=self.pods.items,
            claims=self.claims.items,
            volumes=self.volumes.items,
            classes=self.classes.items,
            runtimes=self.runtimes.items,
            nodes=self.nodes.items,
            node_storages=None if self.storages.unknown else self.storages.items,
            init_configs=self.configs.items,
        )


class Helper:
    """`may_act` is asked before each act; `fetch` reads a node's page."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        may_act: Callable[[], bool],
        fetch: pages.Fetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._may_act = may_act
        self._fetch = fetch
        self._clock = clock
        self._changed = threading.Event()
        self._watches = Watches(api, self._changed.set)
        self._effects = Effects(api, clock, today)
        self._report = Report(api, settings.namespace, f"{settings.name}-sealed-volumes")
        self._memory = Memory()
        self._pages: Seen = Seen()
        self._looked: float | None = None

    def follow(self, pause: Pause) -> None:
        """Begin to watch."""
        follow_all(self._watches.all, pause)

    def turn(self) -> bool:
        """A round, when there is a reason for one; returns whether there was. What fails is tried again in the next."""
        due = self._looked is None or self._clock() - self._looked >= self._settings.interval
        if not self._watches.complete or not (due or self._changed.is_set()):
            return False
        self._changed.clear()
        if due:
            self._look()
        seen = replace(self._watches.seen(), pages=self._pages.pages, silent=self._pages.silent)
        moment = Moment(seconds=self._clock(), text=today())
        wanted, self._memory = decide.actions(seen, self._memory, self._settings.rules, moment)
        for action in wanted:
            self._act(partial(self._effects.apply, action))
        driver = self._settings.rules.driver
        self._act(lambda: self._report.renew(lambda before: ledger.renewed(before, seen, driver, moment.text)))
        return True

    def _look(self) -> None:
        plugins = pages.plugins(self._watches.pods.items, self._settings.namespace)
        told, silent = pages.read(plugins, self._settings.rules.driver, self._fetch)
        self._pages = Seen(pages=told, silent=silent)
        self._looked = self._clock()

    def _act(self, act: Callable[[], None]) -> None:
        if not self._may_act():
            return
        try:
            act()
        except SealedLocalError as error:
            _log.warning("not done; it is tried again", extra={"error": str(error)})


def today() -> str:
    """The time of day as Kubernetes writes it."""
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
