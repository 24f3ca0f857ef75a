"""What `bdbench doctor` prints: the machine, and what would prevent a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bdbench.cells.cell import REGISTRIES
from bdbench.cli.columns import plain
from bdbench.cli.transfer import PROBLEM, whereabouts
from bdbench.contract.device import Comparison, bf16, graphs, jobs, weights
from bdbench.datasets.registry import datasets
from bdbench.machine.devices import has_bf16
from bdbench.machine.system import commit, processor, versions
from bdbench.machine.threads import cores
from bdbench.models.plugins.blame import reason
from bdbench.models.plugins.errors import InvalidInput, one_line
from bdbench.running.engines.fresh import call_in_process
from bdbench.running.worker import Job, Worker
from bdbench.storage.atomic import check_writable
from bdbench.storage.folders import cache_root, roots
from bdbench.storage.mark import check_ours


def diagnosis(data: Path | None) -> tuple[list[str], bool]:
    """Lines about this machine, and whether nothing would prevent a run.

    data: folder of data sets, None for the usual ones
    """
    fine = True
    rows = [*versions().items(), ("commit", commit() or "not a git checkout")]
    rows.append(("processor", processor()))
    rows.append(("threads", str(min(torch.get_num_threads(), cores()))))
    rows.append(("bf16 on cpu", "in hardware" if has_bf16() else "not in hardware; auto is fp32"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(index) for index in range(count)]
    rows.append(("gpus", ", ".join(gpus) or "none; runs use the CPU"))
    for label, folder in (("cache folder", cache_root()), ("results folder", Path("results"))):
        try:
            if label == "cache folder":
                check_ours(folder)
            check_writable(folder)
            rows.append((label, f"{folder}, writable"))
        except InvalidInput as error:
            fine = False
            rows.append((label, f"{folder}, PROBLEM: {error}"))
    searched = roots(data)
    for name in datasets.names():
        where = whereabouts(datasets.build(name), searched)
        fine = fine and not where.startswith(PROBLEM)
        rows.append((f"data {name}", where))
    rows.append(("data folders", ", ".join(map(str, searched))))
    for registry in REGISTRIES.values():
        registry.names()
        for name, why in registry.broken.items():
            fine = False
            rows.append((f"{registry.kind} {name}", f"PROBLEM: failed to import: {why}"))
    for index in range(count):
        try:
            for comparison in comparisons(torch.device(f"cuda:{index}")):
                fine = fine and comparison.safe
                rows.append((f"cuda:{index} {comparison.what}", str(comparison)))
        except Exception as error:  # whatever keeps a GPU from work
            fine = False
            rows.append((f"cuda:{index}", f"PROBLEM: {one_line(reason(error))}"))
    return plain(rows).splitlines(), fine


def comparisons(device: torch.device) -> Iterator[Comparison]:
    """Compare CUDA graphs, bf16, and two cells at once with plain training steps on a GPU."""
    yield from graphs(device)
    yield bf16(device)
    train = partial(weights, device, "none")

    def at_once() -> list[Tensor]:
        job = Job(Path(), cache_root(), (), str(device))
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(call_in_process, job, partial(_ignoring_worker, train))
                for _ in range(2)
            ]
            return [torch.from_numpy(future.result()) for future in futures]

    yield jobs(train, at_once)


def _ignoring_worker(call: Callable[[], Tensor], worker: Worker) -> NDArray[np.float64]:
    """An array, as a tensor could only be fetched from the process of a cell while that lives."""
    return call().numpy()
