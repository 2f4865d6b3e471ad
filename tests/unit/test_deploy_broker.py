"""The chart's broker: one process that keeps its keys, in a restricted namespace, beside no node plugin."""

from pathlib import Path

from csi.broker import main as broker_main
from tests.fakes.chart import BROKER, container, host_paths, of_kind, pod_of, render, the

# The broker


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


def test_the_broker_fits_a_restricted_namespace_and_connects_to_nobody() -> None:
    pod = pod_of(the(render(BROKER), "StatefulSet"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for entry in [*pod["initContainers"], *pod["containers"]]:
        assert entry["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert not host_paths(pod)
    policy = the(render(BROKER), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert policy["ingress"] == [{"ports": [{"port": "https", "protocol": "TCP"}], "from": BROKER["broker"]["from"]}]
