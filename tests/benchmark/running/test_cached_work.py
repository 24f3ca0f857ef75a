"""What an estimate knows about the cache and checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bdbench.cells import cost
from bdbench.cells.cell import Cell, cell
from bdbench.models.plugins.errors import Signal
from bdbench.models.training.recipe import Recipe
from bdbench.running.cached_work import cached_work
from bdbench.running.speed import Speed
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=6, batch_size=32, learning_rate=0.02)


def made(defense: str, attack: str = "badnets", recipe: Recipe = RECIPE) -> Cell:
    sizes = "toy(train_images=96, test_images=40, image_size=16)"
    return cell(sizes, "wrn16_1", attack, defense, recipe, seed=0)


def there(
    folder: Path, *cells: Cell, threads: int = 1, curves: bool = False
) -> dict[cost.Part, float]:
    return cached_work(cells, Cache(folder), CPU, threads, curves)


class Stopped(Signal):
    pass


def stopped(folder: Path, chosen: Cell, after: int, curves: bool = False) -> None:
    """Run a cell and interrupt it after so many steps; every epoch has a checkpoint."""
    steps = iter(range(after))

    def progress(work: int) -> None:
        if next(steps, None) is None:
            raise Stopped

    with pytest.raises(Stopped):
        Harness(Cache(folder), [], CPU, curves, progress=progress, patience=-1.0).run(chosen)


def test_an_empty_cache_has_no_work(tmp_path: Path) -> None:
    assert there(tmp_path, made("none"), made("cbd")) == {}


def test_a_cached_network_is_no_work_for_any_cell_that_needs_it(tmp_path: Path) -> None:
    plain, tuned, other = made("none"), made("ft"), made("none", "blend")
    Harness(Cache(tmp_path), [], CPU).run(plain)
    known = there(tmp_path, plain, tuned, other)
    left = cost.added_work([plain, tuned, other], known)
    assert left[plain] == 0
    assert left[tuned] == pytest.approx(cost.expected_passes(tuned) - cost.expected_passes(plain))
    assert left[other] == cost.expected_passes(other)
    # Other code, another recipe or other threads would train it again.
    assert there(tmp_path, made("none", recipe=Recipe(epochs=7))) == {}
    assert there(tmp_path, plain, threads=2) == {}


def test_a_network_is_trained_again_for_its_curve(tmp_path: Path) -> None:
    """That of a cell without a defense alone has a curve in a record."""
    plain, tuned, cache = made("none"), made("ft"), Cache(tmp_path)

    def left(*cells: Cell, curves: bool = True, controls: tuple[Cell, ...] = ()) -> float:
        known = cached_work(cells, cache, CPU, 1, curves, controls)
        return sum(cost.added_work([*cells, *controls], known).values())

    network = cost.expected_passes(plain)
    own = cost.expected_passes(tuned) - network
    Harness(cache, [], CPU).run(plain)
    assert left(plain, curves=False) == left(controls=(plain,)) == 0
    assert left(plain) == left(plain, controls=(plain,)) == network
    assert left(tuned) == pytest.approx(own)
    assert left(plain, tuned) == left(tuned, plain) == pytest.approx(network + own)
    done: list[int] = []
    Harness(cache, [], CPU, curves=True, progress=done.append).run(plain)
    assert sum(done) == network
    assert left(plain) == 0
    assert left(tuned, plain) == pytest.approx(own)


def test_a_timed_run_trains_a_network_of_another_run_again(tmp_path: Path) -> None:
    plain, cache = made("none"), Cache(tmp_path)

    def known(timed: bool) -> bool:
        return bool(cached_work([plain], cache, CPU, 1, curves=False, timed=timed))

    for timed in (False, True):
        Harness(cache, [], CPU, timed=timed).run(plain)
        assert known(False)
        assert known(True) == timed


@pytest.mark.parametrize("curves", [False, True])
@pytest.mark.parametrize(
    ("defense", "epochs"), [("none", 3.0), pytest.param("cbd(t1=2)", 3 + 2 / 3, id="cbd")]
)
def test_what_a_checkpoint_holds_is_no_work(
    defense: str, epochs: float, curves: bool, tmp_path: Path
) -> None:
    """Of CBD two epochs of f_B and one of f_C, with two forward passes of f_B."""
    chosen = made(defense)
    # Three steps an epoch: three epochs have a checkpoint, the fourth has started.
    stopped(tmp_path, chosen, after=10, curves=curves)
    (done,) = there(tmp_path, chosen, curves=curves).values()
    assert done == pytest.approx(3 * epochs * 96)
    assert (
        cost.added_work([chosen], there(tmp_path, chosen, curves=curves))[chosen]
        == cost.expected_passes(chosen) - done
    )
    # A run that is asked for curves, or for none, does not resume the other's training.
    assert there(tmp_path, chosen, curves=not curves) == {}


def test_an_attack_that_is_prepared_is_no_work(tmp_path: Path) -> None:
    first, second = made("none", "dynamic"), made("cbd", "dynamic")
    Harness(Cache(tmp_path), [], CPU).poisoned(first)
    left = cost.added_work([second], there(tmp_path, first, second))
    prepared = first.attack.cost(RECIPE, 96) * 96
    assert prepared > 0
    assert left[second] == pytest.approx(cost.expected_passes(second) - prepared)
    # Other threads would train it again.
    assert there(tmp_path, second, threads=2) == {}


def test_what_a_run_has_made_is_no_work_for_its_other_cells(tmp_path: Path) -> None:
    speed, plain, tuned = Speed(CPU, probing=lambda cell, device: 1.0), made("none"), made("ft")
    before = speed.seconds([tuned])
    speed.done |= cost.shared_work(plain)
    assert before - speed.seconds([tuned]) == pytest.approx(cost.expected_passes(plain))


def test_a_control_that_is_a_cell_of_the_run_too_is_no_more_work() -> None:
    """Its network is trained once, whichever cell comes first."""
    clean, attacked, tuned = made("none", "none"), made("none"), made("ft")

    def seconds(*cells: Cell) -> float:
        speed = Speed(CPU, probing=lambda cell, device: 1.0, reactivate=True)
        return speed.seconds(cells)

    network = cost.expected_passes(clean)
    alone = seconds(attacked)
    assert alone == 2 * network + cost.reactivation_work(attacked)
    assert seconds(clean, attacked) == seconds(attacked, clean) == alone
    assert seconds(clean, attacked, tuned) == pytest.approx(seconds(attacked, tuned))


@pytest.mark.parametrize(
    ("defense", "expected"),
    [
        # 7.5 % of 6 * 96 * 3 passes are 21 for each point: 7 training images, 7 test images twice.
        ("none", 6 * 21),
        # 15 % of (3 + 1 + 6 * 4) * 96 are 67.
        ("cbd(t1=1)", 6 * 67),
        # Nothing of its own; one point on what the undefended network has left.
        ("clp", 6 * 21 + 129),
    ],
)
def test_points_of_curves_are_in_an_estimate(defense: str, expected: int) -> None:
    chosen = made(defense)
    plain, drawn = (
        Speed(CPU, probing=lambda cell, device: 1.0, curves=curves).seconds([chosen])
        for curves in (False, True)
    )
    assert drawn - plain == expected <= 0.15 * cost.expected_passes(chosen)


def test_damage_is_no_work_that_is_done(tmp_path: Path) -> None:
    chosen = made("none")
    stopped(tmp_path, chosen, after=10)
    (path,) = (tmp_path / "checkpoints").glob("*/*.safetensors")
    for content in (b"", b"\xff" * 40, path.read_bytes()[:50]):
        path.write_bytes(content)
        assert there(tmp_path, chosen) == {}


NOTES = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "list": "[]",
    "no note": "{}",
    "note of text": '{"note": "forwards"}',
    "no work": '{"note": {"about": {}}}',
    "no mapping": '{"note": {"forwards": 1, "backwards": 1, "about": [1]}}',
    "words": '{"note": {"forwards": "1", "backwards": "1", "about": {}}}',
}


@pytest.mark.parametrize("name", NOTES)
def test_a_checkpoint_that_says_something_else_is_no_work_that_is_done(
    name: str, tmp_path: Path
) -> None:
    place = tmp_path / f"checkpoints/{'a' * 32}/1-1-{'b' * 32}.safetensors"
    place.parent.mkdir(parents=True)
    head = json.dumps({"__metadata__": {"document": NOTES[name]}}).encode()
    place.write_bytes(len(head).to_bytes(8, "little") + head)
    assert there(tmp_path, made("none")) == {}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "file"])
def test_what_is_not_ours_among_checkpoints_is_not_opened(kind: str, tmp_path: Path) -> None:
    """Opening a pipe would block."""
    chosen = made("none")
    stopped(tmp_path, chosen, after=10)
    (path,) = (tmp_path / "checkpoints").glob("*/*.safetensors")
    elsewhere = path.rename(tmp_path / path.name)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "folder":
        path.parent.rename(tmp_path / "outside")
        path.parent.symlink_to(tmp_path / "outside")
        elsewhere.rename(path)
    else:
        elsewhere.rename(path.with_name("mine.safetensors"))
    assert there(tmp_path, chosen) == {}
