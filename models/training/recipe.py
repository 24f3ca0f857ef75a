"""The recipe: how a network is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from torch.optim import SGD

from bdbench.models.plugins.errors import above, at_least, batch_sizes, one_of, require
from bdbench.models.plugins.spec import added, fields_of
from bdbench.models.training.augment import Augmentation
from bdbench.models.training.feed import BATCH_SOURCES

PRECISIONS = ("fp32", "bf16")
LARGEST_EDGE = 1_000


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Defaults: CBD paper, section 5.1; where it is silent, its code.

    epochs: passes over the training set (paper)
    batch_size: images, at least 2 (our choice; not in the paper, and 64 in the code)
    learning_rate: at the start (paper: 0.1, and 0.01 on GTSRB)
    momentum, weight_decay: of SGD, in [0, 1) and at least 0 (paper)
    nesterov: use Nesterov momentum; ignored without momentum (code)
    drops: the learning rate falls tenfold when these shares of a training are done (code: 20, 70)
    padding: pixels of zeros around an image before its random crop (paper: "as in ABL")
    flip: mirror left-right at random; off for a data set whose labels a mirror image changes
    cutout: side of the zeroed square in pixels (the paper gives none; the code zeroes 2 x 2)
    precision: of the network's body, fp32 or bf16; losses and updates are always fp32
    loader: "resident" gathers batches on the device of the images; "reference" makes the same
        batches as public code does, image by image in worker processes, and uses its memory layout,
        to compare seconds
    compiled: run the network's body through torch.compile, which rounds differently
    graphs: on a GPU, capture steps as CUDA graphs and replay them; no effect elsewhere, nor with
        the "reference" loader. Run `bdbench doctor` first.
    updates: factor on the lengths of stages that are counted in updates, such as those on lent
        clean images; 1 is as published, and a suite may set less
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
    loader: str = added("resident")
    compiled: bool = added(False)
    graphs: bool = added(False)
    updates: float = added(1.0)

    def __post_init__(self) -> None:
        for name, field in fields_of(Recipe).items():
            # So that a recipe built in Python has the same spec as one parsed from text.
            object.__setattr__(self, name, field.accept(getattr(self, name), "the recipe"))
        at_least(1, epochs=self.epochs)
        batch_sizes(batch_size=self.batch_size)
        above(0, learning_rate=self.learning_rate, updates=self.updates)
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        at_least(0, weight_decay=self.weight_decay)
        for name in ("padding", "cutout"):
            value = getattr(self, name)
            require(
                0 <= value <= LARGEST_EDGE, f"{name} must be from 0 to {LARGEST_EDGE}, got {value}"
            )
        require(
            all(0 < drop < 1 for drop in self.drops),
            f"drops must be shares of the epochs between 0 and 1, got {self.drops}",
        )
        one_of(PRECISIONS, precision=self.precision)
        one_of(BATCH_SOURCES, loader=self.loader)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation(self.padding, self.flip, self.cutout)

    @property
    def still(self) -> Recipe:
        """The same recipe without augmentation."""
        return replace(self, padding=0, flip=False, cutout=0)

    def decay(self, done: float) -> float:
        """The factor on the initial learning rates after a share of a training, in [0, 1). The
        first update of any training has the full rate."""
        # A drop at 0.7 of 10 epochs must take effect after 7 of them.
        return 0.1 ** sum(done >= drop - 1e-9 for drop in self.drops)

    def scaled(self, epochs: int) -> int:
        """The length of a stage in epochs, given for a recipe of 100 epochs; at least 1."""
        return max(1, round(epochs * self.epochs / 100))

    def shortened(self, updates: int) -> int:
        """The number of updates that replaces a published number of updates on lent clean images;
        at least 1."""
        return max(1, round(updates * self.updates))

    def sgd(self, model: nn.Module) -> SGD:
        """The recipe's optimizer for the parameters of `model`."""
        return SGD(
            model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
        )
