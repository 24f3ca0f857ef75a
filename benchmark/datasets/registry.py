"""The registry of data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.datasets.base import Source

datasets: Registry[Source] = Registry(
    "data set", "bdbench.datasets", ("bdbench.datasets.base", "Source")
)
register = datasets.register
