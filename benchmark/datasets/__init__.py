"""Data sets: where their images come from, as two sets of tensors."""

from bdbench.datasets.base import Dataset as Dataset
from bdbench.datasets.base import Source as Source
from bdbench.datasets.base import fingerprint as fingerprint
from bdbench.datasets.base import stratified as stratified
from bdbench.datasets.registry import register as register
