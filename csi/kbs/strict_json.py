"""JSON text to typed values: one place that turns msgspec's complaints into `InvalidInput` with the member's path."""

import re
from typing import Annotated, TypeVar

import msgspec

from csi.core.errors import InvalidInput

Word = Annotated[str, msgspec.Meta(max_length=100)]
"""A name in a message. Errors repeat it, and so it goes to the log: nobody has to prove anything to send one."""

_T = TypeVar("_T")
_LONGEST_PROBLEM = 200
_PATH = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def decode(data: bytes | str, kind: type[_T], what: str) -> _T:
    """Decode JSON `data` as `kind`. `what` names the message, for example `Challenge`, in the error."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise _explain(error, what) from error
    except UnicodeDecodeError as error:
        raise InvalidInput(what, "not UTF-8") from error
    except RecursionError as error:
        raise InvalidInput(what, "nested too deeply") from error


def convert(value: object, kind: type[_T], what: str) -> _T:
    """The same for a value that was decoded already (a member of any JSON type)."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explain(error, what) from error


def encode(value: object) -> bytes:
    """Compact JSON, members in the order of the type."""
    return msgspec.json.encode(value)


def _explain(error: msgspec.DecodeError, what: str) -> InvalidInput:
    found = _PATH.match(str(error))
    path = found["path"] if found else None
    problem = found["problem"] if found else str(error)
    # It may hold a value, and so whatever the sender wanted in the log.
    return InvalidInput(f"{what}.{path}" if path else what, problem[:1].lower() + problem[1:_LONGEST_PROBLEM])
