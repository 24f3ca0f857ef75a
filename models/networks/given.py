"""A network from a file, as a cell describes it: its architecture and the hash of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models import models, register
from bdbench.models.networks.classifier import Classifier

if TYPE_CHECKING:
    from bdbench.models.registry import Model

NAME = "weights"
DIGITS = 16
"""Hex digits of the hash, as many as in the key of a cell."""


@register(NAME)
def weights(
    num_classes: int, image_size: int, model: str = "wrn16_1", sha256: str = ""
) -> Classifier:
    """A network from a file. `bdbench evaluate FILE` makes its cells; nothing trains it.

    model: spec of its architecture
    sha256: the first 16 hex digits of the hash of its weights
    """
    return models.build(model).build(num_classes, image_size)


# A class would declare it as a ClassVar.
vars(weights)["nested"] = {"model": ()}


def given(model: Model) -> str | None:
    """The first digits of the hash of a model's weights; None for a model with random initial
    weights."""
    return str(model.settings["sha256"]) if model.factory is weights else None


def architecture(model: Model) -> str:
    """The spec of the architecture of a network, whatever its weights, with absolute paths."""
    return models.located(str(model.settings["model"]) if model.factory is weights else model)
