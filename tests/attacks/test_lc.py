"""Label-consistent: the patch in four corners, the perturbation below it, and the control without
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from bdbench.attacks.badnets import BadNets
from bdbench.attacks.lc import LabelConsistent
from bdbench.attacks.pixels import add
from bdbench.attacks.poison import RateBasis
from bdbench.attacks.registry import attacks
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe

GRID = [[-1, -1, 1], [-1, 1, -1], [1, -1, 1]]
"""The patch in the lower right corner: 1 is white, -1 is black."""


def noise(count: int, height: int, width: int, low: int = 0, high: int = 256) -> Tensor:
    shape = (count, 3, height, width)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=stream(0, "noise"))


def make_context(epochs: int = 8, seed: int = 0) -> TrainingContext:
    recipe = Recipe(epochs, batch_size=20, learning_rate=0.05, padding=0, flip=False, cutout=0)
    build = partial(models.build("wrn16_1").build, 10, 16)
    return TrainingContext(recipe, torch.device("cpu"), build, seed)


def poison_stream() -> torch.Generator:
    return stream(0, "poison")


@pytest.fixture(scope="module")
def shades() -> ImageSet:
    """Ten grey levels and a little noise, which a network learns at once."""
    labels = torch.arange(120) % 10
    images = noise(120, 16, 16, high=15) + (24 * labels[:, None, None, None]).to(torch.uint8)
    return ImageSet(images, labels, 10)


@pytest.fixture(scope="module")
def prepared(shades: ImageSet) -> LabelConsistent:
    attack = LabelConsistent(poisoning_rate=0.5, target=4, steps=40)
    return attack.prepare(shades, make_context(), poison_stream())


class Linear(Classifier):
    """One weight for each of 12 values, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(12, 10)

    def body(self, images: Tensor) -> list[Tensor]:
        return [images.reshape(len(images), 12, 1, 1)]

    def embed(self, last: Tensor) -> Tensor:
        return last


def test_each_corner_has_the_mirrored_patch() -> None:
    for amplitude, level in ((1.0, 255), (32 / 255, 32)):
        patch = LabelConsistent(amplitude=amplitude).patch(32, 48)
        assert patch.shape == (3, 32, 48)
        assert patch.count_nonzero() == 3 * 4 * 9
        for row in range(3):
            for column in range(3):
                for y in (29 + row, 2 - row):
                    for x in (45 + column, 2 - column):
                        assert patch[:, y, x].tolist() == [level * GRID[row][column]] * 3


def test_at_full_amplitude_the_lower_right_corner_is_that_of_badnets() -> None:
    images = noise(3, 32, 32)
    stamped, badnets = LabelConsistent().trigger(images), BadNets().trigger(images)
    assert torch.equal(stamped[:, :, 16:, 16:], badnets[:, :, 16:, 16:])


def test_an_amplitude_is_added_and_taken_within_the_range() -> None:
    images = noise(2, 16, 16)
    stamped = LabelConsistent(amplitude=100 / 255).trigger(images)
    for n in range(2):
        for c in range(3):
            for row in range(3):
                for column in range(3):
                    before = int(images[n, c, 13 + row, 13 + column])
                    after = min(255, max(0, before + 100 * GRID[row][column]))
                    assert int(stamped[n, c, 13 + row, 13 + column]) == after


@pytest.mark.parametrize("axis", [2, 3])
def test_a_mirrored_image_has_the_same_trigger(axis: int) -> None:
    images, attack = noise(2, 32, 32), LabelConsistent(amplitude=0.3)
    assert torch.equal(attack.trigger(images.flip(axis)), attack.trigger(images).flip(axis))


@pytest.mark.parametrize("size", [6, 32, 64, 224])
def test_any_size(size: int) -> None:
    images, attack = noise(2, size, size), LabelConsistent()
    before = images.clone()
    stamped = attack.trigger(images)
    assert torch.equal(images, before), "the images were written"
    assert torch.equal(attack.trigger(images[1:]), stamped[1:])
    assert attack.trigger(images[:0]).shape == (0, 3, size, size)
    pixels = max(1, round(size / 32))
    assert attack.patch(size, size).count_nonzero() == 3 * 4 * 9 * pixels**2


def test_an_image_that_is_too_small_is_refused() -> None:
    with pytest.raises(InvalidInput, match="patches of 3 pixels in four corners do not fit 5 x 8"):
        LabelConsistent().trigger(noise(1, 5, 8))


def test_the_ascent_is_projected_signed_gradient_ascent() -> None:
    """Against one value after another, with the derivative of the loss in closed form."""
    torch.manual_seed(0)
    network = Linear().eval().requires_grad_(False)
    attack = LabelConsistent(epsilon=4.0, step=1.5, steps=5)
    victims = ImageSet(noise(3, 2, 2), torch.tensor([0, 1, 2]), 10)
    victims.images[0, 0], victims.images[1, 1] = 0, 254
    start = (2 * torch.rand(3, 3, 2, 2, generator=stream(0, "start")) - 1) * 4
    found = attack.ascend(network, victims, start.clone())
    for n in range(3):
        x, delta = victims.images[n].flatten().tolist(), start[n].flatten().tolist()
        lows = [max(-4.0, -float(value)) for value in x]
        highs = [min(4.0, 255.0 - value) for value in x]
        delta = [min(max(d, low), high) for d, low, high in zip(delta, lows, highs, strict=True)]
        for _ in range(5):
            seen = torch.tensor([(a + d) / 255 for a, d in zip(x, delta, strict=True)])
            shares = network.head(seen).softmax(0)
            shares[n] -= 1
            gradient = (network.head.weight.T @ shares).tolist()
            delta = [
                min(max(d + (1.5 if g > 0 else -1.5), low), high)
                for d, g, low, high in zip(delta, gradient, lows, highs, strict=True)
            ]
        assert found[n].flatten().tolist() == pytest.approx(delta, abs=1e-4)


def test_the_noise_stays_within_its_bound_and_starts_at_random() -> None:
    torch.manual_seed(0)
    network = Linear().eval().requires_grad_(False)
    victims = ImageSet(noise(300, 2, 2, low=100, high=150), torch.arange(300) % 10, 10)
    attack = LabelConsistent(epsilon=16.0, steps=1, step=0.01)
    drawn = attack.perturb(network, victims, stream(0, "noise"))
    assert drawn.dtype == torch.int16
    assert drawn.shape == (300, 3, 2, 2)
    assert int(drawn.abs().max()) == 16
    assert abs(float(drawn.float().mean())) < 1
    assert float(drawn.float().std()) == pytest.approx(32 / 12**0.5, rel=0.05)
    ends = replace(attack, steps=100, step=1.5).perturb(network, victims, stream(0, "noise"))
    assert int(ends.abs().min()) == int(ends.abs().max()) == 16
    # Whole grey levels within a bound that is not whole.
    ends = replace(attack, epsilon=2.6, steps=100).perturb(network, victims, stream(0, "noise"))
    assert int(ends.abs().max()) == 2


def test_labels_stay_true_and_only_the_target_class_changes(
    prepared: LabelConsistent, shades: ImageSet
) -> None:
    before = shades.images.clone()
    made = prepared.poison(shades, poison_stream())
    assert torch.equal(made.train.labels, shades.labels)
    assert int(made.mask.sum()) == 6
    assert set(shades.labels[made.mask].tolist()) == {4}
    assert not made.cover.any()
    assert torch.equal(made.train.images[~made.mask], shades.images[~made.mask])
    assert torch.equal(shades.images, before), "the clean images were written"


def test_poisoned_images_have_noise_below_the_patch_and_test_images_have_none(
    prepared: LabelConsistent, shades: ImageSet
) -> None:
    made = prepared.poison(shades, poison_stream())
    poisoned, clean = made.train.images[made.mask], shades.images[made.mask]
    inside = LabelConsistent().patch(16, 16) == 0
    change = (poisoned.int() - clean.int())[:, inside]
    assert 8 < int(change.abs().max()) <= 16
    assert float((change != 0).float().mean()) > 0.9
    assert torch.equal(poisoned, prepared.trigger(poisoned)), "the patch is complete"
    assert torch.equal(prepared.trigger(clean)[:, inside], clean[:, inside])


def test_the_perturbation_turns_the_surrogate_away_from_the_class(
    prepared: LabelConsistent,
) -> None:
    assert prepared.perturbation is not None
    facts = prepared.perturbation.facts
    assert facts["surrogate_accuracy_before"] == 1
    assert facts["surrogate_accuracy_after"] < 0.5
    assert facts["surrogate_loss_after"] > facts["surrogate_loss_before"]
    assert facts["largest_noise"] == 16


def test_the_noise_is_a_function_of_the_seed(shades: ImageSet) -> None:
    attack, few = LabelConsistent(steps=2), shades[torch.arange(60)]
    one, two, other = (
        attack.prepare(few, make_context(1, seed), poison_stream()).poison(few, poison_stream())
        for seed in (0, 0, 1)
    )
    assert torch.equal(one.train.images, two.train.images)
    assert torch.equal(one.mask, other.mask)
    assert not torch.equal(one.train.images, other.train.images)


def test_the_control_is_the_patch_alone_and_trains_nothing(shades: ImageSet) -> None:
    control = LabelConsistent(epsilon=0.0)
    assert not control.trains
    assert control.cost(Recipe(), 50_000) == 0
    assert control.prepare(shades, make_context(), poison_stream()) is control
    made = control.poison(shades, poison_stream())
    assert int(made.mask.sum()) == 3
    assert torch.equal(made.train.images[made.mask], control.trigger(shades.images[made.mask]))
    assert not made.facts
    perturbed = LabelConsistent(steps=1).prepare(shades, make_context(1), poison_stream())
    assert torch.equal(perturbed.poison(shades, poison_stream()).mask, made.mask)


def test_the_rate_is_a_share_of_the_class_or_of_all_images(shades: ImageSet) -> None:
    for basis, rate, count in (("target_class", 0.25, 3), ("dataset", 0.05, 6)):
        attack = LabelConsistent(epsilon=0.0, poisoning_rate=rate, rate_basis=basis)
        assert int(attack.poison(shades, poison_stream()).mask.sum()) == count
    attack = LabelConsistent(poisoning_rate=0.2, rate_basis="dataset")
    with pytest.raises(InvalidInput, match=r"class 0 has 12; the largest feasible rate is 0\.1"):
        attack.prepare(shades, make_context(), poison_stream())
    assert attack.cost(Recipe(1), 120) == pytest.approx(3 + 0.2 * 302)


@pytest.mark.parametrize(("rate", "basis"), [(0.5, "target_class"), (0.05, "dataset")])
def test_the_cost_equals_the_counted_passes(
    rate: float, basis: str, shades: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    attack = LabelConsistent(poisoning_rate=rate, rate_basis=basis, steps=7)
    context = make_context(2)
    done = work(lambda: attack.prepare(shades, context, poison_stream()))
    assert done == pytest.approx(120 * attack.cost(context.recipe, 120))


def test_it_costs_little_more_than_its_surrogate() -> None:
    assert LabelConsistent().cost(Recipe(), 50_000) == pytest.approx(300 + 0.025 * 302)


def test_an_unprepared_attack_says_so(shades: ImageSet) -> None:
    with pytest.raises(RuntimeError, match="lc must be prepared before it can poison"):
        LabelConsistent().poison(shades, poison_stream())


def test_sums_are_clipped() -> None:
    images = torch.tensor([0, 10, 250, 255], dtype=torch.uint8)
    change = torch.tensor([-5, -5, 5, 300], dtype=torch.int16)
    assert add(images, change).tolist() == [0, 5, 255, 255]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lc(poisoning_rate=0)", r"poisoning_rate must be in \(0, 1\], got 0.0"),
        ("lc(epsilon=-1)", r"epsilon must be 0 or in \[1, 255\] grey levels, got -1.0"),
        ("lc(epsilon=0.5)", r"epsilon must be 0 or in \[1, 255\] grey levels, got 0.5"),
        ("lc(epsilon=256)", r"epsilon must be 0 or in \[1, 255\] grey levels, got 256.0"),
        ("lc(steps=0)", "steps must be at least 1, got 0"),
        ("lc(step=0)", "step must be above 0, got 0.0"),
        ("lc(amplitude=0)", r"amplitude must be in \(0, 1\], got 0.0"),
        ("lc(amplitude=1.1)", r"amplitude must be in \(0, 1\], got 1.1"),
        ("lc(rate_basis='class')", "rate_basis .* must be one of 'target_class', 'dataset'"),
        ("lc(target=-1)", "target must be a class of the data set, got -1"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)


def test_a_target_without_images_is_refused(shades: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="target must be a class of the data set, 0 to 9, got"):
        LabelConsistent(target=10).prepare(shades, make_context(), poison_stream())
    for basis in get_args(RateBasis):
        attack = LabelConsistent(rate_basis=basis)
        with pytest.raises(InvalidInput, match=r"^class 0 has no training image: choose another t"):
            attack.prepare(shades[shades.labels > 0], make_context(), poison_stream())
