"""A header with any other meaning than profile `xts` is refused by the allow-list alone, checksums repaired or not.

The headers here are built in Python; that cryptsetup's own header passes is shown in `tests/tools`.
"""

import base64
import copy
import functools
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from csi.core.errors import Tampered
from csi.core.sealed import HEADER_BYTES, HEADER_PARTS_BYTES, Profile
from csi.guest.seal import luks_header

UUID = "0f9b2c1e-3a1d-4c0e-9d2b-111122223333"
COPIES = (0, 16384)
HEAD_BYTES, JSON_AT, JSON_BYTES, CHECKSUM_AT = 32768, 4096, 12288, 448
REST = bytes(HEADER_BYTES - HEAD_BYTES)
SALT_FIELD = range(104, 168)

Path = tuple[str | int, ...]


def random32(seed: str) -> str:
    return base64.b64encode(hashlib.sha256(seed.encode()).digest()).decode()


DOCUMENT: dict[str, Any] = {
    "keyslots": {
        "0": {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": "32768",
                "size": "258048",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": random32("kdf")},
        }
    },
    "tokens": {},
    "segments": {
        "0": {
            "type": "crypt",
            "offset": "35651584",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 4096,
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": 1000,
            "salt": random32("salt"),
            "digest": random32("digest"),
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "16744448"},
}
RANDOM_LEAVES: tuple[Path, ...] = (
    ("keyslots", "0", "kdf", "salt"),
    ("digests", "0", "salt"),
    ("digests", "0", "digest"),
)


def reseal(header: bytes | bytearray, rest: bytes = REST) -> bytes:
    """The header with both checksums made right again, as a host would do after its change.

    Only its first 32 KiB count; `rest` comes after them.
    """
    head = bytearray(header[:HEAD_BYTES])
    for start in COPIES:
        head[start + CHECKSUM_AT : start + CHECKSUM_AT + 64] = bytes(64)
        head[start + CHECKSUM_AT : start + CHECKSUM_AT + 32] = hashlib.sha256(head[start : start + 16384]).digest()
    return b"".join((head, rest))


def text_of(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def with_area(header: bytes | bytearray, area: bytes, starts: tuple[int, ...] = COPIES, rest: bytes = REST) -> bytes:
    """The header with another JSON text in the copies that start there, resealed."""
    changed = bytearray(header[:HEAD_BYTES])
    for start in starts:
        changed[start + JSON_AT : start + JSON_AT + JSON_BYTES] = area.ljust(JSON_BYTES, b"\0")
    assert len(changed) == HEAD_BYTES
    return reseal(changed, rest)


def build() -> bytes:
    header = bytearray(HEAD_BYTES)
    for start, magic in zip(COPIES, (b"LUKS\xba\xbe", b"SKUL\xba\xbe"), strict=True):
        struct.pack_into(">6sHQQ48s32s", header, start, magic, 2, 16384, 3, b"", b"sha256")
        struct.pack_into(">64s40s48sQ", header, start + 104, hashlib.sha512(magic).digest(), UUID.encode(), b"", start)
    return with_area(header, text_of(DOCUMENT))


GOOD = build()
TEXT = text_of(DOCUMENT)


def refused(header: bytes) -> str:
    with pytest.raises(Tampered) as caught:
        luks_header.check(header, Profile.XTS, uuid=UUID)
    message = str(caught.value)
    assert len(message) < 200
    assert message.isascii()
    assert message.isprintable()
    return message


def refused_everywhere(*texts: bytes) -> None:
    """Each text is refused when both copies say it; the last one also when just one copy does."""
    for text in texts:
        refused(with_area(GOOD, text))
    refused(with_area(GOOD, texts[-1], COPIES[:1]))
    refused(with_area(GOOD, texts[-1], COPIES[1:]))


def poked(offset: int, data: bytes) -> bytes:
    changed = bytearray(GOOD[:HEAD_BYTES])
    changed[offset : offset + len(data)] = data
    return reseal(changed)


def test_the_profile_is_accepted() -> None:
    luks_header.check(GOOD, Profile.XTS, uuid=UUID)


def test_other_random_values_and_another_sequence_number_are_accepted() -> None:
    document = copy.deepcopy(DOCUMENT)
    for path in RANDOM_LEAVES:
        put(document, path, random32(repr(path)))
    changed = bytearray(with_area(GOOD, text_of(document)))
    for start in COPIES:
        struct.pack_into(">Q", changed, start + 16, 4)
    luks_header.check(reseal(changed), Profile.XTS, uuid=UUID)


# JSON, changed leaf by leaf


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every place of the document, leaves and containers."""
    if path:
        yield path, value
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in inner:
        yield from walk(member, (*path, key))


def at(path: Path, document: Any = DOCUMENT) -> Any:
    return functools.reduce(lambda value, key: value[key], path, document)


def holder(document: Any, path: Path) -> Any:
    return at(path[:-1], document)


def put(document: Any, path: Path, value: object) -> None:
    holder(document, path)[path[-1]] = value


def edited(path: Path, value: object) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    put(document, path, value)
    return text_of(document)


def without(path: Path) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    del holder(document, path)[path[-1]]
    return text_of(document)


def doubled(path: Path, second: object, *, last: bool) -> bytes:
    """The member twice. Parsers differ in which one they take, so the odd value is put on either side."""
    document = copy.deepcopy(DOCUMENT)
    parent = holder(document, path)
    members = list(parent.items())
    members.insert(len(members) if last else 0, (f"@twin:{path[-1]}", second))
    parent.clear()
    parent.update(members)
    return text_of(document).replace(b"@twin:", b"")


PLACES = list(walk(DOCUMENT))
LEAVES = [(path, value) for path, value in PLACES if not isinstance(value, dict | list)]


def name(path: Path) -> str:
    return ".".join(map(str, path))


def other_values(value: Any) -> list[object]:
    common = [
        None,
        True,
        False,
        {},
        [],
        [value],
        {"0": value},
        1.5,
        -1,
        0,
        "",
        "9" * 3000,
        10**30,
        2**64,
        "\u00e9" * 44,
    ]
    if isinstance(value, str):
        return [*common, f"{value} ", f"{value}0", f"{value}\0", value[:-1], value.swapcase() + "x"]
    return [*common, value + 1, value - 1, -value, float(value), str(value), 2**31 - 1]


@pytest.mark.parametrize(("path", "value"), LEAVES, ids=[name(path) for path, _ in LEAVES])
def test_a_leaf_with_another_value_is_refused(path: Path, value: Any) -> None:
    refused_everywhere(*(edited(path, other) for other in other_values(value)))


@pytest.mark.parametrize("path", [path for path, _ in PLACES], ids=name)
def test_a_missing_place_is_refused(path: Path) -> None:
    refused_everywhere(without(path))


@pytest.mark.parametrize("path", [path for path, _ in PLACES if isinstance(path[-1], str)], ids=name)
def test_a_member_that_appears_twice_is_refused(path: Path) -> None:
    seconds: tuple[object, ...] = (at(path), "cipher_null-ecb", {})
    refused_everywhere(*(doubled(path, second, last=last) for second in seconds for last in (True, False)))


CONTAINERS: list[Path] = [(), *(path for path, value in PLACES if isinstance(value, dict))]


@pytest.mark.parametrize("path", CONTAINERS, ids=name)
def test_an_unknown_member_is_refused(path: Path) -> None:
    keys = ["x", "0", "1", "", "flags", "requirements", "priority", "integrity", "k" * 3000, "Type", "type "]
    refused_everywhere(*(edited((*path, key), {}) for key in keys if key not in at(path)))


@pytest.mark.parametrize("path", [path for path, value in PLACES if isinstance(value, dict | list)], ids=name)
def test_a_container_of_another_shape_is_refused(path: Path) -> None:
    others: list[object] = [None, True, 0, "", [], {}, ["1"], ["0", "0"], ["0", "1"], [0], [["0"]]]
    refused_everywhere(*(edited(path, other) for other in others if at(path) != other))


@pytest.mark.parametrize("path", RANDOM_LEAVES, ids=name)
@pytest.mark.parametrize("length", [0, 31, 33, 64, 3000])
def test_a_random_value_of_another_length_is_refused(path: Path, length: int) -> None:
    refused_everywhere(edited(path, base64.b64encode(bytes(length)).decode()))


@pytest.mark.parametrize("path", RANDOM_LEAVES, ids=name)
def test_a_random_value_has_one_spelling(path: Path) -> None:
    plain = "A" * 43 + "="
    luks_header.check(with_area(GOOD, edited(path, plain)), Profile.XTS, uuid=UUID)
    for other in ("A" * 42 + "B=", f"{plain}=", f"{plain}\n", "A" * 43, f" {plain}", "-" * 43 + "=", "\u00e9" * 44):
        refused_everywhere(edited(path, other))


# Crafted headers that cryptsetup would take up in some release

SEGMENT = ("segments", "0")
CRAFTED: dict[str, tuple[Path, object]] = {
    "null keyslot": (("keyslots", "0", "area", "encryption"), "cipher_null-ecb"),
    **{
        f"segment {cipher}": ((*SEGMENT, "encryption"), cipher)
        for cipher in (
            "cipher_null-ecb", "aes-xts-null", "aes-xts-plain", "aes-xts-benbi", "serpent-xts-plain64", "aes-cbc-null",
            "aes-ecb", "capi:xts(aes)-plain64", "capi:xts(ecb(aes-generic))-plain64",
        )
    },
    **{
        f"segment type {kind!r}": ((*SEGMENT, "type"), kind)
        for kind in ("linear", "crypt ", "CRYPT", "crypt2", "", "hw-opal", "hw-opal-crypt")
    },
    "segment without a cipher": (SEGMENT, {"type": "other", "offset": "35651584", "size": "dynamic"}),
    "segment integrity": ((*SEGMENT, "integrity"), {"type": "hmac(sha256)", "journal_encryption": "none"}),
    "segment sector size": ((*SEGMENT, "sector_size"), 512),
    "segment IV tweak": ((*SEGMENT, "iv_tweak"), "8"),
    "segment over the header": ((*SEGMENT, "offset"), "0"),
    "segment size": ((*SEGMENT, "size"), "1048576"),
    "segment in reencryption": ((*SEGMENT, "flags"), ["in-reencryption"]),
    "second segment": (
        ("segments", "1"),
        {"type": "linear", "offset": "0", "size": "dynamic", "flags": ["backup-final"]},
    ),
    **{
        f"flag {flag}": (("config", "flags"), [flag])
        for flag in ("allow-discards", "same-cpu-crypt", "submit-from-crypt-cpus", "no-read-workqueue")
    },
    "no flags": (("config", "flags"), []),
    "requirement": (("config", "requirements"), {"mandatory": ["unknown"]}),
    "reencryption": (("config", "requirements"), {"mandatory": ["online-reencrypt-v2"]}),
    "stretched keyslot area": (("config", "keyslots_size"), "35618816"),
    "top-level member": (("extra",), {}),
    "keyslot priority 0": (("keyslots", "0", "priority"), 0),
    "keyslot priority 1": (("keyslots", "0", "priority"), 1),
    "second keyslot": (("keyslots", "1"), DOCUMENT["keyslots"]["0"]),
    "second digest": (("digests", "1"), DOCUMENT["digests"]["0"]),
    "keyslot that takes for ever": (("keyslots", "0", "kdf", "iterations"), 2 * 10**9),
    "keyslot that takes all memory": (
        ("keyslots", "0", "kdf"),
        {"type": "argon2id", "time": 4, "memory": 2**31, "cpus": 4, "salt": random32("kdf")},
    ),
    "digest iterations": (("digests", "0", "iterations"), 2 * 10**9),
    "keyring token": (
        ("tokens", "0"),
        {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"},
    ),
    "TPM token": (("tokens", "0"), {"type": "systemd-tpm2", "keyslots": ["0"]}),
    "xts-hmac keyslot": (("keyslots", "0", "key_size"), 96),
}  # fmt: skip


@pytest.mark.parametrize("title", CRAFTED)
def test_a_crafted_header_is_refused(title: str) -> None:
    refused_everywhere(edited(*CRAFTED[title]))


def test_a_second_copy_that_would_win_is_refused() -> None:
    null = edited((*SEGMENT, "encryption"), "cipher_null-ecb")
    changed = bytearray(with_area(GOOD, null, COPIES[1:]))
    struct.pack_into(">Q", changed, COPIES[1] + 16, 4)
    assert "sequence" in refused(reseal(changed))


# JSON text that parsers read differently

TEXTS = {
    "empty": b"",
    "nothing but space": b"   ",
    "comment": TEXT.replace(b'"tokens"', b'/* x */"tokens"'),
    "line comment": TEXT + b"// x",
    "single quotes": TEXT.replace(b'"', b"'"),
    "one key in single quotes": TEXT.replace(b'"tokens"', b"'tokens'"),
    "bytes after": TEXT + b"x",
    "two documents": TEXT + TEXT,
    "bytes after the NUL": TEXT + b"\0x",
    "bytes at the very end": TEXT.ljust(JSON_BYTES - 1, b"\0") + b"}",
    "no NUL": TEXT.ljust(JSON_BYTES, b" "),
    "NaN": TEXT.replace(b"4096", b"NaN"),
    "Infinity": TEXT.replace(b"4096", b"-Infinity"),
    "float": TEXT.replace(b"4096", b"4096.0"),
    "exponent": TEXT.replace(b"1000", b"1e3"),
    "leading zero": TEXT.replace(b"4096", b"04096"),
    "hexadecimal": TEXT.replace(b"4096", b"0x1000"),
    "endless number": TEXT.replace(b"4096", b"9" * 9000),
    "endless exponent": TEXT.replace(b"4096", b"1e999999999"),
    "comma at the end": TEXT.replace(b"4096}", b"4096,}"),
    "byte order mark": b"\xef\xbb\xbf" + TEXT,
    "not UTF-8": TEXT.replace(b"dynamic", b"\xff\xfe"),
    "UTF-16": TEXT.decode().encode("utf-16-le"),
    "NUL in a key": TEXT.replace(b'"sector_size"', b'"sector_size\\u0000"'),
    "half a surrogate": TEXT.replace(b"dynamic", b"\\ud800"),
    "escaped twin key": TEXT.replace(b'"tokens":{}', b'"tokens":{},"\\u0074okens":{}'),
    "deep lists": TEXT.replace(b'"dynamic"', b"[" * 5000 + b"]" * 5000),
    "deep objects": TEXT.replace(b'"dynamic"', b'{"":' * 1800 + b"0" + b"}" * 1800),
    "deep, but readable": TEXT.replace(b'"dynamic"', b"[" * 900 + b"]" * 900),
    "a list": b"[" + TEXT + b"]",
    "a string": b'"x"',
    "null": b"null",
}


@pytest.mark.parametrize("title", TEXTS)
def test_json_with_two_readings_is_refused(title: str) -> None:
    refused_everywhere(TEXTS[title])


# The binary headers

BINARY: dict[str, tuple[int, bytes]] = {
    "magic": (0, b"LUKS\xba\xbf"),
    "the other magic": (0, b"SKUL\xba\xbe"),
    "no magic": (0, bytes(6)),
    "version 1": (6, struct.pack(">H", 1)),
    "version 3": (6, struct.pack(">H", 3)),
    "header size 4 MiB": (8, struct.pack(">Q", 4 << 20)),
    "header size 32 KiB": (8, struct.pack(">Q", 32768)),
    "header size 0": (8, bytes(8)),
    "header size 2^64-1": (8, b"\xff" * 8),
    "label": (24, b"mine"),
    "end of the label": (71, b"x"),
    "checksum algorithm": (72, b"sha512"),
    "checksum algorithm and more": (72, b"sha256\0x"),
    "no checksum algorithm": (72, bytes(32)),
    "another UUID": (168, UUID.replace("0f", "1f").encode()),
    "UUID in capitals": (168, UUID.upper().encode()),
    "UUID and more": (168 + 36, b"x"),
    "bytes after the UUID": (168 + 38, b"x"),
    "no UUID": (168, bytes(40)),
    "subsystem": (208, b"mine"),
    "offset": (256, struct.pack(">Q", 32768)),
    "padding": (264, b"x"),
    "end of the padding": (447, b"x"),
    "bytes after the checksum": (512, b"x"),
    "end of the binary header": (4095, b"x"),
}


@pytest.mark.parametrize("title", BINARY)
def test_another_binary_header_is_refused(title: str) -> None:
    offset, data = BINARY[title]
    for start in COPIES:
        if GOOD[start + offset : start + offset + len(data)] != data:
            refused(poked(start + offset, data))
    changed = bytearray(GOOD[:HEAD_BYTES])
    for start in COPIES:
        changed[start + offset : start + offset + len(data)] = data
    refused(reseal(changed))


def second_copy_first(header: bytes) -> bytes:
    return reseal(header[16384:32768] + header[:16384])


def first_copy_twice(header: bytes) -> bytes:
    return reseal(header[:16384] * 2)


def luks1(header: bytes) -> bytes:
    first = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return first + header[len(first) :]


SHAPES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda header: header[:-1],
    "one byte more": lambda header: header + b"\0",
    "both headers only": lambda header: header[:32768],
    "twice": lambda header: header * 2,
    "blank": lambda _: bytes(HEADER_BYTES),
    "no first copy": lambda header: bytes(16384) + header[16384:],
    "no second copy": lambda header: header[:16384] + bytes(16384) + header[32768:],
    "copies swapped": second_copy_first,
    "first copy twice": first_copy_twice,
    "LUKS1": luks1,
    "checksum tail": lambda header: header[:480] + b"x" + header[481:],
    "no checksum": lambda header: header[:448] + bytes(64) + header[512:],
}


@pytest.mark.parametrize("title", SHAPES)
def test_another_shape_is_refused(title: str) -> None:
    refused(SHAPES[title](GOOD))


@pytest.mark.parametrize("offset", [HEADER_PARTS_BYTES, HEADER_PARTS_BYTES + 4096, HEADER_BYTES - 1])
def test_a_byte_behind_the_keyslot_is_refused(offset: int) -> None:
    """The broker keeps the parts before it, and a header is made whole from them."""
    changed = bytearray(GOOD)
    changed[HEADER_PARTS_BYTES - 1] = 1
    luks_header.check(changed, Profile.XTS, uuid=UUID)
    changed[offset] = 1
    assert "behind its keyslot" in refused(bytes(changed))


@pytest.mark.parametrize("uuid", ["", UUID.upper(), UUID[:-1], f"{UUID}0", "x" * 50, "\u00e9" * 20])
def test_the_header_of_another_volume_is_refused(uuid: str) -> None:
    with pytest.raises(Tampered, match="UUID"):
        luks_header.check(GOOD, Profile.XTS, uuid=uuid)


@pytest.mark.parametrize("seqids", [(3, 4), (4, 3), (0, 2**64 - 1)])
def test_copies_of_different_age_are_refused(seqids: tuple[int, int]) -> None:
    changed = bytearray(GOOD[:HEAD_BYTES])
    for start, seqid in zip(COPIES, seqids, strict=True):
        struct.pack_into(">Q", changed, start + 16, seqid)
    assert "sequence" in refused(reseal(changed))


# Any byte

flips = st.tuples(st.integers(0, 32767), st.integers(1, 255))
RANDOM_SPANS = [range(begin, begin + 44) for begin in (TEXT.index(at(path).encode()) for path in RANDOM_LEAVES)]


def flipped(offsets: list[int], mask: int) -> bytearray:
    changed = bytearray(GOOD[:HEAD_BYTES])
    for offset in offsets:
        changed[offset] ^= mask
    return changed


@settings(max_examples=200)
@given(flips)
def test_any_flipped_byte_is_refused(flip: tuple[int, int]) -> None:
    refused(b"".join((flipped([flip[0]], flip[1]), REST)))


@settings(max_examples=300)
@given(flips)
def test_a_flipped_byte_under_a_new_checksum_is_refused_outside_of_the_salt(flip: tuple[int, int]) -> None:
    header = reseal(flipped([flip[0]], flip[1]))
    assume(header != GOOD)  # the flip was in the checksum, which is whole again
    if flip[0] % 16384 in SALT_FIELD:
        luks_header.check(header, Profile.XTS, uuid=UUID)
    else:
        refused(header)


@settings(max_examples=500)
@given(st.integers(0, len(TEXT) + 8) | st.integers(0, JSON_BYTES - 1), st.integers(1, 255))
def test_a_byte_flipped_in_both_json_areas_is_refused_outside_of_random_values(offset: int, mask: int) -> None:
    header = reseal(flipped([start + JSON_AT + offset for start in COPIES], mask))
    if not any(offset in span for span in RANDOM_SPANS):
        refused(header)
        return
    try:
        luks_header.check(header, Profile.XTS, uuid=UUID)
    except Tampered:
        return  # no base64 any more


@settings(max_examples=200)
@given(st.binary(max_size=JSON_BYTES) | st.text(max_size=3000).map(lambda text: json.dumps(text).encode()))
def test_any_other_json_area_is_refused(area: bytes) -> None:
    refused(with_area(GOOD, area))
