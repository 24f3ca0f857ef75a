"""Whose seconds they are: what others take of the device, and suites whose seconds are compared."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.cells.suites import SUITES
from bdbench.cli import main
from bdbench.machine import clock as timing
from bdbench.machine.contention import Contention, combine
from bdbench.models import observer
from bdbench.models.plugins.errors import Signal
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read
from bdbench.records.record import ALONE, Record
from bdbench.running import speed
from bdbench.storage.cache import Cache
from bdbench.trial import harness, undefended
from bdbench.trial.harness import Harness
from bdbench.trial.warm_up import steps, warm_up

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
Core = namedtuple("Core", "user nice system idle iowait irq softirq steal guest guest_nice")
OFF = Core(*[0.0] * 10)
TINY = [
    "--dataset=toy(train_images=100, test_images=50, image_size=16)",
    "--attack=badnets",
    "--defense=none",
    "--epochs=1",
    "--seeds=1",
    "--device=cpu",
]


Times = tuple[float, ...]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a system tells of its clocks, in seconds.

    clock: on the wall
    cores: what each did
    own: user and system time of this process, and the same of children that have ended
    children: the same of living children
    parents: by number, the same of those that this process descends from, the nearest first
    """
    made = SimpleNamespace(clock=50.0, cores=[OFF, OFF], own=(0.0,) * 4, children=[], parents={})

    def process(times: Times, children: Sequence[Times] = (), pid: int = 1) -> SimpleNamespace:
        # Linux adds the time for which it waited for the disk.
        told = SimpleNamespace(cpu_times=lambda: (*times, 77.0), pid=pid)
        told.children = lambda recursive: [process(each) for each in children]
        told.parents = lambda: [process(each, pid=number) for number, each in made.parents.items()]
        return told

    monkeypatch.setattr(time, "perf_counter", lambda: made.clock)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: made.cores)
    monkeypatch.setattr(psutil, "Process", lambda: process(made.own, made.children))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    return made


def test_cores_that_others_keep_busy(machine: SimpleNamespace) -> None:
    """In ten seconds the cores work for 19, of which 12 are for us and those we started."""
    machine.children = [(1.0, 0.0, 0.0, 0.0), (4.0, 0.0, 0.0, 0.0)]
    others = Contention(CPU)
    machine.clock += 10
    machine.cores = [OFF._replace(user=9.0, idle=1.0), OFF._replace(system=9.0, steal=1.0)]
    # The first child ended after another second, the other one has started a process itself.
    machine.own = (5.0, 1.0, 2.0, 0.0)
    machine.children = [(4.5, 0.5, 2.0, 0.0), (2.0, 0.0, 0.0, 0.0)]
    assert others.meanwhile() == pytest.approx((19 - 12) / 10)


def test_the_processes_between_a_cell_and_its_run() -> None:
    code = (
        "import os, psutil; from bdbench.machine.contention import _above as above;"
        "print(*(each.pid for each in above(psutil.Process(), int(os.environ['RUN']))))"
    )
    middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    for run, expected in ((os.getpid(), 2), (-5, 0)):
        program = [sys.executable, "-c", middle]
        environment = {**os.environ, "RUN": str(run)}
        found = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
        numbers = found.stdout.split()
        assert len(numbers) == expected
        assert numbers[1:] == [str(run)] * (expected > 0)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        # The run and what started this process work for it; another cell, alive or ended, does not.
        (30, (20 - 6 - 1 - 2) / 10),
        # The process of the run is elsewhere, as on a cluster.
        (77, (20 - 6) / 10),
        (None, (20 - 6) / 10),
    ],
)
def test_other_cells_of_a_run_are_others(
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    family: int | None,
    expected: float,
) -> None:
    """Two cells at once: this one works for six seconds, and the process 30 is the run."""
    monkeypatch.setattr(Contention, "family", family)
    machine.parents = {40: (0.0,) * 4, 30: (0.0,) * 4, 20: (0.0,) * 4}
    others = Contention(CPU)
    machine.clock += 10
    machine.cores = [OFF._replace(user=10.0), OFF._replace(user=10.0)]
    machine.own = (6.0, 0.0, 0.0, 0.0)
    # Seconds of children that have ended: those of other cells.
    machine.parents = {40: (1.0, 0.0, 5.0, 0.0), 30: (1.0, 1.0, 3.0, 0.0), 20: (9.0, 0.0, 0.0, 0.0)}
    assert others.meanwhile() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cores", "own", "usable", "expected"),
    [
        # What no process did is not for others.
        ([{"user": 10, "guest": 3, "iowait": 5, "idle": 50, "guest_nice": 1}], 10.0, {0}, 0.0),
        # Clocks tick apart: a process may be ahead of its core.
        ([{"user": 10}], 10.02, {0}, 0.0),
        # Other cores do not count.
        ([{"user": 10}, {"user": 6}], 5.0, {1}, 0.1),
        # In some sandboxes the times of cores stand still.
        ([{}], 10.0, {0}, None),
    ],
)
def test_which_times_count(
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    cores: list[dict[str, float]],
    own: float,
    usable: set[int],
    expected: float | None,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable, raising=False)
    others = Contention(CPU)
    machine.clock += 10
    machine.cores = [OFF._replace(**times) for times in cores]
    machine.own = (own, 0.0, 0.0, 0.0)
    assert others.meanwhile() == pytest.approx(expected)


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), FileNotFoundError("/proc/stat")])
def test_a_system_that_does_not_say_leaves_it_open(
    machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(percpu: bool) -> None:
        raise error

    others = Contention(CPU)
    monkeypatch.setattr(psutil, "cpu_times", refuse)
    assert others.meanwhile() is None
    assert Contention(CPU).meanwhile() is None


def test_the_real_clocks_are_read() -> None:
    others = Contention(CPU)
    limit = time.monotonic() + 0.3
    while time.monotonic() < limit:
        pass
    found = others.meanwhile()
    assert found is not None
    assert 0 <= found < (psutil.cpu_count() or 1)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes nvidia-smi answer so, when it is asked for the processes on our GPU."""
    program = tmp_path / "nvidia-smi"
    asked = "--query-compute-apps=pid --format=csv,noheader -i GPU-ab-12"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    properties = SimpleNamespace(uuid="ab-12")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def answer(text: str, code: int = 0) -> None:
        lines = ["#!/bin/sh", f'[ "$*" = "{asked}" ] || exit 9', f"printf '{text}'", f"exit {code}"]
        program.write_text("\n".join(lines))
        program.chmod(0o755)

    return answer


@pytest.mark.parametrize(
    ("begun", "ended", "others"),
    [
        ("me\\n", "me\\n", 0),
        ("7\\nme\\n8\\n", "me\\n", 2),
        ("me\\n", "me\\n9\\n", 1),
        # As a container may see it, where this process has another number.
        ("4711\\n", "4711\\n4712\\n", 1),
        # This process is on the GPU, so these say nothing.
        ("", "", None),
        ("[Not Supported]\\n", "[Not Supported]\\n", None),
        ("me\\n", "", None),
    ],
)
def test_other_processes_on_a_gpu(
    answers: Callable[..., None], begun: str, ended: str, others: float | None
) -> None:
    answers(begun.replace("me", str(os.getpid())))
    looked = Contention(GPU)
    answers(ended.replace("me", str(os.getpid())))
    assert looked.meanwhile() == others


def test_without_nvidia_smi_or_where_it_fails_nothing_is_known(
    answers: Callable[..., None],
) -> None:
    assert Contention(GPU).meanwhile() is None
    answers(f"{os.getpid()}", code=6)
    assert Contention(GPU).meanwhile() is None


def test_the_worst_of_several_is_only_known_if_all_are() -> None:
    assert combine([0.1, 1.5, 0]) == 1.5
    assert combine([0.1, None, 3.0]) is None


RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.02, updates=0.005)


def tiny(defense: str, model: str = "wrn16_1") -> Cell:
    return cell(
        "toy(train_images=120, test_images=80, image_size=16)",
        model,
        "badnets",
        defense,
        RECIPE,
        seed=0,
    )


class Told:
    """In place of `Contention`: answers one after the other."""

    def __init__(self, *answers: float | None) -> None:
        self.answers = list(answers)

    def __call__(self, device: torch.device) -> Told:
        return self

    def meanwhile(self) -> float | None:
        return self.answers.pop(0)


def replace_contention(monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
    for module in (harness, undefended):
        monkeypatch.setattr(module, "Contention", told)


def others_of(
    defense: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: float | None
) -> float | None:
    """What the record says of the others, when they are met so: first while an undefended network
    is trained, if one is, and then in all."""
    told = Told(*answers)
    replace_contention(monkeypatch, told)
    record = Harness(Cache(folder), [], CPU).run(tiny(defense))
    assert record.status == "ok"
    assert not told.answers
    return record.measured.others


def test_a_record_says_who_else_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the seconds were spent that a stored network brings."""
    assert others_of("none", tmp_path, monkeypatch, 1.23456, 1.0) == 1.0
    assert others_of("none", tmp_path, monkeypatch, 0.5) == 1.235
    assert others_of("cbd(t1=1)", tmp_path, monkeypatch, None) is None


def test_seconds_of_an_earlier_attempt_leave_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Signal):
        pass

    seen: list[int] = []

    def progress(work: int) -> None:
        seen.append(work)
        if len(seen) == 6:
            raise Stopped

    two = cell(*list(vars(tiny("none")).values())[:4], Recipe(epochs=2, batch_size=32), 0)
    replace_contention(monkeypatch, Told(0.0, 0.0))
    with pytest.raises(Stopped):
        Harness(Cache(tmp_path), [], CPU, progress=progress, patience=-1.0).run(two)
    record = Harness(Cache(tmp_path), [], CPU, patience=-1.0).run(two)
    assert record.measured.resumed == 1
    assert record.measured.others is None
    # Nor does anyone who takes the network know.
    replace_contention(monkeypatch, Told(0.0))
    assert Harness(Cache(tmp_path), [], CPU).run(two).measured.others is None


def test_images_and_their_speed_are_of_one_unit(tmp_path: Path) -> None:
    """One epoch of 120 images, forward and backward, whether trained now or before."""
    for _ in range(2):
        record = Harness(Cache(tmp_path), [], CPU).run(tiny("none"))
        assert record.measured.images == 120
        seconds = record.measured.seconds
        busy = seconds.undefended + seconds.fit
        assert record.measured.images_per_second == pytest.approx(120 / busy, abs=0.06)


def test_a_capture_is_a_stage_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only goes on inside of captures, and when somebody looks for others, which is
    no stage: then nothing else takes time."""
    clock = [0.0]
    monkeypatch.setattr(timing, "now", lambda: clock[0])

    class Slow(Told):
        def meanwhile(self) -> float | None:
            clock[0] += 1.0
            return super().meanwhile()

    replace_contention(monkeypatch, Slow(0.0, 0.0))
    train = undefended.train

    def recorded(*arguments: Any) -> Any:
        with observer.current().capture():
            clock[0] += 12.5
        return train(*arguments)

    monkeypatch.setattr(undefended, "train", recorded)
    record = Harness(Cache(tmp_path), [], CPU).run(tiny("none"))
    seconds = record.measured.seconds.as_dict()
    assert seconds.pop("capture") == 12.5
    assert set(seconds.values()) == {0.0}


def test_table_3_is_repeated_five_times_and_nothing_else_is_timed() -> None:
    timed = {name: suite.seeds for name, suite in SUITES.items() if suite.timed}
    assert timed == {"table3": 5, "table3-imagenet": 5}


@pytest.mark.parametrize(
    "words",
    [["--jobs=2"], ["--engine=ray"], ["--engine=slurm", "--jobs=1"], ["--jobs=2", "--dry-run"]],
)
def test_a_timed_suite_refuses_company_of_its_own(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "table3", *TINY, *words]) == 2
    assert capsys.readouterr().err == (
        "bdbench: table3 measures seconds, so its cells run one after the other on this machine: "
        "leave out --jobs and --engine\n"
    )


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Every probe and every cell, each with its network and the number of threads; in an empty
    folder."""
    monkeypatch.chdir(tmp_path)
    order: list[tuple[str, str, int]] = []
    run = Harness.run

    def probed(chosen: Cell, device: torch.device) -> float:
        order.append(("probe", chosen.model, torch.get_num_threads()))
        return 1000.0

    def trained(self: Harness, chosen: Cell, retries: Any) -> Record:
        order.append(("train", chosen.model, torch.get_num_threads()))
        return run(self, chosen, retries)

    monkeypatch.setattr(speed, "probe", probed)
    monkeypatch.setattr(Harness, "run", trained)
    return order


def test_a_timed_suite_can_be_listed(
    order: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "table3", *TINY, "--dry-run"]) == 0
    assert "1 of 1 cells to run" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["--jobs=1"]])
def test_others_are_named(
    words: list[str],
    order: list[tuple[str, str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What trains has a process of its own, which is no other."""
    monkeypatch.setattr("bdbench.running.run.Contention", Told(1.43))
    assert main(["run", "table3", *TINY, *words]) == 0
    # Nothing is computed here.
    assert order == []
    said = capsys.readouterr().out
    warning = "warning: other processes use the device (1.4 cores), which distorts seconds\n"
    assert said.count(warning) == 1
    (path,) = Path("results/table3/records").glob("*.json")
    assert read(path).measured.isolated


def test_nothing_is_timed_cold_and_to_warm_up_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdbench.trial.warm_up._warm", set())
    warm, told = harness.warm_up, []

    def observed(*arguments: Any) -> None:
        told.append(dict(sys._getframe(1).f_locals["watch"].seconds))
        warm(*arguments)

    monkeypatch.setattr(harness, "warm_up", observed)
    first = Harness(Cache(tmp_path / "warm"), [], CPU).run(tiny("ft"))
    (stages,) = told
    assert stages.keys() == {"load"}
    monkeypatch.setattr(harness, "warm_up", lambda *arguments: None)
    second = Harness(Cache(tmp_path / "cold"), [], CPU).run(tiny("ft"))
    assert {**vars(first), "measured": None} == {**vars(second), "measured": None}


def test_a_process_warms_up_once_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("bdbench.trial.warm_up._warm", set())
    monkeypatch.setattr(
        "bdbench.trial.warm_up.steps", lambda cell, *rest: made.append(cell.labels["model"])
    )
    for model in ("wrn16_1", "resnet18", "wrn16_1"):
        for defense in ("none", "ft"):
            warm_up(tiny(defense, model), CPU)
    assert made == ["wrn16_1", "resnet18"]


def test_a_probe_has_no_more_images_than_a_batch_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch size with a digit too many must not fill the memory in a dry run."""
    batches: list[int] = []

    def note(
        cell: Cell, device: torch.device, count: int, batch: int, enough: float
    ) -> list[float]:
        batches.append(batch)
        return [1.0]

    monkeypatch.setattr(speed, "steps", note)
    made = tiny("none")
    for size in (4, 1_000_000):
        recipe = replace(made.recipe, batch_size=size)
        assert speed.probe(replace(made, recipe=recipe), CPU) == 3 * batches[-1]
    assert batches == [4, made.dataset.count]


@pytest.mark.parametrize(("enough", "made"), [(math.inf, 5), (0.0, 3)])
def test_a_probe_of_a_slow_network_is_short(enough: float, made: int) -> None:
    assert len(steps(tiny("none"), CPU, 5, 4, enough)) == made


@pytest.mark.parametrize("answer", [0.0, ALONE, None])
def test_who_is_alone_is_not_warned(
    answer: float | None,
    order: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("bdbench.running.run.Contention", Told(answer))
    assert main(["run", "table3", *TINY, "--budget=0"]) == 0
    assert "warning" not in capsys.readouterr().out
