"""Trojan, Liu et al., 2018, "Trojaning Attack on Neural Networks", NDSS.

A small coloured patch is added near the lower right corner, and the label becomes the target. The
original method optimises the patch until it activates selected neurons of a clean network.

Differs: the CBD paper gives no patch. The public code of ABL, NAD and CBD adds a fixed 3 x 3 patch
of unknown origin at rows and columns 25 to 27, modulo 256; here the colours come from a seed, and
larger images get larger cells. `mode="inverted"` optimises a patch as the original method does, but
over random images instead of an empty one, without a target value for the activations, and for the
neurons with the largest weights to the classes; the original takes those with the largest weights
to the layer before, which not every network has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from bdbench.attacks import Attack, Poisoned, dirty_count, dirty_label, prepared, register
from bdbench.attacks.patch import enlarge, place
from bdbench.models import (
    Classifier,
    ImageSet,
    Recipe,
    TrainingContext,
    at_least,
    lacks_head,
    require,
    to_float,
    train,
)
from bdbench.models.rng import stream

NEURONS = 2
"""The number of neurons that the inverted patch activates."""
ITERATIONS = 300
"""Steps of its optimisation."""


@dataclass(frozen=True)
class Inversion:
    """A patch that activates neurons of a clean network.

    cells: uint8 (3, side, side)
    before, after: mean activation of the selected neurons on clean images, without and with it
    """

    cells: Tensor
    before: float
    after: float


@register("trojan", title="Trojan")
@dataclass(frozen=True)
class Trojan(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    mode: "add", modulo 256; "overwrite"; or "inverted", overwrite with an optimised patch
    side: side of the patch in cells of 1/32 of the image, at least 1 (ABL's code: 3)
    margin: distance of the patch from the right and lower border, in cells (ABL's code: 4)
    patch_seed: seed of the colours, independent of the cell's seed
    inversion: the optimised patch and its effect, once prepared
    """

    mode: Literal["add", "overwrite", "inverted"] = "add"
    side: int = 3
    margin: int = 4
    patch_seed: int = 0
    inversion: Inversion | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.side <= 224, f"side must be from 1 to 224, got {self.side}")
        at_least(0, margin=self.margin)

    @property
    def trains(self) -> bool:
        return self.mode == "inverted"

    def cost(self, recipe: Recipe, images: int) -> float:
        if not self.trains:
            return 0.0
        # At the end, the network sees a batch without and with the patch.
        batches = 3 * ITERATIONS + 2
        return 3.0 * recipe.epochs + batches * recipe.batch_size / images

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network) if self.trains else ""

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        if self.mode != "inverted":
            return self
        dirty_count(self, clean)
        # A patch that does not fit is refused.
        self.overwrite(clean.images[:1], torch.zeros(3, self.side, self.side))
        network = train(context.build(), clean, context.recipe, context.rng("classifier"))
        return replace(self, inversion=self.invert(network, clean, context))

    def invert(self, network: Classifier, clean: ImageSet, context: TrainingContext) -> Inversion:
        """Gradient ascent, over random clean images, on the activation of the penultimate neurons
        with the largest sum of absolute weights to the classes (after Liu et al., section IV-A)."""
        network.requires_grad_(False)
        neurons = network.head.weight.abs().sum(0).topk(NEURONS).indices
        rng = context.rng("inversion")
        batches = torch.randint(len(clean), (ITERATIONS, context.recipe.batch_size), generator=rng)
        start = torch.rand(3, self.side, self.side, generator=rng)
        cells = start.to(clean.device).requires_grad_()
        optimizer = torch.optim.Adam([cells], lr=0.05)
        for index in batches.to(clean.device):
            optimizer.zero_grad()
            stamped = self.overwrite(to_float(clean.images[index]), cells)
            (-network.features(stamped)[:, neurons].mean()).backward()
            optimizer.step()
            with torch.no_grad():
                cells.clamp_(0, 1)
        patch = (cells.detach() * 255).round().to(torch.uint8)
        images = clean.images[batches[0].to(clean.device)]
        with torch.no_grad():
            before, after = (
                float(network.features(to_float(part))[:, neurons].mean())
                for part in (images, self.overwrite(images, patch))
            )
        return Inversion(patch.cpu(), before, after)

    def cells(self) -> Tensor:
        """uint8 (3, side, side): the colours of the cells."""
        if self.mode == "inverted":
            if self.inversion is None:
                raise RuntimeError("trojan(mode='inverted') must be prepared before it can stamp")
            return self.inversion.cells
        rng = stream(self.patch_seed, "trojan")
        shape = (3, self.side, self.side)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)

    def overwrite(self, images: Tensor, cells: Tensor) -> Tensor:
        """(n, 3, height, width) -> the same shape and dtype, with the patch in place."""
        height, width = images.shape[2:]
        patch = enlarge(cells, height)
        rows, columns = place(height, width, patch, self.margin)
        stamped = images.clone()
        stamped[:, :, rows, columns] = patch
        return stamped

    def trigger(self, images: Tensor) -> Tensor:
        cells = self.cells().to(images.device)
        if self.mode != "add":
            return self.overwrite(images, cells)
        # A sum of uint8 wraps around on every device.
        return images + self.overwrite(torch.zeros_like(images[:1]), cells)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        poisoned = dirty_label(self, clean, rng)
        if self.inversion is None:
            return poisoned
        before, after = self.inversion.before, self.inversion.after
        return replace(poisoned, facts={"activation_before": before, "activation_after": after})
