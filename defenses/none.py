"""No defense: plain training on whatever the data is, the reference of every table."""

from __future__ import annotations

from dataclasses import dataclass

from bdbench.defenses import register
from bdbench.defenses.base import Context, Defense
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier


@register("none")
@dataclass(frozen=True)
class NoDefense(Defense):
    """It has no settings: the recipe says it all."""

    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        return context.undefended()
