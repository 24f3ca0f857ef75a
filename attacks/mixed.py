"""Several attacks at once, Alex, Siddiqui, Sanyal and Krueger, ICLR 2025, arXiv:2408.13221.

Attackers who do not know of each other poison one training set, each with a trigger and a target of
its own. A defense that finds one trigger may miss the next. The attack success rate, its floor and
the robust accuracy are those of the worst part, the one with the highest ASR; the record has the
counts of every part.

Differs: the paper reports the average over its attacks, which hides one trigger that is left among
several that are gone. The attacks, rates and targets are those of the specs, not the paper's. Each
part poisons as many images as it would alone. Where it would change an image that another part
changes, it changes a random image of the same class instead, so that the parts are disjoint; one of
another class only if that class has none left.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, prepared, register
from bdbench.attacks.compound import Compound, PoisonedInParts
from bdbench.attacks.poison import check_prepared
from bdbench.attacks.registry import attacks as known
from bdbench.models import Classifier, ImageSet, Recipe, TrainingContext, require
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec
from bdbench.models.rng import derive, stream

ROUNDS = 10
"""Exchanges of images until a part is given up. One is enough for an attack that selects images by
the random stream and the labels only."""


@dataclass(frozen=True)
class Share:
    """One part and what it gets.

    attack: the part, prepared if it trains
    order: int64 (n,), the training images in the order in which the part sees them, which decides
        the images that it selects
    """

    attack: Attack
    order: Tensor


@register("mixed", title="Mixed")
@dataclass(frozen=True)
class Mixed(Compound):
    """
    attacks: specs of at least two attacks, or the attacks themselves, each with its own
        poisoning_rate and target, which count as if it were alone; not mixed or none. The same
        attack may occur twice: with one target the two are one attack at a higher rate, with two
        they contradict each other (our choice)
    shares: what each part gets, once prepared
    """

    nested: ClassVar[Mapping[str, Sequence[str]]] = {"attacks": ()}

    poisoning_rate: float = field(default=Attack.poisoning_rate, init=False, repr=False)
    target: int = field(default=Attack.target, init=False, repr=False)
    attacks: tuple[str, ...] = ("badnets", "blend(target=1)")
    shares: Mapping[str, Share] | None = prepared()

    def __post_init__(self) -> None:
        given = [self.attacks] if isinstance(self.attacks, str) else self.attacks
        attacks = tuple(known.located(known.built(each)) for each in given)
        require(
            len(attacks) > 1,
            f"mixed needs at least two attacks, got {len(attacks)}: use the attack itself",
        )
        names = {Spec.of(text).name for text in attacks}
        require("mixed" not in names, "mixed cannot contain mixed: name all attacks in one list")
        require("none" not in names, "mixed cannot contain none, which poisons nothing")
        object.__setattr__(self, "attacks", attacks)
        self.parts  # noqa: B018, builds them, so that a wrong spec is refused here

    @cached_property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks by name and number, such as `badnets_1`."""
        if self.shares is not None:
            return {name: share.attack for name, share in self.shares.items()}
        return {
            f"{Spec.of(text).name}_{n}": known.build(text)
            for n, text in enumerate(self.attacks, start=1)
        }

    @property
    def trains(self) -> bool:
        return any(part.trains for part in self.parts.values())

    def cost(self, recipe: Recipe, images: int) -> float:
        return sum(part.cost(recipe, images) for part in self.parts.values())

    def lacks(self, network: Classifier, image_size: int) -> str:
        found = (part.lacks(network, image_size) for part in self.parts.values())
        return next(filter(None, found), "")

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        return replace(self, shares=self.divide(clean, draw_seed(rng), context))

    def poison(self, clean: ImageSet, rng: torch.Generator) -> PoisonedInParts:
        if self.trains and self.shares is None:
            raise RuntimeError("mixed must be prepared before it can poison")
        seed = draw_seed(rng)
        images, labels = clean.images.clone(), clean.labels.clone()
        masks, covers = {}, {}
        facts: dict[str, float] = {}
        for name, share in (self.shares or self.divide(clean, seed)).items():
            order = share.order.to(clean.device)
            made = share.attack.poison(clean[order], stream(seed, name))
            rows = made.mask | made.cover
            images[order[rows]] = made.train.images[rows]
            labels[order[rows]] = made.train.labels[rows]
            masks[name], covers[name] = (
                torch.zeros_like(part).index_put((order,), part) for part in (made.mask, made.cover)
            )
            facts |= {f"{name}_{fact}": value for fact, value in made.facts.items()}
        mask, cover = (torch.stack([*each.values()]).any(0) for each in (masks, covers))
        train = ImageSet(images, labels, clean.num_classes)
        return PoisonedInParts(train, mask, cover, facts, masks, covers)

    def divide(
        self, clean: ImageSet, seed: int, context: TrainingContext | None = None
    ) -> dict[str, Share]:
        """Prepare the parts, each on an order of the training images in which it selects none that
        another part changes.

        context: for parts that train
        """
        taken = torch.zeros(len(clean), dtype=torch.bool)
        # A part that must be prepared before it can select comes first: it gives way to none, so
        # that it is not prepared twice.
        late = [n for n, part in self.parts.items() if selection(part, clean, seed, n) is not None]
        shares: dict[str, Share] = {}
        for name in sorted(self.parts, key=late.__contains__):
            shares[name], rows = settle(name, self.parts[name], clean, taken, seed, context)
            taken[shares[name].order[rows]] = True
        return {name: shares[name] for name in self.parts}


def settle(
    name: str,
    part: Attack,
    clean: ImageSet,
    taken: Tensor,
    seed: int,
    context: TrainingContext | None,
) -> tuple[Share, Tensor]:
    """The share of a part in images that are not taken, and where it is in its order, bool (n,).

    taken: bool (n,), images that other parts change

    Raises `InvalidInput` if there are too few.
    """
    order, rng = torch.arange(len(clean)), stream(seed, name, "exchange")
    labels = clean.labels.cpu()
    for _ in range(ROUNDS):
        seen, ready = clean[order.to(clean.device)], part
        rows = selection(part, seen, seed, name)
        if part.trains and (rows is None or not (rows & taken[order]).any()):
            assert context is not None
            own = replace(context, seed=derive(context.seed, name))
            ready = part.prepare(seen, own, stream(seed, name))
            check_prepared(ready, name)
            rows = changed(ready.poison(seen, stream(seed, name)))
        assert rows is not None
        if not (rows & taken[order]).any():
            return Share(ready, order), rows
        needed, left = labels[order[rows]], labels[~taken]
        require(
            len(needed) <= len(left),
            f"mixed: {name} changes {len(needed):,} images, but the other parts leave "
            f"{len(left):,} of {len(clean):,}: lower the rates of the parts",
        )
        order = exchanged(order, rows, taken, labels, rng)
    need, have = (each.bincount(minlength=clean.num_classes) for each in (needed, left))
    scarce = int((need - have).argmax())
    require(
        bool(need[scarce] > have[scarce]),
        f"mixed: {name} selects the same images in whatever order they are, and other parts change "
        "some of them: name it before them",
    )
    raise InvalidInput(
        f"mixed: {name} needs {need[scarce]} images of class {scarce}, but the other parts leave "
        f"{have[scarce]}: lower the rates of the parts, or name it before them"
    )


def exchanged(
    order: Tensor, rows: Tensor, taken: Tensor, labels: Tensor, rng: torch.Generator
) -> Tensor:
    """An order in which other images are in the places of taken ones that a part selects: random
    images of the same class, or of any class where that class has too few.

    order: int64 (n,)
    rows: bool (n,), places in the order that the part selects
    taken, labels: bool and int64 (n,), of the images
    """
    order = order.clone()
    places = torch.randperm(len(order), generator=rng)
    for alike in (True, False):
        for label in labels.unique() if alike else (None,):
            here = torch.ones_like(rows) if label is None else labels[order] == label
            clash = torch.nonzero(here & rows & taken[order]).flatten()
            free = places[(here & ~rows & ~taken[order])[places]][: len(clash)]
            clash = clash[: len(free)]
            order[clash], order[free] = order[free], order[clash]
    return order


def selection(part: Attack, clean: ImageSet, seed: int, name: str) -> Tensor | None:
    """bool (n,), the images that a part changes; None if it must be prepared before it can say."""
    try:
        return changed((unstamped(part) if part.trains else part).poison(clean, stream(seed, name)))
    except InvalidInput:
        raise
    except Exception:
        if not part.trains:
            raise
        return None


def changed(made: Poisoned) -> Tensor:
    """bool (n,) on the CPU, poisoned and cover images."""
    return (made.mask | made.cover).cpu()


def unstamped(attack: Attack) -> Attack:
    """A copy of an attack that selects its images and leaves them as they are, which needs no
    trained trigger."""

    def same(self: Attack, images: Tensor, rng: torch.Generator | None = None) -> Tensor:
        return images

    stamps = dict.fromkeys(("trigger", "training_trigger", "disguise"), same)
    blank = copy.copy(attack)
    object.__setattr__(blank, "__class__", type("Unstamped", (type(attack),), stamps))
    return blank


def draw_seed(rng: torch.Generator) -> int:
    """The seed of the random streams of the parts."""
    return int(torch.randint(2**62, (), generator=rng))
