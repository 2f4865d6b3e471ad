"""What every LVM command is told, whatever the host's lvm.conf says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi.core.command import Result
from csi.node.lvm.command import Lvm

ALWAYS = {
    "devices/use_devicesfile": "0",
    "devices/scan_lvs": "0",
    "devices/ignore_suspended_devices": "1",
    "activation/monitoring": "0",
    "backup/archive": "0",
    "backup/backup": "0",
    "log/silent": "0",
}
REJECTED = '"r|^/dev/drbd|","r|^/dev/nbd|","r|^/dev/rbd|","r|^/dev/zram|"'


class Asked:
    """Remembers argv and environment of the last command, and answers with one LVM version line."""

    argv: list[str]
    env: dict[str, str]

    def run(self, argv: Any, *, env: Any = None, **_: Any) -> Result:
        self.argv, self.env = list(argv), dict(env or {})
        return Result(argv=tuple(argv), returncode=0, stdout=b"  LVM version:     2.03\n", stderr=b"")

    def settings(self) -> dict[str, str]:
        """What stands after --config, parsed; a setting that comes twice is an error."""
        assert self.argv[0] == "lvm"
        assert self.argv[2] == "--config"
        pairs = [word.split("=", 1) for word in self.argv[3].split()]
        assert len({name for name, _ in pairs}) == len(pairs)
        return dict(pairs)


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
    assert asked.argv[1] == command
    assert asked.env == {"LVM_SUPPRESS_FD_WARNINGS": "1"}
    return asked.settings()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gets_all_settings(command: str, tmp_path: Path) -> None:
    settings = told(command, tmp_path)
    assert settings.items() >= ALWAYS.items()
    assert REJECTED in settings["devices/global_filter"]


@pytest.mark.parametrize("command", COMMANDS)
def test_only_what_makes_disks_writes_hints(command: str, tmp_path: Path) -> None:
    assert told(command, tmp_path).get("devices/hints") == (None if command.startswith("vg") else '"none"')


@pytest.mark.parametrize("udev", [True, False])
def test_udev_is_used_where_it_runs_and_never_waited_for_elsewhere(udev: bool, tmp_path: Path) -> None:
    settings = told("version", tmp_path, udev=udev)
    for name in ("devices/obtain_device_list_from_udev", "activation/udev_sync", "activation/udev_rules"):
        assert settings[name] == str(int(udev))


@pytest.mark.parametrize(
    ("options", "loops"),
    [
        ({}, ',"r|^/dev/loop|"'),
        ({"pool_disks": ["/dev/loop3", "/dev/sda"]}, ',"a|^/dev/loop3$|","r|^/dev/loop|"'),
        ({"loop_devices": True}, ""),
    ],
)
def test_loop_devices_are_looked_at_only_where_the_configuration_says_so(
    options: dict[str, Any], loops: str, tmp_path: Path
) -> None:
    assert told("version", tmp_path, **options)["devices/global_filter"] == f"[{REJECTED}{loops}]"


def test_nothing_is_ever_forced(tmp_path: Path) -> None:
    asked = Asked()
    lvm = Lvm(asked, udev=False, lock_file=tmp_path / "lock")
    for name, call in COMMANDS.items():
        call(lvm)
        assert not [word for word in asked.argv if re.match(r"-f|--force|-y", word) and word != "--yes"], name
    COMMANDS["vgcreate"](lvm)
    assert "--yes" not in asked.argv
