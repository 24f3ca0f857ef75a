"""The promises of a model."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bdbench.contract.common import can_be_built
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import CPU, RECIPE, expect, no_global_draws, random_images
from bdbench.models.networks.classifier import Classifier, lacks_head
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import features, logits, predict

CLASSES, SIZE = 7, 48
BF16_LIMIT = 0.1
"""Relative L2 distance of embeddings in bf16; a network that computes something else exceeds it."""


def small(registry: Registry[Any], name: str) -> TrainingContext:
    """A training context for such networks, with 7 classes and images of 48 pixels."""
    return TrainingContext(RECIPE, CPU, partial(registry.build(name).build, CLASSES, SIZE), seed=0)


def images_of(count: int) -> Tensor:
    return random_images(count, SIZE, CLASSES).images


@promise("model", "it is a classifier for images of any size", can_be_built)
def any_size(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    outputs, expected = logits(network, images), (3, CLASSES)
    shape = tuple(outputs.shape)
    expect(shape == expected, f"its logits have the shape {shape}, not {expected}")
    expect(bool(outputs.isfinite().all()), "its logits are not finite")
    expect(predict(network, images).shape == (3,), "it does not predict one class for each image")


@promise("model", "it draws no random numbers in eval mode", any_size)
def model_draws(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    with no_global_draws("a forward pass in eval mode"):
        logits(network, images)
    # Layers such as dropout can only draw from torch's global generator.
    with (
        no_global_draws("a forward pass in training mode", but_torch=True),
        torch.random.fork_rng(devices=[]),
    ):
        network.train()(images / 255)


@promise("model", "its initial weights depend on the seed", model_draws)
def weights_follow(registry: Registry[Any], name: str) -> None:
    context = small(registry, name)
    networks = context.build(), context.build(), context.build("other")
    one, two, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in networks)
    expect(torch.equal(one, two), "the same seed gives different weights")
    expect(not torch.equal(one, other), "different seeds give the same weights")


@promise("model", "its logits are those of its head on its pooled last stage", model_draws)
@torch.no_grad()
def logits_of_head(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build().eval(), to_float(images_of(3))
    maps = network.stages(images)
    shapes = [tuple(each.shape) for each in maps]
    expect(
        bool(maps) and all(each.dim() == 4 and len(each) == 3 for each in maps),
        f"its stages have the shapes {shapes}, not (images, channels, height, width)",
    )
    sides = [shape[2] for shape in shapes]
    expect(sides == sorted(sides, reverse=True), f"the resolution of its stages grows: {shapes}")
    embedding = network.pool(maps[-1])
    expect(
        embedding.dim() == 2 and embedding.dtype == torch.float32,
        f"its embedding is {embedding.dtype} {tuple(embedding.shape)}, not float32 (n, channels)",
    )
    if not lacks_head(network):
        expect(
            alike(network.head(embedding), network(images)),
            "its logits are not those of its head on its embedding",
        )


@promise("model", "in eval mode the logits of an image do not depend on its batch", model_draws)
def independent_images(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), images_of(3)
    alone = torch.cat([logits(network, images[n : n + 1]) for n in range(3)])
    expect(
        alike(logits(network, images), alone),
        "the logits of an image depend on other images in its batch",
    )


@promise(
    "model",
    "a training step changes it; deepcopy and its state dict copy it",
    weights_follow,
)
def can_be_copied(registry: Registry[Any], name: str) -> None:
    context, images = small(registry, name), images_of(3)
    network, other = context.build(), context.build("other")
    before = logits(network, images)
    # So that buffers such as running context differ too.
    step(network)
    trained = logits(network, images)
    expect(not torch.equal(trained, before), "a training step does not change its logits")
    copy = deepcopy(network)
    expect(torch.equal(logits(copy, images), trained), "a deep copy gives other logits")
    other.load_state_dict(network.state_dict())
    expect(
        torch.equal(logits(other, images), trained),
        "a network that loads its state dict gives other logits: store what it learns in "
        "parameters and buffers",
    )
    step(copy)
    expect(torch.equal(logits(network, images), trained), "a deep copy shares weights with it")


@promise("model", "in bf16 its embedding is float32 and nearly the same", weights_follow)
def in_bf16(registry: Registry[Any], name: str) -> None:
    context, images = small(registry, name), images_of(3)
    exact = features(context.build(), images)
    halved = replace(context, recipe=replace(RECIPE, precision="bf16"))
    rounded = features(halved.build(), images)
    expect(rounded.dtype == torch.float32, f"its embedding in bf16 is {rounded.dtype}, not float32")
    distance = float((rounded - exact).norm() / exact.norm().clamp(min=1e-12))
    expect(
        distance < BF16_LIMIT,
        f"the relative distance of its embedding in bf16 is {distance:.2g}, not below {BF16_LIMIT}",
    )


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to the order of summation."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def step(network: Classifier) -> None:
    """A training step on two images."""
    data = random_images(2, SIZE, CLASSES)
    optimizer = RECIPE.sgd(network)
    with torch.random.fork_rng(devices=[]):
        cross_entropy(network.train()(to_float(data.images)), data.labels).backward()
    optimizer.step()
