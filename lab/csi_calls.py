"""CSI calls made inside the node, over the driver's own unix socket: JSON in, code and JSON out."""

import threading
import time
from typing import Any

import grpc
from google.protobuf import json_format

from csi.node.rpc.proto import csi_pb2, csi_pb2_grpc

_channels: dict[str, grpc.Channel] = {}
_methods: dict[tuple[str, str], Any] = {}
"""By socket and name: to make a stub costs more than the call."""
_lock = threading.Lock()
_STUBS = (csi_pb2_grpc.IdentityStub, csi_pb2_grpc.ControllerStub, csi_pb2_grpc.NodeStub)


def call(socket: str, method: str, request: dict[str, Any], timeout: float = 120) -> dict[str, Any]:
    """One call; returns code, message, details, response and seconds."""
    message = _message(method, request)
    started = time.monotonic()
    try:
        response = _method(socket, method)(message, timeout=timeout)
    except grpc.RpcError as error:
        return _failure(error, time.monotonic() - started)
    return _success(response, time.monotonic() - started)


def many(socket: str, method: str, requests: list[dict[str, Any]], timeout: float = 600) -> list[dict[str, Any]]:
    """All calls at once. Nobody waits for a single one of them: a thread that does wakes up ten times a second, and
    hundreds would be a load on the node that is none of the driver's.
    """
    messages = [_message(method, request) for request in requests]
    made = _method(socket, method)
    calls = [_Running(made, message, timeout) for message in messages]
    return [running.answer() for running in calls]


class _Running:
    """A call that goes on."""

    def __init__(self, made: Any, message: Any, timeout: float) -> None:
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._call = made.future(message, timeout=timeout)
        self._call.add_done_callback(self._end)

    def _end(self, _: Any) -> None:
        self._seconds = time.monotonic() - self._began

    def answer(self) -> dict[str, Any]:
        """As `call` returns it, when it is there."""
        error = self._call.exception()
        seconds = time.monotonic() - self._began if self._seconds is None else self._seconds
        return _success(self._call.result(), seconds) if error is None else _failure(error, seconds)


def _message(method: str, request: dict[str, Any]) -> Any:
    return json_format.ParseDict(request, getattr(csi_pb2, f"{method}Request")())


def _success(response: Any, seconds: float) -> dict[str, Any]:
    shown = json_format.MessageToDict(response, preserving_proto_field_name=True)
    return {"code": "OK", "message": "", "details": [], "response": shown, "seconds": seconds}


def _failure(error: Any, seconds: float) -> dict[str, Any]:
    return {
        "code": error.code().name,
        "message": error.details(),
        "details": [key for key in _trailing_keys(error) if key == "grpc-status-details-bin"],
        "response": {},
        "seconds": seconds,
    }


def _trailing_keys(error: Any) -> list[str]:
    # Pairs at run time; the type stubs take the pairs' class for one that can't be unpacked.
    pairs: Any = error.trailing_metadata() or ()
    return [str(key) for key, _ in pairs]


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
        for known in [known for known in _methods if known[0] == socket]:
            del _methods[known]
    if channel is not None:
        channel.close()


def _method(socket: str, method: str) -> Any:
    with _lock:
        if (socket, method) not in _methods:
            _methods[socket, method] = _found(_channel(socket), method)
        return _methods[socket, method]


def _channel(socket: str) -> grpc.Channel:
    if socket not in _channels:
        options = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 50)]
        _channels[socket] = grpc.insecure_channel(f"unix:{socket}", options=options)
    return _channels[socket]


def _found(channel: grpc.Channel, method: str) -> Any:
    for stub in _STUBS:
        found = getattr(stub(channel), method, None)
        if found is not None:
            return found
    raise AttributeError(f"no CSI method {method}")
