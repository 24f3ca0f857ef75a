"""Recorded steps against the same steps as they are, by way of a CUDA graph without a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bdbench.contract.host_graph import HostGraph
from bdbench.contract.scenarios import context, replays
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream
from bdbench.models.training.graphs import by_device, recorded_by
from bdbench.models.training.loop import Batch, logits, loop, train
from bdbench.models.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05, drops=(0.7,))


def network() -> Classifier:
    with global_seed(0, "test"):
        return models.build("wrn16_1").build(10, 32)


@pytest.fixture
def graph() -> Iterator[HostGraph]:
    """What records from now on, after one step of each shape."""
    recorder = HostGraph()
    with recorded_by(lambda device: recorder):
        yield recorder


def equal(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return all(torch.equal(values, second[name]) for name, values in first.items())


def test_a_replayed_training_is_the_training(images: ImageSet, graph: HostGraph) -> None:
    replayed = train(network(), images, RECIPE, stream(0, "x"))
    # 3 epochs of 3 batches of 16 and one of 12: the first of each shape is a rehearsal.
    assert (graph.recorded, graph.replayed) == (2, 10)
    graph.rehearsals = sys.maxsize
    stepped = train(network(), images, RECIPE, stream(0, "x"))
    assert (graph.recorded, graph.replayed) == (2, 10)
    assert equal(replayed, stepped)
    assert not equal(replayed, network())


def test_optimizers_that_may_be_recorded_differ_in_rounding_only(
    images: ImageSet, graph: HostGraph
) -> None:
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


def test_an_observer_hears_of_every_step(images: ImageSet, graph: HostGraph) -> None:
    with observed_by(seen := Seen()):
        train(network(), images, RECIPE, stream(0, "x"))
    assert (seen.forwards, seen.backwards, seen.steps) == (180, 180, 12)
    assert seen.captures == graph.recorded == 2


def test_rates_follow_the_recipe_and_are_numbers_afterwards(
    images: ImageSet, graph: HostGraph
) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        weight.sum().backward()
        optimizer.step()

    recipe = replace(RECIPE, epochs=4, batch_size=60, drops=(0.5,))
    loop(step, images, recipe=recipe, rng=stream(0, "x"), state={"optimizer": optimizer})
    assert graph.replayed == 3
    assert weight.item() == pytest.approx(-(1 + 1 + 0.1 + 0.1))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_two_sets_of_other_lengths_are_drawn_as_ever(images: ImageSet, graph: HostGraph) -> None:
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
    graph.rehearsals = sys.maxsize
    assert replayed == sums()


def test_a_step_that_waits_for_the_device_says_so_once_and_runs_as_it_is(
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


def test_a_recording_that_fails_leaves_no_trace(images: ImageSet, graph: HostGraph) -> None:
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
    graph.rehearsals = sys.maxsize
    assert equal(failed, fit())


@pytest.mark.parametrize("name", ["mcr(ends='two')", "abl(isolation='lga')", "cbd"])
def test_variants_can_be_replayed(name: str, images: ImageSet) -> None:
    defense = defenses.build(name)

    def fit() -> torch.Tensor:
        means = replace(context(images, defense.clean_fraction), recipe=RECIPE)
        return logits(defense.fit(images, means), images.images)

    graph = replays(fit)
    assert graph.replayed >= graph.recorded > 0
