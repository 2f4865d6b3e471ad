"""One unlocking of one volume at one device: what this guest may do with it, and the steps that format and open share.

Pure of I/O: everything outside of memory is done by the machine and by the register that a session is given.
"""

import secrets
from dataclasses import dataclass

from csi.core.errors import Busy, LiveMismatch, Refused, ToolFailed
from csi.core.sealed import STATE_RECORD_OFFSETS, Freshness
from csi.core.secret import Secret
from csi.guest.machine import Machine
from csi.guest.opened import Opened, Progress
from csi.guest.policy import FormatRule, GuestAccess, VolumePolicy
from csi.guest.seal import dm_table, state_record
from csi.guest.seal import keys as volume_keys
from csi.guest.seal.head import Head
from csi.guest.seal.keys import VolumeKeys
from csi.guest.seal.mapping import Mapping, mapping_name
from csi.guest.seal.profiles import freshness
from csi.guest.seal.state_record import RecordKind, StateRecord
from csi.kbs.register import Announcement, Register, VolumeRecord

_NONCE_BYTES = 32
FORMATTED = 1
"""The generation that a format leaves. It is never mounted."""
_FORCED_OPTIONS = ("nosuid", "nodev")


def new_nonce() -> str:
    """A name for one change of the register that nobody else can have chosen."""
    return secrets.token_hex(_NONCE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSession:
    """See above, without anybody who says what the newest state is. `keys` are those of `volume_id`; `progress` is told
    each step in words for a person.
    """

    volume_id: str
    keys: VolumeKeys
    rule: VolumePolicy
    device: str
    machine: Machine
    progress: Progress

    @property
    def freshness(self) -> Freshness:
        """How much of the opened volume is known to be the newest."""
        return Freshness.UNVERIFIED

    @property
    def read_only(self) -> bool:
        """Whether the measured policy allows reading only."""
        return self.rule.access is GuestAccess.READ_ONLY

    @property
    def may_format(self) -> bool:
        """Whether policy and access mode allow a format, should the register permit it."""
        return self.rule.format is FormatRule.ONCE and not self.read_only

    @property
    def mount_point(self) -> str:
        """The policy's mount point as the kernel lists it."""
        return self.machine.real_path(self.rule.mount)

    @property
    def name(self) -> str:
        """The mapping's name."""
        return mapping_name(self.volume_id)

    def write(self, head: Head, offset: int, content: bytes | memoryview) -> None:
        """Write to the device that was read: under the same name another one may be plugged in meanwhile."""
        self.machine.write(self.device, offset, content, head.number)

    def write_record(self, head: Head, record: StateRecord) -> None:
        """Write a state record into its slot."""
        content = state_record.encode(record, self.keys, self.volume_id)
        self.write(head, STATE_RECORD_OFFSETS[record.sequence % 2], content)

    def new_volume_key(self, share: Secret, key_version: int) -> Secret:
        """A key for the data of a new volume, mixed from the broker's share and as many random bytes of this guest."""
        return volume_keys.volume_key(secrets.token_bytes(64), share, self.volume_id, key_version)

    def newest_on_disk(self) -> StateRecord | None:
        """The newest open record that the device shows at this moment."""
        raw = self.machine.read_slots(self.device, self.machine.number_of(self.device))
        slots = [state_record.decode(slot, self.keys, self.volume_id) for slot in raw]
        opened = [slot for slot in slots if isinstance(slot, StateRecord) and slot.kind is RecordKind.OPEN]
        return max(opened, key=lambda slot: slot.sequence, default=None)

    def require_no_other_guest(self, head: Head, found: StateRecord) -> None:
        """Raises `Busy` when the disk shows a newer record than before: another guest has the device, too, and a record
        written now could destroy the one that it committed.
        """
        slots = (
            state_record.decode(slot, self.keys, self.volume_id)
            for slot in self.machine.read_slots(self.device, head.number)
        )
        if any(isinstance(slot, StateRecord) and slot.sequence > found.sequence for slot in slots):
            raise Busy(f"another guest opened volume {self.volume_id} at this moment; end one of the two, then repeat")

    def map(self, head: Head, header: bytes | memoryview, payload_bytes: int) -> Mapping:
        """Open dm-crypt by the private copy, then believe only what the kernel says. Raises `LiveMismatch`."""
        self.machine.map_volume(
            self.rule.profile,
            header,
            device=self.device,
            name=self.name,
            passphrase=self.keys.passphrase,
            read_only=self.read_only,
        )
        mapping = self.machine.mapping(self.name)
        if mapping is None:
            raise LiveMismatch("cryptsetup reported success and the kernel has no mapping")
        wanted = dm_table.expected(
            self.rule.profile, uuid=self.keys.luks_uuid, payload_bytes=payload_bytes, device=head.number
        )
        dm_table.require(mapping.table, wanted)
        self.machine.ensure_node(mapping)
        if self.read_only and not self.machine.is_read_only(mapping):
            raise LiveMismatch("the kernel's mapping is writable, and the policy says read-only; it is not used")
        return mapping

    def mount(self, mapping: Mapping, *, formatted_now: bool) -> None:
        """Mount by the policy's options, checked before unless it was made now or nothing may be written."""
        if not formatted_now and not self.read_only:
            self.machine.check_filesystem(mapping.path, self.rule.fstype)
        options = [*_FORCED_OPTIONS, *self.rule.options, *(["ro"] if self.read_only else [])]
        try:
            self.machine.mount(mapping.path, self.rule.mount, filesystem=self.rule.fstype, options=options)
        except ToolFailed as error:
            if not self.read_only:
                raise
            # The kernel refuses to skip a journal that it can't replay, and so do we: what it holds was written last.
            raise Refused(
                f"volume {self.volume_id} can't be mounted read-only ({error}). Was it not closed in order? "
                "Then open it once by a policy that says rw, which replays its journal"
            ) from error
        self.progress(f"mounted at {self.rule.mount}")

    def opened(self, generation: int, mapping: Mapping, *, formatted_now: bool, mounted_now: bool) -> Opened:
        """The result."""
        return Opened(
            volume_id=self.volume_id,
            device=self.device,
            mapping=mapping.path,
            mount=self.rule.mount,
            profile=self.rule.profile,
            freshness=self.freshness,
            generation=generation,
            formatted_now=formatted_now,
            mounted_now=mounted_now,
            read_only=self.read_only,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session(DeviceSession):
    """One unlocking with a register, which says what the newest state is and permits each change."""

    register: Register

    @property
    def freshness(self) -> Freshness:
        """See `DeviceSession`."""
        return freshness(self.rule.profile)

    def granted(self, record: VolumeRecord, nonce: str) -> Announcement:
        """Under what a permitted format writes its first state. Raises `Refused` for a permission of somebody else."""
        if record.grant is None or record.grant.nonce != nonce:
            raise Refused(f"the broker gave no permission to format volume {self.volume_id}")
        return Announcement(generation=FORMATTED, nonce=nonce, epoch=record.grant.epoch)

    def announce(self, head: Head, record: VolumeRecord, found: StateRecord) -> VolumeRecord:
        """Announce the next generation and write it to the disk. Raises `Busy` when another guest does so, too."""
        generation, nonce = record.announced + 1, new_nonce()
        record = self.register.begin_open(record, nonce=nonce, generation=generation)
        announced = record.candidates[-1] if record.candidates else None
        if announced is None or (announced.generation, announced.nonce) != (generation, nonce):
            raise Refused(f"the broker did not announce generation {generation} of volume {self.volume_id}")
        self.require_no_other_guest(head, found)
        self.write_record(head, state_record.following(found, announced))
        return record

    def commit(self, record: VolumeRecord) -> VolumeRecord:
        """Commit the newest announcement, which is on the disk: the filesystem is whole and mounted, older disks are not
        needed any more.
        """
        announced = record.candidates[-1]
        record = self.register.commit_open(record, nonce=announced.nonce, generation=announced.generation)
        self.progress(f"generation {announced.generation} is committed to the register")
        return record
