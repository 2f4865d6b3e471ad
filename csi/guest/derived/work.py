"""One unlocking of a volume without a register: no permission, no lease, no word of what is newest. Pure of I/O.

Order of a format and of an open: as in `csi.guest.unlock`, without the calls to the register.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, assert_never

from csi.core.errors import InUse, Refused, Tampered
from csi.core.header_digest import header_digest
from csi.core.sealed import HEADER_BYTES, header_of
from csi.core.secret import Secret
from csi.core.size import human
from csi.guest import inspect, steps, unlock
from csi.guest.decide import Decision, Format, HeaderCopy, Open, opened_slots
from csi.guest.derived import decide as plan
from csi.guest.derived.keys import KEY_VERSION
from csi.guest.opened import Opened
from csi.guest.seal import luks_header, state_record
from csi.guest.seal.head import Head
from csi.guest.seal.mapping import Mapping
from csi.guest.seal.state_record import StateRecord
from csi.guest.session import FORMATTED, DeviceSession, new_nonce
from csi.kbs.register import Announcement

_NO_EPOCH: Final = "00" * 16
"""There is no register that could be restored."""
_UNVERIFIED: Final = (
    "freshness is unverified: the broker keeps no register, so an older state of the whole volume, or a blank disk in its "
    "place, is not noticed"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedWork:
    """See above. `share` is what a new volume key is mixed with."""

    session: DeviceSession
    share: Secret

    def unlock(self) -> Opened:
        """Open the volume and mount it, or format it if the policy allows that and the device shows nothing."""
        session = self.session
        session.progress(_UNVERIFIED)
        mapping = steps.mounted_mapping(session, self._mounted_bytes)
        if mapping is not None:
            return session.opened(self._shown().generation, mapping, formatted_now=False, mounted_now=False)
        steps.require_free_mount_point(session)
        head = session.machine.read_head(session.device)
        decision = self._decide(head, may_format=session.may_format)
        try:
            match decision:
                case Format():
                    return self._format(head, decision)
                case Open():
                    return self._open(head, decision)
                case _:
                    assert_never(decision)
        except BaseException:
            steps.close_quietly(session)
            raise

    def map_only(self) -> Mapping:
        """Map a formatted volume after all checks of an open. Raises what `decide` does for one that is not formatted."""
        self._require_closed()
        self.session.progress(_UNVERIFIED)
        head = self.session.machine.read_head(self.session.device)
        decision = self._decide(head, may_format=False)
        if not isinstance(decision, Open):
            raise Refused(f"volume {self.session.volume_id} was never formatted")
        try:
            return steps.mapped(self.session, head, decision)
        except BaseException:
            steps.close_quietly(self.session)
            raise

    def repair(self) -> bool:
        """Write a lost header copy anew from the other one; returns whether one was lost."""
        session = self.session
        self._require_closed()
        if session.read_only:
            raise Refused(f"the policy lets this guest read volume {session.volume_id} only; a repair writes")
        head = session.machine.read_head(session.device)
        mend = plan.repair(session.volume_id, session.rule.profile, steps.view(session, head))
        if mend is None:
            return False
        header = steps.copy_of(head, mend.whole)
        state_record.require_header(mend.found, header_digest(header), HEADER_BYTES, session.keys)
        luks_header.check(header, session.rule.profile, uuid=session.keys.luks_uuid)
        session.write(head, steps.offset_of(mend.lost), header_of(header))
        session.progress(f"header copy {mend.lost.value} is written anew")
        return True

    def described(self) -> Iterator[str]:
        """The lines of `inspect`."""
        session = self.session
        disk = unlock.look(session)
        yield f"register: none; the keys of volume {session.volume_id} are derived from the tenant's root resource"
        yield _UNVERIFIED
        yield f"disk: {human(disk.device_bytes)}"
        for number, slot in enumerate(disk.slots):
            yield f"disk: record {number}: {inspect.slot_in_words(slot, lambda _: 'which nobody else can confirm')}"
        for slot in opened_slots(disk):
            for copy in HeaderCopy:
                right = "the one" if disk.header(copy) == slot.header_sha256 else "NOT the one"
                yield f"disk: header copy {copy.value} is {right} of the record of generation {slot.generation}"
        outcome = inspect.outcome_in_words(
            lambda: plan.decide(session.volume_id, session.rule.profile, disk, may_format=True)
        )
        yield f"an open for writing: {outcome}"

    def _decide(self, head: Head, *, may_format: bool) -> Decision:
        session = self.session
        view = steps.view(session, head)
        return plan.decide(session.volume_id, session.rule.profile, view, may_format=may_format)

    def _format(self, head: Head, decision: Format) -> Opened:
        session = self.session
        session.progress(
            "the device shows nothing, and the policy says that such a one is formatted. A host that hides a used volume's "
            "disk shows the same"
        )
        first = Announcement(generation=FORMATTED, nonce=new_nonce(), epoch=_NO_EPOCH)
        made = steps.make(
            session, head, first, share=self.share, key_version=KEY_VERSION, payload_bytes=decision.payload_bytes
        )
        # Generation 1 is never mounted: where an intent is left, nobody has written anything.
        generation = self._write_next(head, made.first)
        session.mount(made.mapping, formatted_now=True)
        return session.opened(generation, made.mapping, formatted_now=True, mounted_now=True)

    def _open(self, head: Head, decision: Open) -> Opened:
        session, generation = self.session, decision.found.generation
        mapping = steps.mapped(session, head, decision)
        if not session.read_only:
            steps.settle(session, head, decision)
            generation = self._write_next(head, decision.found)
        session.mount(mapping, formatted_now=False)
        return session.opened(generation, mapping, formatted_now=False, mounted_now=True)

    def _write_next(self, head: Head, found: StateRecord) -> int:
        """Write the next generation to the disk, in the words of this guest alone."""
        following = Announcement(generation=found.generation + 1, nonce=new_nonce(), epoch=_NO_EPOCH)
        self.session.require_no_other_guest(head, found)
        self.session.write_record(head, state_record.following(found, following))
        return following.generation

    def _require_closed(self) -> None:
        if self.session.machine.mapping(self.session.name) is not None:
            raise InUse(f"volume {self.session.volume_id} is open; close it first")

    def _shown(self) -> StateRecord:
        found = self.session.newest_on_disk()
        if found is None:
            raise Tampered(f"volume {self.session.volume_id} is mounted, and its device shows no record of it any more")
        return found

    def _mounted_bytes(self) -> int:
        return self._shown().payload_bytes
