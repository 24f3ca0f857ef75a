"""ASD: its pools against slow references, its stages on fixed losses, and its meta-split on a tiny
case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import bdbench.defenses.asd
from bdbench.cells.cell import cell
from bdbench.contract.scenarios import resumes
from bdbench.defenses.asd import ASD, lowest_of_each
from bdbench.defenses.base import Context
from bdbench.defenses.mixmatch import MixMatch
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache
from bdbench.trial.clean_budget import clean_budget
from bdbench.trial.harness import Harness

RECIPE = Recipe(epochs=2, batch_size=20)
SHORT = ASD(semi_batch_size=10, semi_share=0.5)
SIDE = 16


@pytest.fixture
def data() -> ImageSet:
    pixels = torch.randint(
        0, 256, (60, 3, SIDE, SIDE), dtype=torch.uint8, generator=stream(0, "asd")
    )
    return ImageSet(pixels, torch.arange(60) % 10, 10)


def make_context(data: ImageSet, recipe: Recipe = RECIPE, seed: int = 0) -> Context:
    builder = partial(models.build("wrn16_1").build, 10, SIDE)
    lent = clean_budget(data, ASD.clean_fraction, seed)
    return Context(recipe, torch.device("cpu"), builder, seed, clean=lent)


@pytest.mark.parametrize("count", [0, 1, 3, 50])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_lowest_of_each_class_are_those_of_a_double_loop(count: int, share: float) -> None:
    losses = torch.rand(57, generator=stream(0, "losses"))
    labels = torch.randint(0, 7, (57,), generator=stream(0, "labels")) * 2
    expected = set()
    for label in range(20):
        members = [n for n in range(57) if int(labels[n]) == label]
        few = min(count, int(share * len(members) + 1e-9))
        expected |= set(sorted(members, key=lambda n: float(losses[n]))[:few])
    chosen = lowest_of_each(losses, labels, count, share)
    assert set(chosen.nonzero().flatten().tolist()) == expected


def test_equal_losses_of_a_class_go_to_its_first_images() -> None:
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    chosen = lowest_of_each(torch.ones(6), labels, 1, 0.5)
    assert chosen.tolist() == [True, True, False, False, False, False]


def watch_pools(
    monkeypatch: pytest.MonkeyPatch, losses: list[Tensor]
) -> list[tuple[list[int], list[int]]]:
    """The positions with and without labels of every epoch, in which nothing is trained and the
    losses are those of the list, in the order in which they are asked for."""
    pools: list[tuple[list[int], list[int]]] = []
    answers = iter(losses)

    def draw(_: MixMatch, everything: ImageSet, labelled: Tensor, rest: Tensor) -> tuple[Any, Any]:
        pools.append((sorted(labelled.tolist()), sorted(rest.tolist())))
        return everything, everything

    monkeypatch.setattr(MixMatch, "draw", draw)
    monkeypatch.setattr(bdbench.defenses.asd, "loop", lambda *_, **__: None)
    monkeypatch.setattr(ASD, "losses", lambda *_: next(answers))
    return pools


def test_the_pool_of_every_stage(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven epochs of stage 1 with growth at 2, 4 and 6, then two of each other stage."""
    defense = ASD(
        first_epochs=70, second_epochs=20, third_epochs=20, growth=1, interval=2, gamma=0.4
    )
    given = [torch.rand(60, generator=stream(n, "losses")) for n in range(13)]
    pools = watch_pools(monkeypatch, given)
    context = make_context(data, replace(RECIPE, epochs=10))
    defense.fit(data, context)
    seeds = list(range(60, 80))
    mean_fall = float((given[11] - given[12]).mean())
    assert context.journal.scalars == {"seeds": 20, "mean fall in the virtual copy": mean_fall}
    assert len(pools) == 11

    def lowest_rows(values: Tensor, rows: list[int], count: int) -> list[int]:
        return sorted(rows, key=lambda n: float(values[n]))[:count]

    expected = []
    for epoch in range(7):
        classes = [list(range(label, 60, 10)) for label in range(10)]
        expected.append([r for c in classes for r in lowest_rows(given[epoch], c, epoch // 2)])
    expected += [lowest_rows(given[epoch], list(range(60)), 30) for epoch in (7, 8)]
    for before, after in ((9, 10), (11, 12)):
        falls = given[before] - given[after]
        expected.append(lowest_rows(falls, list(range(60)), 24))
    for (labelled, rest), rows in zip(pools, expected, strict=True):
        assert labelled == sorted(rows) + seeds
        assert rest == [n for n in range(60) if n not in rows]
    last = context.journal.samples
    assert torch.equal(last["meta-split"], given[12] - given[11])
    assert last["kept"].nonzero().flatten().tolist() == sorted(expected[-1])


def test_a_class_never_joins_as_a_whole(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its share in stage 1 is at most alpha, here 2 of 6 images, however fast the pool grows."""
    given = [torch.rand(60, generator=stream(n, "losses")) for n in range(8)]
    pools = watch_pools(monkeypatch, given)
    fast = ASD(first_epochs=250, growth=100, interval=1, alpha=0.4)
    fast.fit(data, make_context(data))
    sizes = [len(labelled) - 20 for labelled, _ in pools]
    assert sizes == [0, 20, 20, 20, 20, 24, 30]


def test_seeds_keep_their_labels_and_the_rest_has_none(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of the training set are wrong here, those of the seeds are true."""
    sets: list[tuple[ImageSet, ...]] = []

    def watched(step: Any, *given: ImageSet, **rest: Any) -> None:
        sets.append(given)
        loop(step, *given, **rest)

    monkeypatch.setattr(bdbench.defenses.asd, "loop", watched)
    context = make_context(data)
    wrong = ImageSet(data.images, (data.labels + 1) % 10, 10)
    replace(SHORT, first_epochs=1, semi_share=1.5).fit(wrong, context)
    true = {
        image.numpy().tobytes(): int(n) for image, n in zip(data.images, data.labels, strict=True)
    }
    seeds, unlabelled = sets[0]
    lent = context.trusted()
    of_seeds = {i.numpy().tobytes() for part in (lent.fit, lent.validation) for i in part.images}
    assert len(of_seeds) == 20
    assert {image.numpy().tobytes() for image in seeds.images} == of_seeds
    for image, label in zip(seeds.images, seeds.labels, strict=True):
        assert int(label) == true[image.numpy().tobytes()]
    assert not bool(unlabelled.labels.any())
    assert len(seeds) == len(unlabelled) == 90
    assert {image.numpy().tobytes() for image in unlabelled.images} == set(true)


def test_the_virtual_copy_takes_a_step_of_adam_down_the_gradient_of_all_labels(
    data: ImageSet,
) -> None:
    """Its first step moves every weight by the learning rate, against the sign of its gradient."""
    context = make_context(data, replace(RECIPE, batch_size=60).still)
    network, virtual = context.build(), context.build("virtual")
    virtual.load_state_dict(network.state_dict())
    SHORT.learn(virtual, data, context.recipe, stream(0, "order"))
    network.train()
    pixels = data.images.float().div(255).contiguous(memory_format=torch.channels_last)
    cross_entropy(network(pixels), data.labels).backward()
    for one, other in zip(network.parameters(), virtual.parameters(), strict=True):
        assert one.grad is not None
        clear = one.grad.abs() > 0.02 * one.grad.abs().max()
        moved = (other - one).detach()[clear]
        torch.testing.assert_close(moved, -0.015 * one.grad[clear].sign(), rtol=1e-2, atol=1e-6)


def test_the_meta_split_finds_what_is_learned_fast() -> None:
    """A white square with one label, among noise with random labels, which cannot be learned."""
    pixels = torch.randint(
        0, 256, (200, 3, SIDE, SIDE), dtype=torch.uint8, generator=stream(0, "noise")
    )
    labels = torch.randint(0, 10, (200,), generator=stream(0, "labels"))
    pixels[:30, :, :8, :8], labels[:30] = 255, 0
    noise = ImageSet(pixels, labels, 10)
    context = make_context(noise)
    network, virtual = context.build(), context.build("virtual")
    before = {name: values.clone() for name, values in network.state_dict().items()}
    virtual.load_state_dict(network.state_dict())
    defense = ASD(virtual_epochs=3)
    defense.learn(virtual, noise, context.recipe, context.rng("virtual"))
    falls = defense.losses(network, noise) - defense.losses(virtual, noise)
    # The AUROC of the fall.
    assert float((falls[:30, None] > falls[None, 30:]).float().mean()) > 0.9
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_lambda_u_rises_over_all_epochs(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[float] = []

    def remember(network: Classifier, *batch: Tensor) -> Tensor:
        *_, weight, sharpening = batch
        weights.append(float(weight))
        assert sharpening == 0.5
        return network(batch[0]).sum() * 0

    monkeypatch.setattr("bdbench.defenses.mixmatch.mixmatch_loss", remember)
    SHORT.fit(data, make_context(data))
    # 3 epochs of 3 steps.
    assert weights == pytest.approx([15 * n / 9 for n in range(9)])


def test_one_adam_trains_the_network_in_all_stages(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, float]] = []
    step = torch.optim.Adam.step

    def watched(self: torch.optim.Adam, *given: Any) -> Any:
        used.append((id(self), self.param_groups[0]["lr"]))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    SHORT.fit(data, make_context(data))
    rates = [rate for _, rate in used]
    # Two epochs of three steps, three batches of the virtual copy, and three steps.
    assert rates == [2e-3] * 6 + [0.015] * 3 + [2e-3] * 3
    assert len({who for who, rate in used if rate == 2e-3}) == 1


@pytest.mark.parametrize("epochs", [2, 20])
def test_the_cost_equals_the_counted_passes(
    epochs: int, data: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    few = data[torch.arange(20)]
    recipe = replace(RECIPE, epochs=epochs)
    defense = replace(SHORT, first_epochs=5, second_epochs=5, third_epochs=10, virtual_epochs=2)
    done = work(lambda: defense.fit(few, make_context(data, recipe)))
    assert done / 20 == pytest.approx(defense.cost(recipe, 20))


def test_lengths_are_those_of_the_paper_where_asked_for() -> None:
    recipe, epoch = Recipe(), 1 + 1024 * 64 * 11 / 50_000
    paper = defenses.build(
        "asd(first_epochs=60, second_epochs=30, third_epochs=30, semi_share=1.31072)"
    )
    assert paper.steps(50_000) == 1024
    assert paper.lengths(recipe) == (60, 30, 30)
    assert paper.cost(recipe, 50_000) == pytest.approx(120 * epoch + 30 * 4)
    assert paper.cost(recipe, 50_000) / 300 == pytest.approx(6.6, abs=0.05)
    assert ASD().cost(recipe, 50_000) / 300 == pytest.approx(2.6, abs=0.05)


def test_it_resumes_in_every_stage() -> None:
    """Two epochs of stage 1, the second with a larger pool, and one of each other stage."""
    short = "asd(first_epochs=67, growth=1, interval=1, semi_batch_size=10, semi_share=0.3)"
    assert resumes("badnets", short) > 0


def test_a_curve_counts_the_epochs_of_mixmatch_alone(cache_folder: Path) -> None:
    """One epoch of stages 1 and 2 each, and two of stage 3, with a virtual copy."""
    toy = f"toy(train_images=100, test_images=20, image_size={SIDE})"
    short = "asd(third_epochs=100, semi_batch_size=10, semi_share=0.3)"
    made = cell(toy, "wrn16_1", "badnets", short, RECIPE, seed=0)
    record = Harness(Cache(cache_folder), [], torch.device("cpu"), curves=True).run(made)
    assert [point["epoch"] for point in record.curves] == [1, 2, 3, 4]


def test_ten_images_of_every_class_are_lent(data: ImageSet) -> None:
    labels = torch.cat([torch.zeros(6_000), torch.ones(15)]).long()
    pixels = torch.zeros(6_015, 3, 2, 2, dtype=torch.uint8)
    budget = clean_budget(ImageSet(pixels, labels, 2), ASD.clean_fraction, 0, ASD.clean_images)
    assert budget is not None
    # 0.2 % of 6,000 images are more than ten.
    assert (budget.fit.labels.bincount() + budget.validation.labels.bincount()).tolist() == [12, 10]
    said = "class 0 has 6 training images, and clean images to fit and to validate need 10: use"
    with pytest.raises(InvalidInput, match=said):
        clean_budget(data, ASD.clean_fraction, 0, ASD.clean_images)


def test_too_small_a_class_ends_a_run_before_anything_trains(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ASD, "fit", lambda *_: pytest.fail("it trains"))
    small = f"toy(train_images=60, test_images=20, image_size={SIDE})"
    harness = Harness(Cache(cache_folder), [], torch.device("cpu"))
    with pytest.raises(InvalidInput, match=r"need 10: use more --train-images$"):
        harness.run(cell(small, "wrn16_1", "badnets", "asd", RECIPE, seed=0))


def test_it_needs_clean_images(data: ImageSet) -> None:
    with pytest.raises(InvalidInput, match="needs clean images, but none are lent"):
        ASD().fit(data, replace(make_context(data), clean=None))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"first_epochs": 0}, "first_epochs must be at least 1"),
        ({"second_epochs": 0}, "second_epochs must be at least 1"),
        ({"third_epochs": 0}, "third_epochs must be at least 1"),
        ({"virtual_epochs": 0}, "virtual_epochs must be at least 1"),
        ({"growth": 0}, "growth must be at least 1"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"alpha": 1.0}, r"alpha must be in \(0, 1\)"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\)"),
        ({"virtual_rate": 0.0}, "virtual_rate must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"semi_share": 0.0}, "semi_share must be above 0"),
        ({"semi_batch_size": 1}, "semi_batch_size must be at least 2"),
        ({"sharpening": 0.0}, "sharpening must be above 0"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"lambda_u": -1.0}, "lambda_u must be at least 0"),
        ({"ce_weight": -1.0}, "ce_weight must be at least 0"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        ASD(**fields)


def test_the_virtual_copy_starts_from_the_network(
    data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[dict[str, Tensor]] = []
    starts: list[bool] = []
    losses, learn = ASD.losses, ASD.learn

    def remember(self: ASD, network: Classifier, images: ImageSet) -> Tensor:
        judged.append({name: values.clone() for name, values in network.state_dict().items()})
        return losses(self, network, images)

    def watched(self: ASD, virtual: Classifier, *rest: Any) -> None:
        state = virtual.state_dict()
        starts.append(all(torch.equal(values, state[n]) for n, values in judged[-1].items()))
        learn(self, virtual, *rest)

    monkeypatch.setattr(ASD, "losses", remember)
    monkeypatch.setattr(ASD, "learn", watched)
    context = make_context(data)
    ASD(third_epochs=100, semi_batch_size=10, semi_share=0.3).fit(data, context)
    assert starts == [True, True]
