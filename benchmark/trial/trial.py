"""One trial, the only place where an attack meets a defense: poison, lend, fit, evaluate, keep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from bdbench.attacks.compound import parts_of
from bdbench.attacks.registry import attacks
from bdbench.defenses.base import Context, Journal
from bdbench.machine.surroundings import surroundings_kept
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier, check_network
from bdbench.models.plugins.spec import Spec
from bdbench.trial import company
from bdbench.trial.clean_budget import budget_of, size_of
from bdbench.trial.curves import end_curve, keep, start_curve
from bdbench.trial.evaluation import Answers, diagnose, diagnose_parts, evaluate, flags
from bdbench.trial.guard import read_only
from bdbench.trial.journal import published
from bdbench.trial.poisoned import PoisonedData, poison
from bdbench.trial.reactivation import reactivated, retuning_size
from bdbench.trial.record import finite
from bdbench.trial.undefended import train_undefended, undefended_copy
from bdbench.trial.workspace import Workspace


def run_trial(ws: Workspace) -> dict[str, Any]:
    """Poison, defend and evaluate. Returns the fields of a record that hold results. Raises
    whatever the attack or the defense raises; `ws` then holds what was made before."""
    data = ws.poisoned = poison(ws)
    start_curve(ws, data)
    with lend(ws, data) as context:
        classifier = fit(ws, data.train, context)
    ws.network = classifier
    answers = evaluate(ws, classifier, data)
    end_curve(ws, classifier, answers.counts())
    context = replace(context, journal=published(context.journal, len(data.train), ws.device))
    keep(ws, context.journal, data)
    found = results(ws, data, context, answers)
    if ws.reactivate:
        found["metrics"] = {**found["metrics"], **reactivated(ws, classifier, data)}
        if size := retuning_size(ws, data):
            found["diagnostics"] = {**found["diagnostics"], "retuned": size}
    return found


@contextmanager
def lend(ws: Workspace, data: PoisonedData) -> Iterator[Context]:
    """All that the defense gets beside the poisoned training set, which it must not change: that is
    checked at the end of the block."""
    defense, clean = ws.cell.defense, ws.dataset.train
    for n in range(defense.undefended):
        # Before the defense sees the training set.
        train_undefended(ws, data.train, n)
    plugin = f"defense {ws.cell.labels['defense']}"
    with read_only(plugin, "the training set", data.train) as check:

        def undefended(n: int) -> Classifier:
            if n not in ws.undefended:
                check()
                train_undefended(ws, data.train, n, announced=False)
            return undefended_copy(ws, n)

        yield Context(
            **vars(ws.training),
            clean=budget_of(ws.cell, clean),
            journal=Journal(),
            train_undefended=undefended,
        )


def fit(ws: Workspace, data: ImageSet, context: Context) -> Classifier:
    """The network that the defense returns, resumed from a checkpoint if there is one. It is
    evaluated in the surroundings in which the defense began."""
    company.enter(ws.cell, "defense")
    with surroundings_kept(), ws.resumable("fit", ws.fit_key, ws.monitor), ws.seeded("fit"):
        classifier = ws.cell.defense.fit(data, context)
        owner = f"defense {Spec.of(ws.cell.specs['defense']).name!r}"
        check_network(classifier, data.num_classes, data.size[0], owner, "fit")
    return classifier


def results(
    ws: Workspace, data: PoisonedData, context: Context, answers: Answers
) -> dict[str, Any]:
    """The fields of a record that hold what came out of a trial."""
    assert ws.network is not None
    counts, images = answers.counts(), len(data.train)
    return {
        "status": "ok",
        "metrics": counts,
        "classes": answers.by_class(ws.dataset.class_names),
        "passes": {
            "forward": round(ws.monitor.forwards / images, 6),
            "backward": round(ws.monitor.backwards / images, 6),
        },
        "flags": flags(ws, ws.network, counts),
        "curves": ws.monitor.curve,
        "diagnostics": _diagnostics(ws, data, context),
        "error": None,
    }


def _diagnostics(ws: Workspace, data: PoisonedData, context: Context) -> dict[str, Any]:
    """What attack and defense report about themselves, beside what the poison mask says of it."""
    journal, clean = context.journal, ws.dataset.train
    by_part = diagnose_parts(journal.samples, data)
    parts = {
        name: {
            "attack": attacks.label(part),
            **data.part(name).extent(clean, part.target),
            **({"samples": by_part[name]} if by_part[name] else {}),
        }
        for name, part in parts_of(ws.cell.attack).items()
    }
    extent = data.extent(clean, ws.cell.attack.target)
    if parts:
        # Each part has a target of its own.
        del extent["share_of_target_class"]
    return {
        **extent,
        **({"parts": parts} if parts else {}),
        **size_of(context.clean, clean, ws.cell.defense.clean_images),
        "attack": dict(data.facts),
        "scalars": finite(journal.scalars),
        "samples": diagnose(journal.samples, data.mask, data.train.labels),
        **({"warnings": journal.warnings} if journal.warnings else {}),
    }
