"""StorageClass parameters: strings to `Parameters`, or an error that names the key and the nearest known one."""

import contextlib
import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, TypeVar, assert_never

from csi.core.errors import InvalidInput
from csi.core.filesystem import Filesystem, make_options
from csi.core.sealed import RESERVED_PROFILES, Profile
from csi.node.lvm.layout import MOST_STRIPES, Layout, LayoutName, Linear, Striped
from csi.node.lvm.names import checked_vg_name
from csi.node.volume import Parameters, Wipe

_KNOWN: Final = (
    "volumeType", "vgName", "pool", "lvmType", "stripes", "stripeSize", "direct", "mkfsOptions", "wipe", "sealed",
    "secureMount", "fsType",
)  # fmt: skip
_LATER: Final = ("mediaType", "iops", "bps", "mirrors")
"""Keys that other versions offer; refused by name, because ignoring them would silently break a promise."""

_KUBERNETES_PREFIXES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
_FSTYPE_KEY = "csi.storage.k8s.io/fstype"
# No more digits than fit into 64 bits: many more stop Python.
_COUNT = re.compile(r"[0-9]{1,18}")
_STRIPE_SIZE = re.compile(r"(\d{1,18})(Ki|KiB|k|Mi|MiB|m)?")
_SECURE_MOUNT: Final = "a-guest-without-serve-destroys-the-volume"
"""The only value of `secureMount`: whoever writes it has read what it does."""
_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")
_DEFAULTS: Final = {
    "volumeType": "LVM", "lvmType": "linear", "wipe": "auto", "sealed": "none", "direct": "false", "mkfsOptions": "",
}  # fmt: skip
_Choice = TypeVar("_Choice", bound=StrEnum)


def parse(given: Mapping[str, str]) -> Parameters:
    """Check every key and value. Raises `InvalidInput` naming `parameters[KEY]`.

    Keys that Kubernetes adds (`csi.storage.k8s.io/...`, `storage.kubernetes.io/...`) are not the class's; of those only
    `csi.storage.k8s.io/fstype` has a meaning here.
    """
    own = own_keys(given)
    for key in own:
        _refuse_unknown(key)
    if own.get("volumeType", "LVM") != "LVM":
        raise _bad("volumeType", f"{own['volumeType']!r} is not offered by this version; use LVM")
    if "vgName" in own and "pool" in own:
        raise _bad("pool", "and vgName exclude each other; give one of them")
    profile = _profile(own)
    if profile.is_sealed and own.get("mkfsOptions"):
        raise _bad("mkfsOptions", "has no effect on a sealed volume: the guest makes the filesystem; remove it")
    return Parameters(
        vg_name=checked_vg_name(own["vgName"], "parameters[vgName]") if "vgName" in own else None,
        pool=own.get("pool"),
        layout=_layout(own),
        direct=_direct(own, profile),
        secure_mount=_secure_mount(own, profile),
        profile=profile,
        fstype=_fstype(given),
        mkfs_options=_mkfs_options(own, _fstype(given)),
        wipe=_choice(own, "wipe", Wipe, Wipe.AUTO),
        digest=digest(given),
    )


def digest(given: Mapping[str, str]) -> str:
    """Digest over what the class's own keys mean: a default that is spelled out changes nothing, nor does a key that this
    version doesn't know. The filesystem isn't in it: it is a part of what the volume was asked for as.
    """
    return hashlib.sha256(json.dumps(_meaning(given), sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def known_keys(given: Mapping[str, str]) -> dict[str, str]:
    """Those of the class's own keys that this version knows."""
    return {key: value for key, value in given.items() if key in _KNOWN}


def _meaning(given: Mapping[str, str]) -> dict[str, str]:
    """Each key that says something, in one spelling. A value that can't be read stays as it is: it equals no good one."""
    known = known_keys(given)
    meant = {key: _spelled(key, value) for key, value in known.items()}
    if meant.get("sealed", _DEFAULTS["sealed"]) != _DEFAULTS["sealed"] and meant.get("direct") == "true":
        del meant["direct"]
    return {key: value for key, value in meant.items() if key != "fsType" and _DEFAULTS.get(key) != value}


def _spelled(key: str, value: str) -> str:
    match key:
        case "direct" if value.lower() in _TRUE + _FALSE:
            return "true" if value.lower() in _TRUE else "false"
        case "stripes" if (count := _count(value)) is not None:
            return str(count)
        case "stripeSize" if (kib := _kib(value)) is not None:
            return str(kib)
        case "mkfsOptions":
            with contextlib.suppress(ValueError):
                return shlex.join(shlex.split(value))
    return value


def own_keys(given: Mapping[str, str]) -> dict[str, str]:
    """The class's own keys and values, for the volume context that later calls get back; the provisioner puts keys of
    its own into a PV's attributes, kubelet adds the pod's.
    """
    return {key: value for key, value in given.items() if not key.startswith(_KUBERNETES_PREFIXES)}


def _bad(key: str, problem: str) -> InvalidInput:
    return InvalidInput(f"parameters[{key}]", problem)


def _refuse_unknown(key: str) -> None:
    if key in _LATER:
        raise _bad(key, "is not offered by this version; remove it from the StorageClass")
    if key in _KNOWN:
        return
    near = difflib.get_close_matches(key.lower(), [known.lower() for known in _KNOWN], n=1, cutoff=0.6)
    spelled = next((known for known in _KNOWN if near and known.lower() == near[0]), None)
    hint = f"did you mean {spelled!r}?" if spelled else f"known keys: {', '.join(_KNOWN)}"
    raise _bad(key, f"is an unknown parameter; {hint}")


def _choice(own: Mapping[str, str], key: str, choices: type[_Choice], default: _Choice) -> _Choice:
    value = own.get(key, default)
    try:
        return choices(value)
    except ValueError:
        raise _bad(key, f"{value!r} is not offered by this version; choose {', '.join(choices)}") from None


def _fstype(given: Mapping[str, str]) -> Filesystem | None:
    for key in ("fsType", _FSTYPE_KEY):
        if given.get(key):
            return Filesystem.named(given[key], f"parameters[{key}]")
    return None


def _profile(own: Mapping[str, str]) -> Profile:
    if own.get("sealed") in RESERVED_PROFILES:
        raise _bad("sealed", f"the profile {own['sealed']!r} is not offered by this version yet; use 'xts'")
    return _choice(own, "sealed", Profile, Profile.NONE)


def _direct(own: Mapping[str, str], profile: Profile) -> bool:
    """`direct` as open-local spells booleans. A sealed filesystem is opened in the guest, so sealed implies direct."""
    value = own.get("direct")
    if value is None:
        return profile.is_sealed
    if value.lower() not in _TRUE + _FALSE:
        raise _bad("direct", f"{value!r} is neither true nor false")
    direct = value.lower() in _TRUE
    if profile.is_sealed and not direct:
        raise _bad("direct", "false contradicts sealed: only the guest has the key, so the node can't mount the volume")
    return direct


def _secure_mount(own: Mapping[str, str], profile: Profile) -> bool:
    """Never a default: with a stock confidential-data-hub in the guest the same record means a fresh key and format."""
    value = own.get("secureMount")
    if value is None:
        return False
    if not profile.is_sealed:
        raise _bad("secureMount", "needs sealed: only the guest front of a sealed volume answers such a mount")
    if value != _SECURE_MOUNT:
        raise _bad(
            "secureMount",
            f"{value!r} is not {_SECURE_MOUNT!r}. It makes a kata-agent ask its confidential-data-hub for the mount. Where "
            "that is not `sealed-local guest serve`, the device gets a new key and a new filesystem, and its data are lost",
        )
    return True


def _layout(own: Mapping[str, str]) -> Layout:
    name = _choice(own, "lvmType", LayoutName, LayoutName.LINEAR)
    match name:
        case LayoutName.LINEAR:
            for key in ("stripes", "stripeSize"):
                if key in own:
                    raise _bad(key, "needs lvmType: striping")
            return Linear()
        case LayoutName.STRIPING:
            return Striped(count=_stripes(own), size_kib=_stripe_kib(own))
        case _:
            assert_never(name)


def _stripes(own: Mapping[str, str]) -> int | None:
    if "stripes" not in own:
        return None
    count = _count(own["stripes"])
    if count is None or not 2 <= count <= MOST_STRIPES:
        raise _bad("stripes", f"{own['stripes']!r} is not a number from 2 to {MOST_STRIPES}")
    return count


def _count(text: str) -> int | None:
    return int(text) if _COUNT.fullmatch(text) is not None else None


def _stripe_kib(own: Mapping[str, str]) -> int | None:
    if "stripeSize" not in own:
        return None
    kib = _kib(own["stripeSize"]) or 0
    if kib < 4 or kib > 1024 * 1024 or kib & (kib - 1):
        raise _bad("stripeSize", f"{own['stripeSize']!r} is not a power of two from 4Ki to 1024Mi")
    return kib


def _kib(text: str) -> int | None:
    match = _STRIPE_SIZE.fullmatch(text)
    return int(match[1]) * (1024 if (match[2] or "k").lower().startswith("m") else 1) if match else None


def _mkfs_options(own: Mapping[str, str], filesystem: Filesystem | None) -> tuple[str, ...]:
    """Checked for the class's filesystem. Where only the request will name it, they must be allowed for one of them."""
    try:
        words = shlex.split(own.get("mkfsOptions", ""))
    except ValueError as error:
        raise _bad("mkfsOptions", f"can't be split into words: {error}") from error
    options = _allowed(words, (filesystem,) if filesystem is not None else tuple(Filesystem))
    if len(options) > 32 or sum(map(len, options)) > 256:
        raise _bad("mkfsOptions", "are too long; at most 32 words and 256 characters")
    return options


def _allowed(words: Sequence[str], filesystems: Sequence[Filesystem]) -> tuple[str, ...]:
    problems = []
    for filesystem in filesystems:
        try:
            return make_options(words, filesystem, "parameters[mkfsOptions]")
        except InvalidInput as error:
            problems.append(error.problem)
    raise _bad("mkfsOptions", "; ".join(problems))
