"""`sealed-local doctor` in the real cluster: what the scheduler calls no room is told apart."""

import sys

import pytest

from lab.cluster.cluster import Cluster
from lab.node import REPOSITORY, wait_until

from . import objects
from .objects import PODS, of_claim, pod

pytestmark = pytest.mark.lab


def told(cluster: Cluster, claim: str) -> str:
    command = f"cd {REPOSITORY} && {sys.executable} -m csi doctor {claim} --namespace default || [ $? = 1 ]"
    return cluster.shell(command).text


def test_a_pool_that_no_node_has_is_told_from_a_claim_that_is_too_large(cluster: Cluster) -> None:
    cluster.create(objects.CLASSES, objects.storage_class("nowhere", {"pool": "nowhere"}))
    objects.create_claim(cluster, objects.claim("nowhere", storage_class="nowhere"))
    objects.create_claim(cluster, objects.claim("vast", "100Gi"))
    for name in ("nowhere", "vast"):
        cluster.create(PODS, pod(name, "true", of_claim(name)))
        cluster.wait_event(name, "did not have enough free storage")
    wait_until("the doctor knows", 120, lambda: "no node has" in told(cluster, "nowhere"))
    assert "Class nowhere (pool: nowhere)" in told(cluster, "nowhere")
    assert "The claim asks for 100 GiB, and no node has that in one volume" in told(cluster, "vast")
    for name in ("nowhere", "vast"):
        cluster.delete(f"{PODS}/{name}")
        cluster.delete(f"{objects.CLAIMS}/{name}")
    cluster.delete(f"{objects.CLASSES}/nowhere")


def test_a_claim_that_nobody_uses_waits_for_a_pod(cluster: Cluster) -> None:
    objects.create_claim(cluster, objects.claim("alone"))
    assert "waits for a pod, and no pod in the namespace uses the claim" in told(cluster, "alone")
    cluster.delete(f"{objects.CLAIMS}/alone")
    assert "There is no claim alone in namespace default" in told(cluster, "alone")
