"""Every step that a plan of the node can hold is in one union, and each of them has its handler."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_args

from csi.node.effects import Effects
from csi.node.plan import steps


def test_every_step_has_a_handler_and_no_handler_is_without_a_step() -> None:
    toy: Any = None
    assert Effects(toy, toy, toy, Path("/run")).handlers().keys() == set(get_args(steps.Step))


def test_the_union_has_every_step_that_is_defined() -> None:
    defined = {
        kind
        for _, kind in inspect.getmembers(steps, dataclasses.is_dataclass)
        if isinstance(kind, type) and kind.__module__ == steps.__name__
    }
    assert defined == set(get_args(steps.Step))
