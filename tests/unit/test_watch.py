"""When a start that could not be completed is tried again: at news of disks, else ever more seldom, never not at all."""

from collections.abc import Callable

from csi.node import watch


class Time:
    """Counts the seconds that are waited, and stops the repetition after so many."""

    def __init__(self, until: int, disks_at: dict[int, object] | None = None) -> None:
        self.now = 0
        self._until = until
        self._disks = disks_at or {}

    def disks(self) -> object:
        return [disks for at, disks in sorted(self._disks.items()) if at <= self.now][-1:]

    def wait(self, seconds: float) -> bool:
        self.now += int(seconds)
        return self.now >= self._until


def attempts(time: Time, outcome: Callable[[int], bool]) -> list[int]:
    made: list[int] = []

    def attempt() -> bool:
        made.append(time.now)
        return outcome(time.now)

    watch.repeat(attempt, time.disks, time.wait)
    return made


def test_what_fails_is_tried_again_ever_more_seldom_and_at_least_each_minute() -> None:
    assert attempts(Time(200), lambda _: False) == [0, 1, 3, 7, 15, 31, 63, 123, 183]


def test_a_new_disk_is_looked_at_within_a_second_and_again_soon() -> None:
    """Its names below /dev/disk come a moment after the kernel's."""
    time = Time(112, {0: "a", 100: "a and b"})
    assert attempts(time, lambda _: False)[-5:] == [63, 100, 101, 103, 107]


def test_a_disk_that_goes_is_news_though_nothing_was_lacking() -> None:
    assert attempts(Time(30, {0: "a and b", 20: "a"}), lambda now: now < 20)[:2] == [0, 20]


def test_when_nothing_lacks_the_slow_poll_goes_on() -> None:
    assert attempts(Time(130), lambda _: True) == [0, 60, 120]


def test_an_attempt_that_fails_in_a_way_that_nobody_thought_of_is_repeated() -> None:
    def outcome(now: int) -> bool:
        if now < 3:
            raise ZeroDivisionError
        return True

    assert attempts(Time(60), outcome) == [0, 1, 3]


def test_disks_that_can_not_be_listed_do_not_end_the_repetition() -> None:
    time = Time(70)

    def unlisted() -> object:
        raise OSError("no sysfs")

    made: list[int] = []
    watch.repeat(lambda: made.append(time.now) is not None, unlisted, time.wait)
    assert made == [0, 1, 3, 7, 15, 31, 63]


def test_disks_that_differ_at_each_look_neither_make_it_busy_nor_keep_it_from_its_end() -> None:
    time, looks = Time(5), iter(range(10_000))
    made: list[int] = []
    watch.repeat(lambda: bool(made.append(time.now)), lambda: next(looks), time.wait)
    assert made == [0, 1, 2, 3, 4]
