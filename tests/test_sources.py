"""What a change of the code changes: hashes of sources, and who makes plugins from text."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest
from builders import ROOT

import bdbench.attacks
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.models import Recipe
from bdbench.models.plugins.registry import load_file
from bdbench.trial import provenance

FOLDERS = ("attacks", "benchmark", "defenses", "models")
TOY = "toy(image_size=16, train_images=100, test_images=50)"
HARD = "adaptive(attack='blend')"
PAIRS = {
    **{"badnets": "none", "blend": "cbd", "sig": "nad", "trojan": "abl", "dynamic": "dbd"},
    **{HARD: "anp"},
}
"""An attack and a defense for each cell, which is called by its attack. One more has no defense and
an attack that a script defines."""
ALL = {*PAIRS, "local"}

Change = dict[str, set[str]]
"""The cells whose hash changes, by axis."""


PROGRAM = """
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import bdbench as bd
from bdbench.cells.cell import cell
from bdbench.trial import provenance

toy, pairs, files = json.loads(sys.argv[1])
source = Path(sys.argv[2])

@dataclass(frozen=True)
class Local(bd.Attack):
    def trigger(self, images):
        return 255 - images

    def poison(self, clean, rng):
        return bd.dirty_label(self, clean, rng)

cells = {name: (name, defense) for name, defense in pairs.items()}
cells = {name: cell(toy, "wrn16_1", *pair, bd.Recipe(), 0) for name, pair in cells.items()}
local = cell(toy, "wrn16_1", Local(), "none", bd.Recipe(), 0)

def sources():
    # A comment more changes no import, so what files_of remembers stays right.
    provenance._hash.cache_clear()
    return {name: provenance.sources(each) for name, each in [*cells.items(), ("local", local)]}

first, changes = sources(), {}
assert sources() == first
for name in files:
    path = source / name
    whole = path.read_bytes()
    path.write_bytes(whole + b"#")
    changes[name] = {
        axis: [each for each, hashes in sources().items() if hashes[axis] != first[each][axis]]
        for axis in first["local"]
    }
    path.write_bytes(whole)
assert sources() == first
print(json.dumps([str(Path(bd.__file__).parent), changes, [*{"ray", "submitit"} & {*sys.modules}]]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Change], list[str]]:
    """What changes with each file of a copy of the source tree, and what was imported to find out
    that no plugin imports."""
    folder = tmp_path_factory.mktemp("tree")
    source, tree = folder / "source", folder / "tree/bdbench"
    tree.mkdir(parents=True)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    entries = [*(source / "benchmark").iterdir(), *(source / name for name in FOLDERS)]
    for path in entries:
        if path.name != "benchmark":
            (tree / path.name).symlink_to(path)
    (folder / "program.py").write_text(PROGRAM)
    files = [
        path.relative_to(source).as_posix()
        for name in FOLDERS
        for path in sorted((source / name).rglob("*.py"))
        if name != "benchmark" or path.parent.name in ("datasets", "trial")
    ]
    done = subprocess.run(
        [sys.executable, "program.py", json.dumps([TOY, PAIRS, files]), source],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    home, changes, imported = json.loads(done.stdout)
    assert home == str(tree)
    return {
        name: {axis: {*cells} for axis, cells in change.items() if cells}
        for name, change in changes.items()
    }, imported


SHARED: dict[str, Change] = {
    **{f"attacks/{name}.py": {"attack": ALL} for name in ("base", "poison", "registry")},
    **{f"defenses/{name}.py": {"defense": ALL} for name in ("base", "registry")},
    **{f"benchmark/datasets/{name}.py": {"dataset": ALL} for name in ("base", "registry")},
    "attacks/__init__.py": {"attack": ALL},
    "defenses/__init__.py": {"defense": ALL},
    "benchmark/datasets/__init__.py": {"dataset": ALL},
}
"""What all methods of a kind stand on, by the names of its cells."""
OWN: dict[str, Change] = {
    **{f"attacks/{name}.py": {"attack": {name}} for name in ("badnets", "sig", "trojan")},
    "attacks/adaptive.py": {"attack": {HARD}},
    "attacks/blend.py": {"attack": {"blend", HARD}},
    "attacks/dynamic.py": {"attack": {"dynamic"}},
    "attacks/patch.py": {"attack": {"badnets", "trojan"}},
    "benchmark/datasets/toy.py": {"dataset": ALL},
    "defenses/abl.py": {"defense": {"trojan"}},
    "defenses/anp.py": {"defense": {HARD}},
    "defenses/cbd.py": {"defense": {"blend"}},
    "defenses/dbd.py": {"defense": {"dynamic"}},
    "defenses/dbd_views.py": {"defense": {"dynamic"}},
    "defenses/nad.py": {"defense": {"sig"}},
    "defenses/none.py": {"defense": {"badnets", "local"}},
}
"""What one method is made of, or some."""


def test_a_change_of_a_shared_file_changes_the_hash_of_all_that_stand_on_it(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    """Or else old poisoned sets would be served in silence."""
    changes, _ = sources
    for name, expected in SHARED.items():
        for axis, cells in expected.items():
            assert cells <= changes[name].get(axis, set()), name


def test_a_change_of_a_method_changes_the_hash_of_its_cells_and_of_no_other(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    changes, _ = sources
    methods = {name for name in changes if name not in SHARED and not name.startswith("models/")}
    methods -= {"benchmark/datasets/files.py"}
    assert OWN.keys() < methods
    assert {name: changes[name] for name in methods} == {**{name: {} for name in methods}, **OWN}


def test_a_change_of_any_file_of_training_changes_its_hash(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    changes, _ = sources
    training = {name: change for name, change in changes.items() if name.startswith("models/")}
    assert {Path(name).parent.name for name in training} > {"models", "networks", "training"}
    assert training == {name: {"training": ALL} for name in training}


def test_a_change_of_a_shared_file_changes_no_hash_of_another_kind(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    changes, _ = sources
    for name, expected in SHARED.items():
        # A script may use whatever there is.
        found = {axis for axis, cells in changes[name].items() if cells - {"local"}}
        assert found == expected.keys(), name


def test_to_look_for_sources_imports_no_library(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    _, imported = sources
    assert imported == []


FACE = "from bdbench.attacks import dirty_label as chosen\n"


@pytest.fixture
def files_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, str]], Set[Path]]]:
    """The files that a module stands on, of some that lie in one folder."""
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}

    def find(module: str, texts: dict[str, str]) -> Set[Path]:
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        provenance.files_of.cache_clear()
        return provenance.files_of(module)

    yield find
    provenance.files_of.cache_clear()
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("mine", "helper", "tools", "package"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("mine", {"mine.py": "from bdbench.attacks import dirty_label\n"}),
        ("mine", {"mine.py": "from bdbench.attacks.poison import dirty_label\n"}),
        ("mine", {"mine.py": "import bdbench.attacks.poison\n"}),
        ("mine", {"mine.py": "from bdbench import attacks\n"}),
        ("mine", {"mine.py": "from bdbench import dirty_label\n"}),
        ("mine", {"mine.py": "import bdbench as bd\n"}),
        ("mine", {"mine.py": "def f():\n    from bdbench.attacks import dirty_label\n"}),
        ("mine", {"mine.py": "import helper\n", "helper.py": FACE}),
        ("mine", {"mine.py": "import helper as h\n", "helper.py": FACE}),
        ("mine", {"mine.py": "from helper import chosen\n", "helper.py": FACE}),
        ("mine", {"mine.py": "from tools.helper import chosen\n", "tools/helper.py": FACE}),
        ("mine", {"mine.py": "from tools import helper\n", "tools/helper.py": FACE}),
        (
            "mine",
            {
                "mine.py": "from package.helper import chosen\n",
                "package/__init__.py": FACE,
                "package/helper.py": "chosen = 1\n",
            },
        ),
        ("mine", {"mine/__init__.py": "from .parts import chosen\n", "mine/parts.py": FACE}),
        (
            "mine.it",
            {
                "mine/__init__.py": "",
                "mine/it.py": "from .parts import chosen\n",
                "mine/parts.py": FACE,
            },
        ),
        (
            "mine.it",
            {
                "mine/__init__.py": "",
                "mine/it.py": "from . import parts\n",
                "mine/parts.py": FACE,
            },
        ),
        (
            "mine.deep.it",
            {
                "mine/__init__.py": "",
                "mine/deep/__init__.py": "",
                "mine/deep/it.py": "from ..parts import chosen\n",
                "mine/parts.py": FACE,
            },
        ),
    ],
    ids=range(17),
)
def test_every_form_of_import_reaches_what_it_names(
    module: str,
    texts: dict[str, str],
    files_of: Callable[[str, dict[str, str]], Set[Path]],
    tmp_path: Path,
) -> None:
    found = files_of(module, texts)
    home = Path(bdbench.attacks.__path__[0])
    assert {home / "base.py", home / "poison.py"} <= found
    assert {tmp_path / name for name, text in texts.items() if text} <= found
    assert not [path for path in found if "models" in path.relative_to(path.anchor).parts[-3:]]
    assert not [path for path in found if "site-packages" in path.parts]


PLUGIN = """
from dataclasses import dataclass
import bdbench as bd
import helper

@bd.attacks.register("mine")
@dataclass(frozen=True)
class Mine(bd.Attack):
    def trigger(self, images):
        return helper.stamped(images)

    def poison(self, clean, rng):
        return bd.dirty_label(self, clean, rng)
"""


def test_a_changed_helper_beside_a_plugin_changes_the_hash_of_its_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks.names()
    monkeypatch.setattr(attacks, "_factories", dict(attacks._factories))
    monkeypatch.syspath_prepend(tmp_path)
    helper, plugin = tmp_path / "helper.py", tmp_path / "plugin.py"
    helper.write_text("def stamped(images):\n    return 255 - images\n")
    plugin.write_text(PLUGIN)
    load_file(plugin)
    sys.modules.pop("helper")
    made = cell(TOY, "wrn16_1", "mine", "none", Recipe(), 0)
    assert not made.local
    before = provenance.sources(made)
    helper.write_text("def stamped(images):\n    return 254 - images\n")
    provenance._hash.cache_clear()
    after = provenance.sources(made)
    assert {axis for axis in before if before[axis] != after[axis]} == {"attack"}


FROM_A_USER = "a name that a user has typed, whose plugin is looked at and not run in a cell"
BUILDERS = {
    "attacks/adaptive.py:Adaptive.inner": "a field holds the spec of the attack that is hardened",
    **dict.fromkeys(
        [f"benchmark/api.py:{name}" for name in ("attack", "defense", "dataset", "model")],
        "a user makes objects by name",
    ),
    "benchmark/api.py:_cell": "the data set settles the recipe before there is a cell",
    "benchmark/cells/cell.py:cell": "this makes cells, of specs too",
    "benchmark/cells/cell.py:cell_of": "this makes cells of records and of what a worker is told",
    "benchmark/cells/grid.py:_plugins": "each plugin of a suite is made once for all its cells",
    "benchmark/cells/suite_file.py:NamedSuite._check_specs": "a wrong spec is named with its line",
    "benchmark/cli/catalogue.py:_describe": FROM_A_USER,
    "benchmark/cli/protocol.py:_lent": FROM_A_USER,
    "benchmark/cli/data.py:data_ls": FROM_A_USER,
    "benchmark/cli/data.py:get": FROM_A_USER,
    "benchmark/cli/data.py:prepare": FROM_A_USER,
    "benchmark/cli/diagnosis.py:diagnosis": FROM_A_USER,
    "benchmark/figures/preview.py:preview": "as in _cell of api.py",
    **dict.fromkeys(
        ["benchmark/api.py:evaluate", "benchmark/running/evaluation.py:evaluation"],
        "weights are fitted to the data set before there is a cell",
    ),
    **dict.fromkeys(
        [f"benchmark/trial/networks.py:{name}" for name in ("brought", "lent", "network")],
        "a file of weights, or the model of a cell, says as text what they are of",
    ),
    "benchmark/trial/networks.py:fitting": "the models that there are",
    **{
        f"benchmark/contract/{name}": "a promise is tested on new plugins"
        for name in [
            *(f"attacks.py:{name}" for name in ("attack_cell", "attack_goes_on")),
            *(f"attacks.py:{name}" for name in ("attack_replays", "honest_poison", "tried")),
            *(f"defenses.py:{name}" for name in ("defense_replays", "fitted", "seeded")),
            *(f"datasets.py:{name}" for name in ("as_said", "dataset_cell", "declared", "fewer")),
            *(f"models.py:{name}" for name in ("any_size", "judges_alone", "made_up", "small")),
            *("datasets.py:loaded", "models.py:model_draws", "others.py:made", "others.py:specs"),
            *("scenarios.py:lent", "device.py:weights"),
        ]
    },
}
"""Who makes plugins of text, and why. All others are handed a cell, whose plugins are made."""


MAKING = ("build", "built", "swept")


def builders(path: Path) -> set[str]:
    """The functions of a file that name one of `MAKING` of a registry."""
    tree = ast.parse(path.read_text())
    names = {"registry", "REGISTRIES"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).endswith("registry"):
            names |= {alias.asname or alias.name for alias in node.names}
    found = set()

    def visit(node: ast.AST, place: str) -> None:
        for part in ast.iter_child_nodes(node):
            named = isinstance(part, ast.FunctionDef | ast.ClassDef)
            inner = f"{place}.{part.name}" if named else place
            if isinstance(part, ast.Attribute) and part.attr in MAKING:
                parts = ast.walk(part.value)
                if names & {each.id for each in parts if isinstance(each, ast.Name)}:
                    found.add(f"{path.relative_to(ROOT).as_posix()}:{inner.removeprefix('.')}")
            visit(part, inner)

    visit(tree, "")
    return found


def test_plugins_are_made_of_text_where_there_is_a_reason() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert set().union(*map(builders, files)) == BUILDERS.keys()
