"""The broker's metrics page. `docs/broker.md` lists every name; nothing here tells of a volume or a guest."""

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

PAGE_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counts of one process, in a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sealed_local_broker_requests", "Requests answered.", ["request", "status"], registry=self._registry
        )

    def answered(self, request: str, status: int) -> None:
        """Count one answer. `request` is the name of an endpoint, never a path: what guests write makes no series."""
        self._requests.labels(request, str(status)).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads, of the type `PAGE_TYPE`."""
        return generate_latest(self._registry)
