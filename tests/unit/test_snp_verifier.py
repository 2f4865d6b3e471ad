"""SEV-SNP evidence: what real chips signed is accepted, and nothing that differs from it by a single byte.

Real vectors are of Milan (see tests/data/README.md); the other products, keys and versions come from an authority that the
test makes.
"""

import base64
import datetime as dt
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from csi.broker.claims import SnpClaims, SnpKey, SnpProduct, SnpTcb
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.snp import SnpVerifier
from csi.broker.verifiers.snp_chain import Roots
from csi.core.errors import NotReleased
from csi.kbs import init_data
from tests.fakes import amd

DATA = Path(__file__).parents[1] / "data" / "attestation"
THEN = dt.datetime(2024, 6, 1, tzinfo=dt.UTC).timestamp()
REPORT = (DATA / "snp-milan-v2.bin").read_bytes()[:1184]
VCEK = (DATA / "snp-milan-vcek.der").read_bytes()
REPORT_2 = (DATA / "snp-milan-2-v2.bin").read_bytes()
VCEK_2 = (DATA / "snp-milan-2-vcek.der").read_bytes()
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n\n[data]\n"guest.toml" = "volumes allowed"\n'


@cache
def amd_chain(product: SnpProduct) -> tuple[bytes, bytes]:
    """ASK and ARK of AMD."""
    roots = Roots.of_amd()
    ask = next(one for one in roots.intermediates if one.issuer == roots.roots[product].subject)
    return ask.public_bytes(Encoding.DER), roots.roots[product].public_bytes(Encoding.DER)


def evidence(report: bytes, *certificates: tuple[str, bytes]) -> dict[str, Any]:
    """As our own guest sends it."""
    chain = [{"cert_type": kind, "data": base64.b64encode(data).decode()} for kind, data in certificates]
    return {"attestation_report": base64.b64encode(report).decode(), "cert_chain": chain}


def expected_of(report: bytes, text: str | None = None) -> Expected:
    return Expected(report_data=report[0x50:0x90], init_data_text=text)


def verify(report: bytes, *certificates: tuple[str, bytes], now: float = THEN, roots: Roots | None = None) -> SnpClaims:
    verifier = SnpVerifier(roots=roots or Roots.of_amd(), clock=lambda: now)
    return verifier.verify(evidence(report, *certificates), expected_of(report))


def made(platform: amd.Platform, report: bytes | None = None, text: str | None = None) -> SnpClaims:
    report = report or platform.report()
    verifier = SnpVerifier(roots=platform.roots(), clock=amd.NOW.timestamp)
    table = evidence(report, (platform.kind.upper(), amd.der(platform.leaf())))
    return verifier.verify(table, expected_of(report, text))


# Real vectors


def test_a_report_of_a_real_chip_is_verified() -> None:
    claims = verify(REPORT, ("VCEK", VCEK))
    assert claims.launch_measurement.startswith("5677f1de87289e7ad2c7e99c805d0468")
    assert (claims.product, claims.signing_key, claims.vmpl, claims.guest_svn) == ("milan", "vcek", 0, 2)
    assert claims.reported_tcb == SnpTcb(bootloader=2, tee=0, snp=6, microcode=0x5D)
    assert (claims.policy.debug, claims.policy.smt, claims.policy.migration_agent) == (False, True, False)
    assert claims.host_data == "00" * 32
    assert claims.init_data is None


def test_a_second_real_chip_is_verified() -> None:
    assert verify(REPORT_2, ("VCEK", VCEK_2), now=dt.datetime(2025, 1, 1, tzinfo=dt.UTC).timestamp()).product == "milan"


def test_a_real_key_of_turin_leads_to_its_root() -> None:
    leaf = x509.load_der_x509_certificate((DATA / "snp-turin-vcek.der").read_bytes())
    key = Roots.of_amd().endorsement_key(SnpKey.VCEK, leaf, dt.datetime(2025, 1, 1, tzinfo=dt.UTC))
    assert (key.product, key.chip_id, key.tcb) == (
        SnpProduct.TURIN, bytes.fromhex("1e550a8ee5cf9f4d"), SnpTcb(bootloader=0, tee=0, snp=0, microcode=9),
    )  # fmt: skip


def test_bytes_after_the_report_are_refused() -> None:
    whole = (DATA / "snp-milan-v2.bin").read_bytes()
    with pytest.raises(NotReleased, match="1204 bytes, not 1184"):
        verify(whole, ("VCEK", VCEK))


@pytest.mark.parametrize("part", ["report and signature", "VCEK", "ASK", "ARK"])
def test_every_single_changed_byte_is_refused(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    ask, ark = amd_chain(SnpProduct.MILAN)
    sent = {"report and signature": REPORT, "VCEK": VCEK, "ASK": ask, "ARK": ark}
    verifier = SnpVerifier(clock=lambda: THEN)
    verifier.verify(evidence(REPORT, *list(sent.items())[1:]), expected_of(REPORT))
    accepted = []
    for position in range(len(sent[part])):
        changed = bytearray(sent[part])
        changed[position] ^= 1 << position % 8
        one = sent | {part: bytes(changed)}
        try:
            verifier.verify(evidence(one["report and signature"], *list(one.items())[1:]), expected_of(REPORT))
        except NotReleased:
            continue
        accepted.append(position)
    with capsys.disabled():
        print(f"\nSEV-SNP, {part}: {len(sent[part])} positions, {len(accepted)} accepted")
    assert not accepted


def test_a_certificate_is_good_only_in_its_time() -> None:
    with pytest.raises(NotReleased, match="'SEV-VCEK' is valid from 2023-08-30 to 2030-08-30, and it is 2031"):
        verify(REPORT, ("VCEK", VCEK), now=dt.datetime(2031, 1, 1, tzinfo=dt.UTC).timestamp())
    with pytest.raises(NotReleased, match="is valid from 2023-08-30"):
        verify(REPORT, ("VCEK", VCEK), now=dt.datetime(2023, 1, 1, tzinfo=dt.UTC).timestamp())


def test_the_key_of_another_chip_is_refused() -> None:
    with pytest.raises(NotReleased, match="not signed by the VCEK"):
        verify(REPORT, ("VCEK", VCEK_2), now=dt.datetime(2025, 1, 1, tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    "table", [(), (("VLEK", VCEK),), (("VCEK", VCEK), ("VCEK", VCEK))], ids=["none", "VLEK", "two"]
)
def test_exactly_one_certificate_of_the_signing_key_is_needed(table: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(NotReleased, match=r"signed with the VCEK, and the evidence has [02] certificates"):
        verify(REPORT, *table)


def test_relayed_evidence_is_refused() -> None:
    verifier = SnpVerifier(clock=lambda: THEN)
    other = Expected(report_data=b"\x01" * 48, init_data_text=None)
    with pytest.raises(NotReleased, match="nonce and key"):
        verifier.verify(evidence(REPORT, ("VCEK", VCEK)), other)


# Every product, key and version


@pytest.mark.parametrize("product", list(SnpProduct))
@pytest.mark.parametrize("kind", list(SnpKey))
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_product_key_and_version(product: SnpProduct, kind: SnpKey, version: int) -> None:
    tcb = replace(amd.TCB, fmc=1) if product is SnpProduct.TURIN else amd.TCB
    platform = amd.Platform(product=product, kind=kind, certified_tcb=tcb)
    claims = made(platform, platform.report(version=version))
    assert (claims.product, claims.signing_key, claims.reported_tcb) == (product, kind, tcb)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"at_0x8": 0x10000}, "bit 17"),
        ({"at_0x34": b"\x02"}, "signature algorithm"),
        ({"at_0x48": b"\x02"}, "MASK_CHIP_KEY"),
        ({"at_0x48": b"\x1c"}, "neither VCEK nor VLEK"),
        ({"at_0x48": b"\x20"}, "reserved bits"),
        ({"at_0x4c": b"\x01"}, "key information: reserved bytes"),
        ({"at_0x18b": b"\x01"}, "CPUID: reserved bytes"),
        ({"at_0x188": bytes((0x19, 0x01))}, "of a milan, its key of a genoa"),
        ({"at_0x188": bytes((0x17, 0x01))}, "family 0x17"),
        ({"at_0x182": b"\x01"}, "TCB: reserved bytes"),
        ({"at_0x1a0": bytes(8)}, "another chip"),
        ({"at_0x1a8": b"\x01"}, "another chip"),
        ({"at_0x1eb": b"\x01"}, "firmware version: reserved"),
        ({"at_0x1f8": b"\x01"}, "mitigations: reserved"),
        ({"at_0x208": b"\x01"}, "body: reserved"),
        ({"version": 1}, "version: 1"),
        ({"version": 6}, "version: 6"),
        ({"reported_tcb": replace(amd.TCB, microcode=214)}, "names the TCB"),
        ({"reported_tcb": replace(amd.TCB, snp=23)}, "names the TCB"),
    ],
)
def test_a_signed_report_that_is_wrong_is_refused(changes: dict[str, Any], told: str) -> None:
    platform = amd.Platform()
    with pytest.raises(NotReleased, match=told):
        made(platform, platform.report(**changes))


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        (amd.Platform(subject="SEV-VLEK"), "not one of a VCEK"),
        (amd.Platform(kind=SnpKey.VLEK, subject="SEV-VCEK"), "not one of a VLEK"),
        (amd.Platform(extensions={f"{amd.OID}.3.8": b"\x02\x02\x01\x00"}), "not a number from 0 to 255"),
        (amd.Platform(extensions={f"{amd.OID}.3.8": b"\x04\x01\x05"}), "not a number from 0 to 255"),
        (amd.Platform(extensions={f"{amd.OID}.3.8": b"\x02\x02\x00\x05"}), "not a number from 0 to 255"),
    ],
)
def test_a_certificate_that_is_wrong_is_refused(platform: amd.Platform, told: str) -> None:
    with pytest.raises(NotReleased, match=told):
        made(platform)


def test_an_authority_of_somebody_else_is_refused_and_so_is_amd_s_name_on_it() -> None:
    platform = amd.Platform(product=SnpProduct.MILAN)
    report, leaf = platform.report(), amd.der(platform.leaf())
    now = amd.NOW.timestamp()
    with pytest.raises(NotReleased, match=r"not signed by an authority of AMD's that this broker knows \(SEV-Milan"):
        verify(report, ("VCEK", leaf), now=now)
    with pytest.raises(NotReleased, match="not signed by an authority"):
        verify(report, ("VCEK", leaf), ("ASK", amd.der(platform.intermediate())), now=now)
    with pytest.raises(NotReleased, match="not signed by an authority"):
        verify(report, ("VCEK", leaf), ("ARK", amd.der(platform.root())), now=now)


def test_a_certificate_that_is_not_signed_with_pss_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateBuilder().subject_name(amd.name("SEV-VCEK")).issuer_name(amd.name("SEV-Genoa"))
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(amd.NOW - dt.timedelta(days=1)).not_valid_after(amd.NOW + dt.timedelta(days=1))
    platform = amd.Platform()
    leaf = builder.sign(amd.rsa_key("SEV-Genoa"), amd.hashes.SHA384())
    with pytest.raises(NotReleased, match="not signed by an authority"):
        verify(platform.report(), ("VCEK", amd.der(leaf)), roots=platform.roots(), now=amd.NOW.timestamp())


def test_a_vlek_needs_its_authority_from_the_table_or_from_the_operator() -> None:
    platform = amd.Platform(kind=SnpKey.VLEK)
    bare = Roots(roots=platform.roots().roots, intermediates=())
    report, leaf = platform.report(), ("VLEK", amd.der(platform.leaf()))
    with pytest.raises(NotReleased, match="broker collateral import"):
        verify(report, leaf, roots=bare, now=amd.NOW.timestamp())
    from_table = verify(report, leaf, ("ASK", amd.der(platform.intermediate())), roots=bare, now=amd.NOW.timestamp())
    verifier = SnpVerifier(roots=bare, clock=amd.NOW.timestamp, more=lambda: (platform.intermediate(),))
    assert verifier.verify(evidence(report, leaf), expected_of(report)) == from_table


# Init-data


def test_init_data_is_bound_by_its_whole_digest_cut_to_hostdata() -> None:
    digest = init_data.parse(INIT_DATA).digest
    bound = bytes.fromhex(digest.removeprefix("sha384:"))[:32]
    platform = amd.Platform()
    assert made(platform, platform.report(at_0xc0=bound), INIT_DATA).init_data == digest


@pytest.mark.parametrize("host_data", [bytes(32), b"\x01" * 32])
def test_another_hostdata_is_refused(host_data: bytes) -> None:
    platform = amd.Platform()
    with pytest.raises(NotReleased, match="HOSTDATA does not carry"):
        made(platform, platform.report(at_0xc0=host_data), INIT_DATA)


def test_a_shorter_digest_than_the_register_is_filled_with_zeros() -> None:
    expected = Expected(report_data=b"", init_data_text=INIT_DATA.replace("sha384", "sha256"))
    whole = bytes.fromhex(init_data.parse(INIT_DATA.replace("sha384", "sha256")).digest.removeprefix("sha256:"))
    assert expected.bound_init_data(whole + bytes(16), "MRCONFIGID") is not None
    with pytest.raises(NotReleased, match="MRCONFIGID"):
        expected.bound_init_data(whole + b"\x01" * 16, "MRCONFIGID")


# Shapes


def upstream(report: bytes) -> dict[str, Any]:
    """The members that the attester of Confidential Containers sends, for a Milan or Genoa of version 3."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(report[offset : offset + size], "little")

    def tcb(offset: int) -> dict[str, Any]:
        raw = report[offset : offset + 8]
        return {"fmc": None, "bootloader": raw[0], "tee": raw[1], "snp": raw[6], "microcode": raw[7]}

    def version(offset: int) -> dict[str, int]:
        build, minor, major = report[offset : offset + 3]
        return {"major": major, "minor": minor, "build": build}

    lists = {
        "family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
        "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48), "report_id": (0x140, 32),
        "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64),
    }  # fmt: skip
    return {
        "version": number(0, 4), "guest_svn": number(4, 4), "policy": number(8, 8), "vmpl": number(0x30, 4),
        "sig_algo": number(0x34, 4), "current_tcb": tcb(0x38), "plat_info": number(0x40, 8), "key_info": number(0x48, 4),
        "reported_tcb": tcb(0x180), "cpuid_fam_id": report[0x188] or None, "cpuid_mod_id": report[0x189],
        "cpuid_step": report[0x18A], "committed_tcb": tcb(0x1E0), "current": version(0x1E8), "committed": version(0x1EC),
        "launch_tcb": tcb(0x1F0), "launch_mit_vector": None, "current_mit_vector": None,
        "signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])},
        **{name: list(report[at : at + size]) for name, (at, size) in lists.items()},
    }  # fmt: skip


def test_the_upstream_attester_s_members_give_the_same_claims() -> None:
    chain = [{"cert_type": "VCEK", "data": list(VCEK)}, {"cert_type": {"OTHER": "5b0f"}, "data": [1, 2]}]
    sent = {"attestation_report": upstream(REPORT), "cert_chain": chain}
    assert SnpVerifier(clock=lambda: THEN).verify(sent, expected_of(REPORT)) == verify(REPORT, ("VCEK", VCEK))


@pytest.mark.parametrize(
    "wrong",
    [
        None, {}, [], "x", {"attestation_report": "!"}, {"attestation_report": ""}, {"attestation_report": {}},
        {"attestation_report": upstream(REPORT) | {"chip_id": [256] * 64}},
        {"attestation_report": upstream(REPORT) | {"chip_id": [1]}},
        {"attestation_report": upstream(REPORT) | {"policy": -1}},
        {"attestation_report": upstream(REPORT) | {"policy": 1 << 70}},
        {"attestation_report": upstream(REPORT) | {"cpuid_step": 999}},
        {"attestation_report": upstream(REPORT), "cert_chain": [{"cert_type": "VCEK", "data": [999]}]},
        {"attestation_report": upstream(REPORT), "cert_chain": [{"cert_type": "VCEK", "data": "!"}]},
        {"attestation_report": upstream(REPORT), "cert_chain": [{"cert_type": "VCEK", "data": ""}]},
        {"attestation_report": upstream(REPORT), "cert_chain": [{"cert_type": "VCEK", "data": []}] * 9},
    ],
)  # fmt: skip
def test_any_other_shape_is_refused_without_a_traceback(wrong: object) -> None:
    with pytest.raises(NotReleased):
        SnpVerifier(clock=lambda: THEN).verify(wrong, expected_of(REPORT))
