"""Records that no rule makes, and commits that are nearly a repeated one: nothing is granted on doubt."""

from dataclasses import replace

import pytest

from csi.core.errors import Refused, SealedLocalError
from csi.kbs.register import VolumeRecord
from tests.unit.test_register_rules import (
    ACTIVE,
    FORMATTING,
    OPENING,
    RETIRED,
    begin_format,
    commit_format,
)


@pytest.mark.parametrize("record", [ACTIVE, RETIRED], ids=["active", "retired"])
def test_a_grant_that_was_left_over_permits_nothing(record: VolumeRecord) -> None:
    left_over = replace(record, grant=FORMATTING.grant)
    with pytest.raises(Refused, match="never formatted again"):
        begin_format(left_over)
    with pytest.raises(Refused, match="no permission to format"):
        commit_format(left_over)


def test_formatting_without_a_grant_permits_nothing() -> None:
    lost = replace(FORMATTING, grant=None)
    with pytest.raises(Refused, match="never formatted again"):
        begin_format(lost)
    with pytest.raises(Refused, match="no permission to format"):
        commit_format(lost)


@pytest.mark.parametrize("record", [RETIRED, OPENING], ids=["retired since", "announced since"])
def test_a_commit_is_repeated_only_while_it_is_the_last_change(record: VolumeRecord) -> None:
    with pytest.raises(SealedLocalError):
        commit_format(record, revision=record.revision - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"nonce": "other", "revision": FORMATTING.revision},
        {"nonce": "other", "revision": ACTIVE.revision},
        {"revision": ACTIVE.revision},
        {"revision": FORMATTING.revision - 1},
    ],
    ids=["another nonce", "another nonce, later", "a later reading", "an earlier reading"],
)
def test_a_commit_that_is_not_quite_the_last_one_is_refused(changes: dict[str, object]) -> None:
    assert commit_format(ACTIVE, revision=FORMATTING.revision) == ACTIVE
    with pytest.raises(SealedLocalError):
        commit_format(ACTIVE, **changes)
