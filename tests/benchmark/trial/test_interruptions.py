"""What runs leave to later ones: checkpoints, curves, data of figures, and seconds."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy
import pytest
import torch
from filelock import FileLock

from bdbench.cells.cell import Cell, cell
from bdbench.models.plugins.errors import Signal
from bdbench.models.training.recipe import Recipe
from bdbench.records.record import Record
from bdbench.storage.cache import Arrays, Cache
from bdbench.storage.locks import alone_in
from bdbench.storage.maintenance import clear, contents
from bdbench.trial import curves
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")
EPOCHS = 4


class Stopped(Signal):
    pass


def tiny(defense: str = "none") -> Cell:
    dataset = "toy(train_images=96, test_images=40, image_size=16)"
    recipe = Recipe(epochs=EPOCHS, batch_size=32, learning_rate=0.02, updates=0.005)
    return cell(dataset, "wrn16_1", "badnets", defense, recipe, 0)


def run(folder: Path, chosen: Cell, curves: bool = False) -> Record:
    return Harness(Cache(folder), [], CPU, curves, patience=-1.0).run(chosen)


def stop(folder: Path, chosen: Cell, curves: bool = False, after: int = 8) -> None:
    """Run a cell and interrupt it after so many updates; every epoch has a checkpoint."""
    left = iter(range(after))

    def progress(work: int) -> None:
        if next(left, None) is None:
            raise Stopped

    with pytest.raises(Stopped):
        Harness(Cache(folder), [], CPU, curves, progress=progress, patience=-1.0).run(chosen)


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*/*.safetensors"))


@pytest.mark.parametrize("defense", ["none", "ft(updates=400)", "cbd(t1=1)"])
@pytest.mark.parametrize("first", [False, True])
def test_a_curve_is_whole_or_absent_whatever_an_interrupted_run_was_asked_for(
    first: bool, defense: str, tmp_path: Path
) -> None:
    chosen = tiny(defense)
    whole = run(tmp_path / "whole", chosen, curves=not first)
    stop(tmp_path / "torn", chosen, curves=first)
    assert checkpoints(tmp_path / "torn")
    later = run(tmp_path / "torn", chosen, curves=not first)
    assert later.provenance.network_sha256 == whole.provenance.network_sha256
    assert later.curves == whole.curves
    assert bool(later.curves) is not first
    again = run(tmp_path / "torn", chosen, curves=first)
    assert again.provenance.network_sha256 == whole.provenance.network_sha256
    # One of the two finished without what the other had begun.
    assert not (checkpoints(tmp_path / "torn") and defense == "none")


def test_a_curve_resumes_where_the_interrupted_run_was_asked_for_one_too(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", tiny(), curves=True)
    stop(tmp_path / "torn", tiny(), curves=True)
    later = run(tmp_path / "torn", tiny(), curves=True)
    assert later.measured.resumed == 1
    assert later.curves == whole.curves


def test_a_record_has_no_curve_that_only_another_cell_was_asked_for(tmp_path: Path) -> None:
    run(tmp_path, tiny("ft(updates=400)"), curves=True)
    assert run(tmp_path, tiny()).curves == []
    asked = run(tmp_path, tiny(), curves=True)
    assert asked.metrics is not None
    assert asked.metrics.attack_success_rate is not None
    assert [point["epoch"] for point in asked.curves] == [1, 2, 3, 4]
    last = asked.curves[-1]["attack_success_rate"]
    assert last == pytest.approx(asked.metrics.attack_success_rate.rate, abs=1e-6)


def drawn(folder: Path, chosen: Cell) -> Arrays:
    found = Cache(folder).get("embeddings", {"cell": chosen.key})
    assert found is not None
    return found


@pytest.mark.parametrize("defense", ["cbd(t1=1)", "spectral", "none"])
def test_a_repetition_without_curves_costs_no_data_of_figures(
    defense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny(defense)
    run(tmp_path, chosen, curves=True)
    before = drawn(tmp_path, chosen)
    assert "embedding/z/after" in before
    run(tmp_path, chosen)
    after = drawn(tmp_path, chosen)
    assert after.keys() == before.keys()
    assert all(numpy.array_equal(after[name], before[name]) for name in before)
    # What other code drew would not be of this network.
    monkeypatch.setattr(curves, "sources", lambda chosen: {"defense": "other"})
    run(tmp_path, chosen)
    if defense != "none":
        assert "embedding/z/after" not in drawn(tmp_path, chosen)


@pytest.mark.parametrize("defense", ["none", "ft(updates=400)", "cbd(t1=1)"])
def test_no_stage_is_charged_for_waiting(
    defense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set forward while the lock of an entry is asked for."""
    acquire, hours = FileLock.acquire, [0]

    def late(self: FileLock, *rest: object, **more: object) -> object:
        hours[0] += self.lock_file.endswith(".lock")
        return acquire(self, *rest, **more)  # type: ignore[arg-type]

    ticks = count()
    monkeypatch.setattr(FileLock, "acquire", late)
    monkeypatch.setattr("bdbench.machine.clock.now", lambda: next(ticks) + 1e6 * hours[0])
    for _ in range(2):
        spent = run(tmp_path, tiny(defense)).measured.seconds
        assert spent.poison > 0
        assert max(spent[stage] for stage in type(spent).model_fields) < 1e6
    assert hours[0] >= 2


@pytest.mark.parametrize("defense", ["cbd(t1=1)", "ft(updates=400)", "none"])
def test_seconds_before_an_interruption_count_in_every_stage(
    defense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that every look sets forward, so that the same work takes the same time."""
    ticks = count()
    monkeypatch.setattr("bdbench.machine.clock.now", lambda: float(next(ticks)))
    chosen = tiny(defense)
    whole = run(tmp_path / "whole", chosen, curves=True).measured.seconds
    stop(tmp_path / "torn", chosen, curves=True, after=11)
    resumed = run(tmp_path / "torn", chosen, curves=True).measured
    assert resumed.resumed == 1
    assert resumed.seconds.evaluate == whole.evaluate


@pytest.mark.parametrize("defense", ["none", "cbd(t1=1)"])
def test_the_checkpoints_of_a_running_process_are_its_own(defense: str, tmp_path: Path) -> None:
    """Another run of the same cell, into another folder, uses the same cache."""
    chosen = tiny(defense)
    whole = run(tmp_path / "whole", chosen)
    shared = tmp_path / "shared"
    stop(shared, chosen)
    made = checkpoints(shared)
    assert made
    (folder,) = {path.parent for path in made}
    with alone_in(folder) as alone:
        assert alone
        with pytest.warns(UserWarning, match="without checkpoints: another process does"):
            beside = run(shared, chosen)
        assert clear(Cache(shared), "checkpoints")[0].startswith("kept 1 in use")
        assert checkpoints(shared) == made
    assert beside.measured.resumed == 0
    assert beside.provenance.network_sha256 == whole.provenance.network_sha256
    if defense == "none":
        return  # its network is in the cache
    after = run(shared, chosen)
    assert after.measured.resumed == 1
    assert after.provenance.network_sha256 == whole.provenance.network_sha256


@pytest.mark.parametrize("defense", ["none", "ft(updates=400)", "cbd(t1=1)"])
def test_a_finished_cell_leaves_neither_checkpoints_nor_locks(defense: str, tmp_path: Path) -> None:
    chosen = tiny(defense)
    harness = Harness(Cache(tmp_path), [], CPU, patience=-1.0)
    harness.run(chosen)
    harness.discard(chosen)
    assert not contents(Cache(tmp_path), "checkpoints")
    assert not list(tmp_path.glob("checkpoints/*"))
