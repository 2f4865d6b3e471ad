"""The guest's policy: what it allows, what it refuses by the name of the place, and what `--volume` and `--id` mean."""

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi.core.errors import InvalidInput
from csi.core.sealed import Profile
from csi.guest import command_line
from csi.guest import policy as guest_policy
from csi.guest.policy import FormatRule, GuestAccess, GuestPolicy

ROOT = Path(__file__).resolve().parents[2]
TEXT = """
version = 1

[broker]
url = "https://broker:8443"
ca = "pem"

[[volume]]
name = "data"
id = "pvc-1"
mount = "/data"

[[volume]]
name = "scratch"
id_pattern = "tmp-[0-9]+"
mount = "/scratch"
"""
LAST = 'mount = "/scratch"\n'


def parse(text: str = TEXT) -> GuestPolicy:
    return guest_policy.parse(text, "p.toml")


def with_volume(**changes: Any) -> GuestPolicy:
    """A policy of one rule with these values in TOML's own spelling."""
    values = {"name": '"data"', "id": '"pvc-1"', "mount": '"/data"'} | changes
    lines = "\n".join(f"{key} = {value}" for key, value in values.items() if value is not None)
    return parse(TEXT.partition("[[volume]]")[0] + f"[[volume]]\n{lines}\n")


def wrapped(policy: str) -> str:
    return f"version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"sealed-local.toml\" = '''{policy}'''\n"


def test_what_is_left_out_has_its_documented_default() -> None:
    policy = parse()
    (data, scratch) = policy.volumes
    assert (data.profile, data.fstype, data.access) == (Profile.XTS, "ext4", GuestAccess.READ_WRITE)
    assert (data.format, data.options, data.id, scratch.id) == (FormatRule.ONCE, (), "pvc-1", None)
    assert (policy.broker.allow_sample, policy.broker.timeout_seconds, policy.broker.init_data) == (False, 30.0, "")


def test_every_key_is_read() -> None:
    (rule,) = with_volume(
        profile='"xts"', fstype='"xfs"', access='"ro"', format='"never"', options='["noatime", "noexec"]'
    ).volumes
    assert (rule.fstype, rule.access, rule.format) == ("xfs", GuestAccess.READ_ONLY, FormatRule.NEVER)
    assert rule.options == ("noatime", "noexec")
    policy = parse(TEXT.replace('ca = "pem"', 'ca = "pem"\nallow_sample = true\ntimeout_seconds = 7'))
    assert (policy.broker.allow_sample, policy.broker.timeout_seconds) == (True, 7.0)


# What is wrong is named


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("version = 1", "", "`version`"),
        ("version = 1", "version = 2", "p.toml: version"),
        ("version = 1", "version = true", r"\$\.version"),
        ("version = 1", "version = 1\nbogus = 1", "bogus"),
        ("version = 1", "version = ", "p.toml: is not valid TOML"),
        ("version = 1", f"version = 1\nx = {'[' * 5000}", "p.toml: is not valid TOML"),
        ("version = 1", f"version = {'1' * 5000}", "p.toml: is not valid TOML"),
        ("version = 1", f"version = 0x{'f' * 5000}", "p.toml: version"),
        ('url = "https://broker:8443"', "", "`url`"),
        ("https://", "http://", "p.toml: broker.url"),
        ('ca = "pem"', "", "`ca`"),
        ('ca = "pem"', 'ca = "pem"\nca_file = "x"', "ca_file"),
        ('ca = "pem"', 'ca = "pem"\nallow_sample = 1', r"\$\.broker\.allow_sample"),
        ('ca = "pem"', 'ca = "pem"\ntimeout_seconds = 0', r"\$\.broker\.timeout_seconds"),
        ('ca = "pem"', 'ca = "pem"\ntimeout_seconds = 601', r"\$\.broker\.timeout_seconds"),
        ('ca = "pem"', 'ca = "pem"\ntimeout_seconds = nan', r"\$\.broker\.timeout_seconds"),
        ('name = "data"', "", "`name`"),
        ('name = "data"', 'name = "scratch"', "p.toml: volume: two volumes have the same name"),
        (LAST, "", "`mount`"),
        (LAST, LAST + 'device = "/dev/sdb"\n', "device"),
        (LAST, LAST + 'access = "rwo"\n', r"\$\.volume\[1\]\.access"),
        (LAST, LAST + 'format = "always"\n', r"\$\.volume\[1\]\.format"),
        (LAST, LAST + 'options = "noatime"\n', r"\$\.volume\[1\]\.options"),
        (LAST, LAST + 'options = ["suid"]\n', r"p\.toml: volume\[1\]\.options: 'suid'"),
        (LAST, LAST + 'options = ["rw,dev"]\n', r"p\.toml: volume\[1\]\.options: 'rw,dev'"),
        (LAST, LAST + 'fstype = "vfat"\n', r"p\.toml: volume\[1\]\.fstype: 'vfat'"),
        (LAST, LAST + 'profile = "none"\n', r"p\.toml: volume\[1\]\.profile: 'none'"),
        (LAST, LAST + 'profile = "xts-hmac"\n', r"p\.toml: volume\[1\]\.profile: 'xts-hmac' can't be opened by this"),
        (LAST, LAST + 'id = "both"\n', r"p\.toml: volume\[1\]\.id: give exactly one"),
        ('id = "pvc-1"', "", r"p\.toml: volume\[0\]\.id: give exactly one"),
        ('id = "pvc-1"', 'id = ""', r"p\.toml: volume\[0\]\.id: give exactly one"),
        ("tmp-[0-9]+", "tmp-[0-9+", r"p\.toml: volume\[1\]\.id_pattern"),
        ("tmp-[0-9]+", "t{99999999999}", r"p\.toml: volume\[1\]\.id_pattern"),
        ("tmp-[0-9]+", "(" * 5000 + ")" * 5000, r"p\.toml: volume\[1\]\.id_pattern"),
    ],
    ids=lambda text: text.strip()[:40],
)  # fmt: skip
def test_what_is_wrong_is_named(old: str, new: str, place: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(InvalidInput, match=place):
        parse(TEXT.replace(old, new))


@pytest.mark.parametrize(
    "mount", ["", "data", "./data", "/", "//", "/.", "/data/..", "/../data", "//data", "/data\\u0000"]
)
def test_a_mount_point_is_a_plain_absolute_path_below_the_root(mount: str) -> None:
    """The kernel lists mounts by plain paths: with another spelling, a mount that is there would not be seen."""
    with pytest.raises(InvalidInput, match=r"p\.toml: volume\[0\]\.mount"):
        with_volume(mount=f'"{mount}"')


@pytest.mark.parametrize(("written", "meant"), [("/data/", "/data"), ("/a//b", "/a/b"), ("/a/./b", "/a/b")])
def test_a_harmless_spelling_of_a_mount_point_is_made_plain(written: str, meant: str) -> None:
    assert with_volume(mount=f'"{written}"').volumes[0].mount == meant


# As part of the init-data


def test_a_policy_inside_init_data_is_sent_whole_to_the_broker() -> None:
    policy = parse(wrapped(TEXT))
    assert policy.volumes == parse().volumes
    assert policy.broker.init_data == wrapped(TEXT)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (wrapped(TEXT).replace("sealed-local.toml", "aa.toml"), "p.toml: data: the init-data has no entry"),
        (wrapped(TEXT).replace("sha384", "md5"), "p.toml.algorithm"),
        (wrapped("version = 1"), "p.toml: sealed-local.toml: .*`broker`"),
        (wrapped("version = "), "p.toml: sealed-local.toml: is not valid TOML"),
    ],
)
def test_the_place_inside_init_data_is_named(text: str, place: str) -> None:
    with pytest.raises(InvalidInput, match=place):
        parse(text)


# What --volume and --id mean


@pytest.mark.parametrize(
    ("volume", "volume_id", "rule", "meant"),
    [
        ("pvc-1", None, "data", "pvc-1"),
        ("data", None, "data", "pvc-1"),
        ("data", "pvc-1", "data", "pvc-1"),
        ("tmp-7", None, "scratch", "tmp-7"),
        ("scratch", "tmp-7", "scratch", "tmp-7"),
    ],
)
def test_a_volume_is_named_by_its_id_or_by_its_rule(volume: str, volume_id: str | None, rule: str, meant: str) -> None:
    found, named = parse().resolve(volume, volume_id)
    assert (found.name, named) == (rule, meant)


@pytest.mark.parametrize(
    ("volume", "volume_id", "said"),
    [
        ("pvc-2", None, "--volume: the measured policy allows no volume 'pvc-2'; nothing is opened"),
        ("scratch", None, "it is a rule's name, so say which volume by --id"),
        ("data", "pvc-2", "--id: the policy's rule 'data' does not allow volume 'pvc-2'"),
        ("data", "", "--id: the policy's rule 'data' does not allow volume ''"),
        ("scratch", "pvc-1", "--id: the policy's rule 'scratch' does not allow volume 'pvc-1'"),
        ("pvc-1", "pvc-1", "--volume: the policy names no volume 'pvc-1'; it names: data, scratch"),
        ("", None, "allows no volume ''"),
    ],
)
def test_what_no_rule_allows_is_refused(volume: str, volume_id: str | None, said: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        parse().resolve(volume, volume_id)


@pytest.mark.parametrize("volume", ["tmp-", "tmp-7x", "xtmp-7", "tmp-7\n", "TMP-7", "tmp-7/../pvc-1"])
def test_a_pattern_has_to_match_the_whole_id(volume: str) -> None:
    with pytest.raises(InvalidInput):
        parse().resolve(volume, None)


@given(st.text(max_size=12))
def test_a_fixed_id_is_no_pattern(volume: str) -> None:
    rule = with_volume(id="'pvc.1+(a)'").volumes[0]
    assert rule.allows(volume) == (volume == "pvc.1+(a)")


def test_the_first_rule_that_allows_a_volume_counts() -> None:
    policy = parse(TEXT.replace("tmp-[0-9]+", ".*"))
    assert policy.resolve("pvc-1", None)[0].name == "data"
    assert policy.resolve("pvc-2", None)[0].name == "scratch"


def test_a_policy_without_rules_allows_nothing() -> None:
    with pytest.raises(InvalidInput, match="it names: none"):
        parse('version = 1\nvolume = []\n[broker]\nurl = "https://b"\nca = "c"\n').resolve("data", "pvc-1")


# What the documentation shows


def examples() -> list[str]:
    """Every policy that the help and the documentation print."""
    help_text = command_line._EPILOG
    shown = help_text[help_text.index("  version = 1") : help_text.index("Exit status")]
    pages = [page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
    blocks = [block for page in pages for block in re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)]
    return [textwrap.dedent(shown), *(block for block in blocks if "[[volume]]" in block)]


@pytest.mark.parametrize("text", examples())
def test_an_example_is_a_policy(text: str) -> None:
    policy = parse(text)
    assert [volume.name for volume in policy.volumes]
    assert policy.broker.url.startswith("https://")


def test_the_examples_are_those_of_the_help_and_of_the_guests_page() -> None:
    assert len(examples()) >= 3


# A broker without a register


TRUSTEE = """
version = 1
[broker]
kind = "trustee"
root = "kbs:///default/sealed-local/root"
url = "https://kbs:8080"
ca = "pem"
[[volume]]
name = "data"
id = "pvc-1"
mount = "/data"
without_leases = true
"""


def test_a_broker_of_resources_needs_a_root_and_a_word_about_leases() -> None:
    policy = parse(TRUSTEE)
    assert policy.broker.root == "kbs:///default/sealed-local/root"
    assert parse().broker.root is None
    read_only = parse(TRUSTEE.replace("without_leases = true", 'access = "ro"'))
    assert read_only.volumes[0].access is GuestAccess.READ_ONLY


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ('root = "kbs:///default/sealed-local/root"\n', "", r"broker\.root: is missing"),
        ("kbs:///default/sealed-local/root", "kbs:///default/root", r"broker\.root: .* three are needed"),
        ("kbs:///default/sealed-local/root", "default/sealed-local/root", r"broker\.root: .* is not kbs:///"),
        ('"trustee"', '"kbs"', "broker.kind"),
        ('kind = "trustee"\n', "", r"broker\.root: goes with kind = 'trustee' only"),
        ("without_leases = true\n", "", r"volume\[0\]\.without_leases: .*two guests from writing"),
        ("without_leases = true", 'without_leases = true\nwithout_broker = "go-on"', r"volume\[0\]\.without_broker"),
    ],
)
def test_what_a_broker_of_resources_does_not_do_is_refused_by_its_place(was: str, now: str, said: str) -> None:
    assert was in TRUSTEE
    with pytest.raises(InvalidInput, match=said):
        parse(TRUSTEE.replace(was, now))


def test_a_broker_with_leases_always_takes_them() -> None:
    with pytest.raises(InvalidInput, match=r"without_leases: this broker has leases"):
        with_volume(without_leases="true")
