"""The order of cells, with an engine that trains nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import builders
import pytest
import torch
from rich.console import Console

from bdbench.cells import cost, grid
from bdbench.cells.cell import Cell, cell
from bdbench.cells.suites import Suite
from bdbench.cli import main
from bdbench.machine.devices import DeviceFull
from bdbench.machine.threads import cores
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.scope import num_threads
from bdbench.models.training.recipe import Recipe
from bdbench.records import files as records
from bdbench.records.claims import claimed, lock_of, stamp
from bdbench.records.record import Record, key_of
from bdbench.running import schedule
from bdbench.running.engines.base import Died, Engine, Unfit, WorkerEvents
from bdbench.running.engines.fresh import death_of
from bdbench.running.engines.nursery import Task
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.engines.processes import Processes
from bdbench.running.plan import Plan, RunOptions, plan
from bdbench.running.probing import Asking
from bdbench.running.progress import Reporter
from bdbench.running.run import execute
from bdbench.running.schedule import ATTEMPTS, Schedule
from bdbench.running.speed import Speed
from bdbench.running.states import state_of
from bdbench.running.worker import Attempt, Job, Worker, claiming, setting_of
from bdbench.storage.cache import Cache
from bdbench.trial import provenance
from bdbench.trial.failure import LESS_MEMORY, worker_died
from bdbench.trial.harness import Harness
from bdbench.trial.record import failed_record

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1)


def cells_of(*defenses: str, attacks: Sequence[str] = ("none",), seeds: int = 1) -> list[Cell]:
    return [
        cell("toy", "wrn16_1", attack, defense, RECIPE, seed)
        for seed in range(seeds)
        for attack in attacks
        for defense in defenses
    ]


def record(chosen: Cell, failed: bool = False) -> Record:
    """That of a cell which took a minute, or which failed."""
    source = builders.make_record("none", "none", ca=None if failed else 900)
    return Record(**{**vars(source), "key": chosen.key, "cell": chosen.identity})


class Scripted(Engine):
    """Answers when its slots are full, the longest waiting first, as `answer` says."""

    def __init__(self, slots: int, answer: Callable[[Cell, Sequence[str]], Attempt]) -> None:
        self.slots, self.answer = slots, answer
        self.begun: list[Cell] = []
        self._open: list[tuple[Future[Attempt], Cell, Sequence[str]]] = []

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        self.begun.append(cell)
        future: Future[Attempt] = Future()
        self._open.append((future, cell, list(retries)))
        if len(self._open) == self.slots:
            self.settle()
        return future

    def close(self, broken: bool) -> None:
        assert not self._open

    def settle(self) -> None:
        future, chosen, retries = self._open.pop(0)
        try:
            future.set_result(self.answer(chosen, retries))
        except BaseException as error:
            future.set_exception(error)


def run(
    cells: Sequence[Cell],
    folder: Path,
    engine: Engine,
    budget: float | None = None,
    threads: int | None = None,
) -> tuple[int, str]:
    """The exit code and the output."""
    said = StringIO()
    speed = Speed(CPU, threads)
    speed.seconds = lambda chosen: 10.0 * len(list(chosen))  # type: ignore[method-assign]
    with Reporter(len(cells), 1.0, Console(file=said, width=200)) as reporter:
        before = {cell: stamp(folder, cell.key) for cell in cells}
        code = Schedule(before, folder, speed, budget, reporter).run(engine)
    return code, said.getvalue()


def test_every_cell_starts_once_and_a_failed_one_stops_no_other(tmp_path: Path) -> None:
    cells = cells_of("none", "fp", "cbd", seeds=2)
    engine = Scripted(1, lambda c, _: Attempt(record(c, failed=c == cells[1]), mine=True))
    code, said = run(cells, tmp_path, engine)
    assert engine.begun == cells
    assert code == 1
    assert said.count("FAILED") == 1
    assert f"bdbench explain {cells[1].key} --results {tmp_path} shows the traceback" in said


def test_the_advice_after_a_failure_names_a_folder_that_explain_does_not_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (chosen,) = cells_of("none")
    monkeypatch.chdir(tmp_path)
    for folder, words in (
        (Path("results/mine"), ""),
        (tmp_path / "results/mine", ""),
        (Path("own"), " --results own"),
        (Path("my own"), " --results 'my own'"),
        (Path("results/a/b"), " --results results/a/b"),
    ):
        engine = Scripted(1, lambda c, _: Attempt(record(c, failed=True), mine=True))
        _, said = run([chosen], folder, engine)
        assert f"; bdbench explain {chosen.key}{words} shows the traceback" in said


def test_a_failure_in_a_folder_that_was_removed_stops_no_other(
    remove_folder: Callable[[], None], tmp_path: Path
) -> None:
    cells = cells_of("none", "fp")
    engine = Scripted(1, lambda c, _: Attempt(record(c, failed=c == cells[0]), mine=True))
    remove_folder()
    code, said = run(cells, tmp_path, engine)
    assert (code, engine.begun) == (1, cells)
    assert f"bdbench explain {cells[0].key} --results {tmp_path} shows" in said


@pytest.mark.parametrize(
    ("attacks", "order"),
    [
        (("badnets",), "none abl fp nad"),
        (("none", "badnets"), "none abl fp nad none abl fp nad"),
        # Its attacker's training is shared by all.
        (("dynamic", "badnets"), "none none fp nad abl fp nad abl"),
    ],
)
def test_a_cell_does_not_wait_for_what_another_makes(
    attacks: tuple[str, ...], order: str, tmp_path: Path
) -> None:
    cells = cells_of("none", "fp", "nad", "abl", attacks=attacks)
    engine = Scripted(2, lambda c, _: Attempt(record(c), mine=True))
    engine_end = engine.submit

    def submit(cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future = engine_end(cell, before, retries)
        if len(engine.begun) == len(cells):
            engine.settle()
        return future

    engine.submit = submit  # type: ignore[method-assign]
    assert run(cells, tmp_path, engine)[0] == 0
    assert sorted(engine.begun, key=cells.index) == cells
    assert " ".join(c.labels["defense"] for c in engine.begun) == order


def test_a_cell_whose_worker_dies_resumes_in_another(tmp_path: Path) -> None:
    cells = cells_of("none", "cbd")
    heard = []

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        heard.append((chosen.labels["defense"], list(retries)))
        if chosen == cells[0] and len(retries) < ATTEMPTS - 1:
            raise Died("killed (SIGKILL)")
        return Attempt(record(chosen), mine=True)

    code, said = run(cells, tmp_path, Scripted(1, answer))
    assert code == 0
    assert [len(retries) for name, retries in heard if name == "none"] == list(range(ATTEMPTS))
    assert heard[1] == ("none", ["killed (SIGKILL)"])
    assert said.count("worker killed (SIGKILL); resuming in another") == ATTEMPTS - 1


@pytest.mark.parametrize("retired", [True, False])
def test_places_that_are_given_up_are_no_attempts(retired: bool, tmp_path: Path) -> None:
    (chosen,) = cells_of("none")
    unfit = 2 * ATTEMPTS

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        if len(retries) < unfit:
            raise Unfit("cuda:1 cannot be used: lost", retired)
        return Attempt(record(chosen), mine=True)

    code, said = run([chosen], tmp_path, engine := Scripted(1, answer))
    assert (code, len(engine.begun)) == ((0, unfit + 1) if retired else (1, ATTEMPTS))
    assert said.count(": cuda:1 cannot be used: lost; resuming in another") == len(engine.begun) - 1


def test_a_device_that_does_not_work_costs_no_cell(tmp_path: Path) -> None:
    """Or else it would fail all that wait, one after the other, while the others work."""
    data = "toy(train_images=60, test_images=40, image_size=16)"
    cells = [cell(data, "wrn16_1", "badnets", "none", RECIPE, seed) for seed in range(4)]
    job, said = Job(tmp_path / "results", tmp_path / "cache", (), "cpu", threads=1), list[str]()
    events = WorkerEvents(lambda key, work: None, said.append)
    with Processes(job, events, 2, ["cpu", "cuda:63"]) as engine:
        code, lines = run(cells, job.results, engine)
        assert engine.slots == 1
    assert code == 0
    (warning,) = said
    assert warning.startswith("cuda:63 cannot be used: ")
    assert warning.endswith("; the run goes on with 1 cell at a time now")
    assert lines.count(": cuda:63 cannot be used: ") == 1
    made = [records.read(records.path_of(job.results, each.key)) for each in cells]
    assert all(each.status == "ok" for each in made)
    assert sorted(len(each.measured.retries) for each in made) == [0, 0, 0, 1]


def test_a_cell_that_is_too_large_costs_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside other cells, every GPU has too little memory for it."""
    cells = cells_of("none", seeds=6)

    class Answers:
        def run(self, task: Task, events: WorkerEvents) -> Attempt:
            (chosen,) = [each for each in cells if f"'seed': {each.seed}" in repr(task.call)]
            if chosen == cells[0] and task.job.movable and not task.job.moved:
                raise Unfit("cuda:1 has too little memory") from DeviceFull()
            return Attempt(record(chosen, failed=chosen == cells[0]), mine=True)

        def close(self) -> None:
            pass

    monkeypatch.setattr("bdbench.running.engines.processes.FreshProcess", Answers)
    job, said = Job(tmp_path / "results", tmp_path / "cache", (), "cpu", threads=1), list[str]()
    events = WorkerEvents(lambda key, work: None, said.append)
    with Processes(job, events, 4, [f"cuda:{n}" for n in range(4)]) as engine:
        code, _ = run(cells, job.results, engine)
        assert engine.slots == 3
    assert code == 1
    assert said == ["cuda:1 has too little memory; the run goes on with 3 cells at a time now"]


def test_the_record_of_a_cell_whose_workers_died_states_what_they_had(tmp_path: Path) -> None:
    """Threads with which it can be run again, and the start of the first attempt."""
    (chosen,) = cells_of("none")

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        time.sleep(1.1 * (not retries))
        raise Died("exited with code 3")

    with num_threads(3):
        code, said = run([chosen], tmp_path, Scripted(1, answer), threads=1)
    assert code == 1
    lost = records.read(records.path_of(tmp_path, chosen.key))
    assert lost.provenance.threads == 1
    assert lost.measured.started < lost.measured.ended
    assert f"FAILED, key {chosen.key}" in said


def test_what_cannot_be_kept_begun_or_made_stops_no_other_cell(tmp_path: Path) -> None:
    cells = cells_of("none", "fp", "cbd", "ft", "nad")
    _, full, refused, lost_memory, unlocked = cells

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        if chosen == full:
            return Attempt(record(chosen), mine=True, unwritten="cannot write x: No space left")
        if chosen == refused:
            raise InvalidInput("the data are gone")
        if chosen == lost_memory:
            raise MemoryError("while images were loaded")
        if chosen == unlocked:
            return Attempt(None, mine=True, unwritten="cannot lock x: No locks available")
        return Attempt(record(chosen), mine=True)

    engine = Scripted(1, answer)
    code, said = run(cells, tmp_path, engine)
    assert engine.begun == cells
    assert code == 2
    assert "FAILED: its record could not be written: cannot write x: No space left" in said
    assert f"[3/5] cbd: refused, key {refused.key}" in said
    assert "  the data are gone" in said
    assert f"  MemoryError: while images were loaded; {LESS_MEMORY}; bdbench explain" in said
    assert f"[4/5] ft: FAILED, key {lost_memory.key}" in said
    assert f"[5/5] nad: FAILED, key {unlocked.key}" in said
    assert "  cannot lock x: No locks available" in said
    (path,) = (tmp_path / "records").glob("*.json")
    kept = records.read(path)
    assert kept.key == lost_memory.key
    assert kept.error is not None
    assert kept.error.type == "MemoryError"
    assert run(cells[:2], tmp_path, Scripted(1, answer))[0] == 1


def test_a_cell_whose_workers_always_die_has_a_record_that_says_so(tmp_path: Path) -> None:
    cells = cells_of("none", "cbd")

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        if chosen == cells[0]:
            raise Died("killed (SIGKILL)")
        return Attempt(record(chosen), mine=True)

    engine = Scripted(1, answer)
    code, _ = run(cells, tmp_path, engine)
    assert code == 1
    assert engine.begun == [cells[0]] * ATTEMPTS + [cells[1]]
    kept = records.read(records.path_of(tmp_path, cells[0].key))
    assert kept.status == "failed"
    assert kept.error is not None
    assert kept.error.type == "WorkerDied"
    assert kept.error.message == "worker killed (SIGKILL); gave up after 3 attempts"
    assert kept.measured.retries == ["killed (SIGKILL)"] * ATTEMPTS


@pytest.mark.parametrize("error", [Died("killed (SIGKILL)"), MemoryError("full"), SystemExit(3)])
def test_a_failure_does_not_replace_what_another_run_has_written_meanwhile(
    error: BaseException, tmp_path: Path
) -> None:
    (chosen,) = cells_of("none")

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        records.write(tmp_path, record(chosen))
        raise error

    code, said = run([chosen], tmp_path, Scripted(1, answer))
    assert code == 0
    assert "another run has written its record" in said
    assert records.read(records.path_of(tmp_path, chosen.key)).status == "ok"


def test_a_failure_waits_for_another_run_that_has_the_cell(tmp_path: Path) -> None:
    (chosen,) = cells_of("none")
    claim, asked = claimed(tmp_path, chosen.key), []

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        asked.append(chosen)
        if len(asked) == 1:
            claim.__enter__()
            raise MemoryError
        return Attempt(record(chosen))

    def free(key: str, line: str) -> None:
        claim.__exit__(None, None, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "suspend", lambda self, key, line: free(key, line))
        patch.setattr(Reporter, "begin", lambda *_, **__: None)
        patch.setattr(Reporter, "end", lambda *_: None)
        assert run([chosen], tmp_path, Scripted(1, answer))[0] == 0
    assert asked == [chosen, chosen]
    assert not (tmp_path / "records").exists() or not [*(tmp_path / "records").glob("*.json")]


@pytest.mark.parametrize("same", [True, False])
def test_a_failed_addition_leaves_results_of_whatever_code(same: bool, tmp_path: Path) -> None:
    (chosen,) = cells_of("none")
    origin = provenance.of(chosen, CPU, None)
    if not same:
        origin["sources"] |= {"defense": 12 * "0"}
    path = records.write(tmp_path, Record(**{**vars(record(chosen)), "provenance": origin}))
    before = path.read_bytes()

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        raise MemoryError

    code, said = run([chosen], tmp_path, Scripted(1, answer))
    assert code == 1
    assert "FAILED, key" in said
    line = "FAILED: its record could not be written: it would replace one that has results"
    assert line in said
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("error", "expected"), [(RuntimeError("sbatch: error"), 1), (InvalidInput("no data"), 2)]
)
def test_a_cell_that_cannot_be_submitted_stops_no_other(
    error: Exception, expected: int, tmp_path: Path
) -> None:
    cells = cells_of("none", "fp", "cbd")
    engine = Scripted(1, lambda c, _: Attempt(record(c), mine=True))
    submit = engine.submit

    def refusing(cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        if cell == cells[1]:
            raise error
        return submit(cell, before, retries)

    engine.submit = refusing  # type: ignore[method-assign]
    code, said = run(cells, tmp_path, engine)
    assert code == expected
    assert engine.begun == [cells[0], cells[2]]
    assert str(error) in said


def test_a_record_under_another_key_ends_its_cell(tmp_path: Path) -> None:
    """As after a change of a plugin."""
    cells = cells_of("none", "fp")
    other = record(cells_of("cbd")[0])
    engine = Scripted(1, lambda c, _: Attempt(other if c == cells[0] else record(c), mine=True))
    assert run(cells, tmp_path, engine)[0] == 0
    assert engine.begun == cells


def test_cells_of_another_run_are_left_to_it_until_it_ends(tmp_path: Path) -> None:
    """The other run writes the first record and dies during the second cell."""
    cells = cells_of("none", "fp", "cbd")
    seen: dict[Cell, int] = {}

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        seen[chosen] = seen.get(chosen, 0) + 1
        if chosen == cells[2] or seen[chosen] == 2:
            return Attempt(record(chosen), mine=chosen != cells[0])
        return Attempt(None)

    code, said = run(cells, tmp_path, Scripted(1, answer))
    assert code == 0
    assert seen == {cells[0]: 2, cells[1]: 2, cells[2]: 1}
    assert said.count("another run is working on it") == 2
    assert said.count("another run has written its record") == 1


@pytest.mark.parametrize(("kind", "expected"), [("RuntimeError", 1), ("InvalidInput", 2)])
def test_a_failure_in_another_run_is_one_of_this_run(
    kind: str, expected: int, tmp_path: Path
) -> None:
    cells = cells_of("none", "fp")
    error = {"type": kind, "message": "no such luck", "traceback": ""}
    failed = Record(**{**vars(record(cells[0], failed=True)), "error": error})
    engine = Scripted(1, lambda c, _: Attempt(failed if c == cells[0] else record(c)))
    code, said = run(cells, tmp_path, engine)
    assert code == expected
    assert said.count("another run has written its record") == 2
    assert said.count(f"{kind}: no such luck; bdbench explain {failed.key}") == 1


@pytest.mark.parametrize("budget", [None, 15.0])
def test_a_run_with_a_budget_does_not_wait_for_cells_that_it_could_not_start(
    budget: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes 10 seconds; the second one is that of another run, for 8 seconds."""
    cells, clock = cells_of("none", "fp"), [0.0]
    claim = claimed(tmp_path, cells[1].key)

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        if round(clock[0]) == 8:
            claim.__exit__(None, None, None)

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        with claimed(tmp_path, chosen.key) as mine:
            return Attempt(record(chosen), mine=True) if mine else Attempt(None)

    monkeypatch.setattr(schedule, "now", lambda: clock[0])
    monkeypatch.setattr(schedule, "time", SimpleNamespace(sleep=sleep))
    claim.__enter__()
    engine = Scripted(1, answer)
    code, said = run(cells, tmp_path, engine, budget)
    assert code == 0
    if budget is None:
        assert engine.begun == [*cells, cells[1]]
        assert "left out" not in said
    else:
        assert engine.begun == cells
        assert round(clock[0]) == 6, "after 5 seconds, 10 more exceed the budget"
        assert "over the budget, so left out: 1 of 2 cells" in said
        claim.__exit__(None, None, None)


def test_a_claimed_cell_is_not_begun_again_before_it_is_free(tmp_path: Path) -> None:
    cells = cells_of("none", "fp")
    asked = []

    def answer(chosen: Cell, retries: Sequence[str]) -> Attempt:
        asked.append(chosen)
        if chosen == cells[0] and len(asked) == 1:
            claim.__enter__()
            return Attempt(None)
        if chosen == cells[1]:
            claim.__exit__(None, None, None)
        return Attempt(record(chosen), mine=True)

    claim = claimed(tmp_path, cells[0].key)
    assert run(cells, tmp_path, Scripted(1, answer))[0] == 0
    assert asked == [cells[0], cells[1], cells[0]]


def test_what_does_not_fit_the_budget_is_left_out(tmp_path: Path) -> None:
    cells = cells_of("none", "fp", "cbd")
    engine = Scripted(1, lambda c, _: Attempt(record(c), mine=True))
    code, said = run(cells, tmp_path, engine, budget=5.0)
    assert code == 0
    assert engine.begun == []
    assert "over the budget, so left out: 3 of 3 cells" in said


def test_a_speed_that_is_not_known_is_no_time_and_fits_no_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that measures it may die, for example of too little memory."""
    asked = Mock(side_effect=Died("killed (SIGKILL)"))
    monkeypatch.setattr("bdbench.running.plan.call_in_process", asked)
    suite = Suite("", ("toy",), attacks=("none",), defenses=("none",), seeds=2)
    made = plan("x", suite, ExecutionOptions(), RunOptions("cpu", tmp_path, budget=1e9))
    *cells, count = made.lines()
    assert count == "2 of 2 cells to run"
    assert [line.endswith(": to be run") for line in cells[-2:]] == [True, True]
    said, engine = StringIO(), Scripted(1, lambda c, _: Attempt(record(c), mine=True))
    with Reporter(2, 1.0, Console(file=said, width=200)) as reporter:
        before = dict.fromkeys(made.missing)
        Schedule(before, tmp_path, made.speed, 1e9, reporter).run(engine)
    assert engine.begun == []
    assert asked.call_count == 1


def test_a_claim_keeps_others_out_and_its_record_sweeps_up_what_the_dead_left(
    tmp_path: Path,
) -> None:
    found = record(cells_of("none")[0])
    half = tmp_path / "records" / f".{found.key}.json.0.tmp"
    with claimed(tmp_path, found.key) as mine:
        assert mine
        half.write_text("{")
        with claimed(tmp_path, found.key) as other:
            assert not other
    assert half.exists()
    with claimed(tmp_path, found.key) as mine:
        assert mine
        records.write(tmp_path, found)
    assert list((tmp_path / "records").iterdir()) == [records.path_of(tmp_path, found.key)]


def test_a_claim_may_end_in_another_thread_than_it_began(tmp_path: Path) -> None:
    """As on a Ray cluster, where thousands of cells may do so; each lock is an open file."""

    def locks() -> list[str]:
        opened = (Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
        return [link for path in opened if ".lock" in (link := os.path.realpath(path))]

    stack, key = ExitStack(), cells_of("none")[0].key
    assert stack.enter_context(claimed(tmp_path, key))
    assert len(locks()) == 1
    thread = threading.Thread(target=stack.close)
    thread.start()
    thread.join()
    assert not locks()
    with claimed(tmp_path, key) as mine:
        assert mine


def test_a_stamp_tells_a_later_record(tmp_path: Path) -> None:
    (chosen,) = cells_of("none")
    assert stamp(tmp_path, chosen.key) is None
    records.write(tmp_path, record(chosen))
    first = stamp(tmp_path, chosen.key)
    assert first is not None
    records.write(tmp_path, record(chosen))
    assert stamp(tmp_path, chosen.key) != first


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "killed (SIGKILL, possibly out of memory)"),
        (-11, "killed (SIGSEGV)"),
        (3, "exited with code 3"),
        (None, "lost"),
    ],
)
def test_the_words_for_a_death(code: int | None, words: str) -> None:
    assert death_of(code) == words


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_record_of_a_lost_cell_can_be_written_and_read(tmp_path: Path, device: str) -> None:
    """Also where the GPUs are those of a cluster."""
    (chosen,) = cells_of("cbd")
    died = worker_died("worker killed (SIGKILL)", 1)
    lost = failed_record(chosen, torch.device(device), died, ["killed (SIGKILL)"])
    path = records.write(tmp_path, lost)
    assert records.read(path).provenance.data_sha256 is None


def test_finished_cells_are_seen_with_little_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for chosen in grid.cells(
        Suite("", ("toy",), attacks=("none",), defenses=("none",), seeds=1000, precision="fp32"),
        "fp32",
    ):
        found = record(chosen)
        records.write(tmp_path, Record(**{**vars(found), "labels": chosen.labels}))
    axes = ["--dataset=toy", "--attack=none", "--defense=none", "--seeds=1000"]
    recipe = ["--precision=fp32", "--recipe=recipe()"]
    command = ["run", *axes, *recipe, f"--results={tmp_path}", "--device=cpu"]
    codes: list[int] = []
    assert builders.calls(lambda: codes.append(main(command))) < 1000 * 5_000
    assert codes == [0]
    shown = capsys.readouterr().out
    assert "all 1000 cells have records" in shown
    assert "1000 records are from other code (" in shown


@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_cells_at_once_take_at_least_as_long_as_the_longest(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Asking, "speed", lambda *_: 1_000.0)
    small = Suite("", ("toy",), attacks=("none",), defenses=("none", "dbd"), precision="fp32")
    made = plan("x", small, ExecutionOptions(jobs=jobs), RunOptions("cpu", tmp_path))
    longest = max(map(cost.expected_passes, made.cells)) / 1_000
    whole = sum(cost.added_work(made.cells, {}).values()) / 1_000
    assert longest > whole / 2
    assert made.expected == pytest.approx(whole if jobs == 1 else longest)


def test_records_of_other_code_are_named_before_others_join_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The usual way of a new defense: a run, an edit, a run with one more attack."""
    small = Suite("", ("toy",), attacks=("none",), defenses=("cbd",), precision="fp32")
    (chosen,) = grid.cells(small, "fp32")
    found = record(chosen)
    sources = {**provenance.sources(chosen), "defense": "0" * 16}
    records.write(tmp_path, replace(found, provenance=found.provenance.with_(sources=sources)))
    words = ["--dataset=toy", "--attack=none", "--defense=cbd", "--defense=none", "--device=cpu"]
    recipe = ["--precision=fp32", "--recipe=recipe()", "--seeds=1"]
    assert main(["run", *words, *recipe, f"--results={tmp_path}", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(": has its record, from other code") for line in said) == 1
    assert any(line.startswith("1 record is from other code (defense): --stale") for line in said)


@pytest.mark.parametrize("jobs", [[], ["--jobs=2"]])
@pytest.mark.parametrize("curves", [False, True])
def test_leftovers_of_a_run_that_died_right_after_its_record_are_removed(
    curves: bool, jobs: list[str], tmp_path: Path, cache_folder: Path
) -> None:
    one = Suite("", ("toy(train_images=20)",), attacks=("none",), defenses=("none",))
    (chosen,) = grid.cells(one, "fp32")
    found = record(chosen)
    records.write(tmp_path, Record(**{**vars(found), "labels": chosen.labels}))
    with num_threads(1):
        left = Harness(Cache(cache_folder), [], CPU).checkpoints(chosen)[curves]
    left.mkdir(parents=True)
    (left / f"0-1-{32 * '0'}.safetensors").touch()
    lock_of(tmp_path, chosen.key).touch()
    arguments = [
        "--dataset=toy(train_images=20)",
        "--attack=none",
        "--defense=none",
        "--device=cpu",
    ]
    recipe = "--recipe=recipe(precision='fp32')"
    command = ["run", *arguments, recipe, f"--results={tmp_path}", *jobs]
    with num_threads(2):
        with claimed(tmp_path, chosen.key):
            assert main(command) == 0
        assert left.exists(), "another run holds the lock"
        lock_of(tmp_path, chosen.key).touch()
        assert main(command) == 0
    assert not left.exists()
    assert not lock_of(tmp_path, chosen.key).exists()


def test_what_cannot_be_tidied_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dies(*arguments: object) -> None:
        raise Died("killed (SIGKILL)")

    one = Suite("", ("toy(train_images=20)",), attacks=("none",), defenses=("none",))
    (chosen,) = grid.cells(one, "fp32")
    found = record(chosen)
    records.write(tmp_path, Record(**{**vars(found), "labels": chosen.labels}))
    lock_of(tmp_path, chosen.key).touch()
    monkeypatch.setattr("bdbench.running.run.call_in_process", dies)
    words = ["--dataset=toy(train_images=20)", "--attack=none", "--defense=none", "--device=cpu"]
    recipe = "--recipe=recipe(precision='fp32')"
    assert main(["run", *words, recipe, f"--results={tmp_path}"]) == 0
    assert "the only cell has its record" in capsys.readouterr().out


def test_what_cells_share_is_counted_once() -> None:
    plain, fp, mcr, cbd = cells = cells_of("none", "fp", "mcr(ends='two')", "cbd")
    other = cells_of("fp", attacks=("badnets",))[0]
    found = cost.added_work([*cells, other])
    one = 3.0 * RECIPE.epochs * 4000
    assert found[plain] == one == cost.expected_passes(plain)
    assert found[fp] == pytest.approx(cost.expected_passes(fp) - one)
    assert found[mcr] == pytest.approx(cost.expected_passes(mcr) - one)
    assert found[cbd] == pytest.approx(cost.expected_passes(cbd))
    assert found[other] == pytest.approx(cost.expected_passes(other))
    first, again = cells_of("cbd", "abl", attacks=("adaptive",))
    shares = cost.added_work([first, again])
    assert shares[first] == pytest.approx(cost.expected_passes(first))
    assert shares[again] < cost.expected_passes(again) - 10 * one


def toy_plan(folder: Path, *options: str) -> Plan:
    """The plan of one plain cell, run in this process."""
    suite = Suite("", ("toy(train_images=20)",), attacks=("none",), defenses=("none",), seeds=1)
    chosen = dict.fromkeys(options, True)
    how = RunOptions(device="cpu", results=folder, **chosen)
    return plan("", replace(suite, precision="fp32"), ExecutionOptions(in_process=True), how)


def finished(chosen: Cell, **changes: Any) -> Record:
    """A record of a cell by the code of now, but for these fields of its provenance."""
    origin = {**provenance.of(chosen, CPU, None), "data_sha256": 64 * "a", **changes}
    return replace(
        record(chosen), labels=chosen.labels, provenance=origin, versions=chosen.versions
    )


def test_a_cell_that_another_run_finishes_before_this_one_begins_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toy_plan(tmp_path)
    (chosen,) = made.missing
    records.write(tmp_path, finished(chosen))
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("it ran again"))
    said = StringIO()
    assert execute(made, Console(file=said, width=200)).code == 0
    assert "another run has written its record" in said.getvalue()


@pytest.mark.parametrize("timed", [False, True])
def test_workers_are_told_how_to_run_a_cell(timed: bool, tmp_path: Path) -> None:
    suite = Suite("", ("toy",), attacks=("none",), defenses=("none",), timed=timed)
    execution = ExecutionOptions(threads=None if timed else 2)
    job = plan("x", suite, execution, RunOptions("cpu", tmp_path, limit=9.0, save=True)).job
    usual = min(torch.get_num_threads(), cores())
    assert (job.timed, job.threads, job.limit) == (timed, usual if timed else 2, 9.0)
    assert job.save
    with num_threads(1):
        Worker(replace(job, threads=2), lambda key, work: None)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("failed", [False, True])
def test_only_a_cell_that_failed_keeps_its_checkpoints(failed: bool, tmp_path: Path) -> None:
    made = toy_plan(tmp_path)
    (chosen,) = made.missing
    worker = Worker(made.job, lambda key, work: None)
    (left,) = worker.harness.checkpoints(chosen)[:1]
    left.mkdir(parents=True)
    (left / f"0-1-{32 * '0'}.safetensors").touch()
    worker.run = lambda *_: record(chosen, failed)  # type: ignore[method-assign]
    assert worker.attempt(chosen).mine
    assert left.exists() == failed


@pytest.mark.parametrize("option", ["", "curves", "stale", "save"])
def test_a_record_that_is_to_be_replaced_says_which_images_are_meant(
    option: str, tmp_path: Path
) -> None:
    (chosen,) = toy_plan(tmp_path).cells
    records.write(tmp_path, finished(chosen, sources={"defense": "0" * 12}))
    again = toy_plan(tmp_path, *([option] if option else []))
    assert bool(again.missing) == bool(option)
    if option:
        assert again.job.images == {setting_of(chosen.specs): (64 * "a", None)}
        worker = Worker(again.job, lambda key, work: None)
        with pytest.raises(InvalidInput, match="are not those of the records in"):
            worker.run(chosen, ())


def test_the_record_that_tables_show_decides_whether_a_cell_runs(tmp_path: Path) -> None:
    """A fresh record of another folder does not stand in for the own one, which is stale."""
    (chosen,) = toy_plan(tmp_path / "own").cells
    other_code = finished(chosen, sources={"defense": "0" * 12})
    records.write(tmp_path / "other", finished(chosen))
    folders = [tmp_path / "own", tmp_path / "other"]
    find = partial(state_of, curves=False, save=False)
    assert find(chosen, folders, stale=True).kind == "finished"
    records.write(tmp_path / "own", other_code)
    state = find(chosen, folders, stale=True)
    assert (state.kind, state.folder) == ("missing", tmp_path / "own")
    assert find(chosen, folders, stale=False).kind == "outdated"
    records.write(tmp_path / "own", record(chosen, failed=True))
    assert find(chosen, folders, stale=True).folder == tmp_path / "other"


def test_a_record_counts_even_if_its_worker_dies_after_writing_it(tmp_path: Path) -> None:
    (chosen,) = cells_of("none")

    def work() -> Attempt:
        records.write(tmp_path, record(chosen))
        raise Died("killed (SIGKILL)")

    assert claiming(tmp_path, chosen.key, None, work) == Attempt(record(chosen), mine=True)

    def dies() -> Attempt:
        raise Died("killed (SIGKILL)")

    with pytest.raises(Died):
        claiming(tmp_path, chosen.key, stamp(tmp_path, chosen.key), dies)


def test_records_of_another_version_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--dataset=toy(train_images=20)", "--attack=none", "--device=cpu"]
    words += ["--recipe=recipe()", "--precision=fp32", "--seeds=1", f"--results={tmp_path}"]
    one = Suite("", ("toy(train_images=20)",), attacks=("none",), defenses=("cbd",), seeds=1)
    (chosen,) = grid.cells(one, "fp32")
    old = {**chosen.versions, "defense": chosen.versions["defense"] - 1}
    key = key_of(chosen.identity, old)
    path = records.write(tmp_path, replace(finished(chosen), key=key, versions=old))
    for more in ([], ["--dry-run"]):
        # Other settings of the same plugin, as in a sweep.
        for defense in ("cbd", "cbd(t1=1)"):
            assert main([*words, f"--defense={defense}", *more]) == 2
            said = capsys.readouterr().err
            assert f"record {key} (cbd on none) in {tmp_path} is of version" in said
            assert "remove the old records, or name another folder with --results" in said
    assert main([*words, "--defense=none", "--dry-run"]) == 0
    assert path.exists()


def test_records_of_other_cells_say_which_images_a_folder_is_of(tmp_path: Path) -> None:
    """Of the same data set, model and recipe, as these share a table."""
    (chosen,) = toy_plan(tmp_path).cells
    other = replace(chosen, seed=7)
    records.write(tmp_path, finished(other))
    made = toy_plan(tmp_path)
    assert made.missing == (chosen,)
    assert made.job.images == {setting_of(chosen.specs): (64 * "a", None)}
    with pytest.raises(InvalidInput, match="are not those of the records in"):
        Worker(made.job, lambda key, work: None).check_images(chosen)


def test_the_code_of_cells_that_run_again_is_not_told(tmp_path: Path) -> None:
    """What differs is said of the records that stay."""
    (chosen,) = toy_plan(tmp_path).cells
    records.write(tmp_path, finished(chosen, sources={"defense": "0" * 12}))
    assert "from other code" in " ".join(toy_plan(tmp_path).outdated())
    assert list(toy_plan(tmp_path, "save").outdated()) == []
