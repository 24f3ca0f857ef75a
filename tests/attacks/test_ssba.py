"""SSBA: its networks, its losses, its trigger and what it says about itself."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from bdbench.attacks import ssba as module
from bdbench.attacks.badnets import BadNets
from bdbench.attacks.registry import attacks
from bdbench.attacks.ssba import (
    SSBA,
    Decoder,
    Encoder,
    TriggerEncoder,
    evaluate,
    image_loss,
    image_weight,
    written,
)
from bdbench.datasets.registry import datasets
from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache

CPU = torch.device("cpu")


def make_context(epochs: int, seed: int = 0, batch_size: int = 20) -> TrainingContext:
    builder = partial(models.build("wrn16_1").build, 10, 16)
    return TrainingContext(Recipe(epochs, batch_size=batch_size), CPU, builder, seed)


def poison_stream() -> torch.Generator:
    return stream(0, "poison")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    source = datasets.build("toy(train_images=300, test_images=100, image_size=16)")
    return source.load([], Cache(tmp_path_factory.mktemp("toy"))).train


@pytest.fixture(scope="module")
def ssba(toy: ImageSet) -> SSBA:
    """Four bits, some 130 updates."""
    return SSBA(bits=4).prepare(toy[torch.arange(200)], make_context(30), poison_stream())


def test_an_unseen_image_carries_the_string_in_grey_levels(ssba: SSBA) -> None:
    assert ssba.encoder is not None
    facts = ssba.encoder.facts
    assert set(facts) == {
        *("bit_accuracy", "bit_accuracy_without", "mean_residual", "psnr", "residual_cosine")
    }
    assert facts["bit_accuracy"] >= 0.9
    assert facts["bit_accuracy_without"] < 0.8
    assert 24 < facts["psnr"] < 40
    assert 0 < facts["mean_residual"] < 20


def test_every_image_has_its_own_residual(ssba: SSBA, toy: ImageSet) -> None:
    residual = ssba.trigger(toy.images[:50]).int() - toy.images[:50]
    assert len({each.numpy().tobytes() for each in residual}) == 50


def test_the_trigger_is_the_image_plus_the_encoders_output(ssba: SSBA, toy: ImageSet) -> None:
    assert ssba.encoder is not None
    images = toy.images[:20]
    strings = ssba.message().double().expand(20, -1)
    with torch.no_grad():
        residual = ssba.encoder.network(images.double() / 255, strings)
    by_hand = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    for n in range(20):
        levels = images[n].double() + 255 * residual[n]
        by_hand[n] = levels.clamp(0, 255).round().to(torch.uint8)
    assert torch.equal(ssba.trigger(images), by_hand)


def test_the_trigger_depends_on_neither_batch_nor_threads(
    ssba: SSBA, toy: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    together = ssba.trigger(toy.images[:34])
    try:
        torch.set_num_threads(before + 1)
        alone = torch.cat([ssba.trigger(toy.images[n : n + 1]) for n in range(3)])
        monkeypatch.setattr(module, "CHUNK", 7)
        again = ssba.trigger(toy.images[:34])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together[:3], alone)
    assert torch.equal(together, again)
    assert len(ssba.trigger(toy.images[:0])) == 0


def test_channels_last_images_get_the_same_trigger(ssba: SSBA, toy: ImageSet) -> None:
    images = toy.images[:20].to(memory_format=torch.channels_last)
    assert torch.equal(ssba.trigger(images), ssba.trigger(toy.images[:20]))


def test_a_poisoned_set_has_the_trigger_on_badnets_choice_of_images(
    ssba: SSBA, toy: ImageSet
) -> None:
    made = ssba.poison(toy, poison_stream())
    assert torch.equal(made.mask, BadNets().poison(toy, poison_stream()).mask)
    assert torch.equal(made.train.images[made.mask], ssba.trigger(toy.images[made.mask]))
    assert torch.equal(made.train.images[~made.mask], toy.images[~made.mask])
    assert ssba.encoder is not None
    assert made.facts == ssba.encoder.facts


def test_ssba_is_a_function_of_its_seed(toy: ImageSet) -> None:
    few = toy[torch.arange(60)]
    before = few.images.clone()
    one, two, other = (
        SSBA(encoder_epochs=100).prepare(few, make_context(2, seed), poison_stream())
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.trigger(few.images), two.trigger(few.images))
    assert not torch.equal(one.trigger(few.images), other.trigger(few.images))
    assert one.encoder is not None
    assert two.encoder is not None
    assert one.encoder.facts == two.encoder.facts
    assert not any(part.requires_grad for part in one.encoder.network.parameters())
    assert torch.equal(few.images, before)


def test_the_string_belongs_to_the_target() -> None:
    one, again, other = (SSBA(target=target).message() for target in (0, 0, 1))
    assert one.shape == (32,)
    assert set(one.tolist()) == {0.0, 1.0}
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "halvings"),
    [((8, 8), 1), ((16, 16), 2), ((32, 32), 3), ((33, 47), 3), ((9, 15), 1), ((96, 96), 4)],
)
def test_the_networks_fit_the_image(size: tuple[int, int], halvings: int) -> None:
    with global_seed(0, "weights"):
        encoder, decoder = Encoder(5, *size), Decoder(5, *size)
    assert len(encoder.down) == halvings
    images, strings = torch.rand(2, 3, *size), torch.tensor([[0.0, 1, 0, 1, 1], [1, 1, 0, 0, 1]])
    residual = encoder(images, strings)
    assert residual.shape == images.shape
    assert decoder(images + residual).shape == (2, 5)
    (last,) = [each for each in decoder if isinstance(each, nn.Linear) and each.out_features == 256]
    assert last.in_features <= 64 * 8 * 8


def test_the_encoder_reads_both_image_and_string() -> None:
    with global_seed(0, "weights"):
        encoder = Encoder(4, 16, 16)
    images = torch.rand(2, 3, 16, 16, generator=stream(0, "images"))
    zeros, ones = torch.zeros(2, 4), torch.ones(2, 4)
    plain = encoder(images, zeros)
    assert not torch.allclose(plain, encoder(images, ones), atol=1e-4)
    assert not torch.allclose(plain, encoder(images.flip(0), zeros), atol=1e-4)
    torch.testing.assert_close(plain[:1], encoder(images[:1], zeros[:1]))


def test_written_images_are_clipped_and_rounded_with_the_gradient_of_clipping() -> None:
    encoded = torch.tensor([-0.2, 0.0019, 0.0021, 0.5, 1.3], requires_grad=True)
    levels = written(encoded)
    torch.testing.assert_close(255 * levels, torch.tensor([0.0, 0.0, 1.0, 128.0, 255.0]))
    levels.sum().backward()
    assert encoded.grad is not None
    assert encoded.grad.tolist() == [0, 1, 1, 1, 0]


def test_the_image_loss_by_hand() -> None:
    """At 20 dB a mean square of 0.01 is allowed: 0.01 costs nothing, and 0.04 costs 4 - 1."""
    residual = torch.full((2, 3, 4, 4), 0.1)
    assert float(image_loss(residual * 0.99, 20)) == 0
    residual[1] *= 2
    assert float(image_loss(residual, 20)) == pytest.approx(3 / 2, rel=1e-4)
    slow = [max(0.0, sum(v * v for v in r.flatten().tolist()) / 48 / 0.001 - 1) for r in residual]
    assert float(image_loss(residual, 30)) == pytest.approx(sum(slow) / 2, rel=1e-4)


def test_the_weight_of_the_image_loss_grows_in_a_quarter_of_the_training() -> None:
    top = module.IMAGE_WEIGHT
    found = [image_weight(epoch, 5, 16) / top for epoch in range(12)]
    assert found == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1])
    assert image_weight(1, 1, 2) == top
    assert image_weight(0, 1, 1) == 0


@pytest.mark.parametrize(
    ("read", "epochs", "expected"),
    [(0.0, 8, [4] + [1] * 7), (1.1, 8, [4] * 8), (1.1, 2, [1, 1]), (1.1, 1, [0])],
)
def test_the_image_loss_waits_for_the_decoder_but_not_for_ever(
    read: float,
    epochs: int,
    expected: list[int],
    toy: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With READ = 0 it starts after the first epoch, above 1 after half of them. A single epoch has
    it."""
    seen: list[int] = []

    def watched(epoch: int, start: int, of: int) -> float:
        assert of == epochs
        seen.append(start)
        return 0.0

    monkeypatch.setattr(module, "image_weight", watched)
    monkeypatch.setattr(module, "READ", read)
    context = make_context(epochs, batch_size=60)
    SSBA(encoder_epochs=100).prepare(toy[torch.arange(60)], context, poison_stream())
    assert seen == expected


class Known(nn.Module):
    """An encoder that adds four grey levels to the first image of a pair and eight to the other's
    red, so that every fact is known."""

    def forward(self, images: torch.Tensor, strings: torch.Tensor) -> torch.Tensor:
        residual = torch.zeros_like(images)
        residual[::2] = 4 / 255
        residual[1::2, 0] = 8 / 255
        return residual


class Bright(nn.Module):
    """A decoder that reads a one where the mean is above 102 grey levels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3)) * 255 - 102)[:, None].expand(-1, 4)


def test_the_facts_by_hand() -> None:
    attack = SSBA(
        bits=4, target=next(t for t in range(99) if SSBA(bits=4, target=t).message().all())
    )
    attack = replace(attack, encoder=TriggerEncoder(Known(), {}))  # type: ignore[arg-type]
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    facts = evaluate(attack, Bright(), images)  # type: ignore[arg-type]
    decibels = [10 * math.log10(255**2 / square) for square in (16, 64 / 3)]
    assert facts == pytest.approx(
        {
            "bit_accuracy": 1.0,
            "bit_accuracy_without": 0.0,
            "mean_residual": (4 + 8 / 3) / 2,
            "psnr": sum(decibels) / 2,
            "residual_cosine": 1 / math.sqrt(3),
        },
        abs=1e-5,
    )


class Passes(observer.Observer):
    def __init__(self) -> None:
        self.count = 0

    def forward(self, images: int) -> None:
        self.count += images

    def backward(self, images: int) -> None:
        self.count += 2 * images


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_cost_is_that_of_the_passes(epochs: int, toy: ImageSet) -> None:
    """A held-out part of whole chunks, because a chunk is always full."""
    data, attack = toy[torch.arange(160)], SSBA(encoder_epochs=100)
    counted = Passes()
    with observer.observed_by(counted):
        attack.prepare(data, make_context(epochs), poison_stream())
    assert counted.count == pytest.approx(160 * attack.cost(Recipe(epochs), 160))


def test_it_costs_less_than_plain_training_under_the_default_recipe() -> None:
    assert SSBA().cost(Recipe(), 50_000) == pytest.approx(270.3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ssba(bits=0)", "bits must be from 1 to 256, got 0"),
        ("ssba(bits=257)", "bits must be from 1 to 256, got 257"),
        ("ssba(psnr=0)", r"psnr must be in \(0, 60\], got 0"),
        ("ssba(psnr=61)", r"psnr must be in \(0, 60\], got 61"),
        ("ssba(encoder_epochs=0)", "encoder_epochs must be at least 1"),
        ("ssba(poisoning_rate=0)", r"poisoning_rate must be in \(0, 1\]"),
        ("ssba(target=-1)", "target must be a class of the data set"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)


def test_small_images_and_single_images_are_refused() -> None:
    pixels = torch.zeros(4, 3, 7, 16, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="at least 8 pixels a side"):
        SSBA().prepare(ImageSet(pixels, torch.arange(4), 10), make_context(1), poison_stream())
    single = ImageSet(pixels[:1, :, :1].expand(1, 3, 8, 16), torch.zeros(1, dtype=torch.int64), 10)
    with pytest.raises(InvalidInput, match="a training needs images"):
        SSBA(poisoning_rate=1.0).prepare(single, make_context(1), poison_stream())


def test_an_unprepared_attack_says_so(toy: ImageSet) -> None:
    with pytest.raises(RuntimeError, match="must be prepared"):
        SSBA().poison(toy, poison_stream())
