"""ANP: masks against a slow implementation of the equations, and the pruned channels."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.anp import ANP, find_norms, scale
from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe

SHORT = ANP(updates=6, batch_size=20, learning_rate=1.0)


@pytest.fixture
def images() -> ImageSet:
    """60 small images of noise, six of each of ten classes."""
    return scenarios.random_images(60, 12, 10)


def make_context(images: ImageSet, model: str = "wrn16_1", **fields: object) -> Context:
    """40 clean images to fit, 10 for validation, and an untrained network with random normalisation
    weights; lengths as published."""
    context = scenarios.defense_context(images, 0.05)
    context = replace(
        context,
        recipe=replace(context.recipe, updates=1.0, **fields),
        build_network=partial(models.build(model).build, 10, images.size[0]),
    )
    shared, rng = context.build().eval(), stream(0, "norms")
    for norm in find_norms(shared).values():
        norm.weight.data = 0.5 + torch.rand(norm.num_features, generator=rng)
        norm.bias.data = torch.rand(norm.num_features, generator=rng) - 0.5
    return replace(
        context,
        clean=CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)]),
        train_undefended=lambda n: shared,
    )


def masks(defense: ANP, context: Context) -> Tensor:
    return defense.learn_masks(context.undefended(), context.trusted().fit, context)


def test_scaling_goes_layer_by_layer() -> None:
    norms = {"a": nn.BatchNorm2d(2), "b": nn.BatchNorm2d(1)}
    norms["a"].weight.data = torch.tensor([3.0, 5.0])
    norms["b"].bias.data = torch.tensor([7.0])
    gain, lift = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([1.0, 1.0, -1.0])
    made = {name: values.tolist() for name, values in scale(norms, gain, lift).items()}
    assert made == {
        "a.weight": [3.0, 2.5],
        "a.bias": [0.0, 0.0],
        "b.weight": [2.0],
        "b.bias": [-7.0],
    }


def test_masks_equal_a_slow_implementation_of_the_paper(images: ImageSet) -> None:
    """Every perturbed network is a copy with other gammas and betas, and the chain rule is applied
    by hand. Two steps, the second with momentum."""
    context = make_context(images, weight_decay=0.1)
    ours = masks(ANP(updates=2, batch_size=20, learning_rate=0.5), context)

    norms = find_norms(context.undefended())
    gamma = torch.cat([norm.weight.detach() for norm in norms.values()])
    beta = torch.cat([norm.bias.detach() for norm in norms.values()])
    m, velocity = torch.ones(len(gamma)), torch.zeros(len(gamma))
    draws = iter(torch.rand(2, 2, len(gamma), generator=context.rng("changes")))

    def slopes(batch: Batch, delta: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients by delta and xi of the loss with (m + delta) gamma and (1 + xi) beta."""
        network = deepcopy(context.undefended()).train()
        parts, start = find_norms(network).values(), 0
        for norm in parts:
            rows = slice(start, start := start + norm.num_features)
            norm.weight.data = (m + delta)[rows] * gamma[rows]
            norm.bias.data = (1 + xi)[rows] * beta[rows]
        cross_entropy(network(batch.images), batch.labels).backward()
        by_gamma = torch.cat([norm.weight.grad for norm in parts])
        by_beta = torch.cat([norm.bias.grad for norm in parts])
        return by_gamma * gamma, by_beta * beta

    def step(batch: Batch) -> None:
        nonlocal m, velocity
        delta, xi = 0.8 * next(draws) - 0.4
        by_delta, by_xi = slopes(batch, delta, xi)
        delta = (delta + 0.4 * by_delta.sign()).clamp(-0.4, 0.4)
        xi = (xi + 0.4 * by_xi.sign()).clamp(-0.4, 0.4)
        nothing = torch.zeros(len(m))
        slope = 0.2 * slopes(batch, nothing, nothing)[0] + 0.8 * slopes(batch, delta, xi)[0]
        velocity = 0.9 * velocity + slope
        m = (m - 0.5 * velocity).clamp(0, 1)

    recipe = replace(context.recipe, epochs=1, batch_size=20)
    loop(step, context.trusted().fit, recipe=recipe, rng=context.rng("masks"), state={})
    moved = float((1 - m).norm())
    assert moved > 0.1
    # Rounding turns a few activations on or off.
    assert float((ours - m).norm()) <= 0.05 * moved


def test_masks_stay_between_0_and_1(images: ImageSet) -> None:
    """Even with a learning rate that is far too large."""
    m = masks(replace(SHORT, learning_rate=100.0), make_context(images))
    assert float(m.min()) == 0
    assert float(m.max()) == 1
    assert len(m) == 464, "channels of all 13 layers"


def test_without_perturbations_both_losses_are_the_same(images: ImageSet) -> None:
    context, still = make_context(images), replace(SHORT, epsilon=0.0, updates=2)
    one, two = (masks(replace(still, alpha=alpha), context) for alpha in (0.0, 1.0))
    assert_close(one, two)
    changed = masks(replace(SHORT, updates=2, alpha=0.0), context)
    assert float((changed - one).norm()) > 0.1 * float((1 - one).norm())
    assert_close(masks(replace(SHORT, updates=2, alpha=1.0), context), two)


def test_it_runs_in_bf16(images: ImageSet) -> None:
    # Without perturbations, whose signs depend on the last digits of a gradient.
    short = replace(SHORT, updates=1, batch_size=40, alpha=1.0)
    one, two = (masks(short, make_context(images, precision=each)) for each in ("fp32", "bf16"))
    assert two.dtype == torch.float32
    assert 0 < float((one - two).norm()) < 0.5 * float((1 - one).norm())


def test_a_higher_threshold_prunes_more_channels(images: ImageSet) -> None:
    """Those with a mask of at most the threshold; everything else is unchanged, byte for byte."""
    context, found = make_context(images), []
    fast = replace(SHORT, learning_rate=10.0)
    before, m = context.undefended().state_dict(), masks(fast, context)
    names = [f"{name}.weight" for name in find_norms(context.undefended())]
    for threshold in (0.0, 0.3, 0.7, 0.99):
        context.journal.scalars.clear()
        made = replace(fast, threshold=threshold).fit(images, context)
        after = made.state_dict()
        rest = {name: values for name, values in after.items() if name not in names}
        assert_close(rest, {name: before[name] for name in rest}, rtol=0, atol=0)
        gamma, old = (torch.cat([state[name] for name in names]) for state in (after, before))
        pruned = m <= threshold
        assert_close(gamma, torch.where(pruned, 0.0, old), rtol=0, atol=0)
        assert not made.training
        assert context.journal.scalars == {
            "channels": 464,
            "pruned channels": int(pruned.sum()),
            "mean mask": float(m.mean()),
        }
        found.append(int(pruned.sum()))
    assert all(a < b for a, b in pairwise(found)), found


def test_a_channel_that_spoils_every_prediction_is_pruned(images: ImageSet) -> None:
    context = make_context(images)
    network = deepcopy(context.undefended())
    with torch.no_grad():
        network.norm.weight[7] = network.norm.bias[7] = 3.0
        network.head.weight[:, 7] = 0.0
        network.head.weight[0, 7] = 5.0
    context = replace(context, train_undefended=lambda n: network)
    made = ANP(updates=20, batch_size=20).fit(images, context)
    assert made.norm.weight[7] == 0
    assert network.norm.weight[7] == 3
    assert context.journal.scalars["pruned channels"] < 0.1 * 464


def test_if_no_mask_falls_the_network_is_unchanged(images: ImageSet) -> None:
    context = make_context(images)
    made = replace(SHORT, learning_rate=1e-6).fit(images, context)
    shared = context.undefended()
    assert made is not shared
    assert_close(made.state_dict(), shared.state_dict(), rtol=0, atol=0)


def test_the_shared_network_is_unchanged(images: ImageSet) -> None:
    """Including its running statistics, despite forward passes in training mode."""
    context = make_context(images)
    shared = context.undefended()
    before = deepcopy(shared)
    replace(SHORT, threshold=0.9).fit(images, context)
    assert_close(shared.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert not shared.training
    assert all(p.grad is None and p.requires_grad for p in shared.parameters())


def test_only_the_fit_part_of_the_clean_images_is_used(images: ImageSet) -> None:
    defense, context = replace(SHORT, threshold=0.9), make_context(images)
    one = defense.fit(images, context)
    context = replace(context, clean=CleanBudget(context.trusted().fit, images[torch.arange(5)]))
    two = defense.fit(images[torch.arange(20)], context)
    assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


def test_channels_are_found_in_another_network() -> None:
    context = make_context(scenarios.random_images(60, 8, 10), "resnet18")
    ANP(updates=1).fit(context.trusted().fit, context)
    assert context.journal.scalars["channels"] == 64 + 4 * 64 + 5 * (128 + 256 + 512)


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("updates", [1, 4])
def test_the_cost_equals_the_counted_passes(
    epochs: int, updates: int, work: Callable[[Callable[[], object]], int]
) -> None:
    """Three forward and backward passes per image, whatever the recipe's epochs."""
    images = scenarios.random_images(1000, 8, 10)
    context = scenarios.defense_context(images, 0.05)
    context = replace(context, recipe=replace(context.recipe, epochs=epochs, updates=1.0))
    defense = ANP(updates=updates)
    own = defense.cost(context.recipe, len(images)) - 3.0 * epochs
    assert own == pytest.approx(9 * updates * 40 / 1000)
    assert work(lambda: defense.fit(images, context)) == pytest.approx(own * len(images))


def test_it_costs_a_sixth_of_training() -> None:
    assert 300 < ANP().cost(Recipe(), 50_000) <= 1.16 * 300
    # 2,000 images are 15 batches of 128 and one of 80: 125 on average.
    assert ANP().cost(Recipe(), 50_000) == pytest.approx(300 + 9 * 2_000 * 125 / 50_000)


def test_a_network_without_normalisation_weights_is_refused(images: ImageSet) -> None:
    class Bare(Classifier):
        def __init__(self) -> None:
            super().__init__(0.0, 1.0)
            self.head = nn.Linear(3, 10)
            self.norm = nn.BatchNorm2d(3, affine=False)

        def body(self, images: Tensor) -> list[Tensor]:
            return [self.norm(images)]

        def embed(self, last: Tensor) -> Tensor:
            return last

    context = replace(make_context(images), train_undefended=lambda n: Bare().eval())
    with pytest.raises(InvalidInput, match="anp needs a BatchNorm2d that has weights"):
        ANP().fit(images, context)


def test_without_clean_images_the_error_says_so(images: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="needs clean images, but none are lent"):
        ANP().fit(images, replace(make_context(images), clean=None))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("anp(threshold=-0.1)", r"threshold must be in \[0, 1\), got -0.1"),
        ("anp(threshold=1.0)", r"threshold must be in \[0, 1\), got 1.0"),
        ("anp(epsilon=-0.1)", "epsilon must be at least 0, got -0.1"),
        ("anp(alpha=1.1)", "alpha must be from 0 to 1, got 1.1"),
        ("anp(updates=0)", "updates must be at least 1, got 0"),
        ("anp(learning_rate=0.0)", "learning_rate must be above 0, got 0.0"),
        ("anp(batch_size=1)", "batch_size must be at least 2, got 1"),
    ],
)
def test_a_bad_setting_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        defenses.build(spec)
