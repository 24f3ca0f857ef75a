"""Our training beside that of public code: `none` and `cbd` for equal images and epochs.

Public code loads image by image in four workers, computes in fp32 without channels last, and waits
at every step for a loss and a count. Its CBD with the critic on goes through the loader twice in an
epoch: with f_B's answers for a step of f_C, then with the answers of both for a step of the critic.
The bench times f_B's own training in neither CBD.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from turns import ROUNDS, TINY, Work, keep, lend, pictures, take_turns, times_as_fast

from bdbench.defenses.base import Context
from bdbench.defenses.cbd import CBD, Critic, dependence, sample_weights
from bdbench.machine.devices import has_bf16
from bdbench.models.data import ImageSet
from bdbench.models.rng import stream
from bdbench.models.training.augment import draw_augmentation
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import train
from bdbench.models.training.reference_loader import batches

COUNT = 256 if TINY else 2_560
BATCH = 64
PRECISIONS = ("fp32", "bf16") if has_bf16() else ("fp32",)


def passes(lent: TrainingContext, data: ImageSet) -> Iterator[Iterator[tuple[Tensor, ...]]]:
    """One pass over the reference loader after the other."""
    rng, size = stream(0, "bench"), lent.recipe.batch_size
    spans = [(start, start + size) for start in range(0, len(data), size)]
    while True:
        draws = draw_augmentation(len(data), data.size, lent.recipe.augmentation, rng)
        yield batches(data.images, data.labels, draws, spans, lent.recipe.augmentation)


def public_none(data: ImageSet) -> Work:
    lent = lend("fp32", BATCH)
    model = lent.build_network().train()
    optimizer, loader = lent.recipe.sgd(model), passes(lent, data)

    def epoch() -> None:
        total, right = 0.0, 0
        for images, labels, _ in next(loader):
            output = model(images)
            loss = cross_entropy(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            right += (output.argmax(1) == labels).sum().item()

    return epoch


def public_cbd(data: ImageSet) -> Work:
    lent, settings = lend("fp32", BATCH), CBD()
    f_b = lent.build_network().eval().requires_grad_(False)
    f_c = lent.build_network().train()
    critic = Critic(f_b.head.in_features + f_c.head.in_features)
    optimizer = lent.recipe.sgd(f_c)
    critic_optimizer = Adam(critic.parameters(), lr=settings.critic_learning_rate)
    loader = passes(lent, data)

    def epoch() -> None:
        total, right, apart = 0.0, 0, 0.0
        for images, labels, _ in next(loader):
            with torch.no_grad():
                r = f_b.features(images)
                loss_b = cross_entropy(f_b.head(r), labels, reduction="none")
            z = f_c.features(images)
            output = f_c.head(z)
            loss_c = cross_entropy(output, labels, reduction="none")
            w = sample_weights(loss_b, loss_c.detach())
            loss = settings.weigh(w, loss_c) + settings.critic_weight * dependence(critic, z, r)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            right += (output.argmax(1) == labels).sum().item()
        for images, _, _ in next(loader):
            with torch.no_grad():
                z, r = f_c.features(images), f_b.features(images)
            loss = -dependence(critic, z, r)
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
            apart += loss.item()

    return epoch


def our_none(data: ImageSet, precision: str) -> Work:
    lent = lend(precision, BATCH)
    model = lent.build()
    return lambda: train(model, data, lent.recipe, lent.rng("classifier"))


def our_cbd(data: ImageSet, precision: str) -> Work:
    """f_C with weights, critic and l2 term."""
    context = Context(**vars(lend(precision, BATCH)))
    f_b = context.build("f_B").eval().requires_grad_(False)
    f_c = context.build()
    return lambda: CBD().train_f_c(f_c, f_b, data, context)


@pytest.mark.timeout(3600)
def test_loaders(benchmark: object) -> None:
    data = pictures(COUNT)
    public = {"none": public_none(data), "cbd": public_cbd(data)}
    ours = {
        f"{method}, {precision}": make(data, precision)
        for method, make in {"none": our_none, "cbd": our_cbd}.items()
        for precision in PRECISIONS
    }
    named = {f"{method}, reference loader": work for method, work in public.items()} | ours
    seconds = take_turns(benchmark, named, ROUNDS)
    ratios, rows = {}, []
    for name, times in seconds.items():
        reference = f"{name.partition(',')[0]}, reference loader"
        faster = times_as_fast(times, seconds[reference])
        if name in ours:
            ratios[f"{name} / reference loader"] = faster
        rows.append((name, COUNT / median(times), median(faster)))
    keep(benchmark, ratios, images=COUNT)
    print(f"\n\n{torch.get_num_threads()} threads, {COUNT} images, medians of the rounds")
    print(tabulate(rows, ["", "images/s", "x reference"], floatfmt=("", ".0f", ".2f")))
    if not TINY:
        assert min(median(faster) for faster in ratios.values()) > 1
