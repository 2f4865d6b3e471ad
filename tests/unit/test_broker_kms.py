"""A broker whose master key is wrapped by a key of a PKCS#11 token: nothing starts without the token, and it says why."""

import shutil
from pathlib import Path

import pytest

from csi.broker.audit import OPERATOR, Event
from csi.broker.directory import BrokerDirectory
from csi.broker.main import main
from csi.broker.master_key import PIN_VARIABLE, MasterKeyFile, load_wrapper
from csi.broker.vault import decode_master_key
from csi.core.errors import InvalidInput, Refused, SealedLocalError, Unavailable
from csi.core.secret import Secret
from tests.fakes.softhsm import MODULE, PIN, TOKEN, SoftHsm

EVENT = Event(actor=OPERATOR, action="tested", subject="default/a/b")


@pytest.fixture
def hsm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    made = SoftHsm.below(tmp_path / "hsm", monkeypatch)
    made.token()
    made.key("kek")
    return made


def configured(hsm: SoftHsm, root: Path, *, key: str = "kek", module: Path = MODULE) -> BrokerDirectory:
    root.mkdir(exist_ok=True)
    hsm.configure(root, key, module=module)
    return BrokerDirectory(root)


@pytest.fixture
def made(hsm: SoftHsm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> BrokerDirectory:
    directory = configured(hsm, tmp_path / "broker")
    assert main(["init", str(directory.root)]) == 0
    capsys.readouterr()
    return directory


def test_a_broker_works_and_the_key_in_its_file_is_not_the_master_key(made: BrokerDirectory) -> None:
    broker = made.load_broker({})
    broker.store.put_resource("default/a/b", broker.vault.wrap(Secret(b"value"), "resource"), EVENT)
    broker.store.close()
    again = made.load_broker({})
    assert again.vault.unwrap(again.store.resource("default/a/b"), "resource") == Secret(b"value")
    again.store.close()
    text = made.master_key.read_text()
    assert text.startswith("wrapped:")
    with pytest.raises(InvalidInput):
        decode_master_key(text, "master.key")
    assert made.master_key.stat().st_mode & 0o777 == 0o600


def refused(directory: BrokerDirectory, kind: type[SealedLocalError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        directory.open_store({})
    assert PIN not in str(caught.value)


def test_a_token_that_is_not_there_is_named_and_the_broker_starts_when_it_is_back(
    made: BrokerDirectory, hsm: SoftHsm
) -> None:
    away = hsm.root / "away"
    (hsm.root / "tokens").rename(away)
    (hsm.root / "tokens").mkdir()
    refused(made, Unavailable, f"token '{TOKEN}' is not there")
    shutil.rmtree(hsm.root / "tokens")
    away.rename(hsm.root / "tokens")
    made.load_broker({}).store.close()


def test_a_broker_that_runs_needs_the_token_no_more(made: BrokerDirectory, hsm: SoftHsm) -> None:
    broker = made.load_broker({})
    shutil.rmtree(hsm.root / "tokens")
    broker.store.put_resource("default/a/b", broker.vault.wrap(Secret(b"value"), "resource"), EVENT)
    broker.store.probe()
    broker.store.close()


def test_a_missing_module_is_named(made: BrokerDirectory, hsm: SoftHsm) -> None:
    configured(hsm, made.root, module=Path("/nowhere/module.so"))
    refused(made, Unavailable, "/nowhere/module.so can't be loaded")


def test_a_wrong_pin_is_named_and_not_shown(made: BrokerDirectory) -> None:
    (made.root / "kms.pin").write_text("wrong-pin-9999")
    with pytest.raises(Refused, match="refuses the PIN") as caught:
        made.open_store({})
    assert "wrong-pin" not in str(caught.value)
    assert "wrong-pin" not in repr(load_wrapper(made.kms, {}))


def test_a_pin_of_the_environment_wins(made: BrokerDirectory) -> None:
    (made.root / "kms.pin").write_text("wrong-pin-9999")
    made.open_store({PIN_VARIABLE: PIN}).close()


def test_a_pin_that_others_can_read_is_refused(made: BrokerDirectory) -> None:
    (made.root / "kms.pin").chmod(0o644)
    refused(made, Refused, "mode 0644")


def test_no_pin_at_all_is_named(made: BrokerDirectory) -> None:
    made.kms.write_text(made.kms.read_text().replace('pin_file = "kms.pin"\n', ""))
    refused(made, InvalidInput, f"pin_file.*{PIN_VARIABLE} is not set")


def test_a_key_that_is_gone_is_named(made: BrokerDirectory, hsm: SoftHsm) -> None:
    hsm.destroy_key("kek")
    refused(made, Refused, "holds no AES key of this label")


def test_another_key_of_the_same_name_does_not_decrypt(made: BrokerDirectory, hsm: SoftHsm) -> None:
    hsm.destroy_key("kek")
    hsm.key("kek")
    refused(made, Refused, "another key of the same label wrapped it|wrapped by another key")


def test_two_keys_of_one_name_are_refused(made: BrokerDirectory, hsm: SoftHsm) -> None:
    hsm.key("kek")
    refused(made, Refused, "several AES keys")


@pytest.mark.parametrize(("encrypt", "decrypt"), [(False, True), (True, False)])
def test_a_key_that_may_not_wrap_makes_no_broker(
    tmp_path: Path, hsm: SoftHsm, encrypt: bool, decrypt: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that only encrypts: the broker could never be started again."""
    hsm.key("other", encrypt=encrypt, decrypt=decrypt)
    directory = configured(hsm, tmp_path / "broker", key="other")
    assert main(["init", str(directory.root)]) == 1
    assert "not allowed to wrap the master key" in capsys.readouterr().err
    assert not directory.master_key.exists()


def test_any_changed_byte_of_the_wrapped_key_is_refused(made: BrokerDirectory) -> None:
    wrapper = load_wrapper(made.kms, {})
    assert wrapper is not None
    wrapped = wrapper.wrap(Secret(b"k" * 32))
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        with pytest.raises(Refused):
            wrapper.unwrap(bytes(changed))


def test_a_wrapped_key_without_its_kms_is_named(made: BrokerDirectory) -> None:
    made.kms.unlink()
    refused(made, Refused, "wrapped by a KMS, and there is no kms.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 1", "pkcs11"),
        ("version = 2\n[pkcs11]\nmodule = 'm'\ntoken = 't'\nkey = 'k'\n", "version: 2"),
        ("version = 1\n[pkcs11]\nmodule = 'm'\ntoken = 't'\nkey = 'k'\npin = '1'\n", "pin"),
        ("=", "kms.toml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    """A PIN in it, too: it is a file that people show each other."""
    (tmp_path / "kms.toml").write_text(text)
    with pytest.raises(InvalidInput, match=words):
        load_wrapper(tmp_path / "kms.toml", {PIN_VARIABLE: "1"})


class OnlyEncrypts:
    def wrap(self, secret: Secret) -> bytes:
        return bytes(reversed(secret.reveal()))

    def unwrap(self, wrapped: bytes) -> Secret:
        return Secret(wrapped)


def test_a_kms_that_does_not_give_back_what_it_wrapped_is_not_trusted(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="does not give back"):
        MasterKeyFile(tmp_path / "master.key", OnlyEncrypts()).text(Secret(bytes(range(32))))
