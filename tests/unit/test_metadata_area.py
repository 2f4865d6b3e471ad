"""Labels, area headers and texts as LVM writes them; whatever is damaged is not understood, and never taken for another."""

import struct
from pathlib import Path

import pytest

from csi.node.lvm import metadata_area, metadata_text
from csi.node.lvm.metadata_area import Area, NotUnderstood, TextPlace

HEAD = (Path(__file__).parents[1] / "data/lvm-2.03.16-disk-head.bin").read_bytes()
"""The first 12 KiB of a disk of 64 MiB on which `vgcreate vg0` and `lvcreate --name a` ran."""
AREA = Area(offset=4096, size=1044480)
HEADER = HEAD[4096:4608]


def text_of(place: TextPlace) -> bytes:
    return b"".join(HEAD[part.offset :][: part.size] for part in place.parts)


def resealed(header: bytes) -> bytes:
    """A header with its checksum made right again."""
    return struct.pack("<I", metadata_area.crc(header[4:])) + header[4:]


def test_a_label_names_the_disk_its_areas_and_whether_a_group_has_it() -> None:
    found = metadata_area.label(HEAD)
    assert found is not None
    assert (found.areas, found.in_use) == ((AREA,), True)
    assert [len(part) for part in found.pv_uuid.split("-")] == [6, 4, 4, 4, 4, 4, 6]


@pytest.mark.parametrize("sector", range(4))
def test_a_label_may_lie_in_any_of_the_first_four_sectors(sector: int) -> None:
    label = bytearray(HEAD[512:1024])
    struct.pack_into("<Q", label, 8, sector)
    struct.pack_into("<I", label, 16, metadata_area.crc(bytes(label[20:])))
    head = bytearray(4096)
    head[sector * 512 : sector * 512 + 512] = label
    assert metadata_area.label(bytes(head)) == metadata_area.label(HEAD)


@pytest.mark.parametrize("head", [bytes(4096), b"\xff" * 4096, bytes(512) + b"LABELTWO" + bytes(4000), b""])
def test_a_disk_without_a_label_has_none(head: bytes) -> None:
    assert metadata_area.label(head) is None


@pytest.mark.parametrize("at", [*range(512 + 8, 512 + 64), 1023])
def test_a_label_with_one_changed_byte_is_not_understood(at: int) -> None:
    changed = bytearray(HEAD)
    changed[at] ^= 1
    with pytest.raises(NotUnderstood):
        metadata_area.label(bytes(changed))


def test_a_label_whose_lists_have_no_end_is_not_understood() -> None:
    sector = bytearray(HEAD[512:1024])
    sector[72:] = b"\x01" * (512 - 72)
    struct.pack_into("<I", sector, 16, metadata_area.crc(bytes(sector[20:])))
    with pytest.raises(NotUnderstood, match="label is damaged"):
        metadata_area.label(bytes(512) + bytes(sector) + bytes(1024))


def test_two_labels_on_one_disk_are_not_understood() -> None:
    with pytest.raises(NotUnderstood, match="two LVM labels"):
        metadata_area.label(HEAD[:1024] + HEAD[512:1024] + bytes(512))


def test_a_header_leads_to_a_text_that_is_proved_by_its_sum() -> None:
    place = metadata_area.text_place(AREA, HEADER)
    assert place is not None
    text = metadata_area.require_whole(place, text_of(place))
    assert text.startswith(b"vg0 {\n")
    assert not text.endswith(b"\0")
    with pytest.raises(NotUnderstood, match="not the one that its header names"):
        metadata_area.require_whole(place, text_of(place).replace(b"seqno = 2", b"seqno = 3"))
    with pytest.raises(NotUnderstood):
        metadata_area.require_whole(place, text_of(place)[:-1])


@pytest.mark.parametrize("at", [*range(48), 100, 511])
def test_a_header_with_one_changed_byte_is_not_understood(at: int) -> None:
    changed = bytearray(HEADER)
    changed[at] ^= 1
    with pytest.raises(NotUnderstood):
        metadata_area.text_place(AREA, bytes(changed))


@pytest.mark.parametrize("size", [0, 7, 100, 511])
def test_a_header_that_the_disk_is_too_short_for_is_not_understood(size: int) -> None:
    with pytest.raises(NotUnderstood, match="behind the end of its disk"):
        metadata_area.text_place(AREA, HEADER[:size])


def test_a_header_that_was_copied_to_another_place_is_not_understood() -> None:
    with pytest.raises(NotUnderstood, match="belongs to another area"):
        metadata_area.text_place(Area(offset=8192, size=AREA.size), HEADER)


def with_location(offset: int, size: int, flags: int = 0) -> bytes:
    changed = bytearray(HEADER)
    struct.pack_into("<QQII", changed, 40, offset, size, 0, flags)
    return resealed(bytes(changed))


def test_a_text_that_goes_over_the_end_goes_on_behind_the_header() -> None:
    place = metadata_area.text_place(AREA, with_location(AREA.size - 512, 2048))
    assert place is not None
    assert place.parts == (Area(offset=4096 + AREA.size - 512, size=512), Area(offset=4096 + 512, size=1536))


@pytest.mark.parametrize("header", [with_location(0, 0), with_location(512, 100, flags=1), with_location(512, 0)])
def test_an_area_without_a_text_or_that_is_ignored_has_none(header: bytes) -> None:
    assert metadata_area.text_place(AREA, header) is None


@pytest.mark.parametrize(
    "location", [(1, 100), (511, 100), (AREA.size, 1), (1 << 60, 1), (512, AREA.size), (512, 1 << 63)]
)
def test_a_header_that_leads_out_of_its_area_is_not_understood(location: tuple[int, int]) -> None:
    with pytest.raises(NotUnderstood, match="outside"):
        metadata_area.text_place(AREA, with_location(*location))


# The text

WRITTEN: list[tuple[str, dict[str, object]]] = [
    ("", {}),
    ("a = 1\n", {"a": 1}),
    ("a = -1 # why\n", {"a": -1}),
    ('a = "x"\tb = []\n', {"a": "x", "b": []}),
    ('a = ["x", 0, "y", 7]', {"a": ["x", 0, "y", 7]}),
    ('a = ["x"\n,\n"y"]', {"a": ["x", "y"]}),
    (r'a = "say \"no\" \\ # { }"', {"a": 'say "no" \\ # { }'}),
    ("vg-1.x_+ {\nb { c = 2 }\n}\n", {"vg-1.x_+": {"b": {"c": 2}}}),
    ("0 {}", {"0": {}}),
]
"""What LVM's writer makes, and what it means."""


@pytest.mark.parametrize(("text", "meaning"), WRITTEN)
def test_what_lvm_writes_is_read(text: str, meaning: dict[str, object]) -> None:
    assert metadata_text.parse(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        'a = "', "a = [1", "a {", "}", "a = 1 a = 2", "a {} a {}", "a = $", "$ = 1", "a = [1 2]", '"a" = 1',
        "a = ", "a", "a = [,]", "a = 1 }", "ä = 1", "a = \x00", "a = 1.5", "a = " + "9" * 5000,
        "a {" * 10_000, "a = [[1]]", "= 1", "a =", 'a = "x\\"',
    ],
)  # fmt: skip
def test_what_lvm_would_not_write_is_not_understood(text: str) -> None:
    with pytest.raises(NotUnderstood):
        metadata_text.parse(text)


def test_every_cut_of_a_real_text_is_read_whole_or_not_at_all() -> None:
    place = metadata_area.text_place(AREA, HEADER)
    assert place is not None
    text = metadata_area.require_whole(place, text_of(place)).decode()
    inside = text.index("{"), text.rindex("}")
    for end in range(*inside, 7):
        with pytest.raises(NotUnderstood):
            metadata_text.parse(text[:end])


GROUP = """vg0 {
id = "x"

volumes {

a {
tags = ["one"]

segment1 {
n = 1
}

segment2 {
n = 2
}
}

b-2 {
m = 3
}
}

}
# end
contents = "x }"
"""


def test_a_text_that_was_cut_means_what_the_whole_does() -> None:
    frame, cut = metadata_text.cut(GROUP.encode(), "volumes")
    parts = list(cut)
    whole, left = metadata_text.parse(GROUP), metadata_text.parse(frame)
    assert len(parts) == 2
    group, rest = whole["vg0"], left["vg0"]
    assert isinstance(group, dict)
    assert isinstance(rest, dict)
    assert rest["volumes"] == {}
    joined: dict[str, object] = {}
    for part in parts:
        joined |= metadata_text.parse(part)
    assert joined == group["volumes"]
    assert group | {"volumes": {}} == rest
    assert left.keys() == whole.keys()


@pytest.mark.parametrize("text", ["", "vg0 {\nid = 1\n}\n", "vg0 {\nvolumes {\n}\n}\n"])
def test_where_there_is_nothing_to_cut_nothing_is_lost(text: str) -> None:
    frame, parts = metadata_text.cut(text.encode(), "volumes")
    assert (frame, list(parts)) == (text, [])


def test_a_text_that_is_no_text_is_not_understood() -> None:
    with pytest.raises(NotUnderstood):
        metadata_text.cut(b'a = "\xff"', "volumes")


def test_nothing_that_means_anything_goes_over_the_end_of_a_line() -> None:
    for text in ('a = "one\n}\n"', 'a = "one\\\n}"'):
        with pytest.raises(NotUnderstood):
            metadata_text.parse(text)
