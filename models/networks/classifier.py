"""The interface of a network, through which defenses work with any architecture."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.modules.dropout import _DropoutNd

from bdbench.models import observer
from bdbench.models.plugins.errors import require

TINY = 1e-6
"""The smallest divisor of pixels in [0, 1], so that no number overflows."""

HEAD = "a linear layer `head` that reads its features"
"""Needed by methods that use the embedding of a network."""

Channels = float | tuple[float, float, float]
"""One number for all channels, or one each for red, green and blue."""

RANDOM = ("StochasticDepth", "DropPath")
"""Layers of torchvision and timm that draw random numbers."""


class Classifier(nn.Module, ABC):
    """Images in [0, 1] -> stages -> one embedding vector per image -> logits.

    The body computes in `precision`, through torch.compile if `compiled` is set. Features and
    logits are always float32, so that losses lose no precision. `head` is a linear layer from the
    embedding to the classes.

    original_names: the names of weights in other projects' files, mapped to their names here
    """

    head: nn.Linear
    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Channels, deviation: Channels) -> None:
        super().__init__()
        means, deviations = _by_channel(mean), _by_channel(deviation)
        require(bool(means.isfinite().all()), f"mean of a model must be finite, got {mean}")
        require(
            bool((deviations >= TINY).all() and deviations.isfinite().all()),
            f"deviation of a model must be finite and at least {TINY}, got {deviation}",
        )
        self.precision = "fp32"
        self.compiled = False
        self.normalises = (mean, deviation) != (0.0, 1.0)
        self.original_names: dict[str, str] = {}
        self.register_buffer("mean", means)
        self.register_buffer("deviation", deviations)

    def record_names(self, network: nn.Module) -> None:
        """Record the names of the weights in the network that provides the layers."""
        own = {id(values): name for name, values in self.state_dict(keep_vars=True).items()}
        originals = network.state_dict(keep_vars=True).items()
        self.original_names = {
            name: own[id(values)] for name, values in originals if id(values) in own
        }

    @abstractmethod
    def body(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the output of each stage, (n, channels, height, width)."""

    @abstractmethod
    def embed(self, last: Tensor) -> Tensor:
        """The output of the last stage -> the maps that are pooled. A final normalisation and
        activation belong here."""

    def stages(self, images: Tensor) -> list[Tensor]:
        """float32 (n, 3, height, width) in [0, 1] -> the feature maps of all stages."""
        if self.normalises:
            images = (images - self.mean) / self.deviation
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = compiled(type(self))(self, images) if self.compiled else self.body(images)
        # Not `len`, which is a constant when a network is exported for batches of any size.
        count, current = images.shape[0], observer.current()
        current.forward(count)
        if maps[-1].requires_grad:
            maps[-1].register_hook(lambda gradient: current.backward(count))
        return maps

    def pool(self, last: Tensor) -> Tensor:
        """The output of the last stage -> float32 (n, channels)."""
        with torch.autocast(last.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return adaptive_avg_pool2d(self.embed(last), 1).flatten(1).float()

    def features(self, images: Tensor) -> Tensor:
        """float32 (n, 3, height, width) -> float32 (n, channels), the penultimate embedding."""
        return self.pool(self.stages(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """float32 (n, 3, height, width) in [0, 1] -> float32 logits (n, classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _by_channel(value: Channels) -> Tensor:
    """float32, in a shape that broadcasts with pixels (n, 3, height, width)."""
    shape = (3, 1, 1) if isinstance(value, tuple) else ()
    return torch.tensor(value, dtype=torch.float32).view(shape)


def check_network(network: object, num_classes: int, owner: str, function: str) -> None:
    """Raises `InvalidInput` unless `network` is a `Classifier` of so many classes.

    owner, function: the plugin that returned it, and the function that must return a classifier
    """
    given, hint = "None", "; is a `return` missing?"
    if network is not None:
        given, hint = f"a {type(network).__name__}", ""
    if isinstance(network, nn.Module):
        hint = "; derive its class from it, with body, embed and head"
    require(
        isinstance(network, Classifier),
        f"{owner} returned {given}: {function} must return a bdbench.models.Classifier{hint}",
    )
    assert isinstance(network, Classifier)
    if type(network).forward is not Classifier.forward:
        return
    head = getattr(network, "head", None)
    require(
        isinstance(head, nn.Linear),
        f"{owner} returned a {type(network).__name__} without a linear layer `head`, from the "
        "embedding to the classes",
    )
    assert isinstance(head, nn.Linear)
    require(
        head.out_features == num_classes,
        f"{owner} returned a network whose head has {head.out_features} outputs: it needs one for "
        f"each of {num_classes} classes",
    )


def has_head(network: Classifier) -> bool:
    """Whether a network has a linear head. A network with its own `forward` may have none."""
    return isinstance(getattr(network, "head", None), nn.Linear)


@torch.no_grad()
def stage_shapes(network: Classifier, image_size: int) -> list[torch.Size]:
    """The shapes of the feature maps of one blank image, (1, channels, height, width), by stage."""
    # Not `stages`, which the observer would count as a forward pass.
    return [maps.shape for maps in network.eval().body(torch.zeros(1, 3, image_size, image_size))]


@functools.cache
def compiled(kind: type[Classifier]) -> Callable[[Classifier, Tensor], list[Tensor]]:
    """The compiled body of a class of networks, shared by all its instances."""
    body: Callable[[Classifier, Tensor], list[Tensor]] = torch.compile(kind.body, dynamic=False)
    return body


def draws(network: nn.Module) -> bool:
    """Whether layers of a network draw from the global generators during training."""
    return any(
        isinstance(layer, (_DropoutNd, nn.RReLU)) or type(layer).__name__ in RANDOM
        for layer in network.modules()
    )
