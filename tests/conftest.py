"""What every test leaves as it found it."""

import logging
from collections.abc import Iterator

import hypothesis
import pytest

from tests.fakes import postgres as postgres_server

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """A program that a test runs sets the log up, with a stream that ends with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_server.Server]:
    """One server for the whole run; who kills it starts it again."""
    with postgres_server.server() as running:
        yield running
