"""What a model promises."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.contract.others import made
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import CPU, RECIPE, expect, pictures, untouched
from bdbench.models.networks.classifier import Classifier, has_head
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import features, logits, predict

CLASSES, SIZE = 7, 48
ROUNDED = 0.1
"""Relative L2 distance of embeddings in bf16; a network that computes something else is further."""


def small(registry: Registry[Any], name: str) -> TrainingContext:
    """The means of training such networks of 7 classes on images of 48 pixels."""
    return TrainingContext(RECIPE, CPU, partial(registry.build(name).build, CLASSES, SIZE), seed=0)


def images_of(count: int) -> Tensor:
    return pictures(count, SIZE, CLASSES).images


@promise("model", "it is a classifier for images of any size", made)
def any_size(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    answers = logits(network, images)
    expect(answers.shape == (3, CLASSES), f"its logits have the shape {tuple(answers.shape)}")
    expect(predict(network, images).shape == (3,), "it does not name one class for each image")


@promise("model", "its answers in eval mode draw from no generator", any_size)
def model_draws(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    with untouched("an answer in eval mode"):
        logits(network, images)
    # Layers such as dropout have no other generator than torch's.
    with untouched("an answer in training mode", but_torch=True), torch.random.fork_rng(devices=[]):
        network.train()(images / 255)


@promise("model", "its weights follow the seed", model_draws)
def weights_follow(registry: Registry[Any], name: str) -> None:
    means = small(registry, name)
    networks = means.build(), means.build(), means.build("other")
    one, two, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in networks)
    expect(torch.equal(one, two), "the same seed gives other weights")
    expect(not torch.equal(one, other), "another seed gives the same weights")


@promise("model", "its stages, its embedding and its head make up its answer", model_draws)
@torch.no_grad()
def made_up(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build().eval(), to_float(images_of(3))
    maps = network.stages(images)
    shapes = [tuple(each.shape) for each in maps]
    expect(
        bool(maps) and all(each.dim() == 4 and len(each) == 3 for each in maps),
        f"its stages have the shapes {shapes} and not (images, channels, height, width)",
    )
    sides = [shape[2] for shape in shapes]
    expect(sides == sorted(sides, reverse=True), f"its stages grow: {shapes}")
    embedding = network.pool(maps[-1])
    expect(
        embedding.dim() == 2 and embedding.dtype == torch.float32,
        f"its embedding is {embedding.dtype} {tuple(embedding.shape)}, not float32 (n, channels)",
    )
    if has_head(network):
        expect(
            alike(network.head(embedding), network(images)),
            "its answer is not that of its head to its embedding",
        )


@promise("model", "in eval mode it judges each image alone", model_draws)
def judges_alone(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    alone = torch.cat([logits(network, images[n : n + 1]) for n in range(3)])
    expect(
        alike(logits(network, images), alone),
        "the answer to an image depends on the others in its batch",
    )


@promise(
    "model",
    "it learns; a copy and a network with its weights are as it is",
    weights_follow,
)
def can_be_copied(registry: Registry[Any], name: str) -> None:
    means, images = small(registry, name), images_of(3)
    network, other = means.build(), means.build("other")
    before = logits(network, images)
    # So that buffers such as running means differ, too.
    step(network)
    answers = logits(network, images)
    expect(not torch.equal(answers, before), "a step of training changes no answer")
    copy = deepcopy(network)
    expect(torch.equal(logits(copy, images), answers), "a deep copy of it answers otherwise")
    other.load_state_dict(network.state_dict())
    expect(
        torch.equal(logits(other, images), answers),
        "a network that is given its state dict answers otherwise: keep what it learns in "
        "parameters and buffers",
    )
    step(copy)
    expect(torch.equal(logits(network, images), answers), "a deep copy shares weights with it")


@promise("model", "in bf16 its embedding is float32, and nearly the same", weights_follow)
def in_bf16(registry: Registry[Any], name: str) -> None:
    means, images = small(registry, name), images_of(3)
    exact = features(means.build(), images)
    halved = replace(means, recipe=replace(RECIPE, precision="bf16"))
    rounded = features(halved.build(), images)
    expect(rounded.dtype == torch.float32, f"its embedding in bf16 is {rounded.dtype}")
    apart = float((rounded - exact).norm() / exact.norm().clamp(min=1e-12))
    expect(apart < ROUNDED, f"its embedding in bf16 is {apart:.2g} apart, relative to its norm")


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same but for the order in which sums were made."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def step(network: Classifier) -> None:
    """One of training, on two images."""
    data = pictures(2, SIZE, CLASSES)
    optimizer = RECIPE.sgd(network)
    with torch.random.fork_rng(devices=[]):
        cross_entropy(network.train()(to_float(data.images)), data.labels).backward()
    optimizer.step()
