"""Init-data of Confidential Containers: a TOML text whose digest the TEE measures. Says which hash and files."""

import hashlib
import tomllib
from dataclasses import dataclass
from typing import Any

from csi.model.errors import InvalidInput

_VERSION = "0.1.0"
_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True, kw_only=True)
class InitDataText:
    """A parsed init-data text. `digest` is `<algorithm>:<lower-case hex>` over the whole text, byte for byte."""

    algorithm: str
    digest: str
    files: dict[str, str]


def parse(text: str, field: str = "init-data") -> InitDataText:
    """Read an init-data text; raises `InvalidInput` naming the entry that is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(field, f"not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidInput(field, "nested too deeply") from error
    if document.get("version") != _VERSION:
        raise InvalidInput(f"{field}.version", f'must be "{_VERSION}"')
    algorithm = document.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in _HASHES:
        raise InvalidInput(f"{field}.algorithm", f"must be one of {', '.join(_HASHES)}")
    return InitDataText(
        algorithm=algorithm,
        digest=f"{algorithm}:{_HASHES[algorithm](text.encode()).hexdigest()}",
        files=_files(document.get("data", {}), field),
    )


def _files(data: Any, field: str) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InvalidInput(f"{field}.data", "must be a table of strings")
    return dict(data)
