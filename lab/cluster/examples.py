"""Images of deploy/examples, made from their own Dockerfiles on top of the product's."""

import re
import tempfile
from pathlib import Path

from lab.cluster.archive import Content, Start
from lab.cluster.store import Wanted
from lab.image import Builder
from lab.node import REPOSITORY

SPARK = REPOSITORY / "deploy/examples/spark"
SPARK_IMAGE = "registry.example.com/sealed-local-spark:0.1.0"


def spark() -> Wanted:
    """Spark in the guest's image. Downloads 700 MB the first time."""
    with tempfile.TemporaryDirectory(prefix="sealed-lab-") as folder:
        path = Path(folder, "Dockerfile")
        path.write_text(on_guest((REPOSITORY / "Dockerfile").read_text(), (SPARK / "Dockerfile").read_text()))
        image = Builder(path).build("spark")
    return Wanted(
        name=SPARK_IMAGE,
        content=Content(root=image.root),
        start=Start(entrypoint=image.entrypoint, env=image.env, user=image.user),
        digest=image.root.name,
    )


def on_guest(product: str, example: str) -> str:
    """One Dockerfile of both: where the example starts from the published guest image, it starts from that stage."""
    assert "FROM ${GUEST} " in example
    return product + re.sub(r"^ARG GUEST=.*$", "", example, flags=re.MULTILINE).replace("${GUEST}", "guest")
