"""Stage, publish and their reverse as pure plans: nothing to do is an empty plan, doubt is a refusal that says why."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.device_number import DeviceNumber
from csi.core.errors import AlreadyExists, InUse, Refused
from csi.core.filesystem import Filesystem
from csi.core.mount import Mount
from csi.core.sealed import PAYLOAD_OFFSET, Profile
from csi.node import content
from csi.node.content import Raw
from csi.node.kata.record import Record
from csi.node.lvm.live_device import LiveDevice
from csi.node.lvm.model import LogicalVolume
from csi.node.plan import publish, stage, steps
from csi.node.plan.node_view import TOMBSTONE_SOURCE, PathKind, PathView, Publications
from csi.node.volume import Access, Capability, State, Volume, Wipe

MIB = 1 << 20
SIZE = 400 * MIB
DEVICE, NUMBER, FOREIGN = "/dev/vg0/pvc-1", DeviceNumber(254, 1), DeviceNumber(254, 9)
STAGING, TARGET, OTHER = "/k/staging", "/k/pods/1/mount", "/k/pods/2/mount"


def held(text: str | None) -> content.Content | None:
    """What a volume's tag says, by the word that stands there."""
    if text is None:
        return None
    return content.read(text, Profile.XTS if text == "sealed" else Profile.NONE)


def volume(
    formatted: str | None = "ext4",
    *,
    state: State = State.READY,
    active: bool = True,
    **fields: Any,
) -> Volume:
    """A staged, plain ext4 volume, but for what is named. Fields of the LV begin with `lv_`."""
    lv = LogicalVolume(
        name="pvc-1",
        vg="vg0",
        size_bytes=fields.pop("lv_size", SIZE),
        tags=frozenset(),
        partial=fields.pop("lv_partial", False),
    )
    live = LiveDevice(
        number=NUMBER,
        open_count=fields.pop("open_count", 0),
        loops=fields.pop("loops", 0),
        read_only=fields.pop("device_read_only", False),
        mounted=fields.pop("mounted", False),
        on_top=fields.pop("on_top", ()),
        stale=fields.pop("stale", False),
    )
    plain = Volume(
        lv=lv,
        name_digest="",
        state=state,
        size_bytes=SIZE,
        params_digest="",
        profile=Profile.NONE,
        direct=False,
        wipe=Wipe.AUTO,
        holds=held(formatted),
        fstype=None,
        mkfs_options=(),
        live=live if active else None,
    )
    return dataclasses.replace(plain, **fields)


def new(**fields: Any) -> Volume:
    """A volume that nobody ever had."""
    return volume(None, state=State.CREATING, active=False, **fields)


def asked(
    fstype: str = "", *, block: bool = False, access: Access = Access.SINGLE_NODE_WRITER, flags: tuple[str, ...] = ()
) -> Capability:
    return Capability(block=block, access=access, fstype=Filesystem(fstype) if fstype else None, mount_flags=flags)


def mount(
    target: str,
    *,
    device: DeviceNumber = NUMBER,
    fstype: str = "ext4",
    source: str = DEVICE,
    read_only: bool = False,
) -> Mount:
    return Mount(
        target=target,
        root="/",
        device=device,
        fstype=fstype,
        source=source,
        options=frozenset({"ro" if read_only else "rw"}),
        super_options=frozenset(),
    )


def path(value: str, *mounts: Mount, kind: PathKind | None = None, **fields: Any) -> PathView:
    kind = kind or (PathKind.DIRECTORY if mounts else PathKind.ABSENT)
    return PathView(path=value, kind=kind, mounts=mounts, **fields)


FREE_STAGING = path(STAGING)
STAGED = path(STAGING, mount(STAGING))
SEALED = {"profile": Profile.XTS, "direct": True}
DIRECT = {"direct": True}
BLOCK = asked(block=True)
MOUNT = asked()

ACTIVATE = steps.Activate(vg="vg0", name="pvc-1")


def zero(offset: int, length: int) -> steps.ZeroRange:
    return steps.ZeroRange(device=DEVICE, offset=offset, length=length)


EDGES = (zero(0, MIB), zero(SIZE - MIB, MIB))
ALL = steps.ClearRange(device=DEVICE, offset=0, length=SIZE)


def ready(what: str) -> steps.ChangeTags:
    add = ("sl:state=ready", f"sl:formatted={what}")
    return steps.ChangeTags(vg="vg0", name="pvc-1", remove=("sl:state=creating",), add=add)


def make(fstype: str, *options: str) -> steps.MakeFilesystem:
    return steps.MakeFilesystem(device=DEVICE, fstype=fstype, options=options)


def seen(fstype: str) -> steps.RequireFilesystem:
    return steps.RequireFilesystem(device=DEVICE, fstype=fstype)


def mounted(fstype: str, *options: str) -> steps.MountFilesystem:
    return steps.MountFilesystem(device=DEVICE, target=STAGING, fstype=fstype, options=options)


def staged(there: Volume, capability: Capability, staging: PathView, *, node_is_right: bool = True) -> steps.Plan:
    """The plan of NodeStageVolume on a node whose /dev is in order, unless told; what is noted of it has its own test."""
    plan = stage.stage(there, capability, staging, node_is_right=node_is_right)
    return tuple(step for step in plan if not isinstance(step, steps.MarkStaged))


# The first stage


@pytest.mark.parametrize(
    ("asked_for", "of_class", "made"),
    [("", None, "ext4"), ("ext4", None, "ext4"), ("xfs", Filesystem.EXT4, "xfs"), ("", Filesystem.XFS, "xfs")],
)
def test_the_filesystem_of_the_request_wins_over_the_class(
    asked_for: str, of_class: Filesystem | None, made: str
) -> None:
    plan = staged(new(fstype=of_class), asked(asked_for), FREE_STAGING)
    assert make(made) in plan
    assert mounted(made) in plan
    sealed = volume("sealed", fstype=of_class, **SEALED)
    assert publish.direct_record(sealed, asked(asked_for), read_only=False).fstype == made


@pytest.mark.parametrize(("fstype", "made"), [("", "ext4"), ("ext4", "ext4"), ("xfs", "xfs")])
def test_a_new_volume_is_formatted_and_said_to_be_before_it_is_mounted(fstype: str, made: str) -> None:
    plan = staged(new(mkfs_options=("-m", "0")), asked(fstype, flags=("noatime",)), FREE_STAGING)
    there = seen(made)
    assert plan == (ACTIVATE, *EDGES, make(made, "-m", "0"), there, ready(made), mounted(made, "noatime"))


def test_a_new_block_volume_shows_nothing_of_what_its_extents_held() -> None:
    assert staged(new(), BLOCK, FREE_STAGING) == (ACTIVATE, ALL, ready("block"))


def test_a_new_block_volume_of_a_class_that_wipes_nothing_is_cleared_of_old_signatures_only() -> None:
    assert staged(new(wipe=Wipe.NONE), BLOCK, FREE_STAGING) == (ACTIVATE, *EDGES, ready("block"))


def test_a_new_direct_volume_is_cleared_for_its_guest_formatted_and_not_mounted_on_the_node() -> None:
    assert staged(new(**DIRECT), MOUNT, FREE_STAGING) == (ACTIVATE, ALL, make("ext4"), seen("ext4"), ready("ext4"))


@pytest.mark.parametrize("capability", [MOUNT, asked("xfs"), BLOCK])
def test_a_new_sealed_volume_is_cleared_and_left_to_the_guest(capability: Capability) -> None:
    assert staged(new(**SEALED), capability, FREE_STAGING) == (ACTIVATE, ALL, ready("sealed"))


def test_a_new_sealed_volume_of_a_class_that_wipes_nothing_has_its_head_cleared() -> None:
    plan = staged(new(wipe=Wipe.NONE, **SEALED), BLOCK, FREE_STAGING)
    assert plan == (ACTIVATE, zero(0, PAYLOAD_OFFSET), EDGES[1], ready("sealed"))


@pytest.mark.parametrize(
    ("size", "cleared"),
    [
        (MIB, [(0, MIB)]),
        (MIB // 2, [(0, MIB // 2)]),
        (MIB + 4096, [(0, MIB), (MIB, 4096)]),
        (2 * MIB, [(0, MIB), (MIB, MIB)]),
    ],
)
def test_a_small_volume_is_cleared_within_its_bounds(size: int, cleared: list[tuple[int, int]]) -> None:
    plan = staged(new(lv_size=size, wipe=Wipe.NONE), BLOCK, FREE_STAGING)
    assert [(step.offset, step.length) for step in plan if isinstance(step, steps.ZeroRange)] == cleared


def test_a_first_stage_that_was_killed_after_activation_goes_on() -> None:
    half = volume(None, state=State.CREATING)
    assert staged(half, MOUNT, FREE_STAGING) == (*EDGES, make("ext4"), seen("ext4"), ready("ext4"), mounted("ext4"))


# Every later stage


LOOKED = tuple(kind(device=DEVICE, fstype="ext4") for kind in (steps.RequireFilesystem, steps.CheckFilesystem))


def test_a_formatted_volume_is_looked_at_and_mounted() -> None:
    plan = staged(volume(active=False), MOUNT, FREE_STAGING)
    assert plan == (ACTIVATE, *LOOKED, mounted("ext4"))


def test_an_active_volume_is_not_activated_again() -> None:
    assert staged(volume(), MOUNT, FREE_STAGING) == (*LOOKED, mounted("ext4"))


@pytest.mark.parametrize(
    ("there", "capability"),
    [(volume("block"), BLOCK), (volume(**DIRECT), MOUNT), (volume("sealed", **SEALED), MOUNT)],
    ids=["block", "direct", "sealed"],
)
def test_an_active_volume_that_the_node_does_not_mount_needs_nothing(there: Volume, capability: Capability) -> None:
    assert staged(there, capability, FREE_STAGING) == ()


@pytest.mark.parametrize("there", [volume("block"), volume(**DIRECT), volume("sealed", **SEALED), volume()])
def test_a_volume_of_guests_is_noted_as_staged_before_anything_is_done(there: Volume) -> None:
    capability = BLOCK if there.holds == Raw() else MOUNT
    noted = steps.MarkStaged(volume_id=there.volume_id, path=STAGING)
    plan = stage.stage(there, capability, FREE_STAGING, node_is_right=False)
    assert plan[0] == noted if capability.block or there.direct else noted not in plan


@pytest.mark.parametrize("there", [volume("block"), volume(**DIRECT), volume("sealed", **SEALED), volume()])
def test_a_volume_whose_path_leads_elsewhere_is_activated_again_to_set_it_right(there: Volume) -> None:
    capability = BLOCK if there.holds == Raw() else MOUNT
    assert staged(there, capability, FREE_STAGING, node_is_right=False)[0] == ACTIVATE


def test_a_half_made_volume_whose_path_leads_elsewhere_is_not_cleared_before_it_is_set_right() -> None:
    half = volume(None, state=State.CREATING)
    assert staged(half, MOUNT, FREE_STAGING, node_is_right=False)[:2] == (ACTIVATE, EDGES[0])


@pytest.mark.parametrize("capability", [MOUNT, asked("ext4"), asked(flags=("noatime",))])
def test_a_staged_volume_needs_nothing(capability: Capability) -> None:
    assert staged(volume(), capability, STAGED) == ()


def test_what_is_mounted_in_another_namespace_is_mounted_again_and_not_checked() -> None:
    plan = staged(volume(open_count=1, mounted=True), MOUNT, FREE_STAGING)
    assert plan == (LOOKED[0], mounted("ext4"))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (volume(open_count=1, on_top=("tenant-crypt",)), "in use by tenant-crypt"),
        (volume(None, state=State.CREATING, open_count=1, on_top=("tenant-crypt",)), "in use by tenant-crypt"),
        (volume(None, state=State.CREATING, open_count=1, mounted=True), "in use by a mount"),
        (
            volume(open_count=1, stale=True),
            "in use by a process or virtual machine on this node; its device is on a disk",
        ),
        (volume("sealed", open_count=1, stale=True, **SEALED), "has come back under another number"),
    ],
    ids=["mapping", "mapping on a new one", "mounted new one", "stale", "stale sealed"],
)
def test_a_device_that_something_else_has_is_in_use_and_nothing_is_done(there: Volume, words: str) -> None:
    with pytest.raises(InUse, match=words):
        staged(there, MOUNT, FREE_STAGING, node_is_right=not there.live.stale if there.live else False)


@pytest.mark.parametrize(
    "there", [volume(stale=True), volume("sealed", stale=True, **SEALED), volume(stale=True, **DIRECT)]
)
def test_a_device_on_a_disk_that_came_back_under_another_number_is_made_anew(there: Volume) -> None:
    plan = staged(there, MOUNT, FREE_STAGING, node_is_right=False)
    assert plan[:2] == (steps.ReleaseDevice(vg="vg0", name="pvc-1"), ACTIVATE)


def test_a_mount_of_a_disk_that_has_gone_is_not_called_staged() -> None:
    with pytest.raises(Refused, match="a mount of a disk that has gone"):
        staged(volume(stale=True, open_count=1, mounted=True), MOUNT, STAGED, node_is_right=False)


def test_a_path_behind_a_link_is_mounted_where_it_leads() -> None:
    linked = path(STAGING, leads_to="/data/staging")
    assert staged(volume(), MOUNT, linked)[-1] == dataclasses.replace(mounted("ext4"), target="/data/staging")


def test_a_request_that_names_no_filesystem_takes_the_one_that_is_there() -> None:
    plan = staged(volume("xfs"), MOUNT, FREE_STAGING)
    assert plan[-1] == mounted("xfs")


def test_a_read_only_access_mode_mounts_read_only() -> None:
    read = asked(access=Access.SINGLE_NODE_READER_ONLY, flags=("noatime",))
    assert staged(volume(), read, FREE_STAGING)[-1] == mounted("ext4", "noatime", "ro")
    assert staged(volume(), read, path(STAGING, mount(STAGING, read_only=True))) == ()


@pytest.mark.parametrize("flags", [("ro",), ("noatime", "ro"), ("rw", "ro")])
def test_a_mount_flag_that_forbids_writing_is_an_access_mode_of_its_own(flags: tuple[str, ...]) -> None:
    read = asked(flags=flags)
    assert staged(volume(), read, FREE_STAGING)[-1].options[-1] == "ro"  # type: ignore[union-attr]
    assert staged(volume(), read, path(STAGING, mount(STAGING, read_only=True))) == ()


def test_a_filesystem_that_stopped_writing_after_an_error_is_still_staged_and_published() -> None:
    stopped = dataclasses.replace(mount(STAGING), super_options=frozenset({"ro"}))
    assert staged(volume(), MOUNT, path(STAGING, stopped)) == ()
    target = path(TARGET, dataclasses.replace(stopped, target=TARGET))
    assert publish.publish(view(target=target, shown=Publications(mounts=(TARGET,)))) == ()


@given(
    formatted=st.sampled_from([None, "ext4", "xfs", "block", "sealed"]),
    state=st.sampled_from([State.READY, State.DELETING]),
    active=st.booleans(),
    sealed_or_direct=st.sampled_from([{}, DIRECT, SEALED]),
    capability=st.builds(
        asked, st.sampled_from(["", "ext4", "xfs"]), block=st.booleans(), access=st.sampled_from(Access)
    ),
    staging=st.sampled_from([FREE_STAGING, STAGED]),
)
def test_what_somebody_was_given_once_is_never_written_to(
    *,
    formatted: str | None,
    state: State,
    active: bool,
    sealed_or_direct: dict[str, Any],
    capability: Capability,
    staging: PathView,
) -> None:
    there = volume(formatted, state=state, active=active, **sealed_or_direct)
    try:
        plan = staged(there, capability, staging)
    except (Refused, AlreadyExists):
        return
    harmless = steps.Activate | steps.RequireFilesystem | steps.CheckFilesystem | steps.MountFilesystem
    assert [step for step in plan if not isinstance(step, harmless)] == []
    assert formatted is not None


# What stage refuses


@pytest.mark.parametrize(
    ("there", "capability", "words"),
    [
        (volume("ext4"), asked("xfs"), "holds ext4, and xfs is asked for; it is never formatted again"),
        (volume("ext4"), BLOCK, "holds ext4, and block is asked for"),
        (volume("block"), MOUNT, "holds block, and ext4 is asked for"),
        (volume("block"), asked("ext4"), "holds block, and ext4 is asked for"),
        (volume("ext4", **SEALED), MOUNT, "holds ext4, and sealed is asked for"),
        (volume("sealed"), asked("ext4"), "holds sealed, and ext4 is asked for"),
        (volume(None), MOUNT, "holds nothing that its tags name, and ext4 is asked for"),
        (volume(state=State.DELETING), MOUNT, "is being deleted and can't be used again"),
        (volume(lv_partial=True), MOUNT, "a disk that holds part of volume pvc-1 is missing"),
        (new(lv_partial=True), MOUNT, "a disk that holds part of volume pvc-1 is missing"),
    ],
)
def test_a_volume_that_is_not_what_is_asked_for_is_refused(there: Volume, capability: Capability, words: str) -> None:
    with pytest.raises(Refused, match=words):
        staged(there, capability, FREE_STAGING)


@pytest.mark.parametrize("there", [volume(), new(), volume("block"), volume(active=False)])
def test_a_staging_path_with_a_mount_of_something_else_is_refused(there: Volume) -> None:
    foreign = path(STAGING, mount(STAGING, device=FOREIGN, source="/dev/sdb1"))
    with pytest.raises(Refused, match="/k/staging is already a mount of /dev/sdb1; unmount it"):
        staged(there, BLOCK if there.holds == Raw() else MOUNT, foreign)


def test_the_mount_on_top_is_the_one_that_counts() -> None:
    hidden = path(STAGING, mount(STAGING), mount(STAGING, device=FOREIGN, source="/dev/sdb1"))
    with pytest.raises(Refused, match="already a mount of /dev/sdb1"):
        staged(volume(), MOUNT, hidden)


@pytest.mark.parametrize(
    ("there", "capability", "words"),
    [
        (volume(), asked(access=Access.SINGLE_NODE_READER_ONLY), "staged with another access mode"),
        (volume(), asked("xfs"), "staged as ext4, not xfs"),
        (volume(**DIRECT), MOUNT, "staged as a mounted filesystem"),
        (volume("block"), BLOCK, "staged as a mounted filesystem"),
        (volume("sealed", **SEALED), MOUNT, "staged as a mounted filesystem"),
    ],
)
def test_a_volume_that_is_staged_otherwise_is_not_staged_again(
    there: Volume, capability: Capability, words: str
) -> None:
    with pytest.raises(AlreadyExists, match=f"pvc-1 is {words}"):
        staged(there, capability, STAGED)


# Publish


NOWHERE = Publications()


def view(
    there: Volume | None = None,
    capability: Capability = MOUNT,
    *,
    target: PathView | None = None,
    shown: Publications = NOWHERE,
    **fields: Any,
) -> publish.Publishing:
    """A request to publish a staged volume at a free target, but for what is named."""
    there = there or volume()
    return publish.Publishing(
        volume=there,
        capability=capability,
        read_only=fields.get("read_only", False),
        staging=fields.get("staging", STAGED if stage.host_mounts(there, capability) else FREE_STAGING),
        target=target or path(TARGET),
        publications=shown,
        other_stagings=fields.get("other_stagings", ()),
        node_is_right=fields.get("node_is_right", True),
    )


FREE_TARGETS = [path(TARGET), path(TARGET, kind=PathKind.DIRECTORY)]


@pytest.mark.parametrize("target", FREE_TARGETS)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_mounted_volume_is_bound_on_the_target(target: PathView, read_only: bool) -> None:
    bind = steps.BindDirectory(source=STAGING, target=TARGET, read_only=read_only)
    assert publish.publish(view(target=target, read_only=read_only)) == (bind,)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_published_volume_needs_nothing(read_only: bool) -> None:
    target = path(TARGET, mount(TARGET, read_only=read_only))
    shown = Publications(mounts=(TARGET,))
    assert publish.publish(view(target=target, shown=shown, read_only=read_only)) == ()
    now = "read-only" if read_only else "writable"
    with pytest.raises(AlreadyExists, match=f"{TARGET} is published {now} already; unpublish it first"):
        publish.publish(view(target=target, shown=shown, read_only=not read_only))


@pytest.mark.parametrize("there", [volume("block"), volume(**DIRECT), volume("sealed", **SEALED)])
def test_a_target_with_a_mount_of_something_else_is_refused(there: Volume) -> None:
    capability = BLOCK if there.holds == Raw() else MOUNT
    target = path(TARGET, mount(TARGET, device=FOREIGN, source="/dev/sdb1"))
    with pytest.raises(Refused, match=TARGET):
        publish.publish(view(there, capability, target=target))


def test_a_target_with_a_mount_of_another_filesystem_is_refused_by_its_source() -> None:
    target = path(TARGET, mount(TARGET, device=FOREIGN, source="/dev/sdb1"))
    with pytest.raises(Refused, match=f"{TARGET} is already a mount of /dev/sdb1; unmount it"):
        publish.publish(view(target=target))


@pytest.mark.parametrize("there", [volume(), volume(**DIRECT), volume("sealed", **SEALED)])
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (path(TARGET, kind=PathKind.DIRECTORY, empty=False), "a directory with content, which a mount would hide"),
        (path(TARGET, kind=PathKind.FILE), r"not a directory \(file\)"),
        (path(TARGET, kind=PathKind.DEVICE), r"not a directory \(device\)"),
        (path(TARGET, kind=PathKind.OTHER), r"not a directory \(other\)"),
    ],
)
def test_a_target_that_is_no_empty_directory_is_refused(there: Volume, target: PathView, words: str) -> None:
    with pytest.raises(Refused, match=words):
        publish.publish(view(there, target=target))


@pytest.mark.parametrize(
    "fields",
    [
        {"there": volume(None, state=State.CREATING)},
        {"there": volume(active=False), "staging": FREE_STAGING},
        {"there": volume("block", active=False), "capability": BLOCK},
        {"there": volume("sealed", active=False, **SEALED)},
        {"staging": FREE_STAGING},
        {"staging": path(STAGING, kind=PathKind.DIRECTORY)},
        {"staging": path(STAGING, mount(STAGING, device=FOREIGN))},
        {"there": volume("block"), "capability": BLOCK, "node_is_right": False},
        {"there": volume(**DIRECT), "node_is_right": False},
    ],
)
def test_a_volume_that_is_not_staged_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match=f"pvc-1 is not staged at {STAGING}; call NodeStageVolume first"):
        publish.publish(view(**fields))


def test_a_mounted_volume_without_a_staging_path_is_refused() -> None:
    with pytest.raises(Refused, match="not staged at any path"):
        publish.publish(view(staging=path("")))


def test_a_volume_that_is_being_deleted_is_not_published() -> None:
    with pytest.raises(Refused, match="is being deleted"):
        publish.publish(view(volume(state=State.DELETING)))


# A second pod


@pytest.mark.parametrize("access", [Access.SINGLE_NODE_WRITER, Access.SINGLE_NODE_SINGLE_WRITER])
@pytest.mark.parametrize(
    ("block", "shown"), [(False, Publications(mounts=(OTHER,))), (True, Publications(devices=(OTHER,)))]
)
def test_a_volume_for_one_pod_gets_no_second_target(access: Access, block: bool, shown: Publications) -> None:
    there = volume("block" if block else "ext4")
    with pytest.raises(InUse, match=f"already published at {OTHER} and can't have a second target"):
        publish.publish(view(there, asked(block=block, access=access), shown=shown))


@pytest.mark.parametrize("access", [Access.SINGLE_NODE_MULTI_WRITER, Access.SINGLE_NODE_READER_ONLY])
def test_a_volume_for_several_pods_gets_a_second_target(access: Access) -> None:
    mounted_once = view(
        capability=asked(access=access), shown=Publications(mounts=(OTHER,)), read_only=access.read_only
    )
    assert len(publish.publish(mounted_once)) == 1
    bound_once = view(volume("block"), asked(block=True, access=access), shown=Publications(devices=(OTHER,)))
    assert len(publish.publish(bound_once)) == 1


# Block


BOUND = path(TARGET, mount(TARGET, fstype="devtmpfs", device=DeviceNumber(0, 5)), kind=PathKind.DEVICE, device=NUMBER)
BIND_DEVICE = steps.BindDevice(device=DEVICE, target=TARGET)


def read_only_flag(on: bool) -> steps.SetReadOnly:
    return steps.SetReadOnly(device=DEVICE, read_only=on)


@pytest.mark.parametrize("target", [path(TARGET), path(TARGET, kind=PathKind.FILE)])
@pytest.mark.parametrize(
    ("read_only", "flag", "before"),
    [
        (False, False, ()),
        (True, True, ()),
        (True, False, (read_only_flag(True),)),
        (False, True, (read_only_flag(False),)),
    ],
)
def test_a_block_volume_has_its_flag_set_before_a_pod_sees_it(
    target: PathView, read_only: bool, flag: bool, before: steps.Plan
) -> None:
    request = view(volume("block", device_read_only=flag), BLOCK, target=target, read_only=read_only)
    assert publish.publish(request) == (*before, BIND_DEVICE)


@pytest.mark.parametrize("flag", [False, True])
def test_a_published_block_volume_needs_nothing(flag: bool) -> None:
    fields: dict[str, Any] = {"target": BOUND, "shown": Publications(devices=(TARGET,))}
    assert publish.publish(view(volume("block", device_read_only=flag), BLOCK, read_only=flag, **fields)) == ()
    with pytest.raises(
        AlreadyExists, match="is published read-only already" if flag else "is published writable already"
    ):
        publish.publish(view(volume("block", device_read_only=flag), BLOCK, read_only=not flag, **fields))


def test_a_target_that_is_another_device_is_refused() -> None:
    with pytest.raises(Refused, match=f"{TARGET} is another device already"):
        publish.publish(view(volume("block"), BLOCK, target=dataclasses.replace(BOUND, device=FOREIGN)))


@pytest.mark.parametrize(
    "target",
    [
        path(TARGET, kind=PathKind.DIRECTORY),
        path(TARGET, kind=PathKind.OTHER),
        path(TARGET, mount(TARGET, device=FOREIGN), kind=PathKind.FILE),
    ],
)
def test_a_target_that_is_no_free_file_is_refused_for_a_block_volume(target: PathView) -> None:
    with pytest.raises(Refused, match=f"{TARGET} is not free for a block device"):
        publish.publish(view(volume("block"), BLOCK, target=target))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_block_volume_of_two_pods_is_read_only_for_both_or_for_none(read_only: bool) -> None:
    shared = asked(block=True, access=Access.SINGLE_NODE_MULTI_WRITER)
    shown = Publications(devices=(OTHER,))
    with pytest.raises(InUse, match="can't be read-only for one pod and writable for another"):
        publish.publish(view(volume("block", device_read_only=not read_only), shared, shown=shown, read_only=read_only))


# Direct


TOMBSTONE = path(
    TARGET,
    mount(TARGET, device=DeviceNumber(0, 99), fstype="tmpfs", source=TOMBSTONE_SOURCE + "/pvc-1", read_only=True),
)
RECORD = Record(device=DEVICE, fstype="ext4", metadata={"sealed-local.csi/volume-id": "pvc-1"})
MOUNT_TOMBSTONE, WRITE_RECORD = (
    steps.MountTombstone(target=TARGET, source=TOMBSTONE_SOURCE + "/pvc-1"),
    steps.WriteRecord(target=TARGET, record=RECORD),
)


@pytest.mark.parametrize(
    ("target", "records", "plan"),
    [
        (path(TARGET), {}, (MOUNT_TOMBSTONE, WRITE_RECORD)),
        (path(TARGET, kind=PathKind.DIRECTORY), {}, (MOUNT_TOMBSTONE, WRITE_RECORD)),
        (TOMBSTONE, {}, (WRITE_RECORD,)),
        (path(TARGET), {TARGET: RECORD}, (MOUNT_TOMBSTONE,)),
        (TOMBSTONE, {TARGET: RECORD}, ()),
    ],
    ids=["nothing", "directory", "tombstone", "record", "both"],
)
def test_a_direct_volume_has_its_tombstone_before_its_record(
    target: PathView, records: dict[str, Record], plan: steps.Plan
) -> None:
    assert publish.publish(view(volume(**DIRECT), target=target, shown=Publications(records=records))) == plan


def test_a_target_of_another_program_is_not_taken_for_a_tombstone() -> None:
    other = path(TARGET, mount(TARGET, device=DeviceNumber(0, 98), fstype="tmpfs", source="tmpfs", read_only=True))
    with pytest.raises(Refused, match="is already a mount"):
        publish.publish(view(volume(**DIRECT), target=other))


@pytest.mark.parametrize(
    "change", [{"device": "/dev/vg0/other"}, {"options": ("ro",)}, {"fstype": "xfs"}, {"metadata": {}}]
)
def test_another_record_at_the_target_is_not_replaced(change: dict[str, Any]) -> None:
    other = dataclasses.replace(RECORD, **change)
    with pytest.raises(AlreadyExists, match="has a Kata record with other content"):
        publish.publish(view(volume(**DIRECT), target=TOMBSTONE, shown=Publications(records={TARGET: other})))


def test_a_record_of_a_newer_driver_that_asks_for_the_same_is_the_same() -> None:
    newer = dataclasses.replace(RECORD, metadata={**RECORD.metadata, "sealed-local.csi/later": "x"})
    assert publish.publish(view(volume(**DIRECT), target=TOMBSTONE, shown=Publications(records={TARGET: newer}))) == ()


def test_a_target_with_the_tombstone_of_another_volume_is_refused() -> None:
    other = path(TARGET, dataclasses.replace(TOMBSTONE.mounts[0], source=TOMBSTONE_SOURCE + "/pvc-2"))
    with pytest.raises(Refused, match="has the tombstone of volume pvc-2"):
        publish.publish(view(volume(**DIRECT), target=other))


def test_a_second_call_for_a_target_behind_a_link_needs_nothing() -> None:
    linked = dataclasses.replace(TOMBSTONE, leads_to="/data/pods/1/mount")
    shown = Publications(records={TARGET: RECORD}, tombstones=("/data/pods/1/mount",))
    assert publish.publish(view(volume(**DIRECT), target=linked, shown=shown)) == ()


def test_a_staged_volume_that_lies_elsewhere_is_refused_with_the_place() -> None:
    elsewhere = view(staging=FREE_STAGING, other_stagings=("/k/plugins/old/globalmount",))
    with pytest.raises(Refused, match="is mounted at /k/plugins/old/globalmount; call NodeStageVolume"):
        publish.publish(elsewhere)


@pytest.mark.parametrize("there", [volume(**DIRECT, stale=True), volume("sealed", **SEALED, stale=True)])
def test_a_device_on_a_dead_disk_is_not_given_to_a_guest(there: Volume) -> None:
    with pytest.raises(Refused, match="on a disk that has gone"):
        publish.publish(view(there, node_is_right=False))


@pytest.mark.parametrize(("opened", "loops", "free"), [(1, 1, True), (2, 1, False), (2, 2, True), (1, 0, False)])
def test_a_loop_device_hides_no_guest(opened: int, loops: int, free: bool) -> None:
    asked_for = view(volume("sealed", open_count=opened, loops=loops, **SEALED), BLOCK)
    if free:
        assert publish.publish(asked_for)
    else:
        with pytest.raises(InUse, match="still held open"):
            publish.publish(asked_for)


@pytest.mark.parametrize("access", Access)
@pytest.mark.parametrize("shown", [Publications(records={OTHER: RECORD}), Publications(mounts=(OTHER,))])
def test_a_direct_volume_never_gets_a_second_guest(access: Access, shown: Publications) -> None:
    with pytest.raises(InUse, match="already published at /k/pods/2/mount"):
        publish.publish(view(volume(**DIRECT), asked(access=access), shown=shown))


def test_a_device_that_a_guest_still_holds_is_not_given_to_the_next() -> None:
    with pytest.raises(InUse, match="still held open on this node"):
        publish.publish(view(volume(open_count=1, **DIRECT)))


def test_a_running_guest_does_not_disturb_the_repeated_call() -> None:
    shown = Publications(records={TARGET: RECORD})
    assert publish.publish(view(volume(open_count=1, **DIRECT), target=TOMBSTONE, shown=shown)) == ()


@pytest.mark.parametrize(
    ("there", "capability", "fstype", "profile"),
    [
        (volume("xfs", **DIRECT), MOUNT, "xfs", None),
        (volume("sealed", **SEALED), MOUNT, "ext4", "xts"),
        (volume("sealed", **SEALED), asked("xfs"), "xfs", "xts"),
    ],
)
def test_the_record_tells_the_guest_what_it_needs(
    there: Volume, capability: Capability, fstype: str, profile: str | None
) -> None:
    metadata = {"sealed-local.csi/volume-id": "pvc-1"} | ({"sealed-local.csi/profile": profile} if profile else {})
    expected = Record(device=DEVICE, fstype=fstype, metadata=metadata)
    assert publish.publish(view(there, capability))[-1] == steps.WriteRecord(target=TARGET, record=expected)


def test_only_a_sealed_volume_whose_class_says_so_asks_for_a_secure_mount() -> None:
    ask = {"encryptionKey": "ephemeral", "createFilesystem": "true"}
    for there, asks in [
        (volume("sealed", **SEALED, secure_mount=True), True),
        (volume("sealed", **SEALED), False),
        (volume("ext4", **DIRECT, secure_mount=True), False),
        (volume("ext4", **DIRECT), False),
    ]:
        metadata = publish.direct_record(there, MOUNT, read_only=False).metadata
        assert (ask.items() <= metadata.items()) is asks
        assert (set(ask) & set(metadata) != set()) is asks


@pytest.mark.parametrize("key", ["encryptionKey", "createFilesystem"])
def test_a_record_that_would_have_a_volume_formatted_is_never_taken_for_one_that_would_not(key: str) -> None:
    wrong = dataclasses.replace(RECORD, metadata={**RECORD.metadata, key: "x"})
    assert not RECORD.means(wrong)
    assert not wrong.means(RECORD)


@pytest.mark.parametrize("read_only", [False, True])
def test_the_record_carries_the_mount_flags_of_a_guest(read_only: bool) -> None:
    flags = asked(flags=("noatime", "_netdev"))
    record = publish.direct_record(volume(**DIRECT), flags, read_only=read_only)
    assert record.options == (("noatime", "ro") if read_only else ("noatime",))


# What is seen


def test_every_place_that_shows_a_volume_counts_once() -> None:
    shown = Publications(mounts=("/b", "/a"), devices=("/c",), records={"/a": RECORD, "/d": RECORD})
    assert shown.targets == ("/a", "/b", "/c", "/d")
    assert shown.others("/c") == ("/a", "/b", "/d")


def test_only_our_own_tmpfs_on_top_is_a_tombstone() -> None:
    ours = TOMBSTONE.mounts[0]
    assert TOMBSTONE.is_tombstone
    assert not path(TARGET).is_tombstone
    assert not path(TARGET, ours, mount(TARGET)).is_tombstone
    assert not path(TARGET, dataclasses.replace(ours, fstype="ext4")).is_tombstone
    assert not path(TARGET, dataclasses.replace(ours, source="tmpfs")).is_tombstone
    assert path(TARGET, dataclasses.replace(ours, source=TOMBSTONE_SOURCE)).is_tombstone


@pytest.mark.parametrize("access", [Access.SINGLE_NODE_MULTI_WRITER, Access.SINGLE_NODE_READER_ONLY])
def test_a_sealed_block_volume_goes_to_one_guest_whatever_the_access_mode_says(access: Access) -> None:
    there, capability = volume("sealed", **SEALED), asked(block=True, access=access)
    assert publish.publish(view(there, capability))
    with pytest.raises(Refused, match="already published"):
        publish.publish(view(there, capability, shown=Publications(devices=(OTHER,))))


def test_a_sealed_block_volume_that_a_dying_guest_still_holds_is_not_given_to_the_next() -> None:
    there = volume("sealed", open_count=1, **SEALED)
    with pytest.raises(InUse, match="still held open"):
        publish.publish(view(there, BLOCK))
