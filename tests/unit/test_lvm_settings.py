"""What every LVM command is told, whatever the host's lvm.conf says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi.core import disks
from csi.core.command import Result
from csi.core.errors import CommandError, ToolFailed
from csi.node.lvm.command import Lvm
from csi.node.lvm.filters import DeviceFilter

ALWAYS = {
    "devices/use_devicesfile": "0",
    "devices/scan_lvs": "0",
    "devices/ignore_suspended_devices": "1",
    "devices/issue_discards": "0",
    "activation/monitoring": "0",
    "backup/archive": "0",
    "backup/backup": "0",
    "log/silent": "0",
    "log/report_command_log": "0",
    "global/units": '"b"',
    "global/suffix": "0",
    "report/list_item_separator": '","',
    "report/binary_values_as_numeric": "0",
    "report/prefixes": "0",
    "report/compact_output": "0",
    "report/output_format": '"json"',
}
REJECTED = '"r|^/dev/drbd|","r|^/dev/nbd|","r|^/dev/rbd|","r|^/dev/zram|"'


def parsed(text: str) -> dict[str, str]:
    """An lvm.conf as this driver writes it; a setting that comes twice is an error."""
    found: dict[str, str] = {}
    for section, body in re.findall(r"(\w+) \{\n(.*?)^\}\n", text, re.DOTALL | re.MULTILINE):
        for line in body.splitlines():
            name, _, value = line.strip().partition("=")
            assert f"{section}/{name}" not in found
            found[f"{section}/{name}"] = value
    return found


class Asked:
    """Remembers argv and settings of the last command, and answers with one LVM version line."""

    argv: list[str]
    env: dict[str, str]
    settings: dict[str, str]

    def run(self, argv: Any, *, env: Any = None, **_: Any) -> Result:
        self.argv, self.env = list(argv), dict(env or {})
        self.settings = parsed((Path(self.env["LVM_SYSTEM_DIR"]) / "lvm.conf").read_text())
        return Result(argv=tuple(argv), returncode=0, stdout=b"  LVM version:     2.03\n", stderr=b"")


@pytest.fixture(autouse=True)
def _no_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no group here in which a command's effect could be seen, and no disk that could be measured."""
    monkeypatch.setattr(Lvm, "_require", lambda *_: None)
    monkeypatch.setattr(disks, "size", lambda _: 1 << 40)


COMMANDS: dict[str, Callable[[Lvm], object]] = {
    "version": Lvm.version,
    "lvcreate": lambda lvm: lvm.create("vg0", "v", extents=1, tags=()),
    "lvremove": lambda lvm: lvm.remove("vg0", "v"),
    "lvchange": lambda lvm: lvm.change_tags("vg0", "v", remove=(), add=()),
    "vgcreate": lambda lvm: lvm.create_vg("vg0", ["/dev/sda"]),
    "vgextend": lambda lvm: lvm.extend_vg("vg0", ["/dev/sda"]),
}


def told(command: str, folder: Path, **options: Any) -> dict[str, str]:
    asked = Asked()
    COMMANDS[command](Lvm(asked, lock_file=folder / "lock", **({"udev": False} | options)))
    assert asked.argv[:2] == ["lvm", command]
    assert asked.env.keys() == {"LVM_SUPPRESS_FD_WARNINGS", "LVM_SYSTEM_DIR"}
    return asked.settings


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gets_all_settings(command: str, tmp_path: Path) -> None:
    settings = told(command, tmp_path)
    assert settings.items() >= ALWAYS.items()
    assert REJECTED in settings["devices/global_filter"]


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_makes_disks_writes_hints(command: str, tmp_path: Path) -> None:
    settings = told(command, tmp_path)
    assert settings["devices/hints"] == ('"all"' if command.startswith("vg") else '"none"')


def test_no_setting_is_on_the_command_line_that_lvm_writes_into_the_metadata(tmp_path: Path) -> None:
    asked = Asked()
    for call in COMMANDS.values():
        call(Lvm(asked, udev=False, lock_file=tmp_path / "lock"))
        assert "--config" not in asked.argv


def test_settings_that_were_removed_or_changed_are_put_back_before_the_next_command(tmp_path: Path) -> None:
    asked = Asked()
    lvm = Lvm(asked, udev=False, lock_file=tmp_path / "lock")
    COMMANDS["lvcreate"](lvm)
    right, file = asked.settings, Path(asked.env["LVM_SYSTEM_DIR"]) / "lvm.conf"
    for spoil in (file.unlink, lambda: file.write_text("report { prefixes=1 }"), lambda: file.write_bytes(b"\xff")):
        spoil()
        COMMANDS["lvremove"](lvm)
        assert asked.settings == right


def test_two_drivers_with_other_settings_keep_their_own(tmp_path: Path) -> None:
    asked = Asked()
    one, other = (Lvm(asked, udev=udev, lock_file=tmp_path / "lock") for udev in (True, False))
    folders = []
    for lvm, on in ((one, "1"), (other, "0"), (one, "1")):
        COMMANDS["lvremove"](lvm)
        assert asked.settings["activation/udev_sync"] == on
        folders.append(asked.env["LVM_SYSTEM_DIR"])
    assert folders[0] == folders[2] != folders[1]


class ReadsNoSettings(Asked):
    """LVM where the folder of the settings is not to be seen, and so has none of ours."""

    def run(self, argv: Any, **how: Any) -> Result:
        if argv[1] == "lvmconfig":
            raise CommandError(tuple(argv), 5, "", "Configuration node devices/global_filter not found")
        return super().run(argv, **how)


def test_lvm_that_does_not_see_the_settings_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ToolFailed, match=r"LVM does not read .*lvm\.conf.*state directory must lie at the same path"):
        Lvm(ReadsNoSettings(), udev=False, lock_file=tmp_path / "lock").version()


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("udev", [True, False])
def test_udev_is_waited_for_where_that_is_configured_alone_and_its_list_taken_where_it_runs(
    udev: bool, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csi.node.lvm.process._UDEV_SOCKET", tmp_path if runs else tmp_path / "none")
    settings = told("version", tmp_path, udev=udev)
    for name in ("activation/udev_sync", "activation/udev_rules"):
        assert settings[name] == str(int(udev))
    assert settings["devices/obtain_device_list_from_udev"] == str(int(udev or runs))


def test_what_lies_here_says_nothing_of_where_a_prefix_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("csi.node.lvm.process._UDEV_SOCKET", tmp_path)
    assert told("version", tmp_path, elsewhere=True)["devices/obtain_device_list_from_udev"] == "0"


@pytest.mark.parametrize(
    ("options", "patterns"),
    [
        ({}, ',"r|^/dev/loop|"'),
        ({"disks": ("/dev/loop3", "/dev/sda")}, ',"a|^/dev/loop3$|","r|^/dev/loop|"'),
        ({"loop_devices": True}, ""),
        ({"rejected": ("r|iscsi|",)}, ',"r|iscsi|","r|^/dev/loop|"'),
        (
            {"disks": ("/dev/disk/by-id/eui.0025",), "only_disks": True},
            r',"a|^/dev/disk/by-id/eui\\.0025$|","r|.*|"',
        ),
    ],
)
def test_what_the_configuration_says_of_devices_is_in_the_filter(
    options: dict[str, Any], patterns: str, tmp_path: Path
) -> None:
    settings = told("version", tmp_path, device_filter=DeviceFilter(**options))
    assert settings["devices/global_filter"] == f"[{REJECTED}{patterns}]"


def test_nothing_is_ever_forced(tmp_path: Path) -> None:
    asked = Asked()
    lvm = Lvm(asked, udev=False, lock_file=tmp_path / "lock")
    for name, call in COMMANDS.items():
        call(lvm)
        assert not [word for word in asked.argv if re.match(r"-f|--force|-y", word) and word != "--yes"], name
    COMMANDS["vgcreate"](lvm)
    assert "--yes" not in asked.argv
