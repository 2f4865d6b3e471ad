"""Fixtures of the lab: a node booted once a run, and nodes of their own for tests that cut the power."""

import os
from collections.abc import Callable, Iterator

import pytest

from lab.driver import Driver
from lab.node import LabUnavailable, Node, pick


def _kind() -> type[Node]:
    try:
        return pick()
    except LabUnavailable as reason:
        if os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
            pytest.fail(f"the lab can't run here: {reason}")
        pytest.skip(f"the lab can't run here: {reason}")


@pytest.fixture(scope="session")
def node_kind() -> type[Node]:
    """The kind of node that this machine can run."""
    return _kind()


@pytest.fixture(scope="session")
def node(node_kind: type[Node]) -> Iterator[Node]:
    """The node that tests share. It has one volume group `vg0` on all its disks."""
    with node_kind() as booted:
        booted.run(["vgcreate", "-q", "vg0", *booted.disks])
        yield booted


@pytest.fixture(scope="session")
def driver(node: Node) -> Iterator[Driver]:
    """The driver that tests share, with `vg0` as its only pool."""
    made = Driver(node, {"pools": [{"name": "main", "vgs": ["vg0"]}]})
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def new_node(node_kind: type[Node]) -> Iterator[Callable[[tuple[int, ...]], Node]]:
    """Makes nodes with disks of their own, which end with the test."""
    nodes: list[Node] = []

    def make(disk_bytes: tuple[int, ...]) -> Node:
        node = node_kind(disk_bytes)
        nodes.append(node)
        node.boot()
        return node

    yield make
    for node in nodes:
        node.close()
