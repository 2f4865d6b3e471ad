"""The core: (device, policy rule, register) to a mounted filesystem, or one clear error. Never repairs by formatting.

Order of a format: permission (register) → intent record → header made in memory → mapped → live check → filesystem →
flushed → copy B, copy A, state record → committed (register) → generation raised → mounted. Order of a read-write open:
header checked → mapped → live check → next generation announced (register) → written → committed → checked and mounted.
Killed anywhere and repeated, both end the same; only what the register has committed counts.
"""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from csi.core import filesystems, mounts
from csi.core.command import Runner
from csi.core.device_number import DeviceNumber
from csi.core.errors import Busy, CommandError, InUse, LiveMismatch, Refused, SealedLocalError
from csi.core.sealed import (
    HEADER_A_OFFSET,
    HEADER_B_OFFSET,
    HEADER_BYTES,
    STATE_RECORD_OFFSETS,
    Freshness,
    Profile,
)
from csi.guest import decide as plan
from csi.guest.decide import DiskView, Format, HeaderCopy, Open
from csi.guest.policy import FormatRule, GuestAccess, VolumePolicy
from csi.guest.seal import cryptsetup, device_mapper, dm_table, luks_header, memfd, sealed_device, state_record
from csi.guest.seal import keys as volume_keys
from csi.guest.seal.device_mapper import Mapping
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.sealed_device import Head
from csi.guest.seal.state_record import RecordKind, StateRecord
from csi.kbs.register import Register, VolumeRecord

_log = logging.getLogger(__name__)
_NONCE_BYTES = 24
_FIRST_BYTES = 4096
_FORCED_OPTIONS = ("nosuid", "nodev")
_HEADER_OFFSETS = {HeaderCopy.A: HEADER_A_OFFSET, HeaderCopy.B: HEADER_B_OFFSET}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A volume that is mounted now."""

    volume_id: str
    device: str
    mapping: str
    mount: str
    profile: Profile
    generation: int
    formatted_now: bool
    read_only: bool
    mounted_now: bool
    """False when an earlier call had mounted it."""
    freshness: Freshness = Freshness.HEAD


@dataclass(kw_only=True)
class Unlocker:
    """One unlocking of one volume."""

    volume_id: str
    rule: VolumePolicy
    device: str
    register: Register
    runner: Runner
    progress: Progress = field(default=lambda _: None)
    _number: DeviceNumber | None = field(default=None, init=False)
    """The device that was read: under the same name another one may be plugged in meanwhile."""

    @property
    def read_only(self) -> bool:
        """Whether the measured policy allows reading only."""
        return self.rule.access is GuestAccess.READ_ONLY

    @property
    def mount_point(self) -> str:
        """The policy's mount point as the kernel lists it, links followed."""
        return os.path.realpath(self.rule.mount)

    @cached_property
    def name(self) -> str:
        """The mapping's name."""
        return device_mapper.mapping_name(self.volume_id)

    def unlock(self) -> Opened:
        """Open the volume and mount it; a volume that is mounted already, and rightly, is success."""
        record, secret = self.register.open(self.volume_id, self.rule.profile)
        self.progress(f"the broker released the key of {self.volume_id} (register: {record.state})")
        keys = volume_keys.derive(secret, self.volume_id, record.key_version)
        mounted = self._mounted_already(record, keys)
        if mounted is not None:
            return mounted
        self._require_free_mount_point()
        head = sealed_device.read_head(self.device)
        self._number = head.number
        decision = plan.decide(record, _view(head, keys, self.volume_id), may_format=self._may_format)
        try:
            if isinstance(decision, Format):
                return self._format(record, keys, head, decision)
            return self._open(record, keys, head, decision)
        except BaseException:
            self._close_unmounted()
            raise

    def _require_free_mount_point(self) -> None:
        """A mount over another would hide that one's files, and closing either would unmount both."""
        for mount in mounts.at(self.mount_point):
            raise InUse(
                f"{self.rule.mount} is a mount of {mount.source} already; close that one, or give volume {self.volume_id} "
                "another mount point in the policy"
            )

    @property
    def _may_format(self) -> bool:
        return self.rule.format is FormatRule.ONCE and not self.read_only

    def _format(self, record: VolumeRecord, keys: VolumeKeys, head: Head, decision: Format) -> Opened:
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        payload = decision.payload_bytes
        record = self.register.begin_format(record, nonce=nonce, payload_bytes=payload)
        intent = self._intent(record, payload)
        self._write_record(keys, intent)
        self.progress("formatting, once and for all")
        with memfd.writable(HEADER_BYTES) as descriptor:
            cryptsetup.luks_format(
                self.runner,
                header=descriptor,
                device=self.device,
                passphrase=keys.passphrase,
                luks_uuid=keys.luks_uuid,
            )
            header = os.pread(descriptor, HEADER_BYTES, 0)
        # A cryptsetup that writes anything else would make a volume that no later open accepts.
        luks_header.check(header, uuid=keys.luks_uuid)
        mapping = self._map(keys, head, header, payload)
        filesystems.make(self.runner, mapping.path, self.rule.fstype)
        _flush(mapping.path)
        self._write(HEADER_B_OFFSET, header)
        self._write(HEADER_A_OFFSET, header)
        digest = hashlib.sha256(header).digest()
        mac = state_record.header_mac(digest, len(header), keys)
        first = replace(intent, kind=RecordKind.ACTIVE, generation=1, header_sha256=digest, header_mac=mac)
        self._write_record(keys, first)
        record = self.register.commit_format(record, nonce=nonce, header_sha256=digest.hex(), payload_bytes=payload)
        self.progress("formatted and committed to the register")
        # Mounted is generation 2 at the earliest, so a disk that shows generation 1 never held anybody's data: where the
        # register, restored from a backup, permits the format once more, the disk still forbids it.
        record = self._raise_generation(record, keys, first)
        return self._mount(record, mapping, formatted_now=True, check=False)

    def _open(self, record: VolumeRecord, keys: VolumeKeys, head: Head, decision: Open) -> Opened:
        header = head.header_a() if decision.copy is HeaderCopy.A else head.header_b()
        found = decision.found
        # The plan has found this copy's digest equal to the record's, so the MAC of that digest authenticates the copy.
        state_record.require_header(found, found.header_sha256, len(header), keys)
        luks_header.check(header, uuid=keys.luks_uuid)
        mapping = self._map(keys, head, header, found.payload_bytes)
        self.progress("the header is authentic and the kernel's mapping is the expected one")
        if not self.read_only:
            if decision.mend is not None:
                self._write(_HEADER_OFFSETS[decision.mend], header)
                self.progress(f"header copy {decision.mend.value} was damaged and is written anew")
            record = self._raise_generation(record, keys, found)
        return self._mount(record, mapping, formatted_now=False, check=not self.read_only)

    def _raise_generation(self, record: VolumeRecord, keys: VolumeKeys, found: StateRecord) -> VolumeRecord:
        generation = record.next_generation(found.generation)
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        record = self.register.begin_open(record, nonce=nonce, generation=generation)
        self._require_no_other_guest(keys, found)
        self._write_record(keys, replace(found, generation=generation))
        record = self.register.commit_open(record, nonce=nonce, generation=generation)
        self.progress(f"generation {generation} is committed to the register")
        return record

    def _require_no_other_guest(self, keys: VolumeKeys, found: StateRecord) -> None:
        """Raises `Busy` when the disk shows a newer record than before: another guest has the device, too, and a record
        written now could destroy the one that it committed.
        """
        slots = (
            state_record.decode(slot, keys, self.volume_id)
            for slot in sealed_device.read_slots(self.device, self._number)
        )
        if any(isinstance(slot, StateRecord) and slot.generation > found.generation for slot in slots):
            raise Busy(f"another guest opened volume {self.volume_id} at this moment; end one of the two, then repeat")

    def _map(self, keys: VolumeKeys, head: Head, header: bytes | memoryview, payload_bytes: int) -> Mapping:
        """Open dm-crypt by the private copy, then believe only what the kernel says."""
        with memfd.sealed(header) as descriptor:
            cryptsetup.open_volume(
                self.runner,
                header=descriptor,
                device=self.device,
                name=self.name,
                passphrase=keys.passphrase,
                read_only=self.read_only,
            )
        wanted = dm_table.expected(uuid=keys.luks_uuid, payload_bytes=payload_bytes, device=head.number)
        mapping = self._require_mapping(wanted)
        if self.read_only and not device_mapper.is_read_only(mapping):
            raise LiveMismatch("the kernel's mapping is writable, and the policy says read-only; it is not used")
        return mapping

    def _require_mapping(self, wanted: str) -> Mapping:
        mapping = device_mapper.find(self.runner, self.name)
        if mapping is None:
            raise LiveMismatch("cryptsetup reported success and the kernel has no mapping")
        dm_table.require(mapping.table, wanted)
        device_mapper.ensure_node(self.runner, mapping)
        return mapping

    def _mount(self, record: VolumeRecord, mapping: Mapping, *, formatted_now: bool, check: bool) -> Opened:
        filesystem = self.rule.fstype
        if check:
            filesystems.check(self.runner, mapping.path, filesystem)
        options = [*_FORCED_OPTIONS, *self.rule.options, *(["ro"] if self.read_only else [])]
        os.makedirs(self.rule.mount, mode=0o755, exist_ok=True)  # noqa: PTH103
        try:
            mounts.mount(self.runner, mapping.path, self.rule.mount, fstype=filesystem, options=options)
        except CommandError as error:
            if not self.read_only:
                raise
            # The kernel refuses to skip a journal that it can't replay, and so do we: what it holds was written last.
            raise Refused(
                f"volume {self.volume_id} can't be mounted read-only ({error.stderr.strip()}). Was it not closed in order? "
                "Then open it once by a policy that says rw, which replays its journal"
            ) from error
        self.progress(f"mounted at {self.rule.mount}")
        return self._opened(record, mapping, formatted_now=formatted_now, mounted_now=True)

    def _mounted_already(self, record: VolumeRecord, keys: VolumeKeys) -> Opened | None:
        """A mapping that an earlier call made: the same volume, mounted, is success; not mounted, it is closed.

        A mapping of another device or with another table under this name is never used.
        """
        mapping = device_mapper.find(self.runner, self.name)
        if mapping is None:
            return None
        places = {mount.target: mount for mount in mounts.listed() if mount.device == mapping.device}
        if not places:
            cryptsetup.close_volume(self.runner, self.name)
            return None
        wanted = dm_table.expected(
            uuid=keys.luks_uuid,
            payload_bytes=record.payload_bytes or 0,
            device=sealed_device.number_of(self.device),
        )
        dm_table.require(mapping.table, wanted)
        if self.mount_point not in places:
            raise InUse(f"volume {self.volume_id} is mounted at {', '.join(places)}; close it first")
        if places[self.mount_point].read_only is not self.read_only:
            now = "writable" if self.read_only else "read-only"
            raise InUse(f"volume {self.volume_id} is mounted {now}, and the policy says otherwise; close it first")
        return self._opened(record, mapping, formatted_now=False, mounted_now=False)

    def _opened(self, record: VolumeRecord, mapping: Mapping, *, formatted_now: bool, mounted_now: bool) -> Opened:
        return Opened(
            volume_id=self.volume_id,
            device=self.device,
            mapping=mapping.path,
            mount=self.rule.mount,
            profile=record.profile,
            generation=record.generation,
            formatted_now=formatted_now,
            mounted_now=mounted_now,
            read_only=self.read_only,
        )

    def _intent(self, record: VolumeRecord, payload_bytes: int) -> StateRecord:
        return StateRecord(
            kind=RecordKind.INTENT,
            profile=record.profile,
            key_version=record.key_version,
            generation=0,
            payload_bytes=payload_bytes,
        )

    def _write_record(self, keys: VolumeKeys, record: StateRecord) -> None:
        content = state_record.encode(record, keys, self.volume_id)
        self._write(STATE_RECORD_OFFSETS[record.generation % 2], content)

    def _write(self, offset: int, content: bytes | memoryview) -> None:
        sealed_device.write(self.device, offset, content, self._number)

    def _close_unmounted(self) -> None:
        """After a failure nothing stays mapped; the failure itself is what is told."""
        try:
            mapping = device_mapper.find(self.runner, self.name)
            if mapping is not None and not any(mount.device == mapping.device for mount in mounts.listed()):
                cryptsetup.close_volume(self.runner, self.name)
        except SealedLocalError as error:
            _log.warning("the mapping could not be closed", extra={"name_": self.name, "error": str(error)})


def close(runner: Runner, volume_id: str) -> bool:
    """Unmount and close a volume; answers whether there was anything to do."""
    mapping = device_mapper.find(runner, device_mapper.mapping_name(volume_id))
    if mapping is None:
        return False
    for mount in reversed(mounts.listed()):
        if mount.device == mapping.device:
            mounts.unmount(runner, mount.target)
    cryptsetup.close_volume(runner, mapping.name)
    return True


def _view(head: Head, keys: VolumeKeys, volume_id: str) -> DiskView:
    first, second = (state_record.decode(slot, keys, volume_id) for slot in head.slots())

    def header(copy: HeaderCopy) -> bytes:
        return hashlib.sha256(head.header_a() if copy is HeaderCopy.A else head.header_b()).digest()

    return DiskView(
        device_bytes=head.device_bytes,
        slots=(first, second),
        # A formatted volume shows it in its first bytes; only otherwise is all of it looked at.
        zero_but_slots=not any(head.region[:_FIRST_BYTES]) and head.zero_but_slots(),
        header=header,
        copies_equal=lambda: bytes(head.header_a()) == bytes(head.header_b()),
    )


def _flush(device: str) -> None:
    started = time.monotonic()
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _log.debug("flushed", extra={"device": device, "ms": round((time.monotonic() - started) * 1000)})
