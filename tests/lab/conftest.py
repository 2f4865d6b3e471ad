"""Fixtures of the lab: a node booted once a run, and nodes of their own for tests that cut the power.

Nodes of User-mode Linux have one processor each and share nothing, so two of them work side by side, each with its tests on
a processor of its own. That takes two thirds of the time where two processors are halves of one, as half of the tests wait
(for disks that don't answer, for leases). Where the machine itself is the node there can be one only.
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from lab.driver import Driver
from lab.node import LabUnavailable, Node, pick

_MOST_AT_ONCE = 2


def pytest_xdist_auto_num_workers() -> int:
    """For `--numprocesses auto`: how many of the lab's nodes this machine can have at a time."""
    with contextlib.suppress(LabUnavailable):
        return min(_MOST_AT_ONCE, len(os.sched_getaffinity(0))) if pick().kind == "uml" else 1
    return 1


def pytest_configure() -> None:
    """Give a worker of several a processor of its own: its node would else be on the one that all others have."""
    name, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    processors = sorted(os.sched_getaffinity(0))
    if name is not None and 1 < count <= len(processors):
        number = int(name.removeprefix("gw"))
        os.sched_setaffinity(0, set(processors[number::count]))


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
