"""The configuration of the confidential-data-hub behind: nothing but its socket is another one."""

import tomllib
from pathlib import Path

import pytest

from csi.core.errors import InvalidInput
from csi.guest.serve import behind, cdh_config

AGENTS = """socket = "unix:///run/confidential-containers/cdh.sock"
credentials = []
# socket = "a comment"

[kbc]
name = "cc_kbc"
url = "https://trustee:8080"
socket = "of another table"
"""
PATH = "/run/x-behind.sock"


@pytest.mark.parametrize("given", [AGENTS, "", "[kbc]\nname = 'x'\nurl = ''", "'socket'='x'\na = 1", "a = 1"])
def test_the_socket_is_replaced_and_nothing_else(given: str) -> None:
    made = cdh_config.with_socket(given, PATH)
    assert tomllib.loads(made) == tomllib.loads(given) | {"socket": f"unix://{PATH}"}


@pytest.mark.parametrize("given", ["socket = '''\nx'''\n", "a = ", "a = '''\nsocket = 1'''", 'soc\\u006bet = "x"'])
def test_a_text_whose_socket_can_not_be_replaced_alone_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput):
        cdh_config.with_socket(given, PATH)


@pytest.mark.parametrize(
    ("kernel", "name", "url"),
    [
        ("quiet agent.aa_kbc_params=cc_kbc::https://t:8080 x", "cc_kbc", "https://t:8080"),
        ("quiet", "offline_fs_kbc", ""),
    ],
)
def test_without_a_configuration_the_kernels_command_line_counts(kernel: str, name: str, url: str) -> None:
    made = tomllib.loads(cdh_config.from_command_line(kernel, PATH))
    assert made == {"socket": f"unix://{PATH}", "kbc": {"name": name, "url": url}}


def test_the_copy_lies_beside_the_socket_and_the_original_stays(tmp_path: Path) -> None:
    given = tmp_path / "cdh.toml"
    given.write_text(AGENTS)
    other = behind.socket_beside(tmp_path / "cdh.sock")
    written = behind.write_config(str(given), tmp_path, other)
    assert other == tmp_path / "cdh-behind.sock"
    assert tomllib.loads(written.read_text())["socket"] == f"unix://{other}"
    assert given.read_text() == AGENTS
