"""The journal of a defense, as records and figures can hold it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bdbench.defenses.base import Journal
from bdbench.trial.record import NO_NUMBER, numbers_in

WARNINGS = 100
"""How many different warnings a record keeps."""


def published(journal: Journal, images: int, device: torch.device) -> Journal:
    """The same numbers as floats and tensors. What is no number is left out, with a warning: it
    must not cost the training that it is about.

    images: n, of the training set
    device: of the samples

    scalars: float by name
    samples: float32 or float64 (n,) by name
    """
    scalars, strange = numbers_in(journal.scalars, "in the journal")
    warnings = [*map(str, journal.warnings), *strange]
    samples: dict[str, Tensor] = {}
    for name, values in journal.samples.items():
        try:
            samples[str(name)] = _numbers(values, images).to(device)
        except NO_NUMBER:
            warnings.append(
                f"{str(name)!r} in the journal is left out: it is not a number for each of the "
                f"{images:,} training images"
            )
    # A warning of each step would make a record that is too large to be read.
    shown = list(dict.fromkeys(warnings))
    if len(shown) > WARNINGS:
        shown[WARNINGS:] = [f"{len(shown) - WARNINGS:,} more warnings are left out"]
    return Journal(scalars, samples, shown)


def _numbers(given: Any, count: int) -> Tensor:
    """float32 or float64 (count,). Raises one of `NO_NUMBER`."""
    values = torch.as_tensor(given).detach()
    if values.shape != (count,) or values.is_complex():
        raise ValueError(f"{values.dtype} of shape {tuple(values.shape)}")
    return values if values.dtype == torch.float32 else values.double()
