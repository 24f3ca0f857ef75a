"""Defenses: each turns a training set, which may be poisoned, into a classifier."""

from bdbench.defenses.base import CleanBudget as CleanBudget
from bdbench.defenses.base import Context as Context
from bdbench.defenses.base import Defense as Defense
from bdbench.defenses.registry import register as register
