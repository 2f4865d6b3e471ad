"""A guest on a made-up chip, from the kernel's files to the broker's answer: who is let in, and each way to cheat refused.

The kernel's files are the lab's stand-in of configfs-tsm and /dev/tdx_guest; the broker trusts the test's authorities.
"""

import dataclasses
import datetime as dt
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi.broker.collateral import CollateralFolder
from csi.broker.main import main
from csi.broker.verifiers.intel_chain import IntelRoot
from csi.broker.verifiers.known import known_verifiers
from csi.broker.verifiers.snp_chain import Roots
from csi.core.errors import NotReleased, Refused, SealedLocalError
from csi.guest import verbs
from csi.guest.attest.platform import Platform
from csi.guest.status import Notes
from csi.guest.verbs import Guest, Wanted
from csi.kbs import init_data
from tests.fakes import amd, intel
from tests.fakes.broker import RunningBroker, running_broker
from tests.fakes.tee import digest, needs_fuse, tee

pytestmark = needs_fuse

CHIP = amd.Platform()
MEASUREMENT = "56" * 48
TD = {name: intel.td_report()[48 + at : 96 + at].hex() for name, at in intel.FIELDS.items() if name.startswith("rtmr")}
MRTD = intel.td_report()[48 + 136 : 96 + 136].hex()
POLICY = """
version = 1
[tee.sample]
allow = true
[tee.snp.minimum_tcb.genoa]
bootloader = {tcb.bootloader}
tee = {tcb.tee}
snp = {tcb.snp}
microcode = {tcb.microcode}
[[image]]
name = "snp"
tee = "snp"
measurement = ["{measurement}"]
[[image]]
name = "tdx"
tee = "tdx"
mrtd = ["{mrtd}"]
rtmr0 = ["{rtmr0}"]
rtmr1 = ["{rtmr1}"]
rtmr2 = ["{rtmr2}"]
[[workload]]
name = "spark"
tee = ["tdx", "snp"]
images = ["snp", "tdx"]
init_data = ["{digest}"]
volumes = ["pvc-*"]
"""
OLD = dataclasses.replace(amd.TCB, snp=amd.TCB.snp - 1)


def guest_policy(broker: RunningBroker, note: str = "") -> str:
    """The init-data of a guest of this broker. It allows the sample TEE, which a guest in a TEE must not use."""
    inner = f'version = 1\n[broker]\nurl = "{broker.url}"\nallow_sample = true\n'
    inner += f"ca = '''{broker.directory.certificate('ca').read_text()}'''\n"
    inner += '[[volume]]\nname = "data"\nid_pattern = "pvc-.*"\nmount = "/data"\n'
    return f'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"note" = "{note}"\n"sealed-local.toml" = """{inner}"""\n'


@dataclasses.dataclass
class World:
    """A broker, and guests that are started one after the other."""

    broker: RunningBroker
    folder: Path
    stack: ExitStack
    started: int = 0
    others: dict[str, bytes] = dataclasses.field(default_factory=dict)

    @property
    def measured(self) -> str:
        return guest_policy(self.broker)

    def trust(self, **collateral: Any) -> None:
        """Import collateral as an operator would, and verify as of the time that the made-up platforms are from."""
        root = self.folder / "intel.pem"
        root.write_text(intel.pem(intel.root()))
        given = self.folder / "collateral.json"
        given.write_text(intel.collateral_json(now=dt.datetime.now(dt.UTC), **collateral))
        command = ["collateral", "import", str(given), "--dir", str(self.broker.directory.root)]
        assert main(command) == 1
        assert main([*command, "--tdx-test-authority", str(root)]) == 0
        folder = CollateralFolder(
            self.broker.directory.collateral.root,
            roots=Roots.of_tests(CHIP.authorities()),
            intel=IntelRoot.of_tests(root.read_bytes()),
        )
        self.broker.broker.verifiers = known_verifiers(folder)

    def start(self, kind: str, init_data_text: str | None = None, **changes: Any) -> Path:
        """Boot a guest; answers the root of its files."""
        text = self.measured if init_data_text is None else init_data_text
        self.started += 1
        meddled = {"meddled": changes.pop("meddled", False)}
        if kind == "snp":
            platform = changes.pop("platform", CHIP)
            chip = platform.chip(**({"at_0xc0": digest(text, 32)} | changes))
        else:
            chip = intel.chip(**({"mrconfigid": digest(text, 48)} | changes))
        return self.stack.enter_context(tee(self.folder / f"guest{self.started}", chip | meddled))

    def opens(self, root: Path, policy: str | None = None) -> bytes:
        """What the guest's program gets: a key derived from the volume's secret."""
        path, target = root / "initdata.toml", root / "key"
        path.write_text(self.measured if policy is None else policy)
        machine: Any = None
        wanted = Wanted(policy=str(path), volume="pvc-1", volume_id=None, device=None, wait_seconds=0)
        verbs.recover_key(Guest(machine=machine, notes=Notes(), root=root), wanted, str(target), lambda _: None)
        return target.read_bytes()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("csi.core.process.harden", lambda: None)
    with running_broker(tmp_path / "broker") as broker, ExitStack() as stack:
        made = World(broker, tmp_path, stack)
        text = POLICY.format(
            tcb=amd.TCB, measurement=MEASUREMENT, mrtd=MRTD, digest=init_data.parse(made.measured).digest, **TD
        )
        broker.directory.policy.write_text(text)
        broker.broker.policy = broker.directory.load_policy()
        made.trust()
        yield made


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_the_right_guest_gets_its_key_again_and_again_by_its_tee_and_not_as_sample(world: World, kind: str) -> None:
    assert world.opens(world.start(kind)) == world.opens(world.start(kind))
    noted = [entry.event for entry in world.broker.broker.store.audit_entries()]
    assert [event.subject for event in noted if event.action == "attested"] == [kind, kind]


CHEATS = [
    ("tdx", {"rtmr0": b"\x01" * 48}, NotReleased, "image 'tdx': rtmr0 does not list 0101"),
    ("tdx", {"rtmr2": b"\x01" * 48}, NotReleased, "image 'tdx': rtmr2 does not list 0101"),
    ("tdx", {"attributes": b"\x01"}, NotReleased, "the TD is in debug mode"),
    ("tdx", {"init_data_text": "other"}, Refused, "not the one that this guest was started with: MRCONFIGID holds"),
    ("snp", {"at_0x90": b"\x57" * 48}, NotReleased, "image 'snp': measurement does not list 5757"),
    ("snp", {"at_0x8": 0x30000 | 1 << 19}, NotReleased, "debug is not allowed"),
    ("snp", {"platform": amd.Platform(certified_tcb=OLD)}, NotReleased, "has snp 21, not 22"),
    ("snp", {"init_data_text": "other"}, Refused, "not the one that this guest was started with: HOSTDATA holds"),
    ("tdx", {"meddled": True}, Refused, "has generation 2, not 1: another process of this guest wrote"),
    ("snp", {"meddled": True}, Refused, "has generation 2, not 1: another process of this guest wrote"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "error", "said"), CHEATS)
def test_each_way_to_cheat_is_refused_with_its_own_text(
    world: World, kind: str, changes: dict[str, Any], error: type[SealedLocalError], said: str
) -> None:
    world.opens(world.start(kind))
    if changes.get("init_data_text") == "other":
        changes = {"init_data_text": guest_policy(world.broker, note="other")}
    root = world.start(kind, **changes)
    with pytest.raises(error) as refused:
        world.opens(root)
    assert said in str(refused.value)
    assert not (root / "key").exists()


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_guest_that_was_started_with_another_policy_is_refused_by_the_broker(world: World, kind: str) -> None:
    other = guest_policy(world.broker, note="other")
    with pytest.raises(NotReleased, match="init_data does not list sha384:"):
        world.opens(world.start(kind, other), other)


def test_an_old_tcb_of_tdx_is_refused_by_its_status(world: World) -> None:
    world.trust(status="OutOfDate")
    with pytest.raises(NotReleased, match=r"\[tee.tdx\] tcb_status does not list OutOfDate"):
        world.opens(world.start("tdx"))


def test_a_host_that_makes_a_quote_with_another_mrconfigid_gets_nothing(world: World) -> None:
    """The TD knows its own register by the kernel's file of Linux 6.16; the quote is what the host says."""
    root = world.start("tdx", mrconfigid=bytes(48))
    measurements = root / "sys/devices/virtual/misc/tdx_guest/measurements"
    measurements.mkdir(parents=True)
    (measurements / "mrconfigid").write_bytes(digest(world.measured, 48))
    with pytest.raises(NotReleased, match="MRCONFIGID does not carry the digest of the init-data"):
        world.opens(root)


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_policy_that_is_no_init_data_is_not_obeyed_in_a_tee(world: World, kind: str) -> None:
    plain = init_data.parse(world.measured).files["sealed-local.toml"]
    with pytest.raises(Refused, match=r"the policy is no init-data, so .* can't vouch for it"):
        world.opens(world.start(kind), plain)


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_policy_with_one_more_byte_is_not_obeyed(world: World, kind: str) -> None:
    with pytest.raises(Refused, match="not the one that this guest was started with"):
        world.opens(world.start(kind), world.measured + "\n")


def test_without_the_development_option_nobody_trusts_these_chips(world: World) -> None:
    world.broker.broker.verifiers = known_verifiers(world.broker.directory.collateral)
    with pytest.raises(NotReleased, match="not signed by an authority of AMD's"):
        world.opens(world.start("snp"))
    with pytest.raises(NotReleased, match=r"malformed TDX evidence: .*the last certificate is not Intel's root"):
        world.opens(world.start("tdx"))


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_a_test_authority_proves_no_more_than_the_sample_tee(world: World, kind: str) -> None:
    policy = world.broker.broker.policy
    world.broker.broker.policy = dataclasses.replace(policy, allow_sample=False)
    with pytest.raises(NotReleased, match=r"\[tee.sample\] allow = false: evidence of a test authority"):
        world.opens(world.start(kind))


@pytest.mark.parametrize(("kind", "found"), [("tdx", "tdx"), ("snp", "snp")])
def test_the_driver_says_which_tee_it_is(world: World, kind: str, found: str) -> None:
    assert Platform(root=world.start(kind)).tee() == found
