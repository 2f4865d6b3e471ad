"""What the RPC servicers share: the node's LVM, Kata's registry, the step table, the volume locks."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from csi.core.command import LocalRunner, Runner
from csi.node.apply import Handlers
from csi.node.effects import Effects
from csi.node.kata.registry import KataRegistry
from csi.node.locks import VolumeLocks
from csi.node.lvm.command import Lvm
from csi.node.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The node as the servicers see it; tests put fakes in."""

    settings: Settings
    lvm: Lvm
    registry: KataRegistry
    handlers: Handlers
    locks: VolumeLocks

    @property
    def roots(self) -> tuple[PurePosixPath, ...]:
        """Where paths of requests may lie."""
        return (self.settings.kubelet_dir,)


def real(settings: Settings, runner: Runner | None = None) -> World:
    """The world of this machine."""
    runner = runner or LocalRunner(settings.lvm_prefix)
    config = settings.config
    lvm = Lvm(
        runner,
        udev=config.udev,
        lock_file=settings.state_dir / "lvm.lock",
        loop_devices=config.loop_devices,
        pool_disks=[device for pool in config.pools for device in pool.devices],
    )
    registry = KataRegistry(settings.registry_root)
    return World(
        settings=settings,
        lvm=lvm,
        registry=registry,
        handlers=Effects(runner, lvm, registry).handlers(),
        locks=VolumeLocks(settings.state_dir / "volumes.lock"),
    )
