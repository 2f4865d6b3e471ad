"""Evidence out of a file, for `broker policy explain` and `learn`: no guest is there, so nothing shows that it is fresh."""

import base64
from dataclasses import dataclass
from typing import Final

import msgspec

from csi.broker.verifiers.base import Expected
from csi.core.errors import InvalidInput
from csi.kbs import messages as kbs
from csi.kbs import strict_json
from csi.kbs.messages import Tee

_FIELD: Final = "evidence"
_TDX_HEADERS: Final = (bytes.fromhex("0400020081000000"), bytes.fromhex("0500020081000000"))
_SHAPES: Final = {"quote": Tee.TDX, "attestation_report": Tee.SNP, "svn": Tee.SAMPLE}
"""A member that evidence of each TEE has and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unbound(Expected):
    """Expects no report data: the session that the evidence was made for is over, or was another broker's."""

    def check_report_data(self, found: bytes) -> None:
        """Anything is right."""

    def check_digest(self, found: bytes) -> None:
        """Anything is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Evidence of one TEE, and the init-data that came with it."""

    tee: Tee
    evidence: object
    expected: Unbound


def parse(content: bytes, init_data_text: str | None) -> Given:
    """Read a file: an attestation message of the KBS protocol, evidence alone, or a bare TDX quote.

    `init_data_text` is the text beside it; a message may have its own. Raises `InvalidInput`.
    """
    if content[:8] in _TDX_HEADERS:
        found: object = {"quote": base64.b64encode(content).decode("ascii")}
    else:
        found = strict_json.decode(content, dict[str, object], _FIELD)
    if isinstance(found, dict) and "tee-evidence" in found:
        found, own = _message(found)
        init_data_text = init_data_text if init_data_text is not None else own
    expected = Unbound(report_data=b"", init_data_text=init_data_text)
    return Given(tee=_tee(found), evidence=found, expected=expected)


class _Message(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    tee_evidence: kbs.Evidence
    init_data: kbs.InitData | None = None


def _message(found: dict[str, object]) -> tuple[object, str | None]:
    message = strict_json.convert(found, _Message, _FIELD)
    return message.tee_evidence.primary_evidence, None if message.init_data is None else message.init_data.body


def _tee(found: object) -> Tee:
    if isinstance(found, dict):
        for member, tee in _SHAPES.items():
            if member in found:
                return tee
    raise InvalidInput(_FIELD, "not a TDX quote, nor JSON with quote, attestation_report or svn in it")
