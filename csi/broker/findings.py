"""The rules that claims are held against, one by one, each with its name as it stands in the policy file.

Pure. A rule gives a `Finding`, whether it is kept or not, so that `broker policy explain` can show them all; what a
broken rule means for a request is `csi.broker.appraise`'s.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import assert_never

from csi.broker.claims import Claims, HardwareClaims, SampleClaims, SnpClaims, TdxClaims
from csi.broker.release import ANY, Image, ReleasePolicy, SnpFloor, SnpImage, TdxFloor, TdxImage, Workload

SAMPLE_TEES = ("sample", "sampledevice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule and what it found. `refusal` says why the rule refuses; None when it is kept."""

    rule: str
    refusal: str | None = None


def first_refusal(findings: Iterable[Finding]) -> str | None:
    """The first broken rule with its reason, None when all are kept."""
    return next((f"{found.rule} {found.refusal}" for found in findings if found.refusal is not None), None)


def tee_findings(policy: ReleasePolicy, tee: str) -> Iterator[Finding]:
    """The development TEE proves nothing; it is accepted only where the policy turns it on."""
    if tee in SAMPLE_TEES:
        yield Finding(
            rule="[tee.sample] allow = false:",
            refusal=None if policy.allow_sample else "the sample TEE proves nothing and this broker does not accept it",
        )


def proves_nothing(claims: Claims) -> bool:
    """Whether anybody could have made this evidence."""
    return isinstance(claims, SampleClaims) or claims.tee in SAMPLE_TEES or claims.test_authority


def platform_findings(policy: ReleasePolicy, claims: Claims) -> Iterator[Finding]:
    """Is the machine good enough, whatever runs on it?"""
    match claims:
        case SampleClaims():
            yield from tee_findings(policy, claims.tee)
        case TdxClaims():
            yield from _test_authority(policy, claims)
            yield from _tdx_platform(policy.tdx, claims)
        case SnpClaims():
            yield from _test_authority(policy, claims)
            yield from _snp_platform(policy.snp, claims)
        case _:
            assert_never(claims)


def workload_findings(policy: ReleasePolicy, work: Workload, claims: Claims) -> Iterator[Finding]:
    """Does the guest belong to this workload?"""
    yield _listed("tee", work.tee, claims.tee)
    match claims:
        case SampleClaims():
            yield _listed("launch_digests", work.launch_digests, claims.launch_digest)
        case TdxClaims() | SnpClaims():
            yield _images(policy, work, claims)
        case _:
            assert_never(claims)
    yield _init_data(work, claims)
    refused = claims.debug and not work.debug
    yield Finding(rule="debug", refusal="is not allowed, and the guest's TEE is in debug mode" if refused else None)


def image_findings(image: Image, claims: HardwareClaims) -> Iterator[Finding]:
    """Does the guest run this image? Every register that the set names is compared as a whole."""
    for name, allowed in image.registers.items():
        yield _listed(name, allowed, claims.registers[name])
    match image, claims:
        case TdxImage(), TdxClaims():
            yield from _td_attributes(claims)
        case SnpImage(), SnpClaims():
            yield from _snp_guest(image, claims)


def _tdx_platform(floor: TdxFloor, claims: TdxClaims) -> Iterator[Finding]:
    # No status makes up for another: "a little behind at launch" says nothing of what the TD runs on now.
    yield _listed("[tee.tdx] tcb_status", floor.tcb_status, claims.tcb_status)
    if claims.current_tcb_status is not None:
        yield _listed("[tee.tdx] tcb_status (current TCB)", floor.tcb_status, claims.current_tcb_status)
    denied = [advisory for advisory in claims.advisories if advisory in floor.denied_advisories]
    yield Finding(
        rule="[tee.tdx] denied_advisories",
        refusal=f"lists {', '.join(denied)}, which applies to this platform" if denied else None,
    )
    old = claims.tcb_evaluation < floor.minimum_tcb_evaluation
    yield Finding(
        rule="[tee.tdx] minimum_tcb_evaluation",
        refusal=f"is {floor.minimum_tcb_evaluation}, and the collateral has number {claims.tcb_evaluation}: "
        "import newer collateral"
        if old
        else None,
    )


def _test_authority(policy: ReleasePolicy, claims: HardwareClaims) -> Iterator[Finding]:
    if claims.test_authority:
        refused = None if policy.allow_sample else "evidence of a test authority proves no more than the sample TEE"
        yield Finding(rule="[tee.sample] allow = false:", refusal=refused)


def _snp_platform(floor: SnpFloor, claims: SnpClaims) -> Iterator[Finding]:
    rule = f"[tee.snp.minimum_tcb.{claims.product}]"
    minimum = floor.minimum_tcb.get(claims.product)
    if minimum is None:
        yield Finding(rule=rule, refusal=f"is missing: the policy has no TCB floor for {claims.product}")
        return
    # At launch, too: firmware that was old then may have measured something else than it says now.
    versions = [("reported", claims.reported_tcb), ("current", claims.current_tcb), ("launch", claims.launch_tcb)]
    if floor.committed:
        versions.append(("committed", claims.committed_tcb))
    for name, found in versions:
        below = found.below(minimum)
        yield Finding(rule=f"{rule} ({name} TCB)", refusal=f"has {'; '.join(below)}" if below else None)


def _images(policy: ReleasePolicy, work: Workload, claims: HardwareClaims) -> Finding:
    """One image of the list is enough; ANY leaves the registers out, but not what the TEE itself must promise."""
    if ANY in work.images:
        image: Image = TdxImage(name=ANY, registers={}) if claims.tee == "tdx" else SnpImage(name=ANY, registers={})
        candidates = [image]
    else:
        candidates = [image for image in policy.images if image.name in work.images and image.tee == claims.tee]
    reasons = []
    for image in candidates:
        reason = first_refusal(image_findings(image, claims))
        if reason is None:
            return Finding(rule="images")
        reasons.append(f"image {image.name!r}: {reason}")
    return Finding(rule="images:", refusal="; ".join(reasons) or f"none is of {claims.tee}")


def _td_attributes(claims: TdxClaims) -> Iterator[Finding]:
    yield Finding(
        rule="attributes:",
        refusal="the TD may be migrated to another machine" if claims.attributes.migratable else None,
    )
    yield Finding(
        rule="attributes:",
        refusal=None if claims.attributes.sept_ve_disable else "SEPT_VE_DISABLE is off: the host can interrupt the TD",
    )


def _snp_guest(image: SnpImage, claims: SnpClaims) -> Iterator[Finding]:
    yield _listed("vmpl", tuple(map(str, image.vmpl)), str(claims.vmpl))
    yield Finding(
        rule="minimum_guest_svn",
        refusal=f"is {image.minimum_guest_svn}, the guest has {claims.guest_svn}"
        if claims.guest_svn < image.minimum_guest_svn
        else None,
    )
    policy = claims.policy
    for rule, refused, text in (
        ("migration_agent", policy.migration_agent and not image.migration_agent, "may move the guest elsewhere"),
        ("smt", policy.smt and not image.smt, "= false, and the guest may share its cores with others"),
        ("single_socket", image.single_socket and not policy.single_socket, "= true, and the guest may use several"),
    ):
        yield Finding(rule=rule, refusal=text if refused else None)


def _init_data(work: Workload, claims: Claims) -> Finding:
    hidden = not isinstance(claims, SampleClaims) and claims.init_data is None and claims.configuration.strip("0")
    if hidden and ANY not in work.init_data:
        return Finding(rule="init_data:", refusal="the guest was started with a configuration that it does not show")
    return _listed("init_data", work.init_data, claims.init_data or "none")


def _listed(rule: str, allowed: Iterable[str], found: str) -> Finding:
    missing = found not in (values := tuple(allowed)) and ANY not in values
    return Finding(rule=rule, refusal=f"does not list {found}" if missing else None)
