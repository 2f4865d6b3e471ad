"""A volume belongs to the workload that made it, or for which it was made; a pattern that fits is not enough."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi.broker.main import main
from csi.core.errors import Busy, NotReleased
from csi.core.sealed import Profile
from csi.guest.attest.kbs_client import BrokerRegister
from csi.kbs import init_data
from csi.kbs.claim_name import ClaimName
from csi.kbs.register import VolumeRecord
from tests.fakes.broker import (
    INIT_DATA,
    OTHER_INIT_DATA,
    POLICY,
    RunningBroker,
    leased,
    running_broker,
    without_lease,
)

TWO = (
    POLICY
    + f"""
[[workload]]
name = "web"
tee = ["sample"]
launch_digests = ["abcde"]
init_data = ["{init_data.parse(OTHER_INIT_DATA).digest}"]
volumes = ["pvc-*"]
"""
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path / "broker", TWO) as running:
        yield running


@pytest.fixture
def spark(broker: RunningBroker) -> BrokerRegister:
    return broker.guest()


@pytest.fixture
def web(broker: RunningBroker) -> BrokerRegister:
    return broker.guest(init_data=OTHER_INIT_DATA)


def owner(broker: RunningBroker, volume: str) -> str | None:
    found = broker.broker.store.stored(volume).owner
    return None if found is None else str(found)


def operate(broker: RunningBroker, *words: str) -> int:
    return main(["volume", *words, "--dir", str(broker.directory.root)])


def active(guest: BrokerRegister) -> VolumeRecord:
    record = leased(guest, guest.open("pvc-1", Profile.XTS)[0])
    record, _ = guest.begin_format(record, nonce="1e" * 32, payload_bytes=4096)
    return guest.commit_format(record, nonce="1e" * 32, header=b"header".ljust(16 << 20, b"\0"), payload_bytes=4096)


CALLS: dict[str, Callable[[BrokerRegister, VolumeRecord], object]] = {
    "lease": leased,
    "open": lambda guest, _: guest.open("pvc-1", Profile.XTS),
    "begin-format": lambda guest, record: guest.begin_format(record, nonce="0f" * 32, payload_bytes=4096),
    "commit-format": lambda guest, record: guest.commit_format(
        record, nonce="0f" * 32, header=b"header".ljust(16 << 20, b"\0"), payload_bytes=4096
    ),
    "begin-open": lambda guest, record: guest.begin_open(record, nonce="0f" * 32, generation=2),
    "commit-open": lambda guest, record: guest.commit_open(record, nonce="0f" * 32, generation=2),
}


def give_ticket(broker: RunningBroker, guest: BrokerRegister) -> None:
    """As if the answer to `open` had reached this guest: the owner is asked for besides."""
    guest.open("pvc-of-its-own", Profile.XTS)
    held = guest._held["pvc-of-its-own"]
    ticket = broker.broker.tickets.of(str(held.session).partition("=")[2], "pvc-1")
    guest._held["pvc-1"] = replace(held, ticket=ticket)
    guest.hold_lease("pvc-1", "0f" * 32)


@pytest.mark.parametrize("call", CALLS)
def test_no_call_of_another_workload_reaches_a_volume(
    broker: RunningBroker, spark: BrokerRegister, web: BrokerRegister, call: str
) -> None:
    record = active(spark)
    give_ticket(broker, web)
    with pytest.raises(NotReleased, match=r"belongs to another workload or claim.*hand-over pvc-1 --to web"):
        CALLS[call](web, record)
    assert broker.broker.store.volume("pvc-1") == record
    assert owner(broker, "pvc-1") == "spark"
    entry = broker.broker.store.audit_entries()[-1].event
    assert (entry.action, entry.subject, entry.actor.partition(" ")[2]) == ("denied", "pvc-1", "web")


def test_a_hand_over_moves_a_volume_and_whoever_was_at_work_starts_over(
    broker: RunningBroker, spark: BrokerRegister, web: BrokerRegister
) -> None:
    record = active(spark)
    held = spark._leases["pvc-1"]
    secret = spark.open("pvc-1", Profile.XTS)[1]
    assert operate(broker, "hand-over", "pvc-1", "--to", "web") == 0
    with pytest.raises(NotReleased, match="another workload or claim"):
        spark.begin_open(record, nonce="0f" * 32, generation=2)
    found, same = web.open("pvc-1", Profile.XTS)
    assert same == secret
    with pytest.raises(Busy, match="is open in another guest"):
        leased(web, found)
    record = leased(web, without_lease(broker, "pvc-1"))
    with pytest.raises(Busy, match="changed since it was read"):
        web.begin_open(found, nonce="0f" * 32, generation=2)
    web.begin_open(record, nonce="0f" * 32, generation=2)
    assert web._leases["pvc-1"] != held
    [entry] = [e.event for e in broker.broker.store.audit_entries() if e.event.action == "handed-over"]
    assert (entry.actor, entry.detail) == ("operator", "from=spark to=web")


def test_a_volume_is_allocated_for_a_workload(
    broker: RunningBroker, spark: BrokerRegister, web: BrokerRegister
) -> None:
    assert operate(broker, "allocate", "pvc-1", "--workload", "web") == 0
    assert operate(broker, "allocate", "pvc-1", "--workload", "web") == 0
    assert operate(broker, "allocate", "pvc-1", "--workload", "spark") == 1
    with pytest.raises(NotReleased, match="another workload or claim"):
        spark.open("pvc-1", Profile.XTS)
    web.open("pvc-1", Profile.XTS)


def test_a_volume_of_nobody_is_the_first_ones_that_opens_it(
    broker: RunningBroker, spark: BrokerRegister, web: BrokerRegister
) -> None:
    assert operate(broker, "allocate", "pvc-1") == 0
    assert owner(broker, "pvc-1") is None
    web.open("pvc-1", Profile.XTS)
    assert owner(broker, "pvc-1") == "web"
    with pytest.raises(NotReleased, match="another workload or claim"):
        spark.open("pvc-1", Profile.XTS)
    actions = [entry.event.action for entry in broker.broker.store.audit_entries()]
    assert actions == ["allocated", "attested", "claimed", "secret-released", "attested", "denied"]


def test_an_owner_that_is_not_in_the_policy_is_refused(
    broker: RunningBroker, spark: BrokerRegister, capsys: pytest.CaptureFixture[str]
) -> None:
    spark.open("pvc-1", Profile.XTS)
    for words in (("hand-over", "pvc-1", "--to", "wbe"), ("allocate", "pvc-2", "--workload", "wbe")):
        assert operate(broker, *words) == 1
        assert "'wbe' is not in the policy; there are: spark, web" in capsys.readouterr().err
    assert operate(broker, "hand-over", "pvc-2", "--to", "web") == 1
    assert owner(broker, "pvc-1") == "spark"


def measured(*rules: str) -> str:
    """The init-data of guests whose policy has a rule for each `NAMESPACE/CLAIM`."""
    tables = "".join(
        f'[[volume]]\nnamespace = "{namespace}"\n' + (f'claim = "{claim}"\n' if claim else "")
        for namespace, _, claim in (rule.partition("/") for rule in rules)
    )
    return f"version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"sealed-local.toml\" = '''\n{tables}'''\n"


def used_as(rule: str) -> ClaimName:
    namespace, _, claim = rule.partition("/")
    return ClaimName(namespace=namespace, claim=claim or None)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[RunningBroker]:
    """A broker with one workload, to which pods of every init-data belong."""
    with running_broker(tmp_path / "pods", POLICY.replace(init_data.parse(INIT_DATA).digest, "any")) as running:
        yield running


def test_a_volume_that_was_made_for_a_claim_is_no_other_claims_not_even_of_the_same_pod(pods: RunningBroker) -> None:
    pod = pods.guest(init_data=measured("team/data", "team/logs"))
    pod.open("pvc-1", Profile.XTS, used_as("team/data"))
    pod.open("pvc-2", Profile.XTS, used_as("team/logs"))
    for wrong in ("team/logs", "team"):
        with pytest.raises(NotReleased, match=r"another workload or claim|no rule of the guest's measured policy"):
            pod.open("pvc-1", Profile.XTS, used_as(wrong))
    with pytest.raises(NotReleased, match="another workload or claim"):
        pod.open("pvc-1", Profile.XTS)
    assert owner(pods, "pvc-1") == "spark (team/data)"
    pod.open("pvc-1", Profile.XTS, used_as("team/data"))


@pytest.mark.parametrize("rule", ["team/logs", "web/data", "team", "web"])
@pytest.mark.parametrize("call", [call for call in CALLS if call != "open"])
def test_no_change_by_a_guest_of_another_claim_reaches_a_volume(pods: RunningBroker, call: str, rule: str) -> None:
    mine, other = pods.guest(init_data=measured("team/data")), pods.guest(init_data=measured(rule))
    mine.open("pvc-1", Profile.XTS, used_as("team/data"))
    record = pods.broker.store.volume("pvc-1")
    give_ticket(pods, other)
    with pytest.raises(NotReleased, match="belongs to another workload or claim"):
        CALLS[call](other, record)
    assert pods.broker.store.volume("pvc-1") == record


def test_a_guest_has_only_the_names_that_its_measured_policy_gives(pods: RunningBroker) -> None:
    for text in (INIT_DATA, measured("web/data"), measured("team"), measured("team/data").replace("team", "TEAM")):
        with pytest.raises(NotReleased, match="no rule of the guest's measured policy"):
            pods.guest(init_data=text).open("pvc-1", Profile.XTS, used_as("team/data"))


def test_a_volume_is_allocated_for_a_claim_and_handed_over_to_another(
    pods: RunningBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pods.guest(init_data=measured("team/data")), pods.guest(init_data=measured("team/new"))
    names = ("--namespace", "team", "--claim", "data")
    assert operate(pods, "allocate", "pvc-1", *names) == 1
    assert operate(pods, "allocate", "pvc-1", "--workload", "spark", "--claim", "data") == 1
    assert operate(pods, "allocate", "pvc-1", "--workload", "spark", *names) == 0
    with pytest.raises(NotReleased, match="another workload or claim"):
        second.open("pvc-1", Profile.XTS, used_as("team/new"))
    first.open("pvc-1", Profile.XTS, used_as("team/data"))
    assert operate(pods, "hand-over", "pvc-1", "--to", "spark", "--namespace", "team", "--claim", "new") == 0
    assert "belongs to spark (team/new)" in capsys.readouterr().out
    second.open("pvc-1", Profile.XTS, used_as("team/new"))
    with pytest.raises(NotReleased, match="another workload or claim"):
        first.open("pvc-1", Profile.XTS, used_as("team/data"))


def test_an_owner_without_a_claim_has_the_volume_for_all_of_its_claims(pods: RunningBroker) -> None:
    assert operate(pods, "allocate", "pvc-1", "--workload", "spark", "--namespace", "team") == 0
    for rule in ("team/data", "team/logs", "team"):
        pods.guest(init_data=measured(rule)).open("pvc-1", Profile.XTS, used_as(rule))
    with pytest.raises(NotReleased, match="another workload or claim"):
        pods.guest(init_data=measured("web/data")).open("pvc-1", Profile.XTS, used_as("web/data"))
