"""The policy file is strict, and everything that it does not allow is denied with the rule's name."""

import dataclasses

import pytest

from csi.broker import appraise
from csi.broker import policy as broker_policy
from csi.broker.claims import SampleClaims
from csi.broker.first_policy import POLICY_TEXT
from csi.broker.release import Allocate, ReleasePolicy
from csi.core.errors import InvalidInput, NotReleased

DIGEST = "sha384:" + "ab" * 48
WORKLOAD = f"""
version = 1
tee.sample.allow = true
[[workload]]
name = "spark"
tee = ["sample"]
launch_digests = ["L"]
init_data = ["{DIGEST}"]
volumes = ["pvc-*", "regex:scratch-[0-9]+"]
resources = ["default/*/key-*", "regex:team/.*/a"]
"""
GUEST = SampleClaims(launch_digest="L", init_data=DIGEST, svn="1")


def test_the_policy_that_init_writes_denies_everything() -> None:
    policy = broker_policy.parse(POLICY_TEXT)
    assert policy == ReleasePolicy()
    with pytest.raises(NotReleased, match=r"\[tee.sample\] allow"):
        appraise.check_volume(policy, GUEST, "pvc-1")
    with pytest.raises(NotReleased, match=r"no \[\[workload\]\]"):
        appraise.check_volume(dataclasses.replace(policy, allow_sample=True), GUEST, "pvc-1")
    with pytest.raises(NotReleased, match="sample"):
        appraise.check_tee(policy, "sample")


def test_the_example_in_that_policy_is_valid() -> None:
    example = POLICY_TEXT[POLICY_TEXT.index("# [[workload]]") :].replace("\n# ", "\n").removeprefix("# ")
    policy = broker_policy.parse("version = 1\n" + example.replace("sha384:...", DIGEST))
    assert [work.name for work in policy.workloads] == ["spark"]


@pytest.mark.parametrize("volume", ["pvc-1", "pvc-", "scratch-12"])
def test_allowed_volumes(volume: str) -> None:
    assert appraise.check_volume(broker_policy.parse(WORKLOAD), GUEST, volume).name == "spark"


@pytest.mark.parametrize(
    "volume", ["PVC-1", "xpvc-1", "scratch-", "scratch-1x", "xscratch-1", "scratch-1\n", "default"]
)
def test_other_volumes_are_denied(volume: str) -> None:
    with pytest.raises(NotReleased, match="none of its patterns"):
        appraise.check_volume(broker_policy.parse(WORKLOAD), GUEST, volume)


@pytest.mark.parametrize("path", [("default", "x", "key-1"), ("team", "b", "a")])
def test_allowed_resources(path: tuple[str, str, str]) -> None:
    appraise.check_resource(broker_policy.parse(WORKLOAD), GUEST, path)


@pytest.mark.parametrize("path", [("default", "x", "y"), ("other", "x", "key-1"), ("team", "b", "c")])
def test_other_resources_are_denied(path: tuple[str, str, str]) -> None:
    with pytest.raises(NotReleased, match=f"resource {'/'.join(path)}"):
        appraise.check_resource(broker_policy.parse(WORKLOAD), GUEST, path)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"launch_digest": "M"}, "launch_digests does not list M"),
        ({"init_data": "sha384:" + "cd" * 48}, "init_data does not list sha384:cdcd"),
        ({"init_data": None}, "init_data does not list none"),
        ({"debug": True}, "debug"),
    ],
)
def test_a_denial_names_the_rule(change: dict[str, object], rule: str) -> None:
    with pytest.raises(NotReleased, match=f"workload 'spark': {rule}"):
        appraise.check_volume(broker_policy.parse(WORKLOAD), dataclasses.replace(GUEST, **change), "pvc-1")  # type: ignore[arg-type]


def test_sample_is_denied_even_where_a_workload_lists_it() -> None:
    policy = broker_policy.parse(WORKLOAD.replace("allow = true", "allow = false"))
    with pytest.raises(NotReleased, match=r"\[tee.sample\] allow"):
        appraise.check_volume(policy, GUEST, "pvc-1")


def test_a_guest_of_a_tee_that_proves_nothing_is_never_known() -> None:
    with pytest.raises(NotReleased, match="proves nothing"):
        appraise.check_known(broker_policy.parse(WORKLOAD), GUEST)


def test_any_has_to_be_written() -> None:
    policy = broker_policy.parse(WORKLOAD.replace('["L"]', '["any"]'))
    appraise.check_volume(policy, dataclasses.replace(GUEST, launch_digest="whatever"), "pvc-1")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "", "version"),
        ("version = 1", 'version = 1\nallocate = "always"', "allocate"),
        ("version = 1", "version = 1\nformat_deadline_seconds = 0", "format_deadline_seconds"),
        ("version = 1", "version = 1\nalow = true", "alow"),
        ("tee.sample.allow = true", "tee.sample.allowed = true", "sample"),
        ("tee.sample.allow = true", 'tee.sample.allow = "yes"', "allow"),
        ('init_data = ["' + DIGEST + '"]', "", r"workload\[0\].*init_data"),
        ('["' + DIGEST + '"]', "[]", r"workload\[0\].init_data"),
        (DIGEST, "sha384:abcd", r"workload\[0\].init_data"),
        (DIGEST, DIGEST.upper(), r"workload\[0\].init_data"),
        ('["sample"]', '["SAMPLE"]', r"workload\[0\].tee"),
        ('["sample"]', '"sample"', r"workload\[0\].tee"),
        ("regex:scratch-[0-9]+", "regex:(", r"workload\[0\].volumes"),
        ("default/*/key-*", "default/*", r"workload\[0\].resources"),
        ("pvc-*", "", r"workload\[0\].volumes"),
        ("version = 1", "version =", "TOML"),
        ("version = 1", "version = " + "9" * 5000, "TOML"),
        ("version = 1", "version = " + "[" * 5000, "nested too deeply"),
        ("version = 1", "version = 0x" + "f" * 5000, "version"),
        ("regex:scratch-[0-9]+", "regex:" + "(" * 5000, r"workload\[0\].volumes"),
        ("regex:scratch-[0-9]+", "regex:a{99999999999999999999}", r"workload\[0\].volumes"),
        ("regex:scratch-[0-9]+", "regex:a{" + "9" * 5000 + "}", r"workload\[0\].volumes"),
        ("regex:scratch-[0-9]+", "regex:(?u)scratch-.*", r"workload\[0\].volumes.*flags are incompatible"),
        ("regex:team/.*/a", "regex:(?u)team/.*/a", r"workload\[0\].resources.*flags are incompatible"),
    ],
)
def test_mistakes_in_the_file_are_refused_by_field(old: str, new: str, field: str) -> None:
    assert old in WORKLOAD
    with pytest.raises(InvalidInput, match=field):
        broker_policy.parse(WORKLOAD.replace(old, new, 1))


def test_no_pattern_is_compiled_while_a_guest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiles when the policy is read may not compile elsewhere, with less room on the stack for one thing."""
    policy = broker_policy.parse(WORKLOAD.replace("scratch", "waits").replace("key", "waits").replace("team", "waits"))
    monkeypatch.setattr("re.compile", None)
    appraise.check_volume(policy, GUEST, "waits-1")
    appraise.check_resource(policy, GUEST, ("default", "any", "waits-1"))
    appraise.check_resource(policy, GUEST, ("waits", "any", "a"))


def test_settings_of_the_file() -> None:
    policy = broker_policy.parse(
        'version = 1\nallocate = "never"\nformat_deadline_seconds = 60\ntee.sample.allow = true'
    )
    assert policy == ReleasePolicy(allow_sample=True, allocate=Allocate.NEVER, format_deadline_seconds=60)


def test_measurements_differ_where_any_claim_of_identity_differs() -> None:
    guests = [
        GUEST,
        dataclasses.replace(GUEST, launch_digest="M"),
        dataclasses.replace(GUEST, init_data=None),
        # Moving a character from one field to the next must not give the same digest.
        dataclasses.replace(GUEST, launch_digest="L" + DIGEST[0], init_data=DIGEST[1:]),
    ]
    assert len({guest.measurement for guest in guests}) == len(guests)
    assert dataclasses.replace(GUEST, svn="2").measurement == GUEST.measurement
