"""Neural Cleanse, Wang et al., IEEE S&P 2019, doi:10.1109/SP.2019.00031.

A backdoor is a shortcut: a small trigger turns any image into the target label. For every label,
the smallest mask m and pattern Delta that turn clean images into it are found. A label whose mask
is an outlier among the small ones is flagged, and the network unlearns the triggers found.

Differs: the paper adapts lambda so that over 99 % of the images become the label, but does not say
how. The rule here follows the settings that the authors published: lambda is 0 until a trigger
succeeds, doubles after five successful rounds in a row, and falls by 2^1.5 after five failures. A
search ends early if 25 rounds bring no smaller mask. These constants, Adam's (0.5, 0.9) and the
parametrisation by tanh come from descriptions of these settings, not from the code. They also allow
up to 1,000 rounds of 31 batches of 32; the length here is BackdoorBench's 80 epochs on 2,500
images, an epoch being a round. All labels start from the same random mask and pattern and see the
same batches, four fifths of the clean images, without augmentation. The paper fine-tunes for one
epoch on a tenth of the training set, with the trigger on a fifth of it: on GTSRB, 110 batches of
32. It gives neither learning rate nor batch size. Here the clean images are fewer and repeat, the
fifth is fixed, and several flagged labels share it. Augmentation comes before the trigger, and the
rest follows the recipe. If no label is flagged, the network is returned unchanged. If no
trigger reaches the threshold for a label, its last mask still enters the median and it is never
flagged.

Elsewhere: the same on GTSRB and with other networks. The search grows with the number of labels:
`cost` assumes 10, and 43 take 4.3 times as long. An outlier needs other labels: with two, none can
be flagged.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

from bdbench.defenses import Context, Defense, register
from bdbench.models import (
    Batch,
    Classifier,
    ImageSet,
    Recipe,
    above,
    at_least,
    batch_sizes,
    loop,
    portion,
    require,
)

CONSISTENCY = 1.4826
"""Makes the median absolute deviation of normal numbers their standard deviation (paper)."""
LABELS = 10
"""The number of labels that `cost` assumes."""
IMAGES = 256
"""The number of images, of one or several labels, in a forward pass of the search."""
TINY = 1e-6
"""The smallest deviation of norms, relative to their median, and of pixels from 0 and 1."""


@register("neural_cleanse", title="Neural Cleanse")
@dataclass(frozen=True)
class NeuralCleanse(Defense):
    """
    threshold: labels with a larger anomaly index are flagged, above 0 (paper: 2)
    success: share of the images that a trigger must turn into its label, in (0, 1] (paper: 0.99)
    updates: updates of the search for each label, each on one batch, at least 1; it may end early
        (BackdoorBench: 80 epochs; code: at most 31,000)
    learning_rate: of the search's Adam, constant, above 0 (code: 0.1)
    batch_size: images in a batch of the search, at least 2 (our choice; code: 32)
    penalty: the first lambda that is not 0, above 0 (code: 0.001)
    factor: lambda rises by this factor and falls by its 1.5th power, above 1 (code: 2)
    round_updates: updates of a round, after which lambda may change, at least 1 (BackdoorBench: one
        epoch; code: 31)
    patience: rounds in a row that succeed or fail before lambda changes, at least 1 (code: 5)
    idle_rounds: rounds without a smaller mask that end a search once lambda has risen and fallen,
        at least 1 (code: 25)
    unlearning_updates: updates of unlearning, at least 1 (paper: one epoch, see above)
    unlearning_rate: learning rate of unlearning, constant, above 0 (our choice, as in `fp`)
    unlearning_batch_size: images, at least 2 (our choice, as in the search of the code)
    stamped: share of the clean images that carry the trigger, in (0, 1] (paper: 0.2)
    """

    clean_fraction: ClassVar[float] = 0.05
    undefended = 1

    threshold: float = 2.0
    success: float = 0.99
    updates: int = 800
    learning_rate: float = 0.1
    batch_size: int = 256
    penalty: float = 0.001
    factor: float = 2.0
    round_updates: int = 10
    patience: int = 5
    idle_rounds: int = 25
    unlearning_updates: int = 110
    unlearning_rate: float = 0.01
    unlearning_batch_size: int = 32
    stamped: float = 0.2

    def __post_init__(self) -> None:
        above(0, threshold=self.threshold, penalty=self.penalty)
        above(0, learning_rate=self.learning_rate, unlearning_rate=self.unlearning_rate)
        above(1, factor=self.factor)
        at_least(1, updates=self.updates, unlearning_updates=self.unlearning_updates)
        at_least(1, round_updates=self.round_updates, patience=self.patience)
        at_least(1, idle_rounds=self.idle_rounds)
        batch_sizes(batch_size=self.batch_size, unlearning_batch_size=self.unlearning_batch_size)
        for name in ("success", "stamped"):
            share = getattr(self, name)
            require(0 < share <= 1, f"{name} must be above 0 and at most 1, got {share}")

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        clean = context.trusted().fit
        network = deepcopy(context.undefended())
        found = self.find_triggers(network, clean, context)
        flagged = self.judge(found, context)
        if len(flagged):
            context.watch(network)
            self.unlearn(network, found.triggers[flagged], clean, context)
        return network

    def find_triggers(self, network: Classifier, clean: ImageSet, context: Context) -> Found:
        """A trigger for every label. The network is not modified."""
        network = deepcopy(network).requires_grad_(False)
        start = torch.rand(4, *clean.size, generator=context.rng("start")).to(context.device)
        labels = torch.arange(clean.num_classes, device=context.device)
        at_once = max(1, IMAGES // min(self.batch_size, len(clean)))
        parts = [
            self.search(network, Search(self, some, start, context), clean, context)
            for some in labels.split(at_once)
        ]
        return Found(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def search(
        self, network: Classifier, search: Search, clean: ImageSet, context: Context
    ) -> Found:
        """Equation 3 for some labels at once: min over m and Delta of l(y, f(A(x, m, Delta))) +
        lambda |m|, whose sum over the labels has the gradients of each."""
        optimizer = Adam([search.w], lr=self.learning_rate, betas=(0.5, 0.9))
        recipe = replace(context.recipe.still, batch_size=self.batch_size, drops=())

        def step(batch: Batch) -> None:
            triggers, x = search.triggers, batch.images
            y = search.labels[:, None].expand(-1, len(x))
            images = stamp(x, triggers[:, None]).flatten(0, 1)
            outputs = network(images.contiguous(memory_format=torch.channels_last))
            losses = cross_entropy(outputs, y.flatten(), reduction="none").view_as(y).mean(1)
            optimizer.zero_grad()
            (losses + search.penalty * norm(triggers)).sum().backward()
            optimizer.step()
            hits = (outputs.argmax(1).view_as(y) == y).sum(1)
            search.record(triggers.detach(), hits, len(x))

        loop(
            step,
            clean,
            recipe=recipe,
            rng=context.rng("search"),
            state={"search": search, "optimizer": optimizer},
            until=lambda: bool(search.stopped.all()),
            updates=context.updates(self.updates),
        )
        return search.result()

    def judge(self, found: Found, context: Context) -> Tensor:
        """The labels that are flagged, int64 (flagged,). Publishes norms and indices."""
        journal, index = context.journal, anomaly_indices(found.norms)
        flagged = (index > self.threshold) & found.succeeded
        missed = int((~found.succeeded).sum())
        largest = float(index.nan_to_num(-torch.inf).max())
        journal.scalars |= {
            "flagged labels": int(flagged.sum()),
            "labels without a trigger": missed,
            "largest anomaly index": largest,
        }
        for label, (size, value) in enumerate(
            zip(found.norms.tolist(), index.tolist(), strict=True)
        ):
            journal.scalars[f"mask norm of label {label}"] = size
            journal.scalars[f"anomaly index of label {label}"] = value
        if missed:
            journal.warnings.append(
                f"no trigger turns {self.success:.0%} of the clean images into {missed} of "
                f"{len(index)} labels; these cannot be flagged"
            )
        if not flagged.any():
            journal.warnings.append(
                f"no label is an outlier, so the network is unchanged: the largest anomaly index "
                f"is {largest:.2f}, and only one above {self.threshold:g} counts"
            )
        return flagged.nonzero().flatten()

    def unlearn(
        self, network: Classifier, triggers: Tensor, clean: ImageSet, context: Context
    ) -> None:
        """Fine-tune `network` in place on clean images with their true labels, some of which carry
        one of the triggers, float32 (flagged, 4, height, width)."""
        recipe = replace(
            context.recipe,
            batch_size=self.unlearning_batch_size,
            learning_rate=self.unlearning_rate,
            drops=(),
        )
        optimizer = recipe.sgd(network)
        # An empty mask is the trigger of all other images.
        triggers = torch.cat([triggers, torch.zeros_like(triggers[:1])])
        carried = torch.full((len(clean),), len(triggers) - 1)
        chosen = torch.randperm(len(clean), generator=context.rng("stamped"))
        chosen = chosen[: max(1, portion(self.stamped, len(clean)))]
        if len(chosen) < len(triggers) - 1:
            context.journal.warnings.append(
                f"{len(triggers) - 1} labels are flagged, but {len(chosen)} clean images carry a "
                "trigger; the triggers of the other labels are not unlearned"
            )
        carried[chosen] = torch.arange(len(chosen)) % (len(triggers) - 1)
        carried = carried.to(context.device)

        def step(batch: Batch) -> None:
            images = stamp(batch.images, triggers[carried[batch.index]])
            optimizer.zero_grad()
            cross_entropy(network(images), batch.labels).backward()
            optimizer.step()

        network.train()
        loop(
            step,
            clean,
            recipe=recipe,
            rng=context.rng("unlearning"),
            state={"network": network, "optimizer": optimizer},
            updates=context.updates(self.unlearning_updates),
        )
        network.eval()

    def cost(self, recipe: Recipe, images: int) -> float:
        """The largest: a search may end early, and unlearning needs a flagged label."""
        search, unlearning = (
            self.tuning_passes(recipe, images, updates, batch_size)
            for updates, batch_size in (
                (self.updates, self.batch_size),
                (self.unlearning_updates, self.unlearning_batch_size),
            )
        )
        return 3.0 * recipe.epochs + 3.0 * LABELS * search + 3.0 * unlearning


class Found(NamedTuple):
    """One trigger for each label.

    triggers: float32 (labels, 4, height, width) in [0, 1]; first the mask, then the pattern
    norms: float32 (labels,), the L1 norms of the masks
    succeeded: bool (labels,), whether the trigger turns enough images into the label
    """

    triggers: Tensor
    norms: Tensor
    succeeded: Tensor


class Search(nn.Module):
    """The triggers of some labels while they are optimised, each with its own lambda.

    labels: int64 (n,)
    w: float32 (n, 4, height, width); (tanh(w) + 1) / 2 are the triggers
    penalty: lambda of each label
    streak: rounds in a row that succeeded, or minus those that failed
    size, best: the smallest successful mask so far, and its trigger
    idle: rounds since then
    raised, lowered, stopped: whether lambda has risen from a number above 0, whether it has fallen,
        and whether the search is over
    """

    labels: Tensor
    penalty: Tensor
    streak: Tensor
    size: Tensor
    best: Tensor
    idle: Tensor
    raised: Tensor
    lowered: Tensor
    stopped: Tensor
    updates: Tensor
    hits: Tensor
    seen: Tensor

    def __init__(
        self, method: NeuralCleanse, labels: Tensor, start: Tensor, context: Context
    ) -> None:
        """start: float32 (4, height, width) in [0, 1], the first trigger of each label"""
        super().__init__()
        self.method, self.round_updates = method, context.updates(method.round_updates)
        w = (2 * start - 1).clamp(TINY - 1, 1 - TINY).atanh().repeat(len(labels), 1, 1, 1)
        self.w = nn.Parameter(w)
        zero, no = torch.zeros_like(labels), torch.zeros_like(labels, dtype=torch.bool)
        size = torch.full_like(labels, torch.inf, dtype=torch.float32)
        counters = {name: zero.clone() for name in ("streak", "idle", "hits")}
        marks = {name: no.clone() for name in ("raised", "lowered", "stopped")}
        own = {"penalty": zero.float(), "size": size, "best": torch.zeros_like(w)}
        passed = {name: zero.new_zeros(()) for name in ("updates", "seen")}
        for name, values in {"labels": labels, **counters, **marks, **own, **passed}.items():
            self.register_buffer(name, values)

    @property
    def triggers(self) -> Tensor:
        """float32 (n, 4, height, width) in [0, 1]"""
        return (self.w.tanh() + 1) / 2

    @torch.no_grad()
    def record(self, triggers: Tensor, hits: Tensor, seen: int) -> None:
        """Count an update. At the end of a round, keep the smallest successful masks, adapt lambda
        and stop idle searches.

        hits: int64 (n,), of `seen` stamped images, those that were taken for the label
        """
        method = self.method
        self.updates.add_(1)
        self.hits.add_(hits)
        self.seen.add_(seen)
        ends = self.updates % self.round_updates == 0
        success, size = self.hits / self.seen >= method.success, norm(triggers)
        smaller = success & (size < self.size)
        idle = torch.where(smaller, 0, self.idle + self.size.isfinite())
        streak = torch.where(success, self.streak.clamp(min=0) + 1, self.streak.clamp(max=0) - 1)
        up, down = streak >= method.patience, streak <= -method.patience
        risen = torch.where(self.penalty > 0, self.penalty * method.factor, method.penalty)
        fallen = torch.where(down, self.penalty / method.factor**1.5, self.penalty)
        raised = self.raised | (up & (self.penalty > 0))
        lowered = self.lowered | (down & (self.penalty > 0))
        live = ends & ~self.stopped
        for old, new in (
            (self.best, torch.where(smaller[:, None, None, None], triggers, self.best)),
            (self.size, torch.where(smaller, size, self.size)),
            (self.idle, idle),
            (self.streak, streak.masked_fill(up | down, 0)),
            (self.penalty, torch.where(up, risen, fallen)),
            (self.raised, raised),
            (self.lowered, lowered),
            (self.stopped, raised & lowered & (idle >= method.idle_rounds)),
        ):
            old.copy_(torch.where(live.view(-1, *[1] * (old.ndim - 1)), new, old))
        self.hits.masked_fill_(ends, 0)
        self.seen.masked_fill_(ends, 0)

    def result(self) -> Found:
        """The smallest successful triggers, or the last of a label that has none."""
        last, succeeded = self.triggers.detach(), self.size.isfinite()
        triggers = torch.where(succeeded[:, None, None, None], self.best, last)
        return Found(triggers, norm(triggers), succeeded)


def norm(triggers: Tensor) -> Tensor:
    """|m|, the sum over the pixels of each mask: (n, 4, height, width) -> (n,)."""
    return triggers[:, 0].sum((1, 2))


def stamp(images: Tensor, triggers: Tensor) -> Tensor:
    """Equation 2: A(x, m, Delta) = (1 - m) x + m Delta, float32 (..., 3, height, width).

    triggers: float32 (..., 4, height, width)
    """
    m, delta = triggers[..., :1, :, :], triggers[..., 1:, :, :]
    return (1 - m) * images + m * delta


def anomaly_indices(norms: Tensor) -> Tensor:
    """How many deviations each norm is below the median, float64 (labels,), with the median
    absolute deviation times `CONSISTENCY`; nan for norms that are not finite, which count nowhere
    else. If the deviation is 0, it is replaced by a tiny one."""
    norms = norms.double()
    known = norms[norms.isfinite()]
    if not len(known):
        return torch.full_like(norms, torch.nan)
    median = known.quantile(0.5)
    deviation = (known - median).abs().quantile(0.5).clamp(min=TINY * float(median) + 1e-12)
    return ((median - norms) / (CONSISTENCY * deviation)).where(norms.isfinite(), torch.nan)
