"""A token shows measured init-data by the names that policies of other brokers match on, and never fails over it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from csi.broker import service
from csi.broker.claims import SampleClaims
from csi.broker.shown_init_data import LIMIT_BYTES, ShownInitData, shown

HEAD = 'version = "0.1.0"\nalgorithm = "sha256"\n\n[data]\n'
REGO = "package agent_policy\n\ndefault AllowRequestsFailingPolicy := false\n"


def of(files: dict[str, str]) -> ShownInitData:
    found = shown(HEAD + "".join(f"{json.dumps(name)} = {json.dumps(text)}\n" for name, text in files.items()))
    assert found is not None
    return found


def container(image: str | None, user: int) -> dict[str, Any]:
    names = {} if image is None else {"io.kubernetes.cri.image-name": image}
    return {"OCI": {"Annotations": names, "Process": {"User": {"UID": user}}}}


def with_data(data: object) -> dict[str, str]:
    return {"policy.rego": f"{REGO}policy_data := {json.dumps(data)}\n"}


def test_files_are_shown_by_their_names_and_configurations_as_documents() -> None:
    files = {"aa.toml": "[token_configs]\nkbs = 1\n", "cdh.toml": "socket = 's'\n", "sealed-local.toml": "a = 1\n"}
    assert json.loads(of(files).claims) == {
        "aa.toml": {"token_configs": {"kbs": 1}},
        "cdh.toml": {"socket": "s"},
        "sealed-local.toml": "a = 1\n",
    }


def test_identifiers_are_those_of_the_agents_policy_in_its_order() -> None:
    containers = [container(None, 65535), container("bitnami/nginx:latest", 1001), container("other", 1001)]
    found = of(with_data({"containers": containers}))
    assert json.loads(found.claims) == {"agent_policy_claims": {"containers": containers}}
    assert found.images == ("bitnami/nginx:latest", "other")
    assert found.user_ids == (65535, 1001)


def test_a_policy_without_data_stays_text() -> None:
    assert json.loads(of({"policy.rego": REGO}).claims) == {"policy.rego": REGO}


def test_only_the_file_of_the_agents_policy_names_images() -> None:
    text = with_data({"containers": [container("evil", 0)]})["policy.rego"]
    found = of({"other.rego": text, "agent_policy_claims": text})
    assert (found.images, found.user_ids) == ((), ())


@pytest.mark.parametrize(
    "data",
    [
        {"containers": None},
        {"containers": {"OCI": {}}},
        {"containers": [None, 1, "x", [], {"OCI": None}, {"OCI": {"Annotations": [], "Process": {"User": 0}}}]},
        {
            "containers": [
                {"OCI": {"Annotations": {"io.kubernetes.cri.image-name": 7}, "Process": {"User": {"UID": "0"}}}}
            ]
        },
        {"containers": [{"OCI": {"Process": {"User": {"UID": True}}}}]},
    ],
)
def test_what_is_of_another_shape_identifies_nothing(data: object) -> None:
    found = of(with_data(data))
    assert (found.images, found.user_ids) == ((), ())
    assert json.loads(found.claims) == {"agent_policy_claims": data}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cdh.toml", "not = toml = at all"),
        ("cdh.toml", "big = " + "9" * 5000),
        ("policy.rego", "policy_data := {"),
        ("policy.rego", "policy_data := {x}"),
        ("policy.rego", 'policy_data := {"a": ' + "9" * 5000 + "}"),
        ("policy.rego", 'policy_data := {"a": "\\ud800"}'),
        ("policy.rego", 'policy_data := {"a": ' + "[" * 20_000 + "]" * 20_000 + "}"),
    ],
)
def test_a_file_that_cannot_be_read_stays_text(name: str, text: str) -> None:
    assert json.loads(of({name: text}).claims) == {name: text}


def test_what_is_no_init_data_or_too_large_is_not_shown() -> None:
    assert shown("version = 2\n") is None
    assert shown(f"{HEAD}big = '{'x' * LIMIT_BYTES}'\n") is None


def test_a_text_that_the_tee_does_not_carry_is_not_shown() -> None:
    text = f"{HEAD}a = 'b'\n"
    unmeasured = SampleClaims(launch_digest="abcde", init_data=None, svn="1")
    assert service._shown(unmeasured, text) is None
    assert service._shown(replace(unmeasured, init_data="sha256:00"), text) == shown(text)
