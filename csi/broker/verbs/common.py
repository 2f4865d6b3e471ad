"""What several verbs need."""

from pathlib import Path

import msgspec

from csi.core.errors import InvalidInput, NotFound


def read(path: Path) -> bytes:
    """All bytes of a file that the user named; raises `NotFound` or `InvalidInput` with its name."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error
    except IsADirectoryError as error:
        raise InvalidInput(str(path), "is a directory") from error


def as_json(value: object) -> str:
    """One line of JSON."""
    return msgspec.json.encode(value).decode()
