"""A mistake in a plugin file costs its own cells, and never the run."""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused

import bdbench as bd
from bdbench.attacks import Poisoned
from bdbench.attacks.poison import clean_label, dirty_label
from bdbench.cells.cell import Cell, cell
from bdbench.cells.cost import expected_passes, own, parts
from bdbench.cells.plugins import load_plugin
from bdbench.cli import main
from bdbench.defenses.registry import defenses
from bdbench.machine import numerics
from bdbench.models import Recipe
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.files import is_found_by_workers
from bdbench.models.rng import stream
from bdbench.models.scope import num_threads
from bdbench.records.record import decode, encode
from bdbench.running.worker import Job, Worker
from bdbench.storage.cache import sha256_of
from bdbench.trial import provenance
from bdbench.trial.clean_budget import budget_of
from bdbench.trial.evaluation import check_goal
from bdbench.trial.poisoned import check_poisoned
from bdbench.trial.provenance import plugins
from bdbench.trial.record import failed_record

SIZES = "toy(train_images=40, test_images=40, image_size=16)"
FIXED = ["--epochs=1", "--device=cpu", "--precision=fp32", "--seeds=1", "--attack=badnets"]
DEFENSE = '''"""A defense, nobody, 2026."""
from dataclasses import dataclass

from bdbench.defenses import Defense, register
from bdbench.models import train


@register("mine")
@dataclass(frozen=True)
class Mine(Defense):
    """Nothing."""

    def fit(self, data, context):
        return train(context.build(), data, context.recipe, context.rng("mine"))

'''
ATTACK = '''"""An attack, nobody, 2026."""
from dataclasses import dataclass

from bdbench.attacks import Attack, dirty_label, register


@register("frame")
@dataclass(frozen=True)
class Frame(Attack):
    """Nothing."""

    def trigger(self, images):
        return 255 - images

    def poison(self, clean, rng):
        return dirty_label(self, clean, rng)

'''
COST = "    def cost(self, recipe, images):\n        "
UNDEFENDED = "    @property\n    def undefended(self):\n        "


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unregistered: None) -> Iterator[Path]:
    """A working folder of its own; what plugin files add to the process is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - modules:
        if name.startswith(("bdbench_plugin_", "my_")):
            del sys.modules[name]


def run(*words: str) -> int:
    return main(["run", f"--dataset={SIZES}", *FIXED, "--results=out", *words])


def statuses(axis: str = "defense") -> dict[str, str]:
    """The status of each record by the label of a plugin."""
    records = [json.loads(path.read_text()) for path in Path("out/records").glob("*.json")]
    return {each["labels"][axis]: each["status"] for each in records}


def cell_of_mine(here: Path, body: str) -> tuple[Path, Cell]:
    """The file of a defense with this body, and a cell that uses it."""
    file = here / "mine.py"
    file.write_text(DEFENSE + body)
    bd.load_file(str(file))  # as `explain` prints it
    return file, cell(SIZES, "wrn16_1", "badnets", "mine", Recipe(), 0)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "    def cost(self, recipe):\n        return 1.0\n",
            "cost of defense mine failed at line 16 of {file}: TypeError: Mine.cost() takes 2",
        ),
        (f"{COST}raise SystemExit(0)\n", "failed at line 17 of {file}: SystemExit: 0"),
        (f"{COST}return 1 / 0\n", "failed at line 17 of {file}: ZeroDivisionError"),
        (f"{COST}return None\n", "must be a finite number of at least 0, got None at line 16"),
        (f"{COST}return float('nan')\n", "must be a finite number of at least 0, got nan"),
        (f"{COST}return -1.0\n", "must be a finite number of at least 0, got -1.0"),
        (f"{UNDEFENDED}raise SystemExit(0)\n", "undefended of defense mine failed at line 18"),
        (f"{UNDEFENDED}return 1 / 0\n", "undefended of defense mine failed at line 18 of {file}"),
        (f"{UNDEFENDED}return 1.5\n", "must be an integer of at least 0, got 1.5 at line 16"),
        ("    undefended = -1\n", "undefended of defense mine must be an integer of at least 0"),
    ],
)
def test_work_that_a_defense_cannot_tell_is_guessed_and_said(
    body: str, complaint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, made = cell_of_mine(here, body)
    (why,) = made.declared.unknown
    assert complaint.format(file=file) in why
    plain = cell(SIZES, "wrn16_1", "badnets", "none", Recipe(), 0)
    assert expected_passes(made) == expected_passes(plain)
    assert list(parts(made)) == [own(made)]
    if "cost" in body:
        assert complaint.format(file=file) in refused(capsys, "describe", "mine")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "    def cost(self, recipe):\n        return 1.0\n",
            "failed at line 18 of {file}: TypeError: Frame.cost() takes 2",
        ),
        (f"{COST}return 1 / 0\n", "failed at line 19 of {file}: ZeroDivisionError"),
        (
            f"{COST}return 'much'\n",
            "must be a finite number of at least 0, got 'much' at line 18 of {file}",
        ),
    ],
)
def test_an_attack_that_cannot_tell_its_work_is_taken_for_one_that_does_not_train(
    body: str, complaint: str, here: Path
) -> None:
    file = here / "frame.py"
    file.write_text(ATTACK + body)
    bd.load_file(file)
    made = cell(SIZES, "wrn16_1", "frame", "none", Recipe(), 0)
    assert expected_passes(made) == 40 * 300
    (why,) = made.declared.unknown
    assert why.startswith(f"cost of attack frame {complaint.format(file=file)}")


def test_other_cells_run_beside_a_defense_that_cannot_tell_its_work(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(f"{DEFENSE}{UNDEFENDED}raise SystemExit(0)\n")
    assert run("--defense=none", "--defense=mine", "--plugin=mine.py", "--in-process") == 1
    (line,) = (text for text in capsys.readouterr().out.splitlines() if "warning" in text)
    assert line.startswith("warning: undefended of defense mine failed at line 18 of ")
    assert line.endswith("mine.py: SystemExit: 0; the expected time is a guess")
    assert statuses() == {"none": "ok", "mine": "failed"}


SHARE = "    @property\n    def clean_fraction(self):\n        "


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "    clean_fraction = '5%'\n",
            "clean_fraction of defense mine must be at least 0 and below",
        ),
        ("    clean_fraction = 5\n", "must be at least 0 and below 1, got 5"),
        ("    clean_fraction = -0.1\n", "must be at least 0 and below 1, got -0.1"),
        (f"{SHARE}return float('nan')\n", "below 1, got nan at line 16 of {file}"),
        (
            f"{SHARE}return 1 / 0\n",
            "of defense mine failed at line 18 of {file}: ZeroDivisionError",
        ),
        (f"{SHARE}raise SystemExit(0)\n", "failed at line 18 of {file}: SystemExit: 0"),
        (
            "    clean_fraction, clean_images = 0.05, None\n",
            "clean_images of defense mine must be an integer of at least 2, got None",
        ),
        ("    clean_fraction, clean_images = 0.05, 1\n", "integer of at least 2, got 1"),
    ],
)
def test_a_defense_that_cannot_say_what_it_needs_is_lent_nothing_and_has_a_record(
    body: str, complaint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, made = cell_of_mine(here, body)
    images = ImageSet(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), torch.arange(20) % 10, 10)
    with pytest.raises(InvalidInput) as refusal:
        budget_of(made, images)
    assert complaint.format(file=file) in str(refusal.value)
    assert complaint.format(file=file) in refused(capsys, "describe", "mine")
    record = failed_record(made, torch.device("cpu"), refusal.value, [])
    assert record.provenance.clean_fraction is None
    assert decode(encode(record)) == record


IMAGES = ImageSet(
    torch.full((20, 3, 8, 8), 7, dtype=torch.uint8), torch.arange(20) % 10, num_classes=10
)
MASK, NONE = torch.arange(20) < 5, torch.zeros(20, dtype=torch.bool)


def turned(rows: torch.Tensor) -> ImageSet:
    """The images, some of them changed."""
    images = torch.where(rows[:, None, None, None], 255 - IMAGES.images, IMAGES.images)
    return replace(IMAGES, images=images)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (None, "poison of attack frame must return a bdbench.attacks.Poisoned, got None"),
        ((IMAGES, MASK), "got a tuple"),
        (Poisoned(IMAGES[MASK], MASK, NONE), r"got uint8 \(5, 3, 8, 8\)"),
        (Poisoned(turned(MASK), MASK.long(), NONE), r"must be bool \(20,\), got int64 \(20,\)"),
        (Poisoned(turned(MASK), MASK, NONE[:3]), r"the cover of attack frame .* got bool \(3,\)"),
        (Poisoned(turned(MASK), [True] * 20, NONE), "the mask of attack frame .* got a list"),
        (
            Poisoned(turned(~MASK), MASK, NONE),
            "attack frame changed 15 images that it marks in nei",
        ),
        (
            Poisoned(replace(IMAGES, labels=9 - IMAGES.labels), MASK, MASK.flip(0)),
            "changed 10 images",
        ),
        (Poisoned(turned(MASK), MASK, MASK), "marks 5 images in both mask and cover"),
        (
            Poisoned(replace(IMAGES, labels=(IMAGES.labels + MASK) % 10), NONE, MASK),
            "changed the label of 5 cover images",
        ),
    ],
)
def test_what_poison_returns_is_checked_at_once(made: object, complaint: str) -> None:
    check_poisoned(Poisoned(turned(MASK), MASK, NONE), IMAGES, "attack frame")
    with pytest.raises(InvalidInput, match=complaint):
        check_poisoned(made, IMAGES, "attack frame")


@pytest.mark.parametrize(
    "goal",
    [
        *(None, IMAGES.labels.float(), IMAGES.labels[:1]),
        *(IMAGES.labels + 1, IMAGES.labels - 1),
    ],
)
def test_the_goal_of_an_attack_is_a_class_for_each_image(goal: torch.Tensor) -> None:
    check_goal(9 - IMAGES.labels, IMAGES, "attack frame")
    with pytest.raises(InvalidInput, match="the goal of attack frame must be int64"):
        check_goal(goal, IMAGES, "attack frame")


@pytest.mark.parametrize(
    "trigger", ["None", "images.float()", "images[1:]", "images[..., 1:]", "images.tolist()"]
)
def test_other_cells_run_beside_an_attack_whose_trigger_makes_no_images(
    trigger: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = "    def training_trigger(self, images, rng):\n        return images\n"
    text = f"{ATTACK}{method}".replace("return 255 - images", f"return {trigger}")
    (here / "frame.py").write_text(text)
    words = ["--attack=frame", "--defense=none", "--plugin=frame.py", "--in-process"]
    assert run(*words) in (1, 2)
    assert "the trigger of attack frame must return images uint8 (40, 3, 16" in "".join(
        capsys.readouterr()
    )
    assert statuses("attack") == {"badnets": "ok", "frame": "failed"}


@pytest.mark.parametrize("poisoning", ["dirty_label", "clean_label"])
@pytest.mark.parametrize(
    ("body", "got"),
    [
        ("None", "got None"),
        ("images.float()", "got float32 (2, 3, 8, 8)"),
        ("images.numpy()", "got a ndarray"),
        ("images[:, :1]", "got uint8 (2, 1, 8, 8)"),
        ("images[:1]", "got uint8 (1, 3, 8, 8)"),
    ],
)
def test_a_trigger_that_makes_no_images_is_named_where_it_is_stamped(
    poisoning: str, body: str, got: str, here: Path
) -> None:
    """Or torch would say what it cannot assign, on a line of bdbench."""
    text = ATTACK.replace("return 255 - images", f"return {body}")
    (here / "frame.py").write_text(text)
    bd.load_file(here / "frame.py")
    attack = bd.attack("frame")
    select = {"dirty_label": dirty_label, "clean_label": clean_label}[poisoning]
    rate = 0.1 if poisoning == "dirty_label" else 1.0
    with pytest.raises(InvalidInput) as refusal:
        select(replace(attack, poisoning_rate=rate), IMAGES, stream(0, "poison"))
    assert str(refusal.value) == (
        f"the trigger of attack frame must return images uint8 (2, 3, 8, 8), {got}"
    )


STRIPES = '''"""A data set, nobody, 2026."""
from dataclasses import dataclass

from bdbench.datasets import Source, register


@register("stripes")
@dataclass(frozen=True)
class Stripes(Source):
    """Nothing."""

    name, num_classes, train_size, image_size = "stripes", 3, 600, 16
    flip, learning_rate = True, 0.1

    def load(self, roots, cache):
        raise ValueError

    def locate(self, roots):
        return "generated"

'''


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "    @property\n    def learning_rate(self):\n        return 1 / 0\n",
            "learning_rate of data set Stripes failed at line 23 of {file}: ZeroDivisionError",
        ),
        (
            "    @property\n    def flip(self):\n        raise SystemExit(0)\n",
            "flip of data set Stripes failed at line 23 of {file}: SystemExit: 0",
        ),
        (
            "    def __post_init__(self): ...\n    num_classes = None\n",
            "num_classes of data set Stripes must be an integer of at least 0, got None",
        ),
        (
            "    def __post_init__(self):\n        raise SystemExit(0)\n",
            "failed at line 22 of {file}: SystemExit: 0",
        ),
        (
            "    def locate(self, roots):\n        return 1 / 0\n",
            "looking for data set stripes failed at line 22 of {file}: ZeroDivisionError",
        ),
    ],
)
def test_what_a_data_set_cannot_tell_is_one_line(
    body: str, complaint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = here / "stripes.py"
    file.write_text(STRIPES + body)
    words = ["--dataset=stripes", *FIXED, "--defense=none", "--plugin=stripes.py", "--in-process"]
    line = refused(capsys, "run", "quick", *words)
    assert complaint.format(file=file) in line


def test_a_broken_promise_may_be_an_exit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{DEFENSE}    def __post_init__(self):\n        raise SystemExit(0)\n"
    (here / "mine.py").write_text(text)
    assert main(["check", "mine.py"]) == 1
    assert "SystemExit" in capsys.readouterr().out


def test_what_a_file_leaves_in_the_process_of_a_cell_is_restored(here: Path) -> None:
    left = "\nimport torch\ntorch.set_grad_enabled(False)\ntorch.set_default_device('meta')\n"
    (here / "mine.py").write_text(f"{DEFENSE}{left}")
    before = numerics.state()
    Worker(Job(here, here, (), "cpu", (here / "mine.py",)), lambda key, work: None)
    assert numerics.state() == before
    assert defenses.canonical("mine") == "mine"


@pytest.mark.parametrize("through", ["my_frame", "my_part"])
def test_a_file_stays_with_the_cells_of_what_it_imports(through: str, here: Path) -> None:
    (here / "my_frame.py").write_text(ATTACK)
    (here / "my_part.py").write_text("from my_frame import Frame\n")
    files = [here / "my_defense.py", here / "my_other.py"]
    files[0].write_text(f"import {through}\n{DEFENSE}")
    files[1].write_text(DEFENSE.replace('"mine"', '"other"'))
    for file in files:
        load_plugin(file)
    job = Job(here, here, (), "cpu", tuple(files))
    kept = {("frame", "none"): files[:1], ("frame", "mine"): files[:1], ("frame", "other"): files}
    kept |= {("badnets", "none"): [], ("badnets", "other"): files[1:]}
    for (attack, defense), needed in kept.items():
        made = cell(SIZES, "wrn16_1", attack, defense, Recipe(), 0)
        assert job.narrowed(made).plugins == tuple(needed)
        assert plugins(made) == [file.name for file in needed]


def test_a_cell_of_an_imported_attack_runs(here: Path) -> None:
    (here / "my_frame.py").write_text(ATTACK)
    (here / "my_defense.py").write_text(f"from my_frame import Frame\n{DEFENSE}")
    words = [f"--dataset={SIZES}", *FIXED[:-1], "--defense=none", "--plugin=my_defense.py"]
    assert main(["run", "--attack=frame", *words, "--results=out"]) == 0
    assert statuses() == {"none": "ok"}


LOUD = """import io
import os
import signal
import sys
import warnings
import torch
os.chdir("..")
os.environ["BDBENCH_CACHE"] = "nowhere"
os.environ["CUDA_VISIBLE_DEVICES"] = "7"
os.environ.pop("OMP_NUM_THREADS", None)
sys.path.insert(0, "nowhere")
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
os.umask(0o777)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda number, frame: None)
warnings.simplefilter("ignore")
warnings.showwarning = print
sys.stdout = sys.stderr = io.StringIO()
sys.setrecursionlimit(sys.getrecursionlimit() + 1)
"""


def umask() -> int:
    os.umask(now := os.umask(0))
    return now


SHARED: tuple[Callable[[], object], ...] = (
    *(Path.cwd, lambda: dict(os.environ), umask),
    *(torch.get_num_threads, torch.get_default_dtype, torch.is_grad_enabled),
    *(partial(signal.getsignal, n) for n in (signal.SIGINT, signal.SIGTERM)),
    *(lambda: list(warnings.filters), lambda: warnings.showwarning),
    *(lambda: sys.stdout, lambda: sys.stderr, sys.getrecursionlimit),
)


@pytest.mark.parametrize("end", ["", "1 / 0\n"])
def test_a_file_leaves_the_surroundings_of_who_loads_it(
    end: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (here / "loud.py").write_text(LOUD + DEFENSE + end)

    def surroundings() -> list[object]:
        return [read() for read in SHARED]

    before, path = surroundings(), list(sys.path)
    try:
        load_plugin(Path("loud.py"))
    except InvalidInput as error:
        assert end, error
    assert surroundings() == before
    assert sys.path == path if end else sys.path == [*path, "nowhere", str(here)]


def test_a_file_that_forbids_recursion_forbids_it_nobody_else(here: Path) -> None:
    (here / "flat.py").write_text(f"import sys\nsys.setrecursionlimit(200)\n{DEFENSE}")
    before = sys.getrecursionlimit()
    load_plugin(Path("flat.py"))
    assert sys.getrecursionlimit() == before


def test_a_run_goes_on_where_it_was_started(
    here: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (here / "loud.py").write_text(LOUD + DEFENSE)
    threads = torch.get_num_threads()
    with num_threads(threads):
        assert run("--defense=none", "--plugin=loud.py", "--in-process") == 0
    assert statuses() == {"none": "ok"}
    (record,) = (json.loads(path.read_text()) for path in Path("out/records").glob("*.json"))
    assert record["provenance"]["threads"] == threads
    assert any(cache_folder.iterdir())
    assert not [path for path in (here / "nowhere", here.parent / "nowhere") if path.exists()]


USES = DEFENSE.replace("from bdbench.models", "from my_part import PART\nfrom bdbench.models")


def forget() -> None:
    """What provenance has read."""
    for each in (provenance.files_of, provenance._content, provenance._hash, provenance._together):
        each.cache_clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("edited", ["mine.py", "my_part.py"])
def test_a_record_states_the_code_that_ran_and_not_a_later_edit(edited: str, here: Path) -> None:
    """As where a file is saved again while images are loaded."""
    (here / "mine.py").write_text(USES)
    (here / "my_part.py").write_text("PART = 1\n")
    job = Job(here, here, (), "cpu", plugins=(here / "mine.py",))
    made = Worker(job, lambda key, work: None).cell(
        cell("toy", "wrn16_1", "none", "mine", Recipe(), 0).located
    )
    before = (here / edited).read_text()
    (here / edited).write_text(f"{before}# Changed.\n")
    seen = provenance.sources(made)
    forget()
    assert provenance.sources(made)["defense"] != seen["defense"]
    (here / edited).write_text(before)
    forget()
    assert provenance.sources(made) == seen


@pytest.mark.parametrize("edited", ["mine.py", "my_part.py"])
def test_a_file_that_changes_while_it_is_imported_is_refused(edited: str, here: Path) -> None:
    path, part = here / "mine.py", here / "my_part.py"
    path.write_text(USES)
    change = f"with open({str(here / edited)!r}, 'a') as file:\n    file.write('# Changed.\\n')\n"
    part.write_text(f"PART = 1\n{change}")
    known = {path: {file: sha256_of(file) for file in (path, part)}}
    job = Job(here, here, (), "cpu", plugins=(path,), sources=known)
    with pytest.raises(InvalidInput, match=f"{edited}.* has changed during the run"):
        Worker(job, lambda key, work: None)


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_plugin_is_asked_in_a_process_of_its_own_before_a_run_on_a_cluster(
    engine: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trigger = "import builtins\n        builtins.touched = True\n        return 255"
    (here / "frame.py").write_text(ATTACK.replace("return 255", trigger))
    words = ["--dry-run", f"--engine={engine}", "--plugin=frame.py", "--attack=frame"]
    assert run(*words, "--defense=none") == 0
    assert "frame" in capsys.readouterr().out
    assert not hasattr(builtins, "touched")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("@register", "@register above Mine needs a name: write @register('mine')"),
        ("@register()", "missing 1 required positional argument: 'name'"),
        ("@register(7)", "the name of a defense must be text, got 7"),
        ("@register('strong-cutout')", "no spec can hold the name 'strong-cutout' of a defense"),
        ("@register('')", "no spec can hold the name '' of a defense"),
        ("@register(' mine')", "no spec can hold the name ' mine' of a defense"),
        ("@register('2mine')", "no spec can hold the name '2mine' of a defense"),
        ("@register('mine(size=1)')", "no spec can hold the name 'mine(size=1)' of a defense"),
        ("@register('lambda')", "no spec can hold the name 'lambda' of a defense"),
        ("@register('None')", "no spec can hold the name 'None' of a defense"),
        ("@register('\\ufb01ne')", "of a defense: use letters, digits and underscores"),
        (f"@register('{'m' * 61}')", "of a defense: use letters, digits and underscores, at most"),
    ],
)
def test_a_name_that_nobody_can_ask_for_is_refused_where_it_is_given(
    line: str, complaint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(DEFENSE.replace('@register("mine")', line))
    found = refused(capsys, "run", "quick", "--plugin=mine.py", "--dry-run")
    assert complaint in found
    assert "failed at line 8: " in found


def test_an_attack_is_not_called_as_a_column_is(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "frame.py").write_text(ATTACK.replace('"frame"', '"mean"'))
    (here / "mine.py").write_text(DEFENSE.replace('"mine"', '"mean"'))
    complaint = "no attack may be called 'mean': a column of the tables has this name; rename it"
    assert complaint in refused(capsys, "run", "quick", "--plugin=frame.py", "--dry-run")
    load_plugin(here / "mine.py")


@pytest.mark.parametrize("end", ["import missing_module", "1 / 0", "raise SystemExit(0)"])
def test_a_name_may_be_in_any_script(end: str, here: Path) -> None:
    """Letters of any alphabet; the file's own error is the one that is reported."""
    (here / "mine.py").write_text(DEFENSE.replace('"mine"', '"größe_ñ"') + f"\n{end}\n")
    with pytest.raises(InvalidInput, match=r"mine\.py' failed at line 17"):
        load_plugin(here / "mine.py")


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        ("Final[int] = 3", "must be int, got 'x'"),
        ("Final = 3", ""),
        ("Annotated[Final[int], 'seconds'] = 3", "must be int, got 'x'"),
        ("Annotated[int, 'seconds'] = 3", "must be int, got 'x'"),
    ],
)
@pytest.mark.parametrize("postponed", ["", "from __future__ import annotations\n"])
def test_a_field_may_be_final(
    postponed: str, annotation: str, complaint: str, here: Path, unregistered: None
) -> None:
    header = f"from typing import Annotated, Final\n{DEFENSE}"
    if postponed:
        header = f"{postponed}{header}"
    text = header.replace("    def fit", f"    size: {annotation}\n\n    def fit", 1)
    (here / "mine.py").write_text(text)
    load_plugin(here / "mine.py")
    assert defenses.canonical("mine(size=4)") == "mine(size=4)"
    if complaint:
        with pytest.raises(InvalidInput, match=complaint):
            defenses.build("mine(size='x')")


@pytest.mark.parametrize("package", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_helper_of_another_folder_is_refused(late: bool, package: bool, here: Path) -> None:
    """Whether it is imported at once or in a method, and is a file or a package."""
    name = f"my_helper_{late:d}{package:d}"
    for folder in ("one", "two"):
        home = here / folder / name if package else here / folder
        home.mkdir(parents=True)
        (home / ("__init__.py" if package else f"{name}.py")).write_text(f"WHERE = {folder!r}\n")
        line = f"import {name}\n"
        body = DEFENSE.replace('"mine"', f'"{folder}{name}"')
        body = body.replace("        return train", f"        {line}        return train")
        text = body if late else line + DEFENSE.replace('"mine"', f'"{folder}{name}"')
        (here / folder / "my_defense.py").write_text(text)
    load_plugin(here / "one" / "my_defense.py")
    builtins.__import__(name)
    with pytest.raises(InvalidInput, match=f"module '{name}' is .*one.*, not .*two.*rename"):
        load_plugin(here / "two" / "my_defense.py")


def test_an_edited_file_takes_back_what_it_has_registered(here: Path) -> None:
    """Its class may have another name, or its plugin; and a broken edit takes nothing back."""
    file = here / "my_defense.py"
    file.write_text(DEFENSE)
    load_plugin(file)
    file.write_text(DEFENSE.replace("class Mine", "class Other"))
    load_plugin(file)
    assert defenses.factory("mine").__name__ == "Other"
    file.write_text(DEFENSE.replace('"mine"', '"yours"') + "1 / 0\n")
    with pytest.raises(InvalidInput, match="failed at line"):
        load_plugin(file)
    assert defenses.factory("mine").__name__ == "Other"
    file.write_text(DEFENSE.replace('"mine"', '"yours"'))
    load_plugin(file)
    assert "mine" not in defenses.names()
    assert "yours" in defenses.names()
    # The edits are undone.
    file.write_text(DEFENSE)
    load_plugin(file)
    assert "yours" not in defenses.names()
    assert defenses.factory("mine").__name__ == "Mine"


def test_a_plugin_of_an_imported_module_needs_its_file_where_workers_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "my_methods.py").write_text(DEFENSE)
    monkeypatch.syspath_prepend(str(here))
    imported = __import__("my_methods")
    how: dict[str, Any] = {"epochs": 1, "device": "cpu", "seeds": 1, "progress": False}
    how |= {"datasets": SIZES, "attacks": "badnets", "results": here / "out"}
    said = r"module my_methods, which workers do not import: name its file as a plugin, and ask for"
    with pytest.raises(InvalidInput, match=said):
        bd.run(defenses=imported.Mine(), **how)
    found = bd.run(defenses="mine", plugins=here / "my_methods.py", **how)
    assert [record.status for record in found] == ["ok"]
    # It is loaded now, but not a plugin of this run.
    with pytest.raises(InvalidInput, match="name its file as a plugin"):
        bd.run(defenses="mine", **{**how, "results": here / "again"})


def test_a_field_without_a_type_is_told_apart_from_an_unknown_one(here: Path) -> None:
    (here / "my_defense.py").write_text(DEFENSE.replace('"""Nothing."""', "side = 8"))
    load_plugin(here / "my_defense.py")
    with pytest.raises(InvalidInput, match=r"no field 'side': write `side: TYPE = \.\.\.`"):
        defenses.build("mine(side=4)")
    for text in ("mine(version=2)", "mine(fit=1)", "cbd(undefended=3)"):
        with pytest.raises(InvalidInput, match="has no field") as refusal:
            defenses.build(text)
        assert "write" not in str(refusal.value)


def test_an_installed_plugin_that_a_script_imports_is_found_by_workers(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was registered by the import, before its entry point was looked at."""
    from importlib.metadata import EntryPoint

    (here / "my_installed.py").write_text(DEFENSE.replace('"mine"', '"installed"'))
    monkeypatch.syspath_prepend(str(here))
    imported = __import__("my_installed")
    assert not is_found_by_workers(defenses, imported.Mine, [])
    point = EntryPoint("installed", "my_installed:Mine", defenses.group)
    monkeypatch.setattr(
        "bdbench.models.plugins.registry.entry_points",
        lambda group: [point] if group == defenses.group else [],
    )
    assert is_found_by_workers(defenses, imported.Mine, [])
