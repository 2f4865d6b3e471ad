"""The guest VM, started inside the node: QEMU, hot-plug by QMP as Kata does it, and calls to the agent in the guest.

Guests are kept by name in the node agent's process; every function here takes and returns JSON.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from lab.node import Channel

_BOOT_SECONDS = 180.0
_guests: dict[str, "Guest"] = {}


class Qmp:
    """QEMU's monitor."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Carry out one command; events in between are skipped."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            reply = json.loads(self._lines.readline())
            if "error" in reply:
                raise RuntimeError(f"QMP {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]


class Guest:
    """One running guest."""

    def __init__(self, name: str, image: dict[str, str | None], extra: str, memory_mib: int, log: str) -> None:
        self.folder = Path(f"/tmp/guest-{name}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._plugged: dict[str, str] = {}
        initramfs = self.folder / "initramfs"
        initramfs.write_bytes(Path(str(image["initramfs"])).read_bytes() + Path(extra).read_bytes())
        self.started = time.monotonic()
        with Path(log).open("ab") as output:
            self.process = subprocess.Popen(
                self._argv(image, initramfs, memory_mib),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        self._connect()

    def _argv(self, image: dict[str, str | None], initramfs: Path, memory_mib: int) -> list[str]:
        # Emulated by QEMU 7.2, Linux 6.12 gets wrong registers from an interrupted CMPXCHG16B, so it is shown none.
        accel = (
            ["-accel", "kvm", "-cpu", "host"] if _kvm_works() else ["-accel", "tcg,thread=multi", "-cpu", "max,-cx16"]
        )
        return [
            "qemu-system-x86_64", *accel, "-machine", "pc,hpet=off", "-smp", "1", "-m", str(memory_mib),
            "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
            "-kernel", str(image["kernel"]), "-initrd", str(initramfs),
            "-append", "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on tsc=reliable",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off",
            *_root_disk(image.get("root")),
            "-device", "virtio-scsi-pci,id=scsi0,addr=5",
            "-device", "virtio-serial-pci,addr=6",
            "-chardev", f"socket,id=agent,path={self.folder}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=kata.agent",
            "-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile=,addr=3",
        ]  # fmt: skip

    def _connect(self) -> None:
        give_up = time.monotonic() + _BOOT_SECONDS
        port = socket.socket(socket.AF_UNIX)
        while True:
            try:
                port.connect(f"{self.folder}/agent")
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError("QEMU does not start; see its log") from None
                time.sleep(0.05)
        self.qmp = Qmp(f"{self.folder}/qmp")
        self._channel = Channel(port.makefile("rb"), port.makefile("wb"))
        self._channel.ready.result(_BOOT_SECONDS)
        self.boot_seconds = time.monotonic() - self.started

    def call(self, function: str, arguments: dict[str, Any], timeout: float) -> Any:
        """Carry out one of the guest agent's functions."""
        return self._channel.call(function, arguments, timeout)

    def plug(self, device: str, driver: str, read_only: bool, serial: str) -> dict[str, str]:
        """Hot-plug a host device as Kata does; returns driver and source as kata-agent's Storage names them."""
        number = len(self._plugged) + 1
        node = f"drive{number}"
        self.qmp.execute(
            "blockdev-add",
            **{
                "driver": "host_device",
                "node-name": node,
                "filename": device,
                "read-only": read_only,
                "aio": "threads",
            },
        )
        if driver == "virtio-scsi":
            address = {"driver": "scsi", "source": f"{number}:0"}
            extra: dict[str, Any] = {"driver": "scsi-hd", "bus": "scsi0.0", "scsi-id": number, "lun": 0}
        else:
            address = {"driver": "blk", "source": f"{16 + number:02x}"}
            extra = {"driver": "virtio-blk-pci", "addr": f"{16 + number:02x}"}
        self.qmp.execute("device_add", id=f"dev{number}", drive=node, serial=serial[:20], **{"share-rw": True}, **extra)
        self._plugged[device] = f"dev{number}"
        return address

    def freeze(self, *, clock_stops: bool) -> None:
        """Stop the guest: by the monitor, which stops its clock, too, or as a process, whose guest sees the time jump."""
        if clock_stops:
            self.qmp.execute("stop")
        else:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, however it was stopped."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.qmp.execute("cont")

    def kill(self) -> None:
        """The guest dies without a word."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def start(name: str, image: dict[str, str | None], extra: str, memory_mib: int, log: str) -> float:
    """Boot a guest with the archive `extra` appended to its initramfs; returns the seconds until its agent was there."""
    _guests[name] = Guest(name, image, extra, memory_mib, log)
    return _guests[name].boot_seconds


def call(name: str, function: str, arguments: dict[str, Any], timeout: float) -> Any:
    """Carry out a function of the agent in a guest."""
    return _guests[name].call(function, arguments, timeout)


def freeze(name: str, clock_stops: bool) -> None:
    """Stop a guest for a while."""
    _guests[name].freeze(clock_stops=clock_stops)


def thaw(name: str) -> None:
    """Let it go on."""
    _guests[name].thaw()


def plug(name: str, device: str, driver: str, read_only: bool, serial: str) -> dict[str, str]:
    """Hot-plug a device of the node into a guest."""
    return _guests[name].plug(device, driver, read_only, serial)


def kill(name: str) -> None:
    """End a guest at once."""
    guest = _guests.pop(name, None)
    if guest is not None:
        guest.kill()


def _root_disk(file: str | None) -> list[str]:
    if file is None:
        return []
    drive = f"driver=file,node-name=root,filename={file},read-only=on,locking=off"
    return ["-blockdev", drive, "-device", "virtio-blk-pci,drive=root,addr=4"]


def _kvm_works() -> bool:
    """KVM hangs on some nested machines, so it is used only where somebody says that it works."""
    return os.environ.get("SEALED_LOCAL_KVM") == "1" and os.access("/dev/kvm", os.R_OK | os.W_OK)
