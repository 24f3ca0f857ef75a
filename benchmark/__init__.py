"""bdbench compares backdoor defenses for image classifiers: `import bdbench as bd`.

The names are imported on first use, so that the command line starts without torch.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if os.name != "posix":
    raise ImportError("bdbench runs on Linux and macOS; on Windows, use it in WSL")

from bdbench.models.plugins.faces import lazy

if TYPE_CHECKING:
    from bdbench.api import CellRecord as CellRecord
    from bdbench.api import Promise as Promise
    from bdbench.api import Results as Results
    from bdbench.api import Table as Table
    from bdbench.api import attack as attack
    from bdbench.api import check as check
    from bdbench.api import dataset as dataset
    from bdbench.api import defense as defense
    from bdbench.api import evaluate as evaluate
    from bdbench.api import load as load
    from bdbench.api import model as model
    from bdbench.api import poison as poison
    from bdbench.api import run as run
    from bdbench.api import run_cell as run_cell
    from bdbench.attacks import Attack as Attack
    from bdbench.attacks import Poisoned as Poisoned
    from bdbench.attacks import clean_label as clean_label
    from bdbench.attacks import dirty_label as dirty_label
    from bdbench.datasets import Dataset as Dataset
    from bdbench.datasets import Source as Source
    from bdbench.defenses import Context as Context
    from bdbench.defenses import Defense as Defense
    from bdbench.models import Classifier as Classifier
    from bdbench.models import ImageSet as ImageSet
    from bdbench.models import InvalidInput as InvalidInput
    from bdbench.models import Recipe as Recipe
    from bdbench.models.plugins.files import load_file as load_file
    from bdbench.models.registry import Model as Model
    from bdbench.records.count import Count as Count
    from bdbench.records.record import Record as Record
    from bdbench.trial.poisoned import PoisonedData as PoisonedData

HOMES = {
    "api": [
        *("CellRecord", "Promise", "Results", "Table", "attack", "check", "dataset", "defense"),
        *("evaluate", "load", "model", "poison", "run", "run_cell"),
    ],
    "attacks": ["Attack", "Poisoned", "clean_label", "dirty_label"],
    "datasets": ["Dataset", "Source"],
    "defenses": ["Context", "Defense"],
    "models": ["Classifier", "ImageSet", "InvalidInput", "Recipe"],
    "models.plugins.files": ["load_file"],
    "models.registry": ["Model"],
    "records.count": ["Count"],
    "records.record": ["Record"],
    "trial.poisoned": ["PoisonedData"],
}
PACKAGES = ("attacks", "datasets", "defenses", "models")
__getattr__ = lazy(__name__, HOMES, PACKAGES)


def __dir__() -> list[str]:
    return sorted([*globals(), *PACKAGES, *(name for names in HOMES.values() for name in names)])
