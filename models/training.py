"""The one training loop, and the plain training and querying of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from models import observer
from models.augment import Augmentation, Tape, augment, draw_tape, to_float
from models.checkpoints import State, resumable
from models.classifier import Classifier
from models.data import ImageSet
from models.errors import check

PRECISIONS = ("fp32", "bf16")
ASKED = {"cpu": 256, "cuda": 2_000}
"""Images that a network is asked about at once, by device."""
LARGEST_BATCH = 2**20
LARGEST_EDGE = 1_000


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Defaults: CBD paper, section 5.1; where it is silent, its code.

    epochs: passes over the training set (paper)
    batch_size: images (not in the paper)
    learning_rate: at the start (paper: 0.1, and 0.01 on GTSRB)
    momentum, weight_decay: of SGD (paper)
    nesterov: Nesterov's form of momentum (code)
    drops: the learning rate falls tenfold when these shares of the epochs are done (code: 20, 70)
    padding: pixels of zeros around an image before its random crop (paper: "as in ABL")
    flip: mirror left-right at random; a data set whose labels do not survive it turns it off
    cutout: side of the zeroed square in pixels (the paper gives none; the code zeroes 2 x 2)
    precision: of the network's body, fp32 or bf16; losses and updates are always fp32
    """

    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = True
    drops: tuple[float, ...] = (0.2, 0.7)
    padding: int = 4
    flip: bool = True
    cutout: int = 2
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        check(self.batch_size >= 2, f"batch_size must be at least 2, got {self.batch_size}")
        check(self.batch_size <= LARGEST_BATCH, f"batch_size must be at most {LARGEST_BATCH:,}")
        check(self.learning_rate > 0, f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("padding", "cutout"):
            value = getattr(self, name)
            check(
                0 <= value <= LARGEST_EDGE, f"{name} must be from 0 to {LARGEST_EDGE}, got {value}"
            )
        check(
            all(0 < drop < 1 for drop in self.drops),
            f"drops must be shares of the epochs between 0 and 1, got {self.drops}",
        )
        check(
            self.precision in PRECISIONS,
            f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}",
        )

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.padding, self.flip, self.cutout)

    def decay(self, epoch: int) -> float:
        """What the initial learning rates are multiplied by in `epoch`, counted from 0."""
        return 0.1 ** sum(epoch >= round(drop * self.epochs) for drop in self.drops)

    def sgd(self, model: nn.Module) -> SGD:
        """The recipe's optimizer for the parameters of `model`."""
        return SGD(
            model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


@dataclass(frozen=True)
class Batch:
    """What a step sees of one image set.

    images: float32 (b, 3, height, width) in [0, 1], augmented, channels last
    labels: int64 (b,)
    index: int64 (b,), positions in the image set
    """

    images: Tensor
    labels: Tensor
    index: Tensor


Step = Callable[..., Any]


def loop(
    step: Step,
    *data: ImageSet,
    recipe: Recipe,
    rng: torch.Generator,
    state: State,
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Call `step` with one `Batch` per image set until the first set has been seen `epochs` times,
    or until `until`, which is asked after every epoch and may wait for the device, says so.

    Every set is reshuffled each time it is used up; a shorter one starts anew. `state` names all
    that `step` and `until` change: a training that was broken off goes on from a stored copy of it
    (`models.checkpoints`). The optimizers in it follow the recipe's decay, each from its own
    initial learning rate.

    A step must not wait for the device: no `.item()`, no branch on a tensor.
    """
    check(bool(data) and all(len(part) > 0 for part in data), "a training needs images")
    optimizers = [part for part in state.values() if isinstance(part, Optimizer)]
    initial = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    first, *others = data
    looker = observer.current()
    looker.loop_started(recipe.epochs, len(first))
    feeds = [_Feed(part, recipe, rng) for part in others]
    # A slash, so that they differ from a step's own names.
    ours: State = {"loop/rng": rng, **{f"loop/feed {n}": feed for n, feed in enumerate(feeds)}}
    for epoch in resumable(recipe.epochs, {**state, **ours}, until):
        for optimizer, rates in zip(optimizers, initial, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * recipe.decay(epoch)
        for batch in _pass(first, recipe, rng):
            step(batch, *(feed.draw() for feed in feeds))
            looker.trained(len(batch.labels))
        looker.epoch_ended(epoch + 1)


def _pass(data: ImageSet, recipe: Recipe, rng: torch.Generator) -> Iterator[Batch]:
    """All batches of one epoch."""
    tape = _draw(data, recipe, rng)
    for start, stop in _spans(len(data), recipe.batch_size):
        yield _batch(data, tape.slice(start, stop), recipe)


def _draw(data: ImageSet, recipe: Recipe, rng: torch.Generator) -> Tape:
    return draw_tape(len(data), data.size, recipe.augmentation, rng).to(data.device)


def _spans(count: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges that cover `count`; a last range of one image joins the one before,
    because batch statistics of a single image are not defined."""
    start = 0
    while start < count:
        stop = min(start + batch_size, count)
        if count - stop == 1:
            stop = count
        yield start, stop
        start = stop


class _Feed:
    """Batches of one set without end. Its state is how far the current pass has come."""

    def __init__(self, data: ImageSet, recipe: Recipe, rng: torch.Generator) -> None:
        self.data, self.recipe, self.rng = data, recipe, rng
        self.spans = list(_spans(len(data), recipe.batch_size))
        self.used = len(self.spans)
        self.tape: Tape | None = None

    def draw(self) -> Batch:
        """The next batch."""
        if self.used == len(self.spans):
            self.used, self.tape = 0, _draw(self.data, self.recipe, self.rng)
        assert self.tape is not None
        span, self.used = self.spans[self.used], self.used + 1
        return _batch(self.data, self.tape.slice(*span), self.recipe)

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used, "tape": None if self.tape is None else vars(self.tape)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tape = state["tape"]
        self.used = state["used"]
        self.tape = None if tape is None else Tape(**tape).to(self.data.device)


def _batch(data: ImageSet, tape: Tape, recipe: Recipe) -> Batch:
    images = augment(data.images[tape.order], tape, recipe.augmentation)
    return Batch(to_float(images), data.labels[tape.order], tape.order)


def train(
    model: Classifier,
    data: ImageSet,
    recipe: Recipe,
    rng: torch.Generator,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Classifier:
    """Minimise `loss(logits, labels)` over `data`; returns `model`, changed and in eval mode."""
    optimizer = recipe.sgd(model)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        loss(model(batch.images), batch.labels).backward()
        optimizer.step()

    model.train()
    loop(step, data, recipe=recipe, rng=rng, state={"model": model, "optimizer": optimizer})
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


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches one pass over `count` images has."""
    return math.ceil(count / batch_size) - (count > 1 and count % batch_size == 1)
