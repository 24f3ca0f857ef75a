"""Metrics of a classifier and flags of a cell. Definitions: CBD paper, section 5.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bdbench.attacks.base import Attack
from bdbench.attacks.compound import parts_of
from bdbench.defenses.base import KEPT
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import require
from bdbench.models.training.loop import predict
from bdbench.records.count import Count
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.workspace import Workspace


@dataclass(frozen=True)
class Answers:
    """Labels and predictions of the test images. All int64 (n,).

    labels: true labels
    goal: the label that the trigger should cause; for most attacks the target. An image whose goal
        is its true label counts for the clean accuracy only.
    clean, triggered: predictions for the images without and with the trigger
    parts: of an attack with parts, the same by part; the fields above are those of the worst
    """

    labels: Tensor
    goal: Tensor
    clean: Tensor
    triggered: Tensor
    parts: Mapping[str, Answers] = field(default_factory=dict)

    def counts(self) -> dict[str, Count]:
        """clean_accuracy: clean images that get their true label
        attack_success_rate: triggered images that get the goal
        robust_accuracy: triggered images that get their true label
        asr_floor: clean images that get the goal

        The last three count victims only: images whose goal is not their true label. With parts,
        they are those of the worst, and each part adds its own, as in `attack_success_rate_sig_2`.
        """
        victims = self.labels != self.goal
        more = {
            f"{metric}_{name}": count
            for name, part in self.parts.items()
            for metric, count in part.counts().items()
            if metric != "clean_accuracy"
        }
        return {
            "clean_accuracy": _count(self.clean == self.labels),
            "attack_success_rate": _count((self.triggered == self.goal)[victims]),
            "robust_accuracy": _count((self.triggered == self.labels)[victims]),
            "asr_floor": _count((self.clean == self.goal)[victims]),
            **more,
        }

    def by_class(self, names: Sequence[str]) -> dict[str, Any]:
        """The same counts by class, see `ByClass`; empty if images of one class have different
        goals."""
        size = len(names)
        labels, goal = self.labels.cpu(), self.goal.cpu()
        goals = torch.arange(size)
        goals[labels] = goal
        if not torch.equal(goals[labels], goal):
            return {}

        def each(chosen: Tensor) -> list[int]:
            return labels[chosen.cpu()].bincount(minlength=size).tolist()

        pairs = (labels * size + self.triggered.cpu()).unique(return_counts=True)
        triggered: list[dict[str, int]] = [{} for _ in names]
        for pair, count in zip(*(part.tolist() for part in pairs), strict=True):
            triggered[pair // size][str(pair % size)] = count
        return {
            "names": list(names),
            "images": labels.bincount(minlength=size).tolist(),
            "clean_own": each(self.clean == self.labels),
            "clean_goal": each(self.clean == self.goal),
            "goals": goals.tolist(),
            "triggered": triggered,
        }


def answers(
    classifier: Classifier,
    test: ImageSet,
    triggered: Tensor,
    goal: Tensor,
    clean: Tensor | None = None,
) -> Answers:
    """Predictions for the clean test set and its triggered copy, uint8 (n, 3, height, width). One
    forward pass of each; a trigger that changes nothing needs only one.

    clean: the predictions for the clean test set, if they are known
    """
    clean = predict(classifier, test.images) if clean is None else clean
    unchanged = torch.equal(triggered, test.images)
    attacked = clean if unchanged else predict(classifier, triggered)
    return Answers(test.labels, goal, clean, attacked)


def evaluate(
    ws: Workspace,
    classifier: Classifier,
    data: PoisonedData,
    rows: Tensor | None = None,
    stage: str = "evaluate",
) -> Answers:
    """See `answers`; timed, and not counted as passes of training.

    rows: int64 (m,), test images; None for all. With parts, one without a victim among these is
        left out.
    stage: that its seconds belong to
    """
    with observed_by(Observer()), ws.stage(stage), ws.seeded("evaluate"):
        test = ws.dataset.test if rows is None else ws.dataset.test[rows]
        found: dict[str, Answers] = {}
        clean = None
        for name, goal in (ws.goals or {"": ws.goal}).items():
            triggered = data.parts[name].triggered if name else data.triggered
            if rows is not None:
                triggered, goal = triggered[rows], goal[rows]
            if not name or bool((goal != test.labels).any()):
                found[name] = answers(classifier, test, triggered, goal, clean)
                clean = found[name].clean
        return worst(found) if ws.goals else found[""]


def worst(parts: Mapping[str, Answers]) -> Answers:
    """The answers of the part with the highest attack success rate, the first by name of several,
    with those of all parts."""
    rates = {name: parts[name].counts()["attack_success_rate"].rate for name in sorted(parts)}
    return replace(parts[max(rates, key=rates.__getitem__)], parts=parts)


def flags(ws: Workspace, classifier: Classifier, counts: Mapping[str, Count]) -> tuple[str, ...]:
    """What a reader must know before comparing this cell with others.

    attack_failed: even the undefended network has an ASR below 50 %, of any part of the attack
    not_finite, at_chance: see these functions; at most one, as nan has no accuracy
    no_op: the defense returned an undefended network unchanged
    """
    found = []
    rates = [count.rate for name, count in counts.items() if "attack_success_rate" in name]
    if ws.cell.is_attacked and not ws.cell.is_defended and min(rates) < 0.5:
        found.append("attack_failed")
    if not_finite(classifier):
        found.append("not_finite")
    elif at_chance(counts["clean_accuracy"], ws.dataset.test):
        found.append("at_chance")
    weights = classifier.state_dict()
    if ws.cell.is_defended and any(_equal(before, weights) for before in ws.undefended.values()):
        found.append("no_op")
    return tuple(found)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two networks have the same weights, on whatever devices."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].cpu(), other[name].cpu()) for name in one
    )


def check_goal(goal: object, test: ImageSet, owner: str) -> None:
    """Raises `InvalidInput` unless `goal` is a class for each test image.

    owner: the attack whose goal it is
    """
    fits = (
        isinstance(goal, Tensor)
        and goal.dtype == torch.int64
        and goal.shape == test.labels.shape
        and bool(((goal >= 0) & (goal < test.num_classes)).all())
    )
    require(
        fits,
        f"the goal of {owner} must be int64 ({len(test)},), a label in [0, {test.num_classes}) for "
        "each test image",
    )


def check_victims(attack: Attack, test: ImageSet, owner: str) -> None:
    """Raises `InvalidInput` if no test image is a victim of the attack, or of one of its parts: the
    attack success rate would be undefined."""
    for name, part in parts_of(attack).items():
        check_victims(part, test, f"{name} of {owner}")
    with blaming(owner):
        goal = attack.goal(test.labels.clone(), test.num_classes)
    check_goal(goal, test, owner)
    counts = test.labels.bincount(minlength=test.num_classes).tolist()
    absent = ", ".join(str(label) for label, count in enumerate(counts) if not count)
    require(
        bool((goal != test.labels).any()),
        f"{owner} has no victim among the {len(test):,} test images, so its success rate is "
        f"undefined: choose another source or target, or other data; classes without a test image: "
        f"{absent or 'none'}",
    )


def diagnose_parts(
    samples: Mapping[str, Tensor], data: PoisonedData
) -> dict[str, dict[str, dict[str, Any]]]:
    """See `diagnose`, by part: its poisoned images against those that no part poisons."""
    found = {}
    for name, part in data.parts.items():
        rows = part.mask | ~data.mask
        own = {sample: values[rows.to(values.device)] for sample, values in samples.items()}
        found[name] = diagnose(own, part.mask[rows])
    return found


def _count(hits: Tensor) -> Count:
    return Count(hits=int(hits.sum()), of=len(hits))


def sample_with_victim(victims: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """int64 (count,), random rows in order, at least one of them a victim.

    victims: bool (n,)
    """
    order = torch.randperm(len(victims), generator=rng).to(victims.device)
    first = int(victims[order].int().argmax())
    order = torch.cat([order[first : first + 1], order[:first], order[first + 1 :]])
    return order[:count].sort().values


def sample_of_both(mask: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """int64 (count,), random rows in order: half of them from each side of the mask, fewer if one
    side has fewer.

    mask: bool (n,)
    """
    order = torch.randperm(len(mask), generator=rng).to(mask.device)
    inside, outside = order[mask[order]], order[~mask[order]]
    rest = min(len(outside), max(count - len(inside), count - count // 2))
    return torch.cat([inside[: count - rest], outside[:rest]]).sort().values


def not_finite(classifier: Classifier) -> bool:
    """Whether a weight or statistic is nan or infinite, so that predictions mean nothing."""
    return not all(bool(values.isfinite().all()) for values in classifier.state_dict().values())


def at_chance(clean_accuracy: Count, test: ImageSet) -> bool:
    """Whether the accuracy exceeds that of always predicting the largest class by at most three
    standard errors."""
    share = float(test.labels.bincount().max()) / len(test)
    error = (share * (1 - share) / len(test)) ** 0.5
    return bool(clean_accuracy.rate <= share + 3 * error)


def auroc(low: Tensor, high: Tensor) -> float:
    """The probability that a value of `low` (m,) is below one of `high` (n,), in which ties count
    half: the Mann-Whitney statistic. That of SciPy is the same; importing it takes a second, which
    every run would pay."""
    ordered = high.sort().values
    above, at_least = (
        float((len(high) - torch.searchsorted(ordered, low, right=right)).sum())
        for right in (True, False)
    )
    return (above + at_least) / 2 / (len(low) * len(high))


def diagnose(
    samples: Mapping[str, Tensor], mask: Tensor, labels: Tensor | None = None
) -> dict[str, dict[str, Any]]:
    """How well per-sample values (n,) of a journal separate poisoned from clean images.

    mask: bool (n,), poisoned images
    labels: int64 (n,), for `by_class`

    auroc: probability that a poisoned image has a lower value than a clean one; ties count half
    mean_poisoned, mean_clean: of the values
    by_class: the mean over the clean images of each class, None for a class without one
    tpr, fpr: of a verdict, the shares of poisoned and of clean images with value 0, which calls
        them poisoned: TP / (TP + FN) and FP / (FP + TN). A verdict has the values 0 and 1; one that
        is all 0 or all 1 is known by its name, as constant scores are none.
    precision, recall: likewise, if any image is called poisoned; recall is the TPR
    not_finite: number of values that are nan or infinite, if any; all the above leave them out
    """
    result: dict[str, dict[str, Any]] = {}
    for name, values in samples.items():
        known = values.isfinite()
        poisoned, clean = values[mask & known].double().cpu(), values[~mask & known].double().cpu()
        summary = {"not_finite": float((~known).sum())} if not known.all() else {}
        binary = bool(((values == 0) | (values == 1)).all())
        verdict = binary and (name == KEPT or bool((values == 0).any() and (values == 1).any()))
        if len(clean):
            summary["mean_clean"] = float(clean.mean())
            if verdict:
                summary["fpr"] = float((clean == 0).double().mean())
        if len(poisoned):
            summary["mean_poisoned"] = float(poisoned.mean())
            if verdict:
                summary["tpr"] = float((poisoned == 0).double().mean())
        if len(poisoned) and len(clean):
            summary["auroc"] = auroc(poisoned, clean)
            called = float((values == 0).sum())
            if called and verdict:
                found = float((poisoned == 0).sum())
                summary |= {"precision": found / called, "recall": found / len(poisoned)}
        result[name] = {key: round(value, 6) for key, value in summary.items()}
        if labels is not None and len(clean):
            result[name]["by_class"] = _means(clean, labels[~mask & known], int(labels.max()) + 1)
    return result


def _means(values: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    """The mean of the values (n,) with each label (n,); None for a class that none has."""
    counts = labels.cpu().bincount(minlength=classes)
    sums = torch.zeros(classes, dtype=values.dtype).index_add_(0, labels.cpu(), values)
    pairs = zip(sums.tolist(), counts.tolist(), strict=True)
    return [round(total / count, 6) if count else None for total, count in pairs]
