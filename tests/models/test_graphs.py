"""Captured steps against eager ones, with a CUDA graph that needs no GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bdbench.contract import device
from bdbench.contract.host_graph import HostGraph
from bdbench.contract.scenarios import defense_context, replays
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream
from bdbench.models.training import graphs
from bdbench.models.training.feed import Batch
from bdbench.models.training.graphs import Work, by_device, recorded_by
from bdbench.models.training.loop import logits, loop, train
from bdbench.models.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05, drops=(0.7,))


def network() -> Classifier:
    with global_seed(0, "test"):
        return models.build("wrn16_1").build(10, 32)


@pytest.fixture
def graph() -> Iterator[HostGraph]:
    """A recorder that captures a step after one eager step of each shape."""
    recorder = HostGraph()
    with recorded_by(lambda device: recorder):
        yield recorder


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(values, second[name]) for name, values in first.items())


def test_a_replayed_training_is_the_training(images: ImageSet, graph: HostGraph) -> None:
    replayed = train(network(), images, RECIPE, stream(0, "x"))
    # 3 epochs of 3 batches of 16 and one of 12: the first of each shape is a warm-up.
    assert (graph.recorded, graph.replayed) == (2, 10)
    graph.warm_up = sys.maxsize
    stepped = train(network(), images, RECIPE, stream(0, "x"))
    assert (graph.recorded, graph.replayed) == (2, 10)
    assert equal(replayed, stepped)
    assert not equal(replayed, network())


def test_capturable_optimizers_differ_in_rounding_only(images: ImageSet, graph: HostGraph) -> None:
    short = replace(RECIPE, epochs=1)
    replayed = train(network(), images, short, stream(0, "x"))
    with recorded_by(by_device):
        usual = train(network(), images, short, stream(0, "x"))
    for ours, theirs in zip(replayed.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


class Seen(Observer):
    def __init__(self) -> None:
        self.forwards = self.backwards = self.steps = self.captures = 0

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images

    def trained(self, images: int) -> None:
        self.steps += 1

    def capture(self) -> object:  # type: ignore[override]
        self.captures += 1
        return super().capture()


def test_an_observer_is_told_of_every_step(images: ImageSet, graph: HostGraph) -> None:
    with observed_by(seen := Seen()):
        train(network(), images, RECIPE, stream(0, "x"))
    assert (seen.forwards, seen.backwards, seen.steps) == (180, 180, 12)
    assert seen.captures == graph.recorded == 2


def test_rates_follow_the_recipe_and_are_plain_numbers_afterwards(
    images: ImageSet, graph: HostGraph
) -> None:
    """So that a second training with an optimizer moves as far as the first."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()

    recipe = replace(RECIPE, epochs=4, batch_size=60, drops=(0.5,))
    for count, updates in ((1, None), (2, None), (3, 4)):
        state = {"optimizer": optimizer}
        loop(step, images, recipe=recipe, rng=stream(0, "x"), state=state, updates=updates)
        assert graph.replayed == 3 * count
        assert weight.item() == pytest.approx(-count * (1 + 1 + 0.1 + 0.1))
        assert optimizer.param_groups[0]["lr"] == 1.0
        assert isinstance(optimizer.param_groups[0]["lr"], float)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_two_trainings_with_one_optimizer_both_start_at_the_full_rate(
    kind: type[torch.optim.Optimizer], images: ImageSet, graph: HostGraph
) -> None:
    """Replayed and eager steps are equal bit for bit, with the rates computed by hand."""
    how = replace(RECIPE, epochs=4, batch_size=60, drops=(0.25, 0.5))

    def moved() -> list[float]:
        one, two = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        optimizer = kind([{"params": [one], "lr": 0.5}, {"params": [two]}], lr=0.25)  # type: ignore[call-arg]
        slope = torch.tensor([3.0])

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            ((one + two) * slope).sum().backward()
            optimizer.step()

        found = []
        for _ in range(2):
            before = one.item(), two.item()
            loop(step, images, recipe=how, rng=stream(0, "x"), state={"optimizer": optimizer})
            found += [before[0] - one.item(), before[1] - two.item()]
        return found

    replayed = moved()
    assert graph.replayed == 6
    graph.warm_up = sys.maxsize
    assert moved() == replayed
    # With a constant gradient each step has the same size, except for weight decay.
    about = 1e-2 if kind is torch.optim.AdamW else 1e-6
    unit = 3.0 if kind is torch.optim.SGD else 1.0
    for found, rate in zip(replayed, [0.5, 0.25] * 2, strict=True):
        assert found == pytest.approx(unit * rate * (1 + 0.1 + 0.01 + 0.01), rel=about)


def test_a_replayed_training_of_updates_is_that_training(
    images: ImageSet, graph: HostGraph
) -> None:
    """Passes end anywhere in a round, and rates fall between two captures."""
    replayed = train(network(), images, RECIPE, stream(0, "x"), updates=30)
    assert (graph.recorded, graph.replayed) == (2, 28)
    graph.warm_up = sys.maxsize
    assert equal(replayed, train(network(), images, RECIPE, stream(0, "x"), updates=30))


def test_two_sets_of_different_lengths_have_the_same_batches(
    images: ImageSet, graph: HostGraph
) -> None:
    def sums() -> list[float]:
        total = torch.zeros(60)

        def step(one: Batch, two: Batch) -> None:
            total[one.index] += one.images.sum((1, 2, 3)) + two.images.mean() + two.labels.sum()

        small = images[torch.arange(20)]
        loop(step, images, small, recipe=RECIPE, rng=stream(0, "x"), state={"total": total})
        return total.tolist()  # type: ignore[no-any-return]

    replayed = sums()
    # 16 and 16 images at a time, 16 and 4, and 12 and 4.
    assert graph.recorded == 3
    graph.warm_up = sys.maxsize
    assert replayed == sums()


def test_a_step_that_synchronises_warns_once_and_runs_eagerly(
    images: ImageSet, graph: HostGraph
) -> None:
    model = network()
    optimizer = RECIPE.sgd(model)
    losses = []

    def step(batch: Batch) -> None:
        loss = cross_entropy(model(batch.images), batch.labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    state = {"model": model, "optimizer": optimizer}
    with pytest.warns(UserWarning, match="a step runs without a CUDA graph: .*permitted") as said:
        loop(step, images, recipe=RECIPE, rng=stream(0, "x"), state=state)
    assert len(said) == 1
    assert len(losses) == 12
    assert graph.replayed == 0


def test_a_failed_capture_changes_nothing(images: ImageSet, graph: HostGraph) -> None:
    def fit() -> Classifier:
        model = network()
        optimizer = RECIPE.sgd(model)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
            next(model.parameters()).sum().item()

        state = {"model": model, "optimizer": optimizer}
        loop(step, images, recipe=RECIPE, rng=stream(0, "x"), state=state)
        return model

    with pytest.warns(UserWarning, match="without a CUDA graph"):
        failed = fit()
    graph.warm_up = sys.maxsize
    assert equal(failed, fit())


@pytest.mark.parametrize(
    "name",
    [
        "mcr(ends='single')",
        "mcr(augment=True)",
        "abl(isolation='lga')",
        "abl(objective='sequential')",
        "nad(betas='search')",
        "cbd",
    ],
)
def test_variants_can_be_replayed(name: str, images: ImageSet) -> None:
    defense = defenses.build(name)

    def fit() -> torch.Tensor:
        context = defense_context(images, defense.clean_fraction)
        context = replace(context, recipe=replace(RECIPE, updates=0.005))
        return logits(defense.fit(images, context), images.images)

    graph = replays(fit)
    assert graph.replayed >= graph.recorded > 0


def test_a_training_is_captured_only_if_the_recipe_says_so(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with graphs."""
    recorder = HostGraph()
    monkeypatch.setattr(graphs, "by_device", lambda device: recorder)
    eager = train(network(), images, RECIPE, stream(0, "x"))
    assert recorder.recorded == 0
    recorded = train(network(), images, replace(RECIPE, graphs=True), stream(0, "x"))
    assert recorder.recorded == 2
    for ours, theirs in zip(recorded.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_doctor_finds_captured_steps_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(HostGraph):
        def record(self, work: Work) -> Work:
            super().record(work)
            return lambda: None

    monkeypatch.setattr(device, "IMAGES", 64)
    # bf16 takes minutes on a CPU without instructions for it.
    monkeypatch.setattr(device, "LIMITS", {"fp32": device.LIMITS["fp32"]})
    cpu = torch.device("cpu")
    found = list(device.graphs(cpu, lambda chosen, warm_up=1: HostGraph(warm_up)))
    assert [each.what for each in found] == [
        f"{what}, {name}, fp32"
        for name in ("none", "cbd")
        for what in ("graphs", "graphs and plain steps")
    ]
    assert all(each.safe for each in found), found
    assert str(found[0]).startswith("safe, ")
    assert all(each.distance == 0 for each in found[::2]), "on the host, a replay is exact"
    found = list(device.graphs(cpu, lambda chosen, warm_up=1: Forgetful(warm_up)))
    assert not any(each.safe for each in found)
    assert str(found[0]).startswith("NOT SAFE, ")


def test_the_doctor_finds_cells_that_disturb_each_other() -> None:
    one = torch.ones(4)
    assert device.jobs(lambda: one, lambda: [one, one]).safe
    assert not device.jobs(lambda: one, lambda: [one, one + 1e-4]).safe
