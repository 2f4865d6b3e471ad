"""`broker policy explain` and `learn`: given evidence against the policy, and the reference set that it would meet."""

import datetime as dt
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path

from csi.broker import appraise, given, images
from csi.broker.claims import Claims, SampleClaims, SnpClaims, StoredClaims
from csi.broker.directory import BrokerDirectory
from csi.broker.findings import Finding, first_refusal, platform_findings, workload_findings
from csi.broker.release import ReleasePolicy
from csi.broker.verbs.common import as_json, read
from csi.broker.verifiers import verifier_for
from csi.broker.verifiers.known import known_verifiers
from csi.core.errors import InvalidInput, Refused
from csi.kbs import init_data


def explain(arguments: Namespace) -> int:
    """Print every rule with its verdict; 0 when the guest belongs to a workload, else 1."""
    directory = BrokerDirectory(arguments.dir)
    policy = directory.load_policy()
    claims = _claims(directory, arguments)
    print(f"the evidence verifies: {as_json(StoredClaims.of(claims))}")
    for line in trace(policy, claims):
        print(line)
    platform = first_refusal(platform_findings(policy, claims))
    members = appraise.memberships(policy, claims)
    if members:
        print(f"verdict: the guest belongs to {', '.join(members)}")
        return 0
    print(f"verdict: REFUSED, {platform or 'the guest belongs to no workload'}")
    return 1


def learn(arguments: Namespace) -> int:
    """Print a reference set. It is never put into the policy by itself: only a person knows whether the guest was good."""
    claims = _claims(BrokerDirectory(arguments.dir), arguments)
    if isinstance(claims, SampleClaims):
        raise Refused("evidence of the sample TEE proves nothing; there is nothing to learn from it")
    if claims.debug:
        raise Refused("the guest is in debug mode: whatever it measured, the host could have changed")
    print(images.learned(claims, arguments.name), end="")
    print(f"# init-data: {claims.init_data or 'none was given; --init-data FILE'}")
    if isinstance(claims, SnpClaims):
        tcb = claims.reported_tcb
        print(f"# this machine's TCB, as a floor:\n# [tee.snp.minimum_tcb.{claims.product}]")
        print(f"# fmc = {tcb.fmc}\n# bootloader = {tcb.bootloader}\n# tee = {tcb.tee}\n# snp = {tcb.snp}")
        print(f"# microcode = {tcb.microcode}")
    print("this is what one guest measured; put it into the policy only if you know that guest", file=sys.stderr)
    return 0


def trace(policy: ReleasePolicy, claims: Claims) -> Iterator[str]:
    """One line for each rule."""
    yield "platform:"
    yield from _lines(platform_findings(policy, claims))
    for work in policy.workloads:
        yield f"workload {work.name}:"
        yield from _lines(workload_findings(policy, work, claims))
    if not policy.workloads:
        yield "the policy has no [[workload]]: nothing is released to anyone"


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        verdict = "kept   " if finding.refusal is None else "REFUSED"
        yield f"  {verdict}  {finding.rule}{'' if finding.refusal is None else ' ' + finding.refusal}"


def _claims(directory: BrokerDirectory, arguments: Namespace) -> Claims:
    now = _time(arguments.at)
    text = None if arguments.init_data is None else _text(arguments.init_data)
    evidence = given.parse(read(arguments.evidence), text)
    verifiers = known_verifiers(directory.collateral, now.timestamp)
    return verifier_for(evidence.tee, verifiers).verify(evidence.evidence, evidence.expected)


def _text(path: Path) -> str:
    try:
        text = read(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(str(path), "not UTF-8") from error
    init_data.check_size(text, str(path))
    return text


def _time(text: str | None) -> dt.datetime:
    if text is None:
        return dt.datetime.now(dt.UTC)
    try:
        found = dt.datetime.fromisoformat(text)
        found = found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInput("--at", f"{text!r} is not a time like 2026-11-25T12:00:00Z") from error
    # Verifiers count seconds from 1970 on, and the calendar's last second must not round into the year 10000.
    if not 1970 <= found.year < dt.MAXYEAR:
        raise InvalidInput("--at", f"{text!r} is not a time of the years 1970 to {dt.MAXYEAR - 1}")
    return found
