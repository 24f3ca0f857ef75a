"""Residual networks, He et al., 2015, arXiv:1512.03385 and 2016, arXiv:1603.05027.

ResNet-18 and ResNet-34 are torchvision's; PreAct-ResNet-18 is the network that other backdoor
benchmarks use. For images of up to 64 pixels the stem is a 3x3 convolution without pooling, for
larger ones the 7x7 stem of ImageNet.

Differs: PreAct-ResNet-18 ends in a normalisation and an activation, as in the paper of 2016; that
of BackdoorBench has neither, so its features have both signs. The paper also activates the output
of the first convolution before its two paths part; here, as is usual for small images, the identity
path of the first block takes it as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from bdbench.models import register
from bdbench.models.networks.classifier import Channels, Classifier
from bdbench.models.networks.wide_resnet import PreActivationResNet

if TYPE_CHECKING:
    from torchvision.models import resnet

SMALL = 64


class ResNet(Classifier):
    """torchvision's network with a stem for the image size."""

    def __init__(
        self, network: resnet.ResNet, image_size: int, mean: Channels, deviation: Channels
    ) -> None:
        super().__init__(mean, deviation)
        if image_size <= SMALL:
            convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            network.conv1 = convolution
            self.stem = nn.Sequential(convolution, network.bn1, network.relu)
        else:
            self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.groups = nn.ModuleList(
            [network.layer1, network.layer2, network.layer3, network.layer4]
        )
        self.head = network.fc
        self.record_names(network)

    def body(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for group in self.groups:
            maps.append(group(maps[-1]))
        return maps[1:]

    def embed(self, last: Tensor) -> Tensor:
        return last


@register("resnet18", title="ResNet-18")
def resnet18(
    num_classes: int, image_size: int, mean: Channels = 0.0, deviation: Channels = 1.0
) -> ResNet:
    """ResNet-18.

    mean, deviation: every pixel becomes (pixel - mean) / deviation; each is one number, or one for
        red, green and blue
    """
    from torchvision.models import resnet  # as slow to import as torch, and rarely needed

    return ResNet(resnet.resnet18(num_classes=num_classes), image_size, mean, deviation)


@register("resnet34", title="ResNet-34")
def resnet34(
    num_classes: int, image_size: int, mean: Channels = 0.0, deviation: Channels = 1.0
) -> ResNet:
    """ResNet-34, the paper's network for the ImageNet subset (section 5.1).

    mean, deviation: every pixel becomes (pixel - mean) / deviation; each is one number, or one for
        red, green and blue
    """
    from torchvision.models import resnet

    return ResNet(resnet.resnet34(num_classes=num_classes), image_size, mean, deviation)


@register("preact_resnet18", title="PreActResNet-18")
def preact_resnet18(
    num_classes: int, image_size: int, mean: Channels = 0.0, deviation: Channels = 1.0
) -> PreActivationResNet:
    """PreAct-ResNet-18.

    mean, deviation: every pixel becomes (pixel - mean) / deviation; each is one number, or one for
        red, green and blue
    """
    stem: nn.Module
    if image_size <= SMALL:
        stem = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    else:
        stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.MaxPool2d(3, 2, padding=1)
        )
    return PreActivationResNet(
        (64, 128, 256, 512), (2, 2, 2, 2), stem, num_classes, mean, deviation
    )
