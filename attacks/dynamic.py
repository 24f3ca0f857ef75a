"""Dynamic (input-aware), Nguyen and Tran, 2020, arXiv:2010.08138.

A network draws a pattern and another one a mask for each image, so that every image has a trigger
of its own: x' = (1 - m(x)) x + m(x) p(x). Both are trained by the attacker beside a classifier.

Differs: the authors train the victim together with the trigger; here, as in the CBD paper's threat
model, the trained trigger poisons a fixed share of the training set and the victim starts afresh.
The gradients of the pattern network are reset at each step, which the authors' code forgets, and
clipped; patterns stay in the range of images, which the code of ABL and CBD does not ensure.
Partners for the diversity losses come from the same batch. Training ends when the trigger works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import clip_grad_norm_

from bdbench.attacks import Attack, Poisoned, dirty_label, prepared, register
from bdbench.attacks.poison import check_cover_rate
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    State,
    TrainingContext,
    at_least,
    logits,
    loop,
    observer,
    require,
)
from bdbench.models.rng import global_seed
from bdbench.models.training.augment import to_float

DEVIATION = 0.25
"""Of the pixels of natural images: networks see (x - 1/2) / 0.25."""
CHUNK = 64
"""Images per pass of a finished trigger: always so many, as sums depend on a batch's size."""
JUDGED = 1_000
"""Images by which the attacker judges whether the trigger works."""


@dataclass(frozen=True)
class Networks:
    """A trained trigger.

    pattern, mask: networks in eval mode
    facts: how well they did when training ended
    """

    pattern: Drawer
    mask: Drawer
    facts: dict[str, float]


@register("dynamic", title="Dynamic")
@dataclass(frozen=True)
class Dynamic(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    cross_rate: share of other images that get another image's trigger and keep their labels
    density: share of the pixels that a mask may cover, in (0, 1) (authors' code: 0.032)
    mask_epochs: length of the mask's training in a recipe of 100 epochs (authors: 25 of 600)
    joint_epochs: the most that pattern and classifier are trained together (BackdoorBench: 75)
    networks: the trained trigger, once prepared
    """

    version: ClassVar[int] = 2

    cross_rate: float = 0.0
    density: float = 0.032
    mask_epochs: int = 25
    joint_epochs: int = 75
    networks: Networks | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cover_rate(self.cross_rate, self.poisoning_rate, "cross_rate")
        require(0 < self.density < 1, f"density must be in (0, 1), got {self.density}")
        at_least(1, mask_epochs=self.mask_epochs, joint_epochs=self.joint_epochs)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe) -> float:
        # In the joint stage, two tenths of the images are drawn for.
        share = recipe.epochs / 100
        return share * (3 * self.mask_epochs + 3.7 * self.joint_epochs)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        require(
            all(side % 8 == 0 for side in clean.size),
            f"dynamic needs images whose sides are multiples of 8, got {clean.size}",
        )
        with global_seed(context.seed, "weights", "dynamic"):
            pattern, mask = Drawer(3).to(clean.device), Drawer(1).to(clean.device)
        train_mask(mask, clean, self, context)
        facts = train_pattern(pattern, mask, clean, self, context)
        return replace(self, networks=Networks(pattern, mask, facts))

    def trigger(self, images: Tensor) -> Tensor:
        return self.stamp(images, images)

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Every image with the trigger of the one before it."""
        return self.stamp(images, images.roll(1, 0))

    @torch.inference_mode()
    def stamp(self, images: Tensor, sources: Tensor) -> Tensor:
        """uint8 (n, 3, height, width) with the triggers that belong to `sources`."""
        networks = self.networks
        if networks is None:
            raise RuntimeError("dynamic must be prepared before it can stamp")
        parts = []
        for part, source in zip(images.split(CHUNK), sources.split(CHUNK), strict=True):
            full = (0, 0, 0, 0, 0, 0, 0, CHUNK - len(part))
            stamped = blend(to_float(pad(part, full)), to_float(pad(source, full)), networks)
            parts.append((stamped[: len(part)] * 255).round().to(torch.uint8))
        return torch.cat(parts).contiguous() if parts else images.clone()

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        made = dirty_label(self, clean, rng, self.cross_rate)
        return replace(made, facts=self.networks.facts if self.networks else {})


class Drawer(nn.Sequential):
    """Images in [0, 1] (n, 3, height, width) to drawings in (0, 1) (n, channels, height, width):
    three halvings and three doublings, without connections across (paper, appendix)."""

    def __init__(self, channels: int) -> None:
        down = [
            layer
            for a, b in ((3, 32), (32, 64), (64, 128))
            for layer in (*block(a, b), *block(b, b), nn.MaxPool2d(2))
        ]
        up = [
            layer
            for a, b in ((128, 64), (64, 32), (32, channels))
            for layer in (nn.Upsample(scale_factor=2, mode="bilinear"), *block(a, a), *block(a, b))
        ]
        super().__init__(*down, *block(128, 128), *up[:-1])

    def forward(self, images: Tensor) -> Tensor:
        drawn = (images - 0.5) / DEVIATION
        for layer in self:
            drawn = layer(drawn)
        count, looker = len(images), observer.current()
        looker.forward(count)
        if drawn.requires_grad:
            drawn.register_hook(lambda gradient: looker.backward(count))
        return drawn.float().tanh() / 2 + 0.5


def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Convolution, normalisation and activation."""
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(inplace=True),
    )


def binary(drawn: Tensor) -> Tensor:
    """A drawing in (0, 1) made nearly black and white: the mask m."""
    return (20 * drawn - 10).tanh() / 2 + 0.5


def blend(images: Tensor, sources: Tensor, networks: Networks) -> Tensor:
    """(1 - m) x + m p, with mask and pattern of `sources`."""
    mask = binary(networks.mask(sources))
    return torch.lerp(images, networks.pattern(sources), mask)


def diversity(one: Tensor, other: Tensor, drawn: Tensor, drawn_other: Tensor) -> Tensor:
    """Large where different images (n, 3, height, width) get alike drawings (paper, equation 6).

    All four as a network sees them or none, so that their scale cancels.
    """
    apart = (one - other).square().mean((1, 2, 3)).sqrt()
    drawn_apart = (drawn - drawn_other).square().mean((1, 2, 3)).add(1e-12).sqrt()
    return (apart / (drawn_apart + 1e-7)).mean()


def train_mask(mask: Drawer, clean: ImageSet, settings: Dynamic, context: TrainingContext) -> None:
    """Small masks that differ between images (paper, section 3.3)."""
    recipe = replace(context.recipe, epochs=context.epochs(settings.mask_epochs), drops=(0.4, 0.8))
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.01, betas=(0.5, 0.9))
    autocast = torch.autocast(clean.device.type, torch.bfloat16, recipe.precision == "bf16")

    def step(batch: Batch) -> None:
        with autocast:
            drawn = binary(mask(batch.images))
        too_much = (drawn - settings.density).relu().mean()
        seen = batch.images / DEVIATION
        different = diversity(seen, seen.roll(1, 0), drawn, drawn.roll(1, 0))
        optimizer.zero_grad()
        (100 * too_much + different).backward()
        clip_grad_norm_(mask.parameters(), 5.0)
        optimizer.step()

    mask.train()
    state: State = {"mask": mask, "optimizer": optimizer}
    loop(step, clean, recipe=recipe, rng=context.rng("mask"), state=state)
    mask.eval().requires_grad_(False)


def train_pattern(
    pattern: Drawer, mask: Drawer, clean: ImageSet, settings: Dynamic, context: TrainingContext
) -> dict[str, float]:
    """Patterns that a classifier calls the target on their own image and on no other (paper,
    section 3.2). Returns how well they do; training ends when that is enough."""
    recipe = replace(context.recipe, epochs=context.epochs(settings.joint_epochs))
    classifier = context.build("dynamic")
    networks = Networks(pattern, mask, {})
    optimizers = (
        recipe.sgd(classifier),
        torch.optim.Adam(pattern.parameters(), lr=0.01, betas=(0.5, 0.9)),
    )
    autocast = torch.autocast(clean.device.type, torch.bfloat16, recipe.precision == "bf16")

    def step(batch: Batch) -> None:
        images, labels = batch.images, batch.labels
        tenth = max(1, len(labels) // 10)
        own, other = images[:tenth], images[tenth : 2 * tenth]
        with autocast:
            masks = binary(mask(own))
            patterns, partners = pattern(images[: 2 * tenth]).split(tenth)
        triggered = torch.lerp(own, patterns, masks)
        crossed = torch.lerp(other, patterns, masks)
        goal = settings.goal(labels[:tenth], clean.num_classes)
        answers = classifier(torch.cat((triggered, crossed, images[2 * tenth :])))
        loss = cross_entropy(answers, torch.cat((goal, labels[tenth:])))
        loss = loss + diversity(own, other, patterns, partners)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(pattern.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()

    judged = torch.arange(min(JUDGED, len(clean)), device=clean.device)

    def good_enough() -> bool:
        pattern.eval()
        facts = judge(replace(settings, networks=networks), classifier, clean[judged])
        pattern.train()
        networks.facts.update(facts)
        return (
            facts["surrogate_success"] >= 0.97
            and facts["surrogate_cross_accuracy"] >= facts["surrogate_accuracy"] - 0.08
        )

    classifier.train()
    pattern.train()
    state: State = {
        "classifier": classifier,
        "pattern": pattern,
        "facts": networks.facts,
        **{f"optimizer {n}": optimizer for n, optimizer in enumerate(optimizers)},
    }
    rng = context.rng("pattern")
    loop(step, clean, recipe=recipe, rng=rng, state=state, until=good_enough)
    pattern.eval().requires_grad_(False)
    return networks.facts


@torch.inference_mode()
def judge(attack: Dynamic, classifier: Classifier, clean: ImageSet) -> dict[str, float]:
    """Of a trigger and the classifier that was trained with it: accuracy, success on images of
    other classes, accuracy under another image's trigger, and what the masks are like."""
    assert attack.networks is not None
    labels, goal = clean.labels, attack.goal(clean.labels, clean.num_classes)
    answers, triggered, crossed = (
        logits(classifier, images).argmax(1)
        for images in (
            clean.images,
            attack.trigger(clean.images),
            attack.disguise(clean.images, torch.Generator()),
        )
    )
    drawn = binary(attack.networks.mask(to_float(clean.images[:CHUNK])))
    shares = {
        "surrogate_accuracy": answers == labels,
        "surrogate_success": (triggered == goal)[goal != labels],
        "surrogate_cross_accuracy": crossed == labels,
        "mask_density": drawn,
        "mask_binary": (drawn < 0.05) | (drawn > 0.95),
    }
    return {name: round(float(values.float().mean()), 6) for name, values in shares.items()}
