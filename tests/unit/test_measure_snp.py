"""`broker measure snp`: the library's launch measurement against a second computation from AMD's and OVMF's formats."""

import hashlib
import struct
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from csi.broker import images
from csi.broker.main import main
from tests.fakes import firmware

KERNEL, INITRD, WORDS = b"kernel", b"initrd", "console=ttyS0 quiet"
NORMAL, STATE, ZERO, SECRETS, CPUID = 1, 2, 3, 5, 6
EPYC_V4, EPYC_MILAN = 0x00800F12, 0x00A00F11


def given(folder: Path, *, image: bytes | None = None) -> list[str]:
    files = {"OVMF.fd": firmware.image() if image is None else image, "vmlinuz": KERNEL, "initrd": INITRD}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    words = ["measure", "snp", "--name", "spark", "--firmware", str(folder / "OVMF.fd")]
    return [*words, "--kernel", str(folder / "vmlinuz"), "--append", WORDS]


def with_sections(*more: tuple[int, int, int]) -> bytes:
    return firmware.image(snp=[*firmware.SNP_SECTIONS, *more])


def test_each_number_of_processors_has_its_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    initrd = ["--initrd", str(tmp_path / "initrd")]
    assert main([*given(tmp_path), *initrd, "--vcpus", "1", "--vcpus", "3"]) == 0
    table = tomllib.loads(capsys.readouterr().out)["image"][0]
    assert table["measurement"] == [measurement(1, EPYC_V4, 1, INITRD), measurement(3, EPYC_V4, 1, INITRD)]
    assert images.image(msgspec.convert(table, images.SnpTable), "image").name == "spark"


def test_the_processor_and_the_features_and_a_missing_initrd_are_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--vcpus", "2", "--vcpu-type", "EPYC-Milan", "--guest-features", "0x21"]
    assert main([*given(tmp_path), *more]) == 0
    table = tomllib.loads(capsys.readouterr().out)["image"][0]
    assert table["measurement"] == [measurement(2, EPYC_MILAN, 0x21, b"")]


@pytest.mark.parametrize(
    ("image", "words", "text"),
    [
        (firmware.image(snp=firmware.SNP_SECTIONS[:3]), ["--vcpus", "1"], "SNP_KERNEL_HASHES"),
        (b"", ["--vcpus", "1"], "can't be measured for SEV-SNP"),
        (bytes(4096), ["--vcpus", "1"], "can't be measured for SEV-SNP"),
        (with_sections((0x1000000, 0xF0000000, 1)), ["--vcpus", "1"], "no firmware is so large"),
        (with_sections(*[(0, 0x1000000, 1)] * 5), ["--vcpus", "1"], "no firmware is so large"),
        (firmware.image(), ["--vcpus", "0"], "start no guest"),
        (firmware.image(), ["--vcpus", "-1"], "start no guest"),
        (firmware.image(), ["--vcpus", "4097"], "start no guest"),
        (firmware.image(), ["--vcpus", "1", "--guest-features", "0x10000000000000001"], "64 bits"),
        (firmware.image(), ["--vcpus", "1", "--guest-features", "-1"], "64 bits"),
        (firmware.image(), ["--vcpus", "1", "--kernel", "/nonexistent/vmlinuz"], "/nonexistent/vmlinuz does not exist"),
    ],
)
def test_what_can_not_be_measured_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: bytes, words: list[str], text: str
) -> None:
    assert main([*given(tmp_path, image=image), *words]) == 1
    assert text in capsys.readouterr().err


def measurement(vcpus: int, signature: int, features: int, initrd: bytes) -> str:
    """A chain of SHA-384 over PAGE_INFO (AMD document 56860, SNP_LAUNCH_UPDATE)."""
    current = bytes(48)
    for kind, address, contents in pages(vcpus, signature, features, initrd):
        digest = hashlib.sha384(contents).digest() if contents else bytes(48)
        info = current + digest + struct.pack("<HBBBBBBQ", 0x70, kind, 0, 0, 0, 0, 0, address)
        current = hashlib.sha384(info).digest()
    return current.hex()


def pages(vcpus: int, signature: int, features: int, initrd: bytes) -> Iterator[tuple[int, int, bytes]]:
    image = firmware.image()
    for at in range(0, len(image), 4096):
        yield NORMAL, (1 << 32) - len(image) + at, image[at : at + 4096]
    yield ZERO, 0x800000, b""
    yield ZERO, 0x801000, b""
    yield SECRETS, 0x80D000, b""
    yield CPUID, 0x80E000, b""
    yield NORMAL, 0x80F000, (bytes(0xC00) + kernel_hashes(initrd)).ljust(4096, b"\0")
    yield STATE, 0xFFFFFFFFF000, processor(0xFFFFFFF0, signature, features)
    for _ in range(vcpus - 1):
        yield STATE, 0xFFFFFFFFF000, processor(firmware.RESET_EIP, signature, features)


def kernel_hashes(initrd: bytes) -> bytes:
    entries = b""
    for guid, content in (
        ("97d02dd8-bd20-4c94-aa78-e7714d36ab2a", WORDS.encode() + b"\0"),
        ("44baf731-3a2f-4bd7-9af1-41e29169781d", initrd),
        ("4de79437-abd2-427f-b835-d5b172d2045b", KERNEL),
    ):
        entries += uuid.UUID(guid).bytes_le + struct.pack("<H", 50) + hashlib.sha256(content).digest()
    return uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21").bytes_le + struct.pack("<H", 18 + len(entries)) + entries


def processor(start: int, signature: int, features: int) -> bytes:
    """A processor's first state as QEMU and KVM set it (AMD64 manual 2, table B-4)."""
    state = bytearray(4096)
    data, code = (0, 0x93, 0xFFFF, 0), (0xF000, 0x9B, 0xFFFF, start & 0xFFFF0000)
    segments = (data, code, data, data, data, data, (0, 0, 0xFFFF, 0), (0, 0x82, 0xFFFF, 0), (0, 0, 0xFFFF, 0))
    for index, segment in enumerate((*segments, (0, 0x8B, 0xFFFF, 0))):
        struct.pack_into("<HHIQ", state, 16 * index, *segment)
    for offset, value in (
        (0x0D0, 0x1000),  # EFER: SVM on
        (0x148, 0x40),  # CR4: machine checks
        (0x158, 0x10),  # CR0
        (0x160, 0x400),  # DR7
        (0x168, 0xFFFF0FF0),  # DR6
        (0x170, 2),  # RFLAGS
        (0x178, start & 0xFFFF),  # RIP
        (0x268, 0x0007040600070406),  # PAT
        (0x310, signature),  # RDX
        (0x3B0, features),  # SEV_FEATURES
        (0x3E8, 1),  # XCR0
    ):
        struct.pack_into("<Q", state, offset, value)
    struct.pack_into("<I", state, 0x408, 0x1F80)  # MXCSR
    struct.pack_into("<H", state, 0x410, 0x37F)  # x87 control word
    return bytes(state)
