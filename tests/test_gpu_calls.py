"""What cells do on a GPU, as far as a machine without one shows it; `test_gpu.py` needs one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from bdbench.cells.cell import Cell, cell
from bdbench.cli import diagnosis
from bdbench.contract.host_graph import HostGraph
from bdbench.defenses import Defense
from bdbench.machine.devices import DeviceFull
from bdbench.models import Classifier, Recipe
from bdbench.models.rng import GlobalGenerators
from bdbench.models.training.loop import EVALUATION_BATCH, _evaluation_batch
from bdbench.running import run as running
from bdbench.running.engines.fresh import call_in_process
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.worker import Job, Worker
from bdbench.storage.cache import Cache
from bdbench.trial import harness, keys
from bdbench.trial.failure import out_of_memory
from bdbench.trial.harness import Harness

GPU = torch.device("cuda:1")


class Reached(Exception):
    """A call that fails unless CUDA is initialised."""


@dataclass(frozen=True)
class Asserts(Defense):
    """Ends in an error after which every call to a GPU fails."""

    def fit(self, data: Any, context: Any) -> Classifier:
        raise RuntimeError("CUDA error: device-side assert triggered in my loss")


def tiny(defense: Any = "none") -> Cell:
    return cell(
        "toy(train_images=50, test_images=20)", "wrn16_1", "badnets", defense, Recipe(epochs=1), 0
    )


def test_a_cell_initialises_cuda_before_it_asks_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.cuda.reset_peak_memory_stats` does not, and fails in a new process."""
    calls: list[str] = []

    def reset(device: torch.device) -> None:
        raise Reached

    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("init"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    with pytest.raises(Reached):
        Harness(Cache(tmp_path), (), GPU).finish(tiny())
    assert calls == ["init", "cuda:1"]


def test_an_error_on_a_gpu_is_told_and_not_those_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(harness, "example", broken)
    monkeypatch.setattr(harness, "weights_sha256", broken)
    made = Harness(Cache(tmp_path), (), torch.device("cpu"))
    record = made.run(tiny(Asserts()))
    assert record.status == "failed"
    assert record.error is not None
    assert "in my loss" in record.error.message
    assert record.provenance.data_sha256 is not None
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        made.run(tiny())


def test_a_checkpoint_has_the_state_of_the_gpu_in_use_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be resumed with fewer GPUs, and on another one."""
    given: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", given.append)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", None)
    generators = GlobalGenerators()
    state = generators.state_dict()
    before = generators.fingerprint()
    generators.load_state_dict(state)
    assert [each.tolist() for each in given] == [[7]]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([8], dtype=torch.uint8))
    assert generators.fingerprint() != before


def test_doctor_tells_why_a_gpu_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(device: torch.device) -> Any:
        raise RuntimeError(f"no kernel image is available on {device}")

    monkeypatch.setattr(diagnosis, "comparisons", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    lines, fine = diagnosis.diagnosis(tmp_path)
    assert not fine
    for name in ("cuda:0", "cuda:1"):
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        assert f"PROBLEM: RuntimeError: no kernel image is available on {name}" in line


READS = {
    "cpu": Tensor.cpu,
    "numpy": Tensor.numpy,
    "tolist": Tensor.tolist,
    "item": lambda values: values[0].item(),
    "bool": lambda values: bool(values[0] > 0),
    "where": lambda values: values[values > 0],
}


@pytest.mark.parametrize("name", READS)
def test_a_recorded_step_reads_nothing_on_the_host(name: str) -> None:
    values = torch.ones(4)
    with pytest.raises(RuntimeError, match="not permitted while recording"):
        HostGraph().record(lambda: READS[name](values))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_a_full_gpu_is_known_by_its_messages(text: str, found: bool) -> None:
    assert out_of_memory(RuntimeError(text)) == found


@pytest.mark.parametrize(("size", "batch"), [(16, 512), (64, 512), (224, 163)])
def test_large_images_are_evaluated_in_smaller_batches(size: int, batch: int) -> None:
    for device, expected in ((GPU, batch), (torch.device("cpu"), EVALUATION_BATCH["cpu"])):
        images: Any = SimpleNamespace(device=device, shape=(9_000, 3, size, size))
        assert _evaluation_batch(images) == expected


@pytest.mark.parametrize(
    ("movable", "failure", "free", "moves"),
    [
        (True, RuntimeError("CUDA out of memory. Tried"), 60, True),
        # Ours alone.
        (True, RuntimeError("CUDA out of memory. Tried"), 90, False),
        # That of the machine.
        (True, MemoryError(), 60, False),
        (True, RuntimeError("shapes differ"), 60, False),
        (True, None, 60, False),
        # The last place says what is wrong, and so does the second, as the cell may be too large.
        (False, RuntimeError("CUDA out of memory. Tried"), 60, False),
        (None, RuntimeError("CUDA out of memory. Tried"), 60, False),
    ],
)
def test_a_cell_leaves_a_gpu_that_others_fill(
    movable: bool | None,
    failure: BaseException | None,
    free: int,
    moves: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 15, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 15)
    told: Any = SimpleNamespace(
        job=SimpleNamespace(movable=movable is not False, moved=movable is None),
        harness=SimpleNamespace(device=GPU),
    )
    with pytest.raises(DeviceFull, match="cuda:1 has too little") if moves else nullcontext():
        Worker.check_memory(told, failure)


def test_a_device_of_a_cluster_is_the_first_gpu_of_a_process(tmp_path: Path) -> None:
    """`torch.cuda.set_device` refuses one without an index."""
    (device,) = ExecutionOptions(engine="slurm", gpus=1.0).devices("auto")
    worker = Worker(Job(tmp_path, tmp_path, (), str(device)), lambda key, work: None)
    assert worker.harness.device == torch.device("cuda:0")


def test_the_doctor_gets_numbers_of_a_process_that_has_ended(tmp_path: Path) -> None:
    ones = partial(diagnosis._ignoring_worker, partial(torch.ones, 3, dtype=torch.float64))
    job = Job(tmp_path, tmp_path, (), "cpu")
    for _ in range(3):
        assert call_in_process(job, ones).tolist() == [1.0] * 3


def test_threads_of_the_cpu_are_in_no_key_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "device_name", str)
    monkeypatch.setattr(keys, "unusual", lambda device: {})
    assert keys.machine(GPU, 1) == keys.machine(GPU, 16)
    assert keys.machine(torch.device("cpu"), 1) != keys.machine(torch.device("cpu"), 16)


def test_the_process_of_a_run_leaves_the_gpu_to_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hold memory there, and a GPU in exclusive mode would refuse every cell."""
    asked: list[object] = []

    def in_process(job: object, work: object) -> float:
        asked.append(work)
        return 2.0

    monkeypatch.setattr(running, "call_in_process", in_process)
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    alone = SimpleNamespace(in_process=False)
    planned: Any = SimpleNamespace(device=GPU, execution=alone, job=None)
    assert running._others(planned)() == 2.0
    assert asked == [running._others_beside]
