"""TDX: a quote of version 4 or 5, verified by `dcap-qvl` against collateral that an operator imported.

Why that library, and what is checked beside it: docs/decisions/0020-tdx-by-dcap-qvl.md. Nothing is fetched.
"""

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import dcap_qvl
import msgspec

from csi.broker.claims import TcbStatus, TdAttributes, TdxClaims
from csi.broker.verifiers import tdx_quote
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.intel_chain import INTEL, IntelRoot
from csi.broker.verifiers.tdx_collateral import TdxCollateral
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import messages as kbs
from csi.kbs import strict_json

_IMPORT: Final = "sealed-local broker collateral import FILE"


class CollateralSource(Protocol):
    """Where collateral lies."""

    def tdx(self, fmspc: str, ca: str) -> TdxCollateral | None:
        """The collateral for platforms of this kind, None when there is none."""
        ...


class _Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """As the attester of Confidential Containers sends it. Its event log explains RTMRs; comparing them needs none."""

    quote: str


class _Level(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    tcb_status: str
    advisory_ids: list[str] = msgspec.field(default_factory=list, name="advisoryIDs")


class _Tcb(msgspec.Struct, frozen=True, kw_only=True):
    status: str
    advisory_ids: list[str]
    eval_data_number: int


class _Platform(msgspec.Struct, frozen=True, kw_only=True):
    current_tcb_level: _Level | None


class _Report(msgspec.Struct, frozen=True, kw_only=True):
    base: "_Report | None" = None
    tee_tcb_svn: str = ""
    mr_seam: str = ""
    mr_signer_seam: str = ""
    td_attributes: str = ""
    xfam: str = ""
    mr_td: str = ""
    mr_config_id: str = ""
    mr_owner: str = ""
    mr_owner_config: str = ""
    rt_mr0: str = ""
    rt_mr1: str = ""
    rt_mr2: str = ""
    rt_mr3: str = ""
    report_data: str = ""


class _Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What `dcap-qvl` says of a quote that verified: the members that are used here."""

    tcb: _Tcb
    platform: _Platform
    report: dict[str, _Report]


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxVerifier:
    """Verifies quotes of TDs up to Intel's root."""

    collateral: CollateralSource
    root: IntelRoot = INTEL
    clock: Callable[[], float] = time.time

    def verify(self, evidence: object, expected: Expected) -> TdxClaims:
        """See `Verifier.verify`. A TD that the host may look into or move is refused whatever the policy says."""
        try:
            decoded = strict_json.convert(evidence, _Evidence, "primary_evidence")
            frame = tdx_quote.parse(kbs.standard_base64(decoded.quote, "primary_evidence.quote"), self.root)
        except InvalidInput as error:
            raise NotReleased(f"malformed TDX evidence: {error}") from error
        _check_attributes(TdAttributes.parse(frame.attributes))
        collateral, fmspc = self._collateral(frame.quote)
        verified = self._verified(frame.quote, collateral)
        report = _innermost(verified)
        expected.check_report_data(bytes.fromhex(report.report_data))
        init_data = expected.bound_init_data(bytes.fromhex(report.mr_config_id), "MRCONFIGID")
        return _claims(verified, report, fmspc, init_data, test=self.root.test)

    def _collateral(self, quote: bytes) -> tuple[TdxCollateral, str]:
        try:
            parsed = dcap_qvl.parse_quote(quote)
            fmspc, ca = parsed.fmspc().upper(), parsed.ca()
        except ValueError as error:
            raise NotReleased(f"malformed TDX evidence: {error}") from error
        found = self.collateral.tdx(fmspc, ca)
        if found is None:
            raise NotReleased(f"there is no collateral for platforms of FMSPC {fmspc} ({ca} CA): {_IMPORT}")
        now = dt.datetime.fromtimestamp(self.clock(), dt.UTC)
        if found.expires <= now:
            raise NotReleased(
                f"the collateral for platforms of FMSPC {fmspc} ended on {found.expires:%Y-%m-%d %H:%M} UTC; "
                f"get newer collateral from Intel: {_IMPORT}"
            )
        return found, fmspc

    def _verified(self, quote: bytes, collateral: TdxCollateral) -> _Verified:
        now = int(self.clock())
        try:
            parts = dcap_qvl.QuoteCollateralV3.from_json(collateral.json)
            verifier, policy = dcap_qvl.QuoteVerifier(self.root.der), dcap_qvl.QuotePolicy.claims_only(now)
            claims = verifier.verify_with_policy(quote, parts, now, policy)
        except ValueError as error:
            raise NotReleased(f"the TDX quote does not verify: {error}") from error
        return strict_json.decode(claims.to_json(), _Verified, "claims of dcap-qvl")


def _check_attributes(attributes: TdAttributes) -> None:
    """The library refuses these, too, in words of its own."""
    if attributes.debug:
        raise NotReleased("the TD is in debug mode: the host can read its memory")
    if attributes.migratable:
        raise NotReleased("the TD may be migrated to another machine")
    if not attributes.sept_ve_disable:
        raise NotReleased("SEPT_VE_DISABLE is off: the host can interrupt the TD where it does not expect it")


def _innermost(verified: _Verified) -> _Report:
    """Newer TD reports wrap the oldest, which has all registers."""
    if len(verified.report) != 1:
        raise NotReleased(f"a quote with {len(verified.report)} reports")
    report = next(iter(verified.report.values()))
    while report.base is not None:
        report = report.base
    return report


def _claims(verified: _Verified, report: _Report, fmspc: str, init_data: str | None, *, test: bool) -> TdxClaims:
    current = verified.platform.current_tcb_level
    return TdxClaims(
        mrtd=report.mr_td,
        rtmr0=report.rt_mr0,
        rtmr1=report.rt_mr1,
        rtmr2=report.rt_mr2,
        rtmr3=report.rt_mr3,
        mrconfigid=report.mr_config_id,
        mrowner=report.mr_owner,
        mrownerconfig=report.mr_owner_config,
        mrseam=report.mr_seam,
        mrsignerseam=report.mr_signer_seam,
        xfam=report.xfam,
        attributes=TdAttributes.parse(bytes.fromhex(report.td_attributes)),
        report_data=report.report_data,
        tee_tcb_svn=report.tee_tcb_svn,
        tcb_status=_status(verified.tcb.status),
        current_tcb_status=None if current is None else _status(current.tcb_status),
        advisories=_advisories(verified),
        tcb_evaluation=verified.tcb.eval_data_number,
        fmspc=fmspc,
        init_data=init_data,
        test_authority=test,
    )


def _status(status: str) -> TcbStatus:
    try:
        return TcbStatus(status)
    except ValueError as error:
        raise NotReleased(
            f"the TDX platform's TCB has the status {status!r}, which this broker does not know"
        ) from error


def _advisories(verified: _Verified) -> tuple[str, ...]:
    current = verified.platform.current_tcb_level
    return tuple(sorted({*verified.tcb.advisory_ids, *(current.advisory_ids if current is not None else ())}))
