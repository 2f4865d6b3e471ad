"""Who may talk to the cluster's API server, and the files that say so. What each may do is Kubernetes' own RBAC."""

import json
from dataclasses import dataclass
from pathlib import Path

AUTHORITY = "ca.pem"
"""Name of the certificate authority's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody whom the API server knows by a token; its groups are in the table of tokens."""

    name: str
    groups: tuple[str, ...] = ()


ADMIN = User(name="admin", groups=("system:masters",))
CONTROLLERS = User(name="system:kube-controller-manager")
SCHEDULER = User(name="system:kube-scheduler")


def node_user(node: str) -> User:
    """The kubelet of a node, as the node authorizer wants it."""
    return User(name=f"system:node:{node}", groups=("system:nodes",))


def kubeconfig_file(user: User) -> str:
    """Name of a user's kubeconfig."""
    return f"{user.name.rpartition(':')[2]}.kubeconfig"


def token_table(tokens: dict[User, str]) -> str:
    """The API server's `--token-auth-file`: token, user, uid, groups."""
    lines = (f'{token},{user.name},{user.name},"{",".join(user.groups)}"' for user, token in tokens.items())
    return "".join(f"{line}\n" for line in lines)


def kubeconfig(*, server: str, authority: Path, user: str, token: str) -> str:
    """A kubeconfig with one context. JSON, which is YAML, too."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    return json.dumps(config, indent=1)
