"""Settings of `sealed-local node` from the command line, the environment and the configuration file, checked once."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from csi.core.errors import InvalidInput
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
  udev: false                 # true: let LVM wait for udev (needs the host's IPC namespace in a container)
  loopDevices: false          # true: disks of this node are loop devices (tests); else only those in `devices` are seen

The driver uses no volume group that this file doesn't name. See docs/node.md."""


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


def parser() -> argparse.ArgumentParser:
    """The command line of `sealed-local node`."""
    made = argparse.ArgumentParser(
        prog="sealed-local node",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--endpoint", help="CSI socket; also CSI_ENDPOINT (default: unix:///csi/csi.sock)")
    made.add_argument("--node-id", help="this node's name, at most 128 bytes (required)")
    made.add_argument("--config", help="configuration file (default: /etc/sealed-local/node.yaml if it is there)")
    made.add_argument("--driver-name", help="CSI driver name (default: sealed-local.csi)")
    made.add_argument("--topology-key", help="topology key of this node (default: topology.DRIVER-NAME/node)")
    made.add_argument("--topology-value", help="topology value of this node (default: the node id)")
    made.add_argument("--kubelet-dir", help="the only directory below which it mounts (default: /var/lib/kubelet)")
    made.add_argument("--kata-registry", help=f"Kata's registry of direct volumes (default: {DEFAULT_ROOT})")
    made.add_argument("--state-dir", help="where the lock file lies; empty after a reboot (default: /run/sealed-local)")
    made.add_argument(
        "--metrics-address", help="HOST:PORT of /metrics and /healthz; empty: off (default: 127.0.0.1:9808)"
    )
    made.add_argument("--max-volumes", help="volumes that Kubernetes may put on this node; 0: no limit (default: 0)")
    made.add_argument(
        "--lvm-prefix",
        help="words before every command that is run (lvm, mkfs, mount, ...), e.g. 'nsenter -t 1 -m --' to use the host's",
    )
    made.add_argument("--log-level", help="debug, info, warning or error (default: info)")
    return made


def load(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The checked settings. Raises `InvalidInput` naming the option, the variable or the place in the file."""
    given = vars(parser().parse_args(arguments))

    def option(name: str, default: str = "") -> str:
        value = given[name] if given[name] is not None else environment.get(f"SEALED_LOCAL_{name.upper()}")
        return default if value is None else str(value)

    node_id = _limited(option("node_id"), "--node-id", _NODE_ID_LIMIT)
    driver = option("driver_name", "sealed-local.csi")
    if _DRIVER_NAME.fullmatch(driver) is None:
        raise InvalidInput("--driver-name", f"{driver!r} is no domain-style name of at most 63 characters")
    value = option("topology_value", node_id)
    if len(value) > _TOPOLOGY_LIMIT or _LABEL.fullmatch(value) is None:
        raise InvalidInput(
            "--topology-value", f"{value!r} is no label value of at most 63 characters; give a shorter one"
        )
    return Settings(
        endpoint=option("endpoint", environment.get("CSI_ENDPOINT", "unix:///csi/csi.sock")),
        node_id=node_id,
        driver_name=driver,
        topology_key=option("topology_key", f"topology.{driver}/node"),
        topology_value=value,
        kubelet_dir=_absolute(option("kubelet_dir", "/var/lib/kubelet"), "--kubelet-dir"),
        registry_root=Path(_absolute(option("kata_registry", str(DEFAULT_ROOT)), "--kata-registry")),
        state_dir=Path(_absolute(option("state_dir", "/run/sealed-local"), "--state-dir")),
        metrics_address=option("metrics_address", "127.0.0.1:9808"),
        max_volumes=_number(option("max_volumes", "0"), "--max-volumes"),
        log_level=_level(option("log_level", "info")),
        lvm_prefix=tuple(option("lvm_prefix").split()),
        config=_read_config(option("config")),
    )


def _read_config(given: str) -> NodeConfig:
    path = Path(given or "/etc/sealed-local/node.yaml")
    try:
        return node_config.parse(path.read_text(), str(path))
    except FileNotFoundError:
        if not given:
            return NodeConfig()
        raise InvalidInput("--config", f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InvalidInput("--config", f"{path} can't be read: {reason}") from error


def _limited(value: str, option: str, limit: int) -> str:
    if not value:
        raise InvalidInput(option, "is required; give the Kubernetes node's name")
    if len(value.encode()) > limit:
        raise InvalidInput(option, f"is longer than {limit} bytes")
    return value


def _absolute(value: str, option: str) -> PurePosixPath:
    path = PurePosixPath(value)
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInput(option, f"{value!r} is no plain absolute path")
    return path


def _number(value: str, option: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise InvalidInput(option, f"{value!r} is no number")
    return int(value)


def _level(value: str) -> str:
    if value not in ("debug", "info", "warning", "error"):
        raise InvalidInput("--log-level", f"{value!r} is none of debug, info, warning, error")
    return value
