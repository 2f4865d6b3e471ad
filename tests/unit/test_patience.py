"""Waiting for another guest's lease."""

from collections.abc import Callable

import pytest

from csi.core.errors import Busy
from csi.guest import patience
from csi.guest.patience import NO_PATIENCE, Patience


class Other:
    """Another guest, whose lease ends after some tries; time goes on with each look at the clock."""

    def __init__(self, tries: int) -> None:
        self.left = tries
        self.now = 0.0
        self.said: list[str] = []

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise Busy("volume pvc-1 is open in another guest")
        return "taken"

    def clock(self) -> float:
        self.now += 0.5
        return self.now


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Other]:
    def make(tries: int) -> Other:
        made = Other(tries)
        monkeypatch.setattr(patience, "since_boot", made.clock)
        monkeypatch.setattr(patience, "_LOOK_SECONDS", 0)
        return made

    return make


def test_without_patience_the_first_refusal_is_the_last(other: Callable[[int], Other]) -> None:
    guest = other(1)
    with pytest.raises(Busy):
        NO_PATIENCE.until_free(guest, guest.said.append)
    assert (guest.left, guest.said) == (0, [])


def test_it_tries_until_the_lease_is_over_and_says_once_that_it_waits(other: Callable[[int], Other]) -> None:
    guest = other(4)
    assert Patience(seconds=60).until_free(guest, guest.said.append) == "taken"
    assert guest.said == ["volume pvc-1 is open in another guest; waiting 60 s at most"]


def test_patience_ends(other: Callable[[int], Other]) -> None:
    guest = other(1000)
    with pytest.raises(Busy):
        Patience(seconds=30).until_free(guest, guest.said.append)
    assert 20 < guest.now <= 31


def test_it_is_called_off_at_once(other: Callable[[int], Other]) -> None:
    guest = other(1000)
    with pytest.raises(Busy):
        Patience(seconds=600, called_off=lambda: guest.now > 10).until_free(guest, guest.said.append)
    assert guest.now < 12
