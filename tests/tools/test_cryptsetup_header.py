"""The header that the real cryptsetup makes is the one that the allow-list admits, and cryptsetup opens it as we give it.

Plain files only: nothing here needs device-mapper or privileges.
"""

import hashlib
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi.core.command import LocalRunner
from csi.core.errors import CommandError, Tampered
from csi.core.sealed import (
    HEADER_A_OFFSET,
    HEADER_B_OFFSET,
    HEADER_BYTES,
    HEADER_PARTS_BYTES,
    PAYLOAD_OFFSET,
    Profile,
    header_of,
)
from csi.core.secret import Secret
from csi.guest.seal import cryptsetup, luks_header, memfd
from csi.guest.this_machine import ThisMachine
from tests.unit.test_luks_header import DOCUMENT, reseal, text_of, with_area

UUID = "5d0c7a52-7be0-4bd1-8f5b-0a2f6d3e9c11"
PASSPHRASE = Secret(bytes(range(32)))
VOLUME_KEY = Secret(bytes(range(64, 128)))
DEVICE_BYTES = PAYLOAD_OFFSET + (4 << 20)
RANDOM_TEXT = re.compile(rb'"(salt|digest)":"[A-Za-z0-9+/]{43}="')


@pytest.fixture(scope="module", autouse=True)
def _cryptsetup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if shutil.which("cryptsetup", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin") is None:
        if os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
            pytest.fail("cryptsetup is missing")
        pytest.skip("cryptsetup is missing")
    with pytest.MonkeyPatch.context() as patch:
        # Its usual place is for root; files are locked by themselves.
        patch.setattr(cryptsetup, "_LOCK_FOLDER", tmp_path_factory.mktemp("locks"))
        yield


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("device") / "disk"
    with path.open("wb") as disk:
        disk.truncate(DEVICE_BYTES)
    return path


@pytest.fixture(scope="module")
def header(device: Path) -> bytes:
    """What the guest makes at the first format."""
    return ThisMachine(LocalRunner()).make_header(
        Profile.XTS, device=str(device), passphrase=PASSPHRASE, volume_key=VOLUME_KEY, luks_uuid=UUID
    )


def try_key(path: str, *header: int, key: Secret = PASSPHRASE) -> None:
    """Whether cryptsetup reads the header and the key fits; maps nothing."""
    where = ["--header", memfd.path_of(header[0])] if header else []
    LocalRunner().run(
        ["cryptsetup", "open", "--test-passphrase", "--type", "luks2", *where, "--key-slot", "0",
         "--disable-external-tokens", "--key-file", "-", "--keyfile-size", "32", path],
        timeout=60, stdin=key, pass_fds=header,
    )  # fmt: skip


def test_the_header_is_for_the_key_that_was_given(header: bytes, device: Path, tmp_path: Path) -> None:
    """And not for one that cryptsetup made up: both shares would have been mixed in vain."""
    found = tmp_path / "key"
    with memfd.sealed(header) as descriptor:
        LocalRunner().run(
            ["cryptsetup", "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", str(found),
             "--key-file", "-", "--keyfile-size", "32", "--header", memfd.path_of(descriptor), str(device)],
            timeout=60, stdin=PASSPHRASE, pass_fds=(descriptor,),
        )  # fmt: skip
    assert found.read_bytes() == VOLUME_KEY.reveal()


def test_the_header_of_a_format_is_accepted(header: bytes) -> None:
    luks_header.check(header, Profile.XTS, uuid=UUID)


def test_a_format_writes_nothing_to_the_device(header: bytes, device: Path) -> None:
    assert len(header) == HEADER_BYTES
    content = device.read_bytes()
    assert len(content) == DEVICE_BYTES
    assert not content.strip(b"\0")


@pytest.mark.parametrize(("start", "magic"), [(0, b"LUKS\xba\xbe"), (16384, b"SKUL\xba\xbe")])
def test_the_binary_header(header: bytes, start: int, magic: bytes) -> None:
    assert struct.unpack_from(">6sHQQ", header, start) == (magic, 2, 16384, 3)
    assert header[start + 24 : start + 72] == bytes(48)
    assert header[start + 72 : start + 104] == b"sha256" + bytes(26)
    assert header[start + 168 : start + 208] == UUID.encode() + bytes(4)
    assert header[start + 208 : start + 256] == bytes(48)
    assert struct.unpack_from(">Q", header, start + 256) == (start,)
    copy = header[start : start + 16384]
    assert copy[448:480] == hashlib.sha256(copy[:448] + bytes(64) + copy[512:]).digest()
    assert not (copy[264:448] + copy[480:4096]).strip(b"\0")


def test_the_copies_differ_in_four_fields_only(header: bytes) -> None:
    first, second = header[:16384], header[16384:32768]
    fields = (range(6), range(104, 168), range(256, 264), range(448, 512))
    different = {at for at in range(16384) if first[at] != second[at]}
    assert different <= {at for field in fields for at in field}


def test_the_json_is_the_documented_one(header: bytes) -> None:
    text = header[4096:16384].rstrip(b"\0")
    plain = RANDOM_TEXT.sub(rb'"\1":"*"', text)
    assert plain == RANDOM_TEXT.sub(rb'"\1":"*"', text_of(DOCUMENT))
    assert text.count(b'"iterations":1000') == 2


def test_the_keyslot_is_random_and_nothing_is_behind_it(header: bytes) -> None:
    """So the parts that the broker keeps are the whole header, and all of the keyslot must be under the MAC."""
    blank = [at for at in range(32768, HEADER_BYTES, 4096) if header[at : at + 4096] == bytes(4096)]
    assert blank == [*range(HEADER_PARTS_BYTES, HEADER_BYTES, 4096)]
    assert header_of(header[:HEADER_PARTS_BYTES]) == header


def test_a_sealed_private_copy_opens_and_stays_as_it_is(header: bytes, device: Path) -> None:
    with memfd.sealed(header) as descriptor:
        try_key(str(device), descriptor)
        assert os.pread(descriptor, HEADER_BYTES + 1, 0) == header


def test_another_key_does_not_open_it(header: bytes, device: Path) -> None:
    with memfd.sealed(header) as descriptor, pytest.raises(CommandError) as caught:
        try_key(str(device), descriptor, key=Secret(bytes(32)))
    assert caught.value.returncode == 2


def test_stock_cryptsetup_opens_the_assembled_device(header: bytes, tmp_path: Path) -> None:
    """Disaster recovery needs nothing of ours but the passphrase."""
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        for offset in (HEADER_A_OFFSET, HEADER_B_OFFSET):
            file.seek(offset)
            file.write(header)
        file.truncate(DEVICE_BYTES)
    try_key(str(disk))
    content = disk.read_bytes()
    for offset in (HEADER_A_OFFSET, HEADER_B_OFFSET):
        luks_header.check(content[offset : offset + HEADER_BYTES], Profile.XTS, uuid=UUID)


def test_the_real_header_with_a_null_segment_is_refused(header: bytes) -> None:
    text = header[4096:16384].rstrip(b"\0")
    before, segments = text.split(b'"segments":{', 1)
    crafted = before + b'"segments":{' + segments.replace(b"aes-xts-plain64", b"cipher_null-ecb", 1)
    assert reseal(header, header[32768:]) == header
    with pytest.raises(Tampered, match="encryption"):
        luks_header.check(with_area(header, crafted, rest=header[32768:]), Profile.XTS, uuid=UUID)
