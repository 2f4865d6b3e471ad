"""Init-data that is made for a pod is what the guest reads and the broker digests, byte for byte."""

import base64
import gzip
import tomllib
from pathlib import Path

import pytest

from csi.core.errors import InvalidInput
from csi.guest import initdata, main
from csi.guest import policy as guest_policy
from csi.kbs import init_data

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
PLAIN = f'''version = 1
[broker]
url = "https://broker.example.com:8443"
ca = """
{PEM}"""
[[volume]]
name = "data"
id_pattern = 'pvc-[a-z0-9\\-]+'
mount = "/data"
'''
QUOTED = PLAIN.replace('"""', "'''")


@pytest.mark.parametrize("policy", [PLAIN, QUOTED])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_the_guest_reads_the_policy_that_was_given(policy: str, algorithm: str) -> None:
    made = initdata.text(policy, algorithm, "policy.toml")
    carried = init_data.parse(made)
    assert carried.files == {"sealed-local.toml": policy}
    assert carried.algorithm == algorithm
    assert guest_policy.parse(made, "x").volumes == guest_policy.parse(policy, "x").volumes


def test_a_policy_is_shown_as_it_stands_where_it_can_be() -> None:
    assert PLAIN in initdata.text(PLAIN, "sha384", "policy.toml")


def test_the_annotation_is_the_text_compressed_and_holds_no_time() -> None:
    made = initdata.text(PLAIN, "sha384", "policy.toml")
    value = initdata.annotation(made)
    assert gzip.decompress(base64.b64decode(value, validate=True)).decode() == made
    assert base64.b64decode(value)[4:8] == bytes(4), "gzip's header holds no time"


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("version = 1\n", "broker"),
        ("not toml", "TOML"),
        (PLAIN.replace("\n", "\r\n"), "newlines"),
        (f"{PLAIN}# {'x' * init_data.LIMIT_BYTES}\n", "at most 65536"),
        (initdata.text(PLAIN, "sha384", "x"), "version"),
    ],
)
def test_what_no_guest_would_take_is_refused(policy: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        initdata.text(policy, "sha384", "policy.toml")


def test_the_command_prints_the_text_or_the_annotation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(PLAIN)
    assert main.main(["initdata", "--policy", str(file)]) == 0
    made = capsys.readouterr().out
    assert tomllib.loads(made)["data"]["sealed-local.toml"] == PLAIN
    assert main.main(["initdata", "--policy", str(file), "--annotation"]) == 0
    assert capsys.readouterr().out == f"{initdata.annotation(made)}\n"
