"""Hashes of sources change with the code, and few functions build plugins from text."""

from __future__ import annotations

import ast
import importlib
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
from bdbench.models.plugins.files import load_file
from bdbench.models.plugins.local import is_user_code
from bdbench.running.engines.nursery import preload
from bdbench.trial import provenance

FOLDERS = ("attacks", "benchmark", "defenses", "models")
TOY = "toy(image_size=16, train_images=100, test_images=50)"
HARD = "adaptive(attack='blend')"
PAIRS = {
    **{"badnets": "none", "blend": "cbd", "sig": "nad", "trojan": "abl", "dynamic": "dbd"},
    **{HARD: "anp"},
}
"""The defense of each cell, by its attack. One more cell has an attack that a script defines and no
defense."""
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
    # A further comment changes no import, so the cache of files_of stays valid.
    provenance._content.cache_clear()
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
    """The change that an edit of each file makes, in a copy of the source tree; and which libraries
    were imported to compute the hashes."""
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
"""Files that all methods of a kind use, and the cells that they change."""
OWN: dict[str, Change] = {
    **{f"attacks/{name}.py": {"attack": {name}} for name in ("badnets", "sig", "trojan")},
    "attacks/adaptive.py": {"attack": {HARD}},
    "attacks/blend.py": {"attack": {"blend", HARD}},
    "attacks/dynamic.py": {"attack": {"dynamic"}},
    "attacks/evaluated.py": {"attack": {"dynamic"}},
    "attacks/patch.py": {"attack": {"badnets", "trojan"}},
    "attacks/pixels.py": {"attack": {"sig", HARD}},
    "benchmark/datasets/toy.py": {"dataset": ALL},
    "defenses/abl.py": {"defense": {"trojan"}},
    "defenses/anp.py": {"defense": {HARD}},
    "defenses/batch_norm.py": {"defense": {"blend"}},
    "defenses/cbd.py": {"defense": {"blend"}},
    "defenses/dbd.py": {"defense": {"dynamic"}},
    "defenses/dbd_views.py": {"defense": {"dynamic"}},
    "defenses/filters.py": {"defense": {"trojan"}},
    "defenses/mixmatch.py": {"defense": {"dynamic"}},
    "defenses/nad.py": {"defense": {"sig"}},
    "defenses/none.py": {"defense": {"badnets", "local"}},
}
"""Files that one method uses, or some methods, and the cells that they change."""


def test_a_change_of_a_shared_file_changes_the_hash_of_every_cell_that_uses_it(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    """Otherwise the cache would silently serve old poisoned sets."""
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
    """The code that reads specs and registers plugins trains nothing."""
    changes, _ = sources
    models = {name: change for name, change in changes.items() if name.startswith("models/")}
    reading = {name for name in models if name.startswith("models/plugins/")}
    training = models.keys() - reading
    assert {Path(name).parent.name for name in training} == {"models", "networks", "training"}
    assert reading
    assert models == {name: {"training": ALL} if name in training else {} for name in models}


def test_a_change_of_a_shared_file_changes_no_hash_of_another_kind(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    changes, _ = sources
    for name, expected in SHARED.items():
        # A script may use any file.
        found = {axis for axis, cells in changes[name].items() if cells - {"local"}}
        assert found == expected.keys(), name


def test_hashing_sources_imports_no_library(
    sources: tuple[dict[str, Change], list[str]],
) -> None:
    _, imported = sources
    assert imported == []


def forget() -> None:
    """As in a new process."""
    for cached in ("_content", "_training", "_together", "_hash", "files_of"):
        getattr(provenance, cached).cache_clear()


FACE = "from bdbench.attacks import dirty_label as chosen\n"


@pytest.fixture
def files_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, str]], Set[Path]]]:
    """Write files into one folder, and find those that a module of it depends on."""
    monkeypatch.syspath_prepend(tmp_path)
    before = {*sys.modules}

    def find(module: str, texts: dict[str, str]) -> Set[Path]:
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        forget()
        return {*provenance.files_of(module).values()}

    yield find
    forget()
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
def test_every_form_of_import_is_followed(
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


def test_finding_the_source_of_a_module_executes_nothing(
    files_of: Callable[[str, dict[str, str]], Set[Path]], tmp_path: Path
) -> None:
    fails = "raise AssertionError\n"
    texts = {
        "mine.py": "def f():\n    import package.deep.helper\n    import tools.deep.helper\n",
        "package/__init__.py": fails,
        "package/deep/__init__.py": fails,
        "package/deep/helper.py": f"{FACE}{fails}",
        "tools/deep/helper.py": fails,
    }
    found = files_of("mine", texts)
    assert {tmp_path / name for name in texts} <= found
    assert Path(bdbench.attacks.__path__[0]) / "poison.py" in found
    assert not {"package", "tools"} & {name.partition(".")[0] for name in sys.modules}


@pytest.mark.parametrize("text", ["print 'Python 2'\n", "x = '\0'\n", "from . import helper\n"])
def test_a_file_whose_imports_cannot_be_read_is_a_source(
    text: str, files_of: Callable[[str, dict[str, str]], Set[Path]], tmp_path: Path
) -> None:
    found = files_of("mine", {"mine.py": "import helper\n", "helper.py": text})
    assert found == {tmp_path / "mine.py", tmp_path / "helper.py"}


def test_a_library_is_installed_wherever_its_distribution_lies(
    files_of: Callable[[str, dict[str, str]], Set[Path]], tmp_path: Path
) -> None:
    """As after `pip install --target`. A module beside it is not a part of it."""
    about = "tools-1.0.dist-info"
    texts = {
        "mine.py": "import tools.helper\nimport helper\n",
        "helper.py": "",
        "tools/__init__.py": "",
        "tools/helper.py": "",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tools\n",
        f"{about}/RECORD": f"tools/__init__.py,,\ntools/helper.py,,\n{about}/RECORD,,\n",
    }
    assert files_of("mine", texts) == {tmp_path / "mine.py", tmp_path / "helper.py"}
    for name, own in (("tools", False), ("tools.helper", False), ("helper", True)):
        module = importlib.import_module(name)
        assert is_user_code(name) is own, module


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
    forget()
    after = provenance.sources(made)
    assert {axis for axis in before if before[axis] != after[axis]} == {"attack"}


@pytest.mark.usefixtures("unregistered")
def test_a_plugin_that_was_edited_and_loaded_again_has_another_hash(tmp_path: Path) -> None:
    hashes, plugin = [], tmp_path / "plugin.py"
    alone = PLUGIN.replace("import helper\n", "")
    for number in (255, 254):
        plugin.write_text(alone.replace("helper.stamped(images)", f"{number} - images"))
        load_file(plugin)
        made = cell(TOY, "wrn16_1", "mine", "none", Recipe(), 0)
        hashes.append(provenance.sources(made)["attack"])
    assert hashes[0] != hashes[1]


def test_a_process_that_was_prepared_states_the_code_that_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is done to a built-in file afterwards."""
    cells = [
        *(cell(TOY, "wrn16_1", text, "none", Recipe(), 0) for text in (*PAIRS, "mixed")),
        *(cell(TOY, "wrn16_1", "none", text, Recipe(), 0) for text in PAIRS.values()),
    ]
    forget()
    preload()
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"edited = True")
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: iter([]))
    later = [provenance.sources(each) for each in cells]
    monkeypatch.undo()
    forget()
    assert later == [provenance.sources(each) for each in cells]


FROM_A_USER = "a user types a name, and its plugin is shown and not run in a cell"
BUILDERS = {
    "attacks/adaptive.py:Adaptive.inner": "a field holds the spec of the attack that is hardened",
    **dict.fromkeys(
        [f"attacks/mixed.py:Mixed.{name}" for name in ("__post_init__", "parts")],
        "a field holds the specs of the attacks that are mixed",
    ),
    **dict.fromkeys(
        [f"benchmark/api.py:{name}" for name in ("attack", "defense", "dataset", "model")],
        "a user makes objects by name",
    ),
    "benchmark/api.py:_cell": "the data set settles the recipe before there is a cell",
    "benchmark/cells/cell.py:cell": "this makes cells, of specs too",
    "benchmark/cells/cell.py:without_attack": "the control of P-ASR has another attack",
    "benchmark/cells/cell.py:cell_of": "this makes cells of records and of what a worker is told",
    "benchmark/cells/grid.py:_plugins": "each plugin of a suite is made once for all its cells",
    "benchmark/cells/suite_file.py:NamedSuite._check_specs": "a wrong spec is named with its line",
    "benchmark/cli/catalogue.py:_describe": FROM_A_USER,
    "benchmark/cli/protocol.py:_given": FROM_A_USER,
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
        [
            f"benchmark/trial/networks.py:{name}"
            for name in ("given_model", "starting_weights", "network")
        ],
        "a file of weights, or the model of a cell, says as text what they are of",
    ),
    "benchmark/running/preparation.py:_parts": "what cells share names no defense, often no model",
    "benchmark/trial/networks.py:fitting": "the models that there are",
    **{
        f"benchmark/contract/{name}": "a promise is tested on new plugins"
        for name in [
            *(f"attacks.py:{name}" for name in ("attack_cell", "attack_resumes")),
            *(f"attacks.py:{name}" for name in ("attack_replays", "declared_changes")),
            *(f"defenses.py:{name}" for name in ("defense_replays", "run_fit", "seeded")),
            *(f"datasets.py:{name}" for name in ("as_declared", "dataset_cell", "declared")),
            *(f"models.py:{name}" for name in ("any_size", "independent_images", "logits_of_head")),
            *("datasets.py:loaded", "datasets.py:fewer"),
            *("attacks.py:run_attack", "attacks.py:works"),
            *("models.py:model_draws", "models.py:small"),
            *("common.py:can_be_built", "common.py:specs", "promises.py:_label"),
            *("scenarios.py:few_images", "scenarios.py:training_context", "device.py:weights"),
        ]
    },
}
"""Functions that build plugins from text, and why. All others get a cell with built plugins."""


MAKING = ("build", "built", "swept")


def builders(path: Path) -> set[str]:
    """The functions of a file that use one of the `MAKING` methods of a registry."""
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


def test_only_these_functions_build_plugins_from_text() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert set().union(*map(builders, files)) == BUILDERS.keys()


def test_a_plugin_file_may_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to a folder that comes after ours in the alphabet."""

    def order(home: str, digits: str) -> list[str]:
        module = f"bdbench_plugin_mine_{digits}"
        files = {
            module: Path(f"{home}/mine.py"),
            "its_helper": Path(f"{home}/its_helper.py"),
            "bdbench.defenses.base": Path("/m/bdbench/defenses/base.py"),
            "bdbench.defenses": Path("/m/bdbench/defenses/__init__.py"),
        }
        monkeypatch.setattr(provenance, "files_of", lambda name: files)
        return [file.name for file, _ in provenance._together((module,))]

    assert order("/a", "ffffffff") == order("/z", "00000000")
