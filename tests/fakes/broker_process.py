"""A broker in a process of its own, which a test may kill."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from csi.broker.directory import BrokerDirectory
from csi.guest.broker_settings import BrokerSettings
from tests.fakes.broker import INIT_DATA


class BrokerProcess:
    """`sealed-local broker serve` on a port that stays the same."""

    def __init__(self, directory: BrokerDirectory) -> None:
        self.directory = directory
        self.log = directory.root.with_name(f"{directory.root.name}.log").open("ab")
        self.process = self._start(0)
        self.port = self._wait_for_port()

    def settings(self) -> BrokerSettings:
        return BrokerSettings(
            url=f"https://127.0.0.1:{self.port}",
            ca_pem=self.directory.certificate("ca").read_text(),
            init_data=INIT_DATA,
            allow_sample=True,
            timeout_seconds=10,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.process = self._start(self.port)

    def wait_until_it_listens(self) -> None:
        for _ in range(400):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(Path(self.log.name).read_text())

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    def close(self) -> None:
        self.kill()
        self.log.close()

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        argv = [
            sys.executable,
            "-m",
            "csi",
            "broker",
            "serve",
            str(self.directory.root),
            "--listen",
            f"127.0.0.1:{port}",
        ]
        return subprocess.Popen(argv, stderr=self.log, stdout=self.log)

    def _wait_for_port(self) -> int:
        for _ in range(400):
            text = Path(self.log.name).read_text()
            if '"address": "127.0.0.1:' in text:
                return int(text.partition('"address": "127.0.0.1:')[2].partition('"')[0])
            time.sleep(0.05)
        raise AssertionError(text)
