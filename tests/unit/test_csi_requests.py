"""A CSI request is taken whole or refused by the name of its field, with CSI's limits and this driver's own."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from csi.core.errors import AlreadyExists, InvalidInput, NoSpace, NotFound, OutOfRange
from csi.core.sealed import Profile
from csi.node import content, parameters
from csi.node.lvm import names as volume_names
from csi.node.lvm.layout import Striped
from csi.node.lvm.model import LogicalVolume
from csi.node.rpc import csi_requests
from csi.node.rpc.proto import csi_pb2
from csi.node.volume import Access, Capability, State, Volume, Wanted, Wipe

GIB = 1 << 30
NODE = ("topology.sealed-local.csi/node", "worker-3")
ROOTS = (PurePosixPath("/var/lib/kubelet"), PurePosixPath("/data/kubelet"))
STAGING = "/var/lib/kubelet/plugins/kubernetes.io/csi/sealed-local.csi/0a/globalmount"
TARGET = "/var/lib/kubelet/pods/8f5d/volumes/kubernetes.io~csi/pvc-1/mount"
Mode = csi_pb2.VolumeCapability.AccessMode.Mode
Message = csi_pb2.VolumeCapability


def capability(*, block: bool = False, fstype: str = "", flags: tuple[str, ...] = (), mode: int = 1) -> Message:
    access = Message.AccessMode(mode=mode)
    if block:
        return Message(access_mode=access, block=Message.BlockVolume())
    return Message(access_mode=access, mount=Message.MountVolume(fs_type=fstype, mount_flags=flags))


def create_request(**fields: Any) -> csi_pb2.CreateVolumeRequest:
    given = {"name": "pvc-1", "volume_capabilities": [capability()], **fields}
    return csi_pb2.CreateVolumeRequest(**given)


def create(**fields: Any) -> Wanted:
    return csi_requests.create(create_request(**fields), NODE)


def stage(**fields: Any) -> csi_requests.StageRequest:
    given = {
        "volume_id": "pvc-1",
        "staging_target_path": STAGING,
        "volume_capability": capability(),
        **fields,
    }
    request = csi_pb2.NodeStageVolumeRequest(**{key: value for key, value in given.items() if value is not None})
    return csi_requests.stage(request, ROOTS)


def publish(**fields: Any) -> csi_requests.PublishRequest:
    given = {
        "volume_id": "pvc-1",
        "staging_target_path": STAGING,
        "target_path": TARGET,
        "volume_capability": capability(),
        **fields,
    }
    request = csi_pb2.NodePublishVolumeRequest(**{key: value for key, value in given.items() if value is not None})
    return csi_requests.publish(request, ROOTS)


def field_of(call: Callable[..., Any], *args: Any, **fields: Any) -> str:
    """The field that the refusal names."""
    with pytest.raises(InvalidInput) as caught:
        call(*args, **fields)
    return caught.value.field


def held(text: str | None) -> content.Content | None:
    """What a volume's tag says, by the word that stands there."""
    if text is None:
        return None
    return content.read(text, Profile.XTS if text == "sealed" else Profile.NONE)


def volume(formatted: str | None = None, digest: str = "") -> Volume:
    lv = LogicalVolume(
        name="pvc-1",
        vg="vg0",
        size_bytes=GIB,
        tags=frozenset(),
        partial=False,
    )
    return Volume(
        lv=lv,
        name_digest="",
        state=State.READY,
        size_bytes=GIB,
        params_digest=digest,
        profile=Profile.NONE,
        direct=False,
        wipe=Wipe.AUTO,
        holds=held(formatted),
        fstype=None,
        mkfs_options=(),
    )


# What is asked for


def test_a_create_request_is_taken_whole() -> None:
    given = {"lvmType": "striping", "csi.storage.k8s.io/pvc/name": "data"}
    wanted = create(
        capacity_range=csi_pb2.CapacityRange(required_bytes=GIB, limit_bytes=2 * GIB),
        parameters=given,
        secrets={"key": "unused"},
    )
    assert wanted == Wanted(
        name="pvc-1",
        volume_id="pvc-1",
        name_digest=volume_names.name_digest("pvc-1"),
        size_bytes=GIB,
        limit_bytes=2 * GIB,
        parameters=parameters.parse(given),
    )
    assert wanted.parameters.layout == Striped()


def test_a_name_that_lvm_can_not_spell_gets_an_id_that_it_can() -> None:
    wanted = create(name="my volume")
    assert wanted.name == "my volume"
    assert wanted.volume_id == volume_names.lv_name("my volume")


def test_a_stage_request_is_taken_whole() -> None:
    context = {"sealed": "none", "wipe": "zero"}
    assert stage(
        volume_capability=capability(fstype="xfs", flags=("noatime",), mode=Mode.SINGLE_NODE_SINGLE_WRITER),
        volume_context={**context, "csi.storage.k8s.io/pod.name": "p"},
    ) == csi_requests.StageRequest(
        volume_id="pvc-1",
        staging_path=STAGING,
        capability=Capability(
            block=False, access=Access.SINGLE_NODE_SINGLE_WRITER, fstype="xfs", mount_flags=("noatime",)
        ),
        context_digest=parameters.digest(context),
    )


@pytest.mark.parametrize("read_only", [False, True])
def test_a_publish_request_is_taken_whole(read_only: bool) -> None:
    assert publish(volume_capability=capability(block=True), readonly=read_only) == csi_requests.PublishRequest(
        volume_id="pvc-1",
        staging_path=STAGING,
        target_path=TARGET,
        capability=Capability(block=True, access=Access.SINGLE_NODE_WRITER),
        read_only=read_only,
        context_digest=None,
    )


def test_a_publish_request_may_leave_the_staging_path_out() -> None:
    assert publish(staging_target_path="").staging_path == ""


# Required fields


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (create, "name"),
        (create, "volume_capabilities"),
        (stage, "volume_id"),
        (stage, "staging_target_path"),
        (stage, "volume_capability"),
        (publish, "volume_id"),
        (publish, "target_path"),
        (publish, "volume_capability"),
    ],
)
def test_a_missing_field_is_refused_by_its_name(call: Callable[..., Any], field: str) -> None:
    empty: Any = None if field == "volume_capability" else [] if field == "volume_capabilities" else ""
    with pytest.raises(InvalidInput, match="required and missing") as caught:
        call(**{field: empty})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "x" * 129}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"parameters": {"speed": "1"}}, "parameters[speed]"),
        ({"parameters": {"pool": "x" * 4093}}, "parameters"),
        ({"mutable_parameters": {"b": "1", "a": "1"}}, "mutable_parameters[a]"),
        ({"volume_content_source": csi_pb2.VolumeContentSource()}, "volume_content_source"),
        (
            {
                "volume_content_source": csi_pb2.VolumeContentSource(
                    snapshot=csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id="s")
                )
            },
            "volume_content_source",
        ),
        ({"volume_capabilities": [capability(), Message()]}, "volume_capabilities[1].access_type"),
        ({"volume_capabilities": [capability(), capability(fstype="ntfs")]}, "volume_capabilities[1].mount.fs_type"),
        ({"volume_capabilities": [capability(), capability(block=True)]}, "volume_capabilities"),
        ({"volume_capabilities": [capability(mode=Mode.MULTI_NODE_READER_ONLY)]}, "volume_capabilities[0].access_mode"),
    ],
)
def test_a_create_request_that_can_not_be_met_whole_is_refused_by_field(fields: dict[str, Any], field: str) -> None:
    assert field_of(create, **fields) == field


def test_a_map_may_be_4096_bytes_long() -> None:
    assert create(parameters={"pool": "x" * 4092}).parameters.pool == "x" * 4092


# Capacity


@pytest.mark.parametrize(
    ("required", "limit", "expected"),
    [
        (0, 0, (GIB, None)),
        (5 * GIB, 0, (5 * GIB, None)),
        (5 * GIB, 6 * GIB, (5 * GIB, 6 * GIB)),
        (5 * GIB, 5 * GIB, (5 * GIB, 5 * GIB)),
        (1, 0, (1, None)),
        (0, 3 * GIB, (GIB, 3 * GIB)),
        (0, GIB // 2, (GIB // 2, GIB // 2)),
        (1 << 60, 0, (1 << 60, None)),
    ],
)
def test_the_smallest_size_within_the_range_is_made(
    required: int, limit: int, expected: tuple[int, int | None]
) -> None:
    assert csi_requests.capacity(csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)) == expected


@pytest.mark.parametrize(
    ("required", "limit", "words"),
    [
        (2, 1, "required_bytes 2 is above limit_bytes 1"),
        (-1, 0, "negative"),
        (0, -1, "negative"),
        ((1 << 60) + 1, 0, "more than a node's disks"),
        ((1 << 63) - 1, 0, "more than a node's disks"),
    ],
)
def test_a_size_that_nothing_can_satisfy_is_out_of_range(required: int, limit: int, words: str) -> None:
    with pytest.raises(OutOfRange, match=f"capacity_range: .*{words}"):
        csi_requests.capacity(csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit))


@pytest.mark.parametrize(
    "fields",
    [
        {"volume_capabilities": [capability(fstype="xfs")]},
        {"parameters": {"fsType": "xfs"}},
        {"parameters": {"csi.storage.k8s.io/fstype": "xfs"}},
    ],
)
def test_a_size_below_what_the_filesystem_takes_is_out_of_range(fields: dict[str, Any]) -> None:
    least = 300 << 20
    with pytest.raises(OutOfRange, match="xfs needs at least 300 MiB"):
        create(capacity_range=csi_pb2.CapacityRange(required_bytes=least - 1), **fields)
    assert create(capacity_range=csi_pb2.CapacityRange(required_bytes=least), **fields).size_bytes == least


@pytest.mark.parametrize(
    "fields", [{}, {"parameters": {"fsType": "ext4"}}, {"volume_capabilities": [capability(fstype="ext4")]}]
)
def test_an_ext4_without_room_for_its_journal_is_out_of_range(fields: dict[str, Any]) -> None:
    least = 2 << 20
    with pytest.raises(OutOfRange, match="ext4 needs at least 2 MiB"):
        create(capacity_range=csi_pb2.CapacityRange(required_bytes=least - 1), **fields)
    assert create(capacity_range=csi_pb2.CapacityRange(required_bytes=least), **fields).size_bytes == least


def test_a_block_volume_may_be_smaller_than_the_filesystem_of_its_class() -> None:
    wanted = create(
        capacity_range=csi_pb2.CapacityRange(required_bytes=1 << 20),
        volume_capabilities=[capability(block=True)],
        parameters={"fsType": "xfs"},
    )
    assert wanted.size_bytes == 1 << 20


# Capabilities


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("access", Access)
def test_every_access_mode_of_one_node_is_served(access: Access, block: bool) -> None:
    read = csi_requests.capability(capability(block=block, mode=Mode.Value(access.value)), "f")
    assert (read.access, read.block) == (access, block)


@pytest.mark.parametrize(
    "mode",
    [
        Mode.UNKNOWN,
        Mode.MULTI_NODE_READER_ONLY,
        Mode.MULTI_NODE_SINGLE_WRITER,
        Mode.MULTI_NODE_MULTI_WRITER,
    ],
)
def test_an_access_mode_of_several_nodes_is_refused_with_those_offered(mode: int) -> None:
    with pytest.raises(InvalidInput, match=f"{Mode.Name(mode)} is not offered on one node; use SINGLE_NODE") as caught:
        csi_requests.capability(capability(mode=mode), "volume_capability")
    assert caught.value.field == "volume_capability.access_mode"


def test_a_capability_without_access_mode_or_type_is_refused() -> None:
    assert field_of(csi_requests.capability, Message(mount=Message.MountVolume()), "f") == "f.access_mode"
    assert field_of(csi_requests.capability, Message(access_mode=Message.AccessMode(mode=1)), "f") == "f.access_type"


@pytest.mark.parametrize("fstype", ["btrfs", "EXT4", "ext3", "ext4 ", "swap"])
def test_another_filesystem_is_refused_wherever_it_is_asked_for(fstype: str) -> None:
    assert field_of(csi_requests.capability, capability(fstype=fstype), "f") == "f.mount.fs_type"
    assert field_of(create, parameters={"fsType": fstype}) == "parameters[fsType]"


def test_mount_flags_keep_their_order() -> None:
    assert csi_requests.capability(capability(flags=("noatime", "discard")), "f").mount_flags == ("noatime", "discard")


@pytest.mark.parametrize("flag", ["", "bind", "rbind", "remount", "loop", "ro,suid"])
def test_a_mount_flag_that_changes_what_is_mounted_is_refused(flag: str) -> None:
    assert field_of(csi_requests.capability, capability(flags=("noatime", flag)), "f") == "f.mount.mount_flags"


def test_mount_flags_may_be_4096_bytes_long_together() -> None:
    csi_requests.capability(capability(flags=("x" * 4000, "y" * 96)), "f")
    assert field_of(csi_requests.capability, capability(flags=("x" * 4000, "y" * 97)), "f") == "f.mount.mount_flags"


@pytest.mark.parametrize("read", [stage, publish])
def test_a_node_request_reads_nothing_of_the_class_but_its_digest(read: Any) -> None:
    context = {"fsType": "xfs", "lvmType": "raid7", "later": "key"}
    taken = read(volume_context=context)
    assert taken.capability.fstype is None
    assert taken.context_digest == parameters.digest(context)


# Identifiers and paths


@pytest.mark.parametrize("value", ["-x", "a/b", "../vg1/x", "x" * 64, "with space", "ä"])
@pytest.mark.parametrize("call", [stage, publish])
def test_an_id_that_the_driver_can_not_have_given_out_is_not_found(call: Callable[..., Any], value: str) -> None:
    with pytest.raises(NotFound, match="there is no volume"):
        call(volume_id=value)


@pytest.mark.parametrize(
    "value",
    [
        "relative/path",
        "var/lib/kubelet/x",
        "/var/lib/kubelet/../../../etc",
        "/var/lib/kubelet/..",
        "/var/lib/kubelet/a/",
        "/var/lib/kubelet//a",
        "//var/lib/kubelet/a",
        "/var/lib/kubelet/./a",
        "/var/lib/kubelet/a\0b",
        "/var/lib/kubelet/a\nb",
        "/var/lib/kubelet/" + "x" * 4080,
        "/etc/passwd",
        "/var/lib/kubelet2/a",
        "/var/lib",
        "/",
    ],
)
@pytest.mark.parametrize(
    ("call", "field"),
    [(stage, "staging_target_path"), (publish, "staging_target_path"), (publish, "target_path")],
)
def test_a_path_that_is_not_plain_or_leads_elsewhere_is_refused(
    call: Callable[..., Any], field: str, value: str
) -> None:
    assert field_of(call, **{field: value}) == field


@pytest.mark.parametrize(
    "value",
    [
        STAGING,
        "/data/kubelet/x",
        "/var/lib/kubelet/a..b",
        "/var/lib/kubelet/with space",
        "/var/lib/kubelet/ä",
        "/var/lib/kubelet/" + "x" * 4079,
    ],
)
def test_a_plain_path_below_any_root_is_taken_as_it_is(value: str) -> None:
    assert stage(staging_target_path=value).staging_path == value
    assert publish(target_path=value).target_path == value


def test_a_path_elsewhere_is_refused_with_the_option_that_would_allow_it() -> None:
    with pytest.raises(InvalidInput, match=r"not below /var/lib/kubelet or /data/kubelet; .* --kubelet-dir"):
        stage(staging_target_path="/mnt/x")


# Topology


def topology(*nodes: str, key: str = NODE[0]) -> list[csi_pb2.Topology]:
    return [csi_pb2.Topology(segments={key: node, "zone": "a"}) for node in nodes]


@pytest.mark.parametrize(
    "requirement",
    [
        None,
        csi_pb2.TopologyRequirement(),
        csi_pb2.TopologyRequirement(requisite=topology("worker-3")),
        csi_pb2.TopologyRequirement(requisite=topology("worker-1", "worker-3"), preferred=topology("worker-1")),
        csi_pb2.TopologyRequirement(preferred=topology("worker-3")),
        csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology()]),
    ],
    ids=["absent", "empty", "this node", "also this node", "preferred", "anywhere"],
)
def test_a_volume_is_made_where_this_node_is_allowed(requirement: csi_pb2.TopologyRequirement | None) -> None:
    assert create(accessibility_requirements=requirement).name == "pvc-1"


@pytest.mark.parametrize(
    "requirement",
    [
        csi_pb2.TopologyRequirement(requisite=topology("worker-1")),
        csi_pb2.TopologyRequirement(requisite=topology("worker-1"), preferred=topology("worker-3")),
        csi_pb2.TopologyRequirement(preferred=topology("worker-1")),
        csi_pb2.TopologyRequirement(requisite=topology("Worker-3")),
        csi_pb2.TopologyRequirement(requisite=topology("worker-3", key="other/key")),
    ],
)
def test_a_volume_for_another_node_is_refused_with_the_cause(requirement: csi_pb2.TopologyRequirement) -> None:
    with pytest.raises(NoSpace, match=r"this driver serves topology.*/node=worker-3 only; .* --node-deployment"):
        create(accessibility_requirements=requirement)


@pytest.mark.parametrize("other", [capability(block=True), capability(fstype="xfs")])
def test_capabilities_that_ask_for_two_things_at_once_are_refused(other: Message) -> None:
    assert field_of(create, volume_capabilities=[capability(), other]) == "volume_capabilities"
    assert create(volume_capabilities=[capability(), capability(fstype="ext4")]).purpose.word == "ext4"


# What the volume was made with


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"csi.storage.k8s.io/pod.name": "p", "csi.storage.k8s.io/ephemeral": "false"},
    ],
)
def test_a_context_without_keys_of_the_class_says_nothing_about_it(context: dict[str, str]) -> None:
    assert stage(volume_context=context).context_digest is None
    assert publish(volume_context=context).context_digest is None


def test_attributes_that_are_not_those_of_the_volume_are_refused() -> None:
    made_with = {"wipe": "zero"}
    made = volume(digest=parameters.digest(made_with))
    csi_requests.require_same_context(made, None)
    csi_requests.require_same_context(made, stage(volume_context=made_with).context_digest)
    with pytest.raises(InvalidInput, match="volume pvc-1 was made with") as caught:
        csi_requests.require_same_context(made, stage(volume_context={"wipe": "none"}).context_digest)
    assert caught.value.field == "volume_context"


@pytest.mark.parametrize(
    ("formatted", "block", "confirmed"),
    [
        (None, True, True),
        (None, False, True),
        ("sealed", True, True),
        ("sealed", False, True),
        ("block", True, True),
        ("block", False, False),
        ("ext4", False, True),
        ("ext4", True, False),
    ],
)
def test_a_volume_serves_only_what_it_was_prepared_as(formatted: str | None, block: bool, confirmed: bool) -> None:
    wanted = [Capability(block=block, access=Access.SINGLE_NODE_WRITER)]
    if confirmed:
        csi_requests.require_confirmed(volume(formatted), wanted, {}, {})
    else:
        with pytest.raises(AlreadyExists, match=f"holds {formatted}"):
            csi_requests.require_confirmed(volume(formatted), wanted, {}, {})


def test_other_parameters_are_not_confirmed() -> None:
    made = volume(digest=parameters.digest({"wipe": "zero"}))
    csi_requests.require_confirmed(made, [], {"wipe": "zero", "csi.storage.k8s.io/pvc/name": "data"}, {"other": "key"})
    with pytest.raises(AlreadyExists, match="other parameters"):
        csi_requests.require_confirmed(made, [], {"wipe": "none"}, {})


def test_an_access_mode_of_a_newer_kubernetes_is_refused_by_its_number() -> None:
    with pytest.raises(InvalidInput, match="mode 99 is not offered on one node; use SINGLE_NODE") as caught:
        csi_requests.capability(capability(mode=99), "volume_capability")
    assert caught.value.field == "volume_capability.access_mode"


@pytest.mark.parametrize("value", [".", ".."])
def test_an_id_that_would_be_a_folder_is_no_volume(value: str) -> None:
    with pytest.raises(NotFound):
        csi_requests.volume_id(value)
