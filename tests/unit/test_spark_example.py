"""The files of the Spark example fit each other; the e2e tests run them."""

import re

import yaml

from lab.cluster import examples
from lab.dockerfile import stages
from lab.node import REPOSITORY

SPARK = examples.SPARK
OBJECTS = list(yaml.safe_load_all((SPARK / "spark.yaml").read_text()))
CLAIMS, POD = OBJECTS[:-1], OBJECTS[-1]


def test_its_image_starts_from_the_guest_image_of_this_project() -> None:
    text = examples.on_guest((REPOSITORY / "Dockerfile").read_text(), (SPARK / "Dockerfile").read_text())
    found = {stage.name: stage for stage in stages(text)}
    assert found["spark"].base == "guest"
    assert "EXPOSE" in [word for word, _ in found["broker"].instructions]
    assert [rest for word, rest in found["broker"].instructions if word in ("ARG", "FROM")] == []


def test_each_package_is_locked() -> None:
    lines = (SPARK / "requirements.txt").read_text().splitlines()
    names = [line for line in lines if "==" in line]
    hashes = [line for line in lines if re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}", line)]
    assert len(names) == len(hashes) == 4


def test_both_volumes_are_sealed_raw_devices_of_one_pod() -> None:
    for claim in CLAIMS:
        assert (claim["spec"]["storageClassName"], claim["spec"]["volumeMode"]) == ("local-sealed", "Block")
    used = {volume["persistentVolumeClaim"]["claimName"] for volume in POD["spec"]["volumes"][:2]}
    assert used == {claim["metadata"]["name"] for claim in CLAIMS}


def test_the_command_opens_what_the_pod_has_and_ends_in_spark() -> None:
    (container,) = POD["spec"]["containers"]
    command = container["command"]
    devices = [word.partition("=")[2] for word in command if word.startswith("--device=")]
    assert devices == [device["devicePath"] for device in container["volumeDevices"]]
    assert [word.partition("=")[2] for word in command if word.startswith("--volume=")] == ["data", "shuffle"]
    *_, program, job, _ = command
    assert program == "spark-submit"
    assert f" {job}" in (SPARK / "Dockerfile").read_text()


def test_spark_spills_to_the_sealed_volume_alone() -> None:
    settings = (SPARK / "spark-defaults.conf").read_text()
    assert re.search(r"^spark\.local\.dir\s+/shuffle$", settings, re.MULTILINE)
