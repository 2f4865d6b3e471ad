"""Looking at the register, and the operator's changes of it."""

import json
import os
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from functools import partial

import msgspec

from csi.broker import leases
from csi.broker import rules as register
from csi.broker.audit import OPERATOR, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.owner import Owner
from csi.broker.rows import StoredVolume
from csi.broker.verbs.common import as_json
from csi.broker.volumes import new_volume
from csi.core.errors import Busy, InvalidInput, Refused
from csi.core.sealed import Profile
from csi.kbs import disk_state, strict_json, volumes_api
from csi.kbs.claim_name import UNNAMED, ClaimName
from csi.kbs.disk_state import DiskState
from csi.kbs.register import VolumeRecord

_NONCE_BYTES = 32


def list_all(arguments: Namespace) -> int:
    """One line a volume."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        volumes, epoch = store.all_stored(), store.epoch()
    if arguments.json:
        for stored in volumes:
            print(as_json(_members(stored, epoch)))
        return 0
    rows = [("VOLUME", "STATE", "PROFILE", "GENERATION", "REVISION", "OWNER"), *map(_columns, volumes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    print(f"register epoch {epoch}")
    return 0


def show(arguments: Namespace) -> int:
    """A record, readable and as JSON at once."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        stored, epoch = store.stored(arguments.id), store.epoch()
    print(json.dumps(_members(stored, epoch), indent=2))
    return 0


def allocate(arguments: Namespace) -> int:
    """Make a record and its secret before any guest asks."""
    volumes_api.check_volume_id(arguments.id)
    directory, profile = BrokerDirectory(arguments.dir), Profile(arguments.profile)
    used_as = _used_as(arguments)
    if arguments.workload is None and used_as != UNNAMED:
        raise InvalidInput("--namespace", "needs --workload")
    owner = None if arguments.workload is None else _owner(directory, arguments.workload, used_as)
    detail = f"profile={profile}" + (f" owner={owner}" if owner else "")
    event = Event(actor=OPERATOR, action="allocated", subject=arguments.id, detail=detail)
    with closing(directory.open_store()) as store:
        record, wrapped = new_volume(directory.open_vault(store), arguments.id, profile)
        found = store.allocate(record, wrapped, event, owner=owner)
        owned = store.stored(arguments.id).owner
    if found is not None and (found != record or owned != owner):
        raise Refused(
            f"volume {found.volume_id} exists already: it is {found.state}, profile {found.profile}, revision "
            f"{found.revision}, owner {owned or 'nobody'}. It stays as it is; a new volume needs another id"
        )
    print(f"volume {record.volume_id} is {record.state}{'' if found is None else ' already'}, profile {record.profile}")
    return 0


def hand_over(arguments: Namespace) -> int:
    """Give a volume to another owner."""
    directory = BrokerDirectory(arguments.dir)
    owner = _owner(directory, arguments.to, _used_as(arguments))
    event = Event(actor=OPERATOR, action="handed-over", subject=arguments.id)
    with closing(directory.open_store()) as store:
        store.hand_over(arguments.id, owner, register.hand_over, event)
    print(f"volume {arguments.id} belongs to {owner}")
    return 0


def accept(arguments: Namespace) -> int:
    """Take the state that a disk shows for the volume's."""
    found = None if arguments.found is None else disk_state.parse(arguments.found, "--found")
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        was = store.volume(arguments.id)
        shown = "no record that can be read" if found is None else found
        print(f"the register:  {_state_of(was)}\nthe disk:      {shown}")
        if not arguments.yes:
            raise Refused(
                f"accepting the disk's state makes it the only one of volume {arguments.id} that opens; what was written "
                "under any other one is given up. Is it the newest disk there is? Then add --yes"
            )
        rule = _accepting(found, store.epoch(), arguments.reason)
        detail = f"was={_state_of(was)} now={shown} reason={arguments.reason}"
        event = Event(actor=OPERATOR, action="accepted", subject=arguments.id, detail=detail)
        record = store.change(arguments.id, lambda now: rule(_unchanged(now, was)), event)
    then = "; now a guest writes its record: sealed-local guest repair" if record.unwritten else ""
    print(f"volume {record.volume_id} is {record.state} at generation {record.generation}, by that state alone{then}")
    return 0


def _accepting(found: DiskState | None, epoch: str, reason: str) -> Callable[[VolumeRecord], VolumeRecord]:
    now = int(time.time())
    if found is not None:
        return partial(register.accept, found=found, reason=reason, now_unix=now)
    nonce = os.urandom(_NONCE_BYTES).hex()
    return partial(register.accept_unread, nonce=nonce, epoch=epoch, reason=reason, now_unix=now)


def end_lease(arguments: Namespace) -> int:
    """Let the next guest in at once."""
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        held = store.volume(arguments.id).lease
        if held is None:
            print(f"volume {arguments.id} has no lease; the next guest gets in as it is")
            return 0
        if not arguments.yes:
            raise Refused(
                f"guest {held.holder} holds the lease of volume {arguments.id}. If it lives it writes on until it hears of "
                "this, beside the next guest, and the filesystem is destroyed. Is it certainly dead? Then add --yes"
            )
        event = Event(actor=OPERATOR, action="lease-ended", subject=arguments.id, detail=f"reason={arguments.reason}")
        store.change(arguments.id, leases.end, event)
    print(f"volume {arguments.id} has no lease any more")
    return 0


def reset(arguments: Namespace) -> int:
    """End a formatting that nobody will finish."""
    return _operate(arguments, "reset", register.reset)


def retire(arguments: Namespace) -> int:
    """Stop the release of a secret."""
    return _operate(arguments, "retired", register.retire)


def reinstate(arguments: Namespace) -> int:
    """Release a retired volume's secret again."""
    return _operate(arguments, "reinstated", register.reinstate)


def shred(arguments: Namespace) -> int:
    """Destroy a secret."""
    if not arguments.yes:
        raise Refused(f"shredding destroys the data of volume {arguments.id} for ever; if that is meant, add --yes")
    return _operate(arguments, "shredded", register.shred, destroy_secret=True)


def _operate(
    arguments: Namespace, action: str, rule: Callable[[VolumeRecord], VolumeRecord], *, destroy_secret: bool = False
) -> int:
    event = Event(actor=OPERATOR, action=action, subject=arguments.id)
    with closing(BrokerDirectory(arguments.dir).open_store()) as store:
        record = store.change(arguments.id, rule, event, destroy_secret=destroy_secret)
    print(f"volume {record.volume_id} is {record.state}")
    return 0


def _unchanged(now: VolumeRecord, shown: VolumeRecord) -> VolumeRecord:
    """What is accepted must be what the operator was shown."""
    if now != shown:
        raise Busy(f"volume {now.volume_id} changed at this moment; look again")
    return now


def _state_of(record: VolumeRecord) -> str:
    if record.head is None:
        return f"{record.state}, never committed"
    head = DiskState(
        announcement=record.head, header_sha256=record.header_sha256 or "", payload_bytes=record.payload_bytes or 0
    )
    return f"{head} ({len(record.candidates)} announced since)"


def _members(stored: StoredVolume, epoch: str) -> dict[str, object]:
    return {
        **msgspec.to_builtins(stored.record),
        "generation": stored.record.generation,
        "owner": None if stored.owner is None else msgspec.to_builtins(stored.owner),
        "epoch": epoch,
    }


def _columns(stored: StoredVolume) -> tuple[str, str, str, str, str, str]:
    record = stored.record
    generation, revision = str(record.generation), str(record.revision)
    return record.volume_id, record.state, record.profile, generation, revision, str(stored.owner or "-")


def _owner(directory: BrokerDirectory, name: str, used_as: ClaimName) -> Owner:
    """A misspelt workload would be an owner that no guest ever is."""
    known = [work.name for work in directory.load_policy().workloads]
    if name not in known:
        raise InvalidInput("workload", f"{name!r} is not in the policy; there are: {', '.join(known) or 'none'}")
    return Owner(workload=name, used_as=used_as)


def _used_as(arguments: Namespace) -> ClaimName:
    names = {"namespace": arguments.namespace, "claim": arguments.claim}
    return strict_json.convert(names, ClaimName, "--namespace, --claim")
