"""Networks of torchvision, each taken apart where its stages end; none has trained weights.

They are made for images of 224 pixels: most halve an image five times, so that 32 pixels end as one
pixel. `scale` enlarges images first.
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

    It is torchvision's own, with the 7x7 stem of ImageNet in a ResNet, whatever the image size: for
    small images take `resnet18` and its like, or a scale. Auxiliary heads are left out.

    name: as in `torchvision.models`; there must be feature maps and a linear layer at the end
    scale: images are enlarged so many times first, bilinear, at least 1
    mean, deviation: every pixel becomes (pixel - mean) / deviation
    """
    at_least(1, scale=scale)
    network = _made(name, num_classes)
    owner = f"torchvision's {name!r}"
    return Traced(network, image_size, scale, mean, deviation, owner)


def _made(name: str, num_classes: int) -> nn.Module:
    """Raises `InvalidInput` for a name that torchvision does not have."""
    import torchvision.models as theirs  # as slow to import as torch, and seldom needed

    known = theirs.list_models(module=theirs)
    require(name in known, f"torchvision has no classifier {name!r}{did_you_mean(name, known)}")
    with warnings.catch_warnings():
        # Of defaults that will change, in a version that setup.cfg may not allow.
        warnings.simplefilter("ignore", FutureWarning)
        network: nn.Module = theirs.get_model(name, weights=None, num_classes=num_classes)
    return network
