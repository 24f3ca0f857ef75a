"""What a network from a file is in a cell: an architecture and the hash of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models import models, register
from bdbench.models.networks.classifier import Classifier

if TYPE_CHECKING:
    from bdbench.models.registry import Model

NAME = "weights"
DIGITS = 16
"""Hex digits of a hash that tell networks apart, as many as keys of cells have."""


@register(NAME)
def weights(
    num_classes: int, image_size: int, model: str = "wrn16_1", sha256: str = ""
) -> Classifier:
    """A network from a file: `bdbench evaluate FILE` makes its cells, and nothing trains it.

    model: spec of its architecture
    sha256: the first 16 hex digits of the hash of its weights
    """
    return models.build(model).build(num_classes, image_size)


# A function has no ClassVar to declare it in.
vars(weights)["nested"] = {"model": ()}


def given(model: Model) -> str | None:
    """The digits of the hash of the weights that a model stands for; None for one whose networks
    begin with weights by chance."""
    return str(model.settings["sha256"]) if model.factory is weights else None


def architecture(model: Model) -> str:
    """The canonical spec of what a network is built as, whatever its weights."""
    return models.canonical(str(model.settings["model"]) if model.factory is weights else model)
