"""All registered attacks, defenses, models and data sets keep the contract."""

from __future__ import annotations

import ast
import inspect
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from bdbench.attacks.badnets import BadNets
from bdbench.attacks.base import Attack, Poisoned
from bdbench.cli import main
from bdbench.contract import attacks as promised_attacks
from bdbench.contract import promises as contract
from bdbench.contract.promises import REGISTRIES, promises
from bdbench.contract.scenarios import Broken, Untested, defense_context, random_images
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Context
from bdbench.defenses.none import NoDefense
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import fields_of
from bdbench.models.registry import Models, models
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe
from bdbench.models.training.resume import State
from bdbench.trial.clean_budget import clean_budget

ALL = [
    pytest.param(kind, name, each, id=f"{kind} {name}: {each.test.__name__}")
    for kind, registry in REGISTRIES.items()
    for name in registry.names()
    for each in promises(kind)
]


@pytest.mark.parametrize(("kind", "name", "promise"), ALL)
def test_a_plugin_keeps_its_promises(kind: str, name: str, promise: contract.Promise) -> None:
    try:
        promise.test(REGISTRIES[kind], name)
    except Untested as reason:
        # Only these two data sets are on every machine.
        assert kind == "data set"
        assert name not in ("digits", "toy")
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", defenses.names())
def test_the_context_of_a_defense_has_no_forbidden_field(name: str, images: ImageSet) -> None:
    gets = defense_context(images, defenses.build(name).clean_fraction)
    known = set(dir(gets)) | set(dir(images))
    assert not known & {"mask", "poisoned", "trigger", "target", "attack", "test", "triggered"}


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


@pytest.mark.parametrize(("fraction", "least"), [(0.02, 2), (0.02, 3), (0.1, 2), (0.3, 2)])
def test_a_defense_that_asks_for_fewer_clean_images_gets_a_part(
    fraction: float, least: int
) -> None:
    data = random_images(300, 16, 10)

    def lent(fraction: float, least: int) -> set[bytes]:
        budget = clean_budget(data, fraction, 0, least)
        assert budget is not None
        parts = torch.cat([budget.fit.images, budget.validation.images])
        return {image.numpy().tobytes() for image in parts}

    assert lent(fraction, least) < lent(0.5, 2)


FINE = '''"""A defense that trains and does nothing else, nobody, 2026."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from bdbench.defenses import register
from bdbench.defenses.base import Context, Defense
from bdbench.models import Classifier
from bdbench.models.data import ImageSet
from bdbench.models import train


@register("mine")
@dataclass(frozen=True)
class Mine(Defense):
    """
    strength: of nothing
    """

    strength: float = 1.0

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        network = train(context.build(), data, context.recipe, context.rng("classifier"))
        return network
'''


DOCUMENTED = '''    """
    strength: of nothing
    """
'''
TRAINING = 'network = train(context.build(), data, context.recipe, context.rng("classifier"))'


def own_loop(weight: str) -> str:
    """A loop in place of `TRAINING`, with a loss that is multiplied by `weight`."""
    return f"""from bdbench.models import loop
        network, seen = context.build().train(), {{"steps": 0}}
        optimizer = context.recipe.sgd(network)

        def step(batch):
            seen["steps"] += 1
            loss = network(batch.images).square().mean()
            optimizer.zero_grad()
            (loss * {weight}).backward()
            optimizer.step()

        state = {{"network": network, "optimizer": optimizer, "seen": seen}}
        loop(step, data, recipe=context.recipe, rng=context.rng("classifier"), state=state)
        network.eval()"""


CHANCE = "(lambda rng: (rng.seed(), rng)[1])(torch.Generator())"
"""A random stream that does not depend on the seed."""


def checked(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str = "", new: str = ""
) -> tuple[int, str]:
    """The output of `bdbench check` for `FINE` with one change."""
    assert old in FINE
    name = f"mine{abs(hash(new))}"
    path = folder / f"{name}.py"
    path.write_text(FINE.replace(old, new, 1).replace('"mine"', f'"{name}"'))
    code = main(["check", str(path)])
    defenses._factories.pop(name, None)
    return code, capsys.readouterr().out


def test_a_plugin_that_keeps_all_promises_is_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = checked(tmp_path, capsys)
    assert code == 0, said
    assert said.count("  ok ") == len(promises("defense"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("strength: of nothing", "", "its docstring does not explain strength"),
        (DOCUMENTED, "", "its docstring does not explain strength"),
        ("strength: of nothing", "strengths: all", "its docstring does not explain strength"),
        (DOCUMENTED, f"{DOCUMENTED}    version = 'two'\n", "invalid literal for int()"),
        (DOCUMENTED, f"{DOCUMENTED}    version = 0\n", "its version is below 1"),
        ("return network", "torch.set_grad_enabled(False); return network", "from True to False"),
        (
            "return network",
            "torch.set_default_dtype(torch.float64); return network",
            "it leaves torch's dtype changed, from torch.float32 to torch.float64",
        ),
        (
            "return network",
            "torch.set_default_device('meta'); return network",
            "it leaves torch's default device changed, from cpu to meta",
        ),
        (
            "return network",
            "torch.use_deterministic_algorithms(True); return network",
            "it leaves torch's deterministic changed, from False to True",
        ),
        ("return network", "torch.set_num_threads(2); return network", "changed, from 1 to 2"),
        ("return network", "return network.train()", "is in training mode; call eval()"),
        ("return network", "return network.head", "it returned a Linear: fit must return a"),
        ("return network", "pass", "it returned None: fit must return a bdbench.models.Classifier"),
        ("return network", "data.labels.zero_(); return network", "modifies the training set"),
        ("return network", "torch.rand(1); return network", "draws from torch's global generator"),
        (
            "return network",
            "import random; network.head.bias.data += random.random(); return network",
            "draws from Python's global generator",
        ),
        ("return network", "return 1 / 0", "ZeroDivisionError in mine"),
        ('context.rng("classifier")', CHANCE, "the same seed gives different networks"),
        ("nobody, 2026.", "nobody, 2026", "is not a sentence"),
        (TRAINING, own_loop('seen["steps"]'), "replayed steps give another result"),
        (TRAINING, own_loop("(loss.item() > 0)"), "a step must not synchronise with the device"),
    ],
)
def test_a_broken_promise_is_explained(
    old: str, new: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = checked(tmp_path, capsys, old, new)
    assert code == 1
    assert complaint in said, said
    # One mistake breaks one promise.
    assert said.count("BROKEN") == 1, said


def test_check_needs_an_existing_plugin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, complaint in (
        ("badnet", "unknown plugin 'badnet'; did you mean 'badnets'?"),
        ("nowhere/mine.py", "there is no plugin file 'nowhere/mine.py'"),
    ):
        assert main(["check", what]) == 2
        assert complaint in capsys.readouterr().err
    empty = tmp_path / "empty.py"
    empty.write_text('"""Nothing."""\n')
    assert main(["check", str(empty)]) == 2
    assert "registers nothing" in capsys.readouterr().err
    empty.write_text("import nothing_of_that_name\n")
    assert main(["check", str(empty)]) == 2
    assert "failed at line 1: ModuleNotFoundError" in capsys.readouterr().err


class Sloppy(BadNets):
    """Changes a label outside of its mask."""

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        made = super().poison(clean, rng)
        labels = made.train.labels.clone()
        labels[torch.nonzero(~made.mask)[0]] += 1
        return replace(made, train=replace(made.train, labels=labels % clean.num_classes))


class Neighbourly(BadNets):
    """Stamps the first image of a batch on all of them."""

    def trigger(self, images: Tensor) -> Tensor:
        return super().trigger(images[:1]).expand_as(images)


class Random(BadNets):
    """Draws from a global generator when it stamps."""

    def trigger(self, images: Tensor) -> Tensor:
        return super().trigger(images) ^ int(numpy.random.randint(2))


class Shuffling(BadNets):
    """Selects the poisoned images with torch's global generator."""

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return super().poison(clean, torch.Generator().manual_seed(int(torch.randint(9, (1,)))))


class Rewarding(BadNets):
    """Claims to save work."""

    def cost(self, recipe: Recipe, images: int) -> float:
        return -1.0


class Endless(BadNets):
    """Claims that its preparation never ends."""

    def cost(self, recipe: Recipe, images: int) -> float:
        return math.inf


class Forgetful(BadNets):
    """Does not ask how many images there are."""

    def cost(self, recipe: Recipe) -> float:  # type: ignore[override]
        return 0.0


class Demanding(BadNets):
    """Asks for what it does not need."""

    def lacks(self, network: Classifier, image_size: int) -> str:
        return "four stages"


@pytest.mark.parametrize(
    ("attack", "promise", "complaint"),
    [
        (Demanding, promised_attacks.works, "says that wrn16_1 lacks 'four stages', but prepare"),
        (Rewarding, promised_attacks.works, r"must be a finite number of at least 0, got -1\.0"),
        (Endless, promised_attacks.works, "must be a finite number of at least 0, got inf"),
        (Forgetful, promised_attacks.works, r"Forgetful\.cost\(\) takes 2 positional arguments"),
        (Random, promised_attacks.attack_draws, "draws from numpy's global generator"),
        (Shuffling, promised_attacks.attack_draws, "draws from torch's global generator"),
        (Sloppy, promised_attacks.declared_changes, "labels outside the mask were changed"),
        (Neighbourly, promised_attacks.pure_trigger, "depends on other images in its batch"),
    ],
)
def test_check_finds_the_broken_promise_of_an_attack(
    attack: type[Attack], promise: Callable[[Registry[Any], str], None], complaint: str
) -> None:
    registry: Registry[Any] = Registry("attack", "bdbench.attacks")
    registry.register("wrong")(attack)
    with pytest.raises((Broken, InvalidInput), match=complaint):
        promise(registry, "wrong")


def test_a_file_is_checked_that_imports_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unregistered: None
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_imported.py").write_text(FINE.replace('"mine"', '"imported"'))
    own = FINE.replace("import torch\n", "import torch\nfrom my_imported import Mine\n")
    own = own.replace("Mine(Defense)", "Own(Defense)").replace('"mine"', '"own"')
    (tmp_path / "whole.py").write_text("import my_imported\n")
    (tmp_path / "name.py").write_text("from my_imported import Mine as Other\n")
    (tmp_path / "own.py").write_text(own)
    try:
        for name, found in (("whole", "imported"), ("name", "imported"), ("own", "own")):
            assert contract.resolve(str(tmp_path / f"{name}.py")) == [("defense", found)]
    finally:
        sys.modules.pop("my_imported", None)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("(last - last.abs().max() - 1).log()", "its logits are not finite"),
        ("last / (last - last)", "its logits are not finite"),
        ("last.double()", ""),
    ],
)
def test_one_mistake_of_a_model_breaks_one_promise(
    body: str, complaint: str, unregistered: None
) -> None:
    def net(num_classes: int, image_size: int) -> Classifier:
        """A network."""
        network = models.build("wrn16_1").build(num_classes, image_size)
        network.embed = eval(f"lambda last: {body}")
        return network

    REGISTRIES["model"].register("net")(net)
    broken = [str(v.why) for v in contract.check_plugin("model", "net") if v.kept is False]
    assert len(broken) == bool(complaint)
    assert complaint in "".join(broken)


def dropping(classes: int, size: int, drop: bool = True) -> Classifier:
    """A network that draws from torch's generator in training."""
    network = models.build("wrn16_1").build(classes, size)
    network.embed = lambda last: nn.functional.dropout(last, training=network.training or not drop)
    return network


def scattered(classes: int, size: int) -> Classifier:
    """A network whose weights come from numpy's generator, which is seeded too."""
    network = models.build("wrn16_1").build(classes, size)
    network.head.bias.data += numpy.random.rand()
    return network


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (dropping, None),
        (partial(dropping, drop=False), "a forward pass in eval mode draws from torch's global"),
        (scattered, None),
    ],
    ids=["dropout", "dropout in eval mode", "numpy"],
)
def test_check_finds_where_a_model_draws_from_a_global_generator(
    factory: Callable[..., Classifier], complaint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout can only draw from torch's generator, and does so in training only."""

    def net(classes: int, size: int) -> Classifier:
        return factory(classes, size)

    registry = Models("model", "bdbench.models.networks")
    registry.register("net")(net)
    monkeypatch.setitem(models._factories, "net", net)
    promise = next(each for each in promises("model") if each.test.__name__ == "model_draws")
    with nullcontext() if complaint is None else pytest.raises(Broken, match=complaint):
        promise.test(registry, "net")


@pytest.mark.parametrize("named", [True, False])
def test_check_finds_what_a_loop_forgets(named: bool, unregistered: None) -> None:
    """The mean of all labels that a loop has seen shifts the weights."""

    class Shifted(NoDefense):
        def fit(self, data: ImageSet, context: Context) -> Classifier:
            network, total = context.build(), torch.zeros(1)

            def step(batch: Batch) -> None:
                total.add_(batch.labels.float().mean())

            state: State = {"total": total} if named else {}
            loop(step, data, recipe=context.recipe, rng=context.rng("loop"), state=state)
            next(network.parameters()).data.add_(total)
            return network.eval()

    REGISTRIES["defense"].register("shifted")(dataclass(frozen=True)(Shifted))
    promise = next(e for e in promises("defense") if e.test.__name__ == "defense_resumes")
    with nullcontext() if named else pytest.raises(Broken, match="gives another result; name"):
        promise.test(REGISTRIES["defense"], "shifted")


def test_promises_that_need_a_broken_one_are_not_tested(
    monkeypatch: pytest.MonkeyPatch, unregistered: None
) -> None:
    class Lost(BadNets):
        __doc__ = BadNets.__doc__

        def trigger(self, images: Tensor) -> Tensor:
            raise RuntimeError("lost")

    REGISTRIES["attack"].register("lost")(dataclass(frozen=True)(Lost))
    verdicts = {v.promise.test.__name__: v for v in contract.check_plugin("attack", "lost")}
    assert [name for name, each in verdicts.items() if each.kept is False] == ["works"]
    assert "RuntimeError in test_contract.py, line " in str(verdicts["works"].why)
    left = {name for name, each in verdicts.items() if each.kept is None}
    assert left == {
        *("attack_draws", "pure_trigger", "declared_changes"),
        *("attack_cell", "attack_resumes", "attack_replays"),
    }
    assert {verdicts[name].why for name in left} == {
        "not tested until it stamps its trigger and poisons a training set"
    }


ELSEWHERE = {"flip", "sha256"}
"""Of a data set, for the recipe; of a network that a user brings, for the key."""


def names_read(kind: Callable[..., Any]) -> set[str]:
    """Attributes and variables that the files of a plugin and of its base classes read."""
    found: set[str] = set()
    for each in kind.__mro__ if inspect.isclass(kind) else (kind,):
        if each.__module__.startswith("bdbench."):
            for node in ast.walk(ast.parse(Path(inspect.getfile(each)).read_text())):
                read = isinstance(getattr(node, "ctx", None), ast.Load)
                if read and isinstance(node, ast.Attribute | ast.Name):
                    found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return found


@pytest.mark.parametrize("axis", sorted(REGISTRIES))
def test_every_setting_is_read(axis: str) -> None:
    """A sweep over one that is not would draw a flat line."""
    registry = REGISTRIES[axis]
    built_in = [name for name in registry.names() if registry.is_built_in(registry.factory(name))]
    assert built_in
    for name in built_in:
        factory = registry.factory(name)
        assert fields_of(factory).keys() - ELSEWHERE <= names_read(factory), name
