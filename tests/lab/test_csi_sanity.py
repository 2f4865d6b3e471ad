"""csi-sanity, the conformance suite of the CSI project, against the real driver on real LVM, in mount and in block mode."""

import json
import subprocess
from typing import Any

import pytest

from lab.driver import MIB, Driver, lvs, mounts_below
from lab.node import REPOSITORY, Node

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def csi_sanity(node: Node) -> str:
    """The program, built from its hash-locked module, where the node sees it."""
    path = node.shared / "csi-sanity"
    subprocess.run([str(REPOSITORY / "scripts/build-csi-sanity"), str(path)], check=True)
    return str(path)


@pytest.mark.parametrize("mode", ["mount", "block"])
def test_every_case_of_the_advertised_capabilities_passes(
    node: Node, csi_sanity: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"/run/sanity-{mode}"
    driver = Driver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]}, kubelet=folder)
    driver.start()
    before = lvs(node)
    report = node.shared / f"sanity-{mode}.json"
    done = node.run(
        [
            csi_sanity,
            f"--csi.endpoint=unix://{driver.socket}",
            f"--csi.mountdir={folder}/mount",
            f"--csi.stagingdir={folder}/stage",
            f"--csi.testvolumesize={64 * MIB}",
            f"--csi.testvolumeexpandsize={96 * MIB}",
            f"--csi.testvolumeaccesstype={mode}",
            f"--ginkgo.json-report={report}",
            "--ginkgo.no-color",
        ],
        timeout=800,
        check=False,
    )
    (node.shared / f"sanity-{mode}.txt").write_bytes(done.stdout + done.stderr)
    counts = _counts(json.loads(report.read_text()))
    with capsys.disabled():
        print(
            f"\ncsi-sanity ({mode} mode): " + ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))
        )
    assert done.rc == 0, done.text[-6000:]
    assert counts.get("failed", 0) == 0
    # csi-sanity skips in silence what it believes not to be offered, so the exact count is the promise.
    assert counts["passed"] == 39
    assert lvs(node) == before
    assert mounts_below(node, folder) == []
    assert driver.stop() == 0


def _cases(report: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case for suite in report for case in suite["SpecReports"] if case["LeafNodeType"] == "It"]


def _counts(report: list[dict[str, Any]]) -> dict[str, int]:
    states = [case["State"] for case in _cases(report)]
    return {state: states.count(state) for state in set(states)}
