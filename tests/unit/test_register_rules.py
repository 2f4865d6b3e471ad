"""The register's rules one by one. What they guarantee together is in tests/properties/test_register_guests.py."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from csi.broker import rules as register
from csi.core.errors import Busy, InvalidInput, Refused
from csi.core.sealed import Profile
from csi.kbs.disk_state import DiskState
from csi.kbs.register import MOST_CANDIDATES, Accepted, Announcement, VolumeRecord, VolumeState

NOW = 1_000_000
EPOCH = "0e" * 16
ALLOCATED = register.allocate("pvc-1", Profile.XTS)


def begin_format(record: VolumeRecord, **changes: Any) -> VolumeRecord:
    arguments = {
        "revision": record.revision,
        "nonce": "first",
        "payload_bytes": 4096,
        "measurement": "m",
        "epoch": EPOCH,
        "now_unix": NOW,
        "lifetime_seconds": 100,
    }
    return register.begin_format(record, **(arguments | changes))


def commit_format(record: VolumeRecord, **changes: Any) -> VolumeRecord:
    arguments = {
        "revision": record.revision,
        "nonce": "first",
        "measurement": "m",
        "header_sha256": "ab" * 32,
        "payload_bytes": 4096,
    }
    return register.commit_format(record, **(arguments | changes))


FORMATTING = begin_format(ALLOCATED)
ACTIVE = commit_format(FORMATTING)
RETIRED = register.retire(ACTIVE)
SHREDDED = register.shred(RETIRED)


def begin_open(record: VolumeRecord, generation: int, nonce: str = "open", **changes: Any) -> VolumeRecord:
    return register.begin_open(
        record, **({"revision": record.revision, "nonce": nonce, "generation": generation, "epoch": EPOCH} | changes)
    )


def commit_open(record: VolumeRecord, generation: int, nonce: str = "open", **changes: Any) -> VolumeRecord:
    return register.commit_open(
        record, **({"revision": record.revision, "nonce": nonce, "generation": generation} | changes)
    )


OPENING = begin_open(ACTIVE, 2)


def announced(generation: int, nonce: str = "open") -> Announcement:
    return Announcement(generation=generation, nonce=nonce, epoch=EPOCH)


def on_disk(announcement: Announcement) -> DiskState:
    return DiskState(announcement=announcement, header_sha256="cd" * 32, payload_bytes=8192)


def test_a_life() -> None:
    opened = commit_open(OPENING, 2)
    assert (FORMATTING.state, FORMATTING.grant.deadline_unix if FORMATTING.grant else 0) == ("formatting", NOW + 100)
    assert (ACTIVE.state, ACTIVE.generation, ACTIVE.grant, ACTIVE.header_sha256) == ("active", 1, None, "ab" * 32)
    assert (opened.head, opened.candidates, opened.announced) == (announced(2), (), 2)
    assert [item.revision for item in (ALLOCATED, FORMATTING, ACTIVE, OPENING, opened)] == [1, 2, 3, 4, 5]
    assert (RETIRED.state, SHREDDED.state) == ("retired", "shredded")


def test_an_unsealed_volume_has_no_record() -> None:
    with pytest.raises(InvalidInput, match="profile"):
        register.allocate("pvc-1", Profile.NONE)


@pytest.mark.parametrize("record", [ACTIVE, OPENING, RETIRED, SHREDDED], ids=lambda item: item.state)
def test_a_volume_that_was_formatted_is_never_formatted_again(record: VolumeRecord) -> None:
    for nonce in ("first", "another"):
        with pytest.raises(Refused, match="never formatted again"):
            begin_format(record, nonce=nonce)
    with pytest.raises(Refused):
        register.reset(record)


@pytest.mark.parametrize(
    ("repeat", "record", "answer"),
    [
        (lambda record: begin_format(record, revision=ALLOCATED.revision), FORMATTING, FORMATTING),
        (lambda record: commit_format(record, revision=FORMATTING.revision), ACTIVE, ACTIVE),
        (lambda record: begin_open(record, 2, revision=ACTIVE.revision), OPENING, OPENING),
        (
            lambda record: commit_open(record, 2, revision=OPENING.revision),
            commit_open(OPENING, 2),
            commit_open(OPENING, 2),
        ),
        (register.retire, RETIRED, RETIRED),
        (register.shred, SHREDDED, SHREDDED),
    ],
)
def test_a_request_whose_answer_was_lost_gets_it_when_repeated(
    repeat: Callable[[VolumeRecord], VolumeRecord], record: VolumeRecord, answer: VolumeRecord
) -> None:
    assert repeat(record) == answer


def test_a_repeat_comes_too_late_once_another_guest_went_on() -> None:
    with pytest.raises(Busy):
        begin_open(begin_open(OPENING, 3, "other"), 2, revision=ACTIVE.revision)
    with pytest.raises(Refused):
        commit_format(OPENING, revision=FORMATTING.revision)
    with pytest.raises(Busy):
        commit_open(begin_open(commit_open(OPENING, 2), 3, "other"), 2, revision=OPENING.revision)


def test_one_kind_of_commit_is_not_the_repeat_of_the_other() -> None:
    with pytest.raises(Busy):
        commit_open(ACTIVE, 1, "first", revision=FORMATTING.revision)
    opened = commit_open(OPENING, 2)
    with pytest.raises(Refused):
        commit_format(opened, revision=OPENING.revision, nonce="open")


def test_a_takeover_from_an_old_reading_is_busy() -> None:
    with pytest.raises(Busy):
        begin_format(FORMATTING, nonce="second", revision=ALLOCATED.revision)


def test_a_repeat_with_other_values_is_refused() -> None:
    with pytest.raises(Refused, match="other values"):
        commit_format(ACTIVE, revision=FORMATTING.revision, header_sha256="cd" * 32)


@pytest.mark.parametrize("state", [ALLOCATED, FORMATTING, ACTIVE, OPENING])
def test_a_change_from_an_old_reading_is_busy(state: VolumeRecord) -> None:
    change = {
        VolumeState.ALLOCATED: lambda record, revision: begin_format(record, revision=revision),
        VolumeState.FORMATTING: lambda record, revision: commit_format(record, revision=revision),
        VolumeState.ACTIVE: lambda record, revision: begin_open(record, 9, revision=revision),
    }[state.state]
    for revision in (state.revision - 1, state.revision + 1):
        with pytest.raises(Busy, match="another guest"):
            change(state, revision)


def test_formatting_is_taken_over_by_the_same_measurement_before_the_deadline() -> None:
    taken = begin_format(FORMATTING, nonce="second", payload_bytes=8192, now_unix=NOW + 100)
    assert taken.grant is not None
    assert (taken.grant.nonce, taken.grant.deadline_unix, taken.revision) == (
        "second",
        NOW + 100,
        FORMATTING.revision + 1,
    )
    assert taken.payload_bytes == 8192
    # The guest that was taken for dead comes back: its commit must not count.
    with pytest.raises(Busy):
        commit_format(taken, revision=FORMATTING.revision)
    with pytest.raises(Refused, match="another guest"):
        commit_format(taken)


def test_formatting_is_not_taken_over_late_or_by_another_measurement() -> None:
    with pytest.raises(Refused, match=r"not finished in time.*reset pvc-1"):
        begin_format(FORMATTING, nonce="second", now_unix=NOW + 101)
    with pytest.raises(Refused, match="another measurement"):
        begin_format(FORMATTING, nonce="second", measurement="n")
    with pytest.raises(Refused, match="another measurement"):
        begin_format(FORMATTING, revision=ALLOCATED.revision, measurement="n")
    with pytest.raises(Refused, match="another measurement"):
        commit_format(FORMATTING, measurement="n")


def test_a_slow_format_is_still_committed() -> None:
    assert commit_format(FORMATTING).state is VolumeState.ACTIVE  # commit_format knows no clock


def test_a_commit_must_name_what_was_granted() -> None:
    with pytest.raises(Refused, match="4096"):
        commit_format(FORMATTING, payload_bytes=8192)
    with pytest.raises(Refused, match="no permission"):
        commit_format(ALLOCATED)


def test_reset_gives_up_a_format_for_good() -> None:
    again = register.reset(FORMATTING)
    assert (again.state, again.grant, again.payload_bytes) == ("allocated", None, None)
    with pytest.raises(Refused):
        commit_format(again, revision=FORMATTING.revision)
    second = begin_format(again, nonce="second")
    with pytest.raises(Busy):
        commit_format(second, revision=FORMATTING.revision)


@pytest.mark.parametrize("generation", [0, 1, 3, 99])
def test_generations_go_up_by_one(generation: int) -> None:
    with pytest.raises(Refused, match=r"must be 2$"):
        begin_open(ACTIVE, generation)


def test_a_takeover_announces_a_number_that_nobody_announced() -> None:
    with pytest.raises(Refused, match="2 is, so it must be 3"):
        begin_open(OPENING, 2, "other")
    taken = begin_open(OPENING, 3, "other")
    with pytest.raises(Refused, match="not announced"):
        commit_open(taken, 2)
    assert commit_open(taken, 3, "other").generation == 3


def test_only_the_announced_generation_with_its_nonce_is_committed() -> None:
    for generation, nonce in ((3, "open"), (2, "other"), (1, "open")):
        with pytest.raises(Refused, match="not announced"):
            commit_open(OPENING, generation, nonce)


@pytest.mark.parametrize("record", [ALLOCATED, FORMATTING, RETIRED, SHREDDED], ids=lambda item: item.state)
def test_only_an_active_volume_is_opened_for_writing(record: VolumeRecord) -> None:
    with pytest.raises(Refused, match=f"is {record.state}"):
        begin_open(record, 2)
    with pytest.raises(Refused, match=f"is {record.state}"):
        commit_open(record, 2)


@pytest.mark.parametrize("record", [RETIRED, SHREDDED], ids=lambda item: item.state)
def test_the_secret_of_a_retired_volume_is_not_released(record: VolumeRecord) -> None:
    with pytest.raises(Refused, match="not released"):
        register.check_open(record, Profile.XTS)


def test_a_guest_that_expects_another_profile_gets_no_secret() -> None:
    with pytest.raises(Refused, match="profile"):
        register.check_open(ACTIVE, Profile.NONE)


@pytest.mark.parametrize("record", [FORMATTING, ACTIVE], ids=lambda item: item.state)
def test_a_volume_in_use_is_not_shredded_by_one_word(record: VolumeRecord) -> None:
    with pytest.raises(Refused, match="retire"):
        register.shred(record)


def test_a_retirement_is_taken_back() -> None:
    assert register.reinstate(RETIRED) == replace(ACTIVE, revision=RETIRED.revision + 1, last_nonce=None)
    again = register.reinstate(register.retire(OPENING))
    assert (again.state, again.candidates) == (VolumeState.ACTIVE, OPENING.candidates)
    for record in (ALLOCATED, FORMATTING):
        fresh = register.reinstate(register.retire(record))
        assert (fresh.state, fresh.grant, fresh.payload_bytes) == (VolumeState.ALLOCATED, None, None)
    for record in (ALLOCATED, FORMATTING, ACTIVE, SHREDDED):
        with pytest.raises(Refused, match="only a retired"):
            register.reinstate(record)


def test_what_was_destroyed_stays_so() -> None:
    with pytest.raises(Refused):
        register.retire(SHREDDED)
    assert register.shred(ALLOCATED).state is VolumeState.SHREDDED


BEGIN: dict[VolumeState, Callable[[VolumeRecord, str], VolumeRecord]] = {
    VolumeState.FORMATTING: lambda record, nonce: begin_format(record, nonce=nonce, payload_bytes=8192),
    VolumeState.ACTIVE: lambda record, nonce: begin_open(record, record.announced + 1, nonce),
}


@pytest.mark.parametrize("record", [FORMATTING, ACTIVE, OPENING], ids=["granted", "committed", "announced"])
def test_a_nonce_is_used_once(record: VolumeRecord) -> None:
    nonce = "open" if record is OPENING else "first"
    with pytest.raises(Refused, match="used for volume pvc-1 before"):
        BEGIN[record.state](record, nonce)


def test_guests_that_die_while_they_open_are_bounded() -> None:
    record = ACTIVE
    for number in range(MOST_CANDIDATES):
        record = begin_open(record, number + 2, f"open-{number}")
    assert len(record.candidates) == MOST_CANDIDATES
    with pytest.raises(Refused, match=r"announced 32 times.*volume accept pvc-1"):
        begin_open(record, MOST_CANDIDATES + 2, "one more")
    freed = register.accept(record, on_disk(record.candidates[3]), reason="crash loop", now_unix=NOW)
    assert begin_open(freed, MOST_CANDIDATES + 2, "one more").candidates == (
        announced(MOST_CANDIDATES + 2, "one more"),
    )


def test_what_is_known_is_the_head_and_what_was_announced_since() -> None:
    opened = commit_open(OPENING, 2)
    assert [OPENING.knows(item) for item in (announced(1, "first"), announced(2))] == [True, True]
    assert [opened.knows(item) for item in (announced(1, "first"), announced(2))] == [False, True]
    for other in (replace(announced(2), epoch="0f" * 16), announced(2, "other"), announced(3)):
        assert not opened.knows(other), "a number alone opens nothing"


def test_an_accepted_state_is_the_only_one_and_numbers_do_not_go_back() -> None:
    lost = announced(9, "lost")
    accepted = register.accept(OPENING, on_disk(lost), reason="restored", now_unix=NOW)
    assert (accepted.head, accepted.candidates, accepted.announced) == (lost, (), 9)
    assert accepted.accepted == (Accepted(at_unix=NOW, was=OPENING.head, now=lost, reason="restored"),)
    assert register.accept(accepted, on_disk(lost), reason="again", now_unix=NOW) == accepted
    back = register.accept(accepted, on_disk(announced(1, "first")), reason="an older disk", now_unix=NOW)
    assert (back.generation, back.announced) == (1, 9)
    with pytest.raises(Refused, match="must be 10"):
        begin_open(back, 2)
    with pytest.raises(Busy):
        commit_open(accepted, 2, revision=OPENING.revision)


def accept_unread(record: VolumeRecord) -> VolumeRecord:
    return register.accept_unread(record, nonce="anew", epoch=EPOCH, reason="bad sectors", now_unix=NOW)


def test_a_disk_without_a_record_gets_a_state_that_no_disk_shows() -> None:
    accepted = accept_unread(OPENING)
    assert (accepted.head, accepted.candidates, accepted.announced) == (announced(3, "anew"), (), 3)
    assert (accepted.unwritten, accepted.header_sha256) == (True, OPENING.header_sha256)
    assert accepted.accepted[-1] == Accepted(
        at_unix=NOW, was=OPENING.head, now=announced(3, "anew"), reason="bad sectors"
    )
    assert not any(accepted.knows(item) for item in (announced(1, "first"), announced(2)))
    opening = begin_open(accepted, 4, "after")
    assert opening.unwritten, "a guest that dies before its commit may be followed by another repair"
    assert not commit_open(opening, 4, "after").unwritten
    found = register.accept(accepted, on_disk(announced(3, "anew")), reason="found", now_unix=NOW)
    assert not found.unwritten, "a record that a person has seen is on a disk"
    assert accept_unread(register.retire(OPENING)).state is VolumeState.RETIRED
    for record in (ALLOCATED, FORMATTING, SHREDDED, register.retire(ALLOCATED)):
        with pytest.raises(Refused, match="no formatted disk"):
            accept_unread(record)


def test_a_format_that_the_register_forgot_is_accepted() -> None:
    accepted = register.accept(ALLOCATED, on_disk(announced(4, "lost")), reason="restored", now_unix=NOW)
    assert (accepted.state, accepted.header_sha256, accepted.payload_bytes) == (VolumeState.ACTIVE, "cd" * 32, 8192)
    for record in (FORMATTING, SHREDDED):
        with pytest.raises(Refused, match="no state of a disk can be accepted"):
            register.accept(record, on_disk(announced(4, "lost")), reason="restored", now_unix=NOW)
    held = register.accept(RETIRED, on_disk(announced(4, "lost")), reason="restored", now_unix=NOW)
    assert held.state is VolumeState.RETIRED


def test_a_restored_register_knows_what_was_committed_and_nothing_that_was_begun() -> None:
    back = register.restored(ACTIVE, 60)
    assert replace(back, lease=None, revision=ACTIVE.revision, last_nonce=ACTIVE.last_nonce) == ACTIVE
    again = register.restored(OPENING, 60)
    assert (again.head, again.candidates, again.announced) == (ACTIVE.head, (), 2)
    with pytest.raises(Refused, match="not announced"):
        commit_open(again, 2)
    assert register.restored(FORMATTING, 60).state is VolumeState.ALLOCATED
    assert register.restored(SHREDDED, 60) == SHREDDED
