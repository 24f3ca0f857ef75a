"""P-ASR, the success rate after an attempt to bring the backdoor back.

Min et al., 2024, NeurIPS, arXiv:2410.09838: their retuning attack fine-tunes a purified network on
a few clean images and very few poisoned ones, and measures its ASR again. If the backdoor returns,
the defense only hid it. A network that never had the backdoor shows how much these images alone
teach.

Differs:
- Known of the paper: 2 % of clean images, 5 poisoned ones, SGD at 0.01, 5 epochs. Batch size,
  momentum, weight decay and augmentation are not known here. They are those of the cell's recipe,
  but for batches of 128.
- The length is that of 5 epochs of 1,005 images in batches of 128, on any data set, unless the
  recipe shortens all stages. On a small set the poisoned images are a larger share, and each is
  seen more often: of `digits`, 5 of 25, 40 times instead of 5. The control shows what that does.
- The clean images are 2 % of each class, at least one. Those that a defense was lent may be among
  them.
- The poisoned images are training images of the attack as they are. Those with a changed label
  come first, as the others show the trigger on the target class. The parts of `mixed` take turns.
- The paper also retunes a network trained on clean images; here it is the undefended one of attack
  `none`, which has the seed and initial weights of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import zip_longest

import torch

from bdbench.cells.cell import without_attack
from bdbench.cells.cost import RETUNING
from bdbench.machine.clock import Stopwatch
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.rng import stream
from bdbench.models.training.loop import train
from bdbench.records.count import Count
from bdbench.records.record import CONTROL, REACTIVATED, REACTIVATED_CA
from bdbench.trial.evaluation import evaluate
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.undefended import train_undefended, undefended_copy
from bdbench.trial.workspace import Workspace

UPDATES, BATCH, CLEAN, POISONED = RETUNING
"""40 updates are the paper's 5 epochs of 1,005 images, those of CIFAR-10, in batches of 128."""
RATE = 0.01
"""Learning rate (paper)."""
ASR = "attack_success_rate"
STAGE = "reactivate"
"""Its seconds in a record, with those of the evaluation."""


def reactivated(ws: Workspace, classifier: Classifier, data: PoisonedData) -> dict[str, Count]:
    """The metrics of the network of a cell after an attempt to reactivate the backdoor, none
    without an attack. The network itself stays as it is. Its passes and progress are not those of
    the defense.

    reactivated_success_rate, reactivated_clean_accuracy: ASR and CA after it; of an attack with
        parts, the ASR of the worst part after it, and that of each part under its name
    control_success_rate: with the defense `none`, the ASR of a network trained on clean images
        after the same fine-tuning; absent for a network that a user brought
    """
    if not ws.cell.is_attacked:
        return {}
    images = retuning_set(ws, data)
    counts = _retuned(ws, classifier, images, data)
    found = {**_success_rates(counts, REACTIVATED), REACTIVATED_CA: counts["clean_accuracy"]}
    if not ws.cell.is_defended and ws.given is None:
        control = _retuned(ws, _clean_network(ws), images, data)
        found |= _success_rates(control, CONTROL)
    return found


def _success_rates(counts: Mapping[str, Count], name: str) -> dict[str, Count]:
    """The attack success rate and those of parts, under another name."""
    return {metric.replace(ASR, name): counts[metric] for metric in counts if ASR in metric}


def retuning_set(ws: Workspace, data: PoisonedData) -> ImageSet:
    """Clean images, then the poisoned ones: the same for all defenses of an attack and seed. The
    clean ones are the same for all attacks."""
    clean, labels = ws.dataset.train, ws.dataset.train.labels.cpu()
    rng, chosen = stream(ws.cell.seed, "reactivation", "clean"), []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=rng)
        chosen.append(members[order[: _clean_share(len(members))]])
    rows = torch.cat(chosen).sort().values.to(ws.device)
    rng = stream(ws.cell.seed, "reactivation", "poisoned")
    poisoned = torch.nonzero(data.mask.cpu()).flatten()
    poisoned = poisoned[torch.randperm(len(poisoned), generator=rng)]
    unchanged = (data.train.labels == clean.labels).cpu()[poisoned]
    poisoned = poisoned[unchanged.int().argsort(stable=True)]
    masks = [part.mask.cpu() for part in data.parts.values()] or [data.mask.cpu()]
    turns = zip_longest(*(poisoned[mask[poisoned]][:POISONED].tolist() for mask in masks))
    taken = [row for turn in turns for row in turn if row is not None][:POISONED]
    few = torch.tensor(taken, dtype=torch.int64, device=ws.device)
    return ImageSet(
        torch.cat([clean.images[rows], data.train.images[few]]),
        torch.cat([clean.labels[rows], data.train.labels[few]]),
        clean.num_classes,
    )


def retuning_size(ws: Workspace, data: PoisonedData) -> dict[str, int]:
    """How many images `retuning_set` has, as diagnostics have it; empty without an attack."""
    if not ws.cell.is_attacked:
        return {}
    sizes = [size for size in ws.dataset.train.labels.bincount().tolist() if size]
    return {
        "clean": sum(map(_clean_share, sizes)),
        "poisoned": min(POISONED, int(data.mask.sum())),
        "of": sum(sizes),
        "classes": len(sizes),
    }


def _clean_share(images: int) -> int:
    """How many of the clean images of a class are taken."""
    return max(1, round(CLEAN * images))


def _retuned(
    ws: Workspace, classifier: Classifier, images: ImageSet, data: PoisonedData
) -> dict[str, Count]:
    """The metrics of a fine-tuned copy of a network."""
    recipe = replace(ws.cell.recipe, batch_size=BATCH, learning_rate=RATE, drops=())
    with observed_by(Observer()), ws.stage(STAGE), ws.seeded(STAGE):
        # A defense may return a network with frozen weights.
        copy = deepcopy(classifier).requires_grad_(True)
        rng = stream(ws.cell.seed, "reactivation", "training")
        train(copy, images, recipe, rng, updates=recipe.shortened(UPDATES))
    return evaluate(ws, copy, data, stage=STAGE).counts()


def _clean_network(ws: Workspace) -> Classifier:
    """The undefended network of attack `none`, which cells share by way of the cache. Training it
    belongs to no stage of this cell."""
    own = replace(
        ws,
        cell=without_attack(ws.cell),
        stopwatch=Stopwatch(ws.device),
        curves=False,
        progress=lambda work: None,
        poisoned=None,
        network=None,
        undefended={},
        resumed=0,
        contention=[],
        timed=False,
    )
    with ws.stage("control"):
        train_undefended(own, ws.dataset.train, 0)
        ws.peak = max(ws.peak, own.peak)
        return undefended_copy(own, 0)
