"""The one cluster of a run, with the images of the published suite and of the examples."""

from collections.abc import Iterator

import pytest

from lab.cluster import examples, programs, published, store
from lab.cluster.cluster import Cluster, installed
from lab.cluster.published import Suite
from tests import needs_cluster


@pytest.fixture(scope="session")
def suite() -> Suite:
    """Kubernetes' own tests of storage drivers."""
    needs_cluster.require()
    return published.build()


@pytest.fixture(scope="session")
def cluster(suite: Suite) -> Iterator[Cluster]:
    """A node that is Ready and a driver that the kubelet knows."""
    built = programs.build(needs_cluster.CACHE)
    of_suite = store.of_suite(published.image_names(suite), suite.agnhost)
    images = [*store.wanted(built), *of_suite, examples.spark()]
    with installed(built, store.disk(images, needs_cluster.CACHE, "e2e")) as made:
        yield made
