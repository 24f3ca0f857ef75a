"""CLP, channel Lipschitzness pruning, Zheng et al., ECCV 2022, arXiv:2208.03111.

A trigger is small and yet changes much, so channels of the backdoor react strongly to small changes
of their input. How strongly at most follows from the weights alone: channel k of a convolution with
kernel W_k and the normalisation behind it has the bound sigma(W_k) |gamma_k| / deviation_k, where
sigma is the spectral norm of W_k as a matrix (input channels, pixels of the kernel). Channels whose
bound is an outlier in their layer are removed. No image is looked at, and nothing is trained.

Differs: what belongs together is found by a look at what flows through a network of random weights.
A normalisation that reads anything but the output of one convolution has no bound and is left
alone: in pre-activation networks, those that read a sum with the identity path. The authors' code
takes the convolution that is listed before. The layer's small constant counts in its deviation,
which in the code may be 0, and the spread of the bounds is that of all channels (code: as of a
sample).

Elsewhere: the same u on all data; in pre-activation networks fewer layers have a bound.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet, at_least, require
from bdbench.models.rng import stream

BOUNDED = "a BatchNorm2d that reads the output of a convolution"
"""What a network must have, or none of its channels has a bound."""


@register("clp", title="CLP")
@dataclass(frozen=True)
class CLP(Defense):
    """
    u: bounds so many standard deviations above the mean of their layer are outliers, at least 0;
        no more than a share of 1 / (1 + u^2) of a layer can be (paper: 3)
    """

    undefended = 1

    u: float = 3.0

    def __post_init__(self) -> None:
        at_least(0, u=self.u)

    def lacks(self, network: Classifier, image_size: int) -> str:
        noise = torch.rand(1, 3, image_size, image_size, generator=stream(0, "noise"))
        return "" if follow(network, noise) else BOUNDED

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        network = deepcopy(context.undefended())
        height, width = data.size
        noise = torch.rand(1, 3, height, width, generator=context.rng("noise"))
        pairs = follow(context.build("noise"), noise.to(context.device))
        require(bool(pairs), f"clp needs {BOUNDED}")
        channels = pruned = 0
        for convolution, norm in pairs:
            kernels, affine = network.get_submodule(convolution), network.get_submodule(norm)
            assert isinstance(kernels, nn.Conv2d)
            assert isinstance(affine, nn.BatchNorm2d)
            found = outliers(bounds(kernels, affine), self.u)
            with torch.no_grad():
                affine.weight.masked_fill_(found, 0.0)
                affine.bias.masked_fill_(found, 0.0)
            channels += len(found)
            pruned += int(found.sum())
        context.journal.scalars |= {
            "layers with bounds": len(pairs),
            "channels with bounds": channels,
            "pruned channels": pruned,
        }
        return network


@torch.no_grad()
def follow(network: Classifier, image: Tensor) -> list[tuple[str, str]]:
    """Names of each convolution and the normalisation that reads its output and nothing else.

    image: float32 (1, 3, height, width); another one gives the same pairs
    """
    outputs: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                # A copy, because what follows may write into the original.
                outputs[name] = output.clone()

            hooks.append(module.register_forward_hook(keep))
        elif isinstance(module, nn.BatchNorm2d) and module.affine:

            def match(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                pairs.extend((made, name) for made, o in outputs.items() if o.equal(inputs[0]))

            hooks.append(module.register_forward_pre_hook(match))
    # Not by `forward`, which would count as work on an image.
    network.eval().embed(network.body(image)[-1])
    for hook in hooks:
        hook.remove()
    return pairs


def bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Upper bounds of the channels' Lipschitz constants, float32 (channels,)."""
    deviation = (norm.get_buffer("running_var") + norm.eps).sqrt()
    # A diverged network passes unchanged. Its singular values would be refused.
    kernels = convolution.weight.detach().flatten(2).nan_to_num()
    sigma: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    return sigma * norm.weight.detach().abs() / deviation


def outliers(values: Tensor, u: float) -> Tensor:
    """bool (channels,): above the mean by more than u standard deviations."""
    return values > values.mean() + u * values.std(correction=0)
