"""Init-data for a pod, made from a policy by whoever writes the pod: on the tenant's machine, not in the guest. No I/O."""

import base64
import gzip

from csi.core.errors import InvalidInput
from csi.guest import policy as guest_policy
from csi.kbs import init_data
from csi.kbs.claim_name import POLICY_ENTRY


def text(policy: str, algorithm: str, source: str) -> str:
    """The init-data text that carries a policy. Raises `InvalidInput` for a policy that no guest would take."""
    entry = f'"{POLICY_ENTRY}" = {_quoted(policy)}\n'
    made = f'version = "0.1.0"\nalgorithm = "{algorithm}"\n\n[data]\n{entry}'
    init_data.check_size(made, source)
    guest_policy.parse(made, source)
    if init_data.parse(made, source).files[POLICY_ENTRY] != policy:
        raise InvalidInput(source, "has line ends that TOML doesn't keep; write plain newlines")
    return made


def annotation(made: str) -> str:
    """The value of Kata's annotation for a text. The same text always gives the same value."""
    return base64.b64encode(gzip.compress(made.encode(), mtime=0)).decode()


def _quoted(policy: str) -> str:
    """A multi-line string of TOML: as it stands where it can be, because people compare it by eye."""
    if "'''" not in policy:
        return f"'''\n{policy}'''"
    escaped = policy.replace("\\", "\\\\").replace('"', '\\"')
    return f'"""\n{escaped}"""'
