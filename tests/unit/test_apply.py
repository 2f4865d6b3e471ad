"""A plan's steps are carried out in order, and an error of a disk is told as one of that step."""

import errno

import pytest

from csi.core.errors import DiskFailed
from csi.node.apply import apply
from csi.node.plan import steps

STEP = steps.SetReadOnly(device="/dev/vg0/pvc-1", read_only=True)


def failing(code: int) -> None:
    def handler(step: steps.SetReadOnly) -> None:
        raise OSError(code, "what the kernel said")

    apply((STEP,), {steps.SetReadOnly: handler})


def test_an_error_of_the_disk_names_step_and_device() -> None:
    with pytest.raises(DiskFailed, match=r"/dev/vg0/pvc-1.* failed: what the kernel said; look at the kernel's log"):
        failing(errno.EIO)


def test_any_other_refusal_of_the_kernel_stays_what_it_is() -> None:
    with pytest.raises(PermissionError):
        failing(errno.EPERM)
