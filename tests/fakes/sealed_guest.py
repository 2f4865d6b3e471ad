"""A guest's machine in memory: one disk, device-mapper, cryptsetup, a filesystem, and a register by the real rules.

It is a `csi.guest.machine.Machine`. Everything is 128 times smaller than on a real disk, and the format's own code runs
unchanged over it: `small_format` puts the small sizes in place of the real ones. Each effect calls `tick` before it begins,
between its parts and after its end, so a test can end the guest at any of these points, and then decide what a power cut
leaves of the writes that were not flushed.
"""

import base64
import contextlib
import errno
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import pytest

from csi.broker import rules as register
from csi.core import header_digest as digests
from csi.core import sealed
from csi.core.device_number import DeviceNumber
from csi.core.errors import InUse, Tampered, ToolFailed
from csi.core.filesystem import Filesystem
from csi.core.header_digest import header_digest
from csi.core.mount import Mount
from csi.core.sealed import Profile
from csi.core.secret import Secret
from csi.guest import decide as plan
from csi.guest import policy as guest_policy
from csi.guest import released, session, steps, unlock
from csi.guest.close import close
from csi.guest.derived import keys as derived_keys
from csi.guest.derived import work
from csi.guest.derived.work import DerivedWork
from csi.guest.opened import Opened
from csi.guest.policy import FormatRule, GuestAccess, VolumePolicy
from csi.guest.seal import dm_table, luks_header
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping
from csi.guest.session import DeviceSession, Session
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.register import VolumeRecord, VolumeState

UNIT = 8 * 1024
"""What stands for 1 MiB here."""
HEADER_BYTES = 16 * UNIT
HEADER_PARTS_BYTES = 8 * UNIT
RECORD_OFFSETS = (32 * UNIT, 33 * UNIT)
PAYLOAD_OFFSET = 34 * UNIT
PAYLOAD_BYTES = 32 * 1024
DEVICE = "/dev/sdb"
NUMBER = DeviceNumber(8, 16)
VOLUME = "pvc-1"
SECRET = Secret(bytes(range(32)))
NOW = 1_700_000_000
_DATA_AT, _DATA_BYTES = 4096, 4096
_KEYS_AT = 2 * 16384


class Died(BaseException):
    """`kill -9`: nothing of the guest's program runs any more."""


class Fate(Enum):
    """What an end leaves of the guest and of what it wrote and did not flush."""

    KILLED = "killed in a guest that lives on"
    LOST = "power cut, all of it lost"
    KEPT = "power cut, all of it kept"
    FIRST_HALVES = "power cut, first half of each write kept"
    LAST_HALVES = "power cut, last half of each write kept"
    LAST_WRITE = "power cut, only the last write kept"


@dataclass
class Disk:
    """`content` is what reads show; `stable` what a power cut certainly leaves. `seen` is all that a host could copy."""

    content: bytearray
    stable: bytearray
    unflushed: list[tuple[int, bytes]] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)

    @classmethod
    def blank(cls, size: int = PAYLOAD_OFFSET + PAYLOAD_BYTES) -> "Disk":
        return cls(bytearray(size), bytearray(size), seen=[bytes(size)])

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.unflushed.append((offset, data))
        self.seen.append(bytes(self.content))

    def flush(self) -> None:
        self.stable[:] = self.content
        self.unflushed.clear()

    def cut(self, fate: Fate) -> None:
        kept = {Fate.LOST: [], Fate.LAST_WRITE: self.unflushed[-1:]}.get(fate, self.unflushed)
        for offset, data in kept:
            half = len(data) // 2
            start, end = {Fate.FIRST_HALVES: (0, half), Fate.LAST_HALVES: (half, len(data))}.get(fate, (0, len(data)))
            self.stable[offset + start : offset + end] = data[start:end]
        self.unflushed.clear()
        self.show(bytes(self.stable))

    def show(self, image: bytes) -> None:
        """The host puts other content on the disk."""
        self.content[:], self.stable[:] = image, image
        self.unflushed.clear()
        self.seen.append(image)


@dataclass
class Live:
    """A dm-crypt mapping: the kernel's table, the volume key, and what its page cache holds back from the disk."""

    number: int
    table: str
    key: bytes
    read_only: bool
    cached: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class Machine:
    """A disk, a kernel and a broker. The guest's programs come and go."""

    mount_point: str
    disk: Disk = field(default_factory=Disk.blank)
    record: VolumeRecord | None = None
    epoch: str = "0e" * 16
    escrow: bytes = b""
    """The header that the broker keeps."""
    share: bytes | None = None
    """What a bad generator of the broker gives for every volume key; None is a good one."""
    lost_writes: int = 0
    """Write-backs that failed and that nobody was told of yet."""
    live: dict[str, Live] = field(default_factory=dict)
    mounted: list[Mount] = field(default_factory=list)
    fuse: int | None = None
    """How many ticks the guest still lives; None is for ever."""
    dead: bool = False
    said: list[str] = field(default_factory=list)
    """What a guest without a register told."""
    ticks: int = 0
    numbers: int = 0
    made_on_active: int = 0
    """Headers and filesystems made while the register said `active`: must stay 0."""
    safe_from: int = 0
    """Number of disk states seen when the last committed open began: whatever is older is a rollback."""
    _began_at: int = 0

    # Life and death

    def tick(self) -> None:
        if self.dead:
            raise Died
        self.ticks += 1
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.dead = True
                raise Died

    def effect(self, *parts: Callable[[], None]) -> None:
        """Carry out an effect that may be cut before, between and after its parts."""
        self.tick()
        for part in parts:
            part()
            self.tick()

    def end(self, fate: Fate) -> None:
        """The guest's program is gone; after a power cut, so is all that its kernel had."""
        self.dead, self.fuse = False, None
        if fate is Fate.KILLED:
            return
        for live in self.live.values():
            for offset, data in live.cached:
                self.disk.write(offset, data)
        self.live.clear()
        self.mounted.clear()
        self.disk.cut(fate)

    # What a test does

    def open(self, **changes: Any) -> Opened:
        session, record = self._released(**changes)
        return unlock.unlock(session, record)

    def repair(self) -> bool:
        session, record = self._released()
        return unlock.repair(session, record)

    def derived(self, root: Secret = SECRET, names: ClaimName = UNNAMED, **changes: Any) -> DerivedWork:
        """The work of a guest whose broker keeps no register."""
        got = derived_keys.derive(root, VOLUME, names)
        session = DeviceSession(
            volume_id=VOLUME,
            keys=got.keys,
            rule=replace(self._rule(), **changes),
            device=DEVICE,
            machine=self,
            progress=self.said.append,
        )
        return DerivedWork(session=session, share=got.share)

    def _rule(self) -> VolumePolicy:
        return VolumePolicy(
            name="data",
            id=VOLUME,
            id_pattern=guest_policy.re.compile(VOLUME),
            mount=self.mount_point,
            profile=Profile.XTS,
            fstype=Filesystem.EXT4,
            access=GuestAccess.READ_WRITE,
            format=FormatRule.ONCE,
            options=(),
        )

    def _released(self, **changes: Any) -> tuple[Session, VolumeRecord]:
        rule = self._rule()
        register = ModelRegister(self)
        got = released.ask(register, VOLUME, rule.profile)
        session = Session(
            volume_id=VOLUME,
            keys=got.keys,
            rule=replace(rule, **changes),
            device=DEVICE,
            register=register,
            machine=self,
            progress=lambda _: None,
        )
        return session, got.record

    def close(self) -> bool:
        return close(self, VOLUME)

    def write_file(self, data: bytes) -> None:
        """A workload's file, flushed."""
        live = self._mounted_volume()
        assert not live.read_only
        self._write_back(live)
        self.disk.write(PAYLOAD_OFFSET + _DATA_AT, _veil(data.ljust(_DATA_BYTES, b"\0"), live.key))
        self.disk.flush()

    def read_file(self) -> bytes:
        return self._clear(self._mounted_volume(), PAYLOAD_OFFSET + _DATA_AT, _DATA_BYTES)

    def _mounted_volume(self) -> Live:
        (mount,) = [mount for mount in self.mounted if mount.target == self.mount_point]
        return next(live for live in self.live.values() if DeviceNumber(253, live.number) == mount.device)

    # `csi.guest.machine.Machine`, in memory

    def disks_appearing(self, seconds: float) -> Iterator[tuple[str, ...]]:
        yield (DEVICE,)

    def wait_for(self, device: str, seconds: float) -> str:
        return device

    def node_of(self, number: DeviceNumber) -> str | None:
        return DEVICE if number == NUMBER else None

    def number_of(self, device: str) -> DeviceNumber:
        assert device == DEVICE
        return NUMBER

    def read_head(self, device: str) -> Head:
        self.tick()
        assert device == DEVICE
        if any(f" {NUMBER} " in live.table for live in self.live.values()):
            raise InUse(f"{device} is in use; close what uses it first")
        size, content = len(self.disk.content), bytes(self.disk.content)
        if size <= PAYLOAD_OFFSET:
            raise Tampered(f"{device} is too small")
        first, second = (content[place : place + 4096] for place in RECORD_OFFSETS)
        region = bytearray(content[:PAYLOAD_OFFSET])
        for place in RECORD_OFFSETS:
            region[place : place + 4096] = bytes(4096)
        return Head(
            device=device,
            number=NUMBER,
            device_bytes=size,
            header_a=content[:HEADER_PARTS_BYTES],
            header_b=content[HEADER_BYTES : HEADER_BYTES + HEADER_PARTS_BYTES],
            slots=(first, second),
            zero_but_slots=not any(region) and not any(content[size - UNIT :]),
        )

    def read_slots(self, device: str, number: DeviceNumber | None = None) -> tuple[bytes, bytes]:
        self.tick()
        assert device == DEVICE
        assert number == NUMBER or not self.live, "the path is read without asking whether it is still that device"
        first, second = (bytes(self.disk.content[offset : offset + 4096]) for offset in RECORD_OFFSETS)
        return first, second

    def write(self, device: str, offset: int, content: bytes | memoryview, number: DeviceNumber) -> None:
        assert (device, number) == (DEVICE, NUMBER), (
            "the path is written without asking whether it is still that device"
        )
        data = bytes(content)
        assert offset + len(data) <= PAYLOAD_OFFSET
        self.effect(lambda: self.disk.write(offset, data), self.disk.flush)

    def make_header(
        self, profile: Profile, *, device: str, passphrase: Secret, volume_key: Secret, luks_uuid: str
    ) -> bytes:
        assert device == DEVICE
        self._note_making()
        self.effect()
        return luks_copy(luks_uuid, passphrase, volume_key=volume_key.reveal())

    def map_volume(
        self,
        profile: Profile,
        header: bytes | memoryview,
        *,
        device: str,
        name: str,
        passphrase: Secret,
        read_only: bool,
    ) -> None:
        assert device == DEVICE
        content = bytes(header)
        if content[_KEYS_AT : _KEYS_AT + 32] != hashlib.sha256(passphrase.reveal()).digest():
            raise Tampered("the volume's key does not open its own header; nothing was changed")
        uuid = content[168:208].rstrip(b"\0").decode()
        sectors = (len(self.disk.content) - PAYLOAD_OFFSET) // 4096 * 8
        table = (
            f"0 {sectors} crypt aes-xts-plain64 :64:logon:cryptsetup:{uuid}-d0 0 {NUMBER} "
            f"{PAYLOAD_OFFSET // 512} 3 no_read_workqueue no_write_workqueue sector_size:4096"
        )
        key = content[_KEYS_AT + 32 : _KEYS_AT + 96]

        def map_it() -> None:
            assert name not in self.live
            self.numbers += 1
            self.live[name] = Live(self.numbers, table, key, read_only)

        self.effect(map_it)

    def unmap_volume(self, name: str) -> None:
        def unmap() -> None:
            self._write_back(self.live[name])
            del self.live[name]

        self.effect(unmap)

    def mapping(self, name: str) -> Mapping | None:
        self.tick()
        live = self.live.get(name)
        return None if live is None else Mapping(name=name, table=live.table, device=DeviceNumber(253, live.number))

    def stop_writes(self, name: str) -> None:
        raise AssertionError("nothing takes a lease from this guest")

    def make_read_only(self, target: str) -> None:
        raise AssertionError("nothing takes a lease from this guest")

    def is_mapped(self, name: str) -> bool:
        self.tick()
        return name in self.live

    def is_read_only(self, mapping: Mapping) -> bool:
        return self.live[mapping.name].read_only

    def ensure_node(self, mapping: Mapping) -> None:
        self.effect()

    def make_filesystem(self, device: str, filesystem: Filesystem) -> None:
        self._note_making()
        live = self._live_at(device)
        label = _veil(b"a filesystem".ljust(_DATA_AT, b"\0"), live.key)
        empty = _veil(bytes(_DATA_BYTES), live.key)
        self.effect(
            lambda: live.cached.append((PAYLOAD_OFFSET, label)),
            lambda: live.cached.append((PAYLOAD_OFFSET + _DATA_AT, empty)),
        )

    def check_filesystem(self, device: str, filesystem: Filesystem) -> None:
        self.effect()

    def flush(self, device: str) -> None:
        if device == DEVICE:
            self.effect(self.disk.flush)
            return
        live = self._live_at(device)
        self.effect(lambda: self._write_back(live), self.disk.flush, self._tell_lost_write)

    def sync(self, target: str) -> None:
        (mount,) = [mount for mount in self.mounted if mount.target == target]
        live = next(live for live in self.live.values() if DeviceNumber(253, live.number) == mount.device)
        self.effect(lambda: self._write_back(live), self._tell_lost_write)

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)

    def mounts(self) -> tuple[Mount, ...]:
        if self.dead:
            raise Died
        return tuple(self.mounted)

    def mount(self, device: str, target: str, *, filesystem: Filesystem, options: Iterable[str]) -> None:
        live, given = self._live_at(device), frozenset(options)
        assert {"nosuid", "nodev"} <= given
        if self._clear(live, PAYLOAD_OFFSET, _DATA_AT) != b"a filesystem":
            raise ToolFailed("mount: wrong fs type")
        mount = Mount(
            target=target,
            root="/",
            device=DeviceNumber(253, live.number),
            fstype=filesystem,
            source=device,
            options=given,
            super_options=frozenset({"ro" if live.read_only else "rw"}),
        )
        self.effect(lambda: self.mounted.append(mount))

    def unmount(self, target: str) -> None:
        def unmount() -> None:
            self.mounted[:] = [mount for mount in self.mounted if mount.target != target]

        self.effect(unmount)

    # Its inside

    def _tell_lost_write(self) -> None:
        """The kernel tells an error once, to whoever asks first."""
        lost, self.lost_writes = self.lost_writes, 0
        if lost:
            raise OSError(errno.EIO, "Input/output error")

    def _write_back(self, live: Live) -> None:
        for offset, data in live.cached:
            self.disk.write(offset, data)
        live.cached.clear()

    def _clear(self, live: Live, offset: int, length: int) -> bytes:
        """What the mapping shows, its page cache included, without the zeroes at the end."""
        shown = bytearray(self.disk.content)
        for start, data in live.cached:
            shown[start : start + len(data)] = data
        return _veil(bytes(shown[offset : offset + length]), live.key).rstrip(b"\0")

    def _live_at(self, path: str) -> Live:
        return self.live[path.removeprefix("/dev/mapper/")]

    def _note_making(self) -> None:
        self.made_on_active += self.record is not None and self.record.state is VolumeState.ACTIVE


@dataclass
class ModelRegister:
    """A `Register` by the rules of `csi.broker.rules`. A guest may die before a request arrives, or before its answer."""

    machine: Machine

    def open(self, volume_id: str, profile: Profile, used_as: ClaimName = UNNAMED) -> tuple[VolumeRecord, Secret]:
        machine = self.machine

        def allocate() -> None:
            machine.record = machine.record or register.allocate(volume_id, profile)

        machine.effect(allocate)
        assert machine.record is not None
        register.check_open(machine.record, profile)
        return machine.record, SECRET

    def begin_format(self, record: VolumeRecord, *, nonce: str, payload_bytes: int) -> tuple[VolumeRecord, Secret]:
        granted = self._change(
            register.begin_format,
            record,
            nonce=nonce,
            payload_bytes=payload_bytes,
            measurement="m",
            epoch=self.machine.epoch,
            now_unix=NOW,
            lifetime_seconds=60,
        )
        return granted, Secret(self.machine.share or os.urandom(32))

    def commit_format(self, record: VolumeRecord, *, nonce: str, header: bytes, payload_bytes: int) -> VolumeRecord:
        committed = self._change(
            register.commit_format,
            record,
            nonce=nonce,
            measurement="m",
            header_sha256=header_digest(header).hex(),
            payload_bytes=payload_bytes,
        )
        self.machine.escrow = header
        return committed

    def header(self, record: VolumeRecord) -> bytes:
        self.machine.effect()
        return self.machine.escrow

    def begin_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        self.machine._began_at = len(self.machine.disk.seen)
        return self._change(register.begin_open, record, nonce=nonce, generation=generation, epoch=self.machine.epoch)

    def commit_open(self, record: VolumeRecord, *, nonce: str, generation: int) -> VolumeRecord:
        return self._change(register.commit_open, record, nonce=nonce, generation=generation)

    def _change(self, rule: Callable[..., VolumeRecord], record: VolumeRecord, **wish: Any) -> VolumeRecord:
        machine = self.machine

        def change() -> None:
            assert machine.record is not None
            machine.record = rule(machine.record, revision=record.revision, **wish)
            if rule is register.commit_open:
                machine.safe_from = machine._began_at

        machine.effect(change)
        assert machine.record is not None
        return machine.record


def luks_copy(uuid: str, passphrase: Secret, volume_key: bytes) -> bytes:
    """A header copy that the allow-list takes. Its keyslot area opens with the passphrase, in the model's way."""

    def random32() -> str:
        return base64.b64encode(os.urandom(32)).decode()

    document = json.loads(json.dumps(luks_header._XTS))
    document["keyslots"]["0"]["kdf"]["salt"] = random32()
    document["digests"]["0"] |= {"salt": random32(), "digest": random32()}
    area = json.dumps(document).encode().ljust(12288, b"\0")
    copies = b"".join(_binary(uuid, magic, offset, area) for magic, offset in ((b"LUKS", 0), (b"SKUL", 16384)))
    keys = hashlib.sha256(passphrase.reveal()).digest() + volume_key
    return copies + keys.ljust(HEADER_PARTS_BYTES - len(copies), b"\xa5") + bytes(HEADER_BYTES - HEADER_PARTS_BYTES)


def _binary(uuid: str, magic: bytes, offset: int, area: bytes) -> bytes:
    head = struct.pack(
        ">6sHQQ48s32s64s40s48sQ184s64s",
        *(magic + b"\xba\xbe", 2, 16384, 3, b"", b"sha256", os.urandom(64), uuid.encode(), b"", offset, b"", b""),
    )
    copy = head.ljust(4096, b"\0") + area
    return copy[:448] + hashlib.sha256(copy).digest() + copy[480:]


@contextlib.contextmanager
def small_format() -> Iterator[None]:
    """The format's places in the sizes of this module."""
    sizes = {
        "HEADER_BYTES": HEADER_BYTES,
        "HEADER_PARTS_BYTES": HEADER_PARTS_BYTES,
        "HEADER_B_OFFSET": HEADER_BYTES,
        "STATE_RECORD_OFFSETS": RECORD_OFFSETS,
        "PAYLOAD_OFFSET": PAYLOAD_OFFSET,
        "MIB": UNIT,
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (sealed, digests, session, steps, unlock, plan, work, dm_table, luks_header):
            for name, value in sizes.items():
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        yield


def _veil(data: bytes, key: bytes) -> bytes:
    """A cipher that is its own inverse; good enough to notice another key."""
    stream = hashlib.shake_256(key).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")
