"""What a network must offer so that no defense needs to know its architecture."""

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
"""What pixels in [0, 1] may be divided by, so that no number overflows."""

Channels = float | tuple[float, float, float]
"""One number for all pixels, or one each for red, green and blue."""

RANDOM = ("StochasticDepth", "DropPath")
"""Layers of torchvision and timm that draw."""


class Classifier(nn.Module, ABC):
    """Images in [0, 1] to logits, by way of stages and one embedding vector per image.

    The body computes in `precision`, by way of torch.compile if it is to be `compiled`; features
    and logits come out in float32 whatever it is, so that losses never lose digits. `head` is a
    linear layer from the embedding to the classes.

    usual: the names that weights have in files of others, and those that they have here
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
        self.usual: dict[str, str] = {}
        self.register_buffer("mean", means)
        self.register_buffer("deviation", deviations)

    def made_of(self, network: nn.Module) -> None:
        """Remember what the weights are called in the network whose layers these are."""
        own = {id(values): name for name, values in self.state_dict(keep_vars=True).items()}
        theirs = network.state_dict(keep_vars=True).items()
        self.usual = {name: own[id(values)] for name, values in theirs if id(values) in own}

    @abstractmethod
    def body(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the output of each stage, (n, channels, height, width)."""

    @abstractmethod
    def embed(self, last: Tensor) -> Tensor:
        """The last stage's output as what is pooled: here belongs a final norm and activation."""

    def stages(self, images: Tensor) -> list[Tensor]:
        """float32 (n, 3, height, width) in [0, 1] -> the feature maps of all stages."""
        if self.normalises:
            images = (images - self.mean) / self.deviation
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = compiled(type(self))(self, images) if self.compiled else self.body(images)
        # Not `len`, which is one number where a network is exported for batches of any size.
        count, looker = images.shape[0], observer.current()
        looker.forward(count)
        if maps[-1].requires_grad:
            maps[-1].register_hook(lambda gradient: looker.backward(count))
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
    """float32, what is taken from pixels (n, 3, height, width) or divides them."""
    shape = (3, 1, 1) if isinstance(value, tuple) else ()
    return torch.tensor(value, dtype=torch.float32).view(shape)


def check_network(network: object, num_classes: int, owner: str, function: str) -> None:
    """Raises `InvalidInput` for what is no classifier of so many classes.

    owner, function: who returned it, and from where
    """
    given, hint = "None", "; is a `return` missing?"
    if network is not None:
        given, hint = f"a {type(network).__name__}", ""
    if isinstance(network, nn.Module):
        hint = "; derive its class from that, with body, embed and head"
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
        f"{owner} returned a network whose head has {head.out_features} outputs: there are "
        f"{num_classes} classes, and each needs one",
    )


def has_head(network: Classifier) -> bool:
    """Whether a network has a linear head; one with a `forward` of its own may have none."""
    return isinstance(getattr(network, "head", None), nn.Linear)


@torch.no_grad()
def stage_shapes(network: Classifier, image_size: int) -> list[torch.Size]:
    """Of the feature maps of one blank image, (1, channels, height, width), stage by stage."""
    # Not by `stages`, which would count as work on an image.
    return [maps.shape for maps in network.eval().body(torch.zeros(1, 3, image_size, image_size))]


@functools.cache
def compiled(kind: type[Classifier]) -> Callable[[Classifier, Tensor], list[Tensor]]:
    """The body of all networks of a class, which copies of a network share."""
    body: Callable[[Classifier, Tensor], list[Tensor]] = torch.compile(kind.body, dynamic=False)
    return body


def draws(network: nn.Module) -> bool:
    """Whether layers of a network draw from the global generators while it trains."""
    return any(
        isinstance(layer, (_DropoutNd, nn.RReLU)) or type(layer).__name__ in RANDOM
        for layer in network.modules()
    )
