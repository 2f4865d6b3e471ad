"""Collateral is verified when it is imported, says in words how long it is good, and never goes back unnoticed."""

import datetime as dt
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from csi.broker.collateral import CollateralFolder, in_words
from csi.broker.directory import BrokerDirectory, initialise
from csi.broker.main import main
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.snp_chain import Roots
from csi.broker.verifiers.tdx import TdxVerifier
from csi.core.errors import InvalidInput, NotReleased, Refused, Unavailable
from tests.fakes import amd, intel
from tests.unit.test_tdx_verifier import collateral, collateral_text, evidence, issued

THEN = issued("tdx-v4") + dt.timedelta(hours=1)
LATER = issued("tdx-v5-td15ex") + dt.timedelta(hours=1)
NAME = "tdx-B0C06F000000-platform.json"
AMD = Path(__file__).parents[2] / "csi/broker/verifiers/amd"


@pytest.fixture
def folder(tmp_path: Path) -> CollateralFolder:
    return CollateralFolder(tmp_path / "collateral")


def test_imported_collateral_is_found_by_platform(folder: CollateralFolder) -> None:
    assert folder.tdx("B0C06F000000", "platform") is None
    (entry,) = folder.add(collateral_text("tdx-v4").encode(), THEN)
    assert entry.path.name == NAME
    assert in_words(entry.expires, THEN) == "is good until 2025-07-19 10:00 UTC, 29 days from now"
    assert folder.tdx("B0C06F000000", "platform") == collateral("tdx-v4")
    assert folder.tdx("B0C06F000000", "processor") is None
    assert folder.tdx("90C06F000000", "platform") is None
    assert folder.entries() == [entry]


@pytest.mark.parametrize(("fmspc", "ca"), [("../x", "platform"), ("B0C06F000000", "../platform"), ("", "")])
def test_a_quote_never_names_a_file_elsewhere(folder: CollateralFolder, fmspc: str, ca: str) -> None:
    assert folder.tdx(fmspc, ca) is None


def test_newer_collateral_replaces_older_and_not_the_other_way_round(folder: CollateralFolder) -> None:
    folder.add(collateral_text("tdx-v4").encode(), THEN)
    assert folder.tdx("B0C06F000000", "platform") == collateral("tdx-v4")
    folder.add(collateral_text("tdx-v5-td15ex").encode(), LATER)
    assert folder.tdx("B0C06F000000", "platform") == collateral("tdx-v5-td15ex")
    with pytest.raises(Refused, match=r"this is older than .*remove that file first"):
        folder.add(collateral_text("tdx-v4").encode(), THEN)
    assert folder.tdx("B0C06F000000", "platform") == collateral("tdx-v5-td15ex")


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("tcb_info", "its TCB info is of 2025-06-18 22:00 UTC, the present one of 2025-06-19 00:00 UTC"),
        ("qe_identity", "its QE identity is of"),
        ("pck_crl", "its PCK revocation list is of"),
        ("root_ca_crl", "its root revocation list is of"),
    ],
)
def test_no_part_of_collateral_goes_back_however_new_the_others_are(tmp_path: Path, part: str, told: str) -> None:
    folder = CollateralFolder(tmp_path / "collateral", intel=intel.intel_root())
    folder.add(intel.collateral_json(now=intel.NOW).encode(), intel.NOW)
    newer = json.loads(intel.collateral_json(now=intel.NOW + dt.timedelta(hours=1)))
    older = intel.changed(newer, part, intel.NOW - dt.timedelta(hours=2))
    with pytest.raises(Refused, match=told) as caught:
        folder.add(json.dumps(older).encode(), intel.NOW)
    assert str(caught.value).count("the present one") == 1
    folder.add(json.dumps(newer).encode(), intel.NOW)


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_collateral_issued_today_of_an_earlier_tcb_evaluation_is_older(tmp_path: Path, part: str) -> None:
    folder = CollateralFolder(tmp_path / "collateral", intel=intel.intel_root())
    parts = json.loads(intel.collateral_json(now=intel.NOW))
    folder.add(json.dumps(parts).encode(), intel.NOW)
    older = intel.changed(parts, part, intel.NOW + dt.timedelta(hours=1), evaluation=16)
    with pytest.raises(Refused, match="has TCB evaluation 16, the present one 17"):
        folder.add(json.dumps(older).encode(), intel.NOW)


def test_a_revoked_platform_stays_revoked_whatever_is_imported_then(tmp_path: Path) -> None:
    folder = CollateralFolder(tmp_path / "collateral", intel=intel.intel_root())
    before = json.loads(intel.collateral_json(now=intel.NOW))
    pck = intel.like(intel.real_pck()[0], "pck", "ca")
    later = intel.NOW + dt.timedelta(minutes=1)
    revoking = before | {"pck_crl": intel.crl(intel.COLLATERAL["pck_crl"], "ca", later, [pck])}
    verifier = TdxVerifier(collateral=folder, root=intel.intel_root(), clock=intel.NOW.timestamp)
    given = evidence(intel.quote(report_data=bytes(64))), Expected(report_data=b"", init_data_text=None)
    folder.add(json.dumps(before).encode(), intel.NOW)
    verifier.verify(*given)
    folder.add(json.dumps(revoking).encode(), intel.NOW)
    with pytest.raises(Refused, match="its PCK revocation list is of"):
        folder.add(json.dumps(before).encode(), intel.NOW)
    with pytest.raises(NotReleased, match="does not verify"):
        verifier.verify(*given)


def test_collateral_whose_times_are_of_no_zone_is_told(folder: CollateralFolder) -> None:
    folder = CollateralFolder(folder.root, intel=intel.intel_root())
    parts = json.loads(intel.collateral_json(now=intel.NOW))
    text = json.dumps(json.loads(parts["tcb_info"]) | {"nextUpdate": "2026-01-01T00:00:00"})
    signature = intel.raw_signature("tcb", text.encode()).hex()
    with pytest.raises(InvalidInput, match="tcb_info"):
        folder.add(json.dumps(parts | {"tcb_info": text, "tcb_info_signature": signature}).encode(), intel.NOW)


def test_collateral_that_has_ended_is_not_imported(folder: CollateralFolder) -> None:
    with pytest.raises(Refused, match="ended on 2025-07-19 10:00 UTC, 445 days ago; get newer"):
        folder.add(collateral_text("tdx-v4").encode(), LATER)
    assert not folder.root.exists()


def test_a_file_that_was_changed_is_as_good_as_none(folder: CollateralFolder) -> None:
    (entry,) = folder.add(collateral_text("tdx-v4").encode(), THEN)
    parts = json.loads(entry.path.read_text())
    entry.path.write_text(json.dumps(parts | {"tcb_info": parts["tcb_info"].replace("UpToDate", "OutOfDate")}))
    assert folder.tdx("B0C06F000000", "platform") is None
    with pytest.raises(InvalidInput, match="tcb_info: not signed"):
        folder.entries()


@pytest.mark.parametrize("content", [b"", b"{}", b"{\xff", b"hello", b"-----BEGIN CERTIFICATE-----\nx\n"])
def test_anything_else_is_not_imported(folder: CollateralFolder, content: bytes) -> None:
    with pytest.raises(InvalidInput, match="collateral"):
        folder.add(content, THEN)
    assert not folder.root.exists()


def test_an_authority_of_amd_is_imported_and_one_of_somebody_else_is_not(folder: CollateralFolder) -> None:
    (entry,) = folder.add((AMD / "genoa.pem").read_bytes(), THEN)
    assert (entry.path.name, entry.what) == ("amd-SEV-Genoa.pem", "SEV-SNP, authority SEV-Genoa")
    assert [one.subject for one in folder.amd()] == [Roots.of_amd().intermediates[1].subject]
    platform = amd.Platform()
    pem = platform.intermediate().public_bytes(amd.serialization.Encoding.PEM)
    with pytest.raises(InvalidInput, match="not signed by an authority of AMD's"):
        folder.add(pem, amd.NOW)
    with pytest.raises(InvalidInput, match="root alone"):
        folder.add(Roots.of_amd().roots[amd.SnpProduct.MILAN].public_bytes(amd.serialization.Encoding.PEM), THEN)


def test_what_is_imported_can_be_read_by_the_brokers_user_whatever_the_operators_umask_is(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        folder = CollateralFolder(tmp_path / "collateral")
        (entry,) = folder.add((AMD / "genoa.pem").read_bytes(), THEN)
    finally:
        os.umask(old)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.root, entry.path)] == [0o755, 0o644]


def test_a_folder_that_is_there_keeps_its_mode(folder: CollateralFolder) -> None:
    folder.root.mkdir(mode=0o750)
    folder.add((AMD / "genoa.pem").read_bytes(), THEN)
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o750


@pytest.mark.parametrize("place", ["", NAME, "amd-SEV-Genoa.pem", "amd-genoa.crl"])
def test_what_cannot_be_read_is_told_as_the_brokers_trouble(folder: CollateralFolder, place: str) -> None:
    """A file in the place of the folder, or a folder in the place of a file: no user can read that, root neither."""
    if place:
        (folder.root / place).mkdir(parents=True)
    else:
        folder.root.write_bytes(b"")
    reads: dict[str, Callable[[], object]] = {
        NAME: lambda: folder.tdx("B0C06F000000", "platform"),
        "amd-SEV-Genoa.pem": folder.amd,
        "amd-genoa.crl": folder.revoked,
    }
    for name, read in reads.items():
        if place in ("", name):
            with pytest.raises(Unavailable, match=f"the broker's collateral can't be read: .*{place}"):
                read()


def test_the_commands_say_what_is_there_and_for_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = BrokerDirectory(tmp_path / "broker")
    initialise(directory, ["localhost"], {})
    at = ["--dir", str(directory.root)]
    assert main(["collateral", "list", *at]) == 0
    assert "none: TDX guests" in capsys.readouterr().out
    assert main(["collateral", "import", str(AMD / "genoa.pem"), *at]) == 0
    assert (
        "imported amd-SEV-Genoa.pem: SEV-SNP, authority SEV-Genoa; it is good until 2047-10-31"
        in capsys.readouterr().out
    )
    ended = tmp_path / "ended.json"
    ended.write_text(collateral_text("tdx-v4"))
    assert main(["collateral", "import", str(ended), *at]) == 1
    assert "this collateral ended on 2025-07-19 10:00 UTC" in capsys.readouterr().err
    directory.collateral.add(ended.read_bytes(), THEN)
    assert main(["collateral", "list", *at]) == 1
    assert (
        f"{NAME}: TDX, platforms of FMSPC B0C06F000000 (platform CA), TCB evaluation 17; it ended on"
        in capsys.readouterr().out
    )
