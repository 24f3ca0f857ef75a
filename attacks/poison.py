"""The two policies by which attacks select the training images to poison.

The selection depends on the random stream and the labels, not on the trigger. The images of a lower
rate are a subset of those of a higher one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned, check_target
from bdbench.attacks.registry import attacks
from bdbench.models.data import ImageSet, portion
from bdbench.models.plugins.errors import one_of, require

RateBasis = Literal["target_class", "dataset"]
CLASS_SHARE = 0.1
"""The assumed share of the target class in the training set, to estimate the cost."""


def dirty_label(
    attack: Attack, clean: ImageSet, rng: torch.Generator, cover_rate: float = 0.0
) -> Poisoned:
    """Stamp the trigger on a share of the images, of any class, and give them the target label.

    Images of the target class take part, as in the public code of ABL, NAD and CBD: about one in
    `num_classes` of the poisoned images keeps its label.

    cover_rate: cover images, as a share of the training set; they are other images, which get the
        disguise and keep their labels
    """
    count = dirty_count(attack, clean)
    order = torch.randperm(len(clean), generator=rng)
    covered = order[count : count + portion(cover_rate, len(clean))]
    return apply(attack, clean, order[:count], covered, rng)


def dirty_count(attack: Attack, clean: ImageSet) -> int:
    """The number of images that `dirty_label` poisons. An attack that trains asks for it first, so
    that nothing trains for a rate that selects no image.

    Raises `InvalidInput` for such a rate, and for a target outside the classes.
    """
    check_target(attack.target, clean.num_classes)
    return _selected(attack, len(clean))


def _selected(attack: Attack, whole: int) -> int:
    count = portion(attack.poisoning_rate, whole)
    require(
        count >= 1,
        f"poisoning_rate {attack.poisoning_rate} of {whole} images selects none; raise it",
    )
    return count


def clean_label(
    attack: Attack, clean: ImageSet, rng: torch.Generator, rate_basis: RateBasis = "target_class"
) -> Poisoned:
    """Stamp the trigger on images of the target class only, so that all labels remain true.

    rate_basis: the rate is a share of the "target_class" or of the whole "dataset"

    Raises `InvalidInput` if the class has too few images, with the largest feasible rate.
    """
    check_target(attack.target, clean.num_classes)
    one_of(get_args(RateBasis), rate_basis=rate_basis)
    members = torch.nonzero(clean.labels.cpu() == attack.target).flatten()
    check_members(members, attack.target, "target")
    whole = len(members) if rate_basis == "target_class" else len(clean)
    count = _selected(attack, whole)
    require(
        count <= len(members),
        f"poisoning_rate {attack.poisoning_rate} of the data set is {count} images but class "
        f"{attack.target} has {len(members)}; the largest feasible rate is "
        f"{len(members) / len(clean):.4g}",
    )
    chosen = members[torch.randperm(len(members), generator=rng)[:count]]
    return apply(attack, clean, chosen, chosen[:0], rng)


def check_members(members: Tensor, label: int, role: str) -> None:
    """Raises `InvalidInput` if a class has no training image.

    role: the field that names the class
    """
    require(len(members) > 0, f"class {label} has no training image: choose another {role}")


def poisoned_share(attack: Attack) -> float:
    """The expected share of poisoned images in the training set, to estimate the cost. An attack
    whose rate may be one of the target class has a field `rate_basis`."""
    of_class = getattr(attack, "rate_basis", "dataset") == "target_class"
    return attack.poisoning_rate * (CLASS_SHARE if of_class else 1.0)


def apply(
    attack: Attack, clean: ImageSet, chosen: Tensor, covered: Tensor, rng: torch.Generator
) -> Poisoned:
    """A copy of the set in which the rows `chosen` (int64) have the trigger and the target label,
    and the rows `covered` (int64) the disguise."""
    images, labels = clean.images.clone(), clean.labels.clone()
    mask = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    cover = torch.zeros_like(mask)
    if len(chosen):
        rows = chosen.to(clean.device)
        images[rows] = _stamped(attack, "trigger", attack.training_trigger, clean.images[rows], rng)
        labels[rows] = attack.goal(clean.labels[rows], clean.num_classes)
        mask[rows] = True
    if len(covered):
        rows = covered.to(clean.device)
        images[rows] = _stamped(attack, "disguise", attack.disguise, clean.images[rows], rng)
        cover[rows] = True
    return Poisoned(ImageSet(images, labels, clean.num_classes), mask, cover)


def _stamped(
    attack: Attack,
    what: str,
    stamp: Callable[[Tensor, torch.Generator], Tensor],
    images: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """What the attack makes of images. Raises `InvalidInput` if it is anything else than images."""
    made = stamp(images, rng)
    check_like(made, images, f"the {what} of attack {attacks.name_of(type(attack))}")
    return made


def check_like(made: object, images: Tensor, owner: str) -> None:
    """Raises `InvalidInput` unless `made` are images of the number and size of `images`.

    owner: what returned them
    """
    fits = isinstance(made, Tensor) and made.dtype == torch.uint8 and made.shape == images.shape
    wanted = f"{owner} must return images uint8 {tuple(images.shape)}"
    require(fits, f"{wanted}, got {kind_of(made)}")


def check_prepared(made: object, owner: str) -> None:
    """Raises `InvalidInput` unless `made` is an attack.

    owner: the attack whose `prepare` returned it
    """
    hint = "; is a `return` missing?" if made is None else ""
    require(
        isinstance(made, Attack),
        f"prepare of {owner} must return the prepared attack, got {kind_of(made)}{hint}",
    )


def kind_of(value: object) -> str:
    """A value in words, such as "float32 (4, 3, 8, 8)" or "None"."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
    return "None" if value is None else f"a {type(value).__name__}"


def check_cover_rate(cover_rate: float, poisoning_rate: float, name: str = "cover_rate") -> None:
    """Raises `InvalidInput` for a negative share, and if the two shares exceed 1 together."""
    require(
        # In floating point, 1 - 0.9 is a little less than 0.1, and 1 - 0.7 a little more than 0.3.
        0 <= cover_rate <= 1 - poisoning_rate + 1e-9,
        f"{name} must be in [0, {1 - poisoning_rate:g}], the share that poisoning_rate leaves, "
        f"got {cover_rate}",
    )
