"""What decides whether two cells share a piece of work."""

from __future__ import annotations

from typing import Any

import pytest

from bdbench.cells.cell import Cell, cell
from bdbench.models.training.recipe import Recipe
from bdbench.trial import keys, provenance

HERE = {"torch": "2.9", "device": "cpu: mine", "threads": 1}
TRAINED = ["dynamic", "lc", "mixed(attacks=('badnets', 'dynamic'))", "adaptive(attack='blend')"]


def of(attack: str, model: str = "wrn16_1", **fields: Any) -> Cell:
    return cell("toy", model, attack, "none", Recipe(**fields), 0)


@pytest.mark.parametrize("attack", TRAINED)
@pytest.mark.parametrize("axis", ["training", "attack", "model", "defense", "dataset"])
def test_networks_of_other_code_are_others_whoever_trains_them(
    axis: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, sources = of(attack), provenance.sources
    before = keys.attack_key(made, HERE), keys.undefended_key(made, 0, HERE)
    monkeypatch.setattr(provenance, "sources", lambda cell: {**sources(cell), axis: "changed"})
    after = keys.attack_key(made, HERE), keys.undefended_key(made, 0, HERE)
    decides = axis in ("training", "attack", "model")
    assert [one != other for one, other in zip(before, after, strict=True)] == [decides] * 2


@pytest.mark.parametrize("attack", TRAINED)
def test_networks_of_another_machine_recipe_or_model_are_others(attack: str) -> None:
    found = [
        keys.attack_key(of(attack), HERE),
        *(keys.attack_key(of(attack), {**HERE, name: "another"}) for name in HERE),
        keys.attack_key(of(attack, epochs=7), HERE),
        keys.attack_key(of(attack, "wrn16_1(mean=0.5)"), HERE),
    ]
    assert all(one not in found[:n] for n, one in enumerate(found))
    assert [keys.anywhere(each) for each in found[1:4]] == [keys.anywhere(found[0])] * 3


def test_an_attack_that_trains_nothing_depends_on_itself_alone() -> None:
    made = of("badnets")
    source = provenance.sources(made)["attack"]
    expected = {"attack": made.specs["attack"], "source": source, "seed": 0}
    assert keys.attack_key(made, HERE) == expected
