"""What each step of a plan means on this node: the table from step type to the function that carries it out."""

import functools
import os
from pathlib import Path
from typing import assert_never

from csi.core import disks, filesystems, mount_calls, mounts
from csi.core.command import Runner
from csi.core.errors import ForeignContent, Refused
from csi.node import bind_mounts, filesystem_use, releasing
from csi.node.apply import Handlers
from csi.node.kata.registry import KataRegistry
from csi.node.lvm.command import Lvm
from csi.node.lvm.layout import Linear, Striped
from csi.node.plan import steps
from csi.node.staged_marks import StagedMarks

_TARGET_MODE = 0o750
_TOMBSTONE_OPTIONS = ("ro", "nosuid", "nodev", "noexec", "size=4k", "mode=0555")


class Effects:
    """The hands of the node plugin."""

    def __init__(self, runner: Runner, lvm: Lvm, registry: KataRegistry, state_dir: Path) -> None:
        self._runner = runner
        self._lvm = lvm
        self._registry = registry
        self._workshop = state_dir / "mounts"
        self._marks = StagedMarks(state_dir / "staged")

    def handlers(self) -> Handlers:
        """One function for every step that a host plan can hold."""
        return {
            steps.CreateLV: self._create_lv,
            steps.RemoveLV: lambda step: self._lvm.remove(step.vg, step.name),
            steps.ChangeTags: lambda step: self._lvm.change_tags(step.vg, step.name, remove=step.remove, add=step.add),
            steps.Activate: lambda step: self._lvm.activate(step.vg, step.name),
            steps.ReleaseDevice: lambda step: releasing.release(self._lvm, step.vg, step.name),
            steps.MarkStaged: lambda step: self._marks.put(step.volume_id, step.path),
            steps.ForgetStaged: lambda step: self._marks.remove(step.volume_id),
            steps.ZeroRange: lambda step: disks.zero(step.device, step.offset, step.length),
            steps.ClearRange: lambda step: disks.clear(step.device, step.offset, step.length),
            steps.DiscardRange: self._discard,
            steps.RequireUnused: self._require_unused,
            steps.MakeFilesystem: self._make_filesystem,
            steps.RequireFilesystem: self._require_filesystem,
            steps.CheckFilesystem: self._check_filesystem,
            steps.MountFilesystem: self._mount_filesystem,
            steps.BindDirectory: self._bind_directory,
            steps.BindDevice: self._bind_device,
            steps.SetReadOnly: lambda step: disks.set_read_only(step.device, step.read_only),
            steps.MountTombstone: self._mount_tombstone,
            steps.WriteRecord: lambda step: self._registry.put(step.target, step.record),
            steps.RemoveRecord: lambda step: self._registry.remove(step.target),
            steps.Unmount: lambda step: bind_mounts.unmount(step.target),
            steps.RemoveTarget: lambda step: mounts.remove_directory(step.target),
            steps.CreateVG: lambda step: self._lvm.create_vg(step.vg, step.devices),
            steps.ExtendVG: lambda step: self._lvm.extend_vg(step.vg, step.devices),
        }

    def _create_lv(self, step: steps.CreateLV) -> None:
        create = functools.partial(
            self._lvm.create, step.vg, step.name, extents=step.extents, tags=step.tags, pvs=step.pvs
        )
        match step.layout:
            case Linear():
                create()
            case Striped(count=count, size_kib=size_kib):
                if count is None:
                    raise ValueError("the plan leaves the number of stripes open")
                create(stripes=count, stripe_kib=size_kib)
            case _:
                assert_never(step.layout)

    @staticmethod
    def _discard(step: steps.DiscardRange) -> None:
        if not disks.discard(step.device, step.offset, step.length) and step.or_zero:
            disks.zero(step.device, step.offset, step.length)

    def _make_filesystem(self, step: steps.MakeFilesystem) -> None:
        filesystems.make(self._runner, step.device, step.fstype, step.options, step.uuid)

    @staticmethod
    def _require_unused(step: steps.RequireUnused) -> None:
        with disks.reading(step.device) as read:
            if filesystem_use.was_used(read, step.uuid):
                raise ForeignContent(
                    f"volume {step.volume_id} is new by its tags, and {step.device} holds a filesystem that was made for "
                    "it and was mounted since. Was an old backup of the group's metadata restored (vgcfgrestore)? Nothing "
                    "is changed. See docs/node.md, Trouble, for how to keep the data; if nobody needs it, delete the claim"
                )

    def _require_filesystem(self, step: steps.RequireFilesystem) -> None:
        if step.made is not None:
            with disks.reading(step.device) as read:
                if filesystem_use.holds(read, step.fstype, step.made):
                    return
        # mkfsOptions may ask for another UUID.
        found = filesystems.signature(self._runner, step.device)
        if found != step.fstype:
            raise ForeignContent(
                f"{step.device} was formatted as {step.fstype}, and shows {found or 'no signature'}. Look at the disk, and "
                "at mkfsOptions if the volume is new, before anything else; a volume in use is never formatted again."
            )

    def _check_filesystem(self, step: steps.CheckFilesystem) -> None:
        filesystems.check(self._runner, step.device, step.fstype)

    @staticmethod
    def _mount_filesystem(step: steps.MountFilesystem) -> None:
        _directory(step.target)
        mount_calls.mount(step.device, step.target, fstype=step.fstype, options=step.options)

    def _bind_directory(self, step: steps.BindDirectory) -> None:
        _directory(step.target)
        bind_mounts.bind(step.source, step.target, read_only=step.read_only, workshop=self._workshop)

    def _bind_device(self, step: steps.BindDevice) -> None:
        _directory(str(Path(step.target).parent))
        # O_NOFOLLOW: a link planted at the target must not make the driver create or cover a file elsewhere.
        os.close(os.open(step.target, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
        real = disks.resolved(step.device)
        if real is None:
            raise Refused(f"{step.device} is not a block device; stage the volume again")
        bind_mounts.bind(real, step.target, read_only=False, workshop=self._workshop)

    @staticmethod
    def _mount_tombstone(step: steps.MountTombstone) -> None:
        _directory(step.target)
        mount_calls.mount(step.source, step.target, fstype="tmpfs", options=_TOMBSTONE_OPTIONS)


def _directory(path: str) -> None:
    """Make a directory of a request's path; a link planted in its place is refused."""
    Path(path).mkdir(mode=_TARGET_MODE, parents=True, exist_ok=True)
    if Path(path).is_symlink():
        raise Refused(f"{path} is a symbolic link; remove it, then repeat")
