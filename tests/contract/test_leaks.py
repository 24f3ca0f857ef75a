"""The arguments of `fit` lead to nothing that a defense must not know.

The search follows attributes, items, slots and bound methods from the arguments, like code that is
merely curious. It does not read closures, frames or the lists of the garbage collector, and guesses
no seed: no library can keep a secret from that in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from bdbench.attacks.base import Attack, Poisoned
from bdbench.cells.cell import cell
from bdbench.datasets.base import Dataset
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Context, Defense
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData

SIZES = "toy(train_images=200, test_images=60, image_size=16)"
RECIPE = Recipe(epochs=1, batch_size=50, learning_rate=0.01)
LEAVES = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, torch.device)
found: list[Any] = []


@dataclass(frozen=True)
class Curious(Defense):
    """Trains nothing and remembers everything it can reach."""

    clean_fraction: ClassVar[float] = 0.2

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        context.watch(network := context.undefended())
        found.extend(reachable([data, context, context.clean, context.undefended, context.rng]))
        return network


def reachable(roots: list[Any]) -> Iterator[Any]:
    """All objects that attributes and items lead to."""
    waiting, seen = list(roots), set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        if not isinstance(thing, (*LEAVES, Tensor)):
            waiting += parts(thing)


def parts(thing: Any) -> list[Any]:
    if isinstance(thing, Mapping):
        return [*thing.keys(), *thing.values()]
    if isinstance(thing, (list, tuple, set, frozenset)):
        return list(thing)
    if isinstance(thing, nn.Module):
        return [*thing.buffers(), *thing.parameters(), *vars(thing).values()]
    if isinstance(thing, MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, FunctionType):
        return [*vars(thing).values(), *(thing.__defaults__ or ())]
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, BuiltinFunctionType):
        return []
    slots = [getattr(thing, name, None) for name in getattr(thing, "__slots__", ())]
    return [*getattr(thing, "__dict__", {}).values(), *slots]


@pytest.fixture
def loot(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> Iterator[tuple[Harness, Any]]:
    """The harness of a cell whose defense searched, and the data that its attack poisoned."""
    monkeypatch.setitem(defenses._factories, "curious", Curious)
    harness = Harness(Cache(cache_folder), [], torch.device("cpu"), curves=True)
    made = cell(SIZES, "wrn16_1", "badnets(target=3)", "curious", RECIPE, seed=0)
    found.clear()
    record = harness.run(made)
    assert record.error is None, record.error
    yield harness, harness.poisoned(made)
    found.clear()


def test_the_search_would_find_a_leak() -> None:
    secret = torch.tensor([True, False])

    class Box:
        def __init__(self) -> None:
            self.inner = {"deep": [(1, secret)]}

        def method(self) -> None:
            pass

    assert any(thing is secret for thing in reachable([Box().method]))


def test_nothing_leads_to_the_attack_or_the_test_set(loot: tuple[Harness, PoisonedData]) -> None:
    harness, poisoned = loot
    kinds = (Attack, Poisoned, PoisonedData, Dataset, Harness, Cache)
    assert len(found) > 20, "the search went nowhere"
    assert not [thing for thing in found if isinstance(thing, kinds)]
    test = harness.dataset(datasets.build(SIZES)).test
    tensors = [thing for thing in found if isinstance(thing, Tensor)]
    assert any(torch.equal(each, poisoned.train.images) for each in tensors)
    for secret in (poisoned.mask, poisoned.cover, poisoned.triggered, test.images, test.labels):
        rows = torch.nonzero(secret).flatten() if secret.dtype == torch.bool else secret
        for each in tensors:
            assert not same(each, secret)
            assert not same(each, rows)


def test_no_string_names_the_attack(loot: tuple[Harness, PoisonedData]) -> None:
    words = [thing for thing in found if isinstance(thing, str)]
    assert not [word for word in words if "badnets" in word or "target" in word]


def test_the_clean_budget_is_of_the_clean_set_and_no_larger_than_declared(
    loot: tuple[Harness, PoisonedData],
) -> None:
    harness, _ = loot
    train = harness.dataset(datasets.build(SIZES)).train
    clean = {image.numpy().tobytes() for image in train.images}
    lent = [thing for thing in found if isinstance(thing, ImageSet)]
    budget = [each for each in lent if len(each) < 200]
    assert len(budget) == 2
    assert sum(map(len, budget)) == pytest.approx(0.2 * 200, abs=10)
    for part in budget:
        assert all(image.numpy().tobytes() in clean for image in part.images)


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
