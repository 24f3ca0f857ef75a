"""How well a classifier does, and how far an attack got. Definitions: CBD paper, section 5.1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from bdbench.attacks.base import Attack
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import require
from bdbench.models.training.loop import predict
from bdbench.records.count import Count


@dataclass(frozen=True)
class Answers:
    """What a network calls each test image, and what it is to be called. All int64 (n,).

    labels: the own ones
    goal: what the trigger is to make of each image; for most attacks the target. Where it is the
        true label, the image counts for the clean accuracy only.
    clean, triggered: the answers to the images as they are and with the trigger
    """

    labels: Tensor
    goal: Tensor
    clean: Tensor
    triggered: Tensor

    def counts(self) -> dict[str, Count]:
        """clean_accuracy: clean images of all classes that get their own label
        attack_success_rate: triggered images that get the label that is the goal
        robust_accuracy: triggered images that still get their own label
        asr_floor: clean images that get the label that is the goal
        """
        victims = self.labels != self.goal
        return {
            "clean_accuracy": _count(self.clean == self.labels),
            "attack_success_rate": _count((self.triggered == self.goal)[victims]),
            "robust_accuracy": _count((self.triggered == self.labels)[victims]),
            "asr_floor": _count((self.clean == self.goal)[victims]),
        }

    def by_class(self, names: Sequence[str]) -> dict[str, Any]:
        """The same counts by class, see `ByClass`; empty where images of one class have several
        goals, since no row of a class could say which was met."""
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


def answers(classifier: Classifier, test: ImageSet, triggered: Tensor, goal: Tensor) -> Answers:
    """To the clean test set and its triggered copy, uint8 (n, 3, height, width). One forward pass
    of each; where the trigger changes nothing, one of both."""
    clean = predict(classifier, test.images)
    unchanged = torch.equal(triggered, test.images)
    attacked = clean if unchanged else predict(classifier, triggered)
    return Answers(test.labels, goal, clean, attacked)


def evaluate(
    classifier: Classifier, test: ImageSet, triggered: Tensor, goal: Tensor
) -> dict[str, Count]:
    """See `answers` and `Answers.counts`."""
    return answers(classifier, test, triggered, goal).counts()


def check_victims(attack: Attack, test: ImageSet, owner: str) -> None:
    """Raises `InvalidInput` unless the trigger is to turn some of the test images: without one
    there is no attack success rate, which is better known before anything trains."""
    with blaming(owner):
        goal = attack.goal(test.labels.clone(), test.num_classes)
    counts = test.labels.bincount(minlength=test.num_classes).tolist()
    absent = ", ".join(str(label) for label, count in enumerate(counts) if not count)
    require(
        bool((goal != test.labels).any()),
        f"{owner} is to turn none of the {len(test):,} test images, so it has no success rate: "
        f"choose another source or target, or other data; without a test image are the classes "
        f"{absent or 'none'}",
    )


def _count(hits: Tensor) -> Count:
    return Count(hits=int(hits.sum()), of=len(hits))


def some(victims: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """int64 (count,), rows by chance in their order, one of the victims, bool (n,), among them."""
    order = torch.randperm(len(victims), generator=rng).to(victims.device)
    first = int(victims[order].int().argmax())
    order = torch.cat([order[first : first + 1], order[:first], order[first + 1 :]])
    return order[:count].sort().values


def of_both(mask: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """int64 (count,), rows by chance in their order: as many where the mask, bool (n,), is True as
    where it is not, as far as there are."""
    order = torch.randperm(len(mask), generator=rng).to(mask.device)
    inside, outside = order[mask[order]], order[~mask[order]]
    rest = min(len(outside), max(count - len(inside), count - count // 2))
    return torch.cat([inside[: count - rest], outside[:rest]]).sort().values


def not_finite(classifier: Classifier) -> bool:
    """Whether a weight or statistic is no finite number, so that answers mean nothing."""
    return not all(bool(values.isfinite().all()) for values in classifier.state_dict().values())


def at_chance(clean_accuracy: Count, test: ImageSet) -> bool:
    """Whether accuracy is not above that of always guessing one class, by three standard errors of
    the guess."""
    share = float(test.labels.bincount().max()) / len(test)
    error = (share * (1 - share) / len(test)) ** 0.5
    return bool(clean_accuracy.rate <= share + 3 * error)


def diagnose(samples: Mapping[str, Tensor], mask: Tensor) -> dict[str, dict[str, float]]:
    """What per-sample values (n,) of a journal say about the poison mask, bool (n,).

    auroc: chance that a poisoned image has a lower value than a clean one, ties counting half
    mean_poisoned, mean_clean: of the values
    tpr, fpr: where there are only 0 and 1, the shares of poisoned and of clean images that have 0,
        which calls them poisoned: TP / (TP + FN) and FP / (FP + TN)
    precision, recall: of the same, where some images are called poisoned; recall is the TPR
    not_finite: how many values are no finite numbers, if any; they are left out of all the above
    """
    result = {}
    for name, values in samples.items():
        known = values.isfinite()
        poisoned, clean = values[mask & known].double().cpu(), values[~mask & known].double().cpu()
        summary = {"not_finite": float((~known).sum())} if not known.all() else {}
        verdict = bool(((values == 0) | (values == 1)).all())
        if len(clean):
            summary["mean_clean"] = float(clean.mean())
            if verdict:
                summary["fpr"] = float((clean == 0).double().mean())
        if len(poisoned):
            summary["mean_poisoned"] = float(poisoned.mean())
            if verdict:
                summary["tpr"] = float((poisoned == 0).double().mean())
        if len(poisoned) and len(clean):
            above = mannwhitneyu(clean.numpy(), poisoned.numpy()).statistic
            summary["auroc"] = float(above) / (len(poisoned) * len(clean))
            called = float((values == 0).sum())
            if called and verdict:
                found = float((poisoned == 0).sum())
                summary |= {"precision": found / called, "recall": found / len(poisoned)}
        result[name] = {key: round(value, 6) for key, value in summary.items()}
    return result


def finite(scalars: Mapping[str, float]) -> dict[str, float | None]:
    """The same numbers as JSON can hold them: None for one that is not finite."""
    return {name: float(n) if math.isfinite(n) else None for name, n in scalars.items()}
