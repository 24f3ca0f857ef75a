"""FT-SAM against a slow implementation of its equations."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.ft import FineTuning
from bdbench.defenses.ft_sam import FTSAM, ascent
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe

SHORT = FTSAM(updates=4, batch_size=20)


@pytest.fixture
def images() -> ImageSet:
    """60 small images of noise, six of each of ten classes."""
    return scenarios.random_images(60, 16, 10)


def make_context(images: ImageSet, **fields: object) -> Context:
    """40 clean images to fit, 10 for validation and an untrained network; lengths as published."""
    context = scenarios.defense_context(images, 0.05)
    context = replace(context, recipe=replace(context.recipe, updates=1.0, **fields))
    clean = CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)])
    return replace(context, clean=clean, train_undefended=lambda n: context.build().eval())


def assert_same(one: Classifier, other: Classifier) -> None:
    assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_epsilon_is_equation_4_by_hand() -> None:
    """T g = (2 * 3, 4 * 0, 1 * -8) of norm 10, and T^2 g = (12, 0, -8)."""
    w = [torch.tensor([-2.0, 4.0]), torch.tensor([[1.0]])]
    g = [torch.tensor([3.0, 0.0]), torch.tensor([[-8.0]])]
    one, two = ascent(w, g, rho=0.5)
    assert one.tolist() == pytest.approx([0.6, 0.0])
    assert two.tolist() == [pytest.approx([-0.4])]


def test_epsilon_is_the_worst_step_in_its_neighbourhood() -> None:
    """Of all e with ||e / |w||| = rho, the one with the largest <e, g>."""
    rng = torch.Generator().manual_seed(1)
    w, g = torch.randn(7, generator=rng), torch.randn(7, generator=rng)
    (epsilon,) = ascent([w], [g], rho=2.0)
    assert float((epsilon / w.abs()).norm()) == pytest.approx(2.0)
    for _ in range(200):
        other = torch.randn(7, generator=rng)
        other = 2.0 * other / other.norm() * w.abs()
        assert float(other @ g) <= float(epsilon @ g)


def test_epsilon_is_zero_if_the_loss_is_flat() -> None:
    (epsilon,) = ascent([torch.ones(3)], [torch.zeros(3)], rho=100.0)
    assert epsilon.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_no_radius_it_is_fine_tuning(precision: str, images: ImageSet) -> None:
    """Byte for byte, including the running statistics and the number of their updates."""
    context = make_context(images, precision=precision)
    ours = replace(SHORT, rho=0.0).fit(images, context)
    plain = FineTuning(updates=4, learning_rate=0.01, drops=(), batch_size=20)
    assert_same(ours, plain.fit(images, context))
    assert ours.precision == precision
    sharp = SHORT.fit(images, context)
    assert not torch.equal(sharp.head.weight, ours.head.weight)
    assert all(bool(values.isfinite().all()) for values in sharp.state_dict().values())


def test_the_control_is_the_one_that_is_named(images: ImageSet) -> None:
    recipe = make_context(images, weight_decay=0.01, cutout=5).recipe
    control = defenses.build("ft(updates=800, learning_rate=0.01, drops=(), batch_size=256)")
    assert isinstance(control, FineTuning)
    assert FTSAM().schedule(recipe) == control.schedule(recipe)
    assert FTSAM().updates == control.updates


@pytest.mark.parametrize(("model", "updates"), [("wrn16_1", 2), ("resnet18", 1)])
def test_it_equals_a_slow_implementation_of_algorithm_1(
    model: str, updates: int, images: ImageSet
) -> None:
    """A second network has the worst weights, and its gradients update the first."""
    images = ImageSet(images.images[:, :, :8, :8], images.labels, 10)
    context = replace(
        make_context(images, weight_decay=0.01),
        build_network=partial(models.build(model).build, 10, 8),
    )
    start = context.build().eval()
    ours = FTSAM(updates=updates, batch_size=40).fit(
        images, replace(context, train_undefended=lambda n: start)
    )

    network = deepcopy(start).train()
    recipe = replace(context.recipe, epochs=updates, batch_size=40, learning_rate=0.01, drops=())
    optimizer = recipe.sgd(network)

    def step(batch: Batch) -> None:
        network.zero_grad()
        worst = deepcopy(network)
        cross_entropy(network(batch.images), batch.labels).backward()
        with torch.no_grad():
            norm = sum(float(((p * p.grad) ** 2).sum()) for p in network.parameters()) ** 0.5
            for p, q in zip(network.parameters(), worst.parameters(), strict=True):
                q += 2.0 / norm * p**2 * p.grad
        cross_entropy(worst(batch.images), batch.labels).backward()
        for p, q in zip(network.parameters(), worst.parameters(), strict=True):
            p.grad = q.grad
        optimizer.step()

    fit = context.trusted().fit
    loop(step, fit, recipe=recipe, rng=context.rng("fine-tuning"), state={"optimizer": optimizer})
    before, made, expected = (
        torch.cat([p.detach().flatten() for p in each.parameters()])
        for each in (start, ours, network)
    )
    # Rounding turns a few activations on or off. A step without epsilon is far away.
    assert float((made - expected).norm()) <= 0.05 * float((expected - before).norm())


def test_running_statistics_are_updated_once_per_step(images: ImageSet) -> None:
    made = SHORT.fit(images, make_context(images))
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {int(norm.get_buffer("num_batches_tracked")) for norm in norms} == {4}


def test_the_shared_network_is_unchanged(images: ImageSet) -> None:
    context = make_context(images)
    shared = context.undefended()
    before = deepcopy(shared)
    made = SHORT.fit(images, replace(context, train_undefended=lambda n: shared))
    assert_same(shared, before)
    assert not shared.training
    assert not made.training
    assert not torch.equal(made.head.weight, before.head.weight)


def test_only_the_fit_part_of_the_clean_images_is_used(images: ImageSet) -> None:
    one = SHORT.fit(images, make_context(images))
    context = make_context(images)
    fit = context.trusted().fit
    other = replace(context, clean=CleanBudget(fit, images[torch.arange(5)]))
    assert_same(one, SHORT.fit(images[torch.arange(20)], other))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("updates", [1, 3])
def test_the_cost_equals_the_counted_passes(
    epochs: int, updates: int, work: Callable[[Callable[[], object]], int]
) -> None:
    """Two forward and two backward passes per image, whatever the recipe's epochs."""
    images = scenarios.random_images(1000, 8, 10)
    context = scenarios.defense_context(images, 0.05)
    context = replace(context, recipe=replace(context.recipe, epochs=epochs, updates=1.0))
    defense = FTSAM(updates=updates)
    own = defense.cost(context.recipe, len(images)) - 3.0 * epochs
    assert own == pytest.approx(6 * updates * 40 / 1000)
    assert work(lambda: defense.fit(images, context)) == pytest.approx(own * len(images))


@pytest.mark.parametrize("epochs", [30, 100])
def test_it_costs_a_tenth_of_training(epochs: int) -> None:
    """Of 100 epochs; the same for any recipe: 2,000 images are 8 batches of 250 on average."""
    own = 6 * 800 * 250 / 50_000
    assert own <= 0.1 * 300
    assert FTSAM().cost(Recipe(epochs=epochs), 50_000) == pytest.approx(3.0 * epochs + own)


def test_without_clean_images_the_error_says_so(images: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="needs clean images, but none are lent"):
        SHORT.fit(images, replace(make_context(images), clean=None))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("ft_sam(rho=-0.1)", "rho must be at least 0, got -0.1"),
        ("ft_sam(updates=0)", "updates must be at least 1, got 0"),
        ("ft_sam(learning_rate=0.0)", "learning_rate must be above 0, got 0.0"),
        ("ft_sam(batch_size=1)", "batch_size must be at least 2, got 1"),
    ],
)
def test_a_bad_setting_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        defenses.build(spec)
