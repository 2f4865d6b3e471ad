"""The sealed side of the lab: a broker process in the node, and confidential guests with a measured policy."""

import base64
import itertools
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import guest_image, recipe_image
from lab.guest_image import GuestImage
from lab.kata import Rules
from lab.node import Node, Result

_CHIP = "/run/sealed-local/chip.json"
_PLAY_TEE = f"""
set -e
/usr/bin/python3 /run/sealed-local/python/tee.pyc {_CHIP} /sys/kernel/config
if [ -e /sys/kernel/config/tdx_guest ]; then
    : > /dev/tdx_guest
    mount --bind /sys/kernel/config/tdx_guest /dev/tdx_guest
fi
"""
_STOP_TEE = """
set -e
[ ! -e /sys/kernel/config/tdx_guest ] || umount /dev/tdx_guest
umount /sys/kernel/config
"""
_numbers = itertools.count(1)
BROKER_PORT = 8443
POLICY_PATH = "/run/sealed-local/initdata.toml"
KATA_INIT_DATA = "/run/confidential-containers/initdata/initdata.toml"
"""Where kata-agent writes the whole text that it found on the disk of init-data."""

_POLICY = """
version = 1
[broker]
url = "https://{host}:{port}"
ca = '''{ca}'''
allow_sample = true
[[volume]]
name = "data"
id_pattern = "pvc-[a-z0-9-]+"
mount = "/data/volume"
fstype = "ext4"
access = "{access}"
format = "once"
"""

_BROKER_POLICY = """
version = 1
allocate = "first-use"
format_deadline_seconds = 3600
lease_seconds = {lease_seconds}
[tee.sample]
allow = true
[[workload]]
name = "lab"
tee = ["sample"]
launch_digests = ["abcde"]
init_data = {digests}
volumes = ["pvc-*"]
"""


class Broker:
    """`sealed-local broker` as a process in the node; its folder outlives a restart, not the node."""

    def __init__(self, node: Node, port: int = BROKER_PORT) -> None:
        self.node = node
        self.port = port
        self.folder = f"/run/broker-{port}"
        self.log = f"{node.shared}/broker-{port}.log"
        self._command("init", self.folder, "--host", "10.0.2.2", "--host", "127.0.0.1")
        self.ca = node.read(f"{self.folder}/ca.pem").decode()
        self._pid = 0

    def allow(self, *init_data: str, lease_seconds: int = 60) -> None:
        """Write the policy that releases keys to guests with exactly these init-data texts."""
        digests = json.dumps([self.digest(text) for text in init_data])
        policy = _BROKER_POLICY.format(digests=digests, lease_seconds=lease_seconds)
        self.node.write(f"{self.folder}/policy.toml", policy.encode())

    def collateral(self, content: str, authority: str) -> None:
        """Import Intel's collateral below a test authority."""
        path = f"{self.folder}/collateral.json"
        self.node.write(path, content.encode())
        self._command("collateral", "import", path, "--dir", self.folder, "--tdx-test-authority", authority)

    def digest(self, text: str) -> str:
        """The digest of an init-data text, as the policy has it."""
        path = f"{self.folder}/initdata.toml"
        self.node.write(path, text.encode())
        return self._command("init-data", path).text.split()[0]

    def start(self, *options: str) -> None:
        """Serve."""
        listen = f"127.0.0.1:{self.port}"
        argv = [sys.executable, "-m", "csi", "broker", "serve", self.folder, "--listen", listen, *options]
        self._pid = self.node.spawn(argv, self.log)
        self.node.call("lab.sealed:wait_for_port", port=self.port)

    def stop(self) -> None:
        """End it in order."""
        self.node.kill(self._pid, signal.SIGTERM)
        self.node.wait(self._pid)

    def record(self, volume_id: str) -> dict[str, Any]:
        """What the register knows of a volume."""
        return dict(json.loads(self._command("volume", "show", volume_id, "--dir", self.folder).text))

    def operate(self, *words: str, check: bool = True) -> Result:
        """Any of the operator's commands: `volume accept ...`, `backup FILE`, `restore FILE`."""
        return self._command(*words, "--dir", self.folder, check=check)

    def end_lease(self, volume_id: str) -> None:
        """Vouch that the guest is dead that has the volume open."""
        self._command("volume", "end-lease", volume_id, "--reason", "killed", "--yes", "--dir", self.folder)

    def shred(self, volume_id: str) -> None:
        """Destroy a volume's secret."""
        self._command("volume", "retire", volume_id, "--dir", self.folder)
        self._command("volume", "shred", volume_id, "--dir", self.folder, "--yes")

    def audit(self) -> list[dict[str, Any]]:
        """The audit log."""
        return [json.loads(line) for line in self._command("audit", "--dir", self.folder).text.splitlines()]

    def _command(self, *arguments: str, check: bool = True) -> Result:
        return self.node.run([sys.executable, "-m", "csi", "broker", *arguments], check=check)


def init_data(broker: Broker, *, access: str = "rw", note: str = "", host: str = "10.0.2.2") -> str:
    """The measured init-data of a guest. Another `note` makes another measurement; `host` is where it finds the broker."""
    policy = _POLICY.format(host=host, port=broker.port, ca=broker.ca, access=access)
    return f'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"note" = "{note}"\n"sealed-local.toml" = """{policy}"""\n'


class Guest:
    """A confidential guest VM in the node, with its init-data as part of what is measured."""

    def __init__(
        self, node: Node, measured: str, *, memory_mib: int = 384, chip: Mapping[str, object] | None = None
    ) -> None:
        self.node = node
        self.name = f"guest{next(_numbers)}"
        self.log = f"{node.shared}/{self.name}.log"
        self._measured = measured
        self._chip = chip
        self._memory = memory_mib
        self.boot_seconds = 0.0

    def boot(self) -> "Guest":
        """Start it; returns when its agent answers."""
        files = guest_image.own_code() | {"extra/initdata.toml": self._measured.encode()}
        if self._chip is not None:
            files["extra/chip.json"] = json.dumps(self._chip).encode()
        self._start(guest_image.build(), guest_image.archive(files))
        if self._chip is not None:
            self.run(["/bin/sh", "-c", _PLAY_TEE])
        return self

    def become(self, measured: str, chip: Mapping[str, object]) -> None:
        """As if the host had started it with this init-data on this chip: what its program finds is the same, and an
        emulated machine takes half a minute to boot.
        """
        self.run(["/bin/sh", "-c", _STOP_TEE])
        self.write(POLICY_PATH, measured.encode())
        self.write(_CHIP, json.dumps(chip).encode())
        self.run(["/bin/sh", "-c", _PLAY_TEE])

    def boot_recipe(self) -> "Guest":
        """Start it from the image of deploy/guest-image instead; the init-data lies where kata-agent puts it."""
        busybox = f"{recipe_image.PLAYED[1:]}/busybox"
        self._start(recipe_image.build(), guest_image.archive(recipe_image.played(), frozenset({busybox})))
        self.run(["/bin/mkdir", "-p", str(Path(KATA_INIT_DATA).parent)])
        self.write(KATA_INIT_DATA, self._measured.encode())
        return self

    def _start(self, image: GuestImage, archive: bytes) -> None:
        extra = self.node.shared / f"{self.name}.cpio"
        extra.write_bytes(archive)
        self.boot_seconds = self.node.call(
            "lab.vm:start",
            name=self.name,
            image={key: str(value) if value is not None else None for key, value in asdict(image).items()},
            extra=str(extra),
            memory_mib=self._memory,
            log=self.log,
        )

    def hand_over(self, target_path: str, rules: Rules = Rules.RS, driver: str = "virtio-scsi") -> dict[str, Any]:
        """Kata's part: read the record, plug the device, build the Storage."""
        return dict(
            self.node.call(
                "lab.kata:hand_over", guest=self.name, target_path=target_path, rules=rules.value, driver=driver
            )
        )

    def plug(self, device: str) -> str:
        """Plug any device of the node, as a hostile host may; returns the guest's device node."""
        address = self.node.call(
            "lab.vm:plug", name=self.name, device=device, driver="virtio-scsi", read_only=False, serial=""
        )
        return str(self.call("find_device", **address))

    def run(self, argv: Sequence[str], *, check: bool = True, timeout: float = 240) -> Result:
        """Run a command in the guest."""
        reply = self.call("run", argv=list(argv), timeout=timeout)
        result = Result(
            rc=reply["rc"], stdout=base64.b64decode(reply["stdout"]), stderr=base64.b64decode(reply["stderr"])
        )
        if check and result.rc != 0:
            raise AssertionError(f"in the guest: {' '.join(argv)}: status {result.rc}: {result.stderr.decode()}")
        return result

    def sealed_local(self, *arguments: str, check: bool = True) -> Result:
        """`sealed-local guest ...` in the guest."""
        return self.run(["/usr/bin/python3", "-m", "csi", "guest", *arguments], check=check)

    def open(self, volume_id: str, device: str | None = None, *options: str, check: bool = True) -> Result:
        """Unlock and mount a volume at /data/volume."""
        where = ["--device", device] if device is not None else []
        words = ("--policy", POLICY_PATH, "--volume", volume_id, *where, *options)
        return self.sealed_local("open", *words, "--json", check=check)

    def write(self, path: str, content: bytes) -> None:
        """Write a file in the guest and flush it."""
        self.call("write_file", path=path, content=base64.b64encode(content).decode())

    def read(self, path: str) -> bytes:
        """Bytes of a file in the guest."""
        return base64.b64decode(self.call("read_file", path=path))

    def freeze(self, *, clock_stops: bool) -> None:
        """Stop it as a host can, its clock with it or not."""
        self.node.call("lab.vm:freeze", name=self.name, clock_stops=clock_stops)

    def thaw(self) -> None:
        """Let it go on."""
        self.node.call("lab.vm:thaw", name=self.name)

    def kill(self) -> None:
        """Sudden death."""
        self.node.call("lab.vm:kill", name=self.name)

    def call(self, function: str, *, timeout: float = 240, **arguments: Any) -> Any:
        """A function of the agent in the guest."""
        return self.node.call(
            "lab.vm:call",
            call_timeout=timeout + 60,
            name=self.name,
            function=function,
            arguments={**arguments, **({"timeout": timeout} if function == "run" else {})},
            timeout=timeout + 30,
        )


def wait_for_port(port: int, seconds: float = 60) -> None:
    """Inside the node: wait until something listens on the port."""
    import socket
    import time

    give_up = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
        else:
            return
