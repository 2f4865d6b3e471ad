"""The chart's broker, one on a file or several on PostgreSQL: in a restricted namespace, beside no node plugin."""

from pathlib import Path

import pytest

from csi.broker import main as broker_main
from csi.broker.directory import BrokerDirectory
from tests.fakes.chart import BROKER, BROKERS, Object, container, host_paths, of_kind, pod_of, pods, render, the

# One on a file


def test_the_broker_takes_its_command_lines() -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    parser = broker_main.parser()
    made = parser.parse_args(container(pod, "init")["args"])
    served = parser.parse_args(container(pod, "broker")["args"])
    assert made.positional_dir == served.positional_dir
    service = the(render(BROKER), "Service")
    assert made.host == [
        service["metadata"]["name"], f"{service['metadata']['name']}.storage.svc", "broker.example.com", "10.0.2.2",
    ]  # fmt: skip
    [port] = container(pod, "broker")["ports"]
    assert served.listen == f"0.0.0.0:{port['containerPort']}"
    # Not the volume's root, whose mode kubelet changes.
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container(pod, "broker")["volumeMounts"]}
    assert served.positional_dir.parent == mounts["data"]


def test_the_broker_is_one_process_whose_volume_outlives_the_release() -> None:
    spec = the(render(BROKER), "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert [claim["spec"]["storageClassName"] for claim in spec["volumeClaimTemplates"]] == ["safe"]
    existing = {**BROKER, "broker": {"enabled": True, "storage": {"existingClaim": "mine"}}}
    spec = the(render(existing), "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in spec
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}} in spec["template"]["spec"]["volumes"]


def test_the_broker_gets_its_policy_and_its_master_key() -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    assert the(render(BROKER), "ConfigMap")["data"]["policy.toml"] == BROKER["broker"]["policy"]
    directory = container(pod, "broker")["args"][1]
    assert container(pod, "policy")["command"] == [
        "install", "--mode=0644", "/etc/sealed-local/policy.toml", f"{directory}/policy.toml",
    ]  # fmt: skip
    assert [entry["name"] for entry in pod["initContainers"]] == ["init", "policy"], (
        "init keeps a policy, so it is first"
    )
    for name in ("init", "broker"):
        [variable] = container(pod, name)["env"]
        assert variable["name"] == "SEALED_LOCAL_BROKER_MASTER_KEY"
        assert variable["valueFrom"] == {"secretKeyRef": {"name": "broker-master", "key": "master-key"}}
    # Without a policy of the chart's the operator's own file stays.
    unset = {**BROKER, "broker": {"enabled": True}}
    assert [entry["name"] for entry in pod_of(the(render(unset), "StatefulSet"))["initContainers"]] == ["init"]
    assert not of_kind(render(unset), "ConfigMap")


def test_the_broker_connects_to_nobody() -> None:
    policy = the(render(BROKER), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"port": "https", "protocol": "TCP"}], "from": BROKER["broker"]["from"]}]


@pytest.mark.parametrize("values", [BROKER, BROKERS], ids=["one", "several"])
def test_the_broker_fits_a_restricted_namespace(values: Object) -> None:
    for pod in pods(render(values)):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for entry in [*pod["initContainers"], *pod["containers"]]:
            assert entry["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not host_paths(pod)


# Several on PostgreSQL


def changed(**broker: object) -> Object:
    """Brokers on PostgreSQL, with other values."""
    return {**BROKERS, "broker": BROKERS["broker"] | broker}


def given(pod: Object) -> dict[str, set[str]]:
    """The entries of each Secret that a pod can read, by the Secret's name."""
    found: dict[str, set[str]] = {}
    for volume in pod["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            found.setdefault(source["secret"]["name"], set()).update(item["key"] for item in source["secret"]["items"])
        assert "secret" not in volume
    return found


def required(pod: Object) -> set[str]:
    """Those without which it doesn't start."""
    [keys] = [volume for volume in pod["volumes"] if volume["name"] == "keys"]
    secrets = [source["secret"] for source in keys["projected"]["sources"]]
    return {item["key"] for secret in secrets if not secret.get("optional") for item in secret["items"]}


def test_several_brokers_are_spread_and_replaced_one_at_a_time() -> None:
    objects = render(BROKERS)
    spec, name = the(objects, "Deployment")["spec"], the(objects, "Deployment")["metadata"]["name"]
    selector = spec["selector"]["matchLabels"]
    assert spec["replicas"] == 3
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}
    by_key = {entry["topologyKey"]: entry for entry in pod_of(the(objects, "Deployment"))["topologySpreadConstraints"]}
    hosts = by_key["kubernetes.io/hostname"]
    assert (hosts["maxSkew"], hosts["whenUnsatisfiable"]) == (1, "DoNotSchedule")
    assert hosts["nodeTaintsPolicy"] == "Honor", "the place on a dead machine would be kept free for ever"
    assert all(entry["labelSelector"]["matchLabels"] == selector for entry in by_key.values())
    budget = the(objects, "PodDisruptionBudget", name)["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == selector == the(objects, "Service")["spec"]["selector"]
    assert not of_kind(render(changed(replicas=1)), "PodDisruptionBudget")
    assert not of_kind(objects, "StatefulSet")


def test_a_guest_stays_at_the_broker_that_it_attested_at_while_that_is_ready() -> None:
    assert the(render(BROKERS), "Service")["spec"]["sessionAffinity"] == "ClientIP"
    broker = container(pod_of(the(render(BROKERS), "Deployment")), "broker")
    assert broker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert broker["livenessProbe"]["httpGet"]["path"] == "/healthz", "a database that is away is no reason to be killed"


def test_every_replica_has_the_same_keys_and_makes_none() -> None:
    pod = pod_of(the(render(BROKERS), "Deployment"))
    assert [entry["name"] for entry in pod["initContainers"]] == ["keys"], "`broker init` would make what is missing"
    served = broker_main.parser().parse_args(container(pod, "broker")["args"])
    assert all(str(served.positional_dir) in line for line in container(pod, "keys")["command"][2].splitlines())
    pairs = {f"{name}.{end}" for name in ("server", "token") for end in ("key", "pem")}
    assert required(pod) == pairs | {"audit.key", "ca.pem", "master.key", "policy.toml", "uri"}
    assert "ca.key" not in given(pod)["broker-keys"]
    [keys] = [volume["projected"] for volume in pod["volumes"] if volume["name"] == "keys"]
    assert keys["defaultMode"] == 0o440
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["emptyDir"]["medium"] == "Memory", "keys are never on the node's disk"
    [collateral] = [mount for mount in container(pod, "broker")["volumeMounts"] if mount["name"] == "collateral"]
    assert Path(collateral["mountPath"]) == BrokerDirectory(served.positional_dir).collateral.root


def test_what_is_given_otherwise_is_not_asked_of_the_secret() -> None:
    pod = pod_of(the(render(changed(masterKeySecret="master", policy="version = 1")), "Deployment"))
    assert not {"master.key", "policy.toml"} & given(pod)["broker-keys"]
    assert [entry["name"] for entry in pod["initContainers"]] == ["keys", "policy"]
    assert "env" not in container(pod, "keys")
    assert container(pod, "broker")["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "master"


def test_brokers_and_backups_connect_to_the_database_and_who_resolves_its_name() -> None:
    database = {"ports": [{"port": 5432, "protocol": "TCP"}], "to": BROKERS["broker"]["postgresql"]["to"]}
    policies = of_kind(render(BROKERS), "NetworkPolicy")
    assert len(policies) == 2
    for policy in policies:
        first, names = policy["spec"]["egress"]
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        assert first == database
        assert {entry["port"] for entry in names["ports"]} == {53}
        assert names["to"]
    no_names = changed(postgresql=BROKERS["broker"]["postgresql"] | {"dns": []})
    assert all(policy["spec"]["egress"] == [database] for policy in of_kind(render(no_names), "NetworkPolicy"))


# Backups


def test_a_backup_job_has_the_keys_that_a_backup_takes_and_serves_nobody() -> None:
    objects = render(BROKERS)
    job = the(objects, "CronJob")
    pod = pod_of(job)
    assert job["spec"]["schedule"] == "17 2 * * *"
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert given(pod)["broker-keys"] == {"audit.key", "master.key", "kms.toml", "kms.pin"}
    assert {"name": "backup", "persistentVolumeClaim": {"claimName": "backups"}} in pod["volumes"]
    labels = job["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
    assert not the(objects, "Service")["spec"]["selector"].items() <= labels.items()
    policy = the(objects, "NetworkPolicy", job["metadata"]["name"])["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["ingress"] == []
    assert not of_kind(render(changed(backup={"schedule": ""})), "CronJob")
