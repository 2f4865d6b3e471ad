"""Linters, types, links, locks, help texts and the Dockerfile, as tests: one `pytest` is the gate."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from csi.node import settings as node_settings
from lab.dockerfile import Stage, stages

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PYTHON_FOLDERS = [folder for folder in ("csi", "lab", "tests", "bench", "scripts") if (ROOT / folder).is_dir()]
CSI = sorted(path for path in (ROOT / "csi").rglob("*.py") if "proto" not in path.parts)
LAB = sorted((ROOT / "lab").rglob("*.py"))
LOCKS = ("dev", "node", "guest", "broker", "cluster", "build", "deploy", "mutation")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]
GROUPS: dict[str, list[str]] = PYPROJECT["dependency-groups"]

LEFT_BEHIND = re.compile(r"\..*|build|dist|__pycache__|.*\.egg-info")

# What these are for is plain from their names.
NEED_NO_REASON = {"pytest", "ruff", "mypy", "types-grpcio", "types-protobuf", "types-pyyaml"}


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], cwd=ROOT, capture_output=True, text=True, timeout=300)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree() -> Iterator[Path]:
    """Every file of a checkout, whether git knows it yet or not; nothing that tools leave behind."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name in (".ci", ".github") or not LEFT_BEHIND.fullmatch(name)]
        yield from (Path(folder, name) for name in files)


# Linters and types


def test_ruff_finds_nothing() -> None:
    done = run(BIN / "ruff", "check", "--no-cache", "--quiet", "--output-format", "concise", *PYTHON_FOLDERS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_is_formatted() -> None:
    done = run(BIN / "ruff", "format", "--no-cache", "--check", *PYTHON_FOLDERS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_are_right_by_strict_rules() -> None:
    done = run(BIN / "mypy", "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        (["ruff", "check", "--no-cache"], "import os\n"),
        (["ruff", "check", "--no-cache"], "def f(x):\n    try:\n        x()\n    except Exception:\n        pass\n"),
        (["ruff", "format", "--no-cache", "--check"], "x = {  1:2 }\n"),
        (["mypy", "--strict", "--config-file", ROOT / "pyproject.toml"], "def f(x):\n    return x\n"),
    ],
)
def test_a_bad_file_is_noticed(tmp_path: Path, tool: list[object], text: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    name, *options = tool
    config = ["--config", ROOT / "pyproject.toml"] if name == "ruff" else []
    done = run(BIN / str(name), *options, *config, tmp_path / "bad.py")
    assert done.returncode == 1, done.stdout + done.stderr


# Links


LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HTML = re.compile(r"\b(?:href|src)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
FENCES = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[`~]*\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)


def links(text: str) -> list[str]:
    """The targets of all links of a page, code left out."""
    prose = CODE.sub("code", FENCES.sub("", text))
    return [target for pattern in (LINK, REFERENCE, HTML) for target in pattern.findall(prose)]


def anchors(text: str) -> set[str]:
    """The names that a page's headings get, with the numbers that repeated ones get."""
    seen: dict[str, int] = {}
    for heading in HEADING.findall(FENCES.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = [c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LNM"]
        name = "".join(kept).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
        if seen[name]:
            seen[f"{name}-{seen[name]}"] = 0
    return {*seen, *re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)}


def broken_links(page: Path, root: Path) -> list[str]:
    """Relative links of a page that lead nowhere, or to what is not part of a checkout of `root`."""
    return [
        target for target in links(page.read_text()) if not EXTERNAL.match(target) and not _leads(target, page, root)
    ]


def _leads(target: str, page: Path, root: Path) -> bool:
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    inside = found.is_relative_to(root) and found.relative_to(root).parts[:1] not in ((".cache",), ("build",))
    if not found.exists() or not inside:
        return False
    return not anchor or found.suffix != ".md" or anchor in anchors(found.read_text())


def test_every_relative_link_of_the_documentation_leads_somewhere() -> None:
    assert (ROOT / "README.md").is_file()
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    broken = {relative(page): bad for page in pages if (bad := broken_links(page, ROOT))}
    assert not broken


def test_every_document_that_code_and_help_texts_name_exists() -> None:
    named = {
        name
        for path in tree()
        if path.suffix in (".py", ".sh", ".yaml", ".md", "") and "tests" not in path.relative_to(ROOT).parts
        for name in re.findall(r"\bdocs/[\w./-]+\.md\b", path.read_text(errors="ignore"))
    }
    assert "docs/node.md" in named, "the help of the node program names its page"
    assert not sorted(name for name in named if not (ROOT / name).is_file())


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One: a `title` (v2)\n## Same\n## Same\n```\n# no heading\n```\n")
    (tmp_path / "page.md").write_text(
        "[a](other.md) [b](other.md#one-a-title-v2) [c](other.md#same-1) [d](https://example.com) [top](#page)\n"
        '# Page\n[e](gone.md) ![f](gone.png "title") [g](other.md#no-heading) [h][h] [i](#nowhere) `[j](code.md)`\n'
        "[k](../../etc/passwd) [l [m]](gone2.md) [![o](gone5.png)](other.md)\n\n[h]: gone3.md\n"
        '<img src="gone4.png">\n```\n[n](fenced.md)\n```\n'
    )
    assert sorted(broken_links(tmp_path / "page.md", tmp_path)) == [
        "#nowhere", "../../etc/passwd", "gone.md", "gone.png", "gone2.md", "gone3.md", "gone4.png", "gone5.png",
        "other.md#no-heading",
    ]  # fmt: skip


# Dependencies


def locked(text: str) -> list[str]:
    """The entries of a lock, one line each."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    return [line for line in (raw.strip() for raw in joined.splitlines()) if line and not line.startswith("#")]


ENTRY = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^\s;]+( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+")


def pinned(name: str) -> dict[str, str]:
    """Package and version of each entry of a lock."""
    entries = locked((ROOT / f"requirements/{name}.txt").read_text())
    pairs = (entry.split()[0].split(";")[0].split("==") for entry in entries)
    return {str(canonicalize_name(package.split("[")[0])): version for package, version in pairs}


def test_there_is_a_lock_for_every_program_and_for_development() -> None:
    assert {path.stem for path in (ROOT / "requirements").glob("*.txt")} == set(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_has_its_hashes_and_no_index_address(name: str) -> None:
    text = (ROOT / f"requirements/{name}.txt").read_text()
    assert len(locked(text)) > (0 if name == "cluster" else 3)
    assert not [line for line in locked(text) if ENTRY.fullmatch(line) is None]
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|^-", text, re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        "grpcio==1.85.1",
        "grpcio>=1.85 --hash=sha256:" + "0" * 64,
        "grpcio==1.85.1 --hash=md5:" + "0" * 32,
        "--index-url https://example.com/simple",
        "grpcio @ https://example.com/grpcio.whl --hash=sha256:" + "0" * 64,
    ],
)
def test_a_line_that_is_not_locked_is_noticed(line: str) -> None:
    assert ENTRY.fullmatch(line) is None


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(name: str) -> None:
    extras = PROJECT["optional-dependencies"]
    program = [
        *PROJECT["dependencies"],
        *(line for extra in extras if name in (extra, "dev") for line in extras[extra]),
    ]
    asked = GROUPS.get(name, program)
    assert asked
    versions = pinned(name)
    wrong = [
        line
        for line in map(Requirement, asked)
        if not line.specifier.contains(versions.get(canonicalize_name(line.name), "0"))
    ]
    assert not wrong, "run make lock"


def test_the_programs_use_the_versions_that_were_tested() -> None:
    tested = pinned("dev")
    for name in ("node", "guest", "broker", "cluster"):
        assert pinned(name).items() <= tested.items()


def test_the_node_gets_no_cryptography() -> None:
    assert pinned("cluster").keys() == {"msgspec"}
    assert not pinned("node").keys() & {"cryptography", "cffi", "rfc8785", "jwcrypto"}
    assert "cryptography" in pinned("guest")


INNER_PARTS_USED = {
    "uvicorn": "csi/broker/connections.py extends its protocol class, whose attributes are not documented",
    "pyyaml": "csi/node/strict_yaml.py walks its tree of nodes",
}


@pytest.mark.parametrize("extra", ["", "node", "guest", "broker"])
def test_what_may_change_in_a_minor_version_is_held_to_it(extra: str) -> None:
    """A version below 1.0 promises nothing to the next one, and no version promises its inner parts."""
    asked = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    loose = []
    for wanted in map(Requirement, asked):
        name = str(canonicalize_name(wanted.name))
        major, minor = map(int, pinned("dev")[name].split(".")[:2])
        held = major == 0 or name in INNER_PARTS_USED
        loose += [str(wanted)] if held and wanted.specifier.contains(f"{major}.{minor + 1}.0") else []
    assert loose == []


def dependencies(text: str) -> dict[str, str]:
    """Each dependency of the [project] tables with the comment beside it."""
    found, inside = {}, False
    for line in text.splitlines():
        if line.startswith("["):
            inside = line.startswith("[project")
        entry = re.fullmatch(r"\s+\"([^\"]+)\",?\s*(?:#\s*(.*))?", line)
        if inside and entry:
            found[entry[1]] = entry[2] or ""
    return found


def test_every_dependency_says_why_it_is_there() -> None:
    found = dependencies((ROOT / "pyproject.toml").read_text())
    listed = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert found.keys() == {*PROJECT["dependencies"], *listed}
    named = {line: Requirement(line).name.lower() for line in found}
    assert not [line for line, reason in found.items() if len(reason) < 10 and named[line] not in NEED_NO_REASON]


# Code


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def imports(path: Path) -> set[str]:
    """Top-level names of whatever a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.split(".")[0])
    return found


LONGEST_FILE, LONGEST_FUNCTION = 350, 40


def too_long(path: Path) -> list[str]:
    """What is longer than a reader can hold: a file, or a function with its decorators and its own text."""
    text = path.read_text()
    lines = len(text.splitlines())
    found = [f"{path.name}: {lines} lines"] if lines > LONGEST_FILE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = node.end_lineno - first + 1
            found += [f"{path.name}: {node.name} has {lines} lines"] if lines > LONGEST_FUNCTION else []
    return found


def test_no_file_has_more_than_350_lines_and_no_function_more_than_40() -> None:
    assert len(CSI) > 50
    assert len(LAB) > 10
    assert [told for path in (*CSI, *LAB) for told in too_long(path)] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n" * 350, []),
        ("x = 1\n" * 351, ["a.py: 351 lines"]),
        ("def f():\n" + "    x()\n" * 39, []),
        ("def f():\n" + "    x()\n" * 40, ["a.py: f has 41 lines"]),
        ("@g\ndef f():\n" + "    x()\n" * 39, ["a.py: f has 41 lines"]),
        ("class A:\n    async def f():\n" + "        x()\n" * 40, ["a.py: f has 41 lines"]),
    ],
)
def test_what_is_too_long_is_noticed(tmp_path: Path, text: str, told: list[str]) -> None:
    (tmp_path / "a.py").write_text(text)
    assert too_long(tmp_path / "a.py") == told


def test_no_process_is_run_through_a_shell() -> None:
    shells = [
        f"{relative(path)}:{call.lineno}"
        for path in CSI
        for call in calls(path)
        if any(word.arg == "shell" for word in call.keywords)
    ]
    assert not shells


def test_processes_are_run_in_one_place_and_supervised_in_another() -> None:
    assert {relative(path) for path in CSI if imports(path) & {"subprocess", "multiprocessing", "pty"}} == {
        "csi/core/command.py",
        "csi/guest/run.py",
        "csi/guest/serve/behind.py",
    }
    starts = re.compile(r"\bos\.(system|popen|exec\w+|spawn\w+|posix_spawnp?|fork(pty)?)\b|\bpreexec_fn\b")
    # The copy of a guest's process that keeps a lease, and a worker of `serve`, which is a copy of a process that has
    # imported everything and has one thread. Neither runs another program.
    assert [relative(path) for path in CSI if starts.search(path.read_text())] == [
        "csi/core/process.py",
        "csi/guest/serve/nursery.py",
    ]


def test_system_calls_by_number_are_made_in_few_places() -> None:
    assert {relative(path) for path in CSI if "ctypes" in imports(path)} == {
        "csi/core/mount_calls.py",
        "csi/node/bind_mounts.py",
        "csi/core/process.py",
    }


def test_no_file_names_the_place_of_a_checkout() -> None:
    checkout = [re.escape(str(ROOT)) + r"\b"] if len(ROOT.parts) > 2 else []  # "/src" may be meant otherwise
    place = re.compile("|".join([*checkout, r"/home/\w", r"/Users/\w"]).encode())
    assert not [relative(path) for path in tree() if place.search(path.read_bytes())]


# Help


@pytest.mark.parametrize(
    ("arguments", "mentioned"),
    [
        ([], ["node", "guest", "broker", "cluster"]),
        (["cluster"], ["--namespace", "--identity", "--release-after", "Exit status", "docs/cluster.md"]),
        (
            ["node"],
            [
                "--endpoint", "--node-id", "--config", "--driver-name", "--topology-key", "--topology-value",
                "--kubelet-dir", "--kata-registry", "--state-dir", "--metrics-address", "--max-volumes", "--lvm-prefix",
                "--log-level", "SEALED_LOCAL_NODE_ID", "CSI_ENDPOINT", "pools:", "docs/node.md",
            ],
        ),
        (["guest"], ["open", "close", "status", "run", "[[volume]]", "Exit status", "docs/guest.md"]),
        (["guest", "open"], ["--policy", "--volume", "--id", "--device", "--wait", "--json"]),
        (["guest", "run"], ["--policy", "--volume", "--id", "--device", "--wait", "COMMAND"]),
        (["guest", "close"], ["--volume"]),
        (["guest", "status"], ["--json"]),
        (
            ["broker"],
            ["init", "serve", "volume", "resource", "audit", "init-data", "policy", "SEALED_LOCAL_BROKER_DIR"],
        ),
        (["broker", "init"], ["--dir", "--host"]),
        (["broker", "serve"], ["--dir", "--listen", "--log-level"]),
        (["broker", "volume"], ["list", "show", "reset", "retire", "reinstate", "shred"]),
        (["broker", "volume", "shred"], ["--yes", "--dir", "ID"]),
        (["broker", "resource"], ["put", "delete"]),
        (["broker", "audit"], ["--verify", "--head"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("node", "guest", "broker") else "",
)  # fmt: skip
def test_help_of_a_program_tells_its_options(arguments: list[str], mentioned: list[str]) -> None:
    done = run(sys.executable, "-m", "csi", *arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert not [word for word in mentioned if word not in done.stdout]


def test_help_names_every_option_that_the_node_program_has() -> None:
    shown = run(sys.executable, "-m", "csi", "node", "--help").stdout
    defined = {option.flag for option in node_settings.OPTIONS}
    assert defined == set(re.findall(r"^  (--[a-z-]+) ", shown, re.MULTILINE))


@pytest.mark.parametrize("arguments", [[], ["nodes"], ["node"], ["node", "--nope"], ["guest"], ["broker", "nope"]])
def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(arguments: list[str]) -> None:
    done = run(sys.executable, "-m", "csi", *arguments)
    assert done.returncode == 2
    assert done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# The Dockerfile


def chain(name: str, known: dict[str, Stage], *, copies: bool) -> list[tuple[str, str]]:
    """The instructions that make a stage: those of the stages below it, of those it copies from if asked, its own."""
    if name not in known:
        return []
    stage = known[name]
    below = chain(stage.base, known, copies=copies)
    if copies:
        sources = re.findall(r"--from=(\S+)", " ".join(rest for _, rest in stage.instructions))
        below += [item for source in sources if source != name for item in chain(source, known, copies=copies)]
    return below + stage.instructions


NOT_FOR_THE_NODE = re.compile(
    r"cryptsetup|cryptography|requirements/(?:guest|broker|dev)\b|\[(?:\w+,)*(?:guest|broker)"
)
INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|PIP_\w*INDEX|--trusted-host|https?://")


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    every = stages(text)
    known = {stage.name: stage for stage in every}
    wrong = [f"there is no target {name}" for name in ("node", "guest", "broker") if name not in known]
    for number, stage in enumerate(every):
        tag = stage.base.rpartition("/")[2].partition(":")[2]
        below = {other.name for other in every[:number]} | {"scratch"}
        if stage.base not in below and (not re.search(r"\d", tag) or tag.startswith("latest")):
            wrong.append(f"FROM {stage.base} has no pinned tag")
    for instruction, rest in (item for stage in every for item in stage.instructions):
        if instruction == "ADD" and re.search(r"://|git@", rest):
            wrong.append(f"ADD fetches {rest}")
        elif instruction in ("RUN", "ENV", "ARG") and INDEX.search(rest):
            wrong.append(f"an address: {rest}")
        if re.search(r"\bpip\d? install\b", rest) and "-r" in rest.split() and "--require-hashes" not in rest:
            wrong.append(f"pip without --require-hashes: {rest}")
    wrong += [
        f"the node gets {found[0]}"
        for _, rest in chain("node", known, copies=True)
        if (found := NOT_FOR_THE_NODE.search(rest))
    ]
    users = [rest for instruction, rest in chain("broker", known, copies=False) if instruction == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        wrong.append("the broker runs as root")
    return wrong


GOOD_DOCKERFILE = """# a comment
ARG BASE=python:3.11.7-slim-bookworm
FROM ${BASE} AS common
COPY csi /app/csi
FROM common AS node-packages
COPY requirements/node.txt /tmp/
RUN pip install --require-hashes \\
    -r /tmp/node.txt
FROM common AS node
RUN apt-get install -y lvm2
COPY --from=node-packages /usr/local /usr/local
ENV CSI_ENDPOINT=unix:///csi/csi.sock
FROM common AS guest
RUN apt-get install -y cryptsetup-bin
FROM common AS broker
USER 65532:65532
"""


def test_a_good_dockerfile_has_no_faults() -> None:
    assert faults(GOOD_DOCKERFILE) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("AS guest", "AS visitor", "there is no target guest"),
        (":3.11.7-slim-bookworm", "", "FROM python has no pinned tag"),
        (":3.11.7-slim-bookworm", ":latest", "FROM python:latest has no pinned tag"),
        ("COPY csi /app/csi", "ADD https://example.com/x.tar /", "ADD fetches"),
        ("--require-hashes", "--require-hashes --index-url https://example.com", "an address"),
        ("ENV CSI", "ENV PIP_INDEX_URL=x CSI", "an address"),
        ("--require-hashes", "", "pip without --require-hashes"),
        ("install -y lvm2", "install -y lvm2 cryptsetup-bin", "the node gets cryptsetup"),
        ("requirements/node.txt", "requirements/dev.txt", "the node gets requirements/dev"),
        ("COPY csi /app/csi", "RUN pip install cryptography", "the node gets cryptography"),
        ("USER 65532:65532", "USER root", "the broker runs as root"),
        ("USER 65532:65532", "USER 65532\nUSER 0:0", "the broker runs as root"),
        ("USER 65532:65532", "", "the broker runs as root"),
    ],
)
def test_a_fault_of_a_dockerfile_is_noticed(old: str, new: str, told: str) -> None:
    assert old in GOOD_DOCKERFILE
    found = faults(GOOD_DOCKERFILE.replace(old, new))
    assert found
    assert all(fault.startswith(told) for fault in found)


def test_the_dockerfile_has_no_faults() -> None:
    assert faults((ROOT / "Dockerfile").read_text()) == []
    done = run(BIN / "hadolint", "--no-color", "--config", ".hadolint.yaml", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr
