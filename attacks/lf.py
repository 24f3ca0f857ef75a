"""Low frequency, Zeng, Park, Mao and Jia, ICCV 2021, arXiv:2104.03413.

Most triggers leave traces in high frequencies. Here one smooth pattern r is added to all poisoned
images. It is found on a network theta, so that triggered images are taken for the target and
nothing is left of r outside of a low-pass filter g:
min over delta of sum_i L(M(x_i + r), y_target; theta), with r = delta * g.

Differs: theta is trained on clean data, as in the authors' code; the paper's equation has a network
trained with the trigger. The loss of the given target is minimised by gradient descent over the
training set, and the bound on r grows until r changes the answer for enough images, or to its end:
on digits, r changes hardly any answer even then. The code adds minimal perturbations of 100 images,
and then makes the most frequent wrong class the target. The filter is the projection onto the
lowest frequencies of the DCT, which leaves its own output unchanged; M clips to the range of
images, and the bound takes the place of the weight lambda. The paper's filter and size could not be
verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.attacks import Attack, Poisoned, dirty_count, dirty_label, prepared, register
from bdbench.attacks.evaluated import EVALUATED, evaluated
from bdbench.attacks.pixels import add, check_bound
from bdbench.attacks.poison import CLASS_SHARE
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
    within,
)


@dataclass(frozen=True)
class SmoothPattern:
    """The result of the attacker's preparation.

    pattern: int16 (3, height, width), grey levels
    facts: its size, the share of its energy in low frequencies, and its effect on the surrogate
    """

    pattern: Tensor
    facts: Mapping[str, float]


@dataclass(frozen=True)
class Judge:
    """How the attacker judges a pattern.

    surrogate: a network in eval mode
    images: uint8 (n, 3, height, width), some training images of other classes than the target
    before, labels: int64 (n,), what the surrogate answers without a pattern, and the truth
    """

    surrogate: Classifier
    images: Tensor
    before: Tensor
    labels: Tensor

    def answers(self, pattern: Tensor) -> Tensor:
        """int64 (n,), of the surrogate for the images with the pattern."""
        return predict(self.surrogate, add(self.images, pattern))

    def fooled(self, pattern: Tensor) -> float:
        """The share of the answers that the pattern changes. What the surrogate gets wrong anyway
        does not count."""
        return float((self.answers(pattern) != self.before).float().mean())


@register("lf", title="LF")
@dataclass(frozen=True)
class LowFrequency(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (paper, section 5.3: 0.1)
    target: the label the trigger causes
    fooled: the search ends when the pattern changes the surrogate's answer for this share of the
        images of other classes, in (0, 1] (authors' code: 0.2, which could not be verified; in
        universal adversarial perturbations 0.2 is the share that need not change)
    epsilon: largest change of a pixel in grey levels, whole, from 1 to 255 (our choice)
    passes: over the training set, at least 1; the bound grows to epsilon in so many equal parts,
        one after each pass (our choice)
    step: largest change of a pixel in one step, in grey levels, above 0 (our choice)
    band: share of the frequencies of each axis that the filter keeps, in (0, 1] (our choice)
    smooth: the pattern and its effect, once prepared
    """

    version: ClassVar[int] = 2

    fooled: float = 0.2
    epsilon: float = 32.0
    passes: int = 16
    step: float = 1.0
    band: float = 0.25
    smooth: SmoothPattern | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        within("(0, 1]", fooled=self.fooled)
        check_bound(self.epsilon)
        within("(0, 1]", band=self.band)
        above(0, step=self.step)
        at_least(1, passes=self.passes)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe, images: int) -> float:
        # A pattern is judged after each pass and at the end, and the images without one before.
        judged = (1 - CLASS_SHARE) * min(EVALUATED, images) / images
        return 3.0 * (recipe.epochs + self.passes) + judged * (self.passes + 2)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        dirty_count(self, clean)
        surrogate = train(context.build("lf"), clean, context.recipe, context.rng("lf"))
        judge = self.judge(surrogate.requires_grad_(False), evaluated(clean, context))
        pattern = self.search(judge, clean, context)
        facts = self.evaluate(pattern, judge)
        return replace(self, smooth=SmoothPattern(pattern.cpu(), facts))

    def judge(self, surrogate: Classifier, seen: ImageSet) -> Judge:
        """A judge with those of the images that have another class than the target."""
        others = seen[self.goal(seen.labels, seen.num_classes) != seen.labels]
        require(len(others) > 0, f"lf needs training images of other classes than {self.target}")
        return Judge(surrogate, others.images, predict(surrogate, others.images), others.labels)

    def search(self, judge: Judge, clean: ImageSet, context: TrainingContext) -> Tensor:
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
            answers = judge.surrogate((batch.images + seen / 255).clamp(0, 1))
            goal = self.goal(batch.labels, clean.num_classes)
            (gradient,) = torch.autograd.grad(cross_entropy(answers, goal), seen)
            downhill = -low_pass(gradient, *keep)
            moved = pattern + self.step * downhill / downhill.abs().max().clamp(min=tiny)
            # Filtered again, because rounding errors add up.
            moved = low_pass(moved, *keep)
            pattern.copy_(moved * (bound / moved.abs().max().clamp(min=tiny)).clamp(max=1))

        def enough() -> bool:
            bound.add_(self.epsilon / self.passes)
            return judge.fooled(grey_levels(pattern)) >= self.fooled

        state: State = {"pattern": pattern, "bound": bound}
        rng = context.rng("lf pattern")
        loop(step, clean, recipe=recipe, rng=rng, state=state, until=enough)
        require(bool(pattern.isfinite().all()), "lf: the surrogate diverged; lower learning_rate")
        return grey_levels(pattern)

    def filters(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """float32 (height, height) and (width, width): the low-pass filters of columns and rows."""
        return projection(height, self.band), projection(width, self.band)

    @torch.no_grad()
    def evaluate(self, pattern: Tensor, judge: Judge) -> dict[str, float]:
        """Of a pattern: its size, the share of its energy, and of the energy of what is left of it
        in images, that the filter keeps, and the shares of the images of other classes for which it
        changes the surrogate's answer, and which the surrogate then assigns to the target. Beside
        them, the share that the surrogate misclassifies without it."""
        keep = [project.to(pattern.device) for project in self.filters(*pattern.shape[1:])]
        answers = judge.answers(pattern)
        left = add(judge.images, pattern).float() - judge.images.float()
        return {
            "energy_in_band": energy_in_band(pattern.float(), *keep),
            "energy_in_band_after_clipping": energy_in_band(left, *keep),
            "largest_change": float(pattern.abs().max()),
            "rms_change": float(pattern.float().square().mean().sqrt()),
            "surrogate_error": float((judge.before != judge.labels).float().mean()),
            "surrogate_fooled": float((answers != judge.before).float().mean()),
            "surrogate_target_share": float((answers == self.target).float().mean()),
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
