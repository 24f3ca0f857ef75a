"""The same pictures and the same lessons on a GPU. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks import attacks
from benchmark.cache import Cache
from benchmark.cell import cell
from benchmark.harness import Harness
from defenses import defenses
from models.augment import Augmentation, augment, draw_tape, to_float
from models.context import TrainingContext, network_builder
from models.data import ImageSet
from models.rng import stream
from models.training import Recipe, logits, train

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
    tape = draw_tape(60, (32, 32), how, stream(0, "tape"))
    here = augment(images.images, tape, how)
    there = augment(images.images.to(GPU), tape.to(GPU), how)
    assert torch.equal(here, there.cpu())
    torch.testing.assert_close(to_float(here), to_float(there).cpu(), rtol=0, atol=1e-7)


def test_a_short_training_ends_close_to_the_processors(images: ImageSet) -> None:
    recipe = Recipe(epochs=1, batch_size=20, learning_rate=0.01)
    found = []
    for device in (torch.device("cpu"), GPU):
        lent = TrainingContext(recipe, device, network_builder("wrn16_1", 10, 32), seed=0)
        made = train(lent.build(), images.to(device), recipe, lent.rng("classifier"))
        found.append(torch.cat([values.flatten().cpu() for values in made.parameters()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("defense", defenses.names())
def test_every_defense_runs(defense: str, precision: str, cache_folder: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.02, precision=precision)
    made = cell(
        "toy(train_images=200, test_images=100)", "wrn16_1", "badnets", defense, recipe, seed=0
    )
    record = Harness(Cache(cache_folder), [], GPU).run(made)
    assert record.error is None
    assert record.provenance["device"].startswith("cuda")
    assert record.measured["peak_memory_bytes"] > 0


@pytest.mark.parametrize("size", [32, 224])
def test_large_networks_run(size: int) -> None:
    recipe = Recipe(epochs=1, batch_size=8, precision="bf16")
    lent = TrainingContext(recipe, GPU, network_builder("resnet34", 12, size), seed=0)
    pixels = torch.randint(0, 256, (8, 3, size, size), dtype=torch.uint8, device=GPU)
    data = ImageSet(pixels, torch.arange(8, device=GPU), 12)
    made = train(lent.build(), data, replace(recipe, learning_rate=0.01), lent.rng("x"))
    assert bool(logits(made, data.images).isfinite().all())
