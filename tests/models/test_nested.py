"""Specs in the fields of a plugin: one form inside and outside, with the files that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from bdbench.attacks import Attack, Poisoned, dirty_label
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, cell, cell_of
from bdbench.models import ImageSet, Recipe, path_field
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec

OUTER: dict[str, Callable[[str], str]] = {
    "alone": lambda inner: inner,
    "adaptive": lambda inner: f"adaptive(attack={inner!r})",
    "mixed": lambda inner: f"mixed(attacks={['blend(target=1)', inner]})",
    "adaptive in mixed": lambda inner: OUTER["mixed"](OUTER["adaptive"](inner)),
}
"""Attacks that hold another one, by the spec of this."""


@pytest.fixture(autouse=True)
def grey() -> Iterator[None]:
    """An attack whose trigger is one grey level, which a file holds."""

    @attacks.register("grey")
    @dataclass(frozen=True)
    class Grey(Attack):
        file: str = path_field()
        side: int = 3

        def trigger(self, images: Tensor) -> Tensor:
            made = images.clone()
            made[..., : self.side] = int(Path(self.file).read_text())
            return made

        def poison(self, clean: ImageSet, rng: Generator) -> Poisoned:
            return dirty_label(self, clean, rng)

    yield
    attacks.unregister(["grey"])


def tiny(attack: str) -> Cell:
    return cell("digits", "wrn16_1", attack, "none", Recipe(epochs=1), 0)


def with_file(folder: Path, level: int) -> str:
    folder.mkdir()
    (folder / "level.txt").write_text(str(level))
    return f"grey(file={str(folder / 'level.txt')!r})"


def trigger(cell: Cell) -> set[int]:
    """The grey levels that a cell's attack, or its first or second part, puts into black images."""
    black = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    parts = getattr(cell.attack, "parts", {"": cell.attack}).values()
    return {int(part.trigger(black)[0, 0, 7, 0]) for part in parts}


@pytest.mark.parametrize("name", OUTER)
def test_a_file_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Also where a file of the same name lies in the working folder."""
    made = tiny(OUTER[name](with_file(tmp_path / "one", 40)))
    with_file(tmp_path / "two", 90)
    monkeypatch.chdir(tmp_path / "two")
    again = cell_of(made.located)
    assert again.key == made.key
    assert 40 in trigger(again)
    assert 90 not in trigger(again)


@pytest.mark.parametrize("name", OUTER)
def test_a_relative_path_counts_from_the_folder_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with_file(tmp_path / "one", 40)
    monkeypatch.chdir(tmp_path / "one")
    located = tiny(OUTER[name]("grey(file='level.txt')")).located
    monkeypatch.chdir(tmp_path)
    assert 40 in trigger(cell_of(located))


@pytest.mark.parametrize("name", OUTER)
def test_the_content_of_a_file_is_in_the_key_and_its_folder_is_not(
    tmp_path: Path, name: str
) -> None:
    one, two, other = (
        tiny(OUTER[name](with_file(tmp_path / folder, level)))
        for folder, level in (("a", 40), ("b", 40), ("c", 41))
    )
    assert one.key == two.key != other.key
    assert str(tmp_path) not in str(one.specs)
    assert str(tmp_path) not in str(one.labels)


@pytest.mark.parametrize("name", OUTER)
def test_every_default_is_in_the_key(name: str) -> None:
    """So that a default may change without two settings under one key."""
    found = tiny(OUTER[name]("grey(file='x.txt')")).specs["attack"]
    assert "side=3" in found
    assert "side" not in tiny(OUTER[name]("grey(file='x.txt', side=3)")).labels["attack"]


def test_the_canonical_form_is_a_fixed_point() -> None:
    for text in ("mixed", "adaptive", "adaptive(attack='sig(delta=20)')"):
        once = attacks.canonical(text)
        assert attacks.canonical(once) == once == attacks.canonical(attacks.build(text))
        assert attacks.label(once) == attacks.label(text)


def test_fields_of_the_outer_plugin_are_left_to_it() -> None:
    assert "target" not in Spec.of(attacks.canonical("adaptive")).fields["attack"]
    with pytest.raises(InvalidInput, match="target is a field of attack 'adaptive'"):
        attacks.build("adaptive(attack='badnets(target=1)')")


def test_many_parts_fit_into_a_spec() -> None:
    parts = [f"badnets(target={n})" for n in range(10)] + ["sig(target=3)", "lf", "wanet"] * 2
    assert len(attacks.canonical(f"mixed(attacks={parts})")) > 1_000
