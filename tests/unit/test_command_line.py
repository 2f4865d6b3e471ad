"""An error and the log name the command, and show nothing of what may be secret or is only noise."""

import logging

import pytest

from csi.core import command_line
from csi.core.command import LocalRunner
from csi.core.errors import CommandError, CommandTimeout

CONFIG = 'devices/global_filter=["r|^/dev/loop|"]'
CREATE = (
    "lvm",
    "lvcreate",
    "--config",
    CONFIG,
    "--yes",
    "--addtag",
    "sl:v1",
    "--addtag",
    "sl:size=1",
    "--name",
    "a",
    "vg0",
)
MOUNT = ("mount", "-t", "nfs", "-o", "password=hunter2", "--", "/dev/vg0/a", "/target")


def test_an_error_shows_tool_verb_target_status_and_what_was_said() -> None:
    text = str(CommandError(CREATE, 5, "", "  no room\n"))
    assert text == "lvm lvcreate --yes --name a vg0: exit status 5: no room"


def test_an_error_keeps_the_whole_command_for_code() -> None:
    assert CommandError(CREATE, 5, "", "").argv == CREATE
    assert CommandTimeout(MOUNT, 1).argv == MOUNT


@pytest.mark.parametrize("error", [CommandError(MOUNT, 32, "", "no"), CommandTimeout(MOUNT, 60)])
def test_mount_options_are_in_no_error(error: Exception) -> None:
    assert "hunter2" not in str(error)
    assert str(error).startswith("mount -t nfs -o *** -- /dev/vg0/a /target: ")


@pytest.mark.parametrize("before", [(), ("nsenter", "-t", "1", "-m", "--")])
def test_the_columns_that_lvm_is_asked_for_are_shown(before: tuple[str, ...]) -> None:
    argv = (*before, "lvm", "fullreport", "-o", "vg_name,vg_uuid", "--configreport", "lv", "-o", "lv_name")
    assert command_line.shown(argv) == " ".join(argv)
    assert command_line.logged(argv) == list(argv)


def test_mount_options_stay_hidden_behind_a_prefix_and_where_lvm_is_only_what_is_mounted() -> None:
    assert "hunter2" not in command_line.shown(("nsenter", "-m", "--", *MOUNT))
    assert "hunter2" not in command_line.shown(("mount", "-o", "password=hunter2", "lvm", "/target"))


def test_removed_tags_are_left_out_too() -> None:
    assert command_line.shown(["lvm", "lvchange", "--deltag", "a", "--addtag", "b", "vg/l"]) == "lvm lvchange vg/l"


@pytest.mark.parametrize("last", ["--config", "-o"])
def test_an_option_whose_value_is_missing_is_no_trouble(last: str) -> None:
    assert "***" not in command_line.shown(["mount", last])
    assert command_line.logged(["mount", last]) == ["mount", last]


def test_the_log_keeps_tags_and_hides_options_and_settings(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        LocalRunner(["true"]).run(CREATE, timeout=10)
        LocalRunner(["true"]).run(MOUNT, timeout=10)
    created, mounted = (one.__dict__["argv"] for one in caplog.records if one.message == "command")
    assert created[:5] == ["true", "lvm", "lvcreate", "--config", "..."]
    assert "sl:size=1" in created
    assert mounted == ["true", "mount", "-t", "nfs", "-o", "***", *MOUNT[5:]]
