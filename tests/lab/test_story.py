"""The story that `make demo` tells, as a test: every proof in it must hold."""

from collections.abc import Callable

import pytest

from lab import guest_image
from lab.demo import write_report
from lab.node import DISK_BYTES, REPOSITORY, Node
from lab.story import Event, Story

pytestmark = pytest.mark.lab

_PROOFS = 8


@pytest.mark.timeout(1200)
def test_the_main_job_holds_from_claim_to_wiped_extents(new_node: Callable[[tuple[int, ...]], Node]) -> None:
    guest_image.build()
    node = new_node(DISK_BYTES)
    story = Story(node=node, say=_say)
    try:
        story.tell()
    finally:
        write_report(story.events, REPOSITORY / "build" / "story.html", node.kind)
    proofs = [event for event in story.events if event.kind == "proof"]
    assert (len(proofs), all(event.passed for event in story.events)) == (_PROOFS, True)


def _say(event: Event) -> None:
    print(f"[{event.started:6.1f} s +{event.ended - event.started:5.1f}] {event.title}: {event.found[:200]}")
