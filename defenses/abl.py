"""ABL, anti-backdoor learning, Li et al., NeurIPS 2021, arXiv:2110.11571.

A network fits images with a trigger long before it fits the others. Stage 1 raises losses that fall
below gamma, which holds clean images back, so that the lowest losses isolate some images with a
trigger. Stage 2 learns from the rest and unlearns the isolated images (equation 5):
E_rest[l] - E_isolated[l].

Differs: stage 1 of the paper uses the loss of each image, `abl(isolation="lga")`, which also raises
the losses of images with a trigger to gamma once they are fitted. Here, as in the authors' code, it
uses the mean loss of a batch. The paper minimises the objective of stage 2 for the remaining 80
epochs; here, as in that code, the network first learns from the rest and then unlearns, by 80
updates of the paper's objective. A quarter of each batch are isolated images, and the loss of each
is clamped at log(classes), the loss of a guess, because an unbounded loss wrecks the network: our
choice. `abl(objective="sequential")` is the gradient ascent of the authors' code, on the isolated
images alone. That code carries momentum into the ascent, while every stage here has a new
optimizer, and the first of its five ascent epochs only tests. It has neither of the two limits that
end the ascent here: `abl(objective="sequential", loss_limit=1e9, drop_limit=1.0)` disables them.
The joint unlearning augments its images, as the recipe does; the ascent does not. Where isolated
images are fitted so well that their loss is 0, the gradient of both objectives almost vanishes, so
few updates may unlearn nothing. A warning says if their loss stays below that of a guess.

Elsewhere: stage 1 and the training on the rest follow the recipe's learning rate, so they start at
0.01 on GTSRB, as in ABL's paper, which trains networks on GTSRB at that rate. The unlearning has
its own, `joint_rate` or `unlearning_rate`, which is the same everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.filters import lowest
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    accuracy,
    at_least,
    batch_sizes,
    loop,
    portion,
    require,
    sample_losses,
    train,
)

MOST_JUDGES = 1_000
"""Most images on which the accuracy after an epoch of the ascent is measured."""


@register("abl", title="ABL")
@dataclass(frozen=True)
class ABL(Defense):
    """
    isolation: loss of stage 1, "flooding" (code) or "lga", local gradient ascent (paper)
    gamma: lower bound of the loss in stage 1, per image or (flooding) per batch, at least 0
        (paper: 0.5)
    augment: whether stage 1 augments (code: False; paper of CBD: True for all defenses)
    isolation_rate: share of the training set that is isolated, in (0, 1) (paper: 0.01)
    isolation_epochs: epochs of stage 1 in a recipe of 100, at the initial learning rate
        (paper: 20; code: 10)
    finetuning_epochs: epochs of training on the rest in a recipe of 100; the learning rate falls
        tenfold after two thirds of them (code: 60 and 40)
    objective: unlearning by the "joint" (paper) or the "sequential" objective (code)

    Only for the joint objective:
    joint_updates: updates, not scaled with the recipe's epochs, 0 for none (our choice)
    joint_rate: learning rate, constant, above 0 (our choice)
    joint_batch_size: images, at least 2 (our choice)
    isolated_share: share of isolated images in each batch, in (0, 1) (our choice)

    Only for the sequential objective:
    unlearning_epochs: epochs of gradient ascent on the isolated images, not scaled with the recipe,
        0 for none (code: 5)
    unlearning_rate: learning rate of the ascent (code: 5e-4)
    freeze_norm: in the ascent, normalise by the frozen running statistics instead of those of the
        isolated images (code: False)
    loss_limit: the ascent ends when the mean isolated loss exceeds this many times log(classes)
        (our choice)
    drop_limit: the ascent ends, and its last epoch is undone, when accuracy on some of the rest,
        with labels as given, falls by more than this, in [0, 1]; see `bystanders` (our choice)
    """

    version: ClassVar[int] = 2

    isolation: Literal["flooding", "lga"] = "flooding"
    gamma: float = 0.5
    augment: bool = False
    isolation_rate: float = 0.01
    isolation_epochs: int = 20
    finetuning_epochs: int = 60
    objective: Literal["joint", "sequential"] = "joint"
    joint_updates: int = 80
    joint_rate: float = 0.01
    joint_batch_size: int = 64
    isolated_share: float = 0.25
    unlearning_epochs: int = 5
    unlearning_rate: float = 5e-4
    freeze_norm: bool = False
    loss_limit: float = 10.0
    drop_limit: float = 0.05

    def __post_init__(self) -> None:
        at_least(0, gamma=self.gamma, unlearning_epochs=self.unlearning_epochs)
        at_least(1, isolation_epochs=self.isolation_epochs)
        at_least(1, finetuning_epochs=self.finetuning_epochs)
        at_least(0, joint_updates=self.joint_updates)
        batch_sizes(joint_batch_size=self.joint_batch_size)
        above(0, joint_rate=self.joint_rate)
        above(0, unlearning_rate=self.unlearning_rate, loss_limit=self.loss_limit)
        for name in ("isolation_rate", "isolated_share"):
            share = getattr(self, name)
            require(0 < share < 1, f"{name} must be above 0 and below 1, got {share}")
        drop = self.drop_limit
        require(0 <= drop <= 1, f"drop_limit must be from 0 to 1, got {drop}")

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        network, recipe, journal = context.build(), context.recipe, context.journal
        context.watch(network)

        early = replace(recipe if self.augment else recipe.still, drops=())
        early = replace(early, epochs=context.epochs(self.isolation_epochs))
        train(network, data, early, context.rng("isolation"), self.isolation_loss)
        losses = sample_losses(network, data)
        suspects = self.isolate(losses)
        journal.filtered("isolation loss", losses, suspects)
        isolated, rest = data[suspects], data[~suspects]
        journal.scalars["isolated images"] = len(isolated)

        late = replace(recipe, epochs=context.epochs(self.finetuning_epochs), drops=(2 / 3,))
        train(network, rest, late, context.rng("classifier"))

        journal.scalars["isolated loss before unlearning"] = mean_loss(network, isolated)
        if self.objective == "joint":
            self.unlearn(network, rest, isolated, context)
        else:
            journal.scalars["ascent epochs"] = self.ascend(network, isolated, rest, context)
        after = mean_loss(network, isolated)
        journal.scalars["isolated loss after unlearning"] = after
        if self.unlearns and after < math.log(data.num_classes):
            journal.warnings.append(
                "the isolated images are not unlearned: their mean loss is below that of a guess"
            )
        return network

    @property
    def unlearns(self) -> bool:
        """Whether anything is asked of the last stage."""
        joint = self.objective == "joint"
        return (self.joint_updates if joint else self.unlearning_epochs) > 0

    def isolate(self, losses: Tensor) -> Tensor:
        """bool (n,), True at the lowest of the losses (n,); at least one."""
        return lowest(losses, max(1, portion(self.isolation_rate, len(losses))))

    def isolation_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Local gradient ascent: E[sign(l - gamma) l] over a batch. Flooding: |E[l] - gamma| +
        gamma."""
        losses = cross_entropy(logits, labels, reduction="none")
        if self.isolation == "lga":
            return ((losses.detach() - self.gamma).sign() * losses).mean()
        return (losses.mean() - self.gamma).abs() + self.gamma

    def unlearn(
        self, network: Classifier, rest: ImageSet, isolated: ImageSet, context: Context
    ) -> None:
        """Minimise E_rest[l] - E_isolated[l]. Every batch contains both and is normalised as a
        whole."""
        if self.joint_updates == 0:
            return
        size = self.joint_batch_size
        isolated_size = min(size - 1, max(1, round(self.isolated_share * size)))
        recipe = replace(context.recipe, learning_rate=self.joint_rate, drops=())
        optimizer = recipe.sgd(network)
        guess = math.log(rest.num_classes)

        def step(rest_batch: Batch, isolated_batch: Batch) -> None:
            images = torch.cat([rest_batch.images, isolated_batch.images])
            labels = torch.cat([rest_batch.labels, isolated_batch.labels])
            losses = cross_entropy(network(images), labels, reduction="none")
            loss = joint_objective(losses, len(rest_batch.labels), guess)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        network.train()
        loop(
            step,
            rest,
            isolated,
            recipe=recipe,
            rng=context.rng("unlearning"),
            state={"network": network, "optimizer": optimizer},
            updates=context.updates(self.joint_updates),
            batch_sizes=(size - isolated_size, isolated_size),
        )
        network.eval()

    def ascend(
        self, network: Classifier, isolated: ImageSet, rest: ImageSet, context: Context
    ) -> int:
        """Maximise the mean loss over `isolated`. Returns the number of epochs that were not
        undone."""
        if self.unlearning_epochs == 0:
            return 0
        recipe = replace(
            context.recipe.still,
            epochs=self.unlearning_epochs,
            learning_rate=self.unlearning_rate,
            drops=(),
        )
        optimizer = recipe.sgd(network)

        def step(batch: Batch) -> None:
            optimizer.zero_grad()
            (-cross_entropy(network(batch.images), batch.labels)).backward()
            optimizer.step()

        largest_loss = self.loss_limit * math.log(rest.num_classes)
        judges = sample(bystanders(rest, isolated), MOST_JUDGES, context.rng("judges"))
        least_accuracy = accuracy(network, judges) - self.drop_limit
        good, done = copy_state(network), {"epochs": 0}

        def limit_reached() -> bool:
            if accuracy(network, judges) < least_accuracy:
                network.load_state_dict(good)
                return True
            good.update(copy_state(network))
            done["epochs"] += 1
            # Not >, so that a NaN loss ends the ascent too.
            return not mean_loss(network, isolated) <= largest_loss

        # Batch statistics of a single image are undefined.
        network.train(len(isolated) > 1 and not self.freeze_norm)
        loop(
            step,
            isolated,
            recipe=recipe,
            rng=context.rng("ascent"),
            state={"network": network, "optimizer": optimizer, "good": good, "done": done},
            until=limit_reached,
        )
        network.eval()
        return done["epochs"]

    def cost(self, recipe: Recipe, images: int) -> float:
        rate = self.isolation_rate
        finetuning = (1 - rate) * recipe.scaled(self.finetuning_epochs)
        trained = recipe.scaled(self.isolation_epochs) + finetuning
        unlearned = judged = 0.0
        if self.objective == "joint":
            updates = recipe.shortened(self.joint_updates) if self.joint_updates else 0
            unlearned = updates * self.joint_batch_size / images
        elif self.unlearning_epochs:
            unlearned = rate * self.unlearning_epochs
            # Accuracy on some of the rest, before the ascent and after each of its epochs.
            judged = (1 + self.unlearning_epochs) * min(MOST_JUDGES, images) / images
        return 3.0 * (trained + unlearned) + 1 + judged


def joint_objective(losses: Tensor, rest: int, guess: float) -> Tensor:
    """E_rest[l] - E_isolated[l] of the losses of a batch, float32 (b,). The first `rest` losses
    belong to the rest; those of isolated images are clamped at `guess`."""
    return losses[:rest].mean() - losses[rest:].clamp(max=guess).mean()


def bystanders(rest: ImageSet, isolated: ImageSet) -> ImageSet:
    """The images of the rest without the most frequent label of the isolated images; all of the
    rest if every image has that label.

    Most poisoned images are in the rest and have that label. A successful ascent changes their
    predicted class, which would look like lost accuracy.
    """
    others = rest.labels != isolated.labels.bincount().argmax()
    return rest[others] if bool(others.any()) else rest


def sample(data: ImageSet, most: int, rng: torch.Generator) -> ImageSet:
    """A random sample of at most so many images."""
    return data[torch.randperm(len(data), generator=rng)[:most].to(data.device)]


def mean_loss(network: Classifier, data: ImageSet) -> float:
    return float(sample_losses(network, data).mean())


def copy_state(network: Classifier) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}
