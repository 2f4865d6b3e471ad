"""A volume's life, call by call, beside the bare commands that the same work needs; and the processes that it starts.

Rounds alternate: ours, the commands with the volume left inactive, the commands with it left active.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.lines import PEER_LVM_PROCESSES, PEERS, Compared, Line
from lab.driver import MIB, Driver, create_request, mount_capability

_ROUNDS = 15
_AT_ONCE = 20
_SIZE = 64 * MIB
_CAPABILITY = mount_capability("ext4")
_WANTED_LVM = {"create": 1, "first stage": 2, "later stage": 1, "publish": 0, "unpublish": 0, "unstage": 1, "delete": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A line to be measured. `active` says whether this driver leaves the volume active."""

    key: str
    what: str
    target: float | None
    active: bool


class Life:
    """The measurements of one driver on the group `vg0`. `note` prints and keeps a line."""

    def __init__(self, driver: Driver, note: Callable[[Line | Compared], None]) -> None:
        self._driver = driver
        self._note = note
        self._lvm: dict[str, int] = {}

    def run(self) -> None:
        """All calls in their order."""
        print("seconds; * marks the bare commands that leave the volume as this driver does (inactive / active)")
        self._create()
        self._delete_unused()
        self._stage()
        self._delete_used()
        self._at_once()
        self._processes()

    def _bare(self, function: str, **arguments: Any) -> Any:
        return self._driver.node.call(f"bench.bare:{function}", **arguments)

    def _create(self) -> None:
        self._compare(
            _Row(key="create", what="CreateVolume / lvcreate", target=1.15, active=False),
            lambda n: self._counted("create", lambda: self._made(f"pvc-new-{n}")),
            lambda n, on: self._bare("lvcreate", name=_bare_name("new", n, on), size_bytes=_SIZE, active=on),
        )
        self._compare(
            _Row(key="create again", what="CreateVolume repeated / lvs", target=None, active=False),
            lambda n: self._made(f"pvc-new-{n}"),
            lambda n, on: self._bare("command", argv=["lvs", "-o", "lv_name,lv_tags"]),
        )

    def _delete_unused(self) -> None:
        self._compare(
            _Row(key="delete unused", what="DeleteVolume, never used", target=1.1, active=False),
            lambda n: self._gone(f"pvc-new-{n}"),
            lambda n, on: self._bare("lvremove", name=_bare_name("new", n, on)),
        )

    def _stage(self) -> None:
        for n in range(_ROUNDS):
            self._made(f"pvc-{n}")
            for on in (False, True):
                self._bare("lvcreate", name=_bare_name("", n, on), size_bytes=_SIZE, active=on)
        self._compare(
            _Row(key="first stage", what="first Stage + Publish", target=1.0, active=self._is_active("pvc-0")),
            lambda n: self._shown(f"pvc-{n}", "first stage"),
            lambda n, on: self._bare("first_stage", name=_bare_name("", n, on), activate=not on),
        )
        hidden = self._compared(
            lambda n: self._hidden(f"pvc-{n}"),
            lambda n, on: self._bare("unstage", name=_bare_name("", n, on), deactivate=not on),
        )
        active = self._is_active("pvc-0")
        self._print(_Row(key="unstage", what="Unpublish + Unstage", target=None, active=active), hidden)
        self._compare(
            _Row(key="later stage", what="later Stage + Publish", target=1.0, active=active),
            lambda n: self._shown(f"pvc-{n}", "later stage"),
            lambda n, on: self._bare("later_stage", name=_bare_name("", n, on), activate=not on),
        )
        for n in range(_ROUNDS):
            self._hidden(f"pvc-{n}")
            for on in (False, True):
                self._bare("unstage", name=_bare_name("", n, on), deactivate=not on)

    def _delete_used(self) -> None:
        active = self._is_active("pvc-0")
        self._compare(
            _Row(key="delete used", what="DeleteVolume, used: wiped", target=1.1, active=active),
            lambda n: self._counted("delete", lambda: self._gone(f"pvc-{n}")),
            lambda n, on: self._bare("wipe_and_remove", name=_bare_name("", n, on), activate=not on),
        )
        for n in range(_ROUNDS):
            self._made(f"pvc-kept-{n}", wipe="none")
            self._shown(f"pvc-kept-{n}", "")
            self._hidden(f"pvc-kept-{n}")
            for on in (False, True):
                self._bare("lvcreate", name=_bare_name("kept", n, on), size_bytes=_SIZE, active=on)
        self._compare(
            _Row(key="delete unwiped", what="DeleteVolume, used, wipe: none", target=1.1, active=active),
            lambda n: self._gone(f"pvc-kept-{n}"),
            lambda n, on: self._bare("lvremove", name=_bare_name("kept", n, on)),
        )

    def _at_once(self) -> None:
        """Once: twenty of each side are a hundred processes already."""
        requests = [create_request(f"pvc-many-{n}", _SIZE, _CAPABILITY) for n in range(_AT_ONCE)]
        answers = self._driver.many("CreateVolume", requests)
        for answer in answers:
            answer.ok()
        off, on = (
            self._bare("lvcreate_many", prefix=_bare_name("many", 0, on), count=_AT_ONCE, size_bytes=_SIZE, active=on)
            for on in (False, True)
        )
        row = _Row(key="20 creates", what=f"{_AT_ONCE} x CreateVolume at once", target=None, active=False)
        self._print(row, (max(answer.seconds for answer in answers), off, on))
        prefixes = ("pvc-many", _bare_name("many", 0, False), _bare_name("many", 0, True))
        self._bare("remove_many", names=[f"{prefix}-{n}" for prefix in prefixes for n in range(_AT_ONCE)])

    def _processes(self) -> None:
        each = ", ".join(f"{call} {count} ({_WANTED_LVM[call]})" for call, count in self._lvm.items())
        print(f"LVM processes by call, wanted in brackets: {each}")
        peers = ", ".join(f"{name} {count}" for name, count in PEER_LVM_PROCESSES.items())
        whole, wanted = sum(self._lvm.values()), sum(_WANTED_LVM.values())
        self._note(
            Line(
                what=f"LVM processes in a life with two pods ({peers} with one)",
                ours=whole,
                baseline=None,
                unit="",
                target=wanted,
            )
        )

    def _compare(self, row: _Row, ours: Callable[[int], float], bare: Callable[[int, bool], float]) -> None:
        self._print(row, self._compared(ours, bare))

    def _print(self, row: _Row, medians: tuple[float, float, float]) -> None:
        ours, off, on = medians
        self._note(
            Compared(
                what=row.what,
                ours=ours,
                bare_inactive=off,
                bare_active=on,
                active=row.active,
                target=row.target,
                peer=PEERS[row.key],
            )
        )

    @staticmethod
    def _compared(ours: Callable[[int], float], bare: Callable[[int, bool], float]) -> tuple[float, float, float]:
        rounds = [(ours(n), bare(n, False), bare(n, True)) for n in range(_ROUNDS)]
        first, second, third = zip(*rounds, strict=True)
        return statistics.median(first), statistics.median(second), statistics.median(third)

    def _counted(self, call: str, action: Callable[[], float]) -> float:
        """The seconds of the action; remembers how many LVM processes it started, the most of all rounds."""
        node = self._driver.node
        node.call("lab.exits:start")
        seconds = action()
        if call:
            found = len(node.call("lab.exits:children", parent=self._driver.pid, program="lvm"))
            self._lvm[call] = max(self._lvm.get(call, 0), found)
        return seconds

    def _made(self, name: str, **parameters: str) -> float:
        answer = self._driver.create(name, _SIZE, _CAPABILITY, **parameters)
        answer.ok()
        return answer.seconds

    def _gone(self, name: str) -> float:
        """The seconds until it is gone: a wipe may go on behind an answer that says so."""
        began = time.monotonic()
        answer = self._driver.delete(name)
        if answer.code not in ("ABORTED", "UNAVAILABLE"):
            answer.ok()
            return answer.seconds
        while answer.code in ("ABORTED", "UNAVAILABLE"):
            time.sleep(0.05)
            answer = self._driver.delete(name)
        answer.ok()
        return time.monotonic() - began

    def _shown(self, name: str, call: str) -> float:
        volume = {"volume_id": name}
        staged, published = self._driver.stage, self._driver.publish
        return self._counted(call, lambda: _seconds(staged(volume, _CAPABILITY))) + self._counted(
            "publish" if call else "", lambda: _seconds(published(volume, _CAPABILITY))
        )

    def _hidden(self, name: str) -> float:
        return self._counted("unpublish", lambda: _seconds(self._driver.unpublish(name))) + self._counted(
            "unstage", lambda: _seconds(self._driver.unstage(name))
        )

    def _is_active(self, name: str) -> bool:
        """Whether this driver has left the volume active."""
        shown = self._driver.node.run(["lvs", "--noheadings", "-o", "lv_active", f"vg0/{name}"]).text
        return shown.strip() == "active"


def _seconds(answer: Any) -> float:
    answer.ok()
    return float(answer.seconds)


def _bare_name(kind: str, number: int, active: bool) -> str:
    return f"bare-{'on' if active else 'off'}-{kind}{number}"
