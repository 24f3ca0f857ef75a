"""`bdbench data preview`: what an attack does to images, in numbers and as a picture."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from bdbench.attacks.base import Attack
from bdbench.cells import grid
from bdbench.cells.cell import cell, check_trigger
from bdbench.datasets.base import Dataset
from bdbench.datasets.registry import datasets
from bdbench.figures.distortion import distortion, survival
from bdbench.figures.picture import look
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
"""Columns of a picture."""
SUFFIXES = (".png", ".pdf", ".svg")

# Lengths in a picture are whole dots, 200 to the inch, so that the edges of pixels stay sharp.
DPI = 200
SIDE = 192
"""Of an image, nearly: all of its pixels are squares of the same size."""
GAP = 8
MARGIN = 40
ROW_LABELS = 180
NARROWEST = 1_480
LINE = 36
LETTER = 15
"""Width of a letter, nearly."""
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class ImageRows:
    """Three rows of a picture: images before and after, and their difference.

    name: of the images after
    titles: of the columns
    before, after: uint8 (n, 3, height, width)
    """

    name: str
    titles: Sequence[str]
    before: Tensor
    after: Tensor


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
    """See `bdbench data preview --help`, whose options these are. Yields lines to print.

    Raises `InvalidInput` before anything is trained or drawn, where that can be known.
    """
    place = device_of(device)
    source = datasets.build(dataset)
    recipe = grid.recipe_for(source, {"epochs": epochs}, precision_of("auto", place))
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
        yield _line("trained with", f"{asked.labels['model']}, {asked.labels['recipe']}")
    made = harness.poisoned(asked)
    groups = numbers(built, loaded, made, recipe.augmentation, seed)
    for group in groups:
        yield from (_line(label, value) for label, value in group.items())
    title = f"{asked.labels['attack']} on {asked.labels['dataset']}, seed{NO_BREAK}{seed}"
    with look({}):
        figure = draw(title, groups, blocks(built, loaded, made, count))
        content = encode(figure, kind)
    write_atomically(path, content)
    yield _line("picture", str(path))


def _line(label: str, value: str) -> str:
    return f"{label:<15} {value}"


def numbers(
    attack: Attack, dataset: Dataset, made: PoisonedData, augmentation: Augmentation, seed: int
) -> list[dict[str, str]]:
    """Labels and values, in groups: distortion, survival, who is poisoned, what the attack says."""
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
    said = {name.replace("_", " "): f"{value:g}" for name, value in made.facts.items()}
    return [*groups, poisoned, said] if said else [*groups, poisoned]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def blocks(attack: Attack, dataset: Dataset, made: PoisonedData, count: int) -> list[ImageRows]:
    """Up to `count` test images that the trigger is to turn; and training images, where the attack
    may treat those otherwise."""
    test, train = dataset.test, dataset.train
    victims = attack.goal(test.labels, test.num_classes) != test.labels
    require(bool(victims.any()), "the test set has no image that the trigger is to turn")

    def block(name: str, clean: ImageSet, after: Tensor, among: Tensor) -> ImageRows:
        rows = one_of_each(clean.labels, among)[:count]
        titles = [dataset.class_names[label] for label in clean.labels[rows].tolist()]
        return ImageRows(name, titles, clean.images[rows].cpu(), after[rows].cpu())

    found = [block("poisoned", test, made.triggered, victims)]
    if attack.trains or type(attack).training_trigger is not Attack.training_trigger:
        found.append(block("training image", train, made.train.images, made.mask))
    if made.cover.any():
        found.append(block("cover image", train, made.train.images, made.cover))
    return found


def one_of_each(labels: Tensor, among: Tensor) -> Tensor:
    """int64: where `among`, bool (n,), is True; the first of every class first, then the second."""
    rows = torch.nonzero(among).flatten()
    seen: Counter[int] = Counter()
    turns = []
    for label in labels[rows].tolist():
        turns.append(seen[label])
        seen[label] += 1
    return rows[torch.tensor(turns, device=rows.device).argsort(stable=True)]


def amplified(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """The difference as uint8 around mid grey, and by what it is multiplied: at least 1, and such
    that the largest difference fills the range."""
    difference = after.int() - before.int()
    # One decimal, as the picture names it.
    factor = max(1.0, int(1270 / max(1, int(difference.abs().max()))) / 10)
    return (128 + factor * difference).round().clamp(0, 255).to(torch.uint8), factor


def draw(title: str, groups: Sequence[Mapping[str, str]], blocks: Sequence[ImageRows]) -> Figure:
    """A title, a line for each group of numbers, and the blocks below each other."""
    height, width = blocks[0].before.shape[2:]
    scale = max(1, round(SIDE / width))
    tall, wide = height * scale, width * scale
    columns = max(len(block.titles) for block in blocks)
    places = [MARGIN + ROW_LABELS + n * (wide + GAP) for n in range(columns)]
    total = max(NARROWEST, places[-1] + wide + MARGIN)
    letters = (total - 2 * MARGIN) // LETTER
    figure = Figure(dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    write = partial(axes.text, fontsize=9, color="#222222", parse_math=False)

    heading = textwrap.fill(title, letters * 2 // 3)
    write(MARGIN, MARGIN, heading, va="top", fontsize=12, weight="bold")
    caption = "\n".join(textwrap.fill(_sentence(group), letters) for group in groups)
    y = MARGIN + _lines(heading) * LINE * 3 // 2
    write(MARGIN, y, caption, va="top")
    y += _lines(caption) * LINE
    for block in blocks:
        titles = [textwrap.fill(name, wide // LETTER) for name in block.titles]
        y += MARGIN + max(map(_lines, titles)) * LINE
        for x, name in zip(places, titles, strict=False):
            write(x + wide / 2, y - GAP, name, ha="center", va="bottom")
        difference, factor = amplified(block.before, block.after)
        rows = {
            "clean": block.before,
            block.name: block.after,
            f"difference \N{MULTIPLICATION SIGN} {factor:g}": difference,
        }
        for label, images in rows.items():
            write(MARGIN, y + tall / 2, textwrap.fill(label, 10), va="center")
            for x, image in zip(places, images.permute(0, 2, 3, 1).numpy(), strict=False):
                axes.imshow(image, extent=(x, x + wide, y + tall, y), interpolation="nearest")
            y += tall + GAP
    y += MARGIN - GAP
    axes.set(xlim=(0, total), ylim=(y, 0), aspect="auto")
    figure.set_size_inches(total / DPI, y / DPI)
    return figure


def _sentence(group: Mapping[str, str]) -> str:
    """Labels and values; lines are broken between them only."""
    parts = (f"{label} {value}".replace(" ", NO_BREAK) for label, value in group.items())
    text = f"{NO_BREAK}· ".join(parts)
    return text[0].upper() + text[1:]


def _lines(text: str) -> int:
    return text.count("\n") + 1


def encode(figure: Figure, suffix: str) -> bytes:
    """The content of a picture file."""
    content = io.BytesIO()
    figure.savefig(content, format=suffix[1:], dpi=DPI)
    return content.getvalue()
