"""Attacks: a clean image set becomes a poisoned one; a trigger is stamped on test images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.registry import Registry

if TYPE_CHECKING:
    from bdbench.attacks.base import Attack

attacks: Registry[Attack] = Registry("attack", "bdbench.attacks")
register = attacks.register
