"""Init-data of Confidential Containers: a TOML text whose digest the TEE measures. Says which hash and files."""

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from csi.core.errors import InvalidInput

LIMIT_BYTES = 64 * 1024
"""What the broker reads of one guest. Reading it costs time, and whoever sends it has proved nothing yet."""
KEPT_TEXTS = 32
"""How many texts that could be read are remembered: guests of a workload all show the same one, at every attestation."""
_VERSION = "0.1.0"
_LONGEST_KEY = 32
# A key, or the name of a table, of more parts than that. tomllib compares every part with all those before it, for every
# key of the table, so that 32 KiB of `a.a.a...` take seconds. Keys stand where a line, a table's name or an entry of an
# inline table begins, and quotes hide dots.
_PART = r"""(?:"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'|[A-Za-z0-9_-]++)"""
_LONG_KEY = re.compile(
    rf"(?:^|[{{,])[ \t]*+\[{{0,2}}+[ \t]*+(?:{_PART}[ \t]*+\.[ \t]*+){{{_LONGEST_KEY}}}", re.MULTILINE
)
_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}


@dataclass(frozen=True, slots=True, kw_only=True)
class InitDataText:
    """A parsed init-data text. `digest` is `<algorithm>:<lower-case hex>` over the whole text, byte for byte."""

    algorithm: str
    digest: str
    files: Mapping[str, str]

    def fills(self, register: bytes) -> bool:
        """Whether a TEE's register, which may be shorter or longer than the digest, holds as much of it as fits, or zeros
        after it. What a register holds is never taken for the beginning of some other digest.
        """
        whole = bytes.fromhex(self.digest.partition(":")[2])
        return hmac.compare_digest(register, whole[: len(register)].ljust(len(register), b"\0"))


def check_size(text: str, field: str = "init-data") -> None:
    """Raise `InvalidInput` for a text that is longer than a broker reads."""
    size = len(text.encode())
    if size > LIMIT_BYTES:
        raise InvalidInput(field, f"{size} bytes; the broker reads at most {LIMIT_BYTES}")


@lru_cache(maxsize=KEPT_TEXTS)
def parse(text: str, field: str = "init-data") -> InitDataText:
    """Read an init-data text; raises `InvalidInput` naming the entry that is wrong."""
    document = read_toml(text, field)
    if document.get("version") != _VERSION:
        raise InvalidInput(f"{field}.version", f'must be "{_VERSION}"')
    algorithm = document.get("algorithm")
    if not isinstance(algorithm, str) or algorithm not in _HASHES:
        raise InvalidInput(f"{field}.algorithm", f"must be one of {', '.join(_HASHES)}")
    return InitDataText(
        algorithm=algorithm,
        digest=f"{algorithm}:{_HASHES[algorithm](text.encode()).hexdigest()}",
        # What is remembered is shared, so nobody may change it.
        files=MappingProxyType(_files(document.get("data", {}), field)),
    )


def read_toml(text: str, field: str) -> dict[str, Any]:
    """Any TOML text of somebody who has proved nothing yet; raises `InvalidInput`, also for one that takes long to read."""
    if _LONG_KEY.search(text):
        raise InvalidInput(field, f"a key of {_LONGEST_KEY} dots or more")
    try:
        return tomllib.loads(text)
    except ValueError as error:  # Beside TOMLDecodeError: a number of too many digits.
        raise InvalidInput(field, f"not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidInput(field, "nested too deeply") from error


def _files(data: Any, field: str) -> dict[str, str]:
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InvalidInput(f"{field}.data", "must be a table of strings")
    return dict(data)
