"""Around every RPC: log context, a request id, errors to gRPC codes by class, duration to metrics. One place for each.

CSI wants a message with every non-OK status and empty details; an unexpected exception's text never reaches the caller.
"""

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from csi.core import errors, log
from csi.node import caller
from csi.node.rpc.redact import for_log

_log = logging.getLogger(__name__)

_CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.Busy, grpc.StatusCode.ABORTED),
    (errors.Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.NoSpace, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.OutOfRange, grpc.StatusCode.OUT_OF_RANGE),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.DiskFailed, grpc.StatusCode.UNAVAILABLE),
    # Neither is a last word: the provisioner repeats the call, and so finds what the command did or did not do.
    (errors.CommandTimeout, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.CommandEnded, grpc.StatusCode.UNAVAILABLE),
    (errors.ToolFailed, grpc.StatusCode.INTERNAL),
)
_WHAT_TO_DO = "see this node's driver log; the call is safe to repeat"
_QUIET = frozenset(
    {
        "Probe",
        "NodeGetCapabilities",
        "ControllerGetCapabilities",
        "GetPluginInfo",
        "GetPluginCapabilities",
        "GetCapacity",
    }
)
_request_numbers = itertools.count(1)

Observe = Callable[[str, str, float], None]
"""Called with method name, status code name and seconds."""


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """The code by the error's class, inheritance included, and a text that says what to do."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            text = str(error)
            return code, f"{text} ({_WHAT_TO_DO})" if isinstance(error, errors.ToolFailed) else text
    if isinstance(error, OSError):
        return grpc.StatusCode.INTERNAL, f"{error.strerror or error} on {error.filename or 'this node'} ({_WHAT_TO_DO})"
    return grpc.StatusCode.INTERNAL, f"an unexpected error happened; {_WHAT_TO_DO}"


class Around(grpc.ServerInterceptor):
    """Wraps every unary call of the server."""

    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behavior = handler.unary_unary
        method = handler_call_details.method

        def wrapped(request: Message, context: grpc.ServicerContext) -> Any:
            return self._serve(behavior, method, request, context)

        return grpc.unary_unary_rpc_method_handler(wrapped, handler.request_deserializer, handler.response_serializer)

    def _serve(
        self, behavior: Callable[[Any, Any], Any], method: str, request: Message, context: grpc.ServicerContext
    ) -> Any:
        name = method.rsplit("/", 1)[-1]
        fields = {"request_id": str(next(_request_numbers)), "rpc": name}
        volume_id = getattr(request, "volume_id", "") or getattr(request, "name", "")
        if volume_id:
            fields["volume_id"] = volume_id
        started = time.monotonic()
        with log.context(**fields), caller.waiting(context.is_active), caller.ranked(_rank(name)):
            _log.log(_level(name), "request", extra={"request": for_log(request)})
            try:
                answer = behavior(request, context)
            except Exception as error:
                self._fail(error, method, started, context)
            self._observe(method, "OK", time.monotonic() - started)
            _log.log(_level(name), "answer", extra={"code": "OK", "ms": round((time.monotonic() - started) * 1000)})
            return answer

    def _fail(self, error: Exception, method: str, started: float, context: grpc.ServicerContext) -> None:
        if context.code() is not None:  # type: ignore[attr-defined]
            # A generated "not implemented" answer has set its code already and raises to leave.
            self._observe(method, context.code().name, time.monotonic() - started)  # type: ignore[attr-defined]
            raise error
        code, text = status_of(error)
        seconds = time.monotonic() - started
        self._observe(method, code.name, seconds)
        expected = isinstance(error, errors.SealedLocalError | OSError)
        _log.log(
            logging.WARNING if expected else logging.ERROR,
            "answer",
            exc_info=None if isinstance(error, errors.SealedLocalError) else error,
            extra={"code": code.name, "ms": round(seconds * 1000), "error": text},
        )
        context.abort(code, text)


def _rank(name: str) -> caller.Rank:
    if name.startswith("Node"):
        return caller.Rank.POD
    return caller.Rank.LAST if name == "DeleteVolume" else caller.Rank.CLAIM


def _level(name: str) -> int:
    return logging.DEBUG if name in _QUIET else logging.INFO
