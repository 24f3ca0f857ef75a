"""CLP, channel Lipschitzness pruning, Zheng et al., ECCV 2022, arXiv:2208.03111.

A small trigger has a large effect, so backdoor channels react strongly to small changes of their
input. The weights alone bound this reaction: channel k of a convolution with kernel W_k and the
normalisation after it has the Lipschitz bound sigma(W_k) |gamma_k| / deviation_k, where sigma is
the spectral norm of W_k as a matrix (input channels, pixels of the kernel). Channels whose bound is
an outlier in their layer are pruned. The method uses no image and trains nothing.

Differs: the convolution before a normalisation is found by one forward pass of a network with
random weights. A normalisation that reads anything but the output of one convolution has no bound
and is not pruned: in pre-activation networks, those that read a sum with the identity path. The
authors' code takes the convolution that is listed before it. The deviation includes the layer's
epsilon (in the code it may be 0), and the standard deviation of the bounds is that of the
population (code: of a sample).

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
"""Needed by the method: only such layers have a bound."""


@register("clp", title="CLP")
@dataclass(frozen=True)
class CLP(Defense):
    """
    u: bounds more than u standard deviations above the mean of their layer are outliers, at least
        0; at most a share of 1 / (1 + u^2) of a layer can be (paper: 3)
    """

    undefended = 1

    u: float = 3.0

    def __post_init__(self) -> None:
        at_least(0, u=self.u)

    def lacks(self, network: Classifier, image_size: int) -> str:
        noise = torch.rand(1, 3, image_size, image_size, generator=stream(0, "noise"))
        return "" if match_layers(network, noise) else BOUNDED

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        network = deepcopy(context.undefended())
        height, width = data.size
        noise = torch.rand(1, 3, height, width, generator=context.rng("noise"))
        pairs = match_layers(context.build("noise"), noise.to(context.device))
        require(bool(pairs), f"clp needs {BOUNDED}")
        channels = pruned = 0
        for convolution, norm in pairs:
            kernels, affine = network.get_submodule(convolution), network.get_submodule(norm)
            assert isinstance(kernels, nn.Conv2d)
            assert isinstance(affine, nn.BatchNorm2d)
            rows = outliers(bounds(kernels, affine), self.u)
            with torch.no_grad():
                affine.weight.masked_fill_(rows, 0.0)
                affine.bias.masked_fill_(rows, 0.0)
            channels += len(rows)
            pruned += int(rows.sum())
        context.journal.scalars |= {
            "layers with bounds": len(pairs),
            "channels with bounds": channels,
            "pruned channels": pruned,
        }
        return network


@torch.no_grad()
def match_layers(network: Classifier, image: Tensor) -> list[tuple[str, str]]:
    """Pairs of names: a convolution, and the normalisation that reads exactly its output.

    image: float32 (1, 3, height, width), such as noise; the pairs do not depend on it
    """
    outputs: dict[str, Tensor] = {}
    pairs: list[tuple[str, str]] = []
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):

            def record(_: nn.Module, __: object, output: Tensor, name: str = name) -> None:
                # A copy, because later layers may modify the output in place.
                outputs[name] = output.clone()

            hooks.append(module.register_forward_hook(record))
        elif isinstance(module, nn.BatchNorm2d) and module.affine:

            def match(_: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                read = inputs[0]
                pairs.extend((conv, name) for conv, o in outputs.items() if o.equal(read))

            hooks.append(module.register_forward_pre_hook(match))
    # Not `forward`, which the observer would count as a forward pass.
    network.eval().embed(network.body(image)[-1])
    for hook in hooks:
        hook.remove()
    return pairs


def bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Upper bounds of the Lipschitz constants of the channels, float32 (channels,)."""
    deviation = (norm.get_buffer("running_var") + norm.eps).sqrt()
    # torch refuses singular values of NaN. Without them, a diverged network stays unchanged.
    kernels = convolution.weight.detach().flatten(2).nan_to_num()
    sigma: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    return sigma * norm.weight.detach().abs() / deviation


def outliers(values: Tensor, u: float) -> Tensor:
    """bool (channels,): True for values more than u standard deviations above the mean."""
    return values > values.mean() + u * values.std(correction=0)
