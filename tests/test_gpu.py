"""A GPU gives the images and networks of a processor. `pytest -m gpu` runs these tests on one."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.cells.suites import Suite
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.augment import Augmentation, augment, draw_augmentation, to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.graphs import CudaRecorder, Work, recorded_by
from bdbench.models.training.loop import logits, train
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read_all
from bdbench.running.engines.options import ExecutionOptions
from bdbench.running.plan import RunOptions, plan
from bdbench.running.run import execute
from bdbench.storage.cache import Cache
from bdbench.trial.clean_budget import clean_budget
from bdbench.trial.harness import Harness

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GPU = torch.device("cuda:0")


@pytest.mark.parametrize("name", attacks.names())
def test_a_trigger_is_the_same_to_the_byte(name: str, images: ImageSet) -> None:
    attack = attacks.build(name)
    if attack.trains:
        pytest.skip("what is trained differs between devices")
    many = images[torch.arange(600) % len(images)]
    here = attack.poison(many, stream(0, "poison"))
    there = attack.poison(many.to(GPU), stream(0, "poison"))
    assert torch.equal(here.train.images, there.train.images.cpu())
    assert torch.equal(here.train.labels, there.train.labels.cpu())
    assert torch.equal(here.mask, there.mask.cpu())


def test_augmented_images_are_the_same_to_the_byte(images: ImageSet) -> None:
    how = Augmentation()
    draws = draw_augmentation(60, (32, 32), how, stream(0, "draws"))
    here = augment(images.images, draws, how)
    there = augment(images.images.to(GPU), draws.to(GPU), how)
    assert torch.equal(here, there.cpu())
    torch.testing.assert_close(to_float(here), to_float(there).cpu(), rtol=0, atol=1e-7)


def test_a_short_training_ends_close_to_the_processors(images: ImageSet) -> None:
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.01)
    found = []
    for device in (torch.device("cpu"), GPU):
        lent = TrainingContext(
            recipe, device, partial(models.build("wrn16_1").build, 10, 32), seed=0
        )
        made = train(lent.build(), images.to(device), recipe, lent.rng("classifier"))
        found.append(torch.cat([values.flatten().cpu() for values in made.parameters()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-2


STEPS = 200
"""Steps, at least, of the longest stage of a defense."""


def fit(defense: str, seed: int = 0, **fields: object) -> Classifier:
    """The network of a defense that trains on noise."""
    count, batch_size = 640, 32
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "n"))
    data = ImageSet(pixels, torch.arange(count) % 10, 10).to(GPU)
    epochs = STEPS * batch_size // count
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=0.01, **fields)  # type: ignore[arg-type]
    lent = TrainingContext(recipe, GPU, partial(models.build("wrn16_1").build, 10, 32), seed)
    made = defenses.build(defense)

    def undefended(n: int) -> Classifier:
        return train(lent.build(), data, replace(recipe, epochs=2), lent.rng(f"undefended {n}"))

    context = Context(
        **vars(lent),
        clean=clean_budget(data, made.clean_fraction, seed),
        train_undefended=undefended,
    )
    return made.fit(data, context)


def numbers(network: Classifier) -> torch.Tensor:
    return torch.cat([values.double().flatten().cpu() for values in network.state_dict().values()])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative error, 0 for equal bits."""
    return 0.0 if torch.equal(one, other) else float((one - other).norm() / other.norm())


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


# clp takes no steps.
@pytest.mark.parametrize("defense", [name for name in defenses.names() if name != "clp"])
def test_recorded_steps_of_every_defense_equal_eager_steps(
    defense: str, deterministic: None
) -> None:
    recorded: list[object] = []

    class Recorder(CudaRecorder):
        def record(self, work: Work) -> Work:
            recorded.append(work)
            return super().record(work)

    # A warning that a step cannot be recorded is an error here.
    with recorded_by(Recorder):
        replayed = numbers(fit(defense))
    assert recorded
    with recorded_by(lambda device: CudaRecorder(device, sys.maxsize)):
        assert apart(replayed, numbers(fit(defense))) < 1e-5


@pytest.mark.parametrize("defense", ["none", "cbd", "nad"])
def test_parallel_trainings_give_the_numbers_of_each_alone(
    defense: str, deterministic: None
) -> None:
    alone = [numbers(fit(defense, seed)) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda seed: numbers(fit(defense, seed)), range(3)))
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other) < 1e-5
    assert apart(alone[0], alone[1]) > 1e-3


def test_two_workers_on_one_gpu_make_the_records_of_one(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        small = Suite(
            "",
            ("toy(train_images=200, test_images=100)",),
            attacks=("badnets", "blend"),
            defenses=("none", "ft"),
            recipe={"epochs": 2},
            precision="fp32",
        )
        options = RunOptions(device="cuda:0", results=folder)
        planned = plan("quick", small, ExecutionOptions(jobs=jobs), options)
        assert execute(planned, Console(quiet=True)).code == 0
        records, damaged = read_all(folder)
        assert not damaged
        found.append({record.key: record.metrics for record in records})
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_eight_trainings_at_once_fit_in_8_gb() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    pixels = torch.zeros((50_000, 3, 32, 32), dtype=torch.uint8, device=GPU)
    data = ImageSet(pixels, torch.arange(50_000, device=GPU) % 10, 10)
    recipe = Recipe(epochs=1)

    def one(seed: int) -> None:
        lent = TrainingContext(recipe, GPU, partial(models.build("wrn16_1").build, 10, 32), seed)
        train(lent.build(), data, recipe, lent.rng("classifier"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(8)))
    assert torch.cuda.max_memory_reserved(GPU) <= 8e9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("defense", defenses.names())
def test_every_defense_runs(defense: str, precision: str, cache_folder: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.02, precision=precision)
    made = cell(
        "toy(train_images=200, test_images=100)", "wrn16_1", "badnets", defense, recipe, seed=0
    )
    record = Harness(Cache(cache_folder), [], GPU).run(made)
    assert record.error is None
    assert record.provenance.device.startswith("cuda")
    assert record.measured.peak_memory_bytes > 0


@pytest.mark.parametrize("size", [32, 224])
def test_large_networks_run(size: int) -> None:
    recipe = Recipe(epochs=1, batch_size=8, precision="bf16")
    lent = TrainingContext(recipe, GPU, partial(models.build("resnet34").build, 12, size), seed=0)
    pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8, device=GPU)
    data = ImageSet(pixels, torch.arange(8, device=GPU), 12)
    made = train(lent.build(), data, replace(recipe, learning_rate=0.01), lent.rng("x"))
    assert bool(logits(made, data.images).isfinite().all())
