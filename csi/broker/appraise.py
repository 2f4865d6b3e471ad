"""May this guest have that? Claims and policy in, nothing or `NotReleased` out, which names the rule that says no.

Claims are verified before they come here; this module believes them.
"""

import re
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import lru_cache

from csi.broker.release import ANY, Claims, ReleasePolicy, Workload
from csi.core.errors import NotReleased

_SAMPLE_TEES = ("sample", "sampledevice")
_REGEX_PREFIX = "regex:"


def check_tee(policy: ReleasePolicy, tee: str) -> None:
    """Refuse the development TEE, whose evidence proves nothing, unless the policy turns it on."""
    if tee in _SAMPLE_TEES and not policy.allow_sample:
        raise NotReleased(
            "[tee.sample] allow = false: the sample TEE proves nothing and this broker does not accept it"
        )


def check_known(policy: ReleasePolicy, claims: Claims) -> None:
    """Refuse a guest that belongs to no workload, and every guest of a TEE that proves nothing."""
    if claims.tee in _SAMPLE_TEES:
        raise NotReleased("the sample TEE proves nothing")
    reasons = [f"workload {work.name!r}: {reason}" for work in policy.workloads if (reason := _why_not(work, claims))]
    if len(reasons) == len(policy.workloads):
        raise NotReleased(f"the guest belongs to no workload: {'; '.join(reasons) or 'there is none'}")


def memberships(policy: ReleasePolicy, claims: Claims) -> tuple[str, ...]:
    """Names of the workloads that the guest belongs to by this policy; none, too, where its TEE is not allowed."""
    try:
        check_tee(policy, claims.tee)
    except NotReleased:
        return ()
    return tuple(work.name for work in policy.workloads if _why_not(work, claims) is None)


def check_volume(policy: ReleasePolicy, claims: Claims, volume_id: str) -> Workload:
    """The workload by which the guest may have this volume's secret and change its record."""
    check_tee(policy, claims.tee)
    return _permitted(policy, claims, f"volume {volume_id}", lambda work: work.volumes, (volume_id,))


def workloads_for_volume(policy: ReleasePolicy, claims: Claims, volume_id: str) -> tuple[str, ...]:
    """Every workload by which the guest may use the volume, in the policy's order; raises `NotReleased` for none."""
    check_volume(policy, claims, volume_id)
    return tuple(
        work.name
        for work in policy.workloads
        if _why_not(work, claims) is None and any(matches(pattern, volume_id) for pattern in work.volumes)
    )


def check_resource(policy: ReleasePolicy, claims: Claims, path: tuple[str, str, str]) -> Workload:
    """The workload by which the guest may read this resource."""
    check_tee(policy, claims.tee)
    return _permitted(policy, claims, f"resource {'/'.join(path)}", lambda work: work.resources, path)


def matches(pattern: str, text: str) -> bool:
    """Whether a glob, or a full `regex:...`, covers `text`. Upper and lower case differ."""
    return _compiled(pattern).fullmatch(text) is not None


def matches_path(pattern: str, path: tuple[str, ...]) -> bool:
    """The same for a path: a glob covers it segment by segment, so that `*` never reaches over a `/`."""
    if pattern.startswith(_REGEX_PREFIX):
        return matches(pattern, "/".join(path))
    segments = pattern.split("/")
    return len(segments) == len(path) and all(matches(glob, part) for glob, part in zip(segments, path, strict=True))


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
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
        reason = _why_not(work, claims)
        if reason is None and any(matches_path(pattern, path) for pattern in patterns_of(work)):
            return work
        reasons.append(f"workload {work.name!r}: {reason or 'none of its patterns covers it'}")
    raise NotReleased(f"{wanted} is not released: {'; '.join(reasons) or 'the policy has no [[workload]]'}")


def _why_not(work: Workload, claims: Claims) -> str | None:
    """The first comparison that keeps this guest out of the workload; None when it belongs to it."""
    compared: Iterable[tuple[str, tuple[str, ...], str]] = (
        ("tee", work.tee, claims.tee),
        ("launch_digests", work.launch_digests, claims.launch_digest),
        ("init_data", work.init_data, claims.init_data or "none"),
    )
    for name, allowed, found in compared:
        if found not in allowed and ANY not in allowed:
            return f"{name} does not list {found}"
    if claims.debug and not work.debug:
        return "debug is not allowed, and the guest's TEE is in debug mode"
    return None
