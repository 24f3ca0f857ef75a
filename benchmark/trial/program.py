"""A network as a program that PyTorch runs without the network's class."""

from __future__ import annotations

import io
import warnings
from copy import deepcopy

import torch

from bdbench.models.networks.classifier import Classifier


def program(classifier: Classifier, image_size: int) -> bytes:
    """A file for `torch.export.load`: from float32 (n, 3, image_size, image_size), RGB in [0, 1],
    to logits (n, classes), in float32. It normalises images itself.

    Raises whatever torch raises for a network with control flow that depends on values.
    """
    network = deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format)
    network = network.requires_grad_(False).eval()
    network.precision, network.compiled = "fp32", False
    images, many = torch.zeros(2, 3, image_size, image_size), torch.export.Dim("n", min=1)
    file = io.BytesIO()
    with warnings.catch_warnings():
        # They are about torch's own code.
        warnings.simplefilter("ignore")
        exported = torch.export.export(
            network, (images,), dynamic_shapes=({0: many},), strict=False
        )
        torch.export.save(exported, file)
    return file.getvalue()
