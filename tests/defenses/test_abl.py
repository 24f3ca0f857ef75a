"""ABL: slow implementations of its losses, the isolated images, and the end of the ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import bdbench.defenses.abl
from bdbench.attacks.registry import attacks
from bdbench.datasets.toy import generate
from bdbench.defenses.abl import (
    ABL,
    accuracy,
    bystanders,
    copy_state,
    joint_objective,
    mean_loss,
    sample,
)
from bdbench.defenses.base import Context
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop, sample_losses, train
from bdbench.models.training.recipe import Recipe
from bdbench.trial.evaluation import diagnose

RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05)
STILL = replace(RECIPE, drops=(), padding=0, flip=False, cutout=0)


def make_context(recipe: Recipe = RECIPE, seed: int = 0) -> Context:
    return Context(
        recipe, torch.device("cpu"), partial(models.build("wrn16_1").build, 10, 32), seed
    )


def fitted(images: ImageSet, **fields: float | str) -> tuple[Classifier, Context]:
    """With stage 2 as in the authors' code, unless the fields say so."""
    context = make_context()
    fields = {"objective": "sequential", **fields}
    return ABL(**fields).fit(images, context), context  # type: ignore[arg-type]


def same(one: Classifier, other: Classifier) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def gradient(defense: ABL, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(defense.isolation_loss(logits, labels), logits)[0]


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of 12 images, six of them with a loss below 0.5."""
    logits, labels = torch.randn(12, 5, generator=stream(0, "logits")), torch.arange(12) % 5
    logits[torch.arange(6), labels[:6]] += 5
    logits[torch.arange(6, 12), labels[6:]] -= 1
    below = cross_entropy(logits, labels, reduction="none") < 0.5
    assert below.tolist() == [True] * 6 + [False] * 6
    return logits, labels


def test_local_ascent_turns_the_gradient_of_each_image_below_gamma(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch
    ascent = ABL(isolation="lga")
    found = gradient(ascent, logits, labels)
    total = 0.0
    for n in range(12):
        row = logits[n].clone().requires_grad_()
        loss = -torch.log(torch.exp(row[labels[n]]) / torch.exp(row).sum())
        plain = torch.autograd.grad(loss, row)[0] / 12
        torch.testing.assert_close(found[n], -plain if n < 6 else plain, rtol=1e-4, atol=1e-6)
        total += (-1 if n < 6 else 1) * float(loss.detach()) / 12
    assert float(ascent.isolation_loss(logits, labels)) == pytest.approx(total, rel=1e-5)


def test_flooding_turns_the_gradient_of_a_whole_batch_below_gamma(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch
    for part, sign in ((slice(0, 6), -1), (slice(6, 12), 1), (slice(0, 12), 1)):
        rows = logits[part].clone().requires_grad_()
        mean = cross_entropy(rows, labels[part])
        assert (float(mean.detach()) > 0.5) == (sign > 0)
        plain = torch.autograd.grad(mean, rows)[0]
        found = gradient(ABL(), logits[part], labels[part])
        torch.testing.assert_close(found, sign * plain)
        value = float(ABL().isolation_loss(logits[part], labels[part]))
        assert value == pytest.approx(abs(float(mean.detach()) - 0.5) + 0.5)


@pytest.mark.parametrize("isolation", ["lga", "flooding"])
def test_without_gamma_stage_1_is_plain_training(
    isolation: str, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    plain = gradient(ABL(gamma=0.0, isolation=isolation), *batch)
    logits = batch[0].clone().requires_grad_()
    mean = cross_entropy(logits, batch[1])
    torch.testing.assert_close(plain, torch.autograd.grad(mean, logits)[0])


@pytest.mark.parametrize(
    ("rate", "images", "count"),
    [(0.01, 50_000, 500), (0.01, 39_209, 392), (0.01, 199, 1), (0.01, 60, 1), (0.29, 100, 29)],
)
def test_the_right_number_of_lowest_losses_is_isolated(
    rate: float, images: int, count: int
) -> None:
    losses = torch.rand(images, generator=stream(0, "losses"))
    isolated = ABL(isolation_rate=rate).isolate(losses)
    assert int(isolated.sum()) == count
    assert float(losses[isolated].max()) <= float(losses[~isolated].min())


def test_ties_go_to_the_first_and_nan_is_never_isolated() -> None:
    losses = torch.tensor([math.nan, 1.0, 0.0, 0.0, 1.0, 0.0, math.inf, 2.0])
    assert torch.nonzero(ABL(isolation_rate=0.25).isolate(losses)).flatten().tolist() == [2, 3]
    assert torch.nonzero(ABL(isolation_rate=0.55).isolate(losses)).flatten().tolist() == [
        1,
        2,
        3,
        5,
    ]
    assert torch.nonzero(
        ABL(isolation_rate=0.25).isolate(torch.full((9,), math.nan))
    ).flatten().tolist() == [0, 1]


class Spy:
    """Wraps the trainings of ABL and records their arguments."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: list[tuple[ImageSet, Recipe]] = []
        self.ascended: list[ImageSet] = []
        self.recipes: list[Recipe] = []
        self.batches: list[Batch] = []
        self.modes: list[bool] = []

        def see(model, data, recipe, *rest):  # type: ignore[no-untyped-def]
            self.trained.append((data, recipe))
            return train(model, data, recipe, *rest)

        def follow(step, data, **how):  # type: ignore[no-untyped-def]
            self.ascended.append(data)
            self.recipes.append(how["recipe"])

            def watched(batch: Batch) -> None:
                self.batches.append(batch)
                self.modes.append(how["state"]["network"].training)
                step(batch)

            loop(watched, data, **how)

        monkeypatch.setattr(bdbench.defenses.abl, "train", see)
        monkeypatch.setattr(bdbench.defenses.abl, "loop", follow)


def rows_of(part: ImageSet, whole: ImageSet) -> list[int]:
    """The positions of the images of `part` in `whole`, which has no duplicates."""
    found = (part.images[:, None] == whole.images[None]).flatten(2).all(2)
    assert bool((found.sum(1) == 1).all())
    rows = found.int().argmax(1)
    assert torch.equal(part.labels, whole.labels[rows])
    return rows.tolist()


def test_each_stage_sees_its_own_images(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    _, context = fitted(images, isolation_rate=0.21, drop_limit=1.0, loss_limit=1e9)
    (first, _), (rest, _) = spy.trained
    assert first is images
    isolated = rows_of(spy.ascended[0], images)
    kept = rows_of(rest, images)
    assert len(isolated) == math.floor(0.21 * 60)
    assert sorted(isolated + kept) == list(range(60))
    losses = context.journal.samples["isolation loss"]
    assert losses[isolated].max() <= losses[kept].min()
    assert context.journal.samples["kept"].nonzero().flatten().tolist() == kept
    assert context.journal.scalars["isolated images"] == 12
    assert context.journal.scalars["ascent epochs"] == 5
    assert len(spy.batches) == 5
    for batch in spy.batches:
        assert batch.index.sort().values.tolist() == list(range(12))
        own = images[torch.tensor(isolated)[batch.index]]
        assert torch.equal((batch.images * 255).round().to(torch.uint8), own.images)
        assert torch.equal(batch.labels, own.labels)


def test_each_stage_has_its_recipe(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    short = replace(RECIPE, epochs=5)
    ABL(objective="sequential", unlearning_epochs=1, isolation_rate=0.1).fit(
        images, make_context(short)
    )
    (_, first), (_, late) = spy.trained
    assert first == replace(STILL, epochs=1)
    assert late == replace(short, epochs=3, drops=(2 / 3,))
    assert [late.decay(epoch / 60) for epoch in (0, 39, 40, 59)] == pytest.approx([1, 1, 0.1, 0.1])
    assert spy.recipes == [replace(STILL, epochs=1, learning_rate=5e-4)]
    assert spy.modes == [True]
    frozen = ABL(
        objective="sequential",
        unlearning_epochs=1,
        isolation_rate=0.1,
        augment=True,
        freeze_norm=True,
    )
    frozen.fit(images, make_context(short))
    assert spy.trained[2][1] == replace(short, epochs=1, drops=())
    assert spy.modes == [True, False]
    ABL(objective="sequential", unlearning_epochs=1).fit(images, make_context(short))
    assert spy.modes == [True, False, False], "one image has no batch statistics"


def test_without_ascent_the_rest_is_plain_training(images: ImageSet) -> None:
    context = make_context()
    defense = ABL(unlearning_epochs=0, isolation_rate=1e-6)
    network = train(
        context.build(),
        images,
        replace(STILL, epochs=1),
        context.rng("isolation"),
        defense.isolation_loss,
    )
    losses = sample_losses(network, images)
    rest = images[torch.arange(60) != int(losses.argmin())]
    late = replace(RECIPE, epochs=1, drops=(2 / 3,))
    train(network, rest, late, context.rng("classifier"))
    ours, used = fitted(images, unlearning_epochs=0, isolation_rate=1e-6)
    assert same(ours, network)
    assert torch.equal(used.journal.samples["isolation loss"], losses)
    assert used.journal.scalars["ascent epochs"] == 0
    before, after = (
        used.journal.scalars[f"isolated loss {at} unlearning"] for at in ("before", "after")
    )
    assert before == after


Learned = tuple[ImageSet, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def learned() -> Learned:
    """40 images, and a network that has memorised them."""
    images = generate(40, "train")
    recipe = replace(STILL, epochs=40, batch_size=10, drops=(0.7,))
    network = train(make_context().build(), images, recipe, stream(0, "learned"))
    assert accuracy(network, images) == 1
    return images, copy_state(network)


def parts(learned: Learned) -> tuple[ImageSet, ImageSet]:
    """The images to unlearn, and the rest."""
    return learned[0][torch.arange(8)], learned[0][torch.arange(8, 40)]


def ascended(learned: Learned, **fields: float) -> tuple[Classifier, int]:
    """The network after an ascent, and the number of epochs that were not undone."""
    context = make_context()
    network = context.build()
    network.load_state_dict(learned[1])
    epochs = ABL(**fields).ascend(network.eval(), *parts(learned), context)  # type: ignore[arg-type]
    assert not network.training
    return network, epochs


@pytest.mark.parametrize("freeze_norm", [False, True])
def test_the_ascent_raises_the_isolated_loss_and_may_hold_the_statistics(
    freeze_norm: bool, learned: Learned
) -> None:
    (isolated, _), before, rising = parts(learned), learned[1], []
    for epochs in (0, 1, 3, 5):
        fields = {"unlearning_epochs": epochs, "drop_limit": 1.0, "freeze_norm": freeze_norm}
        network, done = ascended(learned, **fields)
        assert done == epochs
        rising.append(mean_loss(network, isolated))
    assert rising[-1] > rising[0]
    if freeze_norm:
        assert rising == sorted(set(rising))
    buffers = [name for name in before if "running" in name or "num_batches" in name]
    assert len(buffers) > 10
    for name in buffers:
        assert torch.equal(network.state_dict()[name], before[name]) == freeze_norm
    assert not torch.equal(network.head.weight, before["head.weight"])


def test_the_ascent_ends_at_the_largest_loss(learned: Learned) -> None:
    fields = {"unlearning_rate": 0.02, "loss_limit": 2.0, "drop_limit": 1.0}
    isolated, limit = parts(learned)[0], 2 * math.log(10)
    network, epochs = ascended(learned, **fields, unlearning_epochs=50)
    assert 2 <= epochs < 50
    assert mean_loss(network, isolated) > limit
    one_less, _ = ascended(learned, **fields, unlearning_epochs=epochs - 1)
    assert mean_loss(one_less, isolated) <= limit


def test_an_epoch_that_costs_accuracy_is_undone(learned: Learned) -> None:
    fields = {"unlearning_rate": 0.01, "loss_limit": 1e9}
    isolated, rest = parts(learned)
    judges = bystanders(rest, isolated)
    network, epochs = ascended(learned, **fields, unlearning_epochs=100)
    assert 1 <= epochs < 100
    assert accuracy(network, judges) >= 0.95
    as_far, _ = ascended(learned, **fields, unlearning_epochs=epochs)
    assert same(network, as_far)
    further, _ = ascended(learned, **fields, unlearning_epochs=epochs + 1, drop_limit=1.0)
    assert accuracy(further, judges) < 0.95


def test_bystanders_are_the_rest_without_the_commonest_isolated_label(images: ImageSet) -> None:
    isolated = images[torch.tensor([3, 7, 13, 8, 23])]
    rest = images[torch.arange(30, 60)]
    assert sorted(set(bystanders(rest, isolated).labels.tolist())) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    only = images[torch.arange(3, 60, 10)]
    assert bystanders(only, isolated) is only


def test_a_sample_is_random_and_at_most_the_whole_set(images: ImageSet) -> None:
    few = sample(images, 20, stream(0, "judges"))
    assert len(rows_of(few, images)) == len(set(rows_of(few, images))) == 20
    assert rows_of(few, images) != rows_of(sample(images, 20, stream(1, "judges")), images)
    assert sorted(rows_of(sample(images, 100, stream(0, "judges")), images)) == list(range(60))


def test_a_first_epoch_that_costs_accuracy_leaves_the_network_unchanged(learned: Learned) -> None:
    network, epochs = ascended(learned, unlearning_rate=100.0)
    assert epochs == 0
    assert all(torch.equal(network.state_dict()[name], learned[1][name]) for name in learned[1])


@pytest.mark.parametrize("objective", ["joint", "sequential"])
def test_a_training_that_diverges_is_not_an_error(objective: str, images: ImageSet) -> None:
    context = make_context(replace(RECIPE, learning_rate=1e30))
    network = ABL(objective=objective).fit(images, context)
    assert not bool(torch.cat([p.flatten() for p in network.parameters()]).isfinite().all())
    assert math.isnan(context.journal.scalars["isolated loss after unlearning"])
    assert context.journal.scalars.get("ascent epochs") == (
        1 if objective == "sequential" else None
    )


def by_hand(known: list[Tensor], suspect: list[Tensor], classes: int) -> Tensor:
    """Equation 5 of a batch from the losses of its images, one by one."""
    rest = isolated = torch.zeros(())
    for loss in known:
        rest = rest + loss
    for loss in suspect:
        isolated = isolated + (
            loss if float(loss.detach()) <= math.log(classes) else math.log(classes)
        )
    return rest / len(known) - isolated / len(suspect)


def test_the_joint_objective_is_its_formula() -> None:
    """Large losses of isolated images are clamped and give no gradient, unlike the others."""
    logits, labels = 3 * torch.randn(9, 5, generator=stream(0, "logits")), torch.arange(9) % 5
    # Of the three isolated: fitted, a bad one, and a little better than a guess.
    logits[6, labels[6]] += 20
    logits[7, labels[7]] -= 20
    logits[8] = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0])
    # And of the rest a bad one too.
    logits[0, labels[0]] -= 20
    logits.requires_grad_()
    losses = cross_entropy(logits, labels, reduction="none")
    assert (losses[6:] > math.log(5)).tolist() == [False, True, False]
    assert float(losses[0].detach()) > math.log(5)
    found = joint_objective(losses, 6, math.log(5))
    expected = by_hand(list(losses[:6]), list(losses[6:]), 5)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (slope,) = torch.autograd.grad(found, logits, retain_graph=True)
    for n in range(9):
        (plain,) = torch.autograd.grad(losses[n], logits, retain_graph=True)
        share = 1 / 6 if n < 6 else -1 / 3
        share = 0.0 if n == 7 else share
        torch.testing.assert_close(slope[n], share * plain[n])
    assert not slope[7].any()
    assert slope[0].any()


@pytest.mark.parametrize(
    ("batch_size", "share", "sizes"),
    [(20, 0.25, (15, 5)), (16, 0.25, (12, 4)), (8, 0.9, (1, 7)), (10, 0.01, (9, 1))],
)
def test_joint_batches_are_three_quarters_the_rest(
    batch_size: int,
    share: float,
    sizes: tuple[int, int],
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, int]] = []
    parts: list[ImageSet] = []
    recipes: list[Recipe] = []

    def follow(step, *data, **how):  # type: ignore[no-untyped-def]
        parts.extend(data)
        recipes.append(how["recipe"])

        def watched(*batches: Batch) -> None:
            seen.append(tuple(len(batch.labels) for batch in batches))  # type: ignore[arg-type]
            assert how["state"]["network"].training
            step(*batches)

        loop(watched, *data, **how)

    monkeypatch.setattr(bdbench.defenses.abl, "loop", follow)
    context = make_context(replace(RECIPE, epochs=1))
    ABL(isolation_rate=0.4, joint_updates=7, joint_batch_size=batch_size, isolated_share=share).fit(
        images, context
    )
    rest, isolated = parts
    assert (len(rest), len(isolated)) == (36, 24)
    assert set(rows_of(rest, images)).isdisjoint(rows_of(isolated, images))
    assert seen[0] == sizes
    assert len(seen) == 7
    assert {few for _, few in seen} <= {sizes[1], 24 % sizes[1] or sizes[1]}
    assert recipes == [replace(context.recipe, learning_rate=0.01, drops=())]


@pytest.mark.parametrize(("factor", "updates"), [(1.0, 80), (0.5, 40), (0.001, 1)])
def test_a_recipe_shortens_the_joint_unlearning(
    factor: float, updates: int, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it shortens the stages on clean images of other defenses."""
    made: list[object] = []

    def count(*_: object, **how: object) -> None:
        made.append(how["updates"])

    monkeypatch.setattr(bdbench.defenses.abl, "loop", count)
    context = make_context(replace(RECIPE, updates=factor))
    ABL().unlearn(context.build(), images, images, context)
    assert made == [updates]


def test_a_joint_stage_equals_a_slow_implementation_of_equation_5(images: ImageSet) -> None:
    """The unlearning by torch alone, at its own rate, after a descent on the rest."""
    context = make_context(replace(RECIPE, epochs=2))
    settings = {"isolation_rate": 0.1, "joint_updates": 6, "joint_batch_size": 20}
    defense = ABL(**settings)  # type: ignore[arg-type]
    early = replace(STILL, epochs=1)
    network = train(
        context.build(), images, early, context.rng("isolation"), defense.isolation_loss
    )
    order = sample_losses(network, images).argsort(stable=True)
    isolated, rest = images[order[:6].sort().values], images[order[6:].sort().values]
    late = replace(RECIPE, epochs=1, drops=(2 / 3,))
    train(network, rest, late, context.rng("classifier"))
    before = mean_loss(network, isolated)
    pairs: list[tuple[Batch, Batch]] = []
    loop(
        lambda one, two: pairs.append((one, two)),
        rest,
        isolated,
        recipe=RECIPE,
        rng=context.rng("unlearning"),
        state={},
        updates=6,
        batch_sizes=(15, 5),
    )
    # 54 images are 15, 15, 15 and 9, and 6 isolated ones all at once, as one would be left over.
    assert [(len(a.labels), len(b.labels)) for a, b in pairs] == [
        (15, 6),
        (15, 6),
        (15, 6),
        (9, 6),
        (15, 6),
        (15, 6),
    ]
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    network.train()
    for known, suspect in pairs:
        logits = network(torch.cat([known.images, suspect.images]))
        labels = torch.cat([known.labels, suspect.labels])
        losses = [cross_entropy(logits[n], labels[n]) for n in range(len(labels))]
        optimizer.zero_grad()
        by_hand(losses[: len(known.labels)], losses[len(known.labels) :], 10).backward()
        optimizer.step()
    network.eval()
    ours = defense.fit(images, used := make_context(replace(RECIPE, epochs=2)))
    for name, values in network.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-3, atol=1e-4)
    assert not ours.training
    assert used.journal.scalars == {
        "isolated images": 6,
        "isolated loss before unlearning": before,
        "isolated loss after unlearning": mean_loss(ours, isolated),
    }


def test_joint_is_the_default_and_unlearns(learned: Learned) -> None:
    """The network forgets the isolated images up to a guess, and remembers the others."""
    assert ABL().objective == "joint"
    isolated, rest = parts(learned)
    context = make_context(replace(STILL, epochs=15))
    network = context.build()
    network.load_state_dict(learned[1])
    before = mean_loss(network, isolated)
    ABL().unlearn(network.eval(), rest, isolated, context)
    assert not network.training
    assert before < 0.5
    assert mean_loss(network, isolated) > 1.0
    assert accuracy(network, rest) > 0.9


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"joint_updates": 1}, True),
        ({"joint_updates": 0}, False),
        ({"objective": "sequential", "unlearning_epochs": 1}, True),
        ({"objective": "sequential", "unlearning_epochs": 0}, False),
    ],
)
@pytest.mark.parametrize("loss", [1e-6, 2.3, 2.31, math.nan])
def test_what_is_not_unlearned_is_said(
    fields: dict[str, Any],
    asked: bool,
    loss: float,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """log(10) is 2.303. Who asks for no unlearning knows."""
    monkeypatch.setattr(bdbench.defenses.abl, "mean_loss", lambda *_: loss)
    context = make_context()
    ABL(**fields).fit(images, context)
    expected = "the isolated images are not unlearned: their mean loss is below that of a guess"
    assert context.journal.warnings == [expected] * (asked and loss < math.log(10))


def test_poisoned_images_are_isolated() -> None:
    clean = generate(1_000, "train", 16)
    made = attacks.build("badnets(poisoning_rate=0.2)").poison(clean, stream(0, "poison"))
    context = make_context(Recipe(epochs=4, batch_size=32, learning_rate=0.005))
    defense = ABL(isolation_epochs=100, finetuning_epochs=1, joint_updates=1)
    defense.fit(made.train, context)
    found = diagnose(context.journal.samples, made.mask)
    assert context.journal.scalars["isolated images"] == 10
    assert found["kept"]["precision"] > 0.9
    assert found["kept"]["mean_poisoned"] < found["kept"]["mean_clean"]
    assert found["isolation loss"]["auroc"] > 0.9


def test_the_sequential_form_costs_less_than_plain_training() -> None:
    sequential = ABL(objective="sequential")
    for epochs in (9, 30, 100):
        assert sequential.cost(Recipe(epochs=epochs), 50_000) <= 1.1 * 3 * epochs
    plain = 3 * 20 + 1 + 3 * 60 * 0.99
    judged = 6 * 1_000 / 50_000
    assert sequential.cost(Recipe(), 50_000) == pytest.approx(plain + 5 * 3 * 0.01 + judged)
    without = replace(sequential, unlearning_epochs=0)
    assert without.cost(Recipe(), 50_000) == pytest.approx(plain)


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_joint_form_costs_what_it_says(
    epochs: int, images: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    """80 updates of 64 images beside the two descents."""
    plain = 3 * 20 + 1 + 3 * 60 * 0.99
    assert ABL().cost(Recipe(), 50_000) == pytest.approx(plain + 3 * 80 * 64 / 50_000)
    assert ABL(joint_updates=0).cost(Recipe(), 50_000) == pytest.approx(plain)
    recipe = replace(RECIPE, epochs=epochs)
    # All batches are whole: 15 of 45 images, and 5 of 15.
    defense, context = ABL(isolation_rate=0.25, joint_batch_size=20), make_context(recipe)
    done = work(lambda: defense.fit(images, context))
    # What the journal tells of 15 isolated images, before and after, is not counted.
    assert done - 2 * 15 == pytest.approx(60 * defense.cost(recipe, 60), rel=0.01)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"joint_updates": -1}, "joint_updates must be at least 0"),
        ({"joint_rate": 0.0}, "joint_rate must be above 0"),
        ({"joint_batch_size": 1}, "joint_batch_size must be at least 2"),
        ({"isolated_share": 0.0}, "isolated_share must be above 0 and below 1"),
        ({"isolated_share": 1.0}, "isolated_share must be above 0 and below 1"),
        ({"gamma": -0.5}, "gamma must be at least 0"),
        ({"isolation_rate": 0.0}, "isolation_rate must be above 0 and below 1"),
        ({"isolation_rate": 1.0}, "isolation_rate must be above 0 and below 1"),
        ({"isolation_epochs": 0}, "isolation_epochs must be at least 1"),
        ({"finetuning_epochs": 0}, "finetuning_epochs must be at least 1"),
        ({"unlearning_epochs": -1}, "unlearning_epochs must be at least 0"),
        ({"unlearning_rate": 0.0}, "unlearning_rate must be above 0"),
        ({"loss_limit": 0.0}, "loss_limit must be above 0"),
        ({"drop_limit": 1.5}, "drop_limit must be from 0 to 1"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        ABL(**fields)  # type: ignore[arg-type]
