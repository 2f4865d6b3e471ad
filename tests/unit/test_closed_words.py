"""One word more in a closed set, and the type checker names every place that has to decide about it: tried on a copy.

A place that is missing here would take the new word for one of the old ones: an `lvmType` that nobody planned for would
become a striped volume.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MYPY = Path(sys.executable).with_name("mypy")
ERROR = re.compile(r"^(?P<path>[^:]+):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)

FILESYSTEM = ("csi/core/filesystem.py", '    XFS = "xfs"\n', '    XFS = "xfs"\n    BTRFS = "btrfs"\n')
PROFILE = ("csi/core/sealed.py", '    XTS = "xts"\n', '    XTS = "xts"\n    XTS_HMAC = "xts-hmac"\n')
LAYOUT_WORD = (
    "csi/node/lvm/layout.py",
    '    STRIPING = "striping"\n',
    '    STRIPING = "striping"\n    RAID1 = "raid1"\n',
)
LAYOUT = (
    "csi/node/lvm/layout.py",
    "Layout = Linear | Striped\n",
    "class Mirrored:\n    pass\n\n\nLayout = Linear | Striped | Mirrored\n",
)
CONTENT = (
    "csi/node/content.py",
    "Content = HoldsFilesystem | Raw | Sealed\n",
    "class Snapshot:\n    pass\n\n\nContent = HoldsFilesystem | Raw | Sealed | Snapshot\n",
)
WIPE = ("csi/node/volume.py", '    DISCARD = "discard"\n', '    DISCARD = "discard"\n    SHRED = "shred"\n')
RULE = (
    "csi/core/mkfs_options.py",
    "Rule = Flag | Value | Members | Refused\n",
    "class Pair:\n    pass\n\n\nRule = Flag | Value | Members | Refused | Pair\n",
)
DECISION = (
    "csi/guest/decide.py",
    "Decision = Format | Open\n",
    "Decision = Format | Open | HeaderCopy\n",
)
SLOT = ("csi/guest/seal/state_record.py", '    INVALID = "invalid"\n', '    INVALID = "invalid"\n    TORN = "torn"\n')
BROKER = ("csi/guest/policy.py", '    TRUSTEE = "trustee"\n', '    TRUSTEE = "trustee"\n    VAULT = "vault"\n')
COPY = ("csi/guest/decide.py", '    B = "B"\n', '    B = "B"\n    C = "C"\n')

POLICY = (
    "csi/node/lvm/model.py",
    '    ANYWHERE = "anywhere"\n',
    '    ANYWHERE = "anywhere"\n    SCATTERED = "scattered"\n',
)

JOB = ("csi/node/jobs.py", '    DELETE = "delete"\n', '    DELETE = "delete"\n    COPY = "copy"\n')

ADDED = {
    "a kind of job": (JOB, {"csi/node/erasing.py _settle"}),
    "a filesystem": (FILESYSTEM, {"csi/core/filesystem.py traits", "csi/node/filesystem_use.py holds"}),
    "a profile": (
        PROFILE,
        {
            "csi/core/sealed.py needs",
            "csi/guest/policy.py _profile",
            "csi/guest/seal/cryptsetup.py _words",
            "csi/guest/seal/dm_table.py _line",
            "csi/guest/seal/luks_header.py _document",
            "csi/guest/seal/profiles.py freshness",
            "csi/guest/seal/state_record.py _number",
        },
    ),
    "a rule for options of mkfs": (RULE, {"csi/core/mkfs_options.py _check"}),
    "a decision about a device": (
        DECISION,
        {"csi/guest/unlock.py unlock", "csi/guest/derived/work.py unlock", "csi/guest/inspect.py outcome_in_words"},
    ),
    "a kind of broker": (BROKER, {"csi/guest/policy.py _root"}),
    "what a record's place holds": (SLOT, {"csi/guest/inspect.py slot_in_words"}),
    "a copy of the header": (COPY, {"csi/guest/steps.py copy_of", "csi/guest/steps.py offset_of"}),
    "a word for a layout": (LAYOUT_WORD, {"csi/node/parameters.py _layout"}),
    "a layout": (
        LAYOUT,
        {
            "csi/node/effects.py _create_lv",
            "csi/node/lvm/layout.py name",
            "csi/node/plan/target.py fit",
            "csi/node/plan/placement.py _way_out",
            "csi/node/plan/target.py largest",
        },
    ),
    "a policy of allocation": (POLICY, {"csi/node/plan/target.py _one_disk_only"}),
    "a content": (
        CONTENT,
        {
            "csi/node/content.py word",
            "csi/node/plan/erase.py _head_bytes",
            "csi/node/plan/erase.py shows_raw_device",
            "csi/node/plan/publish.py _shown_filesystem",
            "csi/node/plan/stage.py _mount",
            "csi/node/plan/stage.py _make",
            "csi/node/plan/stage.py host_mounts",
            "csi/node/rpc/csi_requests.py _serves",
        },
    ),
    "a way to wipe": (WIPE, {"csi/node/plan/erase.py at_deletion"}),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package alone, checked once, so that each experiment checks again only what its word concerns."""
    folder = tmp_path_factory.mktemp("closed-words")
    shutil.copytree(ROOT / "csi", folder / "csi", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    assert check(folder) == ""
    return folder


def check(folder: Path) -> str:
    """What the type checker has to say; nothing when all is well."""
    done = subprocess.run(
        [MYPY, "--strict", "--no-error-summary", "-p", "csi"], cwd=folder, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout


def places(folder: Path, said: str) -> set[str]:
    """File and function of every case that is not decided, and nothing else may be wrong."""
    found = set()
    for match in ERROR.finditer(said):
        assert 'Argument 1 to "assert_never"' in match["text"], said
        tree = ast.parse((folder / match["path"]).read_text())
        line = int(match["line"])
        around = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
        ]
        found.add(f"{match['path']} {around[-1].name}")
    return found


@pytest.mark.parametrize("added", ADDED)
def test_the_type_checker_names_every_place_that_has_to_decide(copied: Path, added: str) -> None:
    (name, before, after), expected = ADDED[added]
    path = copied / name
    plain = path.read_text()
    assert plain.count(before) == 1, f"{name} no longer has the line that the experiment changes"
    try:
        path.write_text(plain.replace(before, after))
        assert places(copied, check(copied)) == expected
    finally:
        path.write_text(plain)


def test_every_case_that_is_matched_to_the_end_is_tried() -> None:
    """A place with `assert_never` that no experiment names would be one that nobody has seen fail."""
    guarded = set()
    for folder in ("core", "node", "guest"):
        for path in (ROOT / "csi" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                calls = (part for part in ast.walk(node) if isinstance(part, ast.Call))
                if isinstance(node, ast.FunctionDef) and any(
                    ast.unparse(call.func) == "assert_never" for call in calls
                ):
                    guarded.add(f"{path.relative_to(ROOT)} {node.name}")
    assert guarded == {place for _, expected in ADDED.values() for place in expected}
