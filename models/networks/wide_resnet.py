"""Wide residual networks, Zagoruyko and Komodakis, 2016, arXiv:1605.07146.

In a residual block, normalisation and activation precede each convolution. WRN-16-1 has two blocks
in each of three stages of 16, 32 and 64 channels, and about 0.175 million parameters.

Differs: average pooling covers the whole last map, so that images may have any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import relu

from bdbench.models import register
from bdbench.models.networks.classifier import Channels, Classifier


class PreActivationBlock(nn.Module):
    """Twice normalisation, activation and convolution, plus the identity (He et al.,
    arXiv:1603.05027).

    If the shape changes, a 1x1 convolution of the activated input replaces the identity.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        changes = stride != 1 or inside != outside
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        active = relu(self.norm1(maps), inplace=True)
        skipped = maps if self.shortcut is None else self.shortcut(active)
        deep: Tensor = self.conv2(relu(self.norm2(self.conv1(active)), inplace=True))
        return deep.add_(skipped)


class PreActivationResNet(Classifier):
    """Stage i has `blocks[i]` blocks of `channels[i]` channels; every stage but the first halves
    the resolution."""

    def __init__(
        self,
        channels: Sequence[int],
        blocks: Sequence[int],
        stem: nn.Module,
        num_classes: int,
        mean: Channels,
        deviation: Channels,
    ) -> None:
        super().__init__(mean, deviation)
        self.stem = stem
        stages = [_stage(channels[0], channels[0], blocks[0], stride=1)]
        for (inside, outside), depth in zip(pairwise(channels), blocks[1:], strict=True):
            stages.append(_stage(inside, outside, depth, stride=2))
        self.groups = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(channels[-1])
        self.head = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def body(self, images: Tensor) -> list[Tensor]:
        maps = [self.stem(images)]
        for group in self.groups:
            maps.append(group(maps[-1]))
        return maps[1:]

    def embed(self, last: Tensor) -> Tensor:
        return relu(self.norm(last), inplace=True)


def _stage(inside: int, outside: int, depth: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(inside, outside, stride)
    return nn.Sequential(
        first, *(PreActivationBlock(outside, outside, stride=1) for _ in range(depth - 1))
    )


@register("wrn16_1", title="WRN-16-1")
def wrn16_1(
    num_classes: int, image_size: int, mean: Channels = 0.0, deviation: Channels = 1.0
) -> PreActivationResNet:
    """WRN-16-1, the paper's network for CIFAR-10 and GTSRB (section 5.1).

    mean, deviation: every pixel becomes (pixel - mean) / deviation; each is one number, or one for
        red, green and blue. The public code of the paper and its predecessors does not normalise.
    """
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return PreActivationResNet((16, 32, 64), (2, 2, 2), stem, num_classes, mean, deviation)
