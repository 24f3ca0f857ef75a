"""Attacks: each poisons a clean training set and stamps its trigger on test images."""

from bdbench.attacks.base import Attack as Attack
from bdbench.attacks.base import Poisoned as Poisoned
from bdbench.attacks.base import prepared as prepared
from bdbench.attacks.poison import clean_label as clean_label
from bdbench.attacks.poison import dirty_count as dirty_count
from bdbench.attacks.poison import dirty_label as dirty_label
from bdbench.attacks.registry import register as register
