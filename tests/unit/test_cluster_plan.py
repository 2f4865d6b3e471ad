"""What the cluster helper decides: events, NodeLocalStorage objects, releases and the report, from what is seen."""

import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from csi.cluster.objects import InitConfig, Node, NodeStorage, RuntimeClass, Seen, Silent
from csi.cluster.plan import decide, ledger, node_storage
from csi.cluster.plan.actions import (
    Action,
    ReleaseClaim,
    ReleaseVolume,
    RemoveNodeStorage,
    ReportNodeStorage,
    Tell,
    WriteNodeStorage,
)
from csi.cluster.plan.decide import Memory, Moment, Rules
from csi.core import local_storage
from csi.core.kubernetes import Claim, Pod, StorageClass, Volume, VolumeSpec
from csi.core.local_storage import Condition, Page, VolumeGroup

DRIVER = "sealed-local.csi"
KEY = "topology.sealed-local.csi/node"
RULES = Rules(
    driver=DRIVER,
    topology_key=KEY,
    kata_handlers=re.compile("kata.*"),
    init_config="open-local",
    settle_seconds=300,
    release_after_seconds=0,
    heartbeat_seconds=300,
)
RELEASING = replace(RULES, release_after_seconds=3600)


def read(kind: type[Any], value: Any) -> Any:
    """As from JSON."""
    return msgspec.convert(value, type=kind)


def claim(name: str = "data", *, storage_class: str = "plain", volume: str = "", **metadata: Any) -> Claim:
    made = {"name": name, "namespace": "shop", "uid": f"claim-{name}", **metadata}
    return read(Claim, {"metadata": made, "spec": {"storageClassName": storage_class, "volumeName": volume}})  # type: ignore[no-any-return]


def volume(
    name: str,
    node: str = "n1",
    *,
    attributes: dict[str, str] | None = None,
    driver: str = DRIVER,
    claim_name: str = "data",
    phase: str = "Bound",
    policy: str = "Delete",
    **metadata: Any,
) -> Volume:
    requirement = {"key": KEY, "operator": "In", "values": [node]}
    return read(  # type: ignore[no-any-return]
        Volume,
        {
            "metadata": {"name": name, "uid": f"volume-{name}", **metadata},
            "spec": {
                "claimRef": {"name": claim_name, "namespace": "shop", "uid": f"claim-{claim_name}"},
                "csi": {"driver": driver, "volumeHandle": name, "volumeAttributes": attributes or {}},
                "persistentVolumeReclaimPolicy": policy,
                "storageClassName": "plain",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}},
            },
            "status": {"phase": phase},
        },
    )


def node(name: str = "n1", **labels: str) -> Node:
    return read(Node, {"metadata": {"name": name, "uid": f"node-{name}", "labels": {KEY: name, **labels}}})  # type: ignore[no-any-return]


def page(*volumes: str, node: str = "n1", complete: bool = True, deleting: bool = False) -> Page:
    held = tuple(local_storage.Volume(id=one, vg="vg0", total=2**30, deleting=deleting) for one in volumes)
    group = VolumeGroup(name="vg0", total=10, available=5, allocatable=6, physical_volumes=("/dev/sdb",))
    return Page(driver=DRIVER, node=node, topology=node, complete=complete, groups=(group,), volumes=held)


def pod(runtime: str = "", phase: str = "Pending", **metadata: Any) -> Pod:
    return read(  # type: ignore[no-any-return]
        Pod,
        {
            "metadata": {"name": "web", "namespace": "shop", "uid": "pod-web", **metadata},
            "spec": {
                "runtimeClassName": runtime,
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
            "status": {"phase": phase},
        },
    )


def storage_class(name: str, **parameters: str) -> StorageClass:
    return read(  # type: ignore[no-any-return]
        StorageClass, {"metadata": {"name": name}, "provisioner": DRIVER, "parameters": parameters}
    )


def runtime(name: str, handler: str) -> RuntimeClass:
    return read(RuntimeClass, {"metadata": {"name": name}, "handler": handler})  # type: ignore[no-any-return]


def storage(name: str = "n1", spec: Any = None, status: Any = None) -> NodeStorage:
    made = {
        "metadata": {"name": name, "uid": f"nls-{name}"},
        "spec": spec or {"nodeName": name},
        "status": status or {},
    }
    return read(NodeStorage, made)  # type: ignore[no-any-return]


def at(seconds: float) -> Moment:
    return Moment(seconds=seconds, text=f"2026-11-26T00:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}Z")


def once(seen: Seen, rules: Rules = RULES) -> tuple[Action, ...]:
    return decide.actions(seen, Memory(), rules, at(0))[0]


def after(seconds: float, *looks: Seen, rules: Rules = RULES) -> tuple[Action, ...]:
    """What is done in the last of some looks, so many seconds apart."""
    memory, done = Memory(), tuple[Action, ...]()
    for number, seen in enumerate(looks):
        done, memory = decide.actions(seen, memory, rules, at(number * seconds))
    return done


def told(actions: tuple[Action, ...]) -> list[tuple[str, str, str]]:
    return [
        (one.subject.reference.kind, one.subject.reference.name, one.message)
        for one in actions
        if isinstance(one, Tell)
    ]


# Runtimes


DIRECT = storage_class("direct", direct="true")
SEALED = storage_class("sealed", sealed="xts")
PLAIN = storage_class("plain")
KATA = runtime("kata-qemu-tdx", "kata-qemu-tdx")
CRUN = runtime("quick", "crun")


@pytest.mark.parametrize("name", ["direct", "sealed"])
@pytest.mark.parametrize(
    ("runtime_class", "said"),
    [("", "no runtimeClassName"), ("quick", "has the handler crun"), ("kata", "isn't there")],
)
def test_a_pod_without_a_runtime_of_kata_is_warned_about_a_direct_or_sealed_claim(
    name: str, runtime_class: str, said: str
) -> None:
    seen = Seen(
        pods=(pod(runtime_class),),
        claims=(claim(storage_class=name),),
        classes=(DIRECT, SEALED, PLAIN),
        runtimes=(KATA, CRUN),
    )
    [(kind, about, message)] = told(once(seen))
    assert (kind, about) == ("Pod", "web")
    assert said in message
    assert f"claim data is a {name} volume" in message
    assert "one of these RuntimeClasses: kata-qemu-tdx" in message


@pytest.mark.parametrize(
    ("used_by", "used", "runtimes"),
    [
        (pod("kata-qemu-tdx"), claim(storage_class="direct"), (KATA,)),
        (pod(), claim(storage_class="plain"), (KATA,)),
        (pod(phase="Succeeded"), claim(storage_class="direct"), (KATA,)),
        (pod(deletionTimestamp="2026-01-01T00:00:00Z"), claim(storage_class="direct"), (KATA,)),
        (pod(), claim(storage_class="elsewhere"), (KATA,)),
        (pod(), claim("other", storage_class="direct"), (KATA,)),
    ],
)
def test_nobody_is_warned_where_the_runtime_fits_or_no_such_claim_is_used(
    used_by: Pod, used: Claim, runtimes: tuple[RuntimeClass, ...]
) -> None:
    elsewhere = msgspec.structs.replace(storage_class("elsewhere", direct="true"), provisioner="another.csi")
    seen = Seen(pods=(used_by,), claims=(used,), classes=(DIRECT, PLAIN, elsewhere), runtimes=runtimes)
    assert told(once(seen)) == []


def test_a_bound_volume_counts_and_not_the_class_that_was_made_anew_under_its_name() -> None:
    seen = Seen(
        pods=(pod(),),
        claims=(claim(storage_class="plain", volume="pvc-1"),),
        volumes=(volume("pvc-1", attributes={"direct": "True"}),),
        classes=(PLAIN,),
    )
    assert "a direct volume" in told(once(seen))[0][2]
    assert "has no RuntimeClass of Kata; install Kata" in told(once(seen))[0][2]


# Orphans


def test_a_volume_that_no_persistent_volume_means_is_told_when_it_has_been_so_for_a_while() -> None:
    seen = Seen(nodes=(node(),), pages=(page("pvc-1", "pvc-2"),), volumes=(volume("pvc-1"),))
    assert told(after(299, seen, seen)) == []
    [(kind, name, message)] = told(after(300, seen, seen))
    assert (kind, name) == ("Node", "n1")
    assert "vg0/pvc-2 (1 GiB) belongs to no PersistentVolume" in message


def test_a_volume_that_is_being_wiped_and_one_of_another_driver_are_no_orphans() -> None:
    wiped = Seen(nodes=(node(),), pages=(page("pvc-1", deleting=True),))
    other = Seen(nodes=(node(),), pages=(msgspec.structs.replace(page("pvc-1"), driver="another.csi"),))
    assert told(after(300, wiped, wiped)) == told(after(300, other, other)) == []


def test_the_wait_begins_anew_when_it_was_not_so_in_between() -> None:
    orphan = Seen(nodes=(node(),), pages=(page("pvc-1"),))
    owned = replace(orphan, volumes=(volume("pvc-1"),))
    assert told(after(300, orphan, owned, orphan)) == []


def test_a_persistent_volume_whose_node_has_no_such_volume_is_told_with_its_claim() -> None:
    seen = Seen(nodes=(node(),), pages=(page(),), volumes=(volume("pvc-1"),), claims=(claim(volume="pvc-1"),))
    assert told(after(299, seen, seen)) == []
    found = told(after(300, seen, seen))
    assert [(kind, name) for kind, name, _ in found] == [
        ("PersistentVolume", "pvc-1"),
        ("PersistentVolumeClaim", "data"),
    ]
    assert all("node n1 has no logical volume pvc-1" in message for _, _, message in found)


@pytest.mark.parametrize(
    "seen",
    [
        Seen(nodes=(node(),), pages=(page(complete=False),), volumes=(volume("pvc-1"),)),
        Seen(nodes=(node(),), pages=(), volumes=(volume("pvc-1"),)),
        Seen(nodes=(node(), node("n2")), pages=(page(), page("pvc-1", node="n2")), volumes=(volume("pvc-1"),)),
        Seen(nodes=(node("n2"),), pages=(page(node="n2"),), volumes=(volume("pvc-1"),)),
        Seen(nodes=(node(),), pages=(page(),), volumes=(volume("pvc-1", driver="another.csi"),)),
        Seen(nodes=(node(),), pages=(page(),), volumes=(volume("pvc-1", deletionTimestamp="2026-01-01T00:00:00Z"),)),
    ],
    ids=[
        "not everything was looked at",
        "silent",
        "it is elsewhere",
        "another node",
        "another driver",
        "being deleted",
    ],
)
def test_a_volume_is_lost_only_where_its_own_node_has_looked_everywhere(seen: Seen) -> None:
    assert [one for one in told(after(300, seen, seen)) if "has no logical volume" in one[2]] == []


# Nodes that are gone


GONE = Seen(nodes=(node("n2"),), volumes=(volume("pvc-1"),), claims=(claim(volume="pvc-1"),))


def released(actions: tuple[Action, ...]) -> list[str]:
    return [one.metadata.name for one in actions if isinstance(one, ReleaseClaim | ReleaseVolume)]


def test_claims_of_a_node_that_is_gone_are_released_only_when_the_operator_says_so() -> None:
    assert released(after(3600, GONE, GONE, GONE)) == []
    assert released(after(3600, GONE, GONE, rules=RELEASING)) == ["data"]


def test_they_wait_for_the_whole_time_without_a_break() -> None:
    back = replace(GONE, nodes=(node("n1"), node("n2")))
    assert released(after(3599, GONE, GONE, rules=RELEASING)) == []
    assert released(after(3600, GONE, back, GONE, rules=RELEASING)) == []


@pytest.mark.parametrize(
    "seen",
    [
        replace(GONE, nodes=()),
        replace(GONE, nodes=(read(Node, {"metadata": {"name": "n1"}}),)),
        replace(GONE, nodes=(read(Node, {"metadata": {"name": "other", "labels": {KEY: "n1"}}}),)),
        replace(GONE, pages=(page("pvc-1"),)),
        replace(GONE, volumes=(volume("pvc-1", driver="another.csi"),)),
        replace(
            GONE,
            volumes=(msgspec.structs.replace(volume("pvc-1"), spec=read(Volume, {"metadata": {"name": "x"}}).spec),),
        ),
    ],
    ids=[
        "no nodes known",
        "its name is there",
        "its label is there",
        "its plugin answers",
        "another driver",
        "anywhere",
    ],
)
def test_nothing_is_released_on_a_doubt(seen: Seen) -> None:
    assert released(after(3600, seen, seen, rules=RELEASING)) == []


def test_the_volume_goes_after_its_claim_and_only_where_its_class_deletes_volumes() -> None:
    left = replace(GONE, claims=(), volumes=(volume("pvc-1", phase="Released"),))
    assert released(after(3600, left, left, rules=RELEASING)) == ["pvc-1"]
    unseen = replace(left, volumes=(volume("pvc-1"),))
    assert released(after(3600, unseen, unseen, rules=RELEASING)) == []
    kept = replace(left, volumes=(volume("pvc-1", phase="Released", policy="Retain"),))
    assert released(after(3600, kept, kept, rules=RELEASING)) == []


def test_a_volume_that_another_node_reaches_too_is_not_given_up() -> None:
    requirement = {"key": KEY, "operator": "In", "values": ["n1", "n2"]}
    terms = {"required": {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}
    spec = msgspec.to_builtins(volume("pvc-1").spec) | {"nodeAffinity": terms}
    shared = replace(GONE, volumes=(msgspec.structs.replace(volume("pvc-1"), spec=msgspec.convert(spec, VolumeSpec)),))
    assert released(after(3600, shared, shared, rules=RELEASING)) == []


def test_a_claim_that_is_being_deleted_is_not_deleted_again() -> None:
    waiting = replace(GONE, claims=(claim(volume="pvc-1", deletionTimestamp="2026-01-01T00:00:00Z"),))
    assert released(after(3600, waiting, waiting, rules=RELEASING)) == []


# NodeLocalStorage


def config(**spec: Any) -> InitConfig:
    return read(InitConfig, {"metadata": {"name": "open-local"}, "spec": spec})  # type: ignore[no-any-return]


GENERAL = {"listConfig": {"vgs": {"include": ["open-local-pool-[0-9]+"]}}}
FAST = {"resourceToBeInited": {"vgs": [{"name": "fast-0", "devices": ["/dev/nvme0n1"]}]}}


def test_a_node_with_a_plugin_gets_an_object_and_one_without_gets_none() -> None:
    seen = Seen(nodes=(node("n1"), node("n2")), pages=(page(),), node_storages=())
    [made] = [one for one in once(seen) if isinstance(one, WriteNodeStorage)]
    assert (made.name, made.spec, made.before) == ("n1", {"nodeName": "n1"}, None)


def test_without_the_kind_nothing_is_written() -> None:
    assert once(Seen(nodes=(node(),), pages=(page(),))) == ()


def test_the_spec_is_what_the_configuration_means_and_its_last_match_wins() -> None:
    selected = [
        {"selector": {"matchLabels": {"disk": "nvme"}}, **FAST},
        {"selector": {"matchLabels": {"disk": "hdd"}}, "listConfig": {}},
        {**FAST},
    ]
    given = config(globalConfig=GENERAL, nodesConfig=selected)
    assert node_storage.spec_of("n1", {"disk": "nvme"}, given, None) == {"nodeName": "n1", **GENERAL, **FAST}
    assert node_storage.spec_of("n1", {"disk": "hdd"}, given, None) == {"nodeName": "n1", "listConfig": {}}
    assert node_storage.spec_of("n1", {}, given, None) == {"nodeName": "n1", **GENERAL}


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ({"key": "disk", "operator": "In", "values": ["nvme"]}, {"nvme"}),
        ({"key": "disk", "operator": "NotIn", "values": ["nvme"]}, {"hdd", ""}),
        ({"key": "disk", "operator": "Exists"}, {"nvme", "hdd"}),
        ({"key": "disk", "operator": "DoesNotExist"}, {""}),
        ({"key": "disk", "operator": "Gt", "values": ["1"]}, set()),
    ],
)
def test_a_selector_means_what_kubernetes_says(expression: Any, chosen: set[str]) -> None:
    given = config(nodesConfig=[{"selector": {"matchExpressions": [expression]}, **FAST}]).spec.nodes_config[0]
    meant = {disk for disk in ("nvme", "hdd", "") if node_storage.selects(given, {"disk": disk} if disk else {})}
    assert meant == chosen


def test_a_spec_without_a_configuration_stays_as_somebody_wrote_it() -> None:
    mine = storage(spec={"nodeName": "n1", "listConfig": {"vgs": {"include": ["x"]}}})
    seen = Seen(nodes=(node(),), pages=(page(),), node_storages=(mine,))
    assert [one for one in once(seen) if isinstance(one, WriteNodeStorage)] == []
    named = replace(seen, init_configs=(config(globalConfig=GENERAL),))
    [changed] = [one for one in once(named) if isinstance(one, WriteNodeStorage)]
    assert changed.spec == {"nodeName": "n1", **GENERAL}
    other = msgspec.structs.replace(config(globalConfig=GENERAL), metadata=claim("another").metadata)
    assert [one for one in once(replace(seen, init_configs=(other,))) if isinstance(one, WriteNodeStorage)] == []


def status(seen: Seen) -> Any:
    [one] = [one for one in once(seen) if isinstance(one, ReportNodeStorage)]
    return one.status


def test_the_status_says_what_the_page_says() -> None:
    made = status(Seen(nodes=(node(),), pages=(page("pvc-1"),), node_storages=(storage(),)))
    [group] = made["nodeStorageInfo"]["volumeGroups"]
    assert (group["name"], group["total"], group["available"], group["allocatable"]) == ("vg0", 10, 5, 6)
    assert (tuple(group["physicalVolumes"]), group["condition"]) == (("/dev/sdb",), "DiskReady")
    assert made["nodeStorageInfo"]["phase"] == "Running"
    assert made["nodeStorageInfo"]["state"] == {
        "type": "DiskReady",
        "status": "True",
        "reason": "Reported",
        "message": "",
        "lastHeartbeatTime": "2026-11-26T00:00:00Z",
        "lastTransitionTime": "2026-11-26T00:00:00Z",
    }
    assert made["filteredStorageInfo"]["volumeGroups"] == ["vg0"]
    assert made["filteredStorageInfo"]["updateStatusInfo"]["updateStatus"] == "accepted"


@pytest.mark.parametrize(
    ("conditions", "complete", "state"),
    [
        ([Condition.READY, Condition.FULL], True, "DiskReady"),
        ([Condition.FULL, Condition.FULL], True, "DiskFull"),
        ([Condition.READY, Condition.FAULT], True, "DiskFault"),
        ([Condition.READY], False, "DiskFault"),
        ([], True, "DiskReady"),
    ],
)
def test_the_state_is_true(conditions: list[Condition], complete: bool, state: str) -> None:
    groups = tuple(VolumeGroup(name=f"vg{number}", condition=one) for number, one in enumerate(conditions))
    told_page = msgspec.structs.replace(page(complete=complete), groups=groups)
    made = status(Seen(nodes=(node(),), pages=(told_page,), node_storages=(storage(),)))
    assert made["nodeStorageInfo"]["state"]["type"] == state


def test_what_is_unchanged_is_written_again_only_for_its_heartbeat() -> None:
    seen = Seen(nodes=(node(),), pages=(page(),), node_storages=(storage(),))
    written = replace(seen, node_storages=(storage(status=msgspec.to_builtins(status(seen))),))
    assert [one for one in after(299, written, written) if isinstance(one, ReportNodeStorage)] == []
    [beat] = [one for one in after(300, written, written) if isinstance(one, ReportNodeStorage)]
    state = beat.status["nodeStorageInfo"]["state"]
    assert (state["lastHeartbeatTime"], state["lastTransitionTime"]) == ("2026-11-26T00:05:00Z", "2026-11-26T00:00:00Z")
    grown = replace(written, pages=(page("pvc-9"),))
    bigger = replace(written, pages=(msgspec.structs.replace(page(), groups=(VolumeGroup(name="vg0", total=99),)),))
    assert [one for one in after(10, written, bigger) if isinstance(one, ReportNodeStorage)] != []
    assert [one for one in after(10, written, grown) if isinstance(one, ReportNodeStorage)] == [], "no part of a group"


def test_a_silent_node_keeps_its_last_status_and_its_old_heartbeat() -> None:
    seen = Seen(nodes=(node(),), pages=(page(),), node_storages=(storage(),))
    last = msgspec.to_builtins(status(seen))
    silent = replace(
        seen, pages=(), silent=(Silent(node="n1", why="no answer"),), node_storages=(storage(status=last),)
    )
    [one] = [one for one in after(60, silent, silent) if isinstance(one, ReportNodeStorage)]
    state = one.status["nodeStorageInfo"]["state"]
    assert (state["type"], state["status"], state["message"]) == ("DiskReady", "Unknown", "no answer")
    assert (state["lastHeartbeatTime"], state["lastTransitionTime"]) == ("2026-11-26T00:00:00Z", "2026-11-26T00:01:00Z")
    assert one.status["nodeStorageInfo"]["volumeGroups"] == last["nodeStorageInfo"]["volumeGroups"]


def test_the_object_of_a_node_that_is_gone_goes_and_none_where_no_node_is_known() -> None:
    seen = Seen(nodes=(node("n2"),), node_storages=(storage("n1"), storage("n2")))
    assert [one.metadata.name for one in once(seen) if isinstance(one, RemoveNodeStorage)] == ["n1"]
    assert once(replace(seen, nodes=())) == ()


def test_a_group_that_the_configuration_asks_for_and_the_node_does_not_have_is_told() -> None:
    wants = storage(spec={"nodeName": "n1", **FAST})
    [(kind, name, message)] = told(once(Seen(nodes=(node(),), pages=(page(),), node_storages=(wants,))))
    assert (kind, name) == ("NodeLocalStorage", "n1")
    assert "asks for volume group fast-0 on /dev/nvme0n1" in message
    assert "pools: [{name: fast-0, vgs: [fast-0], devices: [/dev/nvme0n1]}]" in message
    has = msgspec.structs.replace(page(), groups=(VolumeGroup(name="fast-0"),))
    assert told(once(Seen(nodes=(node(),), pages=(has,), node_storages=(wants,)))) == []


# The report of sealed volumes


def report(before: dict[str, str], seen: Seen, now: str) -> dict[str, Any]:
    return {name: msgspec.json.decode(text) for name, text in ledger.renewed(before, seen, DRIVER, now).items()}


def test_a_sealed_volume_is_written_down_while_it_is_there_and_dated_when_it_goes() -> None:
    there = Seen(
        volumes=(volume("pvc-1", attributes={"sealed": "xts"}), volume("pvc-2", claim_name="plain")),
        claims=(claim(volume="pvc-1"),),
    )
    first = ledger.renewed({}, there, DRIVER, "T1")
    assert report({}, there, "T1") == {
        "pvc-1": {"namespace": "shop", "claim": "data", "storageClass": "plain", "profile": "xts"}
    }
    second = ledger.renewed(first, replace(there, claims=()), DRIVER, "T2")
    third = ledger.renewed(second, Seen(), DRIVER, "T3")
    fourth = ledger.renewed(third, Seen(), DRIVER, "T4")
    assert msgspec.json.decode(second["pvc-1"])["claimDeleted"] == "T2"
    assert msgspec.json.decode(third["pvc-1"]) == msgspec.json.decode(fourth["pvc-1"])
    assert (
        msgspec.json.decode(third["pvc-1"])["claimDeleted"],
        msgspec.json.decode(third["pvc-1"])["volumeDeleted"],
    ) == (
        "T2",
        "T3",
    )


def test_a_volume_that_comes_back_is_not_called_deleted_any_more() -> None:
    there = Seen(volumes=(volume("pvc-1", attributes={"sealed": "xts"}),), claims=(claim(),))
    gone = ledger.renewed(ledger.renewed({}, there, DRIVER, "T1"), Seen(), DRIVER, "T2")
    back = report(dict(gone), there, "T3")["pvc-1"]
    assert not {"claimDeleted", "volumeDeleted"} & back.keys()


def test_the_report_stays_within_a_configmap_and_keeps_the_newest() -> None:
    def deleted(number: int) -> str:
        entry = ledger.Entry(namespace="shop", claim="c", profile="xts", volume_deleted=f"T{number:05}")
        return msgspec.json.encode(entry).decode()

    many = {f"pvc-{number}": deleted(number) for number in range(ledger.MOST_DELETED + 2)}
    kept = ledger.renewed(many, Seen(), DRIVER, "T9")
    assert set(many) - set(kept) == {"pvc-0", "pvc-1"}
    assert sum(len(name) + len(text) for name, text in kept.items()) < 1024 * 1024


def test_an_entry_that_nobody_can_read_stays() -> None:
    assert ledger.renewed({"note": "hello"}, Seen(), DRIVER, "T1") == {"note": "hello"}
