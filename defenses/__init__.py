"""Defenses: a possibly poisoned image set becomes a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.registry import Registry

if TYPE_CHECKING:
    from defenses.base import Defense

defenses: Registry[Defense] = Registry("defense", "defenses")
register = defenses.register
