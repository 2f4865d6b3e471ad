"""The messages of the KBS protocol 0.4.0 (Confidential Containers), for both sides: types, names, and the runtime hash.

Members that this version doesn't know are ignored, as the upstream types do. Evidence stays a plain JSON value here: what
it means is its TEE's business. No HTTP.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import msgspec
import rfc8785

from csi.core.errors import InvalidInput
from csi.kbs.jwk import Jwk
from csi.kbs.strict_json import Word

PROTOCOL_VERSION = "0.4.0"
"""The only version that either side takes; the upstream server compares it exactly, too."""
PREFIX = "/kbs/v0"
SESSION_COOKIE = "kbs-session-id"
SESSION_SECONDS = 300
"""Life of a session, counted from `/auth` and never extended."""
BODY_LIMIT_BYTES = 2 * 1024 * 1024
HASH_ALGORITHMS = ("sha256", "sha384", "sha512", "sm3")
_ERROR_TYPE_PREFIX = "https://github.com/confidential-containers/kbs/errors/"
_SEGMENT = re.compile(r"[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,254}", re.ASCII)


class Tee(StrEnum):
    """Names of trusted execution environments, as they appear in a Request."""

    SAMPLE = "sample"
    TDX = "tdx"
    SNP = "snp"
    SGX = "sgx"
    CCA = "cca"
    CSV = "csv"
    SE = "se"
    TPM = "tpm"
    AZ_SNP_VTPM = "az-snp-vtpm"
    AZ_TDX_VTPM = "az-tdx-vtpm"
    HYGON_DCU = "hygondcu"
    NVIDIA = "nvidia"
    SAMPLE_DEVICE = "sampledevice"


class Request(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """First message of the guest, to `/auth`. `extra-params` must be there, whatever it is."""

    version: Word
    tee: Word
    extra_params: object


class Challenge(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The server's answer: a nonce that is opaque to the client."""

    nonce: str
    extra_params: object


class RuntimeData(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What the evidence vouches for beside the machine itself."""

    nonce: str
    tee_pubkey: Jwk


class InitData(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration that the guest was started with, as text, so that the server can digest and read it."""

    format: Word
    body: str


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of the CPU and, as JSON text, of devices. Upstream writes underscores in this object alone."""

    primary_evidence: object
    additional_evidence: str = ""


class Attestation(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Second message of the guest, to `/attest`."""

    init_data: InitData | None = None
    runtime_data: RuntimeData
    tee_evidence: Evidence


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The server's answer to a good attestation."""

    token: str


class SampleEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of the `sample` TEE: no signature, no proof of anything. For development only."""

    svn: Word
    report_data: str = ""


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer but 200; real clients fail on anything else."""

    type: str
    detail: str


def error_type(name: str) -> str:
    """The `type` of an upstream error name, for example `PolicyDeny`."""
    return _ERROR_TYPE_PREFIX + name


def runtime_digest(data: RuntimeData, additional_evidence: str = "") -> bytes:
    """The 48 bytes that the primary TEE's evidence must carry as report data.

    The hash covers `additional-evidence` even when there is none; leaving the empty string out gives another digest.
    """
    members = {"additional-evidence": additional_evidence, **msgspec.to_builtins(data)}
    return hashlib.sha384(rfc8785.dumps(members)).digest()


def device_digest(data: RuntimeData) -> bytes:
    """The report data of an additional device (a GPU): no `additional-evidence` in it."""
    return hashlib.sha384(rfc8785.dumps(msgspec.to_builtins(data))).digest()


def sample_evidence(report_data: bytes) -> SampleEvidence:
    """What a `sample` guest sends: the digest is not padded."""
    return SampleEvidence(svn="1", report_data=base64.b64encode(report_data).decode("ascii"))


def standard_base64(text: str, field: str) -> bytes:
    """Strict standard base64, as evidence carries it."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, "not standard base64") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourcePath:
    """`<repository>/<type>/<tag>`: where a broker keeps one resource."""

    repository: str
    kind: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}/{self.kind}/{self.tag}"

    @classmethod
    def parse(cls, text: str, field: str = "resource") -> Self:
        """From three segments joined by `/`; a segment never starts with a dot."""
        segments = text.split("/")
        if len(segments) != 3:
            raise InvalidInput(
                field, f"{text[:160]!r} has {len(segments)} parts; three are needed: REPOSITORY/TYPE/TAG"
            )
        for segment in segments:
            if not _SEGMENT.fullmatch(segment):
                raise InvalidInput(
                    field, f"{segment[:160]!r}: at most 255 letters, digits, '_', '-' and '.' only, not '.' first"
                )
        return cls(repository=segments[0], kind=segments[1], tag=segments[2])

    @classmethod
    def parse_uri(cls, uri: str, field: str = "resource") -> Self:
        """From `kbs:///repository/type/tag` or `kbs+resource://...`. A host in it is ignored."""
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme not in ("kbs", "kbs+resource"):
            raise InvalidInput(field, f"{uri[:160]!r} is not kbs:///REPOSITORY/TYPE/TAG")
        return cls.parse(rest.partition("/")[2], field)

    @property
    def uri(self) -> str:
        """The canonical URI."""
        return f"kbs:///{self}"
