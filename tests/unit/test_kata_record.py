"""Kata's record: one directory name a path, and content that the Go and the Rust runtime both take."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput
from csi.node.kata import record as kata_record
from csi.node.kata.record import PATH_LIMIT_BYTES, PROFILE_KEY, VOLUME_ID_KEY, Record

TARGET = "/var/lib/kubelet/pods/8f5d5d0e/volumes/kubernetes.io~csi/pvc-1/mount"
RECORD = Record(
    device="/dev/vg0/pvc-1",
    fstype="ext4",
    options=("noatime", "ro"),
    metadata={VOLUME_ID_KEY: "pvc-1", PROFILE_KEY: "xts"},
)
TEXT = st.text(max_size=40)


def test_the_directory_is_the_path_in_url_safe_base64_with_padding() -> None:
    assert kata_record.directory_name("/a?>") == "L2E_Pg=="
    assert kata_record.directory_name(TARGET) == base64.urlsafe_b64encode(TARGET.encode()).decode()


def test_a_path_of_189_bytes_is_the_longest_that_fits_a_file_name() -> None:
    assert len(kata_record.directory_name("/" * 189)) == 252
    assert len(base64.urlsafe_b64encode(b"/" * 190)) > 255
    with pytest.raises(InvalidInput, match="is 190 bytes long; Kata can look up at most 189") as caught:
        kata_record.directory_name("/" * 190)
    assert caught.value.field == "target_path"


def test_the_limit_counts_bytes_and_not_characters() -> None:
    kata_record.directory_name("/" + "ä" * 94)
    with pytest.raises(InvalidInput, match="191 bytes"):
        kata_record.directory_name("/" + "ä" * 95)


def test_an_empty_path_is_refused_because_its_directory_would_be_the_whole_registry() -> None:
    with pytest.raises(InvalidInput, match="required") as caught:
        kata_record.directory_name("")
    assert caught.value.field == "target_path"


@given(st.text(min_size=1).filter(lambda path: len(path.encode()) <= PATH_LIMIT_BYTES))
def test_every_path_becomes_one_component_and_is_read_back(path: str) -> None:
    name = kata_record.directory_name(path)
    assert "/" not in name
    assert "\0" not in name
    assert name not in (".", "..")
    assert 0 < len(name) <= 255
    assert kata_record.target_path(name) == path


COPY = kata_record.directory_name(TARGET)


@pytest.mark.parametrize("name", ["a", "abcde", "_w==", f"{COPY}~", f"{COPY}.bak", f".{COPY}", COPY + "=="])
def test_a_directory_that_stands_for_no_path_is_not_guessed(name: str) -> None:
    assert kata_record.target_path(name) is None


def test_the_file_has_exactly_the_members_that_kata_reads() -> None:
    assert json.loads(kata_record.encode(RECORD)) == {
        "volume-type": "directvol",
        "device": "/dev/vg0/pvc-1",
        "fstype": "ext4",
        "metadata": {"sealed-local.csi/volume-id": "pvc-1", "sealed-local.csi/profile": "xts"},
        "options": ["noatime", "ro"],
    }


def test_empty_members_are_left_out_and_never_null() -> None:
    assert json.loads(kata_record.encode(Record(device="/dev/vg0/a", fstype="xfs"))) == {
        "volume-type": "directvol",
        "device": "/dev/vg0/a",
        "fstype": "xfs",
    }


def test_equal_records_are_equal_bytes() -> None:
    turned = Record(
        device=RECORD.device,
        fstype=RECORD.fstype,
        options=RECORD.options,
        metadata=dict(reversed(RECORD.metadata.items())),
    )
    assert list(turned.metadata) != list(RECORD.metadata)
    assert kata_record.encode(turned) == kata_record.encode(RECORD)


@given(
    st.builds(
        Record,
        device=TEXT,
        fstype=TEXT,
        options=st.lists(TEXT, max_size=4).map(tuple),
        metadata=st.dictionaries(TEXT, TEXT, max_size=4),
    )
)
def test_every_record_is_read_back_and_holds_only_strings(record: Record) -> None:
    content = kata_record.encode(record)
    assert kata_record.decode(content) == record
    raw = json.loads(content)
    assert all(isinstance(value, str) for value in raw.get("metadata", {}).values())
    assert None not in raw.values()


def test_a_record_names_the_volume_that_it_is_for() -> None:
    assert RECORD.volume_id == "pvc-1"
    assert Record(device="/dev/sdb", fstype="ext4").volume_id is None


def test_members_that_other_programs_add_are_ignored() -> None:
    content = b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": "ext4", "later": [1]}'
    assert kata_record.decode(content) == Record(device="/dev/sdb", fstype="ext4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"{}",
        b'{"volume-type": "directvol", "device": "/dev/sdb"}',
        b'{"device": "/dev/sdb", "fstype": "ext4"}',
        b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": null}',
        b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": "ext4", "options": null}',
        b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": "ext4", "metadata": null}',
        b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": "ext4", "metadata": {"fsGroup": 1}}',
        b'{"volume-type": "directvol", "device": "/dev/sdb", "fstype": "ext4"',
    ],
)
def test_a_record_that_a_runtime_would_refuse_is_none(content: bytes) -> None:
    assert kata_record.decode(content) is None


@pytest.mark.parametrize(
    "flag",
    [
        "rw",
        "bind",
        "rbind",
        "_netdev",
        "nofail",
        "auto",
        "noauto",
        "user",
        "users",
        "loop",
        "x-systemd.automount",
        'context="system_u:object_r:container_file_t:s0"',
        "rootcontext=a",
        "comment=a",
    ],
)
def test_a_flag_that_only_a_host_understands_is_not_handed_to_the_guest(flag: str) -> None:
    assert kata_record.guest_options(["noatime", flag, "nodev"], read_only=False) == ("noatime", "nodev")


@pytest.mark.parametrize(
    ("flags", "read_only", "expected"),
    [
        ([], False, ()),
        ([], True, ("ro",)),
        (["ro"], True, ("ro",)),
        (["ro"], False, ("ro",)),
        (["rw"], True, ("ro",)),
        (["noatime", "discard"], True, ("noatime", "discard", "ro")),
    ],
)
def test_read_only_is_said_once_to_the_guest(flags: list[str], read_only: bool, expected: tuple[str, ...]) -> None:
    assert kata_record.guest_options(flags, read_only=read_only) == expected


def test_a_record_that_is_nested_without_end_is_no_record() -> None:
    assert kata_record.decode(b'{"x": ' + b"[" * 200_000) is None
