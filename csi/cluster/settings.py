"""What the cluster helper runs with: its options, declared once."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from csi.cluster.api.client import Server
from csi.cluster.plan.decide import Rules
from csi.core import options
from csi.core.errors import InvalidInput
from csi.core.options import Option
from csi.core.patterns import UNUSABLE

_DESCRIPTION = """One helper for a cluster: tells of orphans, lost volumes and pods without the right RuntimeClass by
events, keeps open-local's NodeLocalStorage objects, and reports deleted sealed volumes. It holds no key. Of several that
run, one acts: the one that has the lease."""
_EPILOG = """Exit status: 0 after an orderly stop, 1 when the lease was lost, 2 for wrong settings.

docs/cluster.md says what it reads and what it writes."""


def _pattern(text: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except UNUSABLE as error:
        raise InvalidInput(field, f"{text!r} is not a regular expression: {error}") from error


def _name(text: str, field: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", text):
        raise InvalidInput(field, f"{text!r} is no name of a Kubernetes object")
    return text


NAMESPACE: Final = Option(
    name="namespace", check=_name, help="the namespace of the helper and of the node plugins' pods"
)
IDENTITY: Final = Option(
    name="identity", check=options.any_text, help="this helper's name in the lease, different for each: the pod's name"
)
NAME: Final = Option(
    name="name",
    check=_name,
    default="sealed-local-cluster",
    help="name of the Lease, and with `-sealed-volumes` after it of the ConfigMap with the report",
)
SERVER: Final = Option(
    name="server",
    check=options.any_text,
    default="",
    help="the API server. Empty: the one of the cluster that the pod is in, by KUBERNETES_SERVICE_HOST and its port. With"
    " http, as `kubectl proxy` offers it, no token is sent",
)
DRIVER_NAME: Final = Option(
    name="driver-name", check=options.any_text, default="sealed-local.csi", help="CSI driver name of the node plugins"
)
TOPOLOGY_KEY: Final = Option(
    name="topology-key", check=options.any_text, default="topology.{driver-name}/node", help="their topology key"
)
PAGES_PORT: Final = Option(
    name="pages-port",
    check=options.whole_number,
    default="9808",
    help="port of the node plugins' pages (the port of their --metrics-address)",
)
KATA_HANDLERS: Final = Option(
    name="kata-handlers",
    check=_pattern,
    default="kata.*",
    help="regular expression that matches the whole name of every RuntimeClass handler that is Kata's",
)
INIT_CONFIG: Final = Option(
    name="init-config",
    check=options.any_text,
    default="open-local",
    help="the one NodeLocalStorageInitConfig that counts; without it specs of NodeLocalStorage stay as they are",
)
INTERVAL: Final = Option(
    name="interval", check=options.whole_number, default="60", help="seconds between two looks at the nodes' pages"
)
SETTLE: Final = Option(
    name="settle",
    check=options.whole_number,
    default="300",
    help="seconds for which something must look orphaned or lost before it is told",
)
RELEASE_AFTER: Final = Option(
    name="release-after",
    check=options.whole_number,
    default="0",
    help="seconds after which claims and volumes of a node that is gone are deleted; 0: never",
)
LOG_LEVEL: Final = Option(
    name="log-level",
    check=options.one_of("debug", "info", "warning", "error"),
    default="info",
    help="debug, info, warning or error",
)

OPTIONS: Final[tuple[Option[Any], ...]] = (
    NAMESPACE, IDENTITY, NAME, SERVER, DRIVER_NAME, TOPOLOGY_KEY, PAGES_PORT, KATA_HANDLERS, INIT_CONFIG, INTERVAL, SETTLE,
    RELEASE_AFTER, LOG_LEVEL,
)  # fmt: skip
"""Every option, in the order in which help and documentation show them."""

_HEARTBEAT_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the helper runs with. Times are seconds."""

    namespace: str
    identity: str
    name: str
    server: Server
    pages_port: int
    interval: float
    log_level: str
    rules: Rules


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local cluster`."""
    made = argparse.ArgumentParser(
        prog="sealed-local cluster",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.declare(made, OPTIONS)
    return made


def load(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The checked settings. Raises `InvalidInput` naming the option."""
    given = options.read(OPTIONS, parser().parse_args(arguments), environment)
    url = given[SERVER] or _of_this_cluster(environment)
    return Settings(
        namespace=given[NAMESPACE],
        identity=given[IDENTITY],
        name=given[NAME],
        server=Server(url=url) if url.startswith("https:") else Server(url=url, account=None),
        pages_port=given[PAGES_PORT],
        interval=given[INTERVAL],
        log_level=given[LOG_LEVEL],
        rules=Rules(
            driver=given[DRIVER_NAME],
            topology_key=given[TOPOLOGY_KEY],
            kata_handlers=given[KATA_HANDLERS],
            init_config=given[INIT_CONFIG],
            settle_seconds=given[SETTLE],
            release_after_seconds=given[RELEASE_AFTER],
            heartbeat_seconds=_HEARTBEAT_SECONDS,
        ),
    )


def _of_this_cluster(environment: Mapping[str, str]) -> str:
    try:
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
    except KeyError as error:
        raise InvalidInput(SERVER.flag, f"is not given, and this is no pod: {error.args[0]} is not set") from None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
