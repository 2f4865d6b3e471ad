"""The guest's core knows its machine by one port: the real one and the one in memory have all of it, and nothing else."""

import inspect

import pytest

from csi.guest.machine import Machine
from csi.guest.this_machine import ThisMachine
from tests.fakes.sealed_guest import Machine as MachineInMemory


def methods(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_the_real_machine_is_the_port_and_nothing_else() -> None:
    assert methods(ThisMachine) == methods(Machine)


@pytest.mark.parametrize("name", methods(Machine))
def test_the_machine_in_memory_takes_what_the_port_says(name: str) -> None:
    """Otherwise the core is proved on a machine that it will never run on."""
    assert methods(MachineInMemory)[name] == methods(Machine)[name]
