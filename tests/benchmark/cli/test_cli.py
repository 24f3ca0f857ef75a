"""The command line as users see it: output, exit codes, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import refused

from bdbench.cli import main
from bdbench.models.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("own_folder")

TINY = [
    "--dataset=toy(train_images=100, test_images=50, image_size=16)",
    "--attack=badnets",
    "--epochs=1",
    "--precision=fp32",
    "--device=cpu",
]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["data", "sl"], "unknown command 'sl'"),
        (["data"], "bdbench data needs a command; choose one of: get, ls, prepare, preview"),
        (["cache"], "bdbench cache needs a command; choose one of: clear, "),
        (["run", "quik"], "unknown suite 'quik'; did you mean 'quick'?"),
        (["run", "--atack", "none"], "--atack"),
        (["run", "--attack", "badnet"], "unknown attack 'badnet'; did you mean 'badnets'?"),
        (["run", "--defense", "cdb"], "unknown defense 'cdb'; did you mean 'cbd'?"),
        (["run", "--model", "wrn16"], "unknown model 'wrn16'; did you mean 'wrn16_1'?"),
        (["run", "--dataset", "cifr10"], "unknown data set 'cifr10'; did you mean 'cifar10'?"),
        (["run", "--defense", "cbd(t2=1)"], "has no field 't2'; did you mean 't1'?"),
        (["run", "table1"], "unknown suite 'table1'; did you mean 'table1-cifar10'?"),
        (["run", "--dataset", "CIFAR-10"], "unknown data set 'CIFAR-10'; did you mean 'cifar10'?"),
        (["run", "--dataset", "CIFAR-10", "--train-images", "50"], "did you mean 'cifar10'?"),
        (["run", "--model", "wrn-16-1"], "unknown model 'wrn-16-1'; did you mean 'wrn16_1'?"),
        (["run", "--device", "CPU"], "device 'CPU' does not exist; did you mean 'cpu'?"),
        (["run", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["run", "--threads", "99999"], "--threads must be at most "),
        (["run", "--threads", "9" * 30], "--threads must be at most "),
        (["run", "--attack", "badnets(poisoning_rate=2)"], "must be in (0, 1], got 2.0"),
        (["run", "--attack", "badnets(target=10)"], "0 to 9, got 10"),
        (["run", "--device", "cuda:9"], "device 'cuda:9' does not exist"),
        (["run", "--model", "vgg16"], "torchvision has it: write torchvision(name='vgg16')"),
        (["run", "--model", "qqqq"], "weights, wrn16_1, or load the file of your own as a plugin"),
        (["run", "--model", "wrn16_1(mean=123.7)"], "got 123.7; divide a mean and a deviation in"),
        (["describe", "recipes"], "unknown plugin or suite 'recipes'; did you mean 'recipe'?"),
        (["run", "--precision", "fp61"], "unknown precision 'fp61'"),
        (["run", "--seeds", "0"], "seeds must be at least 1"),
        (["run", "--seeds", "many"], "'many' is not a valid integer"),
        (["run", "--epochs", "0"], "epochs must be at least 1"),
        (["run", "--train-images", "3"], "train_images of digits must be at least 10"),
        (["run", "--train-images", "5000"], "train_images of digits must be at most 1,200, got"),
        (["run", "--dataset=cifar10(train_images=50001)"], "must be at most 50,000, got 50,001"),
        (["run", "table1-gtsrb", "--train-images=40000"], "of gtsrb must be at most 39,209, got"),
        (["run", "--plugin", "absent.py"], "there is no plugin file 'absent.py'"),
        (["describe", "badnet"], "unknown plugin or suite 'badnet'; did you mean 'badnets'?"),
        (["describe", "CBD"], "unknown plugin or suite 'CBD'; did you mean 'cbd'?"),
        (["check", "ft-sam"], "unknown plugin 'ft-sam'; did you mean 'ft_sam'?"),
        (["list", "attack"], "unknown kind 'attack'; did you mean 'attacks'?"),
        (["table", "leaderbord"], "unknown table 'leaderbord'; did you mean 'leaderboard'?"),
        (["table"], "no records in results/quick/records"),
        (["explain", "0123"], "no record '0123'"),
        (["explain", "../x"], "no record '../x'"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in refused(capsys, *arguments)


def test_missing_data_names_folder_and_layouts(
    capsys: pytest.CaptureFixture[str], own_folder: Path
) -> None:
    words = ["run", "--dataset=cifar10", "--data", str(own_folder / "nowhere")]
    assert f"there is no folder {own_folder / 'nowhere'}" in refused(capsys, *words)
    (own_folder / "nowhere").mkdir()
    line = refused(capsys, *words)
    assert str(own_folder / "nowhere") in line
    assert "parquet" in line
    assert "cifar-10-batches-py" in line


def test_unwritable_folders_are_refused_before_training(
    capsys: pytest.CaptureFixture[str], own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = own_folder / "file"
    blocked.write_text("a file")
    assert "cannot write" in refused(capsys, "run", *TINY, "--results", str(blocked / "results"))
    monkeypatch.setenv("BDBENCH_CACHE", str(blocked / "cache"))
    assert "cannot write" in refused(capsys, "run", *TINY)


def run(*arguments: str) -> int:
    return main(["run", *TINY, *arguments])


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}


def test_a_run_is_resumed_and_extended_without_repeating_anything(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = own_folder / "results" / "quick"
    assert run("--defense=none") == 0
    first = stamps(results)
    assert len(first) == 1
    assert run("--defense=none") == 0
    shown = capsys.readouterr().out
    assert "the only cell has its record" in shown
    assert "--stale" not in shown
    assert stamps(results) == first
    assert run("--defense=none", "--seeds=2") == 0
    second = stamps(results)
    assert len(second) == 2
    assert {name: second[name] for name in first} == first
    assert "1 of 2 cells to run" in capsys.readouterr().out
    assert {path.name for path in (results / "tables").iterdir()} == {
        "leaderboard.csv",
        "leaderboard.md",
    }
    assert not list(own_folder.rglob("*.tmp"))


def test_a_table_that_cannot_be_written_is_printed(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a run, whose records are there, and when it is asked for again."""
    (own_folder / "results/quick").mkdir(parents=True)
    (own_folder / "results/quick/tables").write_text("in the way")
    assert run() == 1
    said = capsys.readouterr()
    assert "\n| none " in said.out
    assert "written:" not in said.out
    assert said.err.splitlines()[-1].startswith("bdbench: cannot write leaderboard.csv in results")
    for which, name in (("leaderboard", "leaderboard.csv"), ("1", "table1.md")):
        assert main(["table", which]) == 2
        said = capsys.readouterr()
        assert "\n| " in said.out
        assert f"bdbench: cannot write {name} in results/quick/tables" in said.err


def cell_lines(said: str) -> list[str]:
    """Those of a dry run that begin with the key of a cell."""
    return [line for line in said.splitlines() if re.match("[0-9a-f]{16}  ", line)]


def test_a_dry_run_for_a_cluster_says_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run", "--defense=none", "--engine=ray", "--gpus=1", "--device=cuda") == 0
    note, *same, first, last = capsys.readouterr().out.splitlines()
    assert note == (
        "note: the recipe and the settings of defenses are those of the suite quick, made for "
        "digits: name a suite or --recipe"
    )
    assert " ".join(map(str.strip, same)) == (
        f"all cells: {TINY[0].partition('=')[2]} · wrn16_1 · seed 0 · 1 epoch · "
        "recipe(batch_size=64, learning_rate=0.03, drops=(0.6, 0.85), padding=2, cutout=0)"
    )
    assert first.endswith("  badnets · none: to be run")
    assert last == "1 of 1 cells to run"


@pytest.mark.parametrize(
    ("sweep", "named"),
    [
        (["--recipe=recipe(cutout=[0, 4])"], ["recipe(cutout=0)", "recipe(cutout=4)"]),
        (
            ["--recipe=recipe(batch_size=[32, 64])", "--seeds=2"],
            [f"seed {seed} · recipe(batch_size={size})" for size in (32, 64) for seed in (0, 1)],
        ),
        (["--recipe=recipe(padding=2)", "--dataset=digits"], ["", ""]),
    ],
)
def test_each_line_of_a_run_names_another_cell(
    sweep: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe is named where cells differ in nothing else."""
    assert run("--dry-run", "--defense=none", "--engine=ray", *sweep) == 0
    lines = cell_lines(capsys.readouterr().out)
    names = [line.split("  ", 1)[1].removesuffix(": to be run") for line in lines]
    assert len({*names}) == len(named)
    assert all(map(str.endswith, names, named))
    assert any("recipe" in name for name in names) == any(named)


def test_a_dry_run_shortens_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    """The middle of a long one may be all in which two cells differ."""
    sweep = "cbd(select='cv', folds=[4, 5, 6], t1s=(3, 5), per_view=False, rescale=False)"
    attack = "badnets(poisoning_rate=0.05, pattern='white', margin=[2, 4])"
    words = ["--model=wrn16_1", "--model=resnet18", f"--attack={attack}", "--engine=ray"]
    assert run("--dry-run", f"--defense={sweep}", *words) == 0
    lines = cell_lines(capsys.readouterr().out)
    assert len({line.split("  ", 1)[1] for line in lines}) == len(lines) == 18


def test_a_dry_run_says_which_data_is_missing(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_folder / "cifar10").mkdir()
    words = ["run", "--dataset=cifar10", "--dataset=digits", "--attack=badnets", "--defense=none"]
    words += ["--recipe=recipe(epochs=1)", "--dry-run", f"--data={own_folder}"]
    assert main(words) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert line.startswith("warning: data set cifar10 was not found; download it with `")
    # The nodes of a cluster may have other data.
    assert main([*words, "--engine=ray"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_the_recipe_is_described_by_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "recipe"]) == 0
    said = capsys.readouterr().out
    for field in dataclasses.fields(Recipe):
        assert f"\n{field.name} " in said


def test_a_dry_run_writes_nothing(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run", "--defense=none", "--defense=cbd") == 0
    said = capsys.readouterr().out
    assert "wrn16_1 · badnets · seed 0 · 1 epoch" in " ".join(said.split())
    assert [line.split()[1] for line in cell_lines(said)] == ["none:", "cbd:"]
    assert "2 of 2 cells to run" in said.splitlines()[-1]
    assert not (own_folder / "results").exists()


def test_a_budget_leaves_out_what_does_not_fit(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--defense=none", "--budget=0") == 0
    assert "over the budget, so left out: 1 of 1 cells" in capsys.readouterr().out
    assert not list((own_folder / "results").rglob("*.json"))


def test_table_explain_list_describe_doctor_and_data_answer(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--defense=none") == 0
    key = next((own_folder / "results/quick/records").iterdir()).stem
    written = (own_folder / "results/quick/tables/leaderboard.md").read_bytes()
    capsys.readouterr()
    assert main(["table", "leaderboard"]) == 0
    assert "| badnets |" in capsys.readouterr().out
    assert (own_folder / "results/quick/tables/leaderboard.md").read_bytes() == written
    assert main(["explain", key[:6]]) == 0
    shown = capsys.readouterr().out
    assert key in shown
    assert "data_sha256" in shown
    again = shlex.split(shown.strip().splitlines()[-1])[1:]
    assert main([*again, "--dry-run"]) == 0
    assert f"\n{key}  " in capsys.readouterr().out
    assert again[-2:] == ["--results", "results/quick/again"]
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("badnets", "cbd", "wrn16_1", "gtsrb", "digits", "table5"))
    assert main(["describe", "cbd"]) == 0
    shown = capsys.readouterr().out
    assert "critic_weight" in shown
    assert "2303.06818" in shown
    assert main(["describe", "none"]) == 0
    shown = capsys.readouterr().out
    assert "attack none" in shown
    assert "defense none" in shown
    assert main(["doctor"]) == 0
    assert "writable" in capsys.readouterr().out
    assert main(["data", "ls"]) == 0
    assert "generated" in capsys.readouterr().out
    assert main(["data", "prepare", "toy(train_images=100)"]) == 0
    assert "100 of 32 x 32 pixels" in capsys.readouterr().out


def test_a_record_of_another_version_stops_the_run_and_is_left_alone(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--defense=none") == 0
    path = next((own_folder / "results/quick/records").iterdir())
    document = json.loads(path.read_text()) | {"schema": 999}
    path.write_text(json.dumps(document))
    capsys.readouterr()
    line = refused(capsys, "run", *TINY, "--defense=none")
    assert "schema 999" in line
    assert json.loads(path.read_text()) == document


def test_a_damaged_record_is_named_and_the_others_are_shown(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--defense=none", "--seeds=2") == 0
    paths = sorted((own_folder / "results/quick/records").iterdir())
    paths[0].write_text(paths[0].read_text()[:200])
    capsys.readouterr()
    assert main(["table"]) == 1
    streams = capsys.readouterr()
    assert paths[0].name in streams.err
    assert "| badnets |" in streams.out
    whole = stamps(own_folder / "results/quick")
    assert run("--defense=none", "--seeds=2") == 0
    assert "1 of 2 cells to run" in capsys.readouterr().out
    mended = stamps(own_folder / "results/quick")
    assert [name for name in whole if mended[name] != whole[name]] == [paths[0].name]


BROKEN = """
from dataclasses import dataclass
from bdbench.defenses import register
from bdbench.defenses.base import Defense

@register("breaks")
@dataclass(frozen=True)
class Breaks(Defense):
    def fit(self, data, context):
        raise RuntimeError("no such luck")
"""


def test_a_cell_that_fails_leaves_the_others_alone(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bdbench.defenses.registry import defenses

    (own_folder / "breaks.py").write_text(BROKEN)
    try:
        code = run("--plugin=breaks.py", "--defense=breaks", "--defense=none")
    finally:
        defenses._factories.pop("breaks")
    assert code == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "RuntimeError: no such luck" in shown
    records = [
        json.loads(path.read_text()) for path in (own_folder / "results/quick/records").iterdir()
    ]
    assert sorted(record["status"] for record in records) == ["failed", "ok"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_finished(
    number: signal.Signals, own_folder: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    arguments = ["run", *TINY, "--defense=none", "--seeds=100"]
    process = start(*arguments)
    records = own_folder / "results/quick/records"
    limit = time.monotonic() + 200
    while time.monotonic() < limit and not (records.exists() and any(records.glob("*.json"))):
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("bdbench: interrupted")
    assert "Traceback" not in errors
    kept = list(records.glob("*.json"))
    assert kept
    assert all(json.loads(path.read_text())["status"] == "ok" for path in kept)
    assert not list(own_folder.rglob("*.tmp"))


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], []])
def test_help_imports_no_large_library(arguments: list[str]) -> None:
    """So it answers at once."""
    program = f"""
import sys
from bdbench.cli import main

code = main({arguments})
large = {{"torch", "torchvision", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow"}}
assert not large & {{*sys.modules}}, large & {{*sys.modules}}
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bdbench" in done.stdout
