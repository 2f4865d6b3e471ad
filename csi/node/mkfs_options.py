"""`mkfsOptions` by what each option means to its tool: mke2fs(8) of e2fsprogs 1.47, mkfs.xfs(8) of xfsprogs 6.

An option that is not in these tables, or that reads a file, uses a second device, writes elsewhere, makes nothing or only a
part, or gives all volumes of a class one identity is refused with the reason. Words are read as the tools read them:
options may be joined (`-DT largefile`), and a value may stand in its option's word (`-Tlargefile`).
"""

import getopt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

from csi.core.filesystem import Filesystem

_VALUE: Final = re.compile(r"[A-Za-z0-9^][A-Za-z0-9_.,=^:+-]*")

_READS: Final = "it reads a file or a directory of the node"
_DEVICE: Final = "it would use a second device or a file"
_SIZE: Final = "the volume gives the size"
_NOTHING: Final = "it makes no filesystem, or only a part of one"
_FORCE: Final = "what may be overwritten is decided by the driver"
_IDENTITY: Final = "all volumes of the class would have the same UUID"
_TYPE: Final = "it would make another filesystem"


@dataclass(frozen=True, slots=True)
class Flag:
    """An option without a value."""


@dataclass(frozen=True, slots=True)
class Value:
    """An option with one value: a number, a label, a list of features. Words in `refused` may not stand in it."""

    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Keys:
    """An option whose value is a list of `key` or `key=value`."""

    allowed: frozenset[str]
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """An option that is never given to the tool."""

    why: str
    takes_value: bool


Meaning = Flag | Value | Keys | Refused
Option = tuple[str, str]
"""A letter and its value, empty for a flag."""


def _keys(names: str, **refused: str) -> Keys:
    return Keys(frozenset(names.split()), refused)


_EXT4: Final[Mapping[str, Meaning]] = {
    **dict.fromkeys("bCgGiIjLmMNeT", Value()),
    "j": Flag(),
    "D": Flag(),
    "v": Flag(),
    "O": Value({"journal_dev": _NOTHING}),
    "E": _keys(
        "assume_storage_prezeroed discard encoding encoding_flags hash_seed lazy_itable_init lazy_journal_init "
        "mmp_update_interval no_copy_xattrs nodiscard num_backup_sb orphan_file_size packed_meta_blocks quotatype resize "
        "root_owner root_perms stride stripe-width stripe_width",
        offset="it writes elsewhere than the volume begins",
        android_sparse=_NOTHING,
        test_fs="the kernel would treat it as a test",
    ),
    "J": _keys("fast_commit_size location size", device=_DEVICE),
    "U": Refused(_IDENTITY, takes_value=True),
    "c": Refused("it reads the whole volume, which a stage has no time for", takes_value=False),
    "d": Refused(_READS, takes_value=True),
    "l": Refused(_READS, takes_value=True),
    "z": Refused("it writes a file of the node", takes_value=True),
    "o": Refused(_TYPE, takes_value=True),
    "r": Refused(_TYPE, takes_value=True),
    "t": Refused(_TYPE, takes_value=True),
    "F": Refused(_FORCE, takes_value=False),
    "S": Refused(_NOTHING, takes_value=False),
    "V": Refused(_NOTHING, takes_value=False),
    "n": Refused(_NOTHING, takes_value=False),
}

_XFS: Final[Mapping[str, Meaning]] = {
    "K": Flag(),
    "L": Value(),
    "b": _keys("size"),
    "d": _keys(
        "agcount agsize concurrency cowextsize daxinherit extszinherit noalign projinherit rtinherit sectsize su sunit "
        "sw swidth",
        file=_DEVICE,
        name=_DEVICE,
        size=_SIZE,
    ),
    "i": _keys("align attr exchange maxpct nrext64 perblock projid32bit size sparse"),
    "l": _keys(
        "agnum concurrency lazy-count sectsize size su sunit version",
        internal=_DEVICE,
        logdev=_DEVICE,
        file=_DEVICE,
        name=_DEVICE,
    ),
    "m": _keys("bigtime crc finobt inobtcount reflink rmapbt", uuid=_IDENTITY, metadir=_DEVICE),
    "n": _keys("ftype parent size version"),
    "s": _keys("size"),
    "c": Refused(_READS, takes_value=True),
    "p": Refused(_READS, takes_value=True),
    "r": Refused(_DEVICE, takes_value=True),
    "f": Refused(_FORCE, takes_value=False),
    "N": Refused(_NOTHING, takes_value=False),
    "V": Refused(_NOTHING, takes_value=False),
}


def table(filesystem: Filesystem) -> Mapping[str, Meaning]:
    """What each option means to the filesystem's tool."""
    match filesystem:
        case Filesystem.EXT4:
            return _EXT4
        case Filesystem.XFS:
            return _XFS
        case _:
            assert_never(filesystem)


def checked(words: Sequence[str], filesystem: Filesystem | None) -> tuple[str, ...]:
    """The options as separate words, each option before its value. Raises `ValueError` saying what is wrong with which.

    Without a filesystem (the request names it later) they must mean something to one tool, and no harm to any other.
    """
    kinds = [filesystem] if filesystem is not None else list(Filesystem)
    readings = [_read(words, kind) for kind in kinds]
    options = [reading for reading in readings if not isinstance(reading, _Problem)]
    problems = [reading for reading in readings if isinstance(reading, _Problem)]
    if not options:
        raise ValueError("; ".join(f"{problem.kind}: {problem.what}" for problem in problems))
    for problem in problems:
        if problem.harmful:
            raise ValueError(f"{problem.kind}: {problem.what}. Name the filesystem in csi.storage.k8s.io/fstype")
    return tuple(word for option in options[0] for word in option if word)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    kind: Filesystem
    what: str
    harmful: bool


def _read(words: Sequence[str], kind: Filesystem) -> tuple[Option, ...] | _Problem:
    known = table(kind)
    letters = "".join(letter + (":" if _takes_value(meaning) else "") for letter, meaning in known.items())
    try:
        found, rest = getopt.getopt(list(words), letters)
    except getopt.GetoptError as error:
        return _Problem(kind=kind, what=str(error), harmful=False)
    if rest:
        return _Problem(
            kind=kind, what=f"{rest[0]!r} belongs to no option; it would name a device or a size", harmful=True
        )
    for option, value in found:
        refused = _why_refused(known[option[1:]], value)
        unknown = None if refused is not None else _why_unknown(known[option[1:]], value)
        why = refused or unknown
        if why is not None:
            what = f"{option} {value}".rstrip() + f" is not allowed: {why}"
            return _Problem(kind=kind, what=what, harmful=refused is not None)
    return tuple(found)


def _takes_value(meaning: Meaning) -> bool:
    match meaning:
        case Flag():
            return False
        case Value() | Keys():
            return True
        case Refused():
            return meaning.takes_value
        case _:
            assert_never(meaning)


def _why_refused(meaning: Meaning, value: str) -> str | None:
    match meaning:
        case Flag():
            return None
        case Refused():
            return meaning.why
        case Value() | Keys() if _VALUE.fullmatch(value) is None:
            return "its value holds other characters than letters, digits and _.,=^:+-"
        case Value():
            return next((meaning.refused[word] for word in value.split(",") if word in meaning.refused), None)
        case Keys():
            names = _names(value)
            return next((f"{name}: {meaning.refused[name]}" for name in names if name in meaning.refused), None)
        case _:
            assert_never(meaning)


def _why_unknown(meaning: Meaning, value: str) -> str | None:
    """A key that the tool itself refuses, as far as its manual says."""
    if not isinstance(meaning, Keys):
        return None
    unknown = next((name for name in _names(value) if name not in meaning.allowed), None)
    return f"{unknown!r} is not one of {', '.join(sorted(meaning.allowed))}" if unknown is not None else None


def _names(value: str) -> list[str]:
    return [part.partition("=")[0] for part in value.split(",")]
