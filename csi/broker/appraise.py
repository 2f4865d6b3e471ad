"""May this guest have that? Claims and policy in, nothing or `NotReleased` out, which names the rule that says no.

Claims are verified before they come here; this module believes them.
"""

import re
from collections.abc import Callable
from fnmatch import translate
from functools import cache

from csi.broker.claims import Claims
from csi.broker.findings import first_refusal, platform_findings, proves_nothing, tee_findings, workload_findings
from csi.broker.release import ReleasePolicy, Workload
from csi.core.errors import NotReleased

_REGEX_PREFIX = "regex:"


def check_tee(policy: ReleasePolicy, tee: str) -> None:
    """Refuse the development TEE, whose evidence proves nothing, unless the policy turns it on."""
    _refuse(first_refusal(tee_findings(policy, tee)))


def check_platform(policy: ReleasePolicy, claims: Claims) -> None:
    """Refuse a guest on a machine that is not good enough, whatever runs in it."""
    _refuse(first_refusal(platform_findings(policy, claims)))


def check_known(policy: ReleasePolicy, claims: Claims) -> None:
    """Refuse a guest that belongs to no workload, and every guest of a TEE that proves nothing."""
    if proves_nothing(claims):
        raise NotReleased("evidence of the sample TEE or of a test authority proves nothing")
    check_platform(policy, claims)
    reasons = [
        f"workload {work.name!r}: {reason}"
        for work in policy.workloads
        if (reason := first_refusal(workload_findings(policy, work, claims)))
    ]
    if len(reasons) == len(policy.workloads):
        raise NotReleased(f"the guest belongs to no workload: {'; '.join(reasons) or 'there is none'}")


def memberships(policy: ReleasePolicy, claims: Claims) -> tuple[str, ...]:
    """Names of the workloads that the guest belongs to by this policy; none, too, where its machine is not good enough."""
    if first_refusal(platform_findings(policy, claims)) is not None:
        return ()
    works = policy.workloads
    return tuple(work.name for work in works if first_refusal(workload_findings(policy, work, claims)) is None)


def check_volume(policy: ReleasePolicy, claims: Claims, volume_id: str) -> Workload:
    """The workload by which the guest may have this volume's secret and change its record."""
    check_platform(policy, claims)
    return _permitted(policy, claims, f"volume {volume_id}", lambda work: work.volumes, (volume_id,))


def workloads_for_volume(policy: ReleasePolicy, claims: Claims, volume_id: str) -> tuple[str, ...]:
    """Every workload by which the guest may use the volume, in the policy's order; raises `NotReleased` for none."""
    members = memberships(policy, claims)
    found = tuple(
        work.name
        for work in policy.workloads
        if work.name in members and any(matches_path(pattern, (volume_id,)) for pattern in work.volumes)
    )
    # Nobody is refused but by the one check, which knows why.
    return found or (check_volume(policy, claims, volume_id).name,)


def check_resource(policy: ReleasePolicy, claims: Claims, path: tuple[str, str, str]) -> Workload:
    """The workload by which the guest may read this resource."""
    check_platform(policy, claims)
    return _permitted(policy, claims, f"resource {'/'.join(path)}", lambda work: work.resources, path)


def matches(pattern: str, text: str) -> bool:
    """Whether a glob, or a full `regex:...`, covers `text`. Upper and lower case differ."""
    return compiled(pattern).fullmatch(text) is not None


def matches_path(pattern: str, path: tuple[str, ...]) -> bool:
    """The same for a path: a glob covers it segment by segment, so that `*` never reaches over a `/`."""
    if pattern.startswith(_REGEX_PREFIX):
        return matches(pattern, "/".join(path))
    segments = pattern.split("/")
    return len(segments) == len(path) and all(matches(glob, part) for glob, part in zip(segments, path, strict=True))


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """Raises `patterns.UNUSABLE` for a `regex:` that can't be used. Patterns come from policies alone, and reading a policy
    asks for each, so that none is compiled, and fails, while a guest waits.
    """
    if pattern.startswith(_REGEX_PREFIX):
        return re.compile(pattern.removeprefix(_REGEX_PREFIX), re.ASCII)
    return re.compile(translate(pattern))


def _permitted(
    policy: ReleasePolicy,
    claims: Claims,
    wanted: str,
    patterns_of: Callable[[Workload], tuple[str, ...]],
    path: tuple[str, ...],
) -> Workload:
    reasons: list[str] = []
    for work in policy.workloads:
        reason = first_refusal(workload_findings(policy, work, claims))
        if reason is None and any(matches_path(pattern, path) for pattern in patterns_of(work)):
            return work
        reasons.append(f"workload {work.name!r}: {reason or 'none of its patterns covers it'}")
    raise NotReleased(f"{wanted} is not released: {'; '.join(reasons) or 'the policy has no [[workload]]'}")


def _refuse(reason: str | None) -> None:
    if reason is not None:
        raise NotReleased(reason)
