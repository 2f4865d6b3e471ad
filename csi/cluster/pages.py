"""The pages of the node plugins, read over HTTP from their pods. What a page says counts for its own node only."""

import http.client
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from csi.cluster.objects import Silent
from csi.core import local_storage
from csi.core.errors import InvalidInput, SealedLocalError, Unavailable
from csi.core.kubernetes import Pod
from csi.core.local_storage import Page

_SECONDS: Final = 10.0
_MOST_BYTES: Final = 8 * 1024 * 1024
_AT_A_TIME: Final = 8
_LABELS: Final = {"app.kubernetes.io/name": "sealed-local", "app.kubernetes.io/component": "node"}

Fetch = Callable[[str], bytes]
"""Reads the page at an IP address."""


def plugins(pods: Iterable[Pod], namespace: str) -> tuple[Pod, ...]:
    """The pods of the node plugin that have a node. Only those of the helper's own namespace: labels are anybody's."""
    return tuple(
        pod
        for pod in pods
        if pod.metadata.namespace == namespace
        and _LABELS.items() <= dict(pod.metadata.labels).items()
        and pod.spec.node_name
        and pod.metadata.deletion_timestamp is None
    )


def read(pods: tuple[Pod, ...], driver: str, fetch: Fetch) -> tuple[tuple[Page, ...], tuple[Silent, ...]]:
    """Every page that could be had, and which nodes said nothing."""
    with ThreadPoolExecutor(max_workers=_AT_A_TIME, thread_name_prefix="pages") as pool:
        answers = tuple(pool.map(lambda pod: _one(pod, driver, fetch), pods))
    return tuple(one for one in answers if isinstance(one, Page)), tuple(
        one for one in answers if isinstance(one, Silent)
    )


def _one(pod: Pod, driver: str, fetch: Fetch) -> Page | Silent:
    node = pod.spec.node_name
    if not pod.status.pod_ip:
        return Silent(node=node, why=f"the node plugin's pod {pod.metadata.name} does not run")
    try:
        page = local_storage.decode(fetch(pod.status.pod_ip), f"pod {pod.metadata.name}")
    except SealedLocalError as error:
        return Silent(node=node, why=str(error))
    if (page.node, page.driver) != (node, driver):
        return Silent(node=node, why=f"pod {pod.metadata.name} speaks for driver {page.driver} of node {page.node}")
    return page


def by_http(port: int) -> Fetch:
    """Reads pages from that port. Raises `Unavailable` where nobody answers, or not with a page."""

    def fetch(address: str) -> bytes:
        connection = http.client.HTTPConnection(address, port, timeout=_SECONDS)
        try:
            connection.request("GET", local_storage.PATH)
            answer = connection.getresponse()
            text = answer.read(_MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"the node plugin does not answer ({error})") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise Unavailable(f"the node plugin answers {answer.status}: see its log")
        if len(text) == _MOST_BYTES:
            raise InvalidInput("the node's page", "is longer than anybody's")
        return text

    return fetch
