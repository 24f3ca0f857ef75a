"""The adaptive attack on CBD, Zhang, Liu, Wang, Lu and Hu, CVPR 2023, section 5.3, Algorithm 2.

The attacker knows that CBD lets one network learn the backdoor early, and adds noise to the
poisoned images of another attack so that they are slow to learn:
min over theta of sum_D CE(f(x), y) + sum_D' max over |delta| <= epsilon of CE(f(x' + delta), y').

Differs: equation 10 prints the plain gradient; PGD, which the text names, takes its sign, and so
does `signed=True`, which makes the poisoned images far slower to learn. The printed algorithm
updates the noise of all poisoned images after every mini-batch, which is too expensive; here it
does so after every epoch. The ascent is against the network in eval mode, on images that are not
augmented (our choice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.attacks import Attack, Poisoned, prepared, register
from bdbench.attacks.pixels import add, check_bound
from bdbench.attacks.poison import check_prepared, poisoned_share
from bdbench.attacks.registry import attacks
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
    require,
    resumable,
    sample_losses,
    to_float,
)

CHUNK = 256
"""Poisoned images whose gradients are computed at a time."""


@dataclass(frozen=True)
class Hardening:
    """The result of the attacker's preparation.

    attack: the attack that is hardened, prepared
    noise: int16 (m, 3, height, width), grey levels that are added to the m poisoned images in order
    facts: the surrogate's mean loss on the poisoned images without and with the noise
    """

    attack: Attack
    noise: Tensor
    facts: Mapping[str, float]


@register("adaptive", title="Adaptive")
@dataclass(frozen=True)
class Adaptive(Attack):
    """
    poisoning_rate: of the attack that is hardened (paper, section 5.1: 0.1)
    target: of the attack that is hardened (paper: 0, and 1 on GTSRB)
    attack: spec of that attack, without rate and target; not another adaptive one
    epsilon: largest change of a pixel in grey levels, whole, from 1 to 255 (paper: 8)
    step: step size of the gradient ascent, in grey levels, above 0 (paper: 0.002 of 255)
    steps: steps of gradient ascent in each epoch, at least 1 (paper: 5)
    rounds: epochs of the surrogate, at least 1 (paper: 10)
    signed: ascend along the sign of the gradient; False is equation 10 as printed
    hardening: the noise and its effect, once prepared
    """

    nested: ClassVar[Mapping[str, Sequence[str]]] = {"attack": ("poisoning_rate", "target")}

    version: ClassVar[int] = 3

    attack: str = "badnets"
    epsilon: float = 8.0
    step: float = 0.51
    steps: int = 5
    rounds: int = 10
    signed: bool = True
    hardening: Hardening | None = prepared()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(attacks.parts(self.attack)[0] != "adaptive", "adaptive cannot harden adaptive")
        require(attacks.parts(self.attack)[0] != "none", "adaptive needs an attack to harden")
        require(
            attacks.parts(self.attack)[0] != "mixed",
            "adaptive cannot harden mixed: name it inside, as in mixed(attacks=['adaptive', ...])",
        )
        check_bound(self.epsilon)
        above(0, step=self.step)
        at_least(1, steps=self.steps, rounds=self.rounds)
        self.inner()

    def inner(self) -> Attack:
        """The attack that is hardened, with the rate and target of this one."""
        if self.hardening is not None:
            return self.hardening.attack
        plain = attacks.build(self.attack)
        return replace(plain, poisoning_rate=self.poisoning_rate, target=self.target)

    @property
    def trains(self) -> bool:
        return True

    def cost(self, recipe: Recipe, images: int) -> float:
        inner = self.inner()
        share = poisoned_share(inner)
        # At the end, the surrogate sees the poisoned images without and with the noise.
        own = self.rounds * (3 + 3 * self.steps * share) + 2 * share
        return inner.cost(recipe, images) + own

    def lacks(self, network: Classifier, image_size: int) -> str:
        return self.inner().lacks(network, image_size)

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        state = rng.get_state()
        attack = self.inner().prepare(clean, context, rng)
        check_prepared(attack, self.attack)
        poisoned = attack.poison(clean, rng.set_state(state))
        rng.set_state(state)
        noise, facts = self.harden(poisoned, context)
        facts = {**poisoned.facts, **facts}
        return replace(self, hardening=Hardening(attack, noise.cpu(), facts))

    def harden(
        self, poisoned: Poisoned, context: TrainingContext
    ) -> tuple[Tensor, dict[str, float]]:
        """Equations 9 and 10: the noise of the poisoned images, and its effect on the surrogate."""
        rows = torch.nonzero(poisoned.mask).flatten()
        victims = poisoned.train[rows]
        surrogate = context.build("adaptive")
        optimizer = context.recipe.sgd(surrogate)
        # The paper: the same settings and 10 epochs, in which the rate never drops.
        recipe = replace(context.recipe, epochs=1, drops=())
        order = context.rng("adaptive")
        delta = torch.zeros(victims.images.shape, device=victims.device)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            cross_entropy(surrogate(batch.images), batch.labels).backward()
            optimizer.step()

        state: State = {"surrogate": surrogate, "optimizer": optimizer}
        for _ in resumable(self.rounds, {**state, "delta": delta, "order": order}):
            images = poisoned.train.images.clone()
            images[rows] = add(victims.images, delta.round())
            seen = replace(poisoned.train, images=images)
            surrogate.train()
            loop(step, seen, recipe=recipe, rng=order, state=state)
            surrogate.eval()
            parts = zip(_parts(victims), delta.split(CHUNK), strict=True)
            delta.copy_(torch.cat([self.ascend(surrogate, *part) for part in parts]))
        noise = delta.round().to(torch.int16)
        hardened = replace(victims, images=add(victims.images, noise))
        return noise, {
            "surrogate_loss_before": float(sample_losses(surrogate, victims).mean()),
            "surrogate_loss_after": float(sample_losses(surrogate, hardened).mean()),
            "largest_noise": int(noise.abs().max()),
        }

    def ascend(self, surrogate: Classifier, victims: ImageSet, delta: Tensor) -> Tensor:
        """`steps` steps of equation 10 from `delta`, float32 (m, 3, height, width), grey levels."""
        base = to_float(victims.images)
        for _ in range(self.steps):
            delta = delta.requires_grad_()
            answers = surrogate(base + delta / 255)
            loss = cross_entropy(answers, victims.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            # The equation's gradient is by pixels in [0, 1].
            direction = gradient.sign() if self.signed else 255 * gradient
            delta = (delta.detach() + self.step * direction).clamp(-self.epsilon, self.epsilon)
            delta = (base * 255 + delta).clamp(0, 255) - base * 255
        return delta

    def trigger(self, images: Tensor) -> Tensor:
        """The trigger of the hardened attack. Test images get no noise."""
        return self.inner().trigger(images)

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        return self.inner().goal(labels, num_classes)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        if self.hardening is None:
            raise RuntimeError("adaptive must be prepared before it can poison")
        poisoned = self.hardening.attack.poison(clean, rng)
        images, mask = poisoned.train.images.clone(), poisoned.mask
        images[mask] = add(images[mask], self.hardening.noise.to(images.device))
        train = replace(poisoned.train, images=images)
        return replace(poisoned, train=train, facts=self.hardening.facts)


def _parts(images: ImageSet) -> list[ImageSet]:
    every = torch.arange(len(images), device=images.device)
    return [images[part] for part in every.split(CHUNK)]
