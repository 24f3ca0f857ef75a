"""A Ray cluster: the one that RAY_ADDRESS or the option `address` names, else this machine.

A Ray that is started here listens on the loopback interface only, since anyone who reaches its
ports may run code. Nodes need not share a folder: the process that started the run writes the
records. The package, data sets and plugin files must be on every node, at the same path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bdbench.cells.cell import Cell
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.claims import claimed
from bdbench.records.record import Record
from bdbench.running.engines.base import Died, Engine
from bdbench.running.engines.fresh import Outcome, attempt_here
from bdbench.running.preparation import Step, steps
from bdbench.running.worker import Attempt, Job, Worker, by_another, written
from bdbench.storage.atomic import Unusable
from bdbench.storage.checkpoints import discard

MANY = 10_000
LAST = 30.0
"""Seconds that the last checkpoints get to be removed."""


class Ray(Engine):
    """Runs each attempt as a task, on any node with free resources. It starts fresh processes
    there, as on this machine.

    slots: cells that are submitted at a time
    cores, gpus: for each cell
    options: for `ray.init`
    """

    def __init__(
        self, job: Job, slots: int | None, cores: int, gpus: float, options: Mapping[str, Any]
    ) -> None:
        self.job, self.slots = job, slots or MANY
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _start(options)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                raise InvalidInput(f"cannot start Ray: {error}") from error
        # No retries by Ray, which a record would not mention. A task may change the environment.
        place = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=0, max_calls=1)
        self._task = place(_on_node)
        self._discards: list[ray.ObjectRef] = []

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        results = self.job.results
        with ExitStack() as opened:
            try:
                mine = opened.enter_context(claimed(results, cell.key))
                other = by_another(results, cell.key, before, mine, self.job.suffices)
            except Unusable as error:
                other = Attempt(None, mine=True, unwritten=str(error))
            if other is not None:
                future.set_result(other)
                return future
            work = partial(_recorded, identity=cell.located, retries=list(retries))
            task = self._task.remote(steps(self.job, cell, work)).future()
            claim = opened.pop_all()

        def settle(made: Future[_OfNode]) -> None:
            # Whoever waits for the attempt finds the cell unclaimed.
            try:
                with claim:
                    attempt = self._written(made, cell)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(attempt)

        task.add_done_callback(settle)
        return future

    def _written(self, made: Future[_OfNode], cell: Cell) -> Attempt:
        """Write the record of an attempt; only then its checkpoints go."""
        done = _result(made)
        record, folders = done.outcome.get()
        attempt = written(self.job.results, record, cell)
        if attempt.unwritten is None and folders:
            there = NodeAffinitySchedulingStrategy(done.node, soft=True)
            task = ray.remote(_discard).options(num_cpus=0, scheduling_strategy=there)
            self._discards.append(task.remote(folders))
        return attempt

    def close(self, broken: bool) -> None:
        if self._discards and not broken:
            ray.wait(self._discards, num_returns=len(self._discards), timeout=LAST)
        if self._ours:
            ray.shutdown()


@dataclass(frozen=True)
class _OfNode:
    """How an attempt ended, and the node where it ran."""

    outcome: Outcome
    node: str


def _on_node(steps: Sequence[Step]) -> _OfNode:
    return _OfNode(attempt_here(steps), ray.get_runtime_context().get_node_id())


def _discard(folders: Sequence[Path]) -> None:
    """On the node: remove checkpoints."""
    for folder in folders:
        discard(folder)


def _result(made: Future[_OfNode]) -> _OfNode:
    """What a task returned. Raises `Died`, or what it raised."""
    try:
        return made.result()
    except RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except RayError as error:
        raise Died(f"lost ({type(error).__name__})") from error


def _start(options: Mapping[str, Any]) -> None:
    """Join the named cluster, or start a Ray that listens on this machine only."""
    if "address" in options or os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, **options)
        return
    # As Ray does on macOS and Windows. It would replace a loopback address of the node by its
    # network address.
    with (
        patch.dict(os.environ, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False),
    ):
        ray.init(address="local", **{"log_to_driver": False, "include_dashboard": False, **options})


def _recorded(
    worker: Worker, identity: dict[str, Any], retries: list[str]
) -> tuple[Record, list[Path]]:
    """On a node, in the cell's process: the record, and the folders of its checkpoints. A failed
    cell keeps these, and asks nothing more of its device and its data."""
    cell = worker.cell(identity)
    record = worker.run(cell, retries)
    return record, worker.harness.checkpoints(cell) if record.status == "ok" else []
