"""What every attack, defense, model and data set promises, as checks that say what is broken.

`bdbench check` runs them on a plugin, and the tests on everything that is registered.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import cell
from bdbench.contract.host_graph import HostGraph
from bdbench.datasets.registry import datasets
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.models.plugins.registry import Registry, load_file
from bdbench.models.plugins.spec import did_you_mean
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext, network_builder
from bdbench.models.training.graphs import recorded_by
from bdbench.models.training.loop import Recipe, logits, predict
from bdbench.records.record import Record, decode, encode
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness, clean_budget

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (attacks, defenses, models, datasets)
}
RECIPE = Recipe(epochs=1, batch_size=20, learning_rate=0.05)
CPU = torch.device("cpu")
SIDE = 16
"""Pixels of an image where any size will do."""


class Broken(Exception):
    """A promise that is not kept; the message says how, as a sentence about the plugin."""


@dataclass(frozen=True)
class Promise:
    """A check of one kind of plugin.

    kind: attack, defense, model, data set, or "" for all
    sentence: what is promised
    test: called with the kind's registry and a name; raises `Broken`
    """

    kind: str
    sentence: str
    test: Callable[[Registry[Any], str], None]


PROMISES: list[Promise] = []


def promise(kind: str, sentence: str) -> Callable[[Any], Any]:
    """Decorator: the function checks this."""

    def remember(test: Callable[[Registry[Any], str], None]) -> Any:
        PROMISES.append(Promise(kind, sentence, test))
        return test

    return remember


def found(what: str) -> list[tuple[str, str]]:
    """Kind and name of every plugin of that name, or that a file registers. Raises `InvalidInput`.

    A file is what ends in .py or has a folder before it; it is imported.
    """
    path = Path(what)
    if path.suffix == ".py" or len(path.parts) > 1:
        load_file(path)
        made = [
            (kind, name)
            for kind, registry in REGISTRIES.items()
            for name in registry.names()
            if Path(inspect.getfile(registry.factory(name))).resolve() == path.resolve()
        ]
        check(bool(made), f"plugin {what!r} registers nothing")
        return made
    for registry in REGISTRIES.values():
        if what in registry.broken:
            registry.factory(what)
    known = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
    names = dict.fromkeys(name for _, name in known)
    check(what in names, f"nothing is called {what!r}{did_you_mean(what, names)}")
    return [(kind, name) for kind, name in known if name == what]


def promises(kind: str) -> list[Promise]:
    """Those that a plugin of this kind gives."""
    return [each for each in PROMISES if each.kind in ("", kind)]


def broken(kind: str, name: str) -> Iterator[tuple[Promise, str | None]]:
    """Every promise with None where it is kept, or how it is broken, one after the other."""
    for each in promises(kind):
        try:
            each.test(REGISTRIES[kind], name)
        except Broken as error:
            yield each, str(error)
        except InvalidInput as error:
            yield each, f"it refuses its own defaults: {error}"
        except Exception as error:
            where = inspect.trace()[-1]
            file = where.filename.rpartition("/")[2]
            yield each, f"{type(error).__name__} in {file}, line {where.lineno}: {error}"
        else:
            yield each, None


def expect(kept: bool, otherwise: str) -> None:
    """Raises `Broken(otherwise)` unless `kept`."""
    if not kept:
        raise Broken(otherwise)


def pictures(count: int, size: int, classes: int) -> ImageSet:
    """Random images, as many of each class as there can be."""
    shape = (count, 3, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "contract"))
    return ImageSet(pixels, torch.arange(count) % classes, classes)


def lent(data: ImageSet, seed: int = 0) -> TrainingContext:
    """The means of a very short training on such images."""
    builder = network_builder("wrn16_1", data.num_classes, data.size[0])
    return TrainingContext(RECIPE, CPU, builder, seed)


def context(data: ImageSet, clean_fraction: float, seed: int = 0) -> Context:
    """What a defense is lent; undefended networks are not trained."""
    training = lent(data, seed)
    return Context(
        **vars(training),
        clean=clean_budget(data, clean_fraction, seed),
        train_undefended=lambda n: replace(training, seed=seed + 100 * n).build().eval(),
    )


def same(one: ImageSet, images: Tensor, labels: Tensor) -> bool:
    return torch.equal(one.images, images) and torch.equal(one.labels, labels)


@promise("", "it can be written as a spec, and read back")
def specs(registry: Registry[Any], name: str) -> None:
    canonical = registry.canonical(name)
    expect(registry.canonical(canonical) == canonical, f"{canonical!r} reads back as another")
    label = registry.label(name)
    expect(label == name, f"its defaults are shown as {label!r}: they change when built")
    expect(registry.version(name) >= 1, "its version is below 1")


@promise("", "its documentation names the method, and every field with a default")
def documentation(registry: Registry[Any], name: str) -> None:
    factory = registry.factory(name)
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    first = module.partition("\n")[0].rstrip()
    expect(bool(first), "its file has no docstring; the first line names method, authors and year")
    expect(first.endswith((".", ":")), f"the first line of its file is not a sentence: {first!r}")
    doc = inspect.getdoc(factory) or ""
    for field in inspect.signature(factory).parameters.values():
        if field.default is not inspect.Parameter.empty:
            expect(field.name in doc, f"its docstring does not say what {field.name} is")


@promise("attack", "it keeps its settings, and its trigger is a function of the image alone")
def pure_trigger(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), pictures(60, SIDE, 10)
    expect(isinstance(attack, Attack), "it is not a subclass of bdbench.attacks.Attack")
    expect(frozen(attack), "it is not a frozen dataclass")
    attack = attack.prepare(data, lent(data), stream(0, "poison"))
    before = data.images.clone()
    once, again = attack.trigger(data.images), attack.trigger(data.images)
    expect(once.dtype == torch.uint8, f"its trigger returns {once.dtype} and not uint8")
    expect(once.shape == before.shape, f"its trigger returns the shape {tuple(once.shape)}")
    expect(torch.equal(data.images, before), "its trigger writes into the images it is given")
    expect(torch.equal(once, again), "its trigger differs from one call to the next")
    alone = torch.cat([attack.trigger(data.images[n : n + 1]) for n in range(5)])
    expect(torch.equal(once[:5], alone), "an image's trigger depends on the others in its batch")


@promise("attack", "it poisons what it says, for any size and number of classes, and nothing else")
def honest_poison(registry: Registry[Any], name: str) -> None:
    for size, classes in ((32, 43), (64, 10)):
        attack = registry.build(name)
        data = pictures(60 if attack.trains else 430, size, classes)
        images, labels = data.images.clone(), data.labels.clone()
        attack = attack.prepare(data, lent(data), stream(7, "poison"))
        made, again = (attack.poison(data, stream(7, "poison")) for _ in range(2))
        where = f"with {classes} classes of {size} pixels"
        expect(isinstance(made, Poisoned), "poison does not return bdbench.attacks.Poisoned")
        for part, rows in (("mask", made.mask), ("cover", made.cover)):
            expect(
                rows.dtype == torch.bool and rows.shape == labels.shape,
                f"{part} is not bool ({len(labels)},) {where}",
            )
        expect(same(data, images, labels), f"poison writes into the clean set {where}")
        expect(not (made.mask & made.cover).any(), f"mask and cover overlap {where}")
        left = ~(made.mask | made.cover)
        expect(
            torch.equal(made.train.images[left], images[left]),
            f"images outside mask and cover were changed {where}",
        )
        expect(
            torch.equal(made.train.labels[~made.mask], labels[~made.mask]),
            f"labels outside the mask were changed {where}",
        )
        goal = attack.goal(labels, classes)
        expect(
            torch.equal(made.train.labels[made.mask], goal[made.mask]),
            f"the labels of poisoned images are not its goal {where}",
        )
        expect(
            same(made.train, again.train.images, again.train.labels),
            f"the same random stream gives another training set {where}",
        )
        expect(bool(made.mask.any()) == (attack.poisoning_rate > 0), f"it poisons nothing {where}")


@promise("defense", "it gives a classifier and changes nothing it was given")
def clean_hands(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)
    fraction = defense.clean_fraction
    expect(0 <= fraction < 1, f"its clean_fraction is {fraction} and not in [0, 1)")
    expect(frozen(defense), "it is not a frozen dataclass")
    expect(defense.cost(RECIPE) > 0, "its cost is not above 0")
    images, labels, settings = data.images.clone(), data.labels.clone(), repr(defense)
    torch.manual_seed(3)
    follows = torch.rand(1)
    torch.manual_seed(3)
    means, asked = context(data, fraction), set()

    def lend(n: int) -> Classifier:
        asked.add(n)
        return context(data, fraction).undefended(n)

    made = defense.fit(data, replace(means, train_undefended=lend))
    expect(
        asked == set(range(defense.undefended)),
        f"it says that it asks for {defense.undefended} undefended networks, and asks for those "
        f"numbered {sorted(asked)}",
    )
    expect(
        torch.equal(torch.rand(1), follows),
        "it draws from torch's global generator; use context.rng or bdbench.models.rng.global_seed",
    )
    expect(isinstance(made, Classifier), f"fit returns {type(made).__name__}, not a Classifier")
    expect(not made.training, "the network it returns is in training mode; call eval()")
    answers = logits(made, data.images)
    expect(answers.shape == (60, 10), f"its logits have the shape {tuple(answers.shape)}")
    expect(bool(answers.isfinite().all()), "its logits are not finite")
    expect(same(data, images, labels), "it writes into the training set")
    expect(repr(defense) == settings, "fit changes its settings")
    for kept, values in means.journal.samples.items():
        expect(values.shape == (60,), f"the journal's {kept!r} has the shape {tuple(values.shape)}")


@promise("defense", "it is a function of its seed")
def seeded(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)
    fraction = defense.clean_fraction
    one, two, other = (
        logits(defense.fit(data, context(data, fraction, seed)), data.images) for seed in (0, 0, 1)
    )
    expect(torch.equal(one, two), "the same seed gives another network")
    expect(not torch.equal(one, other), "another seed gives the same network")


@promise("attack", "it goes through a whole cell, from clean images to the record")
def attack_cell(registry: Registry[Any], name: str) -> None:
    whole_cell(name, "none")


@promise("defense", "it goes through a whole cell, from poisoned images to the record")
def defense_cell(registry: Registry[Any], name: str) -> None:
    whole_cell("badnets", name)


def whole_cell(attack: str, defense: str) -> None:
    """Raises `Broken` where the harness fails on a very short cell of `toy`."""
    source = f"toy(train_images=400, test_images=50, image_size={SIDE})"
    with TemporaryDirectory() as folder:
        harness = Harness(Cache(Path(folder)), [], CPU)
        record = harness.run(cell(source, "wrn16_1", attack, defense, RECIPE, seed=0))
    error = record.error or {"type": "", "message": ""}
    expect(record.status == "ok", f"it fails with {error['type']}: {error['message']}")
    decode(encode(record))


@promise("attack", "broken off while it is prepared, it goes on and ends the same")
def attack_goes_on(registry: Registry[Any], name: str) -> None:
    if registry.build(name).trains:
        goes_on(name, "none")


@promise("defense", "broken off anywhere, it goes on and ends the same")
def defense_goes_on(registry: Registry[Any], name: str) -> None:
    goes_on("badnets", name)


def goes_on(attack: str, defense: str, curves: bool = False) -> int:
    """How often work went on from a checkpoint. Raises `Broken` where a cell that is broken off
    again and again has another record than one that is not."""
    source = f"toy(train_images=64, test_images=20, image_size={SIDE})"
    recipe = replace(RECIPE, epochs=3)
    chosen = cell(source, "wrn16_1", attack, defense, recipe, seed=0)

    def attempt(folder: str, progress: Callable[[int], None]) -> Record:
        # Patience below 0: every round is kept.
        return Harness(Cache(Path(folder)), [], CPU, curves, progress, -1.0).run(chosen)

    steps = [0]
    with TemporaryDirectory() as folder:
        whole = attempt(folder, lambda work: steps.append(steps.pop() + 1))
    with TemporaryDirectory() as folder:
        again, share = None, max(4, steps[0] // 4)
        while again is None:
            left = iter(range(share))

            def progress(work: int, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise KeyboardInterrupt

            with suppress(KeyboardInterrupt):
                again = attempt(folder, progress)
            # Loops that are restored report their progress, too.
            share += 4
    one, two = ({**encode(record), "measured": None} for record in (whole, again))
    expect(
        one == two,
        "it ends otherwise than when it is not broken off; name all that a step changes in the "
        "state of its loop, and put a `for` with loops inside into resumable",
    )
    resumed: int = again.measured["resumed"]
    return resumed


@promise("attack", "its steps can be recorded for a GPU, and replayed")
def attack_replays(registry: Registry[Any], name: str) -> None:
    attack, data = registry.build(name), pictures(60, SIDE, 10)

    def prepare() -> Tensor:
        means = replace(lent(data), recipe=replace(RECIPE, epochs=2))
        made = attack.prepare(data, means, stream(0, "poison"))
        poisoned: Tensor = made.poison(data, stream(0, "poison")).train.images
        return torch.cat([poisoned, made.trigger(data.images)])

    if attack.trains:
        replays(prepare)


@promise("defense", "its steps can be recorded for a GPU, and replayed")
def defense_replays(registry: Registry[Any], name: str) -> None:
    defense, data = registry.build(name), pictures(60, SIDE, 10)

    def fit() -> Tensor:
        means = context(data, defense.clean_fraction)
        means = replace(means, recipe=replace(RECIPE, epochs=2))
        return logits(defense.fit(data, means), data.images)

    replays(fit)


def replays(work: Callable[[], Tensor]) -> HostGraph:
    """What recorded. Raises `Broken` where work whose steps are replayed, as on a GPU, has another
    result than when they are run."""

    def attempt(graph: HostGraph) -> Tensor:
        with recorded_by(lambda device: graph), warnings.catch_warnings():
            warnings.filterwarnings("error", ".*without a CUDA graph")
            try:
                return work()
            except UserWarning as warning:
                raise Broken(
                    f"{warning}; a step must not wait for the device: no .item(), no branch on a "
                    "tensor, no number brought to it"
                ) from warning

    often = HostGraph()
    found = [attempt(often), attempt(HostGraph(rehearsals=sys.maxsize))]
    expect(
        torch.equal(*found),
        "it ends otherwise when its steps are replayed; what a step keeps must be in tensors that "
        "it changes in place, for nothing else is done again",
    )
    return often


@promise("model", "it is a classifier for images of any size, with weights that follow the seed")
def any_size(registry: Registry[Any], name: str) -> None:
    means = TrainingContext(RECIPE, CPU, network_builder(name, 7, 48), seed=0)
    one, two, other = means.build(), means.build(), means.build("other")
    expect(isinstance(one, Classifier), "it is not a subclass of bdbench.models.Classifier")
    images = pictures(3, 48, 7).images
    answers = logits(one, images)
    expect(answers.shape == (3, 7), f"its logits have the shape {tuple(answers.shape)}")
    expect(predict(one, images).shape == (3,), "it does not name one class for each image")
    weights = [torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other)]
    expect(torch.equal(weights[0], weights[1]), "the same seed gives other weights")
    expect(not torch.equal(weights[0], weights[2]), "another seed gives the same weights")


@promise("data set", "it says beforehand what it is")
def declared(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    expect(source.name == name, f"its name is {source.name!r}")
    expect(source.num_classes > 1, f"it has {source.num_classes} classes")
    expect(source.image_size >= 8, f"its images have {source.image_size} pixels")
    expect(source.count == source.train_size, "count is not train_size")
    expect(source.learning_rate > 0, "its learning rate is not above 0")
    expect(isinstance(source.flip, bool), "flip is not True or False")
    expect(registry.build(f"{name}(train_images=500)").count == 500, "train_images is ignored")


def frozen(plugin: Any) -> bool:
    """Whether a field of this dataclass, or another attribute, cannot be set."""
    if not is_dataclass(plugin):
        return False
    names = [field.name for field in fields(plugin)] or ["anything"]
    try:
        setattr(plugin, names[0], None)
    except FrozenInstanceError:
        return True
    return False
