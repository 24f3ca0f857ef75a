"""CBD, causality-inspired backdoor defense, Zhang et al., CVPR 2023, arXiv:2303.06818.

A network f_B that is trained for a few epochs learns the trigger before it learns the classes. A
second network f_C is then trained with large weights on the images that f_B finds hard (equation
6). The dependence of its embedding z on f_B's embedding r is penalised by a critic (equation 7),
and so is the norm of z (the l2 term of equation 8).

Differs: two constants come from the authors' code, not from the paper, and are the defaults:
weights are rescaled to a batch mean of 1 (`rescale`), and the critic's loss has weight 0.01
(`critic_weight`). With both as printed and this critic, f_C hardly learned in three epochs of
CIFAR-10 (one seed): `cbd(rescale=False, critic_weight=1.0)` are the literal equations. That code
also ships with the critic off and without the l2 term: `cbd(critic_weight=0.0, beta=0.0)`. The
paper does not describe the critic: here it has one hidden layer, spectral normalisation by power
iteration (Miyato et al., 2018, arXiv:1802.05957) and no dropout; Adam trains it, where the paper
names SGD for everything. w(x) is held constant in the gradient of f_C. Critic and f_C are updated
in turn on each batch from one forward pass, not in turn over whole epochs. T1 and beta are fixed
unless `select="cv"`, the paper's search. Its criterion is accuracy on held-out images that may be
poisoned themselves, which rewards keeping the backdoor. f_B is read in eval mode, as in that code,
so with the running batch-norm statistics of its last updates at the initial rate, which lag;
`cbd(statistics='anew')` estimates them first. w(x) is computed on the augmented view that f_C is
trained on, as in that code. A random crop can remove a trigger at the border; f_B then finds the
poisoned image hard, and its wrong label gets a large weight. Equation 6 can also be read as one f_B
loss for each image: `cbd(per_view=False)`.

Elsewhere: f_B and f_C follow the recipe's learning rate, 0.01 on GTSRB (paper); the authors' code
trains f_C at 0.1 on all data. T1 and beta are the same for all data sets and networks; the paper
searches for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import Adam

from bdbench.defenses import Context, Defense, register
from bdbench.defenses.batch_norm import reset_statistics
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    accuracy,
    added,
    at_least,
    lacks_head,
    loop,
    require,
    sample_losses,
    train,
    trainable,
)
from bdbench.models.rng import derive, global_seed

BETAS = (1e-5, 1e-4, 1e-3)
"""The values of beta that the paper's search tries (section 5.1)."""
LARGE_SHARE = 0.25
"""Length of the training of f_B, as a share of that of f_C, from which f_B fits clean images too
well. In the paper it is a twentieth."""


@register("cbd", title="CBD")
@dataclass(frozen=True)
class CBD(Defense):
    """
    t1: epochs of f_B, at the initial learning rate; not scaled with the recipe (paper: 3, 5 or 8;
        code: 5)
    reweight: use w(x) of equation 6; False gives every image the same weight (paper)
    rescale: divide the weights by their batch mean (code; False is the paper's equation 6)
    critic_weight: weight of L_adv in equation 8; 0 trains no critic (code: 0.01; paper: 1)
    critic_learning_rate: learning rate of the critic's Adam, with the recipe's drops (our choice)
    beta: weight of the squared norm of z, batch mean (paper: 1e-5, 1e-4 or 1e-3)
    select: "fixed" uses t1 and beta as given (our choice); "cv" searches for them (paper, section
        5.1)
    folds: folds of the training set in that search, at least 2 (paper: 5)
    t1s: the values of t1 that the search tries, all different (paper: 3, 5 and 8)
    per_view: take f_B's loss in w(x) on the augmented view that f_C sees (code); False takes it
        once, on the image without augmentation
    statistics: the batch-norm statistics with which f_B is read: "running", those of its last
        updates (code), or "anew", estimated over the training set once f_B has its last weights
        (our experiment)
    """

    t1: int = 5
    reweight: bool = True
    rescale: bool = True
    critic_weight: float = 0.01
    critic_learning_rate: float = 1e-3
    beta: float = 1e-4
    select: Literal["fixed", "cv"] = "fixed"
    folds: int = 5
    t1s: tuple[int, ...] = added((3, 5, 8))
    per_view: bool = added(True)
    statistics: Literal["running", "anew"] = added("running")

    def __post_init__(self) -> None:
        at_least(1, t1=self.t1)
        at_least(2, folds=self.folds)
        at_least(0, critic_weight=self.critic_weight, beta=self.beta)
        at_least(0, critic_learning_rate=self.critic_learning_rate)
        require(
            len(set(self.t1s)) == len(self.t1s) > 0 and min(self.t1s) >= 1,
            f"t1s must be one or more different numbers, each at least 1, got {self.t1s}",
        )

    def lacks(self, network: Classifier, image_size: int) -> str:
        return lacks_head(network)

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        chosen = self.search(data, context) if self.select == "cv" else self
        share = chosen.t1 / context.recipe.epochs
        if share > LARGE_SHARE:
            context.journal.warnings.append(
                f"f_B sees {share:.2f} times as many images as f_C (paper: 0.05), so it fits many "
                "clean images and f_C learns little from them"
            )
        f_b, f_c = context.build("f_B"), context.build()
        context.show("r", f_b)
        chosen.train_f_b(f_b, data, context)
        losses = sample_losses(f_b, data)
        context.journal.samples["f_B loss"] = losses
        if float(losses.mean()) > math.log(data.num_classes):
            context.journal.warnings.append(
                f"the mean loss of f_B, {float(losses.mean()):.1f}, is above that of a guess: its "
                "running batch-norm statistics lag behind its weights, so weights of images say "
                "little of what it has learned"
            )
        context.watch(f_c)
        context.journal.samples["w"] = chosen.train_f_c(f_c, f_b, data, context)
        return f_c

    def search(self, data: ImageSet, context: Context) -> CBD:
        """Select T1 and beta by cross validation: accuracy on the held-out fold, with labels as
        given. Ties go to the first."""
        require(
            len(data) >= self.folds,
            f"{self.folds} folds need at least {self.folds} images, got {len(data)}",
        )
        order = torch.randperm(len(data), generator=context.rng("folds")).to(data.device)
        folds = order.tensor_split(self.folds)

        def correct(fold: int, t1: int) -> list[int]:
            """The number of held-out images that f_C classifies correctly, for each beta."""
            held_out, others = folds[fold], [*folds[:fold], *folds[fold + 1 :]]
            rest = data[torch.cat(others)]
            own = replace(context, seed=derive(context.seed, "fold", str(fold)))
            f_b, counts = own.build("f_B"), []
            replace(self, t1=t1).train_f_b(f_b, rest, own)
            for beta in BETAS:
                f_c = own.build()
                replace(self, beta=beta).train_f_c(f_c, f_b, rest, own)
                counts.append(round(accuracy(f_c, data[held_out]) * len(held_out)))
            return counts

        pairs = list(product(range(self.folds), self.t1s))
        results = context.parallel(*(partial(correct, fold, t1) for fold, t1 in pairs))
        total = dict.fromkeys(product(self.t1s, BETAS), 0)
        for (_, t1), counts in zip(pairs, results, strict=True):
            for beta, count in zip(BETAS, counts, strict=True):
                total[t1, beta] += count
        for (t1, beta), count in total.items():
            name = f"accuracy at t1={t1}, beta={beta:g}"
            context.journal.scalars[name] = round(count / len(data), 6)
        t1, beta = max(total, key=lambda pair: total[pair])
        context.journal.scalars |= {"chosen t1": t1, "chosen beta": beta}
        return replace(self, t1=t1, beta=beta, select="fixed")

    def train_f_b(self, f_b: Classifier, data: ImageSet, context: Context) -> None:
        """Algorithm 1, first stage: train f_B until it knows the trigger, then freeze it."""
        recipe = replace(context.recipe, epochs=self.t1, drops=())
        train(f_b, data, recipe, context.rng("f_B"))
        if self.statistics == "anew":
            reset_statistics(f_b, data, recipe, context.rng("statistics"))
        f_b.requires_grad_(False)

    def train_f_c(
        self, f_c: Classifier, f_b: Classifier, data: ImageSet, context: Context
    ) -> Tensor:
        """Algorithm 1, second stage: train f_C against f_B in place and leave it in eval mode.
        Returns the last weight of each image, float32 (n,)."""
        optimizer, parameters = context.recipe.sgd(f_c), list(trainable(f_c).values())
        with global_seed(context.seed, "weights", "critic"):
            critic = Critic(f_c.head.in_features + f_b.head.in_features).to(context.device)
        critic_optimizer = Adam(critic.parameters(), lr=self.critic_learning_rate)
        weights = torch.zeros(len(data), device=context.device)
        image_losses = None if self.per_view else sample_losses(f_b, data)

        def step(batch: Batch) -> None:
            with torch.no_grad():
                r = f_b.features(batch.images)
                if image_losses is None:
                    loss_b = cross_entropy(f_b.head(r), batch.labels, reduction="none")
                else:
                    loss_b = image_losses[batch.index]
            z = f_c.features(batch.images)
            loss_c = cross_entropy(f_c.head(z), batch.labels, reduction="none")
            if self.critic_weight:
                critic_optimizer.zero_grad()
                (-dependence(critic, z.detach(), r)).backward()
                critic_optimizer.step()
            w = sample_weights(loss_b, loss_c.detach())
            weights[batch.index] = w
            loss = self.weigh(w, loss_c) + self.beta * z.square().sum(1).mean()
            if self.critic_weight:
                loss = loss + self.critic_weight * dependence(critic, z, r)
            optimizer.zero_grad()
            # Only for the parameters of f_C: gradients of the critic would be discarded.
            loss.backward(inputs=parameters)
            optimizer.step()

        f_c.train()
        loop(
            step,
            data,
            recipe=context.recipe,
            rng=context.rng("classifier"),
            state={
                "f_C": f_c,
                "critic": critic,
                "optimizer": optimizer,
                "critic optimizer": critic_optimizer,
                "weights": weights,
            },
        )
        f_c.eval()
        return weights

    def weigh(self, w: Tensor, losses: Tensor) -> Tensor:
        """L_wce: the weighted mean of the losses; weights and losses are (b,)."""
        if not self.reweight:
            return losses.mean()
        scale = 1 / w.mean().clamp(min=1e-8) if self.rescale else 1.0
        return scale * (w * losses).mean()

    def cost(self, recipe: Recipe, images: int) -> float:
        anew = self.statistics == "anew"
        f_c = 4.0 * recipe.epochs + (not self.per_view)
        last = 3.0 * self.t1 + anew + 1.0 + f_c
        if self.select == "fixed":
            return last
        candidates = len(self.t1s) * len(BETAS)
        fold = 3.0 * sum(self.t1s) + anew * len(self.t1s) + f_c * candidates
        return last + (self.folds - 1) * fold + candidates


class Critic(nn.Module):
    """D of equation 7: pairs (z, r) -> one score each, with a Lipschitz constant of about 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width // 2
        self.layers = nn.Sequential(
            spectral_norm(nn.Linear(width, hidden)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(hidden, 1)),
        )

    def forward(self, z: Tensor, r: Tensor) -> Tensor:
        """float32 (b, d) twice -> float32 (b,)."""
        score: Tensor = self.layers(torch.cat([z, r], 1)).squeeze(1)
        return score


def sample_weights(loss_b: Tensor, loss_c: Tensor) -> Tensor:
    """w(x) of equation 6, in [0, 1]: near 0 for images that f_B fits already. All are (b,)."""
    return loss_b / (loss_b + loss_c).clamp(min=1e-8)


def dependence(critic: Critic, z: Tensor, r: Tensor) -> Tensor:
    """The bracket of equation 7: E[D(z, r)] over joint pairs minus that over independent pairs.

    Independent pairs combine r with the z of the previous image of the batch, which is shuffled.
    """
    gap: Tensor = critic(z, r).mean() - critic(z.roll(1, 0), r).mean()
    return gap
