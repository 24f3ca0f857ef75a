"""The poisoned set of a cell: made by the attack, cached, restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Poisoned
from bdbench.attacks.compound import PoisonedInParts, parts_of
from bdbench.attacks.poison import check_like, check_prepared, kind_of
from bdbench.machine.clock import peak_memory
from bdbench.machine.surroundings import surroundings_kept
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.notices import notify
from bdbench.models.rng import derive, stream
from bdbench.storage.cache import CacheEntry, Payload
from bdbench.storage.checkpoints import discard
from bdbench.trial import company, keys
from bdbench.trial.guard import read_only
from bdbench.trial.monitor import TrainingMonitor
from bdbench.trial.record import finite, numbers_in
from bdbench.trial.workspace import Workspace

BATCH = 1024
"""Images that are compared at once."""


@dataclass(frozen=True)
class PoisonedPart:
    """What one of several attacks makes, see `PoisonedData`."""

    mask: Tensor
    cover: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class PoisonedData:
    """All that an attack makes. A defense sees `train` only.

    mask, cover: bool (n,), training images with the trigger; changed ones that keep their label
    triggered: uint8 (m, 3, height, width), the whole test set with the trigger
    facts: what the attack reports about its own training
    parts: by name, if the attack has parts; `triggered` is then that of the first
    """

    train: ImageSet
    mask: Tensor
    cover: Tensor
    triggered: Tensor
    facts: Mapping[str, float | None]
    parts: Mapping[str, PoisonedPart] = field(default_factory=dict)

    def part(self, name: str) -> PoisonedData:
        """The data as if only this part were known."""
        return replace(self, **vars(self.parts[name]), parts={})

    def extent(self, clean: ImageSet, target: int) -> dict[str, float]:
        """How much of the training set `clean` the attack changed."""
        members = self.mask[clean.labels == target]
        return {
            "poisoned_images": int(self.mask.sum()),
            "cover_images": int(self.cover.sum()),
            "relabelled_images": int((self.train.labels != clean.labels)[self.mask].sum()),
            "share_of_dataset": round(float(self.mask.double().mean()), 6),
            "share_of_target_class": round(int(members.sum()) / max(1, len(members)), 6),
        }


def poison(ws: Workspace) -> PoisonedData:
    """What the attack makes of the data set, computed once for each data set, attack and seed. The
    seconds of an attack that trains are charged to every cell that uses its poisoned set."""
    key = ws.key(keys.attack_key(ws.cell, ws.machine))
    kept = ws.kept(key, keys.attack_axes(ws.cell))
    work = kept if ws.shares else ws.own_key("poisoned")
    company.enter(ws.cell, "attack")
    with ws.stage("poison"):
        entry = ws.shared("poisoned", key, kept, partial(_make, ws, work))
        discard(ws.folder("prepare", work))
        if not entry.fresh:
            ws.stopwatch.charge("prepare", entry.meta["prepare"])
            ws.peak = max(ws.peak, entry.meta.get("peak", 0))
        made = _restore(ws, entry)
        _notice_invisible(ws, made)
        return made


def _make(ws: Workspace, key: Mapping[str, Any]) -> Payload:
    """Run the attack. Only the training images that it changed are stored."""
    clean, test, cell = ws.dataset.train, ws.dataset.test, ws.cell
    # A seed of its own, so that no defense can draw the initial weights of the attacker's networks.
    training = replace(ws.training, seed=derive(cell.seed, "attack"))
    monitor = TrainingMonitor(ws.progress, ws.stopwatch)
    plugin = f"attack {cell.labels['attack']}"
    changes = read_only(plugin, "the clean images", clean, test)
    with changes, surroundings_kept(), ws.seeded("attack"):
        with ws.resumable("prepare", key, monitor):
            attack = cell.attack.prepare(clean, training, stream(cell.seed, "poison"))
        check_prepared(attack, plugin)
        made = attack.poison(clean, stream(cell.seed, "poison"))
        check_poisoned(made, clean, plugin)
        each = parts_of(attack) or {"": attack}
        triggered = {name: part.trigger(test.images.clone()) for name, part in each.items()}
        for stamped in triggered.values():
            check_like(stamped, test.images, f"the trigger of {plugin}")
    rows = torch.nonzero(made.mask | made.cover).flatten()
    tensors = {
        "rows": rows,
        "images": made.train.images[rows],
        "labels": made.train.labels[rows],
        "mask": made.mask,
        "cover": made.cover,
    }
    if isinstance(made, PoisonedInParts):
        for name, stamped in triggered.items():
            part = PoisonedPart(made.masks[name], made.covers[name], stamped)
            tensors |= {f"{name}/{what}": values for what, values in vars(part).items()}
    else:
        tensors["triggered"] = triggered[""]
    facts, strange = numbers_in(made.facts, f"among the facts of {plugin}")
    for line in strange:
        notify(line, stacklevel=2)
    meta = {
        "prepare": ws.stopwatch.seconds["prepare"],
        "peak": peak_memory(ws.device),
        "facts": finite(facts),
    }
    return {name: values.cpu() for name, values in tensors.items()}, meta


def _notice_invisible(ws: Workspace, made: PoisonedData) -> None:
    """Say of an attack that poisons whether its trigger changes no test image, as one does that is
    so weak that it is rounded away."""
    test, whole = ws.dataset.test.images, PoisonedPart(made.mask, made.cover, made.triggered)
    for name, part in (made.parts or {"": whole}).items():
        if part.mask.any() and torch.equal(part.triggered, test):
            which = f"part {name} of attack" if name else "attack"
            notify(f"the trigger of {which} {ws.cell.labels['attack']} changes no test image")


def check_poisoned(made: object, clean: ImageSet, owner: str) -> None:
    """Raises `InvalidInput` unless `made` is a poisoned set of the images in `clean`, of which only
    those that it marks differ, and those of the cover keep their label.

    owner: the attack that returned it
    """
    wanted = f"poison of {owner} must return a bdbench.attacks.Poisoned"
    require(isinstance(made, Poisoned), f"{wanted}, got {kind_of(made)}")
    assert isinstance(made, Poisoned)
    check_like(made.train.images, clean.images, f"poison of {owner}")
    for name, rows in (("mask", made.mask), ("cover", made.cover)):
        fits = isinstance(rows, Tensor) and rows.dtype == torch.bool
        fits = fits and rows.shape == clean.labels.shape
        require(fits, f"the {name} of {owner} must be bool ({len(clean)},), got {kind_of(rows)}")
    known = (made.mask | made.cover).to(clean.device)
    pairs = (made.train.images, clean.images), (made.train.labels, clean.labels)
    images, labels = (_differing(each.to(clean.device), before) for each, before in pairs)
    stray = int(((images | labels) & ~known).sum())
    require(not stray, f"{owner} changed {stray:,} images that it marks in neither mask nor cover")
    both = int((made.mask & made.cover).sum())
    require(not both, f"{owner} marks {both:,} images in both mask and cover")
    relabelled = int((labels & made.cover.to(clean.device)).sum())
    require(not relabelled, f"{owner} changed the label of {relabelled:,} cover images")


def _differing(one: Tensor, other: Tensor) -> Tensor:
    """bool (n,), where two tensors (n, ...) differ; part by part, as images fill the memory."""
    pairs = zip(one.split(BATCH), other.split(BATCH), strict=True)
    return torch.cat([(a != b).view(len(a), -1).any(1) for a, b in pairs])


def _restore(ws: Workspace, entry: CacheEntry) -> PoisonedData:
    """Put the stored images back into the clean training set."""
    clean = ws.dataset.train
    made = {name: values.to(ws.device) for name, values in entry.tensors.items()}
    images, labels = clean.images.clone(), clean.labels.clone()
    images[made["rows"]] = made["images"]
    labels[made["rows"]] = made["labels"]
    train = ImageSet(images, labels, clean.num_classes)
    parts = {
        name: PoisonedPart(*(made[f"{name}/{what}"] for what in ("mask", "cover", "triggered")))
        for name in parts_of(ws.cell.attack)
    }
    triggered = next(iter(parts.values())).triggered if parts else made["triggered"]
    facts = entry.meta["facts"]
    return PoisonedData(train, made["mask"], made["cover"], triggered, facts, parts)
