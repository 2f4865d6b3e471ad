"""What an operator imports for verifying evidence: Intel's collateral for TDX, AMD's VLEK authorities for SEV-SNP.

Files of the broker's directory, read again when they change. Each is verified up to its root whenever it is read, so that
the folder is trusted with availability alone. Nothing is fetched from anywhere.
"""

import contextlib
import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from csi.broker.claims import SnpProduct
from csi.broker.verifiers.intel_chain import INTEL, IntelRoot
from csi.broker.verifiers.snp_chain import Roots, common_name, load_der
from csi.broker.verifiers.snp_revoked import Revoked
from csi.broker.verifiers.tdx_collateral import TdxCollateral
from csi.core.errors import InvalidInput, NotReleased, Refused, Unavailable
from csi.core.files import write_atomic

_MODE: Final = 0o644
_FOLDER_MODE: Final = 0o755
_TDX: Final = re.compile(r"tdx-[0-9A-F]{12}-(platform|processor)\.json", re.ASCII)
_CRL: Final = re.compile(r"amd-(milan|genoa|turin)\.crl", re.ASCII)
_AMD: Final = re.compile(r"amd-[A-Za-z0-9-]{1,64}\.pem", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of the folder: what it is for, and until when it is good."""

    path: Path
    what: str
    expires: dt.datetime


@dataclass(slots=True)
class CollateralFolder:
    """`collateral/` of a broker's directory. It need not exist."""

    root: Path
    roots: Roots = field(default_factory=Roots.of_amd)
    intel: IntelRoot = INTEL
    _read: dict[str, tuple[tuple[int, int], TdxCollateral]] = field(default_factory=dict)

    def tdx(self, fmspc: str, ca: str) -> TdxCollateral | None:
        """The collateral for TDX platforms of this kind; None when there is none, or the file is not what was imported."""
        name = f"tdx-{fmspc}-{ca}.json"
        if not _TDX.fullmatch(name):
            return None
        path = self.root / name
        with _readable():
            try:
                state = path.stat()
                known = self._read.get(name)
                if known is None or known[0] != (state.st_mtime_ns, state.st_size):
                    known = (state.st_mtime_ns, state.st_size), self._tdx(path)
                    self._read[name] = known
            except (FileNotFoundError, InvalidInput):
                return None
        return known[1]

    def amd(self) -> Sequence[x509.Certificate]:
        """Authorities that stand between AMD's roots and keys. Each is verified where it is used."""
        with _readable():
            return [one for path in self._files(_AMD) for one in _certificates(path.read_bytes(), path.name)]

    def revoked(self) -> Mapping[SnpProduct, frozenset[int]]:
        """What AMD's roots have taken back. Raises `NotReleased` for a list that is not what was imported: without it
        nobody knows what is still good.
        """
        try:
            with _readable():
                return {found.product: found.serials for found in self._lists()}
        except InvalidInput as error:
            raise NotReleased(f"AMD's revocation list in the broker's collateral can't be used: {error}") from error

    def _lists(self) -> list[Revoked]:
        return [Revoked.parse(path.read_bytes(), self.roots) for path in self._files(_CRL)]

    def entries(self) -> list[Entry]:
        """Everything that is there; raises `InvalidInput` for a file that is not what was imported."""
        tdx = [_entry(path, self._tdx(path)) for path in self._files(_TDX)]
        return (
            [self._list_entry(one) for one in self._lists()]
            + tdx
            + [_amd_entry(path, one) for path in self._files(_AMD) for one in _certificates(path.read_bytes(), "")]
        )

    def add(self, content: bytes, now: dt.datetime) -> list[Entry]:
        """Import one file: JSON is Intel's, PEM and DER are AMD's. Raises `InvalidInput` or `Refused`; then nothing was
        written.
        """
        if content.lstrip()[:1] == b"{":
            return [self._add_tdx(content, now)]
        if b"-----BEGIN CERTIFICATE-----" in content:
            return self._add_amd(content, now)
        if content[:1] == b"\x30":
            return [self._add_list(content, now)]
        raise InvalidInput(
            "collateral",
            "neither JSON (Intel's collateral for TDX) nor PEM (AMD's VLEK chain) nor DER (AMD's revocation list)",
        )

    def _add_tdx(self, content: bytes, now: dt.datetime) -> Entry:
        found = TdxCollateral.parse(_text(content), self.intel)
        if found.expires <= now:
            raise Refused(f"this collateral {in_words(found.expires, now)}; get newer collateral from Intel")
        path = self.root / f"tdx-{found.fmspc}-{found.ca}.json"
        if not _TDX.fullmatch(path.name):
            raise InvalidInput("collateral.tcb_info.fmspc", f"{found.fmspc!r} is not 12 hex digits")
        present = self.tdx(found.fmspc, found.ca)
        older = [] if present is None else list(found.going_back(present))
        if older:
            raise Refused(
                f"this is older than {path}: {'; '.join(older)}. What Intel has revoked since would be good again; to go "
                "back to it all the same, remove that file first"
            )
        self._write(path, found.json.encode())
        return _entry(path, found)

    def _add_amd(self, content: bytes, now: dt.datetime) -> list[Entry]:
        certificates = _certificates(content, "imported")
        below = [one for one in certificates if one not in self.roots.roots.values()]
        try:
            for certificate in certificates:
                self.roots.check_authority(certificate, now)
        except NotReleased as error:
            raise InvalidInput("collateral", str(error)) from error
        if not below:
            raise InvalidInput("collateral", "AMD's root alone; the broker has it")
        entries = []
        for certificate in below:
            path = self.root / f"amd-{common_name(certificate.subject)}.pem"
            if not _AMD.fullmatch(path.name):
                raise InvalidInput("collateral", f"{common_name(certificate.subject)!r} is no name of an authority")
            self._write(path, certificate.public_bytes(serialization.Encoding.PEM))
            entries.append(_amd_entry(path, certificate))
        return entries

    def _tdx(self, path: Path) -> TdxCollateral:
        return TdxCollateral.parse(_text(path.read_bytes()), self.intel)

    def _add_list(self, content: bytes, now: dt.datetime) -> Entry:
        found = Revoked.parse(content, self.roots)
        if found.expires <= now:
            raise Refused(f"this revocation list {in_words(found.expires, now)}; get a newer one from AMD")
        for present in self._lists():
            if present.product is found.product and present.issued > found.issued:
                raise Refused(f"there is a newer list of {found.product}, from {present.issued:%Y-%m-%d %H:%M} UTC")
        entry = self._list_entry(found)
        self._write(entry.path, content)
        return entry

    def _list_entry(self, found: Revoked) -> Entry:
        what = f"SEV-SNP, {len(found.serials)} revoked authorities of {found.product}"
        return Entry(path=self.root / f"amd-{found.product}.crl", what=what, expires=found.expires)

    def _write(self, path: Path, content: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            self.root.mkdir()
            # The broker is perhaps another user, and the operator's umask one that lets nobody else in.
            self.root.chmod(_FOLDER_MODE)
        write_atomic(path, content, mode=_MODE, temporary=path.with_name(f".{path.name}.new"))

    def _files(self, pattern: re.Pattern[str]) -> Iterator[Path]:
        try:
            found = [path for path in self.root.iterdir() if pattern.fullmatch(path.name)]
        except FileNotFoundError:
            return
        yield from sorted(found)


def in_words(expires: dt.datetime, now: dt.datetime) -> str:
    """How long something is good for, as a person would say it."""
    moment, days = f"{expires:%Y-%m-%d %H:%M} UTC", abs((expires - now).days)
    if expires <= now:
        return f"ended on {moment}, {(now - expires).days} days ago"
    return f"is good until {moment}, {days} days from now"


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """While guests attest: what can't be read is the broker's trouble, and not what the guest has shown."""
    try:
        yield
    except OSError as error:
        # Told to whoever asked, so without the place. Where reading goes wrong on the way, the name isn't there either.
        name = Path(error.filename or "a file").name
        raise Unavailable(f"the broker's collateral can't be read: {name}: {error.strerror}") from error


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput("collateral", "not UTF-8") from error


def _certificates(content: bytes, name: str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
        return [load_der(one.public_bytes(serialization.Encoding.DER), name) for one in found]
    except (ValueError, x509.InvalidVersion, NotReleased) as error:
        raise InvalidInput("collateral", f"not certificates in PEM: {error}") from error


def _entry(path: Path, found: TdxCollateral) -> Entry:
    what = f"TDX, platforms of FMSPC {found.fmspc} ({found.ca} CA), TCB evaluation {found.evaluation}"
    return Entry(path=path, what=what, expires=found.expires)


def _amd_entry(path: Path, certificate: x509.Certificate) -> Entry:
    return Entry(
        path=path,
        what=f"SEV-SNP, authority {common_name(certificate.subject)}",
        expires=certificate.not_valid_after_utc,
    )
