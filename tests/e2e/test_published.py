"""Kubernetes' own tests of storage drivers, against the chart as it is installed. `make e2e`."""

import os
import re
from pathlib import Path

import pytest
import yaml

from lab.cluster import published
from lab.cluster.cluster import Cluster
from lab.cluster.published import Suite

pytestmark = [pytest.mark.lab, pytest.mark.timeout(6 * 3600)]

SPECS = os.environ.get("SEALED_LOCAL_SPECS", "")
"""A regular expression of the specs to run; empty: all."""
SECONDS = int(os.environ.get("SEALED_LOCAL_SPECS_SECONDS", str(5 * 3600)))
HERE = Path(__file__).parent


@pytest.mark.parametrize(("driver", "focus"), [("driver", ""), ("driver-xfs", r"\(xfs\).*")])
def test_the_published_suite_finds_no_fault(cluster: Cluster, suite: Suite, driver: str, focus: str) -> None:
    left_out = {entry["specs"]: entry["why"] for entry in yaml.safe_load((HERE / "left_out.yaml").read_text())}
    report = cluster.node.shared / f"{driver}.json"
    argv = published.command(
        suite,
        driver=HERE / f"{driver}.yaml",
        focus=f"{focus}(?:{SPECS})",
        left_out=left_out,
        report=report,
        kubeconfig=cluster.admin,
        seconds=SECONDS,
    )
    print(f"\nthe suite writes to {cluster.log(driver)}", flush=True)
    cluster.node.wait(cluster.node.spawn(argv, cluster.log(driver)), SECONDS + 600)
    assert report.exists(), Path(cluster.log(driver)).read_text()[-4000:]
    specs = published.parse(report.read_text())
    print(published.summary(specs, left_out))
    assert [spec.name for spec in specs if spec.state == published.FAILED] == []
    if SPECS and all(spec.state == published.LEFT_OUT for spec in specs):
        pytest.skip(f"no spec of {driver}.yaml matches {SPECS}")
    assert [spec for spec in specs if spec.state == published.PASSED]
    stale = [pattern for pattern in left_out if not any(re.search(pattern, spec.name) for spec in specs)]
    assert stale == []
