"""Neural Cleanse: a planted trigger is found and unlearned, and every formula by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.contract.scenarios import defense_context, random_images, resumes
from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.neural_cleanse import (
    Found,
    NeuralCleanse,
    Search,
    anomaly_indices,
    norm,
    stamp,
)
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop, predict
from bdbench.models.training.recipe import Recipe

SIDE, LABELS = 6, 5
BACKDOOR = 3
"""The label of the planted trigger, a white pixel in the last corner."""


class Planted(Classifier):
    """A linear network that calls images with a bright row k k, and with a bright corner 3."""

    def __init__(self, backdoor: float = 9.0) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(3 * SIDE * SIDE, LABELS)
        weight = torch.zeros(LABELS, 3, SIDE, SIDE)
        for label in range(LABELS):
            weight[label, :, label] = 0.5
        weight[BACKDOOR, :, -1, -1] = backdoor / 3
        self.head.weight.data, self.head.bias.data = weight.flatten(1), torch.zeros(LABELS)

    def body(self, images: Tensor) -> list[Tensor]:
        return [images]

    def embed(self, last: Tensor) -> Tensor:
        return last.flatten(1)[:, :, None, None]


def bright_rows(count: int = 60) -> ImageSet:
    """Images with one bright row, that of their label, and a dark last row."""
    rng = stream(0, "rows")
    pixels = torch.randint(0, 60, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)
    labels = torch.arange(count) % LABELS
    pixels[torch.arange(count), :, labels] += 180
    pixels[:, :, -1] = 0
    return ImageSet(pixels, labels, LABELS)


def make_context(
    network: Callable[[], Classifier] = Planted, images: ImageSet | None = None
) -> Context:
    """40 clean images to fit and lengths as published, without augmentation."""
    images = bright_rows() if images is None else images
    context = scenarios.defense_context(images, 0.05)
    clean = CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)])
    made = network().eval()
    return replace(
        context,
        recipe=replace(context.recipe.still, updates=1.0),
        clean=clean,
        train_undefended=lambda n: deepcopy(made),
    )


SHORT = NeuralCleanse(
    updates=240,
    batch_size=20,
    round_updates=2,
    patience=2,
    unlearning_updates=60,
    unlearning_rate=0.3,
)


def triggered(images: ImageSet) -> Tensor:
    """The test images of other labels with the planted trigger."""
    pixels = images.images[images.labels != BACKDOOR].clone()
    pixels[:, :, -1, -1] = 255
    return pixels


def test_the_planted_trigger_is_found_and_unlearned() -> None:
    context, images = make_context(), bright_rows()
    before = context.undefended()
    assert predict(before, images.images).equal(images.labels)
    assert set(predict(before, triggered(images)).tolist()) == {BACKDOOR}

    found = SHORT.find_triggers(before, context.trusted().fit, context)
    assert bool(found.succeeded.all())
    assert int(found.norms.argmin()) == BACKDOOR
    mask, pattern = found.triggers[BACKDOOR, 0], found.triggers[BACKDOOR, 1:]
    assert int(mask.argmax()) == SIDE * SIDE - 1, "the corner"
    assert float(pattern[:, -1, -1].min()) > 0.9, "white"
    assert float(mask[-1, -1]) > 0.5 * float(mask.sum())

    made = SHORT.fit(images, context)
    scalars = context.journal.scalars
    assert scalars["flagged labels"] == 1
    assert scalars["labels without a trigger"] == 0
    assert scalars["largest anomaly index"] == scalars[f"anomaly index of label {BACKDOOR}"] > 2
    assert scalars[f"mask norm of label {BACKDOOR}"] == pytest.approx(float(found.norms.min()))
    assert context.journal.warnings == []
    assert predict(made, images.images).equal(images.labels)
    hit = predict(made, triggered(images)) == BACKDOOR
    assert float(hit.float().mean()) < 0.1
    assert not made.training


def test_without_a_backdoor_the_network_is_unchanged() -> None:
    """Byte for byte, and the journal says why."""
    context = make_context(lambda: Planted(0.0))
    made = replace(SHORT, threshold=100.0).fit(bright_rows(), context)
    assert_close(made.state_dict(), context.undefended().state_dict(), rtol=0, atol=0)
    assert not made.training
    assert all(p.requires_grad for p in made.parameters())
    assert context.journal.scalars["flagged labels"] == 0
    (warning,) = context.journal.warnings
    largest = context.journal.scalars["largest anomaly index"]
    assert 0 < largest <= 100
    assert f"the largest anomaly index is {largest:.2f}, and only one above 100 counts" in warning


def test_the_stamp_is_equation_2_by_hand() -> None:
    """One pixel: (1 - 0.25) * 0.4 + 0.25 * (1, 0, 0.4)."""
    trigger = torch.tensor([0.25, 1.0, 0.0, 0.4]).view(4, 1, 1)
    made = stamp(torch.full((2, 3, 1, 1), 0.4), trigger)
    assert made.flatten(1).tolist() == [pytest.approx([0.55, 0.3, 0.4])] * 2


def test_the_norm_is_that_of_the_mask_alone() -> None:
    triggers = torch.rand(2, 4, 3, 5, generator=stream(0, "norm"))
    slow = [sum(abs(float(m)) for row in each[0] for m in row) for each in triggers]
    assert norm(triggers).tolist() == pytest.approx(slow)


def test_the_anomaly_index_by_hand() -> None:
    """The median is 10 and the deviations are 8, 1, 0, 1 and 2, whose median is 1."""
    made = anomaly_indices(torch.tensor([2.0, 9.0, 10.0, 11.0, 12.0]))
    assert made.tolist() == pytest.approx([v / 1.4826 for v in (8, 1, 0, -1, -2)])
    # An even number: the median is 10, the deviations are 7, 1, 1 and 3, whose median is 2.
    made = anomaly_indices(torch.tensor([3.0, 9.0, 11.0, 13.0]))
    assert made.tolist() == pytest.approx([v / (2 * 1.4826) for v in (7, 1, -1, -3)])


def test_normal_norms_have_indices_of_their_standard_deviations() -> None:
    norms = 50 + 4 * torch.randn(20_001, generator=stream(0, "norms")).double()
    assert float(anomaly_indices(norms).std()) == pytest.approx(1.0, abs=0.02)


def test_degenerate_norms_have_defined_indices() -> None:
    """A deviation of 0: only norms that differ by more than rounding are outliers."""
    assert anomaly_indices(torch.full((5,), 7.0)).tolist() == [0.0] * 5
    assert anomaly_indices(torch.zeros(5)).tolist() == [0.0] * 5
    above = 7.0 + 5e-7
    rounded = anomaly_indices(torch.tensor([7.0, above, above, above, above]))
    assert float(rounded.max()) < 2
    made = anomaly_indices(torch.tensor([7.0, 7.0, 7.0, 5.0, 9.0])).tolist()
    assert made[:3] == [0.0] * 3
    assert made[3] > 1e3
    assert made[4] < -1e3


def test_norms_that_are_not_finite_count_nowhere() -> None:
    odd = torch.tensor([2.0, math.nan, 9.0, 10.0, math.inf, 11.0, 12.0])
    made = anomaly_indices(odd)
    assert made[odd.isfinite()].tolist() == anomaly_indices(odd[odd.isfinite()]).tolist()
    assert bool(made[~odd.isfinite()].isnan().all())
    assert bool(anomaly_indices(torch.full((3,), math.nan)).isnan().all())


def test_a_label_that_no_trigger_reaches_is_not_flagged() -> None:
    context = make_context()
    sizes = torch.tensor([1.0, 9.0, 10.0, 11.0, 12.0])
    for succeeded, expected in ((True, [0]), (False, [])):
        context.journal.warnings.clear()
        reached = torch.tensor([succeeded, True, True, True, True])
        found = Found(torch.zeros(5, 4, SIDE, SIDE), sizes, reached)
        assert SHORT.judge(found, context).tolist() == expected
        assert context.journal.scalars["labels without a trigger"] == 1 - succeeded
        assert len(context.journal.warnings) == (0 if succeeded else 2)
    assert (
        "no trigger turns 99% of the clean images into 1 of 5 labels"
        in (context.journal.warnings[0])
    )


def test_no_success_gives_the_last_triggers() -> None:
    """A label that is never predicted: its trigger, and all others' too, are still defined."""

    class Stubborn(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.head.bias.data[1] = -1e4

    context = make_context(Stubborn)
    short = replace(SHORT, updates=20)
    found = short.find_triggers(context.undefended(), context.trusted().fit, context)
    assert not found.succeeded[1]
    assert bool(found.norms.isfinite().all())
    assert_close(norm(found.triggers), found.norms)


def test_a_network_of_nan_is_returned_unchanged() -> None:
    class Diverged(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight.data.fill_(math.nan)

    context = make_context(Diverged)
    made = replace(SHORT, updates=8).fit(bright_rows(), context)
    assert bool(made.head.weight.isnan().all())
    assert context.journal.scalars["flagged labels"] == 0


def test_updates_equal_a_slow_implementation_of_equation_3() -> None:
    """Each label alone, with Adam, lambda and the mean over the batch written out."""
    context = make_context()
    network, fit = context.undefended(), context.trusted().fit
    method = replace(SHORT, updates=3, batch_size=16, penalty=0.05, round_updates=1, patience=1)
    some = torch.tensor([1, BACKDOOR])
    start = torch.rand(4, SIDE, SIDE, generator=context.rng("start"))
    search = Search(method, some, start, context)
    search.penalty.copy_(torch.tensor([0.05, 0.2]))
    penalties = []

    original = search.record

    def record(*arguments: Tensor) -> None:
        penalties.append(search.penalty.tolist())
        original(*arguments)

    search.record = record  # type: ignore[method-assign, assignment]
    method.search(network.requires_grad_(False), search, fit, context)
    assert penalties[0] != penalties[1], "lambda is that of each update"

    for row, label in enumerate(some.tolist()):
        w = (2 * start - 1).atanh().requires_grad_()
        mean, square, number = torch.zeros_like(w), torch.zeros_like(w), 0

        def step(batch: Batch, row: int = row, label: int = label, w: Tensor = w) -> None:
            nonlocal mean, square, number
            number += 1
            m, delta = (w.tanh()[:1] + 1) / 2, (w.tanh()[1:] + 1) / 2
            loss = penalties[number - 1][row] * m.abs().sum()
            for x in batch.images:
                one = network(((1 - m) * x + m * delta)[None])
                loss = loss + cross_entropy(one, torch.tensor([label])) / len(batch.images)
            (slope,) = torch.autograd.grad(loss, w)
            mean, square = 0.5 * mean + 0.5 * slope, 0.9 * square + 0.1 * slope**2
            unbiased = (square / (1 - 0.9**number)).sqrt() + 1e-8
            with torch.no_grad():
                w -= 0.1 * mean / (1 - 0.5**number) / unbiased

        recipe = replace(context.recipe.still, epochs=1, batch_size=16)
        loop(step, fit, recipe=recipe, rng=context.rng("search"), state={})
        assert_close(search.w[row].detach(), w.detach(), rtol=1e-3, atol=1e-4)


def slow_rule(method: NeuralCleanse, rounds: list[tuple[bool, float]]) -> list[tuple[object, ...]]:
    """Lambda, the smallest mask, idle rounds and the end, for one label, in plain Python."""
    lam, best, idle, streak, raised, lowered, over = 0.0, math.inf, 0, 0, False, False, False
    history: list[tuple[object, ...]] = []
    for success, size in rounds:
        if not over:
            if success and size < best:
                best, idle = size, 0
            elif best < math.inf:
                idle += 1
            streak = max(streak, 0) + 1 if success else min(streak, 0) - 1
            if streak == method.patience:
                raised |= lam > 0
                lam, streak = (lam * method.factor if lam else method.penalty), 0
            elif streak == -method.patience:
                lowered |= lam > 0
                lam, streak = lam / method.factor**1.5, 0
            over = raised and lowered and idle >= method.idle_rounds
        history.append((pytest.approx(lam, rel=1e-5), pytest.approx(best), idle, over))
    return history


def test_lambda_follows_the_slow_rule() -> None:
    """Each of three labels has another history; rounds of three updates of which two thirds hit."""
    context = make_context()
    method = NeuralCleanse(success=0.6, round_updates=3, patience=2, idle_rounds=7, factor=3.0)
    search = Search(method, torch.arange(3), torch.full((4, 2, 2), 0.5), context)
    rng, histories, made = stream(0, "rounds"), [], []
    for _ in range(60):
        success = torch.rand(3, generator=rng) < torch.tensor([0.5, 0.8, 0.3])
        sizes = torch.rand(3, 1, 1, 1, generator=rng)
        triggers = sizes.expand(3, 4, 2, 2)
        # Two of three updates hit all images; in the first, no round would end.
        for hits in (torch.zeros(3, dtype=torch.int64), 10 * success, 10 * success):
            search.record(triggers, hits, 10)
        histories.append(list(zip(success.tolist(), norm(triggers).tolist(), strict=True)))
        now = (search.penalty, search.size, search.idle, search.stopped)
        made.append(list(zip(*(values.tolist() for values in now), strict=True)))
    for label in range(3):
        slow = slow_rule(method, [each[label] for each in histories])
        assert [each[label] for each in made] == slow
    assert bool(search.stopped.any())
    assert bool((search.penalty > 0).all())


def test_a_search_ends_early_when_all_its_labels_are_idle() -> None:
    context = make_context()
    quick = replace(SHORT, updates=4_000, idle_rounds=5)
    network = context.undefended().requires_grad_(False)
    start = torch.rand(4, SIDE, SIDE, generator=context.rng("start"))
    search = Search(quick, torch.arange(LABELS), start, context)
    quick.search(network, search, context.trusted().fit, context)
    assert bool(search.stopped.all())
    assert int(search.updates) < 4_000


def test_more_labels_than_fit_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The groups change nothing but rounding."""
    context, short = make_context(), replace(SHORT, updates=20)
    network, fit = context.undefended(), context.trusted().fit
    one = short.find_triggers(network, fit, context)
    monkeypatch.setattr("bdbench.defenses.neural_cleanse.IMAGES", 40)
    two = short.find_triggers(network, fit, context)
    assert one.triggers.shape == (LABELS, 4, SIDE, SIDE)
    assert_close(one.triggers, two.triggers, rtol=1e-3, atol=1e-4)


def test_unlearning_equals_plain_training_on_stamped_images() -> None:
    """Two triggers share eight of 40 images; all labels are true."""
    context = make_context()
    fit = context.trusted().fit
    triggers = torch.rand(2, 4, SIDE, SIDE, generator=stream(0, "triggers"))
    method = replace(SHORT, unlearning_updates=3, unlearning_batch_size=20, unlearning_rate=0.2)
    ours, slow = context.undefended(), context.undefended()
    method.unlearn(ours, triggers, fit, context)

    order = torch.randperm(40, generator=context.rng("stamped"))[:8].tolist()
    optimizer = torch.optim.SGD(
        slow.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4
    )

    def step(batch: Batch) -> None:
        images = batch.images.clone()
        for row, position in enumerate(batch.index.tolist()):
            if position in order:
                m, delta = triggers[order.index(position) % 2].split([1, 3])
                images[row] = (1 - m) * images[row] + m * delta
        optimizer.zero_grad()
        cross_entropy(slow(images), fit.labels[batch.index]).backward()
        optimizer.step()

    recipe = replace(context.recipe, batch_size=20, drops=())
    loop(step, fit, recipe=recipe, rng=context.rng("unlearning"), state={}, updates=3)
    assert_close(ours.state_dict(), slow.state_dict())
    assert not torch.allclose(ours.head.weight, Planted().head.weight, atol=0.01)


@pytest.mark.parametrize(("labels", "told"), [(8, False), (9, True)])
def test_a_trigger_that_no_image_carries_is_told(labels: int, told: bool) -> None:
    """Eight of 40 images carry one."""
    context = make_context()
    method = replace(SHORT, unlearning_updates=1)
    triggers = torch.rand(labels, 4, SIDE, SIDE, generator=stream(0, "triggers"))
    method.unlearn(context.undefended(), triggers, context.trusted().fit, context)
    said = "9 labels are flagged, but 8 clean images carry a trigger; the triggers of the other "
    assert context.journal.warnings == [f"{said}labels are not unlearned"] * told


def test_only_the_fit_part_is_used_and_nothing_given_is_changed() -> None:
    context, images = make_context(), bright_rows()
    shared = context.undefended()
    before = deepcopy(shared.state_dict())
    lent = replace(context, train_undefended=lambda n: shared)
    one = SHORT.fit(images, lent)
    assert_close(shared.state_dict(), before, rtol=0, atol=0)
    assert all(p.requires_grad and p.grad is None for p in shared.parameters())
    other = replace(context, clean=CleanBudget(context.trusted().fit, images[torch.arange(5)]))
    two = SHORT.fit(images[torch.arange(20)], other)
    assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_cost_equals_the_counted_passes(
    epochs: int, work: Callable[[Callable[[], object]], int]
) -> None:
    """Of the two stages, in a network of ten labels, whatever the recipe's epochs."""
    images = scenarios.random_images(1000, 8, 10)
    context = scenarios.defense_context(images, 0.05)
    context = replace(context, recipe=replace(context.recipe, epochs=epochs, updates=1.0))
    method, fit = NeuralCleanse(updates=2, unlearning_updates=2), context.trusted().fit
    network, triggers = context.undefended(), torch.zeros(1, 4, 8, 8)

    def both() -> None:
        method.find_triggers(network, fit, context)
        method.unlearn(network, triggers, fit, context)

    own = method.cost(context.recipe, len(images)) - 3.0 * epochs
    # Batches of 40 in the search; then of 32 and 8, 20 on average.
    assert own == pytest.approx((3 * 10 * 2 * 40 + 3 * 2 * 20) / 1000)
    assert work(both) == pytest.approx(own * len(images))


def test_it_costs_two_fifths_of_training() -> None:
    """At ten labels: 2,000 images are 8 batches of 250 on average, or 63 of almost 32."""
    own = 3 * (10 * 800 * 250 + 110 * 2_000 / 63) / 50_000
    assert own == pytest.approx(0.4 * 300, abs=2)
    assert NeuralCleanse().cost(Recipe(), 50_000) == pytest.approx(300 + own)


def test_a_suite_shortens_rounds_with_the_search() -> None:
    context = make_context()
    context = replace(context, recipe=replace(context.recipe, updates=0.1))
    search = Search(NeuralCleanse(), torch.arange(2), torch.rand(4, 2, 2), context)
    assert search.round_updates == 1


def test_without_clean_images_the_error_says_so() -> None:
    with pytest.raises(InvalidInput, match="needs clean images, but none are lent"):
        SHORT.fit(bright_rows(), replace(make_context(), clean=None))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("threshold=0.0", "threshold must be above 0, got 0.0"),
        ("success=0.0", "success must be above 0 and at most 1, got 0.0"),
        ("success=1.1", "success must be above 0 and at most 1, got 1.1"),
        ("updates=0", "updates must be at least 1, got 0"),
        ("learning_rate=0.0", "learning_rate must be above 0, got 0.0"),
        ("batch_size=1", "batch_size must be at least 2, got 1"),
        ("unlearning_batch_size=1", "unlearning_batch_size must be at least 2, got 1"),
        ("penalty=0.0", "penalty must be above 0, got 0.0"),
        ("factor=1.0", "factor must be above 1, got 1.0"),
        ("round_updates=0", "round_updates must be at least 1, got 0"),
        ("patience=0", "patience must be at least 1, got 0"),
        ("idle_rounds=0", "idle_rounds must be at least 1, got 0"),
        ("unlearning_updates=0", "unlearning_updates must be at least 1, got 0"),
        ("unlearning_rate=0.0", "unlearning_rate must be above 0, got 0.0"),
        ("stamped=0.0", "stamped must be above 0 and at most 1, got 0.0"),
        ("stamped=2.0", "stamped must be above 0 and at most 1, got 2.0"),
    ],
)
def test_a_bad_setting_is_refused(spec: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        defenses.build(f"neural_cleanse({spec})")


def test_unlearning_of_neural_cleanse_resumes_and_trains_its_norms() -> None:
    flags_all = "neural_cleanse(threshold=0.001, success=0.01, unlearning_updates=4000)"
    assert resumes("badnets", flags_all) > 0
    data = random_images(60, 16, 10)
    context = defense_context(data, 0.5)
    network = context.undefended()
    triggers = torch.zeros(1, 4, 16, 16)
    NeuralCleanse(unlearning_updates=400).unlearn(network, triggers, data, context)
    counts = {int(n.num_batches_tracked) for n in network.modules() if hasattr(n, "running_var")}
    assert counts == {2}
