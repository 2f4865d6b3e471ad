"""The configuration of the confidential-data-hub behind: as it was given, but for its socket. Pure of I/O."""

import json
import re
import tomllib

from csi.core.errors import InvalidInput

_SOCKET = re.compile(r"\s*[\"']?socket[\"']?\s*=")
_TABLE = re.compile(r"\s*\[")
_KBC = "agent.aa_kbc_params="


def with_socket(given: str, path: str) -> str:
    """The TOML text with another socket. Raises `InvalidInput` for a text that is no TOML, or whose socket can't be
    replaced without a change of anything else.
    """
    lines = given.splitlines(keepends=True)
    first_table = next((number for number, line in enumerate(lines) if _TABLE.match(line)), len(lines))
    kept = [line for number, line in enumerate(lines) if number >= first_table or not _SOCKET.match(line)]
    address = f"unix://{path}"
    text = f"socket = {json.dumps(address)}\n{''.join(kept)}"
    try:
        before, after = tomllib.loads(given), tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            "--config", f"is not valid TOML, or its socket is not on a line of its own: {error}"
        ) from error
    if before | {"socket": address} != after:
        raise InvalidInput("--config", "its socket is not on a line of its own before the first table")
    return text


def from_command_line(kernel: str, path: str) -> str:
    """A configuration where none is given: what a stock confidential-data-hub would take from the kernel's command line."""
    given = next((word[len(_KBC) :] for word in kernel.split() if word.startswith(_KBC)), "offline_fs_kbc::")
    name, _, url = given.partition("::")
    return f"{with_socket('', path)}[kbc]\nname = {json.dumps(name)}\nurl = {json.dumps(url)}\n"
