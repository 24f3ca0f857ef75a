"""The interface of a network, through which defenses work with any architecture."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from bdbench.models import observer
from bdbench.models.plugins.errors import require
from bdbench.models.rng import global_seed

TINY = 1e-6
"""The smallest divisor of pixels in [0, 1], so that no number overflows."""

VARIANTS = 64
"""How many forms of a network torch may compile: one for each batch size and mode."""

Channels = float | tuple[float, float, float]
"""One number for all channels, or one each for red, green and blue."""

DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)
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
        require(
            bool(((means >= 0) & (means <= 1)).all()),
            f"mean of a model must be in [0, 1], as its images are, got {mean}; "
            "divide a mean and a deviation in grey levels by 255",
        )
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

    def _load_from_state_dict(self, *args: Any) -> None:
        """The scales may change with the weights."""
        super()._load_from_state_dict(*args)
        self.normalises = bool(self.mean.any() or (self.deviation != 1.0).any())

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
        observer.count_passes(images.shape[0], maps[-1])
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


def check_network(
    network: object, num_classes: int, image_size: int, owner: str, function: str
) -> None:
    """Raises `InvalidInput` unless `network` is a `Classifier` of so many classes, for images of so
    many pixels a side.

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
    strange = [name for name, v in network.state_dict().items() if not isinstance(v, Tensor)]
    require(
        not strange,
        f"{owner} returned a {type(network).__name__} with {' and '.join(strange)} in its state "
        "dict, which is no tensor: remove get_extra_state, and use buffers for tensors",
    )
    if type(network).forward is not Classifier.forward:
        _check_logits(network, num_classes, image_size, owner)
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


def _check_logits(network: Classifier, num_classes: int, image_size: int, owner: str) -> None:
    """Raises `InvalidInput` unless a network with its own `forward` gives one number per class."""
    try:
        # A pass may leave something in the network, such as a tensor of this device.
        copy = deepcopy(network).eval()
    except Exception:
        return  # the evaluation will tell
    copy.compiled = False
    images = torch.zeros(2, 3, image_size, image_size, device=network.mean.device)
    with observer.observed_by(observer.Observer()), global_seed(0, "look"), torch.no_grad():
        logits = copy(images)
    found, expected = f"a {type(logits).__name__}", (len(images), num_classes)
    if isinstance(logits, Tensor):
        found = f"{str(logits.dtype).removeprefix('torch.')} {tuple(logits.shape)}"
    require(
        isinstance(logits, Tensor) and logits.is_floating_point() and logits.shape == expected,
        f"{owner} returned a {type(network).__name__} whose forward gives {found} for two images: "
        f"it must give logits, float {expected}",
    )


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network that are not frozen, by name."""
    return {name: values for name, values in network.named_parameters() if values.requires_grad}


def lacks_head(network: Classifier, changed: bool = False, trained: bool = False) -> str:
    """For `lacks` of a plugin that reads or replaces the linear head: its name if a network has
    none, as one with its own `forward` may, and "" otherwise.

    changed: whether the plugin writes into its weight, which a parametrised layer computes anew
    trained: whether the plugin trains the head alone, which must not be frozen then
    """
    head = getattr(network, "head", None)
    if not isinstance(head, nn.Linear):
        return "a linear layer `head` that reads its features"
    if changed and not isinstance(head.weight, nn.Parameter):
        return "a head whose weight is a parameter of its own"
    return "a head that is not frozen" if trained and not trainable(head) else ""


@torch.no_grad()
def stage_shapes(network: Classifier, image_size: int) -> list[torch.Size]:
    """The shapes of the feature maps of one blank image, (1, channels, height, width), by stage.

    network: on the CPU; it is in eval mode afterwards
    """
    # Not `stages`, which the observer would count as a forward pass.
    return [maps.shape for maps in network.eval().body(torch.zeros(1, 3, image_size, image_size))]


@functools.cache
def compiled(kind: type[Classifier]) -> Callable[[Classifier, Tensor], list[Tensor]]:
    """The compiled body of a class of networks, shared by all its instances."""
    # A training and its evaluations have more batch sizes than the eight that torch compiles; it
    # would run the others as they are, which rounds differently.
    from torch._dynamo import config  # slow to import, and rarely needed

    config.cache_size_limit = max(config.cache_size_limit, VARIANTS)
    body: Callable[[Classifier, Tensor], list[Tensor]] = torch.compile(kind.body, dynamic=False)
    return body


def draws(network: nn.Module) -> bool:
    """Whether layers of a network draw from the global generators during training."""
    return any(
        isinstance(layer, (*DROPOUTS, nn.RReLU)) or type(layer).__name__ in RANDOM
        for layer in network.modules()
    )
