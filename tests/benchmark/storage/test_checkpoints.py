"""What is kept of a training, and that it goes on from there.

That every attack and defense ends the same wherever it is broken off is a promise of the contract.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from bdbench.cells.cell import Cell, cell
from bdbench.contract.scenarios import resumes
from bdbench.machine.clock import Stopwatch
from bdbench.models.data import ImageSet
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop
from bdbench.models.training.recipe import Recipe
from bdbench.models.training.reference_loader import batches
from bdbench.models.training.resume import (
    Checkpoint,
    CheckpointStore,
    State,
    checkpointed_in,
    restore,
    resumable,
    snapshot,
)
from bdbench.storage.cache import Cache
from bdbench.storage.checkpoints import Checkpoints, decode, encode
from bdbench.trial.failure import TimeLimit
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")


class Memory(CheckpointStore):
    """Keeps everything, as files would hold it."""

    def __init__(self) -> None:
        self.kept: dict[str, Checkpoint] = {}

    def find(self, loop: str) -> Checkpoint | None:
        return self.kept.get(loop)

    def offer(self, loop: str, rounds: int, finished: bool, state: State) -> None:
        _, saved = decode(encode({}, snapshot(state)))
        self.kept[loop] = Checkpoint(rounds, finished, saved)


@pytest.mark.parametrize(
    ("attack", "defense", "curves"),
    [
        ("badnets", "cbd", True),
        pytest.param("badnets", "cbd(select='cv', folds=2)", False, marks=pytest.mark.slow),
        ("badnets", "mcr(ends='single')", False),
        (
            "badnets",
            "abl(objective='sequential', unlearning_epochs=3, isolation_rate=0.1)",
            False,
        ),
        ("badnets", "abl(isolation_rate=0.1)", False),
        ("badnets", "nad(betas='search')", False),
        ("badnets", "ft(updates=10_000)", True),
    ],
)
def test_broken_off_anywhere_it_ends_the_same(attack: str, defense: str, curves: bool) -> None:
    assert resumes(attack, defense, curves) > 0


def everything() -> tuple[dict[str, Any], Any]:
    """A state of every kind of part, and a function that changes all of it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    sgd = SGD(network.parameters(), lr=0.1, momentum=0.9)
    weight = nn.Parameter(torch.ones(3))
    adam = Adam([weight], lr=0.1)
    state = {
        "network": network,
        "sgd": sgd,
        "schedule": CosineAnnealingLR(sgd, 5),
        "weight": weight,
        "adam": adam,
        "count": torch.zeros((), dtype=torch.int64),
        "torch": torch.Generator().manual_seed(1),
        "numpy": numpy.random.default_rng(2),
        "facts": {"loss": 0.1, "epochs": 3, "good": {"w": torch.ones(2)}, "none": None},
    }

    def change() -> list[float]:
        network.zero_grad()
        weight.grad = None
        seen = torch.rand(2, 3, 8, 8, generator=state["torch"])
        (network(seen).square().mean() + (weight * float(state["numpy"].random())).sum()).backward()
        sgd.step()
        adam.step()
        state["schedule"].step()
        state["count"].add_(1)
        state["facts"].update(loss=state["facts"]["loss"] / 3, good={"w": weight.detach().clone()})
        parts = [*network.state_dict().values(), weight.detach(), state["count"]]
        numbers = [value for part in parts for value in part.double().flatten().tolist()]
        return [*numbers, state["facts"]["loss"], sgd.param_groups[0]["lr"]]

    return state, change


def test_every_kind_of_state_goes_through_a_file_and_back() -> None:
    state, change = everything()
    change()
    content = encode({"n": 1}, snapshot(state))
    expected = [change() for _ in range(3)]
    document, saved = decode(content)
    assert document == {"n": 1}
    # A new process: everything at its start, then restored.
    other, change_other = everything()
    restore(other, saved)
    assert [change_other() for _ in range(3)] == expected
    assert other["facts"]["good"].keys() == {"w"}
    momentum = other["sgd"].state_dict()["state"][0]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)


def test_a_state_that_lacks_a_part_is_not_restored() -> None:
    with pytest.raises(KeyError):
        restore({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.ones(1)})


def test_finished_loops_are_restored_and_a_broken_one_goes_on() -> None:
    memory, met = Memory(), []

    def work(stop: int) -> list[float]:
        totals = []
        for number in range(3):
            total = torch.zeros(1)
            for done in resumable(4, {"total": total}):
                met.append((number, done))
                if len(met) == stop:
                    raise KeyboardInterrupt
                total += 10**number
            totals.append(float(total))
        return totals

    for stop in (6, 9):
        with pytest.raises(KeyboardInterrupt), checkpointed_in(memory):
            work(stop)
    with checkpointed_in(memory):
        assert work(0) == [4, 40, 400]
    # The sixth round was lost and met again, and so was the ninth.
    assert met == [
        *[(0, n) for n in range(4)],
        *[(1, 0), (1, 1)],
        *[(1, 1), (1, 2), (1, 3)],
        *[(1, 3), (2, 0), (2, 1), (2, 2), (2, 3)],
    ]


def test_a_loop_inside_another_is_kept_with_it() -> None:
    memory, inner = Memory(), []
    with checkpointed_in(memory):
        total = torch.zeros(1)
        for _ in resumable(2, {"total": total}):
            for done in resumable(3, {"never": torch.zeros(1)}):
                inner.append(done)
                total += 1
        for _ in resumable(1, {"total": total}):
            pass
    assert inner == [0, 1, 2, 0, 1, 2]
    assert {number: kept.rounds for number, kept in memory.kept.items()} == {"0": 2, "1": 1}


def test_until_ends_a_loop_for_good() -> None:
    memory = Memory()
    for _ in range(2):
        with checkpointed_in(memory):
            total = torch.zeros(1)
            for _ in resumable(9, {"total": total}, lambda total=total: float(total) >= 3):
                total += 1
        assert float(total) == 3
    assert memory.kept["0"].finished


def test_a_second_image_set_goes_on_in_the_middle_of_its_pass(images: ImageSet) -> None:
    """Two sets of different sizes: at an epoch's end the other one is somewhere."""
    recipe = Recipe(epochs=5, batch_size=7, padding=1)

    def seen(memory: Memory, stop: int) -> list[Any]:
        found: list[Any] = []
        count = torch.zeros(1)

        def step(one: Batch, two: Batch) -> None:
            count.add_(1)
            found.append((one.index.tolist(), two.index.tolist(), float(two.images.sum())))
            if float(count) == stop:
                raise KeyboardInterrupt

        rng = torch.Generator().manual_seed(3)
        with checkpointed_in(memory):
            loop(step, images[:20], images[5:22], recipe=recipe, rng=rng, state={"count": count})
        return found

    whole, memory = seen(Memory(), 0), Memory()
    with pytest.raises(KeyboardInterrupt):
        seen(memory, 8)
    rest = seen(memory, 0)
    assert 0 < len(rest) < len(whole)
    assert rest == whole[-len(rest) :]


@pytest.mark.parametrize(
    ("stop", "loader"), [(4, "resident"), (17, "resident"), (49, "resident"), (17, "reference")]
)
def test_a_training_of_updates_goes_on_in_the_middle_of_its_pass(
    stop: int, loader: str, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of 3 updates and passes of 4: the same batches, rates and bits as in one piece."""
    # Every pass starts its workers.
    monkeypatch.setattr("bdbench.models.training.feed.batches", partial(batches, workers=1))
    recipe = Recipe(batch_size=6, padding=1, drops=(0.5,), learning_rate=0.01, loader=loader)

    def trained(memory: Memory, stop: int) -> tuple[list[Any], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
        optimizer = recipe.sgd(network)
        seen: list[Any] = []
        count = torch.zeros(1)

        def step(batch: Batch) -> None:
            count.add_(1)
            if float(count) == stop:
                raise KeyboardInterrupt
            seen.append((batch.index.tolist(), optimizer.param_groups[0]["lr"]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
            optimizer.step()

        state: State = {"network": network, "optimizer": optimizer, "count": count}
        rng = torch.Generator().manual_seed(3)
        with checkpointed_in(memory):
            loop(step, images[:23], recipe=recipe, rng=rng, state=state, updates=50)
        assert optimizer.param_groups[0]["lr"] == 0.01
        return seen, network.state_dict()

    (whole, expected), memory = trained(Memory(), 0), Memory()
    assert len(whole) == 50
    with pytest.raises(KeyboardInterrupt):
        trained(memory, stop)
    assert memory.kept["0"].rounds == (stop - 1) // 3
    rest, found = trained(memory, 0)
    assert rest == whole[(stop - 1) // 3 * 3 :]
    assert all(torch.equal(values, found[name]) for name, values in expected.items())
    # A finished one is not run again, and leaves the rate where it was.
    again, found = trained(memory, 0)
    assert again == []
    assert all(torch.equal(values, found[name]) for name, values in expected.items())


def notes(folder: Path, patience: float = -1.0) -> tuple[Checkpoints, list[Any]]:
    heard: list[Any] = []
    return Checkpoints(folder, lambda: {"seconds": 1.5}, heard.append, patience), heard


def test_files_hold_the_last_round_of_each_loop(tmp_path: Path) -> None:
    store, _ = notes(tmp_path)
    for rounds in (1, 2, 3):
        store.offer("0", rounds, rounds == 3, {"x": torch.full((2,), float(rounds))})
    store.offer("1", 1, False, {"x": torch.zeros(2)})
    assert sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.iterdir()) == ["0-3", "1-1"]

    again, heard = notes(tmp_path)
    kept = again.find("0")
    assert kept is not None
    assert (kept.rounds, kept.finished, kept.state["x"].tolist()) == (3, True, [3.0, 3.0])
    assert heard == [{"seconds": 1.5}]
    assert again.find("2") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "other name", "temporary", "pickle"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    store, _ = notes(tmp_path)
    store.offer("0", 1, False, {"x": torch.zeros(2)})
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 4
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "other name":
        path.rename(tmp_path / f"0-1-{32 * 'a'}.safetensors")
    elif damage == "temporary":
        path.rename(tmp_path / f".{path.name}.{32 * '0'}.tmp")
    else:
        torch.save({"x": 1}, path)
    again, heard = notes(tmp_path)
    assert again.find("0") is None
    assert heard == []
    assert list(tmp_path.iterdir()) == []


def written_beside(
    rounds: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *, write: float, wait: float = 0.0
) -> tuple[int, float]:
    """How many checkpoints are written in rounds of ten seconds, and the seconds in all.

    write, wait: seconds that each write takes, and before it the wait for the device
    """
    clock, written = [0.0], []
    monkeypatch.setattr("bdbench.storage.checkpoints.time.monotonic", lambda: clock[0])

    def note() -> dict[str, Any]:
        clock[0] += wait
        return {}

    def keep(path: Path, content: bytes) -> None:
        clock[0] += write
        written.append(path)

    monkeypatch.setattr("bdbench.storage.checkpoints.write_atomically", keep)
    store = Checkpoints(folder, note, lambda noted: None, patience=1.0)
    for number in range(1, rounds + 1):
        clock[0] += 10
        store.offer("0", number, number == rounds, {"x": torch.zeros(2)})
    return len(written), clock[0]


def test_checkpoints_take_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, seconds = written_beside(200, tmp_path, monkeypatch, write=3)
    assert written >= 10
    assert 3 * written <= 0.02 * seconds + 3


def test_waiting_for_queued_steps_is_no_cost_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that has work left when a round ends: one every 50 seconds and a round; if the wait
    counted, every 550 seconds."""
    written, _ = written_beside(100, tmp_path, monkeypatch, write=1, wait=10)
    assert written > 10


def test_a_full_disk_ends_checkpoints_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    store, _ = notes(tmp_path)
    with pytest.warns(UserWarning, match="without checkpoints: .*No space left"):
        store.offer("0", 1, False, {"x": torch.zeros(2)})
    store.offer("0", 2, True, {"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == []


def short_cell() -> Cell:
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=0.01)
    return cell(
        "toy(train_images=64, test_images=20, image_size=16)",
        "wrn16_1",
        "badnets",
        "cbd",
        recipe,
        0,
    )


def test_seconds_of_earlier_attempts_count(tmp_path: Path) -> None:
    """A clock on which every look at it takes a second."""
    chosen, calls = short_cell(), [0]

    def progress(work: int) -> None:
        calls[0] += 1
        if calls[0] == 15:
            raise KeyboardInterrupt

    def harness() -> Harness:
        return Harness(Cache(tmp_path), [], CPU, progress=progress, patience=-1.0)

    with pytest.raises(KeyboardInterrupt):
        harness().run(chosen)
    folder = tmp_path / "checkpoints"
    files = list(folder.rglob("*.safetensors"))
    stored = [decode(path.read_bytes())[0]["note"]["stages"]["fit"] for path in files]
    record = harness().run(chosen)
    assert record.measured.resumed == 1
    assert record.measured.seconds.fit > max(stored) > 0


def test_a_failed_cell_keeps_its_checkpoints_and_a_finished_one_does_not(tmp_path: Path) -> None:
    chosen, calls = short_cell(), [0]

    def progress(work: int) -> None:
        calls[0] += 1
        if calls[0] == 15:
            raise TimeLimit("over the limit of 1 s")

    harness = Harness(Cache(tmp_path), [], CPU, progress=progress, patience=-1.0)
    record = harness.run(chosen)
    assert record.error is not None
    assert record.error.type == "TimeLimit"
    assert list((tmp_path / "checkpoints").rglob("*.safetensors"))
    assert harness.run(chosen).status == "ok"
    harness.discard(chosen)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_own_seconds_of_a_running_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("bdbench.machine.clock.now", lambda: float(next(clock)))
    watch = Stopwatch(CPU)
    with watch.stage("fit"):  # 0
        with watch.stage("evaluate"):  # 10 to 20
            assert watch.own("fit") == 0
        assert watch.own("fit") == 20  # looked at 30
    assert watch.seconds == {"evaluate": 10, "fit": 30}
