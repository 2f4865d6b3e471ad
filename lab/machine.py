"""The machine itself as the node, where it is root and has a usable device-mapper: disks are loop devices."""

import os
import subprocess
import sys
from pathlib import Path

from lab.node import REPOSITORY, Node


class MachineNode(Node):
    """Runs the agent as an ordinary process. A crash ends it and tears the disks off without flushing volumes in order."""

    kind = "machine"

    @staticmethod
    def why_not() -> str | None:
        """Why this machine can't be the node; None when it can."""
        if os.geteuid() != 0:
            return "not root"
        try:
            os.close(os.open("/dev/mapper/control", os.O_RDWR))
        except OSError as error:
            return f"no device-mapper ({error.strerror})"
        return None

    def boot(self) -> None:
        """See `Node.boot`."""
        self.disks = tuple(_output(["losetup", "--find", "--show", str(image)]) for image in self.images)
        self._agent = subprocess.Popen(
            [sys.executable, "-m", "lab.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            process_group=0,
        )
        assert self._agent.stdout is not None
        assert self._agent.stdin is not None
        self._await_agent(self._agent.stdout, self._agent.stdin)

    def stop(self) -> None:
        """See `Node.stop`."""
        self.crash()

    def crash(self) -> None:
        """See `Node.crash`; as near as a running kernel allows: mounts and volumes of these disks are torn away."""
        if self._channel is None:
            return
        self._channel = None
        self._agent.kill()
        self._agent.wait()
        for disk in self.disks:
            for holder in Path(f"/sys/block/{Path(disk).name}/holders").iterdir():
                subprocess.run(["dmsetup", "remove", "--force", "--retry", f"/dev/{holder.name}"], check=False)
            subprocess.run(["losetup", "--detach", disk], check=False)


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
