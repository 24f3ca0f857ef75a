"""A Slurm cluster, through submitit. All nodes share the folders of results, cache and data.

A job may outlive the run that submitted it, so it locks its cell and writes the record itself.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from subprocess import SubprocessError
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from bdbench.cells.cell import Cell
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.notices import notify
from bdbench.running.engines.base import Died, Engine
from bdbench.running.engines.fresh import Outcome, attempt_here
from bdbench.running.preparation import Step, steps
from bdbench.running.worker import Attempt, Job, attempted, claiming
from bdbench.storage.atomic import Unusable
from bdbench.trial.failure import TimeLimit

PAUSE = 1.0
"""Seconds between two checks of the jobs."""
MANY = 1_000
TIMES = {"timeout_min", "slurm_timeout_min", "slurm_time"}
"""Options that say how long a job may take."""
BESIDE = 600.0
"""Seconds that a job gets beside --limit: processes start, and Slurm announces the end before."""


class Slurm(Engine):
    """Runs each attempt as a job, which starts fresh processes as on this machine.

    slots: jobs in the queue at a time
    cores, gpus: for each job
    options: for submitit, such as slurm_partition
    cluster: "slurm", or another executor of submitit

    Raises `InvalidInput` where Slurm is missing, for jobs without a time, and for a folder of
    results with a percent sign in its path.
    """

    def __init__(
        self,
        job: Job,
        slots: int | None,
        cores: int,
        gpus: float,
        options: Mapping[str, Any],
        cluster: str = "slurm",
    ) -> None:
        require(gpus == int(gpus), f"--engine slurm takes whole GPUs only, got --gpus {gpus}")
        found = cluster != "slurm" or shutil.which("sbatch") is not None
        require(found, "--engine slurm needs the command sbatch: run it on a login node")
        # Both submitit and sbatch put something else in its place.
        require(
            "%" not in str(job.results),
            f"--engine slurm cannot write to {job.results}, which has a % in it: name another "
            "folder with --results",
        )
        self.job, self.slots = job, slots or MANY
        self._executor = submitit.AutoExecutor(_private(job.results / "slurm"), cluster=cluster)
        asked = {"cpus_per_task": cores, "gpus_per_node": int(gpus), "name": "bdbench"}
        try:
            self._executor.update_parameters(**{**asked, **options})
        except (AssertionError, NameError, TypeError, ValueError) as error:
            raise InvalidInput(f"submitit rejects the options: {error}") from error
        if not TIMES & options.keys():
            self._executor.update_parameters(timeout_min=_minutes(job.limit))
        self._open: dict[Future[Attempt], submitit.Job[Outcome]] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, cell: Cell, before: int | None, retries: Sequence[str]) -> Future[Attempt]:
        future: Future[Attempt] = Future()
        work = partial(attempted, identity=cell.located, retries=list(retries))
        parts = steps(self.job, cell, work)
        self._open[future] = self._executor.submit(_claimed, self.job, cell.key, before, parts)
        return future

    def close(self, broken: bool) -> None:
        self._stopped.set()
        left = []
        for job in list(self._open.values()):
            try:
                job.cancel()
            except (OSError, SubprocessError):
                left.append(job.job_id)
            _remove_pickles(job)
        if left:
            notify(
                f"some jobs may go on: cancel them with `scancel {' '.join(left)}`", stacklevel=2
            )

    def _watch(self) -> None:
        while not self._stopped.wait(PAUSE):
            for future, job in list(self._open.items()):
                if _settled(future, job):
                    del self._open[future]


def _private(folder: Path) -> Path:
    """A folder for what submitit pickles: nobody else may write there, as whoever can may run code.
    Raises `InvalidInput` for a folder where that is not so."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise Unusable(f"cannot create {folder}: {error.strerror or error}") from error
    ours = S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    require(ours, f"{folder}, where jobs are stored, is not a folder of yours: move it away")
    folder.chmod(0o700)
    return folder


def _remove_pickles(job: submitit.Job[Outcome]) -> None:
    """Of a job that has ended; its logs stay."""
    for path in (job.paths.submitted_pickle, job.paths.result_pickle):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _minutes(limit: float | None) -> int:
    """How long a job may take. submitit would give it five minutes.

    limit: seconds of an attempt
    """
    require(
        limit is not None,
        "--engine slurm needs the time that a job may take: add --option timeout_min=MINUTES, or "
        "--limit SECONDS for each cell",
    )
    assert limit is not None
    return math.ceil((limit + BESIDE) / 60)


def _claimed(job: Job, key: str, before: int | None, steps: Sequence[Step]) -> Outcome:
    """In the job: an attempt under the claim of its cell, see `claiming`."""
    work = partial(_attempt, steps)
    try:
        return Outcome(claiming(job.results, key, before, work, job.suffices))
    except (Exception, TimeLimit) as error:
        return Outcome(error=error)


def _attempt(steps: Sequence[Step]) -> Attempt:
    made: Attempt = attempt_here(steps).get()
    return made


def _settled(future: Future[Attempt], job: submitit.Job[Outcome]) -> bool:
    """Pass the result of a job on, or that its state cannot be read; False while it runs."""
    try:
        if not job.done():
            return False
        outcome = job.result()
        _remove_pickles(job)
        future.set_result(outcome.get())
    except (UncompletedJobError, FailedJobError) as error:
        future.set_exception(Died(f"lost ({type(error).__name__}, job {job.job_id})"))
    except BaseException as error:
        future.set_exception(error)
    return True
