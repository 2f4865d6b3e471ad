"""What a token shows of measured init-data, in the members that policies of other brokers match on (Trustee's names).

Only for a text whose digest the TEE carries. Nothing of it decides anything here: this broker compares the digest.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from csi.core.errors import InvalidInput
from csi.kbs import init_data, strict_json

LIMIT_BYTES = 64 * 1024
"""Of the claims as JSON. More would make tokens that other servers do not take as a header, so then there are none."""
_PARSED = frozenset({"aa.toml", "cdh.toml"})
_POLICY_FILE = "policy.rego"
_POLICY_DATA = "policy_data := {"
_IMAGE_NAME = "io.kubernetes.cri.image-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownInitData:
    """`claims` is JSON: init-data's files by name. Images and user ids are those that the agent's policy allows."""

    claims: bytes
    images: tuple[str, ...] = ()
    user_ids: tuple[int, ...] = ()


@lru_cache(maxsize=init_data.KEPT_TEXTS)
def shown(text: str) -> ShownInitData | None:
    """Read a measured init-data text; None for one that is too large to be shown, or not init-data at all."""
    try:
        files = init_data.parse(text).files
    except InvalidInput:
        return None
    claims: dict[str, Any] = {}
    for name, content in files.items():
        found = _parsed(name, content)
        if name == _POLICY_FILE and found is not None:
            claims["agent_policy_claims"] = found
        else:
            claims[name] = content if found is None else found
    encoded = strict_json.encode(claims)
    if len(encoded) > LIMIT_BYTES:
        return None
    containers = tuple(_containers(claims.get("agent_policy_claims")))
    # In the order of the containers, as Trustee has them.
    images = dict.fromkeys(_at(item, "OCI", "Annotations", _IMAGE_NAME) for item in containers)
    users = dict.fromkeys(_at(item, "OCI", "Process", "User", "UID") for item in containers)
    return ShownInitData(
        claims=encoded,
        images=tuple(item for item in images if isinstance(item, str)),
        user_ids=tuple(item for item in users if type(item) is int),
    )


def _parsed(name: str, content: str) -> dict[str, Any] | None:
    """A file of a known format as a document; None where it stays text, because it is of another or can't be read."""
    try:
        if name in _PARSED:
            document = init_data.read_toml(content, name)
        elif name == _POLICY_FILE and _POLICY_DATA in content:
            start = content.index(_POLICY_DATA) + len(_POLICY_DATA) - 1
            document = json.JSONDecoder().raw_decode(content, start)[0]
        else:
            return None
        # Half of a surrogate pair and deep nesting can be read, and not be written.
        strict_json.encode(document)
    except (InvalidInput, ValueError, OverflowError, RecursionError, TypeError):
        return None
    return document


def _containers(policy: Any) -> Iterator[Any]:
    found = policy.get("containers") if isinstance(policy, dict) else None
    yield from found if isinstance(found, list) else ()


def _at(value: Any, *path: str) -> str | int | None:
    """The text or number at a path of objects; None where there is none."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value if isinstance(value, str | int) else None
