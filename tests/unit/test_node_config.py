"""The driver uses exactly the groups that the file names, and every mistake in the file is named by its place."""

import pytest

from csi.core.errors import InvalidInput
from csi.node import config as node_config
from csi.node.config import NodeConfig, Pool, Strategy
from csi.node.quantity import NO_RESERVE, Reserve

FILE = """
pools:
  - name: fast
    vgs: [fast-0, fast-1]
    strategy: binpack
    reserve: 10%
  - name: bulk
    vgs: [bulk-0]
    devices: [/dev/disk/by-id/nvme-EXAMPLE, /dev/sdb]
    reserve: 20Gi
listConfig:
  vgs: {include: ["data-.*", scratch], exclude: ["data-os"]}
defaultPool: fast
udev: true
loopDevices: true
lvmFilter: ["r|^/dev/disk/by-path/.*-iscsi-|"]
jobsPerGroup: 1
"""


def refused(text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        node_config.parse(text, "node.yaml")
    return caught.value


def test_every_key_is_read() -> None:
    config = node_config.parse(FILE, "node.yaml")
    assert config.pools == (
        Pool(name="fast", vgs=("fast-0", "fast-1"), strategy=Strategy.BINPACK, reserve=Reserve(percent=10)),
        Pool(
            name="bulk",
            vgs=("bulk-0",),
            devices=("/dev/disk/by-id/nvme-EXAMPLE", "/dev/sdb"),
            strategy=Strategy.SPREAD,
            reserve=Reserve(size_bytes=20 << 30),
        ),
    )
    assert [pattern.pattern for pattern in config.include] == ["data-.*", "scratch"]
    assert [pattern.pattern for pattern in config.exclude] == ["data-os"]
    assert (config.default_pool, config.udev, config.loop_devices) == ("fast", True, True)
    assert config.lvm_filter == ("r|^/dev/disk/by-path/.*-iscsi-|",)
    assert config.jobs_per_group == 1


@pytest.mark.parametrize("text", ["", "\n# nothing yet\n", "{}", "pools: []"])
def test_an_empty_file_lets_the_driver_use_nothing(text: str) -> None:
    config = node_config.parse(text, "node.yaml")
    assert config == NodeConfig()
    assert not config.allows("vg0")


@pytest.mark.parametrize("vg", ["fast-0", "fast-1", "bulk-0", "data-1", "data-", "scratch"])
def test_a_group_of_a_pool_or_of_the_list_may_be_used(vg: str) -> None:
    assert node_config.parse(FILE, "node.yaml").allows(vg)


@pytest.mark.parametrize("vg", ["root", "fast-2", "fast", "xdata-1", "data", "scratch-1", "data-os", "", "data-1\n"])
def test_any_other_group_may_not_be_used(vg: str) -> None:
    assert not node_config.parse(FILE, "node.yaml").allows(vg)


def test_excluding_a_group_does_not_take_it_out_of_its_pool() -> None:
    config = node_config.parse('pools: [{name: a, vgs: [vg0]}]\nlistConfig: {vgs: {exclude: [".*"]}}', "node.yaml")
    assert config.allows("vg0")


def test_a_pool_is_found_by_its_name_and_by_its_groups() -> None:
    config = node_config.parse(FILE, "node.yaml")
    fast, bulk = config.pools
    assert (config.pool("fast"), config.pool("bulk"), config.pool("none")) == (fast, bulk, None)
    assert (config.pool_of("fast-1"), config.pool_of("bulk-0"), config.pool_of("data-1")) == (fast, bulk, None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("pools: [{name: a, vgs: [x]}]", "a"),
        ("pools: [{name: a, vgs: [x]}, {name: b, vgs: [y]}]", None),
        ("pools: [{name: a, vgs: [x]}, {name: b, vgs: [y]}]\ndefaultPool: b", "b"),
    ],
)
def test_the_only_pool_is_the_default_one(text: str, name: str | None) -> None:
    assert node_config.parse(text, "node.yaml").default_pool == name


def test_a_pool_needs_only_a_name_and_a_group() -> None:
    (pool,) = node_config.parse("pools: [{name: a, vgs: [x]}]", "node.yaml").pools
    assert pool == Pool(name="a", vgs=("x",), devices=(), strategy=Strategy.SPREAD, reserve=NO_RESERVE)


def test_a_reserve_may_be_a_bare_number_of_bytes() -> None:
    (pool,) = node_config.parse("pools: [{name: a, vgs: [x], reserve: 1048576}]", "node.yaml").pools
    assert pool.reserve == Reserve(size_bytes=1 << 20)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("pools: [{name: '', vgs: [x]}]", "node.yaml: pools[0].name"),
        ("pools: [{name: a, vgs: [x]}, {name: b}]", "node.yaml: pools[1]"),
        ("pools: [{name: a, vgs: [x, a/b]}]", "node.yaml: pools[0].vgs[1]"),
        ("pools: [{name: a, devices: [/dev/sdb]}]", "node.yaml: pools[0].vgs"),
        ("pools: [{name: a, vgs: [x, y], devices: [/dev/sdb]}]", "node.yaml: pools[0].vgs"),
        ("pools: [{name: a, vgs: [x], devices: [/dev/sdb, sdc]}]", "node.yaml: pools[0].devices[1]"),
        ("pools: [{name: a, vgs: [x], devices: [/etc/passwd]}]", "node.yaml: pools[0].devices[0]"),
        ("pools: [{name: a, vgs: [x], devices: [/dev/../etc/passwd]}]", "node.yaml: pools[0].devices[0]"),
        ("pools: [{name: a, vgs: [x], reserve: lots}]", "node.yaml: pools[0].reserve"),
        ("pools: [{name: a, vgs: [x], reserve: -1}]", "node.yaml: pools[0].reserve"),
        ("pools: [{name: a, vgs: [x], reserve: 101%}]", "node.yaml: pools[0].reserve"),
        ("pools: [{name: a, vgs: [x]}, {name: a, vgs: [y]}]", "node.yaml: pools"),
        ("pools: [{name: a, vgs: [x]}, {name: b, vgs: [y, x]}]", "node.yaml: pools"),
        ("pools: [{name: a, vgs: [x, x]}]", "node.yaml: pools"),
        ("pools: [{name: a, vgs: [x], devices: [/dev/a, /dev/a]}]", "node.yaml: pools"),
        (
            "pools: [{name: a, vgs: [x], devices: [/dev/a]}, {name: b, vgs: [y], devices: [/dev/b, /dev/a]}]",
            "node.yaml: pools",
        ),
        ("pools: [{name: a, vgs: [x]}]\ndefaultPool: b", "node.yaml: defaultPool"),
        ("pools: [{name: a, vgs: [x]}]\ndefaultPool: ''", "node.yaml: defaultPool"),
        ("listConfig: {vgs: {include: [a, '(']}}", "node.yaml: listConfig.vgs.include[1]"),
        ("listConfig: {vgs: {exclude: ['*']}}", "node.yaml: listConfig.vgs.exclude[0]"),
    ],
)
def test_a_mistake_is_refused_by_its_place(text: str, field: str) -> None:
    assert refused(text).field == field


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pool: []", "pool"),
        ("default_pool: a", "default_pool"),
        ("pools: [{name: a, vgs: [x], size: 1}]", "size"),
        ("pools: [{name: a, vgs: [x], strategy: fullest}]", r"pools\[0\]\.strategy"),
        ("pools: [{name: a, vgs: x}]", r"pools\[0\]\.vgs"),
        ("pools: [{vgs: [x]}]", "name"),
        ("pools: {a: [x]}", "pools"),
        ("listConfig: {vgs: {includes: [x]}}", "includes"),
        ("listConfig: {devices: {include: [x]}}", "devices"),
        ("udev: maybe", "udev"),
        ("loopDevices: some", "loopDevices"),
        ("jobsPerGroup: 0", "jobsPerGroup"),
        ("jobsPerGroup: 17", "jobsPerGroup"),
        ("jobsPerGroup: many", "jobsPerGroup"),
        ("- a\n- b", "object"),
        ("just words", "object"),
    ],
)
def test_a_file_of_another_shape_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        node_config.parse(text, "node.yaml")
    assert caught.value.field == "node.yaml"


@pytest.mark.parametrize(
    "text", ["pools: [", "a: b: c", "\tpools: []", "pools: !!python/object:os.system {}", "a: \x01"]
)
def test_what_is_no_yaml_is_refused_in_one_line(text: str) -> None:
    error = refused(text)
    assert error.field == "node.yaml"
    assert error.problem.startswith("is not valid YAML: ")
    assert "\n" not in str(error)


# YAML that people and programs read differently


@pytest.mark.parametrize(
    ("text", "field", "lines"),
    [
        ("udev: true\nudev: false", "node.yaml: udev", (1, 2)),
        ("pools: []\n\npools: []", "node.yaml: pools", (1, 3)),
        ("pools:\n- name: a\n  vgs: [x]\n  vgs: [y]", "node.yaml: pools[0].vgs", (3, 4)),
        ("pools: [{name: a, vgs: [x]}, {name: b, vgs: [y], name: c}]", "node.yaml: pools[1].name", (1, 1)),
        ("listConfig:\n  vgs:\n    include: [a]\n    'include': [b]", "node.yaml: listConfig.vgs.include", (3, 4)),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(text: str, field: str, lines: tuple[int, int]) -> None:
    error = refused(text)
    assert error.field == field
    assert f"stands twice, in line {lines[0]} and in line {lines[1]}" in error.problem


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0o10", "0b11", "1_000", "+5", "-010", "00"])
@pytest.mark.parametrize("quote", ["", "'"])
def test_a_number_of_which_there_are_two_readings_is_refused_by_its_place(text: str, quote: str) -> None:
    error = refused(f"pools:\n- {{name: a, vgs: [x], reserve: {quote}{text}{quote}}}")
    assert error.field == "node.yaml: pools[0].reserve"
    if not quote:
        assert text in error.problem


@pytest.mark.parametrize("text", ["0", "10", "1048576", "'10'", "10%", "5Gi"])
def test_a_plain_number_is_not_mistaken_for_one_of_them(text: str) -> None:
    assert node_config.parse(f"pools: [{{name: a, vgs: [x], reserve: {text}}}]", "node.yaml").pools


def test_a_part_that_is_named_and_used_again_is_read_as_if_it_were_written_out() -> None:
    text = "pools:\n- &first {name: a, vgs: [x], reserve: 5Gi}\n- <<: *first\n  name: b\n  vgs: [y]"
    assert [pool.reserve for pool in node_config.parse(text, "node.yaml").pools] == [Reserve(size_bytes=5 << 30)] * 2


def test_a_part_that_holds_itself_does_not_hang_the_program() -> None:
    with pytest.raises(InvalidInput):
        node_config.parse("pools: &a [*a]", "node.yaml")


def test_one_disk_in_two_pools_is_refused_with_the_names_of_both() -> None:
    error = refused("pools: [{name: a, vgs: [x], devices: [/dev/s]}, {name: b, vgs: [y], devices: [/dev/s]}]")
    assert error.problem == "disk '/dev/s' is in both 'a' and 'b'; name it once"


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "NO", "On", "OFF"])
def test_a_word_that_old_yaml_takes_for_a_boolean_is_refused(word: str) -> None:
    error = refused(f"udev: {word}")
    assert error.field == "node.yaml: udev"
    assert f"{word} in line 1 is read differently" in error.problem
    assert "write true or false" in error.problem
    assert "in quotes" in refused(f"pools: [{{name: {word}, vgs: [x]}}]").problem


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_a_boolean_is_a_boolean_to_every_reader(word: str) -> None:
    assert node_config.parse(f"udev: {word}", "node.yaml").udev


@pytest.mark.parametrize("text", ["1e3", "0o17", "1.5", "1.5e3", ".5", "2026-01-02"])
@pytest.mark.parametrize("place", ["name: {}, vgs: [x]", "name: a, vgs: [{}]", "name: a, vgs: [x], reserve: {}"])
def test_a_bare_text_that_is_a_number_to_others_is_refused_anywhere(text: str, place: str) -> None:
    assert f"{text} in line 1 is read differently" in refused(f"pools: [{{{place.format(text)}}}]").problem


def test_a_name_in_quotes_may_look_like_a_number() -> None:
    assert node_config.parse("pools: [{name: '1e3', vgs: ['0o17']}]", "node.yaml").pools[0].name == "1e3"


@pytest.mark.parametrize("text", ["[]", "false", "0", "''", "''\n"])
def test_a_file_that_holds_something_else_is_not_taken_for_an_empty_one(text: str) -> None:
    assert refused(text).field == "node.yaml"


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "null", "{}"])
def test_an_empty_file_is_an_empty_configuration(text: str) -> None:
    assert node_config.parse(text, "node.yaml") == node_config.NodeConfig()


def test_a_reserve_of_everything_is_refused() -> None:
    error = refused("pools: [{name: a, vgs: [x], reserve: 100%}]")
    assert (error.field, "leaves no room" in error.problem) == ("node.yaml: pools[0].reserve", True)
    assert node_config.parse("pools: [{name: a, vgs: [x], reserve: 99%}]", "node.yaml").pools[0].reserve.percent == 99


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        ("/dev//sda", "write /dev/sda"),
        ("/dev/./sda", "write /dev/sda"),
        ("/dev/sda/", "write /dev/sda"),
        ("/dev/sda ", "ends with a blank"),
        ("/dev/s\tda", "control characters"),
    ],
)
def test_a_disk_has_one_spelling(device: str, advice: str) -> None:
    error = refused(f'pools: [{{name: a, vgs: [x], devices: ["{device}"]}}]')
    assert (error.field, advice in error.problem) == ("node.yaml: pools[0].devices[0]", True), error


@pytest.mark.parametrize("name", ["", " a", "a ", "a\\nb"])
def test_a_pools_name_can_be_written_in_a_class(name: str) -> None:
    assert refused(f'pools: [{{name: "{name}", vgs: [x]}}]').field == "node.yaml: pools[0].name"


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize("text", ["", "data-.*|", "|data", "(data)?", "(a|)", " data", "data "])
def test_a_pattern_with_a_part_that_is_missing_is_refused(key: str, text: str) -> None:
    assert refused(f'listConfig: {{vgs: {{{key}: ["{text}"]}}}}').field == f"node.yaml: listConfig.vgs.{key}[0]"


@pytest.mark.parametrize("text", [".*", "data-.*|fast", "data(-1)?", "[a-z]*[0-9.+_a-z-]*"])
def test_a_whole_pattern_is_taken(text: str) -> None:
    assert len(node_config.parse(f'listConfig: {{vgs: {{include: ["{text}"]}}}}', "node.yaml").include) == 1


@pytest.mark.parametrize("pattern", ["a|.*|", "/dev/sdb", "r|", "r||", "r|x", "r|(|", "", "R|x|"])
def test_a_filter_that_does_not_reject_is_refused_with_its_place(pattern: str) -> None:
    error = refused(f"lvmFilter: ['r|^/dev/sda$|', '{pattern}']")
    assert error.field == "node.yaml: lvmFilter[1]"


DISKS = "{name: a, vgs: [a], devices: [/dev/sda]}"


@pytest.mark.parametrize(
    ("text", "only"),
    [
        (f"pools: [{DISKS}]", True),
        (f"pools: [{DISKS}, {{name: b, vgs: [b]}}]", False),
        (f"pools: [{DISKS}]\nlistConfig: {{vgs: {{include: [c]}}}}", False),
        ("pools: []", False),
    ],
)
def test_where_all_groups_are_made_of_named_disks_nothing_else_is_looked_at(text: str, only: bool) -> None:
    assert node_config.parse(text, "node.yaml").device_filter.only_disks is only


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("pools: " + "[" * 5000, id="lists"),
        pytest.param("x: " + "{a: " * 5000, id="mappings"),
        pytest.param("pools: [{name: a, vgs: [v], reserve: " + "9" * 5000 + "}]", id="number"),
        pytest.param("pools: [{name: a, vgs: [v], reserve: '" + "9" * 5000 + "'}]", id="number in quotes"),
        pytest.param("jobsPerGroup: -" + "9" * 5000, id="negative"),
        pytest.param("listConfig: {vgs: {include: ['a{99999999999999999999}']}}", id="pattern"),
        pytest.param("lvmFilter: ['r|a{99999999999999999999}|']", id="filter"),
    ],
)
def test_what_is_too_much_for_python_is_refused_as_any_mistake(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^node\.yaml"):
        node_config.parse(text, "node.yaml")
