"""MCR against a slow implementation of its equations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.batch_norm import reset_statistics
from bdbench.defenses.mcr import MCR, POINTS, curve, weights
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import logits, loop, train
from bdbench.models.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=20, learning_rate=0.05, weight_decay=0.01)
STILL = replace(RECIPE, padding=0, flip=False, cutout=0)


@pytest.fixture
def images() -> ImageSet:
    """60 small images of noise, six of each of ten classes."""
    rng = stream(0, "test images")
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(60) % 10, 10)


def make_context(images: ImageSet, recipe: Recipe = RECIPE) -> Context:
    """40 clean images to fit, 10 for validation, and networks after one epoch."""
    training = TrainingContext(
        recipe, torch.device("cpu"), partial(models.build("wrn16_1").build, 10, 16), 0
    )

    @functools.cache
    def ready(n: int) -> Classifier:
        own = replace(training, seed=n)
        network = train(own.build(), images, replace(STILL, epochs=1), own.rng("classifier"))
        network.zero_grad()
        return network

    return Context(
        **vars(training),
        clean=CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)]),
        train_undefended=lambda n: deepcopy(ready(n)),
    )


def clean_of(context: Context) -> CleanBudget:
    assert context.clean is not None
    return context.clean


def state_of(network: Classifier) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}


def assert_same_state(network: Classifier, expected: dict[str, Tensor]) -> None:
    for name, values in network.state_dict().items():
        assert torch.equal(values, expected[name]), name


def test_the_curve_is_its_formula() -> None:
    w1, theta, w2 = ({"w": torch.tensor([x, 2 * x])} for x in (1.0, 10.0, -3.0))
    for t in (0.0, 0.1, 0.35, 0.5, 1.0):
        expected = (1 - t) * (1 - t) * 1 + 2 * t * (1 - t) * 10 + t * t * -3
        for given in (t, torch.tensor(t)):
            assert curve(given, w1, theta, w2)["w"].tolist() == pytest.approx(
                [expected, 2 * expected], abs=1e-5
            )
        one = {"w": torch.ones(1)}
        assert float(curve(t, one, one, one)["w"]) == pytest.approx(1)


@pytest.mark.parametrize("t", [0.0, torch.tensor(0.0), 1.0, torch.tensor(1.0)])
def test_the_curve_ends_exactly_at_the_ends(t: float | Tensor, images: ImageSet) -> None:
    context = make_context(images)
    ends = first, second = context.undefended(0), context.undefended(1)
    theta = weights(context.build("theta"))
    phi, end = curve(t, weights(first), theta, weights(second)), ends[int(t)]
    assert phi.keys() == dict(end.named_parameters()).keys()
    for name, values in end.named_parameters():
        assert torch.equal(phi[name], values), name
        if values.ndim == 4:
            assert phi[name].is_contiguous(memory_format=torch.channels_last)
    pixels = images.images.float() / 255
    with torch.no_grad():
        assert torch.equal(functional_call(end, phi, pixels), end(pixels))


def test_resetting_statistics_at_an_end_equals_that_of_its_copy(images: ImageSet) -> None:
    context = make_context(images)
    first, second = context.undefended(0), context.undefended(1)
    one, other = deepcopy(first), deepcopy(second)
    with torch.no_grad():
        for name, values in curve(0.0, weights(first), weights(second), weights(second)).items():
            other.get_parameter(name).copy_(values)
    for network in (one, other):
        reset_statistics(network, clean_of(context).fit, STILL, context.rng("statistics"))
    assert_same_state(one, state_of(other))
    assert not torch.equal(one.norm.running_mean, first.norm.running_mean)  # type: ignore[union-attr]


def test_reset_statistics_are_means_over_batches_of_the_fit_part(images: ImageSet) -> None:
    """Batches of 18, 18 and 4; the first layer's input does not depend on any statistics."""
    context = make_context(images)
    fit, network = clean_of(context).fit, context.undefended()
    how = replace(STILL, batch_size=18)
    batches: list[Batch] = []
    loop(batches.append, fit, recipe=replace(how, epochs=1), rng=context.rng("s"), state={})
    assert [len(batch.labels) for batch in batches] == [18, 18, 4]

    def expected(layer_input: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        mean = variance = torch.zeros(())
        for batch in batches:
            with torch.no_grad():
                maps = layer_input(batch.images)
            flat = maps.transpose(0, 1).flatten(1)
            middle = flat.sum(1) / flat.shape[1]
            spread = ((flat - middle[:, None]) ** 2).sum(1) / (flat.shape[1] - 1)
            mean = mean + len(maps) / 40 * middle
            variance = variance + len(maps) / 40 * spread
        return mean, variance

    still = state_of(network)
    reset_statistics(network, fit, how, context.rng("s"))
    first = network.groups[0][0].norm1  # type: ignore[union-attr,index]
    mean, variance = expected(network.stem)  # type: ignore[arg-type]
    torch.testing.assert_close(first.running_mean, mean)
    torch.testing.assert_close(first.running_var, variance)
    training = deepcopy(network).train()
    mean, variance = expected(lambda pixels: training.stages(pixels)[-1])
    torch.testing.assert_close(network.norm.running_mean, mean)
    torch.testing.assert_close(network.norm.running_var, variance)
    assert not network.training
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.momentum == 0.1
            assert int(module.num_batches_tracked or 0) == 3
    for name, values in network.named_parameters():
        assert torch.equal(values, still[name]), name
        assert values.grad is None


class Flat(Classifier):
    """Normalises its embedding by BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 10)

    def body(self, images: Tensor) -> list[Tensor]:
        return [images]

    def embed(self, last: Tensor) -> Tensor:
        normed: Tensor = self.norm(last.mean((2, 3)))
        return normed[:, :, None, None]


def test_statistics_of_every_kind_of_batch_normalisation_are_reset(images: ImageSet) -> None:
    """One batch of 40: then the statistics are those of all images, whatever they were before."""
    network = Flat()
    network.norm.running_mean.fill_(100.0)  # type: ignore[union-attr]
    context = make_context(images)
    fit = clean_of(context).fit
    reset_statistics(network, fit, replace(STILL, batch_size=64), context.rng("s"))
    means = to_float(fit.images).mean((2, 3))
    torch.testing.assert_close(network.norm.running_mean, means.mean(0))
    torch.testing.assert_close(network.norm.running_var, means.var(0))


def test_statistics_come_from_the_fit_part_alone(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, seen, plain = make_context(images), [], Classifier.forward

    def remember(network: Classifier, pixels: Tensor) -> Tensor:
        if network.training and not torch.is_grad_enabled():
            seen.extend((pixels * 255).round().to(torch.uint8).contiguous().unbind())
        return plain(network, pixels)

    monkeypatch.setattr(Classifier, "forward", remember)
    MCR(updates=2).fit(images, context)
    assert len(seen) == 40 * (len(POINTS) + 1)
    assert {image.numpy().tobytes() for image in seen} == {
        image.numpy().tobytes() for image in clean_of(context).fit.images
    }


def test_the_ends_are_unchanged(images: ImageSet) -> None:
    context, defense = make_context(images), MCR(updates=3)
    first, second = context.undefended(0), context.undefended(1)
    before = state_of(first), state_of(second)
    theta = defense.train_theta(first, second, clean_of(context), context)
    assert_same_state(first, before[0])
    assert_same_state(second, before[1])
    middle = {name: (before[0][name] + before[1][name]) / 2 for name in weights(first)}
    assert all(not torch.equal(values, middle[name]) for name, values in weights(theta).items())
    tuned = MCR(ends="single", tuning_updates=3).second_end(first, clean_of(context), context)
    assert_same_state(first, before[0])
    assert not torch.equal(tuned.head.weight, first.head.weight)
    assert all(p.grad is None for p in (*first.parameters(), *second.parameters()))


class Still(SGD):
    """Records every gradient and takes no step."""

    gradients: list[list[Tensor]]

    def step(self, closure: Any = None) -> None:
        values = [p for group in self.param_groups for p in group["params"]]
        self.gradients.append([p.grad.clone() for p in values])


def test_gradients_are_those_at_phi_times_2t_1_minus_t_and_do_not_pile_up(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """theta keeps its initial value, so that every step can be recomputed independently."""
    context, defense = make_context(images), MCR(updates=6, batch_size=20)
    first, second = context.undefended(0), context.undefended(1)
    gradients: list[list[Tensor]] = []

    def sgd(recipe: Recipe, model: nn.Module) -> SGD:
        assert recipe.weight_decay == 0, "the decay acts on phi(t), not on theta"
        optimizer = Still(model.parameters(), lr=recipe.learning_rate)
        optimizer.gradients = gradients
        return optimizer

    monkeypatch.setattr(Recipe, "sgd", sgd)
    defense.train_theta(first, second, clean_of(context), context)
    assert len(gradients) == 6
    draws = iter(torch.rand(6, generator=context.rng("t")).tolist())
    expected: list[list[Tensor]] = []

    def step(batch: Batch) -> None:
        t, network = next(draws), deepcopy(first).train()
        with torch.no_grad():
            for p, q in zip(network.parameters(), second.parameters(), strict=True):
                middle = (p + q) / 2
                p.copy_((1 - t) ** 2 * p + 2 * t * (1 - t) * middle + t**2 * q)
        loss = cross_entropy(network(batch.images), batch.labels)
        for p in network.parameters():
            loss = loss + 0.5 * 0.01 * (p**2).sum()
        loss.backward()
        expected.append([2 * t * (1 - t) * p.grad for p in network.parameters()])

    # Three passes of two batches, as they come from the images and not augmented.
    how = replace(STILL, epochs=3, drops=())
    loop(step, clean_of(context).fit, recipe=how, rng=context.rng("curve"), state={})
    for ours, theirs in zip(gradients, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # Rounding turns a few activations on or off. A sum of two gradients is far away.
            assert float((a - b).norm()) <= 0.05 * float(b.norm())


def test_the_gradient_of_theta_is_the_slope_of_the_loss() -> None:
    """A linear network in double precision, against finite differences."""
    rng = stream(0, "slope")
    network = nn.Linear(5, 3).double()
    w1, theta, w2 = (
        {
            name: torch.randn(p.shape, generator=rng, dtype=torch.float64)
            for name, p in network.named_parameters()
        }
        for _ in range(3)
    )
    x = torch.randn(7, 5, generator=rng, dtype=torch.float64)
    labels = torch.arange(7) % 3

    def loss(t: float, bend: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(network, curve(t, w1, bend, w2), x), labels)

    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        bend = {name: values.clone().requires_grad_() for name, values in theta.items()}
        loss(t, bend).backward()
        for name, values in theta.items():
            for place in range(values.numel()):
                moved = []
                for by in (-1e-6, 1e-6):
                    near = {key: part.clone() for key, part in theta.items()}
                    near[name].view(-1)[place] += by
                    moved.append(float(loss(t, near)))
                slope = (moved[1] - moved[0]) / 2e-6
                gradient = bend[name].grad
                assert gradient is not None
                assert float(gradient.view(-1)[place]) == pytest.approx(slope, abs=1e-7)


def test_a_trained_curve_has_a_lower_loss_than_the_straight_line() -> None:
    """Ten noisy patterns: both ends classify them, but the mean of their weights does not."""
    rng, labels = stream(0, "patterns"), torch.arange(200) % 10
    patterns = torch.randint(0, 256, (10, 3, 16, 16), generator=rng)
    noise = torch.randint(0, 256, (200, 3, 16, 16), generator=rng)
    data = ImageSet(((patterns[labels] + noise) // 2).to(torch.uint8), labels, 10)
    recipe = replace(STILL, epochs=15, batch_size=32, learning_rate=0.1, weight_decay=1e-4)
    context = make_context(data, recipe)
    first, second = (train(context.build(n), data, recipe, context.rng(n)) for n in ("a", "b"))
    defense = MCR(updates=105, learning_rate=0.05, batch_size=32)
    bend = defense.train_theta(first, second, CleanBudget(data, data), context)
    w1, w2, found = weights(first), weights(second), []
    middle = {name: (w1[name] + w2[name]) / 2 for name in w1}
    for theta in (weights(bend), middle):
        network = deepcopy(first)
        with torch.no_grad():
            for name, values in curve(0.5, w1, theta, w2).items():
                network.get_parameter(name).copy_(values)
        reset_statistics(network, data, recipe, context.rng("statistics"))
        found.append(float(cross_entropy(logits(network, data.images), labels)))
    assert found[0] < 0.3 * found[1]


@pytest.mark.parametrize(
    ("ends", "accuracies", "chosen"),
    [
        ("single", {0.1: 0.90, 0.5: 0.89, 0.9: 0.885}, 0.9),
        ("single", {0.1: 0.90, 0.5: 0.89, 0.9: 0.88}, 0.9),
        ("single", {0.1: 0.90, 0.5: 0.89, 0.9: 0.87}, 0.5),
        ("single", {0.1: 0.90, 0.5: 0.80, 0.9: 0.87}, 0.1),
        ("two", {0.1: 0.90, 0.4: 0.89, 0.5: 0.87, 0.6: 0.88}, 0.4),
        ("two", {0.1: 0.90, 0.4: 0.88, 0.5: 0.87, 0.6: 0.89}, 0.6),
        ("two", {0.3: 0.88, 0.7: 0.89, 0.9: 0.90}, 0.7),
        ("two", {0.1: 0.90, 0.5: 0.88, 0.9: 0.95}, 0.9),
        ("two", dict.fromkeys(POINTS, 0.5), 0.5),
    ],
)
def test_the_selected_t_is_the_farthest_good_one(
    ends: str, accuracies: dict[float, float], chosen: float
) -> None:
    assert MCR(ends=ends).select(accuracies) == chosen


@pytest.mark.parametrize("ends", ["single", "two"])
def test_the_network_is_a_point_of_the_curve(ends: str, images: ImageSet) -> None:
    context, defense = make_context(images), MCR(ends=ends, updates=4, tuning_updates=3)
    made = defense.fit(images, context)
    scalars = context.journal.scalars
    accuracies = {t: scalars[f"validation accuracy at t = {t}"] for t in POINTS}
    assert set(scalars) == {*(f"validation accuracy at t = {t}" for t in POINTS), "t"}
    assert scalars["t"] == defense.select(accuracies)

    first, clean = context.undefended(0), clean_of(context)
    second = defense.second_end(first, clean, context)
    theta = weights(defense.train_theta(first, second, clean, context))
    for t, accuracy in accuracies.items():
        network = deepcopy(first)
        with torch.no_grad():
            for name, values in curve(t, weights(first), theta, weights(second)).items():
                network.get_parameter(name).copy_(values)
        reset_statistics(
            network, clean.fit, replace(STILL, batch_size=128), context.rng("statistics")
        )
        found = logits(network, clean.validation.images).argmax(1)
        assert float((found == clean.validation.labels).double().mean()) == accuracy
        if t == scalars["t"]:
            assert_same_state(made, state_of(network))


def test_only_validation_images_select_t(images: ImageSet) -> None:
    """Other validation labels change only t; the training set is not used."""
    context, other = make_context(images), make_context(images)
    fit, held = clean_of(other).fit, clean_of(other).validation
    defense, at = (
        MCR(ends="single", updates=4, tuning_updates=4, tolerance=0.999),
        "validation accuracy at t = 0.9",
    )
    one = defense.fit(images, context)
    predicted = replace(held, labels=logits(one, held.images).argmax(1))
    other = replace(other, clean=CleanBudget(fit, predicted))
    two = defense.fit(images[torch.arange(20)], other)
    assert context.journal.scalars["t"] == other.journal.scalars["t"] == 0.9
    assert context.journal.scalars[at] < other.journal.scalars[at] == 1
    assert_same_state(one, state_of(two))


@pytest.mark.parametrize("ends", ["single", "two"])
def test_it_runs_in_bf16(ends: str, images: ImageSet) -> None:
    context = make_context(images, replace(RECIPE, precision="bf16"))
    defense = MCR(ends=ends, updates=4, tuning_updates=4)
    made = defense.fit(images, context)
    assert made.precision == "bf16"
    assert all(bool(values.isfinite().all()) for values in made.state_dict().values())
    assert made.head.weight.dtype == torch.float32
    plain = defense.fit(images, make_context(images))
    assert not torch.equal(plain.head.weight, made.head.weight)


@pytest.mark.parametrize(("ends", "networks"), [("single", 1), ("two", 2)])
def test_the_cost_equals_the_counted_passes(
    ends: str, networks: int, images: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    defense, context = MCR(ends=ends, updates=5, tuning_updates=3), make_context(images)
    assert defense.undefended == networks
    for n in range(2):
        context.undefended(n)
    own = defense.cost(RECIPE, 1_000) - networks * 3 * RECIPE.epochs
    # 40 images are 4 % of 1,000.
    assert work(lambda: defense.fit(images, context)) == pytest.approx(1000 * own)


def test_its_own_cost_by_hand() -> None:
    """2,000 images are 15 batches of 128 and one of 80, 125 on average; 7,900 updates of them are
    about a fifth of a plain training of 100 epochs."""
    curve_of = 3 * 7_900 * 125 / 50_000
    points = (2_000 * 10 + 500 * 9) / 50_000
    assert MCR().cost(Recipe(), 50_000) == pytest.approx(600 + curve_of + points)
    end = 3 * 1_600 * 125 / 50_000
    single = MCR(ends="single").cost(Recipe(), 50_000)
    assert single == pytest.approx(300 + curve_of + end + points)
    assert curve_of + points <= 0.21 * 300


def test_two_ends_and_no_augmentation_are_the_default() -> None:
    defense, recipe = MCR(), Recipe(cutout=7)
    assert (defense.ends, defense.undefended, defense.augment) == ("two", 2, False)
    assert MCR(ends="single").undefended == 1
    how = defense.schedule(recipe)
    assert (how.padding, how.flip, how.cutout) == (0, False, 0)
    augmented = MCR(augment=True).schedule(recipe)
    assert (augmented.padding, augmented.flip, augmented.cutout) == (4, True, 7)


@pytest.mark.parametrize("ends", ["single", "two"])
@pytest.mark.parametrize("augment", [False, True])
def test_steps_learning_rates_and_augmentation(
    ends: str, augment: bool, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the curve and of a fine-tuned end, although both end within a pass; rates fall at 70 % and
    90 %."""
    context, rates, seen = make_context(images), [], set()
    for n in range(2):
        context.undefended(n)
    step, forward = SGD.step, Classifier.forward

    def watched(self: SGD, *given: Any) -> Any:
        rates.append(float(self.param_groups[0]["lr"]))
        return step(self, *given)

    def seeing(network: Classifier, pixels: Tensor) -> Tensor:
        if network.training and torch.is_grad_enabled():
            whole = (pixels * 255).round().to(torch.uint8).contiguous()
            seen.update(image.numpy().tobytes() for image in whole)
        return forward(network, pixels)

    monkeypatch.setattr(SGD, "step", watched)
    monkeypatch.setattr(Classifier, "forward", seeing)
    MCR(ends=ends, updates=20, tuning_updates=10, batch_size=16, augment=augment).fit(
        images, context
    )
    tuning = [0.01] * 7 + [0.001] * 2 + [0.0001]
    expected = [0.01] * 14 + [0.001] * 4 + [0.0001] * 2
    assert rates == pytest.approx(tuning * (ends == "single") + expected)
    given = {image.numpy().tobytes() for image in clean_of(context).fit.images}
    assert (seen <= given) == (not augment)
    assert augment or seen == given


def test_rates_fall_twice_and_have_the_sum_of_the_codes_rates() -> None:
    how = MCR().schedule(RECIPE)
    rates = [how.decay(update / 7_900) for update in range(7_900)]
    assert rates == pytest.approx([1.0] * 5_530 + [0.1] * 1_580 + [0.01] * 790)
    straight = [min(1.0, max(0.01, 1 - 0.99 * (n / 7_900 - 0.5) / 0.4)) for n in range(7_900)]
    assert sum(rates) == pytest.approx(sum(straight), rel=0.05)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"tuning_updates": 0}, "tuning_updates must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), got 1.0"),
        ({"tolerance": -0.1}, r"tolerance must be in \[0, 1\), got -0.1"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        MCR(**fields)
