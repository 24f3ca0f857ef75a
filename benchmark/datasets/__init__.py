"""Data sets, each as a training set and a test set of tensors."""

from bdbench.datasets.base import Dataset as Dataset
from bdbench.datasets.base import Source as Source
from bdbench.datasets.base import fingerprint as fingerprint
from bdbench.datasets.base import stratified as stratified
from bdbench.datasets.registry import register as register
