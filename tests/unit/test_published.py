"""How Kubernetes' own storage tests are started and their report read, without the tests."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.cluster import published, store
from lab.cluster.published import FAILED, LEFT_OUT, PASSED, SKIPPED, Suite
from lab.node import REPOSITORY

SUITE = Suite(tests=Path("/suite"), ginkgo=Path("/ginkgo"), agnhost=Path("/agnhost"))
E2E = REPOSITORY / "tests/e2e"


def entry(name: str, state: str, why: str = "", kind: str = "It", seconds: float = 1) -> dict[str, Any]:
    """A spec as Ginkgo reports it."""
    found: dict[str, Any] = {
        "ContainerHierarchyTexts": ["External Storage [Driver: d]"] if kind == "It" else None,
        "LeafNodeType": kind,
        "LeafNodeText": name,
        "State": state,
        "RunTime": int(seconds * 1e9),
    }
    return found | ({"Failure": {"Message": why}} if why else {})


def parsed(*entries: dict[str, Any]) -> tuple[published.Spec, ...]:
    return published.parse(json.dumps([{"SpecReports": list(entries)}]))


@pytest.mark.parametrize(
    ("state", "why", "meant"),
    [
        ("passed", "", PASSED),
        ("failed", "boom", FAILED),
        ("panicked", "boom", FAILED),
        ("timedout", "boom", FAILED),
        ("interrupted", "boom", FAILED),
        ("aborted", "boom", FAILED),
        ("skipped", "does not support it", SKIPPED),
        ("skipped", "", LEFT_OUT),
        ("pending", "", LEFT_OUT),
    ],
)
def test_nothing_but_passed_passes(state: str, why: str, meant: str) -> None:
    (spec,) = parsed(entry("should work", state, why, seconds=2.5))
    assert spec == published.Spec(name="External Storage [Driver: d] should work", state=meant, seconds=2.5, why=why)


def test_set_up_is_no_spec_unless_it_failed() -> None:
    assert parsed(entry("", "passed", kind="SynchronizedBeforeSuite")) == ()
    (spec,) = parsed(entry("", "failed", "no node", kind="SynchronizedBeforeSuite"))
    assert (spec.state, spec.why) == (FAILED, "no node")


def test_other_suites_are_not_counted() -> None:
    other = entry("should work", "skipped") | {"ContainerHierarchyTexts": ["[sig-storage] In-tree Volumes"]}
    assert parsed(other) == ()
    assert published.parse(json.dumps([{"SpecReports": None}])) == ()


def test_the_summary_names_every_reason() -> None:
    specs = parsed(
        entry("a", "passed"), entry("b", "failed", "boom"), entry("c", "skipped", "no ntfs"),
        entry("d", "skipped", "no ntfs"), entry("e", "skipped"),
    )  # fmt: skip
    text = published.summary(specs, {"[Disruptive]": "no SSH"})
    assert text.splitlines()[0] == "4 specs chosen: 1 passed, 1 failed, 2 skipped by the suite"
    assert "boom" in text
    assert "2 specs: no ntfs" in text
    assert "left out: [Disruptive]: no SSH" in text


def test_the_command_chooses_what_matches_and_is_not_left_out() -> None:
    argv = published.command(
        SUITE, driver=Path("/a"), focus="block", left_out=["x", "y"], report=Path("/to/r.json"), kubeconfig="/k", seconds=9
    )  # fmt: skip
    assert argv[0] == "/ginkgo"
    at = argv.index("/suite")
    assert {"--skip=x", "--skip=y", "--timeout=9s", "--output-dir=/to", "--json-report=r.json"} <= set(argv[:at])
    assert {"-storage.testdriver=/a", "-kubeconfig=/k"} <= set(argv[at:])
    (focus,) = (word.partition("=")[2] for word in argv if word.startswith("--focus="))
    assert re.search(focus, "External Storage [Driver: d] block mode")
    assert not re.search(focus, "In-tree Volumes block mode")


def test_images_have_the_names_that_the_suite_asks_for() -> None:
    names = [
        "registry/x/agnhost:2",
        "registry/x/agnhost:1",
        "registry/x/busybox:3",
        "registry/pause:4",
        "registry/etcd:5",
    ]
    made = {image.name: image for image in store.of_suite(names, Path("/bin/busybox"))}
    assert set(made) == set(names) - {"registry/etcd:5"}
    assert made["registry/x/agnhost:2"].start.entrypoint == ("/agnhost",)
    assert made["registry/x/busybox:3"].start.entrypoint == ()


@pytest.mark.parametrize("name", ["driver.yaml", "driver-xfs.yaml"])
def test_the_capability_file_is_of_the_driver_and_class_that_the_chart_installs(name: str) -> None:
    driver = yaml.safe_load((E2E / name).read_text())
    chart = yaml.safe_load((store.CHART / "values.yaml").read_text())
    assert driver["DriverInfo"]["Name"] == chart["driver"]["name"]
    assert chart["storageClasses"][driver["StorageClass"]["FromExistingClassName"]]["enabled"]
    keys = driver["DriverInfo"].get("TopologyKeys", [])
    assert keys in ([], [f"topology.{chart['driver']['name']}/node"])


def test_each_pattern_that_is_left_out_has_its_reason() -> None:
    entries = yaml.safe_load((E2E / "left_out.yaml").read_text())
    assert all(re.compile(entry["specs"]) and entry["why"] for entry in entries)


def test_the_suite_is_of_the_version_that_the_cluster_runs() -> None:
    versions = {
        re.search(r"k8s\.io/kubernetes (v\S+)", (REPOSITORY / "lab/cluster" / folder / "go.mod").read_text())[1]  # type: ignore[index]
        for folder in ("go", "suite")
    }
    assert len(versions) == 1
