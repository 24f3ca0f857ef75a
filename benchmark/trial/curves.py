"""Numbers for figures: points of curves, and what is stored beside a record."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bdbench.cells.cost import Sample
from bdbench.defenses.base import Journal
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import Observer, observed_by
from bdbench.models.rng import stream
from bdbench.models.training.loop import features, sample_losses
from bdbench.records.count import Count
from bdbench.records.record import METRICS, STANDS, TESTED, TRAINED
from bdbench.storage.cache import DAMAGE
from bdbench.storage.keys import digest_of
from bdbench.storage.networks import weights_sha256
from bdbench.trial.evaluation import evaluate, sample_of_both, sample_with_victim
from bdbench.trial.monitor import Point
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.provenance import sources
from bdbench.trial.record import finite
from bdbench.trial.workspace import Workspace

POINT = ("epoch", *METRICS, "clean_loss", "poisoned_loss", *STANDS)
"""Fields of a point of a curve."""
EMBEDDED = 2_000
"""Training images whose embeddings are stored, at most."""


def start_curve(ws: Workspace, data: PoisonedData) -> None:
    """Let the monitor evaluate networks while they train, if the run asks for curves."""
    if ws.curves:
        ws.monitor.judge = lambda classifier, few: point(ws, classifier, data, few)
        ws.monitor.sizes = len(data.train), len(ws.dataset.test), max(1, len(data.parts))
        ws.monitor.embed = lambda classifier: _embedding(ws, classifier, data)


def end_curve(ws: Workspace, classifier: Classifier, counts: Mapping[str, Count]) -> None:
    """End the curve at the network that the defense returned, whose metrics are known."""
    ws.monitor.close(classifier)
    if ws.monitor.ends_at(classifier):
        ws.monitor.curve[-1] |= _shares(counts)


def point(ws: Workspace, classifier: Classifier, data: PoisonedData, few: Sample) -> Point:
    """Metrics on some test images and mean losses on some training images, unaugmented. A larger
    sample contains the smaller ones."""
    tested = sample_with_victim(ws.victims, few.test, stream(ws.cell.seed, "curve", "test"))
    trained = sample_of_both(data.mask, few.training, stream(ws.cell.seed, "curve"))
    shares = _shares(evaluate(ws, classifier, data, tested).counts())
    with observed_by(Observer()), ws.stage("evaluate"):
        losses, poisoned = sample_losses(classifier, data.train[trained]), data.mask[trained]
        parts = {"clean_loss": losses[~poisoned], "poisoned_loss": losses[poisoned]}
        means = finite({name: float(part.mean()) for name, part in parts.items()})
    rounded = {name: mean if mean is None else round(mean, 6) for name, mean in means.items()}
    return {**shares, **rounded, TRAINED: len(trained)}


def keep(ws: Workspace, journal: Journal, data: PoisonedData) -> None:
    """Store the data of figures, as the entry `{"cell": key}` of the kind "embeddings", with the
    hash of the network that the defense returned.

    mask: bool (n,), training images with the trigger
    samples/<name>: float32 or float64 (n,), what a defense published for each training image
    rows: int64 (m,), the training images of the following arrays
    labels, true_labels: int64 (m,), as given to the defense and before the attack
    poisoned: bool (m,)
    embedding/<name>/before, embedding/<name>/after: float32 (m, d), of a network before and after
        its training; z is the network that a defense returns, r is CBD's f_B
    """
    tensors = {f"samples/{name}": values for name, values in journal.samples.items()}
    if not ws.monitor.embedded and (not tensors or _has_embeddings(ws)):
        # A repetition without curves, such as that of an export, must not cost those of the cell.
        return
    tensors["mask"] = data.mask
    if ws.monitor.embedded:
        rows = _embedded_rows(ws)
        tensors |= {
            "rows": rows,
            "labels": data.train.labels[rows],
            "true_labels": ws.dataset.train.labels[rows],
            "poisoned": data.mask[rows],
        }
    for name, (network, before) in ws.monitor.embedded.items():
        tensors[f"embedding/{name}/before"] = before
        tensors[f"embedding/{name}/after"] = _embedding(ws, network, data)
    arrays = {name: values.detach().cpu().numpy() for name, values in tensors.items()}
    meta: dict[str, Any] = {"sources": sources(ws.cell)}
    if ws.network is not None:
        meta["network_sha256"] = weights_sha256(ws.network.state_dict())
    ws.cache.put("embeddings", {"cell": ws.cell.key}, arrays, meta)


def _has_embeddings(ws: Workspace) -> bool:
    """Whether a run of this cell by the same code has stored embeddings."""
    key = {"cell": ws.cell.key}
    with suppress(*DAMAGE):
        own = sources(ws.cell)
        meta = ws.cache.meta_of("embeddings", digest_of(key))
        arrays = ws.cache.get("embeddings", key) or {}
        return meta.get("sources", own) == own and "rows" in arrays
    return False


def _shares(counts: Mapping[str, Count]) -> Point:
    """Metrics as shares in [0, 1], and the number of test images."""
    rates = {name: round(count.rate, 6) for name, count in counts.items()}
    return {**rates, TESTED: counts["clean_accuracy"].of}


def _embedding(ws: Workspace, classifier: Classifier, data: PoisonedData) -> Tensor:
    """float32 (m, d), of the training images `_embedded_rows`."""
    with observed_by(Observer()), ws.stage("evaluate"):
        return features(classifier, data.train.images[_embedded_rows(ws)]).cpu()


def _embedded_rows(ws: Workspace) -> Tensor:
    """int64 (m,), a fixed random choice of training images, in order."""
    count = len(ws.dataset.train)
    order = torch.randperm(count, generator=stream(ws.cell.seed, "embedding"))
    return order[:EMBEDDED].sort().values.to(ws.device)
