"""The kernel's table is the one expected line or it is refused; what dmsetup prints is read as it is printed."""

import os
import re
from collections.abc import Mapping as Environment
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core import device_mapper as kernel
from csi.core.command import Result
from csi.core.device_number import DeviceNumber
from csi.core.errors import CommandError, InUse, LiveMismatch
from csi.core.sealed import Profile
from csi.guest.seal import cryptsetup, device_mapper, dm_table, memfd
from csi.guest.seal.mapping import Mapping, mapping_name

FORMAT_PAGE = Path(__file__).resolve().parents[2] / "docs" / "sealed-format.md"
UUID = "d99be8e2-91c8-4102-9e3c-bbd2cfd08df0"
LINE = (
    f"0 131072 crypt aes-xts-plain64 :64:logon:cryptsetup:{UUID}-d0 0 8:16 69632 "
    "3 no_read_workqueue no_write_workqueue sector_size:4096"
)


def test_the_line_is_the_one_that_the_format_publishes() -> None:
    (published,) = re.findall(r"^0 SECTORS crypt .+$", FORMAT_PAGE.read_text(), re.MULTILINE)
    for word, value in (("SECTORS", "131072"), ("UUID", UUID), ("MAJOR:MINOR", "8:16")):
        published = published.replace(word, value)
    made = dm_table.expected(Profile.XTS, uuid=UUID, payload_bytes=64 * 1024 * 1024, device=DeviceNumber(8, 16))
    assert made == LINE == published


def test_the_line_of_dmsetup_with_its_end_of_line_is_accepted() -> None:
    dm_table.require(LINE + "\n", LINE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aes-xts-plain64", "cipher_null-ecb"),
        ("aes-xts-plain64", "aes-xts-plain"),
        (":64:logon", ":32:logon"),
        (f":64:logon:cryptsetup:{UUID}-d0", "0" * 128),
        ("-d0 0", "-d0 8"),
        ("8:16", "8:17"),
        ("69632", "32768"),
        ("131072", "131064"),
        (" crypt ", " linear "),
        ("sector_size:4096", "sector_size:512"),
        ("3 no_read", "4 allow_discards no_read"),
        (LINE, ""),
        (LINE, f"{LINE}\n{LINE}"),
        ("0 131072", "8 131072"),
    ],
)
def test_every_other_table_is_refused(old: str, new: str) -> None:
    assert old in LINE
    with pytest.raises(LiveMismatch, match="it is not used"):
        dm_table.require(LINE.replace(old, new, 1), LINE)


@given(st.integers(0, len(LINE) - 1), st.characters(codec="ascii"))
def test_a_line_with_any_character_changed_is_refused(place: int, character: str) -> None:
    changed = LINE[:place] + character + LINE[place + 1 :]
    if changed != LINE:
        with pytest.raises(LiveMismatch):
            dm_table.require(changed, LINE)


def test_a_long_table_is_not_echoed_whole() -> None:
    with pytest.raises(LiveMismatch) as caught:
        dm_table.require("x" * 100_000, LINE)
    assert len(str(caught.value)) < 1000


# What device-mapper says


class Dmsetup:
    """Stands for dmsetup."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def run(self, argv: Sequence[str], *, timeout: float, env: Environment[str, str], **_: Any) -> Result:
        assert timeout > 0
        assert env == {"DM_DISABLE_UDEV": "1"}, "without udev in the guest, dmsetup must not wait for it"
        self.asked.append(list(argv))
        return Result(argv=tuple(argv), returncode=0, stdout=b"", stderr=b"")


def mapping(table: str) -> Mapping:
    return Mapping(name="sealed-1", table=table, device=DeviceNumber(253, 1))


def test_the_mapping_of_a_volume_has_the_published_name() -> None:
    assert mapping_name("pvc-1") == "sealed-f2868e1aa7cab669517cd9f5ab1b7957"
    assert len(mapping_name("ä" * 1000)) == len("sealed-") + 32


def test_a_mapping_is_found_by_the_kernels_name_of_it_and_asked_for_its_whole_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = kernel.Mapping(number=DeviceNumber(253, 2), uuid="CRYPT-LUKS2", open_count=0, suspended=False)
    monkeypatch.setattr(kernel, "status", {"sealed-1": live}.get)
    monkeypatch.setattr(kernel, "table", {"sealed-1": f"{LINE}\n{LINE}"}.get)
    wanted = Mapping(name="sealed-1", table=f"{LINE}\n{LINE}", device=DeviceNumber(253, 2))
    assert device_mapper.find("sealed-1") == wanted
    assert device_mapper.find("sealed-11") is None


def test_a_mapping_that_somebody_holds_is_told_so_and_not_as_a_failed_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cryptsetup, "_LOCK_FOLDER", tmp_path / "lock")

    class Busy:
        def run(self, argv: Sequence[str], **_: Any) -> Result:
            raise CommandError(argv, 5, "", "Device sealed-1 is still in use.")

    with pytest.raises(InUse, match="/dev/mapper/sealed-1 is open; end the process that uses it"):
        cryptsetup.close_volume(Busy(), "sealed-1")


@pytest.mark.parametrize(
    ("table", "below"),
    [
        (LINE, DeviceNumber(8, 16)),
        ("0 131072 linear 8:16 69632", None),
        (f"{LINE}\n{LINE}", None),
        ("0 8 crypt", None),
        ("", None),
    ],
)
def test_only_one_crypt_line_says_what_lies_below(table: str, below: DeviceNumber | None) -> None:
    assert mapping(table).below == below


def test_a_missing_or_wrong_node_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = tmp_path / "sealed-1"
    monkeypatch.setattr(Mapping, "path", property(lambda _: str(node)))
    for wrong in (False, True):
        if wrong:
            node.write_text("no device")
        dmsetup = Dmsetup()
        device_mapper.ensure_node(dmsetup, mapping(LINE))
        assert not node.exists()
        assert dmsetup.asked == [["dmsetup", "mknodes", "sealed-1"]]


# The private copy


def test_a_sealed_copy_can_not_be_changed_through_any_descriptor() -> None:
    with memfd.sealed(b"header") as descriptor:
        for open_again in (lambda: os.dup(descriptor), lambda: os.open(memfd.path_of(descriptor), os.O_RDWR)):
            other = open_again()
            with pytest.raises(PermissionError):
                os.pwrite(other, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(other, 0)
            os.close(other)
        assert os.pread(descriptor, 100, 0) == b"header"


def test_a_header_is_made_in_zeroed_memory_of_its_size_that_no_other_program_gets() -> None:
    with memfd.writable(8192) as descriptor:
        assert os.pread(descriptor, 10_000, 0) == bytes(8192)
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
