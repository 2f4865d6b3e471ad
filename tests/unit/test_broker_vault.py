"""Secrets at rest are bound to their purpose, and a master key that others could read is refused."""

from pathlib import Path

import pytest

from csi.broker import vault
from csi.broker.directory import BrokerDirectory
from csi.broker.master_key import MasterKeyFile
from csi.broker.vault import Vault
from csi.core.errors import InvalidInput, NotFound, Refused
from csi.core.secret import Secret

SECRET = Secret(b"s" * 32)


def test_a_wrapped_secret_comes_back() -> None:
    box = Vault(Secret(bytes(32)))
    assert box.unwrap(box.wrap(SECRET, "volume", "pvc-1", "1"), "volume", "pvc-1", "1") == SECRET


@pytest.mark.parametrize(
    "purpose",
    [("volume", "pvc-2", "1"), ("volume", "pvc-1", "2"), ("volume", "pvc-11", ""), ("resource", "pvc-1", "1")],
)
def test_a_secret_of_one_purpose_does_not_serve_another(purpose: tuple[str, ...]) -> None:
    box = Vault(Secret(bytes(32)))
    wrapped = box.wrap(SECRET, "volume", "pvc-1", "1")
    with pytest.raises(Refused, match="does not decrypt"):
        box.unwrap(wrapped, *purpose)


def test_altered_or_short_bytes_and_other_master_keys_are_refused() -> None:
    box = Vault(Secret(bytes(32)))
    wrapped = box.wrap(SECRET, "volume")
    for bad in (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), wrapped[:8], b""):
        with pytest.raises(Refused):
            box.unwrap(bad, "volume")
    with pytest.raises(Refused, match="master key"):
        Vault(Secret(b"k" * 32)).unwrap(wrapped, "volume")


def test_two_wrappings_of_one_secret_differ() -> None:
    box = Vault(Secret(bytes(32)))
    assert box.wrap(SECRET, "volume") != box.wrap(SECRET, "volume")


def key_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_master_key_comes_from_its_file(tmp_path: Path) -> None:
    key_file(tmp_path, vault.encode_master_key(Secret(b"k" * 32)))
    assert BrokerDirectory(tmp_path).load_master_key({}) == Secret(b"k" * 32)


def test_the_environment_wins(tmp_path: Path) -> None:
    key_file(tmp_path, b"unused")
    environment = {vault.MASTER_KEY_VARIABLE: vault.encode_master_key(Secret(b"e" * 32)).decode()}
    assert BrokerDirectory(tmp_path).load_master_key(environment) == Secret(b"e" * 32)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    key_file(tmp_path, vault.encode_master_key(Secret(b"k" * 32)), mode)
    with pytest.raises(Refused, match=f"mode {mode:04o}.*chmod"):
        BrokerDirectory(tmp_path).load_master_key({})


@pytest.mark.parametrize("content", [b"", b"AAAA", b"%%%%", b"A" * 44, bytes(range(90, 250, 4))])
def test_a_damaged_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidInput) as caught:
        MasterKeyFile(key_file(tmp_path, content), None).load()
    assert content.decode("latin-1") not in str(caught.value) or not content


def test_a_missing_key_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="broker init"):
        BrokerDirectory(tmp_path / "none").load_master_key({})
