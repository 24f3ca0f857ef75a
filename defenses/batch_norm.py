"""Statistics of batch normalisation, for defenses that read a network which was not trained to its
end, or whose weights they made themselves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bdbench.models import Batch, Classifier, ImageSet, Recipe, loop


def reset_statistics(
    network: Classifier, data: ImageSet, recipe: Recipe, rng: torch.Generator
) -> None:
    """Re-estimate the statistics of batch normalisation as their mean over the batches of one pass
    over `data`, weighted by batch size. The network ends in eval mode."""
    every = (module for module in network.modules() if isinstance(module, _BatchNorm))
    norms = [norm for norm in every if norm.running_mean is not None]
    totals = [torch.zeros(2, norm.num_features, device=data.device) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # With momentum 1, the layer holds the statistics of the last batch only.
        norm.momentum = 1.0

    def step(batch: Batch) -> None:
        network(batch.images)
        for norm, total in zip(norms, totals, strict=True):
            of_batch = [norm.get_buffer("running_mean"), norm.get_buffer("running_var")]
            total.add_(torch.stack(of_batch), alpha=len(batch.labels))

    network.train()
    with torch.no_grad():
        loop(
            step,
            data,
            recipe=replace(recipe, epochs=1, drops=()),
            rng=rng,
            state={"network": network, **{str(n): total for n, total in enumerate(totals)}},
        )
    for norm, momentum, (mean, variance) in zip(norms, momenta, totals, strict=True):
        norm.get_buffer("running_mean").copy_(mean / len(data))
        norm.get_buffer("running_var").copy_(variance / len(data))
        norm.momentum = momentum
    network.eval()
