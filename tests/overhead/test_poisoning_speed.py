"""Poisoning a training set, in images of the whole set."""

from __future__ import annotations

import pytest
from turns import TINY, beside_bare, pictures

from bdbench.attacks.base import Attack
from bdbench.attacks.registry import attacks
from bdbench.models.rng import stream

COUNT = 500 if TINY else 5_000


def at_once(attack: Attack) -> bool:
    """Whether it poisons something, and needs no training before."""
    return attack.poisoning_rate > 0 and not attack.trains


@pytest.mark.parametrize("name", [name for name in attacks.names() if at_once(attacks.build(name))])
def test_poisoning(name: str, benchmark: object) -> None:
    attack, data = attacks.build(name), pictures(COUNT)
    beside_bare(
        benchmark, f"poisoning, {name}", lambda: attack.poison(data, stream(0, "poison")), COUNT
    )
