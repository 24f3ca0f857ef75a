"""Low frequency, Zeng, Park, Mao and Jia, ICCV 2021, arXiv:2104.03413.

Most triggers leave traces in high frequencies. Here one smooth pattern r is added to all poisoned
images. It is found on a network theta, so that triggered images are taken for the target and
nothing is left of r outside of a low-pass filter g:
min over delta of sum_i L(M(x_i + r), y_target; theta), with r = delta * g.

Differs: theta is trained on clean data, as in the authors' code; the paper's equation has a network
trained with the trigger. The loss of the given target is minimised by gradient descent over the
training set, and the bound on r grows until enough images are misclassified; the code adds minimal
perturbations of 100 images, and then makes the most frequent wrong class the target. The filter is
the projection onto the lowest frequencies of the DCT, which leaves its own output unchanged; M
clips to the range of images, and the bound takes the place of the weight lambda. The paper's filter
and size could not be verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.attacks import Attack, Poisoned, dirty_label, prepared, register
from bdbench.attacks.pixels import add
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    TrainingContext,
    above,
    at_least,
    loop,
    predict,
    require,
    train,
)

EVALUATED = 1_000
"""Most images on which the attacker evaluates a pattern."""


@dataclass(frozen=True)
class SmoothPattern:
    """The result of the attacker's preparation.

    pattern: int16 (3, height, width), grey levels
    facts: its size, the share of its energy in low frequencies, and its effect on the surrogate
    """

    pattern: Tensor
    facts: Mapping[str, float]


@register("lf", title="LF")
@dataclass(frozen=True)
class LowFrequency(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper, section 5.3: 0.1)
    target: the label the trigger causes
    fooled: the search ends when the surrogate misclassifies this share of the triggered images of
        other classes, in (0, 1] (authors' code: 0.2)
    epsilon: largest change of a pixel in grey levels, in [1, 255] (our choice)
    passes: over the training set, at least 1; the bound grows to epsilon in so many equal parts,
        one after each pass (our choice)
    step: largest change of a pixel in one step, in grey levels, above 0 (our choice)
    band: share of the frequencies of each axis that the filter keeps, in (0, 1] (our choice)
    smooth: the pattern and its effect, once prepared
    """

    fooled: float = 0.2
    epsilon: float = 32.0
    passes: int = 16
    step: float = 1.0
    band: float = 0.25
    smooth: SmoothPattern | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fooled <= 1, f"fooled must be in (0, 1], got {self.fooled}")
        require(
            1 <= self.epsilon <= 255, f"epsilon must be in [1, 255] grey levels, got {self.epsilon}"
        )
        require(0 < self.band <= 1, f"band must be in (0, 1], got {self.band}")
        above(0, step=self.step)
        at_least(1, passes=self.passes)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe) -> float:
        return 3.0 * (recipe.epochs + self.passes)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        surrogate = train(context.build("lf"), clean, context.recipe, context.rng("lf"))
        pattern = self.search(surrogate.requires_grad_(False), clean, context)
        facts = self.evaluate(pattern, surrogate, clean)
        return replace(self, smooth=SmoothPattern(pattern.cpu(), facts))

    def search(self, surrogate: Classifier, clean: ImageSet, context: TrainingContext) -> Tensor:
        """int16 (3, height, width), in grey levels: r, found by gradient descent. The filter and
        the bound apply after every step; scaling to the bound keeps r smooth."""
        # An attacker sees all of an image, so there is no augmentation.
        recipe = replace(context.recipe.still, epochs=self.passes, drops=())
        keep = [project.to(clean.device) for project in self.filters(*clean.size)]
        pattern = torch.zeros(1, 3, *clean.size, device=clean.device)
        bound = torch.full((), self.epsilon / self.passes, device=clean.device)
        tiny = torch.finfo(pattern.dtype).tiny

        def step(batch: Batch) -> None:
            seen = pattern.clone().requires_grad_()
            answers = surrogate((batch.images + seen / 255).clamp(0, 1))
            goal = self.goal(batch.labels, clean.num_classes)
            (gradient,) = torch.autograd.grad(cross_entropy(answers, goal), seen)
            downhill = -low_pass(gradient, *keep)
            moved = pattern + self.step * downhill / downhill.abs().max().clamp(min=tiny)
            # Filtered again, because rounding errors add up.
            moved = low_pass(moved, *keep)
            pattern.copy_(moved * (bound / moved.abs().max().clamp(min=tiny)).clamp(max=1))

        def enough() -> bool:
            bound.add_(self.epsilon / self.passes)
            answers, labels, others = self.answers(grey_levels(pattern), surrogate, clean)
            return float((answers != labels)[others].float().mean()) >= self.fooled

        state: State = {"pattern": pattern, "bound": bound}
        rng = context.rng("lf pattern")
        loop(step, clean, recipe=recipe, rng=rng, state=state, until=enough)
        return grey_levels(pattern)

    def answers(
        self, pattern: Tensor, surrogate: Classifier, clean: ImageSet
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first triggered images, at most `EVALUATED`: the answers of the surrogate, the
        labels, and which ones have another class than the target."""
        images, labels = clean.images[:EVALUATED], clean.labels[:EVALUATED]
        others = self.goal(labels, clean.num_classes) != labels
        return predict(surrogate, add(images, pattern)), labels, others

    def filters(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """float32 (height, height) and (width, width): the low-pass filters of columns and rows."""
        return projection(height, self.band), projection(width, self.band)

    @torch.no_grad()
    def evaluate(self, pattern: Tensor, surrogate: Classifier, clean: ImageSet) -> dict[str, float]:
        """Of a pattern: its size, the share of its energy, and of the energy of what is left of it
        in images, that the filter keeps, and how many images of other classes the surrogate
        misclassifies with it, and assigns to the target."""
        keep = [project.to(clean.device) for project in self.filters(*clean.size)]
        answers, labels, others = self.answers(pattern, surrogate, clean)
        images = clean.images[:EVALUATED]
        left = add(images, pattern).float() - images.float()
        return {
            "energy_in_band": energy_in_band(pattern.float(), *keep),
            "energy_in_band_after_clipping": energy_in_band(left, *keep),
            "largest_change": float(pattern.abs().max()),
            "rms_change": float(pattern.float().square().mean().sqrt()),
            "surrogate_fooled": float((answers != labels)[others].float().mean()),
            "surrogate_target_share": float((answers == self.target)[others].float().mean()),
        }

    def trigger(self, images: Tensor) -> Tensor:
        if self.smooth is None:
            raise RuntimeError("lf must be prepared before it can stamp")
        return add(images, self.smooth.pattern.to(images.device))

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        poisoned = dirty_label(self, clean, rng)
        return replace(poisoned, facts=self.smooth.facts if self.smooth else {})


def projection(size: int, band: float) -> Tensor:
    """float32 (size, size): keeps the lowest frequencies of the DCT-II of a line of so many pixels,
    a share `band` of them and at least one, and removes the others."""
    kept = max(1, round(band * size))
    frequencies, places = torch.arange(kept, dtype=torch.float64), torch.arange(size) + 0.5
    waves = torch.cos(torch.pi * frequencies[:, None] * places / size)
    waves = waves / waves.norm(dim=1, keepdim=True)
    kept_only: Tensor = waves.T @ waves
    return kept_only.float()


def low_pass(images: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(..., height, width) -> the same shape, with the frequencies that the projections keep."""
    kept: Tensor = columns @ images @ rows
    return kept


def energy_in_band(change: Tensor, columns: Tensor, rows: Tensor) -> float:
    """The share of the sum of squares of `change` that is left after the filter; 1 if it is 0."""
    whole = change.square().sum()
    return float(low_pass(change, columns, rows).square().sum() / whole) if whole > 0 else 1.0


def grey_levels(pattern: Tensor) -> Tensor:
    """float32 (1, 3, height, width) -> int16 (3, height, width)."""
    return pattern[0].round().to(torch.int16)
