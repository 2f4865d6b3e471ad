"""AMD's revocation lists: what a root has taken back certifies no key any more, whoever else has vouched for it."""

import base64
import datetime as dt
from pathlib import Path

import pytest

from csi.broker.claims import SnpProduct
from csi.broker.collateral import CollateralFolder
from csi.broker.verifiers.base import Expected
from csi.broker.verifiers.known import known_verifiers
from csi.core.errors import InvalidInput, NotReleased, Refused
from tests.fakes import amd

CHIP = amd.Platform()
SERIAL = 1
"""Every certificate of these authorities has it."""


def verify(folder: CollateralFolder, chip: amd.Platform = CHIP) -> object:
    leaf = {"cert_type": "VCEK", "data": base64.b64encode(amd.der(chip.leaf())).decode()}
    evidence = {"attestation_report": base64.b64encode(chip.report()).decode(), "cert_chain": [leaf]}
    expected = Expected(report_data=bytes(64), init_data_text=None)
    return known_verifiers(folder, amd.NOW.timestamp)["snp"].verify(evidence, expected)


@pytest.fixture
def folder(tmp_path: Path) -> CollateralFolder:
    return CollateralFolder(tmp_path / "collateral", roots=CHIP.roots())


def test_a_revoked_authority_certifies_nothing_from_the_moment_of_the_import(folder: CollateralFolder) -> None:
    verify(folder)
    (entry,) = folder.add(CHIP.crl(SERIAL, now=amd.NOW), amd.NOW)
    assert (entry.path.name, entry.what) == ("amd-genoa.crl", "SEV-SNP, 1 revoked authorities of genoa")
    with pytest.raises(NotReleased, match="AMD has revoked 'SEV-Genoa', which certifies this chip's key"):
        verify(folder)


def test_a_list_that_does_not_name_the_authority_changes_nothing(folder: CollateralFolder) -> None:
    folder.add(CHIP.crl(7, now=amd.NOW), amd.NOW)
    verify(folder)


def test_what_was_revoked_stays_so_after_the_list_has_ended(folder: CollateralFolder) -> None:
    before = amd.NOW - dt.timedelta(days=20)
    folder.add(CHIP.crl(SERIAL, now=before, days=10), before)
    with pytest.raises(NotReleased, match="AMD has revoked"):
        verify(folder)
    assert [entry.expires <= amd.NOW for entry in folder.entries()] == [True]


def test_an_older_list_does_not_take_the_place_of_a_newer_one(folder: CollateralFolder) -> None:
    folder.add(CHIP.crl(SERIAL, now=amd.NOW), amd.NOW)
    with pytest.raises(Refused, match="there is a newer list of genoa"):
        folder.add(CHIP.crl(now=amd.NOW - dt.timedelta(days=1)), amd.NOW)
    folder.add(CHIP.crl(now=amd.NOW + dt.timedelta(days=1)), amd.NOW)
    verify(folder)


def test_a_list_that_has_ended_is_not_imported(folder: CollateralFolder) -> None:
    with pytest.raises(Refused, match="this revocation list ended on"):
        folder.add(CHIP.crl(now=amd.NOW - dt.timedelta(days=30), days=10), amd.NOW)


def test_a_list_of_one_product_says_nothing_of_another(tmp_path: Path) -> None:
    milan = amd.Platform(product=SnpProduct.MILAN)
    both = CHIP.roots().roots | milan.roots().roots
    authorities = (CHIP.intermediate(), milan.intermediate())
    roots = amd.Roots(roots=both, intermediates=authorities)
    folder = CollateralFolder(tmp_path / "collateral", roots=roots)
    folder.add(milan.crl(SERIAL, now=amd.NOW), amd.NOW)
    verify(folder)
    with pytest.raises(NotReleased, match="AMD has revoked 'SEV-Milan'"):
        verify(folder, milan)


def test_a_list_of_somebody_else_or_with_a_changed_byte_is_refused(folder: CollateralFolder) -> None:
    with pytest.raises(InvalidInput, match="not signed by a root of AMD's"):
        folder.add(CHIP.crl(SERIAL, now=amd.NOW, signer="Nobody"), amd.NOW)
    good = CHIP.crl(SERIAL, now=amd.NOW)
    for at in range(len(good)):
        with pytest.raises(InvalidInput):
            folder.add(good[:at] + bytes((good[at] ^ 1,)) + good[at + 1 :], amd.NOW)
    assert folder.entries() == []


def test_a_list_that_was_changed_in_the_folder_lets_nobody_in(folder: CollateralFolder) -> None:
    (entry,) = folder.add(CHIP.crl(now=amd.NOW), amd.NOW)
    verify(folder)
    entry.path.write_bytes(b"\x30\x00")
    with pytest.raises(NotReleased, match="AMD's revocation list in the broker's collateral can't be used"):
        verify(folder)
