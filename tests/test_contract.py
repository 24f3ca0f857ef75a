"""The contract that every registered attack, defense, model and data set keeps."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from attacks import attacks
from attacks.adaptive import Adaptive
from attacks.base import Attack
from benchmark.datasets import datasets
from benchmark.harness import clean_budget
from defenses import defenses
from defenses.base import Context
from models import models
from models.classifier import Classifier
from models.context import TrainingContext, network_builder
from models.data import ImageSet
from models.registry import Registry
from models.rng import stream
from models.training import Recipe, logits, predict

REGISTRIES: list[Registry[Any]] = [attacks, defenses, models, datasets]
ALL = [(registry, name) for registry in REGISTRIES for name in registry.names()]
RECIPE = Recipe(epochs=1, batch_size=20, learning_rate=0.05)
CPU = torch.device("cpu")


def context(images: ImageSet, clean_fraction: float, seed: int = 0) -> Context:
    training = TrainingContext(RECIPE, CPU, network_builder("wrn16_1", 10, 32), seed)
    return Context(
        **vars(training),
        clean=clean_budget(images, clean_fraction, seed),
        train_undefended=lambda n: replace(training, seed=seed + 100 * n).build().eval(),
    )


@pytest.mark.parametrize(("registry", "name"), ALL, ids=[f"{r.kind} {n}" for r, n in ALL])
def test_a_plugin_documents_itself_and_its_fields(registry: Registry[Any], name: str) -> None:
    factory = registry.factory(name)
    assert registry.canonical(name) == registry.canonical(registry.canonical(name))
    assert registry.label(name) == name
    assert registry.version(name) >= 1
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    assert module.splitlines()[0].rstrip().endswith((".", ":")), "a first line that is a sentence"
    doc = inspect.getdoc(factory) or ""
    for field in inspect.signature(factory).parameters.values():
        if field.default is not inspect.Parameter.empty:
            assert field.name in doc, f"{name} does not say what {field.name} is"


@pytest.mark.parametrize("name", attacks.names())
def test_an_attack_is_frozen_and_its_trigger_pure(name: str, images: ImageSet) -> None:
    attack = attacks.build(name)
    assert is_dataclass(attack)
    first = fields(attack)[0].name
    with pytest.raises(AttributeError):
        setattr(attack, first, 1)
    attack = attack.prepare(images, context(images, 0.0), stream(0, "poison"))
    before = images.images.clone()
    once, again = attack.trigger(images.images), attack.trigger(images.images)
    assert once.dtype == torch.uint8
    assert once.shape == images.images.shape
    assert torch.equal(once, again)
    assert torch.equal(images.images, before), "the trigger wrote its input"
    alone = torch.cat([attack.trigger(images.images[n : n + 1]) for n in range(5)])
    assert torch.equal(once[:5], alone), "an image's trigger depends on its neighbours"


@pytest.mark.parametrize("name", attacks.names())
@pytest.mark.parametrize(("size", "classes"), [(32, 10), (32, 43), (64, 10)])
def test_an_attack_poisons_what_it_says(name: str, size: int, classes: int) -> None:
    attack, rng = attacks.build(name), stream(0, "contract")
    count = 100 if attack.trains else 430
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=rng)
    clean = ImageSet(pixels, torch.arange(count) % classes, classes)
    copy = clean.images.clone(), clean.labels.clone()
    lent = TrainingContext(RECIPE, CPU, network_builder("wrn16_1", classes, size), seed=0)
    attack = attack.prepare(clean, lent, stream(7, "poison"))
    made, again = (attack.poison(clean, stream(7, "poison")) for _ in range(2))
    assert made.mask.dtype == made.cover.dtype == torch.bool
    assert made.mask.shape == made.cover.shape == (count,)
    assert not (made.mask & made.cover).any()
    touched = made.mask | made.cover
    assert torch.equal(made.train.images[~touched], clean.images[~touched])
    assert torch.equal(made.train.labels[~made.mask], clean.labels[~made.mask])
    stamps_alike = type(attack).training_trigger is Attack.training_trigger
    if stamps_alike and not isinstance(attack, Adaptive):
        assert torch.equal(made.train.images[made.mask], attack.trigger(clean.images[made.mask]))
    goal = attack.goal(clean.labels, classes)
    assert torch.equal(made.train.labels[made.mask], goal[made.mask])
    assert torch.equal(made.train.images, again.train.images), "not a function of the seed"
    assert torch.equal(clean.images, copy[0])
    assert torch.equal(clean.labels, copy[1])
    assert bool(made.mask.any()) == (attack.poisoning_rate > 0)


@pytest.mark.parametrize("name", defenses.names())
def test_a_defense_gives_a_classifier_and_changes_nothing(name: str, images: ImageSet) -> None:
    defense = defenses.build(name)
    before = images.images.clone(), images.labels.clone(), repr(defense)
    torch.manual_seed(3)
    follows = torch.rand(1)
    torch.manual_seed(3)
    made = defense.fit(images, context(images, defense.clean_fraction))
    assert torch.equal(torch.rand(1), follows), "drew from the global generator"
    assert isinstance(made, Classifier)
    assert not made.training
    assert logits(made, images.images).shape == (60, 10)
    assert bool(logits(made, images.images).isfinite().all())
    assert torch.equal(images.images, before[0])
    assert torch.equal(images.labels, before[1])
    assert repr(defense) == before[2]
    assert 0 <= defense.clean_fraction < 1
    assert defense.cost(RECIPE) > 0


@pytest.mark.parametrize("name", defenses.names())
def test_a_defense_is_a_function_of_its_seed(name: str, images: ImageSet) -> None:
    defense = defenses.build(name)
    one, two, other = (
        defense.fit(images, context(images, defense.clean_fraction, seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(logits(one, images.images), logits(two, images.images))
    assert not torch.equal(logits(one, images.images), logits(other, images.images))


@pytest.mark.parametrize("name", defenses.names())
def test_nothing_a_defense_gets_names_what_it_must_not_know(name: str, images: ImageSet) -> None:
    lent = context(images, defenses.build(name).clean_fraction)
    known = set(dir(lent)) | set(dir(images))
    assert not known & {"mask", "poisoned", "trigger", "target", "attack", "test", "triggered"}


@pytest.mark.parametrize("name", models.names())
def test_a_model_is_a_classifier_of_any_size(name: str) -> None:
    lent = TrainingContext(RECIPE, CPU, network_builder(name, 7, 48), seed=0)
    one, two = lent.build(), lent.build()
    other = lent.build("other")
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    assert predict(one, images).shape == (3,)
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", datasets.names())
def test_a_data_set_says_beforehand_what_it_is(name: str) -> None:
    source = datasets.build(name)
    assert source.name == name
    assert source.num_classes > 1
    assert source.image_size >= 8
    assert source.count == source.train_size
    assert source.learning_rate > 0
    assert isinstance(source.flip, bool)
    assert datasets.build(f"{name}(train_images=500)").count == 500


def test_signs_are_never_mirrored() -> None:
    assert datasets.build("gtsrb").flip is False
    assert datasets.build("gtsrb").learning_rate == 0.01
    assert datasets.build("cifar10").flip is True


def test_the_clean_budget_is_stratified_disjoint_and_fixed(images: ImageSet) -> None:
    one, two = clean_budget(images, 0.5, 0), clean_budget(images, 0.5, 0)
    assert one is not None
    assert two is not None
    assert torch.equal(one.fit.images, two.fit.images)
    assert one.fit.labels.bincount().tolist() == [2] * 10
    assert one.validation.labels.bincount().tolist() == [1] * 10
    seen = {image.numpy().tobytes() for image in one.fit.images}
    assert not seen & {image.numpy().tobytes() for image in one.validation.images}
    assert clean_budget(images, 0.0, 0) is None
