"""Cells in several processes, some of which die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmark.cli import main

PLUGIN = '''"""A defense for tests that trains nothing and does as it is told, nobody, 2026."""
from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from defenses import register
from defenses.base import Context, Defense
from models.classifier import Classifier
from models.data import ImageSet
from models.training import train


@register("docile")
@dataclass(frozen=True)
class Docile(Defense):
    """
    deed: what it does before all else
    number: any
    """

    deed: str = ""
    number: int = 0

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        log = Path(os.environ["DEEDS"])
        done = log.read_text() if log.exists() else ""
        with log.open("a") as file:
            file.write(f"{self.deed} {self.number}\\n")
        if self.deed == "die" or (self.deed == "die once" and "die once" not in done):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "exhaust":
            import resource

            resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
            bytearray(2**40)
        if self.deed == "sleep":
            time.sleep(60)
        if self.deed == "train":
            return train(context.build(), data, context.recipe, context.rng("classifier"))
        return context.build().eval()
'''
SIZES = "--dataset=toy(train_images=100, test_images=50)"


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "docile.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docile.py").symlink_to(plugin)
    monkeypatch.setenv("DEEDS", str(tmp_path / "deeds"))
    return tmp_path


def command(*more: str, defenses: tuple[str, ...] = ()) -> list[str]:
    fixed = ["run", SIZES, "--attack=none", "--epochs=1", "--device=cpu", "--precision=fp32"]
    return [*fixed, "--plugin=docile.py", *(f"--defense={text}" for text in defenses), *more]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        start_new_session=True,
    )


def results(folder: Path, name: str = "results/quick") -> dict[str, dict[str, Any]]:
    """The records by defense and seed, apart from times."""
    found = {}
    for path in (folder / name / "records").glob("*.json"):
        document = json.loads(path.read_text())
        found[f"{document['labels']['defense']} {document['cell']['seed']}"] = document
    return found


def numbers(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    apart = {"measured", "checksum"}
    return {
        name: {part: value for part, value in document.items() if part not in apart}
        for name, document in found.items()
    }


def strays(folder: Path) -> list[Path]:
    hidden = [path for path in (folder / "results").rglob(".*") if path.is_file()]
    cache = Path(os.environ["BDBENCH_CACHE"])
    half = list(cache.rglob("*.tmp"))
    checkpoints = [path for path in (cache / "checkpoints").rglob("*") if path.is_file()]
    return [*hidden, *half, *checkpoints]


def test_one_worker_dies_always_one_once_and_the_others_finish(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = ("docile", "docile(deed='die')", "docile(deed='die once')", "docile(deed='exhaust')")
    assert main(command("--jobs=2", defenses=kinds)) == 1
    said = capsys.readouterr().out
    assert "its worker was killed by SIGKILL" in said
    found = results(folder)
    fine, dead, once, exhausted = (found[f"{kind} 0"] for kind in kinds)
    assert fine["status"] == once["status"] == "ok"
    assert fine["measured"]["retries"] == []
    assert once["measured"]["retries"] == ["killed by SIGKILL, perhaps for want of memory"]
    assert dead["status"] == exhausted["status"] == "failed"
    assert dead["error"]["type"] == "WorkerDied"
    assert exhausted["error"]["type"] == "MemoryError"
    done = Counter((folder / "deeds").read_text().splitlines())
    assert done == {" 0": 1, "die 0": 3, "die once 0": 2, "exhaust 0": 1}
    assert strays(folder) == []


def test_workers_make_the_same_records_and_a_limit_ends_a_cell(folder: Path) -> None:
    kinds = ("docile", "docile(deed='train')", "docile(number=1)")
    assert main(command("--jobs=2", defenses=kinds)) == 0
    assert main(command("--results=alone", defenses=kinds)) == 0
    assert numbers(results(folder)) == numbers(results(folder, "alone"))
    slow = command("--limit=0.5", defenses=("docile(deed='sleep')", "docile"))
    began = time.monotonic()
    assert main([*slow, "--results=limited"]) == 1
    assert time.monotonic() - began < 30
    late = results(folder, "limited")["docile(deed='sleep') 0"]
    assert late["error"]["type"] == "TimeLimit"
    assert late["error"]["message"].startswith("over the limit of 0.5 s")
    assert strays(folder) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--jobs=0"], "--jobs must be at least 1, got 0"),
        (["--limit=0"], "--limit must be above 0 seconds, got 0.0"),
        (["--engine=rey"], "unknown engine 'rey'; did you mean 'ray'?"),
        (["--cores=2"], "--cores is for --engine ray and slurm"),
        (["--option=a=b"], "--option is for --engine ray and slurm"),
        (["--engine=ray", "--option=a"], "--option is written KEY=VALUE, got 'a'"),
        (["--engine=ray", "--gpus=-1"], "--gpus must be at least 0, got -1.0"),
        (["--engine=ray", "--budget=9"], "--budget is for --engine local"),
        (["--engine=slurm"], "needs the command sbatch"),
    ],
)
def test_impossible_options_are_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(*options)) == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_of_two_workers_run_each_cell_once(folder: Path) -> None:
    arguments = command(
        "--jobs=2", "--seeds=20", defenses=tuple(f"docile(number={n})" for n in range(3))
    )
    runs = [start(*arguments) for _ in range(2)]
    for run in runs:
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, out
    assert len(results(folder)) == 60
    assert Counter((folder / "deeds").read_text().splitlines()) == {f" {n}": 20 for n in range(3)}
    assert strays(folder) == []


KINDS = ("none", "cbd", "ft", "docile(deed='train')")


def killed_until_done(folder: Path, arguments: list[str], whom: str, moments: int) -> int:
    """Start a run again and again, kill or stop it after a random while; how often that was."""
    chance = random.Random(5)
    kills = 0
    for _ in range(moments):
        run = start(*arguments)
        try:
            run.communicate(timeout=chance.uniform(1, 12))
            break
        except subprocess.TimeoutExpired:
            kills += 1
            if whom == "nobody":
                run.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT]))
                out, _ = run.communicate(timeout=60)
                assert run.returncode in (0, 130), out
                continue
            children = subprocess.run(
                ["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False
            ).stdout.split()
            victims = {"parent": [], "everything": children, "worker": children[-1:]}[whom]
            for pid in victims:
                os.kill(int(pid), signal.SIGKILL)
            if whom == "worker":
                run.communicate(timeout=300)
                break
            os.kill(run.pid, signal.SIGKILL)
            run.communicate(timeout=60)
    last = start(*arguments)
    out, _ = last.communicate(timeout=300)
    assert last.returncode == 0, out
    return kills


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whom", "moments", "jobs"),
    [
        ("parent", 10, 2),
        ("everything", 10, 2),
        ("everything", 10, None),
        ("worker", 1, 2),
        ("nobody", 5, 2),
    ],
)
def test_whatever_is_killed_the_records_are_those_of_an_undisturbed_run(
    folder: Path, whom: str, moments: int, jobs: int | None
) -> None:
    more = ["--seeds=2"] + ([f"--jobs={jobs}"] if jobs else [])
    assert killed_until_done(folder, command(*more, defenses=KINDS), whom, moments) > 0
    killed = numbers(results(folder))
    assert len(killed) == 2 * len(KINDS)
    assert strays(folder) == []
    undisturbed = command("--seeds=2", "--results=undisturbed", defenses=KINDS)
    cache = {**os.environ, "BDBENCH_CACHE": str(folder / "other cache"), "OMP_NUM_THREADS": "1"}
    cache["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-m", "benchmark", *undisturbed], env=cache, check=True)
    assert killed == numbers(results(folder, "undisturbed"))
