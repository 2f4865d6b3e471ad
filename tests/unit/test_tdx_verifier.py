"""TDX evidence: each real quote gets the right verdict, and nothing that differs from one by a single byte is accepted."""

import base64
import dataclasses
import datetime as dt
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from csi.broker.claims import TcbStatus, TdxClaims
from csi.broker.findings import first_refusal, platform_findings
from csi.broker.release import ReleasePolicy, TdxFloor
from csi.broker.verifiers import tdx, tdx_quote
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.intel_chain import INTEL
from csi.broker.verifiers.tdx import TdxVerifier
from csi.broker.verifiers.tdx_collateral import TdxCollateral
from csi.core.errors import InvalidInput, NotReleased
from csi.kbs import init_data
from tests.fakes import intel

DATA = Path(__file__).parents[1] / "data" / "attestation"
ROOT = Path(__file__).parents[2]
REPORT_DATA_AT = {"tdx-v4": 568, "tdx-v5": 574, "tdx-v5-td15ex": 574}
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n\n[data]\n"guest.toml" = "volumes allowed"\n'


@dataclass(frozen=True)
class Only:
    """One piece of collateral, for every platform."""

    found: TdxCollateral | None

    def tdx(self, fmspc: str, ca: str) -> TdxCollateral | None:
        return self.found


def quote(name: str) -> bytes:
    return (DATA / f"{name}.bin").read_bytes()


@cache
def collateral_text(name: str) -> str:
    return (DATA / f"{name}-collateral.json").read_text()


@cache
def collateral(name: str) -> TdxCollateral:
    return TdxCollateral.parse(collateral_text(name))


def issued(name: str) -> dt.datetime:
    """When the newest part of it was."""
    return max(age.issued for age in collateral(name).ages.values())


def evidence(raw: bytes) -> dict[str, Any]:
    return {"cc_eventlog": None, "quote": base64.b64encode(raw).decode()}


def expected_of(name: str, text: str | None = None) -> Expected:
    at = REPORT_DATA_AT[name]
    return Expected(report_data=quote(name)[at : at + 64], init_data_text=text)


def verifier(name: str, now: dt.datetime | None = None) -> TdxVerifier:
    found = collateral(name)
    return TdxVerifier(collateral=Only(found), clock=(now or issued(name) + dt.timedelta(hours=1)).timestamp)


def verify(name: str, *, by: str | None = None, now: dt.datetime | None = None) -> TdxClaims:
    return verifier(by or name, now).verify(evidence(quote(name)), expected_of(name))


# Verdicts on real quotes


def test_a_good_quote_of_version_4() -> None:
    claims = verify("tdx-v4")
    assert claims.mrtd.startswith("91eb2b44d141d4ec")
    assert (claims.rtmr0[:8], claims.rtmr1[:8], claims.rtmr2[:8], claims.rtmr3) == (
        "44c0197b", "0084452c", "d833feef", "00" * 48,
    )  # fmt: skip
    assert (claims.tcb_status, claims.advisories, claims.tcb_evaluation) == (TcbStatus.UP_TO_DATE, (), 17)
    assert (claims.fmspc, claims.xfam) == ("B0C06F000000", "e702060000000000")
    assert (claims.debug, claims.attributes.migratable, claims.attributes.sept_ve_disable) == (False, False, True)


def test_a_good_quote_of_version_5_with_the_newest_report() -> None:
    claims = verify("tdx-v5-td15ex")
    assert (claims.mrtd[:8], claims.tcb_status, claims.tcb_evaluation) == ("2a674327", TcbStatus.UP_TO_DATE, 20)
    assert claims.mrconfigid.startswith("0151ed70")


def test_a_quote_whose_tcb_is_out_of_date_says_so_with_its_advisories() -> None:
    claims = verify("tdx-v4", by="tdx-v5-td15ex")
    assert claims.tcb_status is TcbStatus.OUT_OF_DATE
    assert claims.advisories == ("INTEL-SA-01192", "INTEL-SA-01245", "INTEL-SA-01312", "INTEL-SA-01313")


def test_a_quote_below_every_level_of_the_collateral_is_refused() -> None:
    with pytest.raises(NotReleased, match="No matching TCB level"):
        verify("tdx-v5")


@pytest.mark.parametrize("name", ["tdx-v4", "tdx-v5-td15ex"])
def test_collateral_is_good_until_its_end_and_not_a_second_longer(name: str) -> None:
    end = collateral(name).expires
    verify(name, now=end - dt.timedelta(seconds=1))
    with pytest.raises(NotReleased, match=f"ended on {end:%Y-%m-%d %H:%M} UTC; get newer.*collateral import FILE"):
        verify(name, now=end)


def test_the_end_is_the_earliest_of_all_parts() -> None:
    assert collateral("tdx-v4").expires == dt.datetime(2025, 7, 19, 10, 0, 35, tzinfo=dt.UTC)


def test_collateral_is_not_good_before_its_time() -> None:
    with pytest.raises(NotReleased, match="does not verify"):
        verify("tdx-v4", now=issued("tdx-v4") - dt.timedelta(days=30))


def test_without_collateral_nothing_is_verified_and_nothing_is_fetched() -> None:
    with pytest.raises(NotReleased, match="no collateral for platforms of FMSPC B0C06F000000"):
        TdxVerifier(collateral=Only(None)).verify(evidence(quote("tdx-v4")), expected_of("tdx-v4"))
    sources = "".join(path.read_text() for path in (ROOT / "csi" / "broker").rglob("*.py"))
    assert "import dcap_qvl" in sources
    assert "get_collateral" not in sources


def test_collateral_of_another_platform_does_not_verify_a_quote() -> None:
    with pytest.raises(NotReleased, match="does not verify"):
        verify("tdx-v4", by="tdx-v5")


def test_relayed_evidence_is_refused() -> None:
    other = Expected(report_data=b"\x01" * 48, init_data_text=None)
    with pytest.raises(NotReleased, match="nonce and key"):
        verifier("tdx-v4").verify(evidence(quote("tdx-v4")), other)


def test_init_data_that_mrconfigid_does_not_carry_is_refused() -> None:
    with pytest.raises(NotReleased, match="MRCONFIGID does not carry"):
        verifier("tdx-v4").verify(evidence(quote("tdx-v4")), expected_of("tdx-v4", INIT_DATA))


@pytest.mark.parametrize(
    ("byte", "bit", "told"), [(0, 0x01, "debug mode"), (3, 0x20, "may be migrated"), (3, 0x10, "SEPT_VE_DISABLE")]
)
def test_a_td_that_the_host_may_meddle_with_is_refused_in_words(byte: int, bit: int, told: str) -> None:
    changed = bytearray(quote("tdx-v4"))
    changed[48 + 120 + byte] ^= bit
    with pytest.raises(NotReleased, match=told):
        verifier("tdx-v4").verify(evidence(bytes(changed)), expected_of("tdx-v4"))


@pytest.mark.parametrize("launch", [one for one in TcbStatus if "Relaunch" not in one])
def test_launch_and_current_tcb_both_count(launch: TcbStatus) -> None:
    claims = of_two_tcbs(launch=(3, launch), current=(1, TcbStatus.OUT_OF_DATE))
    assert (claims.tcb_status, claims.current_tcb_status) == (launch, TcbStatus.OUT_OF_DATE)
    assert claims.advisories == ("INTEL-SA-00001", "INTEL-SA-00003")
    found = platform_findings(ReleasePolicy(allow_sample=True, tdx=TdxFloor(tcb_status=(launch,))), claims)
    refused = first_refusal(found)
    if launch is TcbStatus.OUT_OF_DATE:
        assert refused is None
    else:
        assert refused == "[tee.tdx] tcb_status (current TCB) does not list OutOfDate"


def test_an_old_launch_tcb_counts_whatever_the_td_runs_on_now() -> None:
    claims = of_two_tcbs(launch=(1, TcbStatus.OUT_OF_DATE), current=(3, TcbStatus.UP_TO_DATE))
    assert (claims.tcb_status, claims.current_tcb_status) == (TcbStatus.TD_RELAUNCH_ADVISED, TcbStatus.UP_TO_DATE)
    assert claims.advisories == ("INTEL-SA-00001", "INTEL-SA-00003")
    refused = first_refusal(platform_findings(ReleasePolicy(allow_sample=True), claims))
    assert refused == "[tee.tdx] tcb_status does not list TDRelaunchAdvised"


def of_two_tcbs(*, launch: tuple[int, TcbStatus], current: tuple[int, TcbStatus]) -> TdxClaims:
    """What a TD says that was launched on one TCB and runs on another. Each level has an advisory of its own."""
    newer, older = sorted((launch, current), reverse=True)
    parts = intel.with_two_levels(json.loads(intel.collateral_json()), newer=newer, older=older)
    found = TdxCollateral.parse(json.dumps(parts), intel.intel_root())
    one = TdxVerifier(collateral=Only(found), root=intel.intel_root(), clock=intel.NOW.timestamp)
    raw = intel.quote_of_two_tcbs(launch[0], current[0], report_data=bytes(64))
    return one.verify(evidence(raw), Expected(report_data=b"", init_data_text=None))


def test_a_quote_that_knows_of_one_tcb_says_nothing_of_a_current_one() -> None:
    assert verify("tdx-v4").current_tcb_status is None
    assert verify("tdx-v5-td15ex").current_tcb_status is TcbStatus.UP_TO_DATE


def test_a_status_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotReleased, match="'Splendid'"):
        tdx._status("Splendid")


# Every changed byte


@pytest.mark.parametrize("name", ["tdx-v4", "tdx-v5-td15ex"])
def test_every_single_changed_byte_of_a_quote_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw, one, expected = quote(name), verifier(name), expected_of(name)
    accepted = []
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        try:
            one.verify(evidence(bytes(changed)), expected)
        except NotReleased:
            continue
        accepted.append(position)
    with capsys.disabled():
        print(f"\nTDX, {name}, header, report, signature, chain: {len(raw)} positions, {len(accepted)} accepted")
    assert not accepted


def test_every_single_changed_character_of_collateral_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parts = json.loads(collateral_text("tdx-v4"))
    tried, accepted = 0, []
    for member, text in parts.items():
        for position, character in enumerate(text):
            changed = text[:position] + chr(ord(character) ^ 1 << position % 7) + text[position + 1 :]
            tried += 1
            try:
                TdxCollateral.parse(json.dumps(parts | {member: changed}))
            except InvalidInput:
                continue
            accepted.append((member, position))
    with capsys.disabled():
        print(f"\nTDX collateral, chains, lists, signatures, texts: {tried} positions, {len(accepted)} accepted")
    assert not accepted


# Shapes


@pytest.mark.parametrize("length", [0, 1, 47, 48, 100, 631, 636, 700, 1000, 4000, 4935])
def test_a_quote_that_ends_too_early_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput):
        tdx_quote.parse(quote("tdx-v4")[:length], INTEL)


def test_zeros_after_a_quote_are_padding_and_other_bytes_are_not() -> None:
    raw = quote("tdx-v4")
    assert tdx_quote.parse(raw + bytes(100), INTEL).quote == raw.rstrip(b"\0") + b"\0"
    with pytest.raises(InvalidInput, match="after its end"):
        tdx_quote.parse(raw + b"\1", INTEL)


@pytest.mark.parametrize(
    ("offset", "value", "told"),
    [(0, 3, "version: 3"), (0, 6, "version: 6"), (2, 3, "key type 3"), (4, 0, "TEE type 0x0"), (48, 1, "type 1 with")],
)
def test_other_quotes_are_refused_by_name(offset: int, value: int, told: str) -> None:
    raw = bytearray(quote("tdx-v5"))
    raw[offset] = value
    with pytest.raises(InvalidInput, match=told):
        tdx_quote.parse(bytes(raw), INTEL)


@pytest.mark.parametrize("wrong", [None, {}, [], {"quote": 1}, {"quote": "!"}, {"quote": ""}, {"quote": "AAAA"}])
def test_any_other_shape_of_evidence_is_refused_without_a_traceback(wrong: object) -> None:
    with pytest.raises(NotReleased, match="malformed TDX evidence"):
        verifier("tdx-v4").verify(wrong, expected_of("tdx-v4"))


@pytest.mark.parametrize(
    "changes",
    [
        {"tcb_info": None},
        {"tcb_info": "{}"},
        {"tcb_info_signature": "00" * 64},
        {"tcb_info_signature": "00"},
        {"tcb_info_signature": "xy"},
        {"tcb_info": "qe_identity", "tcb_info_signature": "qe_identity_signature"},
        {"pck_crl": "root_ca_crl"},
        {"pck_crl": ""},
        {"pck_crl_issuer_chain": "tcb_info_issuer_chain"},
        {"tcb_info_issuer_chain": "pck_crl_issuer_chain"},
        {"tcb_info_issuer_chain": ""},
    ],
)
def test_collateral_with_a_wrong_part_is_refused(changes: dict[str, str | None]) -> None:
    parts = json.loads(collateral_text("tdx-v4"))
    wrong = parts | {name: parts.get(value, value) for name, value in changes.items()}
    with pytest.raises(InvalidInput, match="collateral"):
        TdxCollateral.parse(json.dumps(wrong))


def test_collateral_that_is_too_long_or_no_json_is_refused() -> None:
    for text in ("", "[]", "{", "x" * (2 << 20)):
        with pytest.raises(InvalidInput, match="collateral"):
            TdxCollateral.parse(text)


def test_what_a_file_has_beside_the_nine_members_is_left_out() -> None:
    assert "pck_certificate_chain" in collateral_text("tdx-v5-td15ex")
    assert "pck_certificate_chain" not in collateral("tdx-v5-td15ex").json
    assert dataclasses.replace(collateral("tdx-v4"), ca="x") != collateral("tdx-v4")


# A platform of the test's own: what real quotes can't show


def made(expected: Expected, **registers: bytes) -> TdxClaims:
    one = TdxVerifier(
        collateral=intel.TestCollateral(intel.collateral()), root=intel.intel_root(), clock=intel.NOW.timestamp
    )
    return one.verify(evidence(intel.quote(**registers)), expected)


@pytest.mark.parametrize(("algorithm", "size"), [("sha256", 32), ("sha384", 48), ("sha512", 64)])
def test_report_data_and_init_data_of_a_quote_are_bound_as_the_protocol_says(algorithm: str, size: int) -> None:
    text = INIT_DATA.replace("sha384", algorithm)
    digest = init_data.parse(text).digest
    register = bytes.fromhex(digest.partition(":")[2]).ljust(48, b"\0")[:48]
    assert len(digest.partition(":")[2]) == 2 * size
    expected = Expected(report_data=b"\x07" * 48, init_data_text=text)
    carried = b"\x07" * 48 + bytes(16)
    assert made(expected, report_data=carried, mrconfigid=register).init_data == digest
    with pytest.raises(NotReleased, match="MRCONFIGID does not carry"):
        made(expected, report_data=carried, mrconfigid=register[:-1] + b"\x01")
    with pytest.raises(NotReleased, match="nonce and key"):
        made(expected, report_data=b"\x07" * 48 + b"\x01" + bytes(15), mrconfigid=register)


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ("0100001000000000", "debug mode"),
        ("0000003000000000", "may be migrated"),
        ("0000000000000000", "SEPT_VE_DISABLE"),
    ],
)
def test_a_signed_quote_of_a_td_that_the_host_may_meddle_with_is_refused(attributes: str, told: str) -> None:
    with pytest.raises(NotReleased, match=told):
        made(
            Expected(report_data=b"", init_data_text=None), attributes=bytes.fromhex(attributes), report_data=bytes(64)
        )


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"])
def test_each_register_is_read_from_its_own_place(register: str) -> None:
    claims = made(Expected(report_data=b"", init_data_text=None), report_data=bytes(64), **{register: b"\xfe" * 48})
    assert [name for name, value in claims.registers.items() if value == "fe" * 48] == [register]


def test_a_test_root_is_nothing_to_the_broker_and_intels_nothing_to_the_test() -> None:
    expected = Expected(report_data=bytes(64), init_data_text=None)
    with pytest.raises(NotReleased, match="the last certificate is not"):
        verifier("tdx-v4").verify(evidence(intel.quote(report_data=bytes(64))), expected)
    one = TdxVerifier(collateral=Only(collateral("tdx-v4")), root=intel.intel_root(), clock=intel.NOW.timestamp)
    with pytest.raises(NotReleased, match="the last certificate is not"):
        one.verify(evidence(quote("tdx-v4")), expected_of("tdx-v4"))
    with pytest.raises(InvalidInput, match="the last certificate is not"):
        TdxCollateral.parse(intel.collateral().json)
