"""Tokens of SoftHSM, a PKCS#11 module in software: a real one, below a directory of the test."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, KeyType

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN, SO_PIN = "right-pin-1234", "officer-1234"
TOKEN = "tenant"


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """Where its tokens lie."""

    root: Path

    @classmethod
    def below(cls, root: Path, monkeypatch: pytest.MonkeyPatch) -> "SoftHsm":
        """One without tokens, which the module finds by its variable."""
        (root / "tokens").mkdir(parents=True)
        (root / "softhsm2.conf").write_text(f"directories.tokendir = {root}/tokens\nobjectstore.backend = file\n")
        monkeypatch.setenv("SOFTHSM2_CONF", str(root / "softhsm2.conf"))
        return cls(root)

    def token(self, label: str = TOKEN) -> None:
        """Make one, with its PIN."""
        argv = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def key(self, label: str, *, encrypt: bool = True, decrypt: bool = True) -> None:
        """Make an AES key in it."""
        library = pkcs11.lib(str(MODULE))
        try:
            with library.get_token(token_label=TOKEN).open(rw=True, user_pin=PIN) as session:
                allowed = {Attribute.ENCRYPT: encrypt, Attribute.DECRYPT: decrypt}
                session.generate_key(KeyType.AES, 256, label=label, store=True, template=allowed)
        finally:
            library.finalize()

    def configure(self, root: Path, key: str, *, token: str = TOKEN, module: Path = MODULE) -> None:
        """Tell a broker's directory of it."""
        text = f'version = 1\n[pkcs11]\nmodule = "{module}"\ntoken = "{token}"\nkey = "{key}"\npin_file = "kms.pin"\n'
        (root / "kms.toml").write_text(text)
        (root / "kms.pin").write_text(f"{PIN}\n")
        (root / "kms.pin").chmod(0o600)

    def destroy_key(self, label: str) -> None:
        """As an administrator of the KMS could."""
        library = pkcs11.lib(str(MODULE))
        try:
            with library.get_token(token_label=TOKEN).open(rw=True, user_pin=PIN) as session:
                session.get_key(label=label).destroy()
        finally:
            library.finalize()
