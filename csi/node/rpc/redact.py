"""A protobuf message as a dictionary for the log, with every field that CSI marks `csi_secret` left out.

Mount flags are left out too: they can carry credentials, and the specification says so. So are the pod's service account
tokens, which kubelet puts into the volume context, a field that is not marked, when a CSIDriver asks for them.
"""

from typing import Any

from google.protobuf.message import Message

from csi.node.rpc.proto import csi_pb2

HIDDEN = "***"
_ALSO_HIDDEN = frozenset({"mount_flags"})
_TOKENS = "serviceAccount.tokens"


def for_log(message: Message) -> dict[str, Any]:
    """Set fields of a message; secrets are shown as `***`."""
    shown: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        if descriptor.GetOptions().Extensions[csi_pb2.csi_secret] or descriptor.name in _ALSO_HIDDEN:
            shown[descriptor.name] = HIDDEN
        elif descriptor.message_type is None:
            shown[descriptor.name] = list(value) if descriptor.is_repeated else value
        elif descriptor.message_type.GetOptions().map_entry:
            shown[descriptor.name] = {str(key): _entry(str(key), item) for key, item in value.items()}
        elif descriptor.is_repeated:
            shown[descriptor.name] = [for_log(item) for item in value]
        else:
            shown[descriptor.name] = for_log(value)
    return shown


def _entry(key: str, value: object) -> str:
    return HIDDEN if key.endswith(_TOKENS) else str(value)
