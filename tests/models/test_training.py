"""The loop, the schedule, and invariants of training."""

from __future__ import annotations

import math
import shutil
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bdbench.cells.cell import recipe_of, recipe_spec
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.feed import BATCH_SOURCES, BatchSource, steps_per_epoch
from bdbench.models.training.loop import (
    Batch,
    logits,
    loop,
    predict,
    sample_losses,
    train,
)
from bdbench.models.training.recipe import Recipe

SHORT = Recipe(epochs=2, batch_size=16, learning_rate=0.05)


def network(seed: int = 0) -> Classifier:
    with global_seed(seed, "test"):
        return models.build("wrn16_1").build(10, 32)


def state(model: Classifier) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def test_every_image_is_seen_once_an_epoch_with_its_own_label(images: ImageSet) -> None:
    seen: list[Batch] = []
    loop(seen.append, images, recipe=SHORT, rng=stream(0, "x"), state={})
    for epoch in (seen[:4], seen[4:]):
        index = torch.cat([batch.index for batch in epoch])
        assert torch.equal(index.sort().values, torch.arange(60))
        labels = torch.cat([batch.labels for batch in epoch])
        assert torch.equal(labels, images.labels[index])
    assert [len(batch.labels) for batch in seen[:4]] == [16, 16, 16, 12]
    assert not torch.equal(seen[0].index, seen[4].index), "the second epoch has its own order"
    assert all(float(b.images.min()) >= 0 and float(b.images.max()) <= 1 for b in seen)


def test_a_last_batch_of_one_image_joins_the_one_before(images: ImageSet) -> None:
    widths: list[int] = []
    part = images[torch.arange(33)]
    loop(
        lambda batch: widths.append(len(batch.labels)),
        part,
        recipe=replace(SHORT, epochs=1),
        rng=stream(0, "x"),
        state={},
    )
    assert widths == [16, 17]
    assert len(widths) == steps_per_epoch(33, 16)


def test_a_second_set_has_its_own_passes(images: ImageSet) -> None:
    pairs: list[tuple[Batch, Batch]] = []
    small = images[torch.arange(20)]
    loop(
        lambda one, two: pairs.append((one, two)),
        images,
        small,
        recipe=SHORT,
        rng=stream(0, "x"),
        state={},
    )
    assert [len(one.labels) for one, _ in pairs] == [16, 16, 16, 12] * 2
    second = torch.cat([two.index for _, two in pairs])
    for start in range(0, len(second) - 19, 20):
        assert torch.equal(second[start : start + 20].sort().values, torch.arange(20))


def test_the_learning_rate_falls_tenfold_at_the_given_shares(images: ImageSet) -> None:
    recipe = Recipe(epochs=10, batch_size=60, learning_rate=0.5, drops=(0.2, 0.7))
    model = network()
    optimizer = recipe.sgd(model)
    slow = torch.optim.Adam(model.parameters(), lr=0.01)
    rates: list[tuple[float, float]] = []
    loop(
        lambda batch: rates.append((optimizer.param_groups[0]["lr"], slow.param_groups[0]["lr"])),
        images,
        recipe=recipe,
        rng=stream(0, "x"),
        state={"optimizer": optimizer, "slow": slow},
    )
    expected = [1.0] * 2 + [0.1] * 5 + [0.01] * 3
    assert [fast for fast, _ in rates] == pytest.approx([0.5 * e for e in expected])
    assert [slow for _, slow in rates] == pytest.approx([0.01 * e for e in expected])
    paper = Recipe()
    assert [paper.decay(e / 100) for e in (0, 19, 20, 69, 70, 99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def rates_of(
    images: ImageSet, recipe: Recipe, optimizers: list[Optimizer], updates: int | None = None
) -> list[list[float]]:
    """The learning rates of all parameter groups at each step of a loop."""
    found: list[list[float]] = []
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    loop(
        lambda batch: found.append([float(group["lr"]) for group in groups]),
        images,
        recipe=recipe,
        rng=stream(0, "x"),
        state={str(n): optimizer for n, optimizer in enumerate(optimizers)},
        updates=updates,
    )
    return found


@pytest.mark.parametrize("drops", [(), (0.001,), (0.2, 0.7), (0.5,), (0.999,), (0.3, 0.3)])
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("batch_size", [60, 30, 6])
def test_the_shortest_recipes_start_at_their_full_rate(
    batch_size: int, epochs: int, drops: tuple[float, ...], images: ImageSet
) -> None:
    """And fall at the first step after such a share of all steps."""
    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=0.5, drops=drops)
    rates = rates_of(images, recipe, [recipe.sgd(network())])
    steps = epochs * 60 // batch_size
    expected = []
    for done in range(steps):
        rate = 0.5
        for drop in drops:
            rate = rate / 10 if Fraction(done, steps) >= Fraction(str(drop)) else rate
        expected.append([rate])
    assert rates[0] == [0.5]
    for found, one in zip(rates, expected, strict=True):
        assert found == pytest.approx(one)


@pytest.mark.parametrize(("epochs", "drop"), [(10, 0.7), (100, 0.29), (30, 0.6), (1_000, 0.057)])
def test_a_drop_at_a_whole_number_of_steps_is_exact(
    epochs: int, drop: float, images: ImageSet
) -> None:
    """Whatever floating point makes of 0.7."""
    recipe = Recipe(epochs=epochs, drops=(drop,))
    fall = next(n for n in range(epochs) if recipe.decay(n / epochs) < 1)
    assert fall == round(drop * epochs)


def optimizers_of(parts: list[nn.Parameter]) -> list[Optimizer]:
    return [
        torch.optim.SGD([{"params": parts[:1], "lr": 0.5}, {"params": parts[1:]}], lr=0.25),
        torch.optim.Adam(parts, lr=0.01),
        torch.optim.AdamW(parts[:1], lr=0.03),
    ]


def test_every_training_with_an_optimizer_starts_at_its_full_rate(images: ImageSet) -> None:
    """In epochs or updates, with several groups and optimizers; drops do not accumulate."""
    optimizers = optimizers_of([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    recipe, start = Recipe(epochs=4, batch_size=60, drops=(0.5,)), [0.5, 0.25, 0.01, 0.03]
    for updates in (None, 4, None):
        rates = rates_of(images, recipe, optimizers, updates)
        assert rates[:2] == [start] * 2
        for found in rates[2:]:
            assert found == pytest.approx([rate / 10 for rate in start])
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        assert [group["lr"] for group in groups] == start, "exactly"


def batches_of(count: int, size: int) -> list[int]:
    """By hand: full batches, and the rest; a rest of one joins the batch before."""
    whole, rest = divmod(count, size)
    if rest == 1 and whole:
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + [rest] * (rest > 0)


@pytest.mark.parametrize("updates", [1, 2, 7, 19, 20, 21, 50])
@pytest.mark.parametrize("count", [2, 15, 16, 17, 33, 60])
def test_the_number_of_updates_does_not_depend_on_the_images(
    count: int, updates: int, images: ImageSet
) -> None:
    """Pass after pass, of which the last ends early; the rate falls at the exact update."""
    recipe = replace(SHORT, learning_rate=0.5, drops=(0.3, 0.9))
    optimizer = recipe.sgd(network())
    seen: list[Batch] = []
    rates: list[float] = []

    def step(batch: Batch) -> None:
        seen.append(batch)
        rates.append(optimizer.param_groups[0]["lr"])

    part = images[torch.arange(count)]
    state = {"optimizer": optimizer}
    loop(step, part, recipe=recipe, rng=stream(0, "x"), state=state, updates=updates)
    a_pass = batches_of(count, 16)
    assert [len(batch.labels) for batch in seen] == (a_pass * updates)[:updates]
    for first in range(0, updates - len(a_pass) + 1, len(a_pass)):
        index = torch.cat([batch.index for batch in seen[first : first + len(a_pass)]])
        assert index.sort().values.tolist() == list(range(count))
    falls = [-(-updates * 3 // 10), -(-updates * 9 // 10)]
    expected = [0.5 / 10 ** sum(n >= fall for fall in falls) for n in range(updates)]
    assert rates == pytest.approx(expected)


def test_updates_in_place_of_epochs_are_the_same_training(images: ImageSet) -> None:
    """If both make the same number of steps, whatever the recipe's epochs."""
    recipe = replace(SHORT, epochs=3, drops=(0.5,))
    by_epochs = train(network(), images, recipe, stream(4, "x"))
    for epochs in (1, 70):
        how = replace(recipe, epochs=epochs)
        by_updates = train(network(), images, how, stream(4, "x"), updates=3 * 4)
        assert same(state(by_epochs), state(by_updates))
    other = train(network(), images, recipe, stream(4, "x"), updates=11)
    assert not same(state(by_epochs), state(other))


def test_two_sets_may_have_different_batch_sizes(images: ImageSet) -> None:
    """A set with fewer images than a batch is one batch."""
    widths: list[tuple[int, int]] = []
    loop(
        lambda one, two: widths.append((len(one.labels), len(two.labels))),
        images,
        images[torch.arange(3)],
        recipe=replace(SHORT, epochs=1),
        rng=stream(0, "x"),
        state={},
        batch_sizes=(25, 8),
    )
    assert widths == [(25, 3), (25, 3), (10, 3)]
    widths.clear()
    loop(
        lambda one, two: widths.append((len(one.labels), len(two.labels))),
        images,
        images[torch.arange(20)],
        recipe=SHORT,
        rng=stream(0, "x"),
        state={},
        updates=5,
        batch_sizes=(25, 8),
    )
    assert widths == [(25, 8), (25, 8), (10, 4), (25, 8), (25, 8)]


def test_updates_are_shortened_by_the_recipe_only() -> None:
    for epochs in (1, 100):
        lengths = [Recipe(epochs, updates=share).shortened(320) for share in (1, 0.3, 0.001, 2)]
        assert lengths == [320, 96, 1, 640]
        context = TrainingContext(Recipe(epochs, updates=0.3), torch.device("cpu"), network, seed=0)
        assert context.updates(7_900) == 2_370


def test_a_still_recipe_augments_nothing(images: ImageSet) -> None:
    recipe = replace(SHORT, learning_rate=0.3, updates=0.7)
    assert recipe.still == replace(recipe, padding=0, flip=False, cutout=0)
    seen: list[Batch] = []
    loop(seen.append, images, recipe=recipe.still, rng=stream(0, "x"), state={})
    for batch in seen:
        whole = (255 * batch.images).round().to(torch.uint8)
        assert torch.equal(whole, images.images[batch.index])


def test_training_equals_a_plain_loop(images: ImageSet) -> None:
    """Against plain torch: the same batches and SGD with Nesterov momentum."""
    batches: list[Batch] = []
    loop(batches.append, images, recipe=SHORT, rng=stream(4, "x"), state={})
    reference = network().train()
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (0.1 if number >= 4 else 1.0)
        optimizer.zero_grad()
        cross_entropy(reference(batch.images), batch.labels).backward()
        optimizer.step()
    recipe = replace(SHORT, drops=(0.5,))
    trained = train(network(), images, recipe, stream(4, "x"))
    assert same(state(reference), state(trained))
    assert not trained.training


def test_the_same_seed_gives_the_same_network_and_another_does_not(images: ImageSet) -> None:
    one, two, other = (train(network(), images, SHORT, stream(seed, "x")) for seed in (0, 0, 1))
    assert same(state(one), state(two))
    assert not same(state(one), state(other))


def test_it_memorises_a_few_images(images: ImageSet) -> None:
    recipe = Recipe(epochs=40, batch_size=20, learning_rate=0.05, padding=0, flip=False, cutout=0)
    model = train(network(), images, recipe, stream(0, "x"))
    assert float((predict(model, images.images) == images.labels).float().mean()) > 0.95


def test_training_does_not_modify_the_data(images: ImageSet) -> None:
    before = images.images.clone(), images.labels.clone()
    train(network(), images, SHORT, stream(0, "x"))
    assert torch.equal(images.images, before[0])
    assert torch.equal(images.labels, before[1])


def test_evaluation_changes_nothing_and_images_are_independent(images: ImageSet) -> None:
    model = network().train()
    before = state(model)
    together = logits(model, images.images)
    assert same(before, state(model))
    assert model.training
    alone = torch.cat([logits(model, images.images[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(together[:5], alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(predict(model, images.images), together.argmax(1))
    expected = [float(cross_entropy(together[n], images.labels[n])) for n in range(60)]
    assert sample_losses(model, images).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_network_may_keep_a_tensor_from_an_evaluation(images: ImageSet) -> None:
    """For its next training."""

    class Keeping(Stub):
        scale: torch.Tensor | None = None

        def body(self, images: torch.Tensor) -> list[torch.Tensor]:
            if self.scale is None:
                self.scale = torch.full_like(images[:1], 0.5)
            return super().body(self.scale * images)

    model = Keeping(network())
    sample_losses(model, images)
    train(model, images, SHORT, stream(0, "x"))


class Stub(Classifier):
    """A network around another one."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__(0.0, 1.0)
        self.inner, self.head = inner, inner.head

    def body(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.inner.body(images)

    def embed(self, last: torch.Tensor) -> torch.Tensor:
        return self.inner.embed(last)


def test_an_observer_is_told_of_every_step_and_epoch(images: ImageSet) -> None:
    heard: list[object] = []

    class Witness(Observer):
        def loop_started(self, rounds: int, images: int, part: tuple[int, int]) -> None:
            heard.append(("start", rounds, images, *part))

        def trained(self, images: int) -> None:
            heard.append(images)

        def round_ended(self, rounds: int) -> None:
            heard.append(("end", rounds))

    with observed_by(Witness()):
        train(network(), images, SHORT, stream(0, "x"))
    epochs = [part for n in (1, 2) for part in (16, 16, 16, 12, ("end", n))]
    assert heard == [("start", 2, 120, 0, 1), *epochs]
    heard.clear()
    with observed_by(Witness()):
        train(network(), images, SHORT, stream(0, "x"), updates=5)
    widths = [16, 16, 16, 12, 16]
    ends = [part for n, width in enumerate(widths) for part in (width, ("end", n + 1))]
    assert heard == [("start", 5, 76, 0, 1), *ends]
    heard.clear()
    with observed_by(Witness()):
        train(network(), images[torch.arange(8)], SHORT, stream(0, "x"), updates=41)
    ends = [part for n in range(13) for part in (8, 8, 8, ("end", n + 1))]
    assert heard == [("start", 14, 328, 0, 1), *ends, 8, 8, ("end", 14)], (
        "at most 20 rounds, of 3 each"
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"drops": (0.2, 1.5)}, "drops must be shares"),
        ({"updates": 0.0}, "updates must be above 0"),
        ({"updates": -0.5}, "updates must be above 0"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"weight_decay": math.inf}, "weight_decay of the recipe must be finite, got inf"),
        ({"learning_rate": math.nan}, "learning_rate of the recipe must be finite, got nan"),
        ({"epochs": 1.5}, "epochs of the recipe must be int, got 1.5"),
        ({"drops": (0.2, math.nan)}, "drops of the recipe must be finite, got nan"),
    ],
)
def test_a_bad_recipe_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        Recipe(**fields)  # type: ignore[arg-type]


def test_without_momentum_the_optimizer_is_plain_sgd() -> None:
    """Although Nesterov momentum is the default, which torch refuses without momentum."""
    assert Recipe(momentum=0.0).sgd(network()).param_groups[0]["nesterov"] is False
    assert Recipe().sgd(network()).param_groups[0]["nesterov"] is True


def test_a_recipe_built_in_python_has_the_spec_of_a_parsed_one() -> None:
    made = Recipe(learning_rate=1, drops=[0.5])  # type: ignore[arg-type]
    assert recipe_spec(made) == recipe_spec(recipe_of("recipe(learning_rate=1.0, drops=(0.5,))"))


def test_a_bad_image_set_is_refused(images: ImageSet) -> None:
    with pytest.raises(InvalidInput, match=r"labels must be in \[0, 9\), got 0..9"):
        ImageSet(images.images, images.labels, 9)
    with pytest.raises(InvalidInput, match="images must be uint8"):
        ImageSet(images.images.float(), images.labels, 10)
    with pytest.raises(InvalidInput, match=r"labels must be int64 \(60,\)"):
        ImageSet(images.images, images.labels[:5], 10)
    with pytest.raises(InvalidInput, match="a training needs images"):
        train(network(), images[torch.arange(0)], SHORT, stream(0, "x"))


def test_the_reference_loader_gives_the_same_batches(images: ImageSet) -> None:
    seen: dict[str, list[tuple[Batch, Batch]]] = {"resident": [], "reference": []}
    small = images[torch.arange(20)]
    for loader, pairs in seen.items():
        recipe = replace(SHORT, loader=loader)
        loop(
            lambda one, two, pairs=pairs: pairs.append((one, two)),
            images,
            small,
            recipe=recipe,
            rng=stream(0, "x"),
            state={},
        )
    assert len(seen["resident"]) == 8
    for ours, theirs in zip(seen["resident"], seen["reference"], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.index, other.index)
            assert one.images.is_contiguous(memory_format=torch.channels_last)
            assert other.images.is_contiguous()


@pytest.mark.parametrize("loader", ["resident", "reference"])
def test_a_batch_source_resumes_in_the_middle_of_a_pass(loader: str, images: ImageSet) -> None:
    def feed() -> BatchSource:
        return BATCH_SOURCES[loader](images, SHORT.augmentation, 16, stream(0, "x"))

    whole, part, resumed = feed(), feed(), feed()
    expected = [whole.take(whole.advance()) for _ in range(4)]
    for _ in range(2):
        part.take(part.advance())
    resumed.load_state_dict(part.state_dict())
    for batch in expected[2:]:
        again = resumed.take(resumed.advance())
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.index, again.index)


def test_the_memory_layout_of_a_network_is_that_of_its_loader(images: ImageSet) -> None:
    builder = partial(models.build("wrn16_1").build, 10, 32)
    weights = {}
    for loader in BATCH_SOURCES:
        recipe = replace(SHORT, loader=loader)
        made = TrainingContext(recipe, torch.device("cpu"), builder, seed=0).build()
        weights[loader] = next(p for p in made.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert torch.equal(*weights.values())
    assert weights["reference"].is_contiguous()
    assert weights["resident"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("fails", [False, True])
def test_an_evaluation_leaves_each_layer_in_its_mode(images: ImageSet, fails: bool) -> None:
    """A defense may train with some layers in eval mode, and be evaluated meanwhile."""
    model = network().train()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms[::2]:
        norm.eval()
    before = [layer.training for layer in model.modules()]
    if fails:
        model.head = nn.Linear(3, 10)
        with pytest.raises(RuntimeError):
            predict(model, images.images)
    else:
        predict(model, images.images)
    assert [layer.training for layer in model.modules()] == before


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"batch_sizes": [0]}, "batch_sizes must be at least 1, got 0"),
        ({"batch_sizes": [-4]}, "batch_sizes must be at least 1, got -4"),
    ],
)
def test_a_length_that_no_training_has_is_refused(
    images: ImageSet, lengths: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        loop(lambda batch: None, images, recipe=SHORT, rng=stream(0, "x"), state={}, **lengths)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_body_differs_in_rounding_only(images: ImageSet) -> None:
    builder = partial(models.build("wrn16_1").build, 10, 32)
    found = []
    for compiled in (False, True):
        recipe = replace(SHORT, epochs=1, learning_rate=0.01, compiled=compiled)
        context = TrainingContext(recipe, torch.device("cpu"), builder, seed=0)
        made = deepcopy(context.build())
        assert made.compiled is compiled
        train(made, images, recipe, context.rng("classifier"))
        found.append(logits(made, images.images))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)
    assert not torch.equal(*found)
