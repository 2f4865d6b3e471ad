"""The one cluster of a run: a real Kubernetes in the lab's node, with the chart installed as its users would."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cluster import programs, store
from lab.cluster.cluster import Cluster, values
from lab.node import REPOSITORY
from lab.uml import UmlNode

CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node that is Ready and a driver that the kubelet knows."""
    reason = UmlNode.why_not()
    if reason is not None:
        if os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
            pytest.fail(f"the cluster can't run here: {reason}")
        pytest.skip(f"the cluster can't run here: {reason}")
    built = programs.build(CACHE)
    made = Cluster(built, store.disk(store.wanted(built), CACHE))
    try:
        made.boot()
        made.install(values())
        yield made
    finally:
        made.close()
