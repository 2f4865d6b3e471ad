"""The tags of an LV say what the volume is, survive LVM's rules for tags, and are never guessed at."""

import base64
import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.filesystem import Filesystem
from csi.core.sealed import Profile
from csi.node import parameters
from csi.node.content import Content, HoldsFilesystem, Raw, Sealed
from csi.node.lvm import names as volume_names
from csi.node.lvm import tags as volume_tags
from csi.node.lvm.model import LogicalVolume, Report, VolumeGroup
from csi.node.lvm.tags import Unreadable
from csi.node.volume import Parameters, Purpose, State, Volume, Wanted, Wipe

# lvm(8), "TAGS".
TAG = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.\-/=!:&#]{0,1023}")

WANTED = Wanted(
    name="pvc-1",
    volume_id="pvc-1",
    name_digest=volume_names.name_digest("pvc-1"),
    size_bytes=1 << 30,
    limit_bytes=None,
    parameters=dataclasses.replace(
        parameters.parse({"sealed": "xts", "wipe": "zero"}), mkfs_options=("-m", "0", "-E", "lazy_itable_init=0")
    ),
)
TAGS = volume_tags.encode(WANTED, clock=lambda: 1_700_000_000.9)


def lv(tags: tuple[str, ...] | frozenset[str], name: str = "pvc-1") -> LogicalVolume:
    return LogicalVolume(
        name=name,
        vg="vg0",
        size_bytes=1 << 30,
        tags=frozenset(tags),
        partial=False,
    )


def with_tag(key: str, value: str) -> frozenset[str]:
    """The volume's tags with one of them replaced."""
    kept = without_tag(key)
    assert len(kept) == len(TAGS) - 1
    return kept | {f"sl:{key}={value}"}


def without_tag(key: str) -> frozenset[str]:
    return frozenset(tag for tag in TAGS if not tag.startswith(f"sl:{key}="))


def test_a_new_volume_carries_these_tags() -> None:
    assert set(TAGS) == {
        "sl:v1",
        f"sl:name={WANTED.name_digest}",
        "sl:state=creating",
        "sl:size=1073741824",
        f"sl:params={WANTED.parameters.digest}",
        "sl:kind=volume",
        "sl:cap=ext4",
        "sl:sealed=xts",
        "sl:wipe=zero",
        "sl:created=1700000000",
        "sl:direct=true",
        "sl:mkfs=" + base64.urlsafe_b64encode(b'["-m", "0", "-E", "lazy_itable_init=0"]').decode(),
    }


def test_what_was_wanted_is_read_back() -> None:
    made = lv(TAGS)
    assert volume_tags.decode(made) == Volume(
        lv=made,
        name_digest=WANTED.name_digest,
        state=State.CREATING,
        size_bytes=1 << 30,
        params_digest=WANTED.parameters.digest,
        profile=Profile.XTS,
        direct=True,
        wipe=Wipe.ZERO,
        holds=None,
        fstype=None,
        mkfs_options=("-m", "0", "-E", "lazy_itable_init=0"),
        purpose=Purpose(Filesystem.EXT4),
    )


@given(
    name=st.text(max_size=128),
    size=st.integers(0, 1 << 60),
    asked=st.builds(
        Parameters,
        direct=st.booleans(),
        secure_mount=st.booleans(),
        profile=st.sampled_from(Profile),
        wipe=st.sampled_from(Wipe),
        fstype=st.sampled_from([None, *Filesystem]),
        mkfs_options=st.lists(st.text(max_size=12), max_size=8).map(tuple),
        digest=st.text("0123456789abcdef", min_size=32, max_size=32),
    ),
    purpose=st.builds(Purpose, st.sampled_from([None, *Filesystem])),
)
def test_every_volume_is_read_back_as_it_was_wanted(name: str, size: int, asked: Parameters, purpose: Purpose) -> None:
    digest = volume_names.name_digest(name)
    wanted = dataclasses.replace(WANTED, name_digest=digest, size_bytes=size, parameters=asked, purpose=purpose)
    tags = volume_tags.encode(wanted)
    assert [tag for tag in tags if TAG.fullmatch(tag) is None] == []
    assert volume_tags.decode(lv(tags)) == Volume(
        lv=lv(tags),
        name_digest=digest,
        state=State.CREATING,
        size_bytes=size,
        params_digest=asked.digest,
        profile=asked.profile,
        direct=asked.direct,
        secure_mount=asked.secure_mount,
        wipe=asked.wipe,
        holds=None,
        fstype=asked.fstype,
        mkfs_options=asked.mkfs_options,
        purpose=purpose,
    )


def test_the_longest_mkfs_options_that_a_class_may_give_fit_one_tag() -> None:
    options = parameters.parse({"mkfsOptions": f"-L {'a' * 254}"}).mkfs_options
    assert sum(map(len, options)) == 256
    tags = volume_tags.encode(dataclasses.replace(WANTED, parameters=Parameters(mkfs_options=options)))
    assert [tag for tag in tags if TAG.fullmatch(tag) is None] == []


@pytest.mark.parametrize("state", [State.READY, State.DELETING])
@pytest.mark.parametrize(
    ("held", "text"),
    [
        (HoldsFilesystem(Filesystem.EXT4), "ext4"),
        (HoldsFilesystem(Filesystem.XFS), "xfs"),
        (Raw(), "block"),
        (Sealed(Profile.XTS), "sealed"),
    ],
)
def test_state_and_content_are_tags_of_their_own(state: State, held: Content, text: str) -> None:
    profile = Profile.XTS if isinstance(held, Sealed) else Profile.NONE
    kept = frozenset(tag for tag in with_tag("sealed", profile) if not tag.startswith("sl:state="))
    tags = kept | {volume_tags.state_tag(state), volume_tags.formatted_tag(held)}
    assert f"sl:formatted={text}" in tags
    assert all(TAG.fullmatch(tag) for tag in tags)
    read = volume_tags.decode(lv(tags))
    assert isinstance(read, Volume)
    assert (read.state, read.holds) == (state, held)


def unreadable(tags: frozenset[str]) -> str:
    """Why an LV of ours with these tags can't be read."""
    found = volume_tags.decode(lv(tags))
    assert isinstance(found, Unreadable)
    assert found.lv == lv(tags)
    return found.why


@pytest.mark.parametrize("named", [None, *Filesystem])
def test_the_filesystem_of_the_class_is_a_tag(named: Filesystem | None) -> None:
    tags = volume_tags.encode(dataclasses.replace(WANTED, parameters=parameters.parse({"fsType": named or ""})))
    assert [tag for tag in tags if tag.startswith("sl:fs=")] == ([f"sl:fs={named}"] if named else [])


def test_a_filesystem_that_this_version_does_not_know_is_never_guessed() -> None:
    assert unreadable(frozenset(TAGS) | {"sl:fs=btrfs"})


@pytest.mark.parametrize(
    ("profile", "text"), [("xts", "ext4"), ("xts", "block"), ("none", "sealed"), ("none", "btrfs")]
)
def test_a_content_that_contradicts_the_profile_is_never_guessed(profile: str, text: str) -> None:
    assert unreadable(with_tag("sealed", profile) | {f"sl:formatted={text}"})


@pytest.mark.parametrize(
    "tags",
    [
        frozenset[str](),
        frozenset({"owner=storage"}),
        frozenset(TAGS) - {volume_tags.OURS},
        (frozenset(TAGS) - {volume_tags.OURS}) | {"sl:v2"},
    ],
    ids=["none", "foreign", "no mark", "another version"],
)
def test_an_lv_of_another_program_or_version_is_no_volume(tags: frozenset[str]) -> None:
    assert volume_tags.decode(lv(tags)) is None


@pytest.mark.parametrize("extra", ["owner=storage", "sl:later=1", "sl:flag", "sl:", "a=b=c", "slate=ready"])
def test_tags_that_this_version_does_not_know_are_ignored(extra: str) -> None:
    plain = volume_tags.decode(lv(TAGS))
    marked = volume_tags.decode(lv((*TAGS, extra)))
    assert isinstance(plain, Volume)
    assert marked == dataclasses.replace(plain, lv=lv((*TAGS, extra)))


@pytest.mark.parametrize("key", ["name", "state", "size", "params", "kind"])
def test_a_volume_without_a_tag_that_it_needs_is_not_guessed(key: str) -> None:
    assert f"sl:{key}" in unreadable(without_tag(key))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "snapshot"),
        ("state", ""),
        ("state", "READY"),
        ("state", "staged"),
        ("size", ""),
        ("size", "1Gi"),
        ("size", "1.5"),
        ("sealed", "xts-hmac"),
        ("sealed", ""),
        ("wipe", "later"),
        ("mkfs", "A"),
        ("mkfs", base64.urlsafe_b64encode(b"[no json").decode()),
        ("mkfs", base64.urlsafe_b64encode(b'["\xff"]').decode()),
        *(
            ("mkfs", base64.urlsafe_b64encode(json).decode())
            for json in (b"5", b"null", b'"-m"', b'{"-m": 1}', b"[1]", b"[[]]")
        ),
        pytest.param("mkfs", base64.urlsafe_b64encode(b"[" * 20_000).decode(), id="deep"),
        ("size", "-1"),
        ("size", " 1"),
        ("size", "1_0"),
        ("size", "\u0661"),
        ("size", "9" * 5000),
    ],
)
def test_a_tag_of_ours_that_can_not_be_read_is_not_guessed(key: str, value: str) -> None:
    assert unreadable(with_tag(key, value))


def test_tags_that_an_older_driver_may_leave_out_have_the_safe_meaning() -> None:
    needed = {"name", "state", "size", "params", "kind"}
    tags = {tag for tag in TAGS if tag == volume_tags.OURS or tag[3:].split("=")[0] in needed}
    read = volume_tags.decode(lv(frozenset(tags)))
    assert isinstance(read, Volume)
    assert (read.profile, read.wipe, read.direct) == (Profile.NONE, Wipe.AUTO, False)
    assert (read.holds, read.mkfs_options) == (None, ())


def test_the_volumes_of_a_node_are_those_of_all_groups_and_none_of_the_foreign_lvs() -> None:
    groups = tuple(
        VolumeGroup(
            name=name,
            extent_bytes=4 << 20,
            extents=100,
            free_extents=0,
            writable=True,
            exported=False,
            partial=False,
            pvs=(),
            lvs=lvs,
        )
        for name, lvs in (("a", (lv(TAGS, "one"), lv((), "root"))), ("b", (lv(TAGS, "two"),)))
    )
    assert [volume.volume_id for volume in volume_tags.volumes(Report(vgs=groups))] == ["one", "two"]


def test_what_is_ours_and_can_not_be_read_is_told_apart_from_what_is_not_ours() -> None:
    vg = VolumeGroup(
        name="a",
        extent_bytes=4 << 20,
        extents=100,
        free_extents=0,
        writable=True,
        exported=False,
        partial=False,
        pvs=(),
        lvs=(lv(TAGS, "one"), lv((), "root"), lv(with_tag("state", "odd"), "odd")),
    )
    report = Report(vgs=(vg,))
    read = {one.name: volume_tags.decode(one) for one in report.lvs}
    assert [name for name, found in read.items() if isinstance(found, volume_tags.Unreadable)] == ["odd"]
    assert read["root"] is None
    assert [volume.volume_id for volume in volume_tags.volumes(report)] == ["one"]
