"""Data sets: where their images come from, as two sets of tensors."""

from bdbench.datasets.base import Source
from bdbench.models.registry import Registry

datasets: Registry[Source] = Registry("data set", "bdbench.datasets")
register = datasets.register
