"""What a worker does: one SecureMount by the measured policy, then looking after the volume until nobody mounts it.

The request is a hint in everything. Its mount point chooses among the rules of the policy, its device says where to look;
type, key, filesystem and options are the policy's, and whose device it is the authenticated head says.
"""

import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError

from csi.core.device_number import DeviceNumber
from csi.core.errors import (
    Busy,
    InvalidInput,
    LeaseLost,
    NotFound,
    NotReleased,
    Refused,
    SealedLocalError,
    Unavailable,
    Unsupported,
    Untrusted,
)  # fmt: skip
from csi.guest import verbs
from csi.guest.opened import Progress
from csi.guest.seal import state_record
from csi.guest.serve import answers, words
from csi.guest.serve.answers import Code
from csi.guest.serve.proto.secure_mount_pb2 import SecureMountRequest
from csi.guest.serve.watch import look_after
from csi.guest.verbs import Guest, Wanted

_BLOCK_DEVICE: Final = "block-device"
_CODES: Final[tuple[tuple[type[SealedLocalError], Code], ...]] = (
    (InvalidInput, Code.INVALID_ARGUMENT),
    (NotFound, Code.NOT_FOUND),
    (NotReleased, Code.PERMISSION_DENIED),
    (Untrusted, Code.DATA_LOSS),
    (Refused, Code.FAILED_PRECONDITION),
    (LeaseLost, Code.FAILED_PRECONDITION),
    (Unavailable, Code.UNAVAILABLE),
    (Busy, Code.UNAVAILABLE),
    (Unsupported, Code.UNIMPLEMENTED),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The work of `csi.guest.serve.nursery`."""

    guest: Guest
    policy: str
    """The policy's file. Where there is none, no volume is ours."""
    look_after: Callable[[Guest, str, Progress], None] = look_after

    def __call__(self, packet: bytes, front: socket.socket) -> None:
        """See `csi.guest.serve.nursery.Work`."""
        if packet.startswith(words.WATCH):
            self._watch(packet[len(words.WATCH) :].decode(), front)
            return
        try:
            volume_id = self._mounted(packet[len(words.MOUNT) :])
        except (SealedLocalError, OSError) as error:
            _told(str(error))
            _sent(front, words.ANSWER + answers.failure(_code(error), str(error)))
            return
        if volume_id is None:
            _sent(front, words.PASS_ON)
            return
        self._watch(volume_id, front, words.ANSWER + answers.done())

    def _mounted(self, asked: bytes) -> str | None:
        """The id of the volume, mounted where the request wants it; None when the request is not for one of the policy."""
        try:
            request = SecureMountRequest.FromString(asked)
        except DecodeError as error:
            raise InvalidInput("request", "is no SecureMountRequest") from error
        mount_point = request.mount_point.rstrip("/")
        if "\0" in mount_point:
            raise InvalidInput("mount_point", f"{mount_point!r} is no path")
        device = _device(self.guest, request)
        policy = verbs.measured_policy(self.guest, self.policy) if Path(self.policy).exists() else None
        rule = policy.mounted_at(mount_point) if policy is not None else None
        if rule is None:
            self._require_unsealed(device, mount_point)
            return None
        if device is None:
            raise NotFound(f"the request for {mount_point} names no block device that is here")
        wanted = Wanted(
            policy=self.policy,
            volume=rule.name,
            volume_id=None,
            device=device,
            wait_seconds=0.0,
            mount_point=mount_point,
            measured=policy,
        )
        return verbs.open_volume(self.guest, wanted, _progress()).volume_id

    def _require_unsealed(self, device: str | None, mount_point: str) -> None:
        """What stands behind would format the device. Raises `Refused` for one that shows a sealed volume."""
        if device is None:
            return
        try:
            slots = self.guest.machine.read_slots(device)
        except Refused:
            return  # too short for a head
        if any(map(state_record.may_be_one, slots)):
            raise Refused(
                f"{device} shows a sealed volume, and no rule of the policy ({self.policy}) mounts one at {mount_point}; a "
                "confidential-data-hub would format it, so the request is not passed on"
            )

    def _watch(self, volume_id: str, front: socket.socket, *more: bytes) -> None:
        for packet in (words.WATCH + volume_id.encode(), *more):
            _sent(front, packet)
        self.look_after(self.guest, volume_id, _told)
        _sent(front, words.DONE)


def _device(guest: Guest, request: SecureMountRequest) -> str | None:
    """The device that a confidential-data-hub would take, by either option; None where a request is for none.

    A device that can't be looked at is an error: what stands behind might find it, and would format it.
    """
    number = _number(request)
    if "devicePath" in request.options:
        return _at(guest, request.options["devicePath"], number)
    if number is None:
        if request.volume_type == _BLOCK_DEVICE:
            raise InvalidInput("request", f"is for a {_BLOCK_DEVICE} and names none: no deviceId, no devicePath")
        return None
    device = guest.machine.node_of(number)
    if device is None:
        raise NotFound(f"there is no block device {number}")
    return device


def _number(request: SecureMountRequest) -> DeviceNumber | None:
    try:
        return DeviceNumber.parse(request.options["deviceId"]) if "deviceId" in request.options else None
    except ValueError as error:
        raise InvalidInput("deviceId", str(error)) from error


def _at(guest: Guest, path: str, number: DeviceNumber | None) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidInput("devicePath", f"{path!r} is not an absolute path")
    device = guest.machine.wait_for(path, 0.0)
    if number is not None and guest.machine.number_of(device) != number:
        raise Refused(f"the request names two devices, deviceId {number} and devicePath {device}")
    return device


def _code(error: Exception) -> Code:
    return next((code for kind, code in _CODES if isinstance(error, kind)), Code.INTERNAL)


def _sent(front: socket.socket, packet: bytes) -> None:
    """Tell the front. It may be gone; an open volume is looked after all the same."""
    try:
        front.send(packet)
    except OSError:
        return


def _told(text: str) -> None:
    print(f"sealed-local guest serve: {text}", file=sys.stderr, flush=True)


def _progress() -> Progress:
    started = time.monotonic()
    return lambda text: _told(f"[{time.monotonic() - started:6.2f} s] {text}")
