"""What decides whether two cells share a piece of work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bdbench.cells.cell import Cell, cell
from bdbench.machine import devices
from bdbench.models.training.recipe import Recipe
from bdbench.trial import keys, provenance

HERE = {"torch": "2.9", "device": "cpu: mine", "threads": 1, "instructions": "AVX2"}
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


@pytest.mark.parametrize(
    ("capability", "flags", "name"),
    [
        ("AVX2", {}, "AVX2"),
        ("AVX512", {"avx512_bf16": False}, "AVX512"),
        ("AVX512", {"avx512_bf16": True}, "AVX512 with bf16"),
        ("AVX512", {"avx512_bf16": True, "amx_tile": True}, "AVX512 with bf16 and AMX"),
    ],
)
def test_processors_of_one_name_and_other_instructions_are_other_machines(
    capability: str, flags: dict[str, bool], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    cpu = torch.device("cpu")
    assert devices.instructions() == name
    assert keys.machine(cpu, 1)["instructions"] == name
    assert provenance.of(of("none"), cpu, None)["instructions"] == name
    assert "instructions" not in keys.machine(torch.device("cuda"), 1)
    assert not keys.anywhere(keys.machine(cpu, 1))


@pytest.mark.parametrize("attack", ["badnets", "blend", "mixed(attacks=('badnets', 'sig'))"])
@pytest.mark.parametrize("axis", ["training", "attack", "model", "defense", "dataset"])
def test_a_poisoned_set_of_other_code_is_another(
    axis: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is trained: shares of images and random streams are in `models/`."""
    made, sources = of(attack), provenance.sources
    before = keys.attack_key(made, HERE)
    monkeypatch.setattr(provenance, "sources", lambda cell: {**sources(cell), axis: "changed"})
    assert (keys.attack_key(made, HERE) != before) == (axis in ("training", "attack"))


def test_cells_of_all_recipes_models_and_machines_share_what_is_not_trained() -> None:
    found = keys.attack_key(of("badnets"), HERE)
    others = [
        keys.attack_key(of("badnets", epochs=7), HERE),
        keys.attack_key(of("badnets", "resnet18"), HERE),
        keys.attack_key(of("badnets"), {**HERE, "device": "another", "threads": 2}),
    ]
    assert others == [found] * 3
    newer = keys.attack_key(of("badnets"), {**HERE, "torch": "3.0"})
    assert newer != found
    beside = {**found, "beside": ["0123456789ab"]}
    assert keys.anywhere(newer) == keys.anywhere(beside) == keys.anywhere(found)


def test_the_length_of_repair_is_in_the_key_of_no_undefended_network() -> None:
    """Plain training does not read it; an attack that trains may."""
    for attack, shared in (("badnets", True), ("none", True), ("dynamic", False)):
        one, other = (keys.undefended_key(of(attack, updates=n), 0, HERE) for n in (0.1, 1.0))
        assert (one == other) == shared
        assert one != keys.undefended_key(of(attack, epochs=7), 0, HERE)


@pytest.mark.parametrize(
    ("attack", "other"),
    [("badnets", "badnets(poisoning_rate=0.2)"), ("dynamic", "dynamic(density=0.1)")],
)
def test_another_seed_setting_or_number_is_another_piece_of_work(attack: str, other: str) -> None:
    def of(text: str, seed: int = 0) -> Cell:
        return cell("toy", "wrn16_1", text, "none", Recipe(), seed)

    cells = of(attack), of(other), of(attack, 1)

    def of_a_network(cell: Cell, here: Any) -> dict[str, Any]:
        return keys.undefended_key(cell, 0, here)

    for key in (keys.attack_key, of_a_network):
        found = [key(each, HERE) for each in cells]
        assert all(one not in found[:n] for n, one in enumerate(found))
    assert keys.undefended_key(cells[0], 0, HERE) != keys.undefended_key(cells[0], 1, HERE)
