"""Settings of `sealed-local node` from the command line, the environment and the configuration file, checked once."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from csi.core import options
from csi.core.errors import InvalidInput
from csi.core.options import Given, Option
from csi.node import config as node_config
from csi.node.config import NodeConfig
from csi.node.kata.registry import DEFAULT_ROOT

_NODE_ID_LIMIT: Final = 128
_TOPOLOGY_LIMIT: Final = 63
_DRIVER_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")

_DESCRIPTION = """The CSI plugin of one node. It carves logical volumes out of the node's LVM volume groups, mounts plain
ones, and hands direct and sealed ones to Kata. Run one on every node, beside external-provisioner with --node-deployment.
It never holds a key."""

_EPILOG = """Every option can be given as an environment variable: SEALED_LOCAL_ and the option's name in capitals, with _
for -; for example SEALED_LOCAL_NODE_ID. The command line wins.

Configuration file (YAML), all keys optional:
  pools:                      # named sets of volume groups for the StorageClass parameter `pool`
    - name: fast
      vgs: [fast-0, fast-1]
      strategy: spread        # spread: the group with most room; binpack: the fullest that fits
      reserve: 10%            # room kept free in each group: a percentage or a size
    - name: bulk
      vgs: [bulk-0]           # with `devices` exactly one group: made of these disks, extended by new ones
      devices: [/dev/disk/by-id/nvme-EXAMPLE]   # a disk with any signature is refused, never wiped
  listConfig:
    vgs: {include: ["data-.*"], exclude: []}    # groups outside pools that `vgName` may name (whole-name regexes)
  defaultPool: fast           # for classes that name neither pool nor vgName
  vgUuids:                    # this node's own groups (vgs -o vg_uuid); where there are any, no other is used
    fast-0: AbCdEf-0123-4567-89AB-CDEF-GhIj-KlMnOp
  udev: false                 # true: let LVM wait for udev (needs the host's IPC namespace in a container)
  lvmFilter: ["r|^/dev/disk/by-path/.*-iscsi-|"]   # devices that LVM must not look at
  jobsPerGroup: 2             # so many wipes and first clearings run at a time in each group, 1 to 16
  loopDevices: false          # true: disks of this node are loop devices (tests); else only those in `devices` are seen

The driver uses no volume group that this file doesn't name. See docs/node.md."""


def _node_id(text: str, field: str) -> str:
    if not text:
        raise InvalidInput(field, "is required; give the Kubernetes node's name")
    if text != text.strip() or not text.isprintable():
        raise InvalidInput(field, f"{text!r} begins or ends with a blank, or holds a control character; take it out")
    if len(text.encode()) > _NODE_ID_LIMIT:
        raise InvalidInput(field, f"is longer than {_NODE_ID_LIMIT} bytes")
    return text


def _driver_name(text: str, field: str) -> str:
    if _DRIVER_NAME.fullmatch(text) is None:
        raise InvalidInput(field, f"{text!r} is not a domain-style name of at most 63 characters")
    return text


def _label(text: str, field: str) -> str:
    if len(text) > _TOPOLOGY_LIMIT or _LABEL.fullmatch(text) is None:
        raise InvalidInput(field, f"{text!r} is not a label value of at most 63 characters; give a shorter one")
    return text


def _endpoint(text: str, field: str) -> str:
    # A blank at the end of a manifest's line would be part of the socket's name, and nobody would find it.
    if not text.isprintable() or text != text.strip():
        raise InvalidInput(field, f"{text!r} begins or ends with a blank, or holds a control character; take it out")
    return text


def _folder(text: str, field: str) -> Path:
    return Path(options.absolute_path(text, field))


def _words(text: str, _: str) -> tuple[str, ...]:
    return tuple(text.split())


ENDPOINT: Final = Option(
    name="endpoint",
    check=_endpoint,
    default="unix:///csi/csi.sock",
    also="CSI_ENDPOINT",
    help="the CSI socket. Unix sockets only; its directory must exist",
)
NODE_ID: Final = Option(name="node-id", check=_node_id, help="the Kubernetes node's name, at most 128 bytes")
CONFIG: Final = Option(
    name="config",
    check=options.any_text,
    default="/etc/sealed-local/node.yaml",
    help="configuration file. A missing file is an error only when the option is given",
)
DRIVER_NAME: Final = Option(
    name="driver-name",
    check=_driver_name,
    default="sealed-local.csi",
    help="CSI driver name: lower-case letters, digits, dots and dashes, at most 63 characters",
)
TOPOLOGY_KEY: Final = Option(
    name="topology-key", check=options.any_text, default="topology.{driver-name}/node", help="topology key of this node"
)
TOPOLOGY_VALUE: Final = Option(
    name="topology-value",
    check=_label,
    default="{node-id}",
    help="topology value of this node: a Kubernetes label value of at most 63 characters. Must be given when the node id is"
    " not such a value",
)
KUBELET_DIR: Final = Option(
    name="kubelet-dir",
    check=options.absolute_path,
    default="/var/lib/kubelet",
    help="the only directory below which it mounts",
)
KATA_REGISTRY: Final = Option(
    name="kata-registry", check=_folder, default=str(DEFAULT_ROOT), help="Kata's registry of direct volumes"
)
STATE_DIR: Final = Option(
    name="state-dir",
    check=_folder,
    default="/run/sealed-local",
    help="where two lock files and the settings of LVM lie. Made if it is missing",
)
METRICS_ADDRESS: Final = Option(
    name="metrics-address",
    check=options.any_text,
    default="127.0.0.1:9808",
    help="HOST:PORT of /metrics and /healthz, IPv4 or a name. Empty: off. In a pod write 0.0.0.0:9808",
)
MAX_VOLUMES: Final = Option(
    name="max-volumes",
    check=options.whole_number,
    default="0",
    help="volumes that Kubernetes may put on this node; 0: no limit",
)
LVM_PREFIX: Final = Option(
    name="lvm-prefix",
    check=_words,
    default="",
    help="words before every command that it runs (lvm, mkfs, mount, ...), e.g. 'nsenter -t 1 -m --' to use the host's",
)
LOG_LEVEL: Final = Option(
    name="log-level",
    check=options.one_of("debug", "info", "warning", "error"),
    default="info",
    help="debug, info, warning or error. debug logs every command",
)

OPTIONS: Final[tuple[Option[Any], ...]] = (
    ENDPOINT, NODE_ID, CONFIG, DRIVER_NAME, TOPOLOGY_KEY, TOPOLOGY_VALUE, KUBELET_DIR, KATA_REGISTRY, STATE_DIR,
    METRICS_ADDRESS, MAX_VOLUMES, LVM_PREFIX, LOG_LEVEL,
)  # fmt: skip
"""Every option, in the order in which help and documentation show them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the node plugin runs with."""

    endpoint: str
    node_id: str
    driver_name: str
    topology_key: str
    topology_value: str
    kubelet_dir: PurePosixPath
    registry_root: Path
    state_dir: Path
    metrics_address: str
    max_volumes: int
    log_level: str
    lvm_prefix: tuple[str, ...]
    config: NodeConfig

    @property
    def plugin_dir(self) -> Path:
        """Kubelet's directory of this driver: what must outlive a reboot lies there."""
        return Path(self.kubelet_dir) / "plugins" / self.driver_name


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local node`."""
    made = argparse.ArgumentParser(
        prog="sealed-local node",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.declare(made, OPTIONS)
    return made


def load(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The checked settings. Raises `InvalidInput` naming the option or the place in the file."""
    given = options.read(OPTIONS, parser().parse_args(arguments), environment)
    return Settings(
        endpoint=given[ENDPOINT],
        node_id=given[NODE_ID],
        driver_name=given[DRIVER_NAME],
        topology_key=given[TOPOLOGY_KEY],
        topology_value=given[TOPOLOGY_VALUE],
        kubelet_dir=given[KUBELET_DIR],
        registry_root=given[KATA_REGISTRY],
        state_dir=given[STATE_DIR],
        metrics_address=given[METRICS_ADDRESS],
        max_volumes=given[MAX_VOLUMES],
        log_level=given[LOG_LEVEL],
        lvm_prefix=given[LVM_PREFIX],
        config=_read_config(given),
    )


def _read_config(given: Given) -> NodeConfig:
    path = Path(given[CONFIG])
    try:
        return node_config.parse(path.read_text(), str(path))
    except FileNotFoundError:
        if CONFIG not in given:
            return NodeConfig()
        raise InvalidInput(CONFIG.flag, f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInput(CONFIG.flag, f"{path} can't be read: {reason}") from error
