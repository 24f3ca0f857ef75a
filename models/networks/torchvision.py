"""Networks of torchvision, split into stages; none has trained weights.

They are made for images of 224 pixels: most halve an image five times, so that 32 pixels shrink to
one. `scale` enlarges images first.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from bdbench.models import Traced, at_least, register, require
from bdbench.models.networks.classifier import Channels
from bdbench.models.plugins.spec import did_you_mean

if TYPE_CHECKING:
    from torch import nn


@register("torchvision")
def torchvision(
    num_classes: int,
    image_size: int,
    name: str = "resnet18",
    scale: int = 1,
    mean: Channels = 0.0,
    deviation: Channels = 1.0,
) -> Traced:
    """A classifier of torchvision, such as resnet50, vgg11_bn or densenet121, with random weights.

    It is torchvision's own network: a ResNet has the 7x7 stem of ImageNet at any image size. For
    small images use `resnet18` and the like, or a scale. Auxiliary heads are left out.

    name: as in `torchvision.models`; the network must have feature maps and end in a linear layer
    scale: factor by which images are enlarged first (bilinear), at least 1
    mean, deviation: every pixel becomes (pixel - mean) / deviation
    """
    at_least(1, scale=scale)
    network = _build(name, num_classes)
    owner = f"torchvision's {name!r}"
    return Traced(network, image_size, scale, mean, deviation, owner)


def _build(name: str, num_classes: int) -> nn.Module:
    """Raises `InvalidInput` for a name that torchvision does not have."""
    import torchvision.models as theirs  # as slow to import as torch, and rarely needed

    known = theirs.list_models(module=theirs)
    require(name in known, f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    with warnings.catch_warnings():
        # Warnings of defaults that will change, in a version that setup.cfg may not allow.
        warnings.simplefilter("ignore", FutureWarning)
        network: nn.Module = theirs.get_model(name, weights=None, num_classes=num_classes)
    return network
