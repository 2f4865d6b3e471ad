"""Where kubelet stages and publishes, as the kernel names these places: its directory, and `pods` and `plugins` in it, may
be links.
"""

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

_BLOCK = PurePosixPath("kubernetes.io/csi/volumeDevices")


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletPlaces:
    """Directories without links among them."""

    root: PurePosixPath
    pods: PurePosixPath
    plugins: PurePosixPath

    @classmethod
    def of(cls, kubelet_dir: PurePosixPath) -> Self:
        """Where the directories lead now."""
        root, pods, plugins = (
            PurePosixPath(os.path.realpath(path))
            for path in (kubelet_dir, kubelet_dir / "pods", kubelet_dir / "plugins")
        )
        return cls(root=root, pods=pods, plugins=plugins)

    def stages(self, place: str) -> bool:
        """Whether a place is among those where kubelet has volumes staged."""
        return _below(place, self.plugins) and not _below(place, self.plugins / _BLOCK)

    def publishes(self, place: str) -> bool:
        """Whether a place is one that a pod may be using."""
        return (
            _below(place, self.root) or _below(place, self.pods) or _below(place, self.plugins)
        ) and not self.stages(place)


def _below(place: str, folder: PurePosixPath) -> bool:
    return PurePosixPath(place).is_relative_to(folder)
