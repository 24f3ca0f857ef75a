"""Networks, and what it takes to train and query one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.registry import Registry

if TYPE_CHECKING:
    from models.classifier import Classifier

models: Registry[Classifier] = Registry("model", "models")
register = models.register
