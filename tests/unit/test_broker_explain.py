"""`broker policy explain` names the rule that refuses; `learn` prints a reference set and puts it nowhere."""

import base64
import json
from pathlib import Path

import pytest

from csi.broker import images
from csi.broker.directory import BrokerDirectory, initialise
from csi.broker.main import main
from tests.unit import test_snp_verifier as snp
from tests.unit.test_broker_collateral import LATER, THEN
from tests.unit.test_tdx_verifier import collateral_text, evidence, quote

WORKLOAD = (
    '[[workload]]\nname = "spark"\ntee = ["tdx", "snp"]\nimages = ["any"]\ninit_data = ["none"]\nvolumes = ["pvc-*"]\n'
)
AT = THEN.isoformat()
SNP_AT = "2024-06-01"


@pytest.fixture
def directory(tmp_path: Path) -> BrokerDirectory:
    made = BrokerDirectory(tmp_path / "broker")
    initialise(made, ["localhost"], {})
    made.collateral.add(collateral_text("tdx-v4").encode(), THEN)
    made.policy.write_text(f"version = 1\n{WORKLOAD}")
    return made


@pytest.fixture
def tdx(tmp_path: Path) -> str:
    path = tmp_path / "quote.bin"
    path.write_bytes(quote("tdx-v4"))
    return str(path)


@pytest.fixture
def snp_evidence(tmp_path: Path) -> str:
    path = tmp_path / "snp.json"
    path.write_text(json.dumps(snp.evidence(snp.REPORT, ("VCEK", snp.VCEK))))
    return str(path)


def learned(directory: BrokerDirectory, path: str, at: str, capsys: pytest.CaptureFixture[str]) -> str:
    before = directory.policy.read_bytes()
    assert main(["policy", "learn", path, "--name", "spark-1", "--at", at, "--dir", str(directory.root)]) == 0
    assert directory.policy.read_bytes() == before
    printed = capsys.readouterr()
    assert "only if you know that guest" in printed.err
    return printed.out


def test_a_guest_that_belongs_is_shown_with_every_rule(
    directory: BrokerDirectory, tdx: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "explain", tdx, "--at", AT, "--dir", str(directory.root)]) == 0
    out = capsys.readouterr().out
    assert "verdict: the guest belongs to spark" in out
    assert "kept     [tee.tdx] tcb_status" in out
    assert "kept     init_data" in out
    assert "REFUSED" not in out


def test_a_guest_that_does_not_belong_is_shown_with_the_rule_that_refuses(
    directory: BrokerDirectory, tdx: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = learned(directory, tdx, AT, capsys).replace('rtmr1 = ["00', 'rtmr1 = ["ff')
    directory.policy.write_text(
        f"version = 1\n{image}\n{WORKLOAD}".replace('"any"', '"spark-1"').replace(', "snp"', "")
    )
    assert main(["policy", "explain", tdx, "--at", AT, "--dir", str(directory.root)]) == 1
    out = capsys.readouterr().out
    assert "REFUSED  images: image 'spark-1': rtmr1 does not list 0084452c" in out
    assert "verdict: REFUSED, the guest belongs to no workload" in out


def test_a_platform_that_is_not_good_enough_is_named_first(
    directory: BrokerDirectory, tdx: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.collateral.add(collateral_text("tdx-v5-td15ex").encode(), LATER)
    assert main(["policy", "explain", tdx, "--at", LATER.isoformat(), "--dir", str(directory.root)]) == 1
    assert "verdict: REFUSED, [tee.tdx] tcb_status does not list OutOfDate" in capsys.readouterr().out


def test_a_snp_guest_without_a_floor_is_refused_and_the_learned_floor_lets_it_in(
    directory: BrokerDirectory, snp_evidence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    explain = ["policy", "explain", snp_evidence, "--at", SNP_AT, "--dir", str(directory.root)]
    assert main(explain) == 1
    assert "[tee.snp.minimum_tcb.milan] is missing" in capsys.readouterr().out
    text = learned(directory, snp_evidence, SNP_AT, capsys)
    image, _, floor = text.partition("# this machine's TCB, as a floor:\n")
    floor = floor.replace("# ", "")
    directory.policy.write_text(
        f"version = 1\n{floor}\n{image}\n{WORKLOAD}".replace('"any"', '"spark-1"').replace('"tdx", ', "")
    )
    assert main(explain) == 0


def test_a_whole_attestation_message_is_read_with_its_init_data(
    directory: BrokerDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "message.json"
    message = {
        "init-data": {"format": "toml", "body": snp.INIT_DATA},
        "runtime-data": {},
        "tee-evidence": {"primary_evidence": evidence(quote("tdx-v4")), "additional_evidence": ""},
    }
    path.write_text(json.dumps(message))
    assert main(["policy", "explain", str(path), "--at", AT, "--dir", str(directory.root)]) == 1
    assert "MRCONFIGID does not carry the digest of the init-data" in capsys.readouterr().err


def test_evidence_that_does_not_verify_is_never_learned_from(
    directory: BrokerDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "changed.bin"
    changed = bytearray(quote("tdx-v4"))
    changed[200] ^= 1
    path.write_bytes(changed)
    assert main(["policy", "learn", str(path), "--name", "x", "--at", AT, "--dir", str(directory.root)]) == 1
    printed = capsys.readouterr()
    assert (printed.out, "does not verify" in printed.err) == ("", True)


def test_the_sample_tee_is_explained_and_not_learned_from(
    directory: BrokerDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sample.json"
    path.write_text(json.dumps({"svn": "1", "report_data": base64.b64encode(bytes(48)).decode()}))
    assert main(["policy", "learn", str(path), "--name", "x", "--dir", str(directory.root)]) == 1
    assert "nothing to learn" in capsys.readouterr().err
    assert main(["policy", "explain", str(path), "--dir", str(directory.root)]) == 1
    assert "REFUSED  [tee.sample] allow = false" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "evidence"),
        (b"[]", "evidence"),
        (b"{}", "not a TDX quote"),
        (b'{"tee-evidence": 1}', "tee"),
        (b'{"quote": "AAAA"}', "malformed TDX evidence"),
    ],
)
def test_a_file_that_is_not_evidence_is_told_without_a_traceback(
    directory: BrokerDirectory, tmp_path: Path, content: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(content)
    assert main(["policy", "explain", str(path), "--dir", str(directory.root)]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--at", "tomorrow"],
        ["--at", ""],
        ["--at", "1969-12-31T23:59:59Z"],
        ["--at", "1970-01-01T00:00:00+01:00"],
        ["--at", "0001-01-01T00:00:00+14:00"],
        ["--at", "9999-12-31T23:59:59-12:00"],
        ["--at", "9999-12-31T23:59:59.999999"],
        ["--init-data", "/nonexistent"],
    ],
)
def test_a_wrong_option_is_told_without_a_traceback(
    directory: BrokerDirectory, tdx: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "explain", tdx, "--dir", str(directory.root), *more]) == 1
    assert more[1] in capsys.readouterr().err


@pytest.mark.parametrize("at", ["1970-01-01", "1970-01-01T00:59:59-01:00", "9998-12-31T23:59:59.999999"])
def test_the_first_and_the_last_time_are_answered_by_the_verifier(
    directory: BrokerDirectory, tdx: str, snp_evidence: str, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, told in ((tdx, ("does not verify", "ended on")), (snp_evidence, ("is valid from",))):
        assert main(["policy", "explain", path, "--at", at, "--dir", str(directory.root)]) == 1
        said = capsys.readouterr().err
        assert any(text in said for text in told), said


def test_the_check_of_a_policy_repeats_what_it_leaves_to_whoever_starts_the_guest(
    directory: BrokerDirectory, tdx: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = learned(directory, tdx, AT, capsys)
    check = ["policy", "check", "--dir", str(directory.root)]
    directory.policy.write_text(f"version = 1\n{image}")
    assert main(check) == 0
    assert images.TABLES_UNMEASURED not in capsys.readouterr().out
    without = "\n".join(line for line in image.splitlines() if not line.startswith("rtmr0"))
    directory.policy.write_text(f'version = 1\n{without}\nunmeasured = "{images.TABLES_UNMEASURED}"\n')
    assert main(check) == 0
    assert f"image spark-1: {images.TABLES_UNMEASURED}" in capsys.readouterr().out
