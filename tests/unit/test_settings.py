"""Settings come from the command line, then the environment, then defaults; every mistake is named by its option."""

import re
from pathlib import Path, PurePosixPath

import pytest

from csi.core.errors import InvalidInput
from csi.node import settings as node_settings
from csi.node.config import NodeConfig
from csi.node.settings import Settings

OPTIONS = (
    "--endpoint", "--node-id", "--config", "--driver-name", "--topology-key", "--topology-value", "--kubelet-dir",
    "--kata-registry", "--state-dir", "--metrics-address", "--max-volumes", "--lvm-prefix", "--log-level",
)  # fmt: skip

# Options of plain text: the attribute, and a value that is not the default.
PLAIN = [
    ("--endpoint", "endpoint", "unix:///other/csi.sock", "unix:///other/csi.sock"),
    ("--node-id", "node_id", "worker-4", "worker-4"),
    ("--driver-name", "driver_name", "local.example.com", "local.example.com"),
    ("--topology-key", "topology_key", "example.com/node", "example.com/node"),
    ("--topology-value", "topology_value", "Rack_1.b", "Rack_1.b"),
    ("--kubelet-dir", "kubelet_dir", "/data/kubelet", PurePosixPath("/data/kubelet")),
    ("--kata-registry", "registry_root", "/run/kata", Path("/run/kata")),
    ("--state-dir", "state_dir", "/run/other", Path("/run/other")),
    ("--metrics-address", "metrics_address", "", ""),
    ("--max-volumes", "max_volumes", "110", 110),
    ("--lvm-prefix", "lvm_prefix", "nsenter -t 1 -m --", ("nsenter", "-t", "1", "-m", "--")),
    ("--log-level", "log_level", "debug", "debug"),
]


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "node.yaml"
    file.write_text("pools: [{name: main, vgs: [vg0]}]")
    return str(file)


@pytest.fixture
def base(config: str) -> dict[str, str]:
    """The environment of a node that is set up right."""
    return {"SEALED_LOCAL_NODE_ID": "worker-3", "SEALED_LOCAL_CONFIG": config}


def variable(option: str) -> str:
    return "SEALED_LOCAL_" + option.removeprefix("--").replace("-", "_").upper()


def refused(arguments: list[str], environment: dict[str, str]) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        node_settings.load(arguments, environment)
    return caught.value


def test_a_node_needs_only_its_name_and_its_groups(base: dict[str, str]) -> None:
    loaded = node_settings.load([], base)
    assert loaded == Settings(
        endpoint="unix:///csi/csi.sock",
        node_id="worker-3",
        driver_name="sealed-local.csi",
        topology_key="topology.sealed-local.csi/node",
        topology_value="worker-3",
        kubelet_dir=PurePosixPath("/var/lib/kubelet"),
        registry_root=Path("/run/kata-containers/shared/direct-volumes"),
        state_dir=Path("/run/sealed-local"),
        metrics_address="127.0.0.1:9808",
        max_volumes=0,
        log_level="info",
        lvm_prefix=(),
        config=loaded.config,
    )
    assert loaded.config.pools[0].vgs == ("vg0",)


@pytest.mark.parametrize(("option", "attribute", "text", "value"), PLAIN)
def test_an_option_is_taken_from_the_command_line(
    base: dict[str, str], option: str, attribute: str, text: str, value: object
) -> None:
    assert getattr(node_settings.load([], base), attribute) != value
    assert getattr(node_settings.load([option, text], base), attribute) == value


@pytest.mark.parametrize(("option", "attribute", "text", "value"), PLAIN)
def test_an_option_is_taken_from_the_environment(
    base: dict[str, str], option: str, attribute: str, text: str, value: object
) -> None:
    assert getattr(node_settings.load([], {**base, variable(option): text}), attribute) == value


@pytest.mark.parametrize(("option", "attribute", "text", "value"), PLAIN)
def test_the_command_line_wins_over_the_environment(
    base: dict[str, str], option: str, attribute: str, text: str, value: object
) -> None:
    environment = {**base, variable(option): "/in/the/way"}
    assert getattr(node_settings.load([option, text], environment), attribute) == value


def test_the_options_tested_above_are_all_but_the_file() -> None:
    assert {option for option, *_ in PLAIN} == set(OPTIONS) - {"--config"}


def test_the_socket_may_come_from_csis_own_variable(base: dict[str, str]) -> None:
    environment = {**base, "CSI_ENDPOINT": "unix:///from/csi.sock"}
    assert node_settings.load([], environment).endpoint == "unix:///from/csi.sock"
    environment["SEALED_LOCAL_ENDPOINT"] = "unix:///own/csi.sock"
    assert node_settings.load([], environment).endpoint == "unix:///own/csi.sock"


@pytest.mark.parametrize(
    "text", ["unix:///csi/csi.sock ", " unix:///csi/csi.sock", "unix:///csi/csi.sock\n", "unix:///a\tb"]
)
@pytest.mark.parametrize("name", ["CSI_ENDPOINT", "SEALED_LOCAL_ENDPOINT"])
def test_a_socket_that_nobody_would_find_is_refused(base: dict[str, str], name: str, text: str) -> None:
    error = refused([], {**base, name: text})
    assert error.field == "--endpoint"
    assert repr(text) in error.problem


@pytest.mark.parametrize("option", ["--node-id", "--kubelet-dir", "--kata-registry", "--state-dir"])
@pytest.mark.parametrize("text", ["/run/x ", "/run/x\n", " /run/x", "/run/x\ty"])
def test_a_blank_that_nobody_sees_is_refused_in_every_name(base: dict[str, str], option: str, text: str) -> None:
    error = refused([option, text], base)
    assert (error.field, repr(text) in error.problem) == (option, True)


def test_the_topology_key_follows_the_driver_name(base: dict[str, str]) -> None:
    loaded = node_settings.load(["--driver-name", "local.example.com"], base)
    assert loaded.topology_key == "topology.local.example.com/node"


# Wrong values


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--node-id", ""),
        ("--node-id", "n" * 129),
        ("--node-id", "ä" * 65),
        ("--driver-name", ""),
        ("--driver-name", "Sealed.Local"),
        ("--driver-name", "-a"),
        ("--driver-name", "a-"),
        ("--driver-name", "a/b"),
        ("--driver-name", "a" * 64),
        ("--topology-value", ""),
        ("--topology-value", "v" * 64),
        ("--topology-value", "with space"),
        ("--topology-value", "-a"),
        ("--topology-value", "a."),
        ("--kubelet-dir", ""),
        ("--kubelet-dir", "var/lib/kubelet"),
        ("--kubelet-dir", "/var/lib/../etc"),
        ("--kata-registry", "run"),
        ("--state-dir", "./run"),
        ("--max-volumes", ""),
        ("--max-volumes", "-1"),
        ("--max-volumes", "1.5"),
        ("--max-volumes", "many"),
        ("--max-volumes", "\u0661"),
        ("--log-level", "INFO"),
        ("--log-level", "trace"),
        ("--log-level", ""),
    ],
)
def test_a_wrong_value_is_refused_by_its_option_wherever_it_came_from(
    base: dict[str, str], option: str, text: str
) -> None:
    assert refused([f"{option}={text}"], base).field == option
    assert refused([], {**base, variable(option): text}).field == option


def test_a_node_without_a_name_is_told_what_to_give(config: str) -> None:
    error = refused([], {"SEALED_LOCAL_CONFIG": config})
    assert error.field == "--node-id"
    assert "give the Kubernetes node's name" in error.problem


@pytest.mark.parametrize(
    ("option", "longest"),
    [("--node-id", "n" * 128), ("--driver-name", "d" * 63), ("--topology-value", "v" * 63)],
)
def test_a_value_of_the_greatest_length_is_taken(base: dict[str, str], option: str, longest: str) -> None:
    node_settings.load(["--topology-value", "short", option, longest], base)


def test_a_node_name_too_long_for_a_label_asks_for_a_shorter_topology_value(base: dict[str, str]) -> None:
    error = refused(["--node-id", "n" * 64], base)
    assert error.field == "--topology-value"
    assert "give a shorter one" in error.problem


# The configuration file


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda file: None, "does not exist"),
        (lambda file: file.mkdir(), "can't be read: Is a directory"),
        (lambda file: file.write_bytes(b"pools: [\xff]"), "can't be read: it is not UTF-8 text"),
        (lambda file: file.symlink_to(file), "can't be read: Too many levels of symbolic links"),
    ],
    ids=["missing", "directory", "binary", "loop"],
)
def test_a_file_that_can_not_be_read_is_named(tmp_path: Path, base: dict[str, str], make: object, words: str) -> None:
    file = tmp_path / "other.yaml"
    make(file)  # type: ignore[operator]
    error = refused(["--config", str(file)], base)
    assert error.field == "--config"
    assert error.problem == f"{file} {words}"


def test_only_the_file_at_the_usual_place_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def missing(path: Path) -> str:
        read.append(str(path))
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert node_settings.load(["--node-id", "worker-3"], {}).config == NodeConfig()
    assert read == ["/etc/sealed-local/node.yaml"]


def test_a_mistake_in_the_file_is_named_by_file_and_place(tmp_path: Path, base: dict[str, str]) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("pools: [{name: a, vgs: [x], reserve: lots}]")
    assert refused(["--config", str(file)], base).field == f"{file}: pools[0].reserve"


# Help


def test_the_help_mentions_every_option_and_its_default() -> None:
    parser = node_settings.parser()
    assert tuple(re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE)) == OPTIONS
    described = {action.option_strings[-1]: action.help or "" for action in parser._actions}
    for option in set(OPTIONS) - {"--lvm-prefix"}:
        assert "(default: " in described[option] or "(required)" in described[option], option


def test_the_configuration_file_in_the_help_is_valid(tmp_path: Path, base: dict[str, str]) -> None:
    text = node_settings.parser().format_help()
    file = tmp_path / "example.yaml"
    file.write_text(text[text.index("  pools:") : text.index("The driver uses")])
    config = node_settings.load(["--config", str(file)], base).config
    assert [pool.name for pool in config.pools] == ["fast", "bulk"]
    assert config.default_pool == "fast"


def test_the_help_says_where_else_settings_come_from() -> None:
    text = node_settings.parser().format_help()
    assert "SEALED_LOCAL_NODE_ID" in text
    assert "CSI_ENDPOINT" in text
    assert "The command line wins." in text


@pytest.mark.parametrize("arguments", [["--unknown", "1"], ["stray"], ["--node-id"]])
def test_a_command_line_that_is_not_understood_ends_the_program(
    arguments: list[str], base: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        node_settings.load(arguments, base)
    assert caught.value.code == 2
    assert "usage: sealed-local node" in capsys.readouterr().err
