"""BadNets all-to-all, Gu, Dolan-Gavitt and Garg, 2017, arXiv:1708.06733.

The patch of badnets turns class i into class i + 1, and the last class into the first. No single
class is the target, and every test image counts for the attack success rate.

Differs: in the patch, as badnets does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bdbench.attacks import Attack, register
from bdbench.attacks.badnets import BadNets
from bdbench.models import require


@register("badnets_all_to_all", title="BadNets all-to-all")
@dataclass(frozen=True)
class BadNetsAllToAll(BadNets):
    """
    poisoning_rate: share of the training set, in (0, 1] (as badnets: 0.1)
    target: always 0; it has no meaning, because every class has its own target
    pattern: "grid", four white and five black cells, or "white", all white
    margin: distance of the patch from the right and lower border, in cells
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.target == Attack.target,
            f"badnets_all_to_all has no single target; leave target at {Attack.target}, "
            f"got {self.target}",
        )

    def goal(self, labels: Tensor, num_classes: int) -> Tensor:
        return (labels + 1) % num_classes
