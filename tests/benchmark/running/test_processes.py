"""Fresh processes, the nursery that they come from, and how cores and devices are shared out."""

from __future__ import annotations

import errno
import os
import platform
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.machine import devices, threads
from bdbench.machine.threads import cores, short_spin
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.recipe import Recipe
from bdbench.records.claims import claimed, stamp
from bdbench.records.files import network_of, path_of, read, write
from bdbench.records.record import REACTIVATED, Record
from bdbench.running.engines import fresh, options, processes
from bdbench.running.engines.base import Died, WorkerEvents
from bdbench.running.engines.fresh import call_in_process, last_result
from bdbench.running.engines.nursery import Task, has_ended
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.engines.own_nursery import Nursery, nursery
from bdbench.running.engines.processes import Processes
from bdbench.running.worker import Attempt, Job, Worker, claiming
from bdbench.storage import networks
from bdbench.storage.cache import Cache
from bdbench.trial.record import failed_record

CPU = torch.device("cpu")
QUIET = WorkerEvents(lambda key, work: None, lambda line: None)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "results", tmp_path / "cache", (), "cpu", threads=1)


# What fresh processes are asked. They import this module, by its path.


def process_of(worker: Worker) -> tuple[int, int, str, str | None]:
    """Its own, that of its keeper, and what surrounds it."""
    return os.getpid(), os.getppid(), os.getcwd(), os.environ.get("BESIDE")


def groups(worker: Worker) -> tuple[int, int, int]:
    """Its process, its group, and that of its keeper."""
    return os.getpid(), os.getpgid(0), os.getpgid(os.getppid())


def warn(worker: Worker) -> None:
    for n in range(3000):
        warnings.warn(f"{n} {'x' * 60}", stacklevel=1)


def leave(worker: Worker, code: int) -> None:
    os._exit(code)


def kill(worker: Worker, number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def refuse(worker: Worker) -> None:
    raise InvalidInput("no")


class Unsendable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raise_unsendable(worker: Worker) -> None:
    raise Unsendable(1, 2)


def start_another(worker: Worker) -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def sleep(worker: Worker, mark: str) -> None:
    Path(mark).write_text(f"{os.getpid()} {os.getppid()}")
    time.sleep(600)


def faults(worker: Worker) -> int:
    """How often the system maps pages, large or small, for ten steps of 16 blocks of 4 MiB."""

    def step() -> list[torch.Tensor]:
        return [torch.zeros(1 << 20) for _ in range(16)]

    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process is gone by then."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        with suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.02)
                continue
        return True
    return False


def test_every_call_has_a_process_of_its_own_in_the_surroundings_of_now(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call_in_process(job, process_of)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BESIDE", "yes")
    second = call_in_process(job, process_of)
    assert len({os.getpid(), first[0], first[1], second[0], second[1]}) == 5
    assert first[3] is None
    assert second[2:] == (str(tmp_path), "yes")
    assert gone(second[0])
    assert gone(second[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (partial(leave, code=0), "exited with code 0"),
        (partial(leave, code=3), "exited with code 3"),
        (partial(kill, number=signal.SIGKILL), r"killed \(SIGKILL, possibly out of memory\)"),
        (partial(kill, number=signal.SIGSEGV), r"killed \(SIGSEGV\)"),
    ],
)
def test_a_death_is_told(job: Job, call: Any, words: str) -> None:
    with pytest.raises(Died, match=words):
        call_in_process(job, call)


def test_what_a_call_raises_is_raised_here(job: Job) -> None:
    with pytest.raises(InvalidInput, match="no"):
        call_in_process(job, refuse)
    with pytest.raises(RuntimeError, match="Unsendable: 1 and 2"):
        call_in_process(job, raise_unsendable)


def test_nothing_that_a_cell_starts_outlives_it(job: Job) -> None:
    assert gone(call_in_process(job, start_another))


def asleep(job: Job, mark: Path) -> tuple[threading.Thread, int, int]:
    """A call that sleeps, its process and its keeper."""

    def ask() -> None:
        with suppress(Died):
            call_in_process(job, partial(sleep, mark=str(mark)))

    asking = threading.Thread(target=ask)
    asking.start()
    while not mark.exists() or len(mark.read_text().split()) < 2:
        time.sleep(0.02)
    cell, keeper = map(int, mark.read_text().split())
    return asking, cell, keeper


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_keeper_that_is_killed_takes_its_cell_along(
    job: Job, tmp_path: Path, number: int
) -> None:
    asking, cell, keeper = asleep(job, tmp_path / "mark")
    os.kill(keeper, number)
    asking.join(10)
    assert not asking.is_alive()
    assert gone(cell)


def test_a_nursery_that_is_killed_is_replaced_and_cells_go_on(job: Job, tmp_path: Path) -> None:
    asking, cell, _ = asleep(job, tmp_path / "mark")
    first = nursery()._process
    first.kill()
    # While its threads end, it takes a task yet, which is lost: a run tries such a cell again.
    first.wait(10)
    assert call_in_process(job, process_of)[0] != cell
    assert nursery()._process.pid != first.pid
    assert psutil.pid_exists(cell)
    os.kill(cell, signal.SIGKILL)
    asking.join(10)
    assert not asking.is_alive()


def test_other_variables_of_libraries_need_another_nursery(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = nursery()
    monkeypatch.setenv("BESIDE", "1")
    assert nursery() is first
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    second = nursery()
    assert second is not first
    assert not first.lives
    monkeypatch.delenv("OMP_PROC_BIND")


def test_a_nursery_of_which_nothing_was_asked_is_not_waited_for() -> None:
    begun = Nursery({})
    begun.close()
    assert begun._process.returncode == -signal.SIGKILL


def test_a_cell_and_the_nursery_are_in_groups_of_their_own(job: Job) -> None:
    cell, of_cell, of_keeper = call_in_process(job, groups)
    assert of_cell == cell
    assert of_keeper == nursery()._process.pid
    assert os.getpgid(0) not in (of_cell, of_keeper)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SystemExit(1)])
def test_a_callback_that_fails_ends_its_attempt(job: Job, error: BaseException) -> None:
    """More warnings than the pipe of the cell holds."""

    def fail(line: str) -> None:
        raise error

    engine = Processes(job, WorkerEvents(lambda key, work: None, fail), 1, ["cpu"])
    with engine:
        future: Future[Attempt] = Future()
        tasks = [fresh._task(job, warn)]
        engine._tasks.put(processes._Submitted(future, 16 * "0", None, tasks))
        assert future.exception(60) is error


def test_a_cell_counts_how_often_what_it_shares_resumed(job: Job) -> None:
    seen: list[int] = []

    def do(task: Task) -> int:
        seen.append(task.job.resumed)
        return len(seen)

    assert last_result([fresh._task(job, warn)] * 3, do) == 3
    assert seen == [0, 1, 2]


def test_the_end_of_a_run_is_the_end_of_its_cells(tmp_path: Path) -> None:
    """Killed, it cannot say so."""
    script = """
import sys
from functools import partial
from pathlib import Path
from test_processes import sleep
from bdbench.running.engines.fresh import call_in_process
from bdbench.running.worker import Job
job = Job(Path("results"), Path("cache"), (), "cpu", threads=1)
call_in_process(job, partial(sleep, mark=sys.argv[1]))
"""
    mark = tmp_path / "mark"
    run = subprocess.Popen(
        [sys.executable, "-c", script, str(mark)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])},
    )
    while not mark.exists() or len(mark.read_text().split()) < 2:
        assert run.poll() is None
        time.sleep(0.02)
    family = [each.pid for each in psutil.Process(run.pid).children(recursive=True)]
    assert {int(pid) for pid in mark.read_text().split()} <= {*family}
    run.kill()
    run.wait()
    assert all(gone(pid) for pid in family)


# How cores and devices are shared out


class Held:
    """Replaces a process: holds its task until all have started."""

    meet = threading.Barrier(4)
    devices: ClassVar[Counter[str]] = Counter()

    def run(self, task: Any, events: WorkerEvents) -> Attempt:
        self.devices[task.job.device] += 1
        self.meet.wait(10)
        return Attempt(None)

    def signal(self, number: int) -> None: ...

    def close(self) -> None: ...


def test_cells_are_spread_over_all_gpus(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FreshProcess", Held)
    monkeypatch.setattr(Held, "devices", Counter())
    monkeypatch.setattr(Held, "meet", threading.Barrier(4))
    chosen = [cell("toy", "wrn16_1", "none", "none", Recipe(epochs=1), n) for n in range(8)]
    with Processes(job, QUIET, 4, ["cuda:0", "cuda:1"]) as engine:
        futures = [engine.submit(each, None, ()) for each in chosen]
        assert [future.result(10).record for future in futures] == [None] * 8
    assert Held.devices == {"cuda:0": 4, "cuda:1": 4}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four."""
    stand_in = SimpleNamespace(is_available=lambda: True, device_count=lambda: 4)
    monkeypatch.setattr(devices, "torch", SimpleNamespace(cuda=stand_in, device=torch.device))


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("name", "jobs", "expected", "at_once"),
    [
        ("auto", None, 4, 4),
        ("cuda", None, 4, 4),
        ("cuda", 8, 4, 8),
        ("cuda:1", None, 1, 1),
        ("cuda:1", 2, 1, 2),
    ],
)
def test_cuda_is_all_gpus(name: str, jobs: int | None, expected: int, at_once: int) -> None:
    execution = ExecutionOptions(jobs=jobs)
    found = execution.devices(name)
    assert len(found) == expected
    assert all(device.type == "cuda" for device in found)
    assert execution.at_once(100, found, timed=False) == at_once
    assert execution.at_once(3, found, timed=False) == min(3, at_once)
    assert execution.at_once(100, found, timed=True) == 1


@pytest.mark.parametrize(
    ("execution", "timed", "at_once", "each"),
    [
        (ExecutionOptions(), False, 6, 1),
        (ExecutionOptions(), True, 1, 5),
        (ExecutionOptions(jobs=1), False, 1, 1),
        (ExecutionOptions(jobs=3), False, 3, 1),
        (ExecutionOptions(threads=2), False, 3, 2),
        (ExecutionOptions(threads=9), False, 1, 9),
        (ExecutionOptions(jobs=2, threads=2), False, 2, 2),
        (ExecutionOptions(in_process=True), False, 1, 5),
        (ExecutionOptions("slurm", cores=7), False, 6, 7),
    ],
)
def test_a_core_has_a_cell_and_a_cell_a_thread(
    execution: ExecutionOptions,
    timed: bool,
    at_once: int,
    each: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options, "cores", lambda: 6)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert execution.threads_of(CPU, timed) == each
    if execution.is_here:
        assert execution.at_once(100, (CPU,), timed) == at_once


@pytest.mark.parametrize(
    ("execution", "device", "timed"),
    [
        (ExecutionOptions(), CPU, True),
        (ExecutionOptions(), torch.device("cuda:0"), False),
        (ExecutionOptions(in_process=True), CPU, False),
    ],
)
def test_a_cell_has_no_more_threads_than_cores(
    execution: ExecutionOptions,
    device: torch.device,
    timed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch counts the cores of the machine, not those of a container."""
    monkeypatch.setattr(options, "cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert execution.threads_of(device, timed) == 2


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores, of which 16 are for this process, in a group with a quota."""
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job\n")
    (tmp_path / "sys/fs/cgroup/user/job").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("max 100000", "max 100000", 16),
        ("400000 100000", "max 100000", 4),
        ("max 100000", "250000 100000", 3),
        ("1000 100000", "max 100000", 1),
        ("9900000 100000", "max 100000", 16),
        ("nonsense", "", 16),
    ],
)
def test_cores_are_those_that_a_process_may_use(
    system: Path, own: str, above: str, expected: int
) -> None:
    (system / "sys/fs/cgroup/user/job/cpu.max").write_text(own)
    (system / "sys/fs/cgroup/user/cpu.max").write_text(above)
    assert cores(system) == expected


@pytest.mark.parametrize(("quota", "expected"), [(250_000, 3), (-1, 16)])
def test_the_first_version_of_control_groups_has_one_for_cores(
    system: Path, quota: int, expected: int
) -> None:
    (system / "proc/self/cgroup").write_text("7:memory:/\n3:cpu,cpuacct:/job\n")
    for name, text in (("quota", quota), ("period", 100_000)):
        file = system / f"sys/fs/cgroup/cpu/job/cpu.cfs_{name}_us"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert cores(system) == expected


def test_without_groups_cores_are_those_of_the_affinity(system: Path) -> None:
    (system / "proc/self/cgroup").unlink()
    assert cores(system) == 16
    assert cores(system / "nowhere") == 16


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": "5000"}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"OMP_NUM_THREADS": "7"}, {"GOMP_SPINCOUNT": "5000"}),
    ],
)
def test_threads_spin_shortly_unless_the_user_says_how_they_wait(
    given: dict[str, str], added: dict[str, str]
) -> None:
    assert short_spin(given) == added


def test_the_command_and_its_cells_spin_shortly(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    spin = "import os; print(os.environ['GOMP_SPINCOUNT'])"
    script = "import sys; sys.argv = ['bdbench', '--version']\nfrom bdbench.cli import entry\n"
    script += f"import atexit; atexit.register(lambda: exec({spin!r}))\nentry()"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "5000"
    loaded = Path(f"/proc/{nursery()._process.pid}/environ").read_text()
    assert "GOMP_SPINCOUNT=5000" in loaded.split("\0")


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="only the allocator of glibc reads GLIBC_TUNABLES; another one keeps or returns memory "
    "by rules of its own, which bdbench leaves alone",
)
def test_a_step_of_a_cell_uses_the_memory_of_the_last_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = 160
    for name in [name for name in os.environ if name.startswith(("GLIBC_", "MALLOC_"))]:
        monkeypatch.delenv(name)
    kept = call_in_process(job, faults)
    # A user's choice is kept: here, that each block is mapped and given back by itself.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    mapped = call_in_process(job, faults)
    assert mapped >= blocks
    # Now and then a block finds a new place, whose pages are mapped once.
    assert kept < max(blocks / 2, mapped / 100)


# What the record of a cell holds, if it runs again.

SMALL = "toy(train_images=40, test_images=40, image_size=16)"
ADDITIONS = ("curves", "reactivate", "save")


def small() -> Cell:
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.01, updates=0.05)
    return cell(SMALL, "wrn16_1", "badnets", "none", recipe, 0)


def attempt(job: Job, before: int | None, **asked: bool) -> Attempt:
    changed = replace(job, **asked)  # type: ignore[arg-type]
    work = partial(Worker(changed, lambda key, work: None).attempt, small())
    return claiming(job.results, small().key, before, work, changed.suffices)


def held(job: Job, record: Record) -> set[str]:
    """What a record and the files beside it hold, whole and of one attempt."""
    found = {"curves"} if record.curves else set()
    found |= {"reactivate"} if record.count(REACTIVATED) else set()
    arrays = Cache(job.cache).get("embeddings", {"cell": record.key})
    assert ("embedding/z/after" in (arrays or {})) == bool(record.curves)
    if (path := network_of(job.results, record.key)).exists():
        found.add("save")
        assert networks.read(path).facts["sha256"] == record.provenance.network_sha256
    return found


@pytest.mark.parametrize("order", [ADDITIONS, ADDITIONS[::-1], ("save", "curves", "reactivate")])
def test_a_record_never_holds_less_than_the_one_it_replaces(
    order: tuple[str, ...], job: Job
) -> None:
    key, asked = small().key, set[str]()
    for name in (*order, ""):
        asked |= {name} - {""}
        made = attempt(job, stamp(job.results, key), **dict.fromkeys({name} - {""}, True))
        assert made.record == read(path_of(job.results, key))
        assert held(job, made.record) == asked


@pytest.mark.parametrize("asked", ADDITIONS)
def test_what_another_run_was_not_asked_for_is_added(asked: str, job: Job) -> None:
    """The other one writes its record while this run waits."""
    written = attempt(job, None).record
    assert attempt(job, None) == Attempt(written)
    added = attempt(job, None, **{asked: True})
    assert added.mine
    assert added.record is not None
    assert held(job, added.record) == {asked}
    assert added.record.metrics == written.metrics or asked == "reactivate"  # type: ignore[union-attr]
    assert attempt(job, None, **{asked: True}) == Attempt(added.record)
    failed = failed_record(small(), CPU, RuntimeError("no such luck"), [])
    write(job.results, failed)
    assert attempt(job, None, **{asked: True}) == Attempt(failed)


def test_nothing_is_made_for_a_cell_that_another_run_has(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its poisoned set nor the networks that it starts from."""
    chosen = cell("toy(train_images=20)", "wrn16_1", "none", "none", Recipe(epochs=1), 0)
    monkeypatch.setattr(processes, "FreshProcess", lambda: pytest.fail("it began"))
    with claimed(job.results, chosen.key), Processes(job, QUIET, 1, ["cpu"]) as engine:
        attempt = engine.submit(chosen, None, []).result(60)
    assert attempt == Attempt(None)


def test_why_a_process_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(fresh, "_forked", full)
    with pytest.raises(Died, match=r"^lost at its start: Too many open files$"):
        fresh.FreshProcess()


def test_the_end_of_a_child_is_seen_on_systems_without_pidfd() -> None:
    """And its exit code can still be read."""
    child = subprocess.Popen([sys.executable, "-c", "input(); raise SystemExit(3)"], stdin=-1)
    assert not has_ended(child.pid)
    child.stdin.close()  # type: ignore[union-attr]
    while not has_ended(child.pid):
        time.sleep(0.01)
    assert child.wait() != 0
