"""Networks, and what it takes to train and query one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.registry import Registry

if TYPE_CHECKING:
    from bdbench.models.classifier import Classifier

models: Registry[Classifier] = Registry("model", "bdbench.models")
register = models.register
