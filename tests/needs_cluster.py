"""Whether this machine can run the lab's cluster, and where its programs and images are kept."""

import os
from pathlib import Path

import pytest

from lab.node import REPOSITORY
from lab.uml import UmlNode

CACHE = Path(os.environ.get("SEALED_LOCAL_CACHE", REPOSITORY / ".cache"))


def require() -> None:
    """Skip where the cluster can't run; fail there where the lab is required."""
    reason = UmlNode.why_not()
    if reason is None:
        return
    if os.environ.get("SEALED_LOCAL_REQUIRE_LAB"):
        pytest.fail(f"the cluster can't run here: {reason}")
    pytest.skip(f"the cluster can't run here: {reason}")
