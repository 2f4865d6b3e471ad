"""What a guest makes of its TEE's answers and of the host's: certificates, a report's members, the agent's evidence."""

import base64
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from csi.broker.claims import SnpProduct
from csi.broker.verifiers.snp_chain import common_name, load_der
from csi.broker.verifiers.snp_upstream import UpstreamReport, report_bytes
from csi.core.errors import InvalidInput, Refused, Unavailable
from csi.guest.attest import agent, snp, tdx
from csi.guest.attest.agent import AgentAttester
from csi.guest.attest.attester import SampleAttester
from csi.guest.attest.platform import Platform
from csi.guest.attest.snp_members import of_report
from csi.guest.attest.tsm import Tsm
from csi.guest.broker_settings import BrokerSettings
from csi.kbs.messages import Tee
from tests.fakes import amd
from tests.fakes.broker import INIT_DATA
from tests.fakes.tee import digest

REPORT = (Path(__file__).parents[1] / "data/attestation/snp-milan-v2.bin").read_bytes()[:1184]
DATA = bytes(range(48))


def settings(**changes: Any) -> BrokerSettings:
    return BrokerSettings(
        **({"url": "https://b", "ca_pem": "", "init_data": INIT_DATA, "allow_sample": False} | changes)
    )


# SEV-SNP's report and certificates


@pytest.mark.parametrize("product", SnpProduct)
@pytest.mark.parametrize("version", [2, 3, 5])
def test_a_report_s_members_are_the_ones_that_upstream_verifiers_put_together_again(
    product: SnpProduct, version: int
) -> None:
    if (product, version) == (SnpProduct.TURIN, 2):
        return  # There is no such report: Turin's firmware began with version 3.
    report = amd.Platform(product=product).report(version=version, at_0x1e8=bytes((7, 55, 1, 0, 8, 56, 1, 0)))
    members = msgspec.json.encode(of_report(report))
    assert report_bytes(msgspec.json.decode(members, type=UpstreamReport)) == report


def test_the_members_of_a_real_report_give_its_bytes() -> None:
    members = msgspec.json.encode(of_report(REPORT))
    assert report_bytes(msgspec.json.decode(members, type=UpstreamReport)) == REPORT


@pytest.mark.parametrize("length", [0, 1183, 1185])
def test_other_lengths_are_no_report(length: int) -> None:
    with pytest.raises(Refused, match=f"{length} bytes, not 1184"):
        of_report(bytes(length))


def test_the_host_s_table_gives_amd_s_certificates_and_leaves_out_others() -> None:
    ((name, der),) = snp.certificates(amd.Platform().table())
    assert (name, common_name(load_der(der, "VCEK").subject)) == ("VCEK", "SEV-VCEK")
    assert snp.certificates(b"") == []


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            amd.GUIDS[amd.SnpKey.VCEK] + struct.pack("<II", 48, 1) + bytes(24),
            "an entry of 1 bytes at 48 in a table of 48",
        ),
        (amd.GUIDS[amd.SnpKey.VCEK] + struct.pack("<II", 2**32 - 1, 2**32 - 1) + bytes(24), "in a table of 48"),
        (amd.GUIDS[amd.SnpKey.VCEK] + struct.pack("<II", 0, 24), "has no end"),
        (b"\x01", "has no end"),
    ],
)
def test_a_table_that_points_out_of_itself_is_refused(table: bytes, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        snp.certificates(table)


# Which TEE this is


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, None),
        ({"proc/cpuinfo": "processor : 0\nflags\t: fpu sse\n"}, None),
        ({"proc/cpuinfo": "processor : 0\nflags\t: fpu tdx_guest sse\nflags\t: fpu\n"}, Tee.TDX),
        ({"dev/tdx_guest": ""}, Tee.TDX),
        ({"dev/sev-guest": ""}, Tee.SNP),
        ({"sys/bus/platform/devices/sev-guest": ""}, Tee.SNP),
    ],
)
def test_a_container_knows_its_tee_without_configfs(tmp_path: Path, files: dict[str, str], found: Tee | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert Platform(root=tmp_path).tee() is found


def test_a_guest_in_a_tee_that_makes_no_evidence_does_not_fall_back_to_sample(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    platform = Platform(root=tmp_path)
    with pytest.raises(Refused, match=r"this is a guest of snp.*mount configfs .*attestation_agent = true"):
        platform.attester(settings(allow_sample=True))
    found = platform.attester(settings(allow_sample=True, attestation_agent=True))
    assert (type(found), found.tee) == (AgentAttester, "snp")


def test_without_a_tee_there_is_the_sample_where_it_is_allowed_and_nothing_else(tmp_path: Path) -> None:
    platform = Platform(root=tmp_path)
    with pytest.raises(Refused, match="sample TEE"):
        platform.attester(settings(attestation_agent=True))
    assert isinstance(platform.attester(settings(allow_sample=True)), SampleAttester)
    assert platform.attester(settings(allow_sample=True, attestation_agent=True)).tee == "sample"
    platform.require_measured(settings())


class PlainFolder(Tsm):
    """A `tsm/report` of another driver: entries have their files at once, as in configfs."""

    def provider(self) -> str | None:
        return "arm_cca_guest"


def test_a_tee_that_is_not_known_is_refused_and_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Platform, "tsm", property(lambda _: PlainFolder(folder=tmp_path)))
    with pytest.raises(Refused, match="TEE is arm_cca_guest, which this version can't use"):
        Platform(root=tmp_path).attester(settings(allow_sample=True))


# TDX's own register


def test_a_td_knows_mrconfigid_by_the_kernel_s_file(tmp_path: Path) -> None:
    measurements = tmp_path / "sys/devices/virtual/misc/tdx_guest/measurements"
    measurements.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tdx_guest").touch()
    platform = Platform(root=tmp_path)
    (measurements / "mrconfigid").write_bytes(digest(INIT_DATA, 48))
    platform.require_measured(settings())
    (measurements / "mrconfigid").write_bytes(digest(INIT_DATA, 48)[:-1] + b"\0")
    with pytest.raises(Refused, match="MRCONFIGID holds"):
        platform.require_measured(settings())
    (measurements / "mrconfigid").write_bytes(digest(INIT_DATA, 48)[:32])
    with pytest.raises(Refused, match="MRCONFIGID has 32 bytes, not 48"):
        platform.require_measured(settings())


def test_a_container_without_the_device_is_told_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"A container needs that device, or Linux 6.16"):
        tdx.configuration(tmp_path / "measurements", tmp_path / "tdx_guest")
    with pytest.raises(Unavailable, match="can't ask the TDX module"):
        tdx.configuration(tmp_path / "measurements", Path("/dev/null"))


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_policy_is_compared_by_its_whole_digest_cut_or_filled_to_the_register(tmp_path: Path, algorithm: str) -> None:
    text = INIT_DATA.replace("sha384", algorithm)
    measurements = tmp_path / "sys/devices/virtual/misc/tdx_guest/measurements"
    measurements.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tdx_guest").touch()
    for register, kept in ((digest(text, 48), True), (digest(text, 48)[:-1] + b"\x01", False), (bytes(48), False)):
        (measurements / "mrconfigid").write_bytes(register)
        if kept:
            Platform(root=tmp_path).require_measured(settings(init_data=text))
        else:
            with pytest.raises(Refused, match="not the one that this guest was started with"):
                Platform(root=tmp_path).require_measured(settings(init_data=text))


# The attestation-agent


class Agent:
    """A REST server like the agent's."""

    def __init__(self) -> None:
        self.status, self.asked = 200, list[bytes]()
        self.answer: Any = lambda data: {"svn": "1", "report_data": base64.b64encode(data).decode()}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                target = urlsplit(self.path)
                query = parse_qs(target.query)
                assert (target.path, query["encoding"]) == ("/aa/evidence", ["base64"])
                text = query["runtime_data"][0]
                outer.asked.append(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
                answer = outer.answer(outer.asked[-1])
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.server_address[1]

    def attester(self, tee: str) -> AgentAttester:
        return AgentAttester(tee=tee, timeout_seconds=5, address=self.address)


@pytest.fixture
def served() -> Iterator[Agent]:
    agent = Agent()
    thread = threading.Thread(target=agent.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield agent
    agent.server.shutdown()
    thread.join()
    agent.server.server_close()


def test_the_agent_is_asked_for_exactly_the_report_data(served: Agent) -> None:
    served.answer = lambda _: {"quote": "q", "cc_eventlog": None}
    assert served.attester("tdx").evidence(DATA) == {"quote": "q", "cc_eventlog": None}
    assert served.asked == [DATA]


@pytest.mark.parametrize("tee", ["tdx", "snp"])
def test_an_agent_that_falls_back_to_its_sample_is_refused(served: Agent, tee: str) -> None:
    with pytest.raises(Refused, match=f"made evidence of sample, and this guest's TEE is {tee}"):
        served.attester(tee).evidence(DATA)


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (500, b"no\x00 TEE", r"status 500: no\? TEE"),
        (200, b"[]", "can't be read"),
        (200, b"x", "can't be read"),
        (200, b" " * (1024 * 1024 + 1), "more than 1048576 bytes"),
    ],
)
def test_an_agent_that_answers_anything_else_is_unavailable(
    served: Agent, status: int, answer: bytes, said: str
) -> None:
    served.status, served.answer = status, lambda _: answer
    with pytest.raises(Unavailable, match=said):
        served.attester("tdx").evidence(DATA)


def test_no_agent_is_unavailable(served: Agent) -> None:
    served.server.socket.close()
    with pytest.raises(Unavailable, match="does not answer"):
        AgentAttester(tee="tdx", timeout_seconds=1, address=("127.0.0.1", 1)).evidence(DATA)


@pytest.mark.parametrize("kept", [True, False])
def test_a_container_compares_its_policy_with_the_agent_s_report(
    served: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    host_data = digest(INIT_DATA, 32) if kept else bytes(32)
    served.answer = lambda data: {
        "attestation_report": of_report(amd.Platform().report(at_0x50=data, at_0xc0=host_data))
    }
    monkeypatch.setattr(Platform, "attester", lambda *_: served.attester("snp"))
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    if kept:
        Platform(root=tmp_path).require_measured(settings())
    else:
        with pytest.raises(Refused, match="HOSTDATA holds 0000"):
            Platform(root=tmp_path).require_measured(settings())


@pytest.mark.parametrize("wrong", [{"attestation_report": {"host_data": [0] * 32, "report_data": [0] * 64}},
                                   {"attestation_report": {"host_data": [999], "report_data": [0]}},
                                   {"attestation_report": "x"}])  # fmt: skip
def test_a_report_over_other_data_says_nothing_of_this_guest(served: Agent, wrong: object) -> None:
    served.answer = lambda _: wrong
    with pytest.raises(Refused, match=r"not the report that was asked for|can't be read"):
        snp.configuration(served.attester("snp"))


def test_the_agent_s_place_is_the_one_that_guest_images_have() -> None:
    assert agent.ADDRESS == ("127.0.0.1", 8006)


@pytest.mark.parametrize(("kind", "asked"), [(0x81, False), (0x00, True)])
def test_a_td_report_over_other_data_or_of_another_kind_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, asked: bool
) -> None:
    def answer(_: int, __: int, request: bytearray) -> None:
        request[64] = kind
        request[64 + 128 : 64 + 192] = request[:64] if asked else bytes(64)

    monkeypatch.setattr(tdx.fcntl, "ioctl", answer)
    with pytest.raises(Refused, match="not the TD report that was asked for"):
        tdx.configuration(tmp_path / "measurements", Path("/dev/null"))
