"""Suite files, sweeps, exact seeds, and the command that runs a record again."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_record
from commands import refused

import bdbench as bd
from bdbench.cells import grid
from bdbench.cells.cell import cell, recipe_label, recipe_of
from bdbench.cells.overrides import SuiteOverrides
from bdbench.cells.suite_file import find, written
from bdbench.cells.suites import SUITES, Suite
from bdbench.cli import main
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.spec import Spec, fields_of, swept
from bdbench.records import rerun
from bdbench.records.files import write
from bdbench.records.record import Record
from bdbench.running import speed
from bdbench.trial import provenance

TINY = (
    'datasets = ["toy(image_size=16, train_images=100, test_images=50)"]\nattacks = ["badnets"]\n'
)
PLUGIN = """
from dataclasses import dataclass

from bdbench.defenses import Defense, register


@register("patient")
@dataclass(frozen=True)
class Patient(Defense):
    days: int = 3
    visits: tuple[float, ...] = (0.5,)
    names: list[str] | None = None

    def fit(self, data, context):
        return context.undefended()
"""


@pytest.fixture(autouse=True)
def here(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; speed is not measured."""
    monkeypatch.setattr(speed, "probe", lambda cell, device: 1e6)
    return own_folder


@pytest.fixture
def patient(here: Path, unregistered: None) -> Path:
    """A plugin file."""
    (here / "plugins").mkdir()
    path = Path("plugins/patient.py")
    path.write_text(PLUGIN)
    return path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The keys that a dry run names."""
    assert main([*arguments, "--dry-run", "--device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [
        words[0] for words in map(str.split, lines) if words[0].isalnum() and len(words[0]) == 16
    ]


def keys(suite: Suite) -> list[str]:
    return [each.key for each in grid.cells(suite, "fp32")]


@pytest.mark.parametrize("name", SUITES)
def test_a_built_in_suite_as_a_file_makes_the_same_cells(name: str) -> None:
    Path("mine.toml").write_text(written(SUITES[name]))
    found = find("mine.toml")
    found.prepare()
    assert found.name == "mine"
    assert replace(found.suite, recipe={}) == replace(SUITES[name], recipe={})
    assert keys(found.suite) == keys(SUITES[name])


def test_a_file_is_run_as_a_suite_is(patient: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "quick", "--toml"]) == 0
    Path("own.toml").write_text(capsys.readouterr().out, encoding="utf-8-sig")
    assert listed(capsys, "run", "own.toml") == listed(capsys, "run", "quick")
    Path("plugins/mine.toml").write_text(
        f'{TINY}defenses = [\n  "none",\n  "patient(days=[1, 2])",\n]\nplugins = ["patient.py"]\n'
        "seeds = [4]\n[recipe]\nepochs = 1\nlearning_rate = [0.1, 0.05]\ndrops = [0.2, 0.6]\n"
    )
    every = listed(capsys, "run", "plugins/mine.toml")
    assert len({*every}) == 6
    assert len(listed(capsys, "run", "plugins/mine.toml", "--seeds=2")) == 12
    assert len(listed(capsys, "run", "plugins/mine.toml", "--recipe=recipe(epochs=2)")) == 3
    assert {*listed(capsys, "run", "plugins/mine.toml", "--defense=none")} < {*every}
    assert main(["describe", "plugins/mine.toml"]) == 0
    assert "suite plugins/mine.toml" in capsys.readouterr().out


def test_a_file_is_printed_with_all_that_it_has(
    patient: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plugins, and names that TOML must quote, are in the file that is made of it."""
    Path("größe.py").write_text(PLUGIN.replace('"patient"', '"größe"'))
    Path("plugins/mine.toml").write_text(
        f'{TINY}defenses = ["patient", "größe"]\nplugins = ["patient.py", "../größe.py"]\n'
        '[settings]\n"größe" = "größe(days=[1, 2])"\npatient = "patient(days=4)"\n'
    )
    every = listed(capsys, "run", "plugins/mine.toml")
    assert len(every) == 3
    assert main(["describe", "plugins/mine.toml", "--toml"]) == 0
    Path("own.toml").write_text(capsys.readouterr().out)
    assert listed(capsys, "run", "own.toml") == every
    Path("bare.toml").write_text(f'{TINY}defenses = ["patient"]\n')
    assert main(["describe", "bare.toml", "--toml", "--plugin=plugins/patient.py"]) == 0
    Path("own.toml").write_text(capsys.readouterr().out)
    assert len(listed(capsys, "run", "own.toml")) == 1


def test_the_records_of_a_file_are_in_a_folder_of_its_name(
    patient: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("plugins/mine.toml").write_text(
        f'{TINY}defenses = ["patient(days=[1, 2])"]\nplugins = ["patient.py"]\n'
        "seeds = [4]\n[recipe]\nepochs = 1\n"
    )
    results = bd.run("plugins/mine.toml", in_process=True, progress=False, device="cpu")
    assert results.folder == Path("results/mine")
    assert [record.cell.seed for record in results] == [4, 4]
    assert {record.labels.defense for record in results} == {
        "patient(days=1)",
        "patient(days=2)",
    }
    assert all(record.provenance.plugins == ["plugins/patient.py"] for record in results)
    assert len(bd.load("results/mine").leaderboard().frame()) == 2
    assert main(["report", "--results", "results/mine"]) == 0
    capsys.readouterr()
    assert main(["explain", results.records[0].key]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "--plugin plugins/patient.py" in line
    assert line.endswith("--results results/mine/again")
    assert listed(capsys, *shlex.split(line)[1:]) == [results.records[0].key]


SPOILED = [
    ("datasets = []", "line 1: datasets is an empty list"),
    ('datasets = "digits"', 'line 1: datasets must be a list, such as datasets = ["digits"], got'),
    ("datasets = [3]", "line 1: datasets must hold strings in quotes, got 3"),
    ('datasets = ["digits", "digits"]', "line 1: datasets has 'digits' twice"),
    ('datasets = [\n  "toy",\n  "toy()",\n]', "is the same"),
    ('attacks = ["none"]', 'has no field datasets: write datasets = ["digits"]'),
    (
        'datasets = ["digits"]\n\n# more\natacks = ["none"]',
        "line 4: a suite has no field 'atacks'; did",
    ),
    (
        'datasets = ["digits"]\nattacks = [\n  "none",\n  "badnet",\n]',
        "line 4: unknown attack 'badnet'",
    ),
    ('datasets = ["digits"]\nseeds = 0', "line 2: seeds must be at least 1, got 0"),
    ('datasets = ["digits"]\nseeds = true', "line 2: seeds must be a number, such as 3"),
    ('datasets = ["digits"]\nseeds = [1, 1]', "line 2: seed 1 is given twice"),
    ('datasets = ["digits"]\nseeds = []', "line 2: seeds must list 1 to 10,000 seeds, got 0"),
    ('datasets = ["digits"]\nseeds = [-1]', "line 2: a seed must be a whole number from 0"),
    ('datasets = ["digits"]\nprecision = "fp61"', "line 2: precision must be one of auto, fp32"),
    ('datasets = ["digits"]\ntimed = "yes"', "line 2: timed must be true or false, got 'yes'"),
    ('datasets = ["digits"]\nrecipe = 3', "line 2: recipe must be a table below [recipe], got 3"),
    (
        'datasets = ["digits"]\n[recipe]\nepoch = 3',
        "line 3: the recipe has no field 'epoch'; did you",
    ),
    ('datasets = ["digits"]\n[recipe]\nepochs = "x"', "line 3: epochs of the recipe must be int"),
    (
        'datasets = ["digits"]\n[recipe]\nepochs = []',
        "line 3: epochs of the recipe must be int, got []",
    ),
    ('datasets = ["digits"]\n[recipe]\nepochs = 0', "line 3: epochs must be at least 1, got 0"),
    (
        'datasets = ["digits"]\n[recipe]\ndrops = [[0.5], [2]]',
        "line 3: drops must be shares of the epochs",
    ),
    (
        'datasets = ["digits"]\n[recipe]\nepochs = 2024-01-01',
        "line 3: epochs of the recipe must be int, got datetime.date(2024, 1, 1)",
    ),
    (
        'datasets = ["digits"]\n[recipe]\nlearning_rate = nan',
        "line 3: learning_rate of the recipe must be finite, got nan",
    ),
    (f"datasets = ['digits']\nseeds = {'1' * 5_000}", "is not valid TOML: Exceeds the limit"),
    ('datasets = ["digits"]\n[settings]\nmrc = "mcr"', "line 3: unknown defense 'mrc'; did you"),
    (
        'datasets = ["digits"]\ndefenses = ["ft"]\n[settings]\nft = "mcr(updates=1)"',
        "line 4: the settings of ft must be a spec of ft, got 'mcr(updates=1)'",
    ),
    (
        'datasets = ["digits"]\ndefenses = ["ft"]\n[settings]\nnad = "nad(updates=1)"',
        "line 4: no defense is nad alone, so this would change nothing",
    ),
    (
        'datasets = ["digits"]\nprecision = "fp32"\n[recipe]\nprecision = "bf16"',
        "line 4: precision is a field of the suite already: remove one of the two",
    ),
    (
        'datasets = ["digits"]\n[recipe]\nprecision = ["fp32", "bf16"]',
        "line 3: precision cannot be swept: run the suite once for each of ['fp32', 'bf16'], with",
    ),
    ('datasets = ["digits"]\n[settings]\nmcr = 3', "line 3: mcr must be a string in quotes, got 3"),
    (
        'datasets = ["digits"]\nplugins = ["absent.py"]',
        "line 2: there is no plugin file 'absent.py'",
    ),
    (
        'datasets = ["digits"]\ndefenses = ["cbd(t1=[3, 3])"]',
        "line 2: the sweep over t1 of defense 'cbd' has 3 tw",
    ),
    (
        'datasets = ["digits"]\nattacks = ["none",\n"blend(target=[1, 12])"]',
        "line 3: target must be a class of the data set, 0 to 9, got 12",
    ),
    (
        "datasets = ['digits']\nattacks = [\"mixed(attacks=['badnets', 'sig(target=10)'])\"]",
        "line 2: target of sig_2 must be a class of the data set, 0 to 9, got 10",
    ),
    ('datasets = ["digits"', "wrong.toml is not valid TOML: "),
    ('datasets = ["digits"]\ndatasets = ["toy"]', "(at line 2, the last)"),
    ("x = " + "[" * 5_000, "is not valid TOML"),
    ("# long\n" * 1_002, "has more than 65,536 bytes or 1,000 lines"),
]


@pytest.mark.parametrize(("text", "complaint"), SPOILED)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    text: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.toml").write_text(text)
    for command in (["run", "wrong.toml", "--dry-run"], ["describe", "wrong.toml", "--toml"]):
        line = refused(capsys, *command)
        assert complaint in line
        assert "wrong.toml" in line
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "my_suit.toml"], "there is no file my_suit.toml; did you mean 'my_suite.toml'?"),
        (["run", "my_suite"], "unknown suite 'my_suite'; did you mean 'my_suite.toml'?"),
        (["run", "folder/x.toml"], "no file folder/x.toml; `bdbench describe quick --toml` prints"),
        (["run", "folder.toml"], "there is no file folder.toml"),
        (["run", "quick.toml"], "quick.toml has the name of the built-in suite quick"),
        (["run", "..toml"], "..toml cannot name a suite and its results folder"),
        (["run", "latin.toml"], "latin.toml is not UTF-8 at byte 2: save it as UTF-8"),
        (["run", f"{'x' * 3000}.toml"], "there is no file xxx"),
        (["run", "a\0.toml"], "there is no file a"),
        (["run", "my_suite.toml", "--seed=1", "--seeds=2"], "--seeds is how many and --seed"),
        (["run", "--seed=1", "--seed=1"], "seed 1 is given twice"),
        (["run", "--seed=-1"], "a seed must be a whole number from 0 to"),
        (["run", "--seed=one"], "'one' is not a valid integer"),
        (["run", "--defense=cbd(t1=[])"], "t1 of defense 'cbd' must be int, got []; a sweep needs"),
        (["run", "--defense=cbd(t1=[3, 3])"], "sweep over t1 of defense 'cbd' has 3 twice"),
        (["run", "--defense=cbd(t1=[3, 'x'])"], "t1 of defense 'cbd' must be int, got 'x'"),
        (["run", "--defense=cbd(t1=[3, 0])"], "t1 must be at least 1, got 0"),
        (["run", "--defense=cbd(t2=[3, 5])"], "has no field 't2'; did you mean 't1'?"),
        (["run", "--attack=badnets(target=[0, 10])"], "0 to 9, got 10"),
        (["run", "--recipe=recipe(epochs=[1, 1])"], "sweep over epochs of the recipe has 1 twice"),
        (["run", "--recipe=recipe(precision=['fp32', 'bf16'])"], "precision cannot be swept"),
        (
            ["data", "preview", "blend(alpha=[0.1, 0.2])"],
            "a list is a sweep, which only the run of a suite",
        ),
        (["describe", "cbd", "--toml"], "unknown suite 'cbd'"),
        (["describe", "--toml"], "--toml needs the NAME of a suite"),
        (["describe", "quick", "--toml", "--protocol"], "give one of them"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_suite.toml").write_text(TINY)
    Path("quick.toml").write_text(TINY)
    Path("..toml").write_text(TINY)
    Path("latin.toml").write_bytes("# ü".encode("latin-1"))
    Path("folder.toml").mkdir()
    Path("folder").mkdir()
    assert complaint in refused(capsys, *arguments)
    assert not Path("results").exists()


def test_a_list_is_a_sweep_unless_the_field_itself_takes_one(patient: Path) -> None:
    bd.load_file(patient)

    def labels(text: str) -> list[str]:
        return [defenses.label(each) for each in defenses.swept(text)]

    assert labels("patient(days=[1, 2])") == ["patient(days=1)", "patient(days=2)"]
    assert labels("patient(days=2)") == ["patient(days=2)"]
    assert labels("patient(visits=[0.1, 0.2])") == ["patient(visits=(0.1, 0.2))"]
    assert labels("patient(visits=[(0.1,), [0.2, 0.3]])") == [
        "patient(visits=(0.1,))",
        "patient(visits=(0.2, 0.3))",
    ]
    assert labels("patient(names=['a', 'b'])") == ["patient(names=['a', 'b'])"]
    assert labels("patient(names=[['a'], None])") == ["patient(names=['a'])", "patient"]
    assert labels("patient(days=[1, 2], visits=[(0.1,), (0.2,)])") == [
        "patient(days=1, visits=(0.1,))",
        "patient(days=1, visits=(0.2,))",
        "patient(days=2, visits=(0.1,))",
        "patient(days=2, visits=(0.2,))",
    ]
    own = defenses.build("patient")
    fields = fields_of(type(own))
    assert defenses.swept(own) == [own]
    many = list(range(101))
    with pytest.raises(bd.InvalidInput, match="is swept over 10,201 settings; sweep over at most"):
        swept(Spec("patient", {"days": many, "names": [[str(n)] for n in many]}), fields, "it")


@pytest.mark.parametrize(
    ("name", "how", "noted"),
    [
        ("quick", {"dataset": ["cifar10"]}, True),
        ("quick", {"dataset": ["cifar10"], "epochs": 100}, True),
        ("quick", {"dataset": ["digits", "cifar10"]}, True),
        ("quick", {"dataset": ["cifar10"], "recipe": "recipe()"}, False),
        ("quick", {"dataset": ["digits(train_images=500)"]}, False),
        ("quick", {"attack": ["blend"]}, False),
        ("table1-cifar10", {"dataset": ["gtsrb"]}, False),
    ],
)
def test_a_recipe_for_other_data_sets_is_noted(name: str, how: Any, noted: bool) -> None:
    said = SuiteOverrides(**how).note(name, SUITES[name])
    assert bool(said) == noted
    assert said.startswith("note: the recipe and the settings of defenses are those" * noted)


@pytest.mark.parametrize(
    ("suite", "asked", "attacks"),
    [
        ("table1-gtsrb", "badnets", ["badnets(target=1)"]),
        ("table1-gtsrb", "badnets()", ["badnets(target=1)"]),
        ("table1-gtsrb", "badnets(target=0)", ["badnets(target=0)"]),
        ("table1-cifar10", "sig", ["sig(poisoning_rate=0.5)"]),
        ("table1-cifar10", "badnets", ["badnets"]),
        ("table1-cifar10", "lc", ["lc"]),
        ("table2", "blend", [f"blend(poisoning_rate={r})" for r in (0.01, 0.05, 0.2, 0.5)]),
    ],
)
def test_a_name_alone_means_what_the_suite_has_of_it(
    suite: str, asked: str, attacks: list[str]
) -> None:
    """The target of GTSRB is 1 in the paper, and a cell of it takes hours."""
    found = SuiteOverrides(attack=(asked,)).applied_to(SUITES[suite])
    assert list(found.attacks) == attacks


def test_a_defense_by_its_name_alone_has_the_settings_of_the_suite() -> None:
    base = replace(SUITES["quick"], attacks=("none",))
    for asked in ("mcr", "mcr()"):
        (only,) = grid.cells(replace(base, defenses=(asked,)), "fp32")
        assert only.labels["defense"] == "mcr(updates=2370)"
    (other,) = grid.cells(replace(base, defenses=("mcr(updates=7)",)), "fp32")
    assert other.labels["defense"] == "mcr(updates=7)"


@pytest.mark.parametrize(
    ("field", "value"), [("loader", "reference"), ("graphs", True), ("epochs", 7)]
)
def test_a_field_of_the_recipe_that_an_option_sets_is_that_of_every_cell(
    field: str, value: Any
) -> None:
    suite = SuiteOverrides(**{field: value}).applied_to(SUITES["quick"])
    cells = grid.cells(suite, "fp32")
    assert {getattr(cell.recipe, field) for cell in cells} == {value}
    assert getattr(grid.cells(SUITES["quick"], "fp32")[0].recipe, field) != value


def test_every_axis_and_the_recipe_can_be_swept() -> None:
    suite = SuiteOverrides(
        dataset=["toy(image_size=16, train_images=[100, 200])"],
        model=["wrn16_1(deviation=[1.0, 2.0])"],
        attack=["badnets(poisoning_rate=[0.05, 0.1])", "adaptive(attack=['badnets', 'blend'])"],
        defense=["none", "cbd(t1=[3, 5])"],
        recipe="recipe(epochs=[1, 2], drops=[0.6, 0.85])",
        seed=[7],
    ).applied_to(SUITES["quick"])
    cells = grid.cells(suite, "fp32")
    assert len({each.key for each in cells}) == 2 * 2 * 4 * 3 * 2
    assert {each.seed for each in cells} == {7}
    assert {each.recipe.drops for each in cells} == {(0.6, 0.85)}
    assert {each.recipe.epochs for each in cells} == {1, 2}
    plain = cell(
        "toy(image_size=16, train_images=100)",
        "wrn16_1(deviation=2.0)",
        "badnets",
        "cbd(t1=3)",
        next(e.recipe for e in cells if e.recipe.epochs == 2),
        7,
    )
    assert plain in cells


def test_exactly_the_seeds_that_are_named_are_run(capsys: pytest.CaptureFixture[str]) -> None:
    axes = ["run", "--attack=badnets", "--defense=none"]
    three = listed(capsys, *axes, "--seeds=3")
    assert listed(capsys, *axes, "--seed=2", "--seed=0") == [three[2], three[0]]
    assert listed(capsys, *axes, "--seed=1") == [three[1]]


def test_a_command_for_a_figure_has_the_seeds_and_plugins_of_its_records(
    patient: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bd.load_file(patient)
    made = [record_of("patient(days=4)", Path("results/mine"), seed=seed) for seed in (3, 5)]
    assert main(["figure", "curves", "--results", "results/mine"]) == 2
    command = capsys.readouterr().err.split("`")[1]
    assert "--seed 3 --seed 5 --plugin plugins/patient.py" in command
    assert listed(capsys, *shlex.split(command)[1:]) == [record.key for record in made]


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: bd.run(seed=1, seeds=2), "give one of them"),
        (lambda: bd.run(seed=[True]), "a seed must be a whole number from 0"),
        (lambda: bd.run(defenses=["cbd(t1=[3, 3])"]), "has 3 twice; remove one"),
        (
            lambda: bd.run_cell(defense="cbd(t1=[3, 5])"),
            "a list is a sweep, which only the run of a suite",
        ),
        (lambda: bd.run_cell(recipe="recipe(epochs=[1, 2])"), "epochs of the recipe must be int"),
        (
            lambda: bd.poison("blend(alpha=[0.1, 0.2])"),
            "alpha of attack 'blend' must be float, got",
        ),
        (
            lambda: bd.defense("cbd", t1=[3, 5]),
            "t1 of defense 'cbd' must be int, got [3, 5]; a list",
        ),
        (lambda: bd.run("absent.toml"), "there is no file absent.toml"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(call: Callable[[], object], complaint: str) -> None:
    with pytest.raises(bd.InvalidInput) as refusal:
        call()
    assert complaint in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def record_of(defense: str, folder: Path, **fields: Any) -> Record:
    """Write a record of a cell with many settings, which was not run."""
    recipe = recipe_of("recipe(epochs=3, learning_rate=0.03, drops=(0.5, 0.75), precision='fp32')")
    given = {
        "dataset": "toy(image_size=16, train_images=200)",
        "model": "wrn16_1",
        "attack": "badnets",
        "seed": 3,
        **fields,
    }
    made = cell(given["dataset"], given["model"], given["attack"], defense, recipe, given["seed"])
    record = make_record("none", "none", 900, 10)
    found = replace(
        record,
        key=made.key,
        cell=dict(made.identity),
        labels=made.labels,
        versions=made.versions,
        provenance=provenance.of(made, torch.device("cpu"), None),
    )
    write(folder, found)
    return found


@pytest.mark.parametrize(
    ("defense", "fields"),
    [
        ("none", {}),
        ("mcr", {"seed": 0}),
        ("cbd(t1=8)", {"attack": 'adaptive(attack="blend(alpha=0.1)")'}),
        ("patient(days=4, visits=(0.1, 0.25), names=['a b', '$HOME'])", {}),
        ("abl", {"dataset": "toy(image_size=16, train_images=300, test_images=77)"}),
        ("ft", {"dataset": "digits", "attack": "sig(poisoning_rate=0.5)", "seed": 2**62}),
    ],
)
def test_the_printed_command_makes_the_same_cell(
    defense: str, fields: dict[str, Any], patient: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bd.load_file(patient)
    record = record_of(defense, Path("results/mine"), **fields)
    assert main(["explain", record.key, "--results", "results/mine"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert ("--plugin plugins/patient.py" in line) == defense.startswith("patient")
    assert main(["report", "--results", "results/mine"]) == 0
    page = Path(f"results/mine/report/cells/{record.key}.html").read_text()
    assert "--seed" in page
    capsys.readouterr()
    assert listed(capsys, *shlex.split(line)[1:]) == [record.key]


def test_a_record_of_a_notebook_is_run_again_in_python() -> None:
    record = record_of("none", Path("results/mine"))
    origin = record.provenance.with_(code={"defense": "class Mine"}, plugins=["x y.py"])
    local = replace(record, provenance=origin)
    line = rerun.again(local, Path("results/mine"))
    assert line.startswith("bd.load_file('x y.py'); bd.run_cell(dataset='toy(")
    assert "defense=none" in line
    assert line.endswith("seed=3)")
    threads = record.provenance.with_(threads=2, plugins=[], device="cpu: x")
    point = {"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": None}
    text = rerun.again(replace(record, provenance=threads, curves=[point]), Path("a b"))
    assert text.endswith(" --seed 3 --threads 2 --curves --results 'a b/again'")
    assert "--plugin" not in text
    assert recipe_label(recipe_of(str(record.cell.recipe))) == record.labels.recipe
    assert datasets.canonical(str(record.cell.dataset)) == str(record.cell.dataset)
