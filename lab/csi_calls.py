"""CSI calls made inside the node, over the driver's own unix socket: JSON in, code and JSON out."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import json_format

from csi.node.rpc.proto import csi_pb2, csi_pb2_grpc

_channels: dict[str, grpc.Channel] = {}
_lock = threading.Lock()
_STUBS = (csi_pb2_grpc.IdentityStub, csi_pb2_grpc.ControllerStub, csi_pb2_grpc.NodeStub)


def call(socket: str, method: str, request: dict[str, Any], timeout: float = 120) -> dict[str, Any]:
    """One call; returns code, message, details, response and seconds."""
    message = json_format.ParseDict(request, getattr(csi_pb2, f"{method}Request")())
    started = time.monotonic()
    try:
        response = _method(socket, method)(message, timeout=timeout)
    except grpc.RpcError as error:
        return {
            "code": error.code().name,
            "message": error.details(),
            "details": [key for key in _trailing_keys(error) if key == "grpc-status-details-bin"],
            "response": {},
            "seconds": time.monotonic() - started,
        }
    return {
        "code": "OK",
        "message": "",
        "details": [],
        "response": json_format.MessageToDict(response, preserving_proto_field_name=True),
        "seconds": time.monotonic() - started,
    }


def _trailing_keys(error: grpc.RpcError) -> list[str]:
    # Pairs at run time; the type stubs take the pairs' class for one that can't be unpacked.
    pairs: Any = error.trailing_metadata() or ()
    return [str(key) for key, _ in pairs]


def many(socket: str, method: str, requests: list[dict[str, Any]], timeout: float = 600) -> list[dict[str, Any]]:
    """All calls at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: call(socket, method, request, timeout), requests))


def ready(socket: str, seconds: float = 60) -> None:
    """Wait until the driver's Probe says ready."""
    give_up = time.monotonic() + seconds
    while True:
        answer = call(socket, "Probe", {}, 10)
        if answer["code"] == "OK" and answer["response"].get("ready"):
            return
        if time.monotonic() > give_up or answer["code"] == "FAILED_PRECONDITION":
            raise TimeoutError(f"the driver is not ready: {answer}")
        time.sleep(0.05)


def forget(socket: str) -> None:
    """Drop the connection of a driver that ended."""
    with _lock:
        channel = _channels.pop(socket, None)
    if channel is not None:
        channel.close()


def _method(socket: str, method: str) -> Any:
    with _lock:
        channel = _channels.get(socket)
        if channel is None:
            options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
            channel = _channels[socket] = grpc.insecure_channel(f"unix:{socket}", options=options)
    for stub in _STUBS:
        found = getattr(stub(channel), method, None)
        if found is not None:
            return found
    raise AttributeError(f"no CSI method {method}")
