"""An image ships what its program's imports reach, and nothing else: what the build's step leaves, by two other measures.

`scripts/reached.py` reads imports. What it leaves is held here against import-linter's graph, which reads them by other
code, and against Python itself, which imports every module that is left in a process of its own.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from csi import __main__ as command
from lab import guest_image, image
from lab.dockerfile import stages

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/reached.py"
PROGRAMS = ("node", "guest", "broker", "cluster")
ON_A_PERSONS_MACHINE = ("doctor",)
"""Programs that no image holds."""
ONE_USER_YET: set[str] = set()
"""Shared by design before a second program uses it."""
SITE = "/opt/sealed-local/lib/python3*/site-packages"


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("csi", cache_dir=None)


def test_a_setting_of_the_build_counts_for_the_lines_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []
    monkeypatch.setattr(image, "run", lambda _, command, env: ran.append((command, env.get("WHERE", "nowhere"))))
    (tmp_path / "base").mkdir()
    (tmp_path / "root").mkdir()
    (stage,) = stages("FROM debian AS x\nRUN first\nENV WHERE=there\nRUN second\n")
    image.Builder()._make(stage, tmp_path / "base", tmp_path / "root", {})
    assert ran == [("first", "nowhere"), ("second", "there")]


def measured(graph: grimp.ImportGraph, program: str) -> set[str]:
    """Files of the package that import-linter's graph reaches from the command and the program, packages included."""
    roots = {"csi.__main__", f"csi.{program}.main"}
    modules = roots.union(*(graph.find_upstream_modules(root) for root in roots))
    for name in tuple(modules):
        modules |= {name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)}
    return {_file(ROOT, name) for name in modules}


def _file(folder: Path, module: str) -> str:
    place = Path(*module.split("."))
    return str(place / "__init__.py" if (folder / place).is_dir() else place.with_suffix(".py"))


def copied(folder: Path) -> Path:
    """The package as an installation has it: byte code and all."""
    shutil.copytree(ROOT / "csi", folder / "csi")
    subprocess.run([sys.executable, "-m", "compileall", "-q", folder / "csi"], check=True)
    return folder


def prune(folder: Path, program: str) -> str:
    """The step of the build, as the Dockerfile calls it; returns the line that it prints."""
    done = subprocess.run([sys.executable, SCRIPT, folder, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in (folder / "csi").rglob("*") if path.is_file()}


def lines(files: set[str]) -> int:
    return sum((ROOT / file).read_bytes().count(b"\n") for file in files)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_image_holds_what_its_programs_imports_reach_and_nothing_else(
    graph: grimp.ImportGraph, tmp_path: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = measured(graph, program)
    everything = {str(path.relative_to(ROOT)) for path in (ROOT / "csi").rglob("*.py")}
    told = prune(copied(tmp_path), program)
    found = {name for name in left(tmp_path) if name.endswith(".py")}
    with capsys.disabled():
        print(
            f"\n{program}: {len(found)} files, {lines(found)} lines in the image, {lines(found - wanted)} of them not"
            f" reached; {lines(everything - found)} of the package left out"
        )
    assert found == wanted
    assert f"{program}: {len(found)} files with {lines(found)} lines are reached" in told


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_module_of_an_image_can_be_imported_there_and_asks_for_no_other(tmp_path: Path, program: str) -> None:
    prune(copied(tmp_path), program)
    modules = [file for file in left(tmp_path) if file.endswith(".py")]
    names = sorted(file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in modules)
    code = (
        "import importlib, json, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'csi'}))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert set(loaded) == set(names)
    assert all(file.startswith(str(tmp_path)) for file in loaded.values())


@pytest.mark.parametrize("program", PROGRAMS)
def test_data_goes_with_the_program_whose_package_reads_it(tmp_path: Path, program: str) -> None:
    prune(copied(tmp_path), program)
    roots = {f"csi/broker/verifiers/amd/{product}.pem" for product in ("milan", "genoa", "turin")}
    assert {name for name in left(tmp_path) if not name.endswith(".py")} == (roots if program == "broker" else set())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_no_module_in_its_wing_that_it_does_not_reach(graph: grimp.ImportGraph, program: str) -> None:
    wing = {str(path.relative_to(ROOT)) for path in (ROOT / "csi" / program).rglob("*.py")}
    assert sorted(wing - measured(graph, program)) == []


def test_nothing_is_shared_that_one_program_alone_uses(graph: grimp.ImportGraph) -> None:
    reached = {program: measured(graph, program) for program in (*PROGRAMS, *ON_A_PERSONS_MACHINE)}
    shared = [path for wing in ("core", "kbs") for path in (ROOT / "csi" / wing).rglob("*.py")]
    users = {str(path.relative_to(ROOT)): {p for p in reached if str(path.relative_to(ROOT)) in reached[p]}
             for path in shared}  # fmt: skip
    alone = {file for file, names in users.items() if len(names) < 2}
    assert alone == ONE_USER_YET, "move it to its program's wing, or take it off the list"


# The measure notices one file more or less


def test_one_file_that_nothing_imports_is_removed(tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "csi/node/plan/stray.py").write_text("import csi.node.volume\n")
    prune(tmp_path, "node")
    assert "csi/node/plan/stray.py" not in left(tmp_path)


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("import csi.kbs.jwk", "csi/kbs/jwk.py"),
        ("from csi.kbs import jwk", "csi/kbs/jwk.py"),
        ("from csi.kbs.jwk import Jwk", "csi/kbs/jwk.py"),
        ("from ..kbs import jwk", "csi/kbs/jwk.py"),
        ("from ..kbs.jwk import Jwk", "csi/kbs/jwk.py"),
        ("def later():\n    from csi.kbs import jwk", "csi/kbs/jwk.py"),
        ("if None:\n    import csi.kbs", "csi/kbs/__init__.py"),
    ],
)
def test_every_way_to_import_counts(tmp_path: Path, line: str, more: str) -> None:
    copied(tmp_path)
    with (tmp_path / "csi/node/volume.py").open("a") as file:
        file.write(f"\n{line}\n")
    prune(tmp_path, "node")
    assert more in left(tmp_path)


def test_modules_are_imported_by_a_string_in_one_place_only() -> None:
    """Neither measure can see such an import; the programs of `csi.__main__` are named to both."""
    by_string = re.compile(r"\b(import_module|__import__|runpy|importlib|exec|eval)\b\(?")
    sources = [path for path in (ROOT / "csi").rglob("*.py") if "proto" not in path.parts]
    found = {str(path.relative_to(ROOT)) for path in sources if by_string.search(_code(path))}
    assert found == {"csi/__main__.py"}
    assert {module for module, _ in command._PROGRAMS.values()} == {
        f"csi.{program}.main" for program in (*PROGRAMS, *ON_A_PERSONS_MACHINE)
    }


def _code(path: Path) -> str:
    """Names that a file's code uses, texts and comments left out."""
    tree = ast.parse(path.read_text())
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module, alias.name) != ("importlib", "resources")  # reads data; imports nothing that it does not name
    ]
    return " ".join(names)


def test_a_program_that_does_not_exist_leaves_all_as_it_is(tmp_path: Path) -> None:
    before = left(copied(tmp_path))
    done = subprocess.run([sys.executable, SCRIPT, tmp_path, "host"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"reached.py: {tmp_path} holds no module csi.host.main\n")
    assert left(tmp_path) == before


# Who carries out the step


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_dockerfile_takes_the_rest_out_before_it_compiles(program: str) -> None:
    known = {stage.name: stage for stage in stages((ROOT / "Dockerfile").read_text())}
    (command,) = [rest for word, rest in known[f"{program}-build"].instructions if word == "RUN"]
    steps = [step.strip() for step in command.split("&&")]
    pruning = steps.index(f"python /src/scripts/reached.py {SITE} {program}")
    assert any("/wheel/" in step for step in steps[:pruning])
    assert any(step.startswith("python -m compileall") for step in steps[pruning:])
    assert ("COPY", "scripts/reached.py /src/scripts/reached.py") in known["build"].instructions


def test_the_labs_guest_carries_the_same_files_compiled(graph: grimp.ImportGraph) -> None:
    own = {name.removeprefix("extra/python/") for name in guest_image.own_code()}
    labs = {f"{name}.pyc" for name in ("guest_agent", "hub", "kata_agent", "tee", "fuse")}
    assert own == {f"{file}c" for file in measured(graph, "guest")} | labs
