"""No defense: plain training on whatever the data is, the reference of every table."""

from __future__ import annotations

from dataclasses import dataclass

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet


@register("none", title="No defense")
@dataclass(frozen=True)
class NoDefense(Defense):
    """It has no settings: the recipe says it all."""

    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        return context.undefended()
