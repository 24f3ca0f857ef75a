"""The one training loop, plain training, and queries of a classifier.

A step of `loop` passes through six modules, in this order:

- `resume.py` restores the last checkpoint of an interrupted loop, and starts a round.
- `recipe.py` gives the decay of the learning rates, which `graphs.py` sets in the optimizers.
- `feed.py` moves every image set to its next mini-batch. At the start of a pass it makes the draws
  of the whole pass.
- `graphs.py` runs the step, eagerly or as a replayed CUDA graph. The step begins with the
  mini-batches, which `feed.py` gathers on the device.
- `augment.py` augments them by these draws; then the step of the method runs.
- `bdbench.models.observer` counts its forward and backward passes and reports progress.

At the end of a round, `resume.py` offers a checkpoint to its store.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bdbench.models import observer
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import at_least, require
from bdbench.models.training.augment import to_float
from bdbench.models.training.feed import BATCH_SOURCES, Batch
from bdbench.models.training.graphs import LearningRates, StepRunner, recorder_for
from bdbench.models.training.recipe import Recipe
from bdbench.models.training.resume import State, enclosing_round, resumable

ROUNDS = 20
"""Rounds of a training counted in updates; a round ends with a checkpoint and a curve point."""
EVALUATION_BATCH = {"cpu": 256, "cuda": 512}
"""Images in one forward pass of an evaluation, by device, at most. On a GPU, so many take no more
memory than a training step of 128."""
EVALUATION_PIXELS = 2_000 * 64 * 64
"""Pixels of the images in one forward pass of an evaluation on a GPU: 163 images of 224 pixels."""


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
    """Call `step` with one `Batch` of each image set, for `recipe.epochs` passes over the first
    set, or until `until` returns True.

    until: called after every round; it may synchronise with the device
    updates: number of steps, at least 1, in place of the recipe's epochs. A round is an epoch, or
        a twentieth of the updates.
    batch_sizes: one for each image set, at least 1, by default the recipe's; a smaller set is one
        batch

    Every set is reshuffled when it is exhausted, and a shorter one starts again. `state` names
    everything that `step` and `until` change: an interrupted training resumes from a stored copy of
    it (`resume.py`). The optimizers in `state` follow the recipe's decay, each from its own initial
    learning rate, which is restored at the end.

    With `recipe.graphs` a GPU captures the step (`graphs.py`), so the step must not synchronise
    with the device: no `.item()`, no branch on a tensor. It must update its own tensors in place.

    Raises `InvalidInput` if an image set is empty, and for smaller `updates` or `batch_sizes`.
    """
    require(
        bool(data) and all(len(part) > 0 for part in data),
        "a training needs images, but an image set is empty",
    )
    source_type = BATCH_SOURCES[recipe.loader]
    sizes = [recipe.batch_size] * len(data) if batch_sizes is None else batch_sizes
    for size in sizes:
        at_least(1, batch_sizes=size)
    if updates is not None:
        at_least(1, updates=updates)
    sources = [
        source_type(d, recipe.augmentation, size, rng) for d, size in zip(data, sizes, strict=True)
    ]
    first = sources[0]
    if updates is None:
        round_length, total = len(first.sizes), len(first.sizes) * recipe.epochs
    else:
        round_length, total = math.ceil(updates / ROUNDS), updates
    rounds = math.ceil(total / round_length)
    # An epoch ends with a pass, so the position of the first source needs no checkpoint.
    stored = enumerate(sources[1:] if updates is None else sources)
    # A slash, so that these names differ from those of a step.
    own: State = {"loop/rng": rng, **{f"loop/feed {n}": source for n, source in stored}}

    def take_and_step(*sizes: int) -> None:
        step(*(source.take(size) for source, size in zip(sources, sizes, strict=True)))

    recorder = recorder_for(first.data.device, recipe.graphs) if source_type.capturable else None
    run = StepRunner(take_and_step, recorder, recipe.compiled)
    rates = LearningRates(
        [part for part in state.values() if isinstance(part, Optimizer)], recorder
    )
    current = observer.current()
    passes, rest = divmod(total, len(first.sizes))
    seen = passes * len(first.data) + sum(first.sizes[:rest])
    current.loop_started(rounds, seen, enclosing_round())
    with recorder.prepared() if recorder else nullcontext():
        for done in resumable(rounds, {**state, **own}, until):
            for update in range(done * round_length, min((done + 1) * round_length, total)):
                rates.set(recipe.decay(update / total))
                next_sizes = [source.advance() for source in sources]
                run(*next_sizes)
                current.trained(next_sizes[0])
            current.round_ended(done + 1)
        rates.release()


def train(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    rng: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    updates: int | None = None,
) -> Classifier:
    """Minimise `loss(logits, labels)` over `data` for the recipe's epochs, or for so many updates.
    Changes `model` in place and returns it in eval mode."""
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
    """uint8 (n, 3, height, width) -> float32 (n, classes), computed in eval mode; the modes of the
    model and its layers are restored."""
    return _evaluate(model, model, images)


def features(model: Classifier, images: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) -> the embeddings, float32 (n, channels), as `logits`."""
    return _evaluate(model, model.features, images)


# Not in inference mode: a network may need the gradient of its input, or keep a tensor.
@torch.no_grad()
def _evaluate(model: Classifier, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with evaluating(model):
        batches = images.split(_evaluation_batch(images))
        return torch.cat([function(to_float(batch)) for batch in batches])


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A network in eval mode. Afterwards, each of its layers has its own mode again: a defense may
    train it with some of them in eval mode."""
    modes = [(layer, layer.training) for layer in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def _evaluation_batch(images: Tensor) -> int:
    """How many of uint8 (n, 3, height, width) go through a network at a time."""
    most = EVALUATION_BATCH[images.device.type]
    if images.device.type == "cpu":
        return most
    return max(1, min(most, EVALUATION_PIXELS // (images.shape[2] * images.shape[3])))


def predict(model: Classifier, images: Tensor) -> Tensor:
    """uint8 (n, 3, height, width) -> int64 (n,), the class of the largest logit."""
    return logits(model, images).argmax(1)


def accuracy(model: Classifier, data: ImageSet) -> float:
    """The share of the images that get their label, in [0, 1]."""
    return float((predict(model, data.images) == data.labels).double().mean())


def sample_losses(model: Classifier, data: ImageSet) -> Tensor:
    """float32 (n,): the cross entropy of every image, in eval mode and without augmentation."""
    return cross_entropy(logits(model, data.images), data.labels, reduction="none")
