"""The registry of defenses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.defenses.base import Defense

defenses: Registry[Defense] = Registry(
    "defense", "bdbench.defenses", ("bdbench.defenses.base", "Defense")
)
register = defenses.register
