"""The policy of docs/attestation.md is one that the broker reads, and the roots that it names are those of the program."""

import re
from pathlib import Path

from cryptography.hazmat.primitives import hashes

from csi.broker import images
from csi.broker import policy as broker_policy
from csi.broker.claims import SNP_REGISTERS, TDX_REGISTERS
from csi.broker.verifiers.intel_chain import ROOT_SHA256
from csi.broker.verifiers.snp_chain import Roots

PAGE = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text()


def whole(match: re.Match[str]) -> str:
    """The page shortens digests."""
    size = {**TDX_REGISTERS, **SNP_REGISTERS}[match[1]]
    return f'{match[1]} = ["{match[2] * (size // 2)}"]'


def test_the_policy_of_the_page_is_valid() -> None:
    text = PAGE.partition("```toml\n")[2].partition("```")[0]
    text = re.sub(r"(\w+) = \[\"([0-9a-f]{4})…\"\]", whole, text).replace("sha384:8b1c…", "sha384:" + "8b" * 48)
    policy = broker_policy.parse(text)
    assert [image.name for image in policy.images] == ["spark-2026-11", "spark-2026-11-snp"]
    assert images.UNMEASURED in PAGE
    assert images.TABLES_UNMEASURED in PAGE
    assert policy.tdx == broker_policy.parse("version = 1").tdx


def test_the_roots_of_the_page_are_the_programs() -> None:
    for root in Roots.of_amd().roots.values():
        assert root.fingerprint(hashes.SHA256()).hex() in PAGE
    assert ROOT_SHA256 in PAGE
