"""The generated code is what protos/ makes, and protos/csi.proto is CSI as published, but for what is left out."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from csi.node.rpc.proto import csi_pb2

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "tests/data/csi-1.13.0.descriptor.binpb"

# Two services that sealed-local does not offer, and what only they use.
LEFT_OUT = {
    "GroupController",
    "GroupControllerGetCapabilitiesRequest",
    "GroupControllerGetCapabilitiesResponse",
    "GroupControllerServiceCapability",
    "CreateVolumeGroupSnapshotRequest",
    "CreateVolumeGroupSnapshotResponse",
    "DeleteVolumeGroupSnapshotRequest",
    "DeleteVolumeGroupSnapshotResponse",
    "GetVolumeGroupSnapshotRequest",
    "GetVolumeGroupSnapshotResponse",
    "VolumeGroupSnapshot",
    "SnapshotMetadata",
    "BlockMetadata",
    "BlockMetadataType",
    "GetMetadataAllocatedRequest",
    "GetMetadataAllocatedResponse",
    "GetMetadataDeltaRequest",
    "GetMetadataDeltaResponse",
}

File = descriptor_pb2.FileDescriptorProto
Field = descriptor_pb2.FieldDescriptorProto
Facts = dict[str, str]


def facts(file: File) -> Facts:
    """Whatever a peer can notice of a file, one line a thing, under the thing's name."""
    found = {"package": file.package, "syntax": file.syntax}
    for extension in file.extension:
        found[extension.name] = f"extends {extension.extendee} {_field(extension, [])}"
    for enum in file.enum_type:
        found.update(_enum(enum, enum.name))
    for message in file.message_type:
        found.update(_message(message, message.name))
    for service in file.service:
        found[service.name] = f"service {_options(service.options)}"
        for method in service.method:
            streams = f"{method.client_streaming} {method.server_streaming}"
            found[f"{service.name}.{method.name}"] = (
                f"rpc {method.input_type} {method.output_type} {streams} {_options(method.options)}"
            )
    return found


def _message(message: descriptor_pb2.DescriptorProto, path: str) -> Iterator[tuple[str, str]]:
    reserved = [(span.start, span.end) for span in message.reserved_range]
    yield path, f"message {reserved} {list(message.reserved_name)} {_options(message.options)}"
    oneofs = [oneof.name for oneof in message.oneof_decl]
    for field in message.field:
        yield f"{path}.{field.name}", _field(field, oneofs)
    for enum in message.enum_type:
        yield from _enum(enum, f"{path}.{enum.name}")
    for nested in message.nested_type:
        yield from _message(nested, f"{path}.{nested.name}")


def _enum(enum: descriptor_pb2.EnumDescriptorProto, path: str) -> Iterator[tuple[str, str]]:
    yield path, f"enum {_options(enum.options)}"
    for value in enum.value:
        yield f"{path}.{value.name}", f"value {value.number} {_options(value.options)}"


def _field(field: Field, oneofs: list[str]) -> str:
    label = Field.Label.Name(field.label)
    kind = Field.Type.Name(field.type)
    oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else "-"
    return (
        f"field {field.number} {label} {kind} {field.type_name or '-'} json={field.json_name} oneof={oneof} "
        f"optional={field.proto3_optional} {_options(field.options)}"
    )


def _options(options: Message) -> str:
    return text_format.MessageToString(options, as_one_line=True, print_unknown_fields=True)


def differences(ours: File, published: File) -> list[str]:
    """What a peer that follows the published file would stumble over in ours, empty if nothing."""
    mine, theirs = facts(ours), facts(published)
    told = [f"{name}: not in the published file" for name in mine.keys() - theirs.keys()]
    told += [f"{name}: left out" for name in theirs.keys() - mine.keys() if name.split(".")[0] not in LEFT_OUT]
    both = mine.keys() & theirs.keys()
    told += [f"{name}: {mine[name]}, not {theirs[name]}" for name in both if mine[name] != theirs[name]]
    return sorted(told)


def our_file() -> File:
    """The descriptor that runs, and the JSON names too: protoc leaves them out of Python code, the library knows them."""
    live, copy = csi_pb2.DESCRIPTOR, File()
    live.CopyToProto(copy)
    for extension in copy.extension:
        extension.json_name = live.extensions_by_name[extension.name].json_name
    for message in copy.message_type:
        _name_for_json(message, live.message_types_by_name[message.name])
    return copy


def _name_for_json(copy: descriptor_pb2.DescriptorProto, live: Descriptor) -> None:
    for field in copy.field:
        field.json_name = live.fields_by_name[field.name].json_name
    for nested in copy.nested_type:
        _name_for_json(nested, live.nested_types_by_name[nested.name])


def published_file() -> File:
    return File.FromString(PUBLISHED.read_bytes())


def secrets_of(file: File) -> set[str]:
    return {name for name, fact in facts(file).items() if "[csi.v1.csi_secret]: true" in fact}


def test_the_generated_code_is_fresh(tmp_path: Path) -> None:
    command = [ROOT / "scripts/generate-protos", tmp_path]
    subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=120)
    for folder in ("csi/node/rpc/proto", "csi/guest/serve/proto"):
        fresh = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        committed = {path.name: path.read_bytes() for path in (ROOT / folder).glob("*_pb2*")}
        assert fresh.keys() == committed.keys()
        stale = [name for name in fresh if fresh[name] != committed[name]]
        assert not stale, f"run scripts/generate-protos: {stale} differ from what protos/ generates"


def test_our_messages_and_services_are_the_published_ones() -> None:
    assert differences(our_file(), published_file()) == []


def test_what_is_left_out_is_exactly_what_the_list_says() -> None:
    missing = facts(published_file()).keys() - facts(our_file()).keys()
    assert {name.split(".")[0] for name in missing} == LEFT_OUT


def test_secrets_are_marked_where_the_published_file_marks_them() -> None:
    marked = secrets_of(our_file())
    assert marked == {name for name in secrets_of(published_file()) if name.split(".")[0] not in LEFT_OUT}
    assert {"CreateVolumeRequest.secrets", "NodeStageVolumeRequest.secrets", "NodeExpandVolumeRequest.secrets"} < marked


def message_of(file: File, name: str) -> descriptor_pb2.DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def field_of(file: File, name: str) -> Field:
    message, field = name.split(".")
    return next(item for item in message_of(file, message).field if item.name == field)


def _set(field: str, attribute: str, value: object) -> Callable[[File], None]:
    return lambda file: setattr(field_of(file, field), attribute, value)


def _unmark_secret(file: File) -> None:
    field_of(file, "NodePublishVolumeRequest.secrets").options.ClearExtension(csi_pb2.csi_secret)


def _leave_oneof(file: File) -> None:
    field_of(file, "VolumeCapability.mount").ClearField("oneof_index")


def _drop_field(file: File) -> None:
    message_of(file, "Volume").field.pop()


def _add_field(file: File) -> None:
    message_of(file, "Volume").field.add(name="extra", number=9)


def _drop_message(file: File) -> None:
    file.message_type.remove(message_of(file, "Topology"))


def _drop_nested_message(file: File) -> None:
    message_of(file, "VolumeCapability").nested_type.pop()


def _forget_reserved(file: File) -> None:
    message_of(file, "NodeGetVolumeStatsResponse").ClearField("reserved_range")


def _renumber_enum(file: File) -> None:
    next(enum for enum in file.enum_type if enum.name == "VolumeHealthErrorType").value[2].number = 4


def _drop_nested_value(file: File) -> None:
    message_of(file, "NodeServiceCapability").nested_type[0].enum_type[0].value.pop()


def _drop_method(file: File) -> None:
    file.service[0].method.pop()


def _drop_service(file: File) -> None:
    file.service.pop()


def _stream_method(file: File) -> None:
    file.service[0].method[0].server_streaming = True


def _other_answer(file: File) -> None:
    file.service[0].method[0].output_type = ".csi.v1.ProbeResponse"


def _other_package(file: File) -> None:
    file.package = "csi.v0"


def _renumber_extension(file: File) -> None:
    next(item for item in file.extension if item.name == "csi_secret").number = 1061


TAMPERINGS = [
    (_set("Volume.volume_id", "number", 7), "Volume.volume_id"),
    (_set("Volume.volume_id", "name", "volumeid"), "Volume.volumeid"),
    (_set("Volume.volume_id", "json_name", "id"), "Volume.volume_id"),
    (_set("CapacityRange.limit_bytes", "type", Field.TYPE_UINT64), "CapacityRange.limit_bytes"),
    (_set("Volume.accessible_topology", "label", Field.LABEL_OPTIONAL), "Volume.accessible"),
    (_set("Volume.content_source", "type_name", ".csi.v1.Topology"), "Volume.content_source"),
    (_unmark_secret, "NodePublishVolumeRequest.secrets"),
    (_leave_oneof, "VolumeCapability.mount"),
    (_drop_field, "Volume.accessible_topology: left out"),
    (_add_field, "Volume.extra: not in the published file"),
    (_drop_message, "Topology: left out"),
    (_drop_nested_message, "VolumeCapability.AccessMode: left out"),
    (_forget_reserved, "NodeGetVolumeStatsResponse"),
    (_renumber_enum, "VolumeHealthErrorType.INACCESSIBLE"),
    (_drop_nested_value, "NodeServiceCapability.RPC.Type.GET_STORAGE_HEALTH: left out"),
    (_drop_method, "Identity.Probe: left out"),
    (_drop_service, "Node.NodeStageVolume: left out"),
    (_stream_method, "Identity.GetPluginInfo"),
    (_other_answer, "Identity.GetPluginInfo"),
    (_other_package, "package"),
    (_renumber_extension, "csi_secret"),
]


@pytest.mark.parametrize(("tamper", "told"), TAMPERINGS)
def test_a_tampered_copy_is_noticed(tamper: Callable[[File], None], told: str) -> None:
    copy = our_file()
    assert not differences(copy, published_file())
    tamper(copy)
    assert any(line.startswith(told) for line in differences(copy, published_file()))
