"""Data sets: where their images come from, as two sets of tensors."""

from benchmark.datasets.base import Source
from models.registry import Registry

datasets: Registry[Source] = Registry("data set", "benchmark.datasets")
register = datasets.register
