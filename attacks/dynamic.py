"""Dynamic (input-aware), Nguyen and Tran, 2020, arXiv:2010.08138.

One network generates a pattern p and another a mask m for each image, so that every image has its
own trigger: x' = (1 - m(x)) x + m(x) p(x). The attacker trains both, together with a classifier.

Differs: the authors train the victim together with the trigger; here, as in the CBD paper's threat
model, the trained trigger poisons a fixed share of the training set and the victim starts from new
weights. The classifier beside the pattern follows the cell's recipe, and Adam's rates fall with
its decay. The gradients of both generators are clipped, and those of the pattern reset at each
step, which the authors' code forgets; patterns stay in the range of images, which the code of ABL
and CBD does not ensure. Partners for the diversity losses come from the same batch. Images are
normalised on every data set, which the authors leave out on GTSRB: there our masks' diversity
weighs four times as much. Training ends when the trigger works.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils import clip_grad_norm_

from bdbench.attacks import Attack, Poisoned, dirty_count, dirty_label, prepared, register
from bdbench.attacks.evaluated import EVALUATED, evaluated
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
    portion,
    require,
    to_float,
    within,
)
from bdbench.models.rng import global_seed

DEVIATION = 0.25
"""Of the pixels of natural images; the networks see (x - 1/2) / 0.25."""
CHUNK = 64
"""Images per forward pass of a trained trigger. Fixed: rounding depends on the batch size."""


@dataclass(frozen=True)
class TriggerNetworks:
    """A trained trigger.

    pattern, mask: networks in eval mode
    facts: success of the trigger and density of the masks at the end of training
    """

    pattern: Generator
    mask: Generator
    facts: dict[str, float]


@register("dynamic", title="Dynamic")
@dataclass(frozen=True)
class Dynamic(Attack):
    """
    poisoning_rate: share of the training set, in (0, 1] (CBD paper, section 5.1: 0.1)
    target: the label the trigger causes (CBD paper: 0, and 1 on GTSRB)
    cross_rate: share of other images that get another image's trigger and keep their labels
    density: what a pixel of a mask may be without a cost, in (0, 1) (authors' code: 0.032)
    mask_epochs: epochs of the mask, in a recipe of 100 epochs (authors: 25 of 600)
    joint_epochs: most epochs of pattern and classifier together (BackdoorBench: 75)
    networks: the trained trigger, once prepared
    """

    version: ClassVar[int] = 3

    cross_rate: float = 0.0
    density: float = 0.032
    mask_epochs: int = 25
    joint_epochs: int = 75
    networks: TriggerNetworks | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cover_rate(self.cross_rate, self.poisoning_rate, "cross_rate")
        within("(0, 1)", density=self.density)
        at_least(1, mask_epochs=self.mask_epochs, joint_epochs=self.joint_epochs)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe, images: int) -> float:
        batch, seen = min(recipe.batch_size, images), min(EVALUATED, images)
        # In the joint stage, two tenths of a batch get a pattern, and one of them a mask.
        tenth = max(1, batch // 10) / batch
        # After an epoch, the classifier sees images without a trigger, with their own, and with
        # another's; both networks make these triggers, in full chunks, and then a few more masks.
        judged = 3 * seen + 4 * CHUNK * math.ceil(seen / CHUNK) + min(CHUNK, seen)
        joint = 3 + 7 * tenth + judged / images
        return 3.0 * recipe.scaled(self.mask_epochs) + joint * recipe.scaled(self.joint_epochs)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        require(
            all(side % 8 == 0 for side in clean.size),
            f"dynamic needs images whose sides are multiples of 8, got {clean.size}",
        )
        dirty_count(self, clean)
        check_partners(portion(self.cross_rate, len(clean)))
        with global_seed(context.seed, "weights", "dynamic"):
            pattern, mask = Generator(3).to(clean.device), Generator(1).to(clean.device)
        train_mask(mask, clean, self, context)
        facts = train_pattern(pattern, mask, clean, self, context)
        return replace(self, networks=TriggerNetworks(pattern, mask, facts))

    def trigger(self, images: Tensor) -> Tensor:
        return self.stamp(images, images)

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Every image with the trigger of the image before it. Raises `InvalidInput` for a single
        image."""
        check_partners(len(images))
        return self.stamp(images, images.roll(1, 0))

    @torch.inference_mode()
    def stamp(self, images: Tensor, sources: Tensor) -> Tensor:
        """uint8 (n, 3, height, width), each with the trigger generated for its image in
        `sources`."""
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
        poisoned = dirty_label(self, clean, rng, self.cross_rate)
        return replace(poisoned, facts=self.networks.facts if self.networks else {})


def check_partners(count: int) -> None:
    """Raises `InvalidInput` for a single cover image, which has none before it."""
    require(count != 1, "dynamic needs two cover images or more: raise cross_rate")


class Generator(nn.Sequential):
    """Images in [0, 1] (n, 3, height, width) -> patterns or masks in (0, 1) (n, channels, height,
    width): the resolution is halved and doubled three times, without skip connections (paper,
    appendix)."""

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
        maps = (images - 0.5) / DEVIATION
        for layer in self:
            maps = layer(maps)
        observer.count_passes(len(images), maps)
        return maps.float().tanh() / 2 + 0.5


def block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Convolution, normalisation and activation."""
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(inplace=True),
    )


def binary(soft: Tensor) -> Tensor:
    """The mask m: a soft mask in (0, 1) pushed close to 0 or 1."""
    return (20 * soft - 10).tanh() / 2 + 0.5


def blend(images: Tensor, sources: Tensor, networks: TriggerNetworks) -> Tensor:
    """(1 - m) x + m p, with mask and pattern generated for `sources`."""
    mask = binary(networks.mask(sources))
    return torch.lerp(images, networks.pattern(sources), mask)


def diversity(one: Tensor, other: Tensor, output: Tensor, other_output: Tensor) -> Tensor:
    """The diversity loss (paper, equation 6): large if different images (n, 3, height, width) get
    similar outputs. Images are in the scale in which the authors train on CIFAR-10: normalised ones
    for masks, those of the patterns for patterns."""
    distance = (one - other).square().mean((1, 2, 3)).sqrt()
    output_distance = (output - other_output).square().mean((1, 2, 3)).add(1e-12).sqrt()
    return (distance / (output_distance + 1e-7)).mean()


def train_mask(
    mask: Generator, clean: ImageSet, settings: Dynamic, context: TrainingContext
) -> None:
    """Train small masks that differ between images (paper, section 3.3)."""
    recipe = replace(context.recipe, epochs=context.epochs(settings.mask_epochs), drops=(0.4, 0.8))
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.01, betas=(0.5, 0.9))
    autocast = torch.autocast(clean.device.type, torch.bfloat16, recipe.precision == "bf16")

    def step(batch: Batch) -> None:
        with autocast:
            masks = binary(mask(batch.images))
        excess = (masks - settings.density).relu().mean()
        inputs = batch.images / DEVIATION
        similarity = diversity(inputs, inputs.roll(1, 0), masks, masks.roll(1, 0))
        optimizer.zero_grad()
        (100 * excess + similarity).backward()
        clip_grad_norm_(mask.parameters(), 5.0)
        optimizer.step()

    mask.train()
    state: State = {"mask": mask, "optimizer": optimizer}
    loop(step, clean, recipe=recipe, rng=context.rng("mask"), state=state)
    mask.eval().requires_grad_(False)


def train_pattern(
    pattern: Generator,
    mask: Generator,
    clean: ImageSet,
    settings: Dynamic,
    context: TrainingContext,
) -> dict[str, float]:
    """Train patterns, together with a classifier, that cause the target on their own image but not
    on others (paper, section 3.2). Training ends early when the trigger works. Returns the facts of
    the record."""
    recipe = replace(context.recipe, epochs=context.epochs(settings.joint_epochs))
    classifier = context.build("dynamic")
    networks = TriggerNetworks(pattern, mask, {})
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
        outputs = classifier(torch.cat((triggered, crossed, images[2 * tenth :])))
        loss = cross_entropy(outputs, torch.cat((goal, labels[tenth:])))
        loss = loss + diversity(own, other, patterns, partners)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(pattern.parameters(), 5.0)
        for optimizer in optimizers:
            optimizer.step()

    seen = evaluated(clean, context)

    def works() -> bool:
        pattern.eval()
        facts = evaluate(replace(settings, networks=networks), classifier, seen)
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
    loop(step, clean, recipe=recipe, rng=rng, state=state, until=works)
    pattern.eval().requires_grad_(False)
    return networks.facts


@torch.inference_mode()
def evaluate(attack: Dynamic, classifier: Classifier, clean: ImageSet) -> dict[str, float]:
    """Of a trigger and the classifier that was trained with it: accuracy, attack success rate on
    images of other classes, accuracy under the trigger of another image, density of the masks and
    share of their pixels that are nearly 0 or 1."""
    assert attack.networks is not None
    labels, goal = clean.labels, attack.goal(clean.labels, clean.num_classes)
    predicted, triggered, crossed = (
        logits(classifier, images).argmax(1)
        for images in (
            clean.images,
            attack.trigger(clean.images),
            attack.disguise(clean.images, torch.Generator()),
        )
    )
    masks = binary(attack.networks.mask(to_float(clean.images[:CHUNK])))
    shares = {
        "surrogate_accuracy": predicted == labels,
        "surrogate_success": (triggered == goal)[goal != labels],
        "surrogate_cross_accuracy": crossed == labels,
        "mask_density": masks,
        "mask_binary": (masks < 0.05) | (masks > 0.95),
    }
    return {name: round(float(values.float().mean()), 6) for name, values in shares.items()}
