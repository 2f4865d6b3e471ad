"""What stands in the place of `Trust` while the memory of this node's groups can't be read: it trusts none.

Nobody knows then which groups were used, and which of two of a name is the right one. The driver serves all the same: to
take down what is there it needs no group.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping

from csi.core.errors import Refused
from csi.node.lvm.model import Report, Stranger
from csi.node.lvm.trust import Trust

_log = logging.getLogger(__name__)
_NOTHING_IS_USED = (
    "until that is mended no volume group is used, and volumes only come down; it is read again by itself"
)


def trust(read: Callable[[], Trust]) -> Trust:
    """What `read` answers, as soon as it doesn't raise `Refused`; it is asked again at each report."""
    try:
        return read()
    except Refused:
        return _UntilReadable(read)


class _UntilReadable(Trust):
    def __init__(self, read: Callable[[], Trust]) -> None:
        super().__init__()
        self._read = read
        self._why: str | None = ""
        """Why it can't be read; None as soon as it could."""

    def separate(self, report: Report) -> Report:
        """All groups are strangers."""
        why = self._why_not()
        if why is None:
            return super().separate(report)
        strangers = tuple(Stranger(vg=vg, why=why) for vg in report.vgs)
        return dataclasses.replace(report, vgs=(), strangers=strangers)

    @property
    def known(self) -> Mapping[str, str]:
        """Raises `Refused`: a volume that isn't found may be in a group that was used, and isn't here."""
        why = self._why_not()
        if why is not None:
            raise Refused(why)
        return super().known

    def _why_not(self) -> str | None:
        with self._lock:
            if self._why is None:
                return None
            try:
                found = self._read()
            except Refused as error:
                why = f"{error}; {_NOTHING_IS_USED}"
                if why != self._why:
                    _log.error("no volume group is used", extra={"error": why})
                self._why = why
                return why
            for field in dataclasses.fields(found):
                if field.name != "_lock":
                    setattr(self, field.name, getattr(found, field.name))
            self._why = None
        _log.info("the groups of this node are known again")
        return None
