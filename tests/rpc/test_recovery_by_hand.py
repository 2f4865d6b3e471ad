"""The lines that the page on the format gives for a disaster work: passphrase and header out of the broker's folder."""

import hashlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES, Profile
from csi.guest.seal import keys
from tests.fakes.broker import leased, running_broker

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "sealed-format.md"


def script() -> str:
    """Both blocks of the page, the second one put inside of the first one's `with`."""
    text = PAGE.read_text().partition("## Recovery by hand")[2]
    first, second = (textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    before, unwrapped, after = first.partition("    secret = vault.unwrap(")
    line, _, rest = after.partition("\n")
    return before + unwrapped + line + "\n" + textwrap.indent(second, "    ") + rest


def test_passphrase_and_header_come_out_of_the_brokers_folder(tmp_path: Path) -> None:
    header = os.urandom(HEADER_PARTS_BYTES).ljust(HEADER_BYTES, b"\0")
    with running_broker(tmp_path / "broker") as broker:
        guest = broker.guest()
        record, secret = guest.open("pvc-1", Profile.XTS)
        record, _ = guest.begin_format(leased(guest, record), nonce="1e" * 32, payload_bytes=4096)
        guest.commit_format(record, nonce="1e" * 32, header=header, payload_bytes=4096)
    done = subprocess.run(
        [sys.executable, "-c", script(), str(tmp_path / "broker"), "pvc-1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == keys.derive(secret, "pvc-1", 1).passphrase.reveal()
    found = (tmp_path / "header.img").read_bytes()
    assert hashlib.sha256(found).digest() == hashlib.sha256(header).digest()
