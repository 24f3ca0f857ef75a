"""The one training loop, and the plain training and querying of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.training.augment import to_float
from bdbench.models.training.feed import BATCH_SOURCES
from bdbench.models.training.feed import Batch as Batch
from bdbench.models.training.feed import steps_per_epoch as steps_per_epoch
from bdbench.models.training.graphs import LearningRates, Runner, recorder_for
from bdbench.models.training.recipe import Recipe
from bdbench.models.training.resume import State, resumable, round_around

ROUNDS = 20
"""Of a training counted in updates: how often it is kept, and a point of its curve drawn."""
ASKED = {"cpu": 256, "cuda": 2_000}
"""Images that a network is asked about at once, by device."""


Step = Callable[..., Any]


def loop(
    step: Step,
    *data: ImageSet,
    recipe: Recipe,
    rng: torch.Generator,
    state: State,
    until: Callable[[], bool] = lambda: False,
    updates: int | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> None:
    """Call `step` with one `Batch` per image set until the first set has been seen `epochs` times,
    or until `until`, which is asked after every round and may wait for the device, says so.

    updates: how often `step` is called, in place of the recipe's epochs. A round is an epoch, or a
        twentieth of the updates.
    batch_sizes: of the image sets, where not all are the recipe's; a set with fewer images is one
        batch

    Every set is reshuffled each time it is used up; a shorter one starts anew. `state` names all
    that `step` and `until` change: a training that was broken off goes on from a stored copy of it
    (`resume.py`). The optimizers in it follow the recipe's decay, each from its own initial
    learning rate, which it has again at the end.

    With `recipe.graphs` the step is recorded on a GPU (`graphs.py`), so it must not wait for the
    device: no `.item()`, no branch on a tensor. What it keeps it changes in place.
    """
    require(bool(data) and all(len(part) > 0 for part in data), "a training needs images")
    feed_of = BATCH_SOURCES[recipe.loader]
    sizes = batch_sizes or [recipe.batch_size] * len(data)
    feeds = [
        feed_of(d, recipe.augmentation, size, rng) for d, size in zip(data, sizes, strict=True)
    ]
    first = feeds[0]
    if updates is None:
        a_round, total = len(first.sizes), len(first.sizes) * recipe.epochs
    else:
        a_round, total = math.ceil(updates / ROUNDS), updates
    rounds = math.ceil(total / a_round)
    # An epoch ends where a pass does, and so does what the first feed would have to keep.
    kept = enumerate(feeds[1:] if updates is None else feeds)
    # A slash, so that they differ from a step's own names.
    ours: State = {"loop/rng": rng, **{f"loop/feed {n}": feed for n, feed in kept}}

    def take_and_step(*sizes: int) -> None:
        step(*(feed.take(size) for feed, size in zip(feeds, sizes, strict=True)))

    recorder = recorder_for(first.data.device, recipe.graphs) if feed_of.recordable else None
    run = Runner(take_and_step, recorder, recipe.compiled)
    rates = LearningRates(
        [part for part in state.values() if isinstance(part, Optimizer)], recorder
    )
    looker = observer.current()
    passes, rest = divmod(total, len(first.sizes))
    seen = passes * len(first.data) + sum(first.sizes[:rest])
    looker.loop_started(rounds, seen, round_around())
    with recorder.prepared() if recorder else nullcontext():
        for done in resumable(rounds, {**state, **ours}, until):
            for update in range(done * a_round, min((done + 1) * a_round, total)):
                rates.set(recipe.decay(update / total))
                wide = [feed.advance() for feed in feeds]
                run(*wide)
                looker.trained(wide[0])
            looker.round_ended(done + 1)
        rates.release()


def train(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    rng: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    updates: int | None = None,
) -> Classifier:
    """Minimise `loss(logits, labels)` over `data`, for the recipe's epochs or so many updates;
    returns `model`, changed and in eval mode."""
    optimizer = recipe.sgd(model)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(model(batch.images), batch.labels).backward()
        optimizer.step()

    model.train()
    state: State = {"model": model, "optimizer": optimizer}
    loop(step, data, recipe=recipe, rng=rng, state=state, updates=updates)
    return model.eval()


def logits(model: Classifier, images: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) -> float32 (n, classes) in eval mode; the mode is kept."""
    return _ask(model, model, images)


def features(model: Classifier, images: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) -> float32 (n, channels), the embeddings, as `logits`."""
    return _ask(model, model.features, images)


@torch.inference_mode()
def _ask(model: Classifier, question: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    training = model.training
    model.eval()
    wide = ASKED[images.device.type]
    parts = [question(to_float(part)) for part in images.split(wide)]
    model.train(training)
    return torch.cat(parts)


def predict(model: Classifier, images: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) -> int64 (n,), the class of the largest logit."""
    return logits(model, images).argmax(1)


def sample_losses(model: Classifier, data: ImageSet) -> Tensor:
    """float32 (n,): cross entropy of every image as it is, in eval mode."""
    return cross_entropy(logits(model, data.images), data.labels, reduction="none")
