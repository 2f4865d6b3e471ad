"""What must be erased of a volume, when, and by whom it could be read otherwise: the one place that decides it.

Before the first use it matters who sees the raw device. A filesystem that the node itself mounts shows files only, so that
only the ends, where signatures lie, are zeroed. A raw device (a block volume, a sealed one, a direct one in its guest)
shows everything, so that all of it must read as zeroes; what an earlier deletion or the disk has zeroed is not written
again. At the deletion it matters what the class says (`wipe`), and whether anything but the sealed head tells anybody
anything.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final, assert_never

from csi.core.sealed import needs
from csi.core.size import MIB
from csi.node.content import Content, HoldsFilesystem, Raw, Sealed
from csi.node.lvm import tags as volume_tags
from csi.node.plan import steps
from csi.node.volume import Volume, Wipe

_EDGE_BYTES: Final = 1 * MIB
_SHORT_BYTES: Final = 4 * MIB
"""What is erased within a call; more is a job."""
SLICE_BYTES: Final = 64 * MIB
"""What a job erases at once: between two slices it tells its progress and can be stopped."""

ErasingStep = steps.ZeroRange | steps.ClearRange | steps.DiscardRange
_TOUCHES_THE_DEVICE = steps.Activate | steps.ReleaseDevice | steps.SetReadOnly | steps.RequireUnused | ErasingStep


def before_first_use(volume: Volume, content: Content) -> tuple[ErasingStep, ...]:
    """What is erased before anybody is given a new volume. With `wipe: none` nobody minds what its extents held: only
    signatures go, and of a sealed volume the head, which must read as blank to the guest.
    """
    device, size = volume.lv.path, volume.lv.size_bytes
    if shows_raw_device(volume, content) and volume.wipe is not Wipe.NONE:
        return (steps.ClearRange(device=device, offset=0, length=size),)
    ends = _ends(size, _head_bytes(content))
    return tuple(steps.ZeroRange(device=device, offset=offset, length=length) for offset, length in ends)


def shows_raw_device(volume: Volume, content: Content) -> bool:
    """Whether whoever is given the volume can read any byte of its device."""
    match content:
        case HoldsFilesystem():
            return volume.direct
        case Raw() | Sealed():
            return True
        case _:
            assert_never(content)


def at_deletion(volume: Volume, *, was_given: bool = False) -> tuple[ErasingStep, ...]:
    """What is erased before a volume is removed; nothing of one that nobody was ever given: it holds nothing of anybody.

    `was_given` tells of one that somebody had though its tags, of an old backup, don't say so.
    """
    device, size = volume.lv.path, volume.lv.size_bytes
    if (volume.holds is None and not was_given) or volume_tags.ABANDON_WIPE in volume.lv.tags:
        return ()
    match volume.wipe:
        case Wipe.NONE:
            return ()
        case Wipe.AUTO | Wipe.DISCARD if (needed := needs(volume.profile)) is not None:
            # Without header and state records the rest is noise that no key opens any more.
            head = min(needed.head_bytes, size)
            zero = steps.ZeroRange(device=device, offset=0, length=head)
            rest = steps.DiscardRange(device=device, offset=head, length=size - head)
            return (zero, rest) if rest.length else (zero,)
        case Wipe.DISCARD:
            return (steps.DiscardRange(device=device, offset=0, length=size, or_zero=True),)
        case Wipe.AUTO | Wipe.ZERO:
            return (steps.ZeroRange(device=device, offset=0, length=size),)
        case _:
            assert_never(volume.wipe)


def erased_bytes(plan: steps.Plan) -> int:
    """How much a plan erases."""
    return sum(step.length for step in plan if isinstance(step, ErasingStep))


def split(plan: steps.Plan) -> tuple[steps.Plan, steps.Plan]:
    """What a call carries out itself, and what is left to a job where erasing takes long: all from the first step on that
    touches the device. So a crowd of calls leaves neither hundreds of active devices nor threads that wait for a dead disk.
    """
    if erased_bytes(plan) <= _SHORT_BYTES:
        return plan, ()
    first = next(number for number, step in enumerate(plan) if isinstance(step, _TOUCHES_THE_DEVICE))
    return plan[:first], plan[first:]


def slices(step: ErasingStep, done_bytes: int = 0) -> Iterator[ErasingStep]:
    """The step in pieces, without the first `done_bytes` of it."""
    end = step.offset + step.length
    for offset in range(step.offset + done_bytes, end, SLICE_BYTES):
        yield replace(step, offset=offset, length=min(SLICE_BYTES, end - offset))


def _head_bytes(content: Content) -> int:
    match content:
        case Sealed(profile) if (needed := needs(profile)) is not None:
            return needed.head_bytes
        case HoldsFilesystem() | Raw() | Sealed():
            return _EDGE_BYTES
        case _:
            assert_never(content)


def _ends(size: int, head_bytes: int) -> tuple[tuple[int, int], ...]:
    """Ranges (offset, length): so much at the beginning, and the last MiB."""
    head = min(size, head_bytes)
    tail = min(_EDGE_BYTES, size - head)
    return ((0, head), (size - tail, tail)) if tail else ((0, head),)
