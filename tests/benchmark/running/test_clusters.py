"""Cells on a Ray cluster of two nodes, one of which goes, and as jobs of submitit."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from types import SimpleNamespace

import psutil
import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.files import load_file
from bdbench.models.training.recipe import Recipe
from bdbench.records.claims import claimed
from bdbench.records.files import path_of, read
from bdbench.records.record import Record
from bdbench.running.engines.base import Died, Engine
from bdbench.running.engines.fresh import attempt_here
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.preparation import steps
from bdbench.running.worker import Attempt, Job, Worker, attempted
from bdbench.storage.cache import Cache
from bdbench.storage.maintenance import contents
from bdbench.trial.failure import TimeLimit

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.01)
# What these libraries warn of is theirs.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(600),
]


def cells(count: int) -> list[Cell]:
    source = "toy(train_images=100, test_images=50)"
    return [cell(source, "wrn16_1", "none", "none", RECIPE, seed) for seed in range(count)]


def job(folder: Path) -> Job:
    return Job(folder / "results", folder / "cache", (), "cpu", threads=1)


def alone(chosen: Cell, folder: Path) -> Record:
    return Worker(job(folder / "alone"), lambda key, work: None).run(chosen, ())


def same(one: Record, other: Record) -> bool:
    return {**vars(one), "measured": 0} == {**vars(other), "measured": 0}


@pytest.fixture
def two_nodes() -> Iterator[tuple[object, object]]:
    """A cluster of two nodes on this machine, and the second node. The first one runs no cells."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    first = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, first
    ray.shutdown()
    cluster.shutdown()


def test_a_node_goes_and_all_records_arrive(
    tmp_path: Path, two_nodes: tuple[object, object], capsys: pytest.CaptureFixture[str]
) -> None:
    from io import StringIO

    from rich.console import Console

    from bdbench.running.engines.base import WorkerEvents
    from bdbench.running.progress import Reporter
    from bdbench.running.schedule import Schedule
    from bdbench.running.speed import Speed

    cluster, node = two_nodes
    wanted = cells(6)
    results = tmp_path / "results"

    def kill() -> None:
        while not list((results / "records").glob("*.json")):
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    events = WorkerEvents(lambda key, work: None, lambda line: None)
    with Reporter(6, 1.0, Console(file=StringIO())) as reporter:
        schedule = Schedule(dict.fromkeys(wanted), results, Speed(CPU), None, reporter)
        with ExecutionOptions("ray", cores=1).start(job(tmp_path), events, 1, [CPU]) as engine:
            assert schedule.run(engine) == 0
    killer.join(60)
    assert not killer.is_alive()
    found = [read(path_of(results, chosen.key)) for chosen in wanted]
    assert all(record.status == "ok" for record in found)
    assert same(found[-1], alone(wanted[-1], tmp_path))
    assert [path for path in (results / "records").iterdir() if path.suffix != ".json"] == []


def listening() -> set[tuple[int, str]]:
    """Process and address of everything on this machine that listens to a network."""
    found = psutil.net_connections("tcp")
    return {(each.pid or 0, each.laddr.ip) for each in found if each.status == psutil.CONN_LISTEN}


def test_a_ray_of_ours_listens_to_this_machine_only_and_ends_a_process_with_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    import ray

    from bdbench.running.engines import ray as engine

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engine, "_on_node", lambda: os.getpid())
    before = listening()
    made = engine.Ray(job(tmp_path), 1, 1, 0.0, {"num_cpus": 1})
    try:
        ids = [ray.get(made._task.remote()) for _ in range(3)]
        assert len(set(ids)) == 3
        opened = listening() - before
        assert opened
        assert {address for _, address in opened} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    finally:
        made.close(False)


def test_submitit_runs_cells_and_says_when_a_job_is_lost(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import Slurm

    first, second = cells(2)
    with Slurm(job(tmp_path), 2, 1, 0, {"timeout_min": 9}, cluster="local") as engine:
        future = engine.submit(first, None, [])
        with claimed(tmp_path / "results", second.key):
            taken = engine.submit(second, None, [])
            assert taken.result(timeout=300) == Attempt(None)
        attempt = future.result(timeout=300)
        assert attempt.mine
        assert attempt.record is not None
        assert same(attempt.record, alone(first, tmp_path))
        assert same(read(path_of(tmp_path / "results", first.key)), attempt.record)
        lost: Future[Attempt] = engine.submit(second, None, [])
        time.sleep(1)
        for running in list(engine._open.values()):
            running.cancel()
        with pytest.raises(Died, match="lost"):
            lost.result(timeout=300)


PLUGIN = """
import os
import signal
import time
from dataclasses import dataclass
import torch
from bdbench.defenses import Defense, register

def double(module, images, result):
    return 2 * result if isinstance(module, torch.nn.Linear) else None

torch.nn.modules.module.register_module_forward_hook(double)

@register("harmful")
@dataclass(frozen=True)
class Harmful(Defense):
    deed: str = "none"
    undefended = 1

    def fit(self, data, context):
        if self.deed == "abort":
            os.abort()
        if self.deed == "outlast":
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(600)
        return context.undefended()
"""


@pytest.fixture
def harmful(tmp_path: Path, unregistered: None) -> Path:
    """A plugin that changes the process that imports it."""
    file = tmp_path / "harmful.py"
    file.write_text(PLUGIN)
    with hooks_kept():
        load_file(file)
    return file


@contextmanager
def hooks_kept() -> Iterator[None]:
    hooks = torch.nn.modules.module._global_forward_hooks
    before = dict(hooks)
    yield
    for key in hooks.keys() - before.keys():
        del hooks[key]


@pytest.fixture(params=["ray", "slurm"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, harmful: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """An engine whose cells load the plugin that they need."""
    asked = replace(job(tmp_path), plugins=(harmful,))
    if request.param == "slurm":
        pytest.importorskip("submitit")
        from bdbench.running.engines.slurm import Slurm

        with Slurm(asked, 2, 1, 0, {"timeout_min": 9}, cluster="local") as engine:
            yield engine
    else:
        pytest.importorskip("ray")
        from bdbench.running.engines.ray import Ray

        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with Ray(asked, 2, 1, 0.0, {"num_cpus": 2}) as engine:
            yield engine


def test_a_cell_on_a_cluster_touches_no_other(cluster: Engine, tmp_path: Path) -> None:
    """It has fresh processes on its node, as it has on this machine."""
    (plain,) = cells(1)
    hooked, aborting = (
        replace(plain, defense=defenses.build(f"harmful(deed='{deed}')"))
        for deed in ("none", "abort")
    )
    made = cluster.submit(hooked, None, []).result(300).record
    assert made is not None
    assert made.status == "ok"
    with pytest.raises(Died, match=r"^killed \(SIGABRT\)$"):
        cluster.submit(aborting, None, []).result(300)
    after = cluster.submit(plain, None, []).result(300).record
    assert after is not None
    assert len(list(contents(Cache(tmp_path / "cache"), "undefended"))) == 1
    assert same(after, alone(plain, tmp_path))


def test_a_cell_that_ignores_its_limit_is_stopped_on_its_node(
    tmp_path: Path, harmful: Path
) -> None:
    asked = replace(job(tmp_path), plugins=(harmful,), limit=10.0)
    (plain,) = cells(1)
    chosen = replace(plain, defense=defenses.build("harmful(deed='outlast')"))
    work = partial(attempted, identity=chosen.located, retries=[])
    start = time.monotonic()
    with pytest.raises(TimeLimit, match="stopped at --limit 10 s"):
        attempt_here(steps(asked, chosen, work)).get()
    assert time.monotonic() - start < 60


def test_a_job_whose_state_cannot_be_read_ends_its_cell() -> None:
    """And not the thread that watches all jobs."""
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import _settled

    error = OSError("Stale file handle")

    class Lost:
        def done(self) -> bool:
            raise error

    future: Future[Attempt] = Future()
    assert _settled(future, Lost())  # type: ignore[arg-type]
    assert future.exception() is error


def test_a_cluster_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bdbench.running.engines.base import WorkerEvents

    events = WorkerEvents(lambda key, work: None, lambda line: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidInput, match="sbatch"):
        ExecutionOptions("slurm").start(job(tmp_path), events, 1, [CPU])
    with pytest.raises(InvalidInput, match="whole GPUs"):
        ExecutionOptions("slurm", gpus=0.5).start(job(tmp_path), events, 1, [CPU])
    from bdbench.running.engines.slurm import Slurm

    with pytest.raises(InvalidInput, match="submitit rejects the options"):
        Slurm(job(tmp_path), 1, 1, 0, {"tiem": 9}, cluster="local")


@pytest.mark.parametrize(
    ("limit", "options", "minutes"),
    [
        (None, {"timeout_min": 9}, 9),
        (60.0, {"timeout_min": 9}, 9),
        (60.0, {}, 11),
        (7201.0, {"slurm_partition": "gpu"}, 131),
        (None, {"slurm_timeout_min": 90}, None),
        (None, {"slurm_time": "1-00:00:00"}, None),
    ],
)
def test_a_job_of_slurm_has_the_time_that_its_cell_may_take(
    limit: float | None, options: dict[str, object], minutes: int | None, tmp_path: Path
) -> None:
    """And not the five minutes that submitit would ask for."""
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import Slurm

    asked = replace(job(tmp_path), limit=limit)
    with Slurm(asked, 1, 1, 0, options, cluster="local") as engine:
        assert engine._executor._executor.parameters.get("timeout_min") == minutes


@pytest.mark.parametrize("options", [{}, {"slurm_partition": "gpu"}])
def test_a_job_of_slurm_without_a_time_is_refused(
    options: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import Slurm

    complaint = "add --option timeout_min=MINUTES, or --limit SECONDS for each cell"
    with pytest.raises(InvalidInput, match=complaint):
        Slurm(job(tmp_path), 1, 1, 0, options, cluster="local")


@pytest.mark.parametrize("name", ["10%attack", "a%b/c"])
def test_slurm_is_refused_a_folder_whose_name_it_would_change(name: str, tmp_path: Path) -> None:
    """submitit and sbatch put the number of a job or its task for a percent sign and a letter."""
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import Slurm

    with pytest.raises(InvalidInput, match="has a % in it: name another folder with --results"):
        Slurm(job(tmp_path / name), 1, 1, 0, {"timeout_min": 9}, cluster="local")
    assert not list(tmp_path.iterdir())


def test_a_job_that_cannot_be_cancelled_leaves_no_other(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    from bdbench.running.engines.slurm import Slurm

    cancelled = []

    class Queued:
        def __init__(self, name: str) -> None:
            pickles = dict.fromkeys(("submitted_pickle", "result_pickle"), tmp_path / name)
            self.job_id, self.paths = name, SimpleNamespace(**pickles)

        def cancel(self) -> None:
            if self.job_id != "1":
                raise CalledProcessError(1, ["scancel", self.job_id])
            cancelled.append(self.job_id)

    with Slurm(job(tmp_path), 1, 1, 0, {"timeout_min": 9}, cluster="local") as engine:
        engine._open = {Future(): Queued(name) for name in ("0", "1", "2")}  # type: ignore[misc]
        with pytest.warns(UserWarning, match="cancel them with `scancel 0 2`"):
            engine.close(False)
        engine._open = {}
    assert cancelled == ["1"]


@pytest.mark.parametrize("full", [False, True])
def test_checkpoints_on_a_node_go_after_the_record_is_written(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a disk that is full where the run was started costs a training."""
    pytest.importorskip("ray")
    from bdbench.running.engines import ray as engine
    from bdbench.running.engines.fresh import Outcome

    order: list[str] = []

    def written(results: Path, record: Record, chosen: Cell) -> Attempt:
        order.append("written")
        return Attempt(record, mine=True, unwritten="disk full" if full else None)

    class Removal:
        def options(self, **named: object) -> Removal:
            return self

        def remote(self, folders: object) -> None:
            order.append("removed")

    monkeypatch.setattr(engine, "written", written)
    monkeypatch.setattr(engine.ray, "remote", lambda call: Removal())
    (chosen,) = cells(1)
    made: Future[engine._OfNode] = Future()
    made.set_result(engine._OfNode(Outcome((alone(chosen, tmp_path), [tmp_path])), 56 * "0"))
    driver = object.__new__(engine.Ray)
    driver.job, driver._discards = job(tmp_path), []
    assert driver._written(made, chosen).mine
    assert order == ["written"] + ["removed"] * (not full)
