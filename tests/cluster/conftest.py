"""The one cluster of a run: a real Kubernetes in the lab's node, with the chart installed as its users would."""

from collections.abc import Iterator

import pytest

from lab.cluster import programs, store
from lab.cluster.cluster import Cluster, installed
from tests import needs_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node that is Ready and a driver that the kubelet knows."""
    needs_cluster.require()
    built = programs.build(needs_cluster.CACHE)
    with installed(built, store.disk(store.wanted(built), needs_cluster.CACHE)) as made:
        yield made
