"""Label-consistent, Turner, Tsipras and Madry, 2019, arXiv:1912.02771.

Images of the target class are perturbed until a network no longer recognises them, and then get a
patch in each corner; their labels remain true. What is left of the class is hard to learn, so the
network learns the patch. Test images get the patch alone.

Differs: the perturbations are against a network of the cell, trained plainly with its recipe, where
the paper trains it adversarially, so that large perturbations resemble another class; its GAN-based
variant and l2 bound are left out. The random start and the size of the steps are not from the
paper, and neither is the cell size of the patch in larger images. Patches are mirrored, so that a
flipped image has the same trigger. Test images get the amplitude of training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.attacks import Attack, Poisoned, clean_label, prepared, register
from bdbench.attacks.badnets import PATTERNS
from bdbench.attacks.patch import enlarge
from bdbench.attacks.pixels import add
from bdbench.attacks.poison import RateBasis, poisoned_share
from bdbench.models import (
    Classifier,
    ImageSet,
    Recipe,
    TrainingContext,
    above,
    at_least,
    logits,
    require,
    resumable,
    train,
    within,
)

CHUNK = 256
"""Images whose perturbations are computed at a time. Fixed: rounding depends on the batch size."""


@dataclass(frozen=True)
class Perturbation:
    """The result of the attacker's preparation.

    noise: int16 (m, 3, height, width), grey levels that are added to the m poisoned images in order
    facts: how well the surrogate recognises the poisoned images without and with the noise
    """

    noise: Tensor
    facts: Mapping[str, float]


@register("lc", title="LC")
@dataclass(frozen=True)
class LabelConsistent(Attack):
    """
    poisoning_rate: share of the set that `rate_basis` names, in (0, 1] (paper: several, up to the
        whole class; public reimplementations: 0.25)
    target: the class that is poisoned, and the label the trigger causes
    epsilon: largest change of a pixel by the perturbation in grey levels, in [1, 255] (paper: 8 and
        16); or 0, the control: the patch alone, which needs no training
    steps: steps of gradient ascent, at least 1 (paper: 100)
    step: size of a step in grey levels, above 0 (public reimplementations: 1.5)
    amplitude: what the patch adds to its white pixels and takes from its black ones, as a share of
        the range, in (0, 1]; 1 overwrites them (paper: 1, and less to hide the patch)
    rate_basis: the rate is a share of the "target_class" or of the whole "dataset"
    perturbation: the noise and its effect, once prepared
    """

    poisoning_rate: float = 0.25
    epsilon: float = 16.0
    steps: int = 100
    step: float = 1.5
    amplitude: float = 1.0
    rate_basis: RateBasis = "target_class"
    perturbation: Perturbation | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.epsilon == 0 or 1 <= self.epsilon <= 255,
            f"epsilon must be 0 or in [1, 255] grey levels, got {self.epsilon}",
        )
        at_least(1, steps=self.steps)
        above(0, step=self.step)
        within("(0, 1]", amplitude=self.amplitude)

    @property
    def trains(self) -> bool:
        return self.epsilon > 0

    def cost(self, recipe: Recipe, images: int) -> float:
        if not self.trains:
            return 0.0
        # At the end, the surrogate sees the images without and with the noise.
        return 3.0 * recipe.epochs + poisoned_share(self) * (3 * self.steps + 2)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        if not self.trains:
            return self
        state = rng.get_state()
        chosen = clean[clean_label(self, clean, rng, self.rate_basis).mask]
        rng.set_state(state)
        surrogate = train(context.build("lc"), clean, context.recipe, context.rng("lc"))
        noise = self.perturb(surrogate.requires_grad_(False), chosen, context.rng("lc noise"))
        facts = {"largest_noise": float(noise.abs().max())}
        for when, images in (("before", chosen.images), ("after", add(chosen.images, noise))):
            answers = logits(surrogate, images)
            hits = answers.argmax(1) == chosen.labels
            facts[f"surrogate_accuracy_{when}"] = float(hits.float().mean())
            facts[f"surrogate_loss_{when}"] = float(cross_entropy(answers, chosen.labels))
        return replace(self, perturbation=Perturbation(noise.cpu(), facts))

    def perturb(self, surrogate: Classifier, chosen: ImageSet, rng: torch.Generator) -> Tensor:
        """int16 (m, 3, height, width), in grey levels: the noise within epsilon that makes the
        surrogate's loss on the chosen images large, by projected gradient ascent."""
        start = (2 * torch.rand(chosen.images.shape, generator=rng) - 1) * self.epsilon
        noise = start.to(chosen.device)
        rows = torch.arange(len(chosen), device=chosen.device).split(CHUNK)
        for n in resumable(len(rows), {"noise": noise}):
            noise[rows[n]] = self.ascend(surrogate, chosen[rows[n]], noise[rows[n]])
        largest = int(self.epsilon)  # of whole grey levels
        return noise.round().clamp(-largest, largest).to(torch.int16)

    def ascend(self, surrogate: Classifier, images: ImageSet, noise: Tensor) -> Tensor:
        """delta <- clip(delta + step sign(gradient of CE(f(x + delta), y))), `steps` times, so that
        |delta| <= epsilon and x + delta remains an image; delta float32, in grey levels."""
        pixels = images.images.float()
        low, high = (-pixels).clamp(min=-self.epsilon), (255 - pixels).clamp(max=self.epsilon)
        noise = noise.clamp(low, high)
        for _ in range(self.steps):
            noise.requires_grad_()
            answers = surrogate((pixels + noise) / 255)
            loss = cross_entropy(answers, images.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, noise)
            noise = (noise.detach() + self.step * gradient.sign()).clamp(low, high)
        return noise

    def patch(self, height: int, width: int) -> Tensor:
        """int16 (3, height, width), in grey levels: what the patch adds to a black pixel or takes
        from a white one; 0 outside of the four corners."""
        cells = torch.tensor([PATTERNS["grid"]], dtype=torch.int16)
        change = (2 * cells // 255 - 1) * round(255 * self.amplitude)
        corner = enlarge(change, height)
        side = corner.shape[1]
        require(
            2 * side <= min(height, width),
            f"patches of {side} pixels in four corners do not fit {height} x {width}",
        )
        result = torch.zeros(1, height, width, dtype=torch.int16)
        result[:, -side:, -side:] = corner
        result[:, -side:, :side] = corner.flip(2)
        result[:, :side] = result[:, -side:].flip(1)
        return result.expand(3, -1, -1)

    def trigger(self, images: Tensor) -> Tensor:
        return add(images, self.patch(*images.shape[2:]).to(images.device))

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        poisoned = clean_label(self, clean, rng, self.rate_basis)
        if not self.trains:
            return poisoned
        if self.perturbation is None:
            raise RuntimeError("lc must be prepared before it can poison")
        images, mask = poisoned.train.images.clone(), poisoned.mask
        noise = self.perturbation.noise.to(clean.device)
        images[mask] = self.trigger(add(clean.images[mask], noise))
        train = replace(poisoned.train, images=images)
        return replace(poisoned, train=train, facts=self.perturbation.facts)
