"""`sealed-local doctor CLAIM`: asks the cluster by kubectl, with the rights of whoever runs it, and changes nothing."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from csi.core.command import LocalRunner, Runner
from csi.core.errors import SealedLocalError
from csi.core.kubernetes import Claim, Pod, StorageClass, Volume
from csi.doctor import findings, objects
from csi.doctor.findings import Finding

_SECONDS: Final = 60.0
_FROM_THE_CALLER: Final = ("HOME", "KUBECONFIG", "PATH", "HTTPS_PROXY", "NO_PROXY")
_DESCRIPTION = """Why is a claim stuck, and what can be done? Reads the claim, its class, its pods, their events and the
room that the nodes report, by kubectl and with your rights, and changes nothing. Needs kubectl and its kubeconfig."""
_EPILOG = """Exit status: 0 nobody complains, 1 something was found, 2 wrong usage, 3 the cluster can't be asked.

  sealed-local doctor data-spark-0 --namespace spark"""

_IN_NAMESPACE: Final = (("claims", "persistentvolumeclaims", Claim), ("pods", "pods", Pod))
_IN_CLUSTER: Final = (
    ("volumes", "persistentvolumes", Volume),
    ("classes", "storageclasses", StorageClass),
    ("nodes", "csinodes", objects.CsiNode),
)
_EVERYWHERE: Final = (("capacities", "csistoragecapacities", objects.Capacity),)
_PLUGIN: Final = "app.kubernetes.io/name=sealed-local,app.kubernetes.io/component=node"


def main(arguments: Sequence[str]) -> int:
    """Run it; returns the exit status."""
    given = _parser().parse_args(arguments)
    try:
        seen = look(LocalRunner(), given.namespace, given.context)
    except SealedLocalError as error:
        # kubectl tells of every try, and at the end what a person needs.
        print(f"sealed-local doctor: the cluster can't be asked: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 3
    found = findings.of_claim(seen, given.namespace, given.claim, given.driver_name)
    for one in found:
        print(_shown(one))
    if not found:
        print(f"Nobody complains about claim {given.claim}.")
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="sealed-local doctor",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("claim", help="the claim's name; a generic ephemeral volume's is POD-VOLUME")
    made.add_argument("-n", "--namespace", default="default", help="the claim's namespace (default: default)")
    made.add_argument("--context", default="", help="which context of the kubeconfig (default: the current one)")
    made.add_argument("--driver-name", default="sealed-local.csi", help="the driver's name (default: sealed-local.csi)")
    return made


def look(runner: Runner, namespace: str, context: str) -> objects.Seen:
    """All that is asked for. Raises what the runner does, and `InvalidInput` for what is no list."""
    kubectl = ["kubectl", *(["--context", context] if context else [])]

    def items(resource: str, kind: type[Any], *scope: str) -> tuple[Any, ...]:
        environment = {name: os.environ[name] for name in _FROM_THE_CALLER if name in os.environ}
        argv = [*kubectl, "get", resource, *scope, "--output", "json"]
        return objects.items(runner.run(argv, timeout=_SECONDS, env=environment).stdout, kind, resource)

    own = {member: items(resource, kind, "--namespace", namespace) for member, resource, kind in _IN_NAMESPACE}
    whole = {member: items(resource, kind) for member, resource, kind in _IN_CLUSTER}
    everywhere = {member: items(resource, kind, "--all-namespaces") for member, resource, kind in _EVERYWHERE}
    # Events of what has no namespace, as a volume, lie in the namespace default.
    places = dict.fromkeys((namespace, "default"))
    events = tuple(event for place in places for event in items("events", objects.Event, "--namespace", place))
    drivers = items("pods", Pod, "--all-namespaces", "--selector", _PLUGIN)
    return objects.Seen(**own, **whole, **everywhere, events=events, drivers=drivers)


def _shown(finding: Finding) -> str:
    return f"* {finding.found}" + (f"\n  → {finding.todo}" if finding.todo else "")
