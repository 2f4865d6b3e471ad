"""What a ttRPC caller is told: nothing more to say, or an error by its number and a text for people."""

from enum import IntEnum
from typing import Final

from csi.guest.serve.proto.ttrpc_pb2 import Response, Status

_LONGEST_TEXT: Final = 4096


class Code(IntEnum):
    """Errors as gRPC numbers them."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


def done() -> bytes:
    """The payload of a response that has nothing to say but that all went well."""
    return Response(status=Status()).SerializeToString()


def failure(code: Code, text: str) -> bytes:
    """The payload of a response that says what went wrong. The agent shows the text to whoever starts the container."""
    return Response(status=Status(code=code, message=f"sealed-local: {text}"[:_LONGEST_TEXT])).SerializeToString()
