"""No defense: plain training on the data as given. It is the reference of every table."""

from __future__ import annotations

from dataclasses import dataclass

from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet


@register("none", title="No defense")
@dataclass(frozen=True)
class NoDefense(Defense):
    """It has no settings: it follows the recipe."""

    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        return context.undefended()
