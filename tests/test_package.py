"""The installed package `bdbench` is complete, and works beside folders of any name."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from builders import ROOT

import bdbench
import bdbench.models
from bdbench.machine.system import commit_of

FOLDERS = ("attacks", "benchmark", "defenses", "models")
TOY = "toy(image_size=16, train_images=100, test_images=50)"
TINY = [
    *("run", "quick", f"--dataset={TOY}", "--attack=badnets"),
    *("--epochs=1", "--precision=fp32", "--device=cpu"),
]


def environment(*paths: str) -> dict[str, str]:
    """The environment of this process, with `paths` first in the search for modules."""
    there = os.environ.get("PYTHONPATH")
    found = os.pathsep.join([*paths, *([there] if there else [])])
    return {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": found} if found else {})}


def output(folder: Path, variables: dict[str, str], *command: str | Path) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def name_of(folder: Path) -> str:
    """The import name of a folder of this repository."""
    first, *rest = folder.relative_to(ROOT).parts
    return ".".join(["bdbench", *([] if first == "benchmark" else [first]), *rest])


def test_every_folder_with_code_is_a_package_of_the_wheel_and_no_other() -> None:
    """A forgotten folder would be missing only where bdbench is installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert sorted(listed) == sorted({name_of(path.parent) for path in files})
    lines = setup["options"]["package_dir"].strip().splitlines()
    roots = dict(line.replace(" ", "").split("=") for line in lines)
    assert {name: name_of(ROOT / folder) for name, folder in roots.items()} == {
        name: name for name in roots
    }
    assert sorted(roots.values()) == sorted(FOLDERS)


@pytest.mark.parametrize("face", [bdbench, bdbench.models], ids=lambda face: face.__name__)
def test_a_lazy_face_offers_what_a_type_checker_sees(face: ModuleType) -> None:
    seen = {}
    for node in ast.walk(ast.parse(Path(str(face.__file__)).read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                for alias in line.names:
                    assert alias.asname == alias.name
                    seen[alias.name] = line.module
    homes = [name for names in face.HOMES.values() for name in names]
    assert len(homes) == len({*homes})
    assert {*homes} == seen.keys()
    for name, module in seen.items():
        assert getattr(face, name) is getattr(importlib.import_module(module), name)
    for name in getattr(face, "PACKAGES", ()):
        assert getattr(face, name) is importlib.import_module(f"{face.__name__}.{name}")


PLUGIN = """
from dataclasses import dataclass

import attacks, benchmark, defenses
from models.mine import f
from bdbench.defenses import Defense, register

@register("mine")
@dataclass(frozen=True)
class Mine(Defense):
    def fit(self, data, context):
        context.journal.scalars["own"] = f()
        return context.build().eval()
"""
SCRIPT = """
import sys
import bdbench as bd

results = bd.run(
    "quick", datasets=[sys.argv[1]], attacks=["badnets"], defenses=["none", "mine"], epochs=1,
    jobs=2, plugins=["my_defense.py"], results="of_script", device="cpu", progress=False
)
print(*(record.status for record in results))
print(*(record.diagnostics.scalars.get("own") for record in results))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with folders of the same names as ours, which are common in this field."""
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "models" / "mine.py").write_text("def f():\n    return 42.0\n")
    (tmp_path / "my_defense.py").write_text(PLUGIN)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_a_plugin_runs_in_a_project_that_has_folders_of_the_same_names(project: Path) -> None:
    command = [sys.executable, "-m", "bdbench", *TINY, "--defense=mine", "--plugin=my_defense.py"]
    assert "| badnets |" in output(project, environment("."), *command)
    (path,) = (project / "results/quick/records").iterdir()
    record = json.loads(path.read_text())
    assert record["status"] == "ok"
    assert record["diagnostics"]["scalars"] == {"own": 42.0}


def test_workers_run_for_a_script_without_a_main_guard(project: Path) -> None:
    shown = output(project, environment(), sys.executable, "script.py", TOY)
    assert shown.splitlines() == ["ok ok", "None 42.0"]


def test_a_command_imports_no_module_of_a_common_name(project: Path) -> None:
    """Not even in a project with such modules."""
    program = f"""
        import sys
        from bdbench.cli import main

        code = main(["list"])
        print({{*{FOLDERS}}} & {{*sys.modules}})
        sys.exit(code)
        """
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]
    shown = output(project, environment("."), *command)
    assert "badnets" in shown
    assert shown.splitlines()[-1] == "set()"


def test_a_wheel_that_is_installed_elsewhere_runs_makes_tables_and_draws(tmp_path: Path) -> None:
    source, elsewhere, home = (tmp_path / name for name in ("source", "elsewhere", "venv"))
    elsewhere.mkdir()
    without = shutil.ignore_patterns("__pycache__")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=without)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    variables = {key: each for key, each in os.environ.items() if key != "PYTHONPATH"}
    variables["OMP_NUM_THREADS"] = "1"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    output(tmp_path, variables, *pip, *build)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {
        "/".join([*name_of(path.parent).split("."), path.name])
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".json")
        or path.name == "py.typed"
        or path.parent.name == "templates"
    }

    venv.create(home, symlinks=True)
    python, bdbench = home / "bin/python", home / "bin/bdbench"
    output(tmp_path, variables, *pip, "--python", python, "install", "--no-deps", wheel)
    site = Path(output(tmp_path, variables, python, "-c", PURELIB).strip())
    # Python ignores .pth files, such as that of an editable install, in a path of a .pth file.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")

    small = ROOT / "results/table1-cifar10-bf16"
    shutil.copytree(small / "records", elsewhere / "small/records")
    assert "badnets" in output(elsewhere, variables, bdbench, "list")
    assert "| badnets |" in output(elsewhere, variables, bdbench, *TINY, "--defense=none")
    for command in (["table"], ["report"], ["figure", "pareto", "--format=svg"]):
        output(elsewhere, variables, bdbench, *command, "--results=small")
    made = elsewhere / "small"
    for name in ("leaderboard.md", "leaderboard.csv"):
        assert (made / "tables" / name).read_bytes() == (small / "tables" / name).read_bytes()
    assert "badnets" in (made / "report/index.html").read_text()
    assert len(list((made / "figures").glob("*.svg"))) == 1
    homes = "import bdbench.models, bdbench.attacks as a; print(*bdbench.__path__, *a.__path__)"
    paths = output(elsewhere, variables, python, "-c", homes).split()
    assert [Path(path) for path in paths] == [site / "bdbench", site / "bdbench/attacks"]


def test_the_commit_is_ours_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the commit of a project whose environment or folders contain bdbench, nor of one
    whose git hook runs it."""

    def git(*words: str, at: Path) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
        done = subprocess.run(["git", *who, *words], cwd=at, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    file = Path("benchmark/machine/system.py")
    ours, thesis = tmp_path / "ours", tmp_path / "thesis"
    for tree in (ours, thesis / "vendored", thesis / ".venv"):
        (tree / file).parent.mkdir(parents=True)
        (tree / file).write_text("x = 1\n")
    assert commit_of(ours / file) is None
    (thesis / ".gitignore").write_text(".venv\n")
    for folder in (ours, thesis):
        git("init", "-q", ".", at=folder)
        assert commit_of(folder / file if folder == ours else folder / "vendored" / file) is None
        git("add", "-A", at=folder)
        git("commit", "-qm", "first", at=folder)
    head = git("rev-parse", "--short=12", "HEAD", at=ours)
    assert commit_of(ours / file) == head
    assert commit_of(thesis / "vendored" / file) is None
    assert commit_of(thesis / ".venv" / file) is None
    with monkeypatch.context() as hook:
        hook.setenv("GIT_DIR", str(thesis / ".git"))
        hook.setenv("GIT_INDEX_FILE", str(tmp_path / "no index"))
        assert commit_of(ours / file) == head
    for name, changed in (("tests", False), ("attacks", True)):
        (ours / name).mkdir()
        (ours / name / "x.py").touch()
        assert commit_of(ours / file) == head + ("+" if changed else "")
        git("add", "-A", at=ours)
        assert commit_of(ours / file) == head + ("+" if changed else "")


PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"

CELLS = [
    """
    import torch
    import bdbench as bd
    from dataclasses import dataclass
    from bdbench.models import train

    toy = "toy(image_size=16, train_images=100, test_images=50)"
    record = bd.run_cell(dataset=toy, attack="badnets", defense="cbd(t1=1)", epochs=1)
    print(record.clean_accuracy.rate, record.attack_success_rate.of)
    """,
    """
    @dataclass(frozen=True)
    class Mine(bd.Defense):
        def fit(self, data, context):
            print("trains")
            network = context.build()
            return train(network, data, context.recipe, context.rng("classifier"))

    first = bd.run_cell(
        dataset=toy, attack=bd.attack("blend", alpha=0.1), defense=Mine(), epochs=1, results="mine"
    )
    """,
    """
    @dataclass(frozen=True)
    class Mine(bd.Defense):
        def fit(self, data, context):
            print("trains")
            network = context.build()
            half = data[torch.arange(0, len(data), 2)]
            return train(network, half, context.recipe, context.rng("classifier"))

    second = bd.run_cell(
        dataset=toy, attack=bd.attack("blend", alpha=0.1), defense=Mine(), epochs=1, results="mine"
    )
    """,
    """
    again = bd.run_cell(
        dataset=toy, attack=bd.attack("blend", alpha=0.1), defense=Mine(), epochs=1, results="mine"
    )
    one, two = (each.network.state_dict() for each in (first, second))
    print(first.key != second.key, again.key == second.key, len(bd.load("mine")))
    print(any((one[name] != two[name]).any().item() for name in one))
    """,
    """
    results = bd.run(
        "quick", datasets=[toy], attacks=["badnets"], defenses=["none", Mine()], epochs=1,
        progress=False,
    )
    results.frame()
    """,
    "results.leaderboard()",
    """
    poisoned = bd.poison("blend", dataset=toy)
    len(poisoned.train), int(poisoned.mask.sum()), len(poisoned.triggered)
    """,
    'bd.run(jobs=2, defenses=[Mine()], datasets=[toy], attacks=["badnets"])',
]


def test_a_notebook_defines_a_defense_edits_it_and_shows_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(text)) for text in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources, allow_errors=True).execute()
    *right, last = cells
    for cell in right:
        kinds = {part.output_type for part in cell.outputs}
        assert "error" not in kinds, cell.outputs
    rate, of = shown(cells[0]).split()
    assert 0 <= float(rate) <= 1
    assert 0 < int(of) < 50
    assert [shown(cell) for cell in cells[1:3]] == ["trains\n", "trains\n"]
    assert shown(cells[3]).split() == ["True", "True", "2", "True"]
    assert shown(cells[4]) == "trains\n"
    assert "<table" in displayed(cells[4], "text/html")
    assert "<table>" in displayed(cells[5], "text/html")
    assert "Mine" in displayed(cells[5], "text/html")
    assert displayed(cells[6], "text/plain") == "(100, 10, 50)"
    (error,) = last.outputs
    assert error.ename == "InvalidInput"
    assert "leave out jobs" in error.evalue


def shown(cell: Any) -> str:
    """What a cell of a notebook prints."""
    return "".join(part.text for part in cell.outputs if part.get("name") == "stdout")


def displayed(cell: Any, kind: str) -> str:
    """The value of a cell, as the notebook shows it."""
    (value,) = (part for part in cell.outputs if part.output_type == "execute_result")
    return str(value.data[kind])
