"""Packages, methods and commands import only what they may."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from builders import ROOT

ALLOWED = {
    "models": {"models"},
    "attacks": {"attacks", "models"},
    "defenses": {"defenses", "models"},
    "benchmark": {"benchmark", "attacks", "defenses", "models"},
}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it, and of what it imports from
    them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(name: str) -> str:
    """The folder that holds a module of ours, or the first word of another's name."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    return first if first != "bdbench" else second if second in ALLOWED else "benchmark"


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_allowed_packages(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        names = {name for name in imported(path) if name.split(".")[0] in {"bdbench", "tests"}}
        ours = {package_of(name) for name in names}
        assert ours <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {ours}"
        assert not imported(path) & {*ALLOWED}, path


@pytest.mark.parametrize("method", ["attacks", "defenses"])
def test_methods_do_not_import_one_another(method: str) -> None:
    """So that each can be read on its own. A method is one file, and uses the shared ones and files
    of its own, `<method>_*.py`. Variants may use the two oldest attacks."""
    shared = {
        *("base", "registry", "compound", "patch", "pixels", "poison", "badnets", "blend"),
        *("evaluated", "batch_norm", "filters", "mixmatch"),
    }
    for path in (ROOT / method).glob("*.py"):
        for name in imported(path):
            package, _, rest = name.removeprefix("bdbench.").partition(".")
            module = rest.partition(".")[0]
            if package == method and path.name != "__init__.py":
                allowed = module in shared or module.startswith(f"{path.stem}_")
                # A name of the face, such as register.
                assert allowed or not (ROOT / method / f"{module}.py").exists(), path.name


@pytest.mark.parametrize(
    "statement",
    [
        "import bdbench.cli",
        "from bdbench.cli import main; main(['list', 'suites'])",
        "import bdbench.tables.write, bdbench.records.record, bdbench.cells.suites",
    ],
)
def test_help_and_tables_need_no_torch(statement: str) -> None:
    program = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("statement", ["import bdbench", "import bdbench.cli"])
def test_help_needs_no_pydantic(statement: str) -> None:
    program = f"import sys; {statement}; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_run_in_one_process_needs_no_platformdirs_where_folders_are_named() -> None:
    unwanted = "{'platformdirs'}"
    program = f"import sys, bdbench.running.run; sys.exit(bool({unwanted} & {{*sys.modules}}))"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["sklearn", "scipy.stats", "pandas", "pyarrow", "matplotlib"])
def test_the_process_of_a_cell_imports_no_library_that_few_cells_need(
    package: str, loaded: set[str]
) -> None:
    """Each takes a second or so of every run."""
    assert "torch" in loaded
    assert package not in loaded


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that a nursery has imported when it forks cells."""
    program = "import sys, bdbench.running.engines.nursery as n; n.preload(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True
    )
    return set(done.stdout.split())
