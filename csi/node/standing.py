"""How this node's driver stands: whether it can work, which pools are whole, and if not, why.

Start-up and its repetitions write here; Probe, `/healthz`, the metrics and the gate before stage and publish read. Each
change is logged once, however often the same is found again.
"""

import logging
import threading
from collections.abc import Callable, Mapping

from csi.core.errors import Refused

_log = logging.getLogger(__name__)


class Standing:
    """`look` says what is wrong with the places where the driver writes, see `csi.node.places`. `prepare` is told the id of
    a volume whose device will soon appear.
    """

    def __init__(self, look: Callable[[], tuple[str, ...]], prepare: Callable[[str], None] = lambda _: None) -> None:
        self._look = look
        self._prepare = prepare
        self._lock = threading.Lock()
        self._faults: tuple[str, ...] = ()
        self._lvm: str | None = None
        self._pools: dict[str, str | None] = {}
        self._started = False
        self._stopping = False

    @property
    def ready(self) -> bool:
        """Whether start-up has ended well, and nothing forbids the driver to work."""
        return self._started and not self._stopping and self.why_not is None

    @property
    def why_not(self) -> str | None:
        """Why the driver can't work; None when it can, or only hasn't started yet.

        LVM that fails later is no reason: much goes on without it, and to kill the container would not help.
        """
        reasons = [*self._faults, *([self._lvm] if self._lvm is not None and not self._started else [])]
        return "this node's driver can't work: " + "; ".join(reasons) if reasons else None

    @property
    def pools(self) -> Mapping[str, str | None]:
        """Every pool that was looked at; None for a whole one, else what it lacks."""
        with self._lock:
            return dict(self._pools)

    @property
    def whole(self) -> bool:
        """Whether nothing is left to be tried again."""
        return self.ready and self._lvm is None and not any(self.pools.values())

    def words(self) -> str:
        """For a person who asks for the health."""
        lacking = [f"pool {name}: {why}\n" for name, why in self.pools.items() if why is not None]
        lacking += [f"LVM: {self._lvm}\n"] if self._lvm is not None and self._started else []
        first = "ok" if self.ready else f"not ready: {self.why_not}" if self.why_not is not None else "not ready"
        return f"{first}\n{''.join(lacking)}"

    def started(self) -> None:
        """LVM has answered, and every pool was looked at."""
        if not self._started:
            _log.info("ready" if self.why_not is None else "started")
        self._started = True

    def stopping(self) -> None:
        """No longer ready."""
        self._stopping = True

    def lvm(self, why_not: str | None) -> None:
        """Note whether LVM answers."""
        if why_not is not None and why_not != self._lvm:
            _log.error("LVM can't be used; it is tried again", extra={"error": why_not})
        if why_not is None and self._lvm is not None:
            _log.info("LVM can be used again")
        self._lvm = why_not

    def pool(self, name: str, lacks: str | None) -> None:
        """Note a pool's state."""
        with self._lock:
            before = self._pools.get(name)
            self._pools[name] = lacks
        if lacks is not None and lacks != before:
            _log.error("pool is not complete", extra={"pool": name, "error": lacks})
        if lacks is None and before is not None:
            _log.info("pool is complete", extra={"pool": name})

    def look(self) -> tuple[str, ...]:
        """See whether what the driver writes is seen by the node; returns what is wrong."""
        faults = self._look()
        for fault in set(faults) - set(self._faults):
            _log.error("nothing is staged or published", extra={"error": fault})
        if self._faults and not faults:
            _log.info("places are right again")
        self._faults = faults
        return faults

    def before_mounting(self, volume_id: str) -> None:
        """Raises `Refused` when what is mounted now would not be seen by kubelet or Kata: pods would write elsewhere."""
        faults = self.look()
        if faults:
            raise Refused("; ".join(faults))
        self._prepare(volume_id)
