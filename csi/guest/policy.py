"""The guest's policy (TOML): which volumes may be mounted where, how, and which broker has their keys.

It is part of the measured init-data or image. Everything that the host says is a hint that must fit this text.
"""

import re
import tomllib
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Annotated, Any, assert_never

import msgspec

from csi.core.errors import InvalidInput, Refused
from csi.core.filesystem import Filesystem
from csi.core.patterns import UNUSABLE
from csi.core.sealed import Profile
from csi.guest.broker_settings import BrokerSettings
from csi.kbs import init_data
from csi.kbs.claim_name import POLICY_ENTRY, UNNAMED, ClaimName, KubernetesName
from csi.kbs.messages import ResourcePath

_ANY_NAME = "/*"
"""At the end of a mount point: the name in that folder is the runtime's."""
_OPTIONS = frozenset({"noatime", "nodiratime", "relatime", "noexec", "sync"})


class GuestAccess(StrEnum):
    """How the workload may use a volume."""

    READ_WRITE = "rw"
    READ_ONLY = "ro"


class FormatRule(StrEnum):
    """Whether a volume that the register has never seen formatted may be formatted by this guest; without a register, one
    whose device shows nothing.
    """

    ONCE = "once"
    NEVER = "never"


class BrokerKind(StrEnum):
    """What the broker is."""

    SEALED_LOCAL = "sealed-local"
    """It keeps a register of volumes and makes their secrets."""
    TRUSTEE = "trustee"
    """It releases resources and knows no volumes: keys are derived from one of its resources."""


class WithoutBroker(StrEnum):
    """What becomes of a volume that is open for writing when its lease can't be renewed because no broker answers."""

    READ_ONLY = "read-only"
    GO_ON = "go-on"
    """It stays writable. Another guest that the broker lets in meanwhile writes to the same disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePolicy:
    """What this guest may do with the volumes that one rule matches."""

    name: str
    id: str | None
    """The one volume that the rule is for; None where a pattern leaves the choice to the host."""
    id_pattern: re.Pattern[str]
    mount: str
    """Where it is mounted. `FOLDER/*`: directly below that folder, under the name that the runtime asks for."""
    profile: Profile
    fstype: Filesystem
    access: GuestAccess
    format: FormatRule
    options: tuple[str, ...]
    used_as: ClaimName = UNNAMED
    """For whom the volume is, by names that the host can't choose; the broker compares them with its owner."""
    without_broker: WithoutBroker = WithoutBroker.READ_ONLY

    def allows(self, volume_id: str) -> bool:
        """Whether the rule is for this volume."""
        return self.id_pattern.fullmatch(volume_id) is not None

    def mounts_at(self, mount_point: str) -> bool:
        """Whether the rule lets the volume be mounted there."""
        if not self.mount.endswith(_ANY_NAME):
            return mount_point == self.mount
        path = PurePosixPath(mount_point)
        folder = self.mount.removesuffix(_ANY_NAME)
        return mount_point == str(path) and str(path.parent) == folder and path.name != ".."

    def mounted_at(self, mount_point: str | None) -> "VolumePolicy":
        """The rule with the one place that the volume is mounted at. Raises `InvalidInput` for a place that it doesn't
        allow, and for none where the rule leaves the name to the runtime.
        """
        if mount_point is None and not self.mount.endswith(_ANY_NAME):
            return self
        if mount_point is None:
            raise InvalidInput(
                "--volume", f"the rule {self.name!r} mounts at {self.mount}: only `serve` is told the name"
            )
        if not self.mounts_at(mount_point):
            raise InvalidInput("mount point", f"the rule {self.name!r} allows {self.mount}, not {mount_point}")
        return replace(self, mount=mount_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """The whole policy."""

    broker: BrokerSettings
    volumes: tuple[VolumePolicy, ...]

    def resolve(self, volume: str, volume_id: str | None) -> tuple[VolumePolicy, str]:
        """The rule and the volume id that a caller means by `--volume` and `--id`.

        `volume` is a rule's name, which says all where the rule has a fixed id and needs `volume_id` where it has a
        pattern; or it is the id itself, as the host names it. Raises `InvalidInput` when no rule allows it.
        """
        if volume_id is not None:
            rule = self.named(volume)
            if not rule.allows(volume_id):
                raise InvalidInput("--id", f"the policy's rule {rule.name!r} does not allow volume {volume_id!r}")
            return rule, volume_id
        for rule in self.volumes:
            if rule.name == volume and rule.id is not None:
                return rule, rule.id
        return self.rule_for(volume), volume

    def named(self, name: str) -> VolumePolicy:
        """The rule of that name. Raises `InvalidInput`."""
        for volume in self.volumes:
            if volume.name == name:
                return volume
        known = ", ".join(self._names) or "none"
        raise InvalidInput("--volume", f"the policy names no volume {name!r}; it names: {known}")

    def rule_for(self, volume_id: str) -> VolumePolicy:
        """The rule that allows a volume id that the host names. Raises `InvalidInput` when none does."""
        for volume in self.volumes:
            if volume.allows(volume_id):
                return volume
        hint = "; it is a rule's name, so say which volume by --id" if volume_id in self._names else ""
        raise InvalidInput("--volume", f"the measured policy allows no volume {volume_id!r}{hint}; nothing is opened")

    def mounted_at(self, mount_point: str) -> VolumePolicy | None:
        """The rule for the volume that a runtime wants at a mount point; None when no rule speaks of that place.

        A request of the runtime names no volume, so the place and the rule must say which one it is. Raises `Refused` where
        they don't: then it is the host that would choose.
        """
        rules = [rule for rule in self.volumes if rule.mount == mount_point]
        rules = rules or [rule for rule in self.volumes if rule.mounts_at(mount_point)]
        if not rules:
            return None
        names = ", ".join(repr(rule.name) for rule in rules)
        if len(rules) > 1:
            raise Refused(
                f"the policy's rules {names} all allow {mount_point}, and nothing tells which volume is meant"
            )
        if rules[0].id is None:
            raise Refused(
                f"the policy's rule {names} has id_pattern; at {mount_point} only a rule with a fixed id counts"
            )
        return rules[0]

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(volume.name for volume in self.volumes)


class _Broker(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    ca: str
    kind: BrokerKind = BrokerKind.SEALED_LOCAL
    root: str | None = None
    allow_sample: bool = False
    attestation_agent: bool = False
    timeout_seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0


class _Volume(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    mount: str
    id: str = ""
    id_pattern: str = ""
    profile: str = "xts"
    fstype: str = "ext4"
    access: GuestAccess = GuestAccess.READ_WRITE
    format: FormatRule = FormatRule.ONCE
    options: list[str] = []
    namespace: KubernetesName | None = None
    claim: KubernetesName | None = None
    without_broker: WithoutBroker | None = None
    without_leases: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    broker: _Broker
    volume: list[_Volume]


@lru_cache(maxsize=1)
def parse(text: str, source: str) -> GuestPolicy:
    """The policy from its own text, or from an init-data document that carries it as `sealed-local.toml`.

    Raises `InvalidInput` naming `source` and the place in it. The last one is kept: `serve` asks for it at each request.
    """
    document = _toml(text, source)
    if "algorithm" not in document:
        return _policy(document, source, measured="")
    inner = init_data.parse(text, source).files.get(POLICY_ENTRY)
    if inner is None:
        raise InvalidInput(f"{source}: data", f"the init-data has no entry {POLICY_ENTRY!r}")
    place = f"{source}: {POLICY_ENTRY}"
    return _policy(_toml(inner, place), place, measured=text)


def _toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise InvalidInput(source, f"is not valid TOML: {error}") from error


def _policy(document: dict[str, Any], source: str, *, measured: str) -> GuestPolicy:
    try:
        raw = msgspec.convert(document, type=_File)
    except msgspec.ValidationError as error:
        raise InvalidInput(source, str(error)) from error
    if raw.version != 1:
        # Not which: a number of 5,000 hexadecimal digits can't be written as a decimal one.
        raise InvalidInput(f"{source}: version", "is not known; this guest reads version 1")
    if not raw.broker.url.startswith("https://"):
        raise InvalidInput(f"{source}: broker.url", "must begin with https://")
    root = _root(raw.broker, f"{source}: broker.root")
    for number, volume in enumerate(raw.volume):
        _require_fit(volume, raw.broker.kind, f"{source}: volume[{number}]")
    volumes = tuple(_volume(volume, f"{source}: volume[{number}]") for number, volume in enumerate(raw.volume))
    if len({volume.name for volume in volumes}) != len(volumes):
        raise InvalidInput(f"{source}: volume", "two volumes have the same name")
    broker = BrokerSettings(
        url=raw.broker.url,
        ca_pem=raw.broker.ca,
        init_data=measured,
        allow_sample=raw.broker.allow_sample,
        attestation_agent=raw.broker.attestation_agent,
        timeout_seconds=raw.broker.timeout_seconds,
        root=root,
    )
    return GuestPolicy(broker=broker, volumes=volumes)


def _root(raw: _Broker, place: str) -> str | None:
    match raw.kind:
        case BrokerKind.SEALED_LOCAL:
            if raw.root is not None:
                raise InvalidInput(place, f"goes with kind = {BrokerKind.TRUSTEE.value!r} only")
            return None
        case BrokerKind.TRUSTEE:
            if raw.root is None:
                raise InvalidInput(place, "is missing: the resource that keys are derived from, kbs:///REPO/TYPE/TAG")
            return ResourcePath.parse_uri(raw.root, place).uri
        case _:
            assert_never(raw.kind)


def _require_fit(raw: _Volume, kind: BrokerKind, place: str) -> None:
    """Raises `InvalidInput` for a rule that takes for granted what this kind of broker doesn't do."""
    if kind is BrokerKind.SEALED_LOCAL:
        if raw.without_leases:
            raise InvalidInput(f"{place}.without_leases", "this broker has leases, and they are always taken")
        return
    if raw.without_broker is not None:
        raise InvalidInput(f"{place}.without_broker", "there is no lease that could end at a broker of this kind")
    if raw.access is GuestAccess.READ_WRITE and not raw.without_leases:
        raise InvalidInput(
            f"{place}.without_leases",
            "a broker of this kind can't keep two guests from writing to one volume at once, which destroys it. Say "
            "without_leases = true if you see to that yourself, or access = 'ro'",
        )


def _volume(raw: _Volume, place: str) -> VolumePolicy:
    if bool(raw.id) == bool(raw.id_pattern):
        raise InvalidInput(f"{place}.id", "give exactly one of id and id_pattern")
    if raw.claim is not None and raw.namespace is None:
        raise InvalidInput(f"{place}.claim", "needs its namespace, too")
    profile = _profile(raw.profile)
    if profile is None:
        raise InvalidInput(f"{place}.profile", f"{raw.profile!r} can't be opened by this version; use 'xts'")
    filesystem = Filesystem.named(raw.fstype, f"{place}.fstype")
    mount = PurePosixPath(raw.mount)
    plain = raw.mount.isprintable() and not raw.mount.startswith("//")
    if not plain or not mount.is_absolute() or ".." in mount.parts or mount == PurePosixPath("/"):
        raise InvalidInput(f"{place}.mount", f"{raw.mount!r} is not a plain absolute path below /")
    for option in raw.options:
        if option not in _OPTIONS:
            raise InvalidInput(f"{place}.options", f"{option!r} is not allowed; known: {', '.join(sorted(_OPTIONS))}")
    try:
        pattern = re.compile(raw.id_pattern or re.escape(raw.id))
    except UNUSABLE as error:
        raise InvalidInput(f"{place}.id_pattern", f"is not a usable regular expression: {error}") from error
    return VolumePolicy(
        name=raw.name,
        id=raw.id or None,
        id_pattern=pattern,
        mount=str(mount),
        profile=profile,
        fstype=filesystem,
        access=raw.access,
        format=raw.format,
        options=tuple(raw.options),
        used_as=ClaimName(namespace=raw.namespace, claim=raw.claim),
        without_broker=raw.without_broker or WithoutBroker.READ_ONLY,
    )


def _profile(name: str) -> Profile | None:
    """The profile of that name; None for one that a guest can't open."""
    if name not in set(Profile):
        return None
    profile = Profile(name)
    match profile:
        case Profile.XTS:
            return profile
        case Profile.NONE:
            return None
        case _:
            assert_never(profile)
