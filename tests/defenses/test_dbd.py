"""DBD against a slow implementation of its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import SGD, Adam

import bdbench.defenses.dbd
import bdbench.defenses.mixmatch
from bdbench.defenses.base import Context
from bdbench.defenses.dbd import DBD, nt_xent, split
from bdbench.defenses.mixmatch import (
    MixMatch,
    augmented,
    draw_rows,
    mix,
    mixmatch_loss,
    sharpen,
    symmetric_cross_entropy,
)
from bdbench.defenses.registry import defenses as registry
from bdbench.machine.devices import has_bf16
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.augment import Augmentation
from bdbench.models.training.loop import logits, loop
from bdbench.models.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=20)
SHORT = DBD(ssl_epochs=100, ssl_batch_size=32, head_epochs=50, semi_epochs=100, semi_batch_size=12)


def make_context(recipe: Recipe = RECIPE, seed: int = 0) -> Context:
    return Context(
        recipe, torch.device("cpu"), partial(models.build("wrn16_1").build, 10, 32), seed
    )


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}


def test_nt_xent_is_the_double_loop_of_simclr() -> None:
    z = torch.randn(10, 6, generator=stream(0, "z"), dtype=torch.float64)
    total = 0.0
    for i in range(10):
        j = (i + 5) % 10

        def similarity(a: int, b: int) -> float:
            return float(z[a] @ z[b] / (z[a].norm() * z[b].norm()))

        others = sum(math.exp(similarity(i, k) / 0.5) for k in range(10) if k != i)
        total += -math.log(math.exp(similarity(i, j) / 0.5) / others)
    assert float(nt_xent(z, 0.5)) == pytest.approx(total / 10)
    assert float(nt_xent(3 * z, 0.5)) == pytest.approx(total / 10), "lengths must not matter"


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_of_identical_views_of_orthogonal_images(temperature: float) -> None:
    z = torch.eye(7).repeat(2, 1)
    expected = math.log(math.exp(1 / temperature) + 12) - 1 / temperature
    assert float(nt_xent(z, temperature)) == pytest.approx(expected, abs=1e-6)


def test_nt_xent_leaves_out_the_pair_of_a_view_with_itself() -> None:
    assert float(nt_xent(torch.ones(10, 4), 0.5)) == pytest.approx(math.log(9))
    z = torch.randn(8, 4, generator=stream(0, "z")).requires_grad_()
    (gradient,) = torch.autograd.grad(nt_xent(z, 0.5), z)
    assert bool(gradient.isfinite().all())


def test_symmetric_cross_entropy_of_a_label() -> None:
    output = 3 * torch.randn(20, 10, generator=stream(0, "logits"))
    labels = torch.arange(20) % 10
    p = output.softmax(1)[range(20), labels]
    expected = 0.1 * -p.log() - math.log(1e-4) * (1 - p)
    torch.testing.assert_close(symmetric_cross_entropy(output, labels, 0.1, 1.0), expected)
    plain = cross_entropy(output, labels, reduction="none")
    torch.testing.assert_close(symmetric_cross_entropy(output, labels, 1.0, 0.0), plain)
    torch.testing.assert_close(DBD().losses(output, labels), expected)


@pytest.mark.parametrize(("count", "alpha"), [(60, 0.5), (61, 0.5), (100, 0.29), (7, 0.99)])
def test_a_split_keeps_exactly_the_lowest(count: int, alpha: float) -> None:
    losses = torch.rand(count, generator=stream(0, "losses"))
    kept, rest = split(losses, alpha)
    assert len(kept) == math.floor(Fraction(str(alpha)) * count)
    assert torch.equal(torch.cat([kept, rest]).sort().values, torch.arange(count))
    assert float(losses[kept].max()) < float(losses[rest].min())


def test_equal_losses_are_split_by_position() -> None:
    kept, rest = split(torch.ones(5), 0.5)
    assert (kept.tolist(), rest.tolist()) == ([0, 1], [2, 3, 4])


@pytest.mark.parametrize("count", [3, 10, 25, 30])
def test_rows_are_drawn_equally_often(count: int) -> None:
    rows = torch.arange(10) * 7
    drawn = draw_rows(rows, count, stream(0, "rows"))
    counts = torch.stack([(drawn == row).sum() for row in rows])
    assert len(drawn) == count == int(counts.sum())
    assert int(counts.max() - counts.min()) <= 1
    assert not torch.equal(drawn[:3], draw_rows(rows, count, stream(1, "rows"))[:3])


def test_sharpening_by_hand() -> None:
    p = torch.tensor([[0.8, 0.2], [0.5, 0.5], [1.0, 0.0]])
    expected = torch.tensor([[0.64 / 0.68, 0.04 / 0.68], [0.5, 0.5], [1.0, 0.0]])
    torch.testing.assert_close(sharpen(p, 0.5), expected)
    torch.testing.assert_close(sharpen(p, 1.0), p)
    many = torch.randn(50, 10, generator=stream(0, "p")).softmax(1)
    torch.testing.assert_close(sharpen(many, 0.5).sum(1), torch.ones(50))
    assert torch.equal(sharpen(many, 0.5).argmax(1), many.argmax(1))
    # Too small powers: the limit, in which ties share.
    assert sharpen(torch.tensor([[0.1] * 10, [0.05] * 8 + [0.3, 0.3]]), 0.001).tolist() == [
        pytest.approx([0.1] * 10),
        [0.0] * 8 + [0.5, 0.5],
    ]


def test_every_image_keeps_at_least_half_of_itself() -> None:
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    images = torch.rand(5, 3, 4, 4, generator=stream(0, "images"))
    targets = torch.eye(5)
    partners = torch.tensor([1, 2, 3, 4, 0])
    mixed, soft = mix(images, targets, shares, partners)
    for n, own in enumerate([1.0, 0.9, 0.5, 0.9, 1.0]):
        other = int(partners[n])
        torch.testing.assert_close(mixed[n], own * images[n] + (1 - own) * images[other])
        torch.testing.assert_close(soft[n], own * targets[n] + (1 - own) * targets[other])
        assert float(soft[n, n]) >= 0.5


def test_mixmatch_is_its_equations_image_by_image() -> None:
    """With a network in eval mode, where images of a batch are independent."""
    network = make_context().build().eval()
    with torch.no_grad():
        network.head.weight.mul_(20)
    b, rng = 5, stream(0, "mixmatch")
    images = torch.rand(3 * b, 3, 32, 32, generator=rng)
    labels = torch.randint(10, (b,), generator=rng)
    shares = torch.rand(3 * b, generator=rng)
    partners = torch.randperm(3 * b, generator=rng)

    with torch.no_grad():
        p = [network(image[None]).softmax(1)[0] for image in images]
    targets = [torch.eye(10)[label] for label in labels]
    for n in range(b):
        mean = (p[b + n] + p[2 * b + n]) / 2
        targets.append(mean**2 / (mean**2).sum())
    targets += targets[b:]
    known = other = 0.0
    for n in range(3 * b):
        share = max(float(shares[n]), 1 - float(shares[n]))
        partner = int(partners[n])
        image = share * images[n] + (1 - share) * images[partner]
        target = share * targets[n] + (1 - share) * targets[partner]
        with torch.no_grad():
            q = network(image[None]).softmax(1)[0]
        if n < b:
            known -= sum(float(target[c]) * math.log(float(q[c])) for c in range(10)) / b
        else:
            other += sum(float(target[c] - q[c]) ** 2 for c in range(10)) / (2 * b * 10)
    weight = torch.tensor(3.0)
    loss = mixmatch_loss(network, images, labels, shares, partners, weight, DBD().sharpening)
    assert other > 1e-4
    assert float(loss.detach()) == pytest.approx(known + 3.0 * other, rel=1e-4)


def test_labels_are_not_read_while_features_are_learned(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[dict[str, Tensor]] = []
    monkeypatch.setattr(DBD, "train_head", lambda self, net, *_: learned.append(state(net)))
    monkeypatch.setattr(DBD, "tune", lambda *_: None)
    start = state(make_context().build())
    for labels in (images.labels, images.labels.roll(7)):
        SHORT.fit(ImageSet(images.images, labels, 10), make_context())
    for name, values in learned[0].items():
        assert torch.equal(values, learned[1][name]), name
        changed = not torch.equal(values, start[name])
        fixed = name.startswith("head.") or name in ("mean", "deviation")
        assert changed != fixed, name


def test_the_head_is_trained_on_an_unchanged_backbone(images: ImageSet) -> None:
    context = make_context()
    network = context.build()
    before = state(network)
    # Gradients left from the training of the features must not change anything.
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    SHORT.train_head(network, Adam(network.parameters(), lr=2e-3), images, context)
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name]) != name.startswith("head."), name
    backbone = [p for name, p in network.named_parameters() if not name.startswith("head.")]
    assert all(p.grad is None and p.requires_grad for p in backbone)


def spy(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[ImageSet, ...], float]]:
    """The sets and the learning rate of every loop that DBD runs."""
    calls: list[tuple[tuple[ImageSet, ...], float]] = []

    def watched(step: Any, *data: ImageSet, **rest: Any) -> None:
        calls.append((data, rest["state"]["optimizer"].param_groups[0]["lr"]))
        loop(step, *data, **rest)

    monkeypatch.setattr(bdbench.defenses.dbd, "loop", watched)
    return calls


def test_every_epoch_has_its_own_split(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, splits, context = spy(monkeypatch), [], make_context()

    def remember(losses: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        splits.append(split(losses, alpha))
        return splits[-1]

    monkeypatch.setattr(bdbench.defenses.dbd, "split", remember)
    monkeypatch.setattr(DBD, "learn_features", lambda *_: None)
    monkeypatch.setattr(DBD, "train_head", lambda *_: None)
    SHORT.fit(images, context)
    assert len(calls) == len(splits) == 2
    place = {image.numpy().tobytes(): n for n, image in enumerate(images.images)}
    for ((labelled, unlabelled), _), (kept, rest) in zip(calls, splits, strict=True):
        assert len(labelled) == len(unlabelled) == 60
        rows = [place[image.numpy().tobytes()] for image in labelled.images]
        assert set(rows) == set(kept.tolist())
        assert torch.equal(labelled.labels, images.labels[rows])
        assert {place[image.numpy().tobytes()] for image in unlabelled.images} == set(rest.tolist())
        assert not bool(unlabelled.labels.any())
    assert not torch.equal(splits[0][0].sort().values, splits[1][0].sort().values)


def test_schedules(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, weights = spy(monkeypatch), []

    def remember(*arguments: Any) -> Tensor:
        weights.append(float(arguments[-2]))
        return mixmatch_loss(*arguments)

    monkeypatch.setattr("bdbench.defenses.mixmatch.mixmatch_loss", remember)
    SHORT.fit(images, make_context())
    assert [rate for _, rate in calls] == pytest.approx([0.1, 0.05, 2e-3, 2e-3, 2e-3])
    # 2 epochs of 5 steps, after one of the head.
    assert weights == pytest.approx([15 * min(1, (1 + n / 5) / 2) for n in range(10)])


@pytest.mark.parametrize("head_epochs", [25, 50, 100])
def test_the_weight_of_guesses_counts_the_epochs_of_the_head(
    head_epochs: int,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1, 2 or 4 epochs of the head before 4 of MixMatch; the weight never exceeds its end value."""
    weights: list[float] = []

    def remember(network: Classifier, *arguments: Any) -> Tensor:
        weights.append(float(arguments[-2]))
        return network(arguments[0]).sum() * 0

    monkeypatch.setattr("bdbench.defenses.mixmatch.mixmatch_loss", remember)
    monkeypatch.setattr(DBD, "learn_features", lambda *_: None)
    monkeypatch.setattr(DBD, "train_head", lambda *_: None)
    context, lambda_u = make_context(replace(RECIPE, epochs=4)), 15.0
    replace(SHORT, head_epochs=head_epochs).fit(images, context)
    head, semi, steps = round(head_epochs / 100 * 4), 4, 5
    assert weights == pytest.approx(
        [lambda_u * min(1.0, (head * steps + n) / (semi * steps)) for n in range(semi * steps)]
    )
    assert weights[0] == pytest.approx(lambda_u * head / semi)
    assert weights[-1] == pytest.approx(lambda_u * min(1.0, (head + semi - 0.2) / semi))


def test_features_are_learned_without_nesterovs_momentum(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the recipe has it: each step of a weight is recomputed from its gradients."""
    assert RECIPE.nesterov
    moves: list[tuple[Tensor, Tensor, float]] = []
    step = SGD.step

    def watched(self: SGD, *given: Any) -> Any:
        group = self.param_groups[0]
        weight = group["params"][0]
        gradient = weight.grad + group["weight_decay"] * weight.detach()
        before = weight.detach().clone()
        outcome = step(self, *given)
        moves.append((gradient, before - weight.detach(), float(group["lr"])))
        return outcome

    monkeypatch.setattr(SGD, "step", watched)
    context = make_context(replace(RECIPE, epochs=3))
    SHORT.learn_features(context.build(), images, context)
    assert len(moves) == 3 * 2
    velocity = torch.zeros_like(moves[0][0])
    for gradient, moved, rate in moves:
        velocity = 0.9 * velocity + gradient
        torch.testing.assert_close(moved, rate * velocity, rtol=1e-3, atol=1e-6)
        nesterovs = rate * (gradient + 0.9 * velocity)
        assert float((moved - nesterovs).norm()) > 0.05 * float(moved.norm())


def test_one_adam_trains_head_and_network(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MixMatch continues with Adam's state of the head; the state of the backbone starts there."""
    used: list[Adam] = []
    step = Adam.step

    def watched(self: Adam, *given: Any) -> Any:
        used.append(self)
        return step(self, *given)

    monkeypatch.setattr(Adam, "step", watched)
    made = SHORT.fit(images, make_context())
    assert len(used) == 3 + 10, "three batches of 20, and two epochs of five steps"
    assert len(set(map(id, used))) == 1
    ages = {name: int(used[0].state[p]["step"]) for name, p in made.named_parameters()}
    assert {age for name, age in ages.items() if name.startswith("head.")} == {13}
    assert {age for name, age in ages.items() if not name.startswith("head.")} == {10}


@pytest.mark.parametrize("augment", ["all", "flip", "nothing"])
def test_a_split_uses_augmented_images(
    augment: str, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, with new draws for every split, as the recipe says."""
    fields = {"all": {}, "flip": {"padding": 0, "cutout": 0}}.get(
        augment, {"padding": 0, "cutout": 0, "flip": False}
    )
    asked: list[Tensor] = []
    losses: list[Tensor] = []

    def remember(network: Classifier, pixels: Tensor) -> Tensor:
        asked.append(pixels.clone())
        return logits(network, pixels)

    def watched(values: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        losses.append(values.clone())
        return split(values, alpha)

    monkeypatch.setattr(bdbench.defenses.dbd, "logits", remember)
    monkeypatch.setattr(bdbench.defenses.dbd, "split", watched)
    monkeypatch.setattr(bdbench.defenses.mixmatch, "CHUNK", 25)
    monkeypatch.setattr(DBD, "learn_features", lambda *_: None)
    monkeypatch.setattr(DBD, "train_head", lambda *_: None)
    SHORT.fit(images, make_context(replace(RECIPE, **fields)))
    assert len(asked) == len(losses) == 2
    pixels = images.images
    for seen in asked:
        assert (seen.dtype, seen.shape) == (torch.uint8, pixels.shape)
        as_is = (seen == pixels).flatten(1).all(1)
        mirrored = (seen == pixels.flip(3)).flatten(1).all(1)
        if augment == "nothing":
            assert bool(as_is.all())
        elif augment == "flip":
            assert bool((as_is | mirrored).all())
            assert 10 < int(mirrored.sum()) < 50
        else:
            assert int(as_is.sum()) < 10
    assert torch.equal(asked[0], asked[1]) == (augment == "nothing")
    # The first split is made by the network as it came, from just these images.
    first = DBD().losses(logits(make_context().build(), asked[0]), images.labels)
    torch.testing.assert_close(losses[0], first)


def test_a_padded_crop_of_a_split_is_one_of_the_image(images: ImageSet) -> None:
    """Every result of `augmented` is one of all crops of its image, by a slow search."""
    few = images[torch.arange(12)]
    how = Augmentation(2, False, 0)
    seen = augmented(few, how, stream(0, "x"))
    offsets = set()
    for n in range(12):
        wide = torch.zeros(3, 20, 20, dtype=torch.uint8)
        wide[:, 2:18, 2:18] = few.images[n]
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(wide[:, y : y + 16, x : x + 16], seen[n])
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 4


@pytest.mark.parametrize("flip", [True, False])
def test_views_are_mirrored_only_where_the_recipe_allows(
    flip: bool, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    plain = bdbench.defenses.dbd.make_views

    def remember(pictures: Tensor, draws: Any) -> Tensor:
        assert set((255 * pictures).round().unique().tolist()) <= set(range(256))
        seen.append(bool(draws.mirrored.any()))
        return plain(pictures, draws)

    monkeypatch.setattr(bdbench.defenses.dbd, "make_views", remember)
    context = make_context(replace(RECIPE, flip=flip, epochs=1))
    SHORT.learn_features(context.build(), images, context)
    assert any(seen) is flip


def test_learning_features_lowers_the_loss() -> None:
    coarse = torch.rand(60, 3, 4, 4, generator=stream(0, "coarse"))
    pixels = (255 * interpolate(coarse, size=32, mode="bilinear")).to(torch.uint8)
    data, last = ImageSet(pixels, torch.zeros(60, dtype=torch.int64), 10), []
    for epochs in (1, 10):
        context = make_context(replace(RECIPE, epochs=epochs))
        replace(SHORT, ssl_learning_rate=0.03).learn_features(context.build(), data, context)
        last.append(context.journal.scalars["last SimCLR loss"])
    assert last[1] < last[0] - 0.05


def test_the_journal_holds_the_last_split(images: ImageSet) -> None:
    context = make_context()
    replace(SHORT, alpha=0.3).fit(images, context)
    assert context.journal.scalars["images kept"] == 18
    assert set(context.journal.scalars) == {"images kept", "last SimCLR loss"}
    fit, kept = context.journal.samples["label fit"], context.journal.samples["kept"]
    assert fit.shape == kept.shape == (60,)
    assert int(kept.sum()) == 18
    assert float(fit[kept == 1].min()) >= float(fit[kept == 0].max())


def test_the_cost_equals_the_counted_passes(
    images: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    recipe = replace(RECIPE, epochs=3)
    for defense in (SHORT, replace(SHORT, ssl_epochs=50, semi_epochs=1, semi_share=0.4)):
        done = work(lambda defense=defense: defense.fit(images, make_context(recipe)))
        assert done / 60 == pytest.approx(defense.cost(recipe, 60))


def test_lengths_are_those_of_the_paper_where_asked_for() -> None:
    recipe = Recipe()
    assert DBD().cost(recipe, 50_000) / 300 == pytest.approx(4.03, abs=0.005)
    paper = registry.build(
        "dbd(ssl_epochs=1000, ssl_batch_size=512, ssl_learning_rate=0.4, semi_epochs=190, "
        "semi_share=1.31072)"
    )
    by_hand = 1000 * 6 + 10 + 190 * (1 + 1024 * 64 * 11 / 50_000)
    assert paper.cost(recipe, 50_000) == pytest.approx(by_hand)
    assert round(1.31072 * 50_000 / 64) == 1024


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_result_depends_on_the_seed_only(precision: str, images: ImageSet) -> None:
    recipe = replace(RECIPE, epochs=1, precision=precision)
    if precision == "bf16" and not has_bf16():
        # Ten times as slow on a CPU without bf16 instructions.
        images = images[torch.arange(20)]
    one, again, other = (SHORT.fit(images, make_context(recipe, seed)) for seed in (0, 0, 1))
    answers = logits(one, images.images)
    assert bool(answers.isfinite().all())
    assert torch.equal(answers, logits(again, images.images))
    assert not torch.equal(answers, logits(other, images.images))
    assert isinstance(one, Classifier)
    assert not one.training


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\)"),
        ({"alpha": 1.0}, r"alpha must be in \(0, 1\)"),
        ({"ssl_epochs": 0}, "ssl_epochs must be at least 1"),
        ({"semi_batch_size": 1}, "semi_batch_size must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"sharpening": 0.0}, "sharpening must be above 0"),
        ({"beta": -1.0}, "beta must be above 0"),
        ({"semi_share": 0.0}, "semi_share must be above 0"),
        ({"lambda_u": -1.0}, "lambda_u must be at least 0"),
        ({"ce_weight": -0.1}, "ce_weight must be at least 0"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        DBD(**fields)


def test_a_split_that_keeps_nothing_is_refused(images: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="of 60 images leaves no image"):
        DBD(alpha=0.01).fit(images, make_context())


def test_both_views_of_an_image_differ(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    plain = bdbench.defenses.dbd.make_views

    def remember(*given: Any) -> Tensor:
        made.append(plain(*given))
        return made[-1]

    monkeypatch.setattr(bdbench.defenses.dbd, "make_views", remember)
    context = make_context()
    SHORT.learn_features(context.build(), images, context)
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert bool((one != other).flatten(1).any(1).all())


def test_mixmatch_sees_two_views_in_training_mode(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def remember(network: Classifier, images: Tensor, *rest: Any) -> Tensor:
        one, other = images[12:].split(12)
        seen.append(bool((one != other).flatten(1).any(1).float().mean() > 0.8))
        assert network.training
        return network(images).sum() * 0

    monkeypatch.setattr("bdbench.defenses.mixmatch.mixmatch_loss", remember)
    monkeypatch.setattr(DBD, "learn_features", lambda *_: None)
    SHORT.fit(images, make_context())
    assert seen == [True] * 10


def test_mixing_coefficients_have_the_moments_of_beta(images: ImageSet) -> None:
    training = MixMatch(
        make_context().build(),
        None,
        make_context(),
        None,  # type: ignore[arg-type]
        steps=200,
        batch_size=10,
        beta=0.3,
        sharpening=0.5,
    )
    rows = torch.arange(60)
    training.draw(images, rows[:30], rows[30:])
    assert float(training.coefficients.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(training.coefficients.var()) == pytest.approx(1 / (4 * 1.6), rel=0.05)
