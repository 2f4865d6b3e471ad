"""`broker measure tdx`: published registers of real machines, and digests computed by independent lines."""

import hashlib
import signal
import struct
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from csi.broker import images
from csi.broker.main import main
from csi.broker.measure import authenticode, hand_off, tdvf, tdx
from csi.core.errors import InvalidInput
from tests.fakes import firmware

MIB = 1024 * 1024
HAND_OFF_OF_2_GIB = "0e35f1b315ba6c912cf791e5c79dd9d3a2b8704516aa27d4e5aa78fb09ede04aef2bbd02ac7a8734c48562b9c26ba35d"
HAND_OFF_OF_16_GIB = "cd2312a0d87ef3c4a928df87088969a80b33d7bf3fc584bdde637b09ed808a8d821a56b78a13a6eb506db7578444abbe"
"""As TDs of dstack logged them (first event of register 0); the larger one's firmware begins a section earlier."""
PUBLISHED_VARIABLES = {
    "SecureBoot": "9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf72b42166fb70d50325e37b36f93537a863769bcf9bedae6fb",
    "PK": "6f2e3cbc14f9def86980f5f66fd85e99d63e69a73014ed8a5633ce56eca5b64b692108c56110e22acadcef58c3250f1b",
    "KEK": "d607c0efb41c0d757d69bca0615c3a9ac0b1db06c557d992e906c6b7dee40e0e031640c7bfd7bcd35844ef9edeadc6f9",
    "db": "08a74f8963b337acb6c93682f934496373679dd26af1089cb4eaf0c30cf260a12e814856385ab8843e56a9acea19e127",
    "dbx": "18cc6e01f0c6ea99aa23f8a280423e94ad81d96d0aeb5180504fc0f7a40cb3619dd39bd6a95ec1680a86ed6ab0f9828d",
}
PUBLISHED_BOOT_ENTRY = (
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"
)
PUBLISHED_BOOT_ORDER = (
    "1dd6f7b457ad880d840d41c961283bab688e94e4b59359ea45686581e90feccea3c624b1226113f824f315eb60ae0a7c"
)
PUBLISHED_PROGRAM_EVENTS = (
    "77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada819d0a98988078d3d740f6346bfe0abaa938ca20439a8d71",
    "394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
    "214b0bef1379756011344877743fdc2a5382bac6e70362d624ccf3f654407c1b4badf7d8f9295dd3dabdef65b27677e0",
    "0a2e01c85deae718a530ad8c6d20a84009babe6c8989269e950d8cf440c6e997695e64d455c4174a652cd080f6230b74",
)
PUBLISHED_KERNEL = "f51c5215e1ae1e5202fb0a710248e13c2bf2824b7f0b2a1675f63e9fd37befb93fbb97a4f8630879168b76aee3b198e2"
PUBLISHED_RTMR1 = "4a7db64a609c77e85f603c23e9a9fd03bfd9e6b52ce527f774a598e66d58386026cea79b2aea13b81a0b70cfacdec0ca"
OPTIONAL = 64 + 24
SIGNATURES_ENTRY_END = OPTIONAL + 112 + 5 * 8
HEADERS = OPTIONAL + 112 + 16 * 8 + 40
"""Of `firmware.efi_program()`: up to the optional header; up to its fifth directory; all headers."""
KATA_COMMAND_LINE = (
    "tsc=reliable no_timer_check rcupdate.rcu_expedited=1 i8042.direct=1 i8042.dumbkbd=1 i8042.nopnp=1 i8042.noaux=1 "
    "noreplace-smp reboot=k cryptomgr.notests net.ifnames=0 pci=lastbus=0 "
    'dm-mod.create="dm-verity,,,ro,0 772096 verity 1 /dev/vda1 /dev/vda2 4096 4096 96512 0 sha256 '
    "768cd7e848f6cb7eb4f59467b26ee5c5e45ece570cb96a5c952d97dbc89bb150 "
    '63f8dacc786bd19f307be8668c7792a8fe07818df4aae55b63e76c4931d35c76" '
    "root=/dev/dm-0 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4 console=hvc0 console=hvc1 quiet "
    "systemd.show_status=false panic=1 nr_cpus=1 selinux=0 systemd.unit=kata-containers.target "
    "systemd.mask=systemd-networkd.service systemd.mask=systemd-networkd.socket scsi_mod.scan=none "
    "agent.launch_process_timeout=6 cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"
)
KATA_RTMR2 = "b595f9f179d8b699d1420000d36c1fba82e9853545e719caa6ddbb82fa2041a23b4459876af4a253a1c20c5956529b9a"
"""Of a live quote of a Kata guest without an initrd."""


def boot(*, kernel: bytes | None = None, command_line: str = "quiet", initrd: bytes | None = None) -> tdx.Boot:
    return tdx.Boot(
        firmware=firmware.image(),
        firmware_name="OVMF.fd",
        kernel=firmware.efi_program() if kernel is None else kernel,
        kernel_name="vmlinuz",
        command_line=command_line,
        initrd=initrd,
    )


def sections() -> tuple[tdvf.Section, ...]:
    return tdvf.sections(firmware.image(), "OVMF.fd")


def test_rtmr2_is_that_of_a_published_kata_guest() -> None:
    assert tdx.registers(boot(command_line=KATA_COMMAND_LINE))["rtmr2"] == KATA_RTMR2


def test_rtmr1_is_that_of_a_published_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticode, "sha384", lambda *_: bytes.fromhex(PUBLISHED_KERNEL))
    assert tdx.registers(boot())["rtmr1"] == PUBLISHED_RTMR1


def test_the_register_is_extended_by_the_published_events() -> None:
    events = [authenticode.sha384(boot().kernel, "vmlinuz"), *map(bytes.fromhex, PUBLISHED_PROGRAM_EVENTS)]
    assert tdx.registers(boot())["rtmr1"] == extended(events)


def test_the_memory_map_is_that_of_two_published_machines() -> None:
    assert sha384(hand_off.hand_off_blocks(sections(), 2048 * MIB, "f")) == HAND_OFF_OF_2_GIB
    early = [(0, 0, 0x810000, 0x10000, 3, 0) if one[2] == 0x811000 else one for one in firmware.TDX_SECTIONS]
    found = tdvf.sections(firmware.image(tdx=early), "f")
    assert sha384(hand_off.hand_off_blocks(found, 16384 * MIB, "f")) == HAND_OFF_OF_16_GIB


def test_rtmr0_is_extended_by_the_published_events_of_the_firmware() -> None:
    machine = hand_off.VirtualMachine(
        memory_bytes=2048 * MIB, acpi_loader=b"loader", acpi_rsdp=b"rsdp", acpi_tables=b"tables"
    )
    configuration = sha384(firmware.image()[:0x1000])
    events = [HAND_OFF_OF_2_GIB, configuration, *PUBLISHED_VARIABLES.values(), PUBLISHED_PROGRAM_EVENTS[1]]
    events += [sha384(b"loader"), sha384(b"rsdp"), sha384(b"tables"), PUBLISHED_BOOT_ORDER, PUBLISHED_BOOT_ENTRY]
    assert tdx.registers(boot(), machine)["rtmr0"] == extended(map(bytes.fromhex, events))
    assert list(tdx.registers(boot(), machine)) == ["mrtd", "rtmr0", "rtmr1", "rtmr2"]


def test_mrtd_is_the_digest_of_the_pages_in_the_order_of_kvm() -> None:
    image = firmware.image()
    text = b""
    for address, data in ((0xFFFFE000, image[0x2000:0x3000]), (0xFFFFF000, image[0x3000:0x4000])):
        text += b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", address) + bytes(104)
        for at in range(0, 4096, 256):
            text += b"MR.EXTEND" + bytes(7) + struct.pack("<Q", address + at) + bytes(104) + data[at : at + 256]
    for address, pages in ((0xFFFFC000, 1), (0x811000, 15), (0x80B000, 2), (0x809000, 2), (0x800000, 6)):
        for page in range(pages):
            text += b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", address + page * 4096) + bytes(104)
    assert tdx.registers(boot())["mrtd"] == sha384(text)


def test_the_initrd_and_the_word_that_the_firmware_adds_for_it_are_in_rtmr2() -> None:
    found = tdx.registers(boot(command_line="ro", initrd=b"cpio"))["rtmr2"]
    words = b"".join(bytes([byte, 0]) for byte in b"ro initrd=initrd\0")
    assert found == extended([hashlib.sha384(words).digest(), hashlib.sha384(b"cpio").digest()])


def test_a_guest_without_a_command_line_is_refused() -> None:
    with pytest.raises(InvalidInput, match="which is not measured"):
        tdx.registers(boot(command_line=""))


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("tail", [b"", b"odd", b"eight by"])
def test_the_digest_of_a_program_is_what_firmware_computes(wide: bool, tail: bytes) -> None:
    plain = firmware.efi_program(wide=wide, tail=tail)
    digest = by_edk2(plain)
    assert authenticode.sha384(plain, "k") == digest
    changed = bytearray(plain)
    changed[len(plain) - len(tail) - 3] ^= 1
    assert authenticode.sha384(bytes(changed), "k") == by_edk2(bytes(changed)) != digest
    changed = bytearray(plain)
    changed[64 + 24 + 64] ^= 1
    assert authenticode.sha384(bytes(changed), "k") == digest


def test_sections_are_measured_by_their_place_in_the_file_not_in_the_table() -> None:
    program = bytearray(firmware.efi_program())
    second = bytearray(program[HEADERS - 40 : HEADERS])
    struct.pack_into("<II", program, HEADERS - 40 + 16, 100, HEADERS + 440)  # The last part of the body comes first,
    struct.pack_into("<II", second, 16, 360, HEADERS + 80)
    struct.pack_into("<H", program, 64 + 6, 3)
    struct.pack_into("<I", program, OPTIONAL + 60, HEADERS + 80)
    program[HEADERS : HEADERS + 80] = second + bytes(40)  # the part before it second, and then one without content.
    assert authenticode.sha384(bytes(program), "k") == by_edk2(bytes(program))


def test_headers_may_end_with_the_entry_of_the_signatures() -> None:
    program = bytearray(firmware.efi_program())
    struct.pack_into("<H", program, 64 + 6, 0)
    struct.pack_into("<I", program, OPTIONAL + 60, SIGNATURES_ENTRY_END)
    assert authenticode.sha384(bytes(program), "k") == by_edk2(bytes(program))


@pytest.mark.parametrize("wide", [True, False])
def test_signing_a_program_changes_its_digest_by_nothing_but_what_fills_it_up(wide: bool) -> None:
    tail = bytes(-len(firmware.efi_program(wide=wide)) % 8)
    signed = firmware.efi_program(wide=wide, tail=tail, signatures=b"S" * 64)
    assert authenticode.sha384(signed, "k") == by_edk2(signed) == by_edk2(firmware.efi_program(wide=wide, tail=tail))
    assert authenticode.sha384(firmware.efi_program(wide=wide, tail=b"odd"), "k") != authenticode.sha384(
        firmware.efi_program(wide=wide, tail=b"odd".ljust(8, b"\0")), "k"
    )


def by_edk2(image: bytes) -> bytes:
    """The steps of EDK2's SecurityPkg/Tcg/Tcg2Dxe/MeasureBootPeCoff.c, of which step 16 fills nothing up."""
    (start,) = struct.unpack_from("<I", image, 0x3C)
    sections, optional_size = struct.unpack_from("<H12xH", image, start + 6)
    optional = start + 24
    directories = optional + {0x10B: 96, 0x20B: 112}[struct.unpack_from("<H", image, optional)[0]]
    (headers,) = struct.unpack_from("<I", image, optional + 60)
    (signatures,) = struct.unpack_from("<I", image, directories + 4 * 8 + 4)
    digest = hashlib.sha384(image[: optional + 64])
    digest.update(image[optional + 68 : directories + 4 * 8])
    digest.update(image[directories + 5 * 8 : headers])
    hashed = headers
    entries = [struct.unpack_from("<II", image, optional + optional_size + 40 * at + 16) for at in range(sections)]
    for size, first in sorted(entries, key=lambda entry: entry[1]):
        digest.update(image[first : first + size])
        hashed += size
    digest.update(image[hashed : len(image) - signatures])
    return digest.digest()


def changed(at: int, value: int) -> bytes:
    """A program with another number in its headers."""
    program = bytearray(firmware.efi_program())
    struct.pack_into("<I", program, at, value)
    return bytes(program)


def signed_from(start: int) -> bytes:
    """A program of which all from `start` on is said to be signatures."""
    program = bytearray(firmware.efi_program())
    struct.pack_into("<II", program, SIGNATURES_ENTRY_END - 8, start, len(program) - start)
    return bytes(program)


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        (b"", "cut off or of another kind"),
        (b"\x7fELF" + bytes(200), "CONFIG_EFI_STUB"),
        (firmware.efi_program()[:100], "cut off"),
        (firmware.efi_program(signatures=b"S" * 64) + b"after", "not its last bytes"),
        (b"ZM" + firmware.efi_program()[2:], "CONFIG_EFI_STUB"),
        (firmware.efi_program().replace(b"PE\0\0", b"NE\0\0"), "CONFIG_EFI_STUB"),
        (firmware.efi_program().replace(b"\x0b\x02", b"\x07\x01"), "neither of 32 nor of 64 bit"),
        (signed_from(SIGNATURES_ENTRY_END), "before its signatures"),
        (signed_from(len(firmware.efi_program()) - 1), "before its signatures"),
        (changed(OPTIONAL + 60, SIGNATURES_ENTRY_END - 1), "before its signatures"),
        (changed(OPTIONAL + 60, 1 << 31), "leave gaps"),
        (changed(OPTIONAL + 108, 4), "no entry for signatures"),
        (changed(HEADERS - 40 + 20, HEADERS + 1), "leave gaps"),
        (changed(HEADERS - 40 + 20, HEADERS - 1), "or overlap"),
        (changed(HEADERS - 40 + 16, 541), "before its signatures"),
        (changed(64 + 6, 3), "leave gaps"),
    ],
)
def test_a_kernel_that_firmware_could_not_measure_is_refused(kernel: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        tdx.registers(boot(kernel=kernel))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (b"", "cut off"),
        (bytes(4096), "table of GUIDs"),
        (firmware.image(without="e47a6535-984a-4798-865e-4685a7bf8ec2"), "without TDX metadata"),
        (firmware.image(tdx=[(0, 0x1000, 0x800001, 0x1000, 0, 1)]), "not whole pages"),
        (firmware.image(tdx=[(0, 0x1000, 0x800000, 0x2000, 0, 1)]), "no content"),
        (firmware.image(tdx=[(0x3000, 0x2000, 0x800000, 0x2000, 0, 1)]), "cut off"),
        (firmware.image(tdx=[(0, 0, 0x800000, 1 << 40, 3, 0)]), "no firmware is so large"),
        (firmware.image(tdx=[(0, 0, 0x800000, 40 * MIB, 3, 0)] * 2), "no firmware is so large"),
        (firmware.image(tdx=[(0, 0, (1 << 64) - 0x1000, 0x2000, 3, 0)]), "no memory can be"),
        (firmware.image(tdx=[(0, 0, 0x800000, 1 << 63, 3, 2)]), "no memory can be"),
        (firmware.image(tdx=[(0, 0x1000, 0x800000, 0x1000, 3, 2)]), "has content and is not added"),
    ],
)
def test_firmware_that_does_not_add_up_is_refused(image: bytes, text: str) -> None:
    with pytest.raises(InvalidInput, match=text):
        tdvf.sections(image, "OVMF.fd")


def test_memory_that_the_td_is_given_later_costs_nothing_and_is_no_part_of_its_measurement() -> None:
    later = tdvf.sections(firmware.image(tdx=[(0, 0, 0x1000000, 1 << 50, 3, 2)]), "OVMF.fd")
    with time_limit(30):
        assert tdx.mrtd([*sections(), *later]) == tdx.mrtd(sections())


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """End what would run for days. No test depends on how fast the machine is."""

    def expired(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_a_cut_off_image_is_refused_wherever_it_is_cut() -> None:
    image = firmware.image()
    for size in range(0, len(image), 37):
        with pytest.raises(InvalidInput):
            tdvf.sections(image[:size], "OVMF.fd")


def test_the_command_prints_a_reference_set_that_the_policy_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "OVMF.fd").write_bytes(firmware.image())
    (tmp_path / "vmlinuz").write_bytes(firmware.efi_program())
    given = ["measure", "tdx", "--name", "spark", "--firmware", str(tmp_path / "OVMF.fd")]
    given += ["--kernel", str(tmp_path / "vmlinuz"), "--append", KATA_COMMAND_LINE]
    assert main(given) == 0
    out, err = capsys.readouterr()
    table = tomllib.loads(out)["image"][0]
    assert (table["name"], table["tee"], table["rtmr2"]) == ("spark", "tdx", [KATA_RTMR2])
    with pytest.raises(InvalidInput, match="rtmr0: missing"):
        images.image(msgspec.convert(table, images.TdxTable), "image")
    said = tomllib.loads(out.replace("# unmeasured", "unmeasured"))["image"][0]
    taken = images.image(msgspec.convert(said, images.TdxTable), "image")
    assert set(taken.registers) == {"mrtd", "rtmr1", "rtmr2"}
    assert "rtmr0 is left out" in err

    for name in ("table-loader", "acpi/rsdp", "acpi/tables"):
        (tmp_path / "etc" / name).mkdir(parents=True)
        (tmp_path / "etc" / name / "raw").write_bytes(name.encode())
    assert main([*given, "--memory", "2048", "--acpi", str(tmp_path / "etc")]) == 0
    out, err = capsys.readouterr()
    table = tomllib.loads(out)["image"][0]
    assert set(images.image(msgspec.convert(table, images.TdxTable), "image").registers) >= {"rtmr0"}
    assert err == ""
    for memory in ("0", "-1", "4294967297", "99999999999999999999"):
        assert main([*given, "--memory", memory, "--acpi", str(tmp_path / "etc")]) == 1
        assert "no virtual machine's memory" in capsys.readouterr().err
    assert main([*given, "--memory", "2048"]) == 1
    assert "--acpi" in capsys.readouterr().err


def sha384(data: bytes) -> str:
    return hashlib.sha384(data).hexdigest()


def extended(digests: Iterable[bytes]) -> str:
    value = bytes(48)
    for digest in digests:
        value = hashlib.sha384(value + digest).digest()
    return value.hex()
