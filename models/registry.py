"""The networks there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.models.networks.classifier import Classifier

models: Registry[Classifier] = Registry("model", "bdbench.models.networks")
register = models.register
