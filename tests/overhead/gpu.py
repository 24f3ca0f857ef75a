"""What a GPU does with a training: `make gpu-bench` prints one table in under eight minutes.

Seconds of 100 epochs of CIFAR-10 (50,000 random images of its shape, batches of 128), kernel by
kernel and as a graph, in fp32 and bf16, of `none` and of `cbd`; several trainings at once in
threads and in processes, with and without CUDA MPS; how seconds grow with images and epochs; and
how near it comes to the floor: the bytes that a step reads and writes at the speed of a copy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import pictures, seconds_of

from bdbench.defenses.base import Context
from bdbench.defenses.cbd import CBD
from bdbench.machine.clock import synchronise
from bdbench.machine.system import device_name
from bdbench.models.data import ImageSet
from bdbench.models.observer import Observer, observed_by
from bdbench.models.registry import models
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.feed import steps_per_epoch
from bdbench.models.training.loop import train
from bdbench.models.training.recipe import Recipe

FULL = 100
"""Epochs whose seconds are told."""
TOGETHER = 120.0
"""Seconds in which all processes of a row must be warm; after it, those that wait fail."""


class Apart(Observer):
    """Takes the seconds of recording and compiling off."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, 0.0

    @contextmanager
    def capture(self) -> Iterator[None]:  # type: ignore[override]
        synchronise(self.device)
        begun = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds += time.perf_counter() - begun


def restart_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def largest_memory(device: torch.device) -> int | None:
    """Bytes of the largest allocation since `restart_memory`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class Row:
    """One line of the table.

    steps, seconds: of training, all trainings together, a step for each full batch of the bench
    epochs, apart: of each; seconds of recording and compiling
    memory: bytes, largest allocation of this process
    """

    name: str
    steps: int
    seconds: float
    epochs: int
    apart: float = 0.0
    memory: int | None = None


@dataclass
class Bench:
    """
    images: of the training set, which is on the device
    budget: seconds after which no further measurement begins
    """

    device: torch.device
    images: int
    budget: float
    batch_size: int = 128
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def data(self, count: int | None = None) -> ImageSet:
        return pictures(self.images if count is None else count).to(self.device)

    def lend(self, **fields: Any) -> Context:
        recipe = Recipe(**{"batch_size": self.batch_size, "graphs": True, **fields})
        builder = partial(models.build("wrn16_1").build, 10, 32)
        return Context(**vars(TrainingContext(recipe, self.device, builder, seed=0)))

    def steps(self, count: int, epochs: int) -> int:
        return epochs * steps_per_epoch(count, self.batch_size)

    def measure(
        self, name: str, fit: Callable[[Context, ImageSet], object], data: ImageSet, **fields: Any
    ) -> None:
        """A row for a training on the whole of `data`, after a short one that warms up."""
        if time.monotonic() - self.started > self.budget:
            print(f"no time left for: {name}")
            return
        lent, short = self.lend(**fields), self.lend(**{**fields, "epochs": 1})
        few = data[torch.arange(min(len(data), 8 * self.batch_size), device=self.device)]
        try:
            fit(short, few)
            restart_memory(self.device)
            with observed_by(apart := Apart(self.device)):
                spent = seconds_of(lambda: fit(lent, data), self.device)
        except RuntimeError as error:  # such as a missing compiler
            print(f"{name}: the training failed, so there is no row: {error}")
            return
        memory = largest_memory(self.device)
        epochs = lent.recipe.epochs
        steps = self.steps(len(data), epochs)
        self.add(Row(name, steps, spent - apart.seconds, epochs, apart.seconds, memory))

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.name}: {1e6 * row.seconds / row.steps:,.0f} us/batch", flush=True)


def none(lent: Context, data: ImageSet) -> object:
    return train(lent.build(), data, lent.recipe, lent.rng("classifier"))


def cbd(lent: Context, data: ImageSet) -> object:
    """f_C against an f_B that is not trained: its five epochs are those of `none`."""
    f_b = lent.build("f_B").eval().requires_grad_(False)
    return CBD().train_f_c(lent.build(), f_b, data, lent)


def in_threads(bench: Bench, many: int, data: ImageSet, epochs: int) -> None:
    """Trainings on streams of their own in one process."""
    lent = [replace(bench.lend(epochs=epochs), seed=seed) for seed in range(many)]
    restart_memory(bench.device)

    def one(each: Context) -> float:
        with observed_by(apart := Apart(bench.device)):
            none(each, data)
        return apart.seconds

    def all_at_once() -> None:
        with ThreadPoolExecutor(many) as threads:
            recording.extend(threads.map(one, lent))

    recording = list[float]()
    try:
        spent = seconds_of(all_at_once, bench.device)
    except RuntimeError as error:
        print(f"{many} at once, threads: a training failed, so there is no row: {error}")
        return
    memory = largest_memory(bench.device)
    steps = many * bench.steps(len(data), epochs)
    apart = max(recording)
    bench.add(Row(f"{many} at once, threads", steps, spent - apart, epochs, apart, memory))


def in_processes(bench: Bench, many: int, epochs: int, name: str) -> None:
    """Trainings in processes of their own, which begin together when all are warm."""
    spawn = multiprocessing.get_context("spawn")
    ready, answers = spawn.Barrier(many), spawn.SimpleQueue()
    words = (str(bench.device), bench.images, bench.batch_size, epochs, ready, answers)
    workers = [spawn.Process(target=_one_process, args=(n, *words)) for n in range(many)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        print(f"{many} at once, {name}: a process failed, so there is no row")
        return
    spans = [answers.get() for _ in workers]
    spent = max(end for _, end, _ in spans) - min(begun for begun, _, _ in spans)
    apart = max(recording for _, _, recording in spans)
    steps = many * bench.steps(bench.images, epochs)
    bench.add(Row(f"{many} at once, {name}", steps, spent - apart, epochs, apart))


def _one_process(
    n: int, device: str, images: int, batch_size: int, epochs: int, ready: Any, answers: Any
) -> None:
    bench = Bench(torch.device(device), images, 0.0, batch_size)
    lent = replace(bench.lend(epochs=epochs), seed=n)
    data = bench.data()
    none(bench.lend(epochs=1), data[torch.arange(min(images, 8 * batch_size), device=data.device)])
    synchronise(bench.device)
    ready.wait(TOGETHER)
    begun = time.monotonic()
    with observed_by(apart := Apart(bench.device)):
        none(lent, data)
    synchronise(bench.device)
    answers.put((begun, time.monotonic(), apart.seconds))


@contextmanager
def mps() -> Iterator[bool]:
    """CUDA's multi-process service for the processes that begin inside; whether it is there."""
    control = shutil.which("nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory() as folder:
        places = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(places)
        there: object = False
        try:
            there = control and subprocess.run([control, "-d"], check=False).returncode == 0
            yield bool(there)
        finally:
            if there:
                subprocess.run([str(control)], input="quit\n", text=True, check=False)
            for place in places:
                del os.environ[place]


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each by itself; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            parts = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(part.numel() * part.element_size() for part in parts)
        return out


def bytes_of_a_step(lent: Context, batch_size: int) -> int:
    """Of `none`, op by op and unfused, without augmentation."""
    lent = replace(lent, device=torch.device("cpu"))
    model = lent.build().train()
    optimizer = lent.recipe.sgd(model)
    data = pictures(batch_size)
    images = to_float(data.images)
    with Traffic() as traffic:
        cross_entropy(model(images), data.labels).backward()
        optimizer.step()
    return traffic.bytes


def copy_speed(device: torch.device, size: int) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(seconds_of(lambda: target.copy_(source), device) for _ in range(10))


def table(bench: Bench, traffic: int, copying: float) -> str:
    """All rows, and for how much of a copy's speed their bytes go by."""
    first = next((row for row in bench.rows if row.name == "none, fp32, graph"), None)
    lines = []
    for row in bench.rows:
        each = row.seconds / row.steps
        lines.append(
            (
                row.name,
                1e6 * each,
                bench.batch_size / each,
                FULL * bench.steps(bench.images, 1) * each,
                traffic / each / 1e9,
                each * copying / traffic,
                first and first.seconds / first.steps / each,
                row.apart or None,
                None if row.memory is None else row.memory / 1e9,
            )
        )
    heads = ["", "us/batch", "images/s", f"s for {FULL} epochs", "GB/s", "x floor", "x graph"]
    return tabulate(
        lines,
        [*heads, "recording s", "peak GB"],
        floatfmt=("", ",.0f", ",.0f", ".1f", ",.0f", ".2f", ".2f", ".2f", ".2f"),
    )


@click.command(help=__doc__)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--images", default=50_000, show_default=True, metavar="N", help="Training images.")
@click.option("--epochs", default=FULL, show_default=True, metavar="N", help="Of the long rows.")
@click.option("--batch-size", default=128, show_default=True, metavar="N")
@click.option("--many", multiple=True, type=int, default=(2, 4, 8), help="Trainings at once.")
@click.option("--budget", default=420.0, show_default=True, metavar="SECONDS")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows there.")
def main(
    device: str,
    images: int,
    epochs: int,
    batch_size: int,
    many: tuple[int, ...],
    budget: float,
    path: Path | None,
) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device is there")
    bench = Bench(torch.device(device), images, budget, batch_size)
    data, few = bench.data(), max(1, epochs // 20)
    on_gpu = bench.device.type == "cuda"

    def longer(count: int) -> str:
        return f"none, fp32, graph, {count:,} images"

    bench.measure("none, fp32, graph", none, data, epochs=epochs)
    bench.measure("cbd, fp32, graph", cbd, data, epochs=epochs)
    bench.measure("none, bf16, graph", none, data, epochs=epochs, precision="bf16")
    bench.measure("none, fp32, kernel by kernel", none, data, epochs=few, graphs=False)
    bench.measure("cbd, fp32, kernel by kernel", cbd, data, epochs=few, graphs=False)
    for number in many:
        if time.monotonic() - bench.started < budget:
            in_threads(bench, number, data, few)
    for number in many:
        if time.monotonic() - bench.started < budget:
            in_processes(bench, number, few, "processes")
    if on_gpu:
        with mps() as there:
            for number in many if there else ():
                if time.monotonic() - bench.started < budget:
                    in_processes(bench, number, few, "processes, MPS")
    for part in (images // 4, images // 2):
        rows = torch.arange(part, device=bench.device)
        bench.measure(longer(part), none, data[rows], epochs=few)
    for number in (few, 2 * few):
        bench.measure(f"none, fp32, graph, {number} epochs", none, data, epochs=number)
    fields = {"epochs": few, "precision": "bf16", "compiled": True}
    if on_gpu:
        bench.measure("none, bf16, compiled, graph", none, data, **fields)
    bench.measure("none, public loader", none, data, epochs=1, loader="reference", batch_size=64)

    copying = copy_speed(bench.device, 2**30 if on_gpu else 2**22)
    traffic = bytes_of_a_step(bench.lend(), batch_size)
    print(
        f"\n{device_name(bench.device)}, torch {torch.__version__}, {images:,} images, batches of "
        f"{batch_size}\nfloor: {traffic / 1e6:,.0f} MB for a batch of none in fp32, op by "
        f"op, at {copying / 1e9:,.0f} GB/s of a copy\n"
    )
    print(table(bench, traffic, copying))
    if path is not None:
        facts = {
            "device": device_name(bench.device),
            "torch": torch.__version__,
            "images": images,
            "batch_size": batch_size,
            "bytes_of_a_step": traffic,
            "copied_bytes_per_second": copying,
            "rows": [vars(row) for row in bench.rows],
        }
        path.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
