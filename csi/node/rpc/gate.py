"""Before stage and publish: nothing is mounted where kubelet or Kata would not see it, nor shown to the host's udev."""

from collections.abc import Callable
from typing import Any, Final

import grpc

_MOUNTING: Final = frozenset({"/csi.v1.Node/NodeStageVolume", "/csi.v1.Node/NodePublishVolume"})


class Gate(grpc.ServerInterceptor):
    """`require` is told the volume id, and raises when such a call must not begin. Teardown is never held up."""

    def __init__(self, require: Callable[[str], None]) -> None:
        self._require = require

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """See `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None or handler_call_details.method not in _MOUNTING:
            return handler
        behavior = handler.unary_unary

        def guarded(request: Any, context: grpc.ServicerContext) -> Any:
            self._require(request.volume_id)
            return behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(guarded, handler.request_deserializer, handler.response_serializer)
