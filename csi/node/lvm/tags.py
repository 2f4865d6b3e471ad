"""The tags of an LV, which are the node's whole store: encode a wanted volume, decode an existing one.

LVM allows letters, digits and `_+.-/=!:&#` in a tag. Readers ignore tags that they don't know.
"""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from csi.core.filesystem import Filesystem
from csi.core.sealed import Profile
from csi.node import content
from csi.node.content import Content
from csi.node.lvm.model import LogicalVolume, Report
from csi.node.volume import Kind, Purpose, State, Volume, Wanted, Wipe

OURS: Final = "sl:v1"
ABANDON_WIPE: Final = "sl:abandon-wipe"
"""Put on by a person: this volume is deleted without a wipe, since its disk can't be wiped."""
_PREFIX = "sl:"


def state_tag(state: State) -> str:
    """The tag that holds the life state."""
    return f"{_PREFIX}state={state}"


def name_tag(name_digest: str) -> str:
    """The tag by which a repeated CreateVolume finds its volume."""
    return f"{_PREFIX}name={name_digest}"


def formatted_tag(what: Content) -> str:
    """The durable evidence that the volume was prepared, and as what. It is what forbids every later format."""
    return f"{_PREFIX}formatted={content.word(what)}"


def created_tags(lv: LogicalVolume) -> tuple[str, ...]:
    """The tag that tells when an LV was made; it is for people, and nothing is decided by it."""
    return tuple(tag for tag in sorted(lv.tags) if tag.startswith(f"{_PREFIX}created="))


def encode(wanted: Wanted, clock: Callable[[], float] = time.time) -> tuple[str, ...]:
    """All tags of a new volume; they go into the one `lvcreate` that makes it."""
    parameters = wanted.parameters
    tags = [
        OURS,
        name_tag(wanted.name_digest),
        state_tag(State.CREATING),
        f"{_PREFIX}size={wanted.size_bytes}",
        f"{_PREFIX}params={parameters.digest}",
        f"{_PREFIX}kind={Kind.VOLUME}",
        f"{_PREFIX}cap={wanted.purpose.word}",
        f"{_PREFIX}sealed={parameters.profile}",
        f"{_PREFIX}wipe={parameters.wipe}",
        f"{_PREFIX}created={int(clock())}",
    ]
    if parameters.direct:
        tags.append(f"{_PREFIX}direct=true")
    if parameters.secure_mount:
        tags.append(f"{_PREFIX}secure-mount=true")
    if parameters.fstype is not None:
        tags.append(f"{_PREFIX}fs={parameters.fstype}")
    if parameters.mkfs_options:
        tags.append(f"{_PREFIX}mkfs={_pack(parameters.mkfs_options)}")
    return tuple(tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An LV that carries our mark and tags that this version can't read. It is there: never absent, and never guessed."""

    lv: LogicalVolume
    why: str


def decode(lv: LogicalVolume) -> Volume | Unreadable | None:
    """The volume that an LV is; None for an LV that isn't ours."""
    if OURS not in lv.tags:
        return None
    values = dict(tag.removeprefix(_PREFIX).split("=", 1) for tag in lv.tags if tag.startswith(_PREFIX) and "=" in tag)
    if values.get("kind") != Kind.VOLUME:
        return Unreadable(lv=lv, why=f"the tag {_PREFIX}kind says {values.get('kind')!r}")
    try:
        profile = Profile(values.get("sealed", Profile.NONE))
        return Volume(
            lv=lv,
            name_digest=values["name"],
            state=State(values["state"]),
            size_bytes=_size(values["size"]),
            params_digest=values["params"],
            profile=profile,
            direct=values.get("direct") == "true",
            secure_mount=values.get("secure-mount") == "true",
            wipe=Wipe(values.get("wipe", Wipe.AUTO)),
            holds=content.read(values["formatted"], profile) if "formatted" in values else None,
            fstype=Filesystem(values["fs"]) if "fs" in values else None,
            mkfs_options=_unpack(values.get("mkfs", "")),
            purpose=Purpose.read(values["cap"]) if "cap" in values else None,
        )
    except KeyError as error:
        return Unreadable(lv=lv, why=f"the tag {_PREFIX}{error.args[0]} is missing")
    except ValueError as error:
        return Unreadable(lv=lv, why=str(error))


def was_ours(lv: LogicalVolume) -> bool:
    """Whether this driver made an LV, though a person may have taken it away from it by its first tag."""
    return any(tag.startswith(_PREFIX) for tag in lv.tags)


def volumes(report: Report) -> tuple[Volume, ...]:
    """Every volume of this driver on the node whose tags can be read."""
    return tuple(volume for lv in report.lvs if isinstance(volume := decode(lv), Volume))


def _pack(words: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(words).encode()).decode()


def _unpack(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    try:
        words = json.loads(base64.urlsafe_b64decode(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tag {_PREFIX}mkfs can't be read") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"the tag {_PREFIX}mkfs holds no list of words")
    return tuple(words)


def _size(text: str) -> int:
    """What `encode` wrote: `int` alone would take a sign, spaces and digits of other scripts."""
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f"the tag {_PREFIX}size holds no number of bytes")
    return int(text)
