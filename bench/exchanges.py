"""How many guests a broker serves: whole exchanges (TLS, /auth, /attest, a volume's `open`) by phase, at 1 and 64 clients.

The broker runs on one core, the clients on the others. What counts is the broker's own processor time, so a busy machine
changes the seconds that clients wait more than the cost. Evidence is of SEV-SNP, by a chip that the bench plays: its report
and certificates are verified as a real one's are.
"""

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.lines import Line
from csi.kbs import init_data, jwk, strict_json
from csi.kbs import messages as kbs
from tests.fakes import amd

_SESSIONS = 64
_ROUNDS = 5
_VERIFICATIONS = 200
_TARGET_MS = 5.0
"""200 exchanges a second."""
_INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"note" = "bench"\n'
_OPEN = b'{"profile":"xts","used_as":{"namespace":null,"claim":null}}'
_POLICY = f"""
version = 1
[tee.sample]
allow = true
[tee.snp.minimum_tcb.genoa]
bootloader = 0
tee = 0
snp = 0
microcode = 0
[[image]]
name = "bench"
tee = "snp"
measurement = ["{"56" * 48}"]
[[workload]]
name = "bench"
tee = ["snp"]
images = ["bench"]
init_data = ["{init_data.parse(_INIT_DATA).digest}"]
volumes = ["pvc-*"]
"""
PHASES = ("TLS", "auth", "attest", "open")


@dataclass(slots=True, kw_only=True)
class _Client:
    """One guest: its key and evidence are ready, so that what is timed is the broker."""

    number: int
    port: int
    tls: ssl.SSLContext
    platform: amd.Platform
    chip_certificate: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    connection: http.client.HTTPSConnection | None = None
    cookie: str = ""
    evidence: bytes = b""

    def do(self, phase: str) -> None:
        """One phase of an exchange; the one before must be done."""
        match phase:
            case "TLS":
                self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls)
                self.connection.connect()
            case "auth":
                answer = self._post("/auth", b'{"version":"0.4.0","tee":"snp","extra-params":""}')
                self.evidence = self._evidence(json.loads(answer)["nonce"])
            case "attest":
                self._post("/attest", self.evidence)
            case _:
                self._post(f"/volumes/pvc-{self.number}/open", _OPEN)

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.close()
        self.cookie = ""

    def _post(self, path: str, body: bytes) -> bytes:
        assert self.connection is not None
        self.connection.request("POST", kbs.PREFIX + path, body, {"Cookie": self.cookie} if self.cookie else {})
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        self.cookie = (answer.headers["Set-Cookie"] or self.cookie).partition(";")[0]
        return content

    def _evidence(self, nonce: str) -> bytes:
        x, y = jwk.coordinates(self.key.public_key(), "P-256")
        runtime = kbs.RuntimeData(nonce=nonce, tee_pubkey=jwk.EcJwk(crv="P-256", alg="ECDH-ES+A256KW", x=x, y=y))
        host_data = bytes.fromhex(init_data.parse(_INIT_DATA).digest.partition(":")[2])[:32]
        report = self.platform.report(at_0x50=kbs.runtime_digest(runtime).ljust(64, b"\0"), at_0xc0=host_data)
        leaf = {"cert_type": "VCEK", "data": self.chip_certificate}
        primary = {"attestation_report": base64.b64encode(report).decode(), "cert_chain": [leaf]}
        return strict_json.encode(
            kbs.Attestation(
                init_data=kbs.InitData(format="toml", body=_INIT_DATA),
                runtime_data=runtime,
                tee_evidence=kbs.Evidence(primary_evidence=primary),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """Of one phase of one exchange, in seconds: what the broker's core worked, and what passed by the clock."""

    cpu: float
    wall: float


def run(note: Callable[[Line], None]) -> None:
    """Measure and note lines."""
    platform = amd.Platform()
    with tempfile.TemporaryDirectory() as folder, _serving(Path(folder), platform) as (port, pid, tls):
        given = {"port": port, "tls": tls, "platform": platform}
        leaf = base64.b64encode(amd.der(platform.leaf())).decode()
        clients = [_Client(number=n, chip_certificate=leaf, **given) for n in range(_SESSIONS)]
        _round(clients, 1, pid)  # The volumes are new in this one, and nothing is warm.
        for at_once in (1, _SESSIONS):
            rounds = [_round(clients, at_once, pid) for _ in range(_ROUNDS)]
            _tell(note, at_once, {phase: _median([one[phase] for one in rounds]) for phase in PHASES})


def _tell(note: Callable[[Line], None], at_once: int, costs: dict[str, _Cost]) -> None:
    cpu, wall = (sum(getattr(cost, name) for cost in costs.values()) for name in ("cpu", "wall"))
    who = f"{at_once} client{'s' if at_once > 1 else ''}"
    what = f"broker: an exchange, {who}: {1 / cpu:.0f} a second of a core"
    note(Line(what=what, ours=cpu * 1000, baseline=None, unit="ms", target=_TARGET_MS))
    for phase, cost in costs.items():
        note(Line(what=f"  of which {phase}", ours=cost.cpu * 1000, baseline=None, unit="ms", target=None))
    what = f"  by the clock of this machine: {1 / wall:.0f} a second"
    note(Line(what=what, ours=wall * 1000, baseline=None, unit="ms", target=None))
    what = "  against one P-384 verification, which no report goes without"
    note(Line(what=what, ours=cpu * 1000, baseline=_verification() * 1000, unit="ms", target=None))


def _verification() -> float:
    """Processor seconds of one: what this machine is worth in this minute; it was twice as fast in other hours."""
    key, text = ec.generate_private_key(ec.SECP384R1()), bytes(672)
    signature, public = key.sign(text, ec.ECDSA(hashes.SHA384())), key.public_key()
    began = time.thread_time()
    for _ in range(_VERIFICATIONS):
        public.verify(signature, text, ec.ECDSA(hashes.SHA384()))
    return (time.thread_time() - began) / _VERIFICATIONS


def _median(costs: list[_Cost]) -> _Cost:
    return _Cost(cpu=statistics.median(cost.cpu for cost in costs), wall=statistics.median(cost.wall for cost in costs))


def _round(clients: list[_Client], at_once: int, pid: int) -> dict[str, _Cost]:
    """Every client makes one exchange, phase by phase; `at_once` of them at a time."""
    found = {}
    for phase in PHASES:
        before, began = _worked(pid), time.monotonic()
        threads = [threading.Thread(target=_in_turn, args=(clients[n::at_once], phase)) for n in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - began
        found[phase] = _Cost(cpu=(_worked(pid) - before) / len(clients), wall=wall / len(clients))
    for client in clients:
        client.close()
    return found


def _in_turn(clients: list[_Client], phase: str) -> None:
    for client in clients:
        client.do(phase)


def _worked(pid: int) -> float:
    """Processor seconds of all threads so far, to the nanosecond; the time in `stat` counts in hundredths."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


@contextlib.contextmanager
def _serving(root: Path, platform: amd.Platform) -> Iterator[tuple[int, int, ssl.SSLContext]]:
    broker = [sys.executable, "-m", "csi", "broker"]
    subprocess.run([*broker, "init", str(root / "broker")], check=True, stdout=subprocess.DEVNULL)
    (root / "broker/policy.toml").write_text(_POLICY)
    authority = root / "authority.pem"
    certificates = (platform.root(), platform.intermediate())
    authority.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))
    cores = sorted(os.sched_getaffinity(0))
    port = _free_port()
    argv = ["taskset", "-c", str(cores[0]), *broker, "serve", str(root / "broker"), "--listen", f"127.0.0.1:{port}"]
    argv += ["--log-level", "error", "--snp-test-authority", str(authority)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        os.sched_setaffinity(0, set(cores[1:]) or set(cores))
        try:
            _wait_for(port)
            yield port, process.pid, ssl.create_default_context(cadata=(root / "broker/ca.pem").read_text())
        finally:
            os.sched_setaffinity(0, set(cores))
            process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError("the broker does not listen")


if __name__ == "__main__":
    run(lambda line: print(line, flush=True))
