"""`bdbench data preview`: what an attack does to images, in numbers and as a picture."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bdbench.attacks.base import Attack
from bdbench.attacks.compound import parts_of
from bdbench.attacks.registry import attacks
from bdbench.cells import grid
from bdbench.cells.cell import cell, check_network, check_trigger
from bdbench.cells.suites import check_seeds
from bdbench.datasets.base import Dataset
from bdbench.datasets.registry import datasets
from bdbench.figures.distortion import distortion, survival
from bdbench.figures.picture import (
    LETTERS,
    NO_BREAK,
    ImageRows,
    encode,
    image_grid,
    look,
    write_caption,
)
from bdbench.machine.devices import device_of, precision_of
from bdbench.models.data import ImageSet
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.spec import Spec
from bdbench.models.rng import stream
from bdbench.models.training.augment import Augmentation, draw_augmentation
from bdbench.storage.atomic import check_writable, write_atomically
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData

VIEWS = 10_000
"""Augmented views by which survival is measured."""
MOST = 50
"""Images of a row."""
SUFFIXES = (".png", ".pdf", ".svg")


def preview(
    attack: str,
    *,
    dataset: str,
    model: str,
    epochs: int,
    seed: int,
    count: int,
    out: Path | None,
    data: Path | None,
    device: str,
) -> Iterator[str]:
    """`bdbench data preview`, with its options. Yields lines to print.

    Of an attack with parts, each has its numbers and images.

    Raises `InvalidInput`, as far as possible before anything is trained or drawn.
    """
    place = device_of(device)
    check_seeds([seed])
    source = datasets.build(dataset)
    recipe = grid.recipe_for(source, {"epochs": epochs}, precision_of("fp32", place))
    asked = cell(source, model, attack, "none", recipe, seed)
    with blaming("the trigger of the attack"):
        check_trigger(asked)
    require(1 <= count <= MOST, f"count must be from 1 to {MOST}, got {count}")
    path = out or Path(f"preview-{Spec.of(attack).name}.png")
    kind = path.suffix.lower()
    require(kind in SUFFIXES, f"a picture ends in {' or '.join(SUFFIXES)}, got {path.name!r}")
    check_writable(path.parent)

    harness, built = Harness(Cache(cache_root()), roots(data), place), asked.attack
    loaded = harness.dataset(asked.dataset)
    yield _line("data set", asked.labels["dataset"])
    yield _line("attack", asked.labels["attack"])
    if built.trains:
        check_network(asked)
        yield _line("trained with", f"{asked.labels['model']}, {asked.labels['recipe']}")
    made = harness.poisoned(asked)
    groups: list[dict[str, str]] = []
    images: list[ImageRows] = []
    for name, part, own in each_part(built, made):
        found = numbers(part, loaded, own, recipe.augmentation, seed)
        groups += [{"part": f"{name}, {attacks.label(part)}"}] * bool(name) + found
        images += blocks(part, loaded, own, count, f" {name}" * bool(name))
    if made.parts:
        groups += facts(made)
    for group in groups:
        yield from (_line(label, value) for label, value in group.items())
    title = f"{asked.labels['attack']} on {asked.labels['dataset']}, seed{NO_BREAK}{seed}"
    with look():
        figure = draw(title, groups, images)
        content = encode(figure, kind[1:])
    write_atomically(path, content)
    yield _line("picture", str(path))


def each_part(attack: Attack, made: PoisonedData) -> Iterator[tuple[str, Attack, PoisonedData]]:
    """The parts of an attack by name, each with what it makes; or the attack, without a name."""
    if not made.parts:
        yield "", attack, made
    for name, part in parts_of(attack).items():
        yield name, part, replace(made.part(name), facts={})


def _line(label: str, value: str) -> str:
    return f"{label:<15} {value}"


def numbers(
    attack: Attack, dataset: Dataset, made: PoisonedData, augmentation: Augmentation, seed: int
) -> list[dict[str, str]]:
    """Labels and values, in groups: distortion, survival, poisoned images, facts of the attack."""
    test = dataset.test
    change = distortion(test.images, made.triggered)
    groups = [{"trigger": "changes no test image"}]
    if change.unchanged < len(test):
        left_out = f", {change.unchanged:,} unchanged left out" if change.unchanged else ""
        draws = draw_augmentation(VIEWS, test.size, augmentation, stream(seed, "preview"))
        left = survival(test.images, made.triggered, draws.to(test.device), augmentation)
        groups = [
            {
                "PSNR": f"{change.psnr:.1f} dB{left_out}",
                "changed pixels": f"{change.pixels:,.1f} of {test.size[0] * test.size[1]:,}",
                "largest change": f"{change.largest} grey levels",
            },
            {
                "seen": f"in {_percent(left.seen)} of {left.views:,} augmented views",
                "seen whole": f"in {_percent(left.whole)}",
                "energy left": _percent(left.energy),
            },
        ]
    extent = made.extent(dataset.train, attack.target)
    whole, members = (_percent(extent[f"share_of_{what}"]) for what in ("dataset", "target_class"))
    shares = f"{whole} of all, {members} of class {dataset.class_names[attack.target]}"
    poisoned = {
        "poisoned images": f"{extent['poisoned_images']:,}, {shares}",
        "relabelled": f"{extent['relabelled_images']:,}",
        "cover images": f"{extent['cover_images']:,}",
    }
    return [*groups, poisoned, *facts(made)]


def facts(made: PoisonedData) -> list[dict[str, str]]:
    """What the attack says of itself, as a group; none if it says nothing."""
    said = {name.replace("_", " "): f"{value:g}" for name, value in made.facts.items()}
    return [said] if said else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def blocks(
    attack: Attack, dataset: Dataset, made: PoisonedData, count: int, of: str = ""
) -> list[ImageRows]:
    """Up to `count` test images that the trigger should turn; and training images, where the attack
    may treat them differently.

    of: added to the label of the images with the trigger
    """
    test, train = dataset.test, dataset.train
    victims = attack.goal(test.labels, test.num_classes) != test.labels
    require(bool(victims.any()), "the test set has no image that the trigger should turn")

    def block(name: str, clean: ImageSet, after: Tensor, among: Tensor) -> ImageRows:
        rows = one_of_each(clean.labels, among)[:count]
        titles = [dataset.class_names[label] for label in clean.labels[rows].tolist()]
        return compared(f"{name}{of}", titles, clean.images[rows].cpu(), after[rows].cpu())

    found = [block("poisoned", test, made.triggered, victims)]
    if attack.trains or type(attack).training_trigger is not Attack.training_trigger:
        found.append(block("training image", train, made.train.images, made.mask))
    if made.cover.any():
        found.append(block("cover image", train, made.train.images, made.cover))
    return found


def one_of_each(labels: Tensor, among: Tensor) -> Tensor:
    """int64 (m,), where `among`, bool (n,), is True: the first of each class, then the second."""
    rows = torch.nonzero(among).flatten()
    seen: Counter[int] = Counter()
    turns = []
    for label in labels[rows].tolist():
        turns.append(seen[label])
        seen[label] += 1
    return rows[torch.tensor(turns, device=rows.device).argsort(stable=True)]


def amplified(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """The difference as uint8 around mid grey, and its factor: at least 1, and such that the
    largest difference fills the range."""
    difference = after.int() - before.int()
    # One decimal, as in the picture.
    factor = max(1.0, int(1270 / max(1, int(difference.abs().max()))) / 10)
    return (128 + factor * difference).round().clamp(0, 255).to(torch.uint8), factor


def compared(name: str, titles: Sequence[str], before: Tensor, after: Tensor) -> ImageRows:
    """Three rows: images before and after, uint8 (n, 3, height, width), and their difference.

    name: label of the images after
    """
    difference, factor = amplified(before, after)
    label = f"difference \N{MULTIPLICATION SIGN}{NO_BREAK}{factor:g}"
    rows = {"clean": before, name: after, label: difference}
    return ImageRows({label: images.numpy() for label, images in rows.items()}, titles)


def draw(title: str, groups: Sequence[Mapping[str, str]], blocks: Sequence[ImageRows]) -> Figure:
    """A heading, blocks of images, and a line for each group of numbers below."""
    figure = image_grid(blocks)
    heading = textwrap.fill(title, int(figure.get_figwidth() * LETTERS * 0.6))
    figure.suptitle(heading, x=0.01, ha="left", fontsize=9, weight="bold")
    write_caption(figure, "\n".join(map(_sentence, groups)))
    lines = 1.5 * heading.count("\n") + figure.get_supxlabel().count("\n") + 1
    figure.set_figheight(figure.get_figheight() + 0.11 * lines)
    return figure


def _sentence(group: Mapping[str, str]) -> str:
    """Labels and values; lines are broken between them only."""
    parts = (f"{label} {value}".replace(" ", NO_BREAK) for label, value in group.items())
    text = f"{NO_BREAK}· ".join(parts)
    return text[0].upper() + text[1:]
