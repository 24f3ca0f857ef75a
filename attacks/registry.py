"""The registry of attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.attacks.base import Attack

attacks: Registry[Attack] = Registry(
    "attack",
    "bdbench.attacks",
    ("bdbench.attacks.base", "Attack"),
    {"mean": "a column of the tables has this name"},
)
register = attacks.register
