"""Options that a StorageClass may give to mkfs, by their meaning for each filesystem's tool. Runs nothing.

Read as the tool itself reads them (getopt: `-T largefile4`, `-Tlargefile4` and `-DT largefile4` are one thing), so what is
refused can't be spelled in another way. Sources: mke2fs(8) of e2fsprogs 1.47, mkfs.xfs(8) of xfsprogs 6.1.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

_VALUE: Final = re.compile(r"[A-Za-z0-9^][A-Za-z0-9_.,=^:-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """An option without a value that is harmless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """An option with one value, of this form; values among `refused` have their reason there."""

    form: str = r"[A-Za-z0-9_.-]+"
    refused: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """An option whose value is a list `key=value,key`. Keys among neither `allowed` nor `refused` are unknown."""

    allowed: frozenset[str]
    refused: Mapping[str, str]
    once: bool = False
    """The tool forgets an earlier list for a later one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An option that is not allowed, and why; `value` tells whether the tool takes a value with it."""

    why: str
    value: bool = False


Rule = Flag | Value | Members | Refused

_FILE: Final = "reads a file or directory of the node"
_SECOND: Final = "uses a second device"
_SIZE: Final = "the filesystem always has the size of its volume"
_DRIVERS: Final = "the driver decides it"
_NOTHING: Final = "then mkfs makes no filesystem"
_SAME: Final = "every volume of the class would have the same one"
_NUMBER: Final = r"[0-9]+(\.[0-9]+)?[A-Za-z]?"

EXT4: Final[Mapping[str, Rule]] = {
    "b": Value(form="(1024|2048|4096|[124]k)"), "C": Value(form=_NUMBER), "D": Flag(), "G": Value(form=_NUMBER),
    "I": Value(form=_NUMBER), "N": Value(form=_NUMBER), "g": Value(form=_NUMBER), "i": Value(form=_NUMBER), "j": Flag(),
    "m": Value(form=_NUMBER),
    "L": Value(), "T": Value(form=r"[A-Za-z0-9_.,-]+"),
    "E": Members(
        allowed=frozenset(
            {
                "desc-size", "desc_size", "discard", "encoding", "encoding_flags", "hash_seed", "lazy_itable_init",
                "lazy_journal_init", "mmp_update_interval", "no_copy_xattrs", "nodiscard", "num_backup_sb",
                "orphan_file_size", "packed_meta_blocks", "quotatype", "resize", "revision", "root_owner", "root_perms",
                "stride", "stripe-width", "stripe_width",
            }
        ),
        refused={
            "offset": "the filesystem always begins where its volume does",
            "assume_storage_prezeroed": "a volume's blocks may hold what was there before",
            "android_sparse": _NOTHING,
            "test_fs": "the kernel would refuse to mount it",
        },
        once=True,
    ),
    "J": Members(allowed=frozenset({"size", "fast_commit_size", "location"}), refused={"device": _SECOND}),
    "O": Value(
        form=r"\^?[a-z0-9_]+(,\^?[a-z0-9_]+)*",
        refused={"journal_dev": "then it is a journal and no filesystem"},
    ),
    "U": Value(form="random|time", refused={}),
    "e": Value(form="continue|remount-ro", refused={"panic": "one damaged volume would stop the whole node"}),
    "F": Refused(why="never is anything forced"),
    "M": Refused(why="names a directory", value=True),
    "S": Refused(why="writes over a filesystem's superblocks only"),
    "V": Refused(why=_NOTHING),
    "c": Refused(why="would read all of the device"),
    "d": Refused(why=_FILE, value=True),
    "l": Refused(why=_FILE, value=True),
    "n": Refused(why=_NOTHING),
    "o": Refused(why="makes a filesystem for another system", value=True),
    "q": Refused(why=_DRIVERS),
    "r": Refused(why="makes a filesystem of another revision", value=True),
    "t": Refused(why="the type is that of the volume", value=True),
    "v": Refused(why=_DRIVERS),
    "z": Refused(why="writes a file on the node", value=True),
}  # fmt: skip
"""Options of mkfs.ext4."""

XFS: Final[Mapping[str, Rule]] = {
    "K": Flag(), "L": Value(form=r"[A-Za-z0-9_.-]{1,12}"),
    "b": Members(allowed=frozenset({"size"}), refused={}),
    "d": Members(
        allowed=frozenset(
            {
                "agcount", "agsize", "concurrency", "cowextsize", "daxinherit", "extszinherit", "noalign", "projinherit",
                "rtinherit", "sectsize", "su", "sunit", "sw", "swidth",
            }
        ),
        refused={"file": "the device is the volume", "name": "the device is the volume", "size": _SIZE},
    ),
    "i": Members(
        allowed=frozenset({"align", "attr", "exchange", "maxpct", "nrext64", "perblock", "projid32bit", "size", "sparse"}),
        refused={},
    ),
    "l": Members(
        allowed=frozenset({"agnum", "concurrency", "lazy-count", "sectsize", "size", "su", "sunit", "version"}),
        refused={"logdev": _SECOND, "name": _SECOND, "file": _SECOND, "internal": "the log is always in the volume"},
    ),
    "m": Members(
        allowed=frozenset({"finobt", "reflink", "rmapbt"}),
        refused={"uuid": _SAME, "crc": _DRIVERS, "bigtime": _DRIVERS, "inobtcount": _DRIVERS},
    ),
    "n": Members(allowed=frozenset({"ftype", "size", "version"}), refused={}),
    "s": Members(allowed=frozenset({"size", "sectsize"}), refused={}),
    "N": Refused(why=_NOTHING),
    "V": Refused(why=_NOTHING),
    "c": Refused(why=_FILE, value=True),
    "f": Refused(why="never is anything forced"),
    "p": Refused(why=_FILE, value=True),
    "q": Refused(why=_DRIVERS),
    "r": Refused(why=_SECOND, value=True),
}  # fmt: skip
"""Options of mkfs.xfs."""


def parse(words: Sequence[str], known: Mapping[str, Rule]) -> tuple[str, ...]:
    """The options one by one, each value a word of its own. Raises `ValueError` with what is not allowed, and why."""
    return tuple(word for option in _options(words, known) for word in option)


def _options(words: Sequence[str], known: Mapping[str, Rule]) -> Iterator[tuple[str, ...]]:
    """Each option with its value. Raises `ValueError` with what is wrong."""
    waiting = list(words)
    seen: set[str] = set()
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-"):
            raise ValueError(f"{word!r} belongs to no option; a word by itself would name a device or a size")
        if word == "-" or word.startswith("--"):
            raise ValueError(f"{word!r} is no option of one letter")
        letter, rest = word[1], word[2:]
        rule = known.get(letter)
        if rule is None:
            raise ValueError(f"-{letter} is no option of its mkfs")
        takes_value = not isinstance(rule, Flag) and not (isinstance(rule, Refused) and not rule.value)
        if rest and not takes_value:
            waiting.insert(0, f"-{rest}")
        value = (rest or (waiting.pop(0) if waiting else None)) if takes_value else None
        if takes_value and value is None:
            raise ValueError(f"-{letter} needs a value")
        for name in _check(letter, rule, value or ""):
            if name in seen:
                raise ValueError(f"{name} stands twice; give it once")
            seen.add(name)
        yield (f"-{letter}", value) if value is not None else (f"-{letter}",)


def _check(letter: str, rule: Rule, value: str) -> Iterator[str]:
    """Names of what is given by an option that is allowed. Raises `ValueError` for one that is not."""
    match rule:
        case Refused():
            raise ValueError(f"-{letter} is not allowed: {rule.why}")
        case Flag():
            yield f"-{letter}"
        case Value():
            _check_value(letter, rule, value)
            yield f"-{letter}"
        case Members():
            if rule.once:
                yield f"-{letter}"
            for member in value.split(","):
                key = member.partition("=")[0]
                if key in rule.refused:
                    raise ValueError(f"-{letter} {key} is not allowed: {rule.refused[key]}")
                if key not in rule.allowed or _VALUE.fullmatch(member) is None:
                    raise ValueError(f"-{letter} {member!r} is not known; use {', '.join(sorted(rule.allowed))}")
                yield f"-{letter} {key}"
        case _:
            assert_never(rule)


def _check_value(letter: str, rule: Value, value: str) -> None:
    for part in value.split(","):
        why = (rule.refused or {}).get(part)
        if why is not None:
            raise ValueError(f"-{letter} {part} is not allowed: {why}")
    if letter == "U" and re.fullmatch(rule.form, value) is None:
        raise ValueError(f"-U {value!r} is not allowed: {_SAME}; use random or time")
    if re.fullmatch(rule.form, value) is None:
        raise ValueError(f"{value!r} is not a value of -{letter}")
